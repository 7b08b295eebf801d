"""The operators as a table: what to call, what to hold it against, and inputs to do so with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import fastvae
from fastvae import reference

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Every tail of a vector, a row of an image, and rows of more than one tile.
SIZES = [1, 7, 8, 9, 15, 16, 17, 31, 784, 3072]
K = 3
SEED = 5

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One way to call an operator.

    ``kinds`` names each tensor argument: "real", "unit" (in [0, 1]) or "counts" (above 0, and between integers, where
    every likelihood of counts has derivatives), with "K" before for a leading K or "packed" for two in one, "column",
    "channel" or "row" for one value for each of those, "batch" for those of rows without dimensions of the event, or
    "scalar" (0-d, in [1, 2]).
    """

    name: str
    kinds: tuple[str, ...]
    function: Callable[..., Tensor | Outputs]
    reference: Callable[..., Tensor | Outputs]

    def call(self, *tensors: Tensor) -> Outputs:
        """The operator, with the same noise at every call."""
        torch.manual_seed(SEED)
        return as_tuple(self.function(*tensors))

    def expected(self, *tensors: Tensor) -> Outputs:
        """The reference, with the noise of ``call``."""
        return as_tuple(self.reference(*tensors))

    def inputs(self, batch: int, event: Sequence[int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Fresh leaves, rounded to ``dtype``."""
        tensors = []
        for kind in self.kinds:
            if kind == "scalar":
                tensors.append((torch.rand((), dtype=torch.float64) + 1).to(dtype))
                continue
            shape = ((K,) if kind.startswith("K") else ()) + (batch, *event)
            if kind.startswith("packed"):
                shape = (batch, 2 * (event[0] if event else 1), *event[1:])
            if kind.startswith("column"):
                shape = tuple(event)
            if kind.startswith("channel"):
                shape = tuple(size if i == 0 else 1 for i, size in enumerate(event))
            if kind.startswith("row"):
                shape = (batch, *(1 for _ in event))
            if "batch" in kind:
                shape = (*shape[: kind.startswith("K")], batch)
            x = torch.rand(shape, dtype=torch.float64)
            if kind.endswith("real"):
                x = torch.randn(shape, dtype=torch.float64) * 1.5
            if kind.endswith("counts"):
                x = x * 6 + 0.3
            tensors.append(x.to(dtype))
        return tensors


def as_tuple(x: Tensor | Outputs) -> Outputs:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def noise_key() -> tuple[int, int]:
    """The key that a seeded call draws: seed and offset."""
    torch.manual_seed(SEED)
    key = torch.ops.fastvae.reparameterize_forward(torch.zeros(1), torch.zeros(1), None, None, None)[1]
    seed, offset = (int(k) & (2**64 - 1) for k in key)
    return seed, offset


def noise(shape: Sequence[int]) -> Tensor:
    """The noise that a seeded call draws for ``shape``, in float64, from the reference's own Philox."""
    normals = torch.from_numpy(reference.philox_normal(*noise_key(), torch.Size(shape).numel()))
    return normals.to(torch.get_default_device()).reshape(tuple(shape))


def numbers(like: Tensor, step: int, count: int, dtype: torch.dtype) -> Tensor:
    """Integers below ``count`` in the shape of ``like``, 0 first, the same at every call: they are no leaves."""
    return (torch.arange(like.numel(), device=like.device) * step % count).to(dtype).reshape(like.shape)


def pixels(like: Tensor) -> Tensor:
    """0, 51, 102 ... and 255 among them."""
    return numbers(like, 51, 256, torch.uint8)


def totals(like: Tensor) -> Tensor:
    """Above all counts, and twice those."""
    return 13 + numbers(like, 1, 5, torch.int64)


def sample(mu: Tensor, logvar: Tensor, samples: tuple[int, ...] = ()) -> Tensor:
    return mu + torch.exp(logvar / 2) * noise((*samples, *mu.shape))


KL = fastvae.gaussian_kl, reference.gaussian_kl
NLL = (
    lambda m, x, v: fastvae.gaussian_nll(m, x, logvar=v),
    lambda m, x, v: reference.gaussian_nll(m, x, logvar=v),
)


def both(name: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return getattr(fastvae, name), getattr(reference, name)


def log_scaled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda m, x, s: function(m, x, log_scale=s)


def negative_binomial(function: Callable[..., Tensor], dtype: torch.dtype | None = None) -> Callable[..., Tensor]:
    """Of a mean, theta, counts and, if there are any, logits of zeros; of a dtype, the counts are `numbers`."""
    if dtype is None:
        return lambda a, b, x, z=None, **options: function(a, b, x, zero_logits=z, **options)
    return lambda a, b, z=None, **options: function(a, b, numbers(a, 1, 5, dtype), zero_logits=z, **options)


def shares(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """Of logits of shares, theta, the logarithm of a library and, if there are any, logits of zeros, with counts."""
    return lambda a, b, s, z=None, **options: function(
        a, b, numbers(a, 1, 5, dtype), log_library=s, zero_logits=z, **options
    )


LAPLACE = tuple(map(log_scaled, both("laplace_nll")))
NB = tuple(map(negative_binomial, both("negative_binomial_nll")))

CASES = [
    Case(
        "reparameterize",
        ("real", "real"),
        lambda m, v: fastvae.reparameterize(m, v),
        lambda m, v: sample(m, v),
    ),
    Case(
        "reparameterize_samples",
        ("real", "real"),
        lambda m, v: fastvae.reparameterize(m, v, num_samples=K),
        lambda m, v: sample(m, v, (K,)),
    ),
    Case("gaussian_kl", ("real",) * 2, *KL),
    Case("gaussian_kl_prior", ("real",) * 4, *KL),
    Case(
        "gaussian_kl_mean",
        ("real",) * 2,
        lambda *t: fastvae.gaussian_kl(*t, reduction="mean"),
        lambda *t: reference.gaussian_kl(*t).mean(),
    ),
    Case(
        "sample_kl",
        ("real", "real"),
        lambda m, v: fastvae.sample_kl(m, v),
        lambda m, v: (sample(m, v), reference.gaussian_kl(m, v)),
    ),
    Case(
        "sample_kl_packed",
        ("packed real",),
        fastvae.sample_kl_packed,
        lambda moments: (sample(*moments.chunk(2, 1)), reference.gaussian_kl(*moments.chunk(2, 1))),
    ),
    Case(
        "sigmoid_cross_entropy",
        ("real", "unit"),
        fastvae.sigmoid_cross_entropy,
        reference.sigmoid_cross_entropy,
    ),
    Case(
        "sigmoid_cross_entropy_samples",
        ("K real", "unit"),
        fastvae.sigmoid_cross_entropy,
        reference.sigmoid_cross_entropy,
    ),
    Case(
        "sigmoid_cross_entropy_sum",
        ("real", "unit"),
        lambda *t: fastvae.sigmoid_cross_entropy(*t, reduction="sum"),
        lambda *t: reference.sigmoid_cross_entropy(*t).sum(),
    ),
    Case(
        "sigmoid_cross_entropy_samples_mean",
        ("K real", "unit"),
        lambda *t: fastvae.sigmoid_cross_entropy(*t, reduction="mean"),
        lambda *t: reference.sigmoid_cross_entropy(*t).mean(),
    ),
    Case(
        "gaussian_nll_sigma",
        ("real", "unit"),
        lambda m, x: fastvae.gaussian_nll(m, x, sigma=0.7),
        lambda m, x: reference.gaussian_nll(m, x, sigma=0.7),
    ),
    Case(
        "gaussian_nll_learned_sigma",
        ("real", "unit", "scalar"),
        lambda m, x, s: fastvae.gaussian_nll(m, x, sigma=s),
        lambda m, x, s: reference.gaussian_nll(m, x, sigma=s),
    ),
    Case(
        "gaussian_nll_logvar",
        ("real", "unit", "real"),
        *NLL,
    ),
    Case(
        "gaussian_nll_samples",
        ("K real", "unit", "K real"),
        *NLL,
    ),
    *(
        Case(f"gaussian_nll_{name}_logvar", (mean, "unit", f"{kind} real"), *NLL)
        for name, mean, kind in (
            ("column", "real", "column"),
            ("channel", "real", "channel"),
            ("row", "real", "row"),
            ("samples_column", "K real", "column"),
        )
    ),
    Case("gaussian_kl_column_prior", ("real", "real", "column real", "column real"), *KL),
    *(
        Case(f"laplace_nll_{name}log_scale", (mean, "unit", f"{kind} real".strip()), *LAPLACE)
        for name, mean, kind in (
            ("", "real", ""),
            ("samples_", "K real", "K"),
            ("column_", "real", "column"),
            ("channel_", "real", "channel"),
            ("row_", "real", "row"),
            ("samples_column_", "K real", "column"),
        )
    ),
    Case(
        "laplace_nll_scale",
        ("real", "unit"),
        *((lambda m, x, f=f: f(m, x, scale=0.7)) for f in both("laplace_nll")),
    ),
    Case(
        "laplace_nll_learned_scale",
        ("real", "unit", "scalar"),
        *((lambda m, x, s, f=f: f(m, x, scale=s)) for f in both("laplace_nll")),
    ),
    Case("continuous_bernoulli_nll", ("real", "unit"), *both("continuous_bernoulli_nll")),
    Case("continuous_bernoulli_nll_samples", ("K real", "unit"), *both("continuous_bernoulli_nll")),
    Case(
        "continuous_bernoulli_nll_mean",
        ("real", "unit"),
        lambda *t: fastvae.continuous_bernoulli_nll(*t, reduction="mean"),
        lambda *t: reference.continuous_bernoulli_nll(*t).mean(),
    ),
    *(
        Case(
            f"discretized_logistic_nll{name}",
            (mean, kind),
            *((lambda m, s, f=f: f(m, s, pixels(m))) for f in both("discretized_logistic_nll")),
        )
        for name, mean, kind in (
            ("", "unit", "real"),
            ("_column", "unit", "column real"),
            ("_channel", "unit", "channel real"),
            ("_row", "unit", "row real"),
            ("_scalar", "unit", "scalar"),
        )
    ),
    Case(
        "discretized_logistic_nll_samples",
        ("K unit", "column real"),
        *((lambda m, s, f=f: f(m, s, pixels(m[0]))) for f in both("discretized_logistic_nll")),
    ),
    Case("poisson_nll", ("real", "counts"), *both("poisson_nll")),
    Case("poisson_nll_samples", ("K real", "counts"), *both("poisson_nll")),
    Case(
        "poisson_nll_int32_sum",
        ("real",),
        lambda a: fastvae.poisson_nll(a, numbers(a, 1, 5, torch.int32), reduction="sum"),
        lambda a: reference.poisson_nll(a, numbers(a, 1, 5, torch.int32)).sum(),
    ),
    *(
        Case(f"binomial_nll{name}", (kind, "counts"), *((lambda a, x, f=f: f(a, x, 13)) for f in both("binomial_nll")))
        for name, kind in (("", "real"), ("_samples", "K real"))
    ),
    Case(
        "binomial_nll_column_totals",
        ("real", "counts"),
        *((lambda a, x, f=f: f(a, x, totals(a.sum(0)))) for f in both("binomial_nll")),
    ),
    Case(
        "binomial_nll_totals_uint8",
        ("real",),
        *((lambda a, f=f: f(a, numbers(a, 1, 5, torch.uint8), totals(a))) for f in both("binomial_nll")),
    ),
    *(
        Case(f"negative_binomial_nll{name}", (mean, f"{kind} real".strip(), "counts"), *NB)
        for name, mean, kind in (
            ("", "real", ""),
            ("_samples", "K real", "K"),
            ("_column", "real", "column"),
            ("_channel", "real", "channel"),
            ("_row", "real", "row"),
            ("_samples_column", "K real", "column"),
        )
    ),
    Case("negative_binomial_nll_scalar", ("real", "scalar", "counts"), *NB),
    Case(
        "negative_binomial_nll_int64_column_sum",
        ("real", "column real"),
        lambda a, b: negative_binomial(fastvae.negative_binomial_nll, torch.int64)(a, b, reduction="sum"),
        lambda a, b: negative_binomial(reference.negative_binomial_nll, torch.int64)(a, b).sum(),
    ),
    Case("zero_inflated_negative_binomial_nll", ("real", "real", "counts", "real"), *NB),
    Case("zero_inflated_negative_binomial_nll_samples_column", ("K real", "column real", "counts", "K real"), *NB),
    Case(
        "zero_inflated_negative_binomial_nll_uint8",
        ("real", "real", "real"),
        *(negative_binomial(f, torch.uint8) for f in both("negative_binomial_nll")),
    ),
    Case(
        "zero_inflated_negative_binomial_nll_int16_column_mean",
        ("real", "column real", "real"),
        lambda *t: negative_binomial(fastvae.negative_binomial_nll, torch.int16)(*t, reduction="mean"),
        lambda *t: negative_binomial(reference.negative_binomial_nll, torch.int16)(*t).mean(),
    ),
    Case("multinomial_nll", ("real", "counts"), *both("multinomial_nll")),
    Case("multinomial_nll_samples", ("K real", "counts"), *both("multinomial_nll")),
    Case(
        "multinomial_nll_constant_mean",
        ("real",),
        lambda a: fastvae.multinomial_nll(a, numbers(a, 1, 5, torch.int64), constant=True, reduction="mean"),
        lambda a: reference.multinomial_nll(a, numbers(a, 1, 5, torch.int64), constant=True).mean(),
    ),
    Case(
        "multinomial_nll_samples_uint8_sum",
        ("K real",),
        lambda a: fastvae.multinomial_nll(a, numbers(a[0], 1, 5, torch.uint8), reduction="sum"),
        lambda a: reference.multinomial_nll(a, numbers(a[0], 1, 5, torch.uint8)).sum(),
    ),
    *(
        Case(
            f"negative_binomial_nll_library_{name}",
            (mean, f"{kind} real".strip(), "counts", "batch real"),
            *((lambda a, b, x, s, f=f: f(a, b, x, log_library=s)) for f in both("negative_binomial_nll")),
        )
        for name, mean, kind in (
            ("", "real", ""),
            ("column", "real", "column"),
            ("row", "real", "row"),
            ("samples_column", "K real", "column"),
        )
    ),
    Case(
        "negative_binomial_nll_library_of_samples",
        ("K real", "column real", "counts", "K batch real"),
        *((lambda a, b, x, s, f=f: f(a, b, x, log_library=s)) for f in both("negative_binomial_nll")),
    ),
    Case(
        "negative_binomial_nll_library_int32_mean",
        ("real", "column real", "batch real"),
        lambda *t: shares(fastvae.negative_binomial_nll, torch.int32)(*t, reduction="mean"),
        lambda *t: shares(reference.negative_binomial_nll, torch.int32)(*t).mean(),
    ),
    Case(
        "zero_inflated_negative_binomial_nll_library",
        ("real", "column real", "batch real", "real"),
        *(shares(f, torch.uint8) for f in both("negative_binomial_nll")),
    ),
    Case(
        "elbo_loss",
        ("real", "unit", "real", "real"),
        lambda *t: fastvae.elbo_loss(*t, beta=0.7),
        lambda *t: reference.elbo_loss(*t, beta=0.7),
    ),
    Case(
        "elbo_loss_none",
        ("real", "unit", "real", "real"),
        lambda *t: fastvae.elbo_loss(*t, beta=0.7, reduction="none"),
        lambda *t: reference.elbo_loss(*t, beta=0.7, reduction="none"),
    ),
    Case(
        "elbo_loss_samples",
        ("K real", "unit", "real", "real"),
        lambda *t: fastvae.elbo_loss(*t, reduction="sum"),
        lambda *t: reference.elbo_loss(*t, reduction="sum"),
    ),
]
