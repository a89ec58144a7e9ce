"""Exports read back as the published code and other people's tools read them, against maps rendered exactly."""

import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO
from recorded import tree

from gazeprep import render_batch
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.cli import main
from gazeprep.exports import FORMATS, ExportConfig, export
from gazeprep.exports.cogaze_folder import CHEXBERT_ORDER, CogazeFolder, background_floor
from gazeprep.exports.egma_folder import LABELS, egma_split, timed_sentences
from gazeprep.exports.identity import identity_of
from gazeprep.exports.rendering import StoredGaze, stored_window
from gazeprep.fixations import Filters
from gazeprep.images import Resize
from gazeprep.samples import MapConfig, PictureConfig, SampleConfig
from gazeprep.schema import CHEXPERT_LABELS, Word
from gazeprep.shards import ShardFolder, fixations_from_member
from gazeprep.transcripts import Alignment

PATCH, CROP = 4, 64  # px; the corpus is stored with a short edge of 64 px


@pytest.fixture(scope="module")
def folder(shards):
    return ShardFolder(shards)


@pytest.fixture(scope="module")
def samples(folder):
    return {key: folder.sample(key) for key in folder.index["key"]}


@pytest.fixture(scope="module")
def exported(shards, tmp_path_factory):
    """Return exported(format, **options): the folder of an export of the whole corpus, made once."""
    made = {}

    def make(format, **options):
        name = repr((format, options))
        if name not in made:
            out = tmp_path_factory.mktemp("exports") / format
            report = export(ExportConfig(shards, out, format, **options))
            made[name] = out, report
        return made[name]

    return make


