"""docs/operators/: one page for each operator, whose eager lines give what the operator gives."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_readme import python_blocks
from torch import Tensor

import fastvae
from fastvae import ops

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {page.stem: page for page in sorted((DOCS / "operators").glob("*.md"))}
B, D, L, H = 6, 40, 5, 7


def real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def images() -> Tensor:
    return torch.randint(0, 256, (B, D), dtype=torch.uint8).index_fill_(1, torch.tensor([0]), 0)  # and level 0


def counts() -> Tensor:
    return torch.poisson(torch.full((B, D), 2.0, dtype=torch.float64))


# The arguments of the functions of each page, by what follows `usual` and `fused` in their names.
ARGUMENTS: dict[str, dict[str, Callable[[], tuple[Any, ...]]]] = {
    "binomial_nll": {"": lambda: (real(B, D), counts().clamp(max=9), 9)},
    "continuous_bernoulli_nll": {"": lambda: (real(B, D), images())},
    "discretized_logistic_nll": {"": lambda: (real(B, D), real(B, D), images())},
    "elbo_loss": {"": lambda: (real(B, D), images(), real(B, L), real(B, L), 0.7)},
    "gaussian_kl": {
        "": lambda: (real(B, L), real(B, L)),
        "_prior": lambda: tuple(real(B, L) for _ in range(4)),
    },
    "gaussian_nll": {
        "": lambda: tuple(real(B, D) for _ in range(3)),
        "_sigma": lambda: (real(B, D), real(B, D), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)),
    },
    "laplace_nll": {
        "": lambda: tuple(real(B, D) for _ in range(3)),
        "_scale": lambda: (real(B, D), real(B, D), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)),
    },
    "linear_multinomial_nll": {"": lambda: (real(B, H), real(D, H), real(D), counts())},
    "linear_negative_binomial_nll": {"": lambda: (real(B, H), real(D, H), real(D), real(D), counts())},
    "linear_sigmoid_cross_entropy": {"": lambda: (real(3, B, H), real(D, H), real(D), images())},
    "mlp": {"": lambda: (real(B, D), [real(H, D), real(L, H)], [real(H), real(L)])},
    "multinomial_nll": {"": lambda: (real(B, D), counts())},
    "negative_binomial_nll": {
        "": lambda: (real(B, D), real(D), counts()),
        "_zeros": lambda: (real(B, D), real(D), counts(), real(B, D)),
        "_library": lambda: (real(B, D), real(D), counts(), real(B)),
    },
    "poisson_nll": {"": lambda: (real(B, D), counts())},
    "reparameterize": {"": lambda: (real(B, L), real(B, L))},
    "sample_kl": {"": lambda: (real(B, L), real(B, L))},
    "sample_kl_packed": {"": lambda: (real(B, 2 * L),)},
    "sigmoid_cross_entropy": {"": lambda: (real(3, B, D), images())},
}

# Where the eager lines lose digits; at most a tenth of it with the seeds 0 to 39.
LESS_EXACT = {
    "continuous_bernoulli_nll": 1e-10,  # torch's series near lambda = 1/2 has three terms
    "discretized_logistic_nll": 1e-8,  # torch's softplus(x) is x from x = 20 on: e^-20 is 2e-9
    "linear_negative_binomial_nll": 1e-12,  # differences of lgamma
    "negative_binomial_nll": 1e-12,
}


def functions(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec("\n".join(python_blocks(page)), found)
    return found


def leaves(arguments: tuple[Any, ...]) -> list[Tensor]:
    flat = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    return [t for t in flat if isinstance(t, Tensor) and t.requires_grad]


def values_and_gradients(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """The results, and the gradients of them all, each of its elements with another weight."""
    results = function(*arguments)
    results = [results] if isinstance(results, Tensor) else list(results)
    weighted = sum((r * torch.linspace(0.5, 1.5, r.numel(), dtype=r.dtype).view(r.shape)).sum() for r in results)
    return [*(r.detach() for r in results), *torch.autograd.grad(weighted, leaves(arguments))]


def test_every_operator_has_a_page_and_a_test() -> None:
    operators = {name for name in fastvae.__all__ if inspect.isfunction(getattr(fastvae, name)) and hasattr(ops, name)}
    assert set(PAGES) == operators == {*ARGUMENTS, "binarize"}


def test_the_overview_names_every_operator() -> None:
    text = (DOCS / "operators.md").read_text("utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\(operators/(\w+)\.md\) \|", text, re.MULTILINE)
    assert sorted(rows) == [(name, name) for name in PAGES]


@pytest.mark.parametrize(
    ("name", "which"), [(name, which) for name, of_page in ARGUMENTS.items() for which in of_page], ids=str
)
def test_the_lines_of_a_page_give_what_the_operator_gives(
    name: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, for the noise that the operator drew: within some roundings, but for what LESS_EXACT says."""
    found, arguments = functions(PAGES[name]), ARGUMENTS[name][which]()
    off = LESS_EXACT.get(name, 1e-14)  # 40 terms or columns: seeds 0 to 39 are off by 1e-15 at most
    fused = values_and_gradients(found[f"fused{which}"], arguments)
    if name in ("reparameterize", "sample_kl", "sample_kl_packed"):
        mu, logvar = arguments if len(arguments) == 2 else arguments[0].chunk(2, 1)
        noise = ((fused[0] - mu) / torch.exp(logvar / 2)).detach()
        monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    usual = values_and_gradients(found[f"usual{which}"], arguments)
    assert len(fused) == len(usual) > 1
    for ours, theirs in zip(fused, usual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=off, atol=off * float(theirs.abs().max()))


def test_both_binarisations_draw_from_one_distribution() -> None:
    """5000 draws of 40 pixels: a mean is within 6 standard errors of its probability, for all of them but 1 of 10^7."""
    found, grey = functions(PAGES["binarize"]), torch.arange(0, 256, 6, dtype=torch.uint8)
    p = grey.double() / 255
    for name in ("usual", "fused"):
        drawn = found[name](grey.expand(5000, -1).contiguous())
        assert drawn.dtype == torch.bool
        assert ((drawn.double().mean(0) - p).abs() <= 6 * (p * (1 - p) / 5000).sqrt()).all()
