"""Report text -> sections -> clinical context, by the rules of MIMIC-CXR's own section parser.

The rules, quirks included, are those of `txt/section_parser.py` and `txt/create_section_files.py` in
MIT-LCP/mimic-cxr, so that findings and impressions equal the ones in `mimic_cxr_sectioned.csv`.
"""

import re
from dataclasses import dataclass, fields

from gazeprep.schema import Context, InputError

# A header stands after a newline and at least one space: one on the first line of a report is missed.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_BLANK_LINE = "\n \n"

# Header spellings that the two rules below would not bring to the right name.
_SPELLINGS = {
    "impression": (
        "conclusion",
        "impresson",
        "imprression",
        "imoression",
        "impressoin",
        "imprssion",
        "impresion",
        "imperssion",
        "mpression",
        "impession",
        "ndication",  # sic: the published table sends this misspelt indication here
    ),
    "findings": ("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"),
    "history": ("clinical information", "pfi"),
    "comparison": ("reference exam", "comparision", "comparisions", "comparsion", "comparrison"),
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "examination": ("exam", "type of examination"),
    "recommendations": ("recommendation(s)", "recommendation"),
    "wet read": ("wetread",),
}
_NAME_OF = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_NAMES_WITHIN = ("impression", "findings", "history", "comparison", "addendum")  # the first one found wins
_VIEWS = (
    "chest",
    "portable",
    "pa and lat",
    "lateral and pa",
    "ap and lateral",
    "lateral and ap",
    "frontal and",
    "two views",
    "one view",
    "frontal view",
    "lateral view",
    "pa view",
    "ap view",
    "bone window",
    "frontal upright",
    "frontal semi-upright",
    "ribs",
)
_REPORT_SECTIONS = ("findings", "impression", "last_paragraph")


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a report: its normalised name, its text as written, where that starts in the report."""

    name: str
    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Override:
    """Where a person found the conclusion of one report: a section's name, or characters start to end.

    The range 0 to 0 says that the report has none.
    """

    section: str = ""
    start: int = -1
    end: int = -1

    def __post_init__(self) -> None:
        has_range = 0 <= self.start <= self.end
        if bool(self.section) == has_range or (not has_range and (self.start, self.end) != (-1, -1)):
            raise InputError(
                "bad_override",
                f"an override with {'a' if self.section else 'no'} section name and characters {self.start} "
                f"to {self.end}; give either a section name or a range 0 <= start <= end (0 to 0 for no text)",
            )


def sections(text: str) -> list[Section]:
    """Split a report at its upper-case headers, names normalised, as MIMIC-CXR's `section_text` does.

    The text before the first header is `preamble`, a report without headers one `full report`. Empty
    findings and impressions are left out. With neither of them, the last section is cut at its first blank
    line and the rest becomes `last_paragraph`.
    """
    kept = [
        section for section in _split(text) if section.name not in ("findings", "impression") or section.text.strip()
    ]
    if any(section.name in ("findings", "impression") for section in kept):
        return kept
    head, blank_line, rest = kept[-1].text.partition(_BLANK_LINE)
    if blank_line:
        last = kept.pop()
        start = last.start + len(head) + len(blank_line)
        kept += [Section(last.name, head, last.start), Section("last_paragraph", rest, start)]
    return kept


def _split(text: str) -> list[Section]:
    header = _HEADER.search(text)
    if header is None:
        return [Section("full report", text, 0)]
    found = [Section("preamble", text[: header.start(1)], 0)]
    while header is not None:
        name, start = section_name(header[1]), header.end()
        # The line on which a section's text starts is never a header itself.
        following = _HEADER.search(text, max(text.find("\n", start), start))
        end = len(text) if following is None else following.start()
        found.append(Section(name, text[start:end], start))
        header = following
    return found


def section_name(header: str) -> str:
    """Return the normalised name of a header: known spellings, then a name within it, then view phrases."""
    name = header.lower().strip()
    if name in _NAME_OF:
        return _NAME_OF[name]
    for within in _NAMES_WITHIN:
        if within in name:
            return within
    return "findings" if any(view in name for view in _VIEWS) else name


def context(text: str, override: Override | None = None) -> Context:
    """Return a report's sections on single spaced lines, "" where there is none.

    The last section of a name counts, as `create_section_files.py` takes it. With an override the text it
    names is the impression, findings and last paragraph are "", and that text stands in no other section.
    Raises InputError (bad_override) where the report has no such section or characters.
    """
    last = {section.name: section for section in sections(text)}
    if override is None:
        chosen = {name: section.text for name, section in last.items()}
    else:
        start, end = _conclusion(text, last, override)
        chosen = {name: _without(section, start, end) for name, section in last.items()}
        chosen |= dict.fromkeys(_REPORT_SECTIONS, "") | {"impression": text[start:end]}
    names = [field.name for field in fields(Context)]
    return Context(**{name: " ".join(chosen.get(name, "").split()) for name in names})


def _conclusion(text: str, last: dict[str, Section], override: Override) -> tuple[int, int]:
    """Return the characters of the report that an override names."""
    if override.section:
        if override.section not in last:
            raise InputError(
                "bad_override",
                f"the override names a section that the report does not have; it has {len(last)}. "
                "Correct the overrides table or remove its row",
            )
        section = last[override.section]
        return section.start, section.start + len(section.text)
    if override.end > len(text):
        raise InputError(
            "bad_override",
            f"the override ends at character {override.end}, the report has {len(text)}. "
            "Check that the overrides table belongs to this release of the reports",
        )
    return override.start, override.end


def _without(section: Section, start: int, end: int) -> str:
    """Return a section's text less the report's characters start to end."""
    before = section.text[: max(start - section.start, 0)]
    after = section.text[max(end - section.start, 0) :]
    return section.text if len(before) + len(after) >= len(section.text) else f"{before} {after}"


def empty_sections(context: Context) -> tuple[str, ...]:
    """Return the names of the sections without text, so that a build can count them."""
    return tuple(field.name for field in fields(context) if not getattr(context, field.name))
