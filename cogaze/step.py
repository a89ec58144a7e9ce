"""One optimizer step over a window of micro-batches: losses, their gradients, and what not finite ones lead to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from cogaze.checkpoint import Position
from cogaze.data.collate import Batch
from cogaze.data.plan import Position as DataPosition
from cogaze.log import say
from cogaze.objectives import ALIGN, Embeddings, weighted_total, with_total
from cogaze.run import Run, trainable


class NonFiniteLossError(RuntimeError):
    """A step's loss or gradient is NaN or infinite."""


def step(run: Run, window: Sequence[Batch], position: Position) -> tuple[Position, dict[str, float]]:
    """One optimizer step over a window of micro-batches; returns the next position and what to log."""
    run.wrapped.train()
    rate = run.trained.schedule.lr
    counts = global_counts(run, window)
    values = _mean_losses(run, backward_window(run, window, counts), counts)
    values |= {"gradient_norm": _clipped_norm(run), "lr": rate}
    skipped = position.skipped
    finite = all(math.isfinite(value) for value in values.values())
    if finite or run.trained.scaler is not None:  # the scaler skips a step by itself, and then scales less
        run.optimizer.step()
    if finite:
        run.trained.schedule.step()
        if run.trained.average is not None:
            run.trained.average.update(trainable(run.model))
    elif not _only_overflow(run, values):
        skipped += 1
        _refuse_nonfinite(run, window, replace(position, skipped=skipped), values)
    run.optimizer.zero_grad(set_to_none=True)
    following = DataPosition(position.epoch, position.step).next(run.train.steps)
    done = position.steps_done + 1
    return replace(position, epoch=following.epoch, step=following.step, steps_done=done, skipped=skipped), values


def backward_window(run: Run, window: Sequence[Batch], counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Accumulate the gradients of a window; returns this process's sum of each named loss.

    Where the contrastive loss has to see several micro-batches, embeddings are computed twice: once without
    gradients to form the loss over all of them, then each micro-batch again to carry its share back.
    """
    accelerator, objective = run.accelerator, run.objective
    two_passes = objective.contrasts and run.config.fit.negatives == "window" and len(window) > 1
    cached = _cached_alignment(run, window, counts) if two_passes else None
    found: dict[str, Tensor] = {} if cached is None else {ALIGN: cached.total}
    for i, batch in enumerate(window):
        last = i == len(window) - 1
        with nullcontext() if last else accelerator.no_sync(run.wrapped):
            if cached is not None:
                cached.random[i].restore()
            output = forward(run, batch)
            sums, seen = objective.losses(output, batch), objective.embeddings(output)
            if cached is None and objective.contrasts:
                sums[ALIGN] = objective.aligned([seen], [batch])
            total = weighted_total(sums, counts, objective.weights, accelerator.num_processes)
            if cached is not None:
                total = total + cached.carried(i, seen)
            accelerator.backward(total)
        for name, loss in sums.items():
            found[name] = found.get(name, torch.zeros((), device=total.device)) + loss.total.detach()
    return found


def windows(micro_batches: Iterator[Batch], accumulation: int) -> Iterator[list[Batch]]:
    """Group the micro-batches of an epoch into those of each global batch."""
    while window := list(islice(micro_batches, accumulation)):
        yield window


def forward(run: Run, batch: Batch) -> Any:
    """Call the prepared model in the run's precision."""
    with run.accelerator.autocast():
        return run.wrapped(**batch.model_inputs(run.model.batch_fields))


def detached(embeddings: Embeddings) -> dict[str, Tensor]:
    """Copy embeddings out of an output, the rest of which is then free to go."""
    return {name: part.detach().float() for name, part in embeddings.items()}


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
    """The contrastive loss of a window, and by micro-batch its gradients by name, to be carried back one at a time."""

    total: Tensor
    random: list[_RandomState]
    grads: list[dict[str, Tensor]]

    def carried(self, i: int, embeddings: Embeddings) -> Tensor:
        """A scalar whose gradient is the cached one of micro-batch i."""
        parts = [(part.float() * self.grads[i][name]).sum() for name, part in embeddings.items()]
        return torch.stack(parts).sum()


def _cached_alignment(run: Run, window: Sequence[Batch], counts: dict[str, Tensor]) -> _CachedAlignment:
    objective = run.objective
    seen, random = [], []
    for batch in window:
        random.append(_RandomState.now())
        with torch.no_grad():
            seen.append(detached(objective.embeddings(forward(run, batch))))
    leaves = [part.requires_grad_() for one in seen for part in one.values()]
    loss = objective.aligned(seen, window)
    total = weighted_total({ALIGN: loss}, counts, objective.weights, run.accelerator.num_processes)
    # The scale, which is one, is taken from the first: that of the others is not used.
    grads = iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    return _CachedAlignment(loss.total.detach(), random, [{name: next(grads) for name in one} for one in seen])


def global_counts(run: Run, window: Sequence[Batch]) -> dict[str, Tensor]:
    """What each loss counts, over the window and all processes."""
    own = [run.objective.counts(batch) for batch in window]
    names = list(own[0])
    summed = torch.stack([torch.stack([counts[name] for counts in own]).sum() for name in names])
    return dict(zip(names, run.accelerator.reduce(summed, "sum"), strict=True))


def _clipped_norm(run: Run) -> float:
    clip = run.config.optim.clip_norm or float("inf")
    # All of them: accelerate takes FSDP's norm over all shards only where these are the whole model's.
    norm = run.accelerator.clip_grad_norm_(run.wrapped.parameters(), clip)
    return float(norm) if norm is not None else 0.0


def _mean_losses(run: Run, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each loss over the global batch, and the weighted total; the same in every process."""
    total = run.accelerator.reduce(torch.stack(list(sums.values())), "sum")
    count = torch.stack([counts[name] for name in sums]).clamp(min=1)
    values = dict(zip(sums, (total / count).tolist(), strict=True))
    return {f"train/{name}": value for name, value in with_total(values, run.objective.weights).items()}


def _only_overflow(run: Run, values: Mapping[str, float]) -> bool:
    """Whether fp16 gradients overflowed under a finite loss, which the scaler answers by scaling less.

    Scaled down, not up, they do not overflow: what is not finite then has another cause.
    """
    scaler = run.trained.scaler
    return scaler is not None and scaler.get_scale() >= 1 and math.isfinite(values["train/loss"])


def _refuse_nonfinite(run: Run, window: Sequence[Batch], position: Position, values: Mapping[str, float]) -> None:
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
    say(f"{message}; skipped")
