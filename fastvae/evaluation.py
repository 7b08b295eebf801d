"""Evaluation of a trained model: its ELBO, its likelihood by importance sampling, the information in its code.

N is the number of images, B the number in a batch, K the number of samples of z per image, L the latent dimension.
Everything is in nats. Means over images come with a standard error, for which the images count as a random sample of
all possible images.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastvae import objectives
from fastvae.activations import peak_bytes
from fastvae.data import Batches, Data, Rows
from fastvae.files import replacing
from fastvae.layers import first_weight
from fastvae.models import CVAE, VAE, Model, Regressor
from fastvae.models.networks import evaluating, one_of
from fastvae.ops import binarize as draw
from fastvae.ops import gaussian_kl, reparameterize, serializable

Proposal = Literal["posterior", "prior"]


@serializable
class ELBOReport(NamedTuple):
    """The ELBO and its terms per image, averaged over a data set."""

    elbo: float
    """The ELBO in nats, a lower bound on log P(x): the higher, the better."""
    reconstruction: float
    """The reconstruction term E[-log P(x|z)], in nats."""
    kl: float
    """The KL divergence KL(Q(z|x), P(z)), in nats."""
    bits_per_dim: float | None
    """``-elbo`` in bits per pixel. For a Bernoulli likelihood it refers to targets in [0, 1], grey or binary; for a
    binomial or discretised logistic one, to the probabilities of levels; for a Gaussian one, to the density over pixels
    in [0, 1], so that it may be negative. None for other likelihoods, for which it is not a customary figure."""
    standard_error: float | None
    """The standard error of ``elbo`` in nats; None if only its mean is known, as over the steps of a training."""


@serializable
class LikelihoodReport(NamedTuple):
    """The importance-weighted bound of log P(x) per image, averaged over a data set."""

    log_likelihood: float
    """The bound in nats; its expectation is a lower bound of log P(x), tighter than the ELBO."""
    standard_error: float
    """The standard error of ``log_likelihood`` over the choice of images, in nats."""
    sampling_error: float
    """The standard error of ``log_likelihood`` over the samples of z for the same images, in nats. It is 0 for one
    sample, and too small if the effective sample size is near 1: then one sample has all the weight, and better ones
    may have been missed."""
    bits_per_dim: float | None
    """``-log_likelihood`` in bits per pixel, as in :class:`ELBOReport`."""
    effective_sample_size: float
    """(sum w)^2 / sum w^2 per image, at most ``num_samples``."""
    num_samples: int
    """K, the number of samples of z per image."""
    images: int
    """N, the number of images."""


@serializable
class LatentReport(NamedTuple):
    """The information that each dimension of the code carries."""

    nats: list[float]
    """Means over the images of KL(Q(z_j|x), P(z_j)): ``[L]``."""
    standard_errors: list[float]
    """Standard errors of ``nats``: ``[L]``."""
    activity: list[float]
    """Variances over the images of E[z_j|x]: ``[L]``."""
    active_units: int
    """Number of dimensions whose activity is above 0.01."""


def elbo_report(reconstruction: float, kl: float, dims: int | None, standard_error: float | None = None) -> ELBOReport:
    """The report of an ELBO, from its two terms.

    Args:
        reconstruction: nats per image.
        kl: nats per image.
        dims: pixels per image; None for no bits per pixel.
        standard_error: standard error of ``reconstruction + kl``, in nats.

    Source: Doersch 2016 (arXiv:1606.05908), eq. 5 and sec. 2.4.2.
    """
    elbo = -(reconstruction + kl)
    return ELBOReport(elbo, reconstruction, kl, _bits(-elbo, dims), standard_error)


def dims_of_bits(model: Model) -> int | None:
    """Number of values per image by which bits are divided; None for likelihoods that are not reported in bits."""
    return math.prod(model.data_shape) if model.output.has_bits else None


@torch.no_grad()
def evaluate(
    model: Model,
    images: Data,
    condition: Tensor | None = None,
    *,
    batch_size: int = 1000,
    binarize: bool = False,
    generator: torch.Generator | None = None,
) -> ELBOReport:
    """The ELBO of a data set, from one sample of z for each image, whatever beta the training had.

    Args:
        model: the model; its training mode does not change.
        images: ``[N, *E]``, a tensor or :class:`fastvae.data.Rows`; batches are moved to the model's device.
        condition: ``[N, *C]`` or labels ``[N]``, for a ``CVAE`` or a ``Regressor``; batches are moved likewise. A
            ``Regressor`` has no ELBO: its log-likelihood is reported instead.
        batch_size: number of images that are evaluated at a time.
        binarize: whether the targets are binary, each pixel drawn with probability x/255.
        generator: the source of all noise, by default torch's own. With a generator of a fixed seed the result depends
            on the model and the images alone, and torch's own generators are not used.

    Raises:
        ValueError: there are no images, the images do not fit the model (the message names both shapes), conditions are
            given for a model that takes none, or missing for a model that takes them.
    """
    sums = elbo_sums(model, images, condition, batch_size=batch_size, binarize=binarize, generator=generator)
    return report_of_sums(sums, len(images), dims_of_bits(model))


@torch.no_grad()
def elbo_sums(
    model: Model,
    images: Data,
    condition: Tensor | None = None,
    *,
    batch_size: int = 1000,
    binarize: bool = False,
    generator: torch.Generator | None = None,
    part: int = 0,
    parts: int = 1,
) -> Tensor:
    """The sums over images from which ``evaluate`` makes its report; several processes may each compute a part.

    Args:
        model: as for ``evaluate``.
        images: all images, of every part.
        condition: the conditions of all images.
        batch_size: number of images that are evaluated at a time; a part consists of whole batches.
        binarize: as for ``evaluate``.
        generator: must be in the same state in every process. The noise of an image does not depend on ``parts``.
        part: number of the part to compute, from 0.
        parts: number of parts.

    Returns:
        float64 ``[3]``, on the model's device: the sums of the reconstruction, of the KL and of the square of their
        sum. :func:`report_of_sums` takes the total of these over all parts.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=_device(model, images))
    with evaluating(model):
        found = batches(model, images, condition, batch_size, binarize, generator, part, parts)
        for i, (x, given) in enumerate(found):
            if isinstance(model, Regressor):
                reconstruction = model.nll(x, *given).double()
                kl = torch.zeros_like(reconstruction)
            else:
                mu, logvar = model.encode(x, *given)
                z = reparameterize(mu, logvar, generator=generator)
                reconstruction = model.nll(z, x, *given).double()
                kl = gaussian_kl(mu, logvar).double()
            if i % parts == part:
                sums += torch.stack([reconstruction.sum(), kl.sum(), (reconstruction + kl).square().sum()])
    return sums


