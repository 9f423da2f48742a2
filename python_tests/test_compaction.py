"""compaction: the smaller network is an ordinary module, equal to what the evaluator scored."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rlal_fast as rf
from rlal_fast.compaction import CompactNetwork, parameter_count


class Mixed(nn.Module):
    """What `resnet8` and `mobilenet_v2` lack: pools, biases, dropout, a lone batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), (1, 2), (1, 2))
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.3)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 12, 3, padding=2, dilation=2, bias=False)
        self.drop = nn.Dropout(0.4)
        self.hidden = nn.Linear(12 * 2 * 3, 9)
        self.head = nn.Linear(9, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = x + F.relu6(self.depthwise(F.relu(self.norm(x))))
        x = F.avg_pool2d(F.relu(self.wide(x)), 2, ceil_mode=True)
        x = self.drop(torch.flatten(x, 1))
        return self.head(F.dropout(F.relu(self.hidden(x)), 0.2, self.training))


SHAPES = {"resnet8": (3, 9, 13), "mobilenet_v2": (3, 8, 11), "mixed": (3, 6, 21)}


def network(name: str, seed: int = 1) -> nn.Module:
    """A network whose batch norms have seen some images, in eval mode."""
    torch.manual_seed(seed)
    model = Mixed() if name == "mixed" else rf.models.create(name, 5)
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(2 * torch.randn(16, *SHAPES[name]) + 1)
    return model.eval()


@cache
def graph_of(name: str) -> rf.PrunableGraph:
    return rf.PrunableGraph.trace(network(name), torch.randn(1, *SHAPES[name]), groups="all")


def random_subnet(graph: rf.PrunableGraph, seed: int = 0) -> rf.Subnet:
    rng = np.random.default_rng(seed)
    return graph.subnet_of(
        [np.sort(rng.permutation(w)[: rng.integers(1, w + 1)]) for w in graph.full_widths]
    )


def compacted(name: str = "mixed", seed: int = 0) -> CompactNetwork:
    graph = graph_of(name)
    return rf.compact(graph.model, random_subnet(graph, seed))


def images_for(name: str = "mixed", count: int = 7) -> Tensor:
    return torch.randn(count, *SHAPES[name])


def assert_near(result: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert result.shape == expected.shape
    difference = float((result.detach().double() - expected.detach().double()).abs().max())
    assert difference <= tolerance * float(expected.detach().abs().max())


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_the_evaluator_scored(name: str) -> None:
    graph, images = graph_of(name), images_for(name)
    labels = torch.randint(5, (len(images),))
    subnets = [random_subnet(graph, seed) for seed in range(3)]
    for subnet in (graph.full_subnet(), graph.subnet(np.ones_like(graph.full_widths)), *subnets):
        small = rf.compact(graph.model, subnet)
        with torch.no_grad():
            logits = small(images)
        for backend in ("native", "torch"):
            evaluator = rf.Evaluator(graph, images, labels, backend)
            assert_near(evaluator.logits(subnet), logits)
            hits = float((logits.argmax(1) == labels).double().mean())
            assert evaluator.accuracies([subnet]) == hits


@pytest.mark.parametrize("name", SHAPES)
def test_the_full_subnet_is_the_model_itself(name: str) -> None:
    graph, images = graph_of(name), images_for(name)
    whole = rf.compact(graph.model, graph.full_subnet())
    assert torch.equal(whole(images), graph.model(images))
    model = {k: v for k, v in graph.model.state_dict().items() if "num_batches" not in k}
    mine = {k: v for k, v in whole.state_dict().items() if "num_batches" not in k}
    assert model.keys() == mine.keys()  # the names stay those of the original
    assert all(torch.equal(mine[key], model[key]) for key in model)
    assert parameter_count(whole) == sum(p.numel() for p in graph.model.parameters())


def test_only_the_kept_rows_and_columns_remain() -> None:
    graph = graph_of("resnet8")
    names = [group.name for group in graph.groups]
    kept = [np.arange(w) for w in graph.full_widths]
    inner = names.index("layer2.0.conv1")
    kept[inner] = np.array([0, 3, 31])
    small = rf.compact(graph.model, graph.subnet_of(list(kept))).state_dict()
    full = graph.model.state_dict()
    assert torch.equal(small["layer2.0.conv1.weight"], full["layer2.0.conv1.weight"][[0, 3, 31]])
    assert torch.equal(
        small["layer2.0.bn1.running_var"], full["layer2.0.bn1.running_var"][[0, 3, 31]]
    )
    assert torch.equal(small["layer2.0.conv2.weight"], full["layer2.0.conv2.weight"][:, [0, 3, 31]])
    assert torch.equal(small["layer3.0.conv1.weight"], full["layer3.0.conv1.weight"])


def test_metadata_tells_which_channels_were_kept() -> None:
    graph = graph_of("mixed")
    subnet = random_subnet(graph)
    metadata = rf.compact(graph.model, subnet).metadata
    assert metadata["input_shape"] == [3, 6, 21]
    for group, kept in zip(graph.groups, subnet.kept, strict=True):
        assert metadata["widths"][group.name] == [len(kept), group.width]
        assert metadata["kept"][group.name] == kept.tolist()


def test_weights_come_from_the_model_given_and_are_copies() -> None:
    graph, images = graph_of("mixed"), images_for()
    other = network("mixed", seed=9)
    before = copy.deepcopy(other.state_dict())
    small = rf.compact(other, random_subnet(graph))
    assert_near(rf.compact(other, graph.full_subnet())(images), other(images), 1e-6)
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_it_trains_like_any_module() -> None:
    small = compacted("resnet8").train()
    images, labels = images_for("resnet8", 16), torch.randint(5, (16,))
    statistics = small.get_buffer("bn1.running_mean").clone()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(small(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        assert all(parameter.grad is not None for parameter in small.parameters())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert not torch.equal(small.get_buffer("bn1.running_mean"), statistics)
    assert int(small.get_buffer("bn1.num_batches_tracked")) == 40


def test_batch_norm_and_dropout_follow_the_mode_and_keep_their_constants() -> None:
    small, images = compacted(), images_for()
    norm = small.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.eps, norm.momentum) == (1e-3, 0.3)
    assert not small.training  # as the model was
    assert torch.equal(small(images), small(images))
    small.train()
    assert not torch.equal(small(images), small(images))  # dropout
    model = network("mixed").train()
    whole = rf.compact(model, graph_of("mixed").full_subnet())
    assert whole.training
    torch.manual_seed(3)
    expected = model(images)
    torch.manual_seed(3)
    assert torch.equal(whole(images), expected)  # the same dropout as in the original


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [1, 7])
def test_batches_layouts_and_precisions(name: str, count: int) -> None:
    small, images = compacted(name), images_for(name)
    expected = small(images).detach()
    assert_near(small(images[:count]), expected[:count], 1e-5)
    double = copy.deepcopy(small).double()
    precise = double(images[:count].double())
    assert precise.dtype == torch.float64
    assert_near(precise, expected[:count], 1e-5)
    last = copy.deepcopy(small).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    turned = images[:count].contiguous(memory_format=torch.channels_last)
    assert_near(last(turned), expected[:count], 1e-5)
    assert_near(small(turned), expected[:count], 1e-5)
    assert torch.equal(small(images), expected)  # the copies left the original alone


def test_a_double_or_channels_last_model_gives_a_network_like_it() -> None:
    graph, images = graph_of("mixed"), images_for()
    subnet = random_subnet(graph)
    expected = rf.compact(graph.model, subnet)(images)
    double = rf.compact(network("mixed").double(), subnet)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    assert_near(double(images.double()), expected, 1e-5)
    last = network("mixed").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert_near(rf.compact(last, subnet)(images), expected, 1e-5)


def test_a_deep_copy_is_independent() -> None:
    small, images = compacted(), images_for()
    expected = small(images).detach()
    twin = copy.deepcopy(small)
    assert torch.equal(twin(images), expected)
    with torch.no_grad():
        twin.get_parameter("stem.weight").zero_()
    twin.metadata["widths"].clear()
    assert torch.equal(small(images), expected)
    assert small.metadata["widths"]


@pytest.mark.parametrize("name", SHAPES)
def test_it_can_be_traced_and_pruned_again(name: str) -> None:
    small, images = compacted(name), images_for(name)
    graph = rf.PrunableGraph.trace(small, images, groups="all")
    again = rf.compact(small, graph.full_subnet())
    assert torch.equal(again(images), small(images))
    evaluator = rf.Evaluator(graph, images, torch.zeros(len(images), dtype=torch.int64), "native")
    assert_near(evaluator.logits(graph.full_subnet()), small(images).detach())


@pytest.mark.parametrize("name", ["resnet8", "mixed"])
def test_export_with_a_free_batch_axis_and_compile(name: str) -> None:
    small, images = compacted(name), images_for(name)
    batch = ({0: torch.export.Dim("batch", max=1024)},)  # without a largest, torch 2.6 refuses
    exported = torch.export.export(small, (images,), dynamic_shapes=batch, strict=False).module()
    for count in (2, 7):
        assert torch.equal(exported(images[:count]), small(images[:count]))
    compiled = torch.compile(copy.deepcopy(small), backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), small(images))


def test_another_architecture_is_refused() -> None:
    graph = graph_of("resnet8")
    subnet = random_subnet(graph)
    with pytest.raises(rf.InputError, match=r"no conv1\.weight of shape \(16, 3, 3, 3\)"):
        rf.compact(network("mobilenet_v2"), subnet)
    with pytest.raises(rf.InputError, match=r"no fc\.weight of shape \(5, 64\)"):
        rf.compact(rf.models.create("resnet8", 3), subnet)


def test_a_cumulative_batch_norm_stays_cumulative() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=None), nn.Flatten(), nn.Linear(5, 2)
    )
    graph = rf.PrunableGraph.trace(model, torch.zeros(1, 3, 3, 3))
    small = rf.compact(model, graph.full_subnet()).train()
    x = torch.randn(64, 3, 3, 3)
    small(x)
    expected = F.conv2d(x, model[0].weight, model[0].bias).mean((0, 2, 3))
    assert torch.allclose(small.get_buffer("1.running_mean"), expected, atol=1e-5)
