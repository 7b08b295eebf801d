"""Published data sets of small grey images, which are read from a folder, or downloaded and checked."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastvae.data.dataset import Dataset
from fastvae.data.idx import parse_idx, read_bytes

DatasetName = Literal["digits", "mnist", "fashion-mnist", "kmnist"]

_WHITE = 255


@dataclass(frozen=True)
class Images(Dataset):
    """A published data set of grey images with labels, all in memory."""

    train: Tensor
    """``[N, H, W]`` uint8, 0..255."""
    train_labels: Tensor
    """The class of each training image, ``[N]`` uint8."""
    test: Tensor
    """``[M, H, W]`` uint8, 0..255."""
    test_labels: Tensor
    """The class of each test image, ``[M]`` uint8."""

    def as_counts(self) -> Images:
        """The same images with pixels as counts of 0 .. :func:`largest_count`, for likelihoods of counts."""
        largest = largest_count(self.name)
        if largest == _WHITE:
            return self
        counts = [
            (images.short() * largest + _WHITE // 2).div(_WHITE, rounding_mode="floor").to(torch.uint8)
            for images in (self.train, self.test)
        ]
        return replace(self, train=counts[0], test=counts[1])


def largest_count(name: str) -> int:
    """The count of a white pixel of a data set: 16 for scikit-learn's digits, which are counts of dots, else 255."""
    return 16 if name == "digits" else _WHITE


@dataclass(frozen=True)
class _Source:
    """Where the files of ``_STEMS`` are published, and their MD5 sums in that order."""

    url: str
    torchvision: str
    """The folder of torchvision, which calls it by its class."""
    gz_md5: tuple[str, ...]
    md5: tuple[str, ...] = ()
    """Of the decompressed bytes, where they are known: whoever compressed a file anew has the same ones."""


# Training images and labels, test images and labels, called alike in all data sets and of the same sizes.
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
    "kmnist": _Source(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "KMNIST",
        gz_md5=(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
}


def load(name: DatasetName, root: str | os.PathLike[str] | None = None) -> Images:
    """Loads a published data set.

    Args:
        name: ``"digits"``: scikit-learn's 1,797 digits of 8x8 pixels, which need no file. ``"mnist"``,
            ``"fashion-mnist"`` and ``"kmnist"``: 60,000 training and 10,000 test images of 28x28 pixels from the
            four IDX files as published, plain or gzip-compressed.
        root: the folder that holds the IDX files, directly or in a subfolder called ``name``, or the ``root`` of
            torchvision's class (``MNIST/raw/``). The default is the environment variable ``FASTVAE_DATA``. Files may be
            called ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, with or without ``.gz``. If neither
            ``root`` nor the variable is given, the files are downloaded once into the user's cache folder and checked
            against the published MD5 sums.

    Raises:
        ValueError: the name is unknown, or a file is truncated, corrupt, mislabelled or not the published one; the
            message names the file.
        FileNotFoundError: a file is missing; the message names the files that were looked for, and where.
        OSError: a file cannot be read or downloaded.

    Source: UCI Optical Recognition of Handwritten Digits (test part); LeCun, Cortes & Burges, MNIST; Xiao,
    Rasul & Vollgraf 2017 (arXiv:1708.07747), Fashion-MNIST; Clanuwat et al. 2018 (arXiv:1812.01718), Kuzushiji-MNIST.
    """
    if name not in get_args(DatasetName):
        raise ValueError(f"unknown data set {name!r}, expected one of {', '.join(get_args(DatasetName))}")
    if name == "digits":
        return _load_digits()
    root = root if root is not None else os.environ.get("FASTVAE_DATA") or None
    paths = _download(name) if root is None else _find_files(name, Path(root).expanduser())
    return _read_dataset(name, paths)


def _load_digits() -> Images:
    """The digits, split: of each class, in the order of the data set, every fifth image is for testing."""
    from sklearn.datasets import load_digits

    # 17 grey levels, 0..16, onto 0..255.
    grey, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(grey * (_WHITE / largest_count("digits"))).astype(np.uint8)).view(-1, 8, 8)
    labels = torch.from_numpy(classes.astype(np.uint8))
    rank = np.empty(len(classes), dtype=np.int64)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        rank[members] = np.arange(len(members))
    test = torch.from_numpy(rank % 5 == 4)
    return Images("digits", images[~test], labels[~test], images[test], labels[test])


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
        f"one folder) there or in its subfolders {', '.join(subfolders[:-1])} and {subfolders[-1]}"
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
                    f"could not download {url}: {error}; if you have the files of {name}, name their "
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


def _read_dataset(name: str, paths: list[Path]) -> Images:
    """Read the files of ``_STEMS``; the checks go from what a user can mend to the sum over all bytes."""
    contents = [read_bytes(path) for path in paths]
    parts = [parse_idx(path, content) for path, content in zip(paths, contents, strict=True)]
    _check_split(paths[:2], parts[:2], _TRAIN_COUNT)
    _check_split(paths[2:], parts[2:], _TEST_COUNT)
    for index, (path, content) in enumerate(zip(paths, contents, strict=True)):
        _check_published(name, index, path, content)
    train, train_labels, test, test_labels = parts
    return Images(name, train, train_labels, test, test_labels)


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
    md5, published = hashlib.md5(content, usedforsecurity=False).hexdigest(), _SOURCES[name].md5
    if published and md5 == published[index]:
        return
    for other, source in _SOURCES.items():
        if md5 in source.md5:
            raise ValueError(f"{path}: this is a file of {other}, not of {name}")
    if published:
        raise ValueError(f"{path}: not the published file of {name} (MD5 {md5}, expected {published[index]})")
