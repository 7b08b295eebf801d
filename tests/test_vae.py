"""The VAE: shapes, the loss against its definition, and what it refuses."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import parametrizations, prune

import fastvae
from fastvae.models import VAE, VAEOutput

LIKELIHOODS = ["bernoulli", "gaussian"]


def small_vae(data_shape=(4, 5), likelihood="bernoulli", **options):
    torch.manual_seed(0)
    return VAE(data_shape, (16, 8), 3, likelihood=likelihood, **options)


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator():
    return torch.Generator().manual_seed(2)


def test_vae_is_the_tutorials_network_by_default():
    # 2,844,844 is the count of the tutorial's own VAE, with mu and log sigma in one layer here.
    assert sum(p.numel() for p in VAE().parameters()) == 2_844_844


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("data_shape", [7, (4, 5), (3, 4, 5)])
def test_vae_keeps_the_shape_of_the_data(data_shape, likelihood):
    event = (data_shape,) if isinstance(data_shape, int) else data_shape
    model = small_vae(data_shape, likelihood)
    x = images(6, *event)
    output = model(x)
    assert isinstance(output, VAEOutput)
    assert output.decoded.shape == (6, *event)
    assert output.mu.shape == output.logvar.shape == output.z.shape == (6, 3)
    assert model.decode(torch.zeros(2, 6, 3)).shape == (2, 6, *event)
    assert model.reconstruct(x).shape == (6, *event)
    assert model.sample(9).shape == (9, *event)
    assert model.sample(0).shape == (0, *event)


def test_encode_returns_two_views_of_one_tensor():
    mu, logvar = small_vae().encode(images(6, 4, 5))
    assert mu.untyped_storage().data_ptr() == logvar.untyped_storage().data_ptr()


def test_vae_without_hidden_layers_is_linear():
    model = VAE(5, (), 2)
    assert [name for name, _ in model.named_parameters()] == [
        f"{part}.0.{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias")
    ]
    assert model(images(3, 5)).decoded.shape == (3, 5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_loss_is_the_negative_elbo(likelihood, beta):
    sigma = 0.3
    model = small_vae(likelihood=likelihood, sigma=sigma)
    x = images(6, 4, 5)
    loss = model.loss(x, beta=beta, generator=generator())

    mu, logvar = model.encode(x)
    if likelihood == "bernoulli":
        z = fastvae.reparameterize(mu, logvar, generator=generator())
        terms = binary_cross_entropy_with_logits(model.decode(z), x / 255, reduction="none")
    else:
        z, _ = fastvae.sample_kl(mu, logvar, generator=generator())
        terms = ((model.decode(z) - x / 255) / sigma) ** 2 / 2 + math.log(sigma * math.sqrt(2 * math.pi))
    reconstruction = terms.double().sum() / 6
    kl = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).double().sum() / 6
    torch.testing.assert_close(loss.reconstruction.double(), reconstruction, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.kl.double(), kl, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.loss.double(), reconstruction + beta * kl, rtol=1e-5, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_is_the_same_for_every_dtype_of_the_data(likelihood):
    model = small_vae(likelihood=likelihood)
    grey = images(6, 4, 5)
    expected = model.loss(grey, generator=generator()).loss
    torch.testing.assert_close(model.loss(grey / 255, generator=generator()).loss, expected)
    torch.testing.assert_close(model.loss(grey.double() / 255, generator=generator()).loss.float(), expected)

    binary = grey > 127
    expected = model.loss(binary, generator=generator()).loss
    torch.testing.assert_close(model.loss(binary.float(), generator=generator()).loss, expected)
    torch.testing.assert_close(model.loss(binary.byte() * 255, generator=generator()).loss, expected)


def test_double_model_takes_uint8():
    model = small_vae().double()
    assert model.loss(images(6, 4, 5)).loss.dtype == torch.float64
    assert model.sample(2).dtype == torch.float64


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_has_a_gradient_for_every_parameter(likelihood):
    model = small_vae(likelihood=likelihood)
    model.loss(images(6, 4, 5)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_beta_may_be_a_tensor():
    model = small_vae()
    beta = torch.tensor(0.5, requires_grad=True)
    loss = model.loss(images(6, 4, 5), beta=beta)
    loss.loss.backward()
    torch.testing.assert_close(beta.grad, loss.kl.detach())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_generator_fixes_loss_and_samples(likelihood):
    model, x = small_vae(likelihood=likelihood), images(6, 4, 5)
    assert model.loss(x, generator=generator()).loss == model.loss(x, generator=generator()).loss
    assert model.loss(x, generator=generator()).loss != model.loss(x).loss
    assert torch.equal(model(x, generator()).z, model(x, generator()).z)
    assert torch.equal(model.sample(4, generator()), model.sample(4, generator()))
    assert not torch.equal(model.sample(4, generator()), model.sample(4))


def test_samples_are_probabilities_or_means():
    logits = small_vae()
    codes = fastvae.reparameterize(torch.zeros(4, 3), torch.zeros(4, 3), generator=generator())
    torch.testing.assert_close(logits.sample(4, generator()), logits.decode(codes).sigmoid().detach())
    means = small_vae(likelihood="gaussian")
    torch.testing.assert_close(means.sample(4, generator()), means.decode(codes).detach())


def test_reconstruct_decodes_the_mode():
    model, x = small_vae(), images(6, 4, 5)
    expected = model.decode(model.encode(x)[0]).sigmoid()
    torch.testing.assert_close(model.reconstruct(x), expected.detach())
    assert not model.reconstruct(x).requires_grad


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_compiles_to_the_same_numbers(likelihood):
    model, x = small_vae(likelihood=likelihood), images(6, 4, 5)
    compiled = torch.compile(model.loss, fullgraph=True)
    results = []
    for loss in (model.loss, compiled):
        model.zero_grad()
        torch.manual_seed(3)
        value = loss(x).loss
        value.backward()
        results.append((value.detach(), model.encoder[0].weight.grad.clone()))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_under_autocast_is_near_and_float32(likelihood):
    model, x = small_vae(likelihood=likelihood), images(6, 4, 5)
    expected = model.loss(x, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).decoded.dtype == torch.bfloat16
        loss = model.loss(x, generator=generator())
    loss.loss.backward()
    assert loss.loss.dtype == torch.float32
    # bfloat16 has 8 bits: layers and codes are off by some 2^-8, the loss by not much more.
    torch.testing.assert_close(loss.loss, expected.loss, rtol=2e-2, atol=0)
    assert model.encoder[0].weight.grad.dtype == torch.float32


def test_vae_learns_two_patterns():
    torch.manual_seed(0)
    patterns = images(2, 20)
    x = patterns[torch.arange(64) % 2]
    model = VAE(20, (32,), 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(x).loss.backward()
        optimizer.step()
    assert (model.reconstruct(patterns) - patterns / 255).abs().max() < 0.1
    # Which of two it is takes a bit, ln 2 = 0.69 nats, and the code should not take many more.
    assert 0.5 < model.loss(x).kl < 3


def test_config_builds_the_model_again():
    model = small_vae((4, 5), "gaussian", sigma=0.3)
    again = VAE(**model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    x = images(6, 4, 5)
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_shape": 0}, "data_shape must hold positive integers, not 0"),
        ({"data_shape": (28, -1)}, "data_shape must hold positive integers, not -1"),
        ({"data_shape": ()}, "data_shape must name at least one dimension"),
        ({"hidden": (8, 0)}, "hidden must hold positive integers, not 0"),
        ({"hidden": (8.0,)}, "hidden must hold positive integers, not 8.0"),
        ({"latent_dim": 0}, "latent_dim must hold positive integers, not 0"),
        ({"likelihood": "cauchy"}, "likelihood must be 'bernoulli' or 'gaussian' or .*, not 'cauchy'"),
        ({"sigma": 0.0}, "sigma must be a positive finite number, not 0.0"),
        ({"sigma": -1.0}, "sigma must be a positive finite number, not -1.0"),
        ({"sigma": math.nan}, "sigma must be a positive finite number, not nan"),
        ({"sigma": math.inf}, "sigma must be a positive finite number, not inf"),
    ],
)
def test_vae_rejects_options(options, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        VAE(**options)


@pytest.mark.parametrize("method", ["encode", "loss", "reconstruct", "forward"])
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 20), (4, 5), (), (6, 4, 5, 1)])
def test_vae_rejects_a_wrong_event_and_names_both_shapes(method, shape):
    with pytest.raises(ValueError, match=r"x has shape \[.*\], expected \[B, 4, 5\]") as error:
        getattr(small_vae(), method)(images(*shape))
    assert str(list(shape)) in str(error.value)


def test_vae_rejects_other_misuse():
    model = small_vae()
    with pytest.raises(ValueError, match=r"x must be integers, bool or floating point, not torch.complex64"):
        model.loss(torch.zeros(6, 4, 5, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"target must lie in \[0, 1\], got \d+ at"):
        model.loss(images(6, 4, 5).long())
    with pytest.raises(ValueError, match=r"z has shape \[6, 4\], expected \[..., 3\]"):
        model.decode(torch.zeros(6, 4))
    with pytest.raises(ValueError, match="n must be 0 or more, not -1"):
        model.sample(-1)


def test_importing_the_models_loads_no_plotting_cli_or_data_library():
    script = (
        "import sys, fastvae, fastvae.models; "
        "print([m for m in ('matplotlib', 'typer', 'rich', 'pooch', 'sklearn', 'tensorboard', 'safetensors', "
        "'fastvae.data', 'fastvae.training', 'fastvae.cli') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_hooks_of_the_last_layer_take_part_in_the_loss():
    """Pruning sets the weight in a pre-hook, and so do sharded weights."""
    model = VAE(12, (8,), 3)
    x = torch.rand(5, 12)
    prune.l1_unstructured(model.decoder[-1], "weight", 0.5)
    mask = model.decoder[-1].weight_mask
    for _ in range(2):
        model.zero_grad()
        model.loss(x).loss.backward()
        assert (model.decoder[-1].weight_orig.grad[mask == 0] == 0).all()
        assert (model.decoder[-1].weight_orig.grad[mask == 1] != 0).any()


@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 1, 3), (2, 2, 5, 3)], ids=str)
def test_nll_wants_a_code_for_each_image(shape):
    with pytest.raises(ValueError, match=r"z has shape \[.*\], expected \[5, 3\] or \[K, 5, 3\]"):
        VAE(12, (8,), 3).nll(torch.zeros(shape), torch.rand(5, 12))


def test_nll_is_that_of_the_decoded():
    for model in (VAE((3, 4), (8,), 3), VAE((3, 4), (8,), 3, likelihood="gaussian", sigma=0.5)):
        z, x = torch.randn(2, 5, 3), torch.rand(5, 3, 4)
        expected = model.output.nll(model.decode(z), x, reduction="none")
        torch.testing.assert_close(model.nll(z, x), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("beta", [torch.ones(2), torch.tensor(2), math.nan, math.inf], ids=str)
def test_beta_must_be_one_finite_number(beta):
    with pytest.raises(ValueError, match="beta must be"):
        VAE(12, (8,), 3).loss(torch.rand(5, 12), beta)


def test_loss_compiles_for_a_beta_that_changes():
    model = VAE(12, (8,), 3)
    compiled = torch.compile(lambda x, beta: model.loss(x, beta).loss, fullgraph=True, backend="eager")
    x = torch.rand(5, 12)
    for beta in (0.1, 0.2, 0.3):
        torch.manual_seed(1)
        expected = model.loss(x, beta).loss
        torch.manual_seed(1)
        torch.testing.assert_close(compiled(x, beta), expected)


def replica(module):
    """What DataParallel makes of a module for each device: its parameters are plain attributes of tensors."""
    copy = module._replicate_for_data_parallel()
    copy._former_parameters = {}
    for name, child in module._modules.items():
        setattr(copy, name, None if child is None else replica(child))
    for name, parameter in module._parameters.items():
        if parameter is None:
            copy._parameters[name] = None
        else:
            setattr(copy, name, parameter.clone())
            copy._former_parameters[name] = getattr(copy, name)
    return copy


class WithoutParameters(nn.Module):
    """An encoder that computes the moments of a code of two from the pixels as they are."""

    def forward(self, x):
        return torch.cat([x[:, :2], x[:, :2] - 1], 1)


def learned_sigma_in_float32():
    model = small_vae(likelihood="gaussian", learn_sigma=True).bfloat16()
    model.output.float()
    return model


def first_layer_parametrised():
    model = small_vae().double()
    parametrizations.weight_norm(model.encoder[0])
    parametrizations.weight_norm(model.decoder[-1])
    return model


def pruned():
    model = small_vae().double()
    prune.l1_unstructured(model.encoder[0], "weight", 0.5)
    return model


def without_encoder_parameters():
    model = VAE((4, 5), (), 2).double()
    model.encoder = WithoutParameters()
    return model


def frozen():
    """Weights that are buffers."""
    model = small_vae().double()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return model


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantized tensor creation")
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: torch.ao.quantization.quantize_dynamic(small_vae(), {nn.Linear}), torch.float32),
        (lambda: replica(small_vae().double()), torch.float64),
        (lambda: replica(small_vae(likelihood="gaussian", learn_sigma=True)), torch.float32),
        (learned_sigma_in_float32, torch.bfloat16),
        (first_layer_parametrised, torch.float64),
        (pruned, torch.float64),
        (without_encoder_parameters, torch.float64),
        (frozen, torch.float64),
    ],
    ids=["quantized", "replica", "replica with sigma", "sigma", "parametrised", "pruned", "no encoder", "frozen"],
)
def test_networks_are_fed_the_dtype_of_their_own_weights(make, dtype):
    """A DataParallel replica and a quantised model have no parameters, and the first of a model may be its sigma."""
    model = make()
    for x in (images(6, 4, 5), images(6, 4, 5) / 255, images(6, 4, 5) > 127):
        mu, logvar = model.encode(x)
        assert mu.dtype == logvar.dtype == dtype
        assert model(x).decoded.dtype == dtype
        assert model.reconstruct(x).dtype == dtype
        assert model.loss(x).loss.isfinite()
    assert model.sample(3).dtype == dtype
    # As an nn.Sequential of the two networks does with the numbers that they read.
    expected = model.encoder((images(6, 4, 5).to(dtype) / 255).flatten(1))
    torch.testing.assert_close(torch.cat(model.encode(images(6, 4, 5)), -1), expected)


def test_a_model_without_weights_takes_numbers_as_they_are():
    model = VAE((4, 5), (), 2)
    model.encoder, model.decoder = WithoutParameters(), nn.Upsample(20)
    model.decoder.forward = lambda z: z.repeat_interleave(10, -1)
    for x, dtype in ((images(6, 4, 5), torch.float32), (images(6, 4, 5).double(), torch.float64)):
        assert model.encode(x)[0].dtype == model.reconstruct(x).dtype == dtype
    assert model.sample(3).dtype == torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert model.encode(images(6, 4, 5))[0].dtype == model.sample(3).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_functional_call_feeds_the_dtype_of_the_weights_that_it_is_given():
    model = small_vae()
    weights = {name: p.double() for name, p in model.named_parameters()}
    output = torch.func.functional_call(model, weights, (images(6, 4, 5),))
    assert output.decoded.dtype == output.mu.dtype == torch.float64
