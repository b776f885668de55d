"""The cache switches itself off with one warning where skipping could change a result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import (
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
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_freeze import LayerFreezing

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}


def bert(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**SIZES, **settings))


def frozen() -> LayerFreezing:
    return LayerFreezing("50%", verbose=False)


def check_off(module: Plain, *callbacks: Any, reason: str, **options: Any) -> None:
    """The fit equals the one without the cache, with one warning that names the reason."""
    cache = make_cache()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain, cached, _ = both(module, *callbacks, cache=cache, **options)
    ours = [str(w.message) for w in caught if "FrozenPrefixCache" in str(w.message)]
    assert len(ours) == 1, ours
    assert reason in ours[0]
    assert_same(plain, cached)
    assert cache.hit_rate == 0
    assert any(reason in text for text in cache.reasons.values())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Any:
        return x + torch.tanh(self.linear(self.norm(x)))


class Blocks(nn.Module):
    """A small encoder with a head; ``run`` says how its blocks are used."""

    def __init__(self, block: Callable[[], nn.Module] = Block, run: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(100, 32)
        self.layers = nn.ModuleList(block() for _ in range(4))
        self.classifier = nn.Linear(32, 2)
        self.run = run

    def encode(self, input_ids: Tensor) -> Tensor:
        x = self.embeddings(input_ids)
        if self.run is not None:
            return self.run(self, x)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        logits = self.classifier(self.encode(input_ids)[:, 0])
        return tf.modeling_outputs.SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels))


def test_active_dropout() -> None:
    check_off(Plain(bert()), LayerFreezing("50%", frozen_eval=False, verbose=False), reason="draws random numbers")


def test_training_mode_without_randomness_is_cached() -> None:
    module = Plain(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    plain, cached, cache = both(module, LayerFreezing("50%", frozen_eval=False, verbose=False))
    assert_same(plain, cached)
    assert cache.hit_rate >= 0.5


def test_dropout_of_the_container() -> None:
    torch.manual_seed(0)
    config = tf.BartConfig(
        d_model=32,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=100,
    )

    def language() -> DataLoader:
        def join(rows: Any) -> dict[str, Tensor]:
            batch = collate(rows)
            return {**batch, "labels": batch["input_ids"]}

        return DataLoader(Examples(), 4, collate_fn=join)

    check_off(
        Plain(tf.BartForConditionalGeneration(config)),
        LayerFreezing("embeddings,encoder.:2", verbose=False),
        reason="draws random numbers",
        data=language,
    )


def test_batch_norm_in_training_mode() -> None:
    class Normed(Block):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(32)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.linear(self.norm(x.transpose(1, 2)).transpose(1, 2)))

    check_off(Plain(Blocks(Normed)), LayerFreezing("50%", frozen_eval=False, verbose=False), reason="BatchNorm")


def test_later_layer_reads_an_earlier_one() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        first = model.layers[0](x)
        x = model.layers[2](model.layers[1](first))
        return model.layers[3](x + first)  # type: ignore[no-any-return]

    check_off(Plain(Blocks(run=run)), frozen(), reason="reads what they compute on the way")


def test_later_layer_reads_the_embeddings() -> None:
    def run(model: Any, embedded: Tensor) -> Tensor:
        x = embedded
        for layer in model.layers:
            x = layer(x)
        return x + embedded

    plain, cached, cache = both(Plain(Blocks(run=run)), frozen())
    assert_same(plain, cached)
    assert cache.hit_rate >= 0.5  # the embeddings are computed each time, the blocks are not


def test_hidden_states_requested() -> None:
    class Wants(Plain):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            output = self.model(**batch, output_hidden_states=True)
            loss: Tensor = output.loss + output.hidden_states[1].mean()
            self.losses.append(loss.detach().clone())
            return loss

    check_off(Wants(bert()), frozen(), reason="output_hidden_states=True")


def test_hidden_states_requested_by_the_config() -> None:
    check_off(Plain(bert(output_attentions=True, attn_implementation="eager")), frozen(), reason="output_attentions")


def test_hooks_of_others() -> None:
    class Hooking(Callback):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            inner = pl_module.model.bert.encoder.layer[0].output.dense
            inner.register_forward_hook(lambda module, args, output: self.seen.append(output.mean().detach()))

    check_off(Plain(bert()), frozen(), Hooking(), reason="forward hook on encoder.layer.0.output.dense")


def test_inputs_that_require_grad() -> None:
    class Adversarial(Plain):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            words = self.model.bert.embeddings.word_embeddings(batch["input_ids"]).detach().requires_grad_()
            inputs = {"attention_mask": batch["attention_mask"], "labels": batch["labels"]}
            loss: Tensor = self.model(inputs_embeds=words, **inputs).loss
            (towards,) = torch.autograd.grad(loss, words, retain_graph=True)
            loss = loss + self.model(inputs_embeds=words + 0.1 * towards.sign(), **inputs).loss
            self.losses.append(loss.detach().clone())
            return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_off(Adversarial(bert()), frozen(), reason="something that trains, or is made to require grad, feeds into")


def test_batch_is_not_first() -> None:
    class Attention(Block):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x, need_weights=False)[0]

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Blocks(Attention)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
            return self.model(input_ids.T, attention_mask.T, labels)

    class Transposed(Blocks):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
            logits = self.classifier(self.encode(input_ids)[0])
            return tf.modeling_outputs.SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels))

    module = SequenceFirst()
    module.model = Transposed(Attention)
    check_off(Plain(module), frozen(), reason="depends on the other samples")


def test_randomness_of_rare_layer_drop() -> None:
    class Dropping(Blocks):
        layerdrop = 0.01

        def encode(self, input_ids: Tensor) -> Tensor:
            x = self.embeddings(input_ids)
            for layer in self.layers:
                if not self.training or torch.rand([]) > self.layerdrop:
                    x = layer(x)
            return x

    check_off(Plain(Dropping()), frozen(), reason="dropped at random")


def test_block_that_returns_more() -> None:
    class More(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = super().forward(x)
            return y, y.mean(-1)

    def run(model: Any, x: Tensor) -> Tensor:
        weights = 0
        for layer in model.layers:
            x, extra = layer(x)
            weights = weights + extra
        return x + weights[..., None]  # type: ignore[index]

    reason = "a block returns more than its hidden states, and something reads it"
    check_off(Plain(Blocks(More, run=run)), frozen(), reason=reason)


def test_wrong_entries_are_noticed() -> None:
    class Wrong(MemoryStore):
        def get(self, namespace: bytes, keys: Any) -> list[Tensor | None]:
            return [None if row is None else row + 0.1 for row in super().get(namespace, keys)]

    cache = make_cache(Wrong())
    with pytest.warns(UserWarning, match="what was stored differs from what its frozen layers compute"):
        plain, cached, _ = both(Plain(bert()), frozen(), cache=cache)
    assert_same(plain, cached)


@pytest.mark.slow
def test_compiled_model() -> None:
    module = Plain(bert())
    module.model = torch.compile(module.model, backend="eager")  # type: ignore[assignment]
    trainer = make_trainer(frozen(), make_cache(), epochs=1)
    with pytest.warns(UserWarning, match="it is compiled"):
        trainer.fit(module, loader())


def test_shared_layer_that_runs_several_times() -> None:
    torch.manual_seed(0)
    module = Plain(tf.AlbertForSequenceClassification(tf.AlbertConfig(**SIZES, embedding_size=16)))
    freeze(module.model.albert)
    with pytest.warns(UserWarning, match="runs 4 times"):
        make_trainer(make_cache(), epochs=1).fit(module, loader())


def test_slow_store_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.prefix.break_even.SLOWER", 1.0)

    class Slow(MemoryStore):
        def get(self, namespace: bytes, keys: Any) -> list[Tensor | None]:
            time.sleep(0.05)
            return super().get(namespace, keys)

    cache = make_cache(Slow())
    plain, cached, _ = both(Plain(bert()), frozen(), cache=cache)
    assert_same(plain, cached)
    assert cache.hit_rate == 0
    assert "reading the hidden states of a sample takes" in cache.reasons[""]


def test_nothing_frozen_does_nothing() -> None:
    plain, cached, cache = both(Plain(bert()))
    assert_same(plain, cached)
    assert cache.hit_rate == 0
    assert not cache.reasons
