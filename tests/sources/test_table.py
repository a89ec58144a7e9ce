"""Anyone's tables: column names, frames of reference, times, images and words, with invented values."""

import gzip
import itertools
import pickle
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from gazeprep.fixations import Frame
from gazeprep.schema import Context, InputError, Word
from gazeprep.sources import load_fixations, table
from gazeprep.transcripts import sentences_of

OSIE = Path(__file__).resolve().parents[3] / "shared" / "data" / "osie" / "fixations.mat"
SIZE = (20, 10)


def csv(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in (header, *rows)))
    return path


def png(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.zeros((size[1], size[0]), np.uint8))[1].tobytes())


@pytest.fixture
def root(tmp_path):
    """Two images, of which the first was read twice, with the words of one reading."""
    csv(
        tmp_path / "images.csv",
        "image_id,path,subject_id,study_id,split,view_position,indication,synthetic",
        'im-1,pictures/one.png,person-1,study-1,train,PA,"cough, fever",false',
        "im-2,pictures/two.png,person-2,,,,,true",
    )
    for name in ("one", "two"):
        png(tmp_path / "pictures" / f"{name}.png")
    csv(
        tmp_path / "fixations.csv",
        "reading_id,image_id,x,y,start,end",
        "reader-a,im-1,1,2,0.0,0.5",
        "reader-b,im-1,9,9,0.1,0.2",
        "reader-a,im-1,3,4,0.5,0.75",
    )
    csv(
        tmp_path / "words.csv",
        "reading_id,word,start,end",
        "reader-a,lungs,0.1,0.3",
        "reader-a,clear.,0.3,0.6",
    )
    return tmp_path


def source_of(root, **options):
    return table.TableSource(
        **{
            "images": root / "images.csv",
            "fixations": root / "fixations.csv",
            "words": root / "words.csv",
            "name": "own",
            **options,
        }
    )


def assert_refused(action, reason, *parts, root):
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert caught.value.reason == reason
    assert all(part in message for part in parts), message
    secrets = ("reader-", "im-1", "im-2", "person-", "study-", "fever", "lungs", "pictures", str(root))
    assert not [secret for secret in secrets if secret in message]


def test_readings_in_order_of_appearance(root):
    first, second = table.readings(source_of(root))
    assert (first.dataset, first.reading_id, second.reading_id) == ("table-own", "reader-a", "reader-b")
    assert (first.dicom_id, first.subject_id, first.study_id) == ("im-1", "person-1", "study-1")
    assert (first.split, first.view_position, first.reject, first.synthetic) == ("train", "PA", "", False)
    assert first.context == Context(indication="cough, fever")
    assert first.load().fixations.x_px.tolist() == [1, 3]
    assert second.load().fixations.start_s.tolist() == [0.1]


def test_image_is_relative_to_its_table(root):
    image = table.readings(source_of(root))[0].image
    assert (Path(image.root) / image.path).exists()
    assert (image.path, image.kind) == ("pictures/one.png", "raster")


def test_images_without_a_reading(root):
    (image,) = table.images(source_of(root))
    assert (image.dataset, image.image_id, image.subject_id) == ("table-own", "im-2", "person-2")
    assert (image.split, image.study_id, image.context, image.synthetic) == ("", "", None, True)
    assert len(table.images(source_of(root, fixations=None, words=None))) == 2
    assert table.readings(source_of(root, fixations=None, words=None)) == ()


def test_words_and_transcript(root):
    first, second = (reading.load() for reading in table.readings(source_of(root)))
    assert first.words == (Word("lungs", 0.1, 0.3), Word("clear.", 0.3, 0.6))
    assert first.transcript == "lungs clear."
    assert len(sentences_of(first.words, full_stop=first.full_stop)) == 1
    assert (second.words, second.transcript) == ((), "")


