"""``fastvae evaluate`` and ``fastvae sample``: what a trained model is worth, and what it draws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastvae import training
from fastvae.cli.options import MAX_SEED, CheckpointPath, TrainedDataDir, seeded
from fastvae.data import DatasetName, load
from fastvae.display import progress_bar
from fastvae.evaluation import Proposal, evaluate, evaluate_code, log_likelihood
from fastvae.files import replacing
from fastvae.models import VAE, Regressor
from fastvae.training import TrainConfig
from fastvae.training.config import Amp
from fastvae.training.inputs import model_inputs, sample


def sample_command(
    checkpoint: CheckpointPath,
    num: Annotated[int, typer.Option(min=1, help="Number of images to draw.")] = 100,
    label: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Class label of every image, for a model trained with --condition labels.",
            show_default="each label in turn",
        ),
    ] = None,
    data_dir: TrainedDataDir = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the codes z.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file to write; an existing one is replaced.")] = Path("samples.png"),
) -> None:
    """Draw images from a trained model.

    A model that is given labels draws each of them in turn; one that is given columns completes test images.
    """
    from fastvae import plots

    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{out} does not end in .png", param_hint="--out")
    loaded = training.load_checkpoint(checkpoint)
    config = TrainConfig.from_checkpoint(loaded)
    model = loaded.build_model()
    generator = seeded(seed)
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
        _, condition = model_inputs(config, data.test[:num], None, generator)
    elif classes is not None:
        columns = classes
    images = sample(model, config, num, condition, generator)
    with replacing(out) as temporary:
        plots.save_samples(images, columns, temporary)
    print(f"{num} samples in {out}")


def evaluate_command(
    checkpoint: CheckpointPath,
    dataset: Annotated[
        DatasetName | None,
        typer.Option(help="Data set to evaluate on.", show_default="the one of the training"),
    ] = None,
    data_dir: TrainedDataDir = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, help="Seed of the noise.", show_default="that of the training"),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            min=0, help="Samples of z per test image, for an estimate of the log-likelihood by the encoder's posterior."
        ),
    ] = 0,
    prior_samples: Annotated[
        int,
        typer.Option(min=0, help="Samples of z per test image, for an estimate by the prior (eq. 1 of the tutorial)."),
    ] = 0,
    images: Annotated[
        int | None, typer.Option(min=1, help="Number of test images to evaluate, the first ones.", show_default="all")
    ] = None,
    memory: Annotated[int, typer.Option(min=1, help="MiB that the decoder's activations may take.")] = 16,
    amp: Annotated[Amp | None, typer.Option(help="Number format that the samples are decoded in.")] = None,
    partial: Annotated[
        Path | None,
        typer.Option(help="File that keeps the samples taken so far: an interrupted evaluation goes on from it."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Print the ELBO of a trained model, what its code carries, and estimates of its log-likelihood."""
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
    if data.data_shape != shape:
        raise ValueError(
            f"{dataset} has images of {'x'.join(map(str, data.data_shape))}, but {checkpoint} was trained on "
            f"{config.dataset}, of {'x'.join(map(str, shape))}"
        )
    binary = config.binarize == "dynamic"
    if isinstance(model, Regressor) and (samples or prior_samples):
        raise ValueError(f"{checkpoint} is a regressor: it has no z, and its log-likelihood needs no samples")

    lines = [f"{dataset:<14} {'ELBO':>18} {'reconstruction':>15} {'KL':>8}  nats {'bits/dim':>9}"]
    figures: dict[str, Any] = {"checkpoint": str(checkpoint), "dataset": dataset, "seed": seed}
    test_images, test_labels = data.test[:images], data.test_labels[:images]
    for part, part_images, part_labels in (
        ("train", data.train, data.train_labels),
        ("test", test_images, test_labels),
    ):
        generator = seeded(seed)  # of the condition and of the code, as in training
        arguments = model_inputs(config, part_images, part_labels, generator)
        report = evaluate(model, *arguments, binarize=binary, generator=generator)
        figures[part] = report._asdict()
        lines.append(
            f"{part:<14} {report.elbo:>10.2f} ± {report.standard_error or 0:<5.2f} {report.reconstruction:>15.2f} "
            f"{report.kl:>8.2f} {report.bits_per_dim:>15.4f}"
        )
    proposals: tuple[tuple[Proposal, int], ...] = (("posterior", samples), ("prior", prior_samples))
    if not isinstance(model, Regressor):
        code = evaluate_code(model, *arguments, binarize=binary, generator=seeded(seed))
        figures["code"] = code._asdict()
        nats = " ".join(f"{nats:.2f}" for nats in sorted(code.nats, reverse=True))
        lines.append(
            f"code           {code.active_units} of {model.latent_dim} dimensions in use; nats of each: {nats}"
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
        lines.append(
            f"test, {count} samples of the {proposal}: {likelihood.log_likelihood:.2f} ± "
            f"{likelihood.standard_error:.2f} nats (± {likelihood.sampling_error:.3f} of sampling), "
            f"{likelihood.bits_per_dim:.4f} bits/dim, effective sample size {likelihood.effective_sample_size:.1f}"
        )
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
