"""Anyone's recordings as tables (csv, csv.gz, parquet): fixations, images, words; their frame is converted here."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
import pandas as pd

from gazeprep.fixations import Frame, to_image_px
from gazeprep.remote_paths import located, source_folder
from gazeprep.schema import SPLITS, Context, Fixations, FloatArray, ImageRef, InputError, Reading, Recording, Size, Word
from gazeprep.sources.csv_table import check_columns, folder_is_synthetic, numbers, read_table
from gazeprep.transcripts import split_phrases

IMAGE_PX = Frame()
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
PX_PER_DEG = ("px_per_deg_x", "px_per_deg_y")
SHOWN = ("shown_left", "shown_top", "shown_right", "shown_bottom")
DRAWN = ("image_left_px", "image_top_px", "image_right_px", "image_bottom_px")
SIZE = ("image_width", "image_height")
SECTIONS = ("indication", "history", "comparison", "technique", "findings", "impression")

FIXATION_COLUMNS = ("reading_id", "image_id", "x", "y", "start", "end", "duration", *PX_PER_DEG, *SHOWN, *DRAWN)
IMAGE_COLUMNS = (
    "image_id",
    "path",
    "subject_id",
    "study_id",
    "split",
    "view_position",
    "synthetic",
    "source",
    *SIZE,
    *SECTIONS,
)
WORD_COLUMNS = ("reading_id", "word", "start", "end")
COLUMNS = frozenset({*FIXATION_COLUMNS, *IMAGE_COLUMNS, *WORD_COLUMNS})
SHARED = frozenset({"reading_id", "image_id", "start", "end"})  # stand in more than one table

FIXATIONS, IMAGES, WORDS = (f"table of {what}" for what in ("fixations", "images", "words"))
IMAGE_KINDS: dict[str, Literal["dicom", "raster"]] = {
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
}
TRUTH = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class TableSource:
    """Tables of one's own recordings.

    images: image_id, path (relative to this table's folder), subject_id, and optionally study_id, split,
    view_position, synthetic, image_width, image_height, source (what is what, for the sample's provenance) and the
    report's sections. fixations: image_id, x, y,
    start and end (or duration), and optionally reading_id, px_per_deg_x and _y, shown_left, _top, _right,
    _bottom (edges, image px), image_left_px, image_top_px, image_right_px, image_bottom_px (edges of the whole
    image on the screen, instead of the frame's). words: reading_id, word, start, end. Without reading_id each
    image has one reading; without start its fixations follow each other without gaps.
    name: the dataset becomes table-<name>. frame: what x, y and all times count. columns: our column name to
    theirs; a table that lacks their reading_id, image_id, start or end may have ours.
    """

    images: Path
    fixations: Path | None = None
    words: Path | None = None
    name: str = "table"
    frame: Frame = IMAGE_PX
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"table.name is {self.name!r}: use lower-case letters, digits and hyphens")
        _check_names(self.columns)
        source_folder(located(self.images).parent)
        for name in ("images", "fixations", "words"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, located(getattr(self, name)))

    @property
    def dataset(self) -> str:
        """Name of the dataset that these tables become."""
        return f"table-{self.name}"


@dataclass(frozen=True, eq=False)
class TableImage:
    """One row of the table of images; `image` is None where the file is not there."""

    dataset: str
    source: str
    image_id: str
    subject_id: str
    study_id: str
    split: str
    view_position: str
    size: Size | None
    image: ImageRef | None
    context: Context | None
    synthetic: bool


@dataclass(frozen=True, eq=False)
class FixationRows:
    """Rows of a table of fixations as numbers: times in seconds, positions still in their own frame.

    x, y, start_s, end_s (n,). px_per_deg (n, 2). shown, drawn (n, 4): image px and screen px, None without columns.
    """

    x: FloatArray
    y: FloatArray
    start_s: FloatArray
    end_s: FloatArray
    px_per_deg: FloatArray | None
    shown: FloatArray | None
    drawn: FloatArray | None

    def take(self, rows: np.ndarray) -> "FixationRows":
        """Return the rows of these indices."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        return replace(self, **{name: values[rows] for name, values in columns.items() if values is not None})

    def fixations(self, frame: Frame, image_size: Size | None) -> Fixations:
        """Convert to image px; only a frame in image px needs no image size."""
        x_px, y_px = (self._points(axis, frame, image_size) for axis in (0, 1))
        per_deg_x, per_deg_y = (None, None) if self.px_per_deg is None else self.px_per_deg.T
        return Fixations(
            x_px,
            y_px,
            self.start_s,
            self.end_s,
            px_per_deg_x=per_deg_x,
            px_per_deg_y=per_deg_y,
            shown=self.shown,
        )

    def _points(self, axis: int, frame: Frame, image_size: Size | None) -> FloatArray:
        values = (self.x, self.y)[axis]
        if frame.unit == "image_px":
            return to_image_px(values, axis, frame, 0, None)
        if image_size is None:
            raise InputError(
                "frame_incomplete",
                f"positions are in {frame.unit}: say how large the image is, image_size=(width, height)",
            )
        return to_image_px(values, axis, frame, image_size[axis], self._drawn_edges(axis, frame))

    def _drawn_edges(self, axis: int, frame: Frame) -> tuple[FloatArray, FloatArray] | None:
        if self.drawn is not None:
            return self.drawn[:, axis], self.drawn[:, axis + 2]
        if frame.image_on_screen_px is None:
            return None
        low, high = frame.image_on_screen_px[axis], frame.image_on_screen_px[axis + 2]
        return np.full(len(self.x), float(low)), np.full(len(self.x), float(high))


@dataclass(frozen=True, eq=False, kw_only=True)
class TableReading(Reading):
    """One reading of a table of fixations, with its rows and words; dicom_id is the table's image_id."""

    rows: FixationRows
    words: tuple[Word, ...]
    frame: Frame
    tables: tuple[Path, ...]

    def load(self) -> Recording:
        """Convert the fixations to image px, opening the image where no table tells its size; raises InputError."""
        size = self.image_size
        if size is None and self.image is not None and self.frame.unit != "image_px":
            size = _size_of_file(self.image)
        return Recording(
            fixations=self.rows.fixations(self.frame, size),
            words=self.words,
            full_stop="suffix",
            transcript=" ".join(word.text for word in self.words).replace(" .", ".").replace(" ,", ","),
            notes={"unit": self.frame.unit},
        )

    def files(self) -> tuple[Path, ...]:
        """Return the tables whose rows this reading holds."""
        return self.tables


def images(source: TableSource) -> list[TableImage]:
    """List the images of the table of images that no fixation names, in its order; raises InputError."""
    read: set[str] = set()
    if source.fixations is not None:
        read = set(_open(source.fixations, FIXATIONS, source.columns, ("image_id",)).text("image_id"))
    return [image for image in _read_images(source) if image.image_id not in read]


def readings(source: TableSource) -> tuple[TableReading, ...]:
    """List every reading of the table of fixations, in order of first appearance.

    A reading of an image that the table of images does not list, or whose file is not there, is rejected
    (image_not_listed, image_missing). Raises InputError on a missing table or column, a malformed cell, a
    duplicate image, a reading of two images, words of no reading.
    """
    if source.fixations is None:
        return ()
    table = _open(source.fixations, FIXATIONS, source.columns, ("image_id",))
    ids = _reading_ids(table)
    rows = _fixation_rows(table, ids, source.frame)
    image_of = _image_of_reading(table, ids)
    listed = {image.image_id: image for image in _read_images(source)}
    words = _read_words(source, frozenset(image_of))
    tables = tuple(path for path in (source.fixations, source.words) if path is not None)
    found = []
    for reading_id, own in ids.groupby(ids.to_numpy(), sort=False).indices.items():
        image_id = image_of[str(reading_id)]
        image = listed.get(image_id) or _unlisted(source, image_id)
        found.append(
            TableReading(
                dataset=source.dataset,
                source=image.source,
                reading_id=str(reading_id),
                dicom_id=image_id,
                study_id=image.study_id,
                subject_id=image.subject_id,
                split=image.split,
                view_position=image.view_position,
                image_size=image.size,
                image=image.image,
                context=image.context,
                reject="" if image.image else "image_missing" if image_id in listed else "image_not_listed",
                synthetic=image.synthetic,
                rows=rows.take(np.asarray(own)),
                words=words.get(str(reading_id), ()),
                frame=source.frame,
                tables=tables,
            )
        )
    return tuple(found)


def read_fixations(
    path: Path,
    *,
    frame: Frame = IMAGE_PX,
    image_size: Size | None = None,
    columns: Mapping[str, str] | None = None,
    reading_id: str | None = None,
    image_id: str | None = None,
) -> Fixations:
    """Read one reading's fixations from a table: image px, seconds; columns as in TableSource.

    reading_id or image_id choose it where the table holds several. image_size (width, height) is needed by
    every frame but image px. Raises InputError.
    """
    if not isinstance(frame, Frame):
        raise ValueError(
            f"frame is {frame!r}; give a gazeprep.Frame, such as Frame(unit='image_px', base=1, time='ms')"
        )
    _check_names(columns or {})
    table = _open(path, FIXATIONS, columns or {}, ())
    for name, wanted in (("reading_id", reading_id), ("image_id", image_id)):
        if wanted is not None:
            check_columns(table.cells, [table.names[name]], table.kind)
            table = table.where(table.text(name) == wanted)
    if not len(table.cells):
        raise InputError("no_fixations", f"the {FIXATIONS} has no row for this reading; check reading_id and image_id")
    ids = _reading_ids(table)
    if ids.nunique() > 1:
        raise InputError(
            "several_readings", f"the {FIXATIONS} holds {ids.nunique()} readings; choose one by reading_id or image_id"
        )
    return _fixation_rows(table, ids, frame).fixations(frame, image_size)


@dataclass(frozen=True, eq=False)
class _Table:
    """A table with every cell as text, read by our column names; errors name theirs."""

    cells: pd.DataFrame
    names: dict[str, str]
    kind: str

    def has(self, name: str) -> bool:
        return self.names[name] in self.cells

    def text(self, name: str) -> pd.Series:
        """Cells without surrounding blanks, "" where the table has no such column."""
        if not self.has(name):
            return pd.Series("", index=self.cells.index, dtype=str)
        return self.cells[self.names[name]].str.strip()

    def numbers(self, name: str, empty: float | None = None) -> FloatArray:
        return numbers(self.cells, self.names[name], kind=self.kind, empty=empty)

    def group(self, group: Sequence[str], empty: float | None = None) -> FloatArray | None:
        """Columns (rows, columns) that stand together or not at all."""
        if not any(self.has(name) for name in group):
            return None
        check_columns(self.cells, [self.names[name] for name in group], self.kind)
        return np.stack([self.numbers(name, empty) for name in group], axis=1)

    def where(self, rows: pd.Series) -> "_Table":
        return _Table(self.cells[rows], self.names, self.kind)

    def refuse(self, bad: np.ndarray, name: str, problem: str) -> None:
        """Raise InputError naming the first row of `bad` (rows,), if any."""
        if bad.any():
            first = np.flatnonzero(bad)[0]
            raise InputError(
                "bad_cell",
                f"{self.kind}, row {int(self.cells.index[first]) + 1}, column {self.names[name]!r} {problem} "
                f"({int(bad.sum())} of {len(bad)} rows)",
            )


def _check_names(columns: Mapping[str, str]) -> None:
    unknown = sorted(set(columns) - COLUMNS)
    if unknown:
        known = ", ".join(sorted(COLUMNS))
        raise ValueError(f"columns names {', '.join(map(repr, unknown))}, which no table has; choose among {known}")


def _open(path: Path, kind: str, columns: Mapping[str, str], required: Sequence[str]) -> _Table:
    cells = read_table(path, (), kind=kind, all_columns=True)
    names = {name: columns.get(name, name) for name in COLUMNS}
    names |= {name: name for name in SHARED if names[name] not in cells and name in cells}
    check_columns(cells, [names[name] for name in required], kind)
    table = _Table(cells, names, kind)
    for name in required:
        if name.endswith("_id"):
            table.refuse((table.text(name) == "").to_numpy(), name, "is empty; write an id or remove the row")
    return table


def _reading_ids(table: _Table) -> pd.Series:
    """Reading of each row; without such a column an image has one reading, without both the table is one."""
    if not table.has("reading_id"):
        return table.text("image_id")
    ids = table.text("reading_id")
    table.refuse((ids == "").to_numpy(), "reading_id", "is empty; write an id or remove the row")
    return ids


def _image_of_reading(table: _Table, ids: pd.Series) -> dict[str, str]:
    pairs = pd.DataFrame({"reading": ids, "image": table.text("image_id")}).drop_duplicates()
    several = int(pairs["reading"].duplicated().sum())
    if several:
        raise InputError(
            "reading_of_two_images",
            f"in the {FIXATIONS}, {several} pairs of reading_id and image_id repeat a reading_id on another image; "
            "make reading_id unique to one reading of one image, such as person and image joined",
        )
    return dict(zip(pairs["reading"], pairs["image"], strict=True))


def _fixation_rows(table: _Table, ids: pd.Series, frame: Frame) -> FixationRows:
    x, y = (_required(table, name) for name in "xy")
    start, end = _times(table, ids)
    drawn = table.group(DRAWN)
    if drawn is not None:
        for low, high, name in ((0, 2, "image_right_px"), (1, 3, "image_bottom_px")):
            table.refuse(drawn[:, low] >= drawn[:, high], name, "is not beyond the opposite edge; correct the edges")
    return FixationRows(
        x=x,
        y=y,
        start_s=start * frame.seconds,
        end_s=end * frame.seconds,
        px_per_deg=table.group(PX_PER_DEG),
        shown=table.group(SHOWN),
        drawn=drawn,
    )


def _required(table: _Table, name: str) -> FloatArray:
    check_columns(table.cells, [table.names[name]], table.kind)
    return table.numbers(name)


def _times(table: _Table, ids: pd.Series) -> tuple[FloatArray, FloatArray]:
    """Start and end (rows,) in the table's unit, from start and end, start and duration, or durations alone."""
    if table.has("end"):
        start, end = _required(table, "start"), table.numbers("end")
        table.refuse(end < start, "end", "lies before the start; check that start and end are not swapped")
        return start, end
    duration = _required(table, "duration")
    table.refuse(duration < 0, "duration", "is negative; correct the cell")
    if table.has("start"):
        start = table.numbers("start")
        return start, start + duration
    ends = pd.Series(duration).groupby(ids.to_numpy()).cumsum()
    starts = ends.groupby(ids.to_numpy()).shift(1, fill_value=0.0)
    return np.asarray(starts, dtype=np.float64), np.asarray(ends, dtype=np.float64)


def _read_images(source: TableSource) -> list[TableImage]:
    table = _open(source.images, IMAGES, source.columns, ("image_id", "path", "subject_id"))
    twice = int(table.text("image_id").duplicated().sum())
    if twice:
        raise InputError("duplicate_id", f"the {IMAGES} repeats {twice} of its image_ids; keep one row of each")
    _check_images(table)
    sizes = table.group(SIZE, empty=np.nan)
    root = source.images.parent
    every_synthetic = folder_is_synthetic(root)
    text = {name: table.text(name).tolist() for name in IMAGE_COLUMNS if name not in SIZE}
    found = []
    for row in range(len(table.cells)):
        cells = {name: column[row] for name, column in text.items()}
        path = cells["path"].replace("\\", "/")
        ref = ImageRef(str(root), path, IMAGE_KINDS[Path(path).suffix.lower()], source.dataset)
        sections = Context(**{name: cells[name] for name in SECTIONS})
        found.append(
            TableImage(
                dataset=source.dataset,
                source=cells["source"] or source.dataset,
                image_id=cells["image_id"],
                subject_id=cells["subject_id"],
                study_id=cells["study_id"],
                split=cells["split"],
                view_position=cells["view_position"],
                size=None if sizes is None else _size(sizes[row]),
                image=ref if _is_there(root / path) else None,
                context=sections if sections != Context() else None,
                synthetic=every_synthetic or TRUTH[cells["synthetic"].lower()],
            )
        )
    return found


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than names can be
        return False


def _size(cells: FloatArray) -> Size | None:
    return None if np.isnan(cells).any() else (int(cells[0]), int(cells[1]))


def _check_images(table: _Table) -> None:
    def refuse(name: str, is_good: Any, problem: str) -> None:
        table.refuse(~np.array([is_good(cell) for cell in table.text(name)], dtype=bool), name, problem)

    refuse("path", _stays_inside, "is not a path below the folder of this table; write it relative to that folder")
    refuse("path", lambda cell: Path(cell).suffix.lower() in IMAGE_KINDS, f"ends in none of {', '.join(IMAGE_KINDS)}")
    refuse("split", lambda cell: cell in ("", *SPLITS), f"is none of {', '.join(SPLITS)} and empty")
    refuse("synthetic", lambda cell: cell.lower() in TRUTH, "is neither true nor false")
    sizes = table.group(SIZE, empty=np.nan)
    if sizes is not None:
        for axis, name in enumerate(SIZE):
            table.refuse((sizes[:, axis] < 1) | (sizes[:, axis] % 1 > 0), name, "is not a number of pixels")


def _stays_inside(cell: str) -> bool:
    """Tell whether a relative path, with slashes of either kind, cannot leave its folder."""
    path = PureWindowsPath(cell)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in cell


def _unlisted(source: TableSource, image_id: str) -> TableImage:
    return TableImage(
        dataset=source.dataset,
        source=source.dataset,
        image_id=image_id,
        subject_id="",
        study_id="",
        split="",
        view_position="",
        size=None,
        image=None,
        context=None,
        synthetic=False,
    )


def _read_words(source: TableSource, reading_ids: frozenset[str]) -> dict[str, tuple[Word, ...]]:
    """Words of each reading in the table's order; a phrase with an inner full stop is split."""
    if source.words is None:
        return {}
    table = _open(source.words, WORDS, source.columns, WORD_COLUMNS)
    ids, text = table.text("reading_id"), table.text("word")
    unknown = ~ids.isin(reading_ids).to_numpy()
    table.refuse(unknown, "reading_id", "names a reading without fixations; correct the id or remove its words")
    table.refuse((text == "").to_numpy(), "word", "is empty; remove the row")
    start, end = (table.numbers(name) * source.frame.seconds for name in ("start", "end"))
    table.refuse(end < start, "end", "lies before the start; check that start and end are not swapped")
    words = [Word(*word) for word in zip(text, start.tolist(), end.tolist(), strict=True)]
    groups = ids.groupby(ids.to_numpy(), sort=False).indices
    return {str(reading_id): split_phrases([words[row] for row in own]) for reading_id, own in groups.items()}


def _size_of_file(image: ImageRef) -> Size:
    # OpenCV and pydicom take as long to import as all the rest of `import gazeprep`.
    from gazeprep.images import image_size

    return image_size(image)
