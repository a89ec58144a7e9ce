"""CoGaze's losses of one batch made by hand, against the plain formula, one image and one sentence at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cogaze.data.collate import Batch
from cogaze.losses.sums import LossSum
from cogaze.models.cogaze import CoGazeOutput
from cogaze.objectives import CoGazeObjective, CoGazeWeights, weighted_total, with_total

# 0: gaze, of 4 patches the last shows nothing. 1: labels and an image, no report. 2: whole, gaze and the study of 0.
# 3: a filler, whose labels must not count.
VALID = [True, True, True, False]
HAS_REPORT = [True, False, True, True]
SHOWN = [[True, True, True, False], [True] * 4, [True] * 4, [True] * 4]
STUDY = [7, 8, 7, 9]
SENTENCES_OF = {0: [0, 1], 2: [2]}
CONFIG = CoGazeWeights(align=0.7, gaze=1.3, image_disease=0.4, report_disease=0.6, topk_ratio=0.0, t2i_weight=0.35)
EPS = 1e-8


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture
def batch():
    none = torch.zeros(4, 1, dtype=torch.long)
    heatmap = torch.tensor([[0.5, 0.2, 0.1, 0.2], [0.0, 0.0, 0.6, 0.4], [0.1, 0.2, 0.3, 0.4], [9.0, 0.0, 0.0, 0.0]])
    labels = torch.arange(4 * 14).reshape(4, 14) % 3 == 0
    label_mask = torch.ones(4, 14, dtype=torch.bool)
    label_mask[0, 5] = False
    return Batch(
        pixels=torch.zeros(4, 2, 2, dtype=torch.uint8),
        vision_tokens=None,
        pixel_mean=torch.zeros(3),
        pixel_std=torch.ones(3),
        patch_mask=torch.tensor(SHOWN),
        view_position=torch.zeros(4, dtype=torch.long),
        study_id=torch.tensor(STUDY),
        valid=torch.tensor(VALID),
        report_input_ids=none,
        report_mask=none.bool(),
        has_report=torch.tensor(HAS_REPORT),
        context_input_ids=none,
        context_mask=none.bool(),
        has_context=torch.zeros(4, dtype=torch.bool),
        sentence_input_ids=none,
        sentence_mask=none.bool(),
        sentence_image=torch.tensor([0, 0, 2, 1]),
        sentence_weight=torch.tensor([1.0, 1.0, 1.0, 0.0]),  # the last does not exist
        heatmap=heatmap,
        has_gaze=torch.tensor([True, False, True, False]),
        labels=labels.float(),
        label_mask=label_mask,
        keys=("a", "b", "c", ""),
        faults=("",) * 4,
    )


@pytest.fixture
def output(draw):
    return CoGazeOutput(
        patch_features=draw(4, 5, 3),
        visual_embed=draw(4, 3),
        report_embed=draw(4, 3),
        sentence_embed=draw(4, 3),
        vision_logits=draw(4, 14),
        report_logits=draw(4, 14),
        logit_scale=torch.tensor(0.4),
        logit_scale_gaze=torch.tensor(0.9),
    )


def array(tensor):
    return tensor.double().numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def divergence(target, logits):
    """Jensen-Shannon, of a target of any scale and the softmax of logits."""
    p, q = target / target.sum(), softmax(logits)
    middle = np.log((p + q) / 2 + EPS)
    return 0.5 * np.sum(p * (np.log(p + EPS) - middle) + q * (np.log(q + EPS) - middle))


def gaze_of(output, batch, image, sentences):
    """Only the patches that show image, and both ways with their weights."""
    shown = np.array(SHOWN[image])
    patches = unit(array(output.patch_features))[image, 1:][shown]
    logits = math.exp(0.9) * unit(array(output.sentence_embed))[sentences] @ patches.T
    target = array(batch.heatmap)[sentences][:, shown]
    to_image = np.mean([divergence(*pair) for pair in zip(target, logits, strict=True)])
    to_text = np.mean([divergence(*pair) for pair in zip(target.T, logits.T, strict=True) if pair[0].sum() > 0])
    return 0.35 * to_image + 0.65 * to_text


def align_of(output):
    """Samples 0 and 2, one study: each has both as positives, half each."""
    rows = [0, 2]
    logits = math.exp(0.4) * unit(array(output.visual_embed))[rows] @ unit(array(output.report_embed))[rows].T
    return sum(-0.5 * np.log(softmax(row)).mean() for row in (*logits, *logits.T))


def disease_of(logits, batch, weights, images):
    total = 0.0
    for i in images:
        for k in range(14):
            if batch.label_mask[i, k]:
                chance = 1 / (1 + math.exp(-float(logits[i, k])))
                total -= float(weights[k]) * math.log(chance if batch.labels[i, k] else 1 - chance)
    return total


def expected_of(output, batch, weights):
    return {
        "align": align_of(output),
        "gaze": sum(gaze_of(output, batch, image, sentences) for image, sentences in SENTENCES_OF.items()),
        "image_disease": disease_of(output.vision_logits, batch, weights, [0, 1, 2]),
        "report_disease": disease_of(output.report_logits, batch, weights, [0, 2]),
    }


COUNTS = {"align": 2, "gaze": 2, "image_disease": 3 * 14 - 1, "report_disease": 2 * 14 - 1}


def losses_of(output, batch, weights):
    objective = CoGazeObjective(CONFIG, weights)
    aligned = objective.aligned([objective.embeddings(output)], [batch])
    return {**objective.losses(output, batch), "align": aligned}


def test_each_loss_is_the_plain_formula(output, batch):
    weights = torch.linspace(0.5, 1.5, 14)
    found = losses_of(output, batch, weights)
    assert {name: loss.total.item() for name, loss in found.items()} == pytest.approx(
        expected_of(output, batch, weights), rel=1e-5
    )


def test_counts_before_and_after_the_model_are_the_same(output, batch):
    after = {name: loss.count.item() for name, loss in losses_of(output, batch, torch.ones(14)).items()}
    before = {name: count.item() for name, count in CoGazeObjective(CONFIG, torch.ones(14)).counts(batch).items()}
    assert after == before == COUNTS


def test_the_total_is_the_weighted_mean_over_processes(output, batch):
    weights = torch.linspace(0.5, 1.5, 14)
    counts = {name: torch.tensor(3.0 * count) for name, count in COUNTS.items()}  # those of three processes
    total = weighted_total(losses_of(output, batch, weights), counts, CONFIG.weights(), world=3)
    expected = expected_of(output, batch, weights)
    plain = {"align": 0.7, "gaze": 1.3, "image_disease": 0.4, "report_disease": 0.6}
    means = {name: value / COUNTS[name] for name, value in expected.items()}
    assert total.item() == pytest.approx(sum(plain[name] * means[name] for name in plain), rel=1e-5)
    assert with_total(means, CONFIG.weights())["loss"] == pytest.approx(total.item(), rel=1e-5)


def test_nothing_to_count_is_0_not_nan():
    nothing = {"gaze": LossSum(torch.tensor(0.0), torch.tensor(0.0))}
    assert weighted_total(nothing, {"gaze": torch.tensor(0.0)}, CONFIG.weights(), world=2) == 0


def test_what_no_loss_may_see_changes_none(output, batch, draw):
    """The filler's row, the report and study of the sample without one, the sentence and map of weight 0."""
    weights = torch.linspace(0.5, 1.5, 14)
    report = torch.tensor([False, True, False, True])
    filler = torch.tensor([False, False, False, True])
    other = CoGazeOutput(**output)
    for name, rows in (("report_embed", report), ("report_logits", report), ("visual_embed", filler)):
        other[name] = torch.where(rows[:, None], draw(*output[name].shape), output[name])
    other["vision_logits"] = torch.where(filler[:, None], draw(4, 14), output.vision_logits)
    other["sentence_embed"] = torch.where(filler[:, None], draw(4, 3), output.sentence_embed)  # row 3, of weight 0
    unseen = batch.heatmap.clone()
    unseen[0, 3] = 5.0  # where no image is
    hidden = replace(batch, heatmap=unseen, labels=torch.where(filler[:, None], 1 - batch.labels, batch.labels))
    found, expected = losses_of(other, hidden, weights), losses_of(output, batch, weights)
    assert {name: loss.total.item() for name, loss in found.items()} == pytest.approx(
        {name: loss.total.item() for name, loss in expected.items()}, rel=1e-6
    )
