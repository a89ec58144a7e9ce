"""Plan, dataset and collation as one stream of batches on the device, for one process of a run."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from cogaze.data.collate import Batch, Collate
from cogaze.data.dataset import CorruptSampleError, ShardDataset
from cogaze.data.plan import MicroBatches, PlanConfig, Position, Share

# OpenCV's threads do not cross a fork, and a forked process that changes their number waits for them for ever: so
# there are none from the start. Workers are what loads in parallel.
cv2.setNumThreads(1)


@dataclass(frozen=True)
class WorkerConfig:
    """Processes that load ahead: their number (0 loads in the run's own process), batches each, pinned memory."""

    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1:
            raise ValueError(f"workers is {self.workers} and prefetch {self.prefetch}: at least 0 and at least 1")


class Stream:
    """This process's batches, epoch by epoch; `epoch` begins at any position.

    The loader is not for `Accelerator.prepare`, which would share it out a second time.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        collate: Collate,
        plan: PlanConfig,
        share: Share | None = None,
        workers: WorkerConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        workers = workers or WorkerConfig()
        self.dataset = dataset
        self.batches = MicroBatches(dataset.table.plan_columns(), plan, share or Share())
        self.skipped = 0
        self.told: set[str] = set()  # faults that the run has said
        self._untold: list[str] = []
        self._in_a_row = 0
        ahead: dict[str, Any] = {
            "prefetch_factor": workers.prefetch,
            "persistent_workers": True,
            "worker_init_fn": _leave_signals_to_the_run,
        }
        loader = DataLoader(
            dataset,
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=workers.workers,
            pin_memory=workers.pin_memory,
            generator=torch.Generator(),  # an iterator draws a seed; not from the run's own numbers
            **(ahead if workers.workers else {}),
        )
        self._loader = prepare_data_loader(
            loader,
            device=torch.device(device),
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
            non_blocking=workers.pin_memory,
        )

    @property
    def steps(self) -> int:
        """Global batches in an epoch."""
        return self.batches.steps

    def epoch(self, position: Position | None = None) -> Iterator[Batch]:
        """Deliver this process's micro-batches from a position to the end of its epoch.

        Raises CorruptSampleError on a corrupt sample, or where more than a set number in a row had to be skipped.
        """
        self.batches.seek(position or Position())
        try:
            for batch in self._loader:
                self._count_faults(batch)
                yield batch
        except CorruptSampleError as error:
            # Its frames would keep the workers in a cycle, whose collection waits in vain for them, 5 s each.
            error.__traceback__ = None
            raise as_first_told(error) from None

    def take_faults(self) -> list[str]:
        """Return why samples were skipped since this was last asked, one text for each."""
        taken, self._untold = self._untold, []
        return taken

    def _count_faults(self, batch: Batch) -> None:
        for valid, fault in zip(batch.valid.tolist(), batch.faults, strict=True):
            if fault:
                self.skipped += 1
                self._untold.append(fault)
                self._in_a_row += 1
            elif valid:
                self._in_a_row = 0
            if self._in_a_row > self.dataset.config.max_corrupt_in_a_row:
                raise CorruptSampleError(
                    f"{self._in_a_row} samples in a row had to be skipped, the last: {fault}; compare the shards' "
                    "sha256 with dataset.json, copy or build them again"
                )


def as_first_told(error: CorruptSampleError) -> CorruptSampleError:
    """Return an error as it was raised: from a worker it comes inside the text of its traceback."""
    return CorruptSampleError(str(error).rpartition("CorruptSampleError: ")[2].strip())


def _leave_signals_to_the_run(worker: int) -> None:
    """Let a loader's process outlive a signal to the whole group (Slurm, torchrun, Ctrl-C), which the run answers.

    The run still needs batches to finish its step and save. What the run itself sends, as it ends, still ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS; a Python handler does not learn who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, args=(os.getppid(),), daemon=True).start()


def _end_with_the_run(run: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
