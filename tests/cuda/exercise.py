"""Every operator on the GPU, forward and backward, for compute-sanitizer: python tests/cuda/exercise.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import CASES, FLOATS

torch.set_default_device("cuda")
# Tails, several rows in a warp, a warp, a block and several blocks for a row.
SHAPES = [(3, (1,)), (9, (7,)), (33, (32,)), (5, (784,)), (2, (2049,)), (1, (3, 64, 64))]

for case in CASES:
    for batch, event in SHAPES:
        for dtype in FLOATS:
            inputs = [t.requires_grad_() for t in case.inputs(batch, event, dtype)]
            outputs = case.call(*inputs)
            torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])
torch.cuda.synchronize()
print(f"{len(CASES)} calls, {len(SHAPES)} shapes, {len(FLOATS)} dtypes")
