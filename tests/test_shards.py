"""Samples, keys, tars and index, checked with tarfile, numpy and the readers that other people use."""

import hashlib
import io
import itertools
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from recorded import SMALL, sources_of, tree

from gazeprep import render
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.images import Resize
from gazeprep.samples import MapConfig, PictureConfig, SampleConfig
from gazeprep.schema import CHEXPERT_LABELS, FIXATION_COLUMNS, SENTENCE_COLUMNS, WORD_COLUMNS
from gazeprep.shards import (
    FolderLock,
    Sample,
    ShardFolder,
    fixations_from_member,
    sample_key,
    table_facts,
    write_json,
    write_tar,
)

SUFFIXES = ["gaze.npz", "json", "maps.npy", "png"]
COLUMNS = [*FIXATION_COLUMNS, *WORD_COLUMNS, *SENTENCE_COLUMNS]


@pytest.fixture(scope="module")
def folder(shards):
    return ShardFolder(shards)


@pytest.fixture(scope="module")
def samples(folder):
    return {key: folder.sample(key) for key in folder.index["key"]}


def members_of(path):
    """Name -> bytes of a tar, in its order, by the standard library's reader."""
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def typed(value):
    """A json value's types, all the way down."""
    if isinstance(value, dict):
        return {name: typed(one) for name, one in value.items()}
    return type(value).__name__


# --- what a sample holds


def test_the_corpus_mixes_what_samples_can_be(folder):
    index = folder.index
    assert set(index["dataset"]) == {"reflacx", "egd-cxr", "mimic-cxr"}
    assert set(index["has_gaze"]) == {True, False}
    assert (index["sentences"] == 0).any()
    assert (index["sentences"] > 1).any()


def test_every_sample_has_the_same_four_members(folder, shards):
    for shard in folder.manifest["shards"]:
        names = [name.split(".", 1) for name in members_of(shards / shard["name"])]
        keys = [key for key, _ in names[::4]]
        assert names == [[key, suffix] for key in keys for suffix in SUFFIXES]


def test_every_record_has_the_same_keys_and_types_and_nothing_empty(samples):
    kinds = [typed(sample.record) for sample in samples.values()]
    assert all(kind == kinds[0] for kind in kinds)
    assert set(kinds[0].pop("labels").values()) == {"int"}
    assert set(kinds[0].values()) == {"str", "int", "float", "bool"}  # so neither null nor a list or dict


def test_labels_are_fourteen_ints_with_four_states(samples):
    for sample in samples.values():
        assert sorted(sample.record["labels"]) == sorted(CHEXPERT_LABELS)
    assert {value for sample in samples.values() for value in sample.record["labels"].values()} == {1, 0, -1, -2}


