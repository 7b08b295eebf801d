"""Facts about the machine and the software that affect what fastvae does."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

import fastvae

# What changes the number of threads, the kernels that are chosen, or what a GPU is.
_VARIABLES = ("ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "FASTVAE_", "GOMP_", "KMP_", "MKL_", "OMP_", "PYTORCH_")


def facts() -> dict[str, object]:
    """The facts by name, in the order in which they are shown."""
    return {
        "installed_in": os.path.dirname(fastvae.__file__),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": _gpus(),
        "packages": _packages(),
        "environment": [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)],
    }


def processor() -> str:
    """The processor's name if the system reports it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Each GPU that torch sees, with its compute capability."""
    if not torch.cuda.is_available():
        return []
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{d.name} (sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB)" for d in devices]


def _packages() -> list[str]:
    """Those of fastvae's requirements and extras that are installed."""
    names = {re.split(r"[^\w.-]", r)[0] for r in requires("fastvae-torch") or ()} - {"fastvae-torch", "torch"}
    found = []
    for name in sorted(names):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
