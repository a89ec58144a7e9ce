"""A frozen vision tower runs once: its tokens of every picture are stored, and runs read them in its place."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from cogaze.checkpoint import differences
from cogaze.config import RunConfig
from cogaze.data.collate import normalised
from cogaze.data.dataset import (
    BESIDE,
    REBUILD,
    CorruptSampleError,
    Example,
    SampleTable,
    ShardDataset,
    read_folder,
    read_table,
)
from cogaze.data.features import (
    Layout,
    Origin,
    Records,
    StoredTokens,
    Tokens,
    discard_unfinished,
    missing_shards,
    pictures_hash,
    read_origins,
    records_of,
    tower_origin,
    write_origin,
    write_shard,
)
from cogaze.data.plan import PlanItem
from cogaze.data.transforms import ViewConfig
from cogaze.models.report import pretrained_encoder
from cogaze.models.vision import VisionTower, load_vision_tower
from cogaze.report_config import ReportRun
from gazeprep.schema import Split
from gazeprep.shards import FolderLock

Watch = Callable[[int, int], object]
MAKE = "run pipelines/cache_features.py with this run's options"
NOT_STORED = "it is the pretrained model's, so set data.features to ''"


def stored_tokens(config: RunConfig, table: SampleTable, view: ViewConfig, vision: VisionTower) -> StoredTokens:
    """Open the tokens that a tower gives of a split's pictures, seen through a view.

    Raises ValueError where the tower is not frozen, the view is random, or no such tokens, or not all, are stored.
    """
    origin = origin_of(config, view, vision)
    where = container(config)
    stored = read_origins(where)
    if stored.get(origin.folder) != origin.as_json():
        others = "; ".join(f"{name} has {_differing(found, origin)}" for name, found in stored.items())
        asked_for = "" if table.split in _splits_read(config) else f" and --splits {table.split}"
        raise ValueError(
            f"data.features is {config.data.features}, but there is no {origin.folder} of this tower, view and shards "
            f"({others or 'nor any other'}); {MAKE}{asked_for}, or set data.features to ''"
        )
    return StoredTokens(where, origin, table)


def origin_of(config: RunConfig, view: ViewConfig, vision: VisionTower) -> Origin:
    """Return what stored tokens of a run depend on; raises ValueError where they would not stay the same."""
    if config.model.tuned_blocks:
        raise ValueError(
            f"model.tuned_blocks is {config.model.tuned_blocks}, so the vision tower is not frozen and its tokens "
            "cannot be stored; set it to 0, or data.features to ''"
        )
    if view.is_random:
        still = "set view.rule to letterbox or center_crop, view.flip and view.shift to 0, or data.features to ''"
        raise ValueError(
            f"the view is random (rule {view.rule}, flip {view.flip}, shift {view.shift}), so its tokens cannot be "
            f"stored; {NOT_STORED if isinstance(config, ReportRun) else still}"
        )
    rows, cols = vision.patch_grid
    return Origin(
        tower=tower_origin(vision.tower),
        view={"rule": view.rule, "size_px": view.size_px, "flip": view.flip},
        pixels={"mean": config.collate.pixel_mean, "std": config.collate.pixel_std},
        shards=pictures_hash(read_folder(config.shards)),
        shape=(1 + rows * cols, vision.width),
    )


def container(config: RunConfig) -> str:
    """Return the folder, or fsspec url, in which a run's features folder lies."""
    return config.shards if config.data.features in ("", BESIDE) else config.data.features


def _differing(found: dict[str, object], origin: Origin) -> str:
    return ", ".join(differences(found, origin.as_json()))


# --- storing them


@dataclass(frozen=True)
class CacheReport:
    """What is stored now: folders, samples and bytes in all; written by this call in so many seconds, unreadable."""

    folders: tuple[Path, ...]
    samples: int
    size_bytes: int
    written: int
    unreadable: int
    seconds: float


def cache_features(
    config: RunConfig, splits: Sequence[Split] = (), batch_size: int = 16, watch: Watch | None = None
) -> CacheReport:
    """Store the tokens that a run with this config would read, or what is still missing of them.

    Every process of a launch takes its share of the shards; killed, they go on where they stopped. splits: those that
    the run reads by default. watch: told samples done and to do by this process. Raises ValueError where tokens
    cannot be stored, and CorruptSampleError at a picture that cannot be read, unless the config skips those.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be at least 1")
    accelerator = Accelerator()
    if "://" in container(config):
        raise ValueError("features are written to a local folder: name one in data.features, and copy it afterwards")
    vision = _tower(config)
    parts = [_Part.of(config, split, vision) for split in splits or _splits_read(config)]
    encoder = _Encoder(config, vision.to(accelerator.device), batch_size)
    started = time.perf_counter()
    with ExitStack() as locks:
        if accelerator.is_main_process:
            for root in dict.fromkeys(part.root for part in parts):
                locks.enter_context(_alone(root))
            for part in parts:
                part.begin()
        accelerator.wait_for_everyone()
        own = [part.missing()[accelerator.process_index :: accelerator.num_processes] for part in parts]
        accelerator.wait_for_everyone()  # all have looked before one writes
        encoder.write(parts, own, watch or (lambda done, total: None))
        counts = gather_object([(encoder.written, encoder.unreadable)])
    accelerator.end_training()
    return CacheReport(
        folders=tuple(dict.fromkeys(part.root for part in parts)),
        samples=sum(len(part.table) for part in parts),
        size_bytes=sum(part.size_bytes for part in parts),
        written=sum(written for written, _ in counts),
        unreadable=sum(unreadable for _, unreadable in counts),
        seconds=time.perf_counter() - started,
    )


def _tower(config: RunConfig) -> VisionTower:
    """Read the tower that a run looks through: who writes reports has the pretrained model's, as it was trained."""
    if isinstance(config, ReportRun):
        return pretrained_encoder(config.model.encoder).vision
    towers: Any = config.model
    return VisionTower(load_vision_tower(towers.vision), config.data.view.size_px)


