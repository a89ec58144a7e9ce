"""CheXpert: its own three parts, with uncertain labels by a named rule."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from cogaze.evaluate.datasets.chexpert_200 import list_5x200
from cogaze.evaluate.datasets.chexpert_table import (
    BLANK,
    FINDINGS,
    NAME,
    SURE,
    UNCERTAIN,
    CheXpertTable,
    Values,
    blank_is_zero,
    chexpert_table,
    is_path,
    label_values,
    patient_of,
    without_release,
)
from cogaze.evaluate.datasets.exclusive import FIVE
from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    counted,
    find_file,
    need_file,
    note_count,
    pictures_below,
    release_folder,
    with_picture,
)
from cogaze.evaluate.datasets.lists import hashed_parts, with_shares
from cogaze.evaluate.records import UNKNOWN, EvalImage, EvalSet
from gazeprep.sources.csv_table import read_table
from gazeprep.splits import HashSplit

Uncertain = Literal["ignore", "zeros", "ones", "gloria"]
Labels = Literal["five", "fourteen"]

TEST_TABLES = ("groundtruth.csv", "test_labels.csv", "test.csv")
VALIDATE_SHARE = 5000 / 223414  # of train where valid.csv is the test part
_GLORIA = {"Atelectasis": 1, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 1}


def read_chexpert(
    root: Path,
    lists: Path | None = None,
    *,
    labels: Labels = "five",
    uncertain: Uncertain = "ignore",
    test_part: Literal["test", "valid"] = "test",
    frontal_only: bool = True,
    missing: Missing = "refuse",
    seed: int = 0,
) -> EvalSet:
    """Read train.csv, valid.csv and the test release as train, validate and test.

    With test_part valid, valid.csv is the test part and 2.2 % of train's patients are validate, as MGCA has it but by
    patient. `lists` may hold chexpert_5x200.txt, whose images are left out of train. uncertain says what -1 becomes in
    train: UNKNOWN, 0, 1, or GLoRIA's choice for each of the five; blank cells are 0. Raises ValueError where tables or
    pictures are not what docs/benchmarks.md says.
    """
    root, notes = release_folder(root, NAME), Notes()
    classes = _classes(labels, uncertain)
    train, valid = (chexpert_table(need_file(root, [f"{part}.csv"], NAME), part) for part in ("train", "valid"))
    note_count(notes, "rows of train.csv", len(train.paths), 223414)
    note_count(notes, "rows of valid.csv", len(valid.paths), 234)
    pictures = pictures_below(root, ["train", "valid"], "chexpert")
    with_picture([*train.paths, *valid.paths], pictures, missing, NAME, notes)
    left_out = set() if lists is None else {without_release(one) for one in list_5x200(lists)}
    seen = _rows_in_view(train, frontal_only, notes)
    rows = [row for row in seen if train.paths[row] not in left_out]
    notes["images of 5x200, left out of train"] += len(seen) - len(rows)
    values = _certain(train.values[rows], uncertain, notes)
    trained = tuple(train.images(rows, _chosen(values, classes), pictures, notes))
    rows = _rows_in_view(valid, frontal_only, notes)
    checked = tuple(valid.images(rows, _chosen(valid.values[rows], classes), pictures, notes))
    if test_part == "valid":
        parts = hashed_parts(trained, HashSplit(VALIDATE_SHARE, 0.0, seed)) | {"test": checked}
        origin = f"test is valid.csv; of train {VALIDATE_SHARE:.1%} validate by a hash of the patient, seed {seed}"
    else:
        tested = _test_images(root, classes, frontal_only, missing, notes)
        parts = with_shares({"train": trained, "validate": checked, "test": tested}, HashSplit(seed=seed))
        origin = "CheXpert's own train, valid and test"
    return EvalSet(NAME, "multi-label", classes, parts, counted(notes), origin)


def _rows_in_view(table: CheXpertTable, frontal_only: bool, notes: Notes) -> list[int]:
    if not frontal_only:
        return list(range(len(table.paths)))
    notes["lateral images, left out"] += int((~table.frontal).sum())
    return np.flatnonzero(table.frontal).tolist()


def _classes(labels: Labels, uncertain: Uncertain) -> tuple[str, ...]:
    if uncertain not in get_args(Uncertain):
        raise ValueError(f"{NAME}: uncertain is {uncertain!r}, must be one of {', '.join(get_args(Uncertain))}")
    if uncertain == "gloria" and labels != "five":
        raise ValueError(f"{NAME}: uncertain='gloria' is defined for labels='five' only")
    return FIVE if labels == "five" else FINDINGS


def _certain(values: Values, uncertain: Uncertain, notes: Notes) -> Values:
    """Return 1, 0 and UNKNOWN for values (rows, 14) that may be uncertain or blank."""
    notes["labels not mentioned, taken as 0"] += int((values == BLANK).sum())
    notes[f"uncertain labels, by the rule {uncertain}"] += int((values == UNCERTAIN).sum())
    becomes = {"ignore": UNKNOWN, "zeros": 0, "ones": 1}
    row = [_GLORIA.get(finding, UNKNOWN) if uncertain == "gloria" else becomes[uncertain] for finding in FINDINGS]
    certain = np.where(values == UNCERTAIN, np.array(row, dtype=np.int8), values)
    return blank_is_zero(certain)


def _chosen(values: Values, classes: Sequence[str]) -> list[tuple[int, ...]]:
    columns = [FINDINGS.index(one) for one in classes]
    return [tuple(row) for row in values[:, columns].tolist()]


# --- the test release: labels by study


def _test_images(
    root: Path, classes: Sequence[str], frontal_only: bool, missing: Missing, notes: Notes
) -> tuple[EvalImage, ...]:
    path = find_file(root, TEST_TABLES) or find_file(root / "test", TEST_TABLES)
    if path is None:
        raise ValueError(
            f"{NAME}: {' or '.join(TEST_TABLES)} of the test release is not in the folder; add it, or give "
            "test_part='valid' to test on valid.csv"
        )
    kind = f"{NAME} {path.name}"
    table = read_table(path, FINDINGS, kind=kind, optional=["Study", "Path"])
    keys = [name for name in ("Study", "Path") if name in table.columns]
    if not keys:
        raise ValueError(f"{kind} has neither a column 'Study' nor 'Path'; take the table of the test release")
    studies = [_study(without_release(cell)) for cell in table[keys[0]]]
    rows = _chosen(label_values(table, SURE, kind), classes)
    labels = dict(zip(studies, rows, strict=True))
    if any(labels[study] != row for study, row in zip(studies, rows, strict=True)):
        raise ValueError(f"{kind} has rows of one study with different labels; take the table of the test release")
    note_count(notes, "studies of the test release", len(labels), 500)
    pictures = {path: ref for path, ref in pictures_below(root, ["test"], "chexpert").items() if is_path(path, "test")}
    of_study = {_study(path): ref for path, ref in pictures.items()}
    seen = set(with_picture(list(labels), of_study, missing, NAME, notes))
    frontal = {path: path.endswith("_frontal.jpg") for path in pictures}
    notes["lateral images, left out"] += frontal_only * sum(not one for one in frontal.values())
    return tuple(
        EvalImage(
            path,
            ref,
            labels[_study(path)],
            subject=patient_of(path),
            view="" if frontal[path] else "LATERAL",
        )
        for path, ref in pictures.items()
        if _study(path) in seen and (frontal[path] or not frontal_only)
    )


def _study(path: str) -> str:
    """Return test/patient64741/study1 of an image's path, or of a study's."""
    return "/".join(path.split("/")[:3])
