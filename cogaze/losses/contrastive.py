"""Multi-positive InfoNCE between images and reports: everything of the same study is a positive, over all processes."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cogaze.losses.sums import LossSum


def multi_positive_loss(image_embed: Tensor, text_embed: Tensor, study_id: Tensor, log_logit_scale: Tensor) -> Tensor:
    """Return the mean of `multi_positive_loss_sum` over this process's rows."""
    loss = multi_positive_loss_sum(image_embed, text_embed, study_id, log_logit_scale)
    return loss.total / loss.count.clamp(min=1)


def multi_positive_loss_sum(
    image_embed: Tensor,
    text_embed: Tensor,
    study_id: Tensor,
    log_logit_scale: Tensor,
    *,
    row_mask: Tensor | None = None,
    gather: bool = True,
) -> LossSum:
    """Sum over rows of ½ · (image → text + text → image) cross-entropy; targets share a row among its positives.

    This process's rows meet the columns of all processes, with gradients to all. The mean over processes of the
    gradients of processes · total / (count of all processes) is the gradient of one process with all rows.

    image_embed, text_embed: (rows, dim), normalised here. study_id: (rows,) int64, the same number for the same
    study in every process. row_mask: (rows,) bool, False is neither row nor column. gather=False keeps to this
    process's columns. Every process must have the same number of rows. float32 throughout.
    """
    keep = torch.ones_like(study_id, dtype=torch.bool) if row_mask is None else row_mask
    with torch.autocast(image_embed.device.type, enabled=False):
        image = F.normalize(image_embed.float(), dim=-1)
        text = F.normalize(text_embed.float(), dim=-1)
        ids = torch.stack([study_id, keep.long()], dim=-1)
        all_images, all_texts, all_ids = image, text, ids
        if gather and dist.is_available() and dist.is_initialized():
            all_images, all_texts = gather_rows(torch.cat([image, text], dim=-1)).tensor_split(2, dim=-1)
            all_ids = gather_rows(ids)
        columns = all_ids[:, 1].bool()
        positive = ((study_id[:, None] == all_ids[:, 0]) & columns).float()
        target = positive / positive.sum(-1, keepdim=True).clamp(min=1)
        scale = log_logit_scale.float().exp()
        each = (
            _cross_entropy(scale * image @ all_texts.T, target, columns)
            + _cross_entropy(scale * text @ all_images.T, target, columns)
        ) / 2
    return LossSum((each * keep).sum(), keep.sum().float())


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows (n, ...) of all processes, in rank order, with gradients: (processes · n, ...)."""
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def _cross_entropy(logits: Tensor, target: Tensor, columns: Tensor) -> Tensor:
    """Cross-entropy (rows,) of soft targets over the columns that exist; finite where there is none."""
    return F.cross_entropy(logits.masked_fill(~columns, torch.finfo(logits.dtype).min), target, reduction="none")


class _GatherRows(torch.autograd.Function):
    """All processes' rows forward; backward, the sum over processes of the gradients of own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        # Not all_gather_into_tensor, which some of the supported torch versions call deprecated.
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every process's loss used these rows as columns, so each holds a part of their gradient.
        summed = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.tensor_split(dist.get_world_size())[dist.get_rank()]
