"""Reads every byte of a folder of shards and says what is wrong with it, by shard and key."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gazeprep.checks import Problem, Recipe, check_sample
from gazeprep.schema import PRIOR_SCHEMA_VERSION, SCHEMA_VERSIONS, SPLITS
from gazeprep.shards import (
    BLOCK,
    INDEX_SCHEMA,
    KEY,
    MEMBERS,
    REJECTED_SCHEMA,
    SHARD_NAME,
    SUFFIX,
    canonical_json,
    sample_key,
)
from gazeprep.stores import Store, open_store
from gazeprep.workers import worker_pool

MANIFEST, INDEX, REJECTED = "dataset.json", "index.parquet", "rejected.parquet"
MANIFEST_FIELDS = {"schema_version", "synthetic", "sources", "config", "versions", "counts", "shards", "tables"}
ORIGIN_FIELDS = {"parts", "selection"}  # of what merge and select wrote
SHARD_FIELDS = {"name": str, "split": str, "samples": int, "size": int, "sha256": str}
BESIDE = re.compile(r"\.build|features-[0-9a-f]+")  # folders of a build and of stored tokens
ROLES = {"png": "image", "jpg": "image"} | {suffix: role for role, suffix in SUFFIX.items()}

Row = dict[str, Any]
Watcher = Callable[[str, int], None]  # called with each finished shard and the number of shards


@dataclass(frozen=True)
class LintReport:
    """What is wrong with a folder, and how much of it was read."""

    problems: tuple[Problem, ...]
    shards: int = 0
    samples: int = 0
    bytes: int = 0

    @property
    def read(self) -> str:
        """How much was read, in words."""
        return f"{self.samples} samples in {self.shards} shards, {self.bytes} bytes"


def lint(root: Path | str, *, workers: int = 0, watch: Watcher | None = None) -> LintReport:
    """Check a folder of shards, or a URL of one that fsspec knows; workers: processes, 0 for one per core.

    Finds problems instead of raising them; raises ValueError on a URL that cannot be used.
    """
    found: list[Problem] = []
    store = open_store(root)
    manifest = _read_manifest(store, found)
    if manifest is None:
        return LintReport(tuple(found))
    index = _read_parquet(store, INDEX, manifest["tables"][INDEX], INDEX_SCHEMA, found)
    rejected = _read_parquet(store, REJECTED, manifest["tables"][REJECTED], REJECTED_SCHEMA, found)
    found += _unlisted_files(store, manifest)
    if index is not None:
        found += _index_problems(index, manifest)
    if rejected is not None:
        found += _rejected_problems(rejected, index)
    rows = {} if index is None else {str(name): part for name, part in index.groupby("shard", sort=False)}
    recipe = _recipe(manifest)
    assert recipe is not None
    tasks = [
        _Shard(root, one, None if index is None else _records(rows.get(one["name"], index[:0])), recipe)
        for one in manifest["shards"]
    ]
    checked = list(_run(tasks, workers, watch))
    found += [problem for one in checked for problem in one.problems]
    if index is not None and rejected is not None:
        if manifest["synthetic"] != bool(index["synthetic"].any()):
            found.append(Problem("counts", f"synthetic is {manifest['synthetic']}, the index says otherwise", MANIFEST))
        found += _count_problems(manifest["counts"], index, rejected, checked)
    return LintReport(tuple(found), len(tasks), sum(one.samples for one in checked), sum(one.bytes for one in checked))


def _records(rows: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


# --- the folder's own files


def _read_manifest(store: Store, found: list[Problem]) -> dict[str, Any] | None:
    """Read dataset.json; None where nothing behind it can be judged."""
    try:
        manifest = json.loads(store.read(MANIFEST))
    except FileNotFoundError:
        found.append(Problem("missing_file", "is not there, so this is no finished build", MANIFEST))
        return None
    except (OSError, ValueError) as error:
        found.append(Problem("manifest", f"cannot be read ({type(error).__name__})", MANIFEST))
        return None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version not in SCHEMA_VERSIONS:
        known = " and ".join(map(str, SCHEMA_VERSIONS))
        what = f"is {version!r:.20}, this gazeprep reads {known}; lint with the gazeprep that built it"
        found.append(Problem("schema_version", what, MANIFEST))
        return None
    odd = MANIFEST_FIELDS ^ (manifest.keys() - ORIGIN_FIELDS)
    counts, shards = manifest.get("counts"), manifest.get("shards")
    typed = not odd and isinstance(counts, dict) and isinstance(shards, list) and _lists_tables(manifest["tables"])
    if not typed or _recipe(manifest) is None or not all(_is_listed_shard(one) for one in shards):
        found.append(Problem("manifest", "lacks fields, or holds others than a build writes", MANIFEST))
        return None
    return manifest


def _lists_tables(tables: Any) -> bool:
    facts = {"size": int, "sha256": str}
    if not isinstance(tables, dict) or tables.keys() != {INDEX, REJECTED}:
        return False
    return all(isinstance(one, dict) and {name: type(one[name]) for name in one} == facts for one in tables.values())


def _recipe(manifest: dict[str, Any]) -> Recipe | None:
    """Return what a manifest's config says of every sample, None where it does not."""
    match manifest["config"]:
        case {
            "sample": {
                "maps": {"grid": [int(rows), int(cols)]},
                "picture": {"resize": {"rule": str(rule)}, "format": "png" | "jpg" as image_format},
                "alignment": dict(alignment),
            } as sample
        }:
            version = manifest["schema_version"]
            if sample.get("prior", False) is (version == PRIOR_SCHEMA_VERSION):  # builds of before do not say it
                return Recipe(rows, cols, rule, image_format, canonical_json(alignment), version)
    return None


