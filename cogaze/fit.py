"""The training loop on Accelerate: one loop for any number of processes, resumable at any step."""

import hashlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_tensorboard_available, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from cogaze.card import Facts, model_card
from cogaze.checkpoint import (
    WHOLE,
    Position,
    Trained,
    hidden,
    latest_checkpoint,
    load_checkpoint,
    publish,
    save_checkpoint,
    versions,
)
from cogaze.config import RunConfig
from cogaze.data.collate import Batch, Collate, add_special_tokens, count_positives
from cogaze.data.dataset import SampleTable, ShardDataset, read_table
from cogaze.data.loader import Stream
from cogaze.data.plan import Position as DataPosition
from cogaze.data.plan import Share
from cogaze.evaluate.metrics import auroc
from cogaze.losses.labels import class_balanced_weights
from cogaze.models.cogaze import CoGazeModel, CoGazeOutput, build_cogaze
from cogaze.models.text import Vocabulary
from cogaze.objectives import ALIGN, LossSum, align_loss, cogaze_losses, expected_counts, weighted_total
from cogaze.optim import MovingAverage, Schedule, build_optimizer
from gazeprep.schema import CHEXPERT_LABELS

CONSOLE = Console(stderr=True)


class NonFiniteLossError(RuntimeError):
    """A step's loss or gradient is NaN or infinite."""


class StopRequested(SystemExit):
    """The run saved and stopped because a signal asked it to; the exit code is 128 + the signal's number."""


@dataclass(frozen=True)
class Validation:
    """Mean losses and AUROC over the validation split, by name; both empty where there was none."""

    losses: dict[str, float]
    metrics: dict[str, float]


@dataclass(frozen=True)
class FitReport:
    """Where a run ended, of how many steps, and its last validation."""

    position: Position
    total_steps: int
    validation: Validation

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.position.steps_done >= self.total_steps


@dataclass(frozen=True, eq=False)
class _Run:
    """Everything that one process of a run holds; `wrapped` is the model as accelerate prepared it."""

    config: RunConfig
    accelerator: Accelerator
    model: CoGazeModel
    wrapped: nn.Module
    optimizer: Any
    trained: Trained
    train: Stream
    validation: Stream | None
    class_weights: Tensor
    tokenizer: PreTrainedTokenizerBase
    total_steps: int

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been written under to be gone on with: the config and the training samples."""
        samples = hashlib.blake2b(self.train.dataset.table.key.tobytes(), digest_size=8).hexdigest()
        return {**self.config.resolved(), "samples": samples}


def fit(config: RunConfig) -> FitReport:
    """Train from a config, going on from its latest checkpoint if it has one; returns where it ended.

    Raises ValueError before the first step where data, towers, config or checkpoint do not fit together,
    NonFiniteLossError where too many losses are not finite, StopRequested after SIGTERM or SIGINT.
    """
    run = _prepare(config)
    position = _start(run)
    with _stop_requested() as asked:
        report = _train(run, position, asked)
    _export(run, config.out / "model", report)
    run.accelerator.end_training()
    return report


def _prepare(config: RunConfig) -> _Run:
    tables = _tables(config)
    accelerator = _accelerator(config)
    _quiet()
    set_seed(config.fit.seed)
    tokenizer = _tokenizer(config)
    added = add_special_tokens(tokenizer)
    model = _build_model(config, Vocabulary.of(tokenizer) if added or config.model.tokenizer else None)
    set_seed(config.fit.seed, device_specific=True)  # processes drop out different units
    share = Share(accelerator.process_index, accelerator.num_processes, config.fit.accumulation)
    collate = Collate(tokenizer, config.collate)
    train = _stream(config, tables["train"], model, collate, share, accelerator)
    validation = None
    if "validate" in tables:
        validation = _stream(config, tables["validate"], model, collate, replace(share, accumulation=1), accelerator)
    optimizer = build_optimizer(model, config.optim)
    if config.fit.compile:
        model.compile()
    wrapped, prepared = accelerator.prepare(model, optimizer)
    epochs = config.fit.epochs * train.steps
    total = min(config.fit.max_steps or epochs, epochs)
    average = MovingAverage(_trainable(model), config.optim.ema_decay) if config.optim.ema_decay else None
    schedule = Schedule(prepared.optimizer, config.optim, total)
    trained = Trained(wrapped, prepared.optimizer, schedule, average, accelerator.scaler)
    weights = _class_weights(config, tables["train"]).to(accelerator.device)
    return _Run(config, accelerator, model, wrapped, prepared, trained, train, validation, weights, tokenizer, total)


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
    samples, batch = len(tables["train"]), config.plan.global_batch
    if batch > samples:
        raise ValueError(f"plan.global_batch is {batch}, but there are only {samples} training samples; lower it")
    return tables


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
    if sharded and config.optim.ema_decay:
        raise ValueError("optim.ema_decay averages whole weights, which FSDP does not hold; set it to 0")
    if config.fit.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fit.precision is fp16, which needs a GPU; set it to bf16 or no")
    if accelerator.mixed_precision != config.fit.precision:
        raise ValueError(f"fit.precision is {config.fit.precision}, but accelerate runs {accelerator.mixed_precision}")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("the accelerate config sets gradient_accumulation_steps; set fit.accumulation in its place")
    return accelerator


def _quiet() -> None:
    """Keep transformers' load reports and progress bars away, unless its own variable asks for them."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def _tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    name = config.model.tokenizer or config.model.text
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer at {name}: name a folder that has one, or one on the hub, in model.tokenizer"
        ) from error


