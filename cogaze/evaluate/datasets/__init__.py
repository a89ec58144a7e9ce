"""Readers of the benchmark datasets, one module each; see docs/benchmarks.md."""

from cogaze.evaluate.datasets.registry import READERS, read_dataset, reader_options

__all__ = ["READERS", "read_dataset", "reader_options"]
