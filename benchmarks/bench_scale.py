"""Images per second of training in one process and in several, at the same global batch.

    python -m benchmarks.bench_scale [--data-dir DIR] [--batch N ...] [--processes N] [--rounds N] [--json FILE]

``fastvae train`` trains the tutorial's network on MNIST for one epoch that is not timed and one that is. Several
processes have one thread each, and are compared with one process that has all threads. They take turns in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .timing import machine, save


def images_per_second(processes: int, threads: int, batch: int, data_dir: str | None) -> float:
    """Of the second epoch."""
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *launcher, "fastvae", "train", "--dataset", "mnist", "--epochs", "2"]
        command += ["--batch-size", str(batch), "--out", folder + "/run"]
        if data_dir:
            command += ["--data-dir", data_dir]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text(encoding="utf-8"))
        return float(metrics["epochs"][-1]["samples_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_scale", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="of MNIST")
    parser.add_argument("--batch", type=int, nargs="+", default=(256, 1024, 8192))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    many = arguments.processes
    setups = {"one process, one thread": (1, 1), f"one process, {many} threads": (1, many)}
    setups[f"{many} processes, one thread each"] = (many, 1)
    result: dict[str, Any] = {"machine": machine(), "rows": []}
    for batch in arguments.batch:
        rates: dict[str, list[float]] = {name: [] for name in setups}
        for _ in range(arguments.rounds):
            for name, (processes, threads) in setups.items():
                rates[name].append(images_per_second(processes, threads, batch, arguments.data_dir))
        alone = statistics.median(rates["one process, one thread"])
        for name, found in rates.items():
            row = {"batch": batch, "setup": name, "images_per_second": found, "median": statistics.median(found)}
            result["rows"].append(row)
            print(f"{batch:>6}  {name:<32} {row['median']:>8.0f} images/s  {row['median'] / alone:.2f}", flush=True)
        save(arguments.json, result)


if __name__ == "__main__":
    main()
