"""Rows of an array in memory, on the disk or in compressed rows, which are read when they are asked for."""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """Some rows of an array in any order, without a copy of them.

    Args:
        array: ``[N, *E]``, dense, possibly a view of a memory map; or ``torch.sparse_csr`` ``[N, D]``, whose rows are
            returned dense.
        index: int64 ``[M]``, the indices of the rows in their order; None for all rows.
    """

    def __init__(self, array: Tensor, index: Tensor | None = None) -> None:
        self.array, self.index = array, index

    def __len__(self) -> int:
        return len(self.array) if self.index is None else len(self.index)

    @property
    def shape(self) -> torch.Size:
        """The shape of the rows, ``[M, *E]``."""
        return torch.Size([len(self), *self.array.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self.array.dtype

    @property
    def device(self) -> torch.device:
        """The device of the array."""
        return self.array.device

    def __getitem__(self, part: slice) -> Tensor:
        """A slice of the rows, as a view if possible."""
        if self.index is None and self.array.layout == torch.strided:
            return self.array[part]
        return self.take(torch.arange(len(self), device=self.device)[part])

    def take(self, index: Tensor) -> Tensor:
        """Copies of the rows ``index``, int64 ``[B]``: ``[B, *E]``, contiguous."""
        rows = index if self.index is None else self.index[index]
        return (
            _dense_rows(self.array, rows) if self.array.layout == torch.sparse_csr else self.array.index_select(0, rows)
        )

    def to(self, device: torch.device) -> Rows:
        """The rows on another device; compressed rows stay compressed."""
        return Rows(self.array.to(device), None if self.index is None else self.index.to(device))


Data = Tensor | Rows
"""Data for training or evaluation: ``[N, *E]``."""


def array_of(data: Data) -> Tensor:
    """The whole array that rows belong to."""
    return data.array if isinstance(data, Rows) else data


def rows_of(data: Data, part: slice = slice(None)) -> Rows:
    """A part of the rows in their order, without a copy."""
    if isinstance(data, Tensor):
        return Rows(data[part])
    index = torch.arange(len(data), device=data.device) if data.index is None else data.index
    return data if part == slice(None) else Rows(data.array, index[part])


def take(data: Data, index: Tensor) -> Tensor:
    """Copies of the rows ``index``, int64 ``[B]``: ``[B, *E]``, contiguous."""
    return data.take(index) if isinstance(data, Rows) else data.index_select(0, index)


def _dense_rows(array: Tensor, rows: Tensor) -> Tensor:
    starts = array.crow_indices()[rows]
    counts = array.crow_indices()[rows + 1] - starts
    ends = counts.cumsum(0)
    row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    # Where the values of a row are: its start, and onwards.
    at = torch.arange(len(row), device=rows.device) + torch.repeat_interleave(starts - ends + counts, counts)
    dense = torch.zeros(len(rows), array.shape[1], dtype=array.dtype, device=array.device)
    dense[row, array.col_indices()[at].long()] = array.values()[at]
    return dense
