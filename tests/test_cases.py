"""Which cases any subset of sources gives, and whose image, report, labels and split each has."""

import gzip
import itertools
import shutil
import zipfile

import pandas as pd
import pytest
from recorded import sources_of, tree

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources, collect
from gazeprep.samples import case_context
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT, Context, InputError
from gazeprep.shards import ShardFolder
from gazeprep.sources.table import TableSource

FOLDERS = ("reflacx", "egd", "mimic", "mimic_jpg")
SUBSETS = [subset for n in range(1, 5) for subset in itertools.combinations(FOLDERS, n)]
NO_LABELS = dict.fromkeys(CHEXPERT_LABELS, LABEL_ABSENT)


@pytest.fixture(scope="module")
def images(corpus):
    """The rows of MIMIC's metadata table."""
    return pd.read_csv(corpus.mimic_cxr_jpg / "mimic-cxr-2.0.0-metadata.csv.gz", dtype=str, keep_default_na=False)


@pytest.fixture
def reports_zip(corpus, tmp_path):
    """A folder with MIMIC-CXR's reports alone, zipped as they are released."""
    root = tmp_path / "reports only"
    root.mkdir()
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted((corpus.mimic_cxr / "files").rglob("s*.txt")):
            archive.write(path, path.relative_to(corpus.mimic_cxr))
    return root


@pytest.fixture
def untabled(corpus, tmp_path):
    """A MIMIC-CXR folder with images and reports, but no table."""
    shutil.copytree(corpus.mimic_cxr / "files", tmp_path / "untabled" / "files")
    return tmp_path / "untabled"


def only(corpus, *names):
    return sources_of(corpus, **{name: None for name in FOLDERS if name not in names})


def by_dataset(cases, dataset):
    found = [case for case in cases if case.dataset == dataset]
    assert found
    return found


# --- any subset


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_any_subset_gives_cases_or_says_what_is_missing(corpus, config_of, tmp_path, inline, names):
    sources = only(corpus, *names)
    inputs = collect(sources)
    readings = 14 * ("reflacx" in names) + 4 * ("egd" in names)
    discarded = 2 * ("reflacx" in names)
    if not {"mimic", "mimic_jpg"} & set(names):
        assert (len(inputs.cases), len(inputs.rejected)) == (0, readings)
        with pytest.raises(
            InputError, match=r"image_missing.*REFLACX and EGD-CXR come without images.*MIMIC="
        ) as error:
            build(config_of(tmp_path / "out", sources))
        assert error.value.reason == "no_samples"
        assert not (tmp_path / "out").exists()
        return
    assert len(inputs.rejected) == discarded
    assert sum(case.reading is not None for case in inputs.cases) == readings - discarded
    assert len({case.dicom_id for case in inputs.cases}) == 19  # every image, read or not
    assert {case.image.kind for case in inputs.cases} == {"dicom" if "mimic" in names else "raster"}
    assert all(case.synthetic for case in inputs.cases)


def test_no_source_at_all_is_refused():
    with pytest.raises(ValueError, match="no source is named; give at least one of reflacx, egd, mimic"):
        Sources()


def test_jpg_images_with_zipped_reports(corpus, config_of, tmp_path, inline, reports_zip):
    records = []
    for name, mimic in (("files", corpus.mimic_cxr), ("zip", reports_zip)):
        build(config_of(tmp_path / name, Sources(mimic=mimic, mimic_jpg=corpus.mimic_cxr_jpg, prefer="jpg")))
        folder = ShardFolder(tmp_path / name)
        records.append([folder.sample(key).record for key in folder.index["key"]])
    texts = [[(one["key"], one["findings"], one["impression"]) for one in found] for found in records]
    assert texts[0] == texts[1]
    assert sum(bool(findings) for _, findings, _ in texts[1]) > 10


def test_jpg_images_without_reports_say_so_once_with_counts(corpus):
    noted = collect(only(corpus, "mimic_jpg")).noted
    assert noted["inputs without report"] == 19


def test_images_without_any_table(untabled):
    inputs = collect(Sources(mimic=untabled))
    assert len(inputs.cases) == 19
    assert {case.split_origin for case in inputs.cases} == {"hash"}
    assert inputs.noted["inputs without view position in a table"] == 19
    assert [what for what in inputs.noted if what.startswith("no ")] == [
        "no MIMIC chexpert label table",
        "no MIMIC metadata table",
        "no MIMIC split table",
    ]
    assert all(case.report is not None for case in inputs.cases)


