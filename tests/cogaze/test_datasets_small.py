"""The readers of Shenzhen, COVIDx CXR-4 and Open-i on twins of their releases."""

import shutil

import pytest
from twins import covidx, openi, shenzhen

from cogaze.evaluate.datasets.covidx import read_covidx
from cogaze.evaluate.datasets.openi import read_openi
from cogaze.evaluate.datasets.shenzhen import read_shenzhen
from cogaze.evaluate.records import UNKNOWN
from gazeprep.images import read_image


def ids(found):
    return {part: [one.id for one in images] for part, images in found.parts.items()}


def by_id(found):
    return {one.id: one for part in ("train", "validate", "test") for one in found.parts.get(part, ())}


# --- Shenzhen


@pytest.fixture
def china(tmp_path):
    shenzhen.write_shenzhen(tmp_path / "release", tmp_path / "lists")
    return tmp_path


def test_shenzhen_reads_every_form_of_text(china):
    found = read_shenzhen(china / "release", china / "lists")
    for name, image in by_id(found).items():
        text, sex, age = shenzhen.TEXTS[name]
        assert (image.labels, image.sex, image.age_years) == ((int(name[-1]),), sex, age), text
    assert by_id(found)["CHNCXR_0328_1"].report == "bilateral STB left pleuritis"
    assert found.notes["texts without an age"] == 1


def test_shenzhen_takes_the_label_of_the_name_and_notes_texts_against_it(china):
    found = read_shenzhen(china / "release", china / "lists")
    assert found.notes["texts against the label of the name, which counts"] == 1
    assert by_id(found)["CHNCXR_0330_1"].labels == (1,)


def test_shenzhen_parts_are_those_of_the_lists_from_either_folder(china):
    wanted = {"validate" if part == "val" else part: names for part, names in shenzhen.LISTS.items()}
    for folder in ("release", "release/ChinaSet_AllFiles"):
        assert ids(read_shenzhen(china / folder, china / "lists")) == wanted
    hashed = read_shenzhen(china / "release")
    assert set(by_id(hashed)) == set(shenzhen.TEXTS)
    assert hashed.origin == "a hash of the image, seed 0: 10% validate, 20% test, the rest train"


def test_shenzhen_reads_colour_and_any_size(china):
    images = by_id(read_shenzhen(china / "release"))
    assert read_image(images["CHNCXR_0001_0"].image).shape == (24, 36)
    assert read_image(images["CHNCXR_0002_0"].image).shape == (40, 32)


def test_shenzhen_refuses_a_list_of_other_labels(china):
    (china / "lists" / "test.txt").write_text("CHNCXR_0005_0.png,1\n")
    with pytest.raises(ValueError, match="label '1' to an image whose name says '0'"):
        read_shenzhen(china / "release", china / "lists")


def test_shenzhen_refuses_names_without_a_label(china):
    pictures = china / "release/ChinaSet_AllFiles/CXR_png"
    (pictures / "CHNCXR_0001_0.png").rename(pictures / "MCUCXR_0001.png")
    with pytest.raises(ValueError, match="1 of 10 pictures in CXR_png are not called"):
        read_shenzhen(china / "release")


def test_shenzhen_without_a_listed_picture_is_refused_or_noted(china):
    (china / "release/ChinaSet_AllFiles/CXR_png/CHNCXR_0005_0.png").unlink()
    with pytest.raises(ValueError, match="1 of 3 ids in the list of test"):
        read_shenzhen(china / "release", china / "lists")
    found = read_shenzhen(china / "release", china / "lists", missing="note")
    assert found.notes["listed in test, but not in the folder"] == 1


def test_shenzhen_without_texts_says_so(china):
    shutil.rmtree(china / "release/ChinaSet_AllFiles/ClinicalReadings")
    assert (
        read_shenzhen(china / "release").notes[
            "images without a text in ClinicalReadings, or one that cannot be opened"
        ]
        == 10
    )


# --- COVIDx


@pytest.fixture
def covid(tmp_path):
    covidx.write_covidx(tmp_path / "release", tmp_path / "lists")
    return tmp_path


def test_covidx_reads_lists_without_a_header_and_names_with_spaces(covid):
    found = read_covidx(covid / "release")
    assert [len(found.parts[part]) for part in ("train", "validate", "test")] == [5, 2, 2]
    image = by_id(found)["train/a name with spaces.png"]
    assert (image.labels, image.subject) == ((1,), "rnsa 12")
    assert read_image(image.image).shape == (24, 32)


def test_covidx_numbers_of_two_sources_are_two_patients(covid):
    found = read_covidx(covid / "release")
    assert by_id(found)["train/another.png"].subject == "cohen 12"
    assert by_id(found)["test/twelve.png"].subject == "sirm 12"


def test_covidx_with_a_patient_in_two_parts_is_refused_or_left_out(covid):
    path = covid / "release" / "train.txt"
    path.write_text(path.read_text().replace("13 thirteen", "12 thirteen"))
    with pytest.raises(ValueError, match="1 subjects are in train and in test"):
        read_covidx(covid / "release")
    found = read_covidx(covid / "release", shared_patients="leave_out")
    assert len(found.parts["train"]) == 4
    assert found.notes["images of train whose patient is in a part to judge on, left out"] == 1


