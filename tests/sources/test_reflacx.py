"""REFLACX as released: every quirk of its files, written out literally with invented values."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from gazeprep.schema import Annotation, InputError, Word
from gazeprep.sources import load_fixations, reflacx
from gazeprep.transcripts import sentences_of

PHASE_1_LABELS = (
    "Airway wall thickening,Atelectasis,Consolidation,Emphysema,Enlarged cardiac silhouette,Fibrosis,Fracture,"
    "Groundglass opacity,Mass,Nodule,Other,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary edema,"
    "Quality issue,Support devices,Wide mediastinum"
)
PHASE_3_LABELS = (
    "Abnormal mediastinal contour,Acute fracture,Atelectasis,Consolidation,Enlarged cardiac silhouette,"
    "Enlarged hilum,Groundglass opacity,Hiatal hernia,High lung volume / emphysema,Interstitial lung disease,"
    "Lung nodule or mass,Other,Pleural abnormality,Pneumothorax,Pulmonary edema,Support devices"
)
PHASE_1_CELLS = "0,3,0,0,5.0,0,0,0,0,0,,0,0,0,0,False,True,0"
PHASE_3_CELLS = "0,0,5,0,0,0,0,0,0,0,0,,0,0,0,False"
META_HEADER = "id,split,eye_tracking_data_discarded,image,dicom_id,subject_id,image_size_x,image_size_y"
DICOM = "0a1b2c3d-11112222-33334444-55556666-77778888"
SUBJECT, STUDY = "19999871", "59999472"
IMAGE = f"physionet.org/files/mimic-cxr/2.0.0/files/p19/p{SUBJECT}/s{STUDY}/{DICOM}.dcm"

FIXATION_HEADER = (
    "timestamp_start_fixation,timestamp_end_fixation,x_position,y_position,pupil_area_normalized,"
    "angular_resolution_x_pixels_per_degree,angular_resolution_y_pixels_per_degree,window_width,window_level,"
    "xmin_shown_from_image,ymin_shown_from_image,xmax_shown_from_image,ymax_shown_from_image,"
    "xmin_in_screen_coordinates,ymin_in_screen_coordinates,xmax_in_screen_coordinates,ymax_in_screen_coordinates"
)
FIXATION = "0.04,0.313,1290,1477,1.03,133,132,1.0,0.5,0,0,2544,3056,1021,0,2819,2160"
WORD_HEADER = "word,timestamp_start_word,timestamp_end_word"


def crlf(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())


def meta_row(reading_id, cells, *, split="train", discarded="False", image=IMAGE, size="2544,3056"):
    return f"{reading_id},{split},{discarded},{image},{DICOM},{SUBJECT},{size},{cells}"


def write_reading(root, reading_id, *, fixations=(FIXATION,), words=("lungs,1.0,1.5", ".,1.5,2.0")):
    folder = root / "main_data" / reading_id
    crlf(folder / "fixations.csv", FIXATION_HEADER, *fixations)
    crlf(folder / "timestamps_transcription.csv", WORD_HEADER, *words)
    (folder / "transcription.txt").write_text("lungs.")
    return folder


def write_phase_3(root, *rows):
    rows = rows or (meta_row("P300R000001", PHASE_3_CELLS),)
    crlf(root / "main_data" / "metadata_phase_3.csv", f"{META_HEADER},{PHASE_3_LABELS}", *rows)


@pytest.fixture
def one(tmp_path):
    """A folder with one phase-3 reading."""
    write_phase_3(tmp_path)
    write_reading(tmp_path, "P300R000001")
    return tmp_path


def assert_refused(action, reason, *parts, root):
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert caught.value.reason == reason
    assert all(part in message for part in parts), message
    assert not [secret for secret in (DICOM, SUBJECT, STUDY, "P300R", str(root)) if secret in message]


def words_of(tmp_path, *rows):
    crlf(tmp_path / "words.csv", WORD_HEADER, *rows)
    return reflacx.read_words(tmp_path / "words.csv")


def test_metadata_row(one):
    (reading,) = reflacx.readings(one)
    assert (reading.dataset, reading.source, reading.reading_id) == ("reflacx", "REFLACX 1.0.0", "P300R000001")
    assert (reading.dicom_id, reading.study_id, reading.subject_id) == (DICOM, STUDY, SUBJECT)
    assert (reading.split, reading.image_size, reading.phase, reading.reject) == ("train", (2544, 3056), 3, "")
    assert not reading.synthetic


def test_crlf_leaves_no_carriage_return(one):
    (reading,) = reflacx.readings(one)
    recording = reading.load()
    assert "\r" not in "".join(word.text for word in recording.words)
    assert [name for name in reading.labels if "\r" in name] == []
    assert recording.transcript == "lungs."
    assert recording.full_stop == "token"


def test_fixation_columns_in_image_px_and_seconds(one):
    fixations = reflacx.readings(one)[0].load().fixations
    assert (fixations.x_px[0], fixations.y_px[0]) == (1290, 1477)
    assert (fixations.start_s[0], fixations.end_s[0]) == (0.04, 0.313)
    assert (fixations.px_per_deg_x[0], fixations.px_per_deg_y[0]) == (133, 132)
    assert fixations.shown.tolist() == [[0, 0, 2544, 3056]]
    assert fixations.screen.tolist() == [[1021, 0, 2819, 2160]]


def test_off_image_positions_are_kept_as_they_stand(one):
    off = [
        "0.4,0.5,-788,1477,1,133,133,1,0.5,0,0,2544,3056,1021,0,2819,2160",
        "0.5,0.6,90,-3,1,133,133,1,0.5,0,0,2544,3056,1021,0,2819,2160",
        "0.6,0.7,2600,4000,1,133,133,1,0.5,0,0,2544,3056,1021,0,2819,2160",
    ]
    write_reading(one, "P300R000001", fixations=[FIXATION, *off])
    fixations = reflacx.readings(one)[0].load().fixations
    assert fixations.x_px.tolist() == [1290, -788, 90, 2600]
    assert fixations.y_px.tolist() == [1477, 1477, -3, 4000]


def test_zoomed_and_panned_rectangles(one):
    write_reading(one, "P300R000001", fixations=["1,2,900,901,1,33,33,1,0.5,500,600,1400,1500,660,0,3180,2160"])
    fixations = reflacx.readings(one)[0].load().fixations
    assert fixations.shown.tolist() == [[500, 600, 1400, 1500]]
    assert fixations.px_per_deg_x.tolist() == [33]


def test_comma_token_is_quoted(tmp_path):
    assert words_of(tmp_path, '",",12.3,12.5') == (Word(",", 12.3, 12.5),)


def test_decimal_token_ends_no_sentence(tmp_path):
    words = words_of(tmp_path, "1,0.0,0.2", ".5,0.2,0.6", "cm,0.6,0.9", ".,0.9,1.4")
    assert [word.text for word in words] == ["1", ".5", "cm", "."]
    assert len(sentences_of(words)) == 1


def test_zero_length_word(tmp_path):
    assert words_of(tmp_path, "small,3.0,3.0") == (Word("small", 3.0, 3.0),)


@pytest.mark.parametrize("text", ["null", "nan", "n/a", "1", "NA", "None", "true", "/", "."])
def test_word_stays_text(tmp_path, text):
    assert words_of(tmp_path, f"{text},0.5,1.0") == (Word(text, 0.5, 1.0),)


def test_quote_token(tmp_path):
    assert words_of(tmp_path, '"""",0.5,1.0') == (Word('"', 0.5, 1.0),)


