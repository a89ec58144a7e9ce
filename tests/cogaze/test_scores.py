"""Scores against labels: by hand, an oracle, chance, thresholds that never see the images they are judged on."""

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cogaze.evaluate.metrics import (
    accuracy_of,
    auroc,
    balanced_accuracy_of,
    f1_of,
    mean_of_defined,
    weighted_confusion,
)
from cogaze.evaluate.records import UNKNOWN
from cogaze.evaluate.results import bootstrap, weighted_bootstrap
from cogaze.evaluate.scores import (
    METRICS,
    Intervals,
    Scored,
    Thresholds,
    accuracy,
    balanced_accuracy,
    best_threshold,
    binary_figures,
    classification_figures,
    macro_f1,
    multi_class_figures,
    multi_label_figures,
)

FEW = Intervals(repeats=20)


def scored(scores, labels, groups=None):
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels)
    if scores.ndim == 1:
        scores, labels = scores[:, None], labels[:, None]
    return Scored(scores, labels, np.arange(len(scores)) if groups is None else np.asarray(groups))


def by_name(figures):
    return {figure.name: figure for figure in figures}


def test_one_class_by_hand():
    found = by_name(binary_figures(scored([0.9, 0.8, 0.4, 0.3, 0.2], [1, 0, 1, 0, 0]), 0.4, FEW))
    assert found["AUROC"].value == pytest.approx(5 / 6)
    assert found["AUPRC"].value == pytest.approx((1 + 2 / 3) / 2)
    assert found["accuracy"].value == pytest.approx(4 / 5)
    assert found["balanced accuracy"].value == pytest.approx((1 + 2 / 3) / 2)
    assert found["F1"].value == pytest.approx(4 / 5)  # of the positive class: 2 found of 2, one too many
    assert found["AUPRC"].baselines == {"chance": pytest.approx(2 / 5)}
    assert found["accuracy"].baselines == {"always the majority": pytest.approx(3 / 5)}
    assert found["F1"].baselines == {"always yes": pytest.approx(4 / 7), "always no": 0}


def test_always_no_has_the_accuracy_of_the_majority_and_no_f1():
    labels = np.arange(100) < 22
    found = by_name(binary_figures(scored(np.zeros(100), labels.astype(int)), 1.0, FEW))
    assert found["accuracy"].value == found["accuracy"].baselines["always the majority"] == 0.78
    assert found["F1"].value == found["F1"].baselines["always no"] == 0
    assert found["AUROC"].value == 0.5
    assert found["AUPRC"].value == found["AUPRC"].baselines["chance"] == 0.22


def test_an_oracle_has_one_and_a_random_score_chance_within_its_interval():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    for figure in binary_figures(scored(labels, labels), 1.0, FEW):
        assert figure.value == figure.low == figure.high == 1
    found = by_name(binary_figures(scored(rng.random(300), labels), 0.5, Intervals(repeats=60)))
    for name in ("AUROC", "AUPRC", "balanced accuracy"):
        assert found[name].low < found[name].baselines["chance"] < found[name].high


def test_the_threshold_is_the_best_f1_s_of_the_validation_images():
    assert best_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.9])) == 0.2  # F1 .8; .9 has 2/3
    assert best_threshold(np.array([0, 1]), np.array([0.5, 0.5])) == 0.5
    validate = scored([0.1, 0.2, 0.3, 0.9], [0, 1, 0, 1])
    chosen = Thresholds.chosen(validate, 1)
    assert chosen == Thresholds((0.2,), "best F1 among 4 validation images")
    assert Thresholds.chosen(None, 2).values == (0, 0)
    both = scored([[0.1, 0.1], [0.2, 0.1]], [[0, 0], [1, UNKNOWN]])
    assert Thresholds.chosen(both, 2).values == (0.2, 0)
    assert "0 for 1 of 2 classes" in Thresholds.chosen(both, 2).origin


def test_the_images_that_are_judged_never_choose_their_threshold():
    """All is found from 0.3 on, but the validation images say 0.6."""
    test, validate = scored([0.3, 0.4, 0.1], [1, 1, 0]), scored([0.6, 0.5], [1, 0])
    found = by_name(classification_figures("binary", ("Pneumonia",), test, validate, FEW).figures)
    assert found["F1"].value == 0
    assert found["AUROC"].value == 1


def test_unknown_labels_leave_their_cells_out_and_a_class_of_one_kind_is_named():
    labels = [[1, UNKNOWN, 0], [0, 1, 0], [UNKNOWN, 0, 0], [0, 0, 0]]
    scores = [[0.9, 0.9, 0], [0.1, 0.8, 0], [1.0, 0.1, 0], [0.2, 0.2, 0]]
    found = multi_label_figures(scored(scores, labels), "ABC", Thresholds((0.5,) * 3, "made up"), FEW)
    figures = by_name(found.figures)
    assert figures["A AUROC"].value == figures["B AUROC"].value == figures["mean AUROC"].value == 1
    assert (figures["A AUROC"].n, figures["mean AUROC"].n) == (3, 4)
    assert figures["A AUPRC"].baselines == {"chance": pytest.approx(1 / 3)}
    assert "C AUROC" not in figures
    assert found.notes["classes left out: all or no test images have them"] == ["C"]


