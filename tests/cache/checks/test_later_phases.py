"""The check on two samples after layers were unfrozen: it ends at the boundary of the phase before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cached_fits import MemoryStore, Plain, make_cache
from encoders import Block, Classifier, Encoder, bert, check_equal, same_length
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_freeze import EpochTrigger, FrozenPrefixCache, Phase, PhasedFineTuning


class Runs(Callback):
    """The numbers of samples that each block computes in each training step."""

    seen: list[list[list[int]]]

    def __init__(self, blocks_of: Callable[[Any], nn.ModuleList]) -> None:
        self.blocks_of = blocks_of

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        type(self).seen = seen = []
        for number, block in enumerate(self.blocks_of(pl_module)):
            # Not on the block itself, whose forward is replaced when it is skipped.
            inner = next(m for m in block.modules() if isinstance(m, nn.Linear))
            inner.forward = self.counted(number, inner.forward, seen)  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.seen.append([[] for _ in self.blocks_of(pl_module)])

    @staticmethod
    def counted(number: int, run: Callable[[Tensor], Tensor], seen: list[list[list[int]]]) -> Any:
        def forward(x: Tensor) -> Tensor:
            if seen:
                seen[-1][number].append(len(x))
            return run(x)

        return forward


def layers_of(module: Any) -> nn.ModuleList:
    return module.model.encoder.layers  # type: ignore[no-any-return]


def bert_layers(module: Any) -> nn.ModuleList:
    return module.model.bert.encoder.layer  # type: ignore[no-any-return]


def downwards() -> PhasedFineTuning:
    """Train the last of four blocks, then the third too, then the second too: one epoch of three batches each."""
    phases = [Phase("3:,head", EpochTrigger(1)), Phase("2:,head", EpochTrigger(1)), Phase("1:,head")]
    return PhasedFineTuning(phases, verbose=False)


def first_steps(cache: FrozenPrefixCache) -> list[list[list[int]]]:
    """What the blocks compute in the first step of the second phase and of the third."""
    assert not cache.reasons
    return [Runs.seen[3], Runs.seen[6]]


def test_the_check_ends_at_the_boundary_of_the_phase_before() -> None:
    runs = Runs(bert_layers)
    module = Plain(bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3))
    cache = check_equal(module, downwards(), runs, data=same_length)
    # Two samples with the prefix and without it up to the boundary before, then the batch above the prefix.
    assert first_steps(cache) == [[[2], [2], [2, 2, 4], [4]], [[2], [2, 2, 4], [4], [4]]]
    # The second step checks nothing.
    assert Runs.seen[7] == [[], [4], [4], [4]]


class Also(Encoder):
    """One of its blocks reads, without a gradient, what was computed further below than by the block before it."""

    def __init__(self, reader: int, read: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.reader, self.read = reader, [read]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = [self.embeddings(input_ids)]
        for number, layer in enumerate(self.layers):
            other = self.read[0](states) if number == self.reader else 0
            states.append(layer(states[-1] + other))
        return states[-1]


def test_embeddings_that_a_layer_above_reads_are_not_skipped() -> None:
    module = Plain(Classifier(Also(3, lambda states: states[0].detach())))
    cache = check_equal(module, downwards(), Runs(layers_of), data=same_length)
    assert first_steps(cache) == [[[2], [2], [2, 2, 4], [4]], [[2], [2, 2, 4], [4], [4]]]
    assert Runs.seen[4] == [[], [], [4], [4]]


def test_a_block_that_was_frozen_and_reads_a_lower_one_is_noticed() -> None:
    # The third block, frozen in the first phase, reads what the first one returns. No NaN reaches it.
    module = Plain(Classifier(Also(2, lambda states: states[1].argmax(-1, keepdim=True))))
    reason = "reads what they compute on the way"
    check_equal(module, downwards(), Runs(layers_of), data=same_length, reason=reason)
    # Two samples show it, and show again that they are computed alike; then the whole batch runs, and decides.
    assert Runs.seen[3][0][:3] == [2, 2, 4]


class Adds(nn.Embedding):
    """Adds a vector that belongs to nobody."""

    added = torch.zeros(32)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.added


def test_something_that_trains_from_a_later_phase_on_is_noticed() -> None:
    class Train(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            Adds.added.requires_grad_(trainer.current_epoch > 0)

    encoder = Encoder()
    encoder.embeddings = Adds(100, 32)
    reason = "something that trains, or is made to require grad"
    module = Plain(Classifier(encoder))
    check_equal(module, downwards(), Train(), Runs(layers_of), data=same_length, reason=reason)
    assert Runs.seen[3][0][:2] == [2, 4]


def test_what_is_stored_at_a_lower_boundary_differs() -> None:
    store = MemoryStore()

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                for entry in store.entries.values():
                    entry += 0.1

    reason = "what was stored differs from what its frozen layers compute"
    cache = make_cache(store)
    check_equal(Plain(bert()), downwards(), Spoil(), Runs(bert_layers), data=same_length, cache=cache, reason=reason)
    assert Runs.seen[3][0][:2] == [2, 4]


class Masks(Encoder):
    """Hides positions whose embeddings are zero, if told to; NaN is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.hides = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        embedded = self.embeddings(input_ids)
        hidden = self.run(embedded)[-1]
        return hidden * embedded.ne(0).any(-1, keepdim=True) if self.hides else hidden


