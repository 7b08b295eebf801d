"""Networks other than the built-in MLPs: modules of the caller's own, and the convolutional ones."""

import json
import re

import pytest
import torch
from torch import nn

import fastvae
from fastvae.activations import peak_bytes
from fastvae.evaluation import evaluate, evaluate_code, log_likelihood
from fastvae.models import CVAE, VAE, convolutional

E, L, BATCH = (2, 8, 9), 3, 5
D = 2 * 8 * 9


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator():
    return torch.Generator().manual_seed(2)


@pytest.fixture
def x():
    return images(BATCH, *E)


def sequential():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 2 * L))
    return encoder, nn.Sequential(nn.Linear(L, 16), nn.ReLU(), nn.Linear(16, D))


def unflattened():
    encoder, decoder = sequential()
    return encoder, decoder.append(nn.Unflatten(1, E))


def columns():
    """A decoder that ends in a linear layer over one side of the image alone."""
    encoder, _ = sequential()
    return encoder, nn.Sequential(nn.Linear(L, 2 * 8 * 4), nn.ReLU(), nn.Unflatten(-1, (2, 8, 4)), nn.Linear(4, 9))


def transposed(norm=nn.BatchNorm2d):
    encoder = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), norm(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(4 * 4 * 5, 2 * L)
    )
    decoder = nn.Sequential(
        nn.Linear(L, 4 * 4 * 5),
        nn.Unflatten(1, (4, 4, 5)),
        norm(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=(1, 0)),
    )
    return encoder, decoder


def lazy():
    encoder = nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2 * L))
    return encoder, nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(D), nn.Unflatten(-1, E))


def double():
    return tuple(module.double() for module in transposed())


KINDS = [sequential, unflattened, columns, transposed, lazy, double]


def own(make=transposed, data_shape=E, **options):
    torch.manual_seed(0)
    encoder, decoder = make()
    return VAE(data_shape, latent_dim=L, encoder=encoder, decoder=decoder, **options)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_model_of_own_modules_does_all_that_a_model_does(make, likelihood, x):
    model = own(make, likelihood=likelihood)
    assert (model.hidden, model.network) == ((), None)
    loss = model.loss(x).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.importance_weighted_loss(x, 4).loss.backward()
    model.eval()
    output = model(x, generator())
    dtype = next(model.parameters()).dtype
    assert output.decoded.dtype == output.mu.dtype == dtype
    assert output.decoded.shape == model.reconstruct(x).shape == x.shape
    assert output.mu.shape == output.logvar.shape == (BATCH, L)
    assert model.sample(4).shape == (4, *E)
    assert model.sample(0).shape == (0, *E)
    # Leading dimensions of codes are samples like any others.
    z = torch.randn(2, 4, BATCH, L, dtype=dtype)
    for codes in (z, z[0], z[0, 0], z[0, 0, 0]):
        one_by_one = torch.stack([model.decode(row[None])[0] for row in codes.reshape(-1, L)])
        torch.testing.assert_close(model.decode(codes), one_by_one.reshape(*codes.shape[:-1], *E))
    expected = model.output.nll(model.decode(z[0]), x, reduction="none")
    torch.testing.assert_close(model.nll(z[0], x), expected)


@pytest.mark.parametrize(
    ("make", "fused"),
    [(sequential, ["relu"]), (unflattened, ["relu"]), (lazy, ["tanh"]), (columns, []), (transposed, [])],
)
def test_logits_of_a_last_linear_layer_are_not_kept(make, fused, x, monkeypatch):
    model, calls = own(make), []
    op = fastvae.models.pixels.linear_sigmoid_cross_entropy
    monkeypatch.setattr(
        fastvae.models.pixels,
        "linear_sigmoid_cross_entropy",
        lambda *args, **options: calls.append(options["activation"]) or op(*args, **options),
    )
    model.eval()
    for samples in (None, 3):
        z = torch.randn(BATCH, L) if samples is None else torch.randn(samples, BATCH, L)
        through = model.nll(z, x)
        assert calls == fused
        # What is hooked is called.
        for layer, expected in ((model.decoder[-1], []), (model.decoder[1], [None] if fused else [])):
            calls.clear()
            seen = []
            hook = layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
            torch.testing.assert_close(model.nll(z, x), through)
            assert (len(seen), calls) == (1, expected)
            hook.remove()
        calls.clear()