def opened(path):
    """A picture read by Pillow, its file closed."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def shares(gaze_map):
    """A map divided by its sum."""
    return np.asarray(gaze_map, dtype=np.float64) / gaze_map.sum()


def moved(one, other):
    """Share of the looking time that lies elsewhere: the total variation of two maps."""
    return 0.5 * np.abs(shares(one) - shares(other)).sum()


# --- rendering again


def test_stored_gaze_renders_the_stored_maps(samples):
    for sample in samples.values():
        if sample.record["has_gaze"]:
            again = StoredGaze.of(sample).maps(sample.maps.shape[1:])
            np.testing.assert_allclose(again, sample.maps, atol=1e-6)


# --- CoGaze


def cogaze_reading(path, crop_px=CROP, patch_px=PATCH):
    """What CoGaze's loader makes of a map's jpg: (crop / patch)² values, the background 0.

    Short edge to the crop, central square, luma, mean over patches; of the five most frequent values the one most
    frequent in the outer tenth is the background, and what does not exceed it becomes 0.
    """
    picture = opened(path).convert("RGB")
    width, height = picture.size
    if min(picture.size) != crop_px:
        width, height = (round(edge * crop_px / min(picture.size)) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - crop_px) // 2, (height - crop_px) // 2
    square = np.asarray(picture, dtype=np.float32)[top : top + crop_px, left : left + crop_px]
    luma = np.float32(0.299) * square[..., 0] + np.float32(0.587) * square[..., 1] + np.float32(0.114) * square[..., 2]
    side = crop_px // patch_px
    patches = luma.reshape(side, patch_px, side, patch_px).mean(axis=(1, 3))
    values, counts = np.unique(patches, return_counts=True)
    frequent = values[np.argsort(-counts)[:5]]
    margin = int(side * 0.1)
    frame = np.ones((side, side), dtype=bool)
    frame[margin : side - margin, margin : side - margin] = False
    background = frequent[np.argmax([(patches[frame] == value).sum() for value in frequent])]
    return np.where(patches <= background, 0.0, patches)


def central_maps(sample, side=CROP // PATCH):
    """The exact maps (1 + S, side, side) of the central square of the full-size image, whole reading first."""
    width, height = sample.record["image_width_px"], sample.record["image_height_px"]
    scale = sample.record["resize_scale_x"], sample.record["resize_scale_y"]
    left = (sample.record["stored_width_px"] - CROP) // 2 / scale[0]
    top = (sample.record["stored_height_px"] - CROP) // 2 / scale[1]
    window = (left, top, left + CROP / scale[0], top + CROP / scale[1])
    assert 0 <= left < width - 1
    assert 0 <= top < height - 1
    return StoredGaze.of(sample).maps((side, side), window)


def items_of(out):
    annotation = json.loads((out / "annotation.json").read_text())
    assert list(annotation) == ["train", "val", "test"]
    return {item["key"]: {**item, "split": split} for split, items in annotation.items() for item in items}


def test_cogaze_items_have_what_its_loader_reads(exported, samples):
    out, report = exported("cogaze")
    items = items_of(out)
    assert set(items) == set(samples)
    assert report.samples == len(samples)
    for key, item in items.items():
        record = samples[key].record
        assert item["split"] == {"train": "train", "validate": "val", "test": "test"}[record["split"]]
        assert (item["sentence_gaze_heatmap"] is not None) == record["has_gaze"]
        assert (item["indication_pure"], item["history_pure"]) == (record["indication"], record["history"])
        assert item["findings"] == (record["findings"] or record["impression"] or record["last_paragraph"])
        assert bool(item["findings_factual_serialization"]) == bool(item["findings"])
        assert item["anchor_scan"]["view_position"][0] in json.loads((out / "view_positions.json").read_text())
        picture = opened(out / "files" / item["anchor_scan"]["image_path"][0])
        assert picture.size == (record["stored_width_px"], record["stored_height_px"])


def test_cogaze_labels_are_in_chexberts_order_and_codes(exported, samples):
    assert sorted(CHEXBERT_ORDER) == sorted(CHEXPERT_LABELS)
    assert (CHEXBERT_ORDER[0], CHEXBERT_ORDER[-1]) == ("Enlarged Cardiomediastinum", "No Finding")
    codes = set()
    for key, item in items_of(exported("cogaze")[0]).items():
        expected = {-2: "blank", 1: "positive", 0: "negative", -1: "uncertain"}
        named = ["blank", "positive", "negative", "uncertain"]
        found = dict(zip(CHEXBERT_ORDER, item["disease_labels"], strict=True))
        for name, code in found.items():
            assert named[code] == expected[samples[key].record["labels"][name]]
            codes.add(code)
    assert codes == {0, 1, 2, 3}


def test_cogaze_reads_our_maps_back_from_its_jpgs(exported, samples):
    out, _ = exported("cogaze")
    compared = 0
    for key, item in items_of(out).items():
        if item["sentence_gaze_heatmap"] is None:
            continue
        gaze_folder = out / "gaze" / item["sentence_gaze_heatmap"]["image_dir"]
        lookup = json.loads((gaze_folder / "sentence-heatmap-lookup.json").read_text())
        assert lookup.pop("full_text") == item["sentence_gaze_heatmap"]["transcript_full_text"]
        exact = central_maps(samples[key])
        texts = samples[key].record["sentences"].split("\n")
        names = {"report": exact[0]} | {name: exact[1 + int(name)] for name in lookup}
        assert all(texts[int(name)] == text for name, text in lookup.items())
        for name, expected in names.items():
            found = cogaze_reading(gaze_folder / f"{name}_heatmap.jpg")
            if expected.any() and found.any():
                assert moved(found, expected) < 0.03, name
                compared += 1
    assert compared > 30


def test_cogaze_leaves_out_sentences_without_gaze(exported, samples):
    out, report = exported("cogaze")
    missing = 0
    for key, item in items_of(out).items():
        if item["sentence_gaze_heatmap"] is not None:
            gaze_folder = out / "gaze" / key
            lookup = json.loads((gaze_folder / "sentence-heatmap-lookup.json").read_text())
            missing += len(samples[key].maps) - len(lookup)  # the whole reading and "full_text" cancel
            written = {path.name for path in gaze_folder.glob("*_heatmap.jpg")} - {"report_heatmap.jpg"}
            assert written == {f"{name}_heatmap.jpg" for name in lookup if name != "full_text"}
    assert report.counts.get("sentences left out: no gaze falls in their time", 0) == missing


def test_a_map_without_background_gets_one_that_its_reader_finds():
    rows, cols = np.mgrid[0:80, 0:64]
    wide = np.exp(-((rows - 30) ** 2 + (cols - 40) ** 2) / (2 * 25**2))  # nowhere near 0
    levels = np.rint(wide / wide.max() * 255).astype(np.uint8)
    floor = background_floor(levels)
    square = levels[8:72]
    frame = np.ones((64, 64), dtype=bool)
    frame[6:58, 6:58] = False
    assert levels.min() < floor < 64
    assert 0.1 <= (square[frame] <= floor).mean() < 0.2
    assert background_floor(np.where(levels <= floor, 0, levels)) == 0  # and then it has one


# --- EGMA


def egma_reading(path, size):
    """What EGMA's data set makes of a map's jpg: resized to the picture's (width, height), padded to a square."""
    found = opened(path).resize(size)
    assert found.mode == "L"
    edge = max(224, *size)
    square = Image.new("L", (edge, edge), 0)
    square.paste(found, (int((edge - size[0]) / 2), int((edge - size[1]) / 2)))
    return np.asarray(square, dtype=np.float64)


