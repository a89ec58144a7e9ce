"""Binary cross-entropy over findings, rare ones weighted up by their effective number of samples."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cogaze.losses.sums import LossSum


def class_balanced_weights(positives_per_class: Tensor | Sequence[int], beta: float = 0.9999) -> Tensor:
    """(1 - β) / (1 - βⁿ) of each class's positives n, scaled to sum to the number of classes: (classes,) float32.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019. A class without positives, whose
    weight would be infinite, gets 0: by the scaling the mean over all classes is then that over the others. Raises
    ValueError where no class has positives, or on a beta outside [0, 1).
    """
    positives = torch.as_tensor(positives_per_class).double()
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; it must be at least 0 and below 1")
    if not (positives >= 0).all():
        raise ValueError(f"positives_per_class is {positives.tolist()}; a number of cases is 0 or more")
    if not positives.any():
        raise ValueError(
            f"none of the {len(positives)} classes has a positive case to weight by: labels are absent or all "
            "negative; give others, or set the weight of the disease losses to 0"
        )
    weights = torch.where(positives > 0, (1 - beta) / (1 - beta**positives), 0.0)
    return (weights * len(weights) / weights.sum()).float()


def class_balanced_bce(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of `class_balanced_bce_sum` over all labels; it is not divided by their weights."""
    loss = class_balanced_bce_sum(logits, labels, weights)
    return loss.total / loss.count.clamp(min=1)


def class_balanced_bce_sum(logits: Tensor, labels: Tensor, weights: Tensor, cell_mask: Tensor | None = None) -> LossSum:
    """Sum of weighted binary cross-entropies over the labels that are known. float32 throughout.

    logits, labels: (images, classes). weights: (classes,). cell_mask: (images, classes) bool, False is unknown
    whatever finite number its label holds.
    """
    known = torch.ones_like(logits, dtype=torch.bool) if cell_mask is None else cell_mask
    with torch.autocast(logits.device.type, enabled=False):
        each = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), weights.float(), reduction="none")
    return LossSum((each * known).sum(), known.sum().float())
