"""Words of reports: what Stanford's tokenizer said of the same lines (recorded), and what it says where Java is."""

import shutil

import pytest

from cogaze.evaluate.reports.words import ptb_words, whitespace_words

# Lines and what pycocoevalcap 1.2's PTBTokenizer made of them.
RECORDED = {
    "PA and lateral views. Heart size is NORMAL.": "pa and lateral views heart size is normal",
    "1. No acute process. 2) Stable -- unchanged - yes;no": "1 no acute process 2 -rrb- stable unchanged yes no",
    "The ___ tip was discussed by Dr. ___ at 10:30 a.m. on ___.": "the ___ tip was discussed by dr. ___ at 10:30 a.m. "
    "on ___",
    "patient's heart isn't large; cannot exclude": "patient 's heart is n't large can not exclude",
    "(unchanged) [moderate]": "-lrb- unchanged -rrb- -lsb- moderate -rsb-",
    "A 1.5-cm nodule, 5x3 cm, 2-3 mm, 50%, <5 mm": "a 1.5-cm nodule 5x3 cm 2-3 mm 50 % < 5 mm",
    "CHF/pneumonia/mass/nodule, and/or T4/5": "chf/pneumonia/mass / nodule and/or t4/5",
    "clear.No effusion,edema T12.Right": "clear.no effusion edema t12.right",
    "C5-C6, ___-year-old, left-sided": "c5-c6 ___ year-old left-sided",
    "\"Quoted\" and 'single' ``marks`` it’s": "quoted and single marks it 's",
    "Chest CT. PA. pa. No. 5; no change. approx. 3 cm.": "chest ct. pa. pa no. 5 no change approx 3 cm",
    "hepatitis C. S. aureus, M.D. Ph.D.": "hepatitis c. s. aureus m.d. ph.d.",
    "***WET READ*** &gt; A&B Really?!": "*** wet read *** > a&b really ?!",
    "-5 HU, +10, 5--10, .5 cm": "-5 hu +10 5 10 .5 cm",
    "see above... then.... 5µm 37°C": "see above then 5µm 37 ° c",
    "": "",
    ". , !": "",
}


@pytest.mark.parametrize("text", RECORDED)
def test_words_are_those_of_the_published_tokenizer(text):
    assert " ".join(ptb_words(text)) == RECORDED[text]


def test_text_that_is_tokenised_already_stays_as_it_is():
    assert whitespace_words(" The  heart , is\nNormal .") == ("The", "heart", ",", "is", "Normal", ".")


def test_a_long_text_without_blanks_is_read_in_one_go():
    assert ptb_words("ab1," * 30_000) == ("ab1",) * 30_000  # minutes, were each place tried to the end


@pytest.mark.slow  # starts Java
def test_the_recorded_words_are_what_java_says():
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("no java")
    lines = [line for line in RECORDED if line]
    found = tokenizer.PTBTokenizer().tokenize({line: [{"caption": line}] for line in lines})
    assert {line: words for line, [words] in found.items()} == {line: RECORDED[line] for line in lines}
