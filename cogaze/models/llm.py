"""A causal language model that reads latents among the tokens of a prompt; what is trained is an adapter and LoRA."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

Dtype = Literal["auto", "bf16", "float32"]
FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
LORA = "lora_"  # what the names of LoRA's weights, and of nothing else, hold
INSTALL = "pip install 'gazeprep-cogaze[llm]'"


@dataclass(frozen=True)
class LoraConfig:
    """What is added to a language model and trained; the defaults are the published ones.

    rank: 0 adds nothing, so that the adapter alone is trained. targets: the ends of the names of the linear layers that
    get it: q_proj and v_proj in Llama and most others, c_attn in GPT-2, query_key_value in GPT-NeoX.
    """

    rank: int = 16
    alpha: int = 16
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"{self}: rank must be at least 0, alpha at least 1, dropout at least 0 and below 1")


@dataclass(frozen=True)
class LanguageModel:
    """Which language model, in which numbers.

    name: a name on the hub, or a folder. sha256: of its weights; "" where any will do. local: whether it was a folder,
    whose place nobody is told. dtype: "auto" is bf16 on a GPU that has it, else float32. four_bit: by bitsandbytes.
    """

    name: str
    sha256: str = ""
    local: bool = False
    dtype: Dtype = "auto"
    four_bit: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"decoder.dtype is {self.dtype!r}, must be one of {', '.join(get_args(Dtype))}")

    @classmethod
    def of_json(cls, stated: dict[str, Any]) -> "LanguageModel":
        """Read what dataclasses.asdict wrote."""
        lora = stated["lora"]
        return cls(**{**stated, "lora": LoraConfig(**{**lora, "targets": tuple(lora["targets"])})})


# --- finding and loading one


def language_model_folder(name: str) -> Path:
    """Return where a language model's files are, fetched where they are not; raises ValueError where there are none."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no language model at {name} ({type(error).__name__}): name a folder, or a model on the hub in"
            " decoder.name; where its licence has to be accepted there first, `hf auth login` says who you are"
        ) from error