def test_covidx_reads_benchx_lists(covid):
    found = read_covidx(covid / "release", covid / "lists")
    assert [len(found.parts[part]) for part in ("train", "train_10", "validate", "test")] == [4, 1, 1, 1]
    assert found.notes["images in no list"] == 3


def test_covidx_of_three_classes_is_refused(covid):
    path = covid / "release" / "test.txt"
    path.write_text(path.read_text().replace("positive", "COVID-19"))
    with pytest.raises(ValueError, match="row 1, column 'class' is 'COVID-19', must be one of 'positive', 'negative'"):
        read_covidx(covid / "release")


def test_covidx_refuses_lines_that_are_too_short(covid):
    path = covid / "release" / "test.txt"
    path.write_text(path.read_text() + "twelve.png positive\n")
    with pytest.raises(ValueError, match="1 of 3 lines have fewer than 4 fields"):
        read_covidx(covid / "release")


# --- Open-i


@pytest.fixture
def indiana(tmp_path):
    openi.write_openi(tmp_path)
    return tmp_path


def test_openi_pairs_images_with_their_report(indiana):
    found = read_openi(indiana)
    reports = {one.id: (one.subject, one.report, one.labels) for one in found.parts["test"]}
    assert reports["CXR1_1_IM-0001-3001"] == (
        "CXR1",
        "The heart is normal & lungs are clear. Normal chest.",
        (0,),
    )
    assert reports["CXR2_IM-0652-1001"] == ("CXR2", "Cardiomegaly, XXXX edema.", (1,))
    assert sum(one.startswith("CXR4_") for one in reports) == 5
    assert found.origin == "all images are test"
    assert read_image(found.parts["test"][0].image).shape == (24, 32)


def test_openi_counts_what_it_leaves_out(indiana):
    notes = read_openi(indiana).notes
    assert notes["reports without images"] == 1
    assert notes["images whose report has no such text, left out"] == 2
    assert notes["reports without a major MeSH term, whose label is unknown"] == 1
    assert read_openi(indiana, text="findings").notes["images whose report has no such text, left out"] == 3


def test_openi_of_impressions_has_no_findings(indiana):
    found = read_openi(indiana, text="impression")
    assert {one.report for one in found.parts["test"]} == {"Normal chest.", "Cardiomegaly, XXXX edema."}


def test_openi_frontal_images_come_from_the_table_of_projections(indiana):
    with pytest.raises(ValueError, match=r"frontal_only needs indiana_projections\.csv"):
        read_openi(indiana, frontal_only=True)
    openi.write_projections(indiana)
    found = read_openi(indiana, frontal_only=True)
    assert found.notes["images that are not frontal, left out"] == 2
    assert not {one.id for one in found.parts["test"]} & openi.LATERAL
    assert {one.view for one in read_openi(indiana).parts["test"]} == {"", "LATERAL"}


def test_openi_is_split_by_report(indiana):
    found = read_openi(indiana, split="hash", seed=2)
    assert sum(len(found.parts.get(part, ())) for part in ("train", "validate", "test")) == 8
    assert found.origin.startswith("a hash of the report")
    (indiana / "lists").mkdir()
    (indiana / "lists/test.txt").write_text("CXR4\nCXR1\n")
    listed = read_openi(indiana, indiana / "lists")
    assert [one.subject for one in listed.parts["test"]] == ["CXR4"] * 5 + ["CXR1"] * 2
    (indiana / "lists/test.txt").write_text("4\n")
    with pytest.raises(ValueError, match="1 listed reports are not in ecgen-radiology"):
        read_openi(indiana, indiana / "lists")


def test_openi_label_is_unknown_without_a_major_term(indiana):
    path = indiana / "ecgen-radiology/2.xml"
    text = path.read_text()
    path.write_text(text[: text.index("<major>")] + text[text.index("<automatic>") :])
    assert by_id(read_openi(indiana))["CXR2_IM-0652-1001"].labels == (UNKNOWN,)


def test_openi_refuses_damaged_reports_without_quoting_them(indiana):
    path = indiana / "ecgen-radiology/2.xml"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="an XML file is damaged") as error:
        read_openi(indiana)
    assert "Cardiomegaly" not in str(error.value)


def test_openi_refuses_entities_that_unfold_to_gigabytes(indiana):
    levels = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE eCitation [<!ENTITY a0 "ten letters">{levels}]><eCitation>&a11;</eCitation>'
    (indiana / "ecgen-radiology/2.xml").write_text(bomb)
    with pytest.raises(ValueError, match="an XML file is damaged"):
        read_openi(indiana)


def test_openi_refuses_an_image_of_two_reports(indiana):
    path = indiana / "ecgen-radiology/2.xml"
    path.write_text(path.read_text().replace("CXR2_IM-0652-1001", "CXR4_IM-2050-1001"))
    with pytest.raises(ValueError, match="1 images stand in two reports"):
        read_openi(indiana)
