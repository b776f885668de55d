"""The callbacks in modules with several networks: real fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from networks import (
    Block,
    Distillation,
    FrozenBackbone,
    ManyTasks,
    Recurrent,
    TemporalFusion,
    TwoEncoders,
    tokens,
)
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from toys import trainer

from lightning_freeze import DiscriminativeLR, EpochTrigger, FrozenPrefixCache, GradualUnfreezing, LayerFreezing
from lightning_freeze.cache.identity.cached_towers import find_towers
from lightning_freeze.layers import LayerStack


class Watch(Callback):
    """What trains and at which rate, at the start of each epoch."""

    def __init__(self) -> None:
        self.trains: list[set[str]] = []
        self.rates: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.trains.append({name for name, p in pl_module.named_parameters() if p.requires_grad})

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        self.rates = {name: rates[id(p)] for name, p in pl_module.named_parameters() if id(p) in rates}


def fit(module: LightningModule, callback: Callback, epochs: int = 1) -> Watch:
    watch = Watch()
    torch.manual_seed(0)
    trainer(callback, watch, max_epochs=epochs).fit(module, tokens())
    return watch


KINDS = [("before", 4), ("before", 12), ("behind", 4), ("behind", 12), ("copy", 4), ("average", 4)]


def of_student(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("student.")}


@pytest.mark.parametrize(("kind", "depth"), KINDS)
def test_a_second_network_changes_no_rate(kind: str, depth: int) -> None:
    def rates(module: LightningModule) -> dict[str, float]:
        callback = DiscriminativeLR(0.5, verbose=False)
        watch = fit(module, callback)
        # The groups per layer exist within a step only.
        factors = {id(p): callback.rate_factor(callback.rate_key(p)) for p in module.parameters()}
        return {name: factors[id(p)] for name, p in module.named_parameters() if name in watch.rates}

    found = rates(Distillation(kind, depth))
    assert found == rates(Distillation())
    assert found["student.classifier.weight"] == 1.0
    assert found["student.embeddings.weight"] == 0.5**5


@pytest.mark.parametrize(("kind", "depth"), KINDS)
def test_a_second_network_changes_no_share(kind: str, depth: int) -> None:
    alone = fit(Distillation(), LayerFreezing("50%", verbose=False))
    both = fit(Distillation(kind, depth), LayerFreezing("50%", verbose=False))
    assert of_student(both.trains[0]) == of_student(alone.trains[0])
    assert {name.split(".")[2] for name in of_student(both.trains[0]) if "blocks" in name} == {"2", "3"}


@pytest.mark.parametrize(("kind", "depth"), KINDS)
def test_a_second_network_changes_no_phase(kind: str, depth: int) -> None:
    alone = fit(Distillation(), GradualUnfreezing(EpochTrigger(1), verbose=False), 6)
    both = fit(Distillation(kind, depth), GradualUnfreezing(EpochTrigger(1), verbose=False), 6)
    assert [of_student(names) for names in both.trains] == [of_student(names) for names in alone.trains]


def test_a_second_callback_sees_the_networks_that_the_first_one_sees() -> None:
    module = TwoEncoders()
    freezing = LayerFreezing("question.embeddings,question,question.head", verbose=False)
    rates = DiscriminativeLR(0.5, verbose=False)
    trainer(freezing, rates, max_epochs=1).fit(module, tokens())
    assert rates.stack.names == freezing.stack.names
    assert rates.stack.bystanders == ()


def test_two_encoders_unfreeze_level_by_level() -> None:
    watch = fit(TwoEncoders(), GradualUnfreezing(EpochTrigger(1), verbose=False), 6)
    levels = [
        {name.removeprefix("question.") for name in names if name.startswith("question.")} for names in watch.trains
    ]
    others = [
        {name.removeprefix("passage.") for name in names if name.startswith("passage.")} for names in watch.trains
    ]
    assert levels == others
    assert [len({n.split(".")[1] for n in names if "blocks" in n}) for names in levels] == [0, 1, 2, 3, 4, 4]


def test_two_encoders_of_different_depth_have_equal_rates_at_the_top() -> None:
    callback = DiscriminativeLR(0.5, verbose=False)
    module = TwoEncoders((4, 2))
    fit(module, callback)
    tops = [module.question.blocks[3], module.passage.blocks[1], module.question.classifier, module.passage.classifier]
    factors = [callback.rate_factor(callback.rate_key(next(top.parameters()))) for top in tops]
    assert factors == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("stop", ["passage.1", "question.2,passage.1"])
def test_a_floor_holds_for_each_network_that_it_names(stop: str) -> None:
    watch = fit(TwoEncoders((4, 4)), GradualUnfreezing(EpochTrigger(1), stop=stop, verbose=False), 6)
    blocks = {name.rsplit(".", 2)[0] for name in watch.trains[-1] if ".blocks." in name}
    assert {f"passage.blocks.{i}" for i in (1, 2, 3)} <= {b[: len("passage.blocks.0")] for b in blocks}
    assert not any(b.startswith("passage.blocks.0") for b in blocks)
    if "question" in stop:
        assert not any(b.startswith("question.blocks.1") for b in blocks)


def test_a_bystander_is_shown_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Distillation("before"), LayerFreezing("50%"))
    rows = [line for line in capsys.readouterr().out.splitlines() if "teacher" in line]
    assert rows
    assert all("takes no part" in row for row in rows)


def test_a_frozen_backbone_is_shown_with_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    module = FrozenBackbone()
    trainer(LayerFreezing("embeddings"), max_epochs=1).fit(module, tokens())
    assert "no part" not in capsys.readouterr().out


class Measured(LightningModule):
    """A metric that is registered before the network, in the layer that freezes first."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.metrics = wrap(MulticlassAccuracy(2))
        self.body.embed = nn.Embedding(16, 8)
        self.body.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = self.body.embed(batch[0])
        for block in self.body.blocks:
            x = block(x)
        logits = self.head(x.mean(1))
        for metric in self.body.metrics.modules():
            if isinstance(metric, MulticlassAccuracy):
                metric(logits, batch[1])
        return nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("wrap", [lambda metric: metric, lambda metric: nn.ModuleDict({"acc": metric})])
@pytest.mark.parametrize(
    "callback",
    [
        lambda: GradualUnfreezing(EpochTrigger(1), verbose=False),
        lambda: GradualUnfreezing(EpochTrigger(1), verbose=False, groups={"body": "body", "head": "head"}),
    ],
)
def test_a_metric_inside_a_layer_that_freezes(wrap: Any, callback: Callable[[], Callback]) -> None:
    module = Measured(wrap)
    watch = fit(module, callback(), 5)
    assert len(watch.trains[-1]) > len(watch.trains[0])
    assert all(m.training for m in module.body.metrics.modules())


def test_the_cache_does_not_try_what_is_no_chain() -> None:
    towers, problems = find_towers(LayerStack(TemporalFusion()))
    assert towers == []
    assert "no single module" in problems[""]
    towers, problems = find_towers(LayerStack(ManyTasks()))
    assert [tower.name for tower in towers] == ["layers", "decoders.0", "decoders.1", "decoders.2"]


class Recognising(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.losses = Recurrent(), list[float]()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0] % 9).mean(1), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_frozen_recurrent_layer_is_computed_once() -> None:
    losses = []
    for extra in ([], [FrozenPrefixCache(verbose=False)]):
        module = Recognising()
        trainer(LayerFreezing("embeddings,:2", verbose=False), *extra, max_epochs=4).fit(module, tokens())
        losses.append(module.losses)
    assert losses[0] == losses[1]
