"""The extension module: build information, and hooks for the tests (csrc/module.cpp)."""

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

formulas: ModuleType
cuda_architectures: str

def cpu_capabilities() -> list[str]: ...
def cpu_capability() -> str: ...
def evaluate(function: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
def words(seed: int, offset: int, first_block: int, blocks: int) -> NDArray[np.uint32]: ...
