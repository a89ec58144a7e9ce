"""What every loss returns for batches that are split over processes and micro-batches."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossSum:
    """A loss summed over what it counts (rows, images with gaze, labels), and how many those are; both scalars."""

    total: Tensor
    count: Tensor