def test_gaze_columns_are_those_of_the_schema_and_load_without_pickle(folder):
    for key in folder.index["key"]:
        with np.load(io.BytesIO(folder.member(key, "gaze")), allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        assert list(columns) == COLUMNS
        assert {column.ndim for column in columns.values()} == {1}
        for group in (FIXATION_COLUMNS, WORD_COLUMNS, SENTENCE_COLUMNS):
            assert len({len(columns[name]) for name in group}) == 1
        assert columns["on_image"].dtype == np.bool_


def test_columns_are_empty_and_maps_zero_without_gaze(folder, samples):
    without = [samples[key] for key in folder.index.query("fixations == 0")["key"]]
    assert without
    for sample in without:
        assert not any(len(column) for column in sample.gaze.values())
        assert sample.maps.shape == (1, 37, 37)
        assert not sample.maps.any()
        assert (sample.record["sentences"], sample.record["transcript"], sample.record["has_gaze"]) == ("", "", False)


def test_maps_are_float32_and_sum_to_one_or_are_zero(samples):
    for sample in samples.values():
        assert sample.maps.dtype == np.float32
        assert sample.maps.shape == (1 + len(sample.gaze["sentence_start_s"]), 37, 37)
        sums = sample.maps.sum(axis=(1, 2), dtype=np.float64)
        assert np.all((sums == 0) | (np.abs(sums - 1) < 1e-6))


def clipped(fixations, start_s, end_s):
    start, end = np.maximum(fixations.start_s, start_s), np.minimum(fixations.end_s, end_s)
    return replace(fixations, start_s=start, end_s=np.maximum(start, end)).take(end > start)


def rendered_again(sample):
    """The maps of a sample from nothing but its stored fixations, windows and recipe."""
    record, fixations = sample.record, fixations_from_member(sample.gaze)
    size = (record["image_width_px"], record["image_height_px"])
    spans = zip(sample.gaze["window_start_s"], sample.gaze["sentence_end_s"], strict=True)
    parts = [fixations, *(clipped(fixations, start_s, end_s) for start_s, end_s in spans)]
    return [
        render(
            part,
            size,
            (record["map_rows"], record["map_cols"]),
            sigma_deg=record["map_sigma_deg"] or 1.0,
            sigma_px=record["map_sigma_px"] or None,
            dtype="float64",
        )
        for part in parts
    ]


def test_maps_are_what_the_stored_fixations_and_windows_render(folder, samples):
    keys = folder.index.query("has_gaze")["key"]
    assert len(keys) == 16
    for key in keys:
        np.testing.assert_allclose(samples[key].maps, rendered_again(samples[key]), atol=1e-7, err_msg=key)


def test_windows_begin_a_second_and_a_half_early_but_not_before_the_previous_sentence(folder, samples):
    for key in folder.index.query("sentences > 1")["key"]:
        start = samples[key].gaze["sentence_start_s"]
        expected = [start[0] - 1.5, *(max(own - 1.5, before) for before, own in itertools.pairwise(start))]
        np.testing.assert_allclose(samples[key].gaze["window_start_s"], expected)


def test_egd_takes_its_published_sigma_unless_told_the_resolution(corpus, config_of, tmp_path, inline):
    sources = Sources(egd=corpus.egd, mimic_jpg=corpus.mimic_cxr_jpg)
    config = config_of(tmp_path / "out", sources, sample=replace(SMALL, maps=MapConfig(grid=(5, 4))))
    build(config)
    folder = ShardFolder(config.out)
    for key in folder.index.query("dataset == 'egd-cxr'")["key"]:
        sample = folder.sample(key)
        assert (sample.record["map_sigma_px"], sample.record["map_sigma_deg"]) == (150.0, 0.0)
        assert sample.maps.shape[1:] == (5, 4)
        np.testing.assert_allclose(sample.maps, rendered_again(sample), atol=1e-7)


def test_words_belong_to_the_sentences_that_hold_them(folder, samples):
    for key in folder.index.query("sentences > 0")["key"]:
        gaze, sentences = samples[key].gaze, samples[key].record["sentences"].split("\n")
        assert len(sentences) == folder.row(key)["sentences"]
        for i, sentence in enumerate(sentences):
            own = gaze["word_sentence"] == i
            assert "".join(sentence.split()) == "".join("".join(gaze["word"][own]).split())
            assert gaze["word_start_s"][own][0] == gaze["sentence_start_s"][i]
            assert gaze["word_end_s"][own].max() == gaze["sentence_end_s"][i]


@pytest.mark.parametrize(
    "resize", [Resize("short_edge", 128), Resize("long_edge", 57), Resize("letterbox", 75), Resize("none")]
)
def test_a_mark_at_a_fixation_lands_where_the_record_says(resize, tables, tmp_path, inline):
    pixels = np.zeros((90, 61), np.uint8)
    pixels[21:26, 39:44] = 255  # centred on the fixation (41, 23)
    tables.image("marked", pixels=pixels)
    tables.reading("reading", "marked", [(41, 23)])
    build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), SampleConfig(PictureConfig(resize))))
    sample = ShardFolder(tmp_path / "out").sample(sample_key("table-own", "reading"))
    record, image = sample.record, cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.shape == (record["stored_height_px"], record["stored_width_px"])
    rows, cols = np.indices(image.shape)
    x = record["resize_scale_x"] * (sample.gaze["x_px"][0] + 0.5) + record["resize_offset_x"] - 0.5
    y = record["resize_scale_y"] * (sample.gaze["y_px"][0] + 0.5) + record["resize_offset_y"] - 0.5
    assert np.average(cols, weights=image) == pytest.approx(x, abs=0.05)
    assert np.average(rows, weights=image) == pytest.approx(y, abs=0.05)


def test_a_marked_fixation_stays_in_the_columns_but_not_in_the_maps(tables, tmp_path, inline):
    tables.image("im")
    tables.reading("reading", "im", [(8, 9), (-9, 9)])
    filters = replace(SMALL.filters, off_image=True)
    build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), replace(SMALL, filters=filters)))
    sample = ShardFolder(tmp_path / "out").sample(sample_key("table-own", "reading"))
    assert sample.gaze["on_image"].tolist() == [True, False]
    assert json.loads(sample.record["fixation_marks"]) == {"1": "off_image"}
    kept = fixations_from_member(sample.gaze).take([0])
    np.testing.assert_allclose(sample.maps[0], render(kept, (30, 40), (37, 37)), atol=1e-7)


