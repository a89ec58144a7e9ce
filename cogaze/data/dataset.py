"""Random access to a folder of shards: a place in the plan -> one example.

The index says where each member of a sample lies, so nothing is read but what an example needs: local shards
through mmap, remote ones (any fsspec path) by byte range. Files are opened in the process that reads them.
"""

import json
import mmap
import os
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pandas as pd
from torch.utils.data import Dataset

from cogaze.data.plan import PlanColumns, PlanItem
from cogaze.data.transforms import GazeColumns, Record, ViewConfig, gaze_maps, view_draws, view_of
from gazeprep.images import GrayImage, decode
from gazeprep.maps import Grid
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT, InputError, Split
from gazeprep.shards import BLOCK, Place, ShardFolder, member_of, read_npz

VIEWS = ("PA", "AP", "LATERAL", "UNK")
VIEW_NUMBER = {"PA": 0, "AP": 1, "LATERAL": 2, "LL": 2}  # the rest is UNK
SECTIONS = ("indication", "history", "comparison", "technique", "findings", "impression", "last_paragraph")
CONTEXT = ("indication", "history")  # the sections that the context prompt holds
PRIOR = "prior"  # the text of the subject's last study before, which it may hold too
PRIOR_SECTIONS = ("prior_findings", "prior_impression", "prior_last_paragraph")  # of shards built with sample.prior
READ_MEMBERS = ("image", "gaze", "json")  # maps are rendered
OPEN_SHARDS = 64
BESIDE = "auto"  # of DatasetConfig.features: in the folder of the shards

# What damaged bytes, or bytes of another shard, raise on their way to an example.
DAMAGE = (OSError, ValueError, LookupError, TypeError, RecursionError)


REBUILD = "compare the shard's sha256 with dataset.json, copy or build it again"


class CorruptSampleError(ValueError):
    """A sample cannot be read; the message names its shard and key."""


class DamagedTokensError(ValueError):
    """A sample's stored tokens cannot be read; the message says in which file."""

    cure = "remove that file and run pipelines/cache_features.py with the run's options again"


class TokenSource(Protocol):
    """Tokens of a frozen tower by row of a table, in place of its pictures; shape (1 + P, width) of a sample's.

    name: tells towers, views and pictures apart.
    """

    name: str
    shape: tuple[int, int]

    def read(self, row: int) -> npt.NDArray[np.float16]:
        """Return a row's tokens; raises DamagedTokensError."""


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The rows of one split as plain arrays over its N samples, which worker processes share without copying.

    key (N,) bytes. shard (N,) counts shard_names. place (N,): the sample's number among those of its shard, of which
    there are shard_samples (S,) in the whole split. start, length (N, 3): bytes of image, gaze and json in the shard.
    view (N,) counts VIEWS. study_id (N,): equal for samples of one study, negative and unique without one.
    labels (N, 14) int8 in the order of CHEXPERT_LABELS.
    """

    split: str
    shard_names: tuple[str, ...]
    shard_samples: npt.NDArray[np.int64]
    key: npt.NDArray[np.bytes_]
    shard: npt.NDArray[np.int32]
    place: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    has_gaze: npt.NDArray[np.bool_]
    view: npt.NDArray[np.int8]
    study_id: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.key)

    def name(self, row: int) -> str:
        """Return the key of a row."""
        return str(self.key[row], "ascii")

    def plan_columns(self) -> PlanColumns:
        """Return what the epoch plan needs."""
        keys = (key.decode("ascii") for key in self.key.tolist())
        return PlanColumns.of(keys, (self.shard_names[i] for i in self.shard.tolist()), self.has_gaze)


def read_table(root: str | Path, split: Split) -> SampleTable:
    """Read a split's rows of the index of a local folder or an fsspec url.

    Raises ValueError where there is no finished build, its schema version is another, or the split is empty.
    """
    rows = read_folder(root).index
    found = rows["split"].value_counts().to_dict()
    rows = rows[rows["split"] == split].reset_index(drop=True)
    if rows.empty:
        held = ", ".join(f"{name} {count}" for name, count in sorted(found.items())) or "none"
        raise ValueError(f"the shards hold no sample of split {split!r} (samples by split: {held}); choose another")
    shard, shard_names = pd.factorize(rows["shard"])
    views = [VIEW_NUMBER.get(view, len(VIEWS) - 1) for view in rows["view_position"]]
    return SampleTable(
        split=split,
        shard_names=tuple(map(str, shard_names)),
        shard_samples=np.bincount(shard, minlength=len(shard_names)).astype(np.int64),
        key=rows["key"].to_numpy(dtype=np.bytes_),
        shard=shard.astype(np.int32),
        place=rows.groupby("shard").cumcount().to_numpy(dtype=np.int64),
        start=_columns(rows, "offset"),
        length=_columns(rows, "length"),
        has_gaze=rows["has_gaze"].to_numpy(dtype=np.bool_),
        view=np.array(views, dtype=np.int8),
        study_id=_study_ids(rows),
        labels=np.stack(rows["labels"].to_list()).astype(np.int8),
    )


def _columns(rows: pd.DataFrame, what: str) -> npt.NDArray[np.int64]:
    return rows[[f"{member}_{what}" for member in READ_MEMBERS]].to_numpy(dtype=np.int64)


def _study_ids(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Number the studies; a table's are its own, REFLACX's and EGD-CXR's are MIMIC's."""
    own = rows["dataset"].where(rows["dataset"].str.startswith("table-"), "")
    number = pd.factorize(own + "\0" + rows["study"])[0]
    return np.where(rows["study"] == "", -1 - np.arange(len(rows)), number).astype(np.int64)


