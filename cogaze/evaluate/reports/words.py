"""Words of a report, as image captioning counts them: lower-cased Penn Treebank tokens without punctuation.

`ptb` does in Python what pycocoevalcap's PTBTokenizer does by Stanford's tokenizer in Java; benchmarks/report_words.py
counts on how many real reports they agree (docs/reports.md). Its rules were found by feeding that tokenizer text.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

Rule = Literal["ptb", "whitespace"]
Words = tuple[str, ...]

# What pycocoevalcap leaves out of Stanford's tokens. Its "-LRB-" never meets the lower-cased "-lrb-", so that brackets
# count as words there, and so here. Quotes are the first four there.
LEFT_OUT = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])
WRITTEN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"} | {
    "&amp;": "&", "&lt;": "<", "&gt;": ">"
}  # fmt: skip
PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "...", "½": "1/2"})

# Words whose full stop belongs to them, also at a sentence's end; some only with a capital, some only before a number.
WITH_STOP = (
    "adm|al|ala|apr|ariz|assn|atty|aug|ave|blvd|bros|calif|capt|cf|cmdr|co|col|colo|conn|corp|ct|dak|dec|dept|"
    "drs?|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|jan|jr|jul|jun|kans?|ky|lieut|lt|ltd|"
    "maj|mar|md|mich|minn|mo|mon|mont|mrs?|ms|msgr|mt|neb|nev|nov|oct|okla|penn|pfc|ph|pres|prof|pvt|rd|rep|rev|"
    "rt|sen|sept?|sgt|sr|st|supt|tel|tenn|thu|thurs|tues?|univ|va|vs|vt|wed|wis|wyo|[a-z]"
)
CAPITAL_WITH_STOP = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
WITH_STOP_BEFORE_NUMBER = "ca|figs?|nos?|op|pp"

LETTER, SIGN = r"[^\W\d_]", r"[^\W_]"
WORD = rf"{SIGN}+(?:_{SIGN}+)*"
HYPHENATED = rf"{SIGN}+(?:-{SIGN}+)*"
CAPITALS = "|".join(f"(?-i:{word[0]}){word[1:]}" for word in CAPITAL_WITH_STOP.split("|"))
TOKEN = re.compile(
    rf"""
    <[a-z/][^<>\s]*> | &(?:amp|lt|gt);
  | (?:{LETTER}\.){{2,}}(?!{SIGN}) | ph\.d\.                  # p.m.
  | (?:{WITH_STOP}|{CAPITALS})\.(?!{SIGN})                    # dr.
  | (?:{WITH_STOP_BEFORE_NUMBER})\.(?=\s?\d)                  # no. 5
  | {LETTER}+(?=n't\b) | n't\b                                # is n't
  | can(?=not\b) | (?<=can)not\b
  | '(?:s|re|ve|ll|d|m)\b                                     # patient 's
  | [dol]'{LETTER}+
  | {HYPHENATED}(?:/{HYPHENATED}){{1,2}}                      # atelectasis/scarring
  | {SIGN}+(?:[.,]+{SIGN}+){{0,3}}(?:-{SIGN}+)+                # well-expanded, 3.5-cm
  | (?<![\w-])[-+]?(?:\d*(?:[.,:]\d+)+|\d+(?!{SIGN}))         # -1.5, 10:30
  | \d*(?:[.,:]\d+)+
  | {LETTER}{SIGN}*(?:[.?!]{LETTER}{SIGN}*)+                  # bilaterally.there
  | {LETTER}+(?:[&+]{LETTER}+)+ | {WORD}
  | _+ | \*+ | [?!]+ | \.\.\. | -{{2,}} | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


@lru_cache(2**15)  # a baseline says the same texts again
def ptb_words(text: str) -> Words:
    """Return the lower-cased words of a text as captioning metrics count them."""
    found = (token.lower() for token in TOKEN.findall(text.translate(PLAIN)))
    return tuple(WRITTEN.get(token, token) for token in found if token not in LEFT_OUT)


def whitespace_words(text: str) -> Words:
    """Return what stands between blanks, as it is: for text that is tokenised already."""
    return tuple(text.split())


RULES: dict[str, Callable[[str], Words]] = {"ptb": ptb_words, "whitespace": whitespace_words}
SAID = {
    "ptb": "Penn Treebank tokens in lower case without punctuation, as pycocoevalcap's PTBTokenizer makes them",
    "whitespace": "what stands between blanks, case as it is",
}
