"""What users run, from recordings to a trained model, prints and logs no source id, no dictated or written phrase."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from gazeprep.cli import main
from gazeprep.exports import FORMATS
from gazeprep.schema import CHEXPERT_LABELS
from gazeprep.shards import ShardFolder

ROOT = Path(__file__).parents[1]
TOLD_BY_TABLES = {label.casefold() for label in CHEXPERT_LABELS}  # "pleural effusion" is a label's name too


@dataclass(frozen=True)
class Secrets:
    """What no output may hold: ids of the sources as they stand there, phrases as `plain` writes them, a folder."""

    ids: frozenset[str]
    phrases: frozenset[str]
    folder: str

    @classmethod
    def of(cls, corpus):
        images = pd.read_csv(corpus / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz", dtype=str)
        master = pd.read_csv(corpus / "egd-cxr" / "master_sheet.csv", dtype=str)
        ids = {path.name for path in (corpus / "reflacx" / "main_data").glob("P*")}
        ids |= {*images["dicom_id"], *images["study_id"], *images["subject_id"], *master["dicom_id"]}
        written = [*corpus.glob("mimic-cxr/files/**/s*.txt"), *corpus.glob("reflacx/main_data/P*/transcription.txt")]
        phrases = {phrase for path in written for phrase in in_phrases(path.read_text())}
        for path in corpus.glob("egd-cxr/audio_segmentation_transcripts/*/transcript.json"):
            spoken = json.loads(path.read_text())
            phrases |= in_phrases(spoken["full_text"])
            phrases |= {plain(one["phrase"]) for one in spoken["time_stamped_text"]}
        # One word alone, such as "clear", is nobody's; the headings of reports are everybody's.
        kept = {phrase for phrase in phrases if len(phrase.split()) > 1 and len(phrase) > 8}
        kept -= TOLD_BY_TABLES | {"final report", "comparison: none"}
        assert min(len(ids), len(kept)) > 30
        return cls(frozenset(ids), frozenset(kept), str(corpus.resolve()))

    def in_text(self, text):
        """Return what a text tells, without the folder."""
        flat = plain(text)
        # Study 50000000 does not stand in 0.50000000.
        told = [one for one in self.ids if re.search(rf"(?<![\d.]){re.escape(one)}(?!\d)", text)]
        return told + [one for one in self.phrases if one in flat]


def plain(text):
    return " ".join(text.split()).casefold().strip(" .,")


def in_phrases(text):
    """Every line and every sentence of a text."""
    return {plain(part) for part in [*text.splitlines(), *re.split(r"[.:!?]\s|\n\s*\n", text)]}


# --- the chain


CHAIN = {
    "synth": "synth --out {here}/recordings --subjects 12",
    "build": "build --out=shards {sources} --workers=2",
    "build again": "build --out=shards {sources}",
    "task": "build --out=tasks {sources} --task-index=0 --task-count=1",
    "finalize": "finalize {here}/tasks",
    "info": "info {here}/shards",
    "agreement": "agreement {here}/shards",
    "preview": "preview {here}/shards",
    "lint": "lint {here}/shards",
    "select": "select shards --query=has_gaze --out=eyes",
    "select the rest": "select shards --query=has_gaze==False --out=rest",
    "select keys": "select shards --query=has_gaze",
    "merge": "merge {here}/eyes {here}/rest --out={here}/merged",
    **{
        f"export {format}": f"export {{here}}/merged --format={format} --out={{here}}/exported/{format}"
        for format in FORMATS
    },
    "report": "report {here}/merged --out={here}/told.html",
    "report --redact": "report {here}/merged --out={here}/redacted.html --redact --truth=recordings",
}
TRAIN = "--config={configs}/demo.yaml --shards=shards --fit.max_steps=2 --plan.global_batch=4 {towers}"
PIPELINES = {
    "towers": "tiny_towers.py --shards=shards --out=towers",
    "pretrain": f"pretrain.py {TRAIN} --out=runs/one --fit.tracker=tensorboard",
    "probe": f"probe.py {TRAIN} --out=runs/probe --conditions=[trained,shuffled]",
    "finetune": "finetune.py --config={configs}/report_demo.yaml --model=runs/one/model --shards={here}/shards "
    "--out={here}/runs/writer --decoder.name={here}/towers/decoder --fit.max_steps=2 --plan.global_batch=4 "
    "--fit.tracker=tensorboard",
    "srrg_targets": "srrg_targets.py --srrg={here}/srrg --part=findings --out={here}/srrg.parquet",
    "finetune on a table": "finetune.py --config={configs}/report_demo.yaml --model={here}/runs/writer/model "
    "--decoder.name= --decoder.start=model --shards=shards --out=runs/structured --target.table={here}/srrg.parquet "
    "--fit.max_steps=1 --plan.global_batch=2 --fit.validate_every=-1",
    "generate": "generate.py --model={here}/runs/writer/model --looker={here}/runs/one/model --shards={here}/shards "
    "--out={here}/generated --search.beams=2",
    "generate again": "generate.py --model=runs/writer/model --looker=runs/one/model --shards=shards --out=generated "
    "--search.beams=2",
    "score": "score.py --generated={here}/generated --out={here}/scores --repeats=5 --scorers=[overlap,labels]",
}
PAGES = {
    f"report of generated{name}": f"report {{here}}/shards --generated={{here}}/generated --scores={{here}}/scores "
    f"--results={{here}}/scores/results.json --out={{here}}/{name or 'shown'}.html {option}"
    for name, option in (("", ""), ("hidden", "--redact"))
}
LOGS = (  # shards, their two tables and exports for training hold ids and text by their purpose
    "dataset.json",
    "export.json",
    "log.jsonl",
    "events.out.tfevents.*",
    "config.json",
    "state.json",
    "README.md",
    "figures.json",
    "run.json",
    "generate.json",
    "results.json",
    "results.md",
)
NAMED = {
    "configs": str(ROOT / "configs"),
    "sources": "--sources.reflacx={here}/recordings/reflacx --sources.egd={here}/recordings/egd-cxr "
    "--sources.mimic={here}/recordings/mimic-cxr --sources.mimic_jpg={here}/recordings/mimic-cxr-jpg "
    "--sample.picture.resize.size_px=112 --sample.maps.px_per_deg=37.5 --shard_samples=48",
    "towers": "--model.vision=towers/vision --model.text=towers/text",
}


def write_srrg(folder):
    """Write training reports of the chain as SRRG's structured ones."""
    rows = pd.read_parquet(folder / "shards" / "index.parquet").query("split == 'train'").drop_duplicates("study")
    reports = ShardFolder(folder / "shards")
    told = [reports.sample(key).record["findings"] for key in rows["key"]]
    table = {
        "id": [f"mimic-{study}" for study in rows["study"]],
        "image_paths": [[f"files/p10/s{study}/x.jpg"] for study in rows["study"]],
        "findings_section": ["Lungs and Airways:\n- " + " ".join(text.split()) for text in told],
    }
    (folder / "srrg").mkdir()
    pd.DataFrame(table).to_parquet(folder / "srrg" / "train-00000-of-00001.parquet", index=False)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder in which the chain was run, and each command's exit code and all that it printed."""
    folder = tmp_path_factory.mktemp("chain")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    named = {"here": folder, **{name: str(text).format(here=folder) for name, text in NAMED.items()}}
    printed = {}
    for name, text in CHAIN.items():
        printed[name] = run("-m", "gazeprep.cli", *text.format(**named).split())
    write_srrg(folder)
    for name, text in PIPELINES.items():
        script, *options = text.format(**named).split()
        printed[name] = run(ROOT / "pipelines" / script, *options)
    for name, text in PAGES.items():
        printed[name] = run("-m", "gazeprep.cli", *text.format(**named).split())
    return folder, printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_output_of_the_whole_chain_tells_an_id_a_phrase_or_where_the_sources_lie(chain):
    folder, printed = chain
    secrets = Secrets.of(folder / "recordings")
    assert {name: said for name, (code, said) in printed.items() if code} == {}
    for name, (_, said) in printed.items():
        assert (name, secrets.in_text(said)) == (name, [])
        assert str(folder) not in said, name
        assert said or name == "synth"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_log_and_no_manifest_of_the_whole_chain_tells_them_either(chain):
    folder, _ = chain
    secrets = Secrets.of(folder / "recordings")
    logs = [path for name in LOGS for path in folder.rglob(name)]
    assert {path.name.split(".")[0] for path in logs} == {name.split(".")[0] for name in LOGS}
    for path in logs:
        text = path.read_bytes().decode("utf-8", errors="replace")
        assert (path.name, secrets.in_text(text)) == (path.name, [])
        assert secrets.folder not in text, path.name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_redacted_report_tells_nothing_and_the_full_one_tells_of_its_cases(chain):
    folder, _ = chain
    secrets = Secrets.of(folder / "recordings")
    redacted, full = (unescape((folder / name).read_text()) for name in ("redacted.html", "told.html"))
    assert secrets.in_text(redacted) == []
    assert str(folder) not in redacted + full
    hidden, shown = (unescape((folder / name).read_text()) for name in ("hidden.html", "shown.html"))
    assert secrets.in_text(hidden) == []
    assert [one for one in secrets.in_text(shown) if one in secrets.phrases]
    assert str(folder) not in hidden + shown
    assert "merged" not in redacted
    index = ShardFolder(folder / "merged").index.set_index("key", drop=False)
    keys = [key for key in index.index if f'<article id="{key}"' in full]
    assert len(keys) == 12
    ids = set(index.loc[keys, ["dicom", "study", "subject", "reading"]].to_numpy().ravel()) - {""}
    assert ids <= {*secrets.in_text(full)}
    others = set(index[["dicom", "study", "subject", "reading"]].to_numpy().ravel()) - ids - {""}
    assert not others & {*secrets.in_text(full)}
    assert len([one for one in secrets.in_text(full) if one in secrets.phrases]) > 30


