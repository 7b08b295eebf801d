"""The configuration of a training run."""

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
    """The configuration of a run. Together with the machine and its number of threads it determines every weight.

    Raises:
        ValueError: a value is out of range, or contradicts another one; the message names the field.
    """

    model: ModelName = "vae"
    """Model to train; a ``"cvae"`` or ``"regressor"`` is given a condition."""
    condition: Condition = "column"
    """What a cvae or regressor is given: one column of an image, of which it completes the rest
    (:func:`fastvae.data.split_column`), or the image's label."""
    dataset: DatasetName = "digits"
    """Published data set to train on."""
    data_dir: str | None = None
    """Folder of the data set's files, the ``root`` of :func:`fastvae.data.load`."""
    data: str | None = None
    """File or folder of your own data, which replace ``dataset`` (:meth:`fastvae.data.Dataset.from_files`)."""
    test_data: str | None = None
    """File or folder of the test set of ``data``. None for the test set in ``data`` or, without one, for some of the
    rows, which are set aside."""
    labels: str | None = None
    """Name of the labels of ``data``: a column of a table, or an array of a file with several arrays. An empty name
    counts as None."""
    test_fraction: float = 0.1
    """Fraction of the rows of ``data`` that is set aside for testing, the same rows in every run."""
    layout: Layout = "auto"
    """Whether images in arrays of 4 dimensions have their channels first, ``"chw"``, or last, ``"hwc"``. ``"auto"``
    decides by the sizes."""
    network: str = "mlp"
    """Networks of a vae or cvae: ``"mlp"``; ``"conv"``, residual convolutions; or ``"package.module:function"``, which
    is called with the data's shape and ``latent_dim`` and returns an encoder and a decoder."""
    epochs: int = 100
    """Passes through the training set."""
    batch_size: int = 100
    """Images per step, counted over all processes."""
    accumulate: int = 1
    """Number of parts into which a batch is split, each with its own noise. A process takes its parts one after the
    other and adds up their gradients. This trains with batches that do not fit into memory, and lets several processes
    compute what one process would."""
    latent_dim: int = 30
    """Number of dimensions of the code z."""
    hidden: tuple[int, ...] = (1000, 500, 250)
    """Widths of the MLP encoder's hidden layers; the decoder has the same in reverse."""
    activation: Activation = "relu"
    """Activation of the MLP's hidden layers."""
    preset: Preset | None = None
    """``"doersch"`` for the network, the initial weights and the solver of the tutorial's code
    (:func:`fastvae.training.solver.make_optimizer`)."""
    likelihood: LikelihoodName | None = None
    """Distribution of each number of a row given z (:class:`fastvae.models.VAE`). None means binomial for
    scikit-learn's digits, whose pixels are counts of 0 to 16, and Bernoulli for all other data, for binary pixels and
    if the condition is a column."""
    total: int | None = None
    """Trials of the binomial likelihood, the largest count that is possible. None means 16 for the digits and 255 for
    the other published data sets; a binomial likelihood of other data needs a total."""
    conv_width: int = 32
    """Channels of the finest level of the convolutional network that has residual blocks
    (:func:`fastvae.models.convolutional`)."""
    conv_depth: int = 1
    """Residual blocks on each level of the convolutional network."""
    conv_norm: Norm = "group"
    """Normalisation in the convolutional network's blocks."""
    sigma: float = 0.25
    """Standard deviation of the Gaussian likelihood or scale of the Laplace one, for pixels in [0, 1]. With a Gaussian
    likelihood and 0.1, the digits took 46 nats of KL in 40 epochs and samples of the prior fell apart; with 0.2 and 0.3
    the samples are digits."""
    learn_sigma: bool = False
    """Whether the likelihood's sigma is a parameter whose initial value is ``sigma``."""
    beta: float = 1.0
    """Weight of the KL term in the loss. Reports always give the ELBO, whose weight is 1."""
    anneal: ScheduleKind | None = None
    """Schedule by which the weight of the KL term rises from 0 to ``beta`` in the first ``anneal_epochs``
    (:class:`fastvae.objectives.Schedule`)."""
    anneal_epochs: int = 10
    """Epochs over which ``anneal`` raises the weight of the KL term."""
    free_bits: float = 0.0
    """Nats that each dimension of z may carry without a gradient that reduces them."""
    importance_samples: int = 1
    """Samples of z per image. With 2 or more, the importance-weighted bound (IWAE) is trained instead of the ELBO.
    Reports always give the ELBO."""
    gradient: Gradient = "iwae"
    """Estimator of the gradient of the importance-weighted bound
    (:func:`fastvae.objectives.importance_weighted_loss`)."""
    binarize: Binarize = "none"
    """Whether targets are grey pixels, ``"none"``, or binary ones drawn anew in every pass with probability x/255,
    ``"dynamic"``."""
    learning_rate: float = 1e-3
    """Learning rate of the Adam optimiser, or its largest value if it changes during the run."""
    scale_learning_rate: Scaling | None = None
    """Rule by which the learning rate grows with the batch size; ``learning_rate`` is then the one of 100 images
    (:func:`fastvae.training.solver.scaled_learning_rate`)."""
    warmup_epochs: int = 0
    """Epochs over which the learning rate rises linearly from 0."""
    decay: Decay | None = None
    """``"cosine"`` lets the learning rate fall to 0 along half a cosine, from the warm-up to the last of ``epochs``
    (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts)."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all parameters; a longer gradient is shortened to it (Pascanu et al. 2013,
    arXiv:1211.5063, sec. 3.2)."""
    amp: Amp | None = None
    """``"bf16"`` autocasts the training steps to bfloat16. The test after each epoch runs without autocast."""
    compile: bool = False
    """Whether to train through ``torch.compile``."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the images."""

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
            raise ValueError(f"preset {self.preset} belongs to the network mlp, not to {self.network}")
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
                    raise ValueError(f"{option} draws binary pixels, which do not fit the likelihood {likelihood.name}")
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
                f"gradient {self.gradient} needs the importance-weighted bound: importance_samples must be 2 or more"
            )
        if self.importance_samples > 1 and (self.beta != 1 or self.free_bits or self.anneal):
            raise ValueError("beta, anneal and free_bits weigh the ELBO: importance_samples must be 1 for them")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0 .. 2^63 - 1, not {self.seed}")

    @property
    def data_name(self) -> str:
        """The name of the data: the published data set, or the path of other data."""
        return self.dataset if self.data is None else self.data

    @property
    def completes(self) -> bool:
        """Whether the model completes images given one of their columns."""
        return self.model != "vae" and self.condition == "column"

    @property
    def named_likelihood(self) -> LikelihoodName:
        """The likelihood, or the one that None stands for if no program gives the data."""
        return self._likelihood(data_given=False)

    def resolved(self, data_given: bool = False) -> TrainConfig:
        """The configuration with the likelihood and the total that None stands for.

        Args:
            data_given: whether a program gives the data, so that the fields that name data do not count.

        Raises:
            ValueError: the likelihood needs a total and none is given.
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
            ValueError: the checkpoint's fields are not those of this version.
        """
        try:
            return cls(**checkpoint.train_config)
        except TypeError as error:
            raise ValueError(f"the checkpoint was trained by another version of fastvae: {error}") from None
