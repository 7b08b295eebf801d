"""Where rows come from makes no difference to a run: memory, a mapped file, compressed rows, a program's own data."""

import dataclasses
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from data_files import encode, write
from runs import assert_same_run, environment, run, small, start, tensors
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import fastvae
from fastvae.data import Dataset, load
from fastvae.models import VAE
from fastvae.training import load_checkpoint, train
from fastvae.training.distributed import World
from fastvae.training.feed import Feed, HostFeed, make_feed, stays_on_host
from fastvae.training.memory import _left_of_groups, available_bytes, is_mapped
from fastvae.training.step import Stepper, build_model

CPU = torch.device("cpu")
ROWS = 203


def images(shape=(6, 5), dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (ROWS, *shape))
    return (values / 255 if np.dtype(dtype).kind == "f" else values).astype(dtype)


@pytest.fixture
def mapped(tmp_path):
    """A data set whose rows lie in a file."""

    def make(array, **options):
        path = tmp_path / "rows.npy"
        np.save(path, array)
        return Dataset.from_files(path, **options)

    return make


@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 6, 5), (6, 5, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "bool", "int32", "float32", "float64"])
def test_rows_read_ahead_are_those_gathered_in_memory(mapped, shape, dtype):
    dataset = mapped(images(shape, dtype))
    assert is_mapped(dataset.train.array)
    parts = torch.randperm(len(dataset.train)).split(17)
    feed, memory = HostFeed(dataset.train, None, CPU), make_feed(dataset, False, CPU, "device")
    assert type(memory) is Feed
    assert not is_mapped(memory.data)
    feed.announce(parts)
    for part in parts:
        (ahead, _), (there, _) = feed(part, None), memory(part, None)
        assert ahead.is_contiguous()
        assert ahead.dtype == there.dtype
        assert torch.equal(ahead, there)
    feed.close()


def test_channels_that_are_last_come_first_only_where_the_rows_are_asked_for(mapped):
    dataset, index = mapped(images((6, 5, 3), "float32")), torch.tensor([9, 3, 3])
    feed = HostFeed(dataset.train, None, CPU)
    gathered = feed._gathered(index)
    # As it is pinned: a copy to a GPU keeps this order.
    assert gathered.permute(0, 2, 3, 1).is_contiguous()
    assert gathered.double().stride() == gathered.stride()
    rows, _ = feed(index, None)
    assert rows.is_contiguous()
    assert torch.equal(rows, dataset.train.take(index))
    feed.close()


def test_rows_that_nobody_announced_are_read_all_the_same(mapped):
    dataset = mapped(images())
    feed = HostFeed(dataset.train, None, CPU)
    feed.announce([torch.arange(5)])
    other = torch.tensor([9, 3, 3])
    assert torch.equal(feed(other, None)[0], dataset.train.take(other))
    assert torch.equal(feed(torch.arange(5), None)[0], dataset.train[:5])
    feed.close()


def test_next_part_is_read_while_a_step_computes(mapped, monkeypatch):
    feed = HostFeed(mapped(images()).train, None, CPU)
    reads = []
    gathered = feed._gathered
    monkeypatch.setattr(feed, "_gathered", lambda index: reads.append(int(index[0])) or gathered(index))
    feed.announce([torch.tensor([i]) for i in range(4)])
    for i in range(4):
        feed(torch.tensor([i]), None)
        until = time.monotonic() + 10
        while len(reads) < min(i + 2, 4) and time.monotonic() < until:
            time.sleep(0.01)
        # One ahead, and no more: memory holds two batches.
        assert reads == list(range(min(i + 2, 4)))
    feed.close()


def test_error_of_reading_reaches_the_step(mapped, monkeypatch):
    feed = HostFeed(mapped(images()).train, None, CPU)

    def fails(index):
        raise OSError("the disk is gone")

    monkeypatch.setattr(feed, "_gathered", fails)
    feed.announce([torch.arange(3)])
    with pytest.raises(OSError, match="the disk is gone"):
        feed(torch.arange(3), None)
    feed.close()


