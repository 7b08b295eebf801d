"""The command ``fastvae train``."""

from __future__ import annotations

import dataclasses
import os
import shlex
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvae import training
from fastvae.cli.options import DATA_DIR_DEFAULT, DATA_DIR_HELP, MAX_SEED
from fastvae.cli.trained import DATA_GIVEN
from fastvae.data import DatasetName, Layout
from fastvae.display import TrainingDisplay
from fastvae.layers import Activation
from fastvae.models.convolutional import Norm
from fastvae.models.likelihood import LikelihoodName
from fastvae.models.networks import Preset
from fastvae.objectives import Gradient, ScheduleKind
from fastvae.training import StoppedError, TrainConfig
from fastvae.training.config import Amp, Binarize, Condition, Decay, ModelName
from fastvae.training.config_file import with_absolute_paths
from fastvae.training.feed import DataOn
from fastvae.training.lock import locked
from fastvae.training.memory import keep_freed_memory
from fastvae.training.solver import Scaling


class InterruptedRunError(Exception):
    """An interrupt, with a text to print after the word interrupted."""


# A panel of the help each.
_data = partial(typer.Option, rich_help_panel="Data")
_model = partial(typer.Option, rich_help_panel="Model")
_objective = partial(typer.Option, rich_help_panel="Objective")
_optimisation = partial(typer.Option, rich_help_panel="Optimisation")
_run = partial(typer.Option, rich_help_panel="Run")
_hardware = partial(typer.Option, rich_help_panel="Hardware")


