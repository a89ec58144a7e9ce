"""What a folder of shards holds, in numbers: tables of counts, distributions, readings worth a look, a few cases."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from gazeprep.schema import CHEXPERT_LABELS, SPLITS, FloatArray
from gazeprep.shards import ShardFolder, read_npy, read_npz

LABEL_STATES = {1: "present", 0: "absent", -1: "uncertain", -2: "not mentioned"}
BINS = 24  # about; a bin's width is a round number
UNUSUAL = 3  # readings named for each way of standing out
LEADS_S = np.arange(17) / 4
TAIL = 0.99  # the share of values that a histogram's even bins hold; the rest is its last bin
LEAD_NOTE = "The lead at which the sentences explain most of where a reading's gaze lies, of 0 to 4 s."


@dataclass(frozen=True)
class Table:
    """A table: a caption, column heads (the first names the rows), rows; `texts` columns hold text, then figures."""

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str | int, ...]]
    texts: int = 1

    def first(self, count: int) -> "Table":
        """Return the table of its first rows."""
        return replace(self, rows=self.rows[:count])


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts (n,) between edges (n + 1,); where `open_ended`, the last bin also holds all above its upper edge."""

    edges: FloatArray
    counts: np.ndarray
    open_ended: bool


@dataclass(frozen=True, eq=False)
class Distribution:
    """The values of one quantity by dataset, with its unit and what one value is."""

    title: str
    unit: str
    of: str
    values: Mapping[str, FloatArray]
    note: str = ""
    bin_width: float = 0  # 0 chooses a round one

    @property
    def pooled(self) -> FloatArray:
        """The values of all datasets."""
        return np.concatenate([*self.values.values(), np.zeros(0)])

    def histogram(self) -> Histogram:
        """Count all values in about BINS bins of a round width."""
        return histogram(self.pooled, whole=self.unit == "", width=self.bin_width)

    def table(self) -> Table:
        """Say each dataset's number of values, least, quartiles and most."""
        columns = ("source", f"{self.of}s", "least", "lower quartile", "median", "upper quartile", "most")
        rows: list[tuple[str | int, ...]] = []
        for dataset, values in self.values.items():
            quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]) if len(values) else np.zeros(0)
            figures = [figure(value) for value in quartiles] or ["none"] * 5
            rows.append((dataset, len(values), *figures))
        return Table(f"{self.title} by source" + (f", {self.unit}" if self.unit else ""), columns, rows)


@dataclass(frozen=True, eq=False)
class Summary:
    """The figures of a folder: its counts as in dataset.json, tables of them, distributions over its readings."""

    synthetic: bool
    counts: Mapping[str, Any]
    tables: Mapping[str, Table]
    distributions: tuple[Distribution, ...]
    mean_maps: Mapping[str, FloatArray]  # by dataset, (rows, cols) over the whole image


def summarize(folder: ShardFolder) -> Summary:
    """Count what a folder holds; reads its tables, and of each reading the gaze and the maps, no image."""
    counts = folder.manifest["counts"]
    readings = reading_figures(folder)
    return Summary(
        synthetic=bool(folder.manifest["synthetic"]),
        counts=counts,
        tables={
            "samples": _samples_table(folder.index),
            "views": _views_table(folder.index),
            "labels": _labels_table(folder.index),
            "rejected": _rejected_table(counts),
            "missing": _missing_table(counts, folder.index),
            "unusual": _unusual_table(readings),
        },
        distributions=_distributions(readings),
        mean_maps=mean_maps(folder),
    )


def reading_figures(folder: ShardFolder) -> pd.DataFrame:
    """Return one row a sample with fixations: seconds, shares, and its fixations' and sentences' own figures.

    duration_s: from the first fixation's start to the last one's end. off_image: share of looking time on no pixel of
    the image. gap_s: longest time without a fixation. fixation_ms (n,): durations. lead_s: best_lead_s.
    """
    index = folder.index[folder.index["fixations"] > 0]
    rows = []
    for key in index["key"]:
        gaze = read_npz(folder.member(key, "gaze"))
        lasting_s = gaze["end_s"] - gaze["start_s"]
        rows.append(
            {
                "duration_s": float(gaze["end_s"].max() - gaze["start_s"].min()),
                "off_image": float(lasting_s[~gaze["on_image"]].sum() / max(lasting_s.sum(), 1e-9)),
                "gap_s": _longest_gap_s(gaze["start_s"], gaze["end_s"]),
                "fixation_ms": 1000 * lasting_s,
                "lead_s": best_lead_s(gaze),
            }
        )
    columns = ["duration_s", "off_image", "gap_s", "fixation_ms", "lead_s"]
    figures = pd.DataFrame(rows, columns=columns, index=index.index)
    return index[["key", "dataset", "split", "fixations", "sentences", "sentences_with_gaze"]].join(figures)


