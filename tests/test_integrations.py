"""The examples, each with its library: they learn, and their losses are the library's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fastvae
from fastvae import reference
from fastvae.data import load

EXAMPLES = Path(__file__).parent.parent / "examples"
LIBRARIES = ("lightning", "accelerate", "diffusers", "pythae", "pyro")
PIXELS = 64
U = 2.0**-53  # unit roundoff of float64


def require(library: str) -> None:
    """Skips, visibly, where the library is missing; with FAIL_WITHOUT_INTEGRATIONS=1 fails."""
    if importlib.util.find_spec(library) is None:
        missing = f"{library} is not installed, the extra fastvae-torch[integrations] has it"
        if os.environ.get("FAIL_WITHOUT_INTEGRATIONS"):
            pytest.fail(f"FAIL_WITHOUT_INTEGRATIONS is set: {missing}")
        pytest.skip(missing)


def example(library: str) -> ModuleType:
    """The example of this library as a module."""
    require(library)
    return importlib.import_module(f"digits_{library}")


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Lightning and pythae leave seeds and addresses in the environment, which later tests would inherit."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def _accelerator_state() -> Iterator[None]:
    """Accelerate has one precision in a process, and keeps that of the first Accelerator."""
    require("accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def _double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """float64 wherever a dtype is not given, in uint8 images / 255 as well."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def digits(n: int) -> Tensor:
    """``[n, 8, 8]`` uint8."""
    return load("digits").train[:n]


def bernoulli_limits() -> tuple[float, float]:
    """What the loss of any model is above, and what it is below if the model has learned to use its code.

    -log P(x|z) of grey pixels is at least their entropy, and KL is not negative. A model that ignores z does no better
    than to give each pixel its mean.
    """
    data = load("digits")
    x = data.test.double() / 255
    entropy = (torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(1).mean()
    # A pixel that is black in all images of the training part has a mean of 0, and may be grey in a test image.
    mean = (data.train.double().mean(0) / 255).clamp(1e-4, 1 - 1e-4)
    without_code = reference.sigmoid_cross_entropy(torch.logit(mean).expand_as(x), x, reduction="mean")
    return entropy.item(), without_code.item()


def gaussian_limits(sigma: float) -> tuple[float, float]:
    """The same for a Gaussian likelihood, whose density is highest at the mean."""
    data = load("digits")
    x = data.test.double() / 255
    mean = (data.train.double().mean(0) / 255).expand_as(x)
    best, without_code = (reference.gaussian_nll(m, x, sigma=sigma, reduction="mean").item() for m in (x, mean))
    return best, without_code


def test_missing_library_is_a_skip_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIL_WITHOUT_INTEGRATIONS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no_such_library is not installed.*fastvae-torch\[integrations\]"):
        require("no_such_library")
    monkeypatch.setenv("FAIL_WITHOUT_INTEGRATIONS", "1")
    with pytest.raises(pytest.fail.Exception, match="no_such_library is not installed"):
        require("no_such_library")


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("digits_*.py")} == {f"digits_{library}" for library in LIBRARIES}


