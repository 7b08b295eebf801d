"""A training run, which writes a folder with checkpoints, metrics, TensorBoard logs and pictures."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

import fastvae
from fastvae.data import Dataset
from fastvae.data.rows import rows_of
from fastvae.evaluation import ELBOReport, elbo_report, elbo_sums, report_of_sums
from fastvae.files import replacing
from fastvae.models import Model
from fastvae.models.networks import evaluating
from fastvae.ops import binarize
from fastvae.training.checkpoint import Checkpoint, Checkpoints, Position, config_of, load_checkpoint
from fastvae.training.config import TrainConfig
from fastvae.training.config_file import keep_config
from fastvae.training.distributed import (
    StoppedError,
    TrainingError,
    World,
    gathered,
    local_part,
    until_terminated,
    world,
)
from fastvae.training.feed import DataOn, class_numbers, placed, stays_on_host
from fastvae.training.folder import METRICS, TENSORBOARD, checkpoint_to_resume, refuse_other_model, refuse_run
from fastvae.training.inputs import (
    check_data,
    digest_rows,
    dims_of,
    load_data,
    model_inputs,
    refuse_other_rows,
    settled,
)
from fastvae.training.lock import locked
from fastvae.training.pictures import Pictures, drawn, log_epoch, save_pictures
from fastvae.training.solver import flush_denormal, parameter_names
from fastvae.training.step import Stepper, build_model, stream

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Reading the loss makes the host wait for the device, so it is read for the display, not for every batch.
_SECONDS_BETWEEN_REPORTS = 0.2
# Processes agree on whether to stop once in so many steps: to ask at each would make each wait for the slowest.
_STEPS_BETWEEN_AGREEMENTS = 10
_TEST_BATCH = 1000

logger = logging.getLogger("fastvae")


class Progress(NamedTuple):
    """The progress of a run, reported several times a second and at the end of each epoch."""

    epoch: int
    """The current epoch, from 1."""
    epochs: int
    """Number of epochs of the run."""
    images: int
    """Number of images done in this epoch, by all processes."""
    images_per_epoch: int
    """Number of images in an epoch."""
    loss: float
    """The training loss in nats per image. ``loss``, ``reconstruction`` and ``kl`` are means over the epoch so far;
    until the epoch is over, they are means over this process' own images."""
    reconstruction: float
    """The reconstruction term of the ELBO, in nats per image."""
    kl: float
    """The KL term of the ELBO, in nats per image."""
    samples_per_second: float
    """Training images per second in this epoch, by all processes."""
    test: ELBOReport | None
    """The report of the test set at the end of an epoch; None before."""


class TrainResult(NamedTuple):
    """The result of a finished run."""

    model: Any
    """The trained model: the one that ``config`` describes, or the one that was given."""
    history: list[dict[str, Any]]
    """One entry for each epoch, as in ``metrics.json``. ``train`` is the mean over the epoch's steps, during which the
    weights changed; ``test`` is measured after the last step."""


