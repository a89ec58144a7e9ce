"""Subject-disjoint splits: who says so, in which order, and the leak check."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gazeprep.schema import SPLITS, InputError, Split

# The first origin that says something about a subject decides for all its images.
ORIGINS = ("mimic-cxr", "reflacx", "source", "hash")


@dataclass(frozen=True)
class Claim:
    """What one origin says of one subject."""

    subject_id: str
    split: Split
    origin: str


@dataclass(frozen=True)
class Assigned:
    """The split of a subject and the origin that decided it."""

    split: Split
    origin: str


@dataclass(frozen=True)
class HashSplit:
    """Shares of subjects for which no source names a split, by a hash of the subject; the rest is train."""

    validate: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.validate >= 0 and self.test >= 0 and self.validate + self.test <= 1):
            raise ValueError(f"splits.validate {self.validate} and splits.test {self.test} must be shares of 1")


def assign_splits(
    subjects: Iterable[str], claims: Sequence[Claim], by_hash: HashSplit | None = None
) -> dict[str, Assigned]:
    """Give each subject one split; raises InputError where the deciding origin puts a subject in two."""
    by_hash = by_hash or HashSplit()
    said: dict[str, dict[str, set[Split]]] = defaultdict(lambda: defaultdict(set))
    for claim in claims:
        said[claim.subject_id][claim.origin].add(claim.split)
    assigned, leaks = {}, []
    for subject in dict.fromkeys(subjects):
        origin = next((name for name in ORIGINS if name in said[subject]), "hash")
        splits = said[subject][origin] or {hash_split(subject, by_hash)}
        if len(splits) > 1:
            leaks.append(origin)
        assigned[subject] = Assigned(min(splits), origin)
    if leaks:
        raise InputError(
            "split_leak",
            f"{len(leaks)} of {len(assigned)} subjects stand in two splits (said by {', '.join(sorted(set(leaks)))}); "
            "give every image of a subject the same split in that table",
        )
    return assigned


def hash_split(subject_id: str, by_hash: HashSplit) -> Split:
    """Return the split of a subject that no source names: a pure function of the subject and the seed."""
    digest = hashlib.blake2b(f"{by_hash.seed}\0{subject_id}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < by_hash.validate:
        return SPLITS[1]
    return SPLITS[2] if position < by_hash.validate + by_hash.test else SPLITS[0]