@pytest.mark.parametrize("library", LIBRARIES)
def test_example_learns_digits(
    library: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    require(library)
    if library == "accelerate":
        request.getfixturevalue("_accelerator_state")
    script = runpy.run_path(str(EXAMPLES / f"digits_{library}.py"), run_name="__main__")
    printed = re.search(r"^test loss: (\S+) nats per image$", capsys.readouterr().out, re.MULTILINE)
    assert printed
    low, high = gaussian_limits(script["SIGMA"]) if library == "diffusers" else bernoulli_limits()
    assert low < float(printed[1]) < high


def test_lightning_trains_as_a_plain_loop_does() -> None:
    module = example("lightning")
    import lightning

    class Seeded(module.DigitsVAE):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            torch.manual_seed(batch_idx)  # whatever Lightning draws in between
            return super().training_step(batch, batch_idx)

    batches = DataLoader(TensorDataset(digits(256)), batch_size=32)
    model = Seeded()
    expected = Seeded()
    expected.load_state_dict(model.state_dict())
    before = [p.detach().clone() for p in model.parameters()]

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(model, batches)

    optimizer = expected.configure_optimizers()
    for i, (images,) in enumerate(batches):
        torch.manual_seed(i)
        optimizer.zero_grad()
        expected.vae.loss(images).loss.backward()
        optimizer.step()
    for a, b, start in zip(model.parameters(), expected.parameters(), before, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, start)


@pytest.mark.usefixtures("_accelerator_state")
def test_accelerate_gives_the_operators_bfloat16() -> None:
    module = example("accelerate")
    from accelerate import Accelerator

    network = Accelerator(cpu=True, mixed_precision="bf16").prepare(module.Network())
    seen = {}
    for name in ("encoder", "decoder"):
        getattr(network, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.detach()}))
    images = digits(100)
    result = network(images)
    assert seen["encoder"].dtype == seen["decoder"].dtype == torch.bfloat16
    expected = reference.elbo_loss(seen["decoder"].double(), images, *seen["encoder"].double().chunk(2, -1))
    for a, b in zip(result, expected, strict=True):
        assert a.dtype == torch.float32
        # The bfloat16 numbers are read exactly. Terms are not negative, and each of them and of the sums that it is
        # part of, of 64 pixels and 100 images, has a rounding error of a few units at most, here 4 for the terms.
        torch.testing.assert_close(a.double(), b, rtol=(4 + PIXELS + len(images)) * 2.0**-24, atol=0)


def diffusers_moments() -> Tensor:
    """Moments, those in front beyond the limits of the log variance."""
    moments = 2 * torch.randn(6, 8, 4, 4, dtype=torch.float64)
    moments[0, 4:, 0, 0] = torch.tensor([-50.0, -30.5, 20.5, 40.0])
    return moments.requires_grad_()


def diffusers_pair(moments: Tensor) -> tuple[fastvae.DiagonalGaussian, object]:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return fastvae.DiagonalGaussian(moments, clamp=(-30.0, 20.0)), DiagonalGaussianDistribution(moments)


def test_diffusers_posterior_has_what_diffusers_own_has() -> None:
    require("diffusers")
    ours, theirs = diffusers_pair(diffusers_moments())
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public <= set(dir(ours))
    for method in ("__init__", "sample", "kl", "nll", "mode"):
        names = [inspect.signature(getattr(type(d), method)).parameters for d in (theirs, ours)]
        assert set(names[0]) <= set(names[1]), method
    for name in ("parameters", "mean", "logvar"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.mode(), theirs.mode())
    for name in ("std", "var"):
        # The same function of the same numbers.
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("what", ["kl", "kl of two", "nll"])
def test_diffusers_posterior_has_the_values_and_gradients_of_diffusers_own(what: str) -> None:
    require("diffusers")
    moments, other = diffusers_moments(), diffusers_moments()
    other.data[0] = other.data[1]  # a quotient by e^-30 would be all that counts of a sum
    value = torch.randn(6, 4, 4, 4, dtype=torch.float64)
    results = []
    for posterior, prior in zip(diffusers_pair(moments), diffusers_pair(other), strict=True):
        result = {
            "kl": posterior.kl,
            "kl of two": lambda q=posterior, p=prior: q.kl(p),
            "nll": lambda q=posterior: q.nll(value),
        }[what]()
        inputs = [moments, other] if what == "kl of two" else [moments]
        results.append((result, *torch.autograd.grad(result.sum(), inputs)))
    for a, b in zip(*results, strict=True):
        # Each is a sum of at most 64 elements of 5 terms. Terms that cancel are below 100: log variances, up to 30, and
        # the quotients beside them.
        torch.testing.assert_close(a, b, rtol=5 * PIXELS * U, atol=5 * PIXELS * U * 100)


