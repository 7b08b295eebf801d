"""The operators: each is one call of a C++ operator, which checks, allocates, runs and differentiates.

Checks, shapes for tracing and autograd live in C++, ``csrc/ops/NAME.cpp``, so the same
bad input gets the same error in eager code and under ``torch.compile``. Autocast needs no rule, but for the layers of
:func:`mlp` and of the functions whose names begin with ``linear_``: every floating dtype is taken as it is and
accumulated in at least float32.
Under the transforms of ``torch.func`` the functions are those of :mod:`fastvae.reference`, which are plain PyTorch;
forward-mode derivatives outside of them are refused.

Compiled code draws the noise of eager code, but inductor may put draws that do not depend on one another in
another order; ``torch._inductor.config.fallback_random = True`` keeps it, as for torch's own random functions.

Throughout, ``B`` is the batch, ``E`` the event (all other dimensions), ``K`` the number of samples of the
latent variable. Sums run over the event and are in nats. Tensors whose rows are dense are read where they
lie, with any batch stride: ``h.chunk(2, -1)`` and ``moments.chunk(2, 1)`` cost no copy. So are channels-last
images, but where noise is drawn: it is numbered in the order of the indices. Others are copied once.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils import _pytree

from . import reference

transformed = torch._C._are_functorch_transforms_active

_reparameterize: Callable[..., Tensor] = torch.ops.fastvae.reparameterize.default
_gaussian_kl: Callable[..., Tensor] = torch.ops.fastvae.gaussian_kl.default
_sample_kl: Callable[..., tuple[Tensor, Tensor]] = torch.ops.fastvae.sample_kl.default
_sample_kl_packed: Callable[..., tuple[Tensor, Tensor]] = torch.ops.fastvae.sample_kl_packed.default
_nll: Callable[..., Tensor] = torch.ops.fastvae.nll.default
_linear_nll: Callable[..., Tensor] = torch.ops.fastvae.linear_nll.default
_mlp: Callable[..., Tensor] = torch.ops.fastvae.mlp.default
_elbo_loss: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.fastvae.elbo_loss.default
_binarize: Callable[..., Tensor] = torch.ops.fastvae.binarize.default

# A draw moves the generator on, so a compiled graph keeps it even where its result goes unused.
for _draw in ("reparameterize_forward", "sample_kl_forward", "binarize_forward"):
    torch.fx.node.has_side_effect(getattr(torch.ops.fastvae, _draw).default)


def _register_flop_formulas() -> None:
    """The products of layers with their loss and of :func:`mlp`, which FlopCounterMode does not see.

    As torch counts: 2 for each multiplication and addition of a matrix product, nothing elementwise. Logits are counted
    each time they are computed, in the backward pass again where they were not kept. One of two products each is the
    gradient of the hidden units, and that of the weights.
    """
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    # Shapes stand in for tensors.
    def product(hidden: Sequence[int], weight: Sequence[int]) -> int:
        return 2 * math.prod(hidden) * weight[0]

    # The operands of a layer with its loss, of which one or two have weights.
    def forward(
        likelihood: str, hidden: Sequence[int], weight: Sequence[int], bias: object, target: object,
        second_weight: object, *_: object, **__: object
    ) -> int:  # fmt: skip
        return product(hidden, weight) * (1 if second_weight is None else 2)

    def layers(of_forward: int, mask: Sequence[bool], second_weight: object) -> int:
        """Products of one layer's size: those of the forward pass, and for each layer those of its gradients."""
        of_hidden = mask[0] * (1 if second_weight is None else 2)
        return of_forward + of_hidden + mask[1] + mask[4]

    def with_grads(
        likelihood: str, hidden: Sequence[int], weight: Sequence[int], bias: object, target: object,
        second_weight: object, *rest: Any, **__: object
    ) -> int:  # fmt: skip
        count = 1 if second_weight is None else 2
        return product(hidden, weight) * layers(count, rest[7], second_weight)

    def backward(
        grad: object, likelihood: str, hidden: Sequence[int], weight: Sequence[int], bias: object, target: object,
        second_weight: object, *rest: Any, **__: object
    ) -> int:  # fmt: skip
        count = 0 if rest[6] is not None else 1 if second_weight is None else 2
        return product(hidden, weight) * layers(count, rest[7], second_weight)

    def mlp_forward(x: Sequence[int], weights: Sequence[Sequence[int]], *_: object, **__: object) -> int:
        return sum(2 * math.prod(x[:-1]) * math.prod(weight) for weight in weights)

    def mlp_backward(
        grad: object, x: Sequence[int], weights: Sequence[Sequence[int]], taken: object, rounded: object,
        activation: int, mask: Sequence[bool], *_: object, **__: object
    ) -> int:  # fmt: skip
        wanted = [mask[0], *(any(of) for of in zip(mask[1:], mask[1 + len(weights) :], strict=False))]
        products = [mask[1 + i] + any(wanted[: i + 1]) for i in range(len(weights))]
        return sum(n * mlp_forward(x, [weight]) for n, weight in zip(products, weights, strict=True))

    formulas: dict[str, Callable[..., int]] = {
        "linear_nll_forward": forward,
        "linear_nll_with_grads": with_grads,
        "linear_nll_backward": backward,
        "mlp_forward": mlp_forward,
        "mlp_backward": mlp_backward,
    }
    for name, formula in formulas.items():
        part = getattr(torch.ops.fastvae, name)
        if part not in flop_registry:
            register_flop_formula(part)(formula)


