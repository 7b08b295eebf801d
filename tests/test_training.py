"""Training runs: what they write, how they stop, and that they go on as if they had not."""

import dataclasses
import json
import math
import re
import signal
import subprocess
import sys

import pytest
import torch
from runs import FILES, SMALL, assert_same_run, contents, small, without_times
from torch import nn

import fastvae
from fastvae import ELBO, elbo_loss, gaussian_kl, reparameterize
from fastvae.data import load
from fastvae.evaluation import evaluate
from fastvae.models import VAE, Regressor
from fastvae.optim import Adam
from fastvae.training import (
    StoppedError,
    TrainConfig,
    TrainingError,
    load_checkpoint,
    saved_config,
    train,
)
from fastvae.training.graph import CapturedStep
from fastvae.training.solver import learning_rate_schedule, make_optimizer, parameter_names, scaled_learning_rate
from fastvae.training.step import Objective, Stepper


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs that tests only read."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return out, train(SMALL, out)


def test_train_writes_the_run(finished):
    out, result = finished
    # Nothing else: no temporary file is left.
    assert {path.name for path in out.iterdir()} == FILES
    for name in ("samples.png", "reconstructions.png", "curves.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["epochs"] == result.history
    assert metrics["config"] == json.loads(json.dumps(dataclasses.asdict(SMALL)))
    assert metrics["versions"]["torch"] == torch.__version__
    assert [entry["epoch"] for entry in metrics["epochs"]] == [1, 2]


def test_metrics_hold_together(finished):
    for entry in finished[1].history:
        for part in ("train", "test"):
            report = entry[part]
            assert report["elbo"] == -(report["reconstruction"] + report["kl"])
            assert math.isclose(report["bits_per_dim"], -report["elbo"] / (64 * math.log(2)))
        assert math.isclose(entry["samples_per_second"] * entry["seconds"], 1442)
    first, last = finished[1].history[0], finished[1].history[-1]
    assert last["train"]["elbo"] > first["train"]["elbo"]


def test_checkpoint_gives_the_model_of_the_last_metrics(finished):
    out, result = finished
    model = load_checkpoint(out).build_model()
    report = evaluate(model, load("digits").test, generator=torch.Generator().manual_seed(0))
    assert report._asdict() == result.history[-1]["test"]
    for name, parameter in result.model.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name])


