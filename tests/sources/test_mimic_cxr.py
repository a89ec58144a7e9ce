import gzip
import multiprocessing
import pickle
import zipfile
from pathlib import Path

import pytest

from gazeprep.reports import Override, context
from gazeprep.schema import CHEXPERT_LABELS, ImageRef, InputError, ReportRef
from gazeprep.sources.mimic_cxr import open_mimic, read_report

# Two subjects, three studies, four images; the second study has no report and no label row.
IMAGES = [
    ("aaaa", "10000001", "50000001", "PA"),
    ("bbbb", "10000001", "50000001", "LATERAL"),
    ("cccc", "10000001", "50000002", ""),
    ("dddd", "11000002", "50000003", "AP"),
]
SPLIT_OF = {"10000001": "train", "11000002": "test"}
REPORT_OF = {"50000001": " x\n IMPRESSION: clear", "50000003": "A.\r\n \r\n Caf\xe9."}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def csv(header, rows):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def study_folder(root, subject, study):
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"


def write_images(root, suffix, images=IMAGES):
    for dicom, subject, study, _ in images:
        write(study_folder(root, subject, study) / f"{dicom}{suffix}", "dummy")
        write(study_folder(root, subject, study) / "index.html", "left by wget")


def write_reports(root):
    for _, subject, study, _ in IMAGES:
        if study in REPORT_OF:
            path = study_folder(root, subject, study)
            path.with_name(f"{path.name}.txt").write_bytes(REPORT_OF[study].encode("latin-1"))


def write_zip(root, prefix="files/"):
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("mimic-cxr-reports/", "")
        for _, subject, study, _ in IMAGES:
            name = f"{prefix}p{subject[:2]}/p{subject}/s{study}.txt"
            if study in REPORT_OF and name not in archive.namelist():
                archive.writestr(name, REPORT_OF[study].encode("latin-1"))


def write_metadata(root, images=IMAGES, name="mimic-cxr-2.0.0-metadata.csv.gz", size=(3056, 2544)):
    header = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate"
    rows = [(d, sub, st, "CHEST", view, *size, 21800506) for d, sub, st, view in images]
    write(root / name, csv(header, rows))


def write_split(root, rows=None, name="mimic-cxr-2.0.0-split.csv.gz"):
    rows = rows or [(d, study, subject, SPLIT_OF[subject]) for d, subject, study, _ in IMAGES]
    write(root / name, csv("dicom_id,study_id,subject_id,split", rows))


def write_labels(root, rows, name="mimic-cxr-2.0.0-chexpert.csv.gz", labels=CHEXPERT_LABELS):
    write(root / name, csv(",".join(["subject_id", "study_id", *labels]), rows))


BLANK = [""] * 14
LABEL_ROWS = [("10000001", "50000001", "1.0", "0.0", "-1.0", *[""] * 11), ("11000002", "50000003", *BLANK)]


@pytest.fixture
def jpg_root(tmp_path):
    root = tmp_path / "jpg"
    write_images(root, ".jpg")
    write_metadata(root)
    write_split(root)
    write_labels(root, LABEL_ROWS)
    write(root / "index.html", "left by wget")
    return root


@pytest.fixture
def dicom_root(tmp_path):
    root = tmp_path / "dicom"
    write_images(root, ".dcm")
    write_reports(root)
    rows = [(subject, study, d, "unused") for d, subject, study, _ in IMAGES]
    write(root / "cxr-record-list.csv.gz", csv("subject_id,study_id,dicom_id,path", rows))
    return root


