"""gaussian_nll: constants, extreme spreads, learned sigma."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import assert_within
from torch import Tensor

import fastvae
from fastvae import reference

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("shape", [(4, 1), (8,), ()], ids=str)
def test_gaussian_nll_of_double_log_variances_is_computed_in_double(shape: tuple[int, ...]) -> None:
    """In float32, e^100 overflows."""
    mean, target = torch.rand(4, 8), torch.rand(4, 8)
    logvar = torch.full(shape, -200.0, dtype=torch.float64, requires_grad=True)
    fastvae.gaussian_nll(mean, target, logvar=logvar).sum().backward()
    terms = 0.5 - 0.5 * ((mean.double() - target.double()) * math.exp(100)).square()
    torch.testing.assert_close(logvar.grad, terms.sum_to_size(shape), rtol=1e-12, atol=0)


def test_gaussian_nll_of_tiny_spreads_does_not_overflow() -> None:
    """(1e-20)^2 / (1e-20)^2 is 1, though neither square is a float32."""
    mean, target = torch.full((1, 1), 1e-20, requires_grad=True), torch.zeros(1, 1)
    out = fastvae.gaussian_nll(mean, target, sigma=1e-20)
    torch.testing.assert_close(out, torch.tensor([0.5 - 20 * math.log(10) + 0.5 * math.log(2 * math.pi)]))
    logvar = torch.full((1, 1), -40 * math.log(10))
    torch.testing.assert_close(fastvae.gaussian_nll(mean, target, logvar=logvar), out, rtol=1e-5, atol=1e-5)
    out.sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((1, 1), 1e20))


SHAPES = [
    *((), (1,), (5, 1, 1), (1, 5, 1, 1), (5, 4, 6), (1, 1, 6), (4, 1), (1, 4, 6), (5, 1, 6)),  # all rows share them
    *((3, 1, 1, 1), (3, 5, 1, 1), (3, 1, 4, 1), (3, 1, 1, 6), (3, 5, 1, 6), (3, 5, 4, 6)),  # rows have their own
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_nll_log_variances_of_any_broadcast_shape(
    shape: tuple[int, ...], samples: bool, channels_last: bool
) -> None:
    """Values and gradients are those of the expanded tensor; nothing of its size is made for reading it."""
    mean = torch.randn(*([2] if samples else []), 3, 5, 4, 6)
    target = torch.rand(3, 5, 4, 6)
    if channels_last:
        target = target.to(memory_format=torch.channels_last)
        mean = mean.to(memory_format=torch.channels_last) if not samples else mean
    logvar = torch.randn(shape)
    tensors = [t.requires_grad_() for t in (mean, target, logvar)]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    weight = torch.rand(mean.shape[:-3])
    nll = fastvae.gaussian_nll(mean, target, logvar=logvar)
    expected = reference.gaussian_nll(wide[0], wide[1], logvar=wide[2].expand(mean.shape))
    assert_within(nll, expected, torch.tensor(1e-4))
    (nll * weight).sum().backward()
    (expected * weight).sum().backward()
    for actual, right in zip(tensors, wide, strict=True):
        assert actual.grad.shape == right.shape
        torch.testing.assert_close(actual.grad.double(), right.grad, rtol=1e-5, atol=1e-4)


def peak_of(profile: torch.profiler.profile) -> int:
    return max(e.self_cpu_memory_usage for e in profile.events())


@pytest.mark.parametrize("shape", [(), (16, 1, 1), (16, 32, 32), (64, 1, 1, 1)], ids=str)
def test_gaussian_nll_expands_no_log_variances(shape: tuple[int, ...], device: str) -> None:
    if device == "cuda":
        pytest.skip("the profiler sees the memory of the CPU alone")
    mean, target = torch.randn(64, 16, 32, 32), torch.rand(64, 16, 32, 32)
    logvar = torch.randn(shape, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        fastvae.gaussian_nll(mean, target, logvar=logvar).sum().backward()
    # One row for each of the parts that are summed side by side, in double.
    assert peak_of(profile) <= max(8 * mean[0].numel(), 4096)


def test_gaussian_nll_of_many_rows_sums_the_gradient_of_a_column_in_double() -> None:
    rows = 200_000
    mean, target = torch.zeros(rows, 3), torch.ones(rows, 3)
    logvar = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    fastvae.gaussian_nll(mean, target, logvar=logvar, reduction="sum").backward()
    exact = rows * (1 - torch.exp(-logvar.detach().double())) / 2
    torch.testing.assert_close(logvar.grad.double(), exact, rtol=1e-6, atol=0)


def test_gaussian_nll_of_no_rows_gives_shared_log_variances_no_gradient() -> None:
    logvar = torch.ones(4, requires_grad=True)
    fastvae.gaussian_nll(torch.zeros(0, 4), torch.zeros(0, 4), logvar=logvar).sum().backward()
    assert torch.equal(logvar.grad, torch.zeros(4))
    prior: Tensor = torch.ones(4, requires_grad=True)
    fastvae.gaussian_kl(torch.zeros(0, 4), torch.zeros(0, 4), prior, prior).sum().backward()
    assert torch.equal(prior.grad, torch.zeros(4))


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
