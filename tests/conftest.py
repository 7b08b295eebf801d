"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A compiled graph that an earlier build left in the cache would be run in place of this build's.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

# A check that lets a change pass or not draws the same examples each time; on a desk they are new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _same_random_state() -> Iterator[None]:
    """Each test starts from one seed and leaves the global generator as it found it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20160619)
        yield
