"""Earlier studies: which one is the last before another, and what of its report a sample gets."""

import gzip
import itertools
import json
import os
import random
import shutil
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from recorded import SMALL, sources_of, tree

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources, collect
from gazeprep.cli import main
from gazeprep.lint import lint
from gazeprep.merge import merge
from gazeprep.priors import last_before
from gazeprep.report import ReportConfig, report_page
from gazeprep.samples import MapConfig
from gazeprep.schema import InputError, PriorContext
from gazeprep.selection import select
from gazeprep.shards import ShardFolder
from gazeprep.synthetic import read_truth, write_corpus
from gazeprep.synthetic.cast import role_of
from gazeprep.synthetic.earlier import comparisons, earlier_findings
from gazeprep.synthetic.findings import DEVICES, draw_findings
from gazeprep.synthetic.model import Settings, make_subject

ASKED = replace(SMALL, prior=True, maps=MapConfig((3, 3)))
HOUR = 3_600_000


def priors_of(*images):
    """The earlier studies by study, of images (subject, study, hour); and which studies are undated and tied."""
    table = pd.DataFrame(images, columns=["subject_id", "study_id", "began_ms"]).astype({"began_ms": float})
    found = last_before(table.assign(began_ms=table["began_ms"] * HOUR))
    named = {study: (one.study_id, one.days) for (_, study), one in found.of_study.items()}
    return named, {study for _, study in found.undated}, {study for _, study in found.tied}


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        ([("a", "1", 0), ("a", "2", 24), ("a", "3", 72)], {"2": ("1", 1.0), "3": ("2", 2.0)}),
        ([("a", "1", 72), ("a", "2", 0)], {"1": ("2", 3.0)}),
        ([("a", "1", 6), ("a", "2", 12)], {"2": ("1", 0.25)}),
        ([("a", "1", 0), ("b", "2", 24)], {}),
        ([("a", "1", 0), ("a", "1", 24)], {}),
        ([("a", "1", 0), ("a", "1", 48), ("a", "2", 24)], {"2": ("1", 1.0)}),
        ([("a", "1", 24), ("a", "2", 24)], {}),
        ([("a", "1", 0), ("a", "2", 24), ("a", "3", 24)], {"2": ("1", 1.0), "3": ("1", 1.0)}),
        ([], {}),
    ],
    ids=[
        "the last of two", "whatever the order of rows", "the same day", "another subject", "two images of a study",
        "from the first image of each", "the same time", "both of a time after a third", "no study",
    ],
)  # fmt: skip
def test_the_last_study_before(images, wanted):
    assert priors_of(*images) == (wanted, set(), set())


def test_an_unknown_time_puts_a_study_nowhere():
    images = [("a", "1", 0), ("a", "2", None), ("a", "3", 24), ("a", "3", None)]
    assert priors_of(*images) == ({"3": ("1", 1.0)}, {"2"}, set())


def test_of_several_last_ones_at_one_time_none_is_taken():
    images = [("a", "1", 0), ("a", "2", 24), ("a", "3", 24), ("a", "4", 48), ("a", "5", 72)]
    assert priors_of(*images) == ({"2": ("1", 1.0), "3": ("1", 1.0), "5": ("4", 1.0)}, set(), {"4"})


