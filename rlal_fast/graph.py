"""PrunableGraph: a traced network as index sets that flow along its edges.

Every channel of every activation carries the number of its *channel class*: channels that must be
kept or removed together share one. Convolutions make new classes; batch norms, pools and depthwise
convolutions pass them on; an addition unites its operands' classes; flattening repeats them. A
*group* is the set of classes that occur in exactly the same activations, equally often: only then
does the cost depend on the group's width alone, so the exact integer budget of method.md §4 is
possible for any topology, including option A shortcuts that tie 16 of 64 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from rlal_fast.errors import InputError
from rlal_fast.flops import ChannelCount, CostTable, LayerCost
from rlal_fast.importance import GroupWeights, criterion
from rlal_fast.subnet import Subnet, check_kept, check_widths, most_important
from rlal_fast.tracing import Node, trace

IntArray = NDArray[np.int64]
_LAYERS = ("conv", "linear")


@dataclass(frozen=True, eq=False)
class Member:
    """Rows of one stored tensor that belong to the channels of a group.

    Attributes:
        tensor: name in the model's state dict.
        kind: "filter" (dense convolution or linear), "depthwise", "bias", "scale" or "shift".
        rows: int64 [C_g, m]; row indices of each channel (m > 1 only where channels are tied
            within a layer).
    """

    tensor: str
    kind: str
    rows: IntArray


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that the agent keeps or removes by one action.

    Attributes:
        name: the first layer that produces them.
        width: full width C_g.
        classes: int64 [C_g], their channel classes.
        layers: the nodes (convolution, depthwise, linear) that produce them.
        members: the weights that produce them.
    """

    index: int
    name: str
    width: int
    classes: IntArray
    layers: tuple[Node, ...]
    members: tuple[Member, ...]


