"""The operators of :mod:`fastvae.ops` in plain PyTorch, written from the papers.

The kernels are tested against these functions, which also run under the transforms of ``torch.func``. They share
nothing with the kernels, neither formulas nor noise. Arguments and results are those of the functions of the same name
in :mod:`fastvae.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.autograd import forward_ad
from torch.nn import functional


def _event_sum(terms: Tensor, event_dims: int) -> Tensor:
    return terms.sum(dim=tuple(range(-event_dims, 0))) if event_dims else terms


def _reduce(per_sample: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return per_sample
    if reduction == "mean":
        return per_sample.mean()
    if reduction == "sum":
        return per_sample.sum()
    raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got '{reduction}'")


def _at_least_float(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _values(target: Tensor, dtype: torch.dtype) -> Tensor:
    return target.to(dtype) / 255 if target.dtype == torch.uint8 else target.to(dtype)


_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda h: h,
    "relu": functional.relu,
    "tanh": torch.tanh,
}
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _require_floating(**tensors: Tensor | None) -> None:
    for name, t in tensors.items():
        if t is not None and t.dtype not in _FLOATS:
            raise ValueError(f"{name} must be floating point, got {t.dtype}")


def _require_count_dtype(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        if t.dtype not in (*_FLOATS, torch.uint8, torch.int16, torch.int32, torch.int64):
            raise ValueError(f"{name} must be counts in uint8, int16, int32, int64 or floating point, got {t.dtype}")


def _require_alike(**tensors: Tensor | None) -> None:
    """Floating-point tensors ``[B, *E]`` of one shape on one device."""
    _require_floating(**tensors)
    given = {name: t for name, t in tensors.items() if t is not None}
    shapes = {name: list(t.shape) for name, t in given.items()}
    if any(not shape for shape in shapes.values()):
        raise ValueError(f"a batch dimension is needed, [B, *E], got shapes {shapes}")
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"shapes must be the same, got {shapes}")
    if len({t.device for t in given.values()}) > 1:
        raise ValueError(f"devices must be the same, got { {name: str(t.device) for name, t in given.items()} }")


def _require_shared(name: str, x: Tensor, **shared: Tensor | None) -> None:
    """Floating-point tensors that are broadcast to the shape of ``x``, on its device."""
    _require_floating(**{name: x}, **shared)
    _require_broadcast(name, x, **shared)


def _require_broadcast(name: str, x: Tensor, **shared: Tensor | None) -> None:
    for other, t in shared.items():
        if t is None:
            continue
        ours, theirs = list(x.shape), list(t.shape)
        if len(theirs) > len(ours) or any(b not in (1, a) for a, b in zip(ours[::-1], theirs[::-1], strict=False)):
            raise ValueError(f"{other} must be broadcast to {name}, got {other} {theirs} and {name} {ours}")
        if t.device != x.device:
            raise ValueError(f"devices must be the same, got {name} on {x.device} and {other} on {t.device}")


def _log_sigmoid(x: Tensor) -> Tensor:
    """Its second derivative is exact for large x too, which torch's own is not."""
    return torch.where(x < 0, x, 0) - torch.log1p(torch.exp(torch.where(x < 0, x, -x)))


# log(tanh(h) / h) is the sum over k > 0 of these by h^2k for |h| < pi / 2: the series of log(sinh(h) / h) less that of
# log(cosh(h)), by their products over zeros. The rest is below 1e-19 for |h| <= 1/2.
_ZETA = torch.special.zeta(torch.arange(2, 40, 2, dtype=torch.float64, device="cpu"), 1.0).tolist()
_LOG_TANH_RATIO = [(-1) ** k * (4**k - 2) * zeta / (k * math.pi ** (2 * k)) for k, zeta in enumerate(_ZETA, 1)]


def _log_tanh_ratio(h: Tensor) -> Tensor:
    """log(tanh(h) / h), near 0 by its series."""
    is_near = h.abs() < 0.5
    near, far = torch.where(is_near, h, 0) ** 2, torch.where(is_near, 1, h.abs())
    series = torch.zeros_like(h)
    for coefficient in reversed(_LOG_TANH_RATIO):
        series = (series + coefficient) * near
    return torch.where(is_near, series, torch.log(torch.tanh(far)) - torch.log(far))


