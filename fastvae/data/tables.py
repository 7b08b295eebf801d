"""Readers of Parquet files, which hold encoded images as Hugging Face exports them, or a table of numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastvae.data.images import Encoded, decode_all
from fastvae.data.parts import (
    PARTS,
    Array,
    Progress,
    Raw,
    files_below,
    listed,
    naming,
    to_tensor,
    train_and_test,
    words,
)

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".pq")
_LABELS = ("label", "labels")


class _Shard(NamedTuple):
    path: Path
    file: Any
    """A ``pyarrow.parquet.ParquetFile``."""


def read_parquet(path: Path, labels: str | None, progress: Progress | None) -> Raw:
    """The images of a Parquet file or its table of numbers. The files of a folder are one data set.

    Raises:
        ValueError: files are damaged or have different columns, columns do not hold numbers or lack some, or as for
            ``decode_all``; the message names the file and the column.
    """
    train, test = _parts(path)
    shards = [_open(shard) for shard in train + test]
    schema = shards[0].file.schema_arrow
    expected = [f"{field.name} ({field.type})" for field in schema]
    for shard in shards:
        columns = [f"{field.name} ({field.type})" for field in shard.file.schema_arrow]
        if columns != expected:
            raise ValueError(
                f"{shard.path}: has the columns {listed(columns)}, but {shards[0].path} {listed(expected)}"
            )
    if labels is not None and labels not in schema.names:
        raise ValueError(f"{path}: has no column {labels} for labels, but {listed(schema.names)}")
    image = _image_column(path, schema)
    if image is not None and labels is None:
        labels = next((name for name in _LABELS if name in schema.names), None)
    rows = sum(shard.file.metadata.num_rows for shard in shards)
    if rows == 0:
        raise ValueError(f"{path}: holds no rows")
    if image is not None:
        data: Array = decode_all(_encoded(shards, image), rows, progress)
    else:
        data = _numbers(path, shards, schema, labels, rows, progress)
    column = None if labels is None else _label_column(shards, labels)
    size = sum(shard.file.metadata.num_rows for shard in shards[: len(train)])
    tensor = to_tensor(path, data)
    classes = None if labels is None else _class_names(schema, labels)
    if not test:
        return Raw(tensor, column, classes)
    if column is None:
        return Raw(tensor[:size], test=tensor[size:])
    return Raw(tensor[:size], column[:size], classes, tensor[size:], column[size:])


def _parts(path: Path) -> tuple[list[Path], list[Path]]:
    """Files to train and to test on: told by their names or their folders', where one says ``train``."""
    if path.is_file():
        return [path], []
    parts: dict[str | None, list[Path]] = {}
    shards = files_below(path, SUFFIXES)
    for shard in shards:
        *folders, name = shard.lower().split("/")
        known = (PARTS.get(word) for word in (*folders, words(name)[0]))
        parts.setdefault(next((part for part in known if part is not None), None), []).append(path / shard)
    if "train" not in parts:
        return [path / shard for shard in shards], []
    train, test = train_and_test(parts)
    return train or [], test or []


def _open(path: Path) -> _Shard:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with naming(path, ArrowException, ValueError, OSError):
        return _Shard(path, ParquetFile(path))


def _batches(shard: _Shard, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of some columns in pieces, and the number of each piece's first row."""
    from pyarrow import ArrowException

    start = 0
    batches = shard.file.iter_batches(batch_size=1024, columns=columns)
    while True:
        with naming(shard.path, ArrowException, ValueError, OSError):
            batch = next(batches, None)
        if batch is None:
            return
        yield start, batch
        start += batch.num_rows


def _image_column(path: Path, schema: pa.Schema) -> str | None:
    """The column of encoded images: bytes, or Hugging Face's struct of bytes and path."""
    from pyarrow import types

    found = []
    for field in schema:
        kind = field.type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if types.is_binary(kind) or types.is_large_binary(kind):
            found.append(field.name)
    if len(found) > 1 and "image" not in found:
        raise ValueError(f"{path}: has several columns of images, {listed(found)}; expected one, or one called image")
    return "image" if "image" in found else next(iter(found), None)


def _encoded(shards: list[_Shard], column: str) -> Iterator[Encoded]:
    from pyarrow import types

    for shard in shards:
        for start, batch in _batches(shard, [column]):
            values = batch.column(0)
            if types.is_struct(values.type):
                values = values.field("bytes")
            for row, value in enumerate(values, start):
                if not value.is_valid:
                    raise ValueError(f"{shard.path}: row {row} of {column} holds no bytes")
                yield f"{shard.path}: row {row}", functools.partial(bytes, value.as_buffer())


def _numbers(
    path: Path, shards: list[_Shard], schema: pa.Schema, labels: str | None, rows: int, progress: Progress | None
) -> Array:
    """All columns but the labels as ``[N, D]``: bool or integers where all are, otherwise float32.

    uint8, which is read as x/255, only where all are: beside others a number stays what it is.
    """
    from pyarrow import types

    # pandas writes its index as a column of that name where it is no range.
    fields = [f for f in schema if f.name != labels and not f.name.startswith("__index_level_")]
    wrong = [
        f"{f.name} ({f.type})"
        for f in fields
        if not (types.is_boolean(f.type) or types.is_integer(f.type) or types.is_floating(f.type))
    ]
    if wrong:
        raise ValueError(f"{path}: has columns that do not hold numbers: {listed(wrong)}")
    if not fields:
        raise ValueError(f"{path}: has no columns of numbers")
    dtypes = {np.dtype(f.type.to_pandas_dtype()) for f in fields}
    dtype = np.result_type(*dtypes)
    if dtype == np.uint8 and len(dtypes) > 1:  # with bool, whose True would be 1/255
        dtype = np.dtype(np.int16)
    table = np.empty((rows, len(fields)), np.float32 if dtype.kind == "f" else dtype)
    done = 0
    for shard in shards:
        for start, batch in _batches(shard, [f.name for f in fields]):
            for index, f in enumerate(fields):
                column = batch.column(f.name)
                if column.null_count:
                    row = start + column.is_valid().index(False).as_py()
                    raise ValueError(f"{shard.path}: row {row} of {f.name} is missing")
                table[done : done + batch.num_rows, index] = column.to_numpy(zero_copy_only=False)
            done += batch.num_rows
            if progress is not None:
                progress(done, rows)
    return table


def _label_column(shards: list[_Shard], labels: str) -> Array:
    return np.concatenate(
        [batch.column(0).to_numpy(zero_copy_only=False) for shard in shards for _, batch in _batches(shard, [labels])]
    )


def _class_names(schema: pa.Schema, labels: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel, which Hugging Face keeps in the metadata of the schema."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][labels]
        return tuple(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):  # another program's, or without names
        return None