def egma_sentences(report):
    """EGMA's split as a function of the text alone."""
    pieces = [part for item in re.split("[0-9]+\\.+[^0-9]", report.replace("\n", " ")) for part in item.split(". ")]
    spaced = (re.findall(r"\w+|[^\w\s]+", piece.replace("\ufffd\ufffd", " ").lower()) for piece in pieces)
    sentences = [" ".join(filter(None, (t.encode("ascii", "ignore").decode() for t in tokens))) for tokens in spaced]
    return [sentence for sentence in sentences if sentence]


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        ("heart is normal. no effusion.", ["heart is normal", "no effusion ."]),
        ("Impression: 1. Clear. 2. 1.5 cm nodule", ["impression :", "clear", "1 . 5 cm nodule"]),
        ("rib 7. no fracture", ["rib", "no fracture"]),
        ("clear.no space", ["clear . no space"]),
        ("déjà vu. né. é. ok", ["dj vu", "n", "ok"]),
        ("a. . b", ["a", "b"]),
        ("", []),
        (". ", []),
    ],
)
def test_egma_split_of_known_reports(report, sentences):
    assert [piece.text for piece in egma_split(report)] == sentences == egma_sentences(report)


def test_egma_split_is_its_split_of_every_report(samples):
    for sample in samples.values():
        for text in (sample.record["sentences"], sample.record["findings"], sample.record["transcript"]):
            line = " ".join(text.split())
            assert [piece.text for piece in egma_split(line)] == egma_sentences(line)


def test_pieces_have_the_times_of_their_words():
    said = ["rib", "7", ".", "no", "1", ".5", "cm", "mass", ",", "or", "so", "."]
    words = [Word(text, i, i + 0.5) for i, text in enumerate(said)]
    report = "rib 7. no 1.5 cm mass, or so."
    first, second = timed_sentences(report, egma_split(report), words)
    assert (first.text, first.start_s, first.end_s) == ("rib", 0, 2.5)  # its number and full stop are its own
    assert (second.text, second.start_s, second.end_s) == ("no 1 . 5 cm mass , or so .", 3, 11.5)


def test_pieces_of_one_phrase_share_its_time():
    words = [Word("1. clear 2. normal heart", 0, 4), Word("no effusion.", 4, 6)]
    report = "1. clear 2. normal heart no effusion."
    sentences = timed_sentences(report, egma_split(report), words)
    assert [(one.text, one.start_s, one.end_s) for one in sentences] == [
        ("clear", 0, 4),
        ("normal heart no effusion .", 0, 6),
    ]


