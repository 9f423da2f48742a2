"""A search whose rewards are a formula: what is good in one run is good in the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlal_fast.agents import SACConfig
from rlal_fast.assistant import AssistantConfig
from rlal_fast.data import ImageData
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.history.past_run import PastRun
from rlal_fast.history_record import past_run
from rlal_fast.joint_config import JointConfig
from rlal_fast.models import create
from rlal_fast.screening import ScreeningConfig
from rlal_fast.subnet import Subnet
from rlal_fast.trainer import JointTrainer
from rlal_fast.transfer import HistoryConfig

_IMAGES = 2000  # so many that a reward's second digit counts
COSTS = np.array([0.9, 0.05, 0.2])
ASSISTANT = AssistantConfig(
    copies=2,
    hidden=16,
    embedding=8,
    profile_hidden=(16,),
    history_steps=150,
    steps_per_epoch=20,
)


class KnownRewards:
    """1 less what each group's squared ratio costs, or (adverse) the opposite."""

    def __init__(self, full: NDArray[np.int64], adverse: bool) -> None:
        self.full, self.adverse = full, adverse

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        ratios = 1 - np.array([subnet.widths for subnet in subnets]) / self.full
        lost = ratios**2 @ np.resize(COSTS, len(self.full)) / 2
        return lost if self.adverse else 1 - lost


def search(
    history: Sequence[PastRun] = (),
    learning: HistoryConfig | None = None,
    *,
    arch: str = "resnet8",
    adverse: bool = False,
    **changes: Any,
) -> JointTrainer:
    """A trainer that has not begun."""
    pixels = torch.zeros(_IMAGES, 1, 8, 8, dtype=torch.uint8)
    split = (pixels, torch.arange(_IMAGES) % 10)
    settings: dict[str, Any] = {
        "epochs": 0,
        "search_epochs": 6,
        "finetune_epochs": 0,
        "random_epochs": 2,
        "episodes_per_epoch": 10,
        "agent_updates": 40,
        "epoch_embedding": False,
        "sac": SACConfig(hidden=(32,), batch_size=32),
        "environment": EnvironmentModelConfig(8, 8, (16,), steps_per_epoch=2),
        "screening": ScreeningConfig(candidates=8),
        "history": learning or HistoryConfig(),
        "assistant": ASSISTANT,
    }
    config = JointConfig(**{**settings, **changes})
    data = ImageData.from_tensors(train=split, reward=split, test=split)
    torch.manual_seed(0)
    trainer = JointTrainer(create(arch, 10, 1), data, config, arch=arch, history=history)
    trainer.env.scorer = KnownRewards(trainer.graph.full_widths, adverse)
    return trainer


def finished(**settings: Any) -> PastRun:
    """What a whole search leaves."""
    trainer = search(**settings)
    trainer.search()
    return past_run(trainer)


def rewards(trainer: JointTrainer) -> list[list[float]]:
    return [record["rewards"] for record in trainer.log.records]
