"""The Fixations record, filters that mark, clipping: scanpaths whose answer one can see."""

import pickle

import numpy as np
import pytest

from gazeprep import Fixations, InputError, load_fixations
from gazeprep.fixations import Filters, degrees_outside_shown, mark_fixations, on_image, overlap_s

SIZE = (100, 80)


def test_overlapping_off_image_and_zero_length_fixations_are_legal():
    fixations = Fixations([-50, 200, 5], [3, -9, 5], [0, 0.5, 1], [1, 1, 1])
    assert len(fixations) == 3
    np.testing.assert_array_equal(fixations.duration_s, [1, 0.5, 0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1, np.nan], [1, 1], [0, 0], [1, 1]), r"x_px\[1\] is nan; drop rows"),
        (([1], [np.inf], [0], [1]), r"y_px\[0\] is inf"),
        (([1], [1], [2], [1]), r"fixation 0 ends before it starts \(2.0 s to 1.0 s\)"),
        (([1, 2], [1], [0, 0], [1, 1]), r"y_px has shape \(1,\), expected \(2,\)"),
        ((["a"], [1], [0], [1]), "x_px holds a value that is not a number"),
        (([[1]], [1], [0], [1]), r"x_px has shape \(1, 1\)"),
    ],
)
def test_bad_columns_are_errors_with_the_value(columns, message):
    with pytest.raises(ValueError, match=message):
        Fixations(*columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"px_per_deg_x": [30]}, "give both"),
        ({"px_per_deg_x": [0], "px_per_deg_y": [30]}, r"px_per_deg_x\[0\] is 0.0, must be positive"),
        ({"shown": [[5, 0, 4, 9]]}, r"shown\[0\] is .* not a rectangle"),
        ({"shown": [[5, 0, 4]]}, r"shown has shape \(1, 3\)"),
        ({"mark": ["a", "b"]}, "mark has shape"),
    ],
)
def test_bad_options_are_errors_with_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        Fixations([1], [1], [0], [1], **options)


def test_errors_cross_process_borders_with_their_reason():
    error = pickle.loads(pickle.dumps(InputError("bad_number", "row 3 is bad")))
    assert (error.reason, str(error)) == ("bad_number", "row 3 is bad")


def test_take_keeps_every_column_together():
    fixations = Fixations(
        [1, 2], [3, 4], [0, 1], [1, 2], px_per_deg_x=[5, 6], px_per_deg_y=[7, 8], shown=[[0, 0, 1, 1], [0, 0, 2, 2]]
    )
    second = fixations.take([False, True])
    assert (second.x_px[0], second.px_per_deg_y[0], second.shown[0, 2], second.mark[0]) == (2, 8, 2, "")
    assert len(fixations.take(slice(0, 1))) == 1
    assert len(fixations.take([])) == 0


def test_on_image_counts_whole_pixels():
    fixations = Fixations([-0.6, -0.5, 99.4, 99.5], [0, 0, 0, 0], [0] * 4, [1] * 4)
    np.testing.assert_array_equal(on_image(fixations, SIZE), [False, True, True, False])


def test_overlap_is_the_part_inside_the_time_window():
    fixations = Fixations([0] * 5, [0] * 5, [0, 1, 2.5, 4, 2], [1, 2, 6, 5, 3])
    np.testing.assert_allclose(overlap_s(fixations, 1.5, 3.0), [0, 0.5, 0.5, 0, 1])


def scene() -> Fixations:
    """On the image, left of it by 20 px (2 degrees), short, on the buttons."""
    return Fixations(
        [50, -20.5, 50, -60],
        [40, 40, 40, 40],
        [0, 1, 2, 3],
        [1, 2, 2.05, 4],
        px_per_deg_x=[10] * 4,
        px_per_deg_y=[10] * 4,
        shown=[[0, 0, 100, 80]] * 4,
        screen=[[600, 200, 800, 360]] * 4,
    )


def test_no_filter_is_on_by_default():
    assert mark_fixations(scene(), Filters(), SIZE).kept.all()


@pytest.mark.parametrize(
    ("filters", "marks"),
    [
        (Filters(off_image=True), ["", "off_image", "", "off_image"]),
        (Filters(min_duration_s=0.1), ["", "", "too_short", ""]),
        (Filters(outside_shown_deg=2.5), ["", "", "", "outside_shown"]),
        (Filters(outside_shown_deg=1.5), ["", "outside_shown", "", "outside_shown"]),
        (Filters(buttons_px=(470, 270, 490, 300)), ["", "", "", "buttons"]),
        (Filters(buttons_px=(470, 270, 490, 300), buttons_margin_px=80), ["", "buttons", "", "buttons"]),
    ],
)
def test_each_filter_marks_with_its_reason_and_deletes_nothing(filters, marks):
    marked = mark_fixations(scene(), filters, SIZE)
    assert len(marked) == 4
    assert list(marked.mark) == marks


def test_the_first_reason_stays():
    filters = Filters(off_image=True, outside_shown_deg=0.5, min_duration_s=0.1)
    assert list(mark_fixations(scene(), filters, SIZE).mark) == ["", "off_image", "too_short", "off_image"]


def test_degrees_outside_are_per_axis():
    fixations = Fixations([-20.5], [-30.5], [0], [1], px_per_deg_x=[10], px_per_deg_y=[10])
    np.testing.assert_allclose(degrees_outside_shown(fixations, SIZE), [np.hypot(2, 3)])


def test_a_fixation_on_the_shown_part_is_never_on_the_buttons():
    whole_screen = Filters(buttons_px=(0, 0, 1000, 1000))
    assert list(mark_fixations(scene(), whole_screen, SIZE).mark) == ["", "buttons", "", "buttons"]


def test_filters_keep_what_a_recording_has_the_columns_for():
    bare = Fixations([1], [1], [0], [1])
    asked = Filters(off_image=True, outside_shown_deg=1, buttons_px=(0, 0, 1, 1))
    assert asked.applicable_to(bare) == Filters(off_image=True)
    assert asked.applicable_to(scene()) == asked


@pytest.mark.parametrize(
    "options", [{"min_duration_s": -1}, {"outside_shown_deg": float("nan")}, {"buttons_px": (5, 0, 1, 9)}]
)
def test_impossible_filters_are_refused(options):
    with pytest.raises(ValueError, match=f"filters.{next(iter(options))} is"):
        Filters(**options)


def test_filters_say_what_they_miss():
    bare = Fixations([1], [1], [0], [1])
    with pytest.raises(ValueError, match="needs px_per_deg"):
        mark_fixations(bare, Filters(outside_shown_deg=1), SIZE)
    with pytest.raises(ValueError, match="needs the screen rectangles"):
        mark_fixations(bare, Filters(buttons_px=(0, 0, 1, 1)), SIZE)


def test_one_resolution_serves_all_fixations():
    fixations = Fixations([1, 2], [1, 2], [0, 1], [1, 2], px_per_deg_x=30, px_per_deg_y=40.0)
    np.testing.assert_array_equal(fixations.px_per_deg_y, [40, 40])


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("egd", {}, "takes the options dicom_id and needs dicom_id; given: none"),
        ("reflacx", {"frame": 1}, "takes the options none; given: frame"),
        ("table", {"frame": "screen_px"}, "frame is 'screen_px'; give a gazeprep.Frame"),
        ("csv", {}, "format 'csv' is unknown"),
    ],
)
def test_wrong_options_of_load_fixations_are_named(tmp_path, format, options, message):
    with pytest.raises(ValueError, match=message):
        load_fixations(tmp_path / "fixations.csv", format, **options)
