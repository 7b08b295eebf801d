"""Targets in compressed rows (CSR): the same numbers as dense ones, without a dense copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

import fastvae

pytestmark = pytest.mark.usefixtures("device")

Loss = Callable[[list[Tensor], Tensor], Tensor]
# Of logits, log theta, the logarithm of a library and logits of zeros.
LOSSES: dict[str, Loss] = {
    "poisson": lambda p, x, **o: fastvae.poisson_nll(p[0], x, **o),
    "negative binomial": lambda p, x, **o: fastvae.negative_binomial_nll(p[0], p[1], x, **o),
    "zero-inflated": lambda p, x, **o: fastvae.negative_binomial_nll(p[0], p[1], x, zero_logits=p[3], **o),
    "of a library": lambda p, x, **o: fastvae.negative_binomial_nll(p[0], p[1], x, log_library=p[2], **o),
    "multinomial": lambda p, x, **o: fastvae.multinomial_nll(p[0], x, **o),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
# [.., B, D] of part of a tile, of several rows in one, of several tiles, and of more than one part of the rows.
SHAPES = [
    (5, 7),
    (40, 33),
    (3, 2500),
    pytest.param((480, 1100), id="half_a_million"),
    (1, 1),
    (3, 40, 33),
    (2, 3, 2500),
]


def counts(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tenth of them not 0, the first row full and the last one empty."""
    x = torch.randint(1, 90, shape) * (torch.rand(shape) < 0.1)
    x[0] = 3
    x[-1] *= len(x) == 1
    return x.to(dtype)


