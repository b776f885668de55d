"""Settings, inputs, counts and reasons of single text classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def _question(maker: Any) -> torch.Tensor:
    """Text with a question token in it: a span is chosen for each of them."""
    ids = maker.ids()
    ids[:, 3] = maker.config.question_token_id
    return ids


# A cache gets as many entries as the encoder has blocks, and the decoder has more.
_UNCACHED = {"use_cache": lambda m: False}

CONFIGS: dict[str, Mapping[str, Any]] = {
    # Fields that the models read and the configurations do not declare, or leave empty.
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 8},
    "t5gemma2_encoder": {"mm_tokens_per_image": 4, "text_config": {"dropout_rate": 0.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy", "moe_intermediate_size": 64},
    "longcat_flash": {"zero_expert_num": 2},
    # The number of blocks in each of the two stacks, from which the configuration makes that of all their runs.
    "hrm_text": {"num_hidden_layers": 4, "num_layers_per_stack": None},
    # Two chunks of the text instead of one that is filled up.
    "mamba2": {"chunk_size": 8},
    "falcon_h1": {"mamba_chunk_size": 8},
    # Short enough for several chunks, and as many places as tokens, without which there is no training mode.
    "reformer": {
        "axial_pos_embds_dim": [8, 24],
        "axial_pos_shape": [4, 4],
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
    },
    # Weights are shared from the second of these on.
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid"] * 3},
}
INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    "BlenderbotForCausalLM": _UNCACHED,
    "BlenderbotSmallForCausalLM": _UNCACHED,
    "MarianForCausalLM": _UNCACHED,
    "PegasusForCausalLM": _UNCACHED,
    "prophetnet": _UNCACHED,
    "evolla": {
        "protein_input_ids": lambda m: torch.randint(5, 30, (m.batch, 10)),
        "protein_attention_mask": lambda m: torch.ones(m.batch, 10, dtype=torch.long),
    },
    "SplinterForPreTraining": {"input_ids": _question},
    # The end of the input is looked up in the output of the decoder.
    "T5ForSequenceClassification": {"decoder_input_ids": lambda m: m.ids()},
}
FACTORS: dict[str, tuple[int, ...]] = {"reformer": (8,)}
REASONS: dict[str, str] = {}
