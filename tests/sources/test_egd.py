"""EGD-CXR as released: every quirk of its files, written out literally with invented values."""

import json
import pickle

import numpy as np
import pytest

from gazeprep.schema import CHEXPERT_LABELS, Annotation, InputError, Word
from gazeprep.sources import egd, load_fixations
from gazeprep.transcripts import sentences_of

PORTRAIT = "0a1b2c3d-11112222-33334444-55556666-77778888"
LANDSCAPE = "9f8e7d6c-aaaabbbb-ccccdddd-eeeeffff-00001111"
SUBJECT, STUDY = "19999871", "59999472"

CHX = (
    "atelectasis__chx,cardiomegaly__chx,consolidation__chx,edema__chx,enlarged_cardiomediastinum__chx,fracture__chx,"
    "lung_lesion__chx,lung_opacity__chx,no_finding__chx,pleural_effusion__chx,pleural_other__chx,pneumonia__chx,"
    "pneumothorax__chx,support_devices__chx"
)
MASTER_HEADER = (
    "dicom_id,path,study_id,patient_id,stay_id,gender,anchor_age,image_top_pad,image_bottom_pad,image_left_pad,"
    f"image_right_pad,dx1,dx1_icd,Normal,CHF,pneumonia,{CHX},cxr_exam_indication"
)
NO_CHX = ",".join([""] * 14)
FIXATION_HEADER = (
    "SESSION_ID,MEDIA_ID,DICOM_ID,CNT,Time (in secs),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,"
    "BPOGX,BPOGY,BPOGV,LPCX,LPCY,LPD,LPS,LPV,RPCX,RPCY,RPD,RPS,RPV,BKID,BKDUR,BKPMIN,LPMM,LPMMV,RPMM,RPMMV,"
    "SACCADE_MAG,SACCADE_DIR,VID_FRAME,X_ORIGINAL,Y_ORIGINAL"
)


def master_row(dicom_id, *, pads="0,0,534,534", classes="0,1,0", chx=NO_CHX, indication="chest pain", **ids):
    subject, study = ids.get("patient_id", SUBJECT), ids.get("study_id", STUDY)
    path = ids.get("path", f"files/p19/p{SUBJECT}/s{STUDY}/{dicom_id}.dcm")
    cells = f"{dicom_id},{path},{study},{subject},300,F,50 - 60,{pads},CHEST PAIN,R079,{classes},{chx}"
    return f'{cells},"{indication}"'


def fixation_row(dicom_id, x=1272, y=1528, *, fpog="0.5,0.5", start=1.5, duration=0.25, valid=1):
    before = f"3,7,{dicom_id},120,{start + duration},123456789,{fpog},{start},{duration},9,{valid}"
    samples = "0.5,0.5,1,0.4,0.4,18,1,1,0.6,0.4,18,1,1,0,0,20,3.5,1,3.5,1,40,12,0"
    return f"{before},{samples},{x},{y}"


def write(path, header, *rows):
    path.write_text("".join(f"{line}\n" for line in (header, *rows)))


def write_master(root, *rows):
    write(root / "master_sheet.csv", MASTER_HEADER, *(rows or (master_row(PORTRAIT),)))


def write_fixations(root, *rows):
    write(root / "fixations.csv", FIXATION_HEADER, *(rows or (fixation_row(PORTRAIT),)))


def write_transcript(root, content, dicom_id=PORTRAIT):
    folder = root / "audio_segmentation_transcripts" / dicom_id
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, indent=2, sort_keys=True)
    (folder / "transcript.json").write_text(text)


def phrases(*spoken):
    return [{"phrase": text, "begin_time": start, "end_time": end} for text, start, end in spoken]


@pytest.fixture
def one(tmp_path):
    """A folder with one portrait image, one fixation, two spoken words."""
    write_master(tmp_path)
    write_fixations(tmp_path)
    spoken = phrases(("lungs", 1.0, 1.5), ("clear.", 1.5, 2.0))
    write_transcript(tmp_path, {"full_text": "lungs clear.", "time_stamped_text": spoken})
    return tmp_path


def the_reading(root):
    (reading,) = egd.readings(root)
    return reading


def words_after(root, *spoken, full_text=""):
    write_transcript(root, {"full_text": full_text, "time_stamped_text": phrases(*spoken)})
    return the_reading(root).load().words


