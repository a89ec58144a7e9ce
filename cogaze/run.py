"""What one process of a run holds, made ready from a config: accelerate, model, optimizer, streams of batches."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_tensorboard_available, set_seed
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from cogaze.checkpoint import Trained
from cogaze.config import RunConfig, public_name
from cogaze.data.collate import Collate, add_special_tokens
from cogaze.data.dataset import SampleTable, ShardDataset, read_table
from cogaze.data.loader import Stream
from cogaze.data.plan import Share
from cogaze.frozen import stored_tokens
from cogaze.methods import parts_of
from cogaze.models.pretrained import TwoTowerModel
from cogaze.objectives import Objective
from cogaze.optim import MovingAverage, Schedule, build_optimizer


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that one process of a run holds; `wrapped` is the model as accelerate prepared it."""

    config: RunConfig
    accelerator: Accelerator
    model: TwoTowerModel
    wrapped: nn.Module
    optimizer: Any
    trained: Trained
    train: Stream
    validation: Stream | None
    objective: Objective
    collate: Collate
    total_steps: int
    remarks: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been written under to be gone on with: config, training samples, features.

        With the negatives of a micro-batch also the accumulation, which says how many there are.
        """
        dataset = self.train.dataset
        samples = hashlib.blake2b(dataset.table.key.tobytes(), digest_size=8).hexdigest()
        stored = {} if dataset.features is None else {"features": dataset.features.name}
        cut = {"micro-batches": self.config.fit.accumulation} if self.config.fit.negatives == "micro" else {}
        return {**self.config.resolved(), "samples": samples, **stored, **cut}


def prepare(config: RunConfig) -> Run:
    """Make everything ready before the first step; raises ValueError where data, towers and config do not fit."""
    parts, tables = parts_of(config), _tables(config)
    accelerator = _accelerator(config)
    quiet()
    set_seed(config.fit.seed)
    tokenizer = _tokenizer(config)
    added = add_special_tokens(tokenizer, parts.tokens)
    tables, collate, remarks = parts.reading(config, tables, tokenizer)
    _enough(config, tables["train"])
    model = parts.build(config, tokenizer, grown=bool(added))
    _name_towers(model)
    set_seed(config.fit.seed, device_specific=True)  # processes drop out different units
    share = Share(accelerator.process_index, accelerator.num_processes, config.fit.accumulation)
    train = _stream(config, tables["train"], model, collate, share, accelerator)
    validation = None
    if "validate" in tables:
        validation = _stream(config, tables["validate"], model, collate, share, accelerator)
    optimizer = build_optimizer(model, config.optim)
    if config.fit.compile:
        model.compile()
    wrapped, prepared = accelerator.prepare(model, optimizer)
    epochs = config.fit.epochs * train.steps
    total = min(config.fit.max_steps or epochs, epochs)
    average = MovingAverage(trainable(model), config.optim.ema_decay) if config.optim.ema_decay else None
    schedule = Schedule(prepared.optimizer, config.optim, total)
    trained = Trained(wrapped, prepared.optimizer, schedule, average, accelerator.scaler)
    objective = parts.objective(config, tables["train"], accelerator.device)
    run = Run(config, accelerator, model, wrapped, prepared, trained, train, validation, objective, collate, total)
    return replace(run, remarks=remarks)


def _tables(config: RunConfig) -> dict[str, SampleTable]:
    """Read the splits that the run needs; a negative fit.validate_every does without the validation split."""
    try:
        tables = {"train": read_table(config.shards, "train")}
    except ValueError as error:
        raise ValueError(f"shards {config.shards}: {error}") from error
    if config.fit.validate_every >= 0:
        try:
            tables["validate"] = read_table(config.shards, "validate")
        except ValueError as error:
            raise ValueError(f"{error}, or set fit.validate_every to -1 to train without validation") from error
    return tables


def _enough(config: RunConfig, training: SampleTable) -> None:
    samples, batch = len(training), config.plan.global_batch
    if batch > samples:
        raise ValueError(f"plan.global_batch is {batch}, but there are only {samples} training samples; lower it")


def _accelerator(config: RunConfig) -> Accelerator:
    """Start accelerate and make sure that the run got what was asked for: accelerate falls back in silence."""
    asked = os.environ
    if config.fit.tracker == "tensorboard" and not is_tensorboard_available():
        raise ValueError(
            "fit.tracker is tensorboard, which is not installed: pip install tensorboard, or set it to none"
        )
    if "MASTER_ADDR" in asked and "WORLD_SIZE" not in asked:
        raise ValueError(
            "several processes were asked for, but accelerate launch starts only one on CPU; use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
        )
    accelerator = Accelerator(
        mixed_precision=config.fit.precision,
        log_with=None if config.fit.tracker == "none" else config.fit.tracker,
        project_dir=str(config.out),
    )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if accelerator.num_processes != int(asked.get("WORLD_SIZE", "1")):
        raise ValueError(
            f"WORLD_SIZE is {asked.get('WORLD_SIZE')}, but accelerate runs {accelerator.num_processes} processes; "
            "start with accelerate launch on GPUs, with ACCELERATE_USE_CPU=true torchrun on CPU"
        )
    if asked.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1") and not sharded:
        raise ValueError(f"FSDP was asked for, but is not active on {accelerator.device.type}; it needs GPUs")
    if sharded and not accelerator.is_fsdp2:
        raise ValueError(
            "FSDP version 1 was asked for, which this never ran with; set fsdp_version to 2 in the accelerate config"
        )
    if sharded and config.optim.ema_decay:
        raise ValueError("optim.ema_decay averages whole weights, which FSDP does not hold; set it to 0")
    if config.fit.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fit.precision is fp16, which needs a GPU; set it to bf16 or no")
    if accelerator.mixed_precision != config.fit.precision:
        raise ValueError(f"fit.precision is {config.fit.precision}, but accelerate runs {accelerator.mixed_precision}")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("the accelerate config sets gradient_accumulation_steps; set fit.accumulation in its place")
    return accelerator


def quiet() -> None:
    """Keep transformers' load reports and progress bars away, unless its own variable asks for them."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def _tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    name = config.model.tokenizer_name
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer at {name}: name a folder that has one, or one on the hub, in model.tokenizer"
        ) from error


def _name_towers(model: TwoTowerModel) -> None:
    """Let the saved config tell no path."""
    for part in model.modules():
        for config in _configs(getattr(part, "config", None)):
            config.name_or_path = public_name(config.name_or_path or "")


def _configs(config: Any) -> Iterator[PreTrainedConfig]:
    """Deliver a config and those that it consists of."""
    if isinstance(config, PreTrainedConfig):
        yield config
        for name in config.sub_configs:
            yield from _configs(getattr(config, name))


def _stream(
    config: RunConfig,
    table: SampleTable,
    model: TwoTowerModel,
    collate: Collate,
    share: Share,
    accelerator: Accelerator,
) -> Stream:
    plan, data = config.plan, config.data
    if table.split != "train":
        plan, data = replace(plan, shuffle=False, gaze_ratio=1.0), data.still()
    features = stored_tokens(config, table, data.view, model.vision) if data.features else None
    dataset = ShardDataset(config.shards, table, model.patch_grid, data, features)
    return Stream(dataset, collate, plan, share, config.workers, accelerator.device)


def trainable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name the parameters that are trained."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