class _FlopCounterImport(MetaPathFinder):
    """Registers the formulas when their register is imported: it may import triton, which takes a while."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _FLOP_COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register_flop_formulas()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


_FLOP_COUNTER = "torch.utils.flop_counter"
if _FLOP_COUNTER in sys.modules:
    _register_flop_formulas()
else:
    sys.meta_path.insert(0, _FlopCounterImport())

_Named = TypeVar("_Named", bound=type[tuple[Any, ...]])


def serializable(named_tuple: _Named) -> _Named:
    """Names a class of named tuples for ``torch.export.save``, which refuses programs that give one without a name.

    torch has a public function for data classes only; it takes every named tuple apart by itself, and asks for no more
    than the name. A torch without this one would refuse to save, as it did before.
    """
    register = getattr(_pytree, "_register_namedtuple", None)
    if register is not None:
        register(named_tuple, serialized_type_name=f"{named_tuple.__module__}.{named_tuple.__qualname__}")
    return named_tuple


@serializable
class ELBO(NamedTuple):
    """The negative evidence lower bound and its two terms, in nats; ``loss = reconstruction + beta * kl``."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def reparameterize(
    mu: Tensor, logvar: Tensor, *, num_samples: int | None = None, generator: Generator | None = None
) -> Tensor:
    """Sample ``z = mu + exp(logvar / 2) * eps`` with ``eps ~ N(0, I)``.

    No ``eps`` is stored for the backward pass: the noise of an element is a function of its index and of
    a key that the generator gives (Philox4x32-10, Box-Muller), and is computed again.

    Args:
        mu: ``[B, *E]``, floating point.
        logvar: ``[B, *E]``, floating point; the logarithm of the variance.
        num_samples: ``K``, how many samples of each row to draw; ``mu`` and ``logvar`` are not expanded.
        generator: source of the key; the default generator of the device if None. A generator cannot be
            an argument under ``torch.compile(fullgraph=True)``.

    Returns:
        ``[B, *E]``, or ``[K, B, *E]`` with ``num_samples``, in the promoted dtype of the inputs.

    Raises:
        ValueError: shapes or devices differ, a dtype is not floating point, ``num_samples`` is below 1.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), eq. 10; Doersch 2016 (arXiv:1606.05908), eq. 10.
    """
    if transformed():
        return reference.reparameterize(mu, logvar, num_samples=num_samples, generator=generator)
    return _reparameterize(mu, logvar, num_samples, generator)


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    reduction: str = "none",
) -> Tensor:
    """KL divergence of the diagonal Gaussian N(``mu``, exp(``logvar``)) from the prior, summed over E.

    Args:
        mu: ``[B, *E]``, floating point.
        logvar: ``[B, *E]``, floating point.
        prior_mu: floating point, of the shape of ``mu`` or broadcast to it (``[*E]``: all rows share it), which
            expands nothing: it is read in place, and its gradient has its own shape. None, together with
            ``prior_logvar``, for the prior N(0, I).
        prior_logvar: likewise, by itself.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over the batch.

    Returns:
        ``[B]`` or a scalar, in nats; float64 where an input is, else float32.

    Raises:
        ValueError: shapes or devices differ, a dtype is not floating point, one half of the prior is
            missing, the reduction is unknown.

    Source: Doersch 2016 (arXiv:1606.05908), eq. 7 without a prior, eq. 6 with one.
    """
    if transformed():
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction=reduction)
    return _gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)


