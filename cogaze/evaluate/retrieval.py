"""Which text belongs to an image, which images to a text: ranks of hits, exact and in bounded memory.

Candidates that are equally similar share their places: every figure is its expectation over a random order of those.
A model that tells nothing apart therefore scores chance, and the order of the files moves nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cogaze.evaluate.metrics import FloatArray, chance_rank, chance_recall, share_with_hit
from cogaze.evaluate.processes import batches_of, rows_in_order
from cogaze.evaluate.results import REPEATS, Figure, bootstrap, mean_interval
from cogaze.evaluate.similarity import Embedded, Similarities, Similarity

IntArray = npt.NDArray[np.int64]
TOP = (1, 5, 10)
QUICK = (1, 5)
MEMORY_BYTES = 2**28  # of a block of similarities with what is computed from it
BYTES_A_CELL = 24  # a similarity, its copy in order of size, three comparisons


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the hits of Q queries stand among the candidates.

    hits (Q, len(TOP)): expected number of hits among the first K. found (Q, len(TOP)): probability of at least one.
    rank (Q,): expected rank of the first hit, from 1. relevant (Q,): how many candidates are hits.
    """

    hits: FloatArray
    found: FloatArray
    rank: FloatArray
    relevant: IntArray
    candidates: int


def ranking(
    similarity: Similarities,
    query_class: npt.ArrayLike,
    candidate_class: npt.ArrayLike,
    *,
    memory_bytes: int = MEMORY_BYTES,
) -> Ranking:
    """Rank the candidates of each query; those of its class are hits.

    query_class (Q,), candidate_class (M,): any numbers. Blocks of queries that take about memory_bytes are compared
    with all candidates, by several processes if there are some; the numbers do not depend on it. Raises ValueError
    where a query has no hit.
    """
    hits = _HitColumns.of(np.asarray(query_class), np.asarray(candidate_class))
    queries, candidates = similarity.shape
    if (queries, candidates) != (len(hits.count), len(hits.order)):
        raise ValueError(
            f"similarities are {queries} x {candidates}, but classes are given for {len(hits.count)} queries and "
            f"{len(hits.order)} candidates"
        )

    def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
        for batch in batches:
            block = similarity.rows(batch.start, batch.stop)
            found = _rank_block(block, hits.of_rows(batch))
            yield {name: torch.from_numpy(values) for name, values in found.items()}

    size = max(1, memory_bytes // (BYTES_A_CELL * candidates))
    rows = rows_in_order(batches_of(queries, size), encode)
    return Ranking(rows["hits"], rows["found"], rows["rank"], hits.count, candidates)


@dataclass(frozen=True, eq=False)
class _HitColumns:
    """The columns of each query's hits: order[first[q] : first[q] + count[q]]."""

    order: IntArray
    first: IntArray
    count: IntArray

    @classmethod
    def of(cls, query_class: npt.NDArray[Any], candidate_class: npt.NDArray[Any]) -> "_HitColumns":
        order = np.argsort(candidate_class, kind="stable")
        ordered = candidate_class[order]
        first = np.searchsorted(ordered, query_class, side="left")
        count = np.searchsorted(ordered, query_class, side="right") - first
        if not count.all():
            raise ValueError(f"{int((count == 0).sum())} of {len(count)} queries have no hit among the candidates")
        return cls(order, first, count)

    def of_rows(self, rows: range) -> "_HitColumns":
        """Return those of some queries."""
        return _HitColumns(self.order, self.first[rows.start : rows.stop], self.count[rows.start : rows.stop])

    def values(self, block: FloatArray) -> FloatArray:
        """Return the similarities of the hits, query after query."""
        row = np.repeat(np.arange(len(self.count)), self.count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        return np.asarray(block[row, self.order[np.repeat(self.first, self.count) + within]])

    def per_query(self, flags: npt.NDArray[np.bool_]) -> FloatArray:
        """Count the hits (queries,) that are flagged; flags as `values` has them."""
        return np.add.reduceat(flags, np.cumsum(self.count) - self.count, dtype=np.float64)


def _rank_block(block: FloatArray, hits: _HitColumns) -> dict[str, FloatArray]:
    """Return hits, found (rows, len(TOP)) and rank (rows,) of a block (rows, candidates)."""
    of_hits = hits.values(block)
    starts = np.cumsum(hits.count) - hits.count
    best = np.maximum.reduceat(of_hits, starts)
    tied_hits = hits.per_query(of_hits == np.repeat(best, hits.count))
    above = (block > best[:, None]).sum(axis=1)
    tied = (block == best[:, None]).sum(axis=1) - tied_hits
    found = {"hits": np.empty((len(block), len(TOP))), "found": np.empty((len(block), len(TOP)))}
    first = -np.sort(-_largest(block, max(TOP)), axis=1)
    for column, k in enumerate(TOP):
        k = min(k, block.shape[1])
        last = first[:, k - 1]
        larger, equal = (first > last[:, None]).sum(axis=1), _count_equal(block, first, last)
        hits_above = hits.per_query(of_hits > np.repeat(last, hits.count))
        hits_equal = hits.per_query(of_hits == np.repeat(last, hits.count))
        found["hits"][:, column] = hits_above + (k - larger) * hits_equal / equal
        among_equal = share_with_hit(hits_equal, equal, k - larger)
        found["found"][:, column] = np.where(hits_above > 0, 1.0, among_equal)
    return {**found, "rank": 1 + above + tied / (tied_hits + 1)}


def _largest(block: FloatArray, count: int) -> FloatArray:
    """Return the `count` largest of each row, or all where there are fewer, in any order."""
    if count >= block.shape[1]:
        return block
    return np.partition(block, block.shape[1] - count, axis=1)[:, -count:]


def _count_equal(block: FloatArray, first: FloatArray, last: FloatArray) -> npt.NDArray[np.int64]:
    """Count the candidates (rows,) as similar as `last` (rows,), in whole rows only where they go beyond `first`."""
    equal = (first == last[:, None]).sum(axis=1)
    beyond = np.flatnonzero(first[:, -1] == last)
    rows = block if len(beyond) == len(block) else block[beyond]  # not a copy of all
    equal[beyond] = (rows == last[beyond, None]).sum(axis=1)
    return np.asarray(equal)


# --- protocols


@dataclass(frozen=True)
class Resampling:
    """How many bootstrap resamples an interval has, and their seed."""

    repeats: int = REPEATS
    seed: int = 0


def figures_of(
    name: str,
    found: Ranking,
    groups: npt.NDArray[Any] | None = None,
    resampling: Resampling | None = None,
) -> list[Figure]:
    """Return P@K, R@K and the median rank of one direction, beside chance and the most that could be.

    groups (Q,): whose queries are resampled together; the candidates stay.
    """
    how = resampling or Resampling()
    drawn: dict[str, Any] = {"repeats": how.repeats, "seed": how.seed}
    n, figures = len(found.rank), []
    for column, k in enumerate(TOP):
        precision = found.hits[:, column] / k
        beside = {
            "chance": float(found.relevant.mean()) / found.candidates * min(k, found.candidates) / k,
            "ceiling": float((np.minimum(found.relevant, k) / k).mean()),
        }
        interval = mean_interval(precision, groups, **drawn)
        figures.append(Figure.of(f"{name} P@{k}", precision.mean(), interval, n, beside))
    for column, k in enumerate(TOP):
        beside = {"chance": chance_recall(found.relevant, found.candidates, k), "ceiling": 1.0}
        interval = mean_interval(found.found[:, column], groups, **drawn)
        figures.append(Figure.of(f"{name} R@{k}", found.found[:, column].mean(), interval, n, beside))
    median = bootstrap(np.median, [found.rank], groups, **drawn)
    beside = {"chance": chance_rank(found.relevant, found.candidates), "ceiling": 1.0}
    figures.append(Figure.of(f"{name} median rank", float(np.median(found.rank)), median, n, beside))
    return figures


def class_retrieval(
    images: Embedded,
    texts: Embedded,
    image_class: npt.ArrayLike,
    text_class: npt.ArrayLike,
    *,
    subjects: npt.NDArray[Any] | None = None,
    resampling: Resampling | None = None,
) -> list[Figure]:
    """Return the figures both ways where the same class is a hit ("5x200", "8x200"), an image's own text among them.

    image_class (N,), text_class (M,). subjects (N,): of the images, who are resampled.
    """
    similarity = Similarity(images, texts)
    there = ranking(similarity, image_class, text_class)
    back = ranking(similarity.reversed, text_class, image_class)
    return [
        *figures_of("image to text", there, subjects, resampling),
        *figures_of("text to image", back, None, resampling),
    ]


def pair_retrieval(
    images: Embedded,
    texts: Embedded,
    pair: npt.ArrayLike,
    *,
    subjects: npt.NDArray[Any] | None = None,
    resampling: Resampling | None = None,
) -> list[Figure]:
    """Return the figures both ways where an image's own text is its only hit, a text's hits all images that have it.

    images, texts: N each, line by line. pair (N,): equal for images that share one text, which is one candidate and
    one query, its first line. subjects (N,): of the lines, who are resampled.
    """
    pairs = _Pairs.of(pair)
    similarity = Similarity(images, texts[pairs.first])
    there = ranking(similarity, pairs.number, pairs.number[pairs.first])
    back = ranking(similarity.reversed, pairs.number[pairs.first], pairs.number)
    of_texts = None if subjects is None else subjects[pairs.first]
    return [
        *figures_of("image to text", there, subjects, resampling),
        *figures_of("text to image", back, of_texts, resampling),
    ]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The number of each line's text (N,), and the first line of each text."""

    number: IntArray
    first: IntArray

    @classmethod
    def of(cls, pair: npt.ArrayLike) -> "_Pairs":
        _, first, number = np.unique(np.asarray(pair), return_index=True, return_inverse=True)
        return cls(number.reshape(-1), first)


def retrieval(image: FloatArray, report: FloatArray, study_id: npt.NDArray[np.int64]) -> dict[str, float]:
    """Figures of image -> report and report -> image among N samples that have both, by name.

    image, report: (N, dim). study_id: (N,). A study's report is one candidate and one query, however many images or
    readings the study has. `chance` figures are those of a random order.
    """
    return retrieval_of(Embedded.of(image), Embedded.of(report), study_id)


def retrieval_of(image: Embedded, report: Embedded, study_id: npt.NDArray[np.int64]) -> dict[str, float]:
    """The same of N images and reports of one or several vectors each."""
    found = pair_retrieval(image, report, study_id, resampling=Resampling(repeats=0))
    named = {one.name: one for one in found}
    figures: dict[str, float] = {}
    for way in ("image to text", "text to image"):
        shown = [named[f"{way} {what}"] for what in (*(f"R@{k}" for k in QUICK), "median rank")]
        figures |= {one.name.replace("text", "report"): one.value for one in shown}
        figures |= {f"{one.name.replace('text', 'report')} chance": one.baselines["chance"] for one in shown}
    return figures
