"""Networks whose linear layers run as operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules import module as modules

from fastvae import ops

Activation = Literal["relu", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
# What a layer may take: a quantised weight has another dtype than its layer's input.
_NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class MLP(nn.Sequential):
    """An ``nn.Sequential`` whose linear layers, with the ReLU or Tanh between them, run as :func:`fastvae.mlp`.

    ``fastvae.nn.MLP(*network)`` has the layers of ``network``, an ``nn.Sequential``, and so the same parameters by the
    same names. Layers of other kinds may stand between linear ones and are called as modules. A linear layer is also
    called as a module if it has hooks of its own (pruning, spectral norm), if there are global hooks
    (``FlopCounterMode``), if it is of another class (parametrised, quantised, adapters) or if its weights are not plain
    tensors (shards).

    The input is ``[..., H]``: floating point of any dtype, bool, or uint8 read as x / 255. It is rounded to the dtype
    of the first layer's weights. Any other input, such as indices, complex numbers and sparse or nested tensors, goes
    unchanged from one layer to the next, as in an ``nn.Sequential``.

    ``torch.jit.trace`` and ``torch.fx`` trace the layers one by one. ``torch.jit.script`` does not take an ``MLP``; it
    takes ``nn.Sequential(*mlp)``, which has the same parameters.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The output of all layers for an input ``[..., H]``."""
        layers = list(self)
        if is_operand(input) and not (layers and _is_operator(layers[0])):
            input = as_numbers(input, self)
        return run(layers, input)

    def __add__(self, other: nn.Sequential) -> MLP:
        return MLP(*super().__add__(other))

    def __mul__(self, other: int) -> MLP:
        return MLP(*super().__mul__(other))


def run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The output of the layers for ``x``; linear layers run as :func:`fastvae.mlp` where :class:`MLP` would do so."""
    at = 0
    while at < len(layers):
        linears, activation = _stack(layers, at) if is_operand(x) else ([], None)
        if linears:
            x = ops.mlp(x, [f.weight for f in linears], [f.bias for f in linears], activation=activation)
            at += 2 * len(linears) - 1
            continue
        x = layers[at](x)
        at += 1
    return x


def _stack(layers: Sequence[nn.Module], start: int) -> tuple[list[nn.Linear], Activation | None]:
    """The linear layers of one dtype from ``start`` on, as far as one activation is between them, and its name."""
    linears: list[nn.Linear] = []
    activation: Activation | None = None
    dtype: torch.dtype | None = None
    for at in range(start, len(layers), 2):
        layer = layers[at]
        if not _is_operator(layer) or dtype not in (None, layer.weight.dtype):
            break
        if at > start:
            name = activation_name(layers[at - 1])
            if name is None or is_hooked(layers[at - 1]) or activation not in (None, name):
                break
            activation = name
        dtype = layer.weight.dtype
        linears.append(layer)
    return linears, activation


def activation_name(layer: nn.Module) -> Activation | None:
    """The name of the activation that a layer is; None for any other layer."""
    return next((name for name, kind in ACTIVATIONS.items() if type(layer) is kind), None)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than run its ``forward``.

    It does with pruning, sharded weights and global hooks, and under ``torch.jit.trace``, which records the call.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or modules._global_forward_hooks
        or modules._global_forward_pre_hooks
        or modules._global_backward_hooks
        or modules._global_backward_pre_hooks
        or "forward" in module.__dict__
        or torch._C._get_tracing_state()
    )


def is_sequential(module: nn.Module) -> bool:
    """Whether a call of the module does no more than call its children in turn."""
    return type(module).forward in (nn.Sequential.forward, MLP.forward) and not is_hooked(module)


def takes_bytes(network: nn.Module) -> bool:
    """Whether the network itself converts its input, such as uint8, to the dtype of its weights."""
    return type(network).forward is MLP.forward


def is_operand(x: object) -> bool:
    """Whether the operators take ``x`` without a conversion."""
    return isinstance(x, Tensor) and _is_dense(x) and x.dtype in (*_NUMBERS, torch.uint8, torch.bool)


def _is_operator(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer and no more; weights of other classes and dtypes have products of their own."""
    if type(layer) is not nn.Linear or is_hooked(layer):
        return False
    weight, bias = layer.weight, layer.bias
    if not _is_plain(weight) or weight.dtype not in _NUMBERS:
        return False
    return bias is None or (_is_plain(bias) and bias.dtype == weight.dtype)


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter) in (Tensor, nn.Parameter, FakeTensor) and _is_dense(parameter)


def _is_dense(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_nested


def first_weight(*networks: nn.Module) -> Tensor | None:
    """The first floating-point tensor of the networks, in their order, whose dtype and device are taken for theirs.

    It is a parameter or, if a network has none, a buffer or a plain attribute, which the weights of a ``DataParallel``
    replica are. None if there is none, as in quantised layers.
    """
    for network in networks:
        for tensors in (network.parameters(), network.buffers(), _attributes(network)):
            for tensor in tensors:
                if tensor.dtype in _NUMBERS:
                    return tensor
    return None


def _attributes(network: nn.Module) -> Iterator[Tensor]:
    return (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))


def input_dtype(x: Tensor, *networks: nn.Module) -> torch.dtype:
    """The dtype in which the first network takes ``x``: that of the first weights of the networks.

    If no network has weights, floating-point numbers keep their dtype and others get torch's default dtype, as in an
    ``nn.Sequential`` that is given ``x / 255``.
    """
    weight = first_weight(*networks)
    if weight is not None:
        return weight.dtype
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def as_numbers(x: Tensor, *networks: nn.Module) -> Tensor:
    """``x`` in the dtype of :func:`input_dtype`: uint8 as x/255, bool as 0 or 1, others by their value."""
    dtype = input_dtype(x, *networks)
    return x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)