def read_folder(root: str | Path) -> ShardFolder:
    """Read manifest and index of a local folder or an fsspec url; raises ValueError where it is no finished build."""
    if "://" not in str(root):
        return ShardFolder(root)
    filesystem, path = fsspec.url_to_fs(str(root))
    with TemporaryDirectory() as folder:
        for name in ("dataset.json", "index.parquet"):
            if filesystem.exists(f"{path}/{name}"):
                filesystem.get_file(f"{path}/{name}", f"{folder}/{name}")
        return ShardFolder(folder)


class ShardFiles:
    """Byte ranges of the shards of a folder; keeps the latest shards open, in one process only."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._process = 0
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._remote: tuple[Any, str] | None = None  # filesystem and the folder's path in it

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    def read(self, shard: str, start: int, length: int) -> bytes:
        """Read bytes of a shard; raises ValueError where it is shorter than that."""
        if self._process != os.getpid():  # remote filesystems do not survive a fork
            self._maps, self._remote, self._process = OrderedDict(), None, os.getpid()
        end = start + length
        data = self._fetched(shard, start, end) if "://" in self.root else self._mapped(shard)[start:end]
        if len(data) != length:
            raise ValueError("the shard is shorter than its index says")
        return data

    def _mapped(self, shard: str) -> mmap.mmap:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        with (Path(self.root) / shard).open("rb") as file:
            self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._maps) > OPEN_SHARDS:
            self._maps.popitem(last=False)[1].close()
        return self._maps[shard]

    def _fetched(self, shard: str, start: int, end: int) -> bytes:
        if self._remote is None:
            self._remote = fsspec.url_to_fs(self.root)
        filesystem, path = self._remote
        return bytes(filesystem.cat_file(f"{path}/{shard}", start=start, end=end))


@dataclass(frozen=True)
class DatasetConfig:
    """What becomes of a sample on its way to an example.

    context_dropout: share of samples whose clinical context is left out, drawn anew each epoch, so that the image has
    to be read too; 0 as published.
    skip_corrupt: deliver a corrupt sample as a filler that is counted, instead of stopping the run.
    max_corrupt_in_a_row: skipping more than this many one after another stops it all the same.
    features: where training reads the frozen tower's tokens that pipelines/cache_features.py stored, "auto" beside the
    shards or another folder; "" reads images.
    """

    view: ViewConfig = field(default_factory=ViewConfig)
    seed: int = 0
    context_dropout: float = 0.0
    skip_corrupt: bool = False
    max_corrupt_in_a_row: int = 10
    features: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.context_dropout <= 1:
            raise ValueError(f"data.context_dropout is {self.context_dropout}, must be from 0 to 1")
        if self.max_corrupt_in_a_row < 0:
            raise ValueError(
                f"data.max_corrupt_in_a_row is {self.max_corrupt_in_a_row}, must be at least 0, which stops at the "
                "first"
            )

    @property
    def skipped_in_a_row(self) -> int:
        """How many corrupt samples one after another are skipped; one more stops what reads them."""
        return self.max_corrupt_in_a_row if self.skip_corrupt else 0

    def still(self) -> "DatasetConfig":
        """Return what evaluation reads: nothing drawn at random."""
        return replace(self, view=self.view.still(), context_dropout=0.0)


@dataclass(frozen=True, eq=False)
class Example:
    """One sample, loaded and seen through its view; a filler has no picture, no text and valid False.

    pixels (H, W) uint8, (0, 0) where tokens (1 + P, width) float16 stand for them. patch_mask (P,) bool. maps
    (1 + S, P) float32: the whole reading, then each sentence; (0, P) where no gaze is used. labels (14,) int8. fault:
    why a skipped sample could not be read, "" for none. sections: SECTIONS, and PRIOR where the shards tell of it.
    """

    key: str
    valid: bool
    pixels: npt.NDArray[np.uint8]
    patch_mask: npt.NDArray[np.bool_]
    view_position: int
    study_id: int
    labels: npt.NDArray[np.int8]
    sections: dict[str, str]
    transcript: str
    sentences: tuple[str, ...]
    maps: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.float16] | None = None
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Members:
    """What a sample's files hold: the json, the picture or a tower's tokens of it, the columns of gaze if used."""

    record: Record
    picture: GrayImage | None
    gaze: GazeColumns | None
    tokens: npt.NDArray[np.float16] | None = None


class ShardDataset(Dataset[Example]):
    """The examples of one split, by place in the plan.

    grid: patches (rows, cols) of the vision tower. features: its stored tokens of this table and view, in place of
    pictures. Raises ValueError where the view's canvas is no multiple of the grid.
    """

    def __init__(
        self,
        root: str | Path,
        table: SampleTable,
        grid: Grid,
        config: DatasetConfig | None = None,
        features: TokenSource | None = None,
    ) -> None:
        self.config = config or DatasetConfig()
        self.table, self.grid, self.features = table, grid, features
        self.files = ShardFiles(root)
        size = self.config.view.size_px
        if min(grid) < 1 or size % grid[0] or size % grid[1]:
            raise ValueError(
                f"a view of {size} px cannot be cut into {grid[0]} x {grid[1]} patches of whole pixels; set "
                "view.size_px to the tower's patch size times its grid"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item: PlanItem) -> Example:
        if not item.valid:
            return self._filler(item.row)
        try:
            return self.example(item, self._members(item))
        except DAMAGE as error:
            fault = self._named(item.row, error)
            if not self.config.skip_corrupt:
                cure = error.cure if isinstance(error, DamagedTokensError) else REBUILD
                raise CorruptSampleError(f"{fault}; {cure}, or skip such samples (skip_corrupt)") from None
            return replace(self._filler(item.row), fault=fault)

    def example(self, item: PlanItem, members: Members) -> Example:
        """Draw a sample's view and, where its gaze is used, render its maps."""
        table, config, record = self.table, self.config, members.record
        key = table.name(item.row)
        draws = view_draws(config.seed, item.epoch, key)
        view = view_of(config.view, record, draws)
        left_out = (*CONTEXT, PRIOR) if draws[7] < config.context_dropout else ()
        maps = np.zeros((0, self.grid[0] * self.grid[1]), dtype=np.float32)
        if members.gaze is not None:
            maps = gaze_maps(members.gaze, record, view, self.grid)
        return Example(
            key=key,
            valid=True,
            pixels=no_pixels(0) if members.picture is None else view.draw(members.picture),
            tokens=members.tokens,
            patch_mask=view.patch_mask(self.grid),
            view_position=int(table.view[item.row]),
            study_id=int(table.study_id[item.row]),
            labels=table.labels[item.row],
            sections={name: "" if name in left_out else text for name, text in sections_of(record).items()},
            transcript=record["transcript"],
            sentences=tuple(record["sentences"].split("\n")) if record["sentences"] else (),
            maps=maps,
        )

    def _members(self, item: PlanItem) -> Members:
        record = json.loads(self._read(item.row, "json"))
        if record["key"] != self.table.name(item.row):
            raise ValueError("the shard holds another sample where its index says")
        gaze = read_npz(self._read(item.row, "gaze")) if item.use_gaze else None
        if self.features is not None:
            return Members(record, None, gaze, self.features.read(item.row))
        return Members(record, decode(self._read(item.row, "image")), gaze)

    def _read(self, row: int, member: str) -> bytes:
        table, column = self.table, READ_MEMBERS.index(member)
        shard = table.shard_names[table.shard[row]]
        place = Place(int(table.start[row, column]), int(table.length[row, column]))
        return member_of(self.files.read(shard, place.header, BLOCK + place.length), table.name(row), member, place)

    def _filler(self, row: int) -> Example:
        """Fill a place: nothing of it counts, and no tower sees an input that it cannot take."""
        patches = self.grid[0] * self.grid[1]
        stored = self.features
        return Example(
            key="" if row < 0 else self.table.name(row),
            valid=False,
            pixels=no_pixels(self.config.view.size_px if stored is None else 0),
            tokens=None if stored is None else np.zeros(stored.shape, dtype=np.float16),
            patch_mask=np.ones(patches, dtype=np.bool_),
            view_position=len(VIEWS) - 1,
            study_id=row - len(self) if row < 0 else -1 - row,
            labels=np.full(len(CHEXPERT_LABELS), LABEL_ABSENT, dtype=np.int8),
            sections=dict.fromkeys((*SECTIONS, PRIOR), ""),
            transcript="",
            sentences=(),
            maps=np.zeros((0, patches), dtype=np.float32),
        )

    def _named(self, row: int, error: Exception) -> str:
        shard = self.table.shard_names[self.table.shard[row]]
        # The text of a foreign error may quote paths or a report; ours (and gazeprep's) never do.
        why = str(error) if type(error) in (ValueError, InputError, DamagedTokensError) else type(error).__name__
        return f"sample {self.table.name(row)} of {shard} cannot be read: {why}"


def sections_of(record: Record) -> dict[str, str]:
    """Return the sections of a sample's report, and PRIOR where its shards tell of earlier studies.

    PRIOR is the first of PRIOR_SECTIONS that there is.
    """
    sections = {name: record[name] for name in SECTIONS}
    if PRIOR_SECTIONS[0] not in record:
        return sections
    return sections | {PRIOR: next((record[name] for name in PRIOR_SECTIONS if record[name]), "")}


def no_pixels(size_px: int) -> GrayImage:
    """Return a black canvas of that size."""
    return np.zeros((size_px, size_px), dtype=np.uint8)
