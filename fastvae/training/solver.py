"""The optimisers of a run."""

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
        rate: of 100 images.
        batch_size: in all processes together.
        scaling: ``"linear"``, in proportion to the batch size (Goyal et al. 2017, arXiv:1706.02677, sec. 2.1);
            ``"sqrt"``, to its root, as suits Adam (Malladi et al. 2022, arXiv:2205.10287); or ``None``.
    """
    ratio = batch_size / _BASE_BATCH
    return rate * {None: 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[scaling]


def make_optimizer(model: nn.Module, learning_rate: float, preset: Preset | None, *, capturable: bool = False) -> Adam:
    """Adam over the parameters of a model.

    Args:
        model: what is trained.
        learning_rate: a first one, where it changes with the steps.
        preset: ``"doersch"`` for the tutorial's solver: betas (0, 0.999), because it leaves beta1 to Caffe's 0, and an
            L2 penalty of 5e-4 / 2 on weights, not on biases, whose gradient goes through Adam with the rest.
        capturable: whether its steps may be captured by a CUDA graph, which reads the learning rate from a tensor.

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
    """The learning rate of each step, from 0: up to ``peak`` in equal steps, then down to 0 along half a cosine.

    Args:
        peak: reached at step ``warmup_steps - 1``.
        warmup_steps: 0 for none.
        decay_steps: after the warm-up; ``None`` to stay at ``peak``.
    """
    decay = None if decay_steps is None else Schedule("cosine", peak, 0.0, max(1, decay_steps))

    def at(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        return peak if decay is None else decay(step - warmup_steps)

    return at


@contextmanager
def flush_denormal() -> Iterator[None]:
    """Takes numbers below 2^-126 for 0 in what torch's CPU threads compute meanwhile.

    Weights whose gradient is their L2 penalty alone (of pixels that are always black), and Adam's moments of units that
    are never active, shrink at every step and end there, where a processor may take a hundred times as long for a
    product. That they are then 0 changes nothing that a float32 sum with an ordinary number could show. Each thread
    gets back what it had, but for those started meanwhile, which inherit it, and those that a smaller
    ``torch.set_num_threads`` meanwhile leaves out.
    """
    was_on = torch.ops.fastvae.set_flush_denormal([True])
    try:
        yield
    finally:
        torch.ops.fastvae.set_flush_denormal(was_on)


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in the order in which the optimiser numbers its parameters."""
    names = {id(p): name for name, p in model.named_parameters()}
    ordered: Iterable[nn.Parameter] = (p for group in optimizer.param_groups for p in group["params"])
    return [names[id(p)] for p in ordered]