def test_jpg_alone(jpg_root):
    mimic = open_mimic(None, jpg_root)
    first, _, third, _ = mimic.images
    assert [image.dicom_id for image in mimic.images] == ["aaaa", "bbbb", "cccc", "dddd"]
    assert (first.subject_id, first.study_id, first.view_position) == ("10000001", "50000001", "PA")
    assert first.size == (2544, 3056)
    assert first.image == ImageRef(str(jpg_root), "files/p10/p10000001/s50000001/aaaa.jpg", "raster", "mimic-cxr-jpg")
    assert third.view_position == ""
    assert [image.split for image in mimic.images] == ["train", "train", "train", "test"]
    assert mimic.split_of_subject == SPLIT_OF
    assert mimic.split_of_dicom["dddd"] == "test"
    assert mimic.by_dicom["cccc"] is third
    assert mimic.absent_tables == ()


def test_dicom_alone_by_its_record_list(dicom_root):
    mimic = open_mimic(dicom_root, None)
    assert [image.dicom_id for image in mimic.images] == ["aaaa", "bbbb", "cccc", "dddd"]
    assert {image.image.kind for image in mimic.images} == {"dicom"}
    assert {(image.view_position, image.split, image.size) for image in mimic.images} == {("", "", None)}
    assert mimic.absent_tables == ("MIMIC metadata table", "MIMIC split table", "MIMIC chexpert label table")


def test_without_a_table_the_folders_are_the_list(dicom_root):
    (dicom_root / "cxr-record-list.csv.gz").unlink()
    write(dicom_root / "files/p10/p10000001/notes/eeee.dcm", "not in a study")
    write(dicom_root / "files/p10/index.html", "left by wget")
    mimic = open_mimic(dicom_root, None)
    ids = [(image.dicom_id, image.subject_id, image.study_id) for image in mimic.images]
    assert ids == [row[:3] for row in IMAGES]
    assert all(image.image is not None for image in mimic.images)


@pytest.mark.parametrize(("prefer", "suffix"), [("dicom", ".dcm"), ("jpg", ".jpg")])
def test_both_folders_prefer_one_kind(dicom_root, jpg_root, prefer, suffix):
    study_folder(dicom_root, "11000002", "50000003").joinpath("dddd.dcm").unlink()
    study_folder(jpg_root, "10000001", "50000002").joinpath("cccc.jpg").unlink()
    images = open_mimic(dicom_root, jpg_root, prefer=prefer).images
    assert [Path(image.image.path).suffix for image in images] == [suffix, suffix, ".dcm", ".jpg"]


def test_one_folder_may_be_both(jpg_root):
    write_images(jpg_root, ".dcm")
    mimic = open_mimic(jpg_root, jpg_root)
    assert len(mimic.images) == 4
    assert {image.image.kind for image in mimic.images} == {"dicom"}


def test_tables_may_lie_in_the_other_folder_and_be_unzipped(dicom_root, tmp_path):
    write_metadata(dicom_root, name="mimic-cxr-2.0.0-metadata.csv")
    write_split(dicom_root, name="mimic-cxr-2.1.0-split.csv")
    write_images(tmp_path / "jpg", ".jpg")
    mimic = open_mimic(dicom_root, tmp_path / "jpg")
    assert [image.split for image in mimic.images] == ["train", "train", "train", "test"]
    assert mimic.images[0].size == (2544, 3056)


def test_images_are_the_union_of_the_tables(jpg_root):
    write_metadata(jpg_root, IMAGES[:1])
    write_split(jpg_root, [("bbbb", "50000001", "10000001", "validate")])
    write_images(jpg_root, ".jpg", [("zzzz", "10000001", "50000001", "PA")])
    images = open_mimic(None, jpg_root).images
    assert [(i.dicom_id, i.view_position, i.split) for i in images] == [
        ("aaaa", "PA", "validate"),  # the split of its subject
        ("bbbb", "", "validate"),
    ]


def test_ids_may_carry_their_letters(jpg_root):
    write_metadata(jpg_root, [(d, f"p{subject}", f"s{study}", view) for d, subject, study, view in IMAGES])
    assert open_mimic(None, jpg_root).images[0].study_id == "50000001"


