"""The check on two samples, for a batch that an earlier run has stored completely."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Examples, MemoryStore, Plain, both, freeze, loader, make_cache, make_trainer
from encoders import Block, Classifier, Encoder, Whole, bert, check_equal, frozen, same_length
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchmetrics import SumMetric

from lightning_freeze import EpochTrigger, Phase, PhasedFineTuning
from lightning_freeze.cache.prefix import break_even
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache

#: Samples that the check of a whole batch computes: one alone, and the same among different others.
CHECKED = [1, 7, 7]


class BatchSizes(Callback):
    """The numbers of samples that a module computes before the training, and in each of its steps."""

    seen: list[list[int]]

    def __init__(self, find: Callable[[Any], nn.Module] = lambda module: module.model.bert.encoder.layer[0]) -> None:
        self.find = find

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found, seen = self.find(pl_module), [[]]
        type(self).seen = seen
        # Not on the block itself, whose forward is replaced when it is skipped.
        inner = next(m for m in found.modules() if isinstance(m, nn.Linear))
        run = inner.forward

        def forward(x: Tensor) -> Tensor:
            seen[-1].append(len(x))
            return run(x)

        inner.forward = forward  # type: ignore[method-assign]

    def on_train_batch_start(self, *args: Any) -> None:
        self.seen.append([])


def warm(
    module: LightningModule,
    *callbacks: Callback,
    first: LightningModule | None = None,
    reason: str | None = None,
    change: Callable[[MemoryStore], None] = lambda store: None,
    **options: Any,
) -> FrozenPrefixCache:
    """A run after one that has filled the store equals the one without the cache."""
    store = MemoryStore()
    defaults = {"data": same_length, **options}
    both(first or module, *callbacks, cache=make_cache(store), **defaults)
    assert store.entries
    change(store)
    return check_equal(module, *callbacks, cache=make_cache(store), reason=reason, **defaults)


def rename(store: MemoryStore) -> None:
    """Give the rows of a first run to a second one, under whatever name it looks for them."""
    rows = {key: entry for (_, key), entry in store.entries.items()}
    store.get = lambda namespace, keys: [rows.get(key) for key in keys]  # type: ignore[method-assign]
    store.noted = lambda namespace: 10**9  # type: ignore[method-assign]


def layers_of(module: Any) -> nn.Module:
    return module.model.encoder.layers[0]  # type: ignore[no-any-return]


def test_two_samples_stand_for_the_first_batch() -> None:
    cache = warm(Plain(bert()), frozen(), BatchSizes())
    assert cache.hit_rate == 1.0
    assert BatchSizes.seen[1] == [2]
    assert not any(BatchSizes.seen[2:])


def test_validation_and_dropout_above() -> None:
    module = Plain(bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, classifier_dropout=0.3))
    cache = warm(module, frozen(), BatchSizes(), validation=same_length, num_sanity_val_steps=2)
    assert cache.hit_rate == 1.0
    # Once more when the dropout above is at work.
    assert BatchSizes.seen[:2] == [[2], [2]]
    assert not any(BatchSizes.seen[2:])


def test_each_phase() -> None:
    phases = [Phase("3:,head", EpochTrigger(1)), Phase("2:,head", EpochTrigger(1)), Phase("1:,head")]
    both(Plain(bert()), PhasedFineTuning(phases, verbose=False), BatchSizes(), data=same_length)
    # Filled for all phases in the first epoch, read from the second on.
    assert BatchSizes.seen[1:] == [[4, *CHECKED], [4], [4], [2], [], [], [2], [], []]


def test_mixed_precision_trains_what_it_trains_without() -> None:
    # Casts of weights are kept for a whole pass: those of a check must not come without a gradient.
    cache = warm(Plain(bert()), frozen(), BatchSizes(), precision="bf16-mixed")
    assert cache.hit_rate == 1.0
    assert BatchSizes.seen[1] == [2]


def test_what_is_stored_differs() -> None:
    def spoil(store: MemoryStore) -> None:
        for entry in store.entries.values():
            entry += 0.1

    warm(Plain(bert()), frozen(), change=spoil, reason="what was stored differs from what its frozen layers compute")


def test_entries_of_another_shape_are_computed_again() -> None:
    def cut(store: MemoryStore) -> None:
        for key, entry in list(store.entries.items())[::5]:
            store.entries[key] = entry[:3].clone()

    warm(Plain(bert()), frozen(), change=cut)


def test_other_layers_above_are_looked_at() -> None:
    class Skips(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            states = self.run(self.embeddings(input_ids))
            return states[-1] + states[1].argmax(-1, keepdim=True)  # no gradient, and no NaN

    first, second = (Plain(Classifier(kind())) for kind in (Encoder, Skips))
    reason = "reads what they compute on the way"
    warm(second, frozen(), BatchSizes(layers_of), first=first, change=rename, reason=reason)
    assert BatchSizes.seen[1][0] == 2
    assert 4 in BatchSizes.seen[1]


class Prompted(Encoder):
    """Adds to the embeddings what need not be frozen with them."""

    def __init__(self, trains: bool) -> None:
        super().__init__()
        self.trains = [trains]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(self.embeddings(input_ids) + self.prompt())[-1]  # type: ignore[no-any-return]

    def prompt(self) -> Tensor:
        return torch.ones(32, requires_grad=self.trains[0])


def test_something_that_trains_feeds_in() -> None:
    first, second = Plain(Classifier(Prompted(False))), Plain(Classifier(Prompted(True)))

    warm(second, frozen(), first=first, change=rename, reason="something that trains, or is made to require grad")


def test_size_that_it_does_not_bear() -> None:
    class Pairs(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            hidden = self.run(self.embeddings(input_ids))[-1]
            return hidden.reshape(2, 2, *hidden.shape[1:]).reshape(4, *hidden.shape[1:])

    cache = warm(Plain(Classifier(Pairs())), frozen(), BatchSizes(layers_of))
    # Two, which fail above the prefix; all of them; one alone, and among others.
    assert BatchSizes.seen[1] == [2, 4, *CHECKED]
    assert not any(BatchSizes.seen[2:])
    assert cache.hit_rate == pytest.approx(8 / 9)


def test_what_frozen_layers_keep_is_seen() -> None:
    class Keeps(Block):
        def forward(self, x: Tensor) -> Tensor:
            self.__dict__["kept"] = x
            return super().forward(x)

    class Reads(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            hidden = super().forward(input_ids)
            kept = self.layers[0].__dict__.get("kept")
            return hidden if kept is None else hidden + kept.detach().mean()

    module = Plain(Classifier(Reads(Keeps(), Block(), Block(), Block())))
    plain = Plain(Classifier(Reads(Block(), Block(), Block(), Block())))

    plain.load_state_dict(module.state_dict())
    warm(module, frozen(), first=plain, change=rename, reason="keep what they compute in an attribute")


def test_statistics_above_are_those_of_whole_batches() -> None:
    class Normed(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(32)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            hidden = self.run(self.embeddings(input_ids))[-1]
            return self.norm(hidden.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]

    cache = warm(Plain(Classifier(Normed())), frozen(), BatchSizes(layers_of))
    assert BatchSizes.seen[1] == [2]
    assert cache.hit_rate == 1.0


class Counts(Encoder):
    """Counts its calls, as a schedule inside of a model would, and measures what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.total = SumMetric()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        hidden = self.run(self.embeddings(input_ids))[-1]
        self.total.update(len(input_ids))
        return hidden


