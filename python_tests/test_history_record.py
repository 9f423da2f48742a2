"""history_record.py: a past run says all of what the trainer saw, and its agent goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from past_runs import plain

from rlal_fast import agents
from rlal_fast.agents import SACConfig
from rlal_fast.data import ImageData
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.errors import InputError
from rlal_fast.history.content import decode, encode
from rlal_fast.history_record import past_run
from rlal_fast.joint_config import JointConfig
from rlal_fast.models import create
from rlal_fast.seeds import generator
from rlal_fast.trainer import JointTrainer
from rlal_fast.walk import STATIC_FEATURES

EPISODES, EPOCHS = 6, 4


def searched(agent: str) -> JointTrainer:
    """After all joint epochs, before the cut and what is measured then."""
    joint = trainer(agent)
    for epoch in range(EPOCHS):
        joint._finish_epoch(joint._joint_epoch(epoch))
    return joint


def trainer(agent: str) -> JointTrainer:
    pixels = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8)
    split = (pixels, torch.arange(24) % 10)
    config = JointConfig(
        epochs=EPOCHS - 1,
        search_epochs=1,
        warmup_epochs=1,
        random_epochs=1,
        finetune_epochs=1,
        episodes_per_epoch=EPISODES,
        agent=agent,
        agent_updates=3,
        round_to=2,
        sac=SACConfig(hidden=(8,)),
        environment=EnvironmentModelConfig(steps_per_epoch=1),
    )
    data = ImageData.from_tensors(train=split, reward=split, test=split)
    return JointTrainer(create("resnet8", 10, 1), data, config, arch="resnet8")


@pytest.mark.parametrize("agent", agents.AGENTS)
def test_a_finished_run_and_back(agent: str) -> None:
    joint = searched(agent)
    joint.log.append({"stage": "finetune", "reward_split_accuracy": 0.5})  # is not an epoch of it
    run = past_run(joint)
    assert plain(decode(encode(run))) == plain(run)
    assert (run.arch, run.dataset, run.agent_name) == ("resnet8", "custom", agent)
    assert (run.pruned_flops, run.round_to, run.reward_images) == (0.5, 2, 24)

    records = [record for record in joint.log.records if record["stage"] == "joint"]
    assert len(records) == EPOCHS == len(run.baselines)
    for epoch, record in enumerate(records):
        rewards = run.rewards[run.epochs == epoch]
        assert rewards.tolist() == pytest.approx(record["rewards"])
        assert run.baselines[epoch] == pytest.approx(record["reward_split_accuracy"])
    assert run.widths.shape == ((EPOCHS - 1) * EPISODES, 3)
    assert (run.cost.macs(run.widths) <= joint.budget.macs).all()

    # the replay follows from it, and with it all that an agent learns from
    replay = joint.replay.state_dict()
    again = joint.env.episodes(run.widths.astype(np.int64), run.rewards)
    for name, tensor in vars(again).items():
        assert torch.equal(tensor, replay[name]), name
    assert run.feature_names == STATIC_FEATURES
    states = replay["states"][:, :, : len(STATIC_FEATURES)].numpy()
    assert (states == run.features).all()


def test_the_agent_of_a_past_run_acts_as_it_did() -> None:
    joint = searched("sac")
    run = decode(encode(past_run(joint)))
    z = torch.linspace(-1, 1, joint.environment.z_size if joint.environment else 0)
    fresh = agents.create("sac", joint.env.state_size, len(z), joint.config.sac, seed=99)
    ends = torch.zeros(5), torch.full((5,), 0.8)
    states = torch.rand(5, joint.env.state_size)

    def ratios(agent: agents.Agent) -> torch.Tensor:
        return agent.act(states, z, *ends, generator(0, "test"))

    before = ratios(fresh)
    assert run.agent_state is not None
    fresh.load_state_dict(run.agent_state)
    assert not torch.equal(ratios(fresh), before)
    assert torch.equal(ratios(fresh), ratios(joint.agent))


def test_what_is_learned_later_does_not_reach_it() -> None:
    joint = searched("sac")
    run = past_run(joint)
    before = plain(run)
    joint._learn(EPOCHS - 1)
    assert plain(run) == before


def test_a_run_without_episodes_teaches_nothing() -> None:
    with pytest.raises(InputError, match=r"a run of 0 episodes .* teaches nothing"):
        past_run(trainer("random"))
