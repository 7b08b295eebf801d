"""Data sets of small grey images, held as uint8, and batches of them.

Nothing here makes a floating-point copy of a data set: images stay uint8 from the file to the operators,
which read a pixel as x/255.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastvae.ops import binarize

DatasetName = Literal["digits", "mnist", "fashion-mnist"]


@dataclass(frozen=True)
class Dataset:
    """Images and labels of a data set, on the CPU."""

    name: str
    train_images: Tensor
    """``[N, H, W]`` uint8, 0..255."""
    train_labels: Tensor
    """``[N]`` uint8, the class."""
    test_images: Tensor
    """``[M, H, W]`` uint8, 0..255."""
    test_labels: Tensor
    """``[M]`` uint8, the class."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(H, W)``."""
        return tuple(self.train_images.shape[1:])

    @property
    def classes(self) -> int:
        """Labels lie in 0 .. classes - 1."""
        return int(self.train_labels.max()) + 1


@dataclass(frozen=True)
class _Source:
    """Where the files of ``_STEMS`` are published, and their MD5 sums in that order."""

    url: str
    torchvision: str
    """The folder of torchvision, which calls it by its class."""
    gz_md5: tuple[str, ...]
    md5: tuple[str, ...]
    """Of the decompressed bytes: whoever compressed a file anew has the same ones."""


# Training images and labels, test images and labels, called alike in both data sets and of the same sizes.
_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_TRAIN_COUNT, _TEST_COUNT, _IMAGE_SHAPE, _CLASSES = 60_000, 10_000, (28, 28), 10

_SOURCES = {
    "mnist": _Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "MNIST",
        gz_md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion-mnist": _Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "FashionMNIST",
        gz_md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        md5=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
}


