"""Bad input: each message says what, where and the cure, tells no secret, and nothing finished is lost."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from recorded import SMALL, Tables, sources_of, tree

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.jobs import BuildError
from gazeprep.shards import ShardFolder

SECRET = "Mr Doe has a left effusion"
NOBODY = 65534


@pytest.fixture
def own(corpus, tmp_path):
    """A copy of the corpus that a test may break."""
    return Path(shutil.copytree(corpus.out, tmp_path / "own"))


@pytest.fixture
def own_tables(corpus, tmp_path):
    """The same without the DICOM files."""
    return Path(shutil.copytree(corpus.out, tmp_path / "own", ignore=shutil.ignore_patterns("*.dcm", "truth")))


@pytest.fixture
def out(shards, tmp_path):
    """A finished build, which a failing one must leave as it is."""
    return Path(shutil.copytree(shards, tmp_path / "out"))


@pytest.fixture(scope="module")
def secrets(corpus):
    """Every source id, and every line of every report and transcript."""
    images = pd.read_csv(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-metadata.csv.gz", dtype=str)
    found = {SECRET, *(path.name for path in (corpus.reflacx / "main_data").glob("P*"))}
    for column in ("dicom_id", "study_id", "subject_id"):
        found |= {*images[column]}
    texts = [*corpus.mimic_cxr.rglob("s*.txt"), *corpus.reflacx.rglob("transcription.txt")]
    for path in texts:
        found |= {line.strip() for line in path.read_text().splitlines() if len(line.strip()) > 20}
    assert len(found) > 100
    return found


@pytest.fixture
def run(capsys, tmp_path, secrets, inline):
    """Run the command line on sources; return its exit code and what it printed, which tells no secret."""

    def run_build(out, sources):
        named = [f"--sources.{name}={folder}" for name, folder in sources.items()]
        picture = ("--sample.picture.resize.size_px=64", "--sample.maps.px_per_deg=37.5", "--shard_samples=4")
        code = main(["build", f"--out={out}", *picture, *named])
        printed = "".join(capsys.readouterr())
        assert_discreet(printed, secrets, tmp_path)
        return code, printed

    return run_build


def assert_discreet(text, secrets, tmp_path):
    assert not [secret for secret in secrets if secret in text]
    assert str(tmp_path) not in text
    assert "Traceback" not in text


def folders(own, **changes):
    known = {"reflacx": "reflacx", "egd": "egd-cxr", "mimic": "mimic-cxr", "mimic_jpg": "mimic-cxr-jpg"}
    return {name: own / folder for name, folder in known.items()} | changes


def edit(path, change):
    """Change a csv table in place."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(path, index=False)


def set_cell(row, column, value):
    def change(table):
        table.loc[row, column] = value

    return change


def twice(row):
    return lambda table: pd.concat([table, table.iloc[[row]]])


def renamed(column, name):
    return lambda table: table.rename(columns={column: name})


# --- what stops a build before it touches anything


def other(own, name, folder):
    return folders(own, **{name: own / folder})


def edited(own, path, change):
    edit(own / path, change)
    return folders(own)


def removed(own, path):
    (own / path).unlink()
    return folders(own)


def headless(own, path):
    """Drop the header, so that the first row, with its ids, is taken for one."""
    table = pd.read_csv(own / path, dtype=str, keep_default_na=False)
    table.to_csv(own / path, index=False, header=False)
    return folders(own)


