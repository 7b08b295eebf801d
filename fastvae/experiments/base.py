"""What an experiment is, and what it may ask for."""

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
    """What an experiment ends with."""

    picture: Figure
    figures: dict[str, Any]
    """Plain enough for JSON."""


@dataclass(frozen=True)
class Setting:
    """How an experiment is to be run."""

    quick: bool
    """On scikit-learn's digits, with small networks and few epochs: to see that it works."""
    data_dir: str | None
    """Of MNIST, as for ``fastvae.data.load``."""
    epochs: int | None
    """Instead of the experiment's own number."""
    seed: int
    folder: Path
    """Its training runs are kept here, and gone on with when it is run again."""
    report: Callable[[str], None]
    """Told what is being done, several times a second."""

    def dataset(self) -> Images:
        """MNIST, or the digits."""
        return load("digits" if self.quick else "mnist", self.data_dir)

    def train(self, name: str, *, epochs: int, **options: Any) -> tuple[Model, list[dict[str, Any]]]:
        """A model trained with the options of ``TrainConfig``, and the history of its epochs.

        Args:
            name: of its run, for its folder and the display.
            epochs: the experiment's own number; quick runs have two.
            options: but for the data set and its folder; quick runs have hidden layers (64, 32).
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
    """A grid of grey images, ``[N, H, W]`` as for ``image_grid``, without an axis."""
    axes.imshow(image_grid(images, columns).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Titles of an axis' pair, with a light grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def figure(width: float, height: float) -> Figure:
    """An empty picture, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic abscissa with a tick at each value."""
    axes.set_xscale("log")
    axes.set_xticks(list(values), [f"{value:g}" for value in values])
    axes.minorticks_off()
