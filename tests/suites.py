"""What others test their losses with, held against fastvae's: PyTorch's OpInfo samples, pythae's losses, diffusers'
posterior.

`python tests/suites.py` runs what is installed, fetches nothing, and prints how many values and gradients were the
same, and what was left out and why. It ends with an error at the first that is not.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import fastvae
from fastvae.objectives import importance_weighted_loss, log_weights

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Report:
    """Of one suite: how many samples and values of it were the same, and which samples were left out."""

    suite: str
    samples: int = 0
    values: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def same(self, ours: Tensor, theirs: Tensor, size: Tensor | float, name: str, unit: float) -> None:
        """Values, of whose terms the sizes add up to ``size``, each off by few ``unit``, and so is their sum."""
        off = (ours.double() - theirs.double()).abs()
        assert ours.shape == theirs.shape, f"{name}: {list(ours.shape)}, not {list(theirs.shape)}"
        bound = torch.as_tensor(size).double().expand(off.shape) * unit
        wrong = ~(off <= bound) & ~(ours.isnan() & theirs.isnan())
        assert not wrong.any(), f"{name}: {ours[wrong].tolist()}, not {theirs[wrong].tolist()}"
        self.values += ours.numel()


def unit_of(dtype: torch.dtype) -> float:
    """32 roundings of results, which are at least float32: of terms and of sums of up to 125 in blocks."""
    return 32 * (2.0**-53 if dtype == torch.float64 else 2.0**-24)


def gradients(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(result.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True))


def leaves(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [t.detach().to(dtype).requires_grad_() for t in tensors]


def reduced(elements: Tensor, reduction: str) -> Tensor:
    return {"none": lambda: elements, "mean": elements.mean, "sum": elements.sum}[reduction]()


def opinfo_samples(name: str, dtype: torch.dtype) -> Iterator[Any]:
    # Heavy, and it changes torch's global flags: in no process of other tests.
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (op for op in op_db if op.name == name)
    torch.manual_seed(0)
    return iter(info.sample_inputs("cpu", dtype, requires_grad=False))


def opinfo_cross_entropy() -> Report:
    """torch.nn.functional.binary_cross_entropy_with_logits, in float64, of the same numbers."""
    report = Report("OpInfo binary_cross_entropy_with_logits")
    theirs_of = torch.nn.functional.binary_cross_entropy_with_logits
    for dtype in FLOATS:
        for sample in opinfo_samples("nn.functional.binary_cross_entropy_with_logits", dtype):
            options = dict(sample.kwargs)
            if "pos_weight" in options:
                report.skipped["pos_weight: sigmoid_cross_entropy has none"] += 1
                continue
            reduction, weight = options.get("reduction", "mean"), options.get("weight")
            ours, theirs = (leaves(d, sample.input, sample.args[0]) for d in (dtype, torch.float64))
            # One value for each element, which is a row without an event here: the operators sum over an event.
            shape = sample.input.shape
            if weight is None:
                result = fastvae.sigmoid_cross_entropy(*(t.reshape(-1) for t in ours), reduction=reduction)
            else:
                elements = fastvae.sigmoid_cross_entropy(*(t.reshape(-1) for t in ours)).view(shape)
                result = reduced(elements * weight, reduction)
            options["weight"] = None if weight is None else weight.double()
            expected = theirs_of(*theirs, **options)
            size = reduced((1 + theirs[0].abs()) * (1 if weight is None else weight.double().abs()), reduction)
            report.same(result.view(expected.shape), expected, size.detach(), str(sample), unit_of(dtype))
            for a, b in zip(gradients(result, ours), gradients(expected, theirs), strict=True):
                report.same(a, b, 1 + b.abs(), f"gradient, {sample}", unit_of(dtype) + torch.finfo(dtype).eps)
            report.samples += 1
    logits = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
    sure = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert fastvae.sigmoid_cross_entropy(logits, sure).tolist() == [0, 0]
    assert theirs_of(logits, sure, reduction="none").isnan().any(), "torch gives the limit too: compare with it"
    report.skipped["infinite logits that are right: 0 here, NaN in torch"] += 1
    return report


def opinfo_gaussian() -> Report:
    """torch.nn.functional.gaussian_nll_loss, in float64, of the same numbers."""
    report = Report("OpInfo gaussian_nll_loss")
    constant = 0.5 * math.log(2 * math.pi)
    for dtype in FLOATS:
        for sample in opinfo_samples("nn.functional.gaussian_nll_loss", dtype):
            options = dict(sample.kwargs)
            reduction = options.get("reduction", "mean")
            ours, theirs = (leaves(d, sample.input, *sample.args) for d in (dtype, torch.float64))
            eps = options.get("eps", 1e-6)
            shape = torch.broadcast_shapes(*(t.shape for t in ours))
            if any(bool((t[2] < eps).any()) for t in (ours, theirs)):
                report.skipped["a variance below eps, which torch clamps without its gradient"] += 1
                continue
            # log variances of reduced precision would be others than those of the variances.
            logvar = ours[2].to(torch.promote_types(dtype, torch.float32)).log()
            if logvar.dim() < len(shape) and logvar.shape == shape[:-1]:
                logvar = logvar.unsqueeze(-1)
            mean, target, logvar = (t.expand(shape).reshape(-1) for t in (*ours[:2], logvar))
            result = fastvae.gaussian_nll(mean, target, logvar=logvar, reduction=reduction)
            if not options.get("full", False):
                result = result - (constant * mean.numel() if reduction == "sum" else constant)
            expected = torch.nn.functional.gaussian_nll_loss(*theirs, **options)
            var = theirs[2].unsqueeze(-1) if theirs[2].shape == shape[:-1] and len(shape) > 1 else theirs[2]
            terms = (1 + var.log().abs()) * (1 + (theirs[0] - theirs[1]).square() / var)
            size = reduced(terms.detach().expand(shape), reduction)
            report.same(result.view(expected.shape), expected, size, str(sample), unit_of(dtype))
            for a, b in zip(gradients(result, ours), gradients(expected, theirs), strict=True):
                largest = (terms / var.clamp(max=1)).detach().sum()
                report.same(a, b, largest, f"gradient, {sample}", unit_of(dtype) + torch.finfo(dtype).eps)
            report.samples += 1
    return report


def pythae_reconstruction(loss: str, decoded: Tensor, x: Tensor) -> Tensor:
    if loss == "bce":
        return fastvae.sigmoid_cross_entropy(decoded, x)
    # Half the squared error is the density but for its constant.
    return fastvae.gaussian_nll(decoded, x, sigma=1) - x.shape[1] * math.log(2 * math.pi) / 2


def pythae_losses() -> Report:
    """The losses of pythae's VAE, BetaVAE and IWAE, of probabilities or means."""
    from pythae.models import IWAE, VAE, BetaVAE

    report = Report("pythae's VAE, BetaVAE and IWAE")
    pixels, samples = 64, 5
    # log(1 - p) of a rounded p is off by u / (1 - p), at most u (1 + e^8) for logits up to 8.
    size = 4 * pixels * (1 + math.exp(8.0)) + pixels * pixels
    for kind in (VAE, BetaVAE, IWAE):
        for loss in ("bce", "mse"):
            torch.manual_seed(0)
            x = torch.rand(20, pixels, dtype=torch.float64)
            leading = (20, samples) if kind is IWAE else (20,)
            decoded = torch.randn(*leading, pixels, dtype=torch.float64).clamp(-8, 8).requires_grad_()
            mu, logvar = leaves(torch.float64, torch.randn(20, 3), torch.randn(20, 3))
            inputs = [decoded, mu, logvar]
            config = SimpleNamespace(reconstruction_loss=loss)
            model = SimpleNamespace(model_config=config, beta=0.3, n_samples=samples, input_dim=(pixels,))
            seen = decoded.sigmoid() if loss == "bce" else decoded
            if kind is IWAE:
                z = fastvae.reparameterize(mu, logvar, num_samples=samples)
                moments = [t.unsqueeze(1).repeat(1, samples, 1) for t in (mu, logvar)]
                expected = IWAE.loss_function(model, seen, x, *moments, z.transpose(0, 1))[0]
                rows = pythae_reconstruction(loss, decoded.transpose(0, 1), x)
                log_w = log_weights(rows, z, mu, logvar)
                # Their value is another than the bound, of the same gradient.
                value = -(log_w.softmax(0) * log_w).sum(0).mean()
                result = importance_weighted_loss(rows, z, mu, logvar).mean()
                ours = [value, *torch.autograd.grad(result, inputs, retain_graph=True)]
            else:
                expected = kind.loss_function(model, seen, x, mu, logvar, None)[0]
                beta = model.beta if kind is BetaVAE else 1.0
                result = pythae_reconstruction(loss, decoded, x).mean() + beta * fastvae.gaussian_kl(
                    mu, logvar, reduction="mean"
                )
                ours = [result, *torch.autograd.grad(result, inputs, retain_graph=True)]
            for a, b in zip(ours, [expected, *torch.autograd.grad(expected, inputs)], strict=True):
                report.same(a, b, size, f"{kind.__name__} {loss}", 32 * 2.0**-53)
            report.samples += 1
    report.skipped["pythae's own test files: its wheel is without them"] += 1
    return report


