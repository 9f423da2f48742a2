"""Training weights on a GPU: epochs in which nothing waits for the device until their end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from rlal_fast import device
from rlal_fast.data.device_batches import DeviceBatches
from rlal_fast.seeds import derived_seed, generator
from rlal_fast.training_step import TrainingStep
from rlal_fast.weights import EpochResult, WeightsConfig, WeightTrainer


def trainer_for(model: nn.Module) -> type[WeightTrainer]:
    """What trains a model where it is: WeightTrainer on the CPU, DeviceTrainer on a GPU."""
    return WeightTrainer if device.of(model).type == "cpu" else DeviceTrainer


class DeviceTrainer(WeightTrainer):
    """WeightTrainer for a model on a GPU (it works on the CPU too, for tests).

    It sees the same images in the same order, cropped and mirrored in the same way, and takes the
    same steps; sums in another order and bfloat16 (`WeightsConfig.amp`) make the weights differ.
    A run on a GPU need not repeat bit for bit. That the training diverged is found at the end of
    the epoch.
    """

    _device_step: TrainingStep | None = None
    _made_for: tuple[int, ...] = ()

    @cached_property
    def device(self) -> torch.device:
        """Where the model was when it was first trained, and has to stay."""
        return device.of(self.model)

    @cached_property
    def batches(self) -> DeviceBatches:
        return DeviceBatches(self.data, self.device)

    @cached_property
    def _stream(self) -> torch.cuda.Stream | None:
        """A capture needs a stream that is not the default one, and all steps the same one."""
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def train_epoch(
        self,
        epoch: int,
        penalty: Callable[[], Tensor] | None = None,
        beta: float = 0.0,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> EpochResult:
        """As WeightTrainer's. `penalty` must be the same object in each epoch, as a captured step
        goes on reading its tensors, and `on_batch` is told what was sent, not what is done.

        Raises:
            InputError: the training diverged, or the step cannot be captured.
        """
        size = self.config.batch_size
        batches = self.data.train_batch_count(size)
        total, first = self.epochs * batches, epoch * batches
        rates = [self._set_lr(first + step, total) for step in range(batches)]
        with self._steps_alone(epoch):
            step = self._step_for(penalty)
            step.beta.copy_(torch.tensor(beta, dtype=torch.float64))  # 1e300 becomes inf
            step.sums.zero_()
            rates_there = torch.tensor(rates, dtype=torch.float32, device=self.device)
            self.model.train()
            count = 0
            source = self.batches.epoch(size, generator(self.seed, self.purpose, epoch))
            for number, (images, labels) in enumerate(source):
                step(images, labels, rates_there[number], whole=len(labels) == size)
                count += len(labels)
                if on_batch is not None:
                    on_batch(number + 1, batches)
            sums = step.sums.tolist()  # the one wait for the device
        self.model.eval()
        loss, pushed, hits = (value / count for value in sums)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}")
        self._check_weights()
        return EpochResult(loss, pushed, hits, rates[0])

    def _step_for(self, penalty: Callable[[], Tensor] | None) -> TrainingStep:
        """The step of the last epoch, or a new one if what it was made of was replaced."""
        if self._device_step is None or self._made_for != self._operands(penalty):
            assert isinstance(self.optimizer, torch.optim.SGD)
            self._device_step = TrainingStep(
                self.model,
                self.optimizer,
                penalty,
                amp=training_precision(self.config, self.device),
                capture=self.config.capture and self.device.type == "cuda",
            )
            self._made_for = self._operands(penalty)
        return self._device_step

    def _operands(self, penalty: Callable[[], Tensor] | None) -> tuple[int, ...]:
        """What a captured step depends on, by place; the step keeps all of it alive."""
        parameters = list(self.model.parameters())
        states = (self.optimizer.state.get(p, {}) for p in parameters)
        buffers = (id(state.get("momentum_buffer")) for state in states)
        tensors = (t.data_ptr() for t in (*parameters, *self.model.buffers()))
        return id(penalty), *tensors, *buffers

    @contextmanager
    def _steps_alone(self, epoch: int) -> Iterator[None]:
        """On the trainer's own stream, with the epoch's own dropout; both are given back."""
        seed = derived_seed(self.seed, f"{self.purpose} dropout", epoch)
        if self._stream is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield
            return
        with torch.cuda.device(self.device):
            # what fork_rng does, but for an error: a broken capture would raise anew in there
            drawn = torch.cuda.get_rng_state()
            torch.cuda.manual_seed(seed)  # a captured step reads the seed at each replay
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                yield
            before.wait_stream(self._stream)
            torch.cuda.set_rng_state(drawn)


def training_precision(config: WeightsConfig, place: torch.device) -> torch.dtype | None:
    """What to autocast to: bfloat16 from the GPUs on that compute with it, None for nothing."""
    if config.amp == "off" or place.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability(place) >= (8, 0) else None
