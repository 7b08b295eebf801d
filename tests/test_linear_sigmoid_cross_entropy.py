"""linear_sigmoid_cross_entropy: in one block and in many, its logits kept, computed again, or not needed again."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from cases import FLOATS
from tolerances import UNIT, assert_within
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn.modules.module import register_module_full_backward_hook
from torch.utils.flop_counter import FlopCounterMode

import fastvae
from fastvae import reference
from fastvae.models import CVAE, VAE, Regressor

pytestmark = pytest.mark.usefixtures("device")

LINEAR = fastvae.linear_sigmoid_cross_entropy

# On a CPU a block has at most 2^19 logits, or 256 to 480 rows where those are more; 16 MiB are kept: (K, B, H, D).
SIZES = {
    "one block": (None, 5, 7, 33),
    "samples, one block": (3, 5, 7, 33),
    "blocks of the batch": (None, 900, 4, 784),
    "blocks of the batch, of each sample": (2, 800, 4, 784),
    "blocks of whole samples": (30, 40, 4, 784),
    "too many logits to keep": (60, 100, 4, 784),
    "long rows": (None, 520, 3, 9_000),
}
each_size = pytest.mark.parametrize("size", SIZES)
each_pair = pytest.mark.parametrize(
    ("reduction", "activation"), [("none", None), ("mean", None), ("none", "tanh"), ("mean", "relu")]
)
each_activation = pytest.mark.parametrize("activation", [None, "relu", "tanh"])


def problem(size: str, dtype: torch.dtype, bias: bool = True) -> tuple[list[Tensor], Tensor]:
    """Leaves ``hidden``, ``weight`` and perhaps ``bias``, and a target."""
    samples, batch, width, outputs = SIZES[size]
    shapes = [(batch, width) if samples is None else (samples, batch, width), (outputs, width), (outputs,)]
    leaves = [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes[: 2 + bias]]
    return leaves, torch.rand(batch, outputs)


def run(function: Callable[..., Tensor], leaves: list[Tensor], target: Tensor, **options: str | None) -> Tensor:
    hidden, weight, bias = (*leaves, None)[:3]
    return function(hidden, weight, bias, target, **options)


def wide(leaves: list[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in leaves]


def upstream(rows: Tensor) -> Tensor:
    """A weight for each row, as of an importance-weighted bound."""
    return torch.linspace(0.1, 2, rows.numel(), dtype=torch.float64).reshape(rows.shape)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within what rounding makes of sums of up to 6,000 rows, or pixels, each of products of rounded numbers.

    Errors of either sign add up like a random walk: the root of their number, times four, and 16 for a term's own.
    """
    # Of reduced precision the sums are in float32, whose roundings vanish beside those of the terms.
    unit = max(UNIT[dtype], 2.0**-53 if actual.dtype == torch.float64 else 2.0**-24)
    depth = 16 + (4 * 6000**0.5 if dtype in (torch.float64, torch.float32) else 0)
    assert_within(actual, expected, torch.full_like(expected, depth * unit * max(1.0, float(expected.abs().max()))))


@each_size
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each_activation
def test_values_and_gradients_of_weighted_rows_match_the_reference(
    size: str, dtype: torch.dtype, activation: str | None
) -> None:
    leaves, target = problem(size, dtype)
    rows, exact_leaves = run(LINEAR, leaves, target, activation=activation), wide(leaves)
    expected = run(reference.linear_sigmoid_cross_entropy, exact_leaves, target.double(), activation=activation)
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_near(rows, expected, dtype)
    weights = upstream(rows)
    exact = grad((expected * weights).sum(), exact_leaves)
    for actual, right in zip(grad(rows, leaves, weights.to(rows.dtype)), exact, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, right, dtype)


@each_size
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize(("bias", "activation"), [(True, None), (False, None), (True, "relu"), (False, "tanh")])
def test_scalars_honour_the_upstream_factor(
    size: str, reduction: str, factor: float, bias: bool, activation: str | None
) -> None:
    leaves, target = problem(size, torch.float32, bias)
    exact_leaves, options = wide(leaves), {"reduction": reduction, "activation": activation}
    loss = run(LINEAR, leaves, target, **options)
    expected = run(reference.linear_sigmoid_cross_entropy, exact_leaves, target.double(), **options)
    assert_near(loss, expected, torch.float32)
    exact = grad(expected * factor, exact_leaves)
    for first in (True, False):  # the second pass over a graph has nothing left of the first
        for actual, right in zip(grad(loss * factor, leaves, retain_graph=first), exact, strict=True):
            assert_near(actual, right, torch.float32)


