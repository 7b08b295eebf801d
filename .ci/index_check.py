"""Installs from an index of .ci/release.py as a user does, with pip and with uv, and computes a loss.

    python .ci/index_check.py INDEX PYTHON...

The index is served on 127.0.0.1, and no other one is asked. Each PYTHON has PyTorch, which fresh environments get from
it. Builds that are for that PyTorch are installed there; others are refused by the installers, which would have to
change PyTorch, and by `import fastvae` where they are installed all the same. A file whose hash is not the page's is
refused too. Python itself may be of any version: there is one wheel for all.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

# PyTorch and numpy with what they need, into a folder; as links where that can be, because CUDA's files are gigabytes.
COPY = r"""
import importlib.metadata, os, pathlib, re, shutil, sys
done, to_do = set(), [("torch", ""), ("numpy", "")]
while to_do:
    name, extras = need = to_do.pop()
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        continue  # of another platform
    if need in done:
        continue
    done.add(need)
    for line in distribution.requires or ():
        extra = re.search(r"extra == .([\w-]+)", line)
        if extra is None or extra[1] in extras.split(","):
            to_do.append(re.match(r"([\w.-]+)(?:\[(.*?)\])?", line).groups(""))
    for file in distribution.files:
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        source, copy = distribution.locate_file(file), pathlib.Path(sys.argv[1], file)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, copy)
        except FileExistsError:
            pass
        except OSError:
            shutil.copy(source, copy)
"""

LOSS = """
import pathlib, sys, torch, fastvae
from torch.nn.functional import binary_cross_entropy_with_logits
assert pathlib.Path(fastvae.__file__).is_relative_to(sys.prefix), fastvae.__file__
assert fastvae.__version__.endswith("+" + sys.argv[1]), fastvae.__version__
logits, moments = torch.randn(8, 784, requires_grad=True), torch.randn(8, 64, requires_grad=True)
target, (mu, logvar) = torch.rand(8, 784), moments.chunk(2, -1)
fused = fastvae.elbo_loss(logits, target, mu, logvar).loss
kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
plain = (binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1) + kl.sum(-1)).mean()
gradients = [torch.autograd.grad(loss, (logits, moments)) for loss in (fused, plain)]
torch.testing.assert_close([fused, *gradients[0]], [plain, *gradients[1]])
print(sys.version.split()[0], "torch", torch.__version__, fastvae.build_info())
"""


TOOLS = {"pip": ["pip", "--python={}", "install"], "uv": ["uv", "pip", "install", "--python={}"]}


class CheckError(Exception):
    """What was expected did not happen."""


def told_by(process: subprocess.CompletedProcess[str]) -> str:
    return process.stdout + process.stderr


class Site:
    """An index on 127.0.0.1, and fresh environments that install from it and from nowhere else."""

    def __init__(self, index: Path, work: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Quiet, directory=str(index))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_port}"
        self.index, self.work = index, work
        others = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
        self.variables = others | {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_CACHE_DIR": "1",
            "UV_NO_CONFIG": "1",
            "UV_CACHE_DIR": str(work / "uv"),
        }

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.variables, cwd=self.work, capture_output=True, text=True, check=False)

    def do(self, *command: str | Path) -> str:
        result = self.run(*command)
        if result.returncode:
            raise CheckError(f"{command[0]}: {told_by(result)}")
        return result.stdout.strip()

    def environment(self, python: str) -> Path:
        """A Python that has PyTorch and numpy, and nothing to install with."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        self.do(python, "-m", "venv", "--without-pip", folder)
        (packages,) = folder.glob("lib/python*/site-packages")
        self.do(python, "-c", COPY, packages)
        return folder / "bin" / "python"

    def install(self, tool: str, python: Path, build: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [word.format(python) for word in TOOLS[tool]]
        index = f"{self.address}/{build}/"
        return self.run(sys.executable, "-m", *command, "--index-url", index, *options, "fastvae-torch")


def check_fitting(site: Site, python: str, build: str) -> None:
    for tool in TOOLS:
        fresh = site.environment(python)
        installed = site.install(tool, fresh, build)
        if installed.returncode:
            raise CheckError(f"{tool}: {told_by(installed)}")
        print(f"{build}, by {tool}: {site.do(fresh, '-c', LOSS, build)}", flush=True)


def check_refused(site: Site, python: str, build: str) -> None:
    fresh = site.environment(python)
    torch = site.do(fresh, "-c", "import torch; print(torch.__version__)")
    for tool in TOOLS:
        if site.install(tool, fresh, build).returncode == 0:
            raise CheckError(f"{tool} installed {build} beside torch {torch}")
    for tool in TOOLS:
        installed = site.install(tool, fresh, build, "--no-deps")
        if installed.returncode:
            raise CheckError(f"{tool}: {told_by(installed)}")
    refused = site.run(fresh, "-m", "fastvae", "info")
    lines = told_by(refused).splitlines()
    if refused.returncode != 1 or len(lines) != 1 or f"but torch {torch} is installed" not in lines[0]:
        raise CheckError(f"{build} is not refused in one line: {lines}")
    print(f"{build}: {lines[0]}", flush=True)


def check_hash(site: Site, python: str, build: str) -> None:
    """Of a page that is not of the file beside it."""
    (page,) = site.index.glob("*/*/index.html")
    text = page.read_text(encoding="utf-8")
    text = re.sub("sha256=(.)", lambda digit: "sha256=" + ("0" if digit[1] == "1" else "1"), text)
    page.write_text(text, encoding="utf-8")
    fresh = site.environment(python)
    for tool in TOOLS:
        refused = site.install(tool, fresh, build)
        if refused.returncode == 0 or "hash" not in told_by(refused).lower():
            raise CheckError(f"{tool} did not see that the file is not the page's: {told_by(refused)}")
        print(f"{build}, by {tool}, with another hash on the page: refused", flush=True)


def main(index: Path, pythons: Sequence[str]) -> None:
    builds = sorted(page.parent.name for page in index.glob("*/index.html"))
    # Beside the index, and so most likely on the disk of the environments that PyTorch is linked from.
    with tempfile.TemporaryDirectory(dir=index.parent) as folder:
        work = Path(folder)
        site = Site(index, work)
        used = {}
        for python in pythons:
            version = site.do(python, "-c", "import torch; print(torch.__version__)")
            public, _, local = version.partition("+")
            fitting = ["pt" + "".join(public.split(".")[:2]) + kind for kind in ("cpu", local)]
            for build in builds:
                (check_fitting if build in fitting else check_refused)(site, python, build)
                used.update({build: python} if build in fitting else {})
        if left := sorted(set(builds) - set(used)):
            raise CheckError(f"{left}: none of {list(pythons)} has the PyTorch that it is for")
        build = builds[0]
        shutil.copytree(index / build, work / "other" / build)
        check_hash(Site(work / "other", work), used[build], build)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(str(__doc__))
    try:
        # Commands run in another folder; a link to a Python, as that of a venv, is not followed.
        main(Path(sys.argv[1]).absolute(), [os.path.abspath(shutil.which(python) or python) for python in sys.argv[2:]])
    except CheckError as failed:
        sys.exit(f"{sys.argv[0]}: {failed}")
