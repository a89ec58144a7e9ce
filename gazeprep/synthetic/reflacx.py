"""Writes REFLACX: metadata, fixations, transcripts, ellipses, chest boxes and, on request, gaze samples."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gazeprep.schema import FloatArray
from gazeprep.synthetic.anatomy import grid_box
from gazeprep.synthetic.display import SCREEN_PX_PER_DEG, place
from gazeprep.synthetic.findings import DEVICES, DISEASES
from gazeprep.synthetic.mimic import stored_window
from gazeprep.synthetic.model import Reading, Settings, Subject, generator
from gazeprep.synthetic.scanpath import Scanpath, Scene
from gazeprep.synthetic.tables import Row, Tables, csv_bytes, write_bytes

CRLF = "\r\n"
PHASE_1_LABELS = (
    "Airway wall thickening",
    "Atelectasis",
    "Consolidation",
    "Emphysema",
    "Enlarged cardiac silhouette",
    "Fibrosis",
    "Fracture",
    "Groundglass opacity",
    "Mass",
    "Nodule",
    "Other",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary edema",
    "Quality issue",
    "Support devices",
    "Wide mediastinum",
)
PHASE_23_LABELS = (
    "Abnormal mediastinal contour",
    "Acute fracture",
    "Atelectasis",
    "Consolidation",
    "Enlarged cardiac silhouette",
    "Enlarged hilum",
    "Groundglass opacity",
    "Hiatal hernia",
    "High lung volume / emphysema",
    "Interstitial lung disease",
    "Lung nodule or mass",
    "Other",
    "Pleural abnormality",
    "Pneumothorax",
    "Pulmonary edema",
    "Support devices",
)
LABELS = {1: PHASE_1_LABELS, 2: PHASE_23_LABELS, 3: PHASE_23_LABELS}
METADATA = (
    "id",
    "split",
    "eye_tracking_data_discarded",
    "image",
    "dicom_id",
    "subject_id",
    "image_size_x",
    "image_size_y",
)
SHOWN = tuple(f"{edge}_shown_from_image" for edge in ("xmin", "ymin", "xmax", "ymax"))
ON_SCREEN = tuple(f"{edge}_in_screen_coordinates" for edge in ("xmin", "ymin", "xmax", "ymax"))
POSITION = (
    "x_position",
    "y_position",
    "pupil_area_normalized",
    "angular_resolution_x_pixels_per_degree",
    "angular_resolution_y_pixels_per_degree",
    "window_width",
    "window_level",
)
FIXATIONS = ("timestamp_start_fixation", "timestamp_end_fixation", *POSITION, *SHOWN, *ON_SCREEN)
SAMPLES = ("timestamp_sample", *POSITION, *SHOWN, *ON_SCREEN)
WORDS = ("word", "timestamp_start_word", "timestamp_end_word")
BOX = ("xmin", "ymin", "xmax", "ymax")


def write_readings(settings: Settings, subject: Subject, root: Path) -> Tables:
    """Write a subject's REFLACX readings; return their rows of the metadata tables."""
    tables = Tables()
    for number, reading in enumerate(r for r in subject.readings if r.dataset == "reflacx"):
        rng = generator(settings.seed, subject.role.index, 200 + number)
        tables.add(f"metadata_phase_{reading.phase}.csv", _metadata(rng, subject, reading))
        _write_drawn(rng, subject, reading, root / "main_data" / reading.reading_id)
        if not reading.discarded:
            _write_recording(rng, subject, reading, root, raw_gaze=settings.raw_gaze)
        elif "discarded_without_folder" not in subject.role.flags:
            (root / "gaze_data" / reading.reading_id).mkdir(parents=True)
    return tables


def write_metadata(tables: Tables, root: Path) -> None:
    """Write the metadata of the three phases: 1 and 2 by id, 3 by image."""
    for phase, labels in LABELS.items():
        name = f"metadata_phase_{phase}.csv"
        frame = tables.frame(name, (*METADATA, *labels)).sort_values("image" if phase == 3 else "id", kind="stable")
        write_bytes(root / "main_data" / name, csv_bytes(frame, CRLF))


