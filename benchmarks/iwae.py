"""The likelihood of MNIST under networks trained with 1, 5 and 50 importance samples, after Burda et al. 2015.

    python -m benchmarks.iwae FOLDER [--data-dir DIR] [--images N] [--json FILE]

The networks are 784-200-200-50 with tanh and one stochastic layer, on images that are binarised anew at every pass
(arXiv:1509.00519, sec. 5.1). Adam with cosine decay takes the place of the paper's schedule of 3,280 epochs. The
log-likelihood of each network is estimated from 5,000 samples of each of the 10,000 test images, or of the first N. It
takes two hours; a second call continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from fastvae.data import load
from fastvae.evaluation import log_likelihood
from fastvae.models import VAE
from fastvae.training import TrainConfig, train

from .timing import machine, save

RUNS = {"k1": (1, 30), "k5": (5, 30), "k50": (50, 30), "k1-long": (1, 300)}  # importance samples, epochs
SAMPLES = 5000


def command(samples: int, epochs: int) -> str:
    """What trains the same network."""
    return (
        "fastvae train --dataset mnist --hidden 200,200 --latent-dim 50 --activation tanh --binarize dynamic "
        f"--decay cosine --epochs {epochs} --importance-samples {samples}"
    )


def result(folder: Path, name: str, data_dir: str | None, images: int) -> dict[str, Any]:
    """Trains one network and evaluates it, or what is left to do of that."""
    done = folder / f"{name}.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    samples, epochs = RUNS[name]
    config = TrainConfig(
        dataset="mnist",
        data_dir=data_dir,
        hidden=(200, 200),
        latent_dim=50,
        activation="tanh",
        binarize="dynamic",
        decay="cosine",
        epochs=epochs,
        importance_samples=samples,
    )
    out = folder / name
    trained = train(config, out, resume=True, progress=lambda p: show(f"{name} {p.epoch}"))
    assert isinstance(trained.model, VAE)
    started = time.perf_counter()
    report = log_likelihood(
        trained.model,
        load("mnist", data_dir).test[:images],
        num_samples=SAMPLES,
        binarize=True,
        partial=folder / f"{name}.partial",
        progress=lambda images, mean: show(f"{name} {images} images {mean:.2f} nats"),
    )
    figures = {
        "name": name,
        "command": command(samples, epochs),
        "importance_samples": samples,
        "epochs": epochs,
        "training_seconds": sum(entry["seconds"] for entry in trained.history),
        "test": trained.history[-1]["test"],
        "log_likelihood": report._asdict(),
        "evaluation_seconds": time.perf_counter() - started,
        "machine": machine(),
    }
    save(done, figures)
    return figures


def median_epoch(out: Path) -> float:
    """What an epoch takes when nothing else runs; the whole training counts its pauses too."""
    epochs = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["epochs"]
    return float(statistics.median(entry["seconds"] for entry in epochs))


def show(text: str) -> None:
    print(f"\r{text:<60}", end="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.iwae", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the runs and what is done of their evaluation")
    parser.add_argument("--data-dir", help="of MNIST")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = [
        result(arguments.folder, name, arguments.data_dir, arguments.images)
        | {"median_epoch_seconds": median_epoch(arguments.folder / name)}
        for name in RUNS
    ]
    print(f"\r{'':<60}\r{'run':<8} {'k':>3} {'epochs':>6} {'training':>9} {'ELBO':>8}  log-likelihood, nats")
    for row in rows:
        worth = row["log_likelihood"]
        print(
            f"{row['name']:<8} {row['importance_samples']:>3} {row['epochs']:>6} {row['training_seconds']:>7.0f} s "
            f"{row['test']['elbo']:>8.2f}  {worth['log_likelihood']:.2f} ± {worth['standard_error']:.2f}"
        )
    save(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
