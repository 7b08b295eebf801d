"""The likelihoods of counts, levels and real numbers: what distribution each is, integers as targets, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import fastvae
from fastvae import reference

COUNT_TYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]
INF = math.inf


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("functions", [fastvae, reference], ids=["operators", "reference"])
def test_likelihoods_are_scipys_probabilities(functions: object) -> None:
    a, b = 2 * normal(2, 40, 1)
    counts = torch.randint(0, 30, (40, 1))
    mu, theta, x = a.exp().numpy(), b.exp().numpy(), counts.numpy()
    total = counts + torch.randint(0, 9, (40, 1))
    unit = torch.rand(40, 1, dtype=torch.float64)
    m, u = a.numpy(), unit.numpy()
    for actual, expected in (
        (functions.poisson_nll(a, counts), stats.poisson.logpmf(x, mu)),
        (functions.binomial_nll(a, counts, total), stats.binom.logpmf(x, total.numpy(), special.expit(a.numpy()))),
        (functions.negative_binomial_nll(a, b, counts), stats.nbinom.logpmf(x, theta, theta / (theta + mu))),
        (functions.laplace_nll(a, unit, log_scale=b), stats.laplace.logpdf(u, m, theta)),
        (functions.laplace_nll(a, unit, scale=0.3), stats.laplace.logpdf(u, m, 0.3)),
    ):
        np.testing.assert_allclose(actual.numpy(), -expected[:, 0], rtol=1e-9, atol=1e-9)


def test_negative_binomial_nll_is_torchs_with_total_count_theta() -> None:
    a, b = normal(2, 5, 7)
    counts = torch.randint(0, 9, (5, 7))
    theirs = torch.distributions.NegativeBinomial(b.exp(), logits=a - b)
    torch.testing.assert_close(fastvae.negative_binomial_nll(a, b, counts), -theirs.log_prob(counts).sum(1))


def test_negative_binomial_nll_with_zero_logits_is_a_mixture() -> None:
    a, b, z = normal(3, 6, 9)
    counts = torch.arange(54).reshape(6, 9) % 4
    probability = torch.sigmoid(-z) * torch.exp(
        torch.distributions.NegativeBinomial(b.exp(), logits=a - b).log_prob(counts)
    )
    expected = -torch.log(probability + torch.where(counts == 0, torch.sigmoid(z), 0)).sum(1)
    torch.testing.assert_close(fastvae.negative_binomial_nll(a, b, counts, zero_logits=z), expected)


def test_negative_binomial_nll_tends_to_poisson() -> None:
    a, counts = normal(5, 7), torch.randint(0, 9, (5, 7))
    expected = fastvae.poisson_nll(a, counts)
    for b in (40.0, 200.0, INF):
        theta = torch.tensor(b, dtype=torch.float64)
        torch.testing.assert_close(fastvae.negative_binomial_nll(a, theta, counts), expected)


@pytest.mark.parametrize("functions", [fastvae, reference], ids=["operators", "reference"])
@pytest.mark.parametrize("logit", [-30.0, -1.0, -1e-3, 0.0, 1e-8, 0.999, 1.001, 5.0, 80.0])
def test_continuous_bernoulli_nll_is_a_density_of_integral_1(functions: object, logit: float) -> None:
    x, weight = np.polynomial.legendre.leggauss(200)
    x, weight = torch.from_numpy((x + 1) / 2), torch.from_numpy(weight / 2)
    density = torch.exp(-functions.continuous_bernoulli_nll(torch.full_like(x, logit), x))
    assert float((density * weight).sum()) == pytest.approx(1, rel=1e-10)
    # The mean, which is the derivative at x = 0
    logits = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    functions.continuous_bernoulli_nll(logits, torch.zeros(1)).sum().backward()
    assert float(logits.grad) == pytest.approx(float((density * weight * x).sum()), rel=1e-10)


@pytest.mark.parametrize("functions", [fastvae, reference], ids=["operators", "reference"])
@pytest.mark.parametrize("log_scale", [-8.0, -4.0, 0.0, 3.0])
def test_discretized_logistic_nll_is_the_probability_of_256_levels(functions: object, log_scale: float) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    mean = torch.full((256,), 0.37, dtype=torch.float64)
    nll = functions.discretized_logistic_nll(mean, torch.tensor(log_scale, dtype=torch.float64), levels)
    assert float(torch.exp(-nll).sum()) == pytest.approx(1, rel=1e-10)
    scale = 255 * math.exp(log_scale)
    for level in (0, 1, 94, 95, 255):
        ends = (-INF if level == 0 else level - 0.5, INF if level == 255 else level + 0.5)
        expected, _ = integrate.quad(lambda x: stats.logistic.pdf(x, 255 * 0.37, scale), *ends)
        if expected > 1e-6:
            assert float(nll[level]) == pytest.approx(-math.log(expected), rel=1e-5)


def test_discretized_logistic_nll_far_from_the_mean_is_no_difference_of_sigmoids() -> None:
    """In float32 both sigmoids are 1 there, and their difference is 0."""
    mean, log_scale = torch.zeros(1, 1, requires_grad=True), torch.full((1, 1), -6.0, requires_grad=True)
    nll = fastvae.discretized_logistic_nll(mean, log_scale, torch.full((1, 1), 200, dtype=torch.uint8))
    width = math.exp(6) / 255
    expected = 199.5 * width - math.log(-math.expm1(-width))
    assert nll.item() == pytest.approx(expected, rel=1e-6)
    nll.sum().backward()
    assert mean.grad.item() == pytest.approx(-255 * width, rel=1e-6)


@pytest.mark.parametrize("dtype", COUNT_TYPES, ids=str)
def test_counts_in_integers_are_those_in_floating_point(dtype: torch.dtype) -> None:
    """A uint8 is no fraction of 255 here."""
    counts = torch.tensor([[0, 1, 2, 3, 200], [5, 0, 0, 17, 255]])
    z, b = torch.randn(2, 5), torch.randn(5)
    for call in (
        lambda a, x: fastvae.poisson_nll(a, x),
        lambda a, x: fastvae.binomial_nll(a, x, 255),
        lambda a, x: fastvae.binomial_nll(a, x, torch.full((5,), 300).to(torch.int16)),
        lambda a, x: fastvae.negative_binomial_nll(a, b, x),
        lambda a, x: fastvae.negative_binomial_nll(a, b, x, zero_logits=z),
    ):
        a = torch.randn(2, 5, requires_grad=True)
        nll, expected = call(a, counts.to(dtype)), call(a, counts.float())
        assert torch.equal(nll, expected)
        weight = torch.tensor([1.0, 2.0])
        (grad,), (expected_grad,) = (torch.autograd.grad((t * weight).sum(), a) for t in (nll, expected))
        assert torch.equal(grad, expected_grad)


def test_binomial_nll_of_total_1_is_the_cross_entropy() -> None:
    logits, target = torch.randn(3, 8), torch.randint(0, 2, (3, 8))
    expected = fastvae.sigmoid_cross_entropy(logits, target.bool())
    torch.testing.assert_close(fastvae.binomial_nll(logits, target, 1), expected)


def test_binomial_nll_takes_its_total_in_every_shape_and_dtype() -> None:
    logits, target = torch.randn(2, 3, 4, requires_grad=True), torch.randint(0, 5, (3, 4))
    for shape in ((), (4,), (3, 1), (3, 4), (2, 3, 4)):
        for dtype in (*COUNT_TYPES, torch.float32):
            total = torch.randint(5, 9, shape).to(dtype)
            nll = fastvae.binomial_nll(logits, target, total)
            torch.testing.assert_close(nll, reference.binomial_nll(logits, target, total))
            assert nll.dtype == torch.float32
    assert fastvae.binomial_nll(logits, target, torch.tensor(9.0, dtype=torch.float64)).dtype == torch.float64


def test_negative_binomial_nll_gives_theta_of_columns_a_gradient_of_its_own_shape() -> None:
    """Nothing of the size of the batch is made for it."""
    a = torch.randn(64, 16384)
    b = torch.randn(16384, requires_grad=True)
    counts = torch.poisson(a.exp()).to(torch.int16)
    with torch.profiler.profile(profile_memory=True) as profile:
        fastvae.negative_binomial_nll(a, b, counts).sum().backward()
    assert b.grad.shape == b.shape
    # One row for each of the parts that are summed side by side, in double.
    assert max(e.self_cpu_memory_usage for e in profile.events()) <= 8 * a.numel() // 4
    wide = b.detach().double().requires_grad_()
    reference.negative_binomial_nll(a.double(), wide, counts).sum().backward()
    torch.testing.assert_close(b.grad.double(), wide.grad, rtol=1e-5, atol=1e-4)


def limits(functions: object) -> None:
    def t(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[:, None]

    def check(actual: torch.Tensor, *expected: float) -> None:
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype))

    check(functions.poisson_nll(t(-INF, -INF, INF, 0), t(0, 1, 3, 0)), 0, INF, INF, 1)
    check(functions.binomial_nll(t(INF, -INF, INF, -INF), t(4, 0, 3, 1), 4), 0, 0, INF, INF)
    check(functions.continuous_bernoulli_nll(t(INF, INF, -INF, -INF, 0), t(1, 0.5, 0, 1, 0.3)), -INF, INF, -INF, INF, 0)
    a, b, x = t(-INF, -INF, INF, 0, 0, 0), t(0, 0, 0, INF, -INF, INF), t(0, 1, 2, 3, 1, 0)
    check(functions.negative_binomial_nll(a, b, x), 0, INF, INF, 1 + math.log(6), INF, 1)
    zeros = functions.negative_binomial_nll(t(0, 0, 0), t(0, 0, 0), t(0, 0, 1), zero_logits=t(INF, -INF, INF))
    check(zeros, 0, math.log(2), INF)
    for call in (
        lambda n, z: functions.poisson_nll(n, z),
        lambda n, z: functions.binomial_nll(n, z, 3),
        lambda n, z: functions.continuous_bernoulli_nll(n, z),
        lambda n, z: functions.laplace_nll(n, z, scale=1.0),
        lambda n, z: functions.discretized_logistic_nll(n, z, z.byte()),
        lambda n, z: functions.negative_binomial_nll(n, z, z),
        lambda n, z: functions.negative_binomial_nll(z, z, z, zero_logits=n),
    ):
        assert call(t(math.nan), t(0)).isnan().all()


def test_likelihoods_have_their_limits() -> None:
    limits(fastvae)


def test_likelihoods_of_the_reference_have_their_limits() -> None:
    limits(reference)


def test_transformed_likelihoods_are_the_reference() -> None:
    a, b, z = normal(3, 4, 6)
    counts = torch.randint(0, 5, (4, 6))
    levels = counts.byte() * 51

    def row(a: torch.Tensor, b: torch.Tensor, z: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (
            fastvae.poisson_nll(a[None], x[None])
            + fastvae.binomial_nll(a[None], x[None], 7)
            + fastvae.negative_binomial_nll(a[None], b, x[None], zero_logits=z[None])
            + fastvae.laplace_nll(a[None], z[None], log_scale=b)
            + fastvae.continuous_bernoulli_nll(a[None], z[None].sigmoid())
            + fastvae.discretized_logistic_nll(a[None], b, y[None])
        )[0]

    tensors = (a, b, z, counts, levels)
    torch.testing.assert_close(
        torch.func.vmap(row)(*tensors), torch.stack([row(*r) for r in zip(*tensors, strict=True)])
    )


@pytest.mark.parametrize("functions", [fastvae, reference], ids=["operators", "reference"])
def test_multinomial_nll_is_scipys_probability(functions: object) -> None:
    logits, counts = 2 * normal(6, 9), torch.randint(0, 9, (6, 9))
    shares, x = torch.softmax(logits, -1).numpy(), counts.numpy()
    expected = -stats.multinomial.logpmf(x, x.sum(1), shares / shares.sum(1, keepdims=True))
    actual = functions.multinomial_nll(logits, counts, constant=True)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)
    without = functions.multinomial_nll(logits, counts)
    coefficient = special.gammaln(x.sum(1) + 1) - special.gammaln(x + 1).sum(1)
    np.testing.assert_allclose((without - actual).numpy(), coefficient, rtol=1e-9, atol=1e-9)
    for reduction in ("mean", "sum"):
        several = torch.stack([logits, -logits])
        rows = functions.multinomial_nll(several, counts, constant=True)
        total = functions.multinomial_nll(several, counts, constant=True, reduction=reduction)
        torch.testing.assert_close(total, getattr(rows, reduction)())


def test_the_multinomial_coefficient_is_part_of_the_derivative_by_counts() -> None:
    logits, counts = normal(2, 600, 900), (5 * torch.rand(600, 900, dtype=torch.float64)).requires_grad_()
    for event in ((900,), (2, 450), (2, 3, 150)):  # in a few parts
        shaped, x = logits.reshape(2, 600, *event), counts.reshape(600, *event)
        found = []
        for functions in (fastvae, reference):
            nll = functions.multinomial_nll(shaped, x, constant=True)
            found.append([nll, *torch.autograd.grad(nll[0].sum(), counts)])
        torch.testing.assert_close(*found)


def test_the_multinomial_coefficient_is_exported_for_any_batch() -> None:
    class Loss(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
            return fastvae.linear_multinomial_nll(hidden, weight, None, counts, constant=True)

    def arguments(batch: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(batch, 3), torch.randn(9, 3), torch.randint(0, 5, (batch, 9))

    rows = {0: torch.export.Dim("rows")}
    exported = torch.export.export(Loss(), arguments(6), dynamic_shapes=(rows, None, rows))
    many = arguments(40)
    torch.testing.assert_close(exported.module()(*many), Loss()(*many))


def test_multinomial_nll_of_one_item_is_the_cross_entropy() -> None:
    logits, classes = torch.randn(5, 7), torch.randint(0, 7, (5,))
    target = torch.nn.functional.one_hot(classes, 7)
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(fastvae.multinomial_nll(logits, target), expected)


@pytest.mark.parametrize("event", [(7,), (2, 3), (2500,), ()], ids=str)
@pytest.mark.parametrize("zeros", [False, True])
def test_negative_binomial_nll_of_a_library_is_that_of_its_shares(event: tuple[int, ...], zeros: bool) -> None:
    logits, z, theta, library = normal(2, 4, *event), normal(2, 4, *event), normal(*event), normal(4) + 7
    counts = torch.randint(0, 30, (4, *event))
    by_row = library.reshape(4, *[1] * len(event))
    shares = torch.log_softmax(logits.flatten(2), -1).reshape(logits.shape) if event else torch.zeros(2, 4)
    options = {"zero_logits": z} if zeros else {}
    actual = fastvae.negative_binomial_nll(logits, theta, counts, log_library=library, **options)
    expected = fastvae.negative_binomial_nll(by_row + shares, theta, counts, **options)
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(fastvae.negative_binomial_nll(logits, theta, counts, **options), expected)


def test_shares_have_their_limits() -> None:
    """Of one infinite logit, of logits of 1e4, of masked items (-inf) and of a library of no molecules."""
    counts = torch.tensor([[2, 0, 0]])
    for row, expected in (
        ([INF, 0.0, -INF], 0.0),
        ([1e4, -1e4, 0.0], 0.0),
        ([0.0, -INF, 0.0], 2 * math.log(2)),
        ([-INF, 0.0, 0.0], INF),
        ([INF, INF, 0.0], 2 * math.log(2)),
    ):
        logits = torch.tensor([row], requires_grad=True)
        nll = fastvae.multinomial_nll(logits, counts)
        assert nll.item() == pytest.approx(expected, rel=1e-6)
        (gradient,) = torch.autograd.grad(nll.sum(), logits)
        share = torch.softmax(torch.where(logits.isinf() & (logits > 0), 1e30, logits), -1)
        torch.testing.assert_close(gradient, 2 * share - counts)
        of_library = fastvae.negative_binomial_nll(logits, torch.zeros(3), counts, log_library=torch.ones(1))
        assert not of_library.isnan().any()
        assert not torch.autograd.grad(of_library.sum(), logits)[0].isnan().any()
    logits, empty = torch.randn(1, 3, requires_grad=True), torch.tensor([-INF], requires_grad=True)
    nll = fastvae.negative_binomial_nll(logits, torch.zeros(3), torch.zeros(1, 3), log_library=empty)
    assert nll.item() == pytest.approx(0, abs=1e-30)
    assert all(not g.isnan().any() for g in torch.autograd.grad(nll.sum(), [logits, empty]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("columns", [3, 40])
def test_shares_of_nan_are_nan(columns: int, count: int, dtype: torch.dtype) -> None:
    """Of rows without counts too, as of the others: a loss of 0 would hide a network that broke."""
    hidden = torch.tensor([[1.0], [math.nan]], dtype=dtype)
    weight = torch.ones(columns, 1, dtype=dtype)
    logits = torch.nn.functional.linear(hidden, weight)
    counts, theta = torch.full((2, columns), count), torch.ones(columns, dtype=dtype)
    for nll in (
        fastvae.multinomial_nll(logits, counts),
        fastvae.multinomial_nll(logits, counts.float().to_sparse_csr()),
        fastvae.linear_multinomial_nll(hidden, weight, None, counts),
        fastvae.linear_multinomial_nll(hidden, weight, None, counts.float().to_sparse_csr()),
        fastvae.negative_binomial_nll(logits, theta, counts, log_library=torch.ones(2)),
        fastvae.negative_binomial_nll(logits, theta, counts.float().to_sparse_csr(), log_library=torch.ones(2)),
        fastvae.reference.multinomial_nll(logits, counts),
    ):
        assert nll.isnan().tolist() == [False, True]


def test_logits_of_shares_may_be_large() -> None:
    """A common offset of 1e4 costs no accuracy: the largest one is taken away before anything is rounded."""
    logits, counts = torch.randn(4, 300), torch.randint(0, 5, (4, 300))
    exact = reference.multinomial_nll((logits + 1e4).double() - 1e4, counts)
    torch.testing.assert_close(fastvae.multinomial_nll(logits + 1e4, counts).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_tensor_of_shares_is_made(reduction: str) -> None:
    logits = torch.randn(4000, 1000, requires_grad=True)
    theta, library = torch.randn(1000, requires_grad=True), torch.randn(4000, requires_grad=True)
    counts = torch.zeros(4000, 1000, dtype=torch.uint8)
    for call in (
        lambda: fastvae.multinomial_nll(logits, counts, reduction=reduction),
        lambda: fastvae.multinomial_nll(logits, counts, constant=True, reduction=reduction),
        lambda: fastvae.negative_binomial_nll(logits, theta, counts, log_library=library, reduction=reduction),
    ):
        logits.grad = None
        with torch.profiler.profile(profile_memory=True) as profile:
            call().sum().backward()
        sizes = sorted(e.self_cpu_memory_usage for e in profile.events())
        assert sizes[-1] <= logits.nbytes  # the gradient
        assert sizes[-2] <= 4 * 2**20  # and scratch memory for a part of the rows
