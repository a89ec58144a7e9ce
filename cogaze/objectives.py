"""Which losses a training task has, with what weight: output + batch -> named sums and counts -> one scalar."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cogaze.data.collate import Batch
from cogaze.losses.contrastive import multi_positive_loss_sum
from cogaze.losses.gaze import soft_gaze_loss_sum
from cogaze.losses.labels import class_balanced_bce_sum
from cogaze.losses.sums import LossSum
from cogaze.models.cogaze import CoGazeOutput

ALIGN = "align"


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of CoGaze's losses and their parameters; the defaults are the published ones.

    class_beta: of the class-balanced weights. Weight 0 leaves a loss out of the total.
    """

    align: float = 1.0
    gaze: float = 1.0
    image_disease: float = 0.5
    report_disease: float = 0.5
    topk_ratio: float = 0.25
    t2i_weight: float = 0.2
    class_beta: float = 0.9999

    def __post_init__(self) -> None:
        for name, weight in self.weights().items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"objective.{name} is {weight}, must be at least 0, which leaves the loss out")
        for name in ("topk_ratio", "t2i_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, must be a share from 0 to 1")
        if not 0 <= self.class_beta < 1:
            raise ValueError(f"objective.class_beta is {self.class_beta}, must be at least 0 and below 1")

    def weights(self) -> dict[str, float]:
        """Return the weight of each named loss."""
        return {name: getattr(self, name) for name in (ALIGN, "gaze", "image_disease", "report_disease")}


def align_loss(image_embed: Tensor, report_embed: Tensor, scale: Tensor, batch: Batch, *, gather: bool) -> LossSum:
    """Sum the image-report contrastive loss over valid samples that have a report (CoGaze's global alignment)."""
    rows = batch.valid & batch.has_report
    return multi_positive_loss_sum(image_embed, report_embed, batch.study_id, scale, row_mask=rows, gather=gather)


def cogaze_losses(
    output: CoGazeOutput, batch: Batch, class_weights: Tensor, config: ObjectiveConfig
) -> dict[str, LossSum]:
    """Sum CoGaze's losses other than the contrastive one over a batch of this process."""
    cells = batch.label_mask & batch.valid[:, None]
    reports = cells & batch.has_report[:, None]
    return {
        "gaze": soft_gaze_loss_sum(
            output.patch_features,
            output.sentence_embed,
            batch.heatmap,
            batch.sentence_image,
            output.logit_scale_gaze,
            topk_ratio=config.topk_ratio,
            t2i_weight=config.t2i_weight,
            sentence_weight=batch.sentence_weight,
            patch_mask=batch.patch_mask,
        ),
        "image_disease": class_balanced_bce_sum(output.vision_logits, batch.labels, class_weights, cells),
        "report_disease": class_balanced_bce_sum(output.report_logits, batch.labels, class_weights, reports),
    }


def weighted_total(
    sums: Mapping[str, LossSum], counts: Mapping[str, Tensor], config: ObjectiveConfig, world: int
) -> Tensor:
    """Return the scalar to go back from: world · sum / count over all processes and micro-batches, weighted.

    With it the mean of gradients over processes, summed over micro-batches, is that of one process with the whole
    batch. No loss is ever left out of the graph, so every parameter has a gradient in every process.
    """
    weights = config.weights()
    parts = [weights[name] * world * loss.total / counts[name].clamp(min=1) for name, loss in sums.items()]
    return torch.stack(parts).sum()


def with_total(losses: dict[str, float], config: ObjectiveConfig) -> dict[str, float]:
    """Add the weighted sum of mean losses, by the name loss."""
    weights = config.weights()
    return {**losses, "loss": sum(weights[name] * value for name, value in losses.items())}


def expected_counts(batch: Batch) -> dict[str, Tensor]:
    """Count what each loss will be summed over, before any model sees the batch."""
    cells = batch.label_mask & batch.valid[:, None]
    weight = batch.sentence_weight
    spoken_of = torch.zeros(len(batch), device=weight.device).index_add_(0, batch.sentence_image, weight)
    return {
        ALIGN: (batch.valid & batch.has_report).sum().float(),
        "gaze": (spoken_of > 0).sum().float(),
        "image_disease": cells.sum().float(),
        "report_disease": (cells & batch.has_report[:, None]).sum().float(),
    }
