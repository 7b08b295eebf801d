"""Pyro: a VAE as model and guide, trained by SVI with the analytic KL divergence on scikit-learn's digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions.kl import register_kl

import fastvae
from fastvae.data import load

LATENT = 8


class PackedGaussian(TorchDistribution):
    """`fastvae.DiagonalGaussian(moments)` as a distribution over vectors: ``moments [B, 2L]``."""

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, moments: Tensor) -> None:
        self.gaussian = fastvae.DiagonalGaussian(moments)
        mean = self.gaussian.mean
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if not sample_shape:
            return self.gaussian.sample()
        q, k = self.gaussian, math.prod(sample_shape)
        return fastvae.reparameterize(q.mean, q.logvar, num_samples=k).unflatten(0, sample_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> PackedGaussian:
        (n,) = batch_shape  # pyro.plate's: without this method it would wrap the class, and no KL would be found for it
        return PackedGaussian(self.gaussian.parameters.expand(n, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        return -self.gaussian.nll(value)


# What TraceMeanField_ELBO looks up, in place of an average over samples.
register_kl(PackedGaussian, PackedGaussian)(lambda q, p: q.gaussian.kl(p.gaussian))


class DigitsVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 256), nn.ReLU(), nn.Linear(256, 64), nn.Unflatten(1, (8, 8)))

    def model(self, images: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        prior = PackedGaussian(self.decoder[0].weight.new_zeros(1, 2 * LATENT))  # N(0, I), for each image
        with pyro.plate("images", len(images)):
            z = pyro.sample("z", prior)
            pyro.factor("pixels", -fastvae.sigmoid_cross_entropy(self.decoder(z), images))

    def guide(self, images: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(images)):
            pyro.sample("z", PackedGaussian(self.encoder(images / 255)))


def train(epochs: int = 10) -> float:
    """Returns minus the ELBO of the test images, in nats per image."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    digits = load("digits")
    vae = DigitsVAE()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train_images)).split(64):
            svi.step(digits.train_images[batch])  # uint8
    return svi.evaluate_loss(digits.test_images) / len(digits.test_images)


if __name__ == "__main__":
    print(f"test loss: {train():.2f} nats per image")
