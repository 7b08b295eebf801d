"""Labels of any kind as classes 0, 1, ..."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastvae.data.parts import Array

Labels = tuple[Tensor | None, Tensor | None, tuple[str, ...] | None]


def number_labels(
    source: object, train: Array | None, test: Array | None, classes: tuple[str, ...] | None = None
) -> Labels:
    """Numbers the labels of both parts as classes 0 .. C - 1.

    Integers that are 0 .. C - 1 without a gap, or that ``classes`` names, are kept. All others (strings, and integers
    that start elsewhere or have gaps) are numbered in sorted order over both parts.

    Args:
        source: name of the data in errors.
        train: ``[N]`` or ``[N, 1]``: integers, bool, floating-point numbers that are integers, or strings.
        test: the same for the test part. A part whose labels are all -1 has no labels.
        classes: names of the integers 0, 1, ..., if they have names.

    Returns:
        ``[N]`` int64 or None, the same for the test part, and the names of the classes, which are None if labels are
        integers that were kept and have no names.

    Raises:
        ValueError: a label is missing, a fraction or not among ``classes``, or a sample has several labels.
    """
    given = [None if part is None else _values(source, part) for part in (train, test)]
    parts = [part for part in given if part is not None]
    if not parts:
        return None, None, None
    if len({part.dtype.kind for part in parts}) > 1:
        raise ValueError(f"{source}: has numbers for labels in one part, and strings in the other")
    together = np.concatenate(parts)
    values, numbers = np.unique(together, return_inverse=True)
    if together.dtype.kind == "i" and classes is not None:
        wrong = [int(value) for value in values if not 0 <= value < len(classes)]
        if wrong:
            raise ValueError(f"{source}: has the label {wrong[0]}, but names of classes 0 to {len(classes) - 1}")
        numbers = together
    elif together.dtype.kind != "i" or not np.array_equal(values, np.arange(len(values))):
        classes = tuple(map(str, values))
    rest = torch.from_numpy(numbers.astype(np.int64))
    numbered: list[Tensor | None] = []
    for part in given:
        size = 0 if part is None else len(part)
        numbered.append(None if part is None else rest[:size])
        rest = rest[size:]
    return numbered[0], numbered[1], classes


def _values(source: object, labels: Array) -> Array | None:
    """Labels as ``[N]`` int64 or strings, or None where there are none."""
    if labels.ndim == 0 or labels.size != len(labels):
        raise ValueError(f"{source}: has labels of shape {list(labels.shape)}, expected one class for each sample, [N]")
    labels = labels.reshape(-1)
    kind = labels.dtype.kind
    if kind == "O":
        # As pandas and pyarrow have strings, and what is missing among anything.
        wrong = next((i for i, label in enumerate(labels) if not isinstance(label, str)), None)
        if wrong is not None:
            raise ValueError(f"{source}: the label of row {wrong} is {labels[wrong]!r}, expected a string")
        return labels.astype(str)
    if kind == "S":
        return np.char.decode(labels.astype(np.bytes_), "utf-8", "replace")
    if kind in "UT":
        return labels.astype(str)
    if kind not in "biuf":
        raise ValueError(f"{source}: has labels of type {labels.dtype}, expected integers or strings")
    with np.errstate(invalid="ignore"):  # of NaN
        integers = labels.astype(np.int64)
    fractions = np.flatnonzero(integers != labels)
    if len(fractions):
        raise ValueError(f"{source}: the label of row {fractions[0]} is {labels[fractions[0]]}, expected an integer")
    return None if len(integers) and (integers == -1).all() else integers
