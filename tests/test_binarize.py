"""binarize: probabilities, dtypes, bad values."""

from __future__ import annotations

import pytest
import torch

import fastvae

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_binarize_draws_with_the_pixels_probability(dtype: torch.dtype) -> None:
    levels = torch.tensor([0, 51, 128, 204, 255], dtype=torch.float64)
    images = levels.to(torch.uint8) if dtype == torch.uint8 else (levels / 255).to(dtype)
    draws = fastvae.binarize(images.repeat(100_000, 1))
    assert draws.dtype == torch.bool
    assert draws.shape == (100_000, 5)
    p = levels / 255 if dtype == torch.uint8 else images.double()
    # Five standard errors of a mean of 10^5 draws, exact at 0 and 1.
    error = (draws.double().mean(0) - p).abs()
    assert (error <= 5 * (p * (1 - p) / 100_000).sqrt()).all(), error


def test_binarize_draws_anew_and_by_the_seed() -> None:
    images = torch.full((50, 28, 28), 128, dtype=torch.uint8)
    torch.manual_seed(3)
    first, second = fastvae.binarize(images), fastvae.binarize(images)
    torch.manual_seed(3)
    assert torch.equal(first, fastvae.binarize(images))
    assert not torch.equal(first, second)


def test_binarize_is_the_same_for_uint8_and_its_float_for_any_layout() -> None:
    images = torch.randint(0, 256, (7, 2, 28, 28), dtype=torch.uint8)
    results = []
    for x in (images, images.float() / 255, images.to(memory_format=torch.channels_last)):
        torch.manual_seed(3)
        results.append(fastvae.binarize(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("bad", [-0.01, 1.01, torch.nan, torch.inf])
def test_binarize_refuses_what_is_no_probability(bad: float, device: str) -> None:
    if device == "cuda":
        pytest.skip("a device-side assertion there: test_cuda.py")
    images = torch.rand(3, 4)
    images[1, 2] = bad
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1 values that do not"):
        fastvae.binarize(images)