def train_command(
    context: typer.Context,
    dataset: Annotated[DatasetName, _data(help="Data set to train on.")] = TrainConfig.dataset,
    data_dir: Annotated[Path | None, _data(help=DATA_DIR_HELP, show_default=DATA_DIR_DEFAULT)] = None,
    data: Annotated[
        Path | None,
        _data(
            help="File or folder of your own data, in place of --dataset: .npy, .npz, .pt, .safetensors, .h5ad, "
            "Parquet, IDX, or a folder of images.",
            show_default=False,
        ),
    ] = None,
    test_data: Annotated[
        Path | None,
        _data(help="File or folder of the test set of --data.", show_default="the one in --data, or --test-fraction"),
    ] = None,
    test_fraction: Annotated[
        float,
        _data(help="Fraction of the rows of --data that is set aside for testing, the same rows in every run."),
    ] = TrainConfig.test_fraction,
    labels: Annotated[
        str | None,
        _data(
            help="Column or array of --data that holds the class labels; an empty name means none.",
            show_default="one named like label or y, if labels are needed",
        ),
    ] = TrainConfig.labels,
    layout: Annotated[
        Layout, _data(help="Whether images in arrays of 4 dimensions have their channels first (chw) or last (hwc).")
    ] = TrainConfig.layout,
    binarize: Annotated[
        Binarize,
        _data(help="Whether targets are grey pixels (none) or binary ones drawn anew in every epoch (dynamic)."),
    ] = TrainConfig.binarize,
    model: Annotated[
        ModelName,
        _model(help="Model to train: a VAE, a conditional VAE, or a regressor, which predicts without a code."),
    ] = TrainConfig.model,
    condition: Annotated[
        Condition,
        _model(
            help="What a cvae or regressor is given: the image's middle column (it completes the rest) or its class "
            "label."
        ),
    ] = TrainConfig.condition,
    network: Annotated[
        str,
        _model(
            help="Networks of the encoder and decoder: mlp, conv (residual convolutions, for images), or your own as "
            "package.module:function."
        ),
    ] = TrainConfig.network,
    conv_width: Annotated[
        int, _model(min=1, help="Channels of the first level of --network conv that has residual blocks.")
    ] = TrainConfig.conv_width,
    conv_depth: Annotated[
        int, _model(min=1, help="Residual blocks on each level of --network conv.")
    ] = TrainConfig.conv_depth,
    conv_norm: Annotated[
        Norm, _model(help="Normalisation in the residual blocks of --network conv.")
    ] = TrainConfig.conv_norm,
    latent_dim: Annotated[int, _model(min=1, help="Number of dimensions of the code z.")] = TrainConfig.latent_dim,
    hidden: Annotated[
        str, _model(help="Widths of the MLP encoder's hidden layers; the decoder has the same in reverse.")
    ] = ",".join(map(str, TrainConfig.hidden)),
    activation: Annotated[
        Activation, _model(help="Activation function of the MLP's hidden layers.")
    ] = TrainConfig.activation,
    preset: Annotated[
        Preset | None,
        _model(help="Published code whose wiring, initial weights and solver are used: doersch is the tutorial's."),
    ] = TrainConfig.preset,
    likelihood: Annotated[
        LikelihoodName | None,
        _model(
            help="Distribution of each number of a row given the code z. For counts: binomial, poisson, or, with means "
            "that are shares of the row's sum, negative-binomial, zinb (zero-inflated) and multinomial.",
            show_default="binomial for the digits, otherwise bernoulli",
        ),
    ] = TrainConfig.likelihood,
    total: Annotated[
        int | None,
        _model(
            min=1,
            help="Trials of the binomial likelihood: the largest count that is possible.",
            show_default="16 for the digits, 255 for the other data sets",
        ),
    ] = TrainConfig.total,
    sigma: Annotated[
        float,
        _model(help="Standard deviation of the Gaussian likelihood or scale of the Laplace one, for pixels in [0, 1]."),
    ] = TrainConfig.sigma,
    learn_sigma: Annotated[
        bool,
        _model("--learn-sigma", help="Train the sigma of the Gaussian or Laplace likelihood, starting from --sigma."),
    ] = False,
    beta: Annotated[float, _objective(help="Weight of the KL term in the loss; 1 gives the ELBO.")] = TrainConfig.beta,
    anneal: Annotated[
        ScheduleKind | None, _objective(help="Schedule by which the weight of the KL term rises from 0 to --beta.")
    ] = TrainConfig.anneal,
    anneal_epochs: Annotated[
        int, _objective(min=1, help="Epochs over which --anneal raises the weight of the KL term.")
    ] = TrainConfig.anneal_epochs,
    free_bits: Annotated[
        float, _objective(help="Nats of KL that each dimension of the code may carry at no cost.")
    ] = TrainConfig.free_bits,
    importance_samples: Annotated[
        int,
        _objective(
            min=1,
            help="Samples of z per image. With 2 or more, the importance-weighted bound (IWAE) is trained instead of "
            "the ELBO.",
        ),
    ] = TrainConfig.importance_samples,
    gradient: Annotated[
        Gradient, _objective(help="Estimator of the gradient of the importance-weighted bound.")
    ] = TrainConfig.gradient,
    epochs: Annotated[int, _optimisation(min=1, help="Passes through the training set.")] = TrainConfig.epochs,
    batch_size: Annotated[
        int, _optimisation(min=1, help="Images per step, counted over all processes.")
    ] = TrainConfig.batch_size,
    accumulate: Annotated[
        int,
        _optimisation(
            min=1,
            help="Parts into which each batch is split. Processes share them out, and a process takes its parts one "
            "after the other, which saves memory.",
        ),
    ] = TrainConfig.accumulate,
    learning_rate: Annotated[
        float, _optimisation(help="Learning rate of the Adam optimiser.")
    ] = TrainConfig.learning_rate,
    scale_learning_rate: Annotated[
        Scaling | None,
        _optimisation(
            help="Rule by which the learning rate grows with the batch size; --learning-rate is then the one for "
            "batches of 100 images."
        ),
    ] = TrainConfig.scale_learning_rate,
    warmup_epochs: Annotated[
        int, _optimisation(min=0, help="Epochs over which the learning rate rises linearly from 0.")
    ] = TrainConfig.warmup_epochs,
    decay: Annotated[
        Decay | None, _optimisation(help="Schedule by which the learning rate falls to 0 until the last epoch.")
    ] = TrainConfig.decay,
    clip_norm: Annotated[
        float | None, _optimisation(help="Largest norm of the gradient; a longer gradient is shortened to it.")
    ] = TrainConfig.clip_norm,
    seed: Annotated[
        int,
        _optimisation(
            min=0,
            max=MAX_SEED,
            help="Seed of the initial weights, the noise and the order of the images.",
        ),
    ] = TrainConfig.seed,
    config: Annotated[
        Path | None,
        _run(
            help="TOML file of the options of the panels above (batch_size = 64) and of --amp and --compile. Options "
            "on the command line win over it. Each run leaves such a file, config.toml, in its folder.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        _run(
            help="Folder of the run: it gets checkpoints, metrics, TensorBoard logs and pictures.",
            show_default="runs/NAME-DATE-TIME",
        ),
    ] = None,
    resume: Annotated[
        bool,
        _run(
            "--resume",
            help="Go on with the run in --out, or start one if there is none yet. Options that are not given keep the "
            "run's values.",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        _run(
            help="Run, or one of its checkpoints, from whose weights a new run starts (fine-tuning). Options that are "
            "not given take that run's values.",
            show_default="weights drawn from --seed",
        ),
    ] = None,
    keep: Annotated[int, _run(min=1, help="Number of newest checkpoints that are kept.")] = 2,
    save_steps: Annotated[
        int | None,
        _run(min=1, help="Steps between further checkpoints within an epoch.", show_default="one after each epoch"),
    ] = None,
    find_batch_size: Annotated[
        bool,
        _run(
            "--find-batch-size",
            help="Measure and print the speed and memory use of growing batches, and train nothing.",
        ),
    ] = False,
    device: Annotated[
        str | None,
        _hardware(help="Device to train on: cpu, cuda or cuda:N.", show_default="a GPU where there is one"),
    ] = None,
    data_on: Annotated[
        DataOn,
        _hardware(
            help="Where the training set is: in the memory of the device, or on the host, from which batches are read "
            "one ahead. auto takes the device if the data fill at most half of its free memory."
        ),
    ] = "auto",
    amp: Annotated[
        Amp | None, _hardware(help="Number format that training steps autocast to.", show_default="float32")
    ] = TrainConfig.amp,
    compile: Annotated[bool, _hardware("--compile", help="Compile the training step with torch.compile.")] = False,
    cuda_graph: Annotated[
        bool,
        _hardware("--cuda-graph", help="Replay the step as a CUDA graph, which speeds up small networks and batches."),
    ] = False,
    fsdp: Annotated[
        bool,
        _hardware("--fsdp", help="Shard the weights and the optimiser's state over torchrun's processes (FSDP2)."),
    ] = False,
) -> None:
    """Train a VAE and draw samples, reconstructions and learning curves.

    With torchrun, as in the last example below, several processes share out each batch.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    if "TORCHELASTIC_RUN_ID" in os.environ and not find_batch_size:
        if out is None:
            # A name with the time in it would be another one in each process, and after a restart.
            raise typer.BadParameter("it is needed under torchrun", param_hint="--out")
        # What torchrun starts again has the same options.
        resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and out is None:
        raise typer.BadParameter("it needs the folder of the run, --out DIR", param_hint="--resume")
    from_file = {} if config is None else training.read_config(config)
    from_options = _given_fields(context)
    given = _over(from_file, from_options)
    # Each configuration as a dictionary until it is complete: a layer by itself may contradict the defaults.
    fields = given
    if resume and out is not None and training.holds_run(out):
        # Not while another run changes it, which the first process finds out for all.
        with locked(out) if first else nullcontext():
            fields = _fields_of(out, given) | given
    elif init_from is not None:
        fields = _over(_fields_of(init_from, given), given)
    try:
        run_config = TrainConfig(**fields)
    except ValueError as error:
        if not from_file:
            raise
        raise ValueError(f"{config}{' with the options given' if from_options else ''}: {error}") from None
    if find_batch_size:
        _print_batch_sizes(run_config, device, data_on)
        return
    out = out or Path("runs") / f"{Path(run_config.data_name).stem}-{datetime.now():%Y%m%d-%H%M%S}"

    keep_freed_memory()
    how_to_go_on = f"; go on with: fastvae train --resume --out {shlex.quote(str(out))}"
    try:
        with TrainingDisplay(quiet=not first) as display:
            result = training.train(
                run_config,
                out,
                resume=resume,
                init_from=init_from,
                progress=display.show,
                reading=display.read,
                device=device,
                fsdp=fsdp,
                cuda_graph=cuda_graph,
                data_on=data_on,
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
    bits = "" if test["bits_per_dim"] is None else f" ({test['bits_per_dim']:.4f} bits/dim)"
    print(
        f"test ELBO {test['elbo']:.2f} nats{bits} after epoch {len(result.history)}"
        + (f"; pictures in {out}: {pictures}" if pictures else f", in {out}")
    )


def _fields_of(run: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run, whose data are meant where ``given`` names none."""
    checkpoint = training.load_checkpoint(run)
    if checkpoint.position.data_given and given.keys().isdisjoint(("data", "dataset")):
        raise ValueError(f"{run} {DATA_GIVEN}")
    return vars(TrainConfig.from_checkpoint(checkpoint))


def _print_batch_sizes(config: TrainConfig, device: str | None, data_on: DataOn) -> None:
    print(f"{'batch':>7} {'images/s':>9} {'peak MiB':>9}")

    def show(result: training.BatchSpeed) -> None:
        print(
            f"{result.batch_size:>7} {result.images_per_second:>9,.0f} {result.peak_bytes / 2**20:>9,.0f}", flush=True
        )

    results = training.measure_batch_sizes(config, device=device, data_on=data_on, report=show)
    print(
        f"--batch-size {training.best_batch_size(results)} is within 5 % of the fastest; "
        "with a batch of more than 100, see --scale-learning-rate, --warmup-epochs and --decay"
    )


def _given_fields(context: typer.Context) -> dict[str, Any]:
    """The fields of the configuration that options give, each of which has its field's name."""
    given = {
        field.name: context.params[field.name]
        for field in dataclasses.fields(TrainConfig)
        if (source := context.get_parameter_source(field.name)) is not None and source.name != "DEFAULT"
    }
    if "hidden" in given:
        given["hidden"] = _widths(given["hidden"])
    return with_absolute_paths(given, Path.cwd())


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Fields laid over others, whose paths are dropped where they are of data that are no longer meant."""
    stale: set[str] = set()
    if "dataset" in below and above.get("dataset", below["dataset"]) != below["dataset"]:
        stale = {"data_dir"}
    if "data" in above:
        stale |= {"test_data"}
    elif "dataset" in above:
        stale |= {"data", "test_data"}
    return {name: value for name, value in below.items() if name not in stale} | above


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",") if width.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of widths such as 200,200", param_hint="--hidden") from None
