"""A training step: the choice of images, their noise, the gradient, and the update by Adam."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.data import Dataset
from fastvae.data.rows import array_of
from fastvae.data.torch_data import TorchData
from fastvae.models import CVAE, VAE, Model
from fastvae.objectives import Schedule
from fastvae.ops import ELBO
from fastvae.training.checkpoint import MODELS
from fastvae.training.config import TrainConfig
from fastvae.training.distributed import TrainingError, World, is_of_compiler, more_to_come, share_out
from fastvae.training.feed import DataOn, TorchFeed, make_feed
from fastvae.training.graph import CapturedStep
from fastvae.training.inputs import model_inputs, shape_to_model
from fastvae.training.solver import learning_rate_schedule, make_optimizer, scaled_learning_rate


def build_model(config: TrainConfig, dataset: Dataset) -> Model:
    """The model of a run, with initial weights drawn from the seed of the configuration."""
    config = config.resolved(data_given=True)
    options: dict[str, Any] = {name: getattr(config, name) for name in ("likelihood", "sigma", "learn_sigma", "total")}
    if config.network == "mlp":
        options |= {name: getattr(config, name) for name in ("hidden", "activation", "preset")}
    elif config.network == "conv":
        options |= {name: getattr(config, name) for name in ("conv_width", "conv_depth", "conv_norm")}
    if config.model != "regressor":
        options |= {"latent_dim": config.latent_dim, "network": config.network}
    if config.completes:
        options["condition_shape"] = dataset.data_shape[0]
    elif config.model != "vae":
        options["condition_classes"] = dataset.classes
    torch.manual_seed(config.seed)
    return MODELS[config.model](shape_to_model(config, dataset), **options)


class Objective(nn.Module):
    """The loss as a module, because DDP and FSDP handle gradients where a module is called."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, beta: float | Tensor, x: Tensor, condition: Tensor | None = None) -> ELBO:
        model, config = self.model, self.config
        if not isinstance(model, Model):
            terms = model(x) if condition is None else model(x, condition)
            if not isinstance(terms, ELBO) or any(term.dim() for term in terms):
                given = [list(term.shape) for term in terms] if isinstance(terms, ELBO) else type(terms).__name__
                raise ValueError(
                    f"{type(model).__name__} gives {given}, expected a fastvae.ELBO(loss, reconstruction, kl) of means "
                    "over the batch, as 0-d tensors"
                )
            return terms
        samples, gradient = config.importance_samples, config.gradient
        if isinstance(model, VAE):
            if samples > 1:
                return model.importance_weighted_loss(x, samples, gradient=gradient)
            return model.loss(x, beta, free_bits=config.free_bits)
        assert condition is not None
        if isinstance(model, CVAE):
            if samples > 1:
                return model.importance_weighted_loss(x, condition, samples, gradient=gradient)
            return model.loss(x, condition, beta, free_bits=config.free_bits)
        loss = model.loss(x, condition)
        return ELBO(loss, loss, torch.zeros_like(loss))


