"""The diagonal Gaussian over packed moments, as encoders put them out."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.distributions.kl import register_kl

from . import ops


class DiagonalGaussian:
    """N(mean, diag(exp(logvar))) of moments that an encoder packed into one tensor.

    The two halves are views of ``moments``, which the operators read in place.

    Args:
        moments: ``[B, 2L]`` or ``[B, 2C, H, W]``, floating point: means, then log variances, along dimension 1.
        clamp: optional (low, high) limits of the log variance in nats, low <= high. Outside of them the gradient
            of the log variance is zero, as :func:`torch.clamp` has it.

    ``parameters`` is the ``moments`` as they were given, without the clamp.

    Raises:
        ValueError: ``moments`` has no dimension 1 of even size, or the limits are not ordered.

    Source: Kingma & Welling 2013 (arXiv:1312.6114); the interface is that of latent diffusion's auto-encoders,
    which clamp at (-30, 20) (Rombach et al. 2021, arXiv:2112.10752).
    """

    def __init__(self, moments: Tensor, *, clamp: tuple[float, float] | None = None) -> None:
        if moments.dim() < 2 or moments.shape[1] % 2:
            raise ValueError(
                "fastvae.DiagonalGaussian: moments must be [B, 2L] or [B, 2C, H, W], with an even dimension 1, "
                f"got {list(moments.shape)}"
            )
        self.parameters = moments
        self._clamped = clamp is not None
        self.mean, self.logvar = moments.chunk(2, 1)
        if clamp is not None:
            low, high = clamp
            if not low <= high:
                raise ValueError(f"fastvae.DiagonalGaussian: clamp must be (low, high), got {clamp}")
            self.logvar = self.logvar.clamp(low, high)

    @property
    def std(self) -> Tensor:
        """Standard deviation, the shape of the mean."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance, the shape of the mean."""
        return torch.exp(self.logvar)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """A sample with its gradient (:func:`fastvae.reparameterize`), the shape of the mean."""
        return ops.reparameterize(self.mean, self.logvar, generator=generator)

    rsample = sample

    def sample_kl(self, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """``(sample(), kl())`` in one pass over the moments (:func:`fastvae.sample_kl_packed`).

        Without ``clamp`` the gradient goes to ``moments`` at once: ``mean`` and ``logvar`` are no part of its graph.
        """
        if self._clamped:
            return ops.sample_kl(self.mean, self.logvar, generator=generator)
        return ops.sample_kl_packed(self.parameters, generator=generator)

    def mode(self) -> Tensor:
        """The most likely value: the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL divergence from ``other``, or from N(0, I): ``[B]``, in nats (:func:`fastvae.gaussian_kl`)."""
        if other is None:
            return ops.gaussian_kl(self.mean, self.logvar)
        return ops.gaussian_kl(self.mean, self.logvar, other.mean, other.logvar)

    def nll(self, sample: Tensor) -> Tensor:
        """-log density of ``sample``, the shape of the mean: ``[B]``, in nats (:func:`fastvae.gaussian_nll`).

        Raises:
            ValueError: the sample has another shape.
        """
        if sample.shape != self.mean.shape:
            raise ValueError(
                "fastvae.DiagonalGaussian.nll: sample must have the shape of the mean, got "
                f"{list(sample.shape)} and {list(self.mean.shape)}"
            )
        return ops.gaussian_nll(self.mean, sample, logvar=self.logvar)


register_kl(DiagonalGaussian, DiagonalGaussian)(DiagonalGaussian.kl)
