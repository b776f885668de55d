"""Whole LightningModules, several encoders in one module, and the wrappers of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from layer_checks import gradient_errors, order_errors, partition_errors
from layer_models import CASES, COMMON, GPT2, VISION, ids, small_block
from lightning import LightningModule
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from lightning_freeze.layers import LayerStack

SINGLE = ["embeddings", "0", "1", "2", "3", "head"]


def bert() -> BertModel:
    return BertModel(BertConfig(**COMMON))


class Classifier(LightningModule):
    """A user's module: loss, metric and head are registered before the encoder."""

    def __init__(self, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.projection = nn.Linear(32, 3)
        self.encoder = bert() if encoder is None else encoder
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.projection(self.dropout(self.encoder(tokens).pooler_output))

    def training_step(self, batch: Any, index: int) -> Tensor:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        return self.loss(logits, batch[1])


class Search(LightningModule):
    """Two encoders of one class, and a projection that both use."""

    def __init__(self) -> None:
        super().__init__()
        self.query_encoder, self.doc_encoder = bert(), bert()
        self.projection = nn.Linear(32, 4)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, query: Tensor, document: Tensor) -> Tensor:
        query = self.projection(self.query_encoder(query).pooler_output)
        document = self.projection(self.doc_encoder(document).pooler_output)
        return query @ document.T * self.scale


class Aggregated(nn.Module):
    """Small blocks of the user's own on top of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()
        self.aggregator = nn.TransformerEncoder(small_block(), 2)
        self.out = nn.Linear(32, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.aggregator(self.bert(tokens).last_hidden_state))


class Wrapper(nn.Module):
    """Adds ``module.`` to every name, as ``DistributedDataParallel`` does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_lightning_module_with_own_head_has_the_names_of_a_single_stack() -> None:
    module = Classifier()
    stack = LayerStack(module)
    assert stack.names == SINGLE
    assert stack["head"].parameters() == [*module.projection.parameters(), *module.encoder.pooler.parameters()]
    assert module.dropout in stack["head"].modules()
    assert partition_errors(stack) == []
    assert order_errors(stack, (ids(),)) == []
    assert gradient_errors(stack, (ids(),)) == []


def test_losses_and_metrics_are_in_no_layer() -> None:
    module = Classifier()
    stack = LayerStack(module)
    assert stack.layer_of_module(module.loss) is None
    assert stack.layer_of_module(module.accuracy) is None
    frozen = stack.select("all").modules
    assert module not in frozen
    assert module.encoder in frozen


def test_a_loss_with_parameters_is_in_the_head() -> None:
    class MarginLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 32))

    module = Classifier()
    module.loss = MarginLoss()
    stack = LayerStack(module)
    assert stack.names == SINGLE
    assert stack.layer_of(module.loss.weight) is stack["head"]


@pytest.mark.parametrize("wrap", [torch.compile, Wrapper, lambda m: Wrapper(torch.compile(m))])
def test_wrappers_change_no_layer_name(wrap: Any) -> None:
    plain = LayerStack(Classifier())
    inside = LayerStack(Classifier(wrap(bert())))
    outside = LayerStack(wrap(Classifier()))
    assert plain.names == inside.names == outside.names == SINGLE
    for stack in (inside, outside):
        assert partition_errors(stack) == []
        assert [len(layer.parameters()) for layer in stack] == [len(layer.parameters()) for layer in plain]


def test_compiling_changes_neither_signature_nor_globs() -> None:
    plain, compiled = LayerStack(bert()), LayerStack(torch.compile(bert()))
    assert plain.signature() == compiled.signature()
    selector = "encoder.layer.0.*"
    assert len(plain.select(selector).parameters) == len(compiled.select(selector).parameters) == 16


def test_adapters_change_no_layer_name() -> None:
    module = bert()
    for block in module.encoder.layer:
        linear = block.attention.self.query
        linear.lora_A = nn.ModuleDict({"default": nn.Linear(32, 2, bias=False)})
        linear.lora_B = nn.ModuleDict({"default": nn.Linear(2, 32, bias=False)})
    stack = LayerStack(Wrapper(Wrapper(module)))
    assert stack.names == SINGLE
    assert partition_errors(stack) == []
    assert sum("lora" in name for name, _ in stack["2"].named_parameters()) == 2


