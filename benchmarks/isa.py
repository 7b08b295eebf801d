"""fastvae's kernels on each instruction set of this processor, in a process each: torch chooses the set at start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import fastvae

from . import ROOT

CASES = (
    ("sigmoid_cross_entropy", (4096, 784), ("forward", "forward+backward")),
    ("elbo_loss", (4096, 784), ("forward+backward",)),
    ("sample_kl", (16384, 32), ("forward+backward",)),
)


def compare_instruction_sets(rounds: int) -> list[dict[str, Any]]:
    """The rows of ``CASES``, whose contenders are the instruction sets: the one in use first, then all below it."""
    info = fastvae.build_info()
    compiled, used = info["cpu_capabilities"], info["cpu_capability"]
    assert isinstance(compiled, list)
    merged: list[dict[str, Any]] = []
    for capability in reversed(compiled[: compiled.index(used) + 1]):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability.lower()}
        command = [sys.executable, "-m", "benchmarks.isa", capability, str(rounds)]
        process = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        rows = json.loads(process.stdout)
        merged = merged or [{**row, "contenders": {}} for row in rows]
        for row, measured in zip(merged, rows, strict=True):
            row["contenders"][capability] = measured["contenders"]["fastvae"]
    return merged


def main() -> None:
    from .bench_ops import rows
    from .cases import find

    capability, rounds = sys.argv[1], int(sys.argv[2])
    assert fastvae.build_info()["cpu_capability"] == capability
    result: list[dict[str, Any]] = []
    for name, shape, modes in CASES:
        result += rows(*find(name, shape), rounds, names=("fastvae",), modes=modes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
