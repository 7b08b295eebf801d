"""What the model of a run takes of a data set, and the images that it makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.data import join_column, split_column
from fastvae.models import CVAE, VAE, Model
from fastvae.models.networks import first_weight
from fastvae.training.config import TrainConfig


def model_inputs(
    config: TrainConfig, images: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """The images themselves; or what is to be made, and the condition: the images' labels, or a column of them.

    Args:
        config: of the run.
        images: ``[B, H, W]`` uint8 or bool.
        labels: ``[B]`` integers, where the condition is labels.
        generator: the source of the column's noise (:func:`fastvae.data.split_column`).
    """
    if config.completes:
        return split_column(images, generator=generator)
    if config.model == "vae":
        return (images,)
    assert labels is not None
    return images, labels


def sample(
    model: Model,
    config: TrainConfig,
    num: int,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images that a model draws, or that a regressor predicts.

    Args:
        model: of the run.
        config: of the run.
        num: how many.
        condition: ``[C, …]``: the conditions of a conditional model, taken in turn; by default all its labels.
        generator: the source of z, by default torch's own.

    Returns:
        ``[num, H, W]``, probabilities or means, with the column that is known put back.
    """
    if isinstance(model, VAE):
        return model.sample(num, generator)
    if condition is None:
        assert model.condition_classes is not None
        weight = first_weight(model)
        condition = torch.arange(model.condition_classes, device=None if weight is None else weight.device)
    many = condition[torch.arange(num, device=condition.device) % len(condition)]
    made = model.sample(many, generator=generator) if isinstance(model, CVAE) else model.predict(many)
    return join_column(made, many) if config.completes else made


def reconstruct(model: Model, config: TrainConfig, *inputs: Tensor) -> Tensor:
    """``[B, H, W]``: what the mode of a code stands for, or a regressor's prediction; as ``sample``.

    Args:
        model: of the run.
        config: of the run.
        inputs: as ``model_inputs`` gives them.
    """
    if isinstance(model, VAE):
        return model.reconstruct(*inputs)
    x, condition = inputs
    made = model.reconstruct(x, condition) if isinstance(model, CVAE) else model.predict(condition)
    return join_column(made, condition) if config.completes else made
