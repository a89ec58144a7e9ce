"""Segmentation: a decoder on a frozen encoder's patches and latents, judged image by image.

Beside every figure stands what the mask without a pixel scores: where three of four images have no finding, that is
a Dice of .75; and what the mean training mask scores, because an organ is where it always is. A prediction is pixels
above a threshold that the validation images chose, within the picture; padding never counts. Masks are of the canvas.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogaze.data.transforms import View
from cogaze.evaluate.masks import Mask, mask_of_boxes, mask_of_runs
from cogaze.evaluate.metrics import BoolArray, FloatArray
from cogaze.evaluate.records import EvalImage
from cogaze.models.segmenter import SegmentationDecoder

THRESHOLDS = np.arange(5, 100, 5) / 100
HALF = 128  # of 255: a canvas pixel belongs to the mask where at least half of it does
BATCH_OF_VARIANT_B = 8  # images, as CoGaze's published code has it


@dataclass(frozen=True, eq=False)
class Overlap:
    """Pixels of N images' masks at T thresholds: predicted and common (N, T), truth (N,)."""

    predicted: FloatArray
    common: FloatArray
    truth: FloatArray

    @classmethod
    def of(cls, probability: npt.NDArray[np.floating], truth: BoolArray, thresholds: npt.ArrayLike) -> Self:
        """Count pixels of probability and truth, both (N, rows, cols); predicted is what is above a threshold (T,)."""
        columns = [probability > threshold for threshold in np.atleast_1d(thresholds)]
        return cls(
            predicted=np.stack([column.sum(axis=(1, 2)) for column in columns], axis=1).astype(np.float64),
            common=np.stack([(column & truth).sum(axis=(1, 2)) for column in columns], axis=1).astype(np.float64),
            truth=truth.sum(axis=(1, 2)).astype(np.float64),
        )

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Put the images of several parts behind one another."""
        return cls(
            predicted=np.concatenate([part.predicted for part in parts]),
            common=np.concatenate([part.common for part in parts]),
            truth=np.concatenate([part.truth for part in parts]),
        )

    def at(self, column: int) -> Self:
        """Keep one threshold."""
        return type(self)(self.predicted[:, [column]], self.common[:, [column]], self.truth)

    def empty(self) -> Self:
        """Return the overlap of the same truth with masks without a pixel, at one threshold."""
        nothing = np.zeros((len(self.truth), 1))
        return type(self)(nothing, nothing, self.truth)

    def dice(self) -> FloatArray:
        """2 |A and B| / (|A| + |B|) of each image (N, T); 1 where both masks are empty."""
        return _ratio(2 * self.common, self.predicted + self.truth[:, None])

    def iou(self) -> FloatArray:
        """|A and B| / |A or B| of each image (N, T); 1 where both masks are empty."""
        return _ratio(self.common, self.predicted + self.truth[:, None] - self.common)

    def best_threshold(self) -> int:
        """Return the column of the highest mean Dice, the lowest of equals."""
        return int(self.dice().mean(axis=0).argmax())


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)


def dice_mean(overlap: Overlap) -> float:
    """Mean over the images of their Dice: variant c, BenchX's."""
    return float(overlap.dice()[:, 0].mean())


def iou_mean(overlap: Overlap) -> float:
    """Mean over the images of their IoU."""
    return float(overlap.iou()[:, 0].mean())


def dice_of_positives(overlap: Overlap) -> float:
    """Mean Dice over the images whose true mask is not empty; NaN without one."""
    return _mean(overlap.dice()[overlap.truth > 0, 0])


def iou_of_positives(overlap: Overlap) -> float:
    """Mean IoU over the images whose true mask is not empty; NaN without one."""
    return _mean(overlap.iou()[overlap.truth > 0, 0])


def dice_pooled(overlap: Overlap) -> float:
    """Dice of all images' pixels together: variant a, torchmetrics' of the foreground alone."""
    return float(_ratio(2 * overlap.common.sum(axis=0), overlap.predicted.sum(axis=0) + overlap.truth.sum())[0])


