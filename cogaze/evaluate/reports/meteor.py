"""METEOR 1.5 of English: the authors' Java program matches the words, as in image captioning.

The jar comes with pycocoevalcap (the extra `java`), which is neither imported nor run. What the program counts in each
pair of texts is enough for the figure of one report or of many, so that resamples need no Java.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.reports.baselines import other_texts
from cogaze.evaluate.reports.scorers import Beside, Reports, Scored
from cogaze.evaluate.reports.words import SAID, Words
from cogaze.evaluate.results import NotRunError
from cogaze.evaluate.scores import Intervals

JAR = "meteor/meteor-1.5.jar"
BESIDE: tuple[Beside, ...] = ("shuffled", "commonest")
COUNTS = 23  # numbers that the program says of a pair
MODULES = (1.0, 0.6, 0.8, 0.6)  # weight of a match: the same word, its stem, a synonym, a paraphrase
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # of English: recall, fragments twice, content words


@dataclass(frozen=True)
class Meteor:
    """METEOR of all reports together.

    java: the command. jar: meteor-1.5.jar with its data folder beside it; pycocoevalcap's by default. timeout_s: for
    one answer, of which the first takes about ten seconds.
    """

    java: str = "java"
    jar: Path | None = None
    timeout_s: float = 300.0

    name: ClassVar[str] = "METEOR"
    beside: ClassVar[tuple[Beside, ...]] = ()  # its own, so that one program is started for all

    def score(self, reports: Reports, intervals: Intervals) -> Scored:
        """Score N reports. Raises NotRunError where Java or the jar is missing, ValueError where the program fails."""
        with self.program() as program:
            counts = counts_of(program, reports)
            others = {name: other_texts(name, reports, intervals.seed) for name in BESIDE}
            beside: dict[str, float] = {
                name: float(meteor(counts_of(program, replace(reports, texts=texts)).sum(axis=0)))
                for name, texts in others.items()
                if texts is not None
            }
        figure = intervals.figure_of_counts(
            "METEOR", float(meteor(counts.sum(axis=0))), lambda drawn: meteor(drawn @ counts), reports.groups, beside
        )
        notes = {"words": SAID[reports.words], "program": "meteor-1.5.jar, -l en -norm"}
        return Scored([figure], {"METEOR": meteor(counts)}, notes)

    @contextmanager
    def program(self) -> Iterator["Program"]:
        """Start the program, and end it whatever happens."""
        if shutil.which(self.java) is None:
            raise NotRunError(f"no java: the command {Path(self.java).name!r} is not found; install a Java runtime")
        jar = self.jar or _jar_of_pycocoevalcap()
        if not jar.is_file():
            raise NotRunError(f"{jar.name} is not there; give its path, or leave it out to take pycocoevalcap's")
        options = ["-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar.resolve())]
        process = subprocess.Popen(
            [self.java, *options, "-", "-", "-stdio", "-l", "en", "-norm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it quotes the texts
            encoding="utf-8",
            start_new_session=True,
        )
        program = Program(process, self.timeout_s)
        try:
            yield program
        finally:
            program.end()


def counts_of(program: "Program", reports: Reports) -> FloatArray:
    """Return what the program counts in each of N reports (N, 23), ready to be summed."""
    pairs = zip(reports.words_of_references(), reports.words_of_texts(), strict=True)
    lines = [program.ask(_request(*pair)) for pair in pairs]
    return summable(np.array([_numbers(line, number) for number, line in enumerate(lines, 1)]))


class Program:
    """A running METEOR that answers line by line."""

    def __init__(self, process: subprocess.Popen[str], timeout_s: float) -> None:
        self.process, self.timeout_s, self.answers = process, timeout_s, 0

    def ask(self, line: str) -> str:
        """Return the answer to a line. Raises ValueError where the program ends, or takes too long and is killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        started, timer = time.monotonic(), threading.Timer(self.timeout_s, self.kill)
        timer.start()
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:  # a broken pipe
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            late = time.monotonic() - started >= self.timeout_s
            what = f"said nothing for {self.timeout_s:g} s" if late else "ended"
            raise ValueError(f"METEOR's program {what} at report {self.answers + 1}; has this machine 2 GB to spare?")
        self.answers += 1
        return answer

    def kill(self) -> None:
        """Kill the program and whatever it was started through."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the program, wait for it, and close its pipes."""
        self.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                assert pipe is not None
                pipe.close()
            except BrokenPipeError:  # what was not written before it ended
                continue


def summable(counts: FloatArray) -> FloatArray:
    """Return the program's counts (N, 23) with no fragment where all words of both match in one, as it sums them."""
    counts = counts.copy()
    same = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[same, 20] = 0
    return counts


def meteor(counts: FloatArray) -> FloatArray:
    """METEOR (...) of what `summable` made of one pair of texts, or summed over several (..., 23).

    Counts are the words and function words of text and reference, the matches of each module (content words of text and
    reference, then function words of both), fragments, matched words of text and reference.
    """
    words, functions = counts[..., 0:2], counts[..., 2:4]
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)  # module, content or function, text or reference
    weighed = (np.array(MODULES)[:, None] * _weighed(matches[..., 0, :], matches[..., 1, :])).sum(axis=-2)
    shares = _ratio(weighed, _weighed(words - functions, functions))
    precision, recall = shares[..., 0], shares[..., 1]
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    fragmented = _ratio(counts[..., 20], counts[..., 21:23].mean(axis=-1))
    return mean * (1 - GAMMA * fragmented**BETA)


def _weighed(content: FloatArray, function: FloatArray) -> FloatArray:
    return DELTA * content + (1 - DELTA) * function


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _request(reference: Words, text: Words) -> str:
    said = (" ".join(words).replace("|||", "") for words in (reference, text))
    return " ||| ".join(("SCORE", *said))


def _numbers(answer: str, number: int) -> list[float]:
    try:
        values = [float(value) for value in answer.split()]
    except ValueError:
        values = []
    if len(values) != COUNTS:
        raise ValueError(
            f"METEOR's program did not answer report {number} with {COUNTS} numbers; is it meteor-1.5.jar?"
        )
    return values


def _jar_of_pycocoevalcap() -> Path:
    found = find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise NotRunError("pycocoevalcap is not installed: pip install 'gazeprep-cogaze[java]'")
    return Path(found.submodule_search_locations[0]) / JAR
