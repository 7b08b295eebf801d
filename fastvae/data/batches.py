"""Batches of a data set that lies in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastvae.ops import binarize


class Batches:
    """Batches of a uint8 tensor of images, on the device where the tensor is; each ``iter()`` is one epoch.

    Args:
        images: ``[N, *E]`` uint8. It is never copied as a whole.
        batch_size: images per batch; the last batch of an epoch holds what is left.
        shuffle: draws a new order for each epoch. A CPU generator, so that one seed gives one order on every
            device. Without it the batches are views of ``images`` in their own order.
        binarize: whether to draw each pixel anew, 1 with probability x/255, at every pass.
        noise: the source of those draws, by default torch's own.

    Yields:
        ``[B, *E]``: uint8, or bool where ``binarize`` is set.

    Raises:
        ValueError: no images, images that are not uint8, or a batch size below 1.

    Source: binarisation at every draw as in Burda et al. 2015 (arXiv:1509.00519), sec. 5.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        *,
        shuffle: torch.Generator | None = None,
        binarize: bool = False,
        noise: torch.Generator | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() == 0 or len(images) == 0:
            raise ValueError(f"images must be uint8 [N, *E], N > 0, not {images.dtype} {list(images.shape)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.images = images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.binarize = binarize
        self.noise = noise

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.shuffle is None:
            for batch in torch.split(self.images, self.batch_size):
                yield binarize(batch, generator=self.noise) if self.binarize else batch
            return
        order = torch.randperm(len(self.images), generator=self.shuffle, device=self.shuffle.device).to(
            self.images.device
        )
        for index in torch.split(order, self.batch_size):
            if self.binarize:
                yield binarize(self.images, index=index, generator=self.noise)
            else:
                yield self.images.index_select(0, index)
