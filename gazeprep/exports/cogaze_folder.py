"""The files that CoGaze's published code reads: its annotation json and a folder of heatmaps for each reading."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gazeprep.exports.identity import Identity, identity_of
from gazeprep.exports.pictures import gray_map, write_map, write_picture
from gazeprep.exports.rendering import picture_maps
from gazeprep.images import GrayImage
from gazeprep.shards import LoadedSample

SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
REPORT_SECTIONS = ("findings", "impression", "last_paragraph")  # the first that a report has
# The order of CheXbert's conditions and its codes: 0 blank, 1 positive, 2 negative, 3 uncertain.
CHEXBERT_ORDER = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices", "No Finding",
)  # fmt: skip
CHEXBERT_CODE = {1: 1, 0: 2, -1: 3, -2: 0}
VIEW_NUMBERS = {"PA": 0, "AP": 1, "LATERAL": 2, "UNK": 3}
VIEW_NAMES = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LL": "LATERAL"}

FRAME = 0.1  # of each side of the cropped square, where the reader looks for the background
FLAT_SHARE = 0.1  # of the frame that must be background


class CogazeFolder:
    """Writes samples one by one, the annotation json at the end.

    Its reader crops the central square, averages over patches and takes a common value of the frame for the
    background, everything up to which becomes 0. So a tenth of each map's frame at least is 0.
    """

    def __init__(self, root: Path, *, source_ids: bool) -> None:
        self._root, self._source_ids = root, source_ids
        self._items: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLIT_NAMES.values()}
        self.counts: Counter[str] = Counter()

    def add(self, sample: LoadedSample) -> None:
        """Write a sample's picture and maps, and keep its item."""
        record, named = sample.record, identity_of(sample.record, source_ids=self._source_ids)
        image_path = f"{named.image_name}.jpg"
        write_picture(self._root / "files" / image_path, sample)
        item = annotation(record, named, image_path)
        if record["has_gaze"]:
            told = one_line(record["sentences"] or record["transcript"])
            self._write_maps(self._root / "gaze" / named.reading_name, sample, told)
            item["sentence_gaze_heatmap"] = {"image_dir": named.reading_name, "transcript_full_text": told}
        if not item["findings_factual_serialization"]:
            self.counts["items that the published code skips: the report has no text"] += 1
        self._items[SPLIT_NAMES[record["split"]]].append(item)

    def finish(self) -> None:
        """Write what lists all samples."""
        _write_json(self._root / "annotation.json", self._items)
        _write_json(self._root / "view_positions.json", VIEW_NUMBERS)

    def _write_maps(self, folder: Path, sample: LoadedSample, told: str) -> None:
        folder.mkdir(parents=True)
        whole, *each = picture_maps(sample)
        texts = str(sample.record["sentences"]).split("\n")
        lookup = {}
        self._write_map(folder / "report_heatmap.jpg", gray_map(whole))
        for i, gaze_map in enumerate(each):
            if not gaze_map.any():
                self.counts["sentences left out: no gaze falls in their time"] += 1
                continue
            lookup[str(i)] = texts[i]
            self._write_map(folder / f"{i}_heatmap.jpg", gray_map(gaze_map))
        lookup["full_text"] = told
        _write_json(folder / "sentence-heatmap-lookup.json", lookup)

    def _write_map(self, path: Path, levels: GrayImage) -> None:
        floor = background_floor(levels)
        if floor:
            self.counts["maps whose lowest levels were cut to make a background"] += 1
            levels = np.where(levels <= floor, 0, levels).astype(np.uint8)
        write_map(path, levels)


def annotation(record: Mapping[str, Any], named: Identity, image_path: str) -> dict[str, Any]:
    """Return a sample's item of the annotation json, without gaze."""
    report = next((record[name] for name in REPORT_SECTIONS if record[name]), "")
    return {
        "id": named.image_id,
        "subject_id": named.subject_id,
        "study_id": named.study_id,
        "key": record["key"],
        "anchor_scan": {
            "image_path": [image_path],
            "view_position": [VIEW_NAMES.get(record["view_position"], "UNK")],
        },
        "findings": report,
        "findings_factual_serialization": [report] if report else [],
        "indication_pure": record["indication"],
        "history_pure": record["history"],
        "sentence_gaze_heatmap": None,
        "disease_labels": [CHEXBERT_CODE[record["labels"][name]] for name in CHEXBERT_ORDER],
    }


def background_floor(levels: GrayImage) -> int:
    """Return the gray level up to which a map (rows, cols) must be cut for a flat background, 0 where it has one."""
    rows, cols = levels.shape
    edge = min(rows, cols)
    top, left = (rows - edge) // 2, (cols - edge) // 2
    square = levels[top : top + edge, left : left + edge]
    margin = max(1, round(FRAME * edge))
    inside = np.zeros(square.shape, dtype=np.bool_)
    inside[margin : edge - margin, margin : edge - margin] = True
    frame = np.sort(square[~inside])
    return int(frame[int(FLAT_SHARE * (len(frame) - 1))])


def one_line(text: str) -> str:
    """Return text with each line break and run of spaces as one space."""
    return " ".join(str(text).split())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
