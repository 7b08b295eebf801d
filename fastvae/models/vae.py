"""The variational auto-encoder of the tutorial: two mirrored MLPs around a Gaussian code.

Shapes: B is the batch, E = ``data_shape`` the event (one image), L = ``latent_dim``. The networks see the
event flattened to D numbers; callers see images in the shape that they gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fastvae.ops import ELBO, elbo_loss, gaussian_nll, reparameterize, sample_kl

Likelihood = Literal["bernoulli", "gaussian"]


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


class VAE(nn.Module):
    """A variational auto-encoder with a standard normal prior and a diagonal Gaussian Q(z|x).

    Args:
        data_shape: the event E, as one size or a sequence of sizes, e.g. ``784`` or ``(28, 28)``.
        hidden: widths of the encoder's ReLU layers; the decoder has the same in reverse. May be empty.
        latent_dim: L, the size of the code z.
        likelihood: ``"bernoulli"`` (the decoder gives logits of pixels in [0, 1]) or ``"gaussian"`` (the
            decoder gives means).
        sigma: standard deviation of the Gaussian likelihood, in units of the data (uint8 images: of
            pixels in [0, 1]). It weighs reconstruction against KL; the Bernoulli one has no use for it.

    Wherever a batch ``x`` is taken, it is ``[B, *E]``: uint8 read as x/255, bool read as 0 or 1, or floating
    point (in [0, 1] for the Bernoulli likelihood).

    Raises:
        ValueError: a size that is no positive integer, an unknown likelihood, or a sigma that is not
            positive and finite.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), App. C; the sizes are those of Doersch 2016
    (arXiv:1606.05908), sec. 4.
    """

    def __init__(
        self,
        data_shape: int | Sequence[int] = 784,
        hidden: Sequence[int] = (1000, 500, 250),
        latent_dim: int = 30,
        *,
        likelihood: Likelihood = "bernoulli",
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        if likelihood not in get_args(Likelihood):
            choices = " or ".join(map(repr, get_args(Likelihood)))
            raise ValueError(f"likelihood must be {choices}, not {likelihood!r}")
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive finite number, not {sigma}")
        self.data_shape = _sizes("data_shape", (data_shape,) if isinstance(data_shape, int) else data_shape)
        if not self.data_shape:
            raise ValueError("data_shape must name at least one dimension, not ()")
        self.hidden = _sizes("hidden", hidden)
        (self.latent_dim,) = _sizes("latent_dim", (latent_dim,))
        self.likelihood: Likelihood = likelihood
        self.sigma = float(sigma)

        pixels = math.prod(self.data_shape)
        # The last layer holds mu and logvar side by side: the operators read the two halves in place.
        self.encoder = _mlp(pixels, *self.hidden, 2 * self.latent_dim)
        self.decoder = _mlp(self.latent_dim, *reversed(self.hidden), pixels)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this model again: ``VAE(**model.config)``; plain enough for JSON."""
        return {
            "data_shape": list(self.data_shape),
            "hidden": list(self.hidden),
            "latent_dim": self.latent_dim,
            "likelihood": self.likelihood,
            "sigma": self.sigma,
        }

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of Q(z|x).

        Args:
            x: ``[B, *E]``.

        Returns:
            ``(mu, logvar)``, each ``[B, L]``: two views of one tensor.

        Raises:
            ValueError: the shape of ``x`` is not ``[B, *E]`` (the message names both), or its dtype is
                neither uint8, bool nor floating point.
        """
        mu, logvar = self.encoder(self._scaled(x).flatten(1)).chunk(2, -1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """The parameters of P(x|z).

        Args:
            z: ``[..., L]``; any leading dimensions, e.g. ``[K, B, L]``.

        Returns:
            ``[..., *E]``: logits (Bernoulli) or means (Gaussian).

        Raises:
            ValueError: the last dimension of ``z`` is not L.
        """
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z has shape {list(z.shape)}, expected [..., {self.latent_dim}]")
        return torch.unflatten(self.decoder(z), -1, self.data_shape)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode, draw one z from Q(z|x) and decode it.

        Args:
            x: ``[B, *E]``.
            generator: the source of the noise, by default torch's own.

        Raises:
            ValueError: as ``encode``.
        """
        mu, logvar = self.encode(x)
        z = reparameterize(mu, logvar, generator=generator)
        return VAEOutput(self.decode(z), mu, logvar, z)

    def loss(self, x: Tensor, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> ELBO:
        """The negative ELBO of a batch, from one sample of z for each of its elements.

        Args:
            x: ``[B, *E]``; the operators read it as it is, so that uint8 images are never copied as floats
                for the reconstruction term.
            beta: weight of the KL term, a number or a 0-d tensor; other than 1 it is no longer the ELBO.
            generator: the source of the noise, by default torch's own.

        Returns:
            ``(loss, reconstruction, kl)``: batch means in nats, ``loss = reconstruction + beta * kl``.

        Raises:
            ValueError: as ``encode``.

        Source: Doersch 2016, eq. 5 with eq. 7 and 10; beta as in Higgins et al. 2017, eq. 4.
        """
        mu, logvar = self.encode(x)
        if self.likelihood == "bernoulli":
            z = reparameterize(mu, logvar, generator=generator)
            return elbo_loss(self.decode(z), x, mu, logvar, beta=beta)
        z, kl_per_sample = sample_kl(mu, logvar, generator=generator)
        reconstruction = gaussian_nll(self.decode(z), x, sigma=self.sigma, reduction="mean")
        kl = kl_per_sample.mean()
        return ELBO(reconstruction + beta * kl, reconstruction, kl)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Decode ``n`` draws of the prior N(0, I). No gradient flows.

        Args:
            n: how many, 0 or more.
            generator: the source of the noise, by default torch's own.

        Returns:
            ``[n, *E]``: probabilities (Bernoulli) or means (Gaussian).

        Raises:
            ValueError: ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"n must be 0 or more, not {n}")
        # N(0, I) through the operator: its noise is the same on every device, torch.randn's is not.
        zeros = next(self.parameters()).new_zeros(n, self.latent_dim)
        return self._mean(self.decode(reparameterize(zeros, zeros, generator=generator)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the mode of Q(z|x), z = mu. No gradient flows.

        Args:
            x: ``[B, *E]``.

        Returns:
            ``[B, *E]``: probabilities (Bernoulli) or means (Gaussian).

        Raises:
            ValueError: as ``encode``.
        """
        mu, _ = self.encode(x)
        return self._mean(self.decode(mu))

    def _mean(self, decoded: Tensor) -> Tensor:
        return decoded.sigmoid() if self.likelihood == "bernoulli" else decoded

    def _scaled(self, x: Tensor) -> Tensor:
        """``x`` as the encoder wants it: the parameters' dtype, uint8 mapped to [0, 1]."""
        if x.shape[1:] != self.data_shape or x.dim() == 0:
            expected = ", ".join(["B", *map(str, self.data_shape)])
            raise ValueError(f"x has shape {list(x.shape)}, expected [{expected}]")
        if x.dtype not in (torch.uint8, torch.bool) and not x.is_floating_point():
            raise ValueError(f"x must be uint8, bool or floating point, not {x.dtype}")
        dtype = next(self.encoder.parameters()).dtype
        return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def _sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must hold positive integers, not {size!r}")
    return tuple(sizes)


def _mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them, none after the last.

    He's initialisation before a ReLU, Glorot's at the end: with torch's own, of a sixth of He's variance, the
    signal fades over four layers and the code stays unused for many epochs.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    nn.init.xavier_normal_(linear.weight)
    return nn.Sequential(*layers[:-1])
