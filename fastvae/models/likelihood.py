"""The table of likelihoods by name."""

from __future__ import annotations

from typing import get_args

from fastvae.models.counts import Binomial, Multinomial, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from fastvae.models.networks import one_of
from fastvae.models.output import Likelihood
from fastvae.models.output import LikelihoodName as LikelihoodName
from fastvae.models.pixels import Bernoulli, ContinuousBernoulli, DiscretizedLogistic, Gaussian, Laplace

LIKELIHOODS: dict[LikelihoodName, type[Likelihood]] = {
    kind.name: kind
    for kind in (
        Bernoulli,
        Gaussian,
        Binomial,
        Poisson,
        NegativeBinomial,
        ZeroInflatedNegativeBinomial,
        Multinomial,
        ContinuousBernoulli,
        DiscretizedLogistic,
        Laplace,
    )
}


def make_likelihood(
    name: LikelihoodName, event: tuple[int, ...], sigma: float, learn_sigma: bool, total: int | None
) -> Likelihood:
    """Makes the likelihood of a name.

    Args:
        name: a key of ``LIKELIHOODS``.
        event: E, the shape of x.
        sigma: standard deviation of the Gaussian likelihood or scale of the Laplace one, in units of the data.
        learn_sigma: whether sigma is a parameter whose initial value is ``sigma``.
        total: the number of trials of the binomial likelihood.

    Raises:
        ValueError: the name is unknown, or as for the likelihood's class.
    """
    one_of("likelihood", name, get_args(LikelihoodName))
    return LIKELIHOODS[name](event, sigma, learn_sigma, total)
