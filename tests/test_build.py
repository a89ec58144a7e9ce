"""Builds: byte-identical whatever the workers, kills and detours; only what a change affects is built again."""

import json
import os
import shutil
import signal
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from attacks import (
    HAVE_PROC,
    adopting,
    assert_only_whole_files,
    build_options,
    finals,
    finished_shards,
    halves,
    running,
    wait_until,
)
from recorded import SMALL, sources_of, tree

from gazeprep import jobs, samples
from gazeprep.build import BuildConfig, BuildReport, build, jobs_of
from gazeprep.cases import Inputs, Sources, collect
from gazeprep.exports import ExportConfig, export
from gazeprep.images import Resize
from gazeprep.jobs import BuildError
from gazeprep.report import write_report
from gazeprep.samples import PictureConfig
from gazeprep.schema import SPLITS, InputError
from gazeprep.shards import FolderLock, ShardFolder, sha256_of

WIDER = replace(SMALL, maps=replace(SMALL.maps, sigma_deg=2.0))


def states(out):
    """What tells a shard that was written again from one that was left alone."""
    found = {path.name: path.stat() for path in out.rglob("*.tar")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def rewritten(before, out):
    return {name for name, state in states(out).items() if before.get(name) != state}


def shards_of(out, query):
    return {Path(shard).name for shard in ShardFolder(out).index.query(query)["shard"]}


@pytest.fixture(scope="module")
def singles(config_of, tmp_path_factory):
    """A build of the corpus with one sample a shard. Read only."""
    out = tmp_path_factory.mktemp("singles") / "out"
    build(config_of(out, shard_samples=1, workers=2))
    return out


@pytest.fixture
def out(shards, tmp_path):
    """A copy of the finished build with 4 inputs a shard, which a test may change."""
    return Path(shutil.copytree(shards, tmp_path / "out"))


@pytest.fixture
def out_singles(singles, tmp_path):
    """A copy of the finished build with one sample a shard, which a test may change."""
    return Path(shutil.copytree(singles, tmp_path / "singles"))


# --- the same bytes


@pytest.mark.parametrize("workers", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_the_number_of_workers_changes_no_byte(shards, config_of, tmp_path, workers):
    build(config_of(tmp_path / "out", workers=workers))
    assert tree(tmp_path / "out") == tree(shards)


def test_one_process_alone_changes_no_byte_and_a_second_run_builds_nothing(config_of, tmp_path, inline, shards):
    first = build(config_of(tmp_path / "out"))
    before = states(tmp_path / "out")
    second = build(config_of(tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(shards)
    assert (first.rebuilt, second.rebuilt) == (first.shards, 0)
    assert replace(second, rebuilt=first.rebuilt) == first
    assert not rewritten(before, tmp_path / "out")


def test_moving_the_sources_builds_nothing(corpus, config_of, tmp_path, inline, out, shards):
    moved = shutil.copytree(corpus.out, tmp_path / "elsewhere")
    names = {"reflacx": "reflacx", "egd": "egd-cxr", "mimic": "mimic-cxr", "mimic_jpg": "mimic-cxr-jpg"}
    report = build(config_of(out, Sources(**{name: moved / folder for name, folder in names.items()})))
    assert report.rebuilt == 0
    assert tree(out) == tree(shards)


def test_the_report_counts_what_the_index_holds(config_of, inline, out):
    report, folder = build(config_of(out)), ShardFolder(out)
    assert report == BuildReport(
        inputs=28,
        samples=len(folder),
        rejected=2,
        reasons={"eye_tracking_discarded": 2},
        noted=folder.manifest["counts"]["noted"],
        empty=folder.manifest["counts"]["empty"],
        shards=folder.index["shard"].nunique(),
        rebuilt=0,
    )


def test_shards_take_cases_in_the_order_of_their_hashes(corpus):
    inputs = collect(sources_of(corpus))
    jobs_made = jobs_of(inputs, 4)
    assert [job.name for job in jobs_made] == [
        f"{split}-{number:05d}"
        for split in SPLITS
        for number in range(-(-sum(case.split == split for case in inputs.cases) // 4))
    ]
    for split in SPLITS:
        keys = [case.key[-12:] for job in jobs_made if job.split == split for case in job.cases]
        assert keys == sorted(keys)
    assert all(job.cases for job in jobs_made)
    assert jobs_of(Inputs(inputs.cases[::-1], (), {}), 4)[0].cases == jobs_made[0].cases


# --- changing the config


def test_another_sigma_leaves_shards_without_gaze_and_every_picture(
    config_of, tmp_path, inline, monkeypatch, out_singles
):
    def decoded_again(_):
        raise AssertionError("a picture was decoded again")

    before, read = states(out_singles), shards_of(out_singles, "fixations > 0")
    with monkeypatch.context() as patched:
        patched.setattr(samples, "read_image", decoded_again)
        report = build(config_of(out_singles, shard_samples=1, sample=WIDER))
    assert rewritten(before, out_singles) == read
    assert report.rebuilt == len(read) == 16 < report.shards
    build(config_of(tmp_path / "fresh", shard_samples=1, sample=WIDER))
    assert tree(out_singles) == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    "sample",
    [
        replace(SMALL, alignment=replace(SMALL.alignment, lead_s=0.5)),
        replace(SMALL, filters=replace(SMALL.filters, min_duration_s=0.3)),
    ],
    ids=["lead", "filter"],
)
@pytest.mark.slow
def test_other_options_of_gaze_build_again_what_has_gaze(config_of, tmp_path, inline, sample, out_singles):
    before = states(out_singles)
    build(config_of(out_singles, shard_samples=1, sample=sample))
    assert rewritten(before, out_singles) == shards_of(out_singles, "fixations > 0")
    build(config_of(tmp_path / "fresh", shard_samples=1, sample=sample))
    assert tree(out_singles) == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(replace(SMALL, maps=replace(SMALL.maps, grid=(16, 16))), marks=pytest.mark.slow),
        replace(SMALL, picture=PictureConfig(Resize("long_edge", 64))),
        pytest.param(replace(SMALL, picture=PictureConfig(Resize(size_px=64), format="jpg")), marks=pytest.mark.slow),
    ],
    ids=["grid", "resize", "format"],
)
def test_another_grid_or_picture_builds_everything_again(config_of, tmp_path, inline, sample, out):
    report = build(config_of(out, sample=sample))
    assert report.rebuilt == report.shards
    build(config_of(tmp_path / "fresh", sample=sample))
    assert tree(out) == tree(tmp_path / "fresh")


def test_other_shard_sizes_leave_no_stale_shard(config_of, tmp_path, inline, out_singles, shards):
    build(config_of(out_singles))
    assert tree(out_singles) == tree(shards)


def test_other_versions_build_everything_again(tables, tmp_path, inline, monkeypatch):
    for name in ("one", "two", "three"):
        tables.image(name)
    config = BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL, shard_samples=1)
    build(config)
    monkeypatch.setattr(jobs, "versions", lambda: {"numpy": "0.0"})
    assert build(config).rebuilt == 3


def test_removing_a_source_removes_its_samples_and_stale_shards(corpus, config_of, tmp_path, inline, out_singles):
    fewer = Sources(reflacx=corpus.reflacx, mimic_jpg=corpus.mimic_cxr_jpg, views=("PA",))
    build(config_of(out_singles, fewer, shard_samples=1))
    build(config_of(tmp_path / "fresh", fewer, shard_samples=1))
    assert tree(out_singles) == tree(tmp_path / "fresh")
    assert {path.name for path in out_singles.iterdir()} == {path.name for path in (tmp_path / "fresh").iterdir()}


# --- changed files


@pytest.fixture
def own_copy(corpus, tmp_path):
    """A copy of the corpus that a test may change."""
    shutil.copytree(corpus.out, tmp_path / "copy")
    return Sources(
        reflacx=tmp_path / "copy" / "reflacx",
        egd=tmp_path / "copy" / "egd-cxr",
        mimic=tmp_path / "copy" / "mimic-cxr",
        mimic_jpg=tmp_path / "copy" / "mimic-cxr-jpg",
    )


def touch(path):
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000_000))


