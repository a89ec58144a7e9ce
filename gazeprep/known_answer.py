"""Shards of synthetic recordings against the truth of their corpus: drift, what sentences look at, alignment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from gazeprep.schema import BoolArray, FloatArray
from gazeprep.shards import LoadedSample, ShardFolder
from gazeprep.summary import Table, figure
from gazeprep.synthetic.truth import Truth, read_truth

SAME_START_S = 0.002  # a stored fixation is the true one that starts within this time of it


@dataclass(frozen=True, eq=False)
class Drift:
    """How far a reading's fixations (n,) lie from the true ones, in image px, and how that moves.

    off_px (n, 2): stored minus true place. start_s (n,). unmatched: stored fixations that the truth does not have.
    """

    off_px: FloatArray
    start_s: FloatArray
    unmatched: int

    @property
    def distance_px(self) -> FloatArray:
        """Distances (n,) in image px."""
        return np.hypot(self.off_px[:, 0], self.off_px[:, 1])

    @property
    def mean_px(self) -> float:
        """Length of the mean offset: a shift of the whole reading."""
        return float(np.hypot(*self.off_px.mean(axis=0))) if len(self.off_px) else 0.0

    @property
    def px_per_minute(self) -> float:
        """Speed of the offset, by least squares over the reading: what trackers lose between calibrations."""
        if len(self.start_s) < 2 or np.ptp(self.start_s) == 0:
            return 0.0
        slopes = np.polyfit(self.start_s / 60, self.off_px, 1)[0]
        return float(np.hypot(*slopes))


@dataclass(frozen=True, eq=False)
class Sentences:
    """What a reading's sentences (S,) look at: shares of their maps on their own and on the other sentences' targets.

    on_purpose_s, counted_s, both_s: seconds that were meant for a sentence, that count for it, and both.
    """

    own: FloatArray
    others: FloatArray
    on_purpose_s: float
    counted_s: float
    both_s: float


def known_answer(folder: ShardFolder, corpus: Path) -> tuple[Table, ...]:
    """Compare a folder's readings with the truth of the corpus in a folder; two tables, one row a dataset.

    Raises ValueError where the corpus has no truth, or is not the one that the shards were built from.
    """
    if not (Path(corpus) / "truth").is_dir():
        raise ValueError("--truth names a folder without a truth folder; give the one that gazeprep synth wrote")
    truth = read_truth(corpus)
    drifts: dict[str, list[Drift]] = {}
    sentences: dict[str, list[Sentences]] = {}
    true = dict(list(truth.fixations.groupby(["dataset", "reading_id"])))
    for key, row in folder.index[folder.index["has_gaze"]].iterrows():
        meant = true.get((row["dataset"], row["reading"]))
        if meant is None:
            continue
        sample = folder.sample(str(key))
        drifts.setdefault(row["dataset"], []).append(drift(sample, meant))
        found = _sentences(sample, truth, meant, (row["dataset"], row["reading"]))
        if found is not None:
            sentences.setdefault(row["dataset"], []).append(found)
    if not drifts:
        raise ValueError("none of the shards' readings is in the truth: give the corpus that they were built from")
    return _drift_table(drifts), _sentence_table(sentences)


def drift(sample: LoadedSample, true: pd.DataFrame) -> Drift:
    """Hold a sample's fixations against the true ones that start when they do."""
    starts, order = np.asarray(true["start_s"]), np.argsort(np.asarray(true["start_s"]))
    place = np.stack([true["x_px"], true["y_px"]], axis=1)
    after = np.clip(np.searchsorted(starts[order], sample.gaze["start_s"]), 1, max(len(order) - 1, 1))
    pair = np.stack([order[after - 1], order[np.minimum(after, len(order) - 1)]])
    apart = np.abs(starts[pair] - sample.gaze["start_s"])
    nearest = pair[np.argmin(apart, axis=0), np.arange(pair.shape[1])]
    same = apart.min(axis=0) <= SAME_START_S
    stored = np.stack([sample.gaze["x_px"], sample.gaze["y_px"]], axis=1)
    return Drift((stored - place[nearest])[same], sample.gaze["start_s"][same], int((~same).sum()))


