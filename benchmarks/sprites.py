"""Colour pictures drawn from known factors, to train large networks on and to find out what a code has learnt.

    python -m benchmarks.sprites OUT.npy [--count 100000] [--size 64] [--seed 0] [--grid PICTURE.png]

Each picture has one shape on a grey background. OUT.npy gets the images, uint8 ``[N, 3, H, W]``, and OUT.factors.npy
the factors that they were drawn from, float32 ``[N, 8]``, whose columns are independent and uniform:

| column | factor | values |
|---|---|---|
| 0 | shape | 0 ellipse, 1 triangle, 2 square, 3 star |
| 1 | texture | 0 plain, 1 with a darker core |
| 2 | hue | [0, 1): red, yellow, green, cyan, blue, magenta |
| 3 | size | the radius of the disc of the same area, as a share of the image's width |
| 4 | x | the centre from the left, as a share of the width |
| 5 | y | the centre from the top, as a share of the height |
| 6 | rotation | [0, 1): the share of the smallest turn that maps the shape onto itself |
| 7 | background | its brightness |

The first images are the same whatever the count. The pictures follow dSprites (Matthey et al. 2017), which has one
colour and a grid of values.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvae.files import replacing

FACTORS = ("shape", "texture", "hue", "size", "x", "y", "rotation", "background")
SHAPES = ("ellipse", "triangle", "square", "star")
# The shapes lie within the image at any of these sizes, positions and rotations.
LOW = torch.tensor([0, 0, 0, 0.1, 0.31, 0.31, 0, 0.05])
HIGH = torch.tensor([len(SHAPES), 2, 1, 0.18, 0.69, 0.69, 1, 0.6])
WHOLE = 2  # the first factors are numbered

# Corners, and the radius of the corners or midpoints of edges between them, of those at radius 1. A row for each shape.
ELLIPSE = 0.55  # the short axis of the long one
CORNERS = torch.tensor([2.0, 3, 4, 5])
NOTCH = torch.tensor([ELLIPSE, math.cos(math.pi / 3), math.cos(math.pi / 4), 0.45])
CORE, CORE_SHADE = 0.5, 0.45
BLOCK = 64  # images that are drawn at a time: what they take stays in the cache


def draw_factors(count: int, seed: int) -> Tensor:
    """The factors of ``count`` images, ``[count, 8]`` float32."""
    unit = torch.from_numpy(np.random.default_rng(seed).random((count, len(FACTORS)), dtype=np.float32))
    factors = LOW + unit * (HIGH - LOW)
    # float32 may round a product up to its bound, which names no shape.
    factors[:, :WHOLE] = factors[:, :WHOLE].floor().minimum(HIGH[:WHOLE] - 1)
    return factors


def draw_images(factors: Tensor, size: int) -> Tensor:
    """Draw images of given factors.

    Args:
        factors: ``[B, 8]`` float32.
        size: H and W.

    Returns:
        uint8 ``[B, 3, H, W]``; edges are anti-aliased by the share of a pixel that lies inside.
    """
    columns = factors.view(len(factors), len(FACTORS), 1, 1).unbind(1)  # each [B, 1, 1]
    shape, texture, hue, radius, x, y, rotation, background = columns
    gauge, slope = _gauge(shape.long(), radius * size, x * size, y * size, rotation, size)
    inside, core = (((level - gauge) / slope + 0.5).clamp(0, 1) for level in (1, CORE))  # [B, H, W]
    wheel = torch.tensor([0.0, 4, 2]).view(3, 1, 1)
    colour = 0.95 - 0.8 * (
        1 - ((hue.unsqueeze(1) * 6 + wheel).remainder(6) - 3).abs().sub(1).clamp(0, 1)
    )  # [B, 3, 1, 1]
    shade = 1 - (1 - CORE_SHADE) * texture * core
    pixels = background.unsqueeze(1).lerp(colour * shade.unsqueeze(1), inside.unsqueeze(1))
    return pixels.mul_(255).round_().to(torch.uint8)


def _gauge(kind: Tensor, radius: Tensor, x: Tensor, y: Tensor, rotation: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How far each pixel's centre lies from the shape's, as a share of the way to its edge, and the slope of that.

    The arguments are ``[B, 1, 1]``, in pixels; the results ``[B, H, W]`` and what broadcasts to it. Between two corners
    the edge is a line: the angle is folded so that one line serves all of them.
    """
    corners, notch = CORNERS[kind], NOTCH[kind]
    half = math.pi / corners
    centres = torch.arange(size) + 0.5
    dx, dy = centres - x, centres.view(-1, 1) - y
    # A symmetry of a polygon turns it from corner to corner; that of an ellipse is half a turn, from end to end.
    angle = torch.atan2(dy, dx) - 2 * half * rotation
    distance = (dx.square() + dy.square()).sqrt()
    # Of an ellipse's axes, pi * a * b is the area; a polygon is 2 * corners triangles of height notch * sin(half).
    outer = radius * torch.where(kind == 0, 1 / notch, math.pi / (corners * notch * half.sin())).sqrt()
    inner = outer * notch
    # The ellipse: |p / axes| = 1, of slope |p / axes^2| / |p / axes|.
    u, v = distance * angle.cos() / outer, distance * angle.sin() / inner
    ellipse = (u.square() + v.square()).sqrt()
    steepness = ((u / outer).square() + (v / inner).square()).sqrt() / ellipse.clamp(min=1e-6)
    # The polygon: (a, b) is the normal of the line from (outer, 0) to inner * (cos half, sin half).
    folded = ((angle + half).remainder(2 * half) - half).abs()
    a, b = inner * half.sin(), outer - inner * half.cos()
    polygon = distance * (a * folded.cos() + b * folded.sin()) / (a * outer)
    flatness = (a.square() + b.square()).sqrt() / (a * outer)
    return torch.where(kind == 0, ellipse, polygon), torch.where(kind == 0, steepness, flatness)


