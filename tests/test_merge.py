"""Merge and select: the same bytes in other folders, refusals with the value and the cure, nothing half-written."""

import json
import os
import re
import shutil
from pathlib import Path

import fsspec
import pytest
from recorded import SMALL, Tables, tree

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.lint import lint
from gazeprep.merge import merge
from gazeprep.query import matches
from gazeprep.samples import MapConfig, SampleConfig
from gazeprep.selection import chosen_keys, select
from gazeprep.shards import REJECTED_SCHEMA, SUFFIX, ShardFolder, parquet_bytes

SPLITS = ("train", "train", "validate", "test")


def write_build(folder, name, splits=SPLITS, sample=SMALL, people="person"):
    """Build images of a table: every second one is read, and one more path is absent."""
    tables = Tables(folder / f"{name}-tables")
    tables.root.mkdir(parents=True)
    for number, split in enumerate(splits):
        tables.image(f"{name}{number}", f"{people}{number}", split)
        if number % 2 == 0:
            tables.reading(f"{name}-reading{number}", f"{name}{number}", [(3, 4), (20, 30), (12, 9)])
    tables.images.append(f"{name}-absent,absent.png,{people}9,train")
    config = BuildConfig(folder / name, Sources(table=tables.source()), sample, shard_samples=2, executor="inline")
    build(config)
    return folder / name


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Two builds of different images of one table's people. Read only."""
    folder = tmp_path_factory.mktemp("builds")
    return [write_build(folder, "a"), write_build(folder, "b")]


def members(root):
    """Every member's bytes by key and role."""
    folder = ShardFolder(root)
    return {(key, role): folder.member(key, role) for key in folder.keys() for role in ("image", *SUFFIX)}  # noqa: SIM118


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def remote(builds):
    """The second build on a store in memory."""
    memory = fsspec.filesystem("memory")
    memory.put(str(builds[1]), "/merged-from", recursive=True)
    yield "memory://merged-from"
    memory.rm("/merged-from", recursive=True)


def test_builds_on_remote_stores_are_merged_and_selected_from_as_folders_are(builds, remote, tmp_path):
    for name, second in (("here", builds[1]), ("there", remote)):
        merge([builds[0], second], tmp_path / name)
        select(second, tmp_path / f"{name}-part", "has_gaze")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert tree(tmp_path / "there-part") == tree(tmp_path / "here-part")
    assert chosen_keys(remote, "has_gaze") == chosen_keys(builds[1], "has_gaze")


