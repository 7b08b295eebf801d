"""DiagonalGaussian and the modules of fastvae.nn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import fastvae
from fastvae import nn, reference

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("shape", [(5, 12), (3, 8, 4, 6)])
def test_diagonal_gaussian_over_packed_moments(shape: tuple[int, ...]) -> None:
    moments = torch.randn(shape, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments)
    mean, logvar = moments.chunk(2, 1)
    assert torch.equal(q.mean, mean)
    assert torch.equal(q.mode(), mean)
    assert torch.equal(q.logvar, logvar)
    torch.testing.assert_close(q.std**2, q.var)
    torch.testing.assert_close(q.var, logvar.exp())
    torch.testing.assert_close(q.kl(), reference.gaussian_kl(mean, logvar))
    other = fastvae.DiagonalGaussian(torch.randn(shape))
    expected = reference.gaussian_kl(mean, logvar, other.mean, other.logvar)
    torch.testing.assert_close(q.kl(other), expected)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, other), expected)
    x = torch.randn(mean.shape)
    torch.testing.assert_close(q.nll(x), reference.gaussian_nll(mean, x, logvar=logvar))
    z = q.sample(torch.Generator(torch.get_default_device()).manual_seed(0))
    assert z.shape == mean.shape
    z.sum().backward()
    torch.testing.assert_close(moments.grad.chunk(2, 1)[0], torch.ones_like(mean))


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
def test_diagonal_gaussian_sample_kl_is_sample_and_kl(clamp: tuple[float, float] | None) -> None:
    moments = torch.randn(3, 8, 4, 6, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments, clamp=clamp)
    results = []
    for z, kl in (
        q.sample_kl(torch.Generator(torch.get_default_device()).manual_seed(3)),
        (q.sample(torch.Generator(torch.get_default_device()).manual_seed(3)), q.kl()),
    ):
        (gradient,) = torch.autograd.grad((z, kl), moments, (torch.cos(z.detach()), torch.ones(3)), retain_graph=True)
        results.append((z, kl, gradient))
    for fused, parts in zip(*results, strict=True):
        torch.testing.assert_close(fused, parts)


def test_diagonal_gaussian_clamp_has_zero_gradient_outside() -> None:
    moments = torch.tensor([[0.5, 0.5, 0.5, -50.0, 30.0, 1.0]], requires_grad=True)
    q = fastvae.DiagonalGaussian(moments, clamp=(-30.0, 20.0))
    assert q.logvar.tolist() == [[-30.0, 20.0, 1.0]]
    assert q.parameters is moments
    q.kl().sum().backward()
    torch.testing.assert_close(moments.grad, torch.tensor([[0.5, 0.5, 0.5, 0.0, 0.0, 0.5 * (torch.e - 1)]]))


def test_elbo_loss_module() -> None:
    logits, target, mu, logvar = torch.randn(4, 9), torch.rand(4, 9), torch.randn(4, 3), torch.randn(4, 3)
    for beta, reduction in ((1.0, "mean"), (0.5, "sum"), (2.0, "none")):
        module = nn.ELBOLoss(beta, reduction)
        expected = reference.elbo_loss(logits, target, mu, logvar, beta=beta, reduction=reduction)
        for a, b in zip(module(logits, target, mu, logvar), expected, strict=True):
            torch.testing.assert_close(a, b)
    assert repr(module) == "ELBOLoss(beta=2.0, reduction='none')"


def test_reparameterize_module() -> None:
    mu, logvar = torch.randn(4, 3), torch.randn(4, 3)
    for samples in (None, 5):
        module = nn.Reparameterize(samples)
        torch.manual_seed(0)
        z = module(mu, logvar)
        torch.manual_seed(0)
        assert torch.equal(z, fastvae.reparameterize(mu, logvar, num_samples=samples))
    assert repr(module) == "Reparameterize(num_samples=5)"


def test_diagonal_gaussian_compiles_without_breaks() -> None:
    torch._dynamo.reset()

    def use(moments: torch.Tensor) -> torch.Tensor:
        q = fastvae.DiagonalGaussian(moments, clamp=(-30.0, 20.0))
        many = q.expand((2, 4)).rsample((3,)).sum() + fastvae.DiagonalGaussian(moments, True).sample((3,)).sum()
        other = fastvae.DiagonalGaussian.from_loc_scale(q.mean, q.std)
        densities = q.log_prob(q.mean) + q.entropy() + kl_divergence(q, other) + q.nll(q.mean, dims=(1,))
        return q.kl() + q.nll(q.mode() + q.std) + q.var.sum() + densities + (q.sample().sum() + many) * 0

    moments = torch.randn(4, 6)
    compiled = torch.compile(use, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(moments), use(moments))


def normal(q: fastvae.DiagonalGaussian) -> Independent:
    """The same of torch's."""
    return Independent(Normal(q.mean, (q.logvar / 2).exp()), len(q.event_shape))


