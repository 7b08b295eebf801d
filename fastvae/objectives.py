"""Objectives besides the plain ELBO: free bits, K-sample bounds, and schedules of weights.

The functions take no networks. They take the moments that an encoder gives and the -log p(x|z) that a decoder gives. B
is the batch, K the number of samples of z for each element of the batch, L the latent dimension. Results are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastvae.ops import gaussian_kl

Gradient = Literal["iwae", "stl", "dreg"]
ScheduleKind = Literal["linear", "cosine", "cyclical"]


def free_bits(mu: Tensor, logvar: Tensor, floor: float, *, groups: int | None = None) -> Tensor:
    """The KL divergence from N(0, I) with free bits: each group of dimensions costs at least ``floor`` nats.

    The result is the sum over groups j of max(floor, mean over the batch of KL(q(z_j|x), p(z_j))). A group below
    ``floor`` has no gradient, so that nothing drives it to carry less.

    Args:
        mu: ``[B, L]``, floating point, the means of q(z|x); B > 0.
        logvar: ``[B, L]``, the log variances.
        floor: lambda, nats per group, 0 or more.
        groups: number of groups, each of L / groups neighbouring dimensions. By default each dimension is a group.

    Returns:
        A 0-d tensor, in nats.

    Raises:
        ValueError: the shapes are not ``[B, L]``, the batch is empty, ``floor`` is negative or not finite, ``groups``
            does not divide L.

    Source: Kingma et al. 2016 (arXiv:1606.04934), app. C.8.
    """
    if mu.dim() != 2 or mu.shape != logvar.shape or len(mu) == 0:
        raise ValueError(f"mu and logvar must be [B, L], B > 0, got {list(mu.shape)} and {list(logvar.shape)}")
    if not (math.isfinite(floor) and floor >= 0):
        raise ValueError(f"floor must be a finite number, 0 or more, not {floor}")
    groups = mu.shape[1] if groups is None else groups
    if groups < 1 or mu.shape[1] % groups:
        raise ValueError(f"groups must divide the {mu.shape[1]} dimensions of mu, got {groups}")
    # The dimensions of a group and the batch are the event here: the operator sums over both.
    mu, logvar = (t.reshape(len(t), groups, -1).transpose(0, 1) for t in (mu, logvar))
    return (gaussian_kl(mu, logvar) / mu.shape[1]).clamp_min(floor).sum()


def log_weights(reconstruction: Tensor, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The logarithm of w = p(x|z) p(z) / q(z|x), for the prior N(0, I) and q = N(mu, exp(logvar)).

    Args:
        reconstruction: ``[K, B]``, -log p(x|z), nats; at least float32.
        z: ``[K, B, L]``, samples of q.
        mu: ``[B, L]``.
        logvar: ``[B, L]``.

    Returns:
        ``[K, B]``, of the dtype of ``reconstruction``.

    Raises:
        ValueError: the shapes do not fit.

    Source: Burda et al. 2015 (arXiv:1509.00519), the w of eq. 8.
    """
    if (
        z.dim() != 3
        or mu.shape != z.shape[1:]
        or logvar.shape != z.shape[1:]
        or reconstruction.shape != z.shape[:2]
        or len(z) == 0
    ):
        raise ValueError(
            "reconstruction must be [K, B], z [K, B, L], mu and logvar [B, L], K > 0, got "
            f"{list(reconstruction.shape)}, {list(z.shape)}, {list(mu.shape)} and {list(logvar.shape)}"
        )
    z, mu, logvar = (t.to(reconstruction.dtype) for t in (z, mu, logvar))
    # The constants, L log(2 pi) / 2, are the same in both densities.
    standardised = (z - mu) * torch.exp(-0.5 * logvar)
    log_ratio = 0.5 * ((standardised.square() - z.square()).sum(-1) + logvar.sum(-1))
    return log_ratio - reconstruction


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """The logarithm of 1/K sum_k w_k, whose expectation is a lower bound of log p(x).

    The bound gets tighter as K grows. For K = 1 it is the ELBO.

    Args:
        log_w: ``[K, B]``, floating point, nats.

    Returns:
        ``[B]``, nats.

    Raises:
        ValueError: ``log_w`` is not ``[K, B]``, or K is 0.

    Source: Burda et al. 2015 (arXiv:1509.00519), eq. 8.
    """
    if log_w.dim() != 2 or len(log_w) == 0:
        raise ValueError(f"log_w must be [K, B], K > 0, got {list(log_w.shape)}")
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def importance_weighted_loss(
    reconstruction: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, *, gradient: Gradient = "iwae"
) -> Tensor:
    """Minus the importance-weighted bound, with one of three estimators of its gradient.

    With v_k = w_k / sum_j w_j, the gradient of the bound that reaches the encoder's parameters phi is

    - ``"iwae"``: sum_k v_k d log w_k / d phi, the total derivative, through z and through q's density;
    - ``"stl"``, sticking the landing: sum_k v_k (d log w_k / dz_k) (dz_k / d phi). It leaves out the score of q, whose
      mean is zero for K = 1. It has no variance where q is the posterior, and is biased for K > 1;
    - ``"dreg"``, doubly reparameterised: sum_k v_k^2 (d log w_k / dz_k) (dz_k / d phi). It is unbiased for every K, and
      its signal does not drown in noise as K grows.

    With each estimator, the gradient of the decoder's parameters theta is sum_k v_k d log w_k / d theta.

    Args:
        reconstruction: ``[K, B]``, -log p(x|z), nats, computed from ``z``.
        z: ``[K, B, L]``, from :func:`fastvae.reparameterize` with ``num_samples=K``. ``"dreg"`` changes the
            gradient of ``z`` itself, so that no other loss may use the same ``z``.
        mu: ``[B, L]``.
        logvar: ``[B, L]``.
        gradient: one of the estimators above.

    Returns:
        ``[B]``, nats: minus :func:`importance_weighted_bound`, the same for every ``gradient``.

    Raises:
        ValueError: the shapes do not fit, or ``gradient`` is unknown.

    Source: Burda et al. 2015 (arXiv:1509.00519), eq. 8 and 14; Roeder et al. 2017 (arXiv:1703.09194), sec. 3;
    Tucker et al. 2018 (arXiv:1810.04152), sec. 3.
    """
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient must be {' or '.join(map(repr, get_args(Gradient)))}, not {gradient!r}")
    if gradient != "iwae":
        mu, logvar = mu.detach(), logvar.detach()
    log_w = log_weights(reconstruction, z, mu, logvar)
    if gradient == "dreg" and z.requires_grad:
        weights = log_w.detach().softmax(0).unsqueeze(-1)
        # What comes back to z has one factor v_k already.
        z.register_hook(lambda grad: grad * weights.to(grad.dtype))  # type: ignore[no-untyped-call]
    return -importance_weighted_bound(log_w)


