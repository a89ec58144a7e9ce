"""REFLACX 1.0.0: eye tracking, timed dictation, ellipses and chest boxes on MIMIC-CXR images."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gazeprep.schema import SPLITS, Annotation, Fixations, InputError, Reading, Recording, Word
from gazeprep.sources.bounded import OutOfBoundsError, read_text
from gazeprep.sources.csv_table import bad_cell, folder_is_synthetic, numbers, read_table

DATASET = "reflacx"
SOURCE = "REFLACX 1.0.0"
PHASES = (1, 2, 3)
READING_ID = re.compile(r"P[123]\d{2}R\d{6}")
SUBJECT_ID = re.compile(r"\d{1,20}")
IMAGE_PATH = re.compile(r"files/p\d{2}/p(?P<subject>\d+)/s(?P<study>\d+)/(?P<dicom>[^/]+)\.dcm$")

META_COLUMNS = (
    "id",
    "split",
    "eye_tracking_data_discarded",
    "image",
    "dicom_id",
    "subject_id",
    "image_size_x",
    "image_size_y",
)
EDGES = ("xmin", "ymin", "xmax", "ymax")
SHOWN = tuple(f"{edge}_shown_from_image" for edge in EDGES)
SCREEN = tuple(f"{edge}_in_screen_coordinates" for edge in EDGES)
FIXATION_COLUMNS = (
    "x_position",
    "y_position",
    "timestamp_start_fixation",
    "timestamp_end_fixation",
    "angular_resolution_x_pixels_per_degree",
    "angular_resolution_y_pixels_per_degree",
    *SHOWN,
)
WORD_COLUMNS = ("word", "timestamp_start_word", "timestamp_end_word")


@dataclass(frozen=True, eq=False, kw_only=True)
class ReflacxReading(Reading):
    """One REFLACX id; `folder` is main_data/<id>, `labels` the certainties its metadata row states."""

    folder: Path
    phase: int
    labels: dict[str, Any]

    def load(self) -> Recording:
        """Read fixations, words, ellipses and chest box; raises InputError."""
        words = read_words(self._words_path)
        notes = {"phase": self.phase, "labels": self.labels}
        if not self._words_path.exists():
            notes["words_missing"] = True
        return Recording(
            fixations=read_fixations(self.folder / "fixations.csv"),
            words=words,
            transcript=_read_transcript(self.folder / "transcription.txt"),
            annotations=(*_read_ellipses(self.folder), *_read_chest_box(self.folder)),
            notes=notes,
        )

    def files(self) -> tuple[Path, ...]:
        """Return the files of main_data/<id> that `load` opens."""
        names = ("fixations.csv", "transcription.txt", "anomaly_location_ellipses.csv", "chest_bounding_box.csv")
        return (self._words_path, *(self.folder / name for name in names))

    @property
    def _words_path(self) -> Path:
        return self.folder / "timestamps_transcription.csv"


def readings(root: Path) -> tuple[ReflacxReading, ...]:
    """List every reading that the metadata tables of a REFLACX folder name, in their order.

    Raises InputError on a wrong folder, a missing column, a duplicate id, a malformed cell.
    """
    main = root / "main_data"
    tables = {phase: main / f"metadata_phase_{phase}.csv" for phase in PHASES}
    if not any(path.exists() for path in tables.values()):
        raise InputError(
            "wrong_folder",
            "the REFLACX folder does not exist or holds no main_data/metadata_phase_{1,2,3}.csv; pass the folder "
            "that contains main_data (on a mirror: physionet.org/files/reflacx-xray-localization/1.0.0)",
        )
    found: list[ReflacxReading] = []
    for path in tables.values():
        if path.exists():
            kind = f"REFLACX {path.name}"
            table = read_table(path, META_COLUMNS, kind=kind, all_columns=True)
            found += listed_readings(table, kind, lambda _: root, source=SOURCE, synthetic=folder_is_synthetic(root))
    check_unique(found)
    return tuple(found)


def missing_tables(root: Path) -> int:
    """Count the metadata tables that a REFLACX folder lacks."""
    return sum(not (root / "main_data" / f"metadata_phase_{phase}.csv").exists() for phase in PHASES)


def listed_readings(
    table: pd.DataFrame, kind: str, root_of: Callable[[str], Path], *, source: str, synthetic: bool
) -> list[ReflacxReading]:
    """List the readings of a metadata table, all its columns as text.

    `root_of` gives the folder that holds main_data for a subject. Raises InputError on a malformed cell.
    """
    width, height = (numbers(table, f"image_size_{axis}", kind=kind) for axis in "xy")
    labels = [name for name in table.columns if name not in META_COLUMNS]
    found = []
    for row, record in enumerate(table.to_dict("records"), start=1):
        cells = {str(name): str(value) for name, value in record.items()}
        reading_id = cells["id"].strip()
        if not READING_ID.fullmatch(reading_id):
            raise bad_cell(kind, row, "id", "is not of the form P102R345678")
        image = IMAGE_PATH.search(cells["image"])
        if image is None:
            raise bad_cell(kind, row, "image", "is not a path .../files/p10/p10000032/s50414267/<dicom_id>.dcm")
        if cells["split"] not in SPLITS:
            raise bad_cell(kind, row, "split", f"is none of {', '.join(SPLITS)}")
        subject_id = cells["subject_id"].strip().removeprefix("p").removesuffix(".0")
        if not SUBJECT_ID.fullmatch(subject_id):  # it names a folder of MIMIC-Eye
            raise bad_cell(kind, row, "subject_id", "is not a number")
        folder = root_of(subject_id) / "main_data" / reading_id
        found.append(
            ReflacxReading(
                dataset=DATASET,
                source=source,
                reading_id=reading_id,
                dicom_id=cells["dicom_id"].strip(),
                study_id=image["study"],
                subject_id=subject_id,
                split=cells["split"],
                image_size=(int(width[row - 1]), int(height[row - 1])),
                reject=_reject_reason(cells["eye_tracking_data_discarded"], folder, kind, row),
                synthetic=synthetic,
                folder=folder,
                phase=int(reading_id[1]),
                labels={name: _label(cells[name], kind, row, name) for name in labels if cells[name] != ""},
            )
        )
    return found


def _reject_reason(discarded: str, folder: Path, kind: str, row: int) -> str:
    match discarded.strip().lower():
        case "true":
            return "eye_tracking_discarded"
        case "false":
            return "" if (folder / "fixations.csv").exists() else "fixations_missing"
    raise bad_cell(kind, row, "eye_tracking_data_discarded", "is neither True nor False")


def _label(cell: str, kind: str, row: int, column: str) -> int | bool | str:
    """Certainty 0..5 (`5` or `5.0`), True/False, or the free text of Other."""
    if cell in ("True", "False"):
        return cell == "True"
    if column == "Other":
        return cell
    try:
        certainty = float(cell)
    except ValueError:
        raise bad_cell(kind, row, column, "is not a certainty 0 to 5") from None
    if certainty not in range(6):
        raise bad_cell(kind, row, column, "is not a certainty 0 to 5")
    return int(certainty)


def read_fixations(path: Path) -> Fixations:
    """Read one REFLACX fixations.csv: image px, seconds, shown and screen rectangles; raises InputError."""
    kind = "REFLACX fixations.csv"
    table = read_table(path, FIXATION_COLUMNS, kind=kind, optional=SCREEN)
    x, y, start, end, deg_x, deg_y = (numbers(table, name, kind=kind) for name in FIXATION_COLUMNS[:6])
    _refuse(end < start, kind, FIXATION_COLUMNS[3], "lies before the fixation's start")
    for name, resolution in zip(FIXATION_COLUMNS[4:6], (deg_x, deg_y), strict=True):
        _refuse(resolution <= 0, kind, name, "is not a positive resolution")
    has_screen = set(SCREEN) <= set(table.columns)
    return Fixations(
        x,
        y,
        start,
        end,
        px_per_deg_x=deg_x,
        px_per_deg_y=deg_y,
        shown=_rectangles(table, SHOWN, kind),
        screen=_rectangles(table, SCREEN, kind) if has_screen else None,
    )


def _rectangles(table: pd.DataFrame, columns: tuple[str, ...], kind: str) -> np.ndarray:
    found = np.stack([numbers(table, name, kind=kind) for name in columns], axis=1)
    for low, high in ((0, 2), (1, 3)):
        _refuse(found[:, high] < found[:, low], kind, columns[high], f"is less than {columns[low]!r}")
    return found


def read_words(path: Path) -> tuple[Word, ...]:
    """Read one REFLACX timestamps_transcription.csv; no words where the file is absent or holds a header only."""
    if not path.exists():
        return ()
    kind = "REFLACX timestamps_transcription.csv"
    table = read_table(path, WORD_COLUMNS, kind=kind)
    start_s, end_s = (numbers(table, name, kind=kind) for name in WORD_COLUMNS[1:])
    _refuse(end_s < start_s, kind, WORD_COLUMNS[2], "lies before the word's start")
    return tuple(
        Word(text, float(start), float(end)) for text, start, end in zip(table["word"], start_s, end_s, strict=True)
    )


def _read_transcript(path: Path) -> str:
    try:
        return read_text(path).strip() if path.exists() else ""
    except OutOfBoundsError as error:
        raise InputError("bad_transcript", f"REFLACX {path.name} {error}; download it again") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(
            "bad_transcript", f"REFLACX {path.name} cannot be read ({type(error).__name__}); download it again"
        ) from None


def _read_ellipses(folder: Path) -> tuple[Annotation, ...]:
    path = folder / "anomaly_location_ellipses.csv"
    if not path.exists():
        return ()
    kind = f"REFLACX {path.name}"
    table = read_table(path, (*EDGES, "certainty"), kind=kind, all_columns=True)
    boxes, certainty = _rectangles(table, EDGES, kind), numbers(table, "certainty", kind=kind)
    _refuse(~np.isin(certainty, (1, 2, 3, 4, 5)), kind, "certainty", "is none of 1 to 5")
    labels = [name for name in table.columns if name not in (*EDGES, "certainty")]
    return tuple(
        Annotation(
            kind="ellipse",
            box=tuple(boxes[row]),
            labels=tuple(name for name in labels if table[name].iloc[row] == "True"),
            certainty=int(certainty[row]),
        )
        for row in range(len(table))
    )


def _read_chest_box(folder: Path) -> tuple[Annotation, ...]:
    path = folder / "chest_bounding_box.csv"
    if not path.exists():
        return ()
    kind = f"REFLACX {path.name}"
    boxes = _rectangles(read_table(path, EDGES, kind=kind), EDGES, kind)
    return tuple(Annotation(kind="chest_box", box=tuple(box)) for box in boxes)


def check_unique(found: Sequence[ReflacxReading]) -> None:
    """Raise InputError where an id stands twice."""
    counts = pd.Series([reading.reading_id for reading in found]).value_counts()
    twice = int((counts > 1).sum())
    if twice:
        raise InputError(
            "duplicate_id", f"{twice} REFLACX ids stand in the metadata tables more than once; keep one row of each"
        )


def _refuse(bad: np.ndarray, kind: str, column: str, problem: str) -> None:
    """Raise InputError naming the first row of `bad` (rows,), if any."""
    if bad.any():
        raise bad_cell(kind, int(np.flatnonzero(bad)[0]) + 1, column, problem)
