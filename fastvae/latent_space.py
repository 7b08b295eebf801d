"""Views of the latent space: what its dimensions mean to the decoder, and where the encoder puts rows.

L is the latent dimension. Dimensions are numbered from 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fastvae.data import join_column
from fastvae.layers import first_weight
from fastvae.models import CVAE, VAE
from fastvae.models.networks import evaluating
from fastvae.training.config import TrainConfig

_SPRITE = 32  # pixels of an image's longer side: 5,000 of them fit the 8,192 pixels that TensorBoard allows


class Plane(NamedTuple):
    """Codes in two dimensions."""

    points: Tensor
    """The codes, float64 ``[N, 2]``."""
    axes: tuple[str, str]
    """Names of the two dimensions, with their shares of the total variance."""


@torch.no_grad()
def decode(
    model: VAE | CVAE,
    config: TrainConfig,
    z: Tensor,
    condition: Tensor | None = None,
    *,
    library: float | Tensor | None = None,
) -> Tensor:
    """Decodes codes to the means of their rows.

    Args:
        model: the run's model; its training mode does not change.
        config: the run's configuration.
        z: ``[B, L]``.
        condition: ``[1, *C]`` or a label ``[1]`` for all codes, if the model is conditional.
        library: the sum of a row, for likelihoods whose means are shares of it.

    Returns:
        Means, ``[B, *E]``. If the condition is a column, they include it.

    Raises:
        ValueError: the shapes do not fit.
    """
    weight = first_weight(model)
    z = z if weight is None else z.to(weight)
    with evaluating(model):
        if condition is None:
            return model.output.mean(model.decode(z), library=library)  # type: ignore[call-arg]
        many = condition.to(z.device).expand(len(z), *condition.shape[1:])
        made = model.output.mean(model.decode(z, many), library=library)  # type: ignore[call-arg]
    return join_column(made, many) if config.completes else made


def traversal(code: Tensor, dimensions: Tensor, values: Tensor) -> Tensor:
    """Codes that differ from one code in one dimension each.

    Args:
        code: ``[L]``.
        dimensions: int64 ``[D]``, the dimensions to change.
        values: ``[V]``, the values that each of these dimensions takes.

    Returns:
        ``[D * V, L]``: the codes with all values of the first dimension, then those of the next.
    """
    codes = code.repeat(len(dimensions), len(values), 1)
    codes.scatter_(
        2, dimensions.view(-1, 1, 1).expand(-1, len(values), 1), values.expand(len(dimensions), -1)[..., None]
    )
    return codes.flatten(0, 1)


def quantile_grid(side: int) -> Tensor:
    """Codes of two dimensions on a grid over quantiles of N(0, I): each stands for the same share of the prior.

    Args:
        side: S, the number of grid points in each dimension, at the quantiles (i + 1/2) / S.

    Returns:
        ``[S * S, 2]``, row by row as in a plot: dimension 0 rises to the right, dimension 1 from bottom to top.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), fig. 4.
    """
    quantiles = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    above, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right, above], -1).flatten(0, 1)


def plane(mu: Tensor) -> Plane:
    """Codes in two dimensions: their first two principal components, or the dimensions themselves if L is at most 2.

    Args:
        mu: ``[N, L]``.

    Returns:
        The points and axes. The largest weight of a component is positive, so that equal codes give equal points.
    """
    centred = mu.double() - mu.double().mean(0)
    covariance = centred.T @ centred / len(mu)
    if mu.shape[1] <= 2:
        # As they are, so that the picture is that of the grid. A single dimension is a line.
        points, variances, name = pad(mu.double(), (0, 2 - mu.shape[1])), covariance.diagonal(), "dimension {}"
    else:
        variances, vectors = torch.linalg.eigh(covariance)
        variances, vectors = variances.flip(0), vectors.flip(1)[:, :2]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        points, name = centred @ (vectors * largest.sign()), "principal component {}"
    first = 0 if mu.shape[1] <= 2 else 1
    shares = pad(variances / variances.sum().clamp_min(1e-300), (0, 1))
    one, other = (
        f"{name.format(i + first)} ({100 * share:.0f} % of the variance)" for i, share in enumerate(shares[:2])
    )
    return Plane(points, (one, other))


def write_projector(
    folder: str | os.PathLike[str], mu: Tensor, labels: Tensor | None = None, images: Tensor | None = None
) -> None:
    """Writes codes for TensorBoard's projector, which shows them in three dimensions: ``tensorboard --logdir FOLDER``.

    Args:
        folder: the folder to write to, which must not hold a projector yet.
        mu: ``[N, L]``.
        labels: ``[N]``, shown beside the points.
        images: ``[N, H, W]`` or ``[N, C, H, W]`` with C of 1 or 3, numbers in [0, 1]. They are shown instead of the
            points, with at most 32 pixels a side.

    Raises:
        FileExistsError: the folder already holds a projector.
        OSError: the files cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    refuse_projector(folder)
    metadata = None if labels is None else labels.tolist()
    writer = SummaryWriter(os.fspath(folder))
    writer.add_embedding(mu, metadata, None if images is None else _sprites(images))
    writer.close()


def refuse_projector(folder: str | os.PathLike[str]) -> None:
    """Raises FileExistsError if a folder holds a projector: a second one would be shown instead of it or beside it."""
    if (Path(folder) / "projector_config.pbtxt").exists():
        raise FileExistsError(f"{folder} already holds a projector: choose another folder")


def _sprites(images: Tensor) -> Tensor:
    """Small squares ``[N, C, S, S]``, which TensorBoard's sprite is made of, with black beside what is no square."""
    images = images.unsqueeze(1) if images.dim() == 3 else images
    height, width = images.shape[2:]
    longer = max(height, width)
    images = pad(images, (0, longer - width, 0, longer - height))
    return images if longer <= _SPRITE else interpolate(images, size=_SPRITE, mode="area")
