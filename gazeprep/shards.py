"""Samples <-> tar members: the same four members in every sample, byte-identical tars, an index, reading by key."""

import hashlib
import io
import json
import math
import re
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gazeprep.fixations import on_image
from gazeprep.schema import (
    FIXATION_COLUMNS,
    SCHEMA_VERSIONS,
    SENTENCE_COLUMNS,
    SPLITS,
    WORD_COLUMNS,
    Fixations,
    Sentence,
    Size,
    Word,
)
from gazeprep.stores import FolderLock as FolderLock
from gazeprep.stores import LocalStore, Store, open_store
from gazeprep.stores import appearing_whole as appearing_whole
from gazeprep.stores import remove_abandoned as remove_abandoned
from gazeprep.stores import sha256_of as sha256_of
from gazeprep.stores import to_disk as to_disk
from gazeprep.stores import unusable as unusable
from gazeprep.transcripts import Span

SHARD_NAME = re.compile(rf"(?P<split>{'|'.join(SPLITS)})/(?P=split)-\d{{5,}}\.tar")
KEY = re.compile(r"[a-z0-9-]+-[0-9a-f]{12}")
LISTED = ("synthetic", "sources", "config", "versions", "counts", "shards", "tables")  # in dataset.json
# What numpy's reading of an array's header raises, which it parses as Python, and zipfile on damaged bytes.
_HEADER_ERRORS = (
    ValueError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, LookupError, EOFError, RuntimeError, OSError)
BLOCK = 512  # bytes; a tar header, and what members are padded to

MEMBERS = ("image", "gaze", "json", "maps")
IMAGE_SUFFIXES = ("png", "jpg")
SUFFIX = {"gaze": "gaze.npz", "json": "json", "maps": "maps.npy"}  # the image's is its format

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        *((f"{member}_{what}", pa.int64()) for member in MEMBERS for what in ("offset", "length")),
        ("split", pa.string()),
        ("split_origin", pa.string()),
        ("dataset", pa.string()),
        ("subject", pa.string()),
        ("study", pa.string()),
        ("dicom", pa.string()),
        ("reading", pa.string()),
        ("view_position", pa.string()),
        ("synthetic", pa.bool_()),
        ("has_gaze", pa.bool_()),
        ("fixations", pa.int64()),
        ("sentences", pa.int64()),
        ("sentences_with_gaze", pa.int64()),
        ("labels", pa.list_(pa.int8(), 14)),  # in the order of CHEXPERT_LABELS
    ]
)
REJECTED_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("key", "dataset", "reading_id", "dicom_id", "study_id", "subject_id", "reason", "detail")
    ]
)