def test_gaze_joins_images_without_any_table(corpus, untabled):
    inputs = collect(Sources(reflacx=corpus.reflacx, mimic=untabled))
    cases = by_dataset(inputs.cases, "reflacx")
    assert {case.split_origin for case in cases} == {"reflacx"}
    assert {case.split_origin for case in inputs.cases} == {"reflacx", "hash"}


@pytest.mark.parametrize(("prefer", "kind"), [("dicom", "dicom"), ("jpg", "raster")])
def test_an_image_that_is_there_twice_is_taken_as_preferred(corpus, prefer, kind):
    assert {case.image.kind for case in collect(sources_of(corpus, prefer=prefer)).cases} == {kind}


def test_the_other_file_stands_in_where_the_preferred_one_is_missing(corpus, tmp_path):
    shutil.copytree(corpus.mimic_cxr, tmp_path / "mimic")
    gone = sorted((tmp_path / "mimic").rglob("*.dcm"))[0]
    gone.unlink()
    kinds = {case.dicom_id: case.image.kind for case in collect(sources_of(corpus, mimic=tmp_path / "mimic")).cases}
    assert kinds.pop(gone.stem) == "raster"
    assert set(kinds.values()) == {"dicom"}


def test_an_image_whose_file_is_nowhere_is_rejected(corpus, tmp_path):
    shutil.copytree(corpus.mimic_cxr_jpg, tmp_path / "jpg")
    gone = sorted((tmp_path / "jpg").rglob("*.jpg"))[0]
    gone.unlink()
    inputs = collect(Sources(mimic_jpg=tmp_path / "jpg"))
    assert [(one.dicom_id, one.reason) for one in inputs.rejected] == [(gone.stem, "image_missing")]


def test_only_the_wanted_views_are_taken_and_the_others_counted(corpus, images):
    inputs = collect(sources_of(corpus, views=("PA", "AP")))
    assert {case.view_position for case in inputs.cases} <= {"PA", "AP"}
    unwanted = set(images.loc[~images["ViewPosition"].isin(["PA", "AP"]), "dicom_id"])
    assert {one.dicom_id for one in inputs.rejected if one.reason == "view_not_wanted"} == unwanted != set()


# --- whose text, labels, split


def test_reports_come_before_a_sources_own_context(corpus):
    with_reports = collect(sources_of(corpus)).cases
    without = collect(only(corpus, "egd", "mimic_jpg")).cases
    for case in by_dataset(with_reports, "egd-cxr"):
        text = case_context(case, None)
        assert text.findings or text.impression or text.last_paragraph
    indications = [case_context(case, None) for case in by_dataset(without, "egd-cxr")]
    assert all(text == Context(indication=text.indication) for text in indications)
    assert any(text.indication for text in indications)


def test_a_sources_own_labels_stand_in_only_where_mimic_has_none(corpus, tmp_path):
    of_mimic = collect(sources_of(corpus)).cases
    own = collect(only(corpus, "egd", "mimic")).cases  # the DICOM release has no label table
    master = pd.read_csv(corpus.egd / "master_sheet.csv").set_index("dicom_id")
    for case in by_dataset(own, "egd-cxr"):
        stated = master.loc[case.dicom_id, "pleural_effusion__chx"]
        assert case.labels["Pleural Effusion"] == (LABEL_ABSENT if pd.isna(stated) else stated)
        assert case.labels != NO_LABELS
    assert all(case.labels == NO_LABELS for case in by_dataset(own, "mimic-cxr"))

    shutil.copytree(corpus.mimic_cxr_jpg, tmp_path / "jpg")
    path = tmp_path / "jpg" / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["Fracture"] = "-1.0"
    table.to_csv(path, index=False)
    changed = collect(sources_of(corpus, mimic_jpg=tmp_path / "jpg")).cases
    assert {case.labels["Fracture"] for case in by_dataset(changed, "egd-cxr")} == {-1}
    assert {case.labels["Fracture"] for case in by_dataset(of_mimic, "egd-cxr")} != {-1}


def test_mimic_split_decides_before_reflacx_before_hash(corpus):
    assert {case.split_origin for case in collect(sources_of(corpus)).cases} == {"mimic-cxr"}
    origins = {case.dataset: set() for case in collect(only(corpus, "reflacx", "mimic")).cases}
    for case in collect(only(corpus, "reflacx", "mimic")).cases:
        origins[case.dataset].add(case.split_origin)
    assert origins["reflacx"] == {"reflacx"}
    assert "hash" in origins["mimic-cxr"]


