"""What is to be written: damaged samples, tables of texts and their parts, who reads which records."""

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from writing import learn, report_config

from cogaze.data import targets
from cogaze.data.dataset import CorruptSampleError, read_table
from cogaze.data.targets import TableTexts, TargetConfig, read_table_of_texts, read_targets, records
from cogaze.evaluate.processes import Process

EITHER = TargetConfig(sections=("findings", "impression"), images="all", max_tokens=40)


@pytest.fixture(scope="module")
def table(shards):
    return read_table(shards, "train")


@pytest.fixture
def damaged(shards, table, tmp_path):
    """Return damaged(row, ...): the same shards with some records of the training split overwritten."""

    def copied(*rows):
        copy = shutil.copytree(shards, tmp_path / "copy", ignore=shutil.ignore_patterns(".build"))
        for row in rows:
            with (copy / table.shard_names[table.shard[row]]).open("r+b") as file:
                file.seek(int(table.start[row, targets.JSON]))
                file.write(b"\0" * int(table.length[row, targets.JSON]))
        return copy

    return copied


# --- damage


def test_a_damaged_record_is_named_with_its_cure(damaged, table):
    with pytest.raises(
        CorruptSampleError,
        match=rf"^sample {table.name(2)} of {table.shard_names[0]} cannot be read \(\w+\); compare .*, or skip such",
    ):
        read_targets(damaged(2), table, EITHER)


def test_damaged_records_are_left_out_and_the_others_as_they_were(damaged, table, shards):
    whole, found = (
        read_targets(shards, table, EITHER),
        read_targets(damaged(2, 5, 6), table, EITHER, skipped_in_a_row=2),
    )
    gone = {table.name(row) for row in (2, 5, 6)}
    assert found.text == {key: text for key, text in whole.text.items() if key not in gone}
    assert [remark.partition(" of ")[0] for remark in found.remarks] == [
        *(f"skipped: sample {table.name(row)}" for row in (2, 5, 6)),
        "3",
    ]
    assert found.remarks[-1] == f"3 of {len(table)} samples of split train left out: they cannot be read"


def test_more_in_a_row_than_may_be_skipped_stop_it(damaged, table):
    with pytest.raises(CorruptSampleError, match=rf"^3 samples in a row .* the last: sample {table.name(6)} of"):
        read_targets(damaged(4, 5, 6, 8), table, EITHER, skipped_in_a_row=2)


def test_another_image_of_a_study_stands_in_for_a_damaged_one(damaged, table, shards):
    one_each = TargetConfig(sections=EITHER.sections)
    whole = read_targets(shards, table, one_each).table
    studies, counts = np.unique(read_targets(shards, table, EITHER).table.study_id, return_counts=True)
    study = studies[counts > 1][0]
    key = whole.key[whole.study_id == study].item()
    found = read_targets(damaged(int(np.flatnonzero(table.key == key)[0])), table, one_each, skipped_in_a_row=1).table
    assert set(found.study_id.tolist()) == set(whole.study_id.tolist())
    assert found.key[found.study_id == study].item() != key


def test_a_run_says_once_what_it_leaves_out_and_learns_from_the_rest(damaged, table, shards, parts, tmp_path, capsys):
    ids = studies_of(shards, table)
    told = write_texts(tmp_path, [(study, "Clear lungs.", "validate" if study == ids[0] else "train") for study in ids])
    changes = {
        "target": TargetConfig(table=str(told), max_tokens=40),
        "plan.global_batch": 4,
        "fit.max_steps": 1,
        "fit.validate_every": -1,
        "optim.schedule": "constant",
    }
    copy = damaged(len(table) - 1)
    with pytest.raises(CorruptSampleError, match=table.name(len(table) - 1)):
        learn(report_config(parts, copy, tmp_path / "strict", changes))
    capsys.readouterr()
    learn(report_config(parts, copy, tmp_path / "run", {**changes, "data.skip_corrupt": True}))
    said = capsys.readouterr().err
    assert said.count(f"skipped: sample {table.name(len(table) - 1)} of") == 1
    assert said.count(f"1 of {len(table)} samples of split train left out: they cannot be read") == 1
    assert said.count("1 studies of split train are in another part of target.table: their texts are left out") == 1


# --- a table of texts


def studies_of(shards, table):
    return list(dict.fromkeys(record["study_id"] for record in records(shards, table)))


def write_texts(folder, rows):
    pd.DataFrame(rows, columns=["study_id", "text", "split"]).to_parquet(folder / "texts.parquet")
    return folder / "texts.parquet"


