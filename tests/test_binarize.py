"""binarize: probabilities, dtypes, bad values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

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


@pytest.mark.parametrize("event", [(), (1,), (7,), (784,), (1025,), (3, 9, 17)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_binarize_gathers_the_images_of_an_index(event: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (5, *event), dtype=torch.uint8)
    if dtype != torch.uint8:
        images = (images / 256).to(dtype)
    index = torch.tensor([4, 0, 4, 2])
    torch.manual_seed(3)
    expected = fastvae.binarize(images[index])
    for out in (torch.bool, torch.float32, torch.float64, torch.bfloat16, torch.float16):
        torch.manual_seed(3)
        drawn = fastvae.binarize(images, index=index, dtype=out)
        assert drawn.dtype == out
        assert torch.equal(drawn, expected.to(out))


def test_binarize_gathers_images_that_threads_or_blocks_share() -> None:
    images, index = torch.randint(0, 256, (3, 40_000), dtype=torch.uint8), torch.tensor([2, 0])
    torch.manual_seed(3)
    expected = fastvae.binarize(images[index])
    torch.manual_seed(3)
    assert torch.equal(fastvae.binarize(images, index=index), expected)


def test_binarize_gathers_one_image_of_rows_that_are_wider() -> None:
    """A batch of one, whose row begins anywhere: of these only the first at a multiple of a vector."""
    images = torch.randint(0, 256, (5, 785), dtype=torch.uint8)[:, :784]
    images[:, ::2] = 255
    images[:, 1::2] = 0
    for i in range(5):
        drawn = fastvae.binarize(images, index=torch.tensor([i]))
        assert torch.equal(drawn, images[i : i + 1] > 0)


@pytest.mark.parametrize("layout", ["part of a row", "channels last", "strided index"])
def test_binarize_gathers_from_any_layout(layout: str) -> None:
    images, index = torch.randint(0, 256, (40, 3, 9, 17), dtype=torch.uint8), torch.randint(0, 40, (10,))
    if layout == "part of a row":
        images = images[:, 1:]
    elif layout == "channels last":
        images = images.to(memory_format=torch.channels_last)
    torch.manual_seed(3)
    expected = fastvae.binarize(images[index].contiguous())
    if layout == "strided index":
        index = torch.stack([index, index.flip(0)], 1)[:, 0]
    torch.manual_seed(3)
    assert torch.equal(fastvae.binarize(images, index=index), expected)


def test_binarize_passes_opcheck() -> None:
    images = torch.randint(0, 256, (5, 3, 7), dtype=torch.uint8)
    for index in (None, torch.tensor([4, 0, 4])):
        for dtype in (torch.bool, torch.float32):
            arguments = (images, index, dtype, None)
            checks = ["test_schema", "test_faketensor"]
            torch.library.opcheck(torch.ops.fastvae.binarize_forward.default, arguments, test_utils=checks)


def test_binarize_compiles_for_any_size() -> None:
    torch._dynamo.reset()

    def twice(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(fastvae.binarize(images, index=index, dtype=torch.float32) for _ in range(2))

    compiled = torch.compile(twice, fullgraph=True, dynamic=True)
    for batch, size in ((3, 17), (8, 40)):
        images, index = torch.randint(0, 256, (9, size), dtype=torch.uint8), torch.randint(0, 9, (batch,))
        torch.manual_seed(3)
        first, second = compiled(images, index)
        torch.manual_seed(3)
        # Inductor of torch 2.11 may put draws in another order.
        assert {t.cpu().numpy().tobytes() for t in (first, second)} == {
            t.cpu().numpy().tobytes() for t in twice(images, index)
        }
        assert not torch.equal(first, second)


def test_binarize_has_no_derivative() -> None:
    p = torch.full((3, 5), 0.5)
    refused = pytest.raises(ValueError, match="a draw has no derivative")
    leaf = p.clone().requires_grad_()
    with refused:
        fastvae.binarize(leaf, dtype=torch.float32)
    with refused:
        torch.func.grad(lambda x: fastvae.binarize(x, dtype=torch.float32).sum())(p)
    with refused:
        torch.func.jvp(lambda x: fastvae.binarize(x, dtype=torch.float32), (p,), (p,))
    with refused, forward_ad.dual_level():
        fastvae.binarize(forward_ad.make_dual(p, p), dtype=torch.float32)
    with torch.no_grad():
        assert fastvae.binarize(leaf, dtype=torch.float32).dtype == torch.float32
    assert fastvae.binarize(leaf).dtype == torch.bool


def test_binarize_of_no_images() -> None:
    images, none = torch.zeros(3, 5, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    assert fastvae.binarize(images, index=none).shape == (0, 5)
    assert fastvae.binarize(images[:0], index=none).shape == (0, 5)


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_binarize_refuses_an_index_of_no_image(bad: int, device: str) -> None:
    if device == "cuda":
        pytest.skip("a device-side assertion there: test_cuda.py")
    images = torch.zeros(3, 5, dtype=torch.uint8)
    for of in (images, images[:, :1].expand(3, 5), images[:, :0]):  # in place, copied first, nothing to draw
        with pytest.raises(ValueError, match=rf"index must lie in \[0, 3\), the number of images, got {bad}"):
            fastvae.binarize(of, index=torch.tensor([0, bad, 1]))


@pytest.mark.parametrize("bad", [-0.01, 1.01, torch.nan, torch.inf])
def test_binarize_refuses_what_is_no_probability(bad: float, device: str) -> None:
    if device == "cuda":
        pytest.skip("a device-side assertion there: test_cuda.py")
    images = torch.rand(3, 4)
    images[1, 2] = bad
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1 values that do not"):
        fastvae.binarize(images)
