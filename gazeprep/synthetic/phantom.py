"""Draw a chest with its findings as a plausible radiograph: brightness 0..1, dense is bright."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from gazeprep.schema import FloatArray
from gazeprep.synthetic.anatomy import SIDES, SIGN, Chest, Mask, box, ellipse, smooth
from gazeprep.synthetic.findings import (
    DEVICES,
    Finding,
    bands,
    collapsed_lung,
    device_path,
    finding_mask,
    fracture_place,
    pacemaker_box,
    stroke,
)

Film = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Layer:
    """A soft mask 0..1 where it is not zero, and where in the image that is."""

    place: tuple[slice, slice]
    weight: Film


def _blurred(film: Film, sigma: float) -> Film:
    return np.asarray(cv2.GaussianBlur(film, (0, 0), sigma), dtype=np.float32)


def _resized(film: Film, width: int, height: int, interpolation: int) -> Film:
    return np.asarray(cv2.resize(film, (width, height), interpolation=interpolation), dtype=np.float32)


PAINTED_FIRST = ("effusion", "pneumothorax")  # they replace what lies under them, so nothing may lie under them


class Canvas:
    """Brightness (height, width) that grows layer by layer."""

    def __init__(self, chest: Chest) -> None:
        self.chest = chest
        self.film: Film = np.zeros((chest.size[1], chest.size[0]), dtype=np.float32)

    def soft(self, mask: Mask, blur: float) -> Layer:
        """Turn a mask into 0..1 with an edge blurred by `blur` chest units, where it is not zero."""
        sigma = max(blur * self.chest.scale_px, 0.6)
        left, top, width, height = cv2.boundingRect(mask)
        margin = int(np.ceil(3 * sigma))
        rows = slice(max(0, top - margin), top + height + margin)
        columns = slice(max(0, left - margin), left + width + margin)
        part: Film = mask[rows, columns].astype(np.float32) * np.float32(1 / 255)
        shrink = max(1, int(sigma / 2.5))  # a wide blur on a smaller picture costs less
        if shrink == 1 or min(part.shape) < 8 * shrink:
            return Layer((rows, columns), _blurred(part, sigma))
        small = _resized(part, part.shape[1] // shrink, part.shape[0] // shrink, cv2.INTER_AREA)
        small = _blurred(small, sigma / shrink)
        return Layer((rows, columns), _resized(small, part.shape[1], part.shape[0], cv2.INTER_LINEAR))

    def add(self, mask: Mask, blur: float, amount: float, texture: Film | None = None) -> None:
        """Add a soft mask times `amount`, times a texture of the image's shape."""
        layer = self.soft(mask, blur)
        weight = np.float32(amount) * layer.weight
        self.film[layer.place] += weight if texture is None else weight * texture[layer.place]

    def towards(self, mask: Mask, blur: float, level: float, share: float) -> None:
        """Move the brightness inside a soft mask towards `level`."""
        layer = self.soft(mask, blur)
        self.film[layer.place] += np.float32(share) * layer.weight * (np.float32(level) - self.film[layer.place])


def draw(chest: Chest, findings: tuple[Finding, ...], rng: np.random.Generator) -> Film:
    """Return a radiograph (height, width) of a chest, brightness 0..1."""
    canvas = Canvas(chest)
    body_rng, finding_rng, film_rng = rng.spawn(3)  # so that a finding changes nothing but its place
    if chest.lateral:
        _lateral_body(canvas)
        _lateral_findings(canvas, findings)
    else:
        _body(canvas)
        _lungs(canvas, body_rng)
        _mediastinum(canvas, body_rng)
        _bones(canvas)
        for finding in sorted(findings, key=lambda f: f.kind not in PAINTED_FIRST):
            PAINTERS.get(finding.kind, _paint_cloud)(canvas, finding, finding_rng)
        _marker(canvas)
    return _expose(canvas.film, film_rng)


def _body(canvas: Canvas) -> None:
    outline = [
        (-0.3, -2.0),
        (-0.33, -1.28),
        (-0.6, -1.15),
        (-1.05, -1.02),
        (-1.3, -0.7),
        (-1.6, -0.2),
        (-1.25, 0.1),
        (-1.17, 0.5),
    ]
    left = np.array([*outline, (-1.2, 2.5)])
    body = np.concatenate([left, left[::-1] * (-1.0, 1.0)])
    canvas.add(canvas.chest.fill([body]), 0.05, 0.6)
    canvas.add(canvas.chest.fill([box(-0.95, 0.45, 0.95, 2.5)]), 0.12, 0.1)
    canvas.add(canvas.chest.fill([ellipse(0.55, 0.93 - 0.16 * canvas.chest.dome, 0.2, 0.11)]), 0.03, -0.22)


