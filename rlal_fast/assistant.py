"""The assistant: an ensemble that predicts an episode's reward, taught by past runs and this one.

method.md §10, sentence 3. It knows a network by what states say of its groups, so past runs of
other networks teach it, too. Two kinds of networks look at an episode: one sums over its groups
("Deep Sets", Zaheer et al., NeurIPS 2017), which needs few episodes, and one reads the profile of
its ratios, which is the better one from some two hundred on.

What past runs taught stays as it is; on it comes what the run's own episodes say it gets wrong. How
far the former is trusted is a regression on these episodes, so what misleads is soon ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlal_fast.errors import InputError
from rlal_fast.mlp import MLP, single_thread
from rlal_fast.replay import Episodes, ReplayBuffer
from rlal_fast.walk import DYNAMIC_FEATURES, PROFILE_FEATURES, STATIC_FEATURES, places

_GROUP_FEATURES = len(STATIC_FEATURES) + 5  # ratio, its square, both neighbours', FLOPs to prune
_TO_PRUNE = len(STATIC_FEATURES) + DYNAMIC_FEATURES.index("macs_to_prune")


@dataclass(frozen=True)
class AssistantConfig:
    """Settings of the assistant.

    Raises:
        InputError: a value is outside its range.
    """

    copies: int = 5  # of each of the two kinds
    hidden: int = 64  # of the networks that sum over groups
    embedding: int = 32  # numbers per group that are summed
    profile_hidden: tuple[int, ...] = (128, 128)
    lr: float = 2e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    history_steps: int = 800  # on past runs
    steps_per_epoch: int = 60  # on the run's own episodes
    reward_spread_floor: float = 0.01  # as SAC's
    trust_prior: float = 20.0  # own episodes that weigh as much as the prior belief in past runs

    def __post_init__(self) -> None:
        checks = {
            "copies": self.copies >= 1,
            "hidden": self.hidden >= 1,
            "embedding": self.embedding >= 1,
            "profile_hidden": bool(self.profile_hidden) and min(self.profile_hidden) >= 1,
            "lr": self.lr > 0,
            "weight_decay": self.weight_decay >= 0,
            "batch_size": self.batch_size >= 1,
            "history_steps": self.history_steps >= 0,
            "steps_per_epoch": self.steps_per_epoch >= 0,
            "reward_spread_floor": self.reward_spread_floor > 0,
            "trust_prior": self.trust_prior > 0,
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(f"AssistantConfig.{name} = {getattr(self, name)} is out of range")


class Assistant:
    """Predicts rewards on the scale that SAC's critics use.

    Args:
        config: its settings.
        seed: of the initial weights; the global generator is not touched.
    """

    def __init__(self, config: AssistantConfig | None = None, seed: int = 0) -> None:
        self.config = config = config or AssistantConfig()
        generator = torch.Generator().manual_seed(seed)
        self.history = _RewardNet(config, generator)  # what past runs taught
        self.own = _RewardNet(config, generator, zero=True)  # what is added to it
        self.trust = 0.0  # weight of the former
        self.updates = 0
        self._adam = _adam(self.own, config)

    @property
    def ready(self) -> bool:
        """Whether anything has taught it yet."""
        return self.updates > 0 or self.trust != 0

    def predict(self, states: Tensor, actions: Tensor, z: Tensor | None) -> Tensor:
        """Rewards [M, N], on SAC's scale, of states [N, G, S] and ratios [N, G]; z is not read."""
        with single_thread(), torch.no_grad():
            inputs = _inputs(states, actions)
            return self.own(*inputs) + self.trust * self.history(*inputs)

    def study(self, lessons: Sequence[Episodes], generator: torch.Generator) -> None:
        """Learns from past runs, one Episodes each, whose rewards are standardised (mean 0).

        The first is the one that is most like the new run: half of the minibatches are its.
        """
        inputs = [_inputs(lesson.states, lesson.actions) for lesson in lessons]
        weights = torch.full((len(lessons),), 0.5 / max(len(lessons) - 1, 1))
        weights[0] = 0.5
        adam = _adam(self.history, self.config)
        with single_thread():
            for _ in range(self.config.history_steps):
                which = int(torch.multinomial(weights, 1, generator=generator))
                self._step(self.history, adam, inputs[which], lessons[which].rewards, generator)
        self.trust = 1.0

    def update(self, replay: ReplayBuffer, generator: torch.Generator, rounds: int = 1) -> None:
        """Learns from the run's own episodes.

        Args:
            replay: all of them.
            generator: what draws minibatches.
            rounds: how many epochs' worth of steps.
        """
        stored = replay.state_dict()
        mean, spread = self._scale(replay)
        wanted = (stored["rewards"] - mean) / spread
        with single_thread():
            inputs = _inputs(stored["states"], stored["actions"])
            if self.trust:
                with torch.no_grad():
                    taught = self.history(*inputs)
                self.trust = self._believed(taught.mean(0), wanted)
                wanted = wanted - self.trust * taught  # [M, N]: each has its own mistakes
            for _ in range(rounds * self.config.steps_per_epoch):
                self._step(self.own, self._adam, inputs, wanted, generator)
        self.updates += 1

    def rewards(self, episodes: Episodes, replay: ReplayBuffer) -> Tensor:
        """What it expects episodes [P] to be worth, on the scale of the replay's rewards."""
        mean, spread = self._scale(replay)
        return self.predict(episodes.states, episodes.actions, None).mean(0) * spread + mean

    def _scale(self, replay: ReplayBuffer) -> tuple[float, float]:
        mean, spread = replay.return_statistics()
        return mean, max(spread, self.config.reward_spread_floor)

    def _believed(self, taught: Tensor, wanted: Tensor) -> float:
        """Ridge regression of rewards on predictions, from 1 where nothing is known; at least 0."""
        taught = taught - taught.mean()
        prior = self.config.trust_prior
        slope = (taught @ (wanted - wanted.mean()) + prior) / (taught.square().sum() + prior)
        return max(float(slope), 1e-6)

    def _step(
        self,
        net: _RewardNet,
        adam: torch.optim.Optimizer,
        inputs: tuple[Tensor, Tensor],
        wanted: Tensor,
        generator: torch.Generator,
    ) -> None:
        row = torch.randint(len(inputs[0]), (self.config.batch_size,), generator=generator)
        predicted = net(*(part[row] for part in inputs))
        loss = (predicted - wanted[..., row]).square().mean(1).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `predict` and `update` depend on."""
        return {
            "history": self.history.state_dict(),
            "own": self.own.state_dict(),
            "adam": self._adam.state_dict(),
            "trust": self.trust,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, from what `state_dict` returned."""
        self.history.load_state_dict(state["history"])
        self.own.load_state_dict(state["own"])
        self._adam.load_state_dict(state["adam"])
        self.trust, self.updates = state["trust"], state["updates"]


