"""Writes what the documents say of the results in ``results/*.json``: ``python -m benchmarks.report``.

The README gets its picture, ``results/overview.png``, and three figures in words. ``benchmarks/README.md`` gets the
tables of the sizes that matter, and ``results/README.md`` all rows, with the plot ``results/ops.png``.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ROOT, table

if TYPE_CHECKING:
    from fastvae.plots import Axes

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
TABLES = ROOT / "benchmarks" / "README.md"
FIGURE_7 = ROOT / "docs" / "tutorial" / "mnist-vae.png"
DIGITS = slice(34, 258), slice(26, 478)  # its pixels that show the first eight samples of four rows, without the frame
MODES = ("forward", "forward+backward")
SHORT_COLUMNS = {
    MODES[0]: [name for name in table.OPS_COLUMNS if " ms" in name or name in ("x eager", "x compile", "of copy")],
    MODES[1]: [name for name in table.OPS_COLUMNS if " ms" in name or "x " in name or "extra" in name],
}
# Told apart by colour-blind readers and in grey (Okabe and Ito), and by shape.
BASELINES = {"eager": ("#0072B2", "o", "eager PyTorch"), "compile": ("#D55E00", "D", "torch.compile")}


COLOURS = {**{name: style[0] for name, style in BASELINES.items()}, "fastvae": "#009E73"}


def load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return result


def loses(row: table.Row) -> bool:
    return min(table.faster(row, name) for name in (*BASELINES, "one graph") if name in row["contenders"]) < 1


def short_rows(ops: table.Row, mode: str) -> list[table.Row]:
    """Rows of the short tables: each operator's pass at the sizes that matter, and every one of those that we lose."""
    return [row for row in ops["rows"] if row["mode"] == mode and (row["readme"] or loses(row))]


def short_cells(ops: table.Row, row: table.Row) -> list[str]:
    """One row of a short table."""
    cells = dict(zip(table.OPS_COLUMNS, table.ops_cells(row, ops["copy_bytes_per_second"]), strict=True))
    return [*table.case_name(row, ops["machine"]), *(cells[name] for name in SHORT_COLUMNS[row["mode"]])]


def short_table(ops: table.Row, mode: str) -> str:
    return table.markdown(
        ["operator", "case", *SHORT_COLUMNS[mode]], (short_cells(ops, row) for row in short_rows(ops, mode))
    )


def train_table(train: table.Row) -> str:
    return table.markdown(table.TRAIN_COLUMNS, map(table.train_cells, train["rows"]))


def find(ops: table.Row, operator: str, shape: Sequence[int], mode: str = MODES[1]) -> table.Row:
    """The row of a pass in float32, contiguous and on all threads."""
    found: list[table.Row] = [
        row
        for row in ops["rows"]
        if (row["operator"], row["variant"], row["shape"], row["mode"]) == (operator, "", list(shape), mode)
        and set(row["dtypes"]) == {"float32"}
        and not row["packed"]
        and row["threads"] == ops["machine"]["threads"]
    ]
    assert len(found) == 1, f"{len(found)} rows of {operator} {list(shape)}, {mode}; expected one"
    return found[0]


def typical(ops: table.Row) -> table.Row:
    """The row that the README's picture shows."""
    return find(ops, "elbo_loss", (4096, 784))


def readme_picture(ops: table.Row) -> str:
    """The README's picture, with its figures in words for those who cannot see it."""
    took = {name: table.milliseconds(typical(ops)["contenders"][name]) for name in COLOURS}
    return (
        "![Handwritten digits drawn by a VAE that fastvae trained, beside three bars: the ELBO of "
        f"{_size(typical(ops))} pixels, with its gradients, takes eager PyTorch {took['eager']} ms, torch.compile "
        f"{took['compile']} ms and fastvae {took['fastvae']} ms](benchmarks/results/overview.png)"
    )


def readme_figures(ops: table.Row, train: table.Row) -> str:
    """Three figures for the README: of the loss, of the memory, and of the whole step, which gains little.

    ``train`` are float32 steps; they may be of another machine.
    """
    loss, layer = typical(ops), find(ops, "linear_sigmoid_cross_entropy", (512, 100, 784))
    memory = {name: table.megabytes(layer, [name]) for name in COLOURS}
    steps = {name: [table.faster(row, name) for row in train["rows"]] for name in BASELINES}
    eager, compiled = (f"{table.ratio(min(r))} to {table.ratio(max(r))}" for r in steps.values())
    figures = (
        f"**The loss.** `elbo_loss` with its gradients, {_size(loss)} in float32, takes "
        f"{table.milliseconds(loss['contenders']['fastvae'])} ms: {_times(loss)}.",
        f"**The memory.** `linear_sigmoid_cross_entropy`, a decoder's last layer with its loss, needs "
        f"{memory['fastvae']} MB for 512 samples of each of 100 images, where eager PyTorch needs {memory['eager']} MB "
        f"and `torch.compile` {memory['compile']} MB. It is {_times(layer)}.",
        f"**The whole training step.** A step of the tutorial's network in float32 is {eager} times as fast as in "
        f"eager PyTorch and {compiled} times as fast as under `torch.compile`, depending on the batch, because most of "
        "it is matrix products, which are PyTorch's own.",
    )
    lines = [_wrapped(f"- {figure}", "  ") for figure in figures]
    machines = f"Measured on: {table.describe(ops['machine'])}; the step on: {table.describe(train['machine'])}."
    return "\n".join([*lines, "", _wrapped(machines)])


