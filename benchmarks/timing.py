"""How long a call takes, for the benchmarks of single functions."""

import time
from collections.abc import Callable
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
