"""EGMA: patches of an image and sentences of a text as unit vectors of one space."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.generic import ModelOutput

from cogaze.models.heads import masked_mean
from cogaze.models.pretrained import Towers, TwoTowerModel, check_sizes, own_image_size
from cogaze.models.text import ABSENT, Vocabulary, check_length, never_empty
from cogaze.models.vision import VisionTower


@strict
class EgmaConfig(PreTrainedConfig):
    """Sizes of an EGMA model; the defaults are the published ones, the towers those of the two sub-configs."""

    model_type = "egma"
    sub_configs_defaults = {  # noqa: RUF012 (a class attribute of transformers)
        "vision_config": SubConfigSpec(AutoConfig, model_type="swin"),
        "text_config": SubConfigSpec(AutoConfig, model_type="bert"),
    }

    vision_config: PreTrainedConfig | dict[str, Any] | None = None
    text_config: PreTrainedConfig | dict[str, Any] | None = None
    image_size: int | None = None  # px, square; None is the vision tower's own
    tuned_blocks: int = -1  # of the vision tower, from its end, -1 for all of it; the rest is frozen
    hidden_size: int = 512
    averaged_layers: int = 4  # of the text tower, from its end
    mask_padding: bool = True  # False as published: padding is averaged too
    initial_logit_scale: float = math.log(1 / 0.07)
    max_logit_scale: float = math.log(100)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.image_size = own_image_size(self.image_size, self.vision_config)
        depth = getattr(self.text_config, "num_hidden_layers", None)
        if depth is not None and not 0 < self.averaged_layers <= depth:
            raise ValueError(
                f"averaged_layers is {self.averaged_layers}, but the text tower has {depth} layers: set it to"
                f" 1..{depth}"
            )


SIZES = frozenset(EgmaConfig.__annotations__) - {"vision_config", "text_config"}


@dataclass
class PatchEmbeddings(ModelOutput):
    """patch_embed (B, P, D), unit vectors by row of the grid."""

    patch_embed: torch.Tensor = ABSENT


@dataclass
class SentenceEmbeddings(ModelOutput):
    """sentence_embed (S, D), unit vectors."""

    sentence_embed: torch.Tensor = ABSENT


@dataclass
class EgmaOutput(ModelOutput):
    """Unit vectors patch_embed (B, P, D) and sentence_embed (S, D), the log of the logit scale (a scalar)."""

    patch_embed: torch.Tensor = ABSENT
    sentence_embed: torch.Tensor = ABSENT
    logit_scale: torch.Tensor = ABSENT


class SentenceEncoder(nn.Module):
    """A BERT whose last layers are averaged, over a sentence's tokens too, and projected."""

    def __init__(self, tower: BertModel, out_width: int, layers: int, *, mask_padding: bool = True) -> None:
        super().__init__()
        self.tower = tower
        self.projection = nn.Linear(tower.config.hidden_size, out_width, bias=False)
        self.layers, self.mask_padding = layers, mask_padding

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(S, L) token numbers, (S, L) bool mask, True for a token, no row of it empty -> (S, D) unit vectors.

        Without `mask_padding` the mean includes padding, as published; the tower itself never attends to it.
        """
        check_length(self.tower, input_ids)
        states = self.tower(input_ids=input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
        tokens = torch.stack(states[-self.layers :]).mean(dim=0)
        pooled = masked_mean(tokens, mask if self.mask_padding else None)
        return F.normalize(self.projection(pooled).float(), dim=-1)


class EgmaModel(TwoTowerModel):
    """Encodes images as patches, and sentences.

    Args:
        config: Sizes.
        vision_tower: A pretrained tower of `config.vision_config`; an untrained one by default.
        text_tower: A pretrained tower of `config.text_config`, without pooler; an untrained one by default.
    """

    config_class = EgmaConfig
    config: EgmaConfig
    base_model_prefix = "egma"
    batch_fields = ("sentence_input_ids", "sentence_mask")
    loading_cure = "an EGMA model of this config"

    def __init__(
        self,
        config: EgmaConfig,
        vision_tower: PreTrainedModel | None = None,
        text_tower: BertModel | None = None,
    ) -> None:
        super().__init__(config)
        vision_tower = vision_tower or AutoModel.from_config(config.vision_config)
        text_tower = text_tower or BertModel(cast("BertConfig", config.text_config), add_pooling_layer=False)
        width = config.hidden_size
        self.vision = VisionTower(vision_tower, cast("int", config.image_size), config.tuned_blocks)
        self.projection = nn.Linear(self.vision.width, width, bias=False)
        self.text = SentenceEncoder(text_tower, width, config.averaged_layers, mask_padding=config.mask_padding)
        self.logit_scale = nn.Parameter(torch.empty(1))  # not 0-d, which FSDP cannot shard
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.initial_logit_scale)

    def encode_image(
        self, pixel_values: torch.Tensor | None, vision_tokens: torch.Tensor | None = None
    ) -> PatchEmbeddings:
        """Encode (B, 3, H, W) images; `vision_tokens` (B, 1 + P, width), CLS first, spare the tower its work."""
        tokens = self.vision(pixel_values) if vision_tokens is None else vision_tokens
        return PatchEmbeddings(F.normalize(self.projection(tokens[:, 1:]).float(), dim=-1))

    def encode_text(self, input_ids: torch.Tensor, mask: torch.Tensor) -> SentenceEmbeddings:
        """Encode (S, L) token numbers; mask (S, L) bool is True for a token, False for padding."""
        return SentenceEmbeddings(self.text(input_ids, never_empty(mask)))

    def forward(
        self,
        *,
        pixel_values: torch.Tensor | None = None,
        sentence_input_ids: torch.Tensor,
        sentence_mask: torch.Tensor,
        vision_tokens: torch.Tensor | None = None,
    ) -> EgmaOutput:
        """Encode a batch; the arguments are named as its fields, `vision_tokens` may stand for `pixel_values`."""
        return EgmaOutput(
            patch_embed=self.encode_image(pixel_values, vision_tokens).patch_embed,
            sentence_embed=self.encode_text(sentence_input_ids, sentence_mask).sentence_embed,
            logit_scale=self.logit_scale.clamp(max=self.config.max_logit_scale).sum(),
        )


def build_egma(
    vision_name_or_path: str = "microsoft/swin-tiny-patch4-window7-224",
    text_name_or_path: str = "emilyalsentzer/Bio_ClinicalBERT",
    *,
    text_layers: int | None = None,
    vocabulary: Vocabulary | None = None,
    **sizes: Any,
) -> EgmaModel:
    """An EGMA with pretrained towers and everything else new.

    Args:
        vision_name_or_path: A transformers vision model, a folder or a name on the hub.
        text_name_or_path: A BERT, likewise.
        text_layers: How many of the BERT's layers to keep, from the first; None keeps all.
        vocabulary: Of the tokenizer in use, if not the BERT's own: `Vocabulary.of(tokenizer)`.
        sizes: Other fields of EgmaConfig.

    Raises:
        ValueError: A tower lacks weights, its patches do not fit the image, or `sizes` names no field.
    """
    check_sizes(sizes, SIZES, "EgmaConfig")
    towers = Towers(vision_name_or_path, text_name_or_path, text_layers, vocabulary)
    return EgmaModel(EgmaConfig(**towers.configs(), **sizes), towers.vision, towers.text)
