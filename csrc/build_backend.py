"""Build backend: checks that PyTorch is installed, then calls scikit-build-core.

PyTorch is not listed as a build requirement, because a build environment would then download
another PyTorch than the installed one, which is gigabytes. Without this check pip would download
one for the run-time dependency, and only then fail to build. A source tree that cannot be written
is built in a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403  (the backend's hooks)

_PROBE = "import importlib.metadata as m; print(m.version('torch'))"


def _require_torch() -> None:
    # pip's build isolation hides the installed packages through these two.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    python = env.get("FASTVAE_TORCH_PYTHON", sys.executable)
    try:
        # Elsewhere: a folder called torch beside the source is not the package.
        probe = subprocess.run([python, "-c", _PROBE], env=env, cwd=os.sep, capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(f"fastvae: FASTVAE_TORCH_PYTHON={python} cannot be run: {error}")
    if probe.returncode:
        sys.exit(
            f"fastvae: install PyTorch first (pip install torch); {python} does not see it. "
            "uv and python -m build hide it: run uv in the folder of the source, use --no-build-isolation, or set "
            "FASTVAE_TORCH_PYTHON=PYTHON."
        )
    version = probe.stdout.strip()
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 11):
        sys.exit(f"fastvae: needs PyTorch 2.11 or newer, found {version} (pip install --upgrade torch).")


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    _require_torch()
    return list(_backend.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    _require_torch()
    return list(_backend.get_requires_for_build_editable(config_settings))


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    settings = dict(config_settings or {})
    with tempfile.TemporaryDirectory() as folder:
        if not os.access(os.curdir, os.W_OK):
            settings.setdefault("build-dir", folder)
        return str(_backend.build_wheel(wheel_directory, settings, metadata_directory))
