"""A training run: a folder with checkpoints, metrics, TensorBoard logs and pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

import fastvae
from fastvae.data import Dataset, join_column, load, split_column
from fastvae.evaluation import ELBOReport, elbo_report, elbo_sums, report_of_sums
from fastvae.files import replacing
from fastvae.models import CVAE, VAE, Model
from fastvae.objectives import Schedule
from fastvae.ops import ELBO, binarize
from fastvae.training.checkpoint import (
    CHECKPOINTS,
    MODELS,
    Checkpoint,
    Checkpoints,
    Position,
    load_checkpoint,
)
from fastvae.training.config import TrainConfig
from fastvae.training.distributed import (
    StoppedError,
    TrainingError,
    World,
    gathered,
    is_of_compiler,
    local_part,
    more_to_come,
    share_out,
    until_terminated,
    world,
)
from fastvae.training.graph import CapturedStep
from fastvae.training.solver import learning_rate_schedule, make_optimizer, parameter_names, scaled_learning_rate

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS, TENSORBOARD = "metrics.json", "tensorboard"
PICTURES = ("samples.png", "reconstructions.png", "curves.png")

# Reading the loss makes the host wait for the device, so it is read for the display, not for every batch.
_SECONDS_BETWEEN_REPORTS = 0.2
# Processes agree on whether to stop once in so many steps: to ask at each would make each wait for the slowest.
_STEPS_BETWEEN_AGREEMENTS = 10
_GRID_COLUMNS = 10
_GRID_RECONSTRUCTIONS = 50

# What may differ between a run and its continuation: it does not change the numbers.
_FREE_ON_RESUME = ("epochs", "data_dir")


class Progress(NamedTuple):
    """How far a run is, several times a second and at the end of each epoch."""

    epoch: int
    """From 1."""
    epochs: int
    images: int
    """Done in this epoch, by all processes."""
    images_per_epoch: int
    loss: float
    """What is minimised; this and the ELBO's parts in nats per image, the mean over the epoch so far (of this process'
    own images, until the epoch is over)."""
    reconstruction: float
    kl: float
    samples_per_second: float
    test: ELBOReport | None
    """At the end of an epoch: the test set."""


class TrainResult(NamedTuple):
    """A finished run."""

    model: Model
    history: list[dict[str, Any]]
    """One entry for each epoch, as in ``metrics.json``. ``train`` is the mean over the epoch's steps, while the
    weights moved; ``test`` is measured after them."""


def train(
    config: TrainConfig,
    out_dir: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    device: str | torch.device | None = None,
    fsdp: bool = False,
    cuda_graph: bool = False,
    keep: int = 2,
    save_steps: int | None = None,
) -> TrainResult:
    """Train a VAE, or go on with a run that stopped, in one process or in those that torchrun starts.

    The folder gets ``checkpoints/`` (one before the first step and after each epoch, written in the background, whole
    or not at all), ``metrics.json``, ``tensorboard/``, and at the end ``samples.png``, ``reconstructions.png`` and
    ``curves.png``. A run that was stopped in any way and resumed ends with the weights and metrics (but for times) of
    one that never stopped: bitwise in one process on the same machine with as many threads, else up to rounding.
    Seeds torch's own random generator.

    Processes share out the ``config.accumulate`` parts of each batch, or as many parts as there are processes where
    that is more. Noise belongs to the part, so that the weights are, but for rounding, the same for any number of
    processes up to ``config.accumulate``. They need a folder that all of them see.

    Args:
        config: on resuming it must be the run's own, but that ``data_dir`` may move and ``epochs`` grow, the latter
            unless the learning rate decays over them.
        out_dir: made where it is missing; must hold a run if ``resume``, and must not otherwise.
        resume: whether to go on from the newest checkpoint that is whole.
        progress: called with a ``Progress`` several times a second, in the first process.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; by default the GPU, each process of a machine its own, where
            there is one and this build has kernels for it.
        fsdp: whether processes share out the weights and the optimiser's state as well (FSDP2), layer by layer, for
            models that do not fit one device. The model that is returned is sharded; the checkpoint has it whole.
        cuda_graph: whether a GPU repeats the step by itself (a CUDA graph), for networks and batches so small that the
            host cannot keep up with it.
        keep: checkpoints that are kept, the newest.
        save_steps: steps between further checkpoints within an epoch.

    Raises:
        ValueError: ``config`` contradicts the run's own; a file of the data set or all checkpoints are bad; a device
            that is not there; ``fsdp`` with ``config.compile`` or ``config.learn_sigma``, or without several processes;
            ``cuda_graph`` without a GPU, with several processes or with parts of batches.
        FileExistsError: ``out_dir`` holds a run already.
        FileNotFoundError: nothing to resume, or no data set.
        OSError: a file cannot be read or written.
        TrainingError: the loss is no longer finite, torch.compile failed, or another process was lost.
        StoppedError: SIGTERM came; the run is saved where it was.
    """
    # Loaded here because a `TrainConfig` needs neither, and both before hours of training and not after.
    from torch.utils.tensorboard import SummaryWriter

    import fastvae.plots  # noqa: F401

    for name, value in (("keep", keep), ("save_steps", save_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    out_dir = Path(out_dir)
    with world(device) as processes, until_terminated() as terminated:
        if fsdp and (config.compile or config.learn_sigma or processes.size == 1):
            raise ValueError("fsdp shares a model out: it needs several processes, no compile and no learn_sigma")
        if cuda_graph and (processes.device.type != "cuda" or processes.size > 1 or config.accumulate > 1):
            raise ValueError("cuda_graph captures the step of one process on a GPU, with batches in one part")
        checkpoint = processes.of_first(lambda: _checkpoint_to_resume(config, out_dir) if resume else _refuse(out_dir))
        if processes.size > 1:
            # One process downloads; the data themselves are not sent.
            processes.of_first(lambda: load(config.dataset, config.data_dir).name)
        dataset = load(config.dataset, config.data_dir)
        processes.of_first(lambda: out_dir.mkdir(parents=True, exist_ok=True))

        saved = Checkpoints(out_dir, keep, first=processes.rank == 0, group=processes.saving)
        run = _Run(
            config,
            dataset,
            out_dir,
            checkpoint,
            processes,
            saved,
            terminated,
            fsdp=fsdp,
            cuda_graph=cuda_graph,
            save_steps=save_steps,
        )
        if checkpoint is None:
            # So that there is something to resume from before the first epoch is over, and before anything else is
            # there that would be taken for a run.
            run.save_checkpoint()
            saved.wait()
        # On resuming too: the run may have been killed between its last checkpoint and its metrics.
        run.save_metrics()
        writer = None
        if processes.rank == 0:
            writer = SummaryWriter(str(out_dir / TENSORBOARD), purge_step=run.epoch + 1)
        else:
            progress = None
        try:
            while run.epoch < config.epochs:
                run.train_epoch(writer, progress)
            saved.wait()
        finally:
            if writer is not None:
                writer.close()
            saved.abandon()
        run.save_pictures()
        return TrainResult(run.model, run.history)


def _refuse(out_dir: Path) -> None:
    """Refuses a folder that holds a run, but for one that has nothing to lose."""
    if _stopped_before_its_first_step(out_dir):
        return
    checkpoints = out_dir / CHECKPOINTS
    unfinished = checkpoints.is_dir() and not holds_run(out_dir)  # its first checkpoint was never whole
    for name in (*(() if unfinished else (CHECKPOINTS,)), METRICS, TENSORBOARD, *PICTURES):
        if (out_dir / name).exists():
            raise FileExistsError(
                f"{out_dir} holds {name} of an earlier run: --resume it or name another folder with --out"
            )


def _stopped_before_its_first_step(out_dir: Path) -> bool:
    try:
        saved = Checkpoints(out_dir)
        return len(saved.names()) == 1 and saved.newest().position.step == 0
    except (OSError, ValueError):
        return False


def holds_run(out_dir: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return bool(Checkpoints(Path(out_dir)).names())


def saved_config(out_dir: str | os.PathLike[str]) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: all of its checkpoints are damaged, or of another version.
    """
    return TrainConfig.from_checkpoint(_load_run(Path(out_dir)))


