"""The pictures of known factors: that each factor is in the picture, and that a seed gives one set of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.sprites import BLOCK, FACTORS, HIGH, LOW, SHAPES, draw_factors, draw_images, write

SIZE = 64
COLUMN = {name: index for index, name in enumerate(FACTORS)}


@pytest.fixture(scope="module")
def factors() -> Tensor:
    return draw_factors(200, seed=0)


@pytest.fixture(scope="module")
def images(factors: Tensor) -> Tensor:
    return draw_images(factors, SIZE)


def coverage(factors: Tensor) -> Tensor:
    """The share of each pixel that the shape covers, ``[B, H, W]`` float64: red without texture, on black."""
    plain = factors.clone()
    plain[:, [COLUMN["texture"], COLUMN["hue"], COLUMN["background"]]] = 0
    return draw_images(plain, SIZE)[:, 0].double() / (255 * 0.95)


def test_a_seed_gives_one_set_of_files_whatever_the_count(tmp_path: Path) -> None:
    sets = {"first": (BLOCK + 3, 0), "same": (BLOCK + 3, 0), "longer": (2 * BLOCK, 0), "other": (BLOCK + 3, 1)}
    read = {}
    for name, (count, seed) in sets.items():
        write(tmp_path / f"{name}.npy", count, 16, seed)
        read[name] = [np.load(tmp_path / f"{name}{kind}.npy") for kind in ("", ".factors")]
        images, factors = read[name]
        assert (images.dtype, images.shape) == (np.uint8, (count, 3, 16, 16))
        assert (factors.dtype, factors.shape) == (np.float32, (count, len(FACTORS)))
    for kind in range(2):
        np.testing.assert_array_equal(read["same"][kind], read["first"][kind])
        np.testing.assert_array_equal(read["longer"][kind][: BLOCK + 3], read["first"][kind])
        assert (read["other"][kind] != read["first"][kind]).any()
    assert len(list(tmp_path.iterdir())) == 2 * len(sets)


def test_factors_fill_their_ranges_and_depend_on_none_of_the_others() -> None:
    factors = draw_factors(20_000, seed=3).double()
    whole = factors[:, :2]
    assert (whole == whole.floor()).all()
    assert (factors >= LOW).all()
    assert (factors <= HIGH).all()
    for column, levels in ((0, len(SHAPES)), (1, 2)):
        shares = torch.bincount(factors[:, column].long(), minlength=levels) / len(factors)
        torch.testing.assert_close(shares, torch.full((levels,), 1 / levels), rtol=0, atol=0.02)
    middle = ((factors[:, 2:].mean(0) - LOW[2:]) / (HIGH - LOW)[2:]).float()
    torch.testing.assert_close(middle, torch.full((6,), 0.5), rtol=0, atol=0.01)
    # The standard error of a correlation is 0.007.
    correlation = torch.corrcoef(factors.T) - torch.eye(len(FACTORS))
    assert correlation.abs().max() < 0.035


def test_area_and_centre_of_the_shape_are_its_factors(factors: Tensor) -> None:
    covered = coverage(factors)
    area = covered.sum((1, 2))
    radius = (area / math.pi).sqrt() / SIZE
    # The tips and notches of small stars are thinner than a pixel, and drawn a little too wide.
    torch.testing.assert_close(radius, factors[:, COLUMN["size"]].double(), rtol=0.02, atol=0)
    centres = (torch.arange(SIZE) + 0.5) / SIZE
    for name, dim in (("x", 1), ("y", 2)):
        centre = (covered.sum(dim) * centres).sum(1) / area
        torch.testing.assert_close(centre, factors[:, COLUMN[name]].double(), rtol=0, atol=0.25 / SIZE)


def test_shapes_never_touch_the_border(factors: Tensor) -> None:
    extreme = factors.clone()
    extreme[:, COLUMN["size"]] = HIGH[COLUMN["size"]]
    extreme[::2, COLUMN["x"]] = LOW[COLUMN["x"]]
    extreme[::3, COLUMN["y"]] = HIGH[COLUMN["y"]]
    covered = coverage(extreme)
    assert covered.sum() > 0
    for border in (covered[:, 0], covered[:, -1], covered[:, :, 0], covered[:, :, -1]):
        assert border.max() == 0


def test_background_and_hue_are_read_off_the_picture(factors: Tensor, images: Tensor) -> None:
    corner = images[:, :, 0, 0].float() / 255
    torch.testing.assert_close(corner, factors[:, COLUMN["background"], None].expand(-1, 3), rtol=0, atol=0.5 / 255)
    x, y = (factors[:, COLUMN[name]].mul(SIZE).long() for name in ("x", "y"))
    centre = images[torch.arange(len(images)), :, y, x].double() / 255
    plain = factors[:, COLUMN["texture"]] == 0
    high, low = centre.max(1).values, centre.min(1).values
    torch.testing.assert_close(high[plain], torch.full_like(high[plain], 0.95), rtol=0, atol=1 / 255)
    assert (high[~plain] < 0.6).all()
    red, green, blue = ((centre - low[:, None]) / (high - low)[:, None]).unbind(1)
    # The angle in the hexagon of colours is the hue; measured in a circle it is off by at most a hundredth.
    hue = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi)
    difference = (hue - factors[:, COLUMN["hue"]] + 0.5).remainder(1) - 0.5
    assert difference.abs().max() < 0.02


@pytest.mark.parametrize(("shape", "period"), [(0, 180), (1, 120), (2, 90), (3, 72)])
def test_rotation_turns_by_a_share_of_the_shape_s_symmetry(shape: int, period: int) -> None:
    """A rotation by 90 degrees must give the picture turned by 90 degrees, which maps pixels onto pixels."""
    factors = torch.tensor([[shape, 1, 0.3, 0.18, 0.5, 0.5, 0.1, 0.4]]).repeat(3, 1)
    factors[1, COLUMN["rotation"]] += 90 / period
    factors[2, COLUMN["rotation"]] += 1
    first, quarter, whole = draw_images(factors, SIZE).int()
    assert (whole - first).abs().max() <= 1
    # Clockwise, as y grows downwards.
    assert (quarter - first.rot90(-1, (1, 2))).abs().max() <= 1
