"""Runs that start from the weights of another: what they take of it, what they refuse, and that they stand alone."""

import dataclasses
import json
import shutil
import sys

import pytest
import torch
from runs import TORCHRUN, assert_same_run, contents, run, small, tensors

from fastvae.cli import main
from fastvae.data import load
from fastvae.training import load_checkpoint, saved_config, train


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of one epoch, which tests only read: two checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "source"
    train(small(epochs=1, likelihood="gaussian"), out)
    return out


def weights(checkpoint):
    return {name: value for name, value in tensors(checkpoint).items() if name.startswith("model.")}


def first_checkpoint(out):
    return load_checkpoint(out / "checkpoints" / "step-000000000")


CHANGES = [
    {"learning_rate": 1e-4, "decay": "cosine", "warmup_epochs": 1},
    {"beta": 4.0, "free_bits": 0.1, "seed": 7},
    {"sigma": 0.5, "batch_size": 50, "accumulate": 2, "binarize": "dynamic"},
    {"importance_samples": 3, "gradient": "dreg"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_run_starts_from_the_weights_of_another(source, tmp_path, changes):
    before = contents(source)
    config = dataclasses.replace(saved_config(source), epochs=1, **changes)
    train(config, tmp_path, init_from=source)
    start, origin = first_checkpoint(tmp_path), load_checkpoint(source)
    # The weights, bitwise, and nothing else: Adam starts anew, and epochs count from 0.
    assert tensors(start).keys() == weights(origin).keys()
    for name, value in weights(origin).items():
        assert torch.equal(value, weights(start)[name]), name
    assert (start.position.step, start.position.history) == (0, [])
    assert len(load_checkpoint(tmp_path).history) == 1
    assert contents(source) == before


def test_one_of_the_checkpoints_may_be_named(source, tmp_path):
    folder = source / "checkpoints" / "step-000000000"
    train(dataclasses.replace(saved_config(folder), seed=3), tmp_path, init_from=folder)
    for name, value in weights(load_checkpoint(folder)).items():
        assert torch.equal(value, weights(first_checkpoint(tmp_path))[name]), name


def test_where_it_came_from_is_kept(source, tmp_path):
    config = dataclasses.replace(saved_config(source), learning_rate=1e-4)
    train(config, tmp_path, init_from=source)
    train(dataclasses.replace(config, epochs=2), tmp_path, resume=True)
    manifest = json.loads((load_checkpoint(source).folder / "manifest.json").read_text())
    origin = {
        "checkpoint": str(load_checkpoint(source).folder),
        "sha256": manifest["sha256"],
        "epoch": 1,
        "step": 15,
    }
    assert json.loads((tmp_path / "metrics.json").read_text())["init_from"] == origin
    assert load_checkpoint(tmp_path).init_from == origin
    assert json.loads((source / "metrics.json").read_text())["init_from"] is None


def test_fine_tuned_run_resumes_bitwise_without_the_other(source, tmp_path):
    config = dataclasses.replace(saved_config(source), epochs=4, learning_rate=1e-4, beta=2.0, seed=5)
    copy = shutil.copytree(source, tmp_path / "copy")
    train(config, tmp_path / "whole", init_from=copy)
    train(dataclasses.replace(config, epochs=2), tmp_path / "halves", init_from=copy)
    shutil.rmtree(copy)
    train(config, tmp_path / "halves", resume=True, init_from=copy)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    # It differs from one that starts with weights of its own seed.
    train(config, tmp_path / "fresh")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "whole", tmp_path / "fresh")


def test_run_goes_on_with_other_images_of_that_shape(source, tmp_path, monkeypatch):
    digits = load("digits")
    other = dataclasses.replace(digits, name="mnist", train=255 - digits.train)
    monkeypatch.setattr("fastvae.training.inputs.load", lambda name, root: {"mnist": other, "digits": digits}[name])
    train(dataclasses.replace(saved_config(source), dataset="mnist"), tmp_path, init_from=source)
    assert load_checkpoint(tmp_path).train_config["dataset"] == "mnist"
    assert torch.equal(
        *(weights(c)["model.encoder.0.bias"] for c in (first_checkpoint(tmp_path), load_checkpoint(source)))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 5}, "its latent_dim is 4, not 5"),
        ({"hidden": (16, 8)}, r"its hidden is \[32\], not \[16, 8\]"),
        ({"activation": "tanh"}, "its activation is relu, not tanh"),
        ({"preset": "doersch"}, "its preset is None, not doersch"),
        ({"likelihood": "bernoulli"}, "its likelihood is gaussian, not bernoulli"),
        ({"learn_sigma": True}, "its learn_sigma is False, not True"),
        ({"model": "cvae"}, "its model is vae, not cvae"),
        ({"dataset": "mnist"}, r"its data_shape is \[8, 8\], not \[28, 28\]"),
    ],
    ids=str,
)
def test_another_architecture_is_refused(source, tmp_path, monkeypatch, changes, message):
    digits = load("digits")
    large = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1).repeat(1, 28, 28)
    mnist = dataclasses.replace(digits, train=large, train_labels=digits.train_labels[:200])
    monkeypatch.setattr("fastvae.training.inputs.load", lambda name, root: {"mnist": mnist, "digits": digits}[name])
    config = dataclasses.replace(saved_config(source), **changes)
    with pytest.raises(ValueError, match=f"^cannot start from {load_checkpoint(source).folder}: {message}$"):
        train(config, tmp_path / "out", init_from=source)
    assert not (tmp_path / "out").exists()


