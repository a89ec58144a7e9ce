"""GradCAM of how alike an image and a text are: where the tower's last features, moved, would move the similarity."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogaze.evaluate.canvas import Canvas
from cogaze.evaluate.encoder import Encoder, Features
from cogaze.evaluate.metrics import FloatArray


def grad_cam(features: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
    """Weigh each feature by its mean gradient over the patches, add up, keep what is above 0 (..., P).

    features, gradient (..., P, D); mask (..., P), False where a patch shows no image. Selvaraju et al. 2017.
    """
    counted = mask.unsqueeze(-1).to(gradient.dtype)
    weight = (gradient * counted).sum(dim=-2, keepdim=True) / counted.sum(dim=-2, keepdim=True).clamp(min=1)
    return (features * weight).sum(dim=-1).relu() * mask


def text_saliency(encoder: Encoder, canvas: Canvas, texts: FloatArray) -> Tensor:
    """Return GradCAM (texts, P) of the similarity of one image, without its context, and texts, unit vectors (S, D).

    Of the vision tower's last patch tokens; 0 throughout where moving them along themselves only lowers it.
    """
    vectors = torch.from_numpy(texts).to(encoder.device, torch.float32)
    with torch.enable_grad(), _leaf_of(encoder.model.vision) as leaf:
        seen = encoder.see([canvas])
        similarities = [similarity(seen, vector, by_patches=encoder.method.by_patches) for vector in vectors]
        gradients = [torch.autograd.grad(one, leaf, retain_graph=True)[0][0] for one in similarities]
    tokens = leaf[0].detach()[0]
    patches = seen.patch_mask.shape[1]
    maps = [grad_cam(tokens[-patches:], gradient[-patches:], seen.patch_mask[0]) for gradient in gradients]
    return torch.stack(maps).double()


def similarity(seen: Features, text: Tensor, *, by_patches: bool) -> Tensor:
    """Return how alike one image and a text's unit vector (D,) are, as the method is retrieved by.

    The cosine of the pooled latents; by patches, the mean of the highest and of the mean cosine of a shown patch.
    """
    if not by_patches:
        return F.cosine_similarity(seen.pooled[0].float(), text, dim=0)
    cosine = F.normalize(seen.patches[0][seen.patch_mask[0]].float(), dim=-1) @ text
    return (cosine.mean() + cosine.max()) / 2


@contextmanager
def _leaf_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Cut the graph behind a module: its output becomes what gradients are taken of, found in the list given."""
    leaf: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        leaf.append(output.detach().requires_grad_())
        return leaf[-1]

    handle = module.register_forward_hook(cut)
    try:
        yield leaf
    finally:
        handle.remove()
