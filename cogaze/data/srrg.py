"""Structured reports of SRRG: its parquet folders to one text of each MIMIC-CXR study, all rows counted."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cogaze.checkpoint import hidden
from cogaze.evaluate.reports.structured import Part, Rules, parse, serialize

# In the order in which a study that several parts hold is given to one: the rarer part keeps it.
SPLITS = ("test_reviewed", "test", "validate", "train")
COLUMN_OF = {"findings": "findings_section", "impression": "impression_section"}
SCHEMA = pa.schema([("study_id", pa.string()), ("split", pa.string()), ("text", pa.string())])

Reason = Literal[
    "of CheXpert",
    "of no study that is named",
    "of several studies",
    "of a study that another row has",
    "without text",
    "without bullets below a heading",
]

_FILE = re.compile(r"([A-Za-z_]+)-(\d{5})-of-(\d{5})\.parquet")
_STUDY_FOLDER = re.compile(r"s(\d{8})")
_STUDY = re.compile(r"(?<!\d)s?(5\d{7})(?!\d)")  # all of MIMIC-CXR's begin with 5, its patients with 1
_CHEXPERT = re.compile(r"chexpert|patient\d{5}", re.IGNORECASE)
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class SrrgTargets:
    """What is to be written of each study, in the order of the studies' numbers.

    texts and splits: by study id, digits alone. rows: read in all, texts and `left_out` together. left_out: rows by
    reason. lost: pieces of the texts that the parser left out, by reason. of_split: texts by part of the data set.
    """

    texts: Mapping[str, str]
    splits: Mapping[str, str]
    rows: int
    left_out: Mapping[Reason, int]
    lost: Mapping[str, int]

    @property
    def of_split(self) -> dict[str, int]:
        """How many texts each part has, in their usual order."""
        found = Counter(self.splits.values())
        return {split: found[split] for split in reversed(SPLITS) if found[split]}


@dataclass(frozen=True)
class _Row:
    """A row of the data set: what names its study, and its section."""

    split: str
    id: str
    image_paths: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Named:
    """The study that a row is of, its number alone, or why it is of none."""

    study: str = ""
    why_none: Reason | None = None


@dataclass
class _Sorting:
    """Takes rows one by one: a text of each study, and the reasons of the others."""

    part: Part
    rules: Rules
    rows: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    left_out: Counter[Reason] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def take(self, row: _Row) -> None:
        self.rows += 1
        reason = self._keep(row)
        if reason is not None:
            self.left_out[reason] += 1

    def _keep(self, row: _Row) -> Reason | None:
        """Keep a row's text, or return why not."""
        named = study_of(row.id, row.image_paths)
        if named.why_none is not None:
            return named.why_none
        if named.study in self.texts:
            return "of a study that another row has"
        if not row.text.strip():
            return "without text"
        read = parse(row.text, self.part, self.rules)
        if not read.sections:
            return "without bullets below a heading"
        self.texts[named.study], self.splits[named.study] = serialize(read.sections, self.part), row.split
        self.lost.update(one.reason for one in read.dropped)
        return None


def read_srrg(folder: Path, part: Part, rules: Rules = "official", splits: Sequence[str] = SPLITS) -> SrrgTargets:
    """Read srrg_findings or srrg_impression: a folder of data/<split>-00000-of-00001.parquet, or that data itself.

    splits: the parts that are read. Each study's text is the canonical form of what the rules keep of it. Raises
    ValueError where a file or a column is missing or cannot be read, or where no row has a text.
    """
    sorting = _Sorting(part, rules)
    for row in _rows(Path(folder), part, splits):
        sorting.take(row)
    if not sorting.texts:
        why = ", ".join(f"{count} {reason}" for reason, count in sorting.left_out.items())
        raise ValueError(
            f"SRRG: none of {sorting.rows} rows has {part} of a MIMIC-CXR study ({why or 'no rows'}); check the folder "
            f"and the part against its columns id, image_paths and {COLUMN_OF[part]}"
        )
    return SrrgTargets(
        texts={study: sorting.texts[study] for study in sorted(sorting.texts)},
        splits=sorting.splits,
        rows=sorting.rows,
        left_out=sorting.left_out,
        lost=sorting.lost,
    )


