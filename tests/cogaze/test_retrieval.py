"""Retrieval: ranks by hand, ties as the mean over random orders, blocks against brute force, protocols."""

from dataclasses import fields

import numpy as np
import pytest
import torch.distributed as dist
from processes import in_processes
from scipy.stats import hypergeom

from cogaze.evaluate.metrics import chance_rank, chance_recall
from cogaze.evaluate.retrieval import (
    TOP,
    Resampling,
    class_retrieval,
    figures_of,
    pair_retrieval,
    ranking,
    retrieval,
)
from cogaze.evaluate.similarity import Embedded, Similarity

FEW = Resampling(repeats=20)


class Table:
    """Similarities that stand in an array."""

    def __init__(self, values):
        self.values = np.asarray(values, dtype=np.float64)
        self.shape = self.values.shape

    def rows(self, start, stop):
        return self.values[start:stop]


def by_name(figures):
    return {figure.name: figure for figure in figures}


def brute_force(values, query_class, candidate_class, orders):
    """Mean over random orders of the candidates of what sorting says: hits, found, first hit's rank."""
    rng = np.random.default_rng(0)
    hits, found, rank = [], [], []
    for _ in range(orders):
        order = rng.permutation(values.shape[1])
        placed = np.argsort(-values[:, order], axis=1, kind="stable")
        is_hit = (np.asarray(query_class)[:, None] == np.asarray(candidate_class)[order][None])[
            np.arange(len(values))[:, None], placed
        ]
        hits.append([[row[:k].sum() for k in TOP] for row in is_hit])
        found.append([[row[:k].any() for k in TOP] for row in is_hit])
        rank.append(is_hit.argmax(axis=1) + 1)
    return np.mean(hits, axis=0), np.mean(found, axis=0), np.mean(rank, axis=0)


def test_ranks_by_hand():
    values = [[0.9, 0.5, 0.1, 0.7], [0.2, 0.8, 0.3, 0.6]]
    found = ranking(Table(values), [1, 0], [0, 1, 1, 0])
    assert found.rank.tolist() == [3, 2]  # 0.9 and 0.7 stand before candidate 1; 0.8 before candidate 3
    assert found.hits.tolist() == [[0, 2, 2], [0, 2, 2]]
    assert found.found.tolist() == [[0, 1, 1], [0, 1, 1]]
    assert found.relevant.tolist() == [2, 2]


def test_ties_count_half_of_a_single_hit_and_the_best_hit_counts():
    found = ranking(Table([[0.9, 0.5, 0.1], [0.2, 0.8, 0.8], [0.3, 0.3, 0.3]]), [1, 0, 2], [2, 1, 0])
    assert found.rank.tolist() == [2, 1.5, 2]
    assert found.found[:, 0] == pytest.approx([0, 0.5, 1 / 3])


def test_without_ties_it_is_brute_force():
    rng = np.random.default_rng(1)
    values, query, candidate = rng.random((30, 25)), rng.integers(0, 5, 30), np.arange(25) % 5
    found = ranking(Table(values), query, candidate)
    for one, expected in zip(
        (found.hits, found.found, found.rank), brute_force(values, query, candidate, 1), strict=True
    ):
        assert np.array_equal(one, expected)


def test_ties_are_the_mean_over_random_orders():
    rng = np.random.default_rng(2)
    values, query, candidate = rng.integers(0, 4, (12, 15)) / 4, rng.integers(0, 3, 12), np.arange(15) % 3
    found = ranking(Table(values), query, candidate)
    expected = brute_force(values, query, candidate, 1500)
    for one, mean, spread in zip((found.hits, found.found, found.rank), expected, (0.12, 0.04, 0.15), strict=True):
        assert one == pytest.approx(mean, abs=spread)


def test_blocks_of_any_size_give_the_same_bits_ties_included():
    rng = np.random.default_rng(3)
    vectors = np.repeat(rng.normal(size=(30, 8)), 3, axis=0)  # each thing three times
    similarity = Similarity(Embedded.of(vectors), Embedded.of(vectors[::-1]))
    label = np.repeat(np.arange(30), 3) % 7
    whole = ranking(similarity, label, label[::-1])
    for memory_bytes in (1, 24 * 90 * 7, 24 * 90 * 64):
        parts = ranking(similarity, label, label[::-1], memory_bytes=memory_bytes)
        for one in fields(whole):
            assert np.array_equal(getattr(whole, one.name), getattr(parts, one.name)), one.name


def test_what_tells_nothing_apart_scores_chance_whatever_the_order():
    found = ranking(Table(np.zeros((5, 20))), [0, 1, 2, 3, 4], np.repeat(np.arange(5), 4))
    for figure in figures_of("any", found, resampling=FEW)[:-1]:
        assert figure.value == pytest.approx(figure.baselines["chance"])
    assert found.rank.tolist() == [21 / 5] * 5  # of four hits among twenty, the first one's mean rank


