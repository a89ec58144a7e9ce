"""How far a "no", a "possible" or a "has resolved" reaches in a sentence, by rules of scope as NegEx has them."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cogaze.evaluate.reports.phrases import compiled

Status = Literal["positive", "negative", "uncertain"]
Kind = Literal["negative", "uncertain", "history"]

BEFORE: dict[Kind, re.Pattern[str]] = {
    "negative": compiled(
        (
            r"no|not|without|nor|neither|never",
            r"(?:free|clear|cleared|devoid) of",
            r"negative for",
            r"(?:absence|lack|resolution|clearance|clearing|removal|exclusion) of",
            r"resolved|(?:has|have) resolved|excludes?|rules out|fail(?:s|ed)? to",
        )
    ),
    "uncertain": compiled(
        (
            r"possibl[ey]|possibilit(?:y|ies)(?: of)?|probabl[ey]|likely|may|might|could|perhaps|potential(?:ly)?",
            r"question(?:able|ed)?(?: of)?|suspect(?:ed)?|suspicious for|suspicion (?:of|for)|equivocal",
            r"suggest\w*|concern(?:s|ing)? (?:for|of)|worrisome for|favou?r\w*|presum\w+",
            r"versus|vs|consider(?:ation)?|differential|evaluate for|assess for|rule out|r / o|borderline|\?",
            r"rather than|if",
        )
    ),
    "history": compiled((r"history of|h / o",)),
}
AFTER: dict[Kind, re.Pattern[str]] = {
    "negative": compiled(
        (
            r"(?:(?:is|are|was|were|has|have|been|can|could) )*(?:not|never) (?:\w+ly )?(?:be )?"
            r"(?:seen|identified|present|visuali[sz]ed|appreciated|demonstrated|evident|noted|detected|observed|found"
            r"|apparent|suspected|visible|shown|recogni[sz]ed)",
            r"(?:(?:is|are|was|were|has|have|had|now|been|since|completely|both) )*"
            r"(?:absent|resolved|cleared|gone|ruled out|excluded|unlikely|removed|disappeared)",
            r"(?:(?:is|are|appears?|remains?) )?(?:within(?: \w+)? normal limits|within(?: \w+)? limits of normal)",
        )
    ),
    "uncertain": compiled(
        (
            r"(?:(?:is|are) )?unexcluded",
            # "opacity is likely atelectasis" doubts what comes after alone
            r"(?:is|are|was|were)(?: also| less)? (?:possible|likely|questionable|probable)"
            r"(?= [,;/]| (?:in|given|at|on|and|but|than|also) |$)",
            r"(?:is|are|was|were) less likely|(?:is|are) (?:possibly|probably|likely) (?:present|there)",
            r"(?:should|could|may|might|can)(?: also)? be (?:considered|raised|questioned)",
            r"(?:(?:is|are|was|were) )?(?:suspected|questioned)",
            r"(?:may|might|could)(?: also)? be (?:present|possible|seen)",
            r"(?:is|are|remains?) (?:\w+ ){0,2}(?:consideration|possibility|differential)",
            r"versus|vs|\?",
        )
    ),
}
# Where a scope ends whatever follows.
CLAUSE = compiled(
    (
        r"[;:]",
        r"but|however|although|though|except|apart from|aside from|other than|otherwise|with|which",
        r"that (?:is|are)|there (?:is|are|has|have)|given|causing|status post",
    )
)
CAUSE = compiled((r"due to|secondary to|because of|related to",))  # ends what is denied; what is doubted goes on
# A comma or "and" that begins something new, unless the list goes on to an "or".
ANEW = compiled(
    (
        r"(?:,|and)(?: the)? (?:an?|small|tiny|mild|mildly|moderate|moderately|severe|large|minimal|trace|stable"
        r"|unchanged|persistent|persisting|increased|increasing|new|worsening|improv\w+|again|left|right|bilateral\w*"
        r"|bibasilar|heart|cardiac|cardiomediastinal|mediastin\w+|lungs?|possibl[ey]|probabl[ey]|likely|may|normal|clear"
        r"|low|old|healed|chronic|is|are|has|have|status|patchy|streaky|there|prominent|multiple|scattered|residual)",
    )
)
GOES_ON = compiled((r"or|nor",))
# What ends a scope that reaches back: the sentence's verb stands between the finding and the cue.
VERB = compiled(
    (
        r"is|are|was|were|has|have|had|there|shows?|demonstrates?|representing|represents?|reflects?|reflecting|seen",
        r"meaning|related to|which|that|but|however|although|though|with|without|due to",
        r"secondary to|[;:]",
    )
)
AND_OR = compiled((r"and|or",))


@dataclass(frozen=True)
class Scope:
    """From which character to which a cue says something of what is named there."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True)
class _Limits:
    """Where the scopes of a sentence can end: found once, however many cues it has."""

    text: str
    clauses: tuple[int, ...]
    causes: tuple[int, ...]
    news: tuple[int, ...]
    ors: tuple[int, ...]
    verbs: tuple[int, ...]  # where they end

    @classmethod
    def of(cls, text: str) -> "_Limits":
        clauses, causes, news, ors = (
            tuple(match.start() for match in pattern.finditer(text)) for pattern in (CLAUSE, CAUSE, ANEW, GOES_ON)
        )
        return cls(text, clauses, causes, news, ors, tuple(match.end() for match in VERB.finditer(text)))

    def end(self, start: int, kind: Kind) -> int:
        """Return where a scope ends that begins here: a clause, for what is denied its cause, something new."""
        end = _first(self.clauses, start, len(self.text))
        if kind == "negative":
            end = _first(self.causes, start, end)
        place = bisect_left(self.ors, end)
        last_or = self.ors[place - 1] if place else 0  # a list that goes on to an "or" is not over
        return _first(self.news, max(start, last_or), end)

    def start(self, end: int) -> int:
        """Return where a scope begins that reaches back from here: after a verb, or the last comma of no list."""
        place = bisect_right(self.verbs, end)
        start = self.verbs[place - 1] if place else 0
        comma = self.text.rfind(",", start, end)
        return start if comma < 0 or AND_OR.search(self.text, comma, end) else comma


def _first(places: tuple[int, ...], start: int, end: int) -> int:
    """Return the first of ascending places from `start` on, `end` where there is none before it."""
    place = bisect_left(places, start)
    return min(places[place], end) if place < len(places) else end


def scopes(text: str) -> tuple[Scope, ...]:
    """Return the scopes of all cues of a plain sentence."""
    limits = _Limits.of(text)
    return (*_forward(limits), *_backward(limits))


def _forward(limits: _Limits) -> Iterator[Scope]:
    for kind, pattern in BEFORE.items():
        for cue in pattern.finditer(limits.text):
            yield Scope(kind, cue.end(), limits.end(cue.end(), kind))


def _backward(limits: _Limits) -> Iterator[Scope]:
    for kind, pattern in AFTER.items():
        for cue in pattern.finditer(limits.text):
            yield Scope(kind, limits.start(cue.start()), cue.start())


def status_at(reached: tuple[Scope, ...], place: int) -> Status | None:
    """Return what is said of a finding whose last character is at a place; None where it is history alone."""
    kinds = {scope.kind for scope in reached if scope.start <= place < scope.end}
    if "history" in kinds:
        return None
    return "negative" if "negative" in kinds else "uncertain" if "uncertain" in kinds else "positive"
