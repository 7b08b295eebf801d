"""CVAE and regressor: the tutorial's wiring and weights, other conditions, and what they refuse."""

import pytest
import torch
from test_vae import replica
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

import fastvae
from fastvae.models import CVAE, VAE, Regressor

BATCH = 6


def generator():
    return torch.Generator().manual_seed(2)


def small(kind=CVAE, **options):
    torch.manual_seed(0)
    sizes = ((4, 5), None if "condition_classes" in options else (2, 3), (16, 8, 7))
    return kind(*sizes, 3, **options) if kind is CVAE else kind(*sizes, **options)


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def x():
    return images(BATCH, 4, 5)


@pytest.fixture
def condition():
    return images(BATCH, 2, 3)


@pytest.mark.parametrize("preset", [None, "doersch"])
def test_models_are_the_tutorials_by_default(preset):
    options = {} if preset is None else {"preset": preset}
    models = [kind(**options) for kind in (VAE, CVAE, Regressor)]
    assert [sum(p.numel() for p in m.parameters()) for m in models] == [2_844_844, 3_506_316, 2_100_756]
    # 27 columns of a digit given the middle one.
    for model in models[1:3]:
        assert (model.data_shape, model.condition_shape, model.condition_classes) == ((28, 27), (28,), None)
        assert type(model)(**model.config).config == model.config
    for kind in (CVAE, Regressor):
        labelled = kind(condition_classes=10, preset=preset)
        assert (labelled.condition_shape, labelled.condition_classes) == (None, 10)


class Layers:
    """A model's linear layers by hand, in the order in which they were made."""

    def __init__(self, module):
        self.layers = iter([m for m in module.modules() if isinstance(m, torch.nn.Linear)])

    def __call__(self, h):
        layer = next(self.layers)
        return h @ layer.weight.T + layer.bias


def by_hand(model, condition):
    """The condition's network: what joins the encoder and the decoder."""
    linear = Layers(model.condition)
    joins_encoder = linear(linear(condition).clamp_min(0))
    return joins_encoder, linear(linear(joins_encoder.clamp_min(0)).clamp_min(0))


@pytest.mark.parametrize("preset", [None, "doersch"])
def test_cvae_is_wired_as_the_tutorials(x, condition, preset):
    model = small(preset=preset).double()
    to_encoder, to_decoder = by_hand(model, condition.double().flatten(1) / 255)

    below, above = Layers(model.encoder_below), Layers(model.encoder_above)
    h = below(below(x.double().flatten(1) / 255).clamp_min(0))
    h = above((h + to_encoder).clamp_min(0))  # summed before the ReLU
    mu, logvar = model.encode(x, condition)
    # The tutorial's log sigma is from before the ReLU.
    expected = (above(h.clamp_min(0)), 2 * above(h)) if preset else above(h.clamp_min(0)).chunk(2, -1)
    torch.testing.assert_close((mu, logvar), expected)

    z = torch.randn(5, BATCH, 3, dtype=torch.float64)
    below, above = Layers(model.decoder_below), Layers(model.decoder_above)
    h = above((below(z) + to_decoder).clamp_min(0))
    logits = above(above(h.clamp_min(0)).clamp_min(0))
    torch.testing.assert_close(model.decode(z, condition), logits.unflatten(-1, (4, 5)))


def test_regressor_is_wired_as_the_tutorials(condition):
    model = small(Regressor).double()
    _, to_decoder = by_hand(model, condition.double().flatten(1) / 255)
    linear = Layers(model.decoder)
    logits = linear(linear(linear(to_decoder.clamp_min(0)).clamp_min(0)).clamp_min(0))
    torch.testing.assert_close(model(condition), logits.unflatten(-1, (4, 5)))


def test_vae_of_the_preset_is_wired_as_the_tutorials(x):
    torch.manual_seed(0)
    model = VAE((4, 5), (16, 8), 3, preset="doersch").double()
    linear = Layers(model.encoder)
    h = linear(linear(x.double().flatten(1) / 255).clamp_min(0))
    torch.testing.assert_close(model.encode(x), (linear(h.clamp_min(0)), 2 * linear(h)))


