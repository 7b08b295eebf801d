"""An array on the disk that is written row by row, possibly over several calls, and appears once it is complete.

Until it is finished, the folder of ``NAME.npy`` holds ``NAME.npy.part``, the array itself, and
``NAME.npy.part.journal``. The journal is uint64: a digest of the array's description, then for each row the stamp of
the file that was written there, or 0.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fastvae.files import replacing

_DIGEST = 4  # uint64 of SHA-256
_COPIED_BYTES = 2**24


@contextmanager
def unfinished(out: Path, files: Sequence[str], digest: bytes) -> Iterator[Unfinished]:
    """Yields the array that becomes ``out``, with a row for each of ``files``. Written rows outlast the block.

    Args:
        out: the file to make.
        files: the file that each row comes from. A row counts as written while its file keeps its size and time.
        digest: 32 bytes that identify the array; an unfinished array with another digest is discarded.

    Raises:
        BlockingIOError: another process is writing the array.
        OSError: a file cannot be written; the error names it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part, path = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.journal")
    with open(path, "a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it", str(out)) from None
        except OSError:
            pass  # a file system without locks
        array = Unfinished(out, part, path, files, digest)
        try:
            try:
                yield array
            finally:
                array.close()
        except OSError as error:
            if error.errno and error.filename is None:  # of a write, which knows no name
                error.filename = str(part)
            raise
        finally:
            if not part.exists():
                path.unlink(missing_ok=True)


class Unfinished:
    """The array that :func:`unfinished` yields."""

    def __init__(self, out: Path, part: Path, journal: Path, files: Sequence[str], digest: bytes) -> None:
        self.shape: tuple[int, ...] = ()
        """Shape of a row."""
        self._out, self._part, self._journal_path = out, part, journal
        self._digest = np.frombuffer(digest, np.uint64)
        self._stamps = np.array([_stamp(path) for path in files], np.uint64)
        self._written: list[int] = []
        self._file: BinaryIO | None = None
        # Of another kind, truncated, or not there: each is another array.
        with suppress(OSError, ValueError):
            if np.array_equal(np.fromfile(journal, np.uint64, _DIGEST), self._digest):
                self._open()

    @property
    def goes_on(self) -> bool:
        """Whether an earlier call has begun this array."""
        return self._file is not None

    def start(self, shape: tuple[int, ...]) -> None:
        """Starts the array anew, with uint8 rows of a shape. Its space on the disk is taken at once, or refused."""
        self._journal_path.write_bytes(b"")
        with open(self._part, "wb") as file:
            _write_header(file, (len(self._stamps), *shape))
            file.flush()
            try:
                os.posix_fallocate(file.fileno(), file.tell(), len(self._stamps) * math.prod(shape))
            except OSError:
                self._part.unlink()
                raise
        with open(self._journal_path, "r+b") as journal:
            journal.write(bytes(8 * (_DIGEST + len(self._stamps))))
            journal.seek(0)
            journal.write(self._digest.tobytes())
        self._open()

    def _open(self) -> None:
        array = np.load(self._part, mmap_mode="r")
        if len(array) != len(self._stamps):
            raise ValueError(f"{self._part} is of another length")
        self.shape, self._offset = array.shape[1:], array.offset
        self._journal = np.memmap(self._journal_path, np.uint64, "r+", 8 * _DIGEST, (len(self._stamps),))
        self._file = open(self._part, "r+b")  # noqa: SIM115

    def todo(self) -> npt.NDArray[np.int64]:
        """The rows that are not written, or whose files have changed since."""
        return np.flatnonzero((self._journal != self._stamps) | (self._stamps == 0))

    def write(self, row: int, values: npt.NDArray[np.uint8]) -> None:
        assert self._file is not None
        assert values.shape == self.shape
        self._file.seek(self._offset + row * values.nbytes)
        self._file.write(values.data)
        self._written.append(row)

    def commit(self) -> None:
        """Makes written rows durable, so that they survive a crash of the process or the machine."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._journal[self._written] = self._stamps[self._written]
        self._journal.flush()
        self._written.clear()

    def close(self) -> None:
        try:
            self.commit()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def finish(self, kept: npt.NDArray[np.bool_]) -> None:
        """Moves the array to its place, or a copy of the kept rows only; ``kept`` is bool ``[N]``."""
        self.close()
        if kept.all():
            os.replace(self._part, self._out)
            return
        rows, step = np.flatnonzero(kept), max(1, _COPIED_BYTES // math.prod(self.shape))
        array = np.load(self._part, mmap_mode="r")
        # A copy, so that a process that is killed meanwhile has lost nothing.
        with replacing(self._out) as temporary, open(temporary, "wb") as file:
            _write_header(file, (len(rows), *self.shape))
            for start in range(0, len(rows), step):
                file.write(array[rows[start : start + step]].data)
        self._part.unlink()


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _stamp(path: str) -> int:
    """Of a file's size and time, and 0 if it has none."""
    try:
        status = os.stat(path)
    except OSError:
        return 0
    stamp = hashlib.blake2b(f"{status.st_size} {status.st_mtime_ns}".encode(), digest_size=8)
    return int.from_bytes(stamp.digest(), "little") or 1
