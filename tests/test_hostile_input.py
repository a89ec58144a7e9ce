"""Files that were made to do harm: bombs, claims, paths that climb out, pickles, indexes that were swapped."""

import gzip
import io
import json
import os
import resource
import shutil
import struct
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import input_of, outcome
from fuzz_targets import dicom, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless
from recorded import SMALL
from scipy.stats import norm

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.images import decode, read_image
from gazeprep.lint import lint
from gazeprep.maps import render
from gazeprep.schema import Fixations, ImageRef, InputError, ReportRef
from gazeprep.shards import ShardFolder, read_npy, read_npz, table_facts
from gazeprep.sources import bounded, egd, load_fixations, mimic_eye, reflacx
from gazeprep.sources.mimic_cxr import open_mimic, read_report

TABLES = (
    "reflacx metadata",
    "reflacx fixations alone",
    "egd master_sheet",
    "egd fixations",
    "mimic metadata",
    "mimic overrides",
    "mimic-eye fixations",
    "table images",
    "table fixations",
    "table words",
)


@pytest.fixture(scope="module")
def readers(corpus, tmp_path_factory):
    """Every reader that the fuzzer knows, by name."""
    return {target.name: target for target in targets(tmp_path_factory.mktemp("readers"), corpus)}


@contextmanager
def little_memory(more=2**29):
    """Half a gigabyte more of address space than the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(read, *arguments, reason, says):
    with little_memory(), pytest.raises(InputError, match=says) as caught:
        read(*arguments)
    assert caught.value.reason == reason


# --- tables


def packed(piece, times):
    """A gzip of so many repetitions, made without unpacking them: members of a gzip follow each other."""
    return gzip.compress(piece, 1) * times


HOSTILE_TABLES = {
    "a million columns": (",".join(f"c{i}" for i in range(10**6)).encode() + b"\n1", "more than 4096 columns"),
    "names over many lines": (b'"a\n\n",' + b"b," * 9999 + b"\n1", "more than 4096 columns"),
    "a cell without an end": (b"x,y\n1," + b"a" * 2**20, "a line of more than 262144 bytes"),
    "bytes of value 0": (b"x,y\n1,\0\n", "bytes of value 0"),
    "UTF-16": ("x,y\n1,2\n".encode("utf-16"), "bytes of value 0.*save it as UTF-8"),
    "Latin-1": ("x,y\n1,\u00e9\n".encode("latin-1"), "UnicodeDecodeError"),
    "a quote without an end": (b'x,y\n1,"2\n3,4\n', "ParserError"),
    "a first row of 9,999 cells": (b"x,y\n1" + b"," * 9998 + b"\n", "more cells than its header"),
}


@pytest.mark.parametrize("reader", TABLES)
def test_hostile_tables_are_refused_by_every_reader(readers, reader):
    for content, says in HOSTILE_TABLES.values():
        refused(readers[reader].read, content, reason="unreadable_table", says=says)


def test_a_packed_table_is_read_no_further_than_a_table_can_reach(tmp_path, monkeypatch):
    path = tmp_path / "fixations.csv.gz"
    path.write_bytes(gzip.compress(b'x,y\n1,"') + packed(b"a" * 2**23, 128))
    refused(load_fixations, path, "table", reason="unreadable_table", says="a line of more than 262144 bytes")
    monkeypatch.setattr(bounded, "MAX_TABLE_BYTES", 2**24)
    path.write_bytes(gzip.compress(b'x,y\n1,"') + packed((b"a" * 1023 + b"\n") * 2**13, 128))
    refused(load_fixations, path, "table", reason="unreadable_table", says="more than 16777216 bytes")
    monkeypatch.setattr(bounded, "MAX_CELLS", 2**16)
    path.write_bytes(gzip.compress(b"x,y\n") + packed(b"1,2\n" * 2**20, 1000))
    refused(load_fixations, path, "table", reason="unreadable_table", says="more than 65536 cells")


@pytest.mark.slow
def test_the_same_at_the_true_limits(tmp_path):
    path = tmp_path / "fixations.csv.gz"
    path.write_bytes(gzip.compress(b'x,y\n1,"') + packed((b"a" * 1023 + b"\n") * 2**13, 128))
    with little_memory(2**31), pytest.raises(InputError, match="more than 536870912 bytes"):
        load_fixations(path, "table")
    path.write_bytes(gzip.compress(b"x,y\n") + packed(b"1,2\n" * 2**20, 1000))
    with little_memory(2**31), pytest.raises(InputError, match="more than 33554432 cells"):
        load_fixations(path, "table")


def test_a_parquet_of_forty_million_rows_in_some_kilobytes(tmp_path):
    path = tmp_path / "fixations.parquet"
    rows = pa.table({"x": pa.array(np.zeros(10**6, np.int8))})
    with pq.ParquetWriter(path, rows.schema) as writer:
        for _ in range(40):
            writer.write_table(rows)
    assert path.stat().st_size < 2**18
    refused(load_fixations, path, "table", reason="unreadable_table", says="more than 33554432 cells")


def test_a_parquet_whose_every_row_repeats_one_megabyte(tmp_path):
    path = tmp_path / "fixations.parquet"
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array(["1" * 10**6]))
    pq.write_table(pa.table({"x": one}), path)
    refused(load_fixations, path, "table", reason="unreadable_table", says="more than 536870912 bytes")


# --- reports and transcripts


def zipped_report(tmp_path, method, damage=lambda data: data):
    member = "files/p10/p10000032/s50414267.txt"
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w", method) as archive:
        archive.writestr(member, b" " * 2**23)
    path = tmp_path / "mimic-cxr-reports.zip"
    path.write_bytes(damage(path.read_bytes()))
    return ReportRef(str(tmp_path), path.name, member)


def test_a_report_that_unpacks_to_more_than_a_report_is_refused(tmp_path):
    says = "a report holds more than 4194304 bytes"
    refused(read_report, zipped_report(tmp_path, zipfile.ZIP_DEFLATED), reason="report_unreadable", says=says)
    (tmp_path / "s1.txt").write_bytes(b" " * (2**22 + 1))
    refused(read_report, ReportRef(str(tmp_path), "s1.txt"), reason="report_unreadable", says=says)


def encrypted(data):
    """Say in both headers of a zip's only member that it is encrypted."""
    central = data.rfind(b"PK\1\2")
    return data[:6] + b"\1" + data[7 : central + 8] + b"\1" + data[central + 9 :]


