"""The interface of an experiment: its setting, its result, and helpers for its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastvae.data import Images, load
from fastvae.models import Model
from fastvae.plots import Axes, Figure, image_grid
from fastvae.training import Progress, TrainConfig, train

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"


class Result(NamedTuple):
    """The result of an experiment."""

    picture: Figure
    figures: dict[str, Any]
    """The numbers of the experiment, in JSON's types."""


@dataclass(frozen=True)
class Setting:
    """The setting in which an experiment runs."""

    quick: bool
    """Whether to use scikit-learn's digits, small networks and few epochs, to see that the experiment works."""
    data_dir: str | None
    """Folder of MNIST, as for ``fastvae.data.load``."""
    epochs: int | None
    """Epochs of each training; None for the experiment's own number."""
    seed: int
    folder: Path
    """Folder that keeps the training runs, which are resumed when the experiment is run again."""
    report: Callable[[str], None]
    """Called several times a second with a description of what is being done."""

    def dataset(self) -> Images:
        """MNIST, or scikit-learn's digits if the setting is quick."""
        return load("digits" if self.quick else "mnist", self.data_dir)

    def train(self, name: str, *, epochs: int, **options: Any) -> tuple[Model, list[dict[str, Any]]]:
        """A model trained with the options of ``TrainConfig``, and the history of its epochs.

        Args:
            name: name of the run, for its folder and the display.
            epochs: the experiment's own number of epochs; quick runs have two.
            options: further fields of ``TrainConfig``, except the data set and its folder; quick runs have hidden
                layers (64, 32).
        """
        if self.quick:
            options |= {"hidden": (64, 32)}
        config = TrainConfig(
            dataset="digits" if self.quick else "mnist",
            data_dir=self.data_dir,
            epochs=self.epochs or (2 if self.quick else epochs),
            **{"seed": self.seed, "likelihood": "bernoulli", **options},
        )

        def show(progress: Progress) -> None:
            epoch = f"epoch {progress.epoch}/{progress.epochs}"
            self.report(f"{name}: {epoch}, {progress.images}/{progress.images_per_epoch}, loss {progress.loss:.2f}")

        result = train(config, self.folder / "runs" / name, resume=True, progress=show)
        return result.model, result.history


def show_images(axes: Axes, images: Tensor, columns: int, title: str) -> None:
    """Draws a grid of grey images, ``[N, H, W]`` as for ``image_grid``, without axes."""
    axes.imshow(image_grid(images, columns).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Labels two axes and gives them a title and a light grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def figure(width: float, height: float) -> Figure:
    """An empty picture of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic, with a tick at each value."""
    axes.set_xscale("log")
    axes.set_xticks(list(values), [f"{value:g}" for value in values])
    axes.minorticks_off()