def generator(seed: int) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def assert_same(results: list[Tensor], expected: list[Tensor]) -> None:
    """Of float64: sums of at most 100 elements of a few terms below 100 each, whose roundings add up."""
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * 100 * 2.0**-50)


# Shapes of the batch and of the event.
SHAPES = [
    ((), (6,)),
    ((5,), (6,)),
    ((5,), (4, 2, 3)),
    ((2, 3), (6,)),
    ((2, 3), (4, 2, 3)),
    ((2, 1, 3), (2,)),
]
each_shape = pytest.mark.parametrize(("batch", "event"), SHAPES, ids=str)


def packed(batch: tuple[int, ...], event: tuple[int, ...]) -> Tensor:
    return torch.randn(*batch, 2 * event[0], *event[1:], dtype=torch.float64)


@each_shape
def test_diagonal_gaussian_is_torchs_independent_normal(batch: tuple[int, ...], event: tuple[int, ...]) -> None:
    moments = [packed(batch, event).requires_grad_() for _ in range(2)]
    q, p = (fastvae.DiagonalGaussian(m, batch_dims=len(batch)) for m in moments)
    assert isinstance(q, torch.distributions.Distribution)
    for name in ("batch_shape", "event_shape", "has_rsample", "mean", "variance", "stddev"):
        ours, theirs = getattr(q, name), getattr(normal(q), name)
        assert_same([ours], [theirs]) if isinstance(ours, Tensor) else None
        assert isinstance(ours, Tensor) or ours == theirs, name
    assert q.support.event_dim == normal(q).support.event_dim
    x = torch.randn(*batch, *event, dtype=torch.float64, requires_grad=True)
    inputs = [*moments, x]
    for ours, theirs in (
        (q.log_prob(x), normal(q).log_prob(x)),
        (-q.nll(x), normal(q).log_prob(x)),
        (q.entropy(), normal(q).entropy()),
        (q.kl(), kl_divergence(normal(q), Independent(Normal(torch.zeros_like(q.mean), 1.0), len(event)))),
        (q.kl(p), kl_divergence(normal(q), normal(p))),
        (kl_divergence(q, p), kl_divergence(normal(q), normal(p))),
        (kl_divergence(q, normal(p)), kl_divergence(normal(q), normal(p))),
        (kl_divergence(normal(q), p), kl_divergence(normal(q), normal(p))),
    ):
        assert ours.shape == theirs.shape == batch
        upstream = torch.rand(batch, dtype=torch.float64)
        gradients = [
            torch.autograd.grad(t, inputs, upstream, allow_unused=True, materialize_grads=True) for t in (ours, theirs)
        ]
        assert_same([ours, *gradients[0]], [theirs, *gradients[1]])


