"""Calls that continue from keys and values of a pass that has skipped blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Plain
from lightning.pytorch import Trainer
from offloaded_fits import away, cache_of, data, fit
from torch import Tensor
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

pytestmark = pytest.mark.usefixtures("tiny_weights_leave")


class Writer(Plain):
    """A causal language model."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
        config = tf.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        super().__init__(tf.GPT2LMHeadModel(config))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step({**batch, "labels": batch["input_ids"]}, batch_idx)


def skip_then(module: Any, batch: dict[str, Tensor], between: Any) -> tuple[Tensor, Tensor]:
    """Return what a call returns that continues from a pass that skips, and what it should return."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    following = torch.full((len(ids), 1), 7)
    everything = {"input_ids": torch.cat([ids, following], 1), "attention_mask": torch.ones(len(ids), ids.shape[1] + 1)}
    with torch.no_grad():
        past = module.model(input_ids=ids, attention_mask=mask).past_key_values
        between()
        found = module.model(following, past_key_values=past).logits[:, -1]
        return found, module.model(**everything).logits[:, -1]


def test_weights_that_are_away_come_back_before_blocks_compute_keys_and_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    logits: list[Tensor] = []

    def act(trainer: Trainer, module: Any) -> None:
        cache, run = cache_of(trainer), GPT2MLP.forward

        def forward(mlp: Any, hidden: Tensor) -> Tensor:
            seen.append(away(cache))
            return run(mlp, hidden)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            between = lambda: (seen.append(away(cache)), patch.setattr(GPT2MLP, "forward", forward))  # noqa: E731
            logits.extend(skip_then(module, next(iter(data())), between))

    _, watch = fit(act, Writer())
    assert watch.at_act > 0 and not watch.cache.reasons  # type: ignore[union-attr]
    assert seen[0] > 0, "the pass before skips, with the weights away"
    assert seen[1:] and not any(seen[1:])
    torch.testing.assert_close(logits[0], logits[1])


def test_keys_and_values_are_completed_after_the_tower_was_switched_off() -> None:
    logits: list[Tensor] = []

    def act(trainer: Trainer, module: Any) -> None:
        tower = cache_of(trainer)._towers[0]
        logits.extend(skip_then(module, next(iter(data())), lambda: tower.switch_off("too slow", is_fault=False)))

    _, watch = fit(act, Writer())
    assert watch.at_act > 0 and watch.cache.reasons == {"": "too slow"}  # type: ignore[union-attr]
    torch.testing.assert_close(logits[0], logits[1])


def test_an_error_while_they_are_computed_ends_the_call_and_the_next_call_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits: list[Tensor] = []

    def act(trainer: Trainer, module: Any) -> None:
        batch, following, errors = next(iter(data())), torch.full((4, 1), 7), [MemoryError("no room")]
        run = GPT2MLP.forward

        def forward(mlp: Any, hidden: Tensor) -> Tensor:
            if errors:
                raise errors.pop()
            return run(mlp, hidden)  # type: ignore[arg-type]

        with torch.no_grad(), monkeypatch.context() as patch:
            past = module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).past_key_values
            patch.setattr(GPT2MLP, "forward", forward)
            with pytest.raises(MemoryError, match="no room"):
                module.model(following, past_key_values=past)
            logits.append(module.model(following, past_key_values=past).logits[:, -1])
            logits.append(module.model(torch.cat([batch["input_ids"], following], 1)).logits[:, -1])

    _, watch = fit(act, Writer())
    assert watch.at_act > 0 and not watch.cache.reasons  # type: ignore[union-attr]
    torch.testing.assert_close(logits[0], logits[1])
