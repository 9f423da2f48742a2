"""Soft actor-critic over pruning ratios (RLAL §3.2; hyper-parameters in method.md §8).

One actor pi, critics Q (two in the paper) and as many target critics. All read [s, z], where z
describes the weights of the epoch in which the episode was scored (method.md §6). The critics are
one network of several copies. At an episode's last step they know all of it: they predict its
reward, and `screening.py` picks by them which of many episodes are worth scoring.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlal_fast.agents.actor_critic import ActorCritic, follow, mean_over_steps
from rlal_fast.errors import InputError
from rlal_fast.mlp import MLP, Condition, condition_on_epochs, single_thread
from rlal_fast.replay import ReplayBuffer, Transitions


@dataclass(frozen=True)
class SACConfig:
    """Settings of SAC: [P] marks the paper's values, the others are readings (method.md §4, §8).

    Raises:
        InputError: a value is outside its range.
    """

    # What this differs in from `paper()` was measured on ResNet-20: benchmarks/agents.md.
    actor_lr: float = 1e-3  # [P] 1e-4, at which the policy hardly moves in 400 episodes
    critic_lr: float = 1e-3  # [P]
    betas: tuple[float, float] = (0.9, 0.999)  # [P]
    alpha: float = 0.1  # [P] entropy coefficient, fixed
    gamma: float = 1.0
    tau: float = 0.005
    hidden: tuple[int, ...] = (128, 128)
    batch_size: int = 64
    critics: int = 5  # [P] 2
    # In SAC the least of the critics counts, because a critic that learns from itself believes what
    # it overrates. With return_weight 1 none does, and their mean is the better guess.
    pessimistic: bool = False
    a_max: float = 0.8  # greatest pruning ratio
    log_std_min: float = -5.0
    log_std_max: float = 2.0
    # With a return in [0, 1] the entropy bonus of a whole episode outweighs differences of 0.1, so
    # rewards are centred and divided by their spread. Centring moves every return by one constant:
    # it changes no decision (all episodes are equally long), and the critics need not climb to it.
    # On the toy of python_tests/test_agents.py at alpha 0.1 (3000 updates, two seeds; random 0.58,
    # uniform 0.71, best 0.85): 0.83 with, 0.73 and 0.75 without.
    scale_rewards: bool = True
    reward_spread_floor: float = 0.01  # a spread below one point of accuracy is mostly noise
    # Share of the stored episode's own return in y; 0 is SAC [P]. The reward comes at the end only,
    # and in a few hundred episodes it does not find its way back through the values: y is the
    # return itself, as in Monte Carlo learning.
    return_weight: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "actor_lr": self.actor_lr > 0,
            "critic_lr": self.critic_lr > 0,
            "betas": all(0 <= beta < 1 for beta in self.betas),
            "alpha": self.alpha >= 0,
            "gamma": 0 < self.gamma <= 1,
            "tau": 0 < self.tau <= 1,
            "hidden": bool(self.hidden) and min(self.hidden) >= 1,
            "batch_size": self.batch_size >= 1,
            "a_max": 0 < self.a_max < 1,
            "log_std_max": self.log_std_min < 0 < self.log_std_max,
            "critics": self.critics >= 1,
            "return_weight": 0 <= self.return_weight <= 1,
            "reward_spread_floor": self.reward_spread_floor > 0,
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(f"SACConfig.{name} = {getattr(self, name)} is out of range")

    @classmethod
    def paper(cls) -> SACConfig:
        """The paper's settings (`--preset paper`), and where it is silent method.md §8's."""
        return cls(
            actor_lr=1e-4,
            hidden=(300, 300),
            batch_size=256,
            critics=2,
            pessimistic=True,
            scale_rewards=False,
            return_weight=0.0,
        )


def tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample t = tanh(mean + std * noise) and its log-density in tanh space, [B] each.

    log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2u)), which stays finite where tanh
    saturates.
    """
    u = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    return torch.tanh(u), gaussian - 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))


