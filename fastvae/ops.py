"""The operators: each is one call of a C++ operator, which checks, allocates, runs and differentiates.

Checks, shapes for tracing and autograd live in C++, ``csrc/ops/NAME.cpp``, so the same
bad input gets the same error in eager code and under ``torch.compile``. Autocast affects only the layers of
:func:`mlp` and of the functions whose names begin with ``linear_``. All other functions take every floating dtype as it
is and accumulate in at least float32.
Under the transforms of ``torch.func`` the functions run the plain PyTorch code of :mod:`fastvae.reference`.
Forward-mode derivatives outside of these transforms are refused.

Compiled code draws the same noise as eager code. Inductor may reorder draws that do not depend on one another;
``torch._inductor.config.fallback_random = True`` keeps their order, as for torch's own random functions.

Throughout, ``B`` is the batch, ``E`` the event (all other dimensions), ``K`` the number of samples of the
latent variable. Sums run over the event and are in nats. Tensors whose rows are dense are read in place, with any
batch stride: ``h.chunk(2, -1)`` and ``moments.chunk(2, 1)`` cost no copy. Channels-last images are read in place too,
except by functions that draw noise, because noise is numbered in the order of the indices. Any other tensor is copied
once.
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
    """Registers the name of a class of named tuples: ``torch.export.save`` refuses programs that return an unnamed one.

    torch's public function for this takes data classes only. torch flattens every named tuple by itself and needs no
    more than the name. A version of torch that lacks the private function used here refuses to save such programs.
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

    No ``eps`` is stored for the backward pass, which computes the noise again: the noise of an element is a function of
    the element's index and of a key that the generator gives (Philox4x32-10, Box-Muller).

    Args:
        mu: ``[B, *E]``, floating point.
        logvar: ``[B, *E]``, floating point; the logarithm of the variance.
        num_samples: ``K``, how many samples of each row to draw; ``mu`` and ``logvar`` are not expanded.
        generator: source of the key; None for the default generator of the device. A generator cannot be
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
        prior_mu: mean of the prior, floating point, of the shape of ``mu`` or broadcast to it (``[*E]`` if all rows
            share it). It is read in place and never expanded; its gradient has its own shape. None, together with
            ``prior_logvar``, for the prior N(0, I).
        prior_logvar: log variance of the prior, broadcast likewise; its shape may differ from that of ``prior_mu``.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over the batch.

    Returns:
        ``[B]`` or a scalar, in nats; float64 if any input is, else float32.

    Raises:
        ValueError: shapes or devices differ, a dtype is not floating point, only one of ``prior_mu`` and
            ``prior_logvar`` is given, the reduction is unknown.

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

    Unlike ``sample_kl(*moments.chunk(2, 1))``, it needs no copy that joins the gradients of the two halves in autograd.

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
            read as x / 255. A floating-point target that requires a gradient gets it, ``-logits``. For targets outside
            [0, 1], such as pixels of 0 to 255 in floating point, the result is no likelihood.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: whether to refuse a floating-point target with NaN or a value outside [0, 1]. The check takes one
            more pass over the target. On a GPU it is a device-side assertion, which does not make the host wait. Under
            the transforms of ``torch.func`` nothing is checked.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, the reduction is unknown; with
            ``check_target``, a target is outside [0, 1]: the message names the value and its index.

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
    """:func:`sigmoid_cross_entropy` of the logits ``f(hidden) @ weight.T + bias``, computed by blocks of rows.

    On a CPU a block has as many rows as fit into 2 MiB of float32, or 256 to 480 rows where fewer would fit. On a GPU a
    block is a quarter of all logits, but between 64 and 256 MiB.

    With the reductions ``"mean"`` and ``"sum"`` the forward pass computes the gradients too, except for float16 and for
    a target that requires a gradient. With ``"none"`` the logits are kept for the backward pass if they take at most
    16 MiB and are not of reduced precision. Otherwise the backward pass computes them again, which is a third more
    multiplications. A graph of the derivatives (``create_graph=True``) holds all logits.

    Args:
        hidden: ``[B, H]`` or ``[K, B, H]``, floating point: the input of ``activation`` and the layer.
        weight: ``[D, H]``, of the dtype of ``hidden``, as in ``torch.nn.Linear``.
        bias: ``[D]``, of the same dtype, or None.
        target: ``[B, *E]`` with D elements each, on the same device, as for :func:`sigmoid_cross_entropy`.
        activation: f, ``"relu"``, ``"tanh"`` or None for no activation. f is applied to one block at a time, in the
            cache. Neither f(hidden) nor a mask is kept for the backward pass, which returns the gradient of ``hidden``.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`sigmoid_cross_entropy`.

    Under autocast ``hidden``, ``weight`` and ``bias`` are cast as for ``torch.nn.functional.linear``. Logits and their
    gradients are rounded to the dtype of ``hidden``, except on a CPU that multiplies this dtype in float32. The
    gradients of weight and bias are added up over the blocks in at least float32.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if ``hidden`` or ``target`` is, else float32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the activation or reduction is unknown; with ``check_target``,
            a target is outside [0, 1].

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

    Between two matrix products there is one pass over the data: forward it applies bias and activation, backward it
    applies the activation's derivative and sums the bias's gradient. The input of each layer is kept for the backward
    pass and, under autocast, the rounded weights.

    Args:
        x: ``[..., H]``: floating point, bool, or uint8 read as x / 255. It is rounded to the dtype of the matrix
            products in one pass, and gets its gradient if it requires one.
        weights: for each layer ``[H', H]``, as in ``torch.nn.Linear``, all of one floating dtype, which is also the
            result's.
        biases: for each layer ``[H']``, of the same dtype, or None.
        activation: ``"relu"``, ``"tanh"`` or None for no activation.

    Under autocast the matrix products and the result have the dtype of autocast. The operator rounds the weights
    itself. The gradients of weights and biases have the dtype of the weights. The weights' gradients are not rounded to
    a lower precision in between on a GPU or on a CPU that multiplies in float32; the biases' never are. In 16-bit
    products on a GPU, a row that holds an infinite number may give NaN instead of an infinite result.

    Returns:
        ``[..., H']`` of the last layer.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, there is no weight, the numbers of weights and biases differ,
            the activation is unknown.

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
        sigma: one standard deviation for all elements, a positive float or a 0-d tensor, which gets its gradient. It
            does not take part in the promotion of dtypes. Give exactly one of ``sigma`` and ``logvar``.
        logvar: log variances, of the shape of ``mean`` or broadcast to it: one for each element, channel
            (``[C, 1, 1]``), column (``[*E]``), row (``[B, 1]``), or one for all. They are read in place and never
            expanded. Their gradient has their own shape and is summed in an order that does not depend on the number of
            threads. (A shape that varies over rows and the last dimension but not between, such as ``[B, 1, W]``, takes
            an intermediate gradient of the shape of ``mean``.)
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, both or neither of ``sigma``
            and ``logvar`` are given, the reduction is unknown, sigma is not positive and finite (a tensor on another
            device than the CPU is not checked, which would make the host wait: the result is NaN).

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

    With a fixed scale b it is the L1 loss divided by b, plus a constant. The standard deviation is sqrt(2) b.

    Args:
        mean: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device: floating point, bool, or uint8 read as x / 255.
        scale: one scale b for all elements, a positive float or a 0-d tensor, which gets its gradient. It does not take
            part in the promotion of dtypes. Give exactly one of ``scale`` and ``log_scale``.
        log_scale: log b, of the shape of ``mean`` or broadcast to it, as ``logvar`` of :func:`gaussian_nll`.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32. Where ``mean`` and ``target``
        are equal, their gradient is 0.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, both or neither of ``scale`` and
            ``log_scale`` are given, the reduction is unknown, scale is not positive and finite (a tensor on another
            device than the CPU is not checked, which would make the host wait: the result is NaN).

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

    The density on [0, 1] is that of :func:`sigmoid_cross_entropy` times a factor that makes it integrate to 1 and that
    depends on the logits. For grey images that are not binarised this is a likelihood, and the cross-entropy is not.
    ``sigmoid(logits)`` is the distribution's parameter lambda, not its mean.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device, never expanded: floating point in [0, 1], bool, or uint8
            read as x / 255. A floating-point target that requires a gradient gets it, ``-logits``.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`sigmoid_cross_entropy`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32. The result may be negative,
        because a density may exceed 1.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, the reduction is unknown; with
            ``check_target``, a target is outside [0, 1]: the message names the value and its index.

    Source: Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845), in logit form.
    """
    if transformed():
        return reference.continuous_bernoulli_nll(logits, target, reduction=reduction)
    return _nll("continuous_bernoulli_nll", logits, target, reduction, check_target)


