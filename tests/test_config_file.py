"""Configurations in files: what is read, what is refused in one line, and that a run leaves one that repeats it."""

import dataclasses
import os
import re
import shlex
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from runs import SMALL, assert_same_run, small

from fastvae.cli import app, main
from fastvae.cli.trained import Trained, with_data
from fastvae.data import load
from fastvae.models import VAE
from fastvae.training import TrainConfig, load_checkpoint, read_config, saved_config, train
from fastvae.training.config import PATHS
from fastvae.training.config_file import config_text

COMMANDS = typer.main.get_command(app).commands
HINTS = get_type_hints(TrainConfig)


def written(folder, text, name="run.toml"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def asked(monkeypatch):
    """The configurations that commands would have trained."""
    configs = []

    def record(config, *_: object, **__: object) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvae.training.train", record)
    return configs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "source"
    train(small(epochs=1, beta=0.1, learning_rate=1 / 3000), out)
    return out


def test_every_field_of_the_configuration_is_an_option_of_train():
    options = {parameter.name: parameter.opts for parameter in COMMANDS["train"].params}
    for field in dataclasses.fields(TrainConfig):
        assert options.get(field.name) == [f"--{field.name.replace('_', '-')}"]


@pytest.mark.parametrize("name", HINTS)
def test_every_field_has_a_type_that_files_have(tmp_path, name):
    """A value of the wrong type is refused by what the field takes, not by an error of the reader."""
    with pytest.raises(ValueError, match=f"{name} must be .*, not a table$"):
        read_config(written(tmp_path, f"[{name}]"))
    default = getattr(TrainConfig(), name)
    (*_, line) = config_text(TrainConfig()).partition(f"\n{name} = ")[1:]
    if default is not None:
        path = written(tmp_path, f"{name.replace('_', '-')} = {line.splitlines()[0]}")
        assert read_config(path) == {name: default}


PATH = st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: os.path.join("/", text))
NAME = st.text(st.characters(exclude_categories=["Cs"]))
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
WHOLE = st.integers(1, 2**62)


@given(
    config=st.builds(
        TrainConfig,
        data=PATH,
        test_data=st.none() | PATH,
        data_dir=st.none() | PATH,
        labels=st.none() | NAME,
        network=NAME.map(lambda text: f"{text}:"),
        hidden=st.lists(WHOLE).map(tuple),
        epochs=WHOLE,
        batch_size=WHOLE,
        seed=st.integers(0, 2**63 - 1),
        sigma=POSITIVE,
        beta=POSITIVE | st.integers(0, 2**53),
        learning_rate=POSITIVE,
        clip_norm=st.none() | POSITIVE,
        compile=st.booleans(),
        layout=st.sampled_from(["auto", "chw", "hwc"]),
        decay=st.sampled_from([None, "cosine"]),
    )
)
def test_what_is_written_is_read_as_the_same(tmp_path_factory, config):
    # Paths as pathlib has them, which says the same of "/a//b" and "/a/./b".
    config = dataclasses.replace(
        config, **{name: str(Path(value)) for name in PATHS if (value := getattr(config, name)) is not None}
    )
    path = written(tmp_path_factory.getbasetemp(), config_text(config), "round.toml")
    assert TrainConfig(**read_config(path)) == config
    names = list(read_config(path))
    assert names == [name for name in HINTS if getattr(config, name) is not None]


@pytest.mark.parametrize(
    "text", ['a"b', "a\\b", "a\nb", "a\rb", "a\tb", "\x00\x1f\x7f", "é 漢 🙂", "'''", '"""', "# no"]
)
def test_strings_of_any_characters_survive(tmp_path, text):
    config = TrainConfig(data=f"/{text}", labels=text)
    assert TrainConfig(**read_config(written(tmp_path, config_text(config)))) == config


def test_path_that_is_not_unicode_is_left_to_a_comment(tmp_path):
    config = TrainConfig(data="/data/\udcff.npy")
    text = config_text(config)
    assert '# data is not Unicode: "/data/\\udcff.npy"' in text.splitlines()
    assert TrainConfig(**read_config(written(tmp_path, text))) == TrainConfig()


def test_integer_is_a_number_and_dashes_are_underscores(tmp_path):
    path = written(tmp_path, 'beta = 2\nlearning-rate = 1e-3\nbatch_size = 7\nhidden = [4, 5]\n"clip-norm" = 1')
    fields = read_config(path)
    assert fields == {"beta": 2.0, "learning_rate": 1e-3, "batch_size": 7, "hidden": (4, 5), "clip_norm": 1.0}
    assert type(fields["beta"]) is float


def test_paths_start_from_the_folder_of_the_file(tmp_path, monkeypatch):
    path = written(tmp_path / "there", 'data = "x.npy"\ntest_data = "../y.npy"\ndata-dir = "/absolute"')
    monkeypatch.chdir(tmp_path)
    for name in (path, path.relative_to(tmp_path)):
        assert read_config(name) == {
            "data": f"{tmp_path}/there/x.npy",
            "test_data": f"{tmp_path}/there/../y.npy",
            "data_dir": "/absolute",
        }


