"""Supervised tasks: nested shares, a probe against scikit-learn's, oracle features, shuffled labels, whole runs."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from processes import in_processes
from sklearn.linear_model import LogisticRegression

from cogaze.evaluate.classify import (
    ProbeConfig,
    Targets,
    choose_probe,
    fit_probe,
    labels_of,
    mean_auroc,
    nested_rows,
    scores_of,
    share_of,
)
from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.finetune import Classifier, FinetuneConfig, Labelled, finetune
from cogaze.evaluate.processes import Process
from cogaze.evaluate.records import UNKNOWN, EvalImage, EvalSet, LabelledBox
from cogaze.evaluate.scores import Intervals
from cogaze.evaluate.segment import SegmentConfig
from cogaze.evaluate.supervised import (
    SupervisedConfig,
    full_finetuning,
    linear_probe,
    parts_of,
    segmentation,
)
from gazeprep.schema import ImageRef

QUICK = SupervisedConfig(shares=("100",), intervals=Intervals(repeats=1))


# --- shares


def test_shares_are_nested_stratified_and_drawn_again_alike():
    labels = np.zeros((1000, 2), dtype=int)
    labels[:300, 0] = 1
    labels[295:325, 1] = 1  # the rarer class names the stratum of the five that have both
    one, ten, whole = (nested_rows(labels, share, 3) for share in (0.01, 0.1, 1.0))
    assert set(one) < set(ten) < set(whole) == set(range(1000))
    assert (len(one), len(ten)) == (10, 100)
    assert labels[ten].sum(axis=0).tolist() == [pytest.approx(30, abs=2), 3]
    assert labels[one].sum(axis=0).min() >= 1  # a class of thirty has one among ten
    assert np.array_equal(ten, nested_rows(labels, 0.1, 3))
    assert not np.array_equal(ten, nested_rows(labels, 0.1, 4))


def image(number, label, **more):
    return EvalImage(f"image-{number}", ImageRef("", "", "raster", "made up"), label, subject=f"{number}", **more)


def test_a_list_of_the_dataset_comes_before_a_drawn_share():
    train = tuple(image(number, (number % 2,)) for number in range(20))
    data = EvalSet("set", "binary", ("finding",), {"train": train, "train_1": train[4:5]})
    assert share_of(data, "1", 0) == train[4:5]
    assert len(share_of(data, "10", 0)) == 2
    assert share_of(data, "100", 0) == train


# --- the loss and the probe


def test_unknown_labels_pull_at_nothing():
    labels = np.array([[1, UNKNOWN], [0, 1]])
    targets = Targets.of(labels, "multi-label", "none")
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    loss = targets.loss_sum(logits)
    loss.backward()
    assert (loss.item(), targets.count) == (pytest.approx(3 * np.log(2)), 3)
    assert logits.grad.tolist() == [[-0.5, 0], [0.5, -0.5]]


def test_class_weights_by_hand():
    multi = Targets.of(np.array([[1, 0], [1, 0], [1, 0], [0, 1]]), "multi-class", "balanced")
    assert multi.weight.tolist() == [4 / (2 * 3), 4 / (2 * 1)]
    cells = Targets.of(np.array([[1], [0], [0], [UNKNOWN]]), "binary", "balanced")
    assert cells.weight.tolist() == [2]
    assert Targets.of(np.array([[1], [0]]), "binary", "none").weight.tolist() == [1]


def test_an_image_of_two_classes_or_none_is_refused_where_there_is_one_each():
    with pytest.raises(ValueError, match="2 of 3 images"):
        Targets.of(np.array([[1, 1], [0, 0], [0, 1]]), "multi-class", "none")


@pytest.mark.parametrize("task", ["binary", "multi-class"])
def test_the_probe_is_scikit_learns_logistic_regression(task):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4)) * [1, 5, 0.1, 1] + 3
    classes = 1 if task == "binary" else 3
    truth = rng.integers(max(classes, 2), size=60)
    labels = truth[:, None] if task == "binary" else np.eye(3, dtype=int)[truth]
    probe = fit_probe(features, Targets.of(labels, task, "none"), 0.05, 500)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    theirs = LogisticRegression(C=1 / (60 * 0.05), tol=1e-10, max_iter=2000).fit(scaled, truth)
    assert probe.logits(features) - probe.bias == pytest.approx(scaled @ theirs.coef_.T, abs=1e-4)
    chance = scores_of(probe.logits(features), task)
    said = chance.argmax(axis=1) if task == "multi-class" else (chance[:, 0] > 0).astype(int)
    assert np.array_equal(said, theirs.predict(scaled))


def test_oracle_features_score_one_and_shuffled_labels_chance():
    rng = np.random.default_rng(0)
    labels = (rng.random((900, 3)) < 0.3).astype(int)
    features = np.hstack([labels + 0.01 * rng.normal(size=(900, 3)), rng.normal(size=(900, 5))])
    parts = [slice(0, 300), slice(300, 600), slice(600, 900)]

    def area(labels):
        train, validate, test = ((features[part], labels[part]) for part in parts)
        probe = choose_probe(train, validate, "multi-label", ProbeConfig())
        return mean_auroc(probe.logits(test[0]), test[1])

    assert area(labels) == 1
    assert area(rng.permutation(labels)) == pytest.approx(0.5, abs=0.05)


def test_validation_chooses_the_penalty():
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=(230, 1))
    features = rng.normal(size=(230, 25))
    features[:, :1] += truth
    train, validate = (features[:30], truth[:30]), (features[30:], truth[30:])
    probes = [choose_probe(train, validate, "binary", ProbeConfig(penalties=(one,))) for one in (1e-6, 0.3)]
    weak, strong = (mean_auroc(probe.logits(validate[0]), validate[1]) for probe in probes)
    assert weak < strong
    assert choose_probe(train, validate, "binary", ProbeConfig(penalties=(1e-6, 0.3))).penalty == 0.3


def test_nothing_is_chosen_by_a_class_of_one_kind():
    scores = np.array([[0.1, 0.3], [0.2, 0.1]])
    assert mean_auroc(scores, np.array([[0, 1], [1, 1]])) == 1
    with pytest.raises(ValueError, match="no class has positive and negative"):
        mean_auroc(scores, np.array([[1, 1], [1, UNKNOWN]]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ProbeConfig(penalties=()), "penalties"),
        (lambda: ProbeConfig(class_weights="some"), "class_weights"),
        (lambda: FinetuneConfig(batch=0), "batch"),
        (lambda: FinetuneConfig(lr=0.0), "lr"),
        (lambda: SupervisedConfig(shares=("5",)), "must be one or more of"),
    ],
)
def test_settings_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# --- whole tasks


class Knowing:
    """An encoder that sees the label, or only noise."""

    def __init__(self, *, told):
        self.told = told

    def images(self, images, *, with_context):
        rows = []
        for one in images:
            rng = np.random.default_rng(int(hashlib.sha256(one.id.encode()).hexdigest()[:8], 16))
            rows.append([*(rng.normal(size=4)), *(10 * np.array(one.labels) if self.told else [])])
        return np.array(rows)


def labelled_set(task, count=120):
    classes = {"binary": ("finding",), "multi-class": ("a", "b", "c"), "multi-label": ("a", "b")}[task]
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(count, len(classes)))
    if task == "multi-class":
        labels = np.eye(3, dtype=int)[rng.integers(3, size=count)]
    images = [image(number, tuple(map(int, row))) for number, row in enumerate(labels)]
    third = count // 3
    parts = {"train": images[:third], "validate": images[third : 2 * third], "test": images[2 * third :]}
    return EvalSet("set", task, classes, {name: tuple(part) for name, part in parts.items()})


@pytest.mark.parametrize("task", ["binary", "multi-class", "multi-label"])
def test_an_encoder_that_knows_the_labels_scores_one_and_one_that_does_not_chance(task):
    data = labelled_set(task)
    known, unknown = (
        {
            metric: next(one for one in figures if f"{metric} (linear probe, 100 %)" in one.name)
            for metric in ("AUROC", "AUPRC", "F1")
        }
        for figures in (linear_probe(Knowing(told=told), data, QUICK, ProbeConfig()).figures for told in (True, False))
    )
    for metric, least in {"AUROC": 1, "AUPRC": 1, "F1": 0.95}.items():  # a threshold of 40 images
        assert known[metric].value >= least - 1e-9
    area = unknown["AUROC"]
    assert (area.value, area.baselines["chance"]) == (pytest.approx(0.5, abs=0.17), 0.5)


def test_a_set_without_masks_is_not_segmented(tmp_path):
    with pytest.raises(ValueError, match="no training image of set has a mask or a box"):
        segmentation(Knowing(told=True), labelled_set("binary"), ALL, DECODER, tmp_path / "features")


def test_a_set_without_a_validation_part_is_refused():
    data = labelled_set("binary")
    with pytest.raises(ValueError, match="no validate part"):
        parts_of(replace(data, parts={name: data.parts[name] for name in ("train", "test")}))


def bright_set(folder, count=24):
    """Pictures of 64 x 48 px with a bright square in the upper half where the label is 1, and its box."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    images = []
    for number in range(count):
        label, left = number % 2, int(rng.integers(4, 24))
        pixels = rng.integers(0, 60, (64, 48), dtype=np.uint8)
        if label:
            pixels[6:26, left : left + 20] = 250
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        ref = ImageRef(str(folder), f"{number}.png", "raster", "made up")
        boxes = (LabelledBox((left, 6.0, left + 20.0, 26.0)),) if label else ()
        images.append(EvalImage(f"{number}", ref, (label,), subject=f"{number}", boxes=boxes))
    parts = {"train": images[:12], "validate": images[12:18], "test": images[18:]}
    return EvalSet("bright", "binary", ("square",), {name: tuple(part) for name, part in parts.items()})


