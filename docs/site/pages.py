"""The site's pages beyond mkdocs.yml: files of the repository by their paths, and pages that are no files.

MkDocs would take what lies in docs/ and name it by its path there. Here a page is named by its path in the repository:
the README, the benchmarks' page and that of the CUDA kernels are pages like those of docs/, nothing is copied, and the
links among them are those that work in the repository. A file that a page links to and that is none becomes one: a
source with its lines numbered, a folder as the list of what is in it.

Where a page says ``<!-- NAME: ARGUMENTS -->``, the site has what FILLED[NAME] gives: a reader of the repository sees
the text around it, which links to the same.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # for the benchmarks' tables

import check  # noqa: E402
import commands  # noqa: E402
import figures  # noqa: E402
import formulas  # noqa: E402

log = logging.getLogger("mkdocs.hooks")

LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
COPIED = {".png", ".json", ".txt"}
LANGUAGES = {".cpp": "cpp", ".cu": "cuda", ".cuh": "cuda", ".h": "cpp", ".py": "python", ".sh": "bash", ".toml": "toml"}
ASSETS = ("docs/site/style.css", "docs/site/iframe-worker.js")


def on_config(config: MkDocsConfig) -> None:
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "math", "format": formulas.fence}]
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What the navigation names, and what links of these pages lead to."""
    pages = list(paths(config.nav))
    for path in sorted(ROOT.glob("docs/**/*.md")):
        if (name := path.relative_to(ROOT).as_posix()) not in pages:
            log.warning(f"{name} is not in the navigation of mkdocs.yml")
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    found = [*of_theme, *(stored(name, config) for name in ASSETS)]
    for name in pages:
        if name in WRITTEN:
            found.append(File.generated(config, name, content=WRITTEN[name]()))
        elif name.startswith("api/"):
            found.append(File.generated(config, name, content=reference(Path(name).stem)))
        else:
            found.append(stored(name, config))
            found += linked(name, config)
    by_name = {file.src_uri: file for file in found}
    return Files(by_name.values())


def paths(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from paths(item)


def stored(name: str, config: MkDocsConfig) -> File:
    """A file of the repository. What is in docs/ has an address without that folder."""
    file = File(name, str(ROOT), config.site_dir, config.use_directory_urls)
    file.dest_uri = file.dest_uri.removeprefix("docs/")
    return file


def prose(markdown: str) -> Iterator[tuple[bool, str]]:
    """Blocks of a page, and whether they are prose: the others are code."""
    for number, block in enumerate(re.split(r"^(```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)):
        yield number % 2 == 0, block


def target(page: str, link: str) -> str:
    """The path in the repository that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def is_shown(name: str) -> bool:
    """Whether a link to it leads to a page that is made of it."""
    path = ROOT / name
    return path.is_dir() or (path.is_file() and path.suffix not in {".md", *COPIED})


def linked(page: str, config: MkDocsConfig) -> Iterator[File]:
    """The files beside pages that a page links to, and those in folders that it links to."""
    text = "".join(block for is_prose, block in prose((ROOT / page).read_text("utf-8")) if is_prose)
    for name in {target(page, link) for link in LINK.findall(text)}:
        if (ROOT / name).suffix in COPIED and (ROOT / name).is_file():
            yield stored(name, config)
        elif is_shown(name):
            yield shown(name, config)
            if (ROOT / name).is_dir():
                yield from (shown(f"{name}/{inner}", config) for inner in listed(name))


def listed(folder: str) -> list[str]:
    return sorted(p.name for p in (ROOT / folder).iterdir() if p.suffix in LANGUAGES)


def shown(name: str, config: MkDocsConfig) -> File:
    """A page that shows a source, or what is in a folder."""
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# `{name}`\n\n"
    if (ROOT / name).is_dir():
        rows = "\n".join(f"- [`{inner}`]({inner}.md)" for inner in listed(name))
        return generated(f"{name}/README.md", head + rows, config)
    language = LANGUAGES.get(Path(name).suffix, "text")
    source = (ROOT / name).read_text("utf-8").rstrip("\n")
    code = f'``````{{.{language} linenums="1"}}\n{source}\n``````'
    return generated(f"{name}.md", head + code, config)


def generated(name: str, text: str, config: MkDocsConfig) -> File:
    return File.generated(config, name, content=text, inclusion=InclusionLevel.NOT_IN_NAV)


def reference(module: str) -> str:
    """The page of a module, from its docstrings: what its ``__all__`` names, or all that is public."""
    path = ROOT.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    text = f"# {module}\n\n"
    shadowed = [name for name in names if (path / f"{name}.py").is_file()]  # functions called as their modules are
    if module == "fastvae":
        text += "[The operators](../docs/operators.md) have pages of their own.\n\n"
        modules = {p.stem for p in path.iterdir()}
        names = [name for name in names if name not in modules and not (ROOT / f"docs/operators/{name}.md").exists()]
        shadowed = []
    text += f"::: {module}\n    options:\n      show_root_heading: false\n"
    if names:
        text += f"      members: [{', '.join(names)}]\n"
    return text + "".join(f"\n::: {module}.{name}.{name}\n" for name in shadowed)


# Pages that are no files, by the names that the navigation has for them; those of modules are called api/MODULE.md.
WRITTEN = {"api/command-line.md": commands.page}

FILLED: dict[str, Callable[[str], str]] = {
    "bounds": figures.bounds,
    "speed": figures.speed,
    "rows": lambda _: figures.other_results(),
    "reference": lambda name: f"::: {name}\n    options:\n      show_root_heading: false",
}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    name = page.file.src_uri
    if page.parent is None:  # beside it there would be nothing but its own name
        page.meta["hide"] = ["navigation"]
    if page.file.abs_src_path is None:
        return markdown

    def link(match: re.Match[str]) -> str:
        path = target(name, match[0])
        if not is_shown(path):
            return match[0]
        return match[0].rstrip("/") + ("/README.md" if (ROOT / path).is_dir() else ".md")

    def fill(match: re.Match[str]) -> str:
        return FILLED[match[1]](match[2])

    blocks = (
        re.sub(r"^<!-- (\w+): (.*) -->$", fill, LINK.sub(link, block), flags=re.MULTILINE) if is_prose else block
        for is_prose, block in prose(markdown)
    )
    return "".join(blocks)


def on_post_build(config: MkDocsConfig) -> None:
    formulas.write_font(Path(config.site_dir, "site", "math.ttf"))
    for fault in check.faults(Path(config.site_dir)):
        log.warning(fault)