def sample_kl(mu: Tensor, logvar: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """``reparameterize`` and ``gaussian_kl`` (against N(0, I)) in one pass over ``mu`` and ``logvar``.

    Args:
        mu: ``[B, *E]``, floating point.
        logvar: ``[B, *E]``, floating point.
        generator: as for :func:`reparameterize`.

    Returns:
        ``(z, kl)``: the sample ``[B, *E]`` and the divergence ``[B]`` in nats.

    Raises:
        ValueError: shapes or devices differ, a dtype is not floating point.

    Source: Doersch 2016 (arXiv:1606.05908), eq. 7 and 10.
    """
    if transformed():
        return reference.sample_kl(mu, logvar, generator=generator)
    return _sample_kl(mu, logvar, generator)


def sample_kl_packed(moments: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """:func:`sample_kl` of moments that an encoder packed into one tensor.

    Of ``sample_kl(*moments.chunk(2, 1))`` this spares the copy with which autograd joins the gradients of the halves.

    Args:
        moments: ``[B, 2L]`` or ``[B, 2C, *E]``, floating point: means, then log variances, along dimension 1.
        generator: as for :func:`reparameterize`.

    Returns:
        ``(z, kl)``: the sample, of the shape of the means, and the divergence ``[B]`` in nats.

    Raises:
        ValueError: ``moments`` has no dimension 1 of even size, or its dtype is not floating point.

    Source: Doersch 2016 (arXiv:1606.05908), eq. 7 and 10.
    """
    if transformed():
        return reference.sample_kl(*moments.chunk(2, 1), generator=generator)
    return _sample_kl_packed(moments, generator)


def sigmoid_cross_entropy(
    logits: Tensor, target: Tensor, *, reduction: str = "none", check_target: bool = False
) -> Tensor:
    """Negative log-likelihood of ``target`` under Bernoulli(sigmoid(``logits``)), summed over E.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device, never expanded: floating point in [0, 1], bool, or uint8
            read as x / 255. A floating-point target that requires it gets its gradient, ``-logits``. The values
            of other targets, such as pixels of 0 to 255 in floating point, are no likelihoods.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: whether to look for a value outside [0, 1], NaN among them, in a floating-point target: one more
            pass over it. On a GPU, which is not waited for, that is a device-side assertion; under the transforms of
            ``torch.func`` values are not looked at.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, the reduction is unknown; with
            ``check_target``, a target outside [0, 1]: the message has the value and its place.

    Source: Kingma & Welling 2013 (arXiv:1312.6114), App. C.1, Bernoulli decoder, in logit form.
    """
    if transformed():
        return reference.sigmoid_cross_entropy(logits, target, reduction=reduction)
    return _nll("sigmoid_cross_entropy", logits, target, reduction, check_target)


def linear_sigmoid_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    activation: str | None = None,
    reduction: str = "none",
    check_target: bool = False,
) -> Tensor:
    """:func:`sigmoid_cross_entropy` of the logits ``f(hidden) @ weight.T + bias``, a block of rows at a time.

    A block is as many rows as fit into 2 MiB of float32, or 256 to 480 where those are more; on a GPU a quarter of all
    logits, between 64 and 256 MiB. With ``"mean"`` and ``"sum"`` the gradients are written in the forward pass (but for
    float16, and a target that wants a gradient). Per sample the backward pass computes the logits again, a third more
    multiplications, where they take more than 16 MiB or are of reduced precision; others are kept. A graph of the
    derivatives (``create_graph=True``) holds the logits.

    Args:
        hidden: ``[B, H]`` or ``[K, B, H]``, floating point: what the layer takes, before ``activation``.
        weight: ``[D, H]``, of the dtype of ``hidden``, as in ``torch.nn.Linear``.
        bias: ``[D]``, of the same dtype, or None.
        target: ``[B, *E]`` with D elements each, on the same device, as for :func:`sigmoid_cross_entropy`.
        activation: f, ``"relu"``, ``"tanh"`` or None for none. It is applied to a block in the cache: neither f(hidden)
            nor a mask of it is kept for the backward pass, which returns the gradient of ``hidden`` itself.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`sigmoid_cross_entropy`.

    Under autocast ``hidden``, ``weight`` and ``bias`` are cast as for ``torch.nn.functional.linear``. Logits and their
    gradients are rounded to the dtype of ``hidden``, but not on a CPU that multiplies it in float32 anyway; the
    gradients of weight and bias are added up over the blocks in at least float32.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where ``hidden`` or ``target`` is, else float32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the activation or reduction is unknown; with ``check_target``,
            a target outside [0, 1].

    Source: as :func:`sigmoid_cross_entropy`.
    """
    if transformed():
        return reference.linear_sigmoid_cross_entropy(
            hidden, weight, bias, target, activation=activation, reduction=reduction
        )
    return _linear_nll("sigmoid_cross_entropy", hidden, weight, bias, target, reduction, check_target, activation)


def mlp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, activation: str | None = "relu"
) -> Tensor:
    """A network of linear layers with an activation between them, none after the last.

    Between two products there is one pass: bias and activation forward, and backward the activation's derivative with
    the sum for the bias. What is kept for the backward pass is what each layer takes, and under autocast the rounded
    weights.

    Args:
        x: ``[..., H]``: floating point, bool, or uint8 read as x / 255. It is rounded to the dtype of the products in
            one pass, and has its gradient where it requires one.
        weights: for each layer ``[H', H]``, as in ``torch.nn.Linear``, of one floating dtype, which the result has.
        biases: for each layer ``[H']``, of the same dtype, or None.
        activation: ``"relu"``, ``"tanh"`` or None.

    Under autocast the products are in its dtype, which the result has. The operator rounds the weights itself; their
    gradients, and those of the biases, have the dtype of the weights. On a GPU they are not rounded to less on the
    way, nor on a CPU that multiplies in float32 anyway; the sums for the biases nowhere are. A GPU's 16-bit products of
    a row that holds an infinite number may be NaN where they would be infinite.

    Returns:
        ``[..., H']`` of the last layer.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, there is no weight, or not a bias or None for each, the
            activation is unknown.

    Source: Doersch 2016 (arXiv:1606.05908), section 4: the networks of the encoder and the decoder.
    """
    if transformed():
        return reference.mlp(x, weights, biases, activation=activation)
    return _mlp(x, weights, biases, activation)


