"""Fine-tuning: the image side of a model, end to end, with one linear layer on the mean of its latents.

With several processes each takes its share of every batch, gradients are summed, and the numbers are those of one.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cogaze.evaluate.canvas import Canvas, CanvasReader
from cogaze.evaluate.classify import ClassWeights, IntArray, Targets, mean_auroc, scores_of
from cogaze.evaluate.encoder import Encoder
from cogaze.evaluate.metrics import FloatArray
from cogaze.evaluate.processes import Process, batches_of, rows_in_order
from cogaze.evaluate.records import EvalImage, Task


@dataclass(frozen=True)
class FinetuneConfig:
    """AdamW on all weights that an image passes, no schedule, no augmentation, no dropout.

    lr: of the model; head_lr: of the new layer. frozen_tower: leave the vision tower as it is, as CoGaze's published
    supervised code does. patience: epochs without a higher mean AUROC of the validation images before it stops; the
    weights of the best one are kept. class_weights: "balanced" weighs classes, or positives, by how rare they are.
    """

    lr: float = 5e-5
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    batch: int = 32
    epochs: int = 20
    patience: int = 4
    frozen_tower: bool = False
    class_weights: ClassWeights = "none"

    def __post_init__(self) -> None:
        for name in ("batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"finetune.{name} is {getattr(self, name)}, must be at least 1")
        if min(self.lr, self.head_lr) <= 0 or min(self.weight_decay, self.patience) < 0:
            raise ValueError("finetune.lr and head_lr must be positive, weight_decay and patience at least 0")
        if self.class_weights not in get_args(ClassWeights):
            raise ValueError(f"finetune.class_weights is {self.class_weights!r}, must be none or balanced")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their labels (N, C)."""

    images: Sequence[EvalImage] | Sequence[Canvas]
    labels: IntArray


class Classifier(nn.Module):
    """An encoder's image side and a linear layer on the mean of its latents."""

    def __init__(self, encoder: Encoder, classes: int, *, with_context: bool, frozen_tower: bool, seed: int) -> None:
        super().__init__()
        self.encoder, self.with_context = encoder, with_context
        self.model = encoder.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(encoder.model.config.hidden_size, classes)
        self.head.to(encoder.device)
        self.model.requires_grad_(True)
        self.model.text.requires_grad_(with_context)
        if frozen_tower:
            self.model.vision.tower.requires_grad_(False)

    def forward(self, canvases: Sequence[Canvas]) -> Tensor:
        """Images to logits (B, C)."""
        logits: Tensor = self.head(self.encoder.see(canvases, with_context=self.with_context).pooled.float())
        return logits

    @torch.no_grad()
    def logits(self, images: Sequence[EvalImage] | Sequence[Canvas], batch: int) -> FloatArray:
        """Return the logits (N, C) of images, which the processes share out."""
        read = _Pictures(images, self.encoder.reader)

        def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
            for rows in batches:
                yield {"logits": self(read[np.array(rows)])}

        found = rows_in_order(batches_of(len(images), batch), encode)
        return found["logits"].astype(np.float64)


@dataclass(frozen=True)
class Course:
    """How a fine-tuning went: mean AUROC of validate after each epoch, and which one was kept, from 0."""

    validation: tuple[float, ...]
    best_epoch: int


def finetune(
    classifier: Classifier, train: Labelled, validate: Labelled, task: Task, config: FinetuneConfig, seed: int
) -> Course:
    """Train a classifier; `validate` alone decides which epoch's weights it has in the end."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [one for one in classifier.model.parameters() if one.requires_grad], "lr": config.lr},
            {"params": list(classifier.head.parameters()), "lr": config.head_lr},
        ],
        weight_decay=config.weight_decay,
    )
    targets = Targets.of(train.labels, task, config.class_weights)
    best, best_epoch, scores = deepcopy(classifier.state_dict()), -1, list[float]()
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(train.labels))
        _train_epoch(classifier, optimizer, train, targets, [order[rows] for rows in _cut(len(order), config.batch)])
        logits = classifier.logits(validate.images, config.batch)
        scores.append(mean_auroc(scores_of(logits, task), validate.labels))
        if scores[-1] > max(scores[:-1], default=-1.0):
            best, best_epoch = deepcopy(classifier.state_dict()), epoch
        if epoch - best_epoch > config.patience:
            break
    classifier.load_state_dict(best)
    return Course(tuple(scores), best_epoch)


def _cut(count: int, size: int) -> list[slice]:
    return [slice(rows.start, rows.stop) for rows in batches_of(count, size)]


def _train_epoch(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    train: Labelled,
    targets: Targets,
    batches: Sequence[IntArray],
) -> None:
    """Take a step for each batch of rows; each process has its part of it."""
    process = Process.current()
    own = [rows[process.rank :: process.count] for rows in batches]
    pictures = DataLoader(
        _Pictures(train.images, classifier.encoder.reader),
        sampler=own,
        batch_size=None,
        num_workers=classifier.encoder.workers,
        collate_fn=_as_it_is,
    )
    for rows, mine, canvases in zip(batches, own, pictures, strict=True):
        optimizer.zero_grad()
        if len(mine):
            loss = targets[mine].loss_sum(classifier(canvases)) / max(targets[rows].count, 1.0)
            torch.autograd.backward(loss)
        _add_up_gradients(optimizer)
        optimizer.step()


def _add_up_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Sum gradients over the processes; a weight that the image does not pass has one in none of them."""
    if Process.current().count == 1:
        return
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    passed = torch.tensor([one.grad is not None for one in parameters], dtype=torch.int64, device=parameters[0].device)
    dist.all_reduce(passed, op=dist.ReduceOp.MAX)
    for parameter, used in zip(parameters, passed.tolist(), strict=True):
        if used:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)


class _Pictures(Dataset[list[Canvas]]):
    """Batches of images by their rows; holds no model, so that workers need none."""

    def __init__(self, images: Sequence[EvalImage] | Sequence[Canvas], reader: CanvasReader) -> None:
        self.images, self.reader = images, reader

    def __getitem__(self, rows: IntArray) -> list[Canvas]:
        return [self.reader.read(self.images[row]) for row in rows]


def _as_it_is(batch: list[Canvas]) -> list[Canvas]:
    return batch
