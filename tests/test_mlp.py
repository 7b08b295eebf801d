"""mlp: its values and derivatives, what it takes, and the networks that run by it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from cases import FLOATS
from tolerances import UNIT, assert_within
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastvae
from fastvae import reference
from fastvae.nn import MLP

pytestmark = pytest.mark.usefixtures("device")

# Of one layer, of several, of lengths that are no vectors, and of those of the tutorial.
WIDTHS = [(7, 5), (16, 24, 8), (20, 33, 17, 7), (784, 1000, 60)]
each_widths = pytest.mark.parametrize("widths", WIDTHS, ids=str)
each_activation = pytest.mark.parametrize("activation", ["relu", "tanh", None])


def problem(widths: Sequence[int], batch: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Leaves: x, the weights, then the biases."""
    pairs = list(pairwise(widths))
    tensors = [torch.randn(*batch, widths[0], dtype=torch.float64)]
    tensors += [torch.randn(b, a, dtype=torch.float64) / a**0.5 for a, b in pairs]
    tensors += [torch.randn(b, dtype=torch.float64) for _, b in pairs]
    return [t.to(dtype).requires_grad_() for t in tensors]


def call(function: Callable[..., Tensor], leaves: Sequence[Tensor], activation: str | None = "relu") -> Tensor:
    layers = len(leaves) // 2
    return function(leaves[0], leaves[1 : 1 + layers], leaves[1 + layers :], activation=activation)


def wide(leaves: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in leaves]


def assert_near(actual: Tensor, expected: Tensor, widths: Sequence[int], rows: int, dtype: torch.dtype) -> None:
    """Within what rounding makes of as many products as there are layers, of sums over units or rows.

    Errors of either sign add up like a random walk, the root of their number, times four; in reduced precision, whose
    sums are in float32, those of the operands are left: two for each layer, forward and backward.
    """
    unit, terms = UNIT[dtype], max(*widths, rows)
    depth = 4 * (terms**0.5 if dtype in (torch.float64, torch.float32) else 1) + 8
    size = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    assert_within(actual, expected, torch.full_like(expected, 2 * len(widths) * depth * unit * size))


