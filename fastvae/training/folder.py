"""The folder of a run: the names of its files, and whether a run may start or resume there."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from torch import nn

from fastvae.models import Model
from fastvae.training.checkpoint import CHECKPOINTS, Checkpoint, Checkpoints, config_of, load_checkpoint
from fastvae.training.config import PATHS, TrainConfig

METRICS, TENSORBOARD = "metrics.json", "tensorboard"
PICTURES = ("samples.png", "reconstructions.png", "curves.png")

# What may differ between a run and its continuation: it does not change the numbers.
_FREE_ON_RESUME = ("epochs", *PATHS)


def refuse_run(out_dir: Path) -> None:
    """Raises FileExistsError if a folder holds a run, unless that run saved no step."""
    if _stopped_before_its_first_step(out_dir):
        return
    checkpoints = out_dir / CHECKPOINTS
    unfinished = checkpoints.is_dir() and not holds_run(out_dir)  # its first checkpoint was never whole
    for name in (*(() if unfinished else (CHECKPOINTS,)), METRICS, TENSORBOARD, *PICTURES):
        if (out_dir / name).exists():
            resumed = "--resume it or " if holds_run(out_dir) else ""
            raise FileExistsError(f"{out_dir} holds {name} of an earlier run: {resumed}name another folder with --out")


def _stopped_before_its_first_step(out_dir: Path) -> bool:
    try:
        saved = Checkpoints(out_dir)
        return len(saved.names()) == 1 and saved.newest().position.step == 0
    except (OSError, ValueError):
        return False


def holds_run(out_dir: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return bool(Checkpoints(Path(out_dir)).names())


def saved_config(path: str | os.PathLike[str]) -> TrainConfig:
    """The configuration of a run.

    Args:
        path: folder of the run, or of one of its checkpoints.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: every checkpoint is damaged, or of another version of fastvae.
    """
    return TrainConfig.from_checkpoint(load_checkpoint(path))


def checkpoint_to_resume(config: TrainConfig, out_dir: Path) -> Checkpoint | None:
    """The newest complete checkpoint of the run in a folder; None if there is no run yet.

    Raises:
        FileExistsError: the folder holds files of a run, but no checkpoint.
        ValueError: every checkpoint is damaged, or the run has another configuration than ``config``.
    """
    if not holds_run(out_dir):
        refuse_run(out_dir)
        return None
    checkpoint = load_checkpoint(out_dir)
    saved = TrainConfig.from_checkpoint(checkpoint)
    for field in dataclasses.fields(TrainConfig):
        ours, theirs = getattr(config, field.name), getattr(saved, field.name)
        if field.name == "epochs" and ours != theirs and config.decay:
            raise ValueError(f"cannot resume with epochs {ours}: the learning rate decays over the run's own {theirs}")
        if ours != theirs and field.name not in _FREE_ON_RESUME:
            raise ValueError(f"cannot resume with {field.name} {ours}: the run in {out_dir} has {theirs}")
    begun = checkpoint.epoch + (checkpoint.position.images > 0)
    if config.epochs < begun:
        raise ValueError(
            f"cannot resume with epochs {config.epochs}: the run in {out_dir} has already begun epoch {begun}"
        )
    return checkpoint


def refuse_other_model(config: TrainConfig, model: nn.Module, source: Checkpoint) -> None:
    """Raises ValueError if the weights of a checkpoint do not fit the model of ``config``."""
    if source.given is not None or "given" in config_of(model):
        source.refuse_other(model)
        return
    assert isinstance(model, Model)
    saved = TrainConfig.from_checkpoint(source)
    theirs = {"model": saved.model, "condition": saved.condition} | source.model_config
    ours = {"model": config.model, "condition": config.condition} | json.loads(json.dumps(model.config))
    if not config.learn_sigma:
        ours.pop("sigma")  # no weight
    for name, value in ours.items():
        if theirs[name] != value:
            raise ValueError(f"cannot start from {source.folder}: its {name} is {theirs[name]}, not {value}")