ALL = SupervisedConfig(shares=("100",), intervals=Intervals(repeats=3))
TUNING = FinetuneConfig(epochs=3, batch=5, lr=1e-3, head_lr=0.05)
DECODER = SegmentConfig(width=16, heads=2, doublings=1, epochs=3, batch=4, lr=0.01)


def figures_of(encoder, data, store):
    found = [
        linear_probe(encoder, data, ALL, ProbeConfig()),
        full_finetuning(encoder, data, ALL, TUNING),
        segmentation(encoder, data, ALL, DECODER, store),
    ]
    return {one.name: one for each in found for one in each.figures}


@pytest.fixture(scope="module")
def encoder(model_folder):
    return load_encoder(model_folder)


@pytest.fixture(scope="module")
def done(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("supervised")
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    data = bright_set(folder / "images")
    found = figures_of(encoder, data, folder / "features")
    return SimpleNamespace(figures=found, before=before, folder=folder, data=data)


def test_a_small_model_is_probed_and_tuned(done):
    assert done.figures["AUROC (linear probe, 100 %)"].value > 0.6
    assert done.figures["AUROC (fine-tuned, 100 %)"].value > 0.6
    assert done.figures["F1 (fine-tuned, 100 %)"].baselines["always no"] == 0
    for name, empty in {"Dice (decoder, 100 %)": 0.5, "Dice of positives (decoder, 100 %)": 0}.items():
        beside = done.figures[name].baselines
        assert (beside["all empty"], list(beside)) == (empty, ["all empty", "mean training mask"])


def test_tuning_leaves_the_encoder_as_it_was(done, encoder):
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, done.before[name]), name
    assert not encoder.model.training


