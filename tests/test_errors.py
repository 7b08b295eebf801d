"""Bad input gets one error that names what was wrong and what is expected: eager, and when traced."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvae
from fastvae import models, nn

X = torch.zeros
PIXELS = torch.tensor([[0, 1, 0, 0.5], [0, 1, 255, 0], [3, 0, 0, 0]])  # as if they were bytes
NO_COUNTS = torch.tensor([[0, -1, 2, 3], [1, 1, 1, 1], [3, 2, -2, 0]])

LINEAR = fastvae.linear_sigmoid_cross_entropy


def with_decoder(model: models.VAE) -> models.VAE:
    model.decoder = torch.nn.Linear(2, 4)
    return model


ERRORS: list[tuple[str, Callable[[], object], str]] = [
    (
        "shape",
        lambda: fastvae.reparameterize(X(3, 4), X(3, 5)),
        "reparameterize: mu and logvar must have the same shape, got mu [3, 4] and logvar [3, 5]",
    ),
    (
        "dtype",
        lambda: fastvae.reparameterize(X(3, 4, dtype=torch.int64), X(3, 4)),
        "mu must be float32, float64, bfloat16 or float16, got Long",
    ),
    (
        "0-d",
        lambda: fastvae.reparameterize(X(()), X(())),
        "mu must have a batch dimension, [B, *E], got a 0-d tensor",
    ),
    (
        "samples",
        lambda: fastvae.reparameterize(X(3, 4), X(3, 4), num_samples=0),
        "num_samples must be at least 1, got 0",
    ),
    (
        "device",
        lambda: fastvae.gaussian_kl(X(3, 4), X(3, 4, device="meta")),
        "mu and logvar must be on the same device, got mu on cpu and logvar on meta",
    ),
    (
        "half a prior",
        lambda: fastvae.gaussian_kl(X(3, 4), X(3, 4), X(3, 4)),
        "prior_mu and prior_logvar come together, got only prior_mu",
    ),
    (
        "prior shape",
        lambda: fastvae.gaussian_kl(X(3, 4), X(3, 4), X(3), X(4)),
        "prior_mu must have the shape of mu, or be broadcast to it (one value, one for each channel or for each row), "
        "got prior_mu [3] and mu [3, 4]",
    ),
    (
        "prior dtype",
        lambda: fastvae.gaussian_kl(X(3, 4), X(3, 4), X(3, 4), X(3, 4).int()),
        "prior_logvar must be float32, float64, bfloat16 or float16, got Int",
    ),
    (
        "kl reduction",
        lambda: fastvae.gaussian_kl(X(3, 4), X(3, 4), reduction="batchmean"),
        "gaussian_kl: reduction must be 'none', 'mean' or 'sum', got 'batchmean'",
    ),
    (
        "sample_kl",
        lambda: fastvae.sample_kl(X(3, 4), X(4, 4)),
        "sample_kl: mu and logvar must have the same shape, got mu [3, 4] and logvar [4, 4]",
    ),
    (
        "hidden shape",
        lambda: LINEAR(X(3, 5), X(4, 6), None, X(3, 4)),
        "linear_sigmoid_cross_entropy: hidden must be [B, H], or [K, B, H] with samples, for weight [D, H] and "
        "target [B, *E], got hidden [3, 5], weight [4, 6] and target [3, 4]",
    ),
    (
        "hidden 0-d",
        lambda: LINEAR(X((), requires_grad=True), X(4, 6), None, X(3, 4)),
        "got hidden [], weight [4, 6] and target [3, 4]",
    ),
    (
        "hidden batch",
        lambda: LINEAR(X(2, 6), X(4, 6), None, X(3, 4)),
        "got hidden [2, 6], weight [4, 6] and target [3, 4]",
    ),
    (
        "weight shape",
        lambda: LINEAR(X(3, 6), X((), requires_grad=True), None, X(3, 4)),
        "linear_sigmoid_cross_entropy: weight must be [D, H], got []",
    ),
    (
        "target elements",
        lambda: LINEAR(X(3, 6), X(4, 6), None, X(3, 2, 3)),
        "weight must have a row for each element of a target, got weight [4, 6] and target [3, 2, 3]",
    ),
    (
        "bias shape",
        lambda: LINEAR(X(3, 6), X(4, 6), X(1, 4), X(3, 4)),
        "bias must be [D], got bias [1, 4] and weight [4, 6]",
    ),
    (
        "weight dtype",
        lambda: LINEAR(X(3, 6).bfloat16(), X(4, 6), None, X(3, 4)),
        "weight must have the dtype of hidden, BFloat16, got Float",
    ),
    (
        "bias dtype",
        lambda: LINEAR(X(3, 6), X(4, 6), X(4).double(), X(3, 4)),
        "bias must have the dtype of hidden, Float, got Double",
    ),
    (
        "hidden dtype",
        lambda: LINEAR(X(3, 6).int(), X(4, 6), None, X(3, 4)),
        "hidden must be float32, float64, bfloat16 or float16, got Int",
    ),
    (
        "hidden device",
        lambda: LINEAR(X(3, 6), X(4, 6, device="meta"), None, X(3, 4)),
        "hidden and weight must be on the same device, got hidden on cpu and weight on meta",
    ),
    (
        "linear reduction",
        lambda: LINEAR(X(3, 6), X(4, 6), None, X(3, 4), reduction="batchmean"),
        "linear_sigmoid_cross_entropy: reduction must be 'none', 'mean' or 'sum', got 'batchmean'",
    ),
    (
        "linear activation",
        lambda: LINEAR(X(3, 6), X(4, 6), None, X(3, 4), activation="gelu"),
        "linear_sigmoid_cross_entropy: activation must be None, 'relu' or 'tanh', got 'gelu'",
    ),
    (
        "mlp weights",
        lambda: fastvae.mlp(X(3, 5), [], []),
        "mlp: weights must hold at least one tensor, got none",
    ),
    (
        "mlp biases",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5), X(2, 4)], [X(4)]),
        "mlp: biases must hold a tensor or None for each weight, got 1 for 2",
    ),
    (
        "mlp first shape",
        lambda: fastvae.mlp(X(3, 5), [X(4, 6)], [None]),
        "mlp: weights[0] must be [H', 5] to fit x [3, 5], got [4, 6]",
    ),
    (
        "mlp shape",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5), X(2, 5)], [None, None]),
        "mlp: weights[1] must be [H', 4] to fit the weight before it [4, 5], got [2, 5]",
    ),
    (
        "mlp bias shape",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5)], [X(5)]),
        "mlp: biases[0] must be [4] to fit weights[0] [4, 5], got [5]",
    ),
    (
        "mlp x 0-d",
        lambda: fastvae.mlp(X((), requires_grad=True), [X(4, 5)], [None]),
        "mlp: x must be [..., H], got a 0-d tensor",
    ),
    (
        "mlp x dtype",
        lambda: fastvae.mlp(X(3, 5).int(), [X(4, 5)], [None]),
        "mlp: x must be float32, float64, bfloat16, float16, uint8 or bool, got Int",
    ),
    (
        "mlp weight dtype",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5), X(2, 4).double()], [None, None]),
        "mlp: weights must have one dtype, got Float and, in weights[1], Double",
    ),
    (
        "mlp bias dtype",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5)], [X(4).double()]),
        "mlp: biases[0] must have the dtype of weights[0], Float, got Double",
    ),
    (
        "mlp weight that is none",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5).int()], [None]),
        "mlp: weights[0] must be float32, float64, bfloat16 or float16, got Int",
    ),
    (
        "mlp device",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5, device="meta")], [None]),
        "mlp: x and weights[0] must be on the same device, got x on cpu and weights[0] on meta",
    ),
    (
        "mlp activation",
        lambda: fastvae.mlp(X(3, 5), [X(4, 5)], [None], activation="gelu"),
        "mlp: activation must be None, 'relu' or 'tanh', got 'gelu'",
    ),
    (
        "sample_kl_packed",
        lambda: fastvae.sample_kl_packed(X(3, 5)),
        "sample_kl_packed: moments must be [B, 2L] or [B, 2C, *E], with an even dimension 1, got [3, 5]",
    ),
    (
        "target shape",
        lambda: fastvae.sigmoid_cross_entropy(X(3, 4), X(3, 1)),
        "must have the shape of target, [B, *E], or [K, B, *E] with samples, got logits [3, 4] and target [3, 1]",
    ),
    (
        "target samples",
        lambda: fastvae.sigmoid_cross_entropy(X(2, 3, 4), X(2, 4)),
        "got logits [2, 3, 4] and target [2, 4]",
    ),
    (
        "target dtype",
        lambda: fastvae.sigmoid_cross_entropy(X(3, 4), X(3, 4).long()),
        "target must be float32, float64, bfloat16, float16, uint8 or bool, got Long",
    ),
    (
        "logits dtype",
        lambda: fastvae.sigmoid_cross_entropy(X(3, 4).byte(), X(3, 4)),
        "logits must be float32, float64, bfloat16 or float16, got Byte",
    ),
    (
        "reduction",
        lambda: fastvae.sigmoid_cross_entropy(X(3, 4), X(3, 4), reduction="max"),
        "sigmoid_cross_entropy: reduction must be 'none', 'mean' or 'sum', got 'max'",
    ),
    (
        "neither",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4)),
        "give exactly one of sigma and logvar, got neither",
    ),
    (
        "both",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4), sigma=1.0, logvar=X(3, 4)),
        "give exactly one of sigma and logvar, got both",
    ),
    (
        "sigma 0",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4), sigma=0.0),
        "sigma must be positive and finite, got 0",
    ),
    (
        "sigma nan",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4), sigma=torch.nan),
        "sigma must be positive and finite, got nan",
    ),
    (
        "sigma tensor",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4), sigma=torch.tensor(-2.0)),
        "sigma must be positive and finite, got -2",
    ),
    (
        "sigma shape",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4), sigma=X(4)),
        "sigma must be a float or a 0-d tensor, got shape [4]",
    ),
    (
        "logvar shape",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4), logvar=X(3)),
        "logvar must have the shape of mean, or be broadcast to it (one value, one for each channel or for each row), "
        "got logvar [3] and mean [3, 4]",
    ),
    (
        "logvar dimensions",
        lambda: fastvae.gaussian_nll(X(3, 4), X(3, 4), logvar=X(1, 1, 1)),
        "got logvar [1, 1, 1] and mean [3, 4]",
    ),
    (
        "laplace neither",
        lambda: fastvae.laplace_nll(X(3, 4), X(3, 4)),
        "give exactly one of scale and log_scale, got neither",
    ),
    (
        "laplace both",
        lambda: fastvae.laplace_nll(X(3, 4), X(3, 4), scale=1.0, log_scale=X(3, 4)),
        "give exactly one of scale and log_scale, got both",
    ),
    (
        "scale 0",
        lambda: fastvae.laplace_nll(X(3, 4), X(3, 4), scale=0.0),
        "scale must be positive and finite, got 0",
    ),
    (
        "scale tensor",
        lambda: fastvae.laplace_nll(X(3, 4), X(3, 4), scale=torch.tensor(-2.0)),
        "laplace_nll: scale must be positive and finite, got -2",
    ),
    (
        "scale shape",
        lambda: fastvae.laplace_nll(X(3, 4), X(3, 4), scale=X(4)),
        "scale must be a float or a 0-d tensor, got shape [4]",
    ),
    (
        "log_scale shape",
        lambda: fastvae.laplace_nll(X(3, 4), X(3, 4), log_scale=X(3)),
        "laplace_nll: log_scale must have the shape of mean, or be broadcast to it (one value, one for each channel or "
        "for each row), got log_scale [3] and mean [3, 4]",
    ),
    (
        "laplace target dtype",
        lambda: fastvae.laplace_nll(X(3, 4), X(3, 4).long(), scale=1.0),
        "laplace_nll: target must be float32, float64, bfloat16, float16, uint8 or bool, got Long",
    ),
    (
        "continuous Bernoulli target shape",
        lambda: fastvae.continuous_bernoulli_nll(X(3, 4), X(3, 1)),
        "continuous_bernoulli_nll: logits must have the shape of target, [B, *E], or [K, B, *E] with samples, got "
        "logits [3, 4] and target [3, 1]",
    ),
    (
        "continuous Bernoulli target beyond 1",
        lambda: fastvae.continuous_bernoulli_nll(X(3, 4), PIXELS, check_target=True),
        "continuous_bernoulli_nll: target must lie in [0, 1], got 255 at [1, 2]",
    ),
    (
        "levels dtype",
        lambda: fastvae.discretized_logistic_nll(X(3, 4), X(3, 4), X(3, 4)),
        "discretized_logistic_nll: target must be uint8, the level of a pixel, got Float",
    ),
    (
        "levels log_scale",
        lambda: fastvae.discretized_logistic_nll(X(3, 4), X(3), X(3, 4).byte()),
        "discretized_logistic_nll: log_scale must have the shape of mean, or be broadcast to it (one value, one for "
        "each channel or for each row), got log_scale [3] and mean [3, 4]",
    ),
    (
        "levels reduction",
        lambda: fastvae.discretized_logistic_nll(X(3, 4), X(4), X(3, 4).byte(), reduction="bits"),
        "discretized_logistic_nll: reduction must be 'none', 'mean' or 'sum', got 'bits'",
    ),
    (
        "counts dtype",
        lambda: fastvae.poisson_nll(X(3, 4), X(3, 4).bool()),
        "poisson_nll: target must be counts in uint8, int16, int32, int64, float32, float64, bfloat16 or float16, got "
        "Bool",
    ),
    (
        "counts shape",
        lambda: fastvae.poisson_nll(X(2, 3, 4), X(2, 4).int()),
        "poisson_nll: log_rate must have the shape of target, [B, *E], or [K, B, *E] with samples, got log_rate "
        "[2, 3, 4] and target [2, 4]",
    ),
    (
        "rate dtype",
        lambda: fastvae.poisson_nll(X(3, 4).int(), X(3, 4).int()),
        "poisson_nll: log_rate must be float32, float64, bfloat16 or float16, got Int",
    ),
    (
        "counts below 0",
        lambda: fastvae.poisson_nll(X(3, 4), NO_COUNTS, check_target=True),
        "fastvae.poisson_nll: target must be counts, none of them negative, got -1 at [0, 1]",
    ),
    (
        "counts below 0, floating point",
        lambda: fastvae.negative_binomial_nll(X(3, 4), X(4), NO_COUNTS.float(), check_target=True),
        "fastvae.negative_binomial_nll: target must be counts, none of them negative, got -1 at [0, 1]",
    ),
    (
        "counts nan, zero-inflated",
        lambda: fastvae.negative_binomial_nll(
            X(3, 4), X(4), X(3, 4) * torch.nan, zero_logits=X(3, 4), check_target=True
        ),
        "fastvae.negative_binomial_nll: target must be counts, none of them negative, got nan at [0, 0]",
    ),
    *(
        (
            f"counts infinite, {dtype}",
            lambda dtype=dtype: fastvae.poisson_nll(
                X(2, 2), torch.tensor([[0, 1], [torch.inf, 3]]).to(dtype), check_target=True
            ),
            "fastvae.poisson_nll: target must be counts, none of them negative, got inf at [1, 0]",
        )
        for dtype in (torch.float16, torch.float32, torch.float64)
    ),
    (
        "theta shape",
        lambda: fastvae.negative_binomial_nll(X(3, 4), X(3), X(3, 4).int()),
        "negative_binomial_nll: log_theta must have the shape of log_mean, or be broadcast to it (one value, one for "
        "each channel or for each row), got log_theta [3] and log_mean [3, 4]",
    ),
    (
        "theta dtype",
        lambda: fastvae.negative_binomial_nll(X(3, 4), X(4).int(), X(3, 4).int()),
        "negative_binomial_nll: log_theta must be float32, float64, bfloat16 or float16, got Int",
    ),
    (
        "zero_logits shape",
        lambda: fastvae.negative_binomial_nll(X(3, 4), X(4), X(3, 4).int(), zero_logits=X(4)),
        "negative_binomial_nll: log_mean and zero_logits must have the same shape, got log_mean [3, 4] and zero_logits "
        "[4]",
    ),
    (
        "zero_logits dtype",
        lambda: fastvae.negative_binomial_nll(X(3, 4), X(4), X(3, 4).int(), zero_logits=X(3, 4).long()),
        "negative_binomial_nll: zero_logits must be float32, float64, bfloat16 or float16, got Long",
    ),
    (
        "counts above total",
        lambda: fastvae.binomial_nll(X(3, 4), X(3, 4).int() + 6, 5, check_target=True),
        "fastvae.binomial_nll: target must lie between 0 and total, got 6 with a total of 5 at [0, 0]",
    ),
    (
        "counts above a column's total",
        lambda: fastvae.binomial_nll(X(2, 2, 3), X(2, 3) + 6, torch.tensor([6, 7, 5]), check_target=True),
        "fastvae.binomial_nll: target must lie between 0 and total, got 6 with a total of 5 at [0, 2]",
    ),
    (
        "counts out of a total below 0",
        lambda: fastvae.binomial_nll(X(3, 4), NO_COUNTS, 5, check_target=True),
        "fastvae.binomial_nll: target must ",
    ),
    (
        "total",
        lambda: fastvae.binomial_nll(X(3, 4), X(3, 4), 2.0),  # type: ignore[arg-type]
        "binomial_nll: total must be an integer or a tensor of counts, got 2.0",
    ),
    (
        "total below 0",
        lambda: fastvae.binomial_nll(X(3, 4), X(3, 4), -1),
        "binomial_nll: total must not be negative, got -1",
    ),
    (
        "total dtype",
        lambda: fastvae.binomial_nll(X(3, 4), X(3, 4), X(3, 4).bool()),
        "binomial_nll: total must be counts in uint8, int16, int32, int64, float32, float64, bfloat16 or float16, got "
        "Bool",
    ),
    (
        "total shape",
        lambda: fastvae.binomial_nll(X(3, 4), X(3, 4), X(3).int()),
        "binomial_nll: total must have the shape of logits, or be broadcast to it (one value, one for each channel or "
        "for each row), got total [3] and logits [3, 4]",
    ),
    (
        "target beyond 1",
        lambda: fastvae.sigmoid_cross_entropy(X(3, 4), PIXELS, check_target=True),
        "sigmoid_cross_entropy: target must lie in [0, 1], got 255 at [1, 2]; leave images of bytes in uint8",
    ),
    (
        "target below 0, mean",
        lambda: fastvae.sigmoid_cross_entropy(
            X(3, 4, requires_grad=True), -PIXELS, reduction="mean", check_target=True
        ),
        "target must lie in [0, 1], got -1 at [0, 1]; leave images of bytes in uint8, which is read as x / 255",
    ),
    (
        "target nan",
        lambda: fastvae.elbo_loss(X(3, 4), PIXELS * torch.nan, X(3, 4), X(3, 4), check_target=True),
        "elbo_loss: target must lie in [0, 1], got nan at [0, 0]",
    ),
    (
        "target of a layer",
        lambda: LINEAR(X(3, 6), X(4, 6), None, PIXELS.half(), check_target=True),
        "linear_sigmoid_cross_entropy: target must lie in [0, 1], got 255 at [1, 2]",
    ),
    (
        "target of a layer, sum",
        lambda: LINEAR(X(3, 6, requires_grad=True), X(4, 6), None, PIXELS, reduction="sum", check_target=True),
        "linear_sigmoid_cross_entropy: target must lie in [0, 1], got 255 at [1, 2]",
    ),
    (
        "target of a model",
        lambda: models.VAE(4, (3,), 2).loss(PIXELS),
        "target must lie in [0, 1], got 255 at [1, 2]",
    ),
    (
        "target of a model with another decoder",
        lambda: with_decoder(models.VAE(4, (3,), 2)).nll(X(3, 2), PIXELS),
        "target must lie in [0, 1], got 255 at [1, 2]",
    ),
    (
        "target of a regressor",
        lambda: models.Regressor(4, 2, (3,)).loss(PIXELS, X(3, 2)),
        "target must lie in [0, 1], got 255 at [1, 2]",
    ),
    (
        "elbo batch",
        lambda: fastvae.elbo_loss(X(3, 4), X(3, 4), X(2, 4), X(2, 4)),
        "elbo_loss: logits and mu must have the same batch size, got logits [3, 4] and mu [2, 4]",
    ),
    (
        "beta shape",
        lambda: fastvae.elbo_loss(*[X(3, 4)] * 4, beta=X(3)),
        "beta must be a float or a 0-d tensor, got shape [3]",
    ),
    ("beta inf", lambda: fastvae.elbo_loss(*[X(3, 4)] * 4, beta=torch.inf), "beta must be finite, got inf"),
    (
        "elbo reduction",
        lambda: fastvae.elbo_loss(*[X(3, 4)] * 4, reduction=""),
        "elbo_loss: reduction must be 'none', 'mean' or 'sum', got ''",
    ),
    (
        "binarize dtype",
        lambda: fastvae.binarize(X(3, 4).long()),
        "images must be uint8 or floating point, got Long",
    ),
    (
        "binarize index",
        lambda: fastvae.binarize(X(3, 4), index=X(2).int()),
        "index must be int64 [B], got Int [2]",
    ),
    (
        "binarize index 2-d",
        lambda: fastvae.binarize(X(3, 4), index=X(2, 2).long()),
        "index must be int64 [B], got Long [2, 2]",
    ),
    (
        "binarize to",
        lambda: fastvae.binarize(X(3, 4), dtype=torch.uint8),
        "dtype must be bool, float32, float64, bfloat16 or float16, got Byte",
    ),
    ("binarize 0-d", lambda: fastvae.binarize(X(())), "images must have a batch dimension"),
    (
        "moments",
        lambda: fastvae.DiagonalGaussian(X(3, 5)),
        "moments must be [B, 2L] or [B, 2C, *E], with an even dimension 1, got [3, 5]",
    ),
    (
        "nll shape",
        lambda: fastvae.DiagonalGaussian(X(5, 6, 4)).nll(X(3, 4)),
        "sample must have the shape of the mean, got [3, 4] and [5, 3, 4]",
    ),
    (
        "clamp",
        lambda: fastvae.DiagonalGaussian(X(3, 4), clamp=(1.0, -1.0)),
        "clamp must be (low, high), got (1.0, -1.0)",
    ),
    (
        "module reduction",
        lambda: nn.ELBOLoss(reduction="avg"),
        "reduction must be 'none', 'mean' or 'sum', got 'avg'",
    ),
    ("module samples", lambda: nn.Reparameterize(0), "num_samples must be at least 1, got 0"),
]

OF_VALUES = ("must lie in [0, 1]", "none of them negative", "fastvae.binomial_nll: target must")
VALUES = [e[0] for e in ERRORS if e[0] in ("sigma tensor", "scale tensor") or any(text in e[2] for text in OF_VALUES)]
# Only values of tensors are unknown when traced.
KNOWN_WHEN_TRACED = [e for e in ERRORS if e[0] not in ("device", "hidden device", "mlp device", *VALUES)]


@pytest.mark.parametrize(("call", "message"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_error_names_what_was_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("call", "message"), [e[1:] for e in KNOWN_WHEN_TRACED], ids=[e[0] for e in KNOWN_WHEN_TRACED])
def test_error_is_the_same_when_traced(call: Callable[[], object], message: str) -> None:
    with FakeTensorMode(), pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_error_of_something_that_is_no_generator() -> None:
    with pytest.raises(RuntimeError, match="Generator"):
        fastvae.reparameterize(X(3, 4), X(3, 4), generator=3)  # type: ignore[arg-type]


# Nothing but values of tensors is unknown under a transform, and modules and distributions check outside of it.
CHECKED_UNDER_TRANSFORMS = [e for e in ERRORS if e[0] not in VALUES]


@pytest.mark.parametrize("call", [e[1] for e in CHECKED_UNDER_TRANSFORMS], ids=[e[0] for e in CHECKED_UNDER_TRANSFORMS])
def test_error_under_transforms(call: Callable[[], object]) -> None:
    def transformed(x: torch.Tensor) -> torch.Tensor:
        call()
        return x

    with pytest.raises(ValueError, match=r"got "):
        torch.func.grad(transformed)(torch.zeros(()))


def test_target_that_is_no_probability_is_found_in_compiled_code() -> None:
    torch._dynamo.reset()
    call = torch.compile(lambda *t: fastvae.sigmoid_cross_entropy(*t, check_target=True), fullgraph=True)
    logits = X(3, 4, requires_grad=True)
    assert call(logits, PIXELS.clamp(0, 1)).shape == (3,)
    with pytest.raises(ValueError, match=r"target must lie in \[0, 1\], got 255 at \[1, 2\]"):
        call(logits, PIXELS)


def test_target_is_not_looked_at_unless_asked_for() -> None:
    with torch.profiler.profile() as profile:
        fastvae.sigmoid_cross_entropy(X(3, 4), PIXELS)
        fastvae.sigmoid_cross_entropy(X(3, 4), PIXELS.byte(), check_target=True)  # bytes need no look
    assert not any("aminmax" in event.key for event in profile.key_averages())