@pytest.mark.parametrize("function", ["linear", "sigmoid_cross_entropy", "elbo_loss"])
@pytest.mark.parametrize("factor", [1, 2])
def test_gradients_are_the_callers_own(function: str, factor: int) -> None:
    """A second pass over the graph leaves those of the first alone, and does not mind what was written to them."""
    leaves, target = problem("one block", torch.float32)
    if function == "linear":
        loss = run(LINEAR, leaves, target, reduction="mean")
    else:
        leaves = [torch.randn_like(target, requires_grad=True)]
        moments = torch.zeros(len(target), 2)
        loss = (
            fastvae.sigmoid_cross_entropy(*leaves, target, reduction="mean")
            if function == "sigmoid_cross_entropy"
            else fastvae.elbo_loss(*leaves, target, moments, moments).loss
        )
    first = grad(loss * factor, leaves, retain_graph=True)
    before = [g.clone() for g in first]
    second = grad(loss * 3, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, before, strict=True))
    for g in (*first, *second):
        g.zero_()
    for again, right in zip(grad(loss * factor, leaves), before, strict=True):
        torch.testing.assert_close(again, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)], ids=str)
def test_what_is_frozen_gets_no_gradient_and_the_others_theirs(reduction: str, frozen: tuple[int, ...]) -> None:
    leaves, target = problem("samples, one block", torch.float32)
    full = grad(run(LINEAR, leaves, target, reduction=reduction).sum(), leaves)
    for i in frozen:
        leaves[i].requires_grad_(False)
    run(LINEAR, leaves, target, reduction=reduction).sum().backward()
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is None) if i in frozen else torch.equal(leaf.grad, full[i])


