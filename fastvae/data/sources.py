"""Readers of files and folders in the usual formats, as tensors."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import NamedTuple, get_args

from torch import Tensor

from fastvae.data import arrays, idx, images, sparse, tables
from fastvae.data.arrays import Layout as Layout
from fastvae.data.labels import number_labels
from fastvae.data.parts import Progress, Raw, files_below

FORMATS = (
    "an array (.npy, .npz, .pt, .safetensors), a sparse matrix (.npz of scipy, .h5ad), a Parquet file or a folder of "
    "them, an IDX file or a folder of them, a folder of images"
)


class Source(NamedTuple):
    """The content of a file or folder."""

    data: Tensor
    """The data, dense ``[N, *E]`` or ``torch.sparse_csr`` ``[N, D]``. They may be a read-only map of the file, which
    must never be written to."""
    labels: Tensor | None
    """The classes 0 .. C - 1 of the rows, ``[N]`` int64."""
    classes: tuple[str, ...] | None
    """The names of the classes, if the source has names, or numbers other than 0 .. C - 1."""
    test: Tensor | None = None
    """The test part, ``[M, *E]``, or the validation part if the source has no test part."""
    test_labels: Tensor | None = None
    """The classes of the test part, ``[M]`` int64, with the numbers of ``labels``."""


def read(
    path: str | os.PathLike[str],
    *,
    labels: str | None = None,
    layout: Layout = "auto",
    progress: Progress | None = None,
) -> Source:
    """Reads a file or folder of data in any known format.

    The content of a file tells its format, or the suffix if the content is broken.

    - ``.npy`` is mapped, so that a file may exceed the memory. In the folder of ``NAME.npy``, ``NAME.labels.npy`` may
      hold its labels, and ``NAME.classes.txt`` the names of the classes, one a line. An array in Fortran order, with
      the other byte order or of uint16 or uint32 is converted in memory.
    - ``.npz``, ``.pt`` and ``.safetensors`` hold one array, or several called like ``x_train, y_train, x_test, y_test``
      or ``train, test, labels``. The last two formats are mapped. torch's map of a ``.pt`` file counts as memory in
      use.
    - ``.npz`` of ``scipy.sparse.save_npz`` and ``X`` of ``.h5ad`` are sparse matrices, which stay sparse.
    - ``.parquet`` files, or a folder of them, hold a column of encoded images and their ``label``, or a table of
      numbers, ``[N, D]``. A table becomes bool or integers if all its columns are, otherwise float32, and uint8 only if
      all columns are uint8. Every column of a table is data, even one called ``label``, unless ``labels`` names it.
      Files or folders called ``train`` and ``test`` or ``validation`` are the parts; other files of the folder are left
      out.
    - IDX files of unsigned bytes may be alone or in a folder with the names of MNIST's or EMNIST's. A file of training
      images is read with the labels and the test set in the same folder.
    - A folder may hold PNG, JPEG, GIF, BMP, TIFF, WebP or PNM images of one size: uint8 ``[N, H, W]`` if they are grey,
      otherwise ``[N, 3, H, W]``. Subfolders are classes; ``train`` and ``test`` (or ``val``) are the parts.

    The types bool, uint8, int16, int32, int64, float16, bfloat16, float32 and float64 are kept; int8, uint16 and uint32
    become the next wider signed type. Nothing is ever unpickled.

    Args:
        path: the file or folder.
        labels: name of the labels: an array of ``.npz``, ``.pt`` or ``.safetensors`` (``"kind"`` stands for
            ``kind_train`` and ``kind_test``), a column of a Parquet file, or a column of ``obs`` in ``.h5ad``. By
            default labels are recognised by their names, and ``.h5ad`` has none.
        layout: layout of 4-dimensional arrays. ``"hwc"``: ``[N, H, W, C]``, returned as a view ``[N, C, H, W]``;
            ``"chw"``: returned as they are; ``"auto"``: ``"hwc"`` if the last dimension is 1, 3 or 4 and the second is
            not, else ``"chw"``.
        progress: called with the amount done and the total, while images are decoded and tables are read.

    Returns:
        Data, labels, the names of classes and the test part, as far as the source has them. Labels that are integers
        0 .. C - 1 without a gap, or that have names, are kept; others are numbered in sorted order.

    Raises:
        ValueError: the format is unknown, or a file is damaged or has the wrong content. The message of one line names
            the file.
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read.
        ModuleNotFoundError: the format needs a library that is not installed (``pip install fastvae-torch[data]``).
    """
    path = Path(path).expanduser()
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, not {layout!r}")
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    return _finish(path, _read(path, labels, layout, progress))


def _read(path: Path, labels: str | None, layout: Layout, progress: Progress | None) -> Raw:
    kind = _kind(path)
    if kind == "parquet":
        return tables.read_parquet(path, labels, progress)
    if kind == "h5ad":
        return sparse.read_anndata(path, labels)
    if kind in ("npz", "pt", "safetensors"):
        reader = {"npz": arrays.read_npz, "pt": arrays.read_torch, "safetensors": arrays.read_safetensors}[kind]
        return _arrange(reader(path, labels), layout)
    if labels is not None:
        raise ValueError(f"{path}: has no named columns or arrays, and so no labels called {labels}")
    if kind == "npy":
        return _arrange(arrays.read_npy(path), layout)
    if kind == "idx":
        return idx.read_idx_file(path)
    if kind == "idx folder":
        return idx.read_idx_folder(path, idx.find_idx(path))
    if kind == "images":
        return images.read_images(path, progress)
    raise ValueError(f"{path}: its format is not known; expected {FORMATS}")


def _arrange(raw: Raw, layout: Layout) -> Raw:
    return raw._replace(
        data=arrays.arrange(raw.data, layout), test=None if raw.test is None else arrays.arrange(raw.test, layout)
    )


_SUFFIXES = {
    **{f".{name}": name for name in ("npy", "npz", "pt", "safetensors", "parquet", "h5ad")},
    ".pth": "pt",
    ".pq": "parquet",
    ".h5": "h5ad",
}


def _kind(path: Path) -> str | None:
    """The format of a file by its first bytes, or by its suffix where they say nothing; that of a folder's files."""
    if path.is_dir():
        if idx.find_idx(path):
            return "idx folder"
        return "parquet" if files_below(path, tables.SUFFIXES) else "images"
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5ad"
    if start.startswith((b"\x1f\x8b", b"\0\0\x08")):
        return "idx"
    if start[8:] == b"{":
        return "safetensors"
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
        if any(name.endswith("/data.pkl") for name in names):
            return "pt"
        if all(name.endswith(".npy") for name in names):
            return "npz"
        return None
    return "idx" if "-ubyte" in path.name else _SUFFIXES.get(path.suffix.lower())


def _finish(path: Path, raw: Raw) -> Source:
    """Check the parts against each other, and number the labels."""
    for part, labels in ((raw.data, raw.labels), (raw.test, raw.test_labels)):
        if part is None:
            continue
        if part.dim() < 2:
            raise ValueError(f"{path}: holds shape {list(part.shape)}, expected [N, *E] with at least two dimensions")
        if labels is not None and labels.ndim and len(labels) != part.shape[0]:
            what = "data" if part is raw.data else "test part"
            raise ValueError(f"{path}: its {what} has {part.shape[0]} samples, but {len(labels)} labels")
    if raw.test is not None and (raw.test.shape[1:], raw.test.dtype) != (raw.data.shape[1:], raw.data.dtype):
        shapes = [f"{part.dtype} {list(part.shape)}" for part in (raw.data, raw.test)]
        raise ValueError(f"{path}: its data is {shapes[0]}, but its test part {shapes[1]}")
    train_labels, test_labels, classes = number_labels(path, raw.labels, raw.test_labels, raw.classes)
    return Source(raw.data, train_labels, classes, raw.test, test_labels)
