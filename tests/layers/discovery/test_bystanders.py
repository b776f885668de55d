"""Networks that take no part in training do not count."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import Block, Distillation, FrozenBackbone, Network, Perceptual, Trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.metric import Metric

from lightning_freeze.layers import LayerStack

NAMES = ["embeddings", "0", "1", "2", "3", "head"]


def counted(stack: LayerStack) -> list[str]:
    """The last part of the names of all layers that take part."""
    return [layer.name.rpartition(".")[2] for layer in stack if not layer.is_bystander]


def apart(stack: LayerStack) -> set[str]:
    """The full names of the networks that do not take part."""
    return {prefix.split(".")[0] for layer in stack.bystanders for prefix in layer.prefixes}


@pytest.mark.parametrize("depth", [4, 12])
@pytest.mark.parametrize("kind", ["before", "behind"])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_teacher(kind: str, depth: int, is_frozen: bool) -> None:
    stack = LayerStack(Distillation(kind, depth, is_frozen))
    assert counted(stack) == NAMES
    assert [layer.height for layer in stack if not layer.is_bystander] == [5, 4, 3, 2, 1, 0]
    assert apart(stack) == {"teacher"}
    assert stack.unassigned == []
    assert "teacher: takes no part in training" in stack.describe()


@pytest.mark.parametrize(("kind", "name"), [("copy", "ema"), ("average", "averaged")])
def test_an_average_of_the_weights(kind: str, name: str) -> None:
    stack = LayerStack(Distillation(kind))
    assert counted(stack) == NAMES
    assert apart(stack) == {name}


def test_a_network_that_only_compares() -> None:
    stack = LayerStack(Perceptual())
    assert apart(stack) == {"features"}


class WithModel(Metric):
    """A metric that holds a network."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()
        self.add_state("total", torch.zeros(()))

    def update(self, tokens: Tensor) -> None:
        self.total += self.network(tokens).sum()

    def compute(self) -> Tensor:
        return self.total


def test_a_model_inside_a_metric() -> None:
    module = FrozenBackbone()
    module.metrics = nn.ModuleDict({"own": WithModel()})
    stack = LayerStack(module)
    assert counted(stack) == NAMES
    assert all(name.startswith("metrics.") for name, _ in stack.unassigned)
    assert stack.unassigned
    stack = LayerStack(nn.ModuleDict({"net": Network(), "score": MetricCollection({"one": MulticlassAccuracy(3)})}))
    assert all(not isinstance(m, Metric | MetricCollection) for layer in stack for m in layer.modules())


class Nested(Trained):
    """Student and teacher in one module below the root, behind a helper method."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Module()
        self.pair.student = Network()
        self.pair.reference = copy.deepcopy(self.pair.student).requires_grad_(False)

    @torch.no_grad()
    def wanted(self, tokens: Tensor) -> Tensor:
        return self.pair.reference(tokens).softmax(-1)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.pair.student(tokens), self.wanted(tokens))


def test_a_reference_below_the_root() -> None:
    stack = LayerStack(Nested())
    assert counted(stack) == NAMES
    assert {".".join(p.split(".")[:2]) for layer in stack.bystanders for p in layer.prefixes} == {"pair.reference"}


class Prompted(Trained):
    """A vector that trains below a network that does not: the network is part of what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Linear(8, 8)
        self.network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.network(self.prompt(nn.functional.one_hot(targets, 8).float())), targets)


@pytest.mark.parametrize("module", [FrozenBackbone, Prompted])
def test_what_the_gradient_needs_is_no_bystander(module: Any) -> None:
    assert LayerStack(module()).bystanders == ()


def test_a_frozen_module_alone_has_layers() -> None:
    assert LayerStack(Network().requires_grad_(False)).names == NAMES


