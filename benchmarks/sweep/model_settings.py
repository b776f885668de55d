"""What single model types need that the generic rules do not give: settings, inputs, reasons. Data, not code paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sweep.known import audio, multimodal, segmentation, text, vision, vision_language

_SERIES = {"prediction_length": 4, "context_length": 8, "num_time_features": 1}

#: Model type or class name to fields of its configuration; what stands here is not made smaller.
CONFIGS: dict[str, Mapping[str, Any]] = {
    # At least one block of each kind among the four.
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_chunk_size": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"], "mamba_chunk_size": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local"] * 2},
    "autoformer": {**_SERIES, "label_length": 4},
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},
    "xmod": {"default_language": "en_XX"},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_self_attends_per_block": 4, "num_blocks": 1},
    "sam": {"vision_config": {"image_size": 128, "num_hidden_layers": 4, "global_attn_indexes": [1, 3]}},
    "depth_anything": {"backbone_config": {"out_indices": [1, 2, 3, 4], "num_hidden_layers": 4}},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "lxmert": {"num_attention_heads": 4},
    "swinv2": {"image_size": 64, "window_size": 4},
    "depth_pro": {"patch_size": 96},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
}

#: Model type or class name to single inputs.
INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    "VideoMAEForPreTraining": {
        "bool_masked_pos": lambda m: torch.arange(8 * 14 * 14).expand(m.batch, -1) % 2 == 0,
    },
    "t5": {},
}

#: Model type to the width divisors to try, in order.
FACTORS: dict[str, tuple[int, ...]] = {
    "perceiver": (1,),
}

#: Model type or class name to why it cannot be built or run here; said only where it was tried and could not.
REASONS: dict[str, str] = {}

for _field in (text, audio, vision, vision_language, multimodal, segmentation):
    CONFIGS.update(_field.CONFIGS)
    INPUTS.update(_field.INPUTS)
    FACTORS.update(_field.FACTORS)
    REASONS.update(_field.REASONS)
