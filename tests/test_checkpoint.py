"""Checkpoints: what comes back, what is no checkpoint, and what is damaged."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch
from runs import assert_same_run, contents, small, tensors
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from fastvae.files import replacing
from fastvae.training import checkpoint, load_checkpoint, train
from fastvae.training.checkpoint import Checkpoints, Position, _digest

CONFIG = small(epochs=1)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of one epoch, which tests only read: two checkpoints."""
    out = tmp_path_factory.mktemp("runs")
    train(CONFIG, out)
    return out


@pytest.fixture
def copied(run_folder, tmp_path):
    """The newest checkpoint, to be damaged."""
    return shutil.copytree(load_checkpoint(run_folder).folder, tmp_path / "copy")


def shard_of(checkpoint):
    (path,) = checkpoint.glob("*.safetensors")
    return path


def refused(folder, message):
    with pytest.raises(ValueError, match=re.escape(str(folder)) + ": " + message):
        load_checkpoint(folder)


def test_checkpoint_survives_the_round_trip(tmp_path, run_folder):
    original = load_checkpoint(run_folder)
    values = tensors(original)
    assert {name.rpartition(".")[2] for name in values if name.startswith("optimizer.encoder.0.weight.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert not any(value.isnan().any() for value in values.values())
    saved = Checkpoints(tmp_path)
    saved.save(values, original.model_config, original.train_config, original.position)
    saved.wait()
    copy = load_checkpoint(tmp_path)
    for field in ("model_config", "train_config", "position"):
        assert getattr(copy, field) == getattr(original, field)
    again = tensors(copy)
    assert again.keys() == values.keys()
    assert all(torch.equal(value, again[name]) for name, value in values.items())


def test_what_is_saved_is_what_the_tensors_were(tmp_path, run_folder):
    """Training goes on while they are written."""
    original = load_checkpoint(run_folder)
    values = tensors(original)
    expected = {name: value.clone() for name, value in values.items()}
    saved = Checkpoints(tmp_path)
    saved.save(values, original.model_config, original.train_config, original.position)
    for value in values.values():
        value.fill_(7)
    saved.wait()
    assert all(torch.equal(value, expected[name]) for name, value in tensors(load_checkpoint(tmp_path)).items())


def test_the_newest_are_kept(tmp_path, run_folder):
    original = load_checkpoint(run_folder)
    saved = Checkpoints(tmp_path, keep=3)
    for step in (5, 10, 100, 1000, 20_000):
        saved.save(tensors(original), original.model_config, original.train_config, Position(step=step))
    saved.wait()
    assert saved.names() == ["step-000000100", "step-000001000", "step-000020000"]
    assert {path.name for path in saved.folder.iterdir()} == set(saved.names())
    assert load_checkpoint(tmp_path).position.step == 20_000


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_shard_is_refused(copied, kept):
    shard = shard_of(copied)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(copied, rf"damaged checkpoint \({shard.name} has \d+ bytes, expected {len(whole)}\)")


@pytest.mark.parametrize("where", [0, 9, 0.5, -1])
def test_flipped_bit_is_refused(copied, where):
    shard = shard_of(copied)
    content = bytearray(shard.read_bytes())
    content[int(where * len(content)) if isinstance(where, float) else where] ^= 0x10
    shard.write_bytes(content)
    refused(copied, rf"damaged checkpoint \({shard.name} was altered: its SHA-256 differs\)")


def test_missing_shard_is_refused(copied):
    name = shard_of(copied).name
    shard_of(copied).unlink()
    refused(copied, rf"damaged checkpoint \({name} is missing\)")


# What file systems, editors and synchronisers leave in any folder, and what would be read if it were the checkpoint's.
STRAYS = [".DS_Store", "._manifest.json", "Thumbs.db", ".nfs000000000001", ".metadata", ".ipynb_checkpoints/x.json"]


def litter(folder, *more):
    """Strays in a folder, among them the shard of another run under two names."""
    for name in (*STRAYS, *more):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"0")


def test_files_that_the_manifest_does_not_name_are_not_read(copied, run_folder):
    other = shard_of(load_checkpoint(run_folder / "checkpoints" / "step-000000000").folder).read_bytes()
    shard = shard_of(copied)
    litter(copied, f"._{shard.name}", "shard-00003-model-00001-of-00001.safetensors")
    (copied / "shard-00000-model-00001-of-00001.safetensors").write_bytes(other)
    (copied / "shard-00002-model-00001-of-00001.safetensors").write_bytes(other)
    expected, held = load_checkpoint(run_folder), load_checkpoint(copied)
    assert held.shapes() == expected.shapes()
    assert all(torch.equal(value, tensors(expected)[name]) for name, value in tensors(held).items())
    model = held.build_model().state_dict()
    assert all(torch.equal(value, model[name]) for name, value in expected.build_model().state_dict().items())


def test_run_goes_on_among_strays(run_folder, tmp_path, caplog):
    out = shutil.copytree(run_folder, tmp_path / "run")
    for folder in (out, out / "checkpoints", *(out / "checkpoints").glob("step-*"), out / "tensorboard"):
        litter(folder)
    (out / "checkpoints" / "step-999999999").write_text("a file")
    (out / "checkpoints" / "step-000000015 (copy)").mkdir()
    train(small(epochs=2), out, resume=True)
    assert [record.message for record in caplog.records if record.name == "fastvae"] == []
    train(small(epochs=2), tmp_path / "alone")
    assert_same_run(tmp_path / "alone", out)
    assert (out / "checkpoints" / "step-999999999").read_text() == "a file"
    with pytest.raises(FileExistsError, match=r"holds checkpoints of an earlier run"):
        train(small(epochs=2), out)


def test_strays_of_a_folder_keep_no_run_from_starting(tmp_path):
    litter(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    litter(tmp_path / "checkpoints")
    train(CONFIG, tmp_path)
    assert load_checkpoint(tmp_path).epoch == 1


def test_what_falls_into_a_checkpoint_while_it_is_written_is_no_part_of_it(tmp_path, run_folder, monkeypatch):
    original, finish = load_checkpoint(run_folder), HuggingFaceStorageWriter.finish

    def late(self, metadata, results):
        finish(self, metadata, results)
        litter(self.part, "._shard-00001-model-00001-of-00001.safetensors")

    monkeypatch.setattr(HuggingFaceStorageWriter, "finish", late)
    saved = Checkpoints(tmp_path)
    saved.save(tensors(original), original.model_config, original.train_config, original.position)
    saved.wait()
    folder = load_checkpoint(tmp_path).folder
    for name in STRAYS[:-1]:
        (folder / name).unlink()
    assert all(torch.equal(value, tensors(original)[name]) for name, value in tensors(load_checkpoint(folder)).items())


def test_altered_manifest_is_refused(copied):
    manifest = copied / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    refused(copied, r"damaged checkpoint \(manifest.json: JSONDecodeError")
    manifest.write_bytes(whole.replace(b'"epoch": 1', b'"epoch": 2', 1))
    refused(copied, r"damaged checkpoint \(manifest.json was altered\)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "checkpoint of format 1, this fastvae reads format 2"),
        ({"model": {"shape": 3}}, "checkpoint of another version of fastvae"),
        ({"model": {"data_shape": [8, 8]}}, r"damaged checkpoint \(its tensors do not fit the model\)"),
    ],
    ids=str,
)
def test_checkpoint_of_another_model_is_refused(copied, changes, message):
    content = json.loads((copied / "manifest.json").read_text()) | changes
    del content["sha256"]
    (copied / "manifest.json").write_text(json.dumps(content | {"sha256": _digest(content)}))
    refused(copied, message)


def test_foreign_folder_and_file_are_refused(tmp_path):
    refused(tmp_path, "no checkpoint of fastvae: it holds no manifest.json")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "no checkpoint of fastvae")
    (tmp_path / "manifest.json").write_text("[]")
    refused(tmp_path, r"damaged checkpoint \(manifest.json")


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"checkpoints: no such checkpoint"):
        load_checkpoint(tmp_path)


