"""How long offloading waits after weights came back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_fits import Plain
from encoders import bert
from lightning.pytorch import Callback, LightningModule, Trainer
from offloaded_fits import away, cache_of, fit

from lightning_freeze import LayerFreezing
from lightning_freeze.distributed import before_change

pytestmark = pytest.mark.usefixtures("tiny_weights_leave")


class EachTime(Callback):
    """Does something before each batch at which weights are away; notes the numbers of these batches."""

    def __init__(self, act: Any) -> None:
        self.act = act
        self.found: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if away(cache_of(trainer)):
            self.found.append(trainer.global_step)
            self.act(pl_module)
            assert not away(cache_of(trainer))


def gaps(act: Any) -> list[int]:
    """The numbers of batches from each time that weights are away to the next."""
    each = EachTime(act)
    fit(None, Plain(bert()), LayerFreezing("50%", verbose=False), each, epochs=5)
    return [later - earlier for earlier, later in zip(each.found, each.found[1:], strict=False)]


def test_turns_of_a_schedule_do_not_make_it_wait_longer() -> None:
    found = gaps(before_change)
    assert len(found) > 5 and set(found) == {2}


def run_elsewhere(module: Any) -> None:
    ids = torch.randint(5, 90, (4, 5))
    with torch.no_grad():
        module.model.bert(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_passes_that_need_the_weights_double_the_wait() -> None:
    assert gaps(run_elsewhere) == [4, 8]
