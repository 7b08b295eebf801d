"""What the site's pages show of committed results: benchmarks/results/*.json, and the bounds of docs/accuracy.md.

Figures are written once, there. Tables are those of ``benchmarks.table``.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report, table

ACCURACY = Path(__file__).parents[1] / "accuracy.md"
Row = dict[str, Any]

# What the tabs of an operator's page are called, and the results that they show.
MACHINES = {
    "CPU, AVX-512": ("ops.json",),
    "CPU, AVX2": ("ops-avx2.json",),
    "GPU, H200": ("gpu-ops.json",),
    "GPU, H100": ("gpu-ops-h100.json",),
}
COLUMNS = [name for name in table.OPS_COLUMNS if " ms" in name or "x " in name or name == "of copy" or "extra" in name]
CONTENDERS = {"eager": "eager PyTorch", "compile": "torch.compile", "fastvae": "fastvae"}

# Rows of bench_counts by the beginning of their names, and what they were called with.
COUNTS = {
    "negative_binomial_nll": ("NB", "ZINB"),
    "multinomial_nll": ("multinomial, ",),
    "linear_multinomial_nll": ("multinomial with",),
}
COUNTS_COLUMNS = ["loss", "float32 ms", "uint8 ms", "compressed ms", "eager ms", "compile ms", "x eager", "x compile"]
SIZES = (
    "A mean loss with its gradients. Negative binomials are of 512 cells of 4,000 genes with one theta for each gene, "
    "multinomials of 2,048 users and 20,000 items of which each has chosen 0.5 %; their layer has 600 inputs. fastvae "
    "takes targets in float32, in uint8 and compressed (CSR), and its best is compared with the others."
)


def bounds(name: str) -> str:
    """What docs/accuracy.md has of an operator."""
    section = re.search(rf"^### {name}\n\n(.*?)(?=^### |^<!-- )", ACCURACY.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert section, f"{ACCURACY} has no section {name}"
    return section[1].rstrip()


def speed(operator: str) -> str:
    """How fast an operator is on each machine, a tab for each; bars for one row of the first."""
    tabs = {}
    drawn = ""
    for name, files in MACHINES.items():
        of_machine = [
            (result, row) for result in map(report.load, files) for row in result["rows"] if row["operator"] == operator
        ]
        if of_machine:
            tabs[name] = f"{table.describe(of_machine[0][0]['machine'])}.\n\n{_table(of_machine)}"
            drawn = drawn or bars(*max(of_machine, key=lambda found: _typical(found[1])))
    counts = report.load("counts-avx2.json")
    rows = [row for row in counts["rows"] if row["name"].startswith(COUNTS.get(operator, ("-",)))]
    if rows:
        tabs["CPU, AVX2"] = f"{table.describe(counts)}. {SIZES}\n\n{counts_table(rows)}"
        drawn = _bars(rows[0], f"{rows[0]['name']}; {table.describe(counts)}")
    assert tabs, f"no result has {operator}"
    return (
        drawn + "\n\n" + "\n\n".join(f'=== "{name}"\n\n{textwrap.indent(text, "    ")}' for name, text in tabs.items())
    )


def _typical(row: Row) -> tuple[Any, ...]:
    """Largest for the row that is drawn: with backward, in float32, of the README's size or the most elements."""
    is_plain = set(row["dtypes"]) == {"float32"} and row["threads"] > 1
    return row["mode"] == report.MODES[1], is_plain, row["shape"] == [4096, 784], math.prod(row["shape"])


def _table(found: list[tuple[Row, Row]]) -> str:
    cells = []
    for result, row in sorted(found, key=lambda pair: pair[1]["mode"], reverse=True):
        values = dict(zip(table.OPS_COLUMNS, table.ops_cells(row, result["copy_bytes_per_second"]), strict=True))
        operator, case = table.case_name(row, result["machine"])
        variant = f" ({row['variant']})" if row["variant"] else ""
        assert operator == row["operator"] + variant
        cells.append([case + variant, row["mode"].replace("+", " + "), *(values[name] for name in COLUMNS)])
    return table.markdown(["case", "pass", *COLUMNS], cells)


def bars(result: Row, row: Row) -> str:
    operator, case = table.case_name(row, result["machine"])
    mode = row["mode"].replace("+", " with ")
    return _bars(row["contenders"], f"{operator}, {case}, {mode}; {table.describe(result['machine'])}")


def _bars(contenders: Row, caption: str) -> str:
    longest = max(contenders[name]["median"] for name in CONTENDERS)
    lines = [
        f'<span>{text}</span><div><i class="{name}" style="--share: {contenders[name]["median"] / longest:.3f}"></i>'
        f"{table.milliseconds(contenders[name])} ms</div>"
        for name, text in CONTENDERS.items()
    ]
    return f'<div class="bars">{"".join(lines)}</div>\n\n<small>{caption}.</small>'


