"""What evaluation prints: ranks, chance, saliency on hand-made numbers; and that a short training beats none."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from cogaze.evaluate.gaze import Spoken, agreement
from cogaze.evaluate.metrics import chance_rank, chance_recall, first_hit_ranks, nss
from cogaze.evaluate.retrieval import retrieval


def test_rank_of_the_best_hit_with_ties_counted_half():
    similarity = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.8], [0.3, 0.3, 0.3]])
    hits = np.array([[0, 1, 1], [0, 1, 0], [1, 0, 0]], dtype=bool)
    assert first_hit_ranks(similarity, hits).tolist() == [2, 1.5, 2]


@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_chance_recall_is_the_hypergeometric_tail(k):
    hits = np.arange(10)[None] < np.array([1, 2, 5])[:, None]
    expected = np.mean([1 - hypergeom(10, int(row.sum()), k).pmf(0) for row in hits])
    assert chance_recall(hits, k) == pytest.approx(expected)


def test_chance_rank_is_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    hits = np.arange(12)[None] < 3
    ranks = [first_hit_ranks(rng.random((1, 12)), hits)[0] for _ in range(4000)]
    assert chance_rank(hits) == pytest.approx(np.mean(ranks), abs=0.1)


def test_saliency_under_the_gaze_in_standard_deviations():
    saliency = np.array([[0.0, 1.0, 2.0, 3.0, 100.0]] * 3 + [[1.0] * 5])
    gaze = np.array([[0, 0, 0, 2, 9], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=float)
    shown = np.array([[True] * 4 + [False]] * 4)
    found = nss(saliency, gaze, shown)
    assert found[:2] == pytest.approx([1.5 / np.std([0, 1, 2, 3]), 0])
    assert np.isnan(found[2:]).all()  # no gaze where picture is shown; a flat map


def test_a_study_is_one_report_however_many_images_it_has():
    study = np.array([7, 7, 3])
    report = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    image = np.array([[2.0, 0.1], [0.1, 2.0], [0.0, 1.0]])
    found = retrieval(image, report, study)
    assert found["image to report R@1"] == pytest.approx(2 / 3)
    assert found["image to report R@1 chance"] == pytest.approx(1 / 2)
    assert found["report to image R@1"] == 1
    assert found["report to image R@1 chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_attention_that_is_the_gaze_beats_the_other_sentence_and_the_mean_map():
    gaze = np.eye(4)
    shown = np.ones((4, 4), dtype=bool)
    seen = Spoken(attention=gaze + 0.1, gaze=gaze, shown=shown, image=np.array([0.0, 0, 1, 1]))
    train = Spoken(attention=gaze, gaze=np.array([[3.0, 1, 1, 1]] * 4), shown=shown, image=np.zeros(4))
    found = agreement(seen, train)
    assert found["sentence NSS"] == pytest.approx(np.sqrt(3))
    assert found["sentence NSS of another sentence"] == pytest.approx(-1 / np.sqrt(3))
    assert found["sentence NSS of the mean gaze map"] == pytest.approx(0, abs=1e-12)