def load(name: DatasetName, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: ``"digits"``: scikit-learn's 1,797 digits of 8x8 pixels, which need no file. ``"mnist"`` and
            ``"fashion-mnist"``: 60,000 training and 10,000 test images of 28x28 pixels from the four IDX
            files as published, plain or gzip-compressed.
        root: the folder of the IDX files, themselves or in a subfolder called ``name``, or the ``root`` of
            torchvision's class (``MNIST/raw/``); by default that of the environment variable ``FASTVAE_DATA``. The
            files may be called ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, with or without ``.gz``.
            Where neither is given the files are downloaded once, checked against the published MD5 sums, into the
            user's cache folder.

    Raises:
        ValueError: an unknown name, or a file that is truncated, corrupt, mislabelled or not the published
            one; the message names the file.
        FileNotFoundError: a file is missing; the message says which were looked for, and where.
        OSError: a file cannot be read or downloaded.

    Source: UCI Optical Recognition of Handwritten Digits (test part); LeCun, Cortes & Burges, MNIST; Xiao,
    Rasul & Vollgraf 2017 (arXiv:1708.07747), Fashion-MNIST.
    """
    if name not in get_args(DatasetName):
        raise ValueError(f"unknown data set {name!r}, expected one of {', '.join(get_args(DatasetName))}")
    if name == "digits":
        return _load_digits()
    root = root if root is not None else os.environ.get("FASTVAE_DATA") or None
    paths = _download(name) if root is None else _find_files(name, Path(root).expanduser())
    return _read_dataset(name, paths)


def _load_digits() -> Dataset:
    """The digits, split: of each class, in the order of the data set, every fifth image is for testing."""
    from sklearn.datasets import load_digits

    # 17 grey levels, 0..16, onto 0..255.
    grey, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(grey * (255 / 16)).astype(np.uint8)).view(-1, 8, 8)
    labels = torch.from_numpy(classes.astype(np.uint8))
    rank = np.empty(len(classes), dtype=np.int64)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        rank[members] = np.arange(len(members))
    test = torch.from_numpy(rank % 5 == 4)
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test])


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzip-compressed (told apart by content, not by name).

    Args:
        path: the file.

    Returns:
        uint8, of the shape that the file's header states.

    Raises:
        ValueError: the file is truncated, has bytes to spare, is corrupt or no IDX file of unsigned bytes.
        OSError: the file cannot be read.

    Source: LeCun, Cortes & Burges, the MNIST page, section "file formats".
    """
    return _parse_idx(Path(path), _read_bytes(Path(path)))


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError:
        raise ValueError(f"{path}: truncated: the compressed data ends too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: corrupt: {error}") from None


def _parse_idx(path: Path, content: bytes) -> Tensor:
    # Magic number: two zero bytes, the element type (8 = unsigned byte), the number of dimensions. Then the
    # dimensions, big-endian, and the elements.
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise ValueError(f"{path}: no IDX file: it starts with {content[:4].hex(' ') or 'nothing'}")
    if content[2] != 8:
        raise ValueError(f"{path}: holds IDX elements of type 0x{content[2]:02x}, expected 0x08 (unsigned byte)")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{path}: truncated: it ends within the header")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    expected, held = int(np.prod(shape, dtype=object)), len(content) - header
    if held != expected:
        reason = "truncated" if held < expected else "too long"
        raise ValueError(f"{path}: {reason}: {held} bytes of data, expected {expected} for shape {shape}")
    # A copy: the bytes are read-only, and the header would shift the first pixel off its alignment.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()).view(shape)


def _find_files(name: str, root: Path) -> list[Path]:
    """The four files of data set ``name``, all from one folder: ours, one of torchvision's, or ``root`` itself."""
    subfolders = (name, f"{_SOURCES[name].torchvision}/raw", "raw")
    missing = list(_STEMS)
    for folder in (*(root / subfolder for subfolder in subfolders), root):
        found = [_find_file(folder, stem) for stem in _STEMS]
        paths = [path for path in found if path is not None]
        if len(paths) == len(_STEMS):
            return paths
        missing = min(missing, [s for s, path in zip(_STEMS, found, strict=True) if path is None], key=len)
    raise FileNotFoundError(
        f"{name} is not in {root}: found no {', '.join(missing)} (or {_dotted(missing[0])}; plain or .gz, all four in "
        f"one folder) in its subfolders {', '.join(subfolders[:-1])} and {subfolders[-1]}, or in itself"
    )


def _find_file(folder: Path, stem: str) -> Path | None:
    names = (f"{stem}.gz", stem, f"{_dotted(stem)}.gz", _dotted(stem))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _dotted(stem: str) -> str:
    """As some unpack them: ``train-images.idx3-ubyte``."""
    return stem.replace("-idx", ".idx")


def _download(name: str) -> list[Path]:
    """The four files of data set ``name`` in the user's cache folder, fetched where they are not there.

    pooch writes to a temporary file and moves it to its name only once its MD5 sum is right, and checks the
    sum of a file that is there already: a half download is never taken for a whole one.
    """
    import pooch

    source = _SOURCES[name]
    folder = Path(pooch.os_cache("fastvae")) / name
    paths = []
    # pooch announces each download in two lines of log, which would tear the progress bar.
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        for stem, md5 in zip(_STEMS, source.gz_md5, strict=True):
            url = f"{source.url}{stem}.gz"
            bar = _DownloadBar(f"{name}/{stem}.gz")
            try:
                path = pooch.retrieve(
                    url,
                    known_hash=f"md5:{md5}",
                    fname=f"{stem}.gz",
                    path=folder,
                    downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16),
                )
            except (OSError, ValueError) as error:
                raise OSError(
                    f"could not download {url}: {error}; where the files of {name} are at hand, name their "
                    "folder with --data-dir or FASTVAE_DATA"
                ) from error
            finally:
                bar.close()
            paths.append(Path(path))
    finally:
        logger.setLevel(level)
    return paths


class _DownloadBar:
    """The progress protocol of pooch's downloaders, shown by rich on a terminal."""

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(label, total=None)

    @property
    def total(self) -> float | None:
        """Bytes to come. pooch sets it when the server answers; until then nothing is drawn."""
        return self._progress.tasks[self._task].total

    @total.setter
    def total(self, size: int) -> None:
        self._progress.update(self._task, total=size or None)
        self._progress.start()

    def update(self, size: int) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop()


def _read_dataset(name: str, paths: list[Path]) -> Dataset:
    """Read the files of ``_STEMS``; the checks go from what a user can mend to the sum over all bytes."""
    contents = [_read_bytes(path) for path in paths]
    parts = [_parse_idx(path, content) for path, content in zip(paths, contents, strict=True)]
    _check_split(paths[:2], parts[:2], _TRAIN_COUNT)
    _check_split(paths[2:], parts[2:], _TEST_COUNT)
    for index, (path, content) in enumerate(zip(paths, contents, strict=True)):
        _check_published(name, index, path, content)
    return Dataset(name, *parts)


def _check_split(paths: list[Path], parts: list[Tensor], count: int) -> None:
    (image_path, label_path), (images, labels) = paths, parts
    if images.shape[1:] != _IMAGE_SHAPE:
        expected = ", ".join(map(str, (count, *_IMAGE_SHAPE)))
        raise ValueError(f"{image_path}: holds shape {list(images.shape)}, expected images [{expected}]")
    if labels.dim() != 1:
        raise ValueError(f"{label_path}: holds shape {list(labels.shape)}, expected labels [{count}]")
    if len(images) != len(labels):
        raise ValueError(f"{image_path} holds {len(images)} images, but {label_path} {len(labels)} labels")
    if len(images) != count:
        raise ValueError(f"{image_path}: holds {len(images)} images, expected {count}")
    if int(labels.max()) >= _CLASSES:
        raise ValueError(f"{label_path}: holds the label {int(labels.max())}, expected 0 to {_CLASSES - 1}")


