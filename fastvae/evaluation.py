"""What a trained model is worth: its ELBO, its likelihood by importance sampling, and what its code carries.

N is the number of images, B a batch of them, K the samples of z for each, L the latent dimension; all in nats. Every
mean over images comes with its standard error, the images being a sample of all there might be.
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
    """Means over a data set, per image."""

    elbo: float
    """Nats; a lower bound on log P(x), the higher the better."""
    reconstruction: float
    """Nats, E[-log P(x|z)]."""
    kl: float
    """Nats, KL(Q(z|x), P(z))."""
    bits_per_dim: float | None
    """``-elbo`` in bits per pixel. Bernoulli: of targets in [0, 1], grey or binary. Binomial and discretised logistic:
    of the probability of the levels. Gaussian: of the density over pixels in [0, 1], so that it may be negative. None
    for other likelihoods, where it is no figure of the field."""
    standard_error: float | None
    """Nats, of ``elbo``; None where only its mean is known, as of the steps of a training."""


@serializable
class LikelihoodReport(NamedTuple):
    """The importance-weighted bound of log P(x): means over a data set, per image."""

    log_likelihood: float
    """Nats; a lower bound of log P(x) in the mean, tighter than the ELBO."""
    standard_error: float
    """Nats: what other images would change."""
    sampling_error: float
    """Nats: what other samples of z would change, for the same images. Too small where the effective sample size is
    near 1, and 0 for one sample: then one has all of the weight, and better ones were not met."""
    bits_per_dim: float | None
    """``-log_likelihood`` in bits per pixel, as that of :class:`ELBOReport`."""
    effective_sample_size: float
    """(sum w)^2 / sum w^2, of ``num_samples``."""
    num_samples: int
    """K."""
    images: int
    """N."""


@serializable
class LatentReport(NamedTuple):
    """What each dimension of the code carries."""

    nats: list[float]
    """KL(Q(z_j|x), P(z_j)), the mean over the images: ``[L]``."""
    standard_errors: list[float]
    """Of ``nats``: ``[L]``."""
    activity: list[float]
    """Variance over the images of E[z_j|x]: ``[L]``."""
    active_units: int
    """Dimensions whose activity is above 0.01."""


def elbo_report(reconstruction: float, kl: float, dims: int | None, standard_error: float | None = None) -> ELBOReport:
    """Put the two parts of the negative ELBO together.

    Args:
        reconstruction: nats per image.
        kl: nats per image.
        dims: pixels per image; None where bits per pixel are not asked for.
        standard_error: of their sum.

    Source: Doersch 2016 (arXiv:1606.05908), eq. 5 and sec. 2.4.2.
    """
    elbo = -(reconstruction + kl)
    return ELBOReport(elbo, reconstruction, kl, _bits(-elbo, dims), standard_error)


def dims_of_bits(model: Model) -> int | None:
    """Numbers of an image that its bits are shared among; None for likelihoods that are not reported in bits."""
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
    """The ELBO of a data set, from one sample of z for each image; beta plays no part.

    Args:
        model: its training mode is left as it was.
        images: ``[N, *E]``, a tensor or :class:`fastvae.data.Rows`; batches are moved to the model's device.
        condition: ``[N, *C]`` or labels ``[N]``, likewise, for a ``CVAE`` or a ``Regressor``, whose log-likelihood
            takes the place of the ELBO.
        batch_size: images at a time.
        binarize: whether the targets are binary, each pixel drawn with probability x/255.
        generator: the source of all noise, by default torch's own. With one of a fixed seed, the result is a
            function of the model and the images alone, and torch's own noise goes on undisturbed.

    Raises:
        ValueError: no images, or images that do not fit the model (the message names
            both shapes); conditions for a model without, or none for one with.
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
    """What ``evaluate`` reports on as sums over images, of which several processes may each have a part.

    Args:
        model: as for ``evaluate``, and so are the arguments that follow.
        images: all of them.
        condition: for all of them.
        batch_size: images at a time; batches are what the parts are made of.
        binarize: as for ``evaluate``.
        generator: in the same state in every process; the noise of an image does not depend on the number of parts.
        part: which one, from 0.
        parts: how many there are.

    Returns:
        float64 ``[3]``, on the model's device: reconstruction, KL and the square of both together. Added up over the
        parts they are what :func:`report_of_sums` takes.
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
    """The report of what :func:`elbo_sums` gives: of ``images`` images, with bits for ``dims`` pixels each."""
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
    """How many nats each dimension of z carries, and which are in use.

    Args:
        model: its training mode is left as it was.
        images: ``[N, *E]``, a tensor or :class:`fastvae.data.Rows`; batches are moved to the model's device.
        condition: ``[N, *C]`` or labels ``[N]``, likewise, for a ``CVAE``.
        batch_size: images at a time.
        binarize: whether the encoder sees binary images, each pixel drawn with probability x/255.
        generator: the source of those draws, by default torch's own.

    Raises:
        ValueError: as ``evaluate``.

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

    An image is encoded once; its K samples are drawn and decoded in chunks, and the target is never expanded. Memory
    does not grow with K.

    Args:
        model: its training mode is left as it was.
        images: ``[N, *E]``, a tensor or :class:`fastvae.data.Rows`; batches are moved to the model's device.
        condition: ``[N, *C]`` or labels ``[N]``, likewise, for a ``CVAE``.
        num_samples: K.
        proposal: where z comes from: ``"posterior"``, Q(z|x); or ``"prior"``, P(z), the naive estimate of eq. 1 of
            the tutorial, which needs astronomically many samples.
        batch_size: images at a time.
        memory: bytes that the decoder's activations may take; a chunk has at least one sample of one image. What a
            sample takes is measured, but for the built-in MLPs of most likelihoods, of which it is known.
        binarize: whether the targets are binary, each pixel drawn once with probability x/255.
        amp: ``"bf16"``: the decoder in bfloat16; weights and their sums are at least float32 all the same.
        seed: of all noise: with the same sizes of batches and chunks, the same result.
        partial: a file that keeps what is done, from which a later call with the same arguments goes on. It is
            removed at the end.
        progress: called after each batch with the images done and the mean of their bounds.

    Raises:
        ValueError: as ``evaluate``; a size below 1, an unknown proposal, a partial file of another evaluation.
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
            raise ValueError(f"{self.path}: truncated or no partial evaluation ({error})") from None
        for name, value in identity.items():
            if found.get(name) != value:
                raise ValueError(f"{self.path} is of another evaluation: {name} {found.get(name)} there, {value} here")
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
    """Batches on the model's device, each with what ``encode`` and ``decode`` take beside it.

    Args:
        model: of which only the kind and the device matter.
        images: ``[N, *E]``.
        condition: ``[N, *C]`` or labels ``[N]``; None for a VAE.
        batch_size: B, rows at a time.
        binarize: whether to draw binary rows, each number being a probability.
        generator: the source of those draws, by default torch's own.
        part: number of this process, from 0.
        parts: number of processes; of each batch of another part only the first row is given.

    Yields:
        ``[B, *E]``, and a tuple of the condition ``[B, *C]`` or of nothing.

    Raises:
        ValueError: no rows, or a condition that does not go with them or the model.
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
