"""Models that cannot pack are refused before they train, whatever their precision, attention and rows."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lm_tokenizers import byte_level
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GraniteMoeConfig,
    Lfm2Config,
    LlamaConfig,
    MixtralConfig,
    modeling_flash_attention_utils,
)

from lightning_freeze import TextDataModule, TransformerModule
from lightning_freeze.data.language_models.packing_check import check_packing, packing_effect

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
SIZES = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "gpt2": GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=64, eos_token_id=0, bos_token_id=0),
    "granitemoe": GraniteMoeConfig(**SIZES, **HEADS, **EXPERTS),
    "mixtral": MixtralConfig(**SIZES, **HEADS, **EXPERTS),
    "lfm2": Lfm2Config(**SIZES, **HEADS, layer_types=["conv", "full_attention"], initializer_range=0.1),
}
PRECISIONS = [torch.float32, torch.bfloat16]


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).to(dtype).eval()


def leaky(model: Any) -> Any:
    """A model that is given a mask, so that transformers does not read the boundaries from the positions."""
    forward = model.forward

    def masked(input_ids: Any, position_ids: Any = None, **inputs: Any) -> Any:
        return forward(input_ids, attention_mask=torch.ones_like(input_ids), position_ids=position_ids, **inputs)

    model.forward = masked
    return model


def examples() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(3, 400, (length,), dtype=torch.int32)} for length in (12, 9)]


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    path = tmp_path / "dialogues.jsonl"
    rows = [{"prompt": f"Where {i}?", "response": " I live in a house by the sea."[: 9 + i]} for i in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def fit(model: Any, data: TextDataModule) -> None:
    Trainer(max_steps=1, **QUIET).fit(TransformerModule(model, task="causal-lm"), data)


def data_of(path: Path, **settings: Any) -> TextDataModule:
    return TextDataModule(byte_level(), "causal-lm", train=str(path), max_length=48, packing=True, **settings)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "granitemoe", "mixtral"])
def test_a_model_that_can_pack_passes(name: str, dtype: torch.dtype, rows: int) -> None:
    assert packing_effect(model_of(name, dtype), examples(), rows) is None


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["lfm2", "gpt2", "llama", "mixtral"])
def test_a_model_that_reads_across_boundaries_is_refused_in_any_precision(name: str, dtype: torch.dtype) -> None:
    model = model_of(name, dtype)
    with pytest.raises(MisconfigurationException, match="reads across the boundaries of packed examples"):
        check_packing(model if name == "lfm2" else leaky(model), examples(), 2)  # the convolutions of LFM2 do by nature


def test_positions_that_go_on_from_one_example_to_the_next_are_refused() -> None:
    model = model_of("llama")
    rotate = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: rotate(x, torch.arange(x.shape[1]).unsqueeze(0) ** 2)
    with pytest.raises(MisconfigurationException, match="reads across the boundaries of packed examples"):
        check_packing(model, examples(), 1)


def test_a_model_to_which_training_cannot_say_that_nothing_is_cached_is_refused(dialogues: Path) -> None:
    model = model_of("llama")
    forward = model.forward

    def caching(input_ids: Any, position_ids: Any = None, labels: Any = None) -> Any:
        return forward(input_ids, position_ids=position_ids, labels=labels)

    model.forward = caching
    with pytest.raises(MisconfigurationException, match="reads across the boundaries of packed examples"):
        fit(model, data_of(dialogues))


def test_each_model_is_checked_also_after_the_data_was_set_up(dialogues: Path) -> None:
    data = data_of(dialogues)
    data.setup("fit")
    fit(model_of("llama"), data)
    with pytest.raises(MisconfigurationException, match="reads across the boundaries of packed examples"):
        fit(leaky(model_of("llama")), data)


def test_a_teacher_is_checked_as_its_student_is(dialogues: Path) -> None:
    def learn(teacher: Any) -> None:
        student = TransformerModule(model_of("llama"), task="causal-lm", teacher=teacher)
        Trainer(max_steps=1, **QUIET).fit(student, data_of(dialogues))

    learn(model_of("gpt2"))
    with pytest.raises(
        MisconfigurationException, match=r"The teacher does not fit the data: .* reads across the bound"
    ):
        learn(leaky(model_of("gpt2")))


def _flash(q: Any, k: Any, v: Any, causal: bool = True, **_: Any) -> torch.Tensor:
    heads = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)


def _flash_of_lengths(q: Any, k: Any, v: Any, cu_seqlens_q: torch.Tensor, **_: Any) -> torch.Tensor:
    cuts = cu_seqlens_q.tolist()
    return torch.cat([_flash(q[None, a:b], k[None, a:b], v[None, a:b])[0] for a, b in pairwise(cuts)])


def _no_kernel(*_: Any, **__: Any) -> Any:
    raise RuntimeError("FlashAttention only supports CUDA devices.")


@pytest.mark.parametrize("can_run", [True, False])
def test_flash_attention_packs_single_rows_only(
    can_run: bool, dialogues: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernels of flash attention, in which an example sees what precedes it, as computed on a CPU.
    kernels = (_flash, _flash_of_lengths) if can_run else (_no_kernel, _no_kernel)
    padding = modeling_flash_attention_utils._pad_input, modeling_flash_attention_utils._unpad_input
    loaded = (*kernels, None, *padding), (lambda **_: {}, lambda **_: {})
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *_, **__: loaded)
    model = model_of("llama")
    model.config._attn_implementation = "flash_attention_2"
    check_packing(model, examples(), 1)
    with pytest.raises(
        MisconfigurationException, match=r"batch_size is 4.*single row.*Expected data.batch_size=1 with"
    ):
        fit(model, data_of(dialogues, batch_size=4))
