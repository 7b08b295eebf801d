"""Checkpoints, each a folder that appears only once it is complete, written while training goes on.

``checkpoints/step-000000600/`` holds safetensors files written by torch.distributed.checkpoint, one for each process
that had something to write, and ``manifest.json`` with the configuration, the position of the run, and the size and
SHA-256 of every file. Other files in the folder are ignored. A folder gets its name when everything in it is on the
disk. There is no pickle: reading a checkpoint runs no code.

The tensors are called ``model.NAME`` (the state dictionary) and ``optimizer.PARAMETER.KEY`` (Adam's state). There are
no states of random generators, because a run seeds them anew for each part of each step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from fastvae.files import replacing
from fastvae.models import CVAE, VAE, Model, Regressor

FORMAT = 2
CHECKPOINTS = "checkpoints"
MODELS: dict[str, type[Model]] = {"vae": VAE, "cvae": CVAE, "regressor": Regressor}
_MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{9})")
_PART = ".part"

logger = logging.getLogger("fastvae")

# A run of one process is no mistake.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True)
class Position:
    """The position of a run between two steps."""

    step: int = 0
    """Number of steps done."""
    epoch: int = 0
    """Number of complete epochs."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The list ``epochs`` of ``metrics.json``."""
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums of loss, reconstruction and KL over the images done in the current epoch."""
    images: int = 0
    """Number of images done in the current epoch."""
    seconds: float = 0.0
    """Seconds spent on the current epoch."""
    rows: str | None = None
    """Digest of the rows (:func:`fastvae.training.inputs.digest_rows`); None if it is not known."""
    optimized: list[str] | None = None
    """Names of the parameters that have had a gradient and so have an optimiser state; None if they are not known."""
    data_given: bool = False
    """Whether a program gave the data, so that the configuration does not describe them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose manifest has been read."""

    folder: Path
    files: tuple[str, ...]
    """Names of the files that the manifest lists; other files in the folder are ignored."""
    model_config: dict[str, Any]
    """The arguments of the model's class (:func:`config_of`)."""
    train_config: dict[str, Any]
    """The fields of ``TrainConfig``."""
    position: Position
    sha256: str
    """SHA-256 of the manifest's content, and thereby of all files, which identifies the checkpoint."""
    init_from: dict[str, Any] | None = None
    """The checkpoint from which the run's initial weights came (:meth:`origin`); None if they came from the seed."""

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return self.position.epoch

    @property
    def history(self) -> list[dict[str, Any]]:
        """The list ``epochs`` of ``metrics.json``."""
        return self.position.history

    def origin(self) -> dict[str, Any]:
        """The record, in JSON's types, that a run keeps if it starts from these weights."""
        position = self.position
        return {
            "checkpoint": str(self.folder.absolute()),
            "sha256": self.sha256,
            "epoch": position.epoch,
            "step": position.step,
        }

    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the tensors."""
        held = _Reader(self.folder, self.files).read_metadata().state_dict_metadata
        return {name: about.size for name, about in held.items() if isinstance(about, TensorStorageMetadata)}

    def read(self, tensors: dict[str, Tensor]) -> None:
        """Fills tensors by their names, including shards of tensors that were saved whole or with other shards.

        Every process of a run must call this method.
        """
        self._read(tensors, alone=not dist.is_initialized())

    @property
    def given(self) -> str | None:
        """The class of the model if a program gave it, so that it cannot be built from the checkpoint; else None."""
        return self.model_config.get("given")

    def build_model(self, model: nn.Module | None = None) -> Any:
        """The model with its weights, on the CPU and in evaluation mode. This draws no random numbers.

        Args:
            model: a model that gets the weights, needed for a run whose model a program gave.

        Raises:
            ValueError: the checkpoint no longer exists or has been altered, a model is needed, or ``model`` does not
                fit.
            ImportError: the function that makes the model's networks cannot be imported.
        """
        if model is None:
            model = self.unread_model()
        else:
            self.refuse_other(model)
        # Of this process alone, whatever others do.
        self._read({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, alone=True)
        return model.eval()

    def _read(self, tensors: dict[str, Tensor], alone: bool) -> None:
        try:
            load(tensors, storage_reader=_Reader(self.folder, self.files), no_dist=alone)
        except CheckpointException as error:
            raise ValueError(f"{self.folder}: damaged checkpoint ({_reason(error)})") from error

    def refuse_other(self, model: nn.Module) -> None:
        """Raises ValueError if the weights of ``model`` have other names or shapes than the checkpoint's."""
        theirs = {name: shape for name, shape in self.shapes().items() if name.startswith("model.")}
        ours = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
        for name in [*ours, *theirs]:
            one, other = ours.get(name), theirs.get(name)
            if one != other:
                described = ["none" if shape is None else str(list(shape)) for shape in (one, other)]
                raise ValueError(
                    f"{self.folder}: its weights are not those of this {type(model).__name__}: "
                    f"{name.removeprefix('model.')} is {described[0]} here, {described[1]} there"
                )

    def unread_model(self, device: str | torch.device = "cpu") -> Model:
        """The model with memory for its weights, which are not read yet. This draws no random numbers.

        Args:
            device: device of the model; ``"meta"`` for names and shapes alone.

        Raises:
            ValueError: a program gave the model.
            ImportError: the function that makes the model's networks cannot be imported.
        """
        if self.given is not None:
            raise ValueError(
                f"{self.folder}: the run's model is a {self.given}, which a program gave: pass it, as in "
                "fastvae.load(run, model=model) or train(..., model=model)"
            )
        kind = MODELS[self.train_config.get("model", "vae")]
        return _unread(kind, self.model_config, device, self.train_config["seed"])


