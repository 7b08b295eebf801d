"""The operator tests on every compiled instruction set, and one noise for all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvae
from fastvae import _hooks

HERE = Path(__file__).parent
# Arithmetic, not plumbing: what an instruction set can change.
FILES = [
    "test_math.py",
    "test_accuracy.py",
    "test_noise.py",
    "test_sigmoid_cross_entropy.py",
    "test_gaussian_kl.py",
    "test_gaussian_nll.py",
    "test_binarize.py",
    "test_operators.py",
]
ARITHMETIC = "not compile and not opcheck and not forward_mode and not gradcheck and not checkpoint"


def run(capability: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability.lower()}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=HERE, capture_output=True, text=True, check=False
    )


def lower_capabilities() -> list[str]:
    compiled: list[str] = torch.ops.fastvae.cpu_capabilities()
    return compiled[: compiled.index(torch.ops.fastvae.cpu_capability())]


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_operators_on_a_lower_instruction_set(capability: str) -> None:
    if capability not in lower_capabilities():
        pytest.skip(f"{capability} is not below {torch.ops.fastvae.cpu_capability()}, which the other tests run on")
    code = f"import fastvae; assert fastvae.build_info()['cpu_capability'] == '{capability}'"
    assert run(capability, "-c", code).returncode == 0
    command = [
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not slow",
        "-k",
        ARITHMETIC,
        "-p",
        "no:cacheprovider",
        *FILES,
    ]
    result = run(capability, *command)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_noise_is_the_same_on_every_instruction_set(tmp_path: Path) -> None:
    """The same words to the bit; normals up to the rounding of multiply-add, which the lowest set has not."""
    script = (
        "import sys, torch, fastvae, fastvae._hooks; torch.manual_seed(5); z = torch.zeros(101, 77); "
        "torch.save((fastvae.reparameterize(z, z), fastvae.binarize(z + 0.5), "
        "fastvae._hooks.words(1, 2, 3, 1000).tolist()), sys.argv[1])"
    )
    torch.manual_seed(5)
    zero = torch.zeros(101, 77)
    normal, draws = fastvae.reparameterize(zero, zero), fastvae.binarize(zero + 0.5)
    words = _hooks.words(1, 2, 3, 1000).tolist()
    for capability in lower_capabilities():
        file = tmp_path / capability
        result = run(capability, "-c", script, str(file))
        assert result.returncode == 0, result.stderr
        other_normal, other_draws, other_words = torch.load(file)
        assert other_words == words
        assert torch.equal(other_draws, draws)
        torch.testing.assert_close(other_normal, normal, rtol=0, atol=2e-6)
