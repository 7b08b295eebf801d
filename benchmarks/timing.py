"""Timing that a sceptic can rerun: contenders interleaved, medians with their spread, the machine beside them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastvae


class Timing(NamedTuple):
    """Seconds a call: the median of the rounds, and their quartiles."""

    median: float
    low: float
    high: float


def _calls_for(function: Callable[[], object], seconds: float) -> int:
    start = time.perf_counter()
    function()
    return max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))


def compare(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 15, seconds: float = 0.01
) -> dict[str, Timing]:
    """Times each contender once in every round, so that what disturbs the machine disturbs all alike.

    Args:
        contenders: name to function without arguments.
        rounds: how often each is measured.
        seconds: about how long a measurement repeats its function.
    """
    calls = {}
    for name, function in contenders.items():
        function()  # compiles, fills caches
        function()
        calls[name] = _calls_for(function, seconds)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {name: Timing(statistics.median(s), *statistics.quantiles(s, n=4)[::2]) for name, s in samples.items()}


def copy_bandwidth(bytes_read: int = 1 << 28) -> float:
    """Bytes read per second by a plain copy of ``bytes_read`` bytes into memory that is already there."""
    source = torch.ones(bytes_read // 4)
    target = torch.empty_like(source)
    return bytes_read / compare({"copy": lambda: target.copy_(source)})["copy"].median


def machine() -> dict[str, Any]:
    """The processor, the versions, the threads."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **fastvae.build_info(),
    }
