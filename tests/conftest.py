"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# A compiled graph that an earlier build left in the cache would be run in place of this build's.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch


@pytest.fixture(autouse=True)
def _same_random_state() -> Iterator[None]:
    """Each test starts from one seed and leaves the global generator as it found it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20160619)
        yield
