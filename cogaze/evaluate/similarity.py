"""How alike images and texts are, each one or several unit vectors, computed block by block."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from cogaze.evaluate.metrics import FloatArray

DECIMALS = 9  # equal things differ in the sixteenth, by the order of a matrix product's sums


class Similarities(Protocol):
    """Similarities of queries and candidates, of which any rows can be had; larger is more alike."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (queries, candidates)."""

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return the similarities (stop - start, candidates) of some queries."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """N images or texts: vectors (V, dim) of length 1, one thing after another; count (N,) says how many each has."""

    vectors: npt.NDArray[np.floating]
    count: npt.NDArray[np.int64]

    @classmethod
    def of(cls, vectors: npt.NDArray[np.floating]) -> Self:
        """Take one vector (N, dim) of any length for each thing."""
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return cls(vectors / np.maximum(length, 1e-12), np.ones(len(vectors), dtype=np.int64))

    def __post_init__(self) -> None:
        if self.count.sum() != len(self.vectors) or (len(self.count) and self.count.min() < 1):
            raise ValueError(f"{len(self.vectors)} vectors for {self.count.sum()}, of which each thing has at least 1")

    def __len__(self) -> int:
        return len(self.count)

    @cached_property
    def first(self) -> npt.NDArray[np.int64]:
        """Return where each thing's vectors begin (N,)."""
        return np.cumsum(self.count) - self.count

    @property
    def single(self) -> bool:
        """Whether each thing is one vector."""
        return len(self.vectors) == len(self.count)

    def __getitem__(self, rows: npt.NDArray[np.integer]) -> "Embedded":
        """Return some of the things, in that order."""
        spans = [np.arange(self.first[row], self.first[row] + self.count[row]) for row in rows]
        places = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return Embedded(self.vectors[places], self.count[rows])


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity of queries and candidates: cosine where both are single vectors, as CoGaze has it.

    Otherwise half of the mean over a query's vectors of the best cosine with one of the candidate's, and half of the
    same the other way round: EGMA's, of patches and sentences. Rounded to nine decimals, so that equal things tie.
    """

    queries: Embedded
    candidates: Embedded

    @property
    def shape(self) -> tuple[int, int]:
        """Return (queries, candidates)."""
        return len(self.queries), len(self.candidates)

    @property
    def reversed(self) -> "Similarity":
        """Return that of the candidates, as queries, and the queries."""
        return Similarity(self.candidates, self.queries)

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return the similarities (stop - start, candidates) of some queries."""
        if self.queries.single and self.candidates.single:
            found = self.queries.vectors[start:stop].astype(np.float64) @ self._columns
        else:
            found = np.array([self._late(number) for number in range(start, stop)]).reshape(-1, len(self.candidates))
        return np.round(found, DECIMALS, out=found)

    def array(self) -> FloatArray:
        """Return all of it (queries, candidates)."""
        return self.rows(0, len(self.queries))

    @cached_property
    def _columns(self) -> FloatArray:
        return np.ascontiguousarray(self.candidates.vectors.T, dtype=np.float64)

    def _late(self, number: int) -> FloatArray:
        """Return one query's row (candidates,)."""
        first, count = self.queries.first[number], self.queries.count[number]
        cosine = self.queries.vectors[first : first + count].astype(np.float64) @ self._columns
        starts = self.candidates.first
        of_query = np.maximum.reduceat(cosine, starts, axis=1).mean(axis=0)
        of_candidate = np.add.reduceat(cosine.max(axis=0), starts) / self.candidates.count
        return np.asarray((of_query + of_candidate) / 2)
