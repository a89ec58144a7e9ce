"""Where things are in a drawn chest: an affine from chest space to the image, outlines, named regions.

Chest space: x from -1 (the patient's right, left in the image) to 1, y down from about -1 (lung apices) to
about 0.85 (costophrenic angles). Outlines are (n, 2) points in chest space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from gazeprep.schema import BoolArray, FloatArray, Rectangle, Size

Side = Literal["right", "left"]
SIDES: tuple[Side, Side] = ("right", "left")
ZONES = ("upper", "mid", "lower")
ZONE_EDGES = {"upper": (-1.1, -0.36), "mid": (-0.36, 0.16), "lower": (0.16, 1.0)}
ZONE_CENTRES = {"upper": -0.58, "mid": -0.1, "lower": 0.33}
SIGN = {"right": -1.0, "left": 1.0}
CM_PER_UNIT = 14.0  # one unit of chest space is about half a rib cage

Mask = npt.NDArray[np.uint8]
GRID_STEP_PX = {False: 4, True: 16}  # side of a truth mask's cell, by full_size


def smooth(points: FloatArray, rounds: int = 2) -> FloatArray:
    """Round the corners of a closed outline (Chaikin)."""
    for _ in range(rounds):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1)
        points = points.reshape(-1, 2)
    return points


def ellipse(x: float, y: float, half_width: float, half_height: float) -> FloatArray:
    """Return the outline of an axis-aligned ellipse."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + half_width * np.cos(angle), y + half_height * np.sin(angle)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> FloatArray:
    """Return the outline of a rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


@dataclass(frozen=True)
class Chest:
    """One body in one image: its size, place and build."""

    size: Size
    scale_px: float
    centre_px: tuple[float, float]
    tilt_rad: float
    dome: float  # how high the diaphragm stands, 0 deep breath .. 1 shallow
    heart_width: float  # full width in chest units; 0.78 is normal
    female: bool
    lateral: bool = False

    def to_px(self, points: FloatArray) -> FloatArray:
        """Map chest points to image points in edge coordinates."""
        cos, sin = np.cos(self.tilt_rad), np.sin(self.tilt_rad)
        x, y = points[:, 0] * self.scale_px, points[:, 1] * self.scale_px * 1.13
        return np.stack([self.centre_px[0] + cos * x - sin * y, self.centre_px[1] + sin * x + cos * y], axis=1)

    def fill(self, outlines: list[FloatArray]) -> Mask:
        """Return the image mask (height, width) of 0 and 255 inside the outlines."""
        mask = np.zeros((self.size[1], self.size[0]), dtype=np.uint8)
        for outline in outlines:
            # 4 fractional bits; OpenCV's points are pixel centres, ours are edges
            points = np.round((self.to_px(outline) - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(mask, [points], (255,), shift=4)
        return mask

    def lung(self, side: str) -> FloatArray:
        """Outline of one lung, the heart not cut out."""
        low = 0.86 - 0.16 * self.dome
        top = low - (0.27 if side == "right" else 0.21)
        points = [
            (0.40, -0.99), (0.55, -0.94), (0.70, -0.76), (0.82, -0.45), (0.895, -0.1), (0.935, 0.3),
            (0.95, low - 0.16), (0.945, low), (0.90, low - 0.03), (0.78, low - 0.15), (0.62, top), (0.42, top - 0.03),
            (0.22, top + 0.05), (0.14, top + 0.06), (0.13, 0.2), (0.14, -0.1), (0.15, -0.4), (0.17, -0.65),
            (0.26, -0.9),
        ]  # fmt: skip
        return smooth(np.array(points)) * (SIGN[side], 1.0)

    def heart(self) -> FloatArray:
        """Outline of the heart, wider to the patient's left."""
        right, left = 0.34 * self.heart_width, 0.66 * self.heart_width
        low = 0.74 - 0.16 * self.dome
        points = [
            (-0.15, -0.16), (-0.17, 0.0), (-right, 0.2), (-right, 0.4), (-0.85 * right, low - 0.08), (0.0, low),
            (0.3, low + 0.03), (0.9 * left, low), (left, low - 0.14), (0.88 * left, 0.26),
            (0.6 * left, 0.03), (0.2, -0.14),
        ]  # fmt: skip
        return smooth(np.array(points))


