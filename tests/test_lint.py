"""Lint: a whole build passes, every kind of damage is found and named by shard and key."""

import io
import json
import random
import re
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import Tables

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.lint import lint
from gazeprep.shards import ShardFolder, json_member, maps_member, sha256_of, table_facts


def found(folder):
    """Kind, shard and key of each problem."""
    return {(one.kind, one.shard, one.key) for one in lint(folder, workers=1).problems}


def kinds(folder):
    return {one.kind for one in lint(folder, workers=1).problems}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A build of five small images, three of them read. Read only."""
    folder = tmp_path_factory.mktemp("small")
    tables = Tables(folder / "tables")
    tables.root.mkdir()
    for number, split in enumerate(("train", "train", "train", "validate", "test")):
        tables.image(f"image{number}", f"person{number}", split)
        if number in (0, 1, 4):
            tables.reading(f"reading{number}", f"image{number}", [(3 + 5 * i, 35 - 7 * i) for i in range(5)])
    build(BuildConfig(folder / "out", Sources(table=tables.source()), executor="inline"))
    return folder / "out"


@pytest.fixture
def out(small, tmp_path):
    """A copy of the small build, which a test may change."""
    return Path(shutil.copytree(small, tmp_path / "out", ignore=shutil.ignore_patterns(".build")))


@pytest.fixture
def row(small):
    """The index row of a sample with gaze and sentences, which is not the last of its shard."""
    index = ShardFolder(small).index
    return index[(index["split"] == "train") & index["has_gaze"]].iloc[0]


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def edit_manifest(out, change):
    manifest = json.loads((out / "dataset.json").read_text())
    change(manifest)
    (out / "dataset.json").write_text(json.dumps(manifest))


def edit_index(out, change):
    rows = pq.read_table(out / "index.parquet").to_pylist()
    schema = pq.read_schema(out / "index.parquet")
    pq.write_table(pa.Table.from_pylist(change(rows) or rows, schema=schema), out / "index.parquet")
    seal(out, "index.parquet")


def seal(out, name):
    facts = table_facts({name: (out / name).read_bytes()})
    edit_manifest(out, lambda manifest: manifest["tables"].update(facts))


def rewrite(out, shard, change):
    """Write a shard again with the members that `change` makes of (name, bytes) pairs, and make all tables agree."""
    path = out / shard
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    places = {}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            places[name] = (tar.offset, len(data))
            tar.addfile(info, io.BytesIO(data))

    def place(rows):
        for one in rows:
            if one["shard"] == shard:
                put(one, {name: where for name, where in places.items() if name.startswith(one["key"])})

    def list_anew(manifest):
        listed = next(one for one in manifest["shards"] if one["name"] == shard)
        listed |= {"size": path.stat().st_size, "sha256": sha256_of(path)}

    edit_index(out, place)
    edit_manifest(out, list_anew)


def put(one, places):
    """Write the places of a sample's members into its row."""
    suffixes = {"gaze": "gaze.npz", "json": "json", "maps": "maps.npy", "image": "png"}
    for role, suffix in suffixes.items():
        if f"{one['key']}.{suffix}" in places:
            offset, length = places[f"{one['key']}.{suffix}"]
            one |= {f"{role}_offset": offset + 512, f"{role}_length": length}
    offset, length = max(places.values())
    one["offset"] = min(places.values())[0]
    one["length"] = offset + 512 + -(-length // 512) * 512 - one["offset"]


def changed(name, change):
    return lambda members: [(n, change(data) if n == name else data) for n, data in members]


def with_record(**changes):
    return lambda data: json_member(json.loads(data) | changes)


def with_columns(change):
    def change_npz(data):
        with np.load(io.BytesIO(data)) as archive:
            columns = {name: archive[name] for name in archive.files}
        buffer = io.BytesIO()
        np.savez(buffer, **change(columns))
        return buffer.getvalue()

    return change_npz


# --- what is whole


def test_a_whole_build_of_every_special_case_passes(shards):
    seen = []
    report = lint(shards, workers=1, watch=lambda shard, count: seen.append((shard, count)))
    assert report.problems == ()
    index = ShardFolder(shards).index
    assert (report.samples, report.shards) == (len(index), index["shard"].nunique())
    assert report.bytes == sum(path.stat().st_size for path in shards.rglob("*.tar"))
    assert seen == [(shard, report.shards) for shard in index["shard"].unique()]


@pytest.mark.slow  # processes
def test_processes_find_the_same(out, row):
    flip(out / row["shard"], row["image_offset"] + row["image_length"] // 2)
    assert lint(out, workers=2) == lint(out, workers=1)


def test_sealing_a_shard_again_unchanged_leaves_nothing_to_find(out, row):
    rewrite(out, row["shard"], lambda members: members)
    assert found(out) == set()


def test_shards_on_a_remote_store(out, row):
    memory = fsspec.filesystem("memory")
    memory.put(str(out), "/lint-test", recursive=True)
    assert lint("memory://lint-test", workers=1).problems == ()
    memory.pipe_file("/lint-test/train/train-00077.tar", b"")
    data = bytearray(memory.cat_file(f"/lint-test/{row['shard']}"))
    data[row["image_offset"] + 100] ^= 1
    memory.pipe_file(f"/lint-test/{row['shard']}", bytes(data))
    assert found("memory://lint-test") == {
        ("extra_file", "train/train-00077.tar", ""),
        ("checksum", row["shard"], ""),
        ("image", row["shard"], row["key"]),
    }


def test_folders_of_stored_tokens_may_lie_beside(out):
    (out / "features-0123456789ab").mkdir()
    (out / "features-0123456789ab" / "features.json").write_text("{}")
    assert found(out) == set()


# --- bytes


@pytest.mark.parametrize(("role", "kind"), [("image", "image"), ("gaze", "gaze"), ("maps", "maps")])
def test_a_flipped_byte_is_found_in_its_shard_and_sample(out, row, role, kind):
    flip(out / row["shard"], row[f"{role}_offset"] + row[f"{role}_length"] // 2)
    assert found(out) == {("checksum", row["shard"], ""), (kind, row["shard"], row["key"])}


def test_a_damaged_picture_is_not_told_to_be_downloaded(out, row):
    flip(out / row["shard"], row["image_offset"] + row["image_length"] // 2)
    assert {problem.what for problem in lint(out, workers=1).problems if problem.kind == "image"} == {
        "cannot be decoded (image_corrupt)"
    }


def test_a_flipped_byte_of_the_json_is_found(out, row):
    flip(out / row["shard"], row["json_offset"])
    assert found(out) == {("checksum", row["shard"], ""), ("json", row["shard"], row["key"])}


def test_a_flipped_bit_of_text_is_found_by_the_checksum(out, row):
    text = (out / row["shard"]).read_bytes().index(b'"transcript":"', row["json_offset"]) + len(b'"transcript":"')
    flip(out / row["shard"], text)
    assert found(out) == {("checksum", row["shard"], "")}


def test_a_damaged_header_is_found_with_the_samples_it_hides(out, row):
    flip(out / row["shard"], row["offset"] + 100)
    problems = found(out)
    assert ("checksum", row["shard"], "") in problems
    assert ("index", row["shard"], "") in problems
    assert {kind for kind, _, _ in problems} >= {"tar"}


def test_a_truncated_tar(out, row):
    path = out / row["shard"]
    path.write_bytes(path.read_bytes()[: row["maps_offset"] + 10])
    problems = {(kind, key) for kind, shard, key in found(out) if shard == row["shard"]}
    assert {("size", ""), ("checksum", ""), ("tar", ""), ("members", row["key"])} <= problems


def test_a_tar_without_its_end(out, row):
    path = out / row["shard"]
    index = ShardFolder(out).index
    last = index[index["shard"] == row["shard"]].iloc[-1]
    path.write_bytes(path.read_bytes()[: last["offset"] + last["length"]])
    assert {"size", "checksum", "tar"} == {kind for kind, _, _ in found(out)}


def test_a_missing_shard(out, row):
    (out / row["shard"]).unlink()
    assert ("missing_file", row["shard"], "") in found(out)


@pytest.mark.parametrize("name", ["index.parquet", "rejected.parquet", "dataset.json"])
def test_a_missing_table(out, name):
    (out / name).unlink()
    assert found(out) == {("missing_file", name, "")}


@pytest.mark.parametrize(("name", "kind"), [("index.parquet", "index"), ("dataset.json", "manifest")])
def test_a_damaged_table(out, name, kind):
    (out / name).write_bytes((out / name).read_bytes()[:40])
    assert (kind, name, "") in found(out)


@pytest.mark.parametrize("name", ["index.parquet", "rejected.parquet"])
def test_a_flipped_byte_of_a_table(out, name):
    flip(out / name, 30)
    assert ("checksum", name, "") in found(out)


def test_an_extra_file_is_counted_and_an_extra_shard_named(out, row):
    (out / "train" / "notes on patient 1.txt").write_text("x")
    shutil.copy(out / row["shard"], out / "train" / "train-00077.tar")
    problems = lint(out, workers=1).problems
    assert {(one.kind, one.shard) for one in problems} == {("extra_file", ""), ("extra_file", "train/train-00077.tar")}
    assert "notes" not in " ".join(map(str, problems))


# --- members


def test_a_missing_member(out, row):
    rewrite(out, row["shard"], lambda members: [one for one in members if one[0] != f"{row['key']}.maps.npy"])
    assert ("members", row["shard"], row["key"]) in found(out)


def test_a_member_too_many(out, row):
    def added(members):
        at = [name for name, _ in members].index(f"{row['key']}.json")
        return [*members[:at], (f"{row['key']}.cls", b"1"), *members[at:]]

    rewrite(out, row["shard"], added)
    assert ("members", row["shard"], row["key"]) in found(out)


def test_members_out_of_order(out, row):
    def turned(members):
        own = [one for one in members if one[0].startswith(row["key"])]
        others = [one for one in members if not one[0].startswith(row["key"])]
        return [*others, *reversed(own)]

    rewrite(out, row["shard"], turned)
    assert ("members", row["shard"], row["key"]) in found(out)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 3},
        {"schema_version": 2},
        {"extra": 1},
        {"image_width_px": "640"},
        {"map_sigma_deg": 1},
        {"split": "val"},
        {"alignment": "[]"},
        {"labels": {}},
        {"annotations": "null"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_json_of_another_schema(out, row, changes):
    rewrite(out, row["shard"], changed(f"{row['key']}.json", with_record(**changes)))
    assert found(out) >= {("json", row["shard"], row["key"])}


def test_a_pretty_json_is_not_the_canonical_one(out, row):
    rewrite(out, row["shard"], changed(f"{row['key']}.json", lambda data: json.dumps(json.loads(data)).encode()))
    assert found(out) == {("json", row["shard"], row["key"])}


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: {**columns, "x_px": columns["x_px"].astype(np.float32)},
        lambda columns: {**columns, "word": columns["word"].astype(object)},
        lambda columns: {**columns, "x_px": columns["x_px"][:-1]},
        lambda columns: {**columns, "start_s": columns["end_s"], "end_s": columns["start_s"]},
        lambda columns: {**columns, "on_image": ~columns["on_image"]},
        lambda columns: {**columns, "word_sentence": columns["word_sentence"][::-1].copy()},
        lambda columns: {name: column for name, column in columns.items() if name != "window_start_s"},
    ],
    ids=["dtype", "pickle", "ragged", "negative", "on_image", "owners", "column"],
)
def test_a_npz_that_is_wrong(out, row, change):
    rewrite(out, row["shard"], changed(f"{row['key']}.gaze.npz", with_columns(change)))
    assert found(out) >= {("gaze", row["shard"], row["key"])}


def test_a_pickle_is_told_as_one(out, row):
    change = with_columns(lambda columns: {**columns, "word": columns["word"].astype(object)})
    rewrite(out, row["shard"], changed(f"{row['key']}.gaze.npz", change))
    assert "pickled" in str(lint(out, workers=1).problems[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda maps: maps * np.float32(1.01), "sums to"),
        (lambda maps: maps[:, ::-1], "fresh render"),
        (lambda maps: maps[:-1], "shape"),
        (lambda maps: np.concatenate([maps[:1], maps[:0:-1]]), "fresh render"),
        (lambda maps: maps - np.float32(1e-3), "negative"),
        (lambda maps: np.where(maps == maps.max(), np.float32("nan"), maps), "not finite"),
    ],
    ids=["sum", "flipped", "fewer", "swapped", "negative", "nan"],
)
def test_maps_that_are_not_those_of_the_fixations(out, row, change, told):
    def again(data):
        return maps_member(change(np.load(io.BytesIO(data))))

    rewrite(out, row["shard"], changed(f"{row['key']}.maps.npy", again))
    (problem,) = [one for one in lint(out, workers=1).problems if one.kind == "maps"]
    assert (problem.shard, problem.key) == (row["shard"], row["key"])
    assert told in problem.what


def test_fixations_moved_by_a_pixel_contradict_the_maps(out, row):
    change = with_columns(lambda columns: {**columns, "x_px": columns["x_px"] + 0.5})
    rewrite(out, row["shard"], changed(f"{row['key']}.gaze.npz", change))
    assert ("maps", row["shard"], row["key"]) in found(out)


# --- the index


def test_an_index_of_another_build(out, tables):
    tables.image("a")
    build(BuildConfig(tables.root / "other", Sources(table=tables.source("other")), executor="inline"))
    shutil.copy(tables.root / "other" / "index.parquet", out / "index.parquet")
    assert kinds(out) >= {"checksum"}
    seal(out, "index.parquet")
    assert kinds(out) >= {"index", "counts"}


def test_two_rows_swapped(out, row):
    index = ShardFolder(out).index
    other = index[(index["shard"] == row["shard"]) & (index["key"] != row["key"])].iloc[0]

    def swap(rows):
        one, two = (next(r for r in rows if r["key"] == key) for key in (row["key"], other["key"]))
        for name in ("offset", "length", "json_offset", "json_length"):
            one[name], two[name] = two[name], one[name]

    edit_index(out, swap)
    assert found(out) == {
        ("index", row["shard"], row["key"]),
        ("index", row["shard"], other["key"]),
        ("index", row["shard"], ""),
    }


@pytest.mark.parametrize(
    "changes",
    [{"labels": [0] * 14}, {"study": "1"}, {"fixations": 1}, {"has_gaze": False}, {"view_position": "LL"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_row_that_says_otherwise_than_the_sample(out, row, changes):
    def change(rows):
        next(one for one in rows if one["key"] == row["key"]).update(changes)

    edit_index(out, change)
    assert ("index", row["shard"], row["key"]) in found(out)


def test_a_row_too_many_and_one_too_few(out, row):
    edit_index(out, lambda rows: [one for one in rows if one["key"] != row["key"]])
    assert found(out) >= {("index", row["shard"], row["key"]), ("counts", "dataset.json", "")}


def test_a_key_twice(out, row):
    edit_index(out, lambda rows: [*rows, next(one for one in rows if one["key"] == row["key"])])
    assert ("duplicate", "index.parquet", row["key"]) in found(out)


def test_empty_cells(out):
    edit_index(out, lambda rows: [one | {"split": None} for one in rows])
    assert found(out) == {("index", "index.parquet", "")}


def test_a_subject_in_two_splits(out):
    index = ShardFolder(out).index
    train, test = (index[index["split"] == split].iloc[0] for split in ("train", "test"))

    def leak(rows):
        next(one for one in rows if one["key"] == test["key"])["subject"] = train["subject"]

    edit_index(out, leak)
    (problem,) = [one for one in lint(out, workers=1).problems if one.kind == "split_leak"]
    assert f"{train['key']} in train" in problem.what
    assert f"{test['key']} in test" in problem.what
    assert not re.search(rf"\b{train['subject']}\b", str(problem))


# --- the manifest


def test_counts_that_do_not_add_up(out):
    edit_manifest(out, lambda manifest: manifest["counts"].update(rejected=99, empty={}))
    told = [one.what for one in lint(out, workers=1).problems]
    assert len(told) == 2
    assert told[0].startswith("rejected is 99")
    assert told[1].startswith("empty is {}")


def test_a_folder_that_hides_what_is_synthetic(out):
    edit_manifest(out, lambda manifest: manifest.update(synthetic=True))
    assert found(out) == {("counts", "dataset.json", "")}


def test_another_schema_version(out):
    edit_manifest(out, lambda manifest: manifest.update(schema_version=3))
    assert found(out) == {("schema_version", "dataset.json", "")}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid": [37, 36]}, "another map_cols"),
        ({"rule": "none"}, "another resize_rule"),
        ({"lead_s": 2.0}, "another alignment"),
        ({"format": "jpg"}, "no jpg"),
    ],
)
def test_samples_of_another_recipe_than_the_folder_says(out, row, changes, told):
    def change(manifest):
        sample = manifest["config"]["sample"]
        parts = (sample["maps"], sample["picture"], sample["picture"]["resize"], sample["alignment"])
        for part in parts:
            part.update({name: value for name, value in changes.items() if name in part})

    edit_manifest(out, change)
    problems = [one for one in lint(out, workers=1).problems if one.key == row["key"]]
    assert [one.kind for one in problems] == ["recipe"]
    assert told in problems[0].what


def test_a_shard_that_the_manifest_forgets(out, row):
    edit_manifest(out, lambda manifest: manifest["shards"].remove(next(s for s in manifest["shards"])))
    assert kinds(out) >= {"extra_file", "index"}


def test_a_shard_path_that_climbs_out_is_not_opened(out):
    edit_manifest(out, lambda manifest: manifest["shards"][0].update(name="../elsewhere.tar"))
    assert found(out) == {("manifest", "dataset.json", "")}


def test_no_problem_tells_a_source_id_or_text(out, row):
    folder = ShardFolder(out)
    record = folder.sample(row["key"]).record
    rewrite(out, row["shard"], changed(f"{row['key']}.json", with_record(findings=7, split="secret")))
    edit_index(out, lambda rows: [one for one in rows if one["key"] != row["key"]])
    told = " ".join(map(str, lint(out, workers=1).problems))
    assert row["key"] in told
    for secret in (record["dicom_id"], record["subject_id"], "secret", str(out), "person"):
        assert secret not in told


# --- the command


def test_the_command_prints_each_problem_and_its_exit_code_tells(out, row, capsys):
    assert main(["lint", str(out), "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith("nothing wrong: 5 samples in 3 shards, ")
    flip(out / row["shard"], row["image_offset"] + row["image_length"] // 2)
    assert main(["lint", str(out), "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert f"{row['shard']} {row['key']} image: " in printed.out
    assert printed.err.startswith("gazeprep lint: 2 problems in 5 samples in 3 shards")


# --- damage anywhere


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 400), marks=pytest.mark.slow)], ids=str)
def test_damage_anywhere_is_found_and_never_raises(small, tmp_path, seeds):
    files = sorted(path.relative_to(small) for path in small.rglob("*.*") if ".build" not in path.parts)
    for seed in seeds:
        rng = random.Random(seed)
        copy = Path(shutil.copytree(small, tmp_path / str(seed), ignore=shutil.ignore_patterns(".build")))
        path = copy / rng.choice([file for file in files if file.suffix in (".tar", ".parquet")])
        data = path.read_bytes()
        at = rng.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        path.write_bytes(rng.choice([flipped, flipped, data[:at], data[:at] + rng.randbytes(7) + data[at:]]))
        name = path.relative_to(copy).as_posix()
        assert name in {one.shard for one in lint(copy, workers=1).problems if one.kind == "checksum"}, seed