def test_the_mean_is_that_of_the_classes():
    rng = np.random.default_rng(0)
    found = by_name(
        multi_label_figures(
            scored(rng.random((60, 3)), rng.integers(-1, 2, (60, 3))), "ABC", Thresholds((0.4,) * 3, ""), FEW
        ).figures
    )
    for name in ("AUROC", "AUPRC", "accuracy", "balanced accuracy", "F1"):
        own = [found[f"{label} {name}"] for label in "ABC"]
        assert found[f"mean {name}"].value == pytest.approx(np.mean([one.value for one in own]))
        for beside, value in found[f"mean {name}"].baselines.items():
            assert value == pytest.approx(np.mean([one.baselines[beside] for one in own]))


def test_several_classes_by_hand():
    labels = np.eye(3, dtype=int)[[0, 0, 0, 1, 2]]
    scores = [[3, 1, 0], [3, 2, 0], [0, 1, 0], [0, 1, 0.5], [0, 1, 0.5]]
    found = multi_class_figures(scored(scores, labels), FEW)
    figures = by_name(found.figures)
    assert figures["accuracy"].value == pytest.approx(3 / 5)
    assert figures["accuracy"].baselines == {"always the majority": pytest.approx(3 / 5)}
    assert figures["balanced accuracy"].value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["macro F1"].value == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert figures["macro F1"].baselines == {"always the majority": pytest.approx(0.75 / 3)}
    # Margins of class 2: -3, -3, -1, -.5, -.5, so that its image is tied with one other.
    margin = [np.array([2, 1, -1, -1, -1]), np.array([-2, -1, 1, 0.5, 0.5]), np.array([-3, -3, -1, -0.5, -0.5])]
    areas = [roc_auc_score(labels[:, one], margin[one]) for one in range(3)]
    assert figures["mean AUROC"].value == pytest.approx(np.mean(areas))


def test_several_classes_oracle_and_images_without_one_class():
    labels = np.vstack([np.eye(3, dtype=int)[np.arange(9) % 3], [[1, 1, 0], [0, 0, 0], [1, 0, UNKNOWN]]])
    found = multi_class_figures(scored(np.maximum(labels, 0), labels), FEW)
    assert [figure.value for figure in found.figures] == [1] * 5
    assert found.notes["images left out, which have not exactly one class"] == 3


def test_a_subject_s_images_are_resampled_together():
    rng = np.random.default_rng(0)
    labels, scores = np.repeat(rng.integers(0, 2, 20), 10), np.repeat(rng.random(20), 10)
    alone = by_name(binary_figures(scored(scores, labels), 0.5, Intervals(repeats=100)))["AUROC"]
    together = by_name(
        binary_figures(scored(scores, labels, np.repeat(np.arange(20), 10)), 0.5, Intervals(repeats=100))
    )["AUROC"]
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "of 2 test images 2 are positive"),
        ([0.1, np.nan], [1, 0], "1 scores are not finite"),
        ([0.1, 0.2, 0.3], [1, 0], "do not fit"),
    ],
)
def test_what_has_no_figure_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        binary_figures(scored(scores, labels), 0.5, FEW)


def test_the_auroc_of_validation_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, (80, 4)) / 8, rng.integers(0, 2, (80, 4))
    mask = rng.random((80, 4)) < 0.8
    expected = [roc_auc_score(labels[mask[:, i], i], scores[mask[:, i], i]) for i in range(4)]
    assert auroc(scores, labels, mask) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("name", METRICS)
def test_resamples_at_once_are_scikit_learn_s_one_by_one(name):
    rng = np.random.default_rng(0)
    labels, scores, groups = rng.integers(0, 2, 30), rng.integers(0, 9, 30) / 8, rng.integers(0, 12, 30)
    metric = METRICS[name]
    values = (scores >= 0.5).astype(int) if metric.said else scores
    at_once = weighted_bootstrap(partial(metric.resampled, labels, values), 30, groups, repeats=15)
    one_by_one = bootstrap(metric.of, [labels, values], groups, repeats=15)
    assert (at_once.low, at_once.high) == pytest.approx((one_by_one.low, one_by_one.high))


def test_classes_at_once_are_scikit_learn_s_one_by_one():
    rng = np.random.default_rng(1)
    labels, said, counts = rng.integers(0, 4, 25), rng.integers(0, 4, 25), rng.integers(0, 3, (8, 25))
    confusion = weighted_confusion(labels, said, 4, counts.astype(float))
    drawn = [np.repeat(np.arange(25), row) for row in counts]
    for of, at_once in (
        (accuracy, accuracy_of(confusion)),
        (balanced_accuracy, balanced_accuracy_of(confusion)),
        (macro_f1, mean_of_defined(f1_of(confusion))),
    ):
        assert at_once == pytest.approx(np.array([of(labels[rows], said[rows]) for rows in drawn]))
