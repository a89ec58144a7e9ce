"""Checkpoints of a run: weights, optimizer, schedule, average, random states, position, config, versions.

A checkpoint is a folder of safetensors and json files. It is written under a hidden name and renamed after all
processes have written their part, so a folder with a final name is whole, however the run ended. All processes of
a run see the same folder.
"""

import json
import platform
import random
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from cogaze.optim import MovingAverage, Schedule
from gazeprep.shards import appearing_whole, remove_abandoned

FOLDER = "checkpoints"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
LOADED = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)  # _refuse_others is strict
PACKAGES = ("gazeprep-cogaze", "torch", "accelerate", "transformers", "numpy")
# What a run may go on with: how far and how often, not what it learns from. Processes times micro-batches may be
# cut otherwise, the global batch is the same.
MAY_CHANGE = frozenset(
    f"fit.{name}"
    for name in (
        "epochs", "max_steps", "accumulation", "validate_every", "save_every", "keep", "max_nonfinite", "compile",
        "tracker",
    )
)  # fmt: skip


ADDED = {"optim.decoder_times": 1.0}  # what runs had before a value was there


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step of an epoch, steps done in all, skipped steps, the best validation loss.

    corrupt: training samples of all processes that were skipped as they could not be read, anew in each epoch.
    to_validate: a signal came before the validation that belongs to this step, which the resumed run makes up for.
    """

    epoch: int = 0
    step: int = 0
    steps_done: int = 0
    skipped: int = 0
    best_loss: float = float("inf")
    corrupt: int = 0
    to_validate: bool = False


@dataclass(frozen=True, eq=False)
class Trained:
    """What a checkpoint saves and restores; `average` without a moving average and `scaler` without fp16 are None."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: MovingAverage | None
    scaler: torch.amp.GradScaler | None = None


def checkpoint_path(out: Path, position: Position) -> Path:
    """Return the folder of the checkpoint at a position."""
    return out / FOLDER / f"step-{position.steps_done:08d}"


