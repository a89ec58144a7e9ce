"""Writes MIMIC-CXR (DICOM, reports, lists) and MIMIC-CXR-JPG (JPEG, tables)."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from gazeprep.schema import CHEXPERT_LABELS
from gazeprep.synthetic.model import Image, Settings, Study, Subject, generator
from gazeprep.synthetic.phantom import draw
from gazeprep.synthetic.tables import Row, Tables, csv_bytes, write_bytes

Pixels = npt.NDArray[np.uint16]

LABELS = ("subject_id", "study_id", *CHEXPERT_LABELS)
LISTS: dict[str, tuple[str, ...]] = {
    "cxr-record-list.csv.gz": ("subject_id", "study_id", "dicom_id", "path"),
    "cxr-study-list.csv.gz": ("subject_id", "study_id", "path"),
    "cxr-provider-list.csv.gz": ("study_id", "ordering_provider_id", "attending_provider_id", "resident_provider_id"),
}
JPG_TABLES: dict[str, tuple[str, ...]] = {
    "mimic-cxr-2.0.0-metadata.csv.gz": (
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
        "StudyDate",
        "StudyTime",
        "ProcedureCodeSequence_CodeMeaning",
        "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ),
    "mimic-cxr-2.0.0-split.csv.gz": ("dicom_id", "study_id", "subject_id", "split"),
    "mimic-cxr-2.0.0-chexpert.csv.gz": LABELS,
    "mimic-cxr-2.0.0-negbio.csv": LABELS,  # as left by a user who unpacked it
    "mimic-cxr-2.1.0-test-set-labeled.csv": (
        "study_id",
        *("Airspace Opacity" if label == "Lung Opacity" else label for label in CHEXPERT_LABELS),
    ),
}
VIEW_CODES = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}
LEVEL, WIDTH = 0.49, 0.97  # of the stored window, in units of the largest stored value


def write_images(settings: Settings, subject: Subject, dicom_root: Path, jpg_root: Path) -> None:
    """Draw and write all images of a subject."""
    for study in subject.studies:
        for image in study.images:
            rng = generator(settings.seed, subject.role.index, 1000 + image.stream)
            stored = store(image, draw(image.chest, study.findings, rng))
            folder = subject.folder(study)
            _write_dicom(dicom_root / folder / f"{image.dicom_id}.dcm", subject, study, image, stored)
            write_bytes(jpg_root / folder / f"{image.dicom_id}.jpg", jpeg(stored, image.monochrome1))


def store(image: Image, film: npt.NDArray[np.float32]) -> Pixels:
    """Turn brightness 0..1 into stored values that fill most of the image's bits."""
    top = 2**image.bits_stored - 1
    low, high = (LEVEL - WIDTH / 2) * top, (LEVEL + WIDTH / 2) * top
    values = np.round(low + film * np.float32(high - low)).astype(np.uint16)
    return (top - values).astype(np.uint16) if image.monochrome1 else values


