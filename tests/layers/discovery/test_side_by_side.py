"""Modules that run side by side share a layer or a height; modules that belong together are one block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_checks import gradient_errors, order_errors, partition_errors
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from toys import loader, trainer

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, LayerStack
from lightning_freeze.schedule.phases import gradual_phases


def prefixes(module: nn.Module) -> dict[str, tuple[str, ...]]:
    return {layer.name: layer.prefixes for layer in LayerStack(module)}


def heights(module: nn.Module) -> dict[str, int]:
    return {layer.name: layer.height for layer in LayerStack(module)}


def step(size: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(size, size), nn.LayerNorm(size))


class Forecaster(nn.Module):
    """DeepAR: a recurrent network, and one projection for each parameter of the distribution."""

    def __init__(self, outputs: str, how: str) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, 2, batch_first=True)
        setattr(self, outputs, nn.ModuleList([nn.Linear(8, 1) for _ in range(3)]))
        self._outputs, self._how = outputs, how

    def forward(self, x: Tensor) -> Any:
        raise NotImplementedError


class Tuple(Forecaster):
    def forward(self, x: Tensor) -> Any:
        h, _ = self.rnn(x)
        return tuple(part(h) for part in self.heads)


class ListOf(Forecaster):
    def forward(self, x: Tensor) -> Any:
        h, _ = self.rnn(x)
        return [part(h) for part in self.projections]


class Appended(Forecaster):
    def forward(self, x: Tensor) -> Any:
        h, _ = self.rnn(x)
        found = []
        for part in self.parameter_nets:
            found.append(part(h))
        return torch.cat(found, -1)


class Indexed(Forecaster):
    def forward(self, x: Tensor) -> Any:
        h, _ = self.rnn(x)
        return torch.stack([self.args_proj[i](h) for i in range(3)])


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [(Tuple, "heads"), (ListOf, "projections"), (Appended, "parameter_nets"), (Indexed, "args_proj")],
)
def test_several_outputs_of_one_input_share_a_layer(kind: Any, outputs: str) -> None:
    module = kind(outputs, "")
    found = prefixes(module)
    assert ("rnn",) in found.values() and (outputs,) in found.values()
    assert list(heights(module).values()) == [1, 0]
    assert partition_errors(LayerStack(module)) == []


class Columns(nn.Module):
    """One embedding for each categorical column."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(5, 4) for _ in range(3)])
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([table(x[..., i]) for i, table in enumerate(self.tables)], -1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def test_one_embedding_for_each_column_is_one_layer() -> None:
    stack = LayerStack(Columns())
    assert stack["embeddings"].prefixes == ("tables",)
    assert [layer.prefixes for layer in stack.blocks] == [("fc1",), ("fc2",), ("fc3",)]
    inputs = (torch.randint(5, (2, 3)),)
    assert order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


class Fusion(nn.Module):
    """A Temporal Fusion Transformer in short: a network for each variable, an LSTM, attention, an output."""

    def __init__(self) -> None:
        super().__init__()
        self.variables = nn.ModuleDict({key: nn.Sequential(nn.Linear(1, 8), nn.LayerNorm(8)) for key in "abc"})
        self.lstm = nn.LSTM(8, 8)
        self.queries = nn.ModuleList([nn.Linear(8, 4) for _ in range(2)])
        self.out = nn.Linear(8, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        h = torch.stack([self.variables[key](x[key]) for key in self.variables]).sum(0)
        h, _ = self.lstm(h)
        return self.out(torch.cat([query(h) for query in self.queries], -1))


def test_the_networks_of_the_variables_are_one_layer_and_the_lstm_is_one() -> None:
    stack = LayerStack(Fusion())
    found = {layer.prefixes: layer.height for layer in stack}
    assert found == {("variables",): 3, ("lstm",): 2, ("queries",): 1, ("out",): 0}
    assert stack.layer_of(stack.module.lstm.weight_hh_l0).is_block  # type: ignore[union-attr, operator]
    inputs = ({key: torch.rand(3, 2, 1) for key in "abc"},)
    assert order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(5, 8), nn.LSTM(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.lstm(self.embedding(x))[0])))


def test_an_lstm_is_a_layer() -> None:
    assert prefixes(Recurrent()) == {"embeddings": ("embedding",), "0": ("lstm",), "1": ("fc1",), "2": ("fc2",)}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class Before(nn.Module):
    """Pre-activation: the normalisation runs before its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))
        return self.fc(x.mean((2, 3)))


class Zipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.bns, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.fc(x.mean((2, 3)))


def sequential() -> nn.Module:
    first = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
    second = [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("build", "pairs"),
    [
        (Named, [{"conv1", "bn1"}, {"conv2", "bn2"}]),
        (Before, [{"bn1", "conv1"}, {"bn2", "conv2"}]),
        (Zipped, [{"convs.0", "bns.0"}, {"convs.1", "bns.1"}]),
        (sequential, [{"0", "1"}, {"3", "4"}]),
    ],
)
def test_a_convolution_and_its_normalisation_are_one_block(build: Any, pairs: list[set[str]]) -> None:
    stack = LayerStack(build())
    with_weights = [
        {p for p in layer.prefixes if next(stack.module.get_submodule(p).parameters(), None) is not None}
        for layer in stack
    ]
    assert with_weights[:2] == pairs
    assert [layer.height for layer in stack] == list(range(len(stack) - 1, -1, -1))
    inputs = (torch.rand(2, 3, 4, 4),)
    assert partition_errors(stack) == order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


class Decoders(nn.Module):
    """Two decoders behind one encoder."""

    def __init__(self, mean: int = 2, variance: int = 2, frozen: bool = False, heads: bool = False) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([step() for _ in range(3)])
        self.mean_decoder = nn.ModuleList([step() for _ in range(mean)])
        self.var_decoder = nn.ModuleList([step() for _ in range(variance)])
        self.mean_out, self.var_out = (nn.Linear(8, 1), nn.Linear(8, 1)) if heads else (nn.Identity(), nn.Identity())
        self.encoder.requires_grad_(not frozen)

    def encode(self, x: Tensor) -> Tensor:
        for block in self.encoder:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = variance = self.encode(x)
        for block in self.mean_decoder:
            mean = block(mean)
        mean = self.mean_out(mean)
        for block in self.var_decoder:
            variance = block(variance)
        return mean, self.var_out(variance)


class Chained(Decoders):
    """The second decoder goes on from what the first one computed."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encode(x)
        for block in self.mean_decoder:
            x = block(x)
        mean = x
        for block in self.var_decoder:
            x = block(x)
        return mean, x


