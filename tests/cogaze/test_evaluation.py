"""Evaluation as a command: held-out shards and benchmark twins, failures, strict options, processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from processes import in_processes
from twins.rsna import write_rsna

from cogaze.evaluate.classify import ProbeConfig
from cogaze.evaluate.datasets import read_dataset
from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.evaluation import EvaluateConfig, evaluate
from cogaze.evaluate.held_out import ShardImages, read_held_out
from cogaze.evaluate.on_dataset import OnDataset
from cogaze.evaluate.on_shards import OnShards
from cogaze.evaluate.quick import encode
from cogaze.evaluate.records import EvalImage, EvalSet, LabelledText
from cogaze.evaluate.scores import Intervals
from cogaze.evaluate.similarity import Embedded
from cogaze.evaluate.zero_shot import ZeroShotConfig
from cogaze.models.cogaze import CoGazeModel
from gazeprep.schema import CHEXPERT_LABELS, ImageRef
from gazeprep.shards import ShardFolder

ROOT = Path(__file__).parents[2]
QUICK = {"repeats": 5}


@pytest.fixture(autouse=True)
def _own_process():
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    root = tmp_path_factory.mktemp("rsna")
    write_rsna(root / "release", root / "lists", patients=40)
    return root


def written(out):
    return json.loads((out / "results.json").read_text())


def test_held_out_shards(shards, model_folder, tmp_path):
    results = evaluate(EvaluateConfig(model_folder, tmp_path, shards=str(shards), with_context=True, **QUICK))
    assert list(results.outcomes) == ["retrieval", "gaze", "localisation"]  # two images are no labels
    found = written(tmp_path)
    index = ShardFolder(shards).index
    test = index[index["split"] == "test"]
    assert found["settings"]["images"] == test["dicom"].nunique()
    assert found["settings"]["readings"] == len(test)
    by_name = {one["name"]: one for one in found["results"]["retrieval"]["figures"]}
    assert by_name["image to text R@1"]["n"] == found["settings"]["images"]
    assert set(by_name["image to text R@1 with context"]["baselines"]) == {"chance", "ceiling", "context alone"}
    table = (tmp_path / "results.md").read_text()
    for text in (str(shards), str(model_folder), *test["dicom"], *test["subject"], *test["study"]):
        assert text not in table + json.dumps(found)


@pytest.fixture
def on_shards(shards, model_folder):
    """The training images in place of the held-out ones, which are two."""
    encoder = load_encoder(model_folder)
    task = OnShards(encoder, ShardFolder(shards), "test", ZeroShotConfig(intervals=Intervals(repeats=5)))
    sections = encoder.collate.text.report_sections
    task.__dict__["judged"] = read_held_out(task.folder, "train", encoder.reader, sections)
    return task


def test_labels_by_sentences_and_by_the_head(on_shards):
    assert on_shards.fitting() == ["retrieval", "zero_shot", "labels", "gaze", "localisation"]
    truth = on_shards.judged.labels
    for found in (on_shards.zero_shot(), on_shards.labels()):
        named = {figure.name: figure for figure in found.figures}
        place = list(CHEXPERT_LABELS).index("Cardiomegaly")
        known = truth[truth[:, place] >= 0, place]
        assert named["Cardiomegaly AUROC"].n == len(known)
        assert named["Cardiomegaly AUPRC"].baselines == {"chance": pytest.approx(known.mean())}
        assert "Support Devices AUROC" in named
        assert found.notes["threshold"].startswith("best F1 among 1 validation images; 0 for")


def test_the_head_is_that_of_training(on_shards):
    found = on_shards.encoder.disease_logits(on_shards.judged.images)
    pooled = torch.cat([seen.pooled for seen in on_shards.encoder.features(on_shards.judged.images)])
    with torch.no_grad():
        assert found == pytest.approx(on_shards.encoder.model.vision_head(pooled).numpy(), abs=1e-5)


def test_shards_are_seen_as_training_sees_them(shards, model_folder, run_into, tmp_path):
    """Images, context, reports and the head, against the batches of the training loop."""
    model = CoGazeModel.from_pretrained(model_folder)
    seen = encode(run_into(tmp_path), model, ("train",), gaze=False)
    folder, encoder = ShardFolder(shards), load_encoder(model_folder)
    keys = list(folder.index["key"][folder.index["split"] == "train"])
    images = ShardImages(folder, keys, encoder.reader)
    assert encoder.images(images, with_context=True) == pytest.approx(seen.image.vectors, abs=1e-5)
    assert encoder.disease_logits(images, with_context=True) == pytest.approx(seen.scores, abs=1e-5)
    robbed = encode(run_into(tmp_path), model, ("train",), "no context", gaze=False)
    assert encoder.images(images) == pytest.approx(robbed.image.vectors, abs=1e-5)
    held_out = read_held_out(folder, "train", encoder.reader, encoder.collate.text.report_sections)
    rows = [keys.index(key) for key in held_out.images.keys if seen.has_report[keys.index(key)]]
    reports = [text for text in held_out.reports if text]
    assert encoder.embedded_texts(reports).vectors == pytest.approx(seen.report[np.array(rows)].vectors, abs=1e-5)


def test_one_failing_evaluator_loses_no_other(shards, model_folder, tmp_path, monkeypatch):
    def fails(_task):
        return {"a": 1}["/a/path/of/mine"]

    monkeypatch.setattr(OnShards, "zero_shot", fails)
    config = EvaluateConfig(
        model_folder, tmp_path, shards=str(shards), evaluators=("zero_shot", "gaze", "retrieval"), **QUICK
    )
    results = evaluate(config)
    found = written(tmp_path)["results"]
    assert results.failed == ["zero_shot"]
    assert found["zero_shot"] == {"error": "KeyError in an evaluator"}
    assert found["retrieval"]["figures"]
    assert found["gaze"]["figures"]


def test_a_benchmark_by_its_twin(rsna, model_folder, tmp_path):
    results = evaluate(
        EvaluateConfig(
            model_folder,
            tmp_path,
            dataset="rsna",
            root=rsna / "release",
            lists=rsna / "lists",
            evaluators=("zero_shot", "linear_probe"),
            shares=(100,),
            probe=ProbeConfig(penalties=(1.0,), iterations=10),
            **QUICK,
        )
    )
    assert not results.failed
    found = written(tmp_path)
    named = {one["name"]: one for one in found["results"]["zero_shot"]["figures"]}
    share = named["AUPRC"]["baselines"]["chance"]
    assert named["accuracy"]["baselines"] == {"always the majority": pytest.approx(max(share, 1 - share))}
    assert found["settings"]["parts"]["test"]["images"] == named["AUROC"]["n"]
    assert "best F1 among" in found["results"]["zero_shot"]["notes"]["threshold"]
    assert str(rsna) not in json.dumps(found)


@pytest.fixture(scope="module")
def task(rsna, model_folder):
    """Everything that a benchmark's evaluation holds."""
    data = read_dataset("rsna", rsna / "release", rsna / "lists")
    return OnDataset(load_encoder(model_folder), data, ZeroShotConfig(), None, None)


