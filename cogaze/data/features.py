"""Stored tokens of a frozen vision tower: a folder with one file beside each shard, one record for each sample.

`features.json` says what the tokens depend on, and its hash is part of the folder's name. `<split>/<shard>.npy` is a
plain numpy array of records (crc32, key, tokens) in the order of the index: a sample's place is arithmetic, so it is
read through mmap or by byte range like everything else in the shards, and it says itself whether it is whole.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from cogaze.data.dataset import DamagedTokensError, SampleTable, ShardFiles
from gazeprep.shards import ShardFolder, canonical_json, to_disk, write_json

MANIFEST = "features.json"
PREFIX = "features-"
UNTOLD = ("_name_or_path", "architectures", "dtype", "transformers_version")  # of a tower's config: change no token

AGAIN = "run pipelines/cache_features.py with the run's options again"

Tokens = npt.NDArray[np.float16]
Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Origin:
    """Everything that stored tokens depend on, as plain json: of equal origins the tokens are equal.

    tower: type, config and a hash of its weights. view: rule, size and mirroring. pixels: mean and deviation. shards:
    a hash of which picture each key has. shape: (1 + P, width) of a sample's tokens. dtype: of a stored number.
    """

    tower: Mapping[str, Any]
    view: Mapping[str, Any]
    pixels: Mapping[str, Any]
    shards: str
    shape: tuple[int, int]
    dtype: str = "float16"

    def as_json(self) -> dict[str, Any]:
        """Return what features.json holds."""
        plain: dict[str, Any] = json.loads(canonical_json(asdict(self)))
        return plain

    @property
    def folder(self) -> str:
        """The name of the folder with these tokens."""
        written = canonical_json(self.as_json()).encode()
        return PREFIX + hashlib.blake2b(written, digest_size=6).hexdigest()


def tower_origin(tower: PreTrainedModel) -> dict[str, Any]:
    """Describe a tower by what it computes: type, config other than the defaults, a hash of all weights."""
    config, defaults = tower.config.to_dict(), type(tower.config)().to_dict()
    # A later transformers may know more options: at their defaults they change nothing here.
    told = {name: value for name, value in config.items() if name not in UNTOLD and value != defaults.get(name)}
    return {"type": tower.config.model_type, "config": told, "weights": weights_hash(tower)}


def weights_hash(module: nn.Module) -> str:
    """Hash names, types, shapes and values of a module's weights, wherever they were read from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pictures_hash(folder: ShardFolder) -> str:
    """Hash which picture each key of a build has: the shards' sha256, and where in them the index says it lies."""
    digest = hashlib.blake2b(digest_size=16)
    for shard in folder.manifest["shards"]:
        digest.update(f"{shard['name']} {shard['sha256']}\n".encode())
    for column in ("shard", "key"):
        digest.update("\n".join(folder.index[column]).encode())
    places = folder.index[["image_offset", "image_length"]].to_numpy(dtype="<i8")
    digest.update(np.ascontiguousarray(places).data)
    return digest.hexdigest()


# --- the layout


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a split's tokens lie: record k of a shard's file belongs to the k-th of the shard's samples in the index.

    samples (shards,): of the whole split. place (rows,): k of a table's samples, which may be some of the split's.
    """

    record: np.dtype[np.void]
    shard_names: tuple[str, ...]
    samples: npt.NDArray[np.int64]  # (shards,)
    place: npt.NDArray[np.int64]  # (rows,)

    @classmethod
    def of(cls, table: SampleTable, shape: tuple[int, int]) -> "Layout":
        """Lay out tokens of a shape (1 + P, width) for the split of which a table holds all samples or some."""
        record = np.dtype([("crc32", "<u4"), ("key", table.key.dtype), ("tokens", "<f2", shape)])
        return cls(record, table.shard_names, table.shard_samples, table.place)

    def file(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return self.shard_names[shard].removesuffix(".tar") + ".npy"

    def header(self, shard: int) -> bytes:
        """Return what numpy writes before the records of a shard."""
        buffer = io.BytesIO()
        described = np.lib.format.dtype_to_descr(self.record)
        shape = (int(self.samples[shard]),)
        np.lib.format.write_array_header_1_0(buffer, {"descr": described, "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    def size(self, shard: int) -> int:
        """Return the bytes of a shard's file."""
        return len(self.header(shard)) + int(self.samples[shard]) * self.record.itemsize