@pytest.mark.parametrize(("mean", "variance"), [(2, 2), (2, 3), (4, 1)])
def test_decoders_behind_one_encoder_stand_side_by_side_above_it(mean: int, variance: int) -> None:
    found = heights(Decoders(mean, variance))
    assert [found[f"mean_decoder.{i}"] for i in range(mean)] == list(range(mean - 1, -1, -1))
    if variance > 1:  # a single module repeats nothing
        assert [found[f"var_decoder.{i}"] for i in range(variance)] == list(range(variance - 1, -1, -1))
    highest = max(height for name, height in found.items() if "decoder" in name)
    assert [found[f"encoder.{i}"] for i in range(3)] == [highest + 3, highest + 2, highest + 1]
    assert gradient_errors(LayerStack(Decoders(mean, variance)), (torch.rand(2, 8),)) == []


def test_a_decoder_that_goes_on_from_another_stands_above_it() -> None:
    assert list(heights(Chained()).values()) == [6, 5, 4, 3, 2, 1, 0]


def test_parallel_decoders_are_unfrozen_level_by_level_each_with_its_head() -> None:
    stack = LayerStack(Decoders(heads=True))
    first, second = [phase.train for phase in gradual_phases(stack, EpochTrigger(1))][:2]
    assert {p for layer in stack.select(first).layers for p in layer.prefixes} == {"mean_out", "var_out"}
    assert second == f"mean_decoder.1,var_decoder.1,{first}"
    assert stack["encoder.2"].height == 3


def test_a_frozen_encoder_of_decoders_that_train_is_no_bystander() -> None:
    assert not LayerStack(Decoders(frozen=True)).bystanders


class Distance(Metric):
    """Measures in the feature space of a network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(*(step() for _ in range(6)))
        self.add_state("total", torch.zeros(()))

    def update(self, x: Tensor) -> None:
        self.total += self.network(x).sum()

    def compute(self) -> Tensor:
        return self.total  # type: ignore[return-value]


def metrics(kind: str) -> nn.Module:
    if kind == "dict":
        return nn.ModuleDict({"accuracy": MulticlassAccuracy(2), "mean": MeanMetric()})
    return MulticlassAccuracy(2) if kind == "plain" else Distance()


class Measured(LightningModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind:
            self.metrics = metrics(kind)
        torch.manual_seed(0)
        self.embedding = nn.Embedding(32, 8)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(3)]
        )
        self.head = nn.Linear(8, 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).mean(1)
        for block in self.blocks:
            x = block(x)
        if self.kind == "model":
            self.metrics(x.detach())
        x = self.head(x)
        return x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scores = self(batch[0])
        if self.kind == "plain":
            self.metrics(scores, batch[1])
        elif self.kind == "dict":
            self.metrics["accuracy"](scores, batch[1])  # type: ignore[index, operator]
            self.metrics["mean"](scores.detach())  # type: ignore[index, operator]
        return nn.functional.cross_entropy(scores, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for n, p in self.named_parameters() if not n.startswith("metrics")], lr=0.1)


@pytest.mark.parametrize("kind", ["plain", "dict", "model"])
@pytest.mark.parametrize("callback", [lambda: GradualUnfreezing(verbose=False), lambda: LayerFreezing("embeddings,:2")])
def test_metrics_belong_to_no_layer_and_change_no_fit(kind: str, callback: Any) -> None:
    assert prefixes(Measured(kind)) == prefixes(Measured(""))
    assert heights(Measured(kind)) == heights(Measured(""))
    states = []
    for there in ("", kind):
        module = Measured(there)
        torch.manual_seed(3)
        trainer(callback(), max_epochs=5).fit(module, loader(2))
        states.append({n: p for n, p in module.state_dict().items() if not n.startswith("metrics")})
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Prepared(nn.Module):
    """Does something with each block before it trains, as ``fully_shard(block, mesh=...)`` in ``configure_model``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Chain(), nn.Linear(8, 2)

    def configure_model(self) -> None:
        for block in self.encoder.blocks:
            prepare(block, "mesh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


def prepare(block: nn.Module, mesh: str) -> None: ...


def test_a_loop_that_only_prepares_blocks_does_not_run_them() -> None:
    assert LayerStack(Prepared()).names == ["0", "1", "2", "3", "head"]
