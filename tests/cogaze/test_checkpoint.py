"""Checkpoints are whole or hidden, hold everything, and belong to one config."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from processes import clean_context
from torch import nn

from cogaze import checkpoint as checkpoint_module
from cogaze.checkpoint import (
    FOLDER,
    Position,
    Trained,
    differences,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from cogaze.optim import MovingAverage, OptimConfig, Schedule, build_optimizer

CONFIG = {"fit": {"seed": 0, "max_steps": 5}, "optim": {"lr": 0.1}}
OPTIM = OptimConfig(lr=0.1, schedule="plateau")


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(True)


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = build_optimizer(model, OPTIM)
    return Trained(model, optimizer, Schedule(optimizer, OPTIM, 5), MovingAverage(model.named_parameters(), 0.5))


def step(made):
    made.model(torch.randn(5, 3)).square().sum().backward()
    made.optimizer.step()
    made.optimizer.zero_grad()
    made.schedule.step()
    made.schedule.validated(random.random() + np.random.random())  # noqa: NPY002
    made.average.update(made.model.named_parameters())


def everything(made):
    return {**made.model.state_dict(), **{f"average {name}": value for name, value in made.average.shadow.items()}}


def test_all_that_a_step_depends_on_comes_back(accelerator, tmp_path):
    one = trained()
    for _ in range(3):
        step(one)
    position = Position(1, 2, 3, 1, 0.25)
    path = save_checkpoint(accelerator, tmp_path, one, position, CONFIG, keep=1)
    for _ in range(2):
        step(one)
    other = trained(seed=5)
    assert load_checkpoint(accelerator, path, other, CONFIG) == position
    for _ in range(2):
        step(other)
    assert one.schedule.state_dict() == other.schedule.state_dict()
    for name, tensor in everything(one).items():
        assert torch.equal(tensor, everything(other)[name]), name


def test_the_last_are_kept_and_nothing_unfinished_stays(accelerator, tmp_path):
    made = trained()
    step(made)
    (tmp_path / FOLDER / ".step-00000009.unfinished").mkdir(parents=True)
    for done in range(1, 5):
        save_checkpoint(accelerator, tmp_path, made, Position(steps_done=done), CONFIG, keep=2)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["step-00000003", "step-00000004"]
    assert latest_checkpoint(tmp_path).name == "step-00000004"


def test_without_checkpoint_there_is_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / FOLDER / ".step-00000009.unfinished").mkdir(parents=True)
    assert latest_checkpoint(tmp_path) is None


# The functions that a save calls, in order; a process is killed as it enters or has left each.
MOMENTS = ["_random_state", "get_model_state_dict", "save_file", "_save_main", "_save_state", "publish", "discard"]


def save_and_die(tmp_path, moment, after):
    AcceleratorState._reset_state(True)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    made = trained()
    step(made)
    save_checkpoint(accelerator, tmp_path, made, Position(steps_done=1), CONFIG, keep=1)
    function = getattr(checkpoint_module, moment)

    def deadly(*arguments, **options):
        result = function(*arguments, **options) if after else None
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(checkpoint_module, moment, deadly)
    step(made)
    save_checkpoint(accelerator, tmp_path, made, Position(steps_done=2), CONFIG, keep=1)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_a_save_the_previous_or_the_new_checkpoint_is_whole(accelerator, tmp_path, moment, after):
    process = clean_context().Process(target=save_and_die, args=(tmp_path, moment, after))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    published = moment == "discard" or (moment == "publish" and after)
    latest = latest_checkpoint(tmp_path)
    assert latest.name == f"step-0000000{2 if published else 1}"
    other = trained(seed=5)
    assert load_checkpoint(accelerator, latest, other, CONFIG).steps_done == (2 if published else 1)
    step(other)
    save_checkpoint(accelerator, tmp_path, other, Position(steps_done=3), CONFIG, keep=1)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["step-00000003"]


def test_killed_while_an_old_one_is_removed_it_is_not_seen(accelerator, tmp_path, monkeypatch):
    made = trained()
    step(made)
    save_checkpoint(accelerator, tmp_path, made, Position(steps_done=1), CONFIG, keep=1)

    def half(path):
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_module.discard(latest_checkpoint(tmp_path))
    assert latest_checkpoint(tmp_path) is None


def test_nothing_is_pickled(accelerator, tmp_path):
    made = trained()
    step(made)
    path = save_checkpoint(accelerator, tmp_path, made, Position(steps_done=1), CONFIG, keep=1)
    assert {one.suffix for one in path.iterdir()} == {".safetensors", ".json"}
    state = json.loads((path / "state.json").read_text())
    assert state["config"] == CONFIG
    assert {"torch", "accelerate", "transformers", "gazeprep-cogaze", "python"} <= state["versions"].keys()


def test_a_config_may_differ_in_how_far_it_goes_only():
    assert differences(CONFIG, {**CONFIG, "fit": {"seed": 0, "max_steps": 9}}) == []
    found = differences(CONFIG, {"fit": {"seed": 1, "max_steps": 5}, "optim": {"lr": 0.1, "clip_norm": 1.0}})
    assert found == ["fit.seed 0, not 1", "optim.clip_norm None, not 1.0"]


def test_other_processes_draw_other_numbers(accelerator, tmp_path):
    made = trained()
    step(made)
    path = save_checkpoint(accelerator, tmp_path, made, Position(steps_done=1), CONFIG, keep=1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "processes": 4}))
    saved = torch.get_rng_state()
    load_checkpoint(accelerator, path, made, CONFIG)
    assert not torch.equal(torch.get_rng_state(), saved)
