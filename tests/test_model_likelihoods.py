"""The models' likelihoods: against torch's distributions, trained, drawn from, evaluated and refused."""

import json
import math
from typing import get_args

import pytest
import torch
from counts import cells
from torch import distributions as d
from torch import nn

from fastvae import reference
from fastvae.evaluation import evaluate, log_likelihood
from fastvae.models import CVAE, VAE, Regressor
from fastvae.models.likelihood import LIKELIHOODS, LikelihoodName, make_likelihood

E, B, K = (3, 4), 6, 5
NAMES = get_args(LikelihoodName)
LIBRARY = {"negative-binomial", "zinb", "multinomial"}
OPTIONS = {"binomial": {"total": 16}, "gaussian": {"sigma": 0.3}, "laplace": {"sigma": 0.3}}
# In what the decoder gives: the loss is minus the logarithm of these.
DISTRIBUTIONS = {
    "bernoulli": lambda given, of: d.Bernoulli(logits=given, validate_args=False),
    "gaussian": lambda given, of: d.Normal(given, of.sigma),
    "laplace": lambda given, of: d.Laplace(given, of.sigma),
    "binomial": lambda given, of: d.Binomial(16, logits=given),
    "poisson": lambda given, of: d.Poisson(given.exp()),
    "continuous-bernoulli": lambda given, of: d.ContinuousBernoulli(logits=given),
}


def rows(name, number=B, seed=0, event=E):
    """Data ``[number, *event]`` that the likelihood is of, uint8 where it takes that, which depend on two factors."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(number, 2, generator=generator)
    weights = torch.randn(2, math.prod(event), generator=torch.Generator().manual_seed(99))
    shape = (number, *event)
    wave = (z @ weights).view(shape)
    kind = LIKELIHOODS[name]
    if name == "binomial":
        return torch.binomial(torch.full(shape, 16.0), wave.sigmoid(), generator=generator).byte()
    if kind.values == "counts":
        return torch.poisson((wave + 0.5).exp().clamp(max=60), generator=generator).byte()
    if kind.values == "finite":
        return wave + 0.1 * torch.randn(shape, generator=generator)
    return (wave.sigmoid() * 255).round().byte()


def output(name, event=E, dtype=torch.float64):
    made = make_likelihood(name, event, **{"sigma": 1.0, "learn_sigma": False, "total": None, **OPTIONS.get(name, {})})
    if hasattr(made, "log_theta"):
        nn.init.normal_(made.log_theta, generator=torch.Generator().manual_seed(5))
    return made.to(dtype)


def decoded(of, *leading, seed=1, dtype=torch.float64):
    return torch.randn(*leading, *of.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def expected_nll(name, of, given, x):
    """From ``given [..., outputs, *E]`` as torch's distributions have it, in double."""
    if name == "discretized-logistic":  # which torch has not
        mean, raw = given.unbind(-3)
        log_scale = nn.functional.softplus(raw + math.log(math.expm1(math.log(0.1) + 7.6))) - 7.6
        return reference.discretized_logistic_nll(mean, log_scale, x)
    x = x.double() if x.dtype == torch.uint8 and of.counts else x.double() / (255 if x.dtype == torch.uint8 else 1)
    library = x.flatten(1).sum(1).view(-1, 1, 1)
    if name == "multinomial":
        log_p = torch.stack(
            [
                d.Multinomial(int(row.sum()), logits=logits.flatten()).log_prob(row.flatten())
                for several in given.reshape(-1, B, *of.shape)
                for logits, row in zip(several, x, strict=True)
            ]
        )
        return -log_p.view(given.shape[: -len(of.shape)])
    if name in ("negative-binomial", "zinb"):
        logits, zeros = given.unbind(-3) if name == "zinb" else (given, None)
        mean = library * logits.flatten(-2).softmax(-1).view(logits.shape)
        log_p = d.NegativeBinomial(of.theta, logits=mean.log() - of.log_theta).log_prob(x)
        if zeros is not None:
            more, fewer = nn.functional.logsigmoid(zeros), nn.functional.logsigmoid(-zeros)
            log_p = torch.where(x == 0, torch.logaddexp(more, fewer + log_p), fewer + log_p)
    else:
        log_p = DISTRIBUTIONS[name](given, of).log_prob(x)
    return -log_p.flatten(-2).sum(-1)