def assert_refused(action, reason, *parts, root):
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert caught.value.reason == reason
    assert all(part in message for part in parts), message
    secrets = (PORTRAIT, PORTRAIT[:8], LANDSCAPE[:8], SUBJECT, STUDY, "chest pain", "lungs", str(root))
    assert not [secret for secret in secrets if secret in message]


def official_original(fpog, pads, size):
    """The released script's rule: pads of the 1920 x 1024 canvas on a 1920 x 1080 screen, sizes made even."""
    top, bottom, left, right = pads
    x_screen, y_screen = fpog[0] * 1920, fpog[1] * 1080
    inside = left < x_screen < 1920 - right and top < y_screen < 1080 - bottom
    x, y = (x_screen - left, y_screen - top) if inside else (-1, -1)
    width, height = (side + side % 2 for side in size)
    return int(width / (1920 - left - right) * x), int(height / (1080 - top - bottom) * y)


def test_master_row(one):
    reading = the_reading(one)
    assert (reading.dataset, reading.source) == ("egd-cxr", "EGD-CXR 1.0.0")
    assert (reading.reading_id, reading.dicom_id) == (PORTRAIT, PORTRAIT)
    assert (reading.study_id, reading.subject_id) == (STUDY, SUBJECT)
    assert (reading.split, reading.image_size, reading.reject) == ("", None, "")
    assert reading.diagnoses == ("CHF",)


@pytest.mark.parametrize(
    ("study_id", "patient_id"), [(f"s{STUDY}", f"p{SUBJECT}"), (f"{STUDY}.0", f"{SUBJECT}.0"), ("", "")]
)
def test_ids_with_letters_with_decimals_or_from_the_path(one, study_id, patient_id):
    write_master(one, master_row(PORTRAIT, study_id=study_id, patient_id=patient_id))
    reading = the_reading(one)
    assert (reading.study_id, reading.subject_id) == (STUDY, SUBJECT)


def test_start_is_fpogs_and_not_time(one):
    write_fixations(one, fixation_row(PORTRAIT, start=2.0, duration=0.25))
    fixations = the_reading(one).load().fixations
    assert (fixations.start_s[0], fixations.end_s[0]) == (2.0, 2.25)


def test_published_sigma_and_no_px_per_degree(one):
    recording = the_reading(one).load()
    assert recording.sigma_px == 150.0
    assert recording.fixations.px_per_deg_x is None
    assert recording.fixations.shown is None


@pytest.mark.parametrize(
    ("fpog", "pads", "size", "expected"),
    [
        # Portrait 2544 x 3056: drawn 852 wide on the canvas, and taken to fill all 1080 rows of the screen.
        ((0.5, 0.5), (0, 0, 534, 534), (2544, 3056), (1272, 1528)),
        # Landscape 3056 x 2544: 852 of 1024 rows, so 86 above and below, against a 1080-row screen.
        ((0.5, 0.5), (86, 86, 448, 448), (3056, 2544), (1528, 1272)),
        ((0.3, 0.9), (86, 86, 448, 448), (3056, 2544), (382, 2482)),
        ((0.31, 0.25), (0, 0, 534, 534), (2543, 3056), (182, 764)),  # odd width
        ((0.5, 0.95), (86, 86, 448, 448), (3056, 2544), (-2, -2)),  # below the image, though x is on it
        ((0.1, 0.5), (0, 0, 534, 534), (2544, 3056), (-2, -2)),  # left of it, though y is on it
        ((-0.02, 0.5), (0, 0, 534, 534), (2544, 3056), (-2, -2)),  # FPOGX < 0
    ],
)
def test_official_rule_gives_the_positions_that_are_read(tmp_path, fpog, pads, size, expected):
    assert official_original(fpog, pads, size) == expected
    write_master(tmp_path, master_row(PORTRAIT, pads=",".join(map(str, pads))))
    write_fixations(tmp_path, fixation_row(PORTRAIT, *expected, fpog=f"{fpog[0]},{fpog[1]}"))
    reading = the_reading(tmp_path)
    on_image = min(expected) >= 0
    assert list(zip(reading.fixations.x_px, reading.fixations.y_px, strict=True)) == [expected] * on_image
    assert reading.rows["off_image_rows"] == 1 - on_image