def test_pictures_and_tests_leave_the_running_statistics_alone(tmp_path):
    """They are of the training set's batches: two for each of the two epochs."""
    config = small(network="conv", conv_width=4, conv_norm="batch", batch_size=721)
    trained = train(config, tmp_path).model
    loaded = fastvae.load(tmp_path)
    assert not any(module.training for module in loaded.modules())
    counts = {int(value) for name, value in trained.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {4}
    for name, value in trained.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


class Frozen(nn.Module):
    """A module with its own loss, whose normalisation keeps the statistics that it has."""

    def __init__(self):
        super().__init__()
        self.norm, self.encoder, self.decoder = nn.BatchNorm1d(64), nn.Linear(64, 8), nn.Linear(4, 64)
        self.norm.eval()

    def forward(self, x):
        x = x.flatten(1) / 255
        mu, logvar = self.encoder(self.norm(x)).chunk(2, -1)
        return elbo_loss(self.decoder(reparameterize(mu, logvar)), x, mu, logvar)


def test_frozen_submodules_stay_frozen(tmp_path):
    torch.manual_seed(0)
    given = Frozen()
    train(small(epochs=2, batch_size=721), tmp_path / "given", model=given)
    encoder = nn.Sequential(nn.Flatten(), given.norm, given.encoder)
    model = VAE((8, 8), latent_dim=4, encoder=encoder, decoder=given.decoder)
    train(small(epochs=2, batch_size=721), tmp_path / "networks", model=model)
    assert model.training
    assert given.encoder.training
    assert not given.norm.training
    assert given.norm.num_batches_tracked == 0


def test_model_in_evaluation_mode_is_trained_in_training_mode(tmp_path):
    """As that of an earlier run, which is loaded and given to another."""
    model = VAE((8, 8), network="conv", conv_width=4, conv_norm="batch", latent_dim=4).eval()
    train(small(epochs=1, batch_size=721), tmp_path, model=model)
    assert {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")} == {2}


def test_tensorboard_gets_scalars_and_images(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"samples", "reconstructions"}
    expected = {f"{k}/{p}" for k in ("elbo", "reconstruction", "kl", "bits_per_dim") for p in ("train", "test")}
    assert set(tags["scalars"]) == expected | {"samples_per_second"}
    logged = [(event.step, event.value) for event in events.Scalars("elbo/test")]
    for (step, value), entry in zip(logged, finished[1].history, strict=True):
        assert step == entry["epoch"]
        assert math.isclose(value, entry["test"]["elbo"], rel_tol=1e-6)


def test_same_seed_same_run_and_other_seed_another(tmp_path, finished):
    train(SMALL, tmp_path / "again")
    assert_same_run(finished[0], tmp_path / "again")
    other = train(small(seed=1), tmp_path / "other")
    assert without_times(other.history) != without_times(finished[1].history)


@pytest.mark.parametrize(
    "changes",
    [
        {"binarize": "dynamic"},
        {"likelihood": "gaussian", "amp": "bf16"},
        {"batch_size": 5000, "beta": 0.5},
        {"preset": "doersch", "importance_samples": 3, "gradient": "dreg"},
        {"model": "cvae", "preset": "doersch", "binarize": "dynamic"},
        {"warmup_epochs": 2, "accumulate": 3, "clip_norm": 50.0},
        {"model": "regressor", "likelihood": "gaussian", "learn_sigma": True},
        {"model": "cvae", "condition": "labels", "accumulate": 2},
        {"likelihood": "gaussian", "learn_sigma": True, "anneal": "linear", "anneal_epochs": 3, "free_bits": 0.1},
    ],
    ids=str,
)
def test_resumed_run_is_bitwise_the_one_never_stopped(tmp_path, changes):
    train(small(epochs=4, **changes), tmp_path / "whole")
    train(small(epochs=2, **changes), tmp_path / "halves")
    result = train(small(epochs=4, **changes), tmp_path / "halves", resume=True)
    assert len(result.history) == 4
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    metrics = json.loads((tmp_path / "halves" / "metrics.json").read_text())
    assert metrics["epochs"] == result.history
    assert metrics["config"]["epochs"] == 4


def test_doersch_solver_is_the_tutorials():
    """By hand: Adam without momentum, and L2 of the weights alone in its gradient."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2).double()
    optimizer = make_optimizer(layer, 1e-3, "doersch")
    expected = [p.detach().clone() for p in layer.parameters()]
    squares = [torch.zeros_like(p) for p in expected]
    assert [p.dim() for p in expected] == [2, 1]
    for step in range(1, 6):
        optimizer.zero_grad()
        layer(torch.randn(4, 3, dtype=torch.float64)).square().sum().backward()
        for p, square, parameter in zip(expected, squares, layer.parameters(), strict=True):
            g = parameter.grad + (5e-4 * p if p.dim() == 2 else 0)
            square += (1 - 0.999) * (g * g - square)
            p -= 1e-3 * g / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
        for parameter, p in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), p)
    assert parameter_names(layer, optimizer) == ["weight", "bias"]


def test_learning_rate_warms_up_and_decays():
    """Against torch's own schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, total_iters=4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], milestones=[5])
    rate = learning_rate_schedule(0.1, 5, 20)
    for step in range(25):
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        expected.step()
    assert rate(25) == 0
    assert learning_rate_schedule(0.1, 0, None)(10**6) == 0.1


def test_learning_rate_grows_with_the_batch(tmp_path, monkeypatch):
    assert scaled_learning_rate(1e-3, 400, None) == 1e-3
    assert scaled_learning_rate(1e-3, 400, "linear") == pytest.approx(4e-3)
    assert scaled_learning_rate(1e-3, 400, "sqrt") == pytest.approx(2e-3)
    rates, step = [], Adam.step

    def record(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(Adam, "step", record)
    train(small(epochs=1, batch_size=400, scale_learning_rate="sqrt"), tmp_path)
    assert rates == pytest.approx([2e-3] * 4)


def test_decaying_run_cannot_be_prolonged_but_goes_on(tmp_path):
    config = small(epochs=3, warmup_epochs=1, decay="cosine")
    decayed, constant = train(config, tmp_path / "whole"), train(small(epochs=3), tmp_path / "constant")
    assert decayed.history[0]["train"]["elbo"] < constant.history[0]["train"]["elbo"]  # it starts more slowly

    def stop(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "halves", progress=stop)
    with pytest.raises(ValueError, match="cannot resume with epochs 4: the learning rate decays over the run's own 3"):
        train(small(epochs=4, warmup_epochs=1, decay="cosine"), tmp_path / "halves", resume=True)
    train(config, tmp_path / "halves", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_annealing_multiplies_the_kl_from_nothing(tmp_path):
    seen = []
    config = small(epochs=2, beta=0.5, anneal="linear", anneal_epochs=2, batch_size=500)
    result = train(config, tmp_path / "run", progress=seen.append)
    # Three steps an epoch with 0, 1/6, ... of 0.5: the loss of the first epoch counts little of the KL.
    first, second = (p for p in seen if p.test is not None)
    for p, most in ((first, 0.5 * 2 / 6), (second, 0.5 * 5 / 6)):
        assert 0 < p.loss - p.reconstruction < most * p.kl * 1.5
    assert second.loss - second.reconstruction > 2 * (first.loss - first.reconstruction)
    assert result.history[-1]["test"]["kl"] > 0


def test_importance_weighted_training_minimises_its_bound(tmp_path):
    seen = []
    train(small(epochs=1, importance_samples=5), tmp_path / "run", progress=seen.append)
    last = seen[-1]
    assert last.loss < last.reconstruction + last.kl  # tighter than the ELBO of the same samples


KILLED = """
import os, signal, sys
from fastvae.training import TrainConfig, loop, train

loop._SECONDS_BETWEEN_REPORTS = 0

def kill_in_the_middle(progress):
    if progress.epoch == EPOCH and progress.images > 700:
        os.kill(os.getpid(), signal.SIGKILL)

config = TrainConfig(hidden=(32,), latent_dim=4, epochs=2, likelihood="bernoulli")
train(config, sys.argv[1], progress=kill_in_the_middle)
"""


@pytest.mark.parametrize("epoch", [1, 2])
def test_run_killed_in_the_middle_of_an_epoch_resumes_bitwise(tmp_path, finished, epoch):
    out = tmp_path / "killed"
    script = KILLED.replace("EPOCH", str(epoch))
    process = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    # That of the epoch before may have been on its way to the disk.
    assert load_checkpoint(out).epoch in {0, epoch - 1}
    train(SMALL, out, resume=True)
    assert_same_run(finished[0], out)
    assert {path.name for path in out.iterdir()} == FILES


def test_resume_of_a_finished_run_writes_what_is_missing(tmp_path):
    train(small(epochs=1), tmp_path)
    before = contents(tmp_path / "checkpoints")
    # As after a kill between the last checkpoint and what follows it.
    for name in ("samples.png", "metrics.json"):
        (tmp_path / name).unlink()
    history = train(small(epochs=1), tmp_path, resume=True).history
    assert (tmp_path / "samples.png").exists()
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == history
    assert contents(tmp_path / "checkpoints") == before


@pytest.mark.parametrize("survivor", sorted(FILES - {"config.toml"}))
def test_train_refuses_a_folder_that_holds_a_run(tmp_path, survivor):
    (tmp_path / survivor).write_text("precious")
    with pytest.raises(FileExistsError, match=f"{re.escape(str(tmp_path))} holds {survivor} of an earlier run"):
        train(SMALL, tmp_path)
    assert contents(tmp_path) == {tmp_path / survivor: b"precious"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 5}, "cannot resume with latent_dim 5: the run in .* has 4"),
        ({"hidden": (16,)}, r"cannot resume with hidden \(16,\): the run in .* has \(32,\)"),
        ({"beta": 2.0}, "cannot resume with beta 2.0"),
        ({"seed": 3}, "cannot resume with seed 3"),
        ({"amp": "bf16"}, "cannot resume with amp bf16: the run in .* has None"),
        ({"epochs": 1}, "cannot resume with epochs 1: the run in .* has already begun epoch 2"),
    ],
    ids=str,
)
def test_resume_refuses_options_that_contradict_the_run(finished, changes, message):
    before = contents(finished[0])
    with pytest.raises(ValueError, match=message):
        train(small(**changes), finished[0], resume=True)
    assert contents(finished[0]) == before


def test_resume_without_a_run_starts_one(tmp_path, finished, caplog):
    caplog.set_level("INFO", "fastvae")
    train(SMALL, tmp_path / "run", resume=True)
    assert_same_run(finished[0], tmp_path / "run")
    train(SMALL, tmp_path / "run", resume=True)
    assert [record.getMessage() for record in caplog.records if record.name == "fastvae"] == [
        f"no run in {tmp_path / 'run'} yet: starting one",
        f"going on with the run in {tmp_path / 'run'} after epoch 2",
    ]
    (tmp_path / "curves.png").touch()
    with pytest.raises(FileExistsError, match=r"holds curves.png of an earlier run: name another folder"):
        train(SMALL, tmp_path, resume=True)


def test_configuration_of_no_run_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such checkpoint"):
        saved_config(tmp_path / "nowhere")


def test_missing_data_set_leaves_no_folder_behind(tmp_path):
    with pytest.raises(FileNotFoundError, match="mnist is not in"):
        train(small(dataset="mnist", data_dir=str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loss_that_is_no_longer_finite_stops_the_run(tmp_path):
    with pytest.raises(
        TrainingError, match=r"the .* is (nan|-?inf) at step \d+, batch \d+ in epoch 1; .* holds epoch 0"
    ):
        train(small(learning_rate=1e30), tmp_path)
    assert load_checkpoint(tmp_path).epoch == 0


@pytest.mark.parametrize(("position", "name"), [(1, "reconstruction"), (2, "KL divergence")])
def test_message_names_the_term_and_the_step_that_was_not_finite(tmp_path, monkeypatch, position, name):
    whole, calls = Objective.forward, []

    def forward(self, *arguments):
        calls.append(None)
        terms = list(whole(self, *arguments))
        if len(calls) == 20:  # the 5th of the second epoch: there are 15 in each
            terms[position] = terms[position] * math.inf
            terms[0] = terms[position]
        return ELBO(*terms)

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(TrainingError, match=f"the {name} is inf at step 19, batch 4 in epoch 2; .* holds epoch 1"):
        train(small(epochs=2), tmp_path)
    assert load_checkpoint(tmp_path).epoch == 1


def test_accumulated_parts_are_the_gradient_of_the_batch(tmp_path, monkeypatch):
    """Of a loss without noise, to rounding; 100 images in 3 parts are not of one size."""

    def forward(self, beta, x):
        mu, logvar = self.model.encode(x)
        kl = gaussian_kl(mu, logvar, reduction="mean")
        reconstruction = self.model.nll(mu, x).mean()
        return ELBO(reconstruction + beta * kl, reconstruction, kl)

    monkeypatch.setattr(Objective, "forward", forward)
    whole, parts = (train(small(epochs=2, accumulate=n), tmp_path / str(n)).history for n in (1, 3))
    for a, b in zip(whole, parts, strict=True):
        for part in ("train", "test"):
            assert a[part]["elbo"] == pytest.approx(b[part]["elbo"], rel=1e-4)


def test_gradients_are_shortened_to_the_clip_norm(tmp_path, monkeypatch):
    norms, step = [], Adam.step

    def record(self, *arguments):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self, *arguments)

    monkeypatch.setattr(Adam, "step", record)
    for clip_norm in (None, 0.5):
        train(small(epochs=1, clip_norm=clip_norm), tmp_path / str(clip_norm))
    free, clipped = norms[: len(norms) // 2], norms[len(norms) // 2 :]
    assert max(free) > 1
    assert max(clipped) <= 0.5 * (1 + 1e-5)


def test_interrupt_keeps_the_last_epoch(tmp_path, finished):
    def interrupt(progress):
        if progress.test is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, tmp_path, progress=interrupt)
    assert load_checkpoint(tmp_path).epoch == 1
    train(SMALL, tmp_path, resume=True)
    assert_same_run(finished[0], tmp_path)


def test_progress_tells_every_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvae.training.loop._SECONDS_BETWEEN_REPORTS", 0)
    seen = []
    history = train(small(beta=0.5), tmp_path, progress=seen.append).history
    ends = [progress for progress in seen if progress.test is not None]
    assert [progress.epoch for progress in ends] == [1, 2]
    assert [progress.images for progress in seen[:3]] == [100, 200, 300]
    assert {(progress.epochs, progress.images_per_epoch) for progress in seen} == {(2, 1442)}
    for progress, entry in zip(ends, history, strict=True):
        assert progress.test._asdict() == entry["test"]
        assert math.isclose(progress.loss, entry["train"]["reconstruction"] + 0.5 * entry["train"]["kl"], rel_tol=1e-6)


@pytest.mark.parametrize("flushed_by_caller", [False, True])
def test_every_thread_flushes_denormal_numbers_while_it_trains(tmp_path, flushed_by_caller):
    tiny = torch.full((2**20,), 1e-40)

    def kept() -> int:
        return (tiny * 1).view(torch.int32).count_nonzero().item()

    def watch(progress):
        seen.append(kept())
        if len(seen) == 2:
            raise ZeroDivisionError

    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        assert kept() == 2**20
        torch.set_flush_denormal(flushed_by_caller)  # of this thread alone
        expected = 2**19 if flushed_by_caller else 2**20
        assert kept() == expected
        with pytest.raises(ZeroDivisionError):
            train(small(epochs=2), tmp_path, progress=watch)
        assert seen == [0, 0]
        assert kept() == expected
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_train_compiled_learns_the_same(tmp_path, finished):
    history = train(small(compile=True), tmp_path).history
    # Fused arithmetic rounds differently, and two epochs of Adam spread that.
    assert math.isclose(history[-1]["test"]["elbo"], finished[1].history[-1]["test"]["elbo"], rel_tol=1e-2)


def test_a_regressor_given_labels_learns_the_mean_of_each(tmp_path):
    data = load("digits")
    model, _ = train(small(epochs=30, model="regressor", condition="labels", batch_size=50), tmp_path / "run")
    assert isinstance(model, Regressor)
    means = torch.stack([data.train[data.train_labels == label].double().mean(0) / 255 for label in range(10)])
    error = (model.predict(torch.arange(10)) - means).square().mean().sqrt()
    # Ten means differ by a standard deviation of 0.2 a pixel: a tenth of the variance says which is which.
    assert error < 0.3 * (means - means.mean(0)).square().mean().sqrt()


def test_evaluate_disturbs_neither_noise_nor_mode():
    model = VAE((8, 8), (16,), 2)
    images = load("digits").test
    before = torch.get_rng_state()
    first = evaluate(model, images, binarize=True, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == evaluate(model, images, binarize=True, generator=torch.Generator().manual_seed(5))
    assert model.training


def test_evaluate_weighs_every_image_alike():
    model = VAE((8, 8), (16,), 2)
    images = load("digits").test
    # The KL has no noise: the size of the batches, and of a last one of 55, must not show.
    kls = [evaluate(model, images, batch_size=size).kl for size in (len(images), 100, 1)]
    assert math.isclose(kls[0], kls[1], rel_tol=1e-6)
    assert math.isclose(kls[0], kls[2], rel_tol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "cifar"}, "dataset must be one of digits, mnist, fashion-mnist, kmnist, not 'cifar'"),
        ({"likelihood": "cauchy"}, "likelihood must be bernoulli, gaussian, .*, laplace or none, not 'cauchy'"),
        ({"binarize": "static"}, "binarize must be one of none, dynamic, not 'static'"),
        ({"amp": "fp16"}, "amp must be bf16 or none, not 'fp16'"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, not 0"),
        ({"hidden": (8, 0)}, r"hidden must hold positive widths, not \(8, 0\)"),
        ({"importance_samples": 0}, "importance_samples must be at least 1, not 0"),
        ({"anneal_epochs": 0}, "anneal_epochs must be at least 1, not 0"),
        ({"anneal": "sudden"}, "anneal must be linear, cosine, cyclical or none, not 'sudden'"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"accumulate": 101}, "accumulate must be at most batch_size, 100, not 101"),
        ({"clip_norm": 0.0}, "clip_norm must be a positive finite number or none, not 0.0"),
        ({"scale_learning_rate": "square"}, "scale_learning_rate must be linear, sqrt or none, not 'square'"),
        ({"decay": "step"}, "decay must be cosine or none, not 'step'"),
        ({"warmup_epochs": -1}, r"warmup_epochs must lie in 0 .. epochs \(100\), not -1"),
        ({"epochs": 3, "warmup_epochs": 4}, r"warmup_epochs must lie in 0 .. epochs \(3\), not 4"),
        ({"gradient": "vimco"}, "gradient must be one of iwae, stl, dreg, not 'vimco'"),
        ({"free_bits": -0.1}, "free_bits must be a finite number, 0 or more, not -0.1"),
        ({"preset": "kingma"}, "preset must be 'doersch', not 'kingma'"),
        ({"activation": "selu"}, "activation must be 'relu' or 'tanh', not 'selu'"),
        ({"preset": "doersch", "activation": "tanh"}, "preset 'doersch' needs hidden layers of ReLU units"),
        ({"model": "gan"}, "model must be one of vae, cvae, regressor, not 'gan'"),
        ({"model": "regressor", "importance_samples": 2}, "a regressor has no z: importance_samples must be 1, not 2"),
        ({"model": "regressor", "beta": 4.0}, "a regressor has no z: beta must be 1, not 4.0"),
        ({"condition": "labels"}, "a vae has no condition: model must be cvae or regressor for labels"),
        ({"model": "cvae", "condition": "none"}, "condition must be one of column, labels, not 'none'"),
        ({"model": "cvae", "hidden": ()}, "hidden must name at least one layer for a cvae"),
        ({"gradient": "stl"}, "gradient stl needs the importance-weighted bound: importance_samples must be 2 or more"),
        ({"learn_sigma": True}, "learn_sigma needs the likelihood gaussian"),
        ({"importance_samples": 5, "beta": 0.5}, "beta, anneal and free_bits weigh the ELBO"),
        ({"importance_samples": 5, "anneal": "cosine"}, "beta, anneal and free_bits weigh the ELBO"),
        ({"beta": math.nan}, "beta must be a finite number, 0 or more, not nan"),
        ({"beta": -1.0}, "beta must be a finite number, 0 or more, not -1.0"),
        ({"sigma": 0.0}, "sigma must be a positive finite number, not 0.0"),
        ({"learning_rate": math.inf}, "learning_rate must be a positive finite number, not inf"),
        ({"seed": -1}, "seed must lie in"),
    ],
    ids=str,
)
def test_config_rejects(options, message):
    with pytest.raises(ValueError, match="^" + message):
        TrainConfig(**options)


