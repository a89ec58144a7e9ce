"""Scanpath comparison: paths whose answer one sees, every alignment tried, multimatch-gaze's figures."""

from dataclasses import astuple
from functools import cache

import multimatch_gaze
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazeprep.scanpaths import multimatch
from gazeprep.schema import Fixations

SIZE = (300, 400)  # its diagonal is 500 px

points = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 400), st.integers(0, 5)), min_size=3, max_size=7)


def path(places):
    x, y, duration_s = np.array(places, dtype=float).T
    return Fixations(x, y, np.zeros(len(x)), duration_s)


SQUARE = path([(0, 0, 1), (100, 0, 1), (100, 100, 1), (0, 100, 1)])


def test_a_path_is_like_itself():
    assert astuple(multimatch(SQUARE, SQUARE, SIZE)) == (1, 1, 1, 1, 1)


def test_a_path_moved_differs_in_position_alone():
    moved = path([(x + 30, y + 40, 1) for x, y in [(0, 0), (100, 0), (100, 100), (0, 100)]])
    assert astuple(multimatch(SQUARE, moved, SIZE)) == pytest.approx((1, 1, 1, 1 - 50 / 500, 1))


def test_a_path_half_as_long_each_differs_in_duration_alone():
    hasty = path([(0, 0, 0.5), (100, 0, 0.5), (100, 100, 0.5), (0, 100, 0.5)])
    assert astuple(multimatch(SQUARE, hasty, SIZE)) == pytest.approx((1, 1, 1, 1, 0.5))


def test_a_path_turned_about_differs_in_direction_and_shape():
    line, back = path([(0, 0, 1), (100, 0, 1), (200, 0, 1)]), path([(200, 0, 1), (100, 0, 1), (0, 0, 1)])
    found = multimatch(line, back, SIZE)
    assert (found.direction, found.length) == (0, 1)
    assert found.shape == pytest.approx(1 - 200 / 1000)


def test_directions_either_side_of_straight_left_are_near():
    up, down = path([(200, 0, 1), (100, 1, 1), (0, 2, 1)]), path([(200, 2, 1), (100, 1, 1), (0, 0, 1)])
    assert multimatch(up, down, SIZE).direction == pytest.approx(1 - 2 * np.arctan(1 / 100) / np.pi)


def test_a_saccade_more_is_aligned_with_its_neighbour():
    longer = path([(0, 0, 1), (100, 0, 1), (100, 100, 1), (0, 100, 1), (0, 99, 1)])
    assert astuple(multimatch(SQUARE, longer, SIZE))[:4] == pytest.approx((1, 1, 1, 1), abs=0.001)


@pytest.mark.parametrize("few", [0, 2])
def test_a_path_without_two_saccades_is_refused(few):
    with pytest.raises(ValueError, match=f"has {few} fixations, expected at least 3"):
        multimatch(SQUARE, SQUARE.take(slice(few)), SIZE)


@settings(max_examples=30, deadline=None)
@given(points, points)
def test_the_alignment_is_the_cheapest_of_all(first, second):
    one, other = (np.diff(np.array(places)[:, :2], axis=0) for places in (first, second))

    @cache
    def ways(i, j):
        """Cost of every way to (i, j) and the cells on it."""
        cost = float(np.hypot(*(one[i] - other[j])))
        if i == j == 0:
            return [(cost, ((0, 0),))]
        before = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        return [(sofar + cost, (*cells, (i, j))) for cell in before if min(cell) >= 0 for sofar, cells in ways(*cell)]

    every = ways(len(one) - 1, len(other) - 1)
    least = min(cost for cost, _ in every)
    shapes = [
        1 - np.median([np.hypot(*(one[i] - other[j])) for i, j in cells]) / 1000
        for cost, cells in every
        if cost < least + 1e-9  # several may be equally cheap
    ]
    found = multimatch(path(first), path(second), SIZE)
    assert min(abs(found.shape - shape) for shape in shapes) < 1e-9
    assert all(0 <= one <= 1 for one in astuple(found))


STEP = np.arange(30)
WINDING = path(np.stack([(37 * STEP + STEP**2) % 300, (53 * STEP + 3 * STEP**2) % 400, 1 + STEP % 7], axis=1))
WANDERING = path(np.stack([(61 * STEP + 2 * STEP**2) % 300, (29 * STEP + STEP**2) % 400, 1 + STEP % 5], axis=1)[:23])


def test_the_figures_are_those_of_multimatch_gaze():
    columns = ("start_x", "start_y", "duration")
    records = [np.rec.fromarrays([one.x_px, one.y_px, one.duration_s], names=columns) for one in (WINDING, WANDERING)]
    expected = multimatch_gaze.docomparison(*records, list(SIZE))
    assert astuple(multimatch(WINDING, WANDERING, SIZE)) == pytest.approx(tuple(map(float, expected)), rel=1e-9)