def _metadata(rng: np.random.Generator, subject: Subject, reading: Reading) -> Row:
    study = subject.studies[0]
    image = study.images[0]
    row: dict[str, Any] = {
        "id": reading.reading_id,
        "split": subject.role.split,
        "eye_tracking_data_discarded": reading.discarded,
        "image": f"physionet.org/files/mimic-cxr/2.0.0/{subject.folder(study)}/{image.dicom_id}.dcm",
        "dicom_id": image.dicom_id,
        "subject_id": subject.subject_id,
        "image_size_x": image.chest.size[0],
        "image_size_y": image.chest.size[1],
    }
    certainty = dict.fromkeys(LABELS[reading.phase], 0)
    devices = False
    for finding in reading.findings:
        label = label_of(finding.kind, reading.phase)
        devices |= finding.kind in DEVICES
        certainty[label] = max(certainty[label], reading.certainty[finding.name])
    floats = int(reading.reading_id[-1]) % 2 == 0  # the released column has mixed types
    row |= {label: f"{value}.0" if floats else str(value) for label, value in certainty.items()}
    row |= {"Support devices": devices, "Quality issue": reading.phase == 1 and bool(rng.random() < 0.2)}
    return {**row, "Other": reading.other}


def label_of(kind: Any, phase: int) -> str:
    """Return REFLACX's label for a kind of finding in a phase."""
    return DISEASES[kind].phase_1 if phase == 1 else DISEASES[kind].phase_23


def _write_drawn(rng: np.random.Generator, subject: Subject, reading: Reading, folder: Path) -> None:
    """Write the ellipses round the findings and the box round the chest."""
    scene = _scene(subject)
    labels = LABELS[reading.phase]
    rows = []
    for finding in reading.findings:
        if finding.kind in DEVICES:
            continue
        box = _jittered(rng, np.array(grid_box(scene.targets[finding.name], scene.step_px)))
        marked = {label: label == label_of(finding.kind, reading.phase) for label in labels}
        certainty = reading.certainty[finding.name]
        text = f"{certainty}.0" if rng.random() < 0.5 else str(certainty)
        rows.append({**dict(zip(BOX, box, strict=True)), "certainty": text, **marked})
    if "header_only_ellipses" in subject.role.flags:
        rows = []
    ellipses = pd.DataFrame(rows, columns=[*BOX, "certainty", *labels], dtype=object)
    write_bytes(folder / "anomaly_location_ellipses.csv", csv_bytes(ellipses, CRLF))
    chest = np.array(grid_box(scene.targets["lungs"] | scene.targets["heart"], scene.step_px))
    box_frame = pd.DataFrame([_jittered(rng, chest)], columns=list(BOX))
    write_bytes(folder / "chest_bounding_box.csv", csv_bytes(box_frame, CRLF))


def _jittered(rng: np.random.Generator, box: FloatArray) -> list[int]:
    """A hand-drawn box: each edge off by up to 3 % of the size."""
    size = np.tile(box[2:] - box[:2], 2)
    return [int(v) for v in np.round(box + rng.uniform(-0.03, 0.03, 4) * size)]


def _write_recording(
    rng: np.random.Generator, subject: Subject, reading: Reading, root: Path, *, raw_gaze: bool
) -> None:
    folder = root / "main_data" / reading.reading_id
    recorder = _Recorder(rng, subject, reading)
    write_bytes(folder / "fixations.csv", csv_bytes(recorder.fixations(), CRLF))
    words = pd.DataFrame([(t.text, t.start_s, t.end_s) for t in reading.dictation.tokens], columns=list(WORDS))
    write_bytes(folder / "timestamps_transcription.csv", csv_bytes(words, CRLF))
    write_bytes(folder / "transcription.txt", reading.dictation.text.encode())
    samples = root / "gaze_data" / reading.reading_id
    samples.mkdir(parents=True, exist_ok=True)
    if raw_gaze:
        write_bytes(samples / "gaze.csv", csv_bytes(recorder.samples(), CRLF))


