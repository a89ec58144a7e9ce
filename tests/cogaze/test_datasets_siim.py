"""SIIM-ACR's reader on twins of its releases."""

import shutil

import numpy as np
import pytest
from twins import siim as twin
from twins.pictures import copy_of

from cogaze.evaluate.datasets.siim import read_siim
from cogaze.evaluate.masks import mask_of_runs
from gazeprep.images import read_image

IMAGES = twin.cast()


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """The DICOM tree with names, the PNG release, and BenchX's lists."""
    root = tmp_path_factory.mktemp("siim")
    twin.write_dicom_tree(root / "dicom", IMAGES)
    twin.write_names(root / "dicom", IMAGES)
    twin.write_png_tree(root / "png", IMAGES)
    twin.write_benchx(root / "lists", IMAGES)
    return root


@pytest.fixture
def own(releases, tmp_path):
    copy_of(releases, tmp_path / "own")
    return tmp_path / "own"


def by_id(found):
    return {one.id: one for part in ("train", "validate", "test") for one in found.parts[part]}


def assert_masks_are_those_of_the_twin(found):
    images = by_id(found)
    assert set(images) == {one["id"] for one in IMAGES}
    for one in IMAGES:
        mask = np.any(one["masks"], axis=0) if one["masks"] else np.zeros((24, 32), dtype=bool)
        np.testing.assert_array_equal(mask_of_runs(images[one["id"]].runs, 32, 24), mask)
        assert images[one["id"]].labels == (int(bool(one["masks"])),)


@pytest.mark.parametrize("variant", twin.VARIANTS)
def test_all_three_tables_of_run_lengths_say_the_same(own, variant):
    (own / "dicom" / "stage_2_train.csv").unlink()
    twin.write_tables(own / "dicom", IMAGES, variant)
    found = read_siim(own / "dicom", own / "lists")
    assert_masks_are_those_of_the_twin(found)
    assert sorted({len(one.runs) for one in by_id(found).values()}) == [0, 1, 2, 3]


def test_png_release_reads_its_masks_from_pictures(releases):
    assert_masks_are_those_of_the_twin(read_siim(releases / "png", releases / "lists"))


def test_png_release_with_a_table_of_run_lengths_takes_that(own):
    twin.write_tables(own / "png", IMAGES, "torrent")
    shutil.rmtree(own / "png" / "png_masks")
    assert_masks_are_those_of_the_twin(read_siim(own / "png", own / "lists"))


def test_png_release_alone_knows_images_by_their_names(own):
    for table in (own / "png").glob("*.csv"):
        table.unlink()
    found = read_siim(own / "png", own / "lists")
    assert {one.id for one in found.parts["test"]} == {one["name"] for one in IMAGES if one["part"] == "test"}


def test_images_are_found_by_their_whole_name_and_none_is_in_two_parts(releases):
    """Every number of a test name is that of a train or val name too: found by it, all of test would be trained on."""
    lists = {name: (releases / "lists" / f"{name}.txt").read_text().split() for name in ("train", "val", "test")}
    numbers = {name: {line.split("_")[0] for line in lines} for name, lines in lists.items()}
    assert numbers["test"] <= numbers["train"] | numbers["val"]
    id_of = {one["name"]: one["id"] for one in IMAGES}
    for tree in ("dicom", "png"):
        parts = read_siim(releases / tree, releases / "lists").parts
        assert [one.id for one in parts["test"]] == [id_of[name] for name in lists["test"]]
        assert [one.id for one in parts["validate"]] == [id_of[name] for name in lists["val"]]
        folders = {one.image.path.split("/")[0] for one in parts["test"]}
        assert folders == ({"dicom-images-test"} if tree == "dicom" else {"png_images"})


def test_numbers_alone_are_refused(own):
    test = own / "lists" / "test.txt"
    test.write_text("".join(f"{line.split('_')[0]}\n" for line in test.read_text().split()))
    with pytest.raises(ValueError, match="8 of 8 ids in the list of test are not in the dataset's table"):
        read_siim(own / "dicom", own / "lists")


def test_an_image_of_two_names_is_refused(own):
    for part in ("train", "test"):
        table = own / "dicom" / f"stage_1_{part}_images.csv"
        table.write_text(table.read_text().replace(IMAGES[-2]["id"], IMAGES[0]["id"]))
    with pytest.raises(ValueError, match="24 rows, but 24 names of 23 images") as error:
        read_siim(own / "dicom", own / "lists")
    assert "1.2.276" not in str(error.value)