def jpeg(stored: Pixels, monochrome1: bool) -> bytes:
    """Follow MIMIC-CXR-JPG's rule: min-max, inversion of MONOCHROME1, equalised histogram, quality 95."""
    low, high = int(stored.min()), int(stored.max())
    gray = ((stored.astype(np.float32) - low) / max(high - low, 1) * 255).astype(np.uint8)
    flat = cv2.equalizeHist(255 - gray if monochrome1 else gray)
    return cv2.imencode(".jpg", flat, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def stored_window(image: Image) -> tuple[float, float]:
    """Return width and level by REFLACX's rule, in units of the largest stored value."""
    if image.window not in ("one", "many"):
        return (1.0, 0.5)
    top = 2**image.bits_stored - 1
    level = 1 - round((1 - LEVEL) * top) / top if image.monochrome1 else round(LEVEL * top) / top
    return (round(WIDTH * top) / top, level)


def _write_dicom(path: Path, subject: Subject, study: Study, image: Image, stored: Pixels) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{int(image.dicom_id.replace('-', '')[:24], 16)}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.1")
    dicom = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=b"\0" * 128)
    dicom.SOPClassUID, dicom.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dicom.StudyInstanceUID, dicom.SeriesInstanceUID = UID(f"2.25.{study.study_id}"), UID(f"2.25.{study.study_id}1")
    dicom.Modality, dicom.BodyPartExamined, dicom.ViewPosition = "DX", "CHEST", image.view
    dicom.PatientID, dicom.StudyID = str(subject.subject_id), str(study.study_id)
    dicom.StudyDate, dicom.StudyTime = str(study.date), f"{study.time:010.3f}"
    dicom.ImageComments = "Synthetic phantom, not a patient"
    _describe_pixels(dicom, image, stored)
    _describe_window(dicom, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    dicom.save_as(path, enforce_file_format=True)


def _describe_pixels(dicom: Dataset, image: Image, stored: Pixels) -> None:
    dicom.Rows, dicom.Columns = stored.shape
    dicom.SamplesPerPixel, dicom.PixelRepresentation = 1, 0
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 16, image.bits_stored, image.bits_stored - 1
    dicom.PhotometricInterpretation = "MONOCHROME1" if image.monochrome1 else "MONOCHROME2"
    dicom.PixelIntensityRelationship = "LOG"
    dicom.PixelIntensityRelationshipSign = 1 if image.monochrome1 else -1
    data = stored.astype("<u2").tobytes()
    dicom.add_new("PixelData", "OW", data)


def _describe_window(dicom: Dataset, image: Image) -> None:
    top = 2**image.bits_stored - 1
    level = 1 - LEVEL if image.monochrome1 else LEVEL
    if image.window == "one":
        dicom.WindowCenter, dicom.WindowWidth = round(level * top), round(WIDTH * top)
    elif image.window == "many":
        dicom.WindowCenter = [round(level * top), round(0.45 * top)]
        dicom.WindowWidth = [round(WIDTH * top), round(0.7 * top)]
        dicom.WindowCenterWidthExplanation = ["NORMAL", "HARDER"]
    elif image.window == "voi_lut":
        x = np.linspace(0, 1, top + 1)
        curve = 1 / (1 + np.exp(-6 * (x - level)))
        curve = (curve - curve[0]) / (curve[-1] - curve[0])
        lut = Dataset()
        lut.add_new("LUTDescriptor", "US", [top + 1, 0, 16])
        lut.add_new("LUTData", "OW", np.round(curve * 65535).astype("<u2").tobytes())
        lut.LUTExplanation = "NORMAL"
        dicom.VOILUTSequence = Sequence([lut])


def write_reports(subject: Subject, root: Path) -> None:
    """Write the report of each study of a subject."""
    for study in subject.studies:
        write_bytes(root / f"{subject.folder(study)}.txt", study.report.text.encode())


def table_rows(subject: Subject) -> Tables:
    """Return a subject's rows of all tables."""
    tables = Tables()
    for number, study in enumerate(subject.studies):
        ids: dict[str, Any] = {"subject_id": subject.subject_id, "study_id": study.study_id}
        tables.add("cxr-study-list.csv.gz", {**ids, "path": f"{subject.folder(study)}.txt"})
        providers = {
            f"{role}_provider_id": f"P{study.study_id % 997:05}" for role in ("ordering", "attending", "resident")
        }
        tables.add("cxr-provider-list.csv.gz", {**ids, **providers})
        _add_labels(tables, subject, study, first=number == 0)
        for image in study.images:
            ids["dicom_id"] = image.dicom_id
            path = f"{subject.folder(study)}/{image.dicom_id}"
            tables.add("cxr-record-list.csv.gz", {**ids, "path": f"{path}.dcm"})
            tables.add("IMAGE_FILENAMES", {"path": f"{path}.jpg"})
            tables.add("mimic-cxr-2.0.0-split.csv.gz", {**ids, "split": subject.role.split})
            tables.add("mimic-cxr-2.0.0-metadata.csv.gz", {**ids, **_metadata(study, image)})
    return tables


def _add_labels(tables: Tables, subject: Subject, study: Study, first: bool) -> None:
    flags = subject.role.flags if first else frozenset()
    if "no_chexpert_row" in flags:
        return
    blank = "blank_chexpert_row" in flags
    found = {} if blank else study.report.labels
    cells = {label: f"{found[label]:.1f}" if label in found else "" for label in CHEXPERT_LABELS}
    row = {"subject_id": subject.subject_id, "study_id": study.study_id, **cells}
    tables.add("mimic-cxr-2.0.0-chexpert.csv.gz", row)
    tables.add("mimic-cxr-2.0.0-negbio.csv", row)
    if subject.role.split == "test":
        tables.add("mimic-cxr-2.1.0-test-set-labeled.csv", {**row, "Airspace Opacity": row["Lung Opacity"]})


def _metadata(study: Study, image: Image) -> Row:
    return {
        "PerformedProcedureStepDescription": study.procedure,
        "ViewPosition": image.view,
        "Rows": image.chest.size[1],
        "Columns": image.chest.size[0],
        "StudyDate": study.date,
        "StudyTime": study.time,
        "ProcedureCodeSequence_CodeMeaning": study.procedure,
        "ViewCodeSequence_CodeMeaning": VIEW_CODES[image.view],
        "PatientOrientationCodeSequence_CodeMeaning": ("Recumbent" if study.portable else "Erect")
        if image.view
        else "",
    }


def write_tables(tables: Tables, dicom_root: Path, jpg_root: Path) -> None:
    """Write the lists and label tables of the whole corpus."""
    for root, columns_of in ((dicom_root, LISTS), (jpg_root, JPG_TABLES)):
        for name, columns in columns_of.items():
            write_bytes(root / name, csv_bytes(tables.frame(name, columns)))
    names = "".join(f"{row['path']}\n" for row in tables.rows["IMAGE_FILENAMES"])
    write_bytes(jpg_root / "IMAGE_FILENAMES", names.encode())
