"""The drop-ins of docs/drop-ins.md, each tested with its library where that is installed. CI does not install them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

EXAMPLES = Path(__file__).parent.parent / "examples"
DOCUMENT = Path(__file__).parent.parent / "docs" / "drop-ins.md"
LIBRARIES = {"scvi": "cells_scvi", "recbole": "ratings_recbole"}
U = 2.0**-24  # unit roundoff of float32


def example(library: str) -> ModuleType:
    """The example of this library as a module; skips, visibly, where the library is missing.

    FAIL_WITHOUT_DROPINS=scvi makes it fail instead, so that a run which is meant for that library cannot pass by skips.
    """
    if importlib.util.find_spec(library) is None:
        missing = f"{library} is not installed, docs/drop-ins.md says how"
        if library in os.environ.get("FAIL_WITHOUT_DROPINS", "").split(","):
            pytest.fail(f"FAIL_WITHOUT_DROPINS has it: {missing}")
        pytest.skip(missing)
    return importlib.import_module(LIBRARIES[library])


def test_missing_library_is_a_skip_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIL_WITHOUT_DROPINS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no_such_library is not installed, docs/drop-ins\.md"):
        example("no_such_library")
    monkeypatch.setenv("FAIL_WITHOUT_DROPINS", "scvi,no_such_library")
    with pytest.raises(pytest.fail.Exception, match="no_such_library is not installed"):
        example("no_such_library")


def test_documentation_has_the_code_of_the_examples() -> None:
    shown = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(shown) == len(LIBRARIES)
    for code, name in zip(shown, LIBRARIES.values(), strict=True):
        source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        imports, classes = code.split("\n\n", 1)
        assert all(f"{line}\n" in source for line in imports.splitlines())
        assert classes in source


# scvi-tools


@pytest.fixture(scope="module")
def cells() -> Any:
    """scvi-tools' synthetic cells: 400 of 100 genes, in two batches."""
    example("scvi")
    import scvi

    scvi.settings.seed = 0
    return scvi.data.synthetic_iid()


def scvi_models(cells: Any, **options: object) -> tuple[Any, Any]:
    """scvi-tools' own model and the fused one, of the same weights."""
    module = example("scvi")
    models = []
    for kind in (module.SCVI, module.FusedSCVI):
        kind.setup_anndata(cells, batch_key="batch", labels_key="labels")
        models.append(kind(cells, **options))
    models[1].module.load_state_dict(models[0].module.state_dict())
    return models[0], models[1]


def scvi_gradients(module: Any, tensors: dict[str, Tensor], z: Tensor, px_of: Any = None) -> dict[str, Tensor]:
    """The loss of each cell and its gradients by all that the decoder learns, of given samples of the code."""
    module.zero_grad()
    inference = {"z": z, "library": tensors["X"].sum(1, keepdim=True).log(), "qz": Normal(z, torch.ones_like(z))}
    generated = module.generative(z, inference["library"], tensors["batch"], y=tensors["labels"])
    if px_of is not None:
        px_of(generated["px"])
    output = module.loss(tensors, inference, generated)
    output.loss.backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"loss of each cell": output.reconstruction_loss["reconstruction_loss"].detach(), **found}


def without_eps(px: Any) -> None:
    """scvi-tools adds 1e-8 in its logarithms, which is no rounding: it moves the loss of a gene with a small mean."""
    from scvi.distributions import _negative_binomial as formulas

    # They are float64 here, and see theta itself, as scvi-tools' own call does.
    if hasattr(px, "zi_logits"):
        px.log_prob = lambda x: formulas.log_zinb_positive(x, px.mu, px.theta, px.zi_logits, eps=1e-30)
    else:
        px.log_prob = lambda x: formulas.log_nb_positive(x, px.mu, px.theta, eps=1e-30)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize(
    ("dispersion", "dtype"),
    # scvi-tools multiplies the dispersions of batches and labels by one-hot rows that are float32.
    [("gene", "double"), ("gene-cell", "double"), ("gene-batch", "float"), ("gene-label", "float")],
)
def test_scvi_has_the_losses_and_gradients_of_scvi_tools(
    likelihood: str, dispersion: str, dtype: str, cells: Any
) -> None:
    theirs, ours = scvi_models(cells, gene_likelihood=likelihood, dispersion=dispersion)
    tensors = next(iter(theirs._make_data_loader(cells, batch_size=128)))
    z = getattr(torch.randn(128, 10), dtype)()
    tensors["X"] = getattr(tensors["X"], dtype)()
    u = torch.finfo(z.dtype).eps / 2
    expected = scvi_gradients(getattr(theirs.module, dtype)(), tensors, z, without_eps)
    found = scvi_gradients(getattr(ours.module, dtype)(), tensors, z)
    assert found.keys() == expected.keys()
    cell_losses, expected_losses = found.pop("loss of each cell"), expected.pop("loss of each cell")
    # Sums of 100 terms. Those of scvi-tools are below 1000 each: lgamma(x + theta) - lgamma(theta) is among them.
    torch.testing.assert_close(cell_losses, expected_losses, rtol=0, atol=100 * 1000 * u)
    # The gradient of a bias in front of a batch normalisation is 0 but for the rounding of its terms.
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=128 * 100 * u * largest, msg=name)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_scvi_in_float32_has_gradients_of_float64_to_rounding(likelihood: str, cells: Any) -> None:
    theirs, ours = scvi_models(cells, gene_likelihood=likelihood)
    tensors = next(iter(theirs._make_data_loader(cells, batch_size=128)))
    z = torch.randn(128, 10)
    found = scvi_gradients(ours.module, tensors, z)
    expected = scvi_gradients(theirs.module.double(), tensors | {"X": tensors["X"].double()}, z.double(), without_eps)
    for name in ("loss of each cell", "px_r", "decoder.px_scale_decoder.0.bias", "decoder.px_dropout_decoder.0.bias"):
        if name in expected:
            off = (found[name].double() - expected[name]).abs().max() / expected[name].abs().max()
            assert off < 128 * U, name


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_scvi_trains_as_with_its_own_loss(likelihood: str, cells: Any) -> None:
    """From one seed both draw the same noise, so their curves differ by rounding alone."""
    module = example("scvi")
    import scvi

    curves = []
    for kind in (module.SCVI, module.FusedSCVI):
        scvi.settings.seed = 1
        kind.setup_anndata(cells, batch_key="batch")
        model = kind(cells, gene_likelihood=likelihood)
        model.train(
            max_epochs=4, accelerator="cpu", train_size=0.8, check_val_every_n_epoch=1, enable_progress_bar=False
        )
        curves.append(torch.tensor(model.history["elbo_validation"].to_numpy(dtype=float)))
    assert curves[0][-1] < curves[0][0]
    # Twelve steps with Adam, which divides a gradient by its own size: nats of some hundred, measured 1e-5 apart.
    torch.testing.assert_close(*curves, rtol=0, atol=1e-2)


