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
class Counts:
    """Errors of the likelihoods of counts, in u: csrc/gamma.h. They were searched for and rounded up."""

    factorial: float  # log x!, relative to itself
    digamma: float  # digamma(1 + x), relative to 1 + log(1 + x)
    value: float  # these four are of the negative binomial, relative to the terms that its docstring names
    by_mean: float
    by_theta: float
    by_count: float


@dataclass(frozen=True)
class Arithmetic:
    """A type computed in."""

    unit: float
    smallest: Wide  # subnormal number
    vanishing: Wide  # an exponential below it may be 0
    long_lanes: int  # additions side by side in a row of more than half a tile
    turn: float  # absolute error of a sine or cosine, in u
    line: float  # relative error of e^x - 1 - x, in u
    counts: Counts


SINGLE = Arithmetic(
    2.0**-24, Wide(2) ** -149, Wide(2) ** -125, LANES, 1.8, EXP_LESS_LINE, Counts(4, 4, 6.5, 5.5, 22, 9)
)
# Loops in double call libm and stay scalar. The angle of a turn is rounded twice before its sine is taken: 4 pi u. From
# |x| = 1 on, e^x - 1 - x is a difference of at most 2.4 times its size: 2.4 times 2 u, and a rounding.
DOUBLE = Arithmetic(2.0**-53, Wide(2) ** -1074, Wide(2) ** -1074, 1, 14, 5.8, Counts(4, 8, 8, 6, 100, 64))


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


def laplace_nll(
    t: Arithmetic, g: Array, mean: Array, target: Array, log_scale: Array, *, given_scale: bool = False
) -> Iterator[Result]:
    """value: d u Σ|k| + (e + 5) u ΣM + Σ|D| v
    d/dmean: (e + 1) u |g w| + |g| v
    d/dtarget: that summed over K samples, and (K - 1) u Σ|g w|
    d/dlog_scale: |g| ((e + 4) z + 2) u + |g D| v

    D = mean - target, w = e^-log_scale, which is within e u, z = |D| w, k = z + log_scale + log 2, M = z + |log_scale|
    + log 2. z has two roundings and the error of w, the sum two and that of log 2. Where scale is given, w is one
    rounding and e is 1, as is the logarithm of the scale.
    """
    e = 1 if given_scale else EXP
    difference, inverse = mean - target, np.exp(-log_scale)
    z = abs(difference) * inverse
    term = z + log_scale + np.log(Wide(2))
    magnitude = z + abs(log_scale) + np.log(Wide(2))
    vanishing = abs(difference) * t.vanishing
    yield Result("value", term.sum(-1), ((e + 5) * t.unit * magnitude + vanishing).sum(-1) + sums(t, term))
    g = g[..., None]
    exact = g * np.sign(difference) * inverse
    error = (e + 1) * t.unit * abs(exact) + abs(g) * t.vanishing + subnormal(t, g)
    yield Result("d/dmean", exact, error)
    samples = len(g)
    yield Result("d/dtarget", -exact.sum(0), error.sum(0) + (samples - 1) * t.unit * abs(exact).sum(0))
    error = t.unit * ((e + 4) * z + 2) + vanishing
    yield Result("d/dlog_scale", g * (1 - z), abs(g) * error + subnormal(t, g))