@pytest.mark.parametrize(
    ("model", "dense"),
    [
        (lambda: VAE(preset="doersch"), {"encoder.5.mu", "encoder.5.log_sigma"}),
        (
            lambda: CVAE(preset="doersch"),
            {"encoder_above.2.mu", "encoder_above.2.log_sigma", "condition.to_decoder.3"},
        ),
        (lambda: Regressor(preset="doersch"), {"condition.to_decoder.3"}),
    ],
    ids=["vae", "cvae", "regressor"],
)
def test_initial_weights_are_sparse_and_normal(model, dense):
    torch.manual_seed(3)
    layers = {name: m for name, m in model().named_modules() if isinstance(m, torch.nn.Linear)}
    assert dense < layers.keys()
    for name, layer in layers.items():
        assert not layer.bias.any()
        weight = layer.weight.detach()
        kept, n = weight[weight != 0], weight.numel()
        p = 1.0 if name in dense else 15 / layer.out_features
        # Five standard deviations of a binomial count, of a normal's mean and of its standard deviation.
        assert abs(len(kept) - n * p) <= 5 * (n * p * (1 - p)) ** 0.5, name
        assert abs(kept.mean()) < 5 * 0.1 / len(kept) ** 0.5, name
        assert abs(kept.std() - 0.1) < 5 * 0.1 / (2 * len(kept)) ** 0.5, name


def test_loss_is_the_negative_elbo_given_the_condition(x, condition):
    model = small()
    loss = model.loss(x, condition, 0.5, generator())
    mu, logvar = model.encode(x, condition)
    z = fastvae.reparameterize(mu, logvar, generator=generator())
    nll = binary_cross_entropy_with_logits(model.decode(z, condition), x / 255, reduction="none").sum() / BATCH
    kl = fastvae.reference.gaussian_kl(mu, logvar, reduction="mean")
    torch.testing.assert_close(loss, fastvae.ELBO(nll + 0.5 * kl, nll, kl), rtol=1e-5, atol=0)
    torch.testing.assert_close(model(x, condition, generator()).decoded, model.decode(z, condition))


