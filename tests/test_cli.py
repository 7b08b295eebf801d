"""The command line: what it prints, where it stops, and that an error is one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib.image
import pytest
import torch
import typer

import fastvae
from fastvae.cli import app, main
from fastvae.data import Images, load
from fastvae.plots import image_grid
from fastvae.training import load_checkpoint, saved_config

# A network that trains in no time is not to be had from the command line; two epochs of digits are.
TRAIN = ["train", "--epochs", "2", "--latent-dim", "4"]


def run(*arguments, **options):
    command = [sys.executable, "-m", "fastvae", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return out, run(*TRAIN, "--out", out)


def assert_one_line_of_error(stderr, *parts):
    assert stderr.startswith("fastvae: error: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    for part in parts:
        assert part in stderr


def fails(capsys, arguments, *parts, status=1):
    assert main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_line_of_error(captured.err, *parts)


def test_train_prints_a_line_for_each_epoch_and_the_result(finished):
    out, process = finished
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    first, second, last = process.stdout.splitlines()
    pattern = (
        r"epoch {}/2  loss \d+\.\d\d  reconstruction \d+\.\d\d  KL \d+\.\d\d  "
        r"test ELBO -\d+\.\d\d nats  [\d,]+ samples/s"
    )
    assert re.fullmatch(pattern.format(1), first)
    assert re.fullmatch(pattern.format(2), second)
    test = json.loads((out / "metrics.json").read_text())["epochs"][-1]["test"]
    assert f"test ELBO {test['elbo']:.2f} nats ({test['bits_per_dim']:.4f} bits/dim)" in last
    assert str(out) in last
    for picture in ("samples.png", "reconstructions.png", "curves.png"):
        assert picture in last
        assert (out / picture).is_file()


def test_train_passes_every_option_on(tmp_path, monkeypatch):
    configs = []

    def record(config, out, **options):
        configs.append((config, Path(out), options["resume"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvae.training.train", record)
    options = {
        "dataset": "fashion-mnist",
        "data_dir": str(tmp_path),
        "epochs": 3,
        "batch_size": 7,
        "accumulate": 2,
        "latent_dim": 5,
        "likelihood": "gaussian",
        "sigma": 0.25,
        "beta": 0.5,
        "binarize": "dynamic",
        "learning_rate": 0.01,
        "warmup_epochs": 1,
        "decay": "cosine",
        "clip_norm": 5.0,
        "amp": "bf16",
        "seed": 9,
    }
    arguments = [part for name, v in options.items() for part in (f"--{name.replace('_', '-')}", str(v))]
    assert main(["train", *arguments, "--compile", "--out", str(tmp_path / "out")]) == 130
    ((config, out, resume),) = configs
    assert {name: getattr(config, name) for name in options} == options
    assert config.compile is True
    assert (out, resume) == (tmp_path / "out", False)


def test_train_goes_to_a_dated_folder_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--epochs", "1"]) == 0
    (out,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-\d{8}-\d{6}", out.name)
    assert f"runs/{out.name}" in capsys.readouterr().out


def test_evaluate_repeats_the_figures_of_the_run(finished, tmp_path, capsys):
    out, _ = finished
    assert main(["evaluate", str(out), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["test"] == json.loads((out / "metrics.json").read_text())["epochs"][-1]["test"]
    header, train, test, code = capsys.readouterr().out.splitlines()
    assert header.split() == ["digits", "ELBO", "reconstruction", "KL", "nats", "bits/dim"]
    for line, part in ((train, "train"), (test, "test")):
        report = figures[part]
        numbers = [report["standard_error"], report["reconstruction"], report["kl"]]
        elbo = [f"{report['elbo']:.2f}", "±"]
        assert line.split() == [part, *elbo, *(f"{n:.2f}" for n in numbers), f"{report['bits_per_dim']:.4f}"]
    nats = sorted(figures["code"]["nats"], reverse=True)
    in_use = f"code {figures['code']['active_units']} of {len(nats)} dimensions in use; nats of each:".split()
    assert code.split() == [*in_use, *(f"{n:.2f}" for n in nats)]


def test_train_takes_the_options_of_networks_and_objectives(tmp_path, capsys):
    out = tmp_path / "run"
    network, objective = (
        ["--hidden", "16,8", "--activation", "tanh"],
        ["--importance-samples", "3", "--gradient", "stl"],
    )
    options = [*network, *objective, "--epochs", "1"]
    assert main(["train", *options, "--out", str(out)]) == 0
    config = saved_config(out)
    assert (config.hidden, config.activation, config.importance_samples, config.gradient) == ((16, 8), "tanh", 3, "stl")
    assert main(["train", "--resume", "--out", str(out), "--epochs", "2"]) == 0
    assert saved_config(out).hidden == (16, 8)
    capsys.readouterr()
    assert main(["train", "--hidden", "16,wide"]) == 2
    assert "'16,wide' is not a list of widths such as 200,200" in capsys.readouterr().err


def grid_in(picture, columns):
    """A grid of digits as `sample` writes it, [0, 255], without the enlargement."""
    pixels = (matplotlib.image.imread(picture)[..., 0] * 255).round()
    scale = pixels.shape[1] // image_grid(torch.zeros(columns, 8, 8), columns).shape[1]
    return torch.from_numpy(pixels[::scale, ::scale])


def test_models_given_labels_draw_them(tmp_path, capsys):
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    options = ["--model", "cvae", "--condition", "labels", "--binarize", "dynamic", "--epochs", "2"]
    assert main([*TRAIN, *options, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--json", str(figures), "--samples", "5"]) == 0
    assert json.loads(figures.read_text())["test"]["elbo"] == load_checkpoint(out).history[-1]["test"]["elbo"]
    model = load_checkpoint(out).build_model()
    expected = model.sample(torch.full((7,), 3), generator=torch.Generator().manual_seed(2))
    picture = tmp_path / "grid.png"
    assert main(["sample", str(out), "--num", "7", "--label", "3", "--seed", "2", "--out", str(picture)]) == 0
    assert (grid_in(picture, 3) - image_grid(expected, 3)).abs().max() <= 1  # what matplotlib's palette rounds
    assert main(["sample", str(out), "--num", "20", "--out", str(picture)]) == 0
    expected = model.sample(torch.arange(20) % 10, generator=torch.Generator().manual_seed(0))
    assert (grid_in(picture, 10) - image_grid(expected, 10)).abs().max() <= 1
    capsys.readouterr()
    fails(capsys, ["sample", out, "--label", "10"], "--label", "labels lie in 0 .. 9, not 10", status=2)


@pytest.mark.parametrize("model", ["cvae", "regressor"])
def test_completing_models_are_trained_and_evaluated(model, tmp_path, capsys):
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    assert main([*TRAIN, "--model", model, "--epochs", "1", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} >= {"samples.png", "reconstructions.png", "curves.png"}
    assert main(["evaluate", str(out), "--json", str(figures)]) == 0
    report = json.loads(figures.read_text())
    assert report["test"]["elbo"] == load_checkpoint(out).history[-1]["test"]["elbo"]
    assert (report["test"]["kl"] == 0) == (model == "regressor")
    capsys.readouterr()
    picture = tmp_path / "grid.png"
    assert main(["sample", str(out), "--num", "4", "--out", str(picture)]) == 0
    grid = grid_in(picture, 2)
    corners = [(2, 2), (2, 12), (12, 2), (12, 12)]
    columns = torch.stack([grid[top : top + 8, left + 3] for top, left in corners])
    # A pixel of the column that is known is drawn: black or white, and black where the test image is.
    assert set(columns.unique().tolist()) == {0, 255}
    assert columns[load("digits").test[:4, :, 3] == 0].max() == 0
    capsys.readouterr()
    fails(capsys, ["sample", out, "--label", "3"], "--label", "was not trained with --condition labels", status=2)
    status = main(["evaluate", str(out), "--samples", "5", "--images", "20", "--json", str(figures)])
    if model == "cvae":
        assert status == 0
        assert json.loads(figures.read_text())["log_likelihood_posterior"]["images"] == 20
    else:
        assert status == 1
        assert "is a regressor: it has no z" in capsys.readouterr().err


def test_experiment_draws_its_figure_or_lists_all(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "ring", "--quick"]) == 0
    assert capsys.readouterr().out == "runs/ring-quick/ring.png, runs/ring-quick/ring.json\n"
    assert {p.name for p in (tmp_path / "runs" / "ring-quick").iterdir()} == {"ring.png", "ring.json"}
    assert main(["experiment", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("mnist-vae ")
    assert "Figure 7" in lines[0]
    assert main(["experiment", "gan"]) == 1
    assert "experiment must be one of mnist-vae, " in capsys.readouterr().err


def test_evaluate_estimates_the_likelihood_by_sampling(finished, tmp_path, capsys):
    out, partial = tmp_path / "figures.json", tmp_path / "partial"
    sizes = ["--images", "50", "--samples", "20", "--memory", "1"]
    assert main(["evaluate", str(finished[0]), *sizes, "--partial", str(partial), "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    report = figures["log_likelihood_posterior"]
    assert (report["num_samples"], report["images"]) == (20, 50)
    assert report["log_likelihood"] > figures["test"]["elbo"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"test, 20 samples of the posterior: {report['log_likelihood']:.2f} ± ")
    assert not partial.exists()
    assert main(["evaluate", str(finished[0]), *sizes, "--prior-samples", "30", "--json", str(out)]) == 0
    naive = json.loads(out.read_text())["log_likelihood_prior"]
    assert naive["num_samples"] == 30
    # Fewer of the prior's samples count: that, and not which estimate is the higher, holds for any draw.
    assert naive["effective_sample_size"] / 30 < report["effective_sample_size"] / 20
    assert main(["evaluate", str(finished[0]), *sizes, "--prior-samples", "30", "--partial", str(partial)]) == 2
    assert "keeps one of --samples and --prior-samples" in capsys.readouterr().err


def test_evaluate_with_another_seed_draws_other_noise(finished, tmp_path):
    elbos = []
    for seed in ("0", "1"):
        path = tmp_path / f"{seed}.json"
        assert main(["evaluate", str(finished[0]), "--seed", seed, "--json", str(path)]) == 0
        elbos.append(json.loads(path.read_text())["test"]["elbo"])
    assert elbos[0] != elbos[1]
    assert abs(elbos[0] - elbos[1]) < 1


def test_sample_writes_a_picture(finished, tmp_path, capsys):
    from matplotlib.image import imread

    path = tmp_path / "new" / "seven.png"
    checkpoint = load_checkpoint(finished[0]).folder
    arguments = ["sample", str(checkpoint), "--num", "7", "--out", str(path)]
    assert main(arguments) == 0
    assert str(path) in capsys.readouterr().out
    once = imread(path)
    # Three columns and three rows of 8x8 pixels with gaps of 2, enlarged by a whole factor.
    assert once.shape[0] == once.shape[1]
    assert once.shape[0] % 32 == 0
    assert main(arguments) == 0
    assert (imread(path) == once).all()
    assert main([*arguments, "--seed", "1"]) == 0
    assert (imread(path) != once).any()


def test_info_prints_the_build_and_the_machine(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for key in (*fastvae.build_info(), "installed_in", "python", "system", "processor", "cores", "threads", "gpus"):
        assert re.search(rf"^{key} +\S", printed, re.MULTILINE)
    assert torch.__version__ in printed
    assert f"numpy {version('numpy')}" in printed
    assert "OMP_NUM_THREADS=7" in printed


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["sample", "--help"]])
def test_help_is_printed(arguments, capsys):
    assert main(arguments) == 0
    assert "Usage: fastvae" in capsys.readouterr().out


PANELS = ["Data", "Model", "Objective", "Optimisation", "Run", "Hardware"]


def test_help_of_every_option_stands_by_itself():
    """It names what the option is, and does not begin where a neighbour's has ended."""
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help.rstrip().endswith("."), name
        for parameter in command.params:
            assert re.match(r"(?!(Of|In|How|It) )[A-Z]", parameter.help), f"{name} {parameter.name}"
            assert parameter.help.endswith("."), f"{name} {parameter.name}"


