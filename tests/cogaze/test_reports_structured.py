"""Structured reports: text to sections and back, what either set of rules drops, and the published stripping."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogaze.evaluate.reports.structured import IMPRESSION, ORGANS, heading_of, parse, serialize

TWO = "Lungs and Airways:\n- No focal opacity.\n- Follow-up of a 4-mm nodule is advised.\n\nPleura:\n- No effusion."


def findings(text, rules="official"):
    return {heading: list(bullets) for heading, bullets in parse(text, rules=rules).sections.items()}


def items(text, rules="official"):
    return list(parse(text, "impression", rules).sections.get(IMPRESSION, ()))


def dropped(text, part="findings", rules="official"):
    return [(one.reason, one.text) for one in parse(text, part, rules).dropped]


# --- to text and back

lines = st.text(min_size=1, max_size=12).map(lambda text: text.replace("\n", " ").strip()).filter(bool)
bullets = st.lists(lines.filter(lambda line: heading_of(line) is None), min_size=1, max_size=3)
sections = st.dictionaries(st.sampled_from(ORGANS), bullets, max_size=3)
words = st.text("abc XYZ 4-,()", min_size=1, max_size=12).map(lambda text: f"No {' '.join(text.split())}".strip() + ".")


@settings(max_examples=50)
@given(sections)
def test_findings_come_back_to_the_letter(written):
    text = serialize(written)
    read = parse(text)
    assert [(heading, list(said)) for heading, said in read.sections.items()] == list(written.items())
    assert read.dropped == ()
    assert serialize(read.sections) == text


@given(st.lists(lines, min_size=1, max_size=5))
def test_an_impression_comes_back_to_the_letter(written):
    text = serialize({IMPRESSION: written}, "impression")
    assert items(text) == written
    assert serialize(parse(text, "impression").sections, "impression") == text


@given(st.dictionaries(st.sampled_from(ORGANS), st.lists(words, min_size=1, max_size=3), min_size=1))
def test_tolerant_rules_read_plain_sentences_as_official_ones_do(written):
    plain = {heading: [re.sub(r"- (?=[A-Z])", "-", one) for one in said] for heading, said in written.items()}
    assert findings(serialize(plain), "tolerant") == findings(serialize(plain)) == plain


FORMS = ("Pleura:", "other", "Bones:", "- {}", "{}", "* {}", "1. {}", "{}. - {}", "Pleura: {}.- {}")


@given(st.lists(st.sampled_from(FORMS), max_size=8), st.sampled_from(["official", "tolerant"]))
def test_each_word_is_kept_or_told(forms, rules):
    text = "\n".join(forms)
    names = [f"word{number}x" for number in range(text.count("{}"))]
    read = parse(text.format(*names), rules=rules)
    told = " ".join([*(one.text for one in read.dropped), *(one for said in read.sections.values() for one in said)])
    assert sorted(re.findall(r"word\d+x", told)) == sorted(names)


def test_a_report_is_written_as_srrg_writes_it():
    assert serialize(findings(TWO)) == TWO
    assert serialize({IMPRESSION: ["Clear lungs.", "3.5 cm mass."]}, "impression") == "1. Clear lungs.\n2. 3.5 cm mass."
    assert serialize({}) == serialize({}, "impression") == ""


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"Bones": ["x"]}, "is none of"),
        ({"Pleura": []}, "no bullets"),
        ({"Pleura": ["a\nb"]}, "more than one line"),
        ({"Pleura": [" a"]}, "spaces around"),
        ({"Pleura": ["Other:"]}, "reads as a heading"),
    ],
)
def test_what_would_not_come_back_is_refused(written, problem):
    with pytest.raises(ValueError, match=problem):
        serialize(written)


# --- the official rules


@given(st.lists(st.sampled_from(["Pleura:", "Other", "- Other:", "- a", "-b", "c", "Bones:", ""]), max_size=10))
def test_of_each_heading_the_last_block_counts_that_is_bullets_alone(lines):
    text = "\n" + "".join(f"{line}\n" for line in lines)
    blocks = re.findall(r"(?<=\n)(?:- )?(Pleura|Other):?\n((?:(?!(?:- )?(?:Pleura|Other):?\n).*\n)*)", text)
    clean = {heading: body.split() for heading, body in blocks if re.fullmatch(r"(-.*\n|\n)*", body)}
    expected = {heading: [one for word in body for one in word.strip("-")] for heading, body in clean.items()}
    assert findings(text) == {heading: said for heading, said in expected.items() if said}


def test_a_hyphen_inside_a_bullet_stays():
    assert findings(TWO)["Lungs and Airways"] == ["No focal opacity.", "Follow-up of a 4-mm nodule is advised."]


def test_an_unknown_heading_drops_its_block_and_the_one_that_it_cuts():
    text = "Pleura:\n- a\nOther:\n- b\nBones:\n- c\nAbdominal:\n- d"
    assert findings(text) == {"Pleura": ["a"], "Abdominal": ["d"]}
    assert dropped(text) == [
        ("cut by an unknown line", "b"),
        ("unknown line", "Bones:"),
        ("below an unknown heading", "- c"),
    ]


def test_a_wrapped_bullet_drops_its_whole_heading():
    assert findings("Pleura:\n- a small\neffusion\n- b\nOther:\n- c") == {"Other": ["c"]}


def test_a_repeated_heading_replaces_the_first_and_an_empty_one_is_left_out():
    text = "Pleura:\n- a\nPleura:\n- b\nOther:"
    assert findings(text) == {"Pleura": ["b"]}
    assert dropped(text) == [("replaced by a repeated heading", "a"), ("heading without bullets", "Other:")]


def test_headings_are_read_to_the_letter_but_for_marks_and_colon():
    assert findings("- Pleura:\n- a\n**Other\n- b") == {"Pleura": ["a"], "Other": ["b"]}
    assert findings("pleura:\n- a") == {}
    assert dropped("- a\npleura:\n- b")[0] == ("before any heading", "- a")


def test_the_name_of_the_section_is_left_out():
    assert findings("Findings:\nPleura:\n- a") == {"Pleura": ["a"]}
    assert dropped("IMPRESSION:\n1. a", "impression") == [("name of the section", "IMPRESSION:")]


def test_each_line_of_an_impression_is_an_item_and_no_size_is_a_number():
    assert items("1. a\n\n3. b\n3.5 cm mass") == ["a", "b", "3.5 cm mass"]


# --- tolerant rules


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pleura:- No effusion.- Clear.Other:- None", {"Pleura": ["No effusion.", "Clear."], "Other": ["None"]}),
        ("Pleura:- Effusion- Air Other: - x", {"Pleura": ["Effusion", "Air"], "Other": ["x"]}),
        ("pleura: - effusion - air, 5 - 6 mm other : x", {"Pleura": ["effusion", "air, 5 - 6 mm"], "Other": ["x"]}),
        ("**PLEURA**\n* a\n\u2022 b\n1. c", {"Pleura": ["a", "b", "c"]}),
        ("Hila & mediastinum\uff1a no mass.", {"Hila and Mediastinum": ["no mass."]}),
        ("Tubes, Catheters and Support Devices\n- a", {"Tubes, Catheters, and Support Devices": ["a"]}),
        ("Pleura:\n- a small\neffusion.\nAnd air.", {"Pleura": ["a small effusion.", "And air."]}),
        ("Pleura:\n- A 4-mm, long- and short-axis node", {"Pleura": ["A 4-mm, long- and short-axis node"]}),
        ("Pleura:\n- a\nOther:\n- b\nPleura:\n- c", {"Pleura": ["a", "c"], "Other": ["b"]}),
        ("Pleura:\n- a\nBones:\n- b\nOther:\n- another: c", {"Pleura": ["a"], "Other": ["another: c"]}),
    ],
)
def test_generated_text_is_read(text, expected):
    assert findings(text, "tolerant") == expected


def test_generated_impressions_are_read():
    assert items("1. A of 3.5 cm. 2. B. 3. C", "tolerant") == ["A of 3.5 cm.", "B.", "C"]
    assert items("1. A\nand b\n\n- C", "tolerant") == ["A and b", "C"]


def test_an_unknown_heading_of_generated_text_is_told():
    assert dropped("Bones:\n- a\nPleura:\n- b", rules="tolerant") == [
        ("unknown line", "Bones:"),
        ("below an unknown heading", "- a"),
    ]


def test_a_part_or_rule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="give one of"):
        parse(TWO, rules="loose")
