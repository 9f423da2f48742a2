"""Holding every system to one instruction set: environment variables, read as libraries load."""

from __future__ import annotations

import os
import sys

_VARIABLES = {
    "avx2": {
        "RLAL_FAST_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels, and what Inductor generates
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # PyTorch's convolutions and OpenVINO
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
ISAS = tuple(_VARIABLES)


def hold_to(isa: str | None) -> None:
    """Starts this program again with the variables of `isa`, unless it has them."""
    variables = _VARIABLES[isa] if isa else {}
    if any(os.environ.get(name) != value for name, value in variables.items()):
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **variables})