def test_egma_finds_a_map_for_each_of_its_sentences(exported, samples):
    out, report = exported("egma")
    tables = {path.stem: pd.read_csv(path) for path in out.glob("*.csv")}
    with_words = {key for key, sample in samples.items() if sample.record["has_gaze"] and sample.record["sentences"]}
    assert {key for table in tables.values() for key in table["key"]} == with_words
    left_out = report.counts["samples left out: no gaze"] + report.counts.get("samples left out: no words", 0)
    assert left_out == len(samples) - len(with_words)
    for split, table in tables.items():
        assert {"imgpath", "report", *LABELS} <= set(table.columns)
        for row in table.itertuples():
            assert samples[row.key].record["split"] == split
            picture = opened(out / row.imgpath)
            sentence_folder = (out / row.imgpath).parent / "sentence_hm"
            assert len(list(sentence_folder.iterdir())) == len(egma_sentences(row.report))
            for i in range(len(egma_sentences(row.report))):
                path = str(out / row.imgpath).replace("src.jpg", f"sentence_hm/{i}_sent_hm_array.jpg")
                assert opened(path).size == picture.size


def test_egma_reads_our_maps_back_from_its_jpgs(exported, samples):
    out, _ = exported("egma")
    compared = black = 0
    for table in map(pd.read_csv, out.glob("*.csv")):
        for row in table.itertuples():
            sample = samples[row.key]
            width, height = sample.record["stored_width_px"], sample.record["stored_height_px"]
            left, top, right, bottom = stored_window(sample.record)
            scale = (right - left) / width, (bottom - top) / height
            pad = int((224 - width) / 2), int((224 - height) / 2)
            corner = left - pad[0] * scale[0], top - pad[1] * scale[1]
            window = (*corner, corner[0] + 224 * scale[0], corner[1] + 224 * scale[1])
            exact = StoredGaze.of(sample).maps((56, 56), window)
            reading = (out / row.imgpath).parent
            files = [reading / "hm_array.jpg"]
            files += [reading / f"sentence_hm/{i}_sent_hm_array.jpg" for i in range(len(exact) - 1)]
            assert egma_sentences(row.report) == [piece.text for piece in egma_split(row.report)]
            for path, expected in zip(files, exact, strict=True):
                found = egma_reading(path, (width, height)).reshape(56, 4, 56, 4).mean(axis=(1, 3))
                assert found.any() == expected.any()
                black += not found.any()
                if expected.any():
                    assert moved(found, expected) < 0.03
                    compared += 1
    assert compared > 30


@pytest.mark.parametrize("root", ["/data/egma", "/data/egma/"])
def test_egma_paths_begin_with_the_image_root(exported, root):
    (out, _), (moved_to, _) = exported("egma"), exported("egma", image_root=root)
    for table in out.glob("*.csv"):
        paths = pd.read_csv(table)["imgpath"]
        assert list(pd.read_csv(moved_to / table.name)["imgpath"]) == [f"/data/egma/{path}" for path in paths]


# --- maps as files


def with_gaze(samples):
    return {key: sample for key, sample in samples.items() if sample.record["has_gaze"]}


def test_npz_holds_the_stored_maps(exported, samples):
    out, report = exported("npz")
    assert {path.stem for path in (out / "maps").iterdir()} == set(with_gaze(samples))
    assert report.counts == {"samples left out: no gaze": len(samples) - len(with_gaze(samples))}
    for key, sample in with_gaze(samples).items():
        with np.load(out / "maps" / f"{key}.npz", allow_pickle=False) as archive:
            assert str(archive["key"]) == key
            assert archive["maps"].dtype == np.float32
            np.testing.assert_array_equal(archive["maps"], sample.maps)