def test_a_changed_file_builds_its_own_shards_again(own_copy, config_of, inline, out_singles):
    finished = tree(out_singles)
    dicom = pd.read_csv(own_copy.reflacx / "main_data" / "metadata_phase_1.csv")["dicom_id"][0]
    reading = next((own_copy.reflacx / "main_data").glob("P3*"))
    report = next((own_copy.mimic / "files").rglob("s*.txt"))
    for path, query in (
        (reading / "fixations.csv", f"reading == '{reading.name}'"),
        (reading / "timestamps_transcription.csv", f"reading == '{reading.name}'"),
        (next(own_copy.mimic.rglob(f"{dicom}.dcm")), f"dicom == '{dicom}'"),
        (report, f"study == '{report.stem[1:]}'"),
        (own_copy.egd / "fixations.csv", "dataset == 'egd-cxr'"),
    ):
        touch(path)
        before = states(out_singles)
        build(config_of(out_singles, own_copy, shard_samples=1))
        assert rewritten(before, out_singles) == shards_of(out_singles, query)
    assert tree(out_singles) == finished


def test_changed_rows_of_a_table_change_the_samples(own_copy, config_of, inline, out_singles):
    path = own_copy.mimic_jpg / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, "Fracture"] = "-1.0"
    table.to_csv(path, index=False)
    before, study = states(out_singles), table.loc[0, "study_id"]
    build(config_of(out_singles, own_copy, shard_samples=1))
    assert rewritten(before, out_singles) == shards_of(out_singles, f"study == '{study}'")
    folder = ShardFolder(out_singles)
    for key in folder.index.query(f"study == '{study}'")["key"]:
        assert folder.sample(key).record["labels"]["Fracture"] == -1


