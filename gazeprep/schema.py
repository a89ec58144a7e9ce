"""The contract: what a recording, a case and a shard sample are, in which units.

Gaze lives in full-resolution image pixels, x right, y down. Points are (x, y) and use pixel centres: an
integer is the centre of a pixel. Rectangles are (left, top, right, bottom) and use edges: the whole image is
(0, 0, width, height), pixel i spans [i, i + 1], so an edge e lies at point coordinate e - 1/2. Sizes are
(width, height); arrays and grids are (rows, cols). Times are seconds from the recording's own zero.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1
PRIOR_SCHEMA_VERSION = 2  # with the fields of an earlier study: a build writes them where sample.prior asks for them
SCHEMA_VERSIONS = (SCHEMA_VERSION, PRIOR_SCHEMA_VERSION)

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Size = tuple[int, int]  # (width, height)
Rectangle = tuple[float, float, float, float]  # (left, top, right, bottom), edges
Split = Literal["train", "validate", "test"]

MAX_DURATION_S = 1e9  # of a fixation, so that sums of weights stay finite

SPLITS: tuple[Split, ...] = ("train", "validate", "test")

CHEXPERT_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
LABEL_ABSENT = -2  # 1 present, 0 absent in the image, -1 uncertain, -2 not mentioned or no label row


class InputError(ValueError):
    """A user's input cannot be used: what is wrong, where (file kind, row, column) and the cure.

    `reason` is the code under which a build counts it in rejected.parquet. The message never holds report
    text, source ids or absolute paths.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # so that it crosses process borders
        return type(self), (self.reason, str(self))


def _column(name: str, values: npt.ArrayLike, length: int) -> FloatArray:
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("bad_fixations", f"{name} holds a value that is not a number") from None
    if column.ndim != 1 or len(column) != length:
        raise InputError(
            "bad_fixations",
            f"{name} has shape {column.shape}, expected ({length},): one value per fixation, as in x_px",
        )
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        raise InputError(
            "bad_fixations",
            f"{name}[{bad[0]}] is {column[bad[0]]}; drop rows without a position or time before "
            f"making Fixations ({len(bad)} of {length} rows are not finite)",
        )
    return column


