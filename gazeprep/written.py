"""Reports that a model wrote, where it looked, how they were scored: two folders of cogaze's, read without its code."""

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from gazeprep.shards import read_npz, sha256_of
from gazeprep.sources.csv_table import numbers, read_table

REPORTS, LINES, ATTENTION = "generated.parquet", "generated.jsonl", "attention.npz"
SCORES, MARKS, RESULTS = "scores.parquet", "marks.jsonl", "results.json"
COLUMNS = ("key", "reference", "text")
MAX_FILE_BYTES = 2**31  # of attention, unpacked, and of marks: hundreds of times what MIMIC-CXR's test split has
SUM_OFF = 0.01  # of a sentence's attention, which is written with six decimals
# The score that studies are chosen by where none is named: the first of these that there is.
USUAL_SCORES = ("label agreement", "RadGraph", "RaTEScore", "BERTScore", "BLEU-4", "ROUGE-L")
ERROR_SCORES = ("radcliq",)  # less is better
NAMED_COLUMNS = 12  # in an error
MARKED_BY = "rule-based labels, not CheXbert"  # what pipelines/score.py marks findings by

Status = Literal["positive", "negative", "uncertain"]
Verdict = Literal["match", "contradiction", "alone"]


@dataclass(frozen=True, eq=False)
class Looked:
    """A sentence of a generated report, and its attention (rows, cols) over the whole picture; sums to 1."""

    sentence: str
    mass: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Written:
    """A study's written and generated report, each "" where there is none, and where its sentences looked."""

    key: str
    reference: str
    text: str
    looked: tuple[Looked, ...]


@dataclass(frozen=True)
class Finding:
    """What a sentence says of a label, and how that stands to the other report."""

    label: str
    status: Status
    verdict: Verdict


@dataclass(frozen=True)
class Piece:
    """A sentence of a report with the findings it names."""

    text: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Marks:
    """Both reports of a study in sentences."""

    reference: tuple[Piece, ...]
    text: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Scores:
    """Each report's scores, a row for each key, NaN where there is none; the marks of those that have them."""

    table: pd.DataFrame
    marks: Mapping[str, Marks]


@dataclass(frozen=True)
class Chosen:
    """The studies with the best and the worst values of a score, each best or worst first; how many have no value."""

    by: str
    best: tuple[str, ...]
    worst: tuple[str, ...]
    without: int


def read_written(folder: Path, known: Container[str]) -> dict[str, Written]:
    """Read the reports of a folder of pipelines/generate.py by key; known: the keys of the shards.

    Raises ValueError where a file is missing, damaged or not as that pipeline writes it, or a key is not known.
    """
    if not (folder / REPORTS).is_file():
        raise ValueError(f"--generated: no {REPORTS} there; give the folder that a finished pipelines/generate.py made")
    table = read_table(folder / REPORTS, COLUMNS, kind=REPORTS)
    if table["key"].duplicated().any():
        raise ValueError(f"{REPORTS}: {table['key'].duplicated().sum()} keys stand twice; generate the reports again")
    strange = sum(key not in known for key in table["key"])
    if strange:
        raise ValueError(
            f"{REPORTS}: {strange} of {len(table)} reports are of samples that these shards do not hold; give the "
            "shards that they were generated from"
        )
    looked = _read_attention(folder / ATTENTION, frozenset(table["key"]))
    rows = table[list(COLUMNS)].itertuples(index=False, name=None)
    return {key: Written(key, reference, text, tuple(looked.get(key, ()))) for key, reference, text in rows}


