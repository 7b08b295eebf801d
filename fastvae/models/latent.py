"""The base class of VAE and CVAE: q(z|...), P(x|z, ...) and the losses made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from fastvae import objectives
from fastvae.layers import Activation, first_weight
from fastvae.models.convolutional import convolutional
from fastvae.models.likelihood import LikelihoodName, make_likelihood
from fastvae.models.networks import (
    Preset,
    as_input,
    check_network,
    check_numbers,
    check_shape,
    network_options,
    sizes,
)
from fastvae.models.own import made_by, own_networks
from fastvae.ops import ELBO, gaussian_kl, reparameterize, sample_kl, serializable


@serializable
class VAEOutput(NamedTuple):
    """The results of one pass through the model."""

    decoded: Tensor
    """The result of :meth:`fastvae.models.VAE.decode` for ``z``, ``[B, *E]``."""
    mu: Tensor
    """The mean of Q(z|x), ``[B, L]``."""
    logvar: Tensor
    """The log-variance of Q(z|x), ``[B, L]``."""
    z: Tensor
    """One sample of Q(z|x), ``[B, L]``."""


Joins = tuple[Tensor, Tensor]
"""What a condition adds to an MLP's encoder and decoder. For other networks both are the condition as numbers."""

Modules = tuple[nn.Module | None, nn.Module | None]
"""The caller's own encoder and decoder, or twice None."""


class LatentVariableModel(nn.Module):
    """A model with a code z whose prior is N(0, I). Subclasses add the networks."""

    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dim: int,
        likelihood: LikelihoodName,
        sigma: float,
        learn_sigma: bool,
        total: int | None,
        network: str,
        own: Modules,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.data_shape = sizes("data_shape", data_shape)
        if not self.data_shape:
            raise ValueError("data_shape must name at least one dimension, not ()")
        self.output = make_likelihood(likelihood, self.data_shape, sigma, learn_sigma, total)
        is_own = own != (None, None)
        self._options = network_options(network, is_own, options)
        self.network: str | None = None if is_own else network
        """``"mlp"``, ``"conv"`` or ``"package.module:function"``; None if encoder and decoder were given."""
        self.hidden = sizes("hidden", self._options.get("hidden", ()))
        self.activation: Activation | None = self._options.get("activation")
        self.preset: Preset | None = self._options.get("preset")
        (self.latent_dim,) = sizes("latent_dim", latent_dim)
        if self.network == "mlp":
            check_network(self.hidden, self._options["activation"], self.preset)
        self.pixels = math.prod(self.data_shape)

    def _whole_networks(
        self, own: Modules, condition_shape: Sequence[int] | None = None
    ) -> tuple[nn.Module, nn.Module] | None:
        """Networks between ``[B, *E]`` and codes ``[B, L]``, given conditions ``[B, *C]``; None where it has MLPs."""
        if self.network != "conv":
            if self.network is not None and ":" in self.network:
                own = made_by(self.network, self.data_shape, self.latent_dim, condition_shape)
            return own_networks(*own, self.data_shape, self.latent_dim, condition_shape, self.output.outputs)
        width, depth, norm = (self._options[f"conv_{name}"] for name in ("width", "depth", "norm"))
        condition = 0 if condition_shape is None else math.prod(condition_shape)
        return convolutional(
            self.data_shape,
            self.latent_dim,
            width=width,
            depth=depth,
            norm=norm,
            condition=condition,
            outputs=self.output.outputs,
        )

    @property
    def likelihood(self) -> LikelihoodName:
        """The name of the likelihood P(x|z)."""
        return self.output.name

    @property
    def sigma(self) -> float | Tensor:
        """Standard deviation of the Gaussian likelihood or scale of the Laplace one; a 0-d tensor if it is learned."""
        return self.output.sigma

    def _config(self) -> dict[str, object]:
        options = dict(self._options)
        if self.network == "mlp":
            options["hidden"] = list(self.hidden)  # and no name, as checkpoints from before there were others
        elif self.network is not None:
            options["network"] = self.network
        return {
            "latent_dim": self.latent_dim,
            "likelihood": self.likelihood,
            "sigma": self.output.initial_sigma,
            "learn_sigma": self.output.log_sigma is not None,
            **({} if self.output.total is None else {"total": self.output.total}),
            **options,
        }

    def _moments(self, x: Tensor, joins: Joins | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _to_decode(self, z: Tensor, joins: Joins | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The layers of the decoder that are left, which give ``[..., D]`` or ``[B', *E]``, and what they take."""
        raise NotImplementedError

    def _decoded(self, z: Tensor, joins: Joins | None) -> Tensor:
        layers, inputs = self._to_decode(z, joins)
        decoded: Tensor = layers(*inputs)
        return decoded.reshape(*z.shape[:-1], *self.output.shape)

    def _nll(
        self, z: Tensor, joins: Joins | None, x: Tensor, reduction: str, sigma: float | Tensor | None = None
    ) -> Tensor:
        check_shape("x", x, self.data_shape)
        if z.dim() not in (2, 3) or z.shape[-2:] != (len(x), self.latent_dim):
            rows = f"{len(x)}, {self.latent_dim}]"
            raise ValueError(f"z has shape {list(z.shape)}, expected [{rows} or [K, {rows}, one code for each x")
        layers, inputs = self._to_decode(z, joins)
        return self.output.nll_through(layers, inputs, x, z.shape[:-1], sigma=sigma, reduction=reduction)

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
        if isinstance(beta, Tensor):
            return ELBO(reconstruction + beta * penalty, reconstruction, kl)
        return ELBO(torch.add(reconstruction, penalty, alpha=beta), reconstruction, kl)  # one launch, and no product

    def _made(self, decoded: Tensor, library: float | Tensor | None, mean: bool, generator: Generator | None) -> Tensor:
        """Means or draws of x."""
        if mean:
            return self.output.mean(decoded, library=library)
        return self.output.sample(decoded, library=library, generator=generator)

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

    def _as_input(self, x: Tensor) -> Tensor:
        encoder, decoder = self._networks()
        check_numbers("x", x, self.data_shape)
        return as_input("x", self.output.to_input(x), self.data_shape, *encoder, *decoder)

    def _check_code(self, z: Tensor) -> None:
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z has shape {list(z.shape)}, expected [..., {self.latent_dim}]")