def _exp_less_line(x: Tensor) -> Tensor:
    """e^x - 1 - x, near 0 by its series: the difference would lose it."""
    near = x.clamp(-0.5, 0.5)
    series = torch.zeros_like(x)
    for k in range(18, 2, -1):
        series = (series + 1) * near / k
    return torch.where(x.abs() < 0.5, (series + 1) * near**2 / 2, torch.expm1(x) - x)


def _require_target(name: str, x: Tensor, target: Tensor) -> None:
    _require_floating(**{name: x})
    if target.dtype not in (*_FLOATS, torch.uint8, torch.bool):
        raise ValueError(f"target must be floating point, uint8 or bool, got {target.dtype}")
    _require_samples(name, x, target)


def _dense(target: Tensor) -> Tensor:
    if target.layout == torch.strided:
        return target
    if torch._C._are_functorch_transforms_active():  # which know no sparse tensors
        raise ValueError(f"under the transforms of torch.func a target must be dense, got {target.layout}")
    return target.to_dense()


def _require_counts(name: str, x: Tensor, target: Tensor) -> None:
    _require_floating(**{name: x})
    _require_count_dtype(target=target)
    _require_samples(name, x, target)


def _require_samples(name: str, x: Tensor, target: Tensor) -> None:
    """``[B, *E]`` beside a target of that shape, or samples of that."""
    if target.dim() == 0 or x.shape not in (target.shape, (*x.shape[:1], *target.shape)):
        raise ValueError(
            f"{name} must have the shape of target, [B, *E], or [K, B, *E], got {name} {list(x.shape)} "
            f"and target {list(target.shape)}"
        )
    if x.device != target.device:
        raise ValueError(f"devices must be the same, got {name} on {x.device} and target on {target.device}")


def _count_loss(terms: Tensor, target: Tensor, reduction: str, *parameters: Tensor) -> Tensor:
    """What was computed in float64, in the type that it is returned in."""
    loss = _reduce(_event_sum(terms, target.dim() - 1), reduction)
    return loss.to(_at_least_float(target, *parameters))


def _product_or_zero(x: Tensor, factor: Tensor) -> Tensor:
    """The product, 0 where x is 0 and the factor infinite."""
    return torch.where((x == 0) & factor.isinf(), 0, x * factor)


def _require_scalar(name: str, value: float | Tensor, *, positive: bool) -> None:
    if isinstance(value, Tensor):  # under a transform its value may not be known
        _require_floating(**{name: value})
        if value.dim():
            raise ValueError(f"{name} must be a float or a 0-d tensor, got shape {list(value.shape)}")
    elif not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{name} must be {'positive and ' if positive else ''}finite, got {value}")


def reparameterize(
    mu: Tensor, logvar: Tensor, *, num_samples: int | None = None, generator: Generator | None = None
) -> Tensor:
    """``mu + sigma * eps`` (Doersch, eq. 10), with ``eps`` from ``torch.randn``."""
    _require_alike(mu=mu, logvar=logvar)
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    dtype = _at_least_float(mu, logvar)
    eps = torch.randn(shape, dtype=dtype, device=mu.device, generator=generator)
    z = mu.to(dtype) + torch.exp(logvar.to(dtype) / 2) * eps
    return z.to(torch.promote_types(mu.dtype, logvar.dtype))


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    reduction: str = "none",
) -> Tensor:
    """Eq. 6 of Doersch for diagonal covariances. Eq. 7 is its case of a prior with mean 0 and log variance 0."""
    _require_alike(mu=mu, logvar=logvar)
    _require_shared("mu", mu, prior_mu=prior_mu, prior_logvar=prior_logvar)
    if (prior_mu is None) != (prior_logvar is None):
        raise ValueError(
            f"prior_mu and prior_logvar come together, got only prior_{'mu' if prior_logvar is None else 'logvar'}"
        )
    m1 = torch.zeros_like(mu) if prior_mu is None else prior_mu
    s1 = torch.zeros_like(logvar) if prior_logvar is None else prior_logvar
    dtype = _at_least_float(mu, logvar, m1, s1)
    m0, s0, m1, s1 = (t.to(dtype) for t in (mu, logvar, m1, s1))
    mahalanobis = (m1 - m0) ** 2 * torch.exp(-s1)
    # tr(S1^-1 S0) - k + log det S1 - log det S0 of each dimension, with log det S0 - log det S1 = s0 - s1
    kl = _event_sum((_exp_less_line(s0 - s1) + mahalanobis) / 2, mu.dim() - 1)
    return _reduce(kl, reduction)


