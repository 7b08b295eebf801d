"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

CheckpointPath = Annotated[Path, typer.Argument(help="The folder of a run, or of one of its checkpoints.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the IDX files; digits need none.", show_default="$FASTVAE_DATA, or else they are downloaded"
    ),
]
TrainedDataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the IDX files, where images of theirs are needed.",
        show_default="that of the training, or as for train",
    ),
]
MAX_SEED = 2**63 - 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
