"""Whole runs: which samples hit or miss, in which loops, and together with which other features."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from cached_fits import (
    Counter,
    Examples,
    MemoryStore,
    Plain,
    assert_same,
    both,
    collate,
    freeze,
    loader,
    make_cache,
    make_trainer,
)
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_freeze import LayerFreezing, LayerStack, TransformerModule
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.diagnostics.backward_watch import BackwardWatch, mark_probe
from lightning_freeze.errors import ConfigurationError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}


def bert(**settings: Any) -> Any:
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**{**SIZES, **settings}))


def frozen() -> LayerFreezing:
    return LayerFreezing("50%", verbose=False)


def first_block(module: Any) -> nn.Module:
    return module.model.bert.encoder.layer[0].intermediate.dense  # type: ignore[no-any-return]


def counted(cache: FrozenPrefixCache, data: Any = None, epochs: int = 3, **options: Any) -> list[int]:
    counter = Counter(first_block)
    make_trainer(frozen(), cache, counter, epochs=epochs, **options).fit(Plain(bert()), data or loader())
    return counter.calls


def test_frozen_layers_run_in_the_first_epoch_only() -> None:
    calls = counted(make_cache(verify=0))
    assert all(calls[:3]) and not any(calls[3:])


@pytest.mark.parametrize("is_marked", [True, False])
def test_looking_for_padding_is_no_backward_pass_through_frozen_layers(is_marked: bool) -> None:
    # In the first padded batch the hidden states at the boundary require grad, while the layers are watched.
    model = bert()
    for parameter in LayerStack(model).select("50%").parameters:
        parameter.requires_grad_(False)
    watch = BackwardWatch(LayerStack(model))

    def at_boundary(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        if is_marked:
            mark_probe(leaf)
        return leaf

    model.bert.encoder.layer[1].register_forward_hook(at_boundary, prepend=True)
    model(torch.randint(5, 90, (2, 6)))
    assert bool(watch.close()) != is_marked


def test_first_hits_are_compared() -> None:
    calls = counted(make_cache(verify=2), epochs=4)
    assert [bool(n) for n in calls[2:9]] == [True, True, True, False, False, False, False]


def test_embeddings_are_skipped_too() -> None:
    counter = Counter(lambda module: module.model.bert.embeddings.word_embeddings)
    make_trainer(frozen(), make_cache(verify=0), counter).fit(Plain(bert()), loader())
    assert not any(counter.calls[4:])


def test_other_batches_other_order_and_other_padding_hit() -> None:
    cache = make_cache(verify=0)
    data = Examples(24)
    make_trainer(frozen(), cache, epochs=2).fit(Plain(bert()), loader(data, 4))
    for again in (loader(data, 4, shuffle=True), loader(data, 6), loader(data, 5, shuffle=True)):
        calls = counted(cache, again, epochs=1)
        # The first batch of a fit is checked.
        assert not any(calls[1:])


def test_duplicates_are_stored_once() -> None:
    data = Examples(6)
    data.rows = data.rows * 4
    cache = make_cache()
    make_trainer(frozen(), cache, epochs=2).fit(Plain(bert()), loader(data))
    assert cache._store.stats.entries == 6


def test_partly_stored_batches() -> None:
    class Forgetful(MemoryStore):
        def put(self, namespace: bytes, keys: Any, tensors: Any) -> None:
            chosen = [(k, t) for k, t in zip(keys, tensors, strict=True) if k[0] % 2]
            super().put(namespace, [k for k, _ in chosen], [t for _, t in chosen])

    cache = make_cache(Forgetful())
    plain, cached, _ = both(Plain(bert()), frozen(), cache=cache, validation=loader, epochs=5)
    assert_same(plain, cached, exact=False)
    assert 0.2 < cache.hit_rate < 0.6


def test_augmented_inputs_miss() -> None:
    def masked() -> DataLoader:
        def join(rows: Any) -> dict[str, Tensor]:
            batch = collate(rows)
            flips = torch.rand(batch["input_ids"].shape, generator=generator) < 0.3
            batch["input_ids"] = batch["input_ids"].masked_fill(flips & (batch["attention_mask"] == 1), 4)
            return batch

        generator = torch.Generator().manual_seed(5)
        return DataLoader(Examples(least=8, most=12), 4, collate_fn=join)

    plain, cached, cache = both(Plain(bert()), frozen(), data=masked)
    assert_same(plain, cached)
    assert cache.hit_rate < 0.1


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("how", ["in place", "past autograd", "loaded"])
def test_changed_weights_miss(how: str) -> None:
    class Changing(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            weight = first_block(pl_module).weight
            if pl_module.current_epoch != 2:
                return
            if how == "in place":
                with torch.no_grad():
                    weight.mul_(1.5)
            elif how == "past autograd":
                weight.data.mul_(1.5)
            else:
                state = pl_module.state_dict()
                pl_module.load_state_dict({k: v * 1.5 if "layer.0" in k else v for k, v in state.items()})

    plain, cached, cache = both(Plain(bert()), frozen(), Changing(), epochs=5)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.3


def test_weights_swapped_for_validation_only() -> None:
    class Swapping(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            first_block(pl_module).weight.data.mul_(2)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            first_block(pl_module).weight.data.div_(2)

    plain, cached, cache = both(Plain(bert()), frozen(), Swapping(), validation=loader, epochs=4, val_check_interval=2)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.3


def test_loss_that_reads_padding_is_exact() -> None:
    class ReadsPadding(Plain):
        def loss(self, batch: dict[str, Tensor]) -> Tensor:
            hidden = self.model.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
            logits = self.model.classifier(hidden.mean(1))
            return nn.functional.cross_entropy(logits, batch["labels"])

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            loss = self.loss(batch)
            self.losses.append(loss.detach().clone())
            return loss

        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            self.validated.append(self.loss(batch))

    plain, cached, cache = both(ReadsPadding(bert()), frozen(), validation=loader, num_sanity_val_steps=2)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.4
    plain, cached, cache = both(ReadsPadding(bert()), frozen(), data=lambda: loader(shuffle=True))
    assert_same(plain, cached, exact=False)


def test_test_and_predict_after_a_fit() -> None:
    module = Plain(bert())
    cache = make_cache(verify=0)
    trainer = make_trainer(frozen(), cache)
    trainer.fit(module, loader(), loader())
    expected = make_trainer().predict(copy.deepcopy(module).eval(), loader())
    found = trainer.predict(module, loader())
    torch.testing.assert_close(found, expected)
    found = trainer.predict(module, loader())
    torch.testing.assert_close(found, expected)
    assert cache.hit_rate > 0.5
    trainer.test(module, loader())
    assert cache.hit_rate > 0.5


def test_prediction_alone() -> None:
    module = Plain(bert().eval())
    freeze(module.model.bert)
    cache = make_cache(verify=0)
    expected = make_trainer().predict(module, loader())
    trainer = make_trainer(cache)
    trainer.predict(module, loader())
    torch.testing.assert_close(trainer.predict(module, loader()), expected, rtol=0, atol=0)
    assert cache.hit_rate > 0.5


def test_gradient_accumulation_and_clipping() -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    plain, cached, cache = both(Plain(bert()), frozen(), validation=loader, **options)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.5


@pytest.mark.fast_cases(1, "bf16-mixed")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision: str) -> None:
    plain, cached, cache = both(Plain(bert()), frozen(), validation=loader, precision=precision)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.5


@pytest.mark.slow
def test_mixed_precision_with_texts_of_different_lengths() -> None:
    # Kernels round otherwise for other lengths, far more than float32 does.
    model = bert(hidden_size=384, intermediate_size=1536, num_attention_heads=4, max_position_embeddings=64)
    plain, cached, cache = both(
        Plain(model, lr=1e-3),
        frozen(),
        data=lambda: loader(Examples(24, 3, 40), shuffle=True),
        precision="bf16-mixed",
    )
    assert not cache.reasons
    assert cache.hit_rate > 0.6
    torch.testing.assert_close(cached.losses, plain.losses, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_in_half_the_space(dtype: str) -> None:
    plain, cached, cache = both(Plain(bert()), frozen(), cache=make_cache(MemoryStore(), dtype=dtype))
    torch.testing.assert_close(cached.losses, plain.losses, rtol=2e-2, atol=2e-2)
    assert cached.losses != plain.losses
    assert cache.hit_rate > 0.4
    assert {t.element_size() for t in cache._store.entries.values()} == {2}


def test_resumed_run_equals_the_straight_one(tmp_path: Path) -> None:
    def fit(epochs: int, checkpoint: Path | None, folder: str) -> Plain:
        module = Plain(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
        keeper = ModelCheckpoint(tmp_path / folder, save_last=True)
        trainer = make_trainer(frozen(), make_cache(), keeper, epochs=epochs, enable_checkpointing=True)
        trainer.fit(module, loader(), ckpt_path=checkpoint, weights_only=True)
        return module

    straight = fit(4, None, "straight")
    fit(2, None, "part")
    resumed = fit(4, tmp_path / "part" / "last.ckpt", "part")
    torch.testing.assert_close(dict(resumed.state_dict()), dict(straight.state_dict()), rtol=0, atol=0)


def test_copy_made_during_the_fit_is_its_own_model() -> None:
    class Copying(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.copy = copy.deepcopy(pl_module.model)

    copying = Copying()
    module = Plain(bert())
    make_trainer(frozen(), make_cache(), copying).fit(module, loader())
    batch = next(iter(loader()))
    copied = copying.copy.eval()
    with torch.no_grad():
        before = copied(**batch).logits
        for parameter in copied.bert.embeddings.parameters():
            parameter.mul_(2)
        assert not torch.equal(copied(**batch).logits, before)
    assert pickle.dumps(module.model)


def test_fit_leaves_the_module_as_it_was() -> None:
    module = Plain(bert())
    make_trainer(frozen(), make_cache()).fit(module, loader())
    assert not module.model.bert._forward_hooks and not module.model.bert._forward_pre_hooks
    assert all("forward" not in vars(m) for m in module.modules())


def test_exception_leaves_the_module_as_it_was() -> None:
    class Failing(Plain):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if self.global_step == 5:
                raise KeyError("on purpose")
            return loss

    module = Failing(bert())
    with pytest.raises(KeyError):
        make_trainer(frozen(), make_cache()).fit(module, loader())
    assert not module.model.bert._forward_hooks and not module.model.bert._forward_pre_hooks


@pytest.mark.slow
def test_generation_goes_on_from_its_own_keys_and_values() -> None:
    class Writes(Plain):
        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            ids = batch["input_ids"][:1, :3]
            self.validated.append(self.model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0))
            # A loop of one's own, that keeps one object and lets the model change it.
            past, written = None, ids
            for _ in range(4):
                output = self.model(written if past is None else written[:, -1:], past_key_values=past, use_cache=True)
                past = past or output.past_key_values
                written = torch.cat([written, output.logits[:, -1:].argmax(-1)], dim=1)
            self.validated.append(written)
            self.validated.append(output.logits)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return super().training_step({**batch, "labels": batch["input_ids"]}, batch_idx)

    torch.manual_seed(0)
    config = tf.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=100, bos_token_id=1, eos_token_id=2)
    module = Writes(tf.GPT2LMHeadModel(config))
    plain, cached, cache = both(module, frozen(), validation=loader)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.4
    assert not cache.reasons


def test_training_step_that_goes_past_forward() -> None:
    class Inline(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.losses: list[Tensor] = []
            self.validated: list[Tensor] = []
            self.tokens = nn.Embedding(100, 32)
            block = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
            self.encoder = nn.TransformerEncoder(block, 4)
            self.head = nn.Linear(32, 2)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            hidden = self.encoder(self.tokens(batch["input_ids"]))
            loss = nn.functional.cross_entropy(self.head(hidden[:, 0]), batch["labels"])
            self.losses.append(loss.detach().clone())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    plain, cached, cache = both(Inline(), frozen(), epochs=4)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.4


def test_blocks_run_by_the_training_step_itself() -> None:
    class Inline(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(100, 32)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True) for _ in range(4))
            self.head = nn.Linear(32, 2)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            hidden = self.tokens(batch["input_ids"])
            for layer in self.layers:
                hidden = layer(hidden)
            return nn.functional.cross_entropy(self.head(hidden[:, 0]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    with pytest.warns(UserWarning, match="Inline.forward, which runs its layers, is not what the step calls"):
        make_trainer(frozen(), make_cache()).fit(Inline(), loader())


def test_said_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(frozen(), make_cache(verbose=True), epochs=4)
    trainer.fit(Plain(bert()), loader())
    said = capsys.readouterr().out
    assert "Frozen prefix cache: 2 of 4 blocks are computed once, " in said
    assert "times as fast" in said
    assert "samples read back" in said
    assert float(trainer.callback_metrics["frozen_prefix_cache/hit_rate"]) == 1.0
    assert "frozen_prefix_cache/seconds_saved" in trainer.callback_metrics


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="dtype='bfloat61'"):
        FrozenPrefixCache(dtype="bfloat61")
    with pytest.raises(ConfigurationError, match="verify=-1"):
        FrozenPrefixCache(verify=-1)
    with pytest.raises(ConfigurationError, match="max_memory"):
        FrozenPrefixCache(max_memory="4 gallons")


def test_copy_of_the_callback_is_its_configuration() -> None:
    cache = make_cache(dtype="bfloat16", max_memory="1GiB")
    make_trainer(frozen(), cache, epochs=1).fit(Plain(bert()), loader())
    copied = pickle.loads(pickle.dumps(cache))
    assert copied.dtype == "bfloat16" and copied.max_memory == "1GiB"
    assert copied._store is None and not copied._towers


def test_gradient_checkpointing_of_the_layers() -> None:
    model = bert()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    plain, cached, cache = both(Plain(model), frozen(), validation=loader)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.5


def test_gradient_checkpointing_around_the_tower() -> None:
    class Around(Plain):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            def encode(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
                return self.model.bert(input_ids, attention_mask).pooler_output  # type: ignore[no-any-return]

            pooled = checkpoint(encode, batch["input_ids"], batch["attention_mask"], use_reentrant=False)
            loss = nn.functional.cross_entropy(self.model.classifier(pooled), batch["labels"])
            self.losses.append(loss.detach().clone())
            return loss

    plain, cached, cache = both(Around(bert()), frozen(), epochs=4)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.4


def test_adapters_above_frozen_layers() -> None:
    config = peft.LoraConfig(
        layers_to_transform=[2, 3], target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    module = Plain(peft.get_peft_model(bert(), config))
    plain, cached, cache = both(module, frozen(), validation=loader)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.5


def test_module_of_this_package() -> None:
    class Noting(TransformerModule):
        def on_fit_start(self) -> None:
            self.losses: list[Tensor] = []
            self.validated: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.losses.append(loss.detach().clone())
            return loss

    torch.manual_seed(0)
    encoder = tf.BertModel(tf.BertConfig(**SIZES), add_pooling_layer=False)
    for pooling in ("mean", "cls"):
        module = Noting(encoder, num_classes=2, pooling=pooling)
        plain, cached, cache = both(module, frozen(), validation=loader)
        assert_same(plain, cached)
        assert cache.hit_rate > 0.5


def test_layers_given_explicitly() -> None:
    encoder = "model.bert.encoder.layer"
    groups = {
        "embeddings": ["model.bert.embeddings"],
        "low": [f"{encoder}.0"],
        "middle": [f"{encoder}.1"],
        "high": [f"{encoder}.2"],
        "top": [f"{encoder}.3"],
        "head": ["model.bert.pooler", "model.classifier"],
    }
    freezing = LayerFreezing("embeddings,low,middle", groups=groups, verbose=False)
    plain, cached, cache = both(Plain(bert()), freezing, cache=make_cache(groups=groups), validation=loader)
    assert_same(plain, cached)
    assert cache.hit_rate > 0.5


def test_sharded_strategy_is_refused() -> None:
    cache = make_cache()
    trainer = make_trainer(cache)
    trainer.strategy.__class__ = type("FSDPStrategy", (FSDPStrategy,), {})
    with pytest.warns(UserWarning, match="does nothing under FSDPStrategy"):
        cache.on_fit_start(trainer, Plain(bert()))
    assert not cache._towers


def test_two_caches_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="has 2 FrozenPrefixCache callbacks: expected one"):
        make_trainer(make_cache(), make_cache()).fit(Plain(bert()), loader())


def test_validation_before_training_does_not_prove_anything() -> None:
    plain, cached, cache = both(Plain(bert()), frozen(), validation=loader, num_sanity_val_steps=2, epochs=4)
    assert_same(plain, cached)
    assert any(known.padding_unread and known.dry_run_trimmed for known in cache._towers[0].entries.known.values())
    assert cache.hit_rate > 0.5


class Logged(Logger):
    """Keeps what reaches it."""

    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.steps.setdefault(step or 0, {}).update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("every", [1, 2])
def test_what_it_does_reaches_logger_and_progress_bar(every: int) -> None:
    logger, cache = Logged(), make_cache(verbose=True)
    trainer = make_trainer(frozen(), cache, epochs=4, logger=logger, log_every_n_steps=every)
    trainer.fit(Plain(bert()), loader())
    rates = {step: values["frozen_prefix_cache/hit_rate"] for step, values in logger.steps.items()}
    # Three batches in an epoch: the first epoch fills, the next one begins with a comparison, then all are read back.
    expected = [0, 0, 0, 0, 1 / 2, 2 / 3, 1, 1, 1, 1, 1, 1]
    assert rates == pytest.approx({step: expected[step] for step in range(every - 1, 12, every)})
    last = logger.steps[11]
    assert last["frozen_prefix_cache/bytes"] > 12 * 3 * 32 * 4
    assert last["frozen_prefix_cache/seconds_saved"] == pytest.approx(cache._towers[0].tally.saved_seconds)
    assert trainer.progress_bar_metrics["frozen_prefix_cache/hit_rate"] == 1.0
