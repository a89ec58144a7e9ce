"""Gaze teaches which patches a sentence speaks of, and which sentence a patch belongs to (CoGaze's soft gaze guidance).

All images of a batch at once: sentences are padded to (images, slots), so that every row is one row of one softmax.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cogaze.losses.sums import LossSum

EPS = 1e-8  # inside the logarithms; a cell or row of the heatmap counts if it has more than this
SHORTEST = 1e-12  # a feature vector is not divided by less than this length


def soft_gaze_loss(
    image_feat: Tensor,
    transcript_feat: Tensor,
    heatmap: Tensor,
    sentence_image_index: Tensor,
    log_logit_scale: Tensor,
    *,
    topk_ratio: float | None = 0.25,
    t2i_weight: float = 0.2,
) -> Tensor:
    """Return the mean of `soft_gaze_loss_sum` over images with gaze, or 0 with gradients of 0 where there is none."""
    loss = soft_gaze_loss_sum(
        image_feat,
        transcript_feat,
        heatmap,
        sentence_image_index,
        log_logit_scale,
        topk_ratio=topk_ratio,
        t2i_weight=t2i_weight,
    )
    return loss.total / loss.count.clamp(min=1)


def soft_gaze_loss_sum(  # noqa: PLR0913 - the loss's own inputs and the two masks
    image_feat: Tensor,
    transcript_feat: Tensor,
    heatmap: Tensor,
    sentence_image_index: Tensor,
    log_logit_scale: Tensor,
    *,
    topk_ratio: float | None = 0.25,
    t2i_weight: float = 0.2,
    sentence_weight: Tensor | None = None,
    patch_mask: Tensor | None = None,
) -> LossSum:
    """Sum over images of t2i_weight · (text → image) + (1 - t2i_weight) · (image → text) divergence.

    Text → image: softmax over an image's patches of exp(log_logit_scale) · cosine against a sentence's heatmap,
    averaged over its sentences. Image → text: softmax over the image's sentences against the transposed heatmap,
    averaged over its patches. An image counts if it has a sentence, even one without mass. float32 throughout.

    image_feat: (images, 1 + patches, dim), CLS first. transcript_feat: (sentences, dim). heatmap: (sentences,
    patches), at least 0, of any scale. sentence_image_index: (sentences,) in any order. topk_ratio: the share of a
    row's non-zero cells that stays, None or 0 keeps all. sentence_weight: (sentences,) in the text → image mean; a
    sentence of weight 0 does not exist. patch_mask: (images, patches), False where a patch shows no image.
    Raises ValueError on a heatmap of another grid than the features'.
    """
    images, tokens, _ = image_feat.shape
    if heatmap.shape[-1] != tokens - 1:
        raise ValueError(
            f"the heatmap has {heatmap.shape[-1]} cells and the image {tokens - 1} patches; render it on the patch grid"
        )
    if sentence_weight is None:
        sentence_weight = heatmap.new_ones(len(heatmap))
    slot = _slots(sentence_image_index, images)
    width = int(slot.max()) + 1 if len(slot) else 1

    def padded(rows: Tensor) -> Tensor:
        return rows.new_zeros(images, width, *rows.shape[1:]).index_put((sentence_image_index, slot), rows)

    with torch.autocast(image_feat.device.type, enabled=False):
        weight = padded(sentence_weight.float())
        text = padded(F.normalize(transcript_feat.float(), dim=-1, eps=SHORTEST))
        logits = log_logit_scale.float().exp() * _cosine(text, image_feat.float())[..., 1:]
        sentences = (weight > 0)[..., None]
        patches = torch.ones_like(sentences) if patch_mask is None else patch_mask[:, None]
        target = padded(heatmap.float()) * (sentences & patches)
        to_image = _mean_divergence(logits, target, patches, weight, topk_ratio)
        to_text = _mean_divergence(logits.mT, target.mT, sentences.mT, torch.ones_like(target[:, 0]), topk_ratio)
        total = (t2i_weight * to_image + (1 - t2i_weight) * to_text).sum()
    return LossSum(total, (weight > 0).any(1).sum().float())


def _slots(sentence_image_index: Tensor, images: int) -> Tensor:
    """Number each image's sentences from 0, in their order: (sentences,) int64."""
    seen = F.one_hot(sentence_image_index, images).cumsum(0)
    return seen.gather(1, sentence_image_index[:, None])[:, 0] - 1


def _mean_divergence(
    logits: Tensor, target: Tensor, cells: Tensor, row_weight: Tensor, topk_ratio: float | None
) -> Tensor:
    """Jensen–Shannon divergence of softmax and target, averaged over each image's rows with mass: (images,).

    logits, target: (images, rows, cells). cells: bool, False leaves the softmax. row_weight: (images, rows).
    """
    kept = _strongest(target, topk_ratio)
    mass = kept.sum(-1, keepdim=True)
    p = kept / (mass + EPS)
    # Not -inf: a row without any cell must stay finite, its gradient too.
    q = logits.masked_fill(~cells, torch.finfo(logits.dtype).min).softmax(-1)
    log_mean = ((p + q) / 2 + EPS).log()
    divergence = (p * ((p + EPS).log() - log_mean) + q * ((q + EPS).log() - log_mean)).sum(-1) / 2
    weight = row_weight * (mass[..., 0] > EPS)
    summed = weight.sum(-1)
    return (divergence * weight).sum(-1) / summed.where(summed > 0, 1.0)


def _strongest(target: Tensor, topk_ratio: float | None) -> Tensor:
    """Zero all but each row's max(1, ⌊ratio · non-zero⌋) largest cells; of equal cells torch.topk chooses."""
    nonzero = target > EPS
    if not topk_ratio:
        return target * nonzero
    keep = _top_count(nonzero.sum(-1, keepdim=True), topk_ratio)
    most = min(int(_top_count(torch.tensor(target.shape[-1]), topk_ratio)), target.shape[-1])
    values, places = target.topk(most, dim=-1)
    values = values * (torch.arange(most, device=target.device) < keep)
    return torch.zeros_like(target).scatter(-1, places, values)


def _top_count(nonzero: Tensor, topk_ratio: float) -> Tensor:
    """max(1, ⌊ratio · non-zero⌋), the product rounded in float32 as published."""
    return (nonzero.float() * topk_ratio).long().clamp(min=1)


def _cosine(text: Tensor, image: Tensor) -> Tensor:
    """Cosine (images, slots, tokens) of unit text (images, slots, dim) and image (images, tokens, dim)."""
    cosine: Tensor = _Cosine.apply(text, image)
    return cosine


class _Cosine(torch.autograd.Function):
    """Cosine that never writes a normalised copy of the image features, and their gradient only once."""

    @staticmethod
    def forward(ctx: Any, text: Tensor, image: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(image, dim=-1).clamp(min=SHORTEST)
        cosine = text @ image.mT / length[:, None]
        ctx.save_for_backward(text, image, length, cosine)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        text, image, length, cosine = ctx.saved_tensors
        grad = grad / length[:, None]
        along_image = (grad * cosine).sum(1) / length
        return grad @ image, (grad.mT @ text).addcmul_(image, along_image[..., None], value=-1)
