"""Packing: rows are full, and a packed row computes what its examples compute alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lm_tokenizers import byte_level
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GraniteMoeConfig, LlamaConfig, Qwen2Config

from lightning_freeze import FrozenPrefixCache, LayerFreezing, TextDataModule, TransformerModule
from lightning_freeze.data.language_models.packing import pack_lengths

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
SIZES = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "qwen2-sliding": Qwen2Config(**SIZES, **HEADS, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "gpt2": GPT2Config(vocab_size=400, n_embd=16, n_layer=4, n_head=2, n_positions=64, eos_token_id=0, bos_token_id=0),
    # It names no use_cache, and takes it among other named arguments.
    "granitemoe": GraniteMoeConfig(**SIZES, **HEADS, num_local_experts=2, num_experts_per_tok=1),
}


def model_of(name: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    path = tmp_path / "dialogues.jsonl"
    words = ["my", "name", "is", "Pip", "and", "I", "live", "in", "a", "house", "by", "the", "sea"]
    rows = [{"prompt": f"Where {i}?", "response": " " + " ".join(words[: 1 + i % 11])} for i in range(24)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def data_of(path: Path, **settings: Any) -> TextDataModule:
    return TextDataModule(byte_level(), "causal-lm", train=str(path), max_length=48, **settings)


def test_rows_are_filled_by_best_fit_decreasing() -> None:
    assert pack_lengths([3, 9, 6, 4, 8], 10) == [[1], [4], [2, 3], [0]]
    assert pack_lengths([5, 5, 5], 10) == [[0, 1], [2]]
    rows = pack_lengths([i % 17 + 1 for i in range(400)], 32)
    assert sorted(i for row in rows for i in row) == list(range(400))
    total = sum(i % 17 + 1 for i in range(400))
    assert len(rows) <= -(-total // 32) + 1
    assert max(sum(i % 17 + 1 for i in row) for row in rows) <= 32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_and_unpacked_examples_have_the_same_loss_and_gradients(
    name: str, attention: str, dialogues: Path
) -> None:
    packed, plain = data_of(dialogues, packing=True, batch_size=64), data_of(dialogues, batch_size=64)
    results = []
    for data in (packed, plain):
        data.setup("fit")
        (batch,) = data.train_dataloader()
        module = TransformerModule(model_of(name, attention), task="causal-lm")
        loss = module._evaluate(batch)[0]
        loss.backward()
        results.append((loss.detach(), [p.grad for p in module.parameters()], (batch["labels"][:, 1:] != -100).sum()))
    assert len(packed.packed) < len(packed.encoded["train"]) / 2
    assert results[0][2] == results[1][2], "the same tokens count"
    torch.testing.assert_close(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_model_that_cannot_tell_packed_examples_apart_is_refused(dialogues: Path) -> None:
    config = BloomConfig(vocab_size=400, hidden_size=16, n_layer=2, n_head=2)
    module = TransformerModule(AutoModelForCausalLM.from_config(config), task="causal-lm")
    with pytest.raises(MisconfigurationException, match="BloomForCausalLM takes no position_ids"):
        Trainer(max_steps=1, **QUIET).fit(module, data_of(dialogues, packing=True))


def test_a_model_that_takes_positions_and_ignores_the_boundaries_is_refused(dialogues: Path) -> None:
    model = model_of("llama")
    forward = model.forward

    def leaky(input_ids: Any, position_ids: Any = None, **inputs: Any) -> Any:
        return forward(input_ids, attention_mask=torch.ones_like(input_ids), position_ids=position_ids, **inputs)

    model.forward = leaky
    with pytest.raises(MisconfigurationException, match="reads across the boundaries of packed examples"):
        Trainer(max_steps=1, **QUIET).fit(TransformerModule(model, task="causal-lm"), data_of(dialogues, packing=True))


def weights_after_fit(dialogues: Path, packing: bool, *extra: Any) -> tuple[dict[str, torch.Tensor], Any]:
    torch.manual_seed(0)
    module = TransformerModule(model_of("llama"), task="causal-lm")
    trainer = Trainer(max_epochs=6, callbacks=[LayerFreezing("50%", verbose=False), *extra], **QUIET)
    trainer.fit(module, data_of(dialogues, packing=packing, batch_size=24, seed=1))
    return {name: value.clone() for name, value in module.state_dict().items()}, trainer


@pytest.mark.parametrize("packing", [False, True])
def test_a_cached_run_over_prompts_and_responses_is_bit_equal(packing: bool, dialogues: Path) -> None:
    plain, _ = weights_after_fit(dialogues, packing)
    cache = FrozenPrefixCache(verbose=False)
    cached, _ = weights_after_fit(dialogues, packing, cache)
    assert cache.reasons == {}
    assert cache.hit_rate > 0.5
    for name, value in plain.items():
        assert torch.equal(value, cached[name]), name
