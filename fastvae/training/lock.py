"""A lock that lets one run at a time use a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastvae.training.distributed import TrainingError

_LOCK = ".lock"

logger = logging.getLogger("fastvae")

# Of this process. A lock lasts until the last copy of its descriptor is closed, and a forked child has one of each.
_descriptors: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for a run of this process, so that a second run cannot start or resume there.

    The kernel keeps the lock (``flock``) and releases it when the process ends, however it ends. On a file system
    without locks, such as some network file systems, a warning is logged and the block runs without a lock.

    Args:
        folder: the folder of the run, made if it is missing and removed at the end if it is still empty.

    Raises:
        TrainingError: another run holds the folder; the message names its process and machine.
        OSError: the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(folder)
    _descriptors.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _descriptors:  # not in a child
            _descriptors.remove(descriptor)
            (folder / _LOCK).unlink(missing_ok=True)
            os.close(descriptor)
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def _acquire(folder: Path) -> int:
    while True:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace")
            os.close(descriptor)
            raise TrainingError(
                f"{folder} is in use by another run ({holder}): wait until it is over, or train in another folder"
            ) from None
        except OSError as error:
            logger.warning(
                "%s: its file system has no locks (%s): nothing will stop a second run there", folder, error.strerror
            )
        # The one who held it may have removed the file since it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / _LOCK)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        os.close(descriptor)
