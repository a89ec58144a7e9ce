"""The whole stream in real processes: gloo ranks, loader workers, forks."""

import json
import multiprocessing
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from processes import in_processes
from transformers import AutoTokenizer

from cogaze.data.collate import Collate, add_special_tokens
from cogaze.data.dataset import CorruptSampleError, DatasetConfig, ShardDataset, read_table
from cogaze.data.loader import Stream, WorkerConfig
from cogaze.data.plan import PlanConfig, Position, Share
from cogaze.data.transforms import ViewConfig
from cogaze.fit import fit
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.images import Resize
from gazeprep.samples import PictureConfig, SampleConfig

GLOBAL_BATCH = 6  # for 1, 2 and 3 processes


@pytest.fixture
def collate(bare_tokenizers):
    made = AutoTokenizer.from_pretrained(bare_tokenizers["wordpiece"])
    add_special_tokens(made)
    return Collate(made)


def stream_of(root, collate, share=None, plan=None, workers=0, dataset=None, split="train"):
    """A stream of small pictures."""
    config = dataset or DatasetConfig(ViewConfig(size_px=32))
    shards = ShardDataset(root, read_table(root, split), (4, 4), config)
    return Stream(shards, collate, plan or PlanConfig(GLOBAL_BATCH), share, WorkerConfig(workers))


@pytest.fixture
def make_shards(tables, inline, tmp_path):
    """make_shards(samples, per_shard): small shards of one's own table, every third sample with gaze."""

    def make(samples, per_shard):
        for i in range(samples):
            tables.image(f"i{i}", subject=f"s{i}")
            if i % 3 == 0:
                tables.reading(f"r{i}", f"i{i}")
        out = tmp_path / "own shards"
        sample = SampleConfig(picture=PictureConfig(Resize(size_px=32)))
        build(BuildConfig(out, Sources(table=tables.source()), sample=sample, shard_samples=per_shard, workers=1))
        return out

    return make


# --- several processes


