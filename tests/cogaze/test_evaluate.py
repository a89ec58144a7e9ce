"""What evaluation prints: ranks, chance, saliency on hand-made numbers; and that a short training beats none."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from recorded import sources_of
from scipy.stats import hypergeom

from cogaze.config import RunConfig
from cogaze.evaluate.control import shuffle_images
from cogaze.evaluate.gaze import Spoken, agreement
from cogaze.evaluate.metrics import chance_rank, chance_recall, first_hit_ranks, nss
from cogaze.evaluate.quick import evaluate_folder
from cogaze.evaluate.retrieval import retrieval
from cogaze.fit import fit
from cogaze.models.tiny import TinyTowers, write_tiny_towers
from gazeprep.build import BuildConfig, build
from gazeprep.images import Resize
from gazeprep.samples import MapConfig, PictureConfig, SampleConfig
from gazeprep.shards import ShardFolder
from gazeprep.synthetic import write_corpus

ROOT = Path(__file__).parents[2]


def test_rank_of_the_best_hit_with_ties_counted_half():
    similarity = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.8], [0.3, 0.3, 0.3]])
    hits = np.array([[0, 1, 1], [0, 1, 0], [1, 0, 0]], dtype=bool)
    assert first_hit_ranks(similarity, hits).tolist() == [2, 1.5, 2]


@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_chance_recall_is_the_hypergeometric_tail(k):
    hits = np.arange(10)[None] < np.array([1, 2, 5])[:, None]
    expected = np.mean([1 - hypergeom(10, int(row.sum()), k).pmf(0) for row in hits])
    assert chance_recall(hits, k) == pytest.approx(expected)


def test_chance_rank_is_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    hits = np.arange(12)[None] < 3
    ranks = [first_hit_ranks(rng.random((1, 12)), hits)[0] for _ in range(4000)]
    assert chance_rank(hits) == pytest.approx(np.mean(ranks), abs=0.1)


def test_saliency_under_the_gaze_in_standard_deviations():
    saliency = np.array([[0.0, 1.0, 2.0, 3.0, 100.0]] * 3 + [[1.0] * 5])
    gaze = np.array([[0, 0, 0, 2, 9], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=float)
    shown = np.array([[True] * 4 + [False]] * 4)
    found = nss(saliency, gaze, shown)
    assert found[:2] == pytest.approx([1.5 / np.std([0, 1, 2, 3]), 0])
    assert np.isnan(found[2:]).all()  # no gaze where picture is shown; a flat map


def test_a_study_is_one_report_however_many_images_it_has():
    study = np.array([7, 7, 3])
    report = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    image = np.array([[2.0, 0.1], [0.1, 2.0], [0.0, 1.0]])
    found = retrieval(image, report, study)
    assert found["image to report R@1"] == pytest.approx(2 / 3)
    assert found["image to report R@1 chance"] == pytest.approx(1 / 2)
    assert found["report to image R@1"] == 1
    assert found["report to image R@1 chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_attention_that_is_the_gaze_beats_the_other_sentence_and_the_mean_map():
    gaze = np.eye(4)
    shown = np.ones((4, 4), dtype=bool)
    seen = Spoken(attention=gaze + 0.1, gaze=gaze, shown=shown, image=np.array([0.0, 0, 1, 1]))
    train = Spoken(attention=gaze, gaze=np.array([[3.0, 1, 1, 1]] * 4), shown=shown, image=np.zeros(4))
    found = agreement(seen, train)
    assert found["sentence NSS"] == pytest.approx(np.sqrt(3))
    assert found["sentence NSS of another sentence"] == pytest.approx(-1 / np.sqrt(3))
    assert found["sentence NSS of the mean gaze map"] == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's config on shards of 200 synthetic subjects with small pictures."""
    root = tmp_path_factory.mktemp("learning")
    corpus = write_corpus(root / "corpus", 200, workers=0)
    small = SampleConfig(picture=PictureConfig(Resize(size_px=112)), maps=MapConfig(px_per_deg=37.5))
    build(BuildConfig(root / "shards", sources_of(corpus), sample=small, shard_samples=48, workers=2))
    records = (ShardFolder(root / "shards").sample(key).record for key in ShardFolder(root / "shards").keys())  # noqa: SIM118
    texts = (record[name] for record in records for name in ("indication", "findings", "impression", "transcript"))
    write_tiny_towers(root / "towers", texts, TinyTowers(layers=3))
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RunConfig, None)
    named = {"model.vision": "towers/vision", "model.text": "towers/text", "out": "run", "shards": "shards"}
    arguments = [f"--{option}={root / path}" for option, path in named.items()]
    values = parser.instantiate(parser.parse_args(["--config", str(ROOT / "configs/demo.yaml"), *arguments]))
    return RunConfig(**{field.name: values[field.name] for field in fields(RunConfig)})


@pytest.mark.slow
def test_a_short_training_beats_an_untrained_model_on_held_out_subjects(demo):
    fit(demo)
    idle = replace(demo, out=demo.out.with_name("idle"), optim=replace(demo.optim, lr=1e-12))
    idle = replace(idle, fit=replace(idle.fit, max_steps=1))
    fit(idle)
    trained, untrained = (evaluate_folder(run, run.out / "model") for run in (demo, idle))
    assert trained["image to report median rank"] < 0.8 * untrained["image to report median rank"]
    assert trained["mean AUROC"] > untrained["mean AUROC"] + 0.05
    assert trained["sentence NSS"] > untrained["sentence NSS"] + 0.5


def test_shuffled_images_keep_everything_but_their_study(shards, tmp_path):
    shuffle_images(shards, tmp_path / "shuffled", seed=0)
    before, after = (ShardFolder(root).index for root in (shards, tmp_path / "shuffled"))
    columns = [name for name in before if name not in ("image_offset", "image_length")]
    assert before[columns].astype(str).equals(after[columns].astype(str))
    places = ["shard", "image_offset", "image_length"]
    assert sorted(map(tuple, before[places].values)) == sorted(map(tuple, after[places].values))
    moved = before["image_offset"] != after["image_offset"]
    assert moved.any()
    assert not moved[before["split"] != "train"].any()
    ShardFolder(tmp_path / "shuffled").sample(str(after.index[0]))
