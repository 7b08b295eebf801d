"""Free and used memory of the machine and of its GPUs."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import torch
from torch import Tensor


def kibibytes(file: str, name: str) -> int:
    """The number in the line ``name`` of a file in which Linux reports memory, such as ``/proc/meminfo``."""
    lines = Path(file).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def available_bytes(device: torch.device) -> int:
    """Bytes that this process may still take: of a GPU, or within the limits of machine, control group and process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = [1024 * kibibytes("/proc/meminfo", "MemAvailable"), *_left_of_groups()]
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit != resource.RLIM_INFINITY:
        available.append(limit - 1024 * kibibytes("/proc/self/status", "VmData"))
    return max(0, min(available))


def _left_of_groups(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Of the control groups that the process is in, version 1 or 2, and of those above, what each has left."""
    left = []
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "memory":
            names, root = ("memory.limit_in_bytes", "memory.usage_in_bytes"), groups / "memory"
        elif not controllers:
            names, root = ("memory.max", "memory.current"), groups
        else:
            continue
        # A limit of those above binds too. Inside of a container its own group is the root.
        innermost = root / group.lstrip("/")
        for folder in (innermost, *innermost.parents):
            if not folder.is_relative_to(root):
                break
            try:
                limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in names)
            except OSError:
                continue
            if limit != "max":
                left.append(int(limit) - int(used) + _cache(folder))
    return left


def _cache(folder: Path) -> int:
    """Copies of files, which give way where memory is asked for."""
    lines = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    return sum(int(value) for name, value in lines if name in ("inactive_file", "active_file"))


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor on the CPU is a map of a file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, _, _, device, _, *_ = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return device != "00:00"
    return False


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory for the next allocations; returns whether it can.

    By default glibc returns free memory at the end of its heap, and every large block, to the system. The tensors of
    each training step then come in thousands of fresh pages, each with a page fault, although a process that only
    trains needs the same memory in every step. ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` in the
    environment do the same for any program.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Numbers of glibc's malloc.h; the largest threshold that it takes for a mapping is 32 MiB.
    trim, mapped = -1, -3
    return bool(mallopt(trim, 2**31 - 1)) and bool(mallopt(mapped, 2**25))
