"""Replay: a ring of episodes in preallocated tensors, sampled as transitions (method.md §2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlal_fast.errors import InputError


@dataclass(frozen=True)
class Episodes:
    """P finished episodes over G groups. Ratios are fractions; executed means after the bounds."""

    states: Tensor  # float32 [P, G, S]
    actions: Tensor  # float32 [P, G], executed pruning ratios in [0, a_max]
    low: Tensor  # float32 [P, G], least ratio that was allowed at each step
    high: Tensor  # float32 [P, G], greatest ratio that was allowed at each step
    rewards: Tensor  # float32 [P], accuracy of the episode's sub-network, in [0, 1]


@dataclass(frozen=True)
class Transitions:
    """B steps drawn from the replay. At the last step of an episode `next_*` are zeros."""

    state: Tensor  # float32 [B, S]
    action: Tensor  # float32 [B], executed pruning ratio
    low: Tensor  # float32 [B]
    high: Tensor  # float32 [B]
    reward: Tensor  # float32 [B], 0 but at the last step
    next_state: Tensor  # float32 [B, S]
    next_low: Tensor  # float32 [B]
    next_high: Tensor  # float32 [B]
    done: Tensor  # bool [B], true at the last step
    epoch: Tensor  # int64 [B], 0-based epoch in which the episode was scored
    episode_return: Tensor  # float32 [B], reward of the step's whole episode


class ReplayBuffer:
    """Fixed-size ring of episodes; the oldest episode makes room for the newest.

    Args:
        capacity_episodes: most episodes held.
        groups: steps G of every episode.
        state_size: size S of a state.

    Raises:
        InputError: a size is below 1.
    """

    def __init__(self, capacity_episodes: int, groups: int, state_size: int) -> None:
        if min(capacity_episodes, groups, state_size) < 1:
            raise InputError(
                f"a replay of {capacity_episodes} episodes x {groups} groups x {state_size} state "
                "components is empty: every size must be at least 1"
            )
        self.capacity_episodes = capacity_episodes
        self.groups = groups
        self.state_size = state_size
        self._episodes = Episodes(
            states=torch.zeros(capacity_episodes, groups, state_size),
            actions=torch.zeros(capacity_episodes, groups),
            low=torch.zeros(capacity_episodes, groups),
            high=torch.zeros(capacity_episodes, groups),
            rewards=torch.zeros(capacity_episodes),
        )
        self._epochs = torch.zeros(capacity_episodes, dtype=torch.int64)
        self._oldest = 0
        self._count = 0

    def __len__(self) -> int:
        """Number of stored transitions (episodes x groups)."""
        return self._count * self.groups

    @property
    def episode_count(self) -> int:
        """Number of stored episodes."""
        return self._count

    @property
    def all_returns(self) -> Tensor:
        """Reward of every stored episode, float32 [episode_count], oldest first."""
        return self._episodes.rewards[self._slots(torch.arange(self._count))]

    @property
    def all_actions(self) -> Tensor:
        """Executed ratios of every stored episode, float32 [episode_count, G], oldest first."""
        return self._episodes.actions[self._slots(torch.arange(self._count))]

    @property
    def all_epochs(self) -> Tensor:
        """Epoch of every stored episode, int64 [episode_count], oldest first."""
        return self._epochs[self._slots(torch.arange(self._count))]

    @property
    def epochs(self) -> list[int]:
        """The distinct epochs of the stored episodes, sorted."""
        return [int(epoch) for epoch in torch.unique(self.all_epochs)]

    def return_statistics(self) -> tuple[float, float]:
        """Mean of all returns, and their standard deviation within an epoch (0 for fewer than two).

        Within an epoch, pooled over the epochs: returns also rise from epoch to epoch as the
        weights learn, and that drift would drown the differences between sub-networks, which are
        what the agent has to see (method.md §8). Without two episodes in any epoch: over all.
        """
        returns = self.all_returns.double()
        if returns.numel() < 2:
            return float(returns.sum()), 0.0
        _, row, sizes = torch.unique(self.all_epochs, return_inverse=True, return_counts=True)
        freedom = returns.numel() - sizes.numel()
        if freedom == 0:
            return float(returns.mean()), float(returns.std())
        means = torch.zeros(sizes.numel(), dtype=torch.float64).index_add(0, row, returns) / sizes
        variance = (returns - means[row]).square().sum() / freedom
        return float(returns.mean()), float(variance.sqrt())

    def add(self, episodes: Episodes, epoch: int) -> None:
        """Store P episodes that were scored under the weights of `epoch` (0-based).

        Raises:
            InputError: a tensor has the wrong shape or a value that is not finite, or epoch < 0.
        """
        self._check(episodes, epoch)
        incoming = episodes.rewards.shape[0]
        # More than the ring holds: the first ones would be overwritten by the last ones anyway.
        source = torch.arange(max(0, incoming - self.capacity_episodes), incoming)
        fresh = source.numel()
        slot = self._slots(torch.arange(self._count, self._count + fresh))
        for name, store in vars(self._episodes).items():
            store[slot] = getattr(episodes, name)[source].to(store.dtype)
        self._epochs[slot] = epoch
        overwritten = max(0, self._count + fresh - self.capacity_episodes)
        self._oldest = (self._oldest + overwritten) % self.capacity_episodes
        self._count = min(self._count + fresh, self.capacity_episodes)

    def sample(
        self, batch_size: int, generator: torch.Generator, newest_share: float = 0.0
    ) -> Transitions:
        """Draw `batch_size` steps, uniformly and with replacement, from all stored episodes.

        Args:
            batch_size: number B of steps.
            generator: what draws them.
            newest_share: share of the steps, in [0, 1], that comes from the newest epoch alone.

        Raises:
            InputError: nothing is stored yet.
        """
        if self._count == 0:
            raise InputError("the replay is empty: add episodes before sampling from it")
        index = torch.randint(len(self), (batch_size,), generator=generator)
        if newest_share:
            epochs = self.all_epochs
            newest = int((epochs == epochs[-1]).sum()) * self.groups
            few = round(newest_share * batch_size)
            # Uniform where all epochs have equally many episodes, which is how the trainer adds.
            index[:few] = len(self) - newest + index[:few] % newest
        # Drawn by age, not by slot, so that a buffer saved and loaded again draws the same steps.
        slot = self._slots(torch.div(index, self.groups, rounding_mode="floor"))
        step = index % self.groups
        done = step == self.groups - 1
        here = slot * self.groups + step
        after = torch.where(done, here, here + 1)
        more = (~done).float()
        states = self._episodes.states.view(-1, self.state_size)
        low, high = self._episodes.low.view(-1), self._episodes.high.view(-1)
        returns = self._episodes.rewards[slot]
        return Transitions(
            state=states[here],
            action=self._episodes.actions.view(-1)[here],
            low=low[here],
            high=high[here],
            reward=returns * done,
            next_state=states[after] * more[:, None],
            next_low=low[after] * more,
            next_high=high[after] * more,
            done=done,
            epoch=self._epochs[slot],
            episode_return=returns,
        )

    def state_dict(self) -> dict[str, Any]:
        """The filled part, oldest episode first: tensors only, copies of the stored ones."""
        slot = self._slots(torch.arange(self._count))
        state: dict[str, Any] = {name: t[slot] for name, t in vars(self._episodes).items()}
        return {**state, "epochs": self._epochs[slot]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the contents by a saved one; a smaller ring than the saved keeps the newest.

        Raises:
            InputError: the saved episodes have another number of groups or another state size.
        """
        saved = Episodes(**{name: state[name] for name in vars(self._episodes)})
        self._check(saved, 0)
        count = saved.rewards.shape[0]
        kept = slice(max(0, count - self.capacity_episodes), count)
        self._oldest, self._count = 0, min(count, self.capacity_episodes)
        for name, store in vars(self._episodes).items():
            store[: self._count] = getattr(saved, name)[kept]
        self._epochs[: self._count] = state["epochs"][kept]

    def _slots(self, age: Tensor) -> Tensor:
        """Where the episodes of these ages (0 is the oldest) lie."""
        return (age + self._oldest) % self.capacity_episodes

    def _check(self, episodes: Episodes, epoch: int) -> None:
        count = episodes.rewards.shape[0] if episodes.rewards.dim() == 1 else -1
        for name, store in vars(self._episodes).items():
            tensor: Tensor = getattr(episodes, name)
            expected = (count, *store.shape[1:])
            if tuple(tensor.shape) != expected:
                raise InputError(
                    f"episodes.{name} has shape {tuple(tensor.shape)}, this replay needs "
                    f"[P, {', '.join(str(size) for size in store.shape[1:])}]".replace(", ]", "]")
                )
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"episodes.{name} holds a value that is not finite")
        if epoch < 0:
            raise InputError(f"epoch is {epoch}, but epochs count from 0")