@pytest.mark.parametrize("likelihood", ["negative-binomial", "zinb", "multinomial"])
@pytest.mark.parametrize("samples", [(), (3,)], ids=["B", "KB"])
def test_last_layers_of_counts_run_with_their_loss(likelihood, samples, monkeypatch):
    """The same loss and gradients as of the decoder's result, which a hook asks for."""
    model = VAE(E, hidden=(9,), latent_dim=L, likelihood=likelihood)
    name = f"linear_{'multinomial' if likelihood == 'multinomial' else 'negative_binomial'}_nll"
    op, calls = getattr(fastvae.models.counts, name), []
    monkeypatch.setattr(
        fastvae.models.counts,
        name,
        lambda *args, **options: calls.append(options["activation"]) or op(*args, **options),
    )
    z, counts = torch.randn(*samples, BATCH, L), torch.randint(0, 9, (BATCH, *E))
    found = []
    for hooked in (False, True):
        if hooked:
            model.decoder[-1].register_forward_hook(lambda *_: None)
        model.zero_grad()
        nll = model.nll(z, counts)
        nll.sum().backward()
        found.append([nll.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert calls == ["relu"]
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_a_sequential_with_a_forward_of_its_own_is_called(x):
    class Doubled(nn.Sequential):
        def forward(self, z):
            return 2 * super().forward(z)

    encoder, decoder = sequential()
    model = VAE(E, latent_dim=L, encoder=encoder, decoder=Doubled(*decoder))
    z = torch.randn(BATCH, L)
    torch.testing.assert_close(model.nll(z, x), model.output.nll(2 * decoder(z).view(x.shape), x, reduction="none"))


@pytest.mark.parametrize("make", [transposed, columns, double])
def test_making_a_model_changes_nothing_but_lazy_modules(make):
    torch.manual_seed(0)
    encoder, decoder = make()
    encoder[1].eval()  # as frozen statistics are
    modes = [m.training for network in (encoder, decoder) for m in network.modules()]
    before = {name: t.clone() for network in (encoder, decoder) for name, t in network.state_dict().items()}
    # Whatever the module draws, also in evaluation mode.
    encoder.insert(0, Noisy())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    VAE(E, latent_dim=L, encoder=encoder, decoder=decoder)
    assert torch.equal(torch.rand(3), expected)
    del encoder[0]
    assert [m.training for network in (encoder, decoder) for m in network.modules()] == modes
    after = {name: t for network in (encoder, decoder) for name, t in network.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for network in (encoder, decoder) for p in network.parameters())


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_lazy_modules_are_ready_and_two_of_them_differ():
    first, second = own(lazy), VAE(E, latent_dim=L, **dict(zip(("encoder", "decoder"), lazy(), strict=True)))
    assert not any(nn.parameter.is_lazy(p) for p in first.parameters())
    assert not torch.equal(first.encoder[0].weight, second.encoder[0].weight)


@pytest.mark.parametrize("make", KINDS)
def test_models_of_own_modules_are_made_without_memory(make):
    with torch.device("meta"):
        model = VAE(E, latent_dim=L, **dict(zip(("encoder", "decoder"), make(), strict=True)))
    assert all(p.is_meta for p in model.parameters())
    filled = model.to_empty(device="cpu")
    filled.load_state_dict(own(make).state_dict())
    torch.testing.assert_close(filled.eval().sample(3, generator()), own(make).eval().sample(3, generator()))


def tuple_of_moments():
    class Moments(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :L], x.flatten(1)[:, :L]

    return Moments(), sequential()[1]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            lambda: (nn.Sequential(nn.Flatten(), nn.Linear(D, 12)), sequential()[1]),
            "encoder gives [2, 12] for a batch [2, 2, 8, 9], expected [2, 6]: mu and logvar of latent_dim 3",
        ),
        (
            lambda: (nn.Linear(D, 6), sequential()[1]),
            "encoder cannot take a batch [2, 2, 8, 9]: mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            tuple_of_moments,
            "encoder gives a tuple for a batch [2, 2, 8, 9], expected [2, 6]: mu and logvar of latent_dim 3",
        ),
        (
            lambda: (sequential()[0], nn.Linear(L, 7)),
            "decoder gives [2, 7] for codes [2, 3], expected [2, 2, 8, 9]",
        ),
        (
            lambda: (sequential()[0], nn.Linear(4, D)),
            "decoder cannot take codes [2, 3]: mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            lambda: (None, sequential()[1]),
            "encoder and decoder must both be modules, or both be left out; encoder is None",
        ),
        (
            lambda: (sequential()[0], None),
            "encoder and decoder must both be modules, or both be left out; decoder is None",
        ),
        (
            lambda: (sequential()[0], torch.sigmoid),
            "encoder and decoder must both be modules, or both be left out; decoder is <built-in",
        ),
    ],
)
def test_modules_that_do_not_fit_are_an_error_of_one_line(modules, message):
    encoder, decoder = modules()
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        VAE(E, latent_dim=L, encoder=encoder, decoder=decoder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ()}, "encoder and decoder of your own take no hidden"),
        (
            {"hidden": (8,), "activation": "relu", "preset": "doersch"},
            "encoder and decoder of your own take no hidden, activation, preset",
        ),
        ({"conv_norm": "group"}, "encoder and decoder of your own take no conv_norm"),
        ({"network": "conv"}, "give either encoder and decoder or network 'conv', not both"),
    ],
)
@pytest.mark.parametrize("kind", [VAE, CVAE])
def test_own_modules_take_no_options_of_built_in_ones(kind, options, message):
    encoder, decoder = sequential()
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind(E, latent_dim=L, encoder=encoder, decoder=decoder, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_width": 4}, "network 'mlp' takes no conv_width"),
        ({"network": "conv", "hidden": (8,)}, "network 'conv' takes no hidden"),
        ({"network": "conv", "preset": "doersch"}, "network 'conv' takes no preset"),
        ({"network": "conv", "activation": "tanh"}, "network 'conv' takes no activation"),
        ({"network": "unet"}, "network must be one of mlp, conv or package.module:function, not 'unet'"),
        ({"network": "conv", "conv_width": 0}, "width must hold positive integers, not 0"),
        ({"network": "conv", "conv_norm": "layer"}, "norm must be 'group' or 'batch' or 'none', not 'layer'"),
        ({"network": "conv", "data_shape": 784}, r"data_shape must be \(C, H, W\) or \(H, W\) .*, not \(784,\)"),
        ({"network": "conv", "data_shape": (7, 28)}, "convolutional networks take sides of 8 to 256, not 7"),
        ({"network": "conv", "data_shape": (3, 28, 257)}, "convolutional networks take sides of 8 to 256, not 257"),
    ],
)
@pytest.mark.parametrize("kind", [VAE, CVAE])
def test_networks_refuse_what_they_cannot_do(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind(**{"data_shape": E} | options)


def test_built_in_models_keep_the_names_of_their_tensors():
    names = [f"{part}.{i}.{kind}" for part in ("encoder", "decoder") for i in (0, 2) for kind in ("weight", "bias")]
    assert list(VAE(6, (4,), 2).state_dict()) == names
    assert set(VAE(6, (4,), 2).config) == {
        *("data_shape", "hidden", "latent_dim", "likelihood", "sigma", "learn_sigma", "activation", "preset")
    }
    assert list(CVAE(6, 3, (4,), 2).state_dict()) == [
        f"{name}.{kind}"
        for name in (
            *("condition.to_encoder.0", "condition.to_decoder.1"),
            *("encoder_below.0", "encoder_above.1", "decoder_below.0", "decoder_above.1"),
        )
        for kind in ("weight", "bias")
    ]


def test_config_of_a_model_of_own_modules_is_all_but_the_modules():
    model = own(likelihood="gaussian", sigma=0.3, learn_sigma=True)
    config = json.loads(json.dumps(model.config))
    assert config == {
        **{"data_shape": [2, 8, 9], "latent_dim": 3},
        **{"likelihood": "gaussian", "sigma": 0.3, "learn_sigma": True},
    }
    encoder, decoder = transposed()
    again = VAE(**config, encoder=encoder, decoder=decoder)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


class Given(nn.Module):
    """Layers of x or z beside a condition; it remembers what it was given."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer, self.given = nn.Linear(inputs, outputs), []

    def forward(self, x, condition):
        self.given.append((x.shape, condition))
        return self.layer(torch.cat([x.flatten(1), condition.flatten(1)], 1))


def own_cvae(numbers, dtype=torch.float32, **options):
    torch.manual_seed(0)
    encoder, decoder = Given(D + numbers, 2 * L).to(dtype), Given(L + numbers, D).to(dtype)
    return CVAE(E, latent_dim=L, encoder=encoder, decoder=decoder, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [True, False])
def test_own_modules_of_a_cvae_are_given_the_condition_as_numbers(labels, dtype, x):
    if labels:
        model, condition = own_cvae(4, dtype, condition_classes=4), torch.tensor([3, 0, 1, 1, 2])
        numbers = nn.functional.one_hot(condition, 4).to(dtype)
    else:
        model, condition = own_cvae(6, dtype, condition_shape=(2, 3)), images(BATCH, 2, 3)
        numbers = condition.to(dtype) / 255
    encoder, decoder = model.encoder.given, model.decoder.given
    encoder.clear(), decoder.clear()
    model.loss(x, condition).loss.backward()
    assert (encoder[0][0], decoder[0][0]) == ((BATCH, *E), (BATCH, L))
    torch.testing.assert_close(encoder[0][1], numbers)
    torch.testing.assert_close(decoder[0][1], numbers)
    model.importance_weighted_loss(x, condition, 4).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    # Of K samples, those of the first K are of all conditions.
    assert decoder[1][0] == (4 * BATCH, L)
    torch.testing.assert_close(decoder[1][1], numbers.repeat(4, *[1] * (numbers.dim() - 1)))
    z = torch.randn(2, 4, BATCH, L, dtype=dtype)
    each = torch.stack([model.decode(codes, condition) for codes in z.flatten(0, 1)])
    torch.testing.assert_close(model.decode(z, condition), each.unflatten(0, (2, 4)))
    expected = model.output.nll(model.decode(z[0], condition), x, reduction="none")
    torch.testing.assert_close(model.nll(z[0], x, condition), expected)
    assert model.sample(condition, 2).shape == (2, BATCH, *E)
    assert model.reconstruct(x, condition).shape == (BATCH, *E)
    with pytest.raises(ValueError, match=r"a condition for each sample, got 1 for a batch \[5\]"):
        model.loss(x, condition[:1])


def test_cvae_names_the_conditions_that_a_module_cannot_take():
    message = r"^decoder cannot take codes \[2, 3\] with conditions \[2, 4\]: mat1 and mat2"
    with pytest.raises(ValueError, match=message):
        CVAE(E, condition_classes=4, latent_dim=L, encoder=Given(D + 4, 2 * L), decoder=Given(L, D))
    with pytest.raises(ValueError, match=r"^encoder cannot take a batch .* with conditions \[2, 28\]: .*argument"):
        CVAE(E, latent_dim=L, encoder=sequential()[0], decoder=Given(L + 28, D))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8])
def test_integers_are_read_as_their_value(dtype, likelihood):
    high = 2 if likelihood == "bernoulli" else 100
    counts = torch.randint(0, high, (BATCH, *E), generator=generator()).to(dtype)
    condition = torch.randint(-50, 50, (BATCH, 28), generator=generator()).to(dtype)
    for model, given in (
        (own(unflattened, likelihood=likelihood), ()),
        (own_cvae(28, likelihood=likelihood), (condition,)),
    ):
        expected = model.loss(counts.float(), *(c.float() for c in given), generator=generator())
        torch.testing.assert_close(model.loss(counts, *given, generator=generator()), expected)


def test_counts_as_targets_keep_their_value_in_bfloat16():
    model = VAE(6, (4,), 2, likelihood="gaussian").bfloat16()
    z = torch.zeros(1, 2, dtype=torch.bfloat16)
    x = torch.full((1, 6), 257)  # no number of bfloat16
    torch.testing.assert_close(model.nll(z, x), model.nll(z, x.float()))


def test_bernoulli_refuses_integers_that_are_no_probabilities(x):
    for make in (unflattened, transposed):
        with pytest.raises(ValueError, match=r"target must lie in \[0, 1\], got \d+"):
            own(make).loss(x.int())


SIZES = [(8, 8), (9, 9), (28, 28), (28, 27), (31, 31), (1, 8, 9), (3, 64, 48), (2, 8, 40), (1, 256, 256)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_convolutional_networks_take_any_size(shape, norm):
    encoder, decoder = convolutional(shape, L, width=4, norm=norm)
    moments = encoder(torch.rand(2, *shape))
    assert moments.shape == (2, 2 * L)
    assert not moments[:, L:].any()  # N(mu, 1) at first
    assert moments[:, :L].std() > 0.05
    decoded = decoder(torch.randn(2, L))
    assert decoded.shape == (2, *shape)
    assert 0.01 < decoded.std() < 0.3  # about 0.1


def test_a_level_halves_both_sides_until_the_shorter_one_is_4_to_7():
    maps = []
    encoder, decoder = convolutional((3, 64, 48), L, width=4)
    for level in [*encoder.levels, *decoder.levels]:
        level.register_forward_hook(lambda module, inputs, h: maps.append((*h.shape[1:], len(module.blocks))))
    decoder(encoder(torch.rand(2, 3, 64, 48))[:, :L])
    # Residual blocks are where the longer side is at most 16.
    down = [(4, 32, 24, 0), (4, 16, 12, 1), (8, 8, 6, 1)]
    assert maps == down + down[::-1]


@pytest.mark.parametrize("shape", [(28, 27), (3, 33, 40)], ids=str)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("kind", [VAE, CVAE])
def test_gradients_reach_every_parameter_of_convolutional_networks(kind, norm, shape):
    torch.manual_seed(0)
    given = () if kind is VAE else (torch.tensor([0, 2, 1, 1, 0, 2]),)
    options = {} if kind is VAE else {"condition_classes": 3}
    model = kind(shape, latent_dim=L, network="conv", conv_width=8, conv_depth=2, conv_norm=norm, **options)
    x = images(6, *shape)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):  # at first, branches that start at zero hide what is in them
        optimizer.zero_grad()
        model.loss(x, *given).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-7, name  # noqa: PT018


def conv(kind=VAE, shape=(9, 11), **options):
    torch.manual_seed(0)
    return kind(shape, latent_dim=L, network="conv", conv_width=8, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VAE, {}),
        (VAE, {"conv_depth": 2, "conv_norm": "batch", "likelihood": "gaussian"}),
        (CVAE, {"condition_classes": 3}),
        (CVAE, {"condition_shape": (2, 3)}),
    ],
    ids=str,
)
def test_config_builds_convolutional_models_again(kind, options):
    model = conv(kind, **options)
    config = json.loads(json.dumps(model.config))
    assert (config["network"], config["conv_width"]) == ("conv", 8)
    with torch.device("meta"):
        again = kind(**config)
    again = again.to_empty(device="cpu")
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    given = () if kind is VAE else (torch.tensor([0, 2]) if "condition_classes" in options else images(2, 2, 3),)
    x = images(2, 9, 11)
    assert torch.equal(again.eval().reconstruct(x, *given), model.eval().reconstruct(x, *given))


def test_convolutional_weights_are_those_of_the_seed():
    one, other = conv(), conv()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_convolutional_cvae_depends_on_its_condition():
    model = conv(CVAE, condition_classes=3)
    x, z = images(1, 9, 11).expand(3, 9, 11), torch.zeros(3, L)
    labels = torch.arange(3)
    assert model.encode(x, labels)[0].std(0).min() > 1e-3
    assert model.decode(z, labels).std(0).max() > 1e-3


def test_convolutional_models_run_in_channels_last_compiled_and_in_bfloat16():
    model, x = conv(shape=(3, 12, 10)), images(4, 3, 12, 10)
    expected = model.loss(x, generator=generator()).loss
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(x, generator=generator()).loss
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=2e-2, atol=0)
    model.to(memory_format=torch.channels_last)
    last = model.loss(x.to(memory_format=torch.channels_last), generator=generator()).loss
    torch.testing.assert_close(last, expected)
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    expected = model.loss(x).loss
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x).loss, expected)


def test_a_convolutional_vae_learns_two_patterns():
    torch.manual_seed(0)
    patterns = images(2, 8, 8)
    x = patterns[torch.arange(32) % 2]
    model = conv(shape=(8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss(x).loss.backward()
        optimizer.step()
    assert (model.reconstruct(patterns) - patterns / 255).abs().mean() < 0.1
    # Which of two it is takes a bit, ln 2 = 0.69 nats, and the code should not take many more.
    assert 0.5 < model.loss(x).kl < 4


EVALUATED = [
    lambda: (own(transposed), ()),
    lambda: (own(unflattened, likelihood="gaussian"), ()),
    lambda: (conv(shape=E), ()),
    lambda: (conv(CVAE, E, condition_classes=3), (torch.arange(12) % 3,)),
]


@pytest.mark.parametrize("make", EVALUATED, ids=["transposed", "gaussian", "conv", "conv cvae"])
def test_evaluation_of_other_networks(make):
    model, given = make()
    x = images(12, *E)
    report = evaluate(model, x, *given, batch_size=5, generator=generator())
    code = evaluate_code(model, x, *given, batch_size=5)
    assert sum(code.nats) == pytest.approx(report.kl, rel=1e-4)
    many = log_likelihood(model, x, *given, num_samples=50)
    assert many.log_likelihood > report.elbo
    few = log_likelihood(model, x, *given, num_samples=50, memory=1)
    assert abs(few.log_likelihood - many.log_likelihood) < 5 * (few.sampling_error + many.sampling_error) + 0.1
    assert model.training


@pytest.mark.parametrize("make", EVALUATED, ids=["transposed", "gaussian", "conv", "conv cvae"])
@pytest.mark.parametrize("memory", [100_000, 1_000_000])
def test_chunks_of_other_networks_stay_within_the_memory(make, memory, monkeypatch):
    model, given = make()
    peaks = []
    chunk = fastvae.evaluation._chunk_weights

    def measured(*args):
        results = []
        peaks.append(peak_bytes(lambda: results.append(chunk(*args))))
        return results[0]

    monkeypatch.setattr(fastvae.evaluation, "_chunk_weights", measured)
    log_likelihood(model, images(4, *E), *(c[:4] for c in given), num_samples=200, memory=memory)
    # The first is that of one sample, by which chunks are made; they are no smaller than they need to be.
    assert memory / 4 < max(peaks[1:]) <= memory


def test_peak_bytes_are_those_of_the_tensors_that_live_at_once():
    def compute():
        a = torch.zeros(1000)  # 4000 bytes
        b = a + 1
        del a
        b.view(10, 100).mul_(2)
        c = torch.cat([b, b])  # 8000 beside the 4000 of b
        del b
        return c.sum()

    assert peak_bytes(compute) == 12_000
