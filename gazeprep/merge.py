"""Several builds -> one folder: the same tars under new numbers, one index, one manifest."""

import io
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from gazeprep.build import counts_of
from gazeprep.lint import INDEX, MANIFEST, REJECTED, leaks
from gazeprep.shards import INDEX_SCHEMA, KEY, REJECTED_SCHEMA, ShardFolder, json_bytes, parquet_bytes, table_facts
from gazeprep.stores import LocalStore, Store, folder_appearing_whole, open_store

Row = dict[str, Any]
Record = Mapping[str, Any]
MUST_AGREE = ("sample", "labels")  # of the config: what a sample is made by


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote; not_rejected: rejected rows left out, since another part has that input."""

    samples: int
    rejected: int
    not_rejected: int
    shards: int
    linked: int


@dataclass(frozen=True, eq=False)
class BuiltFolder:
    """A finished build as its tables say: `name` for errors, where it lies, rows of index and rejected inputs."""

    name: str
    store: Store
    manifest: dict[str, Any]
    rows: list[Row]
    rejected: list[Row]


def merge(folders: Sequence[Path | str], out: Path, *, copy: bool = False) -> MergeReport:
    """Make one folder of several builds, folders or URLs; tars are hard-linked where that can be, unless `copy`.

    Raises ValueError where they cannot be one: a key twice, a subject in two splits, other recipes.
    """
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} folders cannot be merged; give two or more")
    parts = [open_built(folder, f"folder {i} of {len(folders)}") for i, folder in enumerate(folders, start=1)]
    for part in parts:
        part.manifest["config"]["sample"].setdefault("prior", False)  # builds of before do not say it
    _check_recipes(parts)
    _check_keys(parts)
    _check_subjects(parts)
    rejected = _still_rejected(parts)
    with folder_appearing_whole(out) as unfinished:
        shards: list[Row] = []
        rows: list[Row] = []
        linked = 0
        for part in parts:
            placed = _placed(part, unfinished, Counter(shard["split"] for shard in shards), copy=copy)
            shards += placed.shards
            rows += placed.rows
            linked += placed.linked
        write_tables(unfinished, _manifest(parts), rows, rejected, shards)
    given = sum(len(part.rejected) for part in parts)
    return MergeReport(len(rows), len(rejected), given - len(rejected), len(shards), linked)


def open_built(root: Path | str, name: str) -> BuiltFolder:
    """Read the tables of a finished build; raises ValueError, in which `name` stands for the folder."""
    try:
        store = open_store(root)
        manifest = ShardFolder(root).manifest
        rows, rejected = (pq.read_table(io.BytesIO(store.read(table))).to_pylist() for table in (INDEX, REJECTED))
    except (ValueError, OSError) as error:
        what = str(error) if type(error) is ValueError else f"a table cannot be read ({type(error).__name__})"
        raise ValueError(f"{name}: {what}") from None
    return BuiltFolder(name, store, manifest, rows, rejected)


def write_tables(root: Path, about: Record, rows: list[Row], rejected: list[Row], shards: list[Row]) -> None:
    """Write index, rejected inputs and manifest; `about` is the manifest but for counts and shards."""
    rejected = sorted(rejected, key=lambda row: (row["dataset"], row["key"]))
    counts = counts_of(about["noted"], Counter(about["empty"]), rows, rejected)
    tables = {REJECTED: parquet_bytes(rejected, REJECTED_SCHEMA), INDEX: parquet_bytes(rows, INDEX_SCHEMA)}
    for name, data in tables.items():
        (root / name).write_bytes(data)
    manifest = {name: value for name, value in about.items() if name not in ("noted", "empty")}
    synthetic = any(row["synthetic"] for row in rows)
    held = {"synthetic": synthetic, "counts": counts, "shards": shards, "tables": table_facts(tables)}
    (root / MANIFEST).write_bytes(json_bytes(manifest | held))


# --- whether they can be one


def _check_recipes(parts: Sequence[BuiltFolder]) -> None:
    first, *others = parts
    for part in others:
        for field in MUST_AGREE:
            for name, values in _differences(first.manifest["config"][field], part.manifest["config"][field], field):
                raise ValueError(
                    f"{name} is {values[0]} in {first.name} and {values[1]} in {part.name}: their samples are made in "
                    "two ways; build one of them again with the other's value"
                )


def _differences(one: Any, two: Any, name: str) -> Iterable[tuple[str, tuple[Any, Any]]]:
    """Yield the dotted names under which two configs differ, with both values."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted(one.keys() | two.keys()):
            yield from _differences(one.get(key), two.get(key), f"{name}.{key}")
    elif one != two:
        yield name, (one, two)


