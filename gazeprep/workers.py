"""Processes that work for this one: spawned, with one thread each, and gone when this one is, however it ends."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

import cv2

PR_SET_PDEATHSIG = 1  # of Linux's prctl
LOST_WORKER = "a worker process died, often for lack of memory"


class LostWorkerError(RuntimeError):
    """A worker process died."""


class _Spawning(SpawnContext):
    """Spawned processes, all of which are known."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[SpawnProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]
        self.made.append(SpawnProcess(*arguments, **options))
        return self.made[-1]

    def has_lost_one(self) -> bool:
        """Whether one has ended: by its pipe, since its exit code may be on its way to the pool's own thread."""
        return bool(wait([process.sentinel for process in self.made if process.pid is not None], timeout=0))

    def kill_all(self) -> None:
        for process in self.made:
            if process.pid is not None:
                process.kill()
                process.join()


@contextmanager
def worker_pool(
    workers: int, prepare: Callable[[Any], None] | None = None, told: Any = None
) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes, in each of which `prepare(told)` is called first; raises LostWorkerError.

    What still runs at the end is killed: wait for calls that must come to theirs.
    """
    context = _Spawning()  # a fork would copy this process's threads and locks
    with ProcessPoolExecutor(workers, context, _start, (prepare, told)) as pool:
        try:
            yield pool
        except (BrokenProcessPool, OSError) as error:  # a pool that breaks while it starts a process says OSError
            if not isinstance(error, BrokenProcessPool) and not context.has_lost_one():
                raise
            cure = "run the same command again, with fewer workers if it recurs"
            raise LostWorkerError(f"{LOST_WORKER}; {cure}") from None
        finally:
            # Not by a word to each, as the pool does it: a worker that is killed as it listens leaves the others deaf,
            # and the pool waits for them for ever.
            context.kill_all()


def _start(prepare: Callable[[Any], None] | None, told: Any) -> None:
    cv2.setNumThreads(1)
    if prepare is not None:
        prepare(told)
    if sys.platform == "linux":  # at once, whatever it does: the next build may write the same shards otherwise
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None:  # elsewhere, and where it had ended before it was asked for
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
