"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Writes a file completely or not at all.

    Yields the path of a temporary file with the same suffix in the folder of ``path``, which is made if it is missing.
    At the end of the block the temporary file is flushed to the disk and replaces ``path``. After an exception it is
    removed, and ``path`` does not change. Links are followed. If ``path`` exists and is not a file, such as a pipe or a
    device, it is written directly.

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
