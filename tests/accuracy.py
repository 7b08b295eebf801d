"""docs/accuracy.md: bounds and derivations from tolerances.py, and the worst errors found on each instruction set.

`python tests/accuracy.py` measures (a quarter of an hour: the elementary functions take every float), and writes
docs/accuracy.json and, from it, the tables of the page. `python tests/accuracy.py --page` only writes the tables.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import elementary
import sweeps
import tolerances
import torch
from cases import FLOATS

PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"
FIGURES = PAGE.with_suffix(".json")
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}


def percent(share: float) -> int:
    """Of the bound, rounded up."""
    return math.ceil(100 * share)


def exhaustive(function: elementary.Function) -> dict[str, float]:
    found = elementary.worst(function, function.every)
    return {name: math.ceil(100 * value) / 100 for name, value in found.items()}


def measure() -> dict[str, Any]:
    """All figures of the instruction set in use."""
    operators: dict[str, dict[str, dict[str, int]]] = {}
    for case in sweeps.CASES:
        results = operators.setdefault(str(case), {})
        for name, dtype in DTYPES.items():
            for result, share in sweeps.measure(case, dtype).items():
                results.setdefault(result, {})[name] = percent(share)
    return {"functions": {f.name: exhaustive(f) for f in elementary.FUNCTIONS}, "operators": operators}


def figures() -> dict[str, Any]:
    """What is on record, by instruction set."""
    recorded: dict[str, Any] = json.loads(FIGURES.read_text())
    return recorded


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def functions_table(sets: dict[str, Any]) -> str:
    rows = []
    for function in elementary.FUNCTIONS:
        for bound, text in (("ulp", "{} ulp"), ("relative", "{} u of the result"), ("absolute", "{} u")):
            if (value := getattr(function, bound)) is not None:
                found = [f"{figures['functions'][function.name][bound]:.2f}" for figures in sets.values()]
                rows.append([f"`{function.name}`", text.format(f"{value:g}"), *found])
    return table(["function", "bound", *sets], rows)


def worst_of(operator: str, result: str, dtype: str, sets: dict[str, Any]) -> str:
    """Over all cases of an operator and all instruction sets; of a sum in short rows, and in longer ones."""
    worst: dict[str, int] = {}
    for case in (c for c in sweeps.CASES if c.operator == operator):
        for figures in sets.values():
            for name, found in figures["operators"][str(case)].items():
                if name.partition(",")[0] == result and dtype in found:
                    worst[name] = max(worst.get(name, 0), found[dtype])
    return ", ".join(f"{value} %" for value in worst.values())


def operator_section(operator: str, sets: dict[str, Any]) -> str:
    """The bounds of an operator's results, how near the worst error found is, and the derivation."""
    head, derivation = inspect.cleandoc(getattr(tolerances, operator).__doc__).split("\n\n", 1)
    bounds = dict(line.split(": ", 1) for line in head.splitlines())
    rows = [[r, bound, *(worst_of(operator, r, dtype, sets) for dtype in DTYPES)] for r, bound in bounds.items()]
    text = textwrap.fill(derivation, 120, break_long_words=False, break_on_hyphens=False)
    text = re.sub(r"\n([-+*]) ", r" \1\n", text)  # at the beginning of a line a sign would make a list
    return f"### {operator}\n\n{table(['result', 'bound', *DTYPES], rows)}\n\n{text}"


def page(text: str, sets: dict[str, Any]) -> str:
    """The page with its generated parts renewed."""
    operators = dict.fromkeys(case.operator for case in sweeps.CASES)
    parts = {
        "functions": functions_table(sets),
        "operators": "\n\n".join(operator_section(operator, sets) for operator in operators),
    }
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(f"{begin}.*{end}", re.DOTALL)
        assert pattern.search(text), f"no {begin} in {PAGE}"
        text = pattern.sub(lambda _, b=begin, p=part, e=end: f"{b}\n{p}\n{e}", text)
    return text


def main() -> None:
    if "--measure" in sys.argv:
        json.dump(measure(), sys.stdout)
        return
    if "--page" not in sys.argv:
        sets = {}
        capabilities = torch.ops.fastvae.cpu_capabilities()
        for capability in capabilities[: capabilities.index(torch.ops.fastvae.cpu_capability()) + 1]:
            environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability.lower()}
            command = [sys.executable, __file__, "--measure"]
            result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            sets[capability] = json.loads(result.stdout)
        FIGURES.write_text(json.dumps(sets, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), figures()))


if __name__ == "__main__":
    main()
