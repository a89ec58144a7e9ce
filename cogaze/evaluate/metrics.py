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
