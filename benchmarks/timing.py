"""How long a call takes and how much memory a process has, for several benchmarks."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, after one that is not counted."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken)


def memory_mib(kind: str) -> float:
    """Return this process's memory now (VmRSS) or at its highest (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{kind}:")[1].split()[0]) / 1024
