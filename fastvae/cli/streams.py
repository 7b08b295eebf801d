"""Standard streams that may be closed, broken, full or ASCII without stopping a command."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def lasting_streams() -> Iterator[list[OSError]]:
    """Replaces standard output and error within the block by streams to which writing never fails.

    If a reader closes its end of a pipe (``| head -1``), further output is dropped, the command goes on to its end, and
    its exit status is that of its work. A training whose terminal is gone goes on to its end. A stream that was closed
    from the start acts like ``/dev/null``. A character that the stream's encoding lacks is written in ASCII.

    Yields:
        The errors, such as a full disk, by which standard output lost text that is still wanted. The list is complete
        once the streams have been flushed.
    """
    # Else the next file that is opened, a checkpoint perhaps, has the number to which C code prints.
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(spare)
    lost: list[OSError] = []
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(sys.stdout, lost), _lasting(sys.stderr, [])
    try:
        yield lost
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class _Outlet(io.FileIO):
    """A descriptor that gives way to ``/dev/null`` when nothing more can be written to it."""

    def __init__(self, descriptor: int, lost: list[OSError]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lost = lost

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self._lost.append(error)
            # Under the same number, which C code and child processes have too.
            with open(os.devnull, "wb") as sink:
                os.dup2(sink.fileno(), self.fileno())
            return len(data)


def _lasting(stream: TextIO | None, lost: list[OSError]) -> TextIO:
    if stream is None:  # what Python makes of a closed one
        return open(os.devnull, "w", encoding="utf-8")
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # a notebook's or a test's, of no file
        return stream
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    outlet = _Outlet(descriptor, lost)
    return io.TextIOWrapper(
        outlet if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(outlet),
        encoding=stream.encoding,
        errors=_in_ascii.__name__,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].replace("±", "+-")
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_in_ascii.__name__, _in_ascii)