def test_a_missing_file_is_used_once_it_is_there(own_copy, config_of, tmp_path, inline, out, shards):
    words = next((own_copy.reflacx / "main_data").glob("P3*")) / "timestamps_transcription.csv"
    words.rename(tmp_path / "aside")
    assert build(config_of(out, own_copy)).rebuilt == 1
    assert tree(out) != tree(shards)
    (tmp_path / "aside").rename(words)
    assert build(config_of(out, own_copy)).rebuilt == 1
    assert tree(out) == tree(shards)


def test_a_rejected_input_is_tried_again_once_its_file_is_mended(own_copy, config_of, inline, out, shards):
    path = next(own_copy.mimic.rglob("*.dcm"))
    kept, whole = path.stat(), path.read_bytes()
    path.write_bytes(whole[:5000])
    broken = build(config_of(out, own_copy))
    assert broken.inputs == broken.samples + broken.rejected == 28
    assert broken.reasons["image_corrupt"] > 0
    path.write_bytes(whole)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert build(config_of(out, own_copy)).samples == 26
    assert tree(out) == tree(shards)


# --- files that change or vanish while a build runs


def change_after_planning(monkeypatch, change):
    """Let the next build find sources changed behind it when its jobs begin."""

    def jobs_then_change(inputs, shard_samples):
        planned = jobs_of(inputs, shard_samples)
        change()
        return planned

    monkeypatch.setattr("gazeprep.build.jobs_of", jobs_then_change)