def records_of(layout: Layout, keys: Sequence[bytes], tokens: Tokens) -> Records:
    """Make the records (N,) of samples; an empty key stands for one whose picture could not be read."""
    records = np.zeros(len(keys), dtype=layout.record)
    records["key"], records["tokens"] = keys, tokens
    records["crc32"] = [zlib.crc32(one.data) for one in records["tokens"]]
    return records


def write_shard(root: Path, layout: Layout, shard: int, parts: Iterable[Records]) -> int:
    """Write all records of a shard under a name that appears only when the file is whole; returns its bytes."""
    path = root / layout.file(shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.write(layout.header(shard))
        for records in parts:
            file.write(records.data)
        written = file.tell()
    assert written == layout.size(shard)
    to_disk(unfinished)
    unfinished.replace(path)
    return written


def discard_unfinished(root: Path, split: str) -> None:
    """Remove what a killed process left of a split."""
    for leftover in (root / split).glob(".*.unfinished"):
        leftover.unlink()


def write_origin(root: Path, origin: Origin) -> None:
    """Write features.json."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / MANIFEST, origin.as_json())


def read_origins(container: str | Path) -> dict[str, dict[str, Any]]:
    """Return what each features.json in the folders of a folder or fsspec url says, by folder name."""
    filesystem, path = fsspec.url_to_fs(str(container))
    inside = filesystem.ls(path, detail=False) if filesystem.exists(path) else []
    names = sorted(name for name in (one.rstrip("/").split("/")[-1] for one in inside) if name.startswith(PREFIX))
    texts = {name: f"{path}/{name}/{MANIFEST}" for name in names}
    found = {name: filesystem.cat_file(file) for name, file in texts.items() if filesystem.exists(file)}
    return {name: _parsed(name, text) for name, text in found.items()}


def _parsed(folder: str, text: bytes) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"{MANIFEST} of {folder} is damaged; remove it and {AGAIN}")
    return told


def missing_shards(root: str | Path, layout: Layout, split: str) -> list[int]:
    """Return which shards of a split have no file of the size that it must have."""
    filesystem, path = fsspec.url_to_fs(f"{root}/{split}")
    found = filesystem.find(path, detail=True) if filesystem.exists(path) else {}
    sizes = {f"{split}/{name.split('/')[-1]}": one["size"] for name, one in found.items()}
    return [shard for shard in range(len(layout.samples)) if sizes.get(layout.file(shard)) != layout.size(shard)]


class StoredTokens:
    """A split's tokens by row of its table, opened in the process that reads them.

    Raises ValueError where a shard has no file, or one of another size.
    """

    def __init__(self, container: str | Path, origin: Origin, table: SampleTable) -> None:
        self.name, self.shape = origin.folder, origin.shape
        self.files = ShardFiles(f"{container}/{origin.folder}")
        self._layout = Layout.of(table, origin.shape)
        self._table = table
        self._start = [len(self._layout.header(shard)) for shard in range(len(table.shard_names))]
        missing = missing_shards(self.files.root, self._layout, table.split)
        if missing:
            raise ValueError(
                f"{origin.folder} lacks {len(missing)} of the {len(self._start)} shards of split {table.split}, the "
                f"first {self._layout.file(missing[0])}; {AGAIN} and --splits {table.split}, it goes on"
            )

    def read(self, row: int) -> Tokens:
        """Return a row's tokens (1 + P, width); raises DamagedTokensError."""
        layout, shard = self._layout, int(self._table.shard[row])
        start = self._start[shard] + int(layout.place[row]) * layout.record.itemsize
        try:
            data = self.files.read(layout.file(shard), start, layout.record.itemsize)
        except (OSError, ValueError) as error:
            raise DamagedTokensError(
                f"{layout.file(shard)} of {self.name} cannot be read ({type(error).__name__})"
            ) from None
        record = np.frombuffer(data, dtype=layout.record)[0]
        if not record["key"]:
            raise DamagedTokensError(f"its image could not be read when {self.name} was made")
        tokens: Tokens = record["tokens"]
        offset = layout.record.itemsize - tokens.nbytes
        if record["key"] != self._table.key[row] or zlib.crc32(memoryview(data)[offset:]) != record["crc32"]:
            raise DamagedTokensError(f"{layout.file(shard)} of {self.name} is damaged")
        return tokens