@dataclass(frozen=True)
class Schedule:
    """A number that changes with the steps of training, such as the weight of the KL term (annealing) or sigma.

    - ``"linear"``: linear from ``start`` to ``end`` in ``steps`` steps, then ``end``;
    - ``"cosine"``: from ``start`` to ``end`` along half a cosine, which is flat at both ends, then ``end``;
    - ``"cyclical"``: ``cycles`` equal cycles in ``steps`` steps, then ``end``. In each cycle the number goes linearly
      from ``start`` to ``end`` during the first ``rise`` of the cycle, a fraction, and stays at ``end``.

    A schedule is called with a step, counted from 0, and returns the number. For a compiled loss, put that number into
    a 0-d tensor.

    Raises:
        ValueError: ``kind`` is unknown, ``start`` or ``end`` is not finite, ``steps`` or ``cycles`` is below 1,
            ``rise`` is not in (0, 1].

    Source: Bowman et al. 2016 (arXiv:1511.06349), sec. 3.1; cyclical: Fu et al. 2019 (arXiv:1903.10145), sec. 4.
    """

    kind: ScheduleKind
    start: float
    end: float
    steps: int
    cycles: int = 4
    rise: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"kind must be {' or '.join(map(repr, get_args(ScheduleKind)))}, not {self.kind!r}")
        for name in ("start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, not {getattr(self, name)}")
        for name in ("steps", "cycles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.rise <= 1:
            raise ValueError(f"rise must lie in (0, 1], not {self.rise}")

    def __call__(self, step: int) -> float:
        """The number at a step, which is 0 or more."""
        if step >= self.steps:
            return self.end
        done = step / self.steps
        if self.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        elif self.kind == "cyclical":
            done = min(1.0, done * self.cycles % 1 / self.rise)
        return self.start + (self.end - self.start) * done
