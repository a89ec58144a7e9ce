"""Supervised classification: a linear probe on frozen features, at shares of the training labels.

Everything that is chosen, penalty and thresholds, is chosen on the validation images; the test images are scored once
for each share. Labels that are unknown count nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cogaze.evaluate.metrics import FloatArray, auroc
from cogaze.evaluate.records import UNKNOWN, EvalImage, EvalSet, Task

IntArray = npt.NDArray[np.int64]
SHARES = {"1": 0.01, "10": 0.1, "100": 1.0}  # percent
LISTED = {"1": "train_1", "10": "train_10", "100": "train"}
ClassWeights = Literal["none", "balanced"]


# --- which training images


def share_of(data: EvalSet, name: str, seed: int) -> tuple[EvalImage, ...]:
    """Return a share of the training images, one of SHARES: the dataset's own list, or a drawn one of `nested_rows`."""
    if LISTED[name] in data.parts:
        return tuple(data.parts[LISTED[name]])
    train = data.parts["train"]
    return tuple(train[row] for row in nested_rows(labels_of(train), SHARES[name], seed))


def nested_rows(labels: IntArray, share: float, seed: int) -> IntArray:
    """Draw a share of the rows, stratified by class, in their order; a smaller share lies in every larger one.

    labels: (N, C). A row's stratum is its rarest positive class, or none; each gives its share, the first row of each
    comes before all others.
    """
    positive = labels == 1
    rarity = np.where(positive, positive.sum(axis=0), len(labels) + 1)
    stratum = np.where(positive.any(axis=1), rarity.argmin(axis=1), -1)
    drawn = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for one in np.unique(stratum):
        own = drawn[stratum[drawn] == one]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
        place[own[0]] = 0.0
    order = drawn[np.argsort(place[drawn], kind="stable")]
    return np.sort(order[: max(1, round(share * len(labels)))])


def labels_of(images: Sequence[EvalImage]) -> IntArray:
    """Return the labels (N, C) of images: 1, 0 or UNKNOWN."""
    return np.array([image.labels for image in images], dtype=np.int64)


# --- what is minimised


@dataclass(frozen=True, eq=False)
class Targets:
    """Labels (N, C) as a loss takes them: values of 0 and 1, known (N, C), and each class's weight (C,).

    weight: of its images among the classes, or of its positives against its negatives.
    """

    task: Task
    values: Tensor
    known: Tensor
    weight: Tensor

    @classmethod
    def of(cls, labels: IntArray, task: Task, weights: ClassWeights) -> "Targets":
        """Read labels under a task; raises ValueError where an image of several classes has not exactly one."""
        known, positive = labels != UNKNOWN, labels == 1
        wrong = int(((positive.sum(axis=1) != 1) | ~known.all(axis=1)).sum()) if task == "multi-class" else 0
        if wrong:
            raise ValueError(f"{wrong} of {len(labels)} images have not exactly one known class of several")
        count = positive.sum(axis=0)
        weight = np.ones(labels.shape[1])
        if weights == "balanced" and task == "multi-class":
            weight = len(labels) / (labels.shape[1] * np.maximum(count, 1))
        elif weights == "balanced":
            weight = np.where(count > 0, (known.sum(axis=0) - count) / np.maximum(count, 1), 1.0)
        return cls(task, torch.from_numpy(positive.astype(np.float64)), torch.from_numpy(known), torch.tensor(weight))

    @property
    def count(self) -> float:
        """Return how many cells, or images of several classes, count."""
        return float(self.known[:, 0].sum() if self.task == "multi-class" else self.known.sum())

    def __getitem__(self, rows: IntArray) -> "Targets":
        return Targets(self.task, self.values[rows], self.known[rows], self.weight)

    def loss_sum(self, logits: Tensor) -> Tensor:
        """Sum over images of the cross-entropy: of the softmax over several classes, else of each known cell."""
        values, weight = self.values.to(logits), self.weight.to(logits)
        if self.task == "multi-class":
            return F.cross_entropy(logits, values.argmax(dim=1), weight=weight, reduction="sum")
        cells = F.binary_cross_entropy_with_logits(logits, values, pos_weight=weight, reduction="none")
        return (cells * self.known.to(logits)).sum()


def scores_of(logits: FloatArray, task: Task) -> FloatArray:
    """Return what is judged (N, C): the logits, or the log of the softmax over several classes."""
    if task != "multi-class":
        return logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def mean_auroc(scores: FloatArray, labels: IntArray) -> float:
    """Mean over the classes of which both kinds are known, which chooses on validation images.

    Raises ValueError where no class has both.
    """
    areas = auroc(scores, (labels == 1).astype(np.float64), labels != UNKNOWN)
    if np.isnan(areas).all():
        raise ValueError("no class has positive and negative validation images, so that nothing can be chosen by them")
    return float(np.nanmean(areas))


# --- the probe


@dataclass(frozen=True)
class ProbeConfig:
    """A linear probe: L-BFGS to convergence on standardised features, an L2 penalty that validation chooses.

    The problem is convex, so nothing of it depends on a seed. class_weights: "balanced" weighs classes, or positives,
    by how rare they are in the training share.
    """

    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    class_weights: ClassWeights = "none"
    iterations: int = 500

    def __post_init__(self) -> None:
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"probe.penalties is {list(self.penalties)}, must be one or more above 0")
        if self.class_weights not in get_args(ClassWeights):
            raise ValueError(f"probe.class_weights is {self.class_weights!r}, must be none or balanced")
        if self.iterations < 1:
            raise ValueError(f"probe.iterations is {self.iterations}, must be at least 1")


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map of standardised features: mean, scale (D,), weight (C, D), bias (C,)."""

    mean: FloatArray
    scale: FloatArray
    weight: FloatArray
    bias: FloatArray
    penalty: float

    def logits(self, features: FloatArray) -> FloatArray:
        """(N, D) -> (N, C)."""
        return np.asarray((features - self.mean) / self.scale @ self.weight.T + self.bias)


def fit_probe(features: FloatArray, targets: Targets, penalty: float, iterations: int) -> Probe:
    """Minimise the mean loss plus penalty / 2 times the squared weights, from 0; features (N, D)."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    inputs = torch.from_numpy((features - mean) / scale)
    classes = targets.values.shape[1]
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = targets.loss_sum(inputs @ weight.T + bias) / max(targets.count, 1.0)
        loss = loss + penalty / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    return Probe(mean, scale, weight.detach().numpy(), bias.detach().numpy(), penalty)


def choose_probe(
    train: tuple[FloatArray, IntArray], validate: tuple[FloatArray, IntArray], task: Task, config: ProbeConfig
) -> Probe:
    """Fit a probe for each penalty and return the one with the highest mean AUROC on validate, the stronger of equals.

    train, validate: features (N, D) and labels (N, C).
    """
    targets = Targets.of(train[1], task, config.class_weights)
    probes = [fit_probe(train[0], targets, one, config.iterations) for one in sorted(config.penalties, reverse=True)]
    scores = [mean_auroc(scores_of(probe.logits(validate[0]), task), validate[1]) for probe in probes]
    return probes[int(np.argmax(scores))]


def shares_named(names: Sequence[str]) -> Mapping[str, float]:
    """Return shares by name; raises ValueError on one that is not of SHARES."""
    unknown = [name for name in names if name not in SHARES]
    if unknown or not names:
        raise ValueError(f"shares are {list(names)}, must be one or more of {list(SHARES)}")
    return {name: SHARES[name] for name in names}