def test_each_name_has_its_likelihood():
    assert set(NAMES) == set(LIKELIHOODS)
    assert {name for name, kind in LIKELIHOODS.items() if kind.has_library} == LIBRARY


@pytest.mark.parametrize("samples", [(), (K,)])
@pytest.mark.parametrize("name", NAMES)
def test_nll_is_that_of_torchs_distributions(name, samples):
    of, x = output(name), rows(name)
    given = decoded(of, *samples, B)
    expected = expected_nll(name, of, given, x)
    assert expected.shape == (*samples, B)
    torch.testing.assert_close(of.nll(given, x, reduction="none"), expected, rtol=1e-10, atol=1e-10)
    for reduction, reduced in (("mean", expected.mean()), ("sum", expected.sum())):
        torch.testing.assert_close(of.nll(given, x, reduction=reduction), reduced, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if LIKELIHOODS[name].values == "counts"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64])
def test_counts_may_have_any_dtype(name, dtype):
    of, x = output(name), rows(name)
    given = decoded(of, B)
    expected = of.nll(given, x, reduction="none")
    torch.testing.assert_close(of.nll(given, x.to(dtype), reduction="none"), expected)
    torch.testing.assert_close(of.to_input(x.to(dtype)).double(), of.to_input(x).double())


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_counts_above_those_of_half_precision_keep_their_sum(name):
    of = output(name, (2000,))
    x = torch.full((2, 2000), 31.0)  # the sum, 62,000, would be rounded to tens in float16, and to hundreds in bfloat16
    assert of.library(x.bfloat16()).tolist() == [62000, 62000]


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_mean_that_mean_says(name):
    of = output(name, dtype=torch.float32)
    given = decoded(of, 1, dtype=torch.float32)
    library = {"library": 40.0} if name in LIBRARY else {}
    mean = of.mean(given, **library)
    number = 40_000
    many = given.expand(number, *of.shape)
    draws = of.sample(many, generator=torch.Generator().manual_seed(0), **library)
    assert draws.shape == (number, *E)
    assert torch.equal(draws, of.sample(many, generator=torch.Generator().manual_seed(0), **library))
    error = draws.std(0) / math.sqrt(number)
    assert ((draws.mean(0) - mean[0]).abs() < 5 * error + 1e-6).all()
    if of.counts:
        assert torch.equal(draws, draws.round())
        assert draws.min() >= 0
    if name == "multinomial":
        assert (draws.flatten(1).sum(1) == 40).all()
    if of.values == "levels":
        assert set((draws * 255).round().unique().tolist()) <= set(range(256))


@pytest.mark.parametrize(
    "name", ["negative-binomial", "zinb", "laplace", "continuous-bernoulli", "discretized-logistic"]
)
def test_draws_are_of_the_likelihood(name):
    """The loss of draws is, in the mean, the loss that they are expected to have: a wrong shape would show."""
    of = output(name)
    given = decoded(of, 1).expand(20_000, *of.shape)
    library = {"library": 40.0} if name in LIBRARY else {}
    draws = of.sample(given, generator=torch.Generator().manual_seed(0), **library)
    if name in LIBRARY:
        # Shares of 40 whatever the sum of the draws: theirs is not the library.
        mean = of.mean(given, library=40.0)
        theta = of.theta
        variance = mean * (1 + mean / theta)
        if name == "zinb":
            stays = torch.sigmoid(-given[:, 1])
            inner = mean / stays
            variance = stays * (inner + inner**2 / theta + inner**2) - mean**2
        ratio = (draws.var(0) / variance[0]).flatten()
        assert (ratio - 1).abs().max() < 0.2
        assert abs(ratio.mean() - 1) < 0.03
        return
    if name == "laplace":
        expected = d.Laplace(given[0], 0.3).entropy().sum()
    elif name == "continuous-bernoulli":
        expected = d.ContinuousBernoulli(logits=given[0]).entropy().sum()
    else:
        levels = torch.arange(256, dtype=torch.uint8)
        each = torch.stack([expected_levels(of, given[:1], level) for level in levels])
        expected = -(each.exp() * each).sum()
        draws = (draws * 255).round().byte()
    losses = of.nll(given, draws, reduction="none")
    assert abs(losses.mean() - expected) < 5 * losses.std() / math.sqrt(len(losses))