class _Recorder:
    """Turns a scanpath into the columns that the eye tracker and the display wrote."""

    def __init__(self, rng: np.random.Generator, subject: Subject, reading: Reading) -> None:
        self.rng, self.path = rng, reading.scanpath
        self.scene = _scene(subject)
        self.degree = SCREEN_PX_PER_DEG + rng.uniform(-3, 3, 2)  # screen px, x and y
        self.placements = [place(self.scene.size, view) for view in reading.scanpath.views]
        width, level = stored_window(subject.studies[0].images[0])
        self.window = np.array([width, level])
        self.changed = self.window * (0.8, 0.95) if rng.random() < 0.1 else self.window

    def fixations(self) -> pd.DataFrame:
        """The table of fixations."""
        path = self.path
        times = {"timestamp_start_fixation": path.start_s, "timestamp_end_fixation": path.end_s}
        pupil = self.rng.normal(1.0, 0.07, len(path.start_s)).clip(0.8, 1.3)
        gaze = {"x_position": path.x_px, "y_position": path.y_px, "pupil_area_normalized": pupil}
        return _rounded({**times, **gaze, **self._display(path.view, path.start_s)}, FIXATIONS)

    def samples(self) -> pd.DataFrame:
        """The table of samples, one a millisecond; rows without gaze where an eye was shut."""
        path = self.path
        first = round(float(path.start_s[0]), 3)
        time = np.round(first + np.arange(int((path.end_s[-1] - first) * 1000) + 1) / 1000, 3)
        view = np.searchsorted([v.start_s for v in path.views], time, side="right") - 1
        knots = np.stack([path.start_s, path.end_s], axis=1).ravel()
        wobble = 0.05 * self.degree[0] / self.placements[0].screen_px_per_px
        gaze = {
            "x_position": np.interp(time, knots, np.repeat(path.x_px, 2)) + self.rng.normal(0, wobble, len(time)),
            "y_position": np.interp(time, knots, np.repeat(path.y_px, 2)) + self.rng.normal(0, wobble, len(time)),
            "pupil_area_normalized": 1 + 0.05 * np.sin(time) + self.rng.normal(0, 0.005, len(time)),
        }
        columns = {"timestamp_sample": time, **gaze, **self._display(view, time)}
        shut = _in_long_gap(path, time)
        for name in POSITION[:5]:
            columns[name] = np.where(shut, np.nan, columns[name])
        return _rounded(columns, SAMPLES)

    def _display(self, view: npt.NDArray[np.int64], time: FloatArray) -> dict[str, FloatArray]:
        shown = np.array([p.shown for p in self.placements])[view]
        screen = np.array([p.screen for p in self.placements])[view]
        magnification = np.array([p.screen_px_per_px for p in self.placements])[view]
        resolution = self.degree[:, None] / magnification
        late = time > time[len(time) // 2]
        window = np.where(late[:, None], self.changed, self.window)
        return {
            POSITION[3]: resolution[0],
            POSITION[4]: resolution[1],
            "window_width": window[:, 0],
            "window_level": window[:, 1],
            **dict(zip(SHOWN, shown.T, strict=True)),
            **dict(zip(ON_SCREEN, screen.T, strict=True)),
        }


def _rounded(columns: dict[str, FloatArray], names: tuple[str, ...]) -> pd.DataFrame:
    """Round as REFLACX does: times and pupil to 3 decimals, windows to 5, the rest to integers."""
    frame: dict[str, pd.Series[Any]] = {}
    for name in names:
        if name.startswith(("timestamp", "pupil")):
            frame[name] = pd.Series(np.round(columns[name], 3))
        elif name.startswith("window"):
            frame[name] = pd.Series(np.round(columns[name], 5))
        else:
            frame[name] = pd.Series(np.round(columns[name])).astype("Int64")
    return pd.DataFrame(frame)


def _in_long_gap(path: Scanpath, time: FloatArray) -> npt.NDArray[np.bool_]:
    before = np.searchsorted(path.start_s, time, side="right") - 1
    gap = np.append(path.start_s[1:] - path.end_s[:-1], 0.0)
    return (gap[before] > 0.1) & (time > path.end_s[before] + 0.01)


def _scene(subject: Subject) -> Scene:
    assert subject.scene is not None
    return subject.scene
