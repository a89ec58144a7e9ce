"""Readers of one image against one another: readings whose answer one sees, and the synthetic corpus."""

from collections import Counter
from dataclasses import astuple

import numpy as np
import pytest
from recorded import SMALL

from gazeprep import scanpath_agreement
from gazeprep.agreement import PREDICTORS, SCORE_TITLES, centre_gaussian, lines, reader_agreement
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.scanpath_agreement import COMPARISONS
from gazeprep.scanpaths import multimatch
from gazeprep.schema import Fixations
from gazeprep.shards import ShardFolder

LEFT, RIGHT = [(6, 10), (7, 11), (6, 12)], [(22, 28), (23, 30), (22, 31)]  # on images of 30 × 40 px
OFF = [(-50, -50), (-51, -50)]


@pytest.fixture
def built(tables, tmp_path, inline):
    """Return built({image: {reader: points}}): shards of these readings."""

    def make(images):
        for image, readings in images.items():
            tables.image(image)
            for reader, points in readings.items():
                tables.reading(f"{reader}-{image}", image, points)
        build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL))
        return tmp_path / "out"

    return make


def better_everywhere(first, second):
    pairs = ((getattr(first, name), getattr(second, name)) for name in SCORE_TITLES if name != "kl")
    return first.kl < second.kl and all(one > other for one, other in pairs)


def test_readers_of_one_place_agree_and_all_else_points_elsewhere(built):
    found = reader_agreement(built({"a": {"r": LEFT, "s": LEFT, "t": LEFT}, "b": {"r": RIGHT, "s": RIGHT}}))
    assert (found.images, found.readings, found.left_out) == (2, 5, {})
    table = {one.predictor: one for one in found.table()}
    assert tuple(table) == PREDICTORS
    best = table["other readers"].mean
    assert best.cc == pytest.approx(1)
    assert best.sim == pytest.approx(1)
    assert best.kl == pytest.approx(0, abs=0.02)  # of the uniform share
    assert best.auc_shuffled == 1
    assert best.information_gain > 5
    for other in ("another image", "all other images", "centre Gaussian"):
        worse = table[other].mean
        assert better_everywhere(best, worse)
        assert worse.kl > 1 > worse.cc + 0.9
    assert table["all other images"].mean.information_gain == 0
    assert table["another image"].mean.auc_shuffled == 0


def test_a_reader_does_not_predict_himself(built):
    found = reader_agreement(built({"a": {"r": LEFT, "s": RIGHT}, "b": {"r": RIGHT}}))
    assert {row.scores.sim < 0.05 for row in found.rows if row.predictor == "other readers"} == {True}


def test_means_are_of_images_not_of_readings(built):
    found = reader_agreement(built({"a": {"r": LEFT, "s": LEFT, "t": RIGHT}, "b": {"r": LEFT, "s": RIGHT}}))
    rows = [row for row in found.rows if row.predictor == "other readers"]
    by_image = [np.mean([row.scores.nss for row in rows if row.image == image]) for image in (0, 1)]
    others = found.table()[0]
    assert others.mean.nss == pytest.approx(np.mean(by_image))
    assert others.standard_error.nss == pytest.approx(np.std(by_image, ddof=1) / np.sqrt(2))
    assert sorted(row.readers for row in rows) == [2, 2, 3, 3, 3]


def test_images_read_once_serve_as_other_images_alone(built):
    found = reader_agreement(built({"a": {"r": LEFT, "s": LEFT}, "b": {"r": RIGHT}}))
    assert (found.images, found.readings) == (1, 2)
    assert [one.predictor for one in found.table()] == ["other readers", "all other images", "centre Gaussian"]
    assert all(one.standard_error is None for one in found.table())


def test_what_cannot_be_scored_is_counted(built):
    found = reader_agreement(built({"a": {"r": LEFT, "s": LEFT}}))
    assert (found.rows, found.left_out) == ((), {"no other image to compare with": 2})
    assert found.table() == ()


def test_a_reading_beside_the_image_predicts_nothing_and_is_counted(built):
    near = [(-1, 20), (-1, 21)]  # its Gaussians reach the image, its fixations do not
    found = reader_agreement(built({"a": {"r": LEFT, "s": LEFT + OFF, "t": near}, "b": {"r": RIGHT}}))
    assert found.left_out == {"no fixation on the image": 1}
    assert sorted((row.fixations, row.off_image) for row in found.rows) == [(3, 0)] * 3 + [(3, 2)] * 3


def test_where_every_image_was_read_once_there_is_nothing_to_say(built, capsys):
    out = built({"a": {"r": LEFT}, "b": {"r": RIGHT}})
    assert reader_agreement(out).rows == ()
    assert main(["agreement", str(out)]) == 0
    assert capsys.readouterr().out == "no image has several readings with gaze\n"


def test_the_centre_gaussian_is_what_it_says():
    made = centre_gaussian((3, 4))
    by_hand = [
        [np.exp(-8 * ((col + 0.5) / 4 - 0.5) ** 2 - 8 * ((row + 0.5) / 3 - 0.5) ** 2) for col in range(4)]
        for row in range(3)
    ]
    assert made == pytest.approx(np.array(by_hand) / np.sum(by_hand))