@each_shape
@pytest.mark.parametrize("samples", [(), (7,), (2, 2), (0,)], ids=str)
def test_diagonal_gaussian_samples_in_shapes(
    batch: tuple[int, ...], event: tuple[int, ...], samples: tuple[int, ...]
) -> None:
    moments = packed(batch, event).requires_grad_()
    q = fastvae.DiagonalGaussian(moments, batch_dims=len(batch))
    z = q.rsample(samples, generator(1))
    assert z.shape == normal(q).rsample(samples).shape == samples + batch + event
    assert torch.equal(q.rsample(torch.Size(samples), generator=generator(1)), z)
    plain = q.sample(samples, generator(1))
    assert torch.equal(plain, z)
    assert not plain.requires_grad
    if z.numel():
        assert len(z.unique()) == z.numel()
        noise = ((z - q.mean) / q.stddev).detach()
        expected = torch.autograd.grad((q.mean + q.stddev * noise).square().sum(), moments)
        assert_same(list(torch.autograd.grad(z.square().sum(), moments)), list(expected))
    # The density of many samples, with its gradients: no more than the moments is kept of them.
    z = z.detach().requires_grad_()
    ours = q.log_prob(z)
    assert ours.shape == samples + batch
    gradients = torch.autograd.grad(ours.sum(), (moments, z))
    if z.numel():
        theirs = normal(q).log_prob(z)
        assert_same([ours, *gradients], [theirs, *torch.autograd.grad(theirs.sum(), (moments, z))])
    else:  # of which torch's own makes an error
        assert not gradients[0].any()


def test_empty_diagonal_gaussian() -> None:
    for q in (
        fastvae.DiagonalGaussian(torch.ones(0, 4)),
        fastvae.DiagonalGaussian(torch.ones(0, 2, 4), batch_dims=2),
        fastvae.DiagonalGaussian(torch.ones(4), batch_dims=0).expand((0,)),
    ):
        assert q.sample().shape == q.mean.shape == (*q.batch_shape, 2)
        assert q.sample_kl()[0].shape == q.rsample((3,)).shape[1:] == q.mean.shape
        assert q.sample([]).shape == q.sample((), [generator(0)]).shape == q.mean.shape
        for t in (q.kl(), q.kl(q), q.nll(q.mean), q.log_prob(q.mean), q.entropy()):
            assert t.shape == q.batch_shape


def test_diagonal_gaussian_samples_with_a_gradient_unless_a_shape_is_given() -> None:
    """Code of diffusers names a generator or nothing, and trains through it; that of torch.distributions a shape."""
    moments = torch.randn(3, 4, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments)
    assert q.sample().requires_grad
    assert q.sample(None).requires_grad
    torch.manual_seed(0)
    drawn = [q.sample(), q.sample(), q.rsample()]
    assert not torch.equal(drawn[0], drawn[1])
    for call in (q.sample, q.rsample):
        for z in (call(generator(0)), call(generator=generator(0)), call(None, generator(0)), call([generator(0)])):
            assert z.requires_grad
            assert torch.equal(z, q.sample(generator(0)))
    for shape in ((), [], torch.Size(), (2,)):
        assert not q.sample(shape).requires_grad
        assert q.rsample(shape).requires_grad
    assert not Independent(q, 1).sample().requires_grad
    assert Independent(q, 1).rsample().requires_grad


def test_diagonal_gaussian_takes_a_generator_for_each_row() -> None:
    moments = torch.randn(3, 4, 2, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments)
    seeds = [5, 6, 5]
    z = q.sample([generator(s) for s in seeds])
    z_kl, kl = q.sample_kl([generator(s) for s in seeds])
    assert torch.equal(z, z_kl)
    torch.testing.assert_close(kl, q.kl())
    many = q.rsample((2, 2), generator=tuple(generator(s) for s in seeds))
    for i, seed in enumerate(seeds):
        alone = fastvae.DiagonalGaussian(moments[i : i + 1])
        assert torch.equal(z[i : i + 1], alone.sample(generator(seed)))
        assert torch.equal(many[:, :, i : i + 1], alone.rsample((2, 2), generator(seed)))
    noise = ((z - q.mean) / q.std).detach()
    (gradient,) = torch.autograd.grad(z.square().sum(), moments)
    (expected,) = torch.autograd.grad((q.mean + q.std * noise).square().sum(), moments)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    grid = fastvae.DiagonalGaussian(torch.randn(2, 3, 4), batch_dims=2).expand((2, 2, 3))
    assert grid.sample([generator(s) for s in range(12)]).shape == (2, 2, 3, 2)
    with pytest.raises(ValueError, match=r"a generator for each element of the batch \[3\], got 2"):
        q.sample([generator(0), generator(1)])
    with pytest.raises(ValueError, match="the generator was given twice"):
        q.sample(generator(0), generator(0))
    with pytest.raises(ValueError, match="sample_shape must be sizes, or a generator, got 3"):
        q.sample(3)  # type: ignore[arg-type]


