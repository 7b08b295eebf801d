"""What a trained model is worth: the ELBO of a data set and its two parts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae.data import Batches
from fastvae.models import VAE


class ELBOReport(NamedTuple):
    """Means over a data set, per image."""

    elbo: float
    """Nats; a lower bound on log P(x), the higher the better."""
    reconstruction: float
    """Nats, E[-log P(x|z)]."""
    kl: float
    """Nats, KL(Q(z|x), P(z))."""
    bits_per_dim: float
    """``-elbo`` in bits per pixel. Bernoulli: of targets in [0, 1], grey or binary. Gaussian: of the density
    over pixels in [0, 1], so that it may be negative."""


def elbo_report(reconstruction: float, kl: float, dims: int) -> ELBOReport:
    """Put the two parts of the negative ELBO together.

    Args:
        reconstruction: nats per image.
        kl: nats per image.
        dims: pixels per image.

    Source: Doersch 2016 (arXiv:1606.05908), eq. 5 and sec. 2.4.2.
    """
    elbo = -(reconstruction + kl)
    return ELBOReport(elbo, reconstruction, kl, -elbo / (dims * math.log(2)))


@torch.no_grad()
def evaluate(
    model: VAE,
    images: Tensor,
    *,
    batch_size: int = 1000,
    binarize: bool = False,
    generator: torch.Generator | None = None,
) -> ELBOReport:
    """The ELBO of a data set, from one sample of z for each image; beta plays no part.

    Args:
        model: its training mode is left as it was.
        images: ``[N, *E]`` uint8, on the model's device.
        batch_size: images at a time.
        binarize: whether the targets are binary, each pixel drawn with probability x/255.
        generator: the source of all noise, by default torch's own. With one of a fixed seed, the result is a
            function of the model and the images alone, and torch's own noise goes on undisturbed.

    Raises:
        ValueError: no images, images that are not uint8, or that do not fit the model (the message names
            both shapes).
    """
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=images.device)
    try:
        for batch in Batches(images, batch_size, binarize=binarize, noise=generator):
            _, reconstruction, kl = model.loss(batch, generator=generator)
            sums += torch.stack([reconstruction, kl]).double() * len(batch)
    finally:
        model.train(training)
    reconstruction_mean, kl_mean = (sums / len(images)).tolist()
    return elbo_report(reconstruction_mean, kl_mean, images[0].numel())