def continuous_bernoulli_nll(t: Arithmetic, g: Array, logits: Array, target: Array) -> Iterator[Result]:
    """value: d u Σ|k| + u Σ(2 miss y + |k| + ℓ L + (y Q + 3 E) / (1 + E)) + n v
    d/dlogits: |g| (Q + 2 |s| + (1 - x)) u, the last part for l >= 0 and 0 < x < 1 only
    d/dtarget: K u Σ|g l|, over K samples

    y = |l|, miss = 1 - x for l >= 0 and x below; m is the mean of logit y, E = y m, L = log(1 + E) the logarithm of the
    constant, k = miss y - L, and s = miss - (1 - m) or its negative the derivative. 1 - m is 1 / y - o / (1 - o), o =
    e^-y, within Q u = (2 / y + (e / (1 - o) + 4) o / (1 - o)) u, and for y < 1 it is 1/2 less a multiple of y that is
    at most y / 12, within five roundings of that: Q = 5 y / 12 + 1/2. E has three roundings beside the error of m,
    which for y < 1 is no more than one more, and the logarithm takes E's error by 1 / (1 + E).
    """
    y = abs(logits)
    rest = -np.expm1(-y)
    safe = np.where(y > 0, y, 1)
    excess = np.where(y > 0, exp_less_line(-y) / np.where(y > 0, rest, 1), 0)
    far = np.maximum(y, 1)
    tail = np.exp(-far) / -np.expm1(-far)
    # 1 - m
    q = np.where(y < 1, 1 - np.where(y > 0, excess / safe, 0.5), 1 / far - tail)
    q_error = np.where(y < 1, 5 * y / 12 + 0.5, 2 / far + (EXP / -np.expm1(-far) + 4) * tail)
    miss = np.where(logits < 0, target, 1 - target)
    logs = np.log1p(excess)
    term = miss * y - logs
    excess_error = np.where(y < 1, 4 * excess, y * q_error + 3 * excess)
    error = 2 * miss * y + abs(term) + LOG1P * logs + excess_error / (1 + excess)
    yield Result("value", term.sum(-1), t.unit * error.sum(-1) + sums(t, term) + y.shape[-1] * t.vanishing)
    g = g[..., None]
    exact = np.where(logits < 0, -1, 1) * (miss - q)
    rounded = np.where((logits >= 0) & (target > 0) & (target < 1), 1 - target, 0)
    error = t.unit * (q_error + 2 * abs(exact) + rounded) + t.vanishing
    yield Result("d/dlogits", g * exact, abs(g) * error + subnormal(t, g))
    by_target = -g * logits
    samples = len(by_target)
    yield Result("d/dtarget", by_target.sum(0), samples * (t.unit * abs(by_target).sum(0) + t.smallest))


