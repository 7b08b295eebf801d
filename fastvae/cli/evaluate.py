"""The command ``fastvae evaluate``, which evaluates a trained model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvae.cli.options import DATA_DIR_HELP, MAX_SEED, TRAINED_DATA_DIR_DEFAULT, CheckpointPath, seeded
from fastvae.cli.trained import Labels, OwnData, OwnTestData, load_trained, with_data
from fastvae.data import DatasetName
from fastvae.data.rows import rows_of
from fastvae.data.torch_data import TorchData
from fastvae.display import progress_bar
from fastvae.evaluation import Proposal, evaluate, evaluate_code, log_likelihood
from fastvae.files import replacing
from fastvae.models import Regressor
from fastvae.training.config import Amp
from fastvae.training.inputs import load_data, model_inputs

# A panel of evaluate's help each.
_data = partial(typer.Option, rich_help_panel="Data")
_likelihood = partial(typer.Option, rich_help_panel="Log-likelihood")
_run = partial(typer.Option, rich_help_panel="Run")


def evaluate_command(
    checkpoint: CheckpointPath,
    dataset: Annotated[
        DatasetName | None,
        _data(
            help="Published data set to evaluate the model on.", show_default="the one that the model was trained on"
        ),
    ] = None,
    data_dir: Annotated[Path | None, _data(help=DATA_DIR_HELP, show_default=TRAINED_DATA_DIR_DEFAULT)] = None,
    data: OwnData = None,
    test_data: OwnTestData = None,
    labels: Labels = None,
    images: Annotated[
        int | None,
        _data(min=1, help="Number of test images to evaluate, counted from the first.", show_default="all"),
    ] = None,
    samples: Annotated[
        int,
        _likelihood(
            min=0, help="Samples of z per test image from the encoder's posterior, to estimate the log-likelihood."
        ),
    ] = 0,
    prior_samples: Annotated[
        int,
        _likelihood(
            min=0,
            help="Samples of z per test image from the prior, to estimate the log-likelihood by eq. 1 of the tutorial.",
        ),
    ] = 0,
    partial_file: Annotated[
        Path | None,
        _likelihood(
            "--partial",
            help="File that keeps the samples taken so far, from which an interrupted evaluation goes on.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[int, _likelihood(min=1, help="Memory that the decoder's activations may take, in MiB.")] = 16,
    amp: Annotated[
        Amp | None, _likelihood(help="Number format that the samples are decoded in.", show_default="float32")
    ] = None,
    seed: Annotated[
        int | None,
        _run(
            min=0,
            max=MAX_SEED,
            help="Seed of the noise in codes and binary pixels.",
            show_default="the training's own",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, _run("--json", help="JSON file to write the figures to.", show_default=False)
    ] = None,
) -> None:
    """Print a trained model's ELBO, what its code carries, and estimates of its log-likelihood."""
    if samples and prior_samples and partial_file is not None:
        raise typer.BadParameter("it keeps one of --samples and --prior-samples, not both", param_hint="--partial")
    trained = load_trained(checkpoint)
    model, config = (
        trained.model,
        with_data(trained, dataset=dataset, data_dir=data_dir, data=data, test_data=test_data, labels=labels),
    )
    seed = config.seed if seed is None else seed
    with progress_bar("reading") as show:
        rows = load_data(config, lambda done, total: show(done, total, ""))
    assert not isinstance(rows.train, TorchData)  # which is of programs
    trained.check(config.data_name, rows.train, rows.test)
    binary = config.binarize == "dynamic"
    if isinstance(model, Regressor) and (samples or prior_samples):
        raise ValueError(f"{checkpoint} is a regressor: it has no z, and its log-likelihood needs no samples")

    has_bits = model.output.has_bits
    lines = [
        f"{Path(config.data_name).name:<14} {'ELBO':>18} {'reconstruction':>15} {'KL':>8}  nats"
        + (f" {'bits/dim':>9}" if has_bits else "")
    ]
    figures: dict[str, Any] = {"checkpoint": str(checkpoint), "dataset": config.data_name, "seed": seed}
    test_images, test_labels = rows_of(rows.test, slice(images)), rows.test_labels
    test_labels = None if test_labels is None else test_labels[:images]
    for part, part_images, part_labels in (
        ("train", rows_of(rows.train), rows.train_labels),
        ("test", test_images, test_labels),
    ):
        generator = seeded(seed)  # of the condition and of the code, as in training
        arguments = model_inputs(config, part_images, part_labels, generator)
        report = evaluate(model, *arguments, binarize=binary, generator=generator)
        figures[part] = report._asdict()
        lines.append(
            f"{part:<14} {report.elbo:>10.2f} ± {report.standard_error or 0:<5.2f} {report.reconstruction:>15.2f} "
            f"{report.kl:>8.2f}" + (f" {report.bits_per_dim:>15.4f}" if has_bits else "")
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
                partial=partial_file,
                progress=lambda done, mean, show=show: show(done, len(test_images), f"{mean:.2f} nats"),  # type: ignore[misc]
            )
        figures[f"log_likelihood_{proposal}"] = likelihood._asdict()
        lines.append(
            f"test, {count} samples of the {proposal}: {likelihood.log_likelihood:.2f} ± "
            f"{likelihood.standard_error:.2f} nats (± {likelihood.sampling_error:.3f} of sampling), "
            + (f"{likelihood.bits_per_dim:.4f} bits/dim, " if has_bits else "")
            + f"effective sample size {likelihood.effective_sample_size:.1f}"
        )
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
