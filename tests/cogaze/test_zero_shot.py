"""Zero-shot: scores of single images, ensembles, prompts with their hash; an oracle has 1, a random model chance."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.prompts import NORMAL, PROMPTS, prompt_hash, prompts_of, read_prompts
from cogaze.evaluate.records import EvalImage, EvalSet
from cogaze.evaluate.scores import Intervals
from cogaze.evaluate.similarity import Embedded
from cogaze.evaluate.zero_shot import ZeroShotConfig, class_similarity, scores_of, zero_shot
from gazeprep.schema import CHEXPERT_LABELS, ImageRef

FEW = Intervals(repeats=10)
NIH_LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip


def made(task, classes, parts):
    ref = ImageRef("root", "image.png", "raster", "made up")
    numbered = iter(range(10**6))
    images = {
        part: tuple(EvalImage(f"{next(numbered)}", ref, tuple(map(int, row))) for row in rows)
        for part, rows in parts.items()
    }
    return EvalSet("made up", task, tuple(classes), images)


@dataclass
class Oracle:
    """A model to which a text is its class, an image all classes that it has, or normal."""

    classes: tuple[str, ...]

    def texts(self, texts):
        axes = [NORMAL, *self.classes]
        rows = [next(i for i, name in enumerate(axes) if text in prompts_of(name)) for text in texts]
        return np.eye(len(axes))[rows]

    def embedded(self, images, *, with_context):
        rows = [[not any(one.labels), *one.labels] for one in images]
        return Embedded.of(np.array(rows, dtype=float))


class Random(Oracle):
    """A model that knows nothing."""

    def embedded(self, images, *, with_context):
        return Embedded.of(np.random.default_rng(len(images)).normal(size=(len(images), 1 + len(self.classes))))


def drawn(task, classes):
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("validate", 40), ("test", 120)):
        single = np.eye(len(classes), dtype=int)[rng.integers(0, len(classes), count)]
        parts[part] = single if task == "multi-class" else rng.integers(0, 2, (count, len(classes)))
    return made(task, classes, parts)


SETS = {
    "binary": ("Pneumonia",),
    "multi-class": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
    "multi-label": ("Effusion", "Pneumothorax", "Hernia"),
}


@pytest.mark.parametrize("ensemble", ["mean", "max"])
@pytest.mark.parametrize("task", SETS)
def test_an_oracle_has_one(task, ensemble):
    data = drawn(task, SETS[task])
    found = zero_shot(Oracle(data.classes), data, ZeroShotConfig(ensemble, intervals=FEW))
    for figure in found.figures:
        assert figure.value == 1, figure.name


@pytest.mark.parametrize("task", SETS)
def test_a_random_model_has_chance(task):
    data = drawn(task, SETS[task])
    found = zero_shot(Random(data.classes), data, ZeroShotConfig(intervals=FEW))
    ranked = [figure for figure in found.figures if "AUROC" in figure.name or "balanced" in figure.name]
    assert ranked
    for figure in ranked:
        assert figure.value == pytest.approx(figure.baselines["chance"], abs=0.2), figure.name


def test_an_image_s_score_does_not_depend_on_the_others():
    """The published codes standardise over the batch."""
    sentences = [Embedded.of(np.random.default_rng(i).normal(size=(3, 4))) for i in range(3)]
    images = np.random.default_rng(9).normal(size=(6, 4))
    together = scores_of(class_similarity(Embedded.of(images), sentences, "mean"), ("A", "B"))
    for row, image in zip(together, images, strict=True):
        alone = scores_of(class_similarity(Embedded.of(image[None]), sentences, "mean"), ("A", "B"))
        assert alone[0] == pytest.approx(row, abs=2e-9)


def test_ensembles_by_hand():
    sentences = [Embedded.of(np.array([[1.0, 0], [0, 1]]))]
    image = Embedded.of(np.array([[1.0, 0]]))
    assert class_similarity(image, sentences, "mean")[0, 0] == pytest.approx(np.sqrt(0.5))
    assert class_similarity(image, sentences, "max")[0, 0] == 1


def test_a_finding_s_absence_scores_against_the_most_alike_finding():
    found = scores_of(np.array([[0.5, 0.5, 0.2, 0.9]]), ("No Finding", "Edema", "Mass"))
    assert found == pytest.approx(np.array([[-0.4, -0.3, 0.4]]))


def test_what_was_asked_and_where_thresholds_come_from_is_noted():
    data = drawn("binary", ("Pneumonia",))
    notes = zero_shot(Oracle(data.classes), data, ZeroShotConfig(intervals=FEW)).notes
    used = {"absence of findings": PROMPTS[NORMAL], "Pneumonia": PROMPTS["pneumonia"]}
    assert notes["prompts"] == f"20 sentences, hash {prompt_hash(used)}"
    assert notes["threshold"] == "best F1 among 40 validation images"
    assert notes["context"] == "none"
    with pytest.raises(ValueError, match="no test part"):
        zero_shot(Oracle(data.classes), made("binary", ("Pneumonia",), {"train": [[1]]}))


@pytest.mark.parametrize("name", [*CHEXPERT_LABELS, *NIH_LABELS, "Tuberculosis", "COVID-19"])
def test_every_class_of_the_benchmarks_has_prompts_of_its_own(name):
    found = prompts_of(name)
    assert len(set(found)) == len(found) >= 5
    assert all(one.endswith(".") for one in found)


def test_the_hash_is_of_every_sentence():
    assert prompt_hash(PROMPTS) == prompt_hash(dict(reversed(PROMPTS.items())))
    assert prompt_hash({"a": ("b", "c")}) != prompt_hash({"a": ("c", "b")})
    assert prompt_hash({"a": ("b",)}) != prompt_hash({"b": ("b",)})


def test_prompts_of_one_s_own(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("pneumonia: [One sentence.]\nsilicosis: [Another one., A third.]\n")
    found = read_prompts(path)
    assert prompts_of("Pneumonia", found) == ("One sentence.",)
    assert prompts_of("Silicosis", found) == ("Another one.", "A third.")
    assert prompts_of("normal", found) == PROMPTS[NORMAL]
    with pytest.raises(ValueError, match="no prompts for the class 'Silicosis'"):
        prompts_of("Silicosis")
    for text in ("[]", "pneumonia: one", "pneumonia: []", "pneumonia: [1]", "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match="prompts' file"):
            read_prompts(path)


def test_a_real_model_end_to_end(model_folder, tmp_path):

    rng = np.random.default_rng(0)
    images = {}
    for part, numbers in (("validate", range(4)), ("test", range(4, 12))):
        for number in numbers:
            cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 255, (50, 60), dtype=np.uint8))
        refs = [(number, ImageRef(str(tmp_path), f"{number}.png", "raster", "made up")) for number in numbers]
        images[part] = tuple(EvalImage(str(number), ref, (number % 2,)) for number, ref in refs)
    data = EvalSet("made up", "binary", ("Pneumonia",), images)
    for ensemble in ("mean", "max"):
        found = zero_shot(load_encoder(model_folder), data, ZeroShotConfig(ensemble, intervals=FEW))
        assert [figure.n for figure in found.figures] == [8] * 5
        assert all(0 <= figure.value <= 1 for figure in found.figures)