def test_header_only_words(tmp_path):
    assert words_of(tmp_path) == ()


def test_missing_words_are_noted(one):
    (one / "main_data" / "P300R000001" / "timestamps_transcription.csv").unlink()
    recording = reflacx.readings(one)[0].load()
    assert recording.words == ()
    assert recording.notes["words_missing"]


@pytest.mark.parametrize("gaze_folder", [True, False])
def test_discarded_reading_keeps_its_labels(tmp_path, gaze_folder):
    write_phase_3(tmp_path, meta_row("P300R000001", PHASE_3_CELLS, discarded="True"))
    (tmp_path / "main_data" / "P300R000001").mkdir()
    if gaze_folder:
        (tmp_path / "gaze_data" / "P300R000001").mkdir(parents=True)
    (reading,) = reflacx.readings(tmp_path)
    assert reading.reject == "eye_tracking_discarded"
    assert reading.labels["Atelectasis"] == 5


def test_reading_without_fixations_file_is_rejected(one):
    (one / "main_data" / "P300R000001" / "fixations.csv").unlink()
    assert reflacx.readings(one)[0].reject == "fixations_missing"


def test_five_readings_of_one_image(tmp_path):
    ids = [f"P102R{number:06}" for number in (7, 11, 400, 5012, 999999)]
    rows = [meta_row(reading_id, PHASE_1_CELLS, split="test") for reading_id in ids]
    crlf(tmp_path / "main_data" / "metadata_phase_1.csv", f"{META_HEADER},{PHASE_1_LABELS}", *rows)
    found = reflacx.readings(tmp_path)
    assert [reading.reading_id for reading in found] == ids
    assert {reading.dicom_id for reading in found} == {DICOM}


