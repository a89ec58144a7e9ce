"""CheXpert's readers on a twin of its release, and its 5x200 and 8x200 sets against the published rules."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from twins import chexpert as twin
from twins.pictures import copy_of

from cogaze.evaluate.datasets.chexpert import read_chexpert
from cogaze.evaluate.datasets.chexpert_200 import read_chexpert_5x200, read_chexpert_8x200
from cogaze.evaluate.datasets.exclusive import EIGHT, FIVE
from cogaze.evaluate.records import UNKNOWN
from gazeprep.images import read_image

TRAINED = 9 * 6 + 10
LATERAL = 2


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    root = tmp_path_factory.mktemp("chexpert")
    twin.write_chexpert(root / "small")
    twin.write_convirt(root / "convirt")
    return root


@pytest.fixture
def own(releases, tmp_path):
    copy_of(releases, tmp_path / "own")
    return tmp_path / "own"


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


# --- its own parts


def test_parts_are_its_own(releases):
    found = read_chexpert(releases / "small")
    assert {part: len(images) for part, images in found.parts.items() if part in ("train", "validate", "test")} == {
        "train": TRAINED - LATERAL,
        "validate": 8,
        "test": 12,
    }
    assert (found.task, found.classes, found.origin) == ("multi-label", FIVE, "CheXpert's own train, valid and test")
    assert found.notes["lateral images, left out"] == LATERAL + 1 + 4
    assert {one.subject for one in found.parts["test"]} == {f"patient{64741 + number}" for number in range(8)}
    assert read_image(found.parts["train"][0].image).shape == (24, 32)


def test_lateral_images_are_an_option(releases):
    found = read_chexpert(releases / "small", frontal_only=False)
    assert [len(found.parts[part]) for part in ("train", "validate", "test")] == [TRAINED, 9, 16]
    assert {one.view for one in found.parts["train"]} == {"AP", "PA", "LATERAL"}


def test_header_cells_become_age_sex_and_view(releases):
    first, second, third = read_chexpert(releases / "small").parts["train"][:3]
    assert [(one.age_years, one.sex, one.view) for one in (first, second, third)] == [
        (0, "M", "AP"),
        (1, "F", "PA"),
        (2, "", "AP"),
    ]


@pytest.mark.parametrize("test_part", ["test", "valid"])
def test_both_spellings_of_the_release_in_front_are_cut(releases, own, test_part):
    for table in ("train.csv", "valid.csv"):
        path = own / "small" / table
        path.write_text(path.read_text().replace("CheXpert-v1.0-small/", "CheXpert-v1.0/"))
    one, other = (read_chexpert(root / "small", test_part=test_part) for root in (releases, own))
    assert one.fingerprints() == other.fingerprints()


BECOMES = {"ignore": (UNKNOWN, UNKNOWN), "zeros": (0, 0), "ones": (1, 1), "gloria": (1, 0)}


@pytest.mark.parametrize("rule", BECOMES)
def test_uncertain_labels_follow_the_named_rule(own, rule):
    """Of Edema and Consolidation: GLoRIA takes the one for present and the other for absent."""
    path = own / "small" / "train.csv"
    lines = path.read_text().splitlines()
    cells = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    cells |= {"Edema": "-1.0", "Consolidation": "-1.0"}
    path.write_text("\n".join([lines[0], ",".join(cells.values()), *lines[2:]]))
    found = read_chexpert(own / "small", uncertain=rule)
    labels = dict(zip(found.classes, found.parts["train"][0].labels, strict=True))
    assert (labels["Edema"], labels["Consolidation"]) == BECOMES[rule]
    assert labels["Atelectasis"] == 0
    assert found.notes[f"uncertain labels, by the rule {rule}"] == 2 + 4  # and those of the traps


def test_fourteen_labels_are_in_the_tables_order(releases):
    found = read_chexpert(releases / "small", labels="fourteen")
    assert found.classes == tuple(twin.FINDINGS)
    with pytest.raises(ValueError, match="defined for labels='five' only"):
        read_chexpert(releases / "small", labels="fourteen", uncertain="gloria")


def test_valid_as_test_validates_on_patients_of_train(releases):
    found = read_chexpert(releases / "small", test_part="valid", seed=1)
    assert len(found.parts["test"]) == 8
    assert len(found.parts["train"]) + len(found.parts.get("validate", ())) == TRAINED - LATERAL


def test_images_of_5x200_can_be_left_out_of_train(releases, tmp_path):
    drawn = read_chexpert_5x200(releases / "small", per_class=3, write=tmp_path)
    found = read_chexpert(releases / "small", tmp_path)
    assert {one.id for one in found.parts["train"]}.isdisjoint(one.id for one in drawn.parts["test"])
    assert found.notes["images of 5x200, left out of train"] == 15


def test_without_the_test_release_the_cure_is_told(own):
    (own / "small" / "groundtruth.csv").unlink()
    with pytest.raises(ValueError, match="give test_part='valid'"):
        read_chexpert(own / "small")
    assert len(read_chexpert(own / "small", test_part="valid").parts["test"]) == 8


SPOILT = {
    "an unknown value": ("train.csv", ",1.0", ",2.0", r"row 1, column 'No Finding' is '2.0', must be one of '1.0'"),
    "uncertain in valid": ("valid.csv", ",1.0", ",-1.0", r"row 1, column 'No Finding' is '-1.0'"),
    "a path of elsewhere": ("train.csv", "view1_frontal.jpg", "view1.jpg", "1 of 64 paths are not"),
    "a view": ("valid.csv", "Frontal,", "Oblique,", "column 'Frontal/Lateral' is 'Oblique'"),
    "no key": ("groundtruth.csv", "Study,", "Name,", "neither a column 'Study' nor 'Path'"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_table_is_refused(own, name):
    file, before, after, message = SPOILT[name]
    edit(own / "small" / file, before, after)
    with pytest.raises(ValueError, match=message) as error:
        read_chexpert(own / "small")
    assert "patient0" not in str(error.value)


def test_missing_pictures_are_refused_or_noted(own):
    (own / "small/train/patient00001/study1/view1_frontal.jpg").unlink()
    with pytest.raises(ValueError, match="1 of the 73 images that the table lists are not in the folder"):
        read_chexpert(own / "small")
    found = read_chexpert(own / "small", missing="note")
    assert len(found.parts["train"]) == TRAINED - LATERAL - 1


# --- 5x200


def filled(path):
    table = pd.read_csv(path)
    return table.assign(**table[twin.FINDINGS].fillna(0))


def drawn_by_mgca(path, per_class):
    """Draw from the table in the words of MGCA's preprocessing."""
    table = filled(path)
    table = table[table["Frontal/Lateral"] == "Frontal"]
    others = [one for one in twin.FINDINGS if one != "No Finding"]
    paths = []
    for one in FIVE:
        alone = table[(table[one] == 1) & (table[[name for name in others if name != one]] == 0).all(axis=1)]
        paths += alone.sample(n=per_class, random_state=0)["Path"].str.split("/", n=1).str[1].tolist()
    return paths


