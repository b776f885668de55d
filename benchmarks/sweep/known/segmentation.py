"""Settings, inputs and reasons of single classes that find or follow what a text or a point names in images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sweep.known.multimodal import image, only
from transformers import EdgeTamVideoInferenceSession, Sam3TrackerVideoInferenceSession


def _named(maker: Any) -> dict[str, Any]:
    """An image, a task in words, and the names of the classes to be found."""

    def forget(module: Any, _: Any) -> None:
        # Words that it has seen are not encoded again: the language tower would run once, and never backward.
        for cache in (module.language_cache_class, module.language_cache_prompt):
            cache.__init__(cache.capacity)

    maker.model.register_forward_pre_hook(forget)
    ids = maker.ids(6)
    return {
        "pixel_values": image(maker, 224),
        "classes_input_ids": ids,
        "classes_attention_mask": torch.ones_like(ids),
        "tasks_input_ids": ids,
        "tasks_attention_mask": torch.ones_like(ids),
        "classes_structure": torch.tensor([1, 1]),
    }


def _tasked(maker: Any) -> dict[str, Any]:
    """An image, a task, and the texts that a model in training compares its queries with."""
    config = maker.config
    return {
        "pixel_values": image(maker, 64),
        "task_inputs": torch.rand(2, config.task_seq_len),
        "text_inputs": torch.randint(5, 100, (2, 3, config.text_encoder_context_length)),
    }


def _prompted(maker: Any) -> dict[str, Any]:
    """An image, a text and a box."""
    box = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]] * 2)
    size = maker.config.vision_config.image_size
    return {"pixel_values": image(maker, size), "input_ids": maker.ids(6), "input_boxes": box}


def _pointed(size: int) -> Callable[[Any], dict[str, Any]]:
    return lambda maker: {"pixel_values": image(maker, size), "input_points": torch.rand(2, 1, 1, 2)}


def _tracked(session_class: Any) -> Callable[[Any], dict[str, Any]]:
    """A session whose first frame was seen with a point, so that the second one is tracked with what is remembered."""

    def make(maker: Any) -> dict[str, Any]:
        size = maker.config.image_size
        session = session_class(torch.rand(2, 3, size, size), size, size, dtype=torch.float32)
        point = {"point_coords": torch.full((1, 1, 1, 2), 9.0), "point_labels": torch.ones(1, 1, 1, dtype=torch.int)}
        session.add_point_inputs(session.obj_id_to_idx(1), 0, point)
        session.obj_with_new_inputs = [1]
        maker.model(session, frame_idx=0)
        return {"inference_session": session, "frame_idx": 1}

    return make


# The default configuration misspells the name of its backbone and gets another one, which does not fit.
_REPVIT = {
    "backbone_channel_list": [384, 192, 96, 48],
    "backbone_config": {
        "architecture": "repvit_m1",
        "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    },
}
_SIZES = [[32, 32], [16, 16], [8, 8]]
_SAM2_VISION = {
    "backbone_config": {"image_size": [128, 128], "blocks_per_stage": [1, 2, 3, 2], "global_attention_blocks": [4]},
    "backbone_feature_sizes": _SIZES,
}
_SAM3_VISION = {
    "backbone_config": {
        "image_size": 112,
        "pretrain_image_size": 56,
        "num_hidden_layers": 4,
        "global_attn_indexes": [1, 3],
        "window_size": 4,
    },
    "backbone_feature_sizes": _SIZES,
}
# The code reads memories of this width, whatever the configuration says.
_MEMORY = {"memory_encoder_output_channels": 64}
_SAM3_TRACKER = {
    "image_size": 112,
    "vision_config": _SAM3_VISION,
    "prompt_encoder_config": {"image_size": 112},
    "memory_attention_rope_feat_sizes": [8, 8],
    **_MEMORY,
}
_EDGETAM_VIDEO = {
    "image_size": 128,
    "vision_config": _SAM2_VISION,
    "prompt_encoder_config": {"image_size": 128},
    "memory_attention_rope_feat_sizes": [8, 8],
    "memory_attention_rope_k_sizes": [4, 4],
    "perceiver_resampler_num_latents": 16,
    "perceiver_resampler_num_latents_2d": 16,
    "perceiver_resampler_hidden_size": 64,
    "perceiver_resampler_attention_head_dim": 64,
    **_MEMORY,
}

CONFIGS: dict[str, Mapping[str, Any]] = {
    "edgetam": {
        "vision_config": {**_REPVIT, "backbone_feature_sizes": _SIZES},
        "prompt_encoder_config": {"image_size": 128},
    },
    "edgetam_vision_model": _REPVIT,
    "edgetam_video": _EDGETAM_VIDEO,
    "omdet-turbo": {"encoder_in_channels": [192, 384, 768], "encoder_hidden_dim": 32},
    "oneformer": {
        "is_training": True,
        **dict.fromkeys(("conv_dim", "hidden_dim", "mask_dim", "text_encoder_width"), 64),
        "text_encoder_n_ctx": 2,
    },
    "sam3": {"vision_config": _SAM3_VISION},
    "sam3_lite_text": {"vision_config": _SAM3_VISION},
    "sam3_tracker": _SAM3_TRACKER,
    "sam3_tracker_video": _SAM3_TRACKER,
    "sam3_video": {"tracker_config": _SAM3_TRACKER},
}
INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    "EdgeTamModel": only(_pointed(128)),
    "edgetam_vision_model": only(lambda m: {"pixel_values": image(m, 128)}),
    "EdgeTamVideoModel": only(_tracked(EdgeTamVideoInferenceSession)),
    "omdet-turbo": only(_named),
    "oneformer": only(_tasked),
    "sam3": only(_prompted),
    "sam3_lite_text": only(_prompted),
    "Sam3TrackerModel": only(_pointed(112)),
    "Sam3TrackerVideoModel": only(_tracked(Sam3TrackerVideoInferenceSession)),
}
# Pointers to objects are split to the width of a memory, so the model has to be wider than that.
FACTORS: dict[str, tuple[int, ...]] = {"edgetam_video": (2,), "sam3_tracker_video": (2,)}
REASONS: dict[str, str] = {}
