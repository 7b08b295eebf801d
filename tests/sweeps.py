"""The operators over bit patterns: rows of any length, type and magnitude, held against the bounds in tolerances.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import tolerances
import torch
from cases import SEED, as_tuple, noise_key
from tolerances import DOUBLE, SINGLE, Array, Result, Wide
from torch import Tensor

import fastvae
from fastvae import reference

SIZES = [1, 2, 31, 32, 33, 784, 1024, 1025, 5000]
SHORT = 33  # sums of up to so many terms are reported apart: there the formula is what counts
SAMPLES = 3
BETA = 0.7


@dataclass(frozen=True)
class Spread:
    """Values of one argument: numbers up to `near` in size, and any bit pattern of those up to `far` (or `far64`)."""

    near: float
    far: float
    far64: float
    has_samples: bool = False


@dataclass(frozen=True)
class Target:
    """Values in [0, 1], a third each the likelier outcome, the other, and any. No dtype is that of the others."""

    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Numbers:
    """Whole numbers: a third zeros, a third below six, and any up to `most`; with `beside`, on top of the target."""

    most: int
    dtype: torch.dtype | None = None
    beside: bool = False


@dataclass(frozen=True)
class Case:
    """A way to call an operator; `exact` gives its results with their bounds."""

    operator: str
    variant: str
    arguments: dict[str, Spread | Target | Numbers]
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    exact: Callable[..., Iterator[Result]]
    outputs: tuple[str, ...] = ("value",)
    rows: int | None = None

    def __str__(self) -> str:
        return f"{self.operator}, {self.variant}" if self.variant else self.operator


MEAN, LOGVAR, LOGIT = Spread(6, 2.0**30, 2.0**200), Spread(12, 40, 300), Spread(104, 2.0**114, 2.0**1000)
LOG_SCALE, LEVEL_MEAN, LOG_RATE = Spread(12, 40, 300), Spread(1.5, 2.0**10, 2.0**100), Spread(18.4, 60, 300)
# theta and mu from 1e-8 to 1e8, over which the bounds are
LOG_COUNT, ZERO_LOGIT = Spread(18.4, 18.4, 18.4), Spread(40, 2.0**12, 2.0**12)
LOG_SCALES, LEVEL_MEANS, LOG_RATES, LOG_COUNTS, ZERO_LOGITS = (
    replace(spread, has_samples=True) for spread in (LOG_SCALE, LEVEL_MEAN, LOG_RATE, LOG_COUNT, ZERO_LOGIT)
)
MEANS, LOGVARS, LOGITS = (replace(spread, has_samples=True) for spread in (MEAN, LOGVAR, LOGIT))


def normal(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The noise that a seeded call draws, and the radius of each number."""
    count = math.prod(shape)
    words = reference.philox_words(*noise_key(), 0, -(-count // 4)).astype(Wide)
    radius = np.repeat(np.sqrt(-2 * np.log((words[0::2] + 0.5) / 2**32)), 2)
    angle = 8 * np.arctan(Wide(1)) * words[1::2] / 2**32
    eps = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1).reshape(-1)
    return eps[:count].reshape(shape), radius[:count].reshape(shape)


def with_sigma(sigma: float) -> Case:
    logvar = 2 * np.log(Wide(sigma))
    return Case(
        "gaussian_nll",
        f"sigma {sigma:g}",
        {"mean": MEANS, "target": MEAN},
        lambda m, x: fastvae.gaussian_nll(m, x, sigma=sigma),
        lambda t, g, m, x: tolerances.gaussian_nll(t, g, m, x, np.full_like(m, logvar), given_sigma=True),
    )


def with_scale(scale: float) -> Case:
    log_scale = np.log(Wide(scale))
    return Case(
        "laplace_nll",
        f"scale {scale:g}",
        {"mean": MEANS, "target": MEAN},
        lambda m, x: fastvae.laplace_nll(m, x, scale=scale),
        lambda t, g, m, x: tolerances.laplace_nll(t, g, m, x, np.full_like(m, log_scale), given_scale=True),
    )


def with_counts(counts: Numbers) -> Iterator[Case]:
    """Of a dtype, or of that of the other arguments."""
    variant = f"{counts.dtype} target".removeprefix("torch.") if counts.dtype else ""
    yield Case(
        "poisson_nll",
        variant,
        {"log_rate": LOG_RATES, "target": counts},
        fastvae.poisson_nll,
        tolerances.poisson_nll,
    )
    yield Case(
        "binomial_nll",
        variant,
        {"logits": LOGITS, "target": counts, "total": Numbers(counts.most, torch.int64, beside=True)},
        fastvae.binomial_nll,
        tolerances.binomial_nll,
    )
    yield Case(
        "multinomial_nll",
        variant,
        {"logits": LOGITS, "target": counts},
        fastvae.multinomial_nll,
        tolerances.multinomial_nll,
    )
    yield Case(
        "negative_binomial_nll",
        variant,
        {"log_mean": LOG_COUNTS, "log_theta": LOG_COUNTS, "target": counts},
        fastvae.negative_binomial_nll,
        tolerances.negative_binomial_nll,
    )
    yield Case(
        "zero_inflated_negative_binomial_nll",
        variant,
        {"log_mean": LOG_COUNTS, "log_theta": LOG_COUNTS, "target": counts, "zero_logits": ZERO_LOGITS},
        lambda a, b, x, z: fastvae.negative_binomial_nll(a, b, x, zero_logits=z),
        tolerances.zero_inflated_negative_binomial_nll,
    )


def with_target(dtype: torch.dtype | None) -> Case:
    return Case(
        "sigmoid_cross_entropy",
        f"{dtype} target".removeprefix("torch.") if dtype else "",
        {"logits": LOGITS, "target": Target(dtype)},
        fastvae.sigmoid_cross_entropy,
        tolerances.sigmoid_cross_entropy,
    )


CASES = [
    with_target(None),
    with_target(torch.uint8),
    with_target(torch.bool),
    Case("gaussian_kl", "", {"mu": MEAN, "logvar": LOGVAR}, fastvae.gaussian_kl, tolerances.gaussian_kl),
    Case(
        "gaussian_kl_prior",
        "",
        {"mu": MEAN, "logvar": LOGVAR, "prior_mu": MEAN, "prior_logvar": LOGVAR},
        fastvae.gaussian_kl,
        tolerances.gaussian_kl_prior,
    ),
    Case(
        "reparameterize",
        "",
        {"mu": MEAN, "logvar": LOGVAR},
        lambda m, v: fastvae.reparameterize(m, v, num_samples=SAMPLES),
        partial(tolerances.reparameterize, noise=normal),
    ),
    Case(
        "sample_kl",
        "",
        {"mu": MEAN, "logvar": LOGVAR},
        fastvae.sample_kl,
        partial(tolerances.sample_kl, noise=normal),
        ("z", "kl"),
    ),
    with_sigma(0.01),
    with_sigma(30),
    Case(
        "gaussian_nll",
        "logvar",
        {"mean": MEANS, "target": MEAN, "logvar": LOGVARS},
        lambda m, x, v: fastvae.gaussian_nll(m, x, logvar=v),
        tolerances.gaussian_nll,
    ),
    with_scale(0.01),
    with_scale(30),
    Case(
        "laplace_nll",
        "log_scale",
        {"mean": MEANS, "target": MEAN, "log_scale": LOG_SCALES},
        lambda m, x, s: fastvae.laplace_nll(m, x, log_scale=s),
        tolerances.laplace_nll,
    ),
    *(
        Case(
            "continuous_bernoulli_nll",
            case.variant,
            case.arguments,
            fastvae.continuous_bernoulli_nll,
            tolerances.continuous_bernoulli_nll,
        )
        for case in (with_target(None), with_target(torch.uint8))
    ),
    Case(
        "discretized_logistic_nll",
        "",
        {"mean": LEVEL_MEANS, "log_scale": LOG_SCALES, "target": Numbers(255, torch.uint8)},
        fastvae.discretized_logistic_nll,
        tolerances.discretized_logistic_nll,
    ),
    *with_counts(Numbers(10**6)),
    *with_counts(Numbers(255, torch.uint8)),
    Case(
        "elbo_loss",
        "",
        {"logits": LOGIT, "target": Target(), "mu": MEAN, "logvar": LOGVAR},
        lambda *t: fastvae.elbo_loss(*t, beta=BETA).loss,
        partial(tolerances.elbo_loss, beta=BETA),
        rows=4,
    ),
]


class Stream:
    """Numbers that are the same on every machine: Philox's words, from the reference."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def bits(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Random bit patterns."""
        self.seed += 1
        size = torch.finfo(dtype).bits // 8
        count = math.prod(shape) * size
        words = reference.philox_words(self.seed, 0, 0, -(-count // 16))
        return torch.from_numpy(words.view(np.uint8)[:count].copy()).view(dtype).reshape(shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), in double."""
        self.seed += 1
        count = math.prod(shape)
        words = reference.philox_words(self.seed, 0, 0, -(-count // 4))[:count]
        return torch.from_numpy(words / 2.0**32).reshape(shape)

    def patterns(self, dtype: torch.dtype, shape: tuple[int, ...], far: float) -> Tensor:
        """Random bit patterns of numbers up to `far` in size; larger ones are mirrored there."""
        x = self.bits(dtype, shape).double().nan_to_num(0)
        return torch.where(x.abs() > far, far / x * far if far < 1e150 else 1 / x, x).to(dtype)

    def values(self, kind: str, dtype: torch.dtype, shape: tuple[int, ...], spread: Spread) -> Tensor:
        """Rows of one number, of one binade, of any patterns, or of plausible numbers; the first is zero."""
        far = min(spread.far64 if dtype == torch.float64 else spread.far, torch.finfo(dtype).max)
        if kind == "patterns":
            return self.patterns(dtype, shape, far)
        if kind == "plausible":
            return ((2 * self.uniform(*shape) - 1) * spread.near).to(dtype)
        first = (*shape[:-1], 1)
        either = self.uniform(*first) < 0.5
        x = torch.where(either, *(self.values(k, dtype, first, spread) for k in ("patterns", "plausible")))
        x[..., 0, :] = 0
        if kind == "constant":
            return x.expand(shape).contiguous()
        integer, mantissa = INTEGER[torch.finfo(dtype).bits], round(-math.log2(torch.finfo(dtype).eps))
        low = (1 << mantissa) - 1
        mixed = (x.view(integer) & ~low) | (self.bits(dtype, shape).view(integer) & low)
        return mixed.view(dtype).clamp(-far, far)

    def targets(self, kind: str, dtype: torch.dtype, logits: Tensor) -> Tensor:
        logits = logits[0] if logits.dim() == 3 else logits
        rows, n = logits.shape
        between = self.uniform(rows, 1 if kind == "constant" else n)
        which = (torch.arange(rows) % 3)[:, None]
        x = torch.where(which == 0, logits > 0, torch.where(which == 1, logits <= 0, between))
        if dtype == torch.uint8:
            return (x * 255).round().to(dtype)
        return x > 0.5 if dtype == torch.bool else x.to(dtype)

    def numbers(self, kind: str, dtype: torch.dtype, rows: int, n: int, most: int) -> Tensor:
        """Rows of one number, or of any."""
        most = min(most, int(torch.finfo(dtype).max)) if dtype.is_floating_point else most
        shape = (rows, 1 if kind == "constant" else n)
        which, size = self.uniform(*shape), self.uniform(*shape)
        few, many = (size * 6).floor(), torch.exp(size * math.log(most + 1)).floor().clamp(max=most)
        x = torch.where(which < 1 / 3, 0, torch.where(which < 2 / 3, few, many))
        return x.expand(rows, n).to(dtype)


INTEGER = {64: torch.int64, 32: torch.int32, 16: torch.int16}


def arguments(case: Case, kind: str, dtype: torch.dtype, rows: int, n: int) -> list[Tensor]:
    stream, tensors = Stream(n << 32), []
    for spread in case.arguments.values():
        if isinstance(spread, Target):
            tensors.append(stream.targets(kind, spread.dtype or dtype, tensors[0]))
            continue
        if isinstance(spread, Numbers):
            numbers = stream.numbers(kind, spread.dtype or dtype, rows, n, spread.most)
            tensors.append(numbers + tensors[-1].to(numbers.dtype) if spread.beside else numbers)
            continue
        shape = (*((SAMPLES,) if spread.has_samples else ()), rows, n)
        tensors.append(stream.values(kind, dtype, shape, spread))
    return tensors


def wide(x: Tensor, computed: torch.dtype, *, is_number: bool = False) -> Array:
    """As the kernel reads it, exactly."""
    if x.dtype == torch.uint8 and not is_number:
        x = (x.double() / 255).to(computed)
    return x.detach().double().numpy().astype(Wide)


def share(actual: Tensor, result: Result) -> float:
    """The largest error, as a share of its bound. What cannot be told from an overflow is left out."""
    value = actual.detach().double().numpy().astype(Wide)
    bound = tolerances.limit(result, actual.dtype)
    assert value.shape == bound.shape, f"{result.name} has shape {value.shape}, expected {bound.shape}"
    told = abs(result.exact) + bound < torch.finfo(actual.dtype).max / 8
    with np.errstate(invalid="ignore"):
        error = np.where(value == result.exact, 0, abs(value - result.exact)) / bound
    return float(np.where(np.isnan(error), np.inf, error)[told].max(initial=0))


def measure(case: Case, dtype: torch.dtype, elements: int = 6000) -> dict[str, float]:
    """The worst share of the bound that each result of a case comes to, over about `elements` elements per size."""
    targets = [s.dtype for s in case.arguments.values() if isinstance(s, Target)]
    computed = torch.float64 if torch.float64 in (dtype, *targets) else torch.float32
    arithmetic = DOUBLE if computed == torch.float64 else SINGLE
    worst: dict[str, float] = {}
    for n in SIZES:
        rows = min(case.rows or elements, max(4, elements // n))
        for kind in ("constant", "binade", "patterns", "plausible"):
            tensors = arguments(case, kind, dtype, rows, n)
            leaves = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
            torch.manual_seed(SEED)
            outputs = as_tuple(case.call(*leaves))
            stream = Stream(1)
            # Not below 1: a factor never hides an overflow on the way.
            upstream = [(stream.uniform(*o.shape) + 1).to(o.dtype) if o.dim() else torch.ones_like(o) for o in outputs]
            grads = torch.autograd.grad(outputs, [t for t in leaves if t.requires_grad], upstream)
            got = dict(zip(case.outputs, outputs, strict=True))
            named = [name for name, t in zip(case.arguments, leaves, strict=True) if t.requires_grad]
            got |= {f"d/d{name}": grad for name, grad in zip(named, grads, strict=True)}
            given = [wide(t, computed) for t in upstream]
            for spread, t in zip(case.arguments.values(), leaves, strict=True):
                given.append(wide(t, computed, is_number=isinstance(spread, Numbers)))
            for result in case.exact(arithmetic, *given):
                if result.name in got:
                    name = result.name
                    if name in case.outputs and result.exact.ndim < leaves[0].dim():
                        name += f", n <= {SHORT}" if n <= SHORT else f", n > {SHORT}"
                    worst[name] = max(worst.get(name, 0), share(got[result.name], result))
    return worst