def change_many_sources(own):
    """Change a file of each kind, and let one of each vanish; returns the reasons that the latter give."""
    readings = sorted((own.reflacx / "main_data").glob("P3*"))
    dicoms, reports = sorted(own.mimic.rglob("*.dcm")), sorted(own.mimic.rglob("s*.txt"))
    labels = own.mimic_jpg / "mimic-cxr-2.0.0-chexpert.csv.gz"
    pd.read_csv(labels, dtype=str).assign(Fracture="1.0").to_csv(labels, index=False)
    gaze = pd.read_csv(own.egd / "fixations.csv", dtype=str, keep_default_na=False)
    gaze.assign(FPOGD="0.25").to_csv(own.egd / "fixations.csv", index=False)
    words = pd.read_csv(readings[0] / "timestamps_transcription.csv", dtype=str)
    words.assign(word="new").to_csv(readings[0] / "timestamps_transcription.csv", index=False)
    reports[0].write_text("FINDINGS: quite another text.")
    dicoms[0].write_bytes(dicoms[1].read_bytes())
    (readings[1] / "fixations.csv").unlink()
    dicoms[-1].unlink()
    reports[2].unlink()


def test_sources_that_change_after_planning_are_built_as_they_are_now_by_the_next_build(
    own_copy, config_of, tmp_path, inline, monkeypatch, shards
):
    config = config_of(tmp_path / "out", own_copy)
    with monkeypatch.context() as patched:
        change_after_planning(patched, lambda: change_many_sources(own_copy))
        between = build(config)
    assert between.inputs == between.samples + between.rejected == 28
    assert {"image_missing", "report_unreadable", "file_missing"} <= between.reasons.keys()
    build(config)
    build(replace(config, out=tmp_path / "fresh"))
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh") != tree(shards)


@pytest.fixture
def pictures(tables, tmp_path, inline):
    """Three pictures in one shard, and what a build of them is."""
    for name in ("one", "two", "three"):
        tables.image(name)
    return BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL)


def meddle(monkeypatch, name, *ways):
    """Let a picture be read in each of these ways, one each time, when its file has been looked at already."""
    read, left = samples.read_image, list(ways)

    def meddled(ref):
        return left.pop(0)(lambda: read(ref)) if ref.path == name and left else read(ref)

    monkeypatch.setattr(samples, "read_image", meddled)


def other_pixels(path):
    """The bytes of a picture of the same size in pixels and in bytes."""
    data = cv2.imencode(".png", np.full((40, 30), 91, np.uint8))[1].tobytes()
    assert len(data) == path.stat().st_size
    return data


def write_as_if_never(path, data):
    """Change a file and put its time back, as a copy that keeps times does."""
    kept = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def test_a_picture_that_changes_while_it_is_read_and_changes_back_leaves_no_trace(
    pictures, tables, tmp_path, monkeypatch
):
    """Neither its size nor its time tell the next build that this one read something else."""
    path = tables.root / "two.png"
    former, other = path.read_bytes(), other_pixels(path)

    def exchanged(read):
        write_as_if_never(path, other)
        picture = read()
        write_as_if_never(path, former)
        return picture

    with monkeypatch.context() as patched:
        meddle(patched, "two.png", exchanged)
        assert build(pictures).samples == 3
    assert build(pictures).rebuilt == 0
    build(replace(pictures, out=tmp_path / "fresh"))
    assert tree(pictures.out) == tree(tmp_path / "fresh")


def test_a_picture_that_is_gone_while_its_shard_is_made_is_used_once_it_is_back(
    pictures, tables, tmp_path, monkeypatch
):
    path, aside = tables.root / "two.png", tmp_path / "aside"

    def vanishing(read):
        path.rename(aside)
        return read()

    with monkeypatch.context() as patched:
        meddle(patched, "two.png", vanishing)
        assert build(pictures).reasons == {"image_missing": 1}
    aside.rename(path)  # with its old time
    assert (build(pictures).rebuilt, build(pictures).rebuilt) == (1, 0)
    build(replace(pictures, out=tmp_path / "fresh"))
    assert tree(pictures.out) == tree(tmp_path / "fresh")


