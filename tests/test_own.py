"""What a program gives to a run, data or a model, and what is wrong with it: one error that says so."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, tensors
from torch import Tensor, nn

import fastvae
from fastvae.data import Dataset
from fastvae.models import VAE
from fastvae.training import TrainConfig, load_checkpoint, train
from fastvae.training.checkpoint import Checkpoints

CONFIG = TrainConfig(hidden=(16,), latent_dim=2, epochs=1, batch_size=20)


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> Any:
        return self.item


class Given(nn.Module):
    """Returns what ``change`` makes of its ELBO."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.change = nn.Linear(8, 4), nn.Linear(2, 8), change

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encoder(x).chunk(2, -1)
        return self.change(fastvae.elbo_loss(self.decoder(fastvae.reparameterize(mu, logvar)), x, mu, logvar))


@pytest.mark.parametrize("item", [{"x": torch.zeros(8)}, object(), (object(), 0)], ids=["dict", "object", "pair"])
def test_items_that_are_no_tensors_are_named(item: Any) -> None:
    with pytest.raises(ValueError, match=r"^faces gives (dict|object), expected tensors or pairs of a tensor"):
        Dataset.from_torch(Items(item), Items(item), name="faces")


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda terms: terms.loss, "Tensor"),
        (tuple, "tuple"),
        (lambda terms: fastvae.ELBO(*(term.expand(3) for term in terms)), "[[3], [3], [3]]"),
    ],
    ids=["loss", "tuple", "rows"],
)
def test_a_model_that_returns_no_elbo_of_means_is_named(change: Any, given: str, tmp_path: Path) -> None:
    message = f"Given gives {given}, expected a fastvae.ELBO(loss, reconstruction, kl) of means over the batch"
    with pytest.raises(ValueError, match=re.escape(message)):
        train(CONFIG, tmp_path, dataset=Dataset.from_arrays(torch.rand(60, 8)), model=Given(change))


class Labelled(Given):
    """Adds what an embedding makes of the labels."""

    def __init__(self) -> None:
        super().__init__(lambda terms: terms)
        self.embedding = nn.Embedding(10, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return super().forward(torch.sigmoid(x + self.embedding(labels)))


@pytest.mark.parametrize("data_on", ["device", "host"])
def test_labels_are_int64_whatever_holds_them(data_on: Any, tmp_path: Path) -> None:
    """The published data sets hold uint8, which no embedding takes."""
    labels = (torch.arange(60) % 10).to(torch.uint8)
    dataset = Dataset("rows", torch.rand(60, 8), labels, torch.rand(60, 8), labels)
    config = replace(CONFIG, model="cvae", condition="labels")
    train(config, tmp_path / "arrays", dataset=dataset, model=Labelled(), data_on=data_on)
    items = torch.utils.data.TensorDataset(dataset.train[:], labels)
    given = Dataset.from_torch(items, items, name="items")
    train(config, tmp_path / "items", dataset=given, model=Labelled(), data_on="host")


def test_a_run_refuses_to_go_on_with_fewer_rows(tmp_path: Path) -> None:
    rows = torch.rand(60, 8)
    train(CONFIG, tmp_path, dataset=Dataset.from_arrays(rows))
    longer = TrainConfig(hidden=(16,), latent_dim=2, epochs=2, batch_size=20)
    for fewer, message in ((40, "36 rows and 2 steps"), (20, "18 rows and 1 steps")):
        with pytest.raises(ValueError, match=f"is after step 3, in epoch 2, but the data has {message} an epoch"):
            train(longer, tmp_path, dataset=Dataset.from_arrays(rows[:fewer]), resume=True)
    assert len(train(longer, tmp_path, dataset=Dataset.from_arrays(rows), resume=True).history) == 2


def test_a_network_by_name_is_made_again_with_what_no_checkpoint_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_of_tables.py").write_text(
        """
import torch
from torch import nn

def networks(data_shape, latent_dim):
    class Scaled(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.linear, self.shift = nn.Linear(inputs, outputs), torch.rand(inputs)
            self.register_buffer("scale", torch.rand(inputs), persistent=False)
            self.weights = torch.linspace(0, 1, outputs).tolist()

        def forward(self, x):
            return self.linear(x * self.scale + self.shift) * torch.tensor(self.weights)

    return Scaled(*data_shape, 2 * latent_dim), Scaled(latent_dim, *data_shape)
"""
    )
    monkeypatch.chdir(tmp_path)
    config, rows = dataclasses.replace(CONFIG, network="own_of_tables:networks", hidden=(), epochs=2), torch.rand(60, 8)
    data = Dataset.from_arrays(rows)
    trained = train(config, "run", dataset=data).model
    drawn = torch.get_rng_state()
    loaded = fastvae.load("run")
    assert torch.equal(torch.get_rng_state(), drawn)
    for ours, theirs in zip(loaded.encode(rows), trained.encode(rows), strict=True):
        assert torch.equal(ours, theirs)
    train(dataclasses.replace(config, epochs=1), "resumed", dataset=data)
    resumed = train(config, "resumed", dataset=data, resume=True).model
    assert torch.equal(resumed.encode(rows)[0], trained.encode(rows)[0])