def test_an_encrypted_zip_is_told(tmp_path):
    ref = zipped_report(tmp_path, zipfile.ZIP_DEFLATED, encrypted)
    refused(read_report, ref, reason="report_unreadable", says="RuntimeError")


@pytest.mark.parametrize(
    "spoken",
    [
        "[" * 100_000,
        '{"full_text": "", "time_stamped_text": [{"phrase": "", "begin_time": 0, "end_time": 1' + "0" * 400 + "}]}",
        '{"full_text": "", "time_stamped_text": [{"phrase": "", "begin_time": NaN, "end_time": 1}]}',
        " " * (2**22 + 1),
    ],
    ids=["deep", "a time of 400 digits", "nan", "long"],
)
def test_hostile_transcripts_are_refused(tmp_path, spoken):
    (tmp_path / "transcript.json").write_text(spoken)
    refused(egd.read_transcript, tmp_path / "transcript.json", reason="bad_transcript", says="transcript.json")


# --- pictures


def picture_of(tmp_path, data, kind):
    (tmp_path / "image").write_bytes(data)
    return ImageRef(str(tmp_path), "image", kind, "test")


def png_of(width, height):
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (header, body))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_of(width, height):
    data = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()
    at = data.find(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">2H", height, width) + data[at + 4 :]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("raster", png_of(20_000, 20_000)),
        ("raster", jpeg_of(20_000, 20_000)),
        ("dicom", dicom(Rows=20_000, Columns=20_000)),
    ],
    ids=["png", "jpeg", "dicom"],
)
def test_a_picture_of_20000_by_20000_is_refused_before_it_is_decoded(tmp_path, kind, data):
    says = "20000 x 20000 pixels, more than 134217728 in all"
    refused(read_image, picture_of(tmp_path, data, kind), reason="image_too_large", says=says)


