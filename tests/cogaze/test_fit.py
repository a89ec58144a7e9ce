"""The loop: a resumed run is the unbroken one, many processes are one, bad losses and bad input stop with a cure."""

import io
import json
import math
import os
import re
import shutil
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from processes import in_processes
from rich.console import Console
from runs import (
    assert_close,
    assert_same,
    assert_same_gradients,
    assert_same_log,
    gradients,
    log,
    run,
    weights,
    write_gradients,
)
from safetensors.torch import load_file
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cogaze import fit as fit_module
from cogaze import log as log_module
from cogaze import optim
from cogaze import run as run_module
from cogaze import step as step_module
from cogaze import validation as validation_module
from cogaze.checkpoint import FOLDER
from cogaze.config import FitConfig
from cogaze.fit import StopRequested, fit
from cogaze.models.cogaze import CoGazeModel
from cogaze.step import NonFiniteLossError
from gazeprep.schema import CHEXPERT_LABELS
from gazeprep.shards import table_facts

# Everything that could go out of step at once: dropout, random views, the average, a schedule fed by validations.
EVERYTHING = {
    "fit.accumulation": 2,
    "fit.validate_every": 2,
    "fit.save_every": 1,
    "fit.keep": 9,
    "optim.ema_decay": 0.9,
    "optim.schedule": "plateau",
    "optim.plateau_patience": 0,
    "optim.lr": 0.01,
}


