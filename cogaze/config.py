"""The configuration of a run: it nests each module's own, is read from YAML with dotted overrides, and is strict."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from cogaze.data.collate import CollateConfig, TextConfig
from cogaze.data.dataset import BESIDE, DatasetConfig
from cogaze.data.loader import WorkerConfig
from cogaze.data.plan import PlanConfig
from cogaze.data.transforms import ViewConfig
from cogaze.objectives import CoGazeWeights, EgmaWeights, Weights
from cogaze.optim import OptimConfig

Method = Literal["cogaze", "egma", "report"]
MODEL_LEAST = {
    **dict.fromkeys(("hidden_size", "projector_hidden_size", "perceiver_depth", "perceiver_latents"), 1),
    **dict.fromkeys(("perceiver_heads", "perceiver_dim_head", "averaged_layers"), 1),
    "text_layers": 0,
    "tuned_blocks": -1,
}
LEAST = {"epochs": 1, "accumulation": 1, "keep": 1, "save_every": 0, "max_nonfinite": 0, "max_steps": 0}


@dataclass(frozen=True)
class ModelConfig:
    """What a run knows of any model.

    tokenizer: a folder or name. tuned_blocks: of the vision tower, from its end, -1 for all of it; the rest is frozen.
    names: the fields that may be folders.
    """

    tokenizer: str = ""
    tuned_blocks: int = 0

    names: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __post_init__(self) -> None:
        for name, least in MODEL_LEAST.items():
            if getattr(self, name, least) < least:
                raise ValueError(f"model.{name} is {getattr(self, name)}, must be at least {least}")

    @property
    def tokenizer_name(self) -> str:
        """The folder or name that the tokenizer is read from."""
        return self.tokenizer


@dataclass(frozen=True)
class TowerConfig(ModelConfig):
    """The towers (folders, or names on a hub), and how much of them is used and trained.

    tokenizer: "" for the text tower's own. text_layers: how many layers of the text tower to keep, 0 for all.
    hidden_size: of the space that images and texts share. mask_padding: False averages (CoGaze: and attends to)
    padding, as published.
    """

    vision: str = ""
    text: str = ""
    text_layers: int = 0
    hidden_size: int = 512
    mask_padding: bool = True

    names: ClassVar[tuple[str, ...]] = ("vision", "text", "tokenizer")

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's, or the text tower's."""
        return self.tokenizer or self.text

    def sizes(self) -> dict[str, Any]:
        """Return what the model's own config has of these, by name."""
        towers = {"vision", "text", "tokenizer", "text_layers"}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in towers}


@dataclass(frozen=True)
class CoGazeModelConfig(TowerConfig):
    """CoGaze's towers and the sizes of what is new; the defaults are the published ones.

    sentence_pooling: a sentence is its first token, [CLS], as published, or the mean of its tokens. The rest as for
    any method: see TowerConfig.
    """

    vision: str = "microsoft/rad-dino"
    text: str = "microsoft/BiomedVLP-CXR-BERT-specialized"
    tokenizer: str = "distilgpt2"
    text_layers: int = 6
    hidden_size: int = 768
    projector_hidden_size: int = 1536
    perceiver_depth: int = 3
    perceiver_latents: int = 128
    perceiver_heads: int = 8
    perceiver_dim_head: int = 64
    sentence_pooling: Literal["first", "mean"] = "first"


