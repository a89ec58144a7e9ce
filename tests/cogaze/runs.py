"""Runs in this process and what they left: their log, weights and gradients, and when two of these are the same."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from cogaze import fit as fit_module
from cogaze import run as run_module
from cogaze import step as step_module
from cogaze.fit import fit
from cogaze.step import backward_window

RATE = 1e-3  # of run_config


def changed(part, path, value):
    """Return a config with one value replaced, at a path of field names."""
    return replace(part, **{path[0]: changed(getattr(part, path[0]), path[1:], value) if path[1:] else value})


def run(config):
    """Train in this process, as a fresh one would."""
    AcceleratorState._reset_state(True)
    return fit(config)


def log(config):
    """What was logged, by step, without what a clock says; {} for a step of which nothing was."""
    found = {}
    for line in (config.out / "log.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        values.pop("samples_per_s", None)
        assert not found.get(step, {}).keys() & values.keys(), "logged twice"
        found.setdefault(step, {}).update(values)
    return found


def weights(config):
    return load_file(config.out / "model" / "model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0, msg=name)


def assert_close(one, other):
    """Weights within a thousandth of a step, as root mean square.

    Not each weight: Adam divides by the size of the gradient, so that rounding alone moves by up to a whole step what
    has a true gradient of 0, such as the bias of attention's keys.
    """
    assert one.keys() == other.keys()
    differences = torch.cat([(other[name] - tensor).double().flatten() for name, tensor in one.items()])
    assert differences.square().mean().sqrt() <= 1e-3 * RATE


def assert_same_log(one, other):
    """Losses within 1e-5 and gradient norms within 1e-4, as rounding moves the latter more."""
    assert one.keys() == other.keys()
    for step, values in one.items():
        assert other[step].keys() == values.keys()
        for name, value in values.items():
            tolerance = 1e-4 if name == "gradient_norm" else 1e-5
            assert other[step][name] == pytest.approx(value, rel=tolerance, abs=tolerance), (step, name)


def gradients(config, step=0):
    """The gradient of one step of an untrained model, by parameter."""
    AcceleratorState._reset_state(True)
    prepared = run_module.prepare(config)
    prepared.wrapped.train()
    windows = fit_module._windows(prepared, replace(fit_module._start(prepared), step=step))
    window = next(windows)
    assert len(window) == config.fit.accumulation
    sums = backward_window(prepared, window, step_module.global_counts(prepared, window))
    return sums, {name: parameter.grad for name, parameter in run_module.trainable(prepared.model)}


def assert_same_gradients(big, other):
    """The same as a whole, and parameter by parameter; none is without."""
    assert all(gradient is not None for gradient in [*big.values(), *other.values()]), "a parameter without gradient"
    one, two = (torch.cat([found[name].flatten() for name in big]) for found in (big, other))
    assert torch.cosine_similarity(one, two, dim=0) >= 0.9999
    assert two.norm() == pytest.approx(one.norm().item(), rel=1e-4)
    for name, gradient in big.items():
        assert (other[name] - gradient).norm() <= 1e-4 * one.norm(), name


def write_gradients(config, step):
    torch.set_num_threads(1)
    found = gradients(config, step)[1]
    save_file(found, config.out.with_name(f"gradients-{AcceleratorState().process_index}"))
