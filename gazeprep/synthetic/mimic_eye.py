"""Rearranges a written corpus as MIMIC-Eye does: by patient, tables with a nameless index column."""

import shutil
from pathlib import Path

import pandas as pd

from gazeprep.sources.csv_table import SYNTHETIC_MARK
from gazeprep.synthetic.corpus import Corpus
from gazeprep.synthetic.reflacx import METADATA, PHASE_1_LABELS, PHASE_23_LABELS

JOINED_METADATA = (*METADATA, *PHASE_1_LABELS, *(label for label in PHASE_23_LABELS if label not in PHASE_1_LABELS))
JPG_TABLES = {
    "cxr_chexpert": "mimic-cxr-2.0.0-chexpert.csv.gz",
    "cxr_negbio": "mimic-cxr-2.0.0-negbio.csv",
    "cxr_split": "mimic-cxr-2.0.0-split.csv.gz",
}


def write_mimic_eye(corpus: Corpus, out: Path) -> None:
    """Write the patients with gaze of a corpus in MIMIC-Eye's layout; `out` is its folder `mimic-eye`."""
    out = Path(out)
    out.mkdir(parents=True)
    shutil.copy(corpus.out / SYNTHETIC_MARK, out / SYNTHETIC_MARK)
    reflacx, eye_gaze = _reflacx_metadata(corpus), _eye_gaze_tables(corpus)
    meta = _image_metadata(corpus, reflacx, eye_gaze["master_sheet"])
    labels = {name: _of(pd.read_csv(corpus.mimic_cxr_jpg / file), meta) for name, file in JPG_TABLES.items()}
    _save_spreadsheets(out / "spreadsheets", reflacx, eye_gaze, {"cxr_meta": meta, **labels})
    for patient, images in meta.groupby("subject_id"):
        folder = out / f"patient_{patient}"
        _write_images(corpus, folder, images, labels)
        _write_reflacx(corpus, folder / "REFLACX", reflacx[reflacx.subject_id == patient])
        _write_eye_gaze(corpus, folder / "EyeGaze", eye_gaze, eye_gaze["master_sheet"].patient_id == patient)


def _reflacx_metadata(corpus: Corpus) -> pd.DataFrame:
    """Join the three phases; a label of another phase is blank, so its numbers become floats."""
    phases = [pd.read_csv(corpus.reflacx / "main_data" / f"metadata_phase_{phase}.csv") for phase in (1, 2, 3)]
    return pd.concat([phase for phase in phases if len(phase)], ignore_index=True).reindex(columns=JOINED_METADATA)


def _eye_gaze_tables(corpus: Corpus) -> dict[str, pd.DataFrame]:
    """EGD's tables; rows of a cut id are dropped, as MIMIC-Eye takes it for a double."""
    tables = {}
    for name in ("master_sheet", "fixations", "eye_gaze", "bounding_boxes"):
        if (corpus.egd / f"{name}.csv").exists():  # samples are written on request only
            table = pd.read_csv(corpus.egd / f"{name}.csv")
            tables[name] = table[table["DICOM_ID"].str.len() != 39] if "DICOM_ID" in table else table
    return tables


def _image_metadata(corpus: Corpus, reflacx: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    meta = pd.read_csv(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-metadata.csv.gz")
    meta["in_eye_gaze"], meta["in_reflacx"] = meta.dicom_id.isin(sheet.dicom_id), meta.dicom_id.isin(reflacx.dicom_id)
    time = meta.StudyTime.map("{:010.3f}".format)
    meta["StudyDateTime"] = pd.to_datetime(meta.StudyDate.astype(str) + time, format="%Y%m%d%H%M%S.%f")
    meta["stay_id"] = meta.dicom_id.map(sheet.set_index("dicom_id").stay_id)
    read = meta.subject_id.isin([*sheet.patient_id, *reflacx.subject_id])
    return meta[read & meta.ViewPosition.isin(["AP", "PA"])]


def _of(table: pd.DataFrame, meta: pd.DataFrame) -> pd.DataFrame:
    key = "dicom_id" if "dicom_id" in table else "study_id"
    return table[table[key].isin(meta[key])]


def _save(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.reset_index(drop=True).to_csv(path)


def _save_spreadsheets(
    root: Path, reflacx: pd.DataFrame, eye_gaze: dict[str, pd.DataFrame], images: dict[str, pd.DataFrame]
) -> None:
    _save(reflacx, root / "REFLACX" / "metadata.csv")
    _save(images["cxr_meta"], root / "cxr_meta.csv")
    _save(images["cxr_meta"].dropna(subset="stay_id"), root / "cxr_meta_with_stay_id_only.csv")
    for name, table in images.items():
        _save(table, root / "CXR-JPG" / f"{name}.csv")
    _save(eye_gaze["master_sheet"], root / "EyeGaze" / "master_sheet_with_updated_stayId.csv")
    _save(eye_gaze["fixations"], root / "EyeGaze" / "fixations.csv")
    _save(eye_gaze["fixations"], root / "EyeGaze" / "eye_gaze.csv")  # sic, the released table is a copy
    _save(eye_gaze["bounding_boxes"], root / "EyeGaze" / "bounding_boxes.csv")


def _write_images(corpus: Corpus, folder: Path, images: pd.DataFrame, labels: dict[str, pd.DataFrame]) -> None:
    for name, table in {"cxr_meta": images, **labels}.items():
        _save(_of(table, images), folder / "CXR-JPG" / f"{name}.csv")
    for row in images.to_dict("records"):
        patient, study = row["subject_id"], row["study_id"]
        source = Path("files", f"p{str(patient)[:2]}", f"p{patient}")
        _copy(
            corpus.mimic_cxr_jpg / source / f"s{study}" / f"{row['dicom_id']}.jpg",
            folder / "CXR-JPG" / f"s{study}" / f"{row['dicom_id']}.jpg",
        )
        _copy(corpus.mimic_cxr / source / f"s{study}.txt", folder / "CXR-DICOM" / f"s{study}.txt")


def _write_reflacx(corpus: Corpus, folder: Path, rows: pd.DataFrame) -> None:
    if rows.empty:
        return
    _save(rows, folder / "metadata.csv")
    for reading in rows.id:
        for part in ("main_data", "gaze_data"):
            if (corpus.reflacx / part / reading).exists():
                shutil.copytree(corpus.reflacx / part / reading, folder / part / reading)


def _write_eye_gaze(corpus: Corpus, folder: Path, tables: dict[str, pd.DataFrame], mine: "pd.Series[bool]") -> None:
    ids = tables["master_sheet"].dicom_id[mine]
    if ids.empty:
        return
    for name, table in tables.items():
        column = "DICOM_ID" if "DICOM_ID" in table else "dicom_id"
        _save(table[table[column].isin(ids)], folder / f"{name}.csv")
    for dicom_id in ids:
        part = Path("audio_segmentation_transcripts", dicom_id)
        shutil.copytree(corpus.egd / part, folder / part)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
