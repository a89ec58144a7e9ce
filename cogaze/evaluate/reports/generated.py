"""Generated reports as they were written: a folder of pipelines/generate.py, or anyone's table, read strictly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cogaze.evaluate.reports.scorers import Reports
from gazeprep.schema import InputError
from gazeprep.shards import sha256_of
from gazeprep.sources.csv_table import read_table

FILE = "generated.parquet"
NEEDED, OPTIONAL = ("reference", "text"), ("key", "study_id", "subject_id")
KIND = "the table of generated reports"


@dataclass(frozen=True, eq=False)
class Generated:
    """All rows of a table, its sha256, and how many rows stay together by what: subject, study, or alone."""

    reports: Reports
    sha256: str
    grouped: Mapping[str, int]


def read_generated(path: Path) -> Generated:
    """Read generated.parquet of a folder, or a .parquet, .csv, .csv.gz or .jsonl file with `reference` and `text`.

    `key`, `study_id` and `subject_id` need not be there; rows without keys are numbered from 1. Raises InputError where
    the file is missing or no such table, a column is missing or not text, or a key is empty or stands twice.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            "file_missing",
            f"{file.name} is not there; name the folder that pipelines/generate.py wrote, or a table of your own",
        )
    table = _read(file)
    if table.empty:
        raise InputError("no_inputs", f"{KIND} has no row; generate reports first")
    keys = _keys(table)
    kinds, groups = _groups(table, keys)
    reports = Reports(keys, tuple(table["reference"]), tuple(table["text"]), groups)
    return Generated(reports, sha256_of(file), {kind: kinds.count(kind) for kind in ("subject", "study", "report")})


def _read(file: Path) -> pd.DataFrame:
    if file.suffix == ".jsonl":
        return _read_lines(file)
    if not file.name.endswith((".parquet", ".csv", ".csv.gz")):
        raise InputError(
            "wrong_format", f"{file.name} is no .parquet, .csv, .csv.gz or .jsonl file; write one of these"
        )
    table = read_table(file, NEEDED, kind=KIND, optional=OPTIONAL)
    if file.suffix == ".parquet":
        types = {one.name: one.type for one in pq.read_schema(file)}
        for name in NEEDED:
            _refuse_other_types(name, types[name])
    return table


def _refuse_other_types(name: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_null(value)):
        raise InputError(
            "wrong_columns", f"{KIND}: column {name!r} is of type {kind}, must be string; write it as text"
        )


def _read_lines(file: Path) -> pd.DataFrame:
    rows = []
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [_row(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    except UnicodeDecodeError:
        raise InputError("unreadable_table", f"{KIND} is not UTF-8; write it as UTF-8") from None
    return pd.DataFrame(rows, dtype=object)


def _row(line: str, number: int) -> dict[str, str]:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not _writable(value):
        raise InputError("unreadable_table", f"{KIND}, line {number} is no json object; write one object on each line")
    row = {name: value[name] if value[name] is not None else "" for name in (*NEEDED, *OPTIONAL) if name in value}
    for name in NEEDED:
        if not isinstance(row.get(name), str):
            what = f"is {type(row[name]).__name__}" if name in row else "is missing"
            raise InputError("wrong_columns", f"{KIND}, line {number}: {name!r} {what}, must be a string; correct it")
    return {name: str(row.get(name, "")) for name in (*NEEDED, *(one for one in OPTIONAL if one in row))}


def _writable(row: Mapping[str, Any]) -> bool:
    """Tell whether a row holds no half of a character, which json can escape and no file can hold."""
    try:
        "".join(value for value in row.values() if isinstance(value, str)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _keys(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the keys; of a table without, row numbers from 1."""
    if "key" not in table:
        return tuple(str(number) for number in range(1, len(table) + 1))
    keys = table["key"].fillna("")
    for what, wrong in (("is empty", keys == ""), ("stands twice", keys.duplicated())):
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0]) + 1
            raise InputError(
                "bad_cell",
                f"{KIND}, row {first}: the key {what} ({int(wrong.sum())} such rows); give each report its own, or "
                "leave the column out",
            )
    return tuple(keys)


def _groups(table: pd.DataFrame, keys: tuple[str, ...]) -> tuple[list[str], npt.NDArray[np.str_]]:
    """Return by what each row stays together with others, and the name of its group."""
    columns = {"subject": "subject_id", "study": "study_id"}
    known = {kind: table[name].fillna("") for kind, name in columns.items() if name in table} | {"report": keys}
    named = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
    kinds = [next(kind for kind, value in row.items() if value) for row in named]
    return kinds, np.array([f"{kind} {row[kind]}" for kind, row in zip(kinds, named, strict=True)])
