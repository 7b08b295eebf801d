"""Objectives beyond the ELBO, on a model whose log-likelihood and posterior are known.

z ~ N(0, I), x = W z + b + s eps with orthogonal columns of W: p(x) = N(b, W W' + s^2 I), and the posterior of z is a
Gaussian with independent dimensions, so that q can be it.
"""

import math
from itertools import pairwise

import pytest
import torch

import fastvae
from fastvae.models import CVAE, VAE
from fastvae.objectives import (
    Schedule,
    free_bits,
    importance_weighted_bound,
    importance_weighted_loss,
    log_weights,
)

S = 0.7
GRADIENTS = ["iwae", "stl", "dreg"]


class LinearGaussian:
    """Everything in double: the figures below are exact up to rounding or sampling."""

    def __init__(self, latent_dim=2, dims=5):
        orthogonal, _ = torch.linalg.qr(torch.randn(dims, latent_dim, dtype=torch.float64))
        self.W = orthogonal * torch.linspace(0.6, 1.5, latent_dim, dtype=torch.float64)
        self.b = torch.randn(dims, dtype=torch.float64)
        self.prior_predictive = torch.distributions.MultivariateNormal(
            self.b, self.W @ self.W.T + S**2 * torch.eye(dims, dtype=torch.float64)
        )

    def posterior(self, x):
        """The moments mu and logvar of p(z|x), which has no covariances."""
        precision = 1 + self.W.square().sum(0) / S**2
        mu = (x - self.b) @ self.W / S**2 / precision
        return mu, -precision.log().expand_as(mu)

    def nll(self, x, z, b=None):
        """-log p(x|z), from torch's own distribution."""
        b = self.b if b is None else b
        return -torch.distributions.Normal(z @ self.W.T + b, S).log_prob(x).sum(-1)


@pytest.fixture
def model():
    return LinearGaussian()


@pytest.fixture
def x(model):
    return model.prior_predictive.sample((4,))


def off_posterior(model, x):
    """Moments of a q that is not the posterior, as leaves."""
    mu, logvar = model.posterior(x)
    return (mu + 0.3).requires_grad_(), (logvar + 0.4).clone().requires_grad_()


def test_weights_at_the_posterior_are_the_likelihood(model, x):
    mu, logvar = model.posterior(x)
    z = fastvae.reparameterize(mu, logvar, num_samples=7)
    log_w = log_weights(model.nll(x, z), z, mu, logvar)
    torch.testing.assert_close(log_w, model.prior_predictive.log_prob(x).expand(7, 4))
    torch.testing.assert_close(importance_weighted_bound(log_w), model.prior_predictive.log_prob(x))


def test_bound_of_one_sample_is_the_elbo_in_the_mean(model, x):
    mu, logvar = off_posterior(model, x)
    z = fastvae.reparameterize(mu, logvar, num_samples=200_000)
    log_w = log_weights(model.nll(x, z), z, mu, logvar).detach()
    elbo = -model.nll(x, z).mean(0) - fastvae.gaussian_kl(mu, logvar)
    error = (log_w + model.nll(x, z)).std(0) / len(log_w) ** 0.5
    assert ((log_w.mean(0) - elbo).abs() < 5 * error).all()