class PrunableGraph:
    """What the pruner knows of a network. Make one with `trace`.

    Attributes:
        model: the network traced; `subnet` ranks by its current weights.
        nodes: its operations in order.
        positions: for each node, int64 [channels]: the channel class of each output channel.
        groups: the prunable groups, in the order in which the agent walks.
        full_widths: int64 [G].
        cost: MACs as a function of the widths.
    """

    def __init__(
        self,
        model: nn.Module,
        nodes: tuple[Node, ...],
        coupling: str,
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> None:
        self.model, self.nodes = model, nodes
        self.positions = _channel_classes(nodes)
        self.class_count = 1 + max(int(p.max()) for p in self.positions)
        self.groups = tuple(_groups(nodes, self.positions, coupling, include, exclude))
        self.full_widths: IntArray = np.array([g.width for g in self.groups], dtype=np.int64)
        self.class_group: IntArray = np.full(self.class_count, -1, dtype=np.int64)
        for group in self.groups:
            self.class_group[group.classes] = group.index
        self.cost = CostTable(tuple(self._layer_costs()), self.full_widths)

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example_input: Tensor,
        *,
        groups: str = "internal",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> PrunableGraph:
        """Traces a network.

        Args:
            model: any module made of the operations of `tracing.py`; its weights may change later.
            example_input: float images [N >= 1, C, H, W]; only the shape of one image matters.
            groups: "internal" (groups that no addition ties; default) or "all".
            include, exclude: shell patterns on group names, e.g. "layer1.*"; empty include means
                all.

        Raises:
            InputError: the network cannot be traced or contains something that cannot be pruned
                yet.
        """
        if groups not in ("internal", "all"):
            raise InputError(f"groups must be 'internal' or 'all', not {groups!r}")
        return cls(model, trace(model, example_input), groups, include, exclude)

    # -- sub-networks ------------------------------------------------------------------------------

    def subnet(self, widths: ArrayLike, importance: str = "l1") -> Subnet:
        """The sub-network of the most important channels under the model's current weights.

        Args:
            widths: integers [G] in 1..C_g.
            importance: a criterion of `importance.py`.

        Raises:
            InputError: wrong widths or an unknown criterion.
        """
        return self.subnets(np.asarray(widths)[None], importance)[0]

    def subnets(self, widths: ArrayLike, importance: str = "l1") -> list[Subnet]:
        """`subnet` for many width vectors [S, G]; the channels are ranked once."""
        checked = check_widths(widths, self.full_widths)
        if checked.ndim != 2:
            raise InputError(
                f"widths of a sub-network are one row, these have {checked.ndim - 1} axes"
            )
        scores = self.importance(importance)
        return [
            Subnet(self, tuple(most_important(s, int(w)) for s, w in zip(scores, row, strict=True)))
            for row in checked
        ]

    def full_subnet(self) -> Subnet:
        """The whole network as a sub-network."""
        return Subnet(self, tuple(np.arange(width, dtype=np.int64) for width in self.full_widths))

    def subnet_of(self, kept: list[ArrayLike]) -> Subnet:
        """A sub-network of given kept channels, e.g. read from a file."""
        return Subnet(self, check_kept(kept, self.full_widths))

    def importance(self, name: str = "l1") -> list[NDArray[np.float64]]:
        """Scores [C_g] of every group under the model's current weights."""
        rank, state = criterion(name), self.model.state_dict()
        scores = [rank(_weights(group, state)) for group in self.groups]
        if not scores:
            return []
        together = torch.cat(scores).cpu()  # one wait for a GPU, not one for each group
        return [part.numpy() for part in together.split([len(part) for part in scores])]

    def kept_classes(self, subnet: Subnet) -> NDArray[np.bool_]:
        """Which channel classes a sub-network keeps, bool [class_count]; fixed ones always stay."""
        kept = self.class_group < 0
        for group, indices in zip(self.groups, subnet.kept, strict=True):
            kept[group.classes[indices]] = True
        return kept

    def kept_positions(self, subnet: Subnet) -> list[IntArray]:
        """For each node, the channels of its full output that the sub-network keeps, ascending."""
        kept = self.kept_classes(subnet)
        return [np.flatnonzero(kept[positions]) for positions in self.positions]

    # -- cost --------------------------------------------------------------------------------------

    def _layer_costs(self) -> list[LayerCost]:
        costs = []
        for node in self.nodes:
            if node.op not in _LAYERS:
                continue
            depthwise = node.attrs.get("depthwise", False)
            area = int(np.prod(node.attrs.get("kernel", (1,)))) * int(np.prod(node.shape[1:]))
            inputs = ChannelCount(1, ()) if depthwise else self._channel_count(node.inputs[0])
            costs.append(LayerCost(node.name, area, self._channel_count(node.index), inputs))
        return costs

    def _channel_count(self, node: int) -> ChannelCount:
        groups = self.class_group[self.positions[node]]
        terms = []
        for group in np.unique(groups[groups >= 0]):
            times, rest = divmod(int((groups == group).sum()), int(self.full_widths[group]))
            assert rest == 0  # by the definition of a group
            terms.append((int(group), times))
        return ChannelCount(int((groups < 0).sum()), tuple(terms))

    def group_macs(self) -> IntArray:
        """MACs int64 [G] of the layers that produce each group, at full width."""
        by_name = {layer.name: layer for layer in self.cost.layers}
        full = [
            sum(_layer_macs(by_name[node.name], self.full_widths) for node in group.layers)
            for group in self.groups
        ]
        return np.array(full, dtype=np.int64)

    def __str__(self) -> str:
        total = int(self.cost.macs(self.full_widths))
        lines = [
            f"{'#':>3}  {'group':<32} {'width':>6}  {'kernel':>7} {'stride':>6} {'output':>9} "
            f"{'MACs':>12}  share"
        ]
        for group, macs in zip(self.groups, self.group_macs(), strict=True):
            first = group.layers[0]
            kernel = "x".join(map(str, first.attrs.get("kernel", ("linear",))))
            stride = first.attrs.get("stride", [1])[0]
            output = "x".join(map(str, first.shape[1:])) or "1"
            lines.append(
                f"{group.index:>3}  {group.name:<32} {group.width:>6}  {kernel:>7} {stride:>6} "
                f"{output:>9} {macs:>12,}  {macs / total:5.1%}"
            )
        lines.append(
            f"{len(self.groups)} prunable groups, {total:,} MACs per image in "
            f"{len(self.cost.layers)} layers"
        )
        return "\n".join(lines)


# -- from nodes to channel classes and groups
# -----------------------------------------------------------


class _UnionFind:
    def __init__(self) -> None:
        self.parent: list[int] = []

    def fresh(self, count: int) -> IntArray:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def unite(self, first: IntArray, second: IntArray) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.find(a), self.find(b)))
            self.parent[high] = low


