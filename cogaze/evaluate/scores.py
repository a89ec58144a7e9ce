"""Scores against labels as figures: AUROC, AUPRC, accuracy, balanced accuracy, F1, each beside what knows nothing.

AUROC, AUPRC and F1 are scikit-learn's. Scores are of single images: nothing is made relative to the others of the set.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from cogaze.evaluate.metrics import (
    FloatArray,
    accuracy_of,
    balanced_accuracy_of,
    f1_of,
    mean_of_defined,
    weighted_auroc,
    weighted_average_precision,
    weighted_confusion,
)
from cogaze.evaluate.records import UNKNOWN, Task
from cogaze.evaluate.results import REPEATS, Figure, Found, bootstrap, weighted_bootstrap

IntArray = npt.NDArray[np.int64]
Resampled = Callable[[npt.NDArray[Any], npt.NDArray[Any], FloatArray], FloatArray]


@dataclass(frozen=True, eq=False)
class Scored:
    """N images: scores (N, C), higher for yes; labels (N, C) of 1, 0 and UNKNOWN; groups (N,), whom they belong to."""

    scores: FloatArray
    labels: IntArray
    groups: npt.NDArray[Any]

    def __post_init__(self) -> None:
        if self.scores.shape != self.labels.shape or len(self.scores) != len(self.groups):
            raise ValueError(
                f"scores {self.scores.shape}, labels {self.labels.shape} and {len(self.groups)} groups do not fit"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError(f"{int((~np.isfinite(self.scores)).sum())} scores are not finite numbers")

    def columns(self, numbers: Sequence[int]) -> "Scored":
        """Keep some classes of all images."""
        return Scored(self.scores[:, numbers], self.labels[:, numbers], self.groups)

    def share(self, number: int) -> float:
        """Return the share of positives among the known labels of a class, 0 where none is known."""
        known = self.labels[:, number][self.labels[:, number] != UNKNOWN]
        return float(known.mean()) if len(known) else 0.0

    def column(self, number: int) -> "Scored":
        """Keep one class and the images whose label is known."""
        known = self.labels[:, number] != UNKNOWN
        return Scored(self.scores[known][:, [number]], self.labels[known][:, [number]], self.groups[known])


@dataclass(frozen=True)
class Intervals:
    """How many bootstrap resamples an interval has, and their seed."""

    repeats: int = REPEATS
    seed: int = 0

    def figure(
        self, name: str, metric: Callable[..., float], arrays: Sequence[Any], groups: Any, beside: dict[str, float]
    ) -> Figure:
        """Return metric(*arrays) and its interval, one resample after another."""
        interval = bootstrap(metric, arrays, groups, repeats=self.repeats, seed=self.seed)
        return Figure.of(name, metric(*arrays), interval, len(arrays[0]), beside)

    def figure_of_counts(
        self,
        name: str,
        value: float,
        resampled: Callable[[FloatArray], FloatArray],
        groups: npt.NDArray[Any],
        beside: dict[str, float],
    ) -> Figure:
        """Return a value and its interval; resampled: how often each row was drawn (R, N) to values (R,)."""
        interval = weighted_bootstrap(resampled, len(groups), groups, repeats=self.repeats, seed=self.seed)
        return Figure.of(name, value, interval, len(groups), beside)


# --- metrics: NaN where a figure does not exist


def area_under_roc(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """AUROC of labels (N,) of 0 and 1, and scores (N,)."""
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else float("nan")


def area_under_pr(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Average precision of labels (N,) of 0 and 1, and scores (N,)."""
    return float(average_precision_score(labels, scores)) if labels.sum() else float("nan")


def f1_of_positive(labels: npt.NDArray[Any], said: npt.NDArray[Any]) -> float:
    """F1 of the positive class; NaN where there is none, 0 where none is found."""
    return float(f1_score(labels, said, zero_division=0.0)) if labels.sum() else float("nan")


def macro_f1(labels: npt.NDArray[Any], said: npt.NDArray[Any]) -> float:
    """Mean over the classes that occur in labels (N,) of their F1."""
    return float(f1_score(labels, said, labels=np.unique(labels), average="macro", zero_division=0.0))


def accuracy(labels: npt.NDArray[Any], said: npt.NDArray[Any]) -> float:
    """Share of the images of which what is said is so."""
    return float(accuracy_score(labels, said))


