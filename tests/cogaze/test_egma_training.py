"""EGMA in the loop that CoGaze has: its losses of a batch, cut in any way, resumed, with any share of gaze."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import in_processes
from runs import assert_same, assert_same_gradients, gradients, log, run, weights, write_gradients
from safetensors.torch import load_file

from cogaze.data.collate import Batch, report_sentences
from cogaze.evaluate.quick import encode, evaluate, look_of
from cogaze.evaluate.similarity import Similarity
from cogaze.losses.egma import batch_contrastive, cross_modal_mapping, gaze_mlce
from cogaze.models.egma import EgmaModel, EgmaOutput
from cogaze.objectives import EgmaObjective, EgmaWeights, peak_scaled
from gazeprep.shards import ShardFolder

STEPS = 3  # an epoch


# --- the losses of a batch

# 0: gaze, three sentences, of 4 patches the last shows nothing. 1: a report's two. 2: nothing to say. 3: a filler.
SENTENCES = torch.tensor([0, 0, 0, 1, 1])
MAPS = torch.tensor([[4.0, 2.0, 0.001, 0.0], [0.0, 0.0, 0.5, 0.0], [0.0] * 4, [0.0] * 4, [0.0] * 4])


def batch_of(sentence_image, weight, heatmap, images):
    none = torch.zeros(images, 1, dtype=torch.long)
    gaze = torch.zeros(images, dtype=torch.bool)
    gaze[sentence_image[heatmap.sum(1) > 0]] = True
    shown = torch.ones(images, 4, dtype=torch.bool)
    shown[0, 3] = False
    return Batch(
        pixels=torch.zeros(images, 2, 2, dtype=torch.uint8),
        vision_tokens=None,
        pixel_mean=torch.zeros(3),
        pixel_std=torch.ones(3),
        patch_mask=shown,
        view_position=none[:, 0],
        study_id=torch.arange(images),
        valid=torch.arange(images) < 3,
        report_input_ids=none,
        report_mask=none.bool(),
        has_report=none[:, 0].bool(),
        context_input_ids=none,
        context_mask=none.bool(),
        has_context=none[:, 0].bool(),
        sentence_input_ids=none,
        sentence_mask=none.bool(),
        sentence_image=sentence_image,
        sentence_weight=weight,
        heatmap=heatmap,
        has_gaze=gaze,
        labels=torch.zeros(images, 14),
        label_mask=torch.zeros(images, 14, dtype=torch.bool),
        keys=("",) * images,
        faults=("",) * images,
    )


def output_of(images, sentences):
    draw = torch.Generator().manual_seed(3)
    return EgmaOutput(
        patch_embed=F.normalize(torch.randn(images, 4, 6, generator=draw), dim=-1),
        sentence_embed=F.normalize(torch.randn(sentences, 6, generator=draw), dim=-1),
        logit_scale=torch.tensor(1.1),
    )


@pytest.fixture
def batch():
    return batch_of(SENTENCES, torch.ones(5), MAPS, images=4)


def losses_of(objective, output, batch):
    return {**objective.losses(output, batch), "align": objective.aligned([objective.embeddings(output)], [batch])}


def test_maps_reach_one_and_lose_what_is_faint():
    scaled = peak_scaled(MAPS[:3], 0.002)
    assert scaled.tolist() == [[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0] * 4]


def test_each_loss_is_that_of_the_images_it_belongs_to(batch):
    """Image 0 alone, on the patches that show it, has the gaze loss; 0 and 1 the mapping, each by its own rule."""
    output, objective = output_of(4, 5), EgmaObjective(EgmaWeights(least_gaze=0.002, t2i_weight=0.7), 1)
    patches, sentences, scale = output.patch_embed, output.sentence_embed, output.logit_scale
    found = losses_of(objective, output, batch)
    first = (patches[:1, :3], sentences[:3], torch.tensor([3]))
    heatmap = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0] * 3])
    yes = torch.tensor([True])
    assert found["gaze"].total.item() == pytest.approx(
        gaze_mlce(*first, heatmap, yes, scale, t2i_weight=0.7).item(), rel=1e-5
    )
    mapped = cross_modal_mapping(*first, scale, heatmap=heatmap, has_gaze=yes)
    mapped = mapped + cross_modal_mapping(patches[1:2], sentences[3:], torch.tensor([2]), scale)
    assert found["mapping"].total.item() == pytest.approx(mapped.item(), rel=1e-5)
    assert {name: loss.count.item() for name, loss in found.items()} == {"align": 2, "gaze": 1, "mapping": 2}
    assert {name: count.item() for name, count in objective.counts(batch).items()} == {
        "align": 2, "gaze": 1, "mapping": 2,
    }  # fmt: skip


def test_micro_batches_make_the_contrastive_loss_of_one_batch_whatever_dummies_stand_in_them(batch):
    whole, objective = output_of(4, 5), EgmaObjective(EgmaWeights(), 1)
    dummy = F.normalize(torch.ones(1, 6), dim=-1)
    empty = batch_of(torch.tensor([0]), torch.zeros(1), torch.zeros(1, 4), images=2)
    batches = [replace(empty, patch_mask=torch.ones(2, 4, dtype=torch.bool)), batch]
    swapped = [2, 3, 0, 1]
    both = objective.aligned([objective.embeddings(whole)], [batch])
    seen = [
        {"patch": whole.patch_embed[2:], "sentence": dummy, "scale": whole.logit_scale},
        objective.embeddings(whole),
    ]
    cut = objective.aligned(seen, batches)
    assert len(swapped) == 4
    assert cut.count == both.count
    assert cut.total.item() == pytest.approx(both.total.item(), rel=1e-5)


def test_nothing_to_say_is_0_not_nan():
    output, objective = output_of(2, 1), EgmaObjective(EgmaWeights(), 0)
    silent = batch_of(torch.tensor([0]), torch.zeros(1), torch.zeros(1, 4), images=2)
    for loss in losses_of(objective, output, silent).values():
        assert loss.total == 0
        assert loss.count == 0


# --- runs


@pytest.mark.parametrize(("ratio", "precision"), [(0.0, "no"), (0.5, "bf16"), (1.0, "no")])
def test_any_share_of_gaze_trains(egma_config, capsys, ratio, precision):
    config = egma_config("run", {"plan.gaze_ratio": ratio, "fit.epochs": 1, "fit.precision": precision})
    assert run(config).finished
    logged = log(config)
    gaze = [values["train/gaze"] for values in logged.values() if "train/gaze" in values]
    assert any(gaze) == (ratio > 0)
    assert all(np.isfinite(value) for values in logged.values() for value in values.values())
    assert all(values["train/align"] > 0 and values["train/mapping"] > 0 for values in logged.values())
    assert ("no gaze of a training sample is used" in capsys.readouterr().err) == (ratio == 0)


@pytest.mark.parametrize("step", [0, STEPS - 1])  # the last one of an epoch holds fillers
def test_micro_batches_give_the_gradients_of_one_big_batch(egma_config, step):
    loss, big = gradients(egma_config("big"), step)
    summed, cut = gradients(egma_config("cut", {"fit.accumulation": 4}), step)
    assert {name: float(value) for name, value in summed.items()} == pytest.approx(
        {name: float(value) for name, value in loss.items()}, rel=1e-5, abs=1e-6
    )
    assert_same_gradients(big, cut)


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_give_the_gradients_of_one_big_batch(egma_config, accumulation):
    settings = {"plan.gaze_ratio": 0.25}
    big = gradients(egma_config("big", settings))[1]
    halves = egma_config("halves", {**settings, "fit.accumulation": accumulation})
    in_processes(write_gradients, halves, 0)
    for rank in range(2):
        assert_same_gradients(big, load_file(halves.out.with_name(f"gradients-{rank}")))


def trained(config):
    torch.set_num_threads(1)
    run(config)


@pytest.mark.slow
def test_two_processes_log_what_one_does(egma_config):
    one, two = egma_config("one", {"fit.epochs": 1}), egma_config("two", {"fit.epochs": 1})
    run(one)
    in_processes(trained, two)
    for step, values in log(one).items():
        assert log(two)[step] == pytest.approx(values, rel=1e-4, abs=1e-4)


def test_resumed_a_run_is_the_unbroken_one(egma_config, towers):
    settings = {"model.text": str(towers / "text"), "fit.accumulation": 2}  # with dropout
    unbroken, parts = egma_config("unbroken", settings), egma_config("parts", settings)
    run(unbroken)
    run(replace(parts, fit=replace(parts.fit, save_every=2, max_steps=0, epochs=2)))
    assert_same(weights(unbroken), weights(parts))
    again = egma_config("again", settings)
    (again.out / "checkpoints").mkdir(parents=True)
    (parts.out / "checkpoints" / "step-00000004").rename(again.out / "checkpoints" / "step-00000004")
    assert run(again).finished
    assert_same(weights(unbroken), weights(again))


def test_a_frozen_tower_stays_and_a_tuned_one_moves(egma_config):
    for tuned in (0, -1):
        config = egma_config(f"tuned {tuned}", {"model.tuned_blocks": tuned, "fit.max_steps": 1})
        before = load_file(Path(config.model.vision) / "model.safetensors")
        run(config)
        after = {name.removeprefix("vision.tower."): tensor for name, tensor in weights(config).items()}
        moved = [not torch.equal(after[name], tensor) for name, tensor in before.items() if name in after]
        assert any(moved) == (tuned == -1)
        assert moved


def test_the_exported_model_is_loaded_and_says_its_method(egma_config, run_config):
    config = egma_config("run", {"fit.max_steps": 1})
    run(config)
    EgmaModel.from_pretrained(config.out / "model")
    assert '"method": "egma"' in (config.out / "model" / "run.json").read_text()
    card = (config.out / "model" / "README.md").read_text()
    assert "# EGMA" in card
    assert "EgmaModel.from_pretrained" in card
    with pytest.raises(ValueError, match="method egma, not cogaze"):
        run(run_config("run", {"fit.max_steps": 2}))


# --- a look at what it learned


def test_evaluation_finds_reports_by_the_similarity_that_is_trained(batch):
    output, look = output_of(4, 5), look_of(EgmaModel.__new__(EgmaModel))
    everywhere = replace(batch, patch_mask=torch.ones(4, 4, dtype=torch.bool))
    found = Similarity(look.images(output, everywhere), look.reports(output, everywhere)).array()
    trained = batch_contrastive(output.patch_embed, output.sentence_embed, batch.sentences_per_image, torch.tensor(0.0))
    expected = (trained.patch_similarity + trained.sentence_similarity) / 2
    assert found.shape == (3, 3)  # without the filler
    assert found[:, :2] == pytest.approx(expected[:3, :2].numpy(), abs=1e-6)  # 2 has nothing to say


def test_figures_are_of_reports_and_of_dictated_sentences(egma_config):
    config = egma_config("run", {"fit.max_steps": 1})
    run(config)
    model = EgmaModel.from_pretrained(config.out / "model")
    written, spoken = encode(config, model, ("train",), gaze=False), encode(config, model, ("train",))
    assert len(written.spoken.image) == 0
    assert len(spoken.spoken.image) > 0
    assert len(written.image) == len(spoken.image) == len(written.report)
    folder = ShardFolder(config.shards)
    first = folder.sample(folder.index[folder.index["split"] == "train"]["key"].iloc[0]).record
    assert written.report.count[0] == len(report_sentences(first["findings"] or first["impression"]))
    figures = evaluate(config, model, ("train",))
    assert {"image to report R@5", "report to image R@5 without the image", "mean AUROC zero-shot", "sentence NSS"} <= (
        figures.keys()
    )
    assert not any("context" in name or name == "mean AUROC" for name in figures)