def test_labels_go_with_their_rows():
    labels = np.arange(ROWS) % 4
    dataset = Dataset.from_arrays(np.repeat(labels[:, None], 3, 1).astype(np.float32), labels=labels)
    for data_on in ("device", "host"):
        feed = make_feed(dataset, True, CPU, data_on)
        rows, given = feed(torch.tensor([5, 1, 100]), None)
        assert torch.equal(rows[:, 0].long(), given)
        feed.close()


def test_data_are_taken_to_memory_where_they_fit(mapped, monkeypatch):
    dataset = mapped(images())
    size = len(dataset.train) * 30
    monkeypatch.setattr("fastvae.training.feed.available_bytes", lambda device: 2 * size)
    assert not stays_on_host(dataset.train, CPU, "auto")
    monkeypatch.setattr("fastvae.training.feed.available_bytes", lambda device: 2 * size - 1)
    assert stays_on_host(dataset.train, CPU, "auto")
    assert not stays_on_host(dataset.train, CPU, "device")
    # What is in memory already stays there, however little is left.
    assert not stays_on_host(torch.zeros(1000, 3), CPU, "auto")
    with pytest.raises(ValueError, match="data_on must be 'auto' or 'device' or 'host', not 'disk'"):
        make_feed(dataset, False, CPU, "disk")


