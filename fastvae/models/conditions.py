"""Conditions of a model, of any shape or labels, and the network that processes them in models of MLPs.

The condition has a network of its own, whose outputs are added to layers of the encoder and the decoder before their
ReLU. With hidden sizes (h1, ..., hn) it runs from C over layers of these sizes to one more layer of size hn. Its layer
of size h(n-1), or h1 if n = 1, joins the encoder's layer of the same size. Its additional layer joins the decoder's
first layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fastvae.layers import Activation, input_dtype
from fastvae.models.networks import as_input, mlp, sizes, split
from fastvae.ops import transformed

_COLUMN = 28  # pixels of the column that the tutorial's networks are given


class ConditionNetwork(nn.Module):
    """Maps conditions ``[B, *C]`` or ``[B]`` to what is added to an encoder layer and to a decoder layer before ReLU.

    These are ``[B, h]``, with the width of the encoder's layer, and ``[B, hn]``.
    """

    def __init__(
        self, shape: tuple[int, ...] | None, classes: int | None, hidden: Sequence[int], activation: Activation
    ):
        super().__init__()
        self.shape, self.classes = shape, classes
        join = joined_layer(hidden)
        inputs = classes if classes is not None else math.prod(shape or ())
        layers = mlp(inputs, *hidden, hidden[-1], activation=activation)
        self.to_encoder, self.to_decoder = split(layers, 2 * join + 1)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        numbers = condition_numbers(condition, self.shape, self.classes, self.to_encoder, self.to_decoder)
        joins_encoder = self.to_encoder(numbers.flatten(1))
        return joins_encoder, self.to_decoder(joins_encoder)


def condition_numbers(
    condition: Tensor, shape: tuple[int, ...] | None, classes: int | None, *networks: nn.Module
) -> Tensor:
    """A condition as input of networks: ``[B, *C]`` in the dtype of their weights, or one-hot labels ``[B, classes]``.

    Args:
        condition: ``[B, *C]`` as for :func:`fastvae.models.networks.as_input`, or integers ``[B]``.
        shape: C; None if conditions are labels.
        classes: the number of labels; None if conditions are not labels.
        networks: the first of them that has weights determines the dtype.

    Raises:
        ValueError: the shape or dtype is another, or a label is outside 0 .. classes - 1 (checked on a CPU).
    """
    if shape is not None:
        return as_input("condition", condition, shape, *networks)
    assert classes is not None
    if condition.dim() != 1 or condition.is_floating_point() or condition.dtype == torch.bool:
        raise ValueError(
            f"condition must be labels, integers [B], got {condition.dtype} of shape {list(condition.shape)}"
        )
    labels = condition.long()
    dtype = input_dtype(labels, *networks)
    if transformed():
        # Nobody may look at them here, and one_hot would give zeros for a label that is none; scatter does not.
        zeros = torch.zeros(*labels.shape, classes, dtype=dtype, device=labels.device)
        return zeros.scatter(-1, labels.unsqueeze(-1), 1)
    # Elsewhere, and in compiled code, which may not look at them, one_hot itself sees to their range.
    if labels.is_cpu and labels.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {low if low < 0 else high}")
    return one_hot(labels, classes).to(dtype)


def joined_layer(hidden: Sequence[int]) -> int:
    """The number of the encoder's layer that the condition joins."""
    return max(0, len(hidden) - 2)


def check_condition(
    shape: int | Sequence[int] | None, classes: int | None
) -> tuple[tuple[int, ...] | None, int | None]:
    """Checked values of ``condition_shape`` and ``condition_classes``, one of which is None.

    Raises:
        ValueError: both are given, or a size is not a positive integer.
    """
    if classes is not None:
        if shape is not None:
            raise ValueError(f"give at most one of condition_shape and condition_classes, got {shape} and {classes}")
        return None, sizes("condition_classes", classes)[0]
    shape = sizes("condition_shape", _COLUMN if shape is None else shape)
    if not shape:
        raise ValueError("condition_shape must name at least one dimension, not ()")
    return shape, None
