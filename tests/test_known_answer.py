"""The corpus's known answer through the whole build: each sentence's map lies on what the sentence is about."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from gazeprep import Alignment
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.fixations import Filters
from gazeprep.samples import MapConfig, SampleConfig
from gazeprep.shards import ShardFolder
from gazeprep.synthetic import read_truth, write_corpus

SUBJECTS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("known") / "corpus", SUBJECTS, seed=3, workers=2)


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    return BuildConfig(
        out=tmp_path_factory.mktemp("shards"),
        sources=Sources(reflacx=corpus.reflacx, egd=corpus.egd, mimic=corpus.mimic_cxr, mimic_jpg=corpus.mimic_cxr_jpg),
        sample=SampleConfig(maps=MapConfig(px_per_deg=37.5)),
        workers=2,
    )


@pytest.fixture(scope="module")
def shards(config):
    build(config)
    return ShardFolder(config.out)


def share_matrices(corpus, shards) -> list[np.ndarray]:
    """For each reading, the mass (sentences, sentences) of sentence i's map inside the target of sentence j."""
    truth = read_truth(corpus.out)
    key_of = {(row.dataset, row.reading): key for key, row in shards.index.iterrows() if row.reading}
    spoken = truth.alignment[truth.alignment.recorded]
    found = []
    for (dataset, reading), sentences in spoken.groupby(["dataset", "reading_id"]):
        sample = shards.sample(key_of[dataset, reading])
        assert len(sample.maps) == 1 + len(sentences)
        masks = truth.masks(sentences.dicom_id.iloc[0])
        targets = [np.any([masks[name] for name in row.targets.split()], axis=0) for row in sentences.itertuples()]
        size = sample.record["image_width_px"], sample.record["image_height_px"]
        cells = np.stack([on_grid(target, truth.step_px, size, sample.maps.shape[1:]) for target in targets])
        found.append(np.einsum("irc,jrc->ij", sample.maps[1:], cells))
    return found


def on_grid(mask, step_px, size, grid):
    full = np.kron(mask, np.ones((step_px, step_px), dtype=np.float32))[: size[1], : size[0]]
    return cv2.resize(full, grid[::-1], interpolation=cv2.INTER_AREA)


def own_and_others(matrices) -> tuple[float, float]:
    own = np.concatenate([m.diagonal() for m in matrices])
    others = np.concatenate([m[~np.eye(len(m), dtype=bool)] for m in matrices])
    return own.mean(), others.mean()


def test_each_sentences_map_lies_on_its_target(corpus, shards):
    own, others = own_and_others(share_matrices(corpus, shards))
    assert own > 2.5 * others


def test_shuffling_sentences_within_readings_destroys_it(corpus, shards):
    rng = np.random.default_rng(0)
    shuffled = [matrix[rng.permutation(len(matrix))] for matrix in share_matrices(corpus, shards)]
    own, others = own_and_others(shuffled)
    assert own < 1.5 * others


def test_the_lead_of_gaze_before_speech_is_in_the_recordings(corpus, config, shards, tmp_path):
    with_lead, _ = own_and_others(share_matrices(corpus, shards))
    late = replace(config, out=tmp_path, sample=replace(config.sample, alignment=Alignment(start="sentence")))
    build(late)
    without_lead, _ = own_and_others(share_matrices(corpus, ShardFolder(tmp_path)))
    assert with_lead > 1.2 * without_lead


def test_the_whole_reading_looks_at_the_findings_of_its_own_image_more_than_of_others(corpus, shards):
    truth = read_truth(corpus.out)
    grids, maps = [], []
    for key, row in shards.index[shards.index.has_gaze].iterrows():
        findings = truth.findings[truth.findings.dicom_id == row.dicom].finding
        if len(findings):
            masks, sample = truth.masks(row.dicom), shards.sample(key)
            size = sample.record["image_width_px"], sample.record["image_height_px"]
            mask = np.any([masks[name] for name in findings], axis=0)
            grids.append(on_grid(mask, truth.step_px, size, sample.maps.shape[1:]))
            maps.append(sample.maps[0])
    mass = np.einsum("irc,jrc->ij", np.stack(maps), np.stack(grids))
    per_area = mass / np.stack(grids).mean(axis=(1, 2))
    own = per_area.diagonal().mean()
    others = per_area[~np.eye(len(per_area), dtype=bool)].mean()
    assert own > 1.2 * others


def test_every_sample_says_that_it_is_synthetic(shards):
    assert shards.manifest["synthetic"] is True
    assert shards.index.synthetic.all()
    assert all(shards.sample(key).record["synthetic"] is True for key in shards.index["key"])


def test_what_the_config_assumed_of_a_recording_is_in_its_provenance(shards):
    for key, row in shards.index[shards.index.reading != ""].iterrows():
        recording = json.loads(shards.sample(key).record["provenance"])["recording"]
        assert recording.get("px_per_deg_assumed") == (37.5 if row.dataset == "egd-cxr" else None)


def test_filters_that_a_recording_has_no_columns_for_are_named_in_its_provenance(config, tmp_path):
    filters = Filters(off_image=True, buttons_px=(10, 933, 650, 1122))
    build(replace(config, out=tmp_path, sample=replace(config.sample, filters=filters)))
    shards, marked = ShardFolder(tmp_path), 0
    for key, row in shards.index[shards.index.reading != ""].iterrows():
        record = shards.sample(key).record
        skipped = json.loads(record["provenance"])["recording"].get("filters_not_applicable")
        assert skipped == (["buttons_px"] if row.dataset == "egd-cxr" else None)
        marked += len(json.loads(record["fixation_marks"]))
    assert marked > 0
