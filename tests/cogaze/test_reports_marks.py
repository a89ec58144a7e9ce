"""Verdicts that a reader sees at once, and the lines that are written."""

import json

import numpy as np
import pytest

from cogaze.evaluate.reports.marks import marks_of, write_marks
from cogaze.evaluate.reports.scorers import Reports

CASES = {
    "both have it": ("Small effusion.", "Large left effusion.", "match"),
    "both deny it": ("No effusion.", "There is no pleural effusion.", "match"),
    "both doubt it": ("Possible effusion.", "Effusion cannot be excluded.", "match"),
    "invented": ("No effusion.", "Small effusion.", "contradiction"),
    "denied": ("Small effusion.", "No effusion.", "contradiction"),
    "doubt beside a finding": ("Small effusion.", "Possible effusion.", "alone"),
    "a finding beside doubt": ("Possible effusion.", "Small effusion.", "alone"),
    "doubt beside denial": ("No effusion.", "Possible effusion.", "alone"),
    "not spoken of": ("Scoliosis.", "Small effusion.", "alone"),
    "healthy beside ill": ("The heart is enlarged.", "Heart size is normal.", "contradiction"),
    "normal beside normal": ("No effusion.", "No acute cardiopulmonary process.", "match"),
    "normal beside ill": ("Small effusion.", "No acute cardiopulmonary process.", "contradiction"),
    "normal beside doubt": ("Possible effusion.", "No acute cardiopulmonary process.", "alone"),
}


@pytest.mark.parametrize(("reference", "text", "verdict"), CASES.values(), ids=CASES)
def test_verdict_on_what_the_text_says(reference, text, verdict):
    (piece,) = marks_of(reference, text).text
    assert [mark.verdict for mark in piece.findings] == [verdict]


def test_a_report_never_contradicts_itself():
    said = "No right effusion. Small left effusion. Cardiomegaly. No acute cardiopulmonary process. Scoliosis."
    marks = marks_of(said, said)
    assert marks.reference == marks.text
    assert {mark.verdict for piece in marks.text for mark in piece.findings} == {"match"}
    assert [piece.text for piece in marks.text] == [f"{one.rstrip('.')}." for one in said.split(". ")]
    assert marks.text[-1].findings == ()


def test_the_whole_report_is_what_contradicts():
    marks = marks_of("No right effusion. Small left effusion.", "No effusion.")
    assert [mark.verdict for piece in marks.reference for mark in piece.findings] == ["match", "contradiction"]
    assert [mark.verdict for mark in marks.text[0].findings] == ["match"]


def test_lines_are_the_pieces_of_both(tmp_path):
    reports = Reports(("a", "b"), ("No effusion.", "Edema."), ("Effusion — large.", ""), np.array(["a", "b"]))
    write_marks(tmp_path / "marks.jsonl", reports)
    first, second = map(json.loads, (tmp_path / "marks.jsonl").read_text(encoding="utf-8").splitlines())
    found = {"label": "Pleural Effusion", "status": "positive", "verdict": "contradiction"}
    assert first["text"] == [{"text": "Effusion — large.", "findings": [found]}]
    assert first["reference"] == [{"text": "No effusion.", "findings": [found | {"status": "negative"}]}]
    assert (second["key"], second["text"]) == ("b", [])
    assert second["reference"][0]["findings"][0]["verdict"] == "alone"
    assert [path.name for path in tmp_path.iterdir()] == ["marks.jsonl"]
