"""What a training run is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fastvae.data import DatasetName
from fastvae.models.likelihood import LikelihoodName
from fastvae.training.checkpoint import Checkpoint

Amp = Literal["bf16"]
Binarize = Literal["none", "dynamic"]


@dataclass(frozen=True)
class TrainConfig:
    """What a run is. Together with the machine and its number of threads it fixes every weight.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    dataset: DatasetName = "digits"
    data_dir: str | None = None
    """As ``root`` of ``fastvae.data.load``."""
    epochs: int = 100
    batch_size: int = 100
    latent_dim: int = 30
    hidden: tuple[int, ...] = (1000, 500, 250)
    likelihood: LikelihoodName = "bernoulli"
    sigma: float = 0.25
    """Of the Gaussian likelihood, with pixels in [0, 1]. With 0.1 the digits took 46 nats of KL in 40 epochs and
    samples of the prior fell apart, with 0.2 and 0.3 they are digits."""
    beta: float = 1.0
    """Weight of the KL term; reports are of the ELBO, with weight 1, nevertheless."""
    binarize: Binarize = "none"
    """Targets: grey pixels, or ``"dynamic"``, drawn anew at every pass with probability x/255."""
    learning_rate: float = 1e-3
    """Of Adam."""
    amp: Amp | None = None
    """``"bf16"``: autocast of the training steps to bfloat16. The test after each epoch runs without it."""
    compile: bool = False
    """Whether to train through ``torch.compile``."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        choices = {"dataset": DatasetName, "likelihood": LikelihoodName, "binarize": Binarize}
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                expected = ", ".join(get_args(choice))
                raise ValueError(f"{name} must be one of {expected}, not {getattr(self, name)!r}")
        if self.amp not in (None, *get_args(Amp)):
            raise ValueError(f"amp must be {', '.join(get_args(Amp))} or none, not {self.amp!r}")
        for name in ("epochs", "batch_size", "latent_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must hold positive widths, not {self.hidden}")
        for name in ("sigma", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive finite number, not {value}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"beta must be a finite number, 0 or more, not {self.beta}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0 .. 2^63 - 1, not {self.seed}")

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
