"""What a model is trained on: two parts of a data set, and their labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Images and labels of a data set, on the CPU."""

    name: str
    train: Tensor
    """``[N, H, W]`` uint8, 0..255."""
    train_labels: Tensor
    """``[N]`` uint8, the class."""
    test: Tensor
    """``[M, H, W]`` uint8, 0..255."""
    test_labels: Tensor
    """``[M]`` uint8, the class."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """``(H, W)``."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int:
        """Labels lie in 0 .. classes - 1."""
        return int(self.train_labels.max()) + 1