def _class_weights(config: RunConfig, table: SampleTable) -> Tensor:
    """Class-balanced weights (14,); where no disease loss counts, labels may be absent."""
    if not config.objective.image_disease and not config.objective.report_disease:
        return torch.ones(len(CHEXPERT_LABELS))
    positives = count_positives(table.labels, config.collate.labels)
    return class_balanced_weights(positives.clamp(min=1), config.objective.class_beta)


def _build_model(config: RunConfig, vocabulary: Vocabulary | None) -> CoGazeModel:
    sizes = {
        name: getattr(config.model, name)
        for name in (
            "tuned_blocks", "hidden_size", "projector_hidden_size", "perceiver_depth", "perceiver_latents",
            "perceiver_heads", "perceiver_dim_head", "sentence_pooling", "mask_padding",
        )
    }  # fmt: skip
    model = build_cogaze(
        config.model.vision,
        config.model.text,
        text_layers=config.model.text_layers or None,
        vocabulary=vocabulary,
        image_size=config.data.view.size_px,
        **sizes,
    )
    for tower in (model.config.vision_config, model.config.text_config):
        assert isinstance(tower, PreTrainedConfig)
        tower.name_or_path = _public(tower.name_or_path or "")
    return model


def _public(name: str) -> str:
    """Return what a tower is called where others read it: of a folder its last name."""
    return Path(name).name if name and Path(name).is_dir() else name


def _stream(
    config: RunConfig, table: SampleTable, model: CoGazeModel, collate: Collate, share: Share, accelerator: Accelerator
) -> Stream:
    plan, data = config.plan, config.data
    if table.split != "train":
        still = replace(data.view, rule="letterbox" if data.view.is_random else data.view.rule, flip=0.0, shift=0.0)
        plan, data = replace(plan, shuffle=False, gaze_ratio=1.0), replace(data, view=still)
    dataset = ShardDataset(config.shards, table, model.patch_grid, data)
    return Stream(dataset, collate, plan, share, config.workers, accelerator.device)


def _trainable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _start(run: _Run) -> Position:
    """Load the latest checkpoint, if any; write the resolved config beside the checkpoints."""
    accelerator, out = run.accelerator, run.config.out
    latest = latest_checkpoint(out)
    position = Position()
    if latest is not None:
        position = load_checkpoint(accelerator, latest, run.trained, run.identity())
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(run.config.resolved(), indent=2, sort_keys=True) + "\n")
        _shorten_log(out / "log.jsonl", position.steps_done)
        processes = accelerator.num_processes
        _say(
            f"{processes} process{'es' if processes > 1 else ''} on {accelerator.device.type}, precision "
            f"{accelerator.mixed_precision}, {len(run.train.dataset)} samples, {run.total_steps} steps of "
            f"{run.config.plan.global_batch}, from step {position.steps_done}"
        )
    if run.config.fit.tracker != "none":
        accelerator.init_trackers("runs")
    return position


def _train(run: _Run, position: Position, asked: list[int]) -> FitReport:
    """Run the remaining steps; validate, save and leave between two of them."""
    config, accelerator = run.config.fit, run.accelerator
    save_every = config.save_every or run.train.steps
    validate_every = config.validate_every or run.train.steps
    report = FitReport(position, run.total_steps, Validation({}, {}))
    windows = _windows(run, position)
    with _progress(run, position) as show:
        while position.steps_done < run.total_steps:
            started = time.perf_counter()
            position, values = _step(run, next(windows), position)
            values["samples_per_s"] = run.config.plan.global_batch / (time.perf_counter() - started)
            _note(run, position.steps_done, values)
            show(values)
            number = _asked(accelerator, asked)
            last = position.steps_done == run.total_steps
            due = position.steps_done % validate_every == 0
            if run.validation is not None and (due or (last and not number)):
                validation = _validate(run, run.validation)
                position = _note_validation(run, position, validation, due)
                report = replace(report, validation=validation)
            if number or last or position.steps_done % save_every == 0:
                save_checkpoint(accelerator, run.config.out, run.trained, position, run.identity(), config.keep)
            if number:
                _leave(accelerator, position, number)
    if run.validation is not None and not report.validation.losses:  # the checkpoint was the last step's
        report = replace(report, validation=_validate(run, run.validation))
    return replace(report, position=position)


