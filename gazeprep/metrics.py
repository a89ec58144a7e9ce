"""How well a map agrees with where was looked: NSS, AUC (Judd, Borji, shuffled), CC, SIM, KL, information gain.

A saliency map is any array (rows, cols) that is higher where more looking is predicted. What it is held against comes
second: `Hits`, the cells that were looked at, made of fixations (`hits_of`) or of a map (`hits_of_map`); or a second
map of the same cells. Edge cases are pysaliency's: a constant map has AUC 1/2, NSS 0 and CC 0, and each of several
fixations in one cell counts. Nothing returns NaN: what has no answer raises ValueError.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Shape = tuple[int, int]  # (rows, cols)
Rectangle = tuple[float, float, float, float]  # (left, top, right, bottom), edges in px
Thresholds = Literal["fixations", "all"]

MIT_EPSILON = 2.2204e-16  # of the MIT/Tuebingen saliency benchmark
BORJI_STEP = 0.1  # between the thresholds of the published AUC-Borji
BORJI_SPLITS = 100


@dataclass(frozen=True, eq=False)
class Hits:
    """The cells of a map that were looked at, row, col (n,) from 0, and how much: weight (n,), 1 each by default.

    Raises ValueError on ragged columns, cells that are no whole numbers from 0, weights that are not above 0.
    """

    row: IntArray
    col: IntArray
    weight: FloatArray | None = None

    def __post_init__(self) -> None:
        row, col = np.asarray(self.row), np.asarray(self.col)
        weight = np.ones(row.shape) if self.weight is None else np.asarray(self.weight, dtype=np.float64)
        if not (row.ndim == 1 and row.shape == col.shape == weight.shape):
            raise ValueError(f"row, col and weight have shapes {row.shape}, {col.shape}, {weight.shape}, expected (n,)")
        for name, cells in (("row", row), ("col", col)):
            if not (np.isfinite(cells) & (cells >= 0) & (cells == np.floor(cells))).all():
                raise ValueError(f"{name} holds no whole numbers from 0; make cells of points with hits_of")
            object.__setattr__(self, name, cells.astype(np.int64))
        if not (np.isfinite(weight) & (weight > 0)).all():
            raise ValueError("weights must be finite and above 0; leave out fixations that have none")
        object.__setattr__(self, "weight", weight)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def share(self) -> FloatArray:
        """Return each hit's share (n,) of all the looking; sums to 1. Raises ValueError where there is no hit."""
        if not len(self):
            raise ValueError("no fixation lies on the map, and nothing agrees with none; leave this reading out")
        assert self.weight is not None
        scaled = self.weight / self.weight.max()  # so that the sum neither over- nor underflows
        return np.asarray(scaled / scaled.sum())


def hits_of(
    x_px: npt.ArrayLike,
    y_px: npt.ArrayLike,
    shape: Shape,
    window: Rectangle | None = None,
    *,
    weight: npt.ArrayLike | None = None,
    off_map: Literal["raise", "drop"] = "raise",
) -> Hits:
    """Find the cells of a map (rows, cols) that points (n,) in image px lie on.

    window: the map's edges on the image in px, None where cells are the image's pixels. An integer is a pixel's
    centre, as in all of gazeprep: a point's edge coordinate is half more. weight: (n,), such as seconds. Raises
    ValueError on points that are not finite, and on points off the map unless they shall be dropped.
    """
    cells = _cells(x_px, y_px, shape, window)
    inside = _inside(cells, shape)
    if off_map == "raise" and not inside.all():
        raise ValueError(
            f"{int((~inside).sum())} of {len(inside)} points lie off the map; pass off_map='drop' to leave them out "
            "(on_map tells which)"
        )
    kept = None if weight is None else np.asarray(weight, dtype=np.float64)[inside]
    return Hits(cells[inside, 0], cells[inside, 1], kept)


def on_map(x_px: npt.ArrayLike, y_px: npt.ArrayLike, shape: Shape, window: Rectangle | None = None) -> BoolArray:
    """Tell which points (n,) lie on a cell of a map; arguments are those of `hits_of`."""
    return _inside(_cells(x_px, y_px, shape, window), shape)