def sample_key(dataset: str, source_id: str) -> str:
    """Return the pseudonymous key of a reading or an image: the dataset and 12 hex digits of a hash."""
    digest = hashlib.blake2b(f"{dataset}\0{source_id}".encode(), digest_size=6).hexdigest()
    return f"{dataset}-{digest}"


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample ready to be written: its members as bytes by role, and its row of the index without offsets."""

    key: str
    image_format: str
    members: dict[str, bytes]
    row: dict[str, Any]
    empty: tuple[str, ...] = ()  # sections of the report, or words, that are not there; for the build's counts

    def named_members(self) -> list[tuple[str, str, bytes]]:
        """Return (role, file name, bytes) of each member in the order of the tar."""
        named = [(role, f"{self.key}.{SUFFIX.get(role, self.image_format)}", self.members[role]) for role in MEMBERS]
        return sorted(named, key=lambda member: member[1])


def gaze_member(
    fixations: Fixations,
    image_size: Size,
    words: Sequence[Word],
    sentences: Sequence[Sentence],
    windows: Sequence[Span],
) -> bytes:
    """Pack fixations, words and sentences into the bytes of <key>.gaze.npz: 1-D columns, px_per_deg 0 where unknown."""
    unknown = np.zeros(len(fixations))
    whole = np.tile(np.array([0.0, 0.0, *image_size]), (len(fixations), 1))
    shown = whole if fixations.shown is None else fixations.shown
    values = [
        fixations.x_px,
        fixations.y_px,
        fixations.start_s,
        fixations.end_s,
        unknown if fixations.px_per_deg_x is None else fixations.px_per_deg_x,
        unknown if fixations.px_per_deg_y is None else fixations.px_per_deg_y,
        *shown.T,
        on_image(fixations, image_size),
    ]
    owner = np.full(len(words), -1, dtype=np.int32)
    for i, sentence in enumerate(sentences):
        owner[sentence.first_word : sentence.last_word] = i
    values += [
        np.array([word.text for word in words], dtype=np.str_),
        np.array([word.start_s for word in words], dtype=np.float64),
        np.array([word.end_s for word in words], dtype=np.float64),
        owner,
        np.array([sentence.start_s for sentence in sentences], dtype=np.float64),
        np.array([sentence.end_s for sentence in sentences], dtype=np.float64),
        np.array([window.start_s for window in windows], dtype=np.float64),
    ]
    names = (*FIXATION_COLUMNS, *WORD_COLUMNS, *SENTENCE_COLUMNS)
    buffer = io.BytesIO()
    np.savez(buffer, **dict(zip(names, values, strict=True)))
    return buffer.getvalue()


def fixations_from_member(gaze: Mapping[str, npt.NDArray[Any]]) -> Fixations:
    """Rebuild Fixations from the columns of <key>.gaze.npz; all of px_per_deg 0 means not known."""
    known = bool(len(gaze["x_px"])) and bool((gaze["px_per_deg_x"] > 0).all())
    return Fixations(
        gaze["x_px"],
        gaze["y_px"],
        gaze["start_s"],
        gaze["end_s"],
        px_per_deg_x=gaze["px_per_deg_x"] if known else None,
        px_per_deg_y=gaze["px_per_deg_y"] if known else None,
        shown=np.stack([gaze[f"shown_{edge}"] for edge in ("left", "top", "right", "bottom")], axis=1),
    )


def maps_member(maps: npt.NDArray[np.floating]) -> bytes:
    """Pack maps (1 + S, rows, cols) into the bytes of <key>.maps.npy, float32."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(maps, dtype=np.float32))
    return buffer.getvalue()


def json_member(record: Mapping[str, Any]) -> bytes:
    """Pack a record into canonical json: sorted keys, ASCII, no white space, no NaN."""
    return canonical_json(record).encode("ascii")


def canonical_json(value: Any) -> str:
    """Write a value as json in the one way that equal values always give."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def write_tar(path: Path, samples: Iterator[Sample]) -> list[dict[str, Any]]:
    """Write samples into a tar whose bytes depend on nothing else; returns their index rows with offsets in bytes.

    Raises ValueError on a key that stands twice.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if sample.key in seen:
                raise ValueError(f"key {sample.key} stands twice in one shard: two inputs share a dataset and an id")
            seen.add(sample.key)
            rows.append({"key": sample.key, **sample.row, **_append(tar, sample)})
    return rows


def _append(tar: tarfile.TarFile, sample: Sample) -> dict[str, int]:
    row = {"offset": tar.offset}
    for role, name, data in sample.named_members():
        info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, no names, mode 0644
        info.size = len(data)
        row |= {f"{role}_offset": tar.offset + BLOCK, f"{role}_length": len(data)}
        tar.addfile(info, io.BytesIO(data))
    return row | {"length": tar.offset - row["offset"]}


