"""Auto-encoders that are built on the operators. They need only torch and ``fastvae.ops``."""

from fastvae.models.convolutional import convolutional
from fastvae.models.cvae import CVAE
from fastvae.models.latent import VAEOutput
from fastvae.models.regressor import Regressor
from fastvae.models.vae import VAE

Model = VAE | CVAE | Regressor

__all__ = ["CVAE", "VAE", "Model", "Regressor", "VAEOutput", "convolutional"]
