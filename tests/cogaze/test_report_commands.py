"""What users get wrong with the commands of report writing: one line that says what and the cure, and exit code 1."""

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from writing import learn, report_config, write_parts, write_shards

from gazeprep.cli import main as gazeprep

ROOT = Path(__file__).parents[2]
START = {
    "finetune": "finetune --model={cogaze} --shards={shards} --out={out} --decoder.name={decoder} --fit.max_steps=1 "
    "--plan.global_batch=8 --fit.precision=no --target.max_tokens=40",
    "generate": "generate --model={writer} --shards={shards} --out={out} --limit=1",
    "score": "score --generated={table} --out={out} --scorers=[overlap] --repeats=0",
    "srrg_targets": "srrg_targets --srrg={empty} --part=findings --out={out}",
}
WRONG = {
    "finetune --model={nowhere}": r"model's folder has no readable run\.json .*; give the folder",
    "finetune --model={egma}": "says method 'egma', must be one of cogaze, report",
    "finetune --model={bare}": "holds no weights .*; give the folder|no file named model.safetensors",
    "finetune --shards={nowhere}": "holds no dataset.json, so it is no finished build; run gazeprep build",
    "finetune --shards={tests}": r"hold no sample of split 'train' \(samples by split: test 16\); choose another",
    "finetune --target.sections=[impression]": "none of the 16 samples of split train has a text in .*; choose",
    "finetune --target.sections=[plan]": "target.sections is .*, must be one or more of",
    "finetune --target.max_tokens=1": "target.max_tokens is 1, must be at least 2",
    "finetune --target.table={nowhere}": "target.table cannot be read .*; name a parquet file",
    "finetune --target.table={other}": "target.table lacks the columns study_id, text; it has a",
    "finetune --target.table={text}": "target.table cannot be read .*; name a parquet file",
    "finetune --decoder.name={nowhere}": "no decoder at nowhere: name a folder",
    "finetune --decoder.start=model": "decoder.start is model, .*: give the folder of one",
    "finetune --plan.global_batch=17": "plan.global_batch is 17, but there are only 16 training samples; lower it",
    "finetune --out={text}": r"a file or folder cannot be used \(.*\); check the paths",
    "generate --model={nowhere}": r"model's folder has no readable run\.json .*; give the folder",
    "generate --model={cogaze}": "says method 'cogaze', must be one of report",
    "generate --model={torn}": "a model's weights cannot be read .*; copy or train the model again",
    "generate --model={bare}": "no file named model.safetensors.*; give the folder of a model",
    "generate --looker={nowhere}": r"model's folder holds no weights .*; give the folder",
    "generate --looker={writer}": "says method 'report', must be one of cogaze",
    "generate --shards={nowhere}": "holds no dataset.json, so it is no finished build; run gazeprep build",
    "generate --shards={tests} --split=validate": "no sample of split 'validate' .*: test 16.*; choose another",
    "generate --referenced=true --shards={silent}": "none of the 16 samples of split test has a text.*; choose another",
    "generate --search.beams=0": "beams=0.*: beams must be at least 1",
    "generate --batch=0": "batch is 0, .*: at least 1",
    "generate --limit=-1": "limit -1 .*: at least 1, 0 and 0",
    "generate --table={other}": "the model learned to write sections of the shards' reports; leave it out",
    "generate --device=gpu": "device is 'gpu', must be cpu.*; leave it out",
    "generate --out={text}": r"a file or folder cannot be used \(.*\); check the paths",
    "generate --out={text}/below": r"a file or folder cannot be used \(Not a directory\); check the paths",
    "score --generated={nowhere}": "nowhere is not there; name the folder",
    "score --generated={empty}": r"generated\.parquet is not there; name the folder",
    "score --generated={other}": "table of generated reports.*reference",
    "score --generated={text}": "is no .parquet, .csv, .csv.gz or .jsonl file; write one of these",
    "score --scorers=[bleu]": "there is no scorer bleu; there are overlap",
    "score --repeats=-1": "repeats is -1, must be at least 0",
    "score --out={text}": r"a file or folder cannot be used \(.*\); check the paths",
    "srrg_targets --srrg={nowhere}": "no data/.*parquet in the folder; give a downloaded srrg_findings",
    "srrg_targets": "no data/.*parquet in the folder; give a downloaded srrg_findings",
}
USAGE = {
    "finetune --target.words=3": "words",
    "generate --split=everyone": "everyone",
    "generate --search.beams=many": "many",
    "generate --beams=4": "beams",
    "score --words=mine": "mine",
    "score --bleu=1": "bleu",
    "srrg_targets --part=plan": "plan",
}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Folders and files by the names that the commands above have for them."""
    home = tmp_path_factory.mktemp("named")
    write_parts(home)
    shards = write_shards(home / "reports")
    writer = learn(report_config(home, shards, home / "run", {"fit.max_steps": 1}))
    for name, query in (("tests", "split == 'test'"), ("silent", "split == 'test'")):
        assert gazeprep(["select", str(shards), f"--query={query}", f"--out={home / name}"]) == 0
    _silence(home / "silent")
    for name, source in (("torn", writer), ("bare", writer), ("egma", home / "model")):
        shutil.copytree(source, home / name)
    (home / "torn" / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"no json!")
    (home / "bare" / "model.safetensors").unlink()
    stated = json.loads((home / "egma" / "run.json").read_text())
    (home / "egma" / "run.json").write_text(json.dumps({**stated, "method": "egma"}))
    pd.DataFrame({"a": [1]}).to_parquet(home / "other.parquet")
    pd.DataFrame({"reference": ["clear lungs"], "text": ["clear"]}).to_csv(home / "table.csv", index=False)
    (home / "thesis.txt").write_text("no table")
    (home / "empty").mkdir()
    return {
        **{name: home / name for name in ("tests", "silent", "torn", "bare", "egma", "decoder", "empty", "nowhere")},
        **{"cogaze": home / "model", "shards": shards, "writer": writer},
        **{"other": home / "other.parquet", "table": home / "table.csv", "text": home / "thesis.txt"},
    }


def _silence(shards):
    """Take the findings out of the records, of which each keeps its length."""
    for tar in shards.glob("test/*.tar"):
        said = tar.read_bytes()
        silent = re.sub(rb'("findings": ?")([^"]*)"', lambda found: found[1] + b" " * len(found[2]) + b'"', said)
        assert silent != said
        tar.write_bytes(silent)


@pytest.fixture
def run(named, monkeypatch, tmp_path):
    """Return run(command, ...): the exit code of a pipeline's main."""

    def call(command):
        name, *changes = shlex.split(command)
        options = shlex.split(START[name])[1:]
        given = {one.split("=")[0] for one in changes}
        kept = [one for one in options if one.split("=")[0] not in given]
        places = {**named, "out": tmp_path / "out"}
        spec = importlib.util.spec_from_file_location(f"{name}_pipeline", ROOT / "pipelines" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        AcceleratorState._reset_state(True)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *(one.format(**places) for one in [*kept, *changes])])
        return module.main()

    yield call
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("command", WRONG)
def test_what_is_wrong_is_told_in_one_line_with_its_cure(run, named, capsys, command):
    assert run(command) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"{command.split()[0]}: [^\n]*({WRONG[command]})[^\n]*\n", said), said
    assert str(named["empty"].parent) not in said
    assert not re.search(r"(study|subject) (train|validate|test)\d|Clear|Nodules|Fever", said)


@pytest.mark.parametrize("command", USAGE)
def test_an_option_that_there_is_not_is_wrong_usage(run, capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert USAGE[command] in said
    assert "Traceback" not in said
