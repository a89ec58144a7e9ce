"""Maps against formulas of another form: erf by quadrature, the published recipes, crops of the full map."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from gazeprep import Fixations, load_fixations, render, render_batch

WIDTH, HEIGHT = 64, 48
SIZE = (WIDTH, HEIGHT)

coordinate = st.floats(-40, 120, allow_nan=False)
edge = st.integers(-20, 100)


@st.composite
def readings(draw: st.DrawFn) -> Fixations:
    n = draw(st.integers(1, 5))
    column = lambda values: draw(st.lists(values, min_size=n, max_size=n))  # noqa: E731
    start = np.array(column(st.floats(0, 10)))
    corners = np.array(column(st.tuples(edge, edge, st.integers(1, 90), st.integers(1, 90))), dtype=float)
    corners[:, 2:] += corners[:, :2]
    return Fixations(
        column(coordinate),
        column(coordinate),
        start,
        start + np.array(column(st.floats(0, 2))),
        px_per_deg_x=column(st.floats(1, 30)),
        px_per_deg_y=column(st.floats(1, 30)),
        shown=corners if draw(st.booleans()) else None,
    )


def one(x: float, y: float, *, sigma: float = 5.0, shown: list[float] | None = None) -> Fixations:
    return Fixations(
        [x], [y], [0.0], [1.0], px_per_deg_x=[sigma], px_per_deg_y=[sigma], shown=None if shown is None else [shown]
    )


def test_reflacx_recipe_equals_the_published_numbers(shared):
    fixations = load_fixations(shared / "parity" / "reflacx_fixations.csv", format="reflacx")
    with np.load(shared / "parity" / "reflacx_map.npz", allow_pickle=False) as published:
        heatmap = published["heatmap"]
        size = (int(published["image_size_x"]), int(published["image_size_y"]))
    made = render(fixations, size, recipe="reflacx")
    assert made.dtype == np.float32
    assert np.abs(made - heatmap).max() <= 1e-6 * heatmap.max()
    # Cell mass against density at centres: close, and only where edges and points are not mixed up.
    assert np.abs(render(fixations, size, dtype="float64") - heatmap).sum() < 0.003


def test_egd_recipe_equals_the_published_numbers(shared):
    with np.load(shared / "parity" / "egd_map.npz", allow_pickle=False) as published:
        x, y, heatmap = published["x"], published["y"], published["heatmap"]
        size, sigma = (int(published["image_size_x"]), int(published["image_size_y"])), float(published["sigma"])
    made = render(Fixations(x, y, np.zeros(len(x)), np.ones(len(x))), size, recipe="egd", sigma_px=sigma)
    expected = heatmap / heatmap.sum()
    assert np.abs(made - expected).max() <= 1e-6 * expected.max()


def test_reflacx_recipe_equals_scipys_normal_per_fixation():
    rng = np.random.default_rng(0)
    x, y, duration = rng.uniform(0, WIDTH, 6), rng.uniform(0, HEIGHT, 6), rng.uniform(0.1, 1, 6)
    deg_x, deg_y = rng.uniform(3, 9, 6), rng.uniform(3, 9, 6)
    fixations = Fixations(x, y, np.zeros(6), duration, px_per_deg_x=deg_x, px_per_deg_y=deg_y)
    pixels = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1)
    naive = sum(
        duration[i] * multivariate_normal([x[i], y[i]], np.diag([deg_x[i] ** 2, deg_y[i] ** 2])).pdf(pixels)
        for i in range(6)
    )
    np.testing.assert_allclose(
        render(fixations, SIZE, recipe="reflacx", dtype="float64"), naive / naive.sum(), atol=1e-14
    )


def test_integral_equals_midpoint_quadrature_of_the_density():
    fixations = one(20.3, 11.8, sigma=4.0, shown=[10.0, 5.5, 40.0, 30.0])
    fine = 40  # sub-cells per pixel and axis
    centres = (np.arange(WIDTH * fine) + 0.5) / fine  # edge coordinates
    x = np.exp(-0.5 * ((centres - 0.5 - 20.3) / 4.0) ** 2) * ((centres > 10) & (centres < 40))
    centres = (np.arange(HEIGHT * fine) + 0.5) / fine
    y = np.exp(-0.5 * ((centres - 0.5 - 11.8) / 4.0) ** 2) * ((centres > 5.5) & (centres < 30))
    quadrature = np.outer(y.reshape(HEIGHT, fine).sum(axis=1), x.reshape(WIDTH, fine).sum(axis=1))
    made = render(fixations, SIZE, dtype="float64")
    np.testing.assert_allclose(made, quadrature / quadrature.sum(), atol=2e-6)


def test_a_fixation_on_a_pixel_centre_is_symmetric_about_that_pixel():
    made = render(one(20, 10), SIZE, dtype="float64")
    assert np.unravel_index(made.argmax(), made.shape) == (10, 20)
    np.testing.assert_allclose(made[10, 15:20], made[10, 21:26][::-1], rtol=1e-12)


def test_weights_are_durations():
    fixations = Fixations([10, 50], [20, 20], [0, 5], [1, 8], px_per_deg_x=[2, 2], px_per_deg_y=[2, 2])
    made = render(fixations, SIZE, grid=(1, 2), dtype="float64")
    np.testing.assert_allclose(made, [[0.25, 0.75]], atol=1e-9)


def test_nothing_is_drawn_outside_the_shown_rectangle():
    made = render(one(20, 20, shown=[10.0, 15.0, 30.0, 25.0]), SIZE)
    assert made[15:25, 10:30].sum() == pytest.approx(1, abs=1e-6)
    assert made.sum() == pytest.approx(made[15:25, 10:30].sum())


@given(readings())
@settings(max_examples=60, deadline=None)
def test_integral_sums_to_one_or_is_all_zero(fixations):
    made = render(fixations, SIZE)
    assert np.isfinite(made).all()
    assert (made >= 0).all()
    assert made.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6) or not made.any()


@given(readings(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_refining_a_grid_and_summing_back_equals_the_coarse_grid(fixations, rows, cols, factor):
    coarse = render(fixations, SIZE, (rows, cols), dtype="float64")
    fine = render(fixations, SIZE, (rows * factor, cols * factor), dtype="float64")
    summed = fine.reshape(rows, factor, cols, factor).sum(axis=(1, 3))
    np.testing.assert_allclose(summed, coarse, atol=1e-12)


@given(readings(), st.integers(0, 40), st.integers(0, 30), st.integers(1, 20), st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_rendering_a_window_equals_cropping_the_full_map(fixations, left, top, width, height):
    full = render(fixations, SIZE, dtype="float64")
    right, bottom = min(left + width, WIDTH), min(top + height, HEIGHT)
    crop = full[top:bottom, left:right]
    made = render(fixations, SIZE, window=(left, top, right, bottom), dtype="float64")
    assume(made.any() and crop.sum() > 1e-6)  # above the mass threshold, and with digits left to compare
    np.testing.assert_allclose(made, crop / crop.sum(), atol=1e-9)


def test_a_window_that_leaves_the_image_has_no_mass_there():
    made = render(one(2, 2), SIZE, grid=(3, 3), window=(-WIDTH, -HEIGHT, 2 * WIDTH, 2 * HEIGHT))
    assert made[1, 1] == pytest.approx(1)
    assert made.sum() == made[1, 1]


def test_a_fractional_window_shares_the_cells_it_cuts():
    whole = render(one(20, 10), SIZE, grid=(1, 4), window=(16, 0, 24, HEIGHT), dtype="float64")
    halves = render(one(20, 10), SIZE, grid=(1, 16), window=(16, 0, 24, HEIGHT), dtype="float64")
    shifted = render(one(20, 10), SIZE, grid=(1, 15), window=(16.5, 0, 24, HEIGHT), dtype="float64")
    np.testing.assert_allclose(halves.reshape(4, 4).sum(axis=1), whole[0], atol=1e-12)
    np.testing.assert_allclose(shifted[0], halves[0, 1:] / halves[0, 1:].sum(), atol=1e-12)


@given(readings(), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_flips_commute_with_rendering(fixations, flip_x, flip_y):
    window = (5.5, -3.0, 60.25, 40.0)
    plain = render(fixations, SIZE, (7, 9), window, dtype="float64")
    flipped = render(fixations, SIZE, (7, 9), window, flip_x=flip_x, flip_y=flip_y, dtype="float64")
    expected = plain[:, ::-1] if flip_x else plain
    np.testing.assert_array_equal(flipped, expected[::-1] if flip_y else expected)


@pytest.mark.parametrize("recipe", ["integral", "reflacx"])
@pytest.mark.parametrize("point", [(-3000, 20), (3000, 20), (20, -3000), (20, 3000)])
def test_a_far_fixation_gives_an_all_zero_map_on_every_side(recipe, point):
    assert not render(one(*point), SIZE, recipe=recipe).any()


@pytest.mark.parametrize("distance", [20, 25, 28])
def test_a_fixation_off_the_image_renders_alike_on_either_side(distance):
    left = render(one(-distance - 1, 20), SIZE, dtype="float64")
    right = render(one(WIDTH + distance, 20), SIZE, dtype="float64")
    np.testing.assert_allclose(left, right[:, ::-1], rtol=1e-9, atol=1e-15)
    assert left.sum() == pytest.approx(1)


def test_no_fixations_and_zero_durations_give_an_all_zero_map():
    assert not render(Fixations.empty(), SIZE).any()
    assert not render(Fixations.empty(), SIZE, recipe="reflacx").any()
    assert not render(Fixations.empty(), SIZE, recipe="egd", sigma_px=3).any()
    assert not render(Fixations([1], [1], [2], [2]), SIZE, sigma_px=3).any()


def test_egd_recipe_reflects_at_the_border_and_ignores_duration():
    fixations = Fixations([0, 40], [20, 20], [0, 0], [1, 9])
    made = render(fixations, SIZE, recipe="egd", sigma_px=2.0, dtype="float64")
    assert made[:, :20].sum() == pytest.approx(0.5)


def test_a_fractional_window_without_a_grid_has_the_nearest_number_of_cells():
    window = (0.25, 1.5, 20.0, 11.0)
    made = render(one(9, 5), SIZE, window=window)
    assert made.shape == (10, 20)
    np.testing.assert_array_equal(made, render(one(9, 5), SIZE, grid=(10, 20), window=window))


@pytest.mark.parametrize("recipe", ["integral", "reflacx"])
def test_absurd_positions_stay_finite(recipe):
    assert not render(one(1e300, -1e300), SIZE, recipe=recipe).any()


def test_sigma_px_overrides_degrees_and_is_required_without_them():
    fixations = one(20, 10, sigma=5.0)
    bare = Fixations([20], [10], [0], [1])
    np.testing.assert_allclose(render(fixations, SIZE, sigma_px=7.0), render(bare, SIZE, sigma_px=7.0))
    np.testing.assert_allclose(render(fixations, SIZE, sigma_deg=2.0), render(bare, SIZE, sigma_px=10.0))
    with pytest.raises(ValueError, match="pass sigma_px"):
        render(bare, SIZE)


def test_batched_maps_equal_single_ones():
    rng = np.random.default_rng(1)
    n = 12
    fixations = Fixations(
        rng.uniform(0, WIDTH, n), rng.uniform(0, HEIGHT, n), np.zeros(n), rng.uniform(0.1, 1, n),
        px_per_deg_x=np.full(n, 4.0), px_per_deg_y=np.full(n, 5.0),
    )  # fmt: skip
    weights = rng.uniform(0, 1, (3, n)) * (rng.uniform(size=(3, n)) < 0.5)
    weights[1] = 0
    maps = render_batch(fixations, weights, SIZE, (6, 8), dtype="float64")
    assert not maps[1].any()
    for row, made in zip(weights, maps, strict=True):
        single = Fixations(
            fixations.x_px, fixations.y_px, np.zeros(n), row,
            px_per_deg_x=fixations.px_per_deg_x, px_per_deg_y=fixations.px_per_deg_y,
        )  # fmt: skip
        np.testing.assert_allclose(made, render(single, SIZE, (6, 8), dtype="float64"), atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (0, 5)}, r"image_size is \(0, 5\)"),
        ({"grid": (0, 5)}, "grid is"),
        ({"window": (5, 5, 5, 9)}, "positive area"),
        ({"grid": 37}, "grid is 37"),
        ({"dtype": "int32"}, "dtype is int32"),
        ({"sigma_px": 0.0}, "sigma_px is 0.0"),
        ({"sigma_deg": float("nan")}, "sigma_deg is nan"),
        ({"recipe": "reflacx", "grid": (3, 3)}, "takes no grid or window"),
        ({"recipe": "egd", "window": (0, 0, 5, 5), "sigma_px": 2}, "takes no grid or window"),
        ({"recipe": "egd"}, "needs sigma_px"),
        ({"recipe": "gauss"}, "is unknown"),
    ],
)
def test_bad_arguments_say_what_and_how_to_cure(arguments, message):
    with pytest.raises(ValueError, match=message):
        render(one(3, 3), **{"image_size": SIZE, **arguments})


def test_batch_refuses_weights_that_do_not_fit():
    with pytest.raises(ValueError, match=r"weights have shape \(1, 2\)"):
        render_batch(one(3, 3), [[1, 2]], SIZE)
    with pytest.raises(ValueError, match="not negative"):
        render_batch(one(3, 3), [[-1]], SIZE)