def _splits_read(config: RunConfig) -> tuple[Split, ...]:
    return ("train", "validate") if config.fit.validate_every >= 0 else ("train",)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold a folder for this launch."""
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FolderLock(root / ".lock"))
        except ValueError:
            raise ValueError(f"another process is writing {root.name}; wait for it") from None
        yield


@dataclass(frozen=True, eq=False)
class _Part:
    """One split of a cache: where it is written, of what, from which pictures."""

    root: Path
    origin: Origin
    table: SampleTable
    view: ViewConfig
    layout: Layout

    @classmethod
    def of(cls, config: RunConfig, split: Split, vision: VisionTower) -> "_Part":
        view = config.data.view if split == "train" else config.data.view.still()
        origin, table = origin_of(config, view, vision), read_table(config.shards, split)
        return cls(Path(container(config)) / origin.folder, origin, table, view, Layout.of(table, origin.shape))

    @property
    def size_bytes(self) -> int:
        return sum(self.layout.size(shard) for shard in range(len(self.layout.samples)))

    def begin(self) -> None:
        discard_unfinished(self.root, self.table.split)
        write_origin(self.root, self.origin)

    def missing(self) -> list[int]:
        return missing_shards(self.root, self.layout, self.table.split)

    def batches(self, shard: int, size: int) -> list[list[PlanItem]]:
        """The items of a shard, so many at once; the last may be fewer, none crosses to the next shard."""
        items = [PlanItem(row, True, False, 0) for row in np.flatnonzero(self.table.shard == shard).tolist()]
        return [items[start : start + size] for start in range(0, len(items), size)]


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Pictures (B, H, W) uint8 with keys (B,), and why those that could not be read could not, "" for none (B,)."""

    keys: tuple[str, ...]
    faults: tuple[str, ...]
    pixels: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "_Pictures":
        keys, faults = tuple(one.key for one in examples), tuple(one.fault for one in examples)
        return cls(keys, faults, torch.from_numpy(np.stack([one.pixels for one in examples])))


class _Encoder:
    """Writes what a tower sees, shard by shard, and counts."""

    def __init__(self, config: RunConfig, vision: VisionTower, batch_size: int) -> None:
        self.config, self.vision, self.batch_size = config, vision.eval(), batch_size
        self.written = self.unreadable = 0

    def write(self, parts: Sequence[_Part], shards: Sequence[Sequence[int]], watch: Watch) -> None:
        """Write these shards of each part."""
        total = sum(int(part.layout.samples[list(own)].sum()) for part, own in zip(parts, shards, strict=True))
        for part, own in zip(parts, shards, strict=True):
            batches = {shard: part.batches(shard, self.batch_size) for shard in own}
            pictures = iter(self._loader(part, list(chain.from_iterable(batches.values()))))
            for shard, of_shard in batches.items():
                write_shard(part.root, part.layout, shard, self._records(part, islice(pictures, len(of_shard))))
                watch(self.written, total)

    def _loader(self, part: _Part, batches: list[list[PlanItem]]) -> DataLoader[Example]:
        # Pictures that cannot be read come as faults: an error would come out of a worker as its traceback's text.
        data = replace(self.config.data, view=part.view, skip_corrupt=True)
        dataset = ShardDataset(self.config.shards, part.table, self.vision.patch_grid, data)
        return DataLoader(
            dataset, batch_sampler=batches, collate_fn=_Pictures.of, num_workers=self.config.workers.workers
        )

    def _records(self, part: _Part, pictures: Iterable[_Pictures]) -> Iterator[Records]:
        for seen in pictures:
            faults = [fault for fault in seen.faults if fault]
            if faults and not self.config.data.skip_corrupt:
                raise CorruptSampleError(f"{faults[0]}; {REBUILD}, or skip such samples (data.skip_corrupt)")
            keys = [b"" if fault else key.encode() for key, fault in zip(seen.keys, seen.faults, strict=True)]
            yield records_of(part.layout, keys, self._tokens(seen))
            self.written += len(keys)
            self.unreadable += len(faults)

    @torch.inference_mode()
    def _tokens(self, seen: _Pictures) -> Tokens:
        device, collate = next(self.vision.parameters()).device, self.config.collate
        mean, std = (torch.tensor(one, device=device) for one in (collate.pixel_mean, collate.pixel_std))
        tokens = self.vision(normalised(seen.pixels.to(device), mean, std)).half()
        whole = tokens.isfinite().flatten(1).all(dim=1).tolist()
        if not all(whole):
            raise ValueError(
                f"tokens of sample {seen.keys[whole.index(False)]} leave the range of float16 (65504) and cannot be "
                "stored; set data.features to ''"
            )
        return np.asarray(tokens.cpu().numpy())