def test_images_that_are_not_on_disk_are_listed_without_a_file(jpg_root):
    study_folder(jpg_root, "10000001", "50000001").joinpath("aaaa.jpg").unlink()
    mimic = open_mimic(None, jpg_root)
    assert mimic.by_dicom["aaaa"].image is None


def test_sizes_may_be_blank_or_absent(jpg_root):
    write_metadata(jpg_root, size=("", ""))
    assert open_mimic(None, jpg_root).images[0].size is None
    rows = [(d, subject, study, view) for d, subject, study, view in IMAGES]
    write(jpg_root / "mimic-cxr-2.0.0-metadata.csv.gz", csv("dicom_id,subject_id,study_id,ViewPosition", rows))
    assert open_mimic(None, jpg_root).images[0].size is None


# Reports


def conclusion(mimic, study, subject):
    found = context(read_report(mimic.report_ref(study, subject)))
    return found.impression or found.last_paragraph


def test_reports_as_files_decode_whatever_they_hold(dicom_root):
    mimic = open_mimic(dicom_root, None)
    ref = mimic.report_ref("50000001", "10000001")
    assert ref == ReportRef(str(dicom_root), "files/p10/p10000001/s50000001.txt")
    assert conclusion(mimic, "50000001", "10000001") == "clear"
    assert conclusion(mimic, "50000003", "11000002") == "Caf\ufffd."
    assert mimic.report_ref("50000002", "10000001") is None


@pytest.mark.parametrize("prefix", ["files/", "mimic-cxr-reports/files/"])
def test_reports_in_a_zip_beside_jpgs(jpg_root, prefix):
    write_zip(jpg_root, prefix)
    mimic = open_mimic(None, jpg_root)
    assert conclusion(mimic, "50000001", "10000001") == "clear"
    assert conclusion(mimic, "50000003", "11000002") == "Caf\ufffd."
    assert mimic.report_ref("50000002", "10000001") is None


def test_reports_in_their_own_folder(jpg_root):
    for study in REPORT_OF:
        subject = next(row[1] for row in IMAGES if row[2] == study)
        write(jpg_root / f"mimic-cxr-reports/files/p{subject[:2]}/p{subject}/s{study}.txt", " x\n IMPRESSION: own")
    assert conclusion(open_mimic(None, jpg_root), "50000001", "10000001") == "own"


def test_a_zip_is_enough_beside_the_other_folder(jpg_root, tmp_path):
    write_zip(tmp_path / "dicom")
    mimic = open_mimic(tmp_path / "dicom", jpg_root)
    assert conclusion(mimic, "50000001", "10000001") == "clear"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_readers_of_one_zip_do_not_disturb_each_other(jpg_root):
    write_zip(jpg_root)
    mimic = open_mimic(None, jpg_root)
    refs = [mimic.report_ref("50000001", "10000001"), mimic.report_ref("50000003", "11000002")] * 50
    expected = [read_report(ref) for ref in refs]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_report, refs, chunksize=1) == expected


def test_everything_pickles(jpg_root):
    write_zip(jpg_root)
    mimic = pickle.loads(pickle.dumps(open_mimic(None, jpg_root)))
    ref = pickle.loads(pickle.dumps(mimic.report_ref("50000001", "10000001")))
    assert read_report(ref) == REPORT_OF["50000001"]


def test_unreadable_reports_are_errors_without_paths(jpg_root, tmp_path):
    write(jpg_root / "mimic-cxr-reports.zip", "half a download")
    write_zip(tmp_path / "whole")
    whole = str(tmp_path / "whole")
    member = ReportRef(whole, "mimic-cxr-reports.zip", "files/gone.txt")
    for act in (
        lambda: open_mimic(None, jpg_root).report_ref("50000001", "10000001"),
        lambda: read_report(ReportRef(str(jpg_root), "files/gone.txt")),
        lambda: read_report(member),
    ):
        with pytest.raises(InputError, match="download it again") as caught:
            act()
        assert caught.value.reason == "report_unreadable"
        assert str(tmp_path) not in str(caught.value)


