"""Likelihoods of counts 0, 1, 2, ..., which are read as they are from uint8, other integers and floating point.

The encoder is given log(1 + x), as scVI's is, or x / total if counts have a total.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fastvae.models.output import Likelihood, LikelihoodName
from fastvae.ops import (
    binomial_nll,
    linear_multinomial_nll,
    linear_negative_binomial_nll,
    multinomial_nll,
    negative_binomial_nll,
    poisson_nll,
)


class Counts(Likelihood):
    """The base class of the likelihoods of counts."""

    values = "counts"

    def to_input(self, x: Tensor) -> Tensor:
        return _real(x).log1p()

    def _target(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(torch.uint8) if x.dtype == torch.bool else x


class Binomial(Counts):
    """Binomial counts 0 .. total, such as the grey levels of an image. The decoder gives logits.

    Raises:
        ValueError: as for ``Likelihood``, or the total is not a positive integer.
    """

    name, title = "binomial", "binomial"
    has_total = has_bits = True

    def __init__(
        self, event: tuple[int, ...], sigma: float = 1.0, learn_sigma: bool = False, total: int | None = None
    ) -> None:
        super().__init__(event, sigma, learn_sigma, total)
        if not isinstance(total, int) or isinstance(total, bool) or total < 1:
            raise ValueError(
                "the binomial likelihood needs total, the largest count that is possible, as a positive integer, not "
                f"{total}"
            )
        self.total = self._trials = total

    def to_input(self, x: Tensor) -> Tensor:
        return _real(x) / self._trials

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        return binomial_nll(parameters[0], x, self._trials, reduction=reduction, check_target=True)

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return _real(parameters[0]).sigmoid() * self._trials

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        probabilities = _real(parameters[0]).sigmoid()
        return torch.binomial(torch.full_like(probabilities, self._trials), probabilities, generator=generator)


class Poisson(Counts):
    """Poisson counts without an upper bound, with a rate for each element. The decoder gives log rates.

    scVI's Poisson likelihood has rates that are shares of the row's observed sum. It differs from ``multinomial`` by a
    number that does not depend on the parameters, so that both have the same gradients.

    Source: p(x) = e^(x a - e^a) / x! for the log rate a.
    """

    name, title = "poisson", "Poisson"

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        return poisson_nll(parameters[0], x, reduction=reduction, check_target=True)

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return _real(parameters[0]).exp()

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        return _poisson(_real(parameters[0]).exp(), generator)


class CountsByLibrary(Counts):
    """The base class for counts whose means are shares of the library, the observed sum of their row.

    The decoder gives logits. The shares are their softmax over the event.
    """

    has_library = has_layer = True

    def library(self, x: Tensor) -> Tensor:
        # int64 of integers; at least float32 of others, of which half precision would lose counts.
        dtype = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.int64
        if x.layout == torch.sparse_csr:  # which torch reduces to a column, sparse too
            return x.sum(1, keepdim=True, dtype=dtype).to_dense()[:, 0]
        return x.flatten(1).sum(1, dtype=dtype)

    def _shares(self, logits: Tensor) -> Tensor:
        return _real(logits).flatten(-len(self.event)).softmax(-1).view(logits.shape)


class NegativeBinomial(CountsByLibrary):
    """Negative binomial counts, which vary more than Poisson ones, such as the counts of genes in a cell.

    Means are shares of the library. The variance is mean + mean^2 / theta. The inverse dispersion theta is a parameter
    for each element that all rows share and that starts at 1. These are scVI's defaults: ``dispersion="gene"`` and the
    observed library size.

    Source: Lopez et al. 2018 (scVI, doi:10.1038/s41592-018-0229-2), Methods.
    """

    name: ClassVar[LikelihoodName] = "negative-binomial"
    title = "negative binomial"

    def __init__(
        self, event: tuple[int, ...], sigma: float = 1.0, learn_sigma: bool = False, total: int | None = None
    ) -> None:
        super().__init__(event, sigma, learn_sigma, total)
        self.log_theta = nn.Parameter(torch.zeros(event))

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion of each element, ``[*E]``."""
        return self.log_theta.exp()

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        logits, *zero_logits = parameters
        return negative_binomial_nll(
            logits,
            self.log_theta,
            x,
            log_library=self._log_library(x, logits),
            zero_logits=zero_logits[0] if zero_logits else None,
            reduction=reduction,
            check_target=True,
        )

    def _nll_of_layer(self, h: Tensor, last: nn.Linear, x: Tensor, activation: str | None, reduction: str) -> Tensor:
        weight, *zero_weight = last.weight.chunk(self.outputs)
        bias, *zero_bias = [None] * self.outputs if last.bias is None else last.bias.chunk(self.outputs)
        return linear_negative_binomial_nll(
            h,
            weight,
            bias,
            self.log_theta,
            x,
            log_library=self._log_library(x, h),
            zero_weight=zero_weight[0] if zero_weight else None,
            zero_bias=zero_bias[0] if zero_bias else None,
            activation=activation,
            reduction=reduction,
            check_target=True,
        )

    def _log_library(self, x: Tensor, like: Tensor) -> Tensor:
        return self.library(x).to(_real_dtype(like)).log()

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return self._shares(parameters[0]) * library

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        mean = self._shares(parameters[0]) * library
        # Of the theta that the loss has: neither 0 nor infinite.
        theta = self.log_theta.to(mean.dtype).clamp(-80, 87).exp().expand_as(mean).contiguous()
        # A Poisson draw of a rate that is itself drawn from a gamma distribution.
        rate = torch._standard_gamma(theta, generator=generator) / theta * mean
        return _poisson(rate, generator)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """The zero-inflated negative binomial: a count is an additional zero with some probability.

    The decoder gives the logits of shares and the logits of additional zeros. Means include the additional zeros.
    """

    name, title = "zinb", "zero-inflated negative binomial"
    outputs = 2

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return super()._mean(parameters, library) * torch.sigmoid(-_real(parameters[1]))

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        counts = super()._sample(parameters, library, generator)
        return counts * torch.bernoulli(torch.sigmoid(-_real(parameters[1])), generator=generator)