def test_label_sets_of_the_phases(tmp_path):
    crlf(
        tmp_path / "main_data" / "metadata_phase_1.csv",
        f"{META_HEADER},{PHASE_1_LABELS}",
        meta_row("P102R000007", PHASE_1_CELLS),
    )
    write_phase_3(tmp_path)
    first, third = reflacx.readings(tmp_path)
    empty_other = {"Other"}
    assert set(first.labels) == set(PHASE_1_LABELS.split(",")) - empty_other
    assert set(third.labels) == set(PHASE_3_LABELS.split(",")) - empty_other
    assert len(first.labels) + 1 == 18
    assert len(third.labels) + 1 == 16
    assert (first.phase, third.phase) == (1, 3)
    assert reflacx.missing_tables(tmp_path) == 1


def test_certainty_with_and_without_decimal(tmp_path):
    write_phase_3(
        tmp_path,
        meta_row("P300R000001", "0,0,5,0,0,0,0,0,0,0,0,,0,0,0,False"),
        meta_row("P300R000002", "0,0,5.0,0,0,0,0,0,0,0,0,,0,0,0,True"),
    )
    plain, decimal = reflacx.readings(tmp_path)
    assert plain.labels["Atelectasis"] == decimal.labels["Atelectasis"] == 5
    assert isinstance(decimal.labels["Atelectasis"], int)
    assert (plain.labels["Support devices"], decimal.labels["Support devices"]) == (False, True)


def test_other_holds_bars_and_commas(tmp_path):
    write_phase_3(tmp_path, meta_row("P300R000001", '0,0,0,0,0,0,0,0,0,0,0,"scar, old|calcified node",0,0,0,False'))
    assert reflacx.readings(tmp_path)[0].labels["Other"] == "scar, old|calcified node"


def test_ellipses_and_chest_box(one):
    folder = one / "main_data" / "P300R000001"
    labels = "Atelectasis,Other,Support devices"
    ellipses = ("100,200,300,500,5.0,True,False,False", "10,20,30,40,3,False,True,True")
    crlf(folder / "anomaly_location_ellipses.csv", f"xmin,ymin,xmax,ymax,certainty,{labels}", *ellipses)
    crlf(folder / "chest_bounding_box.csv", "xmin,ymin,xmax,ymax", "-4,60,2550,2900")
    assert reflacx.readings(one)[0].load().annotations == (
        Annotation("ellipse", (100, 200, 300, 500), ("Atelectasis",), 5),
        Annotation("ellipse", (10, 20, 30, 40), ("Other", "Support devices"), 3),
        Annotation("chest_box", (-4, 60, 2550, 2900)),
    )


def test_header_only_ellipses(one):
    folder = one / "main_data" / "P300R000001"
    crlf(folder / "anomaly_location_ellipses.csv", "xmin,ymin,xmax,ymax,certainty,Atelectasis")
    assert reflacx.readings(one)[0].load().annotations == ()


def test_index_html_of_a_mirror_is_ignored(one):
    for folder in (one, one / "main_data", one / "main_data" / "P300R000001"):
        (folder / "index.html").write_text("<html></html>")
    assert len(reflacx.readings(one)) == 1


def test_synthetic_folder_is_marked(one):
    (one / "SYNTHETIC.json").write_text("{}")
    assert reflacx.readings(one)[0].synthetic


def test_reading_crosses_processes(one):
    (reading,) = reflacx.readings(one)
    again = pickle.loads(pickle.dumps(reading))
    assert np.array_equal(again.load().fixations.x_px, reading.load().fixations.x_px)
    assert all(path.exists() for path in again.files()[:3])


def test_load_fixations_by_name(one):
    path = one / "main_data" / "P300R000001" / "fixations.csv"
    assert load_fixations(str(path), "reflacx").x_px.tolist() == [1290]
    with pytest.raises(ValueError, match="'eyelink' is unknown; choose one of 'reflacx', 'egd', 'table'"):
        load_fixations(path, "eyelink")


def test_wrong_folder_names_what_was_looked_for(tmp_path):
    assert_refused(lambda: reflacx.readings(tmp_path), "wrong_folder", "main_data/metadata_phase", root=tmp_path)


def test_duplicate_id(tmp_path):
    write_phase_3(tmp_path, *[meta_row("P300R000001", PHASE_3_CELLS)] * 2)
    assert_refused(lambda: reflacx.readings(tmp_path), "duplicate_id", "1 REFLACX ids", root=tmp_path)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (meta_row("P400R000001", PHASE_3_CELLS), "'id'"),
        (meta_row("P300R000001", PHASE_3_CELLS, split="val"), "'split'"),
        (meta_row("P300R000001", PHASE_3_CELLS, discarded="maybe"), "'eye_tracking_data_discarded'"),
        (meta_row("P300R000001", PHASE_3_CELLS, image=f"{DICOM}.dcm"), "'image'"),
        (meta_row("P300R000001", PHASE_3_CELLS.replace("5", "6")), "'Atelectasis'"),
        (meta_row("P300R000001", PHASE_3_CELLS.replace("5", "yes")), "'Atelectasis'"),
    ],
)
def test_malformed_metadata_cell_is_named(one, row, column):
    write_phase_3(one, meta_row("P300R000002", PHASE_3_CELLS, discarded="True"), row)
    assert_refused(lambda: reflacx.readings(one), "bad_cell", "metadata_phase_3.csv, row 2", column, root=one)


