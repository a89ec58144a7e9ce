"""The findings: how often, where and how severe they are, their labels in each source, their place in a chest."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from gazeprep.schema import FloatArray
from gazeprep.synthetic.anatomy import CM_PER_UNIT, SIDES, SIGN, ZONE_CENTRES, ZONES, Chest, Mask, ellipse

Kind = Literal[
    "effusion",
    "pneumothorax",
    "consolidation",
    "groundglass",
    "atelectasis",
    "cardiomegaly",
    "nodule",
    "mass",
    "edema",
    "tube",
    "line",
    "pacemaker",
    "fracture",
]


@dataclass(frozen=True)
class Disease:
    """What one kind of finding is called in the sources' labels, how often it is drawn, where it can be."""

    chexpert: tuple[str, ...]
    phase_1: str
    phase_23: str
    weight: float
    sided: bool = True
    zones: tuple[str, ...] = ()


DISEASES: dict[Kind, Disease] = {
    "effusion": Disease(("Pleural Effusion",), "Pleural effusion", "Pleural abnormality", 5),
    "pneumothorax": Disease(("Pneumothorax",), "Pneumothorax", "Pneumothorax", 2.5),
    "consolidation": Disease(("Consolidation",), "Consolidation", "Consolidation", 4.5, zones=ZONES),
    "groundglass": Disease(("Lung Opacity",), "Groundglass opacity", "Groundglass opacity", 3, zones=ZONES),
    "atelectasis": Disease(("Atelectasis",), "Atelectasis", "Atelectasis", 3.5, zones=("mid", "lower")),
    "cardiomegaly": Disease(
        ("Cardiomegaly",), "Enlarged cardiac silhouette", "Enlarged cardiac silhouette", 4, sided=False
    ),
    "nodule": Disease(("Lung Lesion",), "Nodule", "Lung nodule or mass", 2, zones=ZONES),
    "mass": Disease(("Lung Lesion",), "Mass", "Lung nodule or mass", 1.5, zones=ZONES),
    "edema": Disease(("Edema",), "Pulmonary edema", "Pulmonary edema", 2.5, sided=False),
    "fracture": Disease(("Fracture",), "Fracture", "Acute fracture", 1.5),
    "tube": Disease(("Support Devices",), "Support devices", "Support devices", 0, sided=False),
    "line": Disease(("Support Devices",), "Support devices", "Support devices", 0),
    "pacemaker": Disease(("Support Devices",), "Support devices", "Support devices", 0),
}
DEVICES: tuple[Kind, ...] = ("tube", "line", "pacemaker")
HEART_WIDTHS = (0.98, 1.13, 1.3)  # of cardiomegaly, by severity


@dataclass(frozen=True)
class Finding:
    """One finding of a study; `shape` holds four numbers in 0..1 that vary its outline."""

    kind: Kind
    side: str = ""
    zone: str = ""
    severity: int = 0
    certain: bool = True
    shape: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5)

    @property
    def name(self) -> str:
        """Its name as a gaze target, such as consolidation_left_upper."""
        return "_".join(part for part in (self.kind, self.side, self.zone) if part)

    @property
    def size_cm(self) -> float:
        """Diameter of a nodule or mass, in half centimetres."""
        low, steps = (1.5, 4) if self.kind == "nodule" else (3.5, 6)
        return low + 0.5 * min(int(self.shape[3] * steps), steps - 1)

    @property
    def rib(self) -> int:
        """Which rib is broken, 3 to 7."""
        return 3 + min(int(self.shape[0] * 5), 4)