@pytest.fixture(scope="module")
def unbroken(run_into, tmp_path_factory):
    """The config of a finished run without any changes. Read only."""
    config = run_into(tmp_path_factory.mktemp("runs") / "unbroken")
    run(config)
    return config


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_resumed_at_any_step_a_run_is_the_unbroken_one(run_config, monkeypatch, schedule):
    # Every validation after the first is a bad one, whatever its loss.
    monkeypatch.setattr(optim, "ReduceLROnPlateau", partial(ReduceLROnPlateau, threshold=0.999))
    settings = {**EVERYTHING, "optim.schedule": schedule}
    unbroken = run_config("unbroken", settings)
    assert run(unbroken).finished
    logged, last = log(unbroken), weights(unbroken)
    assert sorted(logged) == [1, 2, 3, 4, 5, 6]
    if schedule == "plateau":
        assert [logged[step]["lr"] for step in (4, 5)] == pytest.approx([0.01, 0.001]), "the schedule never moved"
    for step in (1, 2, 4) if schedule == "plateau" else (5,):
        resumed = run_config(f"from {step}", settings)
        name = f"step-{step:08d}"
        shutil.copytree(unbroken.out / FOLDER / name, resumed.out / FOLDER / name)
        shutil.copy(unbroken.out / "log.jsonl", resumed.out)  # has more steps than the checkpoint
        assert run(resumed).finished
        assert log(resumed) == logged
        assert_same(last, weights(resumed))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_so_and_leaves_with_its_code(run_config, unbroken, monkeypatch, capsys, number):
    stopped = run_config("stopped")
    note = fit_module.note

    def note_and_signal(run, step, values):
        note(run, step, values)
        if step == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(fit_module, "note", note_and_signal)
    with pytest.raises(StopRequested) as stop:
        run(stopped)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert "saved at step 2 and stopped; the same command goes on" in capsys.readouterr().err
    assert [path.name for path in (stopped.out / FOLDER).iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert run(stopped).finished
    assert log(stopped) == log(unbroken)
    assert_same(weights(unbroken), weights(stopped))


def launched(config):
    AcceleratorState._reset_state(True)
    torch.set_num_threads(1)
    seen = {}
    step = fit_module.step

    def step_and_note(run, window, position):
        gaze = [int(batch.has_gaze.sum()) for batch in window]
        keys = [key for batch in window for key in batch.keys]
        world, rank = run.accelerator.num_processes, run.accelerator.process_index
        seen[position.steps_done + 1] = {"keys": keys, "gaze": gaze, "world": world}
        (config.out / f"seen-{rank}.json").write_text(json.dumps(seen))
        return step(run, window, position)

    fit_module.step = step_and_note
    try:
        fit(config)
    finally:
        fit_module.step = step


def launch(config, processes):
    """Train in so many processes; returns what each saw by step."""
    if processes == 1:
        launched(config)
    else:
        in_processes(launched, config, processes=processes)
    found = [json.loads((config.out / f"seen-{rank}.json").read_text()) for rank in range(processes)]
    assert {step["world"] for seen in found for step in seen.values()} == {processes}
    return found


def global_batches(found):
    """The keys of each step over all processes, fillers left out."""
    return {step: sorted(key for seen in found for key in seen[step]["keys"] if key) for step in found[0]}


# Little gaze: with a quarter of the readings some steps have gaze in one of two processes only.
SPLIT = {"fit.max_steps": 3, "plan.gaze_ratio": 0.25}


@pytest.fixture
def still(towers):
    """Settings without dropout: processes draw different numbers."""
    return {"model.text": str(towers / "still"), **SPLIT}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_with_half_the_batch_are_one_with_the_whole(run_config, still, accumulation):
    one, two = run_config("one", still), run_config("two", {**still, "fit.accumulation": accumulation})
    seen_by_one, seen_by_two = launch(one, 1), launch(two, 2)
    assert global_batches(seen_by_one) == global_batches(seen_by_two)
    if accumulation == 1:
        gaze = [[bool(sum(seen[step]["gaze"])) for seen in seen_by_two] for step in ("1", "2", "3")]
        assert [True, False] in gaze, "no step had gaze in one process only"
    assert_same_log(log(one), log(two))
    assert_close(weights(one), weights(two))


def test_a_run_goes_on_with_other_numbers_of_processes(run_config, still):
    settings = {**still, "fit.max_steps": 0, "optim.ema_decay": 0.9}
    whole = run_config("whole", settings)
    batches = global_batches(launch(whole, 1))
    parts = {}
    for processes, until in ((1, 2), (2, 4), (1, 6)):
        parts |= global_batches(launch(run_config("parts", {**settings, "fit.max_steps": until}), processes))
    assert parts == batches
    broken = run_config("parts", settings)
    logged = log(whole)
    # The end of each part adds a validation.
    assert_same_log(logged, {step: {n: log(broken)[step][n] for n in values} for step, values in logged.items()})
    assert_close(weights(whole), weights(broken))


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("step", [0, 2])  # the last one of an epoch holds fillers
def test_two_passes_give_the_gradients_of_one_big_batch(run_config, still, accumulation, step):
    loss, big = gradients(run_config("big", still), step)
    summed, cut = gradients(run_config("cut", {**still, "fit.accumulation": accumulation}), step)
    assert {name: float(value) for name, value in summed.items()} == pytest.approx(
        {name: float(value) for name, value in loss.items()}, rel=1e-5, abs=1e-6
    )
    assert_same_gradients(big, cut)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_give_the_gradients_of_one_big_batch(run_config, still, accumulation):
    big = gradients(run_config("big", still))[1]
    halves = run_config("halves", {**still, "fit.accumulation": accumulation})
    in_processes(write_gradients, halves, 0)
    for rank in range(2):
        assert_same_gradients(big, load_file(halves.out.with_name(f"gradients-{rank}")))


def test_without_the_second_pass_negatives_are_fewer(run_config, still):
    _, big = gradients(run_config("big", still))
    _, cut = gradients(run_config("cut", {**still, "fit.accumulation": 4, "fit.negatives": "micro"}))
    one, other = (torch.cat([gradient.flatten() for gradient in found.values()]) for found in (big, cut))
    assert torch.cosine_similarity(one, other, dim=0) < 0.999


def test_both_passes_drop_out_the_same(run_config, monkeypatch):
    """With dropout the carried gradient belongs to the embeddings that the loss saw."""
    seen = []
    forward = step_module.forward

    def forward_and_note(run, batch):
        output = forward(run, batch)
        seen.append(output.report_embed.detach())
        return output

    monkeypatch.setattr(step_module, "forward", forward_and_note)
    gradients(run_config("dropout", {"fit.accumulation": 2}))
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


@pytest.fixture
def poisoned(monkeypatch):
    """Let the scale overflow in the second step."""
    step = fit_module.step

    def poisoned_step(run, window, position):
        if position.steps_done == 1:
            window = [replace(batch, pixel_std=batch.pixel_std * torch.nan) for batch in window]
        return step(run, window, position)

    monkeypatch.setattr(fit_module, "step", poisoned_step)


@pytest.mark.usefixtures("poisoned")
def test_a_nonfinite_loss_names_step_and_keys_and_stops(run_config):
    config = run_config("stops", {"fit.save_every": 1})
    with pytest.raises(NonFiniteLossError, match=r"step 2: .*train/align.* not finite; samples of this process: .*-"):
        run(config)
    assert [path.name for path in (config.out / FOLDER).iterdir()] == ["step-00000001"]


@pytest.mark.usefixtures("poisoned")
def test_up_to_a_number_nonfinite_steps_are_skipped(run_config, capsys):
    config = run_config("skips", {"fit.max_nonfinite": 1, "fit.max_steps": 3})
    report = run(config)
    assert report.position.skipped == 1
    assert report.finished
    assert "skipped" in capsys.readouterr().err
    assert all(tensor.isfinite().all() for tensor in weights(config).values())


def nonfinite_in_one_process(config):
    AcceleratorState._reset_state(True)
    torch.set_num_threads(1)
    step = fit_module.step

    def poisoned_step(run, window, position):
        rank = run.accelerator.process_index
        if rank == 1:
            window = [replace(batch, pixel_std=batch.pixel_std * torch.nan) for batch in window]
        with pytest.raises(NonFiniteLossError) as error:
            step(run, window, position)
        (config.out / f"error-{rank}").write_text(str(error.value))
        raise StopRequested(0)

    fit_module.step = poisoned_step
    with pytest.raises(StopRequested):
        fit(config)


def test_all_processes_agree_on_a_nonfinite_loss_and_name_their_own_samples(run_config):
    config = run_config("both")
    in_processes(nonfinite_in_one_process, config)
    errors = [(config.out / f"error-{rank}").read_text() for rank in range(2)]
    keys = [set(error.split("process: ")[1].split(". ")[0].split(", ")) for error in errors]
    assert [len(own) for own in keys] == [4, 4]
    assert not keys[0] & keys[1]


def test_overflow_is_the_scalers_matter_only_while_it_scales_up(run_config):
    AcceleratorState._reset_state(True)
    prepared = run_module.prepare(run_config("scaled"))
    for scale, loss, only in ((2.0, 1.0, True), (2.0, math.nan, False), (0.5, 1.0, False)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaled = replace(prepared, trained=replace(prepared.trained, scaler=scaler))
        scaler.scale(torch.ones(()))  # makes it begin
        assert step_module._only_overflow(scaled, {"train/loss": loss}) == only


@pytest.mark.parametrize(("clip", "left"), [(0.05, 0.05), (0.0, None), (1e6, None)])
def test_gradients_are_clipped_as_a_whole(run_config, clip, left):
    AcceleratorState._reset_state(True)
    prepared = run_module.prepare(run_config("clipped", {"optim.clip_norm": clip}))
    weights = [weight for _, weight in run_module.trainable(prepared.model)]
    for i, weight in enumerate(weights):
        weight.grad = torch.full_like(weight, 0.01 * (i % 3))
    whole = math.sqrt(sum(float(weight.grad.square().sum()) for weight in weights))
    assert step_module._clipped_norm(prepared) == pytest.approx(whole, rel=1e-5)
    now = math.sqrt(sum(float(weight.grad.square().sum()) for weight in weights))
    assert now == pytest.approx(whole if left is None else left, rel=1e-4)


def test_max_steps_can_be_extended_and_the_last_checkpoints_stay(run_config, unbroken):
    settings = {"fit.save_every": 1, "fit.keep": 2}
    run(run_config("parts", {**settings, "fit.max_steps": 2}))
    parts = run_config("parts", settings)
    assert run(parts).finished
    assert_same(weights(unbroken), weights(parts))
    assert sorted(path.name for path in (parts.out / FOLDER).iterdir()) == ["step-00000005", "step-00000006"]


def test_a_finished_run_trains_no_further_and_reports(run_config):
    config = run_config("done", {"fit.max_steps": 1})
    first = run(config)
    again = run(config)
    assert again.position == first.position
    assert again.validation.losses == pytest.approx(first.validation.losses)


def auroc_by_pairs(scores, positive):
    """The share of pairs of a positive and a negative in which the positive has the higher score, ties as half."""
    higher = scores[positive][:, None] - scores[~positive]
    return float(((higher > 0).double() + (higher == 0) / 2).mean())


def test_what_is_validated_is_what_is_exported(run_config, shards_with):
    """Losses and areas of the report are those of the exported model, here the average, over the validation split."""

    def half_positive(rows):
        splits = ["validate" if i % 3 == 0 else "train" for i in range(len(rows))]
        return rows.assign(labels=[np.full(14, i % 2) for i in range(len(rows))], split=splits)

    settings = {"shards": shards_with(half_positive), "optim.ema_decay": 0.5, "optim.lr": 0.1, "fit.max_steps": 2}
    config = run_config("validated", settings)
    report = run(config)
    model = CoGazeModel.from_pretrained(config.out / "model").eval()
    prepared = run_module.prepare(config)
    scores, labels = [], []
    with torch.no_grad():
        for batch in prepared.validation.epoch():
            scores.append(model(**batch.model_inputs(model.batch_fields)).vision_logits[batch.valid])
            labels.append(batch.labels[batch.valid])
    scores, labels = torch.cat(scores), torch.cat(labels)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)
    assert report.validation.losses["image_disease"] == pytest.approx(loss.item(), rel=1e-5)
    areas = [auroc_by_pairs(scores[:, i], labels[:, i] == 1) for i in range(14)]
    found = dict(report.validation.metrics)
    assert found.pop("auroc/mean") == pytest.approx(np.mean(areas))
    assert found == pytest.approx({f"auroc/{name}": area for name, area in zip(CHEXPERT_LABELS, areas, strict=True)})


def test_best_is_the_average_of_the_best_validation_with_a_card(run_config):
    config = run_config("best", {"optim.ema_decay": 0.5, "fit.validate_every": 1, "fit.max_steps": 2})
    report = run(config)
    average = load_file(config.out / FOLDER / "step-00000002" / "average.safetensors")
    model = CoGazeModel.from_pretrained(config.out / "model")
    for name, parameter in model.named_parameters():
        if name in average:
            assert torch.equal(parameter, average[name]), name
    card = (config.out / "best" / "README.md").read_text()
    for expected in ("| train | ", '"ema_decay": 0.5', "| torch | ", '"vision": "vision"'):
        assert expected in card
    assert f"| loss | {report.validation.losses['loss']:.4f} |" in (config.out / "model" / "README.md").read_text()
    said = json.loads((config.out / "model" / "run.json").read_text())
    assert (said["method"], said["data"]["view"]["size_px"], said["model"]["vision"]) == ("cogaze", 56, "vision")
    for path in config.out.rglob("*"):
        if path.suffix in (".md", ".json") and FOLDER not in path.parts and path.parent != config.out:
            assert str(config.out.parent.parent) not in path.read_text(), path


def test_a_terminal_shows_steps_loss_and_throughput(run_config, monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(log_module, "CONSOLE", terminal)
    run(run_config("shown", {"fit.max_steps": 2, "fit.validate_every": -1}))
    assert re.search(r"2/2.*\d\.\d{4} loss, \d+\.\d samples/s", terminal.file.getvalue())


def test_bf16_runs_on_cpu(run_config):
    assert run(run_config("bf16", {"fit.precision": "bf16", "fit.max_steps": 2})).finished


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, as it compiles
def test_compiled_it_learns_the_same(run_config, still):
    still |= {"fit.max_steps": 1, "fit.validate_every": -1}  # each new shape is compiled again
    plain, compiled = run_config("plain", still), run_config("compiled", {**still, "fit.compile": True})
    run(plain)
    run(compiled)
    assert_close(weights(plain), weights(compiled))


def test_without_validation_if_asked(run_config):
    report = run(run_config("none", {"fit.validate_every": -1, "fit.max_steps": 1}))
    assert report.validation.losses == {}


BAD = {
    "no shards": ({"shards": "nowhere"}, "nowhere|no finished build|dataset.json"),
    "batch larger than the data": ({"plan.global_batch": 999}, r"global_batch is 999, .* only \d+ training"),
    "batch that cannot be cut": ({"fit.accumulation": 3}, "global batch of 8 .* multiple of 3"),
    "no vision tower": ({"model.vision": "no/where"}, "no vision tower at no/where: name a folder"),
    "no text tower": (
        {"model.text": "no/where", "model.tokenizer": "{towers}/text"},
        "no text tower at no/where: name a folder",
    ),
    "no tokenizer": ({"model.tokenizer": "no/where"}, "no tokenizer at no/where: name a folder"),
    "a tower that is no text tower": (
        {"model.text": "{towers}/vision", "model.tokenizer": "{towers}/text"},
        "holds a dinov2 model: name a BERT",
    ),
    "grid that does not fit": ({"data.view.size_px": 60}, "60 is not a multiple of .* set it to 56"),
    "a prompt's token": ({"collate.text.report": "[NOTE] {report}"}, r"lacks \[NOTE\]"),
    "fp16 on CPU": ({"fit.precision": "fp16"}, "fp16, which needs a GPU; set it to bf16 or no"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_stops_before_the_first_step(run_config, towers, changes, message):
    there = {name: v.replace("{towers}", str(towers)) if isinstance(v, str) else v for name, v in changes.items()}
    stops(run_config("bad", there), message)


def stops(config, message):
    """Nothing was trained nor written when the run stops."""
    with pytest.raises(ValueError, match=message):
        run(config)
    assert not config.out.exists()


@pytest.fixture
def shards_with(shards, tmp_path):
    """Return shards_with(change, ...): the shards after change(rows) of their index, or of values of the manifest."""

    def edited(change=None, **manifest):
        root = tmp_path / "edited shards"
        shutil.copytree(shards, root, dirs_exist_ok=True)
        if change is not None:
            change(pd.read_parquet(shards / "index.parquet")).to_parquet(root / "index.parquet")
        written = json.loads((shards / "dataset.json").read_text())
        written["tables"] |= table_facts({"index.parquet": (root / "index.parquet").read_bytes()})
        (root / "dataset.json").write_text(json.dumps(written | manifest))
        return str(root)

    return edited


def test_shards_of_another_schema_are_refused(run_config, shards_with):
    root = shards_with(schema_version="0.9")
    stops(run_config("schema", {"shards": root}), r"schema version 0\.9, this gazeprep reads .*; build them again")


def test_an_empty_split_is_named_with_the_cure(run_config, shards_with):
    for split, cure in (("train", "choose another"), ("validate", r"set fit\.validate_every to -1")):
        root = shards_with(lambda rows, split=split: rows[rows["split"] != split])
        stops(run_config("empty", {"shards": root}), rf"hold no sample of split '{split}' \(samples by split: .*{cure}")


def relabelled(label_of):
    """A change of the index by which each sample's 14 labels are label_of(labels)."""
    return lambda rows: rows.assign(labels=[label_of(labels) for labels in rows["labels"]])


def test_labels_may_be_absent_only_where_no_loss_needs_them(run_config, shards_with):
    shards = {"shards": shards_with(relabelled(lambda labels: labels * 0 - 2))}
    stops(
        run_config("labels", shards), r"none of the \d+ samples has labels .* set the weight of the disease losses to 0"
    )
    without = {"objective.image_disease": 0.0, "objective.report_disease": 0.0, "fit.max_steps": 1}
    assert run(run_config("no labels", shards | without)).finished


def test_a_disease_without_positives_has_no_weight_and_is_named(run_config, shards_with, capsys):
    def never_pneumonia(labels):
        return np.where(np.array(CHEXPERT_LABELS) == "Pneumonia", 0, np.where(labels == 1, 1, 0))

    config = run_config("none", {"shards": shards_with(relabelled(never_pneumonia)), "fit.max_steps": 1})
    assert run(config).finished
    assert "Pneumonia" in capsys.readouterr().err.split("no training sample is positive for ")[1]
    stops(
        run_config("no disease", {"shards": shards_with(relabelled(lambda labels: labels * 0))}),
        "none of the 14 classes has a positive case",
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, "several processes were asked for"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP was asked for, but is not active on cpu"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "set fit.accumulation in its place"),
    ],
)
def test_what_accelerate_would_leave_out_in_silence_is_refused(run_config, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        run(run_config("asked"))


def test_a_checkpoint_of_another_config_is_refused(run_config):
    run(run_config("run", {"fit.max_steps": 1}))
    with pytest.raises(ValueError, match=r"optim.lr 0.001, not 0.01. Go on with its own config"):
        run(run_config("run", {"fit.max_steps": 2, "optim.lr": 0.01}))


def test_negatives_of_a_micro_batch_do_not_change_their_number(run_config):
    micro = {"fit.negatives": "micro", "fit.accumulation": 2}
    run(run_config("run", {**micro, "fit.max_steps": 1}))
    with pytest.raises(ValueError, match=r"with micro-batches 2, not 4\. Go on"):
        run(run_config("run", {**micro, "fit.accumulation": 4}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("accumulation", 0), ("keep", 0), ("save_every", -1), ("max_nonfinite", -1), ("max_steps", -1)],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"fit.{name} is {value}, must be at least {value + 1}"):
        FitConfig(**{name: value})


def test_validation_is_the_same_in_micro_batches_and_forwards_none_bigger_than_training(
    run_config, shards_with, still, monkeypatch
):
    shards = shards_with(lambda rows: rows.assign(split=["validate" if i % 3 else "train" for i in range(len(rows))]))
    forward, found, sizes = validation_module.forward, {}, set()

    def forward_and_note(run, batch):
        sizes.add((run.config.fit.accumulation, len(batch)))
        return forward(run, batch)

    monkeypatch.setattr(validation_module, "forward", forward_and_note)
    for accumulation, negatives in ((1, "window"), (4, "window"), (4, "micro")):
        AcceleratorState._reset_state(True)
        settings = {**still, "shards": shards, "fit.accumulation": accumulation, "fit.negatives": negatives}
        prepared = run_module.prepare(run_config("validated", settings))
        found[accumulation, negatives] = validation_module.validate(prepared, prepared.validation, lambda: 0).values()
    assert sizes == {(1, 8), (4, 2)}
    whole = found.pop((1, "window"))
    assert whole["align"] > 0
    assert all(cut == pytest.approx(whole, rel=1e-5) for cut in found.values())


@pytest.mark.parametrize("when", ["before", "within"])
def test_after_a_signal_no_validation_goes_on_and_the_resumed_run_makes_up_for_it(run_config, monkeypatch, when):
    monkeypatch.setattr(optim, "ReduceLROnPlateau", partial(ReduceLROnPlateau, threshold=0.999))
    unbroken, stopped = run_config("unbroken", EVERYTHING), run_config("stopped", EVERYTHING)
    run(unbroken)
    note, forward, forwards = fit_module.note, validation_module.forward, []

    def note_and_signal(run, step, values):
        note(run, step, values)
        if step == 4 and when == "before":
            os.kill(os.getpid(), signal.SIGTERM)

    def forward_and_signal(run, batch):
        forwards.append(len(batch))
        if len(forwards) == 3 and when == "within":  # the first of the second validation, which has two
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(run, batch)

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "note", note_and_signal)
        patched.setattr(validation_module, "forward", forward_and_signal)
        with pytest.raises(StopRequested):
            run(stopped)
    assert len(forwards) == (2 if when == "before" else 3)
    assert "validate/loss" in log(stopped)[2]
    assert "validate/loss" not in log(stopped)[4]
    assert run(stopped).finished
    assert log(stopped) == log(unbroken)
    assert_same(weights(unbroken), weights(stopped))
