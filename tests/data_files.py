"""Files of data as other programs write them, and what reading them must give."""

import io
import json
import re

import numpy as np
import pytest
import torch

from fastvae.data import read

NOISE = np.random.default_rng(0)
GREY = NOISE.integers(0, 256, (6, 5, 4), dtype=np.uint8)
COLOUR = NOISE.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def refused(path, message, **options):
    """That reading fails with one line, which starts with the path."""
    with pytest.raises(ValueError) as error:
        read(path, **options)
    assert re.match(re.escape(str(path)) + "[^\n]*" + message, str(error.value)), error.value
    assert "\n" not in str(error.value)


def same(tensor, array):
    return tensor.dtype == torch.from_numpy(array).dtype and np.array_equal(tensor.numpy(), array)


def write_torch(path, arrays):
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def write_safetensors(path, arrays):
    from safetensors.numpy import save_file

    save_file(arrays, path, {"format": "pt"})


def counts(form="csr", dtype=np.int32):
    scipy = pytest.importorskip("scipy.sparse")
    return scipy.random(20, 30, 0.2, "csr", dtype=np.float64, random_state=0).ceil().astype(dtype).asformat(form)


def encode(array, form="PNG", **options):
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    (array if isinstance(array, image.Image) else image.fromarray(array)).save(file, form, **options)
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def image_table(images, labels, names=None):
    """A table as the library ``datasets`` writes it."""
    pa = pytest.importorskip("pyarrow")
    encoded = [{"bytes": encode(image), "path": f"{i}.png"} for i, image in enumerate(images)]
    feature = {"_type": "Value", "dtype": "int64"} if names is None else {"_type": "ClassLabel", "names": names}
    features = {"image": {"_type": "Image"}, "label": feature}
    table = pa.table({"image": encoded, "label": pa.array(labels, pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path, table):
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
