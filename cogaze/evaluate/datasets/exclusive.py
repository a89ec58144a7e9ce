"""Images with exactly one finding, so many of each class: what the 5x200 and 8x200 sets are made of."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cogaze.evaluate.datasets.folders import Notes

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")  # GLoRIA's order
EIGHT = (
    "No Finding",
    "Cardiomegaly",
    "Edema",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Fracture",
)
Positions = npt.NDArray[np.int64]


def pools(values: npt.NDArray[np.int8], names: Sequence[str], classes: Sequence[str]) -> list[Positions]:
    """Return for each class the rows, in order, that have it and nothing else.

    values: (rows, names), 1 present, 0 absent or not mentioned, -1 uncertain. A row belongs to a class of which it has
    1, and of all other names 0: an uncertain one excludes it.
    """
    alone = (values != 0).sum(axis=1) == 1
    return [np.flatnonzero(alone & (values[:, list(names).index(one)] == 1)) for one in classes]


def draw(
    pools: Sequence[Positions], classes: Sequence[str], per_class: int, seed: int, dataset: str
) -> list[Positions]:
    """Return so many rows of each class, without repetition, as pandas draws them with random_state: MGCA's rule.

    Raises ValueError where a class has fewer.
    """
    if per_class < 1:
        raise ValueError(f"{dataset}: {per_class} images of each class; give 1 or more")
    for name, pool in zip(classes, pools, strict=True):
        if len(pool) < per_class:
            raise ValueError(
                f"{dataset}: only {len(pool)} images have {name} alone, {per_class} are wanted; give the whole "
                "release, or a smaller per_class"
            )
    return [pd.Series(pool).sample(n=per_class, random_state=seed).to_numpy(dtype=np.int64) for pool in pools]


def note_pools(pools: Sequence[Positions], classes: Sequence[str], notes: Notes) -> None:
    """Note how many images each class could be drawn from."""
    for name, pool in zip(classes, pools, strict=True):
        notes[f"images with {name} alone"] += len(pool)


def one_hot(label: int, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the labels of an image of this class."""
    return tuple(int(place == label) for place in range(len(classes)))
