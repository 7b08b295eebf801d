"""Experiments of the tutorial with trained models: its figures 7 and 8, and claims of its sections 2 and 4."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvae.data import join_column, split_column
from fastvae.evaluation import Proposal, evaluate, evaluate_code, log_likelihood
from fastvae.experiments.base import BLUE, GREEN, ORANGE, Result, Setting, figure, label, log_ticks, show_images
from fastvae.models import CVAE, VAE, Regressor
from fastvae.ops import binarize
from fastvae.plots import image_grid
from fastvae.training import TrainingError


def _train(setting: Setting, name: str, *, epochs: int, **options: Any) -> tuple[VAE, list[dict[str, Any]]]:
    model, history = setting.train(name, epochs=epochs, **options)
    assert isinstance(model, VAE)
    return model, history


def mnist_vae(setting: Setting) -> Result:
    """Figure 7: a hundred samples of the tutorial's network, trained for its 60,000 iterations."""
    model, history = _train(setting, "preset", epochs=100, preset="doersch")
    samples = model.sample(100, torch.Generator().manual_seed(setting.seed))
    batches = -(-len(setting.dataset().train) // 100)
    iterations = [entry["epoch"] * batches for entry in history]
    seconds = torch.tensor([entry["seconds"] for entry in history]).cumsum(0).tolist()

    picture = figure(11, 5.5)
    left, right = picture.subplots(1, 2)
    show_images(left, samples, 10, f"samples after {iterations[-1]:,} iterations")
    for part, colour, line in (("train", BLUE, "-"), ("test", ORANGE, "--")):
        elbos = [entry[part]["elbo"] for entry in history]
        right.plot(iterations, elbos, color=colour, linestyle=line, label=part, marker="." if len(elbos) < 3 else None)
    right.legend(frameon=False)
    label(right, "iterations of batch 100", "ELBO, nats per image")
    last = history[-1]
    return Result(
        picture,
        {
            "iterations": iterations,
            "training_seconds": seconds,
            "train_elbo": [entry["train"]["elbo"] for entry in history],
            "test_elbo": [entry["test"]["elbo"] for entry in history],
            "test": last["test"],
        },
    )


def latent_size(setting: Setting) -> Result:
    """Section 4.1: the cost of fewer than four dimensions of z, and that of thousands."""
    sizes = (2, 4, 30) if setting.quick else (2, 3, 4, 10, 30, 100, 1000, 10000)
    images = setting.dataset().test
    rows: list[dict[str, Any]] = []
    for size in sizes:
        model, history = _train(setting, f"latent-{size}", epochs=10, latent_dim=size)
        code = evaluate_code(model, images)
        rows.append({"latent_dim": size, **history[-1]["test"], "active_units": code.active_units})

    picture = figure(12, 4)
    for axes, key, unit in zip(
        picture.subplots(1, 3),
        ("elbo", "kl", "active_units"),
        ("test ELBO, nats", "KL, nats", "dimensions in use"),
        strict=True,
    ):
        axes.plot(sizes, [row[key] for row in rows], color=BLUE, marker="o")
        log_ticks(axes, sizes)
        if key == "active_units":
            axes.set_yscale("log")
        label(axes, "dimensions of z", unit)
    return Result(picture, {"rows": rows})


def learning_rate(setting: Setting) -> Result:
    """Section 4.1: five restarts at each learning rate show which learning rates train."""
    rates = (1e-3, 1e-1) if setting.quick else (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    restarts = 2 if setting.quick else 5
    rows: list[dict[str, Any]] = []
    for rate in rates:
        for seed in range(setting.seed, setting.seed + restarts):
            try:
                _, history = _train(
                    setting, f"rate-{rate:g}-{seed}", epochs=3, preset="doersch", learning_rate=rate, seed=seed
                )
                rows.append({"learning_rate": rate, "seed": seed, **history[-1]["test"]})
            except TrainingError as error:
                what = str(error).split(";")[0]  # the rest names the folder, and what else to do
                rows.append({"learning_rate": rate, "seed": seed, "elbo": None, "error": what})

    picture = figure(7, 4.5)
    axes = picture.subplots()
    done = [row for row in rows if row["elbo"] is not None]
    axes.scatter([row["learning_rate"] for row in done], [row["elbo"] for row in done], color=BLUE, label="a run")
    for rate in rates:
        failed = sum(row["elbo"] is None for row in rows if row["learning_rate"] == rate)
        if failed:
            axes.annotate(
                f"{failed} of {restarts}\ndiverged", (rate, 0.02), xycoords=("data", "axes fraction"), ha="center"
            )
    log_ticks(axes, rates)
    axes.set_xlim(min(rates) / 2, max(rates) * 2)
    label(axes, "learning rate", "test ELBO, nats", f"{restarts} restarts at each")
    return Result(picture, {"restarts": restarts, "rows": rows})


def sigma(setting: Setting) -> Result:
    """Section 2.4.3: the sigma of a Gaussian output weighs its reconstruction against the KL divergence."""
    sigmas = (0.1, 0.3, 1.0) if setting.quick else (0.05, 0.1, 0.2, 0.4, 0.8)
    images = setting.dataset().test
    rows, strips = [], []
    for value in sigmas:
        model, history = _train(setting, f"sigma-{value:g}", epochs=10, likelihood="gaussian", sigma=value)
        shown = images[:10]
        reconstructed = model.reconstruct(shown)
        error = float((model.reconstruct(images) - images / 255).square().mean().sqrt())
        rows.append({"sigma": value, **history[-1]["test"], "root_mean_square_error": error})
        strips.append(torch.cat([reconstructed, model.sample(10, torch.Generator().manual_seed(setting.seed))]))

    picture = figure(12, 6)
    panels = picture.subplot_mosaic([["kl", "error"], ["images", "images"]], height_ratios=(1, 1.2))
    panels["kl"].plot(sigmas, [row["kl"] for row in rows], color=BLUE, marker="o")
    log_ticks(panels["kl"], sigmas)
    label(panels["kl"], "sigma", "KL, nats", "what the code carries")
    panels["error"].plot(
        sigmas, [row["root_mean_square_error"] for row in rows], color=BLUE, marker="o", label="root mean square error"
    )
    panels["error"].plot(sigmas, sigmas, color=ORANGE, linestyle="--", label="sigma")
    panels["error"].legend(frameon=False)
    log_ticks(panels["error"], sigmas)
    label(panels["error"], "sigma", "pixels in [0, 1]", "how far off reconstructions are")
    title = "ten reconstructions and ten samples; a row for each sigma: " + ", ".join(f"{s:g}" for s in sigmas)
    show_images(panels["images"], torch.cat(strips), 20, title)
    return Result(picture, {"rows": rows})


def latent_manifold(setting: Setting) -> Result:
    """A code of two dimensions, seen whole: decoded at a grid of quantiles of its prior."""
    model, history = _train(setting, "two-dimensional", epochs=30, latent_dim=2)
    side = 10 if setting.quick else 20
    quantiles = (torch.arange(side) + 0.5) / side
    z = torch.cartesian_prod(*[torch.special.ndtri(quantiles)] * 2)
    with torch.no_grad():
        decoded = model.output.mean(model.decode(z))
    picture = figure(7, 7.4)
    title = f"decoded z = (row, column) at {side} quantiles of N(0, 1) each"
    show_images(picture.subplots(), decoded, side, title)
    return Result(picture, {"side": side, "test": history[-1]["test"]})


def prior_sampling(setting: Setting) -> Result:
    """Section 2: estimating log P(X) takes very many z from the prior but few from Q, and the ELBO is close."""
    model, _ = _train(
        setting, "likelihood", epochs=20, hidden=(200, 200), latent_dim=50, activation="tanh", binarize="dynamic"
    )
    # Binary images, drawn once: the ELBO and the estimates are of the same ones.
    generator = torch.Generator().manual_seed(setting.seed)
    images = setting.dataset().test[: 20 if setting.quick else 100]
    images = binarize(images, generator=generator).byte() * 255
    counts = [10**i for i in range(4 if setting.quick else 6)]
    elbo = evaluate(model, images, generator=generator)
    rows: dict[Proposal, list[dict[str, Any]]] = {"prior": [], "posterior": []}
    for proposal, found in rows.items():
        for count in counts:
            setting.report(f"{count} samples of the {proposal}")
            report = log_likelihood(model, images, num_samples=count, proposal=proposal, seed=setting.seed)
            found.append(report._asdict())

    picture = figure(7, 4.5)
    axes = picture.subplots()
    for proposal, colour, marker in (("prior", ORANGE, "s"), ("posterior", BLUE, "o")):
        found = rows[proposal]
        axes.errorbar(
            counts,
            [row["log_likelihood"] for row in found],
            [row["standard_error"] for row in found],
            color=colour,
            marker=marker,
            capsize=3,
            label=f"z from the {proposal}",
        )
    axes.axhline(elbo.elbo, color=GREEN, linestyle="--", label="ELBO")
    axes.legend(frameon=False, loc="lower right")
    log_ticks(axes, counts)
    label(axes, "samples of z for each image", "estimate of log P(X), nats", f"{len(images)} test images")
    return Result(picture, {"images": len(images), "elbo": elbo._asdict(), "estimates": rows})


def mnist_cvae(setting: Setting) -> Result:
    """Figure 8: digits of which the middle column is known, completed by the CVAE and by a regressor."""
    cvae, cvae_history = setting.train("cvae", epochs=100, model="cvae", preset="doersch")
    regressor, regressor_history = setting.train("regressor", epochs=100, model="regressor", preset="doersch")
    assert isinstance(cvae, CVAE)
    assert isinstance(regressor, Regressor)
    generator = torch.Generator().manual_seed(setting.seed)
    images = setting.dataset().test
    others, known = split_column(images, generator=generator)
    completions = cvae.sample(known[:60], 10, generator)
    predicted = regressor.predict(known[:60])

    picture = figure(9, 8.4)
    panels = picture.subplots(3, 1)
    for axes, what, title in (
        (panels[0], completions[0], "CVAE: one completion of each"),
        (panels[1], predicted, "regressor"),
        (panels[2], others[:60].float() / 255, "ground truth"),
    ):
        axes.imshow(_tinted(what, known[:60], 15), interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    picture.suptitle("The column that is known is tinted: orange where it is on, blue where it is off", fontsize=10)

    # A pixel's standard deviation between completions of the same column, and how far from 0 and 1 pixels are.
    spread = float(completions.var(0).mean().sqrt())
    grey = {
        name: float((4 * x * (1 - x)).mean())
        for name, x in (("cvae", completions), ("regressor", predicted), ("truth", others.float() / 255))
    }
    return Result(
        picture,
        {
            "cvae": {"test_bound": cvae_history[-1]["test"], "epochs": len(cvae_history)},
            "regressor": {"test_log_likelihood": regressor_history[-1]["test"], "epochs": len(regressor_history)},
            "cvae_importance_weighted": log_likelihood(
                cvae, others[:200], known[:200], num_samples=100, seed=setting.seed
            )._asdict(),
            "deviation_between_completions": spread,
            "greyness": {"of": "4 p (1 - p), the mean over pixels: 0 where all are black or white", **grey},
        },
    )


def _tinted(others: Tensor, known: Tensor, columns: int) -> NDArray[np.uint8]:
    """A grid of completed images, ``[H', W', 3]``, with their known column in colour."""
    marks = torch.zeros_like(others)
    grid = image_grid(join_column(others, known), columns)
    at = image_grid(join_column(marks, torch.ones_like(known)), columns) == 255
    gap = image_grid(torch.zeros_like(join_column(marks, known)), columns) == 255
    colours = grid.unsqueeze(-1).repeat(1, 1, 3)
    for on, colour in ((True, (230, 159, 0)), (False, (0, 90, 178))):
        colours[at & ~gap & ((grid > 127) == on)] = torch.tensor(colour, dtype=torch.uint8)
    return colours.numpy()
