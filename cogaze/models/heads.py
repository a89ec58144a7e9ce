"""The small trained parts on top of the towers: projectors and disease heads."""

import torch
from torch import nn


def projector(in_width: int, hidden_width: int, out_width: int) -> nn.Sequential:
    """Linear-GELU-Linear, from a tower's width to the width that images and text share."""
    return nn.Sequential(nn.Linear(in_width, hidden_width), nn.GELU(), nn.Linear(hidden_width, out_width))


def masked_mean(tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the tokens that `mask` keeps; 0 where it keeps none.

    Args:
        tokens: (B, L, D).
        mask: (B, L) bool, True for a token to count; all count without it.
    """
    if mask is None:
        return tokens.mean(dim=1)
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class DiseaseHead(nn.Module):
    """One logit a disease from the mean of latents or tokens."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, labels)."""
        logits: torch.Tensor = self.classifier(pooled)
        return logits
