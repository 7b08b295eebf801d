"""Evaluation: against a model whose likelihood is known, and its memory, its noise, its interruptions."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastvae
from fastvae.evaluation import elbo_sums, evaluate, evaluate_code, log_likelihood
from fastvae.models import CVAE, VAE

S = 0.4


def images(n=60, *shape):
    return torch.randint(0, 256, (n, *(shape or (6,))), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator():
    return torch.Generator().manual_seed(2)


def linear_model(offset=0.0):
    """P(x) = N(b, W W' + S^2 I), and Q(z|x) the posterior but for ``offset``; with the exact log P of images."""
    torch.manual_seed(0)
    orthogonal, _ = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))
    W, b = orthogonal * torch.tensor([0.3, 0.5]), torch.rand(6, dtype=torch.float64)
    precision = 1 + W.square().sum(0) / S**2
    model = VAE(6, (), 2, likelihood="gaussian", sigma=S).double()
    with torch.no_grad():
        model.decoder[0].weight.copy_(W)
        model.decoder[0].bias.copy_(b)
        to_mu = (W / S**2 / precision).T
        model.encoder[0].weight.copy_(torch.cat([to_mu, torch.zeros_like(to_mu)]))
        model.encoder[0].bias.copy_(torch.cat([-to_mu @ b + offset, -precision.log() + offset]))
    predictive = torch.distributions.MultivariateNormal(b, W @ W.T + S**2 * torch.eye(6, dtype=torch.float64))
    return model, lambda x: predictive.log_prob(x.double() / 255)


def small_vae(**options):
    torch.manual_seed(0)
    return VAE(6, (8,), 3, **options)


def test_log_likelihood_at_the_posterior_is_exact_for_any_number_of_samples():
    model, exact = linear_model()
    x = images()
    for samples in (1, 7):
        report = log_likelihood(model, x, num_samples=samples)
        assert report.log_likelihood == pytest.approx(float(exact(x).mean()), abs=1e-9)
        assert report.standard_error == pytest.approx(float(exact(x).std()) / 60**0.5, rel=1e-9)
        assert report.sampling_error == pytest.approx(0, abs=1e-7)
        assert report.effective_sample_size == pytest.approx(samples)
        assert report.bits_per_dim == pytest.approx(-report.log_likelihood / (6 * math.log(2)))
        assert (report.num_samples, report.images) == (samples, 60)


@pytest.mark.parametrize("proposal", ["posterior", "prior"])
def test_log_likelihood_off_the_posterior_is_within_its_sampling_error(proposal):
    model, exact = linear_model(offset=0.3)
    x = images()
    report = log_likelihood(model, x, num_samples=4000, proposal=proposal)
    assert 0 < report.sampling_error < 0.05
    # Five errors, and the bias of a logarithm: half of the relative variance of the mean weight.
    bias = 60 * report.sampling_error**2
    assert abs(report.log_likelihood - float(exact(x).mean())) < 5 * report.sampling_error + bias
    assert 1 < report.effective_sample_size < 4000


def test_sampling_error_is_what_other_seeds_give():
    model, _ = linear_model(offset=0.3)
    reports = [log_likelihood(model, images(), num_samples=200, seed=seed) for seed in range(60)]
    spread = torch.tensor([r.log_likelihood for r in reports]).std().item()
    stated = sum(r.sampling_error for r in reports) / 60
    assert 0.6 < spread / stated < 1.5  # a standard deviation of 60 is within 5 * 9 % of its own


@pytest.mark.parametrize("memory", [1, 2000, 64 * 2**20])
def test_chunks_change_nothing_but_the_noise(memory):
    model, _ = linear_model(offset=0.3)
    x = images(20)
    whole = log_likelihood(model, x, num_samples=3000)
    parts = log_likelihood(model, x, num_samples=3000 if memory > 1 else 300, memory=memory, batch_size=7)
    error = math.hypot(whole.sampling_error, parts.sampling_error)
    assert abs(whole.log_likelihood - parts.log_likelihood) < 5 * error + 20 * error**2


def test_sums_of_weights_do_not_depend_on_the_chunks():
    from fastvae.evaluation import _Weights

    log_w = 300 * torch.randn(50, 4, dtype=torch.float64)
    log_w[:7, 1] = -math.inf
    log_w[:, 3] = -math.inf
    for sizes in ([50], [1] * 50, [3, 40, 7]):
        weights = _Weights()
        for part in log_w.split(sizes):
            weights.add(part)
        torch.testing.assert_close(weights.log_mean(50), log_w.logsumexp(0) - math.log(50))
        w = log_w[:, :3].softmax(0)
        torch.testing.assert_close(weights.effective_sample_size()[:3], 1 / w.square().sum(0))
        assert weights.effective_sample_size()[3] == 0


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        (lambda: VAE(784, (64,), 4), 2**20),
        (lambda: VAE(784, (500, 250), 30).double(), 2**22),
        (lambda: VAE(784, (64,), 2000), 2**22),
    ],
    ids=["narrow", "double", "code"],
)
def test_memory_does_not_grow_with_samples_and_the_target_is_not_expanded(model, limit):
    model, x = model(), images(10, 784)

    def peak(samples):
        with torch.profiler.profile(profile_memory=True) as profile:
            log_likelihood(model, x, num_samples=samples, memory=limit)
        held = most = 0
        for event in sorted(profile.events(), key=lambda e: e.time_range.start):
            held += event.self_cpu_memory_usage
            most = max(most, held)
        return most

    few, many = peak(200), peak(2000)
    assert many <= 1.2 * few
    # Inputs and the weights' doubles come beside.
    assert few < 1.1 * limit


