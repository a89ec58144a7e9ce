"""What exports draw: maps as gray pictures, and the stored pictures themselves."""

from pathlib import Path

import numpy as np

from gazeprep.images import GrayImage, decode, encode
from gazeprep.maps import FloatMap
from gazeprep.shards import LoadedSample

LEVELS = 255  # of an 8-bit picture
MAP_QUALITY = 100  # of a map's jpg: a block without gaze stays exactly 0
PICTURE_QUALITY = 95
JPG_START = b"\xff\xd8"


def gray_map(gaze_map: FloatMap) -> GrayImage:
    """Return a map (rows, cols) as uint8: the peak is 255, 0 is 0; all zero stays so."""
    peak = float(gaze_map.max())
    return np.rint(gaze_map * (LEVELS / peak if peak > 0 else 0.0)).astype(np.uint8)


def write_map(path: Path, levels: GrayImage) -> None:
    """Write a map's gray levels (rows, cols) as jpg."""
    path.write_bytes(encode(levels, "jpg", jpg_quality=MAP_QUALITY))


def write_picture(path: Path, sample: LoadedSample) -> None:
    """Write the stored picture as jpg, its own bytes where it is one; once for all readings of an image."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    is_jpg = sample.image.startswith(JPG_START)
    path.write_bytes(sample.image if is_jpg else encode(decode(sample.image), "jpg", jpg_quality=PICTURE_QUALITY))
