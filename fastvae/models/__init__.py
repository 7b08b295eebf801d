"""Auto-encoders on top of the operators; they need torch and ``fastvae.ops`` and nothing else."""

from fastvae.models.cvae import CVAE, Regressor
from fastvae.models.latent import VAEOutput
from fastvae.models.vae import VAE

__all__ = ["CVAE", "VAE", "Regressor", "VAEOutput"]
