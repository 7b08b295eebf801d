"""Sources of a step's rows: the memory of the device, a file that may be larger, or a program's own data.

A step asks for the rows of its parts, one part after the other, by int64 indices. A feed that reads rows from elsewhere
is told in advance which parts will be asked for, and reads one part ahead while the previous step computes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastvae.data import Data, Dataset, Rows, take
from fastvae.data.batches import drawn
from fastvae.data.rows import array_of
from fastvae.data.torch_data import TorchData
from fastvae.models.networks import one_of
from fastvae.ops import binarize
from fastvae.training.memory import available_bytes, is_mapped

DataOn = Literal["auto", "device", "host"]

# A data set that takes no more of what is free than this leaves room for a model, its gradients and the system.
_SHARE = 0.5
_PART = 64 << 20  # bytes that are copied to a device at a time


class Read(NamedTuple):
    """Rows and their labels on the device, and an event that tells when they have arrived."""

    rows: Tensor
    labels: Tensor | None
    ready: torch.cuda.Event | None = None


class Feed:
    """Rows that lie on the device and are gathered there.

    Args:
        data: ``[N, *E]`` on the device.
        labels: ``[N]`` on the device, or None.
        device: the device on which rows are asked for.
    """

    reads_ahead = False
    """Whether rows are read ahead from elsewhere."""
    waited = 0.0
    """Seconds that steps have waited for rows so far."""

    def __init__(self, data: Data, labels: Tensor | None, device: torch.device) -> None:
        self.data, self.labels, self.device = data, labels, device

    def announce(self, parts: Sequence[Tensor], done: int = 0, seed: int = 0) -> None:
        """Announces the parts that will be asked for next.

        Args:
            parts: int64 indices ``[B]`` of each part, in the order in which they will be asked for.
            done: number of parts of the same epoch that came before.
            seed: seed of the random numbers that a program's own data draw in the epoch.
        """

    def __call__(self, index: Tensor, draw: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        """Rows ``index``, and their labels or None.

        Args:
            index: int64 ``[B]``, on the device or the CPU.
            draw: dtype of binary rows, whose elements are drawn anew; None for rows as they are.
        """
        index = index.to(self.device)
        rows = take(self.data, index) if draw is None else drawn(self.data, index, draw)
        return rows, None if self.labels is None else self.labels.index_select(0, index)

    def close(self) -> None:
        """Ends the reading of rows."""


class HostFeed(Feed):
    """Rows in the memory of the host, or in a file mapped there, which a thread reads."""

    reads_ahead = True

    def __init__(self, data: Data, labels: Tensor | None, device: torch.device) -> None:
        super().__init__(data, labels, device)
        self._rows = data if isinstance(data, Rows) else Rows(data)
        self._reader = ThreadPoolExecutor(1, "fastvae-reader")
        self._coming: Iterator[Tensor] = iter(())
        self._ahead: tuple[Tensor, Future[Read]] | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._bytes = _as_bytes(self._rows.array)
        self._mapped = self._bytes is not None and is_mapped(self._rows.array)
        if self._bytes is not None and self._mapped:
            # The rows of a batch lie anywhere: what is read beside them would be read in vain.
            _advise(self._bytes, mmap.MADV_RANDOM)

    def announce(self, parts: Sequence[Tensor], done: int = 0, seed: int = 0) -> None:
        self._coming = iter(parts)
        self._go_on()

    def _go_on(self) -> None:
        index = next(self._coming, None)
        self._ahead = None if index is None else (index, self._reader.submit(self._read, index))

    def __call__(self, index: Tensor, draw: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        started = time.perf_counter()
        if self._ahead is not None and torch.equal(self._ahead[0], index):
            read = self._ahead[1].result()
            self._go_on()
        else:  # nobody has announced it
            read = self._reader.submit(self._read, index).result()
        self.waited += time.perf_counter() - started
        if read.ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(read.ready)
            for tensor in (read.rows, read.labels):
                if tensor is not None:
                    tensor.record_stream(current)
        return read.rows if draw is None else binarize(read.rows, dtype=draw), read.labels

    def _read(self, index: Tensor) -> Read:
        rows = self._gathered(index)
        labels = None if self.labels is None else self.labels.index_select(0, index)
        if self._copies is None:
            return Read(rows.contiguous(), labels)
        with torch.cuda.stream(self._copies):
            # A copy is asynchronous from pinned memory only, in its own order: channels are put first on the GPU.
            moved = rows.to(self.device, non_blocking=True).contiguous()
            labels = None if labels is None else labels.to(self.device, non_blocking=True)
            return Read(moved, labels, self._copies.record_event())

    def _gathered(self, index: Tensor) -> Tensor:
        """Rows that lie in memory as those of the array do: contiguous, or with their channels last."""
        if self._bytes is None:
            return self._rows.take(index)
        # By numpy, which takes one thread for it and lets others run: torch would take as many as the step has.
        where = (index if self._rows.index is None else self._rows.index[index]).numpy()
        if self._mapped:
            _advise_rows(self._bytes, where)
        array = self._rows.array
        rows = torch.empty(len(where), self._bytes.shape[1], dtype=torch.uint8, pin_memory=self._copies is not None)
        np.take(self._bytes, where, axis=0, out=rows.numpy(), mode="clip")
        if array.is_contiguous():
            return rows.view(array.dtype).view(len(where), *array.shape[1:])
        channels_last = rows.view(array.dtype).view(len(where), *array.shape[2:], array.shape[1])
        return channels_last.permute(0, 3, 1, 2)

    def close(self) -> None:
        self._coming, self._ahead = iter(()), None
        self._reader.shutdown(cancel_futures=True)


class TorchFeed(Feed):
    """Rows from a ``torch.utils.data.Dataset`` or ``DataLoader``."""

    reads_ahead = True

    def __init__(self, data: TorchData, device: torch.device) -> None:
        self.source, self.device = data, device
        self._batches: Iterator[Any] = iter(())

    def announce(self, parts: Sequence[Tensor], done: int = 0, seed: int = 0) -> None:
        source = self.source.source
        if not isinstance(source, DataLoader):
            source = DataLoader(
                source,
                batch_sampler=[part.tolist() for part in parts],
                num_workers=self.source.workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator().manual_seed(seed),
            )
            self._batches = iter(source)
            return
        # A sampler draws its order, at the first batch, from torch's own generator.
        torch.default_generator.manual_seed(seed)
        batches = iter(source)
        first = self.source.next_of(batches)
        for _ in range(done - 1):
            self.source.next_of(batches)
        self._batches = chain([first], batches) if done == 0 else batches

    def __call__(self, index: Tensor, draw: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        started = time.perf_counter()
        rows, labels = self.source.batch(self.source.next_of(self._batches), len(index))
        self.waited += time.perf_counter() - started
        rows = rows.to(self.device, non_blocking=True)
        labels = None if labels is None else class_numbers(labels.to(self.device, non_blocking=True))
        return rows if draw is None else binarize(rows, dtype=draw), labels


def make_feed(dataset: Dataset, labelled: bool, device: torch.device, data_on: DataOn) -> Feed:
    """The feed of a data set's training rows, and of their labels if ``labelled``, for the steps of one process.

    Raises:
        ValueError: ``data_on`` is unknown, or is ``"device"`` for data that a program gives batch by batch.
    """
    one_of("data_on", data_on, get_args(DataOn))
    if isinstance(dataset.train, TorchData):
        if data_on == "device":
            raise ValueError(f"{dataset.name} is given batch by batch: data_on must be auto or host, not device")
        return TorchFeed(dataset.train, device)
    labels = dataset.train_labels if labelled else None
    labels = None if labels is None else class_numbers(labels)
    if not stays_on_host(dataset.train, device, data_on):
        return Feed(placed(dataset.train, device), None if labels is None else labels.to(device), device)
    return HostFeed(dataset.train, labels, device)


def class_numbers(labels: Tensor) -> Tensor:
    """Integer labels as int64, which embeddings and one-hot codes need, while published data sets hold uint8."""
    return labels if labels.is_floating_point() else labels.long()


def stays_on_host(data: Data, device: torch.device, data_on: DataOn) -> bool:
    """Whether rows are read from the host one batch at a time."""
    if data_on != "auto":
        return data_on == "host"
    array = array_of(data)
    if device.type == "cpu" and not (array.layout == torch.strided and is_mapped(array)):
        return False  # it is there already
    size = len(data) * data.shape[1:].numel() * data.dtype.itemsize if array.layout == torch.strided else _size(array)
    # The processes of a machine have its memory together, and a GPU each.
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    return copies * size > _SHARE * available_bytes(device)


def placed(data: Data, device: torch.device) -> Data:
    """All of the rows in the memory of the device."""
    array = array_of(data)
    if array.layout != torch.strided:
        return data.to(device)
    if device.type != "cpu":
        # In parts: what the device has room for the host may have none.
        out = torch.empty(data.shape, dtype=data.dtype, device=device)
        each = max(1, _PART * len(data) // max(1, out.nbytes))
        for first in range(0, len(data), each):
            out[first : first + each] = data[first : first + each]
        return out
    return take(data, torch.arange(len(data))) if is_mapped(array) else data


def _size(array: Tensor) -> int:
    parts = (array.crow_indices(), array.col_indices(), array.values())
    return sum(part.numel() * part.element_size() for part in parts)


def _as_bytes(array: Tensor) -> np.ndarray[Any, Any] | None:
    """``[N, bytes of a row]`` of a dense array, whose rows lie one after the other; None of any other."""
    if array.layout != torch.strided:
        return None
    if not array.is_contiguous():
        if array.dim() != 4 or not array.permute(0, 2, 3, 1).is_contiguous():
            return None
        array = array.permute(0, 2, 3, 1)
    size = array[0].numel() * array.element_size()
    return array.view(len(array), -1).view(torch.uint8).numpy() if size else None


_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _advise(rows: np.ndarray[Any, Any], advice: int) -> None:
    """Tells Linux how memory will be used; that it does not listen is no error."""
    start = rows.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise(start, rows.ctypes.data + rows.nbytes - start, advice)


def _advise_rows(rows: np.ndarray[Any, Any], where: np.ndarray[Any, Any]) -> None:
    """Asks for all rows of a batch at once, so that the disk has many requests to work on."""
    size = rows.shape[1]
    address = rows.ctypes.data + np.sort(where) * size
    first, last = address // mmap.PAGESIZE, (address + size - 1) // mmap.PAGESIZE
    # Runs of pages that touch are one request.
    starts = np.concatenate([[0], np.flatnonzero(first[1:] > last[:-1] + 1) + 1])
    ends = np.concatenate([starts[1:], [len(first)]]) - 1
    for start, end in zip(first[starts].tolist(), last[ends].tolist(), strict=True):
        _madvise(start * mmap.PAGESIZE, (end - start + 1) * mmap.PAGESIZE, mmap.MADV_WILLNEED)
