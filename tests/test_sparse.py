"""Sparse matrices, which must stay sparse."""

import numpy as np
import pytest
import torch
from data_files import counts, refused

from fastvae.data import read


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16, np.float32, np.float64])
def test_a_sparse_matrix_stays_sparse(tmp_path, recwarn, form, dtype):
    from scipy import sparse

    sparse.save_npz(tmp_path / "a.npz", counts(form, dtype))
    data = read(tmp_path / "a.npz").data
    assert data.layout is torch.sparse_csr
    assert data.dtype == (torch.int32 if dtype is np.uint16 else torch.from_numpy(np.zeros(1, dtype)).dtype)
    assert data.values().numel() == counts().nnz
    assert np.array_equal(data.to_dense().numpy(), counts().toarray())
    assert not [warning for warning in recwarn.list if "parse" in str(warning.message)]


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_columns_are_sorted_and_duplicates_summed(tmp_path, index):
    from scipy import sparse

    indices, indptr = np.array([3, 0, 3, 1], index), np.array([0, 3, 4], index)
    matrix = sparse.csr_matrix((np.array([1, 2, 4, 8]), indices, indptr), shape=(2, 5))
    sparse.save_npz(tmp_path / "a.npz", matrix)
    data = read(tmp_path / "a.npz").data
    assert data.col_indices().tolist() == [0, 3, 1]
    assert data.values().tolist() == [2, 5, 8]
    torch.sparse_csr_tensor(data.crow_indices(), data.col_indices(), data.values(), (2, 5), check_invariants=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"indices": np.full(counts().nnz, 30, np.int32)}, ": cannot be read: "),
        ({"indptr": counts().indptr + 1}, ": cannot be read: "),
        ({"format": np.array(b"xyz")}, ": cannot be read: "),
        ({"data": counts().data.astype(complex)}, ": holds numbers of type complex128"),
    ],
)
def test_a_damaged_sparse_matrix_is_refused(tmp_path, damage, message):
    matrix = counts()
    parts = {name: getattr(matrix, name) for name in ("shape", "data", "indices", "indptr")}
    np.savez(tmp_path / "a.npz", **{"format": np.array(b"csr")} | parts | damage)
    refused(tmp_path / "a.npz", message)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_a_file_of_cells_is_read(tmp_path, form):
    anndata = pytest.importorskip("anndata")
    pandas = pytest.importorskip("pandas")
    cells = pandas.Categorical(np.array(["T", "B"])[np.arange(20) % 2])
    obs = pandas.DataFrame({"cell": cells, "batch": np.arange(20) % 3}, index=[f"c{i}" for i in range(20)])
    matrix = counts("csr" if form == "dense" else form, np.float32)
    anndata.AnnData(matrix.toarray() if form == "dense" else matrix, obs).write_h5ad(tmp_path / "a.h5ad")
    source = read(tmp_path / "a.h5ad")
    assert (source.data.layout is torch.sparse_csr) == (form != "dense")
    assert np.array_equal(source.data.to_dense().numpy(), counts().toarray())
    assert source.labels is None
    source = read(tmp_path / "a.h5ad", labels="cell")
    assert source.classes == ("B", "T")
    assert source.labels.tolist() == [1, 0] * 10
    assert read(tmp_path / "a.h5ad", labels="batch").labels.tolist() == [i % 3 for i in range(20)]
    refused(tmp_path / "a.h5ad", ".*obs has no column kind, but cell, batch", labels="kind")
    obs.loc["c4", "cell"] = None
    anndata.AnnData(matrix, obs).write_h5ad(tmp_path / "a.h5ad")
    refused(tmp_path / "a.h5ad", ": the label of row 4 is nan", labels="cell")
    anndata.AnnData(obs=obs).write_h5ad(tmp_path / "a.h5ad")
    refused(tmp_path / "a.h5ad", ".*there is no X|: holds")