def _is_listed_shard(listed: Any) -> bool:
    if not isinstance(listed, dict) or listed.keys() != SHARD_FIELDS.keys():
        return False
    typed = all(type(listed[name]) is kind for name, kind in SHARD_FIELDS.items())
    named = SHARD_NAME.fullmatch(listed["name"]) if typed else None
    return named is not None and named["split"] == listed["split"]


def _read_parquet(store: Store, name: str, listed: Row, schema: pa.Schema, found: list[Problem]) -> pd.DataFrame | None:
    try:
        data = store.read(name)
        found += [replace(problem, shard=name) for problem in _byte_problems(len(data), hashlib.sha256(data), listed)]
        table = pq.read_table(io.BytesIO(data))
        table.validate(full=True)  # of text that is no UTF-8, which pandas would meet later
    except FileNotFoundError:
        found.append(Problem("missing_file", "is not there", name))
        return None
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        found.append(Problem("index", f"cannot be read ({type(error).__name__})", name))
        return None
    if not table.schema.equals(schema):
        found.append(Problem("index", "has other columns or types than this schema version", name))
        return None
    if any(column.null_count for column in table.columns):
        found.append(Problem("index", "has empty cells", name))
        return None
    return table.to_pandas()


def _unlisted_files(store: Store, manifest: dict[str, Any]) -> Iterator[Problem]:
    listed = {shard["name"] for shard in manifest["shards"]}
    for name in sorted(listed):
        if store.size(name) is None:
            yield Problem("missing_file", "is not there", name)
    known = {MANIFEST, INDEX, REJECTED, *SPLITS}
    names = [name for name in store.entries() if name not in known and not BESIDE.fullmatch(name)]
    for split in SPLITS:
        names += [name for entry in store.entries(split) if (name := f"{split}/{entry}") not in listed]
    shards = [name for name in names if SHARD_NAME.fullmatch(name)]
    for name in shards:
        yield Problem("extra_file", f"is a shard that {MANIFEST} does not list", name)
    if len(names) > len(shards):  # their names may be anything, such as an id
        yield Problem("extra_file", f"{len(names) - len(shards)} files that no build wrote; move them elsewhere")


# --- the index


def _index_problems(index: pd.DataFrame, manifest: dict[str, Any]) -> Iterator[Problem]:
    for key in index.loc[index["key"].duplicated(), "key"]:
        yield Problem("duplicate", "this key stands twice", INDEX, _safe(key))
    ids = zip(index["dataset"].tolist(), index["reading"].tolist(), index["dicom"].tolist(), strict=True)
    wanted = [sample_key(dataset, reading or dicom) for dataset, reading, dicom in ids]
    for key in index.loc[index["key"] != wanted, "key"]:
        yield Problem("index", "is not the key of its dataset and reading or image", INDEX, _safe(key))
    listed = {shard["name"]: shard for shard in manifest["shards"]}
    elsewhere = index[~index["shard"].isin(listed)]
    if len(elsewhere):
        yield Problem("index", f"places {len(elsewhere)} samples in shards that {MANIFEST} does not list", INDEX)
    for name, rows in index[index["shard"].isin(listed)].groupby("shard", sort=False):
        if (rows["split"] != listed[name]["split"]).any():
            yield Problem("index", "says another split than the shard's for some of its samples", str(name))
        if not rows["offset"].is_monotonic_increasing:
            yield Problem("index", "does not list its samples in the order of the tar", str(name))
    yield from leaks(index)


