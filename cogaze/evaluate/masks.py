"""Masks of images: run lengths (SIIM-ACR's rule) and boxes to pixels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gazeprep.schema import Rectangle

Mask = npt.NDArray[np.bool_]  # (rows, cols)


def mask_of_runs(runs: Sequence[str], width_px: int, height_px: int) -> Mask:
    """Return the union of masks, each given as one text of run lengths, as booleans (height_px, width_px).

    A text holds pairs of an offset and a length, separated by spaces: the offset counts pixels from the end of the run
    before, the first from the first pixel, and pixels go down each column before the next. No texts make an empty
    mask. Raises ValueError where a text is no such pairs or leaves the image.
    """
    flat = np.zeros(width_px * height_px, dtype=np.bool_)
    for text in runs:
        for start, end in run_spans(text, len(flat)):
            flat[start:end] = True
    return flat.reshape(width_px, height_px).T


def runs_of_mask(mask: Mask) -> str:
    """Return a mask (rows, cols) as one text of run lengths, "" for an empty one: `mask_of_runs` undoes it."""
    padded = np.concatenate([[False], mask.T.reshape(-1), [False]])
    spans = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    ends_before = np.concatenate([[0], spans[:-1, 1]]) if len(spans) else spans[:, 0]
    pairs = np.stack([spans[:, 0] - ends_before, spans[:, 1] - spans[:, 0]], axis=1)
    return " ".join(map(str, pairs.reshape(-1).tolist()))


def mask_of_boxes(boxes: Sequence[Rectangle], width_px: int, height_px: int) -> Mask:
    """Return the union of boxes as booleans (height_px, width_px): pixels round(left) to round(right), half open.

    Halves round to even. What lies beyond the image is cut off. Raises ValueError where a box has no area.
    """
    mask = np.zeros((height_px, width_px), dtype=np.bool_)
    for box in boxes:
        left, top, right, bottom = box
        if not (left < right and top < bottom):
            raise ValueError(f"a box of edges {box} has no area; give (left, top, right, bottom) in px")
        mask[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = True
    return mask


def run_spans(text: str, pixels: int) -> list[tuple[int, int]]:
    """Return the first pixel and the one after the last of each run, in an image of so many pixels.

    Raises ValueError as `mask_of_runs` does.
    """
    values = text.split()
    if len(values) % 2 or not all(value.isascii() and value.isdigit() for value in values):
        raise ValueError(
            f"run lengths of {len(values)} values are not pairs of whole numbers, offset and length; "
            "an image without a mask has no run lengths at all"
        )
    spans, position = [], 0
    for offset, length in zip(map(int, values[::2]), map(int, values[1::2]), strict=True):
        start, position = position + offset, position + offset + length
        if length < 1 or position > pixels:
            raise ValueError(
                f"a run from pixel {start} of length {length} is not within {pixels} pixels; offsets are relative to "
                "the end of the run before, and width and height must be the annotated image's"
            )
        spans.append((start, position))
    return spans
