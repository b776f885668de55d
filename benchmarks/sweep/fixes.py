"""What single model types need that the generic rules do not give: settings, inputs, reasons. Data, not code paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_SERIES = {"prediction_length": 4, "context_length": 8, "num_time_features": 1}

#: Model type or class name to fields of its configuration; what stands here is not made smaller.
CONFIGS: dict[str, Mapping[str, Any]] = {
    # At least one block of each kind among the four.
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local"] * 2},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "glm4v": {"text_config": {"rope_parameters": _MROPE}},
    "glm4v_text": {"rope_parameters": _MROPE},
    "glm_image_text": {"rope_parameters": _MROPE},
    "autoformer": _SERIES,
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},
    "nemotron": {"head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_self_attends_per_block": 4, "num_blocks": 1},
    "sam": {"vision_config": {"image_size": 128, "num_hidden_layers": 4, "global_attn_indexes": [1, 3]}},
    "depth_anything": {"backbone_config": {"out_indices": [1, 2, 3, 4], "num_hidden_layers": 4}},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "lxmert": {"num_attention_heads": 4},
    "swinv2": {"image_size": 64, "window_size": 4},
    "depth_pro": {"patch_size": 96},
    "qwen2_vl": {"text_config": {"rope_parameters": _ROPE}},
    "qwen2_vl_text": {"rope_parameters": _ROPE},
    "qwen2_5_vl": {"text_config": {"rope_parameters": _ROPE}},
    "qwen2_5_vl_text": {"rope_parameters": _ROPE},
    "colqwen2": {"vlm_config": {"text_config": {"rope_parameters": _ROPE}}},
    "qwen2_5_omni_thinker": {"text_config": {"rope_parameters": _ROPE}},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
}

#: Model type or class name to single inputs.
INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    "VideoMAEForPreTraining": {
        "bool_masked_pos": lambda m: torch.arange(8 * 14 * 14).expand(m.batch, -1) % 2 == 0,
    },
    "t5": {},
}

#: Class name to its number of blocks, where the configuration also counts what the class does not have.
BLOCKS: dict[str, int] = {
    # Without the decoder of the whole model.
    "FunnelBaseModel": 7,
    "FunnelForSequenceClassification": 7,
    # Inverted residuals and the transformer layers of all MobileViT blocks.
    "MobileViTModel": 13,
    "MobileViTForImageClassification": 13,
    "MobileViTV2Model": 12,
    "MobileViTV2ForImageClassification": 12,
    # Attention and MLP are residual blocks of their own.
    "LevitModel": 18,
    "LevitForImageClassification": 18,
    # One decoder layer fewer than the configuration says, and a pixel decoder.
    "Mask2FormerModel": 14,
    "MaskFormerModel": 15,
    "OneFormerModel": 16,
    # Gated or parallel cross-attention layers that take turns with the layers that are counted.
    "BltModel": 17,
    "BltForCausalLM": 17,
    "BridgeTowerModel": 15,
    # No count: the depths in the configuration are those of another backbone (-1).
    "PPDocLayoutV2ForObjectDetection": -1,
    "PPDocLayoutV3Model": -1,
    "PPDocLayoutV3ForObjectDetection": -1,
    "PPDocLayoutV4Model": -1,
    "PPDocLayoutV4ForObjectDetection": -1,
    "HGNetV2Backbone": -1,
    "HGNetV2ForImageClassification": -1,
    "ClapModel": 12,
    # Residual blocks and the blocks that bridge them.
    "UVDocModel": 16,
    "UVDocBackbone": 16,
    # Repeats times the depth coefficient.
    "EfficientNetModel": 55,
    "EfficientNetForImageClassification": 55,
    "AlignModel": 67,
}

#: Model type to the width divisors to try, in order.
FACTORS: dict[str, tuple[int, ...]] = {
    "glm4v": (4,),
    "glm4v_text": (4,),
    "glm_image_text": (4,),
    "perceiver": (1,),
}

#: Model type or class name to why it is not tried at all.
REASONS: dict[str, str] = {}
