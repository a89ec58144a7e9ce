"""Tables of generated reports: the same rows from each format, groups, one error for each thing that is wrong."""

import json

import numpy as np
import pandas as pd
import pytest

from cogaze.evaluate.reports.generated import read_generated
from gazeprep.schema import InputError
from gazeprep.shards import sha256_of

ROWS = [
    {"key": "a", "study_id": "s1", "subject_id": "p1", "reference": "No edema, é.", "text": "Edema.\nSmall"},
    {"key": "b", "study_id": "s2", "subject_id": "", "reference": "", "text": "Clear"},
    {"key": "c", "study_id": "", "subject_id": "", "reference": 'Normal "heart"', "text": ""},
]


def write(path, rows):
    table = pd.DataFrame(rows)
    if path.name.endswith(".parquet"):
        table.to_parquet(path)
    elif path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["own.parquet", "own.csv", "own.csv.gz", "own.jsonl", "generated.parquet"])
def test_each_format_holds_the_same_rows(name, tmp_path):
    path = write(tmp_path / name, ROWS)
    found = read_generated(tmp_path if name == "generated.parquet" else path)
    assert found.reports.keys == ("a", "b", "c")
    assert found.reports.references == ("No edema, é.", "", 'Normal "heart"')
    assert found.reports.texts == ("Edema.\nSmall", "Clear", "")
    assert list(found.reports.groups) == ["subject p1", "study s2", "report c"]
    assert found.grouped == {"subject": 1, "study": 1, "report": 1}
    assert found.sha256 == sha256_of(path)


@pytest.mark.parametrize("name", ["own.parquet", "own.csv", "own.jsonl"])
def test_rows_without_keys_are_numbered(name, tmp_path):
    found = read_generated(write(tmp_path / name, [{"reference": "x", "text": "y", "score": 1}] * 2)).reports
    assert found.keys == ("1", "2")
    assert list(found.groups) == ["report 1", "report 2"]


def test_null_is_no_text(tmp_path):
    for name in ("own.parquet", "own.jsonl"):
        rows = [{"reference": "x", "text": None}, {"reference": None, "text": "y"}]
        found = read_generated(write(tmp_path / name, rows)).reports
        assert (found.texts, found.references) == (("", "y"), ("x", ""))


WRONG = {
    "no file": ("absent.csv", None, r"^absent\.csv is not there; name the folder that pipelines/generate\.py wrote"),
    "format": ("own.xlsx", b"", r"^own\.xlsx is no \.parquet, \.csv, \.csv\.gz or \.jsonl file"),
    "column": ("own.csv", [{"reference": "secret", "texts": "secret"}], r"no column 'text' .* but has 'texts'"),
    "numbers": ("own.parquet", [{"reference": "secret", "text": 1.5}], r"'text' is of type double, must be string"),
    "lists": (
        "own.parquet",
        [{"reference": "secret", "text": ["secret"]}],
        r"'text' is of type list.*, must be string",
    ),
    "no rows": ("own.csv", b"reference,text\n", r"has no row; generate reports first"),
    "no lines": ("own.jsonl", b"\n", r"has no row"),
    "broken json": ("own.jsonl", b'{"reference": "secret"\n', r"line 1 is no json object"),
    "json list": ("own.jsonl", b'["secret"]\n', r"line 1 is no json object"),
    "json column": (
        "own.jsonl",
        b'{"reference": "secret", "texts": ""}\n',
        r"line 1: 'text' is missing, must be a str",
    ),
    "json number": ("own.jsonl", b'{"reference": "secret", "text": 5}\n', r"line 1: 'text' is int, must be a string"),
    "json of depth": ("own.jsonl", b"[" * 100_000 + b"\n", r"line 1 is no json object"),
    "half a character": ("own.jsonl", b'{"reference": "\\ud800", "text": ""}\n', r"line 1 is no json object"),
    "not utf-8": ("own.jsonl", b'{"reference": "\xff", "text": ""}\n', r"is not UTF-8"),
    "key twice": ("own.csv", [{**ROWS[0], "key": "secret"}] * 2, r"row 2: the key stands twice \(1 such rows\)"),
    "no key": ("own.csv", [{**ROWS[0], "key": ""}], r"row 1: the key is empty \(1 such rows\); give each"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_the_cure_and_without_text(case, tmp_path):
    name, content, message = WRONG[case]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as raised:
        read_generated(tmp_path / name)
    assert "secret" not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_a_folder_without_reports_is_told(tmp_path):
    with pytest.raises(InputError, match=r"^generated\.parquet is not there; name the folder"):
        read_generated(tmp_path)


def test_rows_are_taken_in_the_order_asked_for(tmp_path):
    taken = read_generated(write(tmp_path / "own.csv", ROWS)).reports.take(np.array([2, 0]))
    assert taken.keys == ("c", "a")
    assert list(taken.groups) == ["report c", "subject p1"]