@pytest.mark.parametrize(
    "command", ["merge {0} {1} --out", "select {0} --query has_gaze --out", "export {0} --format npz --out"]
)
def test_what_is_written_to_a_disk_refuses_a_url(builds, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/out", "memory://out"):
        assert main([*command.format(*builds).split(), url]) == 1
        assert "this is written to a disk, not to a URL" in capsys.readouterr().err
        assert left_in(tmp_path) == []
    with pytest.raises(ValueError, match="written to a disk"):
        merge(builds, Path("s3://bucket/out"))


# --- merge


@pytest.mark.parametrize("copy", [False, True])
def test_a_merged_folder_is_whole_and_holds_the_same_bytes(builds, tmp_path, copy):
    report = merge(builds, tmp_path / "out", copy=copy)
    assert lint(tmp_path / "out", workers=1).problems == ()
    assert members(tmp_path / "out") == members(builds[0]) | members(builds[1])
    shards = sorted((tmp_path / "out").rglob("*.tar"))
    assert [path.name for path in shards] == [
        "test-00000.tar",
        "test-00001.tar",
        "train-00000.tar",
        "train-00001.tar",
        "validate-00000.tar",
        "validate-00001.tar",
    ]
    assert (report.samples, report.rejected, report.linked) == (8, 2, 0 if copy else 6)
    assert {path.stat().st_nlink > 1 for path in shards} == {not copy}
    assert left_in(tmp_path) == ["out"]


def test_the_manifest_adds_the_parts_up(builds, tmp_path):
    merge(builds, tmp_path / "out")
    one, two, both = (ShardFolder(root).manifest for root in (*builds, tmp_path / "out"))
    for name in ("inputs", "samples", "rejected", "samples_with_gaze", "sentences"):
        assert both["counts"][name] == one["counts"][name] + two["counts"][name]
    assert both["counts"]["subjects"] == one["counts"]["subjects"] == 4
    assert both["counts"]["noted"] == {what: 2 * n for what, n in one["counts"]["noted"].items()}
    assert both["config"] == one["config"]
    assert [part["config"] for part in both["parts"]] == [one["config"], two["config"]]


def test_a_merged_folder_merges_again_in_any_grouping(builds, tmp_path):
    third = write_build(tmp_path, "c")
    merge(builds, tmp_path / "ab")
    merge([tmp_path / "ab", third], tmp_path / "abc")
    merge([*builds, third], tmp_path / "at once")
    assert tree(tmp_path / "abc") == tree(tmp_path / "at once")
    assert lint(tmp_path / "abc", workers=1).problems == ()


def test_what_another_build_has_is_not_rejected_any_more(builds, tmp_path):
    whole = Path(shutil.copytree(builds[0], tmp_path / "whole"))
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(ShardFolder(builds[0]).keys()[:1]))
    select(builds[0], tmp_path / "half", keys=keys)
    rows = [row for row in ShardFolder(whole).index.to_dict("records") if row["key"] != keys.read_text()]
    reject(tmp_path / "half", rows)
    keys.write_text("\n".join(row["key"] for row in rows))
    select(builds[0], tmp_path / "other", keys=keys)
    report = merge([tmp_path / "half", tmp_path / "other"], tmp_path / "out")
    assert (report.samples, report.rejected, report.not_rejected) == (4, 0, 3)
    assert lint(tmp_path / "out", workers=1).problems == ()


def reject(root, rows):
    """Say in a folder's tables that these inputs were rejected."""
    ids = [{"key": row["key"], "dataset": row["dataset"], "reading_id": row["reading"]} for row in rows]
    others = {"dicom_id": "", "study_id": "", "subject_id": "", "reason": "image_missing", "detail": ""}
    (root / "rejected.parquet").write_bytes(parquet_bytes([one | others for one in ids], REJECTED_SCHEMA))


def test_a_key_twice_is_refused(builds, tmp_path):
    first = ShardFolder(builds[0]).keys()[0]
    with pytest.raises(
        ValueError, match=f"4 samples of folder 3 of 3 stand in folder 1 of 3 too, the first is {first}"
    ):
        merge([*builds, builds[0]], tmp_path / "out")
    assert left_in(tmp_path) == []


def test_a_subject_in_two_splits_is_refused(builds, tmp_path):
    other = write_build(tmp_path, "c", ("test", "train", "validate", "test"))
    with pytest.raises(ValueError, match=r"1 subjects would stand in two splits.* in train, .* in test.*splits.seed"):
        merge([builds[0], other], tmp_path / "out")


def test_another_recipe_is_refused_with_both_values(builds, tmp_path):
    other = write_build(tmp_path, "c", sample=SampleConfig(SMALL.picture, MapConfig((4, 5), px_per_deg=37.5)))
    told = r"sample.maps.grid is \[37, 37\] in folder 1 of 2 and \[4, 5\] in folder 2 of 2"
    with pytest.raises(ValueError, match=told):
        merge([builds[0], other], tmp_path / "out")


def test_another_schema_version_is_refused(builds, tmp_path):
    other = Path(shutil.copytree(builds[1], tmp_path / "other"))
    manifest = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(manifest | {"schema_version": 3}))
    with pytest.raises(
        ValueError, match="folder 2 of 2: the shards have schema version 3, this gazeprep reads 1 and 2"
    ):
        merge([builds[0], other], tmp_path / "out")