def test_deterministic_diagonal_gaussian_is_its_mean() -> None:
    moments = torch.randn(3, 4, 2, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments, True)
    assert q.deterministic
    state = torch.get_rng_state()
    for z in (q.sample(), q.rsample(), q.sample_kl()[0], q.sample((5,))[2], q.sample(generator(0)), q.mode()):
        assert torch.equal(z, q.mean)
    assert torch.equal(torch.get_rng_state(), state)
    z = q.sample()
    z.sum().backward()
    assert torch.equal(moments.grad, torch.cat([torch.ones(3, 2, 2), torch.zeros(3, 2, 2)], 1))
    with torch.no_grad():
        z.zero_()  # a tensor of its own
    assert q.mean.all()
    assert not q.std.any()
    assert not q.var.any()
    assert torch.equal(q.logvar, moments[:, 2:])
    other = fastvae.DiagonalGaussian(torch.randn(3, 4, 2))
    for zeros in (q.kl(), q.kl(other), q.nll(other.mean), q.sample_kl()[1]):
        assert torch.equal(zeros, torch.zeros(3))
    assert torch.equal(q.nll(other.mean, dims=(1,)), torch.zeros(3, 2))
    for call in (q.entropy, lambda: q.log_prob(q.mean), lambda: other.kl(q), lambda: kl_divergence(q, other)):
        with pytest.raises(ValueError, match="a deterministic distribution has no density"):
            call()


@pytest.mark.parametrize("dims", [None, 1, (1,), (-1,), (2, 3), (1, 2, 3), [3, 1], (0, 1, 2, 3), (0,), ()], ids=str)
def test_diagonal_gaussian_nll_sums_over_dims(dims: int | tuple[int, ...] | None) -> None:
    moments = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments)
    x = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    expected = -Normal(q.mean, q.stddev).log_prob(x).sum((1, 2, 3) if dims is None else dims)
    ours = q.nll(x, dims=dims)
    assert ours.shape == expected.shape
    assert_same(
        [ours, *torch.autograd.grad(ours.sum(), moments)], [expected, *torch.autograd.grad(expected.sum(), moments)]
    )


def test_expanded_diagonal_gaussian_computes_what_it_repeats_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyro's plates expand: K particles, each with its samples of the same moments."""
    seen: list[torch.Size] = []
    for name in ("reparameterize", "gaussian_kl", "gaussian_nll"):
        operator = getattr(fastvae.ops, name)

        def spy(
            mean: Tensor, *tensors: Tensor, operator: Callable[..., Tensor] = operator, **options: object
        ) -> Tensor:
            seen.append(mean.shape)
            return operator(mean, *tensors, **options)

        monkeypatch.setattr(fastvae.ops, name, spy)
    moments = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    q = fastvae.DiagonalGaussian(moments).expand((7, 1, 3)).expand((7, 5, 3))
    assert (q.batch_shape, q.event_shape) == ((7, 5, 3), (2,))
    for t, whole in ((q.mean, moments[:, :2]), (q.logvar, moments[:, 2:]), (q.parameters, moments)):
        assert t.data_ptr() == whole.data_ptr()
        assert torch.equal(t, whole.expand(7, 5, *whole.shape))
    z = q.rsample()
    assert z.shape == q.rsample((2,)).shape[1:] == (7, 5, 3, 2)
    assert len(z.unique()) == z.numel()
    kl = q.kl()
    assert seen == [(3, 2)] * 3
    # The prior of a model is one, which a plate makes as many as there are images and particles.
    prior = fastvae.DiagonalGaussian(torch.randn(4, dtype=torch.float64), batch_dims=0)
    results = (
        (kl, kl_divergence(normal(q), Independent(Normal(torch.zeros_like(q.mean), 1.0), 1))),
        (q.kl(prior.expand((7, 5, 3))), kl_divergence(normal(q), normal(prior))),
        (q.kl(prior), kl_divergence(normal(q), normal(prior))),
        (kl_divergence(prior, q), kl_divergence(normal(prior), normal(q))),
        (prior.expand((3,)).log_prob(z), normal(prior).log_prob(z)),
        (q.log_prob(z), normal(q).log_prob(z)),
        (q.log_prob(z[0, 0]), normal(q).log_prob(z[0, 0])),
        (q.log_prob(z[:1, :, :1]), normal(q).log_prob(z[:1, :, :1])),
        (fastvae.DiagonalGaussian(moments[:1]).log_prob(z), normal(fastvae.DiagonalGaussian(moments[:1])).log_prob(z)),
        (q.entropy(), normal(q).entropy()),
    )
    for ours, theirs in results:
        assert ours.shape == theirs.shape == (7, 5, 3)
        gradients = [
            torch.autograd.grad(t.sum(), moments, retain_graph=True, allow_unused=True, materialize_grads=True)
            for t in (ours, theirs)
        ]
        assert_same([ours, *gradients[0]], [theirs, *gradients[1]])
    assert torch.equal(fastvae.DiagonalGaussian(moments[:1]).expand((3,)).mean, moments[:1, :2].expand(3, 2))
    for shape in ((3,), (7, 5, 4), (1, 5, 3)):
        with pytest.raises(ValueError, match=r"cannot expand a batch \[7, 5, 3\] to \["):
            q.expand(shape)


