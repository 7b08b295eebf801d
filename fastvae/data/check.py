"""One look at all of a data set, before hours are spent on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NoReturn

import torch
from torch import Tensor

from fastvae.data.parts import Progress
from fastvae.data.rows import Data, array_of

_BLOCK_BYTES = 64 << 20


def check(
    name: str,
    data: Tensor,
    likelihood: str,
    *,
    binarized: bool = False,
    constant: bool = False,
    progress: Progress | None = None,
) -> None:
    """See that there is something to learn from ``data``, and nothing that breaks training, in one pass.

    Args:
        name: what errors call the data.
        data: ``[N, *E]`` dense or ``torch.sparse_csr`` ``[N, D]``. It is read in order, in blocks of 64 MiB.
        likelihood: of the model. ``"bernoulli"`` asks for values in [0, 1], which bool and uint8 (read as x/255) are.
        binarized: whether binary values are drawn from the data, which must then lie in [0, 1] for any likelihood.
        constant: whether data of which all values are equal pass: a trained model can tell something about them.
        progress: is called with the numbers read and their total.

    Raises:
        ValueError: no data; a value that is NaN, infinite or outside of [0, 1] where it must not be, with its row and
            its index in the row; or data of which all values are equal, unless ``constant``.
    """
    stored = data
    why = "for a Bernoulli likelihood" if likelihood == "bernoulli" else "for binarize dynamic" if binarized else None
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
        unit = why is not None and block.dtype not in (torch.bool, torch.uint8)
        if not (math.isfinite(smallest) and math.isfinite(largest)) or (unit and (smallest < 0 or largest > 1)):
            _report(name, data, start, block, why if unit else None)
        low, high = min(low, smallest), max(high, largest)
        if progress is not None:
            progress(start + len(block), total)
        if low < high and block.dtype in (torch.bool, torch.uint8):
            # Nothing in the rest could be wrong.
            if progress is not None:
                progress(total, total)
            return
    if low >= high and not constant:
        raise ValueError(f"{name}: all values are {low}: there is nothing to learn")


def check_parts(
    parts: Iterable[tuple[str, Data]],
    likelihood: str,
    *,
    binarized: bool = False,
    constant: bool = False,
    progress: Progress | None = None,
) -> None:
    """The same for parts of a data set, each with what errors call it; an array that several are of is read once."""
    arrays: dict[int, tuple[str, Tensor]] = {}
    for name, data in parts:
        array = array_of(data)
        arrays.setdefault(id(array), (name, array))
    for name, array in arrays.values():
        check(name, array, likelihood, binarized=binarized, constant=constant, progress=progress)


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


def _report(name: str, data: Tensor, start: int, block: Tensor, unit: str | None) -> NoReturn:
    """Say which value of a block is the first that is wrong, where it stands, and why it must be in [0, 1], if so."""
    wrong = ~torch.isfinite(block)
    if unit is not None:
        wrong |= (block < 0) | (block > 1)
    where = int(torch.nonzero(wrong.flatten())[0])
    value = block.flatten()[where].item()
    if data.layout is torch.sparse_csr:
        position = start + where
        row = int(torch.searchsorted(data.crow_indices(), position, right=True)) - 1
        index = [int(data.col_indices()[position])]
    else:
        place = [int(i) for i in torch.unravel_index(torch.tensor(where), block.shape)]
        row, index = start + place[0], place[1:]
    expected = "finite numbers" if unit is None or not math.isfinite(value) else f"numbers in [0, 1] {unit}"
    raise ValueError(f"{name}: row {row}, index {index} is {value}, expected {expected}")