def test_sources_that_change_again_and_again_stop_the_build_with_nothing_under_a_final_name(
    pictures, tables, monkeypatch
):
    path = tables.root / "two.png"

    def written(read):
        write_as_if_never(path, path.read_bytes())
        return read()

    with monkeypatch.context() as patched:
        meddle(patched, "two.png", *[written] * jobs.TRIES)
        with pytest.raises(BuildError, match=r"train-00000 changed each of the 3 times.* wait for what writes"):
            build(pictures)
    assert [path.name for path in pictures.out.rglob("*") if path.is_file()] == ["lock"]
    assert build(pictures).samples == 3


def test_another_zip_of_reports_is_read_though_the_former_is_still_open(corpus, config_of, tmp_path, inline):
    root, texts = tmp_path / "zip", sorted((corpus.mimic_cxr / "files").rglob("s*.txt"))
    root.mkdir()

    def pack(change):
        with zipfile.ZipFile(root / "new", "w") as archive:
            for path in texts:
                archive.writestr(str(path.relative_to(corpus.mimic_cxr)), change(path.read_text()))
        (root / "new").replace(root / "mimic-cxr-reports.zip")

    sources = Sources(mimic=root, mimic_jpg=corpus.mimic_cxr_jpg)
    pack(str)
    build(config_of(tmp_path / "out", sources))
    pack(lambda text: text.replace("lung", "LUNG"))
    build(config_of(tmp_path / "out", sources))
    folder = ShardFolder(tmp_path / "out")
    findings = " ".join(folder.sample(key).record["findings"] for key in folder.index["key"])
    assert "LUNG" in findings
    assert "lung" not in findings


# --- clocks that are wrong


CLOCK = """
import time
asked = 0

def earlier_each_time():
    global asked
    asked += 1
    return 4e9 - 86400 * asked  # from 2096 a day back whenever it is asked

time.time = earlier_each_time
time.time_ns = lambda: int(1e9 * earlier_each_time())
"""
YEAR_NS = 365 * 86400 * 10**9


def test_times_of_the_output_mean_nothing(config_of, inline, out, shards):
    for years, path in enumerate(sorted(out.rglob("*")), start=-40):
        os.utime(path, ns=(years * YEAR_NS, years * YEAR_NS))
    assert build(config_of(out)).rebuilt == 0
    assert finals(out) == finals(shards)


def test_a_source_may_be_older_than_the_shard_that_it_changes(pictures, tables, tmp_path):
    """As where a file is restored from a backup, or the clock was put back: no time is compared with another."""
    build(pictures)
    path = tables.root / "two.png"
    path.write_bytes(other_pixels(path))
    for time_ns in (-YEAR_NS, 0, 100 * YEAR_NS, YEAR_NS):
        os.utime(path, ns=(time_ns, time_ns))
        assert (build(pictures).rebuilt, build(pictures).rebuilt) == (1, 0)
    build(replace(pictures, out=tmp_path / "fresh"))
    assert tree(pictures.out) == tree(tmp_path / "fresh")


@pytest.mark.slow
def test_a_clock_that_goes_back_all_the_time_changes_no_byte(corpus, tmp_path, singles):
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    commands = {
        "build": build_options(tmp_path / "build", sources_of(corpus)),
        "export": ["export", str(singles), "--format=npz", f"--out={tmp_path / 'export'}"],
        "report": ["report", str(singles), f"--out={tmp_path / 'report'}"],
        "again": build_options(tmp_path / "build", sources_of(corpus)),
    }
    for command in commands.values():
        with running(command, PYTHONPATH=str(tmp_path)) as started:
            ended = started.ended()
        assert ended.code == 0, ended.messages
    assert "shards, 0 of them built now" in ended.messages
    assert finals(tmp_path / "build") == finals(singles)
    export(ExportConfig(singles, tmp_path / "in time", "npz"))
    assert finals(tmp_path / "export") == finals(tmp_path / "in time")
    write_report(singles, tmp_path / "report in time")
    assert (tmp_path / "report").read_bytes() == (tmp_path / "report in time").read_bytes()


