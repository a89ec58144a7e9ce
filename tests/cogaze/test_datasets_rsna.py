"""RSNA's reader on a twin of its release."""

import shutil
from collections import Counter

import pytest
from twins.pictures import copy_of
from twins.rsna import write_rsna

from cogaze.evaluate.datasets.rsna import read_rsna
from cogaze.evaluate.masks import mask_of_boxes
from gazeprep.images import read_image


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rsna")
    return folder / "release", folder / "lists", write_rsna(folder / "release", folder / "lists")


@pytest.fixture
def own(twin, tmp_path):
    """A copy to spoil."""
    copy_of(twin[0], tmp_path / "release")
    copy_of(twin[1], tmp_path / "lists")
    return tmp_path / "release", tmp_path / "lists"


def test_parts_are_those_of_the_lists(twin):
    release, lists, ids = twin
    found = read_rsna(release, lists)
    assert {part: [one.id for one in images] for part, images in found.parts.items()} == {
        "train": ids[:28],
        "train_1": ids[:1],
        "train_10": ids[:3],
        "validate": ids[28:34],
        "test": ids[34:],
    }
    assert (found.name, found.task, found.classes, found.origin) == (
        "RSNA",
        "binary",
        ("Pneumonia",),
        "the lists given",
    )


def test_patients_have_all_their_boxes_as_edges(twin):
    release, lists, ids = twin
    images = {one.id: one for part in read_rsna(release, lists).parts.values() for one in part}
    rows = [line.split(",") for line in (release / "stage_2_train_labels.csv").read_text().splitlines()[1:]]
    expected = Counter(row[0] for row in rows if row[-1] == "1")
    assert sorted(expected.values()) == [1, 1, 1, 1, 2, 2, 4, 4]
    for one in ids:
        assert len(images[one].boxes) == expected[one]
        assert images[one].labels == (int(one in expected),)
    first = next(row for row in rows if row[-1] == "1")
    x, y, width, height = map(float, first[1:5])
    assert images[first[0]].boxes[0].box == (x, y, x + width, y + height)


def test_header_gives_view_age_and_sex_and_what_is_dirty_is_counted(twin):
    release, lists, ids = twin
    found = read_rsna(release, lists)
    images = {one.id: one for part in found.parts.values() for one in part}
    told = [(images[one].age_years, images[one].sex, images[one].view) for one in ids[:4]]
    assert told == [(51, "M", "PA"), (7, "F", "AP"), (None, "M", "PA"), (None, "F", "AP")]
    assert found.notes["ages above 120, taken as unknown"] == 10


def test_pictures_are_read(twin):
    image = read_rsna(*twin[:2]).parts["test"][0]
    assert read_image(image.image).shape == (24, 32)


def test_published_masks_are_an_option_and_larger(twin):
    release, lists, _ = twin
    ours, published = (
        [
            mask_of_boxes([box.box for box in one.boxes], 32, 24)
            for one in read_rsna(release, lists, boxes=rule).parts["train"]
        ]
        for rule in ("vendor", "cogaze")
    )
    assert all((theirs >= mine).all() for mine, theirs in zip(ours, published, strict=True))
    assert sum(mask.sum() for mask in published) > sum(mask.sum() for mask in ours)


def test_without_lists_patients_are_split_by_a_hash_that_is_told(twin):
    release, _, ids = twin
    found = read_rsna(release)
    assert sum(len(found.parts[part]) for part in ("train", "validate", "test")) == len(ids)
    assert found.origin == "a hash of the patient, seed 0: 15% validate, 15% test, the rest train"
    assert {one.labels for one in found.parts["train_1"]} == {(0,), (1,)}
    assert found.fingerprints() == read_rsna(release).fingerprints()
    assert found.fingerprints() != read_rsna(release, seed=1).fingerprints()


def test_other_list_lengths_than_published_are_noted(twin):
    notes = read_rsna(*twin[:2]).notes
    assert notes["ids in the list of test too many or too few, published are 4003"] == 4003 - 6
    assert notes["patients of the table too many or too few, published are 26684"] == 26684 - 40


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_a_missing_picture_is_refused_or_noted(own, twin):
    release, lists = own
    (release / "stage_2_train_images" / f"{twin[2][-1]}.dcm").unlink()
    with pytest.raises(ValueError, match=r"1 of the 40 images .* missing='note'") as error:
        read_rsna(release, lists)
    assert twin[2][-1] not in str(error.value)
    found = read_rsna(release, lists, missing="note")
    assert len(found.parts["test"]) == 5
    assert found.notes["images of the table that are not in the folder"] == 1
    assert found.notes["listed in test, but not in the folder"] == 1


