"""scvi-tools: SCVI with a fused reconstruction loss of its counts, trained on scvi-tools' synthetic cells.

The data, the networks, the training and everything that is sampled or computed from the model are scvi-tools' own.
"""

from __future__ import annotations

import scvi
import torch
from scvi.model import SCVI
from scvi.module import VAE
from scvi.module.base import LossOutput
from torch import Tensor, nn

import fastvae


class Shares(nn.Softmax):
    """The genes' shares of a cell with their logits, of which the loss is: a share that underflows has a logarithm."""

    def forward(self, logits: Tensor) -> Tensor:
        shares = super().forward(logits)
        shares.logits = logits
        return shares


class FusedVAE(VAE):
    """scvi-tools' VAE, whose log-probability of the counts is one pass over them, and its gradients another."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        if self.gene_likelihood not in ("nb", "zinb") or self.use_size_factor_key:
            raise ValueError("FusedVAE has the likelihoods nb and zinb, and means without a size_factor_key")
        self.decoder.px_scale_decoder[1] = Shares(dim=-1)

    def loss(
        self, tensors: dict, inference_outputs: dict, generative_outputs: dict, kl_weight: float = 1
    ) -> LossOutput:
        px = generative_outputs["px"]
        log_library = inference_outputs["library"].squeeze(-1)
        log_theta = self.px_r if self.dispersion == "gene" else px.theta.log()
        zero_logits = px.zi_logits if self.gene_likelihood == "zinb" else None
        nll = fastvae.negative_binomial_nll(
            px.scale.logits, log_theta, tensors["X"], log_library=log_library, zero_logits=zero_logits
        )
        px.log_prob = lambda _: -nll.unsqueeze(-1)  # scvi-tools sums it over the genes, which are one number here
        return super().loss(tensors, inference_outputs, generative_outputs, kl_weight)


class FusedSCVI(SCVI):
    _module_cls = FusedVAE


def train(model: type[SCVI], epochs: int = 20) -> float:
    """Returns minus the ELBO of the cells that are not trained on, in nats per cell."""
    scvi.settings.seed = 0
    cells = scvi.data.synthetic_iid()
    model.setup_anndata(cells, batch_key="batch")
    trained = model(cells)
    trained.train(max_epochs=epochs, accelerator="cpu", train_size=0.8, enable_progress_bar=False)
    torch.manual_seed(0)
    return -float(trained.get_elbo(indices=trained.validation_indices))


if __name__ == "__main__":
    for model in (SCVI, FusedSCVI):
        print(f"{model.__name__}, test loss: {train(model):.2f} nats per cell")
