"""sigmoid_cross_entropy: limits, tiny results, targets that are not expanded, samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import FLOATS
from tolerances import SMALLEST, UNIT, assert_within, unit
from torch import Tensor

import fastvae
from fastvae import reference

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [1e4, torch.inf])
def test_sigmoid_cross_entropy_has_its_limits(dtype: torch.dtype, size: float) -> None:
    logits = torch.tensor([[size], [-size], [size], [-size]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    out = fastvae.sigmoid_cross_entropy(logits, target)
    exact = logits.detach().abs().flatten().to(out.dtype)  # float16 and bfloat16 round 1e4
    assert torch.equal(
        out,
        torch.stack([0 * exact[0].nan_to_num(posinf=0), exact[1].nan_to_num(posinf=0) * 0, exact[2], exact[3]]),
    )
    out.sum().backward()
    assert torch.equal(logits.grad.float().flatten(), torch.tensor([0.0, 0.0, 1.0, -1.0]))


def elbo(logits: Tensor, target: Tensor, reduction: str) -> Tensor:
    moments = torch.zeros(len(target), 1)
    return fastvae.elbo_loss(logits, target, moments, moments, reduction=reduction).loss


def layer(logits: Tensor, target: Tensor, reduction: str) -> Tensor:
    weight = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return fastvae.linear_sigmoid_cross_entropy(logits, weight, None, target, reduction=reduction)


# Every operator that has the gradient: by a backward kernel, written in the forward pass, behind a layer.
LOSSES: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "sigmoid_cross_entropy": lambda logits, x, r: fastvae.sigmoid_cross_entropy(logits, x, reduction=r),
    "elbo_loss": elbo,
    "linear": layer,
}


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("target_dtype", [None, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_sigmoid_cross_entropy_gradient_of_a_sure_and_right_prediction_is_exact(
    loss: str, dtype: torch.dtype, target_dtype: torch.dtype | None, reduction: str
) -> None:
    """Within a few roundings of itself, for target 1 as for target 0, as far as numbers of the type go."""
    farthest = 700 if dtype == torch.float64 else 87
    far = torch.tensor([0.5, 1, 4, 8, 12, 16, 17.5, 20, 24, 40, farthest], dtype=torch.float64)
    logits = torch.cat([far, -far])[None].to(dtype).requires_grad_()
    target = (logits > 0).to(dtype)
    if target_dtype is not None:
        target = (logits > 0) * 255 if target_dtype == torch.uint8 else logits > 0
        target = target.to(target_dtype)
    LOSSES[loss](logits, target, reduction).sum().backward()
    rarer = torch.special.expit(-far)
    # The bound of docs/accuracy.md, and that of the product with the layer's weight; the type stored.
    relative = 10 * unit(dtype) + (UNIT[dtype] if dtype in SMALLEST else 0)
    expected = torch.cat([-rarer, rarer])[None]
    assert_within(logits.grad, expected, relative * expected.abs() + SMALLEST.get(dtype, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_sigmoid_cross_entropy_second_derivative_of_a_sure_prediction_is_exact(
    loss: str, reduction: str, dtype: torch.dtype
) -> None:
    far = torch.tensor([0.0, 0.5, 4, 12, 17.5, 20, 40, 80], dtype=torch.float64)
    logits = torch.cat([far, -far]).repeat(2)[None].to(dtype).requires_grad_()
    target = torch.tensor([0.0, 1.0], dtype=dtype).repeat_interleave(16)[None]
    total = LOSSES[loss](logits, target, reduction).sum()
    (grad,) = torch.autograd.grad(total, logits, create_graph=True)
    curve = torch.special.expit(far) * torch.special.expit(-far)
    size = torch.where(target == 1, -torch.special.expit(-logits.double()), torch.special.expit(logits.double()))
    assert_within(grad, size, 10 * unit(dtype) * size.abs())
    grad.sum().backward()
    assert_within(logits.grad, curve.repeat(4)[None], 10 * unit(dtype) * curve.repeat(4))


def test_sigmoid_cross_entropy_keeps_nan() -> None:
    nan = torch.nan
    logits = torch.tensor([[nan, 0.0], [0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [nan, 0.0], [1.0, 0.5]])
    out = fastvae.sigmoid_cross_entropy(logits, target)
    assert out.isnan().tolist() == [True, True, False]
    out.sum().backward()
    assert logits.grad.isnan().tolist() == [[True, False], [True, False], [False, False]]


def test_sigmoid_cross_entropy_of_sure_and_right_pixels_is_tiny_not_zero() -> None:
    """-log(1 - e^-20) ~ e^-20: a max(l, 0) - l x form would round it away beside 20."""
    logits = torch.full((1, 3), 20.0)
    out = fastvae.sigmoid_cross_entropy(logits, torch.ones(1, 3))
    torch.testing.assert_close(out, torch.tensor([3 * 2.0611536e-09]), rtol=1e-6, atol=0)


def test_sigmoid_cross_entropy_reads_any_nonzero_byte_of_a_bool_as_true() -> None:
    logits = torch.randn(1, 2)
    bytes_of_bool = torch.tensor([[0, 255]], dtype=torch.uint8).view(torch.bool)
    expected = fastvae.sigmoid_cross_entropy(logits, torch.tensor([[False, True]]))
    assert torch.equal(fastvae.sigmoid_cross_entropy(logits, bytes_of_bool), expected)


def test_sigmoid_cross_entropy_never_expands_the_target(device: str) -> None:
    """Peak extra memory of K = 50 is the output's, not that of 50 targets."""
    if device == "cuda":
        pytest.skip("measured in test_cuda.py")
    logits, target = torch.randn(50, 20, 784), torch.rand(20, 784)
    with torch.profiler.profile(profile_memory=True) as profile:
        fastvae.sigmoid_cross_entropy(logits, target)
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.events())
    assert allocated <= 2 * 50 * 20 * 4