def discretized_logistic_nll(t: Arithmetic, g: Array, mean: Array, log_scale: Array, target: Array) -> Iterator[Result]:
    """value: d u Σk + u Σ(2 k + ℓ log(1 + z) + Z / (1 + z) + q U + r V + (e + 2) w p / (1 - p)) + n v
    d/dmean: 255 w |g| (q' U + r' V + (e + 2) (q + r) + (e + 6) |r - q|) u
    d/dlog_scale: |g| (q' |i| U + q (U + (e + 5) |i|) + r' |j| V + r (V + (e + 5) |j|) + W) u

    i, j = (c ± 1/2) w, c = x - 255 mean, are the ends of the level's bin and w = e^-log_scale / 255 its width, within
    (e + 2) u. c has two roundings, of 255 mean and of itself, so i is within U u, U = w (255 |mean| + |c|) + (e + 4)
    |i|, and j within V u. p = e^-w. The loss is max(-i, j, 0) + log(1 + z), z = (a + b + a b + p) / (1 - p) with a =
    e^-|i|, b = e^-|j|; z is within Z u, Z = ((e + 4) (a + b + a b) + p) / (1 - p) + 8 z + 3. q = sigmoid(-i) and r =
    sigmoid(j) are within e + 2, q' and r' are their derivatives. 1 - p is within 3 u and p within that and its
    rounding, so w p / (1 - p) is within W = 2 (e + 5) max(w, 1) w p / (1 - p)^2 + 3 w / (1 - p). Of the levels 0 and
    255, what is of the outer end is left out, and p.
    """
    width = np.exp(-log_scale) / 255
    centre = target - 255 * mean
    has_u, has_v = target < 255, target > 0
    u, v = (centre + Wide(0.5)) * width, (centre - Wide(0.5)) * width
    u_error, v_error = ((255 * abs(mean) + abs(centre)) * width + (EXP + 4) * abs(end) for end in (u, v))
    a, b = np.where(has_u, np.exp(-abs(u)), 0), np.where(has_v, np.exp(-abs(v)), 0)
    inner = has_u & has_v
    p, rest = np.where(inner, np.exp(-width), 0), np.where(inner, -np.expm1(-width), 1)
    miss = np.where(has_u & (u < 0), -u, 0) + np.where(has_v & (v > 0), v, 0)
    z = (a + b + a * b + p) / rest
    z_error = ((EXP + 4) * (a + b + a * b) + p) / rest + 8 * z + 3
    z_error = np.where(inner, z_error, EXP * z)
    by_u = np.where(has_u, np.where(u < 0, 1, a) / (1 + a), 0)
    by_v = np.where(has_v, np.where(v > 0, 1, b) / (1 + b), 0)
    by_width = p / rest
    term = miss + np.log1p(z)
    error = 2 * term + LOG1P * np.log1p(z) + z_error / (1 + z)
    error = error + by_u * u_error + by_v * v_error + (EXP + 2) * width * by_width
    yield Result("value", term.sum(-1), t.unit * error.sum(-1) + sums(t, term) + term.shape[-1] * 2 * t.vanishing)
    g = g[..., None]
    curve_u, curve_v = (
        by_u * np.where(has_u, np.where(u < 0, a, 1) / (1 + a), 0),
        by_v / (1 + b) * np.where(v > 0, b, 1),
    )
    slope = by_v - by_u
    error = curve_u * u_error + curve_v * v_error + (EXP + 2) * (by_u + by_v) + (EXP + 6) * abs(slope)
    scale = 255 * width
    error = scale * (t.unit * error + 2 * t.vanishing) + 255 * t.vanishing
    yield Result("d/dmean", -g * scale * slope, abs(g) * error + subnormal(t, g, g * scale))
    exact = by_u * u - by_v * v + by_width * width
    error = curve_u * abs(u) * u_error + by_u * (u_error + (EXP + 5) * abs(u))
    error = error + curve_v * abs(v) * v_error + by_v * (v_error + (EXP + 5) * abs(v))
    error = error + (2 * EXP + 10) * by_width * width / rest * np.maximum(width, 1) + 3 * inner * width / rest
    error = t.unit * (error + 2 * abs(exact)) + t.vanishing * (1 + abs(u) + abs(v) + width)
    yield Result("d/dlog_scale", g * exact, abs(g) * error + subnormal(t, g))


SHIFT = 24  # from which on Stirling's series has 64 bits


def stirling(y: Array) -> Array:
    """What lgamma(y) is above (y - 1/2) log y - y + log(2 pi) / 2, for y >= SHIFT."""
    w = 1 / (y * y)
    total = np.zeros_like(y)
    for above, below in ((1, 156), (-691, 360360), (1, 1188), (-1, 1680), (1, 1260), (-1, 360), (1, 12)):
        total = total * w + Wide(above) / below
    return total / y


def digamma_fall(y: Array) -> Array:
    """What digamma(y) is below log y - 1 / (2 y), for y >= SHIFT."""
    w = 1 / (y * y)
    total = np.zeros_like(y)
    for above, below in ((1, 12), (-691, 32760), (1, 132), (-1, 240), (1, 252), (-1, 120), (1, 12)):
        total = total * w + Wide(above) / below
    return total * w


def log1p_deficit(x: Array) -> Array:
    """What log(1 + x) is below x >= 0, near 0 by the series of 2 artanh(x / (2 + x))."""
    near = np.where(x < 0.5, x, 0)
    r = near / (2 + near)
    p = np.zeros_like(r)
    for k in range(35, 1, -2):
        p = p * r * r + Wide(1) / k
    return np.where(x < 0.5, r * near - 2 * r**3 * p, x - np.log1p(x))