def dice_of_batches(overlap: Overlap) -> float:
    """Mean over batches, in order, of the mean Dice of their images: variant b, MGCA's."""
    dice = overlap.dice()[:, 0]
    batches = [dice[start : start + BATCH_OF_VARIANT_B] for start in range(0, len(dice), BATCH_OF_VARIANT_B)]
    return float(np.mean([batch.mean() for batch in batches]))


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


METRICS: Mapping[str, Callable[[Overlap], float]] = {
    "Dice": dice_mean,
    "IoU": iou_mean,
    "Dice of positives": dice_of_positives,
    "IoU of positives": iou_of_positives,
    "Dice of pooled pixels": dice_pooled,
    "Dice, mean of batches": dice_of_batches,
}


# --- targets


def mask_of(image: EvalImage, width_px: int, height_px: int) -> Mask:
    """Draw what an image's run lengths and boxes cover, as booleans (height_px, width_px) of the original image."""
    runs = mask_of_runs(image.runs, width_px, height_px)
    return runs | mask_of_boxes([one.box for one in image.boxes], width_px, height_px)


def mask_on_canvas(mask: Mask, view: View) -> Mask:
    """Move a mask of the original image onto the canvas as the picture goes there, (canvas_px, canvas_px)."""
    return np.asarray(view.draw(mask.astype(np.uint8) * 255) >= HALF)


def shown_on_canvas(view: View) -> Mask:
    """Tell which pixels of the canvas show picture, not padding."""
    left, top, right, bottom = (round(edge) for edge in view.content)
    shown = np.zeros((view.canvas_px, view.canvas_px), dtype=np.bool_)
    shown[top:bottom, left:right] = True
    return shown


# --- the decoder's training


@dataclass(frozen=True, eq=False)
class MaskedFeatures:
    """Images as the frozen encoder sees them, arrays in memory or on disk; `rows` (N,) of them, all by default.

    patches (M, P, width), latents (M, L, dim), mask and shown (M, px, px) bool.
    """

    patches: npt.NDArray[np.floating]
    latents: npt.NDArray[np.floating]
    mask: BoolArray
    shown: BoolArray
    rows: npt.NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.patches) if self.rows is None else len(self.rows)

    def part(self, rows: npt.NDArray[np.intp]) -> "MaskedFeatures":
        """Return some of the images, without reading them."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def batches(self, order: npt.NDArray[np.intp], size: int) -> Iterator["Masked"]:
        """Read images in batches, in an order of 0..N."""
        places = order if self.rows is None else self.rows[order]
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            columns = (self.patches, self.latents, self.mask, self.shown)
            yield Masked(*(torch.from_numpy(np.array(column[chosen])) for column in columns))


@dataclass(frozen=True, eq=False)
class Masked:
    """A batch of MaskedFeatures as tensors, B images."""

    patches: Tensor
    latents: Tensor
    mask: Tensor
    shown: Tensor

    def to(self, device: torch.device | str) -> "Masked":
        """Move it to a device, features as float32."""
        patches, latents = (one.to(device, torch.float32) for one in (self.patches, self.latents))
        return Masked(patches, latents, self.mask.to(device), self.shown.to(device))


@dataclass(frozen=True)
class SegmentConfig:
    """The decoder and its training: AdamW, cross-entropy plus one minus soft Dice, both over shown pixels.

    patience: epochs without a higher mean Dice of the validation images, at their best threshold, before it stops; the
    weights of the best one are kept.
    """

    width: int = 128
    heads: int = 4
    doublings: int = 3
    lr: float = 1e-3
    weight_decay: float = 0.01
    batch: int = 16
    epochs: int = 30
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"segment.{name} is {getattr(self, name)}, must be at least 1")
        if self.lr <= 0 or self.weight_decay < 0 or min(self.patience, self.doublings) < 0:
            raise ValueError("segment.lr must be positive, weight_decay, patience and doublings at least 0")


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A trained decoder and the threshold that the validation images chose, with how it got there."""

    decoder: SegmentationDecoder
    threshold: float
    best_epoch: int
    validation_dice: tuple[float, ...]


