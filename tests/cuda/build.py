"""What a CUDA build must have, checked without a GPU: python tests/cuda/build.py."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvae

info = fastvae.build_info()
print(info)
assert info["cuda_architectures"], "this build has no CUDA kernels"

names = torch._C._dispatch_get_all_op_names()
operators = [n for n in names if n.startswith("fastvae::")]
parts = [
    n
    for n in operators
    if n.endswith(("_forward", "_backward", "_with_grads", "_twice"))
    or n in {"fastvae::normal", "fastvae::scale_grad", "fastvae::adam_"}
]
assert len(parts) == 21, operators
for name in parts:
    for key in ("CPU", "CUDA", "Meta", "AutogradCUDA"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, key), f"{name} has no {key} kernel"
print(f"{len(operators)} operators, {len(parts)} of them with kernels for CPU and CUDA")

# The fakes take the device of their inputs: traced code of a GPU has the shapes and dtypes of the CPU's.
with FakeTensorMode():
    for device in ("cpu", "cuda"):
        logits = torch.empty(3, 5, 7, device=device, dtype=torch.bfloat16)
        target = torch.empty(5, 7, device=device, dtype=torch.uint8)
        moments = torch.empty(5, 8, device=device)
        z, kl = fastvae.sample_kl(*moments.chunk(2, -1))
        loss = fastvae.elbo_loss(logits, target, *moments.chunk(2, -1)).loss
        part = torch.ops.fastvae.nll_backward  # autograd itself would ask for the device
        upstream = torch.empty(3, 5, device=device)
        grad = part(
            upstream, "sigmoid_cross_entropy", logits, None, None, target, None, 1.0, False, None, None, None,
            [True] + 5 * [False],
        )[0]  # fmt: skip
        assert {t.device.type for t in (z, kl, loss, grad)} == {device}
        assert [tuple(t.shape) for t in (z, kl, loss, grad)] == [(5, 4), (5,), (), (3, 5, 7)]
        assert grad.dtype == torch.bfloat16
print("fake tensors keep their device")
