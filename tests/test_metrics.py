"""Agreement metrics: small cases by hand, other formulas, pysaliency's figures, real fixations."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter
from scipy.stats import pearsonr

from gazeprep.metrics import (
    Hits,
    auc_borji,
    auc_judd,
    auc_shuffled,
    cc,
    hits_of,
    hits_of_map,
    information_gain,
    kl,
    nss,
    on_map,
    sim,
)

RAMP = np.array([[0.0, 1.0], [2.0, 3.0]])  # mean 1.5, standard deviation sqrt(5) / 2
SHAPE = (5, 6)

few = settings(max_examples=25, deadline=None)

values = st.integers(-3, 3).map(float)  # few, so that ties are the rule
maps = arrays(np.float64, SHAPE, elements=values)
densities = arrays(np.float64, SHAPE, elements=st.floats(0, 1, width=32)).filter(lambda one: one.sum() > 1e-3)
cells = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=12)


def hits(places):
    row, col = np.array(places).T
    return Hits(row, col)


# --- points to cells


def test_a_point_on_a_pixel_centre_is_that_pixel_and_half_more_the_next():
    found = hits_of([0, 0.49, 0.5, -0.5], [1, 1, 1, 1.49], shape=(2, 3))
    assert found.row.tolist() == [1, 1, 1, 1]
    assert found.col.tolist() == [0, 0, 1, 0]


def test_a_window_maps_image_pixels_to_cells():
    found = hits_of([9.5, 19.4, 29.4], [20, 20, 39.4], shape=(2, 2), window=(10, 20, 30, 40))
    assert found.row.tolist() == [0, 0, 1]
    assert found.col.tolist() == [0, 0, 1]


@pytest.mark.parametrize("point", [(-0.51, 0), (2.5, 0), (0, -0.51), (0, 1.5)])
def test_points_off_the_map_are_refused_or_left_out_by_name(point):
    x, y = zip(point, (1, 1), strict=True)
    with pytest.raises(ValueError, match="1 of 2 points lie off the map"):
        hits_of(x, y, shape=(2, 3))
    kept = hits_of(x, y, shape=(2, 3), weight=[5, 7], off_map="drop")
    assert (kept.row.tolist(), kept.col.tolist(), kept.weight.tolist()) == ([1], [1], [7])
    assert on_map(x, y, shape=(2, 3)).tolist() == [False, True]


@few
@given(st.integers(1, 50), st.integers(1, 3000))
def test_the_last_point_before_an_edge_is_in_the_last_cell(cells, width):
    edges = np.array([np.nextafter(width, 0), width])
    x = edges - 0.5
    expected = x + 0.5 < width
    assert on_map(x, [0, 0], (1, cells), (0, 0, width, 1)).tolist() == expected.tolist()
    assert hits_of(x, [0, 0], (1, cells), (0, 0, width, 1), off_map="drop").col.tolist() == [cells - 1] * expected.sum()


def test_a_map_is_hits_weighted_by_its_cells():
    found = hits_of_map([[0, 2], [1, 0]])
    assert (found.row.tolist(), found.col.tolist(), found.weight.tolist()) == ([0, 1], [1, 0], [2, 1])
    assert found.share.tolist() == [2 / 3, 1 / 3]


# --- small cases by hand


def test_nss_by_hand():
    assert nss(RAMP, hits([(1, 1)])) == pytest.approx(3 / np.sqrt(5))
    assert nss(RAMP, hits([(1, 1), (0, 0)])) == pytest.approx(0)
    assert nss(RAMP, hits([(1, 1), (1, 1), (0, 0)])) == pytest.approx(1 / np.sqrt(5))  # each of two on a cell counts


def test_auc_by_hand():
    first, last = hits([(0, 1)]), hits([(1, 1)])
    assert auc_judd(RAMP, last) == 1
    assert auc_judd(RAMP, first) == pytest.approx(2 / 3)  # a line from (0, 0) to (2/3, 1)
    assert auc_judd(RAMP, first, thresholds="all") == pytest.approx(1 / 3)  # one of three cells lies below
    assert auc_judd(RAMP, first, negatives="all", thresholds="all") == pytest.approx(1.5 / 4)  # and ties with itself
    assert auc_shuffled(RAMP, last, hits([(1, 1), (0, 0), (0, 0), (0, 1)])) == pytest.approx(3.5 / 4)


def test_borji_by_hand():
    two = np.array([[0.0, 1.0]])
    # Against a 0 the area is 1, against a 1 it is 1/2.
    assert auc_borji(two, hits([(0, 1)]), 0, splits=4000) == pytest.approx(0.75, abs=0.02)
    # Between thresholds 0.1 apart, 0.55 and 0.59 are one value.
    near = np.array([[0.55, 0.59, 0.55, 0.55, 0.0, 1.0]])
    drawn = np.random.default_rng(3).integers(6, size=(50, 1))[:, 0]
    area = np.select([near[0, drawn] == 1, near[0, drawn] == 0], [0.0, 1.0], 0.5)
    assert auc_borji(near, hits([(0, 1)]), 3, splits=50) == pytest.approx(area.mean())


def test_maps_against_maps_by_hand():
    half, quarter = np.array([[1.0, 1.0, 0.0, 0.0]]), np.array([[1.0, 1.0, 1.0, 1.0]])
    assert sim(half, quarter) == sim(quarter, half) == 0.5
    assert kl(quarter, half) == pytest.approx(np.log(2))
    assert kl(half, quarter, epsilon=1e-12) == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.25e12), abs=1e-6)
    assert cc(half, 3 - 2 * half) == pytest.approx(-1)
    assert information_gain(half, quarter, hits([(0, 0), (0, 1)])) == pytest.approx(1)  # one bit
    assert information_gain(half, quarter, hits([(0, 0), (0, 3)]), epsilon=2**-40) == pytest.approx((1 - 38) / 2)


# --- constant, empty, impossible


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.0, 1e300, 5e-324])
def test_a_constant_map_knows_nothing(constant):
    flat = np.full((7, 3), constant)
    seen, others = Hits([0, 6, 6], [1, 2, 2]), Hits([3], [0])
    assert nss(flat, seen) == 0
    assert auc_judd(flat, seen) == auc_judd(flat, seen, negatives="all", thresholds="all") == 0.5
    assert auc_shuffled(flat, seen, others) == auc_borji(flat, seen, 0) == auc_borji(flat, seen, 0, step=None) == 0.5
    ramp = np.arange(21.0).reshape(7, 3)
    assert cc(flat, ramp) == cc(ramp, flat) == cc(flat, flat) == 0


def test_saliency_without_mass_is_uniform_and_a_truth_without_mass_is_refused():
    nothing, uniform = np.zeros((2, 2)), np.ones((2, 2))
    assert sim(nothing, RAMP) == sim(uniform, RAMP)
    assert kl(nothing, RAMP) == kl(uniform, RAMP)
    assert information_gain(nothing, uniform, hits([(0, 1)])) == 0
    for metric in (sim, kl):
        with pytest.raises(ValueError, match="no mass"):
            metric(RAMP, nothing)


@pytest.mark.parametrize("metric", [nss, auc_judd, lambda s, h: auc_borji(s, h, 0), lambda s, h: kl(s, s) + h.share])
def test_no_fixation_is_refused_not_nan(metric):
    with pytest.raises(ValueError, match="no fixation"):
        metric(RAMP, hits_of([], [], (2, 2)))


def test_shuffled_needs_other_images():
    with pytest.raises(ValueError, match="no fixation"):
        auc_shuffled(RAMP, hits([(0, 0)]), hits_of_map(np.zeros((2, 2))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nss([[0, np.nan]], hits([(0, 0)])), "1 cells that are not finite"),
        (lambda: nss(np.zeros(4), hits([(0, 0)])), r"shape \(4,\)"),
        (lambda: nss(np.zeros((0, 2)), hits([(0, 0)])), "at least 1"),
        (lambda: nss(RAMP, hits([(0, 2)])), "off the map"),
        (lambda: cc(RAMP, np.zeros((2, 3))), "one grid"),
        (lambda: sim(RAMP - 1, RAMP), "below 0"),
        (lambda: hits_of_map(RAMP - 1), "below 0"),
        (lambda: kl(RAMP, RAMP, epsilon=-1), "epsilon is -1"),
        (lambda: kl(RAMP, RAMP[::-1], epsilon=0), "infinite"),
        (lambda: information_gain(RAMP, RAMP, hits([(0, 0)]), epsilon=0), "infinite"),
        (lambda: auc_judd(RAMP, hits_of_map(RAMP + 1)), "every cell was looked at"),
        (lambda: auc_borji(RAMP, hits([(0, 0)]), 0, splits=0), "at least 1 split"),
        (lambda: auc_borji(RAMP, hits([(0, 0)]), 0, step=0), "step in"),
        (lambda: hits_of([np.nan], [0], (2, 2)), "not finite"),
        (lambda: hits_of([0, 1], [0], (2, 2)), "expected"),
        (lambda: hits_of([0], [0], (2, 2), window=(0, 0, 0, 2)), "positive area"),
        (lambda: Hits([-1], [0]), "row holds no whole numbers"),
        (lambda: Hits([0], [0.5]), "col holds no whole numbers"),
        (lambda: Hits([0], [0], [0]), "above 0"),
        (lambda: Hits([0], [0], [1, 2]), "shapes"),
    ],
)
def test_what_has_no_answer_is_refused_with_its_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- other formulas


@few
@given(maps, cells, cells)
def test_every_area_is_the_share_of_pairs_in_order(saliency, places, elsewhere):
    def pairs(positive, negative):
        higher = positive[:, None] - negative[None]
        return ((higher > 0) + (higher == 0) / 2).mean()

    at = saliency[tuple(np.array(places).T)]
    free = [saliency[row, col] for row in range(5) for col in range(6) if (row, col) not in places]
    others = saliency[tuple(np.array(elsewhere).T)]
    assert auc_judd(saliency, hits(places), thresholds="all") == pytest.approx(pairs(at, np.array(free)))
    every = auc_judd(saliency, hits(places), negatives="all", thresholds="all")
    assert every == pytest.approx(pairs(at, saliency.ravel()))
    assert auc_shuffled(saliency, hits(places), hits(elsewhere)) == pytest.approx(pairs(at, others))


@few
@given(maps, cells)
def test_judd_is_the_trapezoid_through_the_fixated_values(saliency, places):
    """The loop over thresholds that the MIT code is, for fixations that may share cells."""
    at = saliency[tuple(np.array(places).T)]
    free = np.array([saliency[row, col] for row in range(5) for col in range(6) if (row, col) not in places])
    curve = [(0.0, 0.0)]
    for threshold in sorted(set(at), reverse=True):
        curve.append((float((free >= threshold).mean()), float((at >= threshold).mean())))
    curve.append((1.0, 1.0))
    area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(curve))
    assert auc_judd(saliency, hits(places)) == pytest.approx(area)


def test_borji_counts_at_thresholds_a_step_apart():
    """The MIT code's loop over thresholds 0, 0.1, ... of a map from 0 to 1, for one draw."""
    rng = np.random.default_rng(4)
    saliency, seen = rng.integers(0, 41, (8, 9)) / 40, Hits(rng.integers(8, size=30), rng.integers(9, size=30))
    saliency[0, :2] = 0, 1
    at = saliency[seen.row, seen.col]
    drawn = saliency.ravel()[np.random.default_rng(7).integers(72, size=30)]
    curve = [(0.0, 0.0), (1.0, 1.0)]
    for tenth in range(int(10 * max(at.max(), drawn.max())) + 1):
        level = tenth / 10 - 1e-9
        curve.append((float((drawn > level).mean()), float((at > level).mean())))
    area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(sorted(curve)))
    assert auc_borji(saliency, seen, 7, splits=1) == pytest.approx(area)