def counts_table(rows: list[Row]) -> str:
    ours = ("fastvae", "uint8", "compressed")
    cells = []
    for row in rows:
        best = min(row[name]["median"] for name in ours if name in row)
        cells.append(
            [
                row["name"],
                *(table.milliseconds(row[name]) if name in row else "" for name in (*ours, "eager", "compile")),
                *(table.ratio(row[name]["median"] / best) if name in row else "" for name in ("eager", "compile")),
            ]
        )
    return table.markdown(COUNTS_COLUMNS, cells)


def other_results() -> str:
    """All results but those that benchmarks/results/README.md has of itself."""
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in _others())


def _others() -> Iterator[tuple[str, str]]:
    for title, name in (
        ("Operators, AMD EPYC with AVX2", "ops-avx2.json"),
        ("Operators, AMD EPYC with AVX-512, an earlier suite", "ops-amd.json"),
        ("Operators, NVIDIA H200", "gpu-ops.json"),
        ("Operators, NVIDIA H100", "gpu-ops-h100.json"),
    ):
        result = report.load(name)
        rows = (table.ops_cells(row, result["copy_bytes_per_second"]) for row in result["rows"])
        yield title, _section(name, table.describe(result["machine"]), table.markdown(table.OPS_COLUMNS, rows))
    counts = report.load("counts-avx2.json")
    yield (
        "Losses of counts",
        _section("counts-avx2.json", f"{table.describe(counts)}. {SIZES}", counts_table(counts["rows"])),
    )
    for title, name in (
        ("Training step, AMD EPYC with AVX2", "train-avx2.json"),
        ("Training step, NVIDIA H200", "gpu-train.json"),
        ("Training step, NVIDIA H100", "gpu-train-h100.json"),
    ):
        result = report.load(name)
        yield title, _section(name, table.describe(result["machine"]), report.train_table(result))
    yield "Kernels alone, in the caches", _kernels()
    for title, name in (
        ("Evaluation by importance samples, Intel Xeon", "evaluate.json"),
        ("Evaluation by importance samples, AMD EPYC with AVX2", "evaluate-avx2.json"),
    ):
        yield title, _evaluation(name)
    result = report.load("scale-avx2.json")
    cells = [[str(row["batch"]), row["setup"], table.number(row["median"])] for row in result["rows"]]
    text = table.markdown(["global batch", "how", "images/s"], cells)
    yield "One process and several", _section("scale-avx2.json", table.describe(result["machine"]), text)
    yield "Likelihoods of networks trained with importance samples", _likelihoods()


def _section(name: str, *parts: str) -> str:
    return "\n\n".join([f"[`{name}`]({name}). {parts[0]}{'' if parts[0].endswith('.') else '.'}", *parts[1:]])


def _kernels() -> str:
    results = [report.load(name) for name in ("kernels.json", "kernels-avx2.json")]
    rows = [[name, *(f"{result['nanoseconds'][name]:.2f}" for result in results)] for name in results[0]["nanoseconds"]]
    heading = ["kernel, ns an element and core", *(result["machine"]["cpu_capability"] for result in results)]
    return _section(
        "kernels.json",
        f"{table.describe(results[0]['machine'])}, and the same with AVX2 ([`kernels-avx2.json`](kernels-avx2.json))",
        table.markdown(heading, rows),
    )


def _evaluation(name: str) -> str:
    result = report.load(name)
    rows = [
        [row["contender"], f"{row['nats']:.2f}", f"{row['median']:.3f}", table.ratio(row["times_as_fast"])]
        for row in result["rows"]
    ]
    what = (
        f"{table.describe(result['machine'])}. {result['images']} images, {result['samples']} samples of each, with a "
        f"sampling error of {result['sampling_error_nats']:.2f} nats; eager PyTorch takes so many images by so many "
        "samples at a time"
    )
    return _section(name, what, table.markdown(["contender", "nats", "seconds", "times as fast"], rows))


def _likelihoods() -> str:
    result = report.load("iwae-avx2.json")
    rows = []
    for row in result["rows"]:
        found = row["log_likelihood"]
        rows.append(
            [
                f"`{row['command']}`",
                f"{row['test']['elbo']:.2f} ± {row['test']['standard_error']:.2f}",
                f"{found['log_likelihood']:.2f} ± {found['standard_error']:.2f}",
            ]
        )
    what = f"{table.describe(result['rows'][0]['machine'])}. Nats per test image of MNIST, by 5,000 samples of each"
    return _section("iwae-avx2.json", what, table.markdown(["command", "bound", "log-likelihood"], rows))
