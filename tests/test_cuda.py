"""What only a GPU has: noise equal to the CPU's, graph capture, launches, no waiting, streams, many devices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastvae
from fastvae import reference

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture(scope="module")
def gpu(device: str) -> None:
    if device == "cpu":
        pytest.skip("a test of the GPU")


def moments(*shape: int) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for _ in range(2)]


def kernels(function: Callable[[], object]) -> list[str]:
    """Names of what a call runs on the GPU, copies and fills included."""
    function()  # compiled modules are loaded at the first call
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    return [e.name for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 7), (100, 32), (5, 4097)], ids=str)
def test_noise_is_the_cpus_for_one_key(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Up to the rounding of multiply-add, as between instruction sets."""
    zero = torch.zeros(shape)
    z, key = torch.ops.fastvae.reparameterize_forward(zero, zero, None, None, None)
    normals = torch.ops.fastvae.normal(key, shape, dtype)
    torch.testing.assert_close(
        normals.cpu(),
        torch.ops.fastvae.normal(key.cpu(), shape, dtype),
        rtol=0,
        atol={4: 2e-6, 8: 1e-14}[dtype.itemsize],
    )
    torch.testing.assert_close(z.double(), normals.double(), rtol=0, atol=2e-6)


def test_noise_has_another_key_than_torchs() -> None:
    """The same generator serves both: under one key, some of their numbers would be the same."""
    torch.manual_seed(1)
    zero = torch.zeros(2, 3)
    keys = [torch.ops.fastvae.reparameterize_forward(zero, zero, None, None, None)[1] for _ in range(2)]
    assert all(int(key[0]) != torch.cuda.initial_seed() for key in keys)
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_a_replayed_graph_draws_anew() -> None:
    mu, logvar = (t.detach() for t in moments(64, 32))

    def draw() -> Tensor:
        return fastvae.reparameterize(mu, logvar)

    draw()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first, second = draw(), draw()
    results = []
    for _ in range(3):
        graph.replay()
        results += [first.clone(), second.clone()]
    for i, a in enumerate(results):
        assert a.isfinite().all()
        assert not any(torch.equal(a, b) for b in results[i + 1 :])
    torch.manual_seed(3)
    graph.replay()
    again = first.clone()
    torch.manual_seed(3)
    graph.replay()
    assert torch.equal(first, again)


def test_a_training_step_is_captured_and_replayed() -> None:
    encoder, decoder = torch.nn.Linear(784, 64), torch.nn.Linear(32, 784)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, capturable=True)
    x = torch.zeros(100, 784, dtype=torch.uint8)
    x[:50, :392] = 255  # two kinds of images

    def step() -> Tensor:
        optimizer.zero_grad()
        mu, logvar = encoder(x / 255).chunk(2, -1)
        loss = fastvae.elbo_loss(decoder(fastvae.reparameterize(mu, logvar)), x, mu, logvar).loss
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(200):
        graph.replay()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


def forward_and_backward(call: Callable[..., object], *inputs: Tensor) -> Callable[[], object]:
    def run() -> object:
        outputs = call(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [t for t in inputs if t.requires_grad]
        return torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])

    return run