def test_a_small_file_that_claims_the_largest_size_is_refused(tmp_path):
    for kind, data in (
        ("raster", png_of(11_000, 12_000)),
        ("raster", jpeg_of(11_000, 12_000)[:-20]),
        ("dicom", dicom(Rows=11_000, Columns=12_000)),
    ):
        refused(read_image, picture_of(tmp_path, data, kind), reason="image_corrupt", says="; download it again")


def test_jpeg_2000_of_another_size_than_its_dicom_header_is_refused_before_it_is_decoded(tmp_path):
    """OpenJPEG believes the stream: 60,000 x 60,000 took 21 GB and 100 s before it was found to be no such picture."""
    plain, data = struct.pack(">2I", 48, 40), dicom(JPEG2000Lossless)
    assert data.count(plain) == 2, "of the image and of its only tile"
    hostile = data.replace(plain, struct.pack(">2I", 60_000, 60_000))
    refused(read_image, picture_of(tmp_path, hostile, "dicom"), reason="image_corrupt", says="cannot be read")


def test_a_deflated_dicom_that_unpacks_to_gigabytes_is_refused(tmp_path):
    """pydicom unpacks it whole, even for its header: 7 MB became 3 GB."""
    data = dicom(DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(data[140:144], "little")
    unpacked = zlib.decompress(data[start:], -15) + struct.pack("<2H2s2xI", 0x7FE1, 0x1010, b"OB", 2**31 - 2)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    bomb = packer.compress(unpacked) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    ref = picture_of(tmp_path, data[:start] + bomb + piece * 128, "dicom")
    refused(read_image, ref, reason="image_too_large", says="unpacks to more than 536870912 bytes")


def test_a_jpeg_of_a_thousand_scans_is_refused():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48), dtype=np.uint8)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    at = data.rfind(b"\xff\xda")
    refused(decode, data[:at] + data[at:-2] * 1000 + data[-2:], reason="image_corrupt", says="more than 100 scans")


def test_a_flipped_bit_of_a_png_is_found_by_its_checksum():
    data = bytearray(cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (40, 48), dtype=np.uint8))[1])
    data[len(data) // 2] ^= 1
    refused(decode, bytes(data), reason="image_corrupt", says="damaged")


def test_a_picture_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image")
    ref = ImageRef(str(tmp_path), "image", "raster", "test")
    refused(read_image, ref, reason="image_missing", says="cannot be opened")


@pytest.mark.parametrize(("shape", "reason"), [((1, 1), "image_too_small"), ((7, 9), "image_too_small"), ((8, 9), "")])
def test_a_placeholder_is_no_sample(tables, tmp_path, inline, shape, reason):
    tables.image("dot", pixels=np.zeros(shape, np.uint8))
    tables.image("whole")
    build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL))
    reasons = pd.read_parquet(tmp_path / "out" / "rejected.parquet")["reason"]
    assert list(reasons) == ([reason] if reason else [])


# --- fixations


def test_ten_thousand_fixations_make_the_map_that_their_sum_says(tables, tmp_path, inline):
    points = np.random.default_rng(0).uniform(-5, 45, (10_000, 2)).round(3)
    tables.image("im")
    tables.reading("r", "im", [tuple(point) for point in points.tolist()])
    build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL))
    folder = ShardFolder(tmp_path / "out")
    sample = folder.sample(folder.keys()[0])
    assert len(sample.gaze["x_px"]) == 10_000
    width, height, sigma = 30, 40, 4.0

    def mass(axis, low, high):
        """Of each Gaussian between two edges; an edge lies half a pixel before the point of its number."""
        return norm.cdf(high - 0.5, points[:, axis], sigma) - norm.cdf(low - 0.5, points[:, axis], sigma)

    whole = (mass(0, 0, width) * mass(1, 0, height)).sum()
    for row, col in ((0, 0), (18, 18), (36, 0), (7, 30), (36, 36)):
        x = mass(0, col * width / 37, (col + 1) * width / 37)
        y = mass(1, row * height / 37, (row + 1) * height / 37)
        np.testing.assert_allclose(sample.maps[0, row, col], (x * y).sum() / whole, rtol=1e-5)


def test_a_fixation_of_endless_duration_is_refused():
    with pytest.raises(InputError, match="over thirty years; check its unit"):
        Fixations(np.zeros(1), np.zeros(1), np.array([-1e308]), np.array([1e308]))