def test_full_stops_as_tokens_end_sentences_too(root):
    rows = ("reader-a,clear,0,1", "reader-a,.,1,2", "reader-a,heart,2,3")
    csv(root / "words.csv", "reading_id,word,start,end", *rows)
    recording = table.readings(source_of(root))[0].load()
    assert [s.text for s in sentences_of(recording.words, full_stop=recording.full_stop)] == ["clear.", "heart"]
    assert recording.transcript == "clear. heart"


@pytest.mark.parametrize("text", ["null", "nan", "n/a", "1", "NA"])
def test_word_stays_text(root, text):
    csv(root / "words.csv", "reading_id,word,start,end", f"reader-a,{text},0,1")
    assert table.readings(source_of(root))[0].words == (Word(text, 0.0, 1.0),)


def test_readings_are_small_and_cross_processes(root):
    reading = table.readings(source_of(root))[0]
    packed = pickle.dumps(reading)
    assert len(packed) < 4000
    assert pickle.loads(packed).load().fixations.y_px.tolist() == [2, 4]
    assert {path.name for path in reading.files()} == {"fixations.csv", "words.csv"}


def test_their_column_names(root):
    csv(root / "gaze.csv", "trial,stimulus,gx,gy,on,off", "t,im-1,5,6,1,2")
    columns = {"reading_id": "trial", "image_id": "stimulus", "x": "gx", "y": "gy", "start": "on", "end": "off"}
    # The table of images keeps our image_id: a shared column may have either name in each table.
    (reading,) = table.readings(source_of(root, fixations=root / "gaze.csv", words=None, columns=columns))
    assert (reading.reading_id, reading.dicom_id) == ("t", "im-1")
    assert reading.load().fixations.x_px.tolist() == [5]


def test_mapped_column_is_not_replaced_by_ours(root):
    source = source_of(root, columns={"x": "gx"})
    assert_refused(lambda: table.readings(source), "wrong_columns", "no column 'gx'", root=root)


def test_unknown_column_key_is_refused():
    with pytest.raises(ValueError, match="columns names 'pupil', which no table has; choose among comparison"):
        table.TableSource(images=Path("images.csv"), columns={"pupil": "p"})


@pytest.mark.parametrize("name", ["Mine", "a_b", "", "a.b", "-a"])
def test_name_must_fit_into_a_key(name):
    with pytest.raises(ValueError, match=r"table\.name"):
        table.TableSource(images=Path("images.csv"), name=name)


def test_image_is_the_reading_where_no_reading_id_is_given(root):
    csv(root / "fixations.csv", "image_id,x,y,start,end", "im-2,1,1,0,1", "im-1,2,2,0,1", "im-2,3,3,1,2")
    first, second = table.readings(source_of(root, words=None))
    assert (first.reading_id, first.dicom_id, second.reading_id) == ("im-2", "im-2", "im-1")
    assert first.load().fixations.x_px.tolist() == [1, 3]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_kinds_of_tables(tmp_path, suffix):
    path = tmp_path / f"fixations.{suffix}"
    frame = pd.DataFrame({"x": [1.5, 2], "y": [3, 4], "start": [0.0, 1.0], "end": [1.0, 1.25]})
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    fixations = load_fixations(path, "table")
    assert (fixations.x_px.tolist(), fixations.y_px.tolist()) == ([1.5, 2], [3, 4])
    assert fixations.duration_s.tolist() == [1.0, 0.25]


# One physical point: the middle of image pixel (3, 7) of a 20 x 10 image, drawn at 4 screen px a pixel from (100, 60)
# on a 200 x 160 screen. Its far corner lies at edge (4, 8) of the image, so its middle at edge (3.5, 7.5).
SCREEN_EDGE = (100 + 4 * 3.5, 60 + 4 * 7.5)
POSITIONS = {
    ("image_px", 0): (3, 7),
    ("image_px", 1): (4, 8),
    ("image_fraction", 0): (3.5 / 20, 7.5 / 10),
    ("image_fraction", 1): (3.5 / 20, 7.5 / 10),
    ("screen_px", 0): (SCREEN_EDGE[0] - 0.5, SCREEN_EDGE[1] - 0.5),
    ("screen_px", 1): (SCREEN_EDGE[0] + 0.5, SCREEN_EDGE[1] + 0.5),
    ("screen_fraction", 0): (SCREEN_EDGE[0] / 200, SCREEN_EDGE[1] / 160),
    ("screen_fraction", 1): (SCREEN_EDGE[0] / 200, SCREEN_EDGE[1] / 160),
}
DRAWN = (100, 60, 180, 100)
TIMES = {"s": (0.25, 1.5), "ms": (250, 1500)}


