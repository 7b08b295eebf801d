"""Auto-encoders on top of the operators; they need torch and ``fastvae.ops`` and nothing else."""

from fastvae.models.vae import VAE, VAEOutput

__all__ = ["VAE", "VAEOutput"]
