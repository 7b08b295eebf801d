"""The suites that others wrote, in a process of their own: PyTorch's changes torch's global flags."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import suites


@pytest.mark.slow
def test_suites_of_others_give_the_same_values() -> None:
    missing = sorted({name for name in suites.SUITES.values() if importlib.util.find_spec(name) is None})
    if missing and os.environ.get("FAIL_WITHOUT_INTEGRATIONS"):
        pytest.fail(f"FAIL_WITHOUT_INTEGRATIONS is set: {', '.join(missing)} is not installed")
    command = [sys.executable, suites.__file__, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    reports = json.loads(result.stdout.splitlines()[-1])
    # Of four dtypes each: the samples of torch 2.13, 24 of which have a pos_weight; other releases may have others.
    least = {"opinfo_cross_entropy": 60, "opinfo_gaussian": 1000, "pythae_losses": 6, "diffusers_posterior": 10}
    for (suite, needed), report in zip(suites.SUITES.items(), reports, strict=True):
        if needed not in missing:
            assert report["samples"] >= least[suite.__name__], report
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed: the others ran")
