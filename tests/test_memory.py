"""The memory of large results: it is used again, and no two results share it."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

import fastvae

LARGE = (3000, 3000)  # 36 MB of float32: malloc would map it anew each time


def draw(seed: int) -> torch.Tensor:
    zero = torch.zeros(LARGE)
    return fastvae.reparameterize(zero, zero, generator=torch.Generator().manual_seed(seed))


def test_memory_of_a_large_result_is_used_again() -> None:
    first = draw(0)
    address = first.data_ptr()
    del first
    assert draw(1).data_ptr() == address


def test_memory_of_a_result_in_use_is_not_shared() -> None:
    results = [draw(seed) for seed in range(12)]  # more than are kept idle
    copies = [z.clone() for z in results]
    view = results.pop()[1]
    assert len({z.data_ptr() for z in results}) == 11
    del results[0]
    draw(99)
    assert all(torch.equal(a, b) for a, b in zip(results, copies[1:-1], strict=True))
    assert torch.equal(view, copies[-1][1])  # a view keeps its whole memory
    del results, copies
    assert draw(5).isfinite().all()


def test_a_large_result_can_be_resized() -> None:
    z = draw(0)
    kept = z.clone()
    z.resize_(4000, 3000)
    assert torch.equal(z[:3000], kept)


def test_the_profiler_counts_large_results() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        z = draw(0)
    sizes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert any(z.nbytes <= size < z.nbytes + (2 << 20) for size in sizes)
    assert any(size == z.nbytes for size in sizes)  # the zeros, by torch's own allocator


def test_gradients_of_large_inputs_keep_their_order() -> None:
    logits = torch.randn(2, 3, 1300, 1300).to(memory_format=torch.channels_last).requires_grad_()
    target = torch.rand(2, 3, 1300, 1300).to(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(fastvae.sigmoid_cross_entropy(logits, target).sum(), logits)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient, logits.sigmoid() - target)
