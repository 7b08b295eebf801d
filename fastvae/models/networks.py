"""Parts of the models' networks: options, layers, heads, initialisations and the conversion of inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastvae.layers import ACTIVATIONS, MLP, Activation, as_numbers, is_operand, takes_bytes

Preset = Literal["doersch"]
NetworkName = Literal["mlp", "conv"]

# Which options each network takes, with their defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (1000, 500, 250), "activation": "relu", "preset": None},
    "conv": {"conv_width": 32, "conv_depth": 1, "conv_norm": "group"},
    "own": {},
}
# Doersch's code: the standard deviation of a weight, and how many of a unit's inputs each output keeps on average.
_DOERSCH_DEVIATION, _DOERSCH_CONNECTIONS = 0.1, 15


class MomentHeads(nn.Module):
    """The last layer of the tutorial's encoder: mu from after a ReLU, log sigma from before it.

    Args:
        width: size of the layer below; its ReLU is part of this module.
        latent_dim: L.

    Source: the code of Doersch 2016 (arXiv:1606.05908), sec. 4.
    """

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.mu = nn.Linear(width, latent_dim)
        self.log_sigma = nn.Linear(width, latent_dim)

    def forward(self, h: Tensor) -> Tensor:
        """The packed moments ``[..., 2L]``, mu and then logvar, for ``[..., width]``."""
        return torch.cat([self.mu(h.relu()), 2 * self.log_sigma(h)], dim=-1)


def activation_layer(activation: Activation) -> nn.Module:
    """A module of the activation."""
    return ACTIVATIONS[activation]()


def mlp(*widths: int, activation: Activation = "relu") -> MLP:
    """Linear layers with an activation between them and none after the last.

    Layers before a ReLU have He's initialisation, others Glorot's. With torch's own, which has a sixth of He's
    variance, the signal fades over four layers and the code stays unused for many epochs.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        if activation == "relu":
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        else:
            nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation_layer(activation)]
    nn.init.xavier_normal_(linear.weight)
    return MLP(*layers[:-1])


def split(layers: MLP, at: int) -> tuple[MLP, MLP]:
    """The layers before number ``at``, and those from ``at`` on."""
    return MLP(*list(layers)[:at]), MLP(*list(layers)[at:])


def encoder_mlp(
    inputs: int, hidden: Sequence[int], latent_dim: int, activation: Activation, preset: Preset | None
) -> MLP:
    """An MLP from ``inputs`` numbers to the packed moments ``[..., 2L]``."""
    if preset is None:
        # One layer for both moments: the operators read its two halves in place.
        return mlp(inputs, *hidden, 2 * latent_dim, activation=activation)
    return MLP(*mlp(inputs, *hidden), MomentHeads(hidden[-1], latent_dim))


@torch.no_grad()
def initialise_as_doersch(model: nn.Module, dense: Collection[nn.Module] = ()) -> None:
    """Initialises weights from N(0, 0.1^2) and biases to 0. Except in ``dense`` layers and the heads, each weight is
    kept with probability 15 / outputs and set to 0 otherwise.

    Source: the code of Doersch 2016, whose layers ask Caffe's Gaussian filler for ``sparse: 15``.
    """
    dense = [*dense, *(head for m in model.modules() if isinstance(m, MomentHeads) for head in m.children())]
    for layer in model.modules():
        if not isinstance(layer, nn.Linear):
            continue
        layer.weight.normal_(std=_DOERSCH_DEVIATION)
        layer.bias.zero_()
        if not any(layer is other for other in dense):
            kept = min(1.0, _DOERSCH_CONNECTIONS / layer.out_features)
            layer.weight.mul_(torch.rand_like(layer.weight) < kept)


def network_options(network: str, own: bool, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a network, with defaults for those that are not given.

    Args:
        network: the built-in network or ``"package.module:function"``, if the caller gives no modules.
        own: whether the caller gives modules of their own.
        given: the options of all networks by name; None for those that the caller left out.

    Raises:
        ValueError: the network is unknown, or options belong to another one; the message names them.
    """
    imported = ":" in network
    if not imported and network not in get_args(NetworkName):
        expected = ", ".join(get_args(NetworkName))
        raise ValueError(f"network must be one of {expected} or package.module:function, not {network!r}")
    if own and network != "mlp":
        raise ValueError(f"give either encoder and decoder or network {network!r}, not both")
    kind = "own" if own or imported else network
    foreign = [name for name, value in given.items() if value is not None and name not in _OPTIONS[kind]]
    if foreign:
        takes = "encoder and decoder of your own take" if own else f"network {network!r} takes"
        raise ValueError(f"{takes} no {', '.join(foreign)}")
    return {name: default if given[name] is None else given[name] for name, default in _OPTIONS[kind].items()}


def check_network(hidden: Sequence[int], activation: str, preset: str | None) -> None:
    """Raises ValueError if no model can have these options; the message names the argument."""
    one_of("activation", activation, get_args(Activation))
    if preset is None:
        return
    one_of("preset", preset, get_args(Preset))
    if not hidden or activation != "relu":
        raise ValueError(f"preset {preset!r} needs hidden layers of ReLU units, not hidden {hidden}, {activation!r}")


def one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises ValueError if ``value`` is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def sizes(name: str, values: int | Sequence[int]) -> tuple[int, ...]:
    """One or several positive integers as a tuple.

    Raises:
        ValueError: a value is not a positive integer; the message names the argument.
    """
    values = (values,) if isinstance(values, int) else tuple(values)
    for size in values:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must hold positive integers, not {size!r}")
    return values


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError, with both shapes, if ``x`` is not ``[B, *shape]``."""
    if x.shape[1:] != shape or x.dim() == 0:
        expected = ", ".join(["B", *map(str, shape)])
        raise ValueError(f"{name} has shape {list(x.shape)}, expected [{expected}]")


def check_numbers(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError if ``x`` is not ``[B, *shape]``, or is of a dtype that holds no real numbers."""
    check_shape(name, x, shape)
    if x.is_complex() or x.is_quantized:
        raise ValueError(f"{name} must be integers, bool or floating point, not {x.dtype}")


def as_input(name: str, x: Tensor, shape: tuple[int, ...], *networks: nn.Module) -> Tensor:
    """``x [B, *shape]`` in the dtype of :func:`input_dtype`: uint8 as x/255, bool as 0 or 1, others by their value.

    ``x`` is not converted if the first network does this itself.

    Raises:
        ValueError: the shape is another (the message names both), or the dtype holds no real numbers.
    """
    check_numbers(name, x, shape)
    return x if takes_bytes(*networks[:1]) and is_operand(x) else as_numbers(x, *networks)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode within the block; after it, each submodule has its former mode again."""
    training = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for network in networks:
            network.train(training[network])  # a method of theirs, which may do more than set the mode
        for module, mode in training.items():
            module.training = mode
