"""The training loop on Accelerate: one loop for any number of processes, resumable at any step."""

import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cogaze.checkpoint import Position, Trained, latest_checkpoint, load_checkpoint, save_checkpoint
from cogaze.config import RunConfig
from cogaze.data.collate import Batch, Collate, add_special_tokens, count_positives
from cogaze.data.dataset import ShardDataset, read_table
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

MODEL_FIELDS = (
    "view_position", "patch_mask", "context_input_ids", "context_mask", "has_context",
    "report_input_ids", "report_mask", "sentence_input_ids", "sentence_mask",
)  # fmt: skip


class NonFiniteLossError(RuntimeError):
    """A step's loss or gradient is NaN or infinite."""


@dataclass(frozen=True)
class FitReport:
    """Where a run ended and its last validation: losses and AUROC by name."""

    position: Position
    finished: bool
    losses: dict[str, float]
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Run:
    """Everything that one process of a run holds."""

    config: RunConfig
    accelerator: Accelerator
    model: nn.Module
    trained: Trained
    train: Stream
    validation: Stream | None
    class_weights: Tensor
    tokenizer: PreTrainedTokenizerBase
    total_steps: int

    @property
    def plain_model(self) -> CoGazeModel:
        """The model without the wrappers of DDP and torch.compile."""
        return self.accelerator.unwrap_model(self.model)


def fit(config: RunConfig, *, resume: bool = True) -> FitReport:
    """Train from a config, or go on from its latest checkpoint; returns where it ended.

    Raises ValueError before the first step where data, towers, config or checkpoint do not fit together,
    NonFiniteLossError where too many losses are not finite.
    """
    run = _prepare(config)
    position = _start(run, resume)
    with _stop_requested() as asked:
        position = _train(run, position, asked)
    losses, metrics = _validate(run)
    finished = position.steps_done >= run.total_steps
    if finished:
        _export(run, config.out / "model")
    run.accelerator.end_training()
    return FitReport(position, finished, losses, metrics)


def _prepare(config: RunConfig) -> _Run:
    accelerator = Accelerator(
        mixed_precision=config.fit.precision,
        log_with=None if config.fit.tracker == "none" else config.fit.tracker,
        project_dir=str(config.out),
    )
    set_seed(config.fit.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.model.tokenizer or config.model.text)
    added = add_special_tokens(tokenizer)
    model = _build_model(config, Vocabulary.of(tokenizer) if added or config.model.tokenizer else None)
    share = Share(accelerator.process_index, accelerator.num_processes, config.fit.accumulation)
    collate = Collate(tokenizer, config.collate)
    train = _stream(config, "train", model, collate, share, accelerator)
    validation = _stream(config, "validate", model, collate, replace(share, accumulation=1), accelerator)
    positives = count_positives(train.dataset.table.labels, config.collate.labels)
    weights = class_balanced_weights(positives.clamp(min=1), config.objective.class_beta).to(accelerator.device)
    optimizer = build_optimizer(model, config.optim)
    wrapped, optimizer = accelerator.prepare(torch.compile(model) if config.fit.compile else model, optimizer)
    total = config.fit.max_steps or config.fit.epochs * train.steps
    average = None
    if config.optim.ema_decay:
        average = MovingAverage(_trainable(model), config.optim.ema_decay)
    trained = Trained(wrapped, optimizer.optimizer, Schedule(optimizer.optimizer, config.optim, total), average)
    return _Run(config, accelerator, wrapped, trained, train, validation, weights, tokenizer, total)


def _build_model(config: RunConfig, vocabulary: Vocabulary | None) -> CoGazeModel:
    sizes = {
        name: getattr(config.model, name)
        for name in (
            "tuned_blocks", "hidden_size", "projector_hidden_size", "perceiver_depth", "perceiver_latents",
            "perceiver_heads", "perceiver_dim_head", "sentence_pooling", "mask_padding",
        )
    }  # fmt: skip
    return build_cogaze(
        config.model.vision,
        config.model.text,
        text_layers=config.model.text_layers or None,
        vocabulary=vocabulary,
        image_size=config.data.view.size_px,
        **sizes,
    )