def study_of(row_id: str, image_paths: Sequence[str]) -> Named:
    """Find a row's MIMIC-CXR study: the folder s######## of its pictures, and the number in an id of mimic's."""
    parts = (one for path in image_paths for one in PurePosixPath(path.replace("\\", "/")).parts)
    named = {found[1] for one in parts if (found := _STUDY_FOLDER.fullmatch(one))}
    if "mimic" in row_id.lower():
        named |= set(_STUDY.findall(row_id))
    if len(named) > 1:
        return Named(why_none="of several studies")
    if named:
        return Named(named.pop())
    chexpert = any(_CHEXPERT.search(one) for one in (row_id, *image_paths))
    return Named(why_none="of CheXpert" if chexpert else "of no study that is named")


def write_targets(targets: SrrgTargets, out: Path) -> None:
    """Write a targets table, study_id, split and text, under its name only when it is whole."""
    columns = {
        "study_id": list(targets.texts),
        "split": [targets.splits[study] for study in targets.texts],
        "text": list(targets.texts.values()),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = hidden(out)
    pq.write_table(pa.table(columns, SCHEMA), unfinished)
    unfinished.replace(out)


def _rows(folder: Path, part: Part, splits: Sequence[str]) -> Iterator[_Row]:
    for path, split in _files(folder, splits):
        for batch in _batches(path, ("id", "image_paths", COLUMN_OF[part]), f"SRRG's {path.name}"):
            for row_id, paths, text in zip(
                *(batch.column(name).to_pylist() for name in batch.schema.names), strict=True
            ):
                yield _Row(split, row_id or "", tuple(one or "" for one in paths or ()), text or "")


def _files(folder: Path, splits: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Deliver the files with the part that each belongs to; raises ValueError for a missing or unknown one."""
    place = folder / "data" if (folder / "data").is_dir() else folder
    named = {path: _FILE.fullmatch(path.name) for path in sorted(place.glob("*.parquet"))}
    if not named:
        raise ValueError("SRRG: no data/<split>-00000-of-00001.parquet in the folder; give a downloaded srrg_findings")
    other = [path.name for path, found in named.items() if not found or found[1] not in SPLITS]
    if other:
        raise ValueError(f"SRRG: {other[0]} is not one of {', '.join(SPLITS)} with -00000-of-00001.parquet; remove it")
    for split in (one for one in SPLITS if one in splits):
        files = {path: found for path, found in named.items() if found and found[1] == split}
        announced = {int(found[3]) for found in files.values()}
        if announced and announced != {len(files)}:
            raise ValueError(f"SRRG: {len(files)} files of {split}, which has {max(announced)}; download the others")
        yield from ((path, split) for path in files)


def _batches(path: Path, columns: tuple[str, ...], kind: str) -> Iterator[Any]:
    """Deliver a file's columns in their order, as text and lists of texts; raises ValueError where they are not so."""
    try:
        with pq.ParquetFile(path) as file:
            types = {name: file.schema_arrow.field(name).type for name in columns if name in file.schema_arrow.names}
            lacking = [name for name in columns if name not in types]
            if lacking:
                raise ValueError(f"{kind} lacks the column {', '.join(lacking)}; check the file and its part")
            wrong = [name for name in columns if not _fits(types[name], listed=name == "image_paths")]
            if wrong:
                raise ValueError(f"{kind}: column {wrong[0]} holds {types[wrong[0]]}; check the file against its card")
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
                yield batch.select(columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{kind} cannot be read ({type(error).__name__}); download it again") from None


def _fits(type_: pa.DataType, listed: bool) -> bool:
    if listed:
        return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_)) and _fits(type_.value_type, listed=False)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))