def config_of(model: nn.Module) -> dict[str, Any]:
    """The arguments that build a model again, in JSON's types; or ``{"given": CLASS}`` if only a program can do so."""
    kind = type(model)
    if kind is Regressor or (kind in MODELS.values() and getattr(model, "network", None) is not None):
        assert isinstance(model, Model)
        # Not one whose modules were replaced, wrapped or added to since it was made.
        if _parts(_unread(type(model), model.config, "meta")) == _parts(model):
            return model.config
    return {"given": f"{kind.__module__}.{kind.__qualname__}"}


def _unread(kind: type[Model], config: dict[str, Any], device: str | torch.device, seed: int = 0) -> Model:
    """The model of a configuration with room for its weights; draws no random numbers."""
    if ":" in str(config.get("network")):
        # Made as for the training, from the same seed: modules of the caller's own may compute or draw what no
        # checkpoint holds, such as buffers that are not persistent, and may need real tensors for it.
        with torch.device("cpu"), torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            return kind(**config).to(device)
    with torch.device("meta"):
        model = kind(**config)
    return model.to_empty(device=device)


def _parts(model: nn.Module) -> tuple[dict[str, str], dict[str, torch.Size]]:
    """The classes of a model's modules and the shapes of its weights, by name."""
    # By name too: a function may define its classes anew each time that it is called.
    modules = {name: f"{type(module).__module__}.{type(module).__qualname__}" for name, module in model.named_modules()}
    return modules, {name: tensor.shape for name, tensor in model.state_dict().items()}


class _Reader(HuggingFaceStorageReader):
    """Reads the files of a manifest, and not every safetensors file that lies beside them."""

    def __init__(self, folder: Path, files: tuple[str, ...]) -> None:
        super().__init__(str(folder))
        self.fs = _Listed(files)


class _Listed(FileSystem):
    def __init__(self, files: tuple[str, ...]) -> None:
        self.files = files

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [os.path.join(path, name) for name in self.files]


