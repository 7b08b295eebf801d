"""The command ``fastvae sample``, which draws samples from a trained model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from fastvae.cli.options import DATA_DIR_HELP, MAX_SEED, TRAINED_DATA_DIR_DEFAULT, CheckpointPath, seeded
from fastvae.cli.trained import Labels, OwnData, OwnTestData, Trained, load_trained, with_data
from fastvae.data import Data, Dataset
from fastvae.evaluation import evaluate_code
from fastvae.files import replacing
from fastvae.latent_space import decode, quantile_grid, traversal
from fastvae.models import VAE, Regressor
from fastvae.models.output import Likelihood
from fastvae.ops import binarize
from fastvae.training import TrainConfig
from fastvae.training.inputs import load_data, model_inputs, sample
from fastvae.training.pictures import are_images, unit_range

_VALUES = torch.arange(-5, 6) * 0.6  # of a dimension that is traversed: all but 0.3 % of the prior
_RANKED = 1000  # test rows that tell which dimensions carry most


# A panel of the help each.
_shown = partial(typer.Option, rich_help_panel="Samples")
_data = partial(typer.Option, rich_help_panel="Data")


def sample_command(
    checkpoint: CheckpointPath,
    num: Annotated[int, _shown(min=1, help="Number of samples to draw.")] = 100,
    traverse: Annotated[
        int | None,
        _shown(
            min=1,
            help="Number of dimensions of the code to show instead of samples, those that carry the most nats. Each "
            "goes from -3 to 3 while the others stay at the code of a test image.",
            show_default="samples",
        ),
    ] = None,
    grid: Annotated[
        int | None,
        _shown(
            min=2,
            help="Images per side of a map of all codes, shown instead of samples: a grid over the quantiles of the "
            "prior, for models with --latent-dim 2.",
            show_default="samples",
        ),
    ] = None,
    label: Annotated[
        int | None,
        _shown(
            min=0,
            help="Class label of every image, for a model trained with --condition labels.",
            show_default="each label in turn",
        ),
    ] = None,
    data: OwnData = None,
    test_data: OwnTestData = None,
    data_dir: Annotated[
        Path | None,
        _data(help=DATA_DIR_HELP, show_default=TRAINED_DATA_DIR_DEFAULT),
    ] = None,
    labels: Labels = None,
    library: Annotated[
        float | None,
        _shown(
            min=0,
            help="Sum of each row's counts, for the likelihoods negative-binomial, zinb and multinomial.",
            show_default="1: shares",
        ),
    ] = None,
    draw: Annotated[
        bool,
        _shown("--draw", help="Draw each number from its distribution given z, rather than give its mean."),
    ] = False,
    seed: Annotated[int, _shown(min=0, max=MAX_SEED, help="Seed of the codes z, and of --draw.")] = 0,
    out: Annotated[
        Path,
        _shown(
            help="File to write: .png for a picture; .npy or .npz for the numbers, which data other than images need. "
            "An existing file is replaced."
        ),
    ] = Path("samples.png"),
) -> None:
    """Draw images from a trained model, or show what the dimensions of its code mean.

    A model trained with --condition labels draws each label in turn. One trained with --condition column completes test
    images.
    """
    if out.suffix.lower() not in (".png", ".npy", ".npz"):
        raise typer.BadParameter(f"{out} does not end in .png, .npy or .npz", param_hint="--out")
    if traverse is not None and grid is not None:
        raise typer.BadParameter("it excludes --traverse", param_hint="--grid")
    trained = load_trained(checkpoint)
    output = trained.model.output
    if library is not None and not output.has_library:
        raise typer.BadParameter(f"the likelihood {output.name} has no library", param_hint="--library")
    if draw and (traverse is not None or grid is not None):
        raise typer.BadParameter("it excludes --traverse and --grid, which show means", param_hint="--draw")
    if draw and library is None and output.has_library:
        raise typer.BadParameter("it needs --library, the sum of each row's counts", param_hint="--draw")

    def checked_data() -> Dataset:
        config = with_data(trained, data=data, test_data=test_data, data_dir=data_dir, labels=labels)
        dataset = load_data(config)
        trained.check(dataset.name, dataset.test)
        return dataset

    if label is not None:
        classes = None if isinstance(trained.model, VAE) else trained.model.condition_classes
        if classes is None:
            raise typer.BadParameter(f"{checkpoint} was not trained with --condition labels", param_hint="--label")
        if label >= classes:
            raise typer.BadParameter(f"labels lie in 0 .. {classes - 1}, not {label}", param_hint="--label")
    if traverse is not None:
        _traverse(trained, checked_data, traverse, label, library, seeded(seed), out)
    elif grid is not None:
        _grid(trained, checked_data, grid, label, library, seeded(seed), out)
    else:
        _sample(trained, checked_data, num, label, library, not draw, seeded(seed), out)


def _sample(
    trained: Trained,
    checked_data: Callable[[], Dataset],
    num: int,
    label: int | None,
    library: float | None,
    mean: bool,
    generator: torch.Generator,
    out: Path,
) -> None:
    model, config = trained.model, trained.config
    classes = None if isinstance(model, VAE) else model.condition_classes
    columns, condition = math.ceil(math.sqrt(num)), None
    if label is not None:
        condition = torch.tensor([label])
    elif config.completes:
        _, condition = model_inputs(config, checked_data().test[:num], None, generator)
    elif classes is not None:
        columns = classes
    samples = sample(model, config, num, condition, generator, library=library, mean=mean)
    _save(samples, columns, out, model.output)
    print(f"{num} samples in {out}")


def _traverse(
    trained: Trained,
    checked_data: Callable[[], Dataset],
    count: int,
    label: int | None,
    library: float | None,
    generator: torch.Generator,
    out: Path,
) -> None:
    model, config = trained.model, trained.config
    if isinstance(model, Regressor):
        raise ValueError(f"{trained.path} is a regressor: it has no code to traverse")
    dataset = checked_data()
    x, *given = _test_rows(config, dataset, slice(_RANKED), generator)
    report = evaluate_code(model, x, *given)
    nats, order = torch.tensor(report.nats).sort(descending=True, stable=True)
    row, *condition = _first(config, dataset, label, generator)
    code = model.encode(row, *condition)[0][0].detach()
    codes = traversal(code, order[:count], _VALUES.to(code))
    # By default of the row's own counts.
    sums = model.output.library(row)
    made = decode(
        model, config, codes, *condition, library=sums[0] if library is None and sums is not None else library
    )
    count = min(count, model.latent_dim)
    if _is_picture(made, out):
        from fastvae import plots

        rows = [f"z[{index}]\n{carried:.2f} nats" for index, carried in zip(order.tolist(), nats.tolist(), strict=True)]
        values = [f"{value:.1f}" for value in _VALUES.tolist()]
        with replacing(out) as temporary:
            shown = unit_range(made, dataset.test[:_RANKED], model.output)
            plots.save_rows(shown, rows[:count], values, temporary)
    else:
        _save(made, len(_VALUES), out, model.output)
    print(f"{count} of {model.latent_dim} dimensions, {len(_VALUES)} values of each, in {out}")


def _grid(
    trained: Trained,
    checked_data: Callable[[], Dataset],
    side: int,
    label: int | None,
    library: float | None,
    generator: torch.Generator,
    out: Path,
) -> None:
    model, config = trained.model, trained.config
    if isinstance(model, Regressor) or model.latent_dim != 2:
        has = "no code" if isinstance(model, Regressor) else f"a code of {model.latent_dim} dimensions"
        raise ValueError(f"{trained.path} has {has}: a grid needs a code of 2 dimensions")
    condition: list[Tensor] = []
    if label is not None:
        condition = [torch.tensor([label])]
    elif not isinstance(model, VAE):
        _, *condition = _first(config, checked_data(), label, generator)
    made = decode(model, config, quantile_grid(side), *condition, library=library)
    _save(made, side, out, model.output)
    print(f"{side}x{side} codes in {out}")


def _test_rows(config: TrainConfig, dataset: Dataset, rows: slice, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Test rows as the encoder takes them."""
    x = dataset.test[rows]
    if config.binarize == "dynamic":
        x = binarize(x, generator=generator)
    classes = None if dataset.test_labels is None else dataset.test_labels[rows]
    return model_inputs(config, x, classes, generator)