def report_of_sums(sums: Tensor, images: int, dims: int | None) -> ELBOReport:
    """The report from the sums of :func:`elbo_sums` over ``images`` images of ``dims`` pixels each."""
    reconstruction, kl, square = (sums / images).tolist()
    error = _standard_error(reconstruction + kl, square, images)
    return elbo_report(reconstruction, kl, dims, error)


@torch.no_grad()
def evaluate_code(
    model: VAE | CVAE,
    images: Data,
    condition: Tensor | None = None,
    *,
    batch_size: int = 1000,
    binarize: bool = False,
    generator: torch.Generator | None = None,
) -> LatentReport:
    """How many nats each dimension of z carries, and which dimensions are active.

    Args:
        model: the model; its training mode does not change.
        images: ``[N, *E]``, a tensor or :class:`fastvae.data.Rows`; batches are moved to the model's device.
        condition: ``[N, *C]`` or labels ``[N]``, for a ``CVAE``; batches are moved likewise.
        batch_size: number of images that are encoded at a time.
        binarize: whether the encoder is given binary images, each pixel drawn with probability x/255.
        generator: the source of those draws, by default torch's own.

    Raises:
        ValueError: as for ``evaluate``.

    Source: active units: Burda et al. 2015 (arXiv:1509.00519), sec. 5, with their threshold of 0.01.
    """
    sums = torch.zeros(4, model.latent_dim, dtype=torch.float64, device=_device(model, images))
    with evaluating(model):
        for x, given in batches(model, images, condition, batch_size, binarize, generator):
            mu, logvar = model.encode(x, *given)
            # Without an event, the operator gives the divergence of each element.
            kl = gaussian_kl(mu.flatten(), logvar.flatten()).view(mu.shape).double()
            mu = mu.double()
            sums += torch.stack([kl.sum(0), kl.square().sum(0), mu.sum(0), mu.square().sum(0)])
    nats, square, mean, mean_square = (sums / len(images)).tolist()
    activity = [max(0.0, s - m * m) for s, m in zip(mean_square, mean, strict=True)]
    errors = [_standard_error(m, s, len(images)) for m, s in zip(nats, square, strict=True)]
    return LatentReport(nats, errors, activity, sum(a > 0.01 for a in activity))


