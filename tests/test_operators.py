"""What every operator keeps: values, derivatives, layouts, transforms. One table of calls, `cases.CASES`."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from cases import CASES, FLOATS, SEED, SIZES, Case, as_tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import UNIT, assert_within, unit
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.usefixtures("device")

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def upstream(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients that differ from row to row, the same at every call."""
    return [
        torch.linspace(0.5, 1.5, max(1, o.numel()), dtype=torch.float64)[: o.numel()].reshape(o.shape) for o in outputs
    ]


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    grads = [g.to(o.dtype) for g, o in zip(upstream(outputs), outputs, strict=True)]
    return torch.autograd.grad(outputs, inputs, grads)


def bound(expected: Tensor, case_size: int, stored: torch.dtype, computed: torch.dtype) -> Tensor:
    """Bound for any case: n roundings of the largest result. The operators' own tests hold them to sharper ones."""
    depth = 20 + min(case_size, 1024) / 4
    scale = expected.abs().max().clamp_min(1.0) if expected.numel() else torch.ones(())
    return (depth * unit(computed) + UNIT[stored]) * scale * 4


@each_case
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_and_gradients_match_reference(case: Case, size: int, dtype: torch.dtype) -> None:
    inputs = leaves(case.inputs(3, (size,), dtype))
    wide = leaves([t.double() for t in inputs])
    outputs, expected = case.call(*inputs), case.expected(*wide)
    for actual, right in zip(outputs, expected, strict=True):
        is_sample = actual.shape[-2:] == (3, size)
        assert actual.dtype == (dtype if is_sample or dtype == torch.float64 else torch.float32)
        assert_within(actual, right, bound(right, size, actual.dtype, dtype))
    right_grads = gradients(expected, wide)
    for actual, right in zip(gradients(outputs, inputs), right_grads, strict=True):
        assert actual.dtype == dtype
        assert_within(actual, right, bound(right, size, dtype, dtype) + (2.0**-24 if dtype == torch.float16 else 0))


@each_case
@pytest.mark.parametrize("event", [(), (2,), (2, 3, 2)], ids=str)
def test_derivatives_pass_gradcheck(case: Case, event: tuple[int, ...]) -> None:
    inputs = leaves(case.inputs(2, event))
    # The first backward pass takes what the forward pass wrote, the second computes it in another loop, where the
    # compiler may join other products and sums: a few roundings.
    assert gradcheck(case.call, inputs, check_batched_grad=True, nondet_tol=8 * 2.0**-53)
    assert gradgradcheck(case.call, inputs)


@each_case
@pytest.mark.parametrize("shape", [(0, (5,)), (3, (0,)), (1, ()), (1, (1,)), (2, (1, 1))], ids=str)
def test_empty_and_single(case: Case, shape: tuple[int, tuple[int, ...]]) -> None:
    inputs = leaves(case.inputs(*shape, torch.float32))
    wide = leaves([t.double() for t in inputs])
    outputs, expected = case.call(*inputs), case.expected(*wide)
    for actual, right in zip(outputs, expected, strict=True):
        torch.testing.assert_close(actual.double(), right, rtol=1e-5, atol=1e-6, equal_nan=True)
    for actual, right in zip(gradients(outputs, inputs), gradients(expected, wide), strict=True):
        torch.testing.assert_close(actual.double(), right, rtol=1e-5, atol=1e-6)


def strided_rows(x: Tensor) -> Tensor:
    """Half of a chunk: dense rows with a batch stride of twice their length."""
    return torch.cat([x, x.flip(-1)], dim=-1).chunk(2, -1)[0] if x.dim() == 2 else torch.cat([x, x], 1).chunk(2, 1)[0]


LAYOUTS = {
    "chunk": (strided_rows, True),
    "every_other_row": (
        lambda x: torch.repeat_interleave(x, 2, dim=-2 if x.dim() < 4 else 0)[..., ::2, :],
        True,
    ),
    "event_strided": (lambda x: torch.repeat_interleave(x, 2, dim=-1)[..., ::2], False),
    "offset": (lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape), True),
}


