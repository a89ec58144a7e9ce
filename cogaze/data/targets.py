"""What is to be written of each sample: a section of its report, or a text of one's own table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cogaze.data.dataset import DAMAGE, READ_MEMBERS, REBUILD, SECTIONS, CorruptSampleError, SampleTable, ShardFiles
from cogaze.evaluate.processes import Process, of_all
from gazeprep.shards import BLOCK, Place, member_of

Images = Literal["study", "all"]
JSON = READ_MEMBERS.index("json")
COLUMNS = ("study_id", "text")
PART = "split"  # a column that a table may have: which part of its data set a study is in
PARTS = {"train": "train", "validate": "validate", "test": "test", "test_reviewed": "test"}  # and in which split


@dataclass(frozen=True)
class TargetConfig:
    """What is written of which images.

    sections: the first of these that a report has. table: a parquet file with study_id and text, such as
    pipelines/srrg_targets.py writes, whose texts are written instead; a study that it lacks, or that its split has in
    another part than the shards, has none. images: "study" takes one image of each study, PA before AP before lateral,
    then by key; "all" every sample. max_tokens: of a text, with the token that ends it.
    """

    sections: tuple[str, ...] = ("findings",)
    table: str = ""
    images: Images = "study"
    max_tokens: int = 100

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sections) - set(SECTIONS))
        if unknown or not self.sections:
            raise ValueError(f"target.sections is {list(self.sections)}, must be one or more of {', '.join(SECTIONS)}")
        if self.images not in get_args(Images):
            raise ValueError(f"target.images is {self.images!r}, must be {' or '.join(get_args(Images))}")
        if self.max_tokens < 2:
            raise ValueError(f"target.max_tokens is {self.max_tokens}, must be at least 2: a word and the end")


@dataclass(frozen=True, eq=False)
class Targets:
    """A split's samples with something to write, and what; text by key, of which some may be of no chosen sample.

    remarks: what of the split was left out, beside samples of which nothing is known, and why.
    """

    table: SampleTable
    text: Mapping[str, str]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleIds:
    """Whose report a sample is; the sources' own ids, told to nobody."""

    study_id: str
    image_id: str
    subject_id: str


@dataclass(frozen=True)
class TableTexts:
    """A table's text by study id, and the studies that it has in another part than the split that is read."""

    text: Mapping[str, str]
    elsewhere: frozenset[str]


@dataclass(frozen=True)
class _Found:
    """What a sample's record says: its text, "" for none, and its study if the table has it in another part.

    fault: why the record cannot be read.
    """

    text: str = ""
    elsewhere: str = ""
    fault: str = ""


def read_targets(
    root: str | Path, table: SampleTable, config: TargetConfig, *, empty: bool = False, skipped_in_a_row: int = 0
) -> Targets:
    """Read what is to be written of a split: one look at every record, which the processes of a group share out.

    empty: keep samples of which nothing is known, to write of them all the same. skipped_in_a_row: how many samples
    one after another may be damaged, and are left out. Raises ValueError where none is left, CorruptSampleError where
    more are damaged.
    """
    found = _looked_up(root, table, config)
    _refuse_damage([one.fault for one in found], skipped_in_a_row)
    known, whole = (np.array([bool(one.text) for one in found]), np.array([not one.fault for one in found]))
    rows = np.flatnonzero(whole & (known | empty))
    if config.images == "study":
        rows = rows[_one_of_each(table.study_id[rows], ~known[rows], table.view[rows], table.key[rows])]
    remarks = _remarks(table, found)
    if not len(rows):
        what = "a text in target.table" if config.table else f"a text in {' or '.join(config.sections)}"
        why = f" ({remarks[-1]})" if remarks else ""
        raise ValueError(f"none of the {len(table)} samples of split {table.split} has {what}{why}; choose another")
    return Targets(chosen(table, rows), {table.name(row): found[row].text for row in rows.tolist()}, remarks)


def records(root: str | Path, table: SampleTable) -> Iterator[dict[str, str]]:
    """Deliver the json of each sample of a table, in its order; raises CorruptSampleError on a damaged one."""
    files = ShardFiles(root)
    for row in range(len(table)):
        try:
            record = _record(files, table, row)
        except DAMAGE as error:
            raise CorruptSampleError(f"{_fault(table, row, error)}; {REBUILD}") from None
        yield record


def ids_of(record: Mapping[str, str]) -> SampleIds:
    """Take the source's ids out of a record."""
    return SampleIds(*(str(record[name]) for name in ("study_id", "dicom_id", "subject_id")))


def chosen(table: SampleTable, rows: npt.NDArray[np.integer]) -> SampleTable:
    """Return some rows of a table, in their order."""
    columns = ("key", "shard", "place", "start", "length", "has_gaze", "view", "study_id", "labels")
    return replace(table, **{name: getattr(table, name)[rows] for name in columns})


# --- a table of texts


