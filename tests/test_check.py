"""The look at all of a data set: whatever would break training is found, and said where."""

import re

import pytest
import torch

from fastvae.data.check import Expected, check

UNIT, FINITE = Expected("unit", "for a Bernoulli likelihood"), Expected()

KINDS = {
    "dense": lambda data: data,
    "csr": lambda data: data.flatten(1).to_sparse_csr(),
    "strided": lambda data: data.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("fastvae.data.check._BLOCK_BYTES", 1000)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.5, -0.5])
@pytest.mark.parametrize("row", [0, 70, 99])
@pytest.mark.parametrize("values", [UNIT, FINITE])
def test_a_wrong_value_is_found(small_blocks, kind, dtype, value, row, values):
    data = torch.rand(100, 4, 5, generator=torch.Generator().manual_seed(0)).clamp(0.1, 0.9).to(dtype)
    data[row, 2, 3] = value
    data[99, 3, 4] = value  # a second one, which is not reported
    finite = abs(value) < 2
    if finite and values == FINITE:
        check("a.npy", KINDS[kind](data), values)
        return
    index = "[13]" if kind == "csr" else "[2, 3]"
    expected = "numbers in [0, 1] for a Bernoulli likelihood" if finite else "finite numbers"
    with pytest.raises(
        ValueError, match="^" + re.escape(f"a.npy: row {row}, index {index} is {value}, expected {expected}")
    ):
        check("a.npy", KINDS[kind](data), values)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_integers_beyond_1_are_no_probabilities(dtype):
    data = torch.tensor([[0, 1], [0, 255]], dtype=dtype)
    check("a", data, FINITE)
    with pytest.raises(ValueError, match=r"a: row 1, index \[1\] is 255, expected numbers in \[0, 1\]"):
        check("a", data, UNIT)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32])
def test_data_that_are_all_alike_are_refused(small_blocks, kind, dtype):
    data = torch.ones(1000, 2, 3, dtype=dtype)
    with pytest.raises(ValueError, match=r"^a: all values are (1|1.0|True): there is nothing to learn$"):
        check("a", KINDS[kind](data), UNIT)
    data[999, 1, 2] = 0
    check("a", KINDS[kind](data), UNIT)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_matrix_without_values_is_all_zero():
    with pytest.raises(ValueError, match="all values are 0: there is nothing to learn"):
        check("a", torch.zeros(3, 4).to_sparse_csr(), FINITE)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_data_that_are_none_are_refused(shape):
    with pytest.raises(ValueError, match=r"^a: holds no data$"):
        check("a", torch.zeros(shape), FINITE)


def test_the_look_reports_progress(small_blocks):
    steps = []
    check("a", torch.rand(100, 5), UNIT, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(50, 100), (100, 100)]
    steps.clear()
    check("a", torch.arange(200, dtype=torch.uint8).repeat(100, 1), UNIT, progress=lambda *n: steps.append(n))
    assert steps[-1] == (100, 100)