# --- failures


@pytest.fixture(scope="module")
def secrets(corpus):
    return Secrets.of(corpus.out)


@pytest.fixture
def fails(capsys, tmp_path, monkeypatch, secrets, inline):
    """Return fails(arguments): what a command prints that stops with exit code 1, and that it tells nothing."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        said = "".join(capsys.readouterr())
        assert secrets.in_text(said) == []
        assert secrets.folder not in said
        assert str(tmp_path) not in said
        assert "Traceback" not in said
        return said

    return run


@pytest.fixture
def damaged(shards, tmp_path):
    """A copy of the shards: a flipped byte in a tar, and each row of the index with the subject of the next."""
    out = Path(shutil.copytree(shards, tmp_path / "damaged", ignore=shutil.ignore_patterns(".build")))
    tar = next((out / "train").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 255
    tar.write_bytes(data)
    index = pq.read_table(out / "index.parquet")
    subjects = index["subject"].to_pylist()
    place = index.schema.get_field_index("subject")
    pq.write_table(index.set_column(place, "subject", [subjects[1:] + subjects[:1]]), out / "index.parquet")
    return out


def test_lint_of_damage_in_ids_and_splits_tells_keys_alone(fails, damaged):
    said = fails("lint", damaged, "--workers=1")
    assert "subject" in said
    assert "split_leak" in said


@pytest.mark.parametrize("column", ["dicom", "study", "subject", "reading"])
def test_a_source_id_given_for_a_key_is_not_repeated(fails, shards, tmp_path, column):
    own = ShardFolder(shards).index.query("reading != ''")[column].iloc[0]
    (tmp_path / "keys.txt").write_text(f"{own}\n")
    fails("info", shards, "--key", own)
    fails("preview", shards, own)
    fails("select", shards, "--keys", "keys.txt")
    fails("select", shards, "--query", f"{column} == {own}")
    fails("export", shards, "--format=npz", "--out=out", "--keys", "keys.txt")


def test_folders_that_cannot_be_used_are_not_named(fails, corpus, shards, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    for command in ("info", "lint", "agreement", "preview", "report", "finalize"):
        fails(command, tmp_path / "nowhere")
    fails("report", shards, "--cases=0", "--out", tmp_path / "nowhere" / "page.html")
    fails("report", shards, "--cases=0", "--truth", tmp_path / "nowhere")
    fails("synth", "--out", tmp_path / "full", "--subjects=1")
    fails("merge", shards, shards, "--out", tmp_path / "out")
    fails("export", shards, "--format=npz", "--out", tmp_path / "full")
    fails("select", shards, "--keys", tmp_path / "nowhere.txt")
    fails("build", "--out", tmp_path / "full" / "thesis.txt", "--sources.reflacx", corpus.reflacx)
    fails("build", "--out", tmp_path / "out", "--sources.reflacx", tmp_path / "nowhere")
