"""The held-out split of a folder of shards as images to evaluate on: one of each image, with report and labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from cogaze.data.collate import label_targets
from cogaze.evaluate.canvas import Canvas, CanvasReader
from cogaze.evaluate.records import UNKNOWN
from gazeprep.images import decode
from gazeprep.shards import ShardFolder

IntArray = npt.NDArray[np.int64]
Judged = Literal["test", "validate"]


class ShardImages(Sequence[Canvas]):
    """Samples of shards as canvases, read when they are asked for; gray shows none of the pictures, one gray each."""

    def __init__(self, folder: ShardFolder, keys: Sequence[str], reader: CanvasReader, gray: int | None = None) -> None:
        self.folder, self.keys, self.reader, self.gray = folder, list(keys), reader, gray

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> Canvas: ...

    @overload
    def __getitem__(self, place: slice) -> "ShardImages": ...

    def __getitem__(self, place: int | slice) -> "Canvas | ShardImages":
        if isinstance(place, slice):
            return ShardImages(self.folder, self.keys[place], self.reader, self.gray)
        key = self.keys[place]
        record = json.loads(self.folder.member(key, "json"))
        picture = decode(self.folder.member(key, "image"))
        if self.gray is not None:
            picture = np.full_like(picture, self.gray)
        return self.reader.stored(record, picture)

    def chosen(self, rows: Sequence[int] | IntArray) -> "ShardImages":
        """Return some of them, in that order."""
        return ShardImages(self.folder, [self.keys[row] for row in rows], self.reader, self.gray)

    def without_pictures(self, gray: int) -> "ShardImages":
        """Return the same samples, each picture one gray: what their context alone says."""
        return ShardImages(self.folder, self.keys, self.reader, gray)


@dataclass(frozen=True, eq=False)
class HeldOutImages:
    """The N images of one split: study and subject (N,) as numbers, labels (N, 14) of 1, 0 and UNKNOWN, reports.

    readings: how many samples they were; several readings of one image are one image.
    """

    images: ShardImages
    study: IntArray
    subject: IntArray
    labels: IntArray
    readings: int
    report_sections: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def reports(self) -> list[str]:
        """Return the first of the report's sections that each image has, "" for none, as training takes it."""
        records = (json.loads(self.images.folder.member(key, "json")) for key in self.images.keys)
        return [_first_section(record, self.report_sections) for record in records]


def read_held_out(
    folder: ShardFolder, split: Judged, reader: CanvasReader, report_sections: tuple[str, ...]
) -> HeldOutImages:
    """Take a split's images, the first reading of each.

    Labels: 1 and 0 are themselves, uncertain is UNKNOWN, absent is 0 where the sample has any label, else UNKNOWN.
    Raises ValueError where the split is empty.
    """
    rows = folder.index[folder.index["split"] == split]
    if rows.empty:
        raise ValueError(
            f"the shards hold no sample of split {split!r}; choose another (--split), or build them with one"
        )
    image = rows["dicom"].where(rows["dicom"] != "", rows["key"])
    first = rows[~image.duplicated()]
    targets = label_targets(np.stack(first["labels"].to_list()).astype(np.int8), "mask_uncertain")
    labels = np.where(targets.mask.numpy(), targets.values.numpy(), UNKNOWN).astype(np.int64)
    return HeldOutImages(
        images=ShardImages(folder, [str(key) for key in first["key"]], reader),
        study=_numbers(first["study"], first["key"]),
        subject=_numbers(first["subject"], first["key"]),
        labels=labels,
        readings=len(rows),
        report_sections=report_sections,
    )


def _numbers(names: Any, keys: Any) -> IntArray:
    """Number equal names alike; one without a name is its own."""
    own = names.where(names != "", "\0" + keys)
    return np.unique(own.to_numpy(dtype=str), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _first_section(record: Mapping[str, Any], sections: Sequence[str]) -> str:
    texts = (str(record[name]).strip() for name in sections)
    return next((text for text in texts if text), "")