def test_home_is_expanded_before_a_path_is_made_absolute(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path, x = written(tmp_path, 'data = "~/x.npy"'), f"{tmp_path}/home/x.npy"
    assert read_config(path) == {"data": x}
    main(["train", "--data=~/x.npy", "--test-data=~nobody-of-that-name/y.npy"])
    monkeypatch.chdir(tmp_path)
    assert (asked[0].data, Path(asked[0].test_data).name) == (x, "y.npy")
    trained = Trained(tmp_path, TrainConfig(), VAE(8), data_given=False)
    later = with_data(trained, data=Path("~/x.npy"), test_data=Path("~/y.npy"), data_dir=Path("~/d"))
    assert (later.data, later.test_data, later.data_dir) == (x, f"{tmp_path}/home/y.npy", f"{tmp_path}/home/d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "unknown key 'batchsize'; did you mean batch_size?"),
        ("zzz = 3", "unknown key 'zzz'"),
        ("[optimiser]\nlr = 1", "unknown key 'optimiser'"),
        ("epochs = 3.0", "epochs must be an integer, not a number"),
        ("epochs = true", "epochs must be an integer, not true or false"),
        ("latent-dim = '3'", "latent-dim must be an integer, not a string"),
        ("beta = '1'", "beta must be a number, not a string"),
        ("beta = 1" + 400 * "0", "beta must be a number, not an integer"),
        ("compile = 1", "compile must be true or false, not an integer"),
        ("labels = 1979-05-27", "labels must be a string, not a date or time"),
        ("hidden = '3,4'", "hidden must be a list of integers, not a string"),
        ("hidden = [3, 4.0]", "hidden must be a list of integers, not one of other values"),
        ("hidden = [true]", "hidden must be a list of integers, not one of other values"),
        ("model = 'gan'", "model must be one of vae, cvae, regressor, not 'gan'"),
        ("decay = ['cosine']", "decay must be one of cosine, not a list"),
        ("[data]\nx = 1", "data must be a string, not a table"),
        ("clip-norm = 1\nclip_norm = 2", "clip_norm is given twice, with a dash and with an underscore"),
        ("epochs = 1\nbeta = = 2", "not a TOML file: .*line 2.*"),
        ("epochs = 1\nepochs = 2", "not a TOML file: .*line 2.*"),
        ("x = " + 5000 * "[", "not a TOML file: .*"),
        ("beta = -1", "beta must be a finite number, 0 or more, not -1.0"),
        ("test_data = 'x'", "test_data needs data: published data sets have a test set of their own"),
    ],
    ids=lambda text: text[:30],
)
def test_mistakes_are_one_line_with_file_and_key(tmp_path, capsys, text, message):
    path = written(tmp_path, text)
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    pattern = message if ".*" in message else re.escape(message)
    assert re.fullmatch(rf"fastvae: error: {re.escape(str(path))}: {pattern}\n", captured.err)
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_one_line(tmp_path, capsys):
    (tmp_path / "latin.toml").write_bytes(b"labels = '\xe9'")
    for name, message in (
        ("none.toml", "No such file or directory"),
        (".", "Is a directory"),
        ("latin.toml", "not a TOML file: 'utf-8' codec can't decode .*"),
    ):
        assert main(["train", "--config", str(tmp_path / name)]) == 1
        assert re.fullmatch(f"fastvae: error: {re.escape(str(tmp_path / name))}: {message}\n", capsys.readouterr().err)


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path, asked):
    path = written(tmp_path, "epochs = 3\nbatch-size = 50\nhidden = [7]\ngradient = 'dreg'")
    # The file by itself would contradict the default of importance_samples.
    main(["train", "--config", str(path), "--batch-size", "100", "--importance-samples", "2"])
    assert asked == [TrainConfig(epochs=3, batch_size=100, hidden=(7,), gradient="dreg", importance_samples=2)]


def test_mistake_of_file_and_options_together_names_both(tmp_path, capsys):
    path = written(tmp_path, "batch_size = 3")
    assert main(["train", "--config", str(path), "--accumulate", "4"]) == 1
    expected = f"fastvae: error: {path} with the options given: accumulate must be at most batch_size, 3, not 4\n"
    assert capsys.readouterr().err == expected


