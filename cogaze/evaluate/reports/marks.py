"""What each sentence of a report and of its generated text says of the findings, and whether the other one agrees."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cogaze.checkpoint import hidden
from cogaze.evaluate.reports.labeller import NOT_A_DISEASE, Said, labels_of, said_in, sentences
from cogaze.evaluate.reports.negation import Status
from cogaze.evaluate.reports.scorers import Reports

FILE = "marks.jsonl"
Verdict = Literal["match", "contradiction", "alone"]
OPPOSITE: dict[Status, Status] = {"positive": "negative", "negative": "positive"}


@dataclass(frozen=True)
class Mark:
    """A finding that a sentence speaks of, and what the other report makes of it."""

    label: str
    status: Status
    verdict: Verdict


@dataclass(frozen=True)
class Piece:
    """One sentence as written, single spaced, and its findings."""

    text: str
    findings: tuple[Mark, ...]


@dataclass(frozen=True)
class Marks:
    """The sentences of a reference and of the text that was generated for it, in order."""

    reference: tuple[Piece, ...]
    text: tuple[Piece, ...]


@dataclass(frozen=True)
class _Report:
    """A report's sentences with what they say, and what it says as a whole."""

    sentences: tuple[str, ...]
    said: tuple[tuple[Said, ...], ...]
    labels: dict[str, Status]

    @classmethod
    def of(cls, text: str) -> "_Report":
        parts = sentences(text)
        return cls(parts, tuple(said_in(part) for part in parts), labels_of(text))

    @property
    def normal(self) -> bool:
        """Whether no finding but devices is there or possible."""
        return "No Finding" in self.labels

    @property
    def ill(self) -> bool:
        """Whether a finding other than a device is there."""
        return any(status == "positive" for label, status in self.labels.items() if label not in NOT_A_DISEASE)

    def pieces(self, other: "_Report") -> tuple[Piece, ...]:
        """Judge the sentences by the other report."""
        return tuple(
            Piece(sentence, tuple(Mark(one.label, one.status, self.verdict(one, other)) for one in said))
            for sentence, said in zip(self.sentences, self.said, strict=True)
        )

    def verdict(self, said: Said, other: "_Report") -> Verdict:
        """Return what another report makes of a finding of this one."""
        elsewhere = {one for sentence in other.said for one in sentence}
        if said in elsewhere or other.labels.get(said.label) == said.status:
            return "match"
        if said.label == "No Finding":
            return "contradiction" if self.normal and other.ill else "alone"
        opposed = other.labels.get(said.label) == OPPOSITE.get(said.status, "none")
        return "contradiction" if opposed else "alone"


def marks_of(reference: str, text: str) -> Marks:
    """Compare what two reports say of each finding, sentence by sentence.

    match: the other report says the same, as a whole or in one of its sentences. contradiction: as a whole it says that
    the finding is absent where this one has it, or has it where this one denies it; "nothing is wrong" is contradicted
    by a finding where this whole report is normal. alone: all else, also where one of both is not certain.
    """
    first, second = _Report.of(reference), _Report.of(text)
    return Marks(first.pieces(second), second.pieces(first))


def write_marks(path: Path, reports: Reports) -> None:
    """Write one json line for each report: its key, the pieces of the reference and of the text. Appears only whole."""
    unfinished = hidden(path)
    with unfinished.open("w", encoding="utf-8") as file:
        for key, reference, text in zip(reports.keys, reports.references, reports.texts, strict=True):
            line = {"key": key} | asdict(marks_of(reference, text))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    unfinished.replace(path)
