"""DDPG over pruning ratios: the agent of AMC, as a baseline.

He et al., AMC: AutoML for Model Compression and Acceleration on Mobile Devices, ECCV 2018, section
3, and the values of its released code (github.com/mit-han-lab/amc, `amc_search.py` and
`lib/agent.py`). [A] marks the paper's values, [C] those of the code, [R] our readings.

Where this differs from AMC [R]:
- The budget's bounds and the reward are the environment's (method.md §4, §5), as for every agent.
- Random episodes come first in both; how many is the trainer's choice (100 in [C]). The trainer
  also learns from them at once, and afterwards: one update per transition, as in [C], but after all
  the episodes of an epoch instead of after each.
- Minibatches come from all episodes of the trainer's replay, not from the last 2000 transitions
  [A] (100 episodes in [C]).
- With an environment model, actor and critic read z beside the state.
- [C] gives the critic's first layer one weight matrix for s and one for a, each with its own
  initial range; here it is one matrix for [s, a].
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlal_fast.agents.actor_critic import ActorCritic, follow, mean_over_steps
from rlal_fast.errors import InputError
from rlal_fast.mlp import MLP, Condition, condition_on_epochs, single_thread
from rlal_fast.replay import ReplayBuffer, Transitions

_LEAST_SIGMA = 1e-6  # far below one channel; keeps the division by sigma finite


@dataclass(frozen=True)
class DDPGConfig:
    """Settings of DDPG; the marks are explained in the module's docstring.

    Raises:
        InputError: a value is outside its range.
    """

    actor_lr: float = 1e-4  # [C]
    critic_lr: float = 1e-3  # [C]
    gamma: float = 1.0  # [A]
    tau: float = 0.01  # [A]
    hidden: tuple[int, ...] = (300, 300)  # [A]
    batch_size: int = 64  # [A]
    sigma: float = 0.5  # [A] of the exploration noise, as a share of the ratio's range
    sigma_decay: float = 0.95  # [C] per episode; [A]: "exponentially decayed"
    baseline_decay: float = 0.5  # [C] per minibatch; [A]: "an exponential moving average"
    a_max: float = 0.8  # greatest pruning ratio; 0.8 [C]: at least 0.2 of a layer is preserved

    def __post_init__(self) -> None:
        checks = {
            "actor_lr": self.actor_lr > 0,
            "critic_lr": self.critic_lr > 0,
            "gamma": 0 < self.gamma <= 1,
            "tau": 0 < self.tau <= 1,
            "hidden": bool(self.hidden) and min(self.hidden) >= 1,
            "batch_size": self.batch_size >= 1,
            "sigma": 0 < self.sigma < math.inf,
            "sigma_decay": 0 < self.sigma_decay <= 1,
            "baseline_decay": 0 <= self.baseline_decay < 1,
            "a_max": 0 < self.a_max < 1,
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(f"DDPGConfig.{name} = {getattr(self, name)} is out of range")


def truncated_normal(mean: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from N(mean, sigma^2) truncated to [0, 1], by its inverse distribution function.

    Args:
        mean: [P], in [0, 1].
        sigma: [P], above 0.

    Returns:
        float64 [P].
    """
    mean, sigma = mean.double(), sigma.double()
    low, high = torch.special.ndtr(-mean / sigma), torch.special.ndtr((1.0 - mean) / sigma)
    share = torch.rand(mean.shape, generator=generator, dtype=torch.float64)
    drawn = mean + sigma * torch.special.ndtri(torch.lerp(low, high, share))
    return torch.clamp(drawn, 0.0, 1.0)  # ndtri(0) and ndtri(1) are infinite


