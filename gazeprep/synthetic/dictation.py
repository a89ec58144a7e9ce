"""A spoken report: tokens with times, sentences with their targets."""

from dataclasses import dataclass

import numpy as np

from gazeprep.synthetic.wording import Statement


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
    for statement in said:
        words = tokenize(statement.text.lower())
        first = len(tokens)
        for word in words:
            duration = _duration(rng, word)
            tokens.append(Token(word, round(now, 2), round(now + duration, 2)))
            now += duration + (rng.uniform(0, 0.15) if rng.random() < 0.2 else 0.0)
        sentences.append(Spoken(statement, tokens[first].start_s, tokens[-1].end_s, first, len(tokens)))
        now += rng.uniform(0.3, 1.6)
    text = " ".join(statement.text.lower() for statement in said)
    if quirky:
        tokens = _corrected(tokens, sentences)
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


def _corrected(tokens: list[Token], sentences: list[Spoken]) -> list[Token]:
    """Give two words the times that a manual correction gives: no length, and a whole gap between neighbours."""
    short = tokens[sentences[1].first_token + 1]
    tokens[sentences[1].first_token + 1] = Token(short.text, short.start_s, short.start_s)
    place = sentences[-1].first_token + 1
    before, gap = tokens[place - 1], tokens[place]
    pressed = round(min(before.end_s, before.start_s + 0.05), 2)
    tokens[place - 1] = Token(before.text, before.start_s, pressed)
    after = tokens[place + 1]
    late = round(after.end_s - 0.05, 2)
    tokens[place] = Token(gap.text, pressed, late)
    tokens[place + 1] = Token(after.text, late, after.end_s)
    return tokens
