"""Supervised tasks of a dataset, from its images to figures: classification at shares of the labels, segmentation."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from cogaze.evaluate.classify import (
    SHARES,
    ProbeConfig,
    choose_probe,
    labels_of,
    scores_of,
    share_of,
    shares_named,
)
from cogaze.evaluate.encoder import Encoder
from cogaze.evaluate.finetune import Classifier, FinetuneConfig, Labelled, finetune
from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.processes import Process, batches_of
from cogaze.evaluate.records import EvalImage, EvalSet
from cogaze.evaluate.results import Figure, Found, bootstrap
from cogaze.evaluate.scores import Intervals, Scored, classification_figures
from cogaze.evaluate.segment import (
    METRICS,
    MaskedFeatures,
    Overlap,
    SegmentConfig,
    mask_of,
    mask_on_canvas,
    overlaps,
    same_mask_overlap,
    shown_on_canvas,
    train_segmenter,
)
from cogaze.evaluate.zero_shot import groups_of

BATCH = 32  # images that are encoded at once
Keep = Callable[[str, Mapping[str, Tensor]], None]  # a name, and weights that were trained
STORED = ("patches", "latents", "mask", "shown")


@dataclass(frozen=True)
class SupervisedConfig:
    """What supervised tasks have in common.

    shares: percent of the training labels, 1, 10 and 100. with_context: age and sex, if they are known, steer the
    image. seed: of drawn shares and of training.
    """

    shares: tuple[str, ...] = tuple(SHARES)
    with_context: bool = False
    seed: int = 0
    intervals: Intervals = field(default_factory=Intervals)

    def __post_init__(self) -> None:
        shares_named(self.shares)


def parts_of(data: EvalSet) -> dict[str, tuple[EvalImage, ...]]:
    """Return train, validate and test; raises ValueError where a set lacks one, because nothing may stand in for it."""
    lacking = [name for name in ("train", "validate", "test") if not data.parts.get(name)]
    if lacking:
        raise ValueError(
            f"{data.name} has no {' and no '.join(lacking)} part; supervised tasks train on one, choose on another and "
            "are judged on a third: give split lists that have all three"
        )
    return {name: data.parts[name] for name in ("train", "validate", "test")}


# --- classification


def linear_probe(
    encoder: Encoder, data: EvalSet, shared: SupervisedConfig, config: ProbeConfig, keep: Keep | None = None
) -> Found:
    """Train a linear layer on frozen unit vectors of the images at each share of the labels, and judge it on test.

    The images are encoded once, shared out over the processes; the layer itself is trained by each of them alike.
    keep: takes each layer, of features less their `mean`, divided by their `scale`.
    """
    parts = parts_of(data)
    seen = {name: encoder.images(part, with_context=shared.with_context) for name, part in parts.items()}
    labels = {name: labels_of(part) for name, part in parts.items()}
    place = {image.id: row for row, image in enumerate(parts["train"])}
    found = []
    for share in shared.shares:
        rows = np.array([place[image.id] for image in share_of(data, share, shared.seed)])
        train = seen["train"][rows], labels["train"][rows]
        probe = choose_probe(train, (seen["validate"], labels["validate"]), data.task, config)
        scored = {name: scores_of(probe.logits(seen[name]), data.task) for name in ("validate", "test")}
        one = _judged(data, scored, shared.intervals)
        found.append(_named(one, f"linear probe, {share} %", {"images": len(rows), "penalty": probe.penalty}))
        if keep is not None:
            columns = {name: getattr(probe, name) for name in ("mean", "scale", "weight", "bias")}
            keep(f"linear_probe-{share}", {name: torch.from_numpy(column) for name, column in columns.items()})
    notes = {"optimiser": "L-BFGS, standardised features", "class weights": config.class_weights}
    return _together(found, notes | _context_note(shared))


def full_finetuning(
    encoder: Encoder, data: EvalSet, shared: SupervisedConfig, config: FinetuneConfig, keep: Keep | None = None
) -> Found:
    """Train the image side and a linear layer at each share of the labels, from the same weights, and judge it on test.

    The encoder is afterwards what it was before. keep: takes each whole model, `model.` and `head.`.
    """
    parts = parts_of(data)
    start = deepcopy(encoder.model.state_dict())
    trained = {name: parameter.requires_grad for name, parameter in encoder.model.named_parameters()}
    validate, found = Labelled(parts["validate"], labels_of(parts["validate"])), []
    try:
        for share in shared.shares:
            encoder.model.load_state_dict(start)
            images = share_of(data, share, shared.seed)
            classifier = Classifier(
                encoder,
                len(data.classes),
                with_context=shared.with_context,
                frozen_tower=config.frozen_tower,
                seed=shared.seed,
            )
            train = Labelled(images, labels_of(images))
            course = finetune(classifier, train, validate, data.task, config, shared.seed)
            scored = {
                name: scores_of(classifier.logits(parts[name], config.batch), data.task)
                for name in ("validate", "test")
            }
            one = _judged(data, scored, shared.intervals)
            said = {"images": len(images), "epochs": len(course.validation), "best epoch": course.best_epoch + 1}
            found.append(_named(one, f"fine-tuned, {share} %", said))
            if keep is not None:
                keep(f"fine_tuning-{share}", classifier.state_dict())
    finally:
        encoder.model.load_state_dict(start)
        for name, parameter in encoder.model.named_parameters():
            parameter.requires_grad_(trained[name])
    notes = {
        "optimiser": f"AdamW, rate {config.lr} and {config.head_lr} of the head, weight decay {config.weight_decay}",
        "vision tower": "frozen" if config.frozen_tower else "trained",
        "class weights": config.class_weights,
    }
    return _together(found, notes | _context_note(shared))


def _judged(data: EvalSet, scores: dict[str, FloatArray], intervals: Intervals) -> Found:
    scored = {
        name: Scored(one, labels_of(data.parts[name]), groups_of(data.parts[name])) for name, one in scores.items()
    }
    return classification_figures(data.task, data.classes, scored["test"], scored["validate"], intervals)


def _named(found: Found, name: str, notes: Mapping[str, Any]) -> Found:
    figures = [replace(one, name=f"{one.name} ({name})") for one in found.figures]
    return Found(figures, {f"{key} ({name})": value for key, value in {**notes, **found.notes}.items()})


def _together(found: Sequence[Found], notes: Mapping[str, Any]) -> Found:
    return Found(
        [figure for one in found for figure in one.figures],
        {**notes, **{key: value for one in found for key, value in one.notes.items()}},
    )


def _context_note(shared: SupervisedConfig) -> dict[str, Any]:
    return {"context": "age and sex" if shared.with_context else "none"}


# --- segmentation


def segmentation(
    encoder: Encoder,
    data: EvalSet,
    shared: SupervisedConfig,
    config: SegmentConfig,
    store: Path,
    keep: Keep | None = None,
) -> Found:
    """Train a decoder on frozen patches and latents at each share of the training images, and judge it on test.

    store: a new folder for what the frozen model makes of the images, which is removed in the end: float16, patches
    times their width times 2 bytes an image, and 2 bytes for each pixel of the canvas. All processes must see it: each
    encodes its share into it; the decoder is trained by each of them alike. keep: takes each decoder.
    """
    parts = parts_of(data)
    if not any(image.runs or image.boxes for image in parts["train"]):
        raise ValueError(f"no training image of {data.name} has a mask or a box; choose a set that has some")
    if store.exists():
        raise ValueError("the folder for features is there already; remove it or name another")
    together()
    try:
        seen = {
            name: stored_features(encoder, images, store / name, with_context=shared.with_context)
            for name, images in parts.items()
        }
        place = {image.id: row for row, image in enumerate(parts["train"])}
        found, empty = [], 0
        for share in shared.shares:
            rows = np.array([place[image.id] for image in share_of(data, share, shared.seed)])
            own = seen["train"].part(rows)
            made = train_segmenter(own, seen["validate"], encoder.reader.grid, config, encoder.device)
            overlap = overlaps(made.decoder, seen["test"], [made.threshold], config.batch, encoder.device)
            same = same_mask_overlap(own, seen["validate"], seen["test"], config.batch)
            figures = mask_figures(overlap, same, groups_of(parts["test"]), shared.intervals)
            notes = {"images": len(rows), "threshold, chosen on validate": made.threshold, "epoch": made.best_epoch + 1}
            found.append(_named(Found(figures), f"decoder, {share} %", notes))
            empty = int((overlap.truth == 0).sum())
            if keep is not None:
                keep(f"segmentation-{share}", made.decoder.state_dict())
    finally:
        together()
        if Process.current().is_main:
            shutil.rmtree(store, ignore_errors=True)
    notes = {"test images without a mask": empty, "Dice and IoU where both masks are empty": 1}
    return _together(found, notes | _context_note(shared))


def mask_figures(overlap: Overlap, same: Overlap, groups: npt.NDArray[Any], intervals: Intervals) -> list[Figure]:
    """Return the figures of predictions at one threshold, beside the mask without a pixel and one that is always so."""
    arrays = (overlap.predicted, overlap.common, overlap.truth)
    figures = []
    for name, metric in METRICS.items():

        def of_arrays(*columns: FloatArray, metric: Callable[[Overlap], float] = metric) -> float:
            return metric(Overlap(*columns))

        interval = bootstrap(of_arrays, arrays, groups, repeats=intervals.repeats, seed=intervals.seed)
        beside = {"all empty": metric(overlap.empty()), "mean training mask": metric(same)}
        figures.append(Figure.of(name, metric(overlap), interval, len(overlap.truth), beside))
    return figures


def stored_features(
    encoder: Encoder, images: Sequence[EvalImage], folder: Path, *, with_context: bool
) -> MaskedFeatures:
    """Encode images into arrays on disk, in a new folder, each process its share."""
    process = Process.current()
    batches = batches_of(len(images), BATCH)
    own = batches[process.rank :: process.count]
    seen = (_masked(encoder, [images[row] for row in rows], with_context=with_context) for rows in own)
    first = next(seen, None)
    if process.is_main:
        assert first is not None
        folder.mkdir(parents=True)
        for name in STORED:
            array = getattr(first, name)
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, (len(images), *array.shape[1:]))
    together()
    files = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in STORED}
    for rows, part in zip(own, chain([] if first is None else [first], seen), strict=True):
        for name, file in files.items():
            file[rows.start : rows.stop] = getattr(part, name)
    for file in files.values():
        file.flush()
    together()
    return MaskedFeatures(**files)


def _masked(encoder: Encoder, images: Sequence[EvalImage], *, with_context: bool) -> MaskedFeatures:
    """Encode one batch, with its masks."""
    seen = next(encoder.features(images, with_context=with_context, batch=len(images)))
    masks = [mask_of(image, *view.crop[2:]) for image, view in zip(images, seen.views, strict=True)]
    return MaskedFeatures(
        patches=seen.patches.cpu().to(torch.float16).numpy(),
        latents=seen.latents.cpu().to(torch.float16).numpy(),
        mask=np.stack([mask_on_canvas(mask, view) for mask, view in zip(masks, seen.views, strict=True)]),
        shown=np.stack([shown_on_canvas(view) for view in seen.views]),
    )


def together() -> None:
    """Wait for the other processes, if there are any."""
    if Process.current().count > 1:
        dist.barrier()


def kept_in(folder: Path) -> Keep:
    """Return what writes weights as safetensors into a folder, in the main process."""

    def keep(name: str, weights: Mapping[str, Tensor]) -> None:
        if Process.current().is_main:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({key: one.detach().cpu().clone() for key, one in weights.items()}, folder / f"{name}.safetensors")

    return keep