class DDPG(ActorCritic):
    """AMC's agent: a deterministic actor, one critic, a target of each.

    The actor chooses where in [0, a_max] the ratio lies; noise that shrinks from episode to episode
    is added, and the sum clamped to the budget's bounds.

    Args:
        state_size: size S of a state.
        z_size: size Z of z; 0 for an agent without z (ablation w/o EE).
        config: its settings.
        seed: seed of the initial weights; the global generator is not touched.
    """

    name = "ddpg"

    def __init__(
        self, state_size: int, z_size: int, config: DDPGConfig | None = None, seed: int = 0
    ) -> None:
        self.config = config = config or DDPGConfig()
        super().__init__(state_size, z_size, config.hidden)
        generator = torch.Generator().manual_seed(seed)
        self.actor = MLP(state_size, z_size, config.hidden, 1, generator)
        self.critic = MLP(state_size + 1, z_size, config.hidden, 1, generator)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self._actor_adam = torch.optim.Adam(self.actor.parameters(), config.actor_lr, fused=True)
        self._critic_adam = torch.optim.Adam(self.critic.parameters(), config.critic_lr, fused=True)
        self.baseline: float | None = None  # mean reward of the last minibatches
        self.episodes = 0  # begun by this agent, before those that walk now
        self._walking = 0

    def learned(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The networks and optimisers, by their names in `state_dict`."""
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
            "actor_adam": self._actor_adam,
            "critic_adam": self._critic_adam,
        }

    def mu(self, actor: MLP, state: Tensor, condition: Condition | None) -> Tensor:
        """Ratios [B] in (0, a_max) that the actor asks for, before noise and bounds."""
        wish: Tensor = actor(state, condition)
        return self.config.a_max * torch.sigmoid(wish[0, :, 0])

    def Q(self, critic: MLP, state: Tensor, action: Tensor, condition: Condition | None) -> Tensor:
        """Values [B] of executed ratios [B], which the critic reads as shares of a_max."""
        inputs = torch.cat([state, (action / self.config.a_max)[:, None]], dim=1)
        values: Tensor = critic(inputs, condition)
        return values[0, :, 0]

    def sigmas(self, count: int) -> Tensor:
        """Noise [P] of the P episodes that walk now: as if they walked one after the other."""
        episode = self.episodes + torch.arange(count, dtype=torch.float64)
        sigma = self.config.sigma * self.config.sigma_decay**episode
        return sigma.clamp(min=_LEAST_SIGMA)

    def act(
        self, state: Tensor, z: Tensor | None, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Ratios [P] within [low, high] [P] for states [P, S] under this epoch's z [Z].

        Episodes begin, for the noise, with a state whose first component (the index) is 0.

        Raises:
            InputError: the state or z has another size than the agent was made for.
        """
        condition = self._condition(state, z)
        if not state[:, 0].any():
            self.episodes += self._walking
            self._walking = len(state)
        with single_thread(), torch.no_grad():
            mean = self.mu(self.actor, state, condition) / self.config.a_max
            share = truncated_normal(mean, self.sigmas(len(state)), generator)
            return torch.clamp((self.config.a_max * share).float(), low, high)

    def target(self, batch: Transitions, condition: Condition | None) -> Tensor:
        """y = R - b + gamma Q'(s', mu'(s')) [B], without the last term when done.

        R is the reward of the whole episode at each of its steps [A], "a variant form of Bellman's
        equation", and b the baseline.
        """
        with torch.no_grad():
            wish = self.mu(self.target_actor, batch.next_state, condition)
            a = torch.clamp(wish, batch.next_low, batch.next_high)
            q = self.config.gamma * self.Q(self.target_critic, batch.next_state, a, condition)
            return batch.episode_return - (self.baseline or 0.0) + torch.where(batch.done, 0.0, q)

    def actor_gradient(self, batch: Transitions, condition: Condition | None) -> Tensor:
        """Put the gradient of -mean Q(s, mu(s)) into the actor; returns that loss.

        Q is asked for the bounded ratio, which is what would be executed. Past a bound the gradient
        of the clamp is 0 and a deterministic actor would never come back: there it is passed on
        where it leads back inside, and dropped where it leads further out [R], in the manner of
        Hausknecht and Stone, Deep RL in Parameterized Action Space, ICLR 2016.
        """
        wish = self.mu(self.actor, batch.state, condition)
        asked = wish.detach()
        a = torch.clamp(asked, batch.low, batch.high).requires_grad_()
        loss = -self.Q(self.critic, batch.state, a, condition).mean()
        (gradient,) = torch.autograd.grad(loss, a)
        outward = ((asked < batch.low) & (gradient > 0)) | ((asked > batch.high) & (gradient < 0))
        wish.backward(gradient.masked_fill(outward, 0.0))
        return loss.detach()

    def update(
        self,
        replay: ReplayBuffer,
        z_by_epoch: Tensor | None,
        steps: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Take `steps` DDPG steps on minibatches of the replay; z_by_epoch [E, Z] is not trained.

        Returns:
            Means over the steps: critic_loss, q, actor_loss, baseline.

        Raises:
            InputError: the replay is empty, or z is missing, unexpected or short of epochs.
        """
        self._check_z(z_by_epoch)
        z = None if z_by_epoch is None else z_by_epoch.detach()
        return mean_over_steps(lambda: self._step(replay, z, generator), steps)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, Adam states, the baseline and the number of updates and episodes."""
        own = {"baseline": self.baseline, "episodes": self.episodes, "walking": self._walking}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, from what `state_dict` returned.

        Raises:
            InputError: the saved agent has other sizes.
        """
        super().load_state_dict(state)
        self.baseline, self.episodes = state["baseline"], state["episodes"]
        self._walking = state["walking"]

    def _step(
        self, replay: ReplayBuffer, z: Tensor | None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        batch = replay.sample(self.config.batch_size, generator)
        condition = None if z is None else condition_on_epochs(z, batch.epoch)
        self._move_baseline(float(batch.episode_return.mean()))
        y = self.target(batch, condition)
        q = self.Q(self.critic, batch.state, batch.action, condition)
        loss = (q - y).square().mean()
        self._critic_adam.zero_grad()
        loss.backward()
        self._critic_adam.step()
        self._actor_adam.zero_grad()
        actor_loss = self.actor_gradient(batch, condition)
        self._actor_adam.step()
        follow(self.target_actor, self.actor, self.config.tau)
        follow(self.target_critic, self.critic, self.config.tau)
        self.updates += 1
        metrics = {"critic_loss": loss.detach(), "q": q.detach().mean(), "actor_loss": actor_loss}
        return metrics | {"baseline": torch.tensor(self.baseline)}

    def _move_baseline(self, mean: float) -> None:
        if self.baseline is None:
            self.baseline = mean
        else:
            self.baseline = mean + self.config.baseline_decay * (self.baseline - mean)
