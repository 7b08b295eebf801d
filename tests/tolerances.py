"""Every tolerance of the operator tests, with its reason.

Kernels compute in float32 (float64 where an input is float64) and are compared with the float64 reference on the
same input values. u is the unit roundoff of the type computed in.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

# An elementwise formula: an exponential of 2 ulp, a logarithm of 2 ulp, a division and fewer than ten roundings, each
# relative to a part of the result that the test names.
FORMULA = 16

# Elements that a kernel adds up in the type it computes in; longer rows go on in double.
TILE = 1024
# Lanes of the narrowest instruction set: a sum of n terms is at most n / LANES additions deep, and a few to join them.
LANES = 4


def unit(dtype: torch.dtype) -> float:
    """Unit roundoff of the type that an input of this dtype is computed in."""
    return UNIT[torch.float64] if dtype == torch.float64 else UNIT[torch.float32]


def row_sum(magnitude: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Bound of a row sum: n additions in sequence are off by n u of the sum of the magnitudes (Higham, eq. 4.4)."""
    return (FORMULA + min(length, TILE) / LANES + 4) * unit(dtype) * magnitude


def elementwise(magnitude: Tensor, stored: torch.dtype) -> Tensor:
    """Bound of an elementwise result: the formula's own error, and one rounding to the dtype it is stored in.

    float16 also has a smallest subnormal, 2^-24, half of which a stored value may be off.
    """
    underflow = 2.0**-25 if stored == torch.float16 else 0.0
    return (FORMULA * unit(stored) + UNIT[stored]) * magnitude + underflow


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
