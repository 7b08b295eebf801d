"""The command ``fastvae encode``, which writes the codes of a data set to a file and draws them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from fastvae.cli.options import DATA_DIR_HELP, MAX_SEED, TRAINED_DATA_DIR_DEFAULT, CheckpointPath, seeded
from fastvae.cli.trained import Labels, OwnData, OwnTestData, Part, load_trained, with_data
from fastvae.data import Data, DatasetName, Rows, read, take
from fastvae.data.torch_data import TorchData
from fastvae.display import progress_bar
from fastvae.encoding import Codes, encode, write_codes, writer_of
from fastvae.files import replacing
from fastvae.latent_space import plane, refuse_projector, write_projector
from fastvae.models import Regressor
from fastvae.models.output import Likelihood
from fastvae.training import TrainConfig
from fastvae.training.inputs import load_data
from fastvae.training.pictures import are_images, unit_range

_POINTS = 10_000  # of a scatter plot: more of them hide each other
_SPRITES = 5_000  # of TensorBoard's projector, which slows down with more

# A panel of the help each.
_data = partial(typer.Option, rich_help_panel="Data")
_codes = partial(typer.Option, rich_help_panel="Codes")

LabelledRows = tuple[Data, Tensor | None]


def encode_command(
    checkpoint: CheckpointPath,
    data: OwnData = None,
    test_data: OwnTestData = None,
    dataset: Annotated[
        DatasetName | None,
        _data(help="Published data set to encode.", show_default="the one of the training"),
    ] = None,
    data_dir: Annotated[Path | None, _data(help=DATA_DIR_HELP, show_default=TRAINED_DATA_DIR_DEFAULT)] = None,
    labels: Labels = None,
    part: Annotated[
        Part | None,
        _data(
            help="Rows to encode: train, test, or all of them, in the order of the file.",
            show_default="all for --data, otherwise test",
        ),
    ] = None,
    samples: Annotated[
        int,
        _codes(
            min=1,
            help="Samples of z per row, over which its ELBO is averaged. With more samples it is less noisy, but not "
            "an importance-weighted bound.",
        ),
    ] = 1,
    batch_size: Annotated[int, _codes(min=1, help="Rows that are encoded at a time.")] = 1000,
    seed: Annotated[
        int | None,
        _codes(min=0, max=MAX_SEED, help="Seed of the noise.", show_default="that of the training"),
    ] = None,
    out: Annotated[Path, _codes(help="File to write, .npz or .parquet; an existing file is replaced.")] = Path(
        "codes.npz"
    ),
    plot: Annotated[
        Path | None,
        _codes(
            help="PNG file that shows up to 10,000 of the codes in two dimensions, by principal components.",
            show_default="no plot",
        ),
    ] = None,
    projector: Annotated[
        Path | None,
        _codes(help="Folder that gets up to 5,000 of the codes for TensorBoard's projector.", show_default="none"),
    ] = None,
) -> None:
    """Write the code of each row of a data set, and its ELBO, which tells how unusual the row is.

    The file holds the mean and log-variance of each row's code, the ELBO, its reconstruction term and its KL in nats,
    and the labels if the data have them.
    """
    if plot is not None and plot.suffix.lower() != ".png":
        raise typer.BadParameter(f"{plot} does not end in .png", param_hint="--plot")
    try:
        writer_of(out)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None
    if projector is not None:
        refuse_projector(projector)
    trained = load_trained(checkpoint)
    model = trained.model
    if isinstance(model, Regressor):
        raise ValueError(f"{checkpoint} is a regressor: it has no code")
    part = part or ("test" if data is None else "all")
    config = with_data(
        trained, dataset=dataset, data_dir=data_dir, data=data, test_data=test_data, labels=labels, whole=part == "all"
    )
    parts = _parts(config, part)
    trained.check(config.data_name, *(rows for rows, _ in parts))
    total = sum(len(rows) for rows, _ in parts)
    step = -(-total // _POINTS)
    kept: list[tuple[Tensor, Tensor | None]] = []

    def codes() -> Iterator[Codes]:
        generator, done = seeded(config.seed if seed is None else seed), 0
        for rows, classes in parts:
            for batch in encode(
                model, config, rows, classes, samples=samples, batch_size=batch_size, generator=generator
            ):
                some = slice(-done % step, None, step)
                # Copies: a view would keep all of its batch.
                kept.append((batch.mu[some].clone(), None if batch.labels is None else batch.labels[some].clone()))
                done += len(batch.mu)
                show(done, total, f"{done:,} of {total:,} rows")
                yield batch

    with progress_bar("encoding") as show:
        write_codes(out, codes(), total)
    print(f"{total} codes of {model.latent_dim} dimensions in {out}")
    mu = torch.cat([some for some, _ in kept])
    shown = [classes for _, classes in kept if classes is not None]
    classes = torch.cat(shown) if shown else None
    if plot is not None:
        _plot(plot, mu, classes)
    if projector is not None:
        _project(projector, mu, classes, parts, step, model.output)


def _parts(config: TrainConfig, part: Part) -> list[LabelledRows]:
    """The rows of a part, or of both; labels where all of them have some."""
    with progress_bar("reading") as show:

        def progress(done: int, total: int) -> None:
            show(done, total, "")

        if part == "all" and config.data is not None and config.test_data is None:
            # Not through a data set, which sets rows aside: the order would not be that of the file.
            source = read(config.data, labels=config.labels, layout=config.layout, progress=progress)
            parts: list[LabelledRows] = [(Rows(source.data), source.labels)]
            if source.test is not None:
                parts.append((Rows(source.test), source.test_labels))
        else:
            dataset = load_data(config, progress)
            assert not isinstance(dataset.train, TorchData)  # which is of programs
            both: dict[str, LabelledRows] = {
                "train": (dataset.train, dataset.train_labels),
                "test": (dataset.test, dataset.test_labels),
            }
            parts = list(both.values()) if part == "all" else [both[part]]
    labelled = all(labels is not None for _, labels in parts)
    return [(rows, labels if labelled else None) for rows, labels in parts]


def _plot(path: Path, mu: Tensor, labels: Tensor | None) -> None:
    from fastvae import plots

    points, axes = plane(mu)
    with replacing(path) as temporary:
        plots.save_codes(points, axes, labels, temporary)
    print(f"{len(mu)} codes drawn in {path}")


def _project(
    folder: Path, mu: Tensor, labels: Tensor | None, parts: list[LabelledRows], step: int, output: Likelihood
) -> None:
    """Write the projector of codes of which every ``step``-th is here; and of so many that it stays quick."""
    fewer = -(-len(mu) // _SPRITES)
    mu, labels, step = mu[::fewer], None if labels is None else labels[::fewer], step * fewer
    images = None
    if are_images(parts[0][0]):
        taken, start = [], 0
        for rows, _ in parts:
            taken.append(take(rows, torch.arange(len(rows))[-start % step :: step]))
            start += len(rows)
        originals = torch.cat(taken)
        if originals.dtype == torch.uint8 and not output.counts:
            images = originals / 255
        else:
            images = unit_range(originals, originals, output).float()
    write_projector(folder, mu, labels, images)
    print(f"{len(mu)} codes written for tensorboard --logdir {folder}")