def test_damaged_checkpoint_gives_way_to_the_one_before_it(run_folder, tmp_path, caplog):
    out = shutil.copytree(run_folder, tmp_path / "run")
    newest = load_checkpoint(out).folder
    shard_of(newest).unlink()
    assert load_checkpoint(out).position.step == 0
    (record,) = caplog.records
    assert re.fullmatch(r".*step-000000015: damaged checkpoint \(.* is missing\); .* before it", record.getMessage())
    # Its place is taken by the whole one of the run that goes on.
    train(CONFIG, out, resume=True)
    for name, value in tensors(load_checkpoint(out)).items():
        assert torch.equal(value, tensors(load_checkpoint(run_folder))[name])
    for folder in (out / "checkpoints").iterdir():
        shard_of(folder).unlink()
    with pytest.raises(ValueError, match=r"step-000000000: damaged checkpoint"):
        load_checkpoint(out)


def test_newest_of_a_training_that_goes_on_is_found(run_folder, tmp_path, monkeypatch, caplog):
    """Which has removed the one that was being read."""
    out = shutil.copytree(run_folder, tmp_path / "run")
    check, moved = checkpoint._check_files, []

    def late(folder, files):
        if not moved:
            moved.append(folder.rename(folder.with_name("step-000000030")))
        check(folder, files)

    monkeypatch.setattr(checkpoint, "_check_files", late)
    assert load_checkpoint(out).folder == moved[0]
    assert [record for record in caplog.records if record.name == "fastvae"] == []


