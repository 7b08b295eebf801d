"""Every operator against eager PyTorch and torch.compile of the same formula.

    python benchmarks/bench_ops.py [--json FILE] [--only NAME]

Prints a table and writes the figures. Each contender is held against the float64 reference before it is timed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import compare, copy_bandwidth, machine
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import fastvae
from fastvae import reference

# Batch and event: bounded by dispatch, 64 KiB of input, and sizes of training.
IMAGES = [(100, 784), (11, 784), (4096, 784), (16384, 784)]
CODES = [(100, 30), (256, 32), (16384, 32)]


@dataclass(frozen=True)
class Operator:
    """One operator: how a user would write it in PyTorch, our call, and the exact result where there is one."""

    name: str
    shapes: list[tuple[int, int]]
    inputs: Callable[[int, int], list[Tensor]]
    eager: Callable[..., Any]
    ours: Callable[..., Any]
    exact: Callable[..., Any] | None
    differentiable: bool = True


def codes(batch: int, size: int) -> list[Tensor]:
    return [torch.randn(batch, size), torch.randn(batch, size)]


def images(batch: int, size: int) -> list[Tensor]:
    return [torch.randn(batch, size), torch.rand(batch, size)]


def elbo_inputs(batch: int, size: int) -> list[Tensor]:
    return images(batch, size) + codes(batch, 32)


def eager_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1)


def eager_sample(mu: Tensor, logvar: Tensor) -> Tensor:
    return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


def eager_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def eager_nll(mean: Tensor, target: Tensor) -> Tensor:
    sigma = 0.5
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return (0.5 * ((target - mean) / sigma).square() + constant).sum(-1)


def eager_elbo(logits: Tensor, target: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    reconstruction = binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return (reconstruction + eager_kl(mu, logvar).sum()) / len(logits)


OPERATORS = [
    Operator("reparameterize", CODES, codes, eager_sample, fastvae.reparameterize, None),
    Operator("gaussian_kl", CODES, codes, eager_kl, fastvae.gaussian_kl, reference.gaussian_kl),
    Operator(
        "sample_kl",
        CODES,
        codes,
        lambda m, v: (eager_sample(m, v), eager_kl(m, v)),
        fastvae.sample_kl,
        None,
    ),
    Operator(
        "sigmoid_cross_entropy",
        IMAGES,
        images,
        eager_cross_entropy,
        fastvae.sigmoid_cross_entropy,
        reference.sigmoid_cross_entropy,
    ),
    Operator(
        "gaussian_nll",
        IMAGES,
        images,
        eager_nll,
        lambda m, x: fastvae.gaussian_nll(m, x, sigma=0.5),
        lambda m, x: reference.gaussian_nll(m, x, sigma=0.5),
    ),
    Operator(
        "elbo_loss",
        IMAGES,
        elbo_inputs,
        eager_elbo,
        lambda *t: fastvae.elbo_loss(*t).loss,
        lambda *t: reference.elbo_loss(*t)[0],
    ),
    Operator(
        "binarize",
        IMAGES,
        lambda b, d: [torch.randint(0, 256, (b, d), dtype=torch.uint8)],
        lambda x: torch.bernoulli(x.float() / 255).bool(),
        fastvae.binarize,
        None,
        differentiable=False,
    ),
]


def check(function: Callable[..., Any], exact: Callable[..., Any], inputs: list[Tensor]) -> None:
    torch.testing.assert_close(function(*inputs).double(), exact(*(t.double() for t in inputs)), rtol=1e-4, atol=1e-4)


def check_draws(function: Callable[..., Any], inputs: list[Tensor]) -> None:
    """What is random is held against its mean: mu of a sample, the pixels of a binarised image."""
    out = function(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    expected = inputs[0].double() / 255 if out.dtype == torch.bool else inputs[0].double()
    spread = 0.5 if out.dtype == torch.bool else (inputs[1].double().exp().mean() + 1).sqrt()
    assert abs(out.double().mean() - expected.mean()) < 6 * spread / math.sqrt(out.numel())


def backward_of(function: Callable[..., Any], inputs: list[Tensor]) -> Callable[[], None]:
    # The target of a loss, which lies in [0, 1], needs no gradient.
    leaves = [t.requires_grad_(bool(t.min() < 0)) for t in inputs]
    wanted = [t for t in leaves if t.requires_grad]

    def step() -> None:
        out = function(*leaves)
        outputs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])

    return step


def measure(operator: Operator, batch: int, size: int) -> list[dict[str, Any]]:
    torch._dynamo.reset()
    inputs = operator.inputs(batch, size)
    functions = {
        "eager": operator.eager,
        "compile": torch.compile(operator.eager, fullgraph=True),
        "fastvae": operator.ours,
    }
    for function in functions.values():
        if operator.exact is None:
            check_draws(function, inputs)
        else:
            check(function, operator.exact, inputs)
    bytes_read = sum(t.numel() * t.element_size() for t in inputs)
    modes: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {name: (lambda f=f: f(*inputs)) for name, f in functions.items()}
    }
    if operator.differentiable:
        modes["forward+backward"] = {name: backward_of(f, [t.clone() for t in inputs]) for name, f in functions.items()}
    rows = []
    for mode, contenders in modes.items():
        with torch.set_grad_enabled(mode != "forward"):
            timings = compare(contenders)
        rows.append(
            {
                "operator": operator.name,
                "shape": [batch, size],
                "mode": mode,
                "bytes_read": bytes_read,
                "seconds": {name: t._asdict() for name, t in timings.items()},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "ops.json")
    parser.add_argument("--only", choices=[o.name for o in OPERATORS])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": machine(), "copy_bytes_per_second": copy_bandwidth(), "rows": []}
    print(f"{result['machine']}\ncopy: {result['copy_bytes_per_second'] / 1e9:.1f} GB/s read\n")
    print(f"{'operator':22} {'shape':>12} {'mode':17} {'fastvae':>18} {'eager':>9} {'compile':>9} x eager x compile")
    for operator in OPERATORS:
        if arguments.only in (None, operator.name):
            for batch, size in operator.shapes:
                for row in measure(operator, batch, size):
                    result["rows"].append(row)
                    s = row["seconds"]
                    ours, eager, compiled = (s[n]["median"] * 1e3 for n in ("fastvae", "eager", "compile"))
                    spread = (s["fastvae"]["high"] - s["fastvae"]["low"]) * 1e3
                    print(
                        f"{operator.name:22} {f'{batch}x{size}':>12} {row['mode']:17} {ours:9.4f} ±{spread:6.4f} ms "
                        f"{eager:9.4f} {compiled:9.4f} {eager / ours:8.1f} {compiled / ours:9.1f}",
                        flush=True,
                    )
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {arguments.json}")


if __name__ == "__main__":
    main()
