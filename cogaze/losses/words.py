"""The loss of a language model: how unlikely each of the words was that it should have written."""

import torch.nn.functional as F
from torch import Tensor

from cogaze.losses.sums import LossSum

IGNORED = -100


def token_nll_sum(logits: Tensor, labels: Tensor) -> LossSum:
    """Sum the negative log likelihood of labels (B, L) under logits (B, L, vocabulary); labels of -100 do not count."""
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return LossSum(total, (labels != IGNORED).sum().float())