# --- damaged folders


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"fingerprint": 1}', "\xff", "older"])
def test_damaged_or_older_stats_build_their_shard_again(config_of, inline, out, shards, text):
    path = out / ".build" / "train-00001.json"
    if text == "older":
        stats = json.loads(path.read_text())
        del stats["rows"][0]["sentences"]
        text = json.dumps(stats)
    path.write_text(text, encoding="latin-1")
    assert build(config_of(out)).rebuilt == 1
    assert tree(out) == tree(shards)


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_a_missing_or_shortened_tar_is_built_again(config_of, inline, out, shards, damage):
    path = out / "train" / "train-00001.tar"
    data = path.read_bytes()
    path.unlink()
    if damage == "shorter":
        path.write_bytes(data[:-512])
    assert build(config_of(out)).rebuilt == 1
    assert tree(out) == tree(shards)


def test_no_picture_is_taken_from_a_tar_that_was_altered(tables, tmp_path, inline):
    tables.image("im")
    tables.reading("reader", "im")
    config = BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL)
    build(config)
    path = tmp_path / "out" / "train" / "train-00000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    build(replace(config, sample=WIDER))
    build(replace(config, sample=WIDER, out=tmp_path / "fresh"))
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_stats_never_outlive_the_tar_they_tell_of(config_of, inline, monkeypatch, out, shards):
    """Killed after a tar took its name and before its stats: going back to the former config must notice."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "json_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            build(config_of(out, sample=WIDER))
    assert build(config_of(out)).rebuilt == 1
    assert tree(out) == tree(shards)


def test_a_bug_in_one_sample_names_its_key(config_of, tmp_path, inline, monkeypatch):
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(samples, "case_context", broken)
    with pytest.raises(TypeError) as error:
        build(config_of(tmp_path / "out"))
    (note,) = error.value.__notes__
    assert note.startswith("while making sample ")
    assert not list((tmp_path / "out").rglob("*.unfinished"))


# --- killed, stopped, locked out


# (random moments, tasks and the other commands: tests/soak.py)


@pytest.fixture
def started(corpus, tmp_path):
    """A build into tmp_path / "out" by two workers, of which no process outlives the test."""
    with adopting(), running(build_options(tmp_path / "out", sources_of(corpus))) as started:
        yield started


@pytest.fixture
def unbroken(singles):
    """What a build without an interruption leaves, one sample a shard."""
    return finals(singles)


def wait_for_shards(started, out, count):
    wait_until(lambda: len(finished_shards(out)) >= count or started.process.poll() is not None)


def finish(config_of, out, unbroken):
    """Run the build again; nothing that was finished is built again, and it ends as if never broken."""
    finished, before = len(finished_shards(out)), states(out)
    report = build(config_of(out, shard_samples=1))
    assert report.rebuilt == report.shards - finished
    assert len(rewritten(before, out)) <= report.rebuilt
    assert finals(out) == unbroken
    assert not halves(out)


@pytest.mark.skipif(not HAVE_PROC, reason="finds worker processes through /proc")
def test_a_killed_build_goes_on_and_ends_as_if_never_broken(started, config_of, inline, unbroken, tmp_path):
    out = tmp_path / "out"
    wait_for_shards(started, out, 5)
    started.process.kill()
    started.process.wait(timeout=60)
    started.gone_after_s()
    assert_only_whole_files(out, unbroken)
    assert not (out / "dataset.json").exists()
    finish(config_of, out, unbroken)


@pytest.mark.skipif(not HAVE_PROC, reason="finds worker processes through /proc")
@pytest.mark.slow
def test_a_killed_worker_stops_the_build_with_a_message(started, config_of, inline, unbroken, tmp_path):
    out = tmp_path / "out"
    wait_for_shards(started, out, 5)
    started.kill(started.workers()[0])
    ended = started.ended()
    assert ended.code == 1
    assert (
        "gazeprep build: a worker process died, often for lack of memory; finished shards stay: run the same"
        in ended.messages
    )
    assert "Traceback" not in ended.messages
    started.gone_after_s()
    assert_only_whole_files(out, unbroken)
    finish(config_of, out, unbroken)


STOPS_ITSELF = """
import os, signal, sys

