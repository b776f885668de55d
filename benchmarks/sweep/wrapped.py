"""torch's own transformers, and models in the forms in which they reach a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from sweep.rows import Row, judge, short
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def _bert() -> BertModel:
    return BertModel(BertConfig(vocab_size=100, hidden_dropout_prob=0.0, **_COMMON))


def _vit() -> ViTModel:
    return ViTModel(ViTConfig(image_size=32, patch_size=8, **_COMMON))


def _t5() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=3, num_decoder_layers=4, num_heads=4, vocab_size=100)
    )


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, num_key_value_heads=2, **_COMMON))


def _ids(length: int = 10) -> torch.Tensor:
    return torch.randint(5, 90, (2, length))


def _text() -> dict[str, Any]:
    return {"input_ids": _ids()}


class Classifier(LightningModule):
    """A LightningModule with its own head, registered before the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 3))
        self.encoder = _bert()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids).last_hidden_state[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(self(batch[0]), batch[1])


class TwoEncoders(LightningModule):
    """Text and images, compared; the heads are registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.text_head, self.image_head = nn.Linear(32, 8), nn.Linear(32, 8)
        self.image_encoder, self.text_encoder = _vit(), _bert()

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        text = self.text_head(self.text_encoder(input_ids).pooler_output)
        image = self.image_head(self.image_encoder(pixel_values).pooler_output)
        return self.scale * text @ image.T


class Siamese(LightningModule):
    """One encoder for both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = _bert(), nn.Linear(64, 2)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        pair = [self.encoder(x).pooler_output for x in (first, second)]
        return self.head(torch.cat(pair, -1))


class Stacked(nn.Module):
    """A small transformer on top of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(32, 2)
        self.encoder = _bert()
        self.mixer = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.mixer(self.encoder(input_ids).last_hidden_state)[:, 0])


def _lora(module: nn.Module, targets: list[str], task: str | None = None) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(module, LoraConfig(r=2, target_modules=targets, task_type=task))


def _adapters() -> nn.Module:
    """Bottleneck adapters in module lists of their own inside of every block (Houlsby et al., 2019)."""
    module = _bert()
    for block in module.encoder.layer:
        block.output.adapters = nn.ModuleList([nn.Linear(32, 4), nn.Linear(4, 32)])
        block.output.dense = nn.Sequential(block.output.dense, *block.output.adapters)
    return module


def _ddp() -> nn.Module:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return DistributedDataParallel(_bert())


def _layer(norm_first: bool = False) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=norm_first)


def _sequence() -> tuple[torch.Tensor]:
    return (torch.rand(2, 6, 32),)


def _with_heads() -> nn.Module:
    config = BertConfig(vocab_size=100, num_labels=3, **_COMMON)
    return BertForSequenceClassification(config)


#: Name to the module, its inputs and the number of blocks.
FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], int]] = {
    "nn.TransformerEncoder": (lambda: nn.TransformerEncoder(_layer(), 5), _sequence, 5),
    "nn.TransformerEncoder, pre-norm, final norm": (
        lambda: nn.TransformerEncoder(_layer(True), 5, norm=nn.LayerNorm(32)),
        _sequence,
        5,
    ),
    "nn.TransformerEncoder, one layer": (lambda: nn.TransformerEncoder(_layer(), 1), _sequence, 1),
    "nn.TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 48, batch_first=True), 4),
        lambda: (torch.rand(2, 6, 32), torch.rand(2, 5, 32)),
        4,
    ),
    "nn.Transformer": (
        lambda: nn.Transformer(32, 4, 3, 4, 48, batch_first=True),
        lambda: (torch.rand(2, 6, 32), torch.rand(2, 5, 32)),
        7,
    ),
    "task head": (_with_heads, _text, 4),
    "LightningModule with its own head": (Classifier, lambda: (_ids(),), 4),
    "LightningModule with two encoders": (TwoEncoders, lambda: (_ids(), torch.rand(2, 3, 32, 32)), 8),
    "LightningModule, one encoder used twice": (Siamese, lambda: (_ids(), _ids()), 4),
    "transformer on an encoder": (Stacked, lambda: (_ids(),), 6),
    "PEFT LoRA on BERT": (lambda: _lora(_bert(), ["query", "value"]), _text, 4),
    "PEFT LoRA on LLaMA": (lambda: _lora(_llama(), ["q_proj", "v_proj"], "CAUSAL_LM"), _text, 4),
    "PEFT LoRA on T5": (
        lambda: _lora(_t5(), ["q", "v"], "SEQ_2_SEQ_LM"),
        lambda: {"input_ids": _ids(), "decoder_input_ids": _ids(6)},
        7,
    ),
    "PEFT LoRA on ViT": (
        lambda: _lora(_vit(), ["q_proj", "v_proj", "query", "value"]),
        lambda: {"pixel_values": torch.rand(2, 3, 32, 32)},
        4,
    ),
    "adapters in every block": (_adapters, _text, 4),
    "torch.compile": (lambda: torch.compile(_bert(), backend="eager"), _text, 4),  # type: ignore[return-value]
    "DistributedDataParallel": (_ddp, _text, 4),
    "PEFT LoRA, tied head": (
        lambda: _lora(
            GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=100)), ["c_attn"], "CAUSAL_LM"
        ),
        _text,
        4,
    ),
}


class Wrapped:
    """torch's own modules and wrapped forms."""

    @staticmethod
    def catalogue() -> Iterator[tuple[str, str, str]]:
        for name in FORMS:
            yield ("torch" if name.startswith("nn.") else "wrapped"), name.split(",")[0].split(" on ")[0], name

    @staticmethod
    def examine(kind: str, name: str) -> Row:
        row = Row("torch" if name.startswith("nn.") else "wrapped", kind, name)
        build, inputs, blocks = FORMS[name]
        torch.manual_seed(0)
        try:
            module = build()
        except Exception as error:
            row.outcome, row.reason = "not built", short(error)
            return row
        judge(row, module, [("given", inputs())], {"its settings": blocks})
        return row
