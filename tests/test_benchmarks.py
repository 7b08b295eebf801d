"""The benchmarks: that they refuse a wrong contender, count right, run, and that the README says what they found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

import fastvae
from benchmarks import __main__ as a_minute
from benchmarks import bench_evaluate, bench_ops, bench_train, checks, isa, report, timing
from benchmarks.cases import OPERATORS, Case, Operator, find
from fastvae.models import VAE
from fastvae.training import TrainConfig, train

KERNELS = ("eager", "fastvae")


def tiny(case: Case) -> Case:
    return replace(case, shape=tuple(min(size, 6) for size in case.shape), threads=None)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: f"{o.name} {o.variant}".strip())
def test_every_case_is_checked_and_measured(operator: Operator) -> None:
    for case in dict.fromkeys(map(tiny, operator.cases)):
        modes = [row["mode"] for row in bench_ops.rows(operator, case, rounds=2, names=KERNELS)]
        assert modes == list(bench_ops.MODES[: 1 + operator.differentiable])


@pytest.mark.parametrize("name", ["elbo_loss", "sample_kl"])
def test_compiled_contenders_are_checked_and_measured(name: str) -> None:
    operator = next(o for o in OPERATORS if o.name == name)
    (row,) = bench_ops.rows(operator, tiny(operator.cases[-1]), rounds=2, modes=("forward+backward",))
    assert set(row["contenders"]) == set(bench_ops.CONTENDERS) - ({"one graph"} if operator.noise else set())


@pytest.mark.parametrize("dtype", bench_train.DTYPES)
def test_training_steps_are_checked_and_measured(dtype: str) -> None:
    row = bench_train.measure_step(8, dtype, rounds=2, hidden=(8,), names=KERNELS)
    assert set(row["contenders"]) == set(row["loss"]) == set(KERNELS)


def test_replayed_training_step_is_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where the graph is the step itself."""

    def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        result = torch.empty(())
        return lambda: result.copy_(function()), result

    monkeypatch.setattr(bench_train, "CapturedStep", partial(bench_train.CapturedStep, capture=capture))
    model, x = VAE(784, (8,), 3), torch.rand(20, 784)
    torch.manual_seed(0)
    step = bench_train.replayed_step(model, x, "float32")
    replayed = [float(step()) for _ in range(6)]
    step = bench_train.training_step(
        bench_train.fastvae_loss, model, x.mul(255).to(torch.uint8), "float32", fastvae.optim.Adam
    )
    torch.manual_seed(0)
    for _ in range(4):  # that a replayed step has behind it
        step()
    assert replayed == [float(step()) for _ in range(6)]


@pytest.mark.slow
def test_compiled_training_steps_are_checked_and_measured() -> None:
    row = bench_train.measure_step(8, "bfloat16", rounds=2, hidden=(8,))
    assert len(row["contenders"]) == 4


@pytest.mark.slow
def test_every_instruction_set_is_measured() -> None:
    rows = isa.compare_instruction_sets(rounds=2)
    used = fastvae.build_info()["cpu_capability"]
    assert [next(iter(row["contenders"])) for row in rows] == [used] * 4


def wrong_gradient(logits: Tensor, target: Tensor) -> Tensor:
    return fastvae.sigmoid_cross_entropy(logits, target) + (logits - logits.detach()).sum(-1)


def test_a_contender_of_wrong_value_or_gradient_is_refused() -> None:
    operator, case = find("sigmoid_cross_entropy", (4096, 784))
    for function, mode in ((lambda a, b: wrong_gradient(a, b) + 1, "forward"), (wrong_gradient, "forward+backward")):
        measured = bench_ops.rows(replace(operator, ours=function), tiny(case), 2, KERNELS, (mode,))
        with pytest.raises(AssertionError, match=r"sigmoid_cross_entropy .* fastvae, result .*: off by"):
            list(measured)


@pytest.mark.parametrize("shift", [(1, 0), (0, -1)], ids=["mean", "variance"])
def test_a_sampler_of_wrong_mean_or_spread_is_refused(shift: tuple[int, int]) -> None:
    operator, _ = find("reparameterize", (100, 30))
    shifted = replace(operator, ours=lambda m, v: fastvae.reparameterize(m + shift[0], v + shift[1]))
    with pytest.raises(AssertionError, match="of the noise is off by"):
        list(bench_ops.rows(shifted, Case((100, 30)), 2, ("fastvae",)))


def test_a_small_case_of_good_noise_is_not_refused() -> None:
    for noise in torch.randn(5000, 36, dtype=torch.float64):
        checks.standard("randn", noise)


def test_a_training_loss_that_is_another_is_refused() -> None:
    with pytest.raises(AssertionError, match="heavier, loss: off by"):
        bench_train.check(
            {"heavier": lambda m, x: m.loss(x, beta=2).loss}, VAE(9, (8,), 2), torch.rand(4, 9), "float32"
        )