def test_borji_is_on_average_the_area_against_all_cells():
    rng = np.random.default_rng(5)
    saliency, seen = rng.random((8, 9)), Hits(rng.integers(8, size=20), rng.integers(9, size=20))
    exact = auc_judd(saliency, seen, negatives="all", thresholds="all")
    assert auc_borji(saliency, seen, 1, splits=3000, step=None) == pytest.approx(exact, abs=0.005)


def test_borji_is_repeatable_from_a_seed_and_goes_on_with_a_generator():
    rng = np.random.default_rng(0)
    first, second = (auc_borji(RAMP, hits([(1, 0)]), rng, splits=20) for _ in range(2))
    assert first != second
    assert auc_borji(RAMP, hits([(1, 0)]), 0, splits=20) == first


@few
@given(maps, maps)
def test_correlation_is_pearson(first, second):
    assume(np.ptp(first) > 0 and np.ptp(second) > 0)
    assert cc(first, second) == pytest.approx(pearsonr(first.ravel(), second.ravel())[0], abs=1e-12)


@few
@given(maps, densities)
def test_two_maps_are_one_map_and_weighted_hits(saliency, gaze):
    """A gaze map in place of fixations: counts are as good as the fixations themselves."""
    counts = np.floor(gaze * 3)
    assume(counts.sum() > 0)
    row, col = np.nonzero(counts)
    times = counts[row, col].astype(int)
    repeated = Hits(np.repeat(row, times), np.repeat(col, times))
    assert nss(saliency, hits_of_map(counts)) == pytest.approx(nss(saliency, repeated), abs=1e-12)
    options = {"negatives": "all"}
    assert auc_judd(saliency, hits_of_map(counts), **options) == pytest.approx(auc_judd(saliency, repeated, **options))
    assert auc_shuffled(saliency, repeated, hits_of_map(counts)) == pytest.approx(
        auc_shuffled(saliency, repeated, repeated)
    )


