"""Native operations; `reference` holds the pure-torch twin of each, its specification."""

from __future__ import annotations

from rlal_fast.kernels import reference
from rlal_fast.kernels.masked_conv import masked_conv2d
from rlal_fast.kernels.native import build_info

__all__ = ["build_info", "masked_conv2d", "reference"]
