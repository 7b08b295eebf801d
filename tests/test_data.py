"""Data: IDX files that are what they say, and the many ways in which they are not."""

import dataclasses
import gzip
import hashlib
import http.server
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.data import Batches, Rows, join_column, load, published, read_idx, split_column
from fastvae.data.columns import split_rows

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
TRAIN, TEST = 30, 20


def idx(array):
    """An array as the bytes of an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_folder():
    """The folder of the real files, or a visible skip."""
    folder = Path(os.environ.get("FASTVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    for candidate in (folder / "mnist", folder):
        if list(candidate.glob(IMAGES + "*")):
            return candidate
    pytest.skip(f"MNIST is not in {folder} (FASTVAE_DATA names another folder)")


@pytest.fixture
def content(monkeypatch):
    """The bytes of a small data set by file name, published in place of MNIST."""
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    noise = np.random.default_rng(0)
    files = {
        IMAGES: idx(noise.integers(0, 256, (TRAIN, 28, 28))),
        LABELS: idx(np.arange(TRAIN) % 10),
        TEST_IMAGES: idx(noise.integers(0, 256, (TEST, 28, 28))),
        TEST_LABELS: idx(np.arange(TEST) % 10),
    }
    publish(monkeypatch, files)
    monkeypatch.setattr(published, "_TRAIN_COUNT", TRAIN)
    monkeypatch.setattr(published, "_TEST_COUNT", TEST)
    return files


def publish(monkeypatch, files, **fields):
    sums = [hashlib.md5(files[name]).hexdigest() for name in (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS)]
    source = dataclasses.replace(published._SOURCES["mnist"], md5=tuple(sums), **fields)
    monkeypatch.setitem(published._SOURCES, "mnist", source)


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)


@pytest.mark.parametrize("shape", [(5,), (0,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("compressed", [False, True])
def test_read_idx_returns_what_was_written(tmp_path, shape, compressed):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    # The name says nothing about compression.
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(array), mtime=0) if compressed else idx(array))
    tensor = read_idx(path)
    assert tensor.dtype == torch.uint8
    assert torch.equal(tensor, torch.from_numpy(array))


WHOLE = idx(np.arange(24).reshape(2, 3, 4))
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"<html>not found</html>", "not an IDX file: it starts with 3c 68 74 6d"),
        (b"\x00\x00\x08\x00", "not an IDX file"),
        (b"\x00\x00\x0d" + WHOLE[3:], "holds IDX elements of type 0x0d, expected 0x08"),
        (WHOLE[:10], "truncated: it ends within the header"),
        (WHOLE[:-1], r"truncated: 23 bytes of data, expected 24 for shape \[2, 3, 4\]"),
        (WHOLE + b"\0", r"too long: 25 bytes of data, expected 24 for shape \[2, 3, 4\]"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "truncated: 0 bytes of data"),
        (PACKED[:-1], "truncated: the compressed data ends too early"),
        (PACKED[: len(PACKED) // 2], "truncated: the compressed data ends too early"),
        (PACKED[:2], "truncated: the compressed data ends too early"),
        (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "corrupt: CRC check failed"),
        (PACKED[:10] + b"\xff" * 8 + PACKED[18:], "corrupt: "),
        (PACKED + b"garbage", "corrupt: "),
        (gzip.compress(WHOLE[:-1], mtime=0), "truncated: 23 bytes of data"),
    ],
    ids=lambda value: value.hex()[:24] if isinstance(value, bytes) else None,
)
def test_read_idx_rejects_and_names_the_file(tmp_path, raw, message):
    path = tmp_path / "some-file"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: ") + message):
        read_idx(path)


def test_read_idx_of_no_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


@pytest.mark.parametrize("subfolder", ["", "mnist"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_load_finds_the_files(tmp_path, monkeypatch, content, subfolder, by):
    # Two of them compressed, two plain.
    files = {(name if "labels" in name else f"{name}.gz"): raw for name, raw in content.items()}
    write(tmp_path / subfolder, files)
    if by == "environment":
        monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    dataset = load("mnist", tmp_path if by == "argument" else None)
    assert (dataset.name, dataset.data_shape) == ("mnist", (28, 28))
    assert torch.equal(dataset.train, read_idx(tmp_path / subfolder / f"{IMAGES}.gz"))
    assert torch.equal(dataset.test_labels, torch.arange(TEST, dtype=torch.uint8) % 10)
    tensors = [dataset.train, dataset.train_labels, dataset.test, dataset.test_labels]
    assert [tensor.dtype for tensor in tensors] == [torch.uint8] * 4
    assert [len(tensor) for tensor in tensors] == [TRAIN, TRAIN, TEST, TEST]


def test_load_takes_all_files_from_one_folder(tmp_path, content):
    write(tmp_path, content)
    write(tmp_path / "mnist", {IMAGES: b"half a download"})
    assert len(load("mnist", tmp_path).train) == TRAIN


@pytest.mark.parametrize("root", [".", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_load_reads_the_folders_of_torchvision(tmp_path, content, root, suffix):
    """Whose root holds every data set, under the name of its class."""
    write(tmp_path / "MNIST" / "raw", {f"{name}{suffix}": raw for name, raw in content.items()})
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    for stray in (".DS_Store", f"._{IMAGES}", f"{IMAGES}.part"):
        (tmp_path / "MNIST" / "raw" / stray).write_bytes(b"0")
    assert len(load("mnist", tmp_path / root).train) == TRAIN


def test_load_tells_the_folders_of_torchvision_apart(tmp_path, monkeypatch, content):
    source = dataclasses.replace(published._SOURCES["mnist"], torchvision="FashionMNIST")
    write(tmp_path / "FashionMNIST" / "raw", content)
    with pytest.raises(ValueError, match=r"FashionMNIST/raw/.*: this is a file of mnist, not of fashion-mnist"):
        load("fashion-mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="mnist is not in"):
        load("mnist", tmp_path)
    monkeypatch.setitem(published._SOURCES, "fashion-mnist", source)
    assert load("fashion-mnist", tmp_path).name == "fashion-mnist"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_load_reads_files_with_a_dot_in_their_names(tmp_path, content, suffix):
    """As they lie on some mirrors, which unpack each into a folder besides."""
    write(tmp_path, {f"{name.replace('-idx', '.idx')}{suffix}": raw for name, raw in content.items()})
    (tmp_path / IMAGES).mkdir()
    assert len(load("mnist", tmp_path).train) == TRAIN


def test_load_needs_no_sums_of_decompressed_files(tmp_path, monkeypatch, content):
    """Of kmnist those of the compressed files alone are published."""
    monkeypatch.setitem(published._SOURCES, "mnist", dataclasses.replace(published._SOURCES["mnist"], md5=()))
    write(tmp_path / "kmnist", content)
    assert load("kmnist", tmp_path).name == "kmnist"


def test_load_rejects_mnist_that_is_called_kmnist(tmp_path, content):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"{IMAGES}: this is a file of mnist, not of kmnist"):
        load("kmnist", tmp_path)


def damaged(files, name, raw):
    return files | {name: raw}


def pixels(raw):
    return np.frombuffer(raw, np.uint8, offset=16).copy()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda f: f[LABELS], rf"holds shape \[{TRAIN}\], expected images \[{TRAIN}, 28, 28\]"),
        (LABELS, lambda f: f[IMAGES], rf"holds shape \[{TRAIN}, 28, 28\], expected labels \[{TRAIN}\]"),
        (IMAGES, lambda f: idx(pixels(f[IMAGES]).reshape(-1, 14, 56)), r"expected images \[30, 28, 28\]"),
        (IMAGES, lambda f: f[TEST_IMAGES], f"holds {TEST} images, but .*{LABELS} {TRAIN} labels"),
        (LABELS, lambda f: idx(np.full(TRAIN, 10)), "holds the label 10, expected 0 to 9"),
        (LABELS, lambda f: idx(np.zeros(TRAIN)), "not the published file of mnist"),
        (TEST_IMAGES, lambda f: f[TEST_IMAGES][:-1] + b"\x07", "not the published file of mnist"),
        (TEST_IMAGES, lambda f: f[TEST_IMAGES][:-1], "truncated"),
    ],
)
def test_load_rejects_a_wrong_file_and_names_it(tmp_path, content, name, damage, message):
    write(tmp_path, damaged(content, name, damage(content)))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name)) + r":? .*" + message):
        load("mnist", tmp_path)


def test_load_rejects_a_test_set_that_is_called_training_set(tmp_path, content):
    swapped = content | {IMAGES: content[TEST_IMAGES], LABELS: content[TEST_LABELS]}
    write(tmp_path, swapped)
    with pytest.raises(ValueError, match=rf"{IMAGES}: holds {TEST} images, expected {TRAIN}"):
        load("mnist", tmp_path)


def test_load_rejects_mnist_that_is_called_fashion_mnist(tmp_path, content):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"{IMAGES}: this is a file of mnist, not of fashion-mnist"):
        load("fashion-mnist", tmp_path)


@pytest.mark.parametrize("missing", [IMAGES, TEST_LABELS])
def test_load_says_which_files_were_looked_for(tmp_path, content, missing):
    write(tmp_path, {name: raw for name, raw in content.items() if name != missing})
    with pytest.raises(FileNotFoundError) as error:
        load("mnist", tmp_path)
    assert str(error.value) == (
        f"mnist is not in {tmp_path}: found no {missing} (or {missing.replace('-idx', '.idx')}; plain or .gz, all four "
        "in one folder) there or in its subfolders mnist, MNIST/raw and raw"
    )


def test_load_rejects_an_unknown_name():
    with pytest.raises(ValueError, match="unknown data set 'cifar', expected one of digits, mnist, fashion"):
        load("cifar")


def test_load_reads_the_real_mnist():
    dataset = load("mnist", mnist_folder())
    assert dataset.train.shape == (60_000, 28, 28)
    assert dataset.test.shape == (10_000, 28, 28)
    assert dataset.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    # 0.1307, by which everybody normalises MNIST.
    assert abs(dataset.train.double().mean().item() / 255 - 0.1307) < 1e-4


def test_load_refuses_the_real_mnist_as_fashion_mnist():
    with pytest.raises(ValueError, match="this is a file of mnist"):
        load("fashion-mnist", mnist_folder())


class Server:
    """An HTTP server of one folder of files; ``sent`` cuts what it sends, not what it announces."""

    def __init__(self, files):
        self.files, self.requests, self.sent = files, [], None
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                server.requests.append(name)
                body = server.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: server.sent])

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(tmp_path, monkeypatch, content):
    pytest.importorskip("pooch")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    packed = {f"{name}.gz": gzip.compress(raw, mtime=0) for name, raw in content.items()}
    server = Server(packed)
    sums = tuple(hashlib.md5(raw).hexdigest() for raw in packed.values())
    publish(monkeypatch, content, url=server.url, gz_md5=sums)
    yield server
    server.http.shutdown()
    server.http.server_close()


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_download_happens_once(tmp_path, server):
    assert len(load("mnist").train) == TRAIN
    assert cached(tmp_path) == sorted(server.files)
    assert load("mnist").name == "mnist"
    assert server.requests == list(server.files)


def test_half_a_download_is_never_taken_for_a_whole_one(tmp_path, server, capsys):
    server.sent = 100
    with pytest.raises(OSError, match=rf"could not download {server.url}{IMAGES}.gz: .*FASTVAE_DATA"):
        load("mnist")
    assert cached(tmp_path) == []
    server.sent = None
    assert len(load("mnist").train) == TRAIN
    assert capsys.readouterr().err == ""


def test_a_wrong_download_is_refused(tmp_path, server):
    whole = server.files[f"{LABELS}.gz"]
    server.files[f"{LABELS}.gz"] = whole[:-20]  # announced as such: only the MD5 sum can tell
    with pytest.raises(OSError, match=rf"could not download .*{LABELS}.gz: MD5 hash"):
        load("mnist")
    assert cached(tmp_path) == [f"{IMAGES}.gz"]


def test_half_a_file_in_the_cache_is_fetched_again(tmp_path, server):
    load("mnist")
    path = tmp_path / "cache" / "fastvae" / "mnist" / f"{TEST_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(load("mnist").test) == TEST
    assert server.requests == [*server.files, f"{TEST_IMAGES}.gz"]


def test_no_network_is_one_clear_error(server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(OSError, match=r"could not download .*FASTVAE_DATA"):
        load("mnist")


def test_digits_are_split_by_class():
    dataset = load("digits")
    assert dataset.train.shape == (1442, 8, 8)
    assert dataset.test.shape == (355, 8, 8)
    assert dataset.train.dtype == dataset.train_labels.dtype == torch.uint8
    assert int(dataset.train.max()) == 255
    for label in range(10):
        train, test = ((labels == label).sum() for labels in (dataset.train_labels, dataset.test_labels))
        # Every fifth image of each class.
        assert 4 * test <= train <= 4 * test + 4


def test_digits_are_all_there_and_exact():
    from sklearn.datasets import load_digits

    dataset = load("digits")
    grey = load_digits().images
    together = torch.cat([dataset.train, dataset.test])
    assert together.double().mul(16 / 255).round().sum().item() == grey.sum()
    # The first four zeros of the data set train, the fifth tests.
    zeros = grey[load_digits().target == 0]
    assert np.array_equal(dataset.train[dataset.train_labels == 0][3], np.rint(zeros[3] * 255 / 16))
    assert np.array_equal(dataset.test[dataset.test_labels == 0][0], np.rint(zeros[4] * 255 / 16))


def numbered(count):
    """Images that can be told apart: image i is filled with i."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 2, 3).contiguous()


