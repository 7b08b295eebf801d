"""``fastvae train``."""

from __future__ import annotations

import dataclasses
import os
import shlex
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvae import training
from fastvae.cli.options import MAX_SEED, DataDir
from fastvae.data import DatasetName
from fastvae.display import TrainingDisplay
from fastvae.models.likelihood import LikelihoodName
from fastvae.models.networks import Activation, Preset
from fastvae.objectives import Gradient, ScheduleKind
from fastvae.training import StoppedError, TrainConfig
from fastvae.training.config import Amp, Binarize, Condition, Decay, ModelName
from fastvae.training.lock import locked
from fastvae.training.solver import Scaling


class InterruptedRunError(Exception):
    """An interrupt, with what to say beside."""


def train_command(
    context: typer.Context,
    model: Annotated[
        ModelName, typer.Option(help="A VAE, a VAE with a condition, or what predicts an image from that alone.")
    ] = TrainConfig.model,
    condition: Annotated[
        Condition, typer.Option(help="Of those two: an image's middle column, which they complete, or its label.")
    ] = TrainConfig.condition,
    dataset: Annotated[DatasetName, typer.Option(help="What to train on.")] = TrainConfig.dataset,
    data_dir: DataDir = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes through the training set.")] = TrainConfig.epochs,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per step, in all processes together.")
    ] = TrainConfig.batch_size,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts of a batch, shared out or one after the other, to save memory.")
    ] = TrainConfig.accumulate,
    latent_dim: Annotated[int, typer.Option(min=1, help="Size of the code z.")] = TrainConfig.latent_dim,
    hidden: Annotated[
        str, typer.Option(help="Widths of the encoder's hidden layers; the decoder mirrors them.")
    ] = ",".join(map(str, TrainConfig.hidden)),
    activation: Annotated[Activation, typer.Option(help="Of the hidden layers.")] = TrainConfig.activation,
    preset: Annotated[
        Preset | None, typer.Option(help="The tutorial's own wiring, initial weights and solver.")
    ] = TrainConfig.preset,
    likelihood: Annotated[
        LikelihoodName, typer.Option(help="Distribution of a pixel given z.")
    ] = TrainConfig.likelihood,
    sigma: Annotated[
        float, typer.Option(help="Standard deviation of the Gaussian likelihood, pixels in [0, 1].")
    ] = TrainConfig.sigma,
    learn_sigma: Annotated[bool, typer.Option("--learn-sigma", help="Make it a parameter.")] = False,
    beta: Annotated[float, typer.Option(help="Weight of the KL term; 1 is the ELBO.")] = TrainConfig.beta,
    anneal: Annotated[
        ScheduleKind | None, typer.Option(help="How that weight comes from 0 at first.")
    ] = TrainConfig.anneal,
    anneal_epochs: Annotated[int, typer.Option(min=1, help="How long it takes.")] = TrainConfig.anneal_epochs,
    free_bits: Annotated[
        float, typer.Option(help="Nats of each dimension of z that cost nothing.")
    ] = TrainConfig.free_bits,
    importance_samples: Annotated[
        int, typer.Option(min=1, help="Of z for each image; from 2 on, the importance-weighted bound.")
    ] = TrainConfig.importance_samples,
    gradient: Annotated[Gradient, typer.Option(help="Estimator of that bound's gradient.")] = TrainConfig.gradient,
    binarize: Annotated[
        Binarize, typer.Option(help="Grey targets, or binary ones drawn anew at every pass.")
    ] = TrainConfig.binarize,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = TrainConfig.learning_rate,
    scale_learning_rate: Annotated[
        Scaling | None, typer.Option(help="How it grows with the batch: it is then that of 100 images.")
    ] = TrainConfig.scale_learning_rate,
    warmup_epochs: Annotated[
        int, typer.Option(min=0, help="In which it rises from 0 at first.")
    ] = TrainConfig.warmup_epochs,
    decay: Annotated[Decay | None, typer.Option(help="How it falls to 0 until the last epoch.")] = TrainConfig.decay,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = TrainConfig.clip_norm,
    amp: Annotated[Amp | None, typer.Option(help="Autocast to bfloat16.")] = TrainConfig.amp,
    compile: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of weights, noise and order.")] = TrainConfig.seed,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run.", show_default="runs/DATASET-DATE-TIME"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, whose options are kept where none are given, or start it if there is "
            "none yet.",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Start a new run from the weights of this run, or of one of its checkpoints; options that are not "
            "given are those of that run.",
            show_default="weights drawn from --seed",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="a GPU where there is one")
    ] = None,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Share out the weights too, among the processes of torchrun.")
    ] = False,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Let a GPU repeat the step by itself, for small networks and batches.")
    ] = False,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints that are kept, the newest.")] = 2,
    save_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints.", show_default="one after each epoch")
    ] = None,
    find_batch_size: Annotated[
        bool, typer.Option("--find-batch-size", help="Print what growing batches would bring, and train nothing.")
    ] = False,
) -> None:
    """Train a VAE and draw samples, reconstructions and learning curves.

    Under torchrun, in as many processes as it starts: torchrun --nproc-per-node 2 -m fastvae train --out DIR.
    """
    options: dict[str, Any] = {
        "model": model,
        "condition": condition,
        "dataset": dataset,
        "data_dir": None if data_dir is None else str(data_dir.absolute()),
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "latent_dim": latent_dim,
        "hidden": _widths(hidden),
        "activation": activation,
        "preset": preset,
        "likelihood": likelihood,
        "sigma": sigma,
        "learn_sigma": learn_sigma,
        "beta": beta,
        "anneal": anneal,
        "anneal_epochs": anneal_epochs,
        "free_bits": free_bits,
        "importance_samples": importance_samples,
        "gradient": gradient,
        "binarize": binarize,
        "learning_rate": learning_rate,
        "scale_learning_rate": scale_learning_rate,
        "warmup_epochs": warmup_epochs,
        "decay": decay,
        "clip_norm": clip_norm,
        "amp": amp,
        "compile": compile,
        "seed": seed,
    }
    first = int(os.environ.get("RANK", "0")) == 0
    if "TORCHELASTIC_RUN_ID" in os.environ and not find_batch_size:
        if out is None:
            # A name with the time in it would be another one in each process, and after a restart.
            raise typer.BadParameter("is needed under torchrun", param_hint="--out")
        # What torchrun starts again has the same options.
        resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and out is None:
        raise typer.BadParameter("needs the folder of the run, --out DIR", param_hint="--resume")
    given = {name: value for name, value in options.items() if _is_given(context, name)}
    base = TrainConfig()
    if resume and out is not None and training.holds_run(out):
        # Not while another run changes it, which the first process finds out for all.
        with locked(out) if first else nullcontext():
            base = training.saved_config(out)
    elif init_from is not None:
        base = training.saved_config(init_from)
        if given.get("dataset", base.dataset) != base.dataset:
            base = dataclasses.replace(base, data_dir=None)  # which is of that data set
    config = dataclasses.replace(base, **given)
    if find_batch_size:
        _print_batch_sizes(config, device)
        return
    out = out or Path("runs") / f"{config.dataset}-{datetime.now():%Y%m%d-%H%M%S}"

    how_to_go_on = f"; go on with: fastvae train --resume --out {shlex.quote(str(out))}"
    try:
        with TrainingDisplay(quiet=not first) as display:
            result = training.train(
                config,
                out,
                resume=resume,
                init_from=init_from,
                progress=display.show,
                device=device,
                fsdp=fsdp,
                cuda_graph=cuda_graph,
                keep=keep,
                save_steps=save_steps,
            )
    except KeyboardInterrupt:
        raise InterruptedRunError(how_to_go_on if training.holds_run(out) else "") from None
    except StoppedError as stopped:
        raise StoppedError(f"{stopped}{how_to_go_on}") from None
    if not first:
        return
    test = result.history[-1]["test"]
    pictures = ", ".join(name for name in training.PICTURES if (out / name).is_file())
    print(
        f"test ELBO {test['elbo']:.2f} nats ({test['bits_per_dim']:.4f} bits/dim) after epoch {len(result.history)}"
        + (f"; pictures in {out}: {pictures}" if pictures else f", in {out}")
    )


def _print_batch_sizes(config: TrainConfig, device: str | None) -> None:
    print(f"{'batch':>7} {'images/s':>9} {'peak MiB':>9}")

    def show(result: training.BatchSpeed) -> None:
        print(
            f"{result.batch_size:>7} {result.images_per_second:>9,.0f} {result.peak_bytes / 2**20:>9,.0f}", flush=True
        )

    results = training.measure_batch_sizes(config, device=device, report=show)
    print(
        f"--batch-size {training.best_batch_size(results)} is within 5 % of the fastest; "
        "with a batch of more than 100, see --scale-learning-rate, --warmup-epochs and --decay"
    )


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",") if width.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of widths such as 200,200", param_hint="--hidden") from None