def test_which_evaluators_fit_a_dataset(task):
    assert task.fitting() == ["zero_shot", "linear_probe", "segmentation"]
    with pytest.raises(ValueError, match="neither sentences nor reports"):
        task.retrieval()


def test_a_reading_is_no_image(shards, model_folder):
    """Several readings of an image are one image, whose labels are 1, 0 or unknown."""
    folder = ShardFolder(shards)
    found = read_held_out(folder, "validate", load_encoder(model_folder).reader, ("findings", "impression"))
    rows = folder.index[folder.index["split"] == "validate"]
    assert len(found) == rows["dicom"].nunique() == len(found.reports)
    assert set(np.unique(found.labels)) <= {-1, 0, 1}
    first = folder.sample(found.images.keys[0])
    assert found.reports[0] == (first.record["findings"].strip() or first.record["impression"].strip())
    gray = found.images.without_pictures(99)[0]
    assert set(np.unique(gray.pixels)) <= {0, 99}


class Oracle:
    """A model to which image and text are one of five classes, or a report of its own."""

    def embedded(self, images, *, with_context):
        return Embedded.of(np.array([self.vector(one.report or one.id) for one in images]))

    def embedded_texts(self, texts):
        return Embedded.of(np.array([self.vector(text) for text in texts]))

    def vector(self, text):
        """One axis for the class, the first letter, and a little of one for the rest."""
        axes = np.eye(1005)
        return axes["ABCDE".index(text[0])] + 0.1 * axes[5 + int(text[1:])]


def retrieved(task, names, texts=(), reports=True):
    ref = ImageRef("root", "image.png", "raster", "made up")
    classes = ("A", "B", "C", "D", "E")
    labels = [tuple(int(one == name[0]) for one in classes) for name in names]
    images = [
        EvalImage(f"{name}{number:03}", ref, own, report=name if reports else "")
        for number, (name, own) in enumerate(zip(names, labels, strict=True))
    ]
    data = EvalSet("made up", task, classes, {"test": tuple(images)}, texts=texts)
    config = ZeroShotConfig(intervals=Intervals(repeats=5))
    found = OnDataset(Oracle(), data, config, None, None).retrieval()
    return {figure.name: figure for figure in found.figures}, found.notes


