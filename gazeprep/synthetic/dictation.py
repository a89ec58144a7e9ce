"""A spoken report: tokens with times, sentences with their targets."""

from dataclasses import dataclass

import numpy as np

from gazeprep.synthetic.wording import Statement

CORRECTED_S = {1: 0.0, 2: 2.5}  # length of the second word of a sentence after a manual correction, by sentence


@dataclass(frozen=True)
class Token:
    """One spoken token, a word or a stop or a comma, in seconds."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Spoken:
    """One spoken sentence: its statement and its tokens as a half-open range."""

    statement: Statement
    start_s: float
    end_s: float
    first_token: int
    last_token: int


@dataclass(frozen=True)
class Dictation:
    """What was said: lower case, one line."""

    text: str
    tokens: tuple[Token, ...]
    sentences: tuple[Spoken, ...]

    @property
    def end_s(self) -> float:
        """When the last token ends."""
        return self.tokens[-1].end_s


def speak(rng: np.random.Generator, said: list[Statement], first_word_s: float, quirky: bool) -> Dictation:
    """Say sentences one after the other; `quirky` adds a word of no length and one over a long gap."""
    tokens: list[Token] = []
    sentences: list[Spoken] = []
    now = first_word_s
    for i, statement in enumerate(said):
        first = len(tokens)
        for k, word in enumerate(tokenize(statement.text.lower())):
            duration = _duration(rng, word)
            if quirky and k == 1 and i in CORRECTED_S:
                duration = CORRECTED_S[i]
            tokens.append(Token(word, round(now, 2), round(now + duration, 2)))
            now += duration + (rng.uniform(0, 0.15) if rng.random() < 0.2 else 0.0)
        sentences.append(Spoken(statement, tokens[first].start_s, tokens[-1].end_s, first, len(tokens)))
        now += rng.uniform(0.3, 1.6)
    text = " ".join(statement.text.lower() for statement in said)
    return Dictation(text, tuple(tokens), tuple(sentences))


def tokenize(text: str) -> list[str]:
    """Split as REFLACX does: a stop and a comma are tokens, 1.5 is `1` and `.5`."""
    return text.replace(".", " .").replace(",", " ,").split(" ")


def _duration(rng: np.random.Generator, word: str) -> float:
    if word == ".":
        return float(rng.uniform(0.3, 0.6))
    if word in (",", "/"):
        return float(rng.uniform(0.2, 0.4))
    return float(rng.uniform(0.12, 0.2) + 0.045 * len(word))
