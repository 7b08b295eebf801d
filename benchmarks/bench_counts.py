"""The losses of counts of single-cell models and recommenders, against eager PyTorch and torch.compile.

    python -m benchmarks.bench_counts [--only NAME ...] [--rounds N] [--json FILE]

It times forward with backward of a mean loss in float32. fastvae is timed with dense targets in float32 and in uint8,
and with compressed rows; the others with dense targets in float32, which is what their formulas take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax

import fastvae

from .bench_ops import compiled
from .cases import eager_negative_binomial, eager_zero_inflated
from .timing import compare, machine, measure, save

CELLS, GENES = 512, 4000
USERS, ITEMS, HIDDEN, SHARE_OF_ITEMS = 2048, 20_000, 600, 0.005
MANY_ITEMS = 200_000

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Row:
    """A loss of some leaves, and last its target."""

    name: str
    leaves: Callable[[], list[Tensor]]
    target: Callable[[], Tensor]
    eager: Loss
    ours: Loss
    bars: tuple[float, float] | None = None  # what was to be reached: times eager's speed, and torch.compile's


def counts(zeros: float) -> Tensor:
    """Of a negative binomial of mean 3 or so, and 1 more; then so many zeros."""
    rate = torch.distributions.Gamma(2.0, 2.0 / 3).sample((CELLS, GENES))
    return torch.poisson(rate).add_(1).clamp_(max=255).mul_(torch.rand(CELLS, GENES) > zeros)


def items(rows: int, count: int) -> Tensor:
    return (torch.rand(rows, count) < SHARE_OF_ITEMS).float()


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def layer(count: int) -> list[Tensor]:
    hidden, weight = torch.randn(USERS, HIDDEN), torch.randn(count, HIDDEN) / HIDDEN**0.5
    return [t.requires_grad_() for t in (hidden, weight, torch.zeros(count))]


def eager_shares(logits: Tensor, log_theta: Tensor, log_library: Tensor, target: Tensor) -> Tensor:
    """As scvi-tools' decoder has it: a softmax times the library."""
    mean = torch.exp(log_library)[:, None] * torch.softmax(logits, -1)
    theta, eps = log_theta.exp(), 1e-8
    log_sum = torch.log(theta + mean + eps)
    terms = theta * (torch.log(theta + eps) - log_sum) + target * (torch.log(mean + eps) - log_sum)
    terms = terms + torch.lgamma(target + theta) - torch.lgamma(theta) - torch.lgamma(target + 1)
    return -terms.sum(-1).mean()


def eager_multinomial(logits: Tensor, target: Tensor) -> Tensor:
    """As RecBole's MultiVAE has it."""
    return -(log_softmax(logits, 1) * target).sum(1).mean()


def rows() -> Iterator[Row]:
    matrix, genes = (CELLS, GENES), (GENES,)
    for zeros in (0.8, 0.9):
        yield Row(
            f"ZINB, {zeros:.0%} zeros",
            lambda: normal(matrix, matrix, genes),
            partial(counts, zeros),
            eager_zero_inflated,
            lambda a, z, b, x: fastvae.negative_binomial_nll(a, b, x, zero_logits=z, reduction="mean"),
            (15, 10),
        )
        yield Row(
            f"NB, {zeros:.0%} zeros",
            lambda: normal(matrix, genes),
            partial(counts, zeros),
            eager_negative_binomial,
            lambda a, b, x: fastvae.negative_binomial_nll(a, b, x, reduction="mean"),
            (12, 8),
        )
        yield Row(
            f"NB of a library, {zeros:.0%} zeros",
            lambda: [*normal(matrix, genes), torch.randn(CELLS) / 4 + 7],
            partial(counts, zeros),
            eager_shares,
            lambda a, b, s, x: fastvae.negative_binomial_nll(a, b, x, log_library=s, reduction="mean"),
            (10, 6),
        )
    yield Row(
        "multinomial, logits given",
        lambda: normal((USERS, ITEMS)),
        partial(items, USERS, ITEMS),
        eager_multinomial,
        lambda a, x: fastvae.multinomial_nll(a, x, reduction="mean"),
    )
    yield Row(
        "multinomial with its layer",
        partial(layer, ITEMS),
        partial(items, USERS, ITEMS),
        lambda h, w, b, x: eager_multinomial(linear(h, w, b), x),
        lambda h, w, b, x: fastvae.linear_multinomial_nll(h, w, b, x, reduction="mean"),
        (1.15, 1.15),
    )