def test_image_size_must_be_a_number(one):
    write_phase_3(one, meta_row("P300R000001", PHASE_3_CELLS, size="2544,"))
    assert_refused(lambda: reflacx.readings(one), "bad_number", "row 1", "'image_size_y' is empty", root=one)


def test_missing_fixation_column_is_named(one):
    path = one / "main_data" / "P300R000001" / "fixations.csv"
    crlf(path, FIXATION_HEADER.replace("x_position", "x_pos"), FIXATION)
    assert_refused(
        lambda: reflacx.read_fixations(path), "wrong_columns", "no column 'x_position'", "but has 'x_pos'", root=one
    )


def test_table_without_header_is_not_quoted(one):
    path = one / "main_data" / "metadata_phase_3.csv"
    crlf(path, meta_row("P300R000001", PHASE_3_CELLS))
    assert_refused(lambda: reflacx.readings(one), "wrong_columns", "first line is the header", root=one)


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("nan", "'nan'"), ("", "empty"), ("1,5", "'1,5'"), ("P300R000001", "11 characters"), ("effusion", "8 characters")],
)
def test_bad_number_is_placed_and_quotes_no_text(one, cell, shown):
    path = one / "main_data" / "P300R000001" / "fixations.csv"
    cell = f'"{cell}"'
    crlf(path, FIXATION_HEADER, FIXATION, FIXATION.replace("1290", cell))
    assert_refused(
        lambda: reflacx.read_fixations(path), "bad_number", "fixations.csv, row 2, column 'x_position'", shown, root=one
    )


def test_surplus_cells_do_not_shift_columns(one):
    path = one / "main_data" / "P300R000001" / "fixations.csv"
    crlf(path, FIXATION_HEADER, f"{FIXATION},7")
    assert_refused(lambda: reflacx.read_fixations(path), "unreadable_table", "more cells than its header", root=one)


def test_damaged_file_is_unreadable_not_a_crash(one):
    path = one / "main_data" / "P300R000001" / "fixations.csv"
    path.write_bytes(b"\xff\xfe\x00broken")
    assert_refused(lambda: reflacx.read_fixations(path), "unreadable_table", "download it again", root=one)
    path.write_bytes(b"")
    assert_refused(lambda: reflacx.read_fixations(path), "unreadable_table", "EmptyDataError", root=one)


def test_damaged_transcript_is_refused(one):
    (one / "main_data" / "P300R000001" / "transcription.txt").write_bytes(b"\xff\xfe lungs")
    (reading,) = reflacx.readings(one)
    assert_refused(reading.load, "bad_transcript", "transcription.txt", root=one)


def test_missing_file_is_refused(tmp_path):
    assert_refused(
        lambda: reflacx.read_fixations(Path(tmp_path / "absent.csv")), "file_missing", "fixations.csv", root=tmp_path
    )


@pytest.mark.parametrize(
    ("file", "header", "row", "column"),
    [
        ("timestamps_transcription.csv", "word,timestamp_start_word,timestamp_end_word", "heart,3.0,2.0", "end_word"),
        ("anomaly_location_ellipses.csv", "xmin,ymin,xmax,ymax,certainty,Nodule", "10,10,40,40,7.5,True", "certainty"),
        ("anomaly_location_ellipses.csv", "xmin,ymin,xmax,ymax,certainty,Nodule", "50,10,40,40,3,True", "xmax"),
        ("chest_bounding_box.csv", "xmin,ymin,xmax,ymax", "1,9,5,3", "ymax"),
    ],
)
def test_impossible_cells_name_file_row_and_column(tmp_path, file, header, row, column):
    (tmp_path / file).write_text(f"{header}\r\n{row}\r\n", newline="")
    read = {
        "timestamps_transcription.csv": lambda: reflacx.read_words(tmp_path / file),
        "anomaly_location_ellipses.csv": lambda: reflacx._read_ellipses(tmp_path),
        "chest_bounding_box.csv": lambda: reflacx._read_chest_box(tmp_path),
    }[file]
    with pytest.raises(InputError, match=rf"REFLACX {file}, row 1, column '\w*{column}"):
        read()
