"""A training step as a CUDA graph: the host passes the indices of the images, and the GPU replays the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]

# Steps before the capture: they make the optimiser's state and load what is loaded at a first call.
_WARM_UP = 3


def capture_cuda_graph(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A function that replays ``function``, and the tensor that holds the result after each replay."""
    graph = torch.cuda.CUDAGraph()
    # Another thread may be copying a checkpoint from the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class CapturedStep:
    """A step that runs eagerly a few times and is then captured and replayed.

    Everything that changes from step to step must lie in tensors that are written before the call, or in the state of a
    generator that the graph reads at each replay.

    Args:
        step: a function from the indices of a batch to a tensor, which reads nothing back from the GPU.
        size: size of the batches whose step is captured; batches of other sizes run eagerly.
        device: a GPU.
        capture: replaces :func:`capture_cuda_graph` in tests on a CPU.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        size: int,
        device: torch.device,
        capture: Capture = capture_cuda_graph,
    ) -> None:
        self._step, self._capture = step, capture
        self._batch = torch.zeros(size, dtype=torch.int64, device=device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._run = 0
        self._captured: tuple[Callable[[], object], Tensor] | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        if len(batch) != len(self._batch):
            return self._step(batch)
        if self._run < _WARM_UP:
            self._run += 1
            return self._aside(batch)
        self._batch.copy_(batch)
        if self._captured is None:
            self._captured = self._capture(lambda: self._step(self._batch))
        replay, result = self._captured
        replay()
        return result.clone()

    def _aside(self, batch: Tensor) -> Tensor:
        """On a stream of its own, as a capture will be: autograd keeps to the stream that it first saw."""
        if self._stream is None:
            return self._step(batch)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result