@dataclass(frozen=True)
class EgmaModelConfig(TowerConfig):
    """EGMA's towers and the sizes of what is new; the defaults are the published ones.

    averaged_layers: of the text tower, from its end, whose mean a sentence is. The rest as for any method: see
    TowerConfig.
    """

    vision: str = "microsoft/swin-tiny-patch4-window7-224"
    text: str = "emilyalsentzer/Bio_ClinicalBERT"
    tuned_blocks: int = -1
    averaged_layers: int = 4


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
    """One run of either method: what it reads, what it trains, how, and where it writes.

    Its kinds, CoGazeRun and EgmaRun, type the sections that differ, model and objective, and have their method's
    defaults.
    """

    out: Path
    shards: str
    method: Method = "cogaze"
    model: ModelConfig = field(default_factory=ModelConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    data: DatasetConfig = field(default_factory=DatasetConfig)
    collate: CollateConfig = field(default_factory=CollateConfig)
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    objective: Weights = field(default_factory=Weights)
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

    def _require(self, method: Method, sentences: str) -> None:
        if self.method != method:
            raise ValueError(f"method is {self.method}, but these are options of {method}; choose one")
        if self.collate.sentences != sentences:
            raise ValueError(
                f"collate.sentences is {self.collate.sentences}, but {method} learns from the sentences of rule "
                f"{sentences}; set it so"
            )


@dataclass(frozen=True)
class CoGazeRun(RunConfig):
    """A run of CoGaze; the defaults are the published ones."""

    model: CoGazeModelConfig = field(default_factory=CoGazeModelConfig)
    objective: CoGazeWeights = field(default_factory=CoGazeWeights)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("cogaze", "gaze")


EGMA_PLAN = PlanConfig(global_batch=40)
EGMA_DATA = DatasetConfig(view=ViewConfig(size_px=256))
EGMA_COLLATE = CollateConfig(
    text=TextConfig(
        report="[CLS] {report} [SEP]", context="[CLS] {indication} {history} [SEP]", sentence="[CLS] {sentence} [SEP]"
    ),
    sentences="all",
    pixel_mean=(0.5863, 0.5863, 0.5863),
    pixel_std=(0.2795, 0.2795, 0.2795),
)
EGMA_OPTIM = OptimConfig(lr=1e-5, weight_decay=1e-4, schedule="cosine")
EGMA_FIT = FitConfig(epochs=10)


@dataclass(frozen=True)
class EgmaRun(RunConfig):
    """A run of EGMA; the defaults are the published ones."""

    method: Method = "egma"
    model: EgmaModelConfig = field(default_factory=EgmaModelConfig)
    plan: PlanConfig = EGMA_PLAN
    data: DatasetConfig = EGMA_DATA
    collate: CollateConfig = EGMA_COLLATE
    objective: EgmaWeights = field(default_factory=EgmaWeights)
    optim: OptimConfig = EGMA_OPTIM
    fit: FitConfig = EGMA_FIT

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("egma", "all")


KINDS: dict[str, type[RunConfig]] = {"cogaze": CoGazeRun, "egma": EgmaRun}


def run_parser(description: str | None, arguments: Sequence[str] | None = None) -> ArgumentParser:
    """Return what reads a run's options: a YAML file, overridden by dotted options; one that is unknown is an error.

    arguments: what will be parsed, the command line's by default: they, or their YAML file, say the method, CoGaze by
    default, whose options alone are known.
    """
    kind = KINDS.get(_method_of(sys.argv[1:] if arguments is None else arguments), CoGazeRun)
    parser = ArgumentParser(description=description, allow_abbrev=False)  # nor is a shortened one known
    parser.add_argument("--config", action="config", help="a YAML file of the run's options")
    parser.add_class_arguments(kind, None, fail_untyped=True)
    return parser


def from_options(parser: ArgumentParser, options: Namespace) -> RunConfig:
    """Return the config that a run_parser's options say; raises ValueError where a value is out of range."""
    values = parser.instantiate(options)
    kind = CoGazeRun if isinstance(values["model"], CoGazeModelConfig) else EgmaRun  # which refuses another method
    return kind(**{one.name: values[one.name] for one in fields(kind)})


def public_name(name: str) -> str:
    """Return what a tower is called where others read it: of a folder its last name."""
    return Path(name).name if name and Path(name).is_dir() else name


def _method_of(arguments: Sequence[str]) -> str:
    return str(option_of(arguments, "method") or "cogaze")


def option_of(arguments: Sequence[str], name: str) -> Any:
    """Look for one option, or for a section, in arguments and then in the YAML files that they name; None for none.

    A parser that has yet to be chosen judges what it says, and the rest.
    """
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument(f"--{name}", dest="asked")
    look.add_argument("--config", action="append", default=[])
    found, rest = look.parse_known_args(arguments)
    inside = [one for one in rest if one.startswith(f"--{name}.")]
    said = (_said(path, name) for path in reversed(found.config))
    return found.asked or (inside[0] if inside else None) or next((value for value in said if value), None)


def _said(path: str, name: str) -> Any:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return values.get(name) if isinstance(values, dict) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