@each_case
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [2, 31, 784])
def test_layouts_give_the_same_and_dense_rows_are_not_copied(case: Case, layout: str, size: int) -> None:
    arrange, in_place = LAYOUTS[layout]
    inputs = leaves(case.inputs(3, (size,), torch.float32))
    arranged = [arrange(t.detach()).requires_grad_() if t.dim() == 2 else t for t in inputs]
    for a, t in zip(arranged, inputs, strict=True):
        assert torch.equal(a, t)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        outputs = case.call(*arranged)
        grads = gradients(outputs, arranged)
    arranged_any = any(t.dim() == 2 for t in inputs)
    copied = "aten::contiguous" in {e.key for e in profile.key_averages()}
    assert copied == (arranged_any and not in_place)
    plain = case.call(*inputs)
    for a, b in zip(outputs, plain, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(grads, gradients(plain, inputs), strict=True):
        assert torch.equal(a, b)


@each_case
def test_images_chunked_from_moments_and_channels_last(case: Case) -> None:
    inputs = leaves(case.inputs(2, (4, 5, 3), torch.float32))
    plain = case.call(*inputs)
    expected = gradients(plain, inputs)
    for arrange in (
        lambda t: torch.cat([t, t], -3).chunk(2, -3)[0] if t.dim() > 2 else t,
        lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t,
        lambda t: t.mT.contiguous().mT if t.dim() > 2 else t,
    ):
        arranged = [arrange(t.detach()).requires_grad_() for t in inputs]
        outputs = case.call(*arranged)
        for a, b in zip(outputs, plain, strict=True):
            # Sums may run in another order: 60 terms of order 10 within a few roundings of each.
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
        # So do those of rows of shares, in each of which N = 200 times a share is found from such a sum.
        sums = any(word in case.name for word in ("multinomial", "library"))
        near = {"rtol": 1e-5, "atol": 1e-4} if sums else {"rtol": 1e-6, "atol": 1e-6}
        for a, b in zip(gradients(outputs, arranged), expected, strict=True):
            torch.testing.assert_close(a, b, **near)


@each_case
def test_only_the_wanted_gradients_are_computed(case: Case) -> None:
    inputs = case.inputs(3, (17,), torch.float32)
    full = leaves(inputs)
    all_grads = gradients(case.call(*full), full)
    for i in range(len(inputs)):
        one = [t.clone().requires_grad_(i == j) for j, t in enumerate(inputs)]
        outputs = [o for o in case.call(*one) if o.requires_grad]
        reference_outputs = case.call(*full)
        keep = [j for j, o in enumerate(case.call(*one)) if o.requires_grad]
        grads = [upstream(reference_outputs)[j].to(reference_outputs[j].dtype) for j in keep]
        (grad,) = torch.autograd.grad(outputs, [one[i]], grads)
        torch.testing.assert_close(grad, all_grads[i], rtol=1e-6, atol=1e-7)


@each_case
def test_an_output_may_go_unused(case: Case) -> None:
    inputs = leaves(case.inputs(3, (17,), torch.float32))
    wide = leaves([t.detach().double() for t in inputs])
    expected = case.expected(*wide)
    for i, output in enumerate(case.call(*inputs)):
        if not output.requires_grad:
            continue
        grads = upstream((output,))[0].float()
        actual = torch.autograd.grad(output, inputs, grads, retain_graph=True, allow_unused=True)
        right = torch.autograd.grad(expected[i], wide, upstream((output,)), retain_graph=True, allow_unused=True)
        for a, b in zip(actual, right, strict=True):
            assert a is not None or b is None or not b.any()
            if a is not None:
                torch.testing.assert_close(
                    a.double(), torch.zeros_like(a).double() if b is None else b, rtol=1e-5, atol=1e-5
                )


@each_case
def test_passes_opcheck(case: Case) -> None:
    """Schema, fake tensors, autograd registration and compiled dispatch of the operators under the public call."""
    inputs = leaves(case.inputs(3, (17,), torch.float32))
    calls: list[tuple[object, tuple[object, ...]]] = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.namespace == "fastvae":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    with Record():
        outputs = case.call(*inputs)
        gradients(outputs, inputs)
    is_scalar = all(o.dim() == 0 for o in outputs)  # its gradients may come from the forward pass
    assert len(calls) >= (1 if is_scalar else 2), calls
    for func, args in calls:
        random = torch.Tag.nondeterministic_seeded in func.tags  # type: ignore[attr-defined]
        utils = ["test_schema", "test_faketensor"] + ([] if random else ["test_aot_dispatch_dynamic"])
        detached = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        torch.library.opcheck(func, detached, test_utils=utils)


@each_case
def test_compiles_without_breaks_for_any_size(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.function, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, size in ((3, 17), (5, 31), (4, 784)):
        inputs = leaves(case.inputs(batch, (size,), torch.float32))
        torch.manual_seed(SEED)
        outputs = as_tuple(compiled(*inputs))
        plain = case.call(*inputs)
        for a, b in zip(outputs, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        for a, b in zip(gradients(outputs, inputs), gradients(plain, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@each_case
def test_threads_do_not_change_the_result(case: Case) -> None:
    before = torch.get_num_threads()
    results = []
    for event in ((5,), (784,), (3, 100, 100)):
        inputs = leaves(case.inputs(64, event, torch.float32))
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            outputs = case.call(*inputs)
            results.append(tuple(outputs) + gradients(outputs, inputs))
        torch.set_num_threads(before)
        one, two, eight = results[-3:]
        for a, b, c in zip(one, two, eight, strict=True):
            if a.dim() == 0:  # torch's own mean over the batch may depend on threads
                torch.testing.assert_close(a, b)
                torch.testing.assert_close(a, c)
            else:
                assert torch.equal(a, b)
                assert torch.equal(a, c)


@each_case
def test_forward_mode_is_refused(case: Case) -> None:
    inputs = case.inputs(2, (3,))
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
        with pytest.raises(RuntimeError, match=r"forward-mode derivatives need torch\.func"):
            case.call(*duals)


@each_case
def test_checkpointed_recomputation_is_the_same(case: Case) -> None:
    inputs, again = (leaves(case.inputs(3, (17,))) for _ in range(2))
    for a, b in zip(again, inputs, strict=True):
        a.data.copy_(b)
    direct = gradients(case.call(*inputs), inputs)
    torch.manual_seed(SEED)
    outputs = torch.utils.checkpoint.checkpoint(case.function, *again, use_reentrant=False)
    for a, b in zip(gradients(as_tuple(outputs), again), direct, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("early_stop", [False, True])
@each_case
def test_checkpoints_leave_nothing_behind(case: Case, early_stop: bool) -> None:
    """A node that kept a result of its own would keep itself, and what else it keeps, when recomputed."""
    made = []

    def function(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        doubled = [2 * t for t in tensors]
        made.extend(weakref.ref(t) for t in doubled)
        return case.function(*doubled)

    inputs = leaves(case.inputs(3, (17,)))
    with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
        gradients(as_tuple(torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)), inputs)
    gc.collect()
    assert len(made) == 2 * len(inputs)  # once forward, and once again
    assert not any(reference() is not None for reference in made)


@each_case
def test_results_may_be_written_to(case: Case) -> None:
    """As those of plain PyTorch: the derivative of what comes after is right, and none is refused."""
    inputs = leaves(case.inputs(3, (17,), torch.float32))
    written = case.call(*inputs)
    changed = [o.mul_(0.5) for o in written if o.requires_grad]
    grads = torch.autograd.grad(sum(o.sum() for o in changed), inputs)
    kept = [o for o in case.call(*inputs) if o.requires_grad]
    expected = torch.autograd.grad(sum(0.5 * o.sum() for o in kept), inputs)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)


@each_case
def test_retained_graph_gives_the_same_gradient_twice(case: Case) -> None:
    inputs = leaves(case.inputs(3, (17,), torch.float32))
    outputs = case.call(*inputs)
    total = sum(o.sum() for o in outputs)
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(total, inputs)
    for a, b in zip(second, kept, strict=True):
        assert torch.equal(a, b)


dtypes = st.sampled_from(FLOATS)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(CASES),
    batch=st.integers(0, 9),
    event=st.lists(st.integers(0, 7), max_size=3),
    data=st.data(),
)
def test_any_shape_and_mixture_of_dtypes(case: Case, batch: int, event: list[int], data: st.DataObject) -> None:
    inputs = leaves([t.to(data.draw(dtypes)) for t in case.inputs(batch, event)])
    wide = leaves([t.double() for t in inputs])
    # elbo_loss computes each of its two terms in the type that their own inputs ask for.
    computed = torch.float64 if all(t.dtype == torch.float64 for t in inputs) else torch.float32
    outputs, expected = case.call(*inputs), case.expected(*wide)
    size = torch.Size(event).numel()
    for actual, right in zip(outputs, expected, strict=True):
        assert_within(actual, right, bound(right, size, actual.dtype, computed))
    for actual, right, source in zip(gradients(outputs, inputs), gradients(expected, wide), inputs, strict=True):
        assert actual.dtype == source.dtype
        # With mixed dtypes an upstream gradient may have been rounded to z's dtype, and again to mu's.
        narrow = max(UNIT[t.dtype] for t in (source, *outputs))
        assert_within(
            actual,
            right,
            8 * (narrow + unit(computed) * (20 + size)) * right.abs().max().clamp_min(1) if right.numel() else right,
        )


# Magnitudes whose squares and exponentials stay finite in float32, as the reference's do in double.
reals = st.floats(-40, 40, width=32)


@settings(max_examples=200, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_any_values(case: Case, data: st.DataObject) -> None:
    shapes = [t.shape for t in case.inputs(2, (3,))]
    inputs = []
    for kind, shape in zip(case.kinds, shapes, strict=True):
        limits = {
            "unit": st.floats(0, 1, width=32),
            "scalar": st.floats(0.0625, 16, width=32),
            # A loss of counts is a sum of terms that may be so many times as large as it.
            "counts": st.integers(0, 6).map(float),
        }
        values = limits.get(kind, reals)
        flat = data.draw(st.lists(values, min_size=shape.numel(), max_size=shape.numel()))
        inputs.append(torch.tensor(flat).reshape(shape))
    leaf, wide = leaves(inputs), leaves([t.double() for t in inputs])
    outputs, expected = case.call(*leaf), case.expected(*wide)
    # An exponential's argument is rounded: |argument| u, here at most 80 u, relative to the largest part of a result,
    # which is at most the largest of all results, one of the inputs, or the difference that cancelled them.
    scale = max(float(t.detach().abs().max()) for t in (*expected, *wide)) + 1
    limit = torch.tensor((80 + 20 + 12) * UNIT[torch.float32] * scale, dtype=torch.float64)
    for actual, right in zip(outputs, expected, strict=True):
        assert_within(actual, right, limit)
    right_grads = gradients(expected, wide)
    scale = max(scale, *(float(g.abs().max()) for g in right_grads))
    limit = torch.tensor((80 + 20 + 12) * UNIT[torch.float32] * scale, dtype=torch.float64)
    for actual, right in zip(gradients(outputs, leaf), right_grads, strict=True):
        assert_within(actual, right, limit)
