"""TBX11K, in the simplified form of one table or in its authors' own: tuberculosis or not, with boxes."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogaze.evaluate.datasets.cells import labels_of, shown
from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    by_stem,
    counted,
    need_file,
    note_count,
    pictures_below,
    release_folder,
    text_of,
    with_picture,
)
from cogaze.evaluate.datasets.lists import ListForm, hashed_parts, listed_parts, read_lists, with_shares
from cogaze.evaluate.records import EvalImage, EvalSet, LabelledBox
from gazeprep.images import image_size
from gazeprep.schema import ImageRef, Size
from gazeprep.sources.csv_table import numbers, read_table
from gazeprep.splits import HashSplit

NAME = "TBX11K"
FINDING = "Tuberculosis"
FORM = ListForm(published={"train": 5879, "train_1": 58, "train_10": 587, "validate": 1260, "test": 1260})
VALIDATE_SHARE = 0.15  # of the official train part
JSON_FILES = {part: f"TBX11K_{part}.json" for part in ("train", "val")}
FULL_FOLDERS = ("imgs/health", "imgs/sick", "imgs/tb")  # extra holds Shenzhen and others: never read here
_TARGETS = {"tb": 1, "no_tb": 0}
_IMAGE_TYPES = {"tb": 1, "healthy": 0, "sick_but_no_tb": 0}
_SIDES = ("xmin", "ymin", "width", "height")


@dataclass(frozen=True)
class _Row:
    """An image of the tables: label, the official part it came from, its size (width, height) in px, its boxes."""

    label: int
    source: str
    size: Size
    boxes: tuple[LabelledBox, ...] = ()


def read_tbx11k(root: Path, lists: Path | None = None, *, missing: Missing = "refuse", seed: int = 0) -> EvalSet:
    """Read the annotated images; `lists` holds BenchX's, without them test is the official val part.

    The simplified form has data.csv and images/, the authors' own imgs/ and annotations/json/. The official test part
    has no labels. Raises ValueError where tables or pictures are not what docs/benchmarks.md says.
    """
    root, notes = release_folder(root, NAME), Notes()
    if (root / "annotations" / "json").is_dir():
        by_part = [_json_rows(root, part) for part in JSON_FILES]
        rows = {one: row for found in by_part for one, row in found.items()}
        if len(rows) < sum(map(len, by_part)):
            raise ValueError(f"{NAME}: {sum(map(len, by_part)) - len(rows)} images are in both json files")
        pictures = by_stem(pictures_below(root, FULL_FOLDERS, "tbx11k"), NAME)
    else:
        rows = _table_rows(need_file(root, ["data.csv"], NAME))
        note_count(notes, "images of the table", len(rows), 8399)
        pictures = by_stem(pictures_below(root, ["images"], "tbx11k"), NAME)
    notes["boxes that leave their image, where masks cut them"] += sum(map(_leaving, rows.values()))
    notes["images of tuberculosis without a box"] += sum(bool(row.label and not row.boxes) for row in rows.values())
    images = {
        one: EvalImage(one, pictures[one], (rows[one].label,), boxes=rows[one].boxes)
        for one in with_picture(rows, pictures, missing, NAME, notes)
    }
    _check_sizes(rows, {one: image.image for one, image in images.items()})
    if lists is not None:
        parts = listed_parts(images, read_lists(lists, FORM, NAME, notes), rows, NAME, notes)
        return EvalSet(NAME, "binary", (FINDING,), parts, counted(notes), "the lists given")
    by_hash = HashSplit(VALIDATE_SHARE, 0.0, seed)
    parts = hashed_parts([image for one, image in images.items() if rows[one].source == "train"], by_hash)
    test = tuple(image for one, image in images.items() if rows[one].source == "val")
    origin = (
        f"test is the official val part; of train {VALIDATE_SHARE:.0%} validate by a hash of the image, seed {seed}"
    )
    return EvalSet(NAME, "binary", (FINDING,), with_shares({**parts, "test": test}, by_hash), counted(notes), origin)


def _check_sizes(rows: Mapping[str, _Row], pictures: Mapping[str, ImageRef]) -> None:
    """Raise ValueError where boxes would lie elsewhere in a picture than in the annotated one."""
    others = sum(image_size(ref) != rows[one].size for one, ref in pictures.items() if rows[one].boxes)
    if others:
        raise ValueError(
            f"{NAME}: {others} pictures with boxes are not of the size that the table says; take both from one release"
        )


# --- the simplified form


def _table_rows(path: Path) -> dict[str, _Row]:
    """Return the images of data.csv by name without ending; it has a row for each box."""
    kind = f"{NAME} data.csv"
    columns = ["fname", "image_height", "image_width", "source", "bbox", "target", "tb_type", "image_type"]
    table = read_table(path, columns, kind=kind)
    labels = labels_of(table["target"].tolist(), _TARGETS, kind, "target")
    types = labels_of(table["image_type"].tolist(), _IMAGE_TYPES, kind, "image_type")
    labels_of(table["source"].tolist(), {"train": 0, "val": 0}, kind, "source")
    if labels != types:
        raise ValueError(f"{kind} has a target against its image_type; download it again")
    heights, widths = (numbers(table, column, kind=kind) for column in ("image_height", "image_width"))
    rows: dict[str, _Row] = {}
    for number, (one, source, box, tb_type) in enumerate(
        table[["fname", "source", "bbox", "tb_type"]].itertuples(index=False, name=None)
    ):
        size = int(widths[number]), int(heights[number])
        found = _box(box, tb_type.strip(), f"{kind}, row {number + 1}")
        stem = one.strip().rsplit(".", 1)[0]
        before = rows.get(stem, _Row(labels[number], source.strip(), size))
        if (before.label, before.source, before.size) != (labels[number], source.strip(), size):
            raise ValueError(
                f"{kind}, row {number + 1} says another label, part or size than an earlier row of its image"
            )
        rows[stem] = _Row(before.label, before.source, size, before.boxes + found)
    return rows


def _box(cell: str, label: str, where: str) -> tuple[LabelledBox, ...]:
    """Return the box of a cell that is none or a dict in Python's spelling."""
    if cell.strip() == "none":
        return ()
    try:
        found = ast.literal_eval(cell.strip()[:200])
        x, y, width, height = (float(found[side]) for side in _SIDES)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise ValueError(
            f"{where}, column 'bbox' is {shown(cell)}, must be none or a dict with {', '.join(_SIDES)}"
        ) from None
    return (_labelled(x, y, width, height, label, where),)