def _check_keys(parts: Sequence[BuiltFolder]) -> None:
    part_of: dict[str, BuiltFolder] = {}
    for part in parts:
        twice = [row["key"] for row in part.rows if row["key"] in part_of]
        if twice:
            first = twice[0] if KEY.fullmatch(twice[0]) else "one that is no key"
            raise ValueError(
                f"{len(twice)} samples of {part.name} stand in {part_of[twice[0]].name} too, the first is {first}; "
                "merge builds of different inputs, or leave the doubles out with gazeprep select"
            )
        part_of |= dict.fromkeys((row["key"] for row in part.rows), part)


def _check_subjects(parts: Sequence[BuiltFolder]) -> None:
    columns = ("key", "dataset", "subject", "split")
    rows = pd.DataFrame([[row[name] for name in columns] for part in parts for row in part.rows], columns=columns)
    found = list(leaks(rows))
    if found:
        raise ValueError(
            f"{len(found)} subjects would stand in two splits, such as: {found[0].what}; build all of them with the "
            "same split table and the same --splits.seed, --splits.validate and --splits.test"
        )


def _still_rejected(parts: Sequence[BuiltFolder]) -> list[Row]:
    """Return the inputs that no part has as a sample, each once: the first part that rejected it says why."""
    samples = {row["key"] for part in parts for row in part.rows}
    found: dict[str, Row] = {}
    for row in (row for part in parts for row in part.rejected):
        if row["key"] not in samples:
            found.setdefault(row["key"], row)
    return list(found.values())


# --- making them one


@dataclass(frozen=True, eq=False)
class _Placed:
    shards: list[Row]
    rows: list[Row]
    linked: int


def _placed(part: BuiltFolder, out: Path, taken: Counter[str], *, copy: bool) -> _Placed:
    """Put a part's tars under the next free numbers of their splits."""
    shards, new_name, linked, numbers = [], {}, 0, Counter(taken)
    for listed in part.manifest["shards"]:
        split = listed["split"]
        name = f"{split}/{split}-{numbers[split]:05d}.tar"
        numbers[split] += 1
        linked += _linked(part, listed, out / name, copy=copy)
        new_name[listed["name"]] = name
        shards.append(listed | {"name": name})
    rows = [row | {"shard": new_name[row["shard"]]} for row in part.rows]
    return _Placed(shards, rows, linked)


def _linked(part: BuiltFolder, listed: Row, target: Path, *, copy: bool) -> bool:
    """Link or copy a tar; returns whether it was linked."""
    store, name = part.store, listed["name"]
    if store.size(name) != listed["size"]:
        what = f"a shard of {part.name} is missing or has another size than its manifest says"
        raise ValueError(f"{what}; run gazeprep lint")
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(store, LocalStore) and not copy:
        try:
            os.link(store.root / name, target)
        except OSError:  # another disk, or a file system without links
            pass
        else:
            return True
    with store.open(name) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    return False


def _manifest(parts: Sequence[BuiltFolder]) -> dict[str, Any]:
    """Join what the parts say of themselves; a value that differs is null, and `parts` holds each one's."""
    manifests = [part.manifest for part in parts]
    configs = [manifest["config"] for manifest in manifests]
    versions = [manifest["versions"] for manifest in manifests]
    return {
        "schema_version": manifests[0]["schema_version"],
        "sources": sorted({source for manifest in manifests for source in manifest["sources"]}),
        "config": {name: _common([config.get(name) for config in configs]) for name in configs[0]},
        "versions": {
            name: ", ".join(sorted({one[name] for one in versions if name in one}))
            for name in sorted({name for one in versions for name in one})
        },
        "noted": dict(sum((Counter(manifest["counts"]["noted"]) for manifest in manifests), Counter())),
        "empty": dict(sum((Counter(manifest["counts"]["empty"]) for manifest in manifests), Counter())),
        "parts": [one for manifest in manifests for one in _parts(manifest)],
    }


def _common(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def _parts(manifest: Record) -> list[Any]:
    """Return the builds that a folder was merged of, itself where it was built."""
    own = {name: manifest[name] for name in ("sources", "config", "versions")}
    return list(manifest.get("parts", [own]))
