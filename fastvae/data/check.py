"""Checks of all values of a data set before hours are spent on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from fastvae.data.parts import Progress
from fastvae.data.rows import Data, array_of

_BLOCK_BYTES = 64 << 20
_BYTES = (torch.bool, torch.uint8)


class Expected(NamedTuple):
    """The values that data must hold."""

    values: str = "finite"
    """``"finite"`` numbers, numbers in the ``"unit"`` interval [0, 1], ``"counts"`` 0, 1, 2, ... or ``"levels"``, which
    are uint8."""
    why: str = ""
    """The reason, in the words of errors: ``"for a Bernoulli likelihood"``."""
    total: int | None = None
    """The largest count; None for no limit."""

    def described(self) -> str:
        """The description of the expected values in errors."""
        counts = "counts 0, 1, 2, ..." if self.total is None else f"counts 0 .. {self.total}"
        what = {"finite": "finite numbers", "unit": "numbers in [0, 1]", "counts": counts, "levels": "uint8 levels"}
        return f"{what[self.values]} {self.why}".rstrip()

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The smallest and the largest value that data of a dtype may hold."""
        if self.values == "unit" and dtype not in _BYTES:
            return 0, 1
        if self.values == "counts":
            return 0, math.inf if self.total is None else self.total
        return -math.inf, math.inf

    def wrong(self, block: Tensor) -> Tensor:
        """A mask of the elements of a block that are not expected."""
        low, high = self.bounds(block.dtype)
        wrong = ~torch.isfinite(block) | (block < low) | (block > high)
        return wrong | (block != block.round()) if self._must_be_whole(block) else wrong

    def are_whole(self, block: Tensor) -> bool:
        """Whether a block holds only integers, if it must."""
        return not self._must_be_whole(block) or torch.equal(block, block.round())

    def _must_be_whole(self, block: Tensor) -> bool:
        return self.values == "counts" and block.is_floating_point()


def check(
    name: str,
    data: Tensor,
    expected: Expected,
    *,
    constant: bool = False,
    progress: Progress | None = None,
) -> None:
    """Checks in one pass that a model can learn something from ``data`` and that no value breaks training.

    Args:
        name: name of the data in errors.
        data: ``[N, *E]`` dense or ``torch.sparse_csr`` ``[N, D]``. It is read in order, in blocks of 64 MiB.
        expected: the values that the data must hold. Values of bool and of uint8, read as x/255, lie in [0, 1].
        constant: whether to accept data whose values are all equal, which a trained model can evaluate.
        progress: called with the number of rows read and the total, or of stored values for sparse data.

    Raises:
        ValueError: there are no data; they are not uint8 although levels are expected; a value is NaN, infinite or not
            among those expected (the message gives its row and its index in the row); or all values are equal and
            ``constant`` is false.
    """
    stored = data
    if expected.values == "levels" and data.dtype != torch.uint8:
        kind = str(data.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: holds numbers of type {kind}, expected {expected.described()}")
    low, high = math.inf, -math.inf
    if data.layout is torch.sparse_csr:
        stored = data.values()
        if len(stored) < data.numel():
            low = high = 0  # beside the values
    if data.numel() == 0:
        raise ValueError(f"{name}: holds no data")
    total = len(stored)
    for start, block in _blocks(stored):
        smallest, largest = (value.item() for value in torch.aminmax(_in_memory_order(block)))
        least, most = expected.bounds(block.dtype)
        finite = math.isfinite(smallest) and math.isfinite(largest)
        if not finite or smallest < least or largest > most or not expected.are_whole(block):
            _report(name, data, start, block, expected)
        low, high = min(low, smallest), max(high, largest)
        if progress is not None:
            progress(start + len(block), total)
        if low < high and block.dtype in _BYTES and most >= 255:
            # Nothing in the rest could be wrong.
            if progress is not None:
                progress(total, total)
            return
    if low >= high and not constant:
        raise ValueError(f"{name}: all values are {low}: there is nothing to learn")


def check_parts(
    parts: Iterable[tuple[str, Data]],
    expected: Expected,
    *,
    constant: bool = False,
    progress: Progress | None = None,
) -> None:
    """Runs :func:`check` on parts of a data set, each with its name in errors; a shared array is read once."""
    arrays: dict[int, tuple[str, Tensor]] = {}
    for name, data in parts:
        array = array_of(data)
        arrays.setdefault(id(array), (name, array))
    for name, array in arrays.values():
        check(name, array, expected, constant=constant, progress=progress)


def _blocks(data: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Consecutive rows of some 64 MiB, and the number of the first one."""
    count = len(data)
    if count == 0:
        return
    rows = max(1, _BLOCK_BYTES // max(1, data[0].numel() * data.element_size()))
    for start in range(0, count, rows):
        yield start, data[start : start + rows]


def _in_memory_order(block: Tensor) -> Tensor:
    """A block with its dimensions in the order of memory, which reductions of all elements are much faster in."""
    return block.permute(sorted(range(block.dim()), key=block.stride, reverse=True))


def _report(name: str, data: Tensor, start: int, block: Tensor, expected: Expected) -> NoReturn:
    """Say which value of a block is the first that is wrong, where it stands, and what is expected."""
    where = int(torch.nonzero(expected.wrong(block).flatten())[0])
    value = block.flatten()[where].item()
    if data.layout is torch.sparse_csr:
        position = start + where
        row = int(torch.searchsorted(data.crow_indices(), position, right=True)) - 1
        index = [int(data.col_indices()[position])]
    else:
        place = [int(i) for i in torch.unravel_index(torch.tensor(where), block.shape)]
        row, index = start + place[0], place[1:]
    described = expected.described() if math.isfinite(value) else "finite numbers"
    raise ValueError(f"{name}: row {row}, index {index} is {value}, expected {described}")
