"""The elementary functions of simd_math.h over bit patterns: what each should be, and the worst error found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tolerances
from numpy.typing import NDArray

from fastvae import _hooks

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
CHUNK = 2**20
TINY = 2.0**-27  # what lies nearer to 0 gives 1, 1/2 or itself


@dataclass(frozen=True)
class Function:
    """Arguments are in `ranges`, from nearest to farthest from 0; of 32-bit words, the first `words` are taken.

    Bounds: of the error in units of the last place, and in u relative to the result; or of the error in u, absolutely.
    An exhaustive search takes one in `every` patterns.
    """

    name: str
    exact: Callable[[Doubles], Doubles]
    ranges: tuple[tuple[float, float], ...] = ()
    ulp: float | None = None
    relative: float | None = None
    absolute: float | None = None
    words: int = 2**32
    every: int = 1


def sigmoid(x: Doubles) -> Doubles:
    odds = np.exp(-np.abs(x))
    return np.where(x < 0, odds, 1) / (1 + odds)


def exponential(word: Doubles) -> Doubles:
    """-log((word + 1/2) / 2^32), near 1 by the exact complement."""
    half = word + 0.5
    return np.where(word >= 2.0**31, -np.log1p(half / 2.0**32 - 1), -np.log(half / 2.0**32))


def turn(function: np.ufunc) -> Callable[[Doubles], Doubles]:
    return lambda word: function(2 * np.pi * (word / 2.0**32))


FUNCTIONS = [
    Function("exp", np.exp, ((TINY, 88.72283), (-TINY, -86.643390)), 2.5, tolerances.EXP),
    Function("exp_minus", lambda x: np.exp(-x), ((TINY, 87.336540),), 2.5, tolerances.EXP),
    Function("exponential_of", np.exp, ((TINY, 88.72283), (-TINY, -86.643390)), 1.1, 1.5),
    Function("exp_less_one", np.expm1, ((2.0**-60, 88.72283), (-(2.0**-60), -104)), 1.6, tolerances.EXP_LESS_ONE),
    Function(
        "exp_less_line",
        tolerances.exp_less_line,
        ((2.0**-60, 88.72283), (-(2.0**-60), -104)),
        2.3,
        tolerances.EXP_LESS_LINE,
    ),
    Function("log1p", np.log1p, ((2.0**-126, 2.0**64),), 1.6, tolerances.LOG1P),
    Function("sigmoid", sigmoid, ((TINY, 104), (-TINY, -87.336540)), 4, tolerances.EXP + 2),
    Function("exponential", exponential, (), 2.5, tolerances.EXPONENTIAL, every=3),
    # A quarter of a turn: the others are its mirror images, to the bit.
    Function("sin_turn", turn(np.sin), words=2**30, absolute=tolerances.SINGLE.turn),
    Function("cos_turn", turn(np.cos), words=2**30, absolute=tolerances.SINGLE.turn),
]


def arguments(function: Function, stride: int) -> Iterator[tuple[Floats, Doubles]]:
    """Every `stride`-th bit pattern, as the function takes it (words as a float's bits), and as a number."""
    for first, last in function.ranges:
        ends = np.array([first, last], dtype=np.float32).view(np.uint32).astype(np.int64)
        for start in range(ends[0], ends[1] + 1, CHUNK * stride):
            bits = np.arange(start, min(start + CHUNK * stride, ends[1] + 1), stride).astype(np.uint32)
            yield bits.view(np.float32), bits.view(np.float32).astype(np.float64)
    if not function.ranges:
        # Where the branches of `exponential` meet, and around each power of two.
        powers = [2**k + d for k in range(32) for d in (-1, 0, 1)]
        edges = np.array([0xB504F332, 0xB504F333, 0xB504F334, 2**32 - 2, 2**32 - 1, *powers])
        starts = range(0, function.words, CHUNK * stride)
        steps = (np.arange(start, min(start + CHUNK * stride, function.words), stride) for start in starts)
        for words in itertools.chain([edges], steps):
            yield words.astype(np.uint32).view(np.float32), words.astype(np.float64)


def worst(function: Function, stride: int) -> dict[str, float]:
    """The largest errors found, by the names of the bounds."""
    found = dict.fromkeys(("ulp", "relative", "absolute"), 0.0)
    for x, number in arguments(function, stride):
        exact = function.exact(number)
        error = np.abs(_hooks.evaluate(function.name, x).astype(np.float64) - exact)
        size = np.abs(exact)
        # A float in [2^(k-1), 2^k) has its last place at 2^(k-24).
        last_place = np.ldexp(1.0, np.maximum(np.frexp(size)[1], -125) - 24)
        found["absolute"] = max(found["absolute"], float(error.max()) * 2**24)
        if function.absolute is None:
            found["ulp"] = max(found["ulp"], float((error / last_place).max()))
            found["relative"] = max(found["relative"], float((error / size).max()) * 2**24)
    return {name: value for name, value in found.items() if getattr(function, name) is not None}
