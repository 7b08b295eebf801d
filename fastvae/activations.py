"""The peak memory of a computation, whatever modules and functions it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(compute: Callable[[], object]) -> int:
    """The largest number of bytes that tensors made in a computation hold at one time.

    Every result of an operator counts until its memory is freed, including residuals of skip connections. Scratch
    memory within operators does not count.

    Args:
        compute: the computation, which is called once, without gradients.
    """
    mode = _Peak()
    with torch.no_grad(), mode:
        compute()
    return mode.peak


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: set[int] = set()
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {key for key, _ in map(_storage, tree_leaves((args, kwargs))) if key is not None}
        for key, storage in map(_storage, tree_leaves(result)):
            # A view, or a result in place, is memory that was there.
            if key is None or key in given or key in self.held:
                continue
            size = storage.nbytes()
            self.held.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            finalize(storage, self._free, key, size)
        return result

    def _free(self, key: int, size: int) -> None:
        self.held.discard(key)
        self.bytes -= size


def _storage(value: object) -> tuple[int | None, Any]:
    if not isinstance(value, Tensor):
        return None, None
    storage = value.untyped_storage()
    return storage._cdata, storage
