"""Settings, inputs, counts and reasons of single multimodal classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_HOLDER = 150


def only(make: Callable[[Any], dict[str, Any]]) -> dict[str, Callable[[Any], Any]]:
    """These inputs and no others."""
    return {"all": make}


def _held(maker: Any, count: int, token: int = _HOLDER) -> torch.Tensor:
    """Text with so many place-holders in it."""
    ids = maker.ids(8)
    return torch.cat([ids[:, :3], torch.full((maker.batch, count), token), ids[:, 3:]], 1)


def image(maker: Any, size: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, size or maker.image_size(), size or maker.image_size())


def _queried(maker: Any) -> dict[str, Any]:
    """A query-former answers with a fixed number of vectors for an image, and may read an instruction itself."""
    return {
        "input_ids": _held(maker, maker.config.num_query_tokens),
        "pixel_values": image(maker),
        **({"qformer_input_ids": maker.ids(6)} if "qformer_input_ids" in maker.names else {}),
    }


def _queried_video(maker: Any) -> dict[str, Any]:
    frames = torch.stack([image(maker)] * 3, 1)
    return {**_queried(maker), "input_ids": _held(maker, 3 * maker.config.num_query_tokens), "pixel_values": frames}


def _masked_image(maker: Any) -> dict[str, Any]:
    """The places of the image's vectors are told by a mask."""
    ids = _held(maker, maker.config.latent_query_num)
    return {"pixel_values": image(maker), "input_ids": ids, "image_embeds_position_mask": (ids == _HOLDER).long()}


