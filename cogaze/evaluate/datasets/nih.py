"""NIH ChestX-ray14: PNG files in any of its folder forms, both generations of its table, boxes of 880 images."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cogaze.evaluate.datasets.cells import age_years, sex_of, shown
from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    counted,
    find_file,
    need_file,
    note_count,
    pictures_below,
    release_folder,
    text_of,
    with_picture,
)
from cogaze.evaluate.datasets.lists import (
    FILES,
    ListForm,
    Parts,
    hash_origin,
    hashed_parts,
    listed_parts,
    read_lines,
    read_lists,
    with_shares,
)
from cogaze.evaluate.records import EvalImage, EvalSet, LabelledBox
from gazeprep.images import image_size
from gazeprep.schema import ImageRef, Rectangle
from gazeprep.sources.csv_table import read_table
from gazeprep.splits import HashSplit, hash_split

NAME = "NIH ChestX-ray14"
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
OFFICIAL = ("train_val_list.txt", "test_list.txt")
VALIDATE_SHARE = 0.1  # of the official train_val list
EDGE_PX = 1024  # boxes are in px of the released pictures
_OTHER_NAMES = {"Infiltrate": "Infiltration"}  # of the table of boxes
_NO_FINDING = "No Finding"


def _first_word(line: str) -> str:
    """Return the file name of a line, behind which some lists have 14 labels of their own."""
    return line.split()[0]


FORM = ListForm(_first_word, {"train": 78468, "train_1": 785, "train_10": 7847, "validate": 11219, "test": 22433})


@dataclass(frozen=True)
class _Row:
    """One image of the table, as text but for its labels."""

    labels: tuple[int, ...]
    subject: str
    age: str
    sex: str
    view: str


def read_nih(root: Path, lists: Path | None = None, *, missing: Missing = "refuse", seed: int = 0) -> EvalSet:
    """Read the images with 14 labels; No Finding is none of them.

    `lists` holds BenchX's or CheXNet's lists, or the official two; without it the official two in the root, else a
    hash of the patient. Of the official train_val list 10 % of the patients are validate. Raises ValueError where
    tables, pictures or lists are not what docs/benchmarks.md says.
    """
    root, notes = release_folder(root, NAME), Notes()
    rows = _rows(need_file(root, TABLES, NAME))
    note_count(notes, "images of the table", len(rows), 112120)
    pictures = _pictures(root)
    boxes = _boxes(root, rows, notes)
    images = {}
    for one in with_picture(rows, pictures, missing, NAME, notes):
        row = rows[one]
        images[one] = EvalImage(
            one,
            pictures[one],
            row.labels,
            subject=row.subject,
            boxes=_in_picture(boxes.get(one, ()), pictures[one], notes),
            view=row.view,
            age_years=age_years(row.age, notes),
            sex=sex_of(row.sex, notes),
        )
    folder = lists or root
    if all((folder / name).is_file() for name in OFFICIAL):
        parts = _official_parts(images, folder, rows, seed, notes)
        origin = f"the official lists; of train_val {VALIDATE_SHARE:.0%} validate by a hash of the patient, seed {seed}"
    elif lists is None:
        by_hash = HashSplit(0.1, 0.2, seed)
        parts, origin = hashed_parts(images.values(), by_hash), hash_origin(by_hash, "patient")
    else:
        parts = listed_parts(images, read_lists(lists, FORM, NAME, notes), rows, NAME, notes)
        notes["images with other labels in the lists than in the table, which counts"] += _differing(lists, rows)
        origin = "the lists given"
    return EvalSet(NAME, "multi-label", FINDINGS, parts, counted(notes), origin)


# --- the table of images


def _rows(path: Path) -> dict[str, _Row]:
    """Return the rows by file name; the brackets of the header hold commas, and one generation has a column more."""
    kind = f"{NAME} {path.name}"
    columns = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"]
    table = read_table(path, columns, kind=kind, optional=["Patient Gender", "Patient Sex"])
    sexes = [name for name in ("Patient Gender", "Patient Sex") if name in table.columns]
    table["sex"] = table[sexes[0]] if sexes else pd.Series("", index=table.index)
    rows: dict[str, _Row] = {}
    for number, (one, findings, subject, age, view, sex) in enumerate(
        table[[*columns, "sex"]].itertuples(index=False, name=None), start=1
    ):
        labels = _labels(findings, f"{kind}, row {number}")
        rows[one.strip()] = _Row(labels, subject.strip().lstrip("0") or "0", age, sex, view.strip().upper())
    if len(rows) < len(table):
        raise ValueError(f"{kind}: {len(table) - len(rows)} rows repeat an image; keep one row of each")
    return rows


def _labels(cell: str, where: str) -> tuple[int, ...]:
    found = {one.strip() for one in cell.split("|")}
    unknown = found - {*FINDINGS, _NO_FINDING}
    if unknown:
        raise ValueError(
            f"{where}, column 'Finding Labels' has {shown(min(unknown))}, must be {_NO_FINDING} or of "
            f"{', '.join(FINDINGS)}"
        )
    if _NO_FINDING in found and len(found) > 1:
        raise ValueError(f"{where}, column 'Finding Labels' has {_NO_FINDING} beside a finding; correct the cell")
    return tuple(int(finding in found) for finding in FINDINGS)


def _pictures(root: Path) -> dict[str, ImageRef]:
    """Return the pictures by file name, from images_001/images, images_001, images or the root itself."""
    folders = sorted(path.name for path in root.glob("images*") if path.is_dir())
    found = pictures_below(root, folders, "nih") if folders else _in_root(root)
    by_name = {Path(relative).name: ref for relative, ref in found.items()}
    if len(by_name) < len(found):
        raise ValueError(f"{NAME}: {len(found) - len(by_name)} pictures are in two folders; keep one of each")
    return by_name


def _in_root(root: Path) -> dict[str, ImageRef]:
    return {path.name: ImageRef(str(root), path.name, "raster", "nih") for path in sorted(root.glob("*.png"))}


# --- the table of boxes


def _boxes(root: Path, rows: Mapping[str, _Row], notes: Notes) -> dict[str, tuple[LabelledBox, ...]]:
    """Return the boxes of each image in px of the released pictures; the header has more commas than the rows."""
    path = find_file(root, [BOXES])
    if path is None:
        notes[f"{BOXES} is absent: images without boxes"] += len(rows)
        return {}
    found: dict[str, list[LabelledBox]] = defaultdict(list)
    unlisted = 0
    for number, cells in enumerate(_csv_rows(path), start=1):
        one, label, box = cells[0], _OTHER_NAMES.get(cells[1], cells[1]), _box(cells[2:6], number)
        if label not in FINDINGS:
            raise ValueError(f"{NAME} {BOXES}, row {number} has the finding {shown(label)}, must be of {FINDINGS}")
        unlisted += one not in rows
        found[one].append(LabelledBox(box, label))
        notes["boxes of a finding that the image's labels do not have"] += one in rows and not _has(rows[one], label)
    if unlisted:
        raise ValueError(f"{NAME}: {unlisted} boxes are of images that the table does not list; take both from NIH")
    return {one: tuple(boxes) for one, boxes in found.items()}


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows below the header, read by position."""
    for number, cells in enumerate(csv.reader(io.StringIO(text_of(path, f"{NAME} {BOXES}")))):
        if number and cells:
            if len(cells) < 6 or any(cells[6:]):
                raise ValueError(f"{NAME} {BOXES}, row {number} has {len(cells)} cells, must have 6; download it again")
            yield [cell.strip() for cell in cells]


