"""The epoch plan: which sample stands where in which global batch, as a pure function.

A plan depends on the seed, the epoch, the index and the global batch, never on the processes or workers that
deliver it. Every sample stands in it once; what is left of the last global batch is filled.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
HashArray = npt.NDArray[np.uint64]


class PlanItem(NamedTuple):
    """What one place of a plan asks for; row counts a split's samples, a filler has a negative one of its own."""

    row: int
    valid: bool
    use_gaze: bool
    epoch: int


@dataclass(frozen=True)
class PlanConfig:
    """How an epoch is cut and mixed.

    global_batch: samples a step over all processes and micro-batches. shuffle: False keeps the order of the
    shards. window_shards: samples are mixed within this many shards, so that reads stay near each other.
    gaze_ratio: the share of the readings whose gaze is used, chosen by hash: a larger share holds a smaller one.
    """

    global_batch: int = 160
    seed: int = 0
    shuffle: bool = True
    window_shards: int = 16
    gaze_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in ("global_batch", "window_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"plan.{name} is {getattr(self, name)}, must be at least 1")
        if not 0 <= self.gaze_ratio <= 1:
            raise ValueError(f"plan.gaze_ratio is {self.gaze_ratio}, must be a share from 0 to 1")


@dataclass(frozen=True, eq=False)
class PlanColumns:
    """What a plan needs to know of each of N samples: hashes of key and shard (N,), whether it has gaze (N,)."""

    key_hash: HashArray
    shard_hash: HashArray
    has_gaze: BoolArray

    @classmethod
    def of(cls, keys: Iterable[str], shards: Iterable[str], has_gaze: npt.ArrayLike) -> "PlanColumns":
        """Hash keys (N,) and shard names (N,)."""
        known: dict[str, int] = {}
        shard_hash = [known[name] if name in known else known.setdefault(name, _hash(name)) for name in shards]
        return cls(
            key_hash=np.array([_hash(key) for key in keys], dtype=np.uint64),
            shard_hash=np.array(shard_hash, dtype=np.uint64),
            has_gaze=np.array(has_gaze, dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.key_hash)


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: the next global batch to deliver."""

    epoch: int = 0
    step: int = 0

    def next(self, steps: int) -> "Position":
        """Return the position after one global batch, of which an epoch has `steps`."""
        return Position(self.epoch, self.step + 1) if self.step + 1 < steps else Position(self.epoch + 1, 0)


@dataclass(frozen=True)
class Share:
    """One process's part of each global batch: the places rank, rank + world, ... in `accumulation` micro-batches."""

    rank: int = 0
    world: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.accumulation < 1 or not 0 <= self.rank < self.world:
            raise ValueError(f"{self}: rank must be 0 to world - 1, accumulation at least 1")

    def micro_batch(self, global_batch: int) -> int:
        """Return the samples of one micro-batch; raises ValueError where the global batch cannot be cut evenly."""
        parts = self.world * self.accumulation
        if global_batch % parts:
            raise ValueError(
                f"a global batch of {global_batch} cannot be shared by {self.world} processes with "
                f"{self.accumulation} micro-batches each; choose a multiple of {parts}"
            )
        return global_batch // parts

    def places(self, global_batch: int, micro_step: int) -> slice:
        """Return the places of a global batch that this process delivers in one of its micro-batches."""
        return slice(self.rank + self.world * micro_step, global_batch, self.world * self.accumulation)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch as global batches: rows (steps, global_batch), negative for fillers, and whose gaze is used."""

    epoch: int
    rows: IntArray
    use_gaze: BoolArray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def valid(self) -> BoolArray:
        """Which places (steps, global_batch) hold a sample."""
        return np.asarray(self.rows >= 0)

    def items(self, step: int, places: slice = slice(None)) -> list[PlanItem]:
        """Return places of one global batch."""
        rows, use_gaze = self.rows[step, places].tolist(), self.use_gaze[step, places].tolist()
        return [PlanItem(row, row >= 0, gaze, self.epoch) for row, gaze in zip(rows, use_gaze, strict=True)]


def epoch_plan(columns: PlanColumns, config: PlanConfig, epoch: int) -> EpochPlan:
    """Order an epoch and cut it into global batches, gaze samples first in each and spread evenly over them.

    With gaze in G of N samples the first n places of the epoch hold floor(n·G/N) gaze samples at the end of
    each global batch. Raises ValueError where there are no samples.
    """
    total, size = len(columns), config.global_batch
    if not total:
        raise ValueError("there are no samples to plan; choose a split that has some")
    order = _shuffled(columns, config, epoch) if config.shuffle else np.arange(total)
    use_gaze = columns.has_gaze & gaze_choice(columns, config)
    with_gaze, without = order[use_gaze[order]], order[~use_gaze[order]]
    steps = -(-total // size)
    ends = np.minimum(np.arange(steps + 1) * size, total)
    gaze_ends = ends * len(with_gaze) // total
    rows = -1 - np.arange(steps * size, dtype=np.int64).reshape(steps, size)
    gaze = np.zeros((steps, size), dtype=np.bool_)
    for step in range(steps):
        first, last = gaze_ends[step], gaze_ends[step + 1]
        mixed = [with_gaze[first:last], without[ends[step] - first : ends[step + 1] - last]]
        rows[step, : ends[step + 1] - ends[step]] = np.concatenate(mixed)
        gaze[step, : last - first] = True
    return EpochPlan(epoch, rows, gaze)


def gaze_choice(columns: PlanColumns, config: PlanConfig) -> BoolArray:
    """Tell which samples (N,) are among the share whose gaze may be used: their hash lies below the ratio."""
    return np.asarray(uniform(_mixed(columns.key_hash, f"gaze {config.seed}")) < config.gaze_ratio)


def uniform(hashes: HashArray) -> npt.NDArray[np.float64]:
    """Turn 64-bit hashes into numbers in [0, 1)."""
    return np.asarray((hashes >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _shuffled(columns: PlanColumns, config: PlanConfig, epoch: int) -> IntArray:
    """Sort the samples by a hash of seed, epoch and key, within windows of shards sorted likewise."""
    shard = _mixed(columns.shard_hash, f"shard {config.seed} {epoch}")
    window = np.unique(shard, return_inverse=True)[1] // config.window_shards
    return np.lexsort((_mixed(columns.key_hash, f"key {config.seed} {epoch}"), window))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mixed(hashes: HashArray, salt: str) -> HashArray:
    """Hash hashes (N,) again under a salt: splitmix64's finalizer, plain arithmetic that no library can change."""
    z = hashes ^ np.uint64(_hash(salt))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


@dataclass
class MicroBatches:
    """A batch sampler: this process's micro-batches of one epoch, from a position on.

    Has what torch and accelerate ask of a batch sampler. `seek` costs one plan, however far it goes.
    """

    columns: PlanColumns
    config: PlanConfig
    share: Share = field(default_factory=Share)
    position: Position = field(default_factory=Position)
    drop_last: bool = False

    def __post_init__(self) -> None:
        self.batch_size = self.share.micro_batch(self.config.global_batch)
        self.steps = -(-len(self.columns) // self.config.global_batch)
        self._plan: EpochPlan | None = None

    def seek(self, position: Position) -> None:
        """Go to a global batch; raises ValueError where the epoch has no such step."""
        if not 0 <= position.step < self.steps or position.epoch < 0:
            raise ValueError(
                f"{position} is not in this data, whose epochs have {self.steps} steps; resume with the shards and the "
                "global batch of the run"
            )
        self.position = position

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch."""
        if self._plan is None or self._plan.epoch != self.position.epoch:
            self._plan = epoch_plan(self.columns, self.config, self.position.epoch)
        return self._plan

    def __len__(self) -> int:
        return (self.steps - self.position.step) * self.share.accumulation

    def __iter__(self) -> Iterator[list[Any]]:
        plan, size = self.plan, self.config.global_batch
        for step in range(self.position.step, self.steps):
            for micro_step in range(self.share.accumulation):
                yield plan.items(step, self.share.places(size, micro_step))
