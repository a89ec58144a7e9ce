"""Map rendering against the published recipe written naively: one scipy normal per fixation on the full image.

python benchmarks/maps.py
"""

import os

import numpy as np
from scipy.stats import multivariate_normal
from timing import seconds

from gazeprep import Fixations, render

SIZE = (2544, 3056)
FIXATIONS = 100
REPEATS = {"full resolution": 7, "224 x 224": 50, "37 x 37": 200}
GRIDS = {"full resolution": None, "224 x 224": (224, 224), "37 x 37": (37, 37)}
NAIVE_FIXATIONS = 4  # timed; each of the others costs the same


def reading() -> Fixations:
    """Return invented fixations spread over the image, at the resolution of a full view."""
    rng = np.random.default_rng(0)
    degrees = np.full(FIXATIONS, 133.0)
    return Fixations(
        rng.uniform(0, SIZE[0], FIXATIONS),
        rng.uniform(0, SIZE[1], FIXATIONS),
        np.zeros(FIXATIONS),
        rng.uniform(0.1, 1.0, FIXATIONS),
        px_per_deg_x=degrees,
        px_per_deg_y=degrees,
    )


def naive(fixations: Fixations) -> np.ndarray:
    """Render the published recipe as it is usually written."""
    pixels = np.stack(np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1])), axis=-1)
    total = np.zeros(SIZE[::-1])
    for x, y, duration in zip(fixations.x_px, fixations.y_px, fixations.duration_s, strict=True):
        total += duration * multivariate_normal([x, y], np.diag([133.0**2, 133.0**2])).pdf(pixels)
    return total / total.sum()


def main() -> None:
    """Time both in one run and print ratios."""
    fixations = reading()
    few = fixations.take(slice(NAIVE_FIXATIONS))
    difference = np.abs(render(few, SIZE, recipe="reflacx", dtype="float64") - naive(few)).max()
    naive_s = seconds(lambda: naive(few), 1) * FIXATIONS / NAIVE_FIXATIONS
    print(f"{FIXATIONS} fixations, {SIZE[0]} x {SIZE[1]} px, {os.cpu_count()} cores")
    print(f"naive: {naive_s:.1f} s (from {NAIVE_FIXATIONS} fixations); the reflacx recipe differs by {difference:.1e}")
    for name, repeats in REPEATS.items():
        own_s = seconds(lambda grid=GRIDS[name]: render(fixations, SIZE, grid), repeats)
        print(f"{name:16} {own_s * 1e3:8.2f} ms   {naive_s / own_s:10,.0f} x")


if __name__ == "__main__":
    main()