def _windows(run: _Run, position: Position) -> Iterator[list[Batch]]:
    """Deliver the micro-batches of each step from a position on, epoch after epoch."""
    following = DataPosition(position.epoch, position.step)
    while True:
        micro_batches = run.train.epoch(following)
        while window := list(islice(micro_batches, run.config.fit.accumulation)):
            yield window
        following = DataPosition(following.epoch + 1)


def _leave(accelerator: Accelerator, position: Position, number: int) -> None:
    if accelerator.is_main_process:
        _say(
            f"{signal.Signals(number).name}: saved at step {position.steps_done} and stopped; the same command goes on"
        )
    accelerator.end_training()
    raise StopRequested(128 + number)


def _step(run: _Run, window: Sequence[Batch], position: Position) -> tuple[Position, dict[str, float]]:
    """One optimizer step over a window of micro-batches; returns the next position and what to log."""
    run.wrapped.train()
    rate = run.trained.schedule.lr
    counts = _global_counts(run.accelerator, window)
    values = _mean_losses(run, backward_window(run, window, counts), counts)
    values |= {"gradient_norm": _clipped_norm(run), "lr": rate}
    skipped = position.skipped
    finite = all(math.isfinite(value) for value in values.values())
    if finite or run.trained.scaler is not None:  # the scaler skips a step by itself, and then scales less
        run.optimizer.step()
    if finite:
        run.trained.schedule.step()
        if run.trained.average is not None:
            run.trained.average.update(_trainable(run.model))
    elif not _only_overflow(run, values):
        skipped += 1
        _refuse_nonfinite(run, window, replace(position, skipped=skipped), values)
    run.optimizer.zero_grad(set_to_none=True)
    following = DataPosition(position.epoch, position.step).next(run.train.steps)
    done = position.steps_done + 1
    return replace(position, epoch=following.epoch, step=following.step, steps_done=done, skipped=skipped), values