def test_reports_of_classes_are_retrieved_by_class_and_each_by_its_own():
    """5x200: the own report is among the hits; three images of A0 share one report."""
    names = [f"{name}{number}" for name in "ABCDE" for number in range(7)] + ["A0", "A0"]
    found, notes = retrieved("multi-class", names)
    assert found["same class, image to text P@5"].value == 1
    assert found["same class, image to text P@5"].baselines["chance"] == pytest.approx((9 * 9 + 4 * 7 * 7) / 37**2)
    assert found["own report, image to text R@1"].value == found["own report, text to image R@1"].value == 1
    assert found["own report, image to text R@1"].baselines["chance"] == pytest.approx(1 / 35)
    assert notes["own report, candidates"] == "35 reports, 37 images"
    assert notes["same class, candidates"] == "37 texts, 37 images"


def test_sentences_of_the_set_are_retrieved_by_class():
    """8x200: five sentences a class."""
    texts = tuple(LabelledText(f"{name}{number}", place) for place, name in enumerate("ABCDE") for number in range(5))
    found, notes = retrieved("multi-class", ["A", "B", "C", "D", "E"] * 3, texts, reports=False)
    assert found["image to text P@10"].value == found["image to text P@10"].baselines["ceiling"] == 0.5
    assert found["text to image P@1"].value == 1
    assert notes["candidates"] == "25 texts, 15 images"


def test_reports_without_classes_are_retrieved_as_pairs():
    found, _ = retrieved("multi-label", ["A1", "B2", "B2", "C3"])
    assert found["image to text R@1"].value == 1
    assert found["text to image P@1"].baselines["chance"] == pytest.approx((1 + 2 + 1) / 3 / 4)


WRONG = {
    "neither": ({}, "give either shards or dataset"),
    "both": ({"shards": "a", "dataset": "rsna", "root": Path()}, "give either shards or dataset"),
    "no root": ({"dataset": "rsna"}, "give root"),
    "lists of shards": ({"shards": "a", "lists": Path()}, "leave them out with shards"),
    "what was trained on": ({"shards": "a", "split": "train"}, "split is 'train', must be test or validate"),
    "fewer than none": ({"shards": "a", "repeats": -1}, "must be at least 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_do_not_go_together_are_refused(name, tmp_path):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(tmp_path, tmp_path, **options)


def test_an_evaluator_that_there_is_not(shards, model_folder, tmp_path):
    with pytest.raises(ValueError, match="no evaluator segmentation here; there are retrieval"):
        evaluate(EvaluateConfig(model_folder, tmp_path, shards=str(shards), evaluators=("segmentation",)))


def run(*arguments):
    command = [sys.executable, str(ROOT / "pipelines/evaluate.py"), *map(str, arguments)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)


@pytest.mark.slow
def test_the_command(rsna, model_folder, tmp_path):
    asked = ["--dataset", "rsna", "--root", rsna / "release", "--lists", rsna / "lists", "--repeats", 5]
    done = run(
        "--model", model_folder, "--out", tmp_path, *asked, "--evaluators", "[zero_shot]", "--options.boxes=cogaze"
    )
    assert done.returncode == 0, done.stderr
    assert "| AUROC |" in done.stdout
    assert run("--model", model_folder, "--out", tmp_path, *asked, "--no_such_option", 1).returncode == 2
    refused = run("--model", model_folder, "--out", tmp_path, *asked, "--options.colour=red")
    assert refused.returncode == 1
    assert "rsna has no option colour" in refused.stderr


def evaluated(model, shards, rsna, out):
    torch.set_num_threads(1)
    evaluate(EvaluateConfig(model, out / "shards", shards=str(shards), with_context=True, **QUICK))
    asked = {"dataset": "rsna", "root": rsna / "release", "lists": rsna / "lists", "shares": (100,)}
    evaluate(EvaluateConfig(model, out / "rsna", evaluators=("zero_shot", "linear_probe"), **asked, **QUICK))


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(shards, rsna, model_folder, tmp_path):
    in_processes(evaluated, model_folder, shards, rsna, tmp_path / "two")
    evaluated(model_folder, shards, rsna, tmp_path / "one")
    for name in ("shards", "rsna"):
        two, one = (written(tmp_path / processes / name) for processes in ("two", "one"))
        assert (two["settings"].pop("processes"), one["settings"].pop("processes")) == (2, 1)
        assert two == one
        assert all(outcome.get("figures") for outcome in one["results"].values())
