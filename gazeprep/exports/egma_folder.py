"""The files that EGMA's published code reads: a csv, and for each reading its picture, its map, its sentences' maps."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gazeprep.exports.cogaze_folder import one_line
from gazeprep.exports.identity import identity_of
from gazeprep.exports.pictures import gray_map, write_map, write_picture
from gazeprep.exports.rendering import StoredGaze, picture_maps
from gazeprep.schema import Sentence, Word
from gazeprep.shards import LoadedSample

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Lung Opacity", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
LABEL_VALUE = {1: 1, 0: 0, -1: -1, -2: 0}
COLUMNS = ("imgpath", "report", *LABELS, "subject_id", "key")

NUMBERED = re.compile(r"[0-9]+\.+[^0-9]")  # "2. " begins an item of a list
STOP = re.compile(r"\. ")
TOKEN = re.compile(r"\w+|[^\w\s]+")  # nltk's wordpunct_tokenize


@dataclass(frozen=True)
class Piece:
    """A sentence of EGMA's split: its tokens joined by spaces, and where its text begins in the report."""

    text: str
    start: int


class EgmaFolder:
    """Writes samples one by one, a csv for each split at the end; image_root stands before each path in it."""

    def __init__(self, root: Path, *, source_ids: bool, image_root: str) -> None:
        self._root, self._source_ids, self._image_root = root, source_ids, image_root
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self.counts: Counter[str] = Counter()

    def add(self, sample: LoadedSample) -> None:
        """Write a sample's picture and maps and keep its row; one without gaze or words is left out and counted."""
        record = sample.record
        report = one_line(record["sentences"])
        pieces = egma_split(report)
        if not (record["has_gaze"] and pieces):
            self.counts["samples left out: no gaze" if not record["has_gaze"] else "samples left out: no words"] += 1
            return
        named = identity_of(record, source_ids=self._source_ids)
        folder = self._root / "images" / named.reading_name
        folder.mkdir(parents=True)
        write_picture(folder / "src.jpg", sample)
        self._write_maps(folder, sample, report, pieces)
        row = {
            "imgpath": str(PurePosixPath(self._image_root, "images", named.reading_name, "src.jpg")),
            "report": report,
            **{name: LABEL_VALUE[record["labels"][name]] for name in LABELS},
            "subject_id": named.subject_id,
            "key": sample.key,
        }
        self._rows.setdefault(record["split"], []).append(row)

    def finish(self) -> None:
        """Write one csv for each split that has samples."""
        for split, rows in self._rows.items():
            with (self._root / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                table.writeheader()
                table.writerows(rows)

    def _write_maps(self, folder: Path, sample: LoadedSample, report: str, pieces: Sequence[Piece]) -> None:
        gaze = StoredGaze.of(sample)
        sentences = timed_sentences(report, pieces, gaze.words)
        self._count(gaze.sentences, sentences)
        whole, *each = picture_maps(sample, sentences)
        (folder / "sentence_hm").mkdir()
        write_map(folder / "hm_array.jpg", gray_map(whole))
        for i, gaze_map in enumerate(each):
            self.counts["sentences"] += 1
            if not gaze_map.any():
                self.counts["sentences without gaze: black, so that EGMA takes the whole reading's map"] += 1
            write_map(folder / "sentence_hm" / f"{i}_sent_hm_array.jpg", gray_map(gaze_map))

    def _count(self, ours: Sequence[Sentence], theirs: Sequence[Sentence]) -> None:
        if [span_of(one) for one in ours] != [span_of(one) for one in theirs]:
            self.counts["samples that EGMA splits into other sentences than the shards"] += 1
        shared = sum(one.last_word > other.first_word for one, other in itertools.pairwise(theirs))
        if shared:
            self.counts["sentences that share a word's time with the next"] += shared


def span_of(sentence: Sentence) -> tuple[int, int]:
    """Return the half-open range of a sentence's words."""
    return sentence.first_word, sentence.last_word


def egma_split(report: str) -> list[Piece]:
    """Split a report of one line as EGMA's data sets for sentence maps do: at list numbers, then at ". ".

    Sentences without an ASCII token fall away; the last one keeps its full stop.
    """
    pieces = []
    for start, end in _between(NUMBERED, report, 0, len(report)):
        for first, last in _between(STOP, report, start, end):
            text = report[first:last].replace("\ufffd\ufffd", " ").lower()
            tokens = [token.encode("ascii", "ignore").decode() for token in TOKEN.findall(text)]
            kept = [token for token in tokens if token]
            if kept:
                pieces.append(Piece(" ".join(kept), first))
    return pieces


def _between(separator: re.Pattern[str], text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return the spans of text[start:end] that lie between separators."""
    found = [match.span() for match in separator.finditer(text, start, end)]
    return list(zip([start, *(after for _, after in found)], [*(before for before, _ in found), end], strict=True))


def timed_sentences(report: str, pieces: Sequence[Piece], words: Sequence[Word]) -> list[Sentence]:
    """Give the pieces of a report the words that it was made of, and so their times.

    A sentence has the words from its own first one to the next sentence's, so that a full stop or list number
    between them goes to the first. Two that begin in one word (a dictated phrase) both have its time.
    """
    owner = np.repeat(np.arange(len(words)), [len("".join(word.text.split())) for word in words])
    spoken = np.cumsum([not character.isspace() for character in report])  # spaces differ, other characters do not
    assert len(owner) == spoken[-1]
    firsts = []
    for piece in pieces:
        skipped = len(report[piece.start :]) - len(report[piece.start :].lstrip())
        firsts.append(int(owner[spoken[piece.start + skipped] - 1]))
    firsts[0] = 0
    sentences = []
    for piece, first, after in zip(pieces, firsts, [*firsts[1:], len(words)], strict=True):
        last = max(after, first + 1)
        end_s = max(word.end_s for word in words[first:last])
        sentences.append(Sentence(piece.text, words[first].start_s, end_s, first, last))
    return sentences
