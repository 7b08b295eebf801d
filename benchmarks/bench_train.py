"""A whole training step of the tutorial's VAE, and the loss's share of it.

    python -m benchmarks.bench_train [--batch N ...] [--dtype NAME ...] [--rounds N] [--json FILE]

A step is forward, backward and a fused Adam. The weights and the batch are the same for all; networks, loss and Adam
are plain PyTorch or fastvae's, in eager and under torch.compile.
On a GPU, "graph" is the step as ``fastvae train --cuda-graph`` replays it, with uint8 images.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastvae
from fastvae import reference
from fastvae.models import VAE
from fastvae.training.graph import CapturedStep

from . import table, timing
from .bench_ops import compiled
from .cases import eager_elbo, eager_sample, layer_by_layer
from .checks import close
from .timing import launches, machine, measure, page_faults, save

BATCHES = (100, 1024, 4096, 8192)
# tf32: float32 whose matrix products a GPU rounds to 10 bits, torch.set_float32_matmul_precision("high").
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "tf32": torch.float32}
# Of the loss, and of all gradients as one vector: eight matrix products and more lie between these and the inputs, and
# a ReLU within rounding of zero may fall to either side, which moves a gradient by that of one image.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "tf32": 1e-2}
QUIET = -60.0  # a log variance whose noise is lost in rounding

Loss = Callable[[VAE, Tensor], Tensor]


def plain_loss(model: VAE, x: Tensor) -> Tensor:
    """Networks and loss as a user writes them without fastvae."""
    mu, logvar = layer_by_layer(model.encoder, x).chunk(2, -1)
    return eager_elbo(layer_by_layer(model.decoder, eager_sample(mu, logvar)), x, mu, logvar)


def fastvae_loss(model: VAE, x: Tensor) -> Tensor:
    return model.loss(x).loss


def exact_loss(model: VAE, x: Tensor) -> Tensor:
    """The reference, without noise."""
    mu, logvar = layer_by_layer(model.encoder, x).chunk(2, -1)
    return reference.elbo_loss(layer_by_layer(model.decoder, mu), x, mu, logvar)[0]


def autocast(dtype: str) -> torch.autocast:
    """The device's autocast where ``dtype`` is not float32."""
    return torch.autocast(timing.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


@contextmanager
def products(dtype: str) -> Iterator[None]:
    """Lets a GPU round the matrix products of float32 where ``dtype`` is tf32, and there alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def contenders() -> dict[str, Loss]:
    losses: dict[str, Loss] = {"eager": plain_loss, "fastvae": fastvae_loss}
    return {**losses, "compile": compiled(plain_loss), "both": compiled(fastvae_loss)}


def check(losses: Mapping[str, Loss], model: VAE, x: Tensor, dtype: str) -> None:
    """Loss and gradients against float64, with weights whose noise vanishes, so that all contenders agree.

    That the noise is right is what ``bench_ops`` checks.
    """
    quiet = copy.deepcopy(model)
    assert isinstance(quiet.encoder, nn.Sequential)
    moments = quiet.encoder[-1]
    assert isinstance(moments, nn.Linear)
    with torch.no_grad():
        moments.weight[model.latent_dim :] = 0
        moments.bias[model.latent_dim :] = QUIET

    def results(loss: Loss, model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
        value = loss(model, x)
        gradients = torch.autograd.grad(value, list(model.parameters()))
        return value.detach(), torch.cat([g.flatten() for g in gradients]).double()

    loss64, gradient64 = results(exact_loss, copy.deepcopy(quiet).double(), x.double())
    for name, loss in losses.items():
        with autocast(dtype):
            value, gradient = results(loss, quiet, x)
        close(f"{name}, loss", value, loss64, TOLERANCE[dtype])
        close(f"{name}, gradients", gradient, gradient64, TOLERANCE[dtype])


def training_step(
    loss: Loss, model: VAE, x: Tensor, dtype: str, adam: type[torch.optim.Adam], capturable: bool = False
) -> Callable[[], Tensor]:
    """One step of Adam on weights of its own; it gives the loss."""
    model = copy.deepcopy(model)
    optimizer = adam(model.parameters(), lr=1e-3, fused=True, capturable=capturable)

    def step() -> Tensor:
        with autocast(dtype):
            value = loss(model, x)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def replayed_step(model: VAE, x: Tensor, dtype: str) -> Callable[[], Tensor]:
    """The step with fastvae's loss as a CUDA graph."""
    images = x.mul(255).to(torch.uint8)
    step = training_step(fastvae_loss, model, images, dtype, fastvae.optim.Adam, capturable=True)
    index = torch.arange(len(x), device=x.device)
    replayed = partial(CapturedStep(lambda index: step(), len(x), x.device), index)
    for _ in range(4):  # those that are run as they are, and the capture
        replayed()
    return replayed


def loss_parts(x: Tensor, latent_dim: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """Sampling, KL and reconstruction with their backward, at the shapes of the step and without its networks."""
    kind = DTYPES[dtype]
    logits = torch.randn_like(x, dtype=kind, requires_grad=True)
    moments = torch.randn(len(x), 2 * latent_dim, dtype=kind, device=x.device, requires_grad=True)
    gradient = torch.randn(len(x), latent_dim, device=x.device)
    upstream = {dtype: gradient.to(dtype) for dtype in (torch.float32, kind)}

    def part(sample: Callable[..., Tensor], elbo: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        with autocast(dtype):
            mu, logvar = moments.chunk(2, -1)
            z, loss = sample(mu, logvar), elbo(logits, x, mu, logvar)
        # Under autocast z may be float32, whose gradient a decoder would send in that type.
        return torch.autograd.grad((z, loss), (logits, moments), (upstream[z.dtype], None))

    return {
        "eager": partial(part, eager_sample, eager_elbo),
        "fastvae": partial(part, fastvae.reparameterize, lambda *t: fastvae.elbo_loss(*t).loss),
    }


def matrix_products(model: VAE, batch: int, dtype: str) -> Callable[[], None]:
    """The matrix products of a step and nothing else, between numbers and into memory that are there: its floor."""
    kind = DTYPES[dtype]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, dtype=kind, device=timing.device)

    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    operands = []
    for linear in linears:
        inputs, outputs = linear.in_features, linear.out_features
        a, weight, grad = normal(batch, inputs), normal(outputs, inputs), normal(batch, outputs)
        operands += [(a, weight.t(), normal(batch, outputs)), (grad.t(), a, normal(outputs, inputs))]
        if linear is not linears[0]:  # the images need no gradient
            operands.append((grad, weight, normal(batch, inputs)))

    def multiply() -> None:
        for a, b, out in operands:
            torch.mm(a, b, out=out)

    return multiply


def measure_step(
    batch: int, dtype: str, rounds: int, hidden: Sequence[int] = (1000, 500, 250), names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Checks and measures a step at one batch size: a row of results. In 0 rounds compiled code is run, and no more."""
    torch._dynamo.reset()
    model = VAE(784, hidden, 30).to(timing.device)
    x = torch.rand(batch, 784, device=timing.device)
    losses = {name: loss for name, loss in contenders().items() if names is None or name in names}
    plain_adam, own_adam = torch.optim.Adam, fastvae.optim.Adam
    adam = {"eager": plain_adam, "compile": plain_adam, "fastvae": own_adam, "both": own_adam}
    if rounds == 0:
        for name in {"compile", "both"} & set(losses):
            training_step(losses[name], model, x, dtype, adam[name])()
        return {}
    check(losses, model, x, dtype)
    steps: dict[str, Callable[[], Any]] = {
        name: training_step(f, model, x, dtype, adam[name]) for name, f in losses.items()
    }
    on_gpu = timing.device.type == "cuda"
    if on_gpu:
        steps["graph"] = replayed_step(model, x, dtype)
    parts = loss_parts(x, model.latent_dim, dtype)
    # All in the same rounds, so that the share of one in the other is of the same machine.
    others = {
        "products": matrix_products(model, batch, dtype),
        **{f"loss {name}": part for name, part in parts.items()},
    }
    measured = measure({**steps, **others}, rounds)
    if not on_gpu:
        for name, step in steps.items():
            measured[name]["page_faults"] = page_faults(step)
    return {
        "batch": batch,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "contenders": {name: measured[name] for name in steps},
        "loss": {name: measured[f"loss {name}"] for name in parts},
        "products": measured["products"],
        **({"kernels": launches(steps["graph"])} if on_gpu else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_train", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="all that the device has")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--contenders", nargs="+", choices=["eager", "fastvae", "compile", "both"])
    parser.add_argument("--rounds", type=int, default=9, help="0: compile, and measure nothing")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()

    timing.device = torch.device(arguments.device)
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": machine(), "rows": []}
    print(table.describe(result["machine"]))
    print(table.text(table.TRAIN_COLUMNS, table.TRAIN_COLUMNS))
    failed = 0
    dtypes = arguments.dtype or [d for d in DTYPES if d != "tf32" or timing.device.type == "cuda"]
    for dtype, batch in itertools.product(dtypes, arguments.batch):
        try:
            with products(dtype):
                row = measure_step(batch, dtype, arguments.rounds, names=arguments.contenders)
        except Exception as error:  # the next row is measured whatever became of this one
            failed += 1
            print(f"{batch} {dtype} failed: {error}", flush=True)
            continue
        if not row:
            continue
        result["rows"].append(row)
        print(table.text(table.train_cells(row), table.TRAIN_COLUMNS), flush=True)
        if "graph" in row["contenders"]:
            seconds = row["contenders"]["graph"]["median"]
            print(
                f"  as a CUDA graph {batch / seconds:,.0f} images/s; 60,000 steps in {60_000 * seconds:.1f} s; "
                f"{sum(count for _, count, _ in row['kernels'])} launches of "
                f"{sum(time for _, _, time in row['kernels']):.0f} us",
                flush=True,
            )
        save(arguments.json, result)
    if failed:
        raise SystemExit(f"{failed} rows failed")


if __name__ == "__main__":
    main()
