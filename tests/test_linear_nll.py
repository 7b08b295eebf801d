"""The likelihoods of counts with the last layers that give their parameters: one layer or two, shares, blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tolerances import assert_within
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import fastvae
from fastvae import reference

pytestmark = pytest.mark.usefixtures("device")

# (K, B, H, D), as in test_linear_sigmoid_cross_entropy.py.
SIZES = {
    "one block": (None, 5, 7, 33),
    "samples, one block": (3, 5, 7, 33),
    "blocks of the batch": (None, 900, 4, 784),
    "blocks of the batch, of each sample": (2, 800, 4, 784),
    "blocks of whole samples": (30, 40, 4, 784),
    "long rows": (None, 520, 3, 3_000),
}
# Which operands each takes, beside hidden, weight, bias and target.
KINDS = {
    "multinomial": [],
    "negative binomial": ["log_theta"],
    "of a library": ["log_theta", "log_library"],
    "zero-inflated": ["log_theta", "zero_weight", "zero_bias"],
    "zero-inflated of a library": ["log_theta", "log_library", "zero_weight", "zero_bias"],
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_size = pytest.mark.parametrize("size", SIZES)
each_form = pytest.mark.parametrize("compressed", [False, True], ids=["dense", "compressed"])


def problem(kind: str, size: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    """Leaves by name, and a target."""
    samples, batch, width, outputs = SIZES[size]
    shapes = {
        "hidden": (batch, width) if samples is None else (samples, batch, width),
        "weight": (outputs, width),
        "bias": (outputs,),
        "log_theta": (outputs,),
        "log_library": (batch,),
        "zero_weight": (outputs, width),
        "zero_bias": (outputs,),
    }
    names = ["hidden", "weight", "bias", *KINDS[kind]]
    leaves = {name: torch.randn(shapes[name], dtype=torch.float64).to(dtype).requires_grad_() for name in names}
    return leaves, (torch.randint(0, 9, (batch, outputs)) * (torch.rand(batch, outputs) < 0.2)).to(torch.int32)


def run(module: object, leaves: dict[str, Tensor], target: Tensor, **options: str | None) -> Tensor:
    name = "linear_negative_binomial_nll" if "log_theta" in leaves else "linear_multinomial_nll"
    function: Callable[..., Tensor] = getattr(module, name)
    return function(target=target, **leaves, **options)


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> list[Tensor]:
    weight = torch.linspace(0.5, 2, value.numel()).reshape(value.shape).to(value.dtype)
    return list(grad((value * weight).sum(), list(leaves.values())))


def wide(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().double().requires_grad_() for name, t in leaves.items()}


@each_kind
@each_size
@each_form
@pytest.mark.parametrize(("reduction", "activation"), [("none", "tanh"), ("mean", "relu")])
def test_values_and_gradients_match_the_reference(
    kind: str, size: str, compressed: bool, reduction: str, activation: str
) -> None:
    leaves, target = problem(kind, size, torch.float32)
    exact = wide(leaves)
    options = {"reduction": reduction, "activation": activation}
    value = run(fastvae, leaves, target.to_sparse_csr() if compressed else target, **options)
    expected = run(reference, exact, target, **options)
    assert value.dtype == torch.float32
    # Sums of thousands of terms, each of rounded logits: their errors of either sign add up like a random walk.
    for actual, right in zip([value, *gradients(value, leaves)], [expected, *gradients(expected, exact)], strict=True):
        bound = 2.0**-24 * (16 + 4 * 3_000**0.5) * max(1.0, float(right.abs().max()))
        assert_within(actual, right, torch.full_like(right, bound))


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_gradients_have_the_dtypes_of_their_operands(kind: str, dtype: torch.dtype) -> None:
    leaves, target = problem(kind, "samples, one block", dtype)
    for name in ("log_theta", "log_library"):  # in their own precision
        if name in leaves:
            leaves[name] = leaves[name].detach().float().requires_grad_()
    exact = wide(leaves)
    for reduction in ("none", "mean"):
        value, expected = (run(m, t, target, reduction=reduction) for m, t in ((fastvae, leaves), (reference, exact)))
        unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-22}[dtype]
        for name, actual, right in zip(leaves, gradients(value, leaves), gradients(expected, exact), strict=True):
            assert actual.dtype == leaves[name].dtype
            # Logits of up to 10 are rounded, then their gradients, each to one in 2^8 or 2^11.
            bound = 40 * unit * max(1.0, float(right.abs().max()))
            assert_within(actual, right, torch.full_like(right, bound))


@each_kind
@each_form
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("samples", [(), (2,)], ids=["B", "KB"])
def test_derivatives_pass_gradcheck(kind: str, compressed: bool, reduction: str, samples: tuple[int, ...]) -> None:
    leaves, _ = problem(kind, "one block")
    names = list(leaves)
    shapes = {"hidden": (*samples, 3, 4), "weight": (6, 4), "zero_weight": (6, 4), "log_library": (3,)}
    inputs = [torch.randn(shapes.get(name, (6,)), dtype=torch.float64).requires_grad_() for name in names]
    counts = torch.randint(0, 4, (3, 6)).double()
    target = counts.to_sparse_csr() if compressed else counts

    def loss(*tensors: Tensor) -> Tensor:
        return run(fastvae, dict(zip(names, tensors, strict=True)), target, reduction=reduction, activation="tanh")

    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


@each_kind
def test_a_target_that_wants_a_gradient_gets_it(kind: str) -> None:
    leaves, target = problem(kind, "blocks of whole samples")
    for reduction in ("none", "mean"):
        found = []
        for module in (fastvae, reference):
            x = (target + 0.3).double().requires_grad_()
            found.append(grad(run(module, leaves, x, reduction=reduction).sum(), [x, *leaves.values()]))
        for actual, right in zip(*found, strict=True):
            torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-9)


@each_kind
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_what_is_frozen_gets_no_gradient_and_the_others_theirs(kind: str, reduction: str) -> None:
    leaves, target = problem(kind, "samples, one block", torch.float32)
    full = dict(
        zip(leaves, grad(run(fastvae, leaves, target, reduction=reduction).sum(), leaves.values()), strict=True)
    )
    for wanted in leaves:
        for name, t in leaves.items():
            t.requires_grad_(name == wanted)
            t.grad = None
        run(fastvae, leaves, target, reduction=reduction).sum().backward()
        for name, t in leaves.items():
            if name == wanted:
                torch.testing.assert_close(t.grad, full[name], rtol=1e-6, atol=1e-6)
            else:
                assert t.grad is None


@pytest.mark.parametrize("theta", ["scalar", "row", "element"])
def test_theta_of_other_shapes(theta: str) -> None:
    leaves, target = problem("negative binomial", "blocks of the batch")
    batch, outputs = target.shape
    shape = {"scalar": (), "row": (batch, 1), "element": (batch, outputs)}[theta]
    leaves["log_theta"] = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for reduction in ("none", "mean"):
        value, expected = (run(m, leaves, target, reduction=reduction) for m in (fastvae, reference))
        for actual, right in zip(gradients(value, leaves), gradients(expected, leaves), strict=True):
            torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-9)


@each_kind
@each_form
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_layers_without_outputs(kind: str, compressed: bool, reduction: str) -> None:
    """Sums over nothing are 0, and so are their gradients; what wants none is left as it is."""
    sizes = {"hidden": (5, 3), "weight": (0, 3), "zero_weight": (0, 3), "log_library": (5,), "log_theta": ()}
    leaves = {name: torch.randn(sizes.get(name, (0,))) for name in ["hidden", "weight", "bias", *KINDS[kind]]}
    target = torch.zeros(5, 0)
    for wanted in (["hidden"], list(leaves)):
        before = {name: t.clone() for name, t in leaves.items()}
        for name, t in leaves.items():
            t.requires_grad_(name in wanted)
        value = run(fastvae, leaves, target.to_sparse_csr() if compressed else target, reduction=reduction)
        assert torch.equal(value, torch.zeros(value.shape))
        for gradient in grad(value.sum(), [leaves[name] for name in wanted]):
            assert not gradient.any()
        assert all(torch.equal(t, before[name]) for name, t in leaves.items())


@pytest.mark.parametrize("theta", [(), (1,), (5,), (2, 5)], ids=str)
def test_events_without_dimensions(theta: tuple[int, ...]) -> None:
    hidden, weight, counts = torch.randn(2, 5, 7), torch.randn(1, 7), torch.randint(0, 9, (5,))
    log_theta = torch.randn(theta, requires_grad=True)
    expected = fastvae.negative_binomial_nll((hidden @ weight.T)[..., 0], log_theta, counts)
    for module in (fastvae, reference):
        actual = module.linear_negative_binomial_nll(hidden, weight, None, log_theta, counts)
        torch.testing.assert_close(actual, expected)
        for weighted in (torch.ones(2, 5), torch.rand(2, 5)):
            torch.testing.assert_close(
                *(grad((t * weighted).sum(), log_theta, retain_graph=True) for t in (actual, expected))
            )


def test_events_of_several_dimensions() -> None:
    leaves, target = problem("zero-inflated of a library", "one block")
    expected = run(fastvae, leaves, target)
    leaves["log_theta"] = leaves["log_theta"].detach().reshape(3, 11)
    assert torch.equal(run(fastvae, leaves, target.reshape(5, 3, 11)), expected)
    torch.testing.assert_close(run(reference, leaves, target.reshape(5, 3, 11)), expected)


@each_kind
@each_form
def test_no_tensor_of_all_logits_is_made(kind: str, compressed: bool, device: str) -> None:
    if device == "cuda":
        pytest.skip("the profiler's memory is that of the CPU")
    shape, target = (5000, 1000), torch.zeros(5000, 1000, dtype=torch.uint8)  # 20 MB of logits: none are kept
    leaves, _ = problem(kind, "one block", torch.float32)
    sizes = {"hidden": (shape[0], 8), "weight": (shape[1], 8), "zero_weight": (shape[1], 8), "log_library": shape[:1]}
    leaves = {name: torch.randn(sizes.get(name, shape[1:]), requires_grad=True) for name in leaves}
    target[:, 3] = 2
    if compressed:
        target = target.to_sparse_csr()
    for reduction in ("none", "mean"):
        with torch.profiler.profile(profile_memory=True) as profile:
            run(fastvae, leaves, target, reduction=reduction).sum().backward()
        assert max(e.self_cpu_memory_usage for e in profile.events()) <= 2**21 + 4 * 1000


def test_operator_check() -> None:
    leaves, target = problem("zero-inflated of a library", "samples, one block", torch.float32)
    hidden, weight, bias, theta, library, zero_weight, zero_bias = leaves.values()
    csr = target.to_sparse_csr()
    for reduction in ("none", "mean"):
        more = (reduction, False, "relu", zero_weight, zero_bias, theta, library)
        name = "zero_inflated_negative_binomial_nll"
        torch.library.opcheck(torch.ops.fastvae.linear_nll.default, (name, hidden, weight, bias, target, *more))
        indices = (csr.crow_indices().clone(), csr.col_indices().clone())
        torch.library.opcheck(
            torch.ops.fastvae.linear_nll.default, (name, hidden, weight, bias, csr.values().clone(), *more, *indices)
        )


@each_kind
def test_compiles_in_one_graph_with_dynamic_shapes(kind: str) -> None:
    names = ["hidden", "weight", "bias", *KINDS[kind]]

    def loss(*tensors: Tensor) -> Tensor:
        *operands, target = tensors
        return run(fastvae, dict(zip(names, operands, strict=True)), target, reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for batch in (4, 9):
        shapes = {"hidden": (2, batch, 5), "weight": (8, 5), "zero_weight": (8, 5), "log_library": (batch,)}
        inputs = [torch.randn(shapes.get(name, (8,)), requires_grad=True) for name in names]
        target = torch.randint(0, 5, (batch, 8))
        actual, expected = (grad(f(*inputs, target), inputs) for f in (compiled, loss))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@each_kind
def test_autocast_casts_the_layers(kind: str, device: str) -> None:
    leaves, target = problem(kind, "samples, one block", torch.float32)
    layers = ("hidden", "weight", "bias", "zero_weight", "zero_bias")
    narrow = {n: (t.detach().bfloat16() if n in layers else t.detach()).requires_grad_() for n, t in leaves.items()}
    with torch.autocast(device, torch.bfloat16):
        loss = run(fastvae, leaves, target, reduction="mean")
    expected = run(fastvae, narrow, target, reduction="mean")
    assert torch.equal(loss, expected)
    for actual, right in zip(grad(loss, leaves.values()), grad(expected, narrow.values()), strict=True):
        assert torch.equal(actual, right.float())


@each_kind
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("theta", ["column", "scalar"])
def test_a_backward_pass_may_run_under_autocast(kind: str, reduction: str, theta: str, device: str) -> None:
    """Products that are not of reduced precision do not become so."""
    leaves, target = problem(kind, "samples, one block", torch.float32)
    if "log_theta" in leaves and theta == "scalar":
        leaves["log_theta"] = torch.zeros((), requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        loss = run(fastvae, leaves, target, reduction=reduction)
        inside = gradients(loss.double(), leaves)
        loss = run(fastvae, leaves, target, reduction=reduction)
    for actual, expected in zip(inside, gradients(loss.double(), leaves), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", ["multinomial", "zero-inflated"])
def test_flops_are_those_of_the_layers(kind: str) -> None:
    leaves, target = problem(kind, "one block", torch.float32)
    layers = 2 if kind == "zero-inflated" else 1
    product = 2 * 5 * 7 * 33
    for reduction, expected in (("none", 4 if layers == 2 else 3), ("mean", 3)):  # logits of one layer are kept
        with FlopCounterMode(display=False) as counter:
            run(fastvae, leaves, target, reduction=reduction).sum().backward()
        assert counter.get_total_flops() == expected * layers * product


def test_bad_layers_are_an_error() -> None:
    leaves, target = problem("zero-inflated of a library", "one block", torch.float32)
    name = r"fastvae\.linear_negative_binomial_nll: "

    def refused(message: str, **changed: Tensor | None) -> None:
        with pytest.raises(ValueError, match=name + message):
            run(fastvae, {**leaves, **changed}, target)

    refused(r"weight and zero_weight must have the same shape, got weight \[33, 7\]", zero_weight=torch.ones(32, 7))
    refused(r"zero_bias must be \[D\], got zero_bias \[7\]", zero_bias=torch.ones(7))
    refused(r"zero_bias is given without zero_weight", zero_weight=None)
    refused(r"log_library must be \[B\], or \[K, B\] with samples, got \[5, 1\]", log_library=torch.ones(5, 1))
    refused(r"log_theta must have the shape of log_mean", log_theta=torch.ones(32))
    refused(r"zero_weight must have the dtype of hidden", zero_weight=torch.ones(33, 7).double())
    with pytest.raises(
        ValueError, match=name + r"log_theta must be one value .* a target's event, \[3, 11\], got \[33\]"
    ):
        run(fastvae, leaves, target.reshape(5, 3, 11))
    with pytest.raises(ValueError, match=r"linear_multinomial_nll: a sparse target must be \[B, D\]"):
        fastvae.linear_multinomial_nll(torch.ones(2, 3), torch.ones(4, 3), None, torch.ones(2, 5).to_sparse_csr())
