"""One step of SGD on a device, without a wait for it; on a GPU captured once and replayed.

A small network's step is a thousand short kernels, and launching them one by one takes longer than
they run. A CUDA graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast.errors import InputError

_EAGER_STEPS = 3  # before a capture: libraries set themselves up in these, which a graph cannot


class TrainingStep:
    """Loss, gradients and the update of `torch.optim.SGD`, on one device.

    The learning rate and the sums are tensors there. The first steps run eagerly and count as any
    other; the next one is captured, and from then on every batch of the same shape is a replay. A
    batch of another shape (an epoch's last) runs eagerly. On a GPU all steps must run on one
    stream, not the default one. Parameters, momentum buffers and the penalty's own tensors must
    stay where they are: make a new TrainingStep after loading other ones.

    Args:
        model: in training mode at each call.
        optimizer: SGD with one group of settings and Nesterov momentum; its momentum buffers are
            made and moved here, so that its state dict is that of a run on the CPU.
        penalty: added to the cross entropy, times beta.
        amp: dtype of the autocast, None for float32.
        capture: whether to capture; only on a GPU.

    Attributes:
        beta: [] on the device, weight of the penalty; 0 until it is filled. A captured step reads
            it, so it may change.
        sums: float64 [3]: loss, penalty and hits, summed over the images since they were zeroed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        penalty: Callable[[], Tensor] | None = None,
        *,
        amp: torch.dtype | None = None,
        capture: bool = False,
    ) -> None:
        (self._settings,) = optimizer.param_groups
        self._parameters = [p for p in self._settings["params"] if p.requires_grad]
        self._velocity = _velocities(optimizer, self._parameters)
        self._model, self._penalty = model, penalty
        self._amp, self._may_capture = amp, capture
        self._device = self._parameters[0].device
        self._lr = torch.zeros((), device=self._device)
        self.beta = torch.zeros((), device=self._device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None  # what the graph reads
        self._eager = 0

    def __call__(self, images: Tensor, labels: Tensor, lr: Tensor, whole: bool) -> None:
        """One step on images [B, C, H, W] and labels [B] at the rate lr [], all on the device.

        Args:
            whole: whether the batch has the epoch's usual size, so that it is worth capturing.

        Raises:
            InputError: the step cannot be captured.
        """
        self._lr.copy_(lr)
        images = images.contiguous(memory_format=torch.channels_last)
        if whole and self._may_capture and self._graph is None and self._eager >= _EAGER_STEPS:
            self._capture(images, labels)
        if whole and self._graph is not None and self._inputs is not None:
            for static, given in zip(self._inputs, (images, labels), strict=True):
                static.copy_(given)
            self._graph.replay()
        else:
            self._run(images, labels)
            self._eager += whole

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        """Records the step; nothing of it runs yet."""
        self._inputs = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(self._device)):
                self._run(*self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a broken capture fails, too
            reason = " ".join(str(cause).split())[:200]
            raise InputError(
                f"the training step cannot be captured as a CUDA graph ({reason}): train without "
                "by WeightsConfig(capture=False) or --no-capture"
            ) from error
        self._graph = graph

    def _run(self, images: Tensor, labels: Tensor) -> None:
        for parameter in self._parameters:
            parameter.grad = None  # in a capture, backward then takes memory of the graph's own
        kind, dtype = self._device.type, self._amp or torch.bfloat16
        # without the cache of casts: each weight is used once, and none may outlive a capture
        with torch.autocast(kind, dtype, enabled=self._amp is not None, cache_enabled=False):
            logits = self._model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels)
        pushed = self._penalty() if self._penalty is not None else torch.zeros_like(loss)
        (loss + self.beta * pushed).backward()
        with torch.no_grad():
            self._update()
            hits = (logits.argmax(1) == labels).sum().double()
            means = torch.stack([loss, pushed]).double() * len(labels)
            self.sums += torch.cat([means, hits[None]])

    def _update(self) -> None:
        """torch.optim.SGD's step with a learning rate that lives on the device."""
        momentum, decay = self._settings["momentum"], self._settings["weight_decay"]
        pairs = zip(self._parameters, self._velocity, strict=True)
        moved = [(p, p.grad, v) for p, v in pairs if p.grad is not None]
        parameters, gradients, velocity = ([item[i] for item in moved] for i in range(3))
        if decay:
            torch._foreach_add_(gradients, parameters, alpha=decay)
        if momentum:
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, gradients)
            torch._foreach_add_(gradients, velocity, alpha=momentum)
        torch._foreach_mul_(gradients, self._lr)
        torch._foreach_sub_(parameters, gradients)


def _velocities(optimizer: torch.optim.SGD, parameters: list[Tensor]) -> list[Tensor]:
    """The momentum buffers, made where there are none: zeros come to what SGD's first step does."""
    if not optimizer.param_groups[0]["momentum"]:
        return parameters  # not read
    for parameter in parameters:
        if optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return [optimizer.state[parameter]["momentum_buffer"] for parameter in parameters]
