"""A training run: a folder with a checkpoint, metrics, TensorBoard logs and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import fastvae
from fastvae.data import Batches, Dataset, join_column, load, split_column
from fastvae.evaluation import ELBOReport, elbo_report, evaluate
from fastvae.files import replacing
from fastvae.models import CVAE, VAE, Model
from fastvae.objectives import Schedule
from fastvae.ops import ELBO, binarize
from fastvae.training.checkpoint import MODELS, Checkpoint, load_checkpoint, save_checkpoint
from fastvae.training.config import TrainConfig
from fastvae.training.solver import learning_rate_schedule, make_optimizer, parameter_names

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINT, METRICS, TENSORBOARD = "checkpoint.safetensors", "metrics.json", "tensorboard"
PICTURES = ("samples.png", "reconstructions.png", "curves.png")

# Reading the loss makes the host wait for the device, so it is read for the display, not for every batch.
_SECONDS_BETWEEN_REPORTS = 0.2
_GRID_COLUMNS = 10
_GRID_RECONSTRUCTIONS = 50

# What may differ between a run and its continuation: it does not change the numbers.
_FREE_ON_RESUME = ("epochs", "data_dir")


class TrainingError(RuntimeError):
    """A run that cannot go on; its last checkpoint is kept."""


class Progress(NamedTuple):
    """How far a run is, several times a second and at the end of each epoch."""

    epoch: int
    """From 1."""
    epochs: int
    images: int
    """Done in this epoch."""
    images_per_epoch: int
    loss: float
    """What is minimised; this and the ELBO's parts in nats per image, the mean over the epoch so far."""
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
) -> TrainResult:
    """Train a VAE, or go on with a run that stopped.

    The folder gets ``checkpoint.safetensors`` and ``metrics.json`` (both rewritten after each epoch, whole or
    not at all), ``tensorboard/``, and at the end ``samples.png``, ``reconstructions.png`` and ``curves.png``.
    A run that was stopped in any way and resumed ends with bitwise the weights and metrics (but for times) of
    one that never stopped, given the same machine and number of threads. Seeds torch's own random generator.

    Args:
        config: on resuming it must be the run's own, but that ``data_dir`` may move and ``epochs`` grow, the latter
            unless the learning rate decays over them.
        out_dir: made where it is missing; must hold a run if ``resume``, and must not otherwise.
        resume: whether to go on from the checkpoint.
        progress: called with a ``Progress`` several times a second.

    Raises:
        ValueError: ``config`` contradicts the run's own; a file of the data set or the checkpoint is bad.
        FileExistsError: ``out_dir`` holds a run already.
        FileNotFoundError: nothing to resume, or no data set.
        OSError: a file cannot be read or written.
        TrainingError: the loss is no longer finite, or torch.compile failed.
    """
    # Loaded here because a `TrainConfig` needs neither, and both before hours of training and not after.
    from torch.utils.tensorboard import SummaryWriter

    import fastvae.plots  # noqa: F401

    out_dir = Path(out_dir)
    checkpoint = _checkpoint_to_resume(config, out_dir) if resume else None
    if not resume:
        _refuse_existing_run(out_dir)
    dataset = load(config.dataset, config.data_dir)
    out_dir.mkdir(parents=True, exist_ok=True)

    run = _Run(config, dataset, out_dir, checkpoint)
    if checkpoint is None:
        # So that there is something to resume from before the first epoch is over.
        run.save_checkpoint()
    # On resuming too: the run may have been killed between its last checkpoint and its metrics.
    run.save_metrics()
    writer = SummaryWriter(str(out_dir / TENSORBOARD), purge_step=run.epoch + 1)
    try:
        while run.epoch < config.epochs:
            run.train_epoch(writer, progress)
    finally:
        writer.close()
    run.save_pictures()
    return TrainResult(run.model, run.history)


def _refuse_existing_run(out_dir: Path) -> None:
    if _stopped_in_first_epoch(out_dir / CHECKPOINT):
        return  # there is nothing to lose
    for name in (CHECKPOINT, METRICS, TENSORBOARD, *PICTURES):
        if (out_dir / name).exists():
            raise FileExistsError(
                f"{out_dir} holds {name} of an earlier run: --resume it or name another folder with --out"
            )


def _stopped_in_first_epoch(checkpoint: Path) -> bool:
    try:
        return load_checkpoint(checkpoint).epoch == 0
    except (OSError, ValueError):
        return False