def test_a_picture_without_a_row_is_noted(own):
    release, lists = own
    pictures = release / "stage_2_train_images"
    shutil.copy(next(pictures.iterdir()), pictures / "another.dcm")
    assert read_rsna(release, lists).notes["images in the folder that no table lists"] == 1


def test_what_is_in_no_list_is_noted(own):
    release, lists = own
    test = lists / "test.txt"
    test.write_text("\n".join(test.read_text().splitlines()[1:]))
    assert read_rsna(release, lists).notes["images in no list"] == 1


def test_a_patient_in_two_parts_is_refused(own):
    release, lists = own
    (lists / "test.txt").write_text((lists / "test.txt").read_text() + (lists / "train.txt").read_text()[:37])
    with pytest.raises(ValueError, match="1 images are in train and in test"):
        read_rsna(release, lists)


def test_ids_that_no_table_knows_are_refused(own):
    release, lists = own
    (lists / "val.txt").write_text("patientId\n" + (lists / "val.txt").read_text())
    with pytest.raises(ValueError, match="1 of 7 ids in the list of validate are not in the dataset's table"):
        read_rsna(release, lists)


def test_corners_taken_for_sizes_are_refused(own):
    release, lists = own
    table = release / "stage_2_train_labels.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    for row in rows[1:]:
        if row[-1] == "1":
            x, y, width, height = map(float, row[1:5])
            row[1:5] = map(str, (x, y, 2 * x + width + 20, 2 * y + height + 20))
    table.write_text("\n".join(",".join(row) for row in rows))
    with pytest.raises(ValueError, match="boxes leave their image"):
        read_rsna(release, lists)


SPOILT = {
    "another target": (",0\n", ",2\n", r"row \d+, column 'Target' is '2', must be one of '0', '1'"),
    "a patient of both": (",,,0\n", ",,,1\n", "column 'x' is empty"),
    "a column": ("width", "w", "has no column 'width'"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_table_is_refused(own, name):
    release, lists = own
    before, after, message = SPOILT[name]
    edit(release / "stage_2_train_labels.csv", before, after)
    with pytest.raises(ValueError, match=message):
        read_rsna(release, lists)


def test_targets_against_classes_are_refused(own):
    release, lists = own
    edit(release / "stage_2_detailed_class_info.csv", ",Normal", ",Lung Opacity")
    with pytest.raises(ValueError, match="1 of 40 patients have another class"):
        read_rsna(release, lists)


def test_without_the_class_table_that_is_noted(own):
    release, lists = own
    (release / "stage_2_detailed_class_info.csv").unlink()
    assert read_rsna(release, lists).notes[
        "stage_2_detailed_class_info.csv is absent: patients whose class is not compared"
    ]


def test_a_damaged_header_is_told_by_its_place(own, twin):
    release, lists = own
    path = release / "stage_2_train_images" / f"{twin[2][2]}.dcm"
    cut = path.read_bytes()[:100]
    path.unlink()
    path.write_bytes(cut)
    with pytest.raises(ValueError, match=r"patient 3 of those with a file: .* cannot be read") as error:
        read_rsna(release, lists)
    assert twin[2][2] not in str(error.value)


NO_LISTS = {
    "without test": (lambda lists: (lists / "test.txt").unlink(), r"has no test\.txt; it may hold train\.txt"),
    "without text": (
        lambda lists: (lists / "val.txt").write_bytes(b"\xff\xfe"),
        r"the list val\.txt cannot be read as text",
    ),
    "a folder": (lambda lists: shutil.rmtree(lists), "RSNA lists: its folder does not exist"),
}


@pytest.mark.parametrize("name", NO_LISTS)
def test_lists_that_are_none_are_refused(own, name):
    release, lists = own
    spoil, message = NO_LISTS[name]
    spoil(lists)
    with pytest.raises(ValueError, match=message) as error:
        read_rsna(release, lists)
    assert str(lists) not in str(error.value)


def test_lines_with_windows_ends_and_blank_ones_are_the_same_ids(own, twin):
    release, lists = own
    for path in lists.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_rsna(release, lists).fingerprints() == read_rsna(*twin[:2]).fingerprints()
