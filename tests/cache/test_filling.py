"""A cache that was filled ahead: the fit reads everything from its first step, and computes the same."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf
from cached_fits import Counter, Examples, Plain, assert_same, loader, make_cache, make_trainer
from encoders import SIZES, bert
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, LayerStack, Phase, PhasedFineTuning
from lightning_freeze.cache.filling import boundaries_to_fill
from lightning_freeze.cache.identity.cached_towers import find_towers
from lightning_freeze.callbacks import cache_filling
from lightning_freeze.callbacks.cache_filling import CacheFillingCallback, FillComplete, Filled
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.errors import ConfigurationError


def same_length() -> DataLoader:
    return loader(Examples(12, 5, 5))


def fill(
    module: LightningModule,
    folder: Path,
    *callbacks: Callback,
    data: Any = loader,
    validation: Any = None,
    epochs: int = 3,
) -> Filled:
    filling = CacheFillingCallback()
    cache = make_cache(cache_dir=folder)
    torch.manual_seed(11)
    with pytest.raises(FillComplete):
        make_trainer(*callbacks, cache, filling, epochs=epochs).fit(
            module, data(), validation() if validation else None
        )
    assert filling.filled is not None
    return filling.filled


def fit(module: Plain, *callbacks: Callback, data: Any = loader, validation: Any = None, epochs: int = 3) -> Plain:
    torch.manual_seed(11)
    make_trainer(*callbacks, epochs=epochs).fit(module, data(), validation() if validation else None)
    return module


def frozen() -> LayerFreezing:
    return LayerFreezing("50%", verbose=False)


def gradual() -> GradualUnfreezing:
    return GradualUnfreezing(EpochTrigger(1), verbose=False)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Lookups(Callback):
    """Keeps what the store has seen before it is closed."""

    def __init__(self, cache: FrozenPrefixCache) -> None:
        self.cache = cache
        self.misses = 0

    def on_train_end(self, *args: Any) -> None:
        self.misses = self.cache._store.stats.misses


def others() -> DataLoader:
    return loader(Examples(10, seed=9))


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("callbacks", [frozen, gradual], ids=["static", "gradual"])
@pytest.mark.parametrize("data", [loader, same_length], ids=["padded", "same length"])
def test_fit_misses_nothing_and_equals_the_uncached_one(tmp_path: Path, callbacks: Any, data: Any) -> None:
    epochs = 2 if callbacks is frozen else 6
    filled = fill(Plain(bert()), tmp_path, callbacks(), data=data, validation=others, epochs=epochs)
    assert filled.samples == filled.computed == 22
    assert filled.folder == tmp_path and filled.bytes > 0
    assert filled.boundaries == ({"": [2]} if callbacks is frozen else {"": [4, 3, 2, 1]})
    cache = make_cache(cache_dir=tmp_path)
    lookups = Lookups(cache)
    warm = fit(Plain(bert()), callbacks(), cache, lookups, data=data, validation=others, epochs=epochs)
    plain = fit(Plain(bert()), callbacks(), data=data, validation=others, epochs=epochs)
    assert_same(plain, warm)
    assert not cache.reasons
    assert lookups.misses == 0


def probed() -> PhasedFineTuning:
    return PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("all")], verbose=False)


@pytest.mark.parametrize(("schedule", "boundaries"), [(gradual, [4, 3, 2]), (probed, [4, 2])])
def test_layers_that_another_callback_freezes_stay_below_every_boundary(
    tmp_path: Path, schedule: Any, boundaries: list[int]
) -> None:
    class Ahead(Callback):
        def __init__(self, cache: FrozenPrefixCache) -> None:
            self.cache = cache

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                (prefix,) = self.cache._towers
                assert [4, *prefix.entries.boundaries_ahead] == boundaries

    def layers() -> LayerFreezing:
        return LayerFreezing("embeddings,:2", verbose=False)

    filled = fill(Plain(bert()), tmp_path / "filled", layers(), schedule(), data=same_length, epochs=4)
    assert filled.boundaries == {"": boundaries}
    cache, cold = make_cache(cache_dir=tmp_path / "filled"), make_cache()
    lookups = Lookups(cache)
    warm = fit(Plain(bert()), layers(), schedule(), cache, lookups, data=same_length, epochs=4)
    assert lookups.misses == 0
    assert_same(fit(Plain(bert()), layers(), schedule(), cold, Ahead(cold), data=same_length, epochs=4), warm)
    assert_same(fit(Plain(bert()), layers(), schedule(), data=same_length, epochs=4), warm)


def test_only_boundaries_that_were_stored_are_named(tmp_path: Path) -> None:
    """Frozen layers in train mode may be in eval mode in the fit's later phases, so nothing is stored for these."""
    for again in range(2):
        schedule = GradualUnfreezing(EpochTrigger(1), frozen_eval=False, verbose=False)
        filled = fill(Plain(bert()), tmp_path, schedule, data=same_length, validation=others, epochs=6)
        assert filled.boundaries == {"": [4]}
        assert filled.computed == (4 if again else 12)


def test_a_warm_fit_runs_the_prefix_only_to_check_itself(tmp_path: Path) -> None:
    fill(Plain(bert()), tmp_path, frozen(), data=same_length)
    counter = Counter(lambda module: module.model.bert.encoder.layer[0].intermediate.dense)  # type: ignore[union-attr]
    cache = make_cache(cache_dir=tmp_path)
    fit(Plain(bert()), frozen(), cache, counter, data=same_length)
    assert not any(counter.calls[1:])
    assert cache.hit_rate == 1


