"""BLEU, ROUGE-L and CIDEr: by hand, by another formula, recorded from pycocoevalcap, and against it where it is."""

import random
from functools import cache
from itertools import product

import numpy as np
import pytest

from cogaze.evaluate.reports.overlap import Overlap, bleu, bleu_matches, cider, grams, longest_common, rouge_l
from cogaze.evaluate.reports.scorers import Reports
from cogaze.evaluate.results import bootstrap
from cogaze.evaluate.scores import Intervals

VOCABULARY = ["the", "heart", "is", "normal", "no", "effusion", "or", "edema", "lungs", "clear", "mild", "left"]


def pairs():
    """Twelve random references; a text of each is some other words and its beginning; the sixth says nothing."""
    rng = random.Random(0)
    references = [tuple(rng.choices(VOCABULARY, k=rng.randint(3, 9))) for _ in range(12)]
    texts = [
        tuple(rng.choices(VOCABULARY, k=rng.randint(1, 3))) + one[: rng.randint(0, len(one))] for one in references
    ]
    texts[5] = ()
    return references, texts


def reports_of(references, texts, groups=None):
    keys = tuple(map(str, range(len(texts))))
    joined = [tuple(" ".join(words) for words in each) for each in (references, texts)]
    return Reports(keys, *joined, np.array(keys if groups is None else groups), "whitespace")


# --- by hand


def test_bleu_of_one_wrong_word_in_four():
    matches = bleu_matches([("the", "heart", "is", "normal")], [("the", "heart", "is", "large")])
    expected = [3 / 4, (3 / 4 * 2 / 3) ** (1 / 2), (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3), 0]
    assert bleu(matches)[0] == pytest.approx(expected, abs=1e-3)


def test_a_repeated_word_counts_as_often_as_the_reference_has_it():
    assert bleu(bleu_matches([("no", "edema")], [("no", "no", "no")]))[0, 0] == pytest.approx(1 / 3)


def test_a_text_of_half_the_length_is_punished():
    assert bleu(bleu_matches([("a", "b", "c", "d")], [("a", "b")]))[0, 0] == pytest.approx(np.exp(1 - 2))


def test_bleu_of_all_is_not_the_mean_of_each():
    matches = bleu_matches([("a",), ("b", "c", "d")], [("a",), ("x", "y", "z")])
    assert bleu(matches.sum(axis=0))[0] == pytest.approx(1 / 4)
    assert bleu(matches)[:, 0] == pytest.approx([1, 0])


def test_rouge_l_of_a_gap():
    [found] = rouge_l([("a", "b", "c", "d")], [("a", "x", "c")])
    precision, recall = 2 / 3, 2 / 4
    assert found == pytest.approx((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))


def test_cider_of_the_reference_itself_is_ten_and_rarer_words_count_more():
    references = [("no", "edema", "seen", "here"), ("no", "fracture", "of", "ribs"), ("all", "is", "very", "well")]
    assert cider(references, references) == pytest.approx([10, 10, 10])
    rare, common = (cider(references, [(word,)] * 3)[0] for word in ("edema", "no"))
    assert rare > common > 0


def test_a_text_without_a_word_scores_nothing():
    references, texts = pairs()
    scores = Overlap().score(reports_of(references, texts), Intervals(0))
    assert all(values[5] == 0 for values in scores.columns.values())
    assert scores.notes["texts without a word"] == 1


# --- by another formula


def test_the_longest_common_subsequence_is_that_of_the_usual_recursion():
    @cache
    def recursive(one, other):
        if not one or not other:
            return 0
        if one[0] == other[0]:
            return 1 + recursive(one[1:], other[1:])
        return max(recursive(one[1:], other), recursive(one, other[1:]))

    for one, other in product([*pairs()[0], ()], pairs()[1]):
        assert longest_common(one, other) == recursive(one, other)


def test_cider_is_the_cosine_of_clipped_weights():
    references, texts = pairs()
    every = sorted({gram for one in [*references, *texts] for gram in grams(one)})
    there, said = (np.array([[grams(one)[gram] for gram in every] for one in each]) for each in (references, texts))
    weights = np.log(len(references) / np.maximum(1, (there > 0).sum(axis=0)))
    there, said = there * weights, said * weights
    cosines = []
    for length in (1, 2, 3, 4):
        of = np.array([len(gram) == length for gram in every])
        norms = np.linalg.norm(there[:, of], axis=1) * np.linalg.norm(said[:, of], axis=1)
        cosines.append((np.minimum(said, there) * there)[:, of].sum(axis=1) / np.where(norms > 0, norms, 1))
    apart = np.array([max(0, len(a) - 1) - max(0, len(b) - 1) for a, b in zip(references, texts, strict=True)])
    expected = 10 * np.mean(cosines, axis=0) * np.exp(-(apart**2) / 72)
    assert cider(references, texts) == pytest.approx(expected)


def test_intervals_are_those_of_scoring_every_resample_anew():
    references, texts = pairs()
    groups = [str(number // 2) for number in range(12)]
    figures = Overlap().score(reports_of(references, texts, groups), Intervals(50, 1)).figures
    matches = bleu_matches(references, texts)
    again = bootstrap(lambda rows: bleu(rows.sum(axis=0))[3], [matches], groups, repeats=50, seed=1)
    means = bootstrap(np.mean, [cider(references, texts)], groups, repeats=50, seed=1)
    by_name = {one.name: one for one in figures}
    assert (by_name["BLEU-4"].low, by_name["BLEU-4"].high) == pytest.approx((again.low, again.high))
    assert (by_name["CIDEr"].low, by_name["CIDEr"].high) == pytest.approx((means.low, means.high))


# --- pycocoevalcap's


def test_figures_are_those_recorded_from_pycocoevalcap():
    figures = {one.name: one.value for one in Overlap().score(reports_of(*pairs()), Intervals(0)).figures}
    recorded = [0.560596, 0.511752, 0.486793, 0.477789, 0.499289, 3.64233]  # version 1.2
    assert list(figures) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert list(figures.values()) == pytest.approx(recorded, abs=1e-6)


def test_each_report_s_scores_are_pycocoevalcap_s():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = random.Random(1)
    references = [tuple(rng.choices(VOCABULARY, k=rng.randint(1, 40))) for _ in range(60)]
    texts = [tuple(word for word in one if rng.random() < 0.8) + ("no",) * rng.randint(0, 3) for one in references]
    there, said = ({i: [" ".join(words)] for i, words in enumerate(each)} for each in (references, texts))
    of_all, of_each = Bleu(4).compute_score(there, said, verbose=0)
    matches = bleu_matches(references, texts)
    assert bleu(matches.sum(axis=0)) == pytest.approx(of_all, abs=1e-9)
    assert pytest.approx(np.array(of_each), abs=1e-9) == bleu(matches).T
    assert rouge_l(references, texts) == pytest.approx(Rouge().compute_score(there, said)[1], abs=1e-9)
    assert cider(references, texts) == pytest.approx(Cider().compute_score(there, said)[1], abs=1e-9)
