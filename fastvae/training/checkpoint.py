"""One file per run: weights, optimiser and random states in safetensors, the rest as JSON in its header.

No pickle: reading a checkpoint runs no code. The tensors are called ``model.NAME`` (the state dictionary),
``optimizer.PARAMETER.KEY`` (Adam's state) and ``random.NAME`` (states of generators).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastvae.files import replacing
from fastvae.models import CVAE, VAE, Model, Regressor

FORMAT = 1
MODELS: dict[str, type[Model]] = {"vae": VAE, "cvae": CVAE, "regressor": Regressor}
_HEADER = "fastvae"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch."""

    model_config: dict[str, Any]
    """The arguments of the model's class."""
    train_config: dict[str, Any]
    """The fields of ``TrainConfig``."""
    epoch: int
    """Epochs done."""
    history: list[dict[str, Any]]
    """The list ``epochs`` of ``metrics.json``."""
    model: dict[str, Tensor]
    """The model's state dictionary."""
    optimizer: dict[str, dict[str, Tensor]]
    """For each parameter, the optimiser's tensors by key."""
    random: dict[str, Tensor]
    """States of random generators, by name."""

    def build_model(self) -> Model:
        """The model with its weights, on the CPU. Draws no random numbers."""
        with torch.device("meta"):
            model = self._empty_model()
        model.to_empty(device="cpu").load_state_dict(self.model)
        return model

    def _empty_model(self) -> Model:
        return MODELS[self.train_config.get("model", "vae")](**self.model_config)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint, in place of the one that was there, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    for parameter, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{parameter}.{key}": tensor for key, tensor in state.items()}
    tensors |= {f"random.{name}": state for name, state in checkpoint.random.items()}
    header = {
        "format": FORMAT,
        "model": checkpoint.model_config,
        "train": checkpoint.train_config,
        "epoch": checkpoint.epoch,
        "history": checkpoint.history,
    }
    with replacing(path) as temporary:
        # Through bytes: safetensors' own writer makes files that nobody but their owner can read.
        temporary.write_bytes(
            save(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                metadata={_HEADER: json.dumps(header, allow_nan=False)},
            )
        )


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file, or the folder of a run that holds ``checkpoint.safetensors``.

    Raises:
        ValueError: the file is truncated, of another program or of another version; the message names it.
        OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            if header is None:
                raise ValueError(f"{path}: no checkpoint of fastvae")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or no checkpoint of fastvae ({error})") from None
    try:
        return _assemble(json.loads(header), tensors)
    except _FormatError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({type(error).__name__}: {error})") from error


class _FormatError(Exception):
    pass


def _assemble(header: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    if header["format"] != FORMAT:
        raise _FormatError(f"checkpoint of format {header['format']}, this fastvae reads format {FORMAT}")
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        parameter, _, key = name.rpartition(".")
        optimizer.setdefault(parameter, {})[key] = tensor
    checkpoint = Checkpoint(
        model_config=header["model"],
        train_config=header["train"],
        epoch=header["epoch"],
        history=header["history"],
        model=groups["model"],
        optimizer=optimizer,
        random=groups["random"],
    )
    # What does not fit together is found here, where the file can be named, and not half-way into a run.
    with torch.device("meta"):
        checkpoint._empty_model().load_state_dict(checkpoint.model, assign=True)
    # Adam has no state before its first step.
    if checkpoint.epoch > 0 and checkpoint.optimizer.keys() != checkpoint.model.keys():
        raise ValueError("the optimiser's state is not that of the model's parameters")
    if len(checkpoint.history) != checkpoint.epoch or not {"torch", "shuffle"} <= checkpoint.random.keys():
        raise ValueError("the history or the random states are incomplete")
    return checkpoint
