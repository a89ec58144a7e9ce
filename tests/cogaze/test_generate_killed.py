"""Writing that is killed, by a full disk, a damaged sample or another call: it ends as if nothing had been."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import PartialState
from attacks import HAVE_PROC, wait_until
from disks import Disk
from processes import in_processes
from safetensors.torch import load_file, save_file
from writing import learn, report_config, write_parts

from cogaze.data.dataset import CorruptSampleError
from cogaze.generate import ATTENTION, LINES, LOCK, PARTS, REPORTS, SETTINGS, BeamConfig, GenerateConfig, generate
from cogaze.writer import Writer
from gazeprep.shards import FolderLock, ShardFolder

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipelines" / "generate.py"
FINALS = {ATTENTION, LINES, REPORTS, SETTINGS}
GREEDY = BeamConfig(beams=1)


@pytest.fixture(scope="module")
def model(reports, tmp_path_factory):
    """What a run of one step exported, with a decoder that writes another muddle of bytes of each image."""
    folder = tmp_path_factory.mktemp("run")
    write_parts(folder)
    model = learn(report_config(folder, reports, folder / "run", {"fit.max_steps": 1}))
    weights, numbers = load_file(model / "model.safetensors"), torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if name.startswith("decoder.") and ".ln_" not in name:
            tensor.copy_(torch.randn(tensor.shape, generator=numbers) / 2)
        elif "image_projector" in name and name.endswith("weight"):
            tensor *= 10
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.fixture(scope="module")
def write(model, reports):
    """Return write(out, limit=..., ...): a call in this process."""

    def call(out, **changes):
        PartialState._reset_state()
        small = {"shards": str(reports), "limit": 6, "batch": 2, "search": GREEDY}
        return generate(GenerateConfig(model=model, out=out, **{**small, **changes}))

    return call


@pytest.fixture(scope="module")
def whole(write, tmp_path_factory):
    """What an unbroken call leaves."""
    out = tmp_path_factory.mktemp("unbroken") / "whole"
    write(out)
    return contents(out)


def contents(out):
    """Each file by its path, an archive as what it holds: it also has the time of its writing."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                found[name] = {each: stored[each].tolist() for each in stored.files}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def parts(out):
    return sorted(path.name for path in (out / PARTS).glob("*.jsonl"))


def assert_no_half(out, whole):
    """Whatever has a final name is whole, and the table, which says that all is there, comes last."""
    held = {path.name for path in out.iterdir()} & FINALS if out.exists() else set()
    found = contents(out) if held else {}
    assert {name: found[name] for name in held} == {name: whole[name] for name in held}
    assert held == FINALS or REPORTS not in held
    assert not held & {ATTENTION, LINES} or REPORTS in held or len(parts(out)) == 3


# --- killed at each file


@contextlib.contextmanager
def _killed_before(number, out):
    """kill -9 this process before it touches `out` for the n-th time."""
    left = [number]

    def watch(event, arguments):
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            touched = not event.startswith("os.re") or "tmp" in str(arguments[0]) or str(out) in str(arguments[0])
        else:
            touched = event == "open" and str(out) in str(arguments[0])
        if touched:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    yield


def _write_until(number, config):
    with _killed_before(number, config.out):
        generate(config)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_file_of_the_folder_loses_and_leaves_nothing(write, model, reports, whole, tmp_path):
    seen = Counter()
    for number in range(200):
        out = tmp_path / str(number)
        config = GenerateConfig(model=model, shards=str(reports), out=out, limit=6, batch=2, search=GREEDY)
        try:
            in_processes(_write_until, number, config, processes=1)
        except torch.multiprocessing.ProcessExitedException as killed:
            assert killed.signal_name == "SIGKILL"  # noqa: PT017 - the loop ends where there is none
        else:
            break
        assert_no_half(out, whole)
        seen["parts"] += bool(parts(out))
        seen["joining"] += LINES in contents(out) if out.exists() else 0
        seen["all there"] += (out / REPORTS).exists()
        write(out)
        assert contents(out) == whole
        assert {path.name for path in out.iterdir()} == FINALS
    assert min(seen[what] for what in ("parts", "joining", "all there")) > 2


