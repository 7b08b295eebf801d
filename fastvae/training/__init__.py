"""Training runs: their configuration, their checkpoints, how they stop and how they resume."""

from fastvae.training.batch_size import BatchSpeed, best_batch_size, measure_batch_sizes
from fastvae.training.checkpoint import CHECKPOINTS, Checkpoint, load_checkpoint
from fastvae.training.config import TrainConfig
from fastvae.training.config_file import read_config
from fastvae.training.distributed import StoppedError, TrainingError
from fastvae.training.folder import PICTURES, holds_run, saved_config
from fastvae.training.loop import Progress, TrainResult, train

__all__ = [
    "CHECKPOINTS",
    "PICTURES",
    "BatchSpeed",
    "Checkpoint",
    "Progress",
    "StoppedError",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "best_batch_size",
    "holds_run",
    "load_checkpoint",
    "measure_batch_sizes",
    "read_config",
    "saved_config",
    "train",
]