def test_data_of_the_file_give_way_to_a_data_set_that_is_an_option(tmp_path, asked):
    path = written(tmp_path, "dataset = 'digits'\ndata = 'x.npy'\ntest-data = 'y.npy'\ndata-dir = 'd'")
    command = ["train", "--config", str(path)]
    for more in ([], ["--dataset", "digits"], ["--dataset", "mnist"], ["--data", "/z.npy"]):
        main([*command, *more])
    x, y, d = (str(tmp_path / name) for name in ("x.npy", "y.npy", "d"))
    assert asked == [
        TrainConfig(data=x, test_data=y, data_dir=d),
        TrainConfig(data_dir=d),
        TrainConfig(dataset="mnist"),
        TrainConfig(data="/z.npy", data_dir=d),
    ]
    # A folder that the file gives for no data set in particular is for any.
    main(["train", "--config", str(written(tmp_path, "data-dir = 'd'")), "--dataset", "mnist"])
    assert asked[-1] == TrainConfig(dataset="mnist", data_dir=d)


def test_labels_of_another_run_are_dropped_by_an_empty_name(tmp_path, asked, monkeypatch):
    fields = vars(TrainConfig(data="/x.npz", labels="kind"))
    monkeypatch.setattr("fastvae.cli.train._fields_of", lambda run, given: fields)
    new = ["train", "--init-from", "there", "--data", "/new.npy"]
    main([*new, "--labels", ""])
    main([*new, "--config", str(written(tmp_path, "labels = ''"))])
    assert asked == 2 * [TrainConfig(data="/new.npy")]


@pytest.mark.parametrize("start", ["--init-from", "--resume"])
def test_file_lies_between_the_run_and_the_options(source, tmp_path, asked, start):
    path = written(tmp_path, "epochs = 5\nseed = 6")
    where = ["--init-from", str(source)] if start == "--init-from" else ["--resume", "--out", str(source)]
    main(["train", *where, "--config", str(path), "--seed", "7"])
    assert asked == [dataclasses.replace(saved_config(source), epochs=5, seed=7)]


def test_file_that_contradicts_a_run_that_goes_on_is_refused(source, tmp_path, capsys):
    path = written(tmp_path, "beta = 3")
    assert main(["train", "--resume", "--out", str(source), "--config", str(path)]) == 1
    expected = f"fastvae: error: cannot resume with beta 3.0: the run in {source} has 0.1\n"
    assert capsys.readouterr().err == expected


def test_file_that_a_run_leaves_repeats_it_bitwise(source, tmp_path):
    assert main(["train", "--config", str(source / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    assert saved_config(tmp_path / "again") == saved_config(source)
    assert_same_run(source, tmp_path / "again")
    assert (tmp_path / "again" / "config.toml").read_text() == (source / "config.toml").read_text()


def test_file_grows_with_the_run(tmp_path):
    train(small(epochs=1), tmp_path)
    before = (tmp_path / "config.toml").read_text()
    train(small(epochs=2), tmp_path, resume=True)
    assert (tmp_path / "config.toml").read_text() == before.replace("epochs = 1\n", "epochs = 2\n", 1)
    assert TrainConfig(**read_config(tmp_path / "config.toml")) == SMALL


def test_folder_with_nothing_but_a_configuration_is_used_and_its_words_are_kept(tmp_path):
    text = "# my notes\nhidden = [32]\nlatent-dim = 4\nepochs = 1\n"
    path = written(tmp_path, text, "config.toml")
    assert main(["train", "--config", str(path), "--out", str(tmp_path)]) == 0
    assert path.read_text() == text
    assert load_checkpoint(tmp_path).epoch == 1
    # With other values it would be no description of the run.
    assert main(["train", "--resume", "--epochs", "2", "--out", str(tmp_path)]) == 0
    assert read_config(path)["epochs"] == 2


def test_file_of_another_purpose_is_refused_and_left_alone(tmp_path):
    path = written(tmp_path, "baseURL = 'https://example.org'\n", "config.toml")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: unknown key 'baseURL'"):
        train(small(epochs=1), tmp_path)
    assert path.read_text() == "baseURL = 'https://example.org'\n"
    assert not (tmp_path / "checkpoints").exists()


def test_what_the_file_cannot_hold_is_a_comment(source, tmp_path):
    train(small(epochs=1), tmp_path / "given", dataset=load("digits"))
    assert (
        "# The dataset was given from Python: train(..., dataset=...)\n"
        in (tmp_path / "given" / "config.toml").read_text()
    )
    train(dataclasses.replace(saved_config(source), seed=3), tmp_path / "tuned", init_from=source)
    expected = f'# Its first weights: --init-from "{load_checkpoint(source).folder}"\n'
    assert expected in (tmp_path / "tuned" / "config.toml").read_text()
    assert "given" not in (source / "config.toml").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_help_are_whole_lines_that_the_command_understands(name, capsys, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    examples = lines[[line.strip() for line in lines].index("Examples:") + 1 :]
    assert len(examples) >= 2
    for line in examples:
        words = shlex.split(line.partition("|")[0])
        arguments = words[words.index("fastvae") + 1 :]
        assert arguments[0] == name
        COMMANDS[name].make_context(name, arguments[1:])


def test_commands_of_many_options_have_panels():
    for name, command in COMMANDS.items():
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        assert len(options) <= 6 or all(option.rich_help_panel for option in options), name
