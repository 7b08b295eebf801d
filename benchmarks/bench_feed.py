"""Training on a file that exceeds the memory of the process, compared with the same file in memory.

    python -m benchmarks.bench_feed FOLDER [--rows N] [--memory MIB] [--batch N] [--epochs N] [--json FILE]

Writes FOLDER/rows.npy once, uint8 ``[N, 3, 64, 64]`` of noise, and trains a network of 16 hidden units on it by
``fastvae train``: the step is short, so that it cannot hide the time of reading. With ``--data-on host`` the process
runs in a memory cgroup of its own (which needs root). The cgroup also counts the pages of the file that the process has
read, and so makes it read from the disk in every epoch. Without a cgroup, RLIMIT_DATA bounds what the process may
allocate, and the file may stay in the page cache. With ``--data-on device`` there is no bound.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastvae.files import replacing
from fastvae.training.memory import kibibytes

from .timing import machine, save

SHAPE = (3, 64, 64)
BLOCK = 8192
_GROUPS = Path("/sys/fs/cgroup")


def write_rows(path: Path, rows: int) -> None:
    """Noise whose brightness differs from row to row, unless the file is there."""
    if path.exists() and np.load(path, mmap_mode="r").shape == (rows, *SHAPE):
        return
    noise = np.random.default_rng(0)
    with replacing(path) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.uint8, (rows, *SHAPE))
        for first in range(0, rows, BLOCK):
            block = out[first : first + BLOCK]
            darker = noise.integers(0, 7, (len(block), 1, 1, 1), np.uint8)
            block[:] = noise.integers(0, 256, block.shape, np.uint8) >> darker
        out.flush()


def forget(path: Path) -> None:
    """Leaves nothing of a file in the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def memory_of(mebibytes: int | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """What bounds the memory of a child process, and what the child calls before it starts."""
    if mebibytes is None:
        yield "no bound", lambda: None
        return
    limit = mebibytes << 20
    first = _GROUPS / "memory" / f"fastvae-{os.getpid()}"  # version 1
    second = _GROUPS / f"fastvae-{os.getpid()}"
    for group, file in ((first, "memory.limit_in_bytes"), (second, "memory.max")):
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        try:
            yield "a memory cgroup", partial(_join, group)
        finally:
            group.rmdir()
        return
    yield "RLIMIT_DATA", lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text("0")


def anonymous_bytes(process: int) -> int:
    """What a process has of memory that is no file's; 0 when it is gone."""
    try:
        return 1024 * kibibytes(f"/proc/{process}/status", "RssAnon")
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return 0


def train(data: Path, data_on: str, mebibytes: int | None, batch: int, epochs: int) -> dict[str, Any]:
    """One run: its rows per second, the share of the time that its steps wait for rows, and its peak memory."""
    forget(data)
    with tempfile.TemporaryDirectory() as folder, memory_of(mebibytes) as (bound, enter):
        command = [sys.executable, "-m", "fastvae", "train", "--data", str(data), "--data-on", data_on, "--out"]
        command += [folder + "/run", "--hidden", "16", "--latent-dim", "4", "--batch-size", str(batch)]
        process = subprocess.Popen(
            [*command, "--epochs", str(epochs)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=enter,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"--data-on {data_on}: status {process.returncode}\n{errors}")
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text(encoding="utf-8"))
    return {
        "data_on": data_on,
        "bound": bound,
        "mebibytes": mebibytes,
        "rows_per_second": [epoch["samples_per_second"] for epoch in metrics["epochs"]],
        "waiting": [epoch["seconds_waiting_for_data"] / epoch["seconds"] for epoch in metrics["epochs"]],
        "peak_anonymous_bytes": peak,
        "loss": [epoch["train"]["elbo"] for epoch in metrics["epochs"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_feed", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the file of data")
    parser.add_argument("--rows", type=int, default=500_000, help="12 KiB each")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="of the process that reads the file")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    data = arguments.folder / "rows.npy"
    write_rows(data, arguments.rows)
    result: dict[str, Any] = {"machine": machine(), "bytes": data.stat().st_size, "rows": []}
    for data_on, mebibytes in (("host", arguments.memory), ("device", None)):
        row = train(data, data_on, mebibytes, arguments.batch, arguments.epochs)
        result["rows"].append(row)
        print(
            f"{data_on:<7} {row['bound']:<16} {row['rows_per_second'][-1]:>8.0f} rows/s, waits "
            f"{row['waiting'][-1]:.1%} of the time, {row['peak_anonymous_bytes'] / 2**20:.0f} MiB anonymous",
            flush=True,
        )
        save(arguments.json, result)
    if result["rows"][0]["loss"] != result["rows"][1]["loss"]:
        raise SystemExit("the losses differ")


if __name__ == "__main__":
    main()
