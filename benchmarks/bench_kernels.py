"""The kernels alone on one thread, in the caches, in nanoseconds per element; and the speed of reading memory.

    python -m benchmarks.bench_kernels [--rounds N] [--json FILE]

Each figure is the difference between two sizes, both within an L2 cache of 2 MiB a core, so that the fixed cost of a
call cancels. ATEN_CPU_CAPABILITY=avx2 (or default) chooses another instruction set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastvae

from . import table
from .timing import compare, machine, save, threads

SMALL, LARGE = 32 * 784, 128 * 784  # elements
READ = 16384 * 784
L = 32

ops = torch.ops.fastvae
Kernel = Callable[[int], Callable[[], object]]


def _sigmoid_cross_entropy(logits: torch.dtype, target: torch.dtype) -> Kernel:
    def make(n: int) -> Callable[[], object]:
        x = torch.randint(0, 256, (n // 784, 784), dtype=torch.uint8)
        y = x if target == torch.uint8 else (x / 255).to(target)
        h = torch.randn(n // 784, 784).to(logits)
        return lambda: fastvae.sigmoid_cross_entropy(h, y)

    return make


def _sigmoid_cross_entropy_backward(n: int) -> Callable[[], object]:
    h, y, g = torch.randn(n // 784, 784), torch.rand(n // 784, 784), torch.ones(n // 784)
    return lambda: ops.nll_backward(
        g, "sigmoid_cross_entropy", h, None, None, y, None, 1.0, False, None, None, None, [True] + 5 * [False]
    )


def _with_gradient(n: int) -> Callable[[], object]:
    h, y = torch.randn(n // 784, 784, requires_grad=True), torch.rand(n // 784, 784)
    return lambda: fastvae.sigmoid_cross_entropy(h, y, reduction="sum")


def _of_moments(function: Callable[..., object]) -> Kernel:
    def make(n: int) -> Callable[[], object]:
        mu, logvar = torch.randn(n // L, L), torch.randn(n // L, L)
        return lambda: function(mu, logvar)

    return make


def _sample_kl_backward(n: int) -> Callable[[], object]:
    mu, logvar, g = (torch.randn(n // L, L) for _ in range(3))
    g_kl = torch.ones(n // L)
    key = ops.sample_kl_forward(mu, logvar, None, None)[2]
    return lambda: ops.sample_kl_backward(g, g_kl, mu, logvar, key, [True, True])


KERNELS: dict[str, Kernel] = {
    "sigmoid_cross_entropy": _sigmoid_cross_entropy(torch.float32, torch.float32),
    "the same, bfloat16 and uint8": _sigmoid_cross_entropy(torch.bfloat16, torch.uint8),
    "its backward": _sigmoid_cross_entropy_backward,
    "its forward with the gradient": _with_gradient,
    "gaussian_kl": _of_moments(fastvae.gaussian_kl),
    "reparameterize": _of_moments(fastvae.reparameterize),
    "sample_kl": _of_moments(fastvae.sample_kl),
    "sample_kl, backward": _sample_kl_backward,
}


def nanoseconds(rounds: int) -> dict[str, float]:
    """An element's time in each kernel, the medians' difference."""
    found = {}
    with threads(1):
        for name, kernel in KERNELS.items():
            times = compare({"small": kernel(SMALL), "large": kernel(LARGE)}, rounds)
            found[name] = (times["large"].median - times["small"].median) / (LARGE - SMALL) * 1e9
            print(f"{name:<32} {found[name]:.2f} ns", flush=True)
    return found


def reading(rounds: int) -> dict[str, float]:
    """Milliseconds to read two float32 tensors of 16384x784, after others have filled the caches."""
    a, b, other = torch.randn(READ), torch.randn(READ), torch.empty(1 << 26)
    readers = {
        "torch.dot": lambda: torch.dot(a, b),
        "torch.sum of each": lambda: (a.sum(), b.sum()),
        "sigmoid_cross_entropy": lambda: fastvae.sigmoid_cross_entropy(a.view(-1, 784), b.view(-1, 784)),
    }
    # A call a round, each behind the one that evicts.
    calls: dict[str, Callable[[], object]] = {}
    for name, reader in readers.items():
        calls |= {f"evict for {name}": lambda: other.fill_(1.0), name: reader}
    times = compare(calls, rounds, seconds=0.0)
    found = {name: times[name].median * 1e3 for name in readers}
    for name, milliseconds in found.items():
        print(f"{name:<32} {milliseconds:.2f} ms for {2 * READ * 4 / 1e6:.0f} MB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": machine()}
    print(table.describe(result["machine"]))
    result["nanoseconds"] = nanoseconds(arguments.rounds)
    result["reading_milliseconds"] = reading(arguments.rounds)
    save(arguments.json, result)


if __name__ == "__main__":
    main()