def _box(cells: Sequence[str], number: int) -> Rectangle:
    try:
        x, y, width, height = map(float, cells)
    except ValueError:
        raise ValueError(f"{NAME} {BOXES}, row {number} has a side that is no number; correct it") from None
    # A pixel more for the rounding of sides that are written as floats.
    if not (width > 0 and height > 0 and x >= 0 and y >= 0 and max(x + width, y + height) <= EDGE_PX + 1):
        raise ValueError(
            f"{NAME} {BOXES}, row {number} has a box that is not within {EDGE_PX} px; boxes are x, y, width, height"
        )
    return x, y, x + width, y + height


def _has(row: _Row, label: str) -> bool:
    return row.labels[FINDINGS.index(label)] == 1


def _in_picture(boxes: Sequence[LabelledBox], picture: ImageRef, notes: Notes) -> tuple[LabelledBox, ...]:
    """Return boxes in px of the picture at hand, which may be a smaller copy of the released one."""
    if not boxes:
        return ()
    width, height = image_size(picture)
    notes[f"images with boxes that are not {EDGE_PX} px, whose boxes are scaled"] += (width, height) != (EDGE_PX,) * 2
    across, down = width / EDGE_PX, height / EDGE_PX
    return tuple(
        replace(one, box=(one.box[0] * across, one.box[1] * down, one.box[2] * across, one.box[3] * down))
        for one in boxes
    )


# --- parts


def _official_parts(
    images: Mapping[str, EvalImage], folder: Path, rows: Mapping[str, _Row], seed: int, notes: Notes
) -> Parts:
    by_hash = HashSplit(VALIDATE_SHARE, 0.0, seed)
    lists: dict[str, list[str]] = {"train": [], "validate": []}
    for one in read_lines(folder / OFFICIAL[0]):
        subject = rows[one].subject if one in rows else ""
        lists[hash_split(subject, by_hash)].append(one)
    lists["test"] = read_lines(folder / OFFICIAL[1])
    note_count(notes, "ids in the official list of test", len(lists["test"]), 25596)
    return with_shares(listed_parts(images, lists, rows, NAME, notes), by_hash)


def _differing(lists: Path, rows: Mapping[str, _Row]) -> int:
    """Return how many images have other labels behind their name in a list than in the table, 0 if lists have none."""
    differing = 0
    for name in (name for part in ("train", "validate", "test") for name in FILES[part]):
        lines = read_lines(lists / name) if (lists / name).is_file() else []
        for one, *labels in (line.split() for line in lines):
            differing += bool(labels) and tuple(labels) != tuple(map(str, rows[one].labels))
    return differing
