"""The optimiser of a run and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastvae.models.networks import Preset
from fastvae.objectives import Schedule
from fastvae.optim import Adam

_DOERSCH_L2 = 5e-4
_BASE_BATCH = 100

Scaling = Literal["linear", "sqrt"]


def scaled_learning_rate(rate: float, batch_size: int, scaling: Scaling | None) -> float:
    """The learning rate of a batch size, from that of 100 images.

    Args:
        rate: learning rate for batches of 100 images.
        batch_size: number of images in a batch, over all processes.
        scaling: ``"linear"``, in proportion to the batch size (Goyal et al. 2017, arXiv:1706.02677, sec. 2.1);
            ``"sqrt"``, in proportion to its square root, as suits Adam (Malladi et al. 2022, arXiv:2205.10287); or
            ``None`` for the same learning rate.
    """
    ratio = batch_size / _BASE_BATCH
    return rate * {None: 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[scaling]


def make_optimizer(model: nn.Module, learning_rate: float, preset: Preset | None, *, capturable: bool = False) -> Adam:
    """Adam over the parameters of a model.

    Args:
        model: the model to train.
        learning_rate: the learning rate, or its initial value if it changes with the steps.
        preset: ``"doersch"`` for the tutorial's solver. Its betas are (0, 0.999), because the tutorial leaves beta1 to
            Caffe's default of 0. It has an L2 penalty of 5e-4 / 2 on weights but not on biases, whose gradient goes
            through Adam with that of the loss.
        capturable: whether the steps can be captured by a CUDA graph, which reads the learning rate from a tensor.

    Source: the solver of Doersch 2016 (arXiv:1606.05908), sec. 4; Kingma & Ba 2014 (arXiv:1412.6980).
    """
    rate: float | Tensor = learning_rate
    if capturable:
        rate = torch.tensor(learning_rate, device=next(model.parameters()).device)
    if preset is None:
        return Adam(model.parameters(), lr=rate, fused=True, capturable=capturable)
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": _DOERSCH_L2}, {"params": others}]
    return Adam(groups, lr=rate, betas=(0.0, 0.999), eps=1e-8, fused=True, capturable=capturable)


def learning_rate_schedule(peak: float, warmup_steps: int, decay_steps: int | None) -> Callable[[int], float]:
    """A function from a step, from 0, to its learning rate: linear up to ``peak``, then half a cosine down to 0.

    Args:
        peak: the largest learning rate, reached at step ``warmup_steps - 1``.
        warmup_steps: number of steps of the linear rise; 0 for no warm-up.
        decay_steps: number of steps of the fall after the warm-up; ``None`` to stay at ``peak``.
    """
    decay = None if decay_steps is None else Schedule("cosine", peak, 0.0, max(1, decay_steps))

    def at(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        return peak if decay is None else decay(step - warmup_steps)

    return at


@contextmanager
def flush_denormal() -> Iterator[None]:
    """Makes torch's CPU threads treat numbers below 2^-126 as 0 within the block.

    Some numbers shrink at every step until they are that small: weights whose only gradient is their L2 penalty (of
    pixels that are always black), and Adam's moments of units that are never active. A processor may take a hundred
    times as long for products of such numbers. Setting them to 0 changes no float32 sum with an ordinary number. After
    the block each thread gets its former setting back, except threads that were started within the block, which keep
    this one, and threads that a smaller ``torch.set_num_threads`` within the block leaves out.
    """
    was_on = torch.ops.fastvae.set_flush_denormal([True])
    try:
        yield
    finally:
        torch.ops.fastvae.set_flush_denormal(was_on)


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters, in the order in which the optimiser numbers them."""
    names = {id(p): name for name, p in model.named_parameters()}
    ordered: Iterable[nn.Parameter] = (p for group in optimizer.param_groups for p in group["params"])
    return [names[id(p)] for p in ordered]
