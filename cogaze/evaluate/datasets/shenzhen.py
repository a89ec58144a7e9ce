"""Shenzhen chest X-ray set: the label is the last digit of the name, age and sex are free text."""

import re
from dataclasses import dataclass
from pathlib import Path

from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    by_stem,
    counted,
    note_count,
    pictures_below,
    release_folder,
)
from cogaze.evaluate.datasets.lists import ListForm, hash_origin, hashed_parts, listed_parts, read_lists
from cogaze.evaluate.records import EvalImage, EvalSet
from gazeprep.splits import HashSplit

NAME = "Shenzhen"
FINDING = "Tuberculosis"
MAX_CHARACTERS = 2**16  # of a text: a hundred times the usual
_STEM = re.compile(r"CHNCXR_\d{4}_([01])")
# fe?m: "female" is misspelt now and then, and holds "male"
_FEMALE, _MALE = re.compile(r"fe?m", re.IGNORECASE), re.compile(r"male", re.IGNORECASE)
_AGE = re.compile(r"(\d{1,3})\s*(y|mo|m(?!ale)|w|d)?", re.IGNORECASE)


def _stem(line: str) -> str:
    """Return the image of a line such as CHNCXR_0327_1.png,1; raises ValueError where the label is another."""
    name, _, label = line.partition(",")
    stem = name.strip().removesuffix(".png")
    if label.strip() and label.strip() != stem[-1:]:
        raise ValueError(f"{NAME}: a list gives label {label.strip()[:8]!r} to an image whose name says {stem[-1:]!r}")
    return stem


FORM = ListForm(_stem, {"train": 463, "validate": 65, "test": 134})


@dataclass(frozen=True)
class _Told:
    """What an image's text says."""

    sex: str = ""
    age_years: int | None = None
    reading: str = ""


def read_shenzhen(root: Path, lists: Path | None = None, *, missing: Missing = "refuse", seed: int = 0) -> EvalSet:
    """Read CXR_png and ClinicalReadings; `lists` holds CoGaze's, without them 70/10/20 % by a hash of the image.

    Where a text disagrees with the name's label, that is noted. With missing note, a listed image that is not there is
    left out; the set has no table to miss others from. Raises ValueError where a picture has another name or nothing is
    found.
    """
    root, notes = release_folder(root, NAME), Notes()
    root = root / "ChinaSet_AllFiles" if (root / "ChinaSet_AllFiles").is_dir() else root
    pictures = by_stem(pictures_below(root, ["CXR_png"], "shenzhen"), NAME)
    labels = {stem: _STEM.fullmatch(stem) for stem in pictures}
    strange = sum(found is None for found in labels.values())
    if strange or not pictures:
        raise ValueError(
            f"{NAME}: {strange} of {len(pictures)} pictures in CXR_png are not called CHNCXR_<4 digits>_<0 or 1>; "
            "docs/benchmarks.md shows the expected tree"
        )
    note_count(notes, "images", len(pictures), 662)
    images = {}
    for stem, ref in pictures.items():
        label = int(stem[-1])
        told = _told(root / "ClinicalReadings" / f"{stem}.txt", label, notes)
        images[stem] = EvalImage(stem, ref, (label,), report=told.reading, age_years=told.age_years, sex=told.sex)
    by_hash = HashSplit(0.1, 0.2, seed)
    if lists is None:
        parts, origin = hashed_parts(images.values(), by_hash), hash_origin(by_hash, "image")
    else:
        chosen = read_lists(lists, FORM, NAME, notes)
        known = {one for ids in chosen.values() for one in ids} if missing == "note" else set(images)
        parts, origin = listed_parts(images, chosen, known, NAME, notes), "the lists given"
    return EvalSet(NAME, "binary", (FINDING,), parts, counted(notes), origin)


def _told(path: Path, label: int, notes: Notes) -> _Told:
    """Read an image's text, noting what is missing, unclear or against its label."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_CHARACTERS)
    except OSError:
        notes["images without a text in ClinicalReadings, or one that cannot be opened"] += 1
        return _Told()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first, reading = (lines[0], " ".join(lines[1:])) if lines else ("", "")
    sex = "F" if _FEMALE.search(first) else "M" if _MALE.search(first) else ""
    notes["texts without a sex"] += not sex
    if reading and ("normal" in reading.lower()) == bool(label):
        notes["texts against the label of the name, which counts"] += 1
    return _Told(sex, _age(first, notes), reading)


def _age(line: str, notes: Notes) -> int | None:
    found = _AGE.search(line)
    if found is None:
        notes["texts without an age"] += 1
        return None
    unit = (found[2] or "y").lower()
    return int(found[1]) if unit == "y" else int(found[1]) // 12 if unit[0] == "m" else 0
