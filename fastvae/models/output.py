"""What a decoder's numbers mean: the base of all likelihoods, and the last layer that is run together with one.

B is the batch, E the event, ``data_shape``; a decoder gives ``[B, *E]`` or, where a likelihood has more than one number
for each element, ``[B, outputs, *E]``.
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
"""What data may hold: finite numbers, numbers in [0, 1], counts 0, 1, 2, ... or the 256 levels of uint8."""


class Likelihood(nn.Module):
    """P(x|z) of independent elements, given what the decoder says. Its subclasses are the distributions.

    Args:
        event: E.
        sigma: the standard deviation or scale of a likelihood that has one, in units of the data.
        learn_sigma: whether sigma is a parameter, with ``sigma`` its first value.
        total: the number of trials of a likelihood that has one.

    Raises:
        ValueError: a sigma that is not positive and finite; one to be learned, or a total, that the likelihood has not.
    """

    name: ClassVar[LikelihoodName]
    title: ClassVar[str]
    """What the distribution is called in a sentence."""
    values: ClassVar[Values]
    """What the data must be."""
    outputs: ClassVar[int] = 1
    """Numbers that the decoder gives for each element."""
    has_sigma: ClassVar[bool] = False
    has_total: ClassVar[bool] = False
    has_library: ClassVar[bool] = False
    """Whether means are shares of a library, the sum of a row of counts."""
    has_bits: ClassVar[bool] = False
    """Whether bits per dimension are a figure of the field."""
    has_layer: ClassVar[bool] = False
    """Whether there is an operator for the likelihood and the linear layer before it."""
    total: int | None = None
    """Trials of each element."""

    def __init__(
        self, event: tuple[int, ...], sigma: float = 1.0, learn_sigma: bool = False, total: int | None = None
    ) -> None:
        super().__init__()
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive finite number, not {sigma}")
        self.check_options(learn_sigma, total)
        self.event = event
        self.shape = event if self.outputs == 1 else (self.outputs, *event)
        """What the decoder gives for a row."""
        self.initial_sigma = float(sigma)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma))) if learn_sigma else None

    @classmethod
    def check_options(cls, learn_sigma: bool, total: int | None) -> None:
        """Raises ValueError for options that the likelihood has not."""
        if learn_sigma and not cls.has_sigma:
            raise ValueError(f"learn_sigma needs the gaussian likelihood or the laplace one: {cls.name} has no sigma")
        if total is not None and not cls.has_total:
            raise ValueError(f"total is of the binomial likelihood: {cls.name} has none, got {total}")

    @property
    def counts(self) -> bool:
        """Whether the data are counts, of which a uint8 is the count itself."""
        return self.values == "counts"

    @property
    def sigma(self) -> float | Tensor:
        """The standard deviation or scale: a 0-d tensor with its gradient where it is learned."""
        return self.initial_sigma if self.log_sigma is None else self.log_sigma.exp()

    def to_input(self, x: Tensor) -> Tensor:
        """Rows ``[B, *E]`` as the encoder is given them: as they are, unless they are counts."""
        return x

    def library(self, x: Tensor) -> Tensor | None:
        """The sum of each row of ``x [B, *E]``, which means are shares of: ``[B]``; None where they are not."""
        return None

    def nll(self, decoded: Tensor, x: Tensor, *, sigma: float | Tensor | None = None, reduction: str) -> Tensor:
        """-log P(x) in nats: ``[B]`` or ``[K, B]``, or their mean or sum.

        Args:
            decoded: ``[B, *E]`` or ``[K, B, *E]``, with ``outputs`` before E where there are several.
            x: ``[B, *E]``, as for :class:`fastvae.models.VAE`.
            sigma: stands in for the model's own, as in a schedule.
            reduction: ``"none"``, ``"mean"`` or ``"sum"``.

        Raises:
            ValueError: a sigma that the likelihood has not; a value of x that is none of its values (on a GPU a
                device-side assertion).
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
        """The same of ``layers(*inputs)``, flat or in shape, with leading dimensions made ``batch``.

        Where the layers end in a linear one, and the likelihood has an operator for both, its outputs are not all kept.
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
        """The expected x, ``[..., *E]``, in units of the data: those of uint8 images are of x/255.

        Args:
            decoded: as for ``nll``, with any leading dimensions.
            library: the row sums, ``[B]`` or one for all, 1 by default; for likelihoods by library alone.

        Raises:
            ValueError: a library that the likelihood has not, of another shape, or with a number that is negative or
                infinite (a tensor on another device than the CPU is not waited for).
        """
        return self._mean(self._numbers(decoded), self._library_of(decoded, library))

    @torch.no_grad()
    def sample(
        self, decoded: Tensor, *, library: float | Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """One draw of x for each row, ``[..., *E]``; arguments and units as for ``mean``. No gradient flows.

        Raises:
            ValueError: as ``mean``; no library for a likelihood that needs one.
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
