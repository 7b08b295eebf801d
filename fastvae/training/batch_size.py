"""Measures the training speed of growing batches, to choose a batch size."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae.training.config import TrainConfig
from fastvae.training.distributed import World, torch_device
from fastvae.training.feed import DataOn
from fastvae.training.inputs import load_data
from fastvae.training.memory import available_bytes, kibibytes
from fastvae.training.step import Stepper, build_model

_FIRST = 64
_SECONDS = 1.0
# A batch that gains less than this over the best one before it is not worth more memory.
_GAIN = 1.05


class BatchSpeed(NamedTuple):
    """The speed and memory of training steps with one batch size."""

    batch_size: int
    images_per_second: float
    """Images per second of the median step."""
    peak_bytes: int
    """Peak memory. On a GPU, of the tensors; on a CPU, of the process, over all batch sizes measured so far."""


def measure_batch_sizes(
    config: TrainConfig,
    *,
    device: str | torch.device | None = None,
    data_on: DataOn = "auto",
    report: Callable[[BatchSpeed], None] | None = None,
) -> list[BatchSpeed]:
    """Trains with batches of 64, 128, ... images, until two sizes in a row gain nothing or memory or data run out.

    Args:
        config: the configuration of the training; its ``batch_size`` is ignored.
        device: as for ``train``.
        data_on: as for ``train``.
        report: called with each result as it comes.

    Raises:
        ValueError: the device does not exist, the data set is damaged, or it has fewer images than 64 or
            ``config.accumulate``.
        OSError: there is no data set.
    """
    own = torch_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    config = config.resolved()
    dataset = load_data(config)
    results: list[BatchSpeed] = []
    size = max(_FIRST, config.accumulate)
    if size > len(dataset.train):
        raise ValueError(f"a batch of {size} needs as many images, but {config.data_name} has {len(dataset.train)}")
    while size <= len(dataset.train) and not _settled(results) and _fits(results, own):
        changed = dataclasses.replace(config, batch_size=size)
        stepper: Stepper | None = None  # and the one before is gone
        if own.type == "cuda":
            torch.cuda.reset_peak_memory_stats(own)
        try:
            stepper = Stepper(
                changed, dataset, build_model(changed, dataset).to(own), World(0, 1, own), data_on=data_on
            )
            results.append(BatchSpeed(size, _images_per_second(stepper, size), _peak_bytes(own)))
        except (MemoryError, RuntimeError) as error:
            if not results or (isinstance(error, RuntimeError) and "memory" not in str(error)):
                raise
            break
        finally:
            if stepper is not None:
                stepper.feed.close()
        if report is not None:
            report(results[-1])
        size *= 2
    return results


def best_batch_size(results: Sequence[BatchSpeed]) -> int:
    """The smallest batch size within 5 % of the fastest: larger ones make fewer steps and are no faster."""
    fastest = max(result.images_per_second for result in results)
    return next(result.batch_size for result in results if result.images_per_second * _GAIN >= fastest)


def _images_per_second(stepper: Stepper, size: int) -> float:
    batches, device = _announced(stepper, size), stepper.device
    seconds: list[float] = []
    # The first step makes the optimiser's state, and compiles.
    while len(seconds) < 4 or sum(seconds[1:]) < _SECONDS:
        batch = next(batches)
        started = time.perf_counter()
        stepper(0, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return size / sorted(seconds[1:])[len(seconds[1:]) // 2]


def _announced(stepper: Stepper, size: int) -> Iterator[Tensor]:
    """Whole batches in random order, as a run asks for them: rows that are elsewhere are read one batch ahead."""
    while True:
        order = torch.randperm(stepper.rows)[: stepper.rows // size * size]
        batches = torch.split(order if stepper.feed.reads_ahead else order.to(stepper.device), size)
        stepper.announce(batches, 0, 0)
        yield from batches


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * kibibytes("/proc/self/status", "VmHWM")


def _settled(results: Sequence[BatchSpeed]) -> bool:
    speeds = [result.images_per_second for result in results]
    return len(speeds) > 2 and max(speeds[-2:]) < max(speeds[:-2]) * _GAIN


def _fits(results: Sequence[BatchSpeed], device: torch.device) -> bool:
    """Whether twice as much is to be had: a process that asks the CPU for too much is killed, and not told."""
    if not results or device.type == "cuda":
        return True
    return results[-1].peak_bytes < available_bytes(device)
