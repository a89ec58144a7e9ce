"""COCO's annotation json over the stored pictures: fixations as keypoints, drawn ellipses and boxes as boxes."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gazeprep.exports.identity import identity_of
from gazeprep.exports.pictures import write_picture
from gazeprep.exports.rendering import StoredGaze, stored_affine
from gazeprep.images import Affine
from gazeprep.schema import Rectangle
from gazeprep.shards import LoadedSample

FIXATION = "fixation"
CHEST = "chest"
UNNAMED = "unnamed"
VISIBLE, OFF_IMAGE = 2, 1  # COCO: labelled and visible; labelled, not visible
CORNERS = 32  # of the polygon of an ellipse
SUPERCATEGORY = {"ellipse": "finding", "box": "anatomy", "chest_box": "anatomy"}


class CocoFolder:
    """Writes images/<image>.jpg and annotations.json; coordinates are px of the stored pictures."""

    def __init__(self, root: Path, *, source_ids: bool) -> None:
        self._root, self._source_ids = root, source_ids
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[str, str] = {FIXATION: "gaze"}  # name: supercategory
        self.counts: Counter[str] = Counter()

    def add(self, sample: LoadedSample) -> None:
        """Write a sample's picture and keep its annotations."""
        record, named = sample.record, identity_of(sample.record, source_ids=self._source_ids)
        picture = f"images/{named.image_name}.jpg"
        write_picture(self._root / picture, sample)
        image_id = len(self._images) + 1
        self._images.append(
            {
                "id": image_id,
                "file_name": picture,
                "width": record["stored_width_px"],
                "height": record["stored_height_px"],
                "key": sample.key,
                "split": record["split"],
            }
        )
        for drawn in [*drawn_shapes(record), *fixation_points(sample)]:
            self._categories.setdefault(drawn["category"], drawn.pop("supercategory"))
            self._annotations.append({"id": len(self._annotations) + 1, "image_id": image_id, "iscrowd": 0, **drawn})

    def finish(self) -> None:
        """Number the categories by name, fixations first, and write the json."""
        names = [FIXATION, *sorted(set(self._categories) - {FIXATION})]
        number = {name: i + 1 for i, name in enumerate(names)}
        for one in self._annotations:
            one["category_id"] = number[one.pop("category")]
        categories: list[dict[str, Any]] = [
            {"id": number[name], "name": name, "supercategory": self._categories[name]} for name in names
        ]
        categories[0] |= {"keypoints": ["gaze"], "skeleton": []}
        written = {
            "info": {"description": "fixations and drawn findings, exported by gazeprep"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }
        (self._root / "annotations.json").write_text(json.dumps(written, indent=1), encoding="utf-8")


def drawn_shapes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an annotation for each name of each ellipse or box that was drawn on the image."""
    stored, found = stored_affine(record), []
    for drawn in json.loads(record["annotations"]):
        shape = _ellipse(stored, drawn["box"]) if drawn["kind"] == "ellipse" else _box(stored, drawn["box"])
        names = [CHEST] if drawn["kind"] == "chest_box" else drawn["labels"] or [UNNAMED]
        about = {"kind": drawn["kind"], "certainty": drawn["certainty"], "supercategory": SUPERCATEGORY[drawn["kind"]]}
        found += [{"category": name, **shape, **about} for name in names]
    return found


def _box(stored: Affine, box: Rectangle) -> dict[str, Any]:
    left, top, right, bottom = stored.rectangle(box)
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
    }


def _ellipse(stored: Affine, box: Rectangle) -> dict[str, Any]:
    left, top, right, bottom = stored.rectangle(box)
    radius_x, radius_y = (right - left) / 2, (bottom - top) / 2
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    outline = np.stack([left + radius_x * (1 + np.cos(turn)), top + radius_y * (1 + np.sin(turn))], axis=1)
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": float(np.pi * radius_x * radius_y),
        "segmentation": [outline.reshape(-1).tolist()],
    }


def fixation_points(sample: LoadedSample) -> list[dict[str, Any]]:
    """Return an annotation of one keypoint for each fixation, in time's order; its box is one sigma each way."""
    if not sample.record["has_gaze"]:
        return []
    gaze, stored = StoredGaze.of(sample), stored_affine(sample.record)
    fixations = gaze.fixations
    x_px, y_px = stored.points(fixations.x_px, fixations.y_px)
    radius_x, radius_y = gaze.sigma_x_px * stored.a_x, gaze.sigma_y_px * stored.a_y
    marks = json.loads(sample.record["fixation_marks"])
    points = []
    for i in range(len(fixations)):
        x, y, wide, high = (float(values[i]) for values in (x_px, y_px, radius_x, radius_y))
        points.append(
            {
                "category": FIXATION,
                "supercategory": "gaze",
                "keypoints": [x, y, VISIBLE if sample.gaze["on_image"][i] else OFF_IMAGE],
                "num_keypoints": 1,
                "bbox": [x + 0.5 - wide, y + 0.5 - high, 2 * wide, 2 * high],
                "area": 4 * wide * high,
                "segmentation": [],
                "start_s": float(fixations.start_s[i]),
                "end_s": float(fixations.end_s[i]),
                "mark": marks.get(str(i), ""),
            }
        )
    return points
