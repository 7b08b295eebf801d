"""Counts of genes in cells, as a seeded generator draws them."""

import numpy as np


def cells(number=2000, genes=500, types=3, seed=0):
    """Counts ``[number, genes]``, uint16, and the type of each cell: some 90 % zeros, overdispersed, of varying depth.

    Each type has a fifth of the genes raised fourfold. A count is Poisson of a rate that is drawn from a gamma
    distribution of shape 2: a negative binomial of theta 2.
    """
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0, 1, genes)
    profiles = np.stack([base * np.where(rng.random(genes) < 0.2, 4, 1) for _ in range(types)])
    shares = profiles / profiles.sum(1, keepdims=True)
    kind = rng.integers(types, size=number)
    depth = rng.lognormal(np.log(60), 0.4, number)
    rates = depth[:, None] * shares[kind]
    return rng.poisson(rates * rng.gamma(2, 0.5, rates.shape)).astype(np.uint16), kind
