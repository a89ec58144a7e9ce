"""A FiftyOneDataset on disk, in its serialized json form: pictures with heatmaps, for voxel51's FiftyOne."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2

from gazeprep.exports.identity import identity_of
from gazeprep.exports.pictures import LEVELS, gray_map, write_picture
from gazeprep.exports.rendering import picture_maps
from gazeprep.images import GrayImage
from gazeprep.shards import LoadedSample

COPIED = ("key", "dataset", "view_position", "synthetic", "has_gaze")  # of the record: no ids, no text


class FiftyoneFolder:
    """Writes data/<image>.jpg, and one heatmap a field: fields/gaze/<name>.png, fields/sentence_<i>/<name>.png.

    FiftyOne makes relative paths absolute for fields that have a folder below fields/.
    """

    def __init__(self, root: Path, *, source_ids: bool) -> None:
        self._root, self._source_ids = root, source_ids
        self._samples: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()

    def add(self, sample: LoadedSample) -> None:
        """Write a sample's picture and heatmaps, and keep its document."""
        record, named = sample.record, identity_of(sample.record, source_ids=self._source_ids)
        picture = f"data/{named.image_name}.jpg"
        write_picture(self._root / picture, sample)
        document = {
            "filepath": picture,
            "tags": [record["split"]],
            "_media_type": "image",
            "image_id": named.image_id,
            "study_id": named.study_id,
            "subject_id": named.subject_id,
            **{name: record[name] for name in COPIED},
        }
        if record["has_gaze"]:
            for i, gaze_map in enumerate(picture_maps(sample)):
                field = "gaze" if i == 0 else f"sentence_{i - 1}"
                document[field] = self._heatmap(f"fields/{field}/{named.reading_name}.png", gray_map(gaze_map))
        self._samples.append(document)

    def finish(self) -> None:
        """Write what lists all samples."""
        metadata = {"media_type": "image", "info": {"maps": "peak of each map is 255"}}
        for name, value in (("metadata", metadata), ("samples", {"samples": self._samples})):
            (self._root / f"{name}.json").write_text(json.dumps(value, indent=1), encoding="utf-8")

    def _heatmap(self, path: str, levels: GrayImage) -> dict[str, Any]:
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        done, data = cv2.imencode(".png", levels)
        assert done
        (self._root / path).write_bytes(data.tobytes())
        return {"_cls": "Heatmap", "tags": [], "map_path": path, "range": [0, LEVELS]}