def test_limits_of_a_process_count_as_memory():
    code = (
        "import resource, torch; from fastvae.training.memory import available_bytes, kibibytes\n"
        "used = 1024 * kibibytes('/proc/self/status', 'VmData')\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + 2**28,) * 2)\n"
        "print(available_bytes(torch.device('cpu')))"
    )
    left = int(run([sys.executable, "-c", code]).stdout)
    assert 2**27 < left <= 2**28
    assert available_bytes(CPU) > left


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used"),
    [
        ("0::/pod/container", "", "memory.max", "memory.current"),
        ("4:memory:/pod/container", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_limits_of_the_groups_above_bind_too(tmp_path, line, folder, limit, used):
    """A batch system limits a job, and not the step of it that a process is in."""
    own = tmp_path / "own"
    own.write_text(line + "\n")
    pod = tmp_path / folder / "pod"
    for group, value in ((pod, "1000"), (pod / "container", "max" if folder == "" else "5000")):
        group.mkdir(parents=True)
        (group / limit).write_text(value + "\n")
        (group / used).write_text("300\n")
        (group / "memory.stat").write_text("anon 200\ninactive_file 60\nactive_file 40\n")
    assert min(_left_of_groups(own, tmp_path)) == 1000 - 300 + 100


def test_processes_of_one_machine_share_its_memory(mapped, monkeypatch):
    dataset = mapped(images())
    size = dataset.train.shape.numel()
    monkeypatch.setattr("fastvae.training.feed.available_bytes", lambda device: 4 * size)
    assert not stays_on_host(dataset.train, CPU, "auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert stays_on_host(dataset.train, CPU, "auto")


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_run_from_a_file_is_the_run_from_memory(mapped, tmp_path, binarize):
    dataset = mapped(images())
    config = small(binarize=binarize, batch_size=64)
    in_memory = dataclasses.replace(dataset, train=dataset.train[:].clone(), test=dataset.test[:].clone())
    train(config, tmp_path / "memory", dataset=in_memory)
    train(config, tmp_path / "file", dataset=dataset, data_on="host")
    assert_same_run(tmp_path / "memory", tmp_path / "file")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fastvae-reader")]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_compressed_rows_train_as_dense_ones(tmp_path):
    dense = torch.from_numpy(images((12,), "float32"))
    dense[dense < 0.7] = 0
    config = small(likelihood="gaussian")
    dataset = Dataset.from_arrays(dense.to_sparse_csr())
    assert dataset.train.array.layout == torch.sparse_csr
    train(config, tmp_path / "dense", dataset=Dataset.from_arrays(dense))
    train(config, tmp_path / "sparse", dataset=dataset)
    assert_same_run(tmp_path / "dense", tmp_path / "sparse")


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_compressed_rows_are_no_part_of_a_cuda_graph():
    dense = torch.from_numpy(images((12,), "float32"))
    for rows, data_on, message in (
        (dense.to_sparse_csr(), "device", "cuda_graph needs dense data, but the data is a sparse matrix"),
        (dense.to_sparse_csr(), "host", "cuda_graph needs all of the data in the memory of the GPU"),
    ):
        config, dataset = small(), Dataset.from_arrays(rows)
        model = build_model(config, dataset)
        with pytest.raises(ValueError, match=message):
            Stepper(config, dataset, model, World(0, 1, CPU), cuda_graph=True, data_on=data_on)


def test_processes_read_their_own_parts(tmp_path):
    np.save(tmp_path / "rows.npy", images())
    options = ["--hidden", "32", "--latent-dim", "4", "--epochs", "2", "--batch-size", "50", "--data"]
    options += [tmp_path / "rows.npy", "--data-on", "host", "--accumulate", "2", "--out"]
    alone = [sys.executable, "-m", "fastvae", "train", *options, tmp_path / "alone"]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fastvae", "train"]
    for command in (alone, [*two, *options, tmp_path / "two"]):
        result = run(command)
        assert result.returncode == 0, result.stderr
    # Sums of gradients are rounded in another order.
    assert_same_run(tmp_path / "alone", tmp_path / "two", tolerance=1e-5)


@pytest.mark.parametrize("data_on", ["device", "host"])
def test_killed_run_on_own_data_goes_on_bitwise(tmp_path, data_on):
    np.save(tmp_path / "rows.npy", images((3, 8, 9)))
    command = [sys.executable, "-m", "fastvae", "train", "--data", tmp_path / "rows.npy", "--epochs", "400"]
    command += ["--hidden", "32", "--latent-dim", "4", "--save-steps", "1", "--data-on", data_on, "--batch-size", "20"]
    process = start([*command, "--out", tmp_path / "killed"])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "killed" / "checkpoints").glob("step-00000001*")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    step = load_checkpoint(tmp_path / "killed").position.step
    epochs = str(-(-step // 10) + 1)
    command[command.index("400")] = epochs
    result = run([*command, "--resume", "--out", tmp_path / "killed"])
    assert result.returncode == 0, result.stderr
    assert "going on with the run" in result.stdout
    assert run([*command, "--out", tmp_path / "whole"]).returncode == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


class Shifted(torch.utils.data.Dataset):
    """Rows that are shifted anew at each look, by torch's generator."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i].roll(int(torch.randint(3, ())), -1)


class StopHereError(Exception):
    pass


def interrupt_after(steps):
    """A run's progress that ends it within an epoch."""

    def tell(progress):
        if progress.epoch == 2 and progress.test is None and progress.images >= steps:
            raise StopHereError

    return tell


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_augmented_run_goes_on_bitwise(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("fastvae.training.loop._SECONDS_BETWEEN_REPORTS", 0)
    rows = torch.from_numpy(images())

    def dataset():
        shifted = Shifted(rows)
        return Dataset.from_torch(DataLoader(shifted, 50, shuffle=True) if kind == "loader" else shifted, rows[:50])

    config = small(batch_size=50)
    with pytest.raises(StopHereError):
        train(config, tmp_path / "stopped", dataset=dataset(), save_steps=1, progress=interrupt_after(100))
    position = load_checkpoint(tmp_path / "stopped").position
    assert position.epoch == 1
    assert position.images > 0
    train(config, tmp_path / "stopped", dataset=dataset(), resume=True)
    train(config, tmp_path / "whole", dataset=dataset())
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    plain = train(config, tmp_path / "plain", dataset=Dataset.from_torch(TensorDataset(rows), rows[:50]))
    assert plain.history[-1]["train"] != load_checkpoint(tmp_path / "whole").history[-1]["train"]


def test_torch_dataset_without_augmentation_is_the_run_from_memory(tmp_path):
    rows, labels = torch.from_numpy(images()), torch.arange(ROWS) % 3
    config = small(model="cvae", condition="labels", batch_size=50)
    pairs = TensorDataset(rows, labels)
    train(config, tmp_path / "torch", dataset=Dataset.from_torch(pairs, pairs, num_classes=3))
    arrays = Dataset.from_arrays(rows, rows, labels=labels, test_labels=labels)
    train(config, tmp_path / "memory", dataset=arrays)
    assert_same_run(tmp_path / "torch", tmp_path / "memory")


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        (lambda: SubsetRandomSampler(range(30)), 30),
        (lambda: WeightedRandomSampler(torch.ones(ROWS), 500), 500),
    ],
)
def test_epoch_of_a_loader_is_what_its_sampler_gives(tmp_path, sampler, count):
    rows, seen = torch.from_numpy(images()), []
    loader = DataLoader(TensorDataset(rows), 20, sampler=sampler())
    dataset = Dataset.from_torch(loader, rows[:50])
    assert len(dataset.train) == count
    train(small(epochs=2, batch_size=20), tmp_path, dataset=dataset, progress=lambda p: seen.append(p.images))
    assert seen[-1] == count


class Short(IterableDataset):
    """Gives fewer rows than its length says."""

    def __init__(self, rows, given):
        self.rows, self.given = rows, given

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows[: self.given])


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        (lambda rows: DataLoader(rows, 20), small(batch_size=50), "the DataLoader's batch_size is 20, the run's 50"),
        (lambda rows: DataLoader(rows, 50), small(batch_size=50, accumulate=2), "serves one process and whole batches"),
        (lambda rows: iter(rows), small(), "has no length, by which a run counts its epochs"),
        (lambda rows: [], small(), "the data is empty"),
        (lambda rows: Short(rows, ROWS), small(), "is an IterableDataset, .*: give a DataLoader of it"),
        (lambda rows: DataLoader(rows, 500, drop_last=True), small(batch_size=500), "no batch: it has 203 rows, fewer"),
        (lambda rows: DataLoader(Short(rows, 100), 50), small(batch_size=50), "fewer rows than its length says"),
        (lambda rows: DataLoader(Short(rows, 0), 50), small(batch_size=50), "fewer rows than its length says"),
    ],
)
def test_torch_data_that_cannot_be_trained_on_are_named(tmp_path, source, config, message):
    rows = torch.from_numpy(images())
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", dataset=Dataset.from_torch(source(rows), rows))


