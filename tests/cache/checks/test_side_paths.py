"""Layers above that read the output of skipped layers, from the start or from some later step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cached_fits import Plain, freeze, loader
from encoders import (
    AfterStep,
    Block,
    Classifier,
    EachEpoch,
    Encoder,
    bert,
    check_equal,
    classified,
    frozen,
    same_length,
)
from lightning.pytorch import Callback
from torch import Tensor, nn

READ = "a layer above the frozen ones reads what they compute on the way"


class Model(Encoder):
    """An encoder with a head; ``read`` is what else it makes of the hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, 2)

    def read(self, states: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor | float]:
        return states[-1], 0.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        hidden, other = self.read(self.run(self.embeddings(input_ids)), labels)
        return classified(self.classifier(hidden[:, 0]), labels, other)


class Gated(Model):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(32))

    def read(self, states: list[Tensor], labels: Tensor) -> tuple[Tensor, float]:
        return states[-1] + self.gate * states[1], 0.0


class Mixed(Model):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([0.0, 0.0, 0.0, 1.0]))

    def read(self, states: list[Tensor], labels: Tensor) -> tuple[Tensor, float]:
        return (torch.stack(states[1:]) * self.mix.view(-1, 1, 1, 1)).sum(0), 0.0


class Supervised(Model):
    """Has a second head on the first block; ``weight`` says when it counts."""

    epoch = 0

    def __init__(self, weight: Callable[[Supervised], float]) -> None:
        super().__init__()
        self.aux = nn.Linear(32, 2)
        self.weight = weight

    def read(self, states: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor | float]:
        weight = self.weight(self)
        if weight < 0:
            return states[-1], 0.0
        return states[-1], weight * nn.functional.cross_entropy(self.aux(states[1][:, 0]), labels)


class ByAdam(Plain):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def tell(module: Any, epoch: int) -> None:
    module.model.epoch = epoch


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "module",
    [
        pytest.param(lambda: Plain(Gated()), id="zero gate"),
        pytest.param(lambda: Plain(Mixed()), id="mix of layers that begins with the last"),
        pytest.param(lambda: Plain(Supervised(lambda m: min(1.0, m.epoch))), id="loss that warms up from 0"),
        pytest.param(lambda: Plain(Supervised(lambda m: 1.0 if m.epoch >= 2 else -1.0)), id="loss from epoch 2 on"),
        pytest.param(lambda: ByAdam(Supervised(lambda m: 1e-4)), id="loss of little weight"),
    ],
)
@pytest.mark.parametrize("data", [loader, same_length], ids=["padding", "no padding"])
def test_early_hidden_states_that_count_for_little_or_later(module: Callable[[], Plain], data: Any) -> None:
    check_equal(module(), frozen(), EachEpoch(tell), data=data, epochs=4, reason=READ)


