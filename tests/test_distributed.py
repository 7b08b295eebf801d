"""Runs of several processes: the weights of one, restarts, and what a lost process does to the other."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from runs import TORCHRUN, TRAIN, assert_same_run, environment, run, small, start, torchrun, without_times

from fastvae.data import load
from fastvae.evaluation import evaluate
from fastvae.training import load_checkpoint, train
from fastvae.training import step as training_step
from fastvae.training.distributed import World, torch_device
from fastvae.training.step import Stepper, build_model

# What float32 sums of gradients in another order, and Adam's quotients of them, come to in 45 steps of 1e-3: a thousand
# times less than the weights move in one.
ROUNDING = 1e-6
OPTIONS = {
    "plain": {},
    "parts": {"accumulate": 3, "batch_size": 64, "binarize": "dynamic", "clip_norm": 5.0},
    "cvae": {"model": "cvae", "importance_samples": 3},
    "compiled": {"compile": True},
}


def arguments(options):
    texts = []
    for name, value in options.items():
        texts += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", value]
    return texts


@pytest.mark.parametrize(
    ("name", "processes", "fsdp"),
    [
        ("plain", 2, False),
        ("plain", 3, False),
        ("parts", 2, False),
        ("parts", 2, True),
        ("cvae", 2, True),
        pytest.param("compiled", 2, False, marks=pytest.mark.slow),  # a minute and a half
    ],
)
def test_processes_give_the_weights_of_one(tmp_path, name, processes, fsdp):
    """With the same parts of each batch, whose number is odd in one case: then one process of two has two of them."""
    options = {"accumulate": processes, **OPTIONS[name]}
    alone = train(small(epochs=3, **options), tmp_path / "one")
    extra = ["--fsdp"] if fsdp else []
    many = run([*torchrun(processes), *TRAIN, "--epochs", 3, *arguments(options), *extra, "--out", tmp_path / "many"])
    assert many.returncode == 0, many.stderr
    assert_same_run(tmp_path / "one", tmp_path / "many", ROUNDING)
    for ours, theirs in zip(alone.history, load_checkpoint(tmp_path / "many").history, strict=True):
        for part in ("train", "test"):
            assert ours[part]["elbo"] == pytest.approx(theirs[part]["elbo"], rel=1e-6)
    # One line an epoch and the result, from the first process alone.
    assert len(many.stdout.splitlines()) == 4
    assert (tmp_path / "many" / "samples.png").is_file()


def test_run_goes_on_in_another_number_of_processes(tmp_path):
    train(small(epochs=4, accumulate=2), tmp_path / "whole")
    command = [*TRAIN, "--epochs", 2, "--accumulate", 2, "--out", tmp_path / "run"]
    assert run([*TORCHRUN, *command, "--fsdp"]).returncode == 0
    train(small(epochs=3, accumulate=2), tmp_path / "run", resume=True)
    again = run([*TORCHRUN, "train", "--resume", "--epochs", 4, "--out", tmp_path / "run"])
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "run", ROUNDING)


def test_batch_smaller_than_the_number_of_processes(tmp_path):
    """1442 images in batches of 131: the last one of each epoch has a single image, and one process none."""
    options = {"accumulate": 2, "batch_size": 131}
    train(small(epochs=1, **options), tmp_path / "one")
    two = run([*TORCHRUN, *TRAIN, "--epochs", 1, *arguments(options), "--out", tmp_path / "two"])
    assert two.returncode == 0, two.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two", ROUNDING)


@pytest.mark.parametrize("fsdp", [False, True])
def test_processes_agree_on_running_statistics(tmp_path, fsdp):
    """Those of the first, in the checkpoint and in the test, of which each process has a batch."""
    rows = torch.rand(1540, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "rows.npz", x_train=rows[:40], x_test=rows[40:])
    options = ["--data", tmp_path / "rows.npz", "--batch-size", 8, "--epochs", 1, "--out", tmp_path / "run"]
    network = ["--network", "conv", "--conv-width", 4, "--conv-norm", "batch", *(["--fsdp"] if fsdp else [])]
    process = run([*TORCHRUN, "train", *network, *options])
    assert process.returncode == 0, process.stderr
    checkpoint = load_checkpoint(tmp_path / "run")
    report = evaluate(checkpoint.build_model(), torch.from_numpy(rows[40:]), generator=torch.Generator().manual_seed(0))
    assert report.elbo == pytest.approx(checkpoint.history[-1]["test"]["elbo"], rel=1e-6)


def workers(parent):
    """The processes that torchrun started, by rank."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    ranks = {}
    for pid in map(int, children.stdout.split()):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                found = re.search(rb"\0RANK=(\d+)\0", b"\0" + file.read())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if found:
            ranks[int(found[1])] = pid
    return ranks


