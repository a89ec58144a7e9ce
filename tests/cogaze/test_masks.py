"""Run lengths and boxes to masks, on cases that one sees."""

import numpy as np
import pytest

from cogaze.evaluate.masks import mask_of_boxes, mask_of_runs, runs_of_mask


def test_runs_are_relative_and_go_down_the_columns():
    expected = """
        ....
        .##.
        .#..
    """
    assert drawn(mask_of_runs(["4 2 1 1"], 4, 3)) == expected.split()


def drawn(mask):
    return ["".join(".#"[int(pixel)] for pixel in row) for row in mask]


def test_several_rows_of_an_image_are_joined():
    assert drawn(mask_of_runs(["4 2 1 1", "0 2", "5 1"], 4, 3)) == ["#...", "###.", ".#.."]


def test_runs_and_masks_are_inverse():
    random = np.random.default_rng(0)
    for width, height in [(1, 1), (7, 3), (3, 7), (16, 16)]:
        mask = random.random((height, width)) < 0.4
        assert runs_of_mask(mask) == walked(mask)
        np.testing.assert_array_equal(mask_of_runs([walked(mask)], width, height), mask)


def walked(mask):
    """Encode by walking over every pixel, column by column."""
    values, gap, length = [], 0, 0
    for pixel in [*mask.T.reshape(-1), False]:
        if pixel:
            length += 1
        elif length:
            values += [gap, length]
            gap, length = 1, 0
        else:
            gap += 1
    return " ".join(map(str, values))


def test_no_runs_are_an_empty_mask():
    assert mask_of_runs([], 4, 3).shape == (3, 4)
    assert not mask_of_runs([], 4, 3).any()
    assert runs_of_mask(np.zeros((3, 4), dtype=bool)) == ""


BAD = {
    "none": ("-1", "not pairs of whole numbers"),
    "odd": ("4 2 1", "3 values are not pairs"),
    "words": ("4 two", "not pairs of whole numbers"),
    "beyond": ("4 2 6 1", "a run from pixel 12 of length 1 is not within 12 pixels"),
    "empty run": ("4 0", "of length 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_mask_of_this_image_is_refused(name):
    text, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        mask_of_runs([text], 4, 3)


def test_boxes_are_joined_rounded_and_half_open():
    assert drawn(mask_of_boxes([(0.6, 0.0, 2.4, 1.0), (3.0, 1.4, 9.0, 7.0)], 4, 3)) == [".#..", "...#", "...#"]


def test_boxes_are_cut_at_every_side():
    assert mask_of_boxes([(-2.0, -3.0, 9.0, 8.0)], 4, 3).all()
    assert not mask_of_boxes([(-5.0, -5.0, -1.0, -1.0), (6.0, 0.0, 9.0, 3.0)], 4, 3).any()


@pytest.mark.parametrize("box", [(2.0, 0.0, 1.0, 1.0), (0.0, 1.0, 1.0, 1.0), (float("nan"), 0.0, 1.0, 1.0)])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(ValueError, match="has no area"):
        mask_of_boxes([box], 4, 3)
