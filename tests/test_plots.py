"""Pictures: drawn to files whatever the environment says of windows, and never at a run's cost."""

import os
import sys
from pathlib import Path

import pytest
import torch
from runs import SMALL, TRAIN, environment, run

import fastvae.plots
from fastvae import experiments
from fastvae.cli import main
from fastvae.training import load_checkpoint, train
from fastvae.training.pictures import unit_range

ROOT = Path(__file__).parents[1]
# What any notebook sets for its `!command`s, a backend that needs a screen, and nonsense.
BACKENDS = ["module://matplotlib_inline.backend_inline", "tkagg", "nonsense"]
DRAW = """
import json, os, pathlib, sys, torch
from benchmarks import report, time_to_quality
from fastvae.experiments import run
from fastvae.plots import save_samples
save_samples(torch.rand(4, 8, 8), 2, "samples.png")
run("ring", ".", quick=True)
curve = [{"seconds": 1.0, "test_elbo": -120.0}, {"seconds": 2.0, "test_elbo": -110.0}]
time_to_quality.plot({"before": curve, "plain": curve, "after": curve, "target": -115.0}, "quality.png")
report.plot(json.loads((pathlib.Path(sys.argv[1]) / "benchmarks/results/ops.json").read_text()), "ops.png")
print(os.environ["MPLBACKEND"], sys.modules.get("matplotlib.pyplot"))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_are_drawn_whatever_backend_is_asked_for(tmp_path, backend):
    variables = environment(MPLBACKEND=backend, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    drawn = run([sys.executable, "-c", DRAW, ROOT], env=variables, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    # What others do with it is theirs.
    assert drawn.stdout == f"{backend} None\n"
    assert drawn.stderr == ""
    for name in ("samples", "ring", "quality", "ops"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_training_from_a_notebook_draws_its_pictures(tmp_path):
    command = [sys.executable, "-m", "fastvae", *TRAIN, "--epochs", 1, "--out", tmp_path / "run"]
    process = run(command, env=environment(MPLBACKEND=BACKENDS[0]))
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    for name in ("samples.png", "reconstructions.png", "curves.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")


def test_backend_of_a_user_is_in_force_afterwards():
    """Of a notebook that draws with pyplot after it has trained."""
    script = "import fastvae.plots, matplotlib; print(matplotlib.rcParams['backend'])"
    assert run([sys.executable, "-c", script], env=environment(MPLBACKEND="svg")).stdout == "svg\n"


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float32])
def test_images_of_other_ranges_are_shown_between_black_and_white(dtype):
    originals = torch.tensor([[[-30000, 0], [15000, 30000]]]).to(dtype)
    expected = torch.tensor([[[0, 0.5], [0.75, 1]]])
    torch.testing.assert_close(unit_range(originals, originals), expected)
    torch.testing.assert_close(unit_range(originals.float(), originals), expected)
    for shown in (originals > 0, (originals > 0).byte() * 255):
        assert unit_range(shown, shown) is shown


def spoilt(monkeypatch, name):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no ink\nleft")

    monkeypatch.setattr(fastvae.plots, name, fail)


def test_picture_that_cannot_be_drawn_costs_no_run(tmp_path, monkeypatch, caplog):
    spoilt(monkeypatch, "save_reconstructions")
    result = train(SMALL, tmp_path)
    assert [entry["epoch"] for entry in result.history] == [1, 2]
    assert load_checkpoint(tmp_path).epoch == 2
    (record,) = [record for record in caplog.records if record.name == "fastvae"]
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{tmp_path / 'reconstructions.png'} could not be drawn (ZeroDivisionError: no ink left); the run is complete"
    )
    assert {path.name for path in tmp_path.glob("*.png")} == {"samples.png", "curves.png"}
    monkeypatch.undo()
    train(SMALL, tmp_path, resume=True)
    assert (tmp_path / "reconstructions.png").is_file()


def test_picture_that_cannot_be_drawn_is_a_warning_of_the_command(tmp_path, monkeypatch, capsys):
    """Its status is that of the training: what a script does next needs the weights, not the pictures."""
    for name in ("save_samples", "save_reconstructions", "save_curves"):
        spoilt(monkeypatch, name)
    assert main([*TRAIN, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].endswith(f"after epoch 1, in {tmp_path / 'run'}")
    lines = captured.err.splitlines()
    assert [line.startswith(f"fastvae: warning: {tmp_path / 'run'}") for line in lines] == [True] * 3


def test_figures_of_an_experiment_are_written_before_its_picture(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no ink left")

    monkeypatch.setattr(fastvae.plots.Figure, "savefig", fail)
    with pytest.raises(OSError, match="no ink left"):
        experiments.run("ring", tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ring.json"]
