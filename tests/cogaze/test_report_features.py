"""Stored features of runs that write reports: some of a split's samples, the tower of a pretrained model."""

import errno
import importlib.util
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from runs import log
from safetensors.torch import load_file, save_file
from writing import learn, report_config

from cogaze.data.dataset import read_table
from cogaze.data.targets import TargetConfig, chosen, read_targets
from cogaze.data.transforms import ViewConfig
from cogaze.frozen import cache_features, origin_of, stored_tokens
from cogaze.models.report import pretrained_encoder
from cogaze.models.vision import VisionTower, load_vision_tower

PIPELINE = Path(__file__).parents[2] / "pipelines" / "cache_features.py"
TARGET = TargetConfig(sections=("findings", "impression"), max_tokens=40)


@pytest.fixture
def config(parts, shards, tmp_path):
    """Return config(name, changes): a run of two steps on one image of each study, from features of the test's own."""
    settings = {"target": TARGET, "plan.global_batch": 4, "fit.max_steps": 2}

    def made(name="run", changes=None, model=parts):
        own = {**settings, "data.features": str(tmp_path / "features"), **(changes or {})}
        return report_config(model, shards, tmp_path / name, own)

    return made


def cached(config, *splits):
    AcceleratorState._reset_state(True)
    return cache_features(config, splits)


@pytest.fixture(scope="module")
def tuned(parts, tmp_path_factory):
    """Parts whose tower has learned: its weights are the model's alone, no longer those of the tower it began as."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(parts, folder, dirs_exist_ok=True)
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights[max(name for name in weights if name.startswith("vision.tower.") and name.endswith("bias"))] += 0.5
    save_file(weights, path, {"format": "pt"})
    return folder


def test_any_samples_of_a_split_find_their_own_tokens(config, shards):
    """A sample's record is asked by its key at each read, so one that is found at another's place is damaged."""
    one = config()
    table, vision = read_table(shards, "train"), pretrained_encoder(one.model.encoder).vision
    cached(one)
    whole = stored_tokens(one, table, one.data.view, vision)
    rows = np.array([7, 1, 12, len(table) - 1])
    some = stored_tokens(one, chosen(table, rows), one.data.view, vision)
    for place, row in enumerate(rows.tolist()):
        assert np.array_equal(some.read(place), whole.read(row))


def test_a_run_on_some_of_the_samples_learns_from_tokens_what_it_learns_from_images(config, shards, tuned, monkeypatch):
    table = read_table(shards, "train")
    assert len(read_targets(shards, table, TARGET).table) < len(table)
    plain, stored = config("plain", {"data.features": ""}, tuned), config("stored", model=tuned)
    cached(stored)
    learn(plain)
    monkeypatch.setattr(VisionTower, "forward", lambda self, pixels: pytest.fail("the tower ran"))
    learn(stored)
    expected, found = log(plain), log(stored)
    for step in expected:
        assert found[step]["train/loss"] == pytest.approx(expected[step]["train/loss"], rel=2e-3)


def test_tokens_of_a_tower_that_pretraining_left_as_it_was_serve_both(config, parts, shards):
    one = config()
    raw = VisionTower(load_vision_tower(str(parts / "towers" / "vision")), one.data.view.size_px)
    assert origin_of(one, one.data.view, raw) == origin_of(
        one, one.data.view, pretrained_encoder(one.model.encoder).vision
    )


def test_tokens_of_another_tower_are_refused_with_a_command_that_makes_them(config, tuned):
    cached(config())
    learned = config("tuned", model=tuned)
    with pytest.raises(
        ValueError, match=r"tower\.weights \w+, not \w+\); run pipelines/cache_features\.py with this run's options, or"
    ):
        learn(learned)
    cached(learned)
    learn(learned)


def test_what_is_lacking_of_a_split_is_told_with_the_option_that_stores_it(config, shards):
    one = config()
    cached(one)
    vision = pretrained_encoder(one.model.encoder).vision
    with pytest.raises(ValueError, match=r"shards of split test, .* with the run's options again and --splits test"):
        stored_tokens(one, read_table(shards, "test"), one.data.view, vision)


def test_a_pretrained_model_s_random_view_is_not_the_run_s_to_change(config):
    one = config()
    random = replace(one, data=replace(one.data, view=ViewConfig("random_resized_crop", one.data.view.size_px)))
    with pytest.raises(
        ValueError, match=r"cannot be stored; it is the pretrained model's, so set data\.features to ''"
    ):
        cached(random)


@pytest.fixture
def command(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("cache_features", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*options, fails=None):
        if fails is not None:
            monkeypatch.setattr(module, "cache_features", Mock(side_effect=fails))
        AcceleratorState._reset_state(True)
        monkeypatch.setattr(sys, "argv", ["cache_features.py", *map(str, options)])
        return module.main(), capsys.readouterr().err

    return call


def test_the_command_takes_a_pretrained_model_or_all_of_a_run_s_options(config, command, tuned, shards, tmp_path):
    stored = ["--model", tuned / "model", "--shards", shards, "--data.features", tmp_path / "features"]
    code, said = command(*stored)
    assert (code, said.count("written now")) == (0, 1)
    (tmp_path / "run.yaml").write_text(
        "decoder: {kind: llm, name: not/there}\nfrozen: encoder\ntarget: {max_tokens: 9}\n"
    )
    code, said = command("--config", tmp_path / "run.yaml", *stored, "--out", tmp_path / "run")
    assert code == 0
    assert " 0 written now" in said
    learn(config("tuned", {"fit.max_steps": 1}, tuned))


def test_the_command_says_in_one_line_that_a_disk_is_full(command, parts, shards):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/somebody/train-00000.npy")
    code, said = command("--model", parts / "model", "--shards", shards, fails=full)
    assert code == 1
    assert said.startswith("cache_features: ")
    assert "No space left" in said
    assert "somebody" not in said
    assert said.count("\n") == 1


def test_the_command_says_what_is_no_model(command, shards, tmp_path):
    code, said = command("--model", tmp_path, "--shards", shards)
    assert code == 1
    assert said.startswith("cache_features: the model's folder has no readable run.json")