@pytest.mark.parametrize("is_warm", [False, True])
def test_nothing_is_counted_twice(is_warm: bool) -> None:
    found: list[tuple[int, float]] = []

    class Tell(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            encoder: Any = pl_module.model.encoder
            found.append((encoder.calls, float(encoder.total.compute())))

    module = Plain(Classifier(Counts()))
    cache = (warm if is_warm else check_equal)(module, frozen(), Tell(), data=same_length)
    assert cache.hit_rate == (1.0 if is_warm else pytest.approx(4 / 9))
    assert set(found) == {(9, 36.0)}


def test_what_the_module_logs_is_logged_once() -> None:
    class Logs(Whole):
        """Logs where it computes."""

        def forward(self, input_ids: Tensor) -> Tensor:
            self.log("size", float(len(input_ids)), reduce_fx="sum", on_step=False, on_epoch=True, batch_size=1)
            return super().forward(input_ids)

    store, module, sizes = MemoryStore(), Logs(), []
    freeze(module.embeddings, *module.layers[:2])

    class Tell(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            sizes.append(float(trainer.callback_metrics["size"]))

    for _ in range(2):
        cache = make_cache(store)
        make_trainer(Tell(), cache, epochs=2).fit(copy.deepcopy(module), same_length())
        assert not cache.reasons
    assert cache.hit_rate == 1.0
    assert sizes == [12.0] * 4


@pytest.mark.parametrize("whole", [False, True])
def test_activation_checkpointing(whole: bool) -> None:
    class Checkpointed(Classifier):
        def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return checkpoint(self.encoder, input_ids, attention_mask, use_reentrant=False)

    class Inside(Encoder):
        def run(self, x: Tensor) -> list[Tensor]:
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            return [x]

    module = Plain(Checkpointed(Encoder()) if whole else Classifier(Inside()))
    cache = warm(module, frozen(), BatchSizes(layers_of))
    assert cache.hit_rate > 0.6
    assert BatchSizes.seen[1][0] == (4 if whole else 2)


@pytest.mark.slow
def test_encoder_and_decoder() -> None:
    torch.manual_seed(0)
    config = tf.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t5 = tf.T5ForConditionalGeneration(config)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
            return self.t5(input_ids=input_ids, attention_mask=attention_mask, labels=input_ids)

    for layers in ("50%", "75%"):
        cache = warm(Plain(Model()), frozen(layers))
        assert cache.hit_rate == 1.0


def test_random_numbers_are_looked_at_in_a_whole_batch() -> None:
    class Draws(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            torch.rand(3)
            return self.run(self.embeddings(input_ids))[-1]

    warm(Plain(Classifier(Draws())), frozen(), BatchSizes(layers_of))
    assert 4 in BatchSizes.seen[1]


class DropsSamples(Encoder):
    """Leaves out one input in twenty while it trains, as captions are for classifier-free guidance."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embeddings(input_ids)
        if self.training:
            x = x * (torch.rand(len(x), 1, 1) <= 0.95)
        return self.run(x)[-1]


def test_inputs_that_are_left_out_now_and_then() -> None:
    module = Plain(Classifier(DropsSamples()))
    # The first run is in eval mode, as a prediction or a validation of the same samples would be.
    first, data = copy.deepcopy(module).eval(), lambda: loader(Examples(64, 5, 5), 64)
    warm(module, frozen(), first=first, data=data, reason="draws random numbers")


class TwoKinds(Encoder):
    """Mixes two vectors, the table of which is as large as two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"words": nn.Embedding(100, 32), "kinds": nn.Embedding(2, 32)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embeddings["words"](input_ids).mean(1)
        table = self.embeddings["kinds"](torch.arange(2))
        weights = (x @ table.T).view(len(x), 2).softmax(-1)
        return self.run(x + weights @ table)[-1]


def test_stem_that_returns_two_rows() -> None:
    class OfVectors(Classifier):
        def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.encoder(input_ids)[:, None]  # type: ignore[no-any-return]

    cache = warm(Plain(OfVectors(TwoKinds())), frozen(), BatchSizes(layers_of))
    assert cache.hit_rate == 1.0


class Borrows(Encoder):
    """Adds a vector that belongs to somebody else."""

    borrowed: list[Tensor]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(self.embeddings(input_ids) + self.borrowed[0])[-1]


class Lends(Classifier):
    def __init__(self, trains: bool) -> None:
        super().__init__(Borrows())
        if trains:
            self.head_prompt = nn.Parameter(torch.zeros(32))
        self.encoder.borrowed = [self.head_prompt if trains else torch.zeros(32)]


def test_what_was_checked_without_a_gradient_is_checked_again_with_one() -> None:
    # In eval mode, in which models of `from_pretrained` come and Lightning leaves them.
    first, second = Plain(Lends(False)).eval(), Plain(Lends(True)).eval()
    options = {"validation": same_length, "num_sanity_val_steps": 1}
    warm(second, frozen(), first=first, change=rename, reason="something that trains", **options)


class Local(Encoder):
    """Has a loss of its own, with its own backward pass."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.run(self.embeddings(input_ids))[-1]
        if torch.is_grad_enabled() and hidden.requires_grad:
            hidden.pow(2).mean().backward(retain_graph=True)
        return hidden


class Manual(Plain):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.model(**batch).loss
        self.losses.append(loss.detach().clone())
        self.manual_backward(loss)
        optimizer.step()


def test_the_check_leaves_no_gradients() -> None:
    warm(Manual(Classifier(Local())), frozen(), BatchSizes(layers_of))
    assert BatchSizes.seen[1] == [2]


class Capacity(Block):
    """Has room for 15 tokens of a batch; the others pass by."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).reshape(-1, 32)
        fits = (torch.arange(len(y)) < 15)[:, None]
        return torch.where(fits, y, x.reshape(-1, 32)).view_as(x)


class Centred(Block):
    """Takes off the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(0, keepdim=True) * 0.5


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("is_on_disk", [False, True])
@pytest.mark.parametrize("kind", [Capacity, Centred])
def test_what_was_stored_sample_by_sample_is_compared_in_a_whole_batch(
    kind: type[Block], is_on_disk: bool, tmp_path: Path
) -> None:
    examples, store = Examples(12, 5, 5), MemoryStore()
    if kind is Centred:  # the first and the last sample of a batch are the same one
        for start in (0, 4, 8):
            examples.rows[start + 3] = examples.rows[start].clone()
    module = Plain(Classifier(Encoder(*(kind() for _ in range(4)))))
    one, other = (make_cache(cache_dir=tmp_path) if is_on_disk else make_cache(store) for _ in range(2))
    both(module, frozen(), cache=one, data=lambda: loader(examples, 1))
    assert one.hit_rate > 0.5
    check_equal(module, frozen(), cache=other, data=lambda: loader(examples), reason="depends on the other|differs")


def test_independence_that_was_seen_in_smaller_batches() -> None:
    examples, store = Examples(12, 5, 5), MemoryStore()
    module = Plain(Classifier(Encoder(*(Capacity() for _ in range(4)))))
    both(module, frozen(), cache=make_cache(store), data=lambda: loader(examples, 2))
    assert store.entries
    cache = make_cache(store)
    check_equal(module, frozen(), cache=cache, data=lambda: loader(examples))
    assert all(known.mixing for known in cache._towers[0].entries.known.values())


def test_it_is_known_on_disk_that_samples_are_independent(tmp_path: Path) -> None:
    for expected in ([4, *CHECKED], [2]):
        both(Plain(bert()), frozen(), BatchSizes(), cache=make_cache(cache_dir=tmp_path), data=same_length)
        assert BatchSizes.seen[1] == expected


def test_reading_that_may_be_slower_is_measured_on_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(break_even, "SLOWER", 0.0)
    store = MemoryStore()
    with monkeypatch.context() as patch:
        patch.setattr(break_even, "SLOWER", 1e9)
        both(Plain(bert()), frozen(), cache=make_cache(store), data=same_length)
    cache = make_cache(store)
    both(Plain(bert()), frozen(), BatchSizes(), cache=cache, data=same_length)
    assert BatchSizes.seen[1] == [2, 4, *CHECKED]
    assert "reading the hidden states of a sample takes" in "".join(cache.reasons.values())
