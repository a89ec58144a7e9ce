"""RadGraph F1, RadCliQ, RaTEScore and BERTScore as `radeval` computes them, in an environment of its own if need be.

radeval needs torchvision and more; it runs in a process, by any Python that has it. Weights are its own affair: it
takes them from the Hugging Face hub or its cache.
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports.scorers import Beside, Reports, Scored
from cogaze.evaluate.results import Figure, NotRunError
from cogaze.evaluate.scores import Intervals

HOW = (
    "make an environment for it: python -m venv E, with its pip install radeval 'numpy<2' 'pandas<3', and pass its "
    "Python as --clinical.python (docs/reports.md)"
)
PROCESS = Path(__file__).with_name("radeval_process.py")
BLANK = 0.5  # RaTEScore of a text in which it finds nothing: its own rule


@dataclass(frozen=True)
class Metric:
    """One of radeval's metrics.

    radeval: its name there. columns: what it says of each report, to the names here. weights: what it loads.
    """

    title: str
    radeval: str
    columns: Mapping[str, str]
    weights: str
    note: str


METRICS = (
    Metric(
        "BERTScore",
        "bertscore",
        {"bertscore": "BERTScore"},
        "distilbert-base-uncased",
        "F1 of layer 5 of distilbert-base-uncased, rescaled with its baseline, no idf",
    ),
    Metric(
        "RadGraph F1",
        "radgraph",
        {f"radgraph_{level}": f"RadGraph F1 {level}" for level in ("simple", "partial", "complete")},
        "radgraph-xl.tar.gz of StanfordAIMI/RRG_scorers and the encoder that its config.json names",
        "RadGraph-XL; simple: entities, partial: and whether they have relations, complete: and the relations",
    ),
    Metric(
        "RadCliQ-v1, raw and inverse",
        "radcliq",
        {"radcliq_v1": "radcliq_v1_raw"},
        "radgraph.tar.gz and chexbert.pth of StanfordAIMI/RRG_scorers, bert-base-uncased, distilroberta-base",
        "raw: about how many errors, lower is better; inverse: 1 / mean of raw, higher is better, as it is published. "
        "Its BERTScore weighs words by all references of the set, so that a report's own value depends on the others",
    ),
    Metric(
        "RaTEScore",
        "ratescore",
        {"ratescore": "RaTEScore"},
        "Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C",
        f"long-report weights; a text without words is {BLANK}, as it has it of one without entities",
    ),
)


@dataclass(frozen=True)
class Clinical:
    """How radeval is run.

    python: the interpreter of an environment that has it; this one by default. offline: look for weights in the cache
    alone, at once instead of after minutes where there is no network. timeout_s: for one metric.
    """

    python: Path | None = None
    offline: bool = False
    timeout_s: float = 6 * 3600.0

    def scorers(self) -> "list[ByRadEval]":
        """Return a scorer for each metric, so that one that cannot run loses no other."""
        return [ByRadEval(metric, self) for metric in METRICS]

    def ask(self, metric: Metric, question: Mapping[str, Any]) -> dict[str, Any]:
        """Run radeval's process and return its answer. Raises NotRunError where it or its weights are not there."""
        command = [str(self.python or sys.executable), str(PROCESS)]
        environment = dict(os.environ) | ({"HF_HUB_OFFLINE": "1"} if self.offline else {})
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it may quote the texts
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise NotRunError(f"clinical.python cannot be started ({type(error).__name__}); {HOW}") from None
        said = self._said(process, json.dumps(question).encode())
        try:
            answer = json.loads(said)
        except ValueError:
            raise ValueError(f"radeval's process ended with code {process.returncode} without an answer") from None
        if "missing" in answer:
            raise NotRunError(why_missing(metric, answer))
        return dict(answer)

    def _said(self, process: subprocess.Popen[bytes], question: bytes) -> bytes:
        try:
            return process.communicate(question, timeout=self.timeout_s)[0]
        except subprocess.TimeoutExpired:
            raise ValueError(f"radeval said nothing for {self.timeout_s:g} s; raise clinical.timeout_s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def why_missing(metric: Metric, answer: Mapping[str, str]) -> str:
    """Say what radeval lacks, and the cure."""
    if answer["module"] == "radeval":
        return f"radeval is not installed; {HOW}"
    if answer["module"]:
        return f"radeval lacks a package: {answer['missing']}; {HOW}"
    return (
        f"radeval could not load {metric.title} ({answer['missing']}). It needs {metric.weights} from the Hugging Face "
        "hub: run it once with network, or copy that machine's Hugging Face and radgraph caches"
    )


@dataclass(frozen=True)
class ByRadEval:
    """One metric, run by radeval."""

    metric: Metric
    options: Clinical = field(default_factory=Clinical)

    beside: ClassVar[tuple[Beside, ...]] = ("shuffled",)

    @property
    def name(self) -> str:
        """Its heading in the results."""
        return self.metric.title

    def score(self, reports: Reports, intervals: Intervals) -> Scored:
        """Score N reports. Raises NotRunError where radeval or its weights are missing, ValueError where it fails."""
        columns, versions = self.columns(reports)
        figures = [_mean(name, values, reports, intervals) for name, values in columns.items()]
        if "radcliq_v1_raw" in columns:
            figures.append(_inverse(columns["radcliq_v1_raw"], reports, intervals))
        return Scored(figures, columns, {"what": self.metric.note, "weights": self.metric.weights} | versions)

    def columns(self, reports: Reports) -> tuple[dict[str, FloatArray], dict[str, Any]]:
        """Return each report's scores (N,) by name, and the versions they were made with."""
        asked = list(range(len(reports)))
        if self.metric.radeval == "ratescore":  # it loses count of texts without a sentence
            asked = [row for row in asked if _has_words(reports.references[row]) and _has_words(reports.texts[row])]
        columns = {name: np.full(len(reports), BLANK) for name in self.metric.columns.values()}
        if not asked:
            return columns, {}
        question = {
            "metric": self.metric.radeval,
            "references": [reports.references[row] for row in asked],
            "texts": [reports.texts[row] for row in asked],
        }
        answer = self.options.ask(self.metric, question)
        if "failed" in answer:
            raise ValueError(f"radeval stopped at the texts with {answer['failed']}; without texts it loads")
        for theirs, ours in self.metric.columns.items():
            columns[ours][asked] = _numbers(answer["scores"].get(theirs, []), len(asked), ours)
        return columns, {"versions": answer["versions"]}


def _has_words(text: str) -> bool:
    return sum(letter.isalpha() for letter in text) >= 3


def _numbers(values: list[float], count: int, name: str) -> FloatArray:
    finite = sum(math.isfinite(value) for value in values)
    if len(values) != count or finite != count:
        raise ValueError(f"radeval gave {finite} numbers for {name} of {count} reports; is it radeval 2.2?")
    return np.array(values)


def _mean(name: str, values: FloatArray, reports: Reports, intervals: Intervals) -> Figure:
    title = f"{name} (lower is better)" if name.endswith("_raw") else name
    return intervals.figure_of_counts(
        title, float(values.mean()), lambda counts: counts @ values / counts.sum(axis=1), reports.groups, {}
    )


def _inverse(raw: FloatArray, reports: Reports, intervals: Intervals) -> Figure:
    """1 / mean, which orders nothing where the mean is not positive: no number then."""

    def inverse(counts: FloatArray) -> FloatArray:
        mean = np.asarray(counts @ raw / counts.sum(axis=1))
        return np.divide(1.0, mean, out=np.full(mean.shape, np.nan), where=mean > 0)

    value = float(inverse(np.ones((1, len(raw))))[0])
    return intervals.figure_of_counts("radcliq_v1_inverse (higher is better)", value, inverse, reports.groups, {})
