"""The table of cases: each operator as a user writes it in PyTorch, fastvae's call, the exact result, the sizes.

Each baseline is the fastest formulation that was tried and that is within the tolerances:

- The cross-entropy is ``binary_cross_entropy_with_logits`` in eager, where ``softplus(l) - l * x`` takes 1.3 to 1.6
  times as long. Under torch.compile it is ``softplus(l) - l * x``, which with backward becomes one pass over memory;
  the other becomes several.
- bfloat16 logits stay in bfloat16 in eager, where float32 takes twice as long; torch.compile converts at no cost.
- A Gaussian with one sigma is ``mse_loss``, scaled after the sum: 3 times as fast in eager as scaling each pixel.
- ``randint_like(x, 1, 256) <= x`` binarises uint8 images 4 times as fast as ``torch.bernoulli``.
- ``torch.distributions.ContinuousBernoulli`` exceeds the tolerances near the logit 0.
- For levels that are very improbable under the logistic distribution, a difference of two sigmoids exceeds them too,
  and so does the density that PixelCNN++ uses instead (Salimans et al. 2017).
- For ``randn_like`` under torch.compile see ``bench_ops.COMPILE_OPTIONS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Binomial, Laplace
from torch.nn.functional import binary_cross_entropy_with_logits, linear, mse_loss, poisson_nll_loss, softplus

import fastvae
from fastvae import reference

Outputs = tuple[Tensor, ...]
Function = Callable[..., Tensor | Outputs]

LATENT = 32  # L of elbo_loss
DATA = {"target", "counts"}  # inputs that get no gradient
ZEROS = 0.8  # of single-cell counts
TOTAL = 16  # of a binomial distribution
HIDDEN = 200  # H of linear_sigmoid_cross_entropy, as in Burda et al. 2015
K = 50  # of reparameterize
SIGMA = 0.5


@dataclass(frozen=True)
class Case:
    """What is measured of an operator.

    ``shape`` is the ``[B, *E]`` of mu, of moments or of the target; ``samples``: K, how many logits there are for each
    target; ``packed``: mu and logvar are the halves of one tensor along dimension 1, which gets the gradient;
    ``threads``: None for all; ``readme``: whether the short table has it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    target: torch.dtype = torch.float32
    samples: int | None = None
    packed: bool = False
    threads: int | None = None
    readme: bool = False