def hits_of_map(gaze: npt.ArrayLike) -> Hits:
    """Take a gaze map (rows, cols), or counts of fixations, as hits: every cell that has some, weighted by how much.

    With them NSS, AUC and information gain compare two maps. Raises ValueError on values below 0.
    """
    values = _not_negative(_map(gaze, "gaze"), "gaze")
    row, col = np.nonzero(values)
    return Hits(row, col, values[row, col])


def nss(saliency: npt.ArrayLike, hits: Hits) -> float:
    """Normalised scanpath saliency: the mean under the hits of the map in its standard deviations; 0 if constant.

    saliency: (rows, cols). The deviation is over all cells (n, not n - 1). Peters et al. 2005, as pysaliency.NSS.
    """
    return float(hits.share @ _at(_standardised(_map(saliency, "saliency")), hits))


def auc_judd(
    saliency: npt.ArrayLike,
    hits: Hits,
    *,
    negatives: Literal["unfixated", "all"] = "unfixated",
    thresholds: Thresholds = "fixations",
) -> float:
    """Area under the ROC curve of hits against cells of the same map; 1/2 for a constant map.

    negatives: the cells that were not looked at (Judd et al. 2009, MIT benchmark) or all cells (Tuebingen).
    thresholds: the values under the hits alone, with straight lines between them (Judd), or all values, which is the
    chance that a hit is higher than a negative, ties counted half. Nothing is jittered. Raises ValueError where every
    cell was looked at and none is left as negative.
    """
    values = _map(saliency, "saliency")
    found = _at(values, hits)
    if negatives == "all":
        return _roc_area(found, hits.share, values.ravel(), None, thresholds)
    free = np.ones(values.shape, dtype=bool)
    free[hits.row, hits.col] = False
    if not free.any():
        raise ValueError("every cell was looked at, so no negative is left; pass negatives='all' or take a finer map")
    return _roc_area(found, hits.share, values[free], None, thresholds)


def auc_shuffled(saliency: npt.ArrayLike, hits: Hits, other_images: Hits, *, thresholds: Thresholds = "all") -> float:
    """Area under the ROC curve of hits against the hits of other images, which takes the centre bias out.

    other_images: their hits on the same cells: `hits_of` with each image's own window brings them there. All of them
    count, none is drawn, so the figure has no seed. Zhang et al. 2008, as pysaliency's sAUC.
    """
    values = _map(saliency, "saliency")
    return _roc_area(_at(values, hits), hits.share, _at(values, other_images), other_images.share, thresholds)


def auc_borji(
    saliency: npt.ArrayLike,
    hits: Hits,
    rng: np.random.Generator | int,
    *,
    splits: int = BORJI_SPLITS,
    step: float | None = BORJI_STEP,
) -> float:
    """Mean area under the ROC curves of hits against as many cells drawn uniformly; 1/2 for a constant map.

    rng: generator or seed of the draws, with replacement, `splits` times. step: between thresholds on the map scaled
    to [0, 1], as published (Borji et al. 2013, MIT benchmark); None takes all values, ties counted half.
    """
    if splits < 1 or (step is not None and not 0 < step <= 1):
        raise ValueError(f"splits is {splits} and step {step}: give at least 1 split, a step in (0, 1] or None")
    values = _scaled(_map(saliency, "saliency"))
    found, share = _at(values, hits), hits.share
    if not values.any():
        return 0.5
    drawn = np.random.default_rng(rng).integers(values.size, size=(splits, len(hits)))
    areas = [
        _roc_area(found, share, negative, None, "all") if step is None else _stepped_area(found, share, negative, step)
        for negative in values.ravel()[drawn]
    ]
    return float(np.mean(areas))


