"""Latency of networks, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn


@torch.no_grad()
def measure(
    networks: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_sizes: Sequence[int] = (1, 256),
    seconds: float = 1.5,
) -> dict[str, dict[str, float]]:
    """Median milliseconds per batch of each network in eval mode, on random images.

    The networks take turns, so that a busy machine slows all of them alike. Modes are restored.

    Args:
        networks: name -> module.
        image_shape: (C, H, W).
        batch_sizes: images per batch.
        seconds: time to spend per batch size; at least three turns are taken.

    Returns:
        {network name: {batch size as a string: milliseconds}}.
    """
    modes = [(module, module.training) for n in networks.values() for module in n.modules()]
    for network in networks.values():
        network.eval()
    try:
        return _measure(networks, image_shape, batch_sizes, seconds)
    finally:
        for module, training in modes:
            module.training = training


def _measure(
    networks: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_sizes: Sequence[int],
    seconds: float,
) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {name: {} for name in networks}
    for batch_size in batch_sizes:
        images = torch.randn(batch_size, *image_shape, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in networks}
        for network in networks.values():
            network(images)  # the first pass pays for set-up
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
            for name, network in networks.items():
                start = time.perf_counter()
                network(images)
                times[name].append(1000 * (time.perf_counter() - start))
        for name, values in times.items():
            result[name][str(batch_size)] = round(statistics.median(values), 4)
    return result