class _Writer(HuggingFaceStorageWriter):
    """Writes into a folder beside, which the first process seals and names when all have written."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.final, self.manifest = folder, manifest
        self.part = folder.with_name(f".{folder.name}{_PART}")
        super().__init__(str(self.part), save_distributed=True)

    def finish(self, metadata: Any, results: Any) -> None:
        super().finish(metadata, results)
        # What was written, whatever else has fallen into the folder.
        names = sorted({each.storage_data.relative_path for process in results for each in process})
        files = {name: _seal_of(self.part / name) for name in names}
        content = self.manifest | {"files": files}
        with replacing(self.part / _MANIFEST) as temporary:
            temporary.write_text(
                json.dumps(content | {"sha256": _digest(content)}, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
        _sync(self.part)
        if self.final.exists():  # of this step, and found damaged
            shutil.rmtree(self.final)
        os.replace(self.part, self.final)
        _sync(self.final.parent)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: folder of the run.
        keep: number of newest checkpoints that are kept.
        first: whether this is the first of the run's processes.
        group: process group for saving, separate from the one for training.
    """

    def __init__(
        self, folder: Path, keep: int = 2, *, first: bool = True, group: dist.ProcessGroup | None = None
    ) -> None:
        import safetensors  # noqa: F401 (which torch asks for at the first write only)

        self.folder = folder / CHECKPOINTS
        self._keep, self._first, self._group = keep, first, group
        self._pending: Future[Any] | None = None
        self._last = ""

    def save(
        self,
        tensors: dict[str, Tensor],
        model_config: dict[str, Any],
        train_config: dict[str, Any],
        position: Position,
        init_from: dict[str, Any] | None = None,
    ) -> None:
        """Copies the tensors and writes the copy in the background. Every process of the run must call this method.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        self.wait()
        manifest = {"format": FORMAT, "model": model_config, "train": train_config, "init_from": init_from}
        manifest |= asdict(position)
        writer = _Writer(self.folder / f"step-{position.step:09}", manifest)
        self._last = writer.final.name
        if self._first:
            self._remove_parts()  # which a killed process left
        if dist.is_initialized():
            dist.barrier(self._group)
        future = async_save(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=writer,
            process_group=self._group,
            no_dist=not dist.is_initialized(),
        )
        assert isinstance(future, Future)
        self._pending = future

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk.

        Raises:
            OSError: it could not be written; earlier checkpoints are unchanged.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except CheckpointException as error:
            self._remove_parts()  # which may be what fills the disk
            raise OSError(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}); earlier checkpoints are whole"
            ) from error
        if self._first:
            names = self.names()
            # Those of later steps were found damaged, or the run would have gone on from them.
            damaged = [name for name in names if name > self._last]
            good = names[: len(names) - len(damaged)]
            for name in (*damaged, *good[: -self._keep]):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _remove_parts(self) -> None:
        for part in self.folder.glob(f".step-*{_PART}"):
            shutil.rmtree(part, ignore_errors=True)

    def abandon(self) -> None:
        """Waits for the last checkpoint after an error, and only logs a warning if it cannot be written."""
        try:
            self.wait()
        except (OSError, RuntimeError) as error:
            logger.warning("%s", error)

    def names(self) -> list[str]:
        """Names of the existing checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())

    def newest(self) -> Checkpoint:
        """The newest complete checkpoint. Damaged ones are skipped with a warning in the log.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: every checkpoint is damaged; the message says how.
        """
        while True:
            names = self.names()
            if not names:
                raise FileNotFoundError(f"{self.folder}: no such checkpoint")
            for name in reversed(names):
                try:
                    return load_checkpoint(self.folder / name)
                except (ValueError, OSError) as error:
                    if self.names() != names:
                        break  # a training goes on there: it removes old ones, and has written newer ones
                    if name == names[0] or isinstance(error, OSError):
                        raise
                    logger.warning("%s; taking the checkpoint before it", error)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Finds a checkpoint, checks every byte of it and reads its manifest.

    Args:
        path: folder of the checkpoint, or of a run, whose newest complete checkpoint is then taken.

    Raises:
        ValueError: the checkpoint is truncated, altered, incomplete, of another program or of another version; the
            message names it.
        OSError: there is no checkpoint, or it cannot be read.
    """
    path = Path(path)
    if (path / CHECKPOINTS).is_dir():
        return Checkpoints(path).newest()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if not (path / _MANIFEST).is_file():
        raise ValueError(f"{path}: no checkpoint of fastvae: it holds no {_MANIFEST}")
    try:
        content = json.loads((path / _MANIFEST).read_bytes())
        digest = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({_MANIFEST}: {type(error).__name__}: {error})") from None
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: checkpoint of format {content.get('format')}, this fastvae reads format {FORMAT}")
    if digest != _digest(content):
        raise ValueError(f"{path}: damaged checkpoint ({_MANIFEST} was altered)")
    _check_files(path, content["files"])
    checkpoint = Checkpoint(
        path,
        tuple(content["files"]),
        content["model"],
        content["train"],
        # Checkpoints of earlier versions lack some.
        Position(**{name: content[name] for name in Position.__dataclass_fields__ if name in content}),
        digest,
        content.get("init_from"),
    )
    _check_tensors(checkpoint)
    return checkpoint


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, seal in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: damaged checkpoint ({name} is missing)")
        size = (folder / name).stat().st_size
        if size != seal["bytes"]:
            raise ValueError(f"{folder}: damaged checkpoint ({name} has {size} bytes, expected {seal['bytes']})")
        if _seal_of(folder / name) != seal:
            raise ValueError(f"{folder}: damaged checkpoint ({name} was altered: its SHA-256 differs)")


def _check_tensors(checkpoint: Checkpoint) -> None:
    """That they fit the model is found here, where the folder can be named, and not half-way into a run."""
    if checkpoint.given is not None:
        return
    try:
        model = checkpoint.unread_model("meta")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{checkpoint.folder}: checkpoint of another version of fastvae ({reason})") from error
    if ":" in str(checkpoint.model_config.get("network")):
        checkpoint.refuse_other(model)  # whose code may have changed
    expected = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    held = checkpoint.shapes()
    if {name: shape for name, shape in held.items() if name.startswith("model.")} != expected:
        raise ValueError(f"{checkpoint.folder}: damaged checkpoint (its tensors do not fit the model)")


def _seal_of(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _sync(folder: Path) -> None:
    """So that a name survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: CheckpointException) -> str:
    """What went wrong, without the traces of torch's own code."""
    reasons = {str(failure[0]).strip() for failure in error.failures.values()}
    return "; ".join(sorted(reasons)).replace("\n", " ")