def expected_levels(of, given, level):
    """Log-probability of one level, by element."""
    single = make_likelihood("discretized-logistic", (1,), 1.0, False, None)
    elements = given.flatten(2).transpose(0, 2)  # [D, 2, 1]
    return -single.nll(elements, level.expand(len(elements), 1), reduction="none")


@pytest.mark.parametrize("log_theta", [-200.0, -90.0, 0.0, 90.0, 200.0, math.inf])
@pytest.mark.parametrize("name", ["negative-binomial", "zinb"])
def test_draws_are_counts_however_small_or_large_theta_is(name, log_theta):
    of = output(name, dtype=torch.float32)
    of.log_theta.data.fill_(log_theta)
    given = torch.zeros(2000, *of.shape)
    draws = of.sample(given, library=1000.0, generator=torch.Generator().manual_seed(0))
    assert draws.min() >= 0
    if log_theta > 80:  # a Poisson distribution
        mean = of.mean(given[:1], library=1000.0)[0]
        assert (draws.mean(0) - mean).abs().max() < 5 * draws.std(0).max() / math.sqrt(2000)


def test_draws_of_rates_that_no_integer_holds_are_not_negative():
    of = output("poisson", dtype=torch.float32)
    rates = torch.tensor([40.0, 43.0, 44.0, 60.0, 88.0])[:, None, None].expand(5, *E)
    torch.testing.assert_close(of.sample(rates), rates.exp())


