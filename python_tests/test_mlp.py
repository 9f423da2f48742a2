"""mlp.py: the small networks against plain linear layers, and the one-thread rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rlal_fast.errors import InputError
from rlal_fast.mlp import MLP, Condition, condition_on_epochs, single_thread


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_mlp_equals_torch_linear_layers_on_the_concatenated_input() -> None:
    mlp = MLP(3, 2, (5, 4), 2, generator(), copies=2)
    x, z_by_epoch = (
        torch.randn(6, 3, generator=generator(1)),
        torch.randn(9, 2, generator=generator(2)),
    )
    epoch = torch.tensor([8, 0, 8, 3, 0, 0])
    outputs = mlp(x, condition_on_epochs(z_by_epoch, epoch))
    z_weight = mlp.z_weight
    assert outputs.shape == (2, 6, 2)
    assert z_weight is not None
    for k in range(2):
        first = torch.cat([mlp.weights[0][k], z_weight[k]])
        h = torch.cat([x, z_by_epoch[epoch]], dim=1) @ first + mlp.biases[0][k]
        h = torch.relu(h) @ mlp.weights[1][k] + mlp.biases[1][k]
        expected = torch.relu(h) @ mlp.weights[2][k] + mlp.biases[2][k]
        torch.testing.assert_close(outputs[k], expected)
    one = mlp(x, Condition(z_by_epoch[3:4], None))
    torch.testing.assert_close(one[:, 3], outputs[:, 3])
    with pytest.raises(InputError, match="without z"):
        mlp(x, None)
    with pytest.raises(InputError, match="epoch 9"):
        condition_on_epochs(z_by_epoch, torch.tensor([0, 9]))


def test_single_thread_restores_the_callers_number_also_after_an_error() -> None:
    def fail() -> None:
        with single_thread():
            seen.append(torch.get_num_threads())
            raise RuntimeError("inside")

    seen: list[int] = []
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == 2