def _times(row: table.Row) -> str:
    eager, compiled = (table.ratio(table.faster(row, name)) for name in BASELINES)
    return f"{eager} times as fast as eager PyTorch and {compiled} times as fast as `torch.compile`"


def _wrapped(paragraph: str, indent: str = "") -> str:
    return textwrap.fill(paragraph, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _size(row: table.Row) -> str:
    return " x ".join(map(str, row["shape"]))


def gpu_figures(ops: table.Row, train: table.Row) -> str:
    """What the README says of a GPU."""
    losses = [
        row
        for row in ops["rows"]
        if row["operator"] == "elbo_loss" and row["mode"] == MODES[1] and row["shape"][0] > 100_000
    ]
    plain, narrow = losses
    small = find(ops, "elbo_loss", (100, 784))

    def memory(row: table.Row) -> str:
        return f"{row['contenders']['fastvae']['peak_bytes'] / row['contenders']['eager']['peak_bytes']:.0%}"

    graphs = {row["dtype"]: row["contenders"]["graph"]["median"] for row in train["rows"] if row["batch"] == 100}
    largest = next(row for row in train["rows"] if (row["batch"], row["dtype"]) == (65536, "bfloat16"))
    figures = (
        f"**On a GPU, the loss.** `elbo_loss` with its gradients, {_size(plain)} in float32, takes "
        f"{table.milliseconds(plain['contenders']['fastvae'])} ms: {_times(plain)}, with {memory(plain)} of eager's "
        f"memory. For bfloat16 and uint8 images it is {_times(narrow)}, with {memory(narrow)}; for 100 x 784, where "
        f"the host takes longer than the GPU, {_times(small)}.",
        f"**On a GPU, the whole training step.** 65,536 images of the tutorial's network in bfloat16 are "
        f"{table.against(largest, 'eager')} times as fast as in eager PyTorch and {table.against(largest, 'compile')} "
        f"times as fast as under `torch.compile`. At 100 images, `--cuda-graph` makes 60,000 steps in "
        f"{60_000 * graphs['float32']:.0f} s ({60_000 * graphs['tf32']:.0f} s with TF32 products), where steps one by "
        "one take minutes, because the host is busy with their launches.",
    )
    lines = [_wrapped(f"- {figure}", "  ") for figure in figures]
    machine = ops["machine"]
    return "\n".join([*lines, "", _wrapped(f"Measured on: {machine['processor']}, torch {machine['torch']}.")])


def gpu_tables(ops: table.Row, train: table.Row) -> str:
    """What ``benchmarks/README.md`` has of a GPU: all rows."""
    (copy,) = ops["copy_bytes_per_second"].values()

    def rows(mode: str) -> str:
        cells = []
        for row in (r for r in ops["rows"] if r["mode"] == mode):
            alone = [row["contenders"][name].get("device") for name in COLOURS]
            times = " / ".join(table.number(seconds * 1e6) for seconds in alone if seconds is not None)
            cells.append([*short_cells(ops, row), times])
        return table.markdown(["operator", "case", *SHORT_COLUMNS[mode], "us of the GPU alone"], cells)

    graphs = [
        [
            str(row["batch"]),
            row["dtype"],
            table.number(row["batch"] / row["contenders"]["graph"]["median"]),
            f"{60_000 * row['contenders']['graph']['median']:.1f}",
            str(sum(count for _, count, _ in row["kernels"])),
            table.number(sum(time for _, _, time in row["kernels"])),
        ]
        for row in train["rows"]
    ]
    return f"""{table.describe(ops["machine"])}. A copy reads and writes {copy / 1e9:.0f} GB/s.

Forward with backward; rows of 100 and fewer are bound by the host, so that the last column has what the GPU takes for
the kernels of eager PyTorch, `torch.compile` and fastvae:

{rows(MODES[1])}

Forward alone:

{rows(MODES[0])}

A whole training step of the tutorial's network; "tf32" is float32 with `torch.set_float32_matmul_precision("high")`:

{train_table(train)}

The same step with fastvae's loss, captured once and replayed, as `fastvae train --cuda-graph` does:

{table.markdown(["batch", "dtype", "images/s", "60,000 steps, s", "launches", "us of their kernels"], graphs)}"""


def short_tables(ops: table.Row, train: table.Row) -> str:
    """The tables of ``benchmarks/README.md``."""
    return f"""{table.describe(ops["machine"])}.

Operators, forward with backward, in float32 unless the case says otherwise. Times are medians; "extra MB" is the memory
that a call needs beyond its inputs. [`results/README.md`](results/README.md) has all rows.

![Times as fast as eager PyTorch and torch.compile, a row for each operator and size](results/ops.png)

{short_table(ops, MODES[1])}

Forward alone. "of copy" compares the bytes that must be read or written in a second with those of a plain copy in
memory.

{short_table(ops, MODES[0])}

A whole training step of the tutorial's network, whose matrix products are PyTorch's own for all contenders ("both" is
fastvae under torch.compile):

{train_table(train)}"""


def full_report(ops: table.Row, train: table.Row) -> str:
    """All rows."""
    copies = ops["copy_bytes_per_second"]
    bandwidths = ", ".join(
        f"{rate / 1e9:.1f} GB/s on {table.threads({'threads': int(n)})}" for n, rate in copies.items()
    )
    columns = table.isa_columns(ops["isa"])
    return f"""# Results

`python -m benchmarks.report` writes this page from `ops.json` and `train.json`. [How the results are
measured](../README.md).

## Operators

{table.describe(ops["machine"])}. A copy reads and writes {bandwidths}.

![Times as fast as eager PyTorch and torch.compile, a row for each operator and size](ops.png)

{table.markdown(table.OPS_COLUMNS, (table.ops_cells(row, copies) for row in ops["rows"]))}

## Instruction sets

{table.markdown(columns, map(table.isa_cells, ops["isa"]))}

## Training step

{table.describe(train["machine"])}. "both": fastvae under torch.compile.

{train_table(train)}

## Other machines and measurements

Results of other machines and further measurements are in the other files of this folder. The documentation's site
(`make docs`) shows their rows here.

<!-- rows: others -->
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


def overview(ops: table.Row, path: Path) -> None:
    """The README's picture: digits that a trained model drew, and how long a typical loss takes."""
    from matplotlib.image import imread
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from fastvae.plots import Figure

    row, machine = typical(ops), ops["machine"]
    names = {**{name: style[2] for name, style in BASELINES.items()}, "fastvae": "fastvae"}
    # Letters that can still be read where the picture is half as wide as on a page of 900 pixels.
    settings = {"fontsize": 14}
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(9, 2.75), layout=layout, facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 0.9))
    left.imshow(imread(FIGURE_7)[DIGITS], interpolation="lanczos")
    left.set_title("drawn by a VAE that fastvae trained", **settings)
    left.set_xlabel("MNIST, the tutorial's network", **settings)
    left.set_xticks([])
    left.set_yticks([])
    left.spines[:].set_visible(False)
    milliseconds = [row["contenders"][name]["median"] * 1e3 for name in names]
    bars = right.barh(range(len(names)), milliseconds, color=[COLOURS[name] for name in names], height=0.7)
    right.bar_label(bars, [table.number(ms) + " ms" for ms in milliseconds], padding=4, **settings)
    right.set_yticks(range(len(names)), list(names.values()), **settings)
    right.tick_params(left=False)
    right.invert_yaxis()
    right.set_xlim(0, max(milliseconds) * 1.3)
    right.set_xticks([])
    right.spines[:].set_visible(False)
    right.set_title("ELBO and its gradients", **settings)
    right.set_xlabel(f"{_size(row)}, float32, {machine['cores']} CPU cores", **settings)
    figure.savefig(path, dpi=200)