def test_without_lists_test_is_the_vendors(releases):
    found = read_siim(releases / "dicom")
    assert {one.id for one in found.parts["test"]} == {one["id"] for one in IMAGES if one["part"] == "test"}
    assert set(found.parts) == {"train", "validate", "test", "train_1", "train_10"}
    assert found.origin.startswith("test is the vendor's")


def test_lists_without_tables_of_names_are_refused(own):
    for table in (own / "dicom").glob("stage_1_*.csv"):
        table.unlink()
    with pytest.raises(ValueError, match=r"add its stage_1_train_images.csv and stage_1_test_images.csv"):
        read_siim(own / "dicom", own / "lists")
    assert len(by_id(read_siim(own / "dicom"))) == 24


def test_header_gives_view_age_and_sex(releases):
    image = by_id(read_siim(releases / "dicom"))[IMAGES[3]["id"]]
    assert (image.age_years, image.sex, image.view) == (33, "F", "AP")
    assert read_image(image.image).shape == (24, 32)


SPOILT = {
    "a name of another label": (
        "stage_1_test_images.csv",
        lambda text: text.replace("0_test_0_.png", "0_test_1_.png"),
        "new_filename that is not <number>_test_0_",
    ),
    "a label that the table of masks has not": (
        "stage_1_test_images.csv",
        lambda text: text.replace(f"0_test_0_.png,{IMAGES[16]['id']},0", f"0_test_1_.png,{IMAGES[16]['id']},1"),
        "1 images have another label in their name",
    ),
    "a mask and none": (
        "stage_2_train.csv",
        lambda text: text + f"{IMAGES[1]['id']},-1\n",
        "1 images that they have a mask and that they have none",
    ),
    "absolute run lengths": (
        "stage_2_train.csv",
        lambda text: text + f"{IMAGES[1]['id']},300 20 324 20 348 20\n",
        "offsets are relative",
    ),
    "the published code's own table": (
        "stage_2_train.csv",
        lambda text: text.replace("ImageId,EncodedPixels", "id,image_path"),
        "has no column 'ImageId', 'EncodedPixels'",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_table_is_refused(own, name):
    file, spoil, message = SPOILT[name]
    path = own / "dicom" / file
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=message):
        read_siim(own / "dicom", own / "lists")


def test_images_of_stage_2_have_no_labels(own):
    source = next((own / "dicom").rglob("*.dcm"))
    (own / "dicom" / "stage_2_images").mkdir()
    shutil.copy(source, own / "dicom" / "stage_2_images" / "ID_0a1b2c3d4.dcm")
    notes = read_siim(own / "dicom", own / "lists").notes
    assert notes["images of stage 2, whose labels were not published"] == 1


def test_a_missing_mask_of_the_png_release_is_noted(own):
    (own / "png" / "png_masks" / f"{IMAGES[1]['name']}.png").unlink()
    found = read_siim(own / "png", own / "lists")
    assert found.notes["images with a finding whose mask is not there"] == 1
    assert by_id(found)[IMAGES[1]["id"]].labels == (1,)


def test_a_table_without_the_test_part_is_no_reason_to_go_without_it(own):
    """The first table of run lengths had the train part alone."""
    table = own / "dicom" / "stage_2_train.csv"
    test = {one["id"] for one in IMAGES if one["part"] == "test"}
    lines = [line for line in table.read_text().splitlines() if line.split(",")[0] not in test]
    table.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="8 of 8 ids in the list of test are not in the dataset's table"):
        read_siim(own / "dicom", own / "lists")
    notes = read_siim(own / "dicom").notes
    assert notes["images in the folder that no table lists"] == 8


def test_pictures_of_the_png_release_without_a_row_are_noted(own):
    pictures = own / "png" / "png_images"
    shutil.copy(next(pictures.iterdir()), pictures / "99_train_0_.png")
    assert read_siim(own / "png", own / "lists").notes["images in the folder that no table lists"] == 1


def test_masks_of_another_size_are_refused(own):
    twin.write_picture(own / "png/png_masks" / f"{IMAGES[1]['name']}.png", np.full((12, 16), 255, dtype=np.uint8))
    with pytest.raises(ValueError, match="a mask is not of its picture's size"):
        read_siim(own / "png", own / "lists")