def saved_config(out_dir: str | os.PathLike[str]) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the checkpoint is unreadable, or of another version.
    """
    return TrainConfig.from_checkpoint(_load_run(Path(out_dir)))


def _load_run(out_dir: Path) -> Checkpoint:
    if not (out_dir / CHECKPOINT).is_file():
        raise FileNotFoundError(f"nothing to resume: {out_dir} holds no {CHECKPOINT}")
    return load_checkpoint(out_dir / CHECKPOINT)


def _checkpoint_to_resume(config: TrainConfig, out_dir: Path) -> Checkpoint:
    checkpoint = _load_run(out_dir)
    saved = TrainConfig.from_checkpoint(checkpoint)
    for field in dataclasses.fields(TrainConfig):
        ours, theirs = getattr(config, field.name), getattr(saved, field.name)
        if field.name == "epochs" and ours != theirs and config.decay:
            raise ValueError(f"cannot resume with epochs {ours}: the learning rate decays over the run's own {theirs}")
        if ours != theirs and field.name not in _FREE_ON_RESUME:
            raise ValueError(f"cannot resume with {field.name} {ours}: the run in {out_dir} has {theirs}")
    if config.epochs < checkpoint.epoch:
        raise ValueError(f"cannot resume with epochs {config.epochs}: the run in {out_dir} has done {checkpoint.epoch}")
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


class _Run:
    """The state of a run between two epochs."""

    def __init__(self, config: TrainConfig, dataset: Dataset, out_dir: Path, checkpoint: Checkpoint | None) -> None:
        self.config, self.dataset, self.out_dir = config, dataset, out_dir
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        # One seed, three streams: torch's own for weights and noise, one for the order of the images, and for
        # the test a new one each time, so that looking at the run does not change it.
        torch.manual_seed(config.seed)
        self.shuffle = torch.Generator().manual_seed(config.seed)
        if checkpoint is None:
            self.model = _build_model(config, dataset.image_shape)
        else:
            self.model = checkpoint.build_model()
        self.optimizer = make_optimizer(self.model, config.learning_rate, config.preset)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.loss = torch.compile(self._loss, fullgraph=True) if config.compile else self._loss
        batches = len(Batches(dataset.train_images, config.batch_size))
        self.learning_rate = learning_rate_schedule(
            config.learning_rate,
            config.warmup_epochs * batches,
            (config.epochs - config.warmup_epochs) * batches if config.decay else None,
        )
        self.anneal: Schedule | None = None
        if config.anneal is not None:
            self.anneal = Schedule(config.anneal, 0.0, config.beta, config.anneal_epochs * batches)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.epoch = checkpoint.epoch
        self.history = list(checkpoint.history)
        state = {
            index: checkpoint.optimizer[name]
            for index, name in enumerate(parameter_names(self.model, self.optimizer))
            if checkpoint.epoch > 0
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.shuffle.set_state(checkpoint.random["shuffle"])
        torch.set_rng_state(checkpoint.random["torch"])

    def train_epoch(self, writer: SummaryWriter, progress: Callable[[Progress], None] | None) -> None:
        """One pass through the training set, the test, and everything that is written after an epoch."""
        sums = torch.zeros(3, dtype=torch.float64)
        unread: list[Tensor] = []
        images = 0
        started = reported = time.perf_counter()
        batches = Batches(
            self.dataset.train_images,
            self.config.batch_size,
            shuffle=self.shuffle,
            binarize=self.config.binarize == "dynamic",
        )
        for step, batch in enumerate(batches, self.epoch * len(batches)):
            unread.append(self._step(batch, step))
            sums += unread[-1].double() * len(batch)
            images += len(batch)
            if time.perf_counter() - reported >= _SECONDS_BETWEEN_REPORTS:
                means = self._finite_means(sums, images, unread, step)
                unread.clear()
                reported = time.perf_counter()
                if progress is not None:
                    progress(self._progress(means, images, reported - started, None))
        means = self._finite_means(sums, images, unread, step)
        seconds = time.perf_counter() - started
        generator = self._test_generator()
        test = evaluate(
            self.model,
            *self._arguments(self.dataset.test_images, generator),
            binarize=self.config.binarize == "dynamic",
            generator=generator,
        )
        if not math.isfinite(test.elbo):
            self._stop(f"the test ELBO is {test.elbo}")

        train = elbo_report(*means[1:], math.prod(self.model.data_shape))
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "train": train._asdict(),
                "test": test._asdict(),
                "seconds": seconds,
                "samples_per_second": images / seconds,
            }
        )
        last = self._progress(means, images, seconds, test)
        self.epoch += 1
        self._log(writer, train, test, images / seconds)
        # In this order: the metrics are never ahead of the checkpoint.
        self.save_checkpoint()
        self.save_metrics()
        if progress is not None:
            progress(last)

    def _arguments(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """What the model takes of images: themselves, or what is to be completed and what is known."""
        return (images,) if self.config.model == "vae" else split_column(images, generator=generator)

    def _loss(self, beta: float | Tensor, x: Tensor, known: Tensor | None = None) -> ELBO:
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

    def _step(self, batch: Tensor, step: int) -> Tensor:
        """One step of Adam. Returns ``[loss, reconstruction, kl]``, batch means in nats."""
        self.optimizer.zero_grad()
        config = self.config
        # A tensor where it changes: compiled code is then not compiled anew.
        beta = self.config.beta if self.anneal is None else torch.tensor(self.anneal(step), device=batch.device)
        means = torch.zeros(3, device=batch.device)
        try:
            for part in batch.tensor_split(min(config.accumulate, len(batch))):
                with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.amp == "bf16"):
                    terms = self.loss(beta, *self._arguments(part))
                share = len(part) / len(batch)
                (terms.loss * share).backward()  # type: ignore[no-untyped-call]
                means += torch.stack([term.detach() for term in terms]) * share
        except RuntimeError as error:
            if not config.compile:
                raise
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"torch.compile failed: {reason}") from error
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()
        return means

    def _finite_means(self, sums: Tensor, images: int, unread: list[Tensor], step: int) -> tuple[float, float, float]:
        """The means so far. ``unread`` are the steps, up to ``step``, of which none has been looked at."""
        loss, reconstruction, kl = (sums / images).tolist()
        if math.isfinite(loss + reconstruction + kl):
            return loss, reconstruction, kl
        for at, terms in enumerate(unread, step + 1 - len(unread)):
            loss, reconstruction, kl = terms.tolist()
            for name, value in (("reconstruction", reconstruction), ("KL divergence", kl), ("loss", loss)):
                if not math.isfinite(value):
                    batch = at % len(Batches(self.dataset.train_images, self.config.batch_size))
                    self._stop(f"the {name} is {value} at step {at}, batch {batch}")
        raise AssertionError("a sum that is not finite has a term that is not")

    def _stop(self, reason: str) -> None:
        raise TrainingError(
            f"{reason} in epoch {self.epoch + 1}; {self.out_dir / CHECKPOINT} holds epoch {self.epoch}; "
            "try a lower learning rate, in another folder"
        )

    def _progress(
        self, means: tuple[float, float, float], images: int, seconds: float, test: ELBOReport | None
    ) -> Progress:
        loss, reconstruction, kl = means
        return Progress(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            images=images,
            images_per_epoch=len(self.dataset.train_images),
            loss=loss,
            reconstruction=reconstruction,
            kl=kl,
            samples_per_second=images / seconds,
            test=test,
        )

    def save_checkpoint(self) -> None:
        names = parameter_names(self.model, self.optimizer)
        checkpoint = Checkpoint(
            model_config=self.model.config,
            train_config=dataclasses.asdict(self.config),
            epoch=self.epoch,
            history=self.history,
            model=self.model.state_dict(),
            optimizer={names[i]: s for i, s in self.optimizer.state_dict()["state"].items()},
            random={"torch": torch.get_rng_state(), "shuffle": self.shuffle.get_state()},
        )
        save_checkpoint(self.out_dir / CHECKPOINT, checkpoint)

    def save_metrics(self) -> None:
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
        with replacing(self.out_dir / "samples.png") as temporary:
            plots.save_samples(samples, _GRID_COLUMNS, temporary)
        with replacing(self.out_dir / "reconstructions.png") as temporary:
            plots.save_reconstructions(originals, reconstructions, _GRID_COLUMNS, temporary)
        with replacing(self.out_dir / "curves.png") as temporary:
            plots.save_curves(self.history, temporary)

    def _pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, and test images with their reconstructions: of the same codes every time."""
        generator = self._test_generator()
        originals = self.dataset.test_images[:_GRID_RECONSTRUCTIONS]
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

    def _log(self, writer: SummaryWriter, train: ELBOReport, test: ELBOReport, rate: float) -> None:
        from fastvae import plots

        samples, originals, reconstructions = self._pictures()
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
        return torch.Generator().manual_seed(self.config.seed)