def _channel_classes(nodes: tuple[Node, ...]) -> list[IntArray]:
    """For each node the class of every output channel, numbered from 0 in order of appearance."""
    union, atoms = _UnionFind(), list[IntArray]()
    for node in nodes:
        source = atoms[node.inputs[0]] if node.inputs else np.empty(0, dtype=np.int64)
        if node.op == "input" or node.op == "linear":
            out = union.fresh(node.shape[0])
        elif node.op == "conv":
            out = source if node.attrs["depthwise"] else union.fresh(node.shape[0])
        elif node.op == "flatten":
            out = source.repeat(int(np.prod(nodes[node.inputs[0]].shape[1:])))
        elif node.op == "pad_channels":
            before, after = union.fresh(node.attrs["before"]), union.fresh(node.attrs["after"])
            out = np.concatenate([before, source, after])
        else:
            if node.op == "add":
                union.unite(source, atoms[node.inputs[1]])
            out = source
        atoms.append(out)
    roots = np.array([union.find(atom) for atom in range(len(union.parent))])
    _, numbers = np.unique(roots, return_inverse=True)
    return [numbers.reshape(-1)[out].astype(np.int64) for out in atoms]


def _groups(
    nodes: tuple[Node, ...],
    positions: list[IntArray],
    coupling: str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> list[Group]:
    count = 1 + max(int(p.max()) for p in positions)
    occurrences = np.stack([np.bincount(p, minlength=count) for p in positions])  # [nodes, classes]
    fixed = (occurrences[0] > 0) | (occurrences[-1] > 0)
    if coupling == "internal":
        for node in nodes:
            fixed |= (node.op == "add") & (occurrences[node.index] > 0)
    _, signature = np.unique(occurrences, axis=1, return_inverse=True)
    signature = signature.reshape(-1)
    found = []
    for number in np.unique(signature[~fixed]):
        classes = np.flatnonzero(signature == number)
        produced = [
            node for node in nodes if node.op in _LAYERS and occurrences[node.index, classes[0]] > 0
        ]
        if any(not node.attrs.get("depthwise", False) for node in produced):
            found.append((produced, classes))
    found.sort(key=lambda item: (item[0][0].index, int(item[1][0])))
    return _named(nodes, positions, found, include, exclude)


def _named(
    nodes: tuple[Node, ...],
    positions: list[IntArray],
    found: list[tuple[list[Node], IntArray]],
    include: Sequence[str],
    exclude: Sequence[str],
) -> list[Group]:
    groups: list[Group] = []
    names: list[str] = []
    for layers, classes in found:
        first = layers[0].name
        same = 1 + sum(other.partition("#")[0] == first for other in names)
        name = first if same == 1 else f"{first}#{same}"
        names.append(name)
        wanted = not include or any(fnmatch(name, pattern) for pattern in include)
        if not wanted or any(fnmatch(name, pattern) for pattern in exclude):
            continue
        members = tuple(_members(nodes, positions, classes))
        groups.append(Group(len(groups), name, len(classes), classes, tuple(layers), members))
    for pattern in (*include, *exclude):
        if not any(fnmatch(name, pattern) for name in names):
            raise InputError(
                f"pattern {pattern!r} matches no group; groups are {', '.join(names) or 'none'}"
            )
    return groups


def _members(nodes: tuple[Node, ...], positions: list[IntArray], classes: IntArray) -> list[Member]:
    members = []
    for node in nodes:
        if node.op not in (*_LAYERS, "batch_norm"):
            continue
        inside = np.flatnonzero(np.isin(positions[node.index], classes))
        if not len(inside):
            continue
        order = np.argsort(positions[node.index][inside], kind="stable")
        rows = inside[order].reshape(len(classes), -1)
        kinds = (
            {"weight": "scale", "bias": "shift"}
            if node.op == "batch_norm"
            else {"weight": "filter", "bias": "bias"}
        )
        if node.attrs.get("depthwise", False):
            kinds["weight"] = "depthwise"
        members += [
            Member(node.params[role], kind, rows)
            for role, kind in kinds.items()
            if role in node.params
        ]
    return members


def _weights(group: Group, state: dict[str, Tensor]) -> GroupWeights:
    def rows(member: Member) -> Tensor:
        tensor = state[member.tensor].detach()
        return tensor[torch.from_numpy(member.rows).to(tensor.device)].reshape(group.width, -1)

    return GroupWeights(
        filters=tuple(rows(m) for m in group.members if m.kind == "filter"),
        scales=tuple(rows(m).mean(1) for m in group.members if m.kind == "scale"),
        group=group.index,
    )


def _layer_macs(layer: LayerCost, widths: IntArray) -> int:
    def channels(form: ChannelCount) -> int:
        return form.constant + sum(times * int(widths[group]) for group, times in form.terms)

    return layer.area * channels(layer.out) * channels(layer.inputs)
