"""Do readers of one image look in the same order? Their scanpaths pair by pair, beside what knows nothing of it.

Of each image that was read more than once, every two readings are compared by MultiMatch; so are, as baselines, the
first with the second in a drawn order, which keeps places and durations, and the first with a reading of another image,
stretched to this one's size. Fixations beside the image do not count.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from gazeprep.scanpaths import FEWEST_FIXATIONS, MultiMatch, multimatch
from gazeprep.schema import Fixations, Size
from gazeprep.shards import ShardFolder, fixations_from_member, read_npz

Comparison = Literal["another reader", "in a drawn order", "another image"]

COMPARISONS: tuple[Comparison, ...] = ("another reader", "in a drawn order", "another image")
SIMILARITIES = tuple(field.name for field in fields(MultiMatch))


@dataclass(frozen=True)
class PairRow:
    """Two readings of an image, by key, compared in one way; image: number of the image, from 0."""

    dataset: str
    image: int
    first: str
    second: str
    comparison: Comparison
    similarity: MultiMatch


@dataclass(frozen=True)
class ComparisonScores:
    """A comparison over all images: mean of the images' means; standard error over images, None with but one image."""

    comparison: Comparison
    images: int
    mean: MultiMatch
    standard_error: MultiMatch | None


@dataclass(frozen=True)
class ScanpathAgreement:
    """Agreement of scanpaths in a folder: a row for each pair and comparison, and readings left out by reason."""

    rows: tuple[PairRow, ...]
    left_out: dict[str, int]

    def table(self) -> tuple[ComparisonScores, ...]:
        """Return the scores of each comparison, in the order of COMPARISONS; empty without rows."""
        found = ([row for row in self.rows if row.comparison == one] for one in COMPARISONS)
        return tuple(_over_images(rows) for rows in found if rows)


def scanpath_agreement(folder: ShardFolder | Path | str) -> ScanpathAgreement:
    """Compare the scanpaths of every image that a finished build holds several readings of, dataset by dataset.

    Raises ValueError where the folder is no finished build.
    """
    shards = folder if isinstance(folder, ShardFolder) else ShardFolder(folder)
    rows: list[PairRow] = []
    left_out: Counter[str] = Counter()
    for name, samples in shards.index[shards.index["has_gaze"]].groupby("dataset"):
        read = (list(image["key"]) for _, image in samples.groupby("dicom", sort=False) if len(image) > 1)
        images = [paths for paths in (_paths(shards, keys, left_out) for keys in read) if len(paths) > 1]
        rows += _rows(str(name), images, len({row.image for row in rows}))
    return ScanpathAgreement(tuple(rows), dict(left_out))


def lines(agreement: ScanpathAgreement) -> list[str]:
    """Write the table as lines of text, none without rows."""
    table = agreement.table()
    if not table:
        return []
    said = ["scanpaths of two readings by MultiMatch, 1 where they are equal; mean over images"]
    said += [f"{'compared with':18}" + "".join(f"{name:>16}" for name in SIMILARITIES)]
    for one in table:
        said += [f"{one.comparison:18}" + "".join(f"{with_error(one, name):>16}" for name in SIMILARITIES)]
    return said + [f"left out: {count} readings, {reason}" for reason, count in agreement.left_out.items()]


def with_error(scores: ComparisonScores, name: str) -> str:
    """Write one similarity with its standard error, where there is one."""
    error = scores.standard_error
    return f"{getattr(scores.mean, name):.3f}" + (f" ± {getattr(error, name):.3f}" if error is not None else "")


@dataclass(frozen=True, eq=False)
class _Path:
    """A reading's fixations on its image, in the order of time, and the size of the image."""

    key: str
    fixations: Fixations
    size: Size

    def on(self, size: Size) -> Fixations:
        """Return them on an image of another size, stretched to it."""
        across, down = (new / own for new, own in zip(size, self.size, strict=True))
        x_px, y_px = (self.fixations.x_px + 0.5) * across - 0.5, (self.fixations.y_px + 0.5) * down - 0.5
        return replace(self.fixations, x_px=x_px, y_px=y_px)


def _paths(shards: ShardFolder, keys: Sequence[str], left_out: Counter[str]) -> list[_Path]:
    """Return the scanpaths of an image's readings that have two saccades and more."""
    found = []
    for key in keys:
        gaze, record = read_npz(shards.member(key, "gaze")), json.loads(shards.member(key, "json"))
        order = np.argsort(gaze["start_s"], kind="stable")
        fixations = fixations_from_member(gaze).take(order[gaze["on_image"][order]])
        if len(fixations) < FEWEST_FIXATIONS:
            left_out[f"fewer than {FEWEST_FIXATIONS} fixations on the image"] += 1
        else:
            found.append(_Path(key, fixations, (record["image_width_px"], record["image_height_px"])))
    return found


def _rows(dataset: str, images: Sequence[Sequence[_Path]], first_image: int) -> Iterator[PairRow]:
    for number, paths in enumerate(images):
        following = images[(number + 1) % len(images)]
        for pair, (first, second) in enumerate(combinations(paths, 2)):
            drawn = np.random.default_rng(pair).permutation(len(second.fixations))
            compared: dict[Comparison, Fixations] = {
                "another reader": second.on(first.size),
                "in a drawn order": second.on(first.size).take(drawn),
            }
            if following is not paths:
                compared["another image"] = following[pair % len(following)].on(first.size)
            for comparison, fixations in compared.items():
                similarity = multimatch(first.fixations, fixations, first.size)
                yield PairRow(dataset, first_image + number, first.key, second.key, comparison, similarity)


def _over_images(rows: Sequence[PairRow]) -> ComparisonScores:
    values = np.array([astuple(row.similarity) for row in rows])
    image = np.array([row.image for row in rows])
    means = np.array([values[image == number].mean(axis=0) for number in np.unique(image)])
    error = None
    if len(means) > 1:
        error = MultiMatch(*(means.std(axis=0, ddof=1) / np.sqrt(len(means))).tolist())
    return ComparisonScores(rows[0].comparison, len(means), MultiMatch(*means.mean(axis=0).tolist()), error)
