"""Likelihoods of pixels and of real numbers."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from fastvae.models.output import Likelihood, uniform
from fastvae.ops import (
    continuous_bernoulli_nll,
    discretized_logistic_nll,
    gaussian_nll,
    laplace_nll,
    linear_sigmoid_cross_entropy,
    sigmoid_cross_entropy,
)

# A discretised logistic's log scale is at least this, an eighth of a level, and at the start of training about log 0.1.
_LEAST_LOG_SCALE, _FIRST_LOG_SCALE = -7.6, math.log(0.1)


class Bernoulli(Likelihood):
    """Pixels in [0, 1], which are binary, or grey and read as probabilities. The decoder gives logits.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), App. C.1.
    """

    name, title, values = "bernoulli", "Bernoulli", "unit"
    has_bits = has_layer = True

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        return sigmoid_cross_entropy(parameters[0], x, reduction=reduction, check_target=True)

    def _nll_of_layer(self, h: Tensor, last: nn.Linear, x: Tensor, activation: str | None, reduction: str) -> Tensor:
        return linear_sigmoid_cross_entropy(
            h, last.weight, last.bias, x, activation=activation, reduction=reduction, check_target=True
        )

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return parameters[0].sigmoid()

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        return torch.bernoulli(parameters[0].sigmoid(), generator=generator)


class ContinuousBernoulli(Likelihood):
    """Grey pixels in [0, 1], treated as real numbers. The decoder gives logits of the parameter lambda.

    Source: Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845); the mean is its eq. 9 in logit form.
    """

    name, title, values = "continuous-bernoulli", "continuous Bernoulli", "unit"

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        return continuous_bernoulli_nll(parameters[0], x, reduction=reduction, check_target=True)

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        (logits,) = parameters
        l = logits.to(torch.promote_types(logits.dtype, torch.float32))  # noqa: E741 (of the formula)
        # 1/(1 - e^-l) - 1/l, whose terms cancel near 0: there its series.
        far = torch.where(l.abs() < 0.1, 1.0, l)
        return torch.where(l.abs() < 0.1, 0.5 + l / 12 - l**3 / 720, -1 / torch.expm1(-far) - 1 / far)

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        (logits,) = parameters
        u = uniform(logits, generator)
        size = logits.abs().to(u.dtype)
        # Where the distribution function is u: of -|l|, whose exponential is finite; that of |l| is its mirror image.
        far = torch.where(size < 1e-3, 1.0, size)
        x = torch.where(size < 1e-3, u, -torch.log1p(u * torch.expm1(-far)) / far)
        return torch.where(logits > 0, 1 - x, x)


class DiscretizedLogistic(Likelihood):
    """The 256 levels of uint8 images. The decoder gives a mean and a log scale for each element, in units of x/255.

    A scale for each element that depends on z is safe here, because a probability is at most 1. For an element that
    never changes, a density would grow without bound.

    Source: Salimans et al. 2017 (arXiv:1701.05517), eq. 2, with one component.
    """

    name, title, values = "discretized-logistic", "discretised logistic", "levels"
    outputs = 2
    has_bits = True

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        mean, raw = parameters
        return discretized_logistic_nll(mean, _log_scale(raw), x, reduction=reduction)

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        mean, raw = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in parameters)
        inverse = torch.exp(-_log_scale(raw))
        # E[x] is the sum of P(x >= level) over the levels above 0.
        total = torch.zeros_like(mean)
        for level in range(1, 256):
            total += torch.sigmoid((mean - (level - 0.5) / 255) * inverse)
        return total / 255

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        mean, raw = parameters
        logistic = mean + torch.exp(_log_scale(raw)) * torch.logit(uniform(mean, generator))
        return (logistic * 255).round().clamp(0, 255) / 255


def _log_scale(raw: Tensor) -> Tensor:
    """Smooth in what the decoder gives, and never so small that means stop learning."""
    at_start = math.log(math.expm1(_FIRST_LOG_SCALE - _LEAST_LOG_SCALE))
    return softplus(raw + at_start) + _LEAST_LOG_SCALE


class Gaussian(Likelihood):
    """Real numbers with one standard deviation sigma for all. The decoder gives means.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), App. C.2; the role of sigma: Doersch 2016 (arXiv:1606.05908),
    sec. 2.4.3; learned: Rybkin et al. 2020 (arXiv:2006.13202), sec. 3.
    """

    name, title, values = "gaussian", "Gaussian", "finite"
    has_sigma = has_bits = True

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        return gaussian_nll(parameters[0], x, sigma=self.sigma if sigma is None else sigma, reduction=reduction)

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return parameters[0]

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        (mean,) = parameters
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + self.sigma * noise


class Laplace(Likelihood):
    """Real numbers with rare large errors and one scale for all, which is ``sigma``. The decoder gives means.

    The scale is one number, as the Gaussian's is, because a density with a scale for each element grows without bound
    if an element never changes. The standard deviation is sqrt(2) sigma.

    Source: p(x) = e^(-abs(x - m) / b) / (2 b) for the mean m and the scale b.
    """

    name, title, values = "laplace", "Laplace", "finite"
    has_sigma = True

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        return laplace_nll(parameters[0], x, scale=self.sigma if sigma is None else sigma, reduction=reduction)

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return parameters[0]

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        (mean,) = parameters
        # Symmetric about 1/2, and never 0 or 1, of which the logarithm would be infinite.
        u = uniform(mean, generator) - 0.5
        u = u.clamp_min(torch.finfo(u.dtype).eps - 0.5)
        return mean - self.sigma * u.sign() * torch.log1p(-2 * u.abs())