def test_diagonal_gaussian_reads_several_batch_dimensions_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pointers: list[int] = []
    forward = fastvae.ops.reparameterize
    monkeypatch.setattr(
        fastvae.ops,
        "reparameterize",
        lambda mean, logvar, **options: (
            pointers.extend((mean.data_ptr(), logvar.data_ptr())) or forward(mean, logvar, **options)
        ),
    )
    moments = torch.randn(2, 3, 8, 5)
    q = fastvae.DiagonalGaussian(moments, batch_dims=2)
    assert q.sample().shape == (2, 3, 4, 5)
    assert pointers == [moments.data_ptr(), moments[:, :, 4:].data_ptr()]


def test_diagonal_gaussian_of_means_and_log_variances_or_scales() -> None:
    mean, logvar = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    packed = fastvae.DiagonalGaussian(parameters=torch.cat([mean, logvar], 1), clamp=(-1, 1))
    for q in (
        fastvae.DiagonalGaussian.from_mean_logvar(mean, logvar, clamp=(-1, 1)),
        fastvae.DiagonalGaussian.from_loc_scale(mean, (logvar / 2).exp(), clamp=(-1, 1)),
    ):
        assert (q.batch_shape, q.event_shape) == ((3,), (4,))
        results = [
            [d.sample(generator(1)), *d.sample_kl(generator(1)), d.mean, d.logvar, d.parameters] for d in (q, packed)
        ]
        gradients = [torch.autograd.grad(r[1].sum() + r[2].sum(), (mean, logvar), retain_graph=True) for r in results]
        assert_same([*results[0][:5], *gradients[0]], [*results[1][:5], *gradients[1]])
    q = fastvae.DiagonalGaussian.from_mean_logvar(mean, logvar)
    assert_same([q.parameters], [torch.cat([mean, logvar], 1)])
    prior = fastvae.DiagonalGaussian.from_loc_scale(torch.zeros(4, dtype=torch.float64), 1.0, batch_dims=0)
    assert (prior.batch_shape, prior.event_shape) == ((), (4,))
    assert_same([kl_divergence(q, prior)], [q.kl()])
    with pytest.raises(ValueError, match=r"mean must have 2 dimensions of the batch, got \[4\]"):
        fastvae.DiagonalGaussian.from_mean_logvar(mean[0], logvar[0], batch_dims=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fastvae.DiagonalGaussian(torch.ones(3, 4, dtype=torch.int64)),
            "moments must be float32, .* got torch.int64",
        ),
        (
            lambda: fastvae.DiagonalGaussian.from_mean_logvar(torch.ones(3, dtype=torch.int32), 0.0),
            "mean must be float32",
        ),
        (
            lambda: fastvae.DiagonalGaussian.from_loc_scale(0.0, torch.ones(3, dtype=torch.bool)),
            "scale must be float32",
        ),
        (lambda: fastvae.DiagonalGaussian(torch.ones(3, 5)), r"an even dimension 1, got \[3, 5\]"),
        (lambda: fastvae.DiagonalGaussian(torch.ones(3, 4), batch_dims=2), r"an even dimension 2, got \[3, 4\]"),
        (lambda: fastvae.DiagonalGaussian(torch.ones(3, 4), batch_dims=-1), "an even dimension -1"),
        (
            lambda: fastvae.DiagonalGaussian(torch.ones(3, 4)).log_prob(torch.ones(3, 3)),
            r"value must be \[..., \*\[2\]\], got \[3, 3\]",
        ),
        (
            lambda: fastvae.DiagonalGaussian(torch.ones(3, 4)).log_prob(torch.ones(4, 2)),
            r"batches \[4\] and \[3\] cannot be broadcast",
        ),
        (
            lambda: fastvae.DiagonalGaussian(torch.ones(3, 4)).kl(fastvae.DiagonalGaussian(torch.ones(3, 6))),
            r"events must be the same, got \[2\] and \[3\]",
        ),
        (
            lambda: fastvae.DiagonalGaussian(torch.ones(3, 4)).nll(torch.ones(3, 2), dims=(1, 1)),
            "dims must be dimensions",
        ),
        (
            lambda: fastvae.DiagonalGaussian(torch.ones(3, 4)).nll(torch.ones(3, 2), dims=(2,)),
            "dims must be dimensions",
        ),
    ],
)
def test_diagonal_gaussian_names_what_was_wrong(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^fastvae\.DiagonalGaussian.*{message}"):
        make()


def test_diagonal_gaussian_looks_at_numbers_where_it_is_asked_to() -> None:
    moments = torch.full((3, 4), torch.nan)
    assert fastvae.DiagonalGaussian(moments).kl().isnan().all()
    with pytest.raises(ValueError, match="Expected parameter parameters"):
        fastvae.DiagonalGaussian(moments, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        fastvae.DiagonalGaussian(torch.ones(3, 4), validate_args=True).log_prob(moments[:, :2])


def test_diagonal_gaussian_under_vmap() -> None:
    moments = torch.randn(3, 4, dtype=torch.float64)
    q = fastvae.DiagonalGaussian(moments)
    for name, arguments in (("kl", ()), ("entropy", ()), ("log_prob", (q.mean + 1,))):
        each = torch.func.vmap(lambda m, *a, n=name: getattr(fastvae.DiagonalGaussian(m, batch_dims=0), n)(*a))
        assert_same([each(moments, *arguments)], [getattr(q, name)(*arguments)])
    draw = torch.func.vmap(lambda m: fastvae.DiagonalGaussian(m, batch_dims=0).sample((2,)), randomness="different")
    assert draw(moments).shape == (3, 2, 2)


def test_kl_of_an_independent_that_is_not_normal_is_refused() -> None:
    q = fastvae.DiagonalGaussian(torch.randn(3, 4))
    laplace = Independent(torch.distributions.Laplace(torch.zeros(3, 2), 1.0), 1)
    for pair in ((q, laplace), (laplace, q)):
        with pytest.raises(
            NotImplementedError, match=r"No KL divergence of a DiagonalGaussian and an Independent\(Laplace\)"
        ):
            kl_divergence(*pair)


def test_diagonal_gaussian_prints_its_shapes() -> None:
    device = torch.get_default_device()
    where = f"dtype=torch.float32, device='{torch.ones(1).device}'"
    assert (
        repr(fastvae.DiagonalGaussian(torch.ones(3, 4)))
        == f"DiagonalGaussian(batch_shape=[3], event_shape=[2], {where})"
    )
    q = fastvae.DiagonalGaussian(torch.ones(2, 3, 8, 5, device=device), True, clamp=(-30.0, 20.0), batch_dims=2)
    assert repr(q) == (
        f"DiagonalGaussian(batch_shape=[2, 3], event_shape=[4, 5], {where}, deterministic=True, clamp=(-30.0, 20.0))"
    )
