"""What a figure must be read with: the machine, the versions and the commit that gave it."""

from __future__ import annotations

import json
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
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Writes benchmarks/results/<name>.json."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")
    return path


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()
