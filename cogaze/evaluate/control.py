"""Controls: shards whose training images, alone or with their context, belong to other studies than the rest."""

import json
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cogaze.data.dataset import CONTEXT
from gazeprep.schema import PriorContext
from gazeprep.shards import (
    INDEX_SCHEMA,
    MEMBERS,
    Sample,
    ShardFolder,
    json_member,
    parquet_bytes,
    sha256_of,
    table_facts,
    write_json,
    write_tar,
)

Dealt = Literal["image", "image and context"]
VIEW = "view_position"  # goes with the image
OF_CONTEXT = (*CONTEXT, *(one.name for one in fields(PriorContext)))  # the latter where shards have them
MEMBER_PLACES = tuple(f"{member}_{what}" for member in MEMBERS for what in ("offset", "length"))
PLACES = ("shard", "key", "offset", "length", *MEMBER_PLACES)


def deal_out(shards: Path, out: Path, seed: int, dealt: Dealt) -> None:
    """Write `out`: the same shards, but each training sample has the image, or image and context, of another one.

    Report, labels and gaze stay. Images change places among those of one stored size, so that view and gaze stay
    well-defined, and go to another study wherever no study has half of them. Other splits stay as they are.
    """
    folder = ShardFolder(shards)
    index, train = folder.index, folder.index[folder.index["split"] == "train"]
    donors = _donors(folder, train, seed)
    shutil.rmtree(out, ignore_errors=True)
    rows = [{**row, "labels": list(row["labels"])} for row in index[index["split"] != "train"].to_dict("records")]
    manifest = deepcopy(folder.manifest)
    for entry in manifest["shards"]:
        target = out / entry["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry["split"] != "train":
            target.symlink_to((shards / entry["name"]).resolve())
            continue
        keys = train.index[train["shard"] == entry["name"]]
        written = write_tar(target, _mixed(folder, {key: donors[key] for key in keys}, dealt))
        rows += [{"shard": entry["name"], **row} for row in written]
        entry |= {"size": target.stat().st_size, "sha256": sha256_of(target)}
    place = {key: number for number, key in enumerate(index["key"])}
    tables = {
        "index.parquet": parquet_bytes(sorted(rows, key=lambda row: place[row["key"]]), INDEX_SCHEMA),
        "rejected.parquet": (shards / "rejected.parquet").read_bytes(),
    }
    for name, data in tables.items():
        (out / name).write_bytes(data)
    write_json(out / "dataset.json", manifest | {"tables": table_facts(tables)})


def _donors(folder: ShardFolder, train: pd.DataFrame, seed: int) -> dict[str, str]:
    """Return by key whose image a sample gets: of those of its stored size in a row by study, the one half-way on."""
    records = [json.loads(folder.member(key, "json")) for key in train.index]
    size = [f"{record['stored_width_px']} x {record['stored_height_px']}" for record in records]
    drawn = np.random.default_rng(seed).permutation(train["study"].nunique())
    place = pd.Series(drawn[pd.factorize(train["study"], sort=True)[0]], index=train.index)
    donors: dict[str, str] = {}
    for _, group in place.groupby(pd.Series(size, index=train.index)):
        row = group.sort_values(kind="stable").index.to_numpy()
        donors |= dict(zip(row, np.roll(row, len(row) // 2), strict=True))
    return donors


def _mixed(folder: ShardFolder, donors: Mapping[str, str], dealt: Dealt) -> Iterator[Sample]:
    for key, donor in donors.items():
        members = {role: folder.member(key, role) for role in MEMBERS}
        record, other = json.loads(members["json"]), json.loads(folder.member(donor, "json"))
        moved = (VIEW, *OF_CONTEXT) if dealt == "image and context" else (VIEW,)
        if other.get("prior_study") == record["study_id"]:  # its own report would be its context
            other |= asdict(PriorContext())
        record |= {name: other[name] for name in moved if name in other}
        members |= {"image": folder.member(donor, "image"), "json": json_member(record)}
        row: dict[str, Any] = {name: value for name, value in folder.row(key).items() if name not in PLACES}
        row |= {"labels": list(row["labels"]), VIEW: folder.row(donor)[VIEW]}
        yield Sample(key, _format(members["image"]), members, row)


def _format(image: bytes) -> str:
    return "png" if image.startswith(b"\x89PNG") else "jpg"
