"""Structured reports: headings with bullets, or a numbered impression, to and from text; what is not read is told.

The rules called "official" are those of the scorer that was published with SRRG: see docs/reports.md for both.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from cogaze.evaluate.reports.loose import loose_findings, loose_impression

Part = Literal["findings", "impression"]
Rules = Literal["official", "tolerant"]
Reason = Literal[
    "before any heading",
    "below an unknown heading",
    "unknown line",
    "cut by an unknown line",
    "replaced by a repeated heading",
    "heading without bullets",
    "name of the section",
]

ORGANS = (
    "Lungs and Airways",
    "Pleura",
    "Cardiovascular",
    "Hila and Mediastinum",
    "Tubes, Catheters, and Support Devices",
    "Musculoskeletal and Chest Wall",
    "Abdominal",
    "Other",
)
IMPRESSION = "Impression"

Sections = Mapping[str, Sequence[str]]

_MARKS = re.compile(r"^\W*")
_NUMBER = re.compile(r"\d+\.(?!\d)\s*")  # not the beginning of 3.5 cm
_SECTION_NAME = {
    "findings": re.compile(r"\s*findings\s*:", re.IGNORECASE),
    "impression": re.compile(r"\s*impression\s*:", re.IGNORECASE),
}


@dataclass(frozen=True)
class Dropped:
    """Text that a parser left out, and why."""

    reason: Reason
    text: str


@dataclass(frozen=True)
class Structured:
    """Bullets by heading in the order of the text, without their marks; an impression's items are below IMPRESSION.

    Each heading has a bullet at least. dropped: all else that the text held.
    """

    sections: Mapping[str, tuple[str, ...]]
    dropped: tuple[Dropped, ...] = ()


def parse(text: str, part: Part = "findings", rules: Rules = "official") -> Structured:
    """Read a structured report.

    official: as the published scorer does. A heading is one of ORGANS to the letter, alone in its line, a bullet a line
    that begins with "-"; any other line takes its heading's bullets so far and those up to the next heading with it; of
    a heading that stands twice, the last is kept. Each line of an impression is an item.
    tolerant: headings in any case, with or without a colon, and in one line with others or with their bullets; bullets
    of other marks or none; a heading that stands twice is one. An impression's items may share a line. An unknown
    heading loses its own bullets alone.
    """
    if part not in get_args(Part) or rules not in get_args(Rules):
        raise ValueError(f"part {part!r} with rules {rules!r}: give one of {get_args(Part)} and of {get_args(Rules)}")
    begin = _SECTION_NAME[part].match(text)
    body = text[begin.end() :] if begin else text
    named = [Dropped("name of the section", begin[0].strip())] if begin else []
    loose = rules == "tolerant"
    read = _impression(body, loose) if part == "impression" else _findings(body, loose)
    return Structured(read.sections, (*named, *read.dropped))


def serialize(sections: Sections, part: Part = "findings") -> str:
    """Write the form that SRRG's own reports have, which `parse` reads back to the letter by the official rules.

    Raises ValueError for a heading that is none, one without bullets, or a bullet that would be read as something else.
    """
    known = ORGANS if part == "findings" else (IMPRESSION,)
    for heading, bullets in sections.items():
        if heading not in known:
            raise ValueError(f"a heading of {len(heading)} characters is none of {', '.join(known)}")
        if not bullets:
            raise ValueError(f"{heading!r} has no bullets; leave the heading out")
        if not all(_readable(bullet, part) for bullet in bullets):
            raise ValueError(
                f"a bullet of {heading!r} is empty, has spaces around it, more than one line, or reads as a heading; "
                "mend it first"
            )
    if part == "impression":
        return "\n".join(f"{number}. {item}" for number, item in enumerate(sections.get(IMPRESSION, ()), start=1))
    return "\n\n".join("\n".join([f"{name}:", *(f"- {one}" for one in said)]) for name, said in sections.items())


def heading_of(line: str) -> str | None:
    """Return the organ that a line is the heading of by the official rules: marks before and one colon may stand."""
    name = _MARKS.sub("", line.strip()).removesuffix(":").strip()
    return name if name in ORGANS else None


def as_published(text: str) -> str:
    """Strip a report's headings as CoGaze did before scoring it; docs/fidelity.md says what that does to the text.

    Line ends are deleted; a heading must be followed by a colon and a hyphen at once; what stands before the first is
    lost; what follows is cut at every hyphen, and full stops are set apart.
    """
    line = re.sub(r"[^\x20-\x7e]", "", text.strip())
    blocks = re.split(rf"(?:{'|'.join(map(re.escape, ORGANS))}):-", line)[1:]
    pieces = [piece.strip() for block in blocks for piece in block.split("-") if piece.strip()]
    return re.sub(" +", " ", " ".join(pieces).replace(".", " ."))


def _readable(bullet: str, part: Part) -> bool:
    plain = bullet == bullet.strip() and bullet and "\n" not in bullet
    return bool(plain) and (part == "impression" or heading_of(bullet) is None)


def _impression(text: str, loose: bool) -> Structured:
    lines = loose_impression(text) if loose else text.split("\n")
    numbered = [line.strip() for line in lines if line.strip()]
    items = [_NUMBER.sub("", line, count=1) if _NUMBER.match(line) else line for line in numbered]
    kept = tuple(item for item in items if item)
    empty = [Dropped("heading without bullets", line) for line, item in zip(numbered, items, strict=True) if not item]
    return Structured({IMPRESSION: kept} if kept else {}, tuple(empty))


def _findings(text: str, loose: bool) -> Structured:
    lines = loose_findings(text, ORGANS) if loose else text.split("\n")
    reader = _Reader(loose)
    for line in (line.strip() for line in lines):
        if line:
            reader.take(line)
    return reader.done()


@dataclass
class _Reader:
    """Takes a text's lines one by one.

    heading: of the bullets that come, None before the first and below an unknown one.
    """

    loose: bool
    heading: str | None = None
    bullets: list[str] = field(default_factory=list)
    outside: Reason = "before any heading"
    sections: dict[str, list[str]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    def take(self, line: str) -> None:
        heading = heading_of(line)
        if heading is not None:
            self._close()
            self.heading = heading
        elif not line.startswith("-"):
            self._unknown(line)
        elif self.heading is None:
            self.dropped.append(Dropped(self.outside, line))
        elif line.removeprefix("-").strip():
            self.bullets.append(line.removeprefix("-").strip())

    def done(self) -> Structured:
        self._close()
        empty = [Dropped("heading without bullets", f"{name}:") for name, said in self.sections.items() if not said]
        kept = {name: tuple(said) for name, said in self.sections.items() if said}
        return Structured(kept, (*self.dropped, *empty))

    def _close(self) -> None:
        """Keep the bullets of the heading that ends here."""
        if self.heading is None:
            return
        kept = self.sections.setdefault(self.heading, [])
        if not self.loose:
            self.dropped.extend(_each("replaced by a repeated heading", kept))
            kept.clear()
        kept.extend(self.bullets)
        self.heading, self.bullets = None, []

    def _unknown(self, line: str) -> None:
        if self.loose:
            self._close()
        self.dropped.extend(_each("cut by an unknown line", self.bullets))
        self.dropped.append(Dropped("unknown line", line))
        self.heading, self.bullets, self.outside = None, [], "below an unknown heading"


def _each(reason: Reason, bullets: Sequence[str]) -> Iterator[Dropped]:
    return (Dropped(reason, bullet) for bullet in bullets)
