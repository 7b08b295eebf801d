"""gaussian_kl, reparameterize and sample_kl: limits, closed forms, gradients that are not copied."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import FLOATS
from tolerances import SMALLEST, UNIT, assert_within, unit
from torch import Tensor

import fastvae
from fastvae import reference

pytestmark = pytest.mark.usefixtures("device")


def test_gaussian_kl_of_the_prior_itself_is_zero() -> None:
    mu, logvar = torch.randn(4, 9), torch.randn(4, 9)
    assert torch.equal(fastvae.gaussian_kl(torch.zeros(4, 9), torch.zeros(4, 9)), torch.zeros(4))
    assert torch.equal(fastvae.gaussian_kl(mu, logvar, mu, logvar), torch.zeros(4))


def test_gaussian_kl_of_known_values() -> None:
    """Eq. 7 by hand: mu 1, var 1 gives 1/2; mu 0, var e gives (e - 2) / 2."""
    mu, logvar = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    expected = torch.tensor([0.5, 0.3591409142])
    torch.testing.assert_close(fastvae.gaussian_kl(mu, logvar), expected, rtol=1e-6, atol=0)


def kl_of_elbo(mu: Tensor, logvar: Tensor) -> Tensor:
    return fastvae.elbo_loss(torch.zeros(len(mu), 1), torch.zeros(len(mu), 1), mu, logvar, reduction="none").kl


KLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian_kl": fastvae.gaussian_kl,
    "prior": lambda m, v: fastvae.gaussian_kl(1 + m, 1 + v, 0 * m + 1, 0 * v + 1),
    "sample_kl": lambda m, v: fastvae.sample_kl(m, v)[1],
    "sample_kl_packed": lambda m, v: fastvae.sample_kl_packed(torch.cat([m, v], 1))[1],
    "elbo_loss": kl_of_elbo,
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", KLS)
def test_gaussian_kl_beside_the_prior_is_exact(name: str, dtype: torch.dtype) -> None:
    """Value and gradient within a few roundings of themselves, however near the prior; never negative."""
    near = [1e-6, -1e-6, 1e-4, -1e-3, 3e-2, -0.2, 0.34, -0.35, 0.36, -0.7, 1.05, -1.04, 3, -20]
    logvar = torch.tensor(near, dtype=torch.float64).to(dtype)[:, None]
    if name == "prior":
        logvar = (1 + logvar) - 1  # what is left of it beside 1
    logvar.requires_grad_()
    mu = torch.zeros_like(logvar)
    kl = KLS[name](mu, logvar)
    exact = logvar.detach().double()
    # The first terms of the series where they suffice for float64: the next one is below 2^-60 of them.
    small = exact.abs() < 2e-3
    s = torch.where(small, exact, 0)
    series = s**2 / 2 * (1 + s / 3 * (1 + s / 4 * (1 + s / 5 * (1 + s / 6 * (1 + s / 7)))))
    line = torch.where(small, series, torch.expm1(exact) - exact)
    assert (kl >= 0).all()
    # For float64, what the subtraction above leaves of the expected value itself.
    relative = 8 * unit(dtype) + torch.where(small, 0, 4 * 2.0**-53 * exact.abs() / line)
    assert_within(kl, line.flatten() / 2, (relative * line).flatten() / 2)
    kl.sum().backward()
    expected = torch.expm1(exact) / 2
    stored = UNIT[dtype] if dtype in SMALLEST else 0
    assert_within(logvar.grad, expected, (8 * unit(dtype) + stored) * expected.abs() + SMALLEST.get(dtype, 0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", KLS)
def test_gaussian_kl_is_never_negative(name: str, dtype: torch.dtype) -> None:
    size = 10 ** torch.linspace(-12, 1.5, 4000, dtype=torch.float64)[:, None]
    logvar = (size * torch.randn(4000, 7).sign()).to(dtype)
    assert (KLS[name](torch.zeros_like(logvar), logvar) >= 0).all()


@pytest.mark.parametrize("prior", [False, True])
def test_gaussian_kl_second_derivatives_are_exact(prior: bool) -> None:
    """Of var - 1 it is var, which is far below the roundings of 1."""
    logvar = torch.tensor([[1e-6, -1e-6, 0.0, -20.0, -60.0, 3.0]], requires_grad=True)
    mu = torch.zeros_like(logvar)
    kl = fastvae.gaussian_kl(mu, logvar, *((mu, mu) if prior else ()))
    (grad,) = torch.autograd.grad(kl.sum(), logvar, create_graph=True)
    wide = logvar.detach().double()
    torch.testing.assert_close(grad.double(), torch.expm1(wide) / 2, rtol=2e-7, atol=0)
    grad.sum().backward()
    torch.testing.assert_close(logvar.grad.double(), wide.exp() / 2, rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gaussian_kl_has_its_limits(dtype: torch.dtype) -> None:
    inf = torch.inf
    mu = torch.tensor([[0.0], [0.0], [inf], [-inf], [torch.nan], [0.0]], dtype=dtype)
    logvar = torch.tensor([[inf], [-inf], [0.0], [0.0], [0.0], [torch.nan]], dtype=dtype)
    kl = fastvae.gaussian_kl(mu, logvar)
    assert kl[:4].tolist() == [inf] * 4
    assert kl[4:].isnan().all()
    zero = torch.zeros(2, 1, dtype=dtype)
    wide = torch.tensor([[inf], [-inf]], dtype=dtype)
    assert fastvae.gaussian_kl(zero, zero, zero, wide).tolist() == [inf] * 2
    z, fused = fastvae.sample_kl(mu, logvar)
    assert torch.equal(fused[:4], kl[:4])
    assert fused[4:].isnan().all()
    assert z[4:].isnan().all()


def test_gaussian_kl_reads_an_expanded_prior_in_place_and_sums_its_gradient() -> None:
    mu, logvar = torch.randn(6, 5), torch.randn(6, 5)
    prior = torch.randn(2, 5, requires_grad=True)
    shared = prior[0].expand(6, 5), prior[1].expand(6, 5)
    fastvae.gaussian_kl(mu, logvar, *shared, reduction="sum").backward()
    wide = prior.detach().double().requires_grad_()
    reference.gaussian_kl(
        mu.double(), logvar.double(), wide[0].expand(6, 5), wide[1].expand(6, 5), reduction="sum"
    ).backward()
    torch.testing.assert_close(prior.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("second", [(), (7,), (5, 1), (5, 7)], ids=str)
@pytest.mark.parametrize("first", [(), (1,), (7,), (5, 1), (5, 7)], ids=str)
def test_gaussian_kl_from_a_prior_of_any_broadcast_shape(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    tensors = [torch.randn(shape).requires_grad_() for shape in ((5, 7), (5, 7), first, second)]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    kl, expected = fastvae.gaussian_kl(*tensors), reference.gaussian_kl(*(t.expand(5, 7) for t in wide))
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)
    weight = torch.rand(5)
    (kl * weight).sum().backward()
    (expected * weight).sum().backward()
    for actual, right in zip(tensors, wide, strict=True):
        assert actual.grad.shape == right.shape
        torch.testing.assert_close(actual.grad.double(), right.grad, rtol=1e-5, atol=1e-4)


def test_reparameterize_gives_mu_the_upstream_tensor_itself() -> None:
    mu, logvar = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    z = fastvae.reparameterize(mu, logvar)
    upstream = torch.randn(3, 4)
    grad_mu, _ = torch.autograd.grad(z, (mu, logvar), upstream)
    assert grad_mu.data_ptr() == upstream.data_ptr()


def test_reparameterize_stores_no_noise() -> None:
    """What the graph keeps is logvar and a key of two integers."""
    mu, logvar = torch.randn(64, 50, requires_grad=True), torch.randn(64, 50, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fastvae.reparameterize(mu, logvar, num_samples=20)
    assert sorted(t.numel() for t in saved) == [2, 64 * 50]


@pytest.mark.parametrize("samples", [None, 7])
def test_reparameterize_backward_uses_the_noise_of_its_forward(samples: int | None) -> None:
    mu = torch.randn(5, 31, requires_grad=True)
    logvar = torch.randn(5, 31, requires_grad=True)
    z = fastvae.reparameterize(mu, logvar, num_samples=samples)
    fastvae.reparameterize(mu, logvar)  # the generator moves on in between
    (grad,) = torch.autograd.grad(z.sum(), logvar)
    # dz/dlogvar = (z - mu) / 2, the noise of the forward pass in it
    expected = ((z - mu) / 2).double()
    expected = (expected if samples is None else expected.sum(0)).detach()
    assert_within(grad, expected, torch.tensor(1e-5))


def test_sample_kl_is_reparameterize_and_gaussian_kl() -> None:
    mu, logvar = torch.randn(300, 37), torch.randn(300, 37)
    torch.manual_seed(1)
    z, kl = fastvae.sample_kl(mu, logvar)
    torch.manual_seed(1)
    # The same noise and formula; but the compiler joins products and sums to multiply-adds as each loop lets it.
    torch.testing.assert_close(z, fastvae.reparameterize(mu, logvar), rtol=2**-22, atol=2**-21)
    torch.testing.assert_close(kl, fastvae.gaussian_kl(mu, logvar), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use", ["z", "kl"])
def test_sample_kl_with_one_result_unused(use: str) -> None:
    mu, logvar = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    torch.manual_seed(1)
    z, kl = fastvae.sample_kl(mu, logvar)
    fused = torch.autograd.grad((z if use == "z" else kl).sum(), (mu, logvar))
    torch.manual_seed(1)
    single = fastvae.reparameterize(mu, logvar) if use == "z" else fastvae.gaussian_kl(mu, logvar)
    for a, b in zip(fused, torch.autograd.grad(single.sum(), (mu, logvar)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("packed", [False, True], ids=["two tensors", "packed"])
@pytest.mark.parametrize("logvar", [100.0, 170.0])
def test_sample_kl_of_which_one_result_is_used_has_its_gradient_alone(packed: bool, logvar: float) -> None:
    """Where the derivative of the other is infinite in float32: 0 times that is no number."""
    moments = torch.cat([torch.randn(5, 3), torch.full((5, 3), logvar)], 1).requires_grad_()
    z, kl = fastvae.sample_kl_packed(moments) if packed else fastvae.sample_kl(*moments.chunk(2, 1))
    (of_z,) = torch.autograd.grad(z.sum(), moments, retain_graph=True)
    (of_kl,) = torch.autograd.grad(kl.sum(), moments)
    mu, wide = moments.detach().double().chunk(2, 1)
    noise = (z.detach().double() - mu) / torch.exp(wide / 2)
    expected = torch.cat([torch.ones(5, 3).double(), 0.5 * noise * torch.exp(wide / 2)], 1)
    torch.testing.assert_close(of_z.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(of_kl[:, :3], moments.detach()[:, :3])
    assert (of_kl[:, 3:] == math.inf).all()
