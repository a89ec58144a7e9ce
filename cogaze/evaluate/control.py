"""A control: shards whose training images belong to other studies than their reports, labels and gaze."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gazeprep.shards import INDEX_SCHEMA, ShardFolder

IMAGE = ["image_offset", "image_length"]
PLACE = "place"


def shuffle_images(shards: Path, out: Path, seed: int) -> None:
    """Write `out`: the same shards (as links), with an index that deals out the training images anew.

    Images change places within their shard among those of one stored size, so that view and gaze stay well-defined,
    and go to another study wherever no study has half of them. Other splits stay as they are.
    """
    folder = ShardFolder(shards)
    index = folder.index.reset_index(drop=True)
    train = index[index["split"] == "train"]
    sizes = [json.loads(folder.member(key, "json")) for key in train["key"]]
    size = [f"{record['stored_width_px']} x {record['stored_height_px']}" for record in sizes]
    for _, group in train.groupby(["shard", pd.Series(size, index=train.index)]):
        order = _by_study(group, seed)
        index.loc[order, IMAGE] = index.loc[np.roll(order, len(order) // 2), IMAGE].to_numpy()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in shards.rglob("*.tar"):
        link = out / path.relative_to(shards)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    shutil.copy(shards / "dataset.json", out / "dataset.json")
    pq.write_table(pa.Table.from_pandas(index, schema=INDEX_SCHEMA, preserve_index=False), out / "index.parquet")


def _by_study(group: pd.DataFrame, seed: int) -> "pd.Index[int]":
    """Return rows with those of a study beside each other, studies in a drawn order."""
    studies = pd.Series(np.unique(group["study"]))
    drawn = dict(zip(studies, np.random.default_rng(seed).permutation(len(studies)), strict=True))
    return group.assign(**{PLACE: group["study"].map(drawn)}).sort_values(PLACE, kind="stable").index
