"""The importance-weighted log-likelihood of test images, against the same chunked estimate in plain PyTorch.

    python -m benchmarks.bench_evaluate CHECKPOINT [--images N] [--samples K] [--rounds N] [--json FILE]

Both encode an image once, and draw and decode its samples in chunks; the plain one uses the chunk size that is fastest
for it. The estimates must agree within four of their standard errors, or nothing is reported.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fastvae.data import Dataset, load
from fastvae.evaluation import LikelihoodReport, log_likelihood
from fastvae.models import VAE
from fastvae.training import TrainConfig, load_checkpoint

from .cases import layer_by_layer
from .timing import compare, machine, peak_memory, save

CHUNKS = (5, 20, 100)  # samples of 100 images at a time
BATCH = 100


@torch.no_grad()
def plain(model: VAE, images: Tensor, num_samples: int, chunk: int, seed: int = 0) -> tuple[float, float]:
    """The estimate as a user writes it without fastvae, and its sampling error."""
    torch.manual_seed(seed)
    bounds, variances = [], []
    for x in torch.split(torch.bernoulli(images / 255).flatten(1), BATCH):
        mu, logvar = layer_by_layer(model.encoder, x).chunk(2, -1)
        sigma = (logvar / 2).exp()
        log_w = []
        for first in range(0, num_samples, chunk):
            eps = torch.randn(min(chunk, num_samples - first), *mu.shape)
            z = mu + sigma * eps
            logits = layer_by_layer(model.decoder, z)
            nll = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
            log_ratio = 0.5 * (eps.square() - z.square()).sum(-1) + 0.5 * logvar.sum(-1)
            log_w.append(log_ratio - nll)
        w = torch.cat(log_w).double()
        bounds.append(torch.logsumexp(w, 0) - math.log(num_samples))
        variances.append(w.softmax(0).square().sum(0) - 1 / num_samples)
    return float(torch.cat(bounds).mean()), math.sqrt(float(torch.cat(variances).sum())) / len(images)


def fastvae_estimate(model: VAE, images: Tensor, num_samples: int, **options: Any) -> LikelihoodReport:
    return log_likelihood(model, images, num_samples=num_samples, binarize=True, batch_size=BATCH, **options)


def test_images(checkpoint: Path, data_dir: str | None) -> tuple[VAE, Dataset]:
    """The model of a checkpoint and what it was trained on."""
    loaded = load_checkpoint(checkpoint)
    config = TrainConfig.from_checkpoint(loaded)
    model = loaded.build_model()
    if not isinstance(model, VAE) or config.likelihood != "bernoulli":
        raise SystemExit(f"{checkpoint}: a VAE of binary images is needed")
    return model, load(config.dataset, data_dir or config.data_dir)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of a VAE with the Bernoulli likelihood")
    parser.add_argument("--data-dir", help="of the data set; by default that of the training")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()

    model, dataset = test_images(arguments.checkpoint, arguments.data_dir)
    images, samples = dataset.test[: arguments.images], arguments.samples
    # The same binary images for both: drawn once.
    images = torch.bernoulli(images / 255, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    contenders: dict[str, Any] = {
        **{f"eager, {BATCH} x {chunk}": partial(plain, model, images, samples, chunk) for chunk in CHUNKS},
        "fastvae": partial(fastvae_estimate, model, images, samples),
        "fastvae, bf16": partial(fastvae_estimate, model, images, samples, amp="bf16"),
    }
    estimates = {name: estimate()[:1] for name, estimate in contenders.items()}
    error = plain(model, images, samples, CHUNKS[0])[1]
    for name, (value,) in estimates.items():
        reference = estimates[f"eager, {BATCH} x {CHUNKS[0]}"][0]
        # bfloat16 rounds logits by 2^-9 of them at most, with either sign: far less than this in their sum.
        if abs(value - reference) > 4 * math.sqrt(2) * error + (0.1 if "bf16" in name else 0):
            raise SystemExit(f"{name}: {value:.3f} nats against {reference:.3f}, more than four errors of {error:.3f}")

    timings = compare(contenders, arguments.rounds)
    best = min(timings[name].median for name in contenders if name.startswith("eager"))
    counts = (samples, 10 * samples)
    memory = {
        "eager": [peak_memory(partial(plain, model, images[:BATCH], n, 20)) for n in counts],
        "fastvae": [peak_memory(partial(fastvae_estimate, model, images[:BATCH], n)) for n in counts],
    }
    rows = []
    print(f"{len(images)} images, {samples} samples each; sampling error {error:.3f} nats")
    for name in contenders:
        time = timings[name]
        print(
            f"{name:<18} {estimates[name][0]:>9.3f} nats  {time.median:>7.2f} s ({time.low:.2f} to {time.high:.2f})"
            f"  {best / time.median:.2f} x the best of plain PyTorch"
        )
        rows.append(
            {"contender": name, "nats": estimates[name][0], **time._asdict(), "times_as_fast": best / time.median}
        )
    for name, (few, many) in memory.items():
        print(f"{name}: {few / 2**20:.1f} MiB at {samples} samples, {many / 2**20:.1f} MiB at {10 * samples}")
    save(
        arguments.json,
        {
            "machine": machine(),
            "images": len(images),
            "samples": samples,
            "sampling_error_nats": error,
            "rows": rows,
            "peak_bytes": {name: {str(samples): few, str(10 * samples): many} for name, (few, many) in memory.items()},
        },
    )


if __name__ == "__main__":
    main()