def sample_kl(mu: Tensor, logvar: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """``reparameterize``, then ``gaussian_kl`` against N(0, I)."""
    return reparameterize(mu, logvar, generator=generator), gaussian_kl(mu, logvar)


def sigmoid_cross_entropy(logits: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """-log p(target) for a Bernoulli p (Kingma & Welling, App. C.1): -x log s(l) - (1 - x) log s(-l)."""
    _require_target("logits", logits, target)
    dtype = _at_least_float(logits, target)
    logit, x = logits.to(dtype), _values(target, dtype)
    # A sure and right prediction costs 0: there, 0 * inf is left out.
    missed_one = torch.where((x == 0) & logit.isinf(), 0, x * _log_sigmoid(logit))
    missed_zero = torch.where((x == 1) & logit.isinf(), 0, (1 - x) * _log_sigmoid(-logit))
    terms = -missed_one - missed_zero
    return _reduce(_event_sum(terms, target.dim() - 1), reduction)


def _layer(hidden: Tensor, activation: str | None, **weights: Tensor | None) -> Tensor:
    """What the activation gives, through the linear layer of a weight and a bias, in that order."""
    layer = {"hidden": hidden} | {name: t for name, t in weights.items() if t is not None}
    _require_floating(**layer)
    shapes = {name: list(t.shape) for name, t in layer.items()}
    weight, bias = weights.values()
    if weight is None or weight.dim() != 2 or shapes["hidden"][-1:] != list(weight.shape[1:]):
        raise ValueError(f"hidden must be [B, H] or [K, B, H] and the weight [D, H], got {shapes}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"the bias must be [D], got {shapes}")
    if len({t.dtype for t in layer.values()}) > 1 or len({t.device for t in layer.values()}) > 1:
        raise ValueError(
            "dtypes and devices must be the same, got "
            + ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in layer.items())
        )
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be None, 'relu' or 'tanh', got {activation!r}")
    return functional.linear(_ACTIVATIONS[activation](hidden), weight, bias)


def _rows(target: Tensor) -> Tensor:
    target = _dense(target)
    return target.flatten(1) if target.dim() > 1 else target[:, None]


def linear_sigmoid_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    activation: str | None = None,
    reduction: str = "none",
) -> Tensor:
    """The activation, the linear layer, then ``sigmoid_cross_entropy`` of its logits."""
    logits = _layer(hidden, activation, weight=weight, bias=bias)
    return sigmoid_cross_entropy(logits, _rows(target), reduction=reduction)


def linear_multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    constant: bool = False,
    activation: str | None = None,
    reduction: str = "none",
) -> Tensor:
    """The activation, the linear layer, then ``multinomial_nll`` of its logits."""
    logits = _layer(hidden, activation, weight=weight, bias=bias)
    return multinomial_nll(logits, _rows(target), constant=constant, reduction=reduction)


def linear_negative_binomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_theta: Tensor,
    target: Tensor,
    *,
    log_library: Tensor | None = None,
    zero_weight: Tensor | None = None,
    zero_bias: Tensor | None = None,
    activation: str | None = None,
    reduction: str = "none",
) -> Tensor:
    """The activation, the linear layers, then ``negative_binomial_nll`` of their results."""
    log_mean = _layer(hidden, activation, weight=weight, bias=bias)
    zero_logits = None
    if zero_weight is not None:
        zero_logits = _layer(hidden, activation, zero_weight=zero_weight, zero_bias=zero_bias)
    if log_theta.dim() > 0 and target.dim() != 2:
        log_theta = log_theta.flatten() if target.dim() > 2 else log_theta[..., None]
    return negative_binomial_nll(
        log_mean, log_theta, _rows(target), log_library=log_library, zero_logits=zero_logits, reduction=reduction
    )