def _load_run(out_dir: Path) -> Checkpoint:
    if not holds_run(out_dir):
        raise FileNotFoundError(f"nothing to resume: {out_dir} holds no {CHECKPOINTS}")
    return load_checkpoint(out_dir)


def _checkpoint_to_resume(config: TrainConfig, out_dir: Path) -> Checkpoint:
    checkpoint = _load_run(out_dir)
    saved = TrainConfig.from_checkpoint(checkpoint)
    for field in dataclasses.fields(TrainConfig):
        ours, theirs = getattr(config, field.name), getattr(saved, field.name)
        if field.name == "epochs" and ours != theirs and config.decay:
            raise ValueError(f"cannot resume with epochs {ours}: the learning rate decays over the run's own {theirs}")
        if ours != theirs and field.name not in _FREE_ON_RESUME:
            raise ValueError(f"cannot resume with {field.name} {ours}: the run in {out_dir} has {theirs}")
    begun = checkpoint.epoch + (checkpoint.position.images > 0)
    if config.epochs < begun:
        raise ValueError(f"cannot resume with epochs {config.epochs}: the run in {out_dir} has begun {begun}")
    return checkpoint


def _build_model(config: TrainConfig, image_shape: tuple[int, ...]) -> Model:
    options: dict[str, Any] = {
        name: getattr(config, name) for name in ("hidden", "likelihood", "sigma", "learn_sigma", "activation", "preset")
    }
    if config.model != "regressor":
        options["latent_dim"] = config.latent_dim
    if config.model != "vae":
        height, width = image_shape
        image_shape, options["condition_shape"] = (height, width - 1), height
    return MODELS[config.model](image_shape, **options)