def train(
    config: TrainConfig,
    out_dir: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
    resume: bool = False,
    init_from: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    reading: Callable[[str, int, int], None] | None = None,
    device: str | torch.device | None = None,
    fsdp: bool = False,
    cuda_graph: bool = False,
    data_on: DataOn = "auto",
    keep: int = 2,
    save_steps: int | None = None,
) -> TrainResult:
    """Trains a model, or resumes a stopped run, in one process or in the processes that torchrun starts.

    The run writes to its folder: ``checkpoints/`` (one before the first step and one after each epoch, each written in
    the background and visible only once it is complete), ``config.toml``, with which ``fastvae train --config`` repeats
    the run (:func:`fastvae.training.config_file.keep_config`), ``metrics.json``, ``tensorboard/``, and at the end
    ``samples.png``, ``reconstructions.png`` and ``curves.png``. A picture that cannot be drawn is only a warning.

    A run that was stopped in any way and resumed ends with the same weights and metrics (except times) as one that
    never stopped: bitwise in one process on the same machine with the same number of threads, otherwise up to rounding.
    The run seeds torch's own random generator. While it lasts, also in ``progress``, numbers below 2^-126 count as 0
    (:func:`fastvae.training.solver.flush_denormal`).

    Each batch is split into ``config.accumulate`` parts, or into as many parts as there are processes if that is more,
    and the processes share the parts. Noise belongs to the part, so that the weights are the same up to rounding for
    any number of processes up to ``config.accumulate``. All processes must see the run's folder.

    Args:
        config: the configuration. It is saved with the likelihood that None stands for (:meth:`TrainConfig.resolved`),
            or with that of ``model``. A resumed run needs its own configuration, in which only the paths of data may
            change and ``epochs`` may grow, unless the learning rate decays over them.
        out_dir: folder of the run, made if it is missing. A lock keeps a second run out of it.
        dataset: your own data, instead of those that ``config`` names. A resumed run must be given the same data.
        model: your own model, instead of the one that ``config`` describes. It is a ``VAE``, ``CVAE`` or ``Regressor``
            with any networks, of the kind that ``config.model`` names. Or it is any other module that is called with
            the rows ``[B, *E]`` (and the labels ``[B]``, for condition ``"labels"``) and returns an
            :class:`fastvae.ELBO` of batch means, whose ``loss`` is minimised. It is trained in place from its present
            weights, and is put into training mode. A resumed run must be given such a model again, and so must
            :func:`fastvae.load`.
        resume: whether to resume from the newest complete checkpoint in ``out_dir``. If it holds no run, a new one
            starts; a log line says which of the two happens. Without ``resume``, ``out_dir`` must hold no run.
        init_from: a run, or one of its checkpoints, from whose weights a new run starts. ``config`` may differ from
            that run's in anything but the model: ``replace(saved_config(run), learning_rate=1e-4)``. The optimiser
            starts anew and epochs count from 0. ``metrics.json`` and the checkpoints record where the weights came
            from. A resumed run ignores this argument.
        progress: called with a ``Progress`` several times a second, in the first process.
        reading: called with "reading" or "checking", the amount done and the total, while data are read and checked
            before the first step, if that takes long; in the first process.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. By default a GPU if there is one and this build has kernels for
            it; each process of a machine takes a GPU of its own.
        fsdp: whether to shard the weights and the optimiser's state over the processes too (FSDP2), layer by layer, for
            models that do not fit on one device. The returned model is sharded; the checkpoint holds the whole model.
        cuda_graph: whether to replay the step as a CUDA graph, for networks and batches so small that the host cannot
            keep the GPU busy.
        data_on: where the training set is. ``"device"``: all of it in the memory of the device. ``"host"``: where it
            comes from; a thread reads the rows one batch ahead and, on a GPU, copies them asynchronously. ``"auto"``:
            on the device if it takes at most half of the free memory there.
        keep: number of newest checkpoints that are kept.
        save_steps: steps between further checkpoints within an epoch; None for no further ones.

    Raises:
        ValueError: ``config`` contradicts the run's own, or has another model than ``init_from``; a file of the data
            set or every checkpoint is damaged; the data hold a value that is none of the likelihood's; the device does
            not exist; ``fsdp`` is given with ``config.compile`` or ``config.learn_sigma``, or without several
            processes; ``cuda_graph`` is given without a GPU, with several processes, with parts of batches or with
            sparse data.
        FileExistsError: ``out_dir`` already holds a run or, with ``resume``, only the remains of one.
        FileNotFoundError: there is no data set, or ``init_from`` holds nothing.
        OSError: a file cannot be read or written.
        TrainingError: the loss is no longer finite, torch.compile failed, another process was lost, or another run is
            using ``out_dir``.
        StoppedError: the process received SIGTERM; the run was saved first.
    """
    # Loaded here because a `TrainConfig` needs neither, and both before hours of training and not after.
    from torch.utils.tensorboard import SummaryWriter

    import fastvae.plots  # noqa: F401

    for name, value in (("keep", keep), ("save_steps", save_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    out_dir = Path(out_dir)
    with world(device) as processes, until_terminated() as terminated, flush_denormal(), ExitStack() as held:
        if fsdp and (config.compile or config.learn_sigma or processes.size == 1):
            raise ValueError("fsdp shards a model over processes: it needs several, no compile and no learn_sigma")
        if cuda_graph and (processes.device.type != "cuda" or processes.size > 1 or config.accumulate > 1):
            raise ValueError("cuda_graph captures the step of one process on a GPU, with batches in one part")
        config = settled(config, dataset is not None, model)
        # Before anything is read: who waits for the data set holds the folder too.
        processes.of_first(lambda: held.enter_context(locked(out_dir)))
        checkpoint = processes.of_first(
            lambda: checkpoint_to_resume(config, out_dir) if resume else refuse_run(out_dir)
        )
        notes = [
            f"The {name} was given from Python: train(..., {name}=...)"
            for name, given in (("dataset", dataset), ("model", model))
            if given is not None
        ]

        def told(what: str) -> Callable[[int, int], None] | None:
            return None if reading is None else partial(reading, what)

        source = None
        if checkpoint is None and init_from is not None:
            source = processes.of_first(lambda: load_checkpoint(init_from))
        data_given = dataset is not None
        if dataset is None:
            # The first process downloads, and finds out for all what is wrong; the data themselves are not sent.
            first: list[Dataset] = []
            processes.of_first(lambda: first.append(load_data(config, told("reading"))))
            dataset = first[0] if first else load_data(config)
        if checkpoint is None:
            processes.of_first(lambda: check_data(config, dataset, model, told("checking")))

        saved = Checkpoints(out_dir, keep, first=processes.rank == 0, group=processes.saving)
        run = _Run(
            config,
            dataset,
            out_dir,
            checkpoint,
            processes,
            saved,
            terminated,
            source=source,
            model=model,
            data_given=data_given,
            fsdp=fsdp,
            cuda_graph=cuda_graph,
            data_on=data_on,
            save_steps=save_steps,
        )
        held.callback(run.stepper.feed.close)
        if resume and processes.rank == 0:
            logger.info("%s", f"no run in {out_dir} yet: starting one" if checkpoint is None else run.how_far())
        if run.init_from is not None:
            notes.append(f"Its first weights: --init-from {json.dumps(run.init_from['checkpoint'])}")
        processes.of_first(lambda: keep_config(config, out_dir, notes, data_given=data_given))
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
        pictures = run.pictures()
        if processes.rank == 0:
            save_pictures(out_dir, pictures, run.history)
        return TrainResult(run.model, run.history)


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
        source: Checkpoint | None = None,
        model: nn.Module | None = None,
        data_given: bool = False,
        fsdp: bool = False,
        cuda_graph: bool = False,
        data_on: DataOn = "auto",
        save_steps: int | None = None,
    ) -> None:
        self.config, self.out_dir, self.data_given = config, out_dir, data_given
        self.world, self.saved, self.save_steps, self.terminated = processes, saved, save_steps, terminated
        self.device = processes.device
        self.test = dataset.test
        if not stays_on_host(self.test, self.device, data_on):
            self.test = placed(self.test, self.device)
        self.test_labels = None
        if dataset.test_labels is not None:
            self.test_labels = class_numbers(dataset.test_labels.to(self.device))
        # Order and noise are seeded anew for each epoch, and for each part of each step: nothing but the position must
        # be kept to go on, with any number of processes.
        self.order_seed = stream("order", config.seed)
        self.model: nn.Module
        if model is not None:
            if checkpoint is not None:
                checkpoint.refuse_other(model)
            refuse_other_rows(config, model, dataset)
            torch.manual_seed(config.seed)
            self.model = model.to(self.device)
            if not model.training:  # as that of a checkpoint
                model.train()
        elif checkpoint is None:
            self.model = build_model(config, dataset).to(self.device)
        else:
            self.model = checkpoint.unread_model(self.device)
        self.model_config = config_of(self.model)
        self.dims = dims_of(self.model, dataset)
        self.init_from = None if checkpoint is None else checkpoint.init_from
        if source is not None:
            refuse_other_model(config, self.model, source)
            self.init_from = source.origin()
        self.stepper = Stepper(
            config, dataset, self.model, processes, fsdp=fsdp, cuda_graph=cuda_graph, data_on=data_on
        )
        self.objective, self.optimizer = self.stepper.objective, self.stepper.optimizer
        position = Position() if checkpoint is None else checkpoint.position
        self.step, self.epoch, self.history = position.step, position.epoch, list(position.history)
        done = self.step - self.epoch * self.stepper.batches
        if not (0 <= done < self.stepper.batches and done * config.batch_size == position.images):
            raise ValueError(
                f"{out_dir} is after step {self.step}, in epoch {self.epoch + 1}, but {dataset.name} has "
                f"{self.stepper.rows} rows and {self.stepper.batches} steps an epoch: the run was trained on other data"
            )
        self.rows_digest = digest_rows(config, dataset)
        if None not in (position.rows, self.rows_digest) and position.rows != self.rows_digest:
            raise ValueError(f"{out_dir} was trained on other rows or labels than those that {dataset.name} has now")
        # Of this process; what was done before belongs to the first.
        first = processes.rank == 0
        self.sums = torch.tensor(position.sums, dtype=torch.float64, device=self.device) * first
        self.images_done, self.images_here = position.images, position.images * first
        self.seconds = position.seconds
        if source is not None:
            source.read(self._weights())
        if checkpoint is not None:
            self._restore(checkpoint)

    def _weights(self) -> dict[str, Tensor]:
        """By their names in a checkpoint."""
        return {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}

    def _restore(self, checkpoint: Checkpoint) -> None:
        tensors = self._weights()
        shapes = checkpoint.shapes()
        state: dict[int, dict[str, Tensor]] = {}
        parameters = dict(self.model.named_parameters())
        names = parameter_names(self.model, self.optimizer)
        for index, name in enumerate(names):
            prefix, parameter = f"optimizer.{name}.", parameters[name]
            for key in (key for key in shapes if key.startswith(prefix)):
                like = torch.zeros_like(parameter) if shapes[key] == parameter.shape else torch.zeros(shapes[key])
                tensors[key] = state.setdefault(index, {})[key.removeprefix(prefix)] = like
        optimized = checkpoint.position.optimized
        if optimized is None:
            optimized = names if checkpoint.position.step > 0 else []
        if not set(optimized) <= {names[index] for index in state}:
            raise ValueError(f"{checkpoint.folder}: damaged checkpoint (its optimiser state does not fit the model)")
        checkpoint.read(tensors)
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def how_far(self) -> str:
        """What a run that goes on has done."""
        part = f" and {self.images_done} images of the next" if self.images_done else ""
        return f"going on with the run in {self.out_dir} after epoch {self.epoch}{part}"

    def train_epoch(self, writer: SummaryWriter | None, progress: Callable[[Progress], None] | None) -> None:
        """What is left of a pass through the training set, the test, and everything that is written after an epoch."""
        unread: list[Tensor] = []
        waited = self.stepper.feed.waited
        started = reported = time.perf_counter() - self.seconds
        shuffle = torch.Generator().manual_seed(self.order_seed + self.epoch)
        order = torch.randperm(self.stepper.rows, generator=shuffle, device="cpu")
        if not self.stepper.feed.reads_ahead:
            order = order.to(self.device)
        done = self.step - self.epoch * self.stepper.batches
        batches = torch.split(order, self.config.batch_size)[done:]
        self.stepper.announce(batches, done, self.order_seed + self.epoch)
        for batch in batches:
            unread.append(self.stepper(self.step, batch))
            self.sums += unread[-1]
            self.images_done += len(batch)
            self.images_here += self.stepper.share(len(batch))
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

        train = elbo_report(reconstruction, kl, self.dims)
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "train": train._asdict(),
                "test": test._asdict(),
                "seconds": self.seconds,
                "seconds_waiting_for_data": self.stepper.feed.waited - waited,
                "samples_per_second": self.images_done / self.seconds,
            }
        )
        last = self._progress([loss, reconstruction, kl], self.seconds, test)
        self.epoch += 1
        self.sums.zero_()
        self.images_done = self.images_here = 0
        self.seconds = 0.0
        pictures = self.pictures()
        if writer is not None:
            log_epoch(writer, self.epoch, train, test, last.samples_per_second, pictures)
        self.save_checkpoint()
        self.save_metrics()
        if progress is not None:
            progress(last)
        if self.epoch < self.config.epochs and self.world.any(self.terminated()):
            self._stop()

    def _stop_or_save(self, unread: list[Tensor], seconds: float) -> None:
        """Within an epoch: a checkpoint where one is due, or where SIGTERM has come, which then ends the run."""
        if self.step % self.stepper.batches == 0:
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
        self.world.share_buffers(self.model)
        with gathered(self.objective):
            if not isinstance(self.model, Model):
                return self._test_given()
            sums = elbo_sums(
                self.model,
                *model_inputs(self.config, rows_of(self.test), self.test_labels, generator),
                binarize=self.config.binarize == "dynamic",
                generator=generator,
                part=self.world.rank,
                parts=self.world.size,
            )
        return report_of_sums(self.world.sum(sums), len(self.test), self.dims)

    def _test_given(self) -> ELBOReport:
        """Of a module of which nothing is known but what it returns: every process takes all of the test set."""
        given, draw = self.model, self.config.binarize == "dynamic"
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        with evaluating(given), torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self.config.seed)
            for start in range(0, len(self.test), _TEST_BATCH):
                rows = slice(start, start + _TEST_BATCH)
                x = self.test[rows].to(self.device)
                labels = None if self.test_labels is None else self.test_labels[rows]
                terms = given(*model_inputs(self.config, binarize(x) if draw else x, labels))
                sums += torch.stack([terms.reconstruction, terms.kl]).double() * len(x)
        reconstruction, kl = (sums / len(self.test)).tolist()
        return elbo_report(reconstruction, kl, self.dims)

    def _check_finite(self, unread: list[Tensor]) -> None:
        """``unread`` are the sums of the steps that nobody has looked at, up to the last one."""
        if not self.sums.sum().isfinite():
            for at, terms in enumerate(unread, self.step - len(unread)):
                loss, reconstruction, kl = terms.tolist()
                for name, value in (("reconstruction", reconstruction), ("KL divergence", kl), ("loss", loss)):
                    if not math.isfinite(value):
                        self._fail(f"the {name} is {value} at step {at}, batch {at % self.stepper.batches}")
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
            images_per_epoch=self.stepper.rows,
            loss=loss,
            reconstruction=reconstruction,
            kl=kl,
            samples_per_second=self.images_done / seconds,
            test=test,
        )

    def save_checkpoint(self) -> None:
        names = parameter_names(self.model, self.optimizer)
        self.world.share_buffers(self.model)  # of which any process may write its own
        tensors = self._weights()
        states = self.optimizer.state_dict()["state"]
        for index, state in states.items():
            tensors |= {f"optimizer.{names[index]}.{key}": tensor for key, tensor in state.items()}
        position = Position(
            step=self.step,
            epoch=self.epoch,
            history=list(self.history),
            sums=self.world.sum(self.sums.clone()).tolist(),
            images=self.images_done,
            seconds=self.seconds,
            rows=self.rows_digest,
            optimized=[names[index] for index in states],
            data_given=self.data_given,
        )
        self.saved.save(tensors, self.model_config, dataclasses.asdict(self.config), position, self.init_from)

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
            "init_from": self.init_from,
            "epochs": self.history,
        }
        with replacing(self.out_dir / METRICS) as temporary:
            temporary.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def pictures(self) -> Pictures | None:
        """Every process must ask for them; there are none of a model or of data that draws nothing."""
        with gathered(self.objective):
            return drawn(self.model, self.config, self.test, self.test_labels, self._test_generator())

    def _test_generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.config.seed)