def draw_findings(rng: np.random.Generator, kinds: tuple[Kind, ...], frontal_device: float) -> tuple[Finding, ...]:
    """Draw the findings of a study; `kinds` limits the first one, `frontal_device` is the chance of a device."""
    count = int(rng.choice(4, p=[0.22, 0.38, 0.28, 0.12]))
    chosen: list[Kind] = []
    for i in range(count):
        allowed = kinds if i == 0 and kinds else tuple(DISEASES)
        pool = [kind for kind in allowed if kind not in chosen and DISEASES[kind].weight]
        weights = np.array([DISEASES[kind].weight for kind in pool])
        chosen.append(pool[int(rng.choice(len(pool), p=weights / weights.sum()))])
    if rng.random() < frontal_device:
        chosen.append(DEVICES[int(rng.integers(3))])
    found = [make_finding(rng, kind) for kind in chosen]
    return tuple(sorted(found, key=lambda finding: finding.name))


def make_finding(rng: np.random.Generator, kind: Kind) -> Finding:
    """Draw side, zone, severity, certainty and shape of a finding."""
    disease = DISEASES[kind]
    return Finding(
        kind,
        side=str(rng.choice(SIDES)) if disease.sided else "",
        zone=str(rng.choice(disease.zones)) if disease.zones else "",
        severity=int(rng.integers(3)),
        certain=kind in DEVICES or bool(rng.random() < 0.85),
        shape=tuple(float(v) for v in rng.random(4).round(6)),
    )


def cut_by_line(outline: FloatArray, level: float, rise: float) -> FloatArray:
    """Keep what lies below a line that rises towards the side by `rise` a unit of |x|."""
    line = level - rise * (np.abs(outline[:, 0]) - 0.55)
    return np.stack([outline[:, 0], np.maximum(outline[:, 1], line)], axis=1)


def lesion_centre(finding: Finding) -> tuple[float, float]:
    """Centre of a finding that lies in a lung zone, in chest units."""
    middle = ZONE_CENTRES[finding.zone]
    reach = {"upper": 0.45, "mid": 0.55, "lower": 0.58}[finding.zone]
    x = reach + 0.2 * (finding.shape[0] - 0.5)
    return SIGN[finding.side] * x, middle + 0.16 * (finding.shape[1] - 0.5)


def cloud(finding: Finding, radius: float) -> list[FloatArray]:
    """Return a lumpy outline as overlapping ellipses."""
    x, y = lesion_centre(finding)
    turn = 2 * np.pi * finding.shape[2]
    lumps = [ellipse(x, y, radius, 0.85 * radius)]
    for i in range(4):
        angle = turn + i * 1.6
        lumps.append(
            ellipse(x + 0.55 * radius * np.cos(angle), y + 0.55 * radius * np.sin(angle), 0.6 * radius, 0.5 * radius)
        )
    return lumps


def bands(finding: Finding) -> list[FloatArray]:
    """Centre lines of plate-like atelectasis."""
    x, y = lesion_centre(finding)
    half, slope = 0.2 + 0.04 * finding.severity, 0.5 * (finding.shape[2] - 0.5)
    rows = (np.arange(2 + finding.severity) - 0.5 * (1 + finding.severity)) * 0.11
    reach = np.linspace(-half, half, 9)
    return [np.stack([x + reach, y + row + slope * reach + 0.25 * reach**2], axis=1) for row in rows]


def device_path(finding: Finding) -> FloatArray:
    """Centre line of a tube, a central line or a pacemaker lead."""
    if finding.kind == "tube":
        tip = -0.62 + 0.1 * finding.severity
        return np.array([(0.02, -1.35), (0.0, -1.0), (-0.01, -0.7), (0.0, tip)])
    sign, tip = SIGN[finding.side], 0.02 + 0.12 * finding.severity
    if finding.kind == "line":
        return np.array(
            [(sign * 0.3, -1.3), (sign * 0.26, -1.0), (sign * 0.16, -0.75), (-0.1, -0.5), (-0.14, -0.2), (-0.14, tip)]
        )
    return np.array(
        [
            (sign * 0.6, -0.62),
            (sign * 0.4, -0.72),
            (sign * 0.15, -0.6),
            (-0.1, -0.35),
            (-0.12, 0.15),
            (0.02, 0.42),
            (0.2, 0.52),
        ]
    )