@pytest.mark.parametrize("flag", [(-1, -1), (-2, -2), (-4, -2), (-1, 5), (5, -1)])
def test_negative_coordinates_are_a_flag(one, flag):
    write_fixations(one, fixation_row(PORTRAIT), fixation_row(PORTRAIT, *flag))
    recording = the_reading(one).load()
    assert len(recording.fixations) == 1
    assert recording.notes["off_image_rows"] == 1


def test_zero_is_a_position(one):
    write_fixations(one, fixation_row(PORTRAIT, 0, 0))
    assert len(the_reading(one).fixations) == 1


def test_invalid_fixations_are_left_out_and_counted_once(one):
    rows = [fixation_row(PORTRAIT), fixation_row(PORTRAIT, valid=0), fixation_row(PORTRAIT, -2, -2, valid=0)]
    write_fixations(one, *rows)
    notes = the_reading(one).load().notes
    assert (notes["rows"], notes["off_image_rows"], notes["invalid_rows"]) == (3, 1, 1)


def test_calibration_rows_belong_to_no_image(one):
    write_fixations(one, fixation_row(PORTRAIT), fixation_row(PORTRAIT[:39], 960, 540))
    assert the_reading(one).fixations.x_px.tolist() == [1272]
    assert egd.dropped_rows(one) == {"calibration_rows": 1, "unknown_id_rows": 0}


def test_cells_of_calibration_rows_are_not_checked(one):
    write_fixations(one, fixation_row(PORTRAIT[:39], "", ""), fixation_row(PORTRAIT))
    assert len(the_reading(one).fixations) == 1


def test_too_long_id_is_cut(one):
    rows = [fixation_row(PORTRAIT), fixation_row(f"{PORTRAIT}_02", 100, 200), fixation_row(f"{LANDSCAPE}_02")]
    write_fixations(one, *rows)
    assert the_reading(one).fixations.x_px.tolist() == [1272, 100]
    assert egd.dropped_rows(one) == {"calibration_rows": 0, "unknown_id_rows": 1}


def test_rows_of_images_outside_the_master_sheet_are_counted(one):
    write_fixations(one, fixation_row(LANDSCAPE), fixation_row(PORTRAIT), fixation_row(""))
    assert len(the_reading(one).fixations) == 1
    assert egd.dropped_rows(one) == {"calibration_rows": 0, "unknown_id_rows": 2}


def test_rows_of_two_images_in_any_order(tmp_path):
    write_master(tmp_path, master_row(PORTRAIT), master_row(LANDSCAPE))
    order = [(LANDSCAPE, 1), (PORTRAIT, 2), (LANDSCAPE, 3)]
    write_fixations(tmp_path, *(fixation_row(dicom_id, x, x) for dicom_id, x in order))
    portrait, landscape = egd.readings(tmp_path)
    assert portrait.fixations.x_px.tolist() == [2]
    assert landscape.fixations.x_px.tolist() == [1, 3]


@pytest.mark.parametrize("rows", [(), (fixation_row(PORTRAIT, -2, -2),)])
def test_image_without_a_fixation_is_rejected(tmp_path, rows):
    write_master(tmp_path)
    write_fixations(tmp_path, *rows, fixation_row(LANDSCAPE))
    assert the_reading(tmp_path).reject == "no_fixations"


def test_multi_line_indication(one):
    write_master(one, master_row(PORTRAIT, indication="chest pain\n\nrule out, ___ \n"), master_row(LANDSCAPE))
    first, second = egd.readings(one)
    assert first.context.indication == "chest pain rule out, ___"
    assert second.dicom_id == LANDSCAPE


def test_context_holds_no_person(one):
    context = the_reading(one).context
    assert vars(context)["indication"] == "chest pain"
    assert "".join(vars(context).values()) == "chest pain"
    assert not {"F", "50 - 60"} & set(map(str, the_reading(one).load().notes.values()))


def test_no_indication_is_no_context(one):
    write_master(one, master_row(PORTRAIT, indication=""))
    assert the_reading(one).context is None


