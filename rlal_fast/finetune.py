"""Fine-tuning of the compact network (method.md §9), epoch by epoch, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlal_fast.compaction import CompactNetwork
from rlal_fast.data import ImageData
from rlal_fast.device_training import trainer_for
from rlal_fast.metrics import Record
from rlal_fast.weights import WeightsConfig, accuracy


def config(weights: WeightsConfig, lr: float) -> WeightsConfig:
    """The joint run's optimiser settings with the fine-tuning's learning rate."""
    return replace(weights, lr=lr)


def run(
    network: CompactNetwork,
    data: ImageData,
    settings: WeightsConfig,
    *,
    epochs: int,
    seed: int,
    state: dict[str, Any] | None,
    on_epoch: Callable[[Record, dict[str, Any]], None],
    on_batch: Callable[[int, int], None] | None = None,
) -> None:
    """Trains `network` in place, where it is, for `epochs` epochs.

    Args:
        network: as cut out of the full model.
        data: the joint run's images.
        settings: optimiser settings.
        seed: of the order of images and their augmentation.
        state: where an interrupted fine-tuning stopped, as given to `on_epoch`.
        on_epoch: told each epoch's record and the state to resume from.
    """
    trainer = trainer_for(network)(
        network, data, settings, epochs=epochs, seed=seed, purpose="finetune"
    )
    first = 0
    if state is not None:
        first = state["epoch"]
        network.load_state_dict(state["network"])
        trainer.optimizer.load_state_dict(state["optimizer"])
    reward = data.reward.images, data.reward.labels, data.normalisation
    for epoch in range(first, epochs):
        start = time.perf_counter()
        trained = trainer.train_epoch(epoch, on_batch=on_batch)
        record: Record = {
            "stage": "finetune",
            "epoch": epoch,
            "loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "reward_split_accuracy": accuracy(network, *reward),
            "lr": trained.lr,
            "seconds": {"weights": time.perf_counter() - start},
        }
        on_epoch(
            record,
            {
                "epoch": epoch + 1,
                "network": network.state_dict(),
                "optimizer": trainer.optimizer.state_dict(),
            },
        )
