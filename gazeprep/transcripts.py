"""Words -> sentences; which fixations count for each sentence, and for how long."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gazeprep.fixations import overlap_s
from gazeprep.schema import Fixations, FloatArray, Sentence, Word

# A full stop ends a sentence unless a digit follows it ("1.5", ".5 cm").
INNER_STOP = re.compile(r"\.(?!\d)\s*")


def sentences_of(
    words: Sequence[Word], *, full_stop: Literal["token", "suffix"] = "token", drop_tail: bool = False
) -> tuple[Sentence, ...]:
    """Split dictated words into sentences, each ending with a full stop.

    full_stop: "token", a word equal to "." (REFLACX); "suffix", a word that ends in "." (EGD-CXR phrases). A
    comma, a slash or ".5" never ends a sentence. Words after the last full stop form one, unless drop_tail.
    """
    sentences, first = [], 0
    for i, word in enumerate(words):
        if word.text == "." or (full_stop == "suffix" and word.text.rstrip().endswith(".")):
            sentences.append(_sentence(words, first, i + 1))
            first = i + 1
    if first < len(words) and not drop_tail:
        sentences.append(_sentence(words, first, len(words)))
    return tuple(sentences)


def _sentence(words: Sequence[Word], first: int, last: int) -> Sentence:
    text = " ".join(word.text for word in words[first:last]).replace(" .", ".").replace(" ,", ",")
    return Sentence(" ".join(text.split()), words[first].start_s, max(w.end_s for w in words[first:last]), first, last)


def split_phrases(phrases: Sequence[Word]) -> tuple[Word, ...]:
    """Split phrases that hold an inner full stop after each one, sharing the time by characters.

    "clear.the heart" from 1.0 s to 2.5 s becomes "clear." to 1.6 s and "the heart" from there.
    """
    pieces = []
    for phrase in phrases:
        ends = [match.end() for match in INNER_STOP.finditer(phrase.text)]
        bounds = [0, *(end for end in ends if end < len(phrase.text.rstrip())), len(phrase.text)]
        per_character = (phrase.end_s - phrase.start_s) / max(len(phrase.text), 1)
        for low, high in itertools.pairwise(bounds):
            # The outer bounds are the phrase's own times, without the rounding of a product.
            start_s = phrase.start_s if low == 0 else phrase.start_s + low * per_character
            end_s = phrase.end_s if high == len(phrase.text) else phrase.start_s + high * per_character
            pieces.append(Word(phrase.text[low:high].strip(), start_s, end_s))
    return tuple(piece for piece in pieces if piece.text)


@dataclass(frozen=True)
class Alignment:
    """Which fixations count for a sentence; the defaults are the REFLACX authors' best rule.

    start: where a sentence's time window begins: `lead` (lead_s before it, not before the previous sentence
    when bounded), `sentence` (its own start), `previous_start`, `previous_end` (so the pause counts),
    `recording` (0 s), `first_word` (of the dictation).
    end: `sentence_end`, `sentence_start`, `first_mention` or `last_mention`: the start of the first or last
    word that is in `mentions` (lower case), the sentence's end where none is.
    membership: `clipped` (the overlapping part of its duration), `whole_overlap` (its whole duration where it
    overlaps), `whole_end` (its whole duration where its end lies in the window), `whole_once` (its whole
    duration, to the first sentence whose end it does not pass).
    drop_tail: leave out words after the last full stop.
    """

    start: Literal["lead", "sentence", "previous_start", "previous_end", "recording", "first_word"] = "lead"
    lead_s: float = 1.5
    bounded: bool = True
    end: Literal["sentence_end", "sentence_start", "first_mention", "last_mention"] = "sentence_end"
    mentions: tuple[str, ...] = ()
    membership: Literal["clipped", "whole_overlap", "whole_end", "whole_once"] = "clipped"
    drop_tail: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.lead_s) and self.lead_s >= 0):
            raise ValueError(f"alignment.lead_s is {self.lead_s}, must be 0 or more seconds")
        if self.end.endswith("_mention") and not self.mentions:
            raise ValueError(f"alignment.end is {self.end}: list the words in alignment.mentions")
        never = [word for word in self.mentions if word != word.lower() or len(word.split()) != 1]
        if never:
            raise ValueError(
                f"alignment.mentions holds {never[0]!r}, which no dictated word equals: one lower-case word each"
            )


@dataclass(frozen=True)
class Span:
    """A time window in seconds."""

    start_s: float
    end_s: float


def time_windows(
    sentences: Sequence[Sentence], words: Sequence[Word], rule: Alignment | None = None
) -> tuple[Span, ...]:
    """Return the time window of each sentence under an alignment rule; default max(start - 1.5 s, previous start)."""
    rule = rule or Alignment()
    return tuple(
        Span(_window_start(sentences, i, rule), _window_end(sentences[i], words, rule)) for i in range(len(sentences))
    )


def _window_start(sentences: Sequence[Sentence], i: int, rule: Alignment) -> float:
    own, previous = sentences[i], sentences[i - 1] if i else None
    match rule.start:
        case "recording":
            return 0.0
        case "first_word":
            return sentences[0].start_s
        case "previous_start" if previous:
            return previous.start_s
        case "previous_end" if previous:
            return min(previous.end_s, own.start_s)
        case "lead":
            start_s = own.start_s - rule.lead_s
            return max(start_s, previous.start_s) if previous and rule.bounded else start_s
    return own.start_s


def _window_end(sentence: Sentence, words: Sequence[Word], rule: Alignment) -> float:
    if rule.end == "sentence_start":
        return sentence.start_s
    if rule.end == "sentence_end":
        return sentence.end_s
    spoken = words[sentence.first_word : sentence.last_word]
    starts = [word.start_s for word in spoken if word.text.lower().strip(".,") in rule.mentions]
    if not starts:
        return sentence.end_s
    return starts[0] if rule.end == "first_mention" else starts[-1]


def sentence_weights(
    fixations: Fixations, sentences: Sequence[Sentence], words: Sequence[Word], rule: Alignment | None = None
) -> FloatArray:
    """Seconds (S, n) that each of n fixations counts for each of S sentences, the weights of render_batch."""
    rule = rule or Alignment()
    spans = time_windows(sentences, words, rule)
    if rule.membership == "clipped":
        rows = [overlap_s(fixations, span.start_s, span.end_s) for span in spans]
    elif rule.membership == "whole_once":
        rows = _whole_once(fixations, sentences)
    else:
        rows = [np.where(_belongs(fixations, span, rule.membership), fixations.duration_s, 0.0) for span in spans]
    return np.array(rows, dtype=np.float64).reshape(len(spans), len(fixations))


def _belongs(fixations: Fixations, span: Span, membership: str) -> np.ndarray:
    if membership == "whole_end":
        return (fixations.end_s >= span.start_s) & (fixations.end_s <= span.end_s)
    return overlap_s(fixations, span.start_s, span.end_s) > 0


def _whole_once(fixations: Fixations, sentences: Sequence[Sentence]) -> list[FloatArray]:
    """Give each fixation to the first sentence whose end it does not pass; those before the first word to none."""
    if not sentences:
        return []
    ends = np.array([sentence.end_s for sentence in sentences])
    owner = np.searchsorted(np.maximum.accumulate(ends), fixations.end_s)
    owner[fixations.end_s < sentences[0].start_s] = len(sentences)
    return [np.where(owner == i, fixations.duration_s, 0.0) for i in range(len(sentences))]