def test_jpg_pictures_replace_png_ones_in_every_sample(corpus, config_of, tmp_path, inline):
    picture = PictureConfig(Resize(size_px=32), format="jpg")
    build(config_of(tmp_path / "out", Sources(mimic_jpg=corpus.mimic_cxr_jpg), sample=SampleConfig(picture)))
    for shard in (tmp_path / "out").rglob("*.tar"):
        suffixes = [name.split(".", 1)[1] for name in members_of(shard)]
        assert suffixes == ["gaze.npz", "jpg", "json", "maps.npy"] * (len(suffixes) // 4)


# --- which inputs become samples


def test_inputs_are_samples_plus_rejected(corpus, folder):
    reflacx = pd.concat(pd.read_csv(path) for path in sorted((corpus.reflacx / "main_data").glob("metadata_*.csv")))
    egd = pd.read_csv(corpus.egd / "master_sheet.csv")
    images = pd.read_csv(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-metadata.csv.gz")
    unread = set(images["dicom_id"]) - set(reflacx["dicom_id"]) - set(egd["dicom_id"])
    rejected = pd.read_parquet(folder.root / "rejected.parquet")
    assert len(folder) + len(rejected) == len(reflacx) + len(egd) + len(unread)
    assert set(folder.index["key"]).isdisjoint(rejected["key"])
    counts = folder.manifest["counts"]
    assert (counts["inputs"], counts["samples"], counts["rejected"]) == (28, len(folder), len(rejected))


def edited_reflacx(corpus, root, phase, change):
    """A copy of the corpus's REFLACX folder with one metadata table changed."""
    shutil.copytree(corpus.reflacx, root)
    path = root / "main_data" / f"metadata_phase_{phase}.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(table)
    table.to_csv(path, index=False)
    return table


def test_five_readings_of_an_image_are_five_samples(corpus, config_of, tmp_path, inline):
    def keep_all(table):
        table["eye_tracking_data_discarded"] = "False"

    table = edited_reflacx(corpus, tmp_path / "reflacx", 1, keep_all)
    main = tmp_path / "reflacx" / "main_data"
    for name in ("fixations.csv", "timestamps_transcription.csv"):
        shutil.copy(main / table["id"][0] / name, main / table["id"][4] / name)
    build(config_of(tmp_path / "out", sources_of(corpus, reflacx=tmp_path / "reflacx")))
    index = ShardFolder(tmp_path / "out").index
    assert table["dicom_id"].nunique() == 1
    of_image = index[index["dicom"] == table["dicom_id"][0]]
    assert sorted(of_image["reading"]) == sorted(table["id"])
    assert set(of_image["dataset"]) == {"reflacx"}


def test_an_image_in_two_datasets_is_two_samples(corpus, folder):
    egd = set(pd.read_csv(corpus.egd / "master_sheet.csv")["dicom_id"])
    both = set(pd.read_csv(corpus.reflacx / "main_data" / "metadata_phase_3.csv")["dicom_id"]) & egd
    assert len(both) == 1
    of_image = folder.index[folder.index["dicom"].isin(both)]
    assert sorted(of_image["dataset"]) == ["egd-cxr", "reflacx"]


def test_a_discarded_reading_beside_others_gives_no_sample(corpus, folder):
    rejected = pd.read_parquet(folder.root / "rejected.parquet")
    assert rejected["reason"].tolist() == ["eye_tracking_discarded"] * 2
    of_images = folder.index[folder.index["dicom"].isin(rejected["dicom_id"])]
    assert len(of_images) == 8
    assert set(of_images["dataset"]) == {"reflacx"}


def test_the_image_of_the_only_discarded_reading_stays_without_gaze(corpus, config_of, tmp_path, inline):
    def discard(table):
        table.loc[0, "eye_tracking_data_discarded"] = "True"

    row = edited_reflacx(corpus, tmp_path / "reflacx", 3, discard).loc[0]
    build(config_of(tmp_path / "out", sources_of(corpus, reflacx=tmp_path / "reflacx")))
    folder = ShardFolder(tmp_path / "out")
    rejected = pd.read_parquet(folder.root / "rejected.parquet").set_index("reading_id")
    assert rejected.loc[row["id"], "reason"] == "eye_tracking_discarded"
    of_image = folder.index[folder.index["dicom"] == row["dicom_id"]]
    assert of_image[["dataset", "reading", "has_gaze"]].values.tolist() == [["mimic-cxr", "", False]]
    assert folder.manifest["counts"]["inputs"] == 29  # the reading and its image


# --- keys


def test_a_key_is_the_dataset_and_a_hash_of_the_source_id(folder):
    for key in folder.index["key"]:
        row = folder.row(key)
        source_id = row["reading"] or row["dicom"]
        digest = hashlib.blake2b(f"{row['dataset']}\0{source_id}".encode(), digest_size=6).hexdigest()
        assert key == f"{row['dataset']}-{digest}" == folder.sample(key).record["key"]
        assert re.fullmatch(r"[a-z-]+-[0-9a-f]{12}", key)
        assert not [row[name] for name in ("subject", "study", "dicom") if row[name] in key]


def test_keys_never_change():
    assert sample_key("reflacx", "P102R000000") == "reflacx-70f651995e89"
    assert sample_key("mimic-cxr", "P102R000000") != sample_key("reflacx", "P102R000000")


# --- tars and index


def test_the_index_points_at_the_very_bytes_of_every_member(folder, shards):
    for shard, rows in folder.index.groupby("shard"):
        members, data = members_of(shards / shard), (shards / shard).read_bytes()
        assert len(members) == 4 * len(rows)
        suffix = {"image": "png", "gaze": "gaze.npz", "maps": "maps.npy", "json": "json"}
        for _, row in rows.iterrows():
            for role in suffix:
                offset, length = row[f"{role}_offset"], row[f"{role}_length"]
                assert data[offset : offset + length] == members[f"{row['key']}.{suffix[role]}"]


def test_a_samples_range_is_a_readable_tar_of_its_own(folder, shards):
    for _, row in folder.index.iterrows():
        data = (shards / row["shard"]).read_bytes()[row["offset"] :][: row["length"]]
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert tar.getnames() == [f"{row['key']}.{suffix}" for suffix in SUFFIXES]


def test_samples_fill_a_shard_without_gaps_and_the_index_is_in_their_order(folder):
    for _, rows in folder.index.groupby("shard"):
        assert rows["offset"].iloc[0] == 0
        assert (rows["offset"] + rows["length"]).tolist()[:-1] == rows["offset"].tolist()[1:]


def test_headers_hold_nothing_of_the_machine(folder, shards):
    for shard in folder.manifest["shards"]:
        with tarfile.open(shards / shard["name"]) as tar:
            for info in tar:
                assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
                assert info.name.isascii()
        assert (shards / shard["name"]).read_bytes()[257:265] == b"ustar\x0000"


def test_the_manifest_knows_each_shard(folder, shards):
    named = {shard["name"]: shard for shard in folder.manifest["shards"]}
    assert sorted(named) == sorted(name for name in tree(shards) if name.endswith(".tar"))
    for name, data in tree(shards).items():
        if name.endswith(".tar"):
            assert named[name]["sha256"] == hashlib.sha256(data).hexdigest()
            assert named[name]["size"] == len(data)
            assert named[name]["samples"] == (folder.index["shard"] == name).sum()
    assert folder.manifest["synthetic"] is True
    assert not [word for word in ("/tmp", str(shards), "workers") if word in json.dumps(folder.manifest)]


def test_a_key_cannot_stand_twice_in_a_shard(tmp_path):
    sample = Sample("own-0123456789ab", "png", dict.fromkeys(("image", "gaze", "json", "maps"), b"x"), {})
    with pytest.raises(ValueError, match="own-0123456789ab stands twice"):
        write_tar(tmp_path / "one.tar", iter([sample, sample]))


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "record.json", {"value": float("nan")})
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_json(tmp_path / "taken", {})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# --- reading back


def test_a_folder_that_is_no_finished_build_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished build"):
        ShardFolder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 99}', "schema version 99"),
        ("{", "dataset.json cannot be read"),
        ("[]", "not written by gazeprep"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ShardFolder(tmp_path)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"tables": None}, "dataset.json lacks tables: an earlier gazeprep wrote it; build the shards again"),
        ({"counts": None, "versions": None}, "dataset.json lacks versions, counts: an earlier gazeprep wrote it"),
        ({"labels": None, "study": None}, "index.parquet lacks study, labels: an earlier gazeprep wrote it; build"),
    ],
)
def test_a_folder_of_an_earlier_version_is_told_so(shards, tmp_path, capsys, lacking, message):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    manifest = json.loads((copy / "dataset.json").read_text())
    index = pq.read_table(copy / "index.parquet")
    pq.write_table(index.drop_columns([name for name in lacking if name in index.schema.names]), copy / "index.parquet")
    manifest["tables"] |= table_facts({"index.parquet": (copy / "index.parquet").read_bytes()})
    kept = {name: value for name, value in manifest.items() if name not in lacking}
    (copy / "dataset.json").write_text(json.dumps(kept))
    for command in (["report"], ["agreement"], ["select", "--query=has_gaze"]):
        assert main([*command, str(copy)]) == 1
        assert message in capsys.readouterr().err


