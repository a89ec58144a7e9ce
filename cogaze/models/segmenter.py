"""Patches and visual latents -> a mask of the canvas."""

import torch
import torch.nn.functional as F
from torch import nn


class Upsampling(nn.Module):
    """Doubles a feature map: bilinear, then a 3 x 3 convolution, normalised by groups and so alike in any batch."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_width, out_width, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(1, out_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, rows, cols) -> (B, D', 2 rows, 2 cols)."""
        doubled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        out: torch.Tensor = F.gelu(self.norm(self.convolution(doubled)))
        return out


class SegmentationDecoder(nn.Module):
    """Patches ask the visual latents, then convolutions double their grid a few times; one logit a pixel.

    Args:
        patch_width: Of a patch's features.
        latent_width: Of a latent.
        grid: Patches (rows, cols) of the canvas.
        mask_px: Edge of the mask, and of the canvas.
        width: Of the decoder; halved by each doubling.
        heads: Of the attention to the latents.
        doublings: Of the grid; bilinear interpolation does the rest of the way to the mask's size.
    """

    def __init__(
        self,
        patch_width: int,
        latent_width: int,
        grid: tuple[int, int],
        mask_px: int,
        *,
        width: int = 128,
        heads: int = 4,
        doublings: int = 3,
    ) -> None:
        super().__init__()
        if width % (heads * 2**doublings):
            raise ValueError(
                f"width {width} cannot be shared by {heads} heads and halved {doublings} times: set it to a multiple "
                f"of {heads * 2**doublings}"
            )
        self.grid, self.mask_px = grid, mask_px
        self.patch_projector = nn.Sequential(nn.LayerNorm(patch_width), nn.Linear(patch_width, width))
        self.latent_projector = nn.Sequential(nn.LayerNorm(latent_width), nn.Linear(latent_width, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        widths = [width // 2**step for step in range(doublings + 1)]
        self.upsampling = nn.Sequential(*map(Upsampling, widths[:-1], widths[1:]))
        self.classifier = nn.Conv2d(widths[-1], 1, kernel_size=1)

    def forward(self, patches: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """(B, P, patch_width) patches by row, (B, L, latent_width) latents, L at least 1 -> logits (B, px, px)."""
        features = self.patch_projector(patches)
        asked = self.latent_projector(latents)
        features = features + self.attention(self.norm(features), asked, asked, need_weights=False)[0]
        rows, cols = self.grid
        logits = self.classifier(self.upsampling(features.mT.unflatten(-1, (rows, cols))))
        size = (self.mask_px, self.mask_px)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0]
