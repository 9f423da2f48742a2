"""tracing.py and aten.py: nodes compute what the network computes, or the network is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast import compact, models
from rlal_fast.errors import InputError
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import reference
from rlal_fast.tracing import Node, trace

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A forward function and its layers: modules, parameters, or tensors (buffers)."""

    def __init__(self, forward: Forward, **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (*module.parameters(), module.running_mean, module.running_var):
                    if tensor is not None:
                        nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(inputs: int = 3, outputs: int = 7, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def around(layer: nn.Module, inputs: int = 3) -> Net:
    """Something between a convolution and the average of all pixels."""
    return Net(
        lambda net, x: pooled(net.layer(net.stem(x))), stem=conv(3, inputs, bias=False), layer=layer
    )


def ops(nodes: tuple[Node, ...]) -> list[str]:
    return [node.op for node in nodes]


def logits(model: nn.Module, nodes: tuple[Node, ...], x: Tensor) -> Tensor:
    """What the nodes compute, by the torch twin, with all channels kept."""
    kept = [np.arange(node.shape[0]) for node in nodes]
    return reference.subnet_logits(nodes, model.state_dict(), kept, x)


def functional_norm() -> dict[str, Tensor]:
    return {
        "scale": nn.Parameter(torch.rand(7) + 0.5),
        "shift": nn.Parameter(torch.randn(7)),
        "mean": torch.randn(7),
        "var": torch.rand(7) + 0.5,
    }


class NormThenConv(nn.Conv2d):
    """A layer with another one inside, which runs first."""

    def __init__(self) -> None:
        super().__init__(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(self.norm(x)))


def relu_then_read_again(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y += net.b(y)
    z = F.relu_(y)
    y = y + net.c(z)  # y was changed by the line before
    return pooled(y)


def clone_keeps_the_old_values(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    before = y.clone()
    return pooled(F.relu_(y) + before)


def one_view_of_two(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y[:, :]
    F.relu_(z)
    return pooled(net.b(y))  # sees the relu through its view


SUPPORTED: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: around(conv(5, 7), 5),
    "conv-bias-stride-padding-dilation": lambda: around(
        nn.Conv2d(5, 7, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), 5
    ),
    "conv-depthwise": lambda: around(conv(5, 5, groups=5), 5),
    "conv-of-one-channel": lambda: around(conv(1, 1), 1),
    "relu": lambda: around(nn.ReLU()),
    "relu-in-place": lambda: around(nn.Sequential(conv(3, 4), nn.ReLU(inplace=True))),
    "relu6": lambda: around(nn.ReLU6()),
    "relu6-in-place": lambda: around(nn.ReLU6(inplace=True)),
    "hardtanh-0-6": lambda: around(nn.Hardtanh(0, 6)),
    "identity": lambda: around(nn.Identity()),
    "max-pool": lambda: around(nn.MaxPool2d(3, 2, 1)),
    "max-pool-own-stride-ceil": lambda: around(nn.MaxPool2d((2, 3), ceil_mode=True)),
    "avg-pool": lambda: around(nn.AvgPool2d(3, 2, 1)),
    "avg-pool-inside-only": lambda: around(
        nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True)
    ),
    "adaptive-pool-divides": lambda: around(nn.AdaptiveAvgPool2d((2, 3))),
    "adaptive-pool-one-axis": lambda: around(nn.AdaptiveAvgPool2d((None, 3))),
    "adaptive-pool-same": lambda: around(nn.AdaptiveAvgPool2d((8, 9))),
    "batch-norm": lambda: around(nn.BatchNorm2d(3, eps=1e-2)),
    "batch-norm-functional": lambda: Net(
        lambda net, x: pooled(
            F.batch_norm(net.a(x), net.mean, net.var, net.scale, net.shift, eps=0.01)
        ),
        a=conv(),
        **functional_norm(),
    ),
    "batch-norm-decomposed": lambda: Net(
        lambda net, x: pooled(
            torch.ops.aten._native_batch_norm_legit_no_training(
                net.a(x), net.scale, net.shift, net.mean, net.var, 0.1, 0.01
            )[0]
        ),
        a=conv(),
        **functional_norm(),
    ),
    "layer-inside-a-layer": lambda: around(NormThenConv()),
    "two-functional-convs-of-one-module": lambda: Net(
        lambda net, x: pooled(F.conv2d(F.conv2d(x, net.weight, padding=1), net.other)),
        weight=nn.Parameter(torch.randn(5, 3, 3, 3)),
        other=nn.Parameter(torch.randn(7, 5, 1, 1)),
    ),
    "mean-of-pixels": lambda: Net(lambda net, x: net.a(x).mean((-1, 2)), a=conv()),
    "mean-keepdim": lambda: Net(lambda net, x: net.a(x).mean((2, 3), True).squeeze(), a=conv()),
    "flatten-pixels": lambda: Net(
        lambda net, x: net.fc(net.a(x).flatten(1)), a=conv(), fc=nn.Linear(7 * 72, 4)
    ),
    "view": lambda: Net(
        lambda net, x: net.fc(net.a(x).view(x.size(0), -1)), a=conv(), fc=nn.Linear(7 * 72, 4)
    ),
    "linear-without-bias": lambda: Net(
        lambda net, x: net.fc(pooled(x)), fc=nn.Linear(3, 4, bias=False)
    ),
    "option-a": lambda: around(
        Net(
            lambda net, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3)) + net.a(x),
            a=conv(3, 7, stride=2),
        )
    ),
    "rows-only": lambda: Net(lambda net, x: pooled(net.a(x)[:, :, ::3]), a=conv()),
    "add-to-itself": lambda: Net(lambda net, x: pooled((lambda y: y + y)(net.a(x))), a=conv()),
    "add-in-place-read-later": lambda: Net(
        relu_then_read_again, a=conv(), b=conv(7, 7), c=conv(7, 7)
    ),
    "clone-then-in-place": lambda: Net(clone_keeps_the_old_values, a=conv()),
    "in-place-through-a-whole-view": lambda: Net(one_view_of_two, a=conv(), b=conv(7, 7)),
    "dropout-in-place-on-a-view": lambda: Net(
        lambda net, x: net.fc(net.drop(pooled(net.a(x)))),
        a=conv(), drop=nn.Dropout(0.3, inplace=True), fc=nn.Linear(7, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", SUPPORTED.values(), ids=SUPPORTED)
def test_nodes_compute_what_the_network_computes(make: Callable[[], nn.Module]) -> None:
    model, x = make().eval(), torch.randn(3, 3, 8, 9)
    nodes = trace(model, x[:1])
    with torch.no_grad():
        expected = model(x.clone())
        assert nodes[0].shape == (3, 8, 9)
        assert nodes[-1].shape == expected.shape[1:]
        torch.testing.assert_close(logits(model, nodes, x), expected)
        graph = PrunableGraph(model, nodes, "internal", (), ())
        torch.testing.assert_close(compact(model, graph.full_subnet())(x), expected)


@pytest.mark.parametrize("make", SUPPORTED.values(), ids=SUPPORTED)
def test_nodes_are_in_order_unique_and_plain_data(make: Callable[[], nn.Module]) -> None:
    model = make()
    nodes = trace(model, torch.zeros(2, 3, 8, 9))
    assert len({node.name for node in nodes}) == len(nodes)
    for index, node in enumerate(nodes):
        assert node.index == index
        assert all(source < index for source in node.inputs)
        assert json.loads(json.dumps(dict(node.attrs))) == node.attrs
        assert set(node.params.values()) <= set(model.state_dict())


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("size", [(5, 17), (11, 7)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_batch_axis_is_free_and_images_need_not_be_square(
    batch: int, size: tuple[int, int]
) -> None:
    model = models.create("resnet8", 10).eval()
    nodes = trace(model, torch.zeros(batch, 3, *size))
    x = torch.randn(7, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, nodes, x), model(x), rtol=1e-4, atol=1e-5)


def test_names_are_places_in_the_model() -> None:
    nodes = trace(models.create("torchvision/mobilenet_v2", 10), torch.zeros(1, 3, 32, 32))
    names = [node.name for node in nodes]
    assert names[:4] == ["input", "features.0.0", "features.0.1", "features.0.2.relu6"]
    assert "features.3.add" in names
    assert names[-2:] == ["classifier.0.dropout", "classifier.1"]


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_mode_weights_statistics_and_random_state(training: bool) -> None:
    model = around(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))).train(training)
    model.get_submodule("layer.0").train(not training)  # a frozen batch norm stays frozen
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(4, 3, 8, 8)
    random_state = torch.get_rng_state()
    trace(model, x)
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_failed_trace_leaves_the_mode_and_says_nothing_else(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(7, 4)).train()
    with pytest.raises(InputError, match=r"Sequential cannot be traced for images \(1, 3, 8, 8\)"):
        trace(model, torch.zeros(1, 3, 8, 8))
    assert model.training
    assert model[0].training
    assert capfd.readouterr() == ("", "")


def test_dropout_is_kept_for_fine_tuning() -> None:
    model = nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.25))
    graph = PrunableGraph.trace(model, torch.zeros(1, 3, 8, 8))
    assert graph.nodes[-1].op == "dropout"
    assert graph.nodes[-1].attrs == {"p": 0.25}
    small = compact(model, graph.full_subnet())
    x = torch.randn(64, 3, 8, 8)
    dropped = (small.train()(x) == 0).double().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.06)
    assert (small.eval()(x) != 0).all()