def test_missing_and_shortened_files_are_named(shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    folder = ShardFolder(copy)
    shard = copy / folder.row(folder.keys()[-1])["shard"]
    shard.write_bytes(shard.read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"\.tar is shorter than its index says"):
        folder.sample(folder.keys()[-1])
    shard.unlink()
    with pytest.raises(ValueError, match=r"\.tar cannot be read"):
        folder.sample(folder.keys()[-1])
    (copy / "index.parquet").unlink()
    with pytest.raises(ValueError, match=r"index\.parquet cannot be read"):
        ShardFolder(copy)


def test_an_unknown_key_is_named_but_a_source_id_is_not_repeated(folder):
    with pytest.raises(ValueError, match=r"own-0123456789ab.* is not among the 26 keys"):
        folder.row("own-0123456789ab")
    with pytest.raises(ValueError, match="this text is not among the 26 keys"):
        folder.row("P102R000000")


def test_a_folder_is_held_by_one_build_at_a_time(tmp_path):
    with FolderLock(tmp_path / "lock"), pytest.raises(ValueError, match="another build"), FolderLock(tmp_path / "lock"):
        pass
    with FolderLock(tmp_path / "lock"):
        pass


# --- other people's readers


@pytest.fixture
def gaze_between(tables, tmp_path, inline):
    """A shard of nine samples whose first and last have no gaze."""
    names = sorted((f"n{i}" for i in range(9)), key=lambda name: sample_key("table-own", name)[-12:])
    for i, name in enumerate(names):
        read = i in (2, 3, 5)
        tables.image(f"of-{name}" if read else name)
        if read:
            tables.reading(name, f"of-{name}")
    build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL))
    folder = ShardFolder(tmp_path / "out")
    assert folder.index["has_gaze"].tolist() == [i in (2, 3, 5) for i in range(9)]
    return folder


