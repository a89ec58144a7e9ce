"""Reports from images: a CoGaze encodes image and context, a decoder writes from its latents."""

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from huggingface_hub.dataclasses import strict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.generic import ModelOutput

from cogaze.models.cogaze import CoGazeConfig, CoGazeModel
from cogaze.models.decoder import CrossAttentionDecoder
from cogaze.models.llm import LanguageModel, PromptedDecoder, load_language_model
from cogaze.models.pretrained import TwoTowerModel
from cogaze.models.text import ABSENT, TextEncoder
from cogaze.models.vision import VisionTower

Frozen = Literal["tower", "encoder"]
Decoder = CrossAttentionDecoder | PromptedDecoder
LATENT_FIELDS = ("view_position", "patch_mask", "context_input_ids", "context_mask", "has_context")
UNREAD = ("report_head", "logit_scale", "logit_scale_gaze")  # of the encoder: nothing that is written depends on them


@strict
class ReportConfig(PreTrainedConfig):
    """The encoder's config, the decoder's, and which part of the encoder is left as it was pretrained.

    language_model: where a language model reads the latents in its prompt, cogaze.models.llm.LanguageModel as json.
    """

    model_type = "cogaze-report"
    sub_configs_defaults = {  # noqa: RUF012 (a class attribute of transformers)
        "encoder_config": SubConfigSpec(CoGazeConfig),
        "decoder_config": SubConfigSpec(AutoConfig, model_type="gpt2"),
    }

    encoder_config: PreTrainedConfig | dict[str, Any] | None = None
    decoder_config: PreTrainedConfig | dict[str, Any] | None = None
    frozen: Frozen = "tower"
    language_model: dict[str, Any] | None = None


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

    A language model's own weights are no part of what is saved: from_pretrained finds them where the config says.
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
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(config)
        self.encoder = encoder or CoGazeModel(cast("CoGazeConfig", config.encoder_config))
        self.decoder = decoder or _untrained(config)
        self.post_init()
        tied = self.decoder.model.all_tied_weights_keys  # transformers looks for them in children, not grandchildren
        self.all_tied_weights_keys |= {f"decoder.model.{one}": f"decoder.model.{to}" for one, to in tied.items()}
        self.freeze()

    @classmethod
    def from_pretrained(cls, *args: Any, language_model: str = "", **kwargs: Any) -> Self:
        """Load as TwoTowerModel does; a language model's own weights are read where it is.

        Args:
            args: The folder.
            language_model: The folder or name of the language model, "" for the name on the hub that the config says.
            kwargs: As transformers', where there is no language model.

        Raises:
            ValueError: The weights are not exactly this model's, or the language model is another or not to be found.
        """
        config = ReportConfig.from_pretrained(*args)
        if config.language_model is not None:
            return cls._on(_found(config.language_model, language_model), config, Path(*args))
        if language_model:
            raise ValueError("the model has its decoder's weights with it and reads no language model; name none")
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def _on(cls, base: LanguageModel, config: ReportConfig, folder: Path) -> Self:
        """Load what was trained on a language model, in evaluation mode."""
        encoder = CoGazeModel(cast("CoGazeConfig", config.encoder_config))
        decoder = PromptedDecoder(load_language_model(base), encoder.config.hidden_size, base.lora)
        model = cls(config, encoder, decoder)
        weights = {name: one for path in sorted(folder.glob("*.safetensors")) for name, one in load_file(path).items()}
        wrong = sorted(weights.keys() ^ model.state_dict().keys())
        if wrong:
            raise ValueError(
                f"{folder.name}: {len(wrong)} weights are lacking or too many, such as {wrong[0]}; these are not the"
                f" weights of {cls.loading_cure}"
            )
        model.load_state_dict(weights, strict=False)
        return model.eval()

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
        self.encoder.requires_grad_(True)
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


def new_report_model(
    encoder: CoGazeModel, decoder: Decoder, frozen: Frozen, language_model: LanguageModel | None = None
) -> ReportModel:
    """Put a pretrained encoder and a decoder together; language_model: which one a prompted decoder is of."""
    encoder.config.tuned_blocks = 0
    # Copies: a config that becomes part of another forgets how its model computes attention.
    own, theirs = deepcopy(encoder.config), deepcopy(decoder.model.config)
    stated = None if language_model is None else _told(language_model)
    config = ReportConfig(encoder_config=own, decoder_config=theirs, frozen=frozen, language_model=stated)
    return ReportModel(config, encoder, decoder)


def _found(stated: dict[str, Any], asked: str) -> LanguageModel:
    """Return where a model's language model is; raises ValueError where only the user knows."""
    language_model = LanguageModel.of_json(stated)
    if language_model.local and not asked:
        raise ValueError(
            f"the model was trained on a language model in a folder {language_model.name}, which is not part of it:"
            " name that folder (--language_model)"
        )
    return replace(language_model, name=asked or language_model.name)


def _told(language_model: LanguageModel) -> dict[str, Any]:
    """Return what others are told of a language model: of a folder its last name."""
    folder = Path(language_model.name)
    local = folder.is_dir()
    return asdict(replace(language_model, name=folder.name if local else language_model.name, local=local))


def _untrained(config: ReportConfig) -> Decoder:
    width = cast("CoGazeConfig", config.encoder_config).hidden_size
    if config.language_model is None:
        return CrossAttentionDecoder(cast("GPT2Config", config.decoder_config), width)
    base: Any = AutoModelForCausalLM.from_config(cast("PreTrainedConfig", config.decoder_config))
    return PromptedDecoder(base.requires_grad_(False), width, LanguageModel.of_json(config.language_model).lora)


def pretrained_encoder(folder: str) -> CoGazeModel:
    """Read a CoGaze, or that of a report model."""
    stored, _ = PreTrainedConfig.get_config_dict(folder)
    if stored.get("model_type") != ReportConfig.model_type:
        return CoGazeModel.from_pretrained(folder)
    return ReportModel.from_pretrained(folder).encoder


def trained_further(folder: str, frozen: Frozen) -> ReportModel:
    """Read a report model to train it further."""
    model = ReportModel.from_pretrained(folder)
    model.config.frozen = frozen
    model.freeze()
    return model