EXTREME = st.one_of(st.sampled_from([0.0, 1e308, -1e308, 1e-308, 1e18]), st.floats(-100, 200))


@settings(max_examples=60, deadline=None)
@given(npst.arrays(np.float64, (3, 4), elements=EXTREME), st.sampled_from([1e-308, 1e-3, 40.0, 1e300]))
def test_extreme_numbers_are_refused_or_drawn(columns, px_per_deg):
    x, y, start, duration = columns.T
    with np.errstate(all="ignore"):
        try:
            fixations = Fixations(x, y, start, start + duration, px_per_deg_x=px_per_deg, px_per_deg_y=px_per_deg)
        except InputError:
            return
        drawn = render(fixations, (30, 40), (5, 4))
    assert np.isfinite(drawn).all()
    assert np.isclose(drawn.sum(), 1, atol=1e-5) or not drawn.any()


# --- paths


CLIMBING = ("../../etc", "/etc", "..\\..\\etc", "C:\\etc", "a/../../etc", "a\0b")


@pytest.mark.parametrize("cell", [path for path in CLIMBING if "\0" not in path])
@pytest.mark.parametrize(
    ("reader", "column", "reason"),
    [
        ("reflacx metadata", "id", "bad_cell"),
        ("reflacx metadata", "subject_id", "bad_cell"),
        ("egd master_sheet", "dicom_id", "bad_cell"),
        ("egd master_sheet", "patient_id", "bad_cell"),
        ("mimic metadata", "study_id", "bad_id"),
        ("mimic metadata", "subject_id", "bad_id"),
        ("mimic-eye master_sheet", "patient_id", "bad_cell"),
        ("table images", "path", "bad_cell"),
    ],
)
def test_a_cell_that_names_a_file_cannot_climb_out(readers, reader, column, reason, cell):
    (seed,) = readers[reader].seeds
    table = pd.read_csv(io.BytesIO(seed), dtype=str, keep_default_na=False)
    table.loc[0, column] = cell
    refused(readers[reader].read, table.to_csv(index=False).encode(), reason=reason, says=f"column '{column}'")


def test_a_dicom_id_that_climbs_finds_no_file(corpus, tmp_path):
    """MIMIC's image ids are looked up among the files that are there, never opened as a path."""
    source = corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-metadata.csv.gz"
    table = pd.read_csv(source, dtype=str, keep_default_na=False).head(1)
    table["dicom_id"] = "../../../../etc/passwd"
    table.to_csv(tmp_path / source.name, index=False)
    (image,) = open_mimic(None, tmp_path).images
    assert image.image is None


def test_a_subject_of_mimic_eye_cannot_climb_out(corpus, tmp_path):
    (tmp_path / "patient_1" / "REFLACX").mkdir(parents=True)
    source = corpus.reflacx / "main_data" / "metadata_phase_3.csv"
    table = pd.read_csv(source, dtype=str, keep_default_na=False).head(1)
    table["subject_id"] = "1/../../elsewhere"
    table.to_csv(tmp_path / "patient_1" / "REFLACX" / "metadata.csv", index=False)
    refused(mimic_eye.open_mimic_eye, tmp_path, reason="bad_cell", says="column 'subject_id' is not a number")


def test_a_link_in_a_source_folder_is_followed(corpus, tmp_path):
    """Whoever can write links there has the folder; data sets are kept as folders of links, as git-annex does."""
    source = next(corpus.reflacx.glob("main_data/P*/fixations.csv"))
    (tmp_path / "fixations.csv").symlink_to(source)
    assert len(reflacx.read_fixations(tmp_path / "fixations.csv")) == len(reflacx.read_fixations(source))


# --- arrays


