"""Structured reports scored heading by heading, as SRRG's scorer does: words below each, and which there are.

A heading that the reference or the text alone has scores 0. Figures "every heading" are means over all headings of all
reports, as published; "mean of organs" gives each organ the same weight.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports.overlap import LONGEST, Overlap, bleu, bleu_matches, longest_common
from cogaze.evaluate.reports.scorers import Beside, Reports, Scored
from cogaze.evaluate.reports.structured import IMPRESSION, ORGANS, Part, Rules, Structured, as_published, parse
from cogaze.evaluate.reports.words import whitespace_words
from cogaze.evaluate.results import Figure, NotRunError
from cogaze.evaluate.scores import Intervals

Rouge = Literal["plain", "stemmed"]
BLEU, ROUGE = f"BLEU-{LONGEST}", "ROUGE-L"
PADDING = "No findings"  # for a bullet that the text lacks, when bullets are compared one by one
NOT_HERE = {
    "F1-SRR-BERT": "not run: needs StanfordAIMI/SRR-BERT-Leaves (or -Upper, -Leaves-with-Statuses, "
    "-Upper-with-Statuses) and the tokenizer of microsoft/BiomedVLP-CXR-BERT-general, from Hugging Face",
    "BERTScore by heading": "not run: needs distilbert-base-uncased (layer 5), from Hugging Face",
}


@dataclass(frozen=True)
class StructuredScorer:
    """BLEU-4 and ROUGE-L below each heading, and precision, recall and F1 of the headings themselves.

    part: what the reports are. rules: how they are read, see `parse`. aligned: compare the first bullets with the
    first, and so on, leaving out what the text has more of; else all of a heading at once. rouge: "stemmed" is the
    published one to the letter and needs rouge-score; "plain" does not stem. as_published: also BLEU, ROUGE-L and CIDEr
    by CoGaze's own way with structured reports.
    """

    part: Part = "findings"
    rules: Rules = "official"
    aligned: bool = False
    rouge: Rouge = "plain"
    as_published: bool = False

    name: ClassVar[str] = "structured"
    beside: ClassVar[tuple[Beside, ...]] = ("shuffled", "commonest", "ceiling")

    def score(self, reports: Reports, intervals: Intervals) -> Scored:
        """Score N structured reports; raises NotRunError where no reference is one, or rouge-score is missing."""
        references = [parse(text, self.part, self.rules) for text in reports.references]
        if not any(one.sections for one in references):
            raise NotRunError(_none_structured(reports, self.part, self.rules))
        texts = [parse(text, self.part, self.rules) for text in reports.texts]
        headings = ORGANS if self.part == "findings" else (IMPRESSION,)
        grid = self._grid(references, texts, headings)
        presence = Presence.of(references, texts, headings)
        figures = [*word_figures(grid, headings, reports, intervals), *presence.figures(headings, reports, intervals)]
        columns = {**columns_of(grid, headings), **presence.columns()}
        notes = self._notes(references, texts) | NOT_HERE
        if self.as_published:
            published = Overlap().score(stripped(reports), intervals)
            figures += [replace(one, name=f"as CoGaze published, {one.name}") for one in published.figures]
            columns |= {f"as CoGaze published, {name}": values for name, values in published.columns.items()}
        return Scored(figures, columns, notes)

    def _grid(
        self, references: Sequence[Structured], texts: Sequence[Structured], headings: Sequence[str]
    ) -> Mapping[str, FloatArray]:
        """Return each score (N, headings), 0 where one side lacks the heading, NaN where both do."""
        found = {name: np.full((len(texts), len(headings)), np.nan) for name in (BLEU, ROUGE)}
        for row, (reference, text) in enumerate(zip(references, texts, strict=True)):
            for column, heading in enumerate(headings):
                there, said = reference.sections.get(heading, ()), text.sections.get(heading, ())
                if there or said:
                    scores = self.of_heading(there, said) if there and said else dict.fromkeys(found, 0.0)
                    for name, value in scores.items():
                        found[name][row, column] = value
        return found

    def of_heading(self, there: Sequence[str], said: Sequence[str]) -> dict[str, float]:
        """Score the bullets below one heading, of reference and text."""
        if self.aligned:
            said = [*said[: len(there)], *[PADDING] * (len(there) - len(said))]
        else:
            there, said = ["\n".join(there)], ["\n".join(said)]
        matches = bleu_matches([whitespace_words(one) for one in there], [whitespace_words(one) for one in said])
        rouge = rouge_f1 if self.rouge == "plain" else _stemmed_rouge_f1
        return {
            BLEU: float(bleu(matches.sum(axis=0))[-1]),
            ROUGE: float(np.mean([rouge(*pair) for pair in zip(there, said, strict=True)])),
        }

    def _notes(self, references: Sequence[Structured], texts: Sequence[Structured]) -> dict[str, Any]:
        bullets = "bullet by bullet, padded or cut to the reference's" if self.aligned else "all of a heading at once"
        said: dict[str, Any] = {
            "read": f"{self.part} by the {self.rules} rules; bullets compared {bullets}",
            "words": f"{BLEU}: what stands between blanks, case as it is; {ROUGE}: F1 on lower-cased letters and "
            f"digits, {self.rouge}",
        }
        for name, each in (("references", references), ("texts", texts)):
            dropped = Counter(one.reason for structured in each for one in structured.dropped)
            said[f"{name} without a heading"] = sum(not one.sections for one in each)
            said[f"{name}: pieces left out"] = dict(dropped)
        return said


# --- words below a heading


def rouge_f1(reference: str, text: str) -> float:
    """ROUGE-L of rouge-score without stemming: F1 of the longest common subsequence of lower-cased words."""
    one, other = (tuple(re.findall(r"[a-z0-9]+", each.lower())) for each in (reference, text))
    return 2 * longest_common(one, other) / max(1, len(one) + len(other))


def _stemmed_rouge_f1(reference: str, text: str) -> float:
    return float(_rouge_score().score(reference, text)["rougeL"].fmeasure)


@cache
def _rouge_score() -> Any:
    try:
        scorers = import_module("rouge_score.rouge_scorer")
    except ImportError:
        raise NotRunError("rouge-score is not installed; pip install rouge-score, or take rouge plain") from None
    return scorers.RougeScorer(["rougeL"], use_stemmer=True)


def word_figures(
    grid: Mapping[str, FloatArray], headings: Sequence[str], reports: Reports, intervals: Intervals
) -> list[Figure]:
    """Return each score (N, headings) over all headings, as the mean of organs, and of each organ that occurs."""
    figures = []
    for name, values in grid.items():
        told, having = np.nan_to_num(values), np.isfinite(values).astype(np.float64)
        figures.append(_ratio(f"{name}, every heading", told.sum(axis=1), having.sum(axis=1), reports, intervals))
        if len(headings) > 1:
            figures.append(_mean_of_organs(f"{name}, mean of organs", told, having, reports, intervals))
    for column, heading in enumerate(headings if len(headings) > 1 else ()):
        for name, values in grid.items():
            rows = np.flatnonzero(np.isfinite(values[:, column]))
            if len(rows):
                some, own = reports.take(rows), values[rows, column]
                figures.append(_ratio(f"{name}, {heading}", own, np.ones(len(rows)), some, intervals))
    return figures


def columns_of(grid: Mapping[str, FloatArray], headings: Sequence[str]) -> dict[str, FloatArray]:
    """Return each report's own scores (N,): the mean of its headings, and each heading's; NaN where there is none."""
    columns = {}
    for name, values in grid.items():
        having = np.isfinite(values).sum(axis=1)
        total = np.nan_to_num(values).sum(axis=1)
        columns[f"structured {name}"] = np.divide(total, having, out=np.full(len(values), np.nan), where=having > 0)
        if len(headings) > 1:
            columns |= {f"structured {name}, {heading}": values[:, place] for place, heading in enumerate(headings)}
    return columns


def _ratio(name: str, top: FloatArray, bottom: FloatArray, reports: Reports, intervals: Intervals) -> Figure:
    """Return sum(top) / sum(bottom) over reports, NaN where the latter is 0."""

    def of(counts: FloatArray) -> FloatArray:
        return _divided(counts @ top, counts @ bottom)

    return intervals.figure_of_counts(name, float(of(np.ones((1, len(top))))[0]), of, reports.groups, {})


def _mean_of_organs(name: str, told: FloatArray, having: FloatArray, reports: Reports, intervals: Intervals) -> Figure:
    occurs = having.any(axis=0)

    def of(counts: FloatArray) -> FloatArray:
        return np.asarray(_divided(counts @ told[:, occurs], counts @ having[:, occurs]).mean(axis=1))

    return intervals.figure_of_counts(name, float(of(np.ones((1, len(told))))[0]), of, reports.groups, {})


def _divided(top: FloatArray, bottom: FloatArray) -> FloatArray:
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


# --- which headings there are


@dataclass(frozen=True, eq=False)
class Presence:
    """Which headings references and texts have, both (N, headings) of 0 and 1."""

    there: FloatArray
    said: FloatArray

    @classmethod
    def of(cls, references: Sequence[Structured], texts: Sequence[Structured], headings: Sequence[str]) -> "Presence":
        """Look which headings have bullets."""
        return cls(*(_has(each, headings) for each in (references, texts)))

    def columns(self) -> dict[str, FloatArray]:
        """Return precision, recall and F1 of each report's headings (N,), 0 where it has none."""
        both, there, said = (each.sum(axis=1) for each in (self.there * self.said, self.there, self.said))
        sides = {"precision": (both, said), "recall": (both, there), "F1": (2 * both, said + there)}
        return {f"headings, {name}": top / np.maximum(1, bottom) for name, (top, bottom) in sides.items()}

    def figures(self, headings: Sequence[str], reports: Reports, intervals: Intervals) -> list[Figure]:
        """Return the means over reports, as published, and of each organ over the reports."""
        ones = np.ones(len(reports))
        figures = [_ratio(name, values, ones, reports, intervals) for name, values in self.columns().items()]
        for place, heading in enumerate(headings if len(headings) > 1 else ()):
            there, said = self.there[:, place], self.said[:, place]
            both = there * said
            sides = {"precision": (both, said), "recall": (both, there), "F1": (2 * both, said + there)}
            figures += [
                _ratio(f"headings, {name}, {heading}", top, bottom, reports, intervals)
                for name, (top, bottom) in sides.items()
                if there.any() or said.any()
            ]
        return figures


def _has(each: Sequence[Structured], headings: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.array([[float(heading in one.sections) for heading in headings] for one in each])


# --- CoGaze's own way


def stripped(reports: Reports) -> Reports:
    """Return references and texts without their headings, as CoGaze scored them."""
    return replace(
        reports,
        references=tuple(as_published(one) for one in reports.references),
        texts=tuple(as_published(one) for one in reports.texts),
        words="whitespace",
    )


def _none_structured(reports: Reports, part: Part, rules: Rules) -> str:
    if rules == "official" and any(parse(one, part, "tolerant").sections for one in reports.references):
        return "no reference is a structured report by the official rules, but some are by rules tolerant; give these"
    return f"no reference is a structured report ({part} below headings), as SRRG has them"
