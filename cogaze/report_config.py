"""The configuration of a run that learns to write reports: a pretrained encoder, a decoder, what is written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cogaze.config import Method, ModelConfig, RunConfig, public_name
from cogaze.data.chat import PromptConfig
from cogaze.data.targets import TargetConfig
from cogaze.models.decoder import Start
from cogaze.models.llm import Dtype, LanguageModel, LoraConfig
from cogaze.models.report import Frozen
from cogaze.objectives import ReportWeights
from gazeprep.shards import sha256_of

DecoderKind = Literal["cross_attention", "llm"]
DECODERS: dict[DecoderKind, str] = {"cross_attention": "distilgpt2", "llm": "meta-llama/Llama-3.2-3B-Instruct"}


@dataclass(frozen=True)
class DecoderConfig:
    """The language model that writes: a folder, or a name on a hub; "" is the published one of its kind.

    kind: "cross_attention" is a GPT-2 whose blocks attend over the latents of image and context, with the tokenizer of
    the pretrained model; "llm" any causal language model, with its own, that reads them in a prompt. start, of a
    GPT-2: "random" takes nothing of it but its sizes, as published; "model" takes the decoder of the model that is
    trained further, which then is one that writes. lora, dtype ("auto": bf16 on a GPU that has it,
    else float32) and four_bit are of a language model, which itself stays as it is.
    """

    kind: DecoderKind = "cross_attention"
    name: str = ""
    start: Start = "pretrained"
    lora: LoraConfig = field(default_factory=LoraConfig)
    dtype: Dtype = "auto"
    four_bit: bool = False

    @property
    def model_name(self) -> str:
        """The folder or name."""
        return self.name or DECODERS[self.kind]

    def language_model(self, sha256: str = "") -> LanguageModel:
        """Return which language model this is."""
        return LanguageModel(self.model_name, sha256, dtype=self.dtype, four_bit=self.four_bit, lora=self.lora)


@dataclass(frozen=True)
class ReportModelConfig(ModelConfig):
    """A pretrained CoGaze, in the folder that a run exported, and a decoder.

    encoder_sha256, decoder_sha256: of the folder's weights and of a language model's, by which a run that goes on knows
    them. frozen: "tower" trains all but the vision tower, as published for GPT-2; "encoder" the decoder alone.
    """

    encoder: str = ""
    encoder_sha256: str = ""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    decoder_sha256: str = ""
    frozen: Frozen = "tower"

    names: ClassVar[tuple[str, ...]] = ("tokenizer", "encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        plain, told = DecoderConfig(), self.decoder
        of_other = ("lora", "dtype", "four_bit") if told.kind == "cross_attention" else ("start",)
        unused = [name for name in of_other if getattr(told, name) != getattr(plain, name)]
        if unused:
            raise ValueError(f"decoder.{' and decoder.'.join(unused)}: no option of kind {told.kind}; leave it out")
        if self.decoder.kind == "llm" and self.frozen != "encoder":
            raise ValueError(
                f"frozen is {self.frozen}, but a language model is told what the pretrained encoder predicts and finds;"
                " set it to encoder"
            )


@dataclass(frozen=True)
class ReportRun(RunConfig):
    """A run that learns to write reports; made by cogaze.report_run, which takes prompts and view from the encoder."""

    method: Method = "report"
    model: ReportModelConfig = field(default_factory=ReportModelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    objective: ReportWeights = field(default_factory=ReportWeights)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.decoder.kind != "llm" and self.prompt != PromptConfig():
            raise ValueError("prompt is what a language model is told, and decoder.kind is none; leave it out")

    def resolved(self) -> dict[str, Any]:
        """Return everything that a run's numbers depend on: weights and texts by their hash, not by their place."""
        values = super().resolved()
        for name in ("tokenizer", "encoder"):
            values["model"][name] = ""
        further = self.model.decoder.start == "model"
        values["model"]["decoder"]["name"] = "" if further else public_name(self.model.decoder.model_name)
        if self.model.decoder.kind != "llm":
            del values["prompt"]
        if self.target.table:
            values["target"]["table"] = sha256_of(Path(self.target.table))
        return values
