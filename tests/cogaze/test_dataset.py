import json
import os
import pickle
import shutil
from dataclasses import replace

import fsspec
import numpy as np
import pytest

from cogaze.data import dataset as module
from cogaze.data.dataset import CorruptSampleError, DatasetConfig, ShardDataset, ShardFiles, read_table
from cogaze.data.plan import PlanItem
from cogaze.data.transforms import ViewConfig
from gazeprep.schema import CHEXPERT_LABELS
from gazeprep.shards import ShardFolder

GRID = (4, 4)
CONFIG = DatasetConfig(ViewConfig(size_px=32))


def dataset_of(root, config=CONFIG, split="train"):
    return ShardDataset(root, read_table(root, split), GRID, config)


def examples_of(dataset):
    """Every example with its gaze where it has any."""
    return [dataset[PlanItem(row, True, bool(dataset.table.has_gaze[row]), 0)] for row in range(len(dataset))]


def same(left, right):
    for one, other in zip(left, right, strict=True):
        assert one.key == other.key
        assert (one.pixels == other.pixels).all()
        assert (one.maps == other.maps).all()
        assert one.sections == other.sections


@pytest.fixture
def copied(shards, tmp_path):
    """A copy of the shards to damage."""
    return shutil.copytree(shards, tmp_path / "copied", ignore=shutil.ignore_patterns(".build"))


@pytest.fixture
def in_memory(shards):
    """The shards in fsspec's memory filesystem."""
    filesystem = fsspec.filesystem("memory")
    for path in shards.rglob("*"):
        if path.is_file() and ".build" not in path.parts:
            filesystem.pipe_file(f"/shards/{path.relative_to(shards)}", path.read_bytes())
    yield "memory://shards"
    filesystem.rm("/shards", recursive=True)


class TestTable:
    def test_says_what_the_index_and_the_samples_say(self, shards):
        folder = ShardFolder(shards)
        table = read_table(shards, "train")
        assert [table.name(row) for row in range(len(table))] == folder.index.query("split == 'train'")["key"].tolist()
        for row in range(len(table)):
            record = folder.sample(table.name(row)).record
            assert table.labels[row].tolist() == [record["labels"][name] for name in CHEXPERT_LABELS]
            assert table.has_gaze[row] == record["has_gaze"]
            view = {"PA": 0, "AP": 1, "LATERAL": 2, "LL": 2}.get(record["view_position"], 3)
            assert table.view[row] == view

    def test_studies_are_equal_exactly_where_they_are_one(self, shards):
        index = ShardFolder(shards).index.query("split == 'train'")
        table = read_table(shards, "train")
        studies = index["study"].to_numpy()
        assert ((table.study_id[:, None] == table.study_id) == (studies[:, None] == studies)).all()
        assert len(set(studies)) < len(studies)  # readings of one image, views of one study

    def test_without_study_every_sample_is_its_own_and_tables_never_meet_mimic(self, shards):
        rows = ShardFolder(shards).index.query("split == 'train'").iloc[:5].reset_index(drop=True)
        rows["study"], rows["dataset"] = (
            ["", "7", "7", "", "7"],
            ["reflacx", "reflacx", "table-own", "table-own", "egd-cxr"],
        )
        found = module._study_ids(rows)
        assert found[1] == found[4] != found[2]
        assert (found[[1, 2, 4]] >= 0).all()
        assert found[0] < 0 > found[3] != found[0]


