"""A stored sample's gaze rendered again: on any grid, over the stored picture, for anyone's split into sentences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gazeprep.images import Affine
from gazeprep.maps import FloatMap, Grid, render_batch
from gazeprep.schema import Fixations, FloatArray, Rectangle, Sentence, Size, Word
from gazeprep.shards import LoadedSample, fixations_from_member
from gazeprep.transcripts import Alignment, sentence_weights


@dataclass(frozen=True, eq=False)
class StoredGaze:
    """What a stored sample knows of its gaze: fixations, the words of its sentences, the build's rules."""

    fixations: Fixations
    left_out: tuple[int, ...]  # rows of fixations that a filter marked
    words: tuple[Word, ...]
    sentences: tuple[Sentence, ...]
    alignment: Alignment
    image_size: Size
    sigma_deg: float
    sigma_px: float | None  # stands above sigma_deg

    @classmethod
    def of(cls, sample: LoadedSample) -> "StoredGaze":
        """Read it from a sample that has gaze."""
        gaze, record = sample.gaze, sample.record
        owner = gaze["word_sentence"]
        told = np.flatnonzero(owner >= 0)  # a dropped tail belongs to no sentence
        columns = (gaze[name][told].tolist() for name in ("word", "word_start_s", "word_end_s"))
        return cls(
            fixations=fixations_from_member(gaze),
            left_out=tuple(int(row) for row in json.loads(record["fixation_marks"])),
            words=tuple(Word(*word) for word in zip(*columns, strict=True)),
            sentences=_sentences(gaze, record, owner[told]),
            alignment=Alignment(**json.loads(record["alignment"])),
            image_size=(record["image_width_px"], record["image_height_px"]),
            sigma_deg=float(record["map_sigma_deg"]),
            sigma_px=float(record["map_sigma_px"]) or None,
        )

    @property
    def sigma_x_px(self) -> FloatArray:
        """Width (n,) of each fixation's Gaussian in full-resolution px."""
        return self._sigma(self.fixations.px_per_deg_x)

    @property
    def sigma_y_px(self) -> FloatArray:
        """Height (n,) of each fixation's Gaussian in full-resolution px."""
        return self._sigma(self.fixations.px_per_deg_y)

    def _sigma(self, px_per_deg: FloatArray | None) -> FloatArray:
        if self.sigma_px is not None or px_per_deg is None:
            return np.full(len(self.fixations), self.sigma_px or 0.0)
        return self.sigma_deg * px_per_deg

    def maps(
        self,
        grid: Grid,
        window: Rectangle | None = None,
        sentences: Sequence[Sentence] | None = None,
        dtype: npt.DTypeLike = "float32",
    ) -> FloatMap:
        """Render maps (1 + S, rows, cols) of the whole reading and of each sentence, the stored ones by default.

        window: edges in full-resolution image px, None is the whole image. Each map sums to 1 or is all zero.
        """
        spoken = self.sentences if sentences is None else sentences
        return self._rendered(self._seconds(spoken), grid, window, dtype)

    def each_map(self, grid: Grid, window: Rectangle | None = None) -> Iterator[FloatMap]:
        """Render the same maps one by one, for grids of which not all fit into memory at once."""
        for seconds in self._seconds(self.sentences):
            yield self._rendered(seconds[None], grid, window)[0]

    def _seconds(self, sentences: Sequence[Sentence]) -> FloatArray:
        each = sentence_weights(self.fixations, sentences, self.words, self.alignment)
        seconds = np.vstack([self.fixations.duration_s[None], each])
        seconds[:, list(self.left_out)] = 0.0
        return seconds

    def _rendered(
        self, seconds: FloatArray, grid: Grid, window: Rectangle | None, dtype: npt.DTypeLike = "float32"
    ) -> FloatMap:
        return render_batch(
            self.fixations,
            seconds,
            self.image_size,
            grid,
            window,
            sigma_deg=self.sigma_deg,
            sigma_px=self.sigma_px,
            dtype=dtype,
        )


def _sentences(
    gaze: Mapping[str, npt.NDArray[Any]], record: Mapping[str, Any], owner: npt.NDArray[np.int32]
) -> tuple[Sentence, ...]:
    texts, found = str(record["sentences"]).split("\n"), []
    for i, (start_s, end_s) in enumerate(zip(gaze["sentence_start_s"], gaze["sentence_end_s"], strict=True)):
        own = np.flatnonzero(owner == i)
        found.append(Sentence(texts[i], float(start_s), float(end_s), int(own[0]), int(own[-1]) + 1))
    return tuple(found)


def stored_affine(record: Mapping[str, Any]) -> Affine:
    """Return where full-resolution px lie in the stored picture."""
    return Affine(
        a_x=record["resize_scale_x"],
        b_x=record["resize_offset_x"],
        a_y=record["resize_scale_y"],
        b_y=record["resize_offset_y"],
    )


def stored_window(record: Mapping[str, Any]) -> Rectangle:
    """Return what the stored picture shows, padding too: edges in full-resolution image px."""
    size = float(record["stored_width_px"]), float(record["stored_height_px"])
    return stored_affine(record).inverse().rectangle((0.0, 0.0, *size))


def picture_maps(sample: LoadedSample, sentences: Sequence[Sentence] | None = None) -> FloatMap:
    """Render maps (1 + S, stored rows, stored cols), one cell per pixel of the stored picture."""
    record = sample.record
    grid = record["stored_height_px"], record["stored_width_px"]
    return StoredGaze.of(sample).maps(grid, stored_window(record), sentences)
