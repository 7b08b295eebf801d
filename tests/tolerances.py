"""Every tolerance of the tests, with its reason: the exact result of each operator, and how far a kernel may be off.

Kernels compute in float32, or in float64 where an input is float64; u is the unit roundoff of that type. The bounds are
first-order: a result of k roundings is off by k u / (1 - k u) of itself (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., lemma 3.1), which for the k < 2^10 here is k u but for its last 2^-14. ``slack`` adds that.

The docstrings below are part of docs/accuracy.md: the bound of each result, an empty line, and its derivation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# 64 bits of mantissa, against 53: the exact results need no more.
Wide = np.longdouble
Array = NDArray[np.longdouble]
LOG_TWO_PI = np.log(8 * np.arctan(Wide(1)))

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}  # subnormals

# Relative errors of our elementary functions, in u: the worst over every float of their range, rounded up. glibc's in
# double are within 1 ulp, 2 u (its manual, "Known Maximum Errors in Math Functions").
EXP, LOG1P, EXPONENTIAL = 3.2, 2.2, 3.4
EXP_LESS_ONE, EXP_LESS_LINE = 2.1, 3.7  # e^x - 1, and e^x - 1 - x

TILE = 1024  # elements that are added up in the type computed in; longer rows go on in double
LANES = 4  # additions side by side on the narrowest instruction set
FACTOR_LANES = 32  # products side by side


@dataclass(frozen=True)
class Arithmetic:
    """A type computed in."""

    unit: float
    smallest: Wide  # subnormal number
    vanishing: Wide  # an exponential below it may be 0
    long_lanes: int  # additions side by side in a row of more than half a tile
    turn: float  # absolute error of a sine or cosine, in u
    line: float  # relative error of e^x - 1 - x, in u


SINGLE = Arithmetic(2.0**-24, Wide(2) ** -149, Wide(2) ** -125, LANES, 1.8, EXP_LESS_LINE)
# Loops in double call libm and stay scalar. The angle of a turn is rounded twice before its sine is taken: 4 pi u. From
# |x| = 1 on, e^x - 1 - x is a difference of at most 2.4 times its size: 2.4 times 2 u, and a rounding.
DOUBLE = Arithmetic(2.0**-53, Wide(2) ** -1074, Wide(2) ** -1074, 1, 14, 5.8)


@dataclass(frozen=True)
class Result:
    """What one result of an operator should be, and how far it may be off before it is stored."""

    name: str
    exact: Array
    error: Array


def unit(dtype: torch.dtype) -> float:
    """Unit roundoff of the type that an input of this dtype is computed in."""
    return UNIT[torch.float64] if dtype == torch.float64 else UNIT[torch.float32]


def limit(result: Result, stored: torch.dtype) -> Array:
    """Bound of a stored result: one more rounding for the half types, to half of their smallest subnormal at least."""
    slack = 1 + 2.0**-14
    if stored not in SMALLEST:
        return slack * result.error
    return slack * (result.error + UNIT[stored] * (abs(result.exact) + result.error)) + SMALLEST[stored] / 2


def depth(t: Arithmetic, n: int) -> int:
    """Roundings between a term of a row of n and the row's sum."""
    lanes = LANES if n <= TILE // 2 else t.long_lanes
    within = -(-min(n, TILE) // lanes) - 1 + lanes.bit_length() - 1
    return within + 1  # the last brings the sum together with its logarithms, or to the type stored


def exp_less_line(x: NDArray[Any]) -> NDArray[Any]:
    """e^x - 1 - x, near 0 by its series, whose next term is below 2^-70 of it; computed in the type of x."""
    near = np.where(abs(x) < 0.5, x, 0)
    p = np.zeros_like(near)
    for k in range(21, 2, -1):
        p = (p + 1) * near / k
    return np.where(abs(x) < 0.5, (p + 1) * near * near / 2, np.expm1(x) - x)


def sums(t: Arithmetic, terms: Array) -> Array:
    """Error of a sum: d u of the sum of the magnitudes (Higham, section 4.2), and what the tiles add in double."""
    n = terms.shape[-1]
    return (depth(t, n) * t.unit + n / TILE * 2.0**-53) * abs(terms).sum(-1)


def subnormal(t: Arithmetic, *factors: Array) -> Array:
    """Absolute error of products that become subnormal, on the way and at the end."""
    return t.smallest * (1 + sum(abs(f) for f in factors))


def sigmoid_cross_entropy(t: Arithmetic, g: Array, logits: Array, target: Array) -> Iterator[Result]:
    """value: d u A + 2 u A + (e + ℓ + 5) u S + 3 m u min(S, 32 T) + n v
    d/dlogits: |g| ((e + 2) q + 2 |s - x| + (1 - x)) u, the last part for l >= 0 and 0 < x < 1 only
    d/dtarget: K u Σ|g l|, over K samples

    A = Σ miss |l|, with miss = 1 - x for l >= 0 and x below; S = Σ log(1 + y), y = e^-|l|; s = sigmoid(l) and q =
    sigmoid(-|l|); m is the length of a lane of products, n / 32 and at most 32; T the number of tiles. All terms
    are positive. Those of A take two roundings. An error e u of y moves log(1 + y) by no more than e u of it. A
    step P <- P (1 + y) + y of a lane's product less one takes three roundings (two with multiply-add), each of them
    of P at most, so log(1 + P) moves by 3 u P / (1 + P) <= 3 u min(1, log(1 + P)); the 32 lanes together by 3 u
    min(S, 32) a step. Then come a logarithm, ℓ, four additions among lanes and one more. q = y / (1 + y) is e of
    its numerator, less than that of its denominator with the opposite sign, one addition, one division. s - x =
    miss - q for l >= 0 and q - miss below: 1 - x is exact for x of 0 and 1, where the result is q itself, and a
    rounding else; then a subtraction and the factor g.
    """
    n = logits.shape[-1]
    odds = np.exp(-abs(logits))
    terms = np.where(logits < 0, target, 1 - target) * abs(logits)
    logs = np.log1p(odds)
    a, s = terms.sum(-1), logs.sum(-1)
    tiles, steps = -(-n // TILE), -(-min(n, TILE) // FACTOR_LANES)
    error = 2 * a + (EXP + LOG1P + 5) * s + 3 * steps * np.minimum(s, FACTOR_LANES * tiles)
    yield Result("value", a + s, t.unit * error + sums(t, terms) + n * t.vanishing)
    g = g[..., None]
    rarer = odds / (1 + odds)
    exact = np.where(logits < 0, rarer - target, (1 - target) - rarer)
    rounded = np.where((logits >= 0) & (target > 0) & (target < 1), 1 - target, 0)
    error = t.unit * ((EXP + 2) * rarer + 2 * abs(exact) + rounded) + t.vanishing
    yield Result("d/dlogits", g * exact, abs(g) * error + subnormal(t, g))
    by_target = -g * logits
    samples = len(by_target)
    error = samples * (t.unit * abs(by_target).sum(0) + t.smallest)
    yield Result("d/dtarget", by_target.sum(0), error)


def gaussian_kl(
    t: Arithmetic,
    g: Array,
    mu: Array,
    logvar: Array,
    *,
    one_error: float = EXP_LESS_ONE,
    line_error: float | None = None,
) -> Iterator[Result]:
    """value: d u Σk + (c + 1) u Σk + n v
    d/dmu: |g mu| u
    d/dlogvar: |g (var - 1)| (a + 1) u / 2

    k = (mu^2 + (var - 1 - logvar)) / 2 is a term, a sum of two that are never negative. The second is within c u of
    itself, also where it vanishes, at the prior; one rounding is of mu^2 and one of the sum. var - 1 is within a u.
    """
    term = (mu * mu + exp_less_line(logvar)) / 2
    n = mu.shape[-1]
    error = ((line_error or t.line) + 1) * t.unit * term.sum(-1) + n * t.vanishing
    yield Result("value", term.sum(-1), error + sums(t, term))
    g = g[..., None]
    yield Result("d/dmu", g * mu, t.unit * abs(g * mu) + t.smallest)
    exact = g * np.expm1(logvar) / 2
    error = t.unit * (one_error + 1) * abs(exact) + abs(g) * t.vanishing + subnormal(t, g)
    yield Result("d/dlogvar", exact, error)


def gaussian_kl_prior(
    t: Arithmetic, g: Array, mu: Array, logvar: Array, prior_mu: Array, prior_logvar: Array
) -> Iterator[Result]:
    """value: d u Σk + u Σ((e + 5) q + (c + 1) f + |δ (r - 1)|) / 2 + Σ(1 + D^2) v
    d/dmu: (e + 3) u |g w| + |g D| v
    d/dlogvar: |g| ((a + 1) |r - 1| + |δ| r) u / 2
    d/dprior_mu: as d/dmu
    d/dprior_logvar: |g| ((a + 2) |r - 1| + |δ| r + (e + 6) q) u / 2 + |g| (1 + D^2) v

    δ = logvar - prior_logvar, r = e^δ, D = mu - prior_mu, w = D e^-prior_logvar, q = D w, f = r - 1 - δ and k = (q + f)
    / 2, which are never negative. f is within c u of itself for the δ that was computed; that is off by |δ| u at most,
    and not at all where the two are near each other, which moves f by |δ (r - 1)| u, and r - 1, within a u, by |δ| r u.
    D is one rounding, w two more and e, q one more and D's again; then those of the sums, as above. What
    e^-prior_logvar loses where it vanishes is D^2 v.
    """
    apart, difference = logvar - prior_logvar, mu - prior_mu
    ratio, less_one = np.exp(apart), np.expm1(apart)
    whitened = difference * np.exp(-prior_logvar)
    square = difference * whitened
    line = exp_less_line(apart)
    term = (square + line) / 2
    vanishing = t.vanishing * (1 + difference**2)
    error = t.unit / 2 * ((EXP + 5) * square + (t.line + 1) * line + abs(apart * less_one)) + vanishing
    yield Result("value", term.sum(-1), error.sum(-1) + sums(t, term))
    g = g[..., None]
    error = (EXP + 3) * t.unit * abs(g * whitened) + abs(g * difference) * t.vanishing + subnormal(t, g)
    yield Result("d/dmu", g * whitened, error)
    yield Result("d/dprior_mu", -g * whitened, error)
    error = t.unit * ((EXP_LESS_ONE + 1) * abs(less_one) + abs(apart) * ratio) + t.vanishing
    yield Result("d/dlogvar", g * less_one / 2, abs(g) / 2 * error + subnormal(t, g))
    error = t.unit * ((EXP_LESS_ONE + 2) * abs(less_one) + abs(apart) * ratio + (EXP + 6) * square) + vanishing
    yield Result("d/dprior_logvar", -g * (less_one + square) / 2, abs(g) / 2 * error + subnormal(t, g))


def reparameterize(
    t: Arithmetic, g: Array, mu: Array, logvar: Array, noise: Callable[..., tuple[Array, Array]]
) -> Iterator[Result]:
    """value: u |z| + (e + 1) u σ|ε| + σ E
    d/dmu: K u Σ|g|, over K samples
    d/dlogvar: Σ|g| σ ((e + K + 1) u |ε| + E) / 2

    E = (x / 2 + 2) u |ε| + s u r is the error of a normal number ε = r cos φ or r sin φ. The square root halves the
    error x of the exponential variate and adds a rounding, the product with the sine another; the sine itself has an
    absolute error of s u. σ is within e u: the halving of logvar is exact. One rounding for the product, one for the
    sum.
    """
    sigma = np.exp(logvar / 2)
    eps, radius = noise(g.shape)
    noise_error = t.unit * ((EXPONENTIAL / 2 + 2) * abs(eps) + t.turn * radius)
    vanishing = t.vanishing * abs(eps) + t.smallest
    part = sigma * eps
    error = t.unit * (abs(mu + part) + (EXP + 1) * abs(part)) + sigma * noise_error + vanishing
    yield Result("value", mu + part, error)
    samples = len(g)
    yield Result("d/dmu", g.sum(0), samples * t.unit * abs(g).sum(0))
    error = t.unit * (EXP + samples + 1) * abs(part) + sigma * noise_error + vanishing
    yield Result("d/dlogvar", (g * part).sum(0) / 2, (abs(g) * error / 2 + subnormal(t, g)).sum(0))


def gaussian_nll(
    t: Arithmetic, g: Array, mean: Array, target: Array, logvar: Array, *, given_sigma: bool = False
) -> Iterator[Result]:
    """value: d u Σ|k| + (2 e + 6) u ΣM + Σ(D v)^2
    d/dmean: (2 e + 4) u |g w| + |g D| v^2
    d/dtarget: that summed over K samples, and (K - 1) u Σ|g w|
    d/dlogvar: |g| ((2 e + 7) z^2 + 2) u / 2 + |g| (D v)^2

    D = mean - target, z = D / sigma, w = z / sigma, k = (log 2π + logvar + z^2) / 2, M = (log 2π + |logvar| + z^2) / 2.
    1 / sigma = e^(-logvar / 2) is within e u: the halving is exact. z has two roundings more, z^2 both errors of z and
    one rounding, and the sum one. Where sigma is given, 1 / sigma is one rounding and e is 1.
    """
    e = 1 if given_sigma else EXP
    difference, inverse = mean - target, np.exp(-logvar / 2)
    z = difference * inverse
    square = z * z
    term = (LOG_TWO_PI + logvar + square) / 2
    magnitude = (LOG_TWO_PI + abs(logvar) + square) / 2
    vanishing = (difference * t.vanishing) ** 2
    error = (2 * e + 6) * t.unit * magnitude + vanishing
    yield Result("value", term.sum(-1), error.sum(-1) + sums(t, term))
    g = g[..., None]
    exact = g * z * inverse
    error = (2 * e + 4) * t.unit * abs(exact) + abs(g * difference) * t.vanishing**2 + subnormal(t, g, g * inverse)
    yield Result("d/dmean", exact, error)
    samples = len(g)
    yield Result("d/dtarget", -exact.sum(0), error.sum(0) + (samples - 1) * t.unit * abs(exact).sum(0))
    error = t.unit * ((2 * e + 7) * square + 2) + vanishing
    yield Result("d/dlogvar", g * (1 - square) / 2, abs(g) / 2 * error + subnormal(t, g))


def sample_kl(
    t: Arithmetic, g_z: Array, g_kl: Array, mu: Array, logvar: Array, noise: Callable[..., tuple[Array, Array]]
) -> Iterator[Result]:
    """z: as reparameterize
    kl: as gaussian_kl, with 2 a + 2, or c + 1 if that is more, for c
    d/dmu: the sum of both, and u of it
    d/dlogvar: likewise, with 2 a + 2 for a

    One exponential serves both. With s = sigma - 1, within a u, and f = sigma - 1 - log sigma, within c u: var - 1 is
    s (s + 2), where the sum is within a u and a rounding, as |s| <= s + 2, and var - 1 - logvar is s^2 + 2 f, parts
    within (2 a + 1) u and c u, and a rounding.
    """
    error = 2 * EXP_LESS_ONE + 2
    sample = {r.name: r for r in reparameterize(t, g_z[None], mu, logvar, noise)}
    kl = {r.name: r for r in gaussian_kl(t, g_kl, mu, logvar, one_error=error, line_error=max(error, t.line + 1))}
    yield Result("z", sample["value"].exact[0], sample["value"].error[0])
    yield Result("kl", kl["value"].exact, kl["value"].error)
    for name in ("d/dmu", "d/dlogvar"):
        exact = sample[name].exact + kl[name].exact
        yield Result(name, exact, sample[name].error + kl[name].error + t.unit * abs(exact))


def elbo_loss(
    t: Arithmetic, g: Array, logits: Array, target: Array, mu: Array, logvar: Array, *, beta: float
) -> Iterator[Result]:
    """value: the mean of reconstruction's and beta kl's, and u ((B + 1) mean R + (B + 3) beta mean KL)
    d/dlogits: as sigmoid_cross_entropy with g = 1 / B, and u of it
    d/dmu: as gaussian_kl with g = beta / B, and 3 u of it
    d/dlogvar: likewise

    reduction="mean" over B rows of results R and KL: B roundings, two for beta, one for the sum. The factor 1 / B of a
    gradient is rounded once; beta, beta / B and the product with the upstream gradient once each.
    """
    batch = len(mu)
    of_rows = np.full(batch, g / batch, dtype=Wide)
    losses = {r.name: r for r in sigmoid_cross_entropy(t, of_rows[None], logits[None], target)}
    kl = {r.name: r for r in gaussian_kl(t, beta * of_rows, mu, logvar)}
    means = [part["value"].exact.mean() for part in (losses, kl)]
    error = losses["value"].error.mean() + abs(beta) * kl["value"].error.mean()
    rounding = (batch + 1) * means[0] + (batch + 3) * abs(beta) * means[1]
    yield Result("value", means[0] + beta * means[1], error + t.unit * rounding)
    by_logits = losses["d/dlogits"]
    yield Result("d/dlogits", by_logits.exact[0], by_logits.error[0] + t.unit * abs(by_logits.exact[0]))
    for name in ("d/dmu", "d/dlogvar"):
        yield Result(name, kl[name].exact, kl[name].error + 3 * t.unit * abs(kl[name].exact))


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Asserts |actual - expected| <= bound, elementwise, in double; equal infinities and NaN agree."""
    actual, expected = actual.double(), expected.double()
    bound = bound.double().expand_as(expected)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    error = torch.where(same, torch.zeros_like(expected), (actual - expected).abs())
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    bad = ~(same | (error <= bound))
    if bad.any():
        i = int((error / bound.clamp_min(1e-300)).nan_to_num(torch.inf).flatten().argmax())
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} values beyond their bound; worst at {i}: got {actual.flatten()[i]}, "
            f"expected {expected.flatten()[i]} within {bound.flatten()[i]}"
        )
