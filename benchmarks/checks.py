"""Checks before a contender is timed: against the float64 reference, and for random results of mean and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Largest error, as a part of the largest expected value. Which kernels are exact to their last bits is the business of
# the tests; here a contender must not compute something else, or less. bfloat16 has 8 bits, and some contenders
# round after each of several operations.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


def close(what: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises AssertionError if ``actual`` is not ``expected`` up to ``tolerance`` of its largest value."""
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    error, scale = float((actual.detach().double() - expected).abs().max()), float(expected.abs().max())
    assert error <= tolerance * scale, f"{what}: off by {error} where the largest value is {scale}"


def all_close(what: str, actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected), f"{what}: {len(actual)} results, expected {len(expected)}"
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        close(f"{what}, result {i}", a, e, tolerance)


def standard(what: str, noise: Tensor) -> None:
    """Raises AssertionError if ``noise`` has not mean 0 and variance 1, up to six standard errors.

    The cube root of a chi-squared variable over its n degrees of freedom is nearly normal, with mean 1 - 2/9n and
    variance 2/9n (Wilson and Hilferty, 1931), also for the dozens of values that a small case draws. An error estimated
    from the values themselves is small exactly when their variance is, and refuses good noise.
    """
    n = noise.numel()
    spread = 2 / (9 * n)
    deviations = {
        "mean": float(noise.mean()) * math.sqrt(n),
        "variance": (float(noise.square().mean()) ** (1 / 3) - (1 - spread)) / math.sqrt(spread),
    }
    for name, deviation in deviations.items():
        assert abs(deviation) <= 6, f"{what}: {name} of the noise is off by {deviation} standard errors, at most 6"
