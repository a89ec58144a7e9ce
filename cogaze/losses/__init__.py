"""Tensors to a scalar: each loss as a mean, and as a sum with its count for batches that are split over ranks."""
