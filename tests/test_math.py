"""The elementary functions of simd_math.h, over bit patterns, on the instruction set in use.

The bounds here are those in the comments there; test_cpu_isa.py runs this file on the other sets.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae import _C

# Every 4099th bit pattern (a prime: no stride of the mantissa is favoured), 10^6 floats.
PATTERNS = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)


def floats() -> NDArray[np.float32]:
    return PATTERNS.view(np.float32)


def ulps(actual: NDArray[np.float32], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors in units of the last place of the exact result as a float (of the smallest subnormal below)."""
    with np.errstate(over="ignore"):
        spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(actual.astype(np.float64) - exact) / spacing


def test_exp_is_within_3_ulp() -> None:
    x = floats()
    x = x[np.isfinite(x)]
    # Most patterns are tiny or huge: a second sweep covers where results are normal numbers.
    x = np.concatenate([x, np.linspace(-104, 89, 2_000_003, dtype=np.float32)])
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp(x.astype(np.float64))
    actual = _C.evaluate("exp", x)
    # Where the limit lies is a float: one of the two neighbours of -125 ln 2.
    assert (actual[exact < 2.0**-125 * (1 - 1e-5)] == 0).all()
    counts = (exact > 2.0**-125 * (1 + 1e-5)) & (exact < float(np.finfo(np.float32).max))
    assert ulps(actual[counts], exact[counts]).max() <= 3
    assert np.isposinf(actual[exact >= 2.0**128]).all()
    special = _C.evaluate("exp", np.array([np.inf, -np.inf, np.nan], dtype=np.float32))
    assert special[0] == np.inf
    assert special[1] == 0
    assert np.isnan(special[2])


def test_exp_minus_is_within_3_ulp() -> None:
    x = np.concatenate([floats(), np.linspace(0, 90, 2_000_003, dtype=np.float32)])
    x = x[x >= 0]
    exact = np.exp(-x.astype(np.float64))
    actual = _C.evaluate("exp_minus", x)
    assert (actual[exact < 2.0**-126 * (1 - 1e-5)] == 0).all()
    counts = exact > 2.0**-126 * (1 + 1e-5)
    assert ulps(actual[counts], exact[counts]).max() <= 3
    special = _C.evaluate("exp_minus", np.array([np.inf, np.nan], dtype=np.float32))
    assert special[0] == 0
    assert np.isnan(special[1])


def test_log1p_is_within_2_ulp() -> None:
    x = floats()
    x = np.concatenate([x[(x >= 0) & (x < 2.0**64)], np.linspace(0, 4, 1_000_003, dtype=np.float32)])
    assert ulps(_C.evaluate("log1p", x), np.log1p(x.astype(np.float64))).max() <= 2
    assert np.isnan(_C.evaluate("log1p", np.array([np.nan], dtype=np.float32))).all()


def test_sigmoid_is_within_4_ulp() -> None:
    x = np.concatenate([np.linspace(-103, 103, 1_000_003, dtype=np.float32), floats()])
    x = x[x > -87.3365]  # it vanishes below, as exp_minus does
    wide = x.astype(np.float64)
    tail = np.exp(-np.abs(wide))
    exact = np.where(wide < 0, tail, 1.0) / (1 + tail)
    assert ulps(_C.evaluate("sigmoid", x), exact).max() <= 4


def words() -> NDArray[np.uint32]:
    edges = np.array([0xB504F332, 0xB504F333, 0xB504F334, 2**32 - 2, 2**32 - 1], dtype=np.uint64)
    powers = np.array([2**k + d for k in range(32) for d in (-1, 0, 1)], dtype=np.uint64)
    return np.concatenate([PATTERNS, edges.astype(np.uint32), powers.astype(np.uint32)])


def test_exponential_is_within_4_ulp() -> None:
    w = words()
    wide = w.astype(np.float64)
    complement = (2.0**32 - 1 - wide + 0.5) / 2.0**32
    exact = np.where(wide >= 2.0**31, -np.log1p(-complement), -np.log((wide + 0.5) / 2.0**32))
    actual = _C.evaluate("exponential", w.view(np.float32))
    assert (actual > 0).all()
    assert ulps(actual, exact).max() <= 4


@pytest.mark.parametrize(("name", "function"), [("sin_turn", np.sin), ("cos_turn", np.cos)])
def test_sine_and_cosine_of_a_turn(name: str, function: np.ufunc) -> None:
    w = words()
    exact = function(2 * np.pi * (w.astype(np.float64) / 2.0**32))
    assert np.abs(_C.evaluate(name, w.view(np.float32)) - exact).max() <= 1.2e-7


def test_unknown_function_is_named() -> None:
    with pytest.raises(ValueError, match="no elementary function named tan"):
        _C.evaluate("tan", np.zeros(1, dtype=np.float32))