def cut_short(own, path):
    data = (own / path).read_bytes()
    (own / path).write_bytes(data[: len(data) // 2])
    return folders(own)


METADATA = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz"
SPLIT = "mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv.gz"
CHEXPERT = "mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv.gz"
PHASE_1 = "reflacx/main_data/metadata_phase_1.csv"
EGD = "egd-cxr/fixations.csv"
MASTER = "egd-cxr/master_sheet.csv"

STOPS = {
    "wrong REFLACX folder": (
        lambda own: other(own, "reflacx", "reflacx/main_data"),
        "the REFLACX folder does not exist or holds no main_data/metadata_phase_{1,2,3}.csv; "
        "pass the folder that contains main_data",
    ),
    "wrong EGD folder": (
        lambda own: other(own, "egd", "reflacx"),
        "the EGD-CXR folder does not exist or holds no master_sheet.csv; pass the folder that contains",
    ),
    "wrong MIMIC folder": (
        lambda own: other(own, "mimic", "mimic-cxr/files"),
        "the MIMIC-CXR folder holds none of files/p10 to files/p19",
        "give the folder above it",
    ),
    "no such folder": (
        lambda own: other(own, "mimic_jpg", "nowhere"),
        "the MIMIC-CXR-JPG folder does not exist; check its path",
    ),
    "missing table": (lambda own: removed(own, EGD), "EGD-CXR fixations.csv is missing; check the folder"),
    "wrong column in EGD": (
        lambda own: edited(own, EGD, renamed("X_ORIGINAL", "X_ORIG")),
        "EGD-CXR fixations.csv has no column 'X_ORIGINAL'",
        "but has 'X_ORIG'",
    ),
    "wrong column in REFLACX": (
        lambda own: edited(own, PHASE_1, renamed("split", "subset")),
        "REFLACX metadata_phase_1.csv has no column 'split'",
        "Check that this is the right file",
    ),
    "wrong column in MIMIC": (
        lambda own: edited(own, METADATA, renamed("ViewPosition", "View")),
        "MIMIC metadata table has no column 'ViewPosition'",
    ),
    "no header": (
        lambda own: headless(own, SPLIT),
        "MIMIC split table has no column 'dicom_id', 'subject_id', 'study_id', 'split' among its 4",
        "its first line is the header",
    ),
    "text for a number": (
        lambda own: edited(own, EGD, set_cell(5, "Y_ORIGINAL", SECRET)),
        "EGD-CXR fixations.csv, row 6, column 'Y_ORIGINAL' is 26 characters of text, not a finite number; correct",
    ),
    "NaN coordinate": (
        lambda own: edited(own, EGD, set_cell(7, "X_ORIGINAL", "nan")),
        "EGD-CXR fixations.csv, row 8, column 'X_ORIGINAL' is 'nan', not a finite number; correct the cell or remove",
    ),
    "negative duration": (
        lambda own: edited(own, EGD, set_cell(9, "FPOGD", "-0.2")),
        "EGD-CXR fixations.csv, row 10, column 'FPOGD' is a negative duration; correct the cell",
    ),
    "id twice in EGD": (lambda own: edited(own, MASTER, twice(1)), "repeats 1 of its dicom_ids; keep one row of each"),
    "id twice in REFLACX": (
        lambda own: edited(own, PHASE_1, twice(0)),
        "1 REFLACX ids stand in the metadata tables more than once; keep one row of each",
    ),
    "id twice in MIMIC": (
        lambda own: edited(own, METADATA, twice(2)),
        "MIMIC metadata table, rows 3 and 20 have the same dicom_id; remove one of them",
    ),
    "subject in two splits": (
        lambda own: edited(own, SPLIT, set_cell(0, "split", "test")),
        "MIMIC split table: 1 of 12 subjects are in more than one split, the first in row 1 (test) and row 2 (train)",
        "give all images of a subject one split",
    ),
    "unknown split": (
        lambda own: edited(own, PHASE_1, set_cell(1, "split", SECRET)),
        "REFLACX metadata_phase_1.csv, row 2, column 'split' is none of train, validate, test; correct the cell",
    ),
    "unknown label": (
        lambda own: edited(own, CHEXPERT, set_cell(1, "Edema", "maybe")),
        "chexpert label table, row 2, column 'Edema' is none of 1.0, 0.0, -1.0 and blank",
    ),
    "cut table": (
        lambda own: cut_short(own, METADATA),
        "MIMIC metadata table cannot be read as a table (EOFError); download it again",
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_bad_source_stops_the_build_and_leaves_what_is_finished(own_tables, out, run, shards, name):
    damaged, *parts = STOPS[name]
    code, printed = run(out, damaged(own_tables))
    assert code == 1
    for part in parts:
        assert part in printed
    assert printed.startswith("gazeprep build: ")
    assert tree(out) == tree(shards)


def test_a_table_with_the_same_reading_twice_stops_the_build(tables, tmp_path, run):
    tables.image("im-secret")
    tables.images *= 2
    source = tables.source()
    code, printed = run(tmp_path / "out", {"table.images": source.images})
    assert code == 1
    assert "the table of images repeats 1 of its image_ids; keep one row of each" in printed
    assert "im-secret" not in printed
    assert not (tmp_path / "out").exists()


# --- what costs one input


def reading_file(own, name):
    """A file of the one reading of its image, and the number of samples that need it."""
    reading = sorted((own / "reflacx" / "main_data").glob("P3*"))[0]
    return reading / name


def picture(own):
    """The DICOM file of an image without gaze."""
    read = {*pd.read_csv(own / MASTER)["dicom_id"]}
    for path in (own / "reflacx" / "main_data").glob("metadata_*.csv"):
        read |= {*pd.read_csv(path)["dicom_id"]}
    return next(path for path in sorted((own / "mimic-cxr").rglob("*.dcm")) if path.stem not in read)


def as_jpg(own, pixels):
    """Put a JPEG of other pixels in the place of a picture; returns the sources that take it."""
    jpg = own / "mimic-cxr-jpg" / picture(own).relative_to(own / "mimic-cxr").with_suffix(".jpg")
    jpg.write_bytes(pixels if isinstance(pixels, bytes) else cv2.imencode(".jpg", pixels)[1].tobytes())
    return {"mimic_jpg": own / "mimic-cxr-jpg"}


def broken_dicom(keep):
    def damage(own):
        path = picture(own)
        path.write_bytes(path.read_bytes()[:keep])

    return damage


def empty_dicom(own):
    import pydicom

    dataset = pydicom.dcmread(picture(own))
    dataset.Rows = 0
    dataset.save_as(picture(own))


def edited_reading(name, change):
    return lambda own: edit(reading_file(own, name), change)


def resized_jpg(own):
    read = pd.read_csv(own / PHASE_1)["dicom_id"][0]
    (path,) = (own / "mimic-cxr-jpg").rglob(f"{read}.jpg")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    path.write_bytes(cv2.imencode(".jpg", image[::2, ::2])[1].tobytes())
    return {"reflacx": own / "reflacx", "mimic_jpg": own / "mimic-cxr-jpg"}


REJECTS = {
    "NaN coordinate": (
        edited_reading("fixations.csv", set_cell(3, "x_position", "nan")),
        "bad_number",
        "REFLACX fixations.csv, row 4, column 'x_position' is 'nan', not a finite number; correct the cell or remove",
    ),
    "text for a number": (
        edited_reading("fixations.csv", set_cell(0, "y_position", SECRET)),
        "bad_number",
        "REFLACX fixations.csv, row 1, column 'y_position' is 26 characters of text",
    ),
    "wrong column": (
        edited_reading("fixations.csv", renamed("y_position", "y")),
        "wrong_columns",
        "REFLACX fixations.csv has no column 'y_position' among its 17",
    ),
    "negative duration": (
        edited_reading("fixations.csv", set_cell(2, "timestamp_end_fixation", "0.01")),
        "bad_cell",
        "REFLACX fixations.csv, row 3, column 'timestamp_end_fixation' lies before the fixation's start",
        "correct the cell",
    ),
    "text for a word's time": (
        edited_reading("timestamps_transcription.csv", set_cell(1, "timestamp_start_word", "soon")),
        "bad_number",
        "REFLACX timestamps_transcription.csv, row 2, column 'timestamp_start_word' is 4 characters of text",
    ),
    "cut table": (
        lambda own: reading_file(own, "fixations.csv").write_bytes(b""),
        "unreadable_table",
        "REFLACX fixations.csv cannot be read as a table (EmptyDataError); download it again",
    ),
    "transcript": (
        lambda own: reading_file(own, "transcription.txt").write_bytes(b"\xff\xfe left effusion"),
        "bad_transcript",
        "REFLACX transcription.txt cannot be read (UnicodeDecodeError); download it again",
    ),
    "phrases": (
        lambda own: next(own.rglob("transcript.json")).write_text(f'{{"full_text": "{SECRET}"'),
        "bad_transcript",
        "EGD-CXR transcript.json cannot be read as json",
    ),
    "empty image file": (broken_dicom(0), "image_corrupt", "the DICOM file cannot be read; download it again"),
    "truncated image": (broken_dicom(50_000), "image_corrupt", "the DICOM file cannot be read; download it again"),
    "image of no rows": (empty_dicom, "image_empty", "the image is", "x 0 pixels; remove it from the input"),
    "truncated JPEG": (
        lambda own: as_jpg(own, cv2.imencode(".jpg", np.eye(200, dtype=np.uint8) * 200)[1].tobytes()[:-300]),
        "image_corrupt",
        "the image file is damaged or cut short; download it again",
    ),
    "no JPEG": (
        lambda own: as_jpg(own, b"<html>login</html>"),
        "image_corrupt",
        "the image file is neither PNG nor JPEG; download it again",
    ),
    "a strip": (
        lambda own: as_jpg(own, np.zeros((2, 900), np.uint8)),
        "image_too_narrow",
        "the image is 900 x 2 px, no radiograph; remove it",
    ),
    "resized image": (
        resized_jpg,
        "image_size_mismatch",
        " px, its table says ",
        "use the release's own image, not a resized copy",
    ),
}
SEVERAL = {"resized image": 4}  # readings of one image


@pytest.mark.parametrize("name", REJECTS)
def test_a_bad_input_is_rejected_with_its_reason_and_the_others_stay(own, out, run, shards, secrets, tmp_path, name):
    damage, reason, *parts = REJECTS[name]
    changed = damage(own)
    sources = changed if isinstance(changed, dict) else folders(own)
    code, printed = run(out, sources)
    assert code == 0
    rejected = pd.read_parquet(out / "rejected.parquet")
    details = rejected.loc[rejected["reason"] == reason, "detail"]
    assert len(details) == SEVERAL.get(name, 1)
    assert f"rejected: {len(details)} x {reason}\n" in printed
    for detail in details:
        assert all(part in detail for part in parts), detail
        assert_discreet(detail, secrets, tmp_path)
    kept = ShardFolder(out).keys()
    assert f"inputs {len(kept) + len(rejected)} = samples {len(kept)} + rejected {len(rejected)}\n" in printed
    if len(sources) == 4:
        assert set(kept) == set(ShardFolder(shards).keys()) - set(rejected["key"])


def test_an_unreadable_zip_of_reports_stops_the_build(corpus, tmp_path, run):
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "mimic-cxr-reports.zip").write_bytes(b"PK cut")
    code, printed = run(tmp_path / "out", {"mimic": tmp_path / "zip", "mimic_jpg": corpus.mimic_cxr_jpg})
    assert code == 1
    assert "mimic-cxr-reports.zip cannot be opened (BadZipFile); download it again" in printed


def test_a_damaged_report_in_a_zip_costs_its_study(corpus, tmp_path, run):
    root = tmp_path / "zip"
    root.mkdir()
    texts = sorted((corpus.mimic_cxr / "files").rglob("s*.txt"))
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for path in texts:
            archive.write(path, path.relative_to(corpus.mimic_cxr))
    data = (root / "mimic-cxr-reports.zip").read_bytes()
    words = texts[0].read_bytes()[40:60]
    (root / "mimic-cxr-reports.zip").write_bytes(data.replace(words, b"#" * len(words), 1))
    code, printed = run(tmp_path / "out", {"mimic": root, "mimic_jpg": corpus.mimic_cxr_jpg})
    assert code == 0
    assert "x report_unreadable" in printed


# --- the output folder


def test_an_output_path_that_is_a_file_is_refused(own, tmp_path, run):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, printed = run(out, folders(own))
        assert code == 1
        assert "the output path runs through a file: choose another --out" in printed
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def as_nobody():
    """Give up root's rights for a while, where there are any."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def open_tables():
    """Tables of six images in a folder that everybody may enter, and write into."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o777)
        tables = Tables(root / "tables")
        tables.root.mkdir()
        for i in range(6):
            tables.image(f"im{i}")
            tables.reading(f"reading-{i}", f"im{i}")
        yield tables


def test_no_permission_to_write_is_said(open_tables, run):
    source = open_tables.source()
    out = open_tables.root.parent / "out"
    out.mkdir(mode=0o555)
    with as_nobody():
        code, printed = run(out, {"table.images": source.images})
    assert code == 1
    assert (
        "gazeprep build: no permission to write into the output folder: choose another --out; finished shards"
        in printed
    )
    assert not list(out.iterdir())


def test_a_finished_build_without_permission_stays(open_tables, inline):
    config = BuildConfig(open_tables.root.parent / "out", Sources(table=open_tables.source()), SMALL, shard_samples=2)
    build(config)
    finished = tree(config.out)
    for path in (config.out, config.out / ".build"):
        path.chmod(0o555)
    (config.out / ".build" / "lock").chmod(0o444)
    with as_nobody(), pytest.raises(BuildError, match="no permission"):
        build(config)
    assert tree(config.out) == finished
    for path in (config.out, config.out / ".build"):  # so that it can be removed
        path.chmod(0o755)


def test_an_image_that_may_not_be_read_is_rejected_until_it_may(open_tables, inline):
    source = open_tables.source()
    config = BuildConfig(open_tables.root.parent / "out", Sources(table=source), SMALL, shard_samples=2)
    closed = open_tables.root / "im3.png"
    closed.chmod(0)
    with as_nobody():
        first = build(config)
        details = pd.read_parquet(config.out / "rejected.parquet")
    assert first.reasons == {"image_missing": 1}
    assert "the raster image file cannot be opened (PermissionError)" in details["detail"][0]
    closed.chmod(0o644)
    with as_nobody():
        second = build(config)
    assert (second.samples, second.rejected, second.rebuilt) == (6, 0, 1)


def test_a_source_folder_that_may_not_be_read_stops_the_build(open_tables, run):
    source = open_tables.source()
    open_tables.root.chmod(0)
    try:
        with as_nobody():
            code, printed = run(open_tables.root.parent / "out", {"table.images": source.images})
    finally:
        open_tables.root.chmod(0o755)
    assert code == 1
    assert "table of images" in printed
    assert "PermissionError" in printed


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.getuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_stops_the_build_and_loses_nothing(small_disk, config_of, shards, corpus, run, inline):
    out = small_disk / "out"
    code, printed = run(
        out, {name: getattr(sources_of(corpus), name) for name in ("reflacx", "egd", "mimic", "mimic_jpg")}
    )
    assert code == 1
    assert (
        "the disk of the output folder is full: free space; finished shards stay, run the same command to go on"
        in printed
    )
    whole = tree(shards)
    kept = {name: data for name, data in tree(out).items() if name.endswith(".tar")}
    assert kept
    assert all(data == whole[name] for name, data in kept.items())
    assert not [path for path in out.rglob("*") if path.name.endswith((".unfinished", ".tmp"))]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    report = build(config_of(out))
    assert report.rebuilt == report.shards - len(kept)
    assert tree(out) == whole


@pytest.mark.parametrize("kept", [0, 3])
def test_a_limit_on_file_sizes_stops_the_build_and_loses_nothing(config_of, shards, tmp_path, inline, kept):
    """The other way in which a file system says no, in any environment."""
    out, whole = tmp_path / "out", tree(shards)
    tars = [name for name in whole if name.endswith(".tar")]
    if kept:
        shutil.copytree(shards, out)
        for name in tars[kept:]:
            (out / name).unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(BuildError, match="larger than a file may be here: raise the limit, or lower shard_samples"):
            build(config_of(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [name for name in tree(out) if name.endswith(".tar")] == tars[:kept]
    assert not [path for path in out.rglob("*") if path.name.endswith((".unfinished", ".tmp"))]
    assert build(config_of(out)).samples == 26
    assert tree(out) == whole


@pytest.mark.slow
def test_a_worker_reports_a_full_disk_as_the_build_itself_does(config_of, tmp_path):
    code = (
        "import resource, sys; from gazeprep.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); sys.exit(main(sys.argv[1:]))"
    )
    sources = [f"--sources.mimic={config_of(tmp_path).sources.mimic}"]
    done = subprocess.run(
        [sys.executable, "-c", code, "build", f"--out={tmp_path / 'out'}", "--workers=2", *sources],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "a shard is larger than a file may be here" in done.stderr
    assert "Traceback" not in done.stderr
