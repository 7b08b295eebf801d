"""The documentation's site: it is built without a warning, asks no other host for anything, and faults are seen."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import check
import figures
import pytest
from test_operator_pages import PAGES

ROOT = Path(__file__).parents[1]

TARGET = '<h2 id="there">x</h2>'
FAULTS = {
    '<a href="gone.html">x</a>': "links to gone.html, which is not there",
    '<a href="../outside.html">x</a>': "links to ../outside.html, which is not there",
    '<a href="folder/#gone">x</a>': "links to folder/#gone, where there is no such anchor",
    '<a href="#gone">x</a>': "links to #gone, where there is no such anchor",
    '<a href="https://nowhere">x</a>': "links to https://nowhere, which is no address",
    '<a href="javascript:f()">x</a>': "links to javascript:f(), which is no address",
    '<img src="gone.png" alt="x">': "has a part that is not there, gone.png",
    '<img src="here.png">': "has an image without a text in its place, here.png",
    '<script src="https://cdn.example.org/a.js"></script>': "asks another host for https://cdn.example.org/a.js",
    '<link rel="stylesheet" href="//fonts.example.org/a.css">': "asks another host for //fonts.example.org/a.css",
    '<img srcset="here.png, http://example.org/b.png 2x" alt="x">': "asks another host for http://example.org/b.png",
    '<p style="background: url(https://example.org/c.png)">x</p>': "asks another host for https://example.org/c.png",
    "<style>@import 'https://example.org/d.css';</style>": "asks another host for https://example.org/d.css",
}
RIGHT = """
<a href="folder/#there">x</a> <a href="folder/index.html">x</a> <a href="#here">x</a> <a href="/here.png">x</a>
<a href="https://example.org/x#y">x</a> <a href="mailto:a@example.org">x</a> <i id="here"></i>
<img src="here.png" alt="x"> <img src="data:image/png;base64,AA==" alt="x"> <link rel="icon" href="here.png">
"""


def site_of(folder: Path, page: str) -> Path:
    (folder / "folder").mkdir()
    (folder / "folder" / "index.html").write_text(TARGET)
    (folder / "here.png").write_bytes(b"")
    (folder / "index.html").write_text(page)
    return folder


def test_a_page_without_a_fault_has_none(tmp_path: Path) -> None:
    assert list(check.faults(site_of(tmp_path, RIGHT))) == []


@pytest.mark.parametrize("page", FAULTS)
def test_each_fault_is_found_and_named(page: str, tmp_path: Path) -> None:
    assert list(check.faults(site_of(tmp_path, RIGHT + page))) == [f"index.html: {FAULTS[page]}"]


def test_faults_of_a_stylesheet_are_found(tmp_path: Path) -> None:
    css = "@font-face {src: url('https://example.org/a.woff2'), url(here.png), url(folder/gone.ttf)}"
    (site_of(tmp_path, RIGHT) / "a.css").write_text(css)
    assert list(check.faults(tmp_path)) == [
        "a.css: asks another host for https://example.org/a.woff2",
        "a.css: has a part that is not there, folder/gone.ttf",
    ]


def test_no_page_at_all_is_a_fault(tmp_path: Path) -> None:
    assert list(check.faults(tmp_path)) == [f"{tmp_path}: has no page"]


def test_every_bound_and_measurement_is_shown_by_a_page() -> None:
    """What has a result or a bound is on a page; that of an operator without is said to be missing."""
    markers = {
        name: re.findall(r"^<!-- (\w+): (\w+) -->$", page.read_text("utf-8"), re.M) for name, page in PAGES.items()
    }
    shown = {of for found in markers.values() for kind, of in found if kind == "bounds"}
    assert shown == set(re.findall(r"^### (\w+)$", figures.ACCURACY.read_text("utf-8"), re.M))
    measured = {
        row["operator"]
        for name in figures.MACHINES.values()
        for file in name
        for row in figures.report.load(file)["rows"]
    }
    assert {name for name, found in markers.items() if ("speed", name) in found} == measured | set(figures.COUNTS)
    missing = {
        name for name, page in PAGES.items() if "No committed result has this operator" in page.read_text("utf-8")
    }
    assert missing == set(PAGES) - measured - set(figures.COUNTS)


def test_figures_are_those_of_the_results() -> None:
    row = figures.report.find(figures.report.load("ops.json"), "elbo_loss", (4096, 784))
    shown = figures.speed("elbo_loss")
    for name, text in figures.CONTENDERS.items():
        took = figures.table.milliseconds(row["contenders"][name])
        assert re.search(rf"<span>{re.escape(text)}</span><div><i[^>]*></i>{re.escape(took)} ms</div>", shown)
    assert shown.count(figures.table.with_spread(row["contenders"]["fastvae"])) == 1
    assert "NVIDIA H200" in shown


def test_other_results_have_every_row_of_the_files_that_they_name() -> None:
    shown = figures.other_results()
    for name in re.findall(r"^\[`([\w-]+\.json)`\]", shown, re.M):
        rows = json.loads((figures.report.RESULTS / name).read_text()).get("rows")
        section = shown.split(f"\n\n[`{name}`]")[1].split("\n### ")[0]
        assert rows is None or section.count("\n| ") == len(rows) + 2, name


def test_the_gallery_has_every_picture() -> None:
    shown = re.findall(r"^!\[.+\]\((.+)\)$", (ROOT / "docs" / "gallery.md").read_text("utf-8"), re.M)
    drawn = [*(ROOT / "docs" / "tutorial").glob("*.png"), *figures.report.RESULTS.glob("*.png")]
    assert sorted((ROOT / "docs" / link).resolve() for link in shown) == sorted(drawn)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, elsewhere."""
    missing = [name for name in ("mkdocs", "material", "mkdocstrings", "ziamath") if find_spec(name) is None]
    if missing and os.environ.get("FAIL_WITHOUT_INTEGRATIONS"):
        pytest.fail(f"FAIL_WITHOUT_INTEGRATIONS is set: {', '.join(missing)} is not installed")
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed: the extra docs")
    folder = tmp_path_factory.mktemp("built") / "site"
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return folder


