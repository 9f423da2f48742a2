"""Where the tests of the CUDA kernels run: on a GPU, or on the emulator of an emulated build.

A module that imports this is skipped where they can run on neither.
"""

from __future__ import annotations

import pytest
import torch

from rlal_fast.kernels import cuda

PRECISIONS = {"fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 4e-2}
"""With the largest error of a result, relative to the largest one."""

if cuda.unusable() is not None:
    reason = f"the CUDA kernels cannot run here: {cuda.unusable()}"
    pytest.skip(reason, allow_module_level=True)
DEVICE = cuda.device_for(torch.empty(0))
EMULATED = cuda.emulated()