def leaks(index: pd.DataFrame) -> Iterator[Problem]:
    """Yield one problem for each subject that an index puts in several splits, told by a key in each."""
    own_people = index["dataset"].where(index["dataset"].str.startswith("table-"), "")
    for _, rows in index.groupby([own_people, "subject"], sort=False):
        firsts = rows.drop_duplicates("split")
        if len(firsts) > 1:
            pairs = zip(firsts["key"].tolist(), firsts["split"].tolist(), strict=True)
            places = ", ".join(f"{_safe(key)} in {split}" for key, split in pairs)
            yield Problem("split_leak", f"one subject stands in {len(firsts)} splits: {places}", INDEX)


def _rejected_problems(rejected: pd.DataFrame, index: pd.DataFrame | None) -> Iterator[Problem]:
    known = set() if index is None else set(index["key"])
    for key in rejected.loc[rejected["key"].duplicated(), "key"]:
        yield Problem("duplicate", "this key stands twice", REJECTED, _safe(key))
    for key in rejected.loc[rejected["key"].isin(known), "key"]:
        yield Problem("duplicate", "is rejected and a sample", REJECTED, _safe(key))
    if (rejected["reason"] == "").any():
        yield Problem("index", "has rows without a reason", REJECTED)


def _count_problems(
    counts: Mapping[str, Any], index: pd.DataFrame, rejected: pd.DataFrame, checked: list["_Checked"]
) -> Iterator[Problem]:
    actual: dict[str, Any] = {
        "inputs": len(index) + len(rejected),
        "samples": len(index),
        "rejected": len(rejected),
        "rejected_by_reason": _tally(rejected["reason"]),
        **{f"samples_by_{name}": _tally(index[name]) for name in ("split", "split_origin", "dataset")},
        "samples_with_gaze": int(index["has_gaze"].sum()),
        "samples_synthetic": int(index["synthetic"].sum()),
        "sentences": int(index["sentences"].sum()),
        "subjects": int(index["subject"].nunique()),
    }
    if all(one.empty is not None for one in checked):
        actual["empty"] = dict(sum((one.empty for one in checked if one.empty), Counter()))
    for name, value in actual.items():
        if counts.get(name) != value:
            yield Problem("counts", f"{name} is {counts.get(name)}, the tables and shards hold {value}", MANIFEST)


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values))


def _safe(key: str) -> str:
    return key if KEY.fullmatch(key) else "(no key)"


# --- shards


@dataclass(frozen=True, eq=False)
class _Shard:
    """A shard as the manifest lists it, and its rows of the index, None without a readable one."""

    root: Path | str
    listed: dict[str, Any]
    rows: list[Row] | None
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class _Checked:
    """What is wrong with a shard; empty sections counted, None where a sample could not be read."""

    problems: tuple[Problem, ...] = ()
    samples: int = 0
    bytes: int = 0
    empty: Counter[str] | None = None


def _run(tasks: list[_Shard], workers: int, watch: Watcher | None) -> Iterator[_Checked]:
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield _watched(_check_shard(task), task, len(tasks), watch)
        return
    with worker_pool(workers) as pool:
        for task, checked in zip(tasks, pool.map(_check_shard, tasks), strict=True):
            yield _watched(checked, task, len(tasks), watch)


def _watched(checked: _Checked, task: _Shard, shards: int, watch: Watcher | None) -> _Checked:
    if watch is not None:
        watch(task.listed["name"], shards)
    return checked


def _check_shard(task: _Shard) -> _Checked:
    name = task.listed["name"]
    try:
        with open_store(task.root).open(name) as file:
            checked = _check_tar(file, task)
    except FileNotFoundError:
        return _Checked()  # told as missing_file
    except OSError as error:
        return _Checked((Problem("tar", f"cannot be read ({type(error).__name__})", name),))
    return replace(checked, problems=tuple(replace(problem, shard=name) for problem in checked.problems))


def _check_tar(file: io.BufferedIOBase, task: _Shard) -> _Checked:
    problems: list[Problem] = []
    digest = hashlib.file_digest(file, "sha256")
    size = file.seek(0, io.SEEK_END)
    problems += _byte_problems(size, digest, task.listed)
    walk = _Walk(file, size, problems)
    rows = None if task.rows is None else {row["key"]: row for row in task.rows}
    empty: Counter[str] | None = Counter()
    samples = 0
    for key, members in groupby(walk.members(), lambda member: member.key):
        samples += 1
        sample = list(members)
        row = None if rows is None else rows.pop(key, None)
        if row is None and rows is not None:
            problems.append(
                Problem("index", f"is not in {INDEX}, or not for this shard, or twice in it", key=_safe(key))
            )
        lacking = _check_sample(sample, row, task.recipe, problems)
        empty = None if empty is None or lacking is None else empty + Counter(lacking)
    if rows:
        first = _safe(next(iter(rows)))
        problems.append(Problem("index", f"names {len(rows)} samples that the tar does not hold, the first is {first}"))
    if samples != task.listed["samples"]:
        problems.append(Problem("counts", f"holds {samples} samples, {MANIFEST} says {task.listed['samples']}"))
    return _Checked(tuple(problems), samples, size, empty)


