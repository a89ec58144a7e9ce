"""Run a function in several gloo processes that start clean: a fork of a test process may inherit a held lock."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.multiprocessing import start_processes

PRELOADED = ["torch.distributed", "transformers", "accelerate", "pytest", "cogaze.fit"]
SECONDS = 200  # less than a test may take, so that no process outlives its test


def clean_context() -> multiprocessing.context.ForkServerContext:
    """Where processes start from a server that has imported much and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_processes(function: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """Run function(*arguments) in so many processes; raises where one fails or hangs; what they say comes last."""
    clean_context()
    with TemporaryDirectory() as folder:
        context = start_processes(
            _started,
            (processes, Path(folder), function, arguments),
            nprocs=processes,
            join=False,
            start_method="forkserver",
        )
        until = time.monotonic() + SECONDS
        try:
            while not context.join(timeout=1):
                if time.monotonic() > until:
                    raise TimeoutError(f"{processes} processes did not end within {SECONDS} s")
        finally:
            for process in context.processes:
                process.kill()
                process.join()
            for said in sorted(Path(folder).glob("said-*")):
                sys.stderr.write(said.read_text())


def _started(
    rank: int, processes: int, folder: Path, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    multiprocessing.set_start_method("fork", force=True)  # for its loaders' workers, as in a process of one's own
    said = os.open(folder / f"said-{rank}", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",  # not used: they meet in the file
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_CPU": "yes",
        "FORK_LAUNCHED": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'met'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    function(*arguments)
