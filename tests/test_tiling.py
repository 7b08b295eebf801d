"""Which thread of a GPU takes which elements (csrc/tiling.h): each element once, whatever the sizes. Needs no GPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae import _hooks

THREADS, WARP, BLOCKS = 256, 32, 1024
VECTORS = [4, 8, 16]  # elements of 4, of 2 bytes and of one in 16
# Around each size at which the cut changes: a warp, a block, several blocks for a row.
COLUMNS = [*range(70), *range(250, 262), 784, 1023, 1024, 1025, *range(2046, 2051), *range(4094, 4099), 12288, 65537]
ROWS = [0, 1, 2, 3, 7, 8, 9, 31, 33, 100, 129]


@pytest.mark.parametrize("summed", [True, False], ids=["summed", "not summed"])
@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("rows", ROWS)
def test_every_element_is_visited_once(rows: int, vector: int, summed: bool) -> None:
    for columns in COLUMNS:
        counts = _hooks.visits(rows, columns, vector, summed)
        assert counts.shape == (rows, columns)
        assert (counts == 1).all(), (rows, columns, np.argwhere(counts != 1)[:5])


@pytest.mark.parametrize(("least", "busy"), [(8, 6), (2, 10), (4, 10)])
def test_other_cuts_visit_every_element_once(least: int, busy: int) -> None:
    """Those of the loops, of elements one by one and of what only reads, with rows enough to halve groups."""
    for rows, columns, vector in ((2**15, 50, 4), (2**16, 30, 4), (2**17, 20, 4), (2**14, 784, 8), (2**15, 196, 4)):
        lanes = _hooks.place(rows, columns, vector, True, 0, 0, least, busy)["lanes"]
        assert lanes >= min(least, 1 << (-(-columns // vector) - 1).bit_length())
        assert (_hooks.visits(rows, columns, vector, True, least, busy) == 1).all()


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(0, 2000), columns=st.integers(0, 300), vector=st.sampled_from(VECTORS), summed=st.booleans())
def test_every_element_of_many_small_rows_is_visited_once(rows: int, columns: int, vector: int, summed: bool) -> None:
    assert (_hooks.visits(rows, columns, vector, summed) == 1).all()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 400_000), vector=st.sampled_from(VECTORS), summed=st.booleans())
def test_every_element_of_a_few_long_rows_is_visited_once(rows: int, columns: int, vector: int, summed: bool) -> None:
    assert (_hooks.visits(rows, columns, vector, summed) == 1).all()


@pytest.mark.parametrize(
    ("rows", "columns", "vector", "lanes", "segments"),
    [
        (16384, 2, 4, 1, 1),  # two latent dimensions: a thread for each row
        (16384, 32, 4, 8, 1),
        (16384, 32, 8, 4, 1),
        (16384, 30, 4, 8, 1),
        (4096, 784, 4, 32, 1),  # a warp
        (8192, 3072, 4, 32, 1),
        (1024, 784, 4, 256, 1),  # few rows: a block
        (4096, 3072, 4, 256, 1),
        (16384, 784, 4, 32, 1),
        (2**18, 784, 4, 32, 1),  # 28 of the 224 threads of seven passes are idle
        (2**18, 784, 8, 16, 1),  # many: fewer threads, of which fewer are idle in the last pass
        (2**18, 32, 4, 4, 1),  # two passes
        (2**18, 3072, 4, 32, 1),
        (8, 3 * 256 * 256, 4, 256, 96),  # several blocks, two steps of a thread each
        (1, 2**33, 4, 256, 1024),
    ],
)
def test_the_cut_of_usual_sizes(rows: int, columns: int, vector: int, lanes: int, segments: int) -> None:
    cut = _hooks.place(rows, columns, vector, True, 0, 0)
    assert (cut["lanes"], cut["segments"]) == (lanes, segments)
    assert cut["blocks"] == -(-rows * segments * lanes // THREADS)


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("rows", [*ROWS, 1000, 3001])
def test_sums_over_the_rows_visit_every_element_once_and_every_part_has_one_thread(rows: int, vector: int) -> None:
    for columns in (c for c in COLUMNS if c <= 4098 and rows * c < 2_000_000):
        counts = _hooks.column_visits(rows, columns, vector)
        assert counts.shape == (rows, columns)
        assert (counts == 1).all(), (rows, columns, np.argwhere(counts != 1)[:5])


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("columns", [2, 32, 50, 784, 3072])
def test_many_rows_leave_blocks_enough_and_few_threads_idle(columns: int, vector: int) -> None:
    """Of groups that are smaller than they could be, there are as many threads as fill a GPU; but 4 in a group."""
    vectors = -(-columns // vector)
    for rows in (2**14, 2**16, 2**18, 2**20):
        lanes = _hooks.place(rows, columns, vector, True, 0, 0)["lanes"]
        largest = min(WARP, 1 << max(0, vectors - 1).bit_length())
        assert lanes == largest or rows * lanes >= BLOCKS * THREADS
        if lanes > 4 and rows * lanes // 2 >= BLOCKS * THREADS:
            assert vectors > lanes
            assert -vectors % lanes <= vectors / 6


@settings(max_examples=500, deadline=None)
@given(
    rows=st.integers(1, 2**34),
    columns=st.integers(1, 2**34),
    vector=st.sampled_from(VECTORS),
    summed=st.booleans(),
    data=st.data(),
)
def test_places_of_any_size_are_in_range_and_aligned(
    rows: int, columns: int, vector: int, summed: bool, data: st.DataObject
) -> None:
    """64-bit arithmetic, groups within a warp or of a block, vectors at multiples of their length."""
    blocks = _hooks.place(rows, columns, vector, summed, 0, 0)["blocks"]
    assert blocks < 2**31 or rows * columns > 2**37  # what one launch can have
    block, thread = data.draw(st.integers(0, blocks - 1)), data.draw(st.integers(0, THREADS - 1))
    p = _hooks.place(rows, columns, vector, summed, block, thread)
    assert p["lanes"] in {1, 2, 4, 8, 16, WARP, THREADS}
    assert p["segments"] == 1 or p["lanes"] == THREADS
    assert p["segments"] <= (BLOCKS if summed else -(-columns // (8 * THREADS * vector)) + BLOCKS)
    assert p["first"] % vector == 0
    assert p["step"] == p["lanes"] * vector
    assert p["row"] == p["group"] // p["segments"]
    assert 0 < p["end"] <= columns
    last = _hooks.place(rows, columns, vector, summed, blocks - 1, THREADS - 1)
    assert last["row"] >= rows - 1
    if last["row"] == rows - 1:
        assert last["end"] == columns


@pytest.mark.parametrize(
    "sizes", [[1], [2047, 2048, 2049, 1, 4096], list(range(1, 49)), [5000] * 33, [70_001, 3, 65_537]], ids=str
)
def test_tensors_one_after_the_other_are_visited_once(sizes: list[int]) -> None:
    counts = _hooks.visits_of_each(sizes)
    assert [len(of) for of in counts] == sizes
    assert all((of == 1).all() for of in counts)
