"""rlal_fast trains a convolutional network and prunes it at the same time.

The public API, in the order in which data walks through it. Names are loaded on first use, so that
`import rlal_fast` costs nothing and a run's folder is claimed before torch is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlal_fast._version import __version__
from rlal_fast.errors import InputError, RunStopped

if TYPE_CHECKING:
    from rlal_fast import data, kernels, models
    from rlal_fast.compaction import compact, load, save
    from rlal_fast.data import ImageData
    from rlal_fast.evaluator import Evaluator
    from rlal_fast.flops import Budget, count_macs
    from rlal_fast.graph import PrunableGraph
    from rlal_fast.joint_config import JointConfig
    from rlal_fast.kernels import build_info
    from rlal_fast.subnet import Subnet
    from rlal_fast.trainer import JointResult, JointTrainer

_HOMES = {
    "PrunableGraph": "rlal_fast.graph",
    "Subnet": "rlal_fast.subnet",
    "Evaluator": "rlal_fast.evaluator",
    "Budget": "rlal_fast.flops",
    "count_macs": "rlal_fast.flops",
    "ImageData": "rlal_fast.data",
    "JointConfig": "rlal_fast.joint_config",
    "JointResult": "rlal_fast.trainer",
    "JointTrainer": "rlal_fast.trainer",
    "compact": "rlal_fast.compaction",
    "save": "rlal_fast.compaction",
    "load": "rlal_fast.compaction",
    "build_info": "rlal_fast.kernels",
}
_MODULES = ("data", "kernels", "models")

__all__ = [
    "Budget",
    "Evaluator",
    "ImageData",
    "InputError",
    "JointConfig",
    "JointResult",
    "JointTrainer",
    "PrunableGraph",
    "RunStopped",
    "Subnet",
    "__version__",
    "build_info",
    "compact",
    "count_macs",
    "data",
    "kernels",
    "load",
    "models",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"rlal_fast.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rlal_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
