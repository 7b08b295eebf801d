"""Packs image files of any size and format into one array, which training maps into memory.

Pillow is loaded only by functions that decode. Several threads decode, because Pillow releases the GIL meanwhile. Only
the calling thread writes.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from fastvae.data.images import FORMATS, turn_upright
from fastvae.data.parts import PARTS, listed
from fastvae.data.unfinished import Unfinished, unfinished
from fastvae.files import replacing

Channels = Literal["auto", "grey", "rgb"]
Fit = Literal["crop", "stretch", "pad"]
_KNOWN = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
SUFFIXES = frozenset(f".{name}" for name in _KNOWN.split())

_NAMED = 10  # files that a message names, at most
_SECONDS_BETWEEN_COMMITS = 1.0  # what a killed process may lose
_BLOCK, _BLOCK_BYTES = 16, 2**22  # files of a thread's task, and what their rows may take


class Packed(NamedTuple):
    """The result of :func:`pack`."""

    images: int
    """Number of images in the array."""
    skipped: list[str]
    """Files that could not be read, each with the reason."""
    classes: tuple[str, ...]
    """Names of the classes 0, 1, ...; empty without labels."""
    shape: tuple[int, ...]
    """Shape of one image: ``(H, W)`` or ``(3, H, W)``."""


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | tuple[int, int],
    channels: Channels = "auto",
    fit: Fit = "crop",
    skip_bad: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Packed:
    """Writes image files as one uint8 array, ``[N, H, W]`` (grey) or ``[N, 3, H, W]`` (RGB), to a ``.npy`` file.

    Images are turned as their EXIF orientation says, laid on white where they are transparent, and resized with a
    Lanczos filter. The first frame of an animation is taken. 16-bit grey keeps its upper 8 bits.

    A call that was killed or interrupted goes on where it stopped if it is made again with the same files and options;
    files that have changed meanwhile are read again. ``out`` appears only once all of it is written and synced to the
    disk. Memory does not grow with the number of pixels. The result takes its size on the disk, or twice its size while
    files are skipped.

    Args:
        source: a folder or a ``.txt`` file. A folder is searched with its subfolders for files with the suffix of an
            image, except hidden ones. The files are read in the order of their names. If all images lie in two or more
            subfolders, the subfolders are their classes. Parts of a data set, such as the subfolders ``train`` and
            ``val``, must be packed one by one. A ``.txt`` file has one path a line, relative to its own folder.
        out: the file to write, ``NAME.npy``. If there are classes, the labels, int64 ``[N]``, go to ``NAME.labels.npy``
            and the names of the classes, one a line, to ``NAME.classes.txt`` in the same folder.
        size: height and width, or one number for both.
        channels: ``"auto"`` gives grey if every image is grey, else RGB. Images with a palette count as colour.
        fit: how images of another aspect ratio are fitted. ``"crop"`` keeps the centre, ``"stretch"`` distorts them,
            ``"pad"`` adds black borders.
        skip_bad: whether to leave out files that cannot be read, rather than raise an error that names them.
        overwrite: whether to replace ``out`` if it exists.
        workers: number of threads that decode; by default one for each core that the process may use.
        progress: called in this thread with the number of files that are done, of all files, and of unreadable ones.

    Raises:
        ValueError: a size or number of workers is below 1, an option is unknown, ``out`` does not end in ``.npy``, no
            images are found, ``source`` holds parts of a data set, or files cannot be read. In the last case all files
            have been tried: the message names the first ten bad ones, and what was read is kept for the next call.
        FileExistsError: ``out`` exists.
        BlockingIOError: another process is writing ``out``.
        OSError: the source cannot be searched or the result not written, as on a full disk.
    """
    height, width = (size, size) if isinstance(size, int) else size
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, not {height}x{width}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    for name, value, known in (("channels", channels, Channels), ("fit", fit, Fit)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}")
    out = Path(out).resolve()
    if out.suffix != ".npy":
        raise ValueError(f"{out} does not end in .npy")
    files, classes, labels = _find_files(Path(source))
    digest = hashlib.sha256(repr((height, width, channels, fit)).encode())
    digest.update(os.fsencode("\0".join(files)))
    with _strict_pillow(), unfinished(out, files, digest.digest()) as array:
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists already")
        if not array.goes_on:
            grey = channels == "grey" or (channels == "auto" and all(map(_is_grey, files)))
            array.start((height, width) if grey else (3, height, width))
        bad = _fill(array, files, fit, workers, progress)
        skipped = [f"{files[row]} ({reason})" for row, reason in sorted(bad.items())]
        if len(bad) == len(files):
            raise ValueError(f"none of {len(files)} files can be read: {named(skipped)}")
        if skipped and not skip_bad:
            raise ValueError(
                f"{len(skipped)} of {len(files)} files cannot be read: {named(skipped)}; what was read is kept for the "
                "next call, which leaves them out with skip_bad (--skip-bad)"
            )
        kept = np.array([row not in bad for row in range(len(files))])
        # Never an array beside labels of another one, whenever the process ends: a call finishes what is unfinished.
        out.unlink(missing_ok=True)
        labels_path, classes_path = out.with_suffix(".labels.npy"), out.with_suffix(".classes.txt")
        for path in (labels_path, classes_path):
            path.unlink(missing_ok=True)
        if labels is not None:
            with replacing(labels_path) as temporary:
                np.save(temporary, labels[kept])
            with replacing(classes_path) as temporary:
                temporary.write_text("\n".join(classes) + "\n", encoding="utf-8", errors="surrogateescape")
        array.finish(kept)
        return Packed(int(kept.sum()), skipped, classes, array.shape)


def named(skipped: Sequence[str]) -> str:
    """The first ten skipped files, and the number of further ones."""
    more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return ", ".join(skipped[:_NAMED]) + more


def _fill(
    array: Unfinished, files: Sequence[str], fit: Fit, workers: int, progress: Callable[[int, int, int], None] | None
) -> dict[int, str]:
    """Read what is not done yet, and return why files could not be read, by their rows."""
    grey, size = len(array.shape) == 2, (array.shape[-2], array.shape[-1])

    def read(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8] | str]:
        return [_read_or_reason(files[row], size, grey, fit) for row in rows]

    todo, bad = array.todo(), dict[int, str]()
    step = max(1, min(_BLOCK, _BLOCK_BYTES // math.prod(array.shape)))
    blocks = (todo[start : start + step] for start in range(0, len(todo), step))
    done, committed = len(files) - len(todo), time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        try:
            # No more than a few blocks ahead of what is written: that bounds the memory.
            pending = deque((rows, pool.submit(read, rows)) for rows in islice(blocks, 2 * workers))
            while pending:
                rows, future = pending.popleft()
                for row, result in zip(rows.tolist(), future.result(), strict=True):
                    if isinstance(result, str):
                        bad[row] = result
                    else:
                        array.write(row, result)
                pending.extend((rows, pool.submit(read, rows)) for rows in islice(blocks, 1))
                done += len(rows)
                if time.monotonic() - committed > _SECONDS_BETWEEN_COMMITS:
                    array.commit()
                    committed = time.monotonic()
                if progress is not None:
                    progress(done, len(files), len(bad))
        finally:
            pool.shutdown(cancel_futures=True)
    return bad


def _read_or_reason(path: str, size: tuple[int, int], grey: bool, fit: Fit) -> npt.NDArray[np.uint8] | str:
    from PIL import Image, UnidentifiedImageError

    try:
        return read_image(path, size, grey, fit)
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "more pixels than Pillow considers safe"
    except UnidentifiedImageError:
        return "not an image"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # decoders of damaged files raise what they like
        return str(error) or type(error).__name__


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """What may be a decompression bomb is an error; whatever else Pillow says of files, whose pixels it gives, is not.

    Filters of warnings belong to the process, so that this cannot be a matter of each thread.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_image(path: str, size: tuple[int, int], grey: bool, fit: Fit) -> npt.NDArray[np.uint8]:
    """One image file as uint8 ``[H, W]`` (grey) or ``[3, H, W]``; the options are those of :func:`pack`.

    It raises the errors of Pillow for a file that is not an image or is damaged.
    """
    from PIL import Image

    mode, (height, width) = "L" if grey else "RGB", size
    with Image.open(path, formats=_formats()) as image:
        # A JPEG decodes at 1/2, 1/4 or 1/8 of its size for a fraction of the time; twice the result's is enough for
        # the filter. Orientation may swap height and width.
        image.draft(mode, (2 * max(size), 2 * max(size)))
        turn_upright(image)
        pixels = _converted(image, mode)
        w, h = pixels.size
        shown, box = (width, height), (0.0, 0.0, float(w), float(h))
        if fit == "crop":
            scale = min(w / width, h / height)
            left, top = (w - scale * width) / 2, (h - scale * height) / 2
            box = left, top, w - left, h - top
        elif fit == "pad":
            scale = max(w / width, h / height)
            shown = max(round(w / scale), 1), max(round(h / scale), 1)
        pixels = pixels.resize(shown, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        if shown != (width, height):
            canvas = Image.new(mode, (width, height))
            canvas.paste(pixels, ((width - shown[0]) // 2, (height - shown[1]) // 2))
            pixels = canvas
        array = np.asarray(pixels)
    return array if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def _converted(image: Any, mode: str) -> Any:
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):  # Pillow would cut at 255, not scale
        levels = np.asarray(image).clip(0, 2**16 - 1) >> 8
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Formats of Pillow's that the suffixes stand for, as far as it has them."""
    from PIL import Image

    Image.init()
    return tuple(name for name in (*FORMATS, "AVIF", "JPEG2000", "TGA") if name in Image.OPEN)


def _is_grey(path: str) -> bool:
    """By its header; what cannot be read is no colour."""
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as image:
            return image.mode[0] in "1LI"
    except MemoryError:
        raise
    except Exception:
        return True


def _find_files(source: Path) -> tuple[list[str], tuple[str, ...], npt.NDArray[np.int64] | None]:
    """Paths of the image files in order; names of the classes and a label for each path, where there are classes."""
    if source.suffix == ".txt" and source.is_file():
        with open(source, encoding="utf-8-sig", errors="surrogateescape") as lines:
            names = [line.strip() for line in lines]
        files = [str(source.absolute().parent / name) for name in names if name]
        if not files:
            raise ValueError(f"{source} lists no files")
        return files, (), None
    if source.is_file():
        raise ValueError(f"{source} is neither a folder of images nor a .txt file that lists them")
    root = str(source.absolute())
    parts = sorted(path[len(root) + 1 :].split(os.sep) for path in _walk(root))
    if not parts:
        raise ValueError(f"found no images in {source}: no file ends in {', '.join(sorted(SUFFIXES))}")
    folders = sorted({path[0] for path in parts if len(path) > 1})
    if folders and all(folder.lower() in PARTS for folder in folders):
        raise ValueError(
            f"{source} holds parts of a data set, {listed(folders)}, which one array would mix: pack each of these "
            "folders by itself, and train with --data on one and --test-data on another"
        )
    files = [os.sep.join((root, *path)) for path in parts]
    classes = tuple(sorted({path[0] for path in parts}))
    if min(map(len, parts)) == 1 or len(classes) == 1:
        return files, (), None
    numbers = {name: number for number, name in enumerate(classes)}
    return files, classes, np.array([numbers[path[0]] for path in parts], np.int64)


def _walk(root: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        here = os.path.realpath(folder) + os.sep
        # A link to a folder that holds it would be followed without end.
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and not here.startswith(os.path.realpath(os.path.join(folder, name)) + os.sep)
        ]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(folder, name)
