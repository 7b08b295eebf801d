"""Every operator on the GPU, forward and backward, for compute-sanitizer: python tests/cuda/exercise.py [operators].

With the argument, those alone that multiply no matrices.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import CASES

import fastvae

torch.set_default_device("cuda")
FLOATS = (torch.float32, torch.bfloat16)  # of the two paths: a sanitizer takes a hundred times as long
# Tails, several rows in a warp, a warp, a block and several blocks for a row.
SHAPES = [(9, (7,)), (33, (32,)), (5, (784,)), (2, (2049,)), (1, (3, 64, 64))]


def run_networks(dtype: torch.dtype) -> None:
    for width in (48, 45):
        for kind in (dtype, torch.float32, torch.uint8, torch.bool):
            weights = [torch.randn(size, dtype=dtype, requires_grad=True) for size in ((64, width), (33, 64), (16, 33))]
            biases = [torch.randn(64, dtype=dtype, requires_grad=True), None, None]
            for activation in ("relu", "tanh"):
                x = torch.rand(70, width).mul(2).to(kind)
                fastvae.mlp(x, weights, biases, activation=activation).sum().backward()


for case in CASES:
    for batch, event in SHAPES:
        for dtype in FLOATS:
            inputs = [t.requires_grad_() for t in case.inputs(batch, event, dtype)]
            outputs = case.call(*inputs)
            torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])
for dtype in FLOATS:
    for size in (784, 785):
        for kind in (torch.float32, torch.uint8, torch.bool):
            logits = torch.randn(6, size, dtype=dtype, requires_grad=True)
            target = torch.rand(6, size).mul(2).to(kind)
            fastvae.sigmoid_cross_entropy(logits, target, reduction="mean").backward()
            fastvae.gaussian_nll(logits, target, sigma=torch.tensor(0.5, requires_grad=True)).sum().backward()
            shifted = torch.randn(6 * size + 1, dtype=dtype)[1:].view(6, size).requires_grad_()
            fastvae.sigmoid_cross_entropy(shifted, target).sum().backward()
    if sys.argv[1:] != ["operators"]:
        run_networks(dtype)
fastvae.binarize(torch.rand(7, 785))
fastvae.binarize(torch.randint(0, 256, (7, 784), dtype=torch.uint8))
fastvae.binarize(torch.randint(0, 256, (7, 785), dtype=torch.uint8), index=torch.tensor([6, 0, 3]), dtype=torch.float32)
sizes = [1, 3, 2048, 70_001, *range(1, 50)]  # more than one launch takes
parameters = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
parameters += [torch.nn.Parameter(torch.randn(6001)[1:])]
for capturable in (False, True):
    optimizer = fastvae.optim.Adam(parameters, fused=True, capturable=capturable)
    for p in parameters:
        p.grad = torch.randn(len(p) + 1)[1:]
    optimizer.step()
torch.cuda.synchronize()
print(f"{len(CASES)} calls, {len(SHAPES)} shapes, {len(FLOATS)} dtypes, targets of bytes and networks")
