"""The tutorial's experiments: what they claim where it is known exactly, and that all of them run."""

import json
from itertools import pairwise

import pytest
import torch

from fastvae import experiments
from fastvae.experiments import closed_form
from fastvae.experiments.base import Setting


def setting(tmp_path, **changes):
    options = {"quick": True, "data_dir": None, "epochs": 1, "seed": 0, "folder": tmp_path, "report": print}
    return Setting(**{**options, **changes})


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_experiment_writes_its_picture_and_figures(name, tmp_path):
    said = []
    figures = experiments.run(name, tmp_path, quick=True, epochs=1, report=said.append)
    assert json.loads((tmp_path / f"{name}.json").read_text()) == figures
    assert (figures["experiment"], figures["quick"]) == (name, True)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    if (tmp_path / "runs").exists():
        assert said


def test_experiment_goes_on_with_its_runs(tmp_path):
    first = experiments.run("latent-manifold", tmp_path, quick=True, epochs=1)
    said = []
    again = experiments.run("latent-manifold", tmp_path, quick=True, epochs=1, report=said.append)
    assert again["test"] == first["test"]
    assert said == []  # nothing was trained
    longer = experiments.run("latent-manifold", tmp_path, quick=True, epochs=2, report=said.append)
    assert longer["test"] != first["test"]
    with pytest.raises(ValueError, match="cannot resume with seed 1"):
        experiments.run("latent-manifold", tmp_path, quick=True, epochs=2, seed=1)


def test_unknown_experiment_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"experiment must be one of mnist-vae, .*, not 'gan'"):
        experiments.run("gan", tmp_path)


def test_ring_has_the_radius_of_its_formula(tmp_path):
    figures = closed_form.ring(setting(tmp_path, quick=False)).figures
    error = figures["radius_deviation_exact"] / figures["points"] ** 0.5
    assert abs(figures["radius_mean"] - figures["radius_mean_exact"]) < 5 * error


def test_shift_is_by_half_a_pixel():
    image = torch.zeros(5, 5, dtype=torch.float64)
    image[2, 2] = 1
    moved = closed_form.shifted(image)
    rows = torch.arange(5, dtype=torch.float64)
    assert moved.sum() == 1
    assert [float(moved.sum(1 - axis) @ rows) for axis in (0, 1)] == [2.5, 2.5]


def test_moved_digits_are_farther_than_broken_ones(tmp_path):
    figures = closed_form.pixel_distance(setting(tmp_path)).figures
    assert figures["moved_is_farther_share"] > 0.9
    assert figures["broken_mean"] < 0.5 * figures["moved_half_a_pixel_mean"]


def test_one_dimensional_maps_are_each_others_inverses():
    mixture = closed_form._Mixture()
    x = torch.linspace(-2.5, 3, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mixture.f(mixture.g(x)), x, rtol=0, atol=1e-9)
    (slope,) = torch.autograd.grad(mixture.g(x).sum(), x)
    torch.testing.assert_close(mixture.slope(x), slope)


def test_one_dimensional_divergence_is_that_of_a_known_case(monkeypatch):
    """With f(z) = z all is Gaussian: Q = N(x, s^2), P(z|x) = N(x / (1 + s^2), s^2 / (1 + s^2))."""
    for name, function in {"g": lambda self, x: x, "f": lambda self, z: z, "slope": lambda self, x: x * 0 + 1}.items():
        monkeypatch.setattr(closed_form._Mixture, name, function)
    x = torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64)
    for sigma in (0.5, 0.1):
        q = torch.distributions.Normal(x, sigma)
        p = torch.distributions.Normal(x / (1 + sigma**2), sigma / (1 + sigma**2) ** 0.5)
        exact = torch.distributions.kl_divergence(q, p)
        torch.testing.assert_close(closed_form.kl_to_posterior(sigma, x, 2001), exact, rtol=1e-8, atol=1e-12)


def test_one_dimensional_divergence_falls_with_the_square_of_sigma(tmp_path):
    kls = closed_form.one_dimensional(setting(tmp_path)).figures["kl_mean_nats"]
    ratios = [a / b for a, b in pairwise(kls[2:])]
    assert all(3.8 < ratio < 4.2 for ratio in ratios)