def _first(config: TrainConfig, dataset: Dataset, label: int | None, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The first test row, or the first with a label, as the encoder takes it."""
    first = 0
    if label is not None and dataset.test_labels is not None:
        found = torch.nonzero(dataset.test_labels == label)
        if not len(found):
            raise ValueError(f"{dataset.name}: no test row has the label {label}")
        first = int(found[0])
    return _test_rows(config, dataset, slice(first, first + 1), generator)


def _is_picture(rows: Data, out: Path) -> bool:
    """Whether to draw rows rather than to write their numbers.

    Raises:
        ValueError: a picture is asked for of rows that are no images.
    """
    picture = out.suffix.lower() == ".png"
    if picture and not are_images(rows):
        shape = "x".join(map(str, rows.shape[1:]))
        raise ValueError(f"{out}: rows of {shape} are not images: give an --out that ends in .npy or .npz")
    return picture


def _save(rows: Tensor, columns: int, out: Path, output: Likelihood) -> None:
    """Write rows ``[N, *E]`` as a picture of so many columns, or as numbers: the suffix says which."""
    picture = _is_picture(rows, out)
    with replacing(out) as temporary:
        if picture:
            from fastvae import plots

            plots.save_samples(unit_range(rows, rows, output) if output.counts else rows, columns, temporary)
        elif out.suffix.lower() == ".npy":
            np.save(temporary, rows.numpy())
        else:
            np.savez(temporary, samples=rows.numpy())
