"""The command ``fastvae experiment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastvae.cli.options import MAX_SEED, DataDir
from fastvae.display import progress_bar


def experiment_command(
    name: Annotated[str, typer.Argument(help="Name of the experiment, or the word list, which prints all names.")],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Train small networks on scikit-learn's digits, which takes less than a minute."),
    ] = False,
    data_dir: DataDir = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each training.", show_default="the experiment's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the weights, the noise and the samples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that gets the picture, its figures and its training runs.", show_default="runs/NAME"),
    ] = None,
) -> None:
    """Draw a figure of the tutorial, or show one of its claims.

    An experiment that was interrupted goes on when the same command is given again.
    """
    from fastvae import experiments

    if name == "list":
        width = max(map(len, experiments.EXPERIMENTS))
        for each, function in experiments.EXPERIMENTS.items():
            print(f"{each:<{width}}  {(function.__doc__ or '').splitlines()[0]}")
        return
    out = out or Path("runs") / (f"{name}-quick" if quick else name)
    with progress_bar(name) as show:
        experiments.run(
            name,
            out,
            quick=quick,
            data_dir=None if data_dir is None else str(data_dir.absolute()),
            epochs=epochs,
            seed=seed,
            report=lambda text: show(0, None, text),
        )
    print(f"{out / name}.png, {out / name}.json")