def write(out: Path, count: int, size: int, seed: int) -> None:
    """Write the images to ``out`` and their factors beside it, each whole or not at all."""
    factors = draw_factors(count, seed)
    with replacing(out) as temporary:
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, 3, size, size))

        def draw(start: int) -> None:
            images[start : start + BLOCK] = draw_images(factors[start : start + BLOCK], size).numpy()

        # A block for each thread waits for no other, as the threads within an operator would on a shared machine.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(draw, range(0, count, BLOCK)))
        images.flush()
        with replacing(out.with_suffix(".factors.npy")) as beside:
            np.save(beside, factors.numpy())


def save_grid(images: Tensor, path: Path, columns: int = 10) -> None:
    """Save ``[N, 3, H, W]`` uint8 as one picture, with white between the images."""
    from matplotlib.image import imsave

    gap = 2
    framed = torch.nn.functional.pad(images, [gap] * 4, value=255)
    rows = [torch.cat(list(row), 2) for row in torch.split(framed, columns)]
    imsave(path, torch.cat(rows, 1).permute(1, 2, 0).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sprites", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="file of the images, .npy; that of the factors lies beside it")
    parser.add_argument("--count", type=int, default=100_000, help="number of images")
    parser.add_argument("--size", type=int, default=64, help="height and width of an image, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the factors")
    parser.add_argument("--grid", type=Path, help="PNG file that gets the first hundred images")
    arguments = parser.parse_args()
    if arguments.out.suffix != ".npy" or arguments.count < 1 or arguments.size < 1:
        parser.error("expected a name that ends in .npy, and a count and size of at least 1")
    torch.set_num_threads(1)
    started = time.perf_counter()
    write(arguments.out, arguments.count, arguments.size, arguments.seed)
    print(f"{arguments.count} images in {arguments.out}, {time.perf_counter() - started:.1f} s")
    if arguments.grid is not None:
        first = np.array(np.load(arguments.out, mmap_mode="r")[:100])
        save_grid(torch.from_numpy(first), arguments.grid)


if __name__ == "__main__":
    main()