def test_sigmoid_cross_entropy_gives_the_target_its_gradient_over_samples() -> None:
    logits = torch.randn(4, 3, 33)
    target = torch.rand(3, 33, requires_grad=True)
    weight = torch.rand(4, 3)
    (fastvae.sigmoid_cross_entropy(logits, target) * weight).sum().backward()
    assert_within(target.grad, -(weight[..., None] * logits).double().sum(0), torch.tensor(1e-5))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_sigmoid_cross_entropy_as_a_scalar_honours_the_upstream_factor(
    reduction: str, factor: float, dtype: torch.dtype
) -> None:
    logits, target = (torch.rand(*s, dtype=torch.float64).to(dtype).requires_grad_() for s in [(3, 6, 40), (6, 40)])
    wide_logits, wide_target = (t.detach().double().requires_grad_() for t in (logits, target))
    (fastvae.sigmoid_cross_entropy(logits, target, reduction=reduction) * factor).backward()
    (reference.sigmoid_cross_entropy(wide_logits, wide_target, reduction=reduction) * factor).backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(logits.grad.double(), wide_logits.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(target.grad.double(), wide_target.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sigmoid_cross_entropy_as_a_scalar_reads_its_inputs_once(reduction: str, device: str) -> None:
    """The backward pass of a loss that is a scalar returns what the forward pass has written."""
    if device == "cuda":
        pytest.skip("measured in test_cuda.py")
    logits, target = torch.randn(64, 784, requires_grad=True), torch.rand(64, 784)
    with torch.profiler.profile(profile_memory=True) as profile:
        fastvae.sigmoid_cross_entropy(logits, target, reduction=reduction).backward()
    assert not any("sigmoid_cross_entropy_backward" in e.name for e in profile.events())
    sizes = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage >= logits.nbytes]
    assert sizes == [logits.nbytes]


@pytest.mark.slow
def test_sigmoid_cross_entropy_of_more_than_2_31_elements() -> None:
    rows, size = 3, 2**30 // 3 * 2 + 5
    logits = torch.zeros(1, dtype=torch.bfloat16).expand(rows, size)  # stride 0: copied, 4 GiB
    target = torch.ones(rows, size, dtype=torch.bool)
    out = fastvae.sigmoid_cross_entropy(logits, target)
    assert_within(out, torch.full((rows,), size * 0.6931471805599453), torch.tensor(size * 1e-6))


def test_scale_grad_refuses_what_is_not_dense() -> None:
    """It scales where the gradient lies, and would leave a copy of it scaled instead."""
    with pytest.raises(
        ValueError, match=r"scale_grad: a gradient must be dense, got strides \[6, 2\] of shape \[4, 3\]"
    ):
        torch.ops.fastvae.scale_grad(torch.ones(4, 6)[:, ::2], torch.tensor(2.0))
