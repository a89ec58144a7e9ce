"""Scoring: files after each scorer, what figures have to beat, failures that lose nothing, the command."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cogaze.evaluate.reports.baselines import other_texts, others_places, with_baselines
from cogaze.evaluate.reports.overlap import Overlap
from cogaze.evaluate.reports.score import ScoreConfig, score
from cogaze.evaluate.reports.scorers import Reports, Scored
from cogaze.evaluate.results import Figure, NotRunError
from cogaze.evaluate.scores import Intervals

PIPELINE = Path(__file__).parents[2] / "pipelines" / "score.py"
SAID = {
    "a": ("p1", "The heart is normal.", "The heart is normal."),
    "b": ("p1", "No edema is seen.", "No effusion is seen."),
    "c": ("p2", "", "A text without a reference."),
    "d": ("p3", "The heart is normal.", ""),
    "e": ("p4", "A secretword effusion.", "Small left effusion."),
}


@pytest.fixture
def table(tmp_path):
    rows = [(key, *said) for key, said in SAID.items()]
    path = tmp_path / "own.csv"
    pd.DataFrame(rows, columns=["key", "subject_id", "reference", "text"]).to_csv(path, index=False)
    return path


def reports_of(groups, texts=None):
    keys = tuple(str(number) for number in range(len(groups)))
    return Reports(keys, keys, keys if texts is None else texts, np.array(groups))


@dataclass(frozen=True)
class Missing:
    """Lacks a package."""

    name = "missing"
    beside = ()

    def score(self, reports, intervals):
        raise NotRunError("no weights; pass --missing.weights")


@dataclass(frozen=True)
class Broken:
    """Quotes a report in its error."""

    name = "broken"
    beside = ()

    def score(self, reports, intervals):
        raise RuntimeError(reports.references[0])


@dataclass(frozen=True)
class OfKeys:
    """Scores reports by their keys, whatever the texts say, and brings a baseline of its own."""

    name = "keys"
    beside = ("shuffled",)

    def score(self, reports, intervals):
        figure = Figure("kept", float(len(set(reports.texts) - {""})), None, None, len(reports), {"own": 0.5})
        return Scored([figure], {"place": np.array([ord(key) for key in reports.keys], dtype=float)})


def test_files_hold_figures_and_the_scores_of_each_report(table, tmp_path):
    results = score(ScoreConfig(table, tmp_path / "out", ("overlap",), repeats=20))
    written = json.loads((tmp_path / "out/results.json").read_text())
    said = written["settings"]["generated"]
    assert (said["reports"], said["without a reference, left out"], said["empty texts"]) == (5, 1, 1)
    assert written["settings"]["groups"] == {"reports by subject": 5}
    figures = {one["name"]: one for one in written["results"]["overlap"]["figures"]}
    assert figures["ROUGE-L"]["n"] == 4
    assert set(figures["ROUGE-L"]["baselines"]) == {"shuffled", "commonest", "ceiling"}
    assert figures["ROUGE-L"]["baselines"]["ceiling"] == 1
    # Two of the four references are the commonest one; of the others, "no edema is seen" shares "is".
    assert figures["ROUGE-L"]["baselines"]["commonest"] == pytest.approx((1 + 1 + 1 / 4 + 0) / 4)
    assert written["results"]["overlap"]["notes"]["words"].startswith("Penn Treebank")
    scores = pd.read_parquet(tmp_path / "out/scores.parquet").set_index("key")
    assert list(scores.index) == list(SAID)
    assert list(scores.columns) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert scores.loc["c"].isna().all()
    assert scores.loc["a", "ROUGE-L"] == 1
    assert scores["ROUGE-L"].mean() == pytest.approx(figures["ROUGE-L"]["value"])
    assert "secretword" not in (tmp_path / "out/results.json").read_text() + results.markdown()
    files = ["marks.jsonl", "results.json", "results.md", "scores.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    marks = [json.loads(line) for line in (tmp_path / "out/marks.jsonl").read_text().splitlines()]
    assert [one["key"] for one in marks] == list(SAID)
    assert marks[4]["reference"][0]["text"] == "A secretword effusion."


def test_text_that_is_tokenised_already_is_scored_as_it_is(table, tmp_path):
    results = score(ScoreConfig(table, tmp_path, ("overlap",), words="whitespace", repeats=0))
    assert results.outcomes["overlap"].notes["words"] == "what stands between blanks, case as it is"


def test_a_scorer_that_fails_loses_no_other(table, tmp_path, monkeypatch):
    every = {one.name: one for one in (Missing(), Broken(), OfKeys())}
    monkeypatch.setattr(ScoreConfig, "every_scorer", lambda config: every)
    config = ScoreConfig(table, tmp_path)
    results = score(config)
    written = json.loads((tmp_path / "results.json").read_text())["results"]
    assert written["missing"]["error"] == "not run: no weights; pass --missing.weights"
    assert written["broken"]["error"].startswith("RuntimeError in ")
    assert "heart" not in json.dumps(written)
    assert written["keys"]["figures"][0]["baselines"] == {"own": 0.5, "shuffled": 3}
    assert config.failed(results) == ["broken"]  # what lacks something has failed where it was asked for
    assert ScoreConfig(table, tmp_path, ("missing", "keys")).failed(results) == ["missing"]
    scores = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert scores["place"][:2] == [ord("a"), ord("b")]
    assert np.isnan(scores["place"][2])


def test_a_baseline_that_fails_loses_no_figure(table, tmp_path, monkeypatch):
    class Once(OfKeys):
        def score(self, reports, intervals):
            if intervals.repeats == 0:
                raise RuntimeError(reports.references[0])
            return super().score(reports, intervals)

    monkeypatch.setattr(ScoreConfig, "every_scorer", lambda config: {"keys": Once()})
    outcome = score(ScoreConfig(table, tmp_path, repeats=1)).outcomes["keys"]
    assert outcome.figures[0].baselines == {"own": 0.5}
    assert outcome.notes["baselines not made"].startswith("RuntimeError in ")


def test_scores_are_written_after_each_scorer(table, tmp_path, monkeypatch):
    class Late(OfKeys):
        name = "late"

        def score(self, reports, intervals):
            assert pq.read_schema(tmp_path / "scores.parquet").names[:2] == ["key", "BLEU-1"]
            return super().score(reports, intervals)

    monkeypatch.setattr(ScoreConfig, "every_scorer", lambda config: {"overlap": Overlap(), "late": Late()})
    assert not score(ScoreConfig(table, tmp_path, repeats=0)).failed


def test_two_scorers_cannot_have_one_column(table, tmp_path, monkeypatch):
    class Again(OfKeys):
        name = "again"

    monkeypatch.setattr(ScoreConfig, "every_scorer", lambda config: {"keys": OfKeys(), "again": Again()})
    results = score(ScoreConfig(table, tmp_path, repeats=0))
    assert results.outcomes["again"].error == "again: columns ['place'] are another scorer's, or have not 4 rows"


# --- what figures have to beat


def test_shuffled_texts_are_all_of_other_subjects():
    for seed in range(20):
        groups = np.random.default_rng(seed).permutation(["a", "a", "a", "b", "b", "c", "d", "d"])
        places = others_places(reports_of(groups), seed)
        assert sorted(places) == list(range(8))
        assert all(groups[place] != own for place, own in zip(places, groups, strict=True))


def test_there_is_no_shuffling_where_one_subject_has_most_reports(table):
    assert others_places(reports_of(["a", "a", "b"]), 0) is None
    assert others_places(reports_of(["a"]), 0) is None
    figures = with_baselines(Overlap(), Overlap().score(reports_of(["a"]), Intervals(0)), reports_of(["a"]), 0)
    assert set(figures[0].baselines) == {"commonest", "ceiling"}


def test_the_commonest_reference_is_the_same_whatever_its_case_and_blanks():
    references = ("Clear.", "No  edema.", "no edema.", "Clear lungs.")
    reports = Reports(("a", "b", "c", "d"), references, ("",) * 4, np.array(list("abcd")))
    assert other_texts("commonest", reports, 0) == ("No  edema.",) * 4


# --- the command

WRONG = {
    "scorer": ({"scorers": ("bleu",)}, r"there is no scorer bleu; there are overlap, "),
    "words": ({"words": "Ptb"}, r"words is 'Ptb', must be ptb or whitespace"),
    "repeats": ({"repeats": -1}, r"repeats is -1, must be at least 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_told(case, tmp_path):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        ScoreConfig(tmp_path, tmp_path, **options)


def test_a_table_without_any_reference_is_told(tmp_path):
    (tmp_path / "own.csv").write_text('reference,text\n"",x\n" ",y\n')
    with pytest.raises(ValueError, match=r"none of the 2 generated reports has a reference"):
        score(ScoreConfig(tmp_path / "own.csv", tmp_path))


def run(monkeypatch, *options):
    spec = importlib.util.spec_from_file_location("score_pipeline", PIPELINE)
    pipeline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pipeline)
    monkeypatch.setattr(sys, "argv", ["score.py", *map(str, options)])
    return pipeline.main()


def test_the_command_scores_a_table_and_says_what_went_wrong(table, tmp_path, monkeypatch, capsys):
    options = ["--out", tmp_path / "out", "--repeats", 0, "--scorers", "[overlap]"]
    assert run(monkeypatch, "--generated", table, *options, "--words", "whitespace") == 0
    assert "| ROUGE-L |" in capsys.readouterr().out
    assert run(monkeypatch, "--generated", tmp_path / "absent.csv", *options) == 1
    assert capsys.readouterr().err.startswith("score: absent.csv is not there; ")


def test_a_scorer_that_is_asked_for_and_cannot_run_is_a_failure(table, tmp_path, monkeypatch):
    options = ["--generated", table, "--out", tmp_path / "out", "--repeats", 0, "--meteor.java", "no-java"]
    assert run(monkeypatch, *options, "--scorers", "[meteor]") == 1
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["results"]["METEOR"]["error"].startswith("not run: no java")
    assert written["settings"]["scorers"] == ["meteor"]
