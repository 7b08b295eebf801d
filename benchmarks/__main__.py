"""Whether fastvae is worth it on this machine: a few rows of both benchmarks, and what to expect, in a minute."""

from __future__ import annotations

import torch

from . import table
from .bench_ops import rows
from .bench_train import measure_step
from .cases import find
from .timing import machine

OPERATORS = (("elbo_loss", (4096, 784)), ("sigmoid_cross_entropy", (4096, 784)), ("sample_kl", (16384, 32)))
BATCH = 1024
ROUNDS = 7
COLUMNS = {
    "forward with backward": 22,
    "shape": 10,
    "eager ms": 8,
    "compile ms": 10,
    "fastvae ms": 10,
    "x eager": 7,
    "x compile": 9,
    "extra MB eager / compile / fastvae": 0,
}
NAMES = ("eager", "compile", "fastvae")


def cells(name: str, shape: str, row: table.Row) -> list[str]:
    times = [table.milliseconds(row["contenders"][n]) for n in NAMES]
    ratios = [table.ratio(table.faster(row, n)) for n in NAMES[:2]]
    return [name, shape, *times, *ratios, table.megabytes(row, NAMES)]


def expectation(operators: list[table.Row], step: table.Row) -> str:
    """What the figures say, in a sentence."""
    spans, steps = [], []
    for than, name in (("eager", "eager PyTorch"), ("compile", "torch.compile")):
        ratios = sorted(table.faster(row, than) for row in operators)
        spans.append(f"{table.ratio(ratios[0])} to {table.ratio(ratios[-1])} times as fast as {name}")
        saved = 1 - 1 / table.faster(step, than)
        steps.append(f"{abs(saved):.0%} {'less' if saved > 0 else 'more'} time than with {name}")
    return (
        f"Expect these operators to be {' and '.join(spans)}; a whole training step at batch {BATCH} of a network of "
        f"this size, most of which is matrix products, takes {' and '.join(steps)}."
    )


def main() -> None:
    torch.manual_seed(0)
    print(table.describe(machine()))
    print(table.text(COLUMNS, COLUMNS))
    measured: list[table.Row] = []
    for name, shape in OPERATORS:
        for row in rows(*find(name, shape), ROUNDS, NAMES, modes=("forward+backward",)):
            measured.append(row)
            print(table.text(cells(name, "x".join(map(str, shape)), row), COLUMNS), flush=True)
    step = measure_step(BATCH, "float32", ROUNDS, names=NAMES)
    print(table.text(cells("training step", f"{BATCH}x784", step), COLUMNS))
    print("\n" + expectation(measured, step))


if __name__ == "__main__":
    main()
