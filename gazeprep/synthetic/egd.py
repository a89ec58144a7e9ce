"""Writes EGD-CXR: master sheet, fixations, boxes, transcripts, masks and, on request, gaze samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gazeprep.schema import CHEXPERT_LABELS, FloatArray, Size
from gazeprep.synthetic.anatomy import SIDES, ZONES, grid_box, region_mask
from gazeprep.synthetic.dictation import Dictation, Token
from gazeprep.synthetic.model import CHF, PNEUMONIA, SMALL_SHRINK, Reading, Settings, Subject, generator
from gazeprep.synthetic.reports import multi_line_indication
from gazeprep.synthetic.tables import Row, Tables, csv_bytes, write_bytes, write_json

DIAGNOSES = tuple(name for n in range(1, 10) for name in (f"dx{n}", f"dx{n}_icd"))
ANATOMICAL = (
    "consolidation",
    "enlarged_cardiac_silhouette",
    "linear__patchy_atelectasis",
    "lobar__segmental_collapse",
    "not_otherwise_specified_opacity___pleural__parenchymal_opacity__",
    "pleural_effusion_or_thickening",
    "pulmonary_edema__hazy_opacity",
    "normal_anatomically",
    "elevated_hemidiaphragm",
    "hyperaeration",
    "vascular_redistribution",
)
ANATOMICAL_OF = {
    "consolidation": ANATOMICAL[0],
    "cardiomegaly": ANATOMICAL[1],
    "atelectasis": ANATOMICAL[2],
    "groundglass": ANATOMICAL[4],
    "effusion": ANATOMICAL[5],
    "edema": ANATOMICAL[6],
}
CHX = {f"{label.lower().replace(' ', '_')}__chx": label for label in CHEXPERT_LABELS}
MASTER_SHEET = (
    "dicom_id",
    "path",
    "study_id",
    "patient_id",
    "stay_id",
    "gender",
    "anchor_age",
    "image_top_pad",
    "image_bottom_pad",
    "image_left_pad",
    "image_right_pad",
    *DIAGNOSES,
    "normal_reports",
    "Normal",
    "CHF",
    "pneumonia",
    *ANATOMICAL,
    *CHX,
    "cxr_exam_indication",
)
GAZE = (
    "SESSION_ID",
    "MEDIA_ID",
    "DICOM_ID",
    "CNT",
    "Time (in secs)",
    "TIMETICK(f=10000000)",
    "FPOGX",
    "FPOGY",
    "FPOGS",
    "FPOGD",
    "FPOGID",
    "FPOGV",
    "BPOGX",
    "BPOGY",
    "BPOGV",
    "LPCX",
    "LPCY",
    "LPD",
    "LPS",
    "LPV",
    "RPCX",
    "RPCY",
    "RPD",
    "RPS",
    "RPV",
    "BKID",
    "BKDUR",
    "BKPMIN",
    "LPMM",
    "LPMMV",
    "RPMM",
    "RPMMV",
    "SACCADE_MAG",
    "SACCADE_DIR",
    "VID_FRAME",
    "X_ORIGINAL",
    "Y_ORIGINAL",
)
BOXES = ("dicom_id", "bbox_name", "x1", "x2", "y1", "y2")
BOX_REGIONS = {
    "cardiac silhouette": "heart",
    **{f"{side} clavicle": f"{side}_clavicle" for side in SIDES},
    **{f"{side} costophrenic angle": f"{side}_costophrenic_angle" for side in SIDES},
    **{f"{side} hilar structures": f"{side}_hilum" for side in SIDES},
    **{f"{side} lung": f"{side}_lung" for side in SIDES},
    **{f"{side} {zone} lung zone": f"{side}_{zone}_zone" for side in SIDES for zone in ZONES},
    "trachea": "trachea",
    "upper mediastinum": "upper_mediastinum",
}
MASKS = {
    "left_lung": "left_lung",
    "right_lung": "right_lung",
    "mediastanum": "upper_mediastinum",  # spelt so in the release
    "aortic_knob": "aortic_knob",
}
SCREEN = (1920, 1080)
CANVAS_HEIGHT = 1024  # pads refer to a canvas lower than the screen
IMAGES_A_SESSION = 30
CALIBRATED_EVERY = 20
SAMPLES_PER_S = 61.9
DIAGNOSIS_OF = {
    "cardiomegaly": ("Heart failure, unspecified", "I509"),
    "edema": ("Acute pulmonary edema", "J810"),
    "effusion": ("Pleural effusion, not elsewhere classified", "J90"),
    "consolidation": ("Pneumonia, unspecified organism", "J189"),
    "groundglass": ("Viral pneumonia, unspecified", "J129"),
}


@dataclass(frozen=True)
class Pads:
    """Empty columns and rows of the canvas beside an image."""

    left: int
    right: int
    top: int
    bottom: int


def pads_of(size: Size) -> Pads:
    """Pads of an image whose longest side became 1024 px, centred on 1920 x 1024."""
    width, height = size
    scale = CANVAS_HEIGHT / max(size)
    across, down = SCREEN[0] - int(width * scale), CANVAS_HEIGHT - int(height * scale)
    return Pads(across // 2, across - across // 2, down // 2, down - down // 2)


@dataclass(frozen=True)
class OnScreen:
    """An image on the screen, by the official rule: pads of the 1024 px canvas on the 1080 px screen.

    `shrink` says how many times smaller than a real image this one is.
    """

    size: Size
    pads: Pads
    shrink: int = 1

    def scale(self) -> FloatArray:
        """Image px per screen px, x and y; odd sizes count one more."""
        across = SCREEN[0] - self.pads.left - self.pads.right
        down = SCREEN[1] - self.pads.top - self.pads.bottom
        return np.array([(self.size[0] + self.size[0] % 2) / across, (self.size[1] + self.size[1] % 2) / down])

    def to_original(self, fpogx: float, fpogy: float) -> tuple[int, int]:
        """Map a screen fraction to the image.

        Off the image the official rule gives int(-scale), -2 on a real image. On one that is drawn smaller that
        would be 0, a pixel, so the scale of the real size is taken.
        """
        x, y = fpogx * SCREEN[0], fpogy * SCREEN[1]
        pads, scale = self.pads, self.scale()
        if pads.left < x < SCREEN[0] - pads.right and pads.top < y < SCREEN[1] - pads.bottom:
            return int(scale[0] * (x - pads.left)), int(scale[1] * (y - pads.top))
        return int(-scale[0] * self.shrink), int(-scale[1] * self.shrink)

    def to_fractions(self, x_px: FloatArray, y_px: FloatArray) -> FloatArray:
        """Map image points to screen fractions (n, 2)."""
        screen = np.stack([x_px, y_px], axis=1) + 0.5
        fractions: FloatArray = (screen / self.scale() + [self.pads.left, self.pads.top]) / SCREEN
        return fractions.round(5)


CALIBRATION = OnScreen(SCREEN, Pads(0, 0, 0, 0))


def write_reading(settings: Settings, subject: Subject, number: int, root: Path) -> Tables:
    """Write the EGD reading of a subject, the number-th of the corpus; return its rows of the tables."""
    tables = Tables()
    for reading in (r for r in subject.readings if r.dataset == "egd-cxr"):
        rng = generator(settings.seed, subject.role.index, 300)
        tables.add("master_sheet.csv", _master_row(rng, subject))
        folder = root / "audio_segmentation_transcripts" / reading.reading_id
        write_json_transcript(folder / "transcript.json", reading.dictation, subject.role.flags)
        _write_masks(subject, folder)
        for row in _box_rows(subject):
            tables.add("bounding_boxes.csv", row)
        size = subject.studies[0].images[0].chest.size
        on_screen = OnScreen(size, pads_of(size), 1 if settings.full_size else SMALL_SHRINK)
        session, media = number // IMAGES_A_SESSION + 1, number % IMAGES_A_SESSION + 1
        head = {"SESSION_ID": session, "MEDIA_ID": media, "DICOM_ID": reading.reading_id}
        if (media - 1) % CALIBRATED_EVERY == 0:
            calibration = _calibration_rows(rng, {**head, "DICOM_ID": reading.reading_id[:39]})
            tables.rows["fixations.csv"] += calibration
            tables.rows["eye_gaze.csv"] += calibration if settings.raw_gaze else []
        tables.rows["fixations.csv"] += _fixation_rows(rng, on_screen, reading, head, subject.role.flags)
        if settings.raw_gaze:
            tables.rows["eye_gaze.csv"] += _sample_rows(rng, on_screen, reading, head)
    return tables


def write_tables(tables: Tables, root: Path, *, raw_gaze: bool) -> None:
    """Write the tables of the whole corpus."""
    columns_of = {"master_sheet.csv": MASTER_SHEET, "fixations.csv": GAZE, "bounding_boxes.csv": BOXES}
    columns_of |= {"eye_gaze.csv": GAZE} if raw_gaze else {}
    for name, columns in columns_of.items():
        write_bytes(root / name, csv_bytes(tables.frame(name, columns)))


def _master_row(rng: np.random.Generator, subject: Subject) -> Row:
    study = subject.studies[0]
    image = study.images[0]
    kinds = {finding.kind for finding in study.findings}
    failing, infected = bool(kinds & set(CHF)), bool(kinds & set(PNEUMONIA))
    pads = pads_of(image.chest.size)
    row: dict[str, Any] = {
        "dicom_id": image.dicom_id,
        "path": f"{subject.folder(study)}/{image.dicom_id}.dcm",
        "study_id": study.study_id,
        "patient_id": subject.subject_id,
        "stay_id": 30_000_000 + subject.role.index,
        "gender": "F" if subject.woman else "M",
        "anchor_age": f"{subject.age // 10 * 10} - {subject.age // 10 * 10 + 10}",
        "image_top_pad": pads.top,
        "image_bottom_pad": pads.bottom,
        "image_left_pad": pads.left,
        "image_right_pad": pads.right,
        **dict.fromkeys(DIAGNOSES, ""),
        "normal_reports": int(not kinds),
        "Normal": int(not failing and not infected),
        "CHF": int(failing),
        "pneumonia": int(infected and not failing),
        **dict.fromkeys(ANATOMICAL, 0),
        "cxr_exam_indication": multi_line_indication(study.report),
    }
    diagnoses = [DIAGNOSIS_OF[kind] for kind in sorted(kinds & set(DIAGNOSIS_OF))] or [
        ("Chest pain, unspecified", "R079")
    ]
    for n, (title, code) in enumerate(diagnoses, start=1):
        row |= {f"dx{n}": title, f"dx{n}_icd": code}
    row |= {ANATOMICAL_OF[kind]: 1 for kind in kinds if kind in ANATOMICAL_OF}
    row["normal_anatomically"] = int(not kinds)
    labels = study.report.labels
    return {**row, **{name: f"{labels[label]}" if label in labels else "" for name, label in CHX.items()}}


def _box_rows(subject: Subject) -> list[Row]:
    assert subject.scene is not None
    scene, dicom_id = subject.scene, subject.studies[0].images[0].dicom_id
    rows: list[Row] = []
    for name, region in BOX_REGIONS.items():
        left, top, right, bottom = grid_box(scene.targets[region], scene.step_px)
        rows.append({"dicom_id": dicom_id, "bbox_name": name, "x1": left, "x2": right, "y1": top, "y2": bottom})
    return rows


def _write_masks(subject: Subject, folder: Path) -> None:
    chest = subject.studies[0].images[0].chest
    for name, region in MASKS.items():
        write_bytes(folder / f"{name}.png", cv2.imencode(".png", region_mask(chest, region))[1].tobytes())


def _noisy(value: float) -> float:
    """A float as the recorder left it, such as 0.30000000000000004."""
    return value * 0.1 + value * 0.9


def _rest(rng: np.random.Generator, count: int) -> dict[str, npt.NDArray[Any]]:
    """Columns that describe pupils and blinks."""
    pupil = rng.normal(18, 1.2, count).round(5)
    right = pupil + rng.normal(0, 0.3, count).round(5)
    ones = np.ones(count, dtype=np.int64)
    return {
        **{f"{eye}PC{axis}": rng.normal(0.5, 0.05, count).round(5) for eye in "LR" for axis in "XY"},
        "LPD": pupil,
        "RPD": right,
        **{f"{eye}PS": rng.normal(1.0, 0.02, count).round(5) for eye in "LR"},
        **{f"{eye}PV": ones for eye in "LR"},
        "BKID": ones * 0,
        "BKDUR": np.zeros(count),
        "BKPMIN": rng.integers(12, 28, count),
        "LPMM": (pupil / 5).round(5),
        "RPMM": (right / 5).round(5),
        **{f"{eye}PMMV": ones for eye in "LR"},
        "VID_FRAME": ones * 0,
    }


def _fixation_rows(
    rng: np.random.Generator, on_screen: OnScreen, reading: Reading, head: Row, flags: frozenset[str]
) -> list[Row]:
    """One row per fixation, its last sample."""
    path = reading.scanpath
    screen = on_screen.to_fractions(path.x_px, path.y_px)
    count = len(path.start_s)
    valid = (rng.random(count) > 0.03).astype(int)
    valid[count // 2] = 0  # at least one that the tracker doubts
    steps = np.diff(screen, axis=0, prepend=screen[:1]) * SCREEN
    rest = _rest(rng, count)
    rows = []
    for i in range(count):
        long_id = "long_id" in flags and i == 1
        start, length = float(path.start_s[i]), round(float(path.end_s[i] - path.start_s[i]), 5)
        row = {
            **head,
            "DICOM_ID": head["DICOM_ID"] + ("-copy" if long_id else ""),
            "FPOGX": float(screen[i, 0]),
            "FPOGY": float(screen[i, 1]),
            "FPOGS": _noisy(start),
            "FPOGD": _noisy(length),
            "FPOGID": i + 2,
            "FPOGV": int(valid[i]),
            "SACCADE_MAG": round(float(np.hypot(*steps[i])), 5),
            "SACCADE_DIR": round(float(np.degrees(np.arctan2(-steps[i, 1], steps[i, 0])) % 360), 5),
            **{name: values[i] for name, values in rest.items()},
        }
        rows.append(_finish(rng, row, start + length, on_screen))
    return rows


def _finish(rng: np.random.Generator, row: dict[str, Any], time_s: float, on_screen: OnScreen) -> Row:
    """Add what follows from the time and the fixation point."""
    x, y = on_screen.to_original(row["FPOGX"], row["FPOGY"])
    wobble = rng.normal(0, 0.002, 2)
    return {
        **row,
        "CNT": int(time_s * SAMPLES_PER_S),
        "Time (in secs)": time_s,
        "TIMETICK(f=10000000)": int(time_s * 1e7) + 630_000_000_000,
        "BPOGX": round(row["FPOGX"] + float(wobble[0]), 5),
        "BPOGY": round(row["FPOGY"] + float(wobble[1]), 5),
        "BPOGV": 1,
        "X_ORIGINAL": x,
        "Y_ORIGINAL": y,
    }


def _sample_rows(rng: np.random.Generator, on_screen: OnScreen, reading: Reading, head: Row) -> list[Row]:
    """All samples: during a fixation its point and its duration so far."""
    path = reading.scanpath
    screen = on_screen.to_fractions(path.x_px, path.y_px)
    times = np.arange(path.start_s[0], path.end_s[-1], 1 / SAMPLES_PER_S).round(5)
    rest = _rest(rng, len(times))
    which = np.searchsorted(path.start_s, times, side="right") - 1
    rows = []
    for k, (time, i) in enumerate(zip(times.tolist(), which.tolist(), strict=True)):
        start = float(path.start_s[i])
        row = {
            **head,
            "FPOGX": float(screen[i, 0]),
            "FPOGY": float(screen[i, 1]),
            "FPOGS": _noisy(start),
            "FPOGD": _noisy(round(min(time, float(path.end_s[i])) - start, 5)),
            "FPOGID": i + 2,
            "FPOGV": int(time <= path.end_s[i]),
            "SACCADE_MAG": 0.0,
            "SACCADE_DIR": 0.0,
            **{name: values[k] for name, values in rest.items()},
        }
        rows.append(_finish(rng, row, time, on_screen))
    return rows


def _calibration_rows(rng: np.random.Generator, head: Row) -> list[Row]:
    """Fixations on the white dot of a calibration picture; no image, so no pads: screen px."""
    rest = _rest(rng, 3)
    rows = []
    for i in range(3):
        x, y = (0.5 + rng.normal(0, 0.01, 2)).round(5).tolist()
        row = {
            **head,
            "FPOGX": x,
            "FPOGY": y,
            "FPOGS": _noisy(0.1 + 0.8 * i),
            "FPOGD": _noisy(0.7),
            "FPOGID": i + 2,
            "FPOGV": 1,
            "SACCADE_MAG": 0.0,
            "SACCADE_DIR": 0.0,
            **{name: values[i] for name, values in rest.items()},
        }
        rows.append(_finish(rng, row, 0.8 + 0.8 * i, CALIBRATION))
    return rows


def write_json_transcript(path: Path, dictation: Dictation, flags: frozenset[str]) -> None:
    """Write transcript.json: words with their punctuation attached, and the quirks that occur."""
    phrases = [] if "empty_transcript" in flags else _phrases(dictation)
    text = "" if "empty_transcript" in flags else dictation.text
    if "odd_phrases" in flags:
        phrases = _odd(phrases)
    if flags & {"odd_phrases", "no_stop"}:
        phrases[-1]["phrase"] = str(phrases[-1]["phrase"]).rstrip(".")
        text = text.capitalize()
    write_json(path, {"full_text": text, "time_stamped_text": phrases})


def _phrases(dictation: Dictation) -> list[dict[str, Any]]:
    """One phrase a word; stops, commas and decimals join the word before."""
    groups: list[list[Token]] = []
    for token in dictation.tokens:
        if groups and token.text[0] in ".,":
            groups[-1].append(token)
        else:
            groups.append([token])
    return [
        {"begin_time": group[0].start_s, "end_time": group[-1].end_s, "phrase": "".join(t.text for t in group)}
        for group in groups
    ]


def _joined(phrases: list[dict[str, Any]], first: int, count: int) -> list[dict[str, Any]]:
    part = phrases[first : first + count]
    words = " ".join(str(phrase["phrase"]) for phrase in part)
    one = {"begin_time": part[0]["begin_time"], "end_time": part[-1]["end_time"], "phrase": words}
    return [*phrases[:first], one, *phrases[first + count :]]


def _odd(phrases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join two words into one phrase, and everything from one stop to the next into another."""
    stops = [i for i, phrase in enumerate(phrases) if str(phrase["phrase"]).endswith(".")]
    phrases = _joined(phrases, stops[0], stops[1] - stops[0] + 1)
    return _joined(phrases, 0, 2)
