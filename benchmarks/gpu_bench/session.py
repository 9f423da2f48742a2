"""What all sections share: the device, the choices of the command line, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rlal_fast.kernels import cuda


class LostDeviceError(Exception):
    """The device answers no more in this process; only a new one can go on.

    Attributes:
        what: was running, "section" or "section/system".
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} lost the device: {why}")
        self.what = what


@dataclass
class Session:
    """A run of the benchmark.

    Attributes:
        device: where the kernels work; the CPU where they are emulated.
        quick: few turns.
        peers: keys of `peers.GPU_ENTRIES`.
        failures: sentences; any of them makes the exit status 1.
        lost: what lost the device in earlier attempts, and is not tried again.
    """

    device: torch.device
    quick: bool
    peers: list[str]
    failures: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def emulated(self) -> bool:
        return self.device.type == "cpu"

    def check_device(self, what: str) -> None:
        """Raises LostDeviceError where a failed kernel has left the process without its device."""
        if self.emulated:
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.zeros(1, device=self.device).item()
        except RuntimeError as error:
            raise LostDeviceError(what, self.described(error)) from error

    @staticmethod
    def described(error: BaseException) -> str:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:300]}"


def device_here() -> torch.device | str:
    """Where the CUDA kernels run, or why they cannot, as half a sentence."""
    reason = cuda.unusable()
    if reason is not None:
        return reason
    if cuda.emulated():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
