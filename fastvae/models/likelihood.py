"""P(x given what the decoder says)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastvae.layers import activation_name, is_hooked, is_sequential, run
from fastvae.models.networks import one_of
from fastvae.ops import gaussian_nll, linear_sigmoid_cross_entropy, sigmoid_cross_entropy

LikelihoodName = Literal["bernoulli", "gaussian"]


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


def _gives_rows(linear: list[nn.Module], h: Tensor, event: Sequence[int]) -> bool:
    """Whether the linear layer gives all logits of a sample as one row, which are then at most viewed as ``event``."""
    last, *after = linear
    if last.out_features != math.prod(event):
        return False
    return all(view.dim in (-1, h.dim() - 1) and view.unflattened_size == tuple(event) for view in after)


def _target(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Counts as the operators take them: in the decoder's dtype, but at least float32, which keeps those above 256."""
    if x.is_floating_point() or x.dtype in (torch.uint8, torch.bool):
        return x
    return x.to(torch.promote_types(dtype, torch.float32))


class Likelihood(nn.Module):
    """Independent pixels: Bernoulli, of logits, or Gaussian, of means and one standard deviation.

    Args:
        name: ``"bernoulli"`` or ``"gaussian"``.
        sigma: standard deviation of the Gaussian, in units of the data.
        learn_sigma: whether sigma is a parameter, with ``sigma`` its first value.

    Raises:
        ValueError: an unknown name, a sigma that is not positive and finite, or one to be learned that the
            Bernoulli likelihood has not.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), App. C; sigma's part: Doersch 2016 (arXiv:1606.05908),
    sec. 2.4.3; learned: Rybkin et al. 2020 (arXiv:2006.13202), sec. 3.
    """

    def __init__(self, name: LikelihoodName, sigma: float, learn_sigma: bool) -> None:
        super().__init__()
        one_of("likelihood", name, get_args(LikelihoodName))
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be a positive finite number, not {sigma}")
        if learn_sigma and name == "bernoulli":
            raise ValueError("learn_sigma needs the gaussian likelihood: the bernoulli one has no sigma")
        self.name: LikelihoodName = name
        self.initial_sigma = float(sigma)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma))) if learn_sigma else None

    @property
    def sigma(self) -> float | Tensor:
        """The standard deviation: a 0-d tensor with its gradient where it is learned."""
        return self.initial_sigma if self.log_sigma is None else self.log_sigma.exp()

    def nll(self, decoded: Tensor, x: Tensor, *, sigma: float | Tensor | None = None, reduction: str) -> Tensor:
        """-log P(x): ``decoded [B, *E]`` or ``[K, B, *E]`` and ``x [B, *E]`` to ``[B]`` or ``[K, B]``, nats.

        ``sigma`` stands in for the model's own, as in a schedule. Integers other than uint8 count as their value.

        Raises:
            ValueError: a value of x outside [0, 1] (Bernoulli; on a GPU a device-side assertion).
        """
        x = _target(x, decoded.dtype)
        if self.name == "bernoulli":
            self._refuse(sigma)
            return sigmoid_cross_entropy(decoded, x, reduction=reduction, check_target=True)
        return gaussian_nll(decoded, x, sigma=self.sigma if sigma is None else sigma, reduction=reduction)

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
        """The same of ``layers(*inputs)``, ``[..., D]`` or ``[..., *E]``, with leading dimensions made ``batch``.

        Where the layers end in a linear one, its logits are not all kept (Bernoulli).
        """
        below, tail = _split(layers) if self.name == "bernoulli" and len(inputs) == 1 else ([layers], [])
        h = run(below, *inputs) if tail else layers(*inputs)
        activation = activation_name(tail[0]) if tail else None
        linear = tail[activation is not None :]
        if linear and _gives_rows(linear, h, x.shape[1:]):
            self._refuse(sigma)
            last = linear[0]
            assert isinstance(last, nn.Linear)
            h, x = h.reshape(*batch, last.in_features), _target(x, last.weight.dtype)
            return linear_sigmoid_cross_entropy(
                h, last.weight, last.bias, x, activation=activation, reduction=reduction, check_target=True
            )
        for layer in tail:
            h = layer(h)
        return self.nll(h.reshape(*batch, *x.shape[1:]), x, sigma=sigma, reduction=reduction)

    def _refuse(self, sigma: float | Tensor | None) -> None:
        if sigma is not None:
            raise ValueError(f"the bernoulli likelihood has no sigma, got {sigma}")

    def mean(self, decoded: Tensor) -> Tensor:
        """The expected x, the shape of ``decoded``: probabilities (Bernoulli) or means (Gaussian)."""
        return decoded.sigmoid() if self.name == "bernoulli" else decoded
