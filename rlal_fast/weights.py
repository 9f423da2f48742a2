"""Training weights, one epoch at a time; joint training and fine-tuning share it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast.data import ImageData
from rlal_fast.errors import InputError
from rlal_fast.seeds import derived_seed, generator


@dataclass(frozen=True)
class WeightsConfig:
    """SGD with Nesterov momentum and one cosine from `lr` to 0 (method.md §2).

    `amp` and `capture` are about GPUs; a CPU trains in float32, step by step.

    Raises:
        InputError: a value out of range.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    amp: str = "auto"
    """"auto": bfloat16 autocast on GPUs that have it; "off": float32, in which torch's own switches
    decide about TF32."""
    capture: bool = True  # the training step as a CUDA graph; False: kernel by kernel, slower

    def __post_init__(self) -> None:
        if self.amp not in ("auto", "off"):
            raise InputError(f"amp={self.amp!r} must be 'auto' or 'off'")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise InputError(
                f"lr={self.lr} must be positive, momentum={self.momentum} in [0, 1), "
                f"weight_decay={self.weight_decay} at least 0"
            )
        if self.batch_size < 2:
            raise InputError(f"batch_size={self.batch_size} must be at least 2 (batch norm)")


@dataclass(frozen=True)
class EpochResult:
    """Means over the images of one epoch, measured while the weights moved."""

    loss: float
    penalty: float
    accuracy: float
    lr: float  # at the start of the epoch


class WeightTrainer:
    """Trains `model` for `epochs` epochs; deterministic for (seed, purpose, epoch) on the CPU.

    Args:
        model: the network; trained in place.
        data: images.
        config: optimiser settings.
        epochs: length of the cosine.
        seed, purpose: what the order of images, augmentation and dropout derive from.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        config: WeightsConfig,
        *,
        epochs: int,
        seed: int,
        purpose: str,
    ) -> None:
        # Channels-last trains a CIFAR ResNet-20 1.3x as fast on a CPU (0.144 s against 0.194 s a
        # batch).
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.data, self.config = data, config
        self.epochs, self.seed, self.purpose = epochs, seed, purpose
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )

    def train_epoch(
        self,
        epoch: int,
        penalty: Callable[[], Tensor] | None = None,
        beta: float = 0.0,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> EpochResult:
        """One pass over the training split: loss = cross entropy + beta * penalty.

        Args:
            epoch: which of the `epochs`, from 0.
            penalty: the alignment term, if there is a structure yet.
            on_batch: told (batches done, batches in all).

        Raises:
            InputError: the training diverged.
        """
        batches = self.data.train_batch_count(self.config.batch_size)
        total_steps = self.epochs * batches
        sums = torch.zeros(3, dtype=torch.float64)
        count, first_lr = 0, 0.0
        source = self.data.train_batches(
            self.config.batch_size, generator(self.seed, self.purpose, epoch)
        )
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, f"{self.purpose} dropout", epoch))
            for step, (images, labels) in enumerate(source):
                lr = self._set_lr(epoch * batches + step, total_steps)
                first_lr = first_lr or lr
                sums += self._step(images, labels, penalty, beta)
                count += len(labels)
                if on_batch is not None:
                    on_batch(step + 1, batches)
        self.model.eval()
        self._check_weights()  # no loss has seen the last step
        loss, pushed, hits = (sums / count).tolist()
        return EpochResult(loss, pushed, hits, first_lr)

    def _step(
        self, images: Tensor, labels: Tensor, penalty: Callable[[], Tensor] | None, beta: float
    ) -> Tensor:
        """One SGD step; returns float64 [3]: sums over the batch of loss, penalty and hits."""
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels)
        pushed = penalty() if penalty is not None else torch.zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        (loss + beta * pushed).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss became {loss.item()}")
        hits = (logits.detach().argmax(1) == labels).sum()
        means = torch.stack([loss.detach(), pushed.detach()]).double() * len(labels)
        return torch.cat([means, hits.double()[None]])

    def _check_weights(self) -> None:
        finite = [parameter.isfinite().all() for parameter in self.model.parameters()]
        if finite and not bool(torch.stack(finite).all()):  # one wait for a GPU, not one each
            raise self._diverged("a weight is no longer a finite number")

    def _diverged(self, what: str) -> InputError:
        return InputError(f"{what}: lower the learning rate (now {self.config.lr})")

    def _set_lr(self, step: int, total: int) -> float:
        lr = 0.5 * self.config.lr * (1 + math.cos(math.pi * step / max(1, total)))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalise: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 500,
) -> float:
    """Top-1 accuracy in [0, 1] of `model` in eval mode (its mode is restored).

    `normalise` is applied batch by batch, so that a large split needs no float copy. The images may
    be on another device than the model; they are sent batch by batch.
    """
    training = model.training
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), images.device)
    hits = torch.zeros((), dtype=torch.int64, device=device)
    for batch, expected in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        there = batch.to(device)
        prepared = there if normalise is None else normalise(there)
        hits += (model(prepared).argmax(1) == expected.to(device)).sum()
    model.train(training)
    return int(hits) / len(labels)