Outliner = Callable[[Chest], list[FloatArray]]


def _lung_part(side: str, top: float, bottom: float) -> Outliner:
    """Outline the part of a lung between two heights."""

    def outline(chest: Chest) -> list[FloatArray]:
        points = chest.lung(side)
        return [np.stack([points[:, 0], np.clip(points[:, 1], top, bottom)], axis=1)]

    return outline


def _pair(outline: Callable[[float], FloatArray]) -> Outliner:
    return lambda chest: [outline(-1.0), outline(1.0)]


def _single(outline: Callable[[float], FloatArray], side: str) -> Outliner:
    return lambda chest: [outline(SIGN[side])]


def _clavicle(sign: float) -> FloatArray:
    points = [
        (0.1, -0.66),
        (0.35, -0.74),
        (0.6, -0.84),
        (0.85, -0.92),
        (0.86, -0.98),
        (0.6, -0.9),
        (0.35, -0.81),
        (0.1, -0.74),
    ]
    return np.array(points) * (sign, 1.0)


def _hilum(sign: float) -> FloatArray:
    return ellipse(sign * 0.25, -0.09, 0.13, 0.19)


def _ribs(sign: float) -> FloatArray:
    return np.array([(0.62, -0.8), (0.86, -0.45), (0.97, 0.2), (0.97, 0.55), (0.8, 0.5), (0.72, 0.0), (0.55, -0.6)]) * (
        sign,
        1.0,
    )


def _costophrenic(side: str) -> Outliner:
    return lambda chest: [ellipse(SIGN[side] * 0.85, 0.77 - 0.16 * chest.dome, 0.12, 0.13)]


def _diaphragm(side: str) -> Outliner:
    return lambda chest: [ellipse(SIGN[side] * 0.52, 0.66 - 0.16 * chest.dome, 0.36, 0.1)]


REGIONS: dict[str, Outliner] = {
    "heart": lambda chest: [chest.heart()],
    "upper_mediastinum": lambda chest: [box(-0.19, -0.8, 0.2, -0.15)],
    "trachea": lambda chest: [box(-0.07, -1.05, 0.07, -0.3)],
    "aortic_knob": lambda chest: [ellipse(0.19, -0.4, 0.11, 0.11)],
    "lungs": lambda chest: [chest.lung("right"), chest.lung("left")],
    "hila": _pair(_hilum),
    "bones": _pair(_ribs),
    "apices": lambda chest: [*_lung_part("right", -1.1, -0.66)(chest), *_lung_part("left", -1.1, -0.66)(chest)],
    "costophrenic_angles": lambda chest: [*_costophrenic("right")(chest), *_costophrenic("left")(chest)],
    "diaphragm": lambda chest: [*_diaphragm("right")(chest), *_diaphragm("left")(chest)],
}
for _side in SIDES:
    REGIONS |= {
        f"{_side}_lung": _lung_part(_side, -1.2, 1.2),
        f"{_side}_apex": _lung_part(_side, -1.1, -0.66),
        f"{_side}_clavicle": _single(_clavicle, _side),
        f"{_side}_hilum": _single(_hilum, _side),
        f"{_side}_costophrenic_angle": _costophrenic(_side),
        **{f"{_side}_{zone}_zone": _lung_part(_side, *ZONE_EDGES[zone]) for zone in ZONES},
    }


def region_mask(chest: Chest, name: str) -> Mask:
    """Return the image mask of a named region."""
    return chest.fill(REGIONS[name](chest))


def to_grid(mask: Mask, step_px: int) -> BoolArray:
    """Reduce an image mask to cells of step_px: set where more than a third of the cell is.

    The last row and column may reach past the image.
    """
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % step_px), (0, -width % step_px)))
    cells = (padded.shape[1] // step_px, padded.shape[0] // step_px)
    inside: BoolArray = np.asarray(cv2.resize(padded, cells, interpolation=cv2.INTER_AREA)) > 255 / 3
    return inside


def grid_box(mask: BoolArray, step_px: int) -> Rectangle:
    """Return the bounding rectangle of a grid mask in image edges."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    return tuple(float(v * step_px) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))  # type: ignore[return-value]
