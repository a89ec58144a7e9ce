"""Readings of shards as evaluation asks of them: canvas, sentences, gaze on the patches, what was drawn."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cogaze.data.transforms import Record, View, gaze_maps, stored_affine
from cogaze.evaluate.canvas import Canvas, CanvasReader
from cogaze.evaluate.metrics import BoolArray, FloatArray
from gazeprep.images import GrayImage, decode
from gazeprep.schema import Rectangle, Split
from gazeprep.shards import ShardFolder, read_npz

FINE = 8  # points a patch, each way, that tell how much of it a region covers
CHEST = "chest_box"  # an annotation of every reading that names no finding
Shape = Literal["ellipse", "box"]


@dataclass(frozen=True)
class Region:
    """A finding or a part of the body as a reader drew it: edges on the canvas, certainty 1 to 5, 0 where not said."""

    shape: Shape
    box: Rectangle
    labels: tuple[str, ...]
    certainty: int

    def holds(self, x: FloatArray, y: FloatArray) -> BoolArray:
        """Tell which points, edge coordinates of the canvas, lie within."""
        left, top, right, bottom = self.box
        across, down = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
        if self.shape == "ellipse":
            return np.asarray(across**2 + down**2 <= 1)
        return np.asarray(np.maximum(np.abs(across), np.abs(down)) <= 1)


@dataclass(frozen=True, eq=False)
class Reading:
    """One reading of one image: its canvas, sentences S, maps (1 + S, P), first the whole reading, regions.

    image, subject: numbers, equal where image or patient are the same.
    """

    canvas: Canvas
    image: int
    subject: int
    sentences: tuple[str, ...]
    transcript: str
    maps: FloatArray
    regions: tuple[Region, ...]


def read_readings(
    folder: ShardFolder, splits: Sequence[Split], reader: CanvasReader, *, pictures: bool = True
) -> Iterator[Reading]:
    """Deliver the readings with gaze of some splits, in their order, each on the canvas of the model's still view.

    Without pictures the canvases' pixels are black: for what needs gaze alone.
    """
    index = folder.index
    rows = index[index["has_gaze"] & index["split"].isin(splits)]
    images = {name: number for number, name in enumerate(dict.fromkeys(rows["dicom"]))}
    subjects = {name: number for number, name in enumerate(dict.fromkeys(rows["subject"]))}
    for key, row in rows.iterrows():
        record = json.loads(folder.member(str(key), "json"))
        canvas = reader.stored(record, decode(folder.member(str(key), "image")) if pictures else _black(record))
        if not pictures:
            canvas = replace(canvas, pixels=np.broadcast_to(np.uint8(0), canvas.pixels.shape))  # one byte in memory
        yield Reading(
            canvas=canvas,
            image=images[row["dicom"]],
            subject=subjects[row["subject"]],
            sentences=tuple(record["sentences"].split("\n")) if record["sentences"] else (),
            transcript=record["transcript"],
            maps=gaze_maps(read_npz(folder.member(str(key), "gaze")), record, canvas.view, reader.grid).astype(float),
            regions=_regions(record, canvas.view),
        )


def _black(record: Record) -> GrayImage:
    return np.zeros((record["stored_height_px"], record["stored_width_px"]), dtype=np.uint8)


def _regions(record: dict[str, Any], view: View) -> tuple[Region, ...]:
    affine = stored_affine(record).then(view.affine)
    drawn = json.loads(record["annotations"])
    return tuple(
        Region(
            shape="ellipse" if one["kind"] == "ellipse" else "box",
            box=affine.rectangle(tuple(one["box"])),
            labels=tuple(one["labels"]),
            certainty=int(one["certainty"]),
        )
        for one in drawn
        if one["kind"] != CHEST
    )


def coverage(regions: Sequence[Region], canvas_px: int, grid: tuple[int, int]) -> FloatArray:
    """Return which share of each patch (P,) the regions together cover, from 64 points a patch."""
    fine_rows, fine_cols = (np.arange(FINE * cells) + 0.5 for cells in grid)
    x = fine_cols * canvas_px / (FINE * grid[1])
    y = fine_rows * canvas_px / (FINE * grid[0])
    held = np.zeros((len(y), len(x)), dtype=np.bool_)
    for region in regions:
        held |= region.holds(x[None], y[:, None])
    return held.reshape(grid[0], FINE, grid[1], FINE).mean(axis=(1, 3)).reshape(-1)


def centre_map(view: View, grid: tuple[int, int]) -> FloatArray:
    """Map (P,) of a Gaussian in the middle of the picture, sigma a quarter of its width and height; sums to 1."""
    left, top, right, bottom = view.content
    spans = ((top, bottom, grid[0]), (left, right, grid[1]))
    row, col = (
        np.exp(-0.5 * (((np.arange(cells) + 0.5) * view.canvas_px / cells - (low + high) / 2) / (high - low) * 4) ** 2)
        for low, high, cells in spans
    )
    return np.asarray(np.outer(row, col) / (row.sum() * col.sum())).reshape(-1)
