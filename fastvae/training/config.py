"""What a training run is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fastvae.data import DatasetName, Layout
from fastvae.data.published import largest_count
from fastvae.layers import Activation
from fastvae.models.convolutional import Norm
from fastvae.models.likelihood import LIKELIHOODS, LikelihoodName
from fastvae.models.networks import NetworkName, Preset, check_network
from fastvae.objectives import Gradient, ScheduleKind
from fastvae.training.checkpoint import Checkpoint
from fastvae.training.solver import Scaling

Amp = Literal["bf16"]
Binarize = Literal["none", "dynamic"]
Decay = Literal["cosine"]
ModelName = Literal["vae", "cvae", "regressor"]
Condition = Literal["column", "labels"]

# The fields that are paths: they say where the data are, and not what they are.
PATHS = ("data_dir", "data", "test_data")


@dataclass(frozen=True)
class TrainConfig:
    """What a run is. Together with the machine and its number of threads it fixes every weight.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    model: ModelName = "vae"
    """Which model is trained; ``"cvae"`` and ``"regressor"`` are given a condition."""
    condition: Condition = "column"
    """What a cvae or regressor is given: one column of an image, of which it completes the rest
    (:func:`fastvae.data.split_column`), or the image's label."""
    dataset: DatasetName = "digits"
    data_dir: str | None = None
    """Folder of the data set's files, the ``root`` of :func:`fastvae.data.load`."""
    data: str | None = None
    """File or folder of other data, which take the place of ``dataset`` (:meth:`fastvae.data.Dataset.from_files`)."""
    test_data: str | None = None
    """File or folder of their test set. Without it, the one in ``data`` is taken, or part of the rows is set aside."""
    labels: str | None = None
    """What holds the labels of ``data``: a column of a table, or an array of a file that has several. An empty name
    is none."""
    test_fraction: float = 0.1
    """Part of the rows of ``data`` that is set aside for testing, the same rows in every run."""
    layout: Layout = "auto"
    """Where images in arrays of 4 dimensions have their channels: ``"chw"``, ``"hwc"``, or recognised."""
    network: str = "mlp"
    """Networks of a vae or cvae: ``"mlp"``; ``"conv"``, residual convolutions; or ``"package.module:function"``, which
    is called with the data's shape and ``latent_dim`` and returns an encoder and a decoder."""
    epochs: int = 100
    batch_size: int = 100
    """Images per step, counted over all processes."""
    accumulate: int = 1
    """Parts of a batch, each with noise of its own. A process takes its parts one after the other and adds up their
    gradients: for a batch that does not fit the memory, or so that several processes do as one would."""
    latent_dim: int = 30
    hidden: tuple[int, ...] = (1000, 500, 250)
    activation: Activation = "relu"
    preset: Preset | None = None
    """``"doersch"``: the network of the tutorial's code, its initial weights and its solver
    (:func:`fastvae.training.solver.make_optimizer`)."""
    likelihood: LikelihoodName | None = None
    """Distribution of each number of a row given z (:class:`fastvae.models.VAE`). None is binomial for scikit-learn's
    digits, whose pixels are counts of 0 to 16, and Bernoulli for all other data, for binary pixels and where a column
    is the condition."""
    total: int | None = None
    """Trials of the binomial likelihood, the largest count that is possible. None is 16 for the digits and 255 for the
    other published data sets; other data need it."""
    conv_width: int = 32
    """Channels of the finest level of the convolutional network that has residual blocks
    (:func:`fastvae.models.convolutional`)."""
    conv_depth: int = 1
    """Residual blocks on each level of the convolutional network."""
    conv_norm: Norm = "group"
    """Normalisation in the convolutional network's blocks."""
    sigma: float = 0.25
    """Standard deviation of the Gaussian likelihood or scale of the Laplace one, for pixels in [0, 1]. With 0.1 the
    digits took 46 nats of KL in 40 epochs and Gaussian samples of the prior fell apart, with 0.2 and 0.3 they are
    digits."""
    learn_sigma: bool = False
    """Whether the likelihood's sigma is a parameter, with ``sigma`` its first value."""
    beta: float = 1.0
    """Weight of the KL term in the loss. Reports are of the ELBO, with weight 1, whatever it is."""
    anneal: ScheduleKind | None = None
    """Schedule by which the weight of the KL term rises from 0 to ``beta`` in the first ``anneal_epochs``
    (:class:`fastvae.objectives.Schedule`)."""
    anneal_epochs: int = 10
    free_bits: float = 0.0
    """Nats that each dimension of z may carry without a gradient that drives it to fewer."""
    importance_samples: int = 1
    """Samples of z per image. With 2 or more, the importance-weighted bound (IWAE) is trained instead of the ELBO;
    reports are of the ELBO whatever it is."""
    gradient: Gradient = "iwae"
    """Estimator of the bound's gradient (:func:`fastvae.objectives.importance_weighted_loss`)."""
    binarize: Binarize = "none"
    """Targets: grey pixels, or ``"dynamic"``, drawn anew at every pass with probability x/255."""
    learning_rate: float = 1e-3
    """Learning rate of the Adam optimiser; its largest value where it changes during the run."""
    scale_learning_rate: Scaling | None = None
    """Rule by which the learning rate grows with the batch size; ``learning_rate`` is then the one of 100 images
    (:func:`fastvae.training.solver.scaled_learning_rate`)."""
    warmup_epochs: int = 0
    """Epochs over which the learning rate rises linearly from 0."""
    decay: Decay | None = None
    """``"cosine"``: after the warm-up the learning rate falls to 0 along half a cosine until the last of ``epochs``
    (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts)."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all parameters; a longer gradient is shortened to it (Pascanu et al. 2013,
    arXiv:1211.5063, sec. 3.2)."""
    amp: Amp | None = None
    """``"bf16"``: autocast of the training steps to bfloat16. The test after each epoch runs without it."""
    compile: bool = False
    """Whether to train through ``torch.compile``."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "labels", self.labels or None)
        choices = {
            "model": ModelName,
            "condition": Condition,
            "dataset": DatasetName,
            "layout": Layout,
            "binarize": Binarize,
            "gradient": Gradient,
            "conv_norm": Norm,
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                expected = ", ".join(get_args(choice))
                raise ValueError(f"{name} must be one of {expected}, not {getattr(self, name)!r}")
        for name, options in (
            ("likelihood", LikelihoodName),
            ("amp", Amp),
            ("anneal", ScheduleKind),
            ("decay", Decay),
            ("scale_learning_rate", Scaling),
        ):
            if getattr(self, name) not in (None, *get_args(options)):
                raise ValueError(f"{name} must be {', '.join(get_args(options))} or none, not {getattr(self, name)!r}")
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "latent_dim",
            "anneal_epochs",
            "importance_samples",
            "conv_width",
            "conv_depth",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must lie in 0 .. epochs ({self.epochs}), not {self.warmup_epochs}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must hold positive widths, not {self.hidden}")
        for name in ("sigma", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive finite number, not {value}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction must lie between 0 and 1, not {self.test_fraction}")
        if self.test_data is not None and self.data is None:
            raise ValueError("test_data needs data: published data sets have a test set of their own")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate must be at most batch_size, {self.batch_size}, not {self.accumulate}")
        if self.clip_norm is not None and not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm must be a positive finite number or none, not {self.clip_norm}")
        for name in ("beta", "free_bits"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number, 0 or more, not {value}")
        check_network(self.hidden, self.activation, self.preset)
        if self.network not in get_args(NetworkName) and ":" not in self.network:
            choices_of_network = ", ".join(get_args(NetworkName))
            raise ValueError(
                f"network must be one of {choices_of_network} or package.module:function, not {self.network!r}"
            )
        if self.network != "mlp" and self.model == "regressor":
            raise ValueError(f"a regressor has the network mlp, not {self.network}")
        if self.network != "mlp" and self.preset is not None:
            raise ValueError(f"preset {self.preset} is of the network mlp, not of {self.network}")
        if self.total is not None and self.total < 1:
            raise ValueError(f"total must be at least 1, not {self.total}")
        likelihood = LIKELIHOODS[self._likelihood(data_given=False)]
        likelihood.check_options(self.learn_sigma, self.total)
        if likelihood.values in ("counts", "levels"):
            for option, asked in (
                ("binarize dynamic", self.binarize == "dynamic"),
                ("condition column", self.completes),
            ):
                if asked:
                    raise ValueError(f"{option} draws binary pixels, of which the likelihood {likelihood.name} is not")
        if self.model == "vae" and self.condition != "column":
            raise ValueError(f"a vae has no condition: model must be cvae or regressor for {self.condition}")
        if self.model != "vae" and self.network == "mlp" and not self.hidden:
            raise ValueError(
                f"hidden must name at least one layer for a {self.model}: the condition joins a hidden layer"
            )
        if self.model == "regressor":
            for name, nothing in (("importance_samples", 1), ("beta", 1), ("free_bits", 0), ("anneal", None)):
                if getattr(self, name) != nothing:
                    raise ValueError(f"a regressor has no z: {name} must be {nothing}, not {getattr(self, name)}")
        if self.gradient != "iwae" and self.importance_samples == 1:
            raise ValueError(
                f"gradient {self.gradient} is of the importance-weighted bound: importance_samples must be 2 or more"
            )
        if self.importance_samples > 1 and (self.beta != 1 or self.free_bits or self.anneal):
            raise ValueError("beta, anneal and free_bits weigh the ELBO: importance_samples must be 1 for them")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0 .. 2^63 - 1, not {self.seed}")

    @property
    def data_name(self) -> str:
        """What the data are called: the data set, or the path of other data."""
        return self.dataset if self.data is None else self.data

    @property
    def completes(self) -> bool:
        """Whether the model completes images of which a column is known."""
        return self.model != "vae" and self.condition == "column"

    @property
    def named_likelihood(self) -> LikelihoodName:
        """The likelihood, or the one that is meant where the field is None and no program gives the data."""
        return self._likelihood(data_given=False)

    def resolved(self, data_given: bool = False) -> TrainConfig:
        """The same with the likelihood, and the total, that are meant where the fields are None.

        Args:
            data_given: whether a program gives the data, so that those that are named here are not meant.

        Raises:
            ValueError: a total is needed.
        """
        likelihood, total = self._likelihood(data_given), self.total
        if LIKELIHOODS[likelihood].has_total and total is None:
            if data_given or self.data is not None:
                raise ValueError(f"likelihood {likelihood} needs total, the largest count that is possible in the data")
            total = largest_count(self.dataset)
        return replace(self, likelihood=likelihood, total=total)

    def _likelihood(self, data_given: bool) -> LikelihoodName:
        if self.likelihood is not None:
            return self.likelihood
        digits = self.dataset == "digits" and self.data is None and not data_given
        return "binomial" if digits and self.binarize == "none" and not self.completes else "bernoulli"

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> TrainConfig:
        """The configuration that a checkpoint was trained with.

        Raises:
            ValueError: its fields are not those of this version.
        """
        try:
            return cls(**checkpoint.train_config)
        except TypeError as error:
            raise ValueError(f"the checkpoint was trained by another version of fastvae: {error}") from None
