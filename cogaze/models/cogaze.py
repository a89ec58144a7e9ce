"""CoGaze: an image encoder infused with clinical context, a text encoder, and disease heads on both."""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.generic import ModelOutput

from cogaze.models.heads import DiseaseHead
from cogaze.models.perceiver import Perceiver
from cogaze.models.pretrained import Towers, TwoTowerModel, check_sizes, own_image_size
from cogaze.models.text import ABSENT, TextEncoder, TextFeatures, Vocabulary, never_empty
from cogaze.models.vision import ImageProjector, VisionTower
from gazeprep.schema import CHEXPERT_LABELS

VIEWS = ("PA", "AP", "LATERAL", "UNK")


@strict
class CoGazeConfig(PreTrainedConfig):
    """Sizes of a CoGaze model; the defaults are the published ones, the towers those of the two sub-configs."""

    model_type = "cogaze"
    sub_configs_defaults = {  # noqa: RUF012 (a class attribute of transformers)
        "vision_config": SubConfigSpec(AutoConfig, model_type="dinov2"),
        "text_config": SubConfigSpec(AutoConfig, model_type="bert"),
    }

    vision_config: PreTrainedConfig | dict[str, Any] | None = None
    text_config: PreTrainedConfig | dict[str, Any] | None = None
    image_size: int | None = None  # px, square; None is the vision tower's own
    tuned_blocks: int = 0  # of the vision tower, from its end, -1 for all of it; the rest is frozen
    hidden_size: int = 768
    projector_hidden_size: int = 1536
    views: list[str] | tuple[str, ...] = VIEWS
    perceiver_depth: int = 3
    perceiver_latents: int = 128
    perceiver_heads: int = 8
    perceiver_dim_head: int = 64
    sentence_pooling: Literal["first", "mean"] = "first"  # of a sentence's tokens; "first" as published
    mask_padding: bool = True  # False as published: padding is averaged and attended to
    initial_logit_scale: float = math.log(1 / 0.07)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(CHEXPERT_LABELS))
            self.label2id = {label: number for number, label in enumerate(CHEXPERT_LABELS)}
        super().__post_init__(**kwargs)
        self.views = list(self.views)
        self.image_size = own_image_size(self.image_size, self.vision_config)


SIZES = frozenset(CoGazeConfig.__annotations__) - {"vision_config", "text_config"} | {"num_labels"}


@dataclass
class ImageFeatures(ModelOutput):
    """patch_features (B, 1 + P, D): CLS, then the patches by row."""

    patch_features: torch.Tensor = ABSENT


@dataclass
class Latents(ModelOutput):
    """visual (B, N, D), the image in the light of its context; context (B, N, D), the queries that asked for it."""

    visual: torch.Tensor = ABSENT
    context: torch.Tensor = ABSENT


@dataclass
class CoGazeOutput(ModelOutput):
    """What the objectives need of a batch of B images and S sentences.

    patch_features (B, 1 + P, D), visual_latents and context_latents (B, N, D), visual_embed and report_embed (B, D),
    sentence_embed (S, D), vision_logits and report_logits (B, labels), the logs of both logit scales (scalars).
    No embedding is normalised.
    """

    patch_features: torch.Tensor = ABSENT
    visual_latents: torch.Tensor = ABSENT
    context_latents: torch.Tensor = ABSENT
    visual_embed: torch.Tensor = ABSENT
    report_embed: torch.Tensor = ABSENT
    sentence_embed: torch.Tensor = ABSENT
    vision_logits: torch.Tensor = ABSENT
    report_logits: torch.Tensor = ABSENT
    logit_scale: torch.Tensor = ABSENT
    logit_scale_gaze: torch.Tensor = ABSENT


