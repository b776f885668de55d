"""Settings, inputs and reasons of single vision classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Sam2VideoInferenceSession

_DINO = {"image_size": 96, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_SAM_VIT = {"image_size": 128, "num_hidden_layers": 4, "global_attn_indexes": [1, 3], "window_size": 4}
_SAM_HQ = {**_SAM_VIT, "hidden_size": 96}
# A global block inside the longest stage, as by default: one that begins a stage cannot pool.
_HIERA = {"image_size": [128, 128], "blocks_per_stage": [1, 2, 3, 2], "global_attention_blocks": [4]}
_SAM2_VISION = {"backbone_config": _HIERA, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
_SAM3_VIT = {
    "image_size": 112,
    "pretrain_image_size": 56,
    "num_hidden_layers": 4,
    "global_attn_indexes": [1, 3],
    "window_size": 4,
}
# The class has no default: kernel, stride and padding for the three sizes and shapes that its description names.
_INTRACLASS = {
    "reduce_channel": [1, 1, 0],
    "return_channel": [1, 1, 0],
    **{
        f"{kind}_{ratio}ratio": [[size if v else 1 for v in shape], [1, 1], [size // 2 if v else 0 for v in shape]]
        for kind, shape in (
            ("vertical_long_to_small_conv", (1, 0)),
            ("horizontal_small_to_long_conv", (0, 1)),
            ("symmetric_conv_long", (1, 1)),
        )
        for ratio, size in (("long", 7), ("mid", 5), ("short", 3))
    },
}
_SERVER_DET = {"intraclass_block_config": _INTRACLASS, "scale_factor_list": [1, 2, 4, 8], "kernel_list": [3, 2, 2]}
# Halves both sides from stage to stage, as the neck expects; by default only the height.
_LCNET = {
    "stem_channels": [3, 4, 8],
    "block_configs": [
        [[3, 8, 8, 1, True], [3, 8, 8, 1, False]],
        [[3, 8, 16, 2, False], [3, 16, 16, 1, True]],
        [[3, 16, 32, 2, False], [3, 32, 32, 1, True], [3, 32, 32, 1, False]],
        [[3, 32, 64, 2, False], [3, 64, 64, 1, True]],
    ],
    "out_indices": [1, 2, 3, 4],
}

CONFIGS: dict[str, Mapping[str, Any]] = {
    "chmv2": {"backbone_config": {"return_class_token": True}},
    # The rates of its blocks are looked up by the number of the stage: three stages, so three blocks in the last.
    "cvt": {"depth": [1, 2, 3]},
    "depth_pro": {
        "patch_size": 96,
        "intermediate_hook_ids": [3, 1],
        "scaled_images_feature_dims": [32, 32, 16],
        "intermediate_feature_dims": [16, 16],
        "fusion_hidden_size": 16,
        "use_fov_model": True,
        **dict.fromkeys(("image_model_config", "patch_model_config", "fov_model_config"), _DINO),
    },
    # Two blocks before the queries come in and two behind.
    **{kind: {"num_blocks": 2} for kind in ("eomt", "eomt_dinov3", "videomt")},
    "gemma3n_vision": {"hidden_size": 2048, "model_args": {"channel_multiplier": 0.25}},
    "lightglue": {"keypoint_detector_config": {"max_keypoints": 16}},
    "lw_detr": {"projector_scale_factors": [1.0], "backbone_config": {"window_block_indices": [0, 2]}},
    "mobilevitv2": {"image_size": 64},
    "pp_doclayout_v2": {
        "class_thresholds": [0.1] * 20,
        "class_order": list(range(20)),
        "reading_order_config": {"max_2d_position_embeddings": 1024},
    },
    "pp_ocrv5_server_det": _SERVER_DET,
    "pp_ocrv6_medium_det": {**_SERVER_DET, "backbone_config": _LCNET},
    "pp_ocrv6_small_det": {"backbone_config": _LCNET, "layer_list_out_channels": [8, 16, 32, 64]},
    "sam2": {"vision_config": _SAM2_VISION},
    "sam2_hiera_det_model": _HIERA,
    # Attention to what is remembered has 64 channels, whatever the configuration says.
    "sam2_video": {
        "vision_config": _SAM2_VISION,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_output_channels": 64,
    },
    "sam2_vision_model": _SAM2_VISION,
    "sam3_vision_model": {"backbone_config": _SAM3_VIT, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]},
    "sam3_vit_model": _SAM3_VIT,
    "sam_hq": {"vision_config": _SAM_HQ, "mask_decoder_config": {"vit_dim": 96}},
    "sam_hq_vision_model": _SAM_HQ,
    "sam_vision_model": _SAM_VIT,
    "sapiens2": {
        "head_config": {
            "upsample_out_channels": [32, 16],
            "upsample_kernel_sizes": [4, 4],
            "conv_out_channels": [16, 16],
            "conv_kernel_sizes": [1, 1],
        }
    },
    "seggpt": {
        "image_size": [64, 32],
        "pretrain_image_size": 32,
        "merge_index": 0,
        "num_hidden_layers": 4,
        "intermediate_hidden_state_indices": [0, 1, 2, 3],
        "patch_size": 8,
    },
    "slanext": {"vision_config": _SAM_VIT},
    "timm_backbone": {"backbone": "resnet18"},
    "superglue": {
        "gnn_layers_types": ["self", "cross"] * 2,
        "sinkhorn_iterations": 3,
        "keypoint_detector_config": {"max_keypoints": 16},
    },
    "uvdoc": {"backbone_config": {"out_indices": [1, 2, 3, 4, 5, 6]}},
    "vitmatte": {"hidden_size": 96, "fusion_hidden_sizes": [32, 16, 8, 4], "backbone_config": {"num_channels": 4}},
}


def _pair(maker: Any) -> torch.Tensor:
    """Two images each, to be matched."""
    return torch.rand(maker.batch, 2, 3, 96, 96)


def _tracked(maker: Any) -> dict[str, Any]:
    """A session whose first frame was seen with a point, so that the second one is tracked with what is remembered."""
    size = maker.config.prompt_encoder_config.image_size
    session = Sam2VideoInferenceSession(torch.rand(2, 3, size, size), size, size, dtype=torch.float32)
    point = {"point_coords": torch.full((1, 1, 1, 2), 9.0), "point_labels": torch.ones(1, 1, 1, dtype=torch.int)}
    session.add_point_inputs(session.obj_id_to_idx(1), 0, point)
    session.obj_with_new_inputs = [1]
    maker.model(session, frame_idx=0)
    return {"inference_session": session, "frame_idx": 1}


INPUTS: dict[str, Mapping[str, Callable[[Any], Any]]] = {
    **{kind: {"pixel_values": _pair} for kind in ("efficientloftr", "lightglue", "superglue")},
    # Thirty-two times smaller at the end of the backbone, where three rows are pooled.
    "pp_ocrv5_mobile_rec": {"pixel_values": lambda m: torch.rand(m.batch, 3, 96, 128)},
    "radio": {"all": lambda m: {"pixel_values": torch.rand(2, 3, 128, 128)}},
    "Sam2VideoModel": {"all": _tracked},
    "seggpt": {
        name: lambda m: torch.rand(m.batch, 3, 32, 32)
        for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")
    },
    "depth_pro": {"pixel_values": lambda m: torch.rand(m.batch, 3, 384, 384)},
    "VideoMAEForPreTraining": {"bool_masked_pos": lambda m: torch.arange(128).expand(m.batch, -1) % 2 == 0},
}
FACTORS: dict[str, tuple[int, ...]] = {}
REASONS: dict[str, str] = {
    "dinat": "it needs natten, a package of compiled attention kernels that is not installed here",
}