@pytest.mark.parametrize("grid", ["picture", "image"])
def test_npz_maps_rendered_at_a_pictures_size_are_the_stored_ones_on_their_grid(exported, samples, grid):
    out, _ = exported("npz", maps=grid, query="has_gaze and dataset == 'egd-cxr' and sentences < 4")
    files = list((out / "maps").iterdir())
    assert files
    for path in files:
        record = samples[path.stem].record
        with np.load(path) as archive:
            maps = archive["maps"]
        kind = {"picture": "stored", "image": "image"}[grid]
        assert maps.shape[1:] == (record[f"{kind}_height_px"], record[f"{kind}_width_px"])
        for found, stored in zip(maps, samples[path.stem].maps, strict=True):
            share = cv2.resize(found, stored.shape[::-1], interpolation=cv2.INTER_AREA)
            assert not stored.any() or moved(share, stored) < 0.02


def test_png16_gives_each_value_back_within_half_a_level(exported, samples):
    out, _ = exported("png16")
    scales = pd.read_csv(out / "scales.csv", dtype={"map": str})
    assert len(scales) == sum(len(sample.maps) for sample in with_gaze(samples).values())
    for row in scales.itertuples():
        expected = samples[row.key].maps[0 if row.map == "whole" else 1 + int(row.map)]
        levels = np.asarray(opened(out / row.file))
        assert levels.dtype == np.uint16
        assert (row.rows, row.cols) == levels.shape == expected.shape
        assert np.abs(levels * row.scale - expected).max() <= expected.max() / 65535


# --- FiftyOne


def test_fiftyone_documents_have_the_shape_that_its_importer_reads(exported, samples):
    out, _ = exported("fiftyone")
    metadata = json.loads((out / "metadata.json").read_text())
    assert "version" not in metadata  # with one, it would be the dump of a database
    assert metadata["media_type"] == "image"
    documents = json.loads((out / "samples.json").read_text())["samples"]
    assert [document["key"] for document in documents] == list(samples)
    for document in documents:
        sample = samples[document["key"]]
        assert opened(out / document["filepath"]).size == (
            sample.record["stored_width_px"],
            sample.record["stored_height_px"],
        )
        assert document["tags"] == [sample.record["split"]]
        labels = {name: value for name, value in document.items() if isinstance(value, dict)}
        fields = ["gaze", *(f"sentence_{i}" for i in range(len(sample.maps) - 1))]
        assert list(labels) == (fields if sample.record["has_gaze"] else [])
        for i, (name, label) in enumerate(labels.items()):
            assert (label["_cls"], label["range"], label["tags"]) == ("Heatmap", [0, 255], [])
            assert label["map_path"].startswith(f"fields/{name}/")  # else its relative path stays relative
            heatmap = np.asarray(opened(out / label["map_path"]))
            assert heatmap.dtype == np.uint8
            stored = sample.maps[i]
            if stored.any():
                assert heatmap.max() == 255
                small = cv2.resize(heatmap.astype(np.float32), stored.shape[::-1], interpolation=cv2.INTER_AREA)
                assert moved(small, stored) < 0.05


# --- COCO


