"""Codes of trained models: their figures, their files and their pictures."""

import dataclasses
import json
import os
import re
import signal

import numpy as np
import pytest
import torch

from fastvae.cli import main
from fastvae.data import Dataset, Rows, load
from fastvae.encoding import Codes, encode, write_codes
from fastvae.evaluation import evaluate, evaluate_code
from fastvae.latent_space import decode, plane, quantile_grid, traversal
from fastvae.models import CVAE
from fastvae.training import TrainConfig, load_checkpoint, train
from tests.runs import small

NAMES = ["mu", "logvar", "elbo", "reconstruction", "kl", "labels"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A run on the digits."""
    out = tmp_path_factory.mktemp("runs") / "vae"
    train(small(epochs=1), out)
    return out


@pytest.fixture(scope="module")
def cvae(tmp_path_factory):
    """A run that is given labels, with two dimensions and pixels drawn anew."""
    out = tmp_path_factory.mktemp("runs") / "cvae"
    train(small(epochs=1, latent_dim=2, model="cvae", condition="labels", binarize="dynamic"), out)
    return out


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run on rows that are no images and have no labels; and its data."""
    folder = tmp_path_factory.mktemp("table")
    np.save(folder / "rows.npy", np.random.default_rng(0).random((300, 20), dtype=np.float32))
    train(small(epochs=1, data=str(folder / "rows.npy")), folder / "run")
    return folder / "run", folder / "rows.npy"


def opened(run):
    checkpoint = load_checkpoint(run)
    return checkpoint.build_model(), TrainConfig.from_checkpoint(checkpoint)


def command(*arguments):
    assert main(list(map(str, arguments))) == 0


def fails(capsys, arguments, *parts):
    capsys.readouterr()
    assert main(list(map(str, arguments))) in (1, 2)
    error = capsys.readouterr().err
    assert re.fullmatch("fastvae: error: [^\n]*\n", error), error
    for part in parts:
        assert part in error


def test_codes_of_a_vae_are_what_its_encoder_gives(vae):
    model, config = opened(vae)
    images = load("digits").test
    batches = list(encode(model, config, images, batch_size=100))
    assert [len(batch.mu) for batch in batches] == [100] * (len(images) // 100) + [len(images) % 100]
    mu, logvar = model.eval().encode(images)
    torch.testing.assert_close(torch.cat([b.mu for b in batches]), mu)
    torch.testing.assert_close(torch.cat([b.logvar for b in batches]), logvar)
    assert batches[0].labels is None


@pytest.mark.parametrize("run", ["vae", "cvae"])
def test_mean_elbo_of_the_rows_is_that_of_evaluate(run, request):
    model, config = opened(request.getfixturevalue(run))
    digits = load("digits")
    (codes,) = encode(model, config, digits.test, digits.test_labels, generator=seeded(3))
    arguments = (digits.test, digits.test_labels) if run == "cvae" else (digits.test,)
    report = evaluate(model, *arguments, binarize=config.binarize == "dynamic", generator=seeded(3))
    assert float(codes.elbo.mean()) == pytest.approx(report.elbo, rel=1e-12)
    assert float(codes.kl.mean()) == pytest.approx(report.kl, rel=1e-12)
    torch.testing.assert_close(codes.elbo, -(codes.reconstruction + codes.kl))


def test_more_samples_of_z_make_the_elbo_of_a_row_less_noisy(vae):
    model, config = opened(vae)
    images = load("digits").test

    def elbo(samples, seed):
        return next(encode(model, config, images, samples=samples, generator=seeded(seed))).elbo

    one, many = ((elbo(k, 0) - elbo(k, 1)).square().mean() for k in (1, 16))
    assert 16 * 0.8 < one / many < 16 * 1.25
    assert float(elbo(16, 0).mean()) == pytest.approx(float(elbo(1, 0).mean()), abs=0.1)


def test_a_completing_model_encodes_the_rest_of_its_images(tmp_path):
    train(small(epochs=1, model="cvae"), tmp_path / "run")
    command("encode", tmp_path / "run", "--out", tmp_path / "codes.npz", "--seed", 0)
    model, config = opened(tmp_path / "run")
    figures = evaluate(model, *split(load("digits").test), generator=seeded(1))
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["mu"].shape == (len(load("digits").test), 4)
        assert abs(codes["elbo"].mean() - figures.elbo) < 3 * figures.standard_error
    assert config.completes
    # What is traversed is put together with the column that is known.
    command("sample", tmp_path / "run", "--traverse", 2, "--out", tmp_path / "shown.npy")
    shown = np.load(tmp_path / "shown.npy")
    assert shown.shape == (22, 8, 8)
    assert set(np.unique(shown[:, :, 3])) <= {0, 1}
    assert (shown[:, :, 3] == shown[0, :, 3]).all()


def split(images):
    from fastvae.data import split_column

    return split_column(images, generator=seeded())


def some_codes(rows, labels=True):
    """Batches of 7 rows."""
    noise = seeded()
    for start in range(0, rows, 7):
        count = min(7, rows - start)
        mu, logvar = torch.randn(2, count, 3, generator=noise)
        terms = torch.randn(3, count, generator=noise, dtype=torch.float64)
        yield Codes(mu, logvar, *terms, torch.arange(start, start + count) if labels else None)


@pytest.mark.parametrize("labels", [True, False])
def test_both_formats_hold_the_same_codes(tmp_path, labels, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("fastvae.encoding._ROW_GROUP", 20)
    for name in ("codes.npz", "codes.parquet"):
        write_codes(tmp_path / name, some_codes(50, labels), 50)
    expected = list(some_codes(50, labels))
    table = parquet.read_table(tmp_path / "codes.parquet")
    assert parquet.ParquetFile(tmp_path / "codes.parquet").num_row_groups == 3  # of 21, 21 and 8 rows
    names = NAMES if labels else NAMES[:-1]
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as file:
        assert file.files == names
        for name in names:
            array = file[name]
            assert (array == np.concatenate([getattr(batch, name).numpy() for batch in expected])).all()
            if array.ndim == 2:
                columns = np.stack([table[f"{name}_{index}"].to_numpy() for index in range(3)], 1)
            else:
                columns = table["label" if name == "labels" else name].to_numpy()
            assert columns.dtype == array.dtype
            assert (columns == array).all()
    assert table.num_columns == 6 + len(names) - 2


def test_the_same_codes_are_the_same_bytes(tmp_path):
    for name in ("one.npz", "other.npz"):
        write_codes(tmp_path / name, some_codes(50), 50)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_encoding_that_fails_leaves_what_was_there(tmp_path, suffix):
    pytest.importorskip("pyarrow")
    out = tmp_path / f"codes{suffix}"

    def failing():
        yield from some_codes(21)
        raise RuntimeError("the disk has gone")

    for before in (None, b"precious"):
        if before is not None:
            out.write_bytes(before)
        with pytest.raises(RuntimeError, match="the disk has gone"):
            write_codes(out, failing(), 50)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_encoding_that_is_killed_leaves_no_file(tmp_path):
    def killed():
        yield from some_codes(21)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        write_codes(tmp_path / "codes.npz", killed(), 50)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def anonymous_bytes():
    """Memory that is no file's."""
    with open("/proc/self/status", encoding="ascii") as status:
        return int(re.search(r"RssAnon:\s+(\d+) kB", status.read())[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_memory_does_not_grow_with_the_rows_of_a_mapped_array(tmp_path, monkeypatch):
    rows = 300_000
    train(small(epochs=1, latent_dim=16), tmp_path / "run")
    np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.uint8, (rows, 8, 8)).flush()
    held = []

    def watched(*arguments, **options):
        for batch in encode(*arguments, **options):
            held.append(anonymous_bytes())
            yield batch

    monkeypatch.setattr("fastvae.cli.encode.encode", watched)
    options = ["--out", tmp_path / "codes.npz", "--plot", tmp_path / "codes.png"]
    command("encode", tmp_path / "run", "--data", tmp_path / "rows.npy", *options)
    assert len(held) == 300
    # The array has 19 MB, its codes 46 MB.
    assert max(held[20:]) - held[20] < 16 * 2**20  # with what the allocator keeps


def test_encode_takes_data_of_ones_own_in_the_order_of_the_file(table, tmp_path, capsys):
    run, path = table
    command("encode", run, "--data", path, "--out", tmp_path / "codes.npz")
    model, _ = opened(run)
    with np.load(tmp_path / "codes.npz") as codes:
        assert sorted(codes.files) == sorted(NAMES[:-1])
        mu, _ = model.eval().encode(torch.from_numpy(np.load(path)))
        np.testing.assert_allclose(codes["mu"], mu.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out == f"300 codes of 4 dimensions in {tmp_path / 'codes.npz'}\n"
    # The run's own test rows, those that were set aside.
    command("encode", run, "--out", tmp_path / "test.npz")
    command("encode", run, "--data", path, "--part", "train", "--out", tmp_path / "train.npz")
    with np.load(tmp_path / "test.npz") as test, np.load(tmp_path / "train.npz") as rest:
        assert (len(test["mu"]), len(rest["mu"])) == (30, 270)
    # One row has a code too.
    np.save(tmp_path / "row.npy", np.load(path)[:1])
    command("encode", run, "--data", tmp_path / "row.npy", "--out", tmp_path / "row.npz")


def test_encode_plots_codes_and_writes_a_projector(cvae, tmp_path):
    from matplotlib.image import imread

    out, plot, projector = tmp_path / "codes.npz", tmp_path / "codes.png", tmp_path / "projector"
    command("encode", cvae, "--part", "all", "--out", out, "--plot", plot, "--projector", projector)
    digits = load("digits")
    with np.load(out) as codes:
        assert (codes["labels"] == torch.cat([digits.train_labels, digits.test_labels]).numpy()).all()
        values = np.loadtxt(projector / "00000" / "default" / "tensors.tsv")
        np.testing.assert_allclose(values, codes["mu"], rtol=1e-6)
        assert np.loadtxt(projector / "00000" / "default" / "metadata.tsv").tolist() == codes["labels"].tolist()
    sprite = imread(projector / "00000" / "default" / "sprite.png")
    assert sprite.shape[:2] == (43 * 8, 43 * 8)  # 43 = ceil(sqrt(1797))
    np.testing.assert_allclose(sprite[:8, :8, 0] * 255, digits.train[0].numpy(), atol=1)
    assert (projector / "projector_config.pbtxt").is_file()
    assert imread(plot).shape[:2] == (1050, 1200)
    assert len(np.unique(imread(plot)[..., :3].reshape(-1, 3), axis=0)) > 10  # colours


def test_projector_and_plot_show_every_so_many_rows(vae, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastvae.cli.encode._POINTS", 600)
    monkeypatch.setattr("fastvae.cli.encode._SPRITES", 150)
    options = ["--batch-size", "100", "--plot", tmp_path / "p.png", "--projector", tmp_path / "p"]
    command("encode", vae, "--part", "all", "--out", tmp_path / "codes.npz", *options)
    printed = capsys.readouterr().out
    assert f"599 codes drawn in {tmp_path / 'p.png'}" in printed  # each third of 1797
    with np.load(tmp_path / "codes.npz") as codes:
        values = np.loadtxt(tmp_path / "p" / "00000" / "default" / "tensors.tsv")
        np.testing.assert_allclose(values, codes["mu"][::12], rtol=1e-6)
        labels = np.loadtxt(tmp_path / "p" / "00000" / "default" / "metadata.tsv")
        assert (labels == codes["labels"][::12]).all()


def test_projector_takes_a_test_part_of_fewer_rows_than_its_stride(vae, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvae.cli.encode._POINTS", 100)
    rows = np.random.default_rng(0).integers(0, 256, (303, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "rows.npz", train=rows[:301], test=rows[301:])
    options = ["--out", tmp_path / "codes.npz", "--projector", tmp_path / "p"]
    command("encode", vae, "--data", tmp_path / "rows.npz", *options)
    assert len(np.loadtxt(tmp_path / "p" / "00000" / "default" / "tensors.tsv")) == 76  # each fourth of 303


def test_plane_of_codes_is_that_of_most_variance():
    noise = torch.randn(500, 2, generator=seeded(), dtype=torch.float64) * torch.tensor([3.0, 1.0])
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=seeded(1), dtype=torch.float64))
    points, axes = plane(noise @ rotation[:2])
    centred = noise - noise.mean(0)
    torch.testing.assert_close(points.square().sum(1), centred.square().sum(1))
    variances = points.var(0)
    assert variances[0] > variances[1]
    share = 100 * variances / variances.sum()
    assert axes[0] == f"principal component 1 ({share[0]:.0f} % of the variance)"
    assert axes[1] == f"principal component 2 ({share[1]:.0f} % of the variance)"
    # Two dimensions are shown as they are, one is a line.
    assert torch.equal(plane(noise).points, noise)
    assert plane(noise[:, :1]).points.shape == (500, 2)


def test_traversed_codes_differ_in_one_dimension_each():
    code = torch.tensor([10.0, 20.0, 30.0])
    codes = traversal(code, torch.tensor([2, 0]), torch.tensor([-1.0, 0.0, 1.0]))
    expected = [[10, 20, -1], [10, 20, 0], [10, 20, 1], [-1, 20, 30], [0, 20, 30], [1, 20, 30]]
    assert codes.tolist() == expected


def test_grid_of_codes_lies_at_the_quantiles_of_the_prior():
    codes = quantile_grid(4).view(4, 4, 2)
    share = torch.special.ndtr(codes)
    quantiles = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(share[..., 0], quantiles.expand(4, 4))
    torch.testing.assert_close(share[..., 1], quantiles.flip(0)[:, None].expand(4, 4))


def test_conditions_serve_all_codes_that_are_decoded():
    config, z = small(model="cvae", condition="labels"), torch.randn(6, 3)
    model = CVAE((8, 8), condition_classes=10, latent_dim=3, hidden=(16,))
    expected = model.output.mean(model.decode(z, torch.full((6,), 7)))
    torch.testing.assert_close(decode(model, config, z, torch.tensor([7])), expected)


@pytest.mark.parametrize("options", [["--traverse", "3"], ["--grid", "5", "--label", "4"], ["--grid", "5"]])
def test_sample_shows_the_space_of_codes(options, vae, cvae, tmp_path, capsys):
    from matplotlib.image import imread

    traverses = options[0] == "--traverse"
    run, shown = (vae, (33, 8, 8)) if traverses else (cvae, (25, 8, 8))
    for name in ("shown.png", "shown.npy", "shown.npz"):
        command("sample", run, *options, "--out", tmp_path / name)
    height, width = imread(tmp_path / "shown.png").shape[:2]
    assert width > 2.5 * height if traverses else width == height
    images = np.load(tmp_path / "shown.npy")
    assert images.shape == shown
    assert images.min() >= 0
    assert images.max() <= 1
    assert (np.load(tmp_path / "shown.npz")["samples"] == images).all()
    if traverses:
        model, test = opened(vae)[0].eval(), load("digits").test
        dimensions = torch.tensor(evaluate_code(model, test).nats).argsort(descending=True)[:3]
        codes = traversal(model.encode(test[:1])[0][0].detach(), dimensions, torch.linspace(-3, 3, 11))
        np.testing.assert_allclose(images, model.decode(codes).sigmoid().detach().numpy(), rtol=1e-4, atol=1e-6)
    assert "in " + str(tmp_path / "shown.npz") in capsys.readouterr().out


def test_traversals_of_colour_images_are_drawn_in_colour(tmp_path):
    from matplotlib.image import imread

    colours = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    colours[:, 2] = 0
    np.save(tmp_path / "colours.npy", colours)
    train(small(epochs=1, latent_dim=2, data=str(tmp_path / "colours.npy")), tmp_path / "run")
    for options in (["--traverse", "9"], ["--grid", "4"]):
        command("sample", tmp_path / "run", *options, "--out", tmp_path / "shown.png")
        pixels = imread(tmp_path / "shown.png")[..., :3]
        assert (np.ptp(pixels, axis=-1) > 0.1).mean() > 0.2
    command("encode", tmp_path / "run", "--projector", tmp_path / "p", "--out", tmp_path / "codes.npz")
    sprite = imread(tmp_path / "p" / "00000" / "default" / "sprite.png")
    assert (np.ptp(sprite[..., :3], axis=-1) > 0.1).mean() > 0.2


def test_sample_of_rows_that_are_no_images_is_numbers(table, tmp_path, capsys):
    run, _ = table
    command("sample", run, "--num", "7", "--out", tmp_path / "rows.npy")
    assert np.load(tmp_path / "rows.npy").shape == (7, 20)
    command("sample", run, "--traverse", "2", "--out", tmp_path / "rows.npz")
    assert np.load(tmp_path / "rows.npz")["samples"].shape == (22, 20)
    fails(capsys, ["sample", run, "--out", tmp_path / "rows.png"], "rows of 20 are not images", ".npy or .npz")
    fails(capsys, ["sample", run, "--traverse", 2, "--out", tmp_path / "rows.png"], "rows of 20 are not images")
    assert not (tmp_path / "rows.png").exists()


def test_evaluate_takes_data_of_ones_own_without_labels(table, tmp_path, capsys):
    run, path = table
    figures = tmp_path / "figures.json"
    command("evaluate", run, "--json", figures)
    own = json.loads(figures.read_text())
    assert own["test"]["elbo"] == load_checkpoint(run).history[-1]["test"]["elbo"]
    # Moved, it is the same data.
    path.rename(tmp_path / "moved.npy")
    try:
        fails(capsys, ["evaluate", run], "rows.npy")
        command("evaluate", run, "--data", tmp_path / "moved.npy", "--json", figures)
    finally:
        (tmp_path / "moved.npy").rename(path)
    moved = json.loads(figures.read_text())
    assert moved.pop("dataset") == str(tmp_path / "moved.npy")
    assert moved == {key: value for key, value in own.items() if key != "dataset"}
    fails(capsys, ["evaluate", run, "--data", path, "--dataset", "digits"], "--data", "give one of both")


@pytest.mark.parametrize("model", ["vae", "cvae"])
def test_test_rows_are_read_a_batch_at_a_time(model, tmp_path, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 256, (3000, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    read = []

    def take(rows, index, take=Rows.take):
        read.append(len(index))
        return take(rows, index)

    monkeypatch.setattr(Rows, "take", take)
    config = small(epochs=1, batch_size=1000, model=model, data=str(tmp_path / "rows.npy"), test_fraction=0.7)
    train(config, tmp_path / "run", data_on="host")
    command("evaluate", tmp_path / "run", "--json", tmp_path / "all.json")
    assert sum(read) > 2 * 2100
    assert max(read) <= 1000
    own = load_checkpoint(tmp_path / "run").history[-1]["test"]
    assert json.loads((tmp_path / "all.json").read_text())["test"]["elbo"] == own["elbo"]
    read.clear()
    command("evaluate", tmp_path / "run", "--images", 1500, "--samples", 1, "--json", tmp_path / "some.json")
    assert json.loads((tmp_path / "some.json").read_text())["log_likelihood_posterior"]["images"] == 1500
    assert max(read) <= 1500


def test_a_test_file_of_its_own_moves_with_the_data(tmp_path, capsys):
    noise, names = np.random.default_rng(0), ("rows.npy", "test.npy")
    for name, rows in zip(names, (200, 40), strict=True):
        np.save(tmp_path / name, noise.random((rows, 20), dtype=np.float32))
    run, figures = tmp_path / "run", tmp_path / "figures.json"
    train(small(epochs=1, data=str(tmp_path / "rows.npy"), test_data=str(tmp_path / "test.npy")), run)
    (tmp_path / "new").mkdir()
    data, test = ((tmp_path / name).rename(tmp_path / "new" / name) for name in names)
    # Of the training file alone, a part would pass for test rows.
    part_of_it = ["encode", run, "--part", "test", "--out", tmp_path / "codes.npz"]
    for command_line in (["evaluate", run], part_of_it, ["sample", run, "--traverse", 2, "--out", tmp_path / "x.npy"]):
        fails(capsys, [*command_line, "--data", data], "--test-data", "test.npy")
        command(*command_line, "--data", data, "--test-data", test)
    assert len(np.load(tmp_path / "codes.npz")["mu"]) == 40
    command("evaluate", run, "--data", data, "--test-data", test, "--json", figures)
    assert json.loads(figures.read_text())["test"]["elbo"] == load_checkpoint(run).history[-1]["test"]["elbo"]
    # All rows of a file are what they are.
    command("encode", run, "--data", data, "--out", tmp_path / "codes.npz")
    assert len(np.load(tmp_path / "codes.npz")["mu"]) == 200
    command("encode", run, "--data", data, "--test-data", test, "--out", tmp_path / "codes.npz")
    assert len(np.load(tmp_path / "codes.npz")["mu"]) == 240
    fails(capsys, ["evaluate", run, "--dataset", "digits", "--test-data", test], "test_data needs data")


def test_what_cannot_be_encoded_is_one_line(vae, cvae, table, tmp_path, capsys):
    out = ["--out", tmp_path / "codes.npz"]
    fails(capsys, ["encode", vae, "--out", tmp_path / "codes.csv"], "--out", "codes.csv does not end in .npz or .par")
    fails(capsys, ["encode", vae, *out, "--plot", tmp_path / "x.pdf"], "--plot", "x.pdf does not end in .png")
    fails(capsys, ["encode", vae, *out, "--data", tmp_path / "none.npy"], "none.npy")
    fails(capsys, ["encode", vae, *out, "--data", table[1]], "has rows of 20, but", "of 8x8")
    data = tmp_path / "data.npy"
    for value, words in ((16.0, "row 2, index [0, 0] is 16.0"), (np.nan, "row 2, index [0, 0] is nan")):
        rows = np.zeros((5, 8, 8), dtype=np.float32)
        rows[2, 0, 0] = value
        np.save(data, rows)
        fails(capsys, ["encode", vae, *out, "--data", data], str(data), words)
    np.save(data, np.zeros((5, 8, 8), dtype=np.uint8))
    fails(capsys, ["encode", cvae, *out, "--data", data], "no labels")
    fails(capsys, ["sample", vae, "--grid", 3], "code of 4 dimensions: a grid needs a code of 2")
    fails(capsys, ["sample", cvae, "--grid", 3, "--traverse", 2], "--grid", "excludes --traverse")
    (tmp_path / "projector_config.pbtxt").touch()
    fails(capsys, ["encode", vae, *out, "--projector", tmp_path], "already holds a projector")
    assert not (tmp_path / "codes.npz").exists()
    command("encode", vae, *out, "--data", data)  # all of it black, which a trained model has a code for


def test_data_that_a_program_gave_must_be_named(table, tmp_path, capsys):
    _, path = table
    images = np.random.default_rng(0).random((60, 8, 8), dtype=np.float32)  # as large as the digits
    run = tmp_path / "run"
    train(small(epochs=1), run, dataset=Dataset.from_arrays(images))
    said = f"{run} was trained on data that a program gave", "--data"
    out = ["--out", tmp_path / "codes.npz"]
    fails(capsys, ["encode", run, *out], *said)
    fails(capsys, ["evaluate", run], *said)
    fails(capsys, ["sample", run, "--traverse", 2, "--out", tmp_path / "rows.npy"], *said)
    fails(capsys, ["train", "--resume", "--epochs", 2, "--out", run], *said)
    fails(capsys, ["train", "--init-from", run, "--out", tmp_path / "other"], *said)
    fails(capsys, ["evaluate", run, "--data", path], "rows of 20, but", "on data that a program gave, of 8x8")
    np.save(tmp_path / "images.npy", images)
    own = ["--data", tmp_path / "images.npy"]
    command("encode", run, *out, *own)
    command("sample", run, "--out", tmp_path / "samples.png")
    command("evaluate", run, "--dataset", "digits")
    command("train", "--resume", "--epochs", 2, "--out", run, *own)
    command("evaluate", run)  # which the configuration names now


def test_sample_tells_the_data_of_the_training_from_those_that_are_named(table, tmp_path, capsys):
    run, path = table
    np.save(tmp_path / "wider.npy", np.zeros((30, 21), dtype=np.float32))
    arguments = ["sample", run, "--traverse", 2, "--out", tmp_path / "rows.npy", "--data", tmp_path / "wider.npy"]
    fails(capsys, arguments, "wider.npy has rows of 21, but", f"was trained on {path}, of 20")


def test_a_regressor_has_no_code(tmp_path, capsys):
    train(small(epochs=1, model="regressor", condition="labels"), tmp_path / "run")
    fails(capsys, ["encode", tmp_path / "run", "--out", tmp_path / "codes.npz"], "is a regressor: it has no code")
    fails(capsys, ["sample", tmp_path / "run", "--traverse", 2], "is a regressor: it has no code")
    fails(capsys, ["sample", tmp_path / "run", "--grid", 2], "no code: a grid needs a code of 2 dimensions")
    model, config = opened(tmp_path / "run")
    with pytest.raises(ValueError, match="a regressor has no code"):
        next(encode(model, config, load("digits").test))


def test_a_network_of_ones_own_is_encoded(tmp_path, monkeypatch):
    source = """
from torch import nn
def networks(shape, latent_dim):
    return (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2 * latent_dim)), nn.Linear(latent_dim, 64))
"""
    (tmp_path / "own_of_encoding.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(small(epochs=1), network="own_of_encoding:networks", hidden=(1000, 500, 250))
    train(config, tmp_path / "run")
    for name in ("one.npz", "other.npz"):
        command("encode", "run", "--out", name)
    # Without dropout, which would make another code each time.
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    model, _ = opened("run")
    mu, _ = model.eval().encode(load("digits").test)
    np.testing.assert_allclose(np.load("one.npz")["mu"], mu.detach().numpy(), rtol=1e-4, atol=1e-5)