def test_predictions_are_what_the_stored_maps_say(shards):
    """NSS and KL of every row again, from the members as they stand."""
    folder = ShardFolder(shards)
    index = folder.index[folder.index["has_gaze"] & (folder.index["dataset"] == "reflacx")]
    stored = {key: folder.sample(key) for key in index["key"]}
    maps = {key: sample.maps[0].astype(float) for key, sample in stored.items()}
    readers = [list(one["key"]) for _, one in index.groupby("dicom", sort=False)]
    several = [keys for keys in readers if len(keys) > 1]
    own = {key: keys for keys in several for key in keys}
    rows = {(row.key, row.predictor): row.scores for row in reader_agreement(folder).rows}
    assert set(rows) == {(key, predictor) for key in own for predictor in PREDICTORS}
    for (key, predictor), scores in rows.items():
        chosen = {
            "other readers": [one for one in own[key] if one != key],
            "another image": next(keys for keys in several if key not in keys)[: len(own[key]) - 1],  # there are two
            "all other images": [one for one in maps if one not in own[key]],
        }
        predicted = sum(maps[one] for one in chosen[predictor]) if predictor in chosen else centre_gaussian((37, 37))
        predicted = predicted / predicted.sum()
        gaze, record = stored[key].gaze, stored[key].record
        col = np.floor((gaze["x_px"] + 0.5) * 37 / record["image_width_px"]).astype(int)
        row = np.floor((gaze["y_px"] + 0.5) * 37 / record["image_height_px"]).astype(int)
        on = (col >= 0) & (col < 37) & (row >= 0) & (row < 37)
        expected = (predicted[row[on], col[on]].mean() - predicted.mean()) / predicted.std()
        assert scores.nss == pytest.approx(expected)
        truth = maps[key] / maps[key].sum()
        mixed = 0.99 * predicted + 0.01 / 37**2
        ratio = np.log(np.where(truth > 0, truth, 1) / mixed)
        assert scores.kl == pytest.approx((truth * ratio).sum())


def test_synthetic_readers_agree_better_than_any_baseline_predicts(shards, capsys):
    """Of the corpus's two images with five readings, one of each is discarded."""
    found = reader_agreement(ShardFolder(shards))
    assert (found.images, found.readings) == (2, 8)
    assert {row.dataset for row in found.rows} == {"reflacx"}
    others, *baselines = (one.mean for one in found.table())
    for baseline in baselines:
        assert better_everywhere(others, baseline)
        assert others.auc_shuffled > baseline.auc_shuffled + 0.05
    assert np.isfinite([astuple(row.scores) for row in found.rows]).all()

    assert main(["agreement", str(shards)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines() == lines(found) + scanpath_agreement.lines(scanpath_agreement.scanpath_agreement(shards))
    sources = ShardFolder(shards).index[["dicom", "reading"]].to_numpy().ravel()
    assert not [source for source in sources if source and source in said]


# --- the order of looking

AROUND, BACK = [(3, 4), (25, 5), (24, 35), (4, 36)], [(4, 36), (24, 35), (25, 5), (3, 4)]


def test_readers_of_one_order_agree_and_a_drawn_order_and_another_image_do_not(built):
    found = scanpath_agreement.scanpath_agreement(
        built({"a": {"r": AROUND, "s": AROUND, "t": AROUND}, "b": {"r": BACK, "s": BACK}})
    )
    assert Counter(row.comparison for row in found.rows) == dict.fromkeys(COMPARISONS, 3 + 1)
    same, drawn, elsewhere = found.table()
    assert (same.images, same.comparison) == (2, "another reader")
    assert astuple(same.mean) == pytest.approx((1, 1, 1, 1, 1))
    assert astuple(same.standard_error) == pytest.approx((0, 0, 0, 0, 0))
    for other in (drawn, elsewhere):
        assert max(other.mean.shape, other.mean.direction, other.mean.position) < 0.98
        assert other.mean.duration == 1  # each fixation lasts a second


def test_pairs_are_what_multimatch_says_of_the_fixations_on_the_image_in_the_order_of_time(built):
    out = built({"a": {"r": AROUND + OFF, "s": BACK}, "b": {"r": LEFT}})
    (row, shuffled) = scanpath_agreement.scanpath_agreement(out).rows  # there is no other image with several readers
    assert (row.comparison, shuffled.comparison) == COMPARISONS[:2]
    paths = {}
    for key in (row.first, row.second):
        gaze = ShardFolder(out).sample(key).gaze
        paths[key] = np.array([gaze["x_px"], gaze["y_px"]])[:, gaze["on_image"]]
        assert paths[key].shape == (2, 4)
    first, second = (Fixations(*paths[key], np.arange(4), np.arange(1, 5)) for key in (row.first, row.second))
    assert row.similarity == multimatch(first, second, (30, 40))


def test_paths_on_images_of_two_sizes_are_compared_on_one(tables, tmp_path, inline):
    for image, scale in (("a", 1), ("b", 3)):
        tables.image(image, pixels=np.full((40 * scale, 30 * scale), 90, np.uint8))
        for reader in ("r", "s"):
            points = [(scale * (x + 0.5) - 0.5, scale * (y + 0.5) - 0.5) for x, y in AROUND]
            tables.reading(f"{reader}-{image}", image, points)
    build(BuildConfig(tmp_path / "out", Sources(table=tables.source()), SMALL))
    for one in scanpath_agreement.scanpath_agreement(tmp_path / "out").table():
        if one.comparison != "in a drawn order":
            assert astuple(one.mean) == pytest.approx((1, 1, 1, 1, 1))


def test_readings_without_two_saccades_are_left_out_and_counted(built):
    found = scanpath_agreement.scanpath_agreement(built({"a": {"r": AROUND, "s": LEFT[:2] + OFF, "t": BACK}}))
    assert found.left_out == {"fewer than 3 fixations on the image": 1}
    assert len(found.rows) == 2
    assert scanpath_agreement.lines(found)[-1] == "left out: 1 readings, fewer than 3 fixations on the image"
    assert found.table()[0].standard_error is None
