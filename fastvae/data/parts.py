"""Common parts of all readers: the type that they return, names of parts, and conversion to torch's dtypes."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
Array: TypeAlias = NDArray[np.generic]
Progress: TypeAlias = Callable[[int, int], None]
"""A function that is called with the amount done and the total."""


class Raw(NamedTuple):
    """The content of a file or folder, before labels are numbered and parts are checked against each other."""

    data: Tensor
    labels: Array | None = None
    classes: tuple[str, ...] | None = None
    """Names of the labels 0, 1, ..., if the source has them."""
    test: Tensor | None = None
    test_labels: Array | None = None


PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
"""The words in names of folders, files and arrays that stand for the parts of a data set."""


def words(name: str) -> list[str]:
    """The words of a name such as ``x_train`` or ``X-Train.npy``, in lower case."""
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def listed(names: Iterable[object]) -> str:
    """Names in one line; from the twelfth on, only the first ten are shown."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - 10} more" if len(texts) > 11 else ""
    return ", ".join(texts[:10] if more else texts) + more or "none"


def train_and_test(parts: Mapping[str | None, T]) -> tuple[T | None, T | None]:
    """The part to train on and the part to test on, which is the validation part if there is no test part."""
    return parts.get("train", parts.get(None)), parts.get("test", parts.get("val"))


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Relative paths, sorted, of a folder's files with one of the suffixes, also in subfolders, except hidden ones."""
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(root).relative_to(folder)
        found += [
            (below / name).as_posix() for name in names if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


@contextmanager
def naming(source: object, *errors: type[Exception]) -> Iterator[None]:
    """Turns errors that a library raises into an error of one line that names the source.

    Raises:
        ValueError: the block raised one of ``errors``.
    """
    try:
        yield
    except errors as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{source}: cannot be read: {reason}") from None


def check_size(path: Path, held: int, expected: int, what: str) -> None:
    """Raises ValueError unless ``path`` holds as many bytes of data as its header says."""
    if held != expected:
        reason = "truncated" if held < expected else "too long"
        raise ValueError(f"{path}: {reason}: {held} bytes of data, expected {expected} for {what}")


# By kind and bytes of an element. The others' values fit into a wider type, where torch has arithmetic.
_KEPT = {"b1", "u1", "i2", "i4", "i8", "f2", "f4", "f8"}
_WIDER = {"i1": np.int16, "u2": np.int32, "u4": np.int64}
_WIDER_TORCH = {torch.int8: torch.int16, torch.uint16: torch.int32, torch.uint32: torch.int64}
_KEPT_TORCH = {
    *(torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
_EXPECTED = "expected bool, integers of at most 63 bits or floating-point numbers of 16, 32 or 64 bits"


def to_tensor(source: object, array: Array) -> Tensor:
    """An array as a tensor, which shares its memory, even a read-only map, if torch has the array's type.

    int8, uint16 and uint32 become the next wider signed type. An array in Fortran order or with the other byte order is
    converted.

    Raises:
        ValueError: the array holds objects, complex numbers, times, records or strings; the message names ``source``.
    """
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind not in _KEPT and kind not in _WIDER:
        raise ValueError(f"{source}: holds numbers of type {array.dtype}, {_EXPECTED}")
    array = np.ascontiguousarray(array, _WIDER.get(kind, array.dtype.newbyteorder("=")))
    with warnings.catch_warnings():
        # A tensor cannot be read-only; nothing here or in a trainer writes to the data.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def to_number(source: object, tensor: Tensor) -> Tensor:
    """A tensor converted as :func:`to_tensor` does; a sparse tensor becomes CSR."""
    tensor = tensor.detach()
    if tensor.dtype in _WIDER_TORCH:
        tensor = tensor.to(_WIDER_TORCH[tensor.dtype])
    if tensor.dtype not in _KEPT_TORCH:
        raise ValueError(f"{source}: holds numbers of type {tensor.dtype}, {_EXPECTED}")
    return tensor if tensor.layout is torch.strided else tensor.to_sparse_csr()
