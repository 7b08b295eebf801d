"""Codes of a data set: the moments that a trained encoder gives for each row, and the row's ELBO.

N is the number of rows, B the number in a batch, L the latent dimension. Data may be larger than memory: rows are read
batch by batch, and codes are written batch by batch.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastvae.data import Data
from fastvae.evaluation import batches
from fastvae.files import replacing
from fastvae.models import Model, Regressor
from fastvae.models.networks import evaluating
from fastvae.ops import gaussian_kl, reparameterize
from fastvae.training.config import TrainConfig
from fastvae.training.inputs import model_inputs

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP = 2**16  # rows of a Parquet file that are held until they are written
_BLOCK_BYTES = 2**20


class Codes(NamedTuple):
    """Codes of a batch of rows, on the CPU."""

    mu: Tensor
    """float32 ``[B, L]``, the mean of Q(z|x)."""
    logvar: Tensor
    """float32 ``[B, L]``, the log-variance of Q(z|x)."""
    elbo: Tensor
    """float64 ``[B]``, nats: ``-(reconstruction + kl)``. A low value marks a row that is unlike the training set."""
    reconstruction: Tensor
    """float64 ``[B]``, nats, E[-log P(x|z)]."""
    kl: Tensor
    """float64 ``[B]``, nats, KL(Q(z|x), P(z))."""
    labels: Tensor | None
    """int64 ``[B]``, or None if the rows have no labels."""


@torch.no_grad()
def encode(
    model: Model,
    config: TrainConfig,
    data: Data,
    labels: Tensor | None = None,
    *,
    samples: int = 1,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
) -> Iterator[Codes]:
    """Encodes all rows in their order, batch by batch.

    :func:`fastvae.evaluation.evaluate` with the same seed and batch size averages the same ELBO of each row if
    ``samples`` is 1, unless the condition is a column, whose noise ``evaluate`` draws in another order.

    Args:
        model: the run's model, on any device; its training mode does not change.
        config: the run's configuration.
        data: ``[N, *E]``; rows are read when their batch is asked for.
        labels: ``[N]`` integers, needed by a model whose condition is labels.
        samples: number of samples of z per row, over which the reconstruction term is averaged. More samples make the
            ELBO of a row less noisy. The result is still the ELBO and no importance-weighted bound, so that its two
            parts add up. The samples are decoded one after the other, so that memory does not grow with their number.
        batch_size: B, the number of rows that are encoded at a time.
        generator: the source of all noise, by default torch's own.

    Yields:
        Codes of B rows; the last batch may have fewer.

    Raises:
        ValueError: the model is a regressor, there are no rows, rows or labels do not fit the model, ``samples`` or
            ``batch_size`` is below 1.
    """
    if isinstance(model, Regressor):
        raise ValueError("a regressor has no code")
    for name, size in (("samples", samples), ("batch_size", batch_size)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    binary = config.binarize == "dynamic"
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        classes = None if labels is None else labels[rows]
        images, condition, *_ = (*model_inputs(config, data[rows], classes, generator), None)
        ((x, given),) = batches(model, images, condition, batch_size, binary, generator)
        with evaluating(model):
            mu, logvar = model.encode(x, *given)
            reconstruction = torch.zeros(len(x), dtype=torch.float64, device=mu.device)
            for _ in range(samples):
                z = reparameterize(mu, logvar, generator=generator)
                reconstruction += model.nll(z, x, *given).double() / samples
        kl = gaussian_kl(mu, logvar).double()
        yield Codes(
            mu.float().cpu(),
            logvar.float().cpu(),
            -(reconstruction + kl).cpu(),
            reconstruction.cpu(),
            kl.cpu(),
            None if classes is None else classes.long(),
        )


def write_codes(out: str | os.PathLike[str], codes: Iterable[Codes], rows: int) -> None:
    """Writes codes batch by batch into a file, which appears only once it is complete.

    - ``.npz``: the arrays ``mu``, ``logvar`` ``[N, L]``, ``elbo``, ``reconstruction``, ``kl`` ``[N]`` and, if there are
      labels, ``labels`` ``[N]``. Until the last batch is written, unnamed files in the folder of ``out`` hold them.
    - ``.parquet``: one table row per code, with the columns ``mu_0``, ``mu_1``, ..., ``logvar_0``, ..., ``elbo``,
      ``reconstruction``, ``kl`` and, if there are labels, ``label``.

    Args:
        out: the file, whose suffix selects the format; an existing file is replaced.
        codes: batches from ``encode``.
        rows: N, the number of rows in all batches.

    Raises:
        ValueError: the suffix is neither ``.npz`` nor ``.parquet``.
        OSError: the file cannot be written.
        ModuleNotFoundError: pyarrow, which ``.parquet`` needs, is missing (``pip install fastvae-torch[data]``).
    """
    write = writer_of(out)
    with replacing(out) as temporary:
        write(temporary, codes, rows)


def writer_of(out: str | os.PathLike[str]) -> Callable[[Path, Iterable[Codes], int], None]:
    """The function that writes codes in the format of a file's suffix.

    Raises:
        ValueError: the suffix is neither ``.npz`` nor ``.parquet``.
    """
    writers = {".npz": _write_npz, ".parquet": _write_parquet}
    write = writers.get(Path(out).suffix.lower())
    if write is None:
        raise ValueError(f"{out} does not end in .npz or .parquet")
    return write


def _write_npz(path: Path, codes: Iterable[Codes], rows: int) -> None:
    files: dict[str, BinaryIO] = {}
    with ExitStack() as stack:
        for batch in codes:
            for name, values in _arrays(batch).items():
                if name not in files:
                    # Without a name, so that nothing of it stays where the process is killed.
                    files[name] = stack.enter_context(TemporaryFile(dir=path.parent))
                    descr = np.lib.format.dtype_to_descr(values.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": (rows, *values.shape[1:])}
                    np.lib.format.write_array_header_1_0(files[name], header)
                files[name].write(values.data)
        with zipfile.ZipFile(path, "w") as archive:
            for name, file in files.items():
                file.seek(0)
                # An entry without the time of day: the same codes are the same bytes.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    shutil.copyfileobj(file, member, _BLOCK_BYTES)


def _write_parquet(path: Path, codes: Iterable[Codes], rows: int) -> None:
    from pyarrow import parquet

    with ExitStack() as stack:
        writer = None
        for table in _tables(codes):
            writer = writer or stack.enter_context(parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)


def _tables(codes: Iterable[Codes]) -> Iterator[pa.Table]:
    """Codes by column, some ``_ROW_GROUP`` rows at a time."""
    import pyarrow as pa

    pending: list[pa.Table] = []
    for batch in codes:
        columns: dict[str, npt.NDArray[Any]] = {}
        for name, values in _arrays(batch).items():
            if values.ndim == 2:
                columns |= {f"{name}_{index}": column for index, column in enumerate(values.T)}
            else:
                columns["label" if name == "labels" else name] = values
        pending.append(pa.table({name: np.ascontiguousarray(column) for name, column in columns.items()}))
        if sum(map(len, pending)) >= _ROW_GROUP:
            yield pa.concat_tables(pending)
            pending.clear()
    if pending:
        yield pa.concat_tables(pending)


def _arrays(batch: Codes) -> dict[str, npt.NDArray[Any]]:
    named = batch._asdict().items()
    return {name: np.ascontiguousarray(values.numpy()) for name, values in named if values is not None}
