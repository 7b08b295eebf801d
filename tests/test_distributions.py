"""DiagonalGaussian and the modules of fastvae.nn."""

from __future__ import annotations

import pytest
import torch

import fastvae
from fastvae import nn, reference

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("shape", [(5, 12), (3, 8, 4, 6)])
def test_diagonal_gaussian_over_packed_moments(shape: tuple[int, ...]) -> None:
    moments = torch.randn(shape, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments)
    mean, logvar = moments.chunk(2, 1)
    assert torch.equal(q.mean, mean)
    assert torch.equal(q.mode(), mean)
    assert torch.equal(q.logvar, logvar)
    torch.testing.assert_close(q.std**2, q.var)
    torch.testing.assert_close(q.var, logvar.exp())
    torch.testing.assert_close(q.kl(), reference.gaussian_kl(mean, logvar))
    other = fastvae.DiagonalGaussian(torch.randn(shape))
    expected = reference.gaussian_kl(mean, logvar, other.mean, other.logvar)
    torch.testing.assert_close(q.kl(other), expected)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, other), expected)
    x = torch.randn(mean.shape)
    torch.testing.assert_close(q.nll(x), reference.gaussian_nll(mean, x, logvar=logvar))
    z = q.sample(torch.Generator(torch.get_default_device()).manual_seed(0))
    assert z.shape == mean.shape
    z.sum().backward()
    torch.testing.assert_close(moments.grad.chunk(2, 1)[0], torch.ones_like(mean))


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
def test_diagonal_gaussian_sample_kl_is_sample_and_kl(clamp: tuple[float, float] | None) -> None:
    moments = torch.randn(3, 8, 4, 6, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments, clamp=clamp)
    results = []
    for z, kl in (
        q.sample_kl(torch.Generator(torch.get_default_device()).manual_seed(3)),
        (q.sample(torch.Generator(torch.get_default_device()).manual_seed(3)), q.kl()),
    ):
        (gradient,) = torch.autograd.grad((z, kl), moments, (torch.cos(z.detach()), torch.ones(3)), retain_graph=True)
        results.append((z, kl, gradient))
    for fused, parts in zip(*results, strict=True):
        torch.testing.assert_close(fused, parts)


def test_diagonal_gaussian_clamp_has_zero_gradient_outside() -> None:
    moments = torch.tensor([[0.5, 0.5, 0.5, -50.0, 30.0, 1.0]], requires_grad=True)
    q = fastvae.DiagonalGaussian(moments, clamp=(-30.0, 20.0))
    assert q.logvar.tolist() == [[-30.0, 20.0, 1.0]]
    assert q.parameters is moments
    q.kl().sum().backward()
    torch.testing.assert_close(moments.grad, torch.tensor([[0.5, 0.5, 0.5, 0.0, 0.0, 0.5 * (torch.e - 1)]]))


def test_elbo_loss_module() -> None:
    logits, target, mu, logvar = torch.randn(4, 9), torch.rand(4, 9), torch.randn(4, 3), torch.randn(4, 3)
    for beta, reduction in ((1.0, "mean"), (0.5, "sum"), (2.0, "none")):
        module = nn.ELBOLoss(beta, reduction)
        expected = reference.elbo_loss(logits, target, mu, logvar, beta=beta, reduction=reduction)
        for a, b in zip(module(logits, target, mu, logvar), expected, strict=True):
            torch.testing.assert_close(a, b)
    assert repr(module) == "ELBOLoss(beta=2.0, reduction='none')"


def test_reparameterize_module() -> None:
    mu, logvar = torch.randn(4, 3), torch.randn(4, 3)
    for samples in (None, 5):
        module = nn.Reparameterize(samples)
        torch.manual_seed(0)
        z = module(mu, logvar)
        torch.manual_seed(0)
        assert torch.equal(z, fastvae.reparameterize(mu, logvar, num_samples=samples))
    assert repr(module) == "Reparameterize(num_samples=5)"


def test_diagonal_gaussian_compiles_without_breaks() -> None:
    torch._dynamo.reset()

    def use(moments: torch.Tensor) -> torch.Tensor:
        q = fastvae.DiagonalGaussian(moments, clamp=(-30.0, 20.0))
        return q.kl() + q.nll(q.mode() + q.std) + q.var.sum() + q.sample().sum() * 0

    moments = torch.randn(4, 6)
    compiled = torch.compile(use, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(moments), use(moments))
