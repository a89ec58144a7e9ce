"""Losses and AUROC over the validation split, and the best model by them."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cogaze.checkpoint import Position
from cogaze.data.loader import Stream
from cogaze.evaluate.metrics import auroc
from cogaze.export import export
from cogaze.log import note, say, tell_skipped
from cogaze.objectives import ALIGN, cogaze_losses, with_total
from cogaze.run import Run, trainable
from cogaze.step import aligned, forward
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
def validate(run: Run, stream: Stream) -> Validation:
    """Evaluate the validation split, each sample counted once; with a moving average of weights, evaluate that."""
    run.wrapped.eval()
    average = run.trained.average
    with average.in_place_of(trainable(run.model)) if average is not None else nullcontext():
        return _evaluate(run, stream)


def _evaluate(run: Run, stream: Stream) -> Validation:
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    scores, labels, masks = [], [], []
    for batch in stream.epoch():
        output = forward(run, batch)
        losses = cogaze_losses(output, batch, run.class_weights, run.config.objective)
        losses[ALIGN] = aligned(output, batch)
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
    if run.config.data.skip_corrupt:
        metrics["corrupt_samples"] = tell_skipped(run, stream)
    return Validation(with_total(means, run.config.objective), metrics)


def keep_best(run: Run, position: Position, validation: Validation, due: bool) -> Position:
    """Log a validation and keep the best model; only validations that are due move the schedule."""
    loss, step = validation.losses["loss"], position.steps_done
    if due:
        run.trained.schedule.validated(loss)
    note(run, step, {f"validate/{name}": value for name, value in validation.values().items()})
    if run.accelerator.is_main_process:
        area = validation.metrics.get("auroc/mean", math.nan)
        say(f"step {step}/{run.total_steps}: validation loss {loss:.4f}, mean AUROC {area:.3f}")
    if not loss < position.best_loss:
        return position
    position = replace(position, best_loss=loss)
    export(run, run.config.out / "best", position, validation.values())
    return position