@pytest.mark.parametrize("size", ["samples, one block", "blocks of whole samples", "too many logits to keep"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_target_gets_its_gradient_over_samples(size: str, reduction: str) -> None:
    leaves, target = problem(size, torch.float64)
    target = target.double().requires_grad_()
    both = [*leaves, target]
    actual = grad((run(LINEAR, leaves, target, reduction=reduction) * 2).sum(), both)
    exact = grad((run(reference.linear_sigmoid_cross_entropy, leaves, target, reduction=reduction) * 2).sum(), both)
    for a, e in zip(actual, exact, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("samples", [(), (2,)], ids=["B", "KB"])
@each_activation
def test_derivatives_pass_gradcheck(reduction: str, samples: tuple[int, ...], activation: str | None) -> None:
    inputs = [torch.randn(*s, dtype=torch.float64) for s in [(*samples, 3, 4), (6, 4), (6,)]] + [
        torch.rand(3, 2, 3, dtype=torch.float64)
    ]
    inputs = [t.requires_grad_() for t in inputs]
    options = {"reduction": reduction, "activation": activation}
    assert gradcheck(lambda *t: LINEAR(*t, **options), inputs)
    assert gradgradcheck(lambda *t: LINEAR(*t, **options), inputs)
    assert gradcheck(lambda h, w, x: LINEAR(h, w, None, x, **options), [*inputs[:2], inputs[3]])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_activation_has_torch_s_limits(activation: str, reduction: str) -> None:
    """Zero, infinities and NaN, whose gradient is what autograd makes of the module's."""
    hidden = torch.tensor([[0.0, -1.0, torch.inf], [-torch.inf, -0.0, 2.0], [torch.nan, 1.0, 1.0]], requires_grad=True)
    weight, target = torch.tensor([[0.5, 1.0, 0.25]], requires_grad=True), torch.ones(3, 1)
    ours = LINEAR(hidden, weight, None, target, activation=activation, reduction=reduction)
    module = {"relu": torch.relu, "tanh": torch.tanh}[activation]
    theirs = LINEAR(module(hidden), weight, None, target, reduction=reduction)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    for actual, expected in zip(*(grad(y.sum(), [hidden, weight]) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float64], ids=str)
def test_targets_of_every_dtype_and_shape_are_read_as_they_are(dtype: torch.dtype) -> None:
    (hidden, weight, bias), _ = problem("samples, one block", torch.float32)
    images = torch.randint(0, 2 if dtype == torch.bool else 256, (5, 3, 11))
    target = images.to(dtype) if dtype in (torch.uint8, torch.bool) else (images / 255).to(dtype)
    expected = fastvae.sigmoid_cross_entropy(
        torch.nn.functional.linear(hidden, weight, bias).unflatten(-1, (3, 11)), target
    )
    assert_near(LINEAR(hidden, weight, bias, target), expected.double(), torch.float32)


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_empty_batch_and_layouts(samples: int | None, reduction: str) -> None:
    lead = () if samples is None else (samples,)
    hidden, weight = torch.empty(*lead, 0, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    out = LINEAR(hidden, weight, None, torch.empty(0, 6), reduction=reduction)
    assert out.shape == ((*lead, 0) if reduction == "none" else ())
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(6, 4))
    assert hidden.grad.shape == hidden.shape
    for width, outputs in ((0, 6), (4, 0)):
        leaves = [torch.randn(*s, requires_grad=True) for s in [(*lead, 3, width), (outputs, width)]]
        loss = LINEAR(*leaves, None, torch.rand(3, outputs), reduction=reduction).sum()
        assert [g.shape for g in grad(loss, leaves, create_graph=True)] == [t.shape for t in leaves]
    # Transposed tensors and a target whose rows are not dense: the same numbers.
    hidden, weight, target = torch.randn(*lead, 9, 4), torch.randn(6, 4), torch.rand(9, 6)
    expected = LINEAR(hidden, weight, None, target, reduction=reduction)
    again = LINEAR(
        hidden.mT.contiguous().mT, weight.t().contiguous().t(), None, target.t().contiguous().t(), reduction=reduction
    )
    torch.testing.assert_close(again, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("size", ["samples, one block", "too many logits to keep"])
def test_operator_check(size: str) -> None:
    leaves, target = problem(size, torch.float32)
    for options in (("none",), ("mean",), ("none", False, "relu"), ("mean", False, "tanh")):
        torch.library.opcheck(
            torch.ops.fastvae.linear_nll.default, ("sigmoid_cross_entropy", *leaves, target, *options)
        )
    with pytest.raises(RuntimeError, match=r"derivative|not implemented"):
        torch.ops.fastvae.linear_nll_forward(
            "sigmoid_cross_entropy", *leaves, target, None, None, None, None, None, None, 0, False
        )[0].sum().backward()


@each_pair
def test_compiles_in_one_graph_with_dynamic_shapes(reduction: str, activation: str | None) -> None:
    def loss(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return LINEAR(hidden, weight, bias, target, activation=activation, reduction=reduction).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for batch in (4, 9):
        inputs = [torch.randn(2, batch, 5), torch.randn(8, 5), torch.randn(8)]
        inputs = [t.requires_grad_() for t in inputs]
        target = torch.rand(batch, 8)
        actual, expected = (grad(f(*inputs, target), inputs) for f in (compiled, loss))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@each_activation
def test_vmap_and_grad_transforms(activation: str | None) -> None:
    (hidden, weight, bias), target = problem("samples, one block", torch.float64)
    layer = functools.partial(LINEAR, activation=activation)
    per_target = torch.func.vmap(layer, (None, 0, 0, None))(hidden, weight[None], bias[None], target.double())
    torch.testing.assert_close(per_target[0], layer(hidden, weight, bias, target.double()))
    by_weight = torch.func.grad(lambda w: layer(hidden, w, bias, target, reduction="sum"))(weight)
    torch.testing.assert_close(by_weight, grad(layer(hidden, weight, bias, target, reduction="sum"), weight)[0])


@each_pair
def test_autocast_casts_as_for_a_linear_layer(reduction: str, activation: str | None, device: str) -> None:
    leaves, target = problem("blocks of whole samples", torch.float32)
    with torch.autocast(device, torch.bfloat16):
        options = {"reduction": reduction, "activation": activation}
        loss = run(LINEAR, leaves, target, **options)
        narrow = [t.detach().bfloat16().requires_grad_() for t in leaves]
        expected = run(LINEAR, narrow, target, **options)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for actual, right in zip(grad(loss.sum(), leaves), grad(expected.sum(), narrow), strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, right.float())


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_logits_are_never_in_memory(reduction: str, device: str) -> None:
    """Beside the gradients there is a block, whatever the number of rows."""
    if device == "cuda":
        pytest.skip("measured in test_cuda.py")
    samples, batch, _, outputs = SIZES["too many logits to keep"]
    leaves, target = problem("too many logits to keep", torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        run(LINEAR, leaves, target, reduction=reduction).sum().backward()
    largest = max(e.self_cpu_memory_usage for e in profile.events())
    assert largest <= 2**21 + 4 * outputs  # a block
    assert largest < samples * batch * outputs * 4 / 8


def test_gradients_of_reduced_precision_are_added_up_in_float32() -> None:
    """One block of 256 and 31 of 1/2: bfloat16, whose step is 2 from there on, would leave out all of these."""
    rows, blocks, outputs = 256, 32, 2**11  # on a CPU no block has fewer rows, nor more of so many outputs
    hidden = torch.full((blocks, rows, 1), 1 / 256, dtype=torch.bfloat16)
    hidden[0] = 2
    weight = torch.zeros(outputs, 1, dtype=torch.bfloat16, requires_grad=True)
    target = torch.zeros(1, outputs).expand(rows * blocks, outputs)
    LINEAR(hidden.flatten(0, 1), weight, None, target).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 256 + 31 / 2), rtol=2**-8, atol=0)


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@each_size
def test_flops_are_those_of_the_layer_and_its_loss(size: str) -> None:
    shapes, target = problem(size, torch.float32)
    target = target.to("meta")
    for reduction in ("none", "mean", "sum"):
        for wanted in ((True, True, True), (False, True, True), (True, False, False), (False, False, True)):
            leaves = [t.detach().to("meta").requires_grad_(w) for t, w in zip(shapes, wanted, strict=True)]
            expected = flops(lambda t=leaves: torch.nn.functional.linear(*t).sum().backward())
            logits = leaves[0].shape[:-1].numel() * leaves[1].shape[0]
            # Per sample, the backward pass computes logits of more than 16 MiB again.
            again = 2 * logits * leaves[1].shape[1] if reduction == "none" and 4 * logits > 16 * 2**20 else 0
            step = flops(lambda t=leaves, r=reduction: LINEAR(*t, target, reduction=r).sum().backward())
            assert step == expected + again > 0
            with torch.no_grad():
                forward = flops(lambda t=leaves: torch.nn.functional.linear(*t))
                assert flops(lambda t=leaves, r=reduction: LINEAR(*t, target, reduction=r)) == forward


@pytest.mark.parametrize("kind", [VAE, CVAE, Regressor])
def test_global_hooks_see_all_layers_of_a_models_loss(kind: type[VAE] | type[CVAE] | type[Regressor]) -> None:
    """Such as those of FlopCounterMode, which counts layer by layer."""
    model, seen = kind(), set()
    inputs = [torch.rand(3, 784)] if kind is VAE else [torch.rand(3, 28, 27), torch.rand(3, 28)]

    def step() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        loss = model.loss(*inputs)  # type: ignore[arg-type]
        return torch.autograd.grad(loss if isinstance(loss, Tensor) else loss.loss, list(model.parameters()))

    expected = step()
    with (
        register_module_full_backward_hook(lambda module, *_: seen.add(module)),
        FlopCounterMode(display=False) as counter,
    ):
        torch.testing.assert_close(step(), expected, rtol=1e-4, atol=1e-6)
    assert seen >= {layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)}
    assert any(name.endswith(".0") for name in counter.get_flop_counts())


@pytest.mark.parametrize("imports", ["fastvae, torch.utils.flop_counter", "torch.utils.flop_counter, fastvae"])
def test_flop_formulas_are_there_whichever_is_imported_first(imports: str) -> None:
    script = f"""
import sys, torch
first, second = {imports.split(", ")!r}
__import__(first)
assert first != "fastvae" or "torch.utils.flop_counter" not in sys.modules  # which imports triton, where that is
__import__(second)
import fastvae, importlib
from torch.utils.flop_counter import FlopCounterMode
importlib.reload(fastvae.ops)  # as notebooks do
with FlopCounterMode(display=False) as counter:
    fastvae.linear_sigmoid_cross_entropy(torch.rand(2, 3), torch.rand(5, 3), None, torch.rand(2, 5))
assert counter.get_total_flops() == 2 * 2 * 3 * 5
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
