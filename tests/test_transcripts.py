"""Sentences and the fixations that belong to them: dictations whose answer one can see."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gazeprep import Alignment, Fixations, Word, sentence_weights, sentences_of
from gazeprep.transcripts import split_phrases, time_windows


def dictate(text: str, start_s: float = 10.0, step_s: float = 1.0) -> tuple[Word, ...]:
    return tuple(Word(t, start_s + i * step_s, start_s + (i + 1) * step_s) for i, t in enumerate(text.split()))


def looks(*spans: tuple[float, float]) -> Fixations:
    start, end = np.array(spans, dtype=float).T
    return Fixations(np.zeros(len(spans)), np.zeros(len(spans)), start, end)


TWO = dictate("heart normal . lungs clear .")  # 10..13 and 13..16 s


def test_a_full_stop_token_ends_a_sentence():
    assert [s.text for s in sentences_of(TWO)] == ["heart normal.", "lungs clear."]
    assert [(s.start_s, s.end_s) for s in sentences_of(TWO)] == [(10, 13), (13, 16)]


@pytest.mark.parametrize("token", [",", "/", ".5", "dr.", "null"])
def test_other_tokens_never_end_a_sentence(token):
    sentences = sentences_of(dictate(f"about 1 {token} cm ."))
    assert len(sentences) == 1


def test_decimals_and_commas_read_as_text():
    assert sentences_of(dictate("1 .5 cm , left ."))[0].text == "1.5 cm, left."


def test_words_after_the_last_full_stop_form_a_sentence_unless_dropped():
    words = dictate("heart normal . lungs")
    assert [s.text for s in sentences_of(words)] == ["heart normal.", "lungs"]
    assert [s.text for s in sentences_of(words, drop_tail=True)] == ["heart normal."]


def test_no_words_give_no_sentences():
    assert sentences_of(()) == ()
    assert sentence_weights(looks((0, 1)), (), ()).shape == (0, 1)


def test_egd_phrases_end_sentences_by_their_last_character():
    phrases = (Word("heart is normal.", 1, 2), Word("lungs", 2, 3), Word("clear.", 3, 4))
    assert [s.text for s in sentences_of(phrases, full_stop="suffix")] == ["heart is normal.", "lungs clear."]


def test_a_phrase_with_an_inner_full_stop_shares_its_time_by_characters():
    pieces = split_phrases([Word("clear.the heart", 1.0, 2.5)])
    assert [(p.text, p.start_s, p.end_s) for p in pieces] == [("clear.", 1.0, 1.6), ("the heart", 1.6, 2.5)]


def test_a_phrase_with_two_full_stops_splits_in_two_and_decimals_stay_whole():
    pieces = split_phrases([Word("a 1.5 cm nodule. no effusion.", 0.0, 29.0)])
    assert [(p.text, p.end_s) for p in pieces] == [("a 1.5 cm nodule.", 17.0), ("no effusion.", 29.0)]


@given(st.text("ab. 5", max_size=30), st.floats(0, 10), st.floats(0, 5))
def test_splitting_phrases_loses_no_character_and_no_time(text, start_s, length_s):
    pieces = split_phrases([Word(text, start_s, start_s + length_s)])
    assert "".join(p.text for p in pieces).replace(" ", "") == text.replace(" ", "")
    if pieces:
        assert all(a.end_s == b.start_s for a, b in itertools.pairwise(pieces))
        assert start_s <= pieces[0].start_s <= pieces[-1].end_s <= start_s + length_s


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Alignment(), [(8.5, 13), (11.5, 16)]),
        (Alignment(lead_s=5), [(5, 13), (10, 16)]),  # not before the previous sentence's start
        (Alignment(lead_s=5, bounded=False), [(5, 13), (8, 16)]),
        (Alignment(start="sentence"), [(10, 13), (13, 16)]),
        (Alignment(start="previous_start"), [(10, 13), (10, 16)]),
        (Alignment(start="previous_end"), [(10, 13), (13, 16)]),
        (Alignment(start="recording"), [(0, 13), (0, 16)]),
        (Alignment(start="first_word"), [(10, 13), (10, 16)]),
        (Alignment(end="sentence_start"), [(8.5, 10), (11.5, 13)]),
        (Alignment(end="last_mention", mentions=("lungs", "clear")), [(8.5, 13), (11.5, 14)]),
        (Alignment(end="first_mention", mentions=("lungs", "clear")), [(8.5, 13), (11.5, 13)]),
    ],
)
def test_time_windows_of_each_published_rule(rule, expected):
    assert [(w.start_s, w.end_s) for w in time_windows(sentences_of(TWO), TWO, rule)] == expected


def test_previous_end_gives_a_pause_to_the_sentence_after_it():
    words = (*dictate("heart normal .", 10), *dictate("lungs clear .", 20))
    spans = time_windows(sentences_of(words), words, Alignment(start="previous_end"))
    assert [(s.start_s, s.end_s) for s in spans] == [(10, 13), (13, 23)]


def test_a_fixation_counts_with_its_overlap():
    fixations = looks((8, 9), (12, 14), (15, 18), (20, 21), (9, 9))
    weights = sentence_weights(fixations, sentences_of(TWO), TWO)
    np.testing.assert_allclose(weights, [[0.5, 1, 0, 0, 0], [0, 2, 1, 0, 0]])


@pytest.mark.parametrize(
    ("membership", "expected"),
    [
        ("whole_overlap", [[1, 2, 0, 0], [0, 2, 3, 0]]),
        ("whole_end", [[1, 0, 0, 0], [0, 2, 0, 0]]),
        ("whole_once", [[0, 0, 0, 0], [0, 2, 0, 0]]),
    ],
)
def test_whole_fixations_by_each_published_membership(membership, expected):
    fixations = looks((8, 9), (12, 14), (15, 18), (20, 21))
    weights = sentence_weights(fixations, sentences_of(TWO), TWO, Alignment(membership=membership))
    np.testing.assert_allclose(weights, expected)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 5)), min_size=1, max_size=8))
def test_without_lead_no_fixation_counts_for_more_than_its_duration(spans):
    fixations = looks(*((start, start + length) for start, length in spans))
    weights = sentence_weights(fixations, sentences_of(TWO), TWO, Alignment(start="sentence"))
    assert (weights.sum(axis=0) <= fixations.duration_s + 1e-9).all()


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match="lead_s is -1"):
        Alignment(lead_s=-1)
    with pytest.raises(ValueError, match="list the words"):
        Alignment(end="last_mention")
    with pytest.raises(ValueError, match="'pleural effusion', which no dictated word equals"):
        Alignment(end="last_mention", mentions=("effusion", "pleural effusion"))