def partly_trained() -> Given:
    """An encoder whose bias is frozen, and a parameter that is no part of the loss."""
    torch.manual_seed(0)
    model = Given(lambda terms: terms)
    model.encoder.bias.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    return model


def test_a_run_whose_parameters_do_not_all_have_gradients_goes_on_bitwise(tmp_path: Path) -> None:
    data, longer = Dataset.from_arrays(torch.rand(60, 8)), dataclasses.replace(CONFIG, epochs=2)
    train(longer, tmp_path / "whole", dataset=data, model=partly_trained())
    train(CONFIG, tmp_path / "resumed", dataset=data, model=partly_trained())
    train(longer, tmp_path / "resumed", dataset=data, model=partly_trained(), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_a_run_of_such_a_model_that_lost_a_state_is_refused(tmp_path: Path) -> None:
    data = Dataset.from_arrays(torch.rand(60, 8))
    train(CONFIG, tmp_path / "whole", dataset=data, model=partly_trained())
    original, saved = load_checkpoint(tmp_path / "whole"), Checkpoints(tmp_path / "damaged")
    fewer = {name: value for name, value in tensors(original).items() if ".decoder.bias." not in name}
    saved.save(fewer, original.model_config, original.train_config, original.position)
    saved.wait()
    with pytest.raises(ValueError, match=r"damaged checkpoint \(its optimiser state does not fit the model\)"):
        train(CONFIG, tmp_path / "damaged", dataset=data, model=partly_trained(), resume=True)


def weight_normed(model: VAE) -> None:
    nn.utils.parametrizations.weight_norm(model.encoder[0])


def with_another_decoder(model: VAE) -> None:
    model.decoder = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 8))


def with_another_activation(model: VAE) -> None:
    model.decoder[1] = nn.Tanh()


@pytest.mark.parametrize("change", [weight_normed, with_another_decoder, with_another_activation])
def test_a_built_in_model_that_was_altered_is_one_that_was_given(change: Any, tmp_path: Path) -> None:
    def altered() -> VAE:
        torch.manual_seed(0)
        model = VAE(8, (16,), 2)
        change(model)
        return model

    rows = torch.rand(60, 8)
    data, longer = Dataset.from_arrays(rows), dataclasses.replace(CONFIG, epochs=2)
    train(CONFIG, tmp_path, dataset=data, model=altered())
    trained = train(longer, tmp_path, dataset=data, model=altered(), resume=True).model
    assert torch.equal(fastvae.load(tmp_path, altered()).reconstruct(rows), trained.reconstruct(rows))
    with pytest.raises(ValueError, match=r"the run's model is a fastvae\.models\.vae\.VAE, which a program gave"):
        fastvae.load(tmp_path)


def test_a_built_in_model_that_is_given_as_it_is_needs_not_be_given_again(tmp_path: Path) -> None:
    rows = torch.rand(60, 8)
    trained = train(CONFIG, tmp_path, dataset=Dataset.from_arrays(rows), model=VAE(8, (16,), 2)).model
    assert torch.equal(fastvae.load(tmp_path).reconstruct(rows), trained.reconstruct(rows))


def test_arrays_of_another_device_are_refused() -> None:
    rows, elsewhere = torch.rand(60, 8), torch.rand(60, 8, device="meta")
    message = "is on the device meta, expected a tensor on the CPU"
    with pytest.raises(ValueError, match=f"^the data {message}"):
        Dataset.from_arrays(elsewhere)
    with pytest.raises(ValueError, match=f"^mine \\(test\\) {message}"):
        Dataset.from_arrays(rows, elsewhere, name="mine")
    labels = torch.zeros(60, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"^the data \\(labels\\) {message}"):
        Dataset.from_arrays(rows, labels=labels.to("meta"))
    with pytest.raises(ValueError, match=f"^the data \\(test_labels\\) {message}"):
        Dataset.from_arrays(rows, rows, labels=labels, test_labels=labels.to("meta"))
