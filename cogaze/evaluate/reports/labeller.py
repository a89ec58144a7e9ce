"""Rule-based labels of a report, not CheXbert: which of CheXpert's 14 labels it says are there, absent or uncertain.

Words are in `phrases`, the reach of negation and doubt in `negation`. docs/reports.md says how far the labels agree
with those that people gave to real reports (benchmarks/labeller.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cogaze.evaluate.reports.negation import CLAUSE, Scope, Status, scopes, status_at
from cogaze.evaluate.reports.phrases import FINDINGS, NOTHING, ONE_PART, PARTS, Part, compiled, plain
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT

NAME = "rule-based labels, not CheXbert"
CODES: Mapping[str, int] = {"positive": 1, "negative": 0, "uncertain": -1}
STRENGTH: Mapping[str, int] = {"negative": 0, "uncertain": 1, "positive": 2}
NO_FINDING = CHEXPERT_LABELS.index("No Finding")
NOT_A_DISEASE = ("No Finding", "Support Devices")
KEPT_SENTENCES = 2**16  # generated reports repeat theirs

SENTENCE_END = re.compile(
    r"""
    (?<=[.?!])(?<!\b\d\.)(?<!\bdr\.)(?<!\bvs\.)\s+
  | \n\s*\n | (?<=:)[ ]*\n | \n(?=\s*[-*•]\s)  # paragraphs, headings, bullets
  | \s+(?=\d{1,2}\.\s+[A-Za-z])               # items of a numbered list
    """,
    re.IGNORECASE | re.VERBOSE,
)

_FINDINGS = {label: compiled(patterns) for label, patterns in FINDINGS.items()}
_NOTHING, _ONE_PART = compiled(NOTHING), compiled(ONE_PART)
_OR = re.compile(r"(?: \w+)?(?: ,)? or(?: \w+){0,3} ")
# Between a word and the part that it is said of; before a word that another part has as its predicate.
_ATTRIBUTE = re.compile(r"(?: (?!and\b|or\b|is\b|are\b)\w+){0,2} ")
_PREDICATE = re.compile(r"(?<![^ ])(?:is|are|appears?|remains?|within|in)(?: \w+ly)? $")
# A verb or its like, and after it a comma or "and" that begins something else than one more word for the same part.
_OWN_VERB = re.compile(
    r"(?<![^ ])(?:is|are|was|were|appears?|remains?|stable|unchanged|seen) (?:.* )?(?:,|and) "
    r"(?!(?:(?:is|are|also|appears?|remains?|within|upper|otherwise|probably|likely) )*$)"
)
NEIGHBOURS = 4  # findings among which the other one of "or" is: several labels may share words
LONGEST_GAP = 12  # words between a part and what is said of it


@dataclass(frozen=True)
class Said:
    """What a sentence says of one label."""

    label: str
    status: Status


@dataclass(frozen=True)
class _Mention:
    """A finding by name, from its first character to behind its last."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class _Words:
    """A part's patterns, ready to use."""

    part: Part
    name: re.Pattern[str]
    healthy: re.Pattern[str]
    abnormal: re.Pattern[str] | None
    borderline: re.Pattern[str] | None


_PARTS = tuple(
    _Words(
        part,
        compiled((part.name,)),
        compiled((part.healthy,)),
        compiled((part.abnormal,)) if part.abnormal else None,
        compiled((part.borderline,)) if part.borderline else None,
    )
    for part in PARTS
)


def sentences(text: str) -> tuple[str, ...]:
    """Split a report into its sentences as written, single spaced; a number alone begins the sentence after it."""
    return tuple(" ".join(piece.split()) for piece in SENTENCE_END.split(text) if piece.strip())


@lru_cache(maxsize=KEPT_SENTENCES)
def said_in(sentence: str) -> tuple[Said, ...]:
    """Return what a sentence says, each label once: positive before uncertain before negative.

    "No Finding" stands here for a sentence that calls all of it normal; of a report, it is a rule (`labels_of`).
    """
    text = plain(sentence)
    reached = scopes(text)
    found: dict[str, Status] = {}
    for said in (*_named(text, reached), *_parts(text, reached)):
        if said.label not in found or STRENGTH[said.status] > STRENGTH[found[said.label]]:
            found[said.label] = said.status
    if _NOTHING.search(text) and not _ONE_PART.search(text) and "positive" not in found.values():
        found["No Finding"] = "positive"
    return tuple(Said(label, status) for label, status in found.items())


