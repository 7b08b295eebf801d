"""Anybody's data: formats told apart, labels numbered, and what is broken refused in one line."""

import gzip
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from data_files import (
    GREY,
    LABELS,
    counts,
    image_table,
    refused,
    same,
    write,
    write_parquet,
    write_safetensors,
    write_torch,
)
from test_data import idx

from fastvae.data import read


def write_everything(folder):
    """One file of each format."""
    from scipy import sparse

    np.save(folder / "a.npy", GREY)
    np.savez(folder / "a.npz", GREY)
    sparse.save_npz(folder / "sparse.npz", counts())
    write_torch(folder / "a.pt", {"data": GREY})
    write_safetensors(folder / "a.safetensors", {"data": GREY})
    write_parquet(folder / "a.parquet", image_table(GREY, LABELS))
    write(folder / "train-images-idx3-ubyte", idx(GREY))


EVERYTHING = ["a.npy", "a.npz", "sparse.npz", "a.pt", "a.safetensors", "a.parquet", "train-images-idx3-ubyte"]


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("called", ["data", "a.npy", "a.pt", "a.txt"])
def test_content_tells_the_format_where_the_name_does_not(tmp_path, name, called):
    write_everything(tmp_path)
    (tmp_path / name).rename(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / called)
    data = read(tmp_path / called).data.to_dense().numpy()
    assert np.array_equal(data, counts().toarray() if name == "sparse.npz" else GREY)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    write_everything(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / name, ": ")


def test_a_truncated_array_says_what_is_missing(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    content = (tmp_path / "a.npy").read_bytes()
    write(tmp_path / "a.npy", content[:-1])
    refused(tmp_path / "a.npy", r": truncated: 119 bytes of data, expected 120 for uint8 \[6, 5, 4\]$")
    write(tmp_path / "a.npy", content + content)
    refused(tmp_path / "a.npy", ": too long: 368 bytes of data, expected 120")
    write_safetensors(tmp_path / "a.safetensors", {"a": GREY})
    write(tmp_path / "a.safetensors", (tmp_path / "a.safetensors").read_bytes()[:-1])
    refused(tmp_path / "a.safetensors", ": truncated: 119 bytes of data, expected 120 for its tensors$")


@pytest.mark.parametrize("name", ["a.csv", "a", "a.png", "a.zip"])
def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path, name):
    write(tmp_path / name, b"1,2\n")
    refused(tmp_path / name, ": its format is not known; expected an array .*npy.*h5ad.*Parquet.*IDX.*images")


@pytest.mark.parametrize("shape", [(), (5,)])
def test_data_without_samples_is_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    refused(tmp_path / "a.npy", r": holds shape \[.*\], expected \[N, \*E\]")


def test_no_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no {tmp_path}/nowhere"):
        read(tmp_path / "nowhere")


def test_labels_cannot_be_named_where_nothing_has_a_name(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    refused(tmp_path / "a.npy", ": has no named columns or arrays, and so no labels called y", labels="y")


def test_importing_loads_no_library_of_formats():
    code = (
        "import sys, fastvae.data, fastvae.data.check; names = {'PIL', 'pyarrow', 'anndata', 'h5py', 'scipy', "
        "'safetensors', 'pandas'}; print(sorted(names & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Trap:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "pth", "pkl", "parquet", "csr.npz"])
def test_nothing_is_unpickled(tmp_path, suffix):
    trap, path = Trap(str(tmp_path / "sprung")), tmp_path / f"a.{suffix}"
    objects = np.array([trap], object)
    if suffix == "npy":
        np.save(path, objects)
    elif suffix == "npz":
        np.savez(path, data=objects)
    elif suffix == "csr.npz":
        np.savez(path, format=objects, shape=objects, data=objects)
    elif suffix == "pt":
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap))
    refused(path, "")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        (np.array([0, 1, 2, 0, 1, 2], np.uint8), [0, 1, 2, 0, 1, 2], None),
        (np.array([0.0, 1, 2, 0, 1, 2], np.float32), [0, 1, 2, 0, 1, 2], None),
        (np.array([[0], [1], [1], [0], [1], [0]]), [0, 1, 1, 0, 1, 0], None),
        (np.array([True, False, True, True, True, True]), [1, 0, 1, 1, 1, 1], None),
        (np.array([1, 2, 3, 1, 2, 3]), [0, 1, 2, 0, 1, 2], ("1", "2", "3")),
        (np.array([-1, 1, 1, -1, 1, 1]), [0, 1, 1, 0, 1, 1], ("-1", "1")),
        (np.array([0, 7, 7, 0, 3, 3]), [0, 2, 2, 0, 1, 1], ("0", "3", "7")),
        (np.array(["ox", "ant", "ox", "bee", "ox", "ant"]), [2, 0, 2, 1, 2, 0], ("ant", "bee", "ox")),
        (np.array([b"ox", b"ant", b"ox", b"ox", b"ox", b"ox"]), [1, 0, 1, 1, 1, 1], ("ant", "ox")),
        (np.full(6, -1), None, None),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_labels_are_numbered(tmp_path, labels, numbers, classes):
    np.savez(tmp_path / "a.npz", data=GREY, labels=labels)
    source = read(tmp_path / "a.npz")
    assert (source.labels is None) == (numbers is None)
    if numbers is not None:
        assert source.labels.dtype == torch.int64
        assert source.labels.tolist() == numbers
    assert source.classes == classes


