"""Fixations -> gaze probability map on any window and grid.

Every fixation is a separable Gaussian cut to the part of the image that was shown, so a whole map is one
matrix product: map = rowsᵀ · diag(weight) · cols, with rows (n, R) and cols (n, C) the mass of fixation i in
grid row r and grid column c. Exact, and no image per fixation.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from gazeprep.schema import Fixations, FloatArray, Rectangle, Size

Recipe = Literal["integral", "reflacx", "egd"]
Grid = tuple[int, int]  # (rows, cols)
FloatMap = npt.NDArray[np.floating]  # (..., rows, cols)

MINIMAL_MASS = 1e-9  # of the summed weight; below it nothing of the gaze fell on the grid
SMALLEST_FACTOR = 1e-18
FARTHEST = 1e9  # sigmas; farther than that is as far


@dataclass(frozen=True, eq=False)
class _Factors:
    """The separable factors of n fixations: rows (n, R), cols (n, C)."""

    rows: FloatArray
    cols: FloatArray


def render(  # noqa: PLR0913 - the public signature
    fixations: Fixations,
    image_size: Size,
    grid: Grid | None = None,
    window: Rectangle | None = None,
    *,
    flip_x: bool = False,
    flip_y: bool = False,
    recipe: Recipe = "integral",
    sigma_deg: float = 1.0,
    sigma_px: float | None = None,
    dtype: npt.DTypeLike = "float32",
) -> FloatMap:
    """Render the gaze probability map (rows, cols) of one set of fixations; it sums to 1 or is all zero.

    image_size: (width, height) px. grid: (rows, cols), None is one cell per image pixel of the window, rounded.
    window: (left, top, right, bottom) edges in image px, None is the whole image; it may be fractional or
    leave the image, where no mass is. Flips mirror the window's content. `integral`: the Gaussians' mass in
    each cell, weighted by duration. `reflacx`: densities at pixel centres inside the shown rectangle (the
    REFLACX authors' heatmap). `egd`: unit weights and scipy's Gaussian filter of sigma_px (the EGD-CXR
    authors' heatmap). sigma_px (image px) overrides sigma_deg and is required without px_per_deg.
    Raises ValueError on an impossible size, grid, window or sigma, or a grid or window with a published recipe.
    """
    _check_size(image_size)
    _check_dtype(dtype)
    if recipe == "integral":
        maps = render_batch(
            fixations,
            fixations.duration_s[None],
            image_size,
            grid,
            window,
            flip_x=flip_x,
            flip_y=flip_y,
            sigma_deg=sigma_deg,
            sigma_px=sigma_px,
            dtype=dtype,
        )
        return maps[0]
    if grid is not None or window is not None:
        raise ValueError(
            f"recipe {recipe!r} is the published full-resolution map and takes no grid or window; "
            "use recipe='integral' for those"
        )
    if recipe == "reflacx":
        density = _reflacx_density(fixations, image_size, sigma_deg, sigma_px)
    elif recipe == "egd":
        density = _egd_density(fixations, image_size, sigma_px)
    else:
        raise ValueError(f"recipe {recipe!r} is unknown; choose 'integral', 'reflacx' or 'egd'")
    return np.ascontiguousarray(_flip(density, flip_x, flip_y), dtype=dtype)


def render_batch(  # noqa: PLR0913 - the public signature
    fixations: Fixations,
    weights: npt.ArrayLike,
    image_size: Size,
    grid: Grid | None = None,
    window: Rectangle | None = None,
    *,
    flip_x: bool = False,
    flip_y: bool = False,
    sigma_deg: float = 1.0,
    sigma_px: float | None = None,
    dtype: npt.DTypeLike = "float32",
) -> FloatMap:
    """Render maps (S, rows, cols) of the same fixations under S weightings (S, n), in one matrix product.

    Each row of `weights` (seconds, not negative) is one map, such as one sentence's overlap with each fixation
    (gazeprep.sentence_weights). Other arguments, units and errors are those of `render`.
    """
    _check_size(image_size)
    _check_dtype(dtype)
    window = (0.0, 0.0, float(image_size[0]), float(image_size[1])) if window is None else window
    rows, cols = _grid_of(window) if grid is None else _checked_grid(grid)
    weight = np.asarray(weights, dtype=np.float64)
    if weight.ndim != 2 or weight.shape[1] != len(fixations):
        raise ValueError(f"weights have shape {weight.shape}, expected (maps, {len(fixations)})")
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    sigma_x, sigma_y = _sigmas(fixations, sigma_deg, sigma_px)
    left, top, right, bottom = _checked_window(window)
    shown = _shown_on_image(fixations, image_size)
    factors = _Factors(
        rows=cell_mass(fixations.y_px, sigma_y, np.linspace(top, bottom, rows + 1), shown[:, 1], shown[:, 3]),
        cols=cell_mass(fixations.x_px, sigma_x, np.linspace(left, right, cols + 1), shown[:, 0], shown[:, 2]),
    )
    return np.ascontiguousarray(_flip(_normalised_product(factors, weight, dtype), flip_x, flip_y))


def cell_mass(
    centre: FloatArray, sigma: FloatArray, edges: FloatArray, shown_low: FloatArray, shown_high: FloatArray
) -> FloatArray:
    """Mass (n, cells) of n one-dimensional Gaussians between neighbouring edges (cells + 1,), cut to what was shown.

    centre (n,) in point coordinates, edges and shown in edge coordinates, sigma (n,), all px.
    """
    z = np.clip(edges[None], shown_low[:, None], np.maximum(shown_low, shown_high)[:, None])
    z -= 0.5 + centre[:, None]
    z /= sigma[:, None]
    # The tail beyond |z|, never 1 - tiny, so that a far fixation keeps its mass on either side alike. Above the
    # mean the tail counts negative: then the mass is a plain difference, plus 1 in the cell that holds the mean.
    tail = np.abs(z)
    ndtr(np.negative(tail, out=tail), out=tail)
    above = z >= 0
    np.negative(tail, out=tail, where=above)
    mass: FloatArray = np.diff(tail, axis=1)
    mass[above[:, 1:] & ~above[:, :-1]] += 1.0
    return mass


def _normalised_product(factors: _Factors, weight: FloatArray, dtype: npt.DTypeLike) -> FloatMap:
    mass = weight @ (factors.rows.sum(axis=1) * factors.cols.sum(axis=1))
    total = weight.sum(axis=1)
    has_mass = (mass > 0) & (mass >= MINIMAL_MASS * total)
    scaled = np.where(has_mass[:, None], weight / np.where(has_mass, mass, 1.0)[:, None], 0.0)
    (maps, n), (rows, cols) = weight.shape, (factors.rows.shape[1], factors.cols.shape[1])
    stacked = (scaled[:, None, :] * factors.rows.T[None]).reshape(maps * rows, n)
    made = _precise(stacked, dtype) @ _precise(factors.cols, dtype)
    return made.reshape(maps, rows, cols).astype(dtype, copy=False)


def _precise(factor: FloatArray, dtype: npt.DTypeLike) -> FloatMap:
    """Return a factor in the precision that the product needs: a float32 map takes half the time in float32."""
    if np.dtype(dtype).itemsize > np.dtype(np.float32).itemsize:
        return factor
    # Factors whose products would be subnormal, and slow, are far below the last digit of any cell.
    return np.where(factor < SMALLEST_FACTOR, 0.0, factor).astype(np.float32)


def _reflacx_density(fixations: Fixations, image_size: Size, sigma_deg: float, sigma_px: float | None) -> FloatArray:
    """Sum the densities at pixel centres inside each shown rectangle, its edges rounded half to even."""
    width, height = image_size
    sigma_x, sigma_y = _sigmas(fixations, sigma_deg, sigma_px)
    shown = np.round(_shown_on_image(fixations, image_size))
    rows = _density(fixations.y_px, sigma_y, height, shown[:, 1], shown[:, 3])
    cols = _density(fixations.x_px, sigma_x, width, shown[:, 0], shown[:, 2])
    # The unnormalised Gaussians share no factor 1 / (sigma_x sigma_y): it belongs to the weight.
    weight = fixations.duration_s / (sigma_x * sigma_y)
    return _divided_by_sum((rows * weight[:, None]).T @ cols, weight.sum())


def _density(centre: FloatArray, sigma: FloatArray, length: int, low: FloatArray, high: FloatArray) -> FloatArray:
    pixel = np.arange(length, dtype=np.float64)[None]
    inside = (pixel >= low[:, None]) & (pixel < high[:, None])
    z = np.clip((pixel - centre[:, None]) / sigma[:, None], -FARTHEST, FARTHEST)
    return np.where(inside, np.exp(-0.5 * z**2), 0.0)


def _egd_density(fixations: Fixations, image_size: Size, sigma_px: float | None) -> FloatArray:
    """Count the fixations per pixel and filter as scipy does by default (reflected edge, cut at 4 sigma)."""
    if sigma_px is None:
        raise ValueError("recipe 'egd' needs sigma_px; the EGD-CXR authors used 150 image px")
    _check_sigma(sigma_px, "sigma_px")
    width, height = image_size
    col, row = np.rint(fixations.x_px).astype(np.int64), np.rint(fixations.y_px).astype(np.int64)
    inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)
    counts = np.zeros((height, width))
    np.add.at(counts, (row[inside], col[inside]), 1.0)
    return _divided_by_sum(gaussian_filter(counts, sigma_px), float(inside.sum()))


def _divided_by_sum(density: FloatArray, total_weight: float) -> FloatArray:
    mass = density.sum()
    return density / mass if mass > 0 and mass >= MINIMAL_MASS * total_weight else np.zeros_like(density)


def _flip(values: FloatMap, flip_x: bool, flip_y: bool) -> FloatMap:
    """Mirror the last axis (x) and the one before it (y)."""
    values = values[..., ::-1] if flip_x else values
    return values[..., ::-1, :] if flip_y else values


def _sigmas(fixations: Fixations, sigma_deg: float, sigma_px: float | None) -> tuple[FloatArray, FloatArray]:
    """Gaussian widths in image px along x and y, each (n,)."""
    if sigma_px is not None:
        _check_sigma(sigma_px, "sigma_px")
        constant = np.full(len(fixations), float(sigma_px))
        return constant, constant
    _check_sigma(sigma_deg, "sigma_deg")
    if len(fixations) == 0:
        return np.zeros(0), np.zeros(0)
    if fixations.px_per_deg_x is None or fixations.px_per_deg_y is None:
        raise ValueError(
            "these fixations have no px_per_deg, so sigma in degrees has no size in pixels; "
            "pass sigma_px (image px), or make Fixations with px_per_deg_x and px_per_deg_y"
        )
    return sigma_deg * fixations.px_per_deg_x, sigma_deg * fixations.px_per_deg_y


def _shown_on_image(fixations: Fixations, image_size: Size) -> FloatArray:
    """Intersect the shown rectangles (n, 4) with the image: outside it there is nothing to look at."""
    width, height = image_size
    whole = np.array([0.0, 0.0, width, height])
    if fixations.shown is None:
        return np.tile(whole, (len(fixations), 1))
    return np.clip(fixations.shown, 0.0, whole[[2, 3, 2, 3]])


def _check_size(image_size: Size) -> None:
    if not _are_counts(image_size):
        raise ValueError(f"image_size is {image_size}, expected (width, height) in whole pixels, at least 1")


def _are_counts(pair: Any) -> bool:
    """Tell whether this is a pair of whole numbers, at least 1."""
    return np.shape(pair) == (2,) and all(np.isfinite(side) and int(side) == side and side >= 1 for side in pair)


def _check_dtype(dtype: npt.DTypeLike) -> None:
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise ValueError(
            f"dtype is {np.dtype(dtype)}, and a map of probabilities needs a floating one such as 'float32'"
        )


def _check_sigma(sigma: float, name: str) -> None:
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"{name} is {sigma}, must be positive")


def _checked_grid(grid: Grid) -> Grid:
    if not _are_counts(grid):
        raise ValueError(f"grid is {grid}, expected (rows, cols), both at least 1")
    return int(grid[0]), int(grid[1])


def _checked_window(window: Rectangle) -> Rectangle:
    left, top, right, bottom = window
    if not (np.isfinite(window).all() and left < right and top < bottom):
        raise ValueError(f"window is {tuple(window)}, expected (left, top, right, bottom) with a positive area")
    return window


def _grid_of(window: Rectangle) -> Grid:
    """One cell per image pixel; a window of a fractional size has the nearest whole number of cells."""
    left, top, right, bottom = _checked_window(window)
    return max(1, round(bottom - top)), max(1, round(right - left))