class Given(nn.Module):
    """A loss of one's own, which is the ELBO of a VAE."""

    def __init__(self, shape, labels=False):
        super().__init__()
        torch.manual_seed(3)
        self.vae, self.labels = VAE(shape, hidden=(32,), latent_dim=4), labels

    def forward(self, x, labels=None):
        assert (labels is not None) == self.labels
        return self.vae.loss(x)


def test_module_that_returns_an_elbo_is_trained_as_the_model_in_it(tmp_path):
    dataset = Dataset.from_arrays(images())
    train(small(), tmp_path / "module", dataset=dataset, model=Given((6, 5)))
    torch.manual_seed(3)
    train(small(), tmp_path / "model", dataset=dataset, model=VAE((6, 5), hidden=(32,), latent_dim=4))
    ours = {name.replace("vae.", ""): value for name, value in tensors(load_checkpoint(tmp_path / "module")).items()}
    for name, value in tensors(load_checkpoint(tmp_path / "model")).items():
        assert torch.equal(value, ours[name]), name
    one, other = (load_checkpoint(tmp_path / name).history for name in ("module", "model"))
    assert [entry["train"] for entry in one] == [entry["train"] for entry in other]
    # Another draw of z for each test image.
    assert abs(one[-1]["test"]["elbo"] - other[-1]["test"]["elbo"]) < 0.2
    assert not (tmp_path / "module" / "samples.png").exists()
    assert (tmp_path / "module" / "curves.png").exists()


def test_given_model_goes_on_and_is_loaded(tmp_path):
    dataset = Dataset.from_arrays(images(), labels=np.arange(ROWS) % 3)
    config = small(model="cvae", condition="labels")
    train(config, tmp_path / "run", dataset=dataset, model=Given((6, 5), labels=True))
    longer = dataclasses.replace(config, epochs=3)
    with pytest.raises(ValueError, match=r"the run's model is a test_feed.Given, which a program gave: pass it"):
        train(longer, tmp_path / "run", dataset=dataset, resume=True)
    with pytest.raises(ValueError, match=r"not those of this Given: vae.encoder.0.weight is \[32, 12\] here"):
        train(longer, tmp_path / "run", dataset=dataset, resume=True, model=Given((6, 2), labels=True))
    train(longer, tmp_path / "run", dataset=dataset, resume=True, model=Given((6, 5), labels=True))
    train(longer, tmp_path / "whole", dataset=dataset, model=Given((6, 5), labels=True))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(ValueError, match="pass it"):
        fastvae.load(tmp_path / "run")
    loaded = fastvae.load(tmp_path / "run", Given((6, 5), labels=True))
    weights = tensors(load_checkpoint(tmp_path / "run"))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, weights[f"model.{name}"])


