"""What is minimised beside the plain ELBO: free bits, K-sample bounds, schedules of their weights.

Nothing here knows a network: encoders give moments, decoders -log p(x|z). B is the batch, K the samples of z for
each of its elements, L the latent dimension; results are in nats.
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
    """The KL divergence from N(0, I), of which the first nats of each group of dimensions are free.

    sum over groups j of max(floor, mean over the batch of KL(q(z_j|x), p(z_j))): below ``floor`` a group has no
    gradient, so that nothing drives it to carry less.

    Args:
        mu: ``[B, L]``, floating point, the means of q(z|x); B > 0.
        logvar: ``[B, L]``, the log variances.
        floor: lambda, nats per group, 0 or more.
        groups: how many, each of L / groups neighbouring dimensions; by default every dimension is one.

    Returns:
        0-d, nats.

    Raises:
        ValueError: shapes that are not ``[B, L]``, an empty batch, a floor that is negative or not finite, groups
            that do not divide L.

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
    """The logarithm of 1/K sum_k w_k: a lower bound of log p(x) in the mean, tighter with K, and the ELBO for K = 1.

    Args:
        log_w: ``[K, B]``, floating point, nats.

    Returns:
        ``[B]``, nats.

    Raises:
        ValueError: not ``[K, B]``, or no sample.

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

    - ``"iwae"``: sum_k v_k d log w_k / d phi, all of it, through z and through q's density;
    - ``"stl"``, sticking the landing: sum_k v_k (d log w_k / dz_k) (dz_k / d phi). The score of q, whose mean is
      zero for K = 1, is left out: no variance where q is the posterior. Biased for K > 1;
    - ``"dreg"``, doubly reparameterised: sum_k v_k^2 (d log w_k / dz_k) (dz_k / d phi). Unbiased for every K, and
      its signal does not drown in noise as K grows.

    The decoder's gradient is sum_k v_k d log w_k / d theta with each.

    Args:
        reconstruction: ``[K, B]``, -log p(x|z), nats, made from ``z``.
        z: ``[K, B, L]``, from :func:`fastvae.reparameterize` with ``num_samples=K``. ``"dreg"`` changes the
            gradient of ``z`` itself: it must serve this loss alone.
        mu: ``[B, L]``.
        logvar: ``[B, L]``.
        gradient: one of the above.

    Returns:
        ``[B]``, nats: minus :func:`importance_weighted_bound`, whichever the gradient.

    Raises:
        ValueError: the shapes do not fit, or an unknown gradient.

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
    """A weight that changes with the steps of training: of the KL term (annealing), or of sigma.

    - ``"linear"``: from ``start`` to ``end`` in ``steps`` steps, then ``end``;
    - ``"cosine"``: the same along half a cosine, flat at both ends;
    - ``"cyclical"``: ``cycles`` times, in each linearly during the first ``rise`` of it, then ``end``.

    Called with a step, from 0, it gives the value. For a compiled loss, put it into a 0-d tensor.

    Raises:
        ValueError: an unknown kind, ends that are not finite, steps or cycles below 1, a rise not in (0, 1].

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
        """The value at a step, 0 or later."""
        if step >= self.steps:
            return self.end
        done = step / self.steps
        if self.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        elif self.kind == "cyclical":
            done = min(1.0, done * self.cycles % 1 / self.rise)
        return self.start + (self.end - self.start) * done