def mlp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, activation: str | None = "relu"
) -> Tensor:
    """One linear layer after the other, with the activation between them."""
    if not weights or len(weights) != len(biases):
        raise ValueError(f"give a weight or more, and a bias or None for each, got {len(weights)} and {len(biases)}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be None, 'relu' or 'tanh', got {activation!r}")
    if x.dtype not in (*_FLOATS, torch.uint8, torch.bool):
        raise ValueError(f"x must be floating point, uint8 or bool, got {x.dtype}")
    given = [*weights, *(bias for bias in biases if bias is not None)]
    if len({t.dtype for t in given}) > 1 or len({t.device for t in (x, *given)}) > 1:
        raise ValueError(
            "weights and biases must have one dtype, on the device of x, got "
            + ", ".join(f"{t.dtype} on {t.device}" for t in given)
        )
    h = _values(x, weights[0].dtype)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        shapes = {"x": list(h.shape), "weight": list(weight.shape), "bias": None if bias is None else list(bias.shape)}
        if h.dim() == 0 or weight.dim() != 2 or h.shape[-1] != weight.shape[1]:
            raise ValueError(f"layer {i} takes [..., H] by weight [H', H], got {shapes}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias of layer {i} must be [H'], got {shapes}")
        _require_floating(weight=weight, bias=bias)
        h = functional.linear(h if i == 0 else _ACTIVATIONS[activation](h), weight, bias)
    return h