class _RewardNet(nn.Module):
    """Opinions [2 copies, N] on groups [N, G, F] and profiles [N, PROFILE_FEATURES + 1]."""

    def __init__(
        self, config: AssistantConfig, generator: torch.Generator, zero: bool = False
    ) -> None:
        super().__init__()
        self.copies = config.copies
        hidden, embedding, copies = (config.hidden,), config.embedding, config.copies
        self.phi = MLP(_GROUP_FEATURES, 0, hidden, embedding, generator, copies=copies)
        self.rho = nn.ModuleList(MLP(embedding, 0, hidden, 1, generator) for _ in range(copies))
        self.profile = MLP(
            PROFILE_FEATURES + 1, 0, config.profile_hidden, 1, generator, copies=copies
        )
        if zero:  # adds nothing before it has learned
            with torch.no_grad():
                for net in (*self.rho, self.profile):
                    net.weights[-1].zero_()
                    net.biases[-1].zero_()

    def forward(self, groups: Tensor, profile: Tensor) -> Tensor:
        count, depth, _ = groups.shape
        embedded = functional.softplus(self.phi(groups.flatten(0, 1), None))
        summed = embedded.view(self.copies, count, depth, -1).mean(2)
        sums = [rho(summed[i], None)[0, :, 0] for i, rho in enumerate(self.rho)]
        return torch.cat([torch.stack(sums), self.profile(profile, None).squeeze(2)])


def _inputs(states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """What the networks read of episodes: groups [N, G, F], profiles [N, PROFILE_FEATURES + 1]."""
    asked = states[:, 0, _TO_PRUNE]  # before anything is pruned: the whole fraction
    columns = [
        actions,
        actions.square(),
        functional.pad(actions[:, :-1], (1, 0)),
        functional.pad(actions[:, 1:], (0, 1)),
        asked[:, None].expand_as(actions),
    ]
    groups = torch.cat([states[:, :, : len(STATIC_FEATURES)], torch.stack(columns, 2)], 2)
    profile = (actions[:, :, None] * torch.from_numpy(places(actions.shape[1]))).sum(1)
    return groups, torch.cat([profile, asked[:, None]], 1)


def _adam(net: nn.Module, config: AssistantConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        net.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
    )
