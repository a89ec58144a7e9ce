import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazeprep.reports import Override, Section, context, empty_sections, section_name, sections
from gazeprep.schema import Context, InputError

# Each line of a report's body begins with a space, a blank line is that space.
REPORT = "\n ".join(
    [
        "                                FINAL REPORT",
        "EXAMINATION:  CHEST (PA AND LAT)",
        "",
        "INDICATION:  ___F with cough  // eval",
        "for pneumonia",
        "",
        "TECHNIQUE:  Chest PA and lateral",
        "",
        "COMPARISON:  None.",
        "",
        "FINDINGS: ",
        "",
        "The lungs are clear.",
        "No effusion.",
        "",
        "IMPRESSION: ",
        "",
        "No acute process.\n",
    ]
)


def named(text):
    return [(section.name, section.text) for section in sections(text)]


def test_a_usual_report():
    assert context(REPORT) == Context(
        indication="___F with cough // eval for pneumonia",
        comparison="None.",
        technique="Chest PA and lateral",
        findings="The lungs are clear. No effusion.",
        impression="No acute process.",
    )
    assert empty_sections(context(REPORT)) == ("history", "last_paragraph")
    names = ["preamble", "examination", "indication", "technique", "comparison", "findings", "impression"]
    assert [section.name for section in sections(REPORT)] == names


def test_starts_count_the_characters_of_the_report():
    assert sections("\n COMPARISON: none\n \n Clear.\n \n Stable.") == [
        Section("preamble", "\n ", 0),
        Section("comparison", "none", 14),
        Section("last_paragraph", " Clear.\n \n Stable.", 21),
    ]


HEADERS = {
    # frequent spellings of the published table
    "IMPRESSION": "impression",
    "COMPARISONS": "comparison",
    "CLINICAL HISTORY": "history",
    "REASON FOR EXAMINATION": "indication",
    "NOTIFICATION": "notification",
    "REASON FOR EXAM": "indication",
    "CLINICAL INFORMATION": "history",
    "EXAM": "examination",
    "CLINICAL INDICATION": "indication",
    "CONCLUSION": "impression",
    "CHEST, TWO VIEWS": "findings",
    "RECOMMENDATION(S)": "recommendations",
    "TYPE OF EXAMINATION": "examination",
    "REFERENCE EXAM": "comparison",
    "PATIENT HISTORY": "history",
    "COMPARISON EXAM": "comparison",
    "FINDINGS AND IMPRESSION": "impression",
    "WET READ": "wet read",
    "COMPARISON FILM": "comparison",
    "FINDINGS/IMPRESSION": "impression",
    "PFI": "history",
    "RECOMMENDATION": "recommendations",
    "WETREAD": "wet read",
    # misspelt
    "NDICATION": "impression",
    "IDICATION": "indication",
    "MPRESSION": "impression",
    "IMPRESSOIN": "impression",
    "FINDINGS/ IMPRESSION": "impression",
    "FINDING": "findings",
    "FINIDNGS": "findings",
    "REFERENCE FINDINGS": "findings",
    "COMPARISION": "comparison",
    "COMPARRISON": "comparison",
    # a name within, in this order of precedence
    "HISTORY AND FINDINGS": "findings",
    "COMPARISON AND IMPRESSION": "impression",
    "ADDENDUM BY DR": "addendum",
    "CHEST FINDINGS": "findings",
    # view phrases
    "CHEST, PA AND LATERAL": "findings",
    "SINGLE AP VIEW OF THE ABDOMEN": "findings",
    "LEFT RIBS": "findings",
    "UPRIGHT PORTABLE": "findings",
    # everything else stays
    "  NOTE ": "note",
    "DATE": "date",
    "PREAMBLE": "preamble",
    "TECHNIQUE": "technique",
    "ABDOMEN": "abdomen",
}


@pytest.mark.parametrize(("header", "name"), HEADERS.items())
def test_header_names(header, name):
    assert section_name(header) == name


def test_a_header_on_the_first_line_is_missed():
    assert named(" INDICATION: pain\n IMPRESSION: clear") == [
        ("preamble", " INDICATION: pain\n "),
        ("impression", "clear"),
    ]


def test_a_header_needs_a_newline_and_a_space_and_may_have_more():
    assert named("x\nIMPRESSION: clear") == [("full report", "x\nIMPRESSION: clear")]
    assert named("x\n     IMPRESSION: clear")[-1] == ("impression", "clear")
    assert named("x\n Impression: clear") == [("full report", "x\n Impression: clear")]
    assert named("x\n IMPRESSION:clear") == [("full report", "x\n IMPRESSION:clear")]


def test_the_line_where_a_text_starts_is_no_header():
    assert named("x\n FINDINGS:\n IMPRESSION: a\n TECHNIQUE: b") == [
        ("preamble", "x\n "),
        ("findings", " IMPRESSION: a"),
        ("technique", "b"),
    ]


def test_the_last_section_of_a_name_counts():
    addendum = "x\n ADDENDUM: late note\n IMPRESSION: first\n ______\n FINAL REPORT\n IMPRESSION: second"
    assert context(addendum).impression == "second"
    assert [name for name, _ in named(addendum)] == ["preamble", "addendum", "impression", "impression"]


