"""Compare two scanpaths, order and durations included: MultiMatch's five similarities."""

from dataclasses import dataclass

import numpy as np

from gazeprep.schema import Fixations, FloatArray, Size

FEWEST_FIXATIONS = 3  # two saccades; below that there is nothing to align


@dataclass(frozen=True)
class MultiMatch:
    """Similarity of two scanpaths in five ways, 1 where they are equal.

    Of aligned saccades: shape (difference of the vectors), direction (angle between them), length; of the fixations
    that they start from: position, duration. Medians over the alignment. Below 0 only where paths leave the picture.
    """

    shape: float
    direction: float
    length: float
    position: float
    duration: float


def multimatch(first: Fixations, second: Fixations, size: Size) -> MultiMatch:
    """Compare two scanpaths over one picture of size (width, height) px, in the order of their fixations.

    Saccades are aligned by the path of the least summed difference of their vectors. Without the optional grouping of
    short saccades: Jarodzka et al. 2010, Dewhurst et al. 2012, as multimatch-gaze does it. Time and memory grow with
    the product of the two lengths. Raises ValueError on fewer than three fixations.
    """
    fewest = min(len(first), len(second))
    if fewest < FEWEST_FIXATIONS:
        raise ValueError(f"a scanpath has {fewest} fixations, expected at least {FEWEST_FIXATIONS}; leave it out")
    one, other = _points(first), _points(second)
    own, others = np.diff(one, axis=0), np.diff(other, axis=0)
    i, j = _alignment(np.linalg.norm(own[:, None] - others[None], axis=2)).T
    diagonal = float(np.hypot(*size))
    turn = np.abs(_direction(own)[i] - _direction(others)[j])
    durations = np.stack([first.duration_s[i], second.duration_s[j]])
    differences = {
        "shape": np.linalg.norm(own[i] - others[j], axis=1) / (2 * diagonal),
        "direction": np.minimum(turn, 2 * np.pi - turn) / np.pi,
        "length": np.abs(np.linalg.norm(own, axis=1)[i] - np.linalg.norm(others, axis=1)[j]) / diagonal,
        "position": np.linalg.norm(one[i] - other[j], axis=1) / diagonal,
        # Two fixations of no duration differ by none.
        "duration": np.ptp(durations, axis=0) / np.maximum(durations.max(axis=0), np.finfo(np.float64).tiny),
    }
    return MultiMatch(**{name: 1.0 - float(np.median(values)) for name, values in differences.items()})


def _points(fixations: Fixations) -> FloatArray:
    return np.stack([fixations.x_px, fixations.y_px], axis=1)


def _direction(saccades: FloatArray) -> FloatArray:
    return np.asarray(np.arctan2(saccades[:, 1], saccades[:, 0]))


def _alignment(cost: FloatArray) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Cheapest path (steps, 2) through cost (n, m) from the first corner to the last: down, right or both a step."""
    total = _cheapest(cost)
    i, j = cost.shape[0] - 1, cost.shape[1] - 1
    path = [(i, j)]
    while i or j:
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min((cell for cell in before if min(cell) >= 0), key=lambda cell: total[cell])
        path.append((i, j))
    return np.array(path[::-1])


def _cheapest(cost: FloatArray) -> FloatArray:
    """Least sum (n, m) of costs on a way from the first cell to each, one anti-diagonal after another."""
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[1, 1] = cost[0, 0]
    for step in range(1, n + m - 1):
        i = np.arange(max(0, step - m + 1), min(n, step + 1))
        j = step - i
        total[i + 1, j + 1] = cost[i, j] + np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
    return total[1:, 1:]