def mean_maps(folder: ShardFolder) -> dict[str, FloatArray]:
    """Return the mean of the whole-reading maps (rows, cols) of each dataset: a flip or a shift of all gaze shows."""
    found = {}
    for dataset, of in folder.index[folder.index["has_gaze"]].groupby("dataset"):
        total = sum(read_npy(folder.member(key, "maps"))[0].astype(np.float64) for key in of["key"])
        found[str(dataset)] = np.asarray(total / len(of))
    return found


def best_lead_s(gaze: Mapping[str, np.ndarray]) -> float:
    """Return by how many seconds gaze leads speech: the lead in LEADS_S at which sentences explain most of its place.

    Each lead gives every sentence the fixations of its own time span moved ahead by it; what sentences explain is one
    minus the squared distance of fixations to their sentence's mean over that to the mean of all, weighted by time.
    NaN with fewer than two sentences or no fixation on the image.
    """
    inside = gaze["on_image"]
    middle_s, lasting_s = ((gaze["start_s"] + gaze["end_s"]) / 2)[inside], (gaze["end_s"] - gaze["start_s"])[inside]
    place = np.stack([gaze["x_px"], gaze["y_px"]], axis=1)[inside]
    starts, ends = gaze["sentence_start_s"][:, None], gaze["sentence_end_s"][:, None]
    if len(starts) < 2 or not len(place):
        return float("nan")
    explained = []
    for lead_s in LEADS_S:
        weights = lasting_s * ((middle_s >= starts - lead_s) & (middle_s < ends - lead_s))
        within = _spread(place, weights).sum()
        explained.append(1 - within / max(float(_spread(place, weights.sum(axis=0)[None])[0]), 1e-9))
    return float(LEADS_S[int(np.argmax(explained))])


def _longest_gap_s(start_s: FloatArray, end_s: FloatArray) -> float:
    """Return the longest time between a fixation's start and the end of all before it, 0 for a single one."""
    order = np.argsort(start_s)
    gaps = start_s[order][1:] - np.maximum.accumulate(end_s[order])[:-1]
    return float(max(gaps.max(initial=0.0), 0.0))


