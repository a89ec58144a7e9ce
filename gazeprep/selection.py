"""A query on the index, or a list of keys -> a folder of those samples, their bytes unchanged."""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gazeprep.checks import DAMAGE, empty_of
from gazeprep.merge import BuiltFolder, Row, open_built, write_tables
from gazeprep.query import matches
from gazeprep.schema import SPLITS
from gazeprep.shards import BLOCK, KEY, MEMBERS, read_npz
from gazeprep.stores import folder_appearing_whole


@dataclass(frozen=True)
class SelectReport:
    """What a selection wrote."""

    samples: int
    of: int
    shards: int


def chosen_keys(root: Path | str, query: str = "", keys: Path | None = None) -> list[str]:
    """Return the keys that the query and the list of keys both choose, in the order of the shards.

    Raises ValueError on a query that is no comparison of columns, an unknown key, or where nothing is chosen.
    """
    return [row["key"] for row in _chosen(open_built(root, "the folder"), query, keys)]


def select(
    root: Path | str, out: Path, query: str = "", keys: Path | None = None, *, shard_samples: int = 0
) -> SelectReport:
    """Write the chosen samples of a folder or URL into a new folder; shard_samples: per shard, 0 as the build had.

    Raises ValueError as `chosen_keys` does, and where a shard is shorter than its index says.
    """
    built = open_built(root, "the folder")
    shard_samples = shard_samples or built.manifest["config"]["shard_samples"] or 512
    if shard_samples < 1:
        raise ValueError(f"shard_samples is {shard_samples}, must be at least 1")
    chosen = _chosen(built, query, keys)
    with folder_appearing_whole(out) as unfinished:
        written = list(_written(built, chosen, unfinished, shard_samples))
        empty: Counter[str] = sum((one.empty for one in written), Counter())
        rows = [row for one in written for row in one.rows]
        write_tables(unfinished, _about(built, query, keys, empty), rows, [], [one.listed for one in written])
    return SelectReport(len(chosen), len(built.rows), len(written))


def _about(built: BuiltFolder, query: str, keys: Path | None, empty: Counter[str]) -> dict[str, Any]:
    kept = {name: value for name, value in built.manifest.items() if name not in ("counts", "shards", "synthetic")}
    selection = {"query": query, "by_keys": keys is not None, "of_samples": len(built.rows)}
    return kept | {"noted": {}, "empty": dict(empty), "selection": [*built.manifest.get("selection", []), selection]}


# --- which


def _chosen(built: BuiltFolder, query: str, keys: Path | None) -> list[Row]:
    if not query and keys is None:
        raise ValueError("nothing says which samples; give --query, --keys, or both")
    wanted = None if keys is None else _listed_keys(keys, {row["key"] for row in built.rows})
    rows = [row for row in built.rows if wanted is None or row["key"] in wanted]
    if query and rows:
        rows = [row for row, taken in zip(rows, matches(query, rows), strict=True) if taken]
    if not rows:
        raise ValueError(f"none of the {len(built.rows)} samples is chosen; gazeprep info tells what there is")
    return rows


def _listed_keys(path: Path, known: set[str]) -> set[str]:
    listed = path.read_text(encoding="utf-8").split()
    unknown = [key for key in listed if key not in known]
    if unknown:
        shown = f"the first is {unknown[0]}" if KEY.fullmatch(unknown[0]) else "the first is not even a key"
        raise ValueError(f"{len(unknown)} of the {len(listed)} listed keys are not in the folder; {shown}")
    return set(listed)


# --- writing


@dataclass(frozen=True, eq=False)
class _Written:
    """A new shard as the manifest lists it, its rows of the index, its empty sections."""

    listed: Row
    rows: list[Row]
    empty: Counter[str]


def _written(built: BuiltFolder, chosen: Sequence[Row], out: Path, shard_samples: int) -> Iterator[_Written]:
    for split in SPLITS:
        rows = [row for row in chosen if row["split"] == split]
        for number, first in enumerate(range(0, len(rows), shard_samples)):
            yield _write_shard(built, f"{split}/{split}-{number:05d}.tar", rows[first : first + shard_samples], out)


def _write_shard(built: BuiltFolder, name: str, rows: Sequence[Row], out: Path) -> _Written:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    empty: Counter[str] = Counter()
    moved, digest = [], hashlib.sha256()
    with path.open("wb") as file:
        for row in rows:
            data = _sample_bytes(built, row)
            empty.update(_empty(data, row))
            moved.append(_moved(row, name, file.tell() - row["offset"]))
            digest.update(data)
            file.write(data)
        end = bytes(-(file.tell() + 2 * BLOCK) % tarfile.RECORDSIZE + 2 * BLOCK)
        digest.update(end)
        file.write(end)
        size = file.tell()
    listed = {"name": name, "split": rows[0]["split"], "samples": len(rows), "size": size, "sha256": digest.hexdigest()}
    return _Written(listed, moved, empty)


def _sample_bytes(built: BuiltFolder, row: Row) -> bytes:
    """Read a sample's headers and members."""
    data = built.store.part(row["shard"], row["offset"], row["length"])
    if len(data) != row["length"] or row["length"] % BLOCK:
        raise ValueError(f"{row['shard']} is not as its index says of {row['key']}; run gazeprep lint")
    return data


def _empty(data: bytes, row: Row) -> tuple[str, ...]:
    parts = {}
    for role in ("json", "gaze"):
        start = row[f"{role}_offset"] - row["offset"]
        parts[role] = data[start : start + row[f"{role}_length"]]
    try:
        return empty_of(json.loads(parts["json"]), read_npz(parts["gaze"]))
    except DAMAGE as error:
        what = f"{row['shard']}: sample {row['key']} cannot be read ({type(error).__name__})"
        raise ValueError(f"{what}; run gazeprep lint") from None


def _moved(row: Row, shard: str, by: int) -> Row:
    offsets = {name: row[name] + by for name in ("offset", *(f"{role}_offset" for role in MEMBERS))}
    return row | offsets | {"shard": shard}