def test_two_encoders_are_named_by_their_attributes() -> None:
    module = Search()
    stack = LayerStack(module)
    towers = ("query_encoder", "doc_encoder")
    assert stack.names == [
        *(f"{t}.{part}" for t in towers for part in ("embeddings", "0", "1", "2", "3", "head")),
        "head",
    ]
    assert [name for name, _ in stack["head"].named_parameters()] == ["scale", "projection.weight", "projection.bias"]
    assert partition_errors(stack) == []
    assert gradient_errors(stack, (ids(), ids())) == []


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("embeddings", ["query_encoder.embeddings", "doc_encoder.embeddings"]),
        ("head", ["query_encoder.head", "doc_encoder.head", "head"]),
        ("doc_encoder", [f"doc_encoder.{i}" for i in range(4)]),
        ("doc_encoder.-1", ["doc_encoder.3"]),
        ("query_encoder.1:3", ["query_encoder.1", "query_encoder.2"]),
        ("doc_encoder.embeddings", ["doc_encoder.embeddings"]),
        ("-1", ["doc_encoder.3"]),
        ("3:5", ["query_encoder.3", "doc_encoder.0"]),
    ],
)
def test_selectors_over_towers(selector: str, names: list[str]) -> None:
    assert [layer.name for layer in LayerStack(Search()).select(selector).layers] == names


def test_blocks_on_top_of_an_encoder_are_a_second_tower() -> None:
    stack = LayerStack(Aggregated())
    blocks = [*(f"bert.{i}" for i in range(4)), "aggregator.0", "aggregator.1"]
    assert stack.names == ["embeddings", *blocks, "head"]
    assert order_errors(stack, (ids(),)) == []
    assert [name for name, _ in stack["head"].named_parameters()] == ["out.weight", "out.bias"]


def test_two_whole_models_as_encoder_and_decoder() -> None:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**COMMON), BertConfig(**COMMON))
    stack = LayerStack(EncoderDecoderModel(config))
    blocks = [f"{tower}.{i}" for tower in ("encoder", "decoder") for i in range(4)]
    assert stack.names == ["embeddings", *blocks, "head"]
    assert stack.layer_of(stack.module.decoder.bert.embeddings.word_embeddings.weight) is stack["decoder.0"]


def test_vision_language_model() -> None:
    config = LlavaConfig(
        text_config={"model_type": "llama", **COMMON, "num_key_value_heads": 2},
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 16},
        image_token_id=99,
        image_seq_length=16,
    )
    module = LlavaForConditionalGeneration(config)
    stack = LayerStack(module)
    assert stack.names == ["embeddings", *(f"{t}.{i}" for t in ("vision", "text") for i in range(4)), "head"]
    assert stack.layer_of(module.model.multi_modal_projector.linear_1.weight) is stack["text.0"]
    assert stack.layer_of(module.model.language_model.embed_tokens.weight) is stack["embeddings"]
    for selector in ("text.:2", "language_model.:2", "language.:2"):
        assert [layer.name for layer in stack.select(selector).layers] == ["text.0", "text.1"]
    tokens = torch.cat([ids(4), torch.full((2, 16), 99), ids(4)], 1)
    assert order_errors(stack, {"input_ids": tokens, "pixel_values": torch.rand(2, 3, 32, 32)}) == []


def test_two_image_models_in_attributes() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = ViTModel(ViTConfig(**VISION)), ViTModel(ViTConfig(**VISION))

    assert list(LayerStack(Ensemble()).towers) == ["left", "right"]


def test_nested_towers_have_joined_names() -> None:
    class Ranker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.ranker = CASES["bart"].build(), bert()

    stack = LayerStack(Ranker())
    assert list(stack.towers) == ["backbone.encoder", "backbone.decoder", "ranker"]
    assert len(stack.select("backbone").layers) == 7
    assert partition_errors(stack) == []


def test_tied_head_names_its_owner() -> None:
    stack = LayerStack(GPT2LMHeadModel(GPT2Config(**GPT2)))
    assert stack["embeddings"].aliases == {"transformer.wte.weight": ("lm_head.weight",)}
    [tie] = stack.ties
    assert (tie.layer, tie.used_by, tie.alias) == ("embeddings", "head", "lm_head.weight")
    assert "head shares weights with embeddings: lm_head.weight is transformer.wte.weight" in stack.describe()


def test_one_block_registered_many_times() -> None:
    block = small_block()
    stack = LayerStack(nn.Sequential(nn.Embedding(9, 32), *[block] * 4, nn.Linear(32, 2)))
    assert stack.names == ["embeddings", "0", "head"]
    assert stack["0"].repeats == 4
    assert partition_errors(stack) == []