@pytest.mark.parametrize("per_class", [1, 4, 6])
def test_5x200_is_what_mgca_draws(releases, per_class):
    found = read_chexpert_5x200(releases / "small", per_class=per_class)
    images = found.parts["test"]
    assert [one.id for one in images] == drawn_by_mgca(releases / "small" / "train.csv", per_class)
    assert (found.task, found.classes) == ("multi-class", FIVE)
    np.testing.assert_array_equal([one.labels for one in images], np.repeat(np.eye(5), per_class, axis=0))
    assert found.notes["images with Edema alone"] == 6


def test_5x200_with_too_few_images_is_refused(releases):
    with pytest.raises(ValueError, match="only 6 images have Atelectasis alone, 200 are wanted"):
        read_chexpert_5x200(releases / "small")


def test_5x200_is_written_and_read_again(releases, tmp_path):
    one = read_chexpert_5x200(releases / "small", per_class=4, seed=3, write=tmp_path)
    other = read_chexpert_5x200(releases / "small", tmp_path)
    assert one.fingerprints() == other.fingerprints()
    assert one.fingerprints() != read_chexpert_5x200(releases / "small", per_class=4).fingerprints()
    assert other.origin == "the list given"


def test_5x200_reads_the_csv_of_others_with_what_they_let_in(releases, tmp_path):
    """MedCLIP takes uncertain for absent and keeps lateral images."""
    lines = (releases / "small" / "train.csv").read_text().splitlines()
    traps = lines[1 + 54 : 1 + 57]
    (tmp_path / "chexpert_5x200.csv").write_text("\n".join([lines[0], traps[0], traps[2]]))
    found = read_chexpert_5x200(releases / "small", tmp_path)
    assert [one.labels for one in found.parts["test"]] == [(0, 0, 0, 1, 0)] * 2
    assert found.notes["lateral images in the list"] == 1
    (tmp_path / "chexpert_5x200.csv").write_text("\n".join([lines[0], traps[1]]))
    with pytest.raises(ValueError, match="1 listed images have not exactly one of"):
        read_chexpert_5x200(releases / "small", tmp_path)


