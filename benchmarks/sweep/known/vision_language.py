"""Settings, inputs, counts and reasons of single models of images and text, Qwen-like ones with grids of patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def _only(make: Callable[[Any], dict[str, Any]]) -> dict[str, Callable[[Any], Any]]:
    """These inputs and no others."""
    return {"all": make}


def _pixels(*shape: Any) -> dict[str, Callable[[Any], Any]]:
    """Pixels of this shape, in which a function of the maker may stand for a size."""
    return {"pixel_values": lambda m: torch.rand(*(size(m) if callable(size) else size for size in shape))}


def _positions(maker: Any) -> torch.Tensor:
    """Columns and rows of a square of patches."""
    return torch.tensor([[[x, y] for y in range(6) for x in range(6)]] * maker.batch)


def _pooled(maker: Any) -> dict[str, Any]:
    """Patches and which of them become one token: squares of four here, all of them in one view."""
    count, size = 64, maker.patch_size()
    return {
        "input_ids": _placed(maker, 16),
        "pixel_values": torch.rand(2, count, 3 * size**2),
        "image_token_pooling": torch.arange(2 * count).view(-1, 4),
        "image_grids": torch.tensor([[4, 4, 0, 0]] * 2),
        "mm_token_type_ids": (_placed(maker, 16) == maker.config.image_token_id).int(),
    }


def _drawn(maker: Any) -> dict[str, Any]:
    """An image that is given and one that is to be drawn, for each of two texts."""
    config = maker.config
    start, end = (torch.full((2, 1), t) for t in (config.image_start_token_id, config.image_end_token_id))
    given = torch.full((2, 16), config.image_token_id)
    return {
        "input_ids": torch.cat([maker.ids(4), start, given, end, maker.ids(4), start], 1),
        "pixel_values": maker.pixels(),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 4),
        "images_per_sample": torch.tensor([2, 2]),
    }


def _seen_and_heard(maker: Any) -> dict[str, Any]:
    """A sound and an image, in whole and as the one tile that it is cut into, each with a row end for every row."""
    vision, audio = maker.config.vision_config, maker.config.audio_config
    places = [torch.full((2, n), t) for n, t in ((41, vision.image_token_id), (8, audio.audio_token_id))]
    return {
        "input_ids": torch.cat([maker.ids(4), *places, maker.ids(8)], 1),
        "image_pixel_values": torch.rand(2, 2, 3, 112, 112),
        "image_sizes": torch.tensor([[112, 112]] * 2),
        "image_attention_mask": torch.ones(2, 2, 8, 8, dtype=torch.bool),
        "audio_input_features": torch.rand(2, 64, audio.input_size),
        "audio_embed_sizes": torch.tensor([8, 8]),
    }


def _placed(maker: Any, count: int) -> torch.Tensor:
    """Text with so many place-holders for an image."""
    return torch.cat([maker.ids(4), torch.full((2, count), maker.config.image_token_id), maker.ids(8)], 1)


def _letters(number: int) -> str:
    """A number as Chameleon spells it."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


def _batch(maker: Any) -> int:
    return int(maker.batch)


def _side(maker: Any) -> int:
    return int(maker.image_size())


def _patch(maker: Any) -> int:
    return int(maker.patch_size())


def _all_patches(maker: Any) -> int:
    return int(16 * maker.batch)


_SQUARE = _pixels(_all_patches, 3, _patch, _patch)
_TWO_FRAMES = _pixels(_all_patches, lambda m: 2 * 3 * m.patch_size() ** 2)
_ONE_OF_MANY = _pixels(_batch, 1, 3, _side, _side)
_WHOLE_AND_TILE = _pixels(_batch, 2, 3, _side, _side)
# All patches of all images in one row.
_PACKED = {
    **_pixels(1, 3, _patch, lambda m: 64 * m.batch * m.patch_size()),
    "target_sizes": lambda m: torch.tensor([[8, 8]] * m.batch),
}
# Flat patches with a mask, and the shapes that they came from.
_PATCHES = {
    **_pixels(_batch, 16, lambda m: 3 * m.patch_size() ** 2),
    "pixel_attention_mask": lambda m: torch.ones(m.batch, 16, dtype=torch.long),
    "spatial_shapes": lambda m: torch.tensor([[4, 4]] * m.batch),
}
_HEARD = {
    "input_features": lambda m: torch.rand(m.batch, m.config.audio_config.num_mel_bins, 200),
    "feature_attention_mask": lambda m: torch.ones(m.batch, 200, dtype=torch.long),
}
_NO_FORWARD = "it has no forward pass: its generate runs thinker, talker and vocoder; the thinker has its own row"
_ALL_SHARED = (
    "transformers cannot build it: the assistant's configuration has all layers share keys and values, which "
    "kv_sharing_modes of its text configuration refuses"
)
_MARKED = {"image_token_id": 150, "video_token_id": 151}
_TURNS = ["sliding_attention", "full_attention"] * 2
_SHARED = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": _TURNS}
_SMALL_VIEW = {"vision_config": {"image_size": 256}}
_ONE_TILE = {"image_grid_pinpoints": [[112, 112]]}
_SAM = {"image_size": 256, "num_hidden_layers": 4, "global_attn_indexes": [1, 3]}
_MIXED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_COMPASS = {
    "num_hidden_layers": 4,
    "layer_types": _TURNS,
    "rope_parameters": {"sliding_attention": _MIXED, "full_attention": _MIXED},
}
_SPARSE = {
    "ple_layer_ids": [1],
    "ngram_vocab_size_base": 50,
    "split_ngram_parts": 4,
    "eos_token_id": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}

