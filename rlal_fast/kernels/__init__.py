"""Native operations, each with a pure-torch twin of the same name and signature in `reference`."""

from __future__ import annotations

from rlal_fast.kernels.masked_conv import masked_conv2d
from rlal_fast.kernels.native import build_info

__all__ = ["build_info", "masked_conv2d"]