def backward_window(run: _Run, window: Sequence[Batch], counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Accumulate the gradients of a window; returns this process's sum of each named loss.

    Where the contrastive loss has to see several micro-batches, embeddings are computed twice: once without
    gradients to form the loss over all of them, then each micro-batch again to carry its share back.
    """
    accelerator, config = run.accelerator, run.config
    two_passes = config.fit.negatives == "window" and len(window) > 1
    cached = _cached_alignment(run, window, counts) if two_passes else None
    found: dict[str, Tensor] = {} if cached is None else {ALIGN: cached.total}
    for i, batch in enumerate(window):
        last = i == len(window) - 1
        with nullcontext() if last else accelerator.no_sync(run.wrapped):
            if cached is not None:
                cached.random[i].restore()
            output = _forward(run, batch)
            sums: dict[str, LossSum] = dict(cogaze_losses(output, batch, run.class_weights, config.objective))
            if cached is None:
                sums[ALIGN] = _aligned(output, batch)
            total = weighted_total(sums, counts, config.objective, accelerator.num_processes)
            if cached is not None:
                total = total + cached.carried(i, output, last)
            accelerator.backward(total)
        for name, loss in sums.items():
            found[name] = found.get(name, torch.zeros((), device=total.device)) + loss.total.detach()
    return found


def _forward(run: _Run, batch: Batch) -> CoGazeOutput:
    with run.accelerator.autocast():
        output: CoGazeOutput = run.wrapped(**batch.model_inputs())
    return output


def _aligned(output: CoGazeOutput, batch: Batch) -> LossSum:
    return align_loss(output.visual_embed, output.report_embed, output.logit_scale, batch, gather=True)


@dataclass(frozen=True, eq=False)
class _RandomState:
    """The generators that dropout draws from, so that a second pass drops the same."""

    cpu: Tensor
    device: Tensor | None

    @classmethod
    def now(cls) -> "_RandomState":
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device)


@dataclass(frozen=True, eq=False)
class _CachedAlignment:
    """The contrastive loss of a window and its gradients by micro-batch, to be carried back one at a time."""

    total: Tensor
    random: list[_RandomState]
    image_grads: list[Tensor]
    report_grads: list[Tensor]
    scale_grad: Tensor

    def carried(self, i: int, output: CoGazeOutput, last: bool) -> Tensor:
        """A scalar whose gradient is the cached one of micro-batch i; the scale's goes with the last."""
        carried = (output.visual_embed.float() * self.image_grads[i]).sum()
        carried = carried + (output.report_embed.float() * self.report_grads[i]).sum()
        return carried + output.logit_scale * (self.scale_grad if last else 0.0)


def _cached_alignment(run: _Run, window: Sequence[Batch], counts: dict[str, Tensor]) -> _CachedAlignment:
    outputs, random = [], []
    for batch in window:
        random.append(_RandomState.now())
        with torch.no_grad():
            outputs.append(_forward(run, batch))
    images = [output.visual_embed.float().requires_grad_() for output in outputs]
    reports = [output.report_embed.float().requires_grad_() for output in outputs]
    scale = outputs[0].logit_scale.detach().clone().requires_grad_()
    rows = torch.cat([batch.valid & batch.has_report for batch in window])
    joined = replace(
        window[0],
        valid=rows,
        has_report=torch.ones_like(rows),
        study_id=torch.cat([batch.study_id for batch in window]),
    )
    loss = align_loss(torch.cat(images), torch.cat(reports), scale, joined, gather=True)
    total = weighted_total({ALIGN: loss}, counts, run.config.objective, run.accelerator.num_processes)
    grads = torch.autograd.grad(total, [*images, *reports, scale])
    n = len(window)
    return _CachedAlignment(loss.total.detach(), random, list(grads[:n]), list(grads[n : 2 * n]), grads[-1])


def _global_counts(accelerator: Accelerator, window: Sequence[Batch]) -> dict[str, Tensor]:
    """What each loss counts, over the window and all processes."""
    own = [expected_counts(batch) for batch in window]
    names = list(own[0])
    summed = torch.stack([torch.stack([counts[name] for counts in own]).sum() for name in names])
    return dict(zip(names, accelerator.reduce(summed, "sum"), strict=True))


def _clipped_norm(run: _Run) -> float:
    clip = run.config.optim.clip_norm or float("inf")
    parameters = [parameter for _, parameter in _trainable(run.wrapped)]
    norm = run.accelerator.clip_grad_norm_(parameters, clip)
    return float(norm) if norm is not None else 0.0


def _mean_losses(run: _Run, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each loss over the global batch, and the weighted total; the same in every process."""
    total = run.accelerator.reduce(torch.stack(list(sums.values())), "sum")
    count = torch.stack([counts[name] for name in sums]).clamp(min=1)
    values = dict(zip(sums, (total / count).tolist(), strict=True))
    return {f"train/{name}": value for name, value in _with_total(run, values).items()}


def _with_total(run: _Run, losses: dict[str, float]) -> dict[str, float]:
    weights = run.config.objective.weights()
    return {**losses, "loss": sum(weights[name] * value for name, value in losses.items())}


def _only_overflow(run: _Run, values: Mapping[str, float]) -> bool:
    """Whether fp16 gradients overflowed under a finite loss, which the scaler answers by scaling less."""
    return run.trained.scaler is not None and math.isfinite(values["train/loss"])


def _refuse_nonfinite(run: _Run, window: Sequence[Batch], position: Position, values: Mapping[str, float]) -> None:
    """Say which step, what and whose samples; raises NonFiniteLossError where that is one step too many."""
    names = ", ".join(name for name, value in values.items() if not math.isfinite(value))
    keys = ", ".join(key for batch in window for key in batch.keys if key)
    allowed = run.config.fit.max_nonfinite
    message = f"step {position.steps_done + 1}: {names} not finite; samples of this process: {keys}"
    if position.skipped > allowed:
        raise NonFiniteLossError(
            f"{message}. Such steps so far: {position.skipped}, fit.max_nonfinite allows {allowed}; lower optim.lr, or "
            "look at these samples"
        )
    _say(f"{message}; skipped")


def _note(run: _Run, step: int, values: dict[str, float]) -> None:
    """Log named numbers after a step, to the tracker and to log.jsonl."""
    run.accelerator.log(values, step=step)
    if run.accelerator.is_main_process:
        with (run.config.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _shorten_log(path: Path, steps_done: int) -> None:
    """Drop what a run logged after the checkpoint from which it now goes on."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > steps_done:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


@torch.no_grad()
def _validate(run: _Run, stream: Stream) -> Validation:
    """Evaluate the validation split, each sample counted once."""
    run.wrapped.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    scores, labels, masks = [], [], []
    for batch in stream.epoch():
        output = _forward(run, batch)
        losses: dict[str, LossSum] = dict(cogaze_losses(output, batch, run.class_weights, run.config.objective))
        losses[ALIGN] = _aligned(output, batch)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.total
            counts[name] = counts.get(name, 0.0) + loss.count
        scores.append(output.vision_logits.float())
        labels.append(batch.labels)
        masks.append(batch.label_mask & batch.valid[:, None])
    accelerator = run.accelerator
    summed = accelerator.reduce(torch.stack(list(sums.values())), "sum")
    counted = accelerator.reduce(torch.stack(list(counts.values())), "sum").clamp(min=1)
    means = dict(zip(sums, (summed / counted).tolist(), strict=True))
    gathered = [accelerator.gather(torch.cat(parts)).cpu().numpy() for parts in (scores, labels, masks)]
    areas = dict(zip(CHEXPERT_LABELS, auroc(*gathered).tolist(), strict=True))
    metrics = {f"auroc/{name}": area for name, area in areas.items() if not math.isnan(area)}
    if metrics:
        metrics["auroc/mean"] = sum(metrics.values()) / len(metrics)
    return Validation(_with_total(run, means), metrics)


def _note_validation(run: _Run, position: Position, validation: Validation, due: bool) -> Position:
    """Log a validation and keep the best model; only validations that are due move the schedule."""
    loss, step = validation.losses["loss"], position.steps_done
    if due:
        run.trained.schedule.validated(loss)
    _note(run, step, {f"validate/{name}": value for name, value in (validation.losses | validation.metrics).items()})
    if run.accelerator.is_main_process:
        area = validation.metrics.get("auroc/mean", math.nan)
        _say(f"step {step}/{run.total_steps}: validation loss {loss:.4f}, mean AUROC {area:.3f}")
    if not loss < position.best_loss:
        return position
    position = replace(position, best_loss=loss)
    _export(run, run.config.out / "best", FitReport(position, run.total_steps, validation))
    return position


def _export(run: _Run, folder: Path, report: FitReport) -> None:
    """Write model, tokenizer and card as a folder that from_pretrained reads; with the moving average, its weights."""
    weights = get_model_state_dict(run.wrapped, options=WHOLE)
    if run.accelerator.is_main_process:
        average = run.trained.average
        unfinished = hidden(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        run.model.save_pretrained(unfinished, state_dict=weights | (average.shadow if average is not None else {}))
        run.tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(model_card(_facts(run, report)), encoding="utf-8")
        publish(unfinished, folder)
    run.accelerator.wait_for_everyone()


def _facts(run: _Run, report: FitReport) -> Facts:
    tables = [stream.dataset.table for stream in (run.train, run.validation) if stream is not None]
    config = run.config.resolved()
    towers = {name: _public(config["model"][name]) for name in ("vision", "text", "tokenizer")}
    return Facts(
        data={
            table.split: {
                "samples": len(table),
                "with gaze": int(table.has_gaze.sum()),
                "studies": len(set(table.study_id.tolist())),
            }
            for table in tables
        },
        course={
            "steps": report.position.steps_done,
            "steps skipped": report.position.skipped,
            "samples a step": run.config.plan.global_batch,
            "processes": run.accelerator.num_processes,
            "device": run.accelerator.device.type,
            "precision": run.accelerator.mixed_precision,
        },
        results={**report.validation.losses, **report.validation.metrics},
        versions=versions(),
        config={**config, "model": {**config["model"], **towers}},
    )


@contextmanager
def _progress(run: _Run, position: Position) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Show steps, loss and throughput on the main process's terminal, if it has one."""
    columns = (
        TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[loss]:.4f} loss, {task.fields[speed]:.1f} samples/s"),
    )  # fmt: skip
    shown = run.accelerator.is_main_process and CONSOLE.is_terminal
    with Progress(*columns, console=CONSOLE, disable=not shown, transient=True) as progress:
        done = position.steps_done
        task = progress.add_task("", total=run.total_steps, completed=done, loss=math.nan, speed=math.nan)
        yield lambda values: progress.update(task, advance=1, loss=values["train/loss"], speed=values["samples_per_s"])


def _asked(accelerator: Accelerator, asked: Sequence[int]) -> int:
    """The number of a signal that any process received, the same in all; 0 for none."""
    number = torch.tensor([asked[0] if asked else 0], device=accelerator.device)
    return int(accelerator.gather(number).max())


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying: the loop saves and leaves at the end of a step."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