def test_run_without_a_whole_checkpoint_may_be_started_anew(tmp_path, finished):
    """Killed before its first one was written."""
    (tmp_path / "checkpoints" / ".step-000000000.part").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-000000000.part" / "shard-00001-model-00001-of-00001.safetensors").touch()
    train(SMALL, tmp_path)
    assert_same_run(finished[0], tmp_path)


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_replayed_steps_are_the_steps(tmp_path, monkeypatch, amp):
    """All but what a GPU adds: noise, learning rate, weight of the KL and images are those of each step."""
    options = {"binarize": "dynamic", "anneal": "linear", "anneal_epochs": 2, "warmup_epochs": 2, "clip_norm": 50.0}
    config = small(epochs=3, amp=amp, **options)
    train(config, tmp_path / "plain")
    calls = []

    def capture(function):
        result = torch.zeros(3, dtype=torch.float64)

        def replay():
            calls.append(None)
            result.copy_(function())

        return replay, result

    init = Stepper.__init__

    def captured(self, *arguments, **options):
        init(self, *arguments, **options)
        self._captured = CapturedStep(self._on_device, config.batch_size, self.device, capture)
        for group in self.optimizer.param_groups:  # as a capturable Adam has it, but for its dtype
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)

    monkeypatch.setattr(Stepper, "__init__", captured)
    train(config, tmp_path / "captured")
    # 15 steps an epoch: the last of each is smaller, and three come before the capture.
    assert len(calls) == 3 * 14 - 3
    assert_same_run(tmp_path / "plain", tmp_path / "captured")


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}])
def test_cuda_graph_needs_a_gpu_and_whole_batches(tmp_path, changes):
    with pytest.raises(ValueError, match="cuda_graph captures the step of one process on a GPU"):
        train(small(**changes), tmp_path, cuda_graph=True, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """A finite loss whose gradient is not: the update comes before the next loss could tell."""
    step, calls = Adam.step, []

    def spoilt(self, *arguments):
        calls.append(None)
        if len(calls) == 8:
            self.param_groups[0]["params"][0].grad[0, 0] = math.nan
        return step(self, *arguments)

    monkeypatch.setattr(Adam, "step", spoilt)
    with pytest.raises(TrainingError, match=r"the weights are no longer finite after step 7 in epoch 1; .*4 holds"):
        train(small(), tmp_path, save_steps=4)
    assert load_checkpoint(tmp_path).position.step == 4
    assert all(p.isfinite().all() for p in load_checkpoint(tmp_path).build_model().parameters())


def test_epoch_that_was_begun_is_not_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvae.training.loop._SECONDS_BETWEEN_REPORTS", 0)

    def stop(progress):
        if progress.epoch == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError):
        train(small(), tmp_path, progress=stop)
    assert (load_checkpoint(tmp_path).epoch, load_checkpoint(tmp_path).position.step) == (1, 16)
    with pytest.raises(ValueError, match=r"cannot resume with epochs 1: the run in .* has already begun epoch 2"):
        train(small(epochs=1), tmp_path, resume=True)


def test_sigterm_is_heard_where_every_step_ends_an_epoch(tmp_path):
    with pytest.raises(StoppedError, match="stopped by SIGTERM in epoch 2, after step 1, and saved"):
        train(small(batch_size=2000, epochs=6), tmp_path, progress=lambda p: signal.raise_signal(signal.SIGTERM))
    assert load_checkpoint(tmp_path).position.step == 1


def test_run_whose_last_checkpoint_is_damaged_is_not_overwritten(tmp_path):
    train(small(epochs=1), tmp_path)
    (shard,) = load_checkpoint(tmp_path).folder.glob("*.safetensors")
    shard.unlink()
    with pytest.raises(FileExistsError, match="holds checkpoints of an earlier run"):
        train(small(epochs=1), tmp_path)
