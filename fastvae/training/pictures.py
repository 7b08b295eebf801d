"""What a run shows of itself: pictures in its folder, and curves and pictures in TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastvae.evaluation import ELBOReport
from fastvae.files import replacing
from fastvae.models import Model
from fastvae.ops import binarize
from fastvae.training.config import TrainConfig
from fastvae.training.inputs import model_inputs, reconstruct, sample

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_COLUMNS = 10
_RECONSTRUCTIONS = 50

logger = logging.getLogger("fastvae")


class Pictures(NamedTuple):
    """Images ``[N, H, W]`` on the CPU."""

    samples: Tensor
    originals: Tensor
    """Of the test set."""
    reconstructions: Tensor
    """Of those."""


def drawn(
    model: Model, config: TrainConfig, test_images: Tensor, test_labels: Tensor, generator: torch.Generator
) -> Pictures:
    """Samples, and test images with their reconstructions: of the same codes for every generator of one seed.

    Args:
        model: of the run.
        config: of the run.
        test_images: ``[M, H, W]`` uint8, of which the first are reconstructed.
        test_labels: ``[M]``.
        generator: on the device of the model.
    """
    originals = test_images[:_RECONSTRUCTIONS]
    if config.binarize == "dynamic":
        originals = binarize(originals, generator=generator)
    inputs = model_inputs(config, originals, test_labels[:_RECONSTRUCTIONS], generator)
    known = inputs[1] if config.completes else None
    samples = sample(model, config, _COLUMNS**2, known, generator)
    return Pictures(samples.cpu(), originals.cpu(), reconstruct(model, config, *inputs).cpu())


def save_pictures(folder: Path, pictures: Pictures, history: list[dict[str, Any]]) -> None:
    """Write those of a run that is over; one that cannot be drawn is a warning.

    Args:
        folder: of the run.
        pictures: of its model.
        history: the list ``epochs`` of ``metrics.json``.
    """
    from fastvae import plots

    samples, originals, reconstructions = pictures
    drawings: dict[str, Callable[[Path], None]] = {
        "samples.png": lambda path: plots.save_samples(samples, _COLUMNS, path),
        "reconstructions.png": lambda path: plots.save_reconstructions(originals, reconstructions, _COLUMNS, path),
        "curves.png": lambda path: plots.save_curves(history, path),
    }
    for name, draw in drawings.items():
        try:
            with replacing(folder / name) as temporary:
                draw(temporary)
        except Exception as error:  # whatever it is, hours of training are worth more than a picture of them
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("%s could not be drawn (%s); the run is whole", folder / name, reason)


def log_epoch(
    writer: SummaryWriter, epoch: int, train: ELBOReport, test: ELBOReport, rate: float, pictures: Pictures
) -> None:
    """Write an epoch to TensorBoard.

    Args:
        writer: of the run.
        epoch: from 1.
        train: the mean over the epoch's steps.
        test: measured after them.
        rate: samples per second.
        pictures: of the model after the epoch.
    """
    from fastvae import plots

    add_scalar, add_image = writer.add_scalar, writer.add_image
    for part, report in (("train", train), ("test", test)):
        for key in ("elbo", "reconstruction", "kl", "bits_per_dim"):
            add_scalar(f"{key}/{part}", getattr(report, key), epoch)
    add_scalar("samples_per_second", rate, epoch)
    rows = plots.interleave_rows(pictures.originals, pictures.reconstructions, _COLUMNS)
    for name, images in (("samples", pictures.samples), ("reconstructions", rows)):
        add_image(name, plots.image_grid(images, _COLUMNS), epoch, dataformats="HW")
    writer.flush()
