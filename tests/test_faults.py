"""What machines do: kills, signals and full disks; a run goes on bitwise as if nothing had been.

``FASTVAE_KILLS`` is how often a run is killed: 4 times here, 20 in the long form.
"""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from queue import Empty, Queue

import pytest
from runs import TRAIN, assert_same_run, small, start, without_times

from fastvae.cli import main
from fastvae.training import TrainingError, load_checkpoint, train
from fastvae.training.lock import locked

KILLS = int(os.environ.get("FASTVAE_KILLS", "4"))


def lines_of(process):
    """Its lines, as they come, from a thread: a read could not be given up."""
    lines = Queue()

    def read():
        for line in process.stdout:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    return lines


def wait_for_epoch(process, lines):
    """Until an epoch is over."""
    while process.poll() is None:
        try:
            if lines.get(timeout=0.1).startswith("epoch "):
                return
        except Empty:
            pass
    pytest.fail(process.stderr.read())


def test_run_killed_at_random_moments_ends_with_the_weights_of_one_left_alone(tmp_path):
    """While it starts, reads, trains, tests, draws or writes: the moment is any, from a seed."""
    moments = random.Random(20160619)
    epochs = 20 * KILLS
    options = {"binarize": "dynamic", "warmup_epochs": 2, "decay": "cosine"}
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "fastvae", *TRAIN, "--epochs", epochs, "--save-steps", 4, "--out", out]
    command += ["--binarize", "dynamic", "--warmup-epochs", 2, "--decay", "cosine"]
    steps = []
    for kill in range(KILLS):
        process = start([*command, *(["--resume"] if (out / "checkpoints").exists() else [])])
        try:
            # One in four while it starts; the others not before they have got on.
            if kill % 4 == 3:
                time.sleep(moments.uniform(0, 6))
            else:
                wait_for_epoch(process, lines_of(process))
                time.sleep(moments.uniform(0, 0.7))
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
        steps.append(load_checkpoint(out).position.step)
    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[-1] < epochs * 15
    config = small(epochs=epochs, **options)
    # With as many threads as the processes above have, which is what the weights depend on beside the configuration.
    script = f"from fastvae.training import TrainConfig, train; train({config!r}, {str(tmp_path / 'alone')!r})"
    alone = start([sys.executable, "-c", script])
    resumed = start([*command, "--resume"])
    for process in (alone, resumed):
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert_same_run(tmp_path / "alone", out)
    # Nothing is left of what was being written.
    assert all(re.fullmatch(r"step-\d{9}", path.name) for path in (out / "checkpoints").iterdir())


def test_sigterm_saves_and_exits_as_schedulers_expect(tmp_path):
    out = tmp_path / "terminated run"
    process = start([sys.executable, "-m", "fastvae", *TRAIN, "--epochs", 100, "--out", out])
    try:
        wait_for_epoch(process, lines_of(process))
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        stderr = process.stderr.read()
    finally:
        process.kill()
    assert process.returncode == 143
    position = load_checkpoint(out).position
    assert stderr == (
        f"fastvae: stopped by SIGTERM in epoch {position.epoch + 1}, after step {position.step}, and saved; "
        f"go on with: fastvae train --resume --out '{out}'\n"
    )
    assert position.epoch >= 1
    for command in (
        [sys.executable, "-m", "fastvae", "train", "--resume", "--out", out],
        [sys.executable, "-m", "fastvae", *TRAIN, "--epochs", 100, "--out", tmp_path / "alone"],
    ):
        process = start(command)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert_same_run(tmp_path / "alone", out)


