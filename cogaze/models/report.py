"""Reports from images: a CoGaze encodes image and context, a decoder writes from its latents."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, GPT2Config, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.generic import ModelOutput

from cogaze.models.cogaze import CoGazeConfig, CoGazeModel
from cogaze.models.decoder import CrossAttentionDecoder
from cogaze.models.pretrained import TwoTowerModel
from cogaze.models.text import ABSENT, TextEncoder
from cogaze.models.vision import VisionTower

Frozen = Literal["tower", "encoder"]
LATENT_FIELDS = ("view_position", "patch_mask", "context_input_ids", "context_mask", "has_context")
UNREAD = ("report_head", "logit_scale", "logit_scale_gaze")  # of the encoder: nothing that is written depends on them


@strict
class ReportConfig(PreTrainedConfig):
    """The encoder's config, the decoder's, and which part of the encoder is left as it was pretrained."""

    model_type = "cogaze-report"
    sub_configs_defaults = {  # noqa: RUF012 (a class attribute of transformers)
        "encoder_config": SubConfigSpec(CoGazeConfig),
        "decoder_config": SubConfigSpec(AutoConfig, model_type="gpt2"),
    }

    encoder_config: PreTrainedConfig | dict[str, Any] | None = None
    decoder_config: PreTrainedConfig | dict[str, Any] | None = None
    frozen: Frozen = "tower"


@dataclass
class Seen(ModelOutput):
    """patches (B, 1 + P, D), CLS first; latents (B, 2 N, D), of the image and then of its context: what is read."""

    patches: torch.Tensor = ABSENT
    latents: torch.Tensor = ABSENT


@dataclass
class ReportOutput(ModelOutput):
    """logits (B, L, vocabulary): of the token after each one that the decoder was shown."""

    logits: torch.Tensor = ABSENT


class ReportModel(TwoTowerModel):
    """Writes a report of an image in the light of its context.

    Args:
        config: Both parts' configs.
        encoder: A pretrained one of `config.encoder_config`; an untrained one by default.
        decoder: A pretrained one of `config.decoder_config`; an untrained one by default.
    """

    config_class = ReportConfig
    config: ReportConfig
    base_model_prefix = "report"
    batch_fields = (*LATENT_FIELDS, "target_input_ids", "target_mask", "target_latents")
    loading_cure = "a report model of this config, made by pipelines/finetune.py"
    _no_split_modules = ["PerceiverLayer", "GPT2Block"]  # noqa: RUF012 (a class attribute of transformers)

    def __init__(
        self,
        config: ReportConfig,
        encoder: CoGazeModel | None = None,
        decoder: CrossAttentionDecoder | None = None,
    ) -> None:
        super().__init__(config)
        encoder_config = cast("CoGazeConfig", config.encoder_config)
        decoder_config = cast("GPT2Config", config.decoder_config)
        self.encoder = encoder or CoGazeModel(encoder_config)
        self.decoder = decoder or CrossAttentionDecoder(decoder_config, encoder_config.hidden_size)
        self.post_init()
        tied = self.decoder.model.all_tied_weights_keys  # transformers looks for them in children, not grandchildren
        self.all_tied_weights_keys |= {f"decoder.model.{one}": f"decoder.model.{to}" for one, to in tied.items()}
        self.freeze()

    @property
    def vision(self) -> VisionTower:  # type: ignore[override] # the encoder has it
        """The encoder's vision tower."""
        return self.encoder.vision

    @property
    def text(self) -> TextEncoder:  # type: ignore[override]
        """The encoder's text encoder."""
        return cast("TextEncoder", self.encoder.text)

    def freeze(self) -> None:
        """Leave the vision tower, or the whole encoder, as it is, and what of it no report depends on."""
        self.encoder.vision.tuned = []
        self.encoder.freeze()
        if self.config.frozen == "encoder":
            self.encoder.requires_grad_(False)
        self.encoder.vision_head.requires_grad_(False)
        for name in UNREAD:
            getattr(self.encoder, name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Keep a frozen encoder in evaluation mode."""
        super().train(mode)
        if self.config.frozen == "encoder":
            self.encoder.eval()
        return self

    def see(self, **inputs: Tensor | None) -> Seen:
        """Encode images and contexts; the inputs are CoGazeModel.look's."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.frozen != "encoder"):
            patches, found = self.encoder.look(**cast("dict[str, Tensor]", inputs))
            return Seen(patches=patches, latents=torch.cat((found.visual, found.context), dim=1))

    def forward(
        self, *, target_input_ids: Tensor, target_mask: Tensor, target_latents: Tensor, **inputs: Tensor | None
    ) -> ReportOutput:
        """Return the logits of a batch's targets (B, L) under teacher forcing; `inputs` as CoGazeModel.look's."""
        logits = self.decoder(self.see(**inputs).latents, target_input_ids, target_mask, target_latents)
        return ReportOutput(logits=logits)


def new_report_model(encoder: CoGazeModel, decoder: CrossAttentionDecoder, frozen: Frozen) -> ReportModel:
    """Put a pretrained encoder and a decoder together."""
    encoder.config.tuned_blocks = 0
    # Copies: a config that becomes part of another forgets how its model computes attention.
    own, theirs = deepcopy(encoder.config), deepcopy(decoder.model.config)
    return ReportModel(ReportConfig(encoder_config=own, decoder_config=theirs, frozen=frozen), encoder, decoder)