def _stream(
    config: RunConfig, split: Any, model: CoGazeModel, collate: Collate, share: Share, accelerator: Accelerator
) -> Stream:
    table = read_table(config.shards, split)
    plan, data = config.plan, config.data
    if split == "train" and plan.global_batch > len(table):
        raise ValueError(
            f"plan.global_batch is {plan.global_batch}, but there are only {len(table)} training samples; lower it"
        )
    if split != "train":
        still = replace(data.view, rule="letterbox" if data.view.is_random else data.view.rule, flip=0.0, shift=0.0)
        plan, data = replace(plan, shuffle=False, gaze_ratio=1.0), replace(data, view=still)
    dataset = ShardDataset(config.shards, table, model.patch_grid, data)
    return Stream(dataset, collate, plan, share, config.workers, accelerator.device)


def _trainable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _start(run: _Run, resume: bool) -> Position:
    """Load the latest checkpoint, if any; write the resolved config beside the weights."""
    accelerator, config = run.accelerator, run.config
    resolved = config.resolved()
    latest = latest_checkpoint(config.out) if resume else None
    position = Position()
    if latest is not None:
        position = load_checkpoint(accelerator, latest, run.trained, resolved)
    if accelerator.is_main_process:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "config.json").write_text(json.dumps(resolved, indent=2, sort_keys=True) + "\n")
        _say(f"{accelerator.num_processes} processes, {run.total_steps} steps, at step {position.steps_done}")
    if config.fit.tracker != "none":
        accelerator.init_trackers("runs")
    return position


def _train(run: _Run, position: Position, asked: list[int]) -> Position:
    config, accelerator = run.config.fit, run.accelerator
    validate_every = config.validate_every or run.train.steps
    save_every = config.save_every or run.train.steps
    saved = position.steps_done
    while position.steps_done < run.total_steps:
        micro_batches = run.train.epoch(DataPosition(position.epoch, position.step))
        while window := list(islice(micro_batches, config.accumulation)):
            position = _step(run, window, position)
            if position.steps_done % validate_every == 0:
                position = _note_validation(run, position)
            stop = _anyone(accelerator, bool(asked)) or position.steps_done >= run.total_steps
            if stop or position.steps_done % save_every == 0:
                save_checkpoint(accelerator, run.config.out, run.trained, position, run.config.resolved(), config.keep)
                saved = position.steps_done
            if stop:
                if asked and accelerator.is_main_process:
                    _say(f"stopped on request at step {saved}; the same command goes on from there")
                return position
    return position


def _step(run: _Run, window: Sequence[Batch], position: Position) -> Position:
    """One optimizer step over a window of micro-batches; returns the next position."""
    started = time.perf_counter()
    run.model.train()
    counts = _global_counts(run.accelerator, window)
    sums = backward_window(run, window, counts)
    norm = _clipped_norm(run)
    skipped = position.skipped
    if math.isfinite(norm):
        run.trained.optimizer.step()
        run.trained.schedule.step()
        if run.trained.average is not None:
            run.trained.average.update(_trainable(run.plain_model))
    else:
        skipped += 1
        _refuse_nonfinite(run, window, position, skipped)
    run.trained.optimizer.zero_grad(set_to_none=True)
    _log_step(run, position, sums, counts, norm, time.perf_counter() - started)
    following = DataPosition(position.epoch, position.step).next(run.train.steps)
    return replace(
        position, epoch=following.epoch, step=following.step, steps_done=position.steps_done + 1, skipped=skipped
    )


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
        with nullcontext() if last else accelerator.no_sync(run.model):
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
    fields = {name: getattr(batch, name) for name in MODEL_FIELDS}
    with run.accelerator.autocast():
        output: CoGazeOutput = run.model(pixel_values=batch.pixel_values, **fields)
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
    parameters = [parameter for _, parameter in _trainable(run.model)]
    norm = run.accelerator.clip_grad_norm_(parameters, clip)
    return float(norm) if norm is not None else 0.0


