"""The elementary functions of simd_math.h and the conversions of convert.h, on the instruction set in use.

test_cpu_isa.py runs this file on the other sets.
"""

from __future__ import annotations

import math

import accuracy
import elementary
import numpy as np
import pytest
import torch

import fastvae
from fastvae import _hooks

each_function = pytest.mark.parametrize("function", elementary.FUNCTIONS, ids=lambda f: f.name)


def assert_within_bounds(function: elementary.Function, found: dict[str, float]) -> None:
    for name, error in found.items():
        assert error <= getattr(function, name), f"{function.name}: {name} {error}"


@each_function
def test_elementary_function_is_within_its_bound_and_as_stated(function: elementary.Function) -> None:
    found = elementary.worst(function, stride=67 if function.ranges else 4099)  # primes: no digit is favoured
    assert_within_bounds(function, found)
    if torch.ops.fastvae.cpu_capability() in accuracy.figures():
        stated = accuracy.figures()[torch.ops.fastvae.cpu_capability()]["functions"][function.name]
        for name, error in found.items():  # the page's figures are those of every float, these of a few
            assert 0.8 * stated[name] <= error <= stated[name]


@pytest.mark.slow
@each_function
def test_elementary_function_is_within_its_bound_for_every_float(function: elementary.Function) -> None:
    assert_within_bounds(function, elementary.worst(function, function.every))


@pytest.mark.parametrize(("name", "sign", "vanishing"), [("exp", 1, 2.0**-125), ("exp_minus", -1, 2.0**-126)])
def test_exponentials_have_their_limits(name: str, sign: int, vanishing: float) -> None:
    # Where the limit lies is a float: one of the two neighbours of the exact place.
    edge = sign * np.log(vanishing)
    x = np.array([edge - sign * 1e-5, sign * -104, sign * -1e30, sign * -np.inf, edge + sign * 1e-5], dtype=np.float32)
    y = _hooks.evaluate(name, x)
    assert y[:4].tolist() == [0, 0, 0, 0]
    assert y[4] >= vanishing
    assert np.isnan(_hooks.evaluate(name, np.array([np.nan], dtype=np.float32))).all()
    assert _hooks.evaluate("exp", np.array([88.72284, 1e30, np.inf], dtype=np.float32)).tolist() == [np.inf] * 3


def test_what_is_left_of_an_exponential_has_its_limits() -> None:
    x = np.array([np.inf, 1e30, 88.72284, -87, -1e30, -np.inf, 0, 1e-30], dtype=np.float32)
    inf = np.inf
    for name, limits in {
        "exponential_of": [inf, inf, inf, 0, 0, 0, 1, 1],
        "exp_less_one": [inf, inf, inf, -1, -1, -1, 0, x[-1]],
        "exp_less_line": [inf, inf, inf, 86, -x[4], inf, 0, 0],
    }.items():
        assert _hooks.evaluate(name, x).tolist() == limits
        assert np.isnan(_hooks.evaluate(name, np.array([np.nan], dtype=np.float32))).all()
        # Up to where it overflows, though 2^n there does.
        largest = np.float32(88.72283)
        assert np.isclose(_hooks.evaluate(name, np.array([largest])), np.exp(float(largest)), rtol=1e-6)


def test_log1p_keeps_nan_and_exponential_variates_are_positive() -> None:
    assert np.isnan(_hooks.evaluate("log1p", np.array([np.nan], dtype=np.float32))).all()
    words = np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], dtype=np.uint32)
    assert (_hooks.evaluate("exponential", words.view(np.float32)) > 0).all()


def test_unknown_function_is_named() -> None:
    with pytest.raises(ValueError, match="no elementary function named tan"):
        _hooks.evaluate("tan", np.zeros(1, dtype=np.float32))


def copied(x: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """x, read by a kernel that computes in float32 and stored as another dtype: the target's gradient is -logits."""
    target = torch.zeros(x.shape, dtype=stored, requires_grad=True)
    loss = fastvae.sigmoid_cross_entropy(x, target)
    (grad,) = torch.autograd.grad(loss, target, torch.full_like(loss, -1))
    return grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_read_exactly_and_stored_to_the_nearest(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    wide = copied(every, torch.float32)
    assert torch.equal(wide.nan_to_num(7), every.float().nan_to_num(7))
    assert torch.equal(wide.isnan(), every.isnan())
    # Every 4099th float; what lies between two neighbours, the largest and the next power of two among them, and the
    # floats beside that.
    power = 2.0 ** (16 if dtype == torch.float16 else 128)
    numbers = every.double().nan_to_num(nan=0, posinf=power, neginf=-power)
    ties = ((numbers[:, 1:] + numbers[:, :-1]) / 2).float().view(torch.int32)
    some = torch.arange(-(2**31), 2**31, 4099).to(torch.int32)[None]
    floats = torch.cat([some, ties - 1, ties, ties + 1], 1).view(torch.float32)
    stored = copied(floats, dtype)
    assert torch.equal(stored.nan_to_num(7), floats.to(dtype).nan_to_num(7))
    assert torch.equal(stored.isnan(), floats.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bytes_are_read_as_255ths(dtype: torch.dtype) -> None:
    """Of sure zeros, d/dlogits is -x."""
    pixels = torch.arange(256, dtype=torch.uint8)[None]
    logits = torch.full(pixels.shape, -torch.inf, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(fastvae.sigmoid_cross_entropy(logits, pixels), logits, torch.ones(1, dtype=dtype))
    assert torch.equal(-grad, pixels.to(dtype) / 255)


@pytest.mark.parametrize("flush", [False, True])
def test_every_float16_is_read_exactly(flush: bool) -> None:
    """Also where a thread takes numbers below 2^-126 for 0: the smallest float16 is 2^-24."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).view(256, 256)
    expected = halves.float()
    before = torch.ops.fastvae.set_flush_denormal([flush])
    try:
        # A sigma of 0, so that a sample is its mean.
        z = fastvae.reparameterize(halves, torch.full(halves.shape, -math.inf))
    finally:
        torch.ops.fastvae.set_flush_denormal(before)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, expected, rtol=0, atol=0, equal_nan=True)