def read_table_of_texts(path: str | Path, split: str) -> TableTexts:
    """Read the texts of a split's studies; where the table has the column split, of those that it has in there.

    Raises ValueError where it cannot be read, lacks a column or says of a study nothing, or two things.
    """
    rows = _columns(path)
    studies, texts = (rows[name].cast(pa.string()).to_pylist() for name in COLUMNS)
    twice = len(studies) - len(set(studies))
    if twice:
        raise ValueError(f"target.table has {twice} texts more than studies; keep one text of each study")
    if None in studies:
        raise ValueError("target.table has a text of no study: study_id is empty; remove that row")
    parts = rows[PART].cast(pa.string()).to_pylist() if PART in rows.column_names else [split] * len(studies)
    unknown = sum(part not in PARTS for part in parts)
    if unknown:
        raise ValueError(
            f"target.table has {unknown} studies whose {PART} is none of {', '.join(PARTS)}; rename these, or remove "
            "the column, and all of its studies are taken for the shards' own split"
        )
    read = list(zip(studies, texts, parts, strict=True))
    return TableTexts(
        {study: (text or "").strip() for study, text, part in read if PARTS[part] == split},
        frozenset(study for study, _, part in read if PARTS[part] != split),
    )


def _columns(path: str | Path) -> pa.Table:
    """Read the columns that count, each of a type that leaves no doubt; raises ValueError."""
    try:
        schema = pq.read_schema(path)
        lacking = [name for name in COLUMNS if name not in schema.names]
        if lacking:
            raise ValueError(f"target.table lacks the columns {', '.join(lacking)}; it has {', '.join(schema.names)}")
        wanted = [*COLUMNS, *([PART] if PART in schema.names else [])]
        for name in wanted:
            _refuse_type(name, schema.field(name).type)
        return pq.read_table(path, columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"target.table cannot be read ({type(error).__name__}); name a parquet file, or write it again"
        ) from None


def _refuse_type(name: str, told: pa.DataType) -> None:
    plain = told.value_type if pa.types.is_dictionary(told) else told
    if pa.types.is_string(plain) or pa.types.is_large_string(plain):
        return
    if name != "study_id":
        raise ValueError(f"target.table: column {name} holds {told}, must be text; write it so")
    if not pa.types.is_integer(plain):
        raise ValueError(
            f"target.table: column study_id holds {told}, in which a study's number is not what the shards say; "
            "write it as text or as a whole number"
        )


# --- every record of a split


def _looked_up(root: str | Path, table: SampleTable, config: TargetConfig) -> list[_Found]:
    """Look at the record of every sample (rows of the table), each process of a group at a run of them."""
    texts = read_table_of_texts(config.table, table.split) if config.table else None
    files, process, own = ShardFiles(root), Process.current(), []
    for row in np.array_split(np.arange(len(table)), process.count)[process.rank].tolist():
        try:
            own.append(_found(_record(files, table, row), config, texts))
        except DAMAGE as error:
            own.append(_Found(fault=_fault(table, row, error)))
    return of_all(own)


def _found(record: Mapping[str, str], config: TargetConfig, texts: TableTexts | None) -> _Found:
    if texts is None:
        return _Found(_first(record, config))
    study = record["study_id"]
    return _Found(texts.text.get(study, ""), study if study in texts.elsewhere else "")


def _first(record: Mapping[str, str], config: TargetConfig) -> str:
    """Return the first section that there is, on one line."""
    found = (" ".join(record[name].split()) for name in config.sections)
    return next((text for text in found if text), "")


def _record(files: ShardFiles, table: SampleTable, row: int) -> dict[str, str]:
    """Read a sample's json; raises one of DAMAGE."""
    place = Place(int(table.start[row, JSON]), int(table.length[row, JSON]))
    shard, key = table.shard_names[table.shard[row]], table.name(row)
    record: dict[str, str] = json.loads(
        member_of(files.read(shard, place.header, BLOCK + place.length), key, "json", place)
    )
    return record


def _fault(table: SampleTable, row: int, error: Exception) -> str:
    shard = table.shard_names[table.shard[row]]
    return f"sample {table.name(row)} of {shard} cannot be read ({type(error).__name__})"


def _refuse_damage(faults: Sequence[str], allowed: int) -> None:
    """Raise CorruptSampleError where more samples one after another are damaged than may be."""
    in_a_row = 0
    for fault in faults:
        in_a_row = in_a_row + 1 if fault else 0
        if in_a_row > allowed:
            many = f"{in_a_row} samples in a row would have to be left out, the last: " if allowed else ""
            skip = "" if allowed else ", or skip such samples (skip_corrupt)"
            raise CorruptSampleError(f"{many}{fault}; {REBUILD}{skip}")


def _remarks(table: SampleTable, found: Sequence[_Found]) -> tuple[str, ...]:
    """Say which samples are damaged, how many, and how many studies a table has in another part."""
    faults = [one.fault for one in found if one.fault]
    remarks = [f"skipped: {fault}" for fault in faults]
    if faults:
        remarks.append(f"{len(faults)} of {len(found)} samples of split {table.split} left out: they cannot be read")
    elsewhere = len({one.elsewhere for one in found if one.elsewhere})
    if elsewhere:
        where = f"{elsewhere} studies of split {table.split} are in another part of target.table"
        remarks.append(f"{where}: their texts are left out")
    return tuple(remarks)


def _one_of_each(study: npt.NDArray[np.integer], *then_by: npt.NDArray[np.generic]) -> npt.NDArray[np.integer]:
    """Return the places (studies,), in their order, of each study's first sample by the given columns."""
    order = np.lexsort((*reversed(then_by), study))
    first = np.concatenate(([True], np.diff(study[order]) != 0)) if len(study) else np.zeros(0, dtype=bool)
    return np.sort(order[first])