def _read_attention(path: Path, keys: frozenset[str]) -> dict[str, list[Looked]]:
    """Return the rows of each key, in their order; nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        arrays = read_npz(_bounded(path), MAX_FILE_BYTES)
        names, sentences, masses = (arrays[name] for name in ("key", "sentence", "mass"))
        _check_attention(names, sentences, masses)
    except (ValueError, LookupError) as error:
        why = str(error) if type(error) is ValueError else f"no array {error}"
        raise ValueError(f"{ATTENTION}: {why}; generate the reports again") from None
    strange = len(set(names.tolist()) - keys)
    if strange:
        raise ValueError(
            f"{ATTENTION}: {strange} keys are of no report in {REPORTS}; the folder's files are of two runs: "
            "generate the reports again"
        )
    looked: dict[str, list[Looked]] = {}
    for name, sentence, mass in zip(names.tolist(), sentences.tolist(), masses, strict=True):
        looked.setdefault(name, []).append(Looked(sentence, mass))
    return looked


def _check_attention(names: npt.NDArray[Any], sentences: npt.NDArray[Any], masses: npt.NDArray[Any]) -> None:
    kinds = (names.dtype.kind, sentences.dtype.kind, masses.dtype.kind)
    shapes = (names.ndim, sentences.ndim, masses.ndim)
    lengths = {len(names), len(sentences), len(masses)} if 0 not in shapes else set()
    if kinds != ("U", "U", "f") or shapes != (1, 1, 3) or len(lengths) != 1:
        raise ValueError("key, sentence and mass must be texts (T,), texts (T,) and numbers (T, rows, cols)")
    sums = masses.sum(axis=(1, 2), dtype=np.float64)
    if not np.isfinite(sums).all() or (masses < 0).any() or (abs(sums - 1) > SUM_OFF).any():
        raise ValueError("a sentence's attention is negative or does not sum to 1")


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    return path.read_bytes()


# --- scores


def read_scores(folder: Path, generated: Path, keys: Iterable[str]) -> Scores:
    """Read the scores of a folder of pipelines/score.py; keys: of the reports in the folder `generated`.

    Raises ValueError where a file is missing or not as that pipeline writes it, or is of other reports.
    """
    for name in (SCORES, RESULTS):
        if not (folder / name).is_file():
            raise ValueError(f"--scores: no {name} there; give the folder that pipelines/score.py wrote")
    own = {sha256_of(path) for name in (REPORTS, LINES) if (path := generated / name).is_file()}
    if _sha256_of_scored(folder / RESULTS) not in own:
        raise ValueError("--scores: they are of other reports than --generated holds; score these")
    table = _read_table(folder / SCORES, set(keys))
    marks = _read_marks(folder / MARKS, set(table.index)) if (folder / MARKS).is_file() else {}
    return Scores(table, marks)


def _sha256_of_scored(path: Path) -> str:
    try:
        return str(json.loads(_bounded(path))["settings"]["generated"]["sha256"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{RESULTS} cannot be read as scores of reports ({type(error).__name__}); run pipelines/score.py again"
        ) from None


def _read_table(path: Path, keys: set[str]) -> pd.DataFrame:
    table = read_table(path, ("key",), kind=SCORES, all_columns=True)
    found = set(table["key"])
    if found != keys or len(found) != len(table):
        raise ValueError(
            f"{SCORES}: {len(found - keys)} keys are of no generated report, {len(keys - found)} reports have no row, "
            f"{len(table) - len(found)} rows are repeated; score the reports again"
        )
    columns = [str(name) for name in table if name != "key"]
    values = {name: numbers(table, name, kind=SCORES, empty=np.nan) for name in columns}
    return pd.DataFrame(values, index=pd.Index(table["key"]), dtype=np.float64)


def _read_marks(path: Path, keys: set[str]) -> dict[str, Marks]:
    try:
        lines = _bounded(path).decode().removesuffix("\n").split("\n")  # not at U+2028, which a text may hold
    except ValueError as error:
        raise ValueError(f"{MARKS} cannot be read ({type(error).__name__}); score the reports again") from None
    marks: dict[str, Marks] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            _expect(row, {"key": str, "reference": list, "text": list})
            found = Marks(*(tuple(_piece(piece) for piece in row[side]) for side in ("reference", "text")))
        except (ValueError, RecursionError):  # of json, whose message may quote what it read
            raise ValueError(
                f"{MARKS}, line {number} is not as pipelines/score.py writes it; score the reports again"
            ) from None
        if row["key"] not in keys or row["key"] in marks:
            raise ValueError(f"{MARKS}, line {number}: its key is of no report, or stands twice; score them again")
        marks[row["key"]] = found
    return marks


def _piece(value: Any) -> Piece:
    _expect(value, {"text": str, "findings": list})
    return Piece(value["text"], tuple(_finding(one) for one in value["findings"]))


def _finding(value: Any) -> Finding:
    _expect(value, {"label": str, "status": get_args(Status), "verdict": get_args(Verdict)})
    return Finding(value["label"], value["status"], value["verdict"])


def _expect(value: Any, members: Mapping[str, type | tuple[str, ...]]) -> None:
    """Raise ValueError unless value is an object of just these members, each of its type or one of these texts."""
    if not isinstance(value, dict) or value.keys() != members.keys():
        raise ValueError("other members")
    for name, wanted in members.items():
        is_so = isinstance(value[name], wanted) if isinstance(wanted, type) else value[name] in wanted
        if not is_so:
            raise ValueError(f"another {name}")


# --- which studies


def choose(table: pd.DataFrame, by: str, count: int) -> Chosen:
    """Return the `count` best and worst studies by a score; of fewer than twice as many, the best go first.

    by: a column of the table or how it begins, letters and figures alone compared; "" for a usual one. Of equal scores
    the first key comes first. Raises ValueError where no column, several, or one without a value is meant.
    """
    column = _column(table, by) if by else _usual(table)
    scored = table[column].dropna()
    if not len(scored):
        raise ValueError(f"--by: no report has a value of {column!r}; choose by another score")
    sign = 1 if _plain(column).startswith(ERROR_SCORES) else -1
    ranked = sorted(scored.index, key=lambda key: (sign * scored[key], key))
    best = ranked[:count]
    worst = sorted(ranked[len(best) :], key=lambda key: (-sign * scored[key], key))[:count]
    return Chosen(column, tuple(best), tuple(worst), len(table) - len(scored))


def _column(table: pd.DataFrame, by: str) -> str:
    names = [str(name) for name in table]
    exact = [name for name in names if _plain(name) == _plain(by)]
    found = exact or [name for name in names if _plain(name).startswith(_plain(by))]
    if len(found) != 1:
        listed = ", ".join((found or names)[:NAMED_COLUMNS])
        raise ValueError(f"--by means {len(found)} of the scores, must be one; there are {listed}")
    return found[0]


def _usual(table: pd.DataFrame) -> str:
    having = [str(name) for name in table if table[name].notna().any()]
    if not having:
        raise ValueError(f"{SCORES} holds no score of any report; score the reports again")
    usual = (name for start in USUAL_SCORES for name in having if _plain(name).startswith(_plain(start)))
    return next(usual, having[0])


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


# --- sentences


@dataclass(frozen=True, eq=False)
class Said:
    """A sentence's attention, and the numbers from 1 of the pieces of the report that say it; () of none."""

    looked: Looked
    numbers: tuple[int, ...]