def rising(x: Array, theta: Array) -> tuple[Array, Array, Array]:
    """Of G(x + theta) / G(theta), G the gamma function, the logarithm less x log theta; theta d and x - theta d.

    d = digamma(x + theta) - digamma(theta).
    """
    y, product, quotients = theta.copy(), np.ones_like(theta), np.zeros_like(theta)
    for k in range(SHIFT):
        small = y < SHIFT
        product = product * np.where(small, 1 + x / y, 1)
        if k:
            quotients = quotients + np.where(small, x / (y * (x + y)), 0)
        y = np.where(small, y + 1, y)
    shifted = y > theta
    ratio = x / y
    value = (
        x * np.log(y / theta) - np.log(product) + (x + y - 0.5) * np.log1p(ratio) - x + stirling(x + y) - stirling(y)
    )
    first = np.where(shifted, x / (x + theta), 0)
    bend = x / (2 * y * (x + y)) + digamma_fall(y) - digamma_fall(x + y)
    climb = first + theta * (quotients + np.log1p(ratio) + bend)
    far = theta * (log1p_deficit(ratio) - bend)
    excess = np.where(shifted, x * (x + theta - 1) / (x + theta) - (climb - first), far)
    one = x == 1
    return np.where(one, 0, value), climb, np.where(one, 0, excess)


def digamma(y: Array) -> Array:
    inverses = np.zeros_like(y)
    for _ in range(SHIFT):
        small = y < SHIFT
        inverses = inverses + np.where(small, 1 / y, 0)
        y = np.where(small, y + 1, y)
    return np.log(y) - 1 / (2 * y) - digamma_fall(y) - inverses


def of_counts(function: Callable[[Array], Array], x: Array) -> Array:
    """Of numbers that repeat."""
    values, places = np.unique(x, return_inverse=True)
    return function(values)[places].reshape(x.shape)


def log_factorial(x: Array) -> Array:
    return of_counts(lambda k: rising(k, np.ones_like(k))[0], x)


def digamma_of_next(x: Array) -> Array:
    return of_counts(lambda k: digamma(1 + k), x)


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


def sigmoid(x: Array) -> Array:
    odds = np.exp(-abs(x))
    return np.where(x < 0, odds, 1) / (1 + odds)


def poisson_nll(t: Arithmetic, g: Array, log_rate: Array, target: Array) -> Iterator[Result]:
    """value: d u Σ|k| + u Σ((e + 2) r + 3 |x a| + (f + 1) (log x! + 1)) + n v
    d/dlog_rate: |g| (e r + 2 |r - x|) u
    d/dtarget: Σ|g| (ψ (1 + log(1 + x)) + 2 |digamma(1 + x) - a|) u, and K u of the sum over K samples

    r = e^a is within e u, log x! within f u of itself and 1, f = 4 (it is exact for 0 and 1); k = r - x a + log x!. The
    product x a is one rounding, the difference one of r and x a at most, the sum one of all. digamma(1 + x) is within ψ
    u (1 + log(1 + x)), with ψ = 4, or 8 in float64.
    """
    a, x = np.broadcast_arrays(log_rate, target)
    rate, factorial = np.exp(a), log_factorial(x)
    term = rate - x * a + factorial
    error = (EXP + 2) * rate + 3 * abs(x * a) + (t.counts.factorial + 1) * (factorial + (x > 1))
    yield Result("value", term.sum(-1), t.unit * error.sum(-1) + sums(t, term) + a.shape[-1] * t.vanishing)
    g = g[..., None]
    error = t.unit * (EXP * rate + 2 * abs(rate - x)) + t.vanishing
    yield Result("d/dlog_rate", g * (rate - x), abs(g) * error + subnormal(t, g))
    slope = digamma_of_next(x)
    error = t.unit * (t.counts.digamma * (1 + np.log1p(x)) + 2 * abs(slope - a))
    exact = g * (slope - a)
    yield Result("d/dtarget", exact.sum(0), (abs(g) * error).sum(0) + len(g) * t.unit * abs(exact).sum(0))


