"""The configuration of a run: it nests each module's own, is read from YAML with dotted overrides, and is strict."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from cogaze.data.collate import CollateConfig
from cogaze.data.dataset import BESIDE, DatasetConfig
from cogaze.data.loader import WorkerConfig
from cogaze.data.plan import PlanConfig
from cogaze.objectives import ObjectiveConfig
from cogaze.optim import OptimConfig

MODEL_LEAST = {
    **dict.fromkeys(("hidden_size", "projector_hidden_size", "perceiver_depth", "perceiver_latents"), 1),
    **dict.fromkeys(("perceiver_heads", "perceiver_dim_head"), 1),
    "text_layers": 0,
    "tuned_blocks": -1,
}
LEAST = {"epochs": 1, "accumulation": 1, "keep": 1, "save_every": 0, "max_nonfinite": 0, "max_steps": 0}


@dataclass(frozen=True)
class ModelConfig:
    """The towers (folders, or names on a hub) and the sizes of what is new; the defaults are CoGaze's published ones.

    tokenizer: a folder or name, "" for the text tower's own. text_layers: how many layers of the text tower to keep,
    0 for all. tuned_blocks: of the vision tower, from its end; the rest is frozen. sentence_pooling: a sentence is
    its first token, [CLS], as published, or the mean of its tokens. mask_padding: False averages and attends to
    padding, as published.
    """

    vision: str = "microsoft/rad-dino"
    text: str = "microsoft/BiomedVLP-CXR-BERT-specialized"
    tokenizer: str = "distilgpt2"
    text_layers: int = 6
    tuned_blocks: int = 0
    hidden_size: int = 768
    projector_hidden_size: int = 1536
    perceiver_depth: int = 3
    perceiver_latents: int = 128
    perceiver_heads: int = 8
    perceiver_dim_head: int = 64
    sentence_pooling: Literal["first", "mean"] = "first"
    mask_padding: bool = True

    def __post_init__(self) -> None:
        for name, least in MODEL_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"model.{name} is {getattr(self, name)}, must be at least {least}")


@dataclass(frozen=True)
class FitConfig:
    """The course of a run.

    epochs: to train; max_steps ends it earlier, 0 does not. accumulation: micro-batches of a process per step.
    negatives: "window" contrasts a sample with the whole global batch (two passes where it has several
    micro-batches), "micro" with its own micro-batch over all processes. precision: of the forward pass.
    validate_every, save_every: steps, 0 for once an epoch; a negative validate_every never validates and needs no
    validation split. keep: latest checkpoints. max_nonfinite: steps in all whose loss may be NaN or infinite and is
    skipped, before the run stops. compile: torch.compile.
    """

    epochs: int = 50
    max_steps: int = 0
    accumulation: int = 1
    negatives: Literal["window", "micro"] = "window"
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    validate_every: int = 0
    save_every: int = 0
    keep: int = 2
    max_nonfinite: int = 0
    compile: bool = False
    tracker: Literal["tensorboard", "none"] = "tensorboard"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"fit.{name} is {getattr(self, name)}, must be at least {least}")


@dataclass(frozen=True)
class RunConfig:
    """One run: what it reads, what it trains, how, and where it writes."""

    out: Path
    shards: str
    model: ModelConfig = field(default_factory=ModelConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    data: DatasetConfig = field(default_factory=DatasetConfig)
    collate: CollateConfig = field(default_factory=CollateConfig)
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if self.optim.schedule == "plateau" and self.fit.validate_every < 0:
            raise ValueError(
                f"optim.schedule is plateau, which validations move, but fit.validate_every is "
                f"{self.fit.validate_every}; set it to 0 or more, or the schedule to cosine or constant"
            )

    def resolved(self) -> dict[str, Any]:
        """Return everything that a run's numbers depend on as plain json: not where it reads and writes."""
        values = asdict(self)
        for name in ("out", "shards", "workers"):
            del values[name]
        if values["data"]["features"]:
            values["data"]["features"] = BESIDE
        return _plain(values)


def run_parser(description: str | None) -> ArgumentParser:
    """Return what reads a run's options: a YAML file, overridden by dotted options; one that is unknown is an error."""
    parser = ArgumentParser(description=description, allow_abbrev=False)  # nor is a shortened one known
    parser.add_argument("--config", action="config", help="a YAML file of the run's options")
    parser.add_class_arguments(RunConfig, None, fail_untyped=True)
    return parser


def from_options(parser: ArgumentParser, options: Namespace) -> RunConfig:
    """Return the config that a run_parser's options say; raises ValueError where a value is out of range."""
    values = parser.instantiate(options)
    return RunConfig(**{one.name: values[one.name] for one in fields(RunConfig)})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
