"""Pictures of a run: grids of images and curves. Only this module loads matplotlib, which draws only to files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor


@contextmanager
def _whatever_backend() -> Iterator[None]:
    """Loads matplotlib without ``MPLBACKEND``, then hands it on.

    A notebook sets the variable for all that it starts, where matplotlib may refuse its value. Files need no backend;
    a program that goes on to open windows with pyplot finds the one that it asked for.
    """
    wanted = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
    try:
        yield
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
            if "matplotlib" in sys.modules:
                with suppress(ValueError):
                    sys.modules["matplotlib"].rcParams["backend"] = wanted


with _whatever_backend():
    import matplotlib.image
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.ticker import MaxNLocator

# Blue and vermilion of Okabe & Ito's palette, which the colour-blind can tell apart; the dashes of the
# second carry over to print in grey.
_TRAIN_STYLE = {"color": "#0072B2", "linestyle": "-", "label": "train"}
_TEST_STYLE = {"color": "#D55E00", "linestyle": "--", "label": "test"}

# The ten colours of Tableau (tab10), which are made for classes: Okabe & Ito's are eight.
_CLASSES = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
)  # fmt: skip

_GAP = 2  # pixels of white between images, as in the tutorial's figures


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Lays images out row by row, with white gaps between and around them.

    Args:
        images: ``[N, H, W]`` or ``[N, C, H, W]``, C of 1 or 3, N > 0: uint8, bool, or floating point, which is clamped
            to [0, 1].
        columns: images per row; the last row is filled up with white.

    Returns:
        uint8 ``[H', W']``, or ``[H', W', 3]`` for colours, on the CPU.

    Raises:
        ValueError: the images have another shape or there are none.
    """
    if images.dim() not in (3, 4) or len(images) == 0 or (images.dim() == 4 and images.shape[1] not in (1, 3)):
        raise ValueError(
            f"images have shape {list(images.shape)}, expected [N, H, W], [N, 1, H, W] or [N, 3, H, W] with N > 0"
        )
    images = images.detach().cpu()
    if images.dim() == 4:
        images = images.permute(0, 2, 3, 1).squeeze(3)
    if images.dtype != torch.uint8:
        images = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    count, height, width, *colours = images.shape
    rows = -(-count // columns)
    grid = images.new_full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, *colours), 255)
    for index, image in enumerate(images):
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid


def interleave_rows(originals: Tensor, reconstructions: Tensor, columns: int) -> Tensor:
    """Orders two sets of images so that ``image_grid`` shows rows of one above rows of the other.

    Args:
        originals: ``[N, H, W]`` or ``[N, C, H, W]``, N a multiple of ``columns``, as for ``image_grid``.
        reconstructions: the same shape.
        columns: images per row.

    Returns:
        ``[2N, ...]``, floating point in [0, 1].
    """
    rows = [torch.unflatten(_unit(images), 0, (-1, columns)) for images in (originals, reconstructions)]
    return torch.stack(rows, dim=1).flatten(0, 2)