class Stepper:
    """The steps of one process by number. A step depends on earlier ones only by the weights and Adam's state.

    Args:
        config: the run's configuration.
        dataset: the data set whose training rows the steps take.
        model: the model, on the device of ``processes``.
        processes: the processes that take the steps together.
        fsdp: as for ``train``.
        cuda_graph: as for ``train``.
        data_on: as for ``train``.

    Raises:
        ValueError: the steps cannot take the data in this way.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        model: nn.Module,
        processes: World,
        *,
        fsdp: bool = False,
        cuda_graph: bool = False,
        data_on: DataOn = "auto",
    ) -> None:
        self.config, self.model, self.world = config, model, processes
        self.device = processes.device
        self.feed = make_feed(dataset, config.condition == "labels", self.device, data_on)
        self.rows = len(dataset.train)
        self.batches = -(-self.rows // config.batch_size)
        self.parts = max(config.accumulate, processes.size)
        self.objective = share_out(Objective(model, config), processes, fsdp, config.compile)
        rate = scaled_learning_rate(config.learning_rate, config.batch_size, config.scale_learning_rate)
        self.optimizer = make_optimizer(model, rate, config.preset, capturable=cuda_graph)
        self._learning_rate = learning_rate_schedule(
            rate,
            config.warmup_epochs * self.batches,
            (config.epochs - config.warmup_epochs) * self.batches if config.decay else None,
        )
        self._anneal: Schedule | None = None
        self._beta: float | Tensor = config.beta
        if config.anneal is not None:
            self._anneal = Schedule(config.anneal, 0.0, config.beta, config.anneal_epochs * self.batches)
            # A tensor where it changes: compiled code is then not compiled anew, and captured code sees it.
            self._beta = torch.zeros((), device=self.device)
        # Drawn as the network reads them, which is the target too; what is to be split must be bool.
        self._drawn_dtype = None
        if config.binarize == "dynamic":
            self._drawn_dtype = torch.bool if config.completes else next(model.parameters()).dtype
        # The noise of each part of each step has a seed of its own.
        self._noise = torch.default_generator
        if self.device.type == "cuda":
            self._noise = torch.cuda.default_generators[self.device.index]
        self._first_seed = stream("noise", config.seed)
        self._seeds = self._first_seed
        self._written: dict[Tensor, float] = {}
        self._captured: CapturedStep | None = None
        if isinstance(dataset.train, TorchData):
            dataset.train.check_steps(config.batch_size, self.parts)
        if cuda_graph:
            if self.feed.reads_ahead:
                raise ValueError("cuda_graph needs all of the data in the memory of the GPU")
            if array_of(self.feed.data).layout != torch.strided:
                # How many values the rows of a batch have decides what the step runs.
                raise ValueError(f"cuda_graph needs dense data, but {dataset.name} is a sparse matrix")
            self._captured = CapturedStep(self._on_device, config.batch_size, self.device)

    def __call__(self, number: int, batch: Tensor) -> Tensor:
        """Takes step ``number`` with the images ``batch``, which are the indices for all processes.

        Returns:
            ``[loss, reconstruction, kl]``, float64: sums over the images of this process, in nats.
        """
        rate = self._learning_rate(number)
        for group in self.optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = rate
            else:
                self._write(group["lr"], rate)
        if self._anneal is not None:
            assert isinstance(self._beta, Tensor)
            self._write(self._beta, self._anneal(number))
        self._seeds = self._first_seed + number * self.parts
        self._seed(self.world.rank)
        return (self._captured or self._on_device)(batch)

    def announce(self, batches: Sequence[Tensor], done: int, seed: int) -> None:
        """Announces the remaining batches of an epoch, after ``done`` others; ``seed`` is the seed of its order."""
        mine = (part for batch in batches for _, part, _ in self._mine(batch))
        self.feed.announce(list(mine) if self.feed.reads_ahead else [], done, seed)

    def _mine(self, batch: Tensor) -> list[tuple[int, Tensor, int]]:
        """The parts of a batch that this process takes: the number of each, its rows, and how many of them count."""
        parts = list(enumerate(batch.tensor_split(self.parts)))[self.world.rank :: self.world.size]
        mine = [(number, part, len(part)) for number, part in parts if len(part)]
        # All make as many passes, because they exchange gradients, and weights with FSDP, in each: who has no part left
        # takes an image that counts nothing.
        passes = -(-min(self.parts, len(batch)) // self.world.size)
        return mine + [(0, batch[:1], 0)] * (passes - len(mine))

    def share(self, images: int) -> int:
        """Number of images of a batch that this process takes."""
        mine = range(self.world.rank, self.parts, self.world.size)
        return sum(images // self.parts + (part < images % self.parts) for part in mine)

    def _write(self, to: Tensor, value: float) -> None:
        """A number of the step; on a GPU a write is a launch, so that one which has not changed is left."""
        if self._written.get(to) != value:
            to.fill_(value)
            self._written[to] = value

    def _seed(self, part: int) -> None:
        # Not torch.manual_seed, which seeds every device there might be: a quarter of a millisecond.
        self._noise.manual_seed(self._seeds + part)
        if isinstance(self.feed, TorchFeed) and self._noise is not torch.default_generator:
            torch.default_generator.manual_seed(self._seeds + part)  # of what the program draws for its items

    def _on_device(self, batch: Tensor) -> Tensor:
        """The part of a step that may be captured: it waits for nothing and takes nothing from the host."""
        self.optimizer.zero_grad()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        mine = self._mine(batch)
        for done, (number, part, count) in enumerate(mine, 1):
            if done > 1:
                self._seed(number)
            images, labels = self.feed(part, self._drawn_dtype)
            with more_to_come(self.objective, done < len(mine)):
                # Of the mean over the batch; what processes exchange is the mean over them.
                terms = self._add_gradient(images, labels, count * self.world.size / len(batch))
            sums += terms * count
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return sums

    def _add_gradient(self, images: Tensor, labels: Tensor | None, share: float) -> Tensor:
        """Adds ``share`` times the gradient of a part's mean. Returns that mean, ``[loss, reconstruction, kl]``."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
                terms = self.objective(self._beta, *model_inputs(self.config, images, labels))
            (terms.loss * share).backward()
        except RuntimeError as error:
            if not self.config.compile or not is_of_compiler(error):
                raise
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"torch.compile failed: {reason}") from error
        return torch.stack([term.detach().double() for term in terms])


def stream(name: str, seed: int) -> int:
    """The first of a run's consecutive seeds for ``name``; those of two runs hardly ever overlap."""
    return int.from_bytes(hashlib.blake2b(f"{name} {seed}".encode(), digest_size=7).digest(), "big")
