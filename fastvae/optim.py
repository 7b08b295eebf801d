"""An Adam optimiser that updates all parameters in one kernel launch on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import TracingContext

_adam_: Callable[..., None] = torch.ops.fastvae.adam_.default

# On a CPU torch's fused Adam is as fast as the memory.
_DEVICES = ("cuda",)


class Adam(torch.optim.Adam):
    """:class:`torch.optim.Adam` with the same arguments, state and ``state_dict``, and a faster step on a GPU.

    The step updates all parameters of a group in one kernel launch, whose blocks are short enough to keep the whole GPU
    busy. It does so for groups whose parameters are dense float32 tensors on one GPU, of any shape, and whose gradients
    and moments have the memory layout of the parameters. Parameters without a gradient are skipped. With
    ``capturable=True`` the step can be captured by a CUDA graph, and a learning rate that is a tensor is read on the
    GPU. A ``state_dict`` of either class can be loaded into the other.

    torch's own step runs for every other group: on other devices; with other dtypes or subclasses of ``Tensor``; with
    ``foreach=True``, ``fused=False``, ``amsgrad``, ``differentiable``, ``decoupled_weight_decay`` or betas that are
    tensors; if ``torch.amp.GradScaler`` hands its scale to the optimiser, as it does with ``fused=True``; and under
    ``torch.compile``.

    Raises:
        ValueError, RuntimeError: as :class:`torch.optim.Adam`, for the same arguments.

    Source: Kingma & Ba 2014 (arXiv:1412.6980), algorithm 1.
    """

    # torch's step, with its hooks, closures and checks, calls this for each group and then updates the tensors in the
    # lists. Where the operator has updated them, the lists are left empty.
    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        params, grads, exp_avgs, exp_avg_sqs, _, steps = lists
        # While it compiles a step, torch calls this for the lists alone: nothing must be updated then.
        tracing = torch.compiler.is_compiling() or TracingContext.try_get() is not None
        if tracing or not params or not self._takes(group) or not _fit(params, grads, exp_avgs, exp_avg_sqs, steps):
            return has_complex
        lr, device = group["lr"], params[0].device
        is_near = isinstance(lr, Tensor) and lr.device == device and lr.is_floating_point()
        if not is_near and isinstance(lr, Tensor) and not lr.is_cpu:
            return has_complex
        torch._foreach_add_(steps, 1)
        _adam_(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            steps,
            lr.reshape(()) if is_near else None,
            0.0 if is_near else float(lr),
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["maximize"],
        )
        for each in lists:
            each.clear()
        return has_complex

    def _takes(self, group: dict[str, Any]) -> bool:
        """Whether the operator does what the options of a group ask for."""
        return (
            not group["foreach"]
            and group["fused"] is not False
            and not group["amsgrad"]
            and not group["differentiable"]
            and not group["decoupled_weight_decay"]
            and not any(isinstance(beta, Tensor) for beta in group["betas"])
            and getattr(self, "grad_scale", None) is None
            and getattr(self, "found_inf", None) is None
        )


def _same_order(a: Tensor, b: Tensor) -> bool:
    """Whether the elements of two tensors of one shape follow one another alike."""
    if a.stride() == b.stride():  # as nearly always, and five times as fast to see
        return True
    return all(p == q for p, q, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size != 1)


def _fit(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], steps: list[Tensor]
) -> bool:
    """Whether the operator takes these tensors."""
    device = params[0].device
    if device.type not in _DEVICES:
        return False
    for param, *others in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if type(param) not in (nn.Parameter, Tensor) or param.device != device or param.dtype != torch.float32:
            return False
        for t in others:  # torch makes moments dense, so what lies as they do is dense itself
            if type(t) is not Tensor or t.device != device or t.dtype != torch.float32 or not _same_order(t, param):
                return False
    return all(
        type(step) is Tensor and step.dtype == torch.float32 and (step.is_cpu or step.device == device)
        for step in steps
    )
