"""The diagonal Gaussian distribution over moments that an encoder packed into one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all

from . import ops

_NAME = "fastvae.DiagonalGaussian"
_Generators = Generator | Sequence[Generator]
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class DiagonalGaussian(Distribution):
    """The distribution N(mean, diag(exp(logvar))), made from moments that an encoder packed into one tensor.

    The two halves are views of ``parameters``, which the operators read in place. The class has the interface of latent
    diffusion's posteriors (diffusers' ``DiagonalGaussianDistribution``) and that of ``torch.distributions``. Where the
    two differ:

    - ``mode()`` is a method, as in diffusers. The property ``mean`` is the same tensor.
    - ``sample()`` and ``sample(generator)`` carry gradients, as in diffusers, whose training code relies on it. Without
      these gradients an encoder would silently be trained by the KL divergence alone. ``sample(sample_shape)`` carries
      no gradient for any shape, ``()`` included, as in ``torch.distributions``. ``rsample`` always carries gradients.

    ``torch.distributions.kl_divergence`` takes two such distributions, or one and an ``Independent`` of a ``Normal``.
    ``expand((K, *batch_shape))`` copies nothing; its samples are K samples of the same moments.

    Args:
        parameters: ``[*batch, 2L]`` or ``[*batch, 2C, *E]``, floating point: means, then log variances, along the
            first dimension after the batch.
        deterministic: whether the distribution stands for its mean alone, as in diffusers: samples are the mean, and
            ``std``, ``var``, ``kl`` and ``nll`` are 0 by convention. It then has no density.
        clamp: optional limits (low, high) of the log variance in nats, low <= high. Outside of them the gradient
            of the log variance is zero, as with :func:`torch.clamp`. The attribute ``parameters`` is not clamped.
        batch_dims: number of dimensions of the batch.
        validate_args: whether to refuse NaN in the moments and in the values of ``log_prob``. Unlike elsewhere in
            ``torch.distributions`` it is off by default, because the check takes a pass over them and waits for a GPU.

    Raises:
        ValueError: ``parameters`` has no dimension of even size after the batch, is not floating point, or the limits
            are not ordered.

    Source: Kingma & Welling 2013 (arXiv:1312.6114); the interface is that of latent diffusion's auto-encoders,
    which clamp at (-30, 20) (Rombach et al. 2021, arXiv:2112.10752).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"parameters": constraints.real}
    has_rsample = True

    def __init__(
        self,
        parameters: Tensor,
        deterministic: bool = False,
        *,
        clamp: tuple[float, float] | None = None,
        batch_dims: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        _check_floating("moments", parameters)
        if batch_dims < 0 or parameters.dim() <= batch_dims or parameters.shape[batch_dims] % 2:
            batch = "B" if batch_dims == 1 else f"{batch_dims} dimensions of the batch"
            raise ValueError(
                f"{_NAME}: moments must be [{batch}, 2L] or [{batch}, 2C, *E], with an even dimension {batch_dims}, "
                f"got {list(parameters.shape)}"
            )
        mean, logvar = parameters.chunk(2, batch_dims)
        self._make(parameters, mean, logvar, deterministic, clamp, batch_dims, validate_args)

    @classmethod
    def from_mean_logvar(
        cls,
        mean: Tensor | float,
        logvar: Tensor | float,
        deterministic: bool = False,
        *,
        clamp: tuple[float, float] | None = None,
        batch_dims: int = 1,
        validate_args: bool | None = None,
    ) -> DiagonalGaussian:
        """A distribution from means and log variances, two tensors ``[*batch, *E]`` that are broadcast to each other.

        The other arguments are those of the class.
        """
        mean, logvar = broadcast_all(mean, logvar)
        _check_floating("mean", mean)
        _check_floating("logvar", logvar)
        if not 0 <= batch_dims <= mean.dim():
            raise ValueError(f"{_NAME}: mean must have {batch_dims} dimensions of the batch, got {list(mean.shape)}")
        new = cls.__new__(cls)
        new._make(None, mean, logvar, deterministic, clamp, batch_dims, validate_args)
        return new

    @classmethod
    def from_loc_scale(cls, loc: Tensor | float, scale: Tensor | float, *args: Any, **kwargs: Any) -> DiagonalGaussian:
        """A distribution from means and standard deviations, which are those of ``torch.distributions.Normal``.

        They are broadcast to each other. The other arguments are those of :meth:`from_mean_logvar`.
        """
        loc, scale = broadcast_all(loc, scale)
        _check_floating("scale", scale)
        return cls.from_mean_logvar(loc, 2 * scale.log(), *args, **kwargs)

    def _make(
        self,
        packed: Tensor | None,
        mean: Tensor,
        logvar: Tensor,
        deterministic: bool,
        clamp: tuple[float, float] | None,
        batch_dims: int,
        validate_args: bool | None,
    ) -> None:
        if clamp is not None:
            low, high = clamp
            if not low <= high:
                raise ValueError(f"{_NAME}: clamp must be (low, high), got {clamp}")
            logvar = logvar.clamp(low, high)
        self.deterministic, self.clamp = deterministic, clamp
        # What is in memory has the last dimensions of the batch; those in front of them are repetitions.
        self._packed, self._mean, self._logvar = packed, mean, logvar
        self._repeats = Size()
        super().__init__(mean.shape[:batch_dims], mean.shape[batch_dims:], validate_args=bool(validate_args))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiagonalGaussian:
        """This distribution broadcast to a larger batch, ``batch_shape``, without a copy."""
        batch_shape = Size(batch_shape)
        own = self.batch_shape
        if len(batch_shape) < len(own) or any(
            a not in (1, b) for a, b in zip(own[::-1], batch_shape[::-1], strict=False)
        ):
            raise ValueError(f"{_NAME}: cannot expand a batch {list(own)} to {list(batch_shape)}")
        new: DiagonalGaussian
        if _instance is None and type(self) is DiagonalGaussian:
            new = DiagonalGaussian.__new__(DiagonalGaussian)  # which torch.compile of PyTorch 2.11 can trace
        else:
            new = self._get_checked_instance(DiagonalGaussian, _instance)  # type: ignore[no-untyped-call]
        repeats = len(batch_shape) - (len(own) - len(self._repeats))
        new.deterministic, new.clamp, new._repeats = self.deterministic, self.clamp, batch_shape[:repeats]
        stored = batch_shape[repeats:]
        for name in ("_packed", "_mean", "_logvar"):
            t = getattr(self, name)
            setattr(new, name, None if t is None else t.expand(*stored, *t.shape[len(stored) :]))
        super(DiagonalGaussian, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def parameters(self) -> Tensor:
        """The packed moments, ``[*batch, 2L]``. They are concatenated here if they were given as two tensors."""
        packed = self._packed
        if packed is None:
            packed = torch.cat([self._mean, self._logvar], len(self.batch_shape) - len(self._repeats))
        return packed.expand(*self._repeats, *packed.shape) if self._repeats else packed

    @property
    def mean(self) -> Tensor:
        """The mean, ``[*batch, *E]``."""
        return self._mean.expand(*self._repeats, *self._mean.shape) if self._repeats else self._mean

    @property
    def logvar(self) -> Tensor:
        """The clamped log variance, of the shape of the mean."""
        return self._logvar.expand(*self._repeats, *self._logvar.shape) if self._repeats else self._logvar

    @property
    def std(self) -> Tensor:
        """The standard deviation, of the shape of the mean."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """The variance, of the shape of the mean."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    stddev, variance = std, var  # the names of torch.distributions

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The constraint on values: real numbers of the shape of the event."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def mode(self) -> Tensor:  # type: ignore[override]
        """The most likely value: the mean."""
        return self.mean

    def sample(
        self, sample_shape: Sequence[int] | _Generators | None = None, generator: _Generators | None = None
    ) -> Tensor:
        """Draws a sample (:func:`fastvae.reparameterize`), which carries gradients unless a shape is given.

        Args:
            sample_shape: if given, the samples are ``[*sample_shape, *batch, *E]`` and carry no gradient. The first
                argument may be the generator instead, as in diffusers.
            generator: the source of the noise, or a list with one generator for each element of the batch, so that the
                sample of an element does not depend on the other elements. A list of one generator counts as that
                generator.

        Raises:
            ValueError: ``sample_shape`` is neither a shape nor a generator, or the numbers of generators and of
                elements differ.
        """
        shape, generator = _shape_and_generator(sample_shape, generator)
        if shape is None:
            return self._draw(Size(), generator)
        with torch.no_grad():
            return self._draw(shape, generator)

    def rsample(
        self, sample_shape: Sequence[int] | _Generators | None = None, generator: _Generators | None = None
    ) -> Tensor:
        """Draws a sample as :meth:`sample` does, but always with gradients."""
        shape, generator = _shape_and_generator(sample_shape, generator)
        return self._draw(shape or Size(), generator)

    def sample_kl(self, generator: _Generators | None = None) -> tuple[Tensor, Tensor]:
        """``(sample(), kl())`` in one pass over the moments (:func:`fastvae.sample_kl_packed`).

        If the moments are packed and there is no ``clamp``, the gradient goes directly to ``parameters``, and ``mean``
        and ``logvar`` are not part of its graph.
        """
        if self.deterministic or self._repeats or isinstance(generator, Sequence):
            return self._draw(Size(), generator), self.kl()
        if self._packed is None or self.clamp is not None:
            z, kl = ops.sample_kl(*self._rows(), generator=generator)
        else:
            z, kl = ops.sample_kl_packed(_flat(self._packed, len(self.batch_shape)), generator=generator)
        return _shaped(z, self._mean.shape), _shaped(kl, self.batch_shape)

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL divergence from ``other``, or from N(0, I): ``[*batch]``, in nats (:func:`fastvae.gaussian_kl`).

        Raises:
            ValueError: the shapes of the events differ, the batches cannot be broadcast, or ``other`` is deterministic
                and has no density.
        """
        if self.deterministic:
            return self._zeros()
        if other is not None:
            return _divergence(self, other)
        return self._of_batch(ops.gaussian_kl(*self._rows()))

    def nll(self, sample: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
        """-log density of ``sample``, in nats (:func:`fastvae.gaussian_nll`).

        Args:
            sample: a tensor of the shape of the mean.
            dims: dimensions to sum over, by default all but those of the batch, which gives ``[*batch]``. An empty
                sequence means all dimensions, as for :func:`torch.sum`.

        Raises:
            ValueError: ``sample`` has another shape, or ``dims`` are not dimensions of it.
        """
        if sample.shape != self.mean.shape:
            raise ValueError(
                f"{_NAME}.nll: sample must have the shape of the mean, got "
                f"{list(sample.shape)} and {list(self.mean.shape)}"
            )
        every = range(sample.dim())
        try:
            given = [every[d] for d in ([dims] if isinstance(dims, int) else dims or every)]
        except IndexError:
            given = [0, 0]
        if len(set(given)) < len(given):
            raise ValueError(f"{_NAME}.nll: dims must be dimensions of sample {list(sample.shape)}, got {dims}")
        summed = list(every[len(self.batch_shape) :]) if dims is None else sorted(given)
        kept = [d for d in every if d not in summed]
        shape = Size([sample.shape[d] for d in kept])
        if self.deterministic:
            return self._zeros(shape)
        if shape == self.batch_shape and kept == list(every[: len(kept)]):
            return self._nll(sample)
        mean, x, logvar = (_flat(t.permute(*kept, *summed), len(kept)) for t in (self.mean, sample, self.logvar))
        return _shaped(ops.gaussian_nll(mean, x, logvar=logvar), shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value`` ``[..., *batch, *E]``, in nats: ``[..., *batch]`` (:func:`fastvae.gaussian_nll`).

        Args:
            value: its batch is broadcast against that of the distribution. If it has more dimensions in front, e.g. K
                samples, the moments are not expanded.

        Raises:
            ValueError: ``value`` has another event shape, the batches cannot be broadcast, or the distribution is
                deterministic and has no density.
        """
        self._check_density("log_prob")
        leading = value.dim() - len(self.event_shape)
        if leading < 0 or value.shape[leading:] != self.event_shape:
            raise ValueError(
                f"{_NAME}.log_prob: value must be [..., *{list(self.event_shape)}], got {list(value.shape)}"
            )
        if self._validate_args:
            self._validate_sample(value)
        return -self._nll(value if value.is_floating_point() else value.to(self._mean.dtype))

    def _nll(self, value: Tensor) -> Tensor:
        batch = _broadcast(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        whole = batch + self.event_shape
        value = value if value.shape == whole else value.expand(whole)
        repeats = len(batch) - len(self.batch_shape) + len(self._repeats)
        # Where the value has more than what is in memory, that is expanded.
        own = self if batch[repeats:] == self.batch_shape[len(self._repeats) :] else self.expand(batch)
        mean, logvar = own._rows()
        if not repeats:
            return _shaped(ops.gaussian_nll(mean, _flat(value, len(batch)), logvar=logvar), batch)
        # The density is the same with mean and value changed over, and the operator takes K of the former.
        value = value.reshape(math.prod(batch[:repeats]), *mean.shape)
        return _shaped(ops.gaussian_nll(value, mean, logvar=logvar), batch)

    def entropy(self) -> Tensor:
        """Differential entropy: ``[*batch]``, in nats.

        Raises:
            ValueError: the distribution is deterministic and has no density.
        """
        self._check_density("entropy")
        logvar = self._rows()[1].flatten(1)
        dtype = torch.float64 if logvar.dtype == torch.float64 else torch.float32
        constant = logvar.shape[1] * (1 + math.log(2 * math.pi))
        return self._of_batch(0.5 * (logvar.sum(1, dtype=dtype) + constant))

    def __repr__(self) -> str:
        shapes = f"batch_shape={list(self.batch_shape)}, event_shape={list(self.event_shape)}"
        options = "".join(
            f", {name}={getattr(self, name)}"
            for name in ("deterministic", "clamp")
            if getattr(self, name) not in (False, None)
        )
        return f"{type(self).__name__}({shapes}, dtype={self._mean.dtype}, device='{self._mean.device}'{options})"

    def _rows(self) -> tuple[Tensor, Tensor]:
        """What is in memory of mean and log variance, ``[N, *E]``."""
        dims = len(self.batch_shape) - len(self._repeats)
        return _flat(self._mean, dims), _flat(self._logvar, dims)

    def _of_batch(self, rows: Tensor) -> Tensor:
        """``[N]``, of the rows in memory, to ``[*batch]``."""
        rows = _shaped(rows, self.batch_shape[len(self._repeats) :])
        return rows.expand(self.batch_shape) if self._repeats else rows

    def _zeros(self, shape: Sequence[int] | None = None) -> Tensor:
        dtype = torch.float64 if self._mean.dtype == torch.float64 else torch.float32
        return torch.zeros(self.batch_shape if shape is None else shape, dtype=dtype, device=self._mean.device)

    def _check_density(self, what: str) -> None:
        if self.deterministic:
            raise ValueError(f"{_NAME}.{what}: a deterministic distribution has no density")

    def _draw(self, shape: Size, generator: _Generators | None) -> Tensor:
        whole = shape + self.batch_shape + self.event_shape
        if self.deterministic:
            return self._mean.expand(whole).clone()
        if 0 in shape + self._repeats:
            return torch.empty(whole, dtype=self._mean.dtype, device=self._mean.device)
        if isinstance(generator, Sequence) and len(generator) == 1:
            (generator,) = generator
        if not isinstance(generator, Sequence):
            samples = shape + self._repeats
            num_samples = math.prod(samples) if samples else None
            return _shaped(ops.reparameterize(*self._rows(), num_samples=num_samples, generator=generator), whole)
        if len(generator) != math.prod(self.batch_shape):
            raise ValueError(
                f"{_NAME}: there must be a generator for each element of the batch {list(self.batch_shape)}, "
                f"got {len(generator)}"
            )
        rows = (torch.split(_flat(t, len(self.batch_shape)), 1) for t in (self.mean, self.logvar))
        num_samples = math.prod(shape) if shape else None
        drawn = [
            ops.reparameterize(mean, logvar, num_samples=num_samples, generator=g)
            for mean, logvar, g in zip(*rows, generator, strict=True)
        ]
        return _shaped(torch.cat(drawn, 1 if shape else 0), whole)


def _check_floating(name: str, t: Tensor) -> None:
    if t.dtype not in _FLOATS:
        raise ValueError(f"{_NAME}: {name} must be float32, float64, bfloat16 or float16, got {t.dtype}")


def _flat(t: Tensor, dims: int) -> Tensor:
    """Its first dimensions as one: a view, where they lie in memory as one would."""
    if dims == 1:
        return t
    return t.flatten(0, dims - 1) if dims else t.unsqueeze(0)


def _shaped(t: Tensor, shape: Size) -> Tensor:
    return t if t.shape == shape else t.view(shape)


def _broadcast(a: Size, b: Size) -> Size:
    try:
        return Size(torch.broadcast_shapes(a, b))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(f"{_NAME}: batches {list(a)} and {list(b)} cannot be broadcast") from None


def _shape_and_generator(
    first: Sequence[int] | _Generators | None, generator: _Generators | None
) -> tuple[Size | None, _Generators | None]:
    """Of the arguments of ``sample``, the first of which may be either."""
    if first is None:
        return None, generator
    if isinstance(first, Generator) or (
        isinstance(first, (list, tuple)) and len(first) and all(isinstance(g, Generator) for g in first)
    ):
        if generator is not None:
            raise ValueError(f"{_NAME}: the generator was given twice")
        return None, first
    try:
        return Size(first), generator  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{_NAME}: sample_shape must be sizes, or a generator, got {first!r}") from None


def _divergence(p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    """KL(p, q), ``[*batch]``: what both repeat is computed once."""
    p._check_density("kl")
    q._check_density("kl")
    if p.event_shape != q.event_shape:
        raise ValueError(f"{_NAME}: events must be the same, got {list(p.event_shape)} and {list(q.event_shape)}")
    batch = _broadcast(p.batch_shape, q.batch_shape)
    pair = p.expand(batch), q.expand(batch)
    repeats = min(len(d._repeats) for d in pair)
    stored = batch[repeats:]
    rows = [_flat(t.expand(*stored, *p.event_shape), len(stored)) for d in pair for t in (d._mean, d._logvar)]
    kl = _shaped(ops.gaussian_kl(*rows), stored)
    return kl.expand(batch) if repeats else kl


def _of_independent(distribution: Independent[Any]) -> DiagonalGaussian:
    base: Distribution = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal):
        raise NotImplementedError(f"No KL divergence of a DiagonalGaussian and an Independent({type(base).__name__})")
    return DiagonalGaussian.from_loc_scale(base.loc, base.scale, batch_dims=len(distribution.batch_shape))


register_kl(DiagonalGaussian, DiagonalGaussian)(_divergence)
register_kl(DiagonalGaussian, Independent)(lambda p, q: _divergence(p, _of_independent(q)))
register_kl(Independent, DiagonalGaussian)(lambda p, q: _divergence(_of_independent(p), q))