def test_elbo_report_has_the_mean_and_error_of_its_images():
    model, x = small_vae(), images()
    report = evaluate(model, x, batch_size=7, generator=generator())
    rows = []
    draw = generator()
    for batch in x.split(7):
        decoded, mu, logvar, _ = model(batch, draw)
        rows.append(fastvae.reference.sigmoid_cross_entropy(decoded, batch) + fastvae.reference.gaussian_kl(mu, logvar))
    rows = torch.cat(rows).detach().double()
    assert report.elbo == pytest.approx(-float(rows.mean()), rel=1e-6)
    assert report.standard_error == pytest.approx(float(rows.std()) / 60**0.5, rel=1e-4)
    assert report.elbo == -(report.reconstruction + report.kl)


def test_bound_is_above_the_elbo_and_its_error_says_so():
    model, x = small_vae(), images()
    elbo = evaluate(model, x, generator=generator()).elbo
    assert log_likelihood(model, x, num_samples=500).log_likelihood > elbo


def test_code_report_is_of_each_dimension():
    model, x = small_vae(), images()
    with torch.no_grad():
        model.encoder[-1].weight[[1, 4]] = 0  # mu and logvar of dimension 1: always N(0.5, 1)
        model.encoder[-1].bias[[1, 4]] = torch.tensor([0.5, 0.0])
    report = evaluate_code(model, x, batch_size=7)
    mu, logvar = (t.detach().double() for t in model.encode(x))
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar)
    torch.testing.assert_close(torch.tensor(report.nats).double(), kl.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(report.standard_errors).double(), kl.std(0) / 60**0.5, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(torch.tensor(report.activity).double(), mu.var(0, correction=0), rtol=1e-4, atol=1e-6)
    assert report.nats[1] == pytest.approx(0.125)
    assert report.activity[1] == pytest.approx(0, abs=1e-9)
    assert report.active_units == sum(v > 0.01 for v in report.activity) == 2


def test_code_report_is_of_the_binary_images_that_the_model_sees():
    model, x = small_vae(), images(2000)
    code = evaluate_code(model, x, binarize=True, generator=generator())
    kl = evaluate(model, x, binarize=True, generator=generator()).kl
    # Of two draws of the same images, and both with their errors.
    assert abs(sum(code.nats) - kl) < 5 * 2 * sum(code.standard_errors)
    assert abs(sum(evaluate_code(model, x).nats) - kl) > 0.05 * kl


def test_conditional_models_are_evaluated_with_their_conditions():
    torch.manual_seed(0)
    model, x = CVAE(6, condition_classes=3, hidden=(8,), latent_dim=2), images()
    labels = torch.arange(60) % 3
    one = evaluate(model, x, labels, batch_size=60, generator=generator())
    expected = model.loss(x, labels, 1.0, generator())
    assert one.elbo == pytest.approx(-expected.loss.item(), rel=1e-5)
    report = log_likelihood(model, x, labels, num_samples=300, batch_size=7)
    assert one.elbo < report.log_likelihood
    assert len(evaluate_code(model, x, labels).nats) == 2
    with pytest.raises(ValueError, match="a CVAE takes a condition"):
        evaluate(model, x)
    with pytest.raises(ValueError, match="a VAE takes no condition"):
        log_likelihood(small_vae(), x, labels)
    for function in (evaluate, evaluate_code, log_likelihood):
        with pytest.raises(ValueError, match="a condition for each image, got 59 for 60"):
            function(model, x, labels[1:])
        with pytest.raises(ValueError, match="a condition for each image, got 120 for 60"):
            function(model, x, labels.repeat(2))


def test_bfloat16_is_near_float32():
    model, x = small_vae(), images()
    full, half = (log_likelihood(model, x, num_samples=500, amp=amp) for amp in (None, "bf16"))
    # Logits of order 1 with 8 bits: 6 of them, each off by 2^-8 at most, half of that in the mean.
    assert 0 < abs(full.log_likelihood - half.log_likelihood) < 6 * 2**-8


def test_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    model, x, file = small_vae(), images(), tmp_path / "partial"
    arguments = {"num_samples": 50, "batch_size": 7, "binarize": True, "seed": 3}
    whole = log_likelihood(model, x, **arguments)
    seen = []

    def interrupt(done, mean):
        seen.append(done)
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log_likelihood(model, x, partial=file, progress=interrupt, **arguments)
    assert file.exists()
    rest = []
    resumed = log_likelihood(model, x, partial=file, progress=lambda done, mean: rest.append(done), **arguments)
    assert (seen, rest[0], rest[-1]) == ([7, 14, 21], 28, 60)
    assert resumed == whole
    assert not file.exists()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_samples": 51}, "num_samples"),
        ({"seed": 4}, "seed"),
        ({"amp": "bf16"}, "amp"),
        ({"proposal": "prior"}, "proposal"),
        ({"model": None}, "model"),
        ({"sigma": None}, "model"),
        ({"images": None}, "images"),
    ],
)
def test_partial_file_of_another_evaluation_is_refused(tmp_path, change, name):
    model, x, file = small_vae(likelihood="gaussian", sigma=0.1), images(), tmp_path / "partial"

    def stop(done, mean):
        raise KeyboardInterrupt

    arguments = {"num_samples": 50, "batch_size": 7, "partial": file}
    with pytest.raises(KeyboardInterrupt):
        log_likelihood(model, x, progress=stop, **arguments)
    if "model" in change:
        torch.nn.init.zeros_(next(model.parameters()))
    if "sigma" in change:
        model = small_vae(likelihood="gaussian", sigma=1.0)  # of the same weights
    if "images" in change:
        x[0, 0] += 1
    other = {k: v for k, v in change.items() if v is not None}
    with pytest.raises(ValueError, match=f"belongs to another evaluation: {name} "):
        log_likelihood(model, x, **{**arguments, **other})
    assert file.exists()


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantized tensor creation")
def test_quantised_model_is_evaluated_and_known_again(tmp_path):
    """It has no parameters, and a state that is no tensors."""
    model, other = (
        torch.ao.quantization.quantize_dynamic(m, {torch.nn.Linear}) for m in (small_vae(), VAE(6, (8,), 3))
    )
    x, file = images(), tmp_path / "partial"
    assert evaluate(model, x, generator=generator()).elbo < 0
    assert len(evaluate_code(model, x).nats) == model.latent_dim

    def interrupt(done, mean):
        raise KeyboardInterrupt

    arguments = {"num_samples": 5, "batch_size": 7}
    expected = log_likelihood(model, x, **arguments)
    with pytest.raises(KeyboardInterrupt):
        log_likelihood(model, x, partial=file, progress=interrupt, **arguments)
    with pytest.raises(ValueError, match="belongs to another evaluation: model"):
        log_likelihood(other, x, partial=file, **arguments)
    assert log_likelihood(model, x, partial=file, **arguments) == expected


