"""The package as a whole: what import loads, what it says when it cannot, what it tells of its build."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import fastvae

SOURCE = Path(fastvae.__file__).parent
LIBRARY = Path(fastvae._build.__file__).with_name("libfastvae.so")


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
    heavy = ["matplotlib", "typer", "rich", "pooch", "sklearn", "tensorboard", "safetensors", "scipy", "PIL"]
    result = python(f"import sys, fastvae; print([m for m in {heavy} if m in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


def test_public_names_are_there_and_documented() -> None:
    for name in fastvae.__all__:
        assert getattr(fastvae, name).__doc__, name


def test_bare_source_folder_says_that_it_is_not_built(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "fastvae", ignore=shutil.ignore_patterns("*.so", "_build.py", "__pycache__"))
    result = python("import fastvae", tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastvae is not built: this is its source folder. Run `pip install -e .`")


MINOR, LOCAL = re.match(r"(\d+\.\d+)[^+]*(.*)", torch.__version__).groups()  # type: ignore[union-attr]


def build(torch_version: str, cuda_architectures: Sequence[str] = ()) -> str:
    """What CMake writes beside the library."""
    return f"torch_version = {torch_version!r}\ncuda_architectures = {list(cuda_architectures)}\n"


@pytest.mark.parametrize(
    ("torch_version", "cuda_architectures"),
    [
        ("2.10.1+cpu", []),
        (f"{MINOR}.0+another", ["90-real"]),  # kernels for another CUDA
        (f"{MINOR}.0.dev20260101{LOCAL}", []),  # any day may change what the library calls
    ],
)
def test_another_torch_is_refused_before_the_library_is_loaded(
    tmp_path: Path, torch_version: str, cuda_architectures: list[str]
) -> None:
    shutil.copytree(SOURCE, tmp_path / "fastvae", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "fastvae" / "_build.py").write_text(build(torch_version, cuda_architectures))
    last = python("import fastvae", tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"ImportError: fastvae was compiled for torch {torch_version} but torch {torch.__version__} is installed; "
        "install a wheel for that torch, or build it again: "
        "pip install --force-reinstall --no-deps --no-cache-dir PATH, where PATH is its source folder"
    ), last


@pytest.mark.parametrize(
    ("torch_version", "cuda_architectures"), [(f"{MINOR}.99+another", []), (f"{MINOR}.99{LOCAL}", ["90-real"])]
)
def test_another_build_of_the_same_torch_is_taken(
    tmp_path: Path, torch_version: str, cuda_architectures: list[str]
) -> None:
    """Of the same minor version; without CUDA kernels, whatever the CUDA of the two."""
    shutil.copytree(SOURCE, tmp_path / "fastvae", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(LIBRARY, tmp_path / "fastvae")
    (tmp_path / "fastvae" / "_build.py").write_text(build(torch_version, cuda_architectures))
    result = python("import fastvae; print(fastvae.__file__)", tmp_path)
    assert result.stdout.strip() == str(tmp_path / "fastvae" / "__init__.py"), result.stderr


def test_operators_need_the_library_alone() -> None:
    """Not this package: whatever loads torch can load them."""
    code = f"import sys, torch; torch.ops.load_library({str(LIBRARY)!r}); one = torch.ones(2, 3); "
    result = python(code + "print(torch.ops.fastvae.gaussian_kl(one, 0 * one).tolist(), 'fastvae' in sys.modules)")
    assert result.stdout.strip() == "[1.5, 1.5] False", result.stderr


@pytest.mark.parametrize("package", ["ops", "runtime"])
def test_files_of_another_project_in_our_folder_are_named(tmp_path: Path, package: str) -> None:
    """PyPI's fastvae is another one with the same import name; its ops/ would stand before our ops.py."""
    shutil.copytree(SOURCE, tmp_path / "fastvae", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fastvae" / package).mkdir()
    last = python("import fastvae", tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'fastvae'} holds files of another project")
    assert f"({package}): pip uninstall fastvae fastvae-torch, then install this one (fastvae-torch) again" in last


# As pip writes it.
SCRIPT = "import sys\nfrom fastvae.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


@pytest.mark.parametrize("built", [True, False], ids=["another torch", "not built"])
def test_command_that_cannot_be_imported_is_one_line(tmp_path: Path, built: bool) -> None:
    """And an import, of whatever program, still an ImportError."""
    shutil.copytree(SOURCE, tmp_path / "fastvae", ignore=shutil.ignore_patterns("*.so", "_build.py", "__pycache__"))
    if built:
        (tmp_path / "fastvae" / "_build.py").write_text(build("2.10.1+cpu"))
    scripts = {"bin/fastvae": SCRIPT, "bin/other": SCRIPT, "other/__init__.py": "import fastvae"}
    for name, text in (scripts | {"torch/__init__.py": "__version__ = '2.13.0'"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "other" / "__main__.py").touch()

    def lines(*arguments: str) -> list[str]:
        command = [sys.executable, "-S", *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert (process.returncode, process.stdout) == (1, "")
        return process.stderr.splitlines()

    for command in (["bin/fastvae"], ["bin/fastvae", "info"], ["-m", "fastvae", "train", "-m"], ["-mfastvae"]):
        (line,) = lines(*command)
        assert re.match("fastvae: error: fastvae (was compiled for torch 2.10.1|is not built)", line)
    for program in (["bin/other"], ["-m", "other", "fastvae"], ["-c", "import fastvae", "fastvae"]):
        *traceback, line = lines(*program)
        assert re.match("ImportError: fastvae (was compiled for torch 2.10.1|is not built)", line)
        assert traceback


# With or without options and quotes; the distribution's own name, fastvae-torch, and files are another matter.
ANOTHER_PROJECT = re.compile(r"pip install(?:\s+-\S+)*\s+[\"'`]*fastvae(?![-_./\w])")


def test_nobody_is_told_to_install_the_other_project_of_that_name() -> None:
    """PyPI's fastvae is not this one."""
    root = Path(__file__).parents[1]
    folders = [root / name for name in ("fastvae", "tests", "benchmarks", "examples", "docs", "csrc")]
    files = [
        *root.glob("*.md"),
        *(file for folder in folders for file in folder.rglob("*") if file.suffix in (".md", ".py", ".cpp", ".h")),
    ]
    told = [str(file.relative_to(root)) for file in files if ANOTHER_PROJECT.search(file.read_text(encoding="utf-8"))]
    assert told == []


@pytest.mark.parametrize(
    "wrong", ["fastvae", "--upgrade fastvae", "'fastvae[train]'", "--no-deps --no-cache-dir fastvae "]
)
def test_the_other_project_is_found_in_what_people_write(wrong: str) -> None:
    assert ANOTHER_PROJECT.search(f"pip install {wrong}")
    assert not ANOTHER_PROJECT.search(f"pip install {wrong.replace('fastvae', 'fastvae-torch')}")


def test_citation_names_the_version() -> None:
    lines = [(Path(__file__).parents[1] / name).read_text().splitlines() for name in ("CITATION.cff", "pyproject.toml")]
    (cited,), (released,) = ([line for line in of if re.match(r"version\b", line)] for of in lines)
    assert f'version = "{cited.removeprefix("version: ")}"' == released


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("settings", [None, {"build-dir": "elsewhere"}])
def test_source_that_cannot_be_written_is_built_elsewhere(monkeypatch, writable, settings):
    built = {}
    backend, package = types.ModuleType("scikit_build_core.build"), types.ModuleType("scikit_build_core")
    backend.build_wheel = lambda folder, given, metadata: (
        built.update(given, existed=os.path.isdir(given.get("build-dir", ""))) or "a.whl"
    )
    package.build = backend
    monkeypatch.setitem(sys.modules, "scikit_build_core", package)
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", backend)
    hooks = runpy.run_path(str(Path(__file__).parents[1] / "csrc" / "build_backend.py"))
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    assert hooks["build_wheel"]("wheels", settings) == "a.whl"
    if settings is not None:
        assert built["build-dir"] == "elsewhere"
    else:
        assert built["existed"] is not writable
        assert not os.path.exists(built.get("build-dir", "nowhere"))
