"""What a figure must be read with: the machine, the versions and the commit that gave it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import rlal_fast

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Plain data for the head of a result file."""
    return {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rlal_fast": rlal_fast.build_info(),
        "commit": _commit(),
        **({"gpu": describe_gpu()} if torch.cuda.is_available() else {}),
    }


def describe_gpu() -> dict[str, Any]:
    """Of the current CUDA device."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "name": found.name,
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "capability": f"{found.major}.{found.minor}",
        "driver": (_said(query).splitlines() or ["unknown"])[0],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def write_result(name: str | Path, result: dict[str, Any]) -> Path:
    """Writes benchmarks/results/<name>.json, or the file of a path."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json" if isinstance(name, str) else name
    path.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")
    return path


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """RLAL_FAST_COMMIT names it for a copy of the sources without their history."""
    if given := os.environ.get("RLAL_FAST_COMMIT"):
        return given
    # the checkout may belong to another user than the one that measures
    trusted = ["git", "-c", f"safe.directory={ROOT}"]
    return _said([*trusted, "describe", "--always", "--dirty", "--abbrev=12"]) or "unknown"


def _said(command: list[str]) -> str:
    """What a command prints; nothing if there is no such command."""
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip()