def test_the_site_has_no_fault(site: Path) -> None:
    assert list(check.faults(site)) == []


def test_nothing_is_left_of_what_the_build_replaces(site: Path) -> None:
    """Markers, roles of docstrings and formulas; sources are shown as they are."""
    pages = [path for path in site.rglob("*.html") if not re.search(r"\.(py|h|cuh|cpp|sh)\.html$", path.name)]
    assert len(pages) > 50
    for path in pages:
        text = path.read_text("utf-8")
        left = re.findall(
            r"<!-- (?:bounds|speed|rows|reference): .*|:(?:func|class|meth|mod):`.*|\\frac.*|^:::.*", text, re.M
        )
        assert not left, (path, left)


@pytest.mark.parametrize("module", ["fastvae", "fastvae.data", "fastvae.models", "fastvae.training"])
def test_every_public_name_is_in_the_reference(site: Path, module: str) -> None:
    pages = [*(site / "api").glob("*.html"), *(site / "operators").glob("*.html")]
    anchors = {anchor for path in pages for anchor in check.Page(path.read_text("utf-8")).anchors}
    for name in importlib.import_module(module).__all__:
        assert anchors & {f"{module}.{name}", f"{module}.{name}.{name}"}, name


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_an_operator_has_its_parts(site: Path, name: str) -> None:
    text = (site / "operators" / f"{name}.html").read_text("utf-8")
    assert f"<title>{name} - fastvae</title>" in text
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML"' in text
    assert f'id="fastvae.{name}"' in text
    headings = re.findall(r'<h2 id="([\w-]+)"', text)
    assert headings == ["the-lines-it-replaces", "shapes", "error", "speed", "arguments", "source"]
