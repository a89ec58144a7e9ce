"""What the models of both methods share: two towers, a patch grid, and loading that takes exactly their weights."""

import math
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import BertModel, PreTrainedModel
from transformers import initialization as init

from cogaze.models.text import Vocabulary, load_text_tower
from cogaze.models.vision import VisionTower, load_vision_tower


class TwoTowerModel(PreTrainedModel):
    """A vision tower in `vision`, a BERT in `text.tower`, and what a method puts on top of them.

    batch_fields: the fields of a batch that forward takes, beside pixel_values or vision_tokens.
    """

    batch_fields: ClassVar[tuple[str, ...]] = ()
    loading_cure: ClassVar[str] = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True
    vision: VisionTower
    text: nn.Module

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(rows, cols) of the patches, on which gaze is rendered."""
        return self.vision.patch_grid

    def freeze(self) -> None:
        """Mark what is trained; from_pretrained puts new parameters into the model."""
        self.vision.freeze()

    def get_input_embeddings(self) -> nn.Module:
        """Return the text tower's, which FSDP shards on their own."""
        tower: Any = self.text.tower
        embeddings: nn.Module = tower.get_input_embeddings()
        return embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set every parameter that is not a tower's; those initialise themselves."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):  # by fan-in: narrow models learn as well as wide ones
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load as transformers does, but refuse a checkpoint that lacks a weight or has one too many.

        Raises:
            ValueError: The weights are not exactly this model's.
        """
        wants_report = kwargs.pop("output_loading_info", False)
        strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported, and refused below
        loaded: Any = super().from_pretrained(*args, **{**kwargs, **strict})
        model, report = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if report.get(problem):
                raise ValueError(
                    f"{args[0] if args else 'the checkpoint'}: {problem.replace('_', ' ')}"
                    f" {sorted(map(str, report[problem]))[:3]} ({len(report[problem])} in all); these are not the"
                    f" weights of {cls.loading_cure}"
                )
        model.freeze()
        return loaded if wants_report else model


def own_image_size(image_size: int | None, vision_config: Any) -> int:
    """Return the size in px that was set, else the vision tower's own; raises ValueError where it has none."""
    size: int | None = getattr(vision_config, "image_size", None) if image_size is None else image_size
    if size is None:
        raise ValueError("this vision tower takes images of any size: set image_size, in px")
    return size


class Towers:
    """Two pretrained towers, and copies of their configs as the fields of a model's.

    Raises ValueError where a tower lacks weights.
    """

    def __init__(self, vision: str, text: str, text_layers: int | None, vocabulary: Vocabulary | None) -> None:
        self.vision: PreTrainedModel = load_vision_tower(vision)
        self.text: BertModel = load_text_tower(text, text_layers, vocabulary)

    def configs(self) -> dict[str, Any]:
        """Return vision_config and text_config.

        Copies: a config that becomes part of another forgets its attention implementation, and BERT then sees padding.
        """
        return {"vision_config": self.vision.config.to_dict(), "text_config": self.text.config.to_dict()}


def check_sizes(sizes: dict[str, Any], known: frozenset[str], config: str) -> None:
    """Raise ValueError where a size names no field of a config."""
    unknown = sorted(set(sizes) - known)
    if unknown:
        raise ValueError(f"{config} has no {unknown}: choose from {sorted(known)}")
