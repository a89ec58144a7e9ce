"""MIMIC-Eye against the originals it was made of: the same cases, and its own quirks written out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recorded import sources_of

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources, collect
from gazeprep.schema import InputError
from gazeprep.shards import ShardFolder
from gazeprep.sources.mimic_eye import open_mimic_eye
from gazeprep.synthetic import Corpus, write_mimic_eye

PORTRAIT = "5e1f2a3b-44556677-8899aabb-ccddeeff-00112233"
ELSEWHERE = {"source", "image_source", "image_path", "report_path"}  # provenance: where the same things lie


@pytest.fixture(scope="module")
def root(corpus, tmp_path_factory):
    """The corpus as MIMIC-Eye has it. Read only."""
    folder = tmp_path_factory.mktemp("eye") / "mimic-eye"
    write_mimic_eye(corpus, folder)
    return folder


@pytest.fixture
def one(root, tmp_path):
    """A MIMIC-Eye folder of the corpus's first patient with EGD-CXR, which a test may change."""
    patient = next(root.glob("patient_*/EyeGaze")).parent
    return Path(shutil.copytree(patient, tmp_path / "mimic-eye" / patient.name)).parent


def without_places(record):
    provenance = json.loads(record["provenance"])
    return {**record, "provenance": {name: fact for name, fact in provenance.items() if name not in ELSEWHERE}}


def assert_same_gaze(key, eye, originals):
    """The same bytes, but for EGD-CXR's times, which lose their last digit where pandas writes them again."""
    if not key.startswith("egd-cxr"):
        assert [eye.member(key, role) == originals.member(key, role) for role in ("gaze", "maps")] == [True, True]
        return
    ours, theirs = eye.sample(key), originals.sample(key)
    assert np.allclose(ours.maps, theirs.maps, rtol=0, atol=1e-7)
    assert ours.gaze.keys() == theirs.gaze.keys()
    for name, column in ours.gaze.items():
        if name in ("start_s", "end_s"):
            assert np.allclose(column, theirs.gaze[name], rtol=1e-15, atol=1e-15)
        else:
            assert np.array_equal(column, theirs.gaze[name]), name


def test_the_same_samples_as_from_the_originals(
    corpus: Corpus, root: Path, config_of: Callable[..., BuildConfig], tmp_path: Path, inline: None
):
    taken = {"prefer": "jpg", "views": ("AP", "PA")}  # what MIMIC-Eye holds
    build(config_of(tmp_path / "originals", sources_of(corpus, **taken)))
    build(config_of(tmp_path / "eye", Sources(mimic_eye=root)))
    originals, eye = ShardFolder(tmp_path / "originals"), ShardFolder(tmp_path / "eye")
    read = {path.name.removeprefix("patient_") for path in root.glob("patient_*")}
    wanted = originals.index[originals.index["subject"].isin(read)]
    assert sorted(eye.keys()) == sorted(wanted["key"])
    assert set(eye.index["dataset"]) == {"reflacx", "egd-cxr", "mimic-cxr"}
    for key in eye.index["key"]:
        assert eye.member(key, "image") == originals.member(key, "image")
        assert without_places(eye.sample(key).record) == without_places(originals.sample(key).record)
        assert_same_gaze(key, eye, originals)


def test_the_same_readings_are_rejected(corpus, root):
    eye, originals = (collect(sources).rejected for sources in (Sources(mimic_eye=root), sources_of(corpus)))
    assert {(one.key, one.reason) for one in eye} == {(one.key, one.reason) for one in originals}


def test_provenance_names_both_releases(root):
    sources = {reading.source for reading in open_mimic_eye(root).readings}
    assert sources == {"REFLACX 1.0.0 in MIMIC-Eye 1.0.0", "EGD-CXR 1.0.0 in MIMIC-Eye 1.0.0"}


def test_labels_of_another_phase_and_the_index_are_no_labels(root):
    readings = [one for one in open_mimic_eye(root).readings if one.dataset == "reflacx"]
    by_phase = {one.phase: set(one.labels) - {"Other"} for one in readings}
    assert (len(by_phase[1]), len(by_phase[3])) == (17, 15)
    assert {type(one.labels["Atelectasis"]) for one in readings} == {int}


def test_spreadsheets_are_not_needed(one):
    assert [path.name for path in one.iterdir() if path.name == "spreadsheets"] == []
    found = open_mimic_eye(one)
    (reading,) = (reading for reading in found.readings if reading.dataset == "egd-cxr")
    assert found.mimic.by_dicom[reading.dicom_id].image is not None
    assert found.mimic.report_ref(reading.study_id, reading.subject_id) is not None
    assert [path.exists() for path in reading.files()] == [True, True, True]