def test_chexpert_labels(one):
    write_master(one, master_row(PORTRAIT, chx="1.0,0.0,-1.0,1,0,-1,,,,,,,,1"))
    labels = the_reading(one).chexpert
    assert set(labels) == set(CHEXPERT_LABELS)
    assert [labels[name] for name in ("Atelectasis", "Cardiomegaly", "Consolidation")] == [1, 0, -1]
    assert [labels[name] for name in ("Edema", "Enlarged Cardiomediastinum", "Fracture")] == [1, 0, -1]
    assert (labels["No Finding"], labels["Support Devices"]) == (-2, 1)


def test_boxes_are_written_x1_x2_y1_y2(one):
    rows = [f"{PORTRAIT},cardiac silhouette,100.5,300.0,200.0,400.25", f"{LANDSCAPE},trachea,1,2,3,4"]
    write(one / "bounding_boxes.csv", "dicom_id,bbox_name,x1,x2,y1,y2", *rows)
    expected = Annotation("box", (100.5, 200.0, 300.0, 400.25), ("cardiac silhouette",))
    assert the_reading(one).load().annotations == (expected,)


def test_words_carry_their_full_stop(one):
    recording = the_reading(one).load()
    assert recording.words == (Word("lungs", 1.0, 1.5), Word("clear.", 1.5, 2.0))
    assert (recording.full_stop, recording.transcript) == ("suffix", "lungs clear.")
    assert [sentence.text for sentence in sentences_of(recording.words, full_stop="suffix")] == ["lungs clear."]


def test_phrase_with_two_full_stops_is_split_and_shares_its_time(one):
    words = words_after(one, ("aaaa.bbbb.", 1.0, 2.0), ("cc", 2.0, 3.0))
    assert words == (Word("aaaa.", 1.0, 1.5), Word("bbbb.", 1.5, 2.0), Word("cc", 2.0, 3.0))
    assert len(sentences_of(words, full_stop="suffix")) == 3


def test_phrase_of_several_words_stays_one(one):
    assert words_after(one, ("no acute process.", 1.0, 2.0)) == (Word("no acute process.", 1.0, 2.0),)


def test_last_phrase_without_full_stop_forms_a_sentence(one):
    words = words_after(one, ("clear.", 1.0, 2.0), ("heart", 2.0, 3.0))
    assert [sentence.text for sentence in sentences_of(words, full_stop="suffix")] == ["clear.", "heart"]


@pytest.mark.parametrize("text", ["null", "nan", "n/a", "1", "1.5"])
def test_phrase_stays_text(one, text):
    assert words_after(one, (text, 1, 2)) == (Word(text, 1.0, 2.0),)


def test_empty_transcript(one):
    write_transcript(one, {"full_text": "", "time_stamped_text": []})
    recording = the_reading(one).load()
    assert (recording.words, recording.transcript) == ((), "")
    assert "words_missing" not in recording.notes


def test_empty_full_text_keeps_the_words(one):
    assert len(words_after(one, ("clear.", 1.0, 2.0), full_text="")) == 1


def test_missing_transcript_is_noted(one):
    (one / "audio_segmentation_transcripts" / PORTRAIT / "transcript.json").unlink()
    recording = the_reading(one).load()
    assert recording.notes["words_missing"]
    assert len(recording.fixations) == 1


def test_files_of_a_mirror_are_ignored(one):
    folder = one / "audio_segmentation_transcripts"
    for name in (one / "index.html", one / "eye_gaze.csv", folder / "index.html", folder / PORTRAIT / "audio.wav"):
        name.write_text("<html></html>")
    assert the_reading(one).load().words


def test_nameless_index_column_of_mimic_eye(one):
    write(one / "fixations.csv", f",{FIXATION_HEADER}", f"0,{fixation_row(PORTRAIT)}")
    assert the_reading(one).fixations.x_px.tolist() == [1272]


def test_synthetic_folder_is_marked(one):
    assert not the_reading(one).synthetic
    (one / "SYNTHETIC.json").write_text("{}")
    assert the_reading(one).synthetic


def test_reading_is_small_and_crosses_processes(one):
    write_fixations(one, *(fixation_row(PORTRAIT, x, x) for x in range(50)), *[fixation_row(LANDSCAPE)] * 2000)
    reading = the_reading(one)
    packed = pickle.dumps(reading)
    assert len(packed) < 8000
    assert np.array_equal(pickle.loads(packed).load().fixations.x_px, np.arange(50))


def test_files_name_what_a_change_would_touch(one):
    names = {path.name for path in the_reading(one).files()}
    assert names == {"transcript.json", "fixations.csv", "bounding_boxes.csv"}


