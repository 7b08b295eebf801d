"""Timing that a sceptic can rerun: interleaved contenders, medians with their spread, peak memory, the machine."""

from __future__ import annotations

import itertools
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

import fastvae
from fastvae.machine import processor


class Timing(NamedTuple):
    """Seconds a call: the median of the rounds, and their quartiles."""

    median: float
    low: float
    high: float


# What is measured. Not torch's default device: that costs every call of torch a little, and so the one that makes
# most calls the most.
device = torch.device("cpu")


def synchronize() -> None:
    """Waits for a GPU to end what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _calls_for(function: Callable[[], object], seconds: float) -> int:
    start = time.perf_counter()
    function()
    synchronize()
    return max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))


def compare(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 15, seconds: float = 0.01
) -> dict[str, Timing]:
    """Times each contender once in every round, so that what disturbs the machine disturbs all alike.

    Args:
        contenders: name to function without arguments.
        rounds: how often each is measured, 2 or more.
        seconds: about how long a measurement repeats its function.
    """
    calls = {}
    for name, function in contenders.items():
        function()  # compiles, fills caches
        function()
        synchronize()
        calls[name] = _calls_for(function, seconds)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            synchronize()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {name: Timing(statistics.median(s), *statistics.quantiles(s, n=4)[::2]) for name, s in samples.items()}


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that torch's allocator held during a call beyond those at its start; the result counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        del result
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()  # kept until the profiler stops
    del result
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    changes: list[int] = [e.nbytes() for e in events]
    return max(itertools.accumulate(changes, initial=0))


def resident(what: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


def page_faults(function: Callable[[], object], calls: int = 5) -> float:
    """How many pages a call takes from the system, where it has been called before."""
    function()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls


def launches(function: Callable[[], object]) -> list[tuple[str, int, float]]:
    """What a call runs on the GPU: name, how often, and microseconds in all; what takes longest first."""
    function()
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        synchronize()
    found = [(e.key[:100], e.count, e.self_device_time_total) for e in profiler.key_averages()]
    return sorted((launch for launch in found if launch[2] > 0), key=lambda launch: -launch[2])


def measure(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Each contender's times, interleaved, and its peak memory: what a row of results holds."""
    timings = compare(contenders, rounds)
    return {
        name: {**timings[name]._asdict(), "peak_bytes": peak_memory(function)} for name, function in contenders.items()
    }


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Lets torch use ``count`` threads; None for as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def copy_bandwidth(size: int | None = None) -> float:
    """Bytes per second, read and written, of a plain copy of ``size`` bytes into memory that is already there.

    By default 256 MiB, or 1 GiB on a GPU: many times the caches.
    """
    size = size or 1 << (30 if device.type == "cuda" else 28)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / compare({"copy": lambda: target.copy_(source)})["copy"].median


def machine() -> dict[str, Any]:
    """The processor or GPU, the versions, the threads."""
    model = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **fastvae.build_info(),
    }


def save(file: Path | None, result: dict[str, Any]) -> None:
    """Writes what has been measured so far: a run that is cut short leaves its rows."""
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")
