"""What the model of a run takes of a data set, and the images that it makes of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.data import Data, Dataset, join_column, load, split_column
from fastvae.data.check import check_parts
from fastvae.data.columns import split_rows
from fastvae.data.rows import Rows, take
from fastvae.data.torch_data import TorchData
from fastvae.layers import first_weight
from fastvae.models import CVAE, VAE, Model
from fastvae.training.checkpoint import MODELS
from fastvae.training.config import TrainConfig

_DIGESTED = 64  # rows


def load_data(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """The data set of a run.

    Args:
        config: of the run.
        progress: told how many files of how many are read, where that takes long.

    Raises:
        ValueError: files that are not what they should be.
        OSError: there are none, or they cannot be read.
    """
    if config.data is None:
        return load(config.dataset, config.data_dir)
    return Dataset.from_files(
        config.data,
        config.test_data,
        labels=config.labels,
        test_fraction=config.test_fraction,
        layout=config.layout,
        progress=progress,
    )


def check_data(
    config: TrainConfig,
    dataset: Dataset,
    model: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Look at all rows once, and see whether a run can take them.

    Rows of ``torch.utils.data`` are not looked at before they are asked for.

    Args:
        config: of the run.
        dataset: of the run.
        model: of the run, if it is given.
        progress: told how many bytes of how many are looked at.

    Raises:
        ValueError: one line that names the data, the row and the value.
    """
    shape, dtype = dataset.data_shape, dataset.train.dtype
    if config.completes and (len(shape) != 2 or dtype not in (torch.uint8, torch.bool)):
        raise ValueError(
            f"{dataset.name} has rows {list(shape)} of {str(dtype).removeprefix('torch.')}, but condition column is of "
            "images [H, W], uint8 or bool"
        )
    if config.binarize == "dynamic" and not (dtype == torch.uint8 or dtype.is_floating_point):
        raise ValueError(f"{dataset.name}: binarize dynamic draws from uint8 or numbers in [0, 1], not {dtype}")
    if model is None:
        likelihood: str = config.likelihood
    else:
        likelihood = model.output.name if isinstance(model, Model) else "another"
    named = (dataset.name, dataset.train), (f"{dataset.name} (test)", dataset.test)
    parts = [(name, data) for name, data in named if not isinstance(data, TorchData)]
    check_parts(parts, likelihood, binarized=config.binarize == "dynamic", progress=progress)


def digest_rows(config: TrainConfig, dataset: Dataset) -> str | None:
    """Tells the rows of a run from others of the same shape: a hash of some of each part, spread over all.

    Their labels are a part of it where the model is given those. None for rows of ``torch.utils.data``, which are drawn
    when they are asked for.
    """
    if isinstance(dataset.train, TorchData):
        return None
    labels = (dataset.train_labels, dataset.test_labels) if config.condition == "labels" else ()
    found = hashlib.blake2b(digest_size=16)
    for data in (dataset.train, dataset.test, *labels):
        if data is not None:
            index = torch.linspace(0, len(data) - 1, _DIGESTED, dtype=torch.float64).long()
            found.update(f"{data.dtype} {list(data.shape)}".encode())
            found.update(take(data, index.to(data.device)).cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def shape_to_model(config: TrainConfig, dataset: Dataset) -> tuple[int, ...]:
    """``data_shape`` of the run's model: that of a row, without the column that it is given."""
    *rest, width = dataset.data_shape
    return (*rest, width - config.completes)


def refuse_other_rows(config: TrainConfig, model: nn.Module, dataset: Dataset) -> None:
    """Raises ValueError where a model that is given is not of the kind, or for the rows, that the run has."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a module, not {type(model).__name__}: a function has no weights to train")
    if not isinstance(model, Model):
        unused = ("importance_samples", 1), ("beta", 1), ("free_bits", 0), ("anneal", None)
        for name, nothing in unused:
            if getattr(config, name) != nothing:
                raise ValueError(f"a {type(model).__name__} has a loss of its own: {name} must be {nothing}")
        if next(model.parameters(), None) is None:
            raise ValueError(f"the {type(model).__name__} has no parameters to train")
        return
    kind = type(model).__name__.lower()
    if not isinstance(model, MODELS[config.model]):
        raise ValueError(f"the model that is given is a {type(model).__name__}: config.model must be {kind}")
    shape = shape_to_model(config, dataset)
    if model.data_shape != shape:
        raise ValueError(
            f"the model has data_shape {list(model.data_shape)}, but {dataset.name} asks for {list(shape)}"
        )


def dims_of(model: nn.Module, dataset: Dataset) -> int:
    """Numbers that the model makes of a row."""
    return math.prod(model.data_shape if isinstance(model, Model) else dataset.data_shape)


def model_inputs(
    config: TrainConfig, images: Data, labels: Tensor | None, generator: torch.Generator | None = None
) -> tuple[Any, ...]:
    """The images themselves; or what is to be made, and the condition: the images' labels, or a column of them.

    Args:
        config: of the run.
        images: ``[B, *E]``; ``[B, H, W]`` uint8 or bool where a column is the condition. Of :class:`fastvae.data.Rows`
            no copy is made.
        labels: ``[B]`` integers, where the condition is labels.
        generator: the source of the column's noise (:func:`fastvae.data.split_column`).

    Raises:
        ValueError: the condition is labels, and there are none.
    """
    if config.completes:
        if isinstance(images, Rows):
            return split_rows(images, generator=generator)
        return split_column(images, generator=generator)
    if config.condition != "labels":
        return (images,)
    if labels is None:
        raise ValueError(f"the rows have no labels, which this {config.model} is given")
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