def save_samples(images: Tensor, columns: int, path: str | os.PathLike[str]) -> None:
    """Writes a grid of images, with each pixel enlarged to a square so that small images can be seen.

    Args:
        images: as for ``image_grid``.
        columns: images per row.
        path: the picture, a PNG file.

    Raises:
        ValueError: as for ``image_grid``.
        OSError: the file cannot be written.
    """
    grid = image_grid(images, columns)
    scale = max(1, 1000 // grid.shape[1])
    enlarged = grid.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    matplotlib.image.imsave(path, enlarged.numpy(), cmap="gray", vmin=0, vmax=255, format="png")


def save_reconstructions(
    originals: Tensor, reconstructions: Tensor, columns: int, path: str | os.PathLike[str]
) -> None:
    """Writes rows of images, each above the row of its reconstructions.

    Args:
        originals: as for ``image_grid``, N a multiple of ``columns``.
        reconstructions: the same shape.
        columns: images per row.
        path: the picture, a PNG file.

    Raises:
        ValueError: as for ``image_grid``.
        OSError: the file cannot be written.
    """
    shown = interleave_rows(originals, reconstructions, columns)
    _save_named_rows(shown, columns, ["original", "reconstruction"] * (len(originals) // columns), [], path)


def save_rows(images: Tensor, rows: Sequence[str], columns: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Writes a table of images with names of its rows and columns.

    Args:
        images: as for ``image_grid``, one for each row and column, row by row.
        rows: names of the R rows.
        columns: names of the C columns.
        path: the picture, a PNG file.

    Raises:
        ValueError: as for ``image_grid``, or N is not R * C.
        OSError: the file cannot be written.
    """
    if len(images) != len(rows) * len(columns):
        raise ValueError(f"there are {len(images)} images for {len(rows)} rows and {len(columns)} columns")
    _save_named_rows(images, len(columns), rows, columns, path)


def _save_named_rows(
    images: Tensor, columns: int, rows: Sequence[str], above: Sequence[str], path: str | os.PathLike[str]
) -> None:
    grid = image_grid(images, columns)
    height, width = (size + _GAP for size in images.shape[-2:])
    figure = Figure(figsize=(8, 8 * grid.shape[0] / grid.shape[1]), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    # The middles of images.
    axes.set_xticks([_GAP / 2 + width * (column + 0.5) for column in range(len(above))], above)
    axes.set_yticks([_GAP / 2 + height * (row + 0.5) for row in range(len(rows))], rows)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.savefig(path, format="png", dpi=150, bbox_inches="tight")


def save_codes(points: Tensor, names: tuple[str, str], labels: Tensor | None, path: str | os.PathLike[str]) -> None:
    """Writes a scatter plot of codes in two dimensions, coloured by label if there are labels.

    Up to ten labels have a colour and a name each; more labels share a colour scale.

    Args:
        points: ``[N, 2]``.
        names: names of the two axes.
        labels: ``[N]`` integers, or None.
        path: the picture, a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    horizontal, vertical = points.T.numpy()
    # Small and not opaque where there are many, so that dense places show as such.
    style: dict[str, Any] = {"s": 18 if len(points) <= 2000 else 6, "alpha": 0.7, "linewidths": 0}
    classes = [] if labels is None else sorted(set(labels.tolist()))
    if 0 < len(classes) <= 10:
        # In a random order that is always the same: no class lies on top of all others.
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).numpy()
        assert labels is not None
        colours = [_CLASSES[classes.index(label)] for label in labels[order].tolist()]
        axes.scatter(horizontal[order], vertical[order], c=colours, **style)
        for colour, label in zip(_CLASSES, classes, strict=False):
            axes.scatter([], [], c=colour, s=50, label=str(label))
        axes.legend(frameon=False, title="label", loc="center left", bbox_to_anchor=(1, 0.5))
    elif labels is None:
        axes.scatter(horizontal, vertical, c=_TRAIN_STYLE["color"], **style)
    else:
        drawn = axes.scatter(horizontal, vertical, c=labels.numpy(), cmap="turbo", **style)
        figure.colorbar(drawn, label="label")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=150)


def save_curves(history: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes curves of the ELBO, the reconstruction term and the KL over the epochs, for training and test set.

    Args:
        history: the list ``epochs`` of ``metrics.json``, which must not be empty, in nats per image.
        path: the picture, a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, key, title in zip(
        panels, ("elbo", "reconstruction", "kl"), ("ELBO", "reconstruction", "KL"), strict=True
    ):
        for part, style in (("train", _TRAIN_STYLE), ("test", _TEST_STYLE)):
            values = [entry[part][key] for entry in history]
            # A run of one epoch has no line to draw, only a point.
            axes.plot(epochs, values, linewidth=2, marker="o" if len(epochs) == 1 else None, **style)
        # The first epoch, in which a network starts from nothing, would flatten all the others.
        shown = [entry[part][key] for entry in history[1:] for part in ("train", "test")]
        if len(history) > 2:
            margin = 0.05 * (max(shown) - min(shown)) or 1.0
            axes.set_ylim(min(shown) - margin, max(shown) + margin)
        _label(axes, title)
    panels[0].legend(frameon=False)
    figure.savefig(path, format="png", dpi=150)


def _unit(images: Tensor) -> Tensor:
    return images.cpu().float() / 255 if images.dtype == torch.uint8 else images.cpu().float()


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
