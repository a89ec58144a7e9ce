"""RSNA Pneumonia Detection, stage 2: DICOM files, one row a box; pneumonia or not."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cogaze.evaluate.datasets.cells import labels_of
from cogaze.evaluate.datasets.dicom_header import Header, read_header
from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    by_stem,
    counted,
    find_file,
    need_file,
    note_count,
    pictures_below,
    release_folder,
    with_picture,
)
from cogaze.evaluate.datasets.lists import ListForm, hash_origin, hashed_parts, listed_parts, read_lists
from cogaze.evaluate.records import EvalImage, EvalSet, LabelledBox
from gazeprep.schema import Rectangle, Size
from gazeprep.sources.csv_table import numbers, read_table
from gazeprep.splits import HashSplit

# cogaze: the published masks, whose reader takes right and bottom edges for width and height
BoxRule = Literal["vendor", "cogaze"]

NAME = "RSNA"
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
FINDING = "Pneumonia"
FORM = ListForm(published={"train": 18678, "train_1": 186, "train_10": 1867, "validate": 4003, "test": 4003})
_POSITIVE_CLASS = {"Lung Opacity": 1, "Normal": 0, "No Lung Opacity / Not Normal": 0}


@dataclass
class _Patient:
    target: int
    boxes: list[Rectangle] = field(default_factory=list)  # x, y, width, height in px


def read_rsna(
    root: Path, lists: Path | None = None, *, boxes: BoxRule = "vendor", missing: Missing = "refuse", seed: int = 0
) -> EvalSet:
    """Read the labelled images of stage 2; `lists` holds BenchX's, without them 70/15/15 % by a hash of the patient.

    Raises ValueError where tables, pictures or lists are not what docs/benchmarks.md says.
    """
    if boxes not in ("vendor", "cogaze"):
        raise ValueError(f"{NAME}: boxes is {boxes!r}, must be 'vendor' or 'cogaze'")
    root, notes = release_folder(root, NAME), Notes()
    patients = _patients(need_file(root, [LABELS], NAME))
    note_count(notes, "patients of the table", len(patients), 26684)
    _check_classes(root, patients, notes)
    pictures = by_stem(pictures_below(root, ["stage_2_train_images"], "rsna"), NAME)
    images, outside = {}, 0
    for number, one in enumerate(with_picture(patients, pictures, missing, NAME, notes), start=1):
        header = read_header(pictures[one], f"{NAME} {LABELS}, patient {number} of those with a file", notes)
        outside += sum(not _inside(box, header.size) for box in patients[one].boxes)
        images[one] = EvalImage(
            one,
            pictures[one],
            (patients[one].target,),
            subject=one,
            boxes=tuple(LabelledBox(_edges(box, boxes, header), FINDING) for box in patients[one].boxes),
            view=header.view,
            age_years=header.age_years,
            sex=header.sex,
        )
    _refuse_outside(outside)
    by_hash = HashSplit(0.15, 0.15, seed)
    if lists is None:
        parts, origin = hashed_parts(images.values(), by_hash), hash_origin(by_hash, "patient")
    else:
        parts = listed_parts(images, read_lists(lists, FORM, NAME, notes), patients, NAME, notes)
        origin = "the lists given"
    return EvalSet(NAME, "binary", (FINDING,), parts, counted(notes), origin)


def _patients(path: Path) -> dict[str, _Patient]:
    """Return the patients of the table, with their boxes as the table has them."""
    kind = f"{NAME} {LABELS}"
    table = read_table(path, ["patientId", "x", "y", "width", "height", "Target"], kind=kind)
    targets = labels_of(table["Target"].tolist(), {"0": 0, "1": 1}, kind, "Target")
    positive = table[[target == 1 for target in targets]]
    sides = [numbers(positive, side, kind=kind) for side in ("x", "y", "width", "height")]
    boxes: dict[str, list[Rectangle]] = defaultdict(list)
    for one, x, y, width, height in zip(positive["patientId"].str.strip(), *sides, strict=True):
        if width <= 0 or height <= 0:
            raise ValueError(f"{kind} has a box of {width} x {height} px; boxes are x, y, width, height")
        boxes[one].append((float(x), float(y), float(width), float(height)))
    patients: dict[str, _Patient] = {}
    mixed = 0
    for one, target in zip(table["patientId"].str.strip(), targets, strict=True):
        first = patients.setdefault(one, _Patient(target, boxes.get(one, [])))
        mixed += first.target != target
    if mixed:
        raise ValueError(f"{kind} has {mixed} rows whose Target differs from the same patient's first; correct them")
    return patients


def _check_classes(root: Path, patients: Mapping[str, _Patient], notes: Notes) -> None:
    """Compare the targets with the three classes of the other table: pneumonia is Lung Opacity."""
    path = find_file(root, [CLASSES])
    if path is None:
        notes[f"{CLASSES} is absent: patients whose class is not compared"] += len(patients)
        return
    kind = f"{NAME} {CLASSES}"
    table = read_table(path, ["patientId", "class"], kind=kind)
    positive = labels_of(table["class"].tolist(), _POSITIVE_CLASS, kind, "class")
    class_of = dict(zip(table["patientId"].str.strip(), positive, strict=True))
    differing = sum(class_of.get(one) != patient.target for one, patient in patients.items())
    if differing or len(class_of) != len(patients):
        raise ValueError(
            f"{NAME}: {differing} of {len(patients)} patients have another class in {CLASSES} (which has "
            f"{len(class_of)} patients) than {LABELS} says; take both from one release"
        )


def _inside(box: Rectangle, size: Size) -> bool:
    x, y, width, height = box
    return x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]


def _refuse_outside(boxes: int) -> None:
    if boxes:
        raise ValueError(
            f"{NAME}: {boxes} boxes leave their image. {LABELS} has x, y, width, height in the original's px: a table "
            "of corners, or pictures of another size than the original 1024 x 1024, give wrong masks"
        )


def _edges(box: Rectangle, rule: BoxRule, header: Header) -> Rectangle:
    x, y, width, height = box
    if rule == "vendor":
        return x, y, x + width, y + height
    return x, y, min(2 * x + width, header.size[0]), min(2 * y + height, header.size[1])
