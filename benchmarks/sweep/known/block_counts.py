"""How many blocks a class has, by a formula over its configuration, where the generic reading does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Count(NamedTuple):
    """What the code of a class makes of its configuration.

    Attributes:
        blocks: From the configuration to the number of blocks, or to the sizes of the stacks that it counts where there
            may be others; ``None`` where the configuration does not say.
        why: In words, with the place in the class's code that it follows.
    """

    blocks: Callable[[Any], int | list[int]] | None
    why: str


def _levit(config: Any) -> int:
    stages = zip(config.depths, config.mlp_ratio, config.down_ops, strict=False)  # one more down_op: an empty one
    return sum(d * (1 + (mlp > 0)) + (op[0] == "Subsample" and 1 + (op[4] > 0)) for d, mlp, op in stages)


def _efficientnet(config: Any) -> int:
    return sum(math.ceil(config.depth_coefficient * repeats) for repeats in config.num_block_repeats)


def _hybrid(config: Any) -> int:
    bottlenecks = 3 * 2 * (len(config.encoder_in_channels) - 1)
    attention = len(config.encode_proj_layers) * config.encoder_layers
    return sum(config.backbone_config.stage_num_blocks) + attention + bottlenecks + config.decoder_layers


def _blt(config: Any) -> int:
    parts = (config.patcher_config, config.encoder_config, config.global_config, config.decoder_config)
    crossing = (config.encoder_config, config.decoder_config)
    crosses = sum(part.num_hidden_layers if part.cross_attn_all_layers else 1 for part in crossing)
    return sum(part.num_hidden_layers for part in parts) + crosses


def _uvdoc(config: Any) -> int:
    return sum(map(len, config.resnet_configs))


def _sam3_video(config: Any) -> list[int]:
    see, track = config.detector_config, config.tracker_config
    detector = [see.text_config.num_hidden_layers, see.vision_config.backbone_config.num_hidden_layers]
    detector += [c.num_layers for c in (see.geometry_encoder_config, see.detr_encoder_config, see.detr_decoder_config)]
    memory = [track.memory_attention_num_layers, track.memory_fuser_num_layers]
    return [*detector, *memory, track.mask_decoder_config.num_hidden_layers]


def _vibevoice(config: Any) -> int:
    audio = 2 * sum(config.audio_config.depths) + sum(config.semantic_model_config.depths)
    return audio + config.text_config.num_hidden_layers + config.diffusion_head_config.num_hidden_layers


def _vibevoice_asr(config: Any) -> int:
    audio = (config.acoustic_tokenizer_encoder_config, config.semantic_tokenizer_encoder_config)
    return sum(sum(part.depths) for part in audio) + config.text_config.num_hidden_layers


_FUNNEL = Count(
    lambda c: sum(c.block_sizes),
    "modeling_funnel.FunnelEncoder: sum(block_sizes); FunnelBaseModel has no decoder",
)
_MOBILEVIT = Count(
    lambda c: 1 + 3 + 2 + 4 + 3,
    "modeling_mobilevit.MobileViTEncoder: 1 + 3 inverted residuals and 2 + 4 + 3 transformer layers, written in the "
    "code; the residual that begins a MobileViTLayer only downsamples",
)
_MOBILEVIT2 = Count(
    lambda c: 1 + 2 + sum(c.n_attn_blocks),
    "modeling_mobilevitv2.MobileViTV2Encoder: 1 + 2 inverted residuals, written in the code, and sum(n_attn_blocks)",
)
_LEVIT = Count(
    _levit,
    "modeling_levit.LevitStage: attention and MLP are residual layers of their own, and so they are where a stage "
    "subsamples",
)
_BLT = Count(
    _blt,
    "modeling_blt: the layers of patcher, local encoder, global transformer and local decoder, and the cross-attention "
    "layers of encoder and decoder: one for each layer with cross_attn_all_layers, else one",
)
_HYBRID = Count(
    _hybrid,
    "HybridEncoder: stages of the backbone, encoder_layers for each of encode_proj_layers, 3 RepVGG blocks in each of "
    "the CSPRepLayers on the way down and up between the scales, decoder_layers",
)
_EFFICIENTNET = Count(_efficientnet, "EfficientNetEncoder.round_repeats: ceil(depth_coefficient * repeats), summed")
_MASK2FORMER = Count(
    lambda c: sum(c.backbone_config.depths) + c.encoder_layers + c.decoder_layers - 1,
    "Mask2FormerMaskedAttentionDecoder makes decoder_layers - 1; before it the backbone, and encoder_layers of "
    "the pixel decoder",
)
_MASKFORMER = Count(
    lambda c: sum(c.backbone_config.depths) + len(c.backbone_config.depths) - 1 + c.decoder_config.decoder_layers,
    "MaskFormerFPNModel has one layer for each stage of the backbone but the last; of the DETR configuration "
    "only decoder_layers is used",
)
_ONEFORMER = Count(
    lambda c: (
        sum(c.backbone_config.depths)
        + c.encoder_layers
        + c.query_dec_layers
        + c.decoder_layers
        - 1
        + c.is_training * c.text_encoder_num_layers
    ),
    "OneFormerTransformerDecoder makes decoder_layers - 1 behind query_dec_layers; before it the backbone, and "
    "encoder_layers of the pixel decoder; the text encoder only with is_training",
)
_UVDOC = "modeling_uvdoc: every residual block of UVDocResNet; its UVDocBridgeBlocks all run on the same hidden states"
_EOMT = Count(
    lambda c: c.num_hidden_layers + c.num_upscale_blocks,
    "modeling_eomt: the layers, and num_upscale_blocks of EomtScaleBlock, which predict() runs between the last "
    "num_blocks layers too",
)
_TRANSDUCER = Count(
    lambda c: c.encoder_config.num_hidden_layers + 1,
    "the layers of the encoder, and one torch.nn.LSTM, which holds the num_decoder_layers of the prediction network",
)
_NO_SVTR = "the SVTR blocks that depth counts belong to the recognition head, which this class does not have"
_VIBEVOICE_ASR = Count(
    _vibevoice_asr,
    "modeling_vibevoice_asr.VibeVoiceAsrModel: sum(depths) of the acoustic and of the semantic encoder, and the layers "
    "of the language model",
)

COUNTS: dict[str, Count] = {
    "FunnelBaseModel": _FUNNEL,
    "FunnelForSequenceClassification": _FUNNEL,
    "MobileViTModel": _MOBILEVIT,
    "MobileViTForImageClassification": _MOBILEVIT,
    "MobileViTV2Model": _MOBILEVIT2,
    "MobileViTV2ForImageClassification": _MOBILEVIT2,
    "LevitModel": _LEVIT,
    "LevitForImageClassification": _LEVIT,
    "Mask2FormerModel": _MASK2FORMER,
    "Mask2FormerForUniversalSegmentation": _MASK2FORMER,
    "MaskFormerModel": _MASKFORMER,
    "MaskFormerForInstanceSegmentation": _MASKFORMER,
    "OneFormerModel": _ONEFORMER,
    "OneFormerForUniversalSegmentation": _ONEFORMER,
    "BltModel": _BLT,
    "BltForCausalLM": _BLT,
    "BridgeTowerModel": Count(
        lambda c: (
            c.text_config.num_hidden_layers
            + c.vision_config.num_hidden_layers
            - c.vision_config.remove_last_layer
            + 2 * c.num_hidden_layers
        ),
        "modeling_bridgetower.BridgeTowerModel: both towers, and num_hidden_layers cross-modal layers for each of them",
    ),
    "ClapModel": Count(
        lambda c: c.text_config.num_hidden_layers + sum(c.audio_config.depths),
        "ClapAudioEncoder: sum(depths); num_hidden_layers of ClapConfig itself is no stack, but a number of stages",
    ),
    "PPDocLayoutV2ForObjectDetection": Count(
        lambda c: _hybrid(c) + c.reading_order_config.num_hidden_layers,
        _HYBRID.why + ", and the layers of PPDocLayoutV2ReadingOrder",
    ),
    "PPDocLayoutV3Model": _HYBRID,
    "PPDocLayoutV3ForObjectDetection": _HYBRID,
    "PPDocLayoutV4Model": _HYBRID,
    "PPDocLayoutV4ForObjectDetection": _HYBRID,
    "ParakeetForRNNT": _TRANSDUCER,
    "ParakeetForTDT": _TRANSDUCER,
    "Nemotron3_5AsrForRNNT": _TRANSDUCER,
    "NemotronAsrStreamingForRNNT": _TRANSDUCER,
    "UVDocModel": Count(lambda c: _uvdoc(c.backbone_config), _UVDOC),
    "UVDocBackbone": Count(_uvdoc, _UVDOC),
    "EomtForUniversalSegmentation": _EOMT,
    "EomtDinov3ForUniversalSegmentation": _EOMT,
    "EfficientNetModel": _EFFICIENTNET,
    "EfficientNetForImageClassification": _EFFICIENTNET,
    "AlignModel": Count(
        lambda c: _efficientnet(c.vision_config) + c.text_config.num_hidden_layers,
        "modeling_align.AlignVisionEncoder.round_repeats: ceil(depth_coefficient * repeats), and the text tower",
    ),
    "PPOCRV5ServerRecModel": Count(lambda c: sum(c.backbone_config.stage_num_blocks), _NO_SVTR),
    "PPOCRV5MobileRecModel": Count(lambda c: sum(c.backbone_config.depths), _NO_SVTR),
    "PPOCRV6SmallRecModel": Count(lambda c: sum(c.backbone_config.depths), _NO_SVTR),
    "Sam3VideoModel": Count(
        _sam3_video,
        "modeling_sam3_video.Sam3VideoModel: the tracker is made without its vision_config (remove_vision_encoder), "
        "with memory_attention_num_layers, memory_fuser_num_layers and the layers of its mask decoder",
    ),
    "VibeVoiceAcousticTokenizerModel": Count(
        lambda c: 2 * sum(c.depths),
        "VibeVoiceAcousticTokenizerModel: encoder_config and decoder_config are properties, both with these depths",
    ),
    "VibeVoiceForConditionalGeneration": Count(
        _vibevoice,
        "modeling_vibevoice.VibeVoiceModel: the acoustic tokenizer counts twice (encoder and decoder), the semantic "
        "encoder once; language model and diffusion head",
    ),
    "VibeVoiceAsrModel": _VIBEVOICE_ASR,
    "VibeVoiceAsrForConditionalGeneration": _VIBEVOICE_ASR,
}

_RECOGNISES = "the SVTR blocks are part of what the model calls its head, and a head is one layer"
_CLASS_ATTENTION = (
    "the two class-attention blocks, of another kind and in a list of their own behind the blocks, are head"
)

#: Class to why the coarser answer of the layers is right, where it is.
#: Class to what is to be said of a check that fails.
FAILED: dict[str, str] = dict.fromkeys(
    ("ReformerModel", "ReformerForSequenceClassification"),
    "the reversible layers (modeling_reformer._ReversibleFunction) hide their parameters from autograd, so none of "
    "them gets a gradient unless the embeddings train; the order is right, and the callbacks warn of such a run",
)

COARSER: dict[str, str] = {
    "PPOCRV5MobileRecForTextRecognition": _RECOGNISES,
    "PPOCRV5ServerRecForTextRecognition": _RECOGNISES,
    "PPOCRV6SmallRecForTextRecognition": _RECOGNISES,
    "VibeVoiceForConditionalGeneration": "the layers of the diffusion head are one layer, as every head is",
    "BltModel": "the one cross-attention layer behind the local encoder closes it (local_encoder.head)",
    "BltForCausalLM": "the one cross-attention layer behind the local encoder closes it (local_encoder.head)",
    "dla34": "each DlaTree is one layer: its root joins the outputs of both its halves",
    "inception_resnet_v2": "the single modules around the repeats belong to what runs before them (mixed_5b to the "
    "embeddings, mixed_6a and mixed_7a to a block), block8 behind the last one to the head",
    "volo_d1_224": _CLASS_ATTENTION,
    "xcit_nano_12_p8_224": _CLASS_ATTENTION,
}