@torch.no_grad()
def log_likelihood(
    model: VAE | CVAE,
    images: Data,
    condition: Tensor | None = None,
    *,
    num_samples: int = 5000,
    proposal: Proposal = "posterior",
    batch_size: int = 100,
    memory: int = 16 * 2**20,
    binarize: bool = False,
    amp: Literal["bf16"] | None = None,
    seed: int = 0,
    partial: str | os.PathLike[str] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> LikelihoodReport:
    """The importance-weighted bound log (1/K sum_k w_k) of a data set.

    Each image is encoded once. Its K samples are drawn and decoded in chunks, and the target is never expanded, so that
    memory does not grow with K.

    Args:
        model: the model; its training mode does not change.
        images: ``[N, *E]``, a tensor or :class:`fastvae.data.Rows`; batches are moved to the model's device.
        condition: ``[N, *C]`` or labels ``[N]``, for a ``CVAE``; batches are moved likewise.
        num_samples: K.
        proposal: the distribution that z is drawn from: ``"posterior"``, Q(z|x), or ``"prior"``, P(z), which is the
            naive estimate of eq. 1 of the tutorial and needs astronomically many samples.
        batch_size: number of images that are evaluated at a time.
        memory: bytes that the decoder's activations may take. A chunk has at least one sample of one image. The memory
            of a sample is measured, except for the built-in MLPs of most likelihoods, for which it is calculated.
        binarize: whether the targets are binary, each pixel drawn once with probability x/255.
        amp: ``"bf16"`` to decode in bfloat16; importance weights and their sums are still at least float32.
        seed: seed of all noise. The same seed and sizes of batches and chunks give the same result.
        partial: a file that keeps the finished batches, from which a later call with the same arguments goes on. The
            file is removed at the end.
        progress: called after each batch with the number of images done and the mean of their bounds.

    Raises:
        ValueError: as for ``evaluate``, or a size is below 1, ``proposal`` is unknown, the partial file belongs to
            another evaluation.
        OSError: the partial file cannot be read or written.

    Source: Burda et al. 2015 (arXiv:1509.00519), eq. 8; Doersch 2016 (arXiv:1606.05908), eq. 1 for the prior.
    """
    one_of("proposal", proposal, get_args(Proposal))
    one_of("amp", amp, (None, "bf16"))
    for name, size in (("num_samples", num_samples), ("batch_size", batch_size), ("memory", memory)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    Batches(images, batch_size)  # checks them
    _check_condition(model, images, condition)
    sample_bytes = _sample_bytes(model, images[:1], None if condition is None else condition[:1])
    batch_size = max(1, min(batch_size, memory // sample_bytes, len(images)))
    chunk = max(1, min(num_samples, memory // (batch_size * sample_bytes)))
    starts = range(0, len(images), batch_size)
    # One seed for each batch: where a later call goes on, it draws as this one would have.
    seeds = torch.randint(2**62, (len(starts),), generator=torch.Generator().manual_seed(seed)).tolist()

    identity = _identity(model, images, condition, num_samples, proposal, batch_size, chunk, binarize, amp, seed)
    done = _Partial(partial, identity)
    with evaluating(model):
        for start, batch_seed in list(zip(starts, seeds, strict=True))[len(done.batches) :]:
            generator = torch.Generator(_device(model, images)).manual_seed(batch_seed)
            part = slice(start, start + batch_size)
            of_part = None if condition is None else condition[part]
            ((x, given),) = batches(model, images[part], of_part, batch_size, binarize, generator)
            moments = model.encode(x, *given)
            if proposal == "prior":
                moments = (torch.zeros_like(moments[0]), torch.zeros_like(moments[1]))
            weights = _Weights()
            for first in range(0, num_samples, chunk):
                k = min(chunk, num_samples - first)
                weights.add(_chunk_weights(model, x, given, moments, k, amp, generator))
            done.add(torch.stack([weights.log_mean(num_samples), weights.effective_sample_size()]).cpu())
            if progress is not None:
                bounds = torch.cat(done.batches, 1)[0]
                progress(len(bounds), float(bounds.mean()))
    bounds, sizes = torch.cat(done.batches, 1)
    done.remove()
    mean = float(bounds.mean())
    return LikelihoodReport(
        mean,
        _standard_error(mean, float(bounds.square().mean()), len(bounds)),
        # Var(log of a mean) = Var(w) / (K mean(w)^2), the delta method; and that is 1 / size - 1 / K.
        float((1 / sizes - 1 / num_samples).clamp_min(0).sum().sqrt()) / len(bounds),
        _bits(-mean, dims_of_bits(model)),
        float(sizes.mean()),
        num_samples,
        len(bounds),
    )


def _sample_bytes(model: VAE | CVAE, image: Tensor, condition: Tensor | None) -> int:
    """What the decoder's activations take for each sample of z of an image."""
    if model.network == "mlp" and not model.output.has_library and model.output.outputs == 1:
        # Two layers' activations are there at a time, but never the logits; of z itself, its copies in the weights.
        number = max([4, *(parameter.element_size() for parameter in model.parameters())])
        pixels = 0 if model.output.has_layer else model.pixels
        return number * (2 * max(*model.hidden, pixels, model.latent_dim) + 4 * model.latent_dim)
    # Otherwise one sample tells. More of them take no more than as many times that: what does not grow with
    # them, as weights that are computed, counts for each.
    generator = torch.Generator(_device(model, image))
    with evaluating(model):
        ((x, given),) = batches(model, image, condition, 1, False, generator)
        moments = model.encode(x, *given)
        return peak_bytes(lambda: _chunk_weights(model, x, given, moments, 1, None, generator))


def _chunk_weights(
    model: VAE | CVAE,
    x: Tensor,
    given: tuple[Tensor, ...],
    moments: tuple[Tensor, Tensor],
    samples: int,
    amp: str | None,
    generator: torch.Generator,
) -> Tensor:
    """Log w of new samples, ``[K, B]``."""
    z = reparameterize(*moments, num_samples=samples, generator=generator)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=amp == "bf16"):
        nll = model.nll(z, x, *given)
    return objectives.log_weights(nll, z, *moments)


class _Weights:
    """Running sums of w and w^2 over the samples of each image, relative to the largest w so far."""

    def __init__(self) -> None:
        self.largest: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """``[K, B]``."""
        log_w = log_w.double()
        largest = log_w.amax(0).clamp_min(torch.finfo(torch.float64).min)  # where all w are zero
        if self.largest is None:
            self.sum, self.squares = torch.zeros_like(largest), torch.zeros_like(largest)
        else:
            largest = torch.maximum(largest, self.largest)
            shrink = torch.exp(self.largest - largest)
            self.sum, self.squares = self.sum * shrink, self.squares * shrink.square()
        w = torch.exp(log_w - largest)
        self.sum, self.squares, self.largest = self.sum + w.sum(0), self.squares + w.square().sum(0), largest

    def log_mean(self, count: int) -> Tensor:
        assert self.largest is not None
        return self.largest + (self.sum / count).log()

    def effective_sample_size(self) -> Tensor:
        return (self.sum.square() / self.squares).nan_to_num(0)


class _Partial:
    """The batches that are done, ``[2, B]`` each: in memory, and in a file if there is one."""

    def __init__(self, path: str | os.PathLike[str] | None, identity: dict[str, str]) -> None:
        self.path, self.identity = None if path is None else Path(path), identity
        self.batches: list[Tensor] = []
        if self.path is None or not self.path.exists():
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                found = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(f"{self.path}: truncated, or not a partial evaluation ({error})") from None
        for name, value in identity.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{self.path} belongs to another evaluation: {name} is {found.get(name)} there and {value} here"
                )
        self.batches = [tensors[str(i)] for i in range(len(tensors))]

    def add(self, batch: Tensor) -> None:
        self.batches.append(batch)
        if self.path is None:
            return
        from safetensors.torch import save

        with replacing(self.path) as temporary:
            temporary.write_bytes(save({str(i): b for i, b in enumerate(self.batches)}, metadata=self.identity))

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _identity(model: VAE | CVAE, images: Data, condition: Tensor | None, *arguments: object) -> dict[str, str]:
    """What a partial evaluation belongs to."""
    names = ("num_samples", "proposal", "batch_size", "chunk", "binarize", "amp", "seed")
    kind = type(model).__name__ + json.dumps(model.config, sort_keys=True)
    digests = {
        "model": hashlib.sha256((kind + _digest(*model.state_dict().values())).encode()).hexdigest()[:16],
        "images": _digest(images, *([] if condition is None else [condition])),
    }
    return digests | {name: json.dumps(value) for name, value in zip(names, arguments, strict=True)}


def _digest(*values: object) -> str:
    """Of tensors and rows; a quantised layer's state has pairs of them, and what is no tensor, beside."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Rows):
            digest.update(repr((value.dtype, tuple(value.shape))).encode())
            for batch in Batches(value, 4096):
                digest.update(batch.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, tuple):
            digest.update(_digest(*value).encode())
        elif isinstance(value, Tensor):
            digest.update(repr((value.dtype, tuple(value.shape))).encode())
            plain = value.dequantize() if value.is_quantized else value.detach()
            digest.update(plain.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def batches(
    model: Model,
    images: Data,
    condition: Tensor | None,
    batch_size: int,
    binarize: bool,
    generator: torch.Generator | None,
    part: int = 0,
    parts: int = 1,
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Batches on the model's device, each with the further arguments of ``encode`` and ``decode``.

    Args:
        model: only its class and its device matter.
        images: ``[N, *E]``.
        condition: ``[N, *C]`` or labels ``[N]``; None for a VAE.
        batch_size: B, the number of rows in a batch.
        binarize: whether to draw binary rows, for which each number is a probability.
        generator: the source of those draws, by default torch's own.
        part: number of this process, from 0.
        parts: number of processes; a batch that belongs to another process is cut to its first row.

    Yields:
        ``[B, *E]``, and a tuple that holds the condition ``[B, *C]`` or nothing.

    Raises:
        ValueError: there are no rows, or the condition does not fit the rows or the model.
    """
    Batches(images, batch_size)  # checks them
    _check_condition(model, images, condition)
    device = _device(model, images)
    for i, start in enumerate(range(0, len(images), batch_size)):
        # Of a batch that is another process' part one row, because a network need not take none: the generator moves on
        # as in the process that has it, and so do the processes that share out a model's weights.
        rows = slice(start, start + (batch_size if i % parts == part else 1))
        x = images[rows].to(device)
        given = () if condition is None else (condition[rows].to(device),)
        yield draw(x, generator=generator) if binarize else x, given


def _device(model: torch.nn.Module, images: Data) -> torch.device:
    weight = first_weight(model)
    return images.device if weight is None else weight.device


def _check_condition(model: Model, images: Data, condition: Tensor | None) -> None:
    if (condition is not None) == isinstance(model, VAE):
        raise ValueError(f"a {type(model).__name__} takes {'no condition' if condition is not None else 'a condition'}")
    if condition is not None and len(condition) != len(images):
        raise ValueError(f"there must be a condition for each image, got {len(condition)} for {len(images)}")


def _standard_error(mean: float, mean_square: float, count: int) -> float:
    """Of the mean of ``count`` values: 0 for a single one, whose spread is not known."""
    return math.sqrt(max(0.0, mean_square - mean * mean) / max(1, count - 1))


def _bits(nats: float, dims: int | None) -> float | None:
    return None if dims is None else nats / (dims * math.log(2))
