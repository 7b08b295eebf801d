"""The command line: ``fastvae train``, ``sample``, ``evaluate``, ``experiment`` and ``info``.

Whatever a user can get wrong ends in one line on stderr and a non-zero exit. Drawing, data and logging
libraries are loaded by what needs them, so that ``--help`` and errors come at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch

import fastvae
from fastvae.data import DatasetName, load
from fastvae.evaluation import Proposal, evaluate, evaluate_code, log_likelihood
from fastvae.files import replacing
from fastvae.models import VAE, Regressor
from fastvae.models.likelihood import LikelihoodName
from fastvae.models.networks import Activation, Preset
from fastvae.objectives import Gradient, ScheduleKind

try:
    import typer

    from fastvae import training
    from fastvae.display import TrainingDisplay, progress_bar
    from fastvae.training import StoppedError, TrainConfig, TrainingError
    from fastvae.training.config import Amp, Binarize, Condition, Decay, ModelName
    from fastvae.training.inputs import model_inputs, sample
    from fastvae.training.solver import Scaling
except ModuleNotFoundError as missing:
    sys.exit(f"fastvae: error: {missing.name} is not installed: pip install fastvae[train]")

_INTERRUPTED = 130
_TERMINATED = 143  # what a shell, and so a scheduler, takes for SIGTERM


class _InterruptedError(Exception):
    """An interrupt, with what to say beside."""


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Variational auto-encoders, fast.")

CheckpointPath = Annotated[Path, typer.Argument(help="The folder of a run, or of one of its checkpoints.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the IDX files; digits need none.", show_default="$FASTVAE_DATA, or else they are downloaded"
    ),
]
TrainedDataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the IDX files, where images of theirs are needed.",
        show_default="that of the training, or as for train",
    ),
]
_MAX_SEED = 2**63 - 1


@app.command("train")
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
    seed: Annotated[int, typer.Option(min=0, max=_MAX_SEED, help="Of weights, noise and order.")] = TrainConfig.seed,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run.", show_default="runs/DATASET-DATE-TIME"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out; options default to the run's own. "
            "Under torchrun, start it where there is none.",
        ),
    ] = False,
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
    if find_batch_size:
        _print_batch_sizes(TrainConfig(**options), device)
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if out is None:
            # A name with the time in it would be another one in each process, and after a restart.
            raise typer.BadParameter("is needed under torchrun", param_hint="--out")
        # What torchrun starts again has the same options. It does not count how often machines come and go, so that
        # --resume stands for the first start too.
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        resume = (resume or restarted) and training.holds_run(out)
    if not resume:
        config = TrainConfig(**options)
        out = out or Path("runs") / f"{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    else:
        if out is None:
            raise typer.BadParameter("needs the folder of the run, --out DIR", param_hint="--resume")
        given = {name: value for name, value in options.items() if _is_given(context, name)}
        config = dataclasses.replace(training.saved_config(out), **given)

    how_to_go_on = f"; go on with: fastvae train --resume --out {shlex.quote(str(out))}"
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        with TrainingDisplay(quiet=not first) as display:
            result = training.train(
                config,
                out,
                resume=resume,
                progress=display.show,
                device=device,
                fsdp=fsdp,
                cuda_graph=cuda_graph,
                keep=keep,
                save_steps=save_steps,
            )
    except KeyboardInterrupt:
        raise _InterruptedError(how_to_go_on if training.holds_run(out) else "") from None
    except StoppedError as stopped:
        raise StoppedError(f"{stopped}{how_to_go_on}") from None
    if not first:
        return
    test = result.history[-1]["test"]
    print(
        f"test ELBO {test['elbo']:.2f} nats ({test['bits_per_dim']:.4f} bits/dim) "
        f"after epoch {len(result.history)}; pictures in {out}: {', '.join(training.PICTURES)}"
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


@app.command("sample")
def sample_command(
    checkpoint: CheckpointPath,
    num: Annotated[int, typer.Option(min=1, help="How many images.")] = 100,
    label: Annotated[
        int | None,
        typer.Option(min=0, help="Of all images, where the condition is labels.", show_default="each in turn"),
    ] = None,
    data_dir: TrainedDataDir = None,
    seed: Annotated[int, typer.Option(min=0, max=_MAX_SEED, help="Of the codes z.")] = 0,
    out: Annotated[Path, typer.Option(help="The picture; overwritten if it is there.")] = Path("samples.png"),
) -> None:
    """Draw images from a trained model: of each label, or completions of test images, where it has a condition."""
    from fastvae import plots

    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{out} does not end in .png", param_hint="--out")
    loaded = training.load_checkpoint(checkpoint)
    config = TrainConfig.from_checkpoint(loaded)
    model = loaded.build_model()
    generator = _generator(seed)
    classes = None if isinstance(model, VAE) else model.condition_classes
    columns, condition = math.ceil(math.sqrt(num)), None
    if label is not None:
        if classes is None:
            raise typer.BadParameter(f"{checkpoint} was not trained with --condition labels", param_hint="--label")
        if label >= classes:
            raise typer.BadParameter(f"labels lie in 0 .. {classes - 1}, not {label}", param_hint="--label")
        condition = torch.tensor([label])
    elif config.completes:
        data = load(config.dataset, config.data_dir if data_dir is None else data_dir)
        _, condition = model_inputs(config, data.test_images[:num], None, generator)
    elif classes is not None:
        columns = classes
    images = sample(model, config, num, condition, generator)
    with replacing(out) as temporary:
        plots.save_samples(images, columns, temporary)
    print(f"{num} samples in {out}")


@app.command("evaluate")
def evaluate_command(
    checkpoint: CheckpointPath,
    dataset: Annotated[
        DatasetName | None,
        typer.Option(help="What to evaluate on.", show_default="what it was trained on"),
    ] = None,
    data_dir: TrainedDataDir = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=_MAX_SEED, help="Of the noise.", show_default="that of the training"),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Of z for each test image: the importance-weighted bound.")] = 0,
    prior_samples: Annotated[
        int, typer.Option(min=0, help="The same with z from the prior, as in eq. 1 of the tutorial.")
    ] = 0,
    images: Annotated[int | None, typer.Option(min=1, help="How many of the test images.", show_default="all")] = None,
    memory: Annotated[int, typer.Option(min=1, help="MiB for the decoder's activations.")] = 16,
    amp: Annotated[Amp | None, typer.Option(help="Decode the samples in bfloat16.")] = None,
    partial: Annotated[
        Path | None, typer.Option(help="Keeps what is done of the samples in this file, and goes on from it.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Print the ELBO of a trained model and its parts, what its code carries, and its likelihood by sampling."""
    if samples and prior_samples and partial is not None:
        raise typer.BadParameter("keeps one of --samples and --prior-samples, not both", param_hint="--partial")
    loaded = training.load_checkpoint(checkpoint)
    config = TrainConfig.from_checkpoint(loaded)
    dataset = dataset or config.dataset
    seed = config.seed if seed is None else seed
    # The folder of another data set than the run's is not known.
    trained_from = config.data_dir if dataset == config.dataset else None
    # At once: a training that goes on removes its older checkpoints.
    model = loaded.build_model()
    data = load(dataset, trained_from if data_dir is None else data_dir)
    # What a model completes is a column narrower than the images.
    shape = (*model.data_shape[:-1], model.data_shape[-1] + config.completes)
    if data.image_shape != shape:
        raise ValueError(
            f"{dataset} has images of {'x'.join(map(str, data.image_shape))}, but {checkpoint} was trained on "
            f"{config.dataset}, of {'x'.join(map(str, shape))}"
        )
    binary = config.binarize == "dynamic"
    if isinstance(model, Regressor) and (samples or prior_samples):
        raise ValueError(f"{checkpoint} is a regressor: it has no z, and its log-likelihood needs no samples")

    print(f"{dataset:<14} {'ELBO':>18} {'reconstruction':>15} {'KL':>8}  nats {'bits/dim':>9}")
    figures: dict[str, Any] = {"checkpoint": str(checkpoint), "dataset": dataset, "seed": seed}
    test_images, test_labels = data.test_images[:images], data.test_labels[:images]
    for part, part_images, part_labels in (
        ("train", data.train_images, data.train_labels),
        ("test", test_images, test_labels),
    ):
        generator = _generator(seed)  # of the condition and of the code, as in training
        arguments = model_inputs(config, part_images, part_labels, generator)
        report = evaluate(model, *arguments, binarize=binary, generator=generator)
        figures[part] = report._asdict()
        print(
            f"{part:<14} {report.elbo:>10.2f} ± {report.standard_error or 0:<5.2f} {report.reconstruction:>15.2f} "
            f"{report.kl:>8.2f} {report.bits_per_dim:>15.4f}"
        )
    proposals: tuple[tuple[Proposal, int], ...] = (("posterior", samples), ("prior", prior_samples))
    if not isinstance(model, Regressor):
        code = evaluate_code(model, *arguments, binarize=binary, generator=_generator(seed))
        figures["code"] = code._asdict()
        print(
            f"code           {code.active_units} of {model.latent_dim} dimensions in use; nats of each:",
            *(f"{nats:.2f}" for nats in sorted(code.nats, reverse=True)),
        )
    for proposal, count in proposals:
        if not count or isinstance(model, Regressor):
            continue
        with progress_bar(f"{count} samples") as show:
            likelihood = log_likelihood(
                model,
                *arguments,
                num_samples=count,
                proposal=proposal,
                memory=memory * 2**20,
                binarize=binary,
                amp=amp,
                seed=seed,
                partial=partial,
                progress=lambda done, mean, show=show: show(done, len(test_images), f"{mean:.2f} nats"),  # type: ignore[misc]
            )
        figures[f"log_likelihood_{proposal}"] = likelihood._asdict()
        print(
            f"test, {count} samples of the {proposal}: {likelihood.log_likelihood:.2f} ± "
            f"{likelihood.standard_error:.2f} nats (± {likelihood.sampling_error:.3f} of sampling), "
            f"{likelihood.bits_per_dim:.4f} bits/dim, effective sample size {likelihood.effective_sample_size:.1f}"
        )
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