def test_coco_fixations_and_shapes_lie_where_they_were_drawn(exported, samples):
    out, _ = exported("coco")
    coco = json.loads((out / "annotations.json").read_text())
    names = {one["id"]: one["name"] for one in coco["categories"]}
    assert len(set(names.values())) == len(names)
    points, shapes = 0, 0
    for image in coco["images"]:
        sample = samples[image["key"]]
        record = sample.record
        assert opened(out / image["file_name"]).size == (image["width"], image["height"])
        scale = image["width"] / record["image_width_px"], image["height"] / record["image_height_px"]
        own = [one for one in coco["annotations"] if one["image_id"] == image["id"]]
        fixations = [one for one in own if names[one["category_id"]] == "fixation"]
        assert len(fixations) == (len(sample.gaze["x_px"]) if record["has_gaze"] else 0)
        for i, one in enumerate(fixations):
            x, y, seen = one["keypoints"]
            assert x == pytest.approx((sample.gaze["x_px"][i] + 0.5) * scale[0] - 0.5)
            assert y == pytest.approx((sample.gaze["y_px"][i] + 0.5) * scale[1] - 0.5)
            assert (seen == 2) == sample.gaze["on_image"][i]
            points += 1
        drawn = {tuple(one["box"]): one for one in json.loads(record["annotations"])}
        boxes = [one for one in own if names[one["category_id"]] != "fixation"]
        assert len(boxes) == sum(len(one["labels"]) or 1 for one in json.loads(record["annotations"]))
        for one in boxes:
            left, top, wide, high = one["bbox"]
            source = (left / scale[0], top / scale[1], (left + wide) / scale[0], (top + high) / scale[1])
            match = min(drawn, key=lambda box: np.abs(np.subtract(box, source)).max())
            np.testing.assert_allclose(source, match, atol=1e-6)
            assert (one["kind"], one["certainty"]) == (drawn[match]["kind"], drawn[match]["certainty"])
            assert names[one["category_id"]] in [*drawn[match]["labels"], "chest", "unnamed"]
            assert one["area"] == pytest.approx(wide * high * (np.pi / 4 if one["kind"] == "ellipse" else 1))
            shapes += 1
    assert points > 100
    assert shapes > 10


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_pycocotools_loads_the_coco_json_and_draws_its_shapes(exported):
    out, _ = exported("coco")
    coco = COCO(str(out / "annotations.json"))
    fixation = coco.getCatIds(catNms=["fixation"])
    assert len(coco.getAnnIds(catIds=fixation)) > 100
    for one in coco.loadAnns(coco.getAnnIds()):
        if one["category_id"] not in fixation:
            image = coco.imgs[one["image_id"]]
            inside = coco.annToMask(one)
            assert inside.shape == (image["height"], image["width"])
            rows, cols = np.nonzero(inside)
            left, top, wide, high = one["bbox"]
            if left >= 0 and top >= 0 and left + wide <= image["width"] and top + high <= image["height"]:
                assert inside.sum() == pytest.approx(one["area"], rel=0.1, abs=2 * (wide + high))
                assert abs(cols.mean() + 0.5 - left - wide / 2) < 1
                assert abs(rows.mean() + 0.5 - top - high / 2) < 1


# --- the folder, the choice of samples, names


def test_names_are_pseudonyms_unless_source_ids_are_asked_for(exported, samples):
    text = "".join(
        [(exported("cogaze")[0] / "annotation.json").read_text()]
        + [path.read_text() for path in exported("egma")[0].glob("*.csv")]
        + [str(path) for format in ("cogaze", "egma") for path in exported(format)[0].rglob("*")]
    )
    records = [sample.record for sample in samples.values()]
    for name in ("dicom_id", "study_id", "subject_id", "reading_id"):
        assert not [record["key"] for record in records if record[name] and record[name] in text]


def test_pseudonyms_keep_who_is_who(exported, samples):
    items = items_of(exported("cogaze")[0])
    for one in ("dicom_id", "study_id", "subject_id"):
        name = {"dicom_id": "id"}.get(one, one)
        pairs = {(samples[key].record[one], item[name]) for key, item in items.items()}
        assert len(pairs) == len({source for source, _ in pairs}) == len({found for _, found in pairs})


def test_source_ids_give_mimics_paths(exported, samples):
    out, _ = exported("cogaze", source_ids=True)
    for key, item in items_of(out).items():
        record = samples[key].record
        subject, study, dicom = record["subject_id"], record["study_id"], record["dicom_id"]
        assert (item["id"], item["subject_id"], item["study_id"]) == (dicom, subject, study)
        assert item["anchor_scan"]["image_path"] == [f"p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"]
    egma, _ = exported("egma", source_ids=True)
    for table in map(pd.read_csv, egma.glob("*.csv")):
        for row in table.itertuples():
            record = samples[row.key].record
            reading = "" if record["reading_id"] == record["dicom_id"] else f"_{record['reading_id']}"
            assert row.imgpath == f"images/{record['dicom_id']}{reading}/src.jpg"


