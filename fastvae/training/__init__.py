"""Training runs: what they are made of, how they stop and how they go on."""

from fastvae.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastvae.training.config import TrainConfig
from fastvae.training.loop import (
    CHECKPOINT,
    PICTURES,
    Progress,
    TrainingError,
    TrainResult,
    saved_config,
    train,
)

__all__ = [
    "CHECKPOINT",
    "PICTURES",
    "Checkpoint",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "load_checkpoint",
    "save_checkpoint",
    "saved_config",
    "train",
]
