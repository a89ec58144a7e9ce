"""What evaluation prints: ranks, chance, saliency on hand-made numbers; and that a short training beats none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from recorded import sources_of
from transformers import AutoTokenizer

from cogaze.config import from_options, run_parser
from cogaze.evaluate.control import deal_out
from cogaze.evaluate.gaze import Spoken, agreement, mean_nss
from cogaze.evaluate.quick import encode, evaluate_folder
from cogaze.fit import fit
from cogaze.models.cogaze import CoGazeModel, CoGazeOutput
from cogaze.models.text import TextFeatures
from cogaze.models.tiny import TinyTowers, write_tiny_towers
from cogaze.run import prepare
from gazeprep.build import BuildConfig, build
from gazeprep.images import Resize
from gazeprep.lint import lint
from gazeprep.samples import MapConfig, PictureConfig, SampleConfig
from gazeprep.schema import CHEXPERT_LABELS
from gazeprep.shards import ShardFolder
from gazeprep.synthetic import write_corpus

ROOT = Path(__file__).parents[2]


def test_saliency_under_the_gaze_counts_shown_patches_alone():
    saliency = np.array([[0.0, 1.0, 2.0, 3.0, 100.0]] * 2 + [[1.0] * 5])
    gaze = np.array([[0, 0, 0, 2, 9], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]], dtype=float)
    shown = np.array([[True] * 4 + [False]] * 3)
    one, spread, flat = (mean_nss(*(column[[row]] for column in (saliency, gaze, shown))) for row in range(3))
    assert one == pytest.approx(1.5 / np.std([0, 1, 2, 3]))
    assert spread == pytest.approx(0)
    assert flat == 0  # knows nothing
    assert mean_nss(saliency, gaze, shown) == pytest.approx((one + spread + flat) / 3)


def test_attention_that_is_the_gaze_beats_the_other_sentence_and_the_mean_map():
    gaze = np.eye(4)
    shown = np.ones((4, 4), dtype=bool)
    seen = Spoken(attention=gaze + 0.1, gaze=gaze, shown=shown, image=np.array([0.0, 0, 1, 1]))
    train = Spoken(attention=gaze, gaze=np.array([[3.0, 1, 1, 1]] * 4), shown=shown, image=np.zeros(4))
    found = agreement(seen, train)
    assert found["sentence NSS"] == pytest.approx(np.sqrt(3))
    assert found["sentence NSS of another sentence"] == pytest.approx(-1 / np.sqrt(3))
    assert found["sentence NSS of the mean gaze map"] == pytest.approx(0, abs=1e-12)


class Watched:
    """A model that remembers what it was shown; a vision tower of 4 x 4 patches."""

    patch_grid = (4, 4)
    batch_fields = CoGazeModel.batch_fields
    device = torch.device("cpu")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.shown = []

    def eval(self):
        return self

    def encode_text(self, input_ids, mask):
        """A text that denies points along the second axis, one that does not along the first, all three long."""
        texts = self.tokenizer.batch_decode(input_ids)
        axes = torch.tensor([int(" no " in text) for text in texts])
        return TextFeatures(pooled=3 * torch.nn.functional.one_hot(axes, 2).float(), token_features=None)

    def __call__(self, **inputs):
        self.shown.append(inputs)
        rows, sentences = len(inputs["view_position"]), len(inputs["sentence_mask"])
        ones = torch.ones(rows, 2)
        return CoGazeOutput(
            patch_features=torch.ones(rows, 17, 2),
            visual_embed=torch.tensor([4.0, 3.0]).expand(rows, 2),
            report_embed=ones,
            sentence_embed=torch.ones(sentences, 2),
            vision_logits=torch.zeros(rows, 14),
            report_logits=torch.zeros(rows, 14),
            logit_scale=torch.tensor(0.0),
            logit_scale_gaze=torch.tensor(0.0),
        )


@pytest.fixture
def watched(run_config):
    """A config whose validation and test splits have samples, and a model to watch."""
    config = run_config("watched")
    tokenizer = AutoTokenizer.from_pretrained(config.model.text)
    return config, Watched(tokenizer)


def test_zero_shot_scores_are_higher_where_the_report_states_the_disease(watched):
    config, model = watched
    found = encode(config, model, ("validate",))
    # The image (0.8, 0.6) times the direction (1, 0) - (0, 1) from "no ..." to "...".
    diseases = np.array(CHEXPERT_LABELS) != "No Finding"  # which denies by itself
    assert found.zero_shot[:, diseases] == pytest.approx(0.2, rel=1e-5)


def test_without_context_or_image_only_that_is_gone(watched):
    config, model = watched
    seen = {}
    for ablation in ("", "no context", "no image"):
        model.shown = []
        encode(config, model, ("validate",), ablation)
        seen[ablation] = model.shown
    assert any(batch["has_context"].any() for batch in seen[""])
    assert not any(batch["has_context"].any() for batch in seen["no context"])
    for whole, blind in zip(seen[""], seen["no image"], strict=True):
        assert whole["pixel_values"].std() > 0.1
        # One gray for the whole canvas, the mean of the training images: 0 after the normalisation.
        assert blind["pixel_values"].abs().max() < 0.5 / 255 / 0.2583 + 1e-6
        assert blind["pixel_values"].std() < 1e-6
    for ablation, changed in (("no context", {"has_context"}), ("no image", {"pixel_values"})):
        for whole, less in zip(seen[""], seen[ablation], strict=True):
            assert {name for name in whole if not torch.equal(whole[name], less[name])} <= changed


def test_a_model_without_context_does_not_depend_on_its_words(run_config):
    """What has_context empties is all that a real model sees of the context."""
    config = run_config("emptied")
    torch.manual_seed(0)
    run = prepare(config)
    run.model.eval()
    batch = next(iter(run.validation.epoch()))
    with torch.no_grad():
        emptied = replace(batch, has_context=torch.zeros_like(batch.has_context))
        other = replace(emptied, context_input_ids=torch.full_like(batch.context_input_ids, 9))
        one, two = (run.model(**each.model_inputs(run.model.batch_fields)).visual_embed for each in (emptied, other))
        whole = run.model(**batch.model_inputs(run.model.batch_fields)).visual_embed
    assert torch.equal(one, two)
    assert not torch.allclose(whole[batch.has_context], one[batch.has_context], atol=1e-6)


def test_studies_of_two_splits_are_not_taken_for_one(watched):
    config, model = watched
    alone = {split: encode(config, model, (split,)).study_id for split in ("train", "validate")}
    assert set(alone["train"]) & set(alone["validate"]), "numbered from 0 in each"
    both = encode(config, model, ("train", "validate")).study_id
    assert len(both) == len(alone["train"]) + len(alone["validate"])
    assert len(np.unique(both)) == sum(len(np.unique(ids)) for ids in alone.values())


def test_whole_transcripts_are_no_sentences(watched):
    config, model = watched
    found = encode(config, model, ("train",)).spoken
    folder = ShardFolder(config.shards)
    rows = folder.index[(folder.index["split"] == "train") & folder.index["has_gaze"]]
    spoken = [folder.sample(key).record for key in rows["key"]]
    sentences = [text for record in spoken for text in record["sentences"].split("\n") if text]
    transcripts = [record["transcript"] for record in spoken if record["transcript"]]
    assert len(found.image) == len(sentences)
    assert sum(len(batch["sentence_mask"]) for batch in model.shown) == len(sentences) + len(transcripts)


@pytest.fixture(scope="module")
def demo_of(tmp_path_factory):
    """Return demo_of(name): a demo's config on shards of 200 synthetic subjects with small pictures."""
    root = tmp_path_factory.mktemp("learning")
    corpus = write_corpus(root / "corpus", 200, workers=0)
    small = SampleConfig(picture=PictureConfig(Resize(size_px=112)), maps=MapConfig(px_per_deg=37.5))
    build(BuildConfig(root / "shards", sources_of(corpus), sample=small, shard_samples=48, workers=2))
    records = (ShardFolder(root / "shards").sample(key).record for key in ShardFolder(root / "shards").keys())  # noqa: SIM118
    texts = (record[name] for record in records for name in ("indication", "findings", "impression", "transcript"))
    write_tiny_towers(root / "towers", texts, TinyTowers())
    named = {"model.vision": "towers/vision", "model.text": "towers/text", "out": "run", "shards": "shards"}

    def read(name):
        options = [f"--{option}={root / path}" for option, path in named.items()]
        arguments = ["--config", str(ROOT / f"configs/{name}.yaml"), *options]
        parser = run_parser(None, arguments)
        return from_options(parser, parser.parse_args(arguments))

    return read


