"""Generated reports scored: every scorer that is asked for, its figures beside what they have to beat, scores of each.

A scorer that fails, or lacks a package, Java or weights, leaves its reason in the results and loses no other's figures.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cogaze.checkpoint import hidden, versions
from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports.baselines import with_baselines
from cogaze.evaluate.reports.chexbert import CheXbertF1
from cogaze.evaluate.reports.clinical import Clinical
from cogaze.evaluate.reports.generated import Generated, read_generated
from cogaze.evaluate.reports.label_f1 import RuleBasedF1
from cogaze.evaluate.reports.marks import FILE as MARKS
from cogaze.evaluate.reports.marks import write_marks
from cogaze.evaluate.reports.meteor import Meteor
from cogaze.evaluate.reports.organs import StructuredScorer
from cogaze.evaluate.reports.overlap import Overlap
from cogaze.evaluate.reports.scorers import Reports, Scorer
from cogaze.evaluate.reports.words import Rule
from cogaze.evaluate.results import NOT_RUN, REPEATS, Found, Results, told
from cogaze.evaluate.scores import Intervals
from cogaze.log import say

SCORES = "scores.parquet"


@dataclass(frozen=True)
class ScoreConfig:
    """What is scored, and how.

    generated: a folder that pipelines/generate.py wrote, or a .parquet, .csv or .jsonl file with the columns
    `reference` and `text`. out: where results.json, results.md, scores.parquet and marks.jsonl go. scorers: some of
    those that there are, all by default. words: how texts become words: ptb, or whitespace where they are tokenised
    already. repeats: of bootstrap intervals. seed: of these, and of who gets whose text in "shuffled". Each scorer's
    own options are below its name.
    """

    generated: Path
    out: Path
    scorers: tuple[str, ...] = ()
    words: Rule = "ptb"
    repeats: int = REPEATS
    seed: int = 0
    labels: RuleBasedF1 = field(default_factory=RuleBasedF1)
    structured: StructuredScorer = field(default_factory=StructuredScorer)
    meteor: Meteor = field(default_factory=Meteor)
    chexbert: CheXbertF1 = field(default_factory=CheXbertF1)
    clinical: Clinical = field(default_factory=Clinical)

    def __post_init__(self) -> None:
        if self.words not in get_args(Rule):
            raise ValueError(f"words is {self.words!r}, must be {' or '.join(get_args(Rule))}")
        if self.repeats < 0:
            raise ValueError(f"repeats is {self.repeats}, must be at least 0")
        unknown = sorted(set(self.scorers) - set(self.every_scorer()))
        if unknown:
            raise ValueError(f"there is no scorer {', '.join(unknown)}; there are {', '.join(self.every_scorer())}")

    def every_scorer(self) -> dict[str, Scorer]:
        """Return all scorers by the name that chooses them, in the order in which they run: the quick ones first."""
        return {
            "overlap": Overlap(),
            "labels": self.labels,
            "structured": self.structured,
            "meteor": self.meteor,
            "chexbert": self.chexbert,
            **{one.metric.radeval: one for one in self.clinical.scorers()},
        }

    def chosen(self) -> dict[str, Scorer]:
        """Return those that run."""
        return {name: one for name, one in self.every_scorer().items() if not self.scorers or name in self.scorers}

    def failed(self, results: Results) -> list[str]:
        """Name the scorers that gave no figures, but for those that lack something and were not asked for by name."""
        errors = {name: results.outcomes[one.name].error for name, one in self.chosen().items()}
        return [name for name, why in errors.items() if why and (self.scorers or not why.startswith(NOT_RUN))]


def score(config: ScoreConfig) -> Results:
    """Run the scorers one after another, write results and each report's scores after each, and return the results.

    Rows without a reference are scored by none; in scores.parquet they have NaN. What the sentences say of each finding
    is written last, text and all. Raises ValueError (InputError) where the table cannot be read or no row has a
    reference.
    """
    generated = read_generated(config.generated)
    having = np.flatnonzero([bool(one.strip()) for one in generated.reports.references])
    if not len(having):
        raise ValueError(f"none of the {len(generated.reports)} generated reports has a reference to be scored against")
    reports = replace(generated.reports.take(having), words=config.words)
    intervals = Intervals(config.repeats, config.seed)
    results = Results(config.out, settings(config, generated, len(having)))
    columns: dict[str, FloatArray] = {}
    for name, scorer in config.chosen().items():
        started = time.monotonic()
        outcome = results.attempt(scorer.name, partial(_found, scorer, reports, intervals, columns))
        write_scores(config.out / SCORES, generated.reports.keys, having, columns)
        what = outcome.error or f"{len(outcome.figures)} figures"
        say(f"{name}: {what} ({time.monotonic() - started:.0f} s)")
    write_marks(config.out / MARKS, generated.reports)
    return results


def _found(scorer: Scorer, reports: Reports, intervals: Intervals, columns: dict[str, FloatArray]) -> Found:
    """Score reports, add each report's own scores to `columns`, and return the figures beside their baselines."""
    scored = scorer.score(reports, intervals)
    wrong = [name for name, values in scored.columns.items() if name in columns or values.shape != (len(reports),)]
    if wrong:
        raise ValueError(f"{scorer.name}: columns {wrong} are another scorer's, or have not {len(reports)} rows")
    columns |= scored.columns
    try:
        return Found(with_baselines(scorer, scored, reports, intervals.seed), scored.notes)
    except Exception as error:  # noqa: BLE001 - whatever a baseline needs, it must not lose the figures
        return Found(scored.figures, {**scored.notes, "baselines not made": told(error)})


def write_scores(
    path: Path, keys: Sequence[str], rows: npt.NDArray[np.integer], columns: Mapping[str, FloatArray]
) -> None:
    """Write one row for each key: its own scores, NaN in rows that were not scored. The file appears only whole."""
    table: dict[str, Any] = {"key": pa.array(keys, pa.string())}
    for name, values in columns.items():
        every = np.full(len(keys), np.nan)
        every[rows] = values
        table[name] = pa.array(every, pa.float64(), from_pandas=False)
    pq.write_table(pa.table(table), hidden(path))
    hidden(path).replace(path)


def settings(config: ScoreConfig, generated: Generated, scored: int) -> dict[str, Any]:
    """Return what the figures depend on, without places."""
    return {
        "generated": {
            "sha256": generated.sha256,
            "reports": len(generated.reports),
            "without a reference, left out": len(generated.reports) - scored,
            "empty texts": sum(not text.strip() for text in generated.reports.texts),
        },
        "words": config.words,
        "scorers": list(config.chosen()),
        "intervals": f"95 %, {config.repeats} bootstrap resamples of groups, seed {config.seed}",
        "groups": {f"reports by {kind}": count for kind, count in generated.grouped.items() if count},
        "versions": versions(),
    }