# --- properties


@few
@given(maps, cells, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_scale_and_offset_of_a_map_do_not_matter(saliency, places, scale, offset):
    other = scale * saliency + offset
    assert nss(other, hits(places)) == pytest.approx(nss(saliency, hits(places)), abs=1e-6)
    assert auc_judd(np.exp(saliency), hits(places)) == auc_judd(saliency, hits(places))
    assert cc(other, saliency) == pytest.approx(float(np.ptp(saliency) > 0), abs=1e-9)


@few
@given(maps, cells)
def test_a_map_turned_over_has_the_other_side_of_the_area(saliency, places):
    area, other = (auc_judd(sign * saliency, hits(places), thresholds="all") for sign in (1, -1))
    assert area + other == pytest.approx(1)
    assert nss(-saliency, hits(places)) == pytest.approx(-nss(saliency, hits(places)), abs=1e-12)


@few
@given(densities, densities)
def test_shared_mass_and_divergence_bound_each_other(first, second):
    shared = sim(first, second)
    assert shared == pytest.approx(sim(second, first))
    assert -1e-12 <= shared <= 1 + 1e-12
    assert sim(first, first) == pytest.approx(1)
    assert kl(first, first) == pytest.approx(0, abs=1e-9)
    assert kl(second, first) >= 2 * (1 - shared) ** 2 - 1e-9  # Pinsker


@few
@given(densities, densities, densities)
def test_gains_add_up(first, second, third):
    first, second, third = first + 0.01, second + 0.01, third + 0.01
    seen = hits_of_map(third)
    whole = information_gain(first, second, seen, epsilon=0)
    assert whole == pytest.approx(-information_gain(second, first, seen, epsilon=0))
    # Looked at as the third map says, a gain is a difference of divergences.
    assert whole * np.log(2) == pytest.approx(kl(second, third, epsilon=0) - kl(first, third, epsilon=0), abs=1e-9)


@few
@given(arrays(np.float64, (3, 4), elements=st.floats(allow_nan=False, allow_infinity=False)), cells)
def test_any_finite_map_has_finite_figures(saliency, places):
    seen = hits([(row % 3, col % 4) for row, col in places])
    figures = [
        nss(saliency, seen),
        auc_judd(saliency, seen, negatives="all"),
        cc(saliency, RAMP.repeat(2, 1)[[0, 1, 1]]),
    ]
    figures += [auc_borji(saliency, seen, 0, splits=3), auc_borji(saliency, seen, 0, splits=3, step=None)]
    mass = np.abs(saliency)
    if mass.any():
        figures += [sim(mass, mass[::-1]), kl(mass, mass[::-1]), information_gain(mass, mass[::-1], seen)]
    assert np.isfinite(figures).all()


# --- pysaliency


def smooth(shift):
    """A map without symmetry or chance in it."""
    row, col = np.mgrid[:12, :15]
    return 1 + np.sin(0.7 * row + shift) * np.cos(0.45 * col * (1 + shift))


PATH = np.arange(25)
X, Y = (7 * PATH + PATH**2) % 15, (5 * PATH + 3 * PATH**2) % 12  # 25 fixations, some in one cell
STEPS = np.round(smooth(0.3), 1)  # with ties

# pysaliency 0.2.22 on numpy 2.4.6: what `pysaliency_figures` below returns. To make them again, in an environment with
# pysaliency==0.2.22, "setuptools<81" and torch: python -m pytest tests/test_metrics.py -k pysaliency_itself
PYSALIENCY = {
    "NSS": -0.21364047730872163,
    "AUC, all cells": 0.4523333333333333,
    "AUC, unfixated": 0.4532926829268293,
    "AUC Judd": 0.4780487804878049,
    "AUC Judd, all cells": 0.47488888888888886,
    "AUC shuffled": 0.45599999999999996,
    "CC": -0.08236605709786789,
    "SIM": 0.6847392942861936,
    "KL": 0.9500115313468764,
    "KL the other way": 0.4276177933134964,
    "information gain": 0.2934632502932265,
}


def our_figures():
    seen, others = hits_of(X, Y, STEPS.shape), hits_of(Y, X % 12, STEPS.shape)
    return {
        "NSS": nss(STEPS, seen),
        "AUC, all cells": auc_judd(STEPS, seen, negatives="all", thresholds="all"),
        "AUC, unfixated": auc_judd(STEPS, seen, thresholds="all"),
        "AUC Judd": auc_judd(STEPS, seen),
        "AUC Judd, all cells": auc_judd(STEPS, seen, negatives="all"),
        "AUC shuffled": auc_shuffled(STEPS, seen, others),
        "CC": cc(STEPS, smooth(1.1)),
        "SIM": sim(STEPS, smooth(1.1)),
        "KL": kl(STEPS, smooth(1.1)),
        "KL the other way": kl(smooth(1.1), STEPS),
        "information gain": information_gain(smooth(0.3) + 0.1, smooth(1.1) + 0.1, seen, epsilon=0),
    }


def pysaliency_figures(pysaliency):
    from pysaliency.metrics import CC, NSS, SIM, MIT_KLDiv

    class Map(pysaliency.SaliencyMapModel):
        def _saliency_map(self, stimulus):
            return STEPS

    class Density(pysaliency.Model):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def _log_density(self, stimulus):
            density = smooth(self.shift) + 0.1
            return np.log(density / density.sum())

    stimuli = pysaliency.Stimuli([np.zeros((12, 15)), np.ones((12, 15))])
    n = np.repeat([0, 1], 25)
    seen, both = (
        pysaliency.Fixations.create_without_history(np.append(X, Y)[one], np.append(Y, X % 12)[one], n[one])
        for one in (slice(25), slice(50))
    )
    per_image = Map().AUC_per_image
    gain = Density(0.3).information_gain(stimuli, seen, Density(1.1))
    return {
        "NSS": NSS(STEPS, X, Y).mean(),
        "AUC, all cells": per_image(stimuli, seen)[0],
        "AUC, unfixated": per_image(stimuli, seen, nonfixations="unfixated")[0],
        "AUC Judd": Map().AUC_Judd(stimuli, seen, jitter=False),
        "AUC Judd, all cells": per_image(stimuli, seen, thresholds="fixations")[0],
        "AUC shuffled": per_image(stimuli, both, nonfixations="shuffled")[0],
        "CC": CC(STEPS, smooth(1.1)),
        "SIM": SIM(STEPS, smooth(1.1)),
        "KL": MIT_KLDiv(STEPS, smooth(1.1)),
        "KL the other way": MIT_KLDiv(smooth(1.1), STEPS),
        "information gain": gain,
    }


def test_the_figures_are_those_of_pysaliency():
    assert our_figures() == pytest.approx(PYSALIENCY, rel=1e-9)


def test_the_cases_of_pysaliencys_own_tests():
    """Its test_saliency_map_models.py: a wide Gaussian, five fixations on one image, three on another."""
    row, col = np.mgrid[:40, :40]
    wide = np.exp(-0.5 * ((col - 20) ** 2 + (row - 20) ** 2) / np.hypot(40, 40))
    x, y = np.array([0, 1, 2, 2, 2, 1, 5, 3]), np.array([10, 11, 12, 12, 12, 21, 25, 33])
    every = [hits_of([a], [b], wide.shape) for a, b in zip(x, y, strict=True)]
    uniform = [auc_judd(wide, one, negatives="all", thresholds="all") for one in every]
    assert uniform == pytest.approx([0.099375, 0.158125, *[0.241875] * 3, 0.291875, 0.509375, 0.138125])
    others = [hits_of(x[part], y[part], wide.shape) for part in (slice(5, 8), slice(5))]
    shuffled = [auc_shuffled(wide, one, others[number >= 5]) for number, one in enumerate(every)]
    assert shuffled == pytest.approx([0, *[1 / 3] * 4, 1, 1, 0.2])


def test_fixations_on_an_image_of_another_size_are_brought_to_this_one_as_pysaliency_does():
    found = hits_of([4, 5, 33, 7], [41, 42, 43, 44], (50, 50), window=(0, 0, 200, 100))
    assert (found.col.tolist(), found.row.tolist()) == ([1, 1, 8, 1], [20, 21, 21, 22])


@pytest.mark.filterwarnings("ignore")  # of its imports
def test_pysaliency_itself_says_so(monkeypatch):
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # which it calls and numpy 2.4 does not have
    pysaliency = pytest.importorskip("pysaliency", reason="pysaliency, which checks the metrics, is not installed")
    assert pysaliency_figures(pysaliency) == pytest.approx(PYSALIENCY, rel=1e-9)


# --- real fixations

# NSS, AUC-Judd, CC, SIM, KL of OSIE, computed independently: shared/data/README.md
OSIE = {
    "other observers": (3.488, 0.923, 0.883, 0.729, 0.591),
    "centre Gaussian": (0.792, 0.723, 0.281, 0.340, 1.420),
    "another image": (0.272, 0.632, 0.101, 0.213, 5.858),
}


def osie_density(seen):
    counts = np.zeros((600, 800))
    np.add.at(counts, (seen.row, seen.col), 1.0)
    density = gaussian_filter(counts, 24, mode="constant")
    return density / density.sum()


@pytest.mark.slow  # maps of 800 × 600 px
def test_the_table_of_osie(shared):
    recorded = loadmat(shared / "data/osie/fixations.mat", squeeze_me=True, struct_as_record=False)["fixations"][::7]

    def looked(subjects):
        x, y = (np.concatenate([np.atleast_1d(getattr(s, f"fix_{axis}")) - 1 for s in subjects]) for axis in "xy")
        return hits_of(x.astype(float), y.astype(float), (600, 800), off_map="drop")

    predicting, seen = ([looked(one.subjects[part]) for one in recorded] for part in (slice(8), slice(8, None)))
    row, col = np.mgrid[:600, :800]
    centre = np.exp(-0.5 * (((col - 399.5) / 200) ** 2 + ((row - 299.5) / 150) ** 2))
    others = [osie_density(one) for one in predicting]
    figures = {name: [] for name in OSIE}
    for i, own in enumerate(seen):
        truth = osie_density(own)
        # The other image is the one half the images further.
        predicted = {"other observers": others[i], "centre Gaussian": centre, "another image": others[i - 50]}
        for name, saliency in predicted.items():
            area = auc_judd(saliency, own, negatives="all", thresholds="all")
            pair = (cc(saliency, truth), sim(saliency, truth), kl(saliency, truth, epsilon=1e-12))
            figures[name].append((nss(saliency, own), area, *pair))
    for name, expected in OSIE.items():
        assert np.mean(figures[name], axis=0) == pytest.approx(expected, abs=0.005), name
