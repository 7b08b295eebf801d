"""P(x|c): the conditional VAE of the tutorial, and the regressor that it is held against.

Shapes: B is the batch, E = ``data_shape`` the event, C = ``condition_shape`` that of one condition, L = ``latent_dim``.

The condition has a network of its own, whose outputs are added to the layers of the encoder and the decoder before
their ReLU. With hidden sizes (h1, ..., hn) it runs from C over layers of these sizes to one more of size hn; the last
but one of them joins the encoder's of the same size, the one more the decoder's first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fastvae.models.latent import Joins, LatentVariableModel, VAEOutput
from fastvae.models.likelihood import Likelihood, LikelihoodName
from fastvae.models.networks import (
    Activation,
    Preset,
    activation_layer,
    as_input,
    check_network,
    check_shape,
    encoder,
    initialise_as_doersch,
    input_dtype,
    mlp,
    sizes,
    split,
)
from fastvae.objectives import Gradient
from fastvae.ops import ELBO, transformed

_COLUMN = 28  # pixels of the column that the tutorial's networks are given


class _ConditionNetwork(nn.Module):
    """``[B, *C]`` or labels ``[B]`` to what joins the encoder ``[B, h]`` and the decoder ``[B, hn]``, before ReLU."""

    def __init__(
        self, shape: tuple[int, ...] | None, classes: int | None, hidden: Sequence[int], activation: Activation
    ):
        super().__init__()
        self.shape, self.classes = shape, classes
        join = _joined_layer(hidden)
        inputs = classes if classes is not None else math.prod(shape or ())
        layers = mlp(inputs, *hidden, hidden[-1], activation=activation)
        self.to_encoder, self.to_decoder = split(layers, 2 * join + 1)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        joins_encoder = self.to_encoder(self._numbers(condition))
        return joins_encoder, self.to_decoder(joins_encoder)

    def _numbers(self, condition: Tensor) -> Tensor:
        networks = self.to_encoder, self.to_decoder
        if self.shape is not None:
            return as_input("condition", condition, self.shape, *networks)
        assert self.classes is not None
        if condition.dim() != 1 or condition.is_floating_point() or condition.dtype == torch.bool:
            raise ValueError(
                f"condition must be labels, integers [B], got {condition.dtype} of shape {list(condition.shape)}"
            )
        labels = condition.long()
        dtype = input_dtype(labels, *networks)
        if transformed():
            # Nobody may look at them here, and one_hot would give zeros for a label that is none; scatter does not.
            zeros = torch.zeros(*labels.shape, self.classes, dtype=dtype, device=labels.device)
            return zeros.scatter(-1, labels.unsqueeze(-1), 1)
        # Elsewhere, and in compiled code, which may not look at them, one_hot itself sees to their range.
        if labels.is_cpu and labels.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in labels.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(f"labels must lie in 0 .. {self.classes - 1}, got {low if low < 0 else high}")
        return one_hot(labels, self.classes).to(dtype)


def _joined_layer(hidden: Sequence[int]) -> int:
    return max(0, len(hidden) - 2)


def _condition(shape: int | Sequence[int] | None, classes: int | None) -> tuple[tuple[int, ...] | None, int | None]:
    if classes is not None:
        if shape is not None:
            raise ValueError(f"give at most one of condition_shape and condition_classes, got {shape} and {classes}")
        return None, sizes("condition_classes", classes)[0]
    shape = sizes("condition_shape", _COLUMN if shape is None else shape)
    if not shape:
        raise ValueError("condition_shape must name at least one dimension, not ()")
    return shape, None


class CVAE(LatentVariableModel):
    """A conditional VAE: P(x|z, c) with z ~ N(0, I) independent of c, and Q(z|x, c).

    Args:
        data_shape: the event E of x, as one size or a sequence of sizes.
        condition_shape: C, the shape of one condition, likewise: any numbers, e.g. pixels that are known, or an image
            and its mask side by side. It is 28 by default, unless ``condition_classes`` is given.
        condition_classes: instead of that, the number of classes: conditions are labels, integers ``[B]``.
        hidden: widths of the hidden layers, at least one.
        latent_dim: L.
        likelihood: as for :class:`fastvae.models.VAE`, and so are ``sigma``, ``learn_sigma`` and ``activation``.
        preset: ``"doersch"`` for the tutorial's own heads and initial weights, as for ``VAE``.

    A condition is ``[B, *C]``: uint8 read as c/255, bool or floating point; or labels ``[B]``.

    The defaults are the sizes of the tutorial's network: 27 of the 28 columns of a digit given the one in the middle,
    with 3,506,316 parameters.

    Raises:
        ValueError: as ``VAE``; both of the two kinds of conditions; no hidden layer.

    Source: Doersch 2016 (arXiv:1606.05908), sec. 3, eq. 12 to 15, and sec. 5.
    """

    def __init__(
        self,
        data_shape: int | Sequence[int] = (28, 27),
        condition_shape: int | Sequence[int] | None = None,
        hidden: Sequence[int] = (1000, 500, 250),
        latent_dim: int = 30,
        *,
        condition_classes: int | None = None,
        likelihood: LikelihoodName = "bernoulli",
        sigma: float = 1.0,
        learn_sigma: bool = False,
        activation: Activation = "relu",
        preset: Preset | None = None,
    ) -> None:
        super().__init__(data_shape, hidden, latent_dim, likelihood, sigma, learn_sigma, activation, preset)
        if not self.hidden:
            raise ValueError("hidden must name at least one layer: the condition joins there")
        self.condition_shape, self.condition_classes = _condition(condition_shape, condition_classes)
        self.condition = _ConditionNetwork(self.condition_shape, self.condition_classes, self.hidden, activation)
        layers = encoder(self.pixels, self.hidden, self.latent_dim, activation, preset)
        self.encoder_below, self.encoder_above = split(layers, 2 * _joined_layer(self.hidden) + 1)
        decoder = mlp(self.latent_dim, *reversed(self.hidden), self.pixels, activation=activation)
        self.decoder_below, self.decoder_above = split(decoder, 1)
        if preset == "doersch":
            initialise_as_doersch(self, dense=[self.condition.to_decoder[-1]])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this model again: ``CVAE(**model.config)``; plain enough for JSON."""
        shape = None if self.condition_shape is None else list(self.condition_shape)
        return {
            "data_shape": list(self.data_shape),
            "condition_shape": shape,
            "condition_classes": self.condition_classes,
            **self._config(),
        }

    def encode(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of Q(z|x, c).

        Args:
            x: ``[B, *E]``.
            condition: ``[B, *C]`` or ``[B]``.

        Returns:
            ``(mu, logvar)``, each ``[B, L]``.

        Raises:
            ValueError: a shape or dtype that is none of those, or batches of two sizes.
        """
        return self._moments(x, self._joins(condition, x.shape[:1]))

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """The parameters of P(x|z, c).

        Args:
            z: ``[..., B, L]``: a condition serves all that comes before B.
            condition: ``[B, *C]`` or ``[B]``.

        Returns:
            ``[..., B, *E]``: logits (Bernoulli) or means (Gaussian).

        Raises:
            ValueError: the shapes do not fit.
        """
        self._check_code(z)
        return self._decoded(z, self._joins(condition, z.shape[-2:-1]))

    def nll(self, z: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """-log P(x|z, c), as :meth:`fastvae.models.VAE.nll`.

        Args:
            z: ``[B, L]`` or ``[K, B, L]``.
            x: ``[B, *E]``.
            condition: ``[B, *C]`` or ``[B]``.

        Returns:
            ``[B]`` or ``[K, B]``, nats.

        Raises:
            ValueError: a shape that is none of those, or batches of two sizes.
        """
        return self._nll(z, self._joins(condition, x.shape[:1]), x, "none")

    def _joins(self, condition: Tensor, batch: Sequence[int]) -> Joins:
        joins: Joins = self.condition(condition)
        if list(batch) != [len(condition)]:
            raise ValueError(
                f"there must be a condition for each sample, got {len(condition)} for a batch {list(batch)}"
            )
        return joins

    def _networks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return [self.encoder_below, self.encoder_above], [self.decoder_below, self.decoder_above]

    def _moments(self, x: Tensor, joins: Joins | None) -> tuple[Tensor, Tensor]:
        assert joins is not None
        h = self.encoder_below(self._as_input("x", x, self.data_shape))
        mu, logvar = self.encoder_above(h + joins[0]).chunk(2, -1)
        return mu, logvar

    def _to_decode(self, z: Tensor, joins: Joins | None) -> tuple[nn.Module, Tensor]:
        assert joins is not None
        return self.decoder_above, self.decoder_below(z) + joins[1]

    def forward(self, x: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode, draw one z from Q(z|x, c) and decode it.

        Args:
            x: ``[B, *E]``.
            condition: ``[B, *C]`` or ``[B]``.
            generator: the source of the noise, by default torch's own.

        Raises:
            ValueError: as ``encode``.
        """
        return self._pass(x, self._joins(condition, x.shape[:1]), generator)

    def loss(
        self,
        x: Tensor,
        condition: Tensor,
        beta: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
        *,
        sigma: float | Tensor | None = None,
        free_bits: float = 0.0,
    ) -> ELBO:
        """The negative ELBO of log P(x|c), from one sample of z for each element of a batch.

        Args:
            x: ``[B, *E]``.
            condition: ``[B, *C]`` or ``[B]``.
            beta: and the rest as for :meth:`fastvae.models.VAE.loss`.
            generator: the source of the noise, by default torch's own.
            sigma: stands in for the model's own.
            free_bits: nats that each dimension of z may carry freely.

        Returns:
            ``(loss, reconstruction, kl)``: batch means in nats.

        Raises:
            ValueError: as ``encode``; a sigma for the Bernoulli likelihood.

        Source: Doersch 2016, eq. 15.
        """
        return self._loss(x, self._joins(condition, x.shape[:1]), beta, sigma, free_bits, generator)

    def importance_weighted_loss(
        self,
        x: Tensor,
        condition: Tensor,
        num_samples: int,
        *,
        gradient: Gradient = "iwae",
        sigma: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ELBO:
        """Minus the importance-weighted bound of log P(x|c).

        Arguments, results and errors as for ``loss`` and :meth:`fastvae.models.VAE.importance_weighted_loss`.
        """
        joins = self._joins(condition, x.shape[:1])
        return self._log_weights_loss(x, joins, num_samples, gradient, sigma, generator)

    @torch.no_grad()
    def sample(
        self, condition: Tensor, num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """What x may be: decode draws of the prior N(0, I). No gradient flows.

        Args:
            condition: ``[B, *C]`` or ``[B]``.
            num_samples: K, or None for one without a dimension of its own.
            generator: the source of the noise, by default torch's own.

        Returns:
            ``[B, *E]`` or ``[K, B, *E]``: probabilities (Bernoulli) or means (Gaussian).

        Raises:
            ValueError: as ``encode``; K below 1.
        """
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        joins: Joins = self.condition(condition)
        shape = [len(condition)] if num_samples is None else [num_samples, len(condition)]
        return self.output.mean(self._decoded(self._prior(shape, generator), joins))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, condition: Tensor) -> Tensor:
        """Decode the mode of Q(z|x, c), z = mu: ``[B, *E]``, as ``sample``. No gradient flows."""
        joins = self._joins(condition, x.shape[:1])
        mu, _ = self._moments(x, joins)
        return self.output.mean(self._decoded(mu, joins))


class Regressor(nn.Module):
    """The same without z: it predicts each pixel's mean given c, and so blurs what c leaves open.

    Args:
        data_shape: and the rest as for :class:`CVAE`. By default it has the tutorial's 2,100,756 parameters.

    Raises:
        ValueError: as ``CVAE``.

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
        activation: Activation = "relu",
        preset: Preset | None = None,
    ) -> None:
        super().__init__()
        self.output = Likelihood(likelihood, sigma, learn_sigma)
        self.data_shape = sizes("data_shape", data_shape)
        self.hidden = sizes("hidden", hidden)
        if not self.data_shape or not self.hidden:
            raise ValueError("data_shape must name at least one dimension, and hidden at least one layer")
        check_network(self.hidden, activation, preset)
        self.condition_shape, self.condition_classes = _condition(condition_shape, condition_classes)
        self.condition = _ConditionNetwork(self.condition_shape, self.condition_classes, self.hidden, activation)
        # Without the decoder's first layer, which would take z.
        self.decoder = mlp(*reversed(self.hidden), math.prod(self.data_shape), activation=activation)
        self.decoder.insert(0, activation_layer(activation))
        self.activation: Activation = activation
        self.preset: Preset | None = preset
        if preset == "doersch":
            initialise_as_doersch(self, dense=[self.condition.to_decoder[-1]])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this model again: ``Regressor(**model.config)``; plain enough for JSON."""
        return {
            "data_shape": list(self.data_shape),
            "condition_shape": None if self.condition_shape is None else list(self.condition_shape),
            "hidden": list(self.hidden),
            "condition_classes": self.condition_classes,
            "likelihood": self.output.name,
            "sigma": self.output.initial_sigma,
            "learn_sigma": self.output.log_sigma is not None,
            "activation": self.activation,
            "preset": self.preset,
        }

    def forward(self, condition: Tensor) -> Tensor:
        """The parameters of P(x|c).

        Args:
            condition: ``[B, *C]`` or ``[B]``.

        Returns:
            ``[B, *E]``: logits (Bernoulli) or means (Gaussian).

        Raises:
            ValueError: a shape or dtype that is none of those.
        """
        return torch.unflatten(self.decoder(self.condition(condition)[1]), -1, self.data_shape)

    def loss(self, x: Tensor, condition: Tensor, *, sigma: float | Tensor | None = None) -> Tensor:
        """-log P(x|c): 0-d, the batch mean in nats; ``x [B, *E]``, ``condition`` as for ``forward``."""
        return self.nll(x, condition, sigma=sigma, reduction="mean")

    def nll(
        self, x: Tensor, condition: Tensor, *, sigma: float | Tensor | None = None, reduction: str = "none"
    ) -> Tensor:
        """-log P(x|c): ``[B]``, nats, or their ``"mean"`` or ``"sum"``; ``x [B, *E]``, the rest as for ``forward``."""
        check_shape("x", x, self.data_shape)
        h = self.condition(condition)[1]
        return self.output.nll_through(self.decoder, h, x, sigma=sigma, reduction=reduction)

    @torch.no_grad()
    def predict(self, condition: Tensor) -> Tensor:
        """The expected x, ``[B, *E]``: probabilities (Bernoulli) or means (Gaussian). No gradient flows."""
        return self.output.mean(self(condition))
