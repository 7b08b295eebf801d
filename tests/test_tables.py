"""Parquet files: images as Hugging Face exports them, and tables of numbers."""

import numpy as np
import pytest
from data_files import COLOUR, GREY, LABELS, NOISE, encode, image_table, refused, same, write, write_parquet

from fastvae.data import read


@pytest.mark.parametrize("names", [None, ["zero", "one", "two", "three"]])
def test_images_of_parquet_are_decoded(tmp_path, names):
    write_parquet(tmp_path / "a.parquet", image_table(COLOUR, LABELS, names))
    source = read(tmp_path / "a.parquet")
    assert same(source.data, COLOUR.transpose(0, 3, 1, 2))
    assert source.labels.tolist() == LABELS.tolist()
    assert source.classes == (None if names is None else tuple(names))


@pytest.mark.parametrize(
    ("first", "second", "test"),
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("plain/train/0000.parquet", "plain/train/0001.parquet", "plain/validation/0000.parquet"),
        ("train-0.parquet", "train-1.parquet", None),
        ("0.parquet", "1.parquet", None),
    ],
)
def test_shards_are_the_parts(tmp_path, first, second, test):
    names = ["zero", "one", "two"]
    write_parquet(tmp_path / second, image_table(GREY[2:4], LABELS[2:4], names))
    write_parquet(tmp_path / first, image_table(GREY[:2], LABELS[:2], names))
    if test:
        write_parquet(tmp_path / test, image_table(GREY[4:], [-1, -1], names))
    write(tmp_path / "README.md", b"")
    source = read(tmp_path)
    assert same(source.data, GREY[:4])
    assert source.labels.tolist() == LABELS[:4].tolist()
    assert source.classes == tuple(names)
    assert (source.test is None) == (test is None)
    if test:
        assert same(source.test, GREY[4:])
        assert source.test_labels is None  # -1: not published


def test_images_may_be_plain_bytes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"picture": [encode(image) for image in GREY], "kind": list("abcabc"), "label": LABELS})
    write_parquet(tmp_path / "a.parquet", table)
    source = read(tmp_path / "a.parquet", labels="kind")
    assert same(source.data, GREY)
    assert source.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("types", "kept"),
    [
        (("u1", "u1"), "u1"),
        (("?", "u1"), "i2"),
        (("i1", "u1"), "i2"),
        (("f2", "u1"), "f4"),
        (("i4", "i8"), "i8"),
        (("?", "?"), "?"),
        (("f8", "f8"), "f4"),
        (("i8", "f4"), "f4"),
    ],
)
def test_a_table_of_numbers_is_one_array(tmp_path, types, kept):
    pa = pytest.importorskip("pyarrow")
    columns = {"a": NOISE.integers(0, 2, 3000).astype(types[0]), "label": (np.arange(3000) % 200).astype(types[1])}
    write_parquet(tmp_path / "a.parquet", pa.table(columns))
    source = read(tmp_path / "a.parquet")
    assert same(source.data, np.stack(list(columns.values()), 1).astype(kept))
    assert source.labels is None


def test_a_column_of_a_table_is_its_labels_where_it_is_named(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.5, 2, 3], "kind": list("xyx"), "b": [4, 5, 6]}, index=[5, 3, 9])
    frame.to_parquet(tmp_path / "a.parquet")
    source = read(tmp_path / "a.parquet", labels="kind")
    assert source.data.tolist() == [[1.5, 4], [2, 5], [3, 6]]
    assert source.labels.tolist() == [0, 1, 0]
    refused(tmp_path / "a.parquet", r": has columns that do not hold numbers: kind \(.*string\)")
    refused(tmp_path / "a.parquet", ": has no column c for labels, but a, kind, b", labels="c")


def test_what_is_missing_in_a_table_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    values = [1] * 2000 + [None, None]
    write_parquet(tmp_path / "a.parquet", pa.table({"a": [1] * 2002, "b": values}))
    refused(tmp_path / "a.parquet", ": row 2000 of b is missing")
    refused(tmp_path / "a.parquet", ": the label of row 2000 is nan", labels="b")
    write_parquet(tmp_path / "a.parquet", pa.table({"image": [encode(GREY[0]), None]}))
    refused(tmp_path / "a.parquet", ": row 1 of image holds no bytes")
    write_parquet(tmp_path / "a.parquet", pa.table({"image": [encode(GREY[0]), b"no image"]}))
    refused(tmp_path / "a.parquet", ": row 1: cannot be decoded as an image")
    write_parquet(tmp_path / "a.parquet", pa.table({"a": pa.array([], pa.float32())}))
    refused(tmp_path / "a.parquet", ": holds no rows")


def test_shards_that_differ_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "0.parquet", pa.table({"a": [1]}))
    write_parquet(tmp_path / "1.parquet", pa.table({"b": [1]}))
    refused(tmp_path, r"/1.parquet: has the columns b \(int64\), but .*0.parquet a \(int64\)")
    write_parquet(tmp_path / "1.parquet", pa.table({"a": [0.5]}))  # an integer would be 0
    refused(tmp_path, r"/1.parquet: has the columns a \(double\), but .*0.parquet a \(int64\)")
