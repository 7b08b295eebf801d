"""The formulas of csrc/formulas.h in double, called as scalars, against the papers. No kernel, no loop, no torch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from fastvae import _hooks

F = _hooks.formulas
RANDOM = np.random.default_rng(7)
A, B, C, D = RANDOM.normal(size=(4, 1000)) * 2
U = RANDOM.random(1000)
# Doubles of order at most e^8, formed by fewer than ten roundings and two libm calls.
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


def derivative(function, x, step=1e-6):  # type: ignore[no-untyped-def]
    return (function(x + step) - function(x - step)) / (2 * step)


def test_sigmoid_cross_entropy_formula() -> None:
    # -log pmf of a Bernoulli variable, for targets between 0 and 1 as well
    expected = -(U * special.log_expit(A) + (1 - U) * special.log_expit(-A))
    np.testing.assert_allclose(F.sigmoid_cross_entropy(A, U), expected, **CLOSE)
    np.testing.assert_allclose(F.sigmoid(A), special.expit(A), **CLOSE)
    slope = derivative(lambda logit: F.sigmoid_cross_entropy(logit, U), A)
    np.testing.assert_allclose(F.sigmoid_cross_entropy_grad_logits(A, U), slope, rtol=1e-7, atol=1e-8)


def test_gaussian_kl_formula_is_an_integral() -> None:
    """KL(q || p) as the expectation under q of log q - log p, by Gauss-Hermite quadrature (exact here)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    for mu, logvar, prior_mu, prior_logvar in zip(A[:50], B[:50], C[:50], D[:50], strict=True):
        x = mu + np.exp(logvar / 2) * nodes
        q = stats.norm.logpdf(x, mu, np.exp(logvar / 2))
        for m, v, actual in (
            (0.0, 0.0, F.gaussian_kl(mu, logvar)),
            (prior_mu, prior_logvar, F.gaussian_kl_prior(mu, logvar, prior_mu, prior_logvar)),
        ):
            integral = np.sum(weights * (q - stats.norm.logpdf(x, m, np.exp(v / 2)))) / np.sqrt(2 * np.pi)
            assert actual == pytest.approx(integral, rel=1e-10, abs=1e-10)


def test_gaussian_kl_formula_gradients() -> None:
    np.testing.assert_allclose(
        F.gaussian_kl_grad_logvar(B), derivative(lambda v: F.gaussian_kl(A, v), B), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(
        F.gaussian_kl_grad_prior_logvar(A, B, C, D),
        derivative(lambda v: F.gaussian_kl_prior(A, B, C, v), D),
        rtol=1e-5,
        atol=1e-5,
    )


def test_gaussian_kl_formula_near_the_prior() -> None:
    """The first terms of the series: the next one is below 1e-16 of them."""
    x = np.array([1e-6, -1e-6, 1e-9, -1e-12, 3e-5, -3e-5])
    series = x**2 / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5)))
    np.testing.assert_allclose(F.gaussian_kl(0.0, x), series / 2, rtol=1e-15)
    np.testing.assert_allclose(F.gaussian_kl_prior(0.5, 1 + x, 0.5, 1.0), F.gaussian_kl(0.0, (1 + x) - 1), rtol=1e-15)
    np.testing.assert_allclose(F.gaussian_kl_grad_logvar(x), np.expm1(x) / 2, rtol=1e-15)


def test_sigmoid_cross_entropy_formula_of_far_logits() -> None:
    far = np.linspace(20, 700, 100)
    np.testing.assert_allclose(F.sigmoid_cross_entropy_grad_logits(far, 1.0), -special.expit(-far), rtol=1e-14)
    np.testing.assert_allclose(F.sigmoid_cross_entropy_grad_logits(-far, 0.0), special.expit(-far), rtol=1e-14)


def test_gaussian_nll_formula() -> None:
    np.testing.assert_allclose(F.gaussian_nll(A, B, C), -stats.norm.logpdf(C, A, np.exp(B / 2)), rtol=1e-12)
    for gradient, function, x in (
        (F.gaussian_nll_grad_mean(A, B, C), lambda m: F.gaussian_nll(m, B, C), A),
        (F.gaussian_nll_grad_logvar(A, B, C), lambda v: F.gaussian_nll(A, v, C), B),
    ):
        np.testing.assert_allclose(gradient, derivative(function, x), rtol=1e-5, atol=1e-5)


def test_reparameterize_formula() -> None:
    np.testing.assert_allclose(F.reparameterize(A, B, C), A + np.exp(B / 2) * C, **CLOSE)
    slope = derivative(lambda v: F.reparameterize(A, v, C), B)
    np.testing.assert_allclose(F.reparameterize_grad_logvar(B, C), slope, rtol=1e-6, atol=1e-7)


def test_formulas_have_their_limits() -> None:
    inf, nan = np.inf, np.nan
    assert F.sigmoid_cross_entropy([inf, -inf, inf, -inf], [1, 0, 0, 1]).tolist() == [0, 0, inf, inf]
    assert F.sigmoid([inf, -inf]).tolist() == [1, 0]
    assert F.gaussian_kl([0, 0, inf, -inf], [inf, -inf, 0, 0]).tolist() == [inf] * 4
    assert F.gaussian_kl_prior([0, 1, 0, 0], 0.0, 0.0, [inf, -inf, inf, -inf]).tolist() == [inf] * 4
    assert F.gaussian_nll([1, 0], [-inf, inf], 0.0).tolist() == [inf, inf]
    assert F.gaussian_nll(1.0, -inf, 1.0) == -inf  # a point mass on the target
    assert F.sigmoid_cross_entropy_grad_logits([inf, -inf, inf, -inf], [1, 0, 0, 1]).tolist() == [0, 0, 1, -1]
    assert F.gaussian_kl_grad_logvar([inf, -inf]).tolist() == [inf, -0.5]
    for value in (F.sigmoid_cross_entropy(nan, 0.0), F.gaussian_kl(nan, 0.0), F.gaussian_kl(0.0, nan)):
        assert np.isnan(value)
