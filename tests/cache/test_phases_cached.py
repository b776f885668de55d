"""The cache follows the boundary when layers unfreeze and when they freeze."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Counter, Examples, MemoryStore, Plain, assert_same, both, loader, make_cache, make_trainer
from encoders import AfterStep, Block, Classifier, Encoder, same_length
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerStack, Phase, PhasedFineTuning

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}


def bert() -> Plain:
    torch.manual_seed(0)
    return Plain(tf.BertForSequenceClassification(tf.BertConfig(**SIZES)))


def block(number: int) -> Any:
    return lambda module: module.model.bert.encoder.layer[number].intermediate.dense


@pytest.mark.fast_cases(1, "in order")
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_gradual_unfreezing_equals_uncached(shuffle: bool) -> None:
    plain, cached, cache = both(
        bert(),
        GradualUnfreezing(EpochTrigger(2), verbose=False),
        data=lambda: loader(shuffle=shuffle),
        validation=loader,
        epochs=11,
    )
    assert_same(plain, cached, exact=not shuffle)
    assert not cache.reasons
    assert cache.hit_rate > 0.5


def fit_counting(phases: list[Phase], blocks: list[int], **options: Any) -> list[list[int]]:
    """How often blocks really ran in each batch of an epoch of six batches."""
    counters = [Counter(block(number)) for number in blocks]
    trainer = make_trainer(
        PhasedFineTuning(phases, verbose=False),
        make_cache(**options),
        *counters,
        epochs=2 * len(phases),
    )
    trainer.fit(bert(), loader(Examples(24)))
    return [counter.calls for counter in counters]


def test_several_boundaries_are_filled_at_once() -> None:
    phases = [Phase("head", EpochTrigger(2)), Phase("3,head", EpochTrigger(2)), Phase("2:,head")]
    (calls,) = fit_counting(phases, [0], verify=0)
    assert all(calls[:6])
    for phase in (1, 2):
        first = phase * 12
        # The first batch of a phase is checked.
        assert not any(calls[first + 1 : first + 12])


def test_lower_boundary_is_computed_where_there_is_no_room_ahead() -> None:
    phases = [Phase("head", EpochTrigger(2)), Phase("3,head")]
    (calls,) = fit_counting(phases, [0], store=MemoryStore(), verify=0, max_memory="20KiB")
    assert all(calls[12:18])
    assert not any(calls[20:])


def test_higher_boundary_is_computed_from_the_lower_one() -> None:
    phases = [Phase("2:,head", EpochTrigger(2)), Phase("head")]
    low, high = fit_counting(phases, [0, 2], verify=0)
    assert not any(low[14:])
    assert all(high[12:18])
    assert not any(high[20:])


@pytest.mark.slow
def test_freezing_again_equals_uncached() -> None:
    phases = [
        Phase("2:,head", EpochTrigger(2)),
        Phase("head", EpochTrigger(2)),
        Phase("1:,head", EpochTrigger(2)),
        Phase("3,head"),
    ]
    plain, cached, cache = both(bert(), PhasedFineTuning(phases, verbose=False), validation=loader, epochs=8)
    assert_same(plain, cached)
    assert not cache.reasons
    assert cache.hit_rate > 0.5


@pytest.mark.slow
def test_own_loop_and_backbone_finetuning() -> None:
    class Own(Plain):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.backbone = model.bert

        def on_train_epoch_start(self) -> None:
            for layer in LayerStack(self):
                trains = layer.kind == "head" or (self.current_epoch > 1 and layer.name == "3")
                for parameter in layer.parameters():
                    parameter.requires_grad_(trains)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    torch.manual_seed(0)
    module = Own(tf.BertForSequenceClassification(tf.BertConfig(**SIZES)).eval())
    plain, cached, cache = both(module, validation=loader, epochs=5)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.5

    class WithBackbone(Plain):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.backbone = model.bert

    torch.manual_seed(0)
    module = WithBackbone(tf.BertForSequenceClassification(tf.BertConfig(**SIZES)).eval())
    unfreezing = BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False)
    plain, cached, cache = both(module, unfreezing, epochs=4)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.3


class Counting(Block):
    """Counts how often it runs, and so changes an attribute in each pass. Has a setting, too."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x) * self.scale


def counting() -> Plain:
    return Plain(Classifier(Encoder(*[Counting() for _ in range(4)])))


def test_counters_in_frozen_layers_do_not_keep_boundaries_from_being_filled_ahead() -> None:
    store = MemoryStore()
    counter = Counter(lambda module: module.model.encoder.layers[0].linear)  # type: ignore[union-attr]
    phases = [Phase("head", EpochTrigger(2)), Phase("3,head", EpochTrigger(2)), Phase("2:,head")]
    callbacks = PhasedFineTuning(phases, verbose=False), make_cache(store, verify=0), counter
    make_trainer(*callbacks, epochs=6).fit(counting(), same_length())
    # In the first pass, nothing has shown yet that the counters are no settings.
    assert len(store.declared) == 4
    # The first batch of a phase is checked.
    assert not any(counter.calls[6 + 1 : 12] + counter.calls[12 + 1 : 18])


def test_a_setting_that_changes_between_passes_is_noticed_at_boundaries_that_were_filled_ahead() -> None:
    plain, cached, cache = both(
        counting(),
        PhasedFineTuning([Phase("head", EpochTrigger(2)), Phase("2:,head")], verbose=False),
        AfterStep(4, lambda module: [setattr(layer, "scale", 2.0) for layer in module.model.encoder.layers]),
        data=same_length,
        epochs=4,
    )
    assert_same(plain, cached)
    assert not cache.reasons and cache.hit_rate > 0.3