# --- the command, killed


class Call:
    """pipelines/generate.py as users run it, by one process or two; all of its processes are found by its folder."""

    def __init__(self, processes, out, *options):
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        self.out = out
        self.said = out.with_suffix(".said")
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",  # a host's own name may lead nowhere
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, *(several if processes > 1 else []), PIPELINE, f"--out={out}", *options]
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def numbers(self):
        """All processes of the call, that of torchrun last."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    if f"--out={self.out}".encode() in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
        return sorted(found, key=lambda number: number == self.process.pid)

    def reach(self, count):
        """Wait until so many parts are there."""
        wait_until(lambda: self.process.poll() is not None or len(parts(self.out)) >= count, 120)
        assert self.process.poll() is None, self.said.read_text()

    def kill(self, numbers):
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def ended(self):
        self.process.wait(120)
        wait_until(lambda: not self.numbers(), 60)
        return self.said.read_text()


@pytest.fixture
def call(model, reports, tmp_path):
    """Return call(processes, options): the command, of which nothing outlives the test."""
    calls = []

    def start(processes, *options):
        small = [f"--model={model}", f"--shards={reports}", "--batch=1", "--search.beams=4"]
        calls.append(Call(processes, tmp_path / "out", *small, *options))
        return calls[-1]

    yield start
    for one in calls:
        one.kill(one.numbers())
        one.process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAVE_PROC, reason="finds processes through /proc")
def test_the_command_killed_time_and_again_on_one_process_and_two(call, write, tmp_path):
    write(tmp_path / "whole", batch=1, limit=0, search=BeamConfig(beams=4))
    for processes, count, whom in ((1, 2, "all"), (2, 6, "all"), (2, 10, "the second")):
        run = call(processes)
        run.reach(count)
        numbers = run.numbers()
        run.kill(numbers if whom == "all" else numbers[1:2])
        said = run.ended()
        assert run.process.returncode == (-signal.SIGKILL if whom == "all" else 1), said
        assert not FINALS - {SETTINGS} & contents(run.out).keys()
        assert count <= len(parts(run.out)) < 16
    (run.out / PARTS / ".000015.jsonl.elsewhere.1.tmp").write_text("half")  # of a process on another host
    kept = {name: (run.out / PARTS / name).stat().st_mtime_ns for name in parts(run.out)}
    run = call(2)
    run.reach(len(kept) + 1)
    for name, written in kept.items():
        with contextlib.suppress(FileNotFoundError):  # all are joined by now
            assert (run.out / PARTS / name).stat().st_mtime_ns == written
    said = run.ended()
    assert run.process.returncode == 0, said
    assert said.count("16 studies have a report") == 1
    assert contents(run.out) == contents(tmp_path / "whole")
    assert {path.name for path in run.out.iterdir()} == FINALS


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_command_stopped_says_so_and_goes_on(call, write, tmp_path, number, code):
    run = call(1)
    run.reach(2)
    run.process.send_signal(number)
    said = run.ended()
    assert run.process.returncode == code
    assert "Traceback" not in said
    assert (number == signal.SIGINT) == ("generate: stopped; the same command goes on" in said)
    assert write(run.out, batch=1, limit=0, search=BeamConfig(beams=4)).new <= 14


# --- two calls


def test_a_call_beside_another_is_refused_and_changes_nothing(write, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with FolderLock(out / LOCK):
        with pytest.raises(ValueError, match="another call is writing into this folder; wait for it or choose another"):
            write(out)
        assert not contents(out).keys() - {LOCK}
    write(out)
    assert contents(out) == whole


def _at_once(config, folder):
    rank = torch.distributed.get_rank()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    PartialState._reset_state()
    try:
        said = str(generate(config).new)
    except ValueError as error:
        said = str(error)
    (folder / f"call-{rank}").write_text(said)


@pytest.mark.slow
def test_two_calls_at_the_same_instant_write_one_folder_once(model, reports, whole, tmp_path):
    said = Counter()
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = GenerateConfig(model=model, shards=str(reports), out=folder / "out", limit=6, batch=2, search=GREEDY)
        in_processes(_at_once, config, folder)
        assert contents(folder / "out") == whole
        told = [(folder / f"call-{rank}").read_text() for rank in range(2)]
        assert "6" in told
        said.update(told)
    assert all(text in ("6", "0") or text.startswith("another call is writing") for text in said)


# --- disks


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.remove()


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_page_loses_nothing(write, whole, disk):
    out, found = disk.root / "out", []
    for pages in range(2, 100):
        disk.resize(pages)
        with contextlib.suppress(OSError):
            write(out)
            break
        assert_no_half(out, whole)
        assert not list(disk.root.rglob("*.tmp"))
        found.append(len(parts(out)))
    assert contents(out) == whole
    assert {0, 3} < {*found}
    assert found == sorted(found)


@pytest.mark.slow
def test_a_read_only_disk_is_told_and_what_is_finished_on_one_is_taken(write, whole, disk):
    write(disk.root / "out")
    disk.freeze()
    assert write(disk.root / "out").new == 0
    assert contents(disk.root / "out") == whole
    with pytest.raises(OSError, match="Read-only"):
        write(disk.root / "other")


# --- other folders, other shards, damaged samples


class StopError(Exception):
    pass


@pytest.fixture
def broken(write, monkeypatch):
    """Return broken(out, ...): a call that ends before its third batch."""

    def call(out, **changes):
        wrote, calls = Writer.write, []

        def failing(self, batch, options):
            calls.append(len(batch))
            if len(calls) == 3:
                raise StopError
            return wrote(self, batch, options)

        with monkeypatch.context() as patched:
            patched.setattr(Writer, "write", failing)
            with pytest.raises(StopError):
                write(out, **changes)

    return call


def test_shards_that_are_others_by_now_are_not_gone_on_with(write, broken, reports, tmp_path):
    shards = Path(shutil.copytree(reports, tmp_path / "shards"))
    broken(tmp_path / "out", shards=str(shards))
    before = contents(tmp_path / "out")
    manifest = json.loads((shards / "dataset.json").read_text())
    manifest["shards"][-1]["sha256"] = "f" * 64  # other pictures of the same length: the index is the same
    (shards / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="out holds reports of another shards; give another out, or remove what is"):
        write(tmp_path / "out", shards=str(shards))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_sample_is_named_and_parts_before_it_stay(write, whole, reports, tmp_path, workers):
    shards, out = Path(shutil.copytree(reports, tmp_path / "shards")), tmp_path / "out"
    index = ShardFolder(shards).index.reset_index(drop=True)
    rows = index[index["split"] == "test"].sort_values("key")
    row = rows.iloc[4]  # of the third batch
    tar = shards / row["shard"]
    good = tar.read_bytes()
    start = int(row["image_offset"])
    tar.write_bytes(good[:start] + bytes(512) + good[start + 512 :])
    with pytest.raises(CorruptSampleError) as stopped:
        write(out, shards=str(shards), workers=workers)
    assert re.fullmatch(rf"sample {row['key']} of {row['shard']} cannot be read: [^\n/]*", str(stopped.value))
    assert parts(out) == ["000000.jsonl", "000001.jsonl"]
    tar.write_bytes(good)
    assert write(out, shards=str(shards), workers=workers).new == 2
    assert contents(out) == whole


@pytest.mark.slow
def test_a_finished_folder_is_only_gone_on_with_where_it_says_of_what(write, whole, tmp_path):
    out = tmp_path / "out"
    write(out)
    (out / REPORTS).unlink()
    assert write(out).new == 6  # written anew
    assert contents(out) == whole
    (out / SETTINGS).unlink()
    with pytest.raises(ValueError, match=r"holds generated\.parquet without the generate\.json .*; give another out"):
        write(out)
    (out / SETTINGS).write_text("[")
    with pytest.raises(ValueError, match=r"generate\.json in out is damaged; give another out"):
        write(out)


def test_what_is_compared_here_is_not_nothing(whole):
    rows = pd.read_parquet(BytesIO(whole[REPORTS]))
    assert whole.keys() == FINALS
    assert rows["text"].nunique() == 6
    assert set(whole[ATTENTION]["key"]) <= set(rows["key"])
