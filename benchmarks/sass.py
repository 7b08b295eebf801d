"""Instructions in the loops of the CUDA kernels, read from the machine code: no GPU is needed.

    python -m benchmarks.sass OBJECT ... [--kernel REGEX] [--dump]

The objects are those of the build folder (``.../kernels_CUDA.dir/...o``). The disassembler is ``cuobjdump`` of the CUDA
toolkit, or Triton's. A loop extends from the target of a backward branch to that branch. The longest loop that loads
from memory is what a thread repeats for each of its vectors.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.]*)(.*?);")


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str


def disassembler() -> str:
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin:
        found = str(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump")
    if found is None or not Path(found).exists():
        raise SystemExit("no cuobjdump: it comes with the CUDA toolkit and with Triton")
    return found


def functions(file: Path) -> Iterator[tuple[str, list[Instruction]]]:
    """Names, demangled where c++filt is, and instructions."""
    text = subprocess.run([disassembler(), "-sass", file], capture_output=True, text=True, check=True).stdout
    for part in text.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        code = [Instruction(int(a, 16), n, o) for a, n, o in INSTRUCTION.findall(body)]
        if shutil.which("c++filt"):
            name = subprocess.run(["c++filt", name.strip()], capture_output=True, text=True, check=True).stdout
        yield name.strip().replace("fastvae::", "").replace("(anonymous namespace)::", ""), code


def main_loop(code: list[Instruction]) -> list[Instruction]:
    """The longest loop with a load from global memory and no loop within."""
    loops = []
    for branch in code:
        target = re.search(r"0x([0-9a-f]+)", branch.operands) if branch.name.startswith("BRA") else None
        if target and int(target[1], 16) < branch.address:
            loops.append([i for i in code if int(target[1], 16) <= i.address <= branch.address])
    reading = [loop for loop in loops if any(i.name.startswith("LDG") for i in loop)]
    innermost = [a for a in reading if not any(b is not a and set(b) < set(a) for b in reading)]
    return max(innermost, key=len, default=[])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass", description=__doc__.splitlines()[0])
    parser.add_argument("objects", nargs="+", type=Path)
    parser.add_argument("--kernel", default="walk", help="regular expression of their names")
    parser.add_argument("--dump", action="store_true", help="print the loops too")
    arguments = parser.parse_args()
    for file in arguments.objects:
        for name, code in functions(file):
            if not re.search(arguments.kernel, name):
                continue
            loop = main_loop(code)
            kinds = Counter(i.name.split(".")[0] for i in loop)
            print(f"{len(code)} in all, {len(loop)} in the loop: {dict(kinds.most_common(12))}\n  {name[:230]}")
            if arguments.dump:
                for i in loop:
                    print(f"    {i.name}{i.operands}")


if __name__ == "__main__":
    main()
