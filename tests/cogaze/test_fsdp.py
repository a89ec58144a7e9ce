"""FSDP2 on two CPU processes: the same losses, checkpoints and model as with DDP."""

import json
import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from processes import in_processes
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cogaze import fit as fit_module
from cogaze import run as run_module
from cogaze.fit import fit
from cogaze.models.cogaze import CoGazeModel

RATE = 1e-3  # of run_config


class Sharded(Accelerator):
    """accelerate takes FSDP for DDP on CPU, so this one's state is set to what it is on GPUs."""

    version = 2

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": str(self.version)}
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=self.version, auto_wrap_policy="transformer_based_wrap"
        )
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP


class ShardedAsBefore(Sharded):
    version = 1


def train(config, sharded):
    AcceleratorState._reset_state(True)
    torch.set_num_threads(1)
    prepare = fit_module.prepare

    def prepare_and_look(config):
        run = prepare(config)
        sharded_now = [isinstance(weight, DTensor) for weight in run.wrapped.parameters()]
        assert all(sharded_now) if sharded else not any(sharded_now)
        assert isinstance(run.wrapped, FSDPModule) == sharded
        return run

    fit_module.prepare = prepare_and_look
    if sharded:
        run_module.Accelerator = Sharded
    fit(config)


def launch(config, *, sharded):
    in_processes(train, config, sharded)
    return config


def log(config):
    """What was logged by step, the validations of a part's end left out."""
    found = {}
    for line in (config.out / "log.jsonl").read_text().splitlines():
        values = json.loads(line)
        kept = {name: value for name, value in values.items() if name.startswith(("train/", "gradient_norm"))}
        found.setdefault(values["step"], {}).update(kept)
    return found


def assert_same_run(one, other):
    """Losses within 1e-5, gradient norms within 1e-4, weights within a thousandth of a step as root mean square."""
    logged, also = log(one), log(other)
    assert logged.keys() == also.keys() == {1, 2, 3, 4}
    for step, values in logged.items():
        norm = values.pop("gradient_norm")
        assert also[step].pop("gradient_norm") == pytest.approx(norm, rel=1e-4), step
        assert also[step] == pytest.approx(values, rel=1e-5, abs=1e-6), step
    weights, others = (load_file(config.out / "model" / "model.safetensors") for config in (one, other))
    assert weights.keys() == others.keys()
    differences = torch.cat([(others[name] - tensor).double().flatten() for name, tensor in weights.items()])
    assert differences.square().mean().sqrt() <= 1e-3 * RATE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")  # that nothing changes in place
@pytest.mark.parametrize("accumulation", [1, 2])
def test_sharded_saved_and_resumed_a_run_is_that_of_ddp(run_config, towers, accumulation):
    still = {"model.text": str(towers / "still"), "fit.accumulation": accumulation, "optim.clip_norm": 0.5}
    whole = launch(run_config("whole", {**still, "fit.max_steps": 4}), sharded=False)
    for steps in (2, 4):
        parts = launch(run_config("parts", {**still, "fit.max_steps": steps}), sharded=True)
    assert_same_run(whole, parts)
    CoGazeModel.from_pretrained(parts.out / "model")
    CoGazeModel.from_pretrained(parts.out / "best")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
def test_sharded_a_run_of_egma_is_that_of_ddp(egma_config):
    settings = {"fit.accumulation": 2, "fit.max_steps": 4}
    whole = launch(egma_config("whole", settings), sharded=False)
    assert_same_run(whole, launch(egma_config("parts", settings), sharded=True))


def train_as_before(config):
    AcceleratorState._reset_state(True)
    run_module.Accelerator = ShardedAsBefore
    with pytest.raises(ValueError, match=r"FSDP version 1 was asked for.*set fsdp_version to 2"):
        fit(config)


@pytest.mark.slow
def test_version_1_is_refused(run_config):
    in_processes(train_as_before, run_config("before"))
