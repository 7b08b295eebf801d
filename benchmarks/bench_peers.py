"""Pythae's VAE and trainer, the usual PyTorch loop and this package train one network on MNIST, side by side.

    python -m benchmarks.bench_peers [--data-dir DIR] [--epochs N] [--seeds N] [--json FILE] [--plot FILE]

It measures images a second, the most memory that the process held, and the test ELBO against the seconds of training.
Each training runs in a process of its own, and they take turns. It needs pythae (the extra ``integrations``), and takes
ten minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastvae.data import load
from fastvae.models import VAE

from . import table, time_to_quality
from .cases import eager_elbo, eager_sample
from .time_to_quality import Curve
from .timing import machine, resident, save

# Pythae's default: one hidden layer in the encoder and one in the decoder.
PIXELS, HIDDEN, LATENT = 784, 512, 16
BATCH, RATE = 100, 1e-3


class Tests:
    """The test ELBO of a network, always by the same code, and no part of the seconds."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.curve: Curve = []
        self.seconds = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self, encoder: nn.Module, decoder: nn.Module) -> None:
        self.seconds += time.perf_counter() - self.started
        model = VAE(PIXELS, latent_dim=LATENT, encoder=encoder, decoder=decoder)
        self.curve.append({"seconds": self.seconds, "test_elbo": time_to_quality.test_elbo(model, self.images)})


def grey_images(data_dir: str | None) -> tuple[Tensor, Tests]:
    """Those to train on, in [0, 1], and the tests; the bytes are let go."""
    data = load("mnist", data_dir)
    return data.train.float() / 255, Tests(data.test)


def with_pythae(data_dir: str | None, epochs: int, seed: int) -> Curve:
    """Its VAE with its networks, trained by its trainer."""
    import pythae.models
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    images, tests = grey_images(data_dir)

    class Moments(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor) -> Tensor:
            moments = self.encoder(x)
            return torch.cat([moments.embedding, moments.log_covariance], -1)

    class Epochs(TrainingCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: object, **__: object) -> None:
            tests.start()

        def on_epoch_end(self, *_: object, model: Any, **__: object) -> None:
            first, last = model.decoder.layers
            tests.stop(Moments(model.encoder), nn.Sequential(first, last[0]))  # without the sigmoid

    torch.manual_seed(seed)
    model = pythae.models.VAE(
        pythae.models.VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    )
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE,
            keep_best_on_train=True, no_cuda=True, seed=seed,
        )  # fmt: skip
        TrainingPipeline(model=model, training_config=training)(images[:, None], callbacks=[Epochs()])
    return tests.curve


def usual(compiled: bool) -> Callable[[str | None, int, int], Curve]:
    """The loop that PyTorch's examples have, with the loss of logits."""

    def run(data_dir: str | None, epochs: int, seed: int) -> Curve:
        images, tests = grey_images(data_dir)
        images = images.flatten(1)
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE)

        def loss_of(x: Tensor) -> Tensor:
            mu, logvar = encoder(x).chunk(2, -1)
            return eager_elbo(decoder(eager_sample(mu, logvar)), x, mu, logvar)

        loss_function = torch.compile(loss_of, options={"fallback_random": True}) if compiled else loss_of
        if compiled:
            # Compiling is no part of the seconds.
            loss_function(images[:BATCH]).backward()  # type: ignore[no-untyped-call]
        for _ in range(epochs):
            tests.start()
            for (x,) in DataLoader(TensorDataset(images), batch_size=BATCH, shuffle=True):
                loss = loss_function(x)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            tests.stop(encoder, decoder)
        return tests.curve

    return run


def ours(data_dir: str | None, epochs: int, seed: int) -> Curve:
    with tempfile.TemporaryDirectory() as folder:
        return time_to_quality.ours(
            Path(folder), data_dir, "fastvae", hidden=(HIDDEN,), latent_dim=LATENT, batch_size=BATCH,
            learning_rate=RATE, epochs=epochs, seed=seed,
        )  # fmt: skip


CONTENDERS: dict[str, Callable[[str | None, int, int], Curve]] = {
    "pythae": with_pythae,
    "PyTorch": usual(compiled=False),
    "PyTorch, compiled": usual(compiled=True),
    "fastvae": ours,
}


def train_here(name: str, data_dir: str | None, epochs: int, seed: int) -> dict[str, Any]:
    # For all, as a careful user does: before there are other threads, which take it over.
    torch.set_flush_denormal(True)
    curve = CONTENDERS[name](data_dir, epochs, seed)
    return {"curve": curve, "peak_bytes": resident("VmHWM")}


def train_elsewhere(name: str, data_dir: str | None, epochs: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--train", name, "--epochs", str(epochs), "--seed", str(seed)]
    if data_dir:
        command += ["--data-dir", data_dir]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{name} failed:\n{run.stderr}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def images_per_second(runs: list[dict[str, Any]]) -> Iterator[float]:
    """Of each epoch of each run."""
    for run in runs:
        before = 0.0
        for point in run["curve"]:
            yield 60_000 / (point["seconds"] - before)
            before = point["seconds"]


def rows(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    found = []
    for name, of in runs.items():
        last = [run["curve"][-1]["test_elbo"] for run in of]
        speeds = list(images_per_second(of))
        found.append(
            {
                "contender": name,
                "images_per_second": statistics.median(speeds),
                "images_per_second_of_fastest_epoch": max(speeds),
                "peak_bytes": max(run["peak_bytes"] for run in of),
                "test_elbo": statistics.mean(last),
                "deviation": statistics.stdev(last) if len(last) > 1 else None,
            }
        )
    return found


def show(found: list[dict[str, Any]]) -> None:
    print("| contender | images a second | in the fastest epoch | most memory, MB | test ELBO, nats |")
    print("|---|--:|--:|--:|--:|")
    for row in found:
        elbo = f"{row['test_elbo']:.2f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.2f}")
        speeds = (f"{row[key]:,.0f}" for key in ("images_per_second", "images_per_second_of_fastest_epoch"))
        print("|", " | ".join((row["contender"], *speeds, f"{row['peak_bytes'] / 1e6:.0f}", elbo)), "|")


def plot(result: dict[str, Any], file: Path) -> None:
    colours = ("#CC79A7", "#0072B2", "#009E73", "#D55E00")
    with time_to_quality.elbo_against_seconds(file) as axes:
        for (name, runs), colour in zip(result["runs"].items(), colours, strict=True):
            for run in runs:
                label = name if run is runs[0] else None
                time_to_quality.draw(axes, run["curve"], color=colour, linewidth=1, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_peers", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="of MNIST")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    parser.add_argument("--train", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train_here(arguments.train, arguments.data_dir, arguments.epochs, arguments.seed)))
        return
    from importlib.metadata import version

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    result: dict[str, Any] = {"machine": machine(), "pythae": version("pythae"), "runs": runs}
    print(table.describe(result["machine"]), f"pythae {result['pythae']}", sep=", ")
    for seed in range(arguments.seeds):
        for name in CONTENDERS:
            runs[name].append(train_elsewhere(name, arguments.data_dir, arguments.epochs, seed))
            last = runs[name][-1]["curve"][-1]
            print(f"{name:<18} seed {seed} {last['seconds']:>6.1f} s {last['test_elbo']:>8.2f}", flush=True)
            save(arguments.json, result)
    result["rows"] = rows(runs)
    save(arguments.json, result)
    show(result["rows"])
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