class _Objective(nn.Module):
    """What is minimised, as a module of its own: DDP and FSDP see to gradients where a module is called."""

    def __init__(self, model: Model, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, beta: float | Tensor, x: Tensor, known: Tensor | None = None) -> ELBO:
        model, config = self.model, self.config
        samples, gradient = config.importance_samples, config.gradient
        if isinstance(model, VAE):
            if samples > 1:
                return model.importance_weighted_loss(x, samples, gradient=gradient)
            return model.loss(x, beta, free_bits=config.free_bits)
        assert known is not None
        if isinstance(model, CVAE):
            if samples > 1:
                return model.importance_weighted_loss(x, known, samples, gradient=gradient)
            return model.loss(x, known, beta, free_bits=config.free_bits)
        loss = model.loss(x, known)
        return ELBO(loss, loss, torch.zeros_like(loss))


def _stream(name: str, seed: int) -> int:
    """The first of a run's seeds for ``name``, of which there is a run in a row: those of two runs hardly ever meet."""
    return int.from_bytes(hashlib.blake2b(f"{name} {seed}".encode(), digest_size=7).digest(), "big")


class _Run:
    """The state of a run between two steps."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        out_dir: Path,
        checkpoint: Checkpoint | None,
        processes: World,
        saved: Checkpoints,
        terminated: Callable[[], bool] = lambda: False,
        *,
        fsdp: bool = False,
        cuda_graph: bool = False,
        save_steps: int | None = None,
    ) -> None:
        self.config, self.out_dir = config, out_dir
        self.world, self.saved, self.save_steps, self.terminated = processes, saved, save_steps, terminated
        self.device = processes.device
        self.images = dataset.train_images.to(self.device)
        self.test_images = dataset.test_images.to(self.device)
        self.batches = -(-len(self.images) // config.batch_size)
        self.parts = max(config.accumulate, processes.size)

        # Weights, order and noise have seeds of their own, those of each epoch, and of each part of each step, anew:
        # nothing but the position must be kept to go on, with any number of processes.
        torch.manual_seed(config.seed)
        self.noise = torch.default_generator
        if self.device.type == "cuda":
            self.noise = torch.cuda.default_generators[self.device.index]
        self.order_seed, self.noise_seed = _stream("order", config.seed), _stream("noise", config.seed)
        model = _build_model(config, dataset.image_shape) if checkpoint is None else checkpoint.empty_model()
        if checkpoint is not None:
            model = model.to_empty(device=self.device)
        self.model = model.to(self.device)
        self.objective = share_out(_Objective(self.model, config), processes, fsdp, config.compile)
        rate = scaled_learning_rate(config.learning_rate, config.batch_size, config.scale_learning_rate)
        self.optimizer = make_optimizer(self.model, rate, config.preset, capturable=cuda_graph)
        position = Position() if checkpoint is None else checkpoint.position
        self.step, self.epoch, self.history = position.step, position.epoch, list(position.history)
        # Of this process; what was done before belongs to the first.
        first = processes.rank == 0
        self.sums = torch.tensor(position.sums, dtype=torch.float64, device=self.device) * first
        self.images_done, self.images_here = position.images, position.images * first
        self.seconds = position.seconds
        if checkpoint is not None:
            self._restore(checkpoint)
        self.learning_rate = learning_rate_schedule(
            rate,
            config.warmup_epochs * self.batches,
            (config.epochs - config.warmup_epochs) * self.batches if config.decay else None,
        )
        self.anneal: Schedule | None = None
        self.beta: float | Tensor = config.beta
        if config.anneal is not None:
            self.anneal = Schedule(config.anneal, 0.0, config.beta, config.anneal_epochs * self.batches)
            # A tensor where it changes: compiled code is then not compiled anew, and captured code sees it.
            self.beta = torch.zeros((), device=self.device)
        self.run_step: Callable[[Tensor], Tensor] = self._on_device
        if cuda_graph:
            self.run_step = CapturedStep(self._on_device, config.batch_size, self.device)

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        shapes = checkpoint.shapes()
        state: dict[int, dict[str, Tensor]] = {}
        parameters = dict(self.model.named_parameters())
        for index, name in enumerate(parameter_names(self.model, self.optimizer)):
            prefix, parameter = f"optimizer.{name}.", parameters[name]
            for key in (key for key in shapes if key.startswith(prefix)):
                like = torch.zeros_like(parameter) if shapes[key] == parameter.shape else torch.zeros(shapes[key])
                tensors[key] = state.setdefault(index, {})[key.removeprefix(prefix)] = like
        if checkpoint.position.step > 0 and len(state) < len(parameters):
            raise ValueError(f"{checkpoint.folder}: damaged checkpoint (its optimiser's state is not the model's)")
        checkpoint.read(tensors)
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def train_epoch(self, writer: SummaryWriter | None, progress: Callable[[Progress], None] | None) -> None:
        """What is left of a pass through the training set, the test, and everything that is written after an epoch."""
        unread: list[Tensor] = []
        started = reported = time.perf_counter() - self.seconds
        shuffle = torch.Generator().manual_seed(self.order_seed + self.epoch)
        order = torch.randperm(len(self.images), generator=shuffle, device="cpu").to(self.device)
        batches = torch.split(order, self.config.batch_size)
        for batch in batches[self.step - self.epoch * self.batches :]:
            unread.append(self._step(batch))
            self.sums += unread[-1]
            self.images_done += len(batch)
            self.images_here += sum(len(part) for _, part in self._parts_of(batch))
            self.step += 1
            if time.perf_counter() - reported >= _SECONDS_BETWEEN_REPORTS:
                self._check_finite(unread)
                reported = time.perf_counter()
                if progress is not None:
                    means = (self.sums / self.images_here).tolist()
                    progress(self._progress(means, reported - started, None))
            self._stop_or_save(unread, time.perf_counter() - started)
        self._check_finite(unread)
        self.seconds = time.perf_counter() - started
        loss, reconstruction, kl = (self.world.sum(self.sums) / self.images_done).tolist()
        test = self._test()
        if not math.isfinite(test.elbo):
            self._fail(f"the test ELBO is {test.elbo}")

        train = elbo_report(reconstruction, kl, math.prod(self.model.data_shape))
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "train": train._asdict(),
                "test": test._asdict(),
                "seconds": self.seconds,
                "samples_per_second": self.images_done / self.seconds,
            }
        )
        last = self._progress([loss, reconstruction, kl], self.seconds, test)
        self.epoch += 1
        self.sums.zero_()
        self.images_done = self.images_here = 0
        self.seconds = 0.0
        self._log(writer, train, test, last.samples_per_second)
        self.save_checkpoint()
        self.save_metrics()
        if progress is not None:
            progress(last)
        if self.epoch < self.config.epochs and self.world.any(self.terminated()):
            self._stop()

    def _stop_or_save(self, unread: list[Tensor], seconds: float) -> None:
        """Within an epoch: a checkpoint where one is due, or where SIGTERM has come, which then ends the run."""
        if self.step % self.batches == 0:
            return  # the epoch's own is next
        stop = self.terminated()
        if self.world.size > 1:
            stop = self.step % _STEPS_BETWEEN_AGREEMENTS == 0 and self.world.any(stop)
        if not (stop or (self.save_steps and self.step % self.save_steps == 0)):
            return
        self._check_finite(unread)
        # The loss was finite before the last update. What is kept must be so after it.
        weights = torch.stack([local_part(p).isfinite().all() for p in self.model.parameters()])
        if self.world.any(not weights.all()):
            self._fail(f"the weights are no longer finite after step {self.step - 1}")
        self.seconds = seconds
        self.save_checkpoint()
        if stop:
            self._stop()

    def _stop(self) -> None:
        self.saved.wait()
        raise StoppedError(f"stopped by SIGTERM in epoch {self.epoch + 1}, after step {self.step}, and saved")

    def _test(self) -> ELBOReport:
        generator = self._test_generator()
        with gathered(self.objective):
            sums = elbo_sums(
                self.model,
                *self._arguments(self.test_images, generator),
                binarize=self.config.binarize == "dynamic",
                generator=generator,
                part=self.world.rank,
                parts=self.world.size,
            )
        return report_of_sums(self.world.sum(sums), len(self.test_images), math.prod(self.model.data_shape))

    def _arguments(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """What the model takes of images: themselves, or what is to be completed and what is known."""
        return (images,) if self.config.model == "vae" else split_column(images, generator=generator)

    def _step(self, batch: Tensor) -> Tensor:
        """One step of Adam. Returns the sums over this process' images, ``[loss, reconstruction, kl]`` in nats."""
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self.anneal is not None:
            assert isinstance(self.beta, Tensor)
            self.beta.fill_(self.anneal(self.step))
        self._seed(self.world.rank)
        return self.run_step(batch)

    def _seed(self, part: int) -> None:
        # Not torch.manual_seed, which seeds every device there might be: a quarter of a millisecond.
        self.noise.manual_seed(self.noise_seed + self.step * self.parts + part)

    def _parts_of(self, batch: Tensor) -> list[tuple[int, Tensor]]:
        """This process' parts of a batch that have any images, with their numbers."""
        parts = list(enumerate(batch.tensor_split(self.parts)))[self.world.rank :: self.world.size]
        return [(number, part) for number, part in parts if len(part)]

    def _on_device(self, batch: Tensor) -> Tensor:
        """The part of a step that may be captured: it waits for nothing and takes nothing from the host."""
        self.optimizer.zero_grad()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        mine = [(number, part, len(part)) for number, part in self._parts_of(batch)]
        # All make as many passes, because they exchange gradients, and weights with FSDP, in each: who has no part left
        # takes an image that counts nothing.
        passes = -(-min(self.parts, len(batch)) // self.world.size)
        mine += [(0, batch[:1], 0)] * (passes - len(mine))
        for done, (number, part, count) in enumerate(mine, 1):
            if done > 1:
                self._seed(number)
            images = self.images.index_select(0, part)
            if self.config.binarize == "dynamic":
                images = binarize(images)
            with more_to_come(self.objective, done < passes):
                # Of the mean over the batch; what processes exchange is the mean over them.
                terms = self._add_gradient(images, count * self.world.size / len(batch))
            sums += terms * count
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return sums

    def _add_gradient(self, images: Tensor, share: float) -> Tensor:
        """Adds ``share`` times the gradient of a part's mean. Returns that mean, ``[loss, reconstruction, kl]``."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
                terms = self.objective(self.beta, *self._arguments(images))
            (terms.loss * share).backward()
        except RuntimeError as error:
            if not self.config.compile or not is_of_compiler(error):
                raise
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"torch.compile failed: {reason}") from error
        return torch.stack([term.detach().double() for term in terms])

    def _check_finite(self, unread: list[Tensor]) -> None:
        """``unread`` are the sums of the steps that nobody has looked at, up to the last one."""
        if not self.sums.sum().isfinite():
            for at, terms in enumerate(unread, self.step - len(unread)):
                loss, reconstruction, kl = terms.tolist()
                for name, value in (("reconstruction", reconstruction), ("KL divergence", kl), ("loss", loss)):
                    if not math.isfinite(value):
                        self._fail(f"the {name} is {value} at step {at}, batch {at % self.batches}")
        unread.clear()

    def _fail(self, reason: str) -> None:
        self.saved.abandon()
        names = self.saved.names()
        held = f"{self.saved.folder / names[-1]} holds epoch {self.epoch}" if names else "nothing is saved"
        raise TrainingError(f"{reason} in epoch {self.epoch + 1}; {held}; try a lower learning rate, in another folder")

    def _progress(self, means: list[float], seconds: float, test: ELBOReport | None) -> Progress:
        loss, reconstruction, kl = means
        return Progress(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            images=self.images_done,
            images_per_epoch=len(self.images),
            loss=loss,
            reconstruction=reconstruction,
            kl=kl,
            samples_per_second=self.images_done / seconds,
            test=test,
        )

    def save_checkpoint(self) -> None:
        names = parameter_names(self.model, self.optimizer)
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{names[index]}.{key}": tensor for key, tensor in state.items()}
        position = Position(
            step=self.step,
            epoch=self.epoch,
            history=list(self.history),
            sums=self.world.sum(self.sums.clone()).tolist(),
            images=self.images_done,
            seconds=self.seconds,
        )
        self.saved.save(tensors, self.model.config, dataclasses.asdict(self.config), position)

    def save_metrics(self) -> None:
        if self.world.rank > 0:
            return
        metrics = {
            "config": dataclasses.asdict(self.config),
            "versions": {
                "fastvae": fastvae.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "epochs": self.history,
        }
        with replacing(self.out_dir / METRICS) as temporary:
            temporary.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def save_pictures(self) -> None:
        from fastvae import plots

        samples, originals, reconstructions = self._pictures()
        if self.world.rank > 0:
            return
        with replacing(self.out_dir / "samples.png") as temporary:
            plots.save_samples(samples, _GRID_COLUMNS, temporary)
        with replacing(self.out_dir / "reconstructions.png") as temporary:
            plots.save_reconstructions(originals, reconstructions, _GRID_COLUMNS, temporary)
        with replacing(self.out_dir / "curves.png") as temporary:
            plots.save_curves(self.history, temporary)

    def _pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, and test images with their reconstructions, on the CPU: of the same codes every time.

        Every process must ask for them.
        """
        with gathered(self.objective):
            samples, originals, reconstructions = self._drawn()
        return samples.cpu(), originals.cpu(), reconstructions.cpu()

    def _drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = self._test_generator()
        originals = self.test_images[:_GRID_RECONSTRUCTIONS]
        if self.config.binarize == "dynamic":
            originals = binarize(originals, generator=generator)
        model = self.model
        if isinstance(model, VAE):
            return model.sample(_GRID_COLUMNS**2, generator), originals, model.reconstruct(originals)
        others, known = split_column(originals, generator=generator)
        many = known.repeat(_GRID_COLUMNS**2 // len(known) or 1, 1)
        samples = model.sample(many, generator=generator) if isinstance(model, CVAE) else model.predict(many)
        again = model.reconstruct(others, known) if isinstance(model, CVAE) else model.predict(known)
        return join_column(samples, many), originals, join_column(again, known)

    def _log(self, writer: SummaryWriter | None, train: ELBOReport, test: ELBOReport, rate: float) -> None:
        from fastvae import plots

        samples, originals, reconstructions = self._pictures()
        if writer is None:
            return
        add_scalar, add_image = writer.add_scalar, writer.add_image
        for part, report in (("train", train), ("test", test)):
            for key in ("elbo", "reconstruction", "kl", "bits_per_dim"):
                add_scalar(f"{key}/{part}", getattr(report, key), self.epoch)
        add_scalar("samples_per_second", rate, self.epoch)
        rows = plots.interleave_rows(originals, reconstructions, _GRID_COLUMNS)
        for name, images in (("samples", samples), ("reconstructions", rows)):
            add_image(name, plots.image_grid(images, _GRID_COLUMNS), self.epoch, dataformats="HW")
        writer.flush()

    def _test_generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.config.seed)
