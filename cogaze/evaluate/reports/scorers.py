"""What every scorer of generated reports takes and gives, so that one more is a class and a line in `score`.

A scorer is a frozen dataclass whose fields are its options (`--chexbert.weights FILE` on the command line) and cheap to
make: `score` alone imports packages, opens weights and starts processes, and raises results.NotRunError where one is
not there. It quotes no text in an error, a note or a log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports.words import RULES, Rule, Words
from cogaze.evaluate.results import Figure
from cogaze.evaluate.scores import Intervals

Beside = Literal["shuffled", "commonest", "ceiling"]


@dataclass(frozen=True, eq=False)
class Reports:
    """N generated texts, each beside the reference that was written about the same study.

    keys: pseudonymous, unique. references: "" where there is none; a scorer is given no such row. texts: "" where
    nothing was said. groups (N,): the subject, else study, else the report itself, whose rows stay together in a
    resample. words: the rule by which both become words. Raises ValueError where the lengths differ.
    """

    keys: tuple[str, ...]
    references: tuple[str, ...]
    texts: tuple[str, ...]
    groups: npt.NDArray[np.str_]
    words: Rule = "ptb"

    def __post_init__(self) -> None:
        lengths = {len(self.keys), len(self.references), len(self.texts), len(self.groups)}
        if len(lengths) > 1:
            raise ValueError(
                f"keys, references, texts and groups have {sorted(lengths)} rows; give one for each report"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> "Reports":
        """Keep some rows, in this order."""
        return Reports(
            tuple(self.keys[row] for row in rows),
            tuple(self.references[row] for row in rows),
            tuple(self.texts[row] for row in rows),
            self.groups[np.asarray(rows, dtype=np.int64)],
            self.words,
        )

    def words_of_references(self) -> tuple[Words, ...]:
        """Return each reference as words."""
        return tuple(RULES[self.words](text) for text in self.references)

    def words_of_texts(self) -> tuple[Words, ...]:
        """Return each text as words."""
        return tuple(RULES[self.words](text) for text in self.texts)


@dataclass(frozen=True, eq=False)
class Scored:
    """What a scorer found in N reports.

    columns: each report's own score by name, (N,), NaN where it does not exist. notes: what has to be known to read the
    figures, as plain json: rules, counts, versions.
    """

    figures: Sequence[Figure]
    columns: Mapping[str, FloatArray] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """One kind of score.

    name: its heading in the results. beside: other texts that it is run on too, to say what its figures have to beat:
    the generated texts of other subjects ("shuffled"), the most frequent reference for everyone ("commonest"), each
    reference itself ("ceiling"). A scorer may put further baselines into its figures itself.
    """

    @property
    def name(self) -> str:
        """Its heading in the results."""

    @property
    def beside(self) -> tuple[Beside, ...]:
        """What it is run on as well; () where one run takes long enough."""

    def score(self, reports: Reports, intervals: Intervals) -> Scored:
        """Score N >= 1 reports. Raises NotRunError where a package, Java or weights are missing."""
