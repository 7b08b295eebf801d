"""The command ``fastvae pack``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fastvae.cli.train import InterruptedRunError
from fastvae.data.pack import Channels, Fit, named, pack
from fastvae.display import progress_bar


def pack_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of images, which is searched with its subfolders, or a .txt file with one path a line. "
            "Subfolders of the folder are the images' classes."
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="File to write, NAME.npy. Class labels, if there are any, go to NAME.labels.npy beside it."
        ),
    ],
    size: Annotated[
        str, typer.Option(help="Size of the packed images in pixels: 64 for squares, or height x width such as 64x48.")
    ],
    channels: Annotated[
        Channels, typer.Option(help="Colours of the packed images; auto is grey if every image is grey, else rgb.")
    ] = "auto",
    fit: Annotated[
        Fit,
        typer.Option(
            help="What happens to images of another shape: crop keeps the centre, stretch distorts, pad adds black "
            "borders."
        ),
    ] = "crop",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files that cannot be read instead of stopping with an error.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file OUT if it exists.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that decode images.", show_default="one for each available core"),
    ] = None,
) -> None:
    """Pack images of any size and format into one array that trains memory-mapped.

    An interrupted command goes on where it stopped when it is given again.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", size)
    if match is None:
        raise typer.BadParameter(f"{size!r} is not a size such as 64 or 64x48", param_hint="--size")
    height, width = int(match[1]), int(match[2] or match[1])
    if not (height and width):
        raise typer.BadParameter(f"{size} is not a size: it must be at least 1", param_hint="--size")
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; to replace it, add --overwrite", param_hint="OUT")
    try:
        with progress_bar("packing") as show:
            packed = pack(
                source,
                out,
                size=(height, width),
                channels=channels,
                fit=fit,
                skip_bad=skip_bad,
                overwrite=overwrite,
                workers=workers,
                progress=lambda done, total, bad: show(
                    done, total, f"{done:,} of {total:,} images" + (f", {bad:,} unreadable" if bad else "")
                ),
            )
    except KeyboardInterrupt:
        raise InterruptedRunError("; the same command goes on where it stopped") from None
    if packed.skipped:
        print(f"left out {len(packed.skipped)} files: {named(packed.skipped)}")
    classes = f" of {len(packed.classes)} classes" if packed.classes else ""
    print(f"{packed.images} images [{', '.join(map(str, packed.shape))}]{classes} in {out}")