@pytest.mark.parametrize(
    ("position", "time", "drawn_in_columns"), list(itertools.product(POSITIONS, TIMES, [False, True])), ids=str
)
def test_one_point_in_every_frame(root, position, time, drawn_in_columns):
    unit, base = position
    drawn = None if drawn_in_columns else DRAWN
    frame = Frame(unit=unit, base=base, time=time, screen_px=(200, 160), image_on_screen_px=drawn)
    header, row = "image_id,x,y,start,end", ",".join(map(str, ("im-1", *POSITIONS[position], *TIMES[time])))
    if drawn_in_columns:
        header += ",image_left_px,image_top_px,image_right_px,image_bottom_px"
        row += "," + ",".join(map(str, DRAWN))
    path = csv(root / "fixations.csv", header, row)
    direct = load_fixations(path, "table", frame=frame, image_size=SIZE)
    # The same through a source, where the size comes from the header of the png.
    (reading,) = table.readings(source_of(root, frame=frame, words=None))
    for fixations in (direct, reading.load().fixations):
        np.testing.assert_allclose([fixations.x_px[0], fixations.y_px[0]], [3, 7], atol=1e-12)
        np.testing.assert_allclose([fixations.start_s[0], fixations.end_s[0]], [0.25, 1.5], atol=1e-12)


def test_where_the_image_sat_may_change_between_rows(tmp_path):
    path = csv(
        tmp_path / "f.csv",
        "x,y,start,end,image_left_px,image_top_px,image_right_px,image_bottom_px",
        "9.5,4.5,0,1,0,0,20,10",
        "109.5,4.5,1,2,100,0,120,10",
        "19.5,9.5,2,3,0,0,40,20",
    )
    # The columns go before the frame's rectangle.
    frame = Frame(unit="screen_px", image_on_screen_px=(500, 500, 600, 600))
    fixations = load_fixations(path, "table", frame=frame, image_size=SIZE)
    np.testing.assert_allclose(fixations.x_px, 9.5)
    np.testing.assert_allclose(fixations.y_px, 4.5)


def test_words_share_the_unit_of_time(root):
    csv(root / "fixations.csv", "reading_id,image_id,x,y,start,end", "reader-a,im-1,1,2,250,500")
    csv(root / "words.csv", "reading_id,word,start,end", "reader-a,lungs,125,1500")
    (reading,) = table.readings(source_of(root, frame=Frame(time="ms")))
    assert reading.words == (Word("lungs", 0.125, 1.5),)
    assert reading.load().fixations.end_s.tolist() == [0.5]


def test_start_and_duration(tmp_path):
    path = csv(tmp_path / "f.csv", "x,y,start,duration", "1,1,0.5,0.25", "1,1,2,0")
    assert load_fixations(path, "table").end_s.tolist() == [0.75, 2.0]


def test_durations_alone_follow_each_other_within_a_reading(root):
    csv(
        root / "fixations.csv",
        "reading_id,image_id,x,y,duration",
        "reader-a,im-1,1,1,0.5",
        "reader-b,im-1,1,1,2",
        "reader-a,im-1,1,1,0.25",
        "reader-b,im-1,1,1,1",
    )
    first, second = (reading.load().fixations for reading in table.readings(source_of(root)))
    assert (first.start_s.tolist(), first.end_s.tolist()) == ([0, 0.5], [0.5, 0.75])
    assert (second.start_s.tolist(), second.end_s.tolist()) == ([0, 2], [2, 3])


