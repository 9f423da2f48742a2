"""Small past runs, made up, for the tests of the history."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import torch

from rlal_fast.flops import ChannelCount, CostTable, LayerCost
from rlal_fast.history.content import encode
from rlal_fast.history.past_run import PastRun
from rlal_fast.history.store import HistoryStore

FULL = (16, 300)
COST = CostTable(
    (
        LayerCost("a", 576, ChannelCount(0, ((0, 1),)), ChannelCount(3, ())),
        LayerCost("b", 144, ChannelCount(0, ((1, 1),)), ChannelCount(0, ((0, 1),))),
        LayerCost("c", 1, ChannelCount(10, ()), ChannelCount(0, ((1, 4),))),
    ),
    np.array(FULL, dtype=np.int64),
)


def past_run(
    number: int = 0, *, days_ago: float = 0.0, state: Any = "small", **changes: Any
) -> Any:
    """Run `number`: id and content follow from it; `changes` replace fields."""
    source = np.random.default_rng(number)
    created = datetime.now(timezone.utc) - timedelta(days=days_ago)
    if state == "small":
        state = {"shape": [4, 300], "weights": torch.arange(5.0) + number, "best": None}
    fields: dict[str, Any] = {
        "id": f"{number:06x}abcdef",
        "created": created.isoformat(timespec="microseconds"),
        "version": "0.1.0",
        "arch": "resnet8",
        "dataset": "digits",
        "pruned_flops": 0.5,
        "a_max": 0.8,
        "min_width": 1,
        "round_to": 1,
        "importance": "l1",
        "groups": "internal",
        "seed": number,
        "reward_images": 100,
        "feature_names": ("index", "macs"),
        "features": np.array([[0, 0.5], [1, 1]], dtype=np.float32),
        "cost": COST,
        "widths": source.integers(1, np.array(FULL) + 1, (6, 2)).astype(np.int32),
        "rewards": (source.integers(0, 101, 6) / 100).astype(np.float32),
        "epochs": np.repeat([1, 2, 3], 2).astype(np.int32),
        "baselines": np.array([0.1, 0.3, 0.5, 0.625], dtype=np.float32),
        "agent_name": "sac",
        "agent_state": state,
    }
    return PastRun(**{**fields, **changes})


def plain(value: Any) -> Any:
    """A run, or a part of one, as what == compares bit for bit."""
    if isinstance(value, PastRun):
        return {name: plain(item) for name, item in vars(value).items()}
    if isinstance(value, CostTable):
        return value.to_json()
    if isinstance(value, torch.Tensor):
        return ("tensor", plain(value.contiguous().numpy()))
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (type(value).__name__, [plain(item) for item in value])
    return value


def large(number: int) -> Any:
    """A run whose content takes a few hundred pages."""
    noise = torch.rand(300_000, generator=torch.Generator().manual_seed(number))
    return past_run(number, state={"weights": noise})


def contents(store: HistoryStore) -> dict[str, Any]:
    return {run.id: plain(store.get(run.id)) for run in store.runs()}


def flip_in_content(store: HistoryStore, run_id: str, place: int = 100) -> None:
    content, data = encode(store.get(run_id)), bytearray(store.path.read_bytes())
    at = data.find(content)  # one piece: it fits into a page
    assert at > 0
    data[at + place] ^= 1
    store.path.write_bytes(data)