def with_block(document: str, name: str, block: str) -> str:
    """The document with the block between the markers of its name."""
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    assert len(pattern.findall(document)) == 1, f"the document must hold {begin.strip()} and {end.strip()} once"
    return pattern.sub(lambda _: begin + block + end, document)


def documents(ops: table.Row, train: table.Row) -> dict[Path, str]:
    """The files with what the results say, as they should be."""
    on_gpu = load("gpu-ops.json"), load("gpu-train.json")
    on_h100 = load("gpu-ops-h100.json"), load("gpu-train-h100.json")
    readme = with_block(README.read_text(), "picture", readme_picture(ops))
    readme = with_block(readme, "gpu", gpu_figures(*on_gpu))
    tables = with_block(TABLES.read_text(), "benchmarks", short_tables(ops, train))
    newest = load("train-avx2.json")
    tables = with_block(tables, "avx2", train_table(newest))
    return {
        README: with_block(readme, "figures", readme_figures(ops, newest)),
        TABLES: with_block(with_block(tables, "gpu", gpu_tables(*on_gpu)), "h100", gpu_tables(*on_h100)),
        RESULTS / "README.md": full_report(ops, train),
    }


def main() -> None:
    ops, train = load("ops.json"), load("train.json")
    plot(ops, RESULTS / "ops.png")
    overview(ops, RESULTS / "overview.png")
    for path, text in documents(ops, train).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
