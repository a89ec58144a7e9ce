"""Stored features: a run that reads them is the run that sees the images, and nothing else is ever read for them."""

import importlib.util
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from processes import in_processes
from safetensors.torch import load_file, save_file

from cogaze import frozen
from cogaze.data import features
from cogaze.data.dataset import CorruptSampleError, ShardDataset, read_table
from cogaze.data.features import Layout
from cogaze.data.plan import PlanItem
from cogaze.data.transforms import ViewConfig, view_draws, view_of
from cogaze.evaluate.control import deal_out
from cogaze.fit import fit
from cogaze.frozen import cache_features, stored_tokens
from cogaze.models.vision import VisionTower, load_vision_tower
from gazeprep.images import decode
from gazeprep.shards import ShardFolder

SHAPE = (17, 32)  # CLS and 4 x 4 patches of the tiny tower
PIPELINE = Path(__file__).parents[2] / "pipelines" / "cache_features.py"


@pytest.fixture
def config(run_config, tmp_path):
    """Return config(name, {...}): a run with a frozen tower that reads features from a folder of the test's own."""
    frozen_tower = {"model.tuned_blocks": 0, "data.features": str(tmp_path / "features")}
    return lambda name="run", changes=None: run_config(name, {**frozen_tower, **(changes or {})})


def fresh(function, *args):
    """Call as a fresh process would."""
    AcceleratorState._reset_state(True)
    return function(*args)


def losses(config):
    """Each named loss by step, of training and validation."""
    lines = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name.startswith(("train/", "validate/"))
    }


def stored(folder):
    """The bytes of every file of a cache but its lock, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def tower_of(config):
    return VisionTower(load_vision_tower(config.model.vision), config.data.view.size_px).eval()


def dataset_of(config, split="train"):
    """The split as a run reads it."""
    table, vision = read_table(config.shards, split), tower_of(config)
    return ShardDataset(
        config.shards, table, vision.patch_grid, config.data, stored_tokens(config, table, config.data.view, vision)
    )


def record_of(config, dataset, row):
    """The file of a row's tokens and the byte at which its record begins."""
    (folder,) = Path(config.data.features).iterdir()
    layout = Layout.of(dataset.table, SHAPE)
    shard = int(dataset.table.shard[row])
    return folder / layout.file(shard), len(layout.header(shard)) + int(layout.place[row]) * layout.record.itemsize


# --- what is stored


def test_the_file_is_a_numpy_array_of_what_the_tower_sees(config):
    one = config()
    report = fresh(cache_features, one, ["train"])
    (folder,) = report.folders
    vision, samples = tower_of(one), ShardFolder(one.shards)
    mean, std = (torch.tensor(values)[:, None, None] for values in (one.collate.pixel_mean, one.collate.pixel_std))
    seen = 0
    for shard, rows in samples.index.query("split == 'train'").groupby("shard"):
        records = np.load(folder / shard.replace(".tar", ".npy"), mmap_mode="r", allow_pickle=False)
        assert records["key"].tolist() == [key.encode() for key in rows["key"]]
        for record in records:
            picture = decode(samples.member(record["key"].decode(), "image"))
            told = json.loads(samples.member(record["key"].decode(), "json"))
            drawn = view_of(ViewConfig(size_px=56), told, view_draws(99, 99, "any")).draw(picture)
            pixels = (torch.from_numpy(drawn).float() / 255 - mean) / std
            with torch.no_grad():
                tokens = vision(pixels[None])[0]
            torch.testing.assert_close(torch.from_numpy(record["tokens"].copy()).float(), tokens, rtol=1e-3, atol=1e-3)
            seen += 1
    assert report.written == report.samples == seen > 8
    assert report.size_bytes == sum(path.stat().st_size for path in folder.rglob("*.npy"))


def launched_cache(config):
    torch.set_num_threads(1)
    fresh(cache_features, config)


def test_two_processes_write_what_one_does(config, tmp_path):
    one, two = (config(name, {"data.features": str(tmp_path / name)}) for name in ("one", "two"))
    (folder,) = fresh(cache_features, one).folders
    in_processes(launched_cache, two)
    assert stored(tmp_path / "two" / folder.name) == stored(folder)