@dataclass(frozen=True)
class Operator:
    """One operator, or one way to call it.

    ``inputs`` are the kinds of the arguments: "moment" ``[B, *E]``, "moments" (two in one, likewise), "latent"
    ``[B, L]``, "hidden" ``[B, H]`` or ``[K, B, H]``, "weight" ``[D, H]`` and "bias" ``[D]``, "logits" ``[B, *E]`` or
    ``[K, B, *E]``, "mean" and "log_scale" ``[B, *E]`` of a pixel's distribution, "column" ``[*E]``, and "target" and
    "counts" ``[B, *E]``, which need no gradient. A random operator has ``noise``, which takes its result and its
    arguments back to noise of mean 0 and variance 1; its ``exact`` takes that noise as one more argument, and its first
    output is a sample, that a decoder would go on with. All else are losses. ``fused`` is how to write it for
    torch.compile, where that is another way than in eager; ``samples``: how many it draws for each element.
    ``usual_error``: what the usual formula is off by in float32 where that is more than ``checks.TOLERANCE``, as a part
    of the largest expected value.
    """

    name: str
    inputs: tuple[str, ...]
    eager: Function
    ours: Function
    exact: Function | None
    cases: tuple[Case, ...]
    variant: str = ""
    noise: Function | None = None
    fused: Function | None = None
    samples: int = 1
    usual_error: float = 0.0

    @property
    def differentiable(self) -> bool:
        return bool(set(self.inputs) - DATA)

    def leaves(self, case: Case) -> list[Tensor]:
        """Fresh tensors: one for each argument, but a single one for packed moments."""
        if case.packed:
            batch, channels, *rest = case.shape
            return [torch.randn(batch, 2 * channels, *rest, dtype=case.dtype)]
        return [self._tensor(kind, case) for kind in self.inputs]

    def _tensor(self, kind: str, case: Case) -> Tensor:
        if kind == "target":
            if case.target == torch.uint8:
                return torch.randint(0, 256, case.shape, dtype=torch.uint8)
            return torch.rand(case.shape, dtype=case.target)
        if kind == "counts":
            is_zero = torch.rand(case.shape) < ZEROS
            return torch.poisson(torch.full(case.shape, 2.0)).add_(1).clamp_(max=TOTAL).mul_(~is_zero).to(case.target)
        if kind == "column":
            return torch.randn(case.shape[1:], dtype=case.dtype)
        if kind == "mean":
            return torch.rand(case.shape, dtype=case.dtype)
        if kind == "log_scale":
            return torch.randn(case.shape, dtype=case.dtype) / 4 - 3
        if kind == "latent":
            return torch.randn(case.shape[0], LATENT, dtype=case.dtype)
        leading = (case.samples,) if kind in ("hidden", "logits") and case.samples else ()
        if kind == "hidden":
            return torch.randn(*leading, case.shape[0], HIDDEN, dtype=case.dtype)
        if kind in ("weight", "bias"):
            size = (math.prod(case.shape[1:]), *([HIDDEN] if kind == "weight" else []))
            return torch.randn(size, dtype=case.dtype) / math.sqrt(HIDDEN)
        return torch.randn(*leading, *case.shape, dtype=case.dtype)

    def arguments(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Leaves to arguments: packed moments are halved, as a user does."""
        return leaves[0].chunk(2, 1) if len(leaves) < len(self.inputs) else leaves

    def wanted(self, leaves: Sequence[Tensor]) -> tuple[int, ...]:
        """Which leaves get a gradient."""
        return tuple(i for i in range(len(leaves)) if self.inputs[i] not in DATA)


def _event_sum(terms: Tensor, target: Tensor) -> Tensor:
    return terms.sum(tuple(range(1 - target.dim(), 0)))


def _pixels(target: Tensor, like: Tensor) -> Tensor:
    return target.to(like.dtype) / 255 if target.dtype == torch.uint8 else target


def _halves(moments: Tensor) -> tuple[Tensor, Tensor]:
    mu, logvar = moments.chunk(2, 1)
    return mu, logvar


def eager_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * _event_sum(mu.square() + logvar.exp() - 1 - logvar, mu)


def eager_kl_prior(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    ratio = (logvar - prior_logvar).exp() + (mu - prior_mu).square() * (-prior_logvar).exp()
    return 0.5 * _event_sum(ratio - 1 + prior_logvar - logvar, mu)


def layer_by_layer(network: nn.Module, x: Tensor) -> Tensor:
    """A network of the models as PyTorch runs it."""
    assert isinstance(network, nn.Sequential)
    for layer in network:
        x = layer(x)
    return x


def eager_sample(mu: Tensor, logvar: Tensor) -> Tensor:
    return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


def eager_samples(mu: Tensor, logvar: Tensor) -> Tensor:
    return mu + torch.exp(0.5 * logvar) * torch.randn(K, *mu.shape, device=mu.device)


def eager_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    x = _pixels(target, logits).expand_as(logits)
    return _event_sum(binary_cross_entropy_with_logits(logits, x, reduction="none"), target)


def eager_cross_entropy_mean(logits: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, _pixels(target, logits), reduction="sum") / len(target)


def fused_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    wide = logits.float()
    return _event_sum(softplus(wide) - wide * _pixels(target, wide), target)


def eager_nll_sigma(mean: Tensor, target: Tensor) -> Tensor:
    constant = target[0].numel() * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))
    return _event_sum(mse_loss(mean, target, reduction="none"), target) * (0.5 / SIGMA**2) + constant


def eager_nll_logvar(mean: Tensor, target: Tensor, logvar: Tensor) -> Tensor:
    terms = (target - mean).square() * torch.exp(-logvar) + logvar + math.log(2 * math.pi)
    return 0.5 * _event_sum(terms, target)


def eager_laplace(mean: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    return -_event_sum(Laplace(mean, log_scale.exp(), validate_args=False).log_prob(target), target).mean()


def eager_poisson(log_rate: Tensor, target: Tensor) -> Tensor:
    return (poisson_nll_loss(log_rate, target, reduction="sum") + torch.lgamma(target + 1).sum()) / len(target)


def eager_binomial(logits: Tensor, target: Tensor) -> Tensor:
    return -_event_sum(Binomial(TOTAL, logits=logits, validate_args=False).log_prob(target), target).mean()


def eager_negative_binomial(log_mean: Tensor, log_theta: Tensor, target: Tensor) -> Tensor:
    """As scvi-tools has it."""
    mu, theta, x = log_mean.exp(), log_theta.exp(), target.to(log_mean.dtype)
    log_sum = torch.log(theta + mu + 1e-8)
    terms = theta * (torch.log(theta + 1e-8) - log_sum) + x * (torch.log(mu + 1e-8) - log_sum)
    terms = terms + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -_event_sum(terms, target).mean()


def eager_zero_inflated(log_mean: Tensor, zero_logits: Tensor, log_theta: Tensor, target: Tensor) -> Tensor:
    """As scvi-tools has it."""
    mu, theta, x, eps = log_mean.exp(), log_theta.exp(), target.to(log_mean.dtype), 1e-8
    softplus_pi = softplus(-zero_logits)
    log_sum = torch.log(theta + mu + eps)
    pi_theta = -zero_logits + theta * (torch.log(theta + eps) - log_sum)
    zero = torch.mul((x < eps).type(torch.float32), softplus(pi_theta) - softplus_pi)
    other = -softplus_pi + pi_theta + x * (torch.log(mu + eps) - log_sum)
    other = other + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -_event_sum(zero + torch.mul((x > eps).type(torch.float32), other), target).mean()


def eager_continuous_bernoulli(logits: Tensor, target: Tensor) -> Tensor:
    size = logits.abs()
    is_near = size < 0.1
    far = torch.where(is_near, 1.0, size)
    near = size.square() / 24 - size.square().square() / 2880 - size / 2
    constant = torch.where(is_near, near, torch.log(-torch.expm1(-far) / far))
    return _event_sum(torch.relu(logits) - logits * _pixels(target, logits) + constant, target).mean()


def eager_discretized_logistic(mean: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    centered, inverse = _pixels(target, mean) - mean, torch.exp(-log_scale)
    above, below = softplus(inverse * (-0.5 / 255 - centered)), softplus(inverse * (centered - 0.5 / 255))
    inner = above + below - torch.log(-torch.expm1(inverse / -255))
    terms = torch.where(target == 0, above, torch.where(target == 255, below, inner))
    return _event_sum(terms, target).mean()


def eager_elbo(logits: Tensor, target: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    reconstruction = binary_cross_entropy_with_logits(logits, _pixels(target, logits), reduction="sum")
    return (reconstruction + eager_kl(mu, logvar).sum()) / len(target)


def fused_elbo(logits: Tensor, target: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return (fused_cross_entropy(logits, target) + eager_kl(mu.float(), logvar.float())).mean()


def exact_sample(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mu + torch.exp(logvar / 2) * eps


def sample_noise(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return (z - mu) / torch.exp(logvar / 2)


def binarize_noise(drawn: Tensor, images: Tensor) -> Tensor:
    p = images / 255
    return (drawn - p) / (p * (1 - p)).mean().sqrt()


_BF16 = torch.bfloat16

OPERATORS = [
    Operator(
        "elbo_loss",
        ("logits", "target", "latent", "latent"),
        eager_elbo,
        lambda *t: fastvae.elbo_loss(*t).loss,
        lambda *t: reference.elbo_loss(*t)[0],
        (
            Case((100, 784), readme=True),
            Case((4096, 784), readme=True),
            Case((16384, 784), readme=True),
            Case((4096, 784), dtype=_BF16, target=torch.uint8, readme=True),
        ),
        fused=fused_elbo,
    ),
    Operator(
        "sigmoid_cross_entropy",
        ("logits", "target"),
        eager_cross_entropy,
        fastvae.sigmoid_cross_entropy,
        reference.sigmoid_cross_entropy,
        (
            Case((11, 784)),
            Case((100, 784), readme=True),
            Case((4096, 784), readme=True),
            Case((16384, 784), readme=True),
            Case((16384, 784), dtype=_BF16, target=torch.uint8, readme=True),
            Case((1024, 784), samples=10, readme=True),
            Case((8, 3, 256, 256), readme=True),
        ),
        fused=fused_cross_entropy,
    ),
    Operator(
        "sigmoid_cross_entropy",
        ("logits", "target"),
        eager_cross_entropy_mean,
        lambda *t: fastvae.sigmoid_cross_entropy(*t, reduction="mean"),
        lambda *t: reference.sigmoid_cross_entropy(*t).mean(),
        (Case((100, 784)), Case((4096, 784), readme=True), Case((16384, 784))),
        variant="mean",
        fused=lambda *t: fused_cross_entropy(*t).mean(),
    ),
    Operator(
        "linear_sigmoid_cross_entropy",
        ("hidden", "weight", "bias", "target"),
        lambda h, w, b, x: eager_cross_entropy(linear(h, w, b), x),
        fastvae.linear_sigmoid_cross_entropy,
        reference.linear_sigmoid_cross_entropy,
        (
            Case((100, 784), samples=50),
            Case((100, 784), samples=512, readme=True),
            Case((100, 784), samples=512, dtype=_BF16, target=torch.uint8, readme=True),
        ),
        fused=lambda h, w, b, x: fused_cross_entropy(linear(h, w, b), x),
    ),
    Operator(
        "linear_sigmoid_cross_entropy",
        ("hidden", "weight", "bias", "target"),
        lambda h, w, b, x: eager_cross_entropy_mean(linear(h, w, b), x),
        lambda *t: fastvae.linear_sigmoid_cross_entropy(*t, reduction="mean"),
        lambda *t: reference.linear_sigmoid_cross_entropy(*t, reduction="mean"),
        (Case((100, 784)), Case((4096, 784), readme=True)),
        variant="mean",
        fused=lambda h, w, b, x: fused_cross_entropy(linear(h, w, b), x).mean(),
    ),
    Operator(
        "sample_kl",
        ("moment", "moment"),
        lambda m, v: (eager_sample(m, v), eager_kl(m, v)),
        fastvae.sample_kl,
        lambda m, v, eps: (exact_sample(m, v, eps), reference.gaussian_kl(m, v)),
        (
            Case((100, 30), readme=True),
            Case((16384, 32), readme=True),
            Case((16384, 32), threads=1, readme=True),
            Case((16384, 32), packed=True),
        ),
        noise=sample_noise,
    ),
    Operator(
        "sample_kl_packed",
        ("moments",),
        lambda h: (eager_sample(*_halves(h)), eager_kl(*_halves(h))),
        fastvae.sample_kl_packed,
        lambda h, eps: (exact_sample(*_halves(h), eps), reference.gaussian_kl(*_halves(h))),
        (Case((16384, 64)), Case((64, 8, 64, 64), readme=True), Case((64, 8, 64, 64), threads=1, readme=True)),
        noise=lambda z, h: sample_noise(z, *_halves(h)),
    ),
    Operator(
        "reparameterize",
        ("moment", "moment"),
        eager_sample,
        fastvae.reparameterize,
        exact_sample,
        (Case((100, 30)), Case((16384, 32), readme=True)),
        noise=sample_noise,
    ),
    Operator(
        "reparameterize",
        ("moment", "moment"),
        eager_samples,
        lambda m, v: fastvae.reparameterize(m, v, num_samples=K),
        exact_sample,
        (Case((1024, 50), readme=True),),
        variant=f"K={K}",
        noise=sample_noise,
        samples=K,
    ),
    Operator(
        "gaussian_kl",
        ("moment", "moment"),
        eager_kl,
        fastvae.gaussian_kl,
        reference.gaussian_kl,
        (Case((100, 30)), Case((16384, 32), readme=True)),
    ),
    Operator(
        "gaussian_kl",
        ("moment",) * 4,
        eager_kl_prior,
        fastvae.gaussian_kl,
        reference.gaussian_kl,
        (Case((16384, 32)),),
        variant="prior",
    ),
    Operator(
        "gaussian_nll",
        ("logits", "target"),
        eager_nll_sigma,
        lambda m, x: fastvae.gaussian_nll(m, x, sigma=SIGMA),
        lambda m, x: reference.gaussian_nll(m, x, sigma=SIGMA),
        (Case((100, 784)), Case((4096, 784), readme=True)),
        variant=f"sigma={SIGMA}",
    ),
    Operator(
        "gaussian_nll",
        ("logits", "target", "logits"),
        eager_nll_logvar,
        lambda m, x, v: fastvae.gaussian_nll(m, x, logvar=v),
        lambda m, x, v: reference.gaussian_nll(m, x, logvar=v),
        (Case((4096, 784), readme=True),),
        variant="logvar",
    ),
    Operator(
        "laplace_nll",
        ("logits", "target", "log_scale"),
        eager_laplace,
        lambda m, x, s: fastvae.laplace_nll(m, x, log_scale=s, reduction="mean"),
        lambda m, x, s: reference.laplace_nll(m, x, log_scale=s, reduction="mean"),
        (Case((4096, 784)),),
    ),
    Operator(
        "poisson_nll",
        ("logits", "counts"),
        eager_poisson,
        lambda *t: fastvae.poisson_nll(*t, reduction="mean"),
        lambda *t: reference.poisson_nll(*t, reduction="mean"),
        (Case((512, 4000)),),
    ),
    Operator(
        "binomial_nll",
        ("logits", "counts"),
        eager_binomial,
        lambda logits, x: fastvae.binomial_nll(logits, x, TOTAL, reduction="mean"),
        lambda logits, x: reference.binomial_nll(logits, x, TOTAL, reduction="mean"),
        (Case((4096, 784)),),
    ),
    Operator(
        "negative_binomial_nll",
        ("logits", "column", "counts"),
        eager_negative_binomial,
        lambda *t: fastvae.negative_binomial_nll(*t, reduction="mean"),
        lambda *t: reference.negative_binomial_nll(*t, reduction="mean"),
        (Case((512, 4000)), Case((512, 4000), target=torch.int32)),
        variant="theta [D]",
        usual_error=1e-2,  # differences of lgamma and of digamma, torch's and torch.compile's: 1e-3 was seen
    ),
    Operator(
        "negative_binomial_nll",
        ("logits", "logits", "column", "counts"),
        eager_zero_inflated,
        lambda a, z, b, x: fastvae.negative_binomial_nll(a, b, x, zero_logits=z, reduction="mean"),
        lambda a, z, b, x: reference.negative_binomial_nll(a, b, x, zero_logits=z, reduction="mean"),
        (Case((512, 4000)), Case((512, 4000), target=torch.int32)),
        variant="zero-inflated, theta [D]",
        usual_error=1e-2,
    ),
    Operator(
        "continuous_bernoulli_nll",
        ("logits", "target"),
        eager_continuous_bernoulli,
        lambda *t: fastvae.continuous_bernoulli_nll(*t, reduction="mean"),
        lambda *t: reference.continuous_bernoulli_nll(*t, reduction="mean"),
        (Case((4096, 784)), Case((4096, 784), target=torch.uint8)),
    ),
    Operator(
        "discretized_logistic_nll",
        ("mean", "log_scale", "target"),
        eager_discretized_logistic,
        lambda *t: fastvae.discretized_logistic_nll(*t, reduction="mean"),
        lambda *t: reference.discretized_logistic_nll(*t, reduction="mean"),
        (Case((4096, 784), target=torch.uint8),),
    ),
    Operator(
        "binarize",
        ("target",),
        lambda x: torch.randint_like(x, 1, 256) <= x,
        fastvae.binarize,
        None,
        (Case((100, 784), target=torch.uint8), Case((4096, 784), target=torch.uint8, readme=True)),
        noise=binarize_noise,
    ),
]


def find(name: str, shape: tuple[int, ...]) -> tuple[Operator, Case]:
    """The first case of an operator of that shape."""
    return next((o, c) for o in OPERATORS if o.name == name for c in o.cases if c.shape == shape)
