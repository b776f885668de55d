"""A fit with the cache equals the fit without it, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Examples, Plain, assert_same, both, collate, loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_freeze.callbacks import LayerFreezing

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 100, "pad_token_id": 0}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}


def language(rows: Any) -> dict[str, Tensor]:
    batch = collate(rows)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def sequences(shuffle: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    return DataLoader(Examples(), 4, collate_fn=language, shuffle=shuffle, generator=generator)


def images(shuffle: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    data = [{"pixel_values": torch.rand(3, 16, 16, generator=generator), "labels": i % 2} for i in range(12)]
    return DataLoader(data, 4, shuffle=shuffle, generator=generator)  # type: ignore[arg-type]


def pairs(shuffle: bool) -> DataLoader:
    def join(rows: Any) -> dict[str, Any]:
        texts = collate([text for text, _ in rows])
        del texts["labels"]
        return {**texts, "pixel_values": torch.stack([image for _, image in rows]), "return_loss": True}

    generator = torch.Generator().manual_seed(7)
    texts = Examples()
    data = [(texts[i], torch.rand(3, 16, 16, generator=generator)) for i in range(12)]
    return DataLoader(data, 4, shuffle=shuffle, generator=generator, collate_fn=join)  # type: ignore[arg-type]


class Own(nn.Module):
    """A user's own model of torch's parts, with a padding mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(100, 32, padding_idx=0)
        block = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.1, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.out = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        hidden = self.blocks(self.tokens(input_ids), src_key_padding_mask=attention_mask == 0)
        loss = nn.functional.cross_entropy(self.out(hidden[:, 0]), labels)
        return tf.modeling_outputs.SequenceClassifierOutput(loss=loss)


@dataclass
class Case:
    build: Callable[[], nn.Module]
    data: Callable[[bool], DataLoader]
    frozen: str
    towers: int = 1


def text(shuffle: bool) -> DataLoader:
    return loader(shuffle=shuffle)


CASES = {
    "bert": Case(lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES)), text, "75%"),
    "bert-all-blocks": Case(lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES)), text, "embeddings,:4"),
    "bert-one-block": Case(lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES)), text, "embeddings,0"),
    "roberta": Case(lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZES)), text, "50%"),
    "distilbert": Case(
        lambda: tf.DistilBertForSequenceClassification(
            tf.DistilBertConfig(dim=32, n_layers=4, n_heads=4, hidden_dim=48, vocab_size=100)
        ),
        text,
        "50%",
    ),
    "deberta": Case(
        lambda: tf.DebertaV2ForSequenceClassification(
            tf.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8)
        ),
        text,
        "50%",
    ),
    "gpt2-lm": Case(lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, tie_word_embeddings=False)), sequences, "50%"),
    "gpt2-classifier": Case(lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(**GPT2)), text, "75%"),
    "llama": Case(
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0)), sequences, "50%"
    ),
    "t5": Case(
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, vocab_size=100, decoder_start_token_id=0
            )
        ),
        sequences,
        "embeddings,encoder.:3,decoder.:1",
        2,
    ),
    "bart": Case(
        lambda: tf.BartForConditionalGeneration(
            tf.BartConfig(
                d_model=32,
                encoder_layers=3,
                decoder_layers=3,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                vocab_size=100,
            )
        ),
        sequences,
        "embeddings,encoder.:3",
    ),
    "vit": Case(lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION)), images, "75%"),
    "clip": Case(
        lambda: tf.CLIPModel(
            tf.CLIPConfig(
                text_config={**SIZES, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}, vision_config=VISION
            )
        ),
        pairs,
        "embeddings,vision.embeddings,vision.:3,text.embeddings,text.:2",
        2,
    ),
    "torch": Case(Own, text, "50%"),
}


@pytest.mark.fast_cases(9)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_fit_equals_uncached(name: str, shuffle: bool) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    module = Plain(case.build())

    def data() -> DataLoader:
        return case.data(shuffle)

    plain, cached, cache = both(
        module, LayerFreezing(case.frozen, verbose=False), data=data, validation=lambda: case.data(False)
    )
    assert_same(plain, cached, exact=not shuffle)
    assert not cache.reasons
    used = [tower for tower in cache._towers if tower.tally.hits]
    assert len(used) == case.towers
    assert cache.hit_rate > 0.5
