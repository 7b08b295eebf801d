"""The caller's own modules as a model's networks, whose results are checked when the model is made."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastvae.layers import first_weight
from fastvae.models.networks import evaluating

_BATCH = 2  # one sample alone would hide a module that drops the dimension


def own_networks(
    encoder: nn.Module | None,
    decoder: nn.Module | None,
    data_shape: Sequence[int],
    latent_dim: int,
    condition_shape: Sequence[int] | None = None,
    outputs: int = 1,
) -> tuple[nn.Module, nn.Module] | None:
    """Both modules, checked by one pass through each on a batch of two; None if neither is given.

    The pass runs without gradients and in evaluation mode, on zeros in the dtype and on the device of the weights. It
    initialises lazy modules, which draw random numbers for this as in any first pass. Nothing else in the modules
    changes, and no other random numbers are drawn.

    Args:
        encoder: a module from ``[B, *E]`` to ``[B, 2L]``.
        decoder: a module from ``[B, L]`` to ``[B, *E]`` or ``[B, D]``.
        data_shape: E, of D elements.
        latent_dim: L.
        condition_shape: C, if both modules take a condition ``[B, *C]`` as a second argument.
        outputs: number of values that the decoder gives for each element. For 2 it gives ``[B, 2, *E]`` or
            ``[B, 2 D]``.

    Raises:
        ValueError: only one of the two is given, one is not a module, fails on such inputs, or gives another shape (the
            message names both shapes).
    """
    if encoder is None and decoder is None:
        return None
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        if not isinstance(module, nn.Module):
            raise ValueError(f"encoder and decoder must both be modules, or both be left out; {name} is {module!r}")
    assert encoder is not None
    assert decoder is not None
    condition = None if condition_shape is None else [_BATCH, *condition_shape]
    batch, codes, moments = [_BATCH, *data_shape], [_BATCH, latent_dim], [_BATCH, 2 * latent_dim]
    with _untouched(encoder, decoder):
        gives = _run("encoder", encoder, "a batch", batch, condition, decoder)
        if gives != moments:
            expected = f"{moments}: mu and logvar of latent_dim {latent_dim}"
            raise ValueError(f"encoder gives {gives} for a batch {batch}, expected {expected}")
        gives = _run("decoder", decoder, "codes", codes, condition, encoder)
        decoded = batch if outputs == 1 else [_BATCH, outputs, *data_shape]
        if gives not in (decoded, [_BATCH, outputs * math.prod(data_shape)]):
            raise ValueError(f"decoder gives {gives} for codes {codes}, expected {decoded}")
    return encoder, decoder


def made_by(
    name: str, data_shape: Sequence[int], latent_dim: int, condition_shape: Sequence[int] | None = None
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder that the caller's own function makes.

    Args:
        name: ``"package.module:function"``. The module is also looked for in the working folder.
        data_shape: E, the function's first argument.
        latent_dim: L, the function's second argument.
        condition_shape: C, the function's third argument if there is a condition.

    Raises:
        ImportError: there is no such module or function.
        ValueError: the function does not give an encoder and a decoder.
    """
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # which `python -m` does, and an installed command does not
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(f"network {name}: there is no module {error.name}, from {folder}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ImportError(f"network {name}: {module.__file__} has no function {function_name or 'without a name'}")
    condition = [] if condition_shape is None else [tuple(condition_shape)]
    made = function(tuple(data_shape), latent_dim, *condition)
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ValueError(f"network {name} gives a {type(made).__name__}, expected an encoder and a decoder")
    return made


def _run(
    name: str, module: nn.Module, what: str, shape: list[int], condition: list[int] | None, other: nn.Module
) -> list[int] | str:
    """The shape of what a module gives, or the type of what is no tensor."""
    like = first_weight(module, other)
    dtype, device = (None, None) if like is None else (like.dtype, like.device)
    shapes = [shape] if condition is None else [shape, condition]
    try:
        result = module(*(torch.zeros(s, dtype=dtype, device=device) for s in shapes))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        given = "" if condition is None else f" with conditions {condition}"
        raise ValueError(f"{name} cannot take {what} {shape}{given}: {reason}") from error
    return list(result.shape) if isinstance(result, Tensor) else f"a {type(result).__name__}"


@contextmanager
def _untouched(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; after it the modules' modes and the random numbers are as before."""
    weights = [weight for network in networks for weight in network.parameters()]
    devices = {weight.device for weight in weights if weight.is_cuda}
    # What lazy weights were drawn from is not drawn again.
    keeps = not any(is_lazy(weight) for weight in weights)
    with evaluating(*networks), torch.no_grad(), torch.random.fork_rng([d.index for d in devices], enabled=keeps):
        yield
