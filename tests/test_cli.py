"""The command line: what each verb prints and leaves, exit codes, configuration, and the same as a library call."""

import json
import os
import pty
import re
import resource
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cv2
import pandas as pd
import pytest
import yaml
from recorded import SMALL, sources_of, tree

from gazeprep import cli
from gazeprep.build import BuildConfig, BuildReport, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.fixations import Frame
from gazeprep.shards import ShardFolder

ROOT = Path(__file__).parents[1]
ESCAPE = "\x1b"


def options_of(corpus, **changes):
    sources = vars(sources_of(corpus)) | changes
    return [f"--sources.{name}={sources[name]}" for name in ("reflacx", "egd", "mimic", "mimic_jpg")]


SMALL_OPTIONS = ["--sample.picture.resize.size_px=64", "--sample.maps.px_per_deg=37.5", "--shard_samples=4"]


def refused(capsys, *arguments):
    """Run a command that argument parsing refuses; return what it said."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


# --- build


def test_build_says_what_it_did_and_then_what_it_kept_in_plain_lines(corpus, tmp_path, capsys, inline, shards):
    command = ["build", *options_of(corpus)[::-1], *SMALL_OPTIONS, f"--out={tmp_path / 'out'}"]  # in no special order
    assert main(command) == 0
    said, progress = capsys.readouterr()
    assert said.endswith(
        "rejected: 2 x eye_tracking_discarded\n8 shards, 8 of them built now\ninputs 28 = samples 26 + rejected 2\n"
    )
    assert "noted: 2 x inputs without view position in a table\n" in said
    assert [line.split(" ", 2)[:2] for line in progress.splitlines()] == [["shard", f"{i}/8"] for i in range(1, 9)]
    assert "train-00000: 4 samples, 0 rejected\n" in progress
    assert ESCAPE not in said + progress
    assert tree(tmp_path / "out") == tree(shards)
    assert main(command) == 0
    said, progress = capsys.readouterr()
    assert "8 shards, 0 of them built now\n" in said
    assert all(line.endswith(", kept") for line in progress.splitlines())


def test_the_library_call_does_the_same_and_tells_a_watcher(corpus, tmp_path, inline, shards):
    told = []
    config = BuildConfig(tmp_path / "out", sources_of(corpus), SMALL, shard_samples=4)
    report = build(config, lambda one, number: told.append((one.name, one.samples, number)))
    assert isinstance(report, BuildReport)
    assert sum(samples for _, samples, _ in told) == report.samples == 26
    assert {number for *_, number in told} == {report.shards} == {8}
    assert tree(tmp_path / "out") == tree(shards)


def test_yaml_with_a_dotted_override_after_it(corpus, tmp_path, inline, shards):
    config = tmp_path / "own.yaml"
    config.write_text(
        "shard_samples: 48\nsample: {picture: {resize: {size_px: 64}}, maps: {px_per_deg: 37.5}}\n"
        f"sources: {{reflacx: {corpus.reflacx}, egd: {corpus.egd}}}\n"
    )
    command = ["build", f"--config={config}", f"--out={tmp_path / 'out'}", "--shard_samples=4"]
    assert main([*command, f"--sources.mimic={corpus.mimic_cxr}", f"--sources.mimic_jpg={corpus.mimic_cxr_jpg}"]) == 0
    assert tree(tmp_path / "out") == tree(shards)


def test_a_table_is_named_on_the_command_line(tables, tmp_path, capsys, inline):
    tables.image("im", subject="own")
    tables.reading("reader", "im")
    source = tables.source()
    named = [f"--sources.table.{name}={getattr(source, name)}" for name in ("images", "fixations", "words", "name")]
    command = ["build", f"--out={tmp_path / 'out'}", *named, "--sources.table.frame.base=1", "--sample.maps.sigma_px=3"]
    assert main(command) == 0
    folder = ShardFolder(tmp_path / "out")
    assert folder.manifest["sources"] == ["table"]
    assert folder.manifest["config"]["table"]["frame"]["base"] == 1
    (key,) = folder.keys()
    assert folder.sample(key).gaze["x_px"].tolist() == [7, 19]
    library = BuildConfig(tmp_path / "lib", Sources(table=replace(source, frame=Frame(base=1))), SMALL)
    build(library)
    assert ShardFolder(library.out).sample(key).gaze["x_px"].tolist() == [7, 19]


def test_the_synthetic_config_holds_only_known_keys(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(
            ["build", f"--config={ROOT / 'configs' / 'synthetic.yaml'}", "--sample.maps.sigma_deg=2", "--print_config"]
        )
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["shard_samples"], printed["sample"]["maps"]["sigma_deg"]) == (48, 2.0)
    of_config = {"out", "sources", "sample", "splits", "shard_samples", "workers", "executor"}
    assert set(printed) == of_config | {"task_index", "task_count"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard_sample: 3", "does not accept option 'shard_sample'"),
        ("sample: {maps: {sigmadeg: 3}}", "does not accept option 'sample.maps.sigmadeg'"),
        ("shard_samples: many", "shard_samples"),
        ("- not a mapping", "config"),
    ],
)
def test_unknown_keys_and_kinds_in_a_config_are_refused(corpus, tmp_path, capsys, text, message):
    (tmp_path / "own.yaml").write_text(text)
    said = refused(capsys, "build", f"--config={tmp_path / 'own.yaml'}", f"--out={tmp_path / 'out'}")
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--sample.maps.sigma=2", "unrecognized arguments: --sample.maps.sigma=2"),
        ("--shard=3", "unrecognized arguments: --shard=3"),  # the beginning of an option is not the option
        ("--sample.maps.sigma_deg=wide", "sample.maps.sigma_deg"),
        ("--sources.prefer=png", "sources.prefer"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_unknown_options_and_values_are_refused(tmp_path, capsys, option, message):
    assert message in refused(capsys, "build", f"--out={tmp_path / 'out'}", option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--shard_samples=0", "shard_samples is 0, must be at least 1"),
        ("--sample.maps.sigma_deg=-1", "maps.sigma_deg is -1.0, must be positive"),
        ("--sample.maps.grid=[0,3]", "maps.grid is (0, 3), expected (rows, cols), both at least 1"),
        ("--sample.picture.jpg_quality=0", "picture.jpg_quality is 0, must be 1 to 100"),
        ("--splits.test=2", "splits.validate 0.1 and splits.test 2.0 must be shares of 1"),
    ],
)
def test_impossible_values_are_refused_with_the_value(corpus, tmp_path, capsys, option, message):
    assert main(["build", f"--out={tmp_path / 'out'}", *options_of(corpus), option]) == 1
    assert capsys.readouterr().err == f"gazeprep build: {message}\n"
    assert not (tmp_path / "out").exists()


def test_a_build_without_sources_or_output_is_refused(corpus, tmp_path, capsys):
    assert "required: build.out" in refused(capsys, "build", *options_of(corpus))
    assert main(["build", f"--out={tmp_path / 'out'}"]) == 1
    assert "no source is named; give at least one of reflacx, egd" in capsys.readouterr().err


def test_verbs_must_be_known(capsys):
    assert "choose from 'synth', 'build', " in refused(capsys, "frobnicate")
    assert "it was not provided" in refused(capsys)


def test_ctrl_c_in_any_verb_ends_with_130(monkeypatch, capsys, tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "info", interrupted)
    assert main(["info", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "gazeprep info: stopped\n"


# --- info


def test_info_says_what_a_build_holds(shards, capsys):
    assert main(["info", str(shards)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("SYNTHETIC recordings: for trying things out")
    for line in (
        "inputs 28 = samples 26 + rejected 2",
        "samples_by_dataset: egd-cxr 4, mimic-cxr 10, reflacx 12",
        "rejected_by_reason: eye_tracking_discarded 2",
    ):
        assert f"{line}\n" in said
    assert re.search(r"^with gaze 16, sentences \d+, subjects 12$", said, re.MULTILINE)
    assert ESCAPE not in said


def test_info_prints_no_source_id_unless_asked_for_a_key(shards, capsys):
    folder = ShardFolder(shards)
    main(["info", str(shards)])
    said = capsys.readouterr().out
    for column in ("subject", "study", "dicom", "reading"):
        assert not [value for value in folder.index[column] if value and value in said]
    row = folder.row(folder.keys()[0])
    assert main(["info", str(shards), f"--key={row['key']}"]) == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if " " in line.strip())
    for name in ("key", "dataset", "dicom", "study", "subject", "split", "shard"):
        assert told[name].strip() == row[name]


def test_info_on_what_it_does_not_know(shards, tmp_path, capsys):
    assert main(["info", str(shards), "--key=reflacx-000000000000"]) == 1
    assert "'reflacx-000000000000' is not among the 26 keys" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 1
    assert "no finished build; run gazeprep build" in capsys.readouterr().err


# --- preview


def panels(count):
    """Width and height in px of a figure with so many panels."""
    columns = min(4, count)
    return columns * 2.6 * 110, -(-count // columns) * 2.6 * 1.35 * 110


@pytest.mark.parametrize("query", ["sentences > 3", "fixations == 0"])
def test_preview_draws_a_sample_with_each_sentence(shards, tmp_path, capsys, query):
    key = ShardFolder(shards).index.query(query)["key"].iloc[0]
    assert main(["preview", str(shards), key, f"--out={tmp_path / 'one.png'}"]) == 0
    assert "wrote" in capsys.readouterr().out
    image = cv2.imread(str(tmp_path / "one.png"))
    width, height = panels(2 + ShardFolder(shards).row(key)["sentences"])
    assert image.shape[:2] == (pytest.approx(height, abs=1), pytest.approx(width, abs=1))
    assert image.std() > 10


def test_preview_without_a_key_draws_a_sheet(shards, tmp_path):
    assert main(["preview", str(shards), f"--out={tmp_path / 'sheet.png'}", "--samples=5"]) == 0
    width, height = panels(5)
    image = cv2.imread(str(tmp_path / "sheet.png"))
    assert image.shape[:2] == (pytest.approx(height, abs=1), pytest.approx(width, abs=1))


def test_preview_refuses_what_it_cannot_draw_or_write(shards, tmp_path, capsys):
    assert main(["preview", str(shards), "--samples=0"]) == 1
    assert "--samples is 0, must be at least 1" in capsys.readouterr().err
    assert main(["preview", str(shards), "reflacx-000000000000"]) == 1
    assert "is not among the 26 keys" in capsys.readouterr().err
    assert main(["preview", str(shards), f"--out={tmp_path / 'nowhere' / 'sheet.png'}", "--samples=1"]) == 1
    said = capsys.readouterr().err
    assert "a file or folder cannot be used (No such file or directory); check the paths" in said
    assert str(tmp_path) not in said


def test_preview_says_how_to_get_matplotlib(shards, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gazeprep.plots", raising=False)
    monkeypatch.delattr("gazeprep.plots", raising=False)
    assert main(["preview", str(shards)]) == 1
    assert "pip install 'gazeprep-cogaze[plots]'" in capsys.readouterr().err


# --- synth


def test_synth_writes_recordings_that_build(tmp_path, capsys, inline):
    assert main(["synth", f"--out={tmp_path / 'corpus'}", "--subjects=1", "--seed=3", "--workers=1"]) == 0
    names = ("reflacx", "egd-cxr", "mimic-cxr", "mimic-cxr-jpg")
    assert {path.name for path in (tmp_path / "corpus").iterdir()} >= set(names)
    sources = [
        f"--sources.mimic={tmp_path / 'corpus' / 'mimic-cxr'}",
        f"--sources.reflacx={tmp_path / 'corpus' / 'reflacx'}",
    ]
    assert main(["build", f"--out={tmp_path / 'out'}", *SMALL_OPTIONS, *sources]) == 0
    assert ShardFolder(tmp_path / "out").manifest["synthetic"] is True


def test_synth_refuses_a_folder_in_use_and_no_subjects(tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main(["synth", f"--out={tmp_path}", "--subjects=1"]) == 1
    assert "not empty; remove it or name another" in capsys.readouterr().err
    assert main(["synth", f"--out={tmp_path / 'new'}", "--subjects=0"]) == 1
    assert "subjects is 0; ask for at least 1" in capsys.readouterr().err


# --- as a program


def test_help_comes_quickly_and_without_plotting():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys, gazeprep.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "{synth,build," in done.stdout
    assert done.stdout.endswith("False\n")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3  # seconds of work


def test_a_real_build_prints_no_escape_codes_and_warns_of_nothing(tables, tmp_path):
    for i in range(3):
        tables.image(f"im{i}", subject=f"s{i}")
    source = tables.source()
    command = [sys.executable, "-W", "error", "-m", "gazeprep.cli", "build", f"--out={tmp_path / 'out'}", "--workers=1"]
    command += ["--shard_samples=1", f"--sources.table.images={source.images}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ESCAPE not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert done.stdout.splitlines()[-1] == "inputs 3 = samples 3 + rejected 0"


@pytest.mark.slow
def test_on_a_terminal_there_is_a_progress_bar(tables, tmp_path):
    tables.image("im")
    source = tables.source()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gazeprep.cli", "build", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*command, f"--sources.table.images={source.images}"], stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            printed += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0
    assert b"1/1" in printed
    assert ESCAPE.encode() in printed
    assert b"samples, 0 rejected" not in printed


def test_the_manifest_is_readable_json_without_paths(shards, corpus):
    text = (shards / "dataset.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"
    assert str(corpus.out.parent) not in text
    rejected = pd.read_parquet(shards / "rejected.parquet")
    assert list(rejected) == [
        "key",
        "dataset",
        "reading_id",
        "dicom_id",
        "study_id",
        "subject_id",
        "reason",
        "detail",
    ]


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert version("gazeprep-cogaze") in capsys.readouterr().out
