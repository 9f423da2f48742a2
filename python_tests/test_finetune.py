"""finetune.py: epochs of the compact network, and going on after any of them."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from rlal_fast import finetune
from rlal_fast.compaction import CompactNetwork, compact
from rlal_fast.data import ImageData
from rlal_fast.graph import PrunableGraph
from rlal_fast.metrics import Record
from rlal_fast.models import create
from rlal_fast.weights import WeightsConfig, accuracy

EPOCHS = 3
SETTINGS = finetune.config(WeightsConfig(lr=0.3, batch_size=16), lr=0.02)


@pytest.fixture(scope="module")
def data() -> ImageData:
    torch.manual_seed(0)
    images, labels = torch.randn(60, 1, 8, 8), torch.arange(60) % 3
    return ImageData.from_tensors(
        train=(images[:40], labels[:40]), test=(images[40:], labels[40:]), reward_fraction=0.25
    )


@pytest.fixture
def network() -> CompactNetwork:
    torch.manual_seed(0)
    model = create("resnet8", 3, 1)
    graph = PrunableGraph.trace(model, torch.zeros(1, 1, 8, 8))
    return compact(model, graph.subnet([5, 11, 17]))


def tune(
    network: CompactNetwork, data: ImageData, state: Any = None, epochs: int = EPOCHS
) -> tuple[list[Record], list[bytes]]:
    """The records, and after each epoch the state as a checkpoint would store it."""
    records, states = [], []

    def on_epoch(record: Record, reached: dict[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(reached, file)
        records.append(record)
        states.append(file.getvalue())

    finetune.run(network, data, SETTINGS, epochs=epochs, seed=5, state=state, on_epoch=on_epoch)
    return records, states


def without_seconds(records: list[Record]) -> list[Record]:
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def test_settings_are_the_joint_ones_with_another_rate() -> None:
    joint = WeightsConfig(lr=0.3, momentum=0.5, weight_decay=1e-3, batch_size=7)
    assert vars(finetune.config(joint, 0.02)) == {**vars(joint), "lr": 0.02}


def test_records_say_what_happened(network: CompactNetwork, data: ImageData) -> None:
    before = {name: t.clone() for name, t in network.state_dict().items()}
    records, states = tune(network, data)
    assert [(r["stage"], r["epoch"]) for r in records] == [("finetune", e) for e in range(EPOCHS)]
    assert [r["lr"] for r in records] == pytest.approx([0.02, 0.015, 0.005])
    last = records[-1]
    assert last["loss"] < records[0]["loss"]
    reward = data.normalised(data.reward), data.reward.labels
    assert last["reward_split_accuracy"] == accuracy(network, *reward)
    assert last["seconds"]["weights"] > 0
    assert any(not torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert len(states) == EPOCHS


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_it_goes_on_bit_for_bit(
    network: CompactNetwork, data: ImageData, stopped_after: int
) -> None:
    cut = {name: t.clone() for name, t in network.state_dict().items()}
    records, states = tune(network, data)
    expected = {name: t.clone() for name, t in network.state_dict().items()}
    network.load_state_dict(cut)
    stored = torch.load(io.BytesIO(states[stopped_after - 1]), weights_only=True)
    rest, _ = tune(network, data, stored)
    assert without_seconds(rest) == without_seconds(records[stopped_after:])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_no_epochs_change_nothing(network: CompactNetwork, data: ImageData) -> None:
    before = {name: t.clone() for name, t in network.state_dict().items()}
    assert tune(network, data, epochs=0) == ([], [])
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
