"""Agreement of the findings that generated and written reports name: precision, recall and F1 of CheXpert's labels.

Any labeller will do; figures say which one it was. Micro figures are of all cells together, macro figures the mean of
the labels', where a label that nobody names counts as 0, as scikit-learn and the published figures have it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports import labeller
from cogaze.evaluate.reports.scorers import Beside, Reports, Scored
from cogaze.evaluate.results import Figure
from cogaze.evaluate.scores import Intervals
from gazeprep.schema import CHEXPERT_LABELS, BoolArray

IntArray = npt.NDArray[np.int64]
Labeller = Callable[[Sequence[str]], IntArray]

FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
LABEL_SETS: Mapping[str, tuple[str, ...]] = {"14 labels": CHEXPERT_LABELS, "5 labels": FIVE}


@dataclass(frozen=True)
class Rule:
    """Which codes (1 there, 0 absent, -1 uncertain) count as yes; which of the reference leave their cell out."""

    yes: tuple[int, ...]
    left_out: tuple[int, ...] = ()


# The first is that of published report generation: CheXbert's "rrg" mode. "Not mentioned" is never a yes.
RULES: Mapping[str, Rule] = {
    "uncertain is yes": Rule((1, -1)),
    "uncertain is no": Rule((1,)),
    "uncertain references left out": Rule((1,), (-1,)),
    "uncertain alone is yes": Rule((-1,)),
    "absent is yes": Rule((0,)),
}


@dataclass(frozen=True, eq=False)
class Cells:
    """Which labels (N, L) are named in the reference and in the text, both, or one of them alone."""

    both: FloatArray
    text_alone: FloatArray
    reference_alone: FloatArray

    @classmethod
    def of(cls, reference: BoolArray, text: BoolArray, counted: BoolArray | None = None) -> "Cells":
        """Compare two labellings (N, L); counted: the cells that count, all by default."""
        counted = np.ones_like(reference) if counted is None else counted
        cells = (reference & text, ~reference & text, reference & ~text)
        return cls(*((one & counted).astype(np.float64) for one in cells))

    def columns(self, places: Sequence[int]) -> "Cells":
        """Keep some labels."""
        return Cells(*(one[..., places] for one in (self.both, self.text_alone, self.reference_alone)))

    def drawn(self, counts: FloatArray) -> "Cells":
        """Sum the reports, each as often as it was drawn: counts (R, N) to cells (R, L)."""
        return Cells(*(counts @ one for one in (self.both, self.text_alone, self.reference_alone)))

    def summed(self) -> "Cells":
        """Sum the labels, which stay as one column (..., 1)."""
        return Cells(*(one.sum(axis=-1, keepdims=True) for one in (self.both, self.text_alone, self.reference_alone)))

    def precision(self) -> FloatArray:
        """Share of what the text names that the reference names too (..., L), 0 where it names nothing."""
        return _ratio(self.both, self.both + self.text_alone)

    def recall(self) -> FloatArray:
        """Share of what the reference names that the text names too (..., L), 0 where it names nothing."""
        return _ratio(self.both, self.both + self.reference_alone)

    def f1(self) -> FloatArray:
        """Harmonic mean of both (..., L), 0 where neither names anything."""
        return _ratio(2 * self.both, 2 * self.both + self.text_alone + self.reference_alone)


MEASURES: Mapping[str, Callable[[Cells], FloatArray]] = {
    "precision": Cells.precision,
    "recall": Cells.recall,
    "F1": Cells.f1,
}


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def macro(measure: Callable[[Cells], FloatArray], cells: Cells) -> FloatArray:
    """Mean over the labels of a measure (...,)."""
    return np.asarray(measure(cells).mean(axis=-1))


def micro(measure: Callable[[Cells], FloatArray], cells: Cells) -> FloatArray:
    """A measure of all labels together (...,)."""
    return np.asarray(measure(cells.summed())[..., 0])


def agreement(cells: Cells) -> FloatArray:
    """F1 of each report's own labels (N,), NaN where neither it nor its reference names one."""
    own = cells.summed()
    named = own.both + own.text_alone + own.reference_alone
    return np.where(named > 0, own.f1(), np.nan)[:, 0]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Codes (N, 14) of references and texts in the order of CHEXPERT_LABELS, and the groups (N,) of the reports."""

    references: IntArray
    texts: IntArray
    groups: npt.NDArray[Any]

    def cells(self, rule: Rule) -> Cells:
        """Compare the labels by a rule."""
        return Cells.of(*self.named(rule), ~np.isin(self.references, rule.left_out))

    def named(self, rule: Rule) -> tuple[BoolArray, BoolArray]:
        """Which labels (N, 14) references and texts name."""
        return np.isin(self.references, rule.yes), np.isin(self.texts, rule.yes)

    def commonest(self) -> "Labelled":
        """Say of every report the labels that most references have."""
        rows = Counter(map(tuple, self.references.tolist()))
        said = max(sorted(rows), key=lambda row: rows[row])
        return Labelled(self.references, np.tile(np.array(said), (len(self.references), 1)), self.groups)


def label_figures(labelled: Labelled, rule: Rule, intervals: Intervals) -> list[Figure]:
    """Return micro and macro figures of 14 and of 5 labels, then each label's F1.

    Beside them what comes of saying the commonest labels of the references about every report.
    """
    cells, beside = labelled.cells(rule), labelled.commonest().cells(rule)
    figures = []
    for title, labels in LABEL_SETS.items():
        places = [CHEXPERT_LABELS.index(label) for label in labels]
        for kind, over in (("micro", micro), ("macro", macro)):
            for name, measure in MEASURES.items():
                of = partial(over, measure)
                title_of = f"{name} {kind}, {title}"
                figures.append(
                    _figure(title_of, of, cells.columns(places), beside.columns(places), labelled, intervals)
                )
    for place, label in enumerate(CHEXPERT_LABELS):
        of = partial(micro, Cells.f1)
        figures.append(_figure(f"F1 {label}", of, cells.columns([place]), beside.columns([place]), labelled, intervals))
    return figures


def _figure(
    title: str,
    of: Callable[[Cells], FloatArray],
    cells: Cells,
    beside: Cells,
    labelled: Labelled,
    intervals: Intervals,
) -> Figure:
    everyone = np.ones((1, len(labelled.groups)))
    return intervals.figure_of_counts(
        title,
        float(of(cells.drawn(everyone))[0]),
        lambda counts: of(cells.drawn(counts)),
        labelled.groups,
        {"commonest labels": float(of(beside.drawn(everyone))[0])},
    )


def label_scores(label: Labeller, name: str, reports: Reports, rule: str, intervals: Intervals) -> Scored:
    """Label references and texts and compare them; name: the labeller's, for notes and the column of each report."""
    labelled = Labelled(label(reports.references), label(reports.texts), reports.groups)
    references, texts = labelled.named(RULES[rule])
    notes = {
        "labels": name,
        "rule": f"{rule}; a label that is not mentioned is no",
        "5 labels": ", ".join(FIVE),
        "labels that no reference has, 0 in macro figures": int((~references.any(axis=0)).sum()),
        "texts without any label": int((~texts.any(axis=1)).sum()),
    }
    columns = {f"label agreement ({name})": agreement(labelled.cells(RULES[rule]))}
    return Scored(label_figures(labelled, RULES[rule], intervals), columns, notes)


def checked_rule(rule: str) -> str:
    """Return the name of a rule. Raises ValueError where there is none of that name."""
    if rule not in RULES:
        raise ValueError(f"there is no label rule {rule!r}; there are {', '.join(RULES)}")
    return rule


@dataclass(frozen=True)
class RuleBasedF1:
    """F1 of the labels that the project's own rules find: needs no weights, and is not CheXbert.

    rule: what an uncertain finding counts as, one of RULES.
    """

    rule: str = "uncertain is yes"

    name: ClassVar[str] = "label F1 (rule-based labels, not CheXbert)"
    beside: ClassVar[tuple[Beside, ...]] = ("shuffled",)

    def __post_init__(self) -> None:
        checked_rule(self.rule)

    def score(self, reports: Reports, intervals: Intervals) -> Scored:
        """Score N reports."""
        return label_scores(labeller.codes_of, labeller.NAME, reports, self.rule, intervals)
