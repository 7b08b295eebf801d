"""Pythae: its VAE with fastvae's sampling and loss, trained by its own pipeline on scikit-learn's digits."""

from __future__ import annotations

import tempfile

import torch
from pythae.data.datasets import DatasetOutput
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from torch import Tensor, nn

import fastvae
from fastvae.data import load


class LogitDecoder(BaseDecoder):
    """Gives the logits beside the probabilities, from which pythae samples and draws."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        pixels = config.input_dim[0] * config.input_dim[1]
        self.layers = nn.Sequential(
            nn.Linear(config.latent_dim, 512), nn.ReLU(), nn.Linear(512, pixels), nn.Unflatten(1, config.input_dim)
        )

    def forward(self, z: Tensor) -> ModelOutput:
        logits = self.layers(z)
        return ModelOutput(reconstruction=torch.sigmoid(logits), logits=logits)


class FastVAE(VAE):
    def forward(self, inputs: DatasetOutput, **kwargs: object) -> ModelOutput:
        x = inputs["data"]
        q = self.encoder(x)
        z = fastvae.reparameterize(q.embedding, q.log_covariance)
        p = self.decoder(z)
        loss, recon_loss, kl = self.loss_function(p.logits, x, q.embedding, q.log_covariance, z)
        return ModelOutput(loss=loss, recon_loss=recon_loss, reg_loss=kl, recon_x=p.reconstruction, z=z)

    def loss_function(self, logits: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> fastvae.ELBO:
        return fastvae.elbo_loss(logits, x, mu, log_var)


def train(epochs: int = 10) -> float:
    """Returns minus the ELBO of the test images, in nats per image."""
    digits = load("digits")
    config = VAEConfig(input_dim=(8, 8), latent_dim=8, reconstruction_loss="bce")
    torch.manual_seed(0)
    model = FastVAE(config, decoder=LogitDecoder(config))
    with tempfile.TemporaryDirectory() as folder:  # pythae saves the best model of a training
        training = BaseTrainerConfig(output_dir=folder, num_epochs=epochs, learning_rate=1e-3, no_cuda=True)
        TrainingPipeline(model=model, training_config=training)(digits.train / 255)
    with torch.no_grad():
        return model(DatasetOutput(data=digits.test / 255)).loss.item()


if __name__ == "__main__":
    print(f"test loss: {train():.2f} nats per image")
