"""Small pictures of samples for pages: maps over images as WebP, and where fixations and speech lie on them."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gazeprep.images import GrayImage
from gazeprep.schema import FloatArray, Rectangle
from gazeprep.shards import LoadedSample

WEBP_QUALITY = 80
EARLY_TO_LATE = np.array([(110, 190, 255), (255, 226, 105), (255, 92, 66)])  # sRGB; all visible on dark film
NINTHS = (("upper left", "top", "upper right"), ("left", "middle", "right"), ("lower left", "bottom", "lower right"))


@dataclass(frozen=True)
class Picture:
    """An encoded picture as a data address, with its size in px."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Fixation:
    """One fixation as drawn: number from 1, place and radius in stored px, span in s, colour, left out of maps."""

    number: int
    x: float
    y: float
    radius: float
    start_s: float
    end_s: float
    colour: str
    left_out: bool


def shrunk(image: GrayImage, long_side_px: int) -> GrayImage:
    """Bring an image (rows, cols) to at most this long side."""
    factor = long_side_px / max(image.shape)
    if factor >= 1:
        return image
    rows, cols = (max(round(side * factor), 1) for side in image.shape)
    return np.asarray(cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def overlay(image: GrayImage, gaze_map: npt.NDArray[np.floating], extent: Rectangle) -> npt.NDArray[np.uint8]:
    """Lay a map over an image (rows, cols), more opaque where there is more gaze; returns (rows, cols, 3) BGR.

    extent: the map's edges on the image, px; beside it (a letterbox's padding) the image stays gray.
    """
    peak = float(gaze_map.max())
    strength = np.zeros(image.shape, dtype=np.float32)
    if peak > 0:
        left, top, right, bottom = (round(edge) for edge in extent)
        size = max(right - left, 1), max(bottom - top, 1)
        spread = cv2.resize((gaze_map / peak).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        inside = strength[top:bottom, left:right]
        inside[...] = np.clip(spread, 0, 1)[: inside.shape[0], : inside.shape[1]]
    opacity = 0.75 * np.sqrt(strength)[..., None]
    colours = cv2.applyColorMap(np.round(255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(np.round((1 - opacity) * image[..., None] + opacity * colours), dtype=np.uint8)


def webp(image: npt.NDArray[np.uint8]) -> Picture:
    """Encode an image (rows, cols) or BGR (rows, cols, 3) as a WebP data address."""
    _, data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    encoded = base64.b64encode(data.tobytes()).decode("ascii")
    return Picture(f"data:image/webp;base64,{encoded}", image.shape[1], image.shape[0])


def map_picture(image: GrayImage, sample: LoadedSample, row: int) -> Picture:
    """Return a sample's decoded picture, perhaps shrunk, under row `row` of its maps."""
    return map_over(image, sample.record, sample.maps[row])


def map_over(image: GrayImage, record: Mapping[str, Any], gaze_map: npt.NDArray[np.floating]) -> Picture:
    """Return the decoded picture of a record's sample, perhaps shrunk, under a map of its whole image."""
    factor = image.shape[1] / record["stored_width_px"]
    left, top, right, bottom = (edge * factor for edge in map_extent(record))
    return webp(overlay(image, gaze_map, (left, top, right, bottom)))


def bare_map(gaze_map: npt.NDArray[np.floating], side_px: int) -> Picture:
    """Return a map (rows, cols) without an image, over a square that stands for any image."""
    square = cv2.resize((gaze_map / max(float(gaze_map.max()), 1e-12)).astype(np.float32), (side_px, side_px))
    return webp(np.asarray(cv2.applyColorMap(np.round(255 * square).astype(np.uint8), cv2.COLORMAP_INFERNO)))


def map_extent(record: Mapping[str, Any]) -> Rectangle:
    """Return the edges of the maps, which span the whole image, on the stored picture, px."""
    left, top = record["resize_offset_x"], record["resize_offset_y"]
    right = left + record["resize_scale_x"] * record["image_width_px"]
    bottom = top + record["resize_scale_y"] * record["image_height_px"]
    return left, top, right, bottom


def fixations_drawn(sample: LoadedSample, left_out: set[int], most: int) -> tuple[Fixation, ...]:
    """Place the first `most` fixations on the stored picture; the area of a dot grows with the time looked."""
    gaze, record = sample.gaze, sample.record
    x = (gaze["x_px"] + 0.5) * record["resize_scale_x"] + record["resize_offset_x"]
    y = (gaze["y_px"] + 0.5) * record["resize_scale_y"] + record["resize_offset_y"]
    lasting_s = gaze["end_s"] - gaze["start_s"]
    unit_px = max(record["stored_width_px"], record["stored_height_px"]) / 50  # the radius after a second
    colours = early_to_late(gaze["start_s"])
    return tuple(
        Fixation(
            i + 1,
            round(float(x[i]), 1),
            round(float(y[i]), 1),
            round(float(unit_px * np.sqrt(max(lasting_s[i], 0.02))), 2),
            float(gaze["start_s"][i]),
            float(gaze["end_s"][i]),
            colours[i],
            i in left_out,
        )
        for i in range(min(len(x), most))
    )


def early_to_late(times_s: FloatArray) -> list[str]:
    """Return a colour for each time (n,), from the first's blue over yellow to the last's red."""
    if not len(times_s):
        return []
    span = max(float(np.ptp(times_s)), 1e-9)
    place = (times_s - times_s.min()) / span * (len(EARLY_TO_LATE) - 1)
    channels = [np.interp(place, np.arange(len(EARLY_TO_LATE)), EARLY_TO_LATE[:, c]) for c in range(3)]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.round(np.stack(channels, axis=1)).astype(int)]


def where_most(gaze_map: npt.NDArray[np.floating]) -> str:
    """Name the ninth of the picture, as it is seen, that holds most of a map (rows, cols); "" without mass."""
    if gaze_map.max() <= 0:
        return ""
    rows, cols = (np.arange(side) * 3 // side for side in gaze_map.shape)
    mass = [[gaze_map[np.ix_(rows == r, cols == c)].sum() for c in range(3)] for r in range(3)]
    r, c = np.unravel_index(int(np.argmax(mass)), (3, 3))
    return NINTHS[r][c]
