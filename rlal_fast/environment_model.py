"""The recurrent model of the environment that moves with the weights (RLAL §3.3, method.md §6).

An embedding psi_e per epoch; a GRU run over psi_1..psi_e gives z_e; a decoder predicts the reward
from (s, a, z_e). Trained on the rewards of all epochs, z_e tells which reward function epoch e has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlal_fast.errors import InputError
from rlal_fast.mlp import MLP, Condition, condition_on_epochs, single_thread, uniform_fan_in
from rlal_fast.replay import ReplayBuffer

# Small, so that the first z is close to the GRU's answer to nothing at all.
FIRST_EMBEDDING_STD = 0.1


@dataclass(frozen=True)
class EnvironmentModelConfig:
    """Sizes and training settings; all but the last three are the paper's (method.md §6).

    Raises:
        InputError: a value is outside its range.
    """

    embedding: int = 128
    hidden: int = 128  # of the GRU, so the size of z
    decoder: tuple[int, ...] = (300, 300)
    # 3e-3 on the toy of python_tests/drifting.py (regret without and with z, 2 to 5 seeds): a slow
    # drift of the optimum 0.168 -> 0.106 at 1e-3, 0.072 at 3e-3; sudden ones 0.267 -> 0.232, 0.224;
    # where the reward rises as well there was no difference.
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    # The same toy, rewards that jump every 10 epochs: 0.267 without z, 0.232 at 25 steps, 0.145 at
    # 100 (2 seeds, sd 0.01 to 0.04).
    steps_per_epoch: int = 50
    batch_size: int = 256
    # Share of a minibatch from the newest epoch alone, beyond its 1/E of all; 0 is the paper's. The
    # same toy at 0.5 instead of 0 (2 or 3 seeds): jumps every 10 epochs 0.232 -> 0.170, every 5
    # epochs 0.184 -> 0.182, slow drifts 0.106 -> 0.114 and, rising, 0.124 -> 0.114: unsettled.
    newest_share: float = 0.0

    def __post_init__(self) -> None:
        checks = {
            "embedding": self.embedding >= 1,
            "hidden": self.hidden >= 1,
            "decoder": bool(self.decoder) and min(self.decoder) >= 1,
            "lr": self.lr > 0,
            "betas": all(0 <= beta < 1 for beta in self.betas),
            "steps_per_epoch": self.steps_per_epoch >= 0,
            "batch_size": self.batch_size >= 1,
            "newest_share": 0 <= self.newest_share <= 1,
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(
                    f"EnvironmentModelConfig.{name} = {getattr(self, name)} is out of range"
                )


class EpochEmbeddings:
    """psi [E, D] with an Adam of its own, in which every epoch counts its own steps.

    torch.optim.Adam would need one tensor per epoch to give a new epoch a fresh state.
    """

    def __init__(self, size: int, lr: float, betas: tuple[float, float]) -> None:
        self.lr, self.betas = lr, betas
        self.psi = torch.zeros(0, size, requires_grad=True)
        self._mean = torch.zeros(0, size)  # Adam's first moment
        self._square = torch.zeros(0, size)  # Adam's second moment
        self._steps = torch.zeros(0, 1)

    def append(self, row: Tensor) -> None:
        """Add the embedding [D] of the next epoch; its Adam state starts fresh."""
        fresh = torch.zeros(1, row.shape[0])
        self.psi = torch.cat([self.psi.detach(), row[None]]).requires_grad_()
        self._mean = torch.cat([self._mean, fresh])
        self._square = torch.cat([self._square, fresh])
        self._steps = torch.cat([self._steps, torch.zeros(1, 1)])

    def step(self) -> None:
        """One Adam step (epsilon 1e-8) from psi's gradient, which is then dropped."""
        gradient = self.psi.grad
        if gradient is None:
            return
        beta1, beta2 = self.betas
        self._steps += 1
        self._mean.lerp_(gradient, 1 - beta1)
        self._square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mean = self._mean / (1 - beta1**self._steps)
        square = self._square / (1 - beta2**self._steps)
        with torch.no_grad():
            self.psi.sub_(self.lr * mean / (square.sqrt() + 1e-8))
        self.psi.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Embeddings and Adam state, as copies."""
        return {
            "psi": self.psi.detach().clone(),
            "mean": self._mean.clone(),
            "square": self._square.clone(),
            "steps": self._steps.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over saved embeddings, however many epochs they cover."""
        self.psi = state["psi"].clone().requires_grad_()
        self._mean = state["mean"].clone()
        self._square = state["square"].clone()
        self._steps = state["steps"].clone()


