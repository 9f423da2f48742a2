"""models/*: sizes that the papers print, and the same function written down a second time."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast import models
from rlal_fast.errors import InputError
from rlal_fast.models.resnet_cifar import ResNetCifar

SIZES = [(4, 4), (5, 7), (11, 17), (32, 32)]


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return model.eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ResNets: He et al. 2016, table 6 (0.27M to 1.7M), in the exact numbers of its public
# reproductions; MobileNets: of their public CIFAR-10 ports, V2 without shortcut convolutions.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("mobilenet_v1", 3_217_226),
        ("mobilenet_v1_0.5", 823_722),
        ("mobilenet_v2", 2_236_682),
        ("torchvision/resnet18", 11_181_642),
    ],
)
def test_parameter_count_is_the_published_one(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(models.create(name, 10)) == expected


# Howard et al. 2017, table 6, in millions, for 1000 classes.
@pytest.mark.parametrize(("multiplier", "millions"), [("0.75", 2.6), ("0.5", 1.3), ("0.25", 0.5)])
def test_width_multipliers_give_the_paper_s_sizes(multiplier: str, millions: float) -> None:
    with torch.device("meta"):
        count = parameters(models.create(f"mobilenet_v1_{multiplier}", 1000))
    assert abs(count / 1e6 - millions) < 0.06


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_takes_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = models.create(name, 7, in_channels=1).eval()
        assert model(torch.zeros(3, 1, *size)).shape == (3, 7)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("depth", [8, 20])
def test_cifar_resnet_is_the_paper_s_with_option_a_shortcuts(
    depth: int, size: tuple[int, int]
) -> None:
    model = randomised(models.create(f"resnet{depth}", 10))
    state = model.state_dict()
    x = torch.randn(2, 3, *size)

    def conv_bn(y: Tensor, place: str, number: int, stride: int) -> Tensor:
        y = F.conv2d(y, state[f"{place}conv{number}.weight"], stride=stride, padding=1)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(state[f"{place}bn{number}.{n}"] for n in names))

    y = F.relu(conv_bn(x, "", 1, 1))
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            place = f"layer{stage}.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            inner = F.relu(conv_bn(y, place, 1, stride))
            out = conv_bn(inner, place, 2, 1)
            shortcut = torch.zeros_like(out)
            first = (channels - y.shape[1]) // 2  # new channels are zero, half on either side
            shortcut[:, first : first + y.shape[1]] = y[:, :, ::stride, ::stride]
            y = F.relu(out + shortcut)
    expected = F.linear(y.mean((2, 3)), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_mobilenet_v2_is_torchvision_s_with_the_first_two_strides_removed() -> None:
    theirs = models.create("torchvision/mobilenet_v2", 10)
    theirs.get_submodule("features.0.0").stride = (1, 1)  # type: ignore[assignment]
    theirs.get_submodule("features.2.conv.1.0").stride = (1, 1)  # type: ignore[assignment]
    randomised(theirs)
    ours = models.create("mobilenet_v2", 10).eval()
    weights = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    x = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_mobilenet_v1_is_the_paper_s_table_with_a_first_stride_of_one() -> None:
    model = models.create("mobilenet_v1", 10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs]
    expected, width = [(3, 32, 3, 1)], 32
    for channels, stride in (
        [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
        + 5 * [(512, 1)]
        + [(1024, 2), (1024, 1)]
    ):
        expected += [(width, width, 3, stride), (width, channels, 1, 1)]
        width = channels
    assert shapes == expected
    depthwise = [c for c in convs[1:] if c.kernel_size == (3, 3)]
    assert all(c.groups == c.in_channels and c.padding == (1, 1) for c in depthwise)


def test_initialisation_follows_he_and_the_seed() -> None:
    torch.manual_seed(3)
    first = models.create("resnet20", 10)
    torch.manual_seed(3)
    second = models.create("resnet20", 10)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    conv = first.get_submodule("layer3.2.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)


def test_torchvision_networks_come_untrained_with_the_classes_asked_for() -> None:
    from torchvision.models import ResNet

    model = models.create("torchvision/resnet18", 5)
    assert isinstance(model, ResNet)
    assert model.fc.out_features == 5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet21", (10,), r"unknown architecture 'resnet21': known are resnet8.*/<name>"),
        ("ResNet20", (10,), "unknown architecture"),
        ("", (10,), "unknown architecture"),
        ("torchvision/resnet19", (10,), "unknown torchvision network 'resnet19'.*'resnet18'"),
        ("torchvision/fcn_resnet50", (10,), "unknown torchvision network"),
        ("torchvision/resnet18", (10, 1), "images of 3 channels, these have 1"),
        ("resnet20", (0,), "num_classes=0"),
        ("mobilenet_v2", (10, 0), "in_channels=0"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(
    name: str, arguments: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        models.create(name, *arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("depth", [2, 7, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match=f"6n\\+2.*not {depth}"):
        ResNetCifar(depth)


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="needs torchvision, which is not installed"):
        models.create("torchvision/resnet18", 10)
