"""Optimizer groups, schedules against their formulas, the moving average."""

import math
from contextlib import suppress

import pytest
import torch
from torch import nn

from cogaze.optim import MovingAverage, OptimConfig, Schedule, build_optimizer, cosine_share


def test_a_decoder_s_rate_stays_its_multiple_however_far_the_plateau_goes():
    module = nn.ModuleDict({"decoder": nn.Linear(2, 2), "encoder": nn.Linear(2, 2)})
    config = OptimConfig(lr=5e-5, decoder_times=10.0, plateau_patience=0)
    optimizer = build_optimizer(module, config)
    schedule = Schedule(optimizer, config, 100)
    for _ in range(12):
        schedule.validated(1.0)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert len(rates) == 2
    assert rates[1] == pytest.approx(10 * rates[0])
    assert schedule.lr == pytest.approx(rates[0], rel=1e-6, abs=0)
    assert rates[0] < 1e-12


def model():
    made = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    made[2].requires_grad_(False)
    return made


def rates(config, steps, losses=None):
    """The rate of each step, with a validation after each if losses are given."""
    optimizer = build_optimizer(model(), config)
    schedule = Schedule(optimizer, config, steps)
    found = []
    for step in range(steps):
        found.append(schedule.lr)
        assert {group["lr"] for group in optimizer.param_groups} == {schedule.lr}
        schedule.step()
        if losses is not None:
            schedule.validated(losses[step])
    return found


def test_only_trained_matrices_decay():
    made = model()
    optimizer = build_optimizer(made, OptimConfig(weight_decay=0.5))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.5 for p in group["params"]}
    rest = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert decayed == {id(made[0].weight)}
    assert rest == {id(made[0].bias), id(made[1].weight), id(made[1].bias)}


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_warm_up_then_cosine():
    found = rates(OptimConfig(lr=2.0, schedule="cosine", warmup_share=0.2), 10)
    assert found[:2] == [1.0, 2.0]
    assert found[2:] == pytest.approx([1 + math.cos(math.pi * step / 8) for step in range(8)])
    assert cosine_share(10, 10, 0.2) == 0
    assert cosine_share(0, 1, 0.0) == 1


def test_constant_stays():
    assert rates(OptimConfig(lr=0.3, schedule="constant"), 3) == [0.3] * 3


def test_a_plateau_lowers_the_rate_after_its_patience():
    config = OptimConfig(lr=1.0, schedule="plateau", plateau_factor=0.5, plateau_patience=1)
    # The fourth validation is the second without a lower loss, the sixth the second after that.
    assert rates(config, 7, [3.0, 2.0, 2.5, 2.0, 2.0, 2.0, 2.0]) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "constant"])
def test_a_schedule_goes_on_from_its_state(schedule):
    config = OptimConfig(lr=1.0, schedule=schedule, plateau_patience=1, plateau_factor=0.5)
    losses = [3.0, 2.0, 2.5, 2.0, 2.0, 2.0]
    expected = rates(config, 6, losses)
    first = Schedule(build_optimizer(model(), config), config, 6)
    for loss in losses[:3]:
        first.step()
        first.validated(loss)
    second = Schedule(build_optimizer(model(), config), config, 6)
    second.load_state_dict(first.state_dict())
    found = []
    for loss in losses[3:]:
        found.append(second.lr)
        second.step()
        second.validated(loss)
    assert found == expected[3:]


def test_the_average_is_the_sum_of_what_was():
    weight = nn.Parameter(torch.tensor([8.0]))
    average = MovingAverage([("weight", weight)], 0.75)
    for value in (4.0, 0.0):
        weight.data.fill_(value)
        average.update([("weight", weight)])
    assert average.shadow["weight"].item() == 8 * 0.75**2 + 4 * 0.25 * 0.75
    other = MovingAverage([("weight", weight)], 0.75)
    other.load(average.shadow)
    average.shadow["weight"].zero_()
    assert other.shadow["weight"].item() == 5.25, "a copy, on the device of the weights"


def test_the_average_stands_in_for_the_weights_for_a_while():
    weight = nn.Parameter(torch.tensor([8.0]))
    average = MovingAverage([("weight", weight)], 0.5)
    weight.data.fill_(4.0)
    with suppress(ZeroDivisionError), average.in_place_of([("weight", weight)]):
        assert weight.item() == 8
        _ = 1 / 0  # an error inside
    assert weight.item() == 4
    assert average.shadow["weight"].item() == 8


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": math.nan}, {"ema_decay": 1.0}, {"warmup_share": 1.0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"optim.{next(iter(wrong))} is "):
        OptimConfig(**wrong)
