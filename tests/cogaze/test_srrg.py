"""SRRG's folders to targets of training: which study a row is of, what is left out, what the script prints."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from twins import srrg as twin

from cogaze.data.dataset import read_table
from cogaze.data.lines import PlainScript
from cogaze.data.srrg import SCHEMA, Named, read_srrg, study_of, write_targets
from cogaze.data.targets import TargetConfig, read_targets
from cogaze.evaluate.reports.structured import IMPRESSION, ORGANS, parse, serialize
from gazeprep.shards import ShardFolder

PIPELINE = Path(__file__).parents[2] / "pipelines" / "srrg_targets.py"


def row(study, findings="Pleura:\n- No effusion.", **changes):
    """Return an invented row of one MIMIC-CXR study."""
    paths = [f"files/p10/p10000001/s{study}/0a0b.jpg"]
    return {"id": f"mimic-{study}", "image_paths": paths, "findings_section": findings, **changes}


def write(root, **parts):
    for split, rows in parts.items():
        twin.write_part(root, split, rows)
    return root


@pytest.fixture(scope="module")
def records(shards):
    folder = ShardFolder(shards)
    return [json.loads(folder.member(key, "json")) for key in folder.keys()]  # noqa: SIM118


def test_every_study_of_the_shards_gets_its_report_below_organs(records, tmp_path):
    twin.write_srrg(tmp_path, records, extra=[("train", twin.chexpert_row(1)), ("test", twin.chexpert_row(2))])
    found = read_srrg(tmp_path, "findings")
    written = {one["study_id"]: one for one in records if one["findings"]}
    assert set(found.texts) == set(written)
    assert found.rows == len(found.texts) + sum(found.left_out.values())
    assert found.left_out["of CheXpert"] == 2
    for study, text in found.texts.items():
        said = [sentence for bullets in parse(text).sections.values() for sentence in bullets]
        assert sorted(said) == sorted(twin.sentences(written[study]["findings"]))
        assert found.splits[study] == written[study]["split"]
    assert {heading for text in found.texts.values() for heading in parse(text).sections} <= set(ORGANS)


def test_impressions_are_numbered(records, tmp_path):
    twin.write_srrg(tmp_path, records)
    texts = read_srrg(tmp_path, "impression").texts
    several = next(one for one in records if one["impression"].startswith("1."))
    said = parse(texts[several["study_id"]], "impression").sections[IMPRESSION]
    assert len(said) > 1
    assert all(one in several["impression"] for one in said)


def test_the_table_is_what_training_reads(tmp_path):
    write(tmp_path, train=[row(50000002), row(50000001, "Other:\n- x")], validate=[], test=[])
    found = read_srrg(tmp_path, "findings")
    write_targets(found, tmp_path / "out/targets.parquet")
    table = pq.read_table(tmp_path / "out/targets.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {"study_id": "50000001", "split": "train", "text": "Other:\n- x"},
        {"study_id": "50000002", "split": "train", "text": "Pleura:\n- No effusion."},
    ]


def test_training_on_the_table_writes_structured_reports_of_its_studies_alone(records, shards, tmp_path):
    train = [one for one in records if one["split"] == "train" and one["findings"]]
    twin.write_srrg(tmp_path, [one for one in train if one["study_id"] != train[0]["study_id"]])
    write_targets(read_srrg(tmp_path, "findings"), tmp_path / "targets.parquet")
    config = TargetConfig(table=str(tmp_path / "targets.parquet"), images="all")
    text = read_targets(shards, read_table(shards, "train"), config, empty=True).text
    expected = {one["key"]: twin.structured_findings(one["findings"]) for one in records if one["split"] == "train"}
    of_first = {one["key"] for one in records if one["study_id"] == train[0]["study_id"]}
    assert text == {key: "" if key in of_first else said for key, said in expected.items()}


@pytest.mark.parametrize("tokenizer", ["bytepair"], indirect=True)
def test_lines_survive_the_tokens_of_gpt_2s_kind(tokenizer):
    script = PlainScript(tokenizer, 200)
    text = serialize({"Pleura": ["Clear.", "No 4-mm air."], "Other": ["Cough."]})
    assert script.read(script.taught(["key"], [text]).labels) == [text]


@pytest.mark.parametrize(
    ("row_id", "paths", "expected"),
    [
        ("mimic-50000001", [], Named("50000001")),
        ("mimic_p10000001_s50000001", [], Named("50000001")),
        ("7", ["a/files/p10/p10000001/s50000001/x.jpg", "p10/s50000001/y.jpg"], Named("50000001")),
        ("mimic-50000001", ["s50000002/x.jpg"], Named(why_none="of several studies")),
        ("mimic", ["s50000001/x.jpg", "s50000002/x.jpg"], Named(why_none="of several studies")),
        ("chexpert-50000001", [], Named(why_none="of CheXpert")),
        ("7", ["train/patient00001/study1/view1_frontal.jpg"], Named(why_none="of CheXpert")),
        ("mimic-10000001", ["xs50000001/x.jpg"], Named(why_none="of no study that is named")),
    ],
)
def test_a_row_is_of_the_study_that_its_pictures_or_its_id_name(row_id, paths, expected):
    assert study_of(row_id, paths) == expected


def test_all_that_is_left_out_is_counted_by_reason(tmp_path):
    first = [row(50000001), row(50000002, None), row(50000003, "Clear."), row(None, id=None, image_paths=None)]
    write(tmp_path, test=[row(50000001, "Other:\n- kept")], train=[*first, twin.chexpert_row(3)])
    found = read_srrg(tmp_path, "findings")
    assert found.texts == {"50000001": "Other:\n- kept"}  # of two parts, the test part keeps a study
    assert dict(found.left_out) == {
        "of a study that another row has": 1,
        "without text": 1,
        "without bullets below a heading": 1,
        "of no study that is named": 1,
        "of CheXpert": 1,
    }
    assert found.rows == 6


def test_parts_that_are_not_asked_for_are_not_read(tmp_path):
    write(tmp_path, test_reviewed=[row(50000001)], test=[row(50000001), row(50000002)], train=[row(50000003)])
    found = read_srrg(tmp_path, "findings", splits=("test",))
    assert (found.splits, found.rows) == ({"50000001": "test", "50000002": "test"}, 2)


def test_lost_pieces_depend_on_the_rules(tmp_path):
    write(tmp_path, train=[row(50000001, "Pleura:\n- a\nwrapped\nOther:\n- b")])
    official, tolerant = (read_srrg(tmp_path, "findings", rules) for rules in ("official", "tolerant"))
    assert official.texts == {"50000001": "Other:\n- b"}
    assert official.lost == {"cut by an unknown line": 1, "unknown line": 1}
    assert tolerant.texts == {"50000001": "Pleura:\n- a wrapped\n\nOther:\n- b"}
    assert not tolerant.lost


def broken(root, columns):
    (root / "data").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "data/train-00000-of-00001.parquet")


def test_files_that_are_not_srrg_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no data/<split>-00000-of-00001"):
        read_srrg(tmp_path, "findings")
    broken(tmp_path / "a", {"id": ["mimic-50000001"]})
    with pytest.raises(ValueError, match="lacks the column image_paths, findings_section"):
        read_srrg(tmp_path / "a", "findings")
    broken(tmp_path / "b", {"id": ["x"], "image_paths": ["s50000001/x.jpg"], "findings_section": ["x"]})
    with pytest.raises(ValueError, match="column image_paths holds string"):
        read_srrg(tmp_path / "b", "findings")
    twin.write_part(tmp_path / "c", "train", [row(50000001)], 0, 2)
    with pytest.raises(ValueError, match="1 files of train, which has 2"):
        read_srrg(tmp_path / "c", "findings")
    twin.write_part(tmp_path / "d", "val", [row(50000001)])
    with pytest.raises(ValueError, match="is not one of test_reviewed"):
        read_srrg(tmp_path / "d", "findings")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/train-00000-of-00001.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ValueError, match="cannot be read"):
        read_srrg(tmp_path / "e", "findings")


@pytest.fixture
def main():
    """The pipeline's."""
    spec = importlib.util.spec_from_file_location("srrg_targets", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_the_script_prints_what_became_of_all_rows(tmp_path, monkeypatch, capsys, main):
    write(tmp_path, train=[row(50000001), twin.chexpert_row(1)], test=[row(50000002)])
    command = f"srrg_targets --srrg {tmp_path} --part findings --out {tmp_path}/t.parquet"
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    assert main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 rows: 2 texts of as many MIMIC-CXR studies (train 1, test 1)",
        "  1 left out, of CheXpert",
    ]
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("findings", "impression")))
    assert main() == 1
    assert "none of 3 rows has impression of a MIMIC-CXR study" in capsys.readouterr().err