# It leaves closing the shard to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning",
    "ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning",
)
def test_webdataset_reads_every_sample(gaze_between):
    webdataset = pytest.importorskip("webdataset")
    path = gaze_between.root / "train" / "train-00000.tar"
    read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("l8"))
    assert [sample["__key__"] for sample in read] == gaze_between.keys()
    for sample, key in zip(read, gaze_between.keys(), strict=True):
        own = gaze_between.sample(key)
        assert sample["png"].shape == (85, 64)
        assert sample["png"].dtype == np.uint8
        np.testing.assert_array_equal(sample["maps.npy"], own.maps)
        assert sample["json"] == own.record
        assert {name: sample["gaze.npz"][name].tolist() for name in COLUMNS} == {
            name: own.gaze[name].tolist() for name in COLUMNS
        }


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets_reads_every_sample_with_its_gaze(gaze_between, tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    read = list(
        datasets.load_dataset(
            "webdataset",
            data_files={"train": [str(gaze_between.root / "train" / "*.tar")]},
            split="train",
            streaming=streaming,
            cache_dir=str(tmp_path / "cache"),
        )
    )
    assert [sample["__key__"] for sample in read] == gaze_between.keys()
    for sample, key in zip(read, gaze_between.keys(), strict=True):
        own = gaze_between.sample(key)
        assert sample["png"].size == (64, 85)
        np.testing.assert_array_equal(np.asarray(sample["maps.npy"], dtype=np.float32), own.maps)
        assert sample["json"] == own.record
        assert {name: list(sample["gaze.npz"][name]) for name in COLUMNS} == {
            name: own.gaze[name].tolist() for name in COLUMNS
        }


def test_tar_itself_lists_every_member(gaze_between):
    path = gaze_between.root / "train" / "train-00000.tar"
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [f"{key}.{suffix}" for key in gaze_between.index["key"] for suffix in SUFFIXES]
    assert listed.stderr == ""
