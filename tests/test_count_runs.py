"""Runs on counts: matrices of genes by the command line, digits as counts, and data that are no counts."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from counts import cells
from runs import assert_same_run, small
from torch import nn

import fastvae
from fastvae.cli import main
from fastvae.data import Dataset, load
from fastvae.data.check import Expected, check
from fastvae.data.published import largest_count
from fastvae.evaluation import evaluate
from fastvae.models import VAE
from fastvae.models.likelihood import LIKELIHOODS
from fastvae.training import TrainConfig, saved_config, train
from fastvae.training.batch_size import measure_batch_sizes
from fastvae.training.config_file import read_config

SMALL = ["--hidden", "32", "--latent-dim", "4", "--batch-size", "50"]
DIGITS = TrainConfig(hidden=(32,), latent_dim=4, epochs=2)
COUNTS = ["binomial", "poisson", "negative-binomial", "zinb", "multinomial"]


def command(capsys, *arguments):
    """What it prints."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def fails(capsys, *arguments, status=1):
    """The line of error."""
    assert main([str(argument) for argument in arguments]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    """Cells as AnnData keeps them: sparse float32 counts, and the type of each cell."""
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    from scipy import sparse

    matrix, kind = cells(400, 60)
    path = tmp_path_factory.mktemp("cells") / "counts.h5ad"
    obs = pandas.DataFrame({"cell_type": [f"type {k}" for k in kind]}, index=[str(i) for i in range(len(kind))])
    anndata.AnnData(sparse.csr_matrix(matrix.astype(np.float32)), obs).write_h5ad(path)
    return path


@pytest.mark.parametrize("likelihood", ["negative-binomial", "zinb", "multinomial", "poisson"])
def test_cells_train_evaluate_sample_and_encode_by_the_command_line(likelihood, h5ad, tmp_path, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ["--data", h5ad, "--labels", "cell_type", "--likelihood", likelihood, *SMALL]
    last = command(capsys, "train", *options, "--epochs", 4, "--out", whole).splitlines()[-1]
    history = json.loads((whole / "metrics.json").read_text())["epochs"]
    assert history[-1]["test"]["elbo"] > history[0]["test"]["elbo"]
    assert history[-1]["test"]["bits_per_dim"] is None
    assert last.startswith(f"test ELBO {history[-1]['test']['elbo']:.2f} nats after epoch 4")
    # No pictures of rows that are no images.
    assert {path.name for path in whole.glob("*.png")} == {"curves.png"}

    command(capsys, "train", *options, "--epochs", 2, "--out", halves)
    command(capsys, "train", "--resume", "--epochs", 4, "--out", halves)
    assert_same_run(whole, halves)
    assert saved_config(halves).likelihood == likelihood
    assert read_config(whole / "config.toml")["likelihood"] == likelihood
    command(capsys, "train", "--config", whole / "config.toml", "--out", tmp_path / "again")
    assert_same_run(whole, tmp_path / "again")

    header, *lines = command(capsys, "evaluate", whole, "--samples", 20).splitlines()
    assert header.split() == ["counts.h5ad", "ELBO", "reconstruction", "KL", "nats"]
    assert not any("bits/dim" in line for line in lines)
    assert lines[-1].startswith("test, 20 samples of the posterior: ")

    command(capsys, "encode", whole, "--data", h5ad, "--out", tmp_path / "codes.npz", "--plot", tmp_path / "codes.png")
    codes = np.load(tmp_path / "codes.npz")
    assert codes["mu"].shape == (400, 4)
    assert set(codes["labels"]) == {0, 1, 2}

    command(capsys, "sample", whole, "--num", 7, "--out", tmp_path / "means.npy")
    means = np.load(tmp_path / "means.npy")
    assert means.shape == (7, 60)
    library = ["--library", 50] if LIKELIHOODS[likelihood].has_library else []
    command(capsys, "sample", whole, "--num", 7, "--out", tmp_path / "draws.npy", "--draw", *library)
    draws = np.load(tmp_path / "draws.npy")
    assert (draws == draws.round()).all()
    assert draws.max() > 0
    if library:
        command(capsys, "sample", whole, "--num", 7, "--out", tmp_path / "scaled.npy", *library)
        np.testing.assert_allclose(np.load(tmp_path / "scaled.npy"), 50 * means, rtol=1e-5)
        error = fails(capsys, "sample", whole, "--draw", "--out", tmp_path / "x.npy", status=2)
        assert "needs --library" in error
    else:
        error = fails(capsys, "sample", whole, "--library", 50, "--out", tmp_path / "x.npy", status=2)
        assert "the likelihood poisson has no library" in error
    error = fails(capsys, "sample", whole, "--draw", *library, "--traverse", 2, "--out", tmp_path / "x.npy", status=2)
    assert "excludes --traverse and --grid" in error
    command(capsys, "sample", whole, "--traverse", 2, "--out", tmp_path / "traversal.npy")
    assert np.load(tmp_path / "traversal.npy").shape == (22, 60)
    assert "are not images" in fails(capsys, "sample", whole, "--out", tmp_path / "x.png")


def test_a_cvae_is_given_the_types_of_cells(h5ad, tmp_path, capsys):
    options = ["--data", h5ad, "--labels", "cell_type", "--model", "cvae", "--condition", "labels"]
    command(capsys, "train", *options, "--likelihood", "zinb", *SMALL, "--epochs", 2, "--out", tmp_path / "run")
    model = fastvae.load(tmp_path / "run")
    assert model.sample(torch.arange(3), library=100.0).shape == (3, 60)
    regressor = ["--model", "regressor", "--hidden", "32", "--condition", "labels", "--labels", "cell_type"]
    command(capsys, "train", "--data", h5ad, *regressor, "--likelihood", "zinb", "--epochs", 1, "--out", tmp_path / "r")
    command(capsys, "sample", tmp_path / "r", "--num", 6, "--draw", "--library", 40, "--out", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (6, 60)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_run_of_each_likelihood_resumes_bitwise(likelihood, tmp_path):
    config = dataclasses.replace(DIGITS, likelihood=likelihood)
    first = train(config, tmp_path / "whole").history[0]["test"]["elbo"]
    train(dataclasses.replace(config, epochs=1), tmp_path / "halves")
    result = train(config, tmp_path / "halves", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    assert result.history[-1]["test"]["elbo"] > first
    assert {path.name for path in (tmp_path / "whole").glob("*.png")} == {
        "curves.png",
        "samples.png",
        "reconstructions.png",
    }
    model = fastvae.load(tmp_path / "whole")
    images = load("digits")
    test = images.as_counts().test if likelihood in COUNTS else images.test
    report = evaluate(model, test, generator=torch.Generator().manual_seed(0))
    assert report._asdict() == result.history[-1]["test"]


def test_runs_of_two_numbers_for_each_element_take_all_options(tmp_path):
    for name, options in {
        "conv": {"network": "conv", "conv_width": 4, "likelihood": "zinb"},
        "iwae": {"importance_samples": 3, "gradient": "dreg", "likelihood": "discretized-logistic"},
        "labels": {"model": "cvae", "condition": "labels", "likelihood": "zinb", "accumulate": 2, "amp": "bf16"},
        "compiled": {"compile": True, "likelihood": "negative-binomial"},
        "laplace": {"learn_sigma": True, "likelihood": "laplace", "binarize": "dynamic"},
        "column": {"model": "cvae", "likelihood": "laplace"},
    }.items():
        result = train(dataclasses.replace(DIGITS, epochs=1, batch_size=200, **options), tmp_path / name)
        assert np.isfinite(result.history[-1]["test"]["elbo"])


def test_digits_as_counts_are_scikit_learns_own():
    from sklearn.datasets import load_digits

    digits = load("digits")
    counts = digits.as_counts()
    assert counts.train.dtype == torch.uint8
    assert int(counts.train.max()) == largest_count("digits") == 16
    ours = torch.cat([counts.train, counts.test]).flatten(1)
    theirs = torch.from_numpy(load_digits().data.astype(np.uint8))
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
    mnist = dataclasses.replace(digits, name="mnist")
    assert mnist.as_counts() is mnist
    assert largest_count("mnist") == 255


def test_digits_train_as_counts_of_16_where_nothing_else_is_asked_for(tmp_path):
    result = train(DIGITS, tmp_path / "run")
    assert (result.model.likelihood, result.model.output.total) == ("binomial", 16)
    saved = saved_config(tmp_path / "run")
    assert (saved.likelihood, saved.total) == ("binomial", 16)
    assert train(DIGITS, tmp_path / "run", resume=True).history == result.history
    made = result.model.reconstruct(load("digits").as_counts().test)
    assert 12 < made.max() <= 16
    assert DIGITS.resolved() == saved
    assert measure_batch_sizes(dataclasses.replace(DIGITS, hidden=(4,)))

    for options in ({"dataset": "mnist"}, {"data": "x.npy"}, {"binarize": "dynamic"}, {"model": "cvae"}):
        assert TrainConfig(**options).resolved().likelihood == "bernoulli", options
    assert TrainConfig(model="cvae", condition="labels").resolved().total == 16
    assert TrainConfig(dataset="mnist", likelihood="binomial").resolved().total == 255
    assert DIGITS.resolved(data_given=True).likelihood == "bernoulli"
    with pytest.raises(ValueError, match=r"^likelihood binomial needs total, the largest count that is possible"):
        TrainConfig(data="x.npy", likelihood="binomial").resolved()


def test_data_and_models_that_a_program_gives_keep_their_likelihood(tmp_path):
    digits = load("digits")
    assert train(DIGITS, tmp_path / "data", dataset=digits).model.likelihood == "bernoulli"
    model = VAE((8, 8), (16,), 2)
    train(small(epochs=5, batch_size=20), tmp_path / "grey", model=model)
    # Of pixels that nobody halved, or read as counts.
    assert evaluate(model, digits.test, generator=torch.Generator().manual_seed(0)).elbo > -40
    model = VAE((8, 8), (16,), 2, likelihood="poisson")
    train(TrainConfig(epochs=1), tmp_path / "poisson", model=model)
    assert saved_config(tmp_path / "poisson").likelihood == "poisson"
    assert model.reconstruct(digits.as_counts().test).max() > 4

    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = VAE((8, 8), (16,), 2)

        def forward(self, x):
            self.largest = int(x.max())
            return self.inner.loss(x)

    train(TrainConfig(epochs=1), tmp_path / "module", model=(grey := Grey()))
    assert grey.largest == 255
    train(TrainConfig(epochs=1, likelihood="poisson"), tmp_path / "counts", model=(grey := Grey()))
    assert grey.largest == 16


def test_pictures_of_counts_are_white_at_the_largest(tmp_path, capsys):
    """A grid of samples is as bright as the digits are, whichever likelihood drew it."""
    import matplotlib.image

    for likelihood in COUNTS:
        config = dataclasses.replace(DIGITS, epochs=3, batch_size=50, likelihood=likelihood)
        train(config, tmp_path / likelihood)
        command(capsys, "sample", tmp_path / likelihood, "--num", 100, "--out", tmp_path / "drawn.png")
        for picture in (tmp_path / likelihood / "samples.png", tmp_path / "drawn.png"):
            grid = matplotlib.image.imread(picture)[..., 0]
            assert 0.1 < np.median(grid[grid < 1]) + grid[grid < 1].mean() < 1.4, (likelihood, picture)
    command(capsys, "encode", tmp_path / "poisson", "--out", tmp_path / "x.npz", "--projector", tmp_path / "projector")


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", [lambda t: t, lambda t: t.to_sparse_csr()])
@pytest.mark.parametrize(
    ("value", "dtype", "total", "expected"),
    [
        (-1, torch.float32, None, "counts 0, 1, 2, ... for a Poisson likelihood"),
        (-1, torch.int16, None, "counts 0, 1, 2, ... for a Poisson likelihood"),
        (1.5, torch.float64, None, "counts 0, 1, 2, ... for a Poisson likelihood"),
        (1.5, torch.float16, 16, "counts 0 .. 16 for a Poisson likelihood"),
        (17, torch.uint8, 16, "counts 0 .. 16 for a Poisson likelihood"),
        (17, torch.int64, 16, "counts 0 .. 16 for a Poisson likelihood"),
        (float("nan"), torch.float32, 16, "finite numbers"),
    ],
)
def test_values_that_are_no_counts_are_named(value, dtype, total, expected, form):
    data = torch.arange(600).remainder(5).view(100, 6).to(dtype)
    asked = Expected("counts", "for a Poisson likelihood", total)
    check("a", form(data), asked)
    data[98, 3] = value
    shown = float(value) if dtype.is_floating_point else value
    with pytest.raises(ValueError, match=re.escape(f"a: row 98, index [3] is {shown}, expected {expected}")):
        check("a", form(data), asked)


def test_levels_are_uint8():
    check("a", torch.tensor([[0, 255]], dtype=torch.uint8), Expected("levels", "for a discretised logistic likelihood"))
    with pytest.raises(ValueError, match=r"^a: holds numbers of type float32, expected uint8 levels for a disc"):
        check("a", torch.rand(3, 4), Expected("levels", "for a discretised logistic likelihood"))


def test_runs_refuse_what_is_no_data_of_the_likelihood(tmp_path, capsys):
    np.save(tmp_path / "real.npy", np.random.default_rng(0).random((40, 6)))
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).integers(0, 20, (40, 6)))
    real, counts = ["train", "--data", tmp_path / "real.npy"], ["train", "--data", tmp_path / "counts.npy"]
    out = ["--out", tmp_path / "run"]
    error = fails(capsys, *real, "--likelihood", "zinb", *out)
    assert re.search(
        r"real.npy: row \d+, index \[\d\] is 0\.\d+, expected counts 0, 1, 2, ... for a zero-inflated", error
    )
    error = fails(capsys, *counts, "--likelihood", "binomial", "--total", 16, *out)
    assert re.search(r"index \[\d\] is 1[789], expected counts 0 .. 16 for a binomial likelihood", error)
    error = fails(capsys, *counts, "--likelihood", "discretized-logistic", *out)
    assert "holds numbers of type int64, expected uint8 levels for a discretised logistic likelihood" in error
    assert "likelihood binomial needs total" in fails(capsys, *counts, "--likelihood", "binomial", *out)
    assert "total belongs to the binomial likelihood" in fails(capsys, *counts, "--total", 16, *out)
    assert "learn_sigma needs" in fails(capsys, *counts, "--likelihood", "zinb", "--learn-sigma", *out)
    for option in (["--binarize", "dynamic"], ["--model", "cvae"]):
        error = fails(capsys, "train", "--likelihood", "binomial", *option, *out)
        assert "draws binary pixels, which do not fit the likelihood binomial" in error
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
    # Trained, and then shown other data.
    command(capsys, *counts, "--likelihood", "poisson", *SMALL, "--epochs", 1, *out)
    assert "expected counts" in fails(capsys, "evaluate", tmp_path / "run", "--data", tmp_path / "real.npy")


def test_configuration_keeps_its_words_where_the_likelihood_is_left_out(tmp_path, capsys):
    text = "# my notes\nhidden = [32]\nlatent-dim = 4\nepochs = 1\n"
    path = tmp_path / "config.toml"
    path.write_text(text)
    command(capsys, "train", "--config", path, "--out", tmp_path)
    assert path.read_text() == text
    command(capsys, "train", "--resume", "--epochs", 2, "--out", tmp_path)
    assert read_config(path) | {"likelihood": "binomial", "total": 16, "epochs": 2} == read_config(path)


def test_help_lists_the_likelihoods(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in (*LIKELIHOODS, "--total"):
        assert name in shown
    assert main(["train", "--likelihood", "cauchy"]) == 2
    assert "'discretized-logistic'" in capsys.readouterr().err


def test_counts_of_a_program_train_as_they_are(tmp_path):
    matrix, kind = cells(300, 40)
    dataset = Dataset.from_arrays(matrix, labels=kind)
    result = train(small(likelihood="zinb", batch_size=50, epochs=3), tmp_path / "run", dataset=dataset)
    assert result.history[-1]["test"]["elbo"] > result.history[0]["test"]["elbo"]
    with pytest.raises(ValueError, match="row 0"):
        train(small(likelihood="zinb"), tmp_path / "x", dataset=Dataset.from_arrays(np.log1p(matrix)))
