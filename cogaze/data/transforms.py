"""Views: where a stored picture goes on the tower's canvas, and gaze with it, by one affine.

Pictures are uint8 (rows, cols), canvases square. Rectangles are edges, points pixel centres, as in `gazeprep.schema`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from cogaze.data.plan import uniform
from gazeprep.images import Affine, GrayImage
from gazeprep.maps import Grid, render_batch
from gazeprep.schema import Fixations, FloatArray, Rectangle, Sentence, Size, Word
from gazeprep.shards import fixations_from_member
from gazeprep.transcripts import Alignment, sentence_weights

ViewRule = Literal["letterbox", "center_crop", "random_resized_crop"]
Crop = tuple[int, int, int, int]  # (left, top, right, bottom), whole edges in stored px
Record = Mapping[str, Any]  # <key>.json
GazeColumns = Mapping[str, npt.NDArray[Any]]  # <key>.gaze.npz

DRAWS = 8  # uniform numbers from one 64-byte hash


@dataclass(frozen=True)
class ViewConfig:
    """How pictures become square inputs of a vision tower.

    letterbox: the long edge becomes size_px, the rest is padding. center_crop: the short edge becomes size_px, the
    long edge is cut (the published way). random_resized_crop: a random part of the picture, min_area to all of its
    area, aspect up to max_aspect either way (cut where the picture is narrower), becomes the canvas. flip: share of
    pictures mirrored left to right. shift: pictures move by up to this share of the canvas each way.
    """

    rule: ViewRule = "letterbox"
    size_px: int = 518
    min_area: float = 0.5
    max_aspect: float = 4 / 3
    flip: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(ViewRule):
            raise ValueError(f"view.rule is {self.rule!r}, must be one of {', '.join(get_args(ViewRule))}")
        if self.size_px < 1:
            raise ValueError(f"view.size_px is {self.size_px}, must be at least 1")
        if not 0 < self.min_area <= 1 or not self.max_aspect >= 1:
            raise ValueError(
                f"view.min_area is {self.min_area} and view.max_aspect {self.max_aspect}: an area above 0 to 1, an "
                "aspect of at least 1"
            )
        if not 0 <= self.flip <= 1 or not 0 <= self.shift < 0.5:
            raise ValueError(f"view.flip is {self.flip} and view.shift {self.shift}: 0 to 1, and 0 to below 0.5")

    @property
    def is_random(self) -> bool:
        """Whether two epochs see different views of a picture."""
        return self.rule == "random_resized_crop" or self.flip not in (0, 1) or self.shift > 0

    def still(self) -> "ViewConfig":
        """Return the view that evaluation has: nothing random, nothing mirrored."""
        return replace(self, rule="letterbox" if self.is_random else self.rule, flip=0.0, shift=0.0)


@dataclass(frozen=True)
class View:
    """One view: a crop of the stored picture, resized, its left top corner put on the canvas, perhaps mirrored.

    crop: stored px. resized: (width, height) of the crop on the canvas. left, top: canvas px, before the mirroring.
    """

    canvas_px: int
    crop: Crop
    resized: Size
    left: int = 0
    top: int = 0
    flip_x: bool = False

    @property
    def affine(self) -> Affine:
        """Where stored px go on the canvas."""
        left, top, right, bottom = self.crop
        a_x, a_y = self.resized[0] / (right - left), self.resized[1] / (bottom - top)
        placed = Affine(a_x=a_x, b_x=self.left - a_x * left, a_y=a_y, b_y=self.top - a_y * top)
        return placed.then(Affine(a_x=-1.0, b_x=float(self.canvas_px))) if self.flip_x else placed

    @property
    def content(self) -> Rectangle:
        """Edges on the canvas of what shows picture, not padding."""
        left, top, right, bottom = self.affine.rectangle(self.crop)
        return max(left, 0.0), max(top, 0.0), min(right, float(self.canvas_px)), min(bottom, float(self.canvas_px))

    def draw(self, picture: GrayImage) -> GrayImage:
        """Return the canvas, uint8 (canvas_px, canvas_px): INTER_AREA where it shrinks, INTER_LINEAR where it grows."""
        left, top, right, bottom = self.crop
        part = picture[top:bottom, left:right]
        width, height = self.resized
        if part.shape != (height, width):
            method = cv2.INTER_AREA if width * height < part.size else cv2.INTER_LINEAR
            part = cv2.resize(part, self.resized, interpolation=method).astype(np.uint8, copy=False)
        canvas = np.zeros((self.canvas_px, self.canvas_px), dtype=np.uint8)
        rows, cols = _overlap(self.top, height, self.canvas_px), _overlap(self.left, width, self.canvas_px)
        canvas[rows, cols] = part[_moved(rows, -self.top), _moved(cols, -self.left)]
        return np.ascontiguousarray(canvas[:, ::-1]) if self.flip_x else canvas

    def patch_mask(self, grid: Grid) -> npt.NDArray[np.bool_]:
        """Tell which patches (rows · cols,) show any of the picture."""
        left, top, right, bottom = self.content
        rows = _touched(grid[0], self.canvas_px, top, bottom)
        cols = _touched(grid[1], self.canvas_px, left, right)
        return np.asarray(rows[:, None] & cols[None]).reshape(-1)


def on_picture(maps: npt.NDArray[np.floating], view: View, grid: Grid) -> FloatArray:
    """Carry maps (T, rows, cols) over the canvas to a grid over the whole picture, (T, *grid).

    Each patch's mass is spread evenly over the part of it that shows picture, so it stays the same in sum; what lies on
    patches that show none is lost.
    """
    assert not view.flip_x
    across = _shares(maps.shape[2], view.canvas_px, view.left, view.resized[0], grid[1])
    down = _shares(maps.shape[1], view.canvas_px, view.top, view.resized[1], grid[0])
    return np.asarray(np.einsum("trc,ry,cx->tyx", maps.astype(np.float64), down, across))


def _shares(patches: int, canvas: int, start: int, length: int, cells: int) -> FloatArray:
    """Return how much of each patch's mass (patches, cells) lies in each cell of a picture of that place and length."""
    edges = np.clip((np.linspace(0.0, canvas, patches + 1) - start) / length, 0.0, 1.0)
    cut = np.linspace(0.0, 1.0, cells + 1)
    common = np.minimum(edges[1:, None], cut[None, 1:]) - np.maximum(edges[:-1, None], cut[None, :-1])
    shown = np.diff(edges)[:, None]
    return np.asarray(np.divide(common.clip(min=0.0), shown, out=np.zeros_like(common), where=shown > 0))