def test_mean_of_the_continuous_bernoulli_is_smooth_at_its_middle():
    of = make_likelihood("continuous-bernoulli", (1,), 1.0, False, None)
    logits = torch.tensor([-9.0, -3, -0.1001, -0.0999, -1e-8, 0, 1e-8, 0.0999, 0.1001, 3, 9])[:, None]
    expected = d.ContinuousBernoulli(logits=logits.double(), lims=(0.4999, 0.5001)).mean
    torch.testing.assert_close(of.mean(logits).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(of.mean(logits) + of.mean(-logits), torch.ones(11, 1))
    torch.testing.assert_close(of.mean(torch.tensor([[-1e4], [1e4]])), torch.tensor([[1e-4], [1 - 1e-4]]))


def trained(kind, name, steps=150, **options):
    torch.manual_seed(0)
    x = rows(name, 200)
    given = () if kind is VAE else (torch.arange(200) % 3,)
    classes = {} if kind is VAE else {"condition_classes": 3}
    sizes = {} if kind is Regressor else {"latent_dim": 2}
    model = kind(E, hidden=(32,), likelihood=name, **classes, **sizes, **OPTIONS.get(name, {}), **options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(x, *given)
        loss = loss if kind is Regressor else loss.loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), x, given, losses


@pytest.mark.parametrize("kind", [VAE, CVAE])
@pytest.mark.parametrize("name", NAMES)
def test_models_learn_with_each_likelihood(name, kind):
    model, x, given, losses = trained(kind, name)
    assert all(parameter.grad is not None for parameter in model.parameters())
    # More than the first steps bring, in which only means over all rows are learned.
    assert sum(losses[-10:]) / 10 < min(losses[:20])
    report = evaluate(model, x, *given, generator=torch.Generator().manual_seed(0))
    many = log_likelihood(model, x, *given, num_samples=50)
    assert report.elbo < many.log_likelihood + 0.1  # of the noise of one sample
    assert math.isfinite(many.log_likelihood)
    has_bits = name in ("bernoulli", "gaussian", "binomial", "discretized-logistic")
    for bits, nats in ((report.bits_per_dim, report.elbo), (many.bits_per_dim, many.log_likelihood)):
        assert bits == (pytest.approx(-nats / (12 * math.log(2))) if has_bits else None)
    ten = (x[:10], *(condition[:10] for condition in given))
    whole, few = (log_likelihood(model, *ten, num_samples=50, memory=memory) for memory in (2**24, 1))
    assert abs(few.log_likelihood - whole.log_likelihood) < 5 * (few.sampling_error + whole.sampling_error) + 0.1

    made = model.reconstruct(x, *given)
    assert made.shape == x.shape
    numbers = x.float() if model.output.counts or x.is_floating_point() else x / 255
    # Reconstructions tell more of x than the mean over all rows does.
    assert (made - numbers).square().mean() < (numbers.mean(0) - numbers).square().mean()
    if name in LIBRARY - {"zinb"}:
        torch.testing.assert_close(made.flatten(1).sum(1), numbers.flatten(1).sum(1))

    config = json.loads(json.dumps(model.config))
    again = kind(**config).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert torch.equal(again.reconstruct(x, *given), made)


@pytest.mark.parametrize("name", NAMES)
def test_models_sample_means_and_draws(name):
    for model, arguments, number in (
        (VAE(E, (8,), 2, likelihood=name, **OPTIONS.get(name, {})), (7,), 7),
        (CVAE(E, 4, (8,), 2, likelihood=name, **OPTIONS.get(name, {})), (torch.rand(7, 4),), 7),
    ):

        def sample(arguments=arguments, model=model, **options):
            return model.sample(*arguments, generator=torch.Generator().manual_seed(0), **options)

        means = sample()
        assert means.shape == (number, *E)
        if name in LIBRARY:
            if name != "zinb":
                torch.testing.assert_close(means.flatten(1).sum(1), torch.ones(number))
            torch.testing.assert_close(sample(library=30.0), 30 * means)
            each = torch.arange(1.0, number + 1)
            torch.testing.assert_close(sample(library=each), each.view(-1, 1, 1) * means)
            with pytest.raises(ValueError, match=f"^draws of the {name} likelihood need a library"):
                sample(mean=False)
            with pytest.raises(ValueError, match=r"^library has shape \[3\], expected \[7\] or a number$"):
                sample(library=torch.ones(3))
            with pytest.raises(ValueError, match=r"^library must be a finite number, 0 or more, not -1.0$"):
                sample(library=-1.0)
            for wrong in (-1.0, math.nan, math.inf):
                with pytest.raises(ValueError, match=f"^library must hold finite numbers, 0 or more, not {wrong}$"):
                    sample(library=torch.where(each == 3, wrong, each))
            draws = sample(library=each.long() * 10, mean=False)
        else:
            with pytest.raises(ValueError, match=f"^the {name} likelihood has no library, got 30.0$"):
                sample(library=30.0)
            draws = sample(mean=False)
        assert draws.shape == (number, *E)
        assert not torch.equal(draws, means)
        assert torch.equal(draws, sample(mean=False, **({"library": each.long() * 10} if name in LIBRARY else {})))
    # A code's samples are drawn with the library of its row.
    if name in LIBRARY:
        assert model.sample(torch.rand(7, 4), 3, library=each).shape == (3, 7, *E)


@pytest.mark.parametrize("name", NAMES)
def test_regressors_learn_with_each_likelihood(name):
    model, x, given, losses = trained(Regressor, name, steps=40)
    assert losses[-1] < losses[0]
    assert Regressor(**json.loads(json.dumps(model.config))).config == model.config
    report = evaluate(model, x, *given)
    assert report.elbo == pytest.approx(-float(model.loss(x, *given)), rel=1e-5)
    library = {"library": model.output.library(x)} if name in LIBRARY else {}
    assert model.predict(*given, **library).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_give_what_each_likelihood_needs(name):
    shape, options = (3, 9, 8), OPTIONS.get(name, {})
    x = rows(name, 4, event=shape)
    for model, given in (
        (VAE(shape, latent_dim=2, network="conv", conv_width=4, likelihood=name, **options), ()),
        (CVAE(shape, 4, latent_dim=2, network="conv", conv_width=4, likelihood=name, **options), (torch.rand(4, 4),)),
    ):
        model.loss(x, *given).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        mu, _ = model.encode(x, *given)
        assert model.decode(mu, *given).shape == (4, *model.output.shape)
        assert model.reconstruct(x, *given).shape == x.shape


@pytest.mark.parametrize("name", ["zinb", "discretized-logistic"])
@pytest.mark.parametrize("shape", [(2, *E), (2 * 12,)])
def test_own_decoders_give_two_numbers_for_each_element(name, shape):
    def networks(outputs):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        decoder = nn.Sequential(nn.Linear(2, math.prod(outputs)), nn.Unflatten(1, outputs))
        return {"encoder": encoder, "decoder": decoder}

    model, x = VAE(E, latent_dim=2, likelihood=name, **networks(shape)), rows(name)
    model.loss(x).loss.backward()
    assert model.decode(torch.zeros(5, B, 2)).shape == (5, B, 2, *E)
    assert model.sample(4).shape == (4, *E)
    with pytest.raises(ValueError, match=r"^decoder gives \[2, 3, 4\] for codes \[2, 2\], expected \[2, 2, 3, 4\]$"):
        VAE(E, latent_dim=2, likelihood=name, **networks(E))


class Seen(nn.Module):
    """A network that remembers what it was given."""

    def forward(self, x):
        self.x = x
        return x.flatten(1)[:, :4]


@pytest.mark.parametrize("name", NAMES)
def test_encoders_see_numbers_of_moderate_size(name):
    x, seen = rows(name), Seen()
    decoder = nn.Linear(2, math.prod(make_likelihood(name, E, 1.0, False, OPTIONS.get(name, {}).get("total")).shape))
    VAE(E, latent_dim=2, likelihood=name, encoder=seen, decoder=decoder, **OPTIONS.get(name, {})).encode(x)
    if name == "binomial":
        expected = x / 16
    elif LIKELIHOODS[name].values == "counts":
        expected = torch.log1p(x.float())
    else:
        expected = x if x.is_floating_point() else x / 255
    torch.testing.assert_close(seen.x, expected)


@pytest.mark.parametrize("name", NAMES)
def test_losses_compile_and_run_under_autocast(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = VAE(E, (16,), 2, likelihood=name, **OPTIONS.get(name, {})), rows(name)

    def loss(x, call=model.loss):
        return call(x, generator=None).loss

    torch.manual_seed(1)
    eager = loss(x)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.compile(model.loss, fullgraph=True, backend="aot_eager")(x).loss, eager)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, eager, rtol=0.1, atol=0.5)
    model.importance_weighted_loss(x, 3).loss.backward()
    model.bfloat16().loss(x).loss.backward()


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_rows_without_counts_have_a_loss_of_nothing(name):
    torch.manual_seed(0)
    model, x = VAE(E, (16,), 2, likelihood=name), rows(name)
    x[2] = 0
    terms = model.loss(x)
    terms.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.nll(torch.zeros(B, 2), x)[2].abs() < 1e-5
    assert model.reconstruct(x)[2].abs().max() == 0


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", [VAE, CVAE])
@pytest.mark.parametrize("name", [*sorted(LIBRARY), "poisson"])
def test_rows_of_counts_may_be_compressed(name, kind):
    torch.manual_seed(0)
    classes = {"condition_classes": 2} if kind is CVAE else {}
    model, x = kind(12, hidden=(8,), latent_dim=2, likelihood=name, **classes).double(), rows(name, event=(12,))
    x[torch.rand(x.shape) < 0.7] = 0
    given = (torch.arange(B) % 2,) if kind is CVAE else ()
    found = []
    for form in (x, x.to_sparse_csr()):
        loss = model.loss(form, *given, generator=torch.Generator().manual_seed(1)).loss
        found.append([loss, *torch.autograd.grad(loss, model.parameters()), model.reconstruct(form, *given)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "binomial"}, "the binomial likelihood needs total, the largest count that is possible"),
        ({"likelihood": "binomial", "total": 0}, "the binomial likelihood needs total, .*, not 0"),
        ({"likelihood": "binomial", "total": 1.5}, "the binomial likelihood needs total, .*, not 1.5"),
        ({"likelihood": "poisson", "total": 16}, "total belongs to the binomial likelihood: poisson has none, got 16"),
        (
            {"likelihood": "zinb", "learn_sigma": True},
            "learn_sigma needs the likelihood gaussian or laplace",
        ),
        ({"likelihood": "ZINB"}, "likelihood must be 'bernoulli' or .* or 'laplace', not 'ZINB'"),
        ({"likelihood": "laplace", "sigma": -1.0}, "sigma must be a positive finite number, not -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    for kind in (VAE, CVAE, Regressor):
        with pytest.raises(ValueError, match=message):
            kind(E, hidden=(8,), **options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("poisson", -1.0, r"target must be counts, none of them negative, got -1"),
        ("negative-binomial", -1.0, r"target must be counts, none of them negative, got -1"),
        ("binomial", 17.0, r"target must lie between 0 and total"),
        ("continuous-bernoulli", 1.5, r"target must lie in \[0, 1\], got 1.5"),
        ("discretized-logistic", 0.5, r"target must be uint8"),
    ],
)
def test_values_that_are_none_of_the_likelihood_are_refused(name, value, message):
    model = VAE(E, (8,), 2, likelihood=name, **OPTIONS.get(name, {}))
    with pytest.raises(ValueError, match=message):
        model.loss(torch.full((B, *E), 1.0).index_fill(0, torch.tensor(2), value))


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_a_scale_is_learned_or_given(name):
    model = VAE(E, (8,), 2, likelihood=name, sigma=0.5, learn_sigma=True)
    assert float(model.sigma) == pytest.approx(0.5)
    x, z = rows(name), torch.zeros(B, 2)
    model.loss(x).loss.backward()
    assert model.output.log_sigma.grad != 0
    torch.testing.assert_close(
        model.output.nll(model.decode(z), x, sigma=0.7, reduction="none"),
        VAE(E, (8,), 2, likelihood=name, sigma=0.7).output.nll(model.decode(z), x, reduction="none"),
    )


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_types_of_cells_show_in_the_code(name):
    """Of a matrix with 90 % zeros, whose types no single gene tells."""
    counts, kind = cells()
    x, kind = torch.from_numpy(counts.astype("int32")), torch.from_numpy(kind)
    assert 0.85 < float((x == 0).double().mean()) < 0.95
    torch.manual_seed(0)
    model = VAE(500, (64,), 4, likelihood=name)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            model.loss(x[batch]).loss.backward()
            optimizer.step()
    mu = model.eval().encode(x)[0].detach()
    centres = torch.stack([mu[kind == k].mean(0) for k in range(3)])
    nearest = torch.cdist(mu, centres).argmin(1)
    assert float((nearest == kind).double().mean()) > 0.9