def test_classes_are_those_of_both_parts(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=GREY, y_train=list("bbccbc"), x_test=GREY[:2], y_test=["a", "c"])
    source = read(tmp_path / "a.npz")
    assert source.classes == ("a", "b", "c")
    assert source.labels.tolist() == [1, 1, 2, 2, 1, 2]
    assert source.test_labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], "its data has 6 samples, but 5 labels"),
        (np.eye(6), r"has labels of shape \[6, 6\], expected one class for each sample"),
        (np.array(3), r"has labels of shape \[\]"),
        (LABELS + 0.5, "the label of row 0 is 0.5, expected an integer"),
        (np.array([0, 1, np.nan, 0, 1, 0]), "the label of row 2 is nan, expected an integer"),
        (np.zeros(6, complex), "has labels of type complex128"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "a.npz", data=GREY, labels=labels)
    refused(tmp_path / "a.npz", ": " + message)


def test_parts_that_differ_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", train=GREY, test=GREY[:, :4])
    refused(tmp_path / "a.npz", r": its data is torch.uint8 \[6, 5, 4\], but its test part torch.uint8 \[6, 4, 4\]")
    np.savez(tmp_path / "a.npz", train=GREY, test=GREY.astype(np.float32))
    refused(tmp_path / "a.npz", r": its data is torch.uint8 .*, but its test part torch.float32")
    np.savez(tmp_path / "a.npz", train=GREY, y_train=LABELS, test=GREY, y_test=LABELS.astype(str))
    refused(tmp_path / "a.npz", ": has numbers for labels in one part, and strings in the other")
    np.savez(tmp_path / "a.npz", train=GREY, test=GREY, y_test=LABELS[1:])
    refused(tmp_path / "a.npz", ": its test part has 6 samples, but 5 labels")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("prefix", ["", "emnist-balanced-"])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_a_folder_of_idx_files_is_read(tmp_path, suffix, prefix, test):
    stored = GREY.swapaxes(1, 2) if prefix else GREY  # EMNIST's images lie on their side
    files = {
        f"{prefix}train-images-idx3-ubyte": idx(stored[:4]),
        f"{prefix}train-labels-idx1-ubyte": idx(LABELS[:4]),
        f"{prefix}{test}-images-idx3-ubyte": idx(stored[4:]),
        f"{prefix}{test}-labels-idx1-ubyte": idx(LABELS[4:]),
    }
    for name, content in files.items():
        write(tmp_path / f"{name}{suffix}", gzip.compress(content) if suffix else content)
    source = read(tmp_path)
    assert same(source.data, GREY[:4])
    assert same(source.test, GREY[4:])
    assert source.labels.tolist() == LABELS[:4].tolist()
    assert source.test_labels.tolist() == LABELS[4:].tolist()
    source = read(tmp_path / f"{prefix}{test}-images-idx3-ubyte{suffix}")
    assert same(source.data, GREY[4:])
    assert source.labels is None
    write(tmp_path / "other-train-images-idx3-ubyte", idx(GREY[:2]))
    refused(tmp_path, ": holds several data sets, ")
    source = read(tmp_path / f"{prefix}train-images-idx3-ubyte{suffix}")
    assert same(source.data, GREY[:4])
    assert same(source.test, GREY[4:])
    assert source.test_labels.tolist() == LABELS[4:].tolist()
    source = read(tmp_path / "other-train-images-idx3-ubyte")
    assert same(source.data, GREY[:2])
    assert (source.labels, source.test) == (None, None)


def test_idx_files_may_lack_labels_and_test_images(tmp_path):
    write(tmp_path / "train-images-idx3-ubyte", idx(GREY))
    assert read(tmp_path)[1:] == (None, None, None, None)
    write(tmp_path / "train-labels-idx1-ubyte", idx(LABELS[:3]))
    refused(tmp_path, ": its data has 6 samples, but 3 labels")
    (tmp_path / "train-images-idx3-ubyte").unlink()
    refused(tmp_path, ": holds train-labels-idx1-ubyte, but no train-images-idx3-ubyte")
