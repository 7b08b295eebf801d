"""gaussian_nll: constants, extreme spreads, learned sigma."""

from __future__ import annotations

import math

import pytest
import torch

import fastvae
from fastvae import reference

pytestmark = pytest.mark.usefixtures("device")


def test_gaussian_nll_of_tiny_spreads_does_not_overflow() -> None:
    """(1e-20)^2 / (1e-20)^2 is 1, though neither square is a float32."""
    mean, target = torch.full((1, 1), 1e-20, requires_grad=True), torch.zeros(1, 1)
    out = fastvae.gaussian_nll(mean, target, sigma=1e-20)
    torch.testing.assert_close(out, torch.tensor([0.5 - 20 * math.log(10) + 0.5 * math.log(2 * math.pi)]))
    logvar = torch.full((1, 1), -40 * math.log(10))
    torch.testing.assert_close(fastvae.gaussian_nll(mean, target, logvar=logvar), out, rtol=1e-5, atol=1e-5)
    out.sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((1, 1), 1e20))


def test_gaussian_nll_is_torchs_own_density() -> None:
    mean, target = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    expected = -torch.distributions.Normal(mean, 0.3).log_prob(target).sum(1)
    torch.testing.assert_close(fastvae.gaussian_nll(mean, target, sigma=0.3), expected)


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gaussian_nll_learns_sigma(samples: bool, reduction: str) -> None:
    mean = torch.randn(*([4] if samples else []), 5, 17)
    target = torch.randint(0, 256, (5, 17), dtype=torch.uint8)
    sigma = torch.tensor(0.4, requires_grad=True)
    fastvae.gaussian_nll(mean, target, sigma=sigma, reduction=reduction).sum().backward()
    wide = sigma.detach().double().requires_grad_()
    reference.gaussian_nll(mean.double(), target, sigma=wide, reduction=reduction).sum().backward()
    torch.testing.assert_close(sigma.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)


def test_gaussian_nll_sigma_has_second_derivatives() -> None:
    mean = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def call(*t: torch.Tensor) -> torch.Tensor:
        return fastvae.gaussian_nll(t[0], t[1], sigma=t[2])

    assert torch.autograd.gradcheck(call, (mean, target, sigma))
    assert torch.autograd.gradgradcheck(call, (mean, target, sigma))
