"""The processes of a run: a single one, or those that torchrun starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fastvae import _build

T = TypeVar("T")


class TrainingError(RuntimeError):
    """The run cannot go on. Its last checkpoint is kept."""


class StoppedError(TrainingError):
    """The run was told to stop and has saved its position."""


@dataclass(frozen=True)
class World:
    """The processes that train one model, seen from this one."""

    rank: int
    """Number of this process, from 0."""
    size: int
    """Number of processes."""
    device: torch.device
    """Device of this process, for its model and images."""
    agreeing: dist.ProcessGroup | None = None
    """Process group of the CPUs, so that agreeing does not wait for devices."""
    saving: dist.ProcessGroup | None = None
    """Process group of the CPUs for checkpoints, which are written while training goes on."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Copies the first process' floating-point buffers, such as running statistics, to all processes."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dense = buffer.contiguous()
                dist.broadcast(dense, 0)
                buffer.copy_(dense)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process. This waits for all processes but not for their devices."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag), device="cpu")
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.agreeing)
        return bool(flags)

    def of_first(self, function: Callable[[], T]) -> T:
        """Runs ``function`` in the first process alone, and returns or raises its outcome in every process."""
        if self.size == 1:
            return function()
        outcome: list[tuple[bool, T | Exception] | None] = [None]
        if self.rank == 0:
            try:
                outcome = [(True, function())]
            except Exception as error:  # handed on to all
                outcome = [(False, error)]
        dist.broadcast_object_list(outcome)
        assert outcome[0] is not None
        good, value = outcome[0]
        if not good:
            assert isinstance(value, Exception)
            raise value
        return value  # type: ignore[return-value]


@contextmanager
def world(device: str | torch.device | None) -> Iterator[World]:
    """Yields the processes of the run: those that torchrun started, an existing process group, or this process alone.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. By default a GPU if there is one and this build has kernels for
            it; each process of a machine takes a GPU of its own.

    Raises:
        ValueError: the device does not exist, or this build has no kernels for it.
        TrainingError: another process was lost.
    """
    many = dist.is_initialized() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    own = torch_device(device, int(os.environ.get("LOCAL_RANK", "0")) if many else 0)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if not many:
        yield World(0, 1, own)
        return
    started = not dist.is_initialized()
    if started:
        # gloo beside NCCL: checkpoints and agreements are the CPUs' affair.
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        try:
            store, rank, size = next(rendezvous("env://"))
            # torchrun's store outlives a restart, and with it the addresses of the processes that are gone.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(f"the processes of the run could not connect to each other: {reason}") from error
    try:
        groups = [dist.new_group(backend="gloo") for _ in range(2)]
        yield World(dist.get_rank(), dist.get_world_size(), own, *groups)
    except RuntimeError as error:
        if not is_loss_of_a_process(error):
            raise
        raise TrainingError(
            f"process {dist.get_rank()} of {dist.get_world_size()} lost another one ({str(error).splitlines()[-1]}); "
            "for the reason, see the output of that process or torchrun's report below"
        ) from error
    # Not after an error: the others may be gone, and would be waited for.
    if started:
        dist.destroy_process_group()


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether ``error`` says that the connection to another process was lost."""
    told = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(text in str(error) for text in told)


def torch_device(name: str | torch.device | None, local_rank: int = 0) -> torch.device:
    """The device of that name, or for None the default of :func:`world`."""
    kernels = _build.cuda_architectures not in ([], ["emulated"])
    if name is None:
        name = "cuda" if kernels and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {name!r}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {name!r}")
    if not kernels:
        raise ValueError(f"device {name}: this fastvae was built without CUDA kernels; `fastvae info` shows its build")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device cuda:{index}: PyTorch sees {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)


def share_out(objective: nn.Module, processes: World, fsdp: bool, compile: bool) -> nn.Module:
    """Wraps a module so that its gradients are the mean over the processes, by DDP, or by FSDP2 layer by layer."""
    if compile:
        objective.compile(fullgraph=True)
    if processes.size == 1:
        return objective
    if not fsdp:
        return DistributedDataParallel(objective, gradient_as_bucket_view=True)
    for layer in [module for module in objective.modules() if isinstance(module, nn.Linear)]:
        fully_shard(layer)
    fully_shard(objective)
    return objective


@contextmanager
def more_to_come(objective: nn.Module, more: bool) -> Iterator[None]:
    """If ``more`` is true, gradients of the block's backward pass are kept and exchanged by a later one."""
    keeping: AbstractContextManager[None] = nullcontext()
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(not more)
    elif isinstance(objective, DistributedDataParallel) and more:
        keeping = objective.no_sync()
    with keeping:
        yield


@contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Within the block, the model in ``objective`` can be called alone: its weights outside of layers are unsharded."""
    if isinstance(objective, FSDPModule):
        objective.unshard()
    yield
    if isinstance(objective, FSDPModule):
        objective.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """This process' shard of a tensor, or the tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_of_compiler(error: RuntimeError) -> bool:
    """Whether torch.compile itself raised the error, rather than the code that it compiled."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to load

    return isinstance(error, TorchDynamoException)


@contextmanager
def until_terminated() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM has come. Within the block the signal itself ends nothing.

    This works only in the main thread, where Python handles signals. In other threads SIGTERM acts as before.
    """
    came = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    try:
        previous = signal.signal(signal.SIGTERM, remember)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, previous)
