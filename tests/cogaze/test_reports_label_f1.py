"""Label F1 against scikit-learn's, the uncertainty rules by hand, what it has to beat."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from cogaze.evaluate.reports.label_f1 import (
    FIVE,
    RULES,
    Cells,
    Labelled,
    RuleBasedF1,
    agreement,
    label_figures,
    label_scores,
)
from cogaze.evaluate.reports.scorers import Reports
from cogaze.evaluate.scores import Intervals
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT

CODES = (1, 0, -1, LABEL_ABSENT)
NONE = Intervals(0)


def drawn(count=40, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.choice(CODES, size=(2, count, 14), p=[0.2, 0.2, 0.1, 0.5])
    codes[0, :, 5] = LABEL_ABSENT  # a label that no reference has
    return Labelled(codes[0], codes[1], np.arange(count).astype(str))


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize(("title", "labels"), [("14 labels", CHEXPERT_LABELS), ("5 labels", FIVE)])
def test_figures_are_those_of_scikit_learn(average, title, labels):
    labelled, rule = drawn(), RULES["uncertain is yes"]
    figures = {one.name: one.value for one in label_figures(labelled, rule, NONE)}
    places = [CHEXPERT_LABELS.index(label) for label in labels]
    expected = precision_recall_fscore_support(
        *(one[:, places] for one in labelled.named(rule)), average=average, zero_division=0.0
    )
    for name, value in zip(("precision", "recall", "F1"), expected, strict=False):
        assert figures[f"{name} {average}, {title}"] == pytest.approx(value, abs=1e-12)


def test_each_label_has_its_f1():
    labelled, rule = drawn(), RULES["uncertain is no"]
    figures = {one.name: one.value for one in label_figures(labelled, rule, NONE)}
    expected = precision_recall_fscore_support(*labelled.named(rule), average=None, zero_division=0.0)[2]
    assert [figures[f"F1 {label}"] for label in CHEXPERT_LABELS] == pytest.approx(list(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("rule", "yes"),
    [
        ("uncertain is yes", (True, False, True, False)),
        ("uncertain is no", (True, False, False, False)),
        ("uncertain alone is yes", (False, False, True, False)),
        ("absent is yes", (False, True, False, False)),
    ],
)
def test_a_rule_says_which_codes_are_yes(rule, yes):
    codes = np.full((4, 14), LABEL_ABSENT)
    codes[:, 0] = CODES
    named = Labelled(codes, codes, np.arange(4)).named(RULES[rule])[0]
    assert named[:, 0].tolist() == list(yes)
    assert not named[:, 1:].any()


def test_cells_of_uncertain_references_can_be_left_out():
    references, texts = np.full((3, 14), LABEL_ABSENT), np.full((3, 14), LABEL_ABSENT)
    references[:, 1], texts[:, 1] = (1, -1, 1), (1, 1, 0)
    labelled = Labelled(references, texts, np.arange(3))
    cells = labelled.cells(RULES["uncertain references left out"]).columns([1])
    assert (cells.both.sum(), cells.text_alone.sum(), cells.reference_alone.sum()) == (1, 0, 1)


def test_agreement_of_each_report_is_its_own_f1():
    reference = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool)
    text = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0]], dtype=bool)
    assert agreement(Cells.of(reference, text)).tolist() == pytest.approx([0.5, 1.0, np.nan], nan_ok=True)


def test_the_commonest_labels_are_a_baseline():
    references, texts = np.full((3, 14), LABEL_ABSENT), np.full((3, 14), LABEL_ABSENT)
    references[:2, 0], references[2, 1] = 1, 1
    figures = {
        one.name: one
        for one in label_figures(Labelled(references, texts, np.arange(3)), RULES["uncertain is yes"], NONE)
    }
    assert figures["F1 micro, 14 labels"].value == 0
    assert figures["F1 micro, 14 labels"].baselines["commonest labels"] == pytest.approx(2 / 3)


def test_intervals_hold_the_value_and_resample_groups():
    labelled = drawn(60)
    of = {one.name: one for one in label_figures(labelled, RULES["uncertain is yes"], Intervals(200))}
    figure = of["F1 micro, 14 labels"]
    assert figure.low < figure.value < figure.high
    one_group = Labelled(labelled.references, labelled.texts, np.zeros(60))
    assert label_figures(one_group, RULES["uncertain is yes"], Intervals(200))[0].why == "one group alone"


def reports(references, texts):
    keys = tuple(str(i) for i in range(len(texts)))
    return Reports(keys, tuple(references), tuple(texts), np.array(keys))


def test_rule_based_f1_reads_the_reports():
    said = ["Cardiomegaly. No effusion.", "No acute process.", "Possible edema."]
    same = RuleBasedF1().score(reports(said, said), NONE)
    assert {one.value for one in same.figures if "micro" in one.name} == {1.0}
    other = RuleBasedF1().score(reports(said, ["", "Pneumothorax.", "Edema."]), NONE)
    (column,) = other.columns.values()
    assert column.tolist() == [0.0, 0.0, 1.0]
    assert other.notes["texts without any label"] == 1
    assert "not CheXbert" in RuleBasedF1.name


def test_any_labeller_can_be_given():
    codes = np.full((2, 14), LABEL_ABSENT)
    codes[:, 3] = 1
    scored = label_scores(lambda texts: codes[: len(texts)], "mine", reports("ab", "cd"), "uncertain is yes", NONE)
    assert {one.name: one.value for one in scored.figures}["F1 Edema"] == 1.0
    assert list(scored.columns) == ["label agreement (mine)"]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="no label rule 'guess'; there are uncertain is yes, "):
        RuleBasedF1("guess")