@app.command("experiment")
def experiment_command(
    name: Annotated[str, typer.Argument(help="Of the experiment, or `list`.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Small networks on scikit-learn's digits, in less than a minute.")
    ] = False,
    data_dir: DataDir = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of each training.", show_default="the experiment's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=_MAX_SEED, help="Of everything.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the picture, its figures and its training runs.", show_default="runs/NAME"),
    ] = None,
) -> None:
    """Draw a figure of the tutorial, or show what it says; run it again to go on where it stopped."""
    from fastvae import experiments

    if name == "list":
        width = max(map(len, experiments.EXPERIMENTS))
        for each, function in experiments.EXPERIMENTS.items():
            print(f"{each:<{width}}  {(function.__doc__ or '').splitlines()[0]}")
        return
    out = out or Path("runs") / (f"{name}-quick" if quick else name)
    with progress_bar(name) as show:
        experiments.run(
            name,
            out,
            quick=quick,
            data_dir=None if data_dir is None else str(data_dir.absolute()),
            epochs=epochs,
            seed=seed,
            report=lambda text: show(0, None, text),
        )
    print(f"{out / name}.png, {out / name}.json")


@app.command("info")
def info_command() -> None:
    """Print what this installation was built for and runs on."""
    info = fastvae.build_info()
    width = max(map(len, info))
    for key, value in info.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else value
        print(f"{key:<{width}}  {shown}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; by default the process's own.

    Returns:
        The exit status: 0, 1 for what could not be done, 2 for wrong options, 130 after an interrupt, 143 after
        SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # Not standalone: typer would draw a box of several lines around an error.
        status = app(list(arguments) or ["--help"], prog_name="fastvae", standalone_mode=False)
        if status == _INTERRUPTED:  # typer has caught the interrupt
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except typer.TyperException as error:
        _complain(f"error: {error.format_message()}")
        return error.exit_code
    except ModuleNotFoundError as error:
        _complain(f"error: {error.name} is not installed: pip install fastvae[train]")
    except OSError as error:
        detail = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        _complain(f"error: {detail}")
    except StoppedError as stopped:
        _complain(str(stopped))
        return _TERMINATED
    except (ValueError, TrainingError) as error:
        _complain(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for memory that is not to be had on the CPU.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        _complain("error: out of memory: try a smaller batch, model or number of images")
    except (_InterruptedError, KeyboardInterrupt) as interrupt:
        _complain(f"interrupted{interrupt}")
        return _INTERRUPTED
    return 1


def _complain(message: str) -> None:
    print("fastvae:", *(line.strip() for line in message.splitlines()), file=sys.stderr)


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",") if width.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of widths such as 200,200", param_hint="--hidden") from None


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
