"""Every operator against eager PyTorch and torch.compile of the same formula.

    python -m benchmarks.bench_ops [--only NAME ...] [--dtype NAME] [--threads N] [--rounds N] [--json FILE]
    python -m benchmarks.bench_ops --device cuda --elements 134217728

It prints a table and, with --json, writes the figures. The results and gradients of each contender are compared with
the float64 reference before it is timed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import isa, table, timing
from .cases import OPERATORS, Case, Function, Operator, Outputs
from .checks import TOLERANCE, all_close, standard
from .timing import copy_bandwidth, machine, measure, save, threads

ONE_GRAPH = "one graph"
CONTENDERS = ("eager", "compile", ONE_GRAPH, "fastvae")
MODES = ("forward", "forward+backward")
# Inductor's own generator draws on the CPU one number at a time: sampling takes 9 times as long as with torch's.
COMPILE_OPTIONS: dict[str, dict[str, str | int | bool | Callable[..., Any]]] = {"cpu": {"fallback_random": True}}
LARGE = 1 << 17  # elements, from which on a case is one that --elements makes larger

Step = Callable[..., Outputs]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile at its best on the device, for fixed shapes and without graph breaks."""
    return torch.compile(function, fullgraph=True, dynamic=False, options=COMPILE_OPTIONS.get(timing.device.type))


def forward(operator: Operator, function: Function) -> Step:
    """The function of the leaves, its results as a tuple."""

    def run(*leaves: Tensor) -> Outputs:
        out = function(*operator.arguments(leaves))
        return (out,) if isinstance(out, Tensor) else tuple(out)

    return run


def heads(operator: Operator, function: Function) -> Step:
    """What a training step differentiates: a sample as it is, and the sum of each loss."""
    run = forward(operator, function)

    def call(*leaves: Tensor) -> Outputs:
        outputs = run(*leaves)
        samples = 1 if operator.noise else 0
        return (*outputs[:samples], *(o.sum() if o.dim() else o for o in outputs[samples:]))

    return call


def with_backward(call: Step, wanted: Sequence[int], upstream: Tensor | None) -> Step:
    """Forward, then ``torch.autograd.grad``; ``upstream`` is what a decoder would send back to a sample."""

    def step(*leaves: Tensor) -> Outputs:
        outputs = call(*leaves)
        upstreams = [upstream if o.dim() else None for o in outputs]
        return (*outputs, *torch.autograd.grad(outputs, [leaves[i] for i in wanted], upstreams))

    return step


def one_graph(call: Step, wanted: Sequence[int]) -> Step:
    """The same for a loss, forward and backward in one graph, which inductor fuses into one pass.

    The gradient comes as a result beside the loss, instead of through ``backward``: the user's training loop would have
    to be written for it.
    """
    differentiate = torch.func.grad_and_value(lambda *leaves: call(*leaves)[0], argnums=tuple(wanted))

    def step(*leaves: Tensor) -> Outputs:
        gradients, loss = differentiate(*leaves)
        return (loss, *gradients)

    return step


def steps(operator: Operator, mode: str, wanted: Sequence[int], upstream: Tensor | None) -> dict[str, Step]:
    """Each contender as a function of the leaves."""
    fused = operator.fused or operator.eager
    if mode == "forward":
        return {
            "eager": forward(operator, operator.eager),
            "compile": compiled(forward(operator, fused)),
            "fastvae": forward(operator, operator.ours),
        }
    calls = {
        "eager": heads(operator, operator.eager),
        "compile": compiled(heads(operator, fused)),
        "fastvae": heads(operator, operator.ours),
    }
    result = {name: with_backward(call, wanted, upstream) for name, call in calls.items()}
    # Between a sample and its gradient stands a decoder: that cannot be one graph of ours.
    if not operator.noise:
        result[ONE_GRAPH] = compiled(one_graph(heads(operator, fused), wanted))
    return result


def expected(
    operator: Operator, mode: str, leaves: Sequence[Tensor], upstream: Tensor | None, drawn: Tensor
) -> Outputs:
    """The float64 result; that of a random operator is for the noise of the sample that was ``drawn``."""
    doubles = [t.detach().double() if t.is_floating_point() else t for t in leaves]
    arguments: tuple[Tensor, ...] = ()
    if operator.noise is not None:
        with torch.no_grad():
            eps = operator.noise(drawn.double(), *(t.double() for t in operator.arguments(doubles)))
        assert isinstance(eps, Tensor)
        standard(operator.name, eps)
        arguments = (eps,)
    if operator.exact is None:
        return (drawn.double(),)
    exact = operator.exact

    def function(*t: Tensor) -> Tensor | Outputs:
        return exact(*t, *arguments)

    if mode == "forward":
        return forward(operator, function)(*doubles)
    wanted = operator.wanted(leaves)
    for i in wanted:
        doubles[i].requires_grad_()
    step = with_backward(heads(operator, function), wanted, None if upstream is None else upstream.double())
    return tuple(t.detach() for t in step(*doubles))