def test_options_of_train_lie_in_panels():
    """In their order, which is the one in which they are drawn."""
    command = typer.main.get_command(app).commands["train"]
    assert list(dict.fromkeys(parameter.rich_help_panel for parameter in command.params)) == PANELS


@pytest.mark.parametrize("width", [80, 120])
def test_help_of_train_fits_the_terminal(width, capsys, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == width
    for panel in PANELS:
        assert any(re.match(rf"╭─ {panel} ─+╮$", line) for line in lines)
    # Nothing is cut off.
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    ("arguments", "parts", "status"),
    [
        (["--epochs", "0"], ["--epochs"], 2),
        (["--epochs", "many"], ["--epochs", "integer"], 2),
        (["--batch-size", "-1"], ["--batch-size"], 2),
        (["--latent-dim", "0"], ["--latent-dim"], 2),
        (["--seed", "-1"], ["--seed"], 2),
        (["--dataset", "cifar"], ["--dataset", "cifar", "fashion-mnist"], 2),
        (["--amp", "fp8"], ["--amp", "bf16"], 2),
        (["--likelihood", "cauchy"], ["--likelihood", "bernoulli"], 2),
        (["--binarize", "static"], ["--binarize", "dynamic"], 2),
        (["--no-such-option"], ["--no-such-option"], 2),
        (["--resume"], ["--resume", "--out"], 2),
        (["surplus"], ["surplus"], 2),
        (["--beta", "nan"], ["beta", "nan"], 1),
        (["--beta", "-1"], ["beta", "-1"], 1),
        (["--learning-rate", "0"], ["learning_rate"], 1),
        (["--sigma", "inf"], ["sigma"], 1),
        (["--seed", str(2**63)], ["--seed"], 2),
    ],
    ids=str,
)
def test_train_refuses_bad_options_by_name(tmp_path, monkeypatch, capsys, arguments, parts, status):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["train", *arguments], *parts, status=status)
    assert list(tmp_path.iterdir()) == []


