"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields the path of a temporary file in the same folder, made where it is missing, with the same suffix.
    At the end of the block it is flushed to the disk and takes the place of ``path``; after an exception it
    is removed, and ``path`` is what it was. A link is followed; what is there and no file, such as a pipe or
    a device, is written as it is.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for all attempts: what a killed process left behind is overwritten by the next one.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