def moved(*tensors: Tensor) -> int:
    """Bytes of the tensors, each storage once: mu's gradient of a sample is the upstream tensor itself."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def rows(
    operator: Operator, case: Case, rounds: int, names: Sequence[str] = CONTENDERS, modes: Sequence[str] = MODES
) -> Iterator[dict[str, Any]]:
    """Checks and measures one case: a row of results for each of its modes.

    In 0 rounds nothing is measured, and only compiled code is run: it is in the compiler's cache from then on.
    """
    with threads(case.threads):
        for mode in modes:
            if mode == "forward" or operator.differentiable:
                torch._dynamo.reset()
                with torch.set_grad_enabled(mode != "forward"):
                    yield _row(operator, case, mode, rounds, names)


def _row(operator: Operator, case: Case, mode: str, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    with timing.device:
        leaves = operator.leaves(case)
    wanted = operator.wanted(leaves) if mode != "forward" else ()
    with torch.no_grad():
        outputs = forward(operator, operator.ours)(*leaves)
    upstream = torch.randn_like(outputs[0]) if wanted and operator.noise else None
    plain = list(leaves)
    for i in wanted:
        leaves[i] = leaves[i].clone().requires_grad_()

    contenders = {}
    for name, step in steps(operator, mode, wanted, upstream).items():
        if name in names:
            contenders[name] = partial(step, *(plain if name == ONE_GRAPH else leaves))  # which asks for gradients
    if rounds == 0:
        for name in {"compile", ONE_GRAPH} & set(contenders):
            contenders[name]()
        return {}
    exact = None
    for name, contender in contenders.items():
        result = contender()
        if exact is None or operator.noise:
            exact = expected(operator, mode, leaves, upstream, result[0])
        tolerance = max(TOLERANCE[case.dtype], 0.0 if name == "fastvae" else operator.usual_error)
        all_close(f"{operator.name} {mode} {name}", result, exact, tolerance)
    # The results of the last contender: those that every one must write.
    gradients = result[len(outputs) :]
    bytes_moved = moved(*leaves, *outputs, *gradients, *([] if upstream is None else [upstream]))
    measured = measure(contenders, rounds)
    if timing.device.type == "cuda" and leaves[0].numel() < LARGE:  # the host takes longer: what the GPU takes
        for name, contender in contenders.items():
            measured[name]["device"] = sum(time for _, _, time in timing.launches(contender)) * 1e-6
    return {
        "operator": operator.name,
        "variant": operator.variant,
        "shape": [*([case.samples] if case.samples else []), *case.shape],
        "dtypes": list(dict.fromkeys(str(t.dtype).removeprefix("torch.") for t in leaves)),
        "packed": case.packed,
        "threads": torch.get_num_threads(),
        "mode": mode,
        "readme": case.readme,
        "bytes": bytes_moved,
        "contenders": measured,
    }


def resized(operator: Operator, case: Case, elements: int | None) -> Case:
    """The case with about so many elements, where it is a large one."""
    batch, *event = case.shape
    each = math.prod(event) * (case.samples or operator.samples)
    if elements is None or batch * each < LARGE:
        return case
    rows = max(1, round(elements / each))
    return replace(case, shape=(rows if rows < 64 else rows // 64 * 64, *event), readme=True)  # as batches are


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ops", description=__doc__.splitlines()[0])
    names = list(dict.fromkeys(o.name for o in OPERATORS))
    parser.add_argument("--only", nargs="+", choices=[*names, "isa"], help="operators, or the instruction sets")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the logits and moments")
    parser.add_argument("--threads", type=int, help="instead of each case's own")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--elements", type=int, help=f"of cases that have {LARGE} or more: their rows become as many")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=15, help="0: compile, and measure nothing")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th row, from I")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()

    timing.device = torch.device(arguments.device)
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": machine(), "copy_bytes_per_second": {}, "rows": [], "isa": []}
    copies = result["copy_bytes_per_second"]
    print(table.describe(result["machine"]))
    print(table.text(table.OPS_COLUMNS, table.OPS_COLUMNS))
    every = (
        (
            operator,
            resized(operator, replace(case, threads=arguments.threads or case.threads), arguments.elements),
            mode,
        )
        for operator in OPERATORS
        if operator.name in (arguments.only or names)
        for case in operator.cases
        if arguments.dtype in (None, str(case.dtype).removeprefix("torch."))
        and not (timing.device.type == "cuda" and case.threads)  # of the CPU
        for mode in MODES
    )
    chosen = list(dict.fromkeys(every))  # cases that differ in their rows alone are one with --elements
    failed = 0
    first, step = arguments.part
    for operator, case, mode in chosen[first::step]:
        try:
            for row in rows(operator, case, arguments.rounds, arguments.contenders, (mode,)):
                if not arguments.rounds:
                    continue
                if str(row["threads"]) not in copies:
                    with threads(row["threads"]):
                        copies[str(row["threads"])] = copy_bandwidth()
                result["rows"].append(row)
                print(table.text(table.ops_cells(row, copies), table.OPS_COLUMNS), flush=True)
                alone = {n: t["device"] * 1e6 for n, t in row["contenders"].items() if "device" in t}
                if alone:
                    print(f"  microseconds of the GPU alone: {', '.join(f'{n} {t:.1f}' for n, t in alone.items())}")
                save(arguments.json, result)
        except Exception as error:  # the next row is measured whatever became of this one
            failed += 1
            print(f"{operator.name} {operator.variant} {list(case.shape)} {mode} failed: {error}", flush=True)
        if timing.device.type == "cuda":
            torch.cuda.empty_cache()
    if timing.device.type == "cpu" and "isa" in (arguments.only or ["isa"]):
        result["isa"] = isa.compare_instruction_sets(arguments.rounds)
        columns = table.isa_columns(result["isa"])
        print("\n" + table.text(columns, columns))
        for row in result["isa"]:
            print(table.text(table.isa_cells(row), columns))
        save(arguments.json, result)
    if failed:
        raise SystemExit(f"{failed} rows failed")


if __name__ == "__main__":
    main()