def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("train-00002.tar"):
        os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(hook)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers of other systems notice their parent's end a little later")
@pytest.mark.slow
def test_a_worker_in_a_long_call_does_not_outlive_its_build(corpus, tmp_path):
    """Held up in its last step, it would go on after the next build of the folder and put an old tar over a new one."""
    (tmp_path / "sitecustomize.py").write_text(STOPS_ITSELF)
    options = build_options(tmp_path / "out", sources_of(corpus))
    with adopting(), running(options, PYTHONPATH=str(tmp_path)) as started:
        wait_until(lambda: "T" in [one.state for one in started.processes()])
        started.process.kill()
        started.process.wait(timeout=60)
        started.gone_after_s()
    assert not (tmp_path / "out/train/train-00002.tar").exists()


@pytest.mark.parametrize(
    "shards_done", [3, pytest.param(0, marks=pytest.mark.slow), pytest.param(15, marks=pytest.mark.slow)]
)
def test_ctrl_c_stops_with_130_and_leaves_only_whole_files(started, config_of, inline, unbroken, tmp_path, shards_done):
    out = tmp_path / "out"
    wait_until((out / ".build" / "lock").exists)
    wait_for_shards(started, out, shards_done)
    os.killpg(started.process.pid, signal.SIGINT)
    ended = started.ended()
    # A shell calls both 130; the second where the first imports were interrupted.
    assert ended.code in (130, -signal.SIGINT)
    assert ended.messages.strip().endswith(
        "gazeprep build: stopped; finished shards stay, run the same command to go on"
    )
    assert "Traceback" not in ended.messages
    assert_only_whole_files(out, unbroken)
    assert not halves(out)
    finish(config_of, out, unbroken)


def test_a_second_build_into_the_same_folder_is_refused(config_of, inline, out, shards):
    with (
        FolderLock(out / ".build" / "lock"),
        pytest.raises(ValueError, match="another build is writing into this folder"),
    ):
        build(config_of(out))
    assert tree(out) == tree(shards)  # the manifest too


def test_a_folder_with_other_files_is_refused(config_of, tmp_path, inline):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "train-00000.tar").write_text("somebody's")
    with pytest.raises(ValueError, match="files that no build here wrote; name a new or empty folder"):
        build(config_of(tmp_path / "out"))
    assert tree(tmp_path / "out") == {"train/train-00000.tar": b"somebody's"}


# --- nothing to build


def test_when_every_input_is_rejected_the_build_says_why(tables, config_of, tmp_path, inline):
    tables.image("im")
    source = tables.source()
    (tables.root / "im.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of the 1 inputs can become a sample \(1 x image_corrupt\)"):
        build(BuildConfig(tmp_path / "out", Sources(table=source), SMALL))
    assert pd.read_parquet(tmp_path / "out" / "rejected.parquet")["reason"].tolist() == ["image_corrupt"]
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_build_that_could_give_nothing_leaves_a_finished_one_alone(corpus, config_of, inline, out, shards):
    with pytest.raises(InputError, match="none of the 14 inputs"):
        build(config_of(out, Sources(reflacx=corpus.reflacx)))
    assert tree(out) == tree(shards)


@pytest.mark.parametrize(("name", "value"), [("shard_samples", 0), ("workers", -1)])
def test_impossible_numbers_are_refused(config_of, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, must be"):
        config_of(tmp_path, **{name: value})


@pytest.mark.slow
def test_default_pictures_are_the_same_bytes_from_any_number_of_workers(corpus, tmp_path):
    digests = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        build(BuildConfig(out, sources_of(corpus), shard_samples=5, workers=workers))
        digests.append({path.name: sha256_of(path) for path in sorted(out.rglob("*.tar"))})
    assert digests[0] == digests[1]