def assert_near_on_average(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """A ReLU within rounding of zero may fall to either side, which moves a gradient by that of one unit.

    Of numbers of order 1, 6 in a hundred lie within 0.08 of zero, so that units within 8 u of it, to either side, are
    a share of 6.4 u. What they add to a sum goes by the root of their share; twice that, for several layers.
    """
    error = (actual.double() - expected).norm() / expected.norm().clamp_min(1)
    assert error <= 2 * (6.4 * UNIT[dtype]) ** 0.5


@each_widths
@each_activation
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (300,)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_and_gradients_match_the_reference(
    widths: tuple[int, ...], activation: str | None, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    leaves = problem(widths, batch, dtype)
    exact_leaves = wide(leaves)
    result, expected = call(fastvae.mlp, leaves, activation), call(reference.mlp, exact_leaves, activation)
    rows = max(1, torch.Size(batch).numel())
    assert result.dtype == dtype
    assert_near(result, expected, widths, rows, dtype)
    upstream = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
    right = grad(expected, exact_leaves, upstream.double())
    for actual, wanted in zip(grad(result, leaves, upstream), right, strict=True):
        assert actual.dtype == dtype
        if activation == "relu":
            assert_near_on_average(actual, wanted, dtype)
        else:
            assert_near(actual, wanted, widths, rows, dtype)


@each_activation
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_derivatives_pass_gradcheck(activation: str | None, batch: tuple[int, ...]) -> None:
    leaves = problem((4, 5, 3, 2), batch, torch.float64)
    function = lambda *t: call(fastvae.mlp, t, activation)  # noqa: E731
    assert gradcheck(function, leaves, check_batched_grad=True)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("of", [torch.uint8, torch.bool, *FLOATS], ids=str)
def test_the_input_is_read_as_numbers_of_the_weights(dtype: torch.dtype, of: torch.dtype) -> None:
    leaves = problem((20, 9, 4), (6,), dtype)
    x = (torch.rand(6, 20) * 255).to(torch.uint8) if of == torch.uint8 else torch.rand(6, 20).sub(0.5).to(of)
    computed = torch.float64 if torch.float64 in (of, dtype) else torch.float32
    # Divided on the CPU: a GPU's quotient by a number is the product with its inverse.
    numbers = (x.cpu().to(computed).div(255).to(x.device) if of == torch.uint8 else x).to(dtype)
    for leaf in (x, numbers):
        leaf.requires_grad_(leaf.is_floating_point())
    result, plain = (call(fastvae.mlp, [t, *leaves[1:]], "tanh") for t in (x, numbers))
    # A CPU that multiplies in float32 does not round x to less, which moves a sum of 20 terms by a rounding of each.
    exact = dtype in (torch.float64, torch.float32) or x.is_cuda
    if (of, dtype) == (torch.uint8, torch.float64):
        exact = not x.is_cuda  # torch's quotient by a number is the product with its inverse there
    unit = UNIT[dtype]
    torch.testing.assert_close(result, plain, rtol=0 if exact else 4 * unit, atol=0 if exact else 20 * unit)
    ours = grad(result.sum(), [x, *leaves[1:]] if x.requires_grad else leaves[1:])
    theirs = grad(plain.sum(), [numbers, *leaves[1:]] if x.requires_grad else leaves[1:])
    for leaf, actual, wanted in zip(leaves[:-6:-1], ours[::-1], theirs[::-1], strict=False):
        if exact and leaf is not leaves[0]:
            assert torch.equal(actual, wanted)
        else:  # the gradient of x has its dtype, of which a number of order 1 is rounded
            bound = 8 * max(unit, UNIT.get(of, 0))
            torch.testing.assert_close(actual.to(dtype), wanted, rtol=bound, atol=40 * unit + bound)
    assert not x.requires_grad or ours[0].dtype == of


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: torch.cat([x, x], -1).chunk(2, -1)[1],
        lambda x: torch.repeat_interleave(x, 2, -1)[..., ::2],
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    ],
)
def test_layouts_give_the_same(arrange: Callable[[Tensor], Tensor]) -> None:
    leaves = problem((20, 9, 4), (2, 6), torch.float32)
    arranged = [leaves[0], *leaves[1:3], *leaves[3:]]
    for i in (0, 1, 2):
        arranged[i] = arrange(leaves[i].detach()).requires_grad_()
    result, plain = call(fastvae.mlp, arranged), call(fastvae.mlp, leaves)
    # A product of transposed operands may add up in another order: 20 terms of order 1.
    torch.testing.assert_close(result, plain, rtol=1e-5, atol=1e-5)
    upstream = arrange(torch.rand_like(plain))
    for a, b in zip(grad(result, arranged, upstream), grad(plain, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    every_row_alike = torch.ones(()).expand_as(plain)
    for a, b in zip(
        grad(call(fastvae.mlp, leaves), leaves, every_row_alike),
        grad(call(fastvae.mlp, leaves).sum(), leaves),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("width", [0, 3])
def test_no_rows_and_no_units(rows: int, width: int) -> None:
    leaves = problem((4, width, 2), (rows,), torch.float32)
    exact = wide(leaves)
    result, expected = call(fastvae.mlp, leaves), call(reference.mlp, exact)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(grad(result.sum(), leaves), grad(expected.sum(), exact), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_changes_nothing(dtype: torch.dtype, activation: int) -> None:
    """As on a GPU: rows begin at multiples of 16 bytes, and what fills 16-bit operands up is zero."""
    x, *rest = (t.detach() for t in problem((30, 250, 500, 60), (11,), torch.float32))
    weights, biases = rest[:3], rest[3:]
    arguments = activation, dtype, True
    parts = [torch.ops.fastvae.mlp_forward(x, weights, biases, *arguments, padded) for padded in (False, True)]
    # Three products of up to 500 terms of order 1, whose order padding may change.
    torch.testing.assert_close(*(p[0] for p in parts), rtol=0, atol=32 * UNIT[dtype] * float(parts[0][0].abs().max()))
    assert parts[1][0].is_contiguous()
    kept = [t for t in (*parts[1][1], *parts[1][2]) if t.dim() == 2]
    assert kept
    assert all(t.stride(0) * t.element_size() % 16 == 0 for t in kept)
    if dtype == torch.bfloat16:
        for t, wide, deep in zip(
            parts[1][1] + parts[1][2], (32, 256, 504) * 2, (11,) * 3 + (256, 504, 64), strict=True
        ):
            assert t.shape == (deep, wide)
        for t, plain in zip(parts[1][1] + parts[1][2], parts[0][1] + parts[0][2], strict=True):
            if plain.dim() == 2:  # not of x itself
                assert not t[plain.shape[0] :].any()
                assert not t[:, plain.shape[1] :].any()
    traced = torch.ops.fastvae.mlp_forward(
        *(torch.utils._pytree.tree_map(lambda t: t.to("meta"), [x, weights, biases])), *arguments, True
    )
    layout = [[(t.shape, t.stride()) for t in torch.utils._pytree.tree_leaves(p)] for p in (traced, parts[1])]
    assert layout[0] == layout[1]


def test_layers_without_a_bias() -> None:
    x, first, second, bias, _ = problem((20, 9, 4), (6,), torch.float64)
    for biases in ([None, None], [bias, None]):
        given = [x, first, second, *(b for b in biases if b is not None)]
        result, expected = (f(x, [first, second], biases) for f in (fastvae.mlp, reference.mlp))
        torch.testing.assert_close(result, expected)
        for a, b in zip(grad(result.sum(), given), grad(expected.sum(), given), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", range(1, 2**5))
def test_what_is_frozen_gets_no_gradient_and_the_others_theirs(frozen: int) -> None:
    leaves = problem((20, 9, 4), (6,), torch.float32)
    full = grad(call(fastvae.mlp, leaves).sum(), leaves)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(not frozen >> i & 1)
    result = call(fastvae.mlp, leaves)
    assert result.requires_grad == (frozen < 2**5 - 1)
    if result.requires_grad:
        result.sum().backward()
    for leaf, right in zip(leaves, full, strict=True):
        assert torch.equal(leaf.grad, right) if leaf.requires_grad else leaf.grad is None


def test_what_is_not_finite_goes_through() -> None:
    """A ReLU that made zeros of NaN would hide a model that has diverged."""
    for rows in (1, 2000):
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.zeros(rows, 8, dtype=dtype), torch.eye(8, dtype=dtype)
            for value in (torch.nan, torch.inf):
                bias = torch.full((8,), value, dtype=dtype)
                assert not fastvae.mlp(x, [weight, weight], [bias, None]).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_are_the_same_at_every_run_and_number_of_threads(dtype: torch.dtype) -> None:
    leaves = problem((64, 1000, 33), (700,), dtype)
    threads, seen = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            # The biases' sums alone: the order of a product is its library's.
            seen.append(grad(call(fastvae.mlp, leaves).sum(), leaves)[4])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("of", [torch.uint8, torch.float32], ids=str)
def test_autocast_rounds_operands_and_no_gradient_of_a_weight(of: torch.dtype) -> None:
    leaves = problem((20, 33, 4), (64,), torch.float32)
    x = torch.randint(0, 256, (64, 20), dtype=of) if of == torch.uint8 else leaves[0]
    given = [t for t in (x, *leaves[1:]) if t.requires_grad]
    device = x.device.type
    with torch.autocast(device, dtype=torch.bfloat16):
        # Not of a ReLU, which a rounding may switch.
        result = call(fastvae.mlp, [x, *leaves[1:]], "tanh")
        expected = call(reference.mlp, [x, *leaves[1:]], "tanh")
    assert result.dtype == expected.dtype == torch.bfloat16
    # Two roundings for each of three tensors and for each of two layers.
    size = float(expected.detach().float().abs().max())
    assert (result - expected).abs().max() <= 12 * UNIT[torch.bfloat16] * size
    upstream = torch.randn_like(result)
    for leaf, actual, right in zip(given, grad(result, given, upstream), grad(expected, given, upstream), strict=True):
        assert actual.dtype == leaf.dtype
        assert (actual - right).abs().max() <= 24 * UNIT[torch.bfloat16] * float(right.abs().max())
        if leaf is not x and (device == "cuda" or leaf.dim() == 1):
            assert not torch.equal(actual, actual.bfloat16().float())


def test_double_precision_stays_under_autocast() -> None:
    leaves = problem((20, 9, 4), (6,), torch.float64)
    with torch.autocast(leaves[0].device.type, dtype=torch.bfloat16):
        result = call(fastvae.mlp, leaves)
    assert torch.equal(result, call(fastvae.mlp, leaves))


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    class Kept(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.fastvae.mlp_forward.default:
                kept.append(len(result[1]))
            return result

    leaves, kept = problem((20, 9, 4), (6,), torch.float32), []
    with Kept():
        call(fastvae.mlp, leaves)
        with torch.no_grad():
            call(fastvae.mlp, leaves)
        call(fastvae.mlp, [t.detach() for t in leaves])
    assert kept == [2, 0, 0]


@each_activation
def test_functorch_grad_vmap_and_jvp(activation: str | None) -> None:
    leaves = problem((4, 5, 3), (6,), torch.float64)
    inputs = [t.detach() for t in leaves]
    total = lambda *t: call(fastvae.mlp, t, activation).sum()  # noqa: E731
    expected = grad(total(*leaves), leaves)
    for a, b in zip(torch.func.grad(total, argnums=tuple(range(5)))(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b)
    stacked = [torch.stack([t, 2 * t]) for t in inputs]
    values = torch.func.vmap(lambda *t: call(fastvae.mlp, t, activation))(*stacked)
    torch.testing.assert_close(values[0], call(fastvae.mlp, inputs, activation))
    _, tangent = torch.func.jvp(total, tuple(inputs), tuple(torch.ones_like(t) for t in inputs))
    torch.testing.assert_close(tangent, sum(g.sum() for g in expected))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_and_exported_it_stays_one_operator(autocast: bool) -> None:
    torch._dynamo.reset()
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.common import aot_autograd

        def note(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
            seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function" and "mm" in str(n.target))
            seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function" and "mlp" in str(n.target))
            return graph.forward

        return aot_autograd(fw_compiler=note)(graph, inputs)

    def step(*t: Tensor) -> Tensor:
        with torch.autocast(t[0].device.type, dtype=torch.bfloat16, enabled=autocast):
            return call(fastvae.mlp, t)

    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=True)
    for rows in (3, 6):
        leaves = problem((20, 9, 4), (rows,), torch.float32)
        result, expected = compiled(*leaves), step(*leaves)
        assert torch.equal(result, expected)
        for a, b in zip(grad(result.sum(), leaves), grad(expected.sum(), leaves), strict=True):
            assert torch.equal(a, b)
    assert set(seen) == {"fastvae.mlp_forward.default", "fastvae.mlp_backward.default"}
    network = MLP(nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 4))
    x = torch.rand(3, 20)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


@pytest.mark.parametrize("mask", [(True, True), (False, True), (True, False), (False, False)], ids=str)
def test_flops_are_those_of_the_products(mask: tuple[bool, bool]) -> None:
    """2 for each multiplication and addition, as torch counts them module by module."""
    counts = []
    layers = [nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4)]
    layers[0].requires_grad_(mask[1])
    for network in (MLP(*layers), nn.Sequential(*layers)):
        x = torch.rand(5, 20, requires_grad=mask[0])
        with FlopCounterMode(display=False) as counter:
            network(x).sum().backward()
        rows = counter.get_flop_counts()
        counts.append((counter.get_total_flops(), [rows[f"{type(network).__name__}.{i}"] for i in (0, 2, 4)]))
    assert counts[0] == counts[1]
    with FlopCounterMode(display=False) as counter:
        call(fastvae.mlp, [x, *(f.weight for f in layers[::2]), *(f.bias for f in layers[::2])]).sum().backward()
    assert counter.get_total_flops() == counts[0][0] > 0


def tower() -> list[nn.Module]:
    return [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)]


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def hooked() -> list[nn.Module]:
    layers = tower()
    layers[2].register_forward_hook(lambda module, given, result: 2 * result)
    return layers


def hooked_between() -> list[nn.Module]:
    layers = tower()
    layers[1].register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    return layers


def pruned() -> list[nn.Module]:
    layers = tower()
    prune.l1_unstructured(layers[0], "weight", amount=0.5)
    return layers


def biased_in_less() -> list[nn.Module]:
    layers = tower()
    layers[2] = nn.Linear(5, 4)
    layers[2].bias = nn.Parameter(layers[2].bias.detach().bfloat16())
    return layers


# The layers, and how many of them are by themselves.
NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], list[int]]] = {
    "stack": (tower, [3]),
    "one layer": (lambda: tower()[:1], [1]),
    "an activation at both ends": (lambda: [nn.ReLU(), *tower(), nn.ReLU()], [3]),
    "two activations": (lambda: [*tower(), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)], [3, 2]),
    "norm and dropout": (lambda: [*tower()[:3], nn.LayerNorm(4), *tower()[3:4], nn.Dropout(0.0), tower()[4]], [2, 1]),
    "another activation": (lambda: [nn.Linear(6, 5), nn.GELU(), *tower()[2:]], [1, 2]),
    "hook": (hooked, [1, 1]),
    "hook of an activation": (hooked_between, [1, 2]),
    "pruned": (pruned, [2]),
    "parametrised": (lambda: [parametrizations.orthogonal(tower()[0]), *tower()[1:]], [2]),
    "subclass": (lambda: [*tower()[:2], Adapted(5, 4), *tower()[3:]], [1, 1]),
    "nothing": (list, []),
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers the operator got each time."""
    layers: list[int] = []
    operator = fastvae.ops.mlp
    monkeypatch.setattr(fastvae.ops, "mlp", lambda x, *a, **o: layers.append(len(a[0])) or operator(x, *a, **o))
    return layers


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_runs_in_stacks_and_is_the_same(name: str, seen: list[int]) -> None:
    make, stacks = NETWORKS[name]
    plain = nn.Sequential(*make()).double()
    network = MLP(*plain)
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(network(x), plain(x))
    assert seen == stacks
    assert list(network.state_dict()) == list(plain.state_dict())
    if stacks:
        parameters = list(network.parameters())
        ours, theirs = (grad(net(x).square().sum(), parameters) for net in (network, plain))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    if name != "pruned":  # which torch cannot copy
        torch.testing.assert_close(copy.deepcopy(network)(x), plain(x))


def test_a_network_is_called_and_put_together_as_a_sequential_is() -> None:
    plain, x = nn.Sequential(*tower()), torch.rand(2, 6)
    network = MLP(*plain)
    torch.testing.assert_close(network(input=x), plain(input=x))
    for joined, expected in (
        (network[:1], plain[:1]),
        (network + plain, plain + plain),
        (network * 2, plain * 2),
        (2 * network, 2 * plain),
    ):
        assert type(joined) is MLP
        assert list(joined) == list(expected)
        assert list(joined.state_dict()) == list(expected.state_dict())
    with pytest.raises(ValueError, match="supports only objects of Sequential class"):
        network + 1


@pytest.mark.parametrize(
    ("make", "stacks"),
    [(lambda: [*tower()[:4], tower()[4].bfloat16()], [2, 1]), (biased_in_less, [1, 1])],
    ids=["weights", "bias"],
)
def test_layers_of_several_dtypes_run_under_autocast(
    make: Callable[[], list[nn.Module]], stacks: list[int], seen: list[int]
) -> None:
    plain = nn.Sequential(*make())
    x = torch.rand(2, 6)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(MLP(*plain)(x), plain(x))
    assert seen == stacks


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.to(torch.complex64),
        lambda x: x.int(),
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: torch.nested.as_nested_tensor([x, x[:1]]),
        lambda x: torch.nested.as_nested_tensor([x, x[:1]], layout=torch.jagged),
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: x.to_mkldnn() if x.is_cpu else x,
        lambda x: None,
    ],
    ids=["complex", "int", "float8", "nested", "jagged", "coo", "csr", "mkldnn", "none"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_what_the_operator_does_not_take_goes_through_the_layers(
    arrange: Callable[[Tensor], object], dtype: torch.dtype
) -> None:
    plain, x = nn.Sequential(*tower()).to(dtype), arrange(torch.rand(2, 6))
    try:
        expected = plain(x)
    except (RuntimeError, TypeError) as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            MLP(*plain)(x)
        return
    result = MLP(*plain)(x)
    assert result.dtype == expected.dtype
    if expected.is_mkldnn:
        result, expected = result.to_dense(), expected.to_dense()
    for a, b in zip(result.unbind(), expected.unbind(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_first_layer_takes_what_it_takes() -> None:
    class OfOne(nn.Module):
        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return given["x"]

    for first, given in (
        (nn.Embedding(10, 6), torch.tensor([1, 2])),
        (OfOne(), {"x": torch.rand(2, 6)}),
        (nn.Flatten(), torch.rand(2, 3, 2)),
    ):
        plain = nn.Sequential(first, *tower())
        torch.testing.assert_close(MLP(*plain)(given), plain(given))
    indices = torch.arange(3)
    assert MLP()(indices) is indices


def test_sparse_weights_have_products_of_their_own(seen: list[int]) -> None:
    plain, x = nn.Sequential(*tower()), torch.rand(2, 6)
    expected = plain(x)
    plain[2].weight = nn.Parameter(plain[2].weight.detach().to_sparse_csr(), requires_grad=False)
    torch.testing.assert_close(MLP(*plain)(x), expected)
    assert seen == [1, 1]


@pytest.mark.parametrize("of", [torch.uint8, torch.float32], ids=str)
def test_what_traces_modules_traces_the_layers(of: torch.dtype) -> None:
    network, x = MLP(*tower()), torch.randint(0, 256, (2, 6)).to(of)
    torch.testing.assert_close(torch.jit.trace(network, x)(x), network(x))
    graphs = [torch.fx.symbolic_trace(traced).graph for traced in (network, nn.Sequential(*network))]
    nodes = [[(node.op, node.target) for node in graph.nodes] for graph in graphs]
    assert nodes[0] == nodes[1]


def test_its_layers_can_be_scripted() -> None:
    network, x = MLP(*tower()), torch.rand(2, 6)
    scripted = torch.jit.script(nn.Sequential(*network))
    torch.testing.assert_close(scripted(x), network(x))
    nn.init.zeros_(network[4].weight)
    torch.testing.assert_close(scripted(x), network[4].bias.expand(2, -1))


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_global_hooks_see_every_layer(kind: str) -> None:
    network, x, seen = MLP(*tower()), torch.rand(2, 6, requires_grad=True), []
    expected = grad(network(x).sum(), x)
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    with register(lambda module, *_: seen.append(module)):
        torch.testing.assert_close(grad(network(x).sum(), x), expected)
    assert set(seen) == {network, *network}


@pytest.mark.parametrize("name", ["stack", "hook", "pruned", "an activation at both ends", "nothing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_network_takes_bytes(name: str, dtype: torch.dtype) -> None:
    network = MLP(*NETWORKS[name][0]()).to(dtype)
    x = torch.randint(0, 256, (5, 6), dtype=torch.uint8)
    own = dtype if list(network) else torch.float32
    assert network(x).dtype == own
    torch.testing.assert_close(network(x), network((x.double() / 255).to(own)))


def test_sharded_weights_have_products_of_their_own(seen: list[int]) -> None:
    class Sharded(Tensor):
        pass

    network = MLP(*tower())
    network[2].weight = nn.Parameter(network[2].weight.detach().as_subclass(Sharded))
    network(torch.rand(2, 6))
    assert seen == [1, 1]