class TestExamples:
    def test_hold_what_the_sample_holds(self, shards):
        dataset, folder = dataset_of(shards), ShardFolder(shards)
        for example in examples_of(dataset):
            record = folder.sample(example.key).record
            assert example.sections["findings"] == record["findings"]
            assert example.transcript == record["transcript"]
            assert "\n".join(example.sentences) == record["sentences"]
            assert len(example.maps) == (1 + len(example.sentences) if record["has_gaze"] else 0)
            assert (example.pixels.shape, example.pixels.dtype) == ((32, 32), np.uint8)
            assert example.valid

    def test_without_gaze_where_the_plan_says_so(self, shards):
        dataset = dataset_of(shards)
        row = int(np.flatnonzero(dataset.table.has_gaze)[0])
        assert dataset[PlanItem(row, True, False, 0)].maps.shape == (0, 16)

    def test_random_views_change_with_the_epoch_and_nothing_else(self, shards):
        config = DatasetConfig(ViewConfig("random_resized_crop", 32), seed=3)
        first, again = dataset_of(shards, config), dataset_of(shards, config)
        one, two, later = (d[PlanItem(0, True, False, e)].pixels for d, e in ((first, 0), (again, 0), (first, 1)))
        assert (one == two).all()
        assert (one != later).any()

    def test_context_is_left_out_of_a_share_drawn_anew_each_epoch(self, shards):
        plain, dropping = dataset_of(shards), dataset_of(shards, replace(CONFIG, context_dropout=0.5))
        rows = [row for row in range(len(plain)) if plain[PlanItem(row, True, False, 0)].sections["indication"]]
        left_out = set()
        for row in rows:
            for epoch in range(4):
                item = PlanItem(row, True, False, epoch)
                whole, seen = plain[item].sections, dropping[item].sections
                rest = {name: text for name, text in whole.items() if name not in ("indication", "history")}
                assert seen in (whole, rest | {"indication": "", "history": ""})
                assert dropping[item].sections == seen
                if seen != whole:
                    left_out.add((row, epoch))
        assert 0.3 < len(left_out) / (4 * len(rows)) < 0.7
        assert {row for row, _ in left_out} != {row for row, epoch in left_out if epoch == 0}
        assert not replace(CONFIG, context_dropout=0.5).still().context_dropout

    def test_a_share_that_is_none_is_refused(self):
        with pytest.raises(ValueError, match=r"data.context_dropout is 1.5, must be from 0 to 1"):
            DatasetConfig(context_dropout=1.5)

    def test_fillers_count_for_nothing_and_are_told_apart(self, shards):
        dataset = dataset_of(shards)
        fillers = [dataset[PlanItem(-1 - i, False, False, 0)] for i in range(3)]
        assert not any(filler.valid for filler in fillers)
        numbers = [filler.study_id for filler in fillers]
        assert len({*numbers, *dataset.table.study_id}) == 3 + len(set(dataset.table.study_id))
        assert all(filler.patch_mask.all() for filler in fillers)  # attention over nothing would be NaN


class TestFiles:
    def test_remote_folders_give_the_same_examples(self, shards, in_memory):
        local = examples_of(dataset_of(shards))
        same(examples_of(dataset_of(in_memory)), local)
        same(examples_of(dataset_of(f"file://{shards}")), local)

    def test_remote_reads_are_byte_ranges(self, in_memory, monkeypatch):
        dataset = dataset_of(in_memory)
        ranges = []
        filesystem, _ = fsspec.url_to_fs(in_memory)
        whole = type(filesystem).cat_file
        monkeypatch.setattr(
            type(filesystem),
            "cat_file",
            lambda self, path, start=None, end=None, **more: (
                ranges.append(end - start) or whole(self, path, start=start, end=end, **more)
            ),
        )
        dataset[PlanItem(0, True, False, 0)]
        assert sorted(ranges) == sorted(512 + dataset.table.length[0, [0, 2]]), "each with its tar header"

    def test_open_nothing_before_the_first_read_and_travel_without_handles(self, shards):
        dataset = dataset_of(shards)
        assert not dataset.files._maps
        before = dataset[PlanItem(0, True, False, 0)]
        assert dataset.files._maps
        there = pickle.loads(pickle.dumps(dataset))
        assert not there.files._maps
        same([there[PlanItem(0, True, False, 0)]], [before])

    def test_another_process_opens_its_own(self, in_memory, monkeypatch):
        files = ShardFiles(in_memory)
        shard = read_table(in_memory, "train").shard_names[0]
        files.read(shard, 0, 512)
        first = files._remote
        files.read(shard, 512, 512)
        assert files._remote is first
        monkeypatch.setattr(os, "getpid", lambda: -1)
        files.read(shard, 0, 512)
        assert files._remote is not first

    def test_only_the_latest_shards_stay_open(self, shards, monkeypatch):
        monkeypatch.setattr(module, "OPEN_SHARDS", 2)
        dataset = dataset_of(shards)
        examples_of(dataset)
        examples_of(dataset)
        assert len(dataset.table.shard_names) > 2
        assert len(dataset.files._maps) == 2