def _labelled(x: float, y: float, width: float, height: float, label: str, where: str) -> LabelledBox:
    if not (width > 0 and height > 0):
        raise ValueError(f"{where} has a box of {width} x {height} px; boxes are x, y, width, height")
    return LabelledBox((x, y, x + width, y + height), label)


def _leaving(row: _Row) -> int:
    """Return how many boxes leave their image by a pixel or more."""
    width, height = row.size
    edges = [one.box for one in row.boxes]
    return sum(min(x, y) <= -1 or right >= width + 1 or bottom >= height + 1 for x, y, right, bottom in edges)


# --- the authors' own form


def _json_rows(root: Path, part: str) -> dict[str, _Row]:
    """Return the images of one part's json, in COCO's form, by name without ending."""
    kind = f"{NAME} {JSON_FILES[part]}"
    path = need_file(root / "annotations" / "json", [JSON_FILES[part]], NAME)
    text = text_of(path, kind)
    try:
        told: dict[str, Any] = json.loads(text)
        label_of = {int(one["id"]): str(one["name"]) for one in told["categories"]}
        images = {int(one["id"]): one for one in told["images"]}
        sizes = {image: (int(one["width"]), int(one["height"])) for image, one in images.items()}
        names = {image: str(one["file_name"]) for image, one in images.items()}
        drawn = [(int(one["image_id"]), label_of[one["category_id"]]) for one in told["annotations"]]
        sides = [tuple(map(float, one["bbox"])) for one in told["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{kind} is not COCO's json ({type(error).__name__}); download it again") from None
    boxes: dict[int, tuple[LabelledBox, ...]] = {}
    for number, ((image, label), (x, y, width, height)) in enumerate(zip(drawn, sides, strict=True), start=1):
        boxes[image] = (*boxes.get(image, ()), _labelled(x, y, width, height, label, f"{kind}, box {number}"))
    folders = [name.split("/")[0] for name in names.values()]
    kinds = labels_of(folders, {"tb": 1, "sick": 0, "health": 0}, kind, "file_name")
    return {
        Path(name).stem: _Row(label, part, sizes[image], boxes.get(image, ()))
        for (image, name), label in zip(names.items(), kinds, strict=True)
    }