def _refuse_nonfinite(run: _Run, window: Sequence[Batch], position: Position, skipped: int) -> None:
    keys = ", ".join(key for batch in window for key in batch.keys if key)
    message = f"step {position.steps_done}: the gradient is not finite; samples of this process: {keys}"
    if skipped > run.config.fit.max_nonfinite:
        raise NonFiniteLossError(
            f"{message}. {skipped} such steps, fit.max_nonfinite allows {run.config.fit.max_nonfinite}: lower "
            "optim.lr, or look at these samples"
        )
    _say(f"{message}; skipped")


def _log_step(
    run: _Run, position: Position, sums: dict[str, Tensor], counts: dict[str, Tensor], norm: float, seconds: float
) -> None:
    names = list(sums)
    total = run.accelerator.reduce(torch.stack([sums[name] for name in names]), "sum")
    values = {
        f"train/{name}": float(value / counts[name].clamp(min=1)) for name, value in zip(names, total, strict=True)
    }
    weights = run.config.objective.weights()
    values["train/loss"] = sum(weights[name] * values[f"train/{name}"] for name in names)
    values |= {"lr": run.trained.schedule.lr, "gradient_norm": norm}
    values["samples_per_s"] = run.config.plan.global_batch / max(seconds, 1e-9)
    run.accelerator.log(values, step=position.steps_done)
    if run.accelerator.is_main_process:
        with (run.config.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": position.steps_done, **values}) + "\n")


@torch.no_grad()
def _validate(run: _Run) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean losses and AUROC over the validation split, each sample counted once."""
    assert run.validation is not None
    run.model.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    scores, labels, masks = [], [], []
    for batch in run.validation.epoch():
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
    losses_by_name = dict(zip(sums, (summed / counted).tolist(), strict=True))
    weights = run.config.objective.weights()
    losses_by_name["loss"] = sum(weights[name] * losses_by_name[name] for name in sums)
    gathered = [accelerator.gather(torch.cat(parts)).cpu().numpy() for parts in (scores, labels, masks)]
    per_label = auroc(*gathered)
    metrics = {f"auroc/{name}": value for name, value in zip(CHEXPERT_LABELS, per_label, strict=True) if value == value}
    if metrics:
        metrics["auroc/mean"] = sum(metrics.values()) / len(metrics)
    return losses_by_name, metrics


def _note_validation(run: _Run, position: Position) -> Position:
    losses, metrics = _validate(run)
    loss = losses["loss"]
    run.trained.schedule.validated(loss)
    run.accelerator.log({f"validate/{name}": value for name, value in (losses | metrics).items()}, position.steps_done)
    if run.accelerator.is_main_process:
        auc = metrics.get("auroc/mean", float("nan"))
        _say(f"step {position.steps_done}/{run.total_steps}: validation loss {loss:.4f}, mean AUROC {auc:.3f}")
    if loss >= position.best_loss:
        return position
    _export(run, run.config.out / "best")
    return replace(position, best_loss=loss)


def _export(run: _Run, folder: Path) -> None:
    """Write model and tokenizer as a folder that from_pretrained reads; with the moving average, its weights."""
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        model, average = run.plain_model, run.trained.average
        if average is not None:
            average.swap(_trainable(model))
        model.save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)
        if average is not None:
            average.swap(_trainable(model))
    run.accelerator.wait_for_everyone()


def _anyone(accelerator: Accelerator, here: bool) -> bool:
    """Tell in every process alike whether it holds in any."""
    flag = torch.tensor(float(here), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


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
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