def test_batches_give_every_image_once():
    batches = Batches(numbered(23), 5, shuffle=torch.Generator().manual_seed(0))
    epoch = list(batches)
    assert [len(batch) for batch in epoch] == [5, 5, 5, 5, 3]
    assert len(batches) == 5
    assert {batch.dtype for batch in epoch} == {torch.uint8}
    order = torch.cat(epoch)[:, 0, 0].tolist()
    assert sorted(order) == list(range(23))
    assert order != sorted(order)
    assert torch.cat(list(batches))[:, 0, 0].tolist() != order
    again = Batches(numbered(23), 5, shuffle=torch.Generator().manual_seed(0))
    assert torch.cat(list(again))[:, 0, 0].tolist() == order


def test_batches_without_shuffling_are_views_in_order():
    images = numbered(7)
    epoch = list(Batches(images, 3))
    assert torch.equal(torch.cat(epoch), images)
    assert all(batch.untyped_storage().data_ptr() == images.untyped_storage().data_ptr() for batch in epoch)


def test_batches_binarize_anew_at_every_pass():
    images = torch.full((50, 40), 51, dtype=torch.uint8)  # probability 0.2
    batches = Batches(images, 20, binarize=True, noise=torch.Generator().manual_seed(0))
    first, second = torch.cat(list(batches)), torch.cat(list(batches))
    assert first.dtype == torch.bool
    assert not torch.equal(first, second)
    # 2000 draws: five standard deviations are 0.045.
    assert abs(first.float().mean().item() - 0.2) < 0.045
    again = Batches(images, 20, binarize=True, noise=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(list(again)), first)


