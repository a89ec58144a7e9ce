"""EGD-CXR 1.0.0 (Eye Gaze Data for Chest X-rays): fixations, timed dictation and boxes on MIMIC-CXR images."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gazeprep.schema import (
    CHEXPERT_LABELS,
    LABEL_ABSENT,
    Annotation,
    Context,
    Fixations,
    InputError,
    Reading,
    Recording,
    Word,
)
from gazeprep.sources.bounded import OutOfBoundsError, read_text
from gazeprep.sources.csv_table import bad_cell, folder_is_synthetic, numbers, read_tables
from gazeprep.transcripts import split_phrases

BOXES_FILE = "bounding_boxes.csv"
DATASET = "egd-cxr"
SOURCE = "EGD-CXR 1.0.0"
SIGMA_PX = 150.0  # the Gaussian of the published maps, in image px; the release has no px-per-degree
LARGEST = float(np.finfo(np.float64).max)
ID_LENGTH = 44
CALIBRATION_ID_LENGTH = 39  # rows of calibration pictures carry a real id cut by 5 characters
DIAGNOSES = ("Normal", "CHF", "pneumonia")
FILE_ID = re.compile(r"\w[\w.-]{0,199}")
NUMBER_ID = re.compile(r"\d{1,20}")
IMAGE_PATH = re.compile(r"/p(?P<patient_id>\d+)/s(?P<study_id>\d+)/")

MASTER_COLUMNS = ("dicom_id", "path", "study_id", "patient_id")
FIXATION_COLUMNS = ("DICOM_ID", "FPOGS", "FPOGD", "FPOGV", "X_ORIGINAL", "Y_ORIGINAL")
BOX_COLUMNS = ("dicom_id", "bbox_name", "x1", "x2", "y1", "y2")
CHEXPERT_COLUMNS = {label: f"{label.lower().replace(' ', '_')}__chx" for label in CHEXPERT_LABELS}
INDICATION = "cxr_exam_indication"
LABEL_OF_CELL = {"": LABEL_ABSENT, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}

MASTER, FIXATIONS, BOXES = (f"EGD-CXR {name}.csv" for name in ("master_sheet", "fixations", "bounding_boxes"))


@dataclass(frozen=True, eq=False, kw_only=True)
class EgdReading(Reading):
    """One EGD-CXR image; the tables' rows for it are here already, `load` opens its transcript alone.

    boxes: anatomical regions. diagnoses: which of Normal, CHF and pneumonia the master sheet states. rows: how
    many rows of fixations.csv it has, and how many of them were left out (off_image_rows, invalid_rows).
    """

    root: Path
    fixations: Fixations
    boxes: tuple[Annotation, ...] = ()
    diagnoses: tuple[str, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)

    def load(self) -> Recording:
        """Read the transcript and join the fixations and boxes; raises InputError."""
        notes: dict[str, Any] = {**self.rows, "diagnoses": list(self.diagnoses)}
        transcript = Transcript()
        if self._transcript_path.exists():
            transcript = read_transcript(self._transcript_path)
        else:
            notes["words_missing"] = True
        return Recording(
            fixations=self.fixations,
            words=transcript.words,
            full_stop="suffix",
            transcript=transcript.text,
            annotations=self.boxes,
            sigma_px=SIGMA_PX,
            notes=notes,
        )

    def files(self) -> tuple[Path, ...]:
        """Return the transcript that `load` opens and the tables whose rows this reading holds."""
        return (self._transcript_path, self.root / "fixations.csv", self.root / BOXES_FILE)

    @property
    def _transcript_path(self) -> Path:
        return self.root / "audio_segmentation_transcripts" / self.dicom_id / "transcript.json"


def readings(root: Path) -> tuple[EgdReading, ...]:
    """List every image of an EGD-CXR folder's master sheet, in its order, with its fixations and boxes.

    Raises InputError on a wrong folder, a missing table or column, a duplicate id, a malformed cell.
    """
    tables = _tables_of(root)
    return listed_readings(tables, lambda _: root, source=SOURCE, synthetic=folder_is_synthetic(root))


def listed_readings(
    tables: "EgdTables", root_of: Callable[[str], Path], *, source: str, synthetic: bool
) -> tuple[EgdReading, ...]:
    """List every image of a master sheet, in its order, with its fixations and boxes.

    `root_of` gives the folder that holds fixations.csv and the transcripts for a subject. Raises InputError on a
    duplicate id or a malformed cell.
    """
    master = _checked_master(tables.master)
    known = frozenset(master["dicom_id"])
    fixations = _fixations_by_id(tables.fixations, known)
    boxes = _boxes_by_id(tables.boxes, known)
    found = []
    for row, record in enumerate(master.to_dict("records"), start=1):
        cells = {str(name): str(value) for name, value in record.items()}
        dicom_id = cells["dicom_id"]
        own = fixations.get(dicom_id, _OwnRows())
        indication = " ".join(cells.get(INDICATION, "").split())
        subject_id = _number_id(cells, "patient_id", row)
        found.append(
            EgdReading(
                dataset=DATASET,
                source=source,
                reading_id=dicom_id,
                dicom_id=dicom_id,
                study_id=_number_id(cells, "study_id", row),
                subject_id=subject_id,
                context=Context(indication=indication) if indication else None,
                reject="" if len(own.fixations) else "no_fixations",
                synthetic=synthetic,
                root=root_of(subject_id),
                fixations=own.fixations,
                boxes=tuple(boxes.get(dicom_id, ())),
                chexpert={label: _label(cells, name, row) for label, name in CHEXPERT_COLUMNS.items()},
                diagnoses=tuple(name for name in DIAGNOSES if cells.get(name) in ("1", "1.0")),
                rows=own.counts,
            )
        )
    return tuple(found)


def dropped_rows(root: Path) -> dict[str, int]:
    """Count the rows of a folder's fixations.csv that belong to no image of its master sheet.

    Returns calibration_rows (the id cut by 5 characters) and unknown_id_rows (any other id).
    """
    return unmatched_rows(_tables_of(root))


def unmatched_rows(tables: "EgdTables") -> dict[str, int]:
    """Count the rows of fixations that belong to no image of the master sheet, as `dropped_rows` does."""
    ids = tables.fixations["DICOM_ID"].str.strip()
    left = ids[_match_ids(ids, frozenset(tables.master["dicom_id"].str.strip())) == ""]
    calibration = int((left.str.len() == CALIBRATION_ID_LENGTH).sum())
    return {"calibration_rows": calibration, "unknown_id_rows": len(left) - calibration}


@dataclass(frozen=True, eq=False)
class EgdTables:
    """The tables of a release with every cell as text; `boxes` without rows where there is none."""

    master: pd.DataFrame
    fixations: pd.DataFrame
    boxes: pd.DataFrame


def read_master_sheet(paths: Sequence[Path]) -> pd.DataFrame:
    """Read a master sheet, or its parts as one; raises InputError."""
    return read_tables(paths, MASTER_COLUMNS, kind=MASTER, all_columns=True)


def read_fixation_rows(paths: Sequence[Path], also: Sequence[str] = ()) -> pd.DataFrame:
    """Read a fixations.csv, or its parts as one, with the columns of `also`; raises InputError."""
    return read_tables(paths, [*FIXATION_COLUMNS, *also], kind=FIXATIONS)


def read_box_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """Read a bounding_boxes.csv, or its parts as one; raises InputError."""
    return read_tables(paths, BOX_COLUMNS, kind=BOXES)


def _tables_of(root: Path) -> EgdTables:
    path = root / "master_sheet.csv"
    if not path.exists():
        raise InputError(
            "wrong_folder",
            "the EGD-CXR folder does not exist or holds no master_sheet.csv; pass the folder that contains "
            "master_sheet.csv and fixations.csv (on a mirror: physionet.org/files/egd-cxr/1.0.0)",
        )
    boxes = root / BOXES_FILE
    return EgdTables(
        master=read_master_sheet([path]),
        fixations=read_fixation_rows([root / "fixations.csv"]),
        boxes=read_box_rows([boxes] if boxes.exists() else []),
    )


def _checked_master(master: pd.DataFrame) -> pd.DataFrame:
    master = master.assign(dicom_id=master["dicom_id"].str.strip())
    malformed = np.flatnonzero(~master["dicom_id"].str.fullmatch(FILE_ID))
    if len(malformed):
        raise bad_cell(MASTER, int(malformed[0]) + 1, "dicom_id", "is not a DICOM id")
    twice = int(master["dicom_id"].duplicated().sum())
    if twice:
        raise InputError("duplicate_id", f"{MASTER} repeats {twice} of its dicom_ids; keep one row of each")
    return master


def _number_id(cells: dict[str, str], column: str, row: int) -> str:
    """Digits of a study or patient id, from its column (`s50414267`, `50414267.0`) or else from the path."""
    text = cells[column].strip().lstrip("sp").removesuffix(".0")
    in_path = IMAGE_PATH.search(cells["path"])
    if not text and in_path:
        return in_path[column]
    if not NUMBER_ID.fullmatch(text):
        raise bad_cell(MASTER, row, column, "is not a number, and path does not tell it")
    return text


def _label(cells: dict[str, str], column: str, row: int) -> int:
    cell = cells.get(column, "").strip()
    if cell not in LABEL_OF_CELL:
        raise bad_cell(MASTER, row, column, "is none of 1, 0, -1 and empty")
    return LABEL_OF_CELL[cell]


@dataclass(frozen=True, eq=False)
class _OwnRows:
    """What fixations.csv holds for one image."""

    fixations: Fixations = field(default_factory=Fixations.empty)
    counts: dict[str, int] = field(default_factory=lambda: {"rows": 0, "off_image_rows": 0, "invalid_rows": 0})


def _match_ids(ids: pd.Series, known: frozenset[str]) -> pd.Series:
    """Known dicom id of each row, "" for none; an id longer than 44 characters counts as its first 44.

    A shorter id is never completed: rows whose id lacks 5 characters are calibration pictures.
    """
    matched = ids.str.slice(0, ID_LENGTH).where(ids.str.len() > ID_LENGTH, ids)
    return ids.where(ids.isin(known), matched.where(matched.isin(known), ""))


def _fixations_by_id(table: pd.DataFrame, known: frozenset[str]) -> dict[str, _OwnRows]:
    owner = _match_ids(table["DICOM_ID"].str.strip(), known)
    table = table[owner != ""]
    start, duration, valid, x, y = (numbers(table, name, kind=FIXATIONS) for name in FIXATION_COLUMNS[1:])
    negative = np.flatnonzero(duration < 0)
    if len(negative):
        raise bad_cell(FIXATIONS, int(table.index[negative[0]]) + 1, "FPOGD", "is a negative duration")
    # A negative original coordinate says "off the image", on both axes even where one of them is inside.
    off_image = (x < 0) | (y < 0)
    invalid = ~off_image & (valid == 0)
    kept = ~off_image & ~invalid
    found = {}
    for dicom_id, rows in table.groupby(owner[table.index].to_numpy(), sort=False).indices.items():
        own = rows[kept[rows]]
        found[str(dicom_id)] = _OwnRows(
            Fixations(x[own], y[own], start[own], start[own] + duration[own]),
            {
                "rows": len(rows),
                "off_image_rows": int(off_image[rows].sum()),
                "invalid_rows": int(invalid[rows].sum()),
            },
        )
    return found


def read_fixations(path: Path, *, dicom_id: str) -> Fixations:
    """Read one image's fixations from an EGD-CXR fixations.csv: image px, seconds; raises InputError.

    Leaves out rows off the image (a negative X_ORIGINAL or Y_ORIGINAL is a flag, not a position) and rows that
    the tracker calls invalid (FPOGV 0).
    """
    found = _fixations_by_id(read_fixation_rows([path]), frozenset([dicom_id]))
    if dicom_id not in found:
        raise InputError(
            "unknown_id", f"{FIXATIONS} has no row with this dicom_id; pass one of its DICOM_ID in full, 44 characters"
        )
    return found[dicom_id].fixations


def _boxes_by_id(table: pd.DataFrame, known: frozenset[str]) -> dict[str, list[Annotation]]:
    x1, x2, y1, y2 = (numbers(table, name, kind=BOXES) for name in BOX_COLUMNS[2:])
    boxes = np.stack([np.minimum(x1, x2), np.minimum(y1, y2), np.maximum(x1, x2), np.maximum(y1, y2)], axis=1)
    found: dict[str, list[Annotation]] = {}
    for dicom_id, name, box in zip(table["dicom_id"].str.strip(), table["bbox_name"], boxes.tolist(), strict=True):
        if dicom_id in known:
            found.setdefault(dicom_id, []).append(Annotation(kind="box", box=tuple(box), labels=(name.strip(),)))
    return found


@dataclass(frozen=True)
class Transcript:
    """What a transcript.json holds: the whole text, and its words as phrases with at most one full stop each."""

    text: str = ""
    words: tuple[Word, ...] = ()


def read_transcript(path: Path) -> Transcript:
    """Read one EGD-CXR transcript.json; an empty list or text is legal. Raises InputError, quoting no text."""
    try:
        content = json.loads(read_text(path, "utf-8-sig"))
    except OutOfBoundsError as error:
        raise _bad_transcript(str(error)) from None
    except (ValueError, OSError, RecursionError) as error:
        raise _bad_transcript(f"cannot be read as json ({type(error).__name__})") from None
    match content:
        case {"full_text": str(text), "time_stamped_text": list(phrases)}:
            words = tuple(_phrase(phrase, number) for number, phrase in enumerate(phrases, start=1))
            return Transcript(text.strip(), split_phrases(words))
    raise _bad_transcript("is not an object with a text full_text and a list time_stamped_text")


def _phrase(phrase: Any, number: int) -> Word:
    match phrase:
        case {"phrase": str(text), "begin_time": float() | int() as start_s, "end_time": float() | int() as end_s}:
            if -LARGEST <= start_s <= end_s <= LARGEST:  # json's whole numbers have no limit
                return Word(text, float(start_s), float(end_s))
    raise _bad_transcript(f"phrase {number} is not a text with begin_time <= end_time in seconds")


def _bad_transcript(problem: str) -> InputError:
    return InputError("bad_transcript", f"EGD-CXR transcript.json {problem}; correct the file or download it again")
