"""The known answer beside a synthetic corpus: where findings are, which fixation is meant for which sentence."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gazeprep.schema import BoolArray
from gazeprep.synthetic.anatomy import grid_box
from gazeprep.synthetic.model import Reading, Settings, Study, Subject, finding_grids
from gazeprep.synthetic.tables import Tables, write_bytes, write_json

FINDINGS: dict[str, Any] = {
    "dicom_id": str,
    "study_id": np.int64,
    "subject_id": np.int64,
    "finding": str,
    "kind": str,
    "side": str,
    "zone": str,
    "severity": np.int64,
    "certain": bool,
    "left": np.float64,
    "top": np.float64,
    "right": np.float64,
    "bottom": np.float64,
}
ALIGNMENT: dict[str, Any] = {
    "dataset": str,
    "reading_id": str,
    "dicom_id": str,
    "sentence": np.int64,
    "text": str,
    "start_s": np.float64,
    "end_s": np.float64,
    "recorded": bool,  # False where the files hold no such sentence: a discarded reading, an empty transcript
    "finding": str,
    "targets": str,
    "dwell_start_s": np.float64,
    "dwell_end_s": np.float64,
    "left": np.float64,
    "top": np.float64,
    "right": np.float64,
    "bottom": np.float64,
}
FIXATIONS: dict[str, Any] = {
    "dataset": str,
    "reading_id": str,
    "fixation": np.int64,
    "sentence": np.int64,
    "start_s": np.float64,
    "end_s": np.float64,
    "x_px": np.float64,
    "y_px": np.float64,
}
TRUTH_TABLES = {"findings": FINDINGS, "alignment": ALIGNMENT, "fixations": FIXATIONS}
EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, eq=False)
class Truth:
    """The known answer of a corpus as tables, see docs of write_corpus."""

    folder: Path
    findings: pd.DataFrame
    alignment: pd.DataFrame
    fixations: pd.DataFrame
    step_px: int

    def masks(self, dicom_id: str) -> dict[str, BoolArray]:
        """Return the masks of an image by target name; cell (r, c) covers step_px px from (c, r) * step_px."""
        with np.load(self.folder / "masks" / f"{dicom_id}.npz") as stored:
            return {name: stored[name].astype(bool) for name in stored.files}


def read_truth(corpus: Path) -> Truth:
    """Read the known answer of the corpus in a folder."""
    folder = Path(corpus) / "truth"
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TRUTH_TABLES}
    return Truth(folder, **tables, step_px=json.loads((folder / "grid.json").read_text())["step_px"])


def write_subject(settings: Settings, subject: Subject, root: Path) -> Tables:
    """Write the masks of a subject's frontal images; return the rows of the truth tables."""
    tables = Tables()
    for study in subject.studies:
        for image in study.images:
            if image.chest.lateral:
                continue
            read = subject.scene is not None and image is subject.studies[0].images[0]
            grids = subject.scene.targets if read and subject.scene else finding_grids(settings, study, image)
            _write_masks(root / "masks" / f"{image.dicom_id}.npz", grids)
            for row in _finding_rows(settings, subject, study, image.dicom_id, grids):
                tables.add("findings", row)
    for reading in subject.readings:
        tables.rows["alignment"] += _sentence_rows(subject, reading)
        tables.rows["fixations"] += _fixation_rows(reading)
    return tables


def write_tables(tables: Tables, settings: Settings, root: Path) -> None:
    """Write the truth tables of the whole corpus."""
    root.mkdir(parents=True, exist_ok=True)
    for name, types in TRUTH_TABLES.items():
        frame = tables.frame(name, types).astype(types)
        frame.to_parquet(root / f"{name}.parquet", index=False)
    write_json(root / "grid.json", {"step_px": settings.grid_step_px})


def _write_masks(path: Path, grids: dict[str, BoolArray]) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: grids[name].astype(np.uint8) for name in sorted(grids)}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def _finding_rows(
    settings: Settings, subject: Subject, study: Study, dicom_id: str, grids: dict[str, BoolArray]
) -> list[dict[str, Any]]:
    return [
        {
            "dicom_id": dicom_id,
            "study_id": study.study_id,
            "subject_id": subject.subject_id,
            "finding": finding.name,
            "kind": finding.kind,
            "side": finding.side,
            "zone": finding.zone,
            "severity": finding.severity,
            "certain": finding.certain,
            **dict(zip(EDGES, grid_box(grids[finding.name], settings.grid_step_px), strict=True)),
        }
        for finding in study.findings
    ]


def _sentence_rows(subject: Subject, reading: Reading) -> list[dict[str, Any]]:
    assert subject.scene is not None
    empty = reading.dataset == "egd-cxr" and "empty_transcript" in subject.role.flags
    rows = []
    for i, (spoken, dwell) in enumerate(zip(reading.dictation.sentences, reading.scanpath.dwells, strict=True)):
        statement = spoken.statement
        where = np.any([subject.scene.targets[name] for name in statement.targets], axis=0)
        rows.append(
            {
                "dataset": reading.dataset,
                "reading_id": reading.reading_id,
                "dicom_id": subject.studies[0].images[0].dicom_id,
                "sentence": i,
                "text": statement.text.lower(),
                "start_s": spoken.start_s,
                "end_s": spoken.end_s,
                "recorded": not (reading.discarded or empty),
                "finding": statement.finding.name if statement.finding else "",
                "targets": " ".join(statement.targets),
                "dwell_start_s": dwell[0],
                "dwell_end_s": dwell[1],
                **dict(zip(EDGES, grid_box(where, subject.scene.step_px), strict=True)),
            }
        )
    return rows


def _fixation_rows(reading: Reading) -> list[dict[str, Any]]:
    path = reading.scanpath
    return [
        {
            "dataset": reading.dataset,
            "reading_id": reading.reading_id,
            "fixation": i,
            "sentence": path.sentence[i],
            "start_s": path.start_s[i],
            "end_s": path.end_s[i],
            "x_px": path.x_px[i],
            "y_px": path.y_px[i],
        }
        for i in range(len(path.start_s))
    ]
