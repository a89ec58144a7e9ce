import filecmp
import gzip
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from gazeprep.schema import CHEXPERT_LABELS, InputError
from gazeprep.synthetic import read_truth, write_corpus, write_mimic_eye
from gazeprep.synthetic.anatomy import Chest
from gazeprep.synthetic.cast import CAST, role_of
from gazeprep.synthetic.egd import OnScreen, pads_of
from gazeprep.synthetic.findings import DISEASES, Finding, finding_mask
from gazeprep.synthetic.model import Settings, generator, make_subject
from gazeprep.synthetic.phantom import draw
from gazeprep.synthetic.reflacx import _Recorder

POSITION_AND_DISPLAY = (
    "x_position,y_position,pupil_area_normalized,angular_resolution_x_pixels_per_degree,"
    "angular_resolution_y_pixels_per_degree,window_width,window_level,xmin_shown_from_image,ymin_shown_from_image,"
    "xmax_shown_from_image,ymax_shown_from_image,xmin_in_screen_coordinates,ymin_in_screen_coordinates,"
    "xmax_in_screen_coordinates,ymax_in_screen_coordinates"
)
REFLACX_FIXATIONS = f"timestamp_start_fixation,timestamp_end_fixation,{POSITION_AND_DISPLAY}"
METADATA = "id,split,eye_tracking_data_discarded,image,dicom_id,subject_id,image_size_x,image_size_y"
PHASE_1 = (
    "Airway wall thickening,Atelectasis,Consolidation,Emphysema,Enlarged cardiac silhouette,Fibrosis,Fracture,"
    "Groundglass opacity,Mass,Nodule,Other,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary edema,"
    "Quality issue,Support devices,Wide mediastinum"
)
PHASES_2_AND_3 = (
    "Abnormal mediastinal contour,Acute fracture,Atelectasis,Consolidation,Enlarged cardiac silhouette,"
    "Enlarged hilum,Groundglass opacity,Hiatal hernia,High lung volume / emphysema,Interstitial lung disease,"
    "Lung nodule or mass,Other,Pleural abnormality,Pneumothorax,Pulmonary edema,Support devices"
)
EGD_GAZE = (
    "SESSION_ID,MEDIA_ID,DICOM_ID,CNT,Time (in secs),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,BPOGX,"
    "BPOGY,BPOGV,LPCX,LPCY,LPD,LPS,LPV,RPCX,RPCY,RPD,RPS,RPV,BKID,BKDUR,BKPMIN,LPMM,LPMMV,RPMM,RPMMV,SACCADE_MAG,"
    "SACCADE_DIR,VID_FRAME,X_ORIGINAL,Y_ORIGINAL"
)
EGD_MASTER = (
    "dicom_id,path,study_id,patient_id,stay_id,gender,anchor_age,image_top_pad,image_bottom_pad,image_left_pad,"
    "image_right_pad,dx1,dx1_icd,dx2,dx2_icd,dx3,dx3_icd,dx4,dx4_icd,dx5,dx5_icd,dx6,dx6_icd,dx7,dx7_icd,dx8,dx8_icd,"
    "dx9,dx9_icd,normal_reports,Normal,CHF,pneumonia,consolidation,enlarged_cardiac_silhouette,"
    "linear__patchy_atelectasis,lobar__segmental_collapse,"
    "not_otherwise_specified_opacity___pleural__parenchymal_opacity__,pleural_effusion_or_thickening,"
    "pulmonary_edema__hazy_opacity,normal_anatomically,elevated_hemidiaphragm,hyperaeration,vascular_redistribution,"
    "atelectasis__chx,cardiomegaly__chx,consolidation__chx,edema__chx,enlarged_cardiomediastinum__chx,fracture__chx,"
    "lung_lesion__chx,lung_opacity__chx,no_finding__chx,pleural_effusion__chx,pleural_other__chx,pneumonia__chx,"
    "pneumothorax__chx,support_devices__chx,cxr_exam_indication"
)
LABELS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
HEADERS = {
    "reflacx/main_data/metadata_phase_1.csv": f"{METADATA},{PHASE_1}",
    "reflacx/main_data/metadata_phase_2.csv": f"{METADATA},{PHASES_2_AND_3}",
    "reflacx/main_data/metadata_phase_3.csv": f"{METADATA},{PHASES_2_AND_3}",
    "egd-cxr/master_sheet.csv": EGD_MASTER,
    "egd-cxr/fixations.csv": EGD_GAZE,
    "egd-cxr/bounding_boxes.csv": "dicom_id,bbox_name,x1,x2,y1,y2",
    "mimic-cxr/cxr-record-list.csv.gz": "subject_id,study_id,dicom_id,path",
    "mimic-cxr/cxr-study-list.csv.gz": "subject_id,study_id,path",
    "mimic-cxr/cxr-provider-list.csv.gz": "study_id,ordering_provider_id,attending_provider_id,resident_provider_id",
    "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz": (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
    ),
    "mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv.gz": "dicom_id,study_id,subject_id,split",
    "mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv.gz": f"subject_id,study_id,{LABELS}",
    "mimic-cxr-jpg/mimic-cxr-2.0.0-negbio.csv": f"subject_id,study_id,{LABELS}",
    "mimic-cxr-jpg/mimic-cxr-2.1.0-test-set-labeled.csv": (
        f"study_id,{LABELS.replace('Lung Opacity', 'Airspace Opacity')}"
    ),
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", 12)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("synthetic") / "raw", 4, raw_gaze=True, workers=2)


def content(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def table(path):
    return pd.read_csv(io.BytesIO(content(path)), dtype=str, keep_default_na=False)


def metadata(corpus, phase):
    return table(corpus.reflacx / f"main_data/metadata_phase_{phase}.csv")


def reading(corpus, index):
    """Folder of the first reading of a cast member, found by its trial or its place in phase 3."""
    role = role_of(0, index)
    subject = subject_ids(corpus)[index]
    rows = metadata(corpus, role.phase)
    return corpus.reflacx / "main_data" / rows[rows.subject_id == subject].id.iloc[0]


def subject_ids(corpus):
    return list(dict.fromkeys(table(corpus.mimic_cxr / "cxr-study-list.csv.gz").subject_id))


def studies(corpus, index):
    rows = table(corpus.mimic_cxr / "cxr-study-list.csv.gz")
    return rows[rows.subject_id == subject_ids(corpus)[index]]


def report(corpus, index):
    return (corpus.mimic_cxr / studies(corpus, index).path.iloc[0]).read_text()


def dicoms(corpus, index):
    rows = table(corpus.mimic_cxr / "cxr-record-list.csv.gz")
    rows = rows[rows.study_id == studies(corpus, index).study_id.iloc[0]]
    return [pydicom.dcmread(corpus.mimic_cxr / path) for path in rows.path]


def egd_row(corpus, index):
    rows = table(corpus.egd / "master_sheet.csv")
    return rows[rows.patient_id == subject_ids(corpus)[index]].iloc[0]


def transcript(corpus, index):
    folder = corpus.egd / "audio_segmentation_transcripts" / egd_row(corpus, index).dicom_id
    return json.loads((folder / "transcript.json").read_text())


def fixations(folder):
    return pd.read_csv(folder / "fixations.csv")


@pytest.mark.parametrize("name", HEADERS)
def test_tables_have_the_released_columns(corpus, name):
    assert content(corpus.out / name).split(b"\n")[0].rstrip(b"\r").decode() == HEADERS[name]


def test_readings_have_the_released_files_and_columns(corpus):
    folder = reading(corpus, 2)
    headers = {path.name: path.read_bytes().split(b"\r\n")[0].decode() for path in folder.iterdir()}
    text = headers.pop("transcription.txt")
    assert "\n" not in text
    assert headers == {
        "fixations.csv": REFLACX_FIXATIONS,
        "timestamps_transcription.csv": "word,timestamp_start_word,timestamp_end_word",
        "anomaly_location_ellipses.csv": f"xmin,ymin,xmax,ymax,certainty,{PHASES_2_AND_3}",
        "chest_bounding_box.csv": "xmin,ymin,xmax,ymax",
    }
    assert len(table(folder / "chest_bounding_box.csv")) == 1


def test_raw_gaze_is_written_on_request(raw, corpus):
    assert not list(corpus.out.rglob("gaze.csv"))
    assert not (corpus.egd / "eye_gaze.csv").exists()
    path = raw.reflacx / "gaze_data" / reading(raw, 2).name / "gaze.csv"
    assert path.read_bytes().split(b"\r\n")[0].decode() == f"timestamp_sample,{POSITION_AND_DISPLAY}"
    samples = table(path)
    steps = np.diff(samples.timestamp_sample.astype(float))
    np.testing.assert_allclose(steps, 0.001, atol=1e-9)
    shut = samples[samples.x_position == ""]
    assert len(shut) >= 100
    assert (shut.pupil_area_normalized == "").all()
    assert (shut.window_width != "").all()
    gaze = table(raw.egd / "eye_gaze.csv")
    assert ",".join(gaze.columns) == EGD_GAZE
    assert len(gaze) > 5 * len(table(raw.egd / "fixations.csv"))


def test_files_lie_where_mimic_has_them(corpus):
    for path in table(corpus.mimic_cxr / "cxr-record-list.csv.gz").path:
        assert re.fullmatch(r"files/(p1\d)/\1\d{6}/s5\d{7}/([0-9a-f]{8}-){4}[0-9a-f]{8}\.dcm", path)
        assert (corpus.mimic_cxr / path).exists()
        assert (corpus.mimic_cxr_jpg / path).with_suffix(".jpg").exists()
    for path in table(corpus.mimic_cxr / "cxr-study-list.csv.gz").path:
        assert (corpus.mimic_cxr / path).exists()
    names = (corpus.mimic_cxr_jpg / "IMAGE_FILENAMES").read_text().split()
    assert sorted(names) == sorted(
        str(p.relative_to(corpus.mimic_cxr_jpg)) for p in corpus.mimic_cxr_jpg.rglob("*.jpg")
    )


def test_everything_is_labelled_synthetic(corpus):
    for folder in (corpus.out, corpus.reflacx, corpus.egd, corpus.mimic_cxr, corpus.mimic_cxr_jpg):
        assert json.loads((folder / "SYNTHETIC.json").read_text())["synthetic"] is True
    assert "Synthetic" in dicoms(corpus, 0)[0].ImageComments


def test_reflacx_tables_end_lines_with_crlf_and_the_others_with_lf(corpus):
    for path in corpus.reflacx.rglob("*.csv"):
        assert b"\n" not in path.read_bytes().replace(b"\r\n", b""), path
    for path in [*corpus.egd.glob("*.csv"), *corpus.mimic_cxr.glob("*.csv*"), *corpus.mimic_cxr_jpg.glob("*.csv*")]:
        assert b"\r" not in content(path), path


def test_counts_are_of_what_was_written(corpus):
    rows = pd.concat([metadata(corpus, phase) for phase in (1, 2, 3)])
    assert (corpus.subjects, corpus.studies) == (12, len(list(corpus.mimic_cxr.rglob("s5*.txt"))))
    assert corpus.images == len(list(corpus.mimic_cxr.rglob("*.dcm")))
    assert corpus.reflacx_readings == len(rows)
    assert corpus.reflacx_discarded == (rows.eye_tracking_data_discarded == "True").sum()
    assert corpus.egd_readings == len(table(corpus.egd / "master_sheet.csv"))


# every special case of the formats, by name


@pytest.mark.parametrize(("phase", "index", "ids"), [(1, 0, "P102R"), (2, 1, "P201R")])
def test_case_five_readings_of_one_image_one_discarded(corpus, phase, index, ids):
    rows = metadata(corpus, phase)
    rows = rows[rows.subject_id == subject_ids(corpus)[index]]
    assert len(rows) == 5
    assert rows.dicom_id.nunique() == 1
    assert rows.id.str.fullmatch(rf"{ids}\d{{6}}").all()
    gone = rows[rows.eye_tracking_data_discarded == "True"].id
    assert len(gone) == 1
    folder = corpus.reflacx / "main_data" / gone.iloc[0]
    assert {path.name for path in folder.iterdir()} == {"anomaly_location_ellipses.csv", "chest_bounding_box.csv"}
    gaze = corpus.reflacx / "gaze_data" / gone.iloc[0]
    assert gaze.exists() == (index == 0)  # one with the empty gaze folder, one without


def test_case_tokens_of_a_transcript(corpus):
    folder = reading(corpus, 2)
    raw = (folder / "timestamps_transcription.csv").read_bytes()
    assert b'\r\n",",' in raw
    words = table(folder / "timestamps_transcription.csv")
    start, end = words.timestamp_start_word.astype(float), words.timestamp_end_word.astype(float)
    assert {"1", ".5", "/", ",", "."} <= set(words.word)
    assert (start == end).any(), "no word without length"
    assert (end - start).max() > 2, "no word over a long gap"
    assert (end >= start).all()
    assert (start.to_numpy()[1:] >= end.to_numpy()[:-1] - 0.011).all()
    assert " / " in (folder / "transcription.txt").read_text()


def test_case_words_joined_are_the_text(corpus):
    for path in corpus.reflacx.rglob("transcription.txt"):
        words = table(path.parent / "timestamps_transcription.csv").word
        text = path.read_text()
        assert text == text.lower()
        assert " ".join(words) == text.replace(".", " .").replace(",", " ,")


def test_case_gaze_before_and_after_speech_and_off_the_image(corpus):
    folder = reading(corpus, 2)
    rows, words = fixations(folder), table(folder / "timestamps_transcription.csv")
    size = metadata(corpus, 3).set_index("id").loc[folder.name]
    assert rows.timestamp_end_fixation.iloc[0] < float(words.timestamp_start_word.iloc[0])
    assert rows.timestamp_start_fixation.iloc[-1] > float(words.timestamp_end_word.iloc[-1])
    assert (rows.x_position < 0).any()
    assert (rows.y_position < 0).any()
    assert (rows.x_position > int(size.image_size_x)).any()
    assert (rows.x_position.iloc[-3:] < 0).all(), "does not end at the buttons"


def test_case_zoomed_panned_and_near_the_edge_of_what_is_shown():
    near = 0
    for seed in range(3):  # by chance in one reading, so over several
        rows = _zooming_reading(seed)
        width = rows.xmax_shown_from_image - rows.xmin_shown_from_image
        zoomed = rows[width < width.max() - 1]
        assert len(zoomed)
        assert (zoomed.angular_resolution_x_pixels_per_degree < rows.angular_resolution_x_pixels_per_degree.max()).all()
        assert (zoomed.xmin_shown_from_image > 0).any()
        inside = zoomed.x_position - zoomed.xmin_shown_from_image
        near += ((inside >= 0) & (inside < 0.5 * zoomed.angular_resolution_x_pixels_per_degree)).sum()
    assert near


def _zooming_reading(seed):
    subject = make_subject(Settings(seed), role_of(seed, 2))
    return _Recorder(generator(seed, 2, 200), subject, subject.readings[0]).fixations()


def test_case_header_only_ellipses(corpus):
    path = reading(corpus, 4) / "anomaly_location_ellipses.csv"
    assert path.read_bytes().count(b"\r\n") == 1


def test_case_certainty_with_and_without_decimals_and_other_text(corpus):
    rows = pd.concat([metadata(corpus, phase) for phase in (1, 2, 3)])
    assert {"0", "0.0"} <= set(rows.Consolidation)
    assert set(rows["Support devices"]) <= {"True", "False"}
    assert rows.Other.str.contains(r"\|").any()
    assert rows.Other.str.contains(",").any()
    assert b'"surgical clips, left axilla|scoliosis"' in content(corpus.reflacx / "main_data/metadata_phase_3.csv")
    assert set(metadata(corpus, 1)["Quality issue"]) <= {"True", "False"}


def test_case_metadata_is_sorted_as_released(corpus):
    assert metadata(corpus, 1).id.is_monotonic_increasing
    assert metadata(corpus, 2).id.is_monotonic_increasing
    assert metadata(corpus, 3).image.is_monotonic_increasing


def test_case_image_in_reflacx_and_egd(corpus):
    both = set(metadata(corpus, 3).dicom_id) & set(table(corpus.egd / "master_sheet.csv").dicom_id)
    assert egd_row(corpus, 3).dicom_id in both


def test_case_egd_ids_cut_and_overlong(corpus):
    ids = set(table(corpus.egd / "fixations.csv").DICOM_ID) - set(table(corpus.egd / "master_sheet.csv").dicom_id)
    assert {len(i) for i in ids} == {39, 49}
    rows = table(corpus.egd / "fixations.csv")
    calibration = rows[rows.DICOM_ID.str.len() == 39].astype({"X_ORIGINAL": int, "Y_ORIGINAL": int})
    assert (calibration.X_ORIGINAL - 960).abs().max() < 100
    assert (calibration.Y_ORIGINAL - 540).abs().max() < 60


def test_case_egd_flags_and_off_image_rows(corpus):
    rows = table(corpus.egd / "fixations.csv").astype({"FPOGX": float, "X_ORIGINAL": int, "Y_ORIGINAL": int})
    assert (rows.FPOGV == "0").any()
    assert (rows.FPOGX < 0).any()
    off = rows[rows.X_ORIGINAL < 0]
    assert len(off)
    assert ((off.X_ORIGINAL == -2) & (off.Y_ORIGINAL == -2)).any()
    assert rows.FPOGS.str.len().max() > 12, "no float noise"
    assert rows.groupby("DICOM_ID", sort=False).FPOGID.first().astype(int).min() == 2


def test_case_egd_multi_line_indication_and_odd_width(corpus):
    assert "\n" in egd_row(corpus, 5).cxr_exam_indication
    assert b'"___ year old' in content(corpus.egd / "master_sheet.csv")
    assert dicoms(corpus, 5)[0].Columns % 2 == 1


def test_case_egd_transcripts(corpus):
    assert transcript(corpus, 5) == {"full_text": "", "time_stamped_text": []}
    phrases = [phrase["phrase"] for phrase in transcript(corpus, 6)["time_stamped_text"]]
    assert any(phrase.count(".") == 2 for phrase in phrases), "no phrase with two stops"
    assert any(" " in phrase and "." not in phrase for phrase in phrases), "no phrase of several words"
    for index in (6, 11):
        assert not transcript(corpus, index)["time_stamped_text"][-1]["phrase"].endswith(".")
    words = transcript(corpus, 3)
    assert " ".join(phrase["phrase"] for phrase in words["time_stamped_text"]) == words["full_text"]


def test_case_egd_boxes(corpus):
    boxes = pd.read_csv(corpus.egd / "bounding_boxes.csv")
    assert (boxes.groupby("dicom_id").bbox_name.nunique() == 17).all()
    assert ((boxes.x2 > boxes.x1) & (boxes.y2 > boxes.y1)).all()
    lungs = [boxes[boxes.bbox_name == f"{side} lung"].x2.to_numpy() for side in ("right", "left")]
    assert (lungs[0] < lungs[1]).all()  # the patient's right is left in the image
    mask = cv2.imread(str(next(corpus.egd.rglob("mediastanum.png"))), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}


def test_case_reports(corpus):
    for path in corpus.mimic_cxr.rglob("s5*.txt"):
        lines = path.read_text().split("\n")
        assert "FINAL REPORT" in lines[0]
        assert all(line.startswith(" ") and len(line) <= 79 for line in lines[:-1]), path
    sectioned = re.compile(r"\n ([A-Z ()/,-]+):\s")
    last = sectioned.findall(report(corpus, 7))
    assert "FINDINGS" not in last
    assert "IMPRESSION" not in last
    assert len(report(corpus, 7).split("\n \n")[-1]) > 40, "no last paragraph"
    assert re.search(r"\n FINDINGS: \n \n \n? ?IMPRESSION:", report(corpus, 8).replace("\n \n \n", "\n \n "))
    assert sectioned.findall(report(corpus, 9)) == []
    assert sectioned.findall(report(corpus, 10))[0] == "ADDENDUM"
    assert "\n " + "_" * 78 in report(corpus, 10)
    assert "HISTORY" in sectioned.findall(report(corpus, 3))
    assert {"INDICATION", "CLINICAL HISTORY"} <= set(sectioned.findall(report(corpus, 11)))


def test_case_label_rows(corpus):
    rows = table(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-chexpert.csv.gz").set_index("study_id")
    assert studies(corpus, 8).study_id.iloc[0] not in rows.index
    blank = rows.loc[studies(corpus, 9).study_id.iloc[0]]
    assert (blank[list(CHEXPERT_LABELS)] == "").all()
    assert {"1.0", "0.0", "-1.0", ""} >= set(rows[list(CHEXPERT_LABELS)].to_numpy().ravel())
    assert (rows.drop(columns="subject_id") != "").to_numpy().sum() > 20


def test_case_images_of_a_study(corpus):
    rows = table(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-metadata.csv.gz")
    views = {i: rows[rows.study_id == studies(corpus, i).study_id.iloc[0]].ViewPosition.tolist() for i in range(12)}
    assert views[0][0] == "PA"
    assert views[0][1] in ("LATERAL", "LL")
    assert views[3][1] == ""
    assert len(views[10]) == 3
    assert len(studies(corpus, 10)) == 2


def test_case_pixels(corpus):
    assert dicoms(corpus, 1)[0].PhotometricInterpretation == "MONOCHROME1"
    assert {int(d.BitsStored) for i in range(12) for d in dicoms(corpus, i)} == {12, 14}
    assert len(dicoms(corpus, 6)[0].WindowCenter) == 2
    lut = dicoms(corpus, 11)[0]
    assert "VOILUTSequence" in lut
    assert "WindowCenter" not in lut
    assert "WindowCenter" not in dicoms(corpus, 9)[0]
    assert dicoms(corpus, 9)[0].pixel_array.shape == (dicoms(corpus, 9)[0].Rows, dicoms(corpus, 9)[0].Columns)


@pytest.mark.parametrize("index", [0, 1])
def test_jpeg_is_the_dicom_stretched_inverted_and_equalised(corpus, index):
    dicom = dicoms(corpus, index)[0]
    pixels = dicom.pixel_array.astype(float)
    gray = ((pixels - pixels.min()) / np.ptp(pixels) * 255).astype(np.uint8)
    if dicom.PhotometricInterpretation == "MONOCHROME1":
        gray = 255 - gray
    path = next(corpus.mimic_cxr_jpg.rglob(f"{Path(dicom.filename).stem}.jpg"))
    jpeg = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert jpeg.shape == pixels.shape
    assert np.abs(jpeg.astype(int) - cv2.equalizeHist(gray)).mean() < 4
    assert jpeg[:30, :30].mean() < jpeg.mean()  # air is dark


def test_splits_are_by_subject_and_the_same_everywhere(corpus):
    rows = table(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-split.csv.gz")
    assert (rows.groupby("subject_id").split.nunique() == 1).all()
    split = rows.set_index("dicom_id").split
    for phase in (1, 2, 3):
        read = metadata(corpus, phase)
        assert (split.loc[read.dicom_id].to_numpy() == read.split.to_numpy()).all()
    assert set(split) == {"train", "validate", "test"}
    many = [role_of(0, index).split for index in range(400)]
    assert (many.count("validate"), many.count("test")) == (40, 40)


# one corpus is one function of its seed


def trees_differ(a, b):
    names = {str(p.relative_to(a)) for p in a.rglob("*") if p.is_file()}
    assert names == {str(p.relative_to(b)) for p in b.rglob("*") if p.is_file()}
    return filecmp.cmpfiles(a, b, sorted(names), shallow=False)[1]


def test_workers_change_no_byte(raw, tmp_path):
    again = write_corpus(tmp_path / "again", 4, raw_gaze=True)
    assert trees_differ(raw.out, again.out) == []


def test_more_subjects_change_no_earlier_file(raw, corpus):
    for path in [*raw.mimic_cxr.rglob("*.dcm"), *raw.mimic_cxr.rglob("*.txt"), *raw.reflacx.rglob("fixations.csv")]:
        assert path.read_bytes() == (corpus.out / path.relative_to(raw.out)).read_bytes()
    shorter = content(raw.egd / "fixations.csv")
    assert content(corpus.egd / "fixations.csv").startswith(shorter)


def test_another_seed_is_another_corpus(raw, tmp_path):
    other = write_corpus(tmp_path / "other", 1, seed=1)
    assert not {p.name for p in other.out.rglob("*.dcm")} & {p.name for p in raw.out.rglob("*.dcm")}


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="not empty"):
        write_corpus(tmp_path, 1)
    with pytest.raises(InputError, match="at least 1"):
        write_corpus(tmp_path / "new", 0)


def test_one_subject_is_a_corpus_with_empty_tables(tmp_path):
    one = write_corpus(tmp_path / "one", 1)
    assert content(one.egd / "fixations.csv").decode() == EGD_GAZE + "\n"
    assert len(read_truth(one.out).alignment) > 15


# the display and the tracker follow their formulas


def test_reflacx_display_follows_the_formulas(corpus):
    folder = reading(corpus, 2)
    rows = fixations(folder)
    size = metadata(corpus, 3).set_index("id").loc[folder.name]
    width, height = int(size.image_size_x), int(size.image_size_y)
    scale = min(2160 / height, 2520 / width)
    shown = rows[[f"{e}_shown_from_image" for e in ("xmin", "ymin", "xmax", "ymax")]].to_numpy(float)
    screen = rows[[f"{e}_in_screen_coordinates" for e in ("xmin", "ymin", "xmax", "ymax")]].to_numpy(float)
    first = np.array(
        [1920 - scale * width / 2, 1080 - scale * height / 2, 1920 + scale * width / 2, 1080 + scale * height / 2]
    )
    np.testing.assert_allclose(screen[0], first, atol=0.51)
    np.testing.assert_array_equal(shown[0], [0, 0, width, height])
    magnification = (screen[:, 2] - screen[:, 0]) / (shown[:, 2] - shown[:, 0])
    steps = 4 * np.log2(magnification / scale)
    np.testing.assert_allclose(steps, np.round(steps), atol=0.1)
    per_degree = rows.angular_resolution_x_pixels_per_degree.to_numpy() * magnification
    assert ((per_degree > 85) & (per_degree < 103)).all()


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 10])
def test_reflacx_window_at_the_start_is_that_of_the_dicom(corpus, index):
    dicom, first = dicoms(corpus, index)[0], fixations(reading(corpus, index)).iloc[0]
    top = 2**dicom.BitsStored - 1
    width, level = 1.0, 0.5
    if "WindowWidth" in dicom:
        width, level = (np.atleast_1d(dicom[name].value)[0] / top for name in ("WindowWidth", "WindowCenter"))
    inverted = dicom.PhotometricInterpretation == "MONOCHROME1"
    assert first.window_width == pytest.approx(width, abs=1e-5)
    assert first.window_level == pytest.approx(1 - level if inverted else level, abs=1e-5)


@pytest.mark.parametrize("index", [3, 5, 6, 11])
def test_egd_original_points_follow_the_official_rule(corpus, index):
    sheet = egd_row(corpus, index)
    rows = pd.read_csv(corpus.egd / "fixations.csv")
    rows = rows[sheet.dicom_id == rows.DICOM_ID]
    dicom = dicoms(corpus, index)[0]
    left, right, top, bottom = (int(sheet[f"image_{side}_pad"]) for side in ("left", "right", "top", "bottom"))
    assert (left + right, top + bottom) == ((896, 172) if dicom.Columns > dicom.Rows else (left + right, 0))
    ex, ey = rows.FPOGX * 1920, rows.FPOGY * 1080
    inside = ex.gt(left) & ex.lt(1920 - right) & ey.gt(top) & ey.lt(1080 - bottom)
    width, height = dicom.Columns + dicom.Columns % 2, dicom.Rows + dicom.Rows % 2
    x = np.trunc(width / (1920 - left - right) * (ex - left))
    y = np.trunc(height / (1080 - top - bottom) * (ey - top))
    np.testing.assert_array_equal(rows.X_ORIGINAL[inside], x[inside])
    np.testing.assert_array_equal(rows.Y_ORIGINAL[inside], y[inside])
    assert (rows[~inside][["X_ORIGINAL", "Y_ORIGINAL"]] < 0).all(axis=None)
    np.testing.assert_allclose(rows["Time (in secs)"], rows.FPOGS + rows.FPOGD, atol=1e-5)


def test_egd_pads_and_flag_of_a_full_size_image():
    pads = pads_of((2544, 3056))
    assert (pads.left, pads.right, pads.top, pads.bottom) == (534, 534, 0, 0)
    landscape = pads_of((3056, 2544))
    assert (landscape.left, landscape.right, landscape.top, landscape.bottom) == (448, 448, 86, 86)
    assert OnScreen((2544, 3056), pads).to_original(0.01, 0.5) == (-2, -2)


# the known answer


def share_inside(mask, step, rows, weight):
    column = np.floor((rows.x_px + 0.5) / step).astype(int)
    row = np.floor((rows.y_px + 0.5) / step).astype(int)
    on = (column >= 0) & (row >= 0) & (column < mask.shape[1]) & (row < mask.shape[0])
    inside = np.zeros(len(rows), bool)
    inside[on] = mask[row[on], column[on]]
    return (weight * inside).sum() / weight.sum()


def test_gaze_falls_on_what_is_said_a_second_and_a_half_later(corpus):
    truth = read_truth(corpus.out)
    on_target, elsewhere = [], []
    for reading_id, said in truth.alignment.groupby("reading_id"):
        rows = truth.fixations[truth.fixations.reading_id == reading_id]
        masks = truth.masks(said.dicom_id.iloc[0])
        for sentence in said.itertuples():
            mask = np.any([masks[target] for target in sentence.targets.split()], axis=0)
            mask = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0  # half a degree
            begin, end = sentence.start_s - 1.5, sentence.end_s - 1.5
            within = np.clip(np.minimum(rows.end_s, end) - np.maximum(rows.start_s, begin), 0, None)
            on_target.append(share_inside(mask, truth.step_px, rows, within))
            elsewhere.append(share_inside(mask, truth.step_px, rows, rows.end_s - rows.start_s - within))
    assert np.mean(on_target) > 0.8
    assert np.mean(elsewhere) < 0.3
    assert np.mean(np.array(on_target) > np.array(elsewhere)) > 0.95


def test_truth_is_of_the_written_fixations(corpus):
    truth = read_truth(corpus.out)
    folder = reading(corpus, 2)
    rows = truth.fixations.query("reading_id == @folder.name")
    written = fixations(folder)
    np.testing.assert_allclose(rows.x_px, written.x_position, atol=0.51)
    np.testing.assert_allclose(rows.start_s, written.timestamp_start_fixation, atol=1e-9)
    said = truth.alignment.query("reading_id == @folder.name")
    assert " ".join(said.text) == (folder / "transcription.txt").read_text()
    assert not truth.alignment[~truth.alignment.recorded].empty


def test_report_and_dictation_name_side_and_zone_of_each_finding(corpus):
    truth = read_truth(corpus.out)
    named = truth.alignment[truth.alignment.finding != ""]
    assert len(named) > 15
    for row in named.itertuples():
        assert all(word in row.text for word in row.finding.split("_")[1:]), row.text
    full = truth.findings[truth.findings.study_id.astype(str) == studies(corpus, 3).study_id.iloc[0]]
    for row in full.itertuples():
        assert row.side in report(corpus, 3)


def test_findings_change_the_image_where_their_mask_is():
    chest = Chest((318, 382), 130.0, (159.0, 198.0), 0.01, 0.4, 0.78, female=False)
    healthy = draw(chest, (), np.random.default_rng(0))
    for kind, disease in DISEASES.items():
        if kind == "cardiomegaly":  # it changes the chest itself
            continue
        finding = Finding(kind, "left" if disease.sided else "", disease.zones[0] if disease.zones else "", 1)
        change = np.abs(draw(chest, (finding,), np.random.default_rng(0)) - healthy)
        mask = finding_mask(finding, chest) > 127
        assert change[mask].mean() > 5 * change[~mask].mean(), kind


def test_labels_follow_the_findings(corpus):
    truth = read_truth(corpus.out)
    rows = table(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-chexpert.csv.gz").set_index("study_id")
    for row in truth.findings.itertuples():
        if str(row.study_id) in rows.index and rows.loc[str(row.study_id)][list(CHEXPERT_LABELS)].any():
            for label in DISEASES[row.kind].chexpert:
                assert rows.loc[str(row.study_id), label] in ("1.0", "-1.0")
                assert (rows.loc[str(row.study_id), label] == "1.0") or not row.certain


def test_cast_is_complete_with_twelve():
    assert [role.index for role in CAST] == list(range(12))
    gaze = [role_of(5, index) for index in range(1000)]
    assert 0.4 < np.mean([role.phase > 0 for role in gaze]) < 0.55
    assert 0.2 < np.mean([role.egd for role in gaze]) < 0.3
    trials = [(role.phase, role.trial) for role in gaze if role.phase in (1, 2)]
    assert len(trials) == len(set(trials))


def test_mimic_eye_rearranges_the_same_recordings(raw, tmp_path):
    root = tmp_path / "mimic-eye"
    write_mimic_eye(raw, root)
    sheets = root / "spreadsheets"
    joined = sheets / "REFLACX" / "metadata.csv"
    assert joined.read_text().split("\n")[0] == (
        f",{METADATA},{PHASE_1},Abnormal mediastinal contour,Acute fracture,Enlarged hilum,Hiatal hernia,"
        "High lung volume / emphysema,Interstitial lung disease,Lung nodule or mass,Pleural abnormality"
    )
    rows = table(joined)
    assert {"", "0.0"} <= set(rows["Pleural effusion"])
    assert (sheets / "EyeGaze/eye_gaze.csv").read_bytes() == (sheets / "EyeGaze/fixations.csv").read_bytes()
    folder = root / f"patient_{subject_ids(raw)[3]}"
    assert len(table(folder / "EyeGaze/eye_gaze.csv")) > len(table(folder / "EyeGaze/fixations.csv")) > 20
    assert table(folder / "CXR-JPG/cxr_meta.csv").columns[-4:].tolist() == [
        "in_eye_gaze",
        "in_reflacx",
        "StudyDateTime",
        "stay_id",
    ]
    name = table(folder / "REFLACX/metadata.csv").id.iloc[0]
    copied = (folder / "REFLACX/main_data" / name / "fixations.csv").read_bytes()
    assert copied == (raw.reflacx / "main_data" / name / "fixations.csv").read_bytes()
    images = [path.stem for path in root.glob("patient_*/CXR-JPG/s*/*.jpg")]
    assert sorted(images) == sorted(table(sheets / "cxr_meta.csv").dicom_id)