def test_damaged_partial_file_is_refused(tmp_path):
    file = tmp_path / "partial"
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="partial: truncated, or not a partial evaluation"):
        log_likelihood(small_vae(), images(), num_samples=5, partial=file)
    save_file({"0": torch.zeros(2, 7)}, file)
    with pytest.raises(ValueError, match="belongs to another evaluation: model is None there"):
        log_likelihood(small_vae(), images(), num_samples=5, partial=file)


def test_evaluation_leaves_the_model_and_torchs_noise_alone():
    model, x = small_vae(), images()
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        log_likelihood(model, x, num_samples=5)
        evaluate_code(model, x)
        assert model.training == training
    assert torch.equal(state, torch.get_rng_state())


class Viewed(nn.Module):
    """Flattens its input in a way that no empty batch can take."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.view(len(x), -1))


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_add_up_for_networks_that_take_no_empty_batch(parts):
    """Three batches, the last of which is smaller; one part of four has none."""
    model = VAE((4, 4), latent_dim=2, encoder=Viewed(nn.Linear(16, 4)), decoder=Viewed(nn.Linear(2, 16)))
    options = {"batch_size": 25, "binarize": True}
    whole = elbo_sums(model, images(60, 4, 4), generator=generator(), **options)
    split = [
        elbo_sums(model, images(60, 4, 4), generator=generator(), part=part, parts=parts, **options)
        for part in range(parts)
    ]
    torch.testing.assert_close(sum(split), whole)


def test_errors_name_what_was_wrong():
    model, x = small_vae(), images()
    for name in ("num_samples", "batch_size", "memory"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            log_likelihood(model, x, **{name: 0})
    with pytest.raises(ValueError, match="proposal must be 'posterior' or 'prior', not 'uniform'"):
        log_likelihood(model, x, proposal="uniform")
    with pytest.raises(ValueError, match="amp must be None or 'bf16', not 'fp8'"):
        log_likelihood(model, x, amp="fp8")
    with pytest.raises(ValueError, match=r"x has shape \[60, 7\], expected \[B, 6\]"):
        log_likelihood(model, images(60, 7), num_samples=5)
    with pytest.raises(ValueError, match=r"images must be \[N, \*E\], N > 0, not \[0, 6\]"):
        log_likelihood(model, x[:0], num_samples=5)
