"""One operator on the GPU against the reference, in a process of its own: python tests/cuda/smoke.py [NAME ...].

Without a name: every operator, several processes at once. An error on the GPU ends its process and hides no other.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import CASES, Case

# A part of a warp, a warp, a block and several blocks for a row; whole vectors and tails.
SHAPES = [(33, (32,)), (9, (7,)), (300, (784,)), (2, (3, 64, 64)), (9000, (784,))]


def check(case: Case) -> None:
    torch.set_default_device("cuda")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN: all of it must be written
    for batch, event in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [t.requires_grad_() for t in case.inputs(batch, event, dtype)]
            exact = [t.detach().double().requires_grad_() for t in inputs]
            outputs, expected = case.call(*inputs), case.expected(*exact)
            grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])
            right = torch.autograd.grad(expected, exact, [torch.ones_like(o) for o in expected])
            for what, pairs in (
                ("result", zip(outputs, expected, strict=True)),
                ("gradient", zip(grads, right, strict=True)),
            ):
                for i, (actual, wanted) in enumerate(pairs):
                    # Four roundings of the largest value; what is wrong is off by far more.
                    error = float((actual.detach().double() - wanted).abs().max() / wanted.abs().max().clamp_min(1))
                    limit = 1e-4 if actual.dtype == torch.float32 and dtype == torch.float32 else 2.0**-6
                    if not error <= limit:
                        sys.exit(f"{case.name} {batch}x{event} {dtype} {what} {i}: off by {error:.1e}")
    torch.cuda.synchronize()


def run(name: str) -> tuple[str, str]:
    """Its name, and what went wrong."""
    command = [sys.executable, __file__, name]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=80)
    except subprocess.TimeoutExpired as error:
        return name, f"no end after {error.timeout:.0f} s"
    lines = (result.stderr or result.stdout).strip().splitlines() or ["no output"]
    return name, "" if result.returncode == 0 else lines[-1]


def main() -> None:
    if names := sys.argv[1:]:
        for case in CASES:
            if case.name in names:
                check(case)
        return
    with ThreadPoolExecutor(12) as pool:
        failures = [(name, why) for name, why in pool.map(run, [case.name for case in CASES]) if why]
    for name, why in failures:
        print(f"{name}: {why}")
    print(f"{len(CASES) - len(failures)} of {len(CASES)} operators are right on {torch.cuda.get_device_name()}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
