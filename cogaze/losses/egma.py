"""EGMA's losses: sentences against patches, over the batch, against gaze, and mapped onto each other within an image.

Sentences stand image after image, as many as `sentences_per_image` says, and are padded to (images, slots) here.
Embeddings are unit vectors; float32 throughout.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cogaze.losses.contrastive import gather_rows
from cogaze.losses.sums import LossSum

FAR = 1e12  # what the multi-label loss takes from a logit that does not belong to a side
FLOOR = 0.01  # added to every cell of a mapping's weights


@dataclass(frozen=True, eq=False)
class EgmaContrastive:
    """Scalar loss; similarities of images and texts (images, texts) times the scale, by patches and by sentences."""

    loss: Tensor
    patch_similarity: Tensor
    sentence_similarity: Tensor


@dataclass(frozen=True, eq=False)
class _Texts:
    """Sentences by text: embed (texts, slots, dim), 0 where `exists` (texts, slots) is False."""

    embed: Tensor
    exists: Tensor


def batch_contrastive(
    patch_embed: Tensor,
    sentence_embed: Tensor,
    sentences_per_image: Tensor,
    log_logit_scale: Tensor,
    *,
    pad_with_zeros: bool = False,
) -> EgmaContrastive:
    """Tell which text belongs to an image: EGMA's batch-level contrastive loss, of this process's batch.

    patch_embed: (images, patches, dim). sentence_embed: (sentences, dim). sentences_per_image: (images,); an image
    without sentences does not count. pad_with_zeros: as published, texts shorter than the longest have zero vectors
    that take part in a patch's maximum over sentences.
    """
    with torch.autocast(patch_embed.device.type, enabled=False):
        texts = _by_text(sentence_embed.float(), sentences_per_image)
        scaled = _similarities(patch_embed.float(), texts, log_logit_scale, None, pad_with_zeros=pad_with_zeros)
        loss = _rows_loss(scaled, torch.arange(len(patch_embed), device=patch_embed.device), texts)
    return EgmaContrastive(loss.total / loss.count.clamp(min=1), scaled.patch, scaled.sentence)


def batch_contrastive_sum(
    patch_embed: Tensor,
    sentence_embed: Tensor,
    sentences_per_image: Tensor,
    log_logit_scale: Tensor,
    *,
    patch_mask: Tensor | None = None,
    pad_with_zeros: bool = False,
    gather: bool = True,
) -> LossSum:
    """Sum `batch_contrastive` over this process's images that have sentences, against the texts of all processes.

    patch_mask: (images, patches), False where a patch shows no image. Every process must have as many images.
    """
    with torch.autocast(patch_embed.device.type, enabled=False):
        texts = _by_text(sentence_embed.float(), sentences_per_image)
        own = torch.arange(len(patch_embed), device=patch_embed.device)
        if gather and dist.is_available() and dist.is_initialized():
            own = own + dist.get_rank() * len(patch_embed)
            texts = _of_all_processes(texts)
        scaled = _similarities(patch_embed.float(), texts, log_logit_scale, patch_mask, pad_with_zeros=pad_with_zeros)
        return _rows_loss(scaled, own, texts)


def gaze_mlce(
    patch_embed: Tensor,
    sentence_embed: Tensor,
    sentences_per_image: Tensor,
    heatmap: Tensor,
    has_gaze: Tensor,
    log_logit_scale: Tensor,
    *,
    t2i_weight: float = 0.8,
) -> Tensor:
    """Return the mean of `gaze_mlce_sum` over images with gaze, or 0 with gradients of 0 where there is none."""
    loss = gaze_mlce_sum(
        patch_embed,
        sentence_embed,
        sentences_per_image,
        heatmap,
        has_gaze,
        log_logit_scale,
        t2i_weight=t2i_weight,
    )
    return loss.total / loss.count.clamp(min=1)


def gaze_mlce_sum(
    patch_embed: Tensor,
    sentence_embed: Tensor,
    sentences_per_image: Tensor,
    heatmap: Tensor,
    has_gaze: Tensor,
    log_logit_scale: Tensor,
    *,
    t2i_weight: float = 0.8,
    patch_mask: Tensor | None = None,
) -> LossSum:
    """Sum over images with gaze of t2i_weight · (sentence → patches) + (1 - t2i_weight) · (patch → sentences).

    EGMA's eye-gaze guided fine-grained alignment: the multi-label categorical cross-entropy of similarities against
    where the map is above 0, averaged over an image's sentences, or its patches.

    heatmap: (sentences, patches), of any scale. has_gaze: (images,). patch_mask: (images, patches).
    """
    with torch.autocast(patch_embed.device.type, enabled=False):
        texts = _by_text(sentence_embed.float(), sentences_per_image)
        patches = _all_patches(patch_embed, patch_mask)
        cells = texts.exists[..., None] & patches[:, None]
        logits = texts.embed @ patch_embed.float().mT * log_logit_scale.float().exp()
        looked = _padded(heatmap.float(), texts.exists) > 0
        to_patches = _masked_mean(_multi_label(logits, looked, cells), texts.exists)
        to_sentences = _masked_mean(_multi_label(logits.mT, looked.mT, cells.mT), patches)
        counts = has_gaze.bool() & texts.exists.any(1)
        each = t2i_weight * to_patches + (1 - t2i_weight) * to_sentences
    return LossSum((each * counts).sum(), counts.sum().float())


def cross_modal_mapping(  # noqa: PLR0913 - the published loss's parameters
    patch_embed: Tensor,
    sentence_embed: Tensor,
    sentences_per_image: Tensor,
    log_logit_scale: Tensor,
    *,
    heatmap: Tensor | None = None,
    has_gaze: Tensor | None = None,
    gaze_threshold: float = 3 / 7,
    gaze_text_weight: float = 0.3,
    threshold: float = 1 / 7,
    text_weight: float = 0.5,
) -> Tensor:
    """Return the mean of `cross_modal_mapping_sum` over images with sentences, or 0 where there is none."""
    loss = cross_modal_mapping_sum(
        patch_embed,
        sentence_embed,
        sentences_per_image,
        log_logit_scale,
        heatmap=heatmap,
        has_gaze=has_gaze,
        gaze_threshold=gaze_threshold,
        gaze_text_weight=gaze_text_weight,
        threshold=threshold,
        text_weight=text_weight,
    )
    return loss.total / loss.count.clamp(min=1)


def cross_modal_mapping_sum(  # noqa: PLR0913 - the published loss's parameters and the mask
    patch_embed: Tensor,
    sentence_embed: Tensor,
    sentences_per_image: Tensor,
    log_logit_scale: Tensor,
    *,
    heatmap: Tensor | None = None,
    has_gaze: Tensor | None = None,
    gaze_threshold: float = 3 / 7,
    gaze_text_weight: float = 0.3,
    threshold: float = 1 / 7,
    text_weight: float = 0.5,
    patch_mask: Tensor | None = None,
) -> LossSum:
    """Sum over images with sentences of text_weight · text term + (1 - text_weight) · image term (EGMA's mapping).

    Similarities become weights (`_weights`), with which patches are pooled in a sentence's place and sentences in a
    patch's; each is told from the others of its image, both ways. An image with one sentence has the squared distance
    of sentence and pooled patches for its text term and no image term. Images with gaze use the map too, with
    gaze_threshold and gaze_text_weight.

    heatmap: (sentences, patches), from 0 to 1. has_gaze: (images,); both or neither. patch_mask: (images, patches).
    Raises ValueError on one of heatmap and has_gaze without the other.
    """
    if (heatmap is None) != (has_gaze is None):
        raise ValueError("heatmap and has_gaze go together: give both, or neither for the mapping without gaze")
    with torch.autocast(patch_embed.device.type, enabled=False):
        patch, scale = patch_embed.float(), log_logit_scale.float().exp()
        texts = _by_text(sentence_embed.float(), sentences_per_image)
        patches = _all_patches(patch_embed, patch_mask)
        gaze = torch.zeros_like(sentences_per_image, dtype=torch.bool) if has_gaze is None else has_gaze.bool()
        similar = texts.embed @ patch.mT
        by_sentence = _min_max(similar, patches[:, None])
        by_patch = _min_max(similar.mT, texts.exists[:, None])
        if heatmap is not None:
            looked = _padded(heatmap.float(), texts.exists)
            by_sentence = by_sentence.where(~gaze[:, None, None], (by_sentence + looked) / 2)
            by_patch = by_patch.where(~gaze[:, None, None], by_patch + looked.mT / 2)  # not halved, as published
        least = torch.where(gaze, gaze_threshold, threshold)[:, None, None]
        pooled_patches = _weights(by_sentence, least, patches[:, None]) @ patch
        pooled_sentences = _weights(by_patch, least, texts.exists[:, None]) @ texts.embed
        single = texts.exists.sum(1) == 1
        distance = ((pooled_patches - texts.embed) * texts.exists[..., None]).square().sum((1, 2))
        text_term = distance.where(single, _told_apart(scale * pooled_patches @ texts.embed.mT, texts.exists))
        image_term = _told_apart(scale * pooled_sentences @ patch.mT, patches) * ~single
        share = torch.where(gaze, gaze_text_weight, text_weight)
        counts = texts.exists.any(1)
        each = share * text_term + (1 - share) * image_term
    return LossSum((each * counts).sum(), counts.sum().float())


# --- sentences by text


def _by_text(sentence_embed: Tensor, sentences_per_image: Tensor) -> _Texts:
    slots = max(1, int(sentences_per_image.max())) if len(sentences_per_image) else 1
    exists = torch.arange(slots, device=sentence_embed.device) < sentences_per_image[:, None]
    return _Texts(_padded(sentence_embed, exists), exists)


def _padded(rows: Tensor, exists: Tensor) -> Tensor:
    """Rows (sentences, ...) as (texts, slots, ...); those after the last text's belong to nobody."""
    places = exists.nonzero(as_tuple=True)
    return rows.new_zeros(*exists.shape, *rows.shape[1:]).index_put(places, rows[: len(places[0])])


def _of_all_processes(texts: _Texts) -> _Texts:
    """The texts of all processes, in rank order, with gradients."""
    slots = torch.tensor(texts.exists.shape[1], device=texts.exists.device)
    dist.all_reduce(slots, dist.ReduceOp.MAX)
    more = int(slots) - texts.exists.shape[1]
    exists = F.pad(texts.exists.float(), (0, more))
    return _Texts(gather_rows(F.pad(texts.embed, (0, 0, 0, more))), gather_rows(exists) > 0)


def _all_patches(patch_embed: Tensor, patch_mask: Tensor | None) -> Tensor:
    """Which patches show image (images, patches); all of them where nothing is said."""
    if patch_mask is not None:
        return patch_mask
    return torch.ones(patch_embed.shape[:2], dtype=torch.bool, device=patch_embed.device)


# --- the batch


@dataclass(frozen=True, eq=False)
class _Similarities:
    """Of images and texts (images, texts): a patch's best sentence, a sentence's best patch, averaged and scaled."""

    patch: Tensor
    sentence: Tensor


def _similarities(
    patch_embed: Tensor, texts: _Texts, log_logit_scale: Tensor, patch_mask: Tensor | None, *, pad_with_zeros: bool
) -> _Similarities:
    cosine = torch.einsum("ipd,tsd->itsp", patch_embed, texts.embed)
    patches = _all_patches(patch_embed, patch_mask)[:, None]
    lowest = torch.finfo(cosine.dtype).min
    # A text without sentences keeps its zeros, which nobody uses: the lowest number times a scale is infinite.
    padding = ~texts.exists & texts.exists.any(1, keepdim=True)
    best_sentence = cosine if pad_with_zeros else cosine.masked_fill(padding[None, :, :, None], lowest)
    best_patch = cosine.masked_fill(~patches[:, :, None], lowest)
    exists = texts.exists.expand(len(cosine), -1, -1)
    scale = log_logit_scale.float().exp()
    return _Similarities(
        _masked_mean(best_sentence.amax(2), patches.expand(-1, len(texts.exists), -1)) * scale,
        _masked_mean(best_patch.amax(3), exists) * scale,
    )


def _rows_loss(scaled: _Similarities, own: Tensor, texts: _Texts) -> LossSum:
    """Sum over images of ½ · both cross-entropies over texts; `own` (images,) is the number of an image's text."""
    spoken = texts.exists.any(1)
    each = torch.zeros(len(own), device=own.device)
    for logits in (scaled.patch, scaled.sentence):
        existing = logits.masked_fill(~spoken, torch.finfo(logits.dtype).min)
        each = each + F.cross_entropy(existing, own, reduction="none") / 2
    return LossSum((each * spoken[own]).sum(), spoken[own].sum().float())


# --- within an image


def _multi_label(logits: Tensor, positive: Tensor, cells: Tensor) -> Tensor:
    """log(1 + Σ exp(-positive)) + log(1 + Σ exp(negative)) of each row (..., rows) of logits (..., rows, cells)."""
    zero = torch.zeros_like(logits[..., :1])
    low = torch.cat([zero, (-logits).masked_fill(~(positive & cells), -FAR)], -1)
    high = torch.cat([zero, logits.masked_fill(positive | ~cells, -FAR)], -1)
    return low.logsumexp(-1) + high.logsumexp(-1)


def _min_max(similar: Tensor, cells: Tensor) -> Tensor:
    """Scale each row's cells to 0 .. 1; a row of equal cells is all 0."""
    far = torch.finfo(similar.dtype).max / 4
    low = similar.masked_fill(~cells, far).amin(-1, keepdim=True)
    high = similar.masked_fill(~cells, -far).amax(-1, keepdim=True)
    return (similar - low) / (high - low).where(high > low, 1.0)


def _weights(values: Tensor, least: Tensor, cells: Tensor) -> Tensor:
    """Weights of each row that sum to 1: values below `least` become 0, then FLOOR is added to every cell there is."""
    floored = (values.where(values >= least, 0.0) + FLOOR) * cells
    return floored / floored.sum(-1, keepdim=True).clamp(min=FLOOR)


def _told_apart(logits: Tensor, exists: Tensor) -> Tensor:
    """Mean over an image's items (images,) of ½ · cross-entropy of logits (images, items, items) both ways."""
    existing = logits.masked_fill(~exists[:, None], torch.finfo(logits.dtype).min)
    transposed = logits.mT.masked_fill(~exists[:, None], torch.finfo(logits.dtype).min)
    each = existing.log_softmax(-1).diagonal(dim1=1, dim2=2) + transposed.log_softmax(-1).diagonal(dim1=1, dim2=2)
    return _masked_mean(-each / 2, exists)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis of the values that exist; 0 where none does."""
    return values.where(mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
