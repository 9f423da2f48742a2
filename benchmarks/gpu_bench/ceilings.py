"""What the device can do at best, measured: copying, and multiplying matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from gpu_bench.clocks import device_seconds
from gpu_bench.session import Session

_TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True)
class Ceilings:
    """Rates of the device.

    Attributes:
        bytes_per_second: of a copy within it, bytes read and bytes written both counted.
        flops: operations a second of a product of two random square matrices, by precision.
        size: of these matrices.
    """

    bytes_per_second: float
    flops: dict[str, float]
    size: int

    def floor(self, moved: float, operations: float, precision: str) -> float:
        """Seconds that nothing which moves and computes so much can go below."""
        return max(moved / self.bytes_per_second, operations / self.flops[precision])


def measure(session: Session) -> Ceilings:
    device = session.device
    size, megabytes, calls = (64, 1, 1) if session.emulated else (8192, 4096, 10)
    source = torch.randn(megabytes << 18, device=device)
    target = torch.empty_like(source)
    seconds = _best(session, partial(target.copy_, source), calls)
    moved = 2.0 * source.numel() * source.element_size()
    flops = {}
    for precision, kind in _TYPES.items():
        left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        slow = precision == "fp32"
        with tf32(precision == "tf32"):
            taken = _best(session, partial(torch.matmul, left, right), 2 if slow else calls)
        flops[precision] = 2.0 * size**3 / taken
    return Ceilings(moved / seconds, flops, size)


def _best(session: Session, work: Callable[[], object], calls: int) -> float:
    device_seconds(session.device, work)  # loads the kernel
    return median(device_seconds(session.device, work, calls) for _ in range(5))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether PyTorch's products of float32 may round their operands; off by default here."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