def _deliver(root, collate, out, workers):
    """Write this rank's samples of two epochs, batch by batch, and what all ranks gather of them."""
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    stream = stream_of(root, collate, Share(rank, world), workers=workers)
    row = {stream.dataset.table.name(i): i for i in range(len(stream.dataset))}
    epochs, gathered = [], []
    for epoch in range(2):
        batches = []
        for batch in stream.epoch(Position(epoch)):
            batches.append([list(sample) for sample in zip(batch.keys, batch.valid.tolist(), strict=True)])
            rows = torch.tensor([row.get(key, -1) for key in batch.keys])
            together, valid = accelerator.gather((rows, batch.valid))
            gathered += together[valid].tolist()
        epochs.append(batches)
    (out / f"{rank}.json").write_text(json.dumps({"epochs": epochs, "gathered": gathered}))
    accelerator.end_training()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # more than some machines have cores
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    ("samples", "per_shard", "workers"), [(12, 4, 0), (13, 5, 0), (7, 7, 3)], ids=["even", "uneven", "more workers"]
)
def test_every_sample_is_delivered_once_an_epoch(make_shards, collate, tmp_path, world, samples, per_shard, workers):
    root = make_shards(samples, per_shard)
    in_processes(_deliver, root, collate, tmp_path, workers, processes=world)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    keys = {read_table(root, "train").name(row) for row in range(samples)}
    for epoch in range(2):
        delivered = [sample for rank in ranks for batch in rank["epochs"][epoch] for sample in batch]
        valid = [key for key, counts in delivered if counts]
        assert sorted(valid) == sorted(keys)
        assert {len(rank["epochs"][epoch]) for rank in ranks} == {-(-samples // GLOBAL_BATCH)}
        early = [sample for rank in ranks for batch in rank["epochs"][epoch][:-1] for sample in batch]
        assert all(counts for _, counts in early)  # only the last global batch is filled
    for rank in ranks:  # evaluation counts every sample once after gathering
        assert sorted(rank["gathered"]) == sorted([*range(samples)] * 2)


def _resume(root, collate, out):
    """Write the keys of each global batch's share that this rank delivers from every step of an epoch on."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    stream = stream_of(root, collate, Share(rank, world))
    found = [[list(b.keys) for b in stream.epoch(Position(1, step))] for step in range(stream.steps)]
    (out / f"{rank}.json").write_text(json.dumps(found))


def test_resuming_at_every_step_in_two_processes_gives_the_remaining_global_batches(make_shards, collate, tmp_path):
    root = make_shards(20, 6)
    in_processes(_resume, root, collate, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = stream_of(root, collate)
    unbroken = [sorted(batch.keys) for batch in alone.epoch(Position(1, 0))]
    assert len(unbroken) == 4
    for step in range(4):
        together = [sorted(a + b) for a, b in zip(first[step], second[step], strict=True)]
        assert together == unbroken[step:]
        again = [sorted(batch.keys) for batch in alone.epoch(Position(1, step))]  # and back to one process
        assert again == unbroken[step:]


def test_the_gaze_of_real_shards_is_shared_evenly(shards, collate):
    ranks = [list(stream_of(shards, collate, Share(rank, 3)).batches) for rank in range(3)]
    counts = np.array([[sum(item.use_gaze for item in batch) for batch in batches] for batches in ranks])
    assert counts.sum() == read_table(shards, "train").has_gaze.sum()
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


# --- workers


def test_workers_and_processes_never_change_a_pixel(shards, collate):
    config = DatasetConfig(ViewConfig("random_resized_crop", 32, flip=0.5, shift=0.1), seed=5)
    alone = {}
    for batch in stream_of(shards, collate, dataset=config).epoch(Position(2)):
        alone |= {key: pixels for key, pixels in zip(batch.keys, batch.pixels, strict=True) if key}
    seen = 0
    for share, workers in ((Share(), 2), (Share(1, 2), 0), (Share(0, 1, 3), 1)):
        for batch in stream_of(shards, collate, share, workers=workers, dataset=config).epoch(Position(2)):
            for key, pixels in zip(batch.keys, batch.pixels, strict=True):
                if key:
                    seen += 1
                    assert torch.equal(pixels, alone[key])
    assert seen > 2 * len(alone)


def test_an_epoch_that_was_left_early_can_be_begun_anew(shards, collate):
    stream = stream_of(shards, collate, plan=PlanConfig(2), workers=2)
    whole = [batch.keys for batch in stream.epoch(Position(0))]
    for batch in stream.epoch(Position(0)):
        assert batch.keys == whole[0]
        break
    assert [batch.keys for batch in stream.epoch(Position(0, 3))] == whole[3:]


def test_the_runs_own_random_numbers_are_not_touched(shards, collate):
    for workers in (0, 1):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(stream_of(shards, collate, workers=workers).epoch())
        assert torch.equal(torch.get_rng_state(), before)


def test_workers_read_remote_shards(shards, collate):
    local = [batch.keys for batch in stream_of(shards, collate).epoch()]
    stream = stream_of(f"file://{shards}", collate, workers=2)
    assert next(iter(stream.epoch())).keys == local[0]  # opened here, before the workers
    assert [batch.keys for batch in stream.epoch()] == local


def test_workers_outlive_a_strangers_signal_but_not_the_runs(shards, collate):
    others = multiprocessing.active_children()
    stream = stream_of(shards, collate, plan=PlanConfig(2), workers=2)
    batches = stream.epoch()
    delivered = [next(batches).keys]
    workers = [child for child in multiprocessing.active_children() if child not in others]
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    delivered += [batch.keys for batch in batches]
    assert delivered == [batch.keys for batch in stream.epoch()]
    assert len(workers) == 2
    for worker in workers:
        worker.terminate()
        worker.join(5)
    assert [worker.exitcode for worker in workers] == [0, 0]


def anonymous_mb(process: int) -> float:
    """Memory of a process that no file backs, in MB."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no such line")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_a_workers_anonymous_memory_does_not_grow(shards, collate):
    config = DatasetConfig(ViewConfig(size_px=512))  # 0.25 MB a picture: one kept per sample would be 60 MB here
    stream = stream_of(shards, collate, workers=1, dataset=config)
    others = {child.pid for child in multiprocessing.active_children()}
    found = []
    for epoch in range(24):
        delivered = sum(int(batch.valid.sum()) for batch in stream.epoch(Position(epoch)))
        (worker,) = {child.pid for child in multiprocessing.active_children()} - others
        found.append(anonymous_mb(worker))
    assert delivered * 24 > 240
    assert max(found[4:]) - found[3] < 4


# --- corrupt samples


@pytest.fixture
def damaged(shards, tmp_path):
    """A copy of the shards in which the first train shard is cut off in its second sample."""
    root = shutil.copytree(shards, tmp_path / "damaged", ignore=shutil.ignore_patterns(".build"))
    table = read_table(root, "train")
    os.truncate(root / table.shard_names[0], int(table.start[1].min()))
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_stops_the_run_by_shard_and_key(damaged, collate, workers):
    with pytest.raises(CorruptSampleError, match=r"^sample [a-z0-9-]+ of train/train-00000.tar cannot be read"):
        list(stream_of(damaged, collate, workers=workers).epoch())


@pytest.mark.parametrize("workers", [0, 2])
def test_or_is_skipped_counted_and_replaced_by_a_filler(damaged, shards, collate, workers):
    skip = DatasetConfig(ViewConfig(size_px=32), skip_corrupt=True)
    stream = stream_of(damaged, collate, workers=workers, dataset=skip)
    table = stream.dataset.table
    lost = {table.name(row) for row in np.flatnonzero(table.shard == 0)[1:]}
    batches = list(stream.epoch())
    faulty = {key for batch in batches for key, fault in zip(batch.keys, batch.faults, strict=True) if fault}
    delivered = {key for batch in batches for key, valid in zip(batch.keys, batch.valid, strict=True) if valid}
    assert faulty == lost
    assert stream.skipped == len(lost) > 1
    assert delivered == {table.name(row) for row in range(len(table))} - lost
    assert len(batches) == len(list(stream_of(shards, collate).epoch()))


def test_more_than_a_set_number_in_a_row_stops_all_the_same(damaged, collate):
    for path in (damaged / "train").glob("*.tar"):
        path.write_bytes(b"")
    skip = DatasetConfig(ViewConfig(size_px=32), skip_corrupt=True, max_corrupt_in_a_row=4)
    stream = stream_of(damaged, collate, dataset=skip)
    with pytest.raises(
        CorruptSampleError, match=r"5 samples in a row had to be skipped, the last: sample .* of train/"
    ):
        list(stream.epoch())


def fit_in_a_process(config):
    AcceleratorState._reset_state(True)
    torch.set_num_threads(1)
    fit(config)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_says_each_skipped_sample_once_and_counts_them_in_log_and_card(damaged, run_config, capfd, processes):
    held_out = read_table(damaged, "validate")
    os.truncate(damaged / held_out.shard_names[0], int(held_out.start[-1].min()))  # its last sample
    table = read_table(damaged, "train")
    lost = [*(table.name(row) for row in np.flatnonzero(table.shard == 0)[1:]), held_out.name(-1)]
    settings = {"shards": str(damaged), "data.skip_corrupt": True, "fit.epochs": 1, "fit.validate_every": -1}
    config = run_config("skipping", settings)
    whole = replace(config, fit=replace(config.fit, epochs=2, validate_every=0))
    for part in (config, whole):  # the second goes on where the first ended
        in_processes(fit_in_a_process, part) if processes > 1 else fit_in_a_process(part)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("skipped: ")]
    keys = [line.split()[2] for line in said]
    assert sorted(keys) == sorted([*lost[:-1], *lost]), "the first run sees no held-out sample"
    assert all(" of train/" in line or " of validate/" in line for line in said)
    values = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    trained = [one["corrupt_samples"] for one in values if "corrupt_samples" in one]
    assert trained == sorted(trained)
    assert trained[len(trained) // 2 - 1] == len(lost) - 1, "after an epoch"
    assert trained[-1] == 2 * (len(lost) - 1)
    assert [one["validate/corrupt_samples"] for one in values if "validate/corrupt_samples" in one][-1] == 1
    card = (config.out / "model" / "README.md").read_text()
    assert f"| corrupt samples skipped, in all epochs | {trained[-1]} |" in card


# --- small data


def test_a_batch_larger_than_the_data_is_filled(make_shards, collate):
    stream = stream_of(make_shards(4, 2), collate)
    (batch,) = stream.epoch()
    assert batch.valid.tolist() == [True] * 4 + [False] * 2
    assert not batch.label_mask[4:].any()
    assert not batch.has_report[4:].any()
    assert len(set(batch.study_id.tolist())) == 6
    assert stream.steps == 1


@pytest.mark.parametrize(("workers", "prefetch"), [(-1, 2), (1, 0)])
def test_bad_worker_numbers_are_named(workers, prefetch):
    with pytest.raises(ValueError, match=f"workers is {workers} and prefetch {prefetch}"):
        WorkerConfig(workers, prefetch)
