"""Variational auto-encoders in PyTorch with fused kernels for sampling, KL and the ELBO."""

from __future__ import annotations

import os as _os
import re as _re
import sys as _sys
from typing import Any as _Any
from typing import NoReturn as _NoReturn

import torch as _torch


def _refuse(reason: str) -> _NoReturn:
    """Raises ImportError. Of the command, which can import nothing before this, it is one line and no traceback."""
    program = _sys.argv[0] if _sys.argv else ""
    # While the module of `python -m` is looked for, its name stands before the arguments of the command line.
    as_module = program == "-m" and _sys.orig_argv[-len(_sys.argv)] in ("fastvae", "-mfastvae")
    if as_module or _os.path.basename(program) == "fastvae":
        _sys.exit(f"fastvae: error: {reason}")
    raise ImportError(reason)


# Another project that is called fastvae on PyPI has the same import name. Its packages would stand before our modules.
_strangers = [
    name for name in ("ops", "runtime", "integrations") if _os.path.isdir(f"{_os.path.dirname(__file__)}/{name}")
]
if _strangers:
    _refuse(
        f"{_os.path.dirname(__file__)} holds files of another project, which is called fastvae on PyPI "
        f"({', '.join(_strangers)}): pip uninstall fastvae fastvae-torch, then install this one (fastvae-torch) again"
    )

try:
    from . import _build
except ImportError:
    _refuse(
        "fastvae is not built: this is its source folder. Run `pip install -e .` here, or start Python "
        "in another folder to use the installed package."
    )


def _fits(torch_version: str) -> bool:
    """Whether code that was compiled for one torch runs with another.

    Releases of one minor version fit each other. CUDA kernels fit builds of torch with the same local version ("cu130")
    alone, as they have its CUDA; without them any will do.
    """
    versions = (_build.torch_version, torch_version)
    built, used = (_re.fullmatch(r"(\d+\.\d+)\.\d+(?:\+(.*))?", version) for version in versions)
    if built is None or used is None:  # a nightly build, or somebody's own
        return _build.torch_version == torch_version
    return built[1] == used[1] and (not _build.cuda_architectures or built[2] == used[2])


# Before the library is loaded: with another torch it may fail to, or worse, not fail.
if not _fits(_torch.__version__):
    _refuse(
        f"fastvae was compiled for torch {_build.torch_version} but torch {_torch.__version__} is installed; "
        "install a wheel for that torch, or build it again: "
        "pip install --force-reinstall --no-deps --no-cache-dir PATH, where PATH is its source folder"
    )
# Beside _build.py, which an editable install has in another folder than this file.
_library = _os.path.join(_os.path.dirname(_build.__file__), "libfastvae.so")
_torch.ops.load_library(_library)  # type: ignore[no-untyped-call]

from importlib.metadata import version as _version  # noqa: E402

from . import models, nn, objectives, optim, reference  # noqa: E402
from .distributions import DiagonalGaussian  # noqa: E402
from .ops import (  # noqa: E402
    ELBO,
    binarize,
    binomial_nll,
    continuous_bernoulli_nll,
    discretized_logistic_nll,
    elbo_loss,
    gaussian_kl,
    gaussian_nll,
    laplace_nll,
    linear_multinomial_nll,
    linear_negative_binomial_nll,
    linear_sigmoid_cross_entropy,
    mlp,
    multinomial_nll,
    negative_binomial_nll,
    poisson_nll,
    reparameterize,
    sample_kl,
    sample_kl_packed,
    sigmoid_cross_entropy,
)

__version__ = _version("fastvae-torch")

__all__ = [
    "ELBO",
    "DiagonalGaussian",
    "binarize",
    "binomial_nll",
    "build_info",
    "continuous_bernoulli_nll",
    "discretized_logistic_nll",
    "elbo_loss",
    "gaussian_kl",
    "gaussian_nll",
    "laplace_nll",
    "linear_multinomial_nll",
    "linear_negative_binomial_nll",
    "linear_sigmoid_cross_entropy",
    "load",
    "mlp",
    "models",
    "multinomial_nll",
    "negative_binomial_nll",
    "nn",
    "objectives",
    "optim",
    "poisson_nll",
    "reference",
    "reparameterize",
    "sample_kl",
    "sample_kl_packed",
    "sigmoid_cross_entropy",
]


def load(run: str | _os.PathLike[str], model: _torch.nn.Module | None = None) -> _Any:
    """The model of a run with the weights of its newest complete checkpoint, on the CPU and in evaluation mode.

    Args:
        run: the folder that :func:`fastvae.training.train` or ``fastvae train`` wrote, or one of its checkpoints.
        model: a model of the same class and sizes that gets the weights, for a run whose model a program gave.

    Returns:
        A :class:`fastvae.models.VAE`, ``CVAE`` or ``Regressor``, or ``model``.

    Raises:
        ValueError: the checkpoints are damaged, or belong to another model than ``model``.
        FileNotFoundError: there is no checkpoint.
        ImportError: the function that makes the networks (``--network package.module:function``) cannot be imported.
    """
    from .training import load_checkpoint

    return load_checkpoint(run).build_model(model)


def build_info() -> dict[str, object]:
    """What fastvae was built for and what it uses.

    Returns:
        A dictionary with the keys ``version``; ``torch`` (the version in use) and ``built_for_torch``;
        ``cpu_capabilities`` (the compiled instruction sets, lowest first) and ``cpu_capability`` (the one in use, which
        is torch's choice; the environment variable ``ATEN_CPU_CAPABILITY`` can lower it); ``cuda_architectures`` (the
        compiled ones, in CMake's names; empty for a build for CPUs only).
    """
    return {
        "version": __version__,
        "torch": _torch.__version__,
        "built_for_torch": _build.torch_version,
        "cpu_capabilities": _torch.ops.fastvae.cpu_capabilities(),
        "cpu_capability": _torch.ops.fastvae.cpu_capability(),
        "cuda_architectures": list(_build.cuda_architectures),
    }