def test_bound_grows_with_samples_to_the_likelihood(model, x):
    mu, logvar = (t.detach() for t in off_posterior(model, x))
    z = fastvae.reparameterize(mu, logvar, num_samples=20_000)
    log_w = log_weights(model.nll(x, z), z, mu, logvar)
    # Of the same samples, in groups of groups: Jensen's inequality holds for each of the means.
    means = [
        torch.stack([importance_weighted_bound(w) for w in log_w.split(samples)]).mean(0)
        for samples in (1, 5, 50, 5000)
    ]
    for looser, tighter in pairwise(means):
        assert (looser < tighter).all()
    # 1/K sum w is unbiased: what is left is a bias of Var(w) / 2 K, and the error of four runs of 5000.
    torch.testing.assert_close(means[-1], model.prior_predictive.log_prob(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_are_those_of_their_formulas(model, x, gradient):
    """By hand: d log w / dz from autograd for each sample alone, weighted as the papers have it."""
    mu, logvar = off_posterior(model, x)
    b = model.b.clone().requires_grad_()
    torch.manual_seed(1)
    z = fastvae.reparameterize(mu, logvar, num_samples=6)
    loss = importance_weighted_loss(model.nll(x, z, b), z, mu, logvar, gradient=gradient)
    torch.testing.assert_close(-loss, importance_weighted_bound(log_weights(model.nll(x, z, b), z, mu, logvar)))
    actual = torch.autograd.grad(loss.sum(), [mu, logvar, b])

    sigma = (logvar / 2).exp().detach()
    eps = ((z - mu) / sigma).detach()
    expected = [torch.zeros_like(t) for t in (mu, logvar, b)]
    for i in range(len(x)):
        point, moments = z[:, i].detach().requires_grad_(), [mu[i].detach(), logvar[i].detach()]
        for m in moments:
            m.requires_grad_()
        q = torch.distributions.Normal(moments[0], (moments[1] / 2).exp())
        prior = torch.distributions.Normal(torch.zeros_like(moments[0]), 1)
        log_w = -model.nll(x[i], point, b) + prior.log_prob(point).sum(-1) - q.log_prob(point).sum(-1)
        v = log_w.detach().softmax(0)
        by_z = torch.autograd.grad(log_w.sum(), point, retain_graph=True)[0]
        weight = v**2 if gradient == "dreg" else v
        through_z = weight[:, None] * by_z
        by_mu, by_logvar = through_z.sum(0), (through_z * sigma[i] * eps[:, i] / 2).sum(0)
        direct = torch.autograd.grad((v * log_w).sum(), [*moments, b])
        if gradient == "iwae":
            by_mu, by_logvar = by_mu + direct[0], by_logvar + direct[1]
        expected[0][i], expected[1][i] = -by_mu, -by_logvar
        expected[2] -= direct[2]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def encoder_gradients(model, x, gradient, samples, draws, q=off_posterior):
    """Estimates of the gradient of one q, ``[draws, ...]``: that of each draw is in its own rows."""
    mu, logvar = (t.detach().repeat(draws, 1).requires_grad_() for t in q(model, x))
    x = x.repeat(draws, 1)
    z = fastvae.reparameterize(mu, logvar, num_samples=samples)
    loss = importance_weighted_loss(model.nll(x, z), z, mu, logvar, gradient=gradient).sum()
    return torch.cat([g.view(draws, -1) for g in torch.autograd.grad(loss, [mu, logvar])], dim=1)


def test_doubly_reparameterised_gradient_is_unbiased_and_steadier(model, x):
    draws = 20_000
    plain, doubly = (encoder_gradients(model, x, g, 8, draws) for g in ("iwae", "dreg"))
    error = ((plain.var(0) + doubly.var(0)) / draws).sqrt()
    assert ((plain.mean(0) - doubly.mean(0)).abs() < 5 * error).all()
    assert doubly.var(0).sum() < plain.var(0).sum()


def test_sticking_the_landing_is_unbiased_for_one_sample(model, x):
    draws = 20_000
    plain, stl = (encoder_gradients(model, x, g, 1, draws) for g in ("iwae", "stl"))
    error = ((plain.var(0) + stl.var(0)) / draws).sqrt()
    assert ((plain.mean(0) - stl.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_gradient_has_no_variance_at_the_posterior(model, x, gradient):
    exact = encoder_gradients(model, x, gradient, 5, 3, LinearGaussian.posterior)
    torch.testing.assert_close(exact, torch.zeros_like(exact), rtol=0, atol=1e-12)
    assert encoder_gradients(model, x, "iwae", 5, 3, LinearGaussian.posterior).abs().max() > 0.01


def test_elbo_of_a_trained_linear_vae_is_the_likelihood(model):
    """The whole way: a linear VAE that is given the posterior has the ELBO log p(x)."""
    vae = VAE(5, (), 2, likelihood="gaussian", sigma=S).double()
    with torch.no_grad():
        vae.decoder[0].weight.copy_(model.W)
        vae.decoder[0].bias.copy_(model.b)
        precision = 1 + model.W.square().sum(0) / S**2
        to_mu = (model.W / S**2 / precision).T
        vae.encoder[0].weight.copy_(torch.cat([to_mu, torch.zeros_like(to_mu)]))
        vae.encoder[0].bias.copy_(torch.cat([-to_mu @ model.b, -precision.log()]))
    x = model.prior_predictive.sample((50_000,))
    exact = model.prior_predictive.log_prob(x)
    loss = vae.loss(x)
    terms = fastvae.gaussian_nll(vae(x).decoded, x, sigma=S).detach()
    torch.testing.assert_close(-loss.loss, exact.mean(), rtol=0, atol=5 * float(terms.std()) / len(x) ** 0.5)
    torch.testing.assert_close(-vae.importance_weighted_loss(x[:9], 3).loss, exact[:9].mean())


def test_free_bits_is_a_floor_for_every_group():
    mu, logvar = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    mu[:, 1], logvar[:, 1] = 0.01, 0
    mu.requires_grad_()
    kl = (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).mean(0)
    for groups, parts in ((None, kl), (4, kl), (2, kl.view(2, 2).sum(1)), (1, kl.sum()[None])):
        for floor in (0.0, 0.4, 100.0):
            actual = free_bits(mu, logvar, floor, groups=groups)
            torch.testing.assert_close(actual, torch.stack([p.clamp_min(floor) for p in parts]).sum())
    (grad,) = torch.autograd.grad(free_bits(mu, logvar, 0.01), mu)
    assert not grad[:, 1].any()
    torch.testing.assert_close(grad[:, 0], mu.detach()[:, 0] / 6)


def test_vae_with_free_bits_reports_the_whole_kl():
    torch.manual_seed(0)
    vae, x = VAE(9, (8,), 3), torch.rand(7, 9)
    mu, logvar = vae.encode(x)
    torch.manual_seed(1)
    plain = vae.loss(x, beta=0.5)
    torch.manual_seed(1)
    loss = vae.loss(x, beta=0.5, free_bits=0.2)
    torch.testing.assert_close((loss.reconstruction, loss.kl), (plain.reconstruction, plain.kl))
    torch.testing.assert_close(loss.loss, plain.reconstruction + 0.5 * free_bits(mu, logvar, 0.2))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_models_bounds_are_those_of_their_weights(gradient):
    torch.manual_seed(0)
    x, condition = torch.rand(5, 9), torch.rand(5, 2)
    for vae, given in ((VAE(9, (8,), 3), ()), (CVAE(9, 2, (8,), 3), (condition,))):
        torch.manual_seed(1)
        loss = vae.importance_weighted_loss(x, *given, 4, gradient=gradient)
        mu, logvar = vae.encode(x, *given)
        torch.manual_seed(1)
        z = fastvae.reparameterize(mu, logvar, num_samples=4)
        nll = fastvae.reference.sigmoid_cross_entropy(vae.decode(z, *given), x)
        normal = torch.distributions.Normal
        log_w = normal(0, 1).log_prob(z).sum(-1) - normal(mu, (logvar / 2).exp()).log_prob(z).sum(-1) - nll
        torch.testing.assert_close(loss.loss, -(log_w.logsumexp(0) - math.log(4)).mean(), rtol=1e-5, atol=0)
        torch.testing.assert_close(loss.reconstruction, nll.mean(), rtol=1e-5, atol=0)
        torch.testing.assert_close(loss.kl, fastvae.reference.gaussian_kl(mu, logvar).mean(), rtol=1e-5, atol=0)
        loss.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_sigma_may_be_learned_or_scheduled():
    torch.manual_seed(0)
    x = torch.rand(6, 9)
    learned = VAE(9, (8,), 3, likelihood="gaussian", sigma=0.5, learn_sigma=True)
    torch.testing.assert_close(learned.sigma.detach(), torch.tensor(0.5))
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.01)
    for _ in range(600):
        optimizer.zero_grad()
        learned.loss(x, beta=0.0).loss.backward()
        optimizer.step()
    # Without KL the best sigma is the root of the mean squared error (Rybkin et al. 2020, eq. 4).
    error = torch.stack([learned(x).decoded - x for _ in range(50)]).square().mean().sqrt()
    torch.testing.assert_close(learned.sigma, error, rtol=0.2, atol=0)

    fixed = VAE(9, (8,), 3, likelihood="gaussian", sigma=0.5)
    other = VAE(9, (8,), 3, likelihood="gaussian", sigma=0.1)
    other.load_state_dict(fixed.state_dict())
    losses = []
    for vae, sigma in ((fixed, Schedule("linear", 0.5, 0.1, 10)(10)), (other, None), (fixed, torch.tensor(0.1))):
        torch.manual_seed(1)
        losses.append(vae.loss(x, sigma=sigma))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_schedules():
    linear = Schedule("linear", 0.0, 2.0, 10)
    assert [linear(step) for step in (0, 5, 10, 99)] == [0.0, 1.0, 2.0, 2.0]
    cosine = Schedule("cosine", 1.0, 0.0, 8)
    assert [cosine(step) for step in (0, 4, 8, 9)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert cosine(1) > 1 - 1 / 8  # flat at first
    cyclical = Schedule("cyclical", 0.0, 1.0, 100, cycles=4, rise=0.5)
    values = [cyclical(step) for step in range(101)]
    assert [step for step, value in enumerate(values) if value == 0] == [0, 25, 50, 75]
    assert [values[5], values[30]] == pytest.approx([0.4, 0.4])
    assert values[13] == values[24] == values[100] == 1


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_bounds_compile_to_the_same(gradient):
    torch.manual_seed(0)
    vae, x = VAE(9, (8,), 3), torch.rand(5, 9)

    def gradients(function):
        torch.manual_seed(1)
        loss = function(x, 4, gradient=gradient).loss
        return loss.detach(), *torch.autograd.grad(loss, list(vae.parameters()))

    compiled = torch.compile(vae.importance_weighted_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled), gradients(vae.importance_weighted_loss))


def test_errors_name_what_was_wrong(model, x):
    mu, logvar = (t.detach() for t in off_posterior(model, x))
    z = fastvae.reparameterize(mu, logvar, num_samples=3)
    nll = model.nll(x, z)
    with pytest.raises(ValueError, match="gradient must be 'iwae' or 'stl' or 'dreg', not 'reinforce'"):
        importance_weighted_loss(nll, z, mu, logvar, gradient="reinforce")
    for tensors in ((nll[0], z, mu, logvar), (nll, z[0], mu, logvar), (nll, z, mu[:1], logvar), (nll, z, mu, mu[0])):
        with pytest.raises(ValueError, match=r"reconstruction must be \[K, B\], z \[K, B, L\], mu and logvar \[B, L\]"):
            log_weights(*tensors)
    with pytest.raises(ValueError, match=r"log_w must be \[K, B\], K > 0, got \[0, 4\]"):
        importance_weighted_bound(torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"mu and logvar must be \[B, L\], B > 0, got \[0, 2\] and \[0, 2\]"):
        free_bits(mu[:0], logvar[:0], 0.1)
    with pytest.raises(ValueError, match="floor must be a finite number, 0 or more, not -1"):
        free_bits(mu, logvar, -1)
    with pytest.raises(ValueError, match="groups must divide the 2 dimensions of mu, got 3"):
        free_bits(mu, logvar, 0.1, groups=3)
    for wrong, message in (
        ({"kind": "sudden"}, "kind must be 'linear' or 'cosine' or 'cyclical', not 'sudden'"),
        ({"end": math.inf}, "end must be finite, not inf"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"cycles": 0}, "cycles must be at least 1, not 0"),
        ({"rise": 0}, r"rise must lie in \(0, 1\], not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Schedule(**{"kind": "linear", "start": 0.0, "end": 1.0, "steps": 5, **wrong})