def test_resolution_and_shown_part(tmp_path):
    header = "x,y,start,end,px_per_deg_x,px_per_deg_y,shown_left,shown_top,shown_right,shown_bottom"
    fixations = load_fixations(csv(tmp_path / "f.csv", header, "1,1,0,1,30,31,0,2,10,8"), "table")
    assert (fixations.px_per_deg_x.tolist(), fixations.px_per_deg_y.tolist()) == ([30], [31])
    assert fixations.shown.tolist() == [[0, 2, 10, 8]]


def test_choosing_one_reading_of_a_table(root):
    path = root / "fixations.csv"
    assert load_fixations(path, "table", reading_id="reader-b").x_px.tolist() == [9]
    assert load_fixations(path, "table", reading_id="reader-a", image_id="im-1").x_px.tolist() == [1, 3]
    assert_refused(lambda: load_fixations(path, "table"), "several_readings", "2 readings", root=root)
    assert_refused(lambda: load_fixations(path, "table", reading_id="x"), "no_fixations", "no row", root=root)


def test_image_size_from_the_table(root):
    csv(root / "images.csv", "image_id,path,subject_id,image_width,image_height", "im-1,absent.dcm,person-1,20,10")
    frame = Frame(unit="image_fraction")
    csv(root / "fixations.csv", "image_id,x,y,start,end", "im-1,0.5,0.5,0,1")
    (reading,) = table.readings(source_of(root, words=None, frame=frame))
    assert reading.image_size == SIZE
    assert reading.load().fixations.x_px.tolist() == [9.5]


def test_empty_size_is_unknown(root):
    csv(root / "images.csv", "image_id,path,subject_id,image_width,image_height", "im-1,pictures/one.png,person-1,,")
    assert table.readings(source_of(root))[0].image_size is None


def test_inputs_without_an_image_are_rejected_not_lost(root):
    (root / "pictures" / "one.png").unlink()
    csv(root / "fixations.csv", "image_id,x,y,start,end", "im-1,1,1,0,1", "im-9,1,1,0,1", "im-2,1,1,0,1")
    found = table.readings(source_of(root, words=None))
    assert [reading.reject for reading in found] == ["image_missing", "image_not_listed", ""]


def test_synthetic_folder_is_marked(root):
    (root / "SYNTHETIC.json").write_text("{}")
    assert all(reading.synthetic for reading in table.readings(source_of(root)))


@pytest.mark.parametrize("path", ["../one.png", "/etc/one.png", "a/../../one.png", "..\\one.png", "C:\\one.png", ""])
def test_path_cannot_leave_its_folder(root, path):
    csv(root / "images.csv", "image_id,path,subject_id", "im-2,pictures/two.png,person-2", f"im-1,{path},person-1")
    assert_refused(lambda: table.images(source_of(root)), "bad_cell", "row 2, column 'path'", root=root)


@pytest.mark.parametrize(
    ("header", "row", "place"),
    [
        ("image_id,path,subject_id", "im-1,one.tiff,person-1", "'path' ends in none of .dcm"),
        ("image_id,path,subject_id", "im-1,one.png,", "'subject_id' is empty"),
        ("image_id,path,subject_id", ",one.png,person-1", "'image_id' is empty"),
        ("image_id,path,subject_id,split", "im-1,one.png,person-1,val", "'split' is none of train, validate, test"),
        ("image_id,path,subject_id,synthetic", "im-1,one.png,person-1,perhaps", "'synthetic'"),
        ("image_id,path,subject_id,image_width,image_height", "im-1,one.png,person-1,20,10.5", "'image_height'"),
        ("image_id,path,subject_id,image_width,image_height", "im-1,one.png,person-1,0,10", "'image_width'"),
    ],
)
def test_bad_image_cell_is_placed(root, header, row, place):
    csv(root / "images.csv", header, row)
    assert_refused(lambda: table.images(source_of(root)), "bad_cell", "table of images, row 1", place, root=root)