def test_query_split_and_keys_choose_together(shards, samples, tmp_path):
    keys = [key for key, sample in samples.items() if sample.record["has_gaze"]]
    (tmp_path / "keys.txt").write_text("\n".join(keys) + "\n")
    config = ExportConfig(shards, tmp_path / "out", "cogaze", "dataset == 'reflacx'", "train", tmp_path / "keys.txt")
    export(config)
    chosen = {
        key for key in keys if (samples[key].record["dataset"], samples[key].record["split"]) == ("reflacx", "train")
    }
    assert set(items_of(tmp_path / "out")) == chosen
    assert 0 < len(chosen) < len(keys)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_export_twice_has_the_same_bytes(exported, shards, tmp_path, format):
    first = exported(format)[0]
    export(ExportConfig(shards, tmp_path / "again", format))
    again = tree(tmp_path / "again")
    assert again == tree(first)
    assert len(again) > 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query": "subject = 'p123456'"}, "the query is no expression"),
        ({"query": "no_such_column > 1"}, "columns are .*, has_gaze, "),
        ({"query": "__import__('os').getcwd() == ''"}, "the query holds"),
        ({"query": "fixations > 100000"}, "no sample is chosen"),
        ({"split": "val"}, "must be one of train, validate, test"),
        ({"format": "npz", "maps": "full"}, "must be one of stored, picture, image"),
        ({"format": "csv"}, "must be one of npz, png16, fiftyone, coco, cogaze, egma"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(shards, tmp_path, changes, said):
    options = {"format": "cogaze"} | changes
    with pytest.raises(ValueError, match=said) as refused:
        export(ExportConfig(shards, tmp_path / "out", **options))
    assert "p123456" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused_and_kept(shards, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert main(["export", str(shards), "--format", "egma", "--out", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_export_that_fails_leaves_no_folder(shards, tmp_path, monkeypatch):
    def full(self):
        assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())  # it was being written
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CogazeFolder, "finish", full)
    with pytest.raises(OSError, match="No space"):
        export(ExportConfig(shards, tmp_path / "out", "cogaze"))
    assert not list(tmp_path.iterdir())


def test_the_command_prints_counts_and_no_report_text_or_source_id(shards, samples, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["export", str(shards), "--format=egma", f"--out={tmp_path / 'empty'}", "--source-ids"]) == 0
    said = "".join(capsys.readouterr())
    written = len(pd.concat(pd.read_csv(path) for path in (tmp_path / "empty").glob("*.csv")))
    assert f"{written} of {len(samples)} chosen samples, egma\n" in said
    assert 0 < written < len(samples)
    assert "x samples left out: no gaze\n" in said
    for sample in samples.values():
        ids = [sample.record[f"{one}_id"] for one in ("dicom", "study", "subject", "reading")]
        assert not [text for text in [*ids, *sample.record["sentences"].split("\n")] if text and text in said]
    manifest = json.loads((tmp_path / "empty" / "export.json").read_text())
    assert (manifest["format"], manifest["synthetic"], manifest["source_ids"]) == ("egma", True, True)


# --- samples of other kinds


@pytest.fixture
def padded(tables, tmp_path, inline):
    """Shards of one's own tables: letterboxed pictures, a dropped tail, a fixation that a filter marked."""
    for i, name in enumerate(("a.b", "c")):
        tables.image(name, subject=f"person {i}")
        tables.reading(f"r{i}", name, [(8, 9), (20, 30), (25, 5), (-3, 10)])
    tables.words = [f"r0,{word},{i},{i + 1}" for i, word in enumerate(("clear lungs.", "2. normal heart.", "and so"))]
    sample = SampleConfig(
        picture=PictureConfig(Resize("letterbox", 64)),
        maps=MapConfig(grid=(8, 8)),
        alignment=Alignment(drop_tail=True),
        filters=Filters(off_image=True),
    )
    build(BuildConfig(tmp_path / "padded", Sources(table=tables.source()), sample, workers=1))
    return tmp_path / "padded"


def test_padded_pictures_have_their_maps_in_place(padded, tmp_path):
    samples = {key: ShardFolder(padded).sample(key) for key in ShardFolder(padded).index["key"]}
    assert all(json.loads(sample.record["fixation_marks"]) == {"3": "off_image"} for sample in samples.values())
    export(ExportConfig(padded, tmp_path / "maps", "npz", maps="picture"))
    for key, sample in samples.items():
        np.testing.assert_allclose(StoredGaze.of(sample).maps((8, 8)), sample.maps, atol=1e-6)
        with np.load(tmp_path / "maps" / "maps" / f"{key}.npz") as archive:
            whole = archive["maps"][0]
        assert whole.shape == (64, 64)
        assert not whole[:, :8].any()  # a picture of 48 x 64 px between two bars
        assert not whole[:, 56:].any()
        inside = cv2.resize(whole[:, 8:56], (8, 8), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(shares(inside), sample.maps[0], atol=1e-5)


def test_where_egma_splits_otherwise_each_of_its_sentences_has_its_own_words_map(padded, tmp_path):
    report = export(ExportConfig(padded, tmp_path / "egma", "egma"))
    assert report.counts == {
        "samples left out: no words": 1,
        "samples that EGMA splits into other sentences than the shards": 1,
        "sentences": 2,
    }
    (row,) = pd.read_csv(tmp_path / "egma" / "train.csv").itertuples()
    assert row.report == "clear lungs. 2. normal heart."
    assert egma_sentences(row.report) == ["clear lungs", "normal heart ."]
    sample = ShardFolder(padded).sample(row.key)
    assert sample.record["sentences"].split("\n") == ["clear lungs.", "2.", "normal heart."]
    maps = [
        egma_reading((tmp_path / "egma" / row.imgpath).parent / f"sentence_hm/{i}_sent_hm_array.jpg", (64, 64))
        for i in range(2)
    ]
    middle = sample.gaze["word_end_s"][1]  # of "2.", which EGMA drops: its time goes to the sentence before
    by_hand = looking(sample, -0.5, middle), looking(sample, 0.0, 2.0)
    for found, expected in zip(maps, by_hand, strict=True):
        assert moved(found[80:144, 80:144], expected) < 0.03


def looking(sample, start_s, end_s):
    """The map (64, 64) of the padded picture for all looking between two times, by the clipped rule."""
    gaze, record = sample.gaze, sample.record
    seconds = np.clip(np.minimum(gaze["end_s"], end_s) - np.maximum(gaze["start_s"], start_s), 0, None)
    seconds[gaze["x_px"] < 0] = 0
    fixations = fixations_from_member(gaze)
    window = (-5.0, 0.0, 35.0, 40.0)  # a picture of 30 x 40 px in the middle of a square
    return render_batch(fixations, seconds[None], (30, 40), (64, 64), window, sigma_deg=record["map_sigma_deg"])[0]


def test_names_of_tables_never_become_paths(padded, tmp_path):
    export(ExportConfig(padded, tmp_path / "cogaze", "cogaze", source_ids=True))
    items = items_of(tmp_path / "cogaze")
    assert {item["id"] for item in items.values()} == {"a.b", "c"}
    assert {item["subject_id"] for item in items.values()} == {"person 0", "person 1"}
    for key, item in items.items():
        assert item["study_id"] == key  # there is none: no two samples may look like one study
        assert item["anchor_scan"]["image_path"] == [f"{key}.jpg"]


def test_ids_that_could_climb_out_of_the_folder_do_not_become_paths():
    record = {"key": "reflacx-0123456789ab", "dataset": "reflacx", "reading_id": "../r", "study_id": "1/2"}
    named = identity_of(record | {"dicom_id": "../../etc", "subject_id": "10"}, source_ids=True)
    assert (named.image_name, named.reading_name) == (record["key"], record["key"])
    named = identity_of(record | {"dicom_id": "1-2", "subject_id": "10000032"}, source_ids=True)
    assert (named.image_name, named.reading_name) == (record["key"], "1-2")