def _spread(place: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted sum of squared distances (rows,) of places (n, 2) to each row's own mean; weights (rows, n)."""
    mean = weights @ place / np.maximum(weights.sum(axis=1), 1e-9)[:, None]
    squared = ((place[None] - mean[:, None]) ** 2).sum(axis=2)
    return np.asarray((weights * squared).sum(axis=1))


def choose_cases(folder: ShardFolder, cases: int) -> list[str]:
    """Choose keys, the same for equal shards: samples with gaze in turn from each source and split, else without."""
    index = folder.index.reset_index(drop=True).sort_values("key")
    # With gaze and sentences first; the place within its source and split deals the groups out in turn.
    rank = (~index["has_gaze"]).astype(int) * 2 + (index["sentences"] == 0).astype(int)
    turn = index.groupby(["dataset", "split", rank.rename("rank")]).cumcount()
    order = index.assign(rank=rank, turn=turn).sort_values(["rank", "turn", "dataset", "split"])
    return list(order["key"][:cases])


def histogram(values: FloatArray, *, whole: bool = False, width: float = 0) -> Histogram:
    """Count values (n,) in bins of a width, or about BINS of a round width; `whole` values get whole widths.

    The topmost hundredth, where it is far from the rest, is counted in the last bin.
    """
    if not len(values):
        return Histogram(np.array([0.0, 1.0]), np.zeros(1, dtype=int), open_ended=False)
    low, most, high = float(values.min()), float(values.max()), float(np.quantile(values, TAIL))
    high = most if most - low <= 1.5 * (high - low) else high
    width = width or round_step((high - low) / BINS, whole=whole)
    first = np.floor(low / width)
    bins = int(np.floor(high / width + 1e-9) - first) + 1
    place = np.floor(values / width + 1e-9) - first
    counts = np.bincount(np.clip(place, 0, bins - 1).astype(int), minlength=bins)
    return Histogram((first + np.arange(bins + 1)) * width, counts, open_ended=bool((place > bins - 1).any()))


def round_step(at_least: float, *, whole: bool = False) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is no smaller; a whole number if `whole`."""
    if at_least <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(at_least))
    steps = (power * factor for factor in (1, 2, 2.5, 5, 10, 20, 50, 100, 1000))
    return float(next(step for step in steps if step >= at_least * (1 - 1e-9) and not (whole and step % 1)))


def _samples_table(index: pd.DataFrame) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for dataset, of in [*index.groupby("dataset"), ("all", index)]:
        by_split = of["split"].value_counts()
        gaze = int(of["has_gaze"].sum())
        in_splits = [int(by_split.get(split, 0)) for split in SPLITS]
        sentences = int(of["sentences"].sum())
        rows.append((str(dataset), *in_splits, len(of), gaze, sentences, int(of["subject"].nunique())))
    columns = ("source", *SPLITS, "samples", "with gaze", "sentences", "subjects")
    return Table("Samples by source and split", columns, rows)


def _views_table(index: pd.DataFrame) -> Table:
    views = index["view_position"].replace("", "unknown").value_counts().sort_index()
    return Table("View positions", ("view", "samples"), [(str(view), int(n)) for view, n in views.items()])


def _labels_table(index: pd.DataFrame) -> Table:
    states = np.stack([*index["labels"]]) if len(index) else np.zeros((0, len(CHEXPERT_LABELS)))
    rows: list[tuple[str | int, ...]] = [
        (label, *(int((states[:, i] == state).sum()) for state in LABEL_STATES))
        for i, label in enumerate(CHEXPERT_LABELS)
    ]
    return Table("CheXpert labels", ("label", *LABEL_STATES.values()), rows)


def _rejected_table(counts: Mapping[str, Any]) -> Table:
    rows: list[tuple[str | int, ...]] = [(reason, count) for reason, count in counts["rejected_by_reason"].items()]
    return Table("Rejected inputs by reason", ("reason", "inputs"), rows)


def _unusual_table(readings: pd.DataFrame) -> Table:
    """Name the readings that stand out: what a person should look at first, were something wrong."""
    without = readings["sentences"] - readings["sentences_with_gaze"]
    rows: list[tuple[str | int, ...]] = []
    for why, of, shown in (
        ("looking time off the image", readings["off_image"], "{:.0%}"),
        ("sentences without gaze", without, "{:.0f}"),
        ("longest time without a fixation, s", readings["gap_s"], "{:.1f}"),
        ("fewest fixations", -readings["fixations"], "{:.0f}"),
    ):
        most = of.sort_values(ascending=False, kind="stable")[:UNUSUAL]
        rows += [(str(key), why, shown.format(abs(value))) for key, value in most.items() if value != 0]
    return Table("Readings that stand out", ("key", "for", "value"), rows, texts=2)


def _missing_table(counts: Mapping[str, Any], index: pd.DataFrame) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for what, count in counts["empty"].items():
        of = int((index["reading"] != "").sum()) if what == "words" else len(index)
        rows.append((what.replace("_", " "), count, f"{count / max(of, 1):.0%}"))
    return Table("Missing context", ("what", "samples without", "share"), rows)


def _distributions(readings: pd.DataFrame) -> tuple[Distribution, ...]:
    def by_dataset(column: str) -> dict[str, FloatArray]:
        values = {str(name): _flat(list(of[column])) for name, of in readings.groupby("dataset")}
        return {name: of[np.isfinite(of)] for name, of in values.items()}

    return (
        Distribution("Fixations", "", "reading", by_dataset("fixations")),
        Distribution("Fixation duration", "ms", "fixation", by_dataset("fixation_ms")),
        Distribution("Reading time", "s", "reading", by_dataset("duration_s")),
        Distribution("Sentences", "", "reading", by_dataset("sentences")),
        Distribution("Lead of gaze before speech", "s", "reading", by_dataset("lead_s"), LEAD_NOTE, bin_width=0.25),
    )


def _flat(values: Sequence[Any]) -> FloatArray:
    return np.concatenate([np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in values])


def figure(value: float) -> str:
    """Write a figure with three digits that count, whole numbers whole."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def marked(record: Mapping[str, Any]) -> list[int]:
    """Return the rows of the fixations that filters left out of a sample's maps."""
    return [int(row) for row in json.loads(record["fixation_marks"])]
