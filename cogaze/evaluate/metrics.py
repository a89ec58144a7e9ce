"""Metrics as functions of arrays."""

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata


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