def binomial_nll(t: Arithmetic, g: Array, logits: Array, target: Array, total: Array) -> Iterator[Result]:
    """value: d u Σ|k| + u Σ(4 miss |l| + (e + ℓ + 4) n L + (f + 4) F) + n v
    d/dlogits: |g| ((e + 3) n q + 2 |n s - x|) u
    d/dtarget: Σ|g| (ψ (2 + log(1 + x) + log(1 + n - x)) + 3 |k'|) u, and K u of the sum over K samples

    miss = n - x for l >= 0 and x below, L = log(1 + y), y = e^-|l|, q = y / (1 + y) and s = sigmoid(l), as for
    sigmoid_cross_entropy; F = log x! + log (n - x)! + log n! and 1 for each, within f u of itself; k = miss |l| + n L +
    log x! + log (n - x)! - log n!; k' is its derivative by x.
    """
    logit, x, n = np.broadcast_arrays(logits, target, total)
    odds = np.exp(-abs(logit))
    miss = np.where(logit < 0, x, n - x)
    parts = [log_factorial(k) for k in (x, n - x, n)]
    logs = n * np.log1p(odds)
    term = miss * abs(logit) + logs + parts[0] + parts[1] - parts[2]
    sizes = sum(parts) + sum((k > 1).astype(Wide) for k in (x, n - x, n))
    error = 4 * miss * abs(logit) + (EXP + LOG1P + 4) * logs + (t.counts.factorial + 4) * sizes
    yield Result("value", term.sum(-1), t.unit * error.sum(-1) + sums(t, term) + ((n + 1) * t.vanishing).sum(-1))
    g = g[..., None]
    rarer = n * odds / (1 + odds)
    exact = np.where(logit < 0, rarer - x, miss - rarer)
    error = t.unit * ((EXP + 3) * rarer + 2 * abs(exact)) + n * t.vanishing
    yield Result("d/dlogits", g * exact, abs(g) * error + subnormal(t, g))
    slopes = digamma_of_next(x), digamma_of_next(n - x)
    by_target = slopes[0] - slopes[1] - logit
    error = t.unit * (
        t.counts.digamma * (2 + np.log1p(x) + np.log1p(n - x)) + 3 * abs(by_target) + abs(slopes[0] - slopes[1])
    )
    error = (abs(g) * error).sum(0) + len(g) * t.unit * abs(g * by_target).sum(0)
    yield Result("d/dtarget", (g * by_target).sum(0), error)


def multinomial_nll(t: Arithmetic, g: Array, logits: Array, target: Array) -> Iterator[Result]:
    """value: d u Σ|x a| + Σ x (A + u |a|)
    d/dlogits: |g| (u x + N p (A + (e + d + 3) u) + u |N p - x|) + n v |g| N
    d/dtarget: Σ|g| (A + u |a|), and K u of the sum over K samples

    a = (l - m) - log S, with the row's largest logit m and S = Σe^(l - m), is the logarithm of the share p; N = Σx. A =
    u (|l - m| + |a|) + u (e + d + 2 + Σp |l - m| + 2 |log S|) is its error: the difference and the sum are a rounding
    each, the terms of S are within e u and what their differences were rounded by, then there are d additions, the
    number stored and a logarithm. The sum of the derivatives by a, which is -N g, takes d additions more.
    """
    logit, x = np.broadcast_arrays(logits, target)
    below = logit - logit.max(-1, keepdims=True)
    terms = np.exp(below)
    total = terms.sum(-1, keepdims=True)
    shares, logs = terms / total, np.log(total)
    a, count, d = below - logs, x.sum(-1, keepdims=True), depth(t, x.shape[-1])
    error = t.unit * (abs(below) + abs(a) + EXP + d + 2 + (shares * abs(below)).sum(-1, keepdims=True) + 2 * abs(logs))
    loss = -x * a
    by_share = (x * (error + t.unit * abs(a))).sum(-1)
    yield Result("value", loss.sum(-1), by_share + sums(t, loss) + subnormal(t))
    g = g[..., None]
    exact = count * shares - x
    by_logits = t.unit * x + count * shares * (error + (EXP + d + 3) * t.unit) + t.unit * abs(exact)
    yield Result("d/dlogits", g * exact, abs(g) * (by_logits + count * t.vanishing) + subnormal(t, g, count))
    by_target = -g * a
    error = abs(g) * (error + t.unit * abs(a))
    error = error.sum(0) + len(g) * t.unit * abs(by_target).sum(0) + subnormal(t)
    yield Result("d/dtarget", by_target.sum(0), error)


