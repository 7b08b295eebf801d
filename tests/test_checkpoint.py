"""Checkpoints: what comes back, and what is no checkpoint."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from fastvae.files import replacing
from fastvae.training import TrainConfig, load_checkpoint, save_checkpoint, train

CONFIG = TrainConfig(hidden=(32,), latent_dim=4, epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The checkpoint of a run of one epoch; tests only read it."""
    out = tmp_path_factory.mktemp("runs")
    train(CONFIG, out)
    return out / "checkpoint.safetensors"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoint_survives_the_round_trip(tmp_path, finished):
    original = load_checkpoint(finished)
    save_checkpoint(tmp_path / "copy.safetensors", original)
    copy = load_checkpoint(tmp_path / "copy.safetensors")
    for field in ("model_config", "train_config", "epoch", "history"):
        assert getattr(copy, field) == getattr(original, field)
    pairs = [(original.model, copy.model), (original.random, copy.random)]
    pairs += [(original.optimizer[name], copy.optimizer[name]) for name in original.model]
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert set(original.optimizer["encoder.0.weight"]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_checkpoint_is_refused(tmp_path, finished, kept):
    whole = finished.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=re.escape(str(path)) + ": truncated or no checkpoint of fastvae"):
        load_checkpoint(path)


def test_foreign_file_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("not a checkpoint at all, but long enough to hold a header of some size\n" * 10)
    with pytest.raises(ValueError, match=re.escape(str(text)) + ": truncated or no checkpoint of fastvae"):
        load_checkpoint(text)
    weights = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(2)}, weights)
    with pytest.raises(ValueError, match=re.escape(str(weights)) + ": no checkpoint of fastvae"):
        load_checkpoint(weights)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": 2}, "checkpoint of format 2, this fastvae reads format 1"),
        ({}, "damaged checkpoint"),
        ({"format": 1}, "damaged checkpoint"),
        ({"format": 1, "model": {"shape": 3}, "train": {}, "epoch": 0, "history": []}, "damaged checkpoint"),
        ({"format": 1, "model": {}, "train": {}, "epoch": 0, "history": []}, "damaged checkpoint"),
        ([], "damaged checkpoint"),
    ],
    ids=str,
)
def test_checkpoint_with_a_wrong_header_is_refused(tmp_path, header, message):
    path = tmp_path / "odd.safetensors"
    save_file({"model.w": torch.zeros(2)}, path, metadata={"fastvae": json.dumps(header)})
    with pytest.raises(ValueError, match=re.escape(str(path)) + ": " + message):
        load_checkpoint(path)


def test_checkpoint_without_its_optimiser_is_refused_by_resume(tmp_path, finished):
    checkpoint = load_checkpoint(finished)
    save_checkpoint(tmp_path / "checkpoint.safetensors", dataclasses.replace(checkpoint, optimizer={}))
    with pytest.raises(ValueError, match=r"checkpoint.safetensors: damaged checkpoint"):
        train(CONFIG, tmp_path, resume=True)


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"checkpoint.safetensors: no such checkpoint"):
        load_checkpoint(tmp_path)


def test_failed_write_leaves_the_old_checkpoint(tmp_path, finished, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    old = load_checkpoint(finished)
    save_checkpoint(path, old)
    before = path.read_bytes()

    def full_disk(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, dataclasses.replace(old, epoch=7))
    assert contents(tmp_path) == {path: before}


def test_replacing_keeps_suffix_and_old_file(tmp_path):
    path = tmp_path / "new" / "picture.png"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".png"
        temporary.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("sec")
        raise RuntimeError
    assert contents(tmp_path) == {path: b"first"}


def test_checkpoint_builds_its_model_without_drawing_noise(finished):
    checkpoint = load_checkpoint(finished)
    before = torch.get_rng_state()
    one, other = checkpoint.build_model(), checkpoint.build_model()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(other.parameters()).abs().sum() > 0