def damage_image(root, table, row):
    shard = root / table.shard_names[table.shard[row]]
    with shard.open("r+b") as file:
        file.seek(int(table.start[row, 0]) + 20)
        file.write(b"\0" * (int(table.length[row, 0]) - 20))


def damage_json(root, table, row):
    with (root / table.shard_names[table.shard[row]]).open("r+b") as file:
        file.seek(int(table.start[row, 2]))
        file.write(b"nonsense")


def damage_gaze(root, table, row):
    with (root / table.shard_names[table.shard[row]]).open("r+b") as file:
        file.seek(int(table.start[row, 1]))
        file.write(b"\0" * 2000)


def cut_short(root, table, row):
    os.truncate(root / table.shard_names[table.shard[row]], int(table.start[row].min()) + 10)


def remove(root, table, row):
    (root / table.shard_names[table.shard[row]]).unlink()


def swap(root, table, row):
    """Another record of the same length stands there."""
    with (root / table.shard_names[table.shard[row]]).open("r+b") as file:
        file.seek(int(table.start[row, 2]))
        text = file.read(int(table.length[row, 2])).replace(table.name(row).encode(), b"x" * len(table.name(row)))
        file.seek(int(table.start[row, 2]))
        file.write(text)


def empty(root, table, row):
    os.truncate(root / table.shard_names[table.shard[row]], 0)


@pytest.mark.parametrize("harm", [damage_image, damage_json, damage_gaze, cut_short, remove, swap, empty])
class TestCorruptSamples:
    def harmed(self, copied, harm, **config):
        dataset = dataset_of(copied, DatasetConfig(CONFIG.view, **config))
        row = int(np.flatnonzero(dataset.table.has_gaze)[0])
        harm(copied, dataset.table, row)
        return dataset, PlanItem(row, True, True, 0)

    def test_stop_the_run_by_shard_and_key(self, copied, harm):
        dataset, item = self.harmed(copied, harm)
        with pytest.raises(CorruptSampleError, match="compare the shard's sha256") as caught:
            dataset[item]
        assert dataset.table.name(item.row) in str(caught.value)
        assert dataset.table.shard_names[dataset.table.shard[item.row]] in str(caught.value)
        assert str(copied) not in str(caught.value)

    def test_or_are_skipped_and_say_why(self, copied, harm):
        dataset, item = self.harmed(copied, harm, skip_corrupt=True)
        example = dataset[item]
        assert not example.valid
        assert len(example.maps) == 0
        assert example.key == dataset.table.name(item.row)
        assert example.key in example.fault


class TestBadInput:
    def test_no_shards(self, tmp_path):
        with pytest.raises(ValueError, match=r"no dataset.json.* run gazeprep build"):
            read_table(tmp_path, "train")
        with pytest.raises(ValueError, match=r"no dataset.json.* run gazeprep build"):
            read_table("memory://nothing", "train")

    def test_another_schema_version(self, copied):
        manifest = json.loads((copied / "dataset.json").read_text())
        (copied / "dataset.json").write_text(json.dumps(manifest | {"schema_version": 99}))
        with pytest.raises(ValueError, match=r"schema version 99, this gazeprep reads 1 and 2; build them again"):
            read_table(copied, "train")

    def test_an_empty_split(self, tables, inline, tmp_path):
        from gazeprep.build import BuildConfig, build
        from gazeprep.cases import Sources

        tables.image("i0")
        build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), workers=1))
        with pytest.raises(
            ValueError, match=r"no sample of split 'test' \(samples by split: train 1\); choose another"
        ):
            read_table(tmp_path / "out", "test")

    @pytest.mark.parametrize("grid", [(5, 4), (4, 5), (0, 4)])
    def test_a_patch_grid_that_does_not_fit(self, shards, grid):
        with pytest.raises(ValueError, match=r"32 px cannot be cut into .* set view.size_px"):
            ShardDataset(shards, read_table(shards, "train"), grid, CONFIG)