def target_cells(
    masks: Mapping[str, BoolArray], names: str, step_px: int, size: tuple[int, int], grid: tuple[int, int]
) -> FloatArray:
    """Return how much of each map cell (rows, cols) the named targets cover; mask cells are step_px wide."""
    mask = np.any([masks[name] for name in names.split()], axis=0).astype(np.float32)
    full = np.kron(mask, np.ones((step_px, step_px), dtype=np.float32))[: size[1], : size[0]]
    return np.asarray(cv2.resize(full, grid[::-1], interpolation=cv2.INTER_AREA), dtype=np.float64)


def _sentences(sample: LoadedSample, truth: Truth, true: pd.DataFrame, reading: tuple[str, str]) -> Sentences | None:
    spoken = truth.alignment
    spoken = spoken[(spoken["dataset"] == reading[0]) & (spoken["reading_id"] == reading[1]) & spoken["recorded"]]
    if len(spoken) < 2 or len(spoken) != len(sample.maps) - 1:  # only whole dictations have rows to compare
        return None
    size = sample.record["image_width_px"], sample.record["image_height_px"]
    masks = truth.masks(str(spoken["dicom_id"].iloc[0]))
    grid = sample.maps.shape[1], sample.maps.shape[2]
    cells = np.stack([target_cells(masks, str(names), truth.step_px, size, grid) for names in spoken["targets"]])
    shares = np.einsum("irc,jrc->ij", sample.maps[1:].astype(np.float64), cells)
    meant = np.asarray(true["sentence"]) == np.arange(len(spoken))[:, None]
    start, end = np.asarray(true["start_s"]), np.asarray(true["end_s"])
    windows = sample.gaze["window_start_s"][:, None], sample.gaze["sentence_end_s"][:, None]
    counted = np.maximum(np.minimum(end, windows[1]) - np.maximum(start, windows[0]), 0)
    return Sentences(
        own=shares.diagonal(),
        others=shares[~np.eye(len(shares), dtype=bool)],
        on_purpose_s=float((meant * (end - start)).sum()),
        counted_s=float(counted.sum()),
        both_s=float((counted * meant).sum()),
    )


def _drift_table(drifts: Mapping[str, list[Drift]]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for dataset, found in drifts.items():
        distance = np.concatenate([one.distance_px for one in found])
        middle, most = np.quantile(distance, [0.5, 1]) if len(distance) else (0.0, 0.0)
        shift = max(one.mean_px for one in found)
        speed = max(one.px_per_minute for one in found)
        extra = sum(one.unmatched for one in found)
        rows.append((dataset, len(found), len(distance), extra, *map(figure, (middle, most, shift, speed))))
    columns = (
        "source",
        "readings",
        "fixations",
        "not in the truth",
        "median off, px",
        "most off, px",
        "largest shift of a reading, px",
        "fastest drift, px a minute",
    )
    return Table("Stored fixations against the true ones, image px", columns, rows)


def _sentence_table(sentences: Mapping[str, list[Sentences]]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for dataset, found in sentences.items():
        own, others = (np.concatenate([getattr(one, which) for one in found]) for which in ("own", "others"))
        meant, counted, both = (sum(getattr(one, f"{w}_s") for one in found) for w in ("on_purpose", "counted", "both"))
        shares = own.mean(), others.mean(), both / max(meant, 1e-9), both / max(counted, 1e-9)
        rows.append((dataset, len(own), *(f"{share:.0%}" for share in shares)))
    columns = (
        "source",
        "sentences",
        "map on its own targets",
        "on the others’ targets",
        "of looks meant for it, counted",
        "of looks counted, meant for it",
    )
    return Table("Sentences against what they are about", columns, rows)