def test_features_are_not_left_behind(done):
    assert not (done.folder / "features").exists()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_tower_stays_and_the_rest_of_what_an_image_passes_moves(model_folder, done, frozen):
    encoder = load_encoder(model_folder)
    part = [encoder.picture(one) for one in done.data.parts["train"][:4]]
    labels = labels_of(done.data.parts["train"][:4])
    classifier = Classifier(encoder, 1, with_context=False, frozen_tower=frozen, seed=0)
    course = finetune(
        classifier, Labelled(part, labels), Labelled(part, labels), "binary", replace(TUNING, epochs=1), 0
    )
    assert len(course.validation) == 1
    moved = {name for name, one in encoder.model.state_dict().items() if not torch.equal(one, done.before[name])}
    assert any(name.startswith("vision.tower") for name in moved) != frozen
    assert {"perceiver", "image_projector"} <= {name.split(".")[0] for name in moved}
    assert not any(name.startswith("text") for name in moved)


def test_a_folder_of_features_that_is_there_is_not_overwritten(encoder, done, tmp_path):
    (tmp_path / "features" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="is there already"):
        segmentation(encoder, done.data, ALL, DECODER, tmp_path / "features")
    assert (tmp_path / "features" / "train").exists()


def compared(model, folder, expected):
    data = bright_set(folder / f"images of {Process.current().rank}")
    found = figures_of(load_encoder(model), data, folder / "features of both")
    assert found.keys() == expected.keys()
    for name, (value, low) in expected.items():
        assert (found[name].value, found[name].low) == (pytest.approx(value, abs=1e-6), pytest.approx(low, abs=1e-6)), (
            name
        )


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(model_folder, done, tmp_path):
    expected = {name: (one.value, one.low) for name, one in done.figures.items()}
    in_processes(compared, model_folder, tmp_path, expected)
