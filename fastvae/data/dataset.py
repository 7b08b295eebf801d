"""Data sets for training: training rows, test rows and their labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvae.data.arrays import Layout, arrange
from fastvae.data.labels import number_labels
from fastvae.data.parts import to_number, to_tensor
from fastvae.data.rows import Data, Rows
from fastvae.data.sources import read
from fastvae.data.sparse import to_csr
from fastvae.data.torch_data import TorchData


@dataclass(frozen=True)
class Dataset:
    """Rows to train on and rows to test on, with their labels if there are any, all on the CPU."""

    name: str
    train: Data | TorchData
    """``[N, *E]``: uint8 (read as x/255, but as counts for a likelihood of counts), bool, other integers or floating
    point."""
    train_labels: Tensor | None
    """Class of each training row, ``[N]`` integers; None without labels."""
    test: Data
    """``[M, *E]``, of the same dtype."""
    test_labels: Tensor | None
    """Class of each test row, ``[M]`` integers; None without labels."""
    num_classes: int | None = None
    """Number of classes, needed if the labels cannot all be read in advance."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """E, the shape of one row, e.g. ``(H, W)``."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes; labels lie in 0 .. classes - 1.

        Raises:
            ValueError: there are no labels.
        """
        if self.num_classes is not None:
            return self.num_classes
        if self.train_labels is None or self.test_labels is None:
            part = " training" if self.test_labels is not None else " test" if self.train_labels is not None else ""
            which = f": the{part} set" if part else ""
            raise ValueError(f"{self.name}{which} has no labels, which condition labels needs")
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @classmethod
    def from_arrays(
        cls,
        train: Any,
        test: Any = None,
        *,
        labels: Any = None,
        test_labels: Any = None,
        test_fraction: float = 0.1,
        seed: int = 0,
        layout: Layout = "auto",
        name: str = "the data",
    ) -> Dataset:
        """A data set of arrays, which are not copied if torch can read them as they are.

        Args:
            train: ``[N, *E]``: a torch tensor on the CPU (also ``torch.sparse_csr``), a numpy array or memory map, a
                scipy sparse matrix, or nested lists of numbers. uint8 is read as x/255, bool as 0 and 1, other numbers
                as they are.
            test: the same for the test set. Without it, part of ``train`` is set aside.
            labels: ``[N]``, the class of each row of ``train``: integers or strings. Those that are not 0 .. C - 1 are
                numbered in sorted order.
            test_labels: ``[M]``, the class of each row of ``test``.
            test_fraction: fraction of the rows of ``train`` that is set aside, in (0, 1). The choice of these rows
                depends only on ``seed`` and the number of rows.
            seed: seed of the choice of rows that are set aside.
            layout: ``"hwc"`` for images ``[N, H, W, C]``, ``"chw"`` for ``[N, C, H, W]``. ``"auto"`` takes 4 dimensions
                for ``[N, H, W, C]`` if the last is 1, 3 or 4 and the second is not. Networks are given
                ``[N, C, H, W]``.
            name: name of the data set in errors.

        Raises:
            ValueError: shapes or dtypes do not fit, a tensor is on another device, or there are too few rows to set
                some aside.
        """
        for what, given in (
            (name, train),
            (f"{name} (test)", test),
            (f"{name} (labels)", labels),
            (f"{name} (test_labels)", test_labels),
        ):
            if isinstance(given, Tensor) and given.device.type != "cpu":
                raise ValueError(
                    f"{what} is on the device {given.device}, expected a tensor on the CPU: use its .cpu()"
                )
        data = _number(train, layout, name)
        held_out = None if test is None else _number(test, layout, f"{name} (test)")
        one, other = (None if values is None else np.asarray(values) for values in (labels, test_labels))
        if test is not None and (one is None) != (other is None):
            raise ValueError(f"{name}: give labels for both parts or for none")
        train_labels, held_labels, _ = number_labels(name, one, other)
        return cls._of(name, data, train_labels, held_out, held_labels, test_fraction, seed)

    @classmethod
    def _of(
        cls,
        name: str,
        data: Tensor,
        labels: Tensor | None,
        held_out: Tensor | None,
        held_labels: Tensor | None,
        test_fraction: float,
        seed: int,
    ) -> Dataset:
        for part, rows, classes in (("data", data, labels), ("test set", held_out, held_labels)):
            if rows is None:
                if classes is not None:
                    raise ValueError(f"{name}: there are labels for a test set, but no test set")
                continue
            if rows.dim() < 2 or len(rows) == 0:
                raise ValueError(f"{name}: the {part} has shape {list(rows.shape)}, expected [N, *E], N > 0")
            if classes is not None and len(classes) != len(rows):
                raise ValueError(f"{name}: the {part} has {len(rows)} rows, but {len(classes)} labels")
        if held_out is None:
            kept, aside = _split(len(data), test_fraction, seed, name)
            parts = [None if labels is None else labels[rows] for rows in (kept, aside)]
            return cls(name, Rows(data, kept), parts[0], Rows(data, aside), parts[1])
        if held_out.shape[1:] != data.shape[1:] or held_out.dtype != data.dtype:
            raise ValueError(f"{name}: test rows are {_described(held_out)}, but training rows {_described(data)}")
        return cls(name, _rows(data), labels, _rows(held_out), held_labels)

    @classmethod
    def from_files(
        cls,
        path: str | os.PathLike[str],
        test: str | os.PathLike[str] | None = None,
        *,
        labels: str | None = None,
        test_fraction: float = 0.1,
        seed: int = 0,
        layout: Layout = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Dataset:
        """A data set of files, in any format of :func:`fastvae.data.read`.

        Args:
            path: file or folder of the training set.
            test: file or folder of the test set. If it has a test part itself, only that part is taken. Without
                ``test``, the test part of ``path`` is taken or, if there is none, some of the rows are set aside.
            labels: name of the labels, as for ``read``.
            test_fraction: fraction of the rows that is set aside, as for ``from_arrays``.
            seed: seed of the choice of these rows.
            layout: layout of images in arrays, as for ``from_arrays``.
            progress: called with the amount done and the total, while images are decoded and tables are read.

        Raises:
            ValueError: a file is damaged or has the wrong content, or the parts do not fit.
            OSError: a file does not exist or cannot be read.
        """
        source = read(path, labels=labels, layout=layout, progress=progress)
        held_out, held_labels = source.test, source.test_labels
        if test is not None:
            other = read(test, labels=labels, layout=layout, progress=progress)
            held_out, held_labels = other.data, other.labels
            if other.test is not None:
                held_out, held_labels = other.test, other.test_labels
            labelled = source.labels is not None and held_labels is not None
            if labelled and source.classes != other.classes:
                raise ValueError(
                    f"{path} has the classes {_listed(source.classes)}, but {test} {_listed(other.classes)}"
                )
        return cls._of(os.fspath(path), source.data, source.labels, held_out, held_labels, test_fraction, seed)

    @classmethod
    def from_torch(
        cls, train: Any, test: Any, *, num_classes: int | None = None, workers: int = 0, name: str = "the data"
    ) -> Dataset:
        """A data set from PyTorch's own classes, for augmentation and for sources in other formats.

        The run determines the order of a ``Dataset``, and each process takes its own part. A ``DataLoader`` keeps its
        order; it serves a run of one process whose batch size is the loader's. A resumed run repeats the random numbers
        of augmentation bitwise if they come from torch's generator and no worker processes make the items. With
        workers, an interrupted epoch is resumed with other random numbers.

        Args:
            train: a ``torch.utils.data.Dataset`` with a length, or a ``DataLoader``; items are rows ``[*E]``, or pairs
                of a row and its label.
            test: likewise for the test set, which is read once, into memory.
            num_classes: number of classes, for models that are given labels; these lie in 0 .. num_classes - 1.
            workers: number of processes that make the items of a ``Dataset`` ahead.
            name: name of the data set in errors.

        Raises:
            ValueError: the items are not tensors, there is no length, or there are no items.
        """
        if test is None:
            raise ValueError(f"{name}: give a test set, because rows of a torch Dataset cannot be set aside")
        source = TorchData(train, workers, name)
        held_out = TorchData(test, 0, f"{name} (test)")
        rows, labels = held_out.all()
        if rows.shape[1:] != source.shape[1:] or rows.dtype != source.dtype:
            raise ValueError(f"{name}: test rows are {_described(rows)}, but training rows {_described(source)}")
        return cls(name, source, source.labels, rows, labels, num_classes)


def _rows(data: Tensor) -> Data:
    return data if data.layout == torch.strided else Rows(data)


def _number(values: Any, layout: Layout, name: str) -> Tensor:
    if isinstance(values, Tensor):
        data = to_number(name, values)
    else:
        data = to_csr(name, values) if hasattr(values, "tocsr") else to_tensor(name, np.asarray(values))
    return arrange(data, layout)


def _listed(classes: tuple[str, ...] | None) -> str:
    return "0, 1, ..." if classes is None else ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")


def _described(data: Tensor | TorchData) -> str:
    return f"{str(data.dtype).removeprefix('torch.')} {list(data.shape[1:])}"


def _split(count: int, fraction: float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """The rows that stay and those that are set aside, each in their order: these have the smallest keys.

    A key is splitmix64 of the row's number (Steele et al. 2014, "Fast splittable pseudorandom number generators",
    fig. 14, with the constants of its reference code): other than a permutation of a library, it is the same in every
    version and on every machine. It maps one to one, so that no two keys are equal.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"{name}: test_fraction must lie between 0 and 1, not {fraction}")
    aside = max(1, round(count * fraction))
    if aside >= count:
        raise ValueError(f"{name} has {count} rows: too few to set a test_fraction of {fraction} aside")
    with np.errstate(over="ignore"):
        key = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    chosen = np.zeros(count, dtype=bool)
    chosen[np.argpartition(key, aside)[:aside]] = True
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))
