"""Maps as files of their own: npz, or 16-bit PNG with the factor that gives the values back."""

import csv
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from gazeprep.exports.identity import identity_of
from gazeprep.exports.rendering import StoredGaze, stored_window
from gazeprep.maps import FloatMap
from gazeprep.shards import LoadedSample

MapGrid = Literal["stored", "picture", "image"]

DEEP_LEVELS = 65535  # of a 16-bit picture
SCALE_COLUMNS = ("key", "map", "file", "rows", "cols", "scale")


def sample_maps(sample: LoadedSample, grid: MapGrid) -> Iterator[FloatMap]:
    """Yield a sample's maps (rows, cols), the whole reading first: as stored, or one cell per pixel."""
    record = sample.record
    if grid == "stored":
        return iter(sample.maps)
    if grid == "picture":
        size = record["stored_height_px"], record["stored_width_px"]
        return StoredGaze.of(sample).each_map(size, stored_window(record))
    return StoredGaze.of(sample).each_map((record["image_height_px"], record["image_width_px"]))


class MapFiles(ABC):
    """Writes the maps of samples that have gaze, and counts those that have not."""

    def __init__(self, root: Path, *, source_ids: bool, grid: MapGrid) -> None:
        self._root, self._source_ids, self._grid = root, source_ids, grid
        self.counts: Counter[str] = Counter()

    def add(self, sample: LoadedSample) -> None:
        """Write a sample's maps."""
        if not sample.record["has_gaze"]:
            self.counts["samples left out: no gaze"] += 1
            return
        name = identity_of(sample.record, source_ids=self._source_ids).reading_name
        (self._root / "maps").mkdir(exist_ok=True)
        self._write(sample.key, name, sample_maps(sample, self._grid))

    @abstractmethod
    def _write(self, key: str, name: str, maps: Iterator[FloatMap]) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Write what lists all samples."""


class NpzFolder(MapFiles):
    """maps/<name>.npz with the array maps, float32 (1 + S, rows, cols), and the key."""

    def _write(self, key: str, name: str, maps: Iterator[FloatMap]) -> None:
        stacked = np.stack([gaze_map.astype(np.float32, copy=False) for gaze_map in maps])
        np.savez_compressed(self._root / "maps" / f"{name}.npz", maps=stacked, key=np.array(key))

    def finish(self) -> None:
        """There is nothing beside the files."""


class Png16Folder(MapFiles):
    """maps/<name>/whole.png and <i>.png, uint16; scales.csv has each one's scale: value = level · scale."""

    def __init__(self, root: Path, *, source_ids: bool, grid: MapGrid) -> None:
        super().__init__(root, source_ids=source_ids, grid=grid)
        self._scales: list[dict[str, Any]] = []

    def _write(self, key: str, name: str, maps: Iterator[FloatMap]) -> None:
        (self._root / "maps" / name).mkdir()
        for i, gaze_map in enumerate(maps):
            title = "whole" if i == 0 else str(i - 1)
            file = f"maps/{name}/{title}.png"
            scale = float(gaze_map.max()) / DEEP_LEVELS
            levels = np.rint(gaze_map.astype(np.float64) / (scale or 1.0)).astype(np.uint16)
            done, data = cv2.imencode(".png", levels)
            assert done
            (self._root / file).write_bytes(data.tobytes())
            rows, cols = levels.shape
            self._scales.append(dict(zip(SCALE_COLUMNS, (key, title, file, rows, cols, scale), strict=True)))

    def finish(self) -> None:
        """Write the scales."""
        with (self._root / "scales.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, SCALE_COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(self._scales)