def figures_of_three(demo, epochs):
    """The figures of a trained, an untrained and a shuffled model on held-out subjects."""
    shuffled = demo.out.with_name("shuffled-shards")
    deal_out(Path(demo.shards), shuffled, seed=0, dealt="image and context")
    idle = replace(demo, optim=replace(demo.optim, lr=1e-12), fit=replace(demo.fit, max_steps=1))
    runs = {"trained": demo, "untrained": idle, "shuffled": replace(demo, shards=str(shuffled))}
    found = {}
    for name, run in runs.items():
        AcceleratorState._reset_state(True)
        run = replace(run, out=demo.out.with_name(f"{demo.method} {name}"))
        fit(replace(run, fit=replace(run.fit, epochs=epochs)))
        found[name] = evaluate_folder(replace(run, shards=demo.shards), run.out / "model")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_training_of_egma_beats_an_untrained_and_a_shuffled_model_on_held_out_subjects(demo_of):
    found = figures_of_three(demo_of("egma_demo"), epochs=40)
    trained = found.pop("trained")
    for other in found.values():
        for way in ("image to report", "report to image"):
            assert trained[f"{way} median rank"] < 0.7 * other[f"{way} median rank"]
            assert trained[f"{way} R@5"] > other[f"{way} R@5"] + 0.1
    assert trained["image to report R@5"] > trained["image to report R@5 without the image"] + 0.1
    assert trained["sentence NSS"] > found["untrained"]["sentence NSS"] + 0.8
    assert trained["sentence NSS"] > trained["sentence NSS of the mean gaze map"] + 0.1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_training_beats_an_untrained_and_a_shuffled_model_on_held_out_subjects(demo_of):
    found = figures_of_three(demo_of("demo"), epochs=30)
    trained = found.pop("trained")
    for other in found.values():
        assert trained["image to report median rank"] < 0.7 * other["image to report median rank"]
        assert trained["mean AUROC"] > other["mean AUROC"] + 0.1
    for robbed in ("without its context", "without the image"):  # it uses both
        assert trained["mean AUROC"] > trained[f"mean AUROC {robbed}"] + 0.03
    assert trained["sentence NSS"] > found["untrained"]["sentence NSS"] + 0.8
    assert trained["sentence NSS"] > trained["sentence NSS of the mean gaze map"] + 0.1


