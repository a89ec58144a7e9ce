"""What is to be written of each sample: a section of its report, or a text of one's own table."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from cogaze.data.dataset import DAMAGE, READ_MEMBERS, REBUILD, SECTIONS, CorruptSampleError, SampleTable, ShardFiles
from gazeprep.shards import BLOCK, Place, member_of

Images = Literal["study", "all"]
JSON = READ_MEMBERS.index("json")
COLUMNS = ("study_id", "text")


@dataclass(frozen=True)
class TargetConfig:
    """What is written of which images.

    sections: the first of these that a report has. table: a parquet file with study_id and text, such as
    pipelines/srrg_targets.py writes, whose texts are written instead; a study that it lacks has none. images: "study"
    takes one image of each study, PA before AP before lateral, then by key; "all" every sample. max_tokens: of a text,
    with the token that ends it.
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
    """A split's samples with something to write, and what; text by key, of which some may be of no chosen sample."""

    table: SampleTable
    text: Mapping[str, str]


@dataclass(frozen=True)
class SampleIds:
    """Whose report a sample is; the sources' own ids, told to nobody."""

    study_id: str
    image_id: str
    subject_id: str


def read_targets(root: str | Path, table: SampleTable, config: TargetConfig, *, empty: bool = False) -> Targets:
    """Read what is to be written of a split, which takes one look at every record.

    empty: keep samples of which nothing is known, to write of them all the same. Raises ValueError where none is left.
    """
    by_study = None if not config.table else read_table_of_texts(config.table)
    text = dict.fromkeys(map(table.name, range(len(table))), "")
    for row, record in enumerate(records(root, table)):
        text[table.name(row)] = _first(record, config) if by_study is None else by_study.get(record["study_id"], "")
    known = np.array([bool(text[table.name(row)]) for row in range(len(table))])
    rows = np.flatnonzero(known | empty)
    if config.images == "study":
        rows = rows[_one_of_each(table.study_id[rows], ~known[rows], table.view[rows], table.key[rows])]
    if not len(rows):
        what = "a text in target.table" if config.table else f"a text in {' or '.join(config.sections)}"
        raise ValueError(f"none of the {len(table)} samples of split {table.split} has {what}; choose another")
    return Targets(chosen(table, rows), {table.name(row): text[table.name(row)] for row in rows.tolist()})


def records(root: str | Path, table: SampleTable) -> Iterator[dict[str, str]]:
    """Deliver the json of each sample of a table, in its order; raises CorruptSampleError on a damaged one."""
    files = ShardFiles(root)
    for row in range(len(table)):
        place = Place(int(table.start[row, JSON]), int(table.length[row, JSON]))
        shard, key = table.shard_names[table.shard[row]], table.name(row)
        try:
            yield json.loads(member_of(files.read(shard, place.header, BLOCK + place.length), key, "json", place))
        except DAMAGE as error:
            why = f"sample {key} of {shard} cannot be read ({type(error).__name__})"
            raise CorruptSampleError(f"{why}; {REBUILD}") from None


def ids_of(record: Mapping[str, str]) -> SampleIds:
    """Take the source's ids out of a record."""
    return SampleIds(*(str(record[name]) for name in ("study_id", "dicom_id", "subject_id")))


def chosen(table: SampleTable, rows: npt.NDArray[np.integer]) -> SampleTable:
    """Return some rows of a table, in their order."""
    columns = ("key", "shard", "place", "start", "length", "has_gaze", "view", "study_id", "labels")
    return replace(table, **{name: getattr(table, name)[rows] for name in columns})


def read_table_of_texts(path: str | Path) -> dict[str, str]:
    """Read text by study id; raises ValueError where columns are lacking or a study has two texts."""
    try:
        columns = pq.read_schema(path).names
        lacking = [name for name in COLUMNS if name not in columns]
        if lacking:
            raise ValueError(f"target.table lacks the columns {', '.join(lacking)}; it has {', '.join(columns)}")
        rows = pd.read_parquet(path, columns=list(COLUMNS))
    except OSError as error:
        raise ValueError(f"target.table cannot be read ({type(error).__name__}); name a parquet file") from None
    twice = int(rows["study_id"].duplicated().sum())
    if twice:
        raise ValueError(f"target.table has {twice} texts more than studies; keep one text of each study")
    return dict(zip(rows["study_id"].astype(str), rows["text"].fillna("").astype(str).str.strip(), strict=True))


def _first(record: Mapping[str, str], config: TargetConfig) -> str:
    """Return the first section that there is, on one line."""
    found = (" ".join(record[name].split()) for name in config.sections)
    return next((text for text in found if text), "")


def _one_of_each(study: npt.NDArray[np.integer], *then_by: npt.NDArray[np.generic]) -> npt.NDArray[np.integer]:
    """Return the places (studies,), in their order, of each study's first sample by the given columns."""
    order = np.lexsort((*reversed(then_by), study))
    first = np.concatenate(([True], np.diff(study[order]) != 0)) if len(study) else np.zeros(0, dtype=bool)
    return np.sort(order[first])