def step(loss: Loss, leaves: list[Tensor], target: Tensor) -> tuple[Tensor, ...]:
    wanted = [t for t in leaves if t.requires_grad]
    return torch.autograd.grad(loss(*leaves, target), wanted)


def measured(row: Row, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    leaves, target = row.leaves(), row.target()
    targets = {"fastvae": target, "uint8": target.to(torch.uint8), "compressed": target.to_sparse_csr()}
    contenders: dict[str, Callable[[], object]] = {
        name: partial(step, row.ours, leaves, x) for name, x in targets.items()
    }
    contenders |= {
        "eager": partial(step, row.eager, leaves, target),
        "compile": partial(step, compiled(row.eager), leaves, target),
    }
    expected = step(row.eager, leaves, target)
    for x in targets.values():  # of lgamma of large numbers eager float32 has three digits
        for actual, right in zip(step(row.ours, leaves, x), expected, strict=True):
            torch.testing.assert_close(actual, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
    return {"name": row.name, "bars": row.bars, **measure(contenders, rounds)}


def many_items(rounds: int) -> dict[str, Any]:
    """What eager PyTorch needs 1.6 GB for, several times over."""
    torch.manual_seed(0)
    leaves = layer(MANY_ITEMS)
    target = torch.cat([items(64, MANY_ITEMS).to_sparse() for _ in range(USERS // 64)])
    compressed = target.coalesce().to_sparse_csr()

    def loss(*t: Tensor) -> Tensor:
        return fastvae.linear_multinomial_nll(*t, reduction="mean")

    contenders = {"compressed": partial(step, loss, leaves, compressed)}
    found = measure(contenders, rounds)
    found["compressed"]["peak_bytes"] -= sum(t.nbytes for t in leaves)  # the gradients
    return {"name": f"multinomial with its layer, {MANY_ITEMS:,} items", "bars": None, **found}


def products(rounds: int) -> float:
    """Seconds of the matrix products of the layer alone."""
    hidden, weight, bias = (t.detach() for t in layer(ITEMS))
    grad = torch.randn(USERS, ITEMS)
    return compare({"products": lambda: (linear(hidden, weight, bias), grad @ weight, grad.t() @ hidden)}, rounds)[
        "products"
    ].median


def line(found: dict[str, Any]) -> str:
    times = {name: t for name, t in found.items() if isinstance(t, dict)}
    best = min(t["median"] for name, t in times.items() if name not in ("eager", "compile"))
    cells = [f"{1e3 * t['median']:.1f} ms, {t['peak_bytes'] / 2**20:.0f} MB" for t in times.values()]
    ratios = [f"{times[name]['median'] / best:.2f}" for name in ("eager", "compile") if name in times]
    return " | ".join([found["name"], *cells, " / ".join(ratios)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print("loss | float32 | uint8 | compressed | eager | compile | times the speed of eager / compile")
    for row in rows():
        if any(part in row.name for part in options.only):
            results.append(measured(row, options.rounds))
            print(line(results[-1]), flush=True)
    found: dict[str, Any] = {"rows": results}
    if any(part in "many items" for part in options.only):
        results.append(many_items(2))
        print(line(results[-1]), flush=True)
        found["products"] = products(options.rounds)
        print(f"products of the layer: {1e3 * found['products']:.1f} ms")
    if options.json:
        save(options.json, machine() | found)


if __name__ == "__main__":
    main()