def test_diffusers_posterior_samples_alike() -> None:
    require("diffusers")
    n = 100_000
    row = torch.tensor([[1.5, -2.0, -1.0, 2.0]], dtype=torch.float64)[:, :, None, None]
    row.requires_grad_()
    ours, theirs = diffusers_pair(row.expand(n, 4, 1, 1))
    a, b = ours.sample(generator=torch.Generator().manual_seed(1)), theirs.sample(torch.Generator().manual_seed(1))
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    for z in (a, b):
        noise = (z - ours.mean) / ours.std
        # The mean of n normals has the variance 1/n, the mean of their squares 2/n: 5 deviations of each.
        assert noise.mean(0).abs().max() < 5 / n**0.5
        assert (noise.square().mean(0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    # Of the same noise the gradients are the same: those of mean + std * noise.
    noise = ((a - ours.mean) / ours.std).detach()
    (gradient,) = torch.autograd.grad(a.square().sum(), row, retain_graph=True)
    (expected,) = torch.autograd.grad((theirs.mean + theirs.std * noise).square().sum(), row)
    # n terms with signs; the sums of their sizes are below 100 times the results.
    torch.testing.assert_close(gradient, expected, rtol=100 * n * U, atol=0)


@pytest.mark.parametrize("dims", [[1, 2, 3], (2, 3), [1], [0, 1, 2, 3], [-1]], ids=str)
def test_diffusers_posterior_sums_over_the_dims_of_diffusers_own(dims: Sequence[int]) -> None:
    require("diffusers")
    moments = diffusers_moments()
    value = torch.randn(6, 4, 4, 4, dtype=torch.float64)
    results = [posterior.nll(value, dims=dims) for posterior in diffusers_pair(moments)]
    results[0].sum().backward()
    gradient, moments.grad = moments.grad, None
    results[1].sum().backward()
    for a, b in ((results[0], results[1]), (gradient, moments.grad)):
        # As above, of sums over the 6 images too. A quotient by e^-30 is all that counts of its sum.
        torch.testing.assert_close(a, b, rtol=5 * 6 * PIXELS * U, atol=5 * 6 * PIXELS * U * 100)


def test_deterministic_diffusers_posterior_is_diffusers_own() -> None:
    require("diffusers")
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = diffusers_moments().detach()
    ours, theirs = (
        kind(parameters=moments, deterministic=True, **options)
        for kind, options in ((fastvae.DiagonalGaussian, {"clamp": (-30.0, 20.0)}), (DiagonalGaussianDistribution, {}))
    )
    for name in ("deterministic", "mean", "logvar", "std", "var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(ours.sample(generator), theirs.sample(generator))
    assert torch.equal(ours.sample(), ours.mode())
    # Diffusers' own are one zero, on the CPU; these are one for each image, where the moments are.
    for a, b in ((ours.kl(), theirs.kl()), (ours.nll(ours.mean), theirs.nll(ours.mean))):
        assert a.tolist() == [b.item()] * 6


def test_diffusers_posterior_takes_a_list_of_generators() -> None:
    """Both draw a row from its own generator, whatever the others are, and take the only one of a list for all."""
    require("diffusers")
    rows = [
        posterior.sample([torch.Generator().manual_seed(s) for s in (3, 4, 3)])
        for posterior in diffusers_pair(torch.ones(3, 8, 4, 4))
    ]
    for z in rows:
        assert z.shape == (3, 4, 4, 4)
        assert torch.equal(z[0], z[2])
        assert not torch.equal(z[0], z[1])
    for posterior in diffusers_pair(torch.ones(3, 8, 4, 4)):
        z = posterior.sample([torch.Generator().manual_seed(3)])
        assert torch.equal(z, posterior.sample(torch.Generator().manual_seed(3)))


def test_diffusers_autoencoder_loads_and_decodes_as_diffusers_own(tmp_path: Path) -> None:
    module = example("diffusers")
    from diffusers import AutoencoderKL

    own = AutoencoderKL.from_config(module.build().config)
    own.save_pretrained(tmp_path)
    model = module.FastAutoencoderKL.from_pretrained(tmp_path)
    for name, weight in own.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    x = digits(4).unsqueeze(1) / 255
    with torch.no_grad():
        # Loaded weights lie at other addresses, for which float32 convolutions may add up in another order.
        torch.testing.assert_close(model(x).sample, own(x).sample)
        posterior = model.encode(x).latent_dist
        assert isinstance(posterior, fastvae.DiagonalGaussian)
        (same,) = model.encode(x, return_dict=False)
        assert torch.equal(same.parameters, posterior.parameters)
        z = posterior.sample(torch.Generator().manual_seed(2))
        drawn = model(x, sample_posterior=True, generator=torch.Generator().manual_seed(2)).sample
        assert torch.equal(drawn, model.decode(z).sample)
        model.enable_slicing()
        # One image at a time: again another order.
        torch.testing.assert_close(model.encode(x).latent_dist.parameters, posterior.parameters)


@pytest.mark.usefixtures("_double")
def test_diffusers_autoencoder_has_the_kl_gradients_of_diffusers_own() -> None:
    module = example("diffusers")
    from diffusers import AutoencoderKL

    model = module.build()
    model.quant_conv.bias.data[2] = -50.0  # a log variance beyond the limits
    own = AutoencoderKL.from_config(model.config)
    own.load_state_dict(model.state_dict())
    x = digits(4).unsqueeze(1) / 255
    results = []
    for autoencoder in (model, own):
        kl = autoencoder.encode(x).latent_dist.kl()
        weights = [*autoencoder.encoder.parameters(), *autoencoder.quant_conv.parameters()]
        results.append((kl, *torch.autograd.grad(kl.sum(), weights)))
    for a, b in zip(*results, strict=True):
        # Of biases before a normalisation the gradients are 0, but for rounding: hence the 1. An entry adds up fewer
        # than 10^4 products, whose sizes are below 100 times the largest entry.
        torch.testing.assert_close(a, b, rtol=0, atol=1e6 * U * max(1.0, b.abs().max().item()))


def test_pythae_loss_is_pythaes_own() -> None:
    module = example("pythae")
    config = module.VAEConfig(input_dim=(8, 8), latent_dim=8, reconstruction_loss="bce")
    model = module.FastVAE(config, decoder=module.LogitDecoder(config))
    x = digits(100).double() / 255
    largest = 8.0
    logits = (3 * torch.randn_like(x)).clamp(-largest, largest).requires_grad_()
    mu = torch.randn(100, 8, dtype=torch.float64, requires_grad=True)
    log_var = torch.randn(100, 8, dtype=torch.float64, requires_grad=True)
    ours = model.loss_function(logits, x, mu, log_var, None)
    own = module.VAE.loss_function(model, torch.sigmoid(logits), x, mu, log_var, None)
    # log(1 - p) of a rounded p is off by u / (1 - p), at most u (1 + e^largest), and so is its derivative, relatively;
    # 4 roundings of that size in a pixel, and sums of 64 of them. Means over the batch are no larger.
    bound = 4 * PIXELS * U * (1 + torch.e**largest)
    for a, b in zip(ours, own, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)
    gradients, expected = (torch.autograd.grad(result[0], (logits, mu, log_var)) for result in (ours, own))
    for a, b in zip(gradients, expected, strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


def test_pythae_sampler_draws_probabilities() -> None:
    module = example("pythae")
    from pythae.samplers import NormalSampler

    config = module.VAEConfig(input_dim=(8, 8), latent_dim=8, reconstruction_loss="bce")
    model = module.FastVAE(config, decoder=module.LogitDecoder(config))
    images = NormalSampler(model).sample(num_samples=5)
    assert images.shape == (5, 8, 8)
    assert 0 < images.min() < images.max() < 1


@pytest.mark.usefixtures("_double")
def test_pyro_mean_field_elbo_is_elbo_loss() -> None:
    module = example("pyro")
    import pyro
    from pyro.distributions import Bernoulli, Normal
    from pyro.infer import TraceMeanField_ELBO

    vae = module.DigitsVAE()
    images = digits(50)

    class SameNoise(Normal):
        """Pyro's Normal, drawn from fastvae's noise: two estimates of an expectation agree exactly for the same z."""

        def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
            assert not sample_shape
            return fastvae.reparameterize(self.loc, 2 * self.scale.log())

    def plain_model(images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            z = pyro.sample("z", Normal(torch.zeros(len(images), 8), 1.0).to_event(1))
            pixels = Bernoulli(logits=vae.decoder(z), validate_args=False)  # grey ones
            pyro.sample("pixels", pixels.to_event(2), obs=images / 255)

    def plain_guide(images: Tensor) -> None:
        mu, logvar = vae.encoder(images / 255).chunk(2, -1)
        with pyro.plate("images", len(images)):
            pyro.sample("z", SameNoise(mu, (logvar / 2).exp()).to_event(1))

    def by_hand() -> Tensor:
        mu, logvar = vae.encoder(images / 255).chunk(2, -1)
        logits = vae.decoder(fastvae.reparameterize(mu, logvar))
        return fastvae.elbo_loss(logits, images, mu, logvar, reduction="sum").loss

    def by_pyro(model: object, guide: object) -> Tensor:
        return TraceMeanField_ELBO().differentiable_loss(model, guide, images)

    results = []
    for loss in (lambda: by_pyro(plain_model, plain_guide), lambda: by_pyro(vae.model, vae.guide), by_hand):
        torch.manual_seed(3)
        value = loss()
        results.append((value, *torch.autograd.grad(value, list(vae.parameters()))))
    pyro.clear_param_store()
    expected, *others = results
    # n roundings: 50 images of 64 pixels, in sums of 256 products in each of 4 layers. Where terms cancel, they are
    # less than 100 times the largest entry of the result.
    n = 50 * PIXELS + 4 * 256
    for result in others:
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=100 * n * U * b.abs().max().item())


@pytest.mark.usefixtures("_double")
def test_pyro_distribution_is_pyros_normal() -> None:
    module = example("pyro")
    from pyro.distributions import Normal

    moments = torch.randn(5, 6)
    ours = module.PackedGaussian(moments)
    mu, logvar = moments.chunk(2, -1)
    normal = Normal(mu, (logvar / 2).exp()).to_event(1)
    assert (ours.batch_shape, ours.event_shape) == (normal.batch_shape, normal.event_shape)
    z = normal.rsample()
    # Sums of 3 elements of 4 terms, each off by a few units of its size.
    torch.testing.assert_close(ours.log_prob(z), normal.log_prob(z), rtol=100 * U, atol=100 * U)
    assert ours.rsample((2, 3)).shape == normal.rsample((2, 3)).shape
    wide = ours.expand((4, 5))
    assert isinstance(wide, module.PackedGaussian)
    assert ours().shape == (5, 3)
    assert wide().shape == wide.shape() == (4, 5, 3)
    torch.testing.assert_close(wide.to_event(1).log_prob(z), normal.expand((4, 5)).log_prob(z).sum(-1))


@pytest.mark.usefixtures("_double")
def test_pyro_vectorised_particles_are_the_k_samples_of_the_operators() -> None:
    module = example("pyro")
    import pyro
    from pyro.infer import TraceMeanField_ELBO

    vae = module.DigitsVAE()
    images = digits(20)

    def by_hand() -> Tensor:
        mu, logvar = vae.encoder(images / 255).chunk(2, -1)
        logits = vae.decoder(fastvae.reparameterize(mu, logvar, num_samples=6))
        return fastvae.elbo_loss(logits, images, mu, logvar, reduction="sum").loss

    particles = TraceMeanField_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    results = []
    for loss in (lambda: particles.differentiable_loss(vae.model, vae.guide, images), by_hand):
        torch.manual_seed(3)
        value = loss()
        results.append((value, *torch.autograd.grad(value, list(vae.parameters()))))
    pyro.clear_param_store()
    n = 6 * 20 * PIXELS + 4 * 256  # as above, of 6 samples of 20 images
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * n * U * b.abs().max().item())


def test_pyro_learns_digits_with_vectorised_particles() -> None:
    module = example("pyro")
    low, high = bernoulli_limits()
    assert low < module.train(epochs=4, particles=3) < high
