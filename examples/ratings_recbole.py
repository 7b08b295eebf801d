"""RecBole: MultiVAE with a fused last layer and multinomial loss, on the MovieLens-100k in RecBole's wheel."""

from __future__ import annotations

from pathlib import Path

import recbole
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import MultiVAE
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch import Tensor
from torch.nn.functional import dropout, normalize
from torch.utils.data import DataLoader

import fastvae


class FusedMultiVAE(MultiVAE):
    """RecBole's MultiVAE, whose loss takes the last layer with it: the logits of a batch are never in memory."""

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        ratings = self.get_rating_matrix(interaction[self.USER_ID])
        self.update += 1
        anneal = self.anneal_cap
        if self.total_anneal_steps > 0:
            anneal = min(anneal, self.update / self.total_anneal_steps)
        moments = self.encoder(dropout(normalize(ratings), self.drop_out, self.training))
        mu, logvar = moments.chunk(2, 1)
        *layers, last = self.decoder
        hidden = self.reparameterize(mu, logvar)
        for layer in layers:
            hidden = layer(hidden)
        nll = fastvae.linear_multinomial_nll(hidden, last.weight, last.bias, ratings, reduction="mean")
        return nll + anneal * fastvae.gaussian_kl(mu, logvar, reduction="mean")


def prepare(**options: object) -> tuple[Config, DataLoader, DataLoader]:
    """RecBole's configuration and its batches for training and for the test; ``options`` as in its configuration."""
    defaults = {
        "dataset": "ml-100k",
        "data_path": str(Path(recbole.__file__).parent / "dataset_example"),
        "train_neg_sample_args": None,
        "train_batch_size": 128,
        "state": "ERROR",
    }
    config = Config(model="MultiVAE", config_dict=defaults | options)
    init_seed(config["seed"], reproducibility=True)
    training, _, test = data_preparation(config, create_dataset(config))
    return config, training, test


def train(model: type[MultiVAE], seed: int = 0, epochs: int = 30) -> dict[str, float]:
    """Returns Recall@10, NDCG@10 and others of the ratings that are not trained on."""
    config, training, test = prepare(seed=seed, epochs=epochs)
    trainer = Trainer(config, model(config, training.dataset))
    trainer.fit(training, saved=False)
    return dict(trainer.evaluate(test, load_best_model=False))


if __name__ == "__main__":
    for model in (MultiVAE, FusedMultiVAE):
        scores = train(model)
        print(f"{model.__name__}: Recall@10 {scores['recall@10']:.4f}, NDCG@10 {scores['ndcg@10']:.4f}")
