"""The experiments that ``fastvae experiment`` runs: figures and claims of the tutorial, each with a name.

Source: C. Doersch, Tutorial on Variational Autoencoders (arXiv:1606.05908).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastvae
from fastvae.experiments import closed_form, trained
from fastvae.experiments.base import Result, Setting
from fastvae.files import replacing

EXPERIMENTS: dict[str, Callable[[Setting], Result]] = {
    "mnist-vae": trained.mnist_vae,
    "mnist-cvae": trained.mnist_cvae,
    "latent-size": trained.latent_size,
    "ring": closed_form.ring,
    "pixel-distance": closed_form.pixel_distance,
    "one-dimensional": closed_form.one_dimensional,
    "prior-sampling": trained.prior_sampling,
    "sigma": trained.sigma,
    "latent-manifold": trained.latent_manifold,
    "learning-rate": trained.learning_rate,
}


def run(
    name: str,
    out_dir: str | os.PathLike[str],
    *,
    quick: bool = False,
    data_dir: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Runs an experiment, or resumes one that stopped.

    The folder gets ``NAME.png`` and ``NAME.json`` and, under ``runs/``, the training runs behind them, which a second
    call resumes.

    Args:
        name: one of ``EXPERIMENTS``.
        out_dir: the folder to write to, made if it is missing.
        quick: whether to use scikit-learn's digits, small networks and few epochs, which takes less than a minute and
            shows that the experiment works.
        data_dir: folder of MNIST, as for ``fastvae.data.load``.
        epochs: epochs of each training, instead of the experiment's own number.
        seed: seed of all random numbers.
        report: called several times a second with a description of what is being done.

    Returns:
        The content of the JSON file.

    Raises:
        ValueError: the name is unknown, or a run in the folder has another configuration.
        OSError: a file cannot be read or written.
        TrainingError: a loss is no longer finite.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}, not {name!r}")
    folder = Path(out_dir)
    started = time.perf_counter()
    picture, figures = EXPERIMENTS[name](Setting(quick, data_dir, epochs, seed, folder, report))
    results = {
        "experiment": name,
        "quick": quick,
        "seed": seed,
        "versions": {"fastvae": fastvae.__version__, "torch": torch.__version__},
        "seconds": time.perf_counter() - started,
        **figures,
    }
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(folder / f"{name}.png") as temporary:
        picture.savefig(temporary, format="png", dpi=120)
    return results
