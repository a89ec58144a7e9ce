"""MIMIC 5x200's builder on a twin of MIMIC-CXR-JPG with reports."""

from collections import Counter

import pytest
from twins import mimic as twin

from cogaze.evaluate.datasets.mimic_5x200 import read_mimic_5x200


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    root = tmp_path_factory.mktemp("mimic")
    return root, twin.write_mimic(root)


def classes(found):
    return Counter(found.classes[one.labels.index(1)] for one in found.parts["test"])


def test_images_of_one_finding_alone_are_drawn_with_their_reports(release):
    root, why = release
    found = read_mimic_5x200(root, per_class=3)
    assert classes(found) == dict.fromkeys(twin.FIVE, 3)
    assert {why[one.id] for one in found.parts["test"]} == {"pool"}
    numbers = [int(one.id[:8], 16) for one in found.parts["test"]]
    assert [one.report for one in found.parts["test"]] == [f"Study number {number}. Invented." for number in numbers]
    assert found.notes["images of one finding without picture or report, left out"] == 2


def test_every_choice_of_the_rule_is_an_option(release):
    root, _ = release
    pool = "images with Edema alone"
    assert read_mimic_5x200(root, per_class=1).notes[pool] == 3
    assert read_mimic_5x200(root, per_class=1, uncertain="zero").notes[pool] == 4
    assert read_mimic_5x200(root, per_class=1, frontal_only=False).notes[pool] == 4
    assert read_mimic_5x200(root, per_class=1, labels="negbio").notes["images with Atelectasis alone"] == 2


def test_splits_of_mimic_are_counted_for_models_were_trained_on_them(release):
    notes = read_mimic_5x200(release[0], per_class=3).notes
    assert [notes[f"images of MIMIC-CXR's {split} split"] for split in ("train", "validate", "test")] == [6, 5, 4]


def test_the_list_is_written_and_read_again(release, tmp_path):
    root, _ = release
    one = read_mimic_5x200(root, per_class=2, seed=5, write=tmp_path)
    again = read_mimic_5x200(root, tmp_path)
    assert one.fingerprints() == again.fingerprints()
    assert (
        one.origin
        == "chexpert labels, uncertain exclude: 2 frontal images of each class drawn by pandas with random_state 5"
    )
    (tmp_path / "mimic_5x200.txt").write_text("unknown\n")
    with pytest.raises(ValueError, match="1 of 1 listed images have not one of"):
        read_mimic_5x200(root, tmp_path)


def test_two_folders_below_are_two_releases(release, tmp_path):
    root, _ = release
    (tmp_path / "mimic-cxr-jpg").symlink_to(root)
    (tmp_path / "mimic-cxr").symlink_to(root)
    assert read_mimic_5x200(tmp_path, per_class=2).fingerprints() == read_mimic_5x200(root, per_class=2).fingerprints()


def test_too_few_images_are_refused(release):
    with pytest.raises(ValueError, match="only 3 images have Atelectasis alone, 200 are wanted"):
        read_mimic_5x200(release[0])


def test_without_label_table_is_refused(tmp_path):
    twin.write_mimic(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").unlink()
    with pytest.raises(ValueError, match="the chexpert label table of MIMIC-CXR-JPG is not in the folder"):
        read_mimic_5x200(tmp_path)