def test_regressors_loss_is_the_cross_entropy(x, condition):
    model = small(Regressor)
    expected = binary_cross_entropy_with_logits(model(condition), x / 255, reduction="none").sum() / BATCH
    torch.testing.assert_close(model.loss(x, condition), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(model.predict(condition), model(condition).sigmoid())


@pytest.mark.parametrize("kind", [CVAE, Regressor])
def test_labels_are_one_hot_conditions(kind):
    labelled = small(kind, condition_classes=4)
    torch.manual_seed(0)
    plain = kind((4, 5), 4, (16, 8, 7), 3) if kind is CVAE else kind((4, 5), 4, (16, 8, 7))
    labels, x = torch.tensor([3, 0, 1, 1, 2, 0]), images(BATCH, 4, 5)
    call = (lambda m, c: m.loss(x, c, 1.0, generator())) if kind is CVAE else (lambda m, c: m.loss(x, c))
    expected = call(plain, one_hot(labels, 4).bool())
    for dtype in (torch.int64, torch.uint8):
        torch.testing.assert_close(call(labelled, labels.to(dtype)), expected)
    with pytest.raises(ValueError, match=r"labels must lie in 0 .. 3, got 4"):
        labelled.condition(torch.tensor([1, 4]))
    with pytest.raises(ValueError, match=r"labels must lie in 0 .. 3, got -1"):
        labelled.condition(torch.tensor([1, -1]))
    with pytest.raises(
        ValueError, match=r"condition must be labels, integers \[B\], got torch.float32 of shape \[6, 1\]"
    ):
        labelled.condition(torch.zeros(6, 1))


def test_samples_and_reconstructions_have_the_shape_of_the_data(x, condition):
    model = small()
    assert model.sample(condition).shape == (BATCH, 4, 5)
    many = model.sample(condition, 9, generator())
    assert many.shape == (9, BATCH, 4, 5)
    assert many.std(0).min() > 0  # each its own
    assert torch.equal(many, model.sample(condition, 9, generator()))
    assert model.reconstruct(x, condition).shape == (BATCH, 4, 5)


@pytest.mark.parametrize("hidden", [(8,), (8, 7), (9, 8, 7, 6)], ids=str)
def test_any_number_of_hidden_layers(hidden, x, condition):
    loss = CVAE((4, 5), (2, 3), hidden, 3).loss(x, condition).loss + Regressor((4, 5), (2, 3), hidden).loss(
        x, condition
    )
    assert loss.isfinite()


@pytest.mark.parametrize("kind", [CVAE, Regressor])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"likelihood": "gaussian", "sigma": 0.3, "learn_sigma": True},
        {"condition_classes": 3},
        {"preset": "doersch"},
    ],
    ids=str,
)
def test_config_builds_the_model_again(kind, options):
    model = small(kind, **options)
    again = kind(**model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


def test_every_parameter_gets_a_gradient(x, condition):
    for model in (
        small(likelihood="gaussian", learn_sigma=True),
        small(Regressor, likelihood="gaussian", learn_sigma=True),
    ):
        loss = model.loss(x, condition)
        (loss.loss if isinstance(loss, tuple) else loss).backward()
        # Conditions reach all; a dead ReLU would not.
        assert all(p.grad is not None for p in model.parameters())
        assert model.output.log_sigma.grad != 0


def test_errors_name_what_was_wrong(x, condition):
    model = small()
    with pytest.raises(ValueError, match=r"condition has shape \[6, 4, 5\], expected \[B, 2, 3\]"):
        model.encode(x, x)
    with pytest.raises(ValueError, match=r"x has shape \[6, 2, 3\], expected \[B, 4, 5\]"):
        model.loss(condition, condition)
    with pytest.raises(ValueError, match=r"a condition for each sample, got 1 for a batch \[6\]"):
        model.loss(x, condition[:1])
    with pytest.raises(ValueError, match=r"a condition for each sample, got 6 for a batch \[5\]"):
        model.decode(torch.zeros(2, 5, 3), condition)
    with pytest.raises(ValueError, match=r"z has shape \[6, 4\], expected \[..., 3\]"):
        model.decode(torch.zeros(6, 4), condition)
    with pytest.raises(ValueError, match="num_samples must be at least 1, not 0"):
        model.sample(condition, 0)
    for kind in (CVAE, Regressor):
        with pytest.raises(ValueError, match="at most one of condition_shape and condition_classes, got 3 and 3"):
            kind(784, 3, condition_classes=3)
        with pytest.raises(ValueError, match=r"hidden.* at least one layer"):
            kind(784, 3, ())
        with pytest.raises(ValueError, match="condition_shape must name at least one dimension"):
            kind(784, ())
        with pytest.raises(ValueError, match=r"preset 'doersch' needs hidden layers of ReLU units, .*'tanh'"):
            kind(784, 3, (4,), preset="doersch", activation="tanh")
        with pytest.raises(ValueError, match="preset must be 'doersch', not 'kingma'"):
            kind(784, 3, preset="kingma")
    with pytest.raises(ValueError, match="activation must be 'relu' or 'tanh', not 'selu'"):
        VAE(activation="selu")
    with pytest.raises(ValueError, match="learn_sigma needs the likelihood gaussian"):
        VAE(learn_sigma=True)
    with pytest.raises(ValueError, match=r"the bernoulli likelihood has no sigma, got 0.5"):
        small().loss(x, condition, sigma=0.5)


@pytest.mark.parametrize("kind", [CVAE, Regressor])
def test_models_given_labels_compile_without_a_graph_break(kind):
    torch.manual_seed(0)
    model = small(kind, condition_classes=4)
    x, labels = images(6, 4, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = torch.compile(model.nll if kind is Regressor else model.loss, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    compiled = loss(x, labels)
    torch.manual_seed(1)
    plain = (model.nll if kind is Regressor else model.loss)(x, labels)
    # The same operators in the same order: but for what a compiler may reorder, the same.
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other)
    for wrong, message in ((4, "smaller than num_classes"), (-1, "non-negative")):
        with pytest.raises(RuntimeError, match=message):
            loss(x, labels.clone().fill_(wrong))


@pytest.mark.parametrize("kind", [CVAE, Regressor])
@pytest.mark.parametrize("options", [{}, {"condition_classes": 4}], ids=["images", "labels"])
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantized tensor creation")
def test_networks_are_fed_the_dtype_of_their_own_weights(kind, options, x, condition):
    condition = torch.tensor([3, 0, 1, 1, 2, 0]) if options else condition
    quantized = torch.ao.quantization.quantize_dynamic(small(kind, **options), {torch.nn.Linear})
    copy = replica(small(kind, **options).double())
    mixed = small(kind, likelihood="gaussian", learn_sigma=True, **options).bfloat16()
    mixed.output.float()
    for model, dtype in ((quantized, torch.float32), (copy, torch.float64), (mixed, torch.bfloat16)):
        if kind is Regressor:
            assert model(condition).dtype == model.predict(condition).dtype == dtype
            assert model.loss(x, condition).isfinite()
            continue
        assert model.encode(x, condition)[0].dtype == model(x, condition).decoded.dtype == dtype
        assert model.sample(condition, 2).dtype == model.reconstruct(x, condition).dtype == dtype
        assert model.loss(x, condition).loss.isfinite()


def test_vmap_over_labels_is_a_loop_over_them():
    model, regressor = (small(kind, condition_classes=4) for kind in (CVAE, Regressor))
    labels = torch.tensor([[3, 0], [1, 1], [2, 0]])
    x, z = images(3, 2, 4, 5), torch.randn(3, 2, 3)
    for function, inputs in (
        (model.encode, (x, labels)),
        (model.decode, (z, labels)),
        (model.nll, (z, x, labels)),
        (regressor, (labels,)),
        (regressor.nll, (x, labels)),
        (regressor.predict, (labels,)),
    ):
        expected = [function(*parts) for parts in zip(*inputs, strict=True)]
        mapped = torch.func.vmap(function)(*inputs)
        if isinstance(mapped, torch.Tensor):
            mapped, expected = (mapped,), [(e,) for e in expected]
        for a, b in zip(mapped, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(a, torch.stack(b))
    # Of no images' own: the same for all of them.
    torch.testing.assert_close(
        torch.func.vmap(lambda c: model.encode(x[0], c)[0])(labels),
        torch.stack([model.encode(x[0], c)[0] for c in labels]),
    )
    losses = torch.func.vmap(lambda x, c: model.loss(x, c).kl, randomness="different")(x, labels)
    torch.testing.assert_close(losses, torch.stack([model.loss(*one).kl for one in zip(x, labels, strict=True)]))
    for wrong in (labels + 1, labels - 1):
        with pytest.raises(RuntimeError, match=r"index (4|-1) is out of bounds"):
            torch.func.vmap(regressor)(wrong)


@pytest.mark.parametrize("kind", [CVAE, Regressor])
def test_gradients_of_each_sample_given_its_label(kind):
    model = small(kind, condition_classes=4)
    labels, x = torch.tensor([3, 0, 1, 1, 2, 0]), images(BATCH, 4, 5)
    weights = dict(model.named_parameters())

    def loss(weights, x, label):
        total = torch.func.functional_call(LossOf(model), {f"model.{n}": w for n, w in weights.items()}, (x, label))
        return total.sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")(
        weights, x[:, None], labels[:, None]
    )
    name = "condition.to_encoder.0.weight"
    for i in range(BATCH):
        model.zero_grad()
        LossOf(model)(x[i : i + 1], labels[i : i + 1]).sum().backward()
        torch.testing.assert_close(each[name][i], weights[name].grad)


class LossOf(torch.nn.Module):
    """A loss without noise as a module."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, label):
        if isinstance(self.model, Regressor):
            return self.model.nll(x, label)
        return self.model.nll(self.model.encode(x, label)[0], x, label)