@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        (torch.zeros(0, 2), 2, r"images must be \[N, \*E\], N > 0, not \[0, 2\]"),
        (torch.zeros(0, 2, dtype=torch.uint8), 2, r"not \[0, 2\]"),
        (torch.zeros((), dtype=torch.uint8), 2, r"not \[\]"),
        (numbered(4), 0, "batch_size must be at least 1, not 0"),
    ],
)
def test_batches_reject(images, batch_size, message):
    with pytest.raises(ValueError, match=message):
        Batches(images, batch_size)


def test_column_is_taken_out_and_put_back():
    images = torch.randint(0, 256, (5, 4, 28), dtype=torch.uint8)
    others, known = split_column(images)
    assert others.shape == (5, 4, 27)
    assert torch.equal(others, images[:, :, [c for c in range(28) if c != 13]])
    assert known.dtype == torch.bool
    back = join_column(others, known)
    assert torch.equal(back[:, :, 13], known * torch.tensor(255, dtype=torch.uint8))
    assert torch.equal(join_column(others, known).narrow(2, 0, 13), images[:, :, :13])
    many = join_column(others.float().expand(3, 5, 4, 27), known)
    assert many.shape == (3, 5, 4, 28)
    assert torch.equal(many[1, :, :, 13], known.float())

    binary = images > 100
    others, known = split_column(binary, 0)
    assert torch.equal(join_column(others, known, 0), binary)
    others, known = split_column(binary, 27)
    assert torch.equal(join_column(others, known, 27), binary)
    assert join_column(others, known, 27).dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