@pytest.mark.parametrize("dealt", ["image", "image and context"])
def test_what_is_dealt_out_comes_from_one_other_study_and_the_rest_stays(shards, tmp_path, dealt):
    deal_out(shards, tmp_path / "dealt", seed=0, dealt=dealt)
    before, after = ShardFolder(shards), ShardFolder(tmp_path / "dealt")
    assert sorted(before.keys()) == sorted(after.keys())
    owner = {before.member(key, "image"): key for key in before.keys()}  # noqa: SIM118
    moved = 0
    for key in before.keys():  # noqa: SIM118
        old, new = before.sample(key), after.sample(key)
        donor = before.sample(owner[new.image])
        same = donor.record["study_id"] == old.record["study_id"]
        assert same or before.row(key)["split"] == before.row(donor.key)["split"] == "train"
        moved += not same
        size = ("stored_width_px", "stored_height_px")
        assert [old.record[name] for name in size] == [donor.record[name] for name in size]
        from_donor = {"view_position", *(("indication", "history") if dealt == "image and context" else ())}
        assert new.record == {**old.record, **{name: donor.record[name] for name in from_donor}}
        assert after.row(key)["view_position"] == donor.record["view_position"]
        assert list(after.row(key)["labels"]) == list(before.row(key)["labels"])
        assert np.array_equal(new.maps, old.maps)
    assert moved > 3
    assert lint(tmp_path / "dealt", workers=1).problems == ()
