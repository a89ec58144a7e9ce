"""A saved model as evaluation asks of it: the model's own numbers, one row an image, the same from two processes."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import in_processes
from transformers import AutoTokenizer

from cogaze.data.collate import CollateConfig, TextConfig
from cogaze.data.transforms import ViewConfig
from cogaze.evaluate.canvas import CanvasReader, age_and_sex
from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.processes import OtherProcessError, batches_of, rows_in_order
from cogaze.evaluate.records import EvalImage
from cogaze.evaluate.similarity import Embedded, Similarity
from cogaze.losses.egma import batch_contrastive
from cogaze.models.egma import build_egma
from gazeprep.schema import ImageRef, InputError

TEXTS = ["clear lungs .", "the heart is normal in size .", "no effusion ."]


def write_images(folder, count, shape=(60, 40)):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    found = []
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, shape, dtype=np.uint8))
        ref = ImageRef(str(folder), f"{number}.png", "raster", "made up")
        found.append(EvalImage(f"image-{number}", ref, (number % 2,), view="PA", sex="M", age_years=40 + number))
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 5)


@pytest.fixture(scope="module")
def encoder(model_folder):
    return load_encoder(model_folder)


def test_images_are_the_mean_visual_latent_without_context_unless_asked(encoder, images):
    found = encoder.images(images, batch=2)
    shown = encoder.shown([encoder.picture(one) for one in images])
    with torch.no_grad():
        output = encoder.model(
            pixel_values=shown.pixel_values,
            view_position=shown.view_position,
            patch_mask=shown.patch_mask,
            context_input_ids=shown.context.ids,
            context_mask=shown.context.mask,
            has_context=torch.zeros(5, dtype=torch.bool),
            **{f"{name}_{what}": getattr(shown.context, field) for name in ("report", "sentence")
               for what, field in (("input_ids", "ids"), ("mask", "mask"))},
        )  # fmt: skip
    assert found == pytest.approx(F.normalize(output.visual_embed, dim=-1).numpy(), abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(encoder.images(images, with_context=True), found, atol=1e-3)


@pytest.mark.slow
def test_workers_that_read_ahead_change_nothing(encoder, images, model_folder):
    ahead = load_encoder(model_folder, workers=1)
    assert np.array_equal(ahead.images(images, batch=2), encoder.images(images, batch=2))


def test_a_text_does_not_depend_on_the_padding_of_its_neighbours(encoder):
    together = encoder.texts(TEXTS)
    alone = np.concatenate([encoder.texts([text]) for text in TEXTS])
    assert together == pytest.approx(alone, abs=1e-6)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)


def test_similarity_is_the_cosine(encoder, images):
    found = encoder.similarity(images, TEXTS)
    assert found == pytest.approx(encoder.images(images) @ encoder.texts(TEXTS).T, abs=1e-6)


def test_features_come_batch_by_batch_and_know_where_the_image_lies(encoder, images):
    batches = list(encoder.features(images, batch=3))
    assert [len(one.pooled) for one in batches] == [3, 2]
    assert batches[0].patches.shape == (3, 16, 16)
    assert batches[0].latents.mean(dim=1) == pytest.approx(batches[0].pooled)
    # 60 x 40 px on 56 x 56: 37 px wide from 9 on, so that all four columns of patches show image.
    assert batches[0].views[0].content == (9, 0, 46, 56)
    assert batches[0].patch_mask.all()


def test_attention_is_the_training_loss_s_softmax_over_shown_patches(encoder, tmp_path):
    narrow = write_images(tmp_path / "narrow", 2, shape=(60, 20))
    found = encoder.attention(narrow, [TEXTS[:2], []])
    assert [one.shape for one in found] == [(2, 16), (0, 16)]
    seen = next(encoder.features(narrow))
    tokens = encoder.tokens([f"[CLS] [TRANSCRIPT] {text}" for text in TEXTS[:2]])
    with torch.no_grad():
        spoken = encoder.model.encode_text(tokens.ids, tokens.mask).token_features[:, 0]
    cosine = F.normalize(spoken, dim=-1) @ F.normalize(seen.patches[0], dim=-1).T
    logits = (cosine / 0.07).masked_fill(~seen.patch_mask[0], -torch.inf)
    assert not seen.patch_mask[0].all()
    assert found[0] == pytest.approx(logits.softmax(dim=-1).numpy(), abs=1e-5)


def test_an_image_is_letterboxed_and_its_affine_leads_from_its_own_px(images):
    reader = CanvasReader(ViewConfig(rule="random_resized_crop", size_px=28, flip=0.5), (2, 2))
    canvas = reader.read(images[0])
    assert canvas.pixels.shape == (28, 28)
    assert canvas.view.affine.rectangle((0, 0, 40, 60)) == pytest.approx((4, 0, 23, 28))
    assert not canvas.pixels[:, :4].any()


@pytest.mark.parametrize(
    ("age", "sex", "said"),
    [
        (55, "M", "A 55-year-old man"),
        (8, "F", "An 8-year-old girl"),
        (18, "F", "An 18-year-old woman"),
        (80, "", "An 80-year-old patient"),
        (None, "F", "A woman"),
        (None, "", ""),
    ],
)
def test_age_and_sex_in_words(images, age, sex, said):
    assert age_and_sex(replace(images[0], age_years=age, sex=sex)) == said


def test_several_vectors_a_thing_are_compared_both_ways():
    patches = Embedded(np.array([[1.0, 0], [0, 1], [1, 0]]), np.array([2, 1]))
    sentences = Embedded(np.array([[1.0, 0], [0.6, 0.8]]), np.array([1, 1]))
    # Image 0 and sentence 1: patches .6 and .8, mean .7; the sentence's best patch .8.
    expected = [[(0.5 + 1) / 2, (0.7 + 0.8) / 2], [1, 0.6]]
    found = Similarity(patches, sentences)
    assert found.array() == pytest.approx(np.array(expected))
    assert found.reversed.array() == pytest.approx(np.array(expected).T)


def test_an_image_that_cannot_be_read_is_told_by_its_place(encoder, images, tmp_path):
    (tmp_path / "cut.png").write_bytes((Path(images[0].image.root) / images[0].image.path).read_bytes()[:100])
    broken = replace(images[1], image=ImageRef(str(tmp_path), "cut.png", "raster", "made up"))
    with pytest.raises(InputError, match=r"^image 2 of 5: the image file is damaged") as error:
        encoder.images([images[0], broken, *images[2:]])
    assert str(tmp_path) not in str(error.value)


def test_a_folder_without_the_run_s_config_is_refused_without_naming_it(tmp_path, model_folder):
    with pytest.raises(ValueError, match=r"no readable run.json") as error:
        load_encoder(tmp_path)
    assert str(tmp_path) not in str(error.value)
    shutil.copytree(model_folder, tmp_path / "model")
    stated = json.loads((model_folder / "run.json").read_text())
    stated["collate"]["colour"] = 1
    (tmp_path / "model/run.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match="does not hold the config"):
        load_encoder(tmp_path / "model")
    (tmp_path / "model/run.json").write_text(json.dumps({**stated, "method": "gloria"}))
    with pytest.raises(ValueError, match="method 'gloria'"):
        load_encoder(tmp_path / "model")


@pytest.fixture(scope="module")
def egma_folder(towers, tmp_path_factory):
    """An untrained EGMA for 56 px as a run exports it."""
    folder = tmp_path_factory.mktemp("egma") / "model"
    torch.manual_seed(0)
    vision, text = str(towers / "vision"), str(towers / "text")
    build_egma(vision, text, image_size=56, hidden_size=16, averaged_layers=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(towers / "text").save_pretrained(folder)
    collate = CollateConfig(
        TextConfig(report="[CLS] {report} [SEP]", sentence="[CLS] {sentence} [SEP]"), sentences="all"
    )
    seen = {"collate": asdict(collate), "data": {"view": asdict(ViewConfig(size_px=56))}}
    (folder / "run.json").write_text(json.dumps({"method": "egma", **seen}))
    return folder


@pytest.fixture(scope="module")
def egma(egma_folder):
    return load_encoder(egma_folder)


def test_egma_compares_patches_and_sentences_as_its_loss_does(egma, tmp_path):
    square = write_images(tmp_path / "square", 3, shape=(56, 56))
    reports = ["clear lungs. no effusion.", "the heart is normal in size.", "cough. fever. rule out pneumonia."]
    seen = next(egma.features(square))
    sentences = [
        "clear lungs.",
        "no effusion.",
        "the heart is normal in size.",
        "cough.",
        "fever.",
        "rule out pneumonia.",
    ]
    spoken = torch.from_numpy(egma.texts(sentences)).float()
    loss = batch_contrastive(seen.patches, spoken, torch.tensor([2, 1, 3]), torch.tensor(0.0))
    expected = (loss.patch_similarity + loss.sentence_similarity) / 2
    assert egma.embedded_texts(reports).count.tolist() == [2, 1, 3]
    assert egma.similarity(square, reports) == pytest.approx(expected.numpy(), abs=1e-5)


def test_egma_leaves_padding_out(egma, tmp_path):
    narrow = write_images(tmp_path / "narrow", 2, shape=(60, 20))
    seen = next(egma.features(narrow))
    assert egma.embedded(narrow).count.tolist() == [8, 8] == seen.patch_mask.sum(dim=1).tolist()
    mean = seen.patches[0][seen.patch_mask[0]].mean(dim=0)
    assert seen.pooled[0] == pytest.approx(mean, abs=1e-6)
    (found,) = egma.attention(narrow[:1], [["clear lungs"]])
    assert found.sum() == pytest.approx(1)
    assert not found[0, ~seen.patch_mask[0].numpy()].any()


def numbers(folders, images):
    found = {}
    for name, folder in zip(("cogaze", "egma"), folders, strict=True):
        encoder = load_encoder(folder)
        seen = encoder.embedded(images, batch=2)
        found |= {
            f"{name} vectors": seen.vectors,
            f"{name} count": seen.count,
            f"{name} texts": encoder.embedded_texts(TEXTS).vectors,
            f"{name} attention": np.concatenate(
                encoder.attention(images, [TEXTS[:n] for n in (1, 0, 2, 3, 1)], batch=2)
            ),
        }
    return found


def fails_in_one(out: Path):
    rank = torch.distributed.get_rank()

    def encode(batches):
        for batch in batches:
            if batch.start == 2:
                raise LookupError("of my own")
            yield {"rows": torch.zeros(len(batch))}

    with pytest.raises(LookupError if rank == 1 else OtherProcessError):
        rows_in_order(batches_of(4, 2), encode)
    (out / f"refused-{rank}").touch()


def in_two(folders, images, out: Path):
    np.savez(out / f"{torch.distributed.get_rank()}.npz", **numbers(folders, images))
    fails_in_one(out)


@pytest.mark.slow
def test_two_processes_have_the_same_rows_and_hear_of_each_other_s_faults(model_folder, egma_folder, images, tmp_path):
    torch.set_num_threads(1)
    folders = (model_folder, egma_folder)
    in_processes(in_two, folders, images, tmp_path)
    alone = numbers(folders, images)
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            for name, rows in alone.items():
                assert np.array_equal(found[name], rows), name
        assert (tmp_path / f"refused-{rank}").exists()