def end(process):
    """torchrun, and what it started."""
    for pid in workers(process.pid).values():
        os.kill(pid, signal.SIGKILL)
    process.kill()


def wait_for_epoch(process, number=1):
    for line in process.stdout:
        if line.startswith(f"epoch {number}/"):
            return
    pytest.fail(process.stderr.read())


@pytest.mark.parametrize("rank", [0, 1])
def test_lost_process_ends_the_job_with_a_message(tmp_path, rank):
    process = start([*TORCHRUN, *TRAIN, "--epochs", 100_000, "--out", tmp_path / "run"])
    try:
        wait_for_epoch(process)
        os.kill(workers(process.pid)[rank], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 1
    assert re.search(rf"rank +: {rank} \(local_rank: {rank}\)\s+exitcode +: -9", stderr), stderr
    load_checkpoint(tmp_path / "run")  # one that is whole is left


def test_lost_process_is_named_by_the_one_that_is_left(tmp_path):
    """Without torchrun, which ends the other one before it can say so."""
    port = 20_000 + os.getpid() % 10_000
    command = [sys.executable, "-m", "fastvae", *TRAIN, "--epochs", "100000", "--out", str(tmp_path / "run")]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment(RANK=str(rank), **shared), **pipes) for rank in (0, 1)]
    try:
        wait_for_epoch(both[0])
        both[1].kill()
        _, stderr = both[0].communicate(timeout=60)
    finally:
        for process in both:
            process.kill()
    assert both[0].returncode == 1
    assert "fastvae: error: process 0 of 2 lost another one (" in stderr


def test_torchrun_restarts_a_job_that_lost_a_process(tmp_path):
    train(small(epochs=60, accumulate=2), tmp_path / "whole")
    elastic = [*TORCHRUN[:3], "--max-restarts", 2, *TORCHRUN[3:]]
    process = start([*elastic, *TRAIN, "--epochs", 60, "--accumulate", 2, "--out", tmp_path / "run"])
    try:
        wait_for_epoch(process)
        before = workers(process.pid)
        os.kill(before[1], signal.SIGKILL)
        while not (workers(process.pid).keys() == {0, 1} and workers(process.pid) != before):
            time.sleep(0.1)
            assert process.poll() is None
        _, stderr = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode == 0, stderr
    # Another order of the sums' terms, carried through 900 steps.
    assert_same_run(tmp_path / "whole", tmp_path / "run", 100 * ROUNDING)


