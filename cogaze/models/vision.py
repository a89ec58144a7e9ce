"""The image side: a pretrained tower's patch tokens, the view they show, and a projector."""

import inspect
from itertools import chain
from typing import Self

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from cogaze.models.heads import projector


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
    """(rows, cols) of the patch tokens that the tower makes of a square image.

    The sizes say how many there should be; a pass over shapes alone (no arithmetic) says how many there are.

    Raises:
        ValueError: The image is not whole patches, or the tower's tokens are not CLS, registers and that many patches.
    """
    config = tower.config
    if not isinstance(getattr(config, "patch_size", None), int):
        raise ValueError(f"a {config.model_type} tower has no patch size, so no patch tokens: use Dinov2 or ViT")
    patch_px = config.patch_size * 2 ** (len(getattr(config, "depths", [0])) - 1)  # Swin halves the grid each stage
    if image_size < patch_px or image_size % patch_px:
        fitting = max(image_size // patch_px, 1) * patch_px
        raise ValueError(
            f"image_size {image_size} is not a multiple of the {patch_px} px that a patch of this"
            f" {config.model_type} tower covers: set it to {fitting}"
        )
    side = image_size // patch_px
    extra = token_shape(tower, image_size)[1] - side * side
    if extra not in (0, 1, 1 + getattr(config, "num_register_tokens", 0)):
        raise ValueError(
            f"the {config.model_type} tower makes {extra + side * side} tokens of an image of {image_size} px, not CLS"
            f" and {side} x {side} patches: use a tower whose last hidden state is its patch grid"
        )
    return side, side


def token_shape(tower: PreTrainedModel, image_size: int) -> torch.Size:
    """The shape of the tower's output for one image, found without computing it."""
    state = {name: tensor.to("meta") for name, tensor in chain(tower.named_parameters(), tower.named_buffers())}
    image = torch.empty(1, tower.config.num_channels, image_size, image_size, device="meta")
    outputs = torch.func.functional_call(tower, state, (image,), position_option(tower))
    shape: torch.Size = outputs.last_hidden_state.shape
    if len(shape) != 3:
        raise ValueError(
            f"a {tower.config.model_type} tower returns a feature map of shape {tuple(shape)}, not patch tokens:"
            " use Dinov2 or ViT"
        )
    return shape


def position_option(tower: PreTrainedModel) -> dict[str, bool]:
    """What makes the tower fit its position embeddings to the image; Dinov2 does it unasked."""
    name = "interpolate_pos_encoding"
    return {name: True} if name in inspect.signature(tower.forward).parameters else {}


class VisionTower(nn.Module):
    """A pretrained tower, frozen but for its last `tuned_blocks` blocks and the norm after them."""

    def __init__(self, tower: PreTrainedModel, image_size: int, tuned_blocks: int = 0) -> None:
        super().__init__()
        if getattr(tower, "pooler", None) is not None:
            tower.pooler = None  # type: ignore[assignment] # its output is not used
        self.tower = tower
        self.image_size = image_size
        self.patch_grid = patch_grid(tower, image_size)
        self.position_option = position_option(tower)
        self.tuned = last_blocks(tower, tuned_blocks)
        self.freeze()
        self.train(self.training)

    def freeze(self) -> None:
        """Mark what is trained; to be repeated after from_pretrained, which puts new parameters into the tower."""
        self.tower.requires_grad_(False)
        for module in self.tuned:
            module.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Keep the frozen part in evaluation mode: no dropout, no stochastic depth."""
        super().train(mode)
        self.tower.eval()
        for module in self.tuned:
            module.train(mode)
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 1 + P, width): CLS, or the mean patch of a tower without CLS, then the patches by row."""
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {tuple(pixel_values.shape[-2:])} px, but the model was built for {self.image_size} px:"
                " set the data's image size to the model's"
            )
        tokens = self.tower(pixel_values, **self.position_option).last_hidden_state
        count = self.patch_grid[0] * self.patch_grid[1]
        patches = tokens[:, -count:]
        first = tokens[:, :1] if tokens.shape[1] > count else patches.mean(dim=1, keepdim=True)
        return torch.cat((first, patches), dim=1)


def last_blocks(tower: PreTrainedModel, count: int) -> list[nn.Module]:
    """The last `count` blocks of the tower and the norms after them; nothing for 0."""
    if count == 0:
        return []
    depth = tower.config.num_hidden_layers
    blocks = next((m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if blocks is None or not 0 < count <= depth:
        raise ValueError(
            f"tuned_blocks {count} of a {tower.config.model_type} tower with {depth} blocks: set it to 0..{depth}"
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
