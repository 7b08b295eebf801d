"""Readers of files of arrays: ``.npy``, ``.npz``, ``.pt`` and ``.safetensors``. Nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor

from fastvae.data.parts import (
    PARTS,
    Array,
    Raw,
    check_size,
    listed,
    naming,
    to_number,
    to_tensor,
    train_and_test,
    words,
)

Layout = Literal["auto", "chw", "hwc"]

_LABEL_WORDS = {"y", "label", "labels", "target", "targets"}
_DATA_WORDS = {"x", "data", "image", "images", "img", "imgs"}


def read_npy(path: Path) -> Raw:
    """The array of a ``.npy`` file, which is mapped, so that pages are read when they are used."""
    with open(path, "rb") as file, naming(path, ValueError, SyntaxError, EOFError):
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{path}: holds Python objects, which can be read only by running code in the file")
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    check_size(path, path.stat().st_size - offset, expected, f"{dtype} {list(shape)}")
    if not expected:  # there is no map of nothing
        return Raw(to_tensor(path, np.empty(shape, dtype)))
    # Read-only and shared: the kernel counts a private map as memory that may be needed.
    array: Array = np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    return Raw(to_tensor(path, array), *_labels_beside(path))


def _labels_beside(path: Path) -> tuple[Array | None, tuple[str, ...] | None]:
    """The labels that ``fastvae pack`` writes beside an array, and the names of their classes."""
    labels, names = path.with_suffix(".labels.npy"), path.with_suffix(".classes.txt")
    if not labels.is_file():
        return None, None
    with naming(labels, ValueError, EOFError):
        values = np.load(labels, allow_pickle=False)
    return values, tuple(names.read_text(encoding="utf-8").splitlines()) if names.is_file() else None


def read_npz(path: Path, labels: str | None) -> Raw:
    """The arrays of a ``.npz`` file, or the matrix of one that ``scipy.sparse.save_npz`` wrote."""
    errors = (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
    with naming(path, *errors):
        file = np.load(path, allow_pickle=False)
    with file:
        if {"format", "shape", "data"} <= set(file.files):
            from fastvae.data.sparse import read_scipy

            return read_scipy(path)

        def load(name: str) -> Array:
            with naming(f"{path}: {name}", *errors):
                array: Array = file[name]
                return array

        data, train_labels, test, test_labels = assign(path, file.files, labels)
        return Raw(
            to_tensor(f"{path}: {data}", load(data)),
            None if train_labels is None else load(train_labels),
            None,
            None if test is None else to_tensor(f"{path}: {test}", load(test)),
            None if test_labels is None else load(test_labels),
        )


def read_torch(path: Path, labels: str | None) -> Raw:
    """The tensor or dict of tensors of a ``.pt`` file, which is mapped."""
    try:
        with naming(path, RuntimeError, EOFError, ValueError):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds Python objects, which can be read only by running code in the file; expected a tensor or a "
            "dict of tensors"
        ) from None
    return _from_tensors(path, content, labels)


# As https://huggingface.co/docs/safetensors has them.
_SAFETENSORS = {
    "BOOL": torch.bool,
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32)},
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    "BF16": torch.bfloat16,
}


def read_safetensors(path: Path, labels: str | None) -> Raw:
    """The tensors of a ``.safetensors`` file, which is mapped.

    The safetensors library maps a file privately and writable. The kernel counts this as memory that may be needed and
    refuses a file larger than the machine's memory. Therefore this function reads the header, a length and JSON,
    itself.
    """
    with open(path, "rb") as file, naming(path, ValueError, KeyError, TypeError, AttributeError):
        start, size = 8 + int.from_bytes(file.read(8), "little"), path.stat().st_size
        if start > size:
            raise ValueError("truncated: it ends within the header")
        header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        expected = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    check_size(path, size - start, expected, "its tensors")
    content = to_tensor(path, np.memmap(path, np.uint8, "r", start)) if expected else torch.empty(0, dtype=torch.uint8)
    tensors = {}
    for name, entry in header.items():
        if entry.get("dtype") not in _SAFETENSORS:
            raise ValueError(f"{path}: {name}: holds numbers of type {entry.get('dtype')}, which torch lacks")
        with naming(f"{path}: {name}", RuntimeError, ValueError, KeyError, TypeError):
            begin, end = entry["data_offsets"]
            tensors[name] = content[begin:end].view(_SAFETENSORS[entry["dtype"]]).view(entry["shape"])
    return _from_tensors(path, tensors, labels)


def _from_tensors(path: Path, content: object, labels: str | None) -> Raw:
    if isinstance(content, Tensor):
        return Raw(to_number(path, content))
    named = {name: value for name, value in content.items() if isinstance(value, Tensor)} if _is_dict(content) else {}
    if not named:
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a tensor or a dict of tensors")
    data, train_labels, test, test_labels = assign(path, named, labels)
    return Raw(
        to_number(f"{path}: {data}", named[data]),
        None if train_labels is None else _to_array(named[train_labels]),
        None,
        None if test is None else to_number(f"{path}: {test}", named[test]),
        None if test_labels is None else _to_array(named[test_labels]),
    )


def _is_dict(content: object) -> TypeGuard[dict[str, object]]:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content)


def _to_array(labels: Tensor) -> Array:
    # numpy has no bfloat16.
    array: Array = (labels.detach().double() if labels.is_floating_point() else labels.detach()).numpy()
    return array


def assign(
    path: Path, names: Iterable[str], labels: str | None = None
) -> tuple[str, str | None, str | None, str | None]:
    """The names of the arrays that are the data, its labels, the test part and its labels.

    Words in the names are recognised, as in ``x_train, y_train, x_test, y_test``, ``train_images, train_labels``,
    ``train, test, labels`` or ``data``. If no name stands for data, the only array that is not labels is the data.

    Args:
        path: the file, for errors.
        names: the names of its arrays.
        labels: the name of the labels, with or without the word for a part. By default labels are recognised by their
            names.

    Raises:
        ValueError: several arrays could be the data, or none; the message lists the names.
    """
    names = sorted(names)
    named = set() if labels is None else _called(labels, names)
    if labels is not None and not named:
        raise ValueError(f"{path}: has no array called {labels} for labels, but {listed(names)}")
    found: dict[str, dict[str | None, list[str]]] = {"data": {}, "labels": {}, "other": {}}
    for name in names:
        part, rest = _part_and_rest(name)
        known = set(rest)
        if name in named or (labels is None and known & _LABEL_WORDS):
            kind = "labels"
        else:
            kind = "data" if known <= _DATA_WORDS else "other"
        found[kind].setdefault(part, []).append(name)
    train, test = train_and_test(found["data"] or found["other"])
    if train is None or len(train) > 1 or len(test or []) > 1:
        raise ValueError(
            f"{path}: holds the arrays {listed(names)}, which do not say which is the data; expected "
            "one array, or names like x_train, y_train, x_test, y_test or train, test, labels"
        )
    # Labels of the same part as the data: those of a validation part are not the test part's.
    train_labels = found["labels"].get("train", found["labels"].get(None, []))
    part = "test" if "test" in (found["data"] or found["other"]) else "val"
    test_labels = found["labels"].get(part, []) if test else []
    for several in (train_labels, test_labels):
        if len(several) > 1:
            raise ValueError(f"{path}: holds the labels {listed(several)}; name the ones to use")
    return train[0], next(iter(train_labels), None), test[0] if test else None, next(iter(test_labels), None)


def _called(labels: str, names: list[str]) -> set[str]:
    """The array of that name, and those of other parts that are called so but for the word for the part."""
    part, rest = _part_and_rest(labels)
    exact = {labels} & set(names)
    alike = [(name, *_part_and_rest(name)) for name in names]
    return exact | {name for name, its, other in alike if rest and other == rest and not (exact and its == part)}


def _part_and_rest(name: str) -> tuple[str | None, list[str]]:
    """The part that a name tells, and its other words."""
    known = words(name)
    part = next((PARTS[word] for word in PARTS if word in known), None)
    return part, [word for word in known if word not in PARTS]


def arrange(data: Tensor, layout: Layout) -> Tensor:
    """Images as a view ``[N, C, H, W]``; other data unchanged.

    Args:
        data: of any shape.
        layout: ``"hwc"`` if a 4-dimensional tensor is ``[N, H, W, C]``, ``"chw"`` if it is not. ``"auto"`` assumes
            ``"hwc"`` if the last dimension is 1, 3 or 4 and the second is not.
    """
    if data.dim() != 4 or layout == "chw":
        return data
    if layout == "auto" and (data.shape[1] in (1, 3, 4) or data.shape[3] not in (1, 3, 4)):
        return data
    return data.permute(0, 3, 1, 2)