def gaussian_nll(
    mean: Tensor,
    target: Tensor,
    *,
    sigma: float | Tensor | None = None,
    logvar: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """-log N(target; mean, sigma^2) (Kingma & Welling, App. C.2)."""
    _require_target("mean", mean, target)
    if (sigma is None) == (logvar is None):
        raise ValueError(f"give exactly one of sigma and logvar, got {'neither' if sigma is None else 'both'}")
    dtype = _at_least_float(mean, target, *([] if logvar is None else [logvar]))
    if logvar is not None:
        _require_shared("mean", mean, logvar=logvar)
        log_deviation = logvar.to(dtype) / 2
    elif sigma is not None:
        _require_scalar("sigma", sigma, positive=True)
        log_deviation = torch.as_tensor(sigma, dtype=dtype, device=mean.device).log()
    standardised = (_values(target, dtype) - mean.to(dtype)) * torch.exp(-log_deviation)
    terms = standardised**2 / 2 + log_deviation + math.log(2 * math.pi) / 2
    return _reduce(_event_sum(terms, target.dim() - 1), reduction)


def laplace_nll(
    mean: Tensor,
    target: Tensor,
    *,
    scale: float | Tensor | None = None,
    log_scale: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """The negative logarithm of the density e^(-|x - m| / b) / (2 b)."""
    _require_target("mean", mean, target)
    if (scale is None) == (log_scale is None):
        raise ValueError(f"give exactly one of scale and log_scale, got {'neither' if scale is None else 'both'}")
    dtype = _at_least_float(mean, target, *([] if log_scale is None else [log_scale]))
    if log_scale is not None:
        _require_shared("mean", mean, log_scale=log_scale)
        log_b = log_scale.to(dtype)
    elif scale is not None:
        _require_scalar("scale", scale, positive=True)
        log_b = torch.as_tensor(scale, dtype=dtype, device=mean.device).log()
    terms = (_values(target, dtype) - mean.to(dtype)).abs() * torch.exp(-log_b) + log_b + math.log(2)
    return _reduce(_event_sum(terms, target.dim() - 1), reduction)


def continuous_bernoulli_nll(logits: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """The cross-entropy less log C (Loaiza-Ganem & Cunningham 2019).

    C(lambda) = 2 artanh(1 - 2 lambda) / (1 - 2 lambda), which is 2 h / tanh(h) for lambda = sigmoid(2 h).
    """
    _require_target("logits", logits, target)
    dtype = _at_least_float(logits, target)
    logit, x = logits.to(dtype), _values(target, dtype)
    missed_one = torch.where((x == 0) & logit.isinf(), 0, x * _log_sigmoid(logit))
    missed_zero = torch.where((x == 1) & logit.isinf(), 0, (1 - x) * _log_sigmoid(-logit))
    cross_entropy = -missed_one - missed_zero
    # Of an infinite logit the loss is infinitely bad, or the density infinite.
    terms = torch.where(cross_entropy.isinf(), cross_entropy, cross_entropy - math.log(2) + _log_tanh_ratio(logit / 2))
    return _reduce(_event_sum(terms, target.dim() - 1), reduction)


def discretized_logistic_nll(mean: Tensor, log_scale: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """-log(s(u) - s(v)) for the bin's ends v, u of the logistic (Salimans et al. 2017, eq. 2).

    s(u) - s(v) = s(u) s(-v) (1 - e^(v - u)). The end beyond 0 or 255 is infinite.
    """
    if target.dtype != torch.uint8:
        raise ValueError(f"target must be uint8, the level of a pixel, got {target.dtype}")
    _require_target("mean", mean, target)
    _require_shared("mean", mean, log_scale=log_scale)
    dtype = _at_least_float(mean, log_scale)
    s = log_scale.to(dtype) + math.log(255)
    width = torch.exp(-s)
    centre = target.to(dtype) - 255 * mean.to(dtype)
    # A level's edge that is the mean, at an infinitely small scale too.
    upper, lower = (torch.where(edge == 0, 0, edge * width) for edge in (centre + 0.5, centre - 0.5))
    # log(1 - e^-w) is log w - w / 2 + w^2 / 24 - ... for small w, whose logarithm is -s.
    is_thin = s > 12
    thin, wide = torch.where(is_thin, width, 0), torch.where(is_thin, 1, width)
    log_inside = torch.where(is_thin, -s - thin / 2 + thin**2 / 24, torch.log(-torch.expm1(-wide)))
    below, above = -_log_sigmoid(upper), -_log_sigmoid(-lower)
    terms = torch.where(target == 0, below, torch.where(target == 255, above, below + above - log_inside))
    return _reduce(_event_sum(terms, target.dim() - 1), reduction)


def poisson_nll(log_rate: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """-log(e^(x a - e^a) / x!) in float64, because ``torch.lgamma`` of large counts cancels against other terms."""
    target = _dense(target)
    _require_counts("log_rate", log_rate, target)
    a, x = log_rate.double(), target.double()
    finite = torch.where(a == torch.inf, 0, a)
    terms = torch.exp(finite) - _product_or_zero(x, finite) + torch.lgamma(x + 1)
    return _count_loss(torch.where(a == torch.inf, a, terms), target, reduction, log_rate)


def binomial_nll(logits: Tensor, target: Tensor, total: int | Tensor, *, reduction: str = "none") -> Tensor:
    """-x log s(l) - (n - x) log s(-l) - log C(n, x), computed in float64 as ``poisson_nll`` is."""
    _require_counts("logits", logits, target)
    if isinstance(total, Tensor):
        _require_count_dtype(total=total)
        _require_broadcast("logits", logits, total=total)
        n = total.detach().double()
    elif isinstance(total, bool) or not isinstance(total, (int, torch.SymInt)):
        raise ValueError(f"total must be an integer or a tensor of counts, got {total!r}")
    elif total < 0:
        raise ValueError(f"total must not be negative, got {total}")
    else:
        n = torch.full((), total, dtype=torch.float64, device=logits.device)
    logit, x = logits.double(), target.double()
    hits, misses = _product_or_zero(x, _log_sigmoid(logit)), _product_or_zero(n - x, _log_sigmoid(-logit))
    log_choices = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
    totals = [total] if isinstance(total, Tensor) else []
    return _count_loss(-hits - misses - log_choices, target, reduction, logits, *totals)


def _binet(y: Tensor) -> Tensor:
    """lgamma(y) - (y - 1/2) log y + y - log(2 pi) / 2 by Stirling's series, for y >= 8."""
    w = 1 / y
    series = torch.zeros_like(y)
    for coefficient in (
        43867 / 244188,
        -3617 / 122400,
        1 / 156,
        -691 / 360360,
        1 / 1188,
        -1 / 1680,
        1 / 1260,
        -1 / 360,
        1 / 12,
    ):
        series = series * w**2 + coefficient
    return series * w


def _log_shares(logits: Tensor, event_dims: int) -> Tensor:
    """Of softmax(logits) over the event."""
    return functional.log_softmax(logits.double().flatten(-event_dims), -1).reshape(logits.shape)


def multinomial_nll(logits: Tensor, target: Tensor, *, constant: bool = False, reduction: str = "none") -> Tensor:
    """Eq. 2 of Liang et al. 2018, computed in float64 as ``poisson_nll`` is; the coefficient is N! / prod x!."""
    target = _dense(target)
    _require_counts("logits", logits, target)
    if target.dim() < 2:
        logits, target = logits[..., None], target[:, None]
    x = target.double()
    terms = -_product_or_zero(x, _log_shares(logits, target.dim() - 1))
    if constant:
        terms = terms + torch.lgamma(x + 1)
    rows = _event_sum(terms, target.dim() - 1)
    if constant:
        rows = rows - torch.lgamma(_event_sum(x, target.dim() - 1) + 1)
    return _reduce(rows.to(_at_least_float(logits, target)), reduction)


def negative_binomial_nll(
    log_mean: Tensor,
    log_theta: Tensor,
    target: Tensor,
    *,
    log_library: Tensor | None = None,
    zero_logits: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """The negative binomial of scVI (Lopez et al. 2018, Methods), with or without zero inflation.

    It is computed in float64, as ``poisson_nll`` is. For large theta the factor theta^x of G(x + theta) / G(theta)
    cancels against the power of the mean; there Stirling's formula gives the quotient without this factor.
    """
    target = _dense(target)
    _require_counts("log_mean", log_mean, target)
    _require_shared("log_mean", log_mean, log_theta=log_theta)
    parameters = [log_mean, log_theta]
    if log_library is not None:
        _require_floating(log_library=log_library)
        rows = log_mean.shape[: log_mean.dim() - target.dim() + 1]
        if log_library.shape not in (rows, rows[-1:]) or log_library.device != target.device:
            raise ValueError(
                f"log_library must be [B] or [K, B] on {target.device}, got {list(log_library.shape)} on "
                f"{log_library.device} beside log_mean {list(log_mean.shape)}"
            )
        parameters.append(log_library)
        by_row = log_library.double().reshape(*log_library.shape, *[1] * (target.dim() - 1))
        # The share of one element is 1, whatever its logit.
        shares = _log_shares(log_mean, target.dim() - 1) if target.dim() > 1 else log_mean.double() - log_mean.double()
        log_mean = by_row + shares
    if zero_logits is not None:
        _require_floating(zero_logits=zero_logits)
        if zero_logits.shape != log_mean.shape or zero_logits.device != log_mean.device:
            raise ValueError(
                f"log_mean and zero_logits must have the same shape and device, got {list(log_mean.shape)} on "
                f"{log_mean.device} and {list(zero_logits.shape)} on {zero_logits.device}"
            )
        parameters.append(zero_logits)
    a, b, x = log_mean.double(), log_theta.double(), target.double()
    within = b.clamp(-300, 300)
    theta = within.exp()
    # -log(theta / (theta + mu)) and -log(mu / (theta + mu)), and the latter less log theta
    by_theta, by_mean = -_log_sigmoid(within - a), -_log_sigmoid(a - b)
    by_mean_only = torch.where(a < b, -_log_sigmoid(b - a) - a, by_mean - b)
    # t, the loss of a count of 0
    of_zero = theta * by_theta
    large = theta >= 8
    little, much = torch.where(large, 1, theta), torch.where(large, theta, 8)
    # log G(x + theta) / G(theta), shifted by 1, and that less x log theta
    shift = torch.where((x == 0) & (b < -300), 0, torch.log(x + little) - torch.where(large, 0, b))
    rising = torch.lgamma(x + little + 1) - torch.lgamma(little + 1) - shift
    excess = (much + x - 0.5) * torch.log1p(x / much) - x + _binet(much + x) - _binet(much)
    rest = torch.where(large, _product_or_zero(x, by_mean_only) - excess, _product_or_zero(x, by_mean) - rising)
    terms = of_zero + rest + torch.lgamma(x + 1)
    if zero_logits is not None:
        # s(l) + s(-l) e^-t of a zero, relative to the larger of e^l and e^-t
        logit = zero_logits.double()
        inflated = torch.where(
            logit > -of_zero,
            _log_sigmoid(logit + of_zero) - _log_sigmoid(logit),
            of_zero + _log_sigmoid(-logit - of_zero) - _log_sigmoid(-logit),
        )
        terms = torch.where(x == 0, inflated, terms - _log_sigmoid(-logit))
    return _count_loss(terms, target, reduction, *parameters)


def elbo_loss(
    logits: Tensor,
    target: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    beta: float | Tensor = 1.0,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """The negative right-hand side of Doersch's eq. 5, with the KL term weighted by ``beta``."""
    _require_scalar("beta", beta, positive=False)
    reconstruction = sigmoid_cross_entropy(logits, target)
    if mu.shape[:1] != target.shape[:1]:
        raise ValueError(f"batch sizes must be the same, got logits {list(logits.shape)} and mu {list(mu.shape)}")
    if logits.dim() > target.dim():
        reconstruction = reconstruction.mean(0)
    reconstruction = _reduce(reconstruction, reduction)
    kl = gaussian_kl(mu, logvar, reduction=reduction)
    return reconstruction + beta * kl, reconstruction, kl


def binarize(
    images: Tensor,
    *,
    index: Tensor | None = None,
    dtype: torch.dtype = torch.bool,
    generator: Generator | None = None,
) -> Tensor:
    """Bernoulli draws with torch's own generator."""
    if images.dim() == 0:
        raise ValueError("a batch dimension is needed, [B, *E], got a 0-d tensor")
    if images.dtype != torch.uint8:
        _require_floating(images=images)
    if dtype not in (torch.bool, *_FLOATS):
        raise ValueError(f"dtype must be bool or floating point, got {dtype}")
    recorded = torch.is_grad_enabled() and images.requires_grad
    tangent = forward_ad.unpack_dual(images).tangent  # type: ignore[no-untyped-call]
    if dtype != torch.bool and (recorded or tangent is not None):
        raise ValueError("a draw has no derivative: images must not require one")
    if index is not None:
        if index.dtype != torch.int64 or index.dim() != 1:
            raise ValueError(f"index must be int64 [B], got {index.dtype} {list(index.shape)}")
        images = images.index_select(0, index)
    return torch.bernoulli(_values(images, _at_least_float(images)), generator=generator).to(dtype)


def philox_words(seed: int, offset: int, first_block: int, blocks: int) -> NDArray[np.uint32]:
    """The words of a noise stream from word ``4 * first_block`` on: Philox4x32-10 (Salmon et al. 2011, section 3.3).

    Returns:
        uint32 ``[4 * blocks]``; the counter of block ``j`` is ``(j, offset)`` as two 64-bit halves, the key
        ``seed``, low words first.
    """
    low = np.uint64(0xFFFFFFFF)
    block = np.uint64(first_block) + np.arange(blocks, dtype=np.uint64)
    counter = [block & low, block >> np.uint64(32)]
    counter += [np.full_like(block, offset & 0xFFFFFFFF), np.full_like(block, offset >> 32)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        left, right = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (right >> np.uint64(32)) ^ counter[1] ^ np.uint64(key[0]),
            right & low,
            (left >> np.uint64(32)) ^ counter[3] ^ np.uint64(key[1]),
            left & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(counter, axis=1).reshape(-1).astype(np.uint32)


def philox_normal(seed: int, offset: int, count: int) -> NDArray[np.float64]:
    """Standard normals ``0 ... count - 1`` of a noise stream: pairs of words through Box & Muller (1958)."""
    words = philox_words(seed, offset, 0, -(-count // 4)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[0::2] + 0.5) / 2.0**32))
    angle = 2 * np.pi * words[1::2] / 2.0**32
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]