def test_a_study_of_another_part_is_neither_learned_nor_a_reference(shards, table, tmp_path):
    ids = studies_of(shards, table)
    told = [(study, f"Text {n}.", ["train", "test", "test_reviewed"][n % 3]) for n, study in enumerate(ids)]
    config = TargetConfig(table=str(write_texts(tmp_path, told)), images="all")
    found = read_targets(shards, table, config)
    of_record = {record["key"]: record["study_id"] for record in records(shards, found.table)}
    assert {of_record[key] for key in found.text} == set(ids[::3])
    left_out = len(ids) - len(ids[::3])
    assert found.remarks == (
        f"{left_out} studies of split train are in another part of target.table: their texts are left out",
    )
    everything = read_targets(shards, table, config, empty=True)
    assert {key for key, text in everything.text.items() if text} == set(found.text)
    assert len(everything.table) == len(table)


def test_reviewed_tests_are_tests(shards, tmp_path):
    told = [("a", "A.", "test"), ("b", "B.", "test_reviewed"), ("c", "C.", "validate")]
    assert read_table_of_texts(write_texts(tmp_path, told), "test") == TableTexts(
        {"a": "A.", "b": "B."}, frozenset({"c"})
    )


def test_a_table_all_of_another_part_says_so(shards, table, tmp_path):
    config = TargetConfig(table=str(write_texts(tmp_path, [(one, "A.", "test") for one in studies_of(shards, table)])))
    with pytest.raises(ValueError, match=r"has a text in target\.table \(\d+ studies of split train are in another"):
        read_targets(shards, table, config)


NUMBERS = {
    "whole": pa.array([5, 7]),
    "text": pa.array(["5", "7"]),
    "categories": pa.array(["5", "7"]).dictionary_encode(),
    "long text": pa.array(["5", "7"], pa.large_string()),
}


@pytest.mark.parametrize("ids", NUMBERS.values(), ids=NUMBERS)
def test_a_study_s_number_may_be_text_or_whole(tmp_path, ids):
    pq.write_table(pa.table({"study_id": ids, "text": [" A\n- b ", None]}), tmp_path / "texts.parquet")
    assert read_table_of_texts(tmp_path / "texts.parquet", "train").text == {"5": "A\n- b", "7": ""}


REFUSED = {
    "a number that is not whole": (
        {"study_id": [5.0, 7.0], "text": ["a", "b"]},
        "study_id holds double, .* whole number",
    ),
    "a number missing": ({"study_id": pa.array([5, None]), "text": ["a", "b"]}, "a text of no study"),
    "texts that are none": ({"study_id": ["a", "b"], "text": [1, 2]}, "column text holds int64, must be text"),
    "a part unheard of": (
        {"study_id": ["a", "b"], "text": ["a", "b"], "split": ["train", "dev"]},
        "1 studies whose split is none of train, validate, test, test_reviewed; rename",
    ),
    "no part": ({"study_id": ["a", "b"], "text": ["a", "b"], "split": ["train", None]}, "1 studies whose split"),
}


@pytest.mark.parametrize(("columns", "said"), REFUSED.values(), ids=REFUSED)
def test_a_table_that_leaves_doubt_is_refused(tmp_path, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match=rf"^target\.table.*{said}"):
        read_table_of_texts(tmp_path / "texts.parquet", "train")


DAMAGED_FILES = {"no parquet": b"a,b\n1,2\n", "empty": b"", "cut": None}


@pytest.mark.parametrize("data", DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_a_damaged_table_is_told_with_its_cure(tmp_path, data):
    path = write_texts(tmp_path, [("a", "A.", "train")])
    path.write_bytes(path.read_bytes()[:-9] + b"xxxxxPAR1" if data is None else data)
    with pytest.raises(ValueError, match=r"^target\.table cannot be read \(\w+\); name a parquet file, or write it"):
        read_table_of_texts(path, "train")


# --- who reads what


def test_processes_share_the_records_out(shards, table, monkeypatch):
    whole, read = targets._looked_up(shards, table, EITHER), []
    record = targets._record
    monkeypatch.setattr(targets, "_record", lambda files, table, row: read.append(row) or record(files, table, row))
    monkeypatch.setattr(targets, "of_all", lambda own: own)
    found = []
    for rank in range(3):
        monkeypatch.setattr(Process, "current", classmethod(lambda cls, rank=rank: cls(rank, 3)))
        found += targets._looked_up(shards, table, EITHER)
    assert found == whole
    assert read == list(range(len(table)))
