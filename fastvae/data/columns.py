"""Images that are split into one known column and the others."""

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
    """Splits images into the columns to complete and the one column that is known.

    Args:
        images: ``[B, H, W]`` uint8 or bool.
        column: index of the known column; by default the middle one, 13 of 28.
        generator: the source of the noise, by default torch's own.

    Returns:
        The other columns, ``[B, H, W - 1]`` of the dtype of ``images``, and the known column, ``[B, H]`` bool. A uint8
        pixel of the latter is drawn anew at every call, 1 with probability x/255.

    Raises:
        ValueError: the images are not ``[B, H, W]`` uint8 or bool with W > 1, or do not have the column.

    Source: the code of Doersch 2016 (arXiv:1606.05908), sec. 5.
    """
    _check(images)
    column = (images.shape[2] - 1) // 2 if column is None else column
    if not 0 <= column < images.shape[2]:
        raise ValueError(f"column must lie in 0 .. {images.shape[2] - 1}, not {column}")
    return _without(images, column), _drawn(images[:, :, column], generator)


def split_rows(images: Rows, *, generator: torch.Generator | None = None) -> tuple[Rows, Tensor]:
    """Splits rows as :func:`split_column` does with the same noise; other columns are read only when asked for."""
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
    """Puts the known column back between the others.

    Args:
        others: the other columns as from ``split_column``, or completions of them, ``[..., B, H, W - 1]``.
        known: the known column, bool ``[B, H]``.
        column: index of the known column, as for ``split_column``.

    Returns:
        ``[..., B, H, W]``, of the dtype of ``others``.
    """
    column = others.shape[-1] // 2 if column is None else column
    values = known.to(others.dtype)
    if others.dtype == torch.uint8:
        values = values * 255
    values = values.expand(others.shape[:-1]).unsqueeze(-1)
    return torch.cat([others[..., :column], values, others[..., column:]], dim=-1)