def balanced_accuracy(labels: npt.NDArray[Any], said: npt.NDArray[Any]) -> float:
    """Mean over the classes that occur of the share that is found."""
    with warnings.catch_warnings():  # a resample may lack a class that was said
        warnings.simplefilter("ignore", UserWarning)
        return float(balanced_accuracy_score(labels, said))


def best_threshold(labels: npt.NDArray[Any], scores: FloatArray) -> float:
    """The score from which on "yes" has the best F1 of the positive class, the highest of equals.

    Raises ValueError where there is no positive.
    """
    if not labels.sum():
        raise ValueError("no validation image is positive, so that no threshold can be chosen")
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.flatnonzero(f1 >= f1.max() - 1e-12)[-1]])


def _said_yes(of: Callable[[FloatArray], FloatArray]) -> Resampled:
    return lambda labels, said, counts: of(weighted_confusion(labels, said, 2, counts))


@dataclass(frozen=True)
class Metric:
    """A figure of labels (N,) of 0 and 1 and scores, or what is said if `said`; baselines by the positives' share.

    resampled: the same of labels, scores, and how often each was drawn (R, N), to (R,).
    """

    of: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]
    resampled: Resampled
    said: bool
    baselines: Callable[[float], dict[str, float]]


METRICS = {
    "AUROC": Metric(area_under_roc, weighted_auroc, False, lambda share: {"chance": 0.5}),
    "AUPRC": Metric(area_under_pr, weighted_average_precision, False, lambda share: {"chance": share}),
    "accuracy": Metric(
        accuracy, _said_yes(accuracy_of), True, lambda share: {"always the majority": max(share, 1 - share)}
    ),
    "balanced accuracy": Metric(
        balanced_accuracy, _said_yes(balanced_accuracy_of), True, lambda share: {"chance": 0.5}
    ),
    "F1": Metric(
        f1_of_positive,
        _said_yes(lambda confusion: f1_of(confusion)[:, 1]),
        True,
        lambda share: {"always yes": 2 * share / (1 + share), "always no": 0.0},
    ),
}


# --- figures


@dataclass(frozen=True)
class Thresholds:
    """From which score on each class (C,) is said to be there, and where that comes from."""

    values: tuple[float, ...]
    origin: str

    @classmethod
    def chosen(cls, validate: Scored | None, classes: int) -> "Thresholds":
        """Take the best F1 of each class among the validation images; 0 where none is positive, or there are none."""
        if validate is None:
            return cls((0.0,) * classes, "0: there is no validation part")
        columns = [validate.column(number) for number in range(classes)]
        found = [best_threshold(own.labels[:, 0], own.scores[:, 0]) if own.labels.sum() else None for own in columns]
        without = found.count(None)
        said = f"best F1 among {len(validate.scores)} validation images"
        said += f"; 0 for {without} of {classes} classes, which no validation image has" if without else ""
        return cls(tuple(0.0 if one is None else one for one in found), said)


def classification_figures(
    task: Task, classes: Sequence[str], test: Scored, validate: Scored | None, intervals: Intervals
) -> Found:
    """Return the figures that fit a task, of the test part, with thresholds from the validation part."""
    if task == "multi-class":
        return multi_class_figures(test, intervals)
    thresholds = Thresholds.chosen(validate, len(classes))
    if task == "multi-label":
        return multi_label_figures(test, classes, thresholds, intervals)
    figures = binary_figures(test, thresholds.values[0], intervals)
    return Found(figures, {"threshold": thresholds.origin})


def binary_figures(test: Scored, threshold: float, intervals: Intervals, name: str = "") -> list[Figure]:
    """Return the figures of one class, C = 1, "yes" from the threshold on; images of unknown label are left out."""
    own = test.column(0)
    labels, scores = own.labels[:, 0], own.scores[:, 0]
    if not 0 < labels.sum() < len(labels):
        raise ValueError(f"of {len(labels)} test images {int(labels.sum())} are positive; both kinds are needed")
    figures, beside = [], float(labels.mean())
    for title, metric in METRICS.items():
        values = (scores >= threshold).astype(np.int64) if metric.said else scores
        resampled = partial(metric.resampled, labels, values)
        value, title = metric.of(labels, values), f"{name} {title}".strip()
        figures.append(intervals.figure_of_counts(title, value, resampled, own.groups, metric.baselines(beside)))
    return figures