def _lungs(canvas: Canvas, rng: np.random.Generator) -> None:
    chest = canvas.chest
    for side in SIDES:
        canvas.add(chest.fill([chest.lung(side)]), 0.012, -0.42)
    if chest.female:
        canvas.add(chest.fill([ellipse(sign * 0.62, 0.48, 0.42, 0.36) for sign in (-1, 1)]), 0.06, 0.07)
    vessels = np.zeros_like(canvas.film, dtype=np.uint8)
    for side in SIDES:
        for _ in range(13):
            _vessel(vessels, chest, side, rng)
    vessels &= chest.fill([chest.lung("right"), chest.lung("left")])
    canvas.add(vessels, 0.004, 0.13)
    for side in SIDES:
        canvas.add(chest.fill([ellipse(SIGN[side] * 0.19, -0.08, 0.1, 0.16)]), 0.035, 0.17)


def _vessel(mask: Mask, chest: Chest, side: str, rng: np.random.Generator) -> None:
    angle = rng.uniform(-1.35, 1.35)
    points = np.array([SIGN[side] * 0.2, -0.08]) + np.zeros((7, 2))
    steps = rng.uniform(0.06, 0.12) * np.ones(6)
    angles = angle + np.cumsum(rng.normal(0, 0.17, 6))
    points[1:, 0] += SIGN[side] * np.cumsum(steps * np.cos(angles))
    points[1:, 1] += np.cumsum(steps * np.sin(angles))
    widths = np.linspace(0.03, 0.007, 6) * chest.scale_px
    pixels = np.round((chest.to_px(points) - 0.5) * 16).astype(np.int32)
    for i in range(6):
        cv2.line(mask, pixels[i], pixels[i + 1], (int(210 - 22 * i),), max(1, round(widths[i])), cv2.LINE_AA, shift=4)


def _mediastinum(canvas: Canvas, rng: np.random.Generator) -> None:
    chest = canvas.chest
    canvas.towards(chest.fill([chest.heart()]), 0.014, 0.66 + rng.uniform(-0.02, 0.02), 0.92)
    column = [
        (-0.13, -1.1),
        (-0.17, -0.7),
        (-0.17, -0.1),
        (-0.15, 0.9),
        (0.15, 0.9),
        (0.17, -0.1),
        (0.21, -0.3),
        (0.2, -0.7),
        (0.13, -1.1),
    ]
    canvas.towards(chest.fill([smooth(np.array(column))]), 0.02, 0.68, 0.9)
    canvas.add(chest.fill([ellipse(0.19, -0.4, 0.095, 0.1)]), 0.02, 0.06)
    canvas.add(chest.fill([box(-0.055, -1.4, 0.055, -0.3)]), 0.02, -0.15)
    canvas.add(stroke(chest, np.array([(0.0, -0.3), (-0.16, -0.16)]), 0.06), 0.015, -0.08)
    canvas.add(stroke(chest, np.array([(0.0, -0.3), (0.17, -0.14)]), 0.05), 0.015, -0.08)
    vertebrae = [box(-0.11, y, 0.11, y + 0.095) for y in np.arange(-1.4, 1.5, 0.13)]
    canvas.add(chest.fill(vertebrae), 0.014, 0.055)


def _rib_paths(rib: int, sign: float) -> tuple[FloatArray, FloatArray]:
    """Return the posterior and the anterior centre line of a rib, counted from 0."""
    top, reach = -1.02 + 0.185 * rib, min(0.62 + 0.13 * rib, 0.965)
    t = np.linspace(0, 1, 14)
    fall = 0.1 + 0.028 * rib
    back = np.stack([sign * (0.13 + (reach - 0.13) * t), top - 0.13 * np.sin(np.pi * t * 0.8) + fall * t**2.2], axis=1)
    end = 0.42 + 0.02 * rib
    front = np.stack([sign * (reach + (end - reach) * t), back[-1, 1] + (0.34 + 0.02 * rib) * t**0.8], axis=1)
    return back, front