# Labels


def test_labels(jpg_root):
    mimic = open_mimic(None, jpg_root)
    labels = mimic.labels("50000001")
    assert tuple(labels) == CHEXPERT_LABELS
    assert list(labels.values()) == [1, 0, -1, *[-2] * 11]
    assert all(type(value) is int for value in labels.values())
    assert set(mimic.labels("50000002").values()) == {-2}, "no row"
    assert set(mimic.labels("50000003").values()) == {-2}, "a row of blanks"


def test_labels_go_by_name_and_not_by_position(jpg_root):
    write_labels(jpg_root, [("10000001", "50000001", "1.0", *[""] * 13)], labels=CHEXPERT_LABELS[::-1])
    assert open_mimic(None, jpg_root).labels("50000001")["Support Devices"] == 1


def test_other_label_tables_by_request(jpg_root):
    with pytest.raises(InputError, match="test_set label table"):
        open_mimic(None, jpg_root, labels="test_set")
    names = [name.replace("Lung Opacity", "Airspace Opacity") for name in CHEXPERT_LABELS]
    row = ["50000003", *("1.0" if name == "Airspace Opacity" else "0.0" for name in names)]
    write(jpg_root / "mimic-cxr-2.1.0-test-set-labeled.csv", csv(",".join(["study_id", *names]), [row]))
    write_labels(jpg_root, [("11000002", "50000003", *["-1.0"] * 14)], "mimic-cxr-2.0.0-negbio.csv.gz")
    test_set = open_mimic(None, jpg_root, labels="test_set").labels("50000003")
    assert [name for name, value in test_set.items() if value == 1] == ["Lung Opacity"]
    assert set(open_mimic(None, jpg_root, labels="negbio").labels("50000003").values()) == {-1}


# Overrides


def test_overrides(jpg_root, tmp_path):
    rows = [("s50000001", "Recommendations", "", ""), ("50000002", "", 3, 9), ("50000003", "", 0, 0)]
    write(tmp_path / "overrides.csv", csv("study_id,section,start,end", rows))
    assert open_mimic(None, jpg_root, overrides=tmp_path / "overrides.csv").overrides == {
        "50000001": Override(section="recommendations"),
        "50000002": Override(start=3, end=9),
        "50000003": Override(start=0, end=0),
    }
    assert open_mimic(None, jpg_root).overrides == {}


@pytest.mark.parametrize("cells", [("", "", ""), ("note", 1, 2), ("", 5, 2), ("", 5, ""), ("", -4, -2)])
def test_a_bad_override_names_its_row(jpg_root, tmp_path, cells):
    rows = [("50000002", "note", "", ""), ("50000001", *cells)]
    write(tmp_path / "overrides.csv", csv("study_id,section,start,end", rows))
    with pytest.raises(InputError, match=r"overrides table, row 2: .*either a section name or a range"):
        open_mimic(None, jpg_root, overrides=tmp_path / "overrides.csv")


# What cannot be used: the reason, the place, and no id or path in the message


def fails(reason, match, *roots, **options):
    with pytest.raises(InputError, match=match) as caught:
        open_mimic(*roots, **options)
    assert caught.value.reason == reason
    message = str(caught.value)
    secrets = [cell for row in IMAGES for cell in row[:3]] + [str(root) for root in roots if root]
    assert not [secret for secret in secrets if secret in message]
    return message


def test_a_subject_in_two_splits_is_a_leak(jpg_root):
    rows = [(d, study, subject, SPLIT_OF[subject]) for d, subject, study, _ in IMAGES]
    rows[2] = (*rows[2][:3], "validate")
    write_split(jpg_root, rows)
    message = fails("split_leak", "1 of 2 subjects", None, jpg_root)
    assert "row 1 (train) and row 3 (validate)" in message


