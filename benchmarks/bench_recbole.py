"""RecBole's MultiVAE with its own last layer and loss, against those of ``examples/ratings_recbole.py``.

    python -m benchmarks.bench_recbole [--threads N] [--rounds N] [--seeds N] [--items N ...] [--json FILE]

It measures whole training steps and their memory, the error of the gradients, and Recall@10 and NDCG@10 on
MovieLens-100k. It needs RecBole (docs/drop-ins.md), and takes ten minutes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import torch
from recbole.model.general_recommender import MultiVAE

from examples.ratings_recbole import FusedMultiVAE, prepare, train

from . import table, timing

MODELS = {"RecBole": MultiVAE, "fastvae": FusedMultiVAE}
CONTENDERS = ("RecBole", "compile", "fastvae")
USERS, RATED = 1_000, 100  # of a made-up catalogue
BATCH = 512


def write_catalogue(folder: Path, items: int) -> None:
    """Ratings in RecBole's format: popularity falls as 1 / rank, and every item is rated once at least."""
    random = np.random.default_rng(0)
    popularity = 1 / np.arange(1, items + 1)
    rated = random.choice(items, (USERS, RATED), p=popularity / popularity.sum())
    pairs = {(user, item) for user, row in enumerate(rated.tolist()) for item in row}
    pairs |= {(user, item) for item, user in enumerate(random.integers(USERS, size=items).tolist())}
    folder.mkdir()
    lines = ["user_id:token\titem_id:token", *(f"{user}\t{item}" for user, item in sorted(pairs))]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")


@contextmanager
def data_of(items: int | None) -> Iterator[dict[str, object]]:
    """RecBole's options for MovieLens-100k, or for a catalogue of so many items."""
    if items is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        write_catalogue(Path(folder) / "catalogue", items)
        yield {"dataset": "catalogue", "data_path": folder, "load_col": {"inter": ["user_id", "item_id"]}}


def training_step(contender: str, config: Any, training: Any) -> Callable[[], object]:
    """A step of RecBole's Trainer, of one batch of users."""
    torch.manual_seed(0)
    model = (MultiVAE if contender == "compile" else MODELS[contender])(config, training.dataset).train()
    batch = next(iter(training))
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    loss: Any = model.calculate_loss
    if contender == "compile":
        # MultiVAE counts its steps in an integer, for each value of which there would be another graph.
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
        loss = torch.compile(loss)

    def step() -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return step


def measure_steps(items: int | None, rounds: int) -> dict[str, Any]:
    with data_of(items) as options:
        config, training, _ = prepare(train_batch_size=BATCH, **options)
    contenders = {name: training_step(name, config, training) for name in CONTENDERS}
    row = {
        "users": BATCH,
        "items": training.dataset.item_num,
        "contenders": timing.measure(contenders, rounds),
    }
    print(
        f"{row['users']} users x {row['items']} items",
        *(f"{name} {table.with_spread(row['contenders'][name])} ms" for name in CONTENDERS),
        f"{table.against(row, 'RecBole')} x RecBole, {table.against(row, 'compile')} x compile",
        f"extra MB {table.megabytes(row, CONTENDERS)}",
        sep="  ",
        flush=True,
    )
    return row


def measure_gradients() -> list[dict[str, Any]]:
    """Of all weights, without dropout and noise, against RecBole's formula in float64."""
    config, training, _ = prepare(train_batch_size=BATCH)
    batch = next(iter(training))
    torch.manual_seed(0)
    own = MultiVAE(config, training.dataset).eval()
    fused = FusedMultiVAE(config, training.dataset).eval()
    fused.load_state_dict(own.state_dict())
    wide = copy.deepcopy(own).double()
    wide.history_item_value = wide.history_item_value.double()
    for model in (own, fused):
        model.calculate_loss(batch).backward()
    torch.set_default_dtype(torch.float64)  # of the matrix of ratings
    wide.calculate_loss(batch).backward()
    torch.set_default_dtype(torch.float32)
    expected = {name: p.grad for name, p in wide.named_parameters()}
    rows = []
    for contender, model in (("RecBole", own), ("fastvae", fused)):
        for name, parameter in model.named_parameters():
            off = (parameter.grad.double() - expected[name]).abs().max() / expected[name].abs().max()
            rows.append({"contender": contender, "gradient": name, "largest": float(off)})
        worst = max(row["largest"] for row in rows if row["contender"] == contender)
        print(f"{contender:<8} error of the gradients: at most {worst:.1e} of the largest of its tensor")
    return rows


def measure_training(seeds: int) -> list[dict[str, Any]]:
    """RecBole's own training and evaluation on MovieLens-100k with each loss, from the same seeds."""
    rows = []
    for seed in range(seeds):
        for contender, model in MODELS.items():
            start = time.perf_counter()
            scores = train(model, seed)
            rows.append({"contender": contender, "seed": seed, "seconds": time.perf_counter() - start, **scores})
    for contender in MODELS:
        of = [row for row in rows if row["contender"] == contender]
        print(
            f"{contender:<8} MovieLens-100k, {seeds} seeds:",
            *(
                f"{name} {statistics.mean(r[name] for r in of):.4f} (sd {statistics.stdev(r[name] for r in of):.4f})"
                for name in ("recall@10", "ndcg@10")
            ),
            f"{statistics.median(r['seconds'] for r in of):.1f} s with data and evaluation",
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_recbole", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="threads that torch uses; by default as many as it does")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, nargs="*", default=[20_000, 50_000], help="made-up catalogues of so many")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole would read its own options there
    warnings.simplefilter("ignore")
    with timing.threads(arguments.threads):
        result: dict[str, Any] = {"machine": timing.machine(), "recbole": recbole.__version__}
        print(table.describe(result["machine"]), f"RecBole {recbole.__version__}", sep=", ")
        result["steps"] = []
        for items in (None, *arguments.items):
            result["steps"].append(measure_steps(items, arguments.rounds))
            timing.save(arguments.json, result)
        result["gradients"] = measure_gradients()
        result["training"] = measure_training(arguments.seeds)
        timing.save(arguments.json, result)


if __name__ == "__main__":
    main()