def test_bytes_count_each_tensor_once() -> None:
    counts = {}
    for name, case in (
        ("sigmoid_cross_entropy", Case((6, 7))),
        ("sigmoid_cross_entropy", Case((6, 7), dtype=torch.bfloat16, target=torch.uint8)),
        ("sample_kl", Case((6, 7), packed=True)),
        ("reparameterize", Case((6, 7))),
    ):
        operator = next(o for o in OPERATORS if o.name == name)
        counts[name, case.dtype] = [row["bytes"] for row in bench_ops.rows(operator, case, 2, ("fastvae",))]
    n = 6 * 7
    assert counts == {
        # logits, target, losses; and the gradient
        ("sigmoid_cross_entropy", torch.float32): [8 * n + 4 * 6, 12 * n + 4 * 6],
        ("sigmoid_cross_entropy", torch.bfloat16): [3 * n + 4 * 6, 5 * n + 4 * 6],
        # moments, sample, losses; and the sample's gradient and the moments'
        ("sample_kl", torch.float32): [12 * n + 4 * 6, 24 * n + 4 * 6],
        # without KL, the sample's gradient is that of mu
        ("reparameterize", torch.float32): [12 * n, 20 * n],
    }


def test_a_copy_counts_what_it_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "compare", lambda contenders: {"copy": timing.Timing(0.5, 0.4, 0.6)})
    assert timing.copy_bandwidth(1 << 20) == (1 << 20) * 2 / 0.5


def test_peak_memory_is_that_of_what_is_held_at_once() -> None:
    x = torch.rand(100_000)
    assert timing.peak_memory(lambda: x.exp().log()) == 2 * x.nbytes  # the exponential, while its logarithm is written
    assert timing.peak_memory(lambda: x.exp().log().sin()) == 2 * x.nbytes  # gone when the sine is written
    assert timing.peak_memory(lambda: (x.exp(), x.exp(), x.exp())) == 3 * x.nbytes
    assert timing.peak_memory(lambda: x.exp_()) == 0


def test_documents_are_those_of_the_results() -> None:
    written = report.documents(report.load("ops.json"), report.load("train.json"))
    assert len(written) == 3
    for path, text in written.items():
        assert path.read_text() == text, f"{path}: run python -m benchmarks.report"
    assert (report.RESULTS / "ops.png").exists()


def test_the_picture_of_the_readme_is_that_of_the_results(tmp_path: Path) -> None:
    """Drawn anew it is the same picture, but for what versions of matplotlib do to letters and edges."""
    ops = report.load("ops.json")

    def difference() -> float:
        report.overview(ops, tmp_path / "drawn.png")
        committed, drawn = (imread(path)[..., :3] for path in (report.RESULTS / "overview.png", tmp_path / "drawn.png"))
        assert committed.shape == drawn.shape
        return float(abs(committed - drawn).mean())

    assert difference() < 1e-3, "run python -m benchmarks.report"
    report.typical(ops)["contenders"]["fastvae"]["median"] *= 1.2  # and a bar that is not the result's is seen
    assert difference() > 1e-3


def test_the_closing_line_says_when_a_step_takes_longer() -> None:
    def row(**seconds: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"contenders": {name: {"median": s} for name, s in seconds.items()}}

    line = a_minute.expectation(
        [row(eager=4, compile=3, fastvae=2), row(eager=8, compile=1, fastvae=2)], row(eager=4, compile=2, fastvae=2.5)
    )
    assert "2.0 to 4.0 times as fast as eager PyTorch and 0.50 to 1.50 times as fast as torch.compile" in line
    assert "38% less time than with eager PyTorch and 25% more time than with torch.compile" in line


def test_evaluation_is_held_against_plain_pytorch(tmp_path, monkeypatch, capsys) -> None:
    train(TrainConfig(hidden=(32,), latent_dim=4, epochs=3, binarize="dynamic"), tmp_path / "run")
    file = tmp_path / "figures.json"
    options = ["--images", "40", "--samples", "50", "--rounds", "2", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["bench_evaluate", str(tmp_path / "run"), *options])
    bench_evaluate.main()
    result = json.loads(file.read_text())
    assert [row["contender"] for row in result["rows"]][-2:] == ["fastvae", "fastvae, bf16"]
    assert result["peak_bytes"]["fastvae"].keys() == {"50", "500"}
    assert "the best of plain PyTorch" in capsys.readouterr().out

    # A contender that is wrong is not reported.
    monkeypatch.setattr(bench_evaluate, "fastvae_estimate", lambda *a, **o: (-1.0,))
    with pytest.raises(SystemExit, match=r"fastvae: -1\.000 nats against"):
        bench_evaluate.main()