def train_segmenter(
    train: MaskedFeatures,
    validate: MaskedFeatures,
    grid: tuple[int, int],
    config: SegmentConfig,
    device: torch.device | str = "cpu",
) -> Segmenter:
    """Train a decoder on `train`; `validate` alone decides when it stops and where the threshold lies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        decoder = SegmentationDecoder(
            train.patches.shape[-1],
            train.latents.shape[-1],
            grid,
            train.mask.shape[-1],
            width=config.width,
            heads=config.heads,
            doublings=config.doublings,
        )
    decoder.to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    best, best_epoch, threshold, scores = deepcopy(decoder.state_dict()), -1, 0.5, list[float]()
    for epoch in range(config.epochs):
        _train_epoch(decoder, optimizer, train, config, epoch)
        overlap = overlaps(decoder, validate, THRESHOLDS, config.batch, device)
        column = overlap.best_threshold()
        scores.append(dice_mean(overlap.at(column)))
        if scores[-1] > max(scores[:-1], default=-1.0):
            best, best_epoch, threshold = deepcopy(decoder.state_dict()), epoch, float(THRESHOLDS[column])
        if epoch - best_epoch > config.patience:
            break
    decoder.load_state_dict(best)
    return Segmenter(decoder.eval(), threshold, best_epoch, tuple(scores))


class SameMask(nn.Module):
    """What knows no image: the mean of the training masks, for every image alike."""

    logits: Tensor

    def __init__(self, train: MaskedFeatures, batch: int) -> None:
        super().__init__()
        covered = sum(one.mask.sum(dim=0) for one in train.batches(np.arange(len(train)), batch))
        mean = torch.as_tensor(covered, dtype=torch.float32) / max(len(train), 1)
        self.register_buffer("logits", torch.logit(mean, eps=1e-6))

    def forward(self, patches: Tensor, _latents: Tensor) -> Tensor:
        """(B, P, patch_width) -> logits (B, px, px)."""
        return self.logits.expand(len(patches), -1, -1)


def same_mask_overlap(train: MaskedFeatures, validate: MaskedFeatures, test: MaskedFeatures, batch: int) -> Overlap:
    """Return what the mean training mask predicts of test, at the threshold with the highest mean Dice on validate."""
    same = SameMask(train, batch)
    column = overlaps(same, validate, THRESHOLDS, batch).best_threshold()
    return overlaps(same, test, THRESHOLDS[[column]], batch)


def segmentation_loss(logits: Tensor, mask: Tensor, shown: Tensor) -> Tensor:
    """Binary cross-entropy over shown pixels plus 1 - soft Dice of the batch; logits, mask, shown (B, px, px)."""
    truth, weight = mask.to(logits.dtype), shown.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, weight=weight, reduction="sum")
    probability = logits.sigmoid() * weight
    common, area = (probability * truth).sum(), probability.sum() + (truth * weight).sum()
    return entropy / weight.sum().clamp(min=1) + 1 - (2 * common + 1) / (area + 1)


@torch.no_grad()
def overlaps(
    decoder: nn.Module,
    images: MaskedFeatures,
    thresholds: npt.ArrayLike,
    batch: int,
    device: torch.device | str = "cpu",
) -> Overlap:
    """Count what a decoder predicts of images at thresholds (T,); padding is predicted by nobody."""
    decoder.eval()
    parts = []
    for read in images.batches(np.arange(len(images)), batch):
        one = read.to(device)
        probability = decoder(one.patches, one.latents).sigmoid() * one.shown
        parts.append(Overlap.of(probability.cpu().numpy(), (read.mask & read.shown).numpy(), thresholds))
    return Overlap.joined(parts)


def _train_epoch(
    decoder: nn.Module, optimizer: torch.optim.Optimizer, train: MaskedFeatures, config: SegmentConfig, epoch: int
) -> None:
    decoder.train()
    order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
    device = next(decoder.parameters()).device
    for one in (read.to(device) for read in train.batches(order, config.batch)):
        logits = decoder(one.patches, one.latents)
        optimizer.zero_grad()
        torch.autograd.backward(segmentation_loss(logits, one.mask, one.shown))
        optimizer.step()