def language_model_sha256(name: str) -> str:
    """Hash a language model's weights, as load_language_model compares them."""
    files = sorted(language_model_folder(name).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{name} has no *.safetensors: save its weights as such, with save_pretrained")
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def load_language_model(stated: LanguageModel) -> PreTrainedModel:
    """Read a causal language model, frozen and in evaluation mode.

    Raises ValueError where there is none, its weights are not those stated, or it cannot be had in four bits.
    """
    if stated.sha256 and language_model_sha256(stated.name) != stated.sha256:
        raise ValueError(
            f"the weights of {stated.name} are not those of the language model that this was trained on: name the"
            " folder, or the version, that it was trained on"
        )
    options = _four_bit() if stated.four_bit else {"dtype": torch_dtype(stated.dtype)}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            language_model_folder(stated.name), output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{stated.name} is no causal language model that transformers {_version()} knows: name another one in"
            " decoder.name; code that comes with a model is never run"
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{stated.name} lacks weights, such as {sorted(report['missing_keys'])[0]}: copy it again")
    model.generation_config = GenerationConfig()  # its own says to draw at random
    model.config.name_or_path = stated.name
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen


def language_model_config(name: str) -> PreTrainedConfig:
    """Read a language model's config; raises ValueError where there is none that transformers knows."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(language_model_folder(name))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} has no config of a language model that transformers knows; name another") from error
    return config


def load_chat_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Read a language model's tokenizer; raises ValueError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(language_model_folder(name))
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer at {name}: copy the language model's beside its weights") from error


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """Return the numbers in which a frozen language model is held."""
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if dtype == "bf16" or (dtype == "auto" and has_bf16) else torch.float32


def _four_bit() -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise ValueError("decoder.four_bit needs a CUDA device; set it to false")
    try:
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise ValueError("decoder.four_bit needs bitsandbytes: pip install bitsandbytes, or set it to false") from error
    from transformers import BitsAndBytesConfig

    numbers = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": numbers, "device_map": {"": PartialState().device}}


def _version() -> str:
    from transformers import __version__

    return __version__


# --- reading latents with it


class PromptedDecoder(nn.Module):
    """A language model to which latents (B, N, D) are tokens of a prompt, by a linear map to its width.

    Its state is what is trained, adapter and LoRA, without the language model's own weights.
    """

    kind = "llm"

    def __init__(self, model: PreTrainedModel, latent_width: int, lora: LoraConfig) -> None:
        super().__init__()
        self.model: Any = with_lora(model, lora)
        self.adapter = nn.Linear(latent_width, width_of(model))
        self.register_state_dict_post_hook(_drop_base)

    def forward(self, latents: Tensor, input_ids: Tensor, mask: Tensor, latent_mask: Tensor) -> Tensor:
        """Return logits (B, L, vocabulary) after each of the tokens (B, L); mask (B, L) bool, True for a token.

        latent_mask (B, L): where, from left to right, the latents stand for tokens; all N of them, or none.
        """
        check_length(self.model.config, input_ids.shape[1])
        logits: Tensor = self.model(
            inputs_embeds=self.embedded(latents, input_ids, latent_mask),
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
        ).logits
        return logits

    @torch.no_grad()
    def write(self, latents: Tensor, input_ids: Tensor, mask: Tensor, latent_mask: Tensor, **options: Any) -> Tensor:
        """Return what follows the tokens (B, L), padded on the left, of each row: (B, at most max_new_tokens)."""
        check_length(self.model.config, input_ids.shape[1] + options.get("max_new_tokens", 0))
        written: Tensor = self.model.generate(
            inputs_embeds=self.embedded(latents, input_ids, latent_mask), attention_mask=mask.long(), **options
        )
        return written

    def embedded(self, latents: Tensor, input_ids: Tensor, latent_mask: Tensor) -> Tensor:
        """Return tokens as vectors (B, L, width), the latents in their places."""
        words = self.model.get_input_embeddings()(input_ids)
        seen = self.adapter(latents).to(words.dtype)
        which = (latent_mask.long().cumsum(dim=1) - 1).clamp(min=0, max=seen.shape[1] - 1)
        placed = seen.gather(1, which[..., None].expand(-1, -1, seen.shape[2]))
        return torch.where(latent_mask[..., None], placed, words)


def with_lora(model: PreTrainedModel, lora: LoraConfig) -> PreTrainedModel:
    """Add LoRA to a frozen model, in float32; raises ValueError where peft, or a layer of such a name, is lacking."""
    if not lora.rank:
        return model
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"LoRA needs peft: {INSTALL}, or set decoder.lora.rank to 0") from error
    turned = any(isinstance(part, Conv1D) and name.endswith(lora.targets) for name, part in model.named_modules())
    how = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        fan_in_fan_out=turned,
    )
    try:
        peft.inject_adapter_in_model(how, model)
    except ValueError as error:
        raise ValueError(
            f"decoder.lora.targets is {', '.join(lora.targets)}, but the language model, a {model.config.model_type},"
            f" has the linear layers {', '.join(_linear_names(model))}; choose of these"
        ) from error
    for name, parameter in model.named_parameters():
        if LORA in name:
            parameter.data = parameter.data.float()
    parts: Any = model.modules()
    for part in parts:
        part._is_hf_initialized = True  # else transformers draws LoRA anew
    return model


def width_of(model: PreTrainedModel) -> int:
    """Return the width of a language model's tokens."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[1])


def check_length(config: Any, tokens: int) -> None:
    """Raise ValueError where a prompt with its text has more tokens than a language model has positions."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise ValueError(
            f"prompt and text take up to {tokens} tokens, but the language model has {longest} positions; shorten the"
            " prompt (prompt.similar_tokens, target.max_tokens), or take another model"
        )


def own_names(names: Sequence[str]) -> list[str]:
    """Return those of a PromptedDecoder's weights that are not the language model's own."""
    return [name for name in names if not name.startswith("model.") or LORA in name]


def _drop_base(decoder: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Leave the language model's own weights out of a state."""
    inside = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    for name in set(inside) - set(own_names(inside)):
        del state[prefix + name]


def _linear_names(model: nn.Module) -> list[str]:
    parts = model.named_modules()
    return sorted({name.rpartition(".")[2] for name, part in parts if isinstance(part, nn.Linear | Conv1D)})
