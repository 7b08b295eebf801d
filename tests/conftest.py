"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_random_state() -> Iterator[None]:
    """Each test starts from one seed and leaves the global generator as it found it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20160619)
        yield