class SAC(ActorCritic):
    """The learning agent.

    Args:
        state_size: size S of a state.
        z_size: size Z of z; 0 for an agent without z (ablation w/o EE).
        config: its settings.
        seed: seed of the initial weights; the global generator is not touched.
    """

    name = "sac"

    def __init__(
        self, state_size: int, z_size: int, config: SACConfig | None = None, seed: int = 0
    ) -> None:
        self.config = config = config or SACConfig()
        super().__init__(state_size, z_size, (config.critics, *config.hidden))
        generator = torch.Generator().manual_seed(seed)
        self.actor = MLP(state_size, z_size, config.hidden, 2, generator)
        self._start_near_uniform()
        self.critics = MLP(
            state_size + 1, z_size, config.hidden, 1, generator, copies=config.critics
        )
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self._actor_parameters = list(self.actor.parameters())
        self._actor_adam = torch.optim.Adam(
            self._actor_parameters, config.actor_lr, config.betas, fused=True
        )
        self._critic_adam = torch.optim.Adam(
            self.critics.parameters(), config.critic_lr, config.betas, fused=True
        )

    def learned(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The networks and optimisers, by their names in `state_dict`."""
        return {
            "actor": self.actor,
            "critics": self.critics,
            "target_critics": self.target_critics,
            "actor_adam": self._actor_adam,
            "critic_adam": self._critic_adam,
        }

    def pi(
        self,
        state: Tensor,
        condition: Condition | None,
        low: Tensor,
        high: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Sample executed ratios a [B] in [low, high] and log pi [B], differentiably.

        The log-density is that of t in [-1, 1] before the budget's bounds: a bounded action has no
        density of its own, and where low == high it is simply a constant.
        """
        mean, log_std = self._policy(state, condition)
        t, log_pi = tanh_gaussian(mean, log_std, torch.randn(mean.shape, generator=generator))
        return torch.clamp(0.5 * self.config.a_max * (t + 1.0), low, high), log_pi

    def Q(self, critics: MLP, state: Tensor, action: Tensor, condition: Condition | None) -> Tensor:
        """Values [critics, B] of executed ratios [B], which the critics read on tanh's scale."""
        scaled = 2.0 / self.config.a_max * action - 1.0
        values: Tensor = critics(torch.cat([state, scaled[:, None]], dim=1), condition)
        return values.squeeze(2)

    def target(
        self, batch: Transitions, condition: Condition | None, generator: torch.Generator
    ) -> Tensor:
        """y = r + gamma (min_i Q'_i(s', a') - alpha log pi(a'|s')) [B]; only r when done.

        With return_weight w, y is (1 - w) of that and w of the episode's return. If not pessimistic
        the mean over the critics stands for the least.
        """
        if self.config.return_weight == 1.0:
            return batch.episode_return
        with torch.no_grad():
            a, log_pi = self.pi(
                batch.next_state, condition, batch.next_low, batch.next_high, generator
            )
            q = self._opinion(self.Q(self.target_critics, batch.next_state, a, condition))
            soft_value = self.config.gamma * (q - self.config.alpha * log_pi)
            y = batch.reward + torch.where(batch.done, 0.0, soft_value)
            weight = self.config.return_weight
            return torch.lerp(y, batch.episode_return, weight) if weight else y

    def critic_loss(
        self, batch: Transitions, condition: Condition | None, y: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over the critics of the mean of (Q_i(s, a) - y)^2."""
        q = self.Q(self.critics, batch.state, batch.action, condition)
        loss = (q - y).square().mean(1).sum()
        return loss, {"critic_loss": loss.detach(), "q": q.detach().mean()}

    def actor_loss(
        self, batch: Transitions, condition: Condition | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of alpha log pi(a|s) - min_i Q_i(s, a) over a ~ pi, bounded as when it acts.

        If not pessimistic the mean over the critics stands for the least.
        """
        a, log_pi = self.pi(batch.state, condition, batch.low, batch.high, generator)
        q = self._opinion(self.Q(self.critics, batch.state, a, condition))
        loss = (self.config.alpha * log_pi - q).mean()
        return loss, {"actor_loss": loss.detach(), "entropy": -log_pi.detach().mean()}

    def update_targets(self) -> None:
        """Q' <- Q' + tau (Q - Q')."""
        follow(self.target_critics, self.critics, self.config.tau)

    def act(
        self, state: Tensor, z: Tensor | None, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Sample ratios [P] within [low, high] [P] for states [P, S] under this epoch's z [Z].

        Raises:
            InputError: the state or z has another size than the agent was made for.
        """
        condition = self._condition(state, z)
        with single_thread(), torch.no_grad():
            return self.pi(state, condition, low, high, generator)[0]

    def predict(self, states: Tensor, actions: Tensor, z: Tensor | None) -> Tensor:
        """The critics' rewards [critics, N], on their scale, of episodes that are not scored yet.

        What they think of the last step: its state, if it holds a profile, tells all the others.

        Args:
            states: [N, G, S].
            actions: executed ratios [N, G].
            z: the epoch's [Z], or None.
        """
        condition = self._condition(states[:, -1], z)
        with single_thread(), torch.no_grad():
            return self.Q(self.critics, states[:, -1], actions[:, -1], condition)

    def update(
        self,
        replay: ReplayBuffer,
        z_by_epoch: Tensor | None,
        steps: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Take `steps` SAC steps on minibatches of the replay; z_by_epoch [E, Z] is not trained.

        Returns:
            Means over the steps: critic_loss, q, actor_loss, entropy (in tanh space), and
            reward_scale, the number by which rewards were divided.

        Raises:
            InputError: the replay is empty, or z is missing, unexpected or short of epochs.
        """
        self._check_z(z_by_epoch)
        z = None if z_by_epoch is None else z_by_epoch.detach()
        centre, scale = self._reward_scale(replay)
        metrics = mean_over_steps(lambda: self._step(replay, z, centre, scale, generator), steps)
        return metrics | {"reward_scale": scale} if metrics else {}

    def _step(
        self,
        replay: ReplayBuffer,
        z: Tensor | None,
        centre: float,
        scale: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        batch = replay.sample(self.config.batch_size, generator)
        condition = None if z is None else condition_on_epochs(z, batch.epoch)
        y = self.target(_scaled(batch, centre, scale), condition, generator)
        loss, critic_metrics = self.critic_loss(batch, condition, y)
        self._critic_adam.zero_grad()
        loss.backward()
        self._critic_adam.step()
        loss, actor_metrics = self.actor_loss(batch, condition, generator)
        self._actor_adam.zero_grad()
        loss.backward(inputs=self._actor_parameters)  # spares the critics' own gradients
        self._actor_adam.step()
        self.update_targets()
        self.updates += 1
        return critic_metrics | actor_metrics

    def _opinion(self, q: Tensor) -> Tensor:
        """One value [B] of the critics' [critics, B]."""
        return q.amin(0) if self.config.pessimistic else q.mean(0)

    def _policy(self, state: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor]:
        """Mean and log-std [B] of the Gaussian under the tanh; log-std is bounded smoothly."""
        mean, raw = self.actor(state, condition)[0].unbind(1)
        low, high = self.config.log_std_min, self.config.log_std_max
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)

    def _start_near_uniform(self) -> None:
        """Start at a standard deviation of about 1: after tanh, nearly uniform over the ratios."""
        low, high = self.config.log_std_min, self.config.log_std_max
        with torch.no_grad():
            self.actor.biases[-1][0, 0, 1] += math.atanh(-(high + low) / (high - low))

    def _reward_scale(self, replay: ReplayBuffer) -> tuple[float, float]:
        if not self.config.scale_rewards:
            return 0.0, 1.0
        mean, spread = replay.return_statistics()
        return mean, max(spread, self.config.reward_spread_floor)


def _scaled(batch: Transitions, centre: float, scale: float) -> Transitions:
    """The batch with returns, and rewards where an episode ends, on SAC's scale."""
    scaled = (batch.episode_return - centre) / scale
    reward = torch.where(batch.done, scaled, 0.0)
    return Transitions(**{**vars(batch), "reward": reward, "episode_return": scaled})
