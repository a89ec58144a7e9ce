"""Optimizer, learning-rate schedules and the moving average of weights."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

DECODER = "decoder."  # what the names of a decoder's parameters begin with


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule; the defaults are CoGaze's published ones.

    schedule: "plateau" multiplies the rate by plateau_factor after plateau_patience validations without a lower
    loss; "cosine" warms up over warmup_share of all steps and falls to 0; "constant". clip_norm: largest gradient
    norm, 0 for none. ema_decay: of the moving average of weights, which is then what is validated and exported, 0 for
    none. decoder_times: what multiplies the rate of a decoder that writes reports.
    """

    lr: float = 5e-5
    decoder_times: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    warmup_share: float = 0.1
    plateau_factor: float = 0.1
    plateau_patience: int = 10
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "decoder_times"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"optim.{name} is {getattr(self, name)}, must be positive")
        for name in ("ema_decay", "warmup_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}, must be at least 0 and below 1")
        for name, means in (("clip_norm", "no clipping"), ("weight_decay", "none"), ("plateau_patience", "none")):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optim.{name} is {getattr(self, name)}, must be at least 0, which means {means}")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"optim.plateau_factor is {self.plateau_factor}, must be above 0 and below 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas is {self.betas}, must each be at least 0 and below 1")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the parameters that are trained; matrices decay, vectors and scalars do not."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter to train; unfreeze a tower")
    groups = []
    for decodes, times in ((False, 1.0), (True, config.decoder_times)):
        own = [parameter for name, parameter in trained if name.startswith(DECODER) == decodes]
        groups += [
            {"params": [p for p in own if p.ndim >= 2], "weight_decay": config.weight_decay, "times": times},
            {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0, "times": times},
        ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas)
    set_rate(optimizer, config.lr)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of parameters its multiple of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("times", 1.0)


class Schedule:
    """The learning rate of every step; `step` after each optimizer step, `validated` after each validation."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int) -> None:
        self._optimizer, self._config, self._total = optimizer, config, max(total_steps, 1)
        self._done = 0
        self._plateau = None
        if config.schedule == "plateau":
            # Without eps, which would stop the groups' rates one by one.
            factor, patience = config.plateau_factor, config.plateau_patience
            self._plateau = ReduceLROnPlateau(optimizer, factor=factor, patience=patience, eps=0.0)
        self._apply()

    @property
    def lr(self) -> float:
        """The rate of the next step."""
        first = self._optimizer.param_groups[0]
        return float(first["lr"] / first.get("times", 1.0))

    def step(self) -> None:
        """Count one optimizer step."""
        self._done += 1
        self._apply()

    def validated(self, loss: float) -> None:
        """Take note of a validation loss."""
        if self._plateau is not None:
            self._plateau.step(loss)

    def state_dict(self) -> dict[str, float]:
        """Return plain numbers."""
        state: dict[str, float] = {"done": self._done}
        if self._plateau is not None:
            state |= {"best": float(self._plateau.best), "bad": self._plateau.num_bad_epochs, "lr": self.lr}
        return state

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from the numbers of state_dict."""
        self._done = int(state["done"])
        if self._plateau is not None:
            self._plateau.best, self._plateau.num_bad_epochs = state["best"], int(state["bad"])
            self._set(state["lr"])
        self._apply()

    def _apply(self) -> None:
        if self._config.schedule == "cosine":
            share = cosine_share(self._done, self._total, self._config.warmup_share)
            self._set(self._config.lr * share)

    def _set(self, lr: float) -> None:
        set_rate(self._optimizer, lr)


def cosine_share(step: int, total: int, warmup_share: float) -> float:
    """Share of the full rate at a step: linear warm-up, then half a cosine down to 0."""
    warmup = round(total * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))


class MovingAverage:
    """The exponential moving average of the trained weights."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], decay: float) -> None:
        self.decay = decay
        self.shadow = {name: parameter.detach().clone() for name, parameter in parameters}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Move the average towards the weights of this step."""
        for name, parameter in parameters:
            self.shadow[name].lerp_(parameter.detach(), 1 - self.decay)

    @contextmanager
    def in_place_of(self, parameters: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Let the weights be the average as long as the context lasts."""
        weights = dict(parameters)
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        _copy(self.shadow, weights)
        try:
            yield
        finally:
            _copy(kept, weights)

    def load(self, shadow: dict[str, Tensor]) -> None:
        """Go on from a saved average of the same parameters."""
        assert shadow.keys() == self.shadow.keys()
        for name, tensor in shadow.items():
            self.shadow[name].copy_(tensor)


@torch.no_grad()
def _copy(values: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
