"""SIIM-ACR Pneumothorax: DICOM tree or PNG tree, masks as run lengths in three spellings of a table or as pictures."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cogaze.evaluate.datasets.cells import labels_of, shown
from cogaze.evaluate.datasets.dicom_header import read_header
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
from cogaze.evaluate.datasets.lists import ListForm, Parts, hashed_parts, listed_parts, read_lists, with_shares
from cogaze.evaluate.masks import run_spans, runs_of_mask
from cogaze.evaluate.records import EvalImage, EvalSet
from gazeprep.images import image_size, read_image
from gazeprep.schema import ImageRef
from gazeprep.sources.csv_table import check_columns, read_table
from gazeprep.splits import HashSplit

NAME = "SIIM-ACR"
FINDING = "Pneumothorax"
RUN_TABLES = ("stage_2_train.csv", "train-rle.csv")
NAME_TABLES = {"train": "stage_1_train_images.csv", "test": "stage_1_test_images.csv"}
DICOM_FOLDERS = ("dicom-images-train", "dicom-images-test")
PNG_NAME = re.compile(r"\d+_(train|test)_([01])_")
VALIDATE_SHARE = 0.13  # of the vendor's train part, as BenchX has it


def _stem(line: str) -> str:
    return line.removesuffix(".png")


FORM = ListForm(_stem, {"train": 9303, "train_1": 93, "train_10": 930, "validate": 1372, "test": 1372})


@dataclass(frozen=True)
class _Name:
    """What the PNG release calls an image: the index starts anew in train and in test, so only all of it is a name."""

    name: str
    image_id: str
    label: int
    vendor_part: str  # train or test


@dataclass(frozen=True)
class _Row:
    """What is known of an image before its picture is opened."""

    label: int
    vendor_part: str
    runs: tuple[str, ...] = ()
    mask: ImageRef | None = None


def read_siim(root: Path, lists: Path | None = None, *, missing: Missing = "refuse", seed: int = 0) -> EvalSet:
    """Read the labelled images of stage 1; `lists` holds BenchX's, without them test is the vendor's test part.

    A list's `12_test_1_` is found by the whole name, never by its number: train and test are numbered from 0 each.
    Raises ValueError where tables, pictures or lists are not what docs/benchmarks.md says, or where a name, the tables
    of names and the table of masks say different things of an image.
    """
    root, notes = release_folder(root, NAME), Notes()
    names = _names(root)
    if any((root / folder).is_dir() for folder in DICOM_FOLDERS):
        rows, pictures = _dicom_rows(root, notes)
    else:
        rows, pictures = _png_rows(root, names, notes)
    note_count(notes, "images of the tables", len(rows), 12047)
    _compare(names, rows)
    images = {
        one: _image(one, rows[one], pictures[one], f"{NAME}, image {number} of the table's that have a file", notes)
        for number, one in enumerate(with_picture(rows, pictures, missing, NAME, notes), start=1)
    }
    if lists is None:
        parts = _vendor_parts(images, rows, seed)
        origin = f"test is the vendor's; of its train part {VALIDATE_SHARE:.0%} validate by a hash, seed {seed}"
    else:
        parts = _benchx_parts(images, rows, names, read_lists(lists, FORM, NAME, notes), notes)
        origin = "the lists given"
    return EvalSet(NAME, "binary", (FINDING,), parts, counted(notes), origin)


# --- what the tables say


def _names(root: Path) -> dict[str, _Name]:
    """Return the PNG release's names from its two tables, none without them."""
    found: dict[str, _Name] = {}
    images: set[str] = set()
    rows = 0
    for part, file in NAME_TABLES.items():
        path = find_file(root, [file])
        if path is None:
            continue
        kind = f"{NAME} {file}"
        table = read_table(path, ["new_filename", "ImageId", "has_pneumo"], kind=kind)
        labels = labels_of(table["has_pneumo"].tolist(), {"0": 0, "1": 1}, kind, "has_pneumo")
        for cell, image_id, label in zip(table["new_filename"], table["ImageId"], labels, strict=True):
            name = _stem(cell.strip())
            if _told(name) != (part, label):
                raise ValueError(
                    f"{kind} has a new_filename that is not <number>_{part}_{label}_.png; take the table of the "
                    "PNG release, and labels as it has them"
                )
            found[name] = _Name(name, image_id.strip(), label, part)
            images.add(image_id.strip())
            rows += 1
    if not rows == len(found) == len(images):
        raise ValueError(
            f"{NAME}: {' and '.join(NAME_TABLES.values())} have {rows} rows, but {len(found)} names of {len(images)} "
            "images; one image must have one name, or it could stand in two parts"
        )
    return found


