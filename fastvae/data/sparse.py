"""Readers of sparse matrices, which stay sparse: scipy's ``.npz`` files, and ``.h5ad`` files of counts."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvae.data.parts import Array, Raw, listed, naming, to_tensor


def read_scipy(path: Path) -> Raw:
    """The matrix of a file that ``scipy.sparse.save_npz`` wrote, in any of its formats."""
    from scipy import sparse

    with naming(path, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        matrix = sparse.load_npz(path)
    return Raw(to_csr(path, matrix))


def read_anndata(path: Path, labels: str | None) -> Raw:
    """The matrix ``X`` of a ``.h5ad`` file; layers and the like are never read."""
    import h5py
    from anndata.io import read_elem
    from scipy import sparse

    column: Array | None = None
    with naming(path, OSError, ValueError, RuntimeError), h5py.File(path, "r") as file:
        if "X" not in file:
            raise ValueError("there is no X, the matrix of observations and variables")
        matrix = read_elem(file["X"])
        if labels is not None:
            obs = read_elem(file["obs"])
            if labels not in obs:
                raise ValueError(f"obs has no column {labels}, but {listed(obs)}")
            column = np.asarray(obs[labels])
    return Raw(to_csr(path, matrix) if sparse.issparse(matrix) else to_tensor(path, np.asarray(matrix)), column)


def to_csr(source: object, matrix: Any) -> Tensor:
    """A scipy matrix as a ``torch.sparse_csr`` tensor ``[N, D]``: columns sorted in each row, duplicates summed.

    Raises:
        ValueError: the matrix is not two-dimensional, indices are out of range, or torch lacks the type of the values.
    """
    if matrix.ndim != 2:
        raise ValueError(f"{source}: holds a sparse array of shape {list(matrix.shape)}, expected [N, D]")
    with naming(source, ValueError):
        if hasattr(matrix, "check_format"):
            # The conversions index with what the file says.
            matrix.check_format(full_check=True)
        csr = matrix.tocsr()
        csr.sum_duplicates()
    values = to_tensor(source, csr.data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # that it is in beta state, and not checked again
        return torch.sparse_csr_tensor(
            torch.from_numpy(csr.indptr), torch.from_numpy(csr.indices), values, csr.shape, check_invariants=False
        )