def parquet_bytes(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Write rows as the bytes of a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    return buffer.getvalue()


def table_facts(tables: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return what a manifest says of the tables beside it: size in bytes and sha256 of each."""
    return {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in tables.items()}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a readable json file under a final name that appears only when the file is whole."""
    LocalStore(path.parent).write(path.name, json_bytes(record))


def json_bytes(record: Mapping[str, Any]) -> bytes:
    """Write a record as readable json."""
    return (json.dumps(record, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("utf-8")


@dataclass(frozen=True, eq=False)
class LoadedSample:
    """One sample read back: image (rows, cols) or encoded bytes, gaze columns, maps (1 + S, rows, cols), the record."""

    key: str
    image: bytes
    gaze: dict[str, npt.NDArray[Any]]
    maps: npt.NDArray[np.float32]
    record: dict[str, Any]


class ShardFolder:
    """A finished build, read by key; `root` is a folder or a URL that fsspec knows, such as s3://bucket/shards.

    Raises ValueError where the folder is no finished build, was written under another schema version or lacks
    files, and on an unknown key.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._store = open_store(root)
        if self._store.size("dataset.json") is None:
            raise ValueError(
                "the folder holds no dataset.json, so it is no finished build; run gazeprep build (it goes on "
                "where an interrupted one stopped)"
            )
        self.manifest: dict[str, Any] = _read_manifest(self._store)
        version = self.manifest.get("schema_version")
        if version not in SCHEMA_VERSIONS:
            known = " and ".join(map(str, SCHEMA_VERSIONS))
            raise ValueError(f"the shards have schema version {version}, this gazeprep reads {known}; build them again")
        _check_age("dataset.json", LISTED, self.manifest)
        self.index: Any = _read_index(self._store, self.manifest).set_index("key", drop=False)

    def __len__(self) -> int:
        return len(self.index)

    def keys(self) -> list[str]:
        """Return all keys in the order of the shards."""
        return list(self.index["key"])

    def row(self, key: str) -> Mapping[str, Any]:
        """Return a sample's row of the index."""
        if key not in self.index.index:
            named = f"key {key!r}" if KEY.fullmatch(key) else "this text"  # a source id is not repeated
            raise ValueError(f"{named} is not among the {len(self)} keys; gazeprep info lists some")
        return dict(self.index.loc[key])

    def member(self, key: str, role: str) -> bytes:
        """Read one member's bytes; role is image, gaze, json or maps."""
        row = self.row(key)
        place = Place(int(row[f"{role}_offset"]), int(row[f"{role}_length"]))
        shard = str(row["shard"])
        try:
            block = self._store.part(shard, place.header, BLOCK + place.length)
        except OSError as error:
            raise ValueError(f"{shard} {_unreadable(error)}") from None
        try:
            return member_of(block, key, role, place)
        except ValueError as error:
            raise ValueError(f"{shard} {error}: copy shards and index again, or run the build again") from None

    def sample(self, key: str) -> LoadedSample:
        """Read one whole sample; raises ValueError where its bytes are damaged."""
        members = {role: self.member(key, role) for role in MEMBERS}
        try:
            return LoadedSample(
                key=key,
                image=members["image"],
                gaze=read_npz(members["gaze"]),
                maps=read_npy(members["maps"]),
                record=json.loads(members["json"]),
            )
        except (ValueError, RecursionError) as error:  # of json, whose message may quote what it read
            why = str(error) if type(error) is ValueError else type(error).__name__
            shard = self.row(key)["shard"]
            raise ValueError(f"{shard} {key} is damaged: {why}; copy the shard again, or run the build again") from None


def _read_manifest(store: Store) -> dict[str, Any]:
    try:
        manifest = json.loads(store.read("dataset.json"))
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset.json {_unreadable(error)}") from None
    if not isinstance(manifest, dict):
        raise ValueError("dataset.json was not written by gazeprep; give the folder that a build wrote")
    return manifest


def _read_index(store: Store, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Read the index that the manifest lists: one of another build would place samples where others lie."""
    try:
        data = store.read("index.parquet")
        table = pq.read_table(io.BytesIO(data))
        table.validate(full=True)
        index = table.to_pandas()
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise ValueError(f"index.parquet {_unreadable(error)}") from None
    listed = manifest.get("tables")
    if not isinstance(listed, dict) or table_facts({"index.parquet": data})["index.parquet"] != listed.get(
        "index.parquet"
    ):
        raise ValueError(
            "index.parquet is not the one that dataset.json lists: its bytes were changed, or it is another build's; "
            "copy both again, or run the build again"
        )
    _check_age("index.parquet", INDEX_SCHEMA.names, index)
    odd = [name for name in index["shard"].unique() if not SHARD_NAME.fullmatch(name)]
    odd += [key for key in index["key"] if not KEY.fullmatch(key)]  # exports name files by it
    if odd:
        raise ValueError(f"index.parquet names {len(odd)} shards or keys that no build writes; run gazeprep lint")
    return index


def _check_age(name: str, expected: Iterable[str], found: Container[str]) -> None:
    """Raise ValueError where a table or the manifest lacks what versions before this one did not write."""
    lacking = [one for one in expected if one not in found]
    if lacking:
        raise ValueError(f"{name} lacks {', '.join(lacking)}: an earlier gazeprep wrote it; build the shards again")


def _unreadable(error: Exception) -> str:
    return f"cannot be read ({type(error).__name__}): copy it again, check its permissions, or run the build again"


@dataclass(frozen=True)
class Place:
    """Where the index says that a member's bytes lie in its shard; raises ValueError where no member can."""

    start: int
    length: int

    def __post_init__(self) -> None:
        if self.start < BLOCK or self.length < 0:
            raise ValueError(
                f"no member of a shard lies at byte {self.start} with {self.length} bytes; lint the folder"
            )

    @property
    def header(self) -> int:
        """Where the member's tar header lies."""
        return self.start - BLOCK


def member_of(block: bytes, key: str, role: str, place: Place) -> bytes:
    """Return a member's bytes from those of the tar from its header on.

    Raises ValueError where they end early, or the header is of another key, role or length: an index that was swapped.
    """
    if len(block) != BLOCK + place.length:
        raise ValueError(f"is shorter than its index says for {key}")
    suffixes = (SUFFIX[role],) if role in SUFFIX else IMAGE_SUFFIXES
    named = block[:100].rstrip(b"\0") in {f"{key}.{suffix}".encode() for suffix in suffixes}
    if not named or block[124:135] != b"%011o" % place.length:
        raise ValueError(f"holds something else where its index places the {role} of {key}")
    return block[BLOCK:]


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """Read the array of an npy from bytes; raises ValueError where it is damaged, pickled, or claims other bytes."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except _HEADER_ERRORS as error:
        raise ValueError(f"an array's header cannot be read ({type(error).__name__})") from None
    if dtype.hasobject:
        raise ValueError("an array is pickled (allow_pickle), which runs code when it is loaded")
    held = len(data) - file.tell()
    claimed = math.prod(shape) * dtype.itemsize
    if version != (1, 0) or min(shape, default=0) < 0 or not dtype.itemsize or claimed != held:
        raise ValueError(f"an array's header claims other bytes than the {held} that follow")
    array: npt.NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array


def read_npz(data: bytes, most_bytes: int | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read every array of an npz from bytes; raises ValueError as `read_npy` does, or where it unpacks to more.

    most_bytes: what a compressed one may unpack to; without it, no more than its own length.
    """
    most = len(data) if most_bytes is None else most_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            is_plain = sum(member.file_size for member in members) <= most
            arrays = {member.filename: archive.read(member) for member in members} if is_plain else {}
    except _ZIP_ERRORS as error:
        raise ValueError(f"the npz cannot be read ({type(error).__name__})") from None
    if not is_plain:
        allowed = "its own bytes" if most_bytes is None else f"{most_bytes} bytes"
        raise ValueError(f"the npz claims to hold more than {allowed}")
    return {name.removesuffix(".npy"): read_npy(array) for name, array in arrays.items()}