def base_read_after_its_view_changed(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y[:, :, ::2, ::2])
    return pooled(y)


def view_read_after_its_base_changed(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    some = y[:, :, ::2, ::2]
    F.relu_(y)
    return pooled(net.b(y)) + pooled(some)


def one(function: Callable[[Tensor], Any]) -> Net:
    return Net(lambda net, x: function(net.a(x)), a=conv(3, 4))


def tied() -> Net:
    first, second = conv(3, 3), conv(3, 3)
    second.weight = first.weight
    return Net(lambda net, x: pooled(net.b(net.a(x))), a=first, b=second)


ONES = torch.ones(4, 8, 8)

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "cat": (
        lambda: around(Net(lambda net, x: torch.cat([x, x], 1))),
        r"operation aten\.cat\.default in layer is not supported yet",
    ),
    "permute": (lambda: one(lambda y: pooled(y.permute(0, 1, 3, 2))), r"aten\.permute"),
    "sigmoid": (lambda: around(nn.Sequential(nn.ReLU(), nn.Sigmoid())), r"sigmoid.* in layer\.1"),
    "product": (lambda: one(lambda y: pooled(y * y)), r"mul\.Tensor in the network's forward is"),
    "add-number": (lambda: one(lambda y: pooled(y + 1)), "reads 1, which is not an activation, so"),
    "add-parameter": (
        lambda: Net(lambda net, x: pooled(x + net.p), p=nn.Parameter(torch.zeros(3, 8, 8))),
        "reads p_p, which is not an activation",
    ),
    "add-broadcast": (lambda: one(lambda y: pooled(y + y.mean((2, 3), True))), "broadcasts"),
    "add-scaled": (lambda: one(lambda y: pooled(torch.add(y, y, alpha=2))), "scales"),
    "groups": (lambda: around(conv(4, 4, groups=2), 4), "layer has 2 groups"),
    "depth-multiplier": (lambda: around(conv(4, 8, groups=4), 4), "has 4 groups"),
    "transposed": (lambda: around(nn.ConvTranspose2d(3, 4, 2)), "conv_transpose2d.* in layer"),
    "same-padding": (lambda: around(conv(3, 4, padding="same")), "padding='same' .give numbers"),
    "reflect-padding": (lambda: around(conv(3, 4, padding_mode="reflect")), "reflect"),
    "pixel-padding": (lambda: one(lambda y: pooled(F.pad(y, (1, 1, 1, 1)))), "only zero channels"),
    "crop-channels": (lambda: one(lambda y: pooled(y[:, :2])), r"takes \[0:2:1\] of axis 1"),
    "crop-pixels": (lambda: one(lambda y: pooled(y[:, :, 1:])), r"takes \[1:.*of axis 2"),
    "clamp-at-1": (lambda: around(nn.Hardtanh()), "only .0, 6."),
    "dilated-pool": (lambda: around(nn.MaxPool2d(2, 1, dilation=2)), "is dilated"),
    "divisor": (lambda: around(nn.AvgPool2d(2, divisor_override=3)), "unusual"),
    "uneven-pool": (lambda: around(nn.AdaptiveAvgPool2d(3)), "pools 8x8 to .3, 3., which do not"),
    "mean-of-channels": (lambda: one(lambda y: y.mean(1).flatten(1)), "averages over something"),
    "mean-of-all": (lambda: one(lambda y: y.mean()), "averages over something else"),
    "batch-to-channels": (lambda: one(lambda y: y.view(-1, 4)), "mixes the images of a batch"),
    "first-images": (lambda: one(lambda y: pooled(y)[:64]), "mixes the images of a batch"),
    "reshape": (lambda: one(lambda y: pooled(y.view(-1, 2, 16, 8))), "only flattening"),
    "shared-layer": (
        lambda: Net(lambda net, x: pooled(net.a(F.relu(net.a(x)))), a=conv(3, 3)),
        "a is applied more than once; layers that share weights",
    ),
    "tied-weights": (tied, "share weights"),
    "linear-per-pixel": (lambda: around(nn.Linear(8, 8)), "more than one position"),
    "computed-weight": (
        lambda: Net(
            lambda net, x: pooled(F.conv2d(x, net.w.view(4, 3, 1, 1))),
            w=nn.Parameter(torch.ones(12)),
        ),
        r"view\.default in the network's forward reads p_w, which is not an activation",
    ),
    "batch-statistics": (
        lambda: around(nn.BatchNorm2d(3, track_running_stats=False)), "statistics"
    ),
    "batch-statistics-forced": (
        lambda: Net(
            lambda net, x: pooled(
                F.batch_norm(net.a(x), net.mean, net.var, net.scale, net.shift, training=True)
            ),
            a=conv(), **functional_norm(),
        ),
        "normalises by the statistics of the batch",
    ),
    "no-affine": (lambda: around(nn.BatchNorm2d(3, affine=False)), "layer lacks affine weights"),
    "always-drops": (lambda: one(lambda y: pooled(F.dropout(y, 0.5, True))), "drops in evaluation"),
    "dropout2d": (lambda: around(nn.Dropout2d()), r"feature_dropout\.default in layer is not"),
    "view-changed": (lambda: Net(base_read_after_its_view_changed, a=conv()), "view is read later"),
    "base-changed": (
        lambda: Net(view_read_after_its_base_changed, a=conv(), b=conv(7, 7)), "view is read later"
    ),
    "constant": (lambda: one(lambda y: pooled(y + ONES)), "uses a constant tensor"),
    "made-inside": (lambda: one(lambda y: pooled(y + torch.ones(4, 8, 8))), r"aten\.ones\.default"),
    "two-outputs": (lambda: one(lambda y: (pooled(y), pooled(y))), "must return one tensor"),
    "no-output": (lambda: one(lambda y: None), "must return logits .N, classes., not None"),
    "image-output": (lambda: one(lambda y: y), r"not of shape \(4, 8, 8\) per image"),
    "unused-end": (
        lambda: Net(lambda net, x: (pooled(x), net.a(x))[0], a=conv()), "computes a after its out"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_pruned_is_refused_with_its_name_and_place(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        trace(make(), torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(raised.value)
    assert ",," not in str(raised.value)


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=["no batch axis", "no images", "no pixels", "bytes"],
)
def test_an_example_that_is_no_float_batch_is_refused(example: Tensor) -> None:
    with pytest.raises(InputError, match=r"must be float images \[N, C, H, W\] with N >= 1, not"):
        trace(models.create("resnet8", 10), example)


def test_images_of_the_wrong_channels_are_refused() -> None:
    with pytest.raises(InputError, match=r"ResNetCifar cannot be traced.*\(1, 1, 8, 8\).*channels"):
        trace(models.create("resnet8", 10), torch.zeros(1, 1, 8, 8))