@pytest.mark.parametrize(
    ("header", "row", "reason", "place"),
    [
        ("image_id,x,y,start,end", "im-1,nan,1,0,1", "bad_number", "row 2, column 'x' is 'nan'"),
        ("image_id,x,y,start,end", "im-1,1,,0,1", "bad_number", "row 2, column 'y' is empty"),
        ("image_id,x,y,start,end", "im-1,1,lungs,0,1", "bad_number", "row 2, column 'y' is 5 characters of text"),
        ("image_id,x,y,start,end", "im-1,1,1,inf,1", "bad_number", "row 2, column 'start' is 'inf'"),
        ("image_id,x,y,start,end", "im-1,1,1,2,1", "bad_cell", "row 2, column 'end' lies before the start"),
        ("image_id,x,y,start,duration", "im-1,1,1,2,-1", "bad_cell", "row 2, column 'duration' is negative"),
        ("image_id,x,y,duration,z", "im-1,1,1,-1,0", "bad_cell", "row 2, column 'duration' is negative"),
        ("image_id,x,y,start,end", ",1,1,0,1", "bad_cell", "row 2, column 'image_id' is empty"),
        ("image_id,x,y,start,end,reading_id", "im-1,1,1,0,1,", "bad_cell", "row 2, column 'reading_id' is empty"),
    ],
)
def test_bad_fixation_cell_is_placed(root, header, row, reason, place):
    good = ",".join("im-1" if name.endswith("_id") else "1" for name in header.split(","))
    csv(root / "fixations.csv", header, good, row)
    assert_refused(lambda: table.readings(source_of(root, words=None)), reason, "table of fixations", place, root=root)


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("x,y,start,end", "'image_id'"),
        ("image_id,y,start,end", "'x'"),
        ("image_id,x,y,start", "'duration'"),
        ("image_id,x,y,end", "'start'"),
        ("image_id,x,y,start,end,px_per_deg_x", "'px_per_deg_y'"),
        ("image_id,x,y,start,end,shown_left,shown_top,shown_right", "'shown_bottom'"),
        ("image_id,x,y,start,end,image_left_px", "'image_top_px', 'image_right_px', 'image_bottom_px'"),
    ],
)
def test_missing_column_is_named(root, header, missing):
    csv(root / "fixations.csv", header, ",".join("1" for _ in header.split(",")))
    assert_refused(
        lambda: table.readings(source_of(root, words=None)), "wrong_columns", f"no column {missing}", root=root
    )


def test_image_drawn_inside_out_is_placed(tmp_path):
    header = "x,y,start,end,image_left_px,image_top_px,image_right_px,image_bottom_px"
    path = csv(tmp_path / "f.csv", header, "1,1,0,1,0,0,20,10", "1,1,0,1,20,0,20,10")
    assert_refused(
        lambda: load_fixations(path, "table", frame=Frame(unit="screen_px"), image_size=SIZE),
        "bad_cell",
        "row 2, column 'image_right_px'",
        root=tmp_path,
    )


def test_reading_of_two_images(root):
    csv(root / "fixations.csv", "reading_id,image_id,x,y,start,end", "reader-a,im-1,1,1,0,1", "reader-a,im-2,1,1,0,1")
    assert_refused(lambda: table.readings(source_of(root)), "reading_of_two_images", "unique", root=root)


def test_duplicate_image(root):
    csv(root / "images.csv", "image_id,path,subject_id", *["im-1,pictures/one.png,person-1"] * 2)
    assert_refused(lambda: table.images(source_of(root)), "duplicate_id", "repeats 1", root=root)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ("reader-z,lungs,0,1", "'reading_id' names a reading without fixations"),
        ("reader-a,,0,1", "'word' is empty"),
        ("reader-a,lungs,2,1", "'end' lies before the start"),
    ],
)
def test_bad_word_is_placed(root, row, place):
    csv(root / "words.csv", "reading_id,word,start,end", "reader-a,lungs,0,1", row)
    assert_refused(lambda: table.readings(source_of(root)), "bad_cell", "table of words, row 2", place, root=root)