def latest_checkpoint(out: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, None where there is none."""
    found = sorted((out / FOLDER).glob("step-[0-9]*"))
    return found[-1] if found else None


def save_checkpoint(
    accelerator: Accelerator, out: Path, trained: Trained, position: Position, config: dict[str, Any], keep: int
) -> Path:
    """Write a checkpoint with all processes and keep the last `keep`; returns its folder."""
    path = checkpoint_path(out, position)
    unfinished = hidden(path)
    if accelerator.is_main_process:
        for leftover in path.parent.glob(hidden(path.with_name("*")).name):
            shutil.rmtree(leftover)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_file(_random_state(), unfinished / f"random-{accelerator.process_index}.safetensors")
    weights: dict[str, Any] = get_model_state_dict(trained.model, options=WHOLE)
    moments: dict[str, Any] = get_optimizer_state_dict(trained.model, trained.optimizer, options=WHOLE)
    if accelerator.is_main_process:
        _save_main(unfinished, weights, moments, trained)
        _save_state(unfinished, moments, trained, position, config, accelerator.num_processes)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        publish(unfinished, path)
        for old in sorted(path.parent.glob("step-[0-9]*"))[:-keep]:
            discard(old)
    accelerator.wait_for_everyone()
    return path


def hidden(path: Path) -> Path:
    """Return the name under which a folder or a file is written, or a folder removed."""
    return path.with_name(f".{path.name}.unfinished")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a name that appears only when it is whole, and on the disk; what a kill left of it goes."""
    remove_abandoned(path)
    with appearing_whole(path) as unfinished:
        unfinished.write_bytes(data)


def publish(unfinished: Path, path: Path) -> None:
    """Give a folder its final name, in place of one that has it."""
    replaced = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.replace(replaced)
    unfinished.replace(path)
    shutil.rmtree(replaced, ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a folder, which loses its name before its first file."""
    shutil.rmtree(path.replace(hidden(path)))


def load_checkpoint(accelerator: Accelerator, path: Path, trained: Trained, config: dict[str, Any]) -> Position:
    """Restore everything from a checkpoint; raises ValueError where it was written under another config.

    Random states are restored where the number of processes is the same, else each process draws anew.
    """
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    different = differences(state["config"], config)
    if different:
        raise ValueError(
            f"checkpoint {path.name} was written with {'; '.join(different)}. Go on with its own config (config.json "
            "beside the checkpoints), or start another run in another out"
        )
    weights: dict[str, Any] = load_file(path / "model.safetensors")
    _refuse_others(path, weights, trained.model)
    set_model_state_dict(trained.model, weights, options=LOADED)
    moments: dict[str, Any] = {
        "state": _nested(load_file(path / "optimizer.safetensors")),
        "param_groups": state["optimizer_groups"],
    }
    set_optimizer_state_dict(trained.model, trained.optimizer, moments, options=WHOLE)
    trained.schedule.load_state_dict(state["schedule"])
    if trained.average is not None:
        trained.average.load(load_file(path / "average.safetensors"))
    if trained.scaler is not None:
        trained.scaler.load_state_dict(state["scaler"])
    position = Position(**state["position"])
    if state["processes"] == accelerator.num_processes:
        _restore_random(load_file(path / f"random-{accelerator.process_index}.safetensors"))
    else:
        set_seed(config["fit"]["seed"] + position.steps_done, device_specific=True)
    return position


def _refuse_others(path: Path, weights: dict[str, Any], model: nn.Module) -> None:
    """Raise ValueError where weights are not exactly a model's; a part may keep frozen ones out of its state."""
    wrong = sorted(weights.keys() ^ {name.removeprefix("module.") for name in model.state_dict()})
    if wrong:
        raise ValueError(
            f"checkpoint {path.name} has {len(wrong)} weights too few or too many, such as {wrong[0]}; start another"
            " run in another out"
        )


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name each value that differs between two configs, other than those that may change in the course of a run."""
    before, after = ADDED | _dotted(saved), ADDED | _dotted(now)
    names = sorted((before.keys() | after.keys()) - MAY_CHANGE)
    return [
        f"{name} {before.get(name)}, not {after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]


def _dotted(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _save_main(folder: Path, weights: dict[str, Any], moments: dict[str, Any], trained: Trained) -> None:
    save_file(apart(weights), folder / "model.safetensors")
    flat = {
        f"{parameter}|{moment}": tensor.contiguous()
        for parameter, state in moments["state"].items()
        for moment, tensor in state.items()
    }
    save_file(flat, folder / "optimizer.safetensors")
    if trained.average is not None:
        save_file(trained.average.shadow, folder / "average.safetensors")


def apart(weights: dict[str, Any]) -> dict[str, Tensor]:
    """Return weights of which none shares memory with another, as safetensors asks; tied ones are copied."""
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in weights.items():
        found[name] = tensor.clone() if tensor.data_ptr() in places else tensor.contiguous()
        places.add(tensor.data_ptr())
    return found


def _save_state(
    folder: Path,
    moments: dict[str, Any],
    trained: Trained,
    position: Position,
    config: dict[str, Any],
    processes: int,
) -> None:
    state = {
        "position": asdict(position),
        "schedule": trained.schedule.state_dict(),
        "optimizer_groups": moments["param_groups"],
        "scaler": trained.scaler.state_dict() if trained.scaler is not None else None,
        "processes": processes,
        "config": config,
        "versions": versions(),
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def _nested(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    nested: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        parameter, moment = name.rsplit("|", 1)
        nested.setdefault(parameter, {})[moment] = tensor
    return nested


def _random_state() -> dict[str, Tensor]:
    """The states of torch's, numpy's and Python's generators as integers, without pickle."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - libraries draw from the global generator
    assert kind == "MT19937"
    found = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": torch.tensor([float(value) for value in rest], dtype=torch.float64),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _restore_random(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))  # noqa: NPY002
    random.setstate((3, tuple(state["python"].tolist()), None))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