@dataclass(frozen=True, eq=False)
class Fixations:
    """The fixations of one reading of one image, as columns of equal length n.

    x_px, y_px (n,): points in image pixels, may lie off the image. start_s, end_s (n,): seconds; may overlap
    other fixations; zero durations are legal. px_per_deg_x, px_per_deg_y (n,) or one number: image pixels per
    degree of visual angle. shown (n, 4): the part of the image on the screen, edges left, top, right, bottom; None is
    the whole image. screen (n, 4): where that part was drawn, edges in screen px. mark (n,): why a filter would
    leave the fixation out, "" for none.
    Raises InputError (a ValueError) on NaN, infinite values, negative durations, ragged columns.
    """

    x_px: FloatArray
    y_px: FloatArray
    start_s: FloatArray
    end_s: FloatArray
    px_per_deg_x: FloatArray | None = field(default=None, kw_only=True)
    px_per_deg_y: FloatArray | None = field(default=None, kw_only=True)
    shown: FloatArray | None = field(default=None, kw_only=True)
    screen: FloatArray | None = field(default=None, kw_only=True)
    mark: npt.NDArray[np.str_] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        length = np.size(self.x_px)
        for name in ("x_px", "y_px", "start_s", "end_s"):
            object.__setattr__(self, name, _column(name, getattr(self, name), length))
        self._check_durations()
        self._check_resolution(length)
        self._check_rectangles("shown", length)
        self._check_rectangles("screen", length)
        mark = np.full(length, "") if self.mark is None else np.asarray(self.mark, dtype=np.str_)
        if mark.shape != (length,):
            raise InputError("bad_fixations", f"mark has shape {mark.shape}, expected ({length},)")
        object.__setattr__(self, "mark", mark)

    def _check_durations(self) -> None:
        negative = np.flatnonzero(self.end_s < self.start_s)
        if len(negative):
            i = negative[0]
            raise InputError(
                "bad_fixations",
                f"fixation {i} ends before it starts ({self.start_s[i]} s to {self.end_s[i]} s); "
                "check that start and end are not swapped and share one unit",
            )
        with np.errstate(over="ignore"):
            endless = np.flatnonzero(self.duration_s > MAX_DURATION_S)
        if len(endless):
            i = endless[0]
            raise InputError(
                "bad_fixations",
                f"fixation {i} lasts from {self.start_s[i]} s to {self.end_s[i]} s, over thirty years; check its unit",
            )

    def _check_resolution(self, length: int) -> None:
        if (self.px_per_deg_x is None) != (self.px_per_deg_y is None):
            raise InputError("bad_fixations", "give both px_per_deg_x and px_per_deg_y, or neither")
        for name in ("px_per_deg_x", "px_per_deg_y"):
            if getattr(self, name) is None:
                continue
            values = np.asarray(getattr(self, name))
            column = _column(name, np.full(length, values) if values.ndim == 0 else values, length)
            bad = np.flatnonzero(column <= 0)
            if len(bad):
                raise InputError(
                    "bad_fixations",
                    f"{name}[{bad[0]}] is {column[bad[0]]}, must be positive; pass None where it is unknown",
                )
            object.__setattr__(self, name, column)

    def _check_rectangles(self, name: str, length: int) -> None:
        if getattr(self, name) is None:
            return
        rectangles = np.asarray(getattr(self, name), dtype=np.float64)
        if rectangles.size == 0 and length == 0:
            rectangles = rectangles.reshape(0, 4)
        if rectangles.shape != (length, 4):
            raise InputError(
                "bad_fixations",
                f"{name} has shape {rectangles.shape}, expected ({length}, 4): left, top, right, bottom edges",
            )
        ordered = (rectangles[:, :2] <= rectangles[:, 2:]).all(axis=1)
        bad = np.flatnonzero(~(np.isfinite(rectangles).all(axis=1) & ordered))
        if len(bad):
            raise InputError(
                "bad_fixations",
                f"{name}[{bad[0]}] is {rectangles[bad[0]].tolist()}: not a rectangle left, top, right, bottom",
            )
        object.__setattr__(self, name, rectangles)

    def __len__(self) -> int:
        return len(self.x_px)

    @property
    def duration_s(self) -> FloatArray:
        """Durations (n,) in seconds."""
        return self.end_s - self.start_s

    @property
    def kept(self) -> BoolArray:
        """Which fixations (n,) no filter has marked."""
        assert self.mark is not None
        return self.mark == ""

    def take(self, rows: Any) -> Self:
        """Return the fixations of these rows: a boolean mask (n,), indices or a slice."""
        chosen = np.arange(len(self))[rows]
        columns: dict[str, Any] = {}
        for column in fields(self):
            values = getattr(self, column.name)
            columns[column.name] = None if values is None else values[chosen]
        return type(self)(**columns)

    @classmethod
    def empty(cls) -> Self:
        """Return no fixations."""
        return cls(*(np.zeros(0) for _ in range(4)))


@dataclass(frozen=True)
class Word:
    """One dictated token with its time span in seconds; equal times are legal."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Sentence:
    """One dictated sentence: its text, its time span, its words as a half-open range of the word list."""

    text: str
    start_s: float
    end_s: float
    first_word: int
    last_word: int  # one past


@dataclass(frozen=True)
class Annotation:
    """A rectangle or an axis-aligned ellipse drawn on the image; box in edges, certainty 1..5 or 0."""

    kind: Literal["ellipse", "box", "chest_box"]
    box: Rectangle
    labels: tuple[str, ...] = ()
    certainty: int = 0


@dataclass(frozen=True, eq=False)
class Recording:
    """What one reading of one image recorded, in image pixels and seconds."""

    fixations: Fixations
    words: tuple[Word, ...] = ()
    full_stop: Literal["token", "suffix"] = "token"  # "." is a word of its own, or ends the word before it
    transcript: str = ""
    annotations: tuple[Annotation, ...] = ()
    sigma_px: float | None = None  # the source's published Gaussian width where it has no px-per-degree
    notes: dict[str, Any] = field(default_factory=dict)  # counts and facts for the provenance, no ids


@dataclass(frozen=True)
class Context:
    """The report's sections; absent text is ""."""

    indication: str = ""
    history: str = ""
    comparison: str = ""
    technique: str = ""
    findings: str = ""
    impression: str = ""
    last_paragraph: str = ""