def _overlap(start: int, length: int, canvas: int) -> slice:
    return slice(max(start, 0), min(start + length, canvas))


def _moved(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _touched(cells: int, canvas: int, low: float, high: float) -> npt.NDArray[np.bool_]:
    edges = np.linspace(0.0, canvas, cells + 1)
    return np.asarray(np.minimum(edges[1:], high) > np.maximum(edges[:-1], low))


def view_of(config: ViewConfig, record: Record, draws: FloatArray) -> View:
    """Draw one view of a sample's stored picture; `draws` are the numbers of `view_draws`."""
    crop = stored_content(record)
    if config.rule == "random_resized_crop":
        crop, resized = _drawn_crop(config, crop, draws), (config.size_px, config.size_px)
    else:
        resized = _fitted(config, crop)
    shift_x, shift_y = (round((2 * draw - 1) * config.shift * config.size_px) for draw in draws[5:7])
    return View(
        canvas_px=config.size_px,
        crop=crop,
        resized=resized,
        left=(config.size_px - resized[0]) // 2 + shift_x,
        top=(config.size_px - resized[1]) // 2 + shift_y,
        flip_x=bool(draws[4] < config.flip),
    )


def view_draws(seed: int, epoch: int, key: str) -> FloatArray:
    """Return the uniform numbers (8,) behind a sample's random view, whatever process or worker draws it."""
    digest = hashlib.blake2b(f"view {seed} {epoch} {key}".encode(), digest_size=8 * DRAWS).digest()
    return uniform(np.frombuffer(digest, dtype="<u8"))


def _fitted(config: ViewConfig, crop: Crop) -> Size:
    """Size on the canvas with the aspect kept: the long edge fits, or the short one where the rest is cut."""
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    edge = max(width, height) if config.rule == "letterbox" else min(width, height)
    return max(1, round(width * config.size_px / edge)), max(1, round(height * config.size_px / edge))


def _drawn_crop(config: ViewConfig, whole: Crop, draws: FloatArray) -> Crop:
    """Draw area, aspect (width / height, log-uniform) and place of a crop; the picture's edges cut its sides."""
    left, top, right, bottom = whole
    width, height = right - left, bottom - top
    area = width * height * (config.min_area + float(draws[0]) * (1 - config.min_area))
    aspect = config.max_aspect ** (2 * float(draws[1]) - 1)
    across = min(width, max(1, round(math.sqrt(area * aspect))))
    down = min(height, max(1, round(math.sqrt(area / aspect))))
    left += int(draws[2] * (width - across + 1))
    top += int(draws[3] * (height - down + 1))
    return left, top, left + across, top + down


# --- what a sample's record says about its geometry and gaze


def stored_affine(record: Record) -> Affine:
    """Where full-resolution px lie in the stored picture."""
    return Affine(
        a_x=record["resize_scale_x"],
        b_x=record["resize_offset_x"],
        a_y=record["resize_scale_y"],
        b_y=record["resize_offset_y"],
    )


def stored_content(record: Record) -> Crop:
    """Edges of the image in the stored picture: all of it, unless it was stored with padding."""
    size = float(record["image_width_px"]), float(record["image_height_px"])
    left, top, right, bottom = (round(edge) for edge in stored_affine(record).rectangle((0.0, 0.0, *size)))
    return left, top, right, bottom


def gaze_maps(gaze: GazeColumns, record: Record, view: View, grid: Grid) -> npt.NDArray[np.float32]:
    """Render the gaze maps (1 + S, rows · cols) of a view: the whole reading, then each sentence.

    Each sums to 1 over the patches, or is all zero where the view shows none of its gaze.
    """
    fixations = fixations_from_member(gaze)
    affine = stored_affine(record).then(view.affine)
    canvas = float(view.canvas_px)
    sigma = {"sigma_px": record["map_sigma_px"]} if record["map_sigma_px"] else {"sigma_deg": record["map_sigma_deg"]}
    maps = render_batch(
        fixations,
        looking_time_s(fixations, gaze, record),
        (record["image_width_px"], record["image_height_px"]),
        grid,
        affine.inverse().rectangle((0.0, 0.0, canvas, canvas)),
        flip_x=affine.a_x < 0,
        **sigma,
    )
    return maps.reshape(len(maps), -1).astype(np.float32, copy=False)


def looking_time_s(fixations: Fixations, gaze: GazeColumns, record: Record) -> FloatArray:
    """Seconds (1 + S, n) that each fixation counts for the whole reading and for each sentence, as in the build."""
    spans = zip(gaze["word"].tolist(), gaze["word_start_s"].tolist(), gaze["word_end_s"].tolist(), strict=True)
    words = [Word(*span) for span in spans]
    texts = record["sentences"].split("\n")
    sentences = []
    for i, (start_s, end_s) in enumerate(zip(gaze["sentence_start_s"], gaze["sentence_end_s"], strict=True)):
        own = np.flatnonzero(gaze["word_sentence"] == i)
        sentences.append(Sentence(texts[i], float(start_s), float(end_s), int(own[0]), int(own[-1]) + 1))
    rule = Alignment(**json.loads(record["alignment"]))
    seconds = np.vstack([fixations.duration_s[None], sentence_weights(fixations, sentences, words, rule)])
    seconds[:, [int(row) for row in json.loads(record["fixation_marks"])]] = 0.0
    return np.asarray(seconds)