def _named(text: str, reached: tuple[Scope, ...]) -> Iterator[Said]:
    found = [
        _Mention(label, match.start(), match.end())
        for label, pattern in _FINDINGS.items()
        for match in pattern.finditer(text)
    ]
    mentions = sorted(found, key=lambda one: (one.start, one.end))
    undecided = _one_of_two(text, mentions)
    for mention in mentions:
        status = status_at(reached, mention.end - 1)
        if status == "positive" and mention in undecided:
            status = "uncertain"
        if status is not None:
            yield Said(mention.label, status)


def _one_of_two(text: str, mentions: list[_Mention]) -> set[_Mention]:
    """Return the findings that "or" joins with another one's, as in "atelectasis or early pneumonia"."""
    diseases = [one for one in mentions if one.label not in NOT_A_DISEASE]
    joined = set()
    for place, first in enumerate(diseases):
        for second in diseases[place + 1 : place + 1 + NEIGHBOURS]:
            if first.label != second.label and _OR.fullmatch(text, first.end, second.start):
                joined |= {first, second}
    return joined


@dataclass(frozen=True)
class _Quality:
    """What is said of a part, and where."""

    status: Status  # of its being enlarged, congested
    start: int
    end: int


def _parts(text: str, reached: tuple[Scope, ...]) -> Iterator[Said]:
    for words in _PARTS:
        names = tuple(words.name.finditer(text))
        said = sorted(_qualities(text, words), key=lambda one: (one.start, -one.end)) if names else []
        for name in names:
            quality = _quality(text, said, name)
            if quality is not None:
                yield from _judged(words.part, quality, reached)


def _quality(text: str, said: list[_Quality], name: re.Match[str]) -> _Quality | None:
    """Return what is said of a part: the word right before it, else the first one after it in its own clause."""
    for one in reversed(said):
        if one.end < name.start() and _ATTRIBUTE.fullmatch(text, one.end, name.start()):
            if not _PREDICATE.search(text, 0, one.start):
                return one
            break
    for one in said:
        if one.start > name.end():
            return one if _same_clause(text, name.end(), one.start) else None
    return None


def _qualities(text: str, words: _Words) -> Iterator[_Quality]:
    patterns: dict[Status, re.Pattern[str] | None] = {
        "negative": words.healthy,
        "positive": words.abnormal,
        "uncertain": words.borderline,
    }
    for status, pattern in patterns.items():
        for match in pattern.finditer(text) if pattern is not None else ():
            yield _Quality(status, match.start(), match.end())


def _same_clause(text: str, start: int, end: int) -> bool:
    between = text[start:end]
    return len(between.split()) <= LONGEST_GAP and not CLAUSE.search(between) and not _OWN_VERB.search(between)


def _judged(part: Part, quality: _Quality, reached: tuple[Scope, ...]) -> Iterator[Said]:
    status = status_at(reached, quality.end - 1)
    if quality.status == "negative":
        if status != "negative":
            yield from (Said(label, "negative") for label in part.denies)
    elif status is not None:
        yield Said(part.enlarged, quality.status if status == "positive" else status)


# --- of whole reports


def labels_of(text: str) -> dict[str, Status]:
    """Return the status of each label that a report says something of.

    The strongest of its sentences counts, as CheXpert's labeller has it. "No Finding" is positive where nothing but
    support devices is positive or uncertain, and a text without words has no labels at all.
    """
    found: dict[str, Status] = {}
    for sentence in sentences(text):
        for said in said_in(sentence):
            if said.label not in found or STRENGTH[said.status] > STRENGTH[found[said.label]]:
                found[said.label] = said.status
    found.pop("No Finding", None)
    ill = any(status != "negative" for label, status in found.items() if label not in NOT_A_DISEASE)
    if not ill and plain(text):
        found["No Finding"] = "positive"
    return found


def codes_of(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Label texts: (N, 14) in the order of CHEXPERT_LABELS, 1 there, 0 absent, -1 uncertain, LABEL_ABSENT unsaid."""
    codes = np.full((len(texts), len(CHEXPERT_LABELS)), LABEL_ABSENT, dtype=np.int64)
    for row, text in zip(codes, texts, strict=True):
        for label, status in labels_of(text).items():
            row[CHEXPERT_LABELS.index(label)] = CODES[status]
    return codes
