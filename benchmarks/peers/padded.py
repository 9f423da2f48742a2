"""Channel counts filled up to a multiple: tensor cores and cuDNN want multiples of 8 in fp16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from peers.folded import Step

IntArray = NDArray[np.int64]
FILLER = -1
"""A channel that is zero: the last row and column of a weight that is extended by zeros."""


def filled_up(
    steps: Sequence[Step], kept: Sequence[IntArray], multiple: int
) -> dict[int, IntArray]:
    """The channels of each step's output: those that are kept, then FILLERs up to a multiple.

    Logits stay as they are, and so do the logits' channels. Where a channel count that was filled
    up would meet one that cannot be (beside the zeros that a shortcut adds), none is.
    """
    more: dict[int, int] = {}
    images = {step.index: step.node.shape[1:] for step in steps}
    for step in steps:
        count = _fillers(
            step, [more[source] for source in step.inputs], len(kept[step.index]), multiple
        )
        if count is None:
            return filled_up(steps, kept, 1)
        if step.node.op == "flatten":
            count *= math.prod(images[step.inputs[0]])
        more[step.index] = 0 if step is steps[-1] else count
    return {
        index: np.concatenate([kept[index], np.full(count, FILLER)])
        for index, count in more.items()
    }


def _fillers(step: Step, sources: list[int], kept: int, multiple: int) -> int | None:
    """How many a step's output gets; None where its inputs do not fit together."""
    if mixes(step):
        return -kept % multiple
    if step.node.op == "input":
        return 0
    if step.node.op == "pad_channels":
        return None if sources[0] else 0
    return sources[0] if len(set(sources)) == 1 else None


def mixes(step: Step) -> bool:
    """Whether each output channel reads all input channels."""
    node = step.node
    return node.op == "linear" or (node.op == "conv" and not node.attrs["depthwise"])
