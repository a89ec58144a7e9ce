"""Scores by radeval through a process: a small stand-in of its interface, and everything that can be missing."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cogaze.evaluate.reports.clinical import METRICS, ByRadEval, Clinical
from cogaze.evaluate.reports.scorers import Reports
from cogaze.evaluate.results import NotRunError, Results
from cogaze.evaluate.scores import Intervals

NONE = Intervals(0)
BY_NAME = {metric.radeval: metric for metric in METRICS}

# As radeval 2.2: RadEval(metrics=[name], per_sample=True, ...)(refs=..., hyps=...) gives lists by name. It also prints.
STAND_IN = """
import os
print("Using device: cpu")
KEYS = {"bertscore": ["bertscore"], "ratescore": ["ratescore"], "radcliq": ["radcliq_v1"],
        "radgraph": ["radgraph_simple", "radgraph_partial", "radgraph_complete"]}

class RadEval:
    def __init__(self, metrics, per_sample, show_progress):
        assert per_sample and not show_progress
        import RadEval as itself
        self.keys = KEYS[metrics[0]]
        if os.environ.get("STAND_IN") == "no weights":
            assert os.environ["HF_HUB_OFFLINE"] == "1"
            raise OSError("We couldn't connect to 'https://huggingface.co' to load\\n the files")

    def __call__(self, refs, hyps):
        kind = os.environ.get("STAND_IN", "")
        if kind == "stops":
            raise KeyError(hyps[0])
        if kind == "ends":
            os._exit(9)
        if kind == "sleeps":
            import time
            time.sleep(60)
        count = len(refs) - (kind == "short")
        return {key: [float(refs[i] == hyps[i]) + 0.25 * place for i in range(count)]
                for place, key in enumerate(self.keys)}
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package called radeval on the path of this interpreter's children."""
    (tmp_path / "radeval").mkdir()
    (tmp_path / "radeval" / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    about = tmp_path / "radeval-2.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: radeval\nVersion: 2.2\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return monkeypatch


def reports(texts=("No edema.", "Edema.", "")):
    keys = tuple(str(i) for i in range(len(texts)))
    return Reports(keys, ("No edema.", "Effusion.", "Edema.")[: len(texts)], tuple(texts), np.array(keys))


def test_every_column_comes_back_under_its_name(stand_in):
    scored = ByRadEval(BY_NAME["radgraph"]).score(reports(), NONE)
    assert {name: values.tolist() for name, values in scored.columns.items()} == {
        "RadGraph F1 simple": [1.0, 0.0, 0.0],
        "RadGraph F1 partial": [1.25, 0.25, 0.25],
        "RadGraph F1 complete": [1.5, 0.5, 0.5],
    }
    assert [one.name for one in scored.figures] == list(scored.columns)
    assert scored.figures[0].value == pytest.approx(1 / 3)
    assert scored.notes["versions"]["radeval"] == "2.2"


def test_radcliq_tells_its_direction(stand_in):
    scored = ByRadEval(BY_NAME["radcliq"]).score(reports(), NONE)
    raw, inverse = scored.figures
    assert (raw.name, inverse.name) == ("radcliq_v1_raw (lower is better)", "radcliq_v1_inverse (higher is better)")
    assert raw.value * inverse.value == pytest.approx(1)
    assert list(scored.columns) == ["radcliq_v1_raw"]
    assert not any(one.name.lower() == "radcliq" for one in scored.figures)


def test_an_inverse_of_nothing_positive_is_no_number(stand_in):
    inverse = ByRadEval(BY_NAME["radcliq"]).score(reports(("a", "b")), NONE).figures[1]
    assert np.isnan(inverse.value)


def test_ratescore_is_not_given_texts_without_words(stand_in):
    scored = ByRadEval(BY_NAME["ratescore"]).score(reports(), NONE)
    assert scored.columns["RaTEScore"].tolist() == [1.0, 0.0, 0.5]
    nothing = ByRadEval(BY_NAME["ratescore"]).score(reports(("", ".", "12")), NONE)
    assert nothing.columns["RaTEScore"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short", "radeval gave 2 numbers for BERTScore of 3 reports"),
        ("stops", "radeval stopped at the texts with KeyError"),
        ("ends", "radeval's process ended with code 9 without an answer"),
    ],
)
def test_what_radeval_does_wrong_is_told_without_texts(stand_in, kind, message):
    stand_in.setenv("STAND_IN", kind)
    with pytest.raises(ValueError, match=message) as error:
        ByRadEval(BY_NAME["bertscore"]).score(reports(), NONE)
    assert "edema" not in str(error.value).lower()


def test_it_is_ended_when_it_takes_too_long(stand_in):
    stand_in.setenv("STAND_IN", "sleeps")
    with pytest.raises(ValueError, match=r"said nothing for 0\.3 s"):
        ByRadEval(BY_NAME["bertscore"], Clinical(timeout_s=0.3)).score(reports(), NONE)


def test_missing_weights_are_named_with_their_cure(stand_in):
    stand_in.setenv("STAND_IN", "no weights")
    with pytest.raises(NotRunError, match=r"couldn't connect .* needs Angelakeke/RaTE-NER-Deberta and .* run it once"):
        ByRadEval(BY_NAME["ratescore"], Clinical(offline=True)).score(reports(), NONE)


def test_without_radeval_the_cure_survives_in_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "radeval.py").write_text("import not_there_at_all", encoding="utf-8")
    results = Results(tmp_path / "out", {})
    scorer = ByRadEval(BY_NAME["bertscore"], Clinical(python=Path(sys.executable)))
    lacking = results.attempt("package", lambda: scorer.score(reports(), NONE).figures).error
    assert lacking.startswith(
        "not run: radeval lacks a package: not_there_at_all is not installed; make an environment"
    )
    gone = ByRadEval(BY_NAME["bertscore"], Clinical(python=tmp_path / "no" / "python"))
    outcome = results.attempt("python", lambda: gone.score(reports(), NONE).figures)
    assert outcome.error.startswith("not run: clinical.python cannot be started (FileNotFoundError); make an environ")
    assert outcome.error.endswith("pass its Python as --clinical.python (docs/reports.md)")


def test_each_metric_is_a_scorer_of_its_own():
    scorers = Clinical().scorers()
    assert [one.name for one in scorers] == [
        "BERTScore",
        "RadGraph F1",
        "RadCliQ-v1, raw and inverse",
        "RaTEScore",
    ]
    assert len({one.name for one in scorers}) == len(scorers)
