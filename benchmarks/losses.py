"""The gaze loss over a whole batch against its published shape: a loop over images, top-k row by row.

python benchmarks/losses.py
"""

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timing import seconds
from torch import Tensor

from cogaze.losses.gaze import soft_gaze_loss

IMAGES, SENTENCES, PATCHES, DIM = 64, 6, 37 * 37, 768
TOPK_RATIO, T2I_WEIGHT = 0.25, 0.2
REPEATS = {"published shape": 3, "vectorised": 9}


@dataclass(frozen=True)
class Inputs:
    """What both ways are given, in the order of `soft_gaze_loss`."""

    image_feat: Tensor
    transcript_feat: Tensor
    heatmap: Tensor
    sentence_image_index: Tensor
    log_logit_scale: Tensor

    @property
    def learned(self) -> list[Tensor]:
        """Tensors that get a gradient."""
        return [self.image_feat, self.transcript_feat, self.log_logit_scale]


def batch() -> Inputs:
    """Return random features and one Gaussian blob a sentence, zero on about half of the patches."""
    generator = torch.Generator().manual_seed(0)
    rows = IMAGES * SENTENCES
    grid = torch.stack(torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij"), dim=-1).reshape(-1, 2)
    centres = torch.rand(rows, 1, 2, generator=generator) * 36
    heatmap = torch.exp(-((grid - centres) ** 2).sum(-1) / (2 * 6.0**2))
    heatmap = heatmap * (heatmap > heatmap.median(-1, keepdim=True).values)
    return Inputs(
        torch.randn(IMAGES, 1 + PATCHES, DIM, generator=generator).requires_grad_(),
        torch.randn(rows, DIM, generator=generator).requires_grad_(),
        heatmap / heatmap.sum(-1, keepdim=True),
        torch.arange(IMAGES).repeat_interleave(SENTENCES),
        torch.tensor(2.659).requires_grad_(),
    )


def published_shape(inputs: Inputs) -> Tensor:
    """Loop over images as the published training does."""
    image = F.normalize(inputs.image_feat[:, 1:], dim=-1)
    text = F.normalize(inputs.transcript_feat, dim=-1)
    losses = []
    for i in range(len(image)):
        own = inputs.sentence_image_index == i
        if not own.any():
            continue
        logits = inputs.log_logit_scale.exp() * text[own] @ image[i].T
        target = inputs.heatmap[own]
        to_image, to_text = one_direction(logits, target), one_direction(logits.T, target.T)
        losses.append(T2I_WEIGHT * to_image + (1 - T2I_WEIGHT) * to_text)
    return torch.stack(losses).mean()


def one_direction(logits: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean divergence over the rows of one image that have mass, their top cells found one row at a time."""
    keep = ((target > eps).sum(-1).float() * TOPK_RATIO).long().clamp(min=1)
    mask = torch.zeros_like(target)
    for row in range(len(target)):
        mask[row].scatter_(0, target[row].topk(int(keep[row])).indices, 1.0)
    kept = target * mask
    has_mass = kept.sum(-1) > eps
    p = kept[has_mass] / (kept[has_mass].sum(-1, keepdim=True) + eps)
    q = logits[has_mass].softmax(-1)
    log_mean = ((p + q) / 2 + eps).log()
    return (p * ((p + eps).log() - log_mean) + q * ((q + eps).log() - log_mean)).sum(-1).mean() / 2


def vectorised(inputs: Inputs) -> Tensor:
    """Return the project's loss."""
    return soft_gaze_loss(
        inputs.image_feat,
        inputs.transcript_feat,
        inputs.heatmap,
        inputs.sentence_image_index,
        inputs.log_logit_scale,
        topk_ratio=TOPK_RATIO,
        t2i_weight=T2I_WEIGHT,
    )


def main() -> None:
    """Time forward and backward of both in one run and print their ratio."""
    inputs = batch()
    ways = {"published shape": published_shape, "vectorised": vectorised}
    losses = {name: way(inputs) for name, way in ways.items()}
    gradients = {name: torch.autograd.grad(loss, inputs.learned) for name, loss in losses.items()}
    difference = max(
        float((own - published).norm() / published.norm())
        for own, published in zip(gradients["vectorised"], gradients["published shape"], strict=True)
    )
    taken = {
        name: seconds(lambda way=way: torch.autograd.grad(way(inputs), inputs.learned), REPEATS[name])
        for name, way in ways.items()
    }
    print(f"gaze loss, {IMAGES} images x {SENTENCES} sentences x {PATCHES} patches, dim {DIM}, {os.cpu_count()} cores")
    print(f"losses {[round(loss.item(), 6) for loss in losses.values()]}, gradients differ by {difference:.1e}")
    for name, taken_s in taken.items():
        print(f"{name:16} {taken_s * 1e3:9.1f} ms forward + backward   {taken['published shape'] / taken_s:6.1f} x")


if __name__ == "__main__":
    main()
