"""Standard streams that are closed, broken, full or ASCII: no command loses its result for them."""

import json
import os
import re
import shlex
import sys
from contextlib import suppress

import pytest
from runs import TRAIN, environment, run

from fastvae.cli import main
from fastvae.training import load_checkpoint

RESULTS = {
    "train": "run/metrics.json",
    "sample": "samples.png",
    "evaluate": "figures.json",
    "experiment": "ring.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*TRAIN, "--epochs", "1", "--out", str(out)]) == 0
    return out


def arguments(command, run, folder):
    return [str(argument) for argument in {
        "train": [*TRAIN, "--epochs", 1, "--out", folder / "run"],
        "sample": ["sample", run, "--num", 4, "--out", folder / "samples.png"],
        "evaluate": ["evaluate", run, "--samples", 2, "--images", 10, "--json", folder / "figures.json"],
        "experiment": ["experiment", "ring", "--quick", "--out", folder],
        "experiments": ["experiment", "list"],
        "info": ["info"],
        "help": ["--help"],
        "help of train": ["train", "--help"],
    }[command]]  # fmt: skip


COMMANDS = [*RESULTS, "experiments", "info", "help", "help of train"]


@pytest.fixture
def streams(monkeypatch, tmp_path):
    """Makes the standard streams of this process what they are to be; what opened them closes them."""
    opened = []

    def replace(**kinds):
        for name, kind in kinds.items():
            if kind == "closed":
                stream = None
            elif kind == "broken":
                reading, writing = os.pipe()
                os.close(reading)
                stream = os.fdopen(writing, "w", encoding="utf-8")
            elif kind == "full":
                stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
            else:
                stream = open(tmp_path / name, "w", encoding=kind)  # noqa: SIM115
            opened.append(stream)
            monkeypatch.setattr(sys, name, stream)

    yield replace
    monkeypatch.undo()
    for stream in filter(None, opened):
        with suppress(OSError):
            stream.close()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["ascii", "closed", "broken", "full"])
def test_command_does_its_work_whatever_becomes_of_what_it_prints(finished, tmp_path, streams, command, kind):
    folder = tmp_path / "out"
    folder.mkdir()
    streams(stdout=kind, stderr="utf-8")
    # What was to be printed is lost on a full disk, and only there somebody still wants it.
    assert main(arguments(command, finished, folder)) == (1 if kind == "full" else 0)
    if command in RESULTS:
        assert (folder / RESULTS[command]).stat().st_size > 0
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert said == ("fastvae: error: standard output: No space left on device\n" if kind == "full" else "")
    if kind == "ascii":
        printed = (tmp_path / "stdout").read_bytes().decode("ascii")
        assert printed
        assert bool(re.search(r" \+- \d", printed)) == (command == "evaluate")
    if command == "evaluate":
        assert json.loads((folder / "figures.json").read_text())["log_likelihood_posterior"]["images"] == 10


@pytest.mark.parametrize("kind", ["ascii", "closed", "broken", "full"])
def test_errors_do_not_go_to_another_stream(tmp_path, streams, kind):
    streams(stdout="utf-8", stderr=kind)
    assert main(["evaluate", str(tmp_path / "Läufe ±")]) == 1
    assert (tmp_path / "stdout").read_bytes() == b""
    if kind == "ascii":
        assert rb"L\xe4ufe +-: no such checkpoint" in (tmp_path / "stderr").read_bytes()


def test_file_is_written_before_anything_is_printed(finished, tmp_path, monkeypatch):
    """Whatever ends the process then."""
    path = tmp_path / "figures.json"

    def show(*_: object, **__: object) -> None:
        assert json.loads(path.read_text())["dataset"] == "digits"
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", show)
    with pytest.raises(KeyboardInterrupt):
        main(["evaluate", str(finished), "--json", str(path)])


# What Python takes for ASCII: by its own variable, and by a locale that it is kept from replacing by UTF-8.
ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]


@pytest.mark.parametrize("variables", [*ASCII, {"LANG": "C", "LC_ALL": ""}], ids=str)
def test_evaluate_prints_to_a_terminal_without_plus_minus(finished, tmp_path, variables):
    path = tmp_path / "figures.json"
    process = run([sys.executable, "-m", "fastvae", "evaluate", finished, "--json", path], env=environment(**variables))
    assert (process.returncode, process.stderr) == (0, "")
    test = json.loads(path.read_text())["test"]
    assert re.search(rf"^test +{test['elbo']:.2f} (\+-|±) {test['standard_error']:.2f} ", process.stdout, re.MULTILINE)


def shell(command, redirections):
    """A command of a shell; prints the status of the first of its processes."""
    program = shlex.join([sys.executable, "-m", "fastvae", *map(str, command)])
    return run(["sh", "-c", f"{{ {program}; echo $? >&3; }} 3>status {redirections}"])


@pytest.mark.parametrize("redirections", ["| head -n 1", ">&-", "<&- >&- 2>&-"])
def test_training_goes_on_without_a_reader(tmp_path, monkeypatch, redirections):
    monkeypatch.chdir(tmp_path)
    process = shell([*TRAIN, "--epochs", 30, "--out", "run"], redirections)
    assert (tmp_path / "status").read_text() == "0\n", process.stderr
    assert process.stderr == ""
    assert len(process.stdout.splitlines()) == ("head" in redirections)
    assert load_checkpoint("run").epoch == 30
    assert len(json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"]) == 30


def test_pipe_that_closes_ends_no_command(finished, tmp_path, monkeypatch):
    """Not even at the end of the process, when Python flushes what is left."""
    monkeypatch.chdir(tmp_path)
    for command in (["evaluate", finished, "--json", "f"], ["train", "--help"]):
        process = shell(command, "| :")
        assert (process.stdout, process.stderr) == ("", "")
        assert (tmp_path / "status").read_text() == "0\n"
    assert (tmp_path / "f").is_file()