NETWORKS = """
from torch import nn

def small(shape, latent_dim):
    size = shape[0] * shape[1]
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, 20), nn.ReLU(), nn.Linear(20, 2 * latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, 20), nn.ReLU(), nn.Linear(20, size), nn.Unflatten(-1, shape))
    return encoder, decoder

def wide(shape, latent_dim):
    return nn.Linear(5, 5), nn.Linear(5, 5)
"""


def test_network_by_name_is_imported_again(tmp_path):
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    command = [sys.executable, "-m", "fastvae"]
    options = {"cwd": tmp_path, "env": environment()}
    trained = run([*command, "train", "--network", "my_networks:small", "--epochs", "1", "--out", "run"], **options)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "samples.png").exists()
    assert run([*command, "evaluate", "run", "--samples", "5"], **options).returncode == 0
    resumed = run([*command, "train", "--resume", "--epochs", "2", "--out", "run"], **options)
    assert resumed.returncode == 0, resumed.stderr
    elsewhere = run([*command, "evaluate", tmp_path / "run"], cwd=tmp_path.parent, env=environment())
    assert elsewhere.returncode == 1
    assert elsewhere.stderr.startswith("fastvae: error: network my_networks:small: there is no module my_networks")
    assert len(elsewhere.stderr.splitlines()) == 1
    (tmp_path / "my_networks.py").write_text(NETWORKS.replace("20", "21"))
    changed = run([*command, "evaluate", "run"], **options)
    assert changed.returncode == 1
    assert "encoder.1.weight is [21, 64] here, [20, 64] there" in changed.stderr
    bad = run([*command, "train", "--network", "my_networks:wide", "--out", "bad"], **options)
    assert bad.returncode == 1
    assert "encoder cannot take a batch [2, 8, 8]" in bad.stderr


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_wrong_values_are_named_before_the_first_step(tmp_path, likelihood):
    rows = images((7,), "float32")
    rows[17, 3] = 1.5 if likelihood == "bernoulli" else np.nan
    with pytest.raises(ValueError, match=r"the data: row 17, index \[3\] is (1.5|nan), expected"):
        train(small(likelihood=likelihood), tmp_path / "run", dataset=Dataset.from_arrays(rows))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("model", [None, Given], ids=["gaussian", "own loss"])
def test_what_cannot_be_binarized_is_named_before_the_first_step(tmp_path, model):
    rows = images((7,), "float32")
    rows[17, 3] = 1.5
    config = small(likelihood="gaussian", binarize="dynamic")
    with pytest.raises(
        ValueError, match=r"row 17, index \[3\] is 1.5, expected numbers in \[0, 1\] for binarize dynamic$"
    ):
        train(config, tmp_path / "run", dataset=Dataset.from_arrays(rows), model=model and model((7,)))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_column_is_of_grey_images_only(tmp_path):
    config = small(model="cvae")
    with pytest.raises(ValueError, match=r"the data has rows \[7\] of uint8, but condition column needs images"):
        train(config, tmp_path / "run", dataset=Dataset.from_arrays(images((7,))))


def test_labels_are_asked_for_only_where_a_condition_needs_them(tmp_path):
    dataset = Dataset.from_arrays(images())
    train(small(epochs=1), tmp_path / "run", dataset=dataset)
    with pytest.raises(ValueError, match="the data has no labels, which condition labels needs"):
        train(small(model="cvae", condition="labels"), tmp_path / "other", dataset=dataset)