def multi_label_figures(test: Scored, classes: Sequence[str], thresholds: Thresholds, intervals: Intervals) -> Found:
    """Return the means over the classes, then each class's figures; an unknown label leaves its cell out.

    A class that all or no images have is left out, and named in the notes.
    """
    shares = [test.share(number) for number in range(len(classes))]
    kept = [number for number, share in enumerate(shares) if 0 < share < 1]
    if not kept:
        raise ValueError(f"none of the {len(classes)} classes has positive and negative test images")
    figures = [
        _mean_figure(title, metric, test.columns(kept), [thresholds.values[number] for number in kept], intervals)
        for title, metric in METRICS.items()
    ]
    for number in kept:
        figures += binary_figures(test.columns([number]), thresholds.values[number], intervals, classes[number])
    left_out = [name for number, name in enumerate(classes) if number not in kept]
    notes = {"threshold": thresholds.origin}
    return Found(figures, notes | ({"classes left out: all or no test images have them": left_out} if left_out else {}))


def _mean_figure(title: str, metric: Metric, test: Scored, thresholds: Sequence[float], intervals: Intervals) -> Figure:
    values = (test.scores >= np.array(thresholds)).astype(np.int64) if metric.said else test.scores

    known = list((test.labels != UNKNOWN).T)
    columns = [(rows, test.labels[rows, i], values[rows, i]) for i, rows in enumerate(known)]

    def resampled(counts: FloatArray) -> FloatArray:
        each = [metric.resampled(labels, own, counts[:, rows]) for rows, labels, own in columns]
        return mean_of_defined(np.stack(each, axis=1))

    value = float(np.mean([metric.of(labels, own) for _, labels, own in columns]))
    beside = [metric.baselines(test.share(number)) for number in range(test.labels.shape[1])]
    means = {name: float(np.mean([one[name] for one in beside])) for name in beside[0]}
    return intervals.figure_of_counts(f"mean {title}", value, resampled, test.groups, means)


def multi_class_figures(test: Scored, intervals: Intervals) -> Found:
    """Return the figures of images that have exactly one of C classes, of which the highest score is said.

    A class's AUROC and AUPRC are of its score less the highest other one, so that 0 is where it is said; macro F1 and
    balanced accuracy are means over the classes. Images with another number of labels are left out and counted.
    """
    single = ((test.labels == 1).sum(axis=1) == 1) & ~(test.labels == UNKNOWN).any(axis=1)
    scores, groups = test.scores[single], test.groups[single]
    labels, count = test.labels[single].argmax(axis=1), test.labels.shape[1]
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError(f"{len(labels)} test images of {len(present)} classes; there must be images of two or more")
    shares = [float((labels == one).mean()) for one in present]
    said, majority = scores.argmax(axis=1), np.full(len(labels), np.bincount(labels).argmax())
    beside = {"always the majority": max(shares)}, {"always the majority": macro_f1(labels, majority)}
    figures = [
        intervals.figure_of_counts(
            title, of(labels, said), _of_classes(resampled, labels, said, count), groups, baselines
        )
        for title, of, resampled, baselines in (
            ("accuracy", accuracy, accuracy_of, beside[0]),
            ("balanced accuracy", balanced_accuracy, balanced_accuracy_of, {"chance": 1 / len(present)}),
            ("macro F1", macro_f1, lambda confusion: mean_of_defined(f1_of(confusion)), beside[1]),
        )
    ]
    margins = Scored(_margins(scores), np.eye(count, dtype=np.int64)[labels], groups).columns(present.tolist())
    for title in ("AUROC", "AUPRC"):
        figures.append(_mean_figure(title, METRICS[title], margins, [0.0] * len(present), intervals))
    left_out = int((~single).sum())
    notes = {"classes": count, "images left out, which have not exactly one class": left_out}
    return Found(figures, notes)


def _of_classes(
    of: Callable[[FloatArray], FloatArray], labels: IntArray, said: IntArray, classes: int
) -> Callable[[FloatArray], FloatArray]:
    return lambda counts: of(weighted_confusion(labels, said, classes, counts))


def _margins(scores: FloatArray) -> FloatArray:
    """Each score (N, C) less the highest other one of its image."""
    ordered = np.sort(scores, axis=1)
    highest, second = ordered[:, -1:], ordered[:, -2:-1]
    return np.asarray(scores - np.where(scores == highest, np.where(second == highest, highest, second), highest))