def parameters(
    shape: tuple[int, int], samples: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    shapes = [(*samples, *shape), shape[1:], shape[:1], (*samples, *shape)]
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def results(loss: Loss, leaves: list[Tensor], target: Tensor, **options: str) -> list[Tensor]:
    value = loss(leaves, target, **options)
    weight = torch.linspace(0.5, 2, value.numel()).reshape(value.shape)
    return [value, *(g for g in grad((value * weight).sum(), leaves, allow_unused=True) if g is not None)]


@each_loss
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compressed_rows_are_the_dense_ones(loss: Loss, shape: tuple[int, ...], reduction: str) -> None:
    *samples, rows, columns = shape
    leaves, dense = parameters((rows, columns), tuple(samples)), counts((rows, columns))
    for a, b in zip(
        results(loss, leaves, dense.to_sparse_csr(), reduction=reduction),
        results(loss, leaves, dense, reduction=reduction),
        strict=True,
    ):
        assert torch.equal(a, b)


@each_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("indices", [torch.int32, torch.int64], ids=str)
def test_values_and_indices_of_every_dtype(loss: Loss, dtype: torch.dtype, indices: torch.dtype) -> None:
    leaves, dense = parameters((40, 33)), counts((40, 33), dtype)
    csr = dense.to_sparse_csr()
    csr = torch.sparse_csr_tensor(csr.crow_indices().to(indices), csr.col_indices().to(indices), csr.values(), (40, 33))
    for a, b in zip(results(loss, leaves, csr), results(loss, leaves, dense), strict=True):
        assert torch.equal(a, b)


@each_loss
def test_derivatives_pass_gradcheck(loss: Loss) -> None:
    leaves, csr = parameters((3, 4), (2,), torch.float64), counts((3, 4), torch.float64).to_sparse_csr()
    assert gradcheck(lambda *p: loss(p, csr), leaves)
    assert gradgradcheck(lambda *p: loss(p, csr), leaves)


@each_loss
def test_transforms_want_dense_targets(loss: Loss) -> None:
    leaves, csr = parameters((3, 4)), counts((3, 4)).to_sparse_csr()
    function = torch.func.grad(lambda p: loss([p, *leaves[1:]], csr, reduction="sum"))
    with pytest.raises(ValueError, match=r"torch\.func a target must be dense, got torch\.sparse_csr"):
        function(leaves[0].detach())


@pytest.mark.parametrize("name", ["linear_multinomial_nll", "linear_negative_binomial_nll"])
def test_transforms_of_layers_want_dense_targets(name: str) -> None:
    csr, theta = counts((3, 4)).to_sparse_csr(), [torch.zeros(4)] if "binomial_" in name else []
    function = torch.func.grad(lambda h: getattr(fastvae, name)(h, torch.ones(4, 2), None, *theta, csr).sum())
    with pytest.raises(ValueError, match=r"torch\.func a target must be dense, got torch\.sparse_csr"):
        function(torch.ones(3, 2))


@each_loss
def test_no_dense_copy_is_made(loss: Loss, device: str) -> None:
    if device == "cuda":
        pytest.skip("the profiler's memory is that of the CPU")
    shape = (3000, 1000)
    leaves, csr = parameters(shape), counts(shape).to_sparse_csr()
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        loss(leaves, csr)
    assert max(e.self_cpu_memory_usage for e in profile.events()) <= 4 * 2**20  # a part of the rows
    assert 4 * shape[0] * shape[1] > 11 * 2**20


@pytest.mark.parametrize(
    ("crow", "col", "message"),
    [
        ([0, 2, 3], [1, 0, 2], r"sorted, without duplicates, and lie between 0 and 3, got 0 after 1 in row 0"),
        ([0, 1, 3], [1, 2, 2], r"sorted, without duplicates, and lie between 0 and 3, got 2 after 2 in row 1"),
        ([0, 1, 3], [1, 2, 4], r"lie between 0 and 3, got 4 after 2 in row 1"),
        ([0, 1, 3], [-1, 2, 3], r"lie between 0 and 3, got -1 first in row 0"),
        ([0, 3, 2], [1, 2, 3], r"must rise from 0 to the number of its values, 3"),
        ([1, 2, 3], [1, 2, 3], r"must rise from 0 to the number of its values, 3"),
        ([0, 3], [1, 2, 3], r"must have the shape of a sparse target"),
    ],
)
def test_rows_that_are_not_in_order_are_an_error(crow: list[int], col: list[int], message: str, device: str) -> None:
    if device == "cuda":
        pytest.skip("nobody waits for a GPU to see its indices")
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        csr = torch.sparse_csr_tensor(crow, col, torch.ones(3), (len(crow) - 1, 4))
    with pytest.raises(ValueError, match=message):
        fastvae.multinomial_nll(torch.zeros(2, 4), csr)


def test_what_is_no_compressed_target_is_an_error() -> None:
    logits, dense = torch.zeros(2, 4), torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"torch\.sparse_coo; to_sparse_csr\(\) converts it"):
        fastvae.poisson_nll(logits, dense.to_sparse())
    with pytest.raises(ValueError, match=r"with D as in dimension -1 of \[2, 4\], got \[2, 5\]"):
        fastvae.poisson_nll(logits, torch.ones(2, 5).to_sparse_csr())
    with pytest.raises(ValueError, match="a sparse target must not require a gradient"):
        fastvae.poisson_nll(logits, dense.to_sparse_csr().requires_grad_())
    with pytest.raises(ValueError, match="target must be counts"):
        fastvae.poisson_nll(logits, dense.bool().to_sparse_csr())
    for call in (
        lambda x: fastvae.sigmoid_cross_entropy(logits, x),
        lambda x: fastvae.binomial_nll(logits, x, 3),
        lambda x: fastvae.gaussian_nll(logits, x, sigma=1.0),
        lambda x: fastvae.linear_sigmoid_cross_entropy(torch.ones(2, 3), torch.ones(4, 3), None, x),
        lambda x: fastvae.elbo_loss(logits, x, logits, logits),
    ):
        with pytest.raises(ValueError, match=r"^fastvae\.[a-z_]+: target must be dense, got the layout SparseCsr"):
            call(dense.to_sparse_csr())
    with pytest.raises(RuntimeError, match="'target' but instead found type 'list'"):
        fastvae.multinomial_nll(logits, [[1, 2, 0, 0]] * 2)
    negative = dense.clone()
    negative[0, 3] = -1
    with pytest.raises(ValueError, match=r"values of a sparse target must be counts, none .*, got -1 at \[3\]"):
        fastvae.poisson_nll(logits, negative.to_sparse_csr(), check_target=True)


def test_a_row_that_is_no_count_is_that_of_no_other() -> None:
    logits, dense = torch.randn(4, 3), torch.tensor([[2.0, 1, 0], [0, torch.nan, 0], [0, 0, 0], [0, 3, 1]])
    actual, expected = (fastvae.multinomial_nll(logits, x, constant=True) for x in (dense.to_sparse_csr(), dense))
    assert actual.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(actual, expected, equal_nan=True)


@each_loss
def test_values_and_indices_need_not_be_contiguous(loss: Loss) -> None:
    """As columns of a table of entries are not."""
    leaves, csr = parameters((40, 33)), counts((40, 33)).to_sparse_csr()
    parts = [t.repeat_interleave(2)[::2] for t in (csr.crow_indices(), csr.col_indices(), csr.values())]
    strided = torch.sparse_csr_tensor(*parts, csr.shape)
    assert not strided.values().is_contiguous()
    for a, b in zip(results(loss, leaves, strided), results(loss, leaves, csr), strict=True):
        assert torch.equal(a, b)


def test_batch_of_no_rows() -> None:
    csr = torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int64), [], torch.ones(0), (0, 4))
    logits = torch.zeros(0, 4, requires_grad=True)
    assert fastvae.multinomial_nll(logits, csr).shape == (0,)
    fastvae.negative_binomial_nll(logits, torch.zeros(4), csr, reduction="sum").backward()
    assert logits.grad.shape == (0, 4)
