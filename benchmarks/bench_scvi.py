"""scvi-tools' SCVI with its own reconstruction loss, against that of ``examples/cells_scvi.py``.

    python -m benchmarks.bench_scvi [--threads N] [--rounds N] [--seeds N] [--json FILE]

It measures whole training steps and their memory, the error of the gradients, and the ELBO of held-out cells. It needs
scvi-tools (docs/drop-ins.md), and takes ten minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scvi
import torch
from scvi.distributions._negative_binomial import log_nb_positive, log_zinb_positive
from scvi.model import SCVI
from torch import Tensor
from torch.distributions import Normal

from examples.cells_scvi import FusedSCVI

from . import table, timing

MODELS = {"scvi-tools": SCVI, "fastvae": FusedSCVI}
CONTENDERS = ("scvi-tools", "compile", "fastvae")
CASES = [(likelihood, batch) for likelihood in ("zinb", "nb") for batch in (128, 512)]
CELLS, GENES = 2_000, 4_000


def made_up_cells(cells: int = CELLS, genes: int = GENES) -> anndata.AnnData:
    """Counts of eight kinds of cells, nine tenths of them 0: negative binomial, of lognormal depths."""
    random = np.random.default_rng(0)
    expressed = random.gamma(0.3, 1, (8, genes)) * random.lognormal(0, 1.5, genes)
    shares = expressed / expressed.sum(1, keepdims=True)
    mean = random.lognormal(np.log(1_100), 0.5, (cells, 1)) * shares[random.integers(8, size=cells)]
    theta = random.lognormal(0.5, 0.7, genes)
    return anndata.AnnData(random.poisson(random.gamma(theta, mean / theta)).astype(np.float32))


def synthetic_cells() -> anndata.AnnData:
    """scvi-tools' own: 400 cells, 100 genes."""
    scvi.settings.seed = 0
    return scvi.data.synthetic_iid()


def build(kind: type[SCVI], data: anndata.AnnData, likelihood: str, seed: int = 0) -> Any:
    scvi.settings.seed = seed
    kind.setup_anndata(data)
    return kind(data, gene_likelihood=likelihood)


def training_step(contender: str, data: anndata.AnnData, likelihood: str, batch: int) -> Callable[[], object]:
    """A step of scvi-tools' TrainingPlan, of one batch."""
    model = build(SCVI if contender == "compile" else MODELS[contender], data, likelihood)
    module = model.module.train()
    tensors = next(iter(model._make_data_loader(data, batch_size=batch)))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)
    forward: Any = torch.compile(module) if contender == "compile" else module

    def step() -> None:
        optimizer.zero_grad()
        forward(tensors)[2].loss.backward()
        optimizer.step()

    return step


def resident_growth(contender: str) -> int:
    """Bytes by which the process is larger in some step of the largest case than before; in a process of its own."""
    step = training_step(contender, made_up_cells(), *CASES[1])
    Path("/proc/self/clear_refs").write_text("5")  # what came before does not count
    before = timing.resident("VmRSS")
    for _ in range(5):
        step()
    return timing.resident("VmHWM") - before


