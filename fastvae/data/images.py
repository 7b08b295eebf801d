"""Readers of encoded images, one or many, which Pillow decodes on all cores."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.parts import PARTS, Array, Progress, Raw, files_below, to_tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm")
# Named, since others of Pillow's run programs (EPS).
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
# Images between two reports of progress: many for each thread, and few in memory.
_ROUND = 256

Encoded = tuple[str, Callable[[], bytes]]
"""The name of an image in errors, and a function that returns its bytes."""


def decode(name: str, content: bytes) -> NDArray[np.uint8]:
    """Decodes an image: uint8 ``[H, W]`` if it is grey or black and white, else ``[3, H, W]``.

    The image is turned as its EXIF orientation says. Transparency is dropped, and palette indices become colours. Of
    several frames the first is taken.

    Raises:
        ValueError: the image cannot be decoded, or has more than 8 bits per pixel and channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            turn_upright(image)
            mode = image.mode
            if mode in ("1", "L", "LA"):
                return np.array(image.convert("L"))
            if not mode.startswith(("I", "F")):
                # By way of RGBA, without which Pillow warns of palettes with transparency.
                colours = image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB")
                return np.ascontiguousarray(np.asarray(colours).transpose(2, 0, 1))
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        reason = "it has no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name}: cannot be decoded as an image: {reason}") from None
    raise ValueError(f"{name}: has grey levels of more than 8 bits (mode {mode}), expected 8; arrays can hold them")


def turn_upright(image: Any) -> None:
    """Decodes a Pillow image and turns it as its EXIF orientation says, if that can be read."""
    from PIL import ImageOps

    image.load()
    try:
        image.getexif()
    except Exception:  # damaged metadata, beside which the pixels are whole
        return
    ImageOps.exif_transpose(image, in_place=True)


def decode_all(encoded: Iterable[Encoded], count: int, progress: Progress | None) -> NDArray[np.uint8]:
    """Decodes ``count`` images of one size and mode in order, on all cores, to ``[N, H, W]`` or ``[N, 3, H, W]``.

    Raises:
        ValueError: an image cannot be decoded, or differs from the first one; the message names the first such image.
    """
    encoded = iter(encoded)
    first_name, read = next(encoded)
    first = decode(first_name, read())
    images = np.empty((count, *first.shape), np.uint8)
    images[0] = first

    def place(index: int, item: Encoded) -> None:
        name, read = item
        image = decode(name, read())
        if image.shape != first.shape:
            raise ValueError(
                f"{name}: is {_describe(image)}, but {first_name} {_describe(first)}; `fastvae pack` makes images one "
                "size and mode"
            )
        images[index] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(1, count, _ROUND):
            batch = list(islice(encoded, _ROUND))
            for _ in pool.map(place, range(start, start + len(batch)), batch):
                pass
            if progress is not None:
                progress(start + len(batch), count)
    return images


def _describe(image: Array) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]} {'grey' if image.ndim == 2 else 'RGB'}"


def read_images(folder: Path, progress: Progress | None) -> Raw:
    """The images of a folder. Its subfolders are classes, or parts that may have subfolders for classes.

    Raises:
        ValueError: there are no image files, some lie next to folders of classes, or images differ or cannot be
            decoded.
    """
    files = files_below(folder, SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: holds no images ({', '.join(SUFFIXES)}), no Parquet files and no IDX files")
    # What is not below a folder of a part, in a folder of nothing but parts, is below a class.
    parts = {file: PARTS.get(file.partition("/")[0].lower()) if "/" in file else None for file in files}
    test: list[str] = []
    if "train" in parts.values() and None not in parts.values():
        held_out = "test" if "test" in parts.values() else "val"
        files, test = ([file for file in files if parts[file] == part] for part in ("train", held_out))
        labels, test_labels = (_classes(folder, [file.partition("/")[2] for file in part]) for part in (files, test))
    else:
        labels, test_labels = _classes(folder, files), None
    paths = [folder / file for file in files + test]
    images = to_tensor(folder, decode_all(((str(path), path.read_bytes) for path in paths), len(paths), progress))
    return Raw(images[: len(files)], labels, None, images[len(files) :] if test else None, test_labels)


def _classes(folder: Path, files: list[str]) -> Array | None:
    """The subfolder that each file of a part lies in, or None where they lie in the part itself."""
    direct = [file for file in files if "/" not in file]
    if direct and len(direct) < len(files):
        raise ValueError(f"{folder}: has images like {direct[0]} next to folders of images, which would be classes")
    return None if direct or not files else np.array([file.partition("/")[0] for file in files])