def test_only_the_prefix_runs_after_the_first_step_and_no_weight_changes(tmp_path: Path) -> None:
    module = Plain(bert())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    calls = []
    module.model.classifier.register_forward_hook(lambda *_: calls.append(1))
    blocks = []
    module.model.bert.encoder.layer[3].register_forward_hook(lambda *_: blocks.append(1))
    fill(module, tmp_path, frozen(), validation=loader)
    assert len(module.losses) == len(calls) == 1
    assert not module.validated
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_only_the_prefix_runs_although_another_callback_has_called_the_tower_before(tmp_path: Path) -> None:
    class CallsFirst(Callback):
        def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
            pl_module.model(**next(iter(loader())))  # type: ignore[operator]

    module = Plain(bert())
    cache = make_cache(cache_dir=tmp_path)
    with pytest.raises(FillComplete):
        make_trainer(frozen(), cache, CallsFirst(), CacheFillingCallback()).fit(module, loader())
    assert len(module.losses) == 1


@pytest.mark.parametrize(("nodes", "fits"), [(1, False), (2, True)])
def test_each_node_has_room_for_its_own_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, fits: bool
) -> None:
    """Of four processes on two nodes, two share a disk."""
    cache = make_cache(cache_dir=tmp_path)
    trainer = make_trainer(frozen(), cache, CacheFillingCallback())
    each = 12 * 5 * 32 * 4  # samples, tokens, width, bytes of a number
    monkeypatch.setattr(Trainer, "world_size", property(lambda _: 4))
    monkeypatch.setattr(Trainer, "num_nodes", property(lambda _: nodes))
    disk = SimpleNamespace(disk_usage=lambda _: Usage(9 * each, 6 * each, 3 * each))
    monkeypatch.setattr(cache_filling, "shutil", disk)
    with pytest.raises(FillComplete if fits else ConfigurationError):
        trainer.fit(Plain(bert()), same_length())


def test_shuffled_batches_are_those_of_the_first_epoch(tmp_path: Path) -> None:
    def shuffled() -> DataLoader:
        return loader(shuffle=True)

    fill(Plain(bert()), tmp_path, frozen(), data=shuffled)
    cache = make_cache(cache_dir=tmp_path)
    warm = fit(Plain(bert()), frozen(), cache, data=shuffled, epochs=1)
    plain = fit(Plain(bert()), frozen(), data=shuffled, epochs=1)
    assert_same(plain, warm)


def test_resumes_where_it_was_stopped(tmp_path: Path) -> None:
    class Stops(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_trainer(frozen(), make_cache(cache_dir=tmp_path), CacheFillingCallback()).fit(Stops(bert()), loader())
    filled = fill(Plain(bert()), tmp_path, frozen())
    # The first batch of a run is checked, and counts as computed.
    assert (filled.samples, filled.computed) == (12, 8)
    assert fill(Plain(bert()), tmp_path, gradual(), epochs=6).computed == 12  # other boundaries


def test_encoder_and_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tf.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = tf.T5ForConditionalGeneration(config)

    class Pairs(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            ids = batch["input_ids"]
            loss = self.model(input_ids=ids, attention_mask=batch["attention_mask"], labels=ids).loss
            self.losses.append(loss.detach().clone())
            return loss

    def layers() -> LayerFreezing:
        return LayerFreezing("embeddings,encoder.:,decoder.:1", verbose=False)

    filled = fill(Pairs(copy.deepcopy(model)), tmp_path, layers(), data=same_length)
    assert filled.boundaries == {"encoder": [2], "decoder": [1]}
    cache = make_cache(cache_dir=tmp_path)
    lookups = Lookups(cache)
    warm = fit(Pairs(copy.deepcopy(model)), layers(), cache, lookups, data=same_length)
    assert_same(fit(Pairs(copy.deepcopy(model)), layers(), data=same_length), warm)
    assert lookups.misses == 0 and not cache.reasons


def test_boundaries_of_a_schedule_that_freezes_again() -> None:
    module = bert()
    stack = LayerStack(module)
    (tower,), _ = find_towers(stack)

    def frozen_but(names: str) -> Any:
        trains = {id(p) for layer in stack.select(names).layers for p in layer.parameters()}
        return [p for p in module.parameters() if id(p) not in trains], []

    phases = [frozen_but(names) for names in ("head", "2,head", "head", "3,head", "1:,head")]
    for parameter in phases[0][0]:
        parameter.requires_grad_(False)
    # What the second phase has trained is below the boundaries of the third and the fourth.
    assert boundaries_to_fill([phases], tower) == [2, 1]


def refused(folder: Path | None, *callbacks: Callback, module: Any = None, **options: Any) -> str:
    cache = make_cache(cache_dir=folder, **options)
    with pytest.raises(ConfigurationError) as error:
        make_trainer(*callbacks, cache, CacheFillingCallback()).fit(module or Plain(bert()), loader())
    return str(error.value)


def test_refusals_name_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no cache_dir" in refused(None, frozen())
    assert "its first block, or something before it, trains" in refused(tmp_path)
    with pytest.warns(UserWarning, match="has reached max_disk"):
        assert "max_disk leaves" in refused(tmp_path / "small", frozen(), max_disk="1KiB")
    with pytest.raises(ConfigurationError, match="no FrozenPrefixCache among"):
        make_trainer(frozen(), CacheFillingCallback()).fit(Plain(bert()), loader())
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1000, 900, 100))
    with pytest.warns(UserWarning, match="nearly full|no space|computed again"):
        assert "has 100 B" in refused(tmp_path / "full", frozen())


def test_layers_that_draw_random_numbers_are_refused(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.rand_like(x)

    model = tf.BertForSequenceClassification(tf.BertConfig(**SIZES))
    model.bert.encoder.layer[0].output.dropout = Noisy()
    with pytest.warns(UserWarning, match="switched off"):
        assert "random" in refused(tmp_path, frozen(), module=Plain(model))