def test_an_oracle_has_the_ceiling_and_random_vectors_chance():
    label = np.repeat(np.arange(5), 40)
    axes = np.eye(5)[label]
    for figure in class_retrieval(Embedded.of(axes), Embedded.of(axes), label, label, resampling=FEW):
        assert figure.value == pytest.approx(figure.baselines["ceiling"])
    rng = np.random.default_rng(0)
    drawn = [Embedded.of(rng.normal(size=(200, 16))) for _ in range(2)]
    for figure in class_retrieval(*drawn, label, label, resampling=FEW):
        assert figure.value == pytest.approx(figure.baselines["chance"], abs=0.6 if "rank" in figure.name else 0.06)


def test_more_places_than_relevant_candidates_have_a_ceiling_below_one():
    """8x200 both ways: 40 sentences, five a class, so that ten places hold five hits at most."""
    image_class, text_class = np.repeat(np.arange(8), 4), np.repeat(np.arange(8), 5)
    oracle = [Embedded.of(np.eye(8)[one]) for one in (image_class, text_class)]
    found = by_name(class_retrieval(*oracle, image_class, text_class, resampling=FEW))
    assert found["image to text P@10"].value == found["image to text P@10"].baselines["ceiling"] == 0.5
    assert found["image to text P@10"].baselines["chance"] == 1 / 8
    assert found["text to image P@5"].baselines["ceiling"] == 4 / 5
    assert found["text to image P@5"].n == 40


def test_fewer_candidates_than_places():
    found = by_name(figures_of("any", ranking(Table([[0.1, 0.9]]), [0], [0, 1]), resampling=FEW))
    assert found["any P@10"].value == 0.1
    assert found["any P@10"].baselines == {"chance": 0.1, "ceiling": 0.1}
    assert found["any R@10"].value == found["any R@10"].baselines["chance"] == 1
    assert found["any P@10"].why == "one group alone"


def test_images_that_share_a_text_are_all_its_hits():
    images, texts = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 0, 2, 2]]
    found = by_name(pair_retrieval(Embedded.of(images), Embedded.of(texts), [5, 5, 3, 3], resampling=FEW))
    assert found["image to text R@1"].value == pytest.approx(3.5 / 4)  # image 1 is as like as unlike to both texts
    assert found["image to text R@1"].baselines["chance"] == pytest.approx(1 / 2)
    assert found["text to image R@1"].value == 1
    assert found["text to image R@1"].n == 2


def test_a_study_is_one_report_however_many_images_it_has():
    study = np.array([7, 7, 3])
    report = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    image = np.array([[2.0, 0.1], [0.1, 2.0], [0.0, 1.0]])
    found = retrieval(image, report, study)
    assert found["image to report R@1"] == pytest.approx(2 / 3)
    assert found["image to report R@1 chance"] == pytest.approx(1 / 2)
    assert found["report to image R@1"] == 1
    assert found["report to image R@1 chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)


@pytest.mark.parametrize("k", [1, 3, 9, 10, 12])
def test_chance_recall_is_the_hypergeometric_tail(k):
    relevant = np.array([1, 2, 5])
    expected = np.mean([1 - hypergeom(10, int(hits), min(k, 10)).pmf(0) for hits in relevant])
    assert chance_recall(relevant, 10, k) == pytest.approx(expected)


def test_chance_rank_is_the_median_over_random_orders():
    rng = np.random.default_rng(0)
    ranks = ranking(Table(rng.random((3000, 40))), np.zeros(3000, dtype=int), np.arange(40) >= 3).rank
    assert chance_rank(np.array([3]), 40) == np.median(ranks)
    assert chance_rank(np.array([1, 1]), 100) == 50


def test_a_query_without_a_hit_and_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="1 of 2 queries have no hit"):
        ranking(Table(np.zeros((2, 2))), [0, 1], [0, 0])
    with pytest.raises(ValueError, match="2 x 2, but classes are given for 1 queries and 2"):
        ranking(Table(np.zeros((2, 2))), [0], [0, 0])


def ranked():
    rng = np.random.default_rng(0)
    vectors = [Embedded.of(rng.normal(size=(50, 8))) for _ in range(2)]
    return ranking(Similarity(*vectors), np.arange(50) % 7, np.arange(50) % 7, memory_bytes=24 * 50 * 9)


def write_ranked(out):
    found = ranked()
    np.savez(out / f"{dist.get_rank()}.npz", hits=found.hits, found=found.found, rank=found.rank)


@pytest.mark.slow
def test_two_processes_rank_as_one(tmp_path):
    in_processes(write_ranked, tmp_path)
    alone = ranked()
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            for name, values in found.items():
                assert np.array_equal(values, getattr(alone, name))
