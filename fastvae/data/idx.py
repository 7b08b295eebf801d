"""Readers of IDX files, the format of MNIST, and of folders of them."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvae.data.parts import PARTS, Raw, check_size, listed

# train-images-idx3-ubyte, emnist-letters-test-labels-idx1-ubyte.gz, t10k-images.idx3-ubyte
_NAME = re.compile(r"(.*?)(train|t10k|test|val)-(images|labels)[-.]idx\d-ubyte(\.gz)?")


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Reads an IDX file of unsigned bytes, plain or gzip-compressed, as its content shows.

    Args:
        path: the file.

    Returns:
        uint8, of the shape that the file's header states.

    Raises:
        ValueError: the file is truncated, too long, corrupt, or not an IDX file of unsigned bytes.
        OSError: the file cannot be read.

    Source: LeCun, Cortes & Burges, the MNIST page, section "file formats".
    """
    return parse_idx(Path(path), read_bytes(Path(path)))


def read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError:
        raise ValueError(f"{path}: truncated: the compressed data ends too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: corrupt: {error}") from None


def parse_idx(path: Path, content: bytes) -> Tensor:
    # Magic number: two zero bytes, the element type (8 = unsigned byte), the number of dimensions. Then the
    # dimensions, big-endian, and the elements.
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise ValueError(f"{path}: not an IDX file: it starts with {content[:4].hex(' ') or 'nothing'}")
    if content[2] != 8:
        raise ValueError(f"{path}: holds IDX elements of type 0x{content[2]:02x}, expected 0x08 (unsigned byte)")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{path}: truncated: it ends within the header")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    check_size(path, len(content) - header, int(np.prod(shape, dtype=object)), f"shape {shape}")
    # A copy: the bytes are read-only, and the header would shift the first pixel off its alignment.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()).view(shape)


def find_idx(folder: Path) -> dict[tuple[str, str, str], Path]:
    """The IDX files of a folder that are named like MNIST's, by prefix, part and kind.

    The prefix is the text before ``train`` or ``t10k``, the part is ``train``, ``test`` or ``val``, and the kind is
    ``images`` or ``labels``. A plain file is preferred to a compressed one.
    """
    found: dict[tuple[str, str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file() and not path.name.startswith("."):
            found.setdefault((match[1], PARTS[match[2]], match[3]), path)
    return found


def read_idx_folder(folder: Path, found: dict[tuple[str, str, str], Path]) -> Raw:
    """The data set whose files ``find_idx`` found; test images and labels may be missing.

    Raises:
        ValueError: there are several data sets or no training images, or as for ``read_idx``.
    """
    prefixes = sorted({prefix for prefix, _, _ in found})
    if len(prefixes) > 1:
        raise ValueError(
            f"{folder}: holds several data sets, whose files start with {listed(prefixes)}: give the file with the "
            "training images of one of them"
        )
    files = {(part, kind): path for (_, part, kind), path in found.items()}
    if ("train", "images") not in files:
        raise ValueError(f"{folder}: holds {min(found.values()).name}, but no train-images-idx3-ubyte")
    test = "test" if ("test", "images") in files else "val"
    images, labels, test_images, test_labels = (
        read_idx_images(files[key]) if key in files else None
        for key in (("train", "images"), ("train", "labels"), (test, "images"), (test, "labels"))
    )
    assert images is not None
    return Raw(
        images,
        None if labels is None else labels.numpy(),
        None,
        test_images,
        None if test_labels is None or test_images is None else test_labels.numpy(),
    )


def read_idx_file(path: Path) -> Raw:
    """The content of one file; training images come with labels and a test set that lie in the same folder."""
    match = _NAME.fullmatch(path.name)
    if match and (PARTS[match[2]], match[3]) == ("train", "images"):
        beside = {key: other for key, other in find_idx(path.parent).items() if key[0] == match[1]}
        return read_idx_folder(path.parent, {**beside, (match[1], "train", "images"): path})
    return Raw(read_idx_images(path))


def read_idx_images(path: Path) -> Tensor:
    """Reads as ``read_idx``, and transposes EMNIST's images, whose files hold columns for rows."""
    tensor = read_idx(path)
    if path.name.startswith("emnist-") and tensor.dim() == 3:
        return tensor.transpose(1, 2).contiguous()
    return tensor
