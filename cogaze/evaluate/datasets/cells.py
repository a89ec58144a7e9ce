"""Cells of the datasets' tables: labels, ages, sexes, views; what is unknown is counted, what is wrong is told."""

import re
from collections.abc import Mapping, Sequence

from cogaze.evaluate.datasets.folders import Notes

OLDEST_YEARS = 120
_AGE = re.compile(r"(\d{1,4})([YMWD]?)")
_MONTHS_OF = {"": 12, "Y": 12, "M": 1, "W": 0, "D": 0}
_SEX = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "": "", "UNKNOWN": "", "U": "", "O": ""}
_WORDS = re.compile(r"[-+0-9A-Za-z.,|/ _]{0,24}")
_DIGITS = re.compile(r"(\D*\d){4}")  # so many may be an id


def age_years(cell: str, notes: Notes) -> int | None:
    """Return whole years of 45, 045Y or 018M; None for blank cells, and counted for others and beyond 120 years."""
    text = cell.strip().upper()
    if not text:
        return None
    found = _AGE.fullmatch(text)
    if found is None:
        notes["ages that cannot be read, taken as unknown"] += 1
        return None
    years = int(found[1]) * _MONTHS_OF[found[2]] // 12
    if years > OLDEST_YEARS:
        notes[f"ages above {OLDEST_YEARS}, taken as unknown"] += 1
        return None
    return years


def sex_of(cell: str, notes: Notes) -> str:
    """Return M, F or "", counting cells that are none of the known words."""
    text = cell.strip().upper()
    if text not in _SEX:
        notes["sexes that cannot be read, taken as unknown"] += 1
    return _SEX.get(text, "")


def labels_of(cells: Sequence[str], values: Mapping[str, int], table: str, column: str) -> list[int]:
    """Return the labels that these cells stand for; raises ValueError naming the first other value and its row."""
    labels = []
    for row, cell in enumerate(cells, start=1):
        value = values.get(cell.strip())
        if value is None:
            known = ", ".join(repr(one) for one in values)
            raise ValueError(f"{table}, row {row}, column {column!r} is {shown(cell)}, must be one of {known}")
        labels.append(value)
    return labels


def shown(cell: str) -> str:
    """Return a cell for an error: itself where it is short and can be no id, else its length."""
    plain = _WORDS.fullmatch(cell) and not _DIGITS.match(cell)
    return repr(cell) if plain else f"{len(cell)} characters"
