"""Pyro: a VAE as model and guide, trained by SVI with the analytic KL divergence on scikit-learn's digits."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn

import fastvae
from fastvae.data import load

LATENT = 8


class PackedGaussian(fastvae.DiagonalGaussian, TorchDistributionMixin):
    """`fastvae.DiagonalGaussian` with what Pyro asks of a distribution beside torch's own.

    Its KL divergence is the one that TraceMeanField_ELBO looks up, in place of an average over samples.
    """


class DigitsVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 256), nn.ReLU(), nn.Linear(256, 64), nn.Unflatten(-1, (8, 8)))

    def model(self, images: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        prior = PackedGaussian(self.decoder[0].weight.new_zeros(2 * LATENT), batch_dims=0)  # N(0, I), for each image
        with pyro.plate("images", len(images)):
            z = pyro.sample("z", prior)  # [B, L], or [K, B, L] with K vectorised particles
            pyro.factor("pixels", -fastvae.sigmoid_cross_entropy(self.decoder(z), images))

    def guide(self, images: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(images)):
            pyro.sample("z", PackedGaussian(self.encoder(images / 255)))


def train(epochs: int = 10, particles: int = 1) -> float:
    """Returns minus the ELBO of the test images, in nats per image.

    Args:
        epochs: passes over the training images.
        particles: K, samples of z for each image and step, all of them in one pass through the decoder.
    """
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    digits = load("digits")
    vae = DigitsVAE()
    loss = TraceMeanField_ELBO(num_particles=particles, vectorize_particles=particles > 1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train)).split(64):
            svi.step(digits.train[batch])  # uint8
    return svi.evaluate_loss(digits.test) / len(digits.test)


if __name__ == "__main__":
    print(f"test loss: {train():.2f} nats per image")
