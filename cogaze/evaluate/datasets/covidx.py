"""COVIDx CXR-4: lists with a patient, a file, a class and a source on each line; COVID-19 or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cogaze.evaluate.datasets.cells import labels_of
from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    counted,
    need_file,
    note_count,
    pictures_below,
    release_folder,
    with_picture,
)
from cogaze.evaluate.datasets.lists import ListForm, Parts, listed_parts, read_lines, read_lists, with_shares
from cogaze.evaluate.records import EvalImage, EvalSet
from gazeprep.splits import HashSplit

NAME = "COVIDx CXR-4"
FINDING = "COVID-19"
PARTS = {"train": "train", "validate": "val", "test": "test"}
PUBLISHED = {"train": 67863, "validate": 8473, "test": 8482}
_CLASSES = {"positive": 1, "negative": 0}
FORM = ListForm(published={"train": 67862, "train_1": 678, "train_10": 6786, "validate": 8472, "test": 8481})


@dataclass(frozen=True)
class _Row:
    subject: str
    label: int


def read_covidx(
    root: Path,
    lists: Path | None = None,
    *,
    shared_patients: Literal["refuse", "leave_out"] = "refuse",
    missing: Missing = "refuse",
    seed: int = 0,
) -> EvalSet:
    """Read the three parts as they come; `lists` holds BenchX's, of names such as train/x.png.

    A patient is the same one where number and source are. shared_patients leave_out takes those of test out of the
    other parts, and those of validate out of train, and notes how many images. Raises ValueError where lists or
    pictures are not what docs/benchmarks.md says, or parts share a patient.
    """
    root, notes = release_folder(root, NAME), Notes()
    rows: dict[str, _Row] = {}
    vendor: dict[str, list[str]] = {}
    for part, folder in PARTS.items():
        found = _rows(need_file(root, [f"{folder}.txt"], NAME), folder)
        note_count(notes, f"lines of {folder}.txt", len(found), PUBLISHED[part])
        rows |= found
        vendor[part] = list(found)
    pictures = pictures_below(root, list(PARTS.values()), "covidx")
    images = {
        one: EvalImage(one, pictures[one], (rows[one].label,), subject=rows[one].subject)
        for one in with_picture(rows, pictures, missing, NAME, notes)
    }
    if lists is None:
        by_hash = HashSplit(seed=seed)
        parts = with_shares(listed_parts(images, vendor, rows, NAME, notes), by_hash)
        origin = f"COVIDx's own; train_1 and train_10 by a hash of the patient, seed {seed}"
    else:
        parts = listed_parts(images, read_lists(lists, FORM, NAME, notes), rows, NAME, notes)
        origin = "the lists given"
    if shared_patients == "leave_out":
        parts = _without_shared(parts, notes)
    return EvalSet(NAME, "binary", (FINDING,), parts, counted(notes), origin)


def _rows(path: Path, folder: str) -> dict[str, _Row]:
    """Return the lines of a list by folder and file name, which may hold spaces."""
    kind = f"{NAME} {path.name}"
    lines = [line.split() for line in read_lines(path)]
    short = sum(len(words) < 4 for words in lines)
    if short:
        raise ValueError(
            f"{kind}: {short} of {len(lines)} lines have fewer than 4 fields: patient, file, class, source"
        )
    labels = labels_of([words[-2] for words in lines], _CLASSES, kind, "class")
    rows = {
        f"{folder}/{' '.join(words[1:-2])}": _Row(f"{words[-1]} {words[0]}", label)
        for words, label in zip(lines, labels, strict=True)
    }
    if len(rows) < len(lines):
        raise ValueError(f"{kind}: {len(lines) - len(rows)} lines repeat a file; keep one of each")
    return rows


def _without_shared(parts: Mapping[str, tuple[EvalImage, ...]], notes: Notes) -> Parts:
    kept: Parts = {}
    judged: set[str] = set()
    for part in ("test", "validate", "train", "train_10", "train_1"):
        if part in parts:
            kept[part] = tuple(one for one in parts[part] if one.subject not in judged)
            left_out = len(parts[part]) - len(kept[part])
            notes[f"images of {part} whose patient is in a part to judge on, left out"] += left_out
        if part in ("test", "validate"):
            judged |= {one.subject for one in kept.get(part, ())}
    return kept