@pytest.mark.parametrize("value", ["val", "", "50000001"])
def test_a_split_of_another_name(jpg_root, value):
    write_split(jpg_root, [("aaaa", "50000001", "10000001", "train"), ("dddd", "50000003", "11000002", value)])
    fails("bad_split", "MIMIC split table, row 2, column 'split' is none of train, validate, test", None, jpg_root)


def test_an_image_twice_in_a_table(jpg_root):
    write_metadata(jpg_root, [*IMAGES, IMAGES[1]])
    fails("duplicate_id", "MIMIC metadata table, rows 2 and 5 have the same dicom_id", None, jpg_root)


def test_a_study_twice_in_the_labels(jpg_root):
    write_labels(jpg_root, [LABEL_ROWS[1], *LABEL_ROWS])
    fails("duplicate_id", "chexpert label table, rows 1 and 3 have the same study_id", None, jpg_root)


def test_tables_that_disagree(jpg_root):
    write_split(jpg_root, [("aaaa", "50000009", "10000001", "train")])
    fails("table_conflict", "1 of 5 images have different study or subject ids", None, jpg_root)


def test_an_image_in_two_study_folders(dicom_root):
    (dicom_root / "cxr-record-list.csv.gz").unlink()
    write_images(dicom_root, ".dcm", [("aaaa", "10000001", "50000002", "")])
    fails("table_conflict", "from one release", dicom_root, None)


@pytest.mark.parametrize(("column", "cell"), [(1, "x1"), (2, "5000 0001"), (2, ""), (0, "")])
def test_ids_that_are_none(jpg_root, column, cell):
    row = [*IMAGES[3]]
    row[column] = cell
    write_metadata(jpg_root, [*IMAGES[:3], row])
    fails("bad_id", r"MIMIC metadata table, row 4, column '\w+_id'", None, jpg_root)


def test_sizes_that_are_none(jpg_root):
    write_metadata(jpg_root, size=(3056, 0))
    fails("bad_size", "row 1, column 'Columns'", None, jpg_root)
    write_metadata(jpg_root, size=(30.5, 20))
    fails("bad_size", "row 1, column 'Rows'", None, jpg_root)
    write_metadata(jpg_root, size=("tall", 20))
    fails("bad_number", "row 1, column 'Rows'", None, jpg_root)


def test_a_label_of_another_value(jpg_root):
    write_labels(jpg_root, [LABEL_ROWS[0], ("11000002", "50000003", "", "2.0", *[""] * 12)])
    fails("bad_label", "row 2, column 'Cardiomegaly'", None, jpg_root)


def test_a_missing_column(jpg_root):
    write(jpg_root / "mimic-cxr-2.0.0-metadata.csv.gz", csv("dicom_id,subject_id,study_id", []))
    fails("wrong_columns", "MIMIC metadata table has no column 'ViewPosition'", None, jpg_root)


def test_wrong_folders_name_the_cure(jpg_root, tmp_path):
    fails("wrong_folder", "give dicom_root, jpg_root or both", None, None)
    fails("wrong_folder", "MIMIC-CXR folder does not exist", tmp_path / "nowhere", None)
    fails("wrong_folder", "give its subfolder|physionet.org/files", tmp_path / "jpg" / "files" / "p10", None)
    fails("wrong_folder", "give the folder above it", None, jpg_root / "files")
    (tmp_path / "empty").mkdir()
    message = fails("wrong_folder", "folder of the release", tmp_path / "empty", jpg_root)
    assert "mimic-cxr-reports.zip" in message


@pytest.mark.parametrize("above", ["", "physionet.org", "physionet.org/files", "physionet.org/files/mimic-cxr"])
def test_a_parent_folder_is_told_its_subfolder(tmp_path, above):
    release = "physionet.org/files/mimic-cxr/2.0.0"
    write_images(tmp_path / release, ".dcm")
    below = release.removeprefix(above).strip("/")
    fails("wrong_folder", f"give its subfolder {below}$", tmp_path / above, None)