def npy(header, body=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def header(descr="'<f8'", shape="(3,)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


HOSTILE_ARRAYS = {
    "claims a terabyte": (npy(header(shape="(100000000000,)")), "claims other bytes"),
    "claims a gigabyte": (npy(header(shape="(134217728,)"), bytes(64)), "claims other bytes"),
    "has items of no bytes": (npy(header("'<U0'", "(10000000000000,)")), "claims other bytes"),
    "is pickled": (npy(header("'|O'"), b"cos\nsystem\n(S'true'\ntR."), "pickled"),
    "holds a pickle in a field": (npy(header("[('a', '|O')]")), "pickled"),
    "ends in a tuple": (npy("{'descr': '<f8', 'shape': (3,, "), "header cannot be read"),
    "is deep": (npy("(" * 110), "header cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused(name):
    data, says = HOSTILE_ARRAYS[name]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x_px.npy", data)
    for read, one in ((read_npy, data), (read_npz, buffer.getvalue())):
        with little_memory(), pytest.raises(ValueError, match=says):
            read(one)


def test_a_npz_that_unpacks_to_more_than_it_is_is_refused():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x_px=np.zeros(2**21))
    with little_memory(2**26), pytest.raises(ValueError, match="more than its own bytes"):
        read_npz(buffer.getvalue())


def test_an_encrypted_or_damaged_npz_is_refused():
    buffer = io.BytesIO()
    np.savez(buffer, x_px=np.zeros(3))
    for data in (encrypted(buffer.getvalue()), buffer.getvalue()[20:], b"PK"):
        with pytest.raises(ValueError, match="the npz cannot be read"):
            read_npz(data)


# --- shards


@pytest.fixture
def out(shards, tmp_path):
    """A copy of the finished build, which a test may change."""
    return Path(shutil.copytree(shards, tmp_path / "out", ignore=shutil.ignore_patterns(".build")))


def edit_index(out, change, seal=True):
    """Write the index again after `change` of its rows; sealed, the manifest lists it, as who means harm would."""
    rows = pq.read_table(out / "index.parquet").to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(out / "index.parquet")), out / "index.parquet")
    if seal:
        manifest = json.loads((out / "dataset.json").read_text())
        manifest["tables"] |= table_facts({"index.parquet": (out / "index.parquet").read_bytes()})
        (out / "dataset.json").write_text(json.dumps(manifest))


def two_of_a_shard(out):
    index = ShardFolder(out).index
    rows = index[(index["shard"] == index["shard"].iloc[0]) & index["has_gaze"]]
    return list(rows["key"].iloc[:2])


def swap(out, keys, *columns):
    def change(rows):
        one, two = (next(row for row in rows if row["key"] == key) for key in keys)
        for name in columns:
            one[name], two[name] = two[name], one[name]

    edit_index(out, change)


def named_by_reader_and_lint(out, key):
    with pytest.raises(ValueError, match=rf"^(train|validate|test)/.*\.tar .*{key}"):
        ShardFolder(out).sample(key)
    assert key in {problem.key for problem in lint(out, workers=1).problems}


@pytest.mark.parametrize("role", ["image", "gaze", "json", "maps"])
def test_two_samples_whose_members_were_exchanged(out, role):
    keys = two_of_a_shard(out)
    swap(out, keys, f"{role}_offset", f"{role}_length")
    with pytest.raises(
        ValueError, match=f"^train/.*holds something else where its index places the {role} of {keys[0]}"
    ):
        ShardFolder(out).sample(keys[0])


def test_two_samples_exchanged_whole(out):
    keys = two_of_a_shard(out)
    places = [name for name in pq.read_schema(out / "index.parquet").names if name.endswith(("offset", "length"))]
    swap(out, keys, *places)
    named_by_reader_and_lint(out, keys[0])


def test_rows_of_two_shards_exchanged(out):
    index = ShardFolder(out).index
    keys = [str(rows["key"].iloc[0]) for _, rows in list(index[index["split"] == "train"].groupby("shard"))[:2]]
    swap(out, keys, "shard")
    named_by_reader_and_lint(out, keys[0])


def test_the_index_of_another_build(out, tables, inline):
    tables.image("a")
    build(BuildConfig(tables.root / "other", Sources(table=tables.source()), SMALL))
    shutil.copy(tables.root / "other" / "index.parquet", out)
    with pytest.raises(ValueError, match=r"index\.parquet is not the one that dataset.json lists"):
        ShardFolder(out)
    assert "checksum" in {problem.kind for problem in lint(out, workers=1).problems}


def test_an_index_that_was_changed(out):
    edit_index(out, lambda rows: rows[0].update(view_position="LL"), seal=False)
    with pytest.raises(ValueError, match=r"index\.parquet is not the one that dataset.json lists"):
        ShardFolder(out)


def _first_of(out):
    folder = ShardFolder(out)
    return folder.sample(folder.keys()[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shard": "../../etc/passwd"}, "shards or keys that no build writes"),
        ({"shard": "/etc/passwd"}, "shards or keys that no build writes"),
        ({"key": "../../.bashrc"}, "shards or keys that no build writes"),
        ({"json_offset": -512}, "no member of a shard lies at byte -512"),
        ({"json_length": -1}, "no member of a shard lies"),
        ({"json_offset": 2**40}, "shorter than its index says"),
    ],
    ids=str,
)
def test_an_index_that_points_outside(out, changes, says):
    edit_index(out, lambda rows: rows[0].update(changes))
    with pytest.raises(ValueError, match=says):
        _first_of(out)


@pytest.mark.parametrize("role", ["image", "gaze"])
def test_a_flipped_bit_is_found_by_reader_and_lint(out, role):
    key = two_of_a_shard(out)[0]
    row = ShardFolder(out).row(key)
    path = out / str(row["shard"])
    data = bytearray(path.read_bytes())
    data[row[f"{role}_offset"] + row[f"{role}_length"] // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        decode(ShardFolder(out).sample(key).image)
    assert key in {problem.key for problem in lint(out, workers=1).problems}


def test_a_tar_cut_short(out):
    key = two_of_a_shard(out)[1]
    row = ShardFolder(out).row(key)
    path = out / str(row["shard"])
    path.write_bytes(path.read_bytes()[: row["maps_offset"] + 7])
    with pytest.raises(ValueError, match=rf"^{row['shard']} is shorter than its index says for {key}"):
        ShardFolder(out).sample(key)
    assert {"size", "tar"} <= {problem.kind for problem in lint(out, workers=1).problems}


# --- what the fuzzer found


def test_a_dicom_with_the_pixels_of_five_frames_and_no_word_of_them(tmp_path):
    ref = picture_of(tmp_path, dicom(Rows=8), "dicom")
    refused(read_image, ref, reason="image_corrupt", says="the DICOM file cannot be read")


@pytest.mark.parametrize("byte", [0xFF, 0xE9])
def test_an_index_whose_text_is_no_utf_8(out, byte):
    split = pq.read_table(out / "index.parquet")["split"][0].as_py().encode()
    data = (out / "index.parquet").read_bytes()
    (out / "index.parquet").write_bytes(data.replace(split, bytes([byte]) + split[1:]))
    assert {"index", "checksum"} <= {problem.kind for problem in lint(out, workers=1).problems}
    with pytest.raises(ValueError, match=r"index\.parquet cannot be read"):
        ShardFolder(out)


@pytest.mark.parametrize("tables_listed", [{}, [], None])
def test_a_manifest_that_lists_no_index(out, tables_listed):
    manifest = json.loads((out / "dataset.json").read_text()) | {"tables": tables_listed}
    (out / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"index\.parquet is not the one that dataset\.json lists"):
        ShardFolder(out)


def test_a_path_longer_than_paths_can_be_is_an_image_that_is_missing(tables, tmp_path, inline):
    tables.image("whole")
    tables.images.append(f"long,{'a' * 5000}.png,s2,train")
    build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL))
    assert list(pd.read_parquet(tmp_path / "out" / "rejected.parquet")["reason"]) == ["image_missing"]


@pytest.mark.parametrize(("reader", "column"), [("reflacx metadata", "subject_id"), ("mimic metadata", "study_id")])
def test_an_id_longer_than_names_of_folders_can_be_is_refused(readers, reader, column):
    (seed,) = readers[reader].seeds
    table = pd.read_csv(io.BytesIO(seed), dtype=str, keep_default_na=False)
    table.loc[0, column] = "9" * 400
    with pytest.raises(InputError, match=f"column '{column}' is not a number"):
        readers[reader].read(table.to_csv(index=False).encode())


# --- anything at random


def test_a_few_hundred_inputs_of_the_fuzzer(readers):
    """`make fuzz` runs a hundred thousand more; see docs/reliability.md."""
    few = {reader.name: 25 if reader.share > 1 else 1 for reader in readers.values()}
    told = {
        f"{name} {number}: {what}"
        for name, count in few.items()
        for number in range(count)
        if (what := outcome(readers[name], input_of(readers[name], number))).startswith("!")
    }
    assert not told