@dataclass(frozen=True)
class PriorContext:
    """What the report of the last study before says, as fields of a sample; "" and -1 where there is none.

    prior_days: from its start to the start of this one.
    """

    prior_study: str = ""
    prior_days: float = -1.0
    prior_findings: str = ""
    prior_impression: str = ""
    prior_last_paragraph: str = ""


@dataclass(frozen=True)
class ImageRef:
    """Where an image lies: `path` relative to `root`, read as `kind` ("dicom" or "raster")."""

    root: str
    path: str
    kind: Literal["dicom", "raster"]
    source: str  # for the provenance, such as mimic-cxr or mimic-cxr-jpg


@dataclass(frozen=True)
class ReportRef:
    """Where a study's report lies: a text file, or the member of a zip; `path` is relative to `root`."""

    root: str
    path: str
    member: str = ""


@dataclass(frozen=True)
class PriorStudy:
    """The last study of the same subject before another: how many days before, and its report, None without one."""

    study_id: str
    days: float
    report: ReportRef | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading(ABC):
    """One reading of one image, as its source's tables list it; `load` opens its own files.

    reading_id is unique within the dataset. split is the source's own, "" where it has none. image is the
    source's own picture, None where MIMIC-CXR holds it. reject is the reason why it cannot become a sample
    ("" for none), such as eye_tracking_discarded. Objects are small and cross process borders.
    """

    dataset: str
    source: str  # name and version, for the provenance
    reading_id: str
    dicom_id: str
    study_id: str = ""
    subject_id: str = ""
    split: str = ""
    view_position: str = ""
    image_size: Size | None = None  # as the source states it, None where it does not
    image: ImageRef | None = None
    context: Context | None = None
    chexpert: dict[str, int] | None = None  # the source's own 14 labels, used where MIMIC has no row
    reject: str = ""
    synthetic: bool = False

    @abstractmethod
    def load(self) -> Recording:
        """Read the recording; raises InputError where it cannot be used."""

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Return the files that `load` opens, so that a build notices when they change."""


@dataclass(frozen=True)
class Rejected:
    """An input that did not become a sample, and why."""

    key: str
    dataset: str
    reading_id: str
    dicom_id: str
    study_id: str
    subject_id: str
    reason: str
    detail: str = ""

    @classmethod
    def of(cls, source: Any, reason: str, detail: str = "") -> Self:
        """Reject a case, or whatever else carries the ids of one."""
        ids = ("key", "dataset", "reading_id", "dicom_id", "study_id", "subject_id")
        return cls(**{name: getattr(source, name) for name in ids}, reason=reason, detail=detail)


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One reading of one image, or an image without gaze (reading None): all that a worker needs to load it."""

    key: str
    dataset: str
    dicom_id: str
    study_id: str
    subject_id: str
    reading_id: str
    split: Split
    split_origin: str
    view_position: str
    image: ImageRef
    image_size: Size | None  # as the tables state it
    reading: Reading | None
    report: ReportRef | None
    prior: PriorStudy | None = None  # where it is asked for
    context: Context | None  # the source's own, used where there is no report
    labels: dict[str, int]
    synthetic: bool
    source: str


FIXATION_COLUMNS = (
    "x_px",
    "y_px",
    "start_s",
    "end_s",
    "px_per_deg_x",
    "px_per_deg_y",
    "shown_left",
    "shown_top",
    "shown_right",
    "shown_bottom",
    "on_image",
)
WORD_COLUMNS = ("word", "word_start_s", "word_end_s", "word_sentence")
SENTENCE_COLUMNS = ("sentence_start_s", "sentence_end_s", "window_start_s")