@dataclass(frozen=True)
class Part:
    """Of each element, a number and the error that it was computed with."""

    exact: Array
    error: Array


def negative_binomial(t: Arithmetic, a: Array, b: Array, x: Array) -> dict[str, Part]:
    """The loss and its derivatives, and the loss of a count of 0."""
    mu, theta, high = np.exp(a), np.exp(b), np.maximum(b, 0)
    share, other = sigmoid(a - b), sigmoid(b - a)  # mu / (mu + theta), theta / (mu + theta)
    of_zero, by_mean = theta * softplus(a - b), softplus(b - a) - high
    value, climb, excess = rising(x, theta)
    gammas, factorial = value + x * np.minimum(b, 0), log_factorial(x)
    loss = of_zero + x * by_mean - gammas + factorial
    sizes = of_zero + abs(x * by_mean) + abs(gammas) + factorial
    # t - theta r / (1 + r), r = mu / theta: theta (r^2 / (1 + r) - (r - log(1 + r)))
    below = mu < theta
    ratio = np.exp(np.minimum(a - b, 0))
    h = np.where(below, theta * (ratio * share - log1p_deficit(ratio)), of_zero - theta * share)
    by_theta = h + np.where(below, excess - x * share, x * other - climb)
    theta_sizes = h + np.where(below, abs(excess) + x * share, climb + x * other)
    slopes = by_mean, digamma(x + theta) - high, digamma_of_next(x)
    factors = [f * t.unit for f in (t.counts.value, t.counts.by_mean, t.counts.by_theta, t.counts.by_count)]
    return {
        "zero": Part(of_zero, factors[0] * of_zero),
        "value": Part(loss, factors[0] * sizes),
        "log_mean": Part((mu - x) * other, factors[1] * (mu + x) * other),
        "log_theta": Part(by_theta, factors[2] * theta_sizes),
        "target": Part(slopes[0] - slopes[1] + slopes[2], factors[3] * sum(abs(slope) for slope in slopes)),
    }


def count_results(t: Arithmetic, g: Array, parts: dict[str, Part]) -> Iterator[Result]:
    """The row sums, and the derivatives times g, which is one rounding more."""
    terms = parts.pop("value")
    yield Result("value", terms.exact.sum(-1), terms.error.sum(-1) + sums(t, terms.exact))
    g = g[..., None]
    for name, part in parts.items():
        exact = g * part.exact
        error = abs(g) * part.error + t.unit * abs(exact) + subnormal(t, g)
        if name == "target":
            exact, error = exact.sum(0), error.sum(0) + (len(g) - 1) * t.unit * abs(exact).sum(0)
        yield Result(f"d/d{name}", exact, error)


def negative_binomial_nll(
    t: Arithmetic, g: Array, log_mean: Array, log_theta: Array, target: Array
) -> Iterator[Result]:
    """value: d u Σ|k| + 6.5 u Σ(t + |x A| + |R| + log x!)
    d/dlog_mean: |g| (5.5 (mu + x) theta / (mu + theta) + |s|) u, s the derivative
    d/dlog_theta: |g| (22 (h + H) + |s|) u
    d/dtarget: Σ|g| (9 (|A| + |ψ(x + theta) - max(b, 0)| + |ψ(1 + x)|) + K |s|) u, over K samples

    a and b are log_mean and log_theta, mu = e^a and theta = e^b; t = theta log(1 + mu / theta) is the loss of a count
    of 0 and k = t + x A - R + log x! that of x, with A = log((mu + theta) / mu) - max(b, 0) and R = log G(x + theta) /
    G(theta) - x max(b, 0), G the gamma function and ψ the derivative of its logarithm; h = t - theta mu / (theta + mu),
    d = ψ(x + theta) - ψ(theta), H = |x - theta d| + x mu / (mu + theta) for mu < theta, else theta d + x theta / (mu +
    theta). The factors are no sums of roundings but the worst of a search over theta from 1e-6 to 1e8, mu from 1e-8 to
    1e8 and counts up to 1e6, rounded up; in float64 they are 8, 6, 100 and 64. Means and theta outside [e^-80, e^87],
    which count as the nearer of these, are left out.
    """
    parts = negative_binomial(t, *np.broadcast_arrays(log_mean, log_theta, target))
    del parts["zero"]
    yield from count_results(t, g, parts)


