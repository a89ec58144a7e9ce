"""NIH ChestX-ray14's reader on twins of its releases, and on a few of its real pictures."""

import gzip
import shutil

import numpy as np
import pytest
from twins import nih as twin
from twins.pictures import copy_of

from cogaze.evaluate.datasets.nih import FINDINGS, read_nih
from gazeprep.images import read_image

PARTS = {"validate" if name == "val" else name: ids for name, ids in twin.parts().items()}


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    root = tmp_path_factory.mktemp("nih")
    twin.write_nih(root / "kaggle", "kaggle")
    twin.write_nih(root / "first", "flat", "first")
    twin.write_nih(root / "root", "root")
    twin.write_benchx(root / "benchx")
    twin.write_chexnet(root / "chexnet")
    twin.write_official(root / "official")
    return root


@pytest.fixture
def own(releases, tmp_path):
    copy_of(releases, tmp_path / "own")
    return tmp_path / "own"


def ids(found):
    return {part: [one.id for one in images] for part, images in found.parts.items()}


def by_id(found):
    return {one.id: one for part in ("train", "validate", "test") for one in found.parts[part]}


@pytest.mark.parametrize("form", ["kaggle", "first", "root"])
def test_every_form_of_the_release_says_the_same(releases, form):
    found = read_nih(releases / form, releases / "benchx")
    assert ids(found) == PARTS
    images = by_id(found)
    for name, one in twin.cast().items():
        assert {finding for finding, label in zip(FINDINGS, images[name].labels, strict=True) if label} == (
            set(one["findings"].split("|")) - {"No Finding"}
        )
        assert images[name].subject == str(one["patient"])
        assert images[name].age_years == 40 + one["patient"]
    assert (images["00000001_000.png"].sex, images["00000001_001.png"].view) == ("M", "AP")
    assert read_image(images["00000003_000.png"].image).shape == (24, 32)  # stored as RGBA


def test_boxes_are_those_of_the_released_size_scaled_to_the_picture(releases):
    found = read_nih(releases / "kaggle", releases / "benchx")
    (first,), (second,) = (by_id(found)[one].boxes for one in ("00000001_001.png", "00000002_000.png"))
    assert (first.label, second.label) == ("Atelectasis", "Infiltration")
    np.testing.assert_allclose(first.box, np.array([256, 512, 384.5, 576]) * np.tile([32 / 1024, 24 / 1024], 2))
    assert second.box == (0, 0, 32, 24)
    assert found.notes["images with boxes that are not 1024 px, whose boxes are scaled"] == 2


def test_lists_with_labels_of_their_own_are_read_and_what_differs_is_noted(releases):
    found = read_nih(releases / "kaggle", releases / "chexnet")
    assert ids(found) == {part: PARTS[part] for part in ("train", "validate", "test")}
    assert found.notes["images with other labels in the lists than in the table, which counts"] == 1


def test_official_lists_are_used_where_they_lie(releases, own):
    for file in (releases / "official").iterdir():
        shutil.copy(file, own / "kaggle")
    for found in (read_nih(own / "kaggle"), read_nih(releases / "kaggle", releases / "official")):
        assert ids(found)["test"] == PARTS["test"]
        assert set(ids(found)["train"]) | set(ids(found)["validate"]) == set(PARTS["train"]) | set(PARTS["validate"])
        assert found.origin.startswith("the official lists; of train_val 10% validate by a hash of the patient")
        assert {one.subject for one in found.parts["train"]}.isdisjoint(one.subject for one in found.parts["validate"])


def test_without_any_list_patients_are_hashed(releases):
    found = read_nih(releases / "kaggle")
    assert found.origin == "a hash of the patient, seed 0: 10% validate, 20% test, the rest train"
    assert sum(len(found.parts[part]) for part in found.parts if not part.startswith("train_")) == 30


def test_a_patient_in_two_parts_is_refused(own):
    test, train = own / "benchx" / "test.txt", own / "benchx" / "train.txt"
    moved, *rest = test.read_text().splitlines()
    test.write_text("\n".join(rest))
    train.write_text(train.read_text() + moved)
    with pytest.raises(ValueError, match="1 subjects are in train and in test"):
        read_nih(own / "kaggle", own / "benchx")


def test_the_new_name_of_a_column_is_known(own):
    table = own / "kaggle" / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Patient Gender", "Patient Sex"))
    assert by_id(read_nih(own / "kaggle", own / "benchx"))["00000001_000.png"].sex == "M"


SPOILT = {
    "an unknown finding": ("v2020.csv", "Hernia", "Harnia", r"row 6, column 'Finding Labels' has 'Harnia'"),
    "no finding and one": ("v2020.csv", "No Finding", "No Finding|Mass", "No Finding beside a finding"),
    "a row twice": ("v2020.csv", "00000001_001.png", "00000001_000.png", "1 rows repeat an image"),
    "an unknown box": ("BBox", "Infiltrate", "Opacity", "row 2 has the finding 'Opacity'"),
    "a box of corners": ("BBox", "256.0,512.0,128.5", "900.0,512.0,984.5", "row 1 has a box that is not within 1024"),
    "a box of nobody": ("BBox", "00000002_000", "00099999_000", "1 boxes are of images that the table does not list"),
    "a box without an end": ("BBox", ",64.0", "", "row 1 has 5 cells"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_table_is_refused_without_saying_whose(own, name):
    file, before, after, message = SPOILT[name]
    (path,) = (path for path in (own / "kaggle").iterdir() if file in path.name)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_nih(own / "kaggle", own / "benchx")
    assert "0000" not in str(error.value)


def test_a_picture_in_two_folders_is_refused(own):
    pictures = own / "kaggle"
    shutil.copy(next(pictures.glob("images_001/images/*")), pictures / "images_002" / "images")
    with pytest.raises(ValueError, match="1 pictures are in two folders"):
        read_nih(pictures, own / "benchx")


def test_tables_may_be_compressed(own):
    for file in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
        path = own / "kaggle" / file
        path.with_name(f"{file}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert (
        read_nih(own / "kaggle", own / "benchx").fingerprints() == read_nih(own / "root", own / "benchx").fingerprints()
    )


def test_real_pictures_become_a_set(shared, tmp_path):
    """The pictures are NIH's, with its permission for anyone; the labels are made up here."""
    folder = shared / "data" / "nih_chestxray"
    names = sorted(path.name for path in folder.glob("*.png"))
    if not names:
        pytest.skip("the shared folder has no pictures of NIH ChestX-ray14")
    rows = [
        f"{name},{'Mass' if number % 2 else 'No Finding'},{number},{int(name[:8])},60,M,PA,2048,2500,0.168,0.168\n"
        for number, name in enumerate(names)
    ]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("".join([f"{twin.HEADER}\n", *rows]))
    (tmp_path / "images").symlink_to(folder)
    subjects = sorted({name[:8] for name in names})
    for part, chosen in (("test", subjects[:1]), ("train", subjects[1:])):
        listed = [name for name in names if name[:8] in chosen]
        (tmp_path / f"{part}.txt").write_text("".join(f"{name}\n" for name in listed))
    found = read_nih(tmp_path, tmp_path)
    assert sorted(one.id for images in found.parts.values() for one in images) == names
    for images in found.parts.values():
        for one in images:
            pixels = read_image(one.image)
            assert min(pixels.shape) >= 512
            assert pixels.std() > 20
