"""MIMIC-Eye 1.0.0: REFLACX, EGD-CXR, JPEG images, reports and labels of the same patients, a folder for each.

    patient_<subject>/REFLACX/         metadata.csv (the three phases joined), main_data/<id>/ as in REFLACX
    patient_<subject>/EyeGaze/         EGD-CXR's tables and transcripts
    patient_<subject>/CXR-JPG/         cxr_{meta,split,chexpert,negbio}.csv, s<study>/<dicom id>.jpg
    patient_<subject>/CXR-DICOM/       s<study>.txt, the reports

The tables of the patients are read as one. `spreadsheets` repeats them, and all of it is left alone but its
EyeGaze/fixations.csv: the patients' own lack the rows whose id is longer than an id.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from gazeprep.schema import ImageRef, InputError, Reading, ReportRef
from gazeprep.sources import egd, reflacx
from gazeprep.sources.csv_table import folder_is_synthetic, numbers, read_tables
from gazeprep.sources.mimic_cxr import IDS, ImageFiles, LabelTable, MimicCxr, MimicTables, read_mimic, study_path

SOURCE = "MIMIC-Eye 1.0.0"
IMAGE_SOURCE = "mimic-eye"
METADATA = "MIMIC-Eye REFLACX/metadata.csv"
PATIENT = re.compile(r"patient_(?P<subject>\d+)")
SCREEN_PX = (1920, 1080)
SCREEN_COLUMNS = ("FPOGX", "FPOGY")  # fractions of the screen
ALL_FIXATIONS = "spreadsheets/EyeGaze/fixations.csv"
LABEL_FILES: dict[LabelTable, str] = {"chexpert": "cxr_chexpert.csv", "negbio": "cxr_negbio.csv"}


@dataclass(frozen=True, eq=False)
class MimicEye:
    """What a folder holds: the readings, MIMIC-CXR's images, reports and labels, what was left out with counts."""

    readings: tuple[Reading, ...]
    mimic: MimicCxr
    dropped_rows: dict[str, int]


def open_mimic_eye(
    root: Path, *, overrides: Path | None = None, labels: LabelTable = "chexpert", prior: bool = False
) -> MimicEye:
    """List the readings and images of a MIMIC-Eye folder; raises InputError as the readers of its parts do."""
    patients = _patients(root)
    synthetic = folder_is_synthetic(root)
    eye_gaze = _eye_gaze_tables(root, patients)
    calibration = _is_calibration(eye_gaze.fixations)
    images_only = replace(eye_gaze, fixations=eye_gaze.fixations[~calibration])
    dropped = egd.unmatched_rows(images_only)
    dropped["calibration_rows"] += int(calibration.sum())
    return MimicEye(
        readings=(
            *_reflacx_readings(patients, synthetic),
            *egd.listed_readings(
                images_only, lambda subject: _eye_gaze(root, subject), source=_in(egd.SOURCE), synthetic=synthetic
            ),
        ),
        mimic=_open_images(root, patients, overrides, labels, prior=prior),
        dropped_rows=dropped,
    )


def _patients(root: Path) -> list[Path]:
    """Return the folders of the patients, in the order of their names."""
    found = sorted(path for path in root.glob("patient_*") if PATIENT.fullmatch(path.name) and path.is_dir())
    if not found:
        below = any(root.glob("mimic-eye/patient_*"))
        cure = "give its subfolder mimic-eye" if below else "give the folder mimic-eye of the release"
        raise InputError("wrong_folder", f"the MIMIC-Eye folder does not exist or holds no patient_<subject>: {cure}")
    return found


def _tables(patients: list[Path], name: str) -> list[Path]:
    return [path for path in (patient / name for patient in patients) if path.exists()]


def _in(source: str) -> str:
    return f"{source} in {SOURCE}"


# REFLACX and EGD-CXR


def _reflacx_readings(patients: list[Path], synthetic: bool) -> list[reflacx.ReflacxReading]:
    paths = _tables(patients, "REFLACX/metadata.csv")
    table = _without_index(read_tables(paths, reflacx.META_COLUMNS, kind=METADATA, all_columns=True))
    root = patients[0].parent
    found = reflacx.listed_readings(
        table,
        METADATA,
        lambda subject: root / f"patient_{subject}" / "REFLACX",
        source=_in(reflacx.SOURCE),
        synthetic=synthetic,
    )
    reflacx.check_unique(found)
    return found