def zero_inflated_negative_binomial_nll(
    t: Arithmetic, g: Array, log_mean: Array, log_theta: Array, target: Array, zero_logits: Array
) -> Iterator[Result]:
    """value: d u Σ|k| + ΣC + u Σ((e + ℓ + 1) L + 2 |k|); of a zero Σ(s T + 20 u R / (1 + R) + 8 u k) for the latter two
    d/dlog_mean: as negative_binomial_nll; of a zero that times s, and |g D| (12 s u + s (1 - s) T)
    d/dlog_theta: likewise
    d/dzero_logits: |g| (e + 4) u sigmoid(l); of a zero |g| (21 u |D| + s (1 - s) T)
    d/dtarget: as negative_binomial_nll; 0 of a zero

    C is the error of the negative binomial's loss, by its bound, l is zero_logits and L = log(1 + e^-|l|). With t the
    loss of a zero of that distribution, k = log(1 + R), R = (1 - e^-t) / (e^l + e^-t), is that of a zero here, and s =
    e^-t / (e^l + e^-t) is the share of that distribution in its probability: what moves t by T = 6.5 u t moves the loss
    by s T. Where l < -32 and t > 32 (in float64 -40 and 40), T is (6.5 t + 2 (t - l)) u: exponents are rounded there.
    D is the derivative, by the mean and by theta that without inflation. R and s have about ten roundings and the
    errors of two exponentials. What is below e^-87 of the larger of e^l and e^-t, or below that, vanishes.
    """
    a, b, x, logit = np.broadcast_arrays(log_mean, log_theta, target, zero_logits)
    parts = negative_binomial(t, a, b, x)
    zero, is_zero = parts.pop("zero"), x == 0
    power, odds = np.exp(-zero.exact), np.exp(-abs(logit))
    far = 40 if t is DOUBLE else 32
    shift = np.maximum(np.minimum(-logit, zero.exact) - far, 0)
    lost = t.vanishing / (np.exp(np.minimum(logit, 0) + shift) + np.exp(shift - zero.exact))
    ratio = -np.expm1(-zero.exact) / (np.exp(logit) + power)
    share, inflation = power / (np.exp(logit) + power), np.exp(logit) / (np.exp(logit) + power)
    zero_error = zero.error + 2 * t.unit * np.where((logit < -far) & (zero.exact > far), zero.exact - logit, 0)
    bend = share * inflation * zero_error
    logs, inflated = np.log1p(odds), np.log1p(ratio)
    counted = np.maximum(logit, 0) + logs + parts["value"].exact
    value = np.where(is_zero, inflated, counted)
    error = np.where(
        is_zero,
        share * zero_error + t.unit * (20 * ratio / (1 + ratio) + 8 * inflated),
        parts["value"].error + t.unit * ((EXP + LOG1P + 1) * logs + 2 * abs(counted)),
    )
    results = {"value": Part(value, error + t.vanishing)}
    for name in ("log_mean", "log_theta"):
        part = parts[name]
        error = share * part.error + abs(part.exact) * (12 * t.unit * share + bend + lost)
        results[name] = Part(np.where(is_zero, share, 1) * part.exact, np.where(is_zero, error, part.error))
    by_logit = np.where(is_zero, -ratio, 1) * sigmoid(logit)
    error = t.unit * np.where(is_zero, 20, EXP + 3) * abs(by_logit) + np.where(is_zero, bend + lost, 0) + t.vanishing
    results["zero_logits"] = Part(by_logit, error)
    part = parts["target"]
    results["target"] = Part(np.where(is_zero, 0, part.exact), np.where(is_zero, 0, part.error))
    yield from count_results(t, g, results)


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