def _masked_both(maker: Any) -> dict[str, Any]:
    """Text and patches with some of them hidden, which the model is to fill in."""
    size = maker.image_size()
    return {
        "input_ids": maker.ids(8),
        "input_ids_masked": maker.ids(8),
        "pixel_values": image(maker, size),
        "bool_masked_pos": torch.arange((size // maker.patch_size()) ** 2).expand(2, -1) % 2 == 0,
        "codebook_pixel_values": image(maker, size // maker.patch_size() * 8),
        "mlm_labels": torch.where(torch.arange(8) % 2 == 0, maker.ids(8), -100),
        "itm_labels": torch.tensor([0, 1]),
        "return_loss": True,
    }


def _cross_attended(maker: Any) -> dict[str, Any]:
    """Two images, and which of them each token looks at."""
    return {
        "input_ids": maker.ids(8),
        "pixel_values": torch.stack([image(maker)] * 2, 1),
        "image_attention_mask": torch.ones(2, 8, 2, dtype=torch.long),
    }


def _robot(maker: Any) -> dict[str, Any]:
    """What two cameras see, an instruction, and the state or the actions of a robot."""
    config = maker.config
    patches = (config.vlm_config.vision_config.image_size // config.vlm_config.vision_config.patch_size) ** 2
    given = {
        "input_ids": _held(maker, 2 * patches, config.vlm_config.image_token_id),
        "pixel_values": torch.stack([image(maker)] * 2, 1),
        "pixel_attention_mask": torch.ones(2, 2, dtype=torch.bool),
    }
    if "state" in maker.names:
        return {**given, "state": torch.rand(2, config.max_state_dim)}
    return {**given, "action_embeds": torch.rand(2, 5, config.dit_config.hidden_size)}


def _hearing(maker: Any) -> dict[str, Any]:
    """Two images and two sounds, each with its place-holders in the text."""
    config = maker.config
    images = maker.pixels()
    ids = _held(maker, 4, config.image_token_id)
    return {
        "input_ids": torch.cat([ids, torch.full((2, 8), config.audio_token_id)], 1),
        "pixel_values": images,
        "image_grid_thw": maker.grid(),
        "input_features": torch.rand(2, config.audio_config.feature_size, 64),
        "chunk_sample_lengths": torch.full((2,), 64 * config.audio_config.hop_length),
    }


def _folded(maker: Any) -> dict[str, Any]:
    """One token for each block of pixels, and one for each frame of a sound that is told by bins."""
    vision, audio = maker.config.vision_config, maker.config.audio_config
    ids = _held(maker, 2, maker.config.image_token_id)
    return {
        "input_ids": torch.cat([ids, torch.full((2, 3), maker.config.audio_token_id)], 1),
        "pixel_values": torch.rand(4, vision.temporal_patch_size, vision.patch_size, vision.patch_size, 3),
        "audio_input_ids": torch.randint(0, audio.mel_vocab_size, (2, 3, audio.n_mel_bins)),
    }


def _watched(maker: Any) -> dict[str, Any]:
    """Text, sound and video, as far as the class takes them."""
    given = {
        "input_ids": maker.ids(8),
        "input_values": torch.randn(2, 1, 7680),
        "pixel_values_videos": torch.rand(2, 4, 3, 64, 64),
    }
    return {name: value for name, value in given.items() if name in maker.names}


_QUERIED = {"image_token_index": _HOLDER}
_TINY_VIT = {
    "vision_config": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"depth": 3, "img_size": 64},
        "num_classes": 128,
    }
}
# All four stages, none of them as wide as published.
_FASTVIT = {
    "hidden_size": 256,
    "model_args": {"inference_mode": True, "layers": [2, 2, 2, 2, 2], "embed_dims": [8, 16, 32, 64, 128]},
}
_DOTS_SLIDING = {
    "head_dim": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
_DOTS_TEXT = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "index_n_heads": 4,
    "per_layer_config": {2: _DOTS_SLIDING, 3: _DOTS_SLIDING},
}

CONFIGS: dict[str, Mapping[str, Any]] = {
    "blip-2": _QUERIED,
    "instructblip": _QUERIED,
    "instructblipvideo": {"video_token_index": _HOLDER},
    # Both towers have to be as deep as each other, and deeper than the one that reads them.
    "bridgetower": {
        "num_hidden_layers": 3,
        "vision_config": {"num_hidden_layers": 5},
        "text_config": {"num_hidden_layers": 5},
    },
    "dots3_note": {"text_config": _DOTS_TEXT, "audio_config": {"hidden_size": 160, "adapter_input_size": 160}},
    "dots3_note_text": _DOTS_TEXT,
    "fast_vlm": {"vision_config": _FASTVIT},
    "inkling_mm_model": {"vision_config": {"n_layers": 4, "patch_size": 8}},
    "pe_audio_video": {"audio_video_config": {"video_config": _TINY_VIT}},
    "pe_audio_video_encoder": {"video_config": _TINY_VIT},
    "pe_video": {"video_config": _TINY_VIT},
    "pp_formulanet": {
        "vision_config": {"image_size": 128, "num_hidden_layers": 4, "global_attn_indexes": [1, 3], "window_size": 4}
    },
    "t5gemma2": {"encoder": {"mm_tokens_per_image": 4}},
    "tvp": {"max_img_size": 128, "visual_prompt_size": 16},
}
INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    "blip-2": only(_queried),
    "instructblip": only(_queried),
    "instructblipvideo": only(_queried_video),
    "blip_2_qformer": only(
        lambda m: {
            "query_embeds": torch.rand(2, 4, m.config.hidden_size),
            "encoder_hidden_states": torch.rand(2, 8, m.config.encoder_hidden_size),
        }
    ),
    # A cache wants one number of layers, and its configuration has four.
    "blt": {"use_cache": lambda m: False},
    "Dots3NoteModel": only(_hearing),
    "FlavaForPreTraining": only(_masked_both),
    "kosmos-2": only(_masked_image),
    "idefics": only(_cross_attended),
    "inkling_mm_model": only(_folded),
    "pi0": only(_robot),
    "mgp-str": only(lambda m: {"pixel_values": torch.rand(2, 3, *m.config.image_size)}),
    "pe_audio_video": only(_watched),
    "pe_audio_video_encoder": only(_watched),
    "pe_video": only(_watched),
    "pp_formulanet": only(lambda m: {"pixel_values": image(m, 128), "decoder_input_ids": m.ids(6)}),
    "t5gemma2": only(
        lambda m: {
            "input_ids": _held(m, 4, m.config.encoder.image_token_index),
            "pixel_values": image(m),
            "decoder_input_ids": m.ids(6),
        }
    ),
    # Its embeddings of rows and columns are reshaped to the batch: one video at a time.
    "tvp": only(lambda m: {"input_ids": m.ids(8)[:1], "pixel_values": torch.rand(1, 4, 3, 128, 128)}),
    "jev": only(
        lambda m: {
            "input_ids": m.ids(12)[:1],
            "marks": torch.tensor([[6, 10]]),
            "num_options": torch.tensor([[2, 3]]),
            "question_type_ids": torch.tensor([[0, 1]]),
        }
    ),
    # A merged square of patches for every token.
    "inkling2_vision": only(
        lambda m: {
            "pixel_values": torch.rand(8, *[m.config.patch_size * m.config.spatial_merge_size] * 2, 3),
            "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 2]]),
        }
    ),
}
FACTORS: dict[str, tuple[int, ...]] = {"dots3_note": (8,)}
REASONS: dict[str, str] = {
    "layoutlmv2": "needs detectron2, which its makers publish on no package index: it is compiled from its repository",
}
