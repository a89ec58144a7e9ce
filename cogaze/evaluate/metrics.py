"""Metrics as functions of arrays."""

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


def first_hit_ranks(similarity: npt.NDArray[np.floating], hits: BoolArray) -> FloatArray:
    """Rank (queries,), from 1, of each query's most similar hit; candidates that tie with it count half.

    similarity, hits: (queries, candidates); every query has a hit.
    """
    best = np.where(hits, similarity, -np.inf).max(axis=1, keepdims=True)
    above = (~hits & (similarity > best)).sum(axis=1)
    tied = (~hits & (similarity == best)).sum(axis=1)
    return np.asarray(1 + above + tied / 2, dtype=np.float64)


def chance_recall(hits: BoolArray, k: int) -> float:
    """Expected share of queries with a hit among the first k of a random order, 1 - C(n - hits, k) / C(n, k).

    hits: (queries, candidates).
    """
    n, miss = hits.shape[1], (~hits).sum(axis=1)
    if k >= n:
        return 1.0
    never = gammaln(miss + 1) - gammaln(np.maximum(miss - k, 0) + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return float(np.mean(1 - np.where(miss >= k, np.exp(never), 0.0)))


def chance_rank(hits: BoolArray) -> float:
    """Median over queries of the first hit's expected rank in a random order, (n + 1) / (hits + 1)."""
    return float(np.median((hits.shape[1] + 1) / (hits.sum(axis=1) + 1)))