def _byte_problems(size: int, digest: "hashlib._Hash", listed: Row) -> Iterator[Problem]:
    """Compare a file's size in bytes and its sha256 with what the manifest lists."""
    if size != listed["size"]:
        yield Problem("size", f"has {size} bytes, {MANIFEST} says {listed['size']}")
    if digest.hexdigest() != listed["sha256"]:
        yield Problem("checksum", f"has another sha256 than {MANIFEST} says: its bytes were changed")


@dataclass(frozen=True, eq=False)
class _Member:
    """One file of a tar: its header's offset and its content's, in bytes."""

    key: str
    suffix: str
    offset: int
    data_offset: int
    data: bytes


@dataclass(eq=False)
class _Walk:
    """Reads a tar from its first header to its last byte."""

    file: io.BufferedIOBase
    size: int
    problems: list[Problem]
    end: int = field(default=0, init=False)

    def members(self) -> Iterator[_Member]:
        """Yield what can be read; what cannot is appended to the problems."""
        self.file.seek(0)
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for info in tar:
                    yield self._member(info)
        except tarfile.TarError as error:
            self.problems.append(Problem("tar", f"cannot be read after byte {self.end} ({type(error).__name__})"))
            return
        self._check_end()

    def _member(self, info: tarfile.TarInfo) -> _Member:
        plain = info.isreg() and (info.mode, info.mtime, info.uid, info.gid) == (0o644, 0, 0, 0)
        if not plain or info.uname or info.gname:
            self.problems.append(Problem("tar", f"the header at byte {info.offset} is none that gazeprep writes"))
        self.file.seek(info.offset_data)
        data = self.file.read(info.size)
        if len(data) != info.size:
            raise tarfile.ReadError
        self.end = info.offset_data + -(-info.size // BLOCK) * BLOCK
        key, _, suffix = info.name.partition(".")
        return _Member(key, suffix, info.offset, info.offset_data, data)

    def _check_end(self) -> None:
        self.file.seek(self.end)
        tail = self.file.read()
        if any(tail):
            self.problems.append(Problem("tar", f"{len(tail)} bytes after byte {self.end} are no members"))
        elif len(tail) < 2 * BLOCK or self.size % tarfile.RECORDSIZE:
            self.problems.append(Problem("tar", "does not end as a tar does: it is cut short"))


def _check_sample(
    sample: list[_Member], row: Row | None, recipe: Recipe, problems: list[Problem]
) -> tuple[str, ...] | None:
    """Append what is wrong with a sample; returns the sections that it lacks, None where that cannot be told."""
    key = _safe(sample[0].key)
    by_role = {ROLES[member.suffix]: member for member in sample if member.suffix in ROLES}
    suffixes = [member.suffix for member in sample]
    missing = [role for role in MEMBERS if role not in by_role]
    if missing:
        problems.append(Problem("members", f"lacks {', '.join(missing)}", key=key))
        return None
    if len(sample) != len(MEMBERS) or suffixes != sorted(suffixes):
        problems.append(Problem("members", "has other members than the four, or not in their order", key=key))
    if row is not None and not _is_at(sample, by_role, row):
        problems.append(Problem("index", f"lies elsewhere in the tar than {INDEX} says", key=key))
    if by_role["image"].suffix != recipe.image_format:
        problems.append(Problem("recipe", f"its picture is no {recipe.image_format}", key=key))
    checked = check_sample({role: member.data for role, member in by_role.items()}, row, recipe)
    problems += [replace(problem, key=key) for problem in checked.problems]
    return checked.empty


def _is_at(sample: list[_Member], by_role: dict[str, _Member], row: Row) -> bool:
    last = sample[-1]
    length = last.data_offset + -(-len(last.data) // BLOCK) * BLOCK - sample[0].offset
    places = [(row["offset"], sample[0].offset), (row["length"], length)]
    for role, member in by_role.items():
        places += [(row[f"{role}_offset"], member.data_offset), (row[f"{role}_length"], len(member.data))]
    return all(said == actual for said, actual in places)
