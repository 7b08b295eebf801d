"""The conditional VAE of the tutorial, a model of P(x|c).

Shapes: B is the batch, E = ``data_shape`` the event, C = ``condition_shape`` the shape of one condition, L =
``latent_dim``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.layers import Activation
from fastvae.models.conditions import ConditionNetwork, check_condition, condition_numbers, joined_layer
from fastvae.models.convolutional import Norm
from fastvae.models.latent import Joins, LatentVariableModel, VAEOutput
from fastvae.models.likelihood import LikelihoodName
from fastvae.models.networks import Preset, encoder_mlp, initialise_as_doersch, mlp, split
from fastvae.objectives import Gradient
from fastvae.ops import ELBO


class CVAE(LatentVariableModel):
    """A conditional VAE: P(x|z, c) with z ~ N(0, I) independent of c, and Q(z|x, c).

    Args:
        data_shape: the event E of x, as one size or a sequence of sizes.
        condition_shape: C, the shape of one condition, as one size or a sequence of sizes. A condition may be any
            numbers, e.g. known pixels, or an image and its mask. The default is 28, unless ``condition_classes`` is
            given.
        condition_classes: number of classes, instead of ``condition_shape``: conditions are then labels, integers
            ``[B]``.
        hidden: widths of the MLPs' hidden layers, at least one; (1000, 500, 250) by default.
        latent_dim: L.
        likelihood: as for :class:`fastvae.models.VAE`, and so are ``sigma``, ``learn_sigma``, ``total`` and
            ``activation``.
        preset: ``"doersch"`` for the tutorial's own last encoder layer and initial weights, as for ``VAE``.
        encoder: a module of your own, as for ``VAE``, but called as ``encoder(x, condition)``. The condition is
            ``[B, *C]`` in the dtype of the weights, or one-hot labels ``[B, condition_classes]``.
        decoder: a module of your own, called as ``decoder(z, condition)`` with z ``[N, L]`` and N conditions.
        network: ``"mlp"`` or ``"conv"``, as for ``VAE``, and so are ``conv_width``, ``conv_depth`` and ``conv_norm``.

    Conditions are ``[B, *C]``: uint8 read as c/255, bool, other integers or floating point. Or they are labels ``[B]``.

    The defaults are the sizes of the tutorial's network, with 3,506,316 parameters: x is 27 of the 28 columns of a
    digit, and the condition is the middle column.

    Raises:
        ValueError: as for ``VAE``, or both ``condition_shape`` and ``condition_classes`` are given, or MLPs have no
            hidden layer.

    Source: Doersch 2016 (arXiv:1606.05908), sec. 3, eq. 12 to 15, and sec. 5.
    """

    def __init__(
        self,
        data_shape: int | Sequence[int] = (28, 27),
        condition_shape: int | Sequence[int] | None = None,
        hidden: Sequence[int] | None = None,
        latent_dim: int = 30,
        *,
        condition_classes: int | None = None,
        likelihood: LikelihoodName = "bernoulli",
        sigma: float = 1.0,
        learn_sigma: bool = False,
        total: int | None = None,
        activation: Activation | None = None,
        preset: Preset | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        network: str = "mlp",
        conv_width: int | None = None,
        conv_depth: int | None = None,
        conv_norm: Norm | None = None,
    ) -> None:
        options = {
            "hidden": hidden,
            "activation": activation,
            "preset": preset,
            "conv_width": conv_width,
            "conv_depth": conv_depth,
            "conv_norm": conv_norm,
        }
        own = encoder, decoder
        super().__init__(data_shape, latent_dim, likelihood, sigma, learn_sigma, total, network, own, options)
        self.condition_shape, self.condition_classes = check_condition(condition_shape, condition_classes)
        # What other networks than MLPs are given of one condition.
        classes = self.condition_classes
        numbers = self.condition_shape if classes is None else (classes,)
        whole = self._whole_networks(own, numbers)
        if whole is not None:
            self.encoder, self.decoder = whole
            return
        if not self.hidden:
            raise ValueError("hidden must name at least one layer: the condition joins a hidden layer")
        activation = self._options["activation"]
        self.condition = ConditionNetwork(self.condition_shape, self.condition_classes, self.hidden, activation)
        layers = encoder_mlp(self.pixels, self.hidden, self.latent_dim, activation, preset)
        self.encoder_below, self.encoder_above = split(layers, 2 * joined_layer(self.hidden) + 1)
        layers = mlp(self.latent_dim, *reversed(self.hidden), self.output.outputs * self.pixels, activation=activation)
        self.decoder_below, self.decoder_above = split(layers, 1)
        if preset == "doersch":
            initialise_as_doersch(self, dense=[self.condition.to_decoder[-1]])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this model again, as in :attr:`fastvae.models.VAE.config`."""
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
            ValueError: a shape or dtype is none of those, or the sizes of the batches differ.
        """
        return self._moments(x, self._joins(condition, x.shape[:1]))

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """The parameters of P(x|z, c).

        Args:
            z: ``[..., B, L]``; the dimensions before B share the B conditions.
            condition: ``[B, *C]`` or ``[B]``.

        Returns:
            ``[..., B, *E]`` or ``[..., B, 2, *E]``, as from :meth:`fastvae.models.VAE.decode`.

        Raises:
            ValueError: the shapes do not fit.
        """
        self._check_code(z)
        return self._decoded(z, self._joins(condition, z.shape[-2:-1]))

    def nll(self, z: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """-log P(x|z, c), as in :meth:`fastvae.models.VAE.nll`.

        Args:
            z: ``[B, L]`` or ``[K, B, L]``.
            x: ``[B, *E]``.
            condition: ``[B, *C]`` or ``[B]``.

        Returns:
            ``[B]`` or ``[K, B]``, nats.

        Raises:
            ValueError: a shape is none of those, or the sizes of the batches differ.
        """
        return self._nll(z, self._joins(condition, x.shape[:1]), x, "none")

    def _joins(self, condition: Tensor, batch: Sequence[int]) -> Joins:
        if self.network == "mlp":
            joins: Joins = self.condition(condition)
        else:
            networks = self.encoder, self.decoder
            numbers = condition_numbers(condition, self.condition_shape, self.condition_classes, *networks)
            joins = numbers, numbers
        if list(batch) != [len(condition)]:
            raise ValueError(
                f"there must be a condition for each sample, got {len(condition)} for a batch {list(batch)}"
            )
        return joins

    def _networks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        if self.network == "mlp":
            return [self.encoder_below, self.encoder_above], [self.decoder_below, self.decoder_above]
        return [self.encoder], [self.decoder]

    def _moments(self, x: Tensor, joins: Joins | None) -> tuple[Tensor, Tensor]:
        assert joins is not None
        numbers = self._as_input(x)
        if self.network == "mlp":
            moments = self.encoder_above(self.encoder_below(numbers.flatten(1)) + joins[0])
        else:
            moments = self.encoder(numbers, joins[0])
        mu, logvar = moments.chunk(2, -1)
        return mu, logvar

    def _to_decode(self, z: Tensor, joins: Joins | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
        assert joins is not None
        if self.network == "mlp":
            return self.decoder_above, (self.decoder_below(z) + joins[1],)
        condition = joins[1].expand(*z.shape[:-1], *joins[1].shape[1:])
        return self.decoder, (z.reshape(-1, self.latent_dim), condition.reshape(-1, *joins[1].shape[1:]))

    def forward(self, x: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode, draw one z from Q(z|x, c) and decode it.

        Args:
            x: ``[B, *E]``.
            condition: ``[B, *C]`` or ``[B]``.
            generator: the source of the noise, by default torch's own.

        Raises:
            ValueError: as for ``encode``.
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
            beta: weight of the KL term, as for :meth:`fastvae.models.VAE.loss`.
            generator: the source of the noise, by default torch's own.
            sigma: replaces the model's own sigma, as for :meth:`fastvae.models.VAE.loss`.
            free_bits: nats that each dimension of z may carry without a gradient that reduces them.

        Returns:
            ``(loss, reconstruction, kl)``: batch means in nats.

        Raises:
            ValueError: as for ``encode``, or ``sigma`` is given for a likelihood without one.

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

        Arguments, results and errors are those of ``loss`` and :meth:`fastvae.models.VAE.importance_weighted_loss`.
        """
        joins = self._joins(condition, x.shape[:1])
        return self._log_weights_loss(x, joins, num_samples, gradient, sigma, generator)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        *,
        library: float | Tensor | None = None,
        mean: bool = True,
    ) -> Tensor:
        """Decode draws of the prior N(0, I) for each condition, without gradients.

        Args:
            condition: ``[B, *C]`` or ``[B]``.
            num_samples: K, or None for one sample without a sample dimension.
            generator: the source of the noise, by default torch's own.
            library: the sum of each row, ``[B]`` or one for all, as for :meth:`fastvae.models.VAE.sample`.
            mean: whether to return means rather than draws, as for :meth:`fastvae.models.VAE.sample`.

        Returns:
            ``[B, *E]`` or ``[K, B, *E]``.

        Raises:
            ValueError: as for ``encode`` and ``VAE.sample``, or K is below 1.
        """
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        joins = self._joins(condition, condition.shape[:1])
        shape = [len(condition)] if num_samples is None else [num_samples, len(condition)]
        return self._made(self._decoded(self._prior(shape, generator), joins), library, mean, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, condition: Tensor) -> Tensor:
        """Decode the mode of Q(z|x, c), z = mu, to means ``[B, *E]`` as from ``sample``, without gradients."""
        joins = self._joins(condition, x.shape[:1])
        mu, _ = self._moments(x, joins)
        return self.output.mean(self._decoded(mu, joins), library=self.output.library(x))