@pytest.mark.parametrize("index", [None, torch.arange(2499, -1, -2)], ids=["all", "some"])
def test_column_of_rows_is_split_without_a_copy(dtype, index):
    array = torch.randint(0, 256, (2500, 5, 6), dtype=torch.uint8).to(dtype)
    images = array if index is None else array[index]
    others, known = split_column(images, generator=torch.Generator().manual_seed(1))
    lazily, column = split_rows(Rows(array, index), generator=torch.Generator().manual_seed(1))
    assert torch.equal(column, known)
    assert (lazily.shape, lazily.dtype, lazily.array) == (others.shape, dtype, array)
    assert torch.equal(lazily[7:30], others[7:30])
    assert torch.equal(lazily.take(torch.tensor([3, 1])), others[[3, 1]])
    with pytest.raises(ValueError, match=r"W > 1, not torch.float32 \[2, 3, 4\]"):
        split_rows(Rows(torch.zeros(2, 3, 4)))


def test_column_is_drawn_anew_with_the_pixels_probability():
    images = torch.full((20_000, 1, 3), 51, dtype=torch.uint8)  # a fifth
    draws = [split_column(images)[1] for _ in range(2)]
    assert not torch.equal(*draws)
    # Five standard deviations of a binomial mean.
    assert abs(draws[0].double().mean() - 0.2) < 5 * (0.2 * 0.8 / 20_000) ** 0.5
    one, other = (split_column(images, generator=torch.Generator().manual_seed(1))[1] for _ in range(2))
    assert torch.equal(one, other)


def test_column_errors_name_what_was_wrong():
    with pytest.raises(ValueError, match=r"must be uint8 or bool \[B, H, W\], W > 1, not torch.float32 \[2, 3, 4\]"):
        split_column(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"W > 1, not torch.uint8 \[2, 3, 1\]"):
        split_column(torch.zeros(2, 3, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"column must lie in 0 .. 3, not 4"):
        split_column(torch.zeros(2, 3, 4, dtype=torch.uint8), 4)
