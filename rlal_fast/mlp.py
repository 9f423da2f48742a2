"""The small fully connected networks of the agent and of the environment model.

Their input is [x, z], and z (method.md §6) is one vector per epoch, not one per sample. So the
first layer takes z's product once per epoch of a minibatch and hands it to that epoch's samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlal_fast.errors import InputError


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread inside the block and restore the caller's number after it.

    These networks are tiny: on a busy machine two threads were seen 40x slower (method.md §8). One
    thread also makes their sums independent of the machine's number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Condition(NamedTuple):
    """The z of every sample of a minibatch, each distinct z held once."""

    z: Tensor  # [E, Z]
    row: Tensor | None  # int64 [B]: sample b has z[row[b]]; None: E is 1 and every sample has z[0]


def condition_on_epochs(z_by_epoch: Tensor, epoch: Tensor) -> Condition:
    """Pick the z of each sample's epoch.

    Args:
        z_by_epoch: [E, Z], row e is z of epoch e.
        epoch: int64 [B], 0-based.

    Raises:
        InputError: an epoch has no row in `z_by_epoch`.
    """
    epochs, row = torch.unique(epoch, return_inverse=True)
    if epochs.numel() and int(epochs[-1]) >= z_by_epoch.shape[0]:
        raise InputError(
            f"the replay holds episodes of epoch {int(epochs[-1])}, but z is known for "
            f"{z_by_epoch.shape[0]} epochs only: call begin_epoch() before each epoch's episodes"
        )
    return Condition(z_by_epoch[epochs], row)


def uniform_fan_in(tensor: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """Fill `tensor` from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default for linear layers."""
    bound = 1.0 / math.sqrt(fan_in)
    with torch.no_grad():
        tensor.uniform_(-bound, bound, generator=generator)


class MLP(nn.Module):
    """`copies` independent ReLU networks [x, z] -> hidden -> outputs, run as batched products.

    Args:
        inputs: size X of x.
        z_size: size Z of z; 0 for networks without z.
        hidden: sizes of the hidden layers, at least one.
        outputs: size O of the result.
        generator: source of the initial weights; the global generator is not touched.
        copies: number K of networks that read the same input.
    """

    def __init__(
        self,
        inputs: int,
        z_size: int,
        hidden: tuple[int, ...],
        outputs: int,
        generator: torch.Generator,
        *,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList()  # [K, in, out] each
        self.biases = nn.ParameterList()  # [K, 1, out] each
        sizes = (inputs, *hidden, outputs)
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            scale = fan_in + z_size if layer == 0 else fan_in
            weight = torch.empty(copies, fan_in, fan_out)
            bias = torch.empty(copies, 1, fan_out)
            uniform_fan_in(weight, scale, generator)
            uniform_fan_in(bias, scale, generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        self.z_weight: nn.Parameter | None = None  # [K, Z, hidden[0]]
        if z_size:
            z_weight = torch.empty(copies, z_size, hidden[0])
            uniform_fan_in(z_weight, inputs + z_size, generator)
            self.z_weight = nn.Parameter(z_weight)

    def forward(self, x: Tensor, condition: Condition | None) -> Tensor:
        """Outputs [K, B, O] for x [B, X]; `condition` is None exactly when z_size is 0.

        Raises:
            InputError: z is given to networks without z, or is missing.
        """
        if (condition is None) != (self.z_weight is None):
            raise InputError(
                "z was given to a network without z (or the reverse): pass z exactly when the "
                "network was made with z_size > 0"
            )
        copies = self.weights[0].shape[0]
        offset: Tensor = self.biases[0]  # [K, 1, H]
        if condition is not None and self.z_weight is not None:
            z = condition.z.expand(copies, *condition.z.shape)
            offset = torch.baddbmm(offset, z, self.z_weight)  # [K, E, H]
            if condition.row is not None:
                offset = offset.index_select(1, condition.row)  # [K, B, H]
        h = torch.baddbmm(offset, x.expand(copies, *x.shape), self.weights[0])
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = torch.baddbmm(bias, functional.relu(h), weight)
        return h
