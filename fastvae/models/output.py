"""The base class of the models' likelihoods, which give a meaning to the decoder's numbers.

B is the batch, E = ``data_shape`` the event. A decoder gives ``[B, *E]`` or, for a likelihood that needs several
numbers for each element, ``[B, outputs, *E]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from fastvae.layers import activation_name, is_hooked, is_sequential, run

LikelihoodName = Literal[
    "bernoulli",
    "gaussian",
    "binomial",
    "poisson",
    "negative-binomial",
    "zinb",
    "multinomial",
    "continuous-bernoulli",
    "discretized-logistic",
    "laplace",
]
Values = Literal["finite", "unit", "counts", "levels"]
"""Values that data may hold: finite numbers, numbers in [0, 1], counts 0, 1, 2, ... or the 256 levels of uint8."""


class Likelihood(nn.Module):
    """P(x|z) with elements that are independent given the decoder's numbers. Subclasses are the distributions.

    Args:
        event: E, the shape of x.
        sigma: the standard deviation or scale of a likelihood that has one, in units of the data.
        learn_sigma: whether sigma is a parameter whose initial value is ``sigma``.
        total: the number of trials of a likelihood that has one.

    Raises:
        ValueError: sigma is not positive and finite, or the likelihood has no sigma to be learned or no total.
    """

    name: ClassVar[LikelihoodName]
    title: ClassVar[str]
    """The name of the distribution in a sentence."""
    values: ClassVar[Values]
    """The values that the data may hold."""
    outputs: ClassVar[int] = 1
    """Number of values that the decoder gives for each element."""
    has_sigma: ClassVar[bool] = False
    has_total: ClassVar[bool] = False
    has_library: ClassVar[bool] = False
    """Whether means are shares of a library, which is the sum of a row of counts."""
    has_bits: ClassVar[bool] = False
    """Whether bits per dimension are a customary figure for the likelihood."""
    has_layer: ClassVar[bool] = False
    """Whether there is an operator for the likelihood and the linear layer before it."""
    total: int | None = None
    """Number of trials of each element."""

    def __init__(
        self, event: tuple[int, ...], sigma: float = 1.0, learn_sigma: bool = False, total: int | None = None
    ) -> None:
        super().__init__()
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive finite number, not {sigma}")
        self.check_options(learn_sigma, total)
        self.event = event
        self.shape = event if self.outputs == 1 else (self.outputs, *event)
        """Shape of the decoder's output for a row."""
        self.initial_sigma = float(sigma)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma))) if learn_sigma else None

    @classmethod
    def check_options(cls, learn_sigma: bool, total: int | None) -> None:
        """Raises ValueError for options that the likelihood does not have."""
        if learn_sigma and not cls.has_sigma:
            raise ValueError(f"learn_sigma needs the likelihood gaussian or laplace: {cls.name} has no sigma")
        if total is not None and not cls.has_total:
            raise ValueError(f"total belongs to the binomial likelihood: {cls.name} has none, got {total}")

    @property
    def counts(self) -> bool:
        """Whether the data are counts, so that a uint8 is the count itself and not x/255."""
        return self.values == "counts"

    @property
    def sigma(self) -> float | Tensor:
        """The standard deviation or scale; a 0-d tensor with its gradient if it is learned."""
        return self.initial_sigma if self.log_sigma is None else self.log_sigma.exp()

    def to_input(self, x: Tensor) -> Tensor:
        """The encoder's input for rows ``[B, *E]``: the rows themselves, unless they are counts."""
        return x

    def library(self, x: Tensor) -> Tensor | None:
        """The sum of each row of ``x [B, *E]``, ``[B]``, if means are shares of it; otherwise None."""
        return None

    def nll(self, decoded: Tensor, x: Tensor, *, sigma: float | Tensor | None = None, reduction: str) -> Tensor:
        """-log P(x) in nats, ``[B]`` or ``[K, B]``, or the mean or sum of these.

        Args:
            decoded: ``[B, *E]`` or ``[K, B, *E]``, with a dimension ``outputs`` before E if there are several.
            x: ``[B, *E]``, as for :class:`fastvae.models.VAE`.
            sigma: replaces the model's own sigma, as in a schedule.
            reduction: ``"none"``, ``"mean"`` or ``"sum"``.

        Raises:
            ValueError: a sigma is given for a likelihood that has none, or a value of x is not among the likelihood's
                values (on a GPU this is a device-side assertion).
        """
        self._refuse(sigma)
        return self._nll(self._numbers(decoded), self._target(x, decoded.dtype), sigma, reduction)

    def nll_through(
        self,
        layers: nn.Module,
        inputs: tuple[Tensor, ...],
        x: Tensor,
        batch: Sequence[int],
        *,
        sigma: float | Tensor | None = None,
        reduction: str,
    ) -> Tensor:
        """:meth:`nll` of ``layers(*inputs)``, which may be flat, reshaped to have the leading dimensions ``batch``.

        If the layers end in a linear one and the likelihood has an operator that includes it, the linear layer's
        outputs are not all kept.
        """
        below, tail = _split(layers) if self.has_layer and len(inputs) == 1 else ([layers], [])
        h = run(below, *inputs) if tail else layers(*inputs)
        activation = activation_name(tail[0]) if tail else None
        linear = tail[activation is not None :]
        if linear and _gives_rows(linear, h, self.shape):
            self._refuse(sigma)
            last = linear[0]
            assert isinstance(last, nn.Linear)
            h, x = h.reshape(*batch, last.in_features), self._target(x, last.weight.dtype)
            return self._nll_of_layer(h, last, x, activation, reduction)
        for layer in tail:
            h = layer(h)
        return self.nll(h.reshape(*batch, *self.shape), x, sigma=sigma, reduction=reduction)

    def mean(self, decoded: Tensor, *, library: float | Tensor | None = None) -> Tensor:
        """The expected x, ``[..., *E]``, in units of the data, which for uint8 images are those of x/255.

        Args:
            decoded: as for ``nll``, with any leading dimensions.
            library: the row sums, ``[B]`` or one for all, 1 by default; only for likelihoods with a library.

        Raises:
            ValueError: a library is given for a likelihood that has none, has another shape, or holds a number that is
                negative or not finite (numbers on another device than the CPU are not checked).
        """
        return self._mean(self._numbers(decoded), self._library_of(decoded, library))

    @torch.no_grad()
    def sample(
        self, decoded: Tensor, *, library: float | Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """One draw of x for each row, ``[..., *E]``, without gradients; arguments and units are those of ``mean``.

        Raises:
            ValueError: as for ``mean``, or the likelihood needs a library and none is given.
        """
        if self.has_library and library is None:
            raise ValueError(f"draws of the {self.name} likelihood need a library, the sum of each row")
        return self._sample(self._numbers(decoded), self._library_of(decoded, library), generator)

    def _target(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As the operators take it: in the decoder's dtype, but at least float32, which keeps those above 256."""
        if x.is_floating_point() or x.dtype in (torch.uint8, torch.bool):
            return x
        return x.to(torch.promote_types(dtype, torch.float32))

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        raise NotImplementedError

    def _nll_of_layer(self, h: Tensor, last: nn.Linear, x: Tensor, activation: str | None, reduction: str) -> Tensor:
        raise NotImplementedError

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        raise NotImplementedError

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        raise NotImplementedError

    def _numbers(self, decoded: Tensor) -> tuple[Tensor, ...]:
        return (decoded,) if self.outputs == 1 else decoded.unbind(-len(self.shape))

    def _library_of(self, decoded: Tensor, library: float | Tensor | None) -> Tensor | float:
        """To multiply shares ``[..., B, *E]`` by."""
        if library is None:
            return 1.0
        if not self.has_library:
            raise ValueError(f"the {self.name} likelihood has no library, got {library}")
        if not isinstance(library, Tensor):
            if not (math.isfinite(library) and library >= 0):
                raise ValueError(f"library must be a finite number, 0 or more, not {library}")
            return float(library)
        batch = decoded.shape[: -len(self.shape)][-1:]
        if library.shape not in ((), batch):
            raise ValueError(f"library has shape {list(library.shape)}, expected {list(batch)} or a number")
        if library.is_cpu and not torch.compiler.is_compiling():  # nobody waits for another device
            wrong = library[~(library.isfinite() & (library >= 0))]
            if len(wrong):
                raise ValueError(f"library must hold finite numbers, 0 or more, not {wrong[0].item()}")
        dtype = torch.promote_types(decoded.dtype, torch.float32)
        return library.to(decoded.device, dtype).reshape(library.shape + (1,) * len(self.event))

    def _refuse(self, sigma: float | Tensor | None) -> None:
        if sigma is not None and not self.has_sigma:
            raise ValueError(f"the {self.name} likelihood has no sigma, got {sigma}")


def uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """Numbers in [0, 1) of the shape and on the device of ``like``, at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(like.shape, dtype=dtype, device=like.device, generator=generator)


def _split(layers: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Layers, and the linear one that they end in, with the activation before it and what may unflatten its logits.

    Or all layers, and none.
    """
    if is_sequential(layers):
        assert isinstance(layers, nn.Sequential)
        parts = list(layers)
        for tail in ([nn.Linear], [nn.Linear, nn.Unflatten]):
            at = len(parts) - len(tail)
            if at >= 0 and [type(layer) for layer in parts[at:]] == tail and not any(map(is_hooked, parts[at:])):
                activated = at > 0 and activation_name(parts[at - 1]) is not None and not is_hooked(parts[at - 1])
                return parts[: at - activated], parts[at - activated :]
    return [layers], []


def _gives_rows(linear: list[nn.Module], h: Tensor, shape: Sequence[int]) -> bool:
    """Whether the linear layer gives all logits of a sample as one row, which are then at most viewed as ``shape``."""
    last, *after = linear
    if last.out_features != math.prod(shape):
        return False
    return all(view.dim in (-1, h.dim() - 1) and view.unflattened_size == tuple(shape) for view in after)
