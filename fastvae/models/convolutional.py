"""Residual convolutional networks for images: an encoder, and a decoder that mirrors it.

Shapes: B is the batch, E = ``data_shape`` is ``[C, H, W]`` or ``[H, W]`` (one channel), L = ``latent_dim``.

Each level halves both sides of the image, rounded up, until the shorter side is 4 to 7. The last level and levels whose
longer side is at most 16 have residual blocks; finer levels are passed by one strided convolution each. With a block at
28 x 28 too, a step with images of that size takes about six times as long on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastvae.models.networks import one_of, sizes

Norm = Literal["group", "batch", "none"]

_SHORTEST, _LONGEST = 8, 256  # sides of an image
_COARSEST = 7  # a level whose shorter side is no longer is the last
_BLOCKS_FROM = 16  # the longer side of the finest level with residual blocks
_FEWEST_CHANNELS = 8  # of the levels finer than that, unless ``width`` is less
_MOST_CHANNELS = 8  # in widths
_GAIN = 1.68  # of a standard normal's SiLU, whose mean square is 0.355: a convolution then keeps the variance
_FIRST_IMAGE = 0.1  # deviation of a new decoder's pixels: noise of deviation 1 takes long to unlearn


def convolutional(
    data_shape: int | Sequence[int],
    latent_dim: int,
    *,
    width: int = 32,
    depth: int = 1,
    norm: Norm = "group",
    condition: int = 0,
    outputs: int = 1,
) -> tuple[nn.Module, nn.Module]:
    """A convolutional encoder and decoder, for ``VAE(data_shape, latent_dim=..., encoder=..., decoder=...)``.

    Args:
        data_shape: E, ``(C, H, W)`` or ``(H, W)``; H and W from 8 to 256, also odd or different from each other.
        latent_dim: L.
        width: channels of the finest level that has residual blocks. Their number doubles at each coarser level, up to
            8 times ``width``, and halves at each finer one.
        depth: residual blocks per level.
        norm: ``"group"`` (group normalisation), ``"batch"`` (batch normalisation) or ``"none"``.
        condition: number of values in a condition, for networks of a ``CVAE``. The encoder adds a linear function of
            the condition to the channels of each level; the decoder takes the condition concatenated to z.
        outputs: number of values that the decoder gives for each pixel and channel.

    Returns:
        The encoder, from ``[B, *E]`` to ``[B, 2L]``, mu and then logvar; and the decoder, from ``[B, L]`` to
        ``[B, *E]``, or to ``[B, outputs, *E]`` for several ``outputs``. With a condition both take it, ``[B, *C]``, as
        a second argument. Initially logvar is 0, the residual branches add nothing, and the decoder gives about 0 for
        each pixel.

    Raises:
        ValueError: ``data_shape`` does not have two or three dimensions, a side is below 8 or above 256, a size is not
            a positive integer, ``norm`` is unknown.

    Source: residual blocks with the activation first: He et al. 2016 (arXiv:1603.05027), fig. 4e; branches that start
    at zero: Goyal et al. 2017 (arXiv:1706.02677), sec. 5.1; upsampling by PixelShuffle: Shi et al. 2016
    (arXiv:1609.05158), eq. 3 and 4; its initial weights: Aitken et al. 2017 (arXiv:1707.02937), sec. 3.
    """
    event = sizes("data_shape", data_shape)
    (latent_dim,), (width,), (depth,) = (
        sizes(name, size) for name, size in (("latent_dim", latent_dim), ("width", width), ("depth", depth))
    )
    one_of("norm", norm, get_args(Norm))
    if len(event) not in (2, 3):
        raise ValueError(f"data_shape must be (C, H, W) or (H, W) for convolutional networks, not {event}")
    for side in event[-2:]:
        if not _SHORTEST <= side <= _LONGEST:
            raise ValueError(f"convolutional networks take sides of {_SHORTEST} to {_LONGEST}, not {side}")
    plan = _Plan(event, width)
    return (
        ConvolutionalEncoder(plan, latent_dim, depth, norm, condition),
        ConvolutionalDecoder(plan, latent_dim, depth, norm, condition, outputs),
    )


class _Plan:
    """Sizes and channels of the levels, which the encoder goes down and the decoder up."""

    def __init__(self, event: tuple[int, ...], width: int) -> None:
        self.event = event
        self.image = event if len(event) == 3 else (1, *event)
        self.sizes = [self.image[1:]]
        while min(self.sizes[-1]) > _COARSEST:
            self.sizes.append(tuple(-(-side // 2) for side in self.sizes[-1]))
        self.last = len(self.sizes) - 1
        self.finest = min(self.last, sum(max(size) > _BLOCKS_FROM for size in self.sizes))
        """The first level that has blocks."""
        few = min(width, _FEWEST_CHANNELS)
        self.channels = [
            width * min(2 ** (level - self.finest), _MOST_CHANNELS)
            if level >= self.finest
            else max(width >> (self.finest - level), few)
            for level in range(self.last + 1)
        ]


class ConvolutionalEncoder(nn.Module):
    """Maps ``[B, *E]``, and a condition ``[B, *C]`` if it takes one, to ``[B, 2L]``, mu and then logvar."""

    def __init__(self, plan: _Plan, latent_dim: int, depth: int, norm: Norm, condition: int) -> None:
        super().__init__()
        self.image = plan.image
        self.levels = nn.ModuleList()
        channels = plan.image[0]
        # A finest level without blocks is never computed: the first convolution strides past it.
        for level in range(min(plan.finest, 1), plan.last + 1):
            first, outputs = not len(self.levels), plan.channels[level]
            entry = _convolution(channels, outputs, 3, norm, stride=2 if level else 1)
            blocks = depth if level >= plan.finest else 0
            before = nn.Sequential() if first else _activated(channels, norm)
            self.levels.append(_Level(before.append(entry), outputs, blocks, norm, condition))
            channels = outputs
        moments = nn.Linear(channels * math.prod(plan.sizes[-1]), 2 * latent_dim)
        self.head = _activated(channels, norm).extend([nn.Flatten(), moments])
        # The code carries something from the first step on, with noise of deviation 1 whatever the image.
        _initialise(moments, gain=1.0)
        nn.init.zeros_(moments.weight[latent_dim:])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = x.reshape(len(x), *self.image)
        for level in self.levels:
            h = level(h, condition)
        moments: Tensor = self.head(h)
        return moments


class ConvolutionalDecoder(nn.Module):
    """Maps ``[B, L]``, and a condition ``[B, *C]`` if it takes one, to ``[B, *E]`` or ``[B, outputs, *E]``."""

    def __init__(self, plan: _Plan, latent_dim: int, depth: int, norm: Norm, condition: int, outputs: int) -> None:
        super().__init__()
        self.event = plan.event if outputs == 1 else (outputs, *plan.event)
        image_channels = outputs * plan.image[0]
        channels = plan.channels[-1]
        first = nn.Linear(latent_dim + condition, channels * math.prod(plan.sizes[-1]))
        _initialise(first, gain=1.0)
        self.first = nn.Sequential(first, nn.Unflatten(1, (channels, *plan.sizes[-1])))
        self.levels = nn.ModuleList([_Level(nn.Sequential(), channels, depth, norm)])
        for level in range(plan.last - 1, min(plan.finest, 1) - 1, -1):
            # Where blocks follow, they see to the neighbours.
            kernel, blocks = (1, depth) if level >= plan.finest else (3, 0)
            up = _Upsample(channels, plan.channels[level], kernel, plan.sizes[level], norm)
            self.levels.append(_Level(_activated(channels, norm).append(up), plan.channels[level], blocks, norm))
            channels = plan.channels[level]
        if plan.finest:
            pixels: nn.Module = _Upsample(channels, image_channels, 3, plan.sizes[0], "none")
        else:
            pixels = _convolution(channels, image_channels, 3, "none")
        with torch.no_grad():
            for parameter in pixels.parameters():
                parameter.mul_(_FIRST_IMAGE)
        self.last = _activated(channels, norm).append(pixels)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(z if condition is None else torch.cat([z, condition.flatten(1)], 1))
        for level in self.levels:
            h = level(h)
        pixels: Tensor = self.last(h)
        return pixels.reshape(len(z), *self.event)


class _Level(nn.Module):
    """What leads into a level, what the condition adds there, and the level's residual blocks."""

    def __init__(self, entry: nn.Module, channels: int, blocks: int, norm: Norm, condition: int = 0) -> None:
        super().__init__()
        self.entry = entry
        # Batch normalisation, which follows wherever this goes, subtracts what a bias adds.
        self.condition = nn.Linear(condition, channels, bias=norm != "batch") if condition else None
        self.blocks = nn.Sequential(*(_Block(channels, norm) for _ in range(blocks)))

    def forward(self, h: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.entry(h)
        if self.condition is not None:
            assert condition is not None
            h = h + self.condition(condition.flatten(1))[..., None, None]
        result: Tensor = self.blocks(h)
        return result


class _Block(nn.Module):
    """``h + branch(h)``: two 3 x 3 convolutions, the last of which starts at zero."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        last = _convolution(channels, channels, 3, norm)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(
            *_activated(channels, norm),
            _convolution(channels, channels, 3, norm),
            *_activated(channels, norm),
            last,
        )

    def forward(self, h: Tensor) -> Tensor:
        branch: Tensor = self.branch(h)
        return h + branch


class _Upsample(nn.Module):
    """A convolution to four times the channels, which become 2 x 2 pixels; then cut to ``size``, odd ones by one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, size: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        self.size = size
        self.convolution = _convolution(inputs, 4 * outputs, kernel, norm)
        # The four pixels start equal: with weights of their own, they leave a grid that training is slow to remove.
        with torch.no_grad():
            weight = self.convolution.weight
            weight.copy_(weight[::4].repeat_interleave(4, 0))
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, h: Tensor) -> Tensor:
        height, width = self.size
        pixels: Tensor = self.shuffle(self.convolution(h))
        return pixels[..., :height, :width]


def _activated(channels: int, norm: Norm) -> nn.Sequential:
    """What comes before a convolution."""
    if norm == "group":
        # At least four channels each: a group of a single one would drop its mean.
        groups = max(n for n in (1, 2, 4, 8) if n == 1 or (channels % n == 0 and channels >= 4 * n))
        return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU())
    if norm == "batch":
        return nn.Sequential(nn.BatchNorm2d(channels), nn.SiLU())
    return nn.Sequential(nn.SiLU())


def _convolution(inputs: int, outputs: int, kernel: int, norm: Norm, stride: int = 1) -> nn.Conv2d:
    # Batch normalisation subtracts what a bias adds.
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=norm != "batch")
    _initialise(layer, gain=_GAIN)
    return layer


def _initialise(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
