"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

import fastvae

# A compiled graph that an earlier build left in the cache would be run in place of this build's.
torch.compiler.config.force_disable_caches = True

# A check that lets a change pass or not draws the same examples each time; on a desk they are new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of every tensor that the tests of a module make.

    Without a GPU, those of "cuda" are skipped; with FAIL_WITHOUT_CUDA=1 they fail.
    """
    if request.param == "cuda":
        missing = "" if torch.cuda.is_available() else "no GPU"
        if not fastvae.build_info()["cuda_architectures"]:
            missing = "this build has no CUDA kernels"
        if missing and os.environ.get("FAIL_WITHOUT_CUDA"):
            pytest.fail(f"FAIL_WITHOUT_CUDA is set: {missing}")
        if missing:
            pytest.skip(missing)
    with torch.device(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _errors_of_the_gpu_are_the_tests_own() -> Iterator[None]:
    """After an error on the GPU no call of its process succeeds: the process ends, and that test is named as the cause.

    Under pytest-xdist another process goes on with the tests that are left.
    """
    yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(error, file=sys.__stderr__, flush=True)
            os._exit(1)


@pytest.fixture(autouse=True)
def _same_random_state() -> Iterator[None]:
    """Each test starts from one seed and leaves the global generator as it found it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(20160619)
        yield
