"""The README and the pages beside it: their Python runs, their links lead somewhere, and code comes before tables."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    README,
    *(
        DOCS / f"{name}.md"
        for name in ("start", "install", "operators", "models", "training", "data", "networks", "likelihoods")
    ),
]
LINKED = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "csrc/cuda/README.md")),
    *sorted(DOCS.rglob("*.md")),
]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines outside of blocks of code, with their numbers."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif not code:
            yield number, line


def tables(page: Path) -> list[tuple[int, int]]:
    """The first line of each table, and how many rows follow its heading."""
    numbers = [number for number, line in prose(page) if line.startswith("|")]
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [(start, end - start - 1) for start, end in zip(starts, ends, strict=True)]


def test_the_first_screen_shows_a_picture_and_code() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    first_code = lines.index("```python") + 1
    assert first_code <= 15
    assert [line for line in lines[:first_code] if line.startswith("![")] == [line for line in lines if "![" in line]


def test_tables_come_late_and_are_short() -> None:
    found = tables(README)
    assert found, "the README has a table, which this test does not find"
    assert all(start >= 40 and rows <= 8 for start, rows in found), found


def test_tables_are_found_with_their_rows(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("| a |\n|---|\n| 1 |\n| 2 |\n\n```\n| code |\n```\n\n| b |\n|---|\n| 1 |\n")
    assert tables(page) == [(1, 2), (10, 1)]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    """All blocks in turn, in one namespace, as somebody does who pastes them one after the other."""
    code = "\n".join(python_blocks(page))
    process = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert process.returncode == 0, process.stderr


def losses() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(python_blocks(README)[0], namespace)
    return namespace


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=["float64", "float32"])
def test_both_losses_of_the_readme_have_the_same_value_and_gradients(dtype: torch.dtype, off: float) -> None:
    """But for rounding: sums of 784 terms of the size of 1, and gradients that are a hundredth of it."""
    images = torch.randint(0, 256, (100, 784), dtype=torch.uint8)
    inputs = [torch.randn(100, size, dtype=dtype, requires_grad=True) for size in (784, 30, 30)]  # logits, mu, logvar

    def value_and_gradients(loss: Any) -> tuple[torch.Tensor, ...]:
        value = loss(inputs[0], images, *inputs[1:])
        return value.detach(), *torch.autograd.grad(value, inputs)

    found = losses()
    usual, fused = value_and_gradients(found["usual_loss"]), value_and_gradients(found["fused_loss"])
    for ours, theirs in zip(fused, usual, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=off, atol=off / 100)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(fused[0] * (1 + 4 * off), usual[0], rtol=off, atol=off / 100)


def test_the_losses_take_as_many_lines_as_the_readme_says() -> None:
    module = ast.parse(python_blocks(README)[0])
    lines = {f.name: len(f.body) for f in module.body if isinstance(f, ast.FunctionDef)}
    assert lines == {"usual_loss": 5, "fused_loss": 2}
    assert "A usual loss takes five lines. Ours takes two" in README.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = [line.lstrip("#").strip() for _, line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = "\n".join(line for _, line in prose(page))
    links = [link for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text) if not link.startswith("http")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    assert links