def test_checkpoint_without_its_optimiser_is_refused_by_resume(tmp_path, run_folder):
    original = load_checkpoint(run_folder)
    saved = Checkpoints(tmp_path)
    weights = {name: value for name, value in tensors(original).items() if name.startswith("model.")}
    saved.save(weights, original.model_config, original.train_config, original.position)
    saved.wait()
    with pytest.raises(ValueError, match=r"damaged checkpoint \(its optimiser state does not fit the model\)"):
        train(CONFIG, tmp_path, resume=True)


def test_damaged_checkpoints_do_not_crowd_out_whole_ones(run_folder, tmp_path):
    original = load_checkpoint(run_folder)
    for keep, steps in ((5, (10, 20, 30)), (2, (15,))):
        saved = Checkpoints(tmp_path, keep=keep)
        for step in steps:
            saved.save(tensors(original), original.model_config, original.train_config, Position(step=step))
        saved.wait()
        if keep == 5:
            for name in ("step-000000020", "step-000000030"):
                shard_of(saved.folder / name).unlink()
            (saved.folder / ".step-000000033.part").mkdir()  # of a process that was killed
    assert {path.name for path in saved.folder.iterdir()} == {"step-000000010", "step-000000015"}


def test_checkpoint_that_is_gone_is_named(run_folder, tmp_path):
    loaded = load_checkpoint(shutil.copytree(run_folder, tmp_path / "run"))
    shard_of(loaded.folder).unlink()
    with pytest.raises(ValueError, match="step-000000015: damaged checkpoint"):
        loaded.build_model()


class Malice:
    def __reduce__(self):
        return os.abort, ()


def test_nothing_is_unpickled(run_folder, copied, monkeypatch):
    def load(*_, **__):
        pytest.fail("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, load)
    monkeypatch.setattr(torch, "load", load)
    assert load_checkpoint(run_folder).build_model().latent_dim == 4
    shard_of(copied).write_bytes(pickle.dumps(Malice()))
    refused(copied, "damaged checkpoint")


def test_failed_write_leaves_the_old_checkpoint(tmp_path, run_folder, monkeypatch):
    original = load_checkpoint(run_folder)
    saved = Checkpoints(tmp_path)
    saved.save(tensors(original), original.model_config, original.train_config, original.position)
    saved.wait()
    before = contents(tmp_path)

    def full_disk(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full_disk)
        saved.save(tensors(original), original.model_config, original.train_config, Position(step=99))
        with pytest.raises(OSError, match=r"could not be written .*no space left.*; earlier checkpoints are whole"):
            saved.wait()
    assert contents(tmp_path) == before
    assert [path.name for path in saved.folder.iterdir()] == saved.names()


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


def test_checkpoint_builds_its_model_without_drawing_noise(run_folder):
    loaded = load_checkpoint(run_folder)
    before = torch.get_rng_state()
    one, other = loaded.build_model(), loaded.build_model()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(other.parameters()).abs().sum() > 0
