"""The soft penalty that aligns the weights with the structure (RLAL Eq. 10, method.md §7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlal_fast.subnet import Subnet

_EPSILON = 1e-12  # under the root: the norm of a channel that is exactly zero has no gradient


@dataclass(frozen=True)
class _Rows:
    parameter: Tensor
    rows: Tensor  # int64 [channels * m]


class AlignmentPenalty:
    """R(W, structure): the sum over groups, over channels c not kept, of ||W_out[c]||_2.

    W_out[c] is everything that produces channel c: its filters (depthwise ones too), their bias,
    and batch-norm scale and shift. It only pushes: nothing is masked, all weights stay trainable.

    Args:
        model: the network being trained; its parameters are read at each call.
        structure: the sub-network to align to, of a graph traced from `model`.
    """

    def __init__(self, model: nn.Module, structure: Subnet) -> None:
        parameters = dict(model.named_parameters())
        self._channels: list[tuple[int, list[_Rows]]] = []
        for group, kept in zip(structure.graph.groups, structure.kept, strict=True):
            removed = np.setdiff1d(np.arange(group.width), kept)
            if not len(removed):
                continue
            rows = [
                _Rows(parameters[m.tensor], torch.from_numpy(m.rows[removed].reshape(-1)))
                for m in group.members
                if m.tensor in parameters
            ]
            self._channels.append((len(removed), rows))

    def __call__(self) -> Tensor:
        """The penalty, a differentiable scalar; 0 where the structure keeps everything."""
        total = torch.zeros(())
        for count, members in self._channels:
            squares = [
                m.parameter.index_select(0, m.rows.to(m.parameter.device))
                .reshape(count, -1)
                .square()
                .sum(1)
                for m in members
            ]
            total = total + (torch.stack(squares).sum(0) + _EPSILON).sqrt().sum()
        return total
