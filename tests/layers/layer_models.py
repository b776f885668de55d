"""Tiny random models, each with the inputs of one forward pass and the layers that it must have.

The expected layers were written down from the architectures' papers and code, not copied from what the package found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from torch import nn


@dataclass
class Case:
    """A model and its expected layers.

    Attributes:
        build: Makes the model.
        inputs: Makes the inputs of one forward pass.
        blocks: Block names, in order, to the module that each is.
        others: Layers that are no blocks, to the parameter-name prefixes that they own.
        joined: Blocks that own more than their module: name to the further prefixes.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    blocks: dict[str, str]
    others: dict[str, list[str]]
    joined: dict[str, list[str]] = field(default_factory=dict)


def numbered(path: str, count: int, tower: str = "") -> dict[str, str]:
    """``{"encoder.0": "path.0", ...}``."""
    return {f"{tower}{i}": f"{path}.{i}" for i in range(count)}


def staged(path: str, depths: list[int]) -> dict[str, str]:
    """Blocks of stages, counted through; ``path`` holds ``{s}`` for the stage and ``{b}`` for the block in it."""
    places = [(s, b) for s, depth in enumerate(depths) for b in range(depth)]
    return {str(i): path.format(s=s, b=b) for i, (s, b) in enumerate(places)}


def hf(cls: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(tf, cls)(getattr(tf, config)(**settings))


def ids(length: int = 10, batch: int = 2) -> torch.Tensor:
    return torch.randint(5, 90, (batch, length))


def image(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size)


def text() -> dict[str, Any]:
    return {"input_ids": ids()}


def pair() -> dict[str, Any]:
    return {"input_ids": ids(), "decoder_input_ids": ids(6)}


def pixels() -> dict[str, Any]:
    return {"pixel_values": image()}


COMMON: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}
SPECIAL: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2: Mapping[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 100, **SPECIAL}
VISION: Mapping[str, Any] = {
    **{name: value for name, value in COMMON.items() if name != "vocab_size"},
    "image_size": 32,
    "patch_size": 8,
}
SEQ2SEQ: Mapping[str, Any] = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 100,
}
SPEECH: Mapping[str, Any] = {
    **COMMON,
    "vocab_size": 20,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
DEBERTA_V3: Mapping[str, Any] = {
    **COMMON,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
WHISPER: Mapping[str, Any] = {
    **SEQ2SEQ,
    **SPECIAL,
    "max_source_positions": 30,
    "num_mel_bins": 8,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
CLIP: Mapping[str, Any] = {
    "text_config": {**COMMON, **SPECIAL, "num_hidden_layers": 3, "projection_dim": 16},
    "vision_config": {**VISION, "projection_dim": 16},
    "projection_dim": 16,
}


def small_block(width: int = 32) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(width, 4, 48, batch_first=True)


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """Stages in numbered attributes, the head registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()
        for stage, depth in enumerate([2, 1, 3, 2], start=1):
            setattr(self, f"layer{stage}", nn.Sequential(*[Bottleneck(8) for _ in range(depth)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class OneByOne(nn.Module):
    """A convolutional network without a list, registered in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2, self.conv1, self.conv2 = nn.Linear(4, 4), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc1 = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(torch.relu(self.conv1(x))).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(x)))


class Universal(nn.Module):
    """One block, applied six times (Universal Transformers, Dehghani et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 6
        self.embedding, self.block, self.out = nn.Embedding(100, 32), small_block(), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for _ in range(self.depth):
            x = self.block(x)
        return self.out(x)


class Parallel(nn.Module):
    """Blocks in two parallel lists, as in XLM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.attentions = nn.ModuleList([nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(3)])
        self.ffns = nn.ModuleList([nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32)) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for attention, ffn in zip(self.attentions, self.ffns, strict=True):
            x = x + attention(x, x, x)[0]
            x = x + ffn(x)
        return x


LAYERS_4 = numbered("encoder.layer", 4)
CASES: dict[str, Case] = {
    "bert": Case(
        hf("BertModel", "BertConfig", **COMMON), text, LAYERS_4, {"embeddings": ["embeddings"], "head": ["pooler"]}
    ),
    "bert-one-block": Case(
        hf("BertModel", "BertConfig", **{**COMMON, "num_hidden_layers": 1}),
        text,
        numbered("encoder.layer", 1),
        {"embeddings": ["embeddings"], "head": ["pooler"]},
    ),
    "bert-no-block": Case(
        hf("BertModel", "BertConfig", **{**COMMON, "num_hidden_layers": 0}),
        text,
        {},
        {"embeddings": ["embeddings"], "head": ["pooler"]},
    ),
    "bert-classifier": Case(
        hf("BertForSequenceClassification", "BertConfig", **COMMON),
        text,
        numbered("bert.encoder.layer", 4),
        {"embeddings": ["bert.embeddings"], "head": ["bert.pooler", "classifier"]},
    ),
    "bert-mlm-tied": Case(
        hf("BertForMaskedLM", "BertConfig", **COMMON),
        text,
        numbered("bert.encoder.layer", 4),
        {"embeddings": ["bert.embeddings"], "head": ["cls"]},
    ),
    "roberta-classifier": Case(
        hf("RobertaForSequenceClassification", "RobertaConfig", **COMMON),
        text,
        numbered("roberta.encoder.layer", 4),
        {"embeddings": ["roberta.embeddings"], "head": ["classifier"]},
    ),
    "distilbert": Case(
        hf(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            dim=32,
            n_layers=4,
            n_heads=4,
            hidden_dim=48,
            vocab_size=100,
        ),
        text,
        numbered("distilbert.transformer.layer", 4),
        {"embeddings": ["distilbert.embeddings"], "head": ["pre_classifier", "classifier"]},
    ),
    "electra": Case(
        hf("ElectraForSequenceClassification", "ElectraConfig", embedding_size=16, **COMMON),
        text,
        numbered("electra.encoder.layer", 4),
        {"embeddings": ["electra.embeddings", "electra.embeddings_project"], "head": ["classifier"]},
    ),
    "deberta-v3": Case(
        hf("DebertaV2ForSequenceClassification", "DebertaV2Config", **DEBERTA_V3),
        text,
        numbered("deberta.encoder.layer", 4),
        {
            "embeddings": ["deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm"],
            "head": ["pooler", "classifier"],
        },
    ),
    "albert": Case(
        hf("AlbertModel", "AlbertConfig", embedding_size=16, **{**COMMON, "num_hidden_layers": 12}),
        text,
        {"0": "encoder.albert_layer_groups.0.albert_layers.0"},
        {"embeddings": ["embeddings", "encoder.embedding_hidden_mapping_in"], "head": ["pooler"]},
    ),
    "gpt2": Case(
        hf("GPT2Model", "GPT2Config", **GPT2), text, numbered("h", 4), {"embeddings": ["wte", "wpe"], "head": ["ln_f"]}
    ),
    "gpt2-lm-tied": Case(
        hf("GPT2LMHeadModel", "GPT2Config", **GPT2),
        text,
        numbered("transformer.h", 4),
        {"embeddings": ["transformer.wte", "transformer.wpe"], "head": ["transformer.ln_f"]},
    ),
    "gpt2-classifier": Case(
        hf("GPT2ForSequenceClassification", "GPT2Config", **GPT2),
        text,
        numbered("transformer.h", 4),
        {"embeddings": ["transformer.wte", "transformer.wpe"], "head": ["transformer.ln_f", "score"]},
    ),
    "llama": Case(
        hf("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **COMMON, **SPECIAL),
        text,
        numbered("model.layers", 4),
        {"embeddings": ["model.embed_tokens"], "head": ["model.norm", "lm_head"]},
    ),
    "mixtral": Case(
        hf("MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, num_local_experts=4, **COMMON, **SPECIAL),
        text,
        numbered("model.layers", 4),
        {"embeddings": ["model.embed_tokens"], "head": ["model.norm", "lm_head"]},
    ),
    "opt": Case(
        hf(
            "OPTForCausalLM",
            "OPTConfig",
            ffn_dim=48,
            word_embed_proj_dim=16,
            **{name: value for name, value in COMMON.items() if name != "intermediate_size"},
        ),
        text,
        numbered("model.decoder.layers", 4),
        {
            "embeddings": ["model.decoder.embed_tokens", "model.decoder.embed_positions", "model.decoder.project_in"],
            "head": ["model.decoder.final_layer_norm", "model.decoder.project_out"],
        },
    ),
    "t5": Case(
        hf(
            "T5ForConditionalGeneration",
            "T5Config",
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=3,
            num_decoder_layers=4,
            num_heads=4,
            vocab_size=100,
        ),
        pair,
        {**numbered("encoder.block", 3, "encoder."), **numbered("decoder.block", 4, "decoder.")},
        {"embeddings": ["shared"], "head": ["decoder.final_layer_norm"]},
        {"encoder.2": ["encoder.final_layer_norm"]},
    ),
    "bart": Case(
        hf("BartModel", "BartConfig", **SEQ2SEQ),
        pair,
        {**numbered("encoder.layers", 3, "encoder."), **numbered("decoder.layers", 4, "decoder.")},
        {"embeddings": ["shared", "encoder.embed_positions", "encoder.layernorm_embedding"]},
        {"decoder.0": ["decoder.embed_positions", "decoder.layernorm_embedding"]},
    ),
    "whisper": Case(
        hf("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER),
        lambda: {"input_features": torch.rand(2, 8, 60), "decoder_input_ids": ids(6)},
        {**numbered("model.encoder.layers", 3, "encoder."), **numbered("model.decoder.layers", 4, "decoder.")},
        {
            "embeddings": ["model.encoder.conv1", "model.encoder.conv2", "model.encoder.embed_positions"],
            "head": ["model.decoder.layer_norm"],
        },
        {
            "encoder.2": ["model.encoder.layer_norm"],
            "decoder.0": ["model.decoder.embed_tokens", "model.decoder.embed_positions"],
        },
    ),
    "wav2vec2": Case(
        hf("Wav2Vec2ForCTC", "Wav2Vec2Config", **SPEECH),
        lambda: {"input_values": torch.randn(2, 1600)},
        numbered("wav2vec2.encoder.layers", 4),
        {
            "embeddings": [
                "wav2vec2.masked_spec_embed",
                "wav2vec2.feature_extractor",
                "wav2vec2.feature_projection",
                "wav2vec2.encoder.pos_conv_embed",
                "wav2vec2.encoder.layer_norm",
            ],
            "head": ["lm_head"],
        },
    ),
    "wav2vec2-final-norm": Case(
        hf("Wav2Vec2Model", "Wav2Vec2Config", do_stable_layer_norm=True, feat_extract_norm="layer", **SPEECH),
        lambda: {"input_values": torch.randn(2, 1600)},
        numbered("encoder.layers", 4),
        {
            "embeddings": ["masked_spec_embed", "feature_extractor", "feature_projection", "encoder.pos_conv_embed"],
            "head": ["encoder.layer_norm"],
        },
    ),
    "vit": Case(
        hf("ViTForImageClassification", "ViTConfig", **VISION),
        pixels,
        numbered("vit.layers", 4),
        {"embeddings": ["vit.embeddings"], "head": ["vit.layernorm", "classifier"]},
    ),
    "swin": Case(
        hf(
            "SwinForImageClassification",
            "SwinConfig",
            embed_dim=16,
            depths=[2, 2, 3, 1],
            num_heads=[2, 2, 4, 4],
            window_size=2,
            image_size=64,
            patch_size=4,
        ),
        lambda: {"pixel_values": image(64)},
        staged("swin.encoder.layers.{s}.blocks.{b}", [2, 2, 3, 1]),
        {"embeddings": ["swin.embeddings"], "head": ["swin.layernorm", "classifier"]},
        {str(last): [f"swin.encoder.layers.{stage}.downsample"] for stage, last in enumerate([1, 3, 6])},
    ),
    "clip": Case(
        hf("CLIPModel", "CLIPConfig", **CLIP),
        lambda: {"input_ids": ids(), "pixel_values": image()},
        {
            **numbered("vision_model.encoder.layers", 4, "vision."),
            **numbered("text_model.encoder.layers", 3, "text."),
        },
        {
            "vision.embeddings": ["vision_model.embeddings", "vision_model.pre_layrnorm"],
            "vision.head": ["vision_model.post_layernorm", "visual_projection"],
            "text.embeddings": ["text_model.embeddings"],
            "text.head": ["text_model.final_layer_norm"],
            "head": ["text_projection", "logit_scale"],
        },
    ),
    "nn.TransformerEncoder": Case(
        lambda: nn.TransformerEncoder(small_block(), 5, norm=nn.LayerNorm(32)),
        lambda: (torch.rand(2, 6, 32),),
        numbered("layers", 5),
        {"head": ["norm"]},
    ),
    "nn.TransformerEncoder-one-block": Case(
        lambda: nn.TransformerEncoder(small_block(), 1), lambda: (torch.rand(2, 6, 32),), numbered("layers", 1), {}
    ),
    "nn.Transformer": Case(
        lambda: nn.Transformer(32, 4, 3, 3, 48, batch_first=True),
        lambda: (torch.rand(2, 6, 32), torch.rand(2, 5, 32)),
        {**numbered("encoder.layers", 3, "encoder."), **numbered("decoder.layers", 3, "decoder.")},
        {"head": ["decoder.norm"]},
        {"encoder.2": ["encoder.norm"]},
    ),
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(), nn.Linear(16, 4)),
        lambda: (torch.rand(2, 8),),
        {"0": "0", "1": "2", "2": "4"},
        {},
    ),
    "resnet": Case(
        ResNet,
        lambda: (image(),),
        {
            str(i): name
            for i, name in enumerate(
                f"layer{stage}.{block}" for stage, depth in enumerate([2, 1, 3, 2], start=1) for block in range(depth)
            )
        },
        {"embeddings": ["conv1", "bn1"], "head": ["fc"]},
    ),
    "registered-out-of-order": Case(
        OneByOne, lambda: (image(),), {"0": "conv1", "1": "conv2", "2": "fc1", "3": "fc2"}, {}
    ),
    "universal-transformer": Case(
        Universal, lambda: (ids(),), {"0": "block"}, {"embeddings": ["embedding"], "head": ["out"]}
    ),
    "parallel-lists": Case(
        Parallel,
        lambda: (ids(),),
        numbered("attentions", 3),
        {"embeddings": ["embedding"]},
        {str(i): [f"ffns.{i}"] for i in range(3)},
    ),
}