class Hide(Callback):
    """Tells it from an epoch on."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.model.encoder.hides = trainer.current_epoch >= self.epoch  # type: ignore[union-attr]


def masked() -> LightningModule:
    """A token of each sample has an embedding of zeros."""
    encoder = Masks()
    with torch.no_grad():
        encoder.embeddings.weight[::2] = 0
    return Plain(Classifier(encoder, mean=True))


def test_a_setting_that_changes_with_the_phase() -> None:
    check_equal(masked(), downwards(), Hide(1), data=same_length)


def test_a_setting_that_changes_with_the_phase_for_which_an_earlier_run_has_filled() -> None:
    store = MemoryStore()
    check_equal(masked(), downwards(), Hide(0), data=same_length, cache=make_cache(store))
    check_equal(masked(), downwards(), Hide(1), Runs(layers_of), data=same_length, cache=make_cache(store))
    # All layers, because those above were not checked under this setting. Skipping the embeddings fails, so once more.
    assert Runs.seen[3] == [[2], [2], [2, 2, 2, 4], [2, 2, 2, 4]]


def test_a_setting_that_changes_within_a_phase() -> None:
    phases = [Phase("3:,head", EpochTrigger(2)), Phase("2:,head")]
    check_equal(masked(), PhasedFineTuning(phases, verbose=False), Hide(1), data=same_length, epochs=3)


class Top(Block):
    """Is the last block, and has something of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_a_setting_of_a_layer_above_that_changes_with_the_phase() -> None:
    class Rescale(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.model.encoder.layers[3].scale = 1.0 + trainer.current_epoch  # type: ignore[union-attr]

    module = Plain(Classifier(Encoder(Block(), Block(), Block(), Top())))
    cache = check_equal(module, downwards(), Rescale(), Runs(layers_of), data=same_length)
    assert first_steps(cache) == [[[2], [2], [2, 2, 4], [2, 2, 4]], [[2], [2, 2, 4], [2, 2, 4], [2, 2, 4]]]


def test_an_attribute_of_a_layer_above_that_cannot_be_read() -> None:
    module = Plain(Classifier(Encoder(Block(), Block(), Block(), Top())))
    module.model.encoder.layers[3].adjacency = torch.eye(3).to_sparse()  # type: ignore[union-attr]
    cache = check_equal(module, downwards(), Runs(layers_of), data=same_length)
    # All layers are looked at, as in the first phase.
    assert first_steps(cache) == [[[2], [2], [2, 2, 4], [2, 2, 4]], [[2], [2, 2, 4], [2, 2, 4], [2, 2, 4]]]


def test_nan_of_its_own_runs_no_pass_again() -> None:
    class Reports(Encoder):
        """Returns NaN beside its hidden states, as a metric without data is."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(input_ids), torch.full((len(input_ids),), torch.nan)

    cache = check_equal(Plain(Classifier(Reports())), downwards(), Runs(layers_of), data=same_length)
    assert first_steps(cache) == [[[2], [2], [2, 2, 4], [4]], [[2], [2, 2, 4], [4], [4]]]
