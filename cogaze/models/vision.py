"""The image side: a pretrained tower's patch tokens, the view they show, and a projector."""

import inspect
from itertools import chain
from typing import Self

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from cogaze.models.heads import projector

BIG_PX = 1024


def load_vision_tower(name_or_path: str) -> PreTrainedModel:
    """Read any transformers vision model, in float32; a weight that the folder lacks is an error."""
    try:
        tower, report = AutoModel.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise ValueError(
            f"no vision tower at {name_or_path}: name a folder with a vision model, or one on the hub"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{name_or_path} has no weights for {missing[:3]} ({len(missing)} in all) of {type(tower).__name__}:"
            " name a folder that holds the whole vision model"
        )
    return tower


def patch_grid(tower: PreTrainedModel, image_size: int) -> tuple[int, int]:
    """(rows, cols) of the patches, or of the feature map's cells, that the tower makes of a square image.

    The sizes say how many there should be; a pass over shapes alone (no arithmetic) says how many there are.

    Raises:
        ValueError: The image is not whole patches, or the tower's tokens are not CLS, registers and that many patches.
    """
    config = tower.config
    patch_px = _patch_px(tower)
    if image_size < patch_px or image_size % patch_px:
        fitting = max(image_size // patch_px, 1) * patch_px
        raise ValueError(
            f"image_size {image_size} is not a multiple of the {patch_px} px that a patch of this"
            f" {config.model_type} tower covers: set it to {fitting}"
        )
    side = image_size // patch_px
    shape = output_shape(tower, image_size)
    tokens = shape[1] if len(shape) == 3 else shape[2] * shape[3]
    if tokens - side * side not in (0, 1, 1 + getattr(config, "num_register_tokens", 0)):
        raise ValueError(
            f"the {config.model_type} tower makes {tokens} tokens of an image of {image_size} px, not CLS"
            f" and {side} x {side} patches: use a tower whose last hidden state is its patch grid"
        )
    return side, side


def _patch_px(tower: PreTrainedModel) -> int:
    """How many px of the image a patch covers, across; a feature map of a big image shows what no config says."""
    config = tower.config
    stated = getattr(config, "patch_size", None)
    if isinstance(stated, list | tuple) and len(set(stated)) == 1:
        stated = stated[0]
    if isinstance(stated, int):
        stages = len(getattr(config, "depths", [0]))  # of Swin and ConvNeXt, where each one halves the grid
        return stated * int(2 ** (stages - 1))
    shape = output_shape(tower, BIG_PX)
    if len(shape) != 4:
        raise ValueError(
            f"a {config.model_type} tower has neither square patches nor a feature map: use Dinov2, ViT or ResNet"
        )
    return round(BIG_PX / shape[2])


def output_shape(tower: PreTrainedModel, image_size: int) -> torch.Size:
    """The shape of the tower's output for one image, found without computing it: tokens, or a feature map."""
    state = {name: tensor.to("meta") for name, tensor in chain(tower.named_parameters(), tower.named_buffers())}
    image = torch.empty(1, tower.config.num_channels, image_size, image_size, device="meta")
    outputs = torch.func.functional_call(tower, state, (image,), position_option(tower))
    shape: torch.Size = outputs.last_hidden_state.shape
    return shape


def position_option(tower: PreTrainedModel) -> dict[str, bool]:
    """What makes the tower fit its position embeddings to the image; Dinov2 does it unasked."""
    name = "interpolate_pos_encoding"
    return {name: True} if name in inspect.signature(tower.forward).parameters else {}


class VisionTower(nn.Module):
    """A pretrained tower, frozen but for its last `tuned_blocks` blocks and the norm after them; -1 tunes all of it.

    Batch norm always works with its stored statistics: with those of a batch, two processes would not be one.
    """

    def __init__(self, tower: PreTrainedModel, image_size: int, tuned_blocks: int = 0) -> None:
        super().__init__()
        pooler = getattr(tower, "pooler", None)
        if pooler is not None and any(True for _ in pooler.parameters()):
            tower.pooler = None  # type: ignore[assignment] # its output is not used
        self.tower = tower
        self.image_size = image_size
        self.patch_grid = patch_grid(tower, image_size)
        shape = output_shape(tower, image_size)
        self.width = shape[2] if len(shape) == 3 else shape[1]
        self.position_option = position_option(tower)
        self.tuned = last_blocks(tower, tuned_blocks)
        self.freeze()
        self.train(self.training)

    def freeze(self) -> None:
        """Mark what is trained; to be repeated after from_pretrained, which puts new parameters into the tower."""
        self.tower.requires_grad_(False)
        for module in self.tuned:
            module.requires_grad_(True)
        for name, parameter in self.tower.named_parameters():
            if name.endswith("mask_token"):  # of masked pretraining: no image has a gradient for it
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Keep the frozen part in evaluation mode: no dropout, no stochastic depth."""
        super().train(mode)
        self.tower.eval()
        for module in self.tuned:
            module.train(mode)
        for module in self.tower.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 1 + P, width): CLS, or the mean patch of a tower without CLS, then the patches by row."""
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {tuple(pixel_values.shape[-2:])} px, but the model was built for {self.image_size} px:"
                " set the data's image size to the model's"
            )
        tokens = self.tower(pixel_values, **self.position_option).last_hidden_state
        if tokens.ndim == 4:  # a feature map (B, width, rows, cols)
            tokens = tokens.flatten(2).mT
        count = self.patch_grid[0] * self.patch_grid[1]
        patches = tokens[:, -count:]
        first = tokens[:, :1] if tokens.shape[1] > count else patches.mean(dim=1, keepdim=True)
        return torch.cat((first, patches), dim=1)


def last_blocks(tower: PreTrainedModel, count: int) -> list[nn.Module]:
    """The last `count` blocks (stages of a ResNet) and the norms after them; nothing for 0, the whole tower for -1."""
    if count == 0:
        return []
    if count == -1:
        return [tower]
    depth = getattr(tower.config, "num_hidden_layers", None) or len(tower.config.depths)
    blocks = next((m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if blocks is None or not 0 < count <= depth:
        raise ValueError(
            f"tuned_blocks {count} of a {tower.config.model_type} tower with {depth} blocks: set it to 0..{depth}, or"
            " to -1 for the whole tower"
        )
    return [*blocks[-count:], *(child for child in tower.children() if isinstance(child, nn.LayerNorm))]


class RMSNorm(nn.Module):
    """x / (||x|| / sqrt(d) + 1e-8) * weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d)."""
        scale = tokens.norm(dim=-1, keepdim=True) * tokens.shape[-1] ** -0.5
        return tokens / (scale + 1e-8) * self.weight


class ImageProjector(nn.Module):
    """Adds the view's embedding to each token, normalises, projects."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, views: int) -> None:
        super().__init__()
        self.view_embedding = nn.Embedding(views, in_width)
        self.norm = RMSNorm(in_width)
        self.projector = projector(in_width, hidden_width, out_width)

    def forward(self, tokens: torch.Tensor, view_position: torch.Tensor) -> torch.Tensor:
        """(B, 1 + P, width) tokens and (B,) view numbers -> (B, 1 + P, D)."""
        seen = tokens + self.view_embedding(view_position).unsqueeze(1)
        features: torch.Tensor = self.projector(self.norm(seen))
        return features
