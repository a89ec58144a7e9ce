"""Losses and AUROC over the validation split, and the best model by them."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cogaze.checkpoint import Position
from cogaze.data.collate import Batch
from cogaze.data.loader import Stream
from cogaze.evaluate.metrics import auroc
from cogaze.export import export
from cogaze.log import note, say, tell_skipped
from cogaze.losses.sums import LossSum
from cogaze.objectives import ALIGN, with_total
from cogaze.run import Run, trainable
from cogaze.step import detached, forward, windows
from gazeprep.schema import CHEXPERT_LABELS


@dataclass(frozen=True)
class Validation:
    """Mean losses and AUROC over the validation split, by name; both empty where there was none."""

    losses: dict[str, float]
    metrics: dict[str, float]

    def values(self) -> dict[str, float]:
        """Return both by name."""
        return self.losses | self.metrics


@torch.no_grad()
def validate(run: Run, stream: Stream, stop: Callable[[], int]) -> Validation | None:
    """Evaluate the validation split, each sample counted once; with a moving average of weights, evaluate that.

    Returns None where stop(), which all processes ask before each batch, is true before the end.
    """
    run.wrapped.eval()
    average = run.trained.average
    with average.in_place_of(trainable(run.model)) if average is not None else nullcontext():
        return _evaluate(run, stream, stop)


@dataclass(frozen=True, eq=False)
class _Tally:
    """What this process has seen of the split: sums and counts of losses, scores (B, labels), if any, and truths."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    scores: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)

    def add(self, name: str, loss: LossSum) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + loss.total
        self.counts[name] = self.counts.get(name, 0.0) + loss.count

    def score(self, scores: Tensor | None, batch: Batch) -> None:
        if scores is None:
            return
        self.scores.append(scores.float())
        self.labels.append(batch.labels)
        self.masks.append(batch.label_mask & batch.valid[:, None])


def _evaluate(run: Run, stream: Stream, stop: Callable[[], int]) -> Validation | None:
    """Forward micro-batches of training's size; the contrastive loss sees a global batch, as in training."""
    objective, tally = run.objective, _Tally()
    for window in windows(stream.epoch(), run.config.fit.accumulation):
        seen = []
        for batch in window:
            if stop():
                return None
            output = forward(run, batch)
            for name, loss in objective.losses(output, batch).items():
                tally.add(name, loss)
            tally.score(objective.scores(output), batch)
            seen.append(detached(objective.embeddings(output)))
        if objective.contrasts:
            tally.add(ALIGN, objective.aligned(seen, window))
    return _summed_up(run, stream, tally)


def _summed_up(run: Run, stream: Stream, tally: _Tally) -> Validation:
    accelerator = run.accelerator
    summed = accelerator.reduce(torch.stack(list(tally.sums.values())), "sum")
    counted = accelerator.reduce(torch.stack(list(tally.counts.values())), "sum").clamp(min=1)
    means = dict(zip(tally.sums, (summed / counted).tolist(), strict=True))
    metrics = _areas(run, tally) if tally.scores else {}
    if run.config.data.skip_corrupt:
        metrics["corrupt_samples"] = tell_skipped(run, stream)
    return Validation(with_total(means, run.objective.weights), metrics)


def _areas(run: Run, tally: _Tally) -> dict[str, float]:
    """AUROC of each disease that has cases of both kinds, and their mean."""
    parts = (tally.scores, tally.labels, tally.masks)
    gathered = [run.accelerator.gather(torch.cat(part)).cpu().numpy() for part in parts]
    areas = dict(zip(CHEXPERT_LABELS, auroc(*gathered).tolist(), strict=True))
    metrics = {f"auroc/{name}": area for name, area in areas.items() if not math.isnan(area)}
    if metrics:
        metrics["auroc/mean"] = sum(metrics.values()) / len(metrics)
    return metrics


def keep_best(run: Run, position: Position, validation: Validation, due: bool) -> Position:
    """Log a validation and keep the best model; only validations that are due move the schedule."""
    loss, step = validation.losses["loss"], position.steps_done
    if due:
        run.trained.schedule.validated(loss)
    note(run, step, {f"validate/{name}": value for name, value in validation.values().items()})
    if run.accelerator.is_main_process:
        area = validation.metrics.get("auroc/mean")
        also = "" if area is None else f", mean AUROC {area:.3f}"
        say(f"step {step}/{run.total_steps}: validation loss {loss:.4f}{also}")
    if not loss < position.best_loss:
        return position
    position = replace(position, best_loss=loss)
    export(run, run.config.out / "best", position, validation.values())
    return position