@pytest.mark.parametrize(
    ("frame", "part"), [(Frame(unit="image_fraction"), "image_size"), (Frame(unit="screen_px"), "")]
)
def test_frame_without_image_size(root, frame, part):
    assert_refused(
        lambda: load_fixations(root / "fixations.csv", "table", frame=frame, reading_id="reader-b"),
        "frame_incomplete",
        part,
        root=root,
    )


def test_screen_frame_without_the_place_of_the_image(root):
    (reading, _) = table.readings(source_of(root, frame=Frame(unit="screen_px")))
    assert_refused(reading.load, "frame_incomplete", "image_on_screen_px", root=root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "degrees"}, "frame.unit is 'degrees'"),
        ({"base": 2}, "frame.base is 2"),
        ({"time": "us"}, "frame.time is 'us'"),
        ({"unit": "screen_fraction"}, "give frame.screen_px"),
        ({"screen_px": (0, 10)}, "must be positive"),
        ({"image_on_screen_px": (10, 0, 10, 5)}, "give left, top, right, bottom"),
    ],
)
def test_impossible_frame(options, message):
    with pytest.raises(ValueError, match=message):
        Frame(**options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.parquet", b"PAR1 broken"),
        ("f.csv.gz", gzip.compress(b"x,y\n1,2\n" * 99, mtime=0)[:-9]),
        ("f.csv.gz", gzip.compress(b"x,y\n1,2\n" * 99, mtime=0)[:12] + b"\xff" * 20),
        ("f.csv", b""),
        ("f.csv", b"\xff\xfe\x01"),
        ("f.csv", b"x,y\n1,2\n1,2,3\n"),
        ("f.csv", b"x,y\n1,2,3\n1,2,3\n"),
    ],
)
def test_damaged_table_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_refused(lambda: load_fixations(tmp_path / name, "table"), "unreadable_table", "again", root=tmp_path)


def test_osie_recordings(tmp_path):
    """OSIE (Xu et al. 2014): EyeLink fixations on 800 x 600 images, 1-based px, durations in ms, no start times."""
    if not OSIE.exists():
        pytest.skip("the OSIE recordings (shared/data/osie/fixations.mat) are not beside the project")
    image = loadmat(OSIE, squeeze_me=True, struct_as_record=False)["fixations"][0]
    rows = [
        f"{image.img}-{number},{image.img},{x},{y},{duration}"
        for number, subject in enumerate(image.subjects)
        for x, y, duration in zip(subject.fix_x, subject.fix_y, subject.fix_duration, strict=True)
    ]
    columns = {"reading_id": "scanpath", "image_id": "stimulus", "x": "fix_x", "y": "fix_y", "duration": "fix_duration"}
    csv(tmp_path / "osie.csv", ",".join(columns.values()), *rows)
    csv(tmp_path / "images.csv", "image_id,path,subject_id,image_width,image_height", f"{image.img},a.jpg,s,800,600")
    source = table.TableSource(
        images=tmp_path / "images.csv",
        fixations=tmp_path / "osie.csv",
        name="osie",
        frame=Frame(base=1, time="ms"),
        columns=columns,
    )
    found = table.readings(source)
    assert len(found) == len(image.subjects) == 15
    for reading, subject in zip(found, image.subjects, strict=True):
        fixations = reading.load().fixations
        np.testing.assert_allclose(fixations.x_px, subject.fix_x - 1)
        np.testing.assert_allclose(fixations.y_px, subject.fix_y - 1)
        np.testing.assert_allclose(fixations.duration_s.sum() * 1000, subject.fix_duration.sum())
        np.testing.assert_array_equal(fixations.start_s[1:], fixations.end_s[:-1])
    first = load_fixations(
        tmp_path / "osie.csv", "table", frame=source.frame, columns=columns, reading_id=f"{image.img}-0"
    )
    np.testing.assert_allclose([first.x_px[0], first.end_s[0]], [394.5, 0.246])
