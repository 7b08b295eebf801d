"""The tutorial's regressor, to compare the conditional VAE with: the same model without a code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.layers import Activation
from fastvae.models.conditions import ConditionNetwork, check_condition
from fastvae.models.likelihood import LikelihoodName, make_likelihood
from fastvae.models.networks import (
    Preset,
    activation_layer,
    check_network,
    check_shape,
    initialise_as_doersch,
    mlp,
    sizes,
)


class Regressor(nn.Module):
    """A conditional VAE without z. It predicts each pixel's mean given c, and so blurs what c does not determine.

    All arguments are as for the MLPs of :class:`fastvae.models.CVAE`. With the defaults it has the tutorial's 2,100,756
    parameters.

    Raises:
        ValueError: as for ``CVAE``.

    Source: Doersch 2016 (arXiv:1606.05908), sec. 5.
    """

    def __init__(
        self,
        data_shape: int | Sequence[int] = (28, 27),
        condition_shape: int | Sequence[int] | None = None,
        hidden: Sequence[int] = (1000, 500, 250),
        *,
        condition_classes: int | None = None,
        likelihood: LikelihoodName = "bernoulli",
        sigma: float = 1.0,
        learn_sigma: bool = False,
        total: int | None = None,
        activation: Activation = "relu",
        preset: Preset | None = None,
    ) -> None:
        super().__init__()
        self.data_shape = sizes("data_shape", data_shape)
        self.hidden = sizes("hidden", hidden)
        if not self.data_shape or not self.hidden:
            raise ValueError("data_shape must name at least one dimension, and hidden at least one layer")
        self.output = make_likelihood(likelihood, self.data_shape, sigma, learn_sigma, total)
        check_network(self.hidden, activation, preset)
        self.condition_shape, self.condition_classes = check_condition(condition_shape, condition_classes)
        self.condition = ConditionNetwork(self.condition_shape, self.condition_classes, self.hidden, activation)
        # Without the decoder's first layer, which would take z.
        self.decoder = mlp(*reversed(self.hidden), math.prod(self.output.shape), activation=activation)
        self.decoder.insert(0, activation_layer(activation))
        self.activation: Activation = activation
        self.preset: Preset | None = preset
        if preset == "doersch":
            initialise_as_doersch(self, dense=[self.condition.to_decoder[-1]])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this model again, which JSON can hold: ``Regressor(**model.config)``."""
        return {
            "data_shape": list(self.data_shape),
            "condition_shape": None if self.condition_shape is None else list(self.condition_shape),
            "hidden": list(self.hidden),
            "condition_classes": self.condition_classes,
            "likelihood": self.output.name,
            "sigma": self.output.initial_sigma,
            "learn_sigma": self.output.log_sigma is not None,
            **({} if self.output.total is None else {"total": self.output.total}),
            "activation": self.activation,
            "preset": self.preset,
        }

    def forward(self, condition: Tensor) -> Tensor:
        """The parameters of P(x|c).

        Args:
            condition: ``[B, *C]`` or ``[B]``.

        Returns:
            ``[B, *E]`` or ``[B, 2, *E]``, as from :meth:`fastvae.models.VAE.decode`.

        Raises:
            ValueError: the shape or dtype is none of those.
        """
        return torch.unflatten(self.decoder(self.condition(condition)[1]), -1, self.output.shape)

    def loss(self, x: Tensor, condition: Tensor, *, sigma: float | Tensor | None = None) -> Tensor:
        """The batch mean of -log P(x|c) in nats, 0-d, for ``x [B, *E]`` and a condition as for ``forward``."""
        return self.nll(x, condition, sigma=sigma, reduction="mean")

    def nll(
        self, x: Tensor, condition: Tensor, *, sigma: float | Tensor | None = None, reduction: str = "none"
    ) -> Tensor:
        """-log P(x|c) in nats, ``[B]`` or its ``"mean"`` or ``"sum"``, for ``x [B, *E]`` and a condition as above."""
        check_shape("x", x, self.data_shape)
        h = self.condition(condition)[1]
        return self.output.nll_through(self.decoder, (h,), x, x.shape[:1], sigma=sigma, reduction=reduction)

    @torch.no_grad()
    def predict(self, condition: Tensor, *, library: float | Tensor | None = None) -> Tensor:
        """The expected x, ``[B, *E]``, as from :meth:`fastvae.models.VAE.sample`, without gradients."""
        return self.output.mean(self(condition), library=library)
