"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

CheckpointPath = Annotated[Path, typer.Argument(help="Folder of a run, or of one of its checkpoints.")]
DATA_DIR_HELP = "Folder of the data set's IDX files, or torchvision's root. The digits need no files."
DATA_DIR_DEFAULT = "$FASTVAE_DATA; without it, they are downloaded"
DataDir = Annotated[Path | None, typer.Option(help=DATA_DIR_HELP, show_default=DATA_DIR_DEFAULT)]
TRAINED_DATA_DIR_DEFAULT = "the folder that the model was trained from"
MAX_SEED = 2**63 - 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