class FreezesItself(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        freeze(pl_module.model.embeddings, *pl_module.model.layers[:2])


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("freezing", [frozen(), FreezesItself()], ids=["callback", "own"])
@pytest.mark.parametrize("sanity", [0, 1, 2])
@pytest.mark.parametrize(
    ("data", "validation"),
    [(loader, loader), (same_length, same_length), (same_length, lambda: same_length(8))],
    ids=["padding", "no padding", "other data"],
)
def test_head_in_training_mode_only_after_a_sanity_validation(
    freezing: Callback, sanity: int, data: Any, validation: Any
) -> None:
    module = Plain(Supervised(lambda m: 1.0 if m.training else -1.0))
    freeze(module.model.embeddings, *module.model.layers[:2])
    check_equal(module, freezing, data=data, validation=validation, num_sanity_val_steps=sanity, reason=READ)


class FromEmbeddings(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(32, 32)
        nn.init.zeros_(self.side.weight)
        nn.init.zeros_(self.side.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.run(self.embeddings(input_ids))
        return states[-1] + self.side(states[0])


def test_zero_linear_from_the_embeddings_leaves_the_blocks_to_be_skipped() -> None:
    cache = check_equal(Plain(Classifier(FromEmbeddings())), frozen())
    assert cache.hit_rate > 0.5


class Stash(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.states = self.run(self.embeddings(input_ids))[1:]
        return self.states[-1]


class ReadsStash(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids) + self.encoder.states[0]


def test_stash_that_is_read_outside_the_entry() -> None:
    check_equal(Plain(ReadsStash(Stash())), frozen(), reason="it keeps what its frozen layers compute on the way")


class OnRequest(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, return_all: bool = False) -> Any:
        states = self.run(self.embeddings(input_ids))
        return (states[-1], states if return_all else [])


class ByPosition(Encoder):
    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> Any:
        states = self.run(self.embeddings(input_ids))
        return (states[-1], states if output_hidden_states else [])


class Requests(Classifier):
    epoch = 0

    def __init__(self, encoder: nn.Module, ask: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__(encoder)
        self.ask = ask

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if not self.epoch:
            return self.encoder(input_ids)[0]
        return torch.stack(self.ask(self.encoder, input_ids)[1]).mean(0)


@pytest.mark.parametrize(
    ("encoder", "ask", "reason"),
    [
        (OnRequest, lambda encoder, ids: encoder(ids, return_all=True), READ),
        (ByPosition, lambda encoder, ids: encoder(ids, True), "output_hidden_states=True asks for what"),
    ],
    ids=["return_all", "output_hidden_states by position"],
)
def test_all_hidden_states_are_asked_for_from_epoch_1_on(encoder: Any, ask: Any, reason: str) -> None:
    check_equal(Plain(Requests(encoder(), ask)), frozen(), EachEpoch(tell), epochs=4, reason=reason)


class ValidatesAll(Plain):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        states = self.model.encoder(batch["input_ids"], return_all=True)[1]
        self.validated.append(torch.stack(states).mean(0).clone())


def test_all_hidden_states_are_asked_for_in_validation_only() -> None:
    check_equal(ValidatesAll(Classifier(OnRequest())), frozen(), validation=loader, reason=READ)


class Collects(Block):
    """Leaves a loss of its own in a list, where the model gives it one."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 4)
        self.bag: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.bag is not None:
            self.bag.append(self.router(x).softmax(-1).pow(2).mean())
        return super().forward(x)


class Routed(Classifier):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        bag: list[Tensor] = []
        for layer in self.encoder.layers[2:]:
            layer.bag = bag
        logits = self.classifier(self.encoder(input_ids)[:, 0])
        return classified(logits, labels, torch.stack(bag).sum())


@pytest.mark.parametrize("data", [loader, same_length], ids=["padding", "no padding"])
@pytest.mark.parametrize(
    ("layers", "reason"), [("embeddings,:2", None), ("embeddings,:3", "keep what they compute in an attribute")]
)
def test_layers_that_collect_tensors_in_a_list(layers: str, reason: str | None, data: Any) -> None:
    module = Plain(Routed(Encoder(*(Collects() for _ in range(4)))))
    cache = check_equal(module, frozen(layers), data=data, reason=reason)
    assert (cache.hit_rate > 0.5) == (reason is None)


def hook_entry(module: Any) -> None:
    module.model.bert.register_forward_pre_hook(
        lambda m, args, kwargs: (((args[0] + (module.current_epoch >= 2) * 5) % 100, *args[1:]), kwargs),
        with_kwargs=True,
    )


def hook_container(module: Any) -> None:
    shift = torch.linspace(-3, 3, 32)
    module.model.bert.encoder.register_forward_pre_hook(
        lambda m, args: (args[0] + (module.current_epoch >= 2) * shift, *args[1:])
    )


class AtStart(Callback):
    def __init__(self, place: Callable[[Any], None]) -> None:
        self.place = place

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.place(pl_module)


@pytest.mark.parametrize(("place", "where"), [(hook_entry, "BertModel"), (hook_container, "encoder")])
@pytest.mark.parametrize("when", [AtStart, lambda place: AfterStep(6, place)], ids=["start", "epoch 2"])
def test_hooks_that_change_what_comes_to_the_layers(place: Any, where: str, when: Any) -> None:
    reason = f"a forward hook on {where}, before its layers"
    check_equal(Plain(bert()), frozen(), when(place), epochs=4, reason=reason)


class Everywhere(Plain):
    """Reads the first block by a hook on all modules that there are."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        first, got = self.model.bert.encoder.layer[0], []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if module is first:
                got.append(output if isinstance(output, Tensor) else output[0])

        with nn.modules.module.register_module_forward_hook(keep):
            output = self.model(**batch)
        loss: Tensor = output.loss + (got[0][:, 0, 0] * output.logits[:, 0]).mean()
        self.losses.append(loss.detach().clone())
        return loss


@pytest.mark.parametrize("validation", [None, loader], ids=["training", "validation without the hook"])
def test_hooks_on_all_modules_see_all_of_them(validation: Any) -> None:
    check_equal(Everywhere(bert()), frozen(), validation=validation)
