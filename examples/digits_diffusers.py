"""Diffusers: `AutoencoderKL` with fastvae's `DiagonalGaussian` as its posterior, on scikit-learn's digits."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

import fastvae
from fastvae.data import load

SIGMA = 0.1  # standard deviation of a pixel in [0, 1] given z


class FastAutoencoderKL(AutoencoderKL):
    """Loads what `AutoencoderKL` saved, and is used like it; sampling and the KL divergence are fused."""

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[fastvae.DiagonalGaussian]:
        moments = super().encode(x).latent_dist.parameters
        posterior = fastvae.DiagonalGaussian(moments, clamp=(-30.0, 20.0))  # the limits of diffusers
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def build() -> FastAutoencoderKL:
    """A network for 8x8 images of one channel; its code is ``[B, 2, 4, 4]``."""
    return FastAutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=8,
        sample_size=8,
    )


def loss(model: FastAutoencoderKL, images: Tensor) -> Tensor:
    """Minus the ELBO with a Gaussian likelihood, in nats per image; ``images [B, 1, 8, 8]``, uint8."""
    posterior = model.encode(images / 255).latent_dist
    z, kl = posterior.sample_kl()  # sample() and kl() in one pass
    return (fastvae.gaussian_nll(model.decode(z).sample, images, sigma=SIGMA) + kl).mean()


def train(epochs: int = 3) -> float:
    """Returns minus the ELBO of the test images, in nats per image."""
    torch.manual_seed(0)
    digits = load("digits")
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train)).split(64):
            loss(model, digits.train[batch].unsqueeze(1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return loss(model, digits.test.unsqueeze(1)).item()


if __name__ == "__main__":
    print(f"test loss: {train():.2f} nats per image")
