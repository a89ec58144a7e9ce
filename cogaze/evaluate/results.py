"""Figures with their intervals and what they have to beat; the results of several evaluators, written after each."""

import json
import math
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cogaze.checkpoint import write_whole
from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.processes import OtherProcessError, Process, any_failed
from gazeprep.schema import InputError

REPEATS = 1000
LEVEL = 0.95
CELLS = 2**22  # counts of rows in resamples that are made at once
LEAST_DEFINED = 0.9  # share of the resamples in which a figure exists, below which it has no interval
OURS = ("cogaze.", "gazeprep.")
NOT_RUN = "not run: "
FOLDERS = re.compile(r"(?<![\w.~/-])(?:[A-Za-z]+://|[A-Za-z]:\\|~?/)[^\s'\",;:)]*[/\\]")


class NotRunError(Exception):
    """What an evaluator needs and need not be there is not: a package, Java, weights. Says the cure, quotes no data."""


@dataclass(frozen=True)
class Interval:
    """Bounds of a figure; None where it has none, and then `why` says so."""

    low: float | None
    high: float | None
    why: str = ""


NO_INTERVAL = Interval(None, None)


@dataclass(frozen=True)
class Figure:
    """One number: its 95 % bootstrap interval, on how many images, texts or sentences, and what it has to beat.

    baselines: by name, such as "chance" or "always the majority"; "ceiling" is what cannot be exceeded.
    why: why there is no interval.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    baselines: Mapping[str, float] = field(default_factory=dict)
    why: str = ""

    @classmethod
    def of(
        cls, name: str, value: float, interval: Interval, n: int, baselines: Mapping[str, float] | None = None
    ) -> "Figure":
        """Put a value and its interval together."""
        return cls(name, float(value), interval.low, interval.high, n, dict(baselines or {}), interval.why)


def bootstrap(
    function: Callable[..., float],
    arrays: Sequence[npt.NDArray[Any]],
    groups: npt.NDArray[Any] | Sequence[Any] | None = None,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Interval:
    """Return the percentiles 2.5 and 97.5 of function(*arrays) over resamples of the groups, with replacement.

    arrays: each (N, ...), resampled alike along the first axis. groups (N,): the subject or study of each row, whose
    rows stay together; each row is its own by default. A resample in which the figure does not exist (NaN) is left
    out; where more than a tenth are, there is no interval. The same seed gives the same interval.
    """

    def of_each(counts: FloatArray) -> FloatArray:
        drawn = (np.repeat(np.arange(counts.shape[1]), row) for row in counts.astype(np.int64))
        return np.array([function(*(array[places] for array in arrays)) for places in drawn])

    return weighted_bootstrap(of_each, len(arrays[0]), groups, repeats=repeats, seed=seed)


def weighted_bootstrap(
    function: Callable[[FloatArray], FloatArray],
    count: int,
    groups: npt.NDArray[Any] | Sequence[Any] | None = None,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Interval:
    """Return `bootstrap` of what a function makes of many resamples at once: the same draws, in far less time.

    function: how often each of `count` rows was drawn (resamples, count) to figures (resamples,).
    """
    number = _numbered(count, groups)
    own = int(number.max()) + 1 if count else 0
    if own < 2 or repeats < 1:
        return Interval(None, None, "one group alone" if own < 2 else "no resamples asked for")
    rng, values = np.random.default_rng(seed), []
    at_once = max(1, CELLS // count)
    for start in range(0, repeats, at_once):
        drawn = rng.integers(own, size=(min(at_once, repeats - start), own))
        counts = np.stack([np.bincount(row, minlength=own) for row in drawn])
        values.append(function(counts[:, number].astype(np.float64)))
    found = np.concatenate(values)
    defined = found[np.isfinite(found)]
    if len(defined) < LEAST_DEFINED * repeats:
        return Interval(None, None, f"exists in {len(defined)} of {repeats} resamples only")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def mean_interval(
    values: FloatArray,
    groups: npt.NDArray[Any] | Sequence[Any] | None = None,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Interval:
    """Return `bootstrap` of the mean of values (N,)."""

    def means(counts: FloatArray) -> FloatArray:
        return np.asarray(counts @ values / counts.sum(axis=1))

    return weighted_bootstrap(means, len(values), groups, repeats=repeats, seed=seed)


def _numbered(count: int, groups: npt.NDArray[Any] | Sequence[Any] | None) -> npt.NDArray[np.int64]:
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} rows; give one for each row")
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Outcome:
    """What an evaluator gave: figures and notes (thresholds, counts, what was left out), or what kept it from it."""

    figures: tuple[Figure, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Found:
    """What an evaluator returns: its figures, and what has to be known to read them."""

    figures: Sequence[Figure]
    notes: Mapping[str, Any] = field(default_factory=dict)


class Results:
    """Figures of one evaluation, written to results.json and results.md after each evaluator, by the main process.

    settings: what all of it depends on, as plain json: model, data, counts, prompts' hash, versions.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out, self.settings = out, settings
        self.outcomes: dict[str, Outcome] = {}
        if Process.current().is_main:
            out.mkdir(parents=True, exist_ok=True)

    @property
    def failed(self) -> list[str]:
        """Name the evaluators that gave no figures."""
        return [name for name, outcome in self.outcomes.items() if outcome.error]

    def attempt(self, name: str, function: Callable[[], Found | Iterable[Figure]]) -> Outcome:
        """Run an evaluator and keep its figures; whatever stops it is kept in their place and loses no other's.

        The error's text is kept where it is one of ours, which quote no report and no id; folders are cut off.
        """
        if name in self.outcomes:
            raise ValueError(f"two evaluators are called {name!r}; name them apart")
        try:
            found = function()
            found = found if isinstance(found, Found) else Found(tuple(found))
            outcome = Outcome(tuple(found.figures), dict(found.notes))
        except Exception as error:  # noqa: BLE001 - one that fails, however, must not lose the others
            outcome = Outcome(error=told(error))
        if any_failed(bool(outcome.error)) and not outcome.error:
            outcome = Outcome(error=told(OtherProcessError("another process could not do its part")))
        self.outcomes[name] = outcome
        self.write()
        return outcome

    def write(self) -> None:
        """Write both files, each under its name only when it is whole."""
        if not Process.current().is_main:
            return
        outcomes = {name: _plain(outcome) for name, outcome in self.outcomes.items()}
        values = {"settings": _finite(self.settings), "results": outcomes}
        write_whole(self.out / "results.json", (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
        write_whole(self.out / "results.md", self.markdown().encode())

    def markdown(self) -> str:
        """Lay all figures out as Markdown tables, one for each evaluator."""
        lines = ["# Results", ""]
        for name, outcome in self.outcomes.items():
            lines += [f"## {name}", ""]
            lines += [_why_none(outcome.error), ""] if outcome.error else _table(outcome)
        lines += ["## Settings", "", "```json", json.dumps(_finite(self.settings), indent=2), "```", ""]
        return "\n".join(lines)


def told(error: Exception) -> str:
    """Say what went wrong without quoting data: the text of an error that our own code raised, else its type."""
    if isinstance(error, OtherProcessError):
        return str(error)
    if isinstance(error, NotRunError):
        return NOT_RUN + FOLDERS.sub("", str(error))
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [name for name in frames if name.startswith(OURS)]  # `attempt` first
    raised_here = len(own) > 1 and frames[-1] == own[-1]
    if type(error) is InputError or (type(error) is ValueError and raised_here):
        return FOLDERS.sub("", str(error))
    return f"{type(error).__name__} in {own[-1] if len(own) > 1 else 'an evaluator'}"


def _why_none(error: str) -> str:
    return error if error.startswith(NOT_RUN) else f"Not made: {error}"


def _plain(outcome: Outcome) -> dict[str, Any]:
    if outcome.error:
        return {"error": outcome.error}
    return {"figures": [_finite(asdict(figure)) for figure in outcome.figures], "notes": _finite(dict(outcome.notes))}


def _finite(value: Any) -> Any:
    """Return json's own types; what is not a number becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items() if not (name == "why" and not one)}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(outcome: Outcome) -> list[str]:
    names = list(dict.fromkeys(name for figure in outcome.figures for name in figure.baselines))
    header = ["", "value", "95 % interval", *names, "n"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for figure in outcome.figures:
        interval = figure.why or "" if figure.low is None else f"{_digits(figure.low)} to {_digits(figure.high)}"
        beside = [_digits(figure.baselines.get(name)) for name in names]
        lines.append(f"| {' | '.join([figure.name, _digits(figure.value), interval, *beside, str(figure.n)])} |")
    lines.append("")
    lines += [f"- {name}: {_said(value)}" for name, value in outcome.notes.items()]
    return [*lines, ""] if outcome.notes else lines


def _digits(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(_finite(value))