def _total(total: int | Tensor, logits: Tensor) -> Tensor:
    """As the operator takes it. What is known here is checked here: a number in a tensor is not looked at."""
    if isinstance(total, Tensor):
        return total.detach()
    if isinstance(total, bool) or not isinstance(total, (int, torch.SymInt)):
        raise ValueError(f"fastvae.binomial_nll: total must be an integer or a tensor of counts, got {total!r}")
    if total < 0:
        raise ValueError(f"fastvae.binomial_nll: total must not be negative, got {total}")
    return torch.full((), total, dtype=torch.int64, device=logits.device)


def _scale(scale: Tensor | float | None) -> tuple[Tensor | None, float]:
    """As the operator takes it; it reads no number where the last parameter is there."""
    if isinstance(scale, Tensor):
        return scale, 1.0
    return None, 1.0 if scale is None else float(scale)


def gaussian_nll(
    mean: Tensor,
    target: Tensor,
    *,
    sigma: float | Tensor | None = None,
    logvar: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """Negative log-likelihood of ``target`` under N(``mean``, sigma^2), summed over E, constants included.

    Args:
        mean: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device: floating point, bool, or uint8 read as x / 255.
        sigma: one standard deviation, a positive float or a 0-d tensor, which gets its gradient. It does not
            take part in the promotion of dtypes.
        logvar: log variances, of the shape of ``mean`` or broadcast to it: one for each element, channel
            (``[C, 1, 1]``), column (``[*E]``), row (``[B, 1]``), or one for all. Nothing is expanded: they are read in
            place, and their gradient has their own shape, added up in an order that does not depend on the number of
            threads. (Those of rows that leave the last dimension to itself, such as ``[B, 1, W]``, have a gradient of
            the shape of ``mean`` on the way.) Exactly one of the two is given.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, both or neither of ``sigma``
            and ``logvar``, the reduction is unknown, sigma not positive and finite (a tensor on another device
            than the CPU is not waited for: there it gives NaN).

    Source: Kingma & Welling 2013 (arXiv:1312.6114), App. C.2; Doersch 2016 (arXiv:1606.05908), section 2.4.3.
    """
    if transformed():
        return reference.gaussian_nll(mean, target, sigma=sigma, logvar=logvar, reduction=reduction)
    if (sigma is None) == (logvar is None):
        raise ValueError(
            "fastvae.gaussian_nll: give exactly one of sigma and logvar, got "
            + ("neither" if sigma is None else "both")
        )
    return _nll("gaussian_nll", mean, target, reduction, False, logvar, None, *_scale(sigma))


def laplace_nll(
    mean: Tensor,
    target: Tensor,
    *,
    scale: float | Tensor | None = None,
    log_scale: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """Negative log-likelihood of ``target`` under Laplace(``mean``, scale), summed over E, constants included.

    With a fixed scale b it is the L1 loss, divided by b, and a constant. The standard deviation is sqrt(2) b.

    Args:
        mean: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device: floating point, bool, or uint8 read as x / 255.
        scale: one scale b, a positive float or a 0-d tensor, which gets its gradient. It does not take part in the
            promotion of dtypes.
        log_scale: log b, of the shape of ``mean`` or broadcast to it, as ``logvar`` of :func:`gaussian_nll`. Exactly
            one of the two is given.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32. Where ``mean`` and ``target``
        are equal, their gradient is 0.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, both or neither of ``scale`` and
            ``log_scale``, the reduction is unknown, scale not positive and finite (a tensor on another device than the
            CPU is not waited for: there it gives NaN).

    Source: p(x) = e^(-abs(x - m) / b) / (2 b) for the mean m.
    """
    if transformed():
        return reference.laplace_nll(mean, target, scale=scale, log_scale=log_scale, reduction=reduction)
    if (scale is None) == (log_scale is None):
        raise ValueError(
            "fastvae.laplace_nll: give exactly one of scale and log_scale, got "
            + ("neither" if scale is None else "both")
        )
    return _nll("laplace_nll", mean, target, reduction, False, log_scale, None, *_scale(scale))


def continuous_bernoulli_nll(
    logits: Tensor, target: Tensor, *, reduction: str = "none", check_target: bool = False
) -> Tensor:
    """Negative log-likelihood of ``target`` under the continuous Bernoulli distribution, summed over E.

    Its density on [0, 1] is that of :func:`sigmoid_cross_entropy` with the constant that makes its integral 1, which
    depends on the logits: for grey images that are not binarised, it is the likelihood, and the cross-entropy is not.
    ``sigmoid(logits)`` is its parameter lambda, not its mean.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device, never expanded: floating point in [0, 1], bool, or uint8
            read as x / 255. A floating-point target that requires it gets its gradient, ``-logits``.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`sigmoid_cross_entropy`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32. A density may be larger than
        1, and its negative logarithm below 0.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, the reduction is unknown; with
            ``check_target``, a target outside [0, 1]: the message has the value and its place.

    Source: Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845), in logit form.
    """
    if transformed():
        return reference.continuous_bernoulli_nll(logits, target, reduction=reduction)
    return _nll("continuous_bernoulli_nll", logits, target, reduction, check_target)


def discretized_logistic_nll(mean: Tensor, log_scale: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """Negative log-likelihood of the levels ``target`` of an image under a discretised logistic, summed over E.

    A level has the probability that a logistic distribution gives to its bin, half a level to each side; 0 and 255 have
    all that lies beyond too. So the probabilities of the 256 levels add up to 1, and the loss divided by log 2 and the
    number of elements is in bits per dimension.

    Args:
        mean: ``[B, *E]`` or ``[K, B, *E]``, floating point: the logistic's mean in units of x / 255, so 0 for black
            and 1 for white.
        log_scale: floating point, the logarithm of the logistic's scale in the same units, of the shape of ``mean`` or
            broadcast to it, as ``logvar`` of :func:`gaussian_nll`.
        target: uint8 ``[B, *E]`` on the same device: the level.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where a parameter is, else float32. Exact also where the
        probability of a bin is far below 1e-5: it is no density times the width.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, the reduction is unknown.

    Source: Salimans et al. 2017 (arXiv:1701.05517), eq. 2, with one component; Kingma et al. 2016 (arXiv:1606.04934).
    """
    if transformed():
        return reference.discretized_logistic_nll(mean, log_scale, target, reduction=reduction)
    return _nll("discretized_logistic_nll", mean, target, reduction, False, log_scale)


def _compressed(op: str, target: Tensor, like: Tensor, dim: int = -1) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A target of counts as the operator takes it: the values, and of compressed rows their indices.

    It has as many columns as `like` has in `dim`.
    """
    if not isinstance(target, Tensor) or target.layout == torch.strided:  # of the former the operator says what it is
        return target, None, None
    if target.layout != torch.sparse_csr:
        raise ValueError(
            f"fastvae.{op}: target must be dense or have the layout torch.sparse_csr, got {target.layout}; "
            "to_sparse_csr() converts it"
        )
    if target.dim() != 2 or like.dim() == 0 or target.shape[1] != like.shape[dim]:
        raise ValueError(
            f"fastvae.{op}: a sparse target must be [B, D], with D as in dimension {dim} of {list(like.shape)}, got "
            f"{list(target.shape)}"
        )
    crow, col = (indices.long().contiguous() for indices in (target.crow_indices(), target.col_indices()))
    return target.values().contiguous(), crow, col


def poisson_nll(log_rate: Tensor, target: Tensor, *, reduction: str = "none", check_target: bool = False) -> Tensor:
    """Negative log-likelihood of the counts ``target`` under Poisson(exp(``log_rate``)), summed over E.

    log x! is included.

    Args:
        log_rate: ``[B, *E]`` or ``[K, B, *E]``, floating point: the logarithm of the mean.
        target: ``[B, *E]`` on the same device, never expanded: counts 0, 1, 2, ... in uint8, int16, int32, int64 or
            floating point. A uint8 is the count itself. A floating-point target may hold other numbers than integers,
            with the gamma function for the factorial, and gets its gradient where it requires one. Or compressed rows,
            ``[B, D]`` with the layout ``torch.sparse_csr``, which are read as they are: no dense copy is made. Their
            columns must be sorted, each there once, and their values have no gradient. The transforms of
            ``torch.func`` want dense ones.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: whether to look for a value below 0, or a NaN, in the target: one more pass over it. On a GPU,
            which is not waited for, that is a device-side assertion; under the transforms of ``torch.func`` values are
            not looked at.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, the reduction is unknown; with
            ``check_target``, a target below 0: the message has the value and its place.

    Source: p(x) = e^(x a - e^a) / x! for the log rate a.
    """
    if transformed():
        return reference.poisson_nll(log_rate, target, reduction=reduction)
    values, *indices = _compressed("poisson_nll", target, log_rate)
    return _nll("poisson_nll", log_rate, values, reduction, check_target, None, None, None, 1.0, None, *indices)


def binomial_nll(
    logits: Tensor, target: Tensor, total: int | Tensor, *, reduction: str = "none", check_target: bool = False
) -> Tensor:
    """Negative log-likelihood of the counts ``target`` out of ``total`` under Binomial(sigmoid(``logits``)).

    It is summed over E, and the logarithm of the binomial coefficient is included. With a total of 1 it is
    :func:`sigmoid_cross_entropy`.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device, never expanded: counts 0 .. total in uint8, int16, int32, int64 or
            floating point, as for :func:`poisson_nll`.
        total: the number of trials: an integer, or a tensor of counts on the same device, of the shape of ``logits`` or
            broadcast to it, one for each element, channel, column or row. It is read in place and has no gradient.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: whether to look for a target below 0, above its total, or NaN, as for :func:`poisson_nll`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where ``logits`` or a floating-point target or total is, else
        float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, total is a negative number or none, the
            reduction is unknown; with ``check_target``, a target that does not lie between 0 and total.

    Source: p(x) = C(n, x) s^x (1 - s)^(n - x), s = sigmoid(logit).
    """
    if transformed():
        return reference.binomial_nll(logits, target, total, reduction=reduction)
    return _nll("binomial_nll", logits, target, reduction, check_target, _total(total, logits))


def negative_binomial_nll(
    log_mean: Tensor,
    log_theta: Tensor,
    target: Tensor,
    *,
    log_library: Tensor | None = None,
    zero_logits: Tensor | None = None,
    reduction: str = "none",
    check_target: bool = False,
) -> Tensor:
    """Negative log-likelihood of the counts ``target`` under a negative binomial distribution, summed over E.

    Its mean is mu = exp(``log_mean``) and its variance mu + mu^2 / theta with the inverse dispersion theta =
    exp(``log_theta``): it tends to the Poisson distribution as theta grows. log x! is included. With ``zero_logits`` it
    is the zero-inflated one: a count is 0 with probability sigmoid(``zero_logits``), else it is drawn from the former.

    mu and theta are those of scvi-tools' ``NegativeBinomial`` and ``ZeroInflatedNegativeBinomial``, whose ``zi_logits``
    are ``zero_logits``. ``torch.distributions.NegativeBinomial`` calls theta ``total_count``, and its logits are
    ``log_mean - log_theta``.

    Args:
        log_mean: ``[B, *E]`` or ``[K, B, *E]``, floating point; with ``log_library`` the logits of shares.
        log_theta: floating point, of the shape of ``log_mean`` or broadcast to it: one for each element, column
            (``[*E]``, such as one for each gene), channel, row, or one for all. Nothing is expanded: it is read in
            place, and its gradient has its own shape, summed over the batch in an order that does not depend on the
            number of threads.
        target: ``[B, *E]`` on the same device, never expanded: counts 0, 1, 2, ... in uint8, int16, int32, int64 or
            floating point. A uint8 is the count itself. A floating-point target may hold other numbers than integers,
            with the gamma function for the factorials, and gets its gradient where it requires one (with
            ``zero_logits`` it is 0 at 0, where the loss jumps). Or compressed rows, as for :func:`poisson_nll`.
        log_library: ``[B]`` or ``[K, B]``, floating point, the logarithm of each row's library size s (of a cell: the
            number of its molecules). Then mean = s * softmax(``log_mean``), the softmax over E, of which no tensor is
            made. It gets its gradient where it requires one.
        zero_logits: floating point, of the shape of ``log_mean``, or None for no zeros beside those of the negative
            binomial.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Means and theta outside [e^-80, e^87] count as the nearer of these.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, the reduction is unknown; with
            ``check_target``, a target below 0: the message has the value and its place.

    Source: p(x) = G(x + theta) / (G(theta) x!) (theta / (theta + mu))^theta (mu / (theta + mu))^x, G the gamma
    function; Lopez et al. 2018 (scVI, doi:10.1038/s41592-018-0229-2), Methods, with and without zero inflation.
    """
    if transformed():
        return reference.negative_binomial_nll(
            log_mean, log_theta, target, log_library=log_library, zero_logits=zero_logits, reduction=reduction
        )
    values, *indices = _compressed("negative_binomial_nll", target, log_mean)
    name, b, c = "negative_binomial_nll", log_theta, None
    if zero_logits is not None:
        name, b, c = "zero_inflated_negative_binomial_nll", zero_logits, log_theta
    return _nll(name, log_mean, values, reduction, check_target, b, c, None, 1.0, log_library, *indices)


def multinomial_nll(
    logits: Tensor, target: Tensor, *, constant: bool = False, reduction: str = "none", check_target: bool = False
) -> Tensor:
    """Negative log-likelihood of the counts ``target`` under a multinomial distribution of softmax(``logits``).

    The softmax is over E, and no tensor of it is made. Of rows that hold each item once or not at all, it is the loss
    of a recommender's multinomial VAE.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device, never expanded, or compressed rows, both as for :func:`poisson_nll`. The
            number of trials is its sum over E.
        constant: whether to include the logarithm of the multinomial coefficient, which is the same for all logits.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those, the columns of a sparse target are not
            sorted, the reduction is unknown; with ``check_target``, a target below 0.

    Source: Liang et al. 2018 (arXiv:1802.05814), eq. 2, without the coefficient.
    """
    if transformed():
        return reference.multinomial_nll(logits, target, constant=constant, reduction=reduction)
    values, *indices = _compressed("multinomial_nll", target, logits)
    nll = _nll("multinomial_nll", logits, values, reduction, check_target, None, None, None, 1.0, None, *indices)
    return _less_coefficient(nll, _samples(logits, target.dim()), target, reduction) if constant else nll


def _samples(x: Tensor, dims: int) -> int:
    return x.shape[0] if x.dim() > dims else 1


# Of a target, whose logarithms of factorials are in float64, so many elements at a time.
_FACTORIALS_AT_ONCE = 2**18


def _less_coefficient(nll: Tensor, samples: int, target: Tensor, reduction: str) -> Tensor:
    """``nll`` less log(N! / prod x!) of each row, or the mean or sum of these over samples and rows."""
    if target.layout == torch.sparse_csr:
        x, crow = target.values().double(), target.crow_indices()
        total, factorials = (
            torch.segment_reduce(t, "sum", offsets=crow, initial=0, unsafe=True) for t in (x, torch.lgamma(x + 1))
        )
        by_row = torch.lgamma(total + 1) - factorials
    elif torch.compiler.is_compiling():  # which makes one loop of it
        by_row = _log_coefficients(target)
    else:
        rows = max(1, _FACTORIALS_AT_ONCE // max(1, math.prod(target.shape[1:])))
        by_row = torch.cat([_log_coefficients(part) for part in torch.split(target, rows)])
    if reduction == "mean":
        by_row = by_row.mean()
    elif reduction == "sum":
        by_row = by_row.sum() * samples
    return (nll - by_row).to(nll.dtype)


def _log_coefficients(target: Tensor) -> Tensor:
    x = target.reshape(target.shape[0], math.prod(target.shape[1:])).double()
    return torch.lgamma(x.sum(1) + 1) - torch.lgamma(x + 1).sum(1)


def linear_multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    constant: bool = False,
    activation: str | None = None,
    reduction: str = "none",
    check_target: bool = False,
) -> Tensor:
    """:func:`multinomial_nll` of the logits ``f(hidden) @ weight.T + bias``, a block of rows at a time.

    No tensor of all logits is made, forward or backward: blocks, their gradients and what is kept are those of
    :func:`linear_sigmoid_cross_entropy`.

    Args:
        hidden: ``[B, H]`` or ``[K, B, H]``, floating point: what the layer takes, before ``activation``.
        weight: ``[D, H]``, of the dtype of ``hidden``, as in ``torch.nn.Linear``.
        bias: ``[D]``, of the same dtype, or None.
        target: ``[B, *E]`` with D elements each, or compressed rows ``[B, D]``, as for :func:`multinomial_nll`.
        constant: as for :func:`multinomial_nll`.
        activation: f, ``"relu"``, ``"tanh"`` or None for none, as for :func:`linear_sigmoid_cross_entropy`.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Under autocast it is as :func:`linear_sigmoid_cross_entropy`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where ``hidden`` or ``target`` is, else float32.

    Raises:
        ValueError: as :func:`multinomial_nll`, and for an unknown activation.

    Source: as :func:`multinomial_nll`.
    """
    if transformed():
        return reference.linear_multinomial_nll(
            hidden, weight, bias, target, constant=constant, activation=activation, reduction=reduction
        )
    values, *indices = _compressed("linear_multinomial_nll", target, weight, 0)
    nll = _linear_nll(
        "multinomial_nll", hidden, weight, bias, values, reduction, check_target, activation,
        None, None, None, None, *indices
    )  # fmt: skip
    return _less_coefficient(nll, _samples(hidden, 2), target, reduction) if constant else nll


def linear_negative_binomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_theta: Tensor,
    target: Tensor,
    *,
    log_library: Tensor | None = None,
    zero_weight: Tensor | None = None,
    zero_bias: Tensor | None = None,
    activation: str | None = None,
    reduction: str = "none",
    check_target: bool = False,
) -> Tensor:
    """:func:`negative_binomial_nll` of ``log_mean = f(hidden) @ weight.T + bias``, a block of rows at a time.

    No tensor of all means is made, nor of all logits of zeros, forward or backward: blocks, their gradients and what is
    kept are those of :func:`linear_sigmoid_cross_entropy`.

    Args:
        hidden: ``[B, H]`` or ``[K, B, H]``, floating point: what the layers take, before ``activation``.
        weight: ``[D, H]``, of the dtype of ``hidden``, as in ``torch.nn.Linear``.
        bias: ``[D]``, of the same dtype, or None.
        log_theta: ``[*E]``, one for each column, 0-d for one for all, or of targets ``[B, D]`` and ``[B]`` also what is
            broadcast to them; as for :func:`negative_binomial_nll`.
        target: ``[B, *E]`` with D elements each, or compressed rows ``[B, D]``, as for :func:`negative_binomial_nll`.
        log_library: ``[B]`` or ``[K, B]``, as for :func:`negative_binomial_nll`.
        zero_weight: of the shape and dtype of ``weight``, for ``zero_logits = f(hidden) @ zero_weight.T + zero_bias``,
            or None for no zeros beside those of the negative binomial.
        zero_bias: ``[D]``, or None.
        activation: f, ``"relu"``, ``"tanh"`` or None for none, as for :func:`linear_sigmoid_cross_entropy`.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Under autocast ``hidden``, the weights and the biases are cast as for ``torch.nn.functional.linear``, and the rest
    is as it is.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 where an input is, else float32.

    Raises:
        ValueError: as :func:`negative_binomial_nll`, for an unknown activation, and for a ``zero_bias`` without
            ``zero_weight``.

    Source: as :func:`negative_binomial_nll`.
    """
    if zero_weight is None and zero_bias is not None:
        raise ValueError("fastvae.linear_negative_binomial_nll: there is a zero_bias, and no zero_weight")
    if transformed():
        return reference.linear_negative_binomial_nll(
            hidden, weight, bias, log_theta, target, log_library=log_library, zero_weight=zero_weight,
            zero_bias=zero_bias, activation=activation, reduction=reduction
        )  # fmt: skip
    values, *indices = _compressed("linear_negative_binomial_nll", target, weight, 0)
    name = "negative_binomial_nll" if zero_weight is None else "zero_inflated_negative_binomial_nll"
    return _linear_nll(
        name, hidden, weight, bias, values, reduction, check_target, activation,
        zero_weight, zero_bias, log_theta, log_library, *indices
    )  # fmt: skip


def elbo_loss(
    logits: Tensor,
    target: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    beta: float | Tensor = 1.0,
    reduction: str = "mean",
    check_target: bool = False,
) -> ELBO:
    """The negative ELBO of a VAE with Bernoulli outputs: reconstruction + ``beta`` * KL.

    With ``"mean"`` and ``"sum"`` the gradient of the logits is written in the forward pass, and the
    backward pass only scales it where the upstream factor is not 1 (but for float16 logits, whose loss
    scale must come before the rounding).

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point; the reconstruction is the mean over the K samples,
            the Monte-Carlo estimate of the expectation over q.
        target: ``[B, *E]``: floating point in [0, 1], bool, or uint8 read as x / 255.
        mu: ``[B, *L]``, floating point: mean of q(z given x).
        logvar: ``[B, *L]``, floating point: its log variance.
        beta: weight of the KL divergence, a float or a 0-d tensor (a schedule recompiles nothing, and the
            tensor gets its gradient). Other values than 1 no longer bound the likelihood.
        reduction: ``"mean"`` over the batch, ``"sum"`` over it, or ``"none"``.
        check_target: as for :func:`sigmoid_cross_entropy`.

    Returns:
        :class:`ELBO` ``(loss, reconstruction, kl)``, scalars or ``[B]``, in nats.

    Raises:
        ValueError: shapes, batch sizes or devices do not fit, a dtype is not one of those, ``beta`` is not
            finite (as far as it is known on the CPU) or not 0-d, the reduction is unknown; with ``check_target``, a
            target outside [0, 1].

    Source: Doersch 2016 (arXiv:1606.05908), eq. 5 and 7; beta: Higgins et al. 2017 (beta-VAE), eq. 4.
    """
    if transformed():
        return ELBO(*reference.elbo_loss(logits, target, mu, logvar, beta=beta, reduction=reduction))
    if isinstance(beta, Tensor):
        return ELBO(*_elbo_loss(logits, target, mu, logvar, beta, 1.0, reduction, check_target))
    return ELBO(*_elbo_loss(logits, target, mu, logvar, None, float(beta), reduction, check_target))


def binarize(
    images: Tensor,
    *,
    index: Tensor | None = None,
    dtype: torch.dtype = torch.bool,
    generator: Generator | None = None,
) -> Tensor:
    """Draw each pixel from Bernoulli(pixel): dynamic binarisation, anew at every call.

    Probabilities count in steps of 2^-24: a smaller one than that, but not 0, is drawn as 2^-24.

    Args:
        images: ``[N, *E]``, uint8 read as x / 255, or floating point in [0, 1].
        index: int64 ``[B]``: which of the images, gathered in the same pass; all of them, ``B = N``, if None.
        dtype: of the result, bool or floating point. A bool is a target of one byte a pixel for
            :func:`sigmoid_cross_entropy`; floating point serves as a network's input too.
        generator: as for :func:`reparameterize`.

    Returns:
        ``[B, *E]`` of ``dtype``, zeros and ones: the draws of ``binarize(images[index])``.

    Raises:
        ValueError: a dtype is another one, a value lies outside [0, 1], an index is none of the images (on a GPU, which
            is not waited for, these two are device-side assertions, as in ``torch.bernoulli``); a floating-point result
            of images that require a gradient, which a draw has not.

    Source: Burda et al. 2015 (arXiv:1509.00519), section 5.1; Salakhutdinov & Murray 2008.
    """
    if transformed():
        return reference.binarize(images, index=index, dtype=dtype, generator=generator)
    return _binarize(images, generator, index=index, dtype=dtype)
