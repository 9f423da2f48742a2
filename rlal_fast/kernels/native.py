"""The compiled extension `_rlal_fast`: loaded on first use, and only if it is the one of this
version.

The extension is a top-level module, so that a source checkout without a build cannot shadow an
installed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlal_fast._version import __version__
from rlal_fast.errors import InputError

_INSTALL = "run `pip install .` in the checkout (needs a C++17 compiler)"


class CostModel(Protocol):
    """`csrc/core/cost.h`."""

    def count(self, widths: NDArray[np.int64]) -> NDArray[np.int64]: ...

    def bounds(
        self,
        widths: NDArray[np.int64],
        group: int,
        min_widths: NDArray[np.int64],
        round_to: int,
        budget: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


class Program(Protocol):
    """`csrc/core/program.h`."""

    isa: str

    def set_weights(
        self,
        op: int,
        weights: NDArray[np.float32],
        bias: NDArray[np.float32],
        scale: NDArray[np.float64] | None = None,
        threads: int = 1,
    ) -> None: ...

    def set_norm(
        self, op: int, weight: NDArray[np.float32], bias: NDArray[np.float32], eps: float
    ) -> None: ...


class Images(Protocol):
    """Images in a program's layout (`csrc/core/evaluate.h`)."""

    def correct(
        self,
        labels: NDArray[np.int64],
        masks: NDArray[np.uint8],
        threads: int,
        recalibration: Images | None = None,
        first: int = 0,
        end: int | None = None,
    ) -> NDArray[np.int64]: ...

    def logits(
        self, masks: NDArray[np.uint8], threads: int, recalibration: Images | None = None
    ) -> NDArray[np.float32]: ...

    def profile(self, masks: NDArray[np.uint8]) -> list[float]: ...


_Program = Program  # inside Extension that name is the constructor


class Extension(Protocol):
    """What `csrc/bindings.cpp` defines."""

    def version(self) -> str: ...
    def build_info(self) -> dict[str, Any]: ...
    def CostModel(self, rows: Sequence[Any], full_widths: NDArray[np.int64]) -> CostModel: ...
    def Program(
        self, tensors: Sequence[dict[str, Any]], ops: Sequence[dict[str, Any]], classes: int
    ) -> _Program: ...
    def Images(self, program: _Program, images: NDArray[np.float32], threads: int) -> Images: ...
    def CudaProgram(
        self,
        tensors: Sequence[dict[str, Any]],
        ops: Sequence[dict[str, Any]],
        classes: int,
        norm_eps: Sequence[float],
    ) -> Any: ...
    def CudaMaskedConv(self, *args: Any) -> Any: ...
    def cuda_emulated(self) -> bool: ...
    def cuda_device_count(self) -> int: ...
    def cuda_properties(self, device: int) -> dict[str, Any]: ...
    def masked_conv2d(self, *args: Any) -> NDArray[np.float32]: ...
    def fma_peak(self) -> float: ...


def installed() -> bool:
    """Whether there is an extension at all; a broken or stale one is an error, not an absence."""
    return find_spec("_rlal_fast") is not None


@cache
def extension() -> Extension:
    """The extension module.

    Raises:
        ImportError: it is not installed, or it was built from another version of the sources; the
            message says what to do.
        InputError: the environment variable RLAL_FAST_ISA names a set that cannot run here.
    """
    try:
        module: Any = import_module("_rlal_fast")
    except ImportError as error:
        raise ImportError(
            f"rlal_fast's compiled part cannot be loaded ({error}): {_INSTALL}"
        ) from error
    if module.version() != __version__:
        raise ImportError(
            f"rlal_fast is version {__version__}, its compiled part {module.version()}: {_INSTALL}"
        )
    loaded: Extension = module
    try:
        loaded.build_info()
    except ValueError as error:  # RLAL_FAST_ISA
        raise InputError(str(error)) from error
    return loaded


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets, the one chosen, and whether there is CUDA code.

    Raises:
        ImportError: there is no extension.
        InputError: the environment variable RLAL_FAST_ISA names a set that cannot run here.
    """
    return extension().build_info()
