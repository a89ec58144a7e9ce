"""Metrics as functions of arrays."""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import rankdata

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def auroc(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.number], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Area under the ROC curve of each column (classes,), ties counted half; NaN where a class has one kind only.

    scores, labels (0 or 1), mask: (samples, classes); False in the mask leaves a cell out. The rank form of Mann and
    Whitney's U.
    """
    areas = np.full(scores.shape[1], np.nan)
    for column in range(scores.shape[1]):
        known = mask[:, column]
        positive = labels[known, column] > 0.5
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        if n_positive and n_negative:
            ranks = rankdata(scores[known, column])
            above = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
            areas[column] = above / (n_positive * n_negative)
    return areas


def chance_recall(relevant: npt.NDArray[np.integer], candidates: int, k: int) -> float:
    """Expected share of queries with a hit among the first k of a random order, 1 - C(n - hits, k) / C(n, k).

    relevant: (queries,), how many of the candidates are hits of each.
    """
    return float(np.mean(share_with_hit(np.asarray(relevant), np.full(len(relevant), candidates), k)))


def share_with_hit(hits: npt.ArrayLike, size: npt.ArrayLike, drawn: npt.ArrayLike) -> FloatArray:
    """Probability of one hit at least among `drawn` of `size` things of which `hits` are some, all (rows,)."""
    hits, size, drawn = (np.asarray(one, dtype=np.float64) for one in (hits, size, drawn))
    miss = size - hits
    never = gammaln(miss + 1) - gammaln(np.maximum(miss - drawn, 0) + 1)
    never = never - gammaln(size + 1) + gammaln(np.maximum(size - drawn, 0) + 1)
    return np.asarray(1 - np.where(miss >= drawn, np.exp(never), 0.0), dtype=np.float64)


def chance_rank(relevant: npt.NDArray[np.integer], candidates: int) -> float:
    """Median rank of the first hit in a random order, over all queries and orders: where recall reaches one half."""
    return float(
        bisect_left(range(1, candidates + 1), 0.5 - 1e-9, key=lambda k: chance_recall(relevant, candidates, k)) + 1
    )


# --- weights (resamples, samples) say how often each sample was drawn; NaN where a figure does not exist


def weighted_auroc(labels: npt.NDArray[np.integer], scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Area under the ROC curve (resamples,) of labels (samples,) of 0 and 1; ties count half."""
    positive, negative = _by_score(labels, scores, weights)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _share((positive * (below + negative / 2)).sum(axis=1), pairs)


def weighted_average_precision(labels: npt.NDArray[np.integer], scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Average precision (resamples,) of labels (samples,): precision at each score times the recall that it adds."""
    positive, negative = _by_score(labels, -scores, weights)
    found = np.cumsum(positive, axis=1)
    precision = _share(found, found + np.cumsum(negative, axis=1))
    return _share(np.nansum(precision * positive, axis=1), positive.sum(axis=1))


def _by_score(
    labels: npt.NDArray[np.integer], scores: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Sum the weights of positives and negatives (resamples, distinct scores), from the lowest score on."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    positive = weights[:, order] * labels[order]
    every = np.add.reduceat(weights[:, order], starts, axis=1)
    of_positives = np.add.reduceat(positive, starts, axis=1)
    return of_positives, every - of_positives


def weighted_confusion(
    labels: npt.NDArray[np.integer], said: npt.NDArray[np.integer], classes: int, weights: FloatArray
) -> FloatArray:
    """Sum the weights by class and what is said of it (resamples, classes, classes)."""
    cells = np.eye(classes * classes)[labels * classes + said]
    return np.asarray((weights @ cells).reshape(-1, classes, classes))


def accuracy_of(confusion: FloatArray) -> FloatArray:
    """Share (resamples,) of what is said that is so."""
    return _share(np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))


def balanced_accuracy_of(confusion: FloatArray) -> FloatArray:
    """Mean (resamples,) over the classes that occur of the share that is found."""
    return mean_of_defined(_share(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)))


def f1_of(confusion: FloatArray) -> FloatArray:
    """F1 (resamples, classes) of each class; NaN for one that does not occur."""
    both = confusion.sum(axis=1) + confusion.sum(axis=2)
    f1 = _share(2 * np.diagonal(confusion, axis1=1, axis2=2), both)
    return np.where(confusion.sum(axis=2) > 0, f1, np.nan)


def mean_of_defined(values: FloatArray) -> FloatArray:
    """Mean (rows,) of the numbers of each row (rows, columns); NaN where it has none."""
    there = np.isfinite(values)
    return _share(np.where(there, values, 0.0).sum(axis=1), there.sum(axis=1).astype(np.float64))


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
