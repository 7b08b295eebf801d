"""elbo_loss: its gradient in the forward pass, beta, the upstream factor."""

from __future__ import annotations

import pytest
import torch

import fastvae
from fastvae import reference

pytestmark = pytest.mark.usefixtures("device")


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = [(6, 40), (6, 40), (6, 7), (6, 7)]
    tensors = [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes]
    tensors[1] = torch.rand(6, 40, dtype=torch.float64).to(dtype)
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_elbo_loss_gradients_for_any_upstream_factor(reduction: str, factor: float, dtype: torch.dtype) -> None:
    tensors = inputs(dtype)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    beta, wide_beta = (torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    actual = fastvae.elbo_loss(*tensors, beta=beta, reduction=reduction)
    expected = reference.elbo_loss(*wide, beta=wide_beta, reduction=reduction)
    (actual.loss * factor).sum().backward()
    (expected[0] * factor).sum().backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3}[dtype]
    for a, b in zip([*tensors, beta], [*wide, wide_beta], strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("factors", [(3.0, 1.0, 0.5), (1.0, 3.0, 1.0)], ids=str)
def test_elbo_loss_gradients_of_a_retained_graph(factors: tuple[float, ...]) -> None:
    """The gradient that the forward pass wrote is scaled where it lies: once."""
    tensors = inputs()
    wide = [t.detach().double().requires_grad_() for t in tensors]
    loss, expected = fastvae.elbo_loss(*tensors).loss, reference.elbo_loss(*wide)[0]
    for factor in factors:
        actual = torch.autograd.grad(loss * factor, tensors, retain_graph=True)
        right = torch.autograd.grad(expected * factor, wide, retain_graph=True)
        for a, b in zip(actual, right, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_elbo_loss_parts_may_be_weighted_by_the_user() -> None:
    tensors = inputs(torch.float64)
    wide = [t.detach().requires_grad_() for t in tensors]
    a = fastvae.elbo_loss(*tensors, beta=0.5)
    (a.loss + 2 * a.reconstruction - 0.25 * a.kl).backward()
    loss, reconstruction, kl = reference.elbo_loss(*wide, beta=0.5)
    (loss + 2 * reconstruction - 0.25 * kl).backward()
    for x, y in zip(tensors, wide, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("samples", [(), (3,)], ids=["one", "three"])
def test_elbo_loss_sums_many_rows_in_double(reduction: str, samples: tuple[int, ...]) -> None:
    """To half a unit in the last place of float32, but for the order of a double sum."""
    batch = 70_001
    logits, target = torch.randn(*samples, batch, 2), torch.rand(batch, 2)
    mu, logvar = torch.randn(batch, 3), torch.randn(batch, 3)
    actual = fastvae.elbo_loss(logits, target, mu, logvar, beta=0.7, reduction=reduction)
    rows = fastvae.sigmoid_cross_entropy(logits, target).double()
    reconstruction = rows.mean(0).sum() if samples else rows.sum()
    kl = fastvae.gaussian_kl(mu, logvar).double().sum()
    if reduction == "mean":
        reconstruction, kl = reconstruction / batch, kl / batch
    for value, exact in zip(actual, [reconstruction + 0.7 * kl, reconstruction, kl], strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=0.501 * 2**-23, atol=0)


def test_elbo_loss_beta_has_second_derivatives() -> None:
    beta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def call(*t: torch.Tensor) -> torch.Tensor:
        return fastvae.elbo_loss(*t[:4], beta=t[4]).loss

    tensors = [t.detach()[:2, :3].clone().requires_grad_() for t in inputs(torch.float64)]
    assert torch.autograd.gradcheck(call, (*tensors, beta))
    assert torch.autograd.gradgradcheck(call, (*tensors, beta))


def test_elbo_loss_float16_gradient_is_scaled_before_it_is_rounded() -> None:
    """1/B of a small gradient underflows in float16; a loss scale must reach it first."""
    batch, scale = 8192, 65536.0
    logits = torch.full((batch, 1), -8.0, dtype=torch.float16, requires_grad=True)
    zero = torch.zeros(batch, 1)
    (fastvae.elbo_loss(logits, zero, zero, zero).loss * scale).backward()
    expected = torch.sigmoid(torch.tensor(-8.0)) / batch * scale
    torch.testing.assert_close(logits.grad.float(), expected.expand(batch, 1), rtol=2**-10, atol=0)


def test_elbo_loss_writes_one_gradient_and_nothing_else_of_its_size(device: str) -> None:
    if device == "cuda":
        pytest.skip("measured in test_cuda.py")
    logits, target = torch.randn(64, 784, requires_grad=True), torch.rand(64, 784)
    mu, logvar = (torch.randn(64, 8, requires_grad=True) for _ in range(2))
    with torch.profiler.profile(profile_memory=True) as profile:
        fastvae.elbo_loss(logits, target, mu, logvar).loss.backward()
    sizes = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage >= 64 * 784 * 4]
    assert sizes == [64 * 784 * 4]


def test_elbo_loss_beta_schedule_recompiles_nothing() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: fastvae.elbo_loss(*t[:4], beta=t[4]).loss, fullgraph=True, backend="aot_eager")
    tensors = inputs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for beta in (0.0, 0.5, 1.0):
            value = compiled(*tensors, torch.tensor(beta))
            torch.testing.assert_close(value, fastvae.elbo_loss(*tensors, beta=beta).loss)