def test_empty_findings_are_removed_and_empty_others_stay():
    text = "x\n CHEST, PA AND LATERAL:\n \n INDICATION: \n \n FINDINGS: clear\n FINDINGS: \n \n"
    assert named(text) == [("preamble", "x\n "), ("indication", "\n "), ("findings", "clear")]
    assert context(text).indication == ""


def test_without_findings_and_impression_the_rest_is_the_last_paragraph():
    text = "x\n INDICATION: cough\n FINDINGS: \n COMPARISON: none\n \n Clear.\n \n Stable.\n"
    assert context(text) == Context(indication="cough", comparison="none", last_paragraph="Clear. Stable.")
    assert named("Pain.\n \n Clear.") == [("full report", "Pain."), ("last_paragraph", " Clear.")]
    assert context("Pain.\n \n Clear.") == Context(last_paragraph="Clear.")


@pytest.mark.parametrize("text", ["", "\n", "no header at all", "\n FINDINGS: ", " \n \n"])
def test_reports_without_a_usable_text(text):
    assert context(text) == Context()
    assert len(empty_sections(context(text))) == 7


def test_an_override_by_name_moves_the_text_to_the_impression():
    text = "x\n INDICATION: clear lungs\n INDICATION: small effusion\n FINDINGS: none\n COMPARISON: old"
    assert context(text, Override(section="indication")) == Context(impression="small effusion", comparison="old")


def test_an_override_by_range_leaves_no_second_copy():
    text = "x\n INDICATION: cough. Small\n effusion. end\n FINDINGS: none"
    start = text.index("Small")
    found = context(text, Override(start=start, end=text.index(" end")))
    assert found == Context(indication="cough. end", impression="Small effusion.")


def test_the_range_0_to_0_is_no_text():
    assert context(REPORT, Override(start=0, end=0)) == Context(
        indication="___F with cough // eval for pneumonia", comparison="None.", technique="Chest PA and lateral"
    )


@pytest.mark.parametrize(
    "wrong",
    [{}, {"section": "note", "start": 0, "end": 5}, {"start": 5, "end": 2}, {"start": 3}, {"section": "a", "end": 9}],
)
def test_an_override_is_a_name_or_a_range(wrong):
    with pytest.raises(InputError, match="either a section name or a range"):
        Override(**wrong)


@pytest.mark.parametrize("override", [Override(section="note"), Override(start=0, end=9999)])
def test_an_override_of_another_report_is_an_error_without_its_text(override):
    with pytest.raises(InputError, match="overrides table") as caught:
        context(REPORT, override)
    assert caught.value.reason == "bad_override"
    assert "clear" not in str(caught.value)


def test_records_pickle():
    assert pickle.loads(pickle.dumps(Override("note"))) == Override("note")


# The oracle reads line by line and counts no characters.

HEADER_CHARACTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ ()/,-")


def header_on(line, is_last):
    """Return (header, text behind it) of a line, the text None where it begins on the next line."""
    head, colon, text = line.partition(":")
    if not (colon and head.startswith(" ") and len(head) > 1 and set(head[1:]) <= HEADER_CHARACTERS):
        return None
    if text:
        return (head[1:], text[1:]) if text[0].isspace() else None
    return None if is_last else (head[1:], None)


def sections_by_lines(text):
    lines = text.split("\n")
    found, current, i = [], ("preamble", [lines[0]]), 1
    while i < len(lines):
        header = header_on(lines[i], i == len(lines) - 1)
        if header is None:
            current[1].append(lines[i])
        else:
            found.append(current)
            current = (section_name(header[0]), [header[1]])
            if header[1] is None:
                i += 1
                current = (section_name(header[0]), [lines[i]])
        i += 1
    found.append(current)
    if len(found) == 1:
        found = [("full report", lines)]
    else:
        found[0][1].append(" ")
    reported = ("findings", "impression")
    found = [(name, "\n".join(body)) for name, body in found]
    found = [(name, body) for name, body in found if name not in reported or body.strip()]
    if not any(name in reported for name, _ in found):
        name, body = found.pop()
        first, *rest = body.split("\n \n")
        found += [(name, first)] + ([("last_paragraph", "\n \n".join(rest))] if rest else [])
    return found


PIECES = st.sampled_from(
    (
        *("\n", " ", "\n ", "\n \n", ":", ": ", "clear.", "No effusion ", "___", "A", "1", "COMPARISON: "),
        *(" FINDINGS: ", " IMPRESSION:", " INDICATION: ", " PORTABLE AP:\t", "   HISTORY:", "\n ADDENDUM: "),
        "\n NDICATION:\n",
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_sections_agree_with_a_reading_by_lines(text):
    assert named(text) == sections_by_lines(text)
    for section in sections(text):
        assert text[section.start : section.start + len(section.text)] == section.text


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join), st.integers(0, 60), st.integers(0, 60))
def test_an_override_by_range_takes_exactly_its_characters(text, a, b):
    start, end = sorted((min(a, len(text)), min(b, len(text))))
    found = context(text, Override(start=start, end=end))
    assert found.impression == " ".join(text[start:end].split())
    assert found.findings == found.last_paragraph == ""