def _check_published(name: str, index: int, path: Path, content: bytes) -> None:
    md5, expected = hashlib.md5(content, usedforsecurity=False).hexdigest(), _SOURCES[name].md5[index]
    if md5 == expected:
        return
    for other, source in _SOURCES.items():
        if md5 in source.md5:
            raise ValueError(f"{path}: this is a file of {other}, not of {name}")
    raise ValueError(f"{path}: not the published file of {name} (MD5 {md5}, expected {expected})")


def split_column(
    images: Tensor, column: int | None = None, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Take one column of each image as what is known of it, and the others as what is to be completed.

    Args:
        images: ``[B, H, W]`` uint8 or bool.
        column: which one; by default that in the middle, 13 of 28.
        generator: the source of the noise, by default torch's own.

    Returns:
        The other columns, ``[B, H, W - 1]`` of the dtype of ``images``, and the column, ``[B, H]`` bool: a uint8
        pixel is drawn anew at every call, 1 with probability x/255.

    Raises:
        ValueError: images that are not ``[B, H, W]`` uint8 or bool with W > 1, or a column that they have not.

    Source: the code of Doersch 2016 (arXiv:1606.05908), sec. 5.
    """
    if images.dim() != 3 or images.shape[2] < 2 or images.dtype not in (torch.uint8, torch.bool):
        raise ValueError(f"images must be uint8 or bool [B, H, W], W > 1, not {images.dtype} {list(images.shape)}")
    column = (images.shape[2] - 1) // 2 if column is None else column
    if not 0 <= column < images.shape[2]:
        raise ValueError(f"column must lie in 0 .. {images.shape[2] - 1}, not {column}")
    known = images[:, :, column]
    others = torch.cat([images[:, :, :column], images[:, :, column + 1 :]], dim=2)
    return others, binarize(known, generator=generator) if images.dtype == torch.uint8 else known


def join_column(others: Tensor, known: Tensor, column: int | None = None) -> Tensor:
    """Put a column back: ``[..., B, H, W - 1]`` and ``[B, H]`` to ``[..., B, H, W]``, of the dtype of ``others``.

    Args:
        others: as ``split_column`` gives them, or completions of ``[B, H]``, with any leading dimensions.
        known: the column, bool.
        column: as for ``split_column``.
    """
    column = others.shape[-1] // 2 if column is None else column
    values = known.to(others.dtype)
    if others.dtype == torch.uint8:
        values = values * 255
    values = values.expand(others.shape[:-1]).unsqueeze(-1)
    return torch.cat([others[..., :column], values, others[..., column:]], dim=-1)


class Batches:
    """Batches of a uint8 tensor of images, on the device where the tensor is; each ``iter()`` is one epoch.

    Args:
        images: ``[N, *E]`` uint8. It is never copied as a whole.
        batch_size: images per batch; the last batch of an epoch holds what is left.
        shuffle: draws a new order for each epoch. A CPU generator, so that one seed gives one order on every
            device. Without it the batches are views of ``images`` in their own order.
        binarize: whether to draw each pixel anew, 1 with probability x/255, at every pass.
        noise: the source of those draws, by default torch's own.

    Yields:
        ``[B, *E]``: uint8, or bool where ``binarize`` is set.

    Raises:
        ValueError: no images, images that are not uint8, or a batch size below 1.

    Source: binarisation at every draw as in Burda et al. 2015 (arXiv:1509.00519), sec. 5.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        *,
        shuffle: torch.Generator | None = None,
        binarize: bool = False,
        noise: torch.Generator | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() == 0 or len(images) == 0:
            raise ValueError(f"images must be uint8 [N, *E], N > 0, not {images.dtype} {list(images.shape)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.images = images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.binarize = binarize
        self.noise = noise

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.shuffle is None:
            for batch in torch.split(self.images, self.batch_size):
                yield binarize(batch, generator=self.noise) if self.binarize else batch
            return
        order = torch.randperm(len(self.images), generator=self.shuffle, device=self.shuffle.device).to(
            self.images.device
        )
        for index in torch.split(order, self.batch_size):
            if self.binarize:
                yield binarize(self.images, index=index, generator=self.noise)
            else:
                yield self.images.index_select(0, index)
