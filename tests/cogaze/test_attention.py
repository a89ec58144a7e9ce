"""Where texts look: metrics by hand, the gaze and the region themselves as oracles, maps drawn at random as chance."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import in_processes
from test_encoder import write_images
from transformers import AutoTokenizer

from cogaze.data.collate import CollateConfig, TextConfig
from cogaze.data.dataset import DatasetConfig, ShardDataset, read_table
from cogaze.data.plan import PlanItem
from cogaze.data.transforms import View, ViewConfig
from cogaze.evaluate import attention
from cogaze.evaluate.attention import ATTENTION, HeldOut, gaze_figures, localisation_figures
from cogaze.evaluate.canvas import Canvas
from cogaze.evaluate.encoder import Encoder, load_encoder
from cogaze.evaluate.gaze import METRICS, Gazed
from cogaze.evaluate.localise import LEVELS, Located, cases_of, naming_sentence, prompt_of
from cogaze.evaluate.methods import Egma
from cogaze.evaluate.readings import Reading, Region, centre_map, coverage, read_readings
from cogaze.evaluate.saliency import grad_cam, similarity, text_saliency
from cogaze.evaluate.similarity import Embedded, Similarity
from cogaze.models.egma import build_egma
from gazeprep.shards import ShardFolder

GRID = (8, 8)
WHOLE = View(canvas_px=80, crop=(0, 0, 80, 80), resized=(80, 80))
WIDE = View(canvas_px=80, crop=(0, 0, 160, 80), resized=(80, 40), top=20)


def gazed(*rows, shown=None, elsewhere=None):
    gaze = np.array(rows, dtype=float)
    shown = np.ones(gaze.shape, dtype=bool) if shown is None else np.array(shown, dtype=bool)
    elsewhere = np.ones(gaze.shape[1]) if elsewhere is None else np.array(elsewhere, dtype=float)
    return Gazed(gaze, shown, np.arange(len(gaze), dtype=float), elsewhere)


def test_metrics_by_hand_and_padding_does_not_count():
    seen = gazed([0, 0, 0, 2, 9], shown=[[1, 1, 1, 1, 0]], elsewhere=[1, 1, 0, 0, 5])
    found = seen.scores(np.array([0.0, 1.0, 2.0, 3.0, 100.0]))
    assert found.nss[0] == pytest.approx(1.5 / np.std([0, 1, 2, 3]))
    assert found.auc[0] == pytest.approx(3.5 / 4)  # above three of four patches, level with itself
    assert found.auc_shuffled[0] == 1  # above both that others looked at
    assert found.cc[0] == pytest.approx(np.corrcoef([0, 1, 2, 3], [0, 0, 0, 2])[0, 1])
    assert found.kl[0] == pytest.approx(-np.log(0.99 * 3 / 6 + 0.01 / 4))


def test_the_gaze_itself_is_the_ceiling_and_an_even_map_is_chance():
    rng = np.random.default_rng(0)
    seen = gazed(*rng.dirichlet(np.full(20, 0.2), size=6), elsewhere=rng.random(20))
    best, even = seen.scores(seen.gaze), seen.scores(np.ones(20))
    assert best.cc == pytest.approx(1)
    assert np.all(best.kl < 0.01)
    assert [even.nss, even.auc, even.auc_shuffled] == [pytest.approx(chance) for chance in (0, 0.5, 0.5)]
    for name in ("nss", "auc", "cc"):
        assert np.all(getattr(best, name) > getattr(seen.scores(rng.random((6, 20))), name))


def test_random_maps_score_chance():
    rng = np.random.default_rng(1)
    seen = gazed(*rng.dirichlet(np.ones(30), size=150))
    found = seen.scores(rng.random((150, 30)))
    assert (found.nss.mean(), found.cc.mean()) == (pytest.approx(0, abs=0.05), pytest.approx(0, abs=0.05))
    assert found.auc.mean() == pytest.approx(0.5, abs=0.02)
    assert found.auc_shuffled.mean() == pytest.approx(0.5, abs=0.02)


def test_a_map_that_is_missing_has_no_score():
    found = gazed([1, 0], [0, 1]).scores(np.array([[np.nan, np.nan], [0, 1]]))
    assert [np.isnan(getattr(found, name)).tolist() for name in METRICS.values()] == [[True, False]] * 5


# --- regions on patches


def region(*box, shape="box", label="Mass", certainty=5):
    return Region(shape, tuple(map(float, box)), (label,), certainty)


def test_coverage_of_boxes_and_ellipses():
    boxes = coverage([region(10, 0, 25, 10), region(10, 0, 20, 10)], 80, GRID).reshape(GRID)
    assert boxes[0].tolist() == [0, 1, 0.5, 0, 0, 0, 0, 0]
    assert boxes[1:].sum() == 0
    area = coverage([region(8, 16, 68, 56, shape="ellipse")], 80, GRID).sum() * 100
    assert area == pytest.approx(np.pi / 4 * 60 * 40, rel=0.01)


def test_the_centre_map_is_of_the_picture_not_the_canvas():
    tall, wide = centre_map(WHOLE, GRID).reshape(GRID), centre_map(WIDE, GRID).reshape(GRID)
    assert (tall.sum(), wide.sum()) == (pytest.approx(1), pytest.approx(1))
    assert wide.sum(axis=0) == pytest.approx(tall.sum(axis=0))
    assert wide[:, 3] == pytest.approx(wide[::-1, 3])
    assert wide[3, 3] / wide[2, 3] == pytest.approx(np.exp(0.5 * (1.5**2 - 0.5**2)))  # sigma is one patch


def reading(*regions, image=0, subject=0, sentences=(), view=WHOLE, gaze=None):
    canvas = Canvas(np.zeros((80, 80), np.uint8), view, view.patch_mask(GRID), 0)
    maps = np.full((1 + len(sentences), 64), 1 / 64) if gaze is None else np.array(gaze)
    return Reading(canvas, image, subject, tuple(sentences), "", maps, tuple(regions))


def located(*regions, view=WHOLE):
    readings = [reading(*regions, view=view)]
    return Located.of(cases_of(readings), readings, GRID)


def point(row, col, value=1.0):
    saliency = np.zeros(GRID)
    saliency[row, col] = value
    return saliency.reshape(1, 64)


def test_the_pointing_game_by_hand():
    place = located(region(10, 0, 30, 10))  # second and third patch of the first row
    assert place.pointing(point(0, 1)) == 1
    assert place.pointing(point(0, 3)) == 0
    assert place.pointing(point(0, 2) + point(0, 3)) == 0.5  # a tie
    assert place.pointing(np.ones((1, 64))) == 2 / 64  # the region's share of the picture


def test_padding_is_not_pointed_at():
    place = located(region(10, 20, 30, 30), view=WIDE)  # rows 2 to 5 show picture
    assert place.pointing(point(0, 0, 9.0) + point(2, 1)) == 1
    assert place.iou(np.ones((1, 64)))[0] == pytest.approx(2 / 32)


def test_iou_at_levels_and_auc_by_hand():
    place = located(region(10, 0, 30, 10))
    saliency = point(0, 1, 1.0) + point(0, 3, 0.5)
    iou = place.iou(saliency)[0]
    assert iou[LEVELS <= 0.5 + 1e-9] == pytest.approx(1 / 3)  # of three patches one is in both
    assert iou[LEVELS > 0.5 + 1e-9] == pytest.approx(1 / 2)
    assert place.auc(saliency) == pytest.approx((1 + (61 / 62) / 2) / 2)
    assert np.isnan(located(region(0, 0, 80, 80)).auc(np.ones((1, 64))))  # nothing is beside it


def test_the_region_itself_is_found_and_random_maps_score_its_share_of_the_picture():
    place = located(region(10, 20, 50, 60))
    assert (place.pointing(place.covered), place.auc(place.covered), place.iou(place.covered).min()) == (1, 1, 1)
    drawn = np.random.default_rng(0).random((2000, 1, 64))
    assert np.mean([place.pointing(one) for one in drawn]) == pytest.approx(16 / 64, abs=0.03)
    assert np.mean([place.auc(one) for one in drawn[:300]]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("label", "sentences", "named"),
    [
        ("Pneumothorax", ["No pneumothorax.", "There is a small left pneumothorax."], 1),
        ("Pneumothorax", ["The lungs are clear."], None),
        ("Enlarged cardiac silhouette", ["The heart is normal in size."], None),
        ("Enlarged cardiac silhouette", ["The heart is mildly enlarged."], 0),
        ("Lung nodule or mass", ["A massive effusion.", "A 2 cm mass in the right lung."], 1),
        ("cardiac silhouette", ["The lungs are clear.", "The heart is normal in size."], 1),  # a part, not a finding
        ("right lower lung zone", ["Opacity in the left lower lung.", "Opacity in the right lower lung zone."], 1),
        ("carina", ["The carina is sharp."], 0),  # no words of its own
    ],
)
def test_the_sentence_that_names_a_label(label, sentences, named):
    assert naming_sentence(label, sentences) == ("" if named is None else sentences[named])


def test_prompts():
    assert prompt_of("Groundglass opacity") == "ground-glass opacity."
    assert prompt_of("Left lung") == "left lung."


def test_a_case_is_all_that_one_reader_drew_of_a_label_and_was_sure_of():
    drawn = [region(0, 0, 10, 10, shape="ellipse", certainty=2), region(20, 0, 30, 10, shape="ellipse", certainty=3)]
    cases = cases_of([reading(*drawn, region(0, 0, 9, 9, label="trachea", certainty=0))])
    assert [(case.label, case.shape, case.regions) for case in cases] == [
        ("Mass", "ellipse", (drawn[1],)),
        ("trachea", "box", (region(0, 0, 9, 9, label="trachea", certainty=0),)),
    ]
    assert len(cases_of([reading(*drawn)], least_certainty=1)[0].regions) == 2


# --- whole evaluations of models that know, or do not


class Looking:
    """An encoder whose attention to a text is what a table says."""

    reader = SimpleNamespace(grid=GRID)

    def __init__(self, table):
        self.table = table

    def attention(self, canvases, sentences):
        return [np.array([self.table(text) for text in own]).reshape(-1, 64) for own in sentences]

    def texts(self, texts):
        return np.zeros((len(texts), 2))


@pytest.fixture
def no_cam(monkeypatch):
    monkeypatch.setattr(attention, "text_saliency", lambda _encoder, _canvas, texts: torch.ones(len(texts), 64))


def spoken(seed, image, subject):
    rng = np.random.default_rng(seed)
    sentences = [f"sentence {seed} {number}" for number in range(2)]
    maps = rng.dirichlet(np.full(64, 0.1), size=3)
    return reading(image=image, subject=subject, sentences=sentences, gaze=maps)


def test_attention_that_is_the_gaze_reaches_the_ceiling_and_random_attention_does_not(no_cam):
    held_out = [spoken(1, 0, 0), spoken(2, 0, 0), spoken(3, 1, 1)]
    table = {text: one for each in held_out for text, one in zip(each.sentences, each.maps[1:], strict=True)}
    table |= {" ".join(each.sentences): each.maps[0] for each in held_out}
    training = [spoken(9, 5, 5)]
    found = {one.name: one for one in gaze_figures(Looking(table.get), held_out, training, repeats=20).figures}
    for figure in found.values():
        assert figure.value == pytest.approx(figure.baselines["ceiling"])
    assert found["NSS, sentence"].n == 6
    assert found["NSS, sentence"].baselines["another sentence"] < 0.5 < found["NSS, sentence"].value
    shared = found["NSS, reading with other readers"]
    assert (shared.n, found["NSS, reading"].n) == (2, 3)
    first, second = held_out[:2]
    by_hand = [gazed(one.maps[0]).scores(other.maps[0]).nss[0] for one, other in ((first, second), (second, first))]
    assert shared.baselines["other readers"] == pytest.approx(np.mean(by_hand))
    rng = np.random.default_rng(0)
    chance = gaze_figures(Looking(lambda text: rng.random(64)), held_out, training, repeats=20).figures[0]
    assert chance.value < 0.5 < chance.baselines["ceiling"]


def drawn(image, left, certainty=5):
    return reading(
        region(left, 0, left + 20, 20, shape="ellipse", certainty=certainty),
        region(left, 30, left + 20, 50, label="trachea", certainty=0),
        image=image,
        subject=image,
        sentences=(f"mass at {left}.", "the trachea."),
    )


def test_attention_that_is_the_region_reaches_the_ceiling(no_cam):
    parts = HeldOut(test=[drawn(0, 0), drawn(0, 10), drawn(1, 20)], validate=[drawn(2, 40)], train=[drawn(3, 0)])
    where = {f"mass at {left}.": coverage([region(left, 0, left + 20, 20, shape="ellipse")], 80, GRID)
             for left in (0, 10, 20, 40)}  # fmt: skip
    found = localisation_figures(Looking(lambda text: where.get(text, np.ones(64))), parts, repeats=20)
    by_name = {one.name: one for one in found.figures}
    sentence = by_name["IoU, findings by sentence"]
    assert sentence.value == pytest.approx(sentence.baselines["ceiling"])
    assert sentence.value > 0.7
    assert by_name["pointing game, findings by sentence"].value == 1
    prompted = by_name["pointing game, findings by prompt"]
    assert prompted.value == prompted.baselines["even map"] == pytest.approx(4 / 64)  # the attention is even
    assert found.notes["cases (findings by prompt with other readers)"] == 2
    assert by_name["IoU, findings by prompt with other readers"].baselines["other readers"] < 0.6
    assert by_name["AUC, parts of the body by prompt"].value == 0.5


def test_nothing_drawn_is_said():
    parts = HeldOut(test=[reading()], validate=[], train=[reading()])
    with pytest.raises(ValueError, match="nothing was drawn"):
        localisation_figures(Looking(None), parts)


# --- shards and a real model


@pytest.fixture(scope="module")
def encoder(model_folder):
    return load_encoder(model_folder)


@pytest.fixture(scope="module")
def egma(towers):
    vision, text = str(towers / "vision"), str(towers / "text")
    torch.manual_seed(0)
    model = build_egma(vision, text, image_size=56, hidden_size=16, averaged_layers=1)
    prompts = TextConfig(report="[CLS] {report}", sentence="[CLS] {sentence}")
    collate = CollateConfig(text=prompts, sentences="all")
    return Encoder(Egma(model, collate), AutoTokenizer.from_pretrained(text), collate, ViewConfig(size_px=56))


@pytest.fixture(params=["cogaze", "egma"])
def either(request):
    """A tiny model of each method."""
    return request.getfixturevalue("encoder" if request.param == "cogaze" else "egma")


def test_readings_are_what_training_sees_of_them(shards, encoder):
    folder = ShardFolder(shards)
    table = read_table(shards, "train")
    dataset = ShardDataset(shards, table, encoder.reader.grid, DatasetConfig(view=encoder.reader.view))
    found = list(read_readings(folder, ["train"], encoder.reader))
    rows = np.flatnonzero(table.has_gaze)
    assert len(found) == len(rows)
    for one, row in list(zip(found, rows, strict=True))[:4]:
        example = dataset[PlanItem(row=int(row), epoch=0, use_gaze=True, valid=True)]
        assert np.array_equal(one.canvas.pixels, example.pixels)
        assert one.maps == pytest.approx(example.maps)
        assert one.sentences == example.sentences
        record = json.loads(folder.member(table.name(row), "json"))
        scale = 56 / max(record["image_width_px"], record["image_height_px"])
        boxes = [drawn for drawn in json.loads(record["annotations"]) if drawn["kind"] != "chest_box"]
        for seen, box in zip(one.regions, boxes, strict=True):
            left, _, right, _ = box["box"]
            assert seen.box[2] - seen.box[0] == pytest.approx((right - left) * scale, rel=0.05)
            assert seen.labels == tuple(box["labels"])
    assert any(one.regions for one in found)
    blind = next(read_readings(folder, ["train"], encoder.reader, pictures=False))
    assert (blind.canvas.pixels.max(), blind.canvas.pixels.shape) == (0, found[0].canvas.pixels.shape)
    assert np.array_equal(blind.maps, found[0].maps)


def test_grad_cam_of_a_mean_is_the_gradient_in_closed_form():
    torch.manual_seed(0)
    features, text = torch.randn(6, 5), F.normalize(torch.randn(5), dim=0)
    mask = torch.tensor([True] * 4 + [False] * 2)
    mean = features[:4].mean(dim=0)
    slope = (text - mean * (mean @ text) / mean.square().sum()) / mean.norm()  # of cos(mean, text)
    leaf = features.clone().requires_grad_()
    similarity = F.cosine_similarity(leaf[:4].mean(dim=0), text, dim=0)
    found = grad_cam(features, torch.autograd.grad(similarity, leaf)[0], mask)
    assert torch.allclose(found, (features @ slope / 4).relu() * mask, atol=1e-6)


def test_grad_cam_of_a_model_is_what_moving_its_features_does(either, tmp_path):
    canvas = either.picture(write_images(tmp_path / "images", 1)[0])
    vectors = either.texts(["no effusion ."])
    found = text_saliency(either, canvas, vectors)[0].numpy()
    text = torch.from_numpy(vectors[0]).float()
    shown, moved = torch.from_numpy(canvas.patch_mask), torch.zeros(0)
    tokens = []

    def move(module, inputs, output):
        tokens.append(output[0])
        return output + moved

    handle = either.model.vision.register_forward_hook(move)
    weights = []
    with torch.no_grad():
        for channel in range(either.model.vision.width):
            sides = []
            for step in (0.05, -0.05):
                moved = torch.zeros(1, 17, either.model.vision.width)
                moved[0, 1:, channel] = step * shown
                seen = either.see([canvas])
                sides.append(similarity(seen, text, by_patches=either.method.by_patches))
            weights.append((sides[0] - sides[1]) / 0.1 / shown.sum())
    handle.remove()
    by_hand = ((tokens[0][1:] @ torch.stack(weights)).relu() * shown).numpy()
    assert 0 < np.count_nonzero(found) < shown.sum()
    assert found == pytest.approx(by_hand, abs=0.02 * float(by_hand.max()))


def test_a_real_model_is_evaluated_end_to_end(shards, either):
    folder = ShardFolder(shards)
    parts = [list(read_readings(folder, [split], either.reader)) for split in ("train", "validate", "test")]
    held_out = HeldOut(test=parts[2] or parts[0], validate=parts[1], train=parts[0])
    found = {one.name: one for one in gaze_figures(either, held_out.test, held_out.train, repeats=5).figures}
    assert found["NSS, sentence"].baselines["even map"] == 0
    assert set(found["NSS, sentence"].baselines) >= {"GradCAM", "mean gaze map", "centre", "ceiling"}
    placed = localisation_figures(either, held_out, repeats=5).figures
    assert all(0 <= one.value <= 1 for one in placed)
    assert ATTENTION not in placed[0].baselines


@pytest.mark.parametrize("by_patches", [False, True])
def test_what_grad_cam_takes_the_gradient_of_is_what_retrieval_compares(encoder, tmp_path, by_patches):
    canvas = encoder.picture(write_images(tmp_path / "images", 1)[0])
    with torch.no_grad():
        seen = encoder.see([canvas])
        text = F.normalize(torch.randn(16, generator=torch.Generator().manual_seed(0)), dim=0)
        found = similarity(seen, text, by_patches=by_patches)
    vectors = seen.patches[0][seen.patch_mask[0]] if by_patches else seen.pooled
    image = Embedded(F.normalize(vectors, dim=-1).numpy(), np.array([len(vectors)]))
    assert found.item() == pytest.approx(Similarity(image, Embedded.of(text[None].numpy())).array()[0, 0], abs=1e-6)


def figures_of(shards, encoder):
    parts = [list(read_readings(ShardFolder(shards), [split], encoder.reader)) for split in ("train", "validate")]
    found = [
        *gaze_figures(encoder, parts[0][:5], parts[0], repeats=5).figures,
        *localisation_figures(encoder, HeldOut(parts[0][:5], parts[1], parts[0]), repeats=5).figures,
    ]
    return {one.name: (one.value, one.low, dict(one.baselines)) for one in found}


def compared(shards, model, expected):
    found = figures_of(shards, load_encoder(model))
    assert found.keys() == expected.keys()
    for name, (value, low, beside) in expected.items():
        assert found[name][:2] == (pytest.approx(value, abs=1e-5), pytest.approx(low, abs=1e-5)), name
        assert found[name][2] == pytest.approx(beside, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(shards, model_folder, encoder):
    in_processes(compared, shards, model_folder, figures_of(shards, encoder))
