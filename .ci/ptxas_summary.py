"""Reads what `nvcc -Xptxas -v` said; prints registers and spills of each kernel, fails on spills.

Usage: python .ci/ptxas_summary.py BUILD_LOG
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

COMPILING = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
NAME = re.compile(r"(\w+)(<[^(]*>)?\(")


def demangled(symbols: list[str]) -> dict[str, str]:
    """Readable names: conv_kernel<Fp16, 8>, without namespaces and parameters."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout
    names = {}
    for symbol, line in zip(symbols, text.splitlines(), strict=True):
        plain = line.replace("rlal::cuda::", "").replace("(anonymous namespace)::", "")
        found = NAME.search(re.sub(r"_GLOBAL__N_\w+::", "", plain))
        names[symbol] = found.group(1) + (found.group(2) or "") if found else plain
    return names


def main() -> None:
    stacks: dict[tuple[str, str], tuple[int, ...]] = {}
    registers: dict[tuple[str, str], int] = {}
    kernel = ("", "")
    for line in Path(sys.argv[1]).read_text().splitlines():
        if found := COMPILING.search(line):
            kernel = (found.group(1), found.group(2))
        elif found := SPILLS.search(line):
            stacks.setdefault(kernel, tuple(map(int, found.groups())))
        elif found := REGISTERS.search(line):
            registers.setdefault(kernel, int(found.group(1)))
    if not registers:
        sys.exit(f"{sys.argv[1]} holds nothing of ptxas: was it built with -Xptxas=-v?")
    names = demangled([symbol for symbol, _ in registers])
    rows: dict[str, list[str]] = defaultdict(list)
    spilled = []
    for (symbol, target), count in sorted(registers.items(), key=lambda item: item[0][1]):
        frame, stores, loads = stacks[symbol, target]
        rows[names[symbol]].append(f"{target} {count}")
        if stores or loads or frame:
            spilled.append(
                f"{names[symbol]} on {target}: {frame} bytes of stack, {stores} bytes of spill "
                f"stores, {loads} of spill loads"
            )
    print("registers of each kernel:")
    for name in sorted(rows):
        print(f"  {name:44} {', '.join(rows[name])}")
    if spilled:
        sys.exit("local memory is slow; these kernels use it:\n  " + "\n  ".join(spilled))
    print(f"no spills and no stack frames in {len(registers)} compilations")


if __name__ == "__main__":
    main()
