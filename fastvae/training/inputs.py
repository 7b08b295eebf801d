"""Inputs of a run's model from a data set, and the images that the model makes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.data import Data, Dataset, join_column, load, split_column
from fastvae.data.check import Expected, check_parts
from fastvae.data.columns import split_rows
from fastvae.data.rows import Rows, take
from fastvae.data.torch_data import TorchData
from fastvae.evaluation import dims_of_bits
from fastvae.layers import first_weight
from fastvae.models import CVAE, VAE, Model
from fastvae.models.likelihood import LIKELIHOODS
from fastvae.models.output import Likelihood
from fastvae.training.checkpoint import MODELS
from fastvae.training.config import TrainConfig

_DIGESTED = 64  # rows


def settled(config: TrainConfig, data_given: bool, model: nn.Module | None) -> TrainConfig:
    """The configuration with a likelihood: that of a given model, or the one that None stands for.

    Raises:
        ValueError: the likelihood needs a total, or contradicts other fields.
    """
    if isinstance(model, Model):
        output = model.output
        learn_sigma = output.log_sigma is not None
        return replace(config, likelihood=output.name, total=output.total, learn_sigma=learn_sigma)
    if model is not None:  # which is given grey pixels, unless it asks for others
        config = replace(config, likelihood=config.likelihood or "bernoulli")
    return config.resolved(data_given)


def load_data(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """The data set of a run.

    Args:
        config: the run's configuration.
        progress: called with the amount done and the total, while images are decoded and tables are read.

    Raises:
        ValueError: a file is damaged or has the wrong content.
        OSError: there are no files, or they cannot be read.
    """
    if config.data is None:
        images = load(config.dataset, config.data_dir)
        return images.as_counts() if LIKELIHOODS[config.named_likelihood].values == "counts" else images
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
    """Checks in one pass over all rows that a run can take them.

    Rows of ``torch.utils.data`` are not checked before they are asked for.

    Args:
        config: the run's configuration.
        dataset: the run's data set.
        model: the run's model, if a program gives it.
        progress: called with the number of rows checked and the total, or of stored values for sparse data.

    Raises:
        ValueError: a value cannot be taken; the message names the data, the row and the value in one line.
    """
    shape, dtype = dataset.data_shape, dataset.train.dtype
    if config.completes and (len(shape) != 2 or dtype not in (torch.uint8, torch.bool)):
        raise ValueError(
            f"{dataset.name} has rows {list(shape)} of {str(dtype).removeprefix('torch.')}, but condition column needs "
            "images [H, W], uint8 or bool"
        )
    if config.binarize == "dynamic" and not (dtype == torch.uint8 or dtype.is_floating_point):
        raise ValueError(f"{dataset.name}: binarize dynamic draws from uint8 or numbers in [0, 1], not {dtype}")
    expected = Expected()
    if isinstance(model, Model):
        expected = expected_rows(model.output, model.output.total, config)
    elif model is None:
        config = config.resolved(data_given=True)
        expected = expected_rows(LIKELIHOODS[config.named_likelihood], config.total, config)
    elif config.binarize == "dynamic":
        expected = Expected("unit", "for binarize dynamic")
    named = (dataset.name, dataset.train), (f"{dataset.name} (test)", dataset.test)
    parts = [(name, data) for name, data in named if not isinstance(data, TorchData)]
    check_parts(parts, expected, progress=progress)


def expected_rows(likelihood: Likelihood | type[Likelihood], total: int | None, config: TrainConfig) -> Expected:
    """The values that the data must hold for a likelihood and a run."""
    if likelihood.values == "finite":
        return Expected("unit", "for binarize dynamic") if config.binarize == "dynamic" else Expected()
    return Expected(likelihood.values, f"for a {likelihood.title} likelihood", total)


def digest_rows(config: TrainConfig, dataset: Dataset) -> str | None:
    """A hash that tells a run's rows from others of the same shape, over some rows of each part, evenly spread.

    It includes the labels if the model is given labels. It is None for rows of ``torch.utils.data``, which are drawn
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
    """``data_shape`` of the run's model: that of a row, without the column if it is the condition."""
    *rest, width = dataset.data_shape
    return (*rest, width - config.completes)