def cc(saliency: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Pearson's correlation of two maps (rows, cols) over their cells; 0 where one of them is constant."""
    first, second = _two_maps(saliency, truth)
    return float(np.clip(np.mean(_standardised(first) * _standardised(second)), -1.0, 1.0))


def sim(saliency: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Mass that two maps (rows, cols) share, each divided by its sum: 1 if equal, 0 if apart.

    Saliency without mass counts as uniform, as in pysaliency; no map is stretched to [0, 1] first, as the MIT code
    does. Raises ValueError on values below 0 and a truth without mass.
    """
    first, second = _two_maps(saliency, truth)
    return float(np.minimum(_density(first), _truth(second)).sum())


def kl(saliency: npt.ArrayLike, truth: npt.ArrayLike, *, epsilon: float = MIT_EPSILON) -> float:
    """Kullback-Leibler divergence KL(truth || saliency) in nats of two maps (rows, cols), each divided by its sum.

    Sum of t log(epsilon + t / (s + epsilon)), the MIT benchmark's; epsilon bounds what a cell without saliency costs,
    and so must be named beside a figure. Raises ValueError on values below 0, a truth without mass, epsilon below 0,
    and a divergence that is infinite because epsilon is 0.
    """
    first, second = _two_maps(saliency, truth)
    predicted, seen = _density(first), _truth(second)
    _check_epsilon(epsilon)
    looked = seen > 0
    _check_support(predicted[looked], epsilon)
    log_ratio = np.log(seen[looked]) - np.log(predicted[looked] + epsilon)
    return float(seen[looked] @ np.logaddexp(np.log(epsilon) if epsilon else -np.inf, log_ratio))


def information_gain(
    saliency: npt.ArrayLike, baseline: npt.ArrayLike, hits: Hits, *, epsilon: float = MIT_EPSILON
) -> float:
    """Bits per fixation by which a map tells more than a baseline map of where was looked.

    saliency, baseline: (rows, cols), each divided by its sum; a map without mass counts as uniform. Mean under the
    hits of log2(s + epsilon) - log2(b + epsilon): Kuemmerer et al. 2015; epsilon 0 is pysaliency's. Raises
    ValueError on values below 0, epsilon below 0, and a gain that is infinite because epsilon is 0.
    """
    first, second = _two_maps(saliency, baseline)
    gained, known = (_at(_density(one), hits) for one in (first, second))
    _check_epsilon(epsilon)
    _check_support(np.minimum(gained, known), epsilon)
    return float(hits.share @ (np.log2(gained + epsilon) - np.log2(known + epsilon)))


def _roc_area(
    positive: FloatArray,
    share: FloatArray,
    negative: FloatArray,
    negative_share: FloatArray | None,
    thresholds: Thresholds,
) -> float:
    """Area under the ROC curve of values (n,) with shares against values (m,) with shares, None if equal."""
    values, which = np.unique(positive, return_inverse=True)
    hit = np.bincount(which, share, len(values))
    # Negatives stay unsorted: there may be half a million of them, and but a hundred values to put them between.
    below = _share_before(np.searchsorted(values, negative, "right"), negative_share, len(values))
    if thresholds == "all":
        up_to = _share_before(np.searchsorted(values, negative, "left"), negative_share, len(values))
        return float(hit @ (below + up_to) / 2)
    return _area_below([0.0, *np.cumsum(hit[::-1]), 1.0], [0.0, *(1 - below[::-1]), 1.0])


def _share_before(place: IntArray, share: FloatArray | None, places: int) -> FloatArray:
    """Share (places,) of the negatives whose place is at most 0, 1, ..."""
    counted = np.bincount(place, share, places + 1)
    return np.cumsum(counted)[:places] / counted.sum()


def _stepped_area(positive: FloatArray, share: FloatArray, negative: FloatArray, step: float) -> float:
    """Area under the ROC curve at thresholds 0, step, ... up to the highest value (Borji)."""
    slack = 1e-9 * step  # 3 * 0.1 is more than 0.3
    levels = np.arange(0.0, max(positive.max(), negative.max()) + slack, step)[::-1, None] - slack
    hit, false_alarm = (positive >= levels) @ share, (negative >= levels).mean(axis=1)
    return _area_below([0.0, *hit, 1.0], [0.0, *false_alarm, 1.0])


def _area_below(hit: list[float], false_alarm: list[float]) -> float:
    return float(np.trapezoid(hit, false_alarm))


def _cells(x_px: npt.ArrayLike, y_px: npt.ArrayLike, shape: Shape, window: Rectangle | None) -> IntArray:
    """Return the cell (row, col) of each point (n, 2); -1 and the number of cells stand for beyond the map."""
    x, y = np.asarray(x_px, dtype=np.float64), np.asarray(y_px, dtype=np.float64)
    if not (x.ndim == 1 and x.shape == y.shape):
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}, expected (n,) both")
    if not (np.isfinite(x) & np.isfinite(y)).all():
        raise ValueError("a point is not finite; leave out fixations without a position")
    rows, cols = shape
    left, top, right, bottom = (0.0, 0.0, float(cols), float(rows)) if window is None else window
    if not (np.isfinite([left, top, right, bottom]).all() and left < right and top < bottom):
        raise ValueError(f"window is {window}, expected (left, top, right, bottom) with a positive area")
    return np.stack([_cell(y + 0.5, top, bottom, rows), _cell(x + 0.5, left, right, cols)], axis=1)


def _cell(edge: FloatArray, low: float, high: float, cells: int) -> IntArray:
    """Cell (n,) of each position between two edges; -1 before them and `cells` after, however a product rounds."""
    cell = np.clip(np.floor((edge - low) * (cells / (high - low))), 0, cells - 1)
    return np.select([edge < low, edge >= high], [-1, cells], cell).astype(np.int64)


def _inside(cells: IntArray, shape: Shape) -> BoolArray:
    return np.asarray(((cells >= 0) & (cells < np.array(shape))).all(axis=1))


def _map(values: npt.ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected (rows, cols), both at least 1")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has {int((~np.isfinite(array)).sum())} cells that are not finite numbers")
    return array


def _two_maps(saliency: npt.ArrayLike, other: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    first, second = _map(saliency, "saliency"), _map(other, "the other map")
    if first.shape != second.shape:
        raise ValueError(f"the maps have shapes {first.shape} and {second.shape}; render both on one grid")
    return first, second


def _at(values: FloatArray, hits: Hits) -> FloatArray:
    """Values (n,) of a map under the hits."""
    if len(hits) and (hits.row.max() >= values.shape[0] or hits.col.max() >= values.shape[1]):
        raise ValueError(
            f"a hit in row {hits.row.max()} or column {hits.col.max()} is off the map {values.shape}; "
            "make the hits for this map's shape"
        )
    return values[hits.row, hits.col]


def _scaled(values: FloatArray) -> FloatArray:
    """Bring a map to [0, 1], a constant one to 0; no step over- or underflows."""
    peak = np.abs(values).max()
    if peak == 0:
        return np.zeros_like(values)
    from_low = values / peak
    from_low -= from_low.min()
    top = from_low.max()
    return from_low / top if top > 0 else np.zeros_like(values)


def _standardised(values: FloatArray) -> FloatArray:
    """Bring a map to mean 0 and standard deviation 1, a constant one to 0."""
    centred = _scaled(values)
    if not centred.any():  # asked before rounding makes a constant map's deviation 1e-17
        return centred
    centred = centred - centred.mean()
    return np.asarray(centred / centred.std())


def _density(values: FloatArray) -> FloatArray:
    """Divide a map by its sum; one without mass is uniform."""
    peak = _not_negative(values, "a map").max()
    if peak == 0:
        return np.full(values.shape, 1 / values.size)
    scaled = values / peak
    return np.asarray(scaled / scaled.sum())


def _truth(values: FloatArray) -> FloatArray:
    if not values.any():
        raise ValueError("the map of where was looked has no mass; leave this reading out")
    return _density(values)


def _not_negative(values: FloatArray, name: str) -> FloatArray:
    if values.min() < 0:
        raise ValueError(f"{name} has values below 0 and is no density; take exp of a log density")
    return values


def _check_epsilon(epsilon: float) -> None:
    if not (np.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon is {epsilon}, must be 0 or more")


def _check_support(predicted: FloatArray, epsilon: float) -> None:
    if epsilon == 0 and (predicted == 0).any():
        raise ValueError("a cell that was looked at has no mass, so the figure is infinite; give an epsilon above 0")
