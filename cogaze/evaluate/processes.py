"""The same rows from one process or many: batches are dealt out, what comes of them is put together in their order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Rows = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Process:
    """Which of how many processes this one is, in the group that torch.distributed has."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Process":
        """Return this process's place; without a group it is alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0


class OtherProcessError(RuntimeError):
    """Another process could not do its part; it says why itself."""


def batches_of(count: int, size: int) -> list[range]:
    """Cut 0..count into ranges of `size`, the last one shorter: the same cut whatever the number of processes."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def rows_in_order(
    batches: Sequence[T],
    encode: Callable[[Sequence[T]], Iterable[Mapping[str, Tensor]]],
) -> Rows:
    """Encode each batch in one of the processes; every process gets the rows of all, in the order of the batches.

    encode: some of the batches to named tensors (rows, ...) for each. A batch is the same on any number of processes,
    so its rows are. Raises OtherProcessError where another process failed, instead of waiting for it.
    """
    process = Process.current()
    done: list[dict[str, Tensor]] = []
    fault: Exception | None = None
    try:
        done = [dict(one) for one in encode(batches[process.rank :: process.count])]
    except Exception as error:  # noqa: BLE001 - the other processes have to hear of whatever it is
        fault = error
    if process.count > 1:
        done = _exchanged(done, fault, len(batches))
    elif fault is not None:
        raise fault
    if not done:
        raise ValueError("there is nothing to encode; choose a part that has samples")
    return {name: torch.cat([one[name].cpu() for one in done]).numpy() for name in done[0]}


def _exchanged(own: list[dict[str, Tensor]], fault: Exception | None, count: int) -> list[dict[str, Tensor]]:
    """Gather the batches of all processes in order; raises this process's fault, or that another one had one."""
    process = Process.current()
    stated = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in own[0].items()} if own else {}
    report = {"failed": fault is not None, "form": stated, "rows": [len(next(iter(one.values()))) for one in own]}
    reports = _told_each_other(report)
    if fault is not None:
        raise fault
    if any(one.get("failed", True) for one in reports):
        raise OtherProcessError("another process could not do its part")
    forms: dict[str, Any] = next((one["form"] for one in reports if one["form"]), {})
    sizes = [one["rows"] for one in reports]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, (shape, dtype) in forms.items():
        joined = torch.cat([one[name] for one in own]) if own else torch.empty((0, *shape), dtype=dtype)
        for rank, rows in enumerate(_gathered(joined.to(device), [sum(each) for each in sizes])):
            for number, part in enumerate(rows.cpu().split(sizes[rank])):
                parts[rank + number * process.count][name] = part
    return parts


def of_all(own: list[T]) -> list[T]:
    """Put the lists of all processes together, in the order of these; every process gets the whole."""
    if Process.current().count == 1:
        return own
    return [one for told in _told_each_other({"own": own}) for one in told["own"]]


def any_failed(failed: bool) -> bool:
    """Whether this or another process failed at what all of them did; to be asked by each of them after it.

    One that failed waits here, while another may still wait for its rows: that one hears of it there, and comes.
    """
    while Process.current().count > 1:
        told = _told_each_other({"done": failed})
        if all("done" in one for one in told):
            return any(one["done"] for one in told)
    return failed


def _told_each_other(message: dict[str, Any]) -> list[dict[str, Any]]:
    told: list[Any] = [None] * Process.current().count
    dist.all_gather_object(told, message)
    return told


def _gathered(rows: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
    """Deliver the rows of each process; they are padded to one length on their way."""
    flat = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    padded = flat.new_zeros((max(lengths), *flat.shape[1:]))
    padded[: len(flat)] = flat
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    for part, length in zip(parts, lengths, strict=True):
        yield part[:length].to(rows.dtype)