def test_the_split_of_a_reflacx_row_holds_for_all_images_of_its_subject(corpus):
    cases = collect(only(corpus, "reflacx", "mimic")).cases
    read = {case.subject_id: case.split for case in by_dataset(cases, "reflacx")}
    unread = [case for case in by_dataset(cases, "mimic-cxr") if case.subject_id in read]
    assert unread
    assert all((case.split, case.split_origin) == (read[case.subject_id], "reflacx") for case in unread)


def test_a_subject_in_two_splits_stops_the_build(corpus, tmp_path):
    shutil.copytree(corpus.reflacx, tmp_path / "reflacx")
    path = tmp_path / "reflacx" / "main_data" / "metadata_phase_1.csv"
    path.write_bytes(path.read_bytes().replace(b",train,", b",test,", 1))
    collect(sources_of(corpus, reflacx=tmp_path / "reflacx"))  # MIMIC's table decides, and has no leak
    with pytest.raises(InputError, match=r"1 of 12 subjects stand in two splits \(said by reflacx\)"):
        collect(Sources(reflacx=tmp_path / "reflacx", mimic=corpus.mimic_cxr))


# --- tables beside MIMIC


def test_a_tables_subjects_and_studies_are_not_mimics(corpus, tables, images):
    """Equal numbers mean nothing: neither the split nor the report of MIMIC's study is taken."""
    row = images.iloc[0]
    tables.image("own")
    tables.images[0] += f",{row['study_id']}"
    source = tables.source()
    source.images.write_text(
        f"image_id,path,subject_id,split,study_id\nown,own.png,{row['subject_id']},test,{row['study_id']}\n"
    )
    cases = collect(sources_of(corpus, table=source)).cases
    (own,) = by_dataset(cases, "table-own")
    assert (own.split, own.split_origin, own.report, own.labels) == ("test", "source", None, NO_LABELS)
    assert {case.split for case in cases if case.dicom_id == row["dicom_id"]} == {"train"}


def test_a_table_may_read_an_image_and_leave_another_unread(tables):
    for name in ("read", "unread"):
        tables.image(name)
    tables.reading("reader-a", "read")
    tables.reading("reader-b", "read")
    cases = collect(Sources(table=tables.source())).cases
    assert sorted((case.dicom_id, case.reading_id) for case in cases) == [
        ("read", "reader-a"),
        ("read", "reader-b"),
        ("unread", ""),
    ]


def test_a_reading_named_like_another_image_is_refused(tables):
    tables.image("one")
    tables.image("two")
    tables.reading("two", "one")
    with pytest.raises(InputError, match=r"1 keys stand twice .* give each its own") as error:
        collect(Sources(table=tables.source()))
    assert error.value.reason == "duplicate_key"


def test_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "images.csv").write_text("image_id,path,subject_id\n")
    with pytest.raises(InputError, match="no reading and no image"):
        collect(Sources(table=TableSource(tmp_path / "images.csv")))


# --- order


def test_the_order_of_rows_in_the_tables_changes_no_byte(corpus, config_of, tmp_path, inline, shards):
    copies = {}
    for name in ("reflacx", "egd", "mimic_jpg"):
        folder = getattr(sources_of(corpus), name)
        shutil.copytree(folder, tmp_path / name)
        copies[name] = tmp_path / name
    shuffled = [
        *(tmp_path / "reflacx" / "main_data").glob("metadata_*.csv"),
        tmp_path / "egd" / "master_sheet.csv",
        *(tmp_path / "mimic_jpg").glob("*.csv.gz"),
    ]
    for path in shuffled:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.sample(frac=1, random_state=0).to_csv(path, index=False)
    build(config_of(tmp_path / "out", sources_of(corpus, **copies)))
    assert tree(tmp_path / "out") == tree(shards)


def test_gzipped_and_plain_tables_say_the_same(corpus, tmp_path):
    shutil.copytree(corpus.mimic_cxr_jpg, tmp_path / "jpg")
    for path in (tmp_path / "jpg").glob("*.csv.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    keys = [
        [case.key for case in collect(sources_of(corpus, mimic_jpg=root)).cases]
        for root in (tmp_path / "jpg", corpus.mimic_cxr_jpg)
    ]
    assert keys[0] == keys[1]


def test_a_dicom_header_tells_the_view_where_no_table_does(corpus, images, inline, tmp_path):
    build(BuildConfig(out=tmp_path, sources=Sources(mimic=corpus.mimic_cxr)))
    index = ShardFolder(tmp_path).index
    told = dict(zip(images["dicom_id"], images["ViewPosition"], strict=True))
    assert [told[dicom] for dicom in index["dicom"]] == list(index["view_position"])
    assert "PA" in set(index["view_position"])