def _bones(canvas: Canvas) -> None:
    chest = canvas.chest
    thick, thin = np.zeros_like(canvas.film, dtype=np.uint8), np.zeros_like(canvas.film, dtype=np.uint8)
    fronts = np.zeros_like(thick)
    for side in SIDES:
        for rib in range(10):
            back, front = _rib_paths(rib, SIGN[side])
            stroke(chest, back, 0.072, thick)
            stroke(chest, back, 0.05, thin)
            if rib < 7:
                stroke(chest, front, 0.078, fronts)
    canvas.add(thick, 0.008, 0.055)
    canvas.add(thick - np.minimum(thin, thick), 0.006, 0.05)
    canvas.add(fronts, 0.012, 0.035)
    for side in SIDES:
        path = np.array([(0.1, -0.7), (0.3, -0.76), (0.52, -0.86), (0.72, -0.93), (0.95, -1.0)]) * (SIGN[side], 1.0)
        canvas.add(stroke(chest, path, 0.085), 0.012, 0.13)
        scapula = np.array([(1.02, -0.85), (0.92, -0.5), (0.88, 0.05), (1.1, -0.3), (1.2, -0.8)]) * (SIGN[side], 1.0)
        canvas.add(chest.fill([scapula]), 0.02, 0.06)


def _strength(finding: Finding) -> float:
    return 1.0 if finding.certain else 0.62