def resident_growth_elsewhere(contender: str) -> int:
    command = [sys.executable, "-m", __spec__.name, "--resident", contender, "--threads", str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_steps(data: anndata.AnnData, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for likelihood, batch in CASES:
        contenders = {name: training_step(name, data, likelihood, batch) for name in CONTENDERS}
        row: dict[str, Any] = {
            "likelihood": likelihood,
            "batch": batch,
            "contenders": timing.measure(contenders, rounds),
        }
        rows.append(row)
        print(
            f"{likelihood:<5} batch {batch:<4}",
            *(f"{name} {table.with_spread(row['contenders'][name])} ms" for name in CONTENDERS),
            f"{table.against(row, 'scvi-tools')} x scvi-tools, {table.against(row, 'compile')} x compile",
            f"extra MB {table.megabytes(row, CONTENDERS)}",
            sep="  ",
            flush=True,
        )
    return rows


def formula_without_eps(px: Any, theta_of_gene: Tensor) -> Callable[[Tensor], Tensor]:
    """scvi-tools' formula without the 1e-8 that it adds in its logarithms."""
    zi_logits = getattr(px, "zi_logits", None)
    if zi_logits is None:
        return lambda x: log_nb_positive(x, px.mu, theta_of_gene, eps=1e-30)
    return lambda x: log_zinb_positive(x, px.mu, theta_of_gene, zi_logits, eps=1e-30)


def gradients(module: Any, tensors: dict[str, Tensor], z: Tensor, without_eps: bool = False) -> dict[str, Tensor]:
    """Of the last layers' biases and the dispersions: sums over the cells of those of the likelihood's parameters."""
    module.zero_grad()
    x = tensors["X"]
    inference = {"z": z, "library": x.sum(1, keepdim=True).log(), "qz": Normal(z, torch.ones_like(z))}
    generated = module.generative(z, inference["library"], tensors["batch"], y=tensors["labels"])
    if without_eps:
        generated["px"].log_prob = formula_without_eps(generated["px"], module.px_r.exp())
    module.loss(tensors, inference, generated).loss.backward()
    decoder = module.decoder
    found = {
        "logits of shares": decoder.px_scale_decoder[0].bias.grad,
        "log theta": module.px_r.grad,
        "zero logits": decoder.px_dropout_decoder.bias.grad,
    }
    return {name: g.double() for name, g in found.items() if g is not None}


def error(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest error relative to the largest gradient, and the median of the genes' relative errors."""
    off = (found - expected).abs()
    return float(off.max() / expected.abs().max()), float((off / expected.abs()).median())


def measure_gradients(data: anndata.AnnData, likelihood: str, batch: int = 512) -> list[dict[str, Any]]:
    """Of a model after some epochs, against scvi-tools' formula in float64 without its 1e-8, and its own with it."""
    model = build(SCVI, data, likelihood)
    model.train(max_epochs=5, accelerator="cpu", enable_progress_bar=False)
    ours = build(FusedSCVI, data, likelihood).module.train()
    ours.load_state_dict(model.module.state_dict())
    theirs = model.module.train()
    tensors = next(iter(model._make_data_loader(data, batch_size=batch)))
    z = theirs.inference(tensors["X"], tensors["batch"])["z"].detach()
    found = {"scvi-tools": gradients(theirs, tensors, z), "fastvae": gradients(ours, tensors, z)}
    double = theirs.double()
    tensors["X"] = tensors["X"].double()
    exact = gradients(double, tensors, z.double(), without_eps=True)
    with_eps = gradients(double, tensors, z.double())
    rows = []
    for name, of, expected in (
        ("scvi-tools", "scvi-tools", exact),
        ("scvi-tools, to its own in float64", "scvi-tools", with_eps),
        ("fastvae", "fastvae", exact),
    ):
        for what, g in found[of].items():
            largest, median = error(g, expected[what])
            rows.append(
                {"likelihood": likelihood, "contender": name, "gradient": what, "largest": largest, "median": median}
            )
            print(f"{likelihood:<5} {what:<17} {name:<34} error {largest:.1e} of the largest, median {median:.1e}")
    return rows


def measure_training(
    name: str, data: anndata.AnnData, likelihood: str, batch: int, epochs: int, seeds: int
) -> dict[str, Any]:
    """scvi-tools' own training with each loss, from the same seeds; the ELBO of a fifth of the cells at each epoch."""
    curves: dict[str, list[list[float]]] = {contender: [] for contender in MODELS}
    seconds: dict[str, list[float]] = {contender: [] for contender in MODELS}
    for seed in range(seeds):
        for contender, kind in MODELS.items():
            model = build(kind, data, likelihood, seed)
            start = time.perf_counter()
            model.train(
                max_epochs=epochs, accelerator="cpu", train_size=0.8, batch_size=batch, check_val_every_n_epoch=1,
                enable_progress_bar=False,
            )  # fmt: skip
            seconds[contender].append((time.perf_counter() - start) / epochs)
            curves[contender].append([float(v) for v in model.history["elbo_validation"]["elbo_validation"]])
    last = {contender: [curve[-1] for curve in of] for contender, of in curves.items()}
    apart = max(
        abs(a - b) for ours, theirs in zip(*curves.values(), strict=True) for a, b in zip(ours, theirs, strict=True)
    )
    deviation = statistics.stdev(last["scvi-tools"])
    print(
        f"{name}, {likelihood}, batch {batch}, {epochs} epochs, {seeds} seeds: minus the ELBO",
        *(f"{contender} {statistics.mean(of):.2f}" for contender, of in last.items()),
        f"standard deviation over seeds {deviation:.2f}, at most {apart:.1e} apart at any epoch of a seed",
        *(f"{contender} {1e3 * statistics.median(of):.0f} ms an epoch" for contender, of in seconds.items()),
        sep="; ",
        flush=True,
    )
    return {
        "data": name, "likelihood": likelihood, "batch": batch, "curves": curves, "seconds_per_epoch": seconds,
        "standard_deviation": deviation, "largest_difference": apart,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_scvi", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="threads that torch uses; by default as many as it does")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--resident", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with timing.threads(arguments.threads):
        if arguments.resident:
            print(resident_growth(arguments.resident))
            return
        result: dict[str, Any] = {"machine": timing.machine(), "scvi": scvi.__version__}
        data = made_up_cells()
        result["zeros"] = float((data.X == 0).mean())
        print(table.describe(result["machine"]), f"scvi-tools {scvi.__version__}", sep=", ")
        print(f"{CELLS} cells of {GENES} genes, {result['zeros']:.0%} of the counts 0")
        result["steps"] = measure_steps(data, arguments.rounds)
        timing.save(arguments.json, result)
        result["resident_bytes"] = {name: resident_growth_elsewhere(name) for name in CONTENDERS}
        print("resident memory of zinb, batch 512:", json.dumps(result["resident_bytes"]))
        result["gradients"] = [row for likelihood in ("zinb", "nb") for row in measure_gradients(data, likelihood)]
        timing.save(arguments.json, result)
        result["training"] = [
            measure_training("synthetic_iid", synthetic_cells(), "zinb", 128, 40, arguments.seeds),
            measure_training("made-up cells", data, "zinb", 128, 10, arguments.seeds),
        ]
        timing.save(arguments.json, result)


if __name__ == "__main__":
    main()
