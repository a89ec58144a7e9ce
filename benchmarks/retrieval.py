"""Retrieval among many: python benchmarks/retrieval.py --count 100000 --dim 64.

Random unit vectors, each image with its own text, both directions, every similarity computed and none kept.
"""

import argparse
import time

import numpy as np
from timing import memory_mib

from cogaze.evaluate.retrieval import Resampling, pair_retrieval
from cogaze.evaluate.similarity import Embedded


def main() -> None:
    """Rank, print time and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.count, options.dim))
    texts = images + rng.normal(size=images.shape)
    before = memory_mib("VmHWM")
    started = time.perf_counter()
    figures = pair_retrieval(
        Embedded.of(images), Embedded.of(texts), np.arange(options.count), resampling=Resampling(repeats=0)
    )
    took = time.perf_counter() - started
    print(f"{options.count} x {options.count} of {options.dim} numbers, both directions: {took:.0f} s")
    print(f"peak memory {memory_mib('VmHWM'):.0f} MiB, {before:.0f} MiB before it began")
    print(f"all similarities at once would be {options.count**2 * 8 / 2**20:.0f} MiB")
    for figure in figures:
        print(f"{figure.name}: {figure.value:.4f} (chance {figure.baselines['chance']:.6f})")


if __name__ == "__main__":
    main()