def refuse_other_rows(config: TrainConfig, model: nn.Module, dataset: Dataset) -> None:
    """Raises ValueError if a given model is not of the run's kind or does not fit its rows."""
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
        raise ValueError(f"the given model is a {type(model).__name__}: config.model must be {kind}")
    shape = shape_to_model(config, dataset)
    if model.data_shape != shape:
        raise ValueError(f"the model has data_shape {list(model.data_shape)}, but {dataset.name} needs {list(shape)}")


def dims_of(model: nn.Module, dataset: Dataset) -> int | None:
    """Number of values per row by which bits are divided; None if bits are not reported."""
    return dims_of_bits(model) if isinstance(model, Model) else math.prod(dataset.data_shape)


def model_inputs(
    config: TrainConfig, images: Data, labels: Tensor | None, generator: torch.Generator | None = None
) -> tuple[Any, ...]:
    """The model's inputs: the images alone, or x and the condition, which is labels or a column of the images.

    Args:
        config: the run's configuration.
        images: ``[B, *E]``, or ``[B, H, W]`` uint8 or bool if the condition is a column. No copy is made of
            :class:`fastvae.data.Rows`.
        labels: ``[B]`` integers, if the condition is labels.
        generator: the source of the column's noise (:func:`fastvae.data.split_column`).

    Raises:
        ValueError: the condition is labels and there are none.
    """
    if config.completes:
        if isinstance(images, Rows):
            return split_rows(images, generator=generator)
        return split_column(images, generator=generator)
    if config.condition != "labels":
        return (images,)
    if labels is None:
        raise ValueError(f"the rows have no labels, which this {config.model} needs as its condition")
    return images, labels


def sample(
    model: Model,
    config: TrainConfig,
    num: int,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    library: float | None = None,
    mean: bool = True,
) -> Tensor:
    """Images that a model draws or that a regressor predicts.

    Args:
        model: the run's model.
        config: the run's configuration.
        num: number of images.
        condition: ``[C, …]``, the conditions of a conditional model, taken in turn; by default all its labels.
        generator: the source of z and of draws, by default torch's own.
        library: the sum of a row, for likelihoods whose means are shares of it.
        mean: whether to return means rather than draws of x.

    Returns:
        ``[num, *E]``, including the column if it is the condition.

    Raises:
        ValueError: as for :meth:`fastvae.models.VAE.sample`.
    """
    if isinstance(model, VAE):
        return model.sample(num, generator, library=library, mean=mean)
    if condition is None:
        assert model.condition_classes is not None
        weight = first_weight(model)
        condition = torch.arange(model.condition_classes, device=None if weight is None else weight.device)
    many = condition[torch.arange(num, device=condition.device) % len(condition)]
    if isinstance(model, CVAE):
        made = model.sample(many, generator=generator, library=library, mean=mean)
    elif mean:
        made = model.predict(many, library=library)
    else:
        made = model.output.sample(model(many), library=library, generator=generator)
    return join_column(made, many) if config.completes else made


def reconstruct(model: Model, config: TrainConfig, *inputs: Tensor) -> Tensor:
    """Reconstructions from the mode of the code, or a regressor's predictions, ``[B, *E]`` as from ``sample``.

    Args:
        model: the run's model.
        config: the run's configuration.
        inputs: the inputs from ``model_inputs``.
    """
    if isinstance(model, VAE):
        return model.reconstruct(*inputs)
    x, condition = inputs
    if isinstance(model, CVAE):
        made = model.reconstruct(x, condition)
    else:
        made = model.predict(condition, library=model.output.library(x))
    return join_column(made, condition) if config.completes else made
