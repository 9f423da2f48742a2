"""Seconds of a joint epoch: weights, episodes, agent."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import rlal_fast as rf
from gpu_bench.clocks import Budget, OverTimeError, spread, time_limit
from gpu_bench.session import Session
from rlal_fast import data
from rlal_fast.metrics import Record

_PARTS = ("weights", "episodes", "agent")


class _EnoughError(Exception):
    """The epochs that are measured are over; cutting, fine-tuning and the report are not."""


def measure(
    session: Session, budget: Budget, data_dir: Path | None, dataset: str, epochs: int = 3
) -> dict[str, Any]:
    """ResNet-56, batches of 128, 10 episodes an epoch; synthetic images without `data_dir`.

    Raises:
        InputError: the run cannot be made (named).
    """
    if "device" not in {field.name for field in fields(rf.JointConfig)}:
        return {"left_out": "this version has no joint training on a GPU (JointConfig.device)"}
    arch = "resnet8" if session.emulated else "resnet56"
    images = data.load(dataset, data_dir) if data_dir else _synthetic(session.emulated)
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        print(f"  epoch {record['epoch']}: {record['seconds']}", flush=True)
        if len(records) == epochs:
            raise _EnoughError

    left_out = ""
    try:
        with time_limit(budget.left):
            model = rf.models.create(arch, images.num_classes, images.image_shape[0])
            config = _config(session, epochs)
            rf.JointTrainer(model, images, config, on_epoch=keep).fit()
    except _EnoughError:
        pass
    except OverTimeError:
        left_out = f"{len(records)} of {epochs} epochs fitted into the time"
    return {
        "arch": arch,
        "data": images.name,
        "training_images": len(images.train),
        "reward_images": len(images.reward),
        "batch_size": _config(session, epochs).weights.batch_size,
        "episodes_per_epoch": _config(session, epochs).episodes_per_epoch,
        "evaluator_precision": "fp16",
        "epochs": [record["seconds"] for record in records],
        # the first epoch also compiles, captures and allocates
        "after_the_first": {
            part: spread([record["seconds"][part] for record in records[1:]]) for part in _PARTS
        },
        "left_out": left_out,
    }


def _config(session: Session, epochs: int) -> rf.JointConfig:
    """Episodes in every epoch, one of them random; a cosine that ends after the measured epochs."""
    return rf.JointConfig(
        epochs=epochs,
        race_share=1.0,  # so that an epoch's work does not depend on its rewards
        warmup_epochs=0,
        random_epochs=1,
        finetune_epochs=0,
        episodes_per_epoch=2 if session.emulated else 10,
        evaluator="cuda",
        evaluator_precision="fp16",
        device=session.device.type,
    )


def _synthetic(small: bool) -> data.ImageData:
    """uint8 images of CIFAR-10's sizes, with its augmentation."""
    torch.manual_seed(0)
    counts, size = ((16, 4, 4), 8) if small else ((45_000, 5_000, 1_000), 32)
    pairs = [
        (
            torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
            torch.arange(count) % 10,
        )
        for count in counts
    ]
    train, reward, test = pairs
    return data.ImageData.from_tensors(
        train=train,
        reward=reward,
        test=test,
        classes=[str(label) for label in range(10)],
        augmentation=data.Augmentation(crop_padding=4, flip=True),
        name="synthetic",
    )
