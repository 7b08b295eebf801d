"""Rows of results as cells of a table, both for printing and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# Heading of a column to its width in print.
OPS_COLUMNS = {
    "operator": 28,
    "shape": 11,
    "dtype": 14,
    "layout": 10,
    "threads": 7,
    "pass": 16,
    "eager ms": 8,
    "compile ms": 10,
    "fastvae ms (quartiles)": 22,
    "x eager": 7,
    "x compile": 9,
    "x one graph": 11,
    "GB/s": 5,
    "of copy": 7,
    "extra MB eager / compile / fastvae": 0,
}
TRAIN_COLUMNS = {
    "batch": 5,
    "dtype": 8,
    "eager images/s": 14,
    "compile": 7,
    "fastvae": 7,
    "both": 7,
    "fastvae x eager": 15,
    "fastvae x compile": 17,
    "both x compile": 14,
    "loss's share eager / fastvae": 28,
    "products' share of compile / fastvae": 36,
    "page faults eager / compile / fastvae / both": 44,
    "extra MB eager / compile / fastvae / both": 0,
}


def describe(machine: Row) -> str:
    """The machine in a line."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {threads(machine)}, {machine['cpu_capability']}, "
        f"torch {machine['torch']}, Python {machine['python']}, fastvae {machine['version']}"
    )


def threads(row: Row) -> str:
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"


def number(x: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def milliseconds(timing: Row) -> str:
    return number(timing["median"] * 1e3)


def with_spread(timing: Row) -> str:
    low, high = (number(timing[k] * 1e3) for k in ("low", "high"))
    return f"{milliseconds(timing)} ({low} to {high})"


def faster(row: Row, than: str, name: str = "fastvae") -> float:
    """How many times as fast as ``than`` the contender ``name`` is."""
    contenders = row["contenders"]
    return float(contenders[than]["median"] / contenders[name]["median"])


def ratio(x: float) -> str:
    return f"{x:.2f}" if x < 2 else f"{x:.1f}"


def megabytes(row: Row, names: Iterable[str]) -> str:
    contenders = row["contenders"]
    return " / ".join(number(contenders[n]["peak_bytes"] / 1e6) if n in contenders else "" for n in names)


def case_cells(row: Row) -> list[str]:
    """Operator, shape, dtype and layout."""
    variant = f" ({row['variant']})" if row["variant"] else ""
    layout = "packed" if row["packed"] else "contiguous"
    return [row["operator"] + variant, "x".join(map(str, row["shape"])), "/".join(row["dtypes"]), layout]


def case_name(row: Row, machine: Row) -> tuple[str, str]:
    """Operator and shape, and of dtype, layout and threads what is not as usual."""
    operator, *details = [*case_cells(row), threads(row)]
    return operator, ", ".join(d for d in details if d not in ("float32", "contiguous", threads(machine)))


def against(row: Row, than: str, name: str = "fastvae") -> str:
    """How many times as fast, where both were measured."""
    return ratio(faster(row, than, name)) if {than, name} <= set(row["contenders"]) else ""


def ops_cells(row: Row, copies: Mapping[str, float]) -> list[str]:
    """One row of ``OPS_COLUMNS``; ``copies``: threads to bytes per second of a plain copy."""
    contenders = row["contenders"]
    ours = contenders["fastvae"]
    rate = row["bytes"] / ours["median"]
    return [
        *case_cells(row),
        str(row["threads"]),
        row["mode"],
        *(milliseconds(contenders[n]) if n in contenders else "" for n in ("eager", "compile")),
        with_spread(ours),
        *(against(row, n) for n in ("eager", "compile", "one graph")),
        number(rate / 1e9),
        f"{rate / copies[str(row['threads'])]:.0%}",
        megabytes(row, ("eager", "compile", "fastvae")),
    ]


def train_cells(row: Row) -> list[str]:
    """One row of ``TRAIN_COLUMNS``."""
    contenders = row["contenders"]
    names = ("eager", "compile", "fastvae", "both")
    share = [
        f"{row['loss'][n]['median'] / contenders[n]['median']:.0%}" if n in contenders else ""
        for n in ("eager", "fastvae")
    ]
    return [
        str(row["batch"]),
        row["dtype"],
        *(number(row["batch"] / contenders[n]["median"]) if n in contenders else "" for n in names),
        against(row, "eager"),
        against(row, "compile"),
        against(row, "compile", "both"),
        " / ".join(share),
        " / ".join(_shares_of_products(row, ("compile", "fastvae"))),
        " / ".join(number(contenders[n]["page_faults"]) for n in names if "page_faults" in contenders.get(n, {})),
        megabytes(row, names),
    ]


def _shares_of_products(row: Row, names: Sequence[str]) -> list[str]:
    """How much of a step the matrix products alone take; nothing where they were not measured."""
    if "products" not in row:
        return []
    steps = row["contenders"]
    return [f"{row['products']['median'] / steps[name]['median']:.0%}" if name in steps else "" for name in names]


def isa_columns(rows: Sequence[Row]) -> dict[str, int]:
    """The columns of ``isa_cells``."""
    case = {name: OPS_COLUMNS[name] for name in ("operator", "shape", "dtype", "layout", "pass")}
    return {**case, **{f"{name} ms (quartiles)": 23 for name in rows[0]["contenders"]}}


def isa_cells(row: Row) -> list[str]:
    """Milliseconds on each instruction set."""
    return [*case_cells(row), row["mode"], *(with_spread(t) for t in row["contenders"].values())]


def text(cells: Iterable[str], columns: Mapping[str, int]) -> str:
    """One line of print."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, columns.values(), strict=True)).rstrip()


def markdown(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    heading = list(columns)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
