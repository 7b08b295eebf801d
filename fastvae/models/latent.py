"""What VAE and CVAE have in common: q(z|...), P(x|z, ...) and the losses made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from fastvae import objectives
from fastvae.models.likelihood import Likelihood, LikelihoodName
from fastvae.models.networks import Activation, Preset, as_input, check_network, check_shape, first_weight, sizes
from fastvae.ops import ELBO, gaussian_kl, reparameterize, sample_kl, serializable


@serializable
class VAEOutput(NamedTuple):
    """What one pass through the model gives."""

    decoded: Tensor
    """``[B, *E]``: logits (Bernoulli) or means (Gaussian)."""
    mu: Tensor
    """``[B, L]``, the mean of Q(z|x)."""
    logvar: Tensor
    """``[B, L]``, the log-variance of Q(z|x)."""
    z: Tensor
    """``[B, L]``, one sample of Q(z|x)."""


Joins = tuple[Tensor, Tensor]
"""What a condition adds to the encoder and to the decoder."""


class LatentVariableModel(nn.Module):
    """A model with a code z of prior N(0, I). Its subclasses have the networks."""

    def __init__(
        self,
        data_shape: int | Sequence[int],
        hidden: Sequence[int],
        latent_dim: int,
        likelihood: LikelihoodName,
        sigma: float,
        learn_sigma: bool,
        activation: Activation,
        preset: Preset | None,
    ) -> None:
        super().__init__()
        self.output = Likelihood(likelihood, sigma, learn_sigma)
        self.data_shape = sizes("data_shape", data_shape)
        if not self.data_shape:
            raise ValueError("data_shape must name at least one dimension, not ()")
        self.hidden = sizes("hidden", hidden)
        (self.latent_dim,) = sizes("latent_dim", latent_dim)
        check_network(self.hidden, activation, preset)
        self.activation: Activation = activation
        self.preset: Preset | None = preset
        self.pixels = math.prod(self.data_shape)

    @property
    def likelihood(self) -> LikelihoodName:
        """The name of P(x|z)'s family."""
        return self.output.name

    @property
    def sigma(self) -> float | Tensor:
        """The standard deviation of the Gaussian likelihood: a 0-d tensor where it is learned."""
        return self.output.sigma

    def _config(self) -> dict[str, object]:
        return {
            "hidden": list(self.hidden),
            "latent_dim": self.latent_dim,
            "likelihood": self.likelihood,
            "sigma": self.output.initial_sigma,
            "learn_sigma": self.output.log_sigma is not None,
            "activation": self.activation,
            "preset": self.preset,
        }

    def _moments(self, x: Tensor, joins: Joins | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _to_decode(self, z: Tensor, joins: Joins | None) -> tuple[nn.Module, Tensor]:
        """The layers of the decoder that are left, which give ``[..., D]``, and what they take."""
        raise NotImplementedError

    def _decoded(self, z: Tensor, joins: Joins | None) -> Tensor:
        layers, h = self._to_decode(z, joins)
        return torch.unflatten(layers(h), -1, self.data_shape)

    def _nll(
        self, z: Tensor, joins: Joins | None, x: Tensor, reduction: str, sigma: float | Tensor | None = None
    ) -> Tensor:
        check_shape("x", x, self.data_shape)
        if z.dim() not in (2, 3) or z.shape[-2:] != (len(x), self.latent_dim):
            rows = f"{len(x)}, {self.latent_dim}]"
            raise ValueError(f"z has shape {list(z.shape)}, expected [{rows} or [K, {rows}, one code for each x")
        return self.output.nll_through(*self._to_decode(z, joins), x, sigma=sigma, reduction=reduction)

    def _pass(self, x: Tensor, joins: Joins | None, generator: Generator | None) -> VAEOutput:
        mu, logvar = self._moments(x, joins)
        z = reparameterize(mu, logvar, generator=generator)
        return VAEOutput(self._decoded(z, joins), mu, logvar, z)

    def _loss(
        self,
        x: Tensor,
        joins: Joins | None,
        beta: float | Tensor,
        sigma: float | Tensor | None,
        free_bits: float,
        generator: Generator | None,
    ) -> ELBO:
        if isinstance(beta, Tensor):
            if beta.dim() or not beta.is_floating_point():
                raise ValueError(
                    f"beta must be a number or a 0-d floating-point tensor, got {beta.dtype} {list(beta.shape)}"
                )
        elif not abs(beta) < math.inf:  # which compiled code can guard on, as it cannot on isfinite
            raise ValueError(f"beta must be finite, got {beta}")
        mu, logvar = self._moments(x, joins)
        z, rows = sample_kl(mu, logvar, generator=generator)
        reconstruction, kl = self._nll(z, joins, x, "mean", sigma), rows.mean()
        penalty = objectives.free_bits(mu, logvar, free_bits) if free_bits else kl
        return ELBO(reconstruction + beta * penalty, reconstruction, kl)

    def _log_weights_loss(
        self,
        x: Tensor,
        joins: Joins | None,
        num_samples: int,
        gradient: objectives.Gradient,
        sigma: float | Tensor | None,
        generator: Generator | None,
    ) -> ELBO:
        mu, logvar = self._moments(x, joins)
        z = reparameterize(mu, logvar, num_samples=num_samples, generator=generator)
        reconstruction = self._nll(z, joins, x, "none", sigma)
        loss = objectives.importance_weighted_loss(reconstruction, z, mu, logvar, gradient=gradient).mean()
        with torch.no_grad():
            return ELBO(loss, reconstruction.mean(), gaussian_kl(mu, logvar, reduction="mean"))

    def _networks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Those that x goes through, then those that z goes through, each in that order."""
        raise NotImplementedError

    def _prior(self, shape: Sequence[int], generator: Generator | None) -> Tensor:
        # N(0, I) through the operator: its noise is the same on every device, torch.randn's is not.
        # Not new_zeros: of a weight that is sharded, it would be sharded.
        encoder, decoder = self._networks()
        like = first_weight(*decoder, *encoder)
        dtype, device = (None, None) if like is None else (like.dtype, like.device)
        zeros = torch.zeros(*shape, self.latent_dim, dtype=dtype, device=device)
        return reparameterize(zeros, zeros, generator=generator)

    def _as_input(self, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        encoder, decoder = self._networks()
        return as_input(name, x, shape, *encoder, *decoder)

    def _check_code(self, z: Tensor) -> None:
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z has shape {list(z.shape)}, expected [..., {self.latent_dim}]")