def test_5x200_gets_reports_of_chexpert_plus(releases, tmp_path):
    found = read_chexpert_5x200(releases / "small", per_class=1)
    first = found.parts["test"][0].id
    table = tmp_path / "df_chexpert_plus_240401.csv"
    table.write_text(f'path_to_image,section_findings,section_impression\n{first},"Clear\nlungs.",No edema.\n')
    with_reports = read_chexpert_5x200(releases / "small", per_class=1, plus=table)
    assert [one.report for one in with_reports.parts["test"]] == ["Clear lungs. No edema.", "", "", "", ""]
    assert with_reports.notes["images without a report in CheXpert Plus"] == 4


# --- 8x200


def test_8x200_is_read_from_convirts_lists(releases):
    found = read_chexpert_8x200(releases / "small", releases / "convirt")
    queries = read_chexpert_8x200(releases / "small", releases / "convirt", images="queries")
    for one, count in ((found, 4), (queries, 2)):
        np.testing.assert_array_equal(
            [image.labels for image in one.parts["test"]], np.repeat(np.eye(8), count, axis=0)
        )
    assert Counter(text.label for text in found.texts) == dict.fromkeys(range(8), 5)
    assert found.texts[5].text == "There is cardiomegaly, form 0."
    assert found.notes["candidates too many or too few, published are 1600"] == 1600 - 32


def test_8x200_is_built_by_its_rule(releases, tmp_path):
    found = read_chexpert_8x200(releases / "small", per_class=3, write=tmp_path)
    table = filled(releases / "small" / "train.csv").set_index("Path")
    table.index = table.index.str.split("/", n=1).str[1]
    for one in found.parts["test"]:
        values = table.loc[one.id, twin.FINDINGS]
        assert values[EIGHT[one.labels.index(1)]] == 1
        assert (values != 0).sum() == 1
    assert Counter(one.labels.index(1) for one in found.parts["test"]) == dict.fromkeys(range(8), 3)
    queries = read_chexpert_8x200(releases / "small", tmp_path, images="queries")
    assert Counter(one.labels.index(1) for one in queries.parts["test"]) == dict.fromkeys(range(8), 3)
    assert not {one.id for one in queries.parts["test"]} & {one.id for one in found.parts["test"]}
    assert found.fingerprints() == read_chexpert_8x200(releases / "small", tmp_path).fingerprints()


def test_8x200_without_sentences_says_so(own):
    (own / "convirt/text-retrieval/query.csv").unlink()
    found = read_chexpert_8x200(own / "small", own / "convirt")
    assert found.texts == ()
    assert found.notes["text-retrieval/query.csv is absent: sentences to retrieve with are missing"] == 40


def test_8x200_with_a_query_among_the_candidates_is_refused(own):
    query = own / "convirt/image-retrieval/query.csv"
    candidate = (own / "convirt/image-retrieval/candidate.csv").read_text().splitlines()[1].split(",")[0]
    query.write_text(query.read_text() + f"No Finding,{candidate}\n")
    with pytest.raises(ValueError, match="1 images are candidates and queries"):
        read_chexpert_8x200(own / "small", own / "convirt")


def test_8x200_lists_against_train_csv_are_refused(own):
    edit(own / "small" / "train.csv", ",1.0,", ",-1.0,")
    with pytest.raises(ValueError, match="1 listed images have not exactly one of"):
        read_chexpert_8x200(own / "small", own / "convirt", images="queries")