def test_killed_it_goes_on_and_ends_with_the_same_bytes(config, tmp_path, monkeypatch):
    whole, killed = (config(name, {"data.features": str(tmp_path / name)}) for name in ("whole", "killed"))
    (folder,) = fresh(cache_features, whole).folders
    left = tmp_path / "killed" / folder.name
    in_child(lambda: killed_at_second_shard(killed, monkeypatch))
    names = [path.name for path in (left / "train").iterdir()]
    assert sorted(names) == [".train-00001.npy.unfinished", "train-00000.npy"]
    with pytest.raises(ValueError, match=r"lacks \d+ of the \d+ shards of split train, the first train/train-00001"):
        dataset_of(killed)
    report = fresh(cache_features, killed)
    assert report.written == report.samples - np.load(left / "train/train-00000.npy").shape[0]
    assert stored(left) == stored(folder)
    assert fresh(cache_features, killed).written == 0


def killed_at_second_shard(config, monkeypatch):
    finished = []

    def to_disk(path):
        finished.append(path)
        if len(finished) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(features, "to_disk", to_disk)
    launched_cache(config)


def in_child(function):
    """Call in a fork that must die of SIGKILL."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_file_cut_short_is_written_anew(config):
    one = config()
    (folder,) = fresh(cache_features, one).folders
    before = stored(folder)
    os.truncate(folder / "train/train-00000.npy", 1000)
    with pytest.raises(ValueError, match="lacks 1 of the"):
        dataset_of(one)
    fresh(cache_features, one)
    assert stored(folder) == before


def test_two_commands_at_once_are_refused(config):
    one = config()
    (folder,) = fresh(cache_features, one).folders
    with frozen._alone(folder), pytest.raises(ValueError, match=f"another process is writing {folder.name}"):
        fresh(cache_features, one)


# --- training from it


def test_losses_agree_step_by_step(config):
    """With fillers (three steps of 8 for 22 samples), workers, validation, two passes and dropout."""
    settings = {"fit.accumulation": 2, "fit.epochs": 1}
    plain = config("plain", {**settings, "data.features": ""})
    cached = config("cached", settings)
    ahead = config("ahead", {**settings, "workers.workers": 2})
    fresh(cache_features, cached)
    for one in (plain, cached, ahead):
        assert fresh(fit, one).finished
    expected, found = losses(plain), losses(cached)
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-4)  # float16 has 11 bits
    assert found != expected
    assert losses(ahead) == found
    whole, other = (load_file(one.out / "model" / "model.safetensors") for one in (plain, cached))
    assert whole.keys() == other.keys()
    for name in whole:
        if name.startswith("vision.tower."):
            assert torch.equal(whole[name], other[name]), name


def test_but_for_the_rounding_they_are_the_same(config, monkeypatch):
    plain, cached = config("plain", {"data.features": ""}), config("cached")
    fresh(cache_features, cached)
    forward = VisionTower.forward
    monkeypatch.setattr(VisionTower, "forward", lambda self, pixels: forward(self, pixels).half().float())
    fresh(fit, plain)
    monkeypatch.setattr(VisionTower, "forward", lambda self, pixels: pytest.fail("the tower ran"))
    fresh(fit, cached)
    assert losses(cached) == pytest.approx(losses(plain), rel=2e-5, abs=2e-6)


def launched_fit(config):
    torch.set_num_threads(1)
    fresh(fit, config)


def test_two_processes_train_from_it_as_one_does(config, towers):
    settings = {"model.text": str(towers / "still"), "fit.max_steps": 2, "fit.validate_every": -1}
    one, two = config("one", settings), config("two", settings)
    fresh(cache_features, one)
    fresh(fit, one)
    in_processes(launched_fit, two)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5, abs=1e-5)


def test_resumed_it_is_the_unbroken_run_and_never_changes_over(config):
    settings = {"fit.max_steps": 4, "fit.validate_every": -1}
    unbroken, parts = config("unbroken", settings), config("parts", {**settings, "fit.max_steps": 2})
    fresh(cache_features, unbroken)
    fresh(fit, unbroken)
    fresh(fit, parts)
    with pytest.raises(ValueError, match=r"written with data\.features auto, not ; features features-\w+, not None"):
        fresh(fit, config("parts", {**settings, "data.features": ""}))
    fresh(fit, config("parts", settings))
    assert losses(parts) == losses(unbroken)
    assert json.loads((parts.out / "config.json").read_text())["data"]["features"] == "auto"  # that, not where


def test_beside_the_shards_and_remote(config, shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy", ignore=shutil.ignore_patterns(".build"))
    beside = config("beside", {"shards": str(copy), "data.features": "auto", "fit.max_steps": 1})
    (folder,) = fresh(cache_features, beside).folders
    assert folder.parent == copy
    assert fresh(fit, beside).finished
    local = dataset_of(beside)[PlanItem(3, True, False, 0)]
    filesystem = fsspec.filesystem("memory")
    for name, data in stored(folder).items():
        filesystem.pipe_file(f"/cache/{folder.name}/{name}", data)
    remote = dataset_of(replace(beside, data=replace(beside.data, features="memory://cache")))
    assert (remote[PlanItem(3, True, False, 0)].tokens == local.tokens).all()
    with pytest.raises(ValueError, match=r"written to a local folder: name one in data\.features"):
        fresh(cache_features, replace(beside, data=replace(beside.data, features="memory://cache")))
    filesystem.rm("/cache", recursive=True)


def test_mirrored_training_and_plain_validation_have_their_own_tokens(config):
    mirrored = config(changes={"data.view": ViewConfig(size_px=56, flip=1.0), "fit.max_steps": 1})
    assert len(fresh(cache_features, mirrored).folders) == 2
    assert fresh(fit, mirrored).finished


# --- what is refused


REFUSED = {
    "a random view": ({"data.view": ViewConfig("random_resized_crop", 56)}, "the view is random .* set view.rule"),
    "a shifted view": ({"data.view": ViewConfig(size_px=56, shift=0.1)}, r"the view is random .* shift 0\.1"),
    "a tower that is tuned": ({"model.tuned_blocks": 1}, "tuned_blocks is 1, so the vision tower is not frozen"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_tokens_that_change_are_neither_stored_nor_read(config, changes, message):
    fresh(cache_features, config())
    for task in (cache_features, fit):
        with pytest.raises(ValueError, match=message):
            fresh(task, config("refused", changes))
    assert not (config("refused").out / "log.jsonl").exists()


OTHERS = {
    "view": ({"data.view": ViewConfig("center_crop", 56)}, "view.rule letterbox, not center_crop"),
    "size": ({"data.view": ViewConfig(size_px=28)}, "view.size_px 56, not 28"),
    "pixels": ({"collate.pixel_mean": (0.4, 0.5, 0.5)}, r"pixels.mean \[0\.5307, .*, not \[0\.4"),
    "folder": ({"data.features": "nowhere"}, r"nowhere, .*nor any other.*run pipelines/cache_features\.py"),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_features_of_something_else_are_refused(config, changes, message):
    fresh(cache_features, config())
    with pytest.raises(ValueError, match=message):
        fresh(fit, config("other", changes))
    assert not (config("other").out / "log.jsonl").exists()


def test_features_of_another_tower_are_refused_wherever_it_lies(config, towers, tmp_path):
    fresh(cache_features, config())
    moved = shutil.copytree(towers / "vision", tmp_path / "moved")
    assert fresh(fit, config("same", {"model.vision": str(moved), "fit.max_steps": 1})).finished
    weights = load_file(moved / "model.safetensors")
    weights["layernorm.bias"] += 1e-6
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"tower\.weights [0-9a-f]+, not [0-9a-f]+\); run pipelines"):
        fresh(fit, config("other", {"model.vision": str(moved)}))


def test_features_of_other_pictures_under_the_same_keys_are_refused(config, shards, tmp_path):
    fresh(cache_features, config())
    deal_out(shards, tmp_path / "shuffled", seed=0, dealt="image")
    with pytest.raises(ValueError, match=r"has shards [0-9a-f]+, not [0-9a-f]+"):
        fresh(fit, config("shuffled", {"shards": str(tmp_path / "shuffled")}))


def test_a_damaged_manifest_is_named(config):
    (folder,) = fresh(cache_features, config()).folders
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match=f"features.json of {folder.name} is damaged; remove it and run"):
        fresh(fit, config())


# --- damage


def flip_a_bit(path, start, size):
    with path.open("r+b") as file:
        file.seek(start + size - 1)
        last = file.read(1)[0]
        file.seek(start + size - 1)
        file.write(bytes([last ^ 1]))


def swap_key(path, start, size):
    with path.open("r+b") as file:
        file.seek(start + 4)
        file.write(b"x")


def cut(path, start, size):
    os.truncate(path, start + size - 1)


def remove(path, start, size):
    path.unlink()


@pytest.mark.parametrize("harm", [flip_a_bit, swap_key, cut, remove])
def test_damaged_tokens_name_shard_and_key_or_are_skipped(config, harm):
    fresh(cache_features, config())
    strict, skipping = (dataset_of(config(changes={"data.skip_corrupt": skip})) for skip in (False, True))
    path, start = record_of(config(), strict, 1)
    harm(path, start, Layout.of(strict.table, SHAPE).record.itemsize)
    fault = f"sample {strict.table.name(1)} of train/train-00000.tar cannot be read: train/train-00000.npy of features-"
    with pytest.raises(CorruptSampleError, match=rf"^{fault}.*; remove that file and run pipelines/cache_features\.py"):
        strict[PlanItem(1, True, False, 0)]
    example = skipping[PlanItem(1, True, False, 0)]
    assert not example.valid
    assert example.tokens.shape == SHAPE
    assert not example.tokens.any()
    assert example.fault.startswith(fault)


def test_a_picture_that_cannot_be_read_stops_or_is_skipped_by_both(config, shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy", ignore=shutil.ignore_patterns(".build"))
    table = read_table(copy, "train")
    with (copy / table.shard_names[0]).open("r+b") as file:
        file.seek(int(table.start[1, 0]) + 20)
        file.write(b"\0" * (int(table.length[1, 0]) - 20))
    one = config(changes={"shards": str(copy), "workers.workers": 1})
    with pytest.raises(CorruptSampleError, match=rf"^sample {table.name(1)} of train/train-00000.tar cannot be read"):
        fresh(cache_features, one)
    skipping = config(changes={"shards": str(copy), "data.skip_corrupt": True, "fit.max_steps": 3})
    assert fresh(cache_features, skipping).unreadable == 1
    assert "its image could not be read when features-" in dataset_of(skipping)[PlanItem(1, True, False, 0)].fault
    assert fresh(fit, skipping).finished


def test_tokens_beyond_float16_are_refused(config, monkeypatch):
    monkeypatch.setattr(VisionTower, "forward", lambda self, pixels: torch.full((len(pixels), *SHAPE), 7e4))
    with pytest.raises(ValueError, match=r"tokens of sample \S+ leave the range of float16"):
        fresh(cache_features, config())


# --- the command


def test_the_command(config, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("cache_features", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    one = config()
    (tmp_path / "config.yaml").write_text(json.dumps(one.resolved()))
    options = ["--config", tmp_path / "config.yaml", "--shards", one.shards, "--data.features", one.data.features]

    def call(*more):
        AcceleratorState._reset_state(True)
        monkeypatch.setattr(sys, "argv", ["cache_features.py", *map(str, [*options, *more])])
        return module.main(), capsys.readouterr().err

    code, said = call("--batch_size", 5)
    (folder,) = Path(one.data.features).iterdir()
    assert code == 0
    assert said.startswith(f"{folder}: 23 samples, 0.0 MB; 23 written now, ")
    assert call()[1].startswith(f"{folder}: 23 samples, 0.0 MB; 0 written now\n")
    code, said = call("--model.tuned_blocks", 1)
    assert code == 1
    assert said.startswith("cache_features: model.tuned_blocks is 1")
    assert call("--batch_size", 0)[1].startswith("cache_features: batch_size is 0")
