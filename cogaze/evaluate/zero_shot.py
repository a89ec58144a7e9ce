"""Zero-shot classification: how much more alike an image is to a class's sentences than to those of its absence.

A score is of one image: nothing is standardised over the set, and no threshold is chosen on the images that are judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cogaze.evaluate.encoder import Encoder, Images
from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.prompts import NORMAL, PROMPTS, Prompts, is_normal, prompt_hash, prompts_of
from cogaze.evaluate.records import EvalImage, EvalSet, Task
from cogaze.evaluate.results import Found
from cogaze.evaluate.scores import Intervals, Scored, classification_figures
from cogaze.evaluate.similarity import Embedded, Similarity

Ensemble = Literal["mean", "max"]
ABSENCE = "absence of findings"
JUDGED, THRESHOLDS_FROM = "test", "validate"


@dataclass(frozen=True)
class ZeroShotConfig:
    """How zero-shot classification is done.

    ensemble: a class is the mean of its sentences' unit vectors ("mean"), or an image is as alike to it as to the most
    alike sentence ("max", EGMA's published one). with_context: age and sex, if they are known, steer the image.
    """

    ensemble: Ensemble = "mean"
    with_context: bool = False
    prompts: Prompts = field(default_factory=lambda: PROMPTS)
    intervals: Intervals = field(default_factory=Intervals)

    def __post_init__(self) -> None:
        if self.ensemble not in get_args(Ensemble):
            raise ValueError(f"ensemble is {self.ensemble!r}, must be one of {', '.join(get_args(Ensemble))}")


def class_similarity(images: Embedded, sentences: Sequence[Embedded], ensemble: Ensemble) -> FloatArray:
    """Return how alike images and classes are (N, C); sentences: the unit vectors of each class's."""
    if ensemble == "max":
        return np.stack([Similarity(images, own).array().max(axis=1) for own in sentences], axis=1)
    means = np.stack([own.vectors.mean(axis=0) for own in sentences])
    return Similarity(images, Embedded.of(means)).array()


def scores_of(similarity: FloatArray, classes: Sequence[str]) -> FloatArray:
    """Return scores (N, C) from similarities (N, 1 + C) with normal, then each class: what is above normal.

    A class that is itself the absence of findings scores normal less the most alike of the other classes.
    """
    normal, own = similarity[:, :1], similarity[:, 1:]
    scores = own - normal
    absent = np.array([is_normal(name) for name in classes])
    if absent.any() and not absent.all():
        scores[:, absent] = normal - own[:, ~absent].max(axis=1, keepdims=True)
    return np.asarray(scores)


def zero_shot(encoder: Encoder, data: EvalSet, config: ZeroShotConfig | None = None) -> Found:
    """Return the figures of a set's test part, with thresholds from its validation part.

    Binary: the finding against normal. Multi-label: each finding against normal. Multi-class: the most alike class.
    """
    parts = {part: LabelledImages.of(images) for part, images in data.parts.items() if images}
    if JUDGED not in parts:
        raise ValueError(f"{data.name} has no {JUDGED} part to judge on")
    return zero_shot_of(encoder, data.task, data.classes, parts[JUDGED], parts.get(THRESHOLDS_FROM), config)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """N images, labels (N, C) of 1, 0 and UNKNOWN, and whom they belong to (N,)."""

    images: Images
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]

    @classmethod
    def of(cls, images: Sequence[EvalImage]) -> "LabelledImages":
        """Take a set's part."""
        return cls(images, np.array([one.labels for one in images], dtype=np.int64), groups_of(images))


def zero_shot_of(
    encoder: Encoder,
    task: Task,
    classes: Sequence[str],
    test: LabelledImages,
    validate: LabelledImages | None,
    config: ZeroShotConfig | None = None,
) -> Found:
    """Return the figures of images to be judged, with thresholds from others, if there are any."""
    config = config or ZeroShotConfig()
    sentences = sentences_of(classes, config.prompts)
    vectors = [Embedded.of(encoder.texts(own)) for own in sentences.values()]

    def scored(part: LabelledImages) -> Scored:
        seen = encoder.embedded(part.images, with_context=config.with_context)
        similarity = class_similarity(seen, vectors, config.ensemble)
        scores = similarity[:, 1:] if task == "multi-class" else scores_of(similarity, classes)
        return Scored(scores, part.labels, part.groups)

    by_validate = None if validate is None or task == "multi-class" else scored(validate)
    found = classification_figures(task, classes, scored(test), by_validate, config.intervals)
    return Found(found.figures, {**found.notes, **zero_shot_notes(sentences, config)})


def sentences_of(classes: Sequence[str], prompts: Prompts) -> dict[str, tuple[str, ...]]:
    """Return the sentences of normal, then of each class."""
    return {ABSENCE: prompts_of(NORMAL, prompts)} | {name: prompts_of(name, prompts) for name in classes}


def groups_of(images: Sequence[EvalImage]) -> npt.NDArray[np.int64]:
    """Number the subjects (N,); an image without one is its own."""
    numbers: dict[tuple[str, str], int] = {}
    keys = (("subject", one.subject) if one.subject else ("image", one.id) for one in images)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def zero_shot_notes(sentences: Mapping[str, Sequence[str]], config: ZeroShotConfig) -> dict[str, str]:
    """Say what has to be known to read the figures."""
    return {
        "ensemble": "the mean of unit vectors" if config.ensemble == "mean" else "the most alike sentence",
        "prompts": f"{sum(map(len, sentences.values()))} sentences, hash {prompt_hash(sentences)}",
        "context": "what is known" if config.with_context else "none",
    }