class Multinomial(CountsByLibrary):
    """Multinomial counts with a given sum per row, such as clicks on the items of a catalogue or words of a text.

    Source: Liang et al. 2018 (arXiv:1802.05814), eq. 2, with the multinomial coefficient.
    """

    name, title = "multinomial", "multinomial"

    def _nll(self, parameters: tuple[Tensor, ...], x: Tensor, sigma: float | Tensor | None, reduction: str) -> Tensor:
        return multinomial_nll(parameters[0], x, constant=True, reduction=reduction, check_target=True)

    def _nll_of_layer(self, h: Tensor, last: nn.Linear, x: Tensor, activation: str | None, reduction: str) -> Tensor:
        return linear_multinomial_nll(
            h, last.weight, last.bias, x, constant=True, activation=activation, reduction=reduction, check_target=True
        )

    def _mean(self, parameters: tuple[Tensor, ...], library: Tensor | float) -> Tensor:
        return self._shares(parameters[0]) * library

    def _sample(self, parameters: tuple[Tensor, ...], library: Tensor | float, generator: Generator | None) -> Tensor:
        shares = self._shares(parameters[0])
        rows = shares.flatten(-len(self.event))
        counts = torch.zeros_like(rows).view(-1, rows.shape[-1])
        totals = torch.as_tensor(library, dtype=rows.dtype, device=rows.device).flatten()
        totals = totals.expand(rows.shape[:-1]).reshape(-1).round().long()
        if len(counts) and (most := int(totals.max())):
            drawn = torch.multinomial(rows.view(counts.shape), most, replacement=True, generator=generator)
            # Of the draws for the largest row, each row takes as many as it has.
            taken = torch.arange(most, device=rows.device) < totals.unsqueeze(-1)
            counts.scatter_add_(1, drawn, taken.to(counts.dtype))
        return counts.view(shares.shape)


def _poisson(rate: Tensor, generator: Generator | None) -> Tensor:
    """Draws; of rates whose draws int64, in which torch counts, does not hold, the rates: they are as near as float."""
    drawn = torch.poisson(rate.clamp(max=2**60), generator=generator)
    return torch.where(rate > 2**60, rate, drawn)


def _real_dtype(x: Tensor) -> torch.dtype:
    """Its floating dtype, but at least float32."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float32


def _real(x: Tensor) -> Tensor:
    return x.to(_real_dtype(x))