def test_any_corpus_of_studies_against_a_search_of_all_pairs():
    draw = random.Random(7)
    images = [
        (draw.choice("abcd"), str(number // 2), draw.choice([None, *range(12)]) if draw.random() < 0.9 else None)
        for number in range(160)
    ]
    images = [(f"{'abcd'[int(study) % 4]}", study, hour) for _, study, hour in images]
    began = {}
    for subject, study, hour in images:
        if hour is not None:
            began[subject, study] = min(hour, began.get((subject, study), hour))
    wanted = {}
    for (subject, study), hour in began.items():
        before = [(h, s) for (person, s), h in began.items() if person == subject and h < hour]
        last = [s for h, s in before if h == max(before)[0]]
        if len(last) == 1:
            wanted[study] = (last[0], (hour - max(before)[0]) / 24)
    assert len(wanted) > 20
    assert priors_of(*images)[0] == wanted


# --- MIMIC-CXR's tables, written out

HEADER = "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime"
# The second image of 50000003 was taken three seconds after the first; 50000004 has no file.
ROWS = """\
aa,10000001,50000001,PA,40,30,21800506,93000.5
bb,10000001,50000002,AP,40,30,21800506,1014.25
cc,10000001,50000003,PA,40,30,21800508,93000.5
dd,10000001,50000003,LATERAL,40,30,21800508,93003.5
ee,10000001,50000004,PA,40,30,21800601,0.0
ff,10000001,50000005,AP,40,30,21810601,235959.999
gg,11000002,50000006,PA,40,30,21790101,120000.0
hh,12000003,50000007,PA,40,30,,120000.0
ii,12000003,50000008,PA,40,30,21790102,
jj,13000004,50000009,PA,40,30,21790101,120000.0
kk,13000004,50000010,PA,40,30,21790101,120000.0
ll,13000004,50000011,PA,40,30,21790103,120000.0
"""
SPLIT_OF = {"10000001": "train", "11000002": "test", "12000003": "train", "13000004": "validate"}
FINAL = "                                 FINAL REPORT\n"
REPORTS = {
    "50000001": (
        f"{FINAL} INDICATION:  Cough.\n \n FINDINGS: \n \n Small left\n effusion.\n \n IMPRESSION: \n \n Effusion.\n"
    ),
    "50000002": f"{FINAL} FINDINGS: \n \n \n IMPRESSION: \n \n Clear.\n",
    "50000004": (
        f"{FINAL} ADDENDUM:  Discussed by telephone.\n \n {'_' * 78}\n{FINAL} FINDINGS: \n \n Gone.\n \n"
        " IMPRESSION: \n \n No effusion.\n"
    ),
    "50000003": f"{FINAL} INDICATION:  Fever.\n \n Larger effusion.\n",
    "50000005": f"{FINAL} FINDINGS: \n \n New mass.\n",
    "50000010": f"{FINAL} FINDINGS: \n \n Nobody's earlier study.\n",
}
WANTED = {
    "50000001": PriorContext("50000002", (9 * 3600 + 30 * 60 + 0.5 - 10 * 60 - 14.25) / 86_400, "", "Clear.", ""),
    "50000003": PriorContext("50000001", 2.0, "Small left effusion.", "Effusion.", ""),
    "50000005": PriorContext("50000004", 365 + 86_399.999 / 86_400, "Gone.", "No effusion.", ""),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def study_folder(root, subject, study):
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"


def write_metadata(root, rows, header=HEADER):
    write(root / "mimic-cxr-2.0.0-metadata.csv.gz", gzip.compress(f"{header}\n{rows}".encode()))


def write_mimic(root, rows=ROWS, header=HEADER):
    """Write images, reports and tables of these rows of the metadata table; ee has no image file."""
    write_metadata(root, rows, header)
    splits = ["dicom_id,study_id,subject_id,split"]
    for row in rows.splitlines():
        dicom, subject, study = row.split(",")[:3]
        splits.append(f"{dicom},{study},{subject},{SPLIT_OF[subject]}")
        if dicom != "ee":
            gray = np.full((40, 30), ord(dicom[0]), np.uint8)
            write(study_folder(root, subject, study) / f"{dicom}.jpg", cv2.imencode(".jpg", gray)[1].tobytes())
        if study in REPORTS:
            write(study_folder(root, subject, study).with_name(f"s{study}.txt"), REPORTS[study].encode())
    write(root / "mimic-cxr-2.0.0-split.csv", "\n".join([*splits, ""]).encode())
    return root


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    """A MIMIC-CXR-JPG folder of these studies. Read only."""
    return write_mimic(tmp_path_factory.mktemp("dated") / "mimic")


@pytest.fixture
def own(mimic, tmp_path):
    """The same, which a test may change."""
    return Path(shutil.copytree(mimic, tmp_path / "own"))


def config(out, root, sample=ASKED, **changes):
    return BuildConfig(out, Sources(mimic_jpg=root), sample, **{"shard_samples": 64, "executor": "inline", **changes})


@pytest.fixture(scope="module")
def asked(mimic, tmp_path_factory):
    """Shards of the folder with earlier studies. Read only."""
    out = tmp_path_factory.mktemp("asked") / "out"
    build(config(out, mimic))
    return out


def records(out):
    folder = ShardFolder(out)
    return [folder.sample(key).record for key in folder.index["key"]]


def prior_of(record):
    return PriorContext(**{name: record[name] for name in asdict(PriorContext())})


def by_study(out):
    return {record["study_id"]: prior_of(record) for record in records(out)}


# --- what a sample gets


def test_each_sample_tells_of_the_last_study_before(asked):
    found = by_study(asked)
    assert set(found) == {f"500000{number:02}" for number in range(1, 12) if number != 4}
    for study, prior in found.items():
        assert prior == WANTED.get(study, PriorContext()), study


def test_every_record_has_the_same_keys_and_types(asked):
    kinds = [{name: type(value) for name, value in record.items()} for record in records(asked)]
    assert all(kind == kinds[0] for kind in kinds)
    assert kinds[0]["prior_days"] is float
    assert {record["schema_version"] for record in records(asked)} == {2}


def test_a_prior_is_of_the_same_subject_and_split(asked, mimic):
    index = ShardFolder(asked).index.drop_duplicates("study").set_index("study")
    told = [(record["subject_id"], record["split"], record["prior_study"]) for record in records(asked)]
    known = [(subject, split, prior) for subject, split, prior in told if prior in index.index]
    assert len(known) == 3
    assert [(subject, split) for subject, split, _ in known] == [
        tuple(index.loc[prior, ["subject", "split"]]) for *_, prior in known
    ]
    assert {prior for *_, prior in told} - {""} - set(index.index) == {"50000004"}  # which has no image in the build


def test_what_has_no_earlier_study_is_counted(mimic):
    noted = collect(Sources(mimic_jpg=mimic), prior=True).noted
    assert {what: count for what, count in noted.items() if "study" in what} == {
        "inputs whose study has no date or time": 2,
        "inputs before whose study several began last, at the same time": 1,
        "inputs without an earlier study": 4,
    }
    assert not any("earlier" in what or "date" in what for what in collect(Sources(mimic_jpg=mimic)).noted)


def test_an_earlier_study_without_report_is_told_and_counted(own, tmp_path):
    study_folder(own, "10000001", "50000004").with_name("s50000004.txt").unlink()
    report = build(config(tmp_path / "out", own))
    assert report.noted["inputs whose earlier study has no report"] == 1
    assert by_study(tmp_path / "out")["50000005"] == PriorContext("50000004", WANTED["50000005"].prior_days)


def test_the_last_paragraph_stands_in_for_sections(own, tmp_path):
    rows = ROWS.replace("ee,10000001,50000004,PA,40,30,21800601", "ee,10000001,50000004,PA,40,30,21820601")
    write_metadata(own, rows)
    build(config(tmp_path / "out", own))
    prior = by_study(tmp_path / "out")["50000005"]
    assert (prior.prior_study, prior.prior_findings, prior.prior_impression) == ("50000003", "", "")
    assert prior.prior_last_paragraph == "Larger effusion."


def test_a_view_that_is_not_wanted_can_be_the_earlier_study(mimic, tmp_path):
    chosen = config(tmp_path / "out", mimic)
    build(replace(chosen, sources=replace(chosen.sources, views=("PA",))))
    found = by_study(tmp_path / "out")
    assert "50000002" not in found
    assert found["50000001"] == WANTED["50000001"]


def test_an_overridden_report_is_so_as_the_earlier_one_too(mimic, tmp_path):
    overrides = tmp_path / "overrides.csv"
    overrides.write_text("study_id,section,start,end\n50000001,indication,,\n")
    chosen = config(tmp_path / "out", mimic)
    build(replace(chosen, sources=replace(chosen.sources, section_overrides=overrides)))
    days = WANTED["50000003"].prior_days
    assert by_study(tmp_path / "out")["50000003"] == PriorContext("50000001", days, "", "Cough.", "")


def test_zipped_reports_are_read_too(own, asked, tmp_path):
    with zipfile.ZipFile(own / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted(own.rglob("s*.txt")):
            archive.write(path, path.relative_to(own))
            path.unlink()
    build(config(tmp_path / "out", own))
    assert by_study(tmp_path / "out") == by_study(asked)


# --- MIMIC-Eye


def test_mimic_eye_has_them_by_the_same_rule(asked, tmp_path):
    """Its tables have an index column, and pandas has made floats of columns with blanks."""
    root = tmp_path / "mimic-eye"
    for subject, rows in itertools.groupby(ROWS.splitlines(), lambda row: row.split(",")[1]):
        patient, lines = root / f"patient_{subject}", [f",{HEADER},stay_id"]
        for number, row in enumerate(rows):
            dicom, _, study, *_, date, clock = row.split(",")
            lines.append(f"{number},{row.removesuffix(f'{date},{clock}')}{date and f'{date}.0'},{clock},")
            if dicom != "ee":
                write(
                    patient / "CXR-JPG" / f"s{study}" / f"{dicom}.jpg",
                    cv2.imencode(".jpg", np.eye(40) * 99)[1].tobytes(),
                )
            if study in REPORTS:
                write(patient / "CXR-DICOM" / f"s{study}.txt", REPORTS[study].encode())
        write(patient / "CXR-JPG" / "cxr_meta.csv", "\n".join([*lines, ""]).encode())
        write(
            patient / "REFLACX" / "metadata.csv",
            b",id,split,eye_tracking_data_discarded,image,dicom_id,subject_id,image_size_x,image_size_y\n",
        )
    build(replace(config(tmp_path / "out", root), sources=Sources(mimic_eye=root)))
    assert by_study(tmp_path / "out") == by_study(asked)


# --- bytes


def test_only_the_json_differs_from_a_build_without(mimic, asked, tmp_path):
    build(config(tmp_path / "off", mimic, replace(ASKED, prior=False)))
    on, off = ShardFolder(asked), ShardFolder(tmp_path / "off")
    assert on.keys() == off.keys()
    for key in on.index["key"]:
        assert [on.member(key, role) == off.member(key, role) for role in ("image", "gaze", "maps")] == [True] * 3
        with_prior, without = on.sample(key).record, off.sample(key).record
        assert with_prior.keys() - without.keys() == asdict(PriorContext()).keys()
        assert without == {**{name: with_prior[name] for name in without}, "schema_version": 1}


@pytest.mark.parametrize("shard_samples", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_rows_in_another_order_on_two_workers_give_the_same_bytes(own, mimic, tmp_path, shard_samples):
    build(config(tmp_path / "one", mimic, shard_samples=shard_samples))
    write_mimic(own, "".join(reversed(ROWS.splitlines(keepends=True))))
    executor = "local" if shard_samples == 4 else "inline"
    build(config(tmp_path / "other", own, shard_samples=shard_samples, workers=2, executor=executor))
    assert tree(tmp_path / "other") == tree(tmp_path / "one")


def test_switching_it_changes_all_and_decodes_no_picture_again(own, asked, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(config(out, own, replace(ASKED, prior=False)))
    monkeypatch.setattr("gazeprep.samples.read_image", None)
    assert build(config(out, own)).rebuilt == 3
    assert tree(out) == tree(asked)
    assert build(config(out, own)).rebuilt == 0


def test_a_changed_earlier_report_builds_the_later_study_again(own, tmp_path):
    out = tmp_path / "out"
    build(config(out, own, shard_samples=1))
    path = study_folder(own, "10000001", "50000004").with_name("s50000004.txt")  # of which no sample is made
    path.write_text(REPORTS["50000004"].replace("Gone.", "Smaller."))
    os.utime(path, ns=(0, 1))
    assert build(config(out, own, shard_samples=1)).rebuilt == 1
    assert by_study(out)["50000005"].prior_findings == "Smaller."
    path.unlink()
    assert build(config(out, own, shard_samples=1)).rebuilt == 1
    assert by_study(out)["50000005"].prior_findings == ""


def test_a_changed_date_builds_the_later_study_again(own, tmp_path):
    out = tmp_path / "out"
    build(config(out, own, shard_samples=1))
    write_metadata(own, ROWS.replace("21800601,0.0", "21800602,0.0"))
    assert build(config(out, own, shard_samples=1)).rebuilt == 1
    assert by_study(out)["50000005"].prior_days == pytest.approx(WANTED["50000005"].prior_days - 1)


# --- lint, merge, select


def test_lint_finds_nothing_wrong(asked):
    assert lint(asked, workers=1).problems == ()


@pytest.mark.parametrize("asked_for", [True, False])
def test_lint_tells_a_manifest_that_says_otherwise_than_its_version(asked, mimic, tmp_path, asked_for):
    out = tmp_path / "out"
    build(config(out, mimic, replace(ASKED, prior=asked_for)))
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["config"]["sample"]["prior"] = not asked_for
    (out / "dataset.json").write_text(json.dumps(manifest))
    assert [problem.kind for problem in lint(out, workers=1).problems] == ["manifest"]


def test_lint_reads_the_manifest_of_a_build_of_before(mimic, tmp_path):
    out = tmp_path / "out"
    build(config(out, mimic, replace(ASKED, prior=False)))
    forget_the_option(out)
    assert lint(out, workers=1).problems == ()


def forget_the_option(out):
    manifest = json.loads((out / "dataset.json").read_text())
    del manifest["config"]["sample"]["prior"]
    (out / "dataset.json").write_text(json.dumps(manifest))


def halves(mimic, tmp_path, *samples):
    """Builds of two patients each, under these options."""
    outs = []
    for number, (kept, sample) in enumerate(zip((("10", "11"), ("12", "13")), samples, strict=True)):
        rows = "".join(row for row in ROWS.splitlines(keepends=True) if row.split(",")[1][:2] in kept)
        build(config(tmp_path / f"out{number}", write_mimic(tmp_path / f"half{number}", rows), sample))
        outs.append(tmp_path / f"out{number}")
    return outs


def test_merge_joins_builds_with_earlier_studies(mimic, asked, tmp_path):
    merge(halves(mimic, tmp_path, ASKED, ASKED), tmp_path / "all")
    assert by_study(tmp_path / "all") == by_study(asked)
    assert lint(tmp_path / "all", workers=1).problems == ()
    select(tmp_path / "all", tmp_path / "some", "split == 'train'")
    assert lint(tmp_path / "some", workers=1).problems == ()


def test_merge_refuses_to_mix_and_takes_a_build_of_before_as_one_without(mimic, tmp_path):
    without = replace(ASKED, prior=False)
    first, second = halves(mimic, tmp_path, without, ASKED)
    with pytest.raises(ValueError, match=r"sample\.prior is False in folder 1 of 2 and True in folder 2 of 2"):
        merge([first, second], tmp_path / "all")
    shutil.rmtree(second)
    build(config(second, tmp_path / "half1", without))
    forget_the_option(first)
    merge([first, second], tmp_path / "all")
    assert lint(tmp_path / "all", workers=1).problems == ()


def test_the_page_of_a_folder_shows_the_earlier_report_unless_redacted(asked):
    told = ("Small left effusion.", "2 days before")
    for redact in (False, True):
        page = report_page(ShardFolder(asked), ReportConfig(cases=12, redact=redact))
        assert [text in page for text in told] == [not redact] * 2


# --- what cannot be used


def test_a_metadata_table_without_rows_dates_nothing(own):
    write_metadata(own, "")
    noted = collect(Sources(mimic_jpg=own), prior=True).noted
    assert noted["inputs whose study has no date or time"] == 11
    for path in own.glob("*.csv"):
        path.unlink()
    for path in own.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match="the sources name no reading and no image"):
        collect(Sources(mimic_jpg=own), prior=True)


def test_a_build_without_dates_is_refused(own, tables, tmp_path):
    def fails(sources, reason, match):
        with pytest.raises(InputError, match=match) as error:
            build(replace(config(tmp_path / "out", own), sources=sources))
        assert error.value.reason == reason

    tables.image("one")
    fails(Sources(table=tables.source()), "file_missing", "sample.prior needs the dates of MIMIC-CXR's studies; name")
    write_metadata(own, ROWS, HEADER.replace("StudyTime", "Time"))
    fails(Sources(mimic_jpg=own), "wrong_columns", "MIMIC metadata table has no column 'StudyTime'")
    (own / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    fails(Sources(mimic_jpg=own), "file_missing", "sample.prior needs the dates of MIMIC's metadata table")


@pytest.mark.parametrize(
    ("date", "clock", "told"),
    [
        ("21800230", "120000.0", "column 'StudyDate' is no day YYYYMMDD"),
        ("2180", "120000.0", "column 'StudyDate' is no day"),
        ("21800506.5", "120000.0", "column 'StudyDate' is no day"),
        ("-21800506", "120000.0", "column 'StudyDate' is no day"),
        ("1e30", "120000.0", "column 'StudyDate' is no day"),
        ("21800506", "240000.0", "column 'StudyTime' is no time HHMMSS.fff"),
        ("21800506", "126100", "column 'StudyTime' is no time"),
        ("21800506", "-1", "column 'StudyTime' is no time"),
    ],
)
def test_dates_that_are_none(own, date, clock, told):
    write_metadata(own, ROWS.replace("21800601,0.0", f"{date},{clock}"))
    with pytest.raises(InputError, match=told) as error:
        collect(Sources(mimic_jpg=own), prior=True)
    assert error.value.reason == "bad_date"
    assert "row 5," in str(error.value)
    assert len(collect(Sources(mimic_jpg=own)).cases) == 11  # nobody asked for dates


def test_an_unreadable_earlier_report_rejects_the_sample_and_names_nobody(own, tmp_path, capsys):
    path = study_folder(own, "10000001", "50000004").with_name("s50000004.txt")
    path.unlink()
    path.mkdir()
    options = ["--sources.mimic_jpg", str(own), "--sample.prior", "true", "--sample.maps.grid", "[3, 3]"]
    assert main(["build", "--out", str(tmp_path / "out"), *options, "--executor", "inline"]) == 0
    said = "".join(capsys.readouterr())
    rejected = pd.read_parquet(tmp_path / "out" / "rejected.parquet").set_index("study_id")
    assert rejected.loc["50000005", "reason"] == "report_unreadable"
    assert rejected.loc["50000005", "detail"].startswith("of the earlier study: a report")
    secrets = [row.split(",")[i] for row in ROWS.splitlines() for i in (1, 2, 6)] + [str(own), "effusion", "mass"]
    assert [secret for secret in secrets if secret and secret in said] == []
    assert [secret for secret in secrets if secret and secret in (tmp_path / "out/dataset.json").read_text()] == []


# --- synthetic subjects with an earlier study


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Four synthetic subjects, each with a study before the others. Read only."""
    return write_corpus(tmp_path_factory.mktemp("compared") / "corpus", 4, earlier=1.0)


def test_a_synthetic_earlier_study_leaves_images_and_gaze_alone(compared, corpus):
    """The corpus without begins with the same four subjects."""
    kept = {path.relative_to(compared.out) for path in compared.out.rglob("*") if path.is_file()}
    same = {path for path in kept if path.suffix in (".dcm", ".jpg", ".json") and (corpus.out / path).exists()}
    same |= {path for path in kept if "main_data" in path.parts and path.parent.name.startswith("P")}
    same -= {path for path in same if path.name == "SYNTHETIC.json"}
    assert len(same) > 50
    assert all((compared.out / path).read_bytes() == (corpus.out / path).read_bytes() for path in same)
    assert len({path.parent for path in kept - same if path.suffix == ".dcm"}) == 4


def test_the_share_of_subjects_with_an_earlier_study(tmp_path):
    subjects = [make_subject(Settings(earlier=0.5), role_of(0, index)) for index in range(12)]
    more = sum(len(subject.studies) - subject.role.studies for subject in subjects)
    assert 0 < more < 12
    with pytest.raises(InputError, match=r"the share of earlier studies is 1\.5, must be from 0 to 1"):
        write_corpus(tmp_path / "none", 1, earlier=1.5)


def test_the_later_report_tells_what_became_of_the_findings():
    draw, told = np.random.default_rng(3), set()
    for _ in range(200):
        now = draw_findings(draw, (), 0.2)
        before = earlier_findings(draw, now)
        grade = {finding.name: finding.severity for finding in before}
        seen = {finding.name: finding.severity for finding in now}
        wanted = ["is new" if name not in grade else
                  "has increased" if seen[name] > grade[name] else
                  "has decreased" if seen[name] < grade[name] else "is unchanged"
                  for name in seen if name.split("_")[0] not in DEVICES]  # fmt: skip
        wanted += ["has resolved" for name in grade if name not in seen]
        said = [statement.text for statement in comparisons(before, now)]
        assert len(said) == len(wanted)
        assert all(change in text for change, text in zip(wanted, said, strict=True)), said
        told |= set(wanted)
    assert len(told) == 5


def test_synthetic_samples_have_the_earlier_report(compared, tmp_path):
    sources = sources_of(compared, prefer="jpg")
    build(
        BuildConfig(tmp_path / "out", sources, replace(ASKED, maps=MapConfig((3, 3), px_per_deg=30)), executor="inline")
    )
    assert lint(tmp_path / "out", workers=1).problems == ()
    shown = read_truth(compared.out).findings.groupby("study_id")["finding"].agg(set)
    told = [record for record in records(tmp_path / "out") if record["prior_study"]]
    assert len({record["subject_id"] for record in told}) == 4
    assert any(record["has_gaze"] for record in told)
    for record in told:
        assert record["prior_findings"] != record["findings"]
        before = shown.get(int(record["prior_study"]), set())
        for name in shown.get(int(record["study_id"]), set()) - before:
            kind = name.split("_")[0]
            assert kind in DEVICES or "is new since the prior study" in record["findings"]
        assert 0 < record["prior_days"] < 2 * 366
