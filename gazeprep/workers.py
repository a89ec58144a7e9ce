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
from multiprocessing.process import BaseProcess
from typing import Any

import cv2

PR_SET_PDEATHSIG = 1  # of Linux's prctl
LOST_WORKER = "a worker process died, often for lack of memory"


class LostWorkerError(RuntimeError):
    """A worker process died."""


@contextmanager
def worker_pool(
    workers: int, prepare: Callable[[Any], None] | None = None, told: Any = None
) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes, in each of which `prepare(told)` is called first; raises LostWorkerError."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads and locks
    with ProcessPoolExecutor(workers, context, _start, (prepare, told)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            cure = "run the same command again, with fewer workers if it recurs"
            raise LostWorkerError(f"{LOST_WORKER}; {cure}") from None


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
