"""How much of a report's wording a generated text shares: BLEU, ROUGE-L and CIDEr of image captioning.

One reference for each text. The definitions, constants included, are those of pycocoevalcap, which published figures
come from (its `Cider` is CIDEr-D). sacrebleu and rouge-score define BLEU's smoothing and ROUGE-L's F otherwise.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports.scorers import Beside, Reports, Scored
from cogaze.evaluate.reports.words import SAID, Words
from cogaze.evaluate.results import Figure
from cogaze.evaluate.scores import Intervals

Grams = Counter[Words]

LONGEST = 4  # words of an n-gram
SMALL, TINY = 1e-9, 1e-15  # of BLEU, so that nothing divides by 0
BETA = 1.2  # of ROUGE-L: how much more recall weighs
SIGMA = 6.0  # of CIDEr-D: words by which lengths may differ


@dataclass(frozen=True)
class Overlap:
    """BLEU-1 to 4 of all reports together, and the means of ROUGE-L and CIDEr."""

    name: ClassVar[str] = "overlap"
    beside: ClassVar[tuple[Beside, ...]] = ("shuffled", "commonest", "ceiling")

    def score(self, reports: Reports, intervals: Intervals) -> Scored:
        """Score N reports by their words."""
        references, texts = reports.words_of_references(), reports.words_of_texts()
        matches = bleu_matches(references, texts)
        of_all, of_each = bleu(matches.sum(axis=0)), bleu(matches)
        columns = {f"BLEU-{n + 1}": of_each[:, n] for n in range(LONGEST)}
        figures = []
        for n, name in enumerate(columns):
            resampled = _of_counts(matches, n)
            figures.append(intervals.figure_of_counts(name, float(of_all[n]), resampled, reports.groups, {}))
        means = {"ROUGE-L": rouge_l(references, texts), "CIDEr": cider(references, texts)}
        figures += [mean_figure(name, values, reports, intervals) for name, values in means.items()]
        return Scored(figures, columns | means, {"words": SAID[reports.words]} | counts_of(references, texts))


# --- BLEU


def grams(words: Words) -> Grams:
    """Count the n-grams of 1 to 4 words."""
    return Counter(
        words[start : start + length] for length in range(1, LONGEST + 1) for start in range(len(words) - length + 1)
    )


def bleu_matches(references: Sequence[Words], texts: Sequence[Words]) -> FloatArray:
    """Return what BLEU is made of (N, 10): lengths of text and reference, n-grams of the text, those that match."""
    rows = np.zeros((len(texts), 2 + 2 * LONGEST))
    for row, reference, text in zip(rows, references, texts, strict=True):
        row[:2] = len(text), len(reference)
        row[2 : 2 + LONGEST] = [max(0, len(text) - n) for n in range(LONGEST)]
        for gram, count in (grams(text) & grams(reference)).items():
            row[1 + LONGEST + len(gram)] += count
    return rows


def bleu(matches: FloatArray) -> FloatArray:
    """BLEU-1 to 4 (..., 4) of what `bleu_matches` made of one report, or summed over several (..., 10)."""
    length, reference, said = matches[..., 0], matches[..., 1], matches[..., 2 : 2 + LONGEST]
    precision = (matches[..., 2 + LONGEST :] + TINY) / (said + SMALL)
    geometric = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, LONGEST + 1))
    ratio = (length + TINY) / (reference + SMALL)
    brevity = np.where(ratio < 1, np.exp(np.minimum(0, 1 - 1 / ratio)), 1.0)
    return np.asarray(geometric * brevity[..., None])


def _of_counts(matches: FloatArray, n: int) -> Callable[[FloatArray], FloatArray]:
    return lambda counts: bleu(counts @ matches)[:, n]


# --- ROUGE-L


def longest_common(one: Words, other: Words) -> int:
    """Return the length of the longest common subsequence: one bit a word, a row of the table at once (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(one) - row.bit_count()


def rouge_l(references: Sequence[Words], texts: Sequence[Words]) -> FloatArray:
    """ROUGE-L (N,): F of the longest common subsequence, recall weighing more; 0 where there is none."""
    common = np.array([longest_common(one, other) for one, other in zip(references, texts, strict=True)], dtype=float)
    precision = common / np.maximum(1, [len(one) for one in texts])
    recall = common / np.maximum(1, [len(one) for one in references])
    both = (1 + BETA**2) * precision * recall
    return np.divide(both, recall + BETA**2 * precision, out=np.zeros(len(common)), where=common > 0)


# --- CIDEr


def cider(references: Sequence[Words], texts: Sequence[Words]) -> FloatArray:
    """CIDEr-D (N,), 0 to 10: cosine of n-gram weights, clipped to the reference's, less where lengths differ.

    An n-gram weighs less the more of the N references have it, so that the figure depends on the others too: with one
    reference alone it is 0.
    """
    weights = RareGrams([grams(one) for one in references])
    return np.array([weights.similarity(*pair) for pair in zip(references, texts, strict=True)])


class RareGrams:
    """Weights of n-grams by how few of the references have them."""

    def __init__(self, references: Sequence[Grams]) -> None:
        having = Counter(gram for one in references for gram in one)
        self.most = float(np.log(len(references)))
        self.by_gram = {gram: self.most - float(np.log(count)) for gram, count in having.items()}

    def weighted(self, counts: Grams) -> dict[Words, float]:
        """Return a text's n-grams with their count times their weight."""
        return {gram: count * self.by_gram.get(gram, self.most) for gram, count in counts.items()}

    def similarity(self, reference: Words, text: Words) -> float:
        """Return CIDEr-D of a text, 0 to 10."""
        there, said = self.weighted(grams(reference)), self.weighted(grams(text))
        shared = _by_length((gram, min(said[gram], there[gram]) * there[gram]) for gram in said.keys() & there.keys())
        norms = _norms(there) * _norms(said)
        cosines = np.divide(shared, norms, out=np.zeros(LONGEST), where=norms > 0)
        # Lengths are told by the pairs of words, as there.
        apart = max(0, len(text) - 1) - max(0, len(reference) - 1)
        return float(10 * cosines.mean() * np.exp(-(apart**2) / (2 * SIGMA**2)))


def _by_length(values: Iterable[tuple[Words, float]]) -> FloatArray:
    sums = np.zeros(LONGEST)
    for gram, value in values:
        sums[len(gram) - 1] += value
    return sums


def _norms(weighted: dict[Words, float]) -> FloatArray:
    return np.sqrt(_by_length((gram, weight**2) for gram, weight in weighted.items()))


# --- figures


def mean_figure(name: str, values: FloatArray, reports: Reports, intervals: Intervals) -> Figure:
    """Return the mean of each report's score (N,) with its interval."""
    return intervals.figure_of_counts(
        name, float(values.mean()), lambda counts: counts @ values / counts.sum(axis=1), reports.groups, {}
    )


def counts_of(references: Sequence[Words], texts: Sequence[Words]) -> dict[str, float]:
    """Return what to know of the words: how many texts and references have none, how long they are in the mean."""
    lengths = {"texts": [len(one) for one in texts], "references": [len(one) for one in references]}
    empty = {f"{name} without a word": int(sum(not one for one in each)) for name, each in lengths.items()}
    return empty | {f"mean words of {name}": float(np.mean(each)) for name, each in lengths.items()}