def _told(name: str) -> tuple[str, int] | None:
    """Return the vendor's part and the label that a name tells."""
    found = PNG_NAME.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def _runs(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the run lengths of each image, none of an image without a finding.

    Names and cells may begin with a space, which depends on where the table was downloaded.
    """
    kind = f"{NAME} {path.name}"
    table = read_table(path, [], kind=kind, all_columns=True)
    table.columns = table.columns.str.strip()
    check_columns(table, ["ImageId", "EncodedPixels"], kind)
    found: dict[str, list[str]] = {}
    negative: set[str] = set()
    for one, cell in zip(table["ImageId"].str.strip(), table["EncodedPixels"].str.strip(), strict=True):
        runs = found.setdefault(one, [])
        if cell in ("-1", ""):
            negative.add(one)
        else:
            runs.append(cell)
    both = sum(1 for one in negative if found[one])
    if both:
        raise ValueError(
            f"{kind} says of {both} images that they have a mask and that they have none; correct the rows"
        )
    return {one: tuple(runs) for one, runs in found.items()}


def _dicom_rows(root: Path, notes: Notes) -> tuple[dict[str, _Row], dict[str, ImageRef]]:
    pictures = by_stem(pictures_below(root, DICOM_FOLDERS, "siim"), NAME)
    notes["images of stage 2, whose labels were not published"] += len(pictures_below(root, ["stage_2_images"], "siim"))
    test = {one for one, ref in pictures.items() if ref.path.startswith("dicom-images-test/")}
    runs = _runs(need_file(root, RUN_TABLES, NAME))
    rows = {one: _Row(int(bool(texts)), "test" if one in test else "train", runs=texts) for one, texts in runs.items()}
    return rows, pictures


def _png_rows(root: Path, names: Mapping[str, _Name], notes: Notes) -> tuple[dict[str, _Row], dict[str, ImageRef]]:
    """Return the rows of the PNG release by ImageId where its tables are there, else by name."""
    by_name = by_stem(pictures_below(root, ["png_images"], "siim"), NAME)
    masks = by_stem(pictures_below(root, ["png_masks"], "siim"), NAME)
    table = find_file(root, RUN_TABLES)
    runs = _runs(table) if table is not None and names else {}
    known = {name: one.image_id for name, one in names.items()} or {name: name for name in by_name}
    rows, lacking = {}, 0
    for name, image_id in known.items():
        told = _told(name)
        if told is None:
            raise ValueError(f"{NAME}: a file in png_images is called {shown(name)}, not <number>_<train|test>_<0|1>_")
        part, label = told
        if image_id in runs:
            rows[image_id] = _Row(int(bool(runs[image_id])), part, runs=runs[image_id])
        else:
            lacking += bool(label and name not in masks)
            rows[image_id] = _Row(label, part, mask=masks.get(name) if label else None)
    notes["images with a finding whose mask is not there"] += lacking
    return rows, {known.get(name, name): ref for name, ref in by_name.items()}


def _compare(names: Mapping[str, _Name], rows: Mapping[str, _Row]) -> None:
    """Raise ValueError where a name and the table of masks say different things of an image."""
    told = [(one, rows[one.image_id]) for one in names.values() if one.image_id in rows]
    labels = sum(one.label != row.label for one, row in told)
    places = sum(one.vendor_part != row.vendor_part for one, row in told)
    if labels or places:
        raise ValueError(
            f"{NAME}: {labels} images have another label in their name than in the table of run lengths, {places} are "
            "in another part by their name than by their folder; take all tables and pictures from one release"
        )


# --- pictures and parts


def _image(one: str, row: _Row, picture: ImageRef, kind: str, notes: Notes) -> EvalImage:
    size, view, age, sex = None, "", None, ""
    if picture.kind == "dicom":
        header = read_header(picture, kind, notes)
        size, view, age, sex = header.size, header.view, header.age_years, header.sex
    runs = row.runs
    if row.mask is not None:
        runs = tuple(filter(None, [runs_of_mask(read_image(row.mask) > 127)]))
        notes["images with a finding whose mask is empty"] += not runs
        if image_size(row.mask) != image_size(picture):
            raise ValueError(f"{NAME}: a mask is not of its picture's size; take both from one release")
    elif runs:
        width, height = size or image_size(picture)
        for text in runs:
            run_spans(text, width * height)
    return EvalImage(one, picture, (row.label,), runs=runs, view=view, age_years=age, sex=sex)


def _vendor_parts(images: Mapping[str, EvalImage], rows: Mapping[str, _Row], seed: int) -> Parts:
    by_hash = HashSplit(VALIDATE_SHARE, 0.0, seed)
    parts = hashed_parts(list(_of(images, rows, "train")), by_hash)
    test = tuple(_of(images, rows, "test"))
    return with_shares({**parts, **({"test": test} if test else {})}, by_hash)


def _of(images: Mapping[str, EvalImage], rows: Mapping[str, _Row], part: str) -> Iterator[EvalImage]:
    return (image for one, image in images.items() if rows[one].vendor_part == part)


def _benchx_parts(
    images: Mapping[str, EvalImage],
    rows: Mapping[str, _Row],
    names: Mapping[str, _Name],
    lists: Mapping[str, list[str]],
    notes: Notes,
) -> Parts:
    id_of = {name: one.image_id for name, one in names.items()}
    if not id_of:  # the PNG release without its tables: its pictures are called as the lists call them
        id_of = {one: one for one in rows if _told(one)}
    if not id_of:
        raise ValueError(
            f"{NAME}: the lists name images as the PNG release does; add its {' and '.join(NAME_TABLES.values())}, "
            "which tell each one's ImageId"
        )
    named = {name: images[one] for name, one in id_of.items() if one in images}
    return listed_parts(named, lists, [name for name, one in id_of.items() if one in rows], NAME, notes)