def write_fixations(patient, *rows):
    """Rows of (index, DICOM_ID, FPOGX, FPOGY, X_ORIGINAL, Y_ORIGINAL)."""
    lines = [",DICOM_ID,FPOGX,FPOGY,FPOGS,FPOGD,FPOGV,X_ORIGINAL,Y_ORIGINAL"]
    lines += [f"{i},{dicom},{fx},{fy},0.1,0.25,1,{x},{y}" for i, dicom, fx, fy, x, y in rows]
    (patient / "EyeGaze" / "fixations.csv").write_text("\n".join(lines) + "\n")


def test_calibration_rows_under_a_completed_id_are_left_out_and_counted(one):
    (patient,) = one.glob("patient_*")
    dicom = egd_reading(one).dicom_id
    # The dot in the middle of the screen, in screen px, and a point of a portrait 2544 px wide: (960 - 534) * 2.986.
    write_fixations(patient, (0, dicom, 0.50042, 0.49838, 960, 538), (1, dicom, 0.5, 0.5, 1272, 1527))
    assert egd_reading(one).fixations.x_px.tolist() == [1272]
    assert open_mimic_eye(one).dropped_rows == {"calibration_rows": 1, "unknown_id_rows": 0}
    write_fixations(patient, (0, dicom, 0.50042, 0.49838, 960, 538))
    assert egd_reading(one).reject == "no_fixations"


def egd_reading(root):
    (reading,) = (reading for reading in open_mimic_eye(root).readings if reading.dataset == "egd-cxr")
    return reading


def test_rows_under_a_longer_id_stand_in_the_spreadsheet_alone(one):
    (patient,) = one.glob("patient_*")
    dicom = egd_reading(one).dicom_id
    write_fixations(patient, (0, dicom, 0.5, 0.5, 1272, 1527), (1, f"{dicom}-copy", 0.5, 0.5, 1280, 1527))
    (one / "spreadsheets" / "EyeGaze").mkdir(parents=True)
    shutil.copy(patient / "EyeGaze" / "fixations.csv", one / "spreadsheets" / "EyeGaze")
    write_fixations(patient, (0, dicom, 0.5, 0.5, 1272, 1527))
    assert egd_reading(one).fixations.x_px.tolist() == [1272, 1280]


def test_rows_of_ids_that_no_sheet_has_are_counted(one):
    (patient,) = one.glob("patient_*")
    write_fixations(patient, (0, PORTRAIT, 0.5, 0.5, 1272, 1527), (1, PORTRAIT[:39], 0.5, 0.5, 1272, 1527))
    assert open_mimic_eye(one).dropped_rows == {"calibration_rows": 1, "unknown_id_rows": 1}


def test_a_patient_without_gaze_tables_has_images_alone(one):
    (patient,) = one.glob("patient_*")
    for name in ("REFLACX", "EyeGaze"):
        shutil.rmtree(patient / name, ignore_errors=True)
    found = open_mimic_eye(one)
    assert found.readings == ()
    assert [image.view_position in ("AP", "PA") for image in found.mimic.images] == [True]


def test_without_image_tables_the_files_list_the_images(one):
    wanted = [(image.dicom_id, image.image) for image in open_mimic_eye(one).mimic.images]
    for path in one.glob("patient_*/CXR-JPG/*.csv"):
        path.unlink()
    mimic = open_mimic_eye(one).mimic
    assert [(image.dicom_id, image.image) for image in mimic.images] == wanted
    assert len(mimic.absent_tables) == 3


def test_a_bad_cell_names_table_row_and_column_but_no_patient(one):
    (path,) = one.glob("patient_*/EyeGaze/fixations.csv")
    write_fixations(path.parents[1], (0, egd_reading(one).dicom_id, 0.5, 0.5, "lungs", 5))
    with pytest.raises(InputError) as caught:
        open_mimic_eye(one)
    assert "EGD-CXR fixations.csv, row 1, column 'X_ORIGINAL' is 5 characters of text" in str(caught.value)
    assert path.parents[1].name.removeprefix("patient_") not in str(caught.value)


def test_wrong_folders(root, tmp_path):
    for folder, cure in ((root.parent, "its subfolder mimic-eye"), (tmp_path, "give the folder mimic-eye")):
        with pytest.raises(InputError, match=cure) as caught:
            open_mimic_eye(folder)
        assert caught.value.reason == "wrong_folder"


def test_it_stands_in_place_of_the_originals(corpus, root):
    with pytest.raises(ValueError, match="mimic_eye holds what reflacx, mimic_jpg would give a second time"):
        Sources(mimic_eye=root, reflacx=corpus.reflacx, mimic_jpg=corpus.mimic_cxr_jpg)


def test_label_tables(root):
    studies = [image.study_id for image in open_mimic_eye(root).mimic.images]
    chexpert, negbio = (open_mimic_eye(root, labels=kind).mimic for kind in ("chexpert", "negbio"))
    assert [chexpert.labels(study) for study in studies] == [negbio.labels(study) for study in studies]
    with pytest.raises(InputError, match="choose one of chexpert, negbio"):
        open_mimic_eye(root, labels="test_set")
