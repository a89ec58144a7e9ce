"""Sets of images to evaluate on: parts that share nobody."""

from dataclasses import replace

import pytest

from cogaze.evaluate.records import EvalImage, EvalSet
from gazeprep.schema import ImageRef


def image(number, subject=None):
    ref = ImageRef("root", f"{number}.png", "raster", "made up")
    return EvalImage(
        f"image-{number}",
        ref,
        (1,),
        subject="" if subject == "" else f"subject-{number if subject is None else subject}",
    )


def made(**parts):
    return EvalSet("made up", "binary", ("Pneumonia",), {name: tuple(images) for name, images in parts.items()})


def test_parts_that_share_nobody_are_a_set():
    found = made(train=[image(0), image(1)], train_1=[image(1)], validate=[image(2)], test=[image(3)])
    assert [len(images) for images in found.parts.values()] == [2, 1, 1, 1]


OVERLAPS = {
    "an image": ({"train": [image(0)], "test": [image(0)]}, "1 images are in train and in test"),
    "a subject": (
        {"validate": [image(0, 7)], "test": [image(1, 7), image(2, 7)]},
        "1 subjects are in validate and in test",
    ),
    "outside train": ({"train": [image(0)], "train_10": [image(0), image(5)]}, "1 images of train_10 are not in train"),
    "twice": ({"test": [image(0), image(0)]}, "1 images are listed twice in test"),
    "another part": ({"val": [image(0)]}, r"parts \['val'\], must be of"),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlapping_parts_are_refused_without_saying_whose(name):
    parts, message = OVERLAPS[name]
    with pytest.raises(ValueError, match=message) as error:
        made(**parts)
    assert "subject-" not in str(error.value)
    assert "image-" not in str(error.value)


def test_without_subjects_only_images_are_compared():
    made(train=[image(0, "")], test=[image(1, "")])


def test_another_number_of_labels_than_classes_is_refused():
    with pytest.raises(ValueError, match="1 images of test have not 2 labels"):
        EvalSet("made up", "multi-label", ("Pneumonia", "Edema"), {"test": (image(0),)})


def test_fingerprints_know_images_and_labels_but_no_order():
    one = made(test=[image(0), image(1)], train=[image(2)]).fingerprints()
    assert one == made(test=[image(1), image(0)], train=[image(2)]).fingerprints()
    changed = replace(image(1), labels=(0,))
    assert one["test"] != made(test=[image(0), changed]).fingerprints()["test"]
    assert "image-" not in str(one)
