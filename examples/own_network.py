"""Your own encoder and decoder, trained on digits. From a shell: `fastvae train --network own_network:networks`."""

from __future__ import annotations

import tempfile

from torch import nn

import fastvae
from fastvae.models import VAE
from fastvae.training import TrainConfig, train


def networks(data_shape: tuple[int, ...], latent_dim: int) -> tuple[nn.Module, nn.Module]:
    """Convolutions with batch normalisation, for grey images whose sides four divides."""
    height, width = data_shape
    encoder = nn.Sequential(  # [B, H, W] to [B, 2 * latent_dim]: mu beside logvar
        nn.Unflatten(1, (1, height)),
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(2 * latent_dim),
    )
    decoder = nn.Sequential(  # [B, latent_dim] to [B, 1, H, W] to [B, H, W]: a logit for each pixel
        nn.Linear(latent_dim, 2 * height * width),
        nn.Unflatten(1, (32, height // 4, width // 4)),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        nn.Flatten(1, 2),
    )
    return encoder, decoder


def make_model() -> VAE:
    encoder, decoder = networks((8, 8), latent_dim=8)
    return VAE((8, 8), latent_dim=8, encoder=encoder, decoder=decoder)


def main(out: str, epochs: int = 8) -> None:
    train(TrainConfig(epochs=epochs // 2, batch_size=32, learning_rate=5e-3), out, model=make_model())
    config = TrainConfig(epochs=epochs, batch_size=32, learning_rate=5e-3)
    result = train(config, out, model=make_model(), resume=True)  # as another process could
    print(f"test ELBO: {result.history[-1]['test']['elbo']:.2f} nats per image")
    print(f"samples: {list(fastvae.load(out, make_model()).sample(10).shape)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