@pytest.mark.parametrize(("labelled", "missing"), [("train", "test"), ("test", "training")])
def test_labels_of_one_part_are_as_good_as_none_and_the_other_is_named(tmp_path, labelled, missing):
    data = {"train": images(), "test": images()[:30]}
    np.savez(tmp_path / "x.npz", **data, **{f"y_{labelled}": np.arange(len(data[labelled])) % 3})
    dataset = Dataset.from_files(tmp_path / "x.npz")
    train(small(epochs=1), tmp_path / "run", dataset=dataset)
    with pytest.raises(ValueError, match=rf"x\.npz: the {missing} set has no labels, which condition labels needs"):
        train(small(model="cvae", condition="labels"), tmp_path / "other", dataset=dataset)


def test_a_test_set_without_labels_serves_a_training_set_with_classes(tmp_path):
    for number, image in enumerate(images()[:60]):
        write(tmp_path / "photos" / f"class {number % 2}" / f"{number}.png", encode(image))
        write(tmp_path / "more" / f"{number}.png", encode(image))
    dataset = Dataset.from_files(tmp_path / "photos", tmp_path / "more")
    assert (dataset.test_labels, len(dataset.train_labels)) == (None, 60)
    train(small(epochs=1), tmp_path / "run", dataset=dataset)


def test_another_kind_or_shape_of_model_is_named(tmp_path):
    dataset = Dataset.from_arrays(images())
    with pytest.raises(ValueError, match=r"a VAE: config\.model must be vae"):
        train(small(model="cvae"), tmp_path / "run", dataset=dataset, model=VAE((6, 5)))
    with pytest.raises(ValueError, match=r"the model has data_shape \[5, 6\], but the data needs \[6, 5\]"):
        train(small(), tmp_path / "run", dataset=dataset, model=VAE((5, 6)))


def test_tables_have_no_pictures_but_curves(tmp_path):
    config = small(likelihood="gaussian", learn_sigma=True)
    train(config, tmp_path / "run", dataset=Dataset.from_arrays(images((7,), "float32")))
    assert sorted(path.name for path in (tmp_path / "run").glob("*.png")) == ["curves.png"]


def test_digits_by_name_and_as_arrays_are_one_run(tmp_path):
    digits = load("digits")
    train(small(epochs=1), tmp_path / "name")
    arrays = Dataset.from_arrays(digits.train.numpy(), digits.test.numpy())
    train(small(epochs=1), tmp_path / "arrays", dataset=arrays)
    assert_same_run(tmp_path / "name", tmp_path / "arrays")


def test_a_run_does_not_go_on_with_other_rows_or_labels(tmp_path):
    rows, labels = torch.rand(200, 6), torch.arange(200) % 3
    config = small(epochs=1, model="cvae", condition="labels")
    dataset = Dataset.from_arrays(rows, labels=labels)
    train(config, tmp_path / "run", dataset=dataset)
    longer = small(epochs=2, model="cvae", condition="labels")
    others = Dataset.from_arrays(1 - rows, labels=labels), Dataset.from_arrays(rows, labels=(labels + 1) % 3)
    for other in others:
        with pytest.raises(ValueError, match="run was trained on other rows or labels than those that"):
            train(longer, tmp_path / "run", dataset=other, resume=True)
    # The same in another form, of which a VAE would not be given the labels.
    np.savez(tmp_path / "same.npz", data=rows.numpy(), labels=labels.numpy())
    same = Dataset.from_files(tmp_path / "same.npz")
    assert train(longer, tmp_path / "run", dataset=same, resume=True).history[-1]["epoch"] == 2
    unlabelled = small(epochs=1)
    train(unlabelled, tmp_path / "vae", dataset=dataset)
    train(small(epochs=2), tmp_path / "vae", dataset=others[1], resume=True)


def test_reading_and_checking_are_reported_before_the_first_step(tmp_path):
    for number, image in enumerate(images()[:30]):
        write(tmp_path / "images" / f"{number}.png", encode(image))
    seen = []
    train(
        small(epochs=1, data=str(tmp_path / "images")),
        tmp_path / "run",
        reading=lambda *told: seen.append(told),
        progress=lambda progress: seen.append("a step"),
    )
    before = seen[: seen.index("a step")]
    assert ("reading", 30, 30) in before
    what, done, total = before[-1]
    assert (what, done) == ("checking", total)
    assert all(told == "a step" for told in seen[len(before) :])
