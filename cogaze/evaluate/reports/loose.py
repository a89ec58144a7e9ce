"""Generated structured text brought into lines that `structured` reads: headings, bullets and numbers by their look."""

import re
from collections.abc import Iterator, Sequence
from functools import cache

_MARK = r"[-*\u2022\u2013\u2014\u00b7]"  # hyphen, asterisk, bullet, dashes, middle dot
_LINE_MARK = re.compile(rf"(?:{_MARK}+|\d+[.)](?!\d))\s*")
_STOP = re.compile(r"[.;!?]$")
# A hyphen is a mark after a sentence's end, or before a capital letter; 4-mm, 5 - 10 cm and long- and short-term stay.
_INSIDE = re.compile(rf"(?<=[.;!?])\s*{_MARK}(?:\s+|(?=[A-Z]))|\s*{_MARK}\s+(?=[A-Z])|\s*\u2022\s*")
_INSIDE_LOWER = re.compile(rf"{_INSIDE.pattern}|\s+-\s+(?!\d)")  # where nothing has capital letters
_LETTERS = re.compile(r"[^\W_]")
_COLON = "[:\uff1a]"
_LONGEST_HEADING = 6  # words


def loose_findings(text: str, organs: Sequence[str]) -> list[str]:
    """Return lines "Heading:" and "- bullet"; a line that ends in a colon and is no heading of `organs` stays as it is.

    A line without a mark goes on with the bullet above if that has no end and it begins in lower case, else it is a
    bullet. Marks without a letter or digit are left out.
    """
    text = _single_blanks(text)
    inside = _INSIDE_LOWER if not re.search(r"[A-Z]", _without_headings(text, organs)) else _INSIDE
    lines: list[str] = []
    for line in _headings_apart(text, organs):
        if line.removesuffix(":") in organs or _is_heading(line):
            lines.append(line)
            continue
        first, *others = inside.split(_LINE_MARK.sub("", line, count=1) if _LINE_MARK.match(line) else line)
        if lines and not _LINE_MARK.match(line) and _goes_on(lines[-1], first):
            lines[-1] = f"{lines[-1]} {first.strip()}"
        else:
            others = [first, *others]
        lines += [f"- {one.strip()}" for one in others if _LETTERS.search(one)]
    return lines


def loose_impression(text: str) -> list[str]:
    """Return one line for each item: numbers may follow one another in a line, and an item may have several lines."""
    lines: list[str] = []
    for line in filter(_LETTERS.search, _single_blanks(text).split("\n")):
        marked = _LINE_MARK.match(line.strip())
        plain = line.strip()[marked.end() :] if marked else line.strip()
        if lines and not marked and _goes_on(lines[-1], plain):
            lines[-1] = f"{lines[-1]} {plain}"
        else:
            lines.append(plain)
    items = [item for line in lines for item in _numbered_apart(line)]
    return [f"{number}. {item}" for number, item in enumerate(items, start=1)]


def _single_blanks(text: str) -> str:
    """Make blanks between words single, without which patterns take minutes for thousands of them."""
    return re.sub(r"[^\S\n]+", " ", text)


def _numbered_apart(line: str) -> Iterator[str]:
    """Cut "a. 2. b. 3. c" where the next number stands."""
    start, number = 0, 2
    while cut := re.compile(rf"(?<=[.;!? ]) ?{number}[.)] (?=\S)").search(line, start):
        yield line[start : cut.start()].strip()
        start, number = cut.end(), number + 1
    yield line[start:].strip()


def _headings_apart(text: str, organs: Sequence[str]) -> Iterator[str]:
    """Return the lines of a text with each heading alone in its line, as `organs` spells it."""
    pattern, alone = _headings(tuple(organs))
    for line in text.split("\n"):
        whole = alone.fullmatch(line.strip())
        lines = [f"{_spelled(whole, organs)}:"] if whole else _apart(pattern, line, organs)
        yield from (one.strip() for one in lines if _LETTERS.search(one))


def _apart(pattern: re.Pattern[str], line: str, organs: Sequence[str]) -> list[str]:
    return pattern.sub(lambda found: f"\n{_spelled(found, organs)}:\n", line).split("\n")


def _without_headings(text: str, organs: Sequence[str]) -> str:
    return " ".join(line for line in _headings_apart(text, organs) if line.removesuffix(":") not in organs)


@cache
def _headings(organs: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of a heading with its colon anywhere in a line, and of a line that is nothing but a heading."""
    names = []
    for organ in organs:
        words = [re.escape(word) for word in re.findall(r"[A-Za-z]+", organ) if word != "and"]
        names.append(r"\W+(?:and\W+)?".join(words))
    any_case = "|".join(f"({name})" for name in names)
    to_the_letter = "|".join(f"({re.escape(organ)})" for organ in organs)
    # Glued to the word before, as where line ends were deleted, a heading has to be spelled as it is.
    anywhere = re.compile(rf"(?:\b(?i:{any_case})|(?:{to_the_letter}))[\s*_]*{_COLON}")
    return anywhere, re.compile(rf"[\W_]*(?:\d+[.)]\s*)?(?:{any_case})[\W_]*", re.IGNORECASE)


def _spelled(found: re.Match[str], organs: Sequence[str]) -> str:
    assert found.lastindex is not None
    return organs[(found.lastindex - 1) % len(organs)]


def _is_heading(line: str) -> bool:
    return bool(re.search(rf"{_COLON}$", line)) and not _LINE_MARK.match(line) and len(line.split()) <= _LONGEST_HEADING


def _goes_on(above: str, line: str) -> bool:
    """Tell whether a line without a mark goes on with the bullet above."""
    return not above.endswith(":") and not _STOP.search(above) and line[:1].islower()