def diffusers_posterior() -> Report:
    """DiagonalGaussianDistribution, over shapes of latents."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    report = Report("diffusers' DiagonalGaussianDistribution")
    for dtype in (torch.float64, torch.float32):
        for batch, channels, height, width in ((1, 1, 1, 1), (2, 4, 8, 8), (3, 4, 5, 7), (0, 2, 4, 4), (2, 16, 3, 3)):
            torch.manual_seed(0)
            numbers = torch.randn(2, batch, 2 * channels, height, width, dtype=dtype)
            own, theirs = leaves(dtype, *numbers), leaves(torch.float64, *numbers)
            q, p = (fastvae.DiagonalGaussian(t, clamp=(-30.0, 20.0)) for t in own)
            r, s = (DiagonalGaussianDistribution(t) for t in theirs)
            x = torch.randn(batch, channels, height, width, dtype=dtype)
            size = 100 * channels * height * width
            for dims in ([1, 2, 3], [1], [2, 3], [0, 1, 2, 3]):
                a, b = q.nll(x, dims=dims), r.nll(x.double(), dims=dims)
                report.same(a, b, size * max(1, batch), f"nll {dims}", unit_of(dtype))
            for name, a, b in (
                ("kl", q.kl(), r.kl()),
                ("kl of two", q.kl(p), r.kl(s)),
                ("nll", q.nll(x), r.nll(x.double())),
            ):
                report.same(a, b, size, name, unit_of(dtype))
                for g, h in zip(gradients(a, own), gradients(b, theirs), strict=True):
                    report.same(g, h, 100, f"gradient of {name}", unit_of(dtype))
            report.samples += 1
    report.skipped["samples: of other noise, whose distribution test_integrations.py tests"] += 1
    return report


# Each suite, and the module that it needs.
SUITES: dict[Callable[[], Report], str] = {
    opinfo_cross_entropy: "expecttest",  # which torch's tests import, and torch does not install
    opinfo_gaussian: "expecttest",
    pythae_losses: "pythae",
    diffusers_posterior: "diffusers",
}


def main() -> None:
    reports = []
    for suite, needed in SUITES.items():
        if importlib.util.find_spec(needed) is None:
            report = Report(suite.__name__, skipped=Counter({f"all of it: {needed} is not installed": 1}))
        else:
            report = suite()
        reports.append(report)
        if "--json" not in sys.argv:
            print(f"{report.suite}: {report.samples} samples, {report.values} values and gradients the same")
            for reason, count in report.skipped.items():
                print(f"  left out ({count}): {reason}")
    if "--json" in sys.argv:
        print(json.dumps([vars(report) for report in reports]))


if __name__ == "__main__":
    main()
