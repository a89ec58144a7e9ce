"""TBX11K's reader on twins of both its forms."""

import pytest
from twins import tbx11k as twin
from twins.pictures import copy_of

from cogaze.evaluate.datasets.tbx11k import read_tbx11k
from gazeprep.images import read_image


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    root = tmp_path_factory.mktemp("tbx11k")
    twin.write_simplified(root / "simplified")
    twin.write_full(root / "full")
    twin.write_lists_of(root / "lists")
    return root


@pytest.fixture
def own(releases, tmp_path):
    copy_of(releases, tmp_path / "own")
    return tmp_path / "own"


def by_id(found):
    return {one.id: one for part in ("train", "validate", "test") for one in found.parts[part]}


@pytest.mark.parametrize("form", ["simplified", "full"])
def test_both_forms_give_labels_and_all_boxes(releases, form):
    images = by_id(read_tbx11k(releases / form, releases / "lists"))
    assert set(images) == set(twin.cast())
    for name, image in images.items():
        assert image.labels == (int(name.startswith("tb")),)
        assert [box.box for box in image.boxes] == [(x, y, x + w, y + h) for x, y, w, h in twin.BOXES.get(name, [])]
    assert read_image(images["tb0001"].image).shape == (24, 32)


def test_boxes_say_which_kind(releases):
    told = {
        form: [by_id(read_tbx11k(releases / form, releases / "lists"))[name].boxes[0].label for name in twin.BOXES]
        for form in ("simplified", "full")
    }
    kinds = {
        "simplified": {True: "latent_tb", False: "active_tb"},
        "full": {True: "ObsoletePulmonaryTuberculosis", False: "ActiveTuberculosis"},
    }
    for form, labels in told.items():
        assert labels == [kinds[form][name == twin.LATENT] for name in twin.BOXES]


@pytest.mark.parametrize("form", ["simplified", "full"])
def test_without_lists_test_is_the_official_val(releases, form):
    found = read_tbx11k(releases / form)
    assert {one.id for one in found.parts["test"]} == {name for name, part in twin.cast().items() if part == "val"}
    assert found.origin.startswith("test is the official val")


def test_what_lies_in_extra_is_never_read(releases):
    found = read_tbx11k(releases / "full")
    assert not any("CHNCXR" in one.id for images in found.parts.values() for one in images)
    assert "images in the folder that no table lists" not in found.notes


SPOILT = {
    "a box that is none": ("'xmin'", "'left'", r"row \d+, column 'bbox' is \d+ characters, must be none or a dict"),
    "code for a box": ("\"{'xmin': 9.5,", "\"{'xmin': open('x'),", "column 'bbox' is"),
    "a box without width": ("'width': 8.0", "'width': 0.0", "has a box of 0.0 x 11.4 px"),
    "a target": (",no_tb,", ",maybe,", "column 'target' is 'maybe', must be one of 'tb', 'no_tb'"),
    "a target against its type": (",tb,active_tb,tb", ",no_tb,active_tb,tb", "a target against its image_type"),
    "two parts for an image": ("tb0001.png,24,32,train", "tb0001.png,24,32,val", "another label, part or size"),
    "another size": ("tb0002.png,24,32", "tb0002.png,512,512", "1 pictures with boxes are not of the size"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_table_is_refused(own, name):
    before, after, message = SPOILT[name]
    path = own / "simplified" / "data.csv"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_tbx11k(own / "simplified", own / "lists")
    assert "tb0001" not in str(error.value)


def test_a_box_beyond_its_image_is_noted(own):
    path = own / "simplified" / "data.csv"
    path.write_text(path.read_text().replace("'width': 8.0", "'width': 80.0"))
    notes = read_tbx11k(own / "simplified", own / "lists").notes
    assert notes["boxes that leave their image, where masks cut them"] == 1


def test_damaged_json_is_refused(own):
    (own / "full/annotations/json/TBX11K_val.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"TBX11K_val\.json is not COCO's json"):
        read_tbx11k(own / "full")
