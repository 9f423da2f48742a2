"""The soft penalty that aligns the weights with the structure (RLAL Eq. 10, method.md §7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlal_fast.graph import Group, PrunableGraph
from rlal_fast.subnet import Subnet

_PUSH = 10.0  # beta times steps: the paper's 1e-4 over about 100,000 steps
_EPSILON = 1e-12  # under the root: the norm of a channel that is exactly zero has no gradient


def default_beta(steps: int) -> float:
    """beta for a training of so many steps, that pushes as far as the paper's does in its own.

    The penalty's gradient has the same length whatever is left of a channel, so how far a channel
    shrinks follows from beta times the steps (and the learning rate). 300 epochs of CIFAR-10 at 128
    images a step are 105,600 of them, for which RLAL has 1e-4. ResNet-20 on 9,000 images for 20
    epochs (1,420 steps), half of the FLOPs pruned: as cut 16.4 % at 1e-4, 71.8 % at 1e-2 (seed 0).
    """
    return _PUSH / max(steps, 1)


def beta_in(epoch: int, epochs: int, beta: float, growth: float) -> float:
    """beta of one epoch (from 0) of `epochs`; its mean over all of them is `beta`.

    It grows as the middle of the epoch to the power of `growth`: the weights are free while the
    first structures, found on weights that know little yet, come and go, and follow the later ones.
    0: the same in each epoch, as in RLAL. A penalty that grows while the network is trained is
    that of Growing Regularization (Wang et al., ICLR 2021).
    """
    shares = [((e + 0.5) / epochs) ** growth for e in range(epochs)]
    return beta * (shares[epoch] / (sum(shares) / epochs))


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


class MaskedAlignment:
    """AlignmentPenalty as a few kernels over all channels, for a GPU: nothing waits, shapes stay.

    Sum over groups and channels of mask_c * sqrt(sum of squares of W_out[c] + epsilon); the mask is
    1 for what the structure removes. `align_to` overwrites the mask, so that a captured step sees
    another structure without being captured again. Parameters of one shape are squared and summed
    together, and their sums reach their channels by one gather.

    Args:
        model: the network being trained, on its final device.
        graph: its graph, of at least one group.
    """

    def __init__(self, model: nn.Module, graph: PrunableGraph) -> None:
        self._graph = graph
        parameters = dict(model.named_parameters())
        members = [m for group in graph.groups for m in group.members if m.tensor in parameters]
        names = dict.fromkeys(m.tensor for m in members)
        self._stacks: dict[tuple[int, ...], list[Tensor]] = {}
        for name in names:
            self._stacks.setdefault(tuple(parameters[name].shape), []).append(parameters[name])
        first = self._first_sums()
        channels = [
            _places(group, {n: first[id(parameters[n])] for n in names}) for group in graph.groups
        ]
        most = max((len(place) for group in channels for place in group), default=1)
        nothing = sum(len(parameters[name]) for name in names)  # the zero behind all sums
        table = [place + [nothing] * (most - len(place)) for group in channels for place in group]
        device = next((p.device for p in parameters.values()), torch.device("cpu"))
        self._table = torch.tensor(table, dtype=torch.int64).reshape(-1, most).to(device)
        self._mask = torch.zeros(len(table), device=device)
        self._zero = torch.zeros(1, device=device)

    def align_to(self, structure: Subnet | None) -> None:
        """From now on pushes what `structure` removes; None: nothing."""
        masks = [torch.zeros(group.width) for group in self._graph.groups]
        if structure is not None:
            for mask, kept in zip(masks, structure.kept, strict=True):
                mask.fill_(1)[torch.from_numpy(kept)] = 0
        self._mask.copy_(torch.cat(masks))

    def __call__(self) -> Tensor:
        """The penalty, a differentiable scalar on the model's device."""
        sums = [
            torch.stack([_by_row(p) for p in stack]).square().sum(2).reshape(-1)
            for stack in self._stacks.values()
        ]
        of_rows = torch.cat([*sums, self._zero])
        squares = of_rows.index_select(0, self._table.reshape(-1)).view(self._table.shape).sum(1)
        return ((squares + _EPSILON).sqrt() * self._mask).sum()

    def _first_sums(self) -> dict[int, int]:
        """For each parameter (by id), where the sums of its rows begin."""
        first, count = {}, 0
        for stack in self._stacks.values():
            for parameter in stack:
                first[id(parameter)] = count
                count += len(parameter)
        return first


def _places(group: Group, first: dict[str, int]) -> list[list[int]]:
    """For each channel of a group, where the sums of its rows are."""
    members = [(first[m.tensor], m.rows.tolist()) for m in group.members if m.tensor in first]
    return [
        [start + row for start, rows in members for row in rows[channel]]
        for channel in range(group.width)
    ]


def _by_row(parameter: Tensor) -> Tensor:
    """[C, ...] as [C, the rest] in the order of its memory: a view in channels-last, too."""
    if parameter.dim() == 4 and not parameter.is_contiguous():
        parameter = parameter.permute(0, 2, 3, 1)
    return parameter.flatten(1) if parameter.dim() > 1 else parameter[:, None]
