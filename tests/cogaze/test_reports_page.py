"""What generating and scoring write is what the page of the shards reads: file names, columns, arrays, marks."""

import json
from pathlib import Path

import numpy as np
import pytest

from cogaze import generate
from cogaze.evaluate.reports import labeller
from cogaze.evaluate.reports.marks import marks_of
from cogaze.evaluate.reports.score import ScoreConfig, score
from gazeprep.written import MARKED_BY, choose, read_scores, read_written, said_in

REPORTS = {
    "own-1": ("Large left effusion. No pneumothorax.", "no effusion. a 2. 5 cm nodule. no pneumothorax."),
    "own-2": ("", "possible edema."),
    "own-3": ("Clear lungs.", ""),
}
SPLIT = {"own-1": ("no effusion.", "a 2.", "5 cm nodule.", "no pneumothorax."), "own-2": ("possible edema.",)}


@pytest.fixture
def generated(tmp_path) -> Path:
    """A folder as generation leaves it."""
    even = np.full((2, 3), 1 / 6).round(6).tolist()
    lines = []
    for key, (reference, text) in REPORTS.items():
        row = dict(zip(generate.COLUMNS, (key, "study", "image", "subject", reference, text), strict=True))
        looked = [{"sentence": sentence, "mass": even} for sentence in SPLIT.get(key, ())]
        lines.append(json.dumps(row | {"attention": looked}) + "\n")
    (tmp_path / generate.PARTS).mkdir()
    (tmp_path / generate.PARTS / "000000.jsonl").write_text("".join(lines))
    generate._join(tmp_path, 1, {"studies": len(REPORTS)})
    return tmp_path


def test_the_page_reads_what_was_generated_and_scored(generated):
    out = generated / "scores"
    score(ScoreConfig(generated, out, scorers=("overlap", "labels"), repeats=0))
    reports = read_written(generated, REPORTS)
    scores = read_scores(out, generated, reports)
    assert {key: (one.reference, one.text) for key, one in reports.items()} == REPORTS
    assert [one.sentence for one in reports["own-1"].looked] == list(SPLIT["own-1"])
    for key, marks in scores.marks.items():
        expected = marks_of(*REPORTS[key])
        for own, other in ((marks.reference, expected.reference), (marks.text, expected.text)):
            assert [(one.text, [vars(two) for two in one.findings]) for one in own] == [
                (one.text, [vars(two) for two in one.findings]) for one in other
            ]
    assert choose(scores.table, "bleu_4", 3).without == 1
    assert choose(scores.table, "", 1).by == f"label agreement ({labeller.NAME})"


def test_attention_is_found_in_the_sentences_that_are_marked(generated):
    marked = [piece.text for piece in marks_of(*REPORTS["own-1"]).text]
    looked = read_written(generated, REPORTS)["own-1"].looked
    assert [one.numbers for one in said_in(marked, looked)] == [(1,), (2,), (2,), (3,)]


def test_the_page_says_what_the_findings_are_labelled_by():
    assert MARKED_BY == labeller.NAME