class CoGazeModel(TwoTowerModel):
    """Encodes images, in the light of clinical context where there is one, and texts.

    Args:
        config: Sizes.
        vision_tower: A pretrained tower of `config.vision_config`; an untrained one by default.
        text_tower: A pretrained tower of `config.text_config`, without pooler; an untrained one by default.
    """

    config_class = CoGazeConfig
    config: CoGazeConfig
    base_model_prefix = "cogaze"
    batch_fields = (
        "view_position", "patch_mask", "context_input_ids", "context_mask", "has_context",
        "report_input_ids", "report_mask", "sentence_input_ids", "sentence_mask",
    )  # fmt: skip
    loading_cure = "a CoGaze model of this config, convert published ones with cogaze.convert"
    _no_split_modules = ["PerceiverLayer"]  # noqa: RUF012 (a class attribute of transformers)

    def __init__(
        self,
        config: CoGazeConfig,
        vision_tower: PreTrainedModel | None = None,
        text_tower: BertModel | None = None,
    ) -> None:
        super().__init__(config)
        vision_tower = vision_tower or AutoModel.from_config(config.vision_config)
        text_tower = text_tower or BertModel(cast("BertConfig", config.text_config), add_pooling_layer=False)
        width, wide = config.hidden_size, config.projector_hidden_size
        self.vision = VisionTower(vision_tower, cast("int", config.image_size), config.tuned_blocks)
        self.image_projector = ImageProjector(self.vision.width, wide, width, len(config.views))
        self.text = TextEncoder(text_tower, wide, width, mask_padding=config.mask_padding)
        self.perceiver = Perceiver(width, config.perceiver_depth, config.perceiver_heads, config.perceiver_dim_head)
        self.latents = nn.Parameter(torch.empty(config.perceiver_latents, width))
        self.context_type = nn.Parameter(torch.empty(width))
        self.image_type = nn.Parameter(torch.empty(width))
        self.vision_head = DiseaseHead(width, len(config.id2label or ()))
        self.report_head = DiseaseHead(width, len(config.id2label or ()))
        self.logit_scale = nn.Parameter(torch.empty(1))  # not 0-d, which FSDP cannot shard
        self.logit_scale_gaze = nn.Parameter(torch.empty(1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set every parameter that is not a tower's; those initialise themselves."""
        super()._init_weights(module)
        if module is self:
            for latent in (self.latents, self.context_type, self.image_type):
                init.normal_(latent, std=self.config.initializer_range)
            for scale in (self.logit_scale, self.logit_scale_gaze):
                init.constant_(scale, self.config.initial_logit_scale)

    def encode_image(
        self,
        pixel_values: torch.Tensor | None,
        view_position: torch.Tensor,
        vision_tokens: torch.Tensor | None = None,
    ) -> ImageFeatures:
        """Encode (B, 3, H, W) images of (B,) views; `vision_tokens` (B, 1 + P, width) spare the tower its work."""
        tokens = self.vision(pixel_values) if vision_tokens is None else vision_tokens
        return ImageFeatures(self.image_projector(tokens, view_position))

    def encode_text(self, input_ids: torch.Tensor, mask: torch.Tensor) -> TextFeatures:
        """Encode (B, L) token numbers; mask (B, L) bool is True for a token, False for padding."""
        features: TextFeatures = self.text(input_ids, never_empty(mask))
        return features

    def fuse(
        self,
        patch_features: torch.Tensor,
        patch_mask: torch.Tensor | None,
        context_features: torch.Tensor,
        context_mask: torch.Tensor,
        has_context: torch.Tensor,
    ) -> Latents:
        """Let latents read the context, where there is one, and the result read the image, in one pass for all rows.

        Args:
            patch_features: (B, 1 + P, D), CLS first.
            patch_mask: (B, P) bool, True where a patch shows image; None where all do.
            context_features: (B, Lc, D) tokens, of whatever kind where there is no context.
            context_mask: (B, Lc) bool, True for a token.
            has_context: (B,) bool.
        """
        rows = len(patch_features)
        asked = (self.latents + self.context_type).expand(rows, -1, -1)
        asked = self.perceiver(asked, context_features, self.key_mask(never_empty(context_mask)))
        queries = torch.where(has_context[:, None, None], asked, (self.latents + self.image_type).to(asked.dtype))
        if patch_mask is not None:
            patch_mask = torch.cat((torch.ones_like(patch_mask[:, :1]), patch_mask), dim=1)  # CLS shows image
        return Latents(visual=self.perceiver(queries, patch_features, self.key_mask(patch_mask)), context=queries)

    def look(
        self,
        *,
        pixel_values: torch.Tensor | None = None,
        view_position: torch.Tensor,
        context_input_ids: torch.Tensor,
        context_mask: torch.Tensor,
        has_context: torch.Tensor,
        patch_mask: torch.Tensor | None = None,
        vision_tokens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Latents]:
        """Return patch features (B, 1 + P, D) and latents of a batch's images; arguments as forward's."""
        image = self.encode_image(pixel_values, view_position, vision_tokens).patch_features
        context = self.encode_text(context_input_ids, context_mask).token_features
        return image, self.fuse(image, patch_mask, context, context_mask, has_context)

    def key_mask(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The mask, or none where padding is attended to as published."""
        return mask if self.config.mask_padding else None

    def forward(  # noqa: PLR0913 (the fields of a batch)
        self,
        *,
        pixel_values: torch.Tensor | None = None,
        view_position: torch.Tensor,
        context_input_ids: torch.Tensor,
        context_mask: torch.Tensor,
        has_context: torch.Tensor,
        report_input_ids: torch.Tensor,
        report_mask: torch.Tensor,
        sentence_input_ids: torch.Tensor,
        sentence_mask: torch.Tensor,
        patch_mask: torch.Tensor | None = None,
        vision_tokens: torch.Tensor | None = None,
    ) -> CoGazeOutput:
        """Encode a batch; the arguments are named as its fields, `vision_tokens` may stand for `pixel_values`."""
        image, latents = self.look(
            pixel_values=pixel_values,
            view_position=view_position,
            context_input_ids=context_input_ids,
            context_mask=context_mask,
            has_context=has_context,
            patch_mask=patch_mask,
            vision_tokens=vision_tokens,
        )
        report = self.encode_text(report_input_ids, report_mask)
        sentences = self.encode_text(sentence_input_ids, sentence_mask)
        visual_embed = latents.visual.mean(dim=1)
        by_first = self.config.sentence_pooling == "first"
        return CoGazeOutput(
            patch_features=image,
            visual_latents=latents.visual,
            context_latents=latents.context,
            visual_embed=visual_embed,
            report_embed=report.pooled,
            sentence_embed=sentences.token_features[:, 0] if by_first else sentences.pooled,
            vision_logits=self.vision_head(visual_embed),
            report_logits=self.report_head(report.pooled),
            logit_scale=self.logit_scale.sum(),  # scalars of their own: FSDP frees a parameter once it was used here
            logit_scale_gaze=self.logit_scale_gaze.sum(),
        )


def build_cogaze(
    vision_name_or_path: str = "microsoft/rad-dino",
    text_name_or_path: str = "microsoft/BiomedVLP-CXR-BERT-specialized",
    *,
    text_layers: int | None = None,
    vocabulary: Vocabulary | None = None,
    **sizes: Any,
) -> CoGazeModel:
    """A CoGaze with pretrained towers and everything else new.

    Args:
        vision_name_or_path: A transformers vision model, a folder or a name on the hub.
        text_name_or_path: A BERT, likewise.
        text_layers: How many of the BERT's layers to keep, from the first; None keeps all.
        vocabulary: Of the tokenizer in use, if not the BERT's own: `Vocabulary.of(tokenizer)`.
        sizes: Other fields of CoGazeConfig.

    Raises:
        ValueError: A tower lacks weights, its patches do not fit the image, or `sizes` names no field.
    """
    check_sizes(sizes, SIZES, "CoGazeConfig")
    towers = Towers(vision_name_or_path, text_name_or_path, text_layers, vocabulary)
    return CoGazeModel(CoGazeConfig(**towers.configs(), **sizes), towers.vision, towers.text)