def pacemaker_box(finding: Finding) -> FloatArray:
    """Outline of the generator under the collar bone."""
    return ellipse(SIGN[finding.side] * 0.64, -0.56, 0.12, 0.11)


def fracture_place(finding: Finding) -> tuple[float, float]:
    """Centre of a broken rib, on its outer part."""
    return SIGN[finding.side] * (0.78 + 0.03 * (finding.rib - 3)), -0.6 + 0.22 * (finding.rib - 3)


def collapsed_lung(finding: Finding, chest: Chest) -> FloatArray:
    """Outline of the lung that is left beside a pneumothorax."""
    outline = chest.lung(finding.side)
    hilum = np.array([SIGN[finding.side] * 0.2, (0.15, 0.3, 0.45)[finding.severity]])
    shrink = np.array([(0.84, 0.74, 0.58), (0.80, 0.72, 0.60)])[:, finding.severity]
    low = (-0.1, 0.45, 1.2)[finding.severity]
    free = np.clip((low - outline[:, 1:]) / 0.4, 0, 1)  # 0 where the lung still touches the chest wall
    return outline + (hilum - outline) * (1 - shrink) * free


def finding_mask(finding: Finding, chest: Chest) -> Mask:
    """Return the image mask (height, width), 0 or 255, of where a finding is."""
    if finding.kind in ("consolidation", "groundglass", "nodule", "mass", "atelectasis"):
        return _lung_lesion(finding, chest)
    if finding.kind == "pneumothorax":
        return chest.fill([chest.lung(finding.side)]) & ~chest.fill([collapsed_lung(finding, chest)])
    if finding.kind in DEVICES:
        mask = stroke(chest, device_path(finding), 0.07)
        return mask | chest.fill([pacemaker_box(finding)]) if finding.kind == "pacemaker" else mask
    return chest.fill(_plain_outlines(finding, chest))


def _plain_outlines(finding: Finding, chest: Chest) -> list[FloatArray]:
    if finding.kind == "effusion":
        level = (0.66, 0.42, 0.08)[finding.severity] - 0.12 * chest.dome + 0.05 * (finding.shape[0] - 0.5)
        return [cut_by_line(chest.lung(finding.side), level, 0.3)]
    if finding.kind == "edema":
        half = 0.26 + 0.05 * finding.severity
        return [ellipse(sign * 0.42, 0.0, half, 1.5 * half) for sign in (-1.0, 1.0)]
    if finding.kind == "fracture":
        return [ellipse(*fracture_place(finding), 0.1, 0.1)]
    return [chest.heart()]


def _lung_lesion(finding: Finding, chest: Chest) -> Mask:
    if finding.kind in ("nodule", "mass"):
        radius = finding.size_cm / 2 / CM_PER_UNIT
        return chest.fill([ellipse(*lesion_centre(finding), radius, radius)])
    if finding.kind == "atelectasis":
        points = np.concatenate(bands(finding))
        low, high = points.min(axis=0) - 0.04, points.max(axis=0) + 0.04
        middle, half = (low + high) / 2, (high - low) / 2
        outlines = [ellipse(middle[0], middle[1], half[0], half[1])]
    else:
        radius = (0.15, 0.2, 0.27)[finding.severity] * (1.15 if finding.kind == "groundglass" else 1.0)
        outlines = cloud(finding, radius)
    return chest.fill(outlines) & chest.fill([chest.lung(finding.side)])


def stroke(chest: Chest, path: FloatArray, width: float, into: Mask | None = None) -> Mask:
    """Draw a line of this width in chest units `into` an image mask, a new one by default, and return it."""
    mask = np.zeros((chest.size[1], chest.size[0]), dtype=np.uint8) if into is None else into
    points = np.round((chest.to_px(path) - 0.5) * 16).astype(np.int32)
    thickness = max(1, round(width * chest.scale_px))
    cv2.polylines(mask, [points], False, (255,), thickness, cv2.LINE_AA, shift=4)
    return mask