def said_in(pieces: Sequence[str], looked: Sequence[Looked]) -> list[Said]:
    """Find sentences in the pieces of their report; what it says several times comes once, with all its numbers."""
    rows: dict[tuple[str, bytes], list[int]] = {}
    for row, one in enumerate(looked):
        rows.setdefault((_squeezed(one.sentence), one.mass.tobytes()), []).append(row)
    begins = places(pieces, [one.sentence for one in looked])
    said = []
    for same in rows.values():
        numbers = dict.fromkeys(place + 1 for row in same if (place := begins[row]) is not None)
        said.append(Said(looked[same[0]], tuple(numbers)))
    return said


def places(pieces: Iterable[str], sentences: Iterable[str]) -> list[int | None]:
    """Return for each sentence the place of the piece in which it begins; both split one text, each in its own way.

    Letters are compared without case and white space. None where a sentence does not stand in what is left of the text.
    """
    starts, joined = [], ""
    for piece in pieces:
        starts.append(len(joined))
        joined += _squeezed(piece)
    found: list[int | None] = []
    cursor = 0
    for sentence in map(_squeezed, sentences):
        at = joined.find(sentence, cursor)
        found.append(None if at < 0 else int(np.searchsorted(starts, at, side="right")) - 1)
        cursor = cursor if at < 0 else at + len(sentence)
    return found


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


def peak_over_even(mass: npt.NDArray[np.floating]) -> float:
    """Return how many times as much attention the brightest cell has as if all cells had the same."""
    return float(mass.max()) * math.prod(mass.shape)
