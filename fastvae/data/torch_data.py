"""Data from other programs: ``torch.utils.data.Dataset`` and ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset


class TorchData:
    """A map-style ``torch.utils.data.Dataset``, or a ``DataLoader``, as training data.

    Args:
        source: the data set or loader; items are rows ``[*E]`` or pairs of a row and its label.
        workers: number of processes that make the items of a ``Dataset`` ahead. With 0, a resumed run repeats bitwise
            what items draw from torch's generator (augmentation). With workers, other numbers are drawn after a run was
            interrupted within an epoch.
        name: name of the data in errors.

    Raises:
        ValueError: there is no length, there are no items or no full batch, or an item is not a tensor.
    """

    def __init__(self, source: Any, workers: int = 0, name: str = "the data") -> None:
        self.source, self.workers, self.name = source, workers, name
        counted = source
        if isinstance(source, DataLoader):
            # A sampler may give some of the rows, or some of them twice.
            counted = source.dataset if isinstance(source.dataset, IterableDataset) else source.sampler
        try:
            items = len(counted)
        except TypeError:
            raise ValueError(f"{name} has no length, by which a run counts its epochs") from None
        if items == 0:
            raise ValueError(f"{name} is empty")
        if isinstance(source, IterableDataset):
            raise ValueError(f"{name} is an IterableDataset, whose rows have no indices: give a DataLoader of it")
        if isinstance(source, DataLoader):
            if source.batch_size is None:
                raise ValueError(f"{name}: the DataLoader must have a batch_size")
            if source.drop_last:
                if items < source.batch_size:
                    raise ValueError(
                        f"{name}: the DataLoader with drop_last gives no batch: it has {items} rows, fewer than its "
                        f"batch_size of {source.batch_size}"
                    )
                items -= items % source.batch_size
            state = torch.get_rng_state()
            rows, self.labels = self.batch(self.next_of(iter(source)))
            torch.set_rng_state(state)  # a look at the data is no part of a run
        else:
            state = torch.get_rng_state()
            item = source[0]
            torch.set_rng_state(state)
            pair = isinstance(item, (tuple, list))
            row = item[0] if pair else item
            try:
                rows = torch.as_tensor(row).unsqueeze(0)
            except (TypeError, ValueError, RuntimeError):
                raise ValueError(
                    f"{name} gives {type(row).__name__}, expected tensors or pairs of a tensor and a label"
                ) from None
            self.labels = torch.zeros(1, dtype=torch.int64) if pair and len(item) > 1 else None
        self.shape, self.dtype = torch.Size([items, *rows.shape[1:]]), rows.dtype

    def __len__(self) -> int:
        """Number of rows in an epoch."""
        return self.shape[0]

    def batch(self, batch: Any, count: int | None = None) -> tuple[Tensor, Tensor | None]:
        """A loader's batch as rows and labels.

        Raises:
            ValueError: the batch is neither a tensor of rows nor a pair of rows and labels, or it does not have
                ``count`` rows.
        """
        pair = isinstance(batch, (tuple, list))
        rows, labels = (batch[0], batch[1] if len(batch) > 1 else None) if pair else (batch, None)
        if not isinstance(rows, Tensor):
            raise ValueError(
                f"{self.name} gives {type(rows).__name__}, expected tensors or pairs of a tensor and a label"
            )
        if count is not None and len(rows) != count:
            raise ValueError(f"{self.name} gives a batch of {len(rows)} rows, but the run takes {count}")
        return rows, None if labels is None else torch.as_tensor(labels)

    def next_of(self, batches: Iterator[Any]) -> Any:
        """A loader's next batch. Raises ValueError if it gives fewer batches than its length says."""
        try:
            return next(batches)
        except StopIteration:
            raise ValueError(
                f"{self.name}: the DataLoader gives fewer rows than its length says, by which a run counts its epochs"
            ) from None

    def check_steps(self, batch_size: int, parts: int) -> None:
        """Raises ValueError if a ``DataLoader`` cannot serve steps of ``batch_size`` rows in ``parts`` parts."""
        if not isinstance(self.source, DataLoader):
            return
        if self.source.batch_size != batch_size:
            raise ValueError(
                f"{self.name}: the DataLoader's batch_size is {self.source.batch_size}, the run's {batch_size}"
            )
        if parts > 1:
            raise ValueError(
                f"{self.name}: a DataLoader serves one process and whole batches: give its Dataset instead"
            )

    def all(self) -> tuple[Tensor, Tensor | None]:
        """All rows and their labels, in memory."""
        source = self.source
        if not isinstance(source, DataLoader):
            source = DataLoader(source, batch_size=256)
        rows, labels = zip(*(self.batch(batch) for batch in source), strict=True)
        return torch.cat(rows), None if labels[0] is None else torch.cat(labels)