def test_sigterm_stops_all_processes_at_one_step(tmp_path):
    out = tmp_path / "run"
    process = start([*TORCHRUN, *TRAIN, "--epochs", 100_000, "--out", out])
    try:
        wait_for_epoch(process)
        for pid in workers(process.pid).values():
            os.kill(pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        end(process)
    assert re.search(r"exitcode +: 143", stderr)
    (line,) = {line for line in stderr.splitlines() if line.startswith("fastvae: stopped by SIGTERM in epoch ")}
    step = load_checkpoint(out).position.step
    assert f"after step {step}, and saved; go on with: fastvae train --resume" in line
    assert step % 10 == 0


def test_sigterm_between_epochs_stops_all_processes(tmp_path):
    """Five batches an epoch, so that they never agree within one."""
    process = start([*TORCHRUN, *TRAIN, "--epochs", 100_000, "--batch-size", 300, "--out", tmp_path / "run"])
    try:
        wait_for_epoch(process)
        os.kill(workers(process.pid)[1], signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        end(process)
    assert re.search(r"exitcode +: 143", stderr), stderr
    position = load_checkpoint(tmp_path / "run").position
    assert (position.step, position.images) == (5 * position.epoch, 0)


def test_resume_under_torchrun_starts_a_run_too(tmp_path):
    """So that torchrun can start the same command again when machines come and go. One process says which it is."""
    out = tmp_path / "run"
    for epochs, said in (
        (1, f"no run in {out} yet: starting one"),
        (2, f"going on with the run in {out} after epoch 1"),
    ):
        process = run([*TORCHRUN, *TRAIN, "--resume", "--epochs", epochs, "--out", out])
        assert process.returncode == 0, process.stderr
        assert [line for line in process.stdout.splitlines() if "run in" in line] == [said]
        assert load_checkpoint(out).epoch == epochs


def test_torchrun_needs_a_folder():
    process = run([*TORCHRUN, *TRAIN, "--epochs", 1])
    assert process.returncode != 0
    assert "is needed under torchrun" in process.stderr


def test_error_of_the_first_process_is_that_of_all(tmp_path):
    (tmp_path / "metrics.json").write_text("precious")
    process = run([*TORCHRUN, *TRAIN, "--epochs", 1, "--out", tmp_path])
    assert process.returncode != 0
    assert f"fastvae: error: {tmp_path} holds metrics.json of an earlier run" in process.stderr


def test_loss_that_is_no_longer_finite_stops_all_processes(tmp_path):
    options = ["--epochs", 3, "--learning-rate", 1e30, "--out", tmp_path / "run"]
    process = run([*TORCHRUN, *TRAIN, *options])
    assert process.returncode != 0
    assert re.search(
        r"fastvae: error: .* is (nan|inf) at step \d+, batch \d+ in epoch 1; .*step-000000000 holds", process.stderr
    )
    assert load_checkpoint(tmp_path / "run").position.step == 0


def test_fsdp_needs_processes(tmp_path):
    with pytest.raises(ValueError, match="fsdp shards a model over processes: it needs several, no compile"):
        train(small(), tmp_path, fsdp=True)
    assert list(tmp_path.iterdir()) == []


def test_device_is_checked():
    for name in ("tpu", "meta", "cuda:x"):
        with pytest.raises(ValueError, match=f"device must be cpu, cuda or cuda:N, not '{name}'"):
            torch_device(name)
    assert torch_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda"):
            torch_device("cuda")


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 2)])
def test_share_of_a_process_is_that_of_its_parts(monkeypatch, processes, accumulate):
    monkeypatch.setattr(training_step, "share_out", lambda objective, *rest: objective)  # no processes to share with
    config, digits = small(accumulate=accumulate), load("digits")
    steppers = [
        Stepper(config, digits, build_model(config, digits), World(rank, processes, torch.device("cpu")))
        for rank in range(processes)
    ]
    for images in range(1, 20):
        parts = torch.arange(images).tensor_split(max(processes, accumulate))
        for rank, stepper in enumerate(steppers):
            assert stepper.share(images) == sum(map(len, parts[rank::processes]))


def test_outcome_of_one_process_is_its_own():
    alone = World(0, 1, torch.device("cpu"))
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.of_first(lambda: 3) == 3
    assert float(alone.sum(torch.ones(()))) == 1


def in_namespace(name, *command):
    return ["ip", "netns", "exec", name, *command]


@pytest.fixture
def two_hosts():
    """Two network namespaces with a cable between them: each sees only itself and the other."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"fastvae-{os.getpid()}-{i}" for i in (0, 1)]
    cable = [f"fv{os.getpid() % 100_000}{end}" for end in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)

    made = ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"network namespaces are not to be had here: {made.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for name, end, address in zip(names, cable, addresses, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names, cable, addresses
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_two_hosts_run_one_job(tmp_path, two_hosts):
    names, cable, addresses = two_hosts
    elastic = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    elastic += [f"{addresses[0]}:29400", "--rdzv-id", "test"]
    hosts = [
        subprocess.Popen(
            in_namespace(
                # Not by the host's name, which the two have in common.
                *(name, *TORCHRUN[:3], *elastic, "--rdzv-conf", f"is_host={int(name == names[0])}"),
                *("--local-addr", address, "-m", "fastvae", *TRAIN),
                *("--epochs", "3", "--accumulate", "2", "--out", str(tmp_path / "run")),
            ),
            env=environment(GLOO_SOCKET_IFNAME=end),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, end, address in zip(names, cable, addresses, strict=True)
    ]
    try:
        outputs = [host.communicate(timeout=120) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], outputs
    train(small(epochs=3, accumulate=2), tmp_path / "one")
    assert_same_run(tmp_path / "one", tmp_path / "run", ROUNDING)
    assert sum("test ELBO" in stdout for stdout, _ in outputs) == 1


def test_accumulated_parts_have_the_noise_of_their_number(tmp_path):
    """One process with two parts is not one with one: what two processes are compared with must say so."""
    one, two = (train(small(accumulate=n), tmp_path / str(n)).history for n in (1, 2))
    assert without_times(one) != without_times(two)