def test_load_fixations_of_one_image(one):
    write_fixations(one, fixation_row(LANDSCAPE, 5, 6), fixation_row(PORTRAIT), fixation_row(LANDSCAPE, -2, -2))
    fixations = load_fixations(one / "fixations.csv", "egd", dicom_id=LANDSCAPE)
    assert (fixations.x_px.tolist(), fixations.y_px.tolist()) == ([5], [6])


def test_load_fixations_of_an_absent_image(one):
    path = one / "fixations.csv"
    assert_refused(lambda: egd.read_fixations(path, dicom_id=LANDSCAPE), "unknown_id", "44 characters", root=one)


def test_wrong_folder(tmp_path):
    assert_refused(lambda: egd.readings(tmp_path), "wrong_folder", "master_sheet.csv", root=tmp_path)


def test_missing_fixations(tmp_path):
    write_master(tmp_path)
    assert_refused(lambda: egd.readings(tmp_path), "file_missing", "fixations.csv is missing", root=tmp_path)


def test_duplicate_image(one):
    write_master(one, master_row(PORTRAIT), master_row(PORTRAIT))
    assert_refused(lambda: egd.readings(one), "duplicate_id", "repeats 1", root=one)


def test_missing_column(one):
    write(one / "fixations.csv", FIXATION_HEADER.replace("FPOGS", "START"), fixation_row(PORTRAIT))
    assert_refused(lambda: egd.readings(one), "wrong_columns", "no column 'FPOGS'", root=one)


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        (fixation_row(PORTRAIT, "lungs", 5), "'X_ORIGINAL' is 5 characters of text", "bad_number"),
        (fixation_row(PORTRAIT, 5, "nan"), "'Y_ORIGINAL' is 'nan'", "bad_number"),
        (fixation_row(PORTRAIT, 5, ""), "'Y_ORIGINAL' is empty", "bad_number"),
        (fixation_row(PORTRAIT, duration=-0.5), "'FPOGD' is a negative duration", "bad_cell"),
    ],
)
def test_bad_fixation_cell_is_placed_in_the_whole_file(one, row, column, reason):
    write_fixations(one, fixation_row(PORTRAIT[:39]), fixation_row(PORTRAIT), row)
    assert_refused(lambda: egd.readings(one), reason, "fixations.csv, row 3, column", column, root=one)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (master_row(LANDSCAPE, chx=f"2{NO_CHX}"), "'atelectasis__chx'"),
        (master_row(LANDSCAPE, study_id="lungs"), "'study_id'"),
        (master_row(LANDSCAPE, patient_id="", path="x.dcm"), "'patient_id'"),
        (master_row("../../lungs"), "'dicom_id'"),
        (master_row(""), "'dicom_id'"),
    ],
)
def test_bad_master_cell_is_placed(one, row, column):
    write_master(one, master_row(PORTRAIT), row)
    assert_refused(lambda: egd.readings(one), "bad_cell", "master_sheet.csv, row 2, column", column, root=one)


@pytest.mark.parametrize(
    "content",
    [
        "{lungs",
        "[]",
        {"full_text": "lungs"},
        {"full_text": "lungs", "time_stamped_text": "lungs"},
        {"full_text": 5, "time_stamped_text": []},
        {"full_text": "", "time_stamped_text": ["lungs"]},
        {"full_text": "", "time_stamped_text": [{"phrase": "lungs", "begin_time": 1}]},
        {"full_text": "", "time_stamped_text": phrases(("lungs", 2.0, 1.0))},
        {"full_text": "", "time_stamped_text": phrases(("lungs", "1", 2))},
        {"full_text": "", "time_stamped_text": phrases(("lungs", 1.0, float("nan")))},
    ],
)
def test_malformed_transcript_is_refused_without_its_text(one, content):
    write_transcript(one, content)
    reading = the_reading(one)
    assert_refused(reading.load, "bad_transcript", "transcript.json", root=one)


def test_transcript_in_another_encoding_is_refused(one):
    path = one / "audio_segmentation_transcripts" / PORTRAIT / "transcript.json"
    path.write_bytes(b'{"full_text": "\xff"}')
    assert_refused(the_reading(one).load, "bad_transcript", "UnicodeDecodeError", root=one)
