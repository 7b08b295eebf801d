"""IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


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
