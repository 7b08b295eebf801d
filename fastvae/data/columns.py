"""Images of which one column is known."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.data.batches import Batches
from fastvae.data.rows import Data, Rows
from fastvae.ops import binarize

_BATCH = 1000


def split_column(
    images: Tensor, column: int | None = None, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Take one column of each image as what is known of it, and the others as what is to be completed.

    Args:
        images: ``[B, H, W]`` uint8 or bool.
        column: which one; by default that in the middle, 13 of 28.
        generator: the source of the noise, by default torch's own.

    Returns:
        The other columns, ``[B, H, W - 1]`` of the dtype of ``images``, and the column, ``[B, H]`` bool: a uint8
        pixel is drawn anew at every call, 1 with probability x/255.

    Raises:
        ValueError: images that are not ``[B, H, W]`` uint8 or bool with W > 1, or a column that they have not.

    Source: the code of Doersch 2016 (arXiv:1606.05908), sec. 5.
    """
    _check(images)
    column = (images.shape[2] - 1) // 2 if column is None else column
    if not 0 <= column < images.shape[2]:
        raise ValueError(f"column must lie in 0 .. {images.shape[2] - 1}, not {column}")
    return _without(images, column), _drawn(images[:, :, column], generator)


def split_rows(images: Rows, *, generator: torch.Generator | None = None) -> tuple[Rows, Tensor]:
    """The middle column, with the same noise, of rows of which no copy is made: others are read when asked for."""
    _check(images)
    column = (images.shape[2] - 1) // 2
    known = torch.cat([batch[:, :, column] for batch in Batches(images, _BATCH)])
    return _Others(images, column), _drawn(known, generator)


class _Others(Rows):
    """Images without one of their columns."""

    def __init__(self, images: Rows, column: int) -> None:
        super().__init__(images.array, images.index)
        self.images, self.column = images, column

    @property
    def shape(self) -> torch.Size:
        *rest, width = self.images.shape
        return torch.Size([*rest, width - 1])

    def __getitem__(self, part: slice) -> Tensor:
        return _without(self.images[part], self.column)

    def take(self, index: Tensor) -> Tensor:
        return _without(self.images.take(index), self.column)

    def to(self, device: torch.device) -> Rows:
        return _Others(self.images.to(device), self.column)


def _check(images: Data) -> None:
    if len(images.shape) != 3 or images.shape[2] < 2 or images.dtype not in (torch.uint8, torch.bool):
        raise ValueError(f"images must be uint8 or bool [B, H, W], W > 1, not {images.dtype} {list(images.shape)}")


def _without(images: Tensor, column: int) -> Tensor:
    return torch.cat([images[:, :, :column], images[:, :, column + 1 :]], dim=2)


def _drawn(known: Tensor, generator: torch.Generator | None) -> Tensor:
    return binarize(known, generator=generator) if known.dtype == torch.uint8 else known


def join_column(others: Tensor, known: Tensor, column: int | None = None) -> Tensor:
    """Put a column back: ``[..., B, H, W - 1]`` and ``[B, H]`` to ``[..., B, H, W]``, of the dtype of ``others``.

    Args:
        others: as ``split_column`` gives them, or completions of ``[B, H]``, with any leading dimensions.
        known: the column, bool.
        column: as for ``split_column``.
    """
    column = others.shape[-1] // 2 if column is None else column
    values = known.to(others.dtype)
    if others.dtype == torch.uint8:
        values = values * 255
    values = values.expand(others.shape[:-1]).unsqueeze(-1)
    return torch.cat([others[..., :column], values, others[..., column:]], dim=-1)
