"""gaussian_nll: sharp bounds, constants, learned sigma."""

from __future__ import annotations

import math

import pytest
import torch
from cases import FLOATS, SIZES
from tolerances import assert_within, elementwise, row_sum

import fastvae
from fastvae import reference


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gaussian_nll_is_within_its_bound(dtype: torch.dtype, sigma: float, size: int) -> None:
    mean = torch.randn(5, size, dtype=torch.float64).to(dtype)
    target = torch.rand(5, size, dtype=torch.float64).to(dtype)
    constant = 0.5 * math.log(2 * math.pi)
    squares = (mean.double() - target.double()) ** 2
    magnitude = (squares / sigma**2 / 2 + constant + abs(math.log(sigma))).sum(1)
    expected = reference.gaussian_nll(mean.double(), target.double(), sigma=sigma)
    bound = row_sum(magnitude, size, dtype)
    assert_within(fastvae.gaussian_nll(mean, target, sigma=sigma), expected, bound)
    as_tensor = torch.tensor(sigma, dtype=torch.float64)
    tensor_bound = bound + 4 * magnitude * (2.0**-24 if dtype != torch.float64 else 2.0**-53)
    assert_within(fastvae.gaussian_nll(mean, target, sigma=as_tensor), expected, tensor_bound)
    logvar = torch.full_like(mean, 2 * math.log(sigma))
    v = logvar.double()
    expected = reference.gaussian_nll(mean.double(), target.double(), logvar=v)
    magnitude = (squares * (-v).exp() * (1 + v.abs()) / 2 + constant + v.abs() / 2).sum(1)
    assert_within(fastvae.gaussian_nll(mean, target, logvar=logvar), expected, row_sum(magnitude, size, dtype))


def test_gaussian_nll_of_tiny_spreads_does_not_overflow() -> None:
    """(1e-20)^2 / (1e-20)^2 is 1, though neither square is a float32."""
    mean, target = torch.full((1, 1), 1e-20, requires_grad=True), torch.zeros(1, 1)
    out = fastvae.gaussian_nll(mean, target, sigma=1e-20)
    torch.testing.assert_close(out, torch.tensor([0.5 - 20 * math.log(10) + 0.5 * math.log(2 * math.pi)]))
    logvar = torch.full((1, 1), -40 * math.log(10))
    torch.testing.assert_close(fastvae.gaussian_nll(mean, target, logvar=logvar), out, rtol=1e-5, atol=1e-5)
    out.sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((1, 1), 1e20))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [1, 17, 784])
def test_gaussian_nll_gradients_are_within_their_bounds(dtype: torch.dtype, size: int) -> None:
    tensors = [torch.randn(5, size, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    out = fastvae.gaussian_nll(tensors[0], tensors[1], logvar=tensors[2])
    grads = torch.autograd.grad(out, tensors, weight.to(out.dtype))
    mean, target, logvar = (t.detach().double() for t in tensors)
    w, inverse = weight[:, None], torch.exp(-logvar / 2)
    z = (mean - target) * inverse
    by_mean = w * z * inverse
    # The rounded argument of the exponential, logvar / 2, counts once for each factor `inverse`.
    spread = 1 + logvar.abs()
    assert_within(grads[0], by_mean, elementwise(by_mean.abs() * spread, dtype))
    assert_within(grads[1], -by_mean, elementwise(by_mean.abs() * spread, dtype))
    assert_within(grads[2], w * (1 - z**2) / 2, elementwise(w * (1 + z**2 * spread) / 2, dtype))


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
