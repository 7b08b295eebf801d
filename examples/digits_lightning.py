"""Lightning: `fastvae.models.VAE` in a LightningModule, trained by Lightning's Trainer on scikit-learn's digits."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastvae.data import load
from fastvae.models import VAE


class DigitsVAE(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.vae = VAE(data_shape=(8, 8), hidden=(256,), latent_dim=8)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (images,) = batch  # uint8: the operators read pixels as x / 255
        loss, reconstruction, kl = self.vae.loss(images)
        self.log_dict({"train_loss": loss, "reconstruction": reconstruction, "kl": kl}, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.vae.loss(batch[0]).loss)  # Lightning weighs batches by their size

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train(epochs: int = 10) -> float:
    """Returns minus the ELBO of the test images, in nats per image."""
    lightning.seed_everything(0, verbose=False)
    digits = load("digits")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",  # or "gpu", where fastvae.build_info() names CUDA architectures
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        DigitsVAE(),
        DataLoader(TensorDataset(digits.train), batch_size=64, shuffle=True),
        DataLoader(TensorDataset(digits.test), batch_size=64),
    )
    return trainer.callback_metrics["val_loss"].item()


if __name__ == "__main__":
    print(f"test loss: {train():.2f} nats per image")
