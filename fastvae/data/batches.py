"""Batches of a data set in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastvae.data.rows import Data, Rows, take
from fastvae.ops import binarize


class Batches:
    """Batches of a data set, on the device of the data set; each ``iter()`` is one epoch.

    A batch is ``[B, *E]``, of the dtype of ``images``, or bool if ``binarize`` is set.

    Args:
        images: ``[N, *E]``, which is never copied as a whole.
        batch_size: images per batch; the last batch of an epoch holds the remaining images.
        shuffle: a generator that draws a new order for each epoch. With a CPU generator, one seed gives one order on
            every device. Without ``shuffle`` the batches are views of ``images`` in their own order.
        binarize: whether to draw each pixel anew at every pass, 1 with probability x/255.
        noise: the source of those draws, by default torch's own.

    Raises:
        ValueError: there are no images, or the batch size is below 1.

    Source: binarisation at every draw as in Burda et al. 2015 (arXiv:1509.00519), sec. 5.
    """

    def __init__(
        self,
        images: Data,
        batch_size: int,
        *,
        shuffle: torch.Generator | None = None,
        binarize: bool = False,
        noise: torch.Generator | None = None,
    ) -> None:
        if len(images.shape) == 0 or len(images) == 0:
            raise ValueError(f"images must be [N, *E], N > 0, not {list(images.shape)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.images = images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.binarize = binarize
        self.noise = noise

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.shuffle is None:
            for start in range(0, len(self.images), self.batch_size):
                batch = self.images[start : start + self.batch_size]
                yield binarize(batch, generator=self.noise) if self.binarize else batch
            return
        order = torch.randperm(len(self.images), generator=self.shuffle, device=self.shuffle.device)
        for index in torch.split(order.to(self.images.device), self.batch_size):
            yield drawn(self.images, index, torch.bool, self.noise) if self.binarize else take(self.images, index)


def drawn(data: Data, index: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """Binary draws of the rows ``index``, int64 ``[B]``: each element is 1 with the probability that the data hold.

    Returns:
        ``[B, *E]`` of ``dtype``, bool or floating point (:func:`fastvae.binarize`).
    """
    if isinstance(data, Rows):
        return binarize(data.take(index), dtype=dtype, generator=generator)
    return binarize(data, index=index, dtype=dtype, generator=generator)
