"""The memory of large results: it is used again, and no two results share it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fastvae
from fastvae.training.memory import kibibytes

LARGE = (3000, 3000)  # 36 MB of float32: malloc would map it anew each time
SMALL = (600, 1000)  # 2.4 MB


def draw(seed: int, size: tuple[int, int] = LARGE) -> torch.Tensor:
    zero = torch.zeros(size)
    return fastvae.reparameterize(zero, zero, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_memory_of_a_large_result_is_used_again(size: tuple[int, int]) -> None:
    first = draw(0, size)
    address = first.data_ptr()
    del first
    assert draw(1, size).data_ptr() == address


def resident() -> int:
    return 1024 * kibibytes("/proc/self/status", "VmRSS")


def test_idle_memory_is_bounded() -> None:
    """256 MiB in blocks of less than 32 MiB, however many are given back at once; 30 of 24 MB are 720."""
    zero = torch.zeros(2000, 3000)
    fastvae.reparameterize(zero, zero)
    before = resident()
    results = [fastvae.reparameterize(zero, zero) for _ in range(30)]
    assert resident() - before > 600e6
    results.clear()
    assert resident() - before < 300e6


def test_memory_that_nobody_asks_for_again_is_given_back() -> None:
    large, small = torch.zeros(2001, 3000), torch.zeros(512, 1024)
    results = [fastvae.reparameterize(large, large) for _ in range(8)]
    before = resident()
    del results
    for _ in range(4200):
        fastvae.reparameterize(small, small)
    assert before - resident() > 150e6


FAULTS = """
import resource, statistics, torch
from fastvae.models import VAE
from fastvae.training.memory import keep_freed_memory
assert keep_freed_memory()
model = VAE(784, (1000, 500), 30)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
x = torch.rand(2048, 784)
def step():
    optimizer.zero_grad()
    model.loss(x).loss.backward()
    optimizer.step()
for _ in range(10):
    step()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(statistics.median(faults() for _ in range(20)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_training_step_takes_no_fresh_pages() -> None:
    """Without the C library's keeping and ours each takes thousands.

    The heap of a thread still grows now and then, once in tens of steps, as threads come to their work in another
    order: the median says what a step takes.
    """
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert float(result.stdout) == 0


def test_memory_of_a_result_in_use_is_not_shared() -> None:
    results = [draw(seed) for seed in range(20)]  # more than are kept idle
    copies = [z.clone() for z in results]
    view = results.pop()[1]
    assert len({z.data_ptr() for z in results}) == 19
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
