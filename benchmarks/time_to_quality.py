"""Seconds to the test ELBO that the tutorial's training reaches: plain PyTorch against this package at a large batch.

    python -m benchmarks.time_to_quality FOLDER [--data-dir DIR] [--epochs N] [--json FILE] [--plot FILE]

The tutorial's training is its own network (784-1000-500-250-30), initial weights and solver on MNIST in batches of 100
for 100 epochs, as a user writes it in plain PyTorch. This package trains the same layers with the settings of RECIPE.
The seconds do not include tests. The recipe is run before and after, so that a change of the machine's speed shows. It
takes half an hour.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvae.data import Images, load
from fastvae.evaluation import evaluate
from fastvae.models import VAE
from fastvae.training import TrainConfig, train
from fastvae.training.solver import make_optimizer

from .cases import eager_elbo, eager_sample, layer_by_layer
from .timing import machine, save

BATCH, EPOCHS, RATE = 100, 100, 1e-3  # 60,000 iterations
RECIPE: dict[str, Any] = {
    "batch_size": 1000,
    "scale_learning_rate": "sqrt",
    "warmup_epochs": 1,
    "decay": "cosine",
    "epochs": 20,
}
STEPS = 1200  # of the tutorial's training through this package, two epochs, of which 60,000 are projected

Curve = list[dict[str, float]]


def test_elbo(model: VAE, images: Tensor) -> float:
    return evaluate(model, images.flatten(1), generator=torch.Generator().manual_seed(0)).elbo


def plain(data: Images, epochs: int) -> Curve:
    """The tutorial's training, networks and loss in plain PyTorch."""
    torch.manual_seed(0)
    model = VAE(preset="doersch")
    optimizer = make_optimizer(model, RATE, "doersch")
    images = data.train.flatten(1)
    curve, seconds = [], 0.0
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        for indices in torch.randperm(len(images)).split(BATCH):  # type: ignore[no-untyped-call]
            x: Tensor = images[indices].float() / 255
            mu, logvar = layer_by_layer(model.encoder, x).chunk(2, -1)
            loss = eager_elbo(layer_by_layer(model.decoder, eager_sample(mu, logvar)), x, mu, logvar)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds += time.perf_counter() - started
        curve.append({"seconds": seconds, "test_elbo": test_elbo(model, data.test)})
        show("plain PyTorch", epoch, epochs, curve)
    return curve


def ours(folder: Path, data_dir: str | None, name: str, **options: Any) -> Curve:
    """``fastvae train`` on MNIST, with its checkpoints and metrics."""
    config = TrainConfig(dataset="mnist", data_dir=data_dir, **options)
    curve: Curve = []
    for entry in train(config, folder / name).history:
        seconds = entry["seconds"] + (curve[-1]["seconds"] if curve else 0.0)
        curve.append({"seconds": seconds, "test_elbo": entry["test"]["elbo"]})
        show(name, entry["epoch"], config.epochs, curve)
    return curve


def reached(curve: Curve, elbo: float) -> float | None:
    """Seconds after which a test was at least as good."""
    return next((point["seconds"] for point in curve if point["test_elbo"] >= elbo), None)


def show(name: str, epoch: int, epochs: int, curve: Curve) -> None:
    print(f"{name:<16} {epoch:>3}/{epochs} {curve[-1]['seconds']:>7.0f} s {curve[-1]['test_elbo']:>8.2f}", flush=True)


@contextmanager
def elbo_against_seconds(file: Path) -> Iterator[Any]:
    """Axes to draw curves into; then the picture is written."""
    from matplotlib import ticker

    from fastvae.plots import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test ELBO, nats")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=100)


def draw(axes: Any, curve: Curve, *style: str, **options: Any) -> None:
    axes.plot(*([point[key] for point in curve] for key in ("seconds", "test_elbo")), *style, marker=".", **options)


def plot(result: dict[str, Any], file: Path) -> None:
    lines = (("plain", "#0072B2", "-", "plain PyTorch"), ("before", "#D55E00", "-", "fastvae, before"))
    with elbo_against_seconds(file) as axes:
        for name, colour, line, title in (*lines, ("after", "#D55E00", ":", "fastvae, after")):
            label = f"{title}: batch {BATCH if name == 'plain' else RECIPE['batch_size']}"
            draw(axes, result[name], line, color=colour, label=label)
        target = result["target"]
        axes.axhline(target, color="#000000", linewidth=0.8, label=f"after 60,000 steps: {target:.1f}")
        axes.set_ylim(bottom=-130)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the runs; must not hold any")
    parser.add_argument("--data-dir", help="of MNIST")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the tutorial's training")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    arguments = parser.parse_args()
    # For both, as a careful user does: before there are other threads, which take it over.
    torch.set_flush_denormal(True)
    data = load("mnist", arguments.data_dir)
    result: dict[str, Any] = {"machine": machine(), "recipe": RECIPE}

    def step(name: str, curve: Curve) -> None:
        result[name] = curve
        save(arguments.json, result)

    step("before", ours(arguments.folder, arguments.data_dir, "before", **RECIPE))
    step("plain", plain(data, arguments.epochs))
    step("after", ours(arguments.folder, arguments.data_dir, "after", **RECIPE))
    for name, amp in (("preset", None), ("preset, bf16", "bf16")):
        preset = {"preset": "doersch", "amp": amp, "epochs": STEPS * BATCH // 60_000}
        step(name, ours(arguments.folder, arguments.data_dir, name, **preset))
    result["target"] = result["plain"][-1]["test_elbo"]
    result["seconds"] = {name: reached(result[name], result["target"]) for name in ("before", "plain", "after")}
    result["projected_seconds_of_60000_steps"] = {
        "plain": result["plain"][-1]["seconds"] / (arguments.epochs * 600) * 60_000,
        "fastvae": result["preset"][-1]["seconds"] / STEPS * 60_000,
        "fastvae, bf16": result["preset, bf16"][-1]["seconds"] / STEPS * 60_000,
    }
    save(arguments.json, result)
    print(result["seconds"], result["projected_seconds_of_60000_steps"])
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
