"""Output of a run to look at: pictures in its folder, and curves and pictures in TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvae.data import Data
from fastvae.evaluation import ELBOReport
from fastvae.files import replacing
from fastvae.models import Model
from fastvae.models.networks import evaluating
from fastvae.models.output import Likelihood
from fastvae.ops import binarize
from fastvae.training.config import TrainConfig
from fastvae.training.inputs import model_inputs, reconstruct, sample

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_COLUMNS = 10
_RECONSTRUCTIONS = 50

logger = logging.getLogger("fastvae")


class Pictures(NamedTuple):
    """Images ``[N, H, W]`` or ``[N, 3, H, W]``, on the CPU."""

    samples: Tensor
    """Samples of the model."""
    originals: Tensor
    """Images of the test set."""
    reconstructions: Tensor
    """Reconstructions of the originals."""


def drawn(
    model: nn.Module, config: TrainConfig, test: Data, test_labels: Tensor | None, generator: torch.Generator
) -> Pictures | None:
    """Samples, and test images with their reconstructions. Generators with the same seed give the same codes.

    Args:
        model: the run's model.
        config: the run's configuration.
        test: ``[M, *E]``; the first rows are reconstructed.
        test_labels: ``[M]``, or None if there are no labels.
        generator: the source of the noise, on the device of the model.

    Returns:
        The pictures; None if rows are no images, or if the model is not one of fastvae's models.
    """
    if not isinstance(model, Model) or not are_images(test):
        return None
    # Whole rows of them, or one that is not.
    count = min(len(test), _RECONSTRUCTIONS)
    count = count - count % _COLUMNS or count
    originals = test[:count].to(generator.device)
    labels = None if test_labels is None else test_labels[:count]
    if config.binarize == "dynamic":
        originals = binarize(originals, generator=generator)
    inputs = model_inputs(config, originals, labels, generator)
    known = inputs[1] if config.completes else None
    with evaluating(model):
        sums = model.output.library(originals)
        library = None if sums is None else sums.double().mean().item()
        samples = sample(model, config, _COLUMNS**2, known, generator, library=library)
        shown = samples, originals, reconstruct(model, config, *inputs)
    return Pictures(*(unit_range(images, originals, model.output).cpu() for images in shown))


def are_images(data: Data) -> bool:
    """Whether rows are ``[H, W]`` or ``[C, H, W]`` with 1 or 3 channels and at least 4 pixels on each side."""
    *channels, height, width = (0, *data.shape[1:])
    return channels in ([0], [0, 1], [0, 3]) and min(height, width) >= 4


def unit_range(images: Tensor, originals: Tensor, output: Likelihood | None = None) -> Tensor:
    """Images scaled to [0, 1] by the range of the originals, unless these are uint8 or bool.

    For an ``output`` of counts, 1 is their total or, if they have none, the largest value of the originals.
    """
    if output is not None and output.counts:
        return images.float() / max(output.total or float(originals.max()), torch.finfo(torch.float32).tiny)
    if originals.dtype in (torch.uint8, torch.bool):
        return images
    low, high = originals.float().aminmax()
    if low >= 0 and high <= 1:
        return images
    return (images - low) / (high - low)


def save_pictures(folder: Path, pictures: Pictures | None, history: list[dict[str, Any]]) -> None:
    """Write those of a run that is over; one that cannot be drawn is a warning.

    Args:
        folder: folder of the run.
        pictures: pictures of the model; None if it draws none.
        history: the list ``epochs`` of ``metrics.json``.
    """
    from fastvae import plots

    drawings: dict[str, Callable[[Path], None]] = {"curves.png": lambda path: plots.save_curves(history, path)}
    if pictures is not None:
        samples, originals, reconstructions = pictures
        columns = min(_COLUMNS, len(originals))
        drawings |= {
            "samples.png": lambda path: plots.save_samples(samples, _COLUMNS, path),
            "reconstructions.png": lambda path: plots.save_reconstructions(originals, reconstructions, columns, path),
        }
    for name, draw in drawings.items():
        try:
            with replacing(folder / name) as temporary:
                draw(temporary)
        except Exception as error:  # whatever it is, hours of training are worth more than a picture of them
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("%s could not be drawn (%s); the run is complete", folder / name, reason)


def log_epoch(
    writer: SummaryWriter, epoch: int, train: ELBOReport, test: ELBOReport, rate: float, pictures: Pictures | None
) -> None:
    """Write an epoch to TensorBoard.

    Args:
        writer: TensorBoard's writer for the run.
        epoch: number of the epoch, from 1.
        train: report of the training set, the mean over the epoch's steps.
        test: report of the test set, measured after these steps.
        rate: samples per second.
        pictures: pictures of the model after the epoch; None if it draws none.
    """
    from fastvae import plots

    add_scalar, add_image = writer.add_scalar, writer.add_image
    for part, report in (("train", train), ("test", test)):
        for key in ("elbo", "reconstruction", "kl", "bits_per_dim"):
            if (value := getattr(report, key)) is not None:
                add_scalar(f"{key}/{part}", value, epoch)
    add_scalar("samples_per_second", rate, epoch)
    if pictures is not None:
        columns = min(_COLUMNS, len(pictures.originals))
        rows = plots.interleave_rows(pictures.originals, pictures.reconstructions, columns)
        for name, images, across in (("samples", pictures.samples, _COLUMNS), ("reconstructions", rows, columns)):
            grid = plots.image_grid(images, across)
            add_image(name, grid, epoch, dataformats="HW" if grid.dim() == 2 else "HWC")
    writer.flush()
