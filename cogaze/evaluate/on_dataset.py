"""The evaluators of a benchmark dataset: zero-shot, retrieval, linear probe, fine-tuning, segmentation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogaze.evaluate.classify import ProbeConfig
from cogaze.evaluate.encoder import Encoder
from cogaze.evaluate.finetune import FinetuneConfig
from cogaze.evaluate.prompts import has_prompts
from cogaze.evaluate.records import UNKNOWN, EvalImage, EvalSet
from cogaze.evaluate.results import Figure, Found
from cogaze.evaluate.retrieval import Resampling, class_retrieval, pair_retrieval
from cogaze.evaluate.segment import SegmentConfig
from cogaze.evaluate.similarity import Embedded
from cogaze.evaluate.supervised import SupervisedConfig, full_finetuning, linear_probe, segmentation
from cogaze.evaluate.zero_shot import ZeroShotConfig, groups_of, zero_shot

ON_REQUEST = ("fine_tuning",)  # a day of a GPU on the larger sets


@dataclass(frozen=True)
class Supervised:
    """How the trained evaluators train."""

    shared: SupervisedConfig
    probe: ProbeConfig
    finetune: FinetuneConfig
    segment: SegmentConfig


@dataclass(frozen=True, eq=False)
class OnDataset:
    """A model and the dataset that it is judged on; store: a new folder for segmentation's features."""

    encoder: Encoder
    data: EvalSet
    zero_shot_config: ZeroShotConfig
    supervised: Supervised
    store: Path

    def evaluators(self) -> Mapping[str, Callable[[], Found]]:
        """Return all by name."""
        how = self.supervised
        return {
            "zero_shot": lambda: zero_shot(self.encoder, self.data, self.zero_shot_config),
            "retrieval": self.retrieval,
            "linear_probe": lambda: linear_probe(self.encoder, self.data, how.shared, how.probe),
            "segmentation": lambda: segmentation(self.encoder, self.data, how.shared, how.segment, self.store),
            "fine_tuning": lambda: full_finetuning(self.encoder, self.data, how.shared, how.finetune),
        }

    def fitting(self) -> list[str]:
        """Name those for which the set holds what they need, but for those that take a request."""
        test = self.data.parts.get("test", ())
        known = any(label != UNKNOWN for one in test for label in one.labels)
        parts = all(self.data.parts.get(name) for name in ("train", "validate", "test"))
        fits = {
            "zero_shot": known and has_prompts(self.data.classes, self.zero_shot_config.prompts),
            "retrieval": bool(self.data.texts) or any(one.report for one in test),
            "linear_probe": known and parts,
            "segmentation": parts and any(one.boxes or one.runs for one in test),
        }
        return [name for name, fit in fits.items() if fit and name not in ON_REQUEST]

    def described(self) -> dict[str, Any]:
        """Say what is judged, without names."""
        data, fingerprints = self.data, self.data.fingerprints()
        return {
            "data": data.name,
            "task": data.task,
            "classes": list(data.classes),
            "who split it": data.origin,
            "parts": {
                part: {
                    "images": len(images),
                    "subjects": len(np.unique(groups_of(images))),
                    "fingerprint": fingerprints[part],
                }
                for part, images in data.parts.items()
            },
            "left out or doubtful": dict(data.notes),
        }

    def retrieval(self) -> Found:
        """Retrieve with the set's own sentences, or the images' reports: by class too if each has one."""
        test = self.data.parts.get("test", ())
        if self.data.texts:
            return self._by_class(test, [one.text for one in self.data.texts], [one.label for one in self.data.texts])
        own = [one for one in test if one.report]
        if not own:
            raise ValueError(f"{self.data.name} has neither sentences nor reports; leave the evaluator `retrieval` out")
        pairs = self._by_pair(own)
        if self.data.task != "multi-class":
            return pairs
        by_class = self._by_class(own, [one.report for one in own], [_class_of(one) for one in own])
        figures = [replace(one, name=f"same class, {one.name}") for one in by_class.figures]
        figures += [replace(one, name=f"own report, {one.name}") for one in pairs.figures]
        notes = {f"same class, {name}": said for name, said in by_class.notes.items()}
        return Found(figures, notes | {f"own report, {name}": said for name, said in pairs.notes.items()})

    def _by_class(self, images: Sequence[EvalImage], texts: Sequence[str], text_class: Sequence[int]) -> Found:
        figures = class_retrieval(
            self._seen(images),
            self.encoder.embedded_texts(texts),
            [_class_of(one) for one in images],
            text_class,
            subjects=groups_of(images),
            resampling=self._resampling,
        )
        notes = {
            "protocol": "a candidate of the query's class is a hit, the image's own report among them if it has one",
            "candidates": f"{len(texts)} texts, {len(images)} images",
        }
        return Found(figures, notes)

    def _by_pair(self, images: Sequence[EvalImage]) -> Found:
        reports = [one.report for one in images]
        texts = self.encoder.embedded_texts(reports)
        pair = np.unique(np.array(reports), return_inverse=True)[1].reshape(-1)
        figures: list[Figure] = pair_retrieval(
            self._seen(images), texts, pair, subjects=groups_of(images), resampling=self._resampling
        )
        notes = {
            "protocol": "an image's only hit is its own report; reports that read the same are one candidate",
            "candidates": f"{len(np.unique(pair))} reports, {len(images)} images",
        }
        return Found(figures, notes)

    def _seen(self, images: Sequence[EvalImage]) -> Embedded:
        return self.encoder.embedded(images, with_context=self.zero_shot_config.with_context)

    @property
    def _resampling(self) -> Resampling:
        intervals = self.zero_shot_config.intervals
        return Resampling(intervals.repeats, intervals.seed)


def _class_of(image: EvalImage) -> int:
    """Return the place of an image's one class; raises ValueError where it has none or several."""
    if image.labels.count(1) != 1:
        raise ValueError("an image has not exactly one class, so that classes cannot be retrieved")
    return image.labels.index(1)
