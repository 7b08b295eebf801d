"""Operators as ``torch.nn`` modules."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from . import ops
from .layers import MLP as MLP


class Reparameterize(nn.Module):
    """:func:`fastvae.reparameterize` as a module: samples in training and in evaluation alike.

    Args:
        num_samples: ``K``, or None for one sample without a sample dimension.
    """

    def __init__(self, num_samples: int | None = None) -> None:
        super().__init__()
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"fastvae.nn.Reparameterize: num_samples must be at least 1, got {num_samples}")
        self.num_samples = num_samples

    def forward(self, mu: Tensor, logvar: Tensor, generator: Generator | None = None) -> Tensor:
        """Samples ``[B, *E]`` or ``[K, B, *E]`` for ``mu`` and ``logvar``, each ``[B, *E]``."""
        return ops.reparameterize(mu, logvar, num_samples=self.num_samples, generator=generator)

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}"


class ELBOLoss(nn.Module):
    """:func:`fastvae.elbo_loss` as a module.

    Args:
        beta: weight of the KL divergence. For a schedule that recompiles nothing, set the attribute ``beta`` to a 0-d
            tensor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the batch.
    """

    beta: float | Tensor

    def __init__(self, beta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"fastvae.nn.ELBOLoss: reduction must be 'none', 'mean' or 'sum', got '{reduction}'")
        self.beta = beta
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor, mu: Tensor, logvar: Tensor) -> ops.ELBO:
        """The loss and its terms, in nats.

        Args:
            logits: ``[B, *E]`` or ``[K, B, *E]``.
            target: ``[B, *E]``.
            mu: ``[B, *L]``.
            logvar: ``[B, *L]``.
        """
        return ops.elbo_loss(logits, target, mu, logvar, beta=self.beta, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, reduction='{self.reduction}'"
