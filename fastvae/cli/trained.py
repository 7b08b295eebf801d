"""Common parts of the commands that follow a training: the run's model, and rows for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from fastvae import training
from fastvae.data import Data, DatasetName
from fastvae.data.check import check_parts
from fastvae.display import progress_bar
from fastvae.models import Model
from fastvae.training import TrainConfig
from fastvae.training.config_file import with_absolute_paths
from fastvae.training.inputs import expected_rows

Part = Literal["train", "test", "all"]

DATA_GIVEN = "was trained on data that a program gave, train(..., dataset=...): name a file of them with --data"
"""The error for a run whose data no command can read, after the name of the run."""

OwnData = Annotated[
    Path | None,
    typer.Option(
        help="File or folder of data, in any format that train --data takes, or the new place of the run's own data.",
        show_default="the data of the training",
        rich_help_panel="Data",
    ),
]
OwnTestData = Annotated[
    Path | None,
    typer.Option(
        help="File or folder of the test set of --data, needed where the run was trained with one.",
        show_default="that of the training",
        rich_help_panel="Data",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Column or array of --data that holds the class labels; an empty name means none.",
        show_default="that of the training",
        rich_help_panel="Data",
    ),
]


class Trained(NamedTuple):
    """A run, or one of its checkpoints."""

    path: Path
    config: TrainConfig
    """The configuration of the training."""
    model: Model
    """The model in evaluation mode."""
    data_given: bool
    """Whether a program gave the training's data, so that ``config`` does not describe them."""

    def check(self, name: str, *parts: Data) -> None:
        """Raises ValueError, in one line, if rows ``[N, *E]`` do not fit the model or its likelihood."""
        # What a model completes is a column narrower than the images.
        shape = (*self.model.data_shape[:-1], self.model.data_shape[-1] + self.config.completes)
        for data in parts:
            if data.shape[1:] != shape:
                trained_on = "data that a program gave" if self.data_given else self.config.data_name
                raise ValueError(
                    f"{name} has rows of {_sizes(data.shape[1:])}, but {self.path} was trained on {trained_on}, of "
                    f"{_sizes(shape)}"
                )
        with progress_bar("checking") as show:
            check_parts(
                [(name, data) for data in parts],
                expected_rows(self.model.output, self.model.output.total, self.config),
                constant=True,
                progress=lambda done, total: show(done, total, ""),
            )


def load_trained(path: Path) -> Trained:
    """The model of a run and its configuration.

    Raises:
        ValueError: every checkpoint is damaged, or only a program can build the model.
        FileNotFoundError: there is no checkpoint.
        ImportError: the function that makes the model's networks cannot be imported.
    """
    # The model at once: a training that goes on removes its older checkpoints.
    loaded = training.load_checkpoint(path)
    config = TrainConfig.from_checkpoint(loaded)
    return Trained(path, config, loaded.build_model().eval(), loaded.position.data_given)


def with_data(
    trained: Trained,
    *,
    dataset: DatasetName | None = None,
    data_dir: Path | None = None,
    data: Path | None = None,
    test_data: Path | None = None,
    labels: str | None = None,
    whole: bool = False,
) -> TrainConfig:
    """A run's configuration with the data that options name, or with its own data if they name none.

    ``whole`` says that all rows are asked for, so that no test set must be set apart from ``data``.

    Raises:
        typer.BadParameter: options exclude each other.
        ValueError: the options name no data, and a program gave the run's own.
    """
    config = trained.config
    if dataset is not None and data is not None:
        raise typer.BadParameter("it replaces a published data set: give one of both", param_hint="--data")
    if trained.data_given and dataset is None and data is None:
        raise ValueError(f"{trained.path} {DATA_GIVEN}")
    paths = with_absolute_paths({"data": data, "test_data": test_data, "data_dir": data_dir}, Path.cwd())
    if labels is not None:
        config = replace(config, labels=labels)
    if data is not None:
        if test_data is None and config.test_data is not None and not whole:
            # A part of the rows would be set aside, though the run may have been trained on all of them.
            raise typer.BadParameter(
                f"it is needed with --data: the run had a test file of its own, {config.test_data}",
                param_hint="--test-data",
            )
        config = replace(config, data=paths["data"], test_data=None)
    elif dataset is not None:
        # The folder of another data set than the run's is not known.
        known = config.data_dir if dataset == config.dataset else None
        config = replace(config, dataset=dataset, data_dir=known, data=None, test_data=None)
    if test_data is not None:
        config = replace(config, test_data=paths["test_data"])
    return config if data_dir is None else replace(config, data_dir=paths["data_dir"])


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