def test_checkpoints_within_an_epoch_change_nothing(tmp_path, monkeypatch):
    """Stopped after each of them in turn: sums, noise and order go on where they were."""
    monkeypatch.setattr("fastvae.training.loop._SECONDS_BETWEEN_REPORTS", 0)
    whole = train(small(epochs=2, binarize="dynamic"), tmp_path / "whole")
    out = tmp_path / "stopped"
    for stop in range(1, 5):
        seen = []

        def terminate(progress, stop=stop, seen=seen):
            seen.append(progress)
            if len(seen) == 2 * stop:
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(RuntimeError, match="stopped by SIGTERM"):
            train(small(epochs=2, binarize="dynamic"), out, resume=stop > 1, progress=terminate)
    result = train(small(epochs=2, binarize="dynamic"), out, resume=True)
    assert_same_run(tmp_path / "whole", out)
    assert without_times(result.history) == without_times(whole.history)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"a small disk is not to be had here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_leaves_the_previous_checkpoint_whole(small_disk, capsys):
    out = small_disk / "run"
    # 250 KiB are left: the first checkpoint has 60 KB, the next ones have 180, because Adam's state has come to it.
    config = ["train", "--hidden", "110", "--latent-dim", "4", "--epochs", "50"]
    (small_disk / "ballast").write_bytes(bytes((4096 - 250) * 1024))
    assert main([*config, "--out", str(out)]) == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("fastvae: error: ")]
    assert len(errors) == 1, captured.err
    assert "No space left on device" in errors[0], errors
    checkpoint = load_checkpoint(out)
    assert checkpoint.build_model().latent_dim == 4
    # With room again the run goes on.
    (small_disk / "ballast").unlink()
    epochs = checkpoint.epoch + 2
    assert main(["train", "--resume", "--epochs", str(epochs), "--out", str(out)]) == 0
    assert load_checkpoint(out).epoch == epochs


def test_configuration_of_a_run_survives_its_newest_checkpoint(tmp_path, capsys):
    """From the command line: the damage is said in a line, and the run goes on from the one before."""
    out = tmp_path / "run"
    assert main([*TRAIN, "--epochs", "2", "--out", str(out)]) == 0
    (shard,) = load_checkpoint(out).folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"going on with the run in {out} after epoch 1\nepoch 2/2 ")
    assert re.fullmatch(r"fastvae: warning: .*step-000000030: damaged checkpoint .*\n", captured.err)
    alone = train(small(epochs=2), tmp_path / "alone")
    assert_same_run(tmp_path / "alone", out)
    assert len(alone.history) == 2


def test_second_run_in_a_folder_is_refused(tmp_path, capsys):
    """Whoever starts it, in whatever way, until the first one is gone; a kill leaves no lock behind."""
    out = tmp_path / "run"
    command = [*TRAIN, "--epochs", "100000", "--out", str(out)]
    # It keeps what evaluate reads.
    process = start([sys.executable, "-m", "fastvae", *command, "--keep", 100_000])
    try:
        wait_for_epoch(process, lines_of(process))
        message = f"{out} is in use by another run (process {process.pid} on "
        for again in ([], ["--resume"]):
            assert main([*command, *again]) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith(f"fastvae: error: {message}")
            assert captured.err.count("\n") == 1
        for resume in (False, True):
            with pytest.raises(TrainingError, match=re.escape(message)):
                train(small(epochs=100_000), out, resume=resume)
        # Nor does any of them take the folder from the first one.
        assert process.poll() is None
        # What only reads may read.
        assert main(["evaluate", str(out)]) == 0
    finally:
        process.kill()
        process.communicate()
    epochs = load_checkpoint(out).epoch + 2
    capsys.readouterr()
    assert main(["train", "--resume", "--epochs", str(epochs), "--out", str(out)]) == 0
    assert not (out / ".lock").exists()


def test_runs_of_one_process_need_folders_of_their_own(tmp_path):
    def again(progress):
        with pytest.raises(TrainingError, match="is in use by another run"):
            train(small(), tmp_path)
        refused.append(progress)

    refused = []
    train(small(epochs=1), tmp_path, progress=again)
    assert refused


HELD = """
import os, signal, sys, time
from pathlib import Path
from fastvae.training.lock import locked

with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(100)
    print(child, flush=True)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_children_of_a_killed_run_do_not_hold_its_folder(tmp_path):
    process = start([sys.executable, "-c", HELD, tmp_path])
    child = int(process.stdout.readline())
    try:
        process.wait(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert (tmp_path / ".lock").exists()
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_was_made_for_nothing_is_removed(tmp_path):
    for path, left in ((tmp_path / "a" / "b", []), (tmp_path, [tmp_path / "c"])):
        (tmp_path / "c").touch() if left else None
        with pytest.raises(ZeroDivisionError), locked(path):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == left


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    train(small(epochs=1), tmp_path)
    assert load_checkpoint(tmp_path).epoch == 1
    (record,) = [record for record in caplog.records if record.name == "fastvae"]
    assert record.getMessage() == (
        f"{tmp_path}: its file system has no locks (No locks available): nothing will stop a second run there"
    )