def test_unknown_command_is_one_line(capsys):
    fails(capsys, ["trian"], "trian", status=2)


def test_missing_data_set_is_one_line(tmp_path, capsys):
    arguments = ["train", "--dataset", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "out"]
    fails(capsys, arguments, "mnist is not in", "train-images-idx3-ubyte", str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_bad_data_file_is_one_line(tmp_path, capsys):
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{part}-ubyte").write_bytes(b"\0\0\x08")
    arguments = ["train", "--dataset", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "out"]
    fails(capsys, arguments, "train-images-idx3-ubyte: not an IDX file")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_unreadable_checkpoint_is_one_line(tmp_path, finished, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    fails(capsys, [command, tmp_path / "nowhere"], "nowhere: no such checkpoint")
    cut = tmp_path / "cut"
    shutil.copytree(load_checkpoint(finished[0]).folder, cut)
    shard = next(cut.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    fails(capsys, [command, cut], "cut: damaged checkpoint", "bytes, expected")
    text = tmp_path / "text"
    text.write_text("hello")
    fails(capsys, [command, text], "no checkpoint of fastvae")
    assert not (tmp_path / "samples.png").exists()


def test_checkpoint_that_does_not_fit_the_data_is_one_line(finished, capsys, monkeypatch):
    images, labels = torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8)
    monkeypatch.setattr("fastvae.training.inputs.load", lambda name, root: Images(name, images, labels, images, labels))
    assert main(["evaluate", str(finished[0]), "--dataset", "mnist"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert_one_line_of_error(output.err, "mnist has rows of 28x28, but", "was trained on digits, of 8x8")


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_unwritable_output_is_one_line(tmp_path, finished, command, capsys):
    # A file where a folder should be stops root as well, whom permissions do not.
    file = tmp_path / "file"
    file.write_text("precious")
    arguments = {
        "train": [*TRAIN, "--out", file / "run"],
        "sample": ["sample", finished[0], "--out", file / "samples.png"],
        "evaluate": ["evaluate", finished[0], "--json", file / "figures.json"],
    }
    assert main([str(argument) for argument in arguments[command]]) == 1
    assert_one_line_of_error(capsys.readouterr().err, str(file))
    assert file.read_text() == "precious"


def test_picture_of_another_format_is_one_line(finished, tmp_path, capsys):
    fails(capsys, ["sample", finished[0], "--out", tmp_path / "samples.pdf"], "samples.pdf", ".png", status=2)
    assert list(tmp_path.iterdir()) == []


def test_existing_run_is_refused_and_left_alone(finished, capsys):
    out, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    fails(capsys, [*TRAIN, "--out", out], str(out), "--resume")
    fails(capsys, ["train", "--resume", "--beta", "2", "--out", out], "beta 2.0", "1.0")
    fails(capsys, ["train", "--resume", "--epochs", "1", "--out", out], "epochs 1")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_resume_starts_a_run_or_goes_on_and_says_which(tmp_path, capsys):
    out = tmp_path / "run"
    command = [*TRAIN, "--epochs", "1", "--resume", "--out", str(out)]
    assert main(command) == 0
    first, epoch, _ = capsys.readouterr().out.splitlines()
    assert first == f"no run in {out} yet: starting one"
    assert epoch.startswith("epoch 1/1 ")
    assert main(["train", "--epochs", "2", "--resume", "--out", str(out)]) == 0
    first, epoch, _ = capsys.readouterr().out.splitlines()
    assert first == f"going on with the run in {out} after epoch 1"
    assert epoch.startswith("epoch 2/2 ")
    assert load_checkpoint(out).train_config["latent_dim"] == 4


def test_resume_without_checkpoints_leaves_alone_what_is_there(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("precious")
    fails(capsys, ["train", "--resume", "--out", tmp_path], "holds metrics.json of an earlier run: name another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_diverging_run_is_one_line_and_keeps_its_checkpoint(tmp_path, capsys):
    assert main([*TRAIN, "--learning-rate", "1e30", "--out", str(tmp_path)]) == 1
    assert_one_line_of_error(capsys.readouterr().err, "at step", "step-000000000 holds epoch 0")
    assert load_checkpoint(tmp_path).epoch == 0


def test_errors_of_the_process_are_one_line_too():
    process = run("train", "--epochs", "0")
    assert (process.returncode, process.stdout) == (2, "")
    assert_one_line_of_error(process.stderr, "--epochs")


def test_interrupted_run_says_how_to_go_on_and_does(tmp_path):
    out = tmp_path / "interrupted run"
    command = [sys.executable, "-m", "fastvae", *TRAIN, "--epochs", "100000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # The first line says that an epoch is over and saved.
        assert process.stdout.readline().startswith("epoch 1/")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr == f"fastvae: interrupted; go on with: fastvae train --resume --out '{out}'\n"
    done = load_checkpoint(out).epoch
    assert done >= 1
    resumed = run("train", "--resume", "--epochs", done + 1, "--out", out)
    assert resumed.returncode == 0, resumed.stderr
    # The other options are the run's own.
    assert load_checkpoint(out).train_config["latent_dim"] == 4
    assert load_checkpoint(out).epoch == done + 1
    assert resumed.stdout.splitlines()[0].startswith(f"going on with the run in {out} after epoch {done}")
    assert resumed.stdout.splitlines()[1].startswith(f"epoch {done + 1}/{done + 1} ")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_that_a_finaliser_drops_is_remembered(tmp_path, monkeypatch, capsys):
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def train(*_: object, progress, **__: object) -> None:
        for _ in range(3):
            Interrupted()
            progress(None)
        pytest.fail("went on")

    monkeypatch.setattr("fastvae.training.train", train)
    handler = signal.getsignal(signal.SIGINT)  # a shell's background job is started with it ignored
    assert main(["train", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "fastvae: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_one_line_at_the_start(missing):
    script = f"import sys; sys.modules[{missing!r}] = None; from fastvae.cli import main; sys.exit(main())"
    process = subprocess.run([sys.executable, "-c", script, "info"], capture_output=True, text=True)
    assert process.returncode == 1
    assert_one_line_of_error(process.stderr, missing, 'is not installed: pip install "fastvae-torch[train]"')


@pytest.mark.parametrize("missing", ["matplotlib", "tensorboard", "sklearn", "safetensors"])
def test_missing_extra_is_one_line_before_training(tmp_path, missing):
    script = f"import sys; sys.modules[{missing!r}] = None; from fastvae.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "train", "--out", str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert_one_line_of_error(process.stderr, missing, 'is not installed: pip install "fastvae-torch[train]"')
    assert not (tmp_path / "out").exists()


def test_start_up_loads_nothing_heavy():
    script = (
        "import sys, fastvae.cli; "
        "print([m for m in ('matplotlib', 'sklearn', 'tensorboard', 'pooch') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.slow
def test_ten_epochs_of_mnist_reach_113_nats(tmp_path):
    folder = Path(os.environ.get("FASTVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not list(folder.glob("**/train-images-idx3-ubyte*")):
        pytest.skip(f"MNIST is not in {folder} (FASTVAE_DATA names another folder)")
    arguments = ["train", "--dataset", "mnist", "--data-dir", str(folder), "--epochs", "10"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"][-1]
    assert last["test"]["elbo"] > -113


def test_run_that_stopped_in_its_first_epoch_may_be_started_anew(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "--epochs", "1", "--learning-rate", "1e20", "--out", out]) == 1
    assert "holds epoch 0; try a lower learning rate" in capsys.readouterr().err
    assert main(["train", "--epochs", "1", "--out", out]) == 0


def test_json_follows_a_link_and_writes_to_a_pipe(finished, tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    assert main(["evaluate", str(finished[0]), "--json", str(link)]) == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["dataset"] == "digits"
    command = [sys.executable, "-m", "fastvae", "evaluate", str(finished[0]), "--json", "/dev/stdout"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.JSONDecoder().raw_decode(output)[0]["dataset"] == "digits"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_running_out_of_memory_is_one_line(device, finished, tmp_path, capsys, monkeypatch):
    def sample(*_: object, **__: object) -> None:
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.")
        torch.empty(1 << 62, dtype=torch.uint8)

    monkeypatch.setattr("fastvae.models.VAE.sample", sample)
    assert main(["sample", str(finished[0]), "--out", str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err.startswith("fastvae: error: out of memory")


def test_interrupted_evaluate_says_so(finished, capsys, monkeypatch):
    def evaluate(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvae.cli.evaluate.evaluate", evaluate)
    assert main(["evaluate", str(finished[0])]) == 130
    assert capsys.readouterr().err == "fastvae: interrupted\n"
