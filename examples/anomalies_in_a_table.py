"""A table of numbers: a VAE that is trained on benign tumours alone recognises malignant ones by their low ELBO.

The table is scikit-learn's breast cancer data set, 569 tumours with 30 measurements each.
"""

from __future__ import annotations

import tempfile

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import Tensor

import fastvae
from fastvae.data import Dataset
from fastvae.models import VAE
from fastvae.training import TrainConfig, train


def tables() -> tuple[Tensor, ...]:
    """Benign rows to train on, benign rows to test on, and the malignant ones: ``[N, 30]`` float32 each.

    All are standardised by the mean and the deviation of the first.
    """
    table = load_breast_cancer()
    rows = torch.from_numpy(table.data).float()
    benign, malignant = rows[table.target == 1], rows[table.target == 0]
    order = torch.randperm(len(benign), generator=torch.Generator().manual_seed(0))
    seen, unseen = benign[order[:250]], benign[order[250:]]
    mean, deviation = seen.mean(0), seen.std(0)
    return tuple((part - mean) / deviation for part in (seen, unseen, malignant))


@torch.no_grad()
def elbo(model: VAE, rows: Tensor, samples: int = 100) -> Tensor:
    """The ELBO of each row, ``[B]`` nats, from ``samples`` draws of its code."""
    torch.manual_seed(0)
    mu, logvar = model.encode(rows)
    z = fastvae.reparameterize(mu, logvar, num_samples=samples)  # [K, B, L]
    return -model.nll(z, rows).mean(0) - fastvae.gaussian_kl(mu, logvar)


def main(epochs: int = 60) -> None:
    seen, unseen, malignant = tables()
    gaussian = {"likelihood": "gaussian", "sigma": 1.0, "learn_sigma": True}
    config = TrainConfig(**gaussian, hidden=(64,), latent_dim=4, batch_size=50, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        model = train(config, folder, dataset=Dataset.from_arrays(seen, unseen)).model
    scores = [-elbo(model, rows) for rows in (unseen, malignant)]
    print(f"median ELBO: {-scores[0].median():.1f} nats of benign rows, {-scores[1].median():.1f} of malignant ones")
    is_malignant, rows = [0] * len(unseen) + [1] * len(malignant), torch.cat([unseen, malignant])
    print(f"AUC of minus the ELBO: {roc_auc_score(is_malignant, torch.cat(scores)):.3f}")
    # This table is so easy that no model is needed, which is worth knowing before one is trained.
    print(f"AUC of the sum of squares: {roc_auc_score(is_malignant, rows.square().sum(1)):.3f}")


if __name__ == "__main__":
    main()
