"""The evaluators of a held-out split of shards: retrieval, zero-shot, the disease head, gaze, localisation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cogaze.evaluate.attention import HeldOut, gaze_figures, localisation_figures
from cogaze.evaluate.encoder import Encoder
from cogaze.evaluate.held_out import HeldOutImages, Judged, ShardImages, read_held_out
from cogaze.evaluate.readings import Reading, read_readings
from cogaze.evaluate.records import Task
from cogaze.evaluate.results import Figure, Found
from cogaze.evaluate.retrieval import Resampling, pair_retrieval
from cogaze.evaluate.scores import Scored, classification_figures
from cogaze.evaluate.zero_shot import LabelledImages, ZeroShotConfig, zero_shot_of
from gazeprep.schema import CHEXPERT_LABELS, Split
from gazeprep.shards import ShardFolder

CONTEXT_ALONE = "context alone"
TASK: Task = "multi-label"


@dataclass(frozen=True, eq=False)
class OnShards:
    """A model and the split of shards that it is judged on; validate chooses thresholds where test is judged."""

    encoder: Encoder
    folder: ShardFolder
    split: Judged
    zero_shot_config: ZeroShotConfig

    def evaluators(self) -> Mapping[str, Callable[[], Found]]:
        """Return all by name."""
        return {
            "retrieval": self.retrieval,
            "zero_shot": self.zero_shot,
            "labels": self.labels,
            "gaze": self.gaze,
            "localisation": self.localisation,
        }

    def fitting(self) -> list[str]:
        """Name those for which the shards hold what they need."""
        index = self.folder.index
        labels = self.judged.labels
        told_apart = bool(((labels == 1).any(axis=0) & (labels == 0).any(axis=0)).any())
        has_gaze = bool(index["has_gaze"][index["split"] == self.split].any())
        fits = {
            "retrieval": any(self.judged.reports),
            "zero_shot": told_apart,
            "labels": told_apart and self.encoder.method.has_head,
            "gaze": has_gaze,
            "localisation": self.split == "test" and any(one.regions for one in self.readings(self.split)),
        }
        return [name for name, fit in fits.items() if fit]

    def described(self) -> dict[str, Any]:
        """Say what is judged, without names."""
        judged = self.judged
        return {
            "data": "shards",
            "index": self.folder.manifest["tables"]["index.parquet"]["sha256"],
            "split": self.split,
            "images": len(judged),
            "readings": judged.readings,
            "studies": len(np.unique(judged.study)),
            "subjects": len(np.unique(judged.subject)),
        }

    @cached_property
    def judged(self) -> HeldOutImages:
        """The images that are judged."""
        return self._images(self.split)

    @cached_property
    def validate(self) -> HeldOutImages | None:
        """The images that choose thresholds, if there are any that are not judged."""
        there = (self.folder.index["split"] == "validate").any()
        return self._images("validate") if there and self.split != "validate" else None

    def _images(self, split: Judged) -> HeldOutImages:
        return read_held_out(self.folder, split, self.encoder.reader, self.encoder.collate.text.report_sections)

    def readings(self, split: Split) -> list[Reading]:
        """Return the readings of a split that have gaze."""
        if split not in self._readings:
            pictures = split != "train"  # of which the mean gaze alone is asked
            self._readings[split] = list(read_readings(self.folder, (split,), self.encoder.reader, pictures=pictures))
        return self._readings[split]

    @cached_property
    def _readings(self) -> dict[str, list[Reading]]:
        return {}

    # --- evaluators

    def retrieval(self) -> Found:
        """Find each image's report among the split's, and the images of each; a study's report is one candidate."""
        rows = np.flatnonzero([bool(text) for text in self.judged.reports])
        judged = self.judged
        if not len(rows):
            raise ValueError("no image of the split has a report; leave the evaluator `retrieval` out")
        images = judged.images.chosen(rows)
        texts = self.encoder.embedded_texts([judged.reports[row] for row in rows])
        drawn = Resampling(self.zero_shot_config.intervals.repeats, self.zero_shot_config.intervals.seed)

        def found(shown: ShardImages, *, with_context: bool) -> list[Figure]:
            seen = self.encoder.embedded(shown, with_context=with_context)
            return pair_retrieval(seen, texts, judged.study[rows], subjects=judged.subject[rows], resampling=drawn)

        figures = found(images, with_context=False)
        if self.zero_shot_config.with_context:
            alone = found(images.without_pictures(self.gray), with_context=True)
            figures += [
                replace(one, name=f"{one.name} with context", baselines={**one.baselines, CONTEXT_ALONE: blind.value})
                for one, blind in zip(found(images, with_context=True), alone, strict=True)
            ]
        studies = len(np.unique(judged.study[rows]))
        notes = {
            "protocol": "an image's only hit is its study's report, a report's hits are the images of its study",
            "candidates": f"{studies} reports, {len(rows)} images",
        }
        return Found(figures, notes)

    @property
    def gray(self) -> int:
        """The gray level that the model is told is the mean."""
        return round(255 * self.encoder.collate.pixel_mean[0])

    def zero_shot(self) -> Found:
        """Score the fourteen labels by their sentences."""
        validate = None if self.validate is None else _labelled(self.validate)
        return zero_shot_of(
            self.encoder, TASK, CHEXPERT_LABELS, _labelled(self.judged), validate, self.zero_shot_config
        )

    def labels(self) -> Found:
        """Score the fourteen labels by the model's own head."""

        def scored(part: HeldOutImages) -> Scored:
            context = self.zero_shot_config.with_context
            logits = self.encoder.disease_logits(part.images, with_context=context)
            return Scored(logits, part.labels, part.subject)

        validate = None if self.validate is None else scored(self.validate)
        intervals = self.zero_shot_config.intervals
        return classification_figures(TASK, CHEXPERT_LABELS, scored(self.judged), validate, intervals)

    def gaze(self) -> Found:
        """Hold attention against gaze."""
        repeats = self.zero_shot_config.intervals.repeats
        return gaze_figures(self.encoder, self.readings(self.split), self.readings("train"), repeats=repeats)

    def localisation(self) -> Found:
        """Hold attention against what readers drew."""
        if self.split != "test":
            raise ValueError("localisation chooses levels on the validation split, so that it judges test alone")
        readings = HeldOut(*(self.readings(split) for split in ("test", "validate", "train")))
        return localisation_figures(self.encoder, readings, repeats=self.zero_shot_config.intervals.repeats)


def _labelled(images: HeldOutImages) -> LabelledImages:
    return LabelledImages(images.images, images.labels, images.subject)