def _lumps(canvas: Canvas, rng: np.random.Generator) -> Film:
    """Smooth random texture about 1, for opacities."""
    height, width = canvas.film.shape
    coarse = rng.normal(1, 0.3, (max(2, height // 24), max(2, width // 24))).astype(np.float32)
    return _resized(coarse, width, height, cv2.INTER_CUBIC)


def _paint_cloud(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    dense = finding.kind == "consolidation"
    amount = (0.3 if dense else 0.17) * _strength(finding)
    canvas.add(finding_mask(finding, canvas.chest), 0.03 if dense else 0.05, amount, _lumps(canvas, rng))


def _paint_effusion(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    canvas.towards(finding_mask(finding, canvas.chest), 0.02, 0.7, 0.9 * _strength(finding))


def _paint_pneumothorax(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    air = finding_mask(finding, canvas.chest)
    canvas.towards(air, 0.008, 0.05, 0.75 * _strength(finding))
    edge = stroke(canvas.chest, collapsed_lung(finding, canvas.chest), 0.014)
    near: Mask = np.asarray(cv2.dilate(air, np.ones((3, 3), np.uint8), iterations=3), dtype=np.uint8)
    canvas.add(edge & near, 0.004, 0.3 * _strength(finding))


def _paint_atelectasis(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    canvas.add(finding_mask(finding, canvas.chest), 0.05, 0.05 * _strength(finding))
    for path in bands(finding):
        canvas.add(stroke(canvas.chest, path, 0.035), 0.008, 0.27 * _strength(finding))


def _paint_ball(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    canvas.add(finding_mask(finding, canvas.chest), 0.01, 0.3 * _strength(finding))


def _paint_edema(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    chest = canvas.chest
    haze = finding_mask(finding, chest) & chest.fill([chest.lung("right"), chest.lung("left")])
    haze &= ~chest.fill([chest.heart()])
    amount = (0.13, 0.18, 0.24)[finding.severity] * _strength(finding)
    canvas.add(haze, 0.06, amount, _lumps(canvas, rng))
    kerley = np.zeros_like(haze)
    for i in range(5):
        for sign in (-1.0, 1.0):
            y = 0.3 + 0.06 * i
            stroke(chest, np.array([(sign * 0.93, y), (sign * 0.8, y + 0.015)]), 0.01, kerley)
    canvas.add(kerley, 0.003, 0.15)


def _paint_device(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    path = smooth_path(device_path(finding))
    if finding.kind == "tube":
        canvas.add(stroke(canvas.chest, path, 0.075), 0.006, 0.08)
    canvas.add(stroke(canvas.chest, path, 0.018), 0.003, 0.4)
    if finding.kind == "pacemaker":
        canvas.add(canvas.chest.fill([pacemaker_box(finding)]), 0.004, 0.5)


def smooth_path(path: FloatArray) -> FloatArray:
    """Round the corners of an open line, its ends kept."""
    for _ in range(3):
        inner = np.stack([0.75 * path[:-1] + 0.25 * path[1:], 0.25 * path[:-1] + 0.75 * path[1:]], axis=1).reshape(
            -1, 2
        )
        path = np.concatenate([path[:1], inner[1:-1], path[-1:]])
    return path


def _paint_fracture(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    x, y = fracture_place(finding)
    sign = SIGN[finding.side]
    inner = np.array([(x - 0.16 * sign, y - 0.05), (x, y + 0.0)])
    outer = np.array([(x + 0.01 * sign, y + 0.05), (x + 0.14 * sign, y + 0.13)])
    for path in (inner, outer):
        canvas.add(stroke(canvas.chest, path, 0.07), 0.008, 0.2 * _strength(finding))
    gap = np.array([(x - 0.02 * sign, y + 0.07), (x + 0.03 * sign, y - 0.05)])
    canvas.add(stroke(canvas.chest, gap, 0.018), 0.004, -0.3 * _strength(finding))


def _paint_nothing(canvas: Canvas, finding: Finding, rng: np.random.Generator) -> None:
    """A large heart is already drawn from the chest's heart width."""


PAINTERS = {
    "effusion": _paint_effusion,
    "pneumothorax": _paint_pneumothorax,
    "atelectasis": _paint_atelectasis,
    "nodule": _paint_ball,
    "mass": _paint_ball,
    "edema": _paint_edema,
    "fracture": _paint_fracture,
    "cardiomegaly": _paint_nothing,
    **dict.fromkeys(DEVICES, _paint_device),
}


def _marker(canvas: Canvas) -> None:
    """The technologist's L, on the patient's left."""
    chest = canvas.chest
    corner = np.array([0.88 * chest.size[0], 0.05 * chest.size[1]])
    points = (corner + np.array([(0.0, 0.0), (0.0, 0.05), (0.035, 0.05)]) * chest.size[0]) * 16
    letter = np.zeros_like(canvas.film, dtype=np.uint8)
    cv2.polylines(letter, [points.astype(np.int32)], False, (255,), max(2, chest.size[0] // 130), shift=4)
    canvas.add(letter, 0.002, 0.9)


def _lateral_body(canvas: Canvas) -> None:
    """Chest seen from the side: the front is on the left."""
    chest = canvas.chest
    body = [
        (-0.95, -0.6),
        (-1.05, 0.2),
        (-1.0, 1.6),
        (0.95, 1.6),
        (1.1, 0.2),
        (0.95, -0.6),
        (0.5, -1.1),
        (0.3, -1.6),
        (-0.3, -1.6),
        (-0.4, -1.0),
    ]
    canvas.add(chest.fill([smooth(np.array(body))]), 0.04, 0.62)
    lung = [
        (-0.1, -0.95),
        (0.35, -0.9),
        (0.62, -0.4),
        (0.72, 0.2),
        (0.66, 0.85),
        (0.3, 0.55),
        (-0.2, 0.45),
        (-0.72, 0.62),
        (-0.8, 0.0),
        (-0.6, -0.5),
    ]
    canvas.add(chest.fill([smooth(np.array(lung))]), 0.015, -0.36)
    half = 0.42 * chest.heart_width
    canvas.towards(chest.fill([ellipse(-0.3, 0.25, half, 0.3)]), 0.03, 0.6, 0.8)
    canvas.add(chest.fill([ellipse(-0.02, -0.1, 0.16, 0.14)]), 0.03, 0.16)
    t = np.arange(-1.3, 1.6, 0.16)
    canvas.add(
        chest.fill([box(x - 0.1, y, x + 0.1, y + 0.12) for x, y in zip(0.55 + 0.12 * np.cos(t), t, strict=True)]),
        0.015,
        0.16,
    )
    ribs = np.zeros_like(canvas.film, dtype=np.uint8)
    for y in np.arange(-0.8, 0.5, 0.2):
        stroke(chest, smooth_path(np.array([(0.68, y), (0.2, y + 0.2), (-0.6, y + 0.4)])), 0.06, ribs)
    canvas.add(ribs, 0.012, 0.035)


def _lateral_findings(canvas: Canvas, findings: tuple[Finding, ...]) -> None:
    heights = {"upper": -0.55, "mid": -0.1, "lower": 0.3, "": 0.0}
    for finding in findings:
        amount = 0.25 * _strength(finding)
        if finding.kind == "effusion":
            canvas.add(
                canvas.chest.fill([ellipse(0.6, 0.8 - 0.08 * finding.severity, 0.14, 0.16 + 0.1 * finding.severity)]),
                0.02,
                amount,
            )
        elif finding.zone:
            radius = 0.1 + 0.05 * finding.severity
            canvas.add(
                canvas.chest.fill([ellipse(0.3 - 0.4 * finding.shape[0], heights[finding.zone], radius, radius)]),
                0.03,
                amount,
            )


def _expose(film: Film, rng: np.random.Generator) -> Film:
    """Turn brightness into an exposed film: gamma, shading, grain."""
    height, width = film.shape
    gamma, grain = rng.uniform(0.85, 1.2), rng.uniform(0.008, 0.016)
    shading = rng.normal(0, 0.02, (3, 3)).astype(np.float32)
    film = film + _resized(shading, width, height, cv2.INTER_CUBIC)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(grain)
    exposed: Film = np.clip(cv2.pow(np.clip(film, 0.0, 1.0), gamma) + noise, 0.0, 1.0)
    return exposed