class TwoNetworks(Trained):
    """Two networks of which only the optimizer tells that one never trains."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.online = Network(12), Network()
        self.lr, self.optimizer_class = 1e-3, torch.optim.SGD

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.online(tokens), self.other(tokens).detach().softmax(-1))


class OneHeld(TwoNetworks):
    def configure_optimizers(self) -> Any:
        return self.optimizer_class(self.online.parameters(), lr=self.lr)


class GroupsHeld(TwoNetworks):
    def groups(self) -> Any:
        return [{"params": [p for name, p in self.online.named_parameters() if "norm" in name], "weight_decay": 0.0}]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.groups(), lr=self.lr)
        optimizer.add_param_group({"params": self.online.classifier.parameters()})
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class AnyHeld(TwoNetworks):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for name, p in self.named_parameters() if "other" not in name], lr=1e-3)


class NameHeld(TwoNetworks):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for name in ("online",) for p in getattr(self, name).parameters()], lr=1e-3)


@pytest.mark.parametrize(
    ("build", "expected"), [(OneHeld, {"other"}), (GroupsHeld, {"other"}), (AnyHeld, set()), (NameHeld, set())]
)
def test_what_no_optimizer_holds_takes_no_part(build: type[nn.Module], expected: set[str]) -> None:
    stack = LayerStack(build())
    assert apart(stack) == expected
    assert stack["online.3"].height == 1
    assert len(stack.networks) == 2 - len(expected)


class HeadHeld(FrozenBackbone):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=1e-3)


def test_what_feeds_the_optimized_head_takes_part() -> None:
    assert LayerStack(HeadHeld()).names == NAMES


class WithoutGradient(TwoNetworks):
    @torch.inference_mode()
    def targets(self, tokens: Tensor) -> Tensor:
        return self.other(tokens).softmax(-1)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.online(tokens), self.targets(tokens).clone())


class SetWithoutGradient(TwoNetworks):
    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.set_grad_enabled(False):
            wanted = self.other(tokens).softmax(-1)
        return cross_entropy(self.online(tokens), wanted)


@pytest.mark.parametrize("build", [WithoutGradient, SetWithoutGradient])
def test_a_network_that_runs_without_a_gradient_takes_no_part(build: type[nn.Module]) -> None:
    assert apart(LayerStack(build())) == {"other"}


class Hooked(Trained):
    """A frozen backbone whose features reach the head by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Network().requires_grad_(False)
        self.backbone.blocks[-1].register_forward_hook(self.keep)
        self.head = nn.Linear(8, 2)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features = output

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        self.backbone(tokens)
        return cross_entropy(self.head(self.features.mean(1)), targets)


def test_a_backbone_whose_output_nothing_is_seen_to_use_takes_part() -> None:
    assert LayerStack(Hooked()).names == NAMES


class RegisteredTwice(FrozenBackbone):
    """A frozen backbone that runs as a part of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(self.backbone, self.head)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.network(tokens), targets)


def test_a_backbone_that_runs_under_another_name_takes_part() -> None:
    assert LayerStack(RegisteredTwice()).names == NAMES


class Perceived(Trained):
    """A deep frozen network measures both what is made and what is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Network(3, 8)
        self.vgg = nn.Sequential(*(Block() for _ in range(12))).requires_grad_(False)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        made = self.generator(tokens)
        return mse_loss(self.vgg(made), self.vgg(torch.ones_like(made)))


def test_a_deep_network_that_compares_adds_no_height() -> None:
    stack = LayerStack(Perceived())
    assert apart(stack) == {"vgg"}
    assert [layer.height for layer in stack if not layer.is_bystander] == [4, 3, 2, 1, 0]


class Translated(Trained):
    """A part that trains below a frozen language model, which therefore takes part."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(8, 8)
        self.language = nn.Sequential(*(Block() for _ in range(3)), nn.Linear(8, 2)).requires_grad_(False)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.language(self.projection(nn.functional.one_hot(targets, 8).float())), targets)


def test_a_frozen_network_above_what_trains_takes_part() -> None:
    stack = LayerStack(Translated())
    assert stack.bystanders == ()
    assert len(stack.blocks) == 3


class Shallow(Trained):
    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = Network(24).requires_grad_(False), Network(1)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(self.student(tokens), self.teacher(tokens))


def test_a_student_of_one_block_keeps_it_beside_a_deep_teacher() -> None:
    assert counted(LayerStack(Shallow())) == ["embeddings", "0", "head"]


class SmallTeacher(Trained):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Embedding(16, 8), nn.Flatten(), nn.Linear(40, 2)).requires_grad_(False)
        self.student = Network()

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(self.student(tokens), self.teacher(tokens))


def test_a_teacher_without_blocks_takes_no_part() -> None:
    stack = LayerStack(SmallTeacher())
    assert counted(stack) == NAMES
    assert apart(stack) == {"teacher"}
