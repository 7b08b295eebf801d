"""Accelerate: your own training loop, in bfloat16 and with accumulated gradients, on scikit-learn's digits."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastvae
from fastvae.data import load


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2 * 8))
        self.decoder = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 64), nn.Unflatten(1, (8, 8)))

    def forward(self, images: Tensor) -> fastvae.ELBO:
        mu, logvar = self.encoder(images / 255).chunk(2, -1)  # bfloat16 under autocast, read in place
        z = fastvae.reparameterize(mu, logvar)
        # Here rather than in the loop: Accelerate makes float32 copies of what a model returns.
        return fastvae.elbo_loss(self.decoder(z), images, mu, logvar)


def train(epochs: int = 10) -> float:
    """Returns minus the ELBO of the test images, in nats per image."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    digits = load("digits")
    network = Network()
    network, optimizer, batches = accelerator.prepare(
        network,
        torch.optim.Adam(network.parameters(), lr=2e-3),
        DataLoader(TensorDataset(digits.train), batch_size=32, shuffle=True),
    )
    for _ in range(epochs):
        for (images,) in batches:
            with accelerator.accumulate(network):
                accelerator.backward(network(images).loss)
                optimizer.step()
                optimizer.zero_grad()
    with torch.no_grad():
        return network(digits.test.to(accelerator.device)).loss.item()


if __name__ == "__main__":
    print(f"test loss: {train():.2f} nats per image")
