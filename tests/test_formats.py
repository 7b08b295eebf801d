"""Each format from a file that another program wrote: trained, killed, resumed bitwise, evaluated, encoded."""

import gzip
import signal
import sys

import numpy as np
import pytest
import torch
from data_files import encode, image_table, write, write_parquet
from runs import TRAIN, assert_same_run, run, start
from test_data import idx

from fastvae.cli import main

ROWS, SIZE = 330, 8
NOISE = np.random.default_rng(7)
LABELS = np.arange(ROWS) % 3
# What all pixels of an image share is something to learn.
IMAGES = (NOISE.random((ROWS, SIZE, SIZE)) * 255 * NOISE.random((ROWS, 1, 1))).astype(np.uint8)
NUMBERS = NOISE.standard_normal((ROWS, 12)).astype(np.float32)
GAUSSIAN = ["--likelihood", "gaussian", "--sigma", "1"]


def counts():
    sparse = pytest.importorskip("scipy.sparse")
    return sparse.random(ROWS, 40, 0.2, "csr", dtype=np.float32, random_state=0).ceil()


def npy(folder):
    np.save(folder / "x.npy", IMAGES)
    return "x.npy", []


def npz(folder):
    np.savez(folder / "x.npz", x_train=IMAGES[30:], y_train=LABELS[30:], x_test=IMAGES[:30], y_test=LABELS[:30])
    return "x.npz", []


def pt(folder):
    torch.save({"data": torch.from_numpy(NUMBERS), "labels": torch.from_numpy(LABELS)}, folder / "x.pt")
    return "x.pt", GAUSSIAN


def safetensors(folder):
    library = pytest.importorskip("safetensors.numpy")
    library.save_file({"data": NUMBERS}, folder / "x.safetensors")
    return "x.safetensors", GAUSSIAN


def folder_of_images(folder):
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        write(folder / "images" / f"class {label}" / f"{number}.png", encode(image))
    return "images", ["--model", "cvae", "--condition", "labels"]


def parquet_of_images(folder):
    write_parquet(folder / "x.parquet", image_table(IMAGES, LABELS, ["a", "b", "c"]))
    return "x.parquet", ["--model", "cvae", "--condition", "labels"]


def parquet_of_numbers(folder):
    pa = pytest.importorskip("pyarrow")
    write_parquet(folder / "x.parquet", pa.table({f"column {i}": column for i, column in enumerate(NUMBERS.T)}))
    return "x.parquet", GAUSSIAN


def scipy_sparse(folder):
    matrix = counts()
    pytest.importorskip("scipy.sparse").save_npz(folder / "x.npz", matrix)
    return "x.npz", GAUSSIAN


def h5ad(folder):
    anndata = pytest.importorskip("anndata")
    anndata.AnnData(counts(), obs={"kind": [f"kind {label}" for label in LABELS]}).write_h5ad(folder / "x.h5ad")
    return "x.h5ad", [*GAUSSIAN, "--labels", "kind"]


def idx_files(folder):
    for name, images, labels in (("train", IMAGES[30:], LABELS[30:]), ("t10k", IMAGES[:30], LABELS[:30])):
        write(folder / "idx" / f"{name}-images-idx3-ubyte.gz", gzip.compress(idx(images)))
        write(folder / "idx" / f"{name}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    return "idx", []


FORMATS = [
    npy, npz, pt, safetensors, folder_of_images, parquet_of_images, parquet_of_numbers, scipy_sparse, h5ad, idx_files,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("written", FORMATS, ids=lambda written: written.__name__)
def test_killed_run_of_each_format_goes_on_bitwise_is_evaluated_and_encoded(tmp_path, written):
    name, options = written(tmp_path)
    command = [sys.executable, "-m", "fastvae", *TRAIN, "--data", tmp_path / name, "--epochs", 20, "--save-steps", 2]
    command += options
    process = start([*command, "--out", tmp_path / "killed"])
    for line in process.stdout:
        if line.startswith("epoch 3"):
            break
    process.kill()
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    alone = start([*command, "--out", tmp_path / "alone"])
    resumed = run([*command, "--resume", "--out", tmp_path / "killed"])
    _, stderr = alone.communicate(timeout=300)
    assert alone.returncode == resumed.returncode == 0, stderr + resumed.stderr
    assert_same_run(tmp_path / "alone", tmp_path / "killed")

    # The data are those that the run names.
    assert main(["evaluate", str(tmp_path / "killed"), "--samples", "5", "--json", str(tmp_path / "figures.json")]) == 0
    assert main(["encode", str(tmp_path / "killed"), "--out", str(tmp_path / "codes.npz")]) == 0
    mu = np.load(tmp_path / "codes.npz")["mu"]
    assert np.isfinite(mu).all()
    assert mu.shape[1] == 4