@pytest.mark.parametrize("observed", [True, False], ids=["observed library", "learned library"])
def test_scvi_gives_all_that_its_own_model_gives(observed: bool, cells: Any, tmp_path: Path) -> None:
    theirs, ours = scvi_models(cells, use_observed_lib_size=observed)
    for model in (theirs, ours):
        model.module.eval()
        model.is_trained_ = True

    def same(method: str, rtol: float = 0, **options: object) -> None:
        results = []
        for model in (theirs, ours):
            torch.manual_seed(0)
            results.append(torch.as_tensor(getattr(model, method)(**options)))
        torch.testing.assert_close(*results, rtol=rtol, atol=0)

    same("get_latent_representation")
    same("get_normalized_expression", return_numpy=True)
    same("get_marginal_ll", n_mc_samples=6, n_mc_samples_per_pass=3, rtol=1e-5)
    same("get_elbo", rtol=1e-5)
    assert ours.posterior_predictive_sample(n_samples=2).shape == (400, 100, 2)
    ours.save(tmp_path / "model")
    loaded = type(ours).load(tmp_path / "model", adata=cells)
    assert torch.equal(loaded.module.px_r, ours.module.px_r)
    assert type(loaded.module) is type(ours.module)


@pytest.mark.parametrize("options", [{"gene_likelihood": "poisson"}, {"use_size_factor_key": True}], ids=str)
def test_scvi_refuses_what_it_does_not_have(options: dict[str, object]) -> None:
    module = example("scvi")
    with pytest.raises(ValueError, match="likelihoods nb and zinb, and means without a size_factor_key"):
        module.FusedVAE(100, **options)


def test_example_of_scvi_prints_equal_losses(capsys: pytest.CaptureFixture[str]) -> None:
    example("scvi")
    runpy.run_path(str(EXAMPLES / "cells_scvi.py"), run_name="__main__")
    theirs, ours = map(float, re.findall(r"test loss: (\S+) nats per cell$", capsys.readouterr().out, re.MULTILINE))
    assert abs(theirs - ours) < 0.02
    assert 280 < ours < 330


# RecBole


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """RecBole's configuration and its training batches of MovieLens-100k. It writes logs to the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("recbole"))
        patch.setattr("sys.argv", ["pytest"])  # which RecBole reads
        config, training, _ = example("recbole").prepare()
        yield config, training


def recbole_models(ratings: tuple[Any, Any]) -> tuple[Any, Any]:
    """RecBole's own model and the fused one, of the same weights, without dropout and noise."""
    module = example("recbole")
    config, training = ratings
    own, fused = (kind(config, training.dataset).eval() for kind in (module.MultiVAE, module.FusedMultiVAE))
    fused.load_state_dict(own.state_dict())
    return own, fused


def recbole_gradients(model: Any, batch: Any) -> dict[str, Tensor]:
    loss = model.calculate_loss(batch)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def test_recbole_has_the_loss_and_gradients_of_float64(ratings: tuple[Any, Any]) -> None:
    own, fused = recbole_models(ratings)
    batch = next(iter(ratings[1]))
    found = recbole_gradients(fused, batch)
    own = own.double()
    own.history_item_value = own.history_item_value.double()
    torch.set_default_dtype(torch.float64)  # of the matrix of ratings
    try:
        expected = recbole_gradients(own, batch)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Sums of 1683 terms and of 128 users, in float32 products: relative to the largest.
        off = (found[name].double() - value).abs().max() / value.abs().max()
        assert off < 128 * U, name


def test_recbole_anneals_the_kl_divergence(ratings: tuple[Any, Any]) -> None:
    own, fused = recbole_models(ratings)
    batch = next(iter(ratings[1]))
    for total, cap in ((0, 0.2), (4, 0.6)):
        for model in (own, fused):
            model.update, model.total_anneal_steps, model.anneal_cap = 0, total, cap
        for _ in range(4):
            torch.testing.assert_close(fused.calculate_loss(batch), own.calculate_loss(batch))
    assert fused.update == own.update == 4


def test_recbole_trains_as_with_its_own_loss(ratings: tuple[Any, Any]) -> None:
    """From one seed both draw the same dropout and noise, so what they learn differs by rounding alone."""
    module = example("recbole")
    scores = [module.train(kind, seed=1, epochs=10) for kind in (module.MultiVAE, module.FusedMultiVAE)]
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        # RecBole rounds to four digits. A user's list of ten changes where two scores are nearly equal.
        assert abs(scores[1][name] - value) < 2e-3, name
    assert scores[1]["recall@10"] > 0.15