CONFIGS: dict[str, Mapping[str, Any]] = {
    **{kind: _MARKED for kind in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "nemotron_h_omni")},
    **{kind: _SMALL_VIEW for kind in ("got_ocr2", "idefics3", "pp_chart2table")},
    "aria": {"projector_patch_to_query_dict": {16: 12}, "vision_config": {"image_size": 128}},
    "aya_vision": {"vision_config": {"image_size": 112, "num_attention_heads": 16}},
    "chameleon": {"vocabulary_map": {"<image>": 3, **{f"IMGIMG{_letters(i)}Z": 20 + i for i in range(64)}}},
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "deepseek_ocr2": {
        "text_config": {
            "num_hidden_layers": 4,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
        "vision_config": {"sam_config": {**_SAM, "downsample_channels": [32, 256]}},
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": _SAM},
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
        "canvas_length": 8,
    },
    "emu3": {
        "vq_config": {"base_channels": 32, "hidden_size": 128},
        "vocabulary_map": {
            "<image>": 3,
            "<|extra_200|>": 4,
            **{f"<|visual token {i:06d}|>": 20 + i for i in range(64)},
        },
    },
    "gemma3": {"mm_tokens_per_image": 16},
    # The tokens of images and sounds stand at the end of the vocabulary.
    "gemma3n": {
        "text_config": {**_SHARED, "vocab_size": 160, "vocab_size_per_layer_input": 130},
        "audio_config": {"conf_num_hidden_layers": 3, "vocab_offset": 140, "vocab_size": 20},
        "audio_soft_tokens_per_image": 4,
        "vision_config": {
            **{"hidden_size": 2048, "vocab_offset": 130, "vocab_size": 10},
            "model_args": {"channel_multiplier": 0.25},
        },
    },
    "gemma3n_text": _SHARED,
    "glm4v_moe": {"text_config": {"num_attention_heads": 16}},
    "glm4v_moe_text": {"num_attention_heads": 16},
    "granite4_vision": {
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[1, 0], [2, 1]],
        "spatial_target_layers": [0, 1, 2, 3],
        "image_grid_pinpoints": [[128, 128]],
        "vision_config": {"image_size": 128, "patch_size": 16},
    },
    "janus": {"vision_config": {"projection_dim": 1024}},
    "llama4": {"vision_config": {"num_attention_heads": 12, "intermediate_size": 192, "vision_output_dim": 256}},
    "llava_next": _ONE_TILE,
    "llava_next_video": _ONE_TILE,
    "llava_onevision": {**_ONE_TILE, "vision_config": {"image_size": 112}},
    "mllama": {"vision_config": {"vision_output_dim": 320}, "text_config": {"cross_attention_layers": [1, 3]}},
    "molmo2": {
        "image_patch_id": 150,
        "adapter_config": {"vision_feature_layer": [2, 1], "text_hidden_size": 256},
        "vision_config": {"image_size": [112, 112], "num_position_embeddings": 64},
    },
    "ovis2": {"hidden_size": 256},
    "paddleocr_vl": {"text_config": {"rope_parameters": {**_MIXED, "mrope_section": [4, 2, 2]}}},
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_pe_lang_large_patch14_448",
            "model_args": {"depth": 3, "embed_dim": 64, "num_heads": 4, "img_size": 56, "ref_feat_shape": (4, 4)},
        }
    },
    "phi4_multimodal": {
        "vision_config": {"image_size": 112, "crop_size": 112},
        "audio_config": {"depthwise_separable_out_channel": 128},
    },
    "qwen3_omni_moe": {
        "talker_config": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 48}}
    },
    "qwen4_exp": {"text_config": _SPARSE},
    "qwen4_exp_text": _SPARSE,
    "siglip2": {"text_config": {"projection_size": 96}},
    "step3p7": {"text_config": {"sliding_window": 8}},
}

INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    **{kind: _ONE_OF_MANY for kind in ("colmodernvbert", "idefics2", "idefics3", "modernvbert")},
    **{kind: _SQUARE for kind in ("kimi_k25", "kimi_k25_vision", "paddleocr_vl")},
    **{kind: _WHOLE_AND_TILE for kind in ("llava_next", "llava_next_video", "llava_onevision")},
    **{kind: _TWO_FRAMES for kind in ("muse_glimmer", "muse_glimmer_vision", "muse_spark", "muse_spark_vision")},
    **{
        kind: _PACKED
        for kind in ("minicpm_ocr", "minicpm_ocr_vision", "minicpmv4_6", "minicpmv4_7", "minicpmv4_7_vision")
    },
    **{kind: _PATCHES for kind in ("lfm2_vl", "siglip2", "siglip2_vision_model")},
    **{kind: _HEARD for kind in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")},
    "colqwen2": {"pixel_values": lambda m: m.pixels().view(m.batch, 16, -1)},
    "deepseek_ocr2": _pixels(_batch, 3, 256, 256),
    "deepseek_vl_hybrid": {"high_res_pixel_values": lambda m: torch.rand(m.batch, 3, 256, 256)},
    "diffusion_gemma": _only(
        lambda m: {
            "input_ids": _placed(m, 4),
            "pixel_values": torch.rand(2, 36, 768),
            "image_position_ids": _positions(m),
            "decoder_input_ids": m.ids(8),
        }
    ),
    "emu3": {"image_sizes": lambda m: torch.tensor([[64, 64]] * m.batch)},
    "evolla": {
        "protein_input_ids": lambda m: m.ids(16),
        "protein_attention_mask": lambda m: torch.ones(m.batch, 16, dtype=torch.long),
    },
    "gemma3n": {
        **_pixels(_batch, 3, 256, 256),
        "input_features": lambda m: torch.rand(m.batch, 64, m.config.audio_config.input_feat_size),
        "input_features_mask": lambda m: torch.ones(m.batch, 64, dtype=torch.bool),
    },
    "gemma4_vision": {
        **_pixels(_batch, 36, lambda m: 3 * m.patch_size() ** 2),
        "pixel_position_ids": _positions,
    },
    "glm_image": _only(_drawn),
    "granite4_vision": _only(
        lambda m: {
            "input_ids": _placed(m, 36),
            "pixel_values": torch.rand(2, 2, 3, 128, 128),
            "image_sizes": torch.tensor([[128, 128]] * 2),
        }
    ),
    "granite_docling": {
        **_ONE_OF_MANY,
        "pixel_attention_mask": lambda m: torch.ones(m.batch, 1, dtype=torch.bool),
    },
    "inkling2": _pixels(_all_patches, lambda m: 2 * m.patch_size(), lambda m: 2 * m.patch_size(), 3),
    "mllama": {
        **_pixels(_batch, 1, 4, 3, _side, _side),
        "aspect_ratio_ids": lambda m: torch.ones(m.batch, 1, dtype=torch.long),
        "aspect_ratio_mask": lambda m: torch.ones(m.batch, 1, 4, dtype=torch.long),
    },
    "MllamaForCausalLM": _only(
        lambda m: {"input_ids": m.ids(12), "cross_attention_states": torch.rand(2, 10, m.config.hidden_size)}
    ),
    "molmo2": _only(_pooled),
    "muse_glimmer_assistant": _only(
        lambda m: {
            "noise_embeds": torch.rand(2, m.config.block_size, m.config.hidden_size),
            "context_hidden_states": torch.rand(2, 6, m.config.hidden_size * len(m.config.target_layer_ids)),
        }
    ),
    "nemotron_h_omni": {
        **_pixels(_all_patches, lambda m: 3 * m.patch_size() ** 2),
        "image_grid_hw": lambda m: torch.tensor([[4, 4]] * m.batch),
    },
    "perception_lm": _pixels(_batch, 1, 3, 56, 56),
    "phi4_multimodal": _only(_seen_and_heard),
    "video_llama_3_vision": {"merge_sizes": lambda m: torch.full((m.batch,), 2)},
}
FACTORS: dict[str, tuple[int, ...]] = {
    "janus": (4,),
    **{kind: (8,) for kind in ("paddleocr_vl", "phi4_multimodal", "siglip2")},
    **{kind: (16,) for kind in ("deepseek_ocr2", "llama4", "mllama", "molmo2", "ovis2")},
}
REASONS: dict[str, str] = {
    "Gemma4AssistantForCausalLM": _ALL_SHARED,
    "Gemma4UnifiedAssistantForCausalLM": _ALL_SHARED,
    "GlmImageVQVAE": "it has no forward pass: only the method encode, which GlmImageModel calls",
    "Qwen2_5OmniForConditionalGeneration": _NO_FORWARD,
    "Qwen3OmniMoeForConditionalGeneration": _NO_FORWARD,
}