class EnvironmentModel:
    """Epoch embeddings, GRU and decoder, trained together.

    Args:
        state_size: size S of a state.
        config: sizes and training settings.
        seed: seed of all initial values; the global generator is not touched.
    """

    def __init__(
        self, state_size: int, config: EnvironmentModelConfig | None = None, seed: int = 0
    ) -> None:
        self.config = config = config or EnvironmentModelConfig()
        self.state_size = state_size
        generator = torch.Generator().manual_seed(seed)
        self._first = FIRST_EMBEDDING_STD * torch.randn(config.embedding, generator=generator)
        self.embeddings = EpochEmbeddings(config.embedding, config.lr, config.betas)
        # By way of "meta", because nn.GRU would initialise itself from the global generator.
        self.gru = nn.GRU(config.embedding, config.hidden, device="meta").to_empty(device="cpu")
        for parameter in self.gru.parameters():
            uniform_fan_in(parameter, config.hidden, generator)
        self.decoder = MLP(state_size + 1, config.hidden, config.decoder, 1, generator)
        parameters = [*self.gru.parameters(), *self.decoder.parameters()]
        self._adam = torch.optim.Adam(parameters, config.lr, config.betas, fused=True)
        self._z: Tensor | None = None  # z() until something moves

    @property
    def epochs(self) -> int:
        """Number E of epochs begun so far."""
        return self.embeddings.psi.shape[0]

    @property
    def z_size(self) -> int:
        """Size Z of z."""
        return self.config.hidden

    def begin_epoch(self) -> None:
        """Append psi_e, a copy of psi_{e-1}: e is acted in before anything is learned of it."""
        last = self.embeddings.psi.detach()[-1] if self.epochs else self._first
        self.embeddings.append(last)
        self._z = None

    def z(self) -> Tensor:
        """z of all epochs begun so far, float32 [E, Z], detached; row e belongs to epoch e."""
        if self._z is None:
            with single_thread(), torch.no_grad():
                self._z = self._run_gru()
        return self._z

    def predict(self, states: Tensor, actions: Tensor, epoch: int) -> Tensor:
        """Predicted rewards [...] of ratios [...] in states [..., S] under an epoch's weights.

        Raises:
            InputError: the epoch was not begun, or the shapes do not fit.
        """
        if not 0 <= epoch < self.epochs:
            raise InputError(f"epoch {epoch} was not begun: {self.epochs} epochs were, from 0")
        if tuple(states.shape) != (*actions.shape, self.state_size):
            raise InputError(
                f"states have shape {tuple(states.shape)}, for actions of shape "
                f"{tuple(actions.shape)} they need {(*actions.shape, self.state_size)}"
            )
        condition = Condition(self.z()[epoch : epoch + 1], None)
        with single_thread(), torch.no_grad():
            flat = self._decode(states.reshape(-1, self.state_size), actions.reshape(-1), condition)
        return flat.reshape(actions.shape)

    def update(self, replay: ReplayBuffer, generator: torch.Generator) -> dict[str, float]:
        """Take config.steps_per_epoch Adam steps on minibatches of all epochs' transitions.

        The target of every step of an episode is that episode's reward (method.md §6).

        Returns:
            environment_loss, the mean over the steps of the mean squared error (before each step).

        Raises:
            InputError: the replay is empty or holds an epoch that was not begun.
        """
        config, total = self.config, torch.zeros(())
        with single_thread():
            for _ in range(config.steps_per_epoch):
                batch = replay.sample(config.batch_size, generator, config.newest_share)
                condition = condition_on_epochs(self._run_gru(), batch.epoch)
                predicted = self._decode(batch.state, batch.action, condition)
                loss = (predicted - batch.episode_return).square().mean()
                self._adam.zero_grad()
                loss.backward()
                self._adam.step()
                self.embeddings.step()
                total += loss.detach()
        self._z = None
        return {"environment_loss": float(total) / max(1, config.steps_per_epoch)}

    def state_dict(self) -> dict[str, Any]:
        """Embeddings, GRU, decoder and Adam states: tensors, numbers and containers of them."""
        return {
            "first": self._first,
            "embeddings": self.embeddings.state_dict(),
            "gru": self.gru.state_dict(),
            "decoder": self.decoder.state_dict(),
            "adam": self._adam.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, from what `state_dict` returned; begin_epoch() may follow.

        Raises:
            InputError: the saved model has other sizes.
        """
        for name, module in (("gru", self.gru), ("decoder", self.decoder)):
            for key, tensor in module.state_dict().items():
                if key not in state[name] or state[name][key].shape != tensor.shape:
                    raise InputError(
                        f"the saved environment model's {name} has other sizes (at {key}): load it "
                        "into a model made with the same state size and config"
                    )
        self._first = state["first"].clone()
        self.embeddings.load_state_dict(state["embeddings"])
        self.gru.load_state_dict(state["gru"])
        self.decoder.load_state_dict(state["decoder"])
        self._adam.load_state_dict(state["adam"])
        self._z = None

    def _run_gru(self) -> Tensor:
        """z [E, Z] for all epochs in one pass; differentiable."""
        if self.epochs == 0:
            return torch.zeros(0, self.config.hidden)
        z: Tensor = self.gru(self.embeddings.psi)[0]
        return z

    def _decode(self, states: Tensor, actions: Tensor, condition: Condition) -> Tensor:
        x = torch.cat([states, actions[:, None]], dim=1)
        predicted: Tensor = self.decoder(x, condition)
        return predicted[0, :, 0]
