"""Which subject plays which part: the first twelve hold every special case, the others are drawn."""

from dataclasses import dataclass, replace

import numpy as np

from gazeprep.schema import SPLITS, Split
from gazeprep.synthetic.reports import Form

BLOCK = 10  # subjects of which one is in validate and one in test
MULTI_READER_EVERY = 60  # one phase-1 and one phase-2 image in so many subjects


@dataclass(frozen=True)
class Role:
    """What a subject has: readings, forms and special cases of the first study, its split."""

    index: int
    split: Split = "train"
    phase: int = 0  # of the REFLACX reading; 0 none
    trial: int = 0
    egd: bool = False
    form: Form = "full"
    studies: int = 1
    flags: frozenset[str] = frozenset()


CAST: tuple[Role, ...] = (
    Role(0, phase=1, trial=2, flags=frozenset({"discarded_with_folder", "lateral", "findings", "other_text"})),
    Role(1, phase=2, trial=1, flags=frozenset({"discarded_without_folder", "monochrome1", "findings"})),
    Role(2, "validate", phase=3, flags=frozenset({"quirky_words", "zoom", "strays", "nodule", "other_text"})),
    Role(3, "test", phase=3, egd=True, form="history", flags=frozenset({"findings", "lateral", "blank_view"})),
    Role(4, phase=3, flags=frozenset({"normal", "header_only_ellipses", "monochrome1", "bits14"})),
    Role(5, egd=True, flags=frozenset({"odd_width", "empty_transcript", "long_id"})),
    Role(6, egd=True, flags=frozenset({"odd_phrases", "strays", "landscape", "multi_window"})),
    Role(7, form="last_paragraph", flags=frozenset({"lateral", "blank_view"})),
    Role(8, form="empty_findings", flags=frozenset({"no_chexpert_row", "bits14"})),
    Role(9, form="no_headers", flags=frozenset({"blank_chexpert_row", "no_window"})),
    Role(10, phase=3, form="addendum", studies=2, flags=frozenset({"landscape", "lateral", "two_frontals"})),
    Role(11, egd=True, form="both_contexts", flags=frozenset({"voi_lut", "bits14", "no_stop"})),
)


def role_of(seed: int, index: int) -> Role:
    """Return a subject's part; it depends on nothing but the seed and the index."""
    role = CAST[index] if index < len(CAST) else _drawn(seed, index)
    return role if index < BLOCK else replace(role, split=_split(seed, index))


def _drawn(seed: int, index: int) -> Role:
    rng = np.random.default_rng([seed, index, 0])
    studies = 2 if rng.random() < 0.25 else 1
    form: Form = ("full", "history", "both_contexts", "empty_findings", "last_paragraph", "no_headers", "addendum")[
        int(rng.choice(7, p=[0.55, 0.15, 0.12, 0.05, 0.05, 0.04, 0.04]))
    ]
    flags = {
        flag for flag, share in (("lateral", 0.5), ("blank_view", 0.15), ("monochrome1", 0.1)) if rng.random() < share
    }
    chance = rng.random()
    phase, trial = (3 if chance < 0.47 else 0), 0
    round_, place = divmod(index, MULTI_READER_EVERY)
    if place < 2 and round_ < 50:
        phase, trial = place + 1, round_ + 2 - place
    return Role(index, "train", phase, trial, 0.4 <= chance < 0.65, form, studies, frozenset(flags))


def _split(seed: int, index: int) -> Split:
    block, place = divmod(index, BLOCK)
    order = np.random.default_rng([seed, block, 1]).permutation(BLOCK)
    return {0: SPLITS[1], 1: SPLITS[2]}.get(int(np.flatnonzero(order == place)[0]), SPLITS[0])