CALLS: dict[str, Callable[[], tuple[Callable[..., object], list[Tensor]]]] = {
    "reparameterize": lambda: (fastvae.reparameterize, moments(128, 32)),
    "gaussian_kl": lambda: (fastvae.gaussian_kl, moments(128, 32)),
    "sample_kl": lambda: (fastvae.sample_kl, moments(128, 32)),
    "sigmoid_cross_entropy": lambda: (
        fastvae.sigmoid_cross_entropy,
        [torch.randn(128, 784, requires_grad=True), torch.rand(128, 784)],
    ),
}
MORE_CALLS: dict[str, Callable[[], tuple[Callable[..., object], list[Tensor]]]] = {
    **CALLS,
    "sample_kl_packed": lambda: (fastvae.sample_kl_packed, moments(128, 32)[:1]),
    "linear_sigmoid_cross_entropy": lambda: (
        lambda hidden, weight, x: fastvae.linear_sigmoid_cross_entropy(hidden, weight, None, x),
        [torch.randn(64, 32, requires_grad=True), torch.randn(784, 32, requires_grad=True), torch.rand(64, 784)],
    ),
    "mlp": lambda: (
        lambda x, first, second, bias: fastvae.mlp(x, [first, second], [bias, None]),
        [torch.randn(size, requires_grad=True) for size in ((64, 784), (100, 784), (20, 100), (100,))],
    ),
    "gaussian_nll": lambda: (
        lambda mean, x, sigma: fastvae.gaussian_nll(mean, x, sigma=sigma),
        [torch.randn(9, 784, requires_grad=True), torch.rand(9, 784), torch.tensor(0.5, requires_grad=True)],
    ),
    "elbo_loss": lambda: (
        lambda *t: fastvae.elbo_loss(*t).loss,
        [torch.randn(64, 784, requires_grad=True), torch.rand(64, 784), *moments(64, 8)],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_forward_and_backward_are_one_launch_each(name: str) -> None:
    call, inputs = CALLS[name]()
    assert len([k for k in kernels(lambda: call(*inputs)) if "walk" in k]) == 1
    assert len(kernels(lambda: call(*(t.detach() for t in inputs)))) == 1
    both = [k for k in kernels(forward_and_backward(call, *inputs)) if "walk" in k]
    assert len(both) == 2, both


def test_rows_of_an_odd_length_are_read_in_vectors_where_nothing_is_by_row() -> None:
    mu, logvar = moments(128, 50)
    (name,) = kernels(lambda: fastvae.reparameterize(mu.detach(), logvar.detach()))
    assert "Stored<float, float>" in name


def test_elbo_loss_takes_three_launches_forward_and_two_backward() -> None:
    """Both terms' rows, their totals; and backward the scaling of a gradient that is there, and KL's."""
    call, inputs = MORE_CALLS["elbo_loss"]()
    assert len(kernels(lambda: call(*inputs))) == 3
    both = kernels(forward_and_backward(call, *inputs))
    assert len(both) == 6, both  # and the upstream gradient, of ones


@pytest.mark.parametrize("name", MORE_CALLS)
def test_nothing_waits_for_the_gpu(name: str) -> None:
    call, inputs = MORE_CALLS[name]()
    run = forward_and_backward(call, *inputs)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
        probability = inputs[0].detach().sigmoid()
        fastvae.binarize(probability)
        fastvae.binarize(probability, index=torch.zeros(3, dtype=torch.int64, device="cuda"), dtype=torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def extra_memory(function: Callable[[], object]) -> int:
    """The most bytes that a call needs beyond those held before it."""
    function()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_scalar_loss_needs_the_memory_of_its_gradient(reduction: str, factor: float) -> None:
    """It is written in the forward pass and scaled where it lies."""
    logits, target = torch.randn(512, 784, requires_grad=True), torch.rand(512, 784)
    latent = moments(512, 8)

    def cross_entropy() -> object:
        loss = fastvae.sigmoid_cross_entropy(logits, target, reduction=reduction)
        return torch.autograd.grad(loss, logits, torch.tensor(factor))

    def elbo() -> object:
        loss = fastvae.elbo_loss(logits, target, *latent, reduction=reduction).loss
        return torch.autograd.grad(loss, [logits, *latent], torch.tensor(factor))

    for run in (cross_entropy, elbo):
        assert extra_memory(run) < 1.2 * logits.nbytes
        assert not any("::Grads<" in k for k in kernels(run))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_logits_of_many_samples_are_never_in_memory(reduction: str) -> None:
    """160 MB of them: beside the gradients there is a block of 64 MiB, and what cuBLAS works in."""
    hidden, weight = torch.randn(512, 100, 200, requires_grad=True), torch.randn(784, 200, requires_grad=True)
    target = torch.rand(100, 784)

    def run() -> object:
        loss = fastvae.linear_sigmoid_cross_entropy(hidden, weight, None, target, reduction=reduction)
        return torch.autograd.grad(loss.sum(), [hidden, weight])

    assert extra_memory(run) < hidden.nbytes + weight.nbytes + (64 + 16) * 2**20


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_several_blocks_of_logits_are_one_loss(reduction: str) -> None:
    """75 MB of logits: two blocks. Matrix products in float32 add up 8 terms, 24,000 for the weight's gradient."""
    hidden, weight = torch.randn(400, 60, 8, requires_grad=True), torch.randn(784, 8, requires_grad=True)
    bias, target = torch.randn(784, requires_grad=True), torch.rand(60, 784)
    leaves = [hidden, weight, bias]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    ours = fastvae.linear_sigmoid_cross_entropy(*leaves, target, reduction=reduction)
    right = reference.linear_sigmoid_cross_entropy(*wide, target.double(), reduction=reduction)
    torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=0)
    grads = zip(torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(right.sum(), wide), strict=True)
    for actual, expected in grads:
        assert (actual.double() - expected).abs().max() < 1e-5 * expected.abs().max()


def test_samples_do_not_expand_the_target() -> None:
    logits, target = torch.randn(50, 20, 784), torch.rand(20, 784)
    assert extra_memory(lambda: fastvae.sigmoid_cross_entropy(logits, target)) < 64 * 1024


@pytest.mark.parametrize("bad", ["x[1, 1] = -0.1", "x[1, 1] = 1.1", "x[1, 1] = torch.nan", "i[1] = 2", "i[1] = -1"])
def test_binarize_of_what_is_no_probability_or_no_image_stops_the_gpu(bad: str) -> None:
    """In a process of its own, which cannot use the GPU any more."""
    code = (
        "import torch, fastvae; x = torch.full((2, 3), 0.5, device='cuda'); i = torch.tensor([1, 0], device='cuda'); "
        f"fastvae.binarize(x, index=i); torch.cuda.synchronize(); {bad}; fastvae.binarize(x, index=i); "
        "print('queued'); torch.cuda.synchronize()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "queued" in result.stdout
    assert result.returncode != 0
    assert "device-side assert" in result.stderr


@pytest.mark.parametrize("shape", [(64, 784), (4, 3, 128, 128), (2, 300_000)], ids=str)
def test_sums_are_the_same_at_every_run(shape: tuple[int, ...]) -> None:
    logits, target = torch.randn(shape), torch.rand(shape)
    first = fastvae.sigmoid_cross_entropy(logits, target)
    assert all(torch.equal(first, fastvae.sigmoid_cross_entropy(logits, target)) for _ in range(10))


@pytest.mark.parametrize("shape", [(8, 3, 100, 100), (9000, 784)], ids=str)
def test_results_are_those_of_the_cpu(shape: tuple[int, ...]) -> None:
    logits, target = torch.randn(shape), torch.randint(0, 256, shape, dtype=torch.uint8)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        rows = logits.to(dtype)
        ours = fastvae.sigmoid_cross_entropy(rows, target)
        theirs = fastvae.sigmoid_cross_entropy(rows.cpu(), target.cpu())
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=0)


def test_kernels_run_on_the_current_stream() -> None:
    """What a stream still waits to write, the kernels after it must see."""
    logits, target = torch.zeros(4096, 784), torch.rand(4096, 784)
    expected = fastvae.sigmoid_cross_entropy(logits + 1, target)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        logits.add_(1)
        result = fastvae.sigmoid_cross_entropy(logits, target)
    stream.synchronize()
    assert torch.equal(result, expected)


def test_kernels_run_on_the_device_of_their_tensors() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    mu, logvar = (t.detach().to("cuda:1") for t in moments(16, 8))
    assert torch.cuda.current_device() == 0
    z, kl = fastvae.sample_kl(mu, logvar)
    assert z.device == kl.device == torch.device("cuda:1")
    torch.testing.assert_close(kl.cpu(), fastvae.gaussian_kl(mu.cpu(), logvar.cpu()))


def test_a_generator_of_another_device_is_refused() -> None:
    zero = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="generator must be on the device of the input, cuda:0, got one on cpu"):
        fastvae.reparameterize(zero, zero, generator=torch.Generator("cpu"))


def test_two_draws_with_one_cuda_generator_differ() -> None:
    zero = torch.zeros(5, 6)
    generator = torch.Generator("cuda").manual_seed(1)
    first, second = (fastvae.reparameterize(zero, zero, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, fastvae.reparameterize(zero, zero, generator=generator.manual_seed(1)))


def test_training_by_a_cuda_graph_is_training(tmp_path: Path) -> None:
    """The same kernels in the same order, with the noise, the learning rate and the weight of the KL of each step."""
    for library in ("matplotlib", "safetensors", "sklearn", "tensorboard"):
        pytest.importorskip(library, reason=f"{library} is not installed, the extra fastvae-torch[train] has it")
    from fastvae.training import TrainConfig, train

    config = TrainConfig(
        hidden=(32,), latent_dim=4, epochs=3, binarize="dynamic", anneal="linear", warmup_epochs=1, clip_norm=50.0
    )
    with torch.device("cpu"):  # where the images come from; the device of tests is the default here
        plain, captured = (
            train(config, tmp_path / str(graph), device="cuda", cuda_graph=graph).history for graph in (False, True)
        )
    for one, other in zip(plain, captured, strict=True):
        assert one["train"]["elbo"] == pytest.approx(other["train"]["elbo"], rel=1e-5)
        assert one["test"]["elbo"] == pytest.approx(other["test"]["elbo"], rel=1e-5)