def discretized_logistic_nll(mean: Tensor, log_scale: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """Negative log-likelihood of the levels ``target`` of an image under a discretised logistic, summed over E.

    The probability of a level is that of its bin, half a level to each side, under a logistic distribution. The bins of
    the levels 0 and 255 extend to infinity, so that the probabilities of the 256 levels add up to 1. The loss divided
    by log 2 and by the number of elements is in bits per dimension.

    Args:
        mean: ``[B, *E]`` or ``[K, B, *E]``, floating point: the logistic's mean in units of x / 255, so that 0 is black
            and 1 is white.
        log_scale: floating point, the logarithm of the logistic's scale in the same units, of the shape of ``mean`` or
            broadcast to it, as ``logvar`` of :func:`gaussian_nll`.
        target: the levels, uint8 ``[B, *E]`` on the same device.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if a parameter is, else float32. The result is exact
        even where the probability of a bin is far below 1e-5, because no density times bin width stands in for it.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, the reduction is unknown.

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
            floating point. A uint8 is the count itself. A floating-point target may hold numbers that are not integers,
            for which the gamma function stands in for the factorial, and gets its gradient if it requires one. A target
            may also be compressed rows, ``[B, D]`` with the layout ``torch.sparse_csr``, of which no dense copy is
            made. In each row the columns must be sorted and distinct. Compressed rows get no gradient, and the
            transforms of ``torch.func`` do not take them.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: whether to refuse a target with NaN or a value below 0. The check takes one more pass over the
            target. On a GPU it is a device-side assertion, which does not make the host wait. Under the transforms of
            ``torch.func`` nothing is checked.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, the reduction is unknown; with
            ``check_target``, a target is below 0: the message names the value and its index.

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

    The result is summed over E and includes the logarithm of the binomial coefficient. With a total of 1 it is
    :func:`sigmoid_cross_entropy`.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device, never expanded: counts 0 .. total in uint8, int16, int32, int64 or
            floating point, as for :func:`poisson_nll`.
        total: the number of trials: an integer, or a tensor of counts on the same device, of the shape of ``logits`` or
            broadcast to it, one for each element, channel, column or row. It is read in place and gets no gradient.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: whether to refuse a target that is below 0, above its total or NaN, as for :func:`poisson_nll`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if ``logits``, ``target`` or ``total`` is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, total is negative or not a count,
            the reduction is unknown; with ``check_target``, a target does not lie between 0 and total.

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

    The distribution has the mean mu = exp(``log_mean``) and the variance mu + mu^2 / theta, with the inverse dispersion
    theta = exp(``log_theta``). It tends to the Poisson distribution as theta grows. log x! is included. With
    ``zero_logits`` the distribution is zero-inflated: a count is 0 with probability sigmoid(``zero_logits``) and drawn
    from the negative binomial otherwise.

    mu and theta are those of scvi-tools' ``NegativeBinomial`` and ``ZeroInflatedNegativeBinomial``, whose ``zi_logits``
    are ``zero_logits``. ``torch.distributions.NegativeBinomial`` calls theta ``total_count``, and its logits are
    ``log_mean - log_theta``.

    Args:
        log_mean: ``[B, *E]`` or ``[K, B, *E]``, floating point; with ``log_library``, the logits of the softmax.
        log_theta: floating point, of the shape of ``log_mean`` or broadcast to it: one for each element, column
            (``[*E]``, such as one for each gene), channel, row, or one for all. It is read in place and never expanded.
            Its gradient has its own shape and is summed over the batch in an order that does not depend on the number
            of threads.
        target: ``[B, *E]`` on the same device, never expanded: counts 0, 1, 2, ... in uint8, int16, int32, int64 or
            floating point. A uint8 is the count itself. A floating-point target may hold numbers that are not integers,
            for which the gamma function stands in for the factorials, and gets its gradient if it requires one (with
            ``zero_logits`` the gradient is 0 at 0, where the loss jumps). A target may also be compressed rows, as for
            :func:`poisson_nll`.
        log_library: ``[B]`` or ``[K, B]``, floating point, the logarithm of each row's library size s (for a cell, the
            number of its molecules). Given a library, the mean is s * softmax(``log_mean``), where the softmax is over
            E and no tensor of it is made. ``log_library`` gets its gradient if it requires one.
        zero_logits: logits of the additional zeros, floating point, of the shape of ``log_mean``; None for the negative
            binomial without zero inflation.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Means and theta are clamped to [e^-80, e^87].

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, the reduction is unknown; with
            ``check_target``, a target is below 0: the message names the value and its index.

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

    The softmax is over E, and no tensor of it is made. For rows whose counts are 0 or 1, the result is the loss of the
    multinomial VAE for recommendation.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point.
        target: ``[B, *E]`` on the same device, never expanded, or compressed rows, both as for :func:`poisson_nll`. The
            number of trials is the target's sum over E.
        constant: whether to include the logarithm of the multinomial coefficient, which does not depend on the logits.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32.

    Raises:
        ValueError: shapes or devices do not fit, a dtype is not one of those above, the columns of a sparse target are
            not sorted, the reduction is unknown; with ``check_target``, a target is below 0.

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
    """:func:`multinomial_nll` of the logits ``f(hidden) @ weight.T + bias``, computed by blocks of rows.

    No tensor of all logits is made, forward or backward. For the size of a block, the gradients and what is kept, see
    :func:`linear_sigmoid_cross_entropy`.

    Args:
        hidden: ``[B, H]`` or ``[K, B, H]``, floating point: the input of ``activation`` and the layer.
        weight: ``[D, H]``, of the dtype of ``hidden``, as in ``torch.nn.Linear``.
        bias: ``[D]``, of the same dtype, or None.
        target: ``[B, *E]`` with D elements each, or compressed rows ``[B, D]``, as for :func:`multinomial_nll`.
        constant: as for :func:`multinomial_nll`.
        activation: f, ``"relu"``, ``"tanh"`` or None for no activation, as for :func:`linear_sigmoid_cross_entropy`.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Autocast acts as on :func:`linear_sigmoid_cross_entropy`.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if ``hidden`` or ``target`` is, else float32.

    Raises:
        ValueError: as for :func:`multinomial_nll`, or the activation is unknown.

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
    """:func:`negative_binomial_nll` of ``log_mean = f(hidden) @ weight.T + bias``, computed by blocks of rows.

    No tensor of all means or of all logits of zeros is made, forward or backward. For the size of a block, the
    gradients and what is kept, see :func:`linear_sigmoid_cross_entropy`. With ``zero_weight`` no logits are kept. If
    ``log_theta`` requires a gradient and is not one value per column, the backward pass computes all gradients.

    Args:
        hidden: ``[B, H]`` or ``[K, B, H]``, floating point: the input of ``activation`` and the layers.
        weight: ``[D, H]``, of the dtype of ``hidden``, as in ``torch.nn.Linear``.
        bias: ``[D]``, of the same dtype, or None.
        log_theta: as for :func:`negative_binomial_nll`: ``[*E]``, one for each column, or 0-d, one for all. For targets
            ``[B, D]`` and ``[B]`` it may be anything that is broadcast to their shape.
        target: ``[B, *E]`` with D elements each, or compressed rows ``[B, D]``, as for :func:`negative_binomial_nll`.
        log_library: ``[B]`` or ``[K, B]``, as for :func:`negative_binomial_nll`.
        zero_weight: of the shape and dtype of ``weight``, for ``zero_logits = f(hidden) @ zero_weight.T + zero_bias``;
            None for the negative binomial without zero inflation.
        zero_bias: ``[D]``, or None.
        activation: f, ``"relu"``, ``"tanh"`` or None for no activation, as for :func:`linear_sigmoid_cross_entropy`.
        reduction: ``"none"`` per sample, ``"mean"`` or ``"sum"`` over batch and samples.
        check_target: as for :func:`poisson_nll`.

    Under autocast ``hidden``, the weights and the biases are cast as for ``torch.nn.functional.linear``; the other
    arguments are not cast.

    Returns:
        ``[B]``, ``[K, B]`` or a scalar, in nats; float64 if any input is, else float32.

    Raises:
        ValueError: as for :func:`negative_binomial_nll`, or the activation is unknown, or ``zero_bias`` is given
            without ``zero_weight``.

    Source: as :func:`negative_binomial_nll`.
    """
    if zero_weight is None and zero_bias is not None:
        raise ValueError("fastvae.linear_negative_binomial_nll: zero_bias is given without zero_weight")
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

    With the reductions ``"mean"`` and ``"sum"`` the forward pass also computes the gradient of the logits. The backward
    pass then only scales this gradient if the upstream factor is not 1. Float16 logits are an exception, because their
    loss scale must be applied before the rounding.

    Args:
        logits: ``[B, *E]`` or ``[K, B, *E]``, floating point. The reconstruction term is the mean over the K samples,
            the Monte-Carlo estimate of the expectation over q.
        target: ``[B, *E]``: floating point in [0, 1], bool, or uint8 read as x / 255.
        mu: ``[B, *L]``, floating point: mean of q(z given x).
        logvar: ``[B, *L]``, floating point: log variance of q(z given x).
        beta: weight of the KL divergence, a float or a 0-d tensor, which gets its gradient and whose changes recompile
            nothing. With a beta other than 1 the loss need not bound the likelihood.
        reduction: ``"mean"`` over the batch, ``"sum"`` over it, or ``"none"``.
        check_target: as for :func:`sigmoid_cross_entropy`.

    Returns:
        :class:`ELBO` ``(loss, reconstruction, kl)``, scalars or ``[B]``, in nats.

    Raises:
        ValueError: shapes, batch sizes or devices do not fit, a dtype is not one of those above, ``beta`` is not
            finite (a tensor is checked only on the CPU) or not 0-d, the reduction is unknown; with ``check_target``, a
            target is outside [0, 1].

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
    """Draw each pixel from Bernoulli(pixel) anew at every call: dynamic binarisation.

    Probabilities are resolved in steps of 2^-24. A probability between 0 and 2^-24 is drawn as 2^-24.

    Args:
        images: ``[N, *E]``, uint8 read as x / 255, or floating point in [0, 1].
        index: int64 ``[B]``: indices of the images to draw, gathered in the same pass; None for all images, ``B = N``.
        dtype: dtype of the result, bool or floating point. A bool result is a target of one byte a pixel for
            :func:`sigmoid_cross_entropy`; a floating-point result can be a network's input too.
        generator: as for :func:`reparameterize`.

    Returns:
        ``[B, *E]`` of ``dtype``, zeros and ones: the draws of ``binarize(images[index])``.

    Raises:
        ValueError: a dtype is not one of those above, a value lies outside [0, 1] or an index is out of range (on a GPU
            these two are device-side assertions, as in ``torch.bernoulli``, which do not make the host wait), a
            floating-point result is asked for of images that require a gradient, which a draw does not have.

    Source: Burda et al. 2015 (arXiv:1509.00519), section 5.1; Salakhutdinov & Murray 2008.
    """
    if transformed():
        return reference.binarize(images, index=index, dtype=dtype, generator=generator)
    return _binarize(images, generator, index=index, dtype=dtype)