def test_sigma_that_was_learned_is_no_option(tmp_path):
    config = small(epochs=1, likelihood="gaussian", learn_sigma=True)
    train(config, tmp_path / "source")
    train(config, tmp_path / "same", init_from=tmp_path / "source")
    learned = weights(load_checkpoint(tmp_path / "source"))["model.output.log_sigma"]
    assert torch.equal(weights(first_checkpoint(tmp_path / "same"))["model.output.log_sigma"], learned)
    with pytest.raises(ValueError, match=r"its sigma is 0.25, not 0.5"):
        train(dataclasses.replace(config, sigma=0.5), tmp_path / "other", init_from=tmp_path / "source")


def test_missing_and_damaged_sources_are_named(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such checkpoint"):
        train(small(), tmp_path / "out", init_from=tmp_path / "nowhere")
    copy = shutil.copytree(load_checkpoint(source).folder, tmp_path / "copy")
    next(copy.glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="copy: damaged checkpoint"):
        train(small(), tmp_path / "out", init_from=copy)
    assert not (tmp_path / "out").exists()


def test_command_takes_the_other_options_from_that_run(source, tmp_path, capsys):
    copy = shutil.copytree(source, tmp_path / "copy")
    command = ["train", "--init-from", str(copy), "--beta", "2", "--resume", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"no run in {tmp_path / 'run'} yet: starting one\nepoch 1/1 ")
    assert saved_config(tmp_path / "run") == dataclasses.replace(saved_config(source), beta=2.0)
    for name, value in weights(load_checkpoint(source)).items():
        assert torch.equal(value, weights(first_checkpoint(tmp_path / "run"))[name]), name
    shutil.rmtree(copy)
    assert main([*command, "--epochs", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"going on with the run in {tmp_path / 'run'} after epoch 1\nepoch 2/2 ")
    assert main(["train", "--init-from", str(source), "--latent-dim", "5", "--out", str(tmp_path / "other")]) == 1
    captured = capsys.readouterr()
    folder = load_checkpoint(source).folder
    assert captured.err == f"fastvae: error: cannot start from {folder}: its latent_dim is 4, not 5\n"
    assert captured.out == ""


def test_folder_of_another_data_set_is_not_taken_over(source, tmp_path, capsys):
    copy = tmp_path / "mnist"
    train(dataclasses.replace(saved_config(source), data_dir="/digits/here"), copy)
    command = ["train", "--init-from", str(copy), "--out", str(tmp_path / "run")]
    assert main([*command, "--dataset", "fashion-mnist", "--data-dir", str(tmp_path)]) == 1
    assert f"fashion-mnist is not in {tmp_path}:" in capsys.readouterr().err
    configs = []

    def record(config, *_: object, **__: object) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastvae.training.train", record)
        for more in ([], ["--dataset", "fashion-mnist"]):
            main([*command, *more])
    assert [config.data_dir for config in configs] == ["/digits/here", None]


@pytest.mark.parametrize("more", [[], ["--fsdp"]], ids=str)
def test_processes_start_from_the_weights_too(source, tmp_path, more):
    options = ["--init-from", source, "--accumulate", 2, "--learning-rate", "1e-4"]
    process = run([*TORCHRUN, "train", *options, *more, "--out", tmp_path / "many"])
    assert process.returncode == 0, process.stderr
    alone = run([sys.executable, "-m", "fastvae", "train", *options, "--out", tmp_path / "one"])
    assert alone.returncode == 0, alone.stderr
    # As tests/test_distributed.py has it: another order of the sums of 15 steps.
    assert_same_run(tmp_path / "one", tmp_path / "many", 1e-6)
    for name, value in weights(load_checkpoint(source)).items():
        assert torch.equal(value, weights(first_checkpoint(tmp_path / "many"))[name]), name