def _without_index(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the nameless columns, in which pandas wrote its index: REFLACX's other columns are labels."""
    return table.loc[:, ~table.columns.str.fullmatch(r"(Unnamed: \d+(\.\d+)?)?")]


def _eye_gaze(root: Path, subject: str) -> Path:
    return root / f"patient_{subject}" / "EyeGaze"


def _eye_gaze_tables(root: Path, patients: list[Path]) -> egd.EgdTables:
    fixations = (
        [root / ALL_FIXATIONS] if (root / ALL_FIXATIONS).exists() else _tables(patients, "EyeGaze/fixations.csv")
    )
    return egd.EgdTables(
        master=egd.read_master_sheet(_tables(patients, "EyeGaze/master_sheet.csv")),
        fixations=egd.read_fixation_rows(fixations, also=SCREEN_COLUMNS),
        boxes=egd.read_box_rows(_tables(patients, f"EyeGaze/{egd.BOXES_FILE}")),
    )


def _is_calibration(fixations: pd.DataFrame) -> pd.Series:
    """Tell the rows (n,) of calibration pictures, whose cut ids the release completed to real ones.

    Such a picture fills the screen, so its original px are screen px. A radiograph has margins beside it.
    """
    same = pd.Series(True, index=fixations.index)
    for column, original, px in zip(SCREEN_COLUMNS, ("X_ORIGINAL", "Y_ORIGINAL"), SCREEN_PX, strict=True):
        on_screen = np.trunc(numbers(fixations, column, kind=egd.FIXATIONS) * px)
        same &= on_screen == numbers(fixations, original, kind=egd.FIXATIONS)
    return same


# MIMIC-CXR


@dataclass(frozen=True)
class _PatientReports:
    root: Path

    def find(self, study_id: str, subject_id: str) -> ReportRef | None:
        """Return where a study's report lies."""
        path = f"patient_{subject_id}/CXR-DICOM/s{study_id}.txt"
        return ReportRef(str(self.root), path) if (self.root / path).exists() else None


def _open_images(
    root: Path, patients: list[Path], overrides: Path | None, labels: LabelTable, *, prior: bool
) -> MimicCxr:
    if labels not in LABEL_FILES:
        raise InputError(
            "file_missing", f"MIMIC-Eye has no {labels} label table; choose one of {', '.join(LABEL_FILES)}"
        )
    paths = MimicTables(
        metadata=_tables(patients, "CXR-JPG/cxr_meta.csv"),
        split=_tables(patients, "CXR-JPG/cxr_split.csv"),
        labels=_tables(patients, f"CXR-JPG/{LABEL_FILES[labels]}"),
        label_kind=f"{labels} label table",
    )
    return read_mimic(
        paths,
        lambda _: _image_files(patients),
        _PatientReports(root).find,
        overrides=overrides,
        prior=prior,
        ids_on_disk=functools.partial(_ids_on_disk, patients),
    )


def _image_paths(patients: list[Path]) -> Iterator[Path]:
    for patient in patients:
        yield from sorted((patient / "CXR-JPG").glob("s*/*.jpg"))


def _subject(patient: Path) -> str:
    return patient.name.removeprefix("patient_")


def _image_files(patients: list[Path]) -> ImageFiles:
    found: ImageFiles = {}
    for patient in patients:
        root, subject = str(patient.parent), _subject(patient)
        for path in _image_paths([patient]):
            relative = path.relative_to(patient.parent).as_posix()
            study = study_path(path.parent.name.removeprefix("s"), subject)
            found[study, path.stem] = ImageRef(root, relative, "raster", IMAGE_SOURCE)
    return found


def _ids_on_disk(patients: list[Path]) -> pd.DataFrame:
    rows = [(path.stem, _subject(path.parents[2]), path.parent.name[1:]) for path in _image_paths(patients)]
    return pd.DataFrame(rows, columns=IDS, dtype=str)