def test_one_folder_no_build_and_a_full_output_are_refused(builds, tmp_path):
    with pytest.raises(ValueError, match="give two or more"):
        merge(builds[:1], tmp_path / "out")
    with pytest.raises(ValueError, match=r"folder 2 of 2: the folder holds no dataset\.json"):
        merge([builds[0], tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match=r"folder 2 of 2: .* was a URL before it became a Path; give it as text"):
        merge([builds[0], Path("s3://bucket/shards")], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="output folder is not empty"):
        merge(builds, tmp_path / "full")
    assert left_in(tmp_path / "full") == ["thesis.txt"]


def test_a_shard_that_was_cut_short_is_refused_and_nothing_stays(builds, tmp_path):
    other = Path(shutil.copytree(builds[1], tmp_path / "other"))
    shard = next(other.rglob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"a shard of folder 2 of 2 .* run gazeprep lint"):
        merge([builds[0], other], tmp_path / "out")
    assert left_in(tmp_path) == ["other"]


def test_nothing_has_the_final_name_before_it_is_whole(builds, tmp_path, monkeypatch):
    def stopped(record):
        assert not (tmp_path / "out").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("gazeprep.merge.json_bytes", stopped)
    for act in (lambda: merge(builds, tmp_path / "out"), lambda: select(builds[0], tmp_path / "out", "has_gaze")):
        with pytest.raises(KeyboardInterrupt):
            act()
    assert left_in(tmp_path) == []


def test_without_links_tars_are_copied(builds, tmp_path, monkeypatch):
    def refused(source, target):
        raise OSError

    monkeypatch.setattr(os, "link", refused)
    assert merge(builds, tmp_path / "out").linked == 0
    assert lint(tmp_path / "out", workers=1).problems == ()


# --- select


def test_a_selection_is_whole_and_its_bytes_are_unchanged(builds, tmp_path):
    report = select(builds[0], tmp_path / "out", "has_gaze and split in ['train', 'validate']")
    assert (report.samples, report.of) == (2, 4)
    assert lint(tmp_path / "out", workers=1).problems == ()
    everything = members(builds[0])
    assert members(tmp_path / "out").items() <= everything.items()
    assert set(ShardFolder(tmp_path / "out").index["has_gaze"]) == {True}
    (said,) = ShardFolder(tmp_path / "out").manifest["selection"]
    assert said == {"query": "has_gaze and split in ['train', 'validate']", "by_keys": False, "of_samples": 4}


def test_selecting_everything_gives_the_same_tars(builds, tmp_path):
    select(builds[0], tmp_path / "out", "fixations >= 0")
    wanted = {name: data for name, data in tree(builds[0]).items() if name.endswith((".tar", "index.parquet"))}
    assert {name: data for name, data in tree(tmp_path / "out").items() if name in wanted} == wanted


def test_shards_of_another_length(builds, tmp_path):
    select(builds[0], tmp_path / "out", "fixations >= 0", shard_samples=1)
    assert len(list((tmp_path / "out").rglob("*.tar"))) == 4
    assert lint(tmp_path / "out", workers=1).problems == ()
    with pytest.raises(ValueError, match="shard_samples is -1, must be at least 1"):
        select(builds[0], tmp_path / "again", "has_gaze", shard_samples=-1)


def test_a_list_of_keys_goes_round(builds, tmp_path):
    keys = chosen_keys(builds[0], "not has_gaze")
    (tmp_path / "keys.txt").write_text("\n".join(reversed(keys)))
    assert chosen_keys(builds[0], keys=tmp_path / "keys.txt") == keys
    assert chosen_keys(builds[0], "split == 'test'", tmp_path / "keys.txt") == [keys[-1]]
    (tmp_path / "keys.txt").write_text(f"{keys[0]} table-own-000000000000 19999871")
    with pytest.raises(ValueError, match=r"2 of the 3 listed keys are not in the folder; the first is table-own-0{12}"):
        chosen_keys(builds[0], keys=tmp_path / "keys.txt")


# It leaves closing the shard to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning",
    "ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning",
)
def test_plain_webdataset_finds_the_samples(builds, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    merge(builds, tmp_path / "out")
    select(tmp_path / "out", tmp_path / "chosen", "split == 'train'")
    tars = sorted(map(str, (tmp_path / "chosen").rglob("*.tar")))
    loaded = list(webdataset.WebDataset(tars, shardshuffle=False).decode("l8"))
    assert [sample["__key__"] for sample in loaded] == ShardFolder(tmp_path / "chosen").keys()
    assert all(sample["maps.npy"].shape[1:] == (37, 37) for sample in loaded)


def test_cogaze_reads_merged_and_selected_folders(builds, tmp_path):
    dataset = pytest.importorskip("cogaze.data.dataset")
    merge(builds, tmp_path / "out")
    select(tmp_path / "out", tmp_path / "chosen", "has_gaze")
    assert [len(dataset.read_table(tmp_path / name, "train")) for name in ("out", "chosen")] == [4, 2]


# --- queries

ROWS = [
    {"split": "train", "has_gaze": True, "sentences": 3, "fixations": 30, "labels": [1] + [-2] * 13},
    {"split": "test", "has_gaze": False, "sentences": 0, "fixations": 0, "labels": [0] * 9 + [1] + [0] * 4},
]


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ("has_gaze", [True, False]),
        ("not has_gaze", [False, True]),
        ("sentences > 2 and split == 'train'", [True, False]),
        ("(sentences > 2) | (split == 'test')", [True, True]),
        ("Atelectasis == 1", [True, False]),
        ("Pleural_Effusion == 1 or Atelectasis == -1", [False, True]),
        ("split in ['train', 'validate']", [True, False]),
        ("split not in ('train',)", [False, True]),
        ("0 < fixations <= 10 * sentences", [True, False]),
    ],
)
def test_queries(query, taken):
    assert matches(query, ROWS) == taken


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("@os.system('x')", "no expression"),
        ("split.str.startswith('t')", "holds Attribute, Call"),
        ("__import__('os')", "holds Call"),
        ("(lambda: 1)()", "holds Call, Lambda"),
        ("[x for x in split]", "holds ListComp"),
        ("split[0] == 't'", "holds Subscript"),
        ("f'{split}' == 't'", "holds FormattedValue, JoinedStr"),
        ("fixations ** 99999999 > 1", "holds Pow"),
        ("fixations @ sentences", "holds MatMult"),
        ("split == 'a' * 999999999", "calculates with text or lists"),
        ("patient == 3", "what is no column; text stands in quotes"),
        ("__builtins__ == 3", "what is no column"),
        ("`split` == 3", "no expression"),
        ("x = 1", "no expression"),
        ("has_gaze; sentences", "no expression"),
        ("fixations", "no yes or no for each sample"),
        ("1 == 1", "no yes or no for each sample"),
        ("split > 3", "cannot be answered (TypeError)"),
        ("(" * 4900 + "1" + ")" * 4900, "no expression"),
        ("not " * 9000 + "has_gaze", "characters"),
    ],
)
def test_what_is_no_query_is_refused(query, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        matches(query, ROWS)


def test_nothing_chosen_is_refused(builds, tmp_path):
    for query, told in (("", "give --query, --keys, or both"), ("sentences > 99", "none of the 4 samples is chosen")):
        with pytest.raises(ValueError, match=told):
            select(builds[0], tmp_path / "out", query)
    assert left_in(tmp_path) == []


# --- the commands


def test_the_commands(builds, tmp_path, capsys):
    assert main(["merge", *map(str, builds), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "6 shards, 6 of them linked\nsamples 8, rejected 2\n"
    assert main(["select", str(tmp_path / "out"), "--query", "split == 'test'"]) == 0
    assert capsys.readouterr().out.split() == chosen_keys(tmp_path / "out", "split == 'test'")
    assert main(["select", str(tmp_path / "out"), "--query", "has_gaze", "--out", str(tmp_path / "chosen")]) == 0
    assert capsys.readouterr().out == "4 of 8 samples in 2 shards\n"
    assert main(["merge", str(builds[0]), str(tmp_path / "chosen"), "--out", str(tmp_path / "again")]) == 1
    assert capsys.readouterr().err.startswith("gazeprep merge: 2 samples of folder 2 of 2 stand in folder 1 of 2 too")
