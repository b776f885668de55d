"""Reads of padding that begin or end during a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Plain, loader
from encoders import Block, Classifier, Encoder, bert, check_equal, frozen, same_length
from torch import Tensor, nn


def pooled(mean: bool = False) -> Classifier:
    return Classifier(bert(tf.BertModel), mean)


class Alternates(Plain):
    """Pools by the mean of all positions in some batches only."""

    def __init__(self, even: bool) -> None:
        super().__init__(pooled())
        self.even = even

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.model.mean = (batch_idx % 2 == 0) == self.even
        return super().training_step(batch, batch_idx)


class FromEpochOne(Plain):
    def on_train_epoch_start(self) -> None:
        self.model.mean = self.current_epoch >= 1


class TwoOptimizers(Plain):
    """The second loss of each step reads padding, the first does not."""

    def __init__(self) -> None:
        super().__init__(bert())
        self.automatic_optimization = False
        self.head = nn.Linear(32, 2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        self.take(first, self.model(**batch).loss)
        hidden = self.model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])[0].mean(1)
        self.take(second, nn.functional.cross_entropy(self.head(hidden), batch["labels"]))

    def take(self, optimizer: Any, loss: Tensor) -> None:
        self.losses.append(loss.detach().clone())
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return [torch.optim.SGD(trained, lr=0.05), torch.optim.SGD(self.head.parameters(), lr=0.1)]


class ValidatesByMean(Plain):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        hidden = self.model.encoder(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        self.validated.append(hidden.mean(1).clone())


def zero_head() -> Plain:
    model = pooled(mean=True)
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    return Plain(model)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize(
    "module",
    [
        pytest.param(zero_head, id="zero head"),
        pytest.param(lambda: Plain(pooled(mean=True)), id="always"),
        pytest.param(lambda: Alternates(even=False), id="odd batches"),
        pytest.param(lambda: Alternates(even=True), id="even batches"),
        pytest.param(lambda: FromEpochOne(pooled()), id="epoch 1 on"),
        pytest.param(TwoOptimizers, id="second optimizer"),
    ],
)
def test_mean_over_padding_is_that_of_the_uncached_run(module: Any, shuffle: bool) -> None:
    cache = check_equal(module(), frozen(), data=lambda: loader(shuffle=shuffle), epochs=4, exact=not shuffle)
    assert cache.hit_rate > 0.2


def test_validation_may_read_padding_where_training_does_not() -> None:
    cache = check_equal(ValidatesByMean(pooled()), frozen(), validation=loader)
    assert cache.hit_rate > 0.5


def unchanged(block: nn.Module, x: Tensor) -> Tensor:
    return x


class ChangesItsInput(Block):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.change(self, x))


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("data", [loader, same_length], ids=["padding", "no padding"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda block, x: x.mul_(1.0) if block.training else x, id="in training mode"),
        pytest.param(lambda block, x: x.mul_(0.9), id="always"),
        pytest.param(lambda block, x: nn.functional.relu_(x), id="relu"),
    ],
)
@pytest.mark.parametrize("frozen_too", [False, True], ids=["trained blocks", "all blocks"])
def test_first_trained_block_may_change_its_input_in_place(change: Any, frozen_too: bool, data: Any) -> None:
    lower = change if frozen_too else unchanged
    encoder = Encoder(*(ChangesItsInput(how) for how in (lower, lower, change, change)))
    cache = check_equal(Plain(Classifier(encoder)), frozen("embeddings,:2"), data=data, validation=data)
    assert cache.hit_rate > 0.5
