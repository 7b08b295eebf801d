"""Small runs, and whether two of them are the same."""

import dataclasses
import os
import subprocess
import sys

import torch

from fastvae.training import TrainConfig, load_checkpoint

# Of grey pixels, as fastvae.data.load gives the digits.
SMALL = TrainConfig(hidden=(32,), latent_dim=4, epochs=2, likelihood="bernoulli")
FILES = {
    "checkpoints",
    "config.toml",
    "metrics.json",
    "tensorboard",
    "samples.png",
    "reconstructions.png",
    "curves.png",
}
# The same from the command line.
TRAIN = ["train", "--hidden", "32", "--latent-dim", "4", "--likelihood", "bernoulli"]


def torchrun(processes):
    """What to put before the arguments of the command line."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "fastvae"]


TORCHRUN = torchrun(2)


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(checkpoint):
    """Everything that a checkpoint holds, by name."""
    # uint8 is no checkpoint's: what is not read shows.
    values = {name: torch.full(shape, torch.nan) for name, shape in checkpoint.shapes().items()}
    checkpoint.read(values)
    return values


def without_times(history):
    return [{k: v for k, v in entry.items() if k in ("epoch", "train", "test")} for entry in history]


def assert_same_run(one, other, tolerance=None):
    """Bitwise, or to a largest difference: weights, the optimiser; and always the position and, if bitwise, metrics.

    The difference is relative to numbers above 1, whose roundings are as much larger.
    """
    first, second = load_checkpoint(one), load_checkpoint(other)
    assert first.position.step == second.position.step
    assert first.epoch == second.epoch
    if tolerance is None:
        assert without_times(first.history) == without_times(second.history)
        assert first.position.sums == second.position.sums
    ours, theirs = tensors(first), tensors(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tolerance is None:
            assert torch.equal(tensor, theirs[name]), name
        else:
            torch.testing.assert_close(
                tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def environment(**changes):
    """Of a process that shares two cores with others, and compiles anew, as conftest.py says."""
    fixed = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    return os.environ | fixed | changes


def start(command, **options):
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), **options
    )


def run(command, **options):
    options = {"env": environment(), "timeout": 300} | options
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
