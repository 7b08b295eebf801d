"""The tables and the plot of the results, from ``results/*.json``: ``python -m benchmarks.report`` writes them.

The README gets a short table between its markers, ``results/README.md`` all rows, ``results/ops.png`` the plot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ROOT, table

if TYPE_CHECKING:
    from fastvae.plots import Axes

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
MODES = ("forward", "forward+backward")
SHORT_COLUMNS = {
    MODES[0]: [name for name in table.OPS_COLUMNS if " ms" in name or name in ("x eager", "x compile", "of copy")],
    MODES[1]: [name for name in table.OPS_COLUMNS if " ms" in name or "x " in name or "extra" in name],
}
# Told apart by colour-blind readers and in grey (Okabe and Ito), and by shape.
BASELINES = {"eager": ("#0072B2", "o", "eager PyTorch"), "compile": ("#D55E00", "D", "torch.compile")}


def load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return result


def loses(row: table.Row) -> bool:
    return min(table.faster(row, name) for name in (*BASELINES, "one graph") if name in row["contenders"]) < 1


def short_rows(ops: table.Row, mode: str) -> list[table.Row]:
    """Rows of the README: each operator's pass at the sizes that matter, and every one of those that we lose."""
    return [row for row in ops["rows"] if row["mode"] == mode and (row["readme"] or loses(row))]


def short_table(ops: table.Row, mode: str) -> str:
    cells = []
    for row in short_rows(ops, mode):
        all_cells = dict(zip(table.OPS_COLUMNS, table.ops_cells(row, ops["copy_bytes_per_second"]), strict=True))
        cells.append([*table.case_name(row, ops["machine"]), *(all_cells[name] for name in SHORT_COLUMNS[mode])])
    return table.markdown(["operator", "case", *SHORT_COLUMNS[mode]], cells)


def train_table(train: table.Row) -> str:
    return table.markdown(table.TRAIN_COLUMNS, map(table.train_cells, train["rows"]))


def readme_block(ops: table.Row, train: table.Row) -> str:
    """What stands between the README's markers, with them."""
    return f"""{BEGIN}
{table.describe(ops["machine"])}.

Operators, forward with backward, float32 unless said: medians, and what memory a call needs beyond its inputs.
[All rows](benchmarks/results/README.md), [how they are measured](benchmarks/README.md).

![Times as fast as eager PyTorch and torch.compile, a row for each operator and size](benchmarks/results/ops.png)

{short_table(ops, MODES[1])}

Forward alone; "of copy": bytes that must be read or written a second, beside those of a plain copy in memory.

{short_table(ops, MODES[0])}

A whole training step of the tutorial's network, whose matrix products are PyTorch's own for all ("both": fastvae under
torch.compile):

{train_table(train)}
{END}"""


def full_report(ops: table.Row, train: table.Row) -> str:
    """All rows."""
    copies = ops["copy_bytes_per_second"]
    bandwidths = ", ".join(
        f"{rate / 1e9:.1f} GB/s on {table.threads({'threads': int(n)})}" for n, rate in copies.items()
    )
    columns = table.isa_columns(ops["isa"])
    return f"""# Results

Written by `python -m benchmarks.report` from `ops.json` and `train.json`; [how they are measured](../README.md).

## Operators

{table.describe(ops["machine"])}. A copy reads and writes {bandwidths}.

![Times as fast as eager PyTorch and torch.compile, a row for each operator and size](ops.png)

{table.markdown(table.OPS_COLUMNS, (table.ops_cells(row, copies) for row in ops["rows"]))}

## Instruction sets

{table.markdown(columns, map(table.isa_cells, ops["isa"]))}

## Training step

{table.describe(train["machine"])}. "both": fastvae under torch.compile.

{train_table(train)}
"""


def plot(ops: table.Row, path: Path) -> None:
    """Dots on a logarithmic scale, a row for each case: how many times as fast as each baseline."""
    from fastvae.plots import Figure

    machine = ops["machine"]
    labels = ["  ".join(table.case_name(row, machine)) for row in ops["rows"]]
    names = list(dict.fromkeys(labels))
    figure = Figure(figsize=(12, 1.6 + 0.27 * len(names)))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, mode in zip(panels, MODES, strict=True):
        chosen = [
            (row, names.index(name)) for row, name in zip(ops["rows"], labels, strict=True) if row["mode"] == mode
        ]
        _panel(axes, [row for row, _ in chosen], [place for _, place in chosen])
        axes.set_title(mode.replace("+", " with "))
        axes.set_xlabel("times as fast (logarithmic; line: quartiles)")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylabel("operator, shape; dtype, layout and threads if not as usual")
    panels[0].invert_yaxis()
    reached = [table.faster(row, name) for row in ops["rows"] for name in BASELINES]
    panels[0].set_xlim(min(0.5, *reached) / 1.3, max(2, *reached) * 1.5)  # of both
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"fastvae's speed-up on {machine['processor']}, {table.threads(machine)}, {machine['cpu_capability']}, "
        f"torch {machine['torch']}"
    )
    figure.tight_layout(rect=(0, 0.03, 1, 0.995))
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, rows: Sequence[table.Row], places: Sequence[int]) -> None:
    axes.set_xscale("log")
    for name, (colour, marker, text) in BASELINES.items():
        ratios = [table.faster(row, name) for row in rows]
        pairs = [(row["contenders"][name], row["contenders"]["fastvae"]) for row in rows]
        low = [ratio - theirs["low"] / ours["high"] for ratio, (theirs, ours) in zip(ratios, pairs, strict=True)]
        high = [theirs["high"] / ours["low"] - ratio for ratio, (theirs, ours) in zip(ratios, pairs, strict=True)]
        axes.errorbar(ratios, places, xerr=(low, high), fmt=marker, color=colour, label=f"against {text}", alpha=0.9)
    axes.axvline(1, color="black", linewidth=1)
    axes.axvspan(axes.get_xlim()[0] / 10, 1, color="0.9", zorder=0, label="fastvae is slower")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(axis="both", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)


def with_block(readme: str, block: str) -> str:
    """The README with the block between its markers."""
    pattern = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    assert len(pattern.findall(readme)) == 1, f"the README must hold {BEGIN} and {END} once"
    return pattern.sub(lambda _: block, readme)


def main() -> None:
    ops, train = load("ops.json"), load("train.json")
    plot(ops, RESULTS / "ops.png")
    (RESULTS / "README.md").write_text(full_report(ops, train))
    README.write_text(with_block(README.read_text(), readme_block(ops, train)))


if __name__ == "__main__":
    main()
