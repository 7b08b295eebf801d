"""The package as a whole: what import loads, what it says when it cannot, what it tells of its build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import fastvae

SOURCE = Path(fastvae.__file__).parent


def python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter; with a path, only that folder and torch's are importable."""
    command = [sys.executable, "-c", code]
    if path is not None:
        site = Path(torch.__file__).parents[1]
        # -S: no site-packages, so no installed fastvae and no editable hook. torch's folder comes last, as it does in
        # any Python: beside torch may lie backports that go by the names of standard modules.
        command = [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path = [{str(path)!r}, *sys.path, {str(site)!r}]; {code}",
        ]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=path or SOURCE.parent)


def test_build_info() -> None:
    info = fastvae.build_info()
    assert info["torch"] == torch.__version__
    assert info["cpu_capability"] in info["cpu_capabilities"]
    assert info["cpu_capabilities"][0] == "DEFAULT"  # type: ignore[index]
    assert info["cuda_architectures"] == []
    assert info["version"] == fastvae.__version__


def test_import_loads_no_plotting_cli_or_data_library() -> None:
    heavy = ["matplotlib", "typer", "rich", "pooch", "sklearn", "tensorboard", "safetensors", "scipy"]
    result = python(f"import sys, fastvae; print([m for m in {heavy} if m in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


def test_public_names_are_there_and_documented() -> None:
    for name in fastvae.__all__:
        assert getattr(fastvae, name).__doc__, name


def test_bare_source_folder_says_that_it_is_not_built(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "fastvae", ignore=shutil.ignore_patterns("_C*", "_build.py", "__pycache__"))
    result = python("import fastvae", tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastvae is not built: this is its source folder. Run `pip install -e .`")


def test_another_torch_is_refused_before_the_extension_is_loaded(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "fastvae", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    for other in ("2.10.1+cpu", torch.__version__.split("+")[0] + "+another"):
        (tmp_path / "fastvae" / "_build.py").write_text(f'torch_version = "{other}"\n')
        last = python("import fastvae", tmp_path).stderr.strip().splitlines()[-1]
        assert last.startswith(
            f"ImportError: fastvae was compiled for torch {other} but torch {torch.__version__} is installed; "
            "reinstall it: pip install --force-reinstall --no-deps --no-cache-dir fastvae"
        ), last


def test_the_readme_example_runs_as_it_stands() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    drop_in, model = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in drop_in.splitlines() if line]) <= 15
    result = python(drop_in + model + "assert loss.isfinite()")
    assert result.returncode == 0, result.stderr
