"""The models at full size, and what is frozen in each. Weights and inputs are random, but for the pre-trained model."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import default_collate

from benchmarks.speedtest import truncated_models

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """One comparison.

    Attributes:
        title: Model and share of its blocks that is frozen.
        build: Makes the model, with random weights.
        inputs: From a number of samples to the model's arguments, labels included.
        freeze: Selector of the frozen layers; empty for gradual unfreezing.
        cut: Makes the hand-cut model of what trains; see :mod:`benchmarks.speedtest.truncated_models`.
        batch_size: Samples in a batch.
        batches: Batches in a training epoch.
        epochs: Epochs of a run.
        collate: Makes a batch of samples.
    """

    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Batch]
    freeze: str
    cut: Callable[[nn.Module], truncated_models.Cut]
    batch_size: int
    batches: int
    epochs: int
    collate: Callable[[list[Batch]], Batch] = default_collate

    @property
    def sizes(self) -> str:
        """Sizes of the run, in words."""
        batches = f"batches of {self.batch_size}, {self.batches} in an epoch and one of validation"
        return f"{batches}, {self.epochs} epochs"

    def batch(self) -> Batch:
        """A first batch."""
        samples = self.inputs(self.batch_size)
        return self.collate([{k: v[i] for k, v in samples.items()} for i in range(self.batch_size)])


def text(length: int, vocabulary: int, classes: int | None) -> Callable[[int], Batch]:
    """Token ids without padding, and a class or, for a language model, the tokens themselves as labels."""

    def inputs(samples: int) -> Batch:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, vocabulary, (samples, length), generator=generator)
        labels = ids.clone() if classes is None else torch.randint(0, classes, (samples,), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    return inputs


def pair(source: int, length: int, vocabulary: int) -> Callable[[int], Batch]:
    """A source and a target."""

    def inputs(samples: int) -> Batch:
        batch = text(source, vocabulary, None)(samples)
        generator = torch.Generator().manual_seed(1)
        return {**batch, "labels": torch.randint(5, vocabulary, (samples, length), generator=generator)}

    return inputs


def images(size: int, classes: int) -> Callable[[int], Batch]:
    """Images of random noise, and a class."""

    def inputs(samples: int) -> Batch:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(samples, 3, size, size, generator=generator)
        return {"pixel_values": pixels, "labels": torch.randint(0, classes, (samples,), generator=generator)}

    return inputs


def _build(kind: str, config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, kind)(config)
        return model

    return build


def bert(frozen: int, blocks: int = 12, width: int = 768, length: int = 128, words: int = 30522, **run: Any) -> Subject:
    """BERT with a classifier."""
    config = transformers.BertConfig(
        vocab_size=words,
        num_hidden_layers=blocks,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    return Subject(
        title=f"BERT-base, {frozen} of {blocks} blocks frozen" if width == 768 else f"small BERT, {frozen} of {blocks}",
        build=_build("BertForSequenceClassification", config),
        inputs=text(length, words, 2),
        freeze=f"embeddings,:{frozen}",
        cut=lambda model: truncated_models.bert(model, frozen),
        **run,
    )


def gpt2(
    head: str, frozen: int, blocks: int = 24, width: int = 1024, length: int = 64, words: int = 50257, **run: Any
) -> Subject:
    """GPT-2 with a classifier, or with a language model head that shares the weights of the embeddings."""
    config = transformers.GPT2Config(vocab_size=words, n_layer=blocks, n_embd=width, n_head=width // 64, pad_token_id=0)
    kind = {"language model": "GPT2LMHeadModel", "classifier": "GPT2ForSequenceClassification"}[head]
    size = "GPT-2 Medium" if width == 1024 else "small GPT-2"
    return Subject(
        title=f"{size}, {head}, {frozen} of {blocks} blocks frozen",
        build=_build(kind, config),
        inputs=text(length, words, None if head == "language model" else 2),
        freeze=f"embeddings,:{frozen}",
        cut=lambda model: truncated_models.gpt2(model, frozen),
        **run,
    )


def t5(
    frozen: int,
    blocks: int = 24,
    width: int = 1024,
    length: int = 64,
    source: int | None = None,
    words: int = 32128,
    **run: Any,
) -> Subject:
    """T5 with a frozen encoder and frozen first blocks of the decoder; the source may be longer than the target."""
    config = transformers.T5Config(
        vocab_size=words,
        num_layers=blocks,
        d_model=width,
        d_ff=4 * width,
        num_heads=width // 64,
        decoder_start_token_id=0,
    )
    size = "T5-Large" if width == 1024 else "small T5"
    decoder = frozen - blocks
    return Subject(
        title=f"{size}, {frozen} of {2 * blocks} blocks frozen, source {source or length}, target {length}",
        build=_build("T5ForConditionalGeneration", config),
        inputs=pair(source or length, length, words),
        freeze=f"embeddings,:{frozen}",
        cut=lambda model: truncated_models.t5(model, decoder),
        **run,
    )


def vit(frozen: int, blocks: int = 12, width: int = 768, size: int = 224, **run: Any) -> Subject:
    """ViT with a classifier."""
    config = transformers.ViTConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        image_size=size,
    )
    return Subject(
        title=f"{'ViT-base' if width == 768 else 'small ViT'}, {frozen} of {blocks} blocks frozen",
        build=_build("ViTForImageClassification", config),
        inputs=images(size, 2),
        freeze=f"embeddings,:{frozen}",
        cut=lambda model: truncated_models.vit(model, frozen),
        **run,
    )


def minilm(frozen: int, **run: Any) -> Subject:
    """The pre-trained encoder on the sentences of customer reviews, padded to the longest of each batch."""
    folder = str(REVIEWS / "minilm")

    def build() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        return model.train()  # it comes in eval mode, which Lightning keeps

    def inputs(samples: int) -> Batch:
        with (REVIEWS / "reviews.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))[:samples]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        found = tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
        return {**found, "labels": torch.tensor([int(row["label"] == "positive") for row in rows])}

    return Subject(
        title=f"all-MiniLM-L6-v2, pre-trained, on reviews, {frozen} of 6 blocks frozen",
        build=build,
        inputs=inputs,
        freeze=f"embeddings,:{frozen}",
        cut=lambda model: truncated_models.bert(model, frozen),
        collate=_padded,
        **run,
    )


def _padded(samples: list[Batch]) -> Batch:
    batch: Batch = default_collate(samples)
    length = int(batch["attention_mask"].sum(1).max())
    return {name: tensor[:, :length] if tensor.dim() > 1 else tensor for name, tensor in batch.items()}


def gradually(subject: Subject) -> Subject:
    """The same model, unfrozen from the head down, one layer more in each epoch."""
    return replace(subject, title=f"{subject.title.split(',')[0]}, gradual unfreezing", freeze="")


#: Made by experiments/reviews/prepare.py.
REVIEWS = Path(__file__).resolve().parents[2] / "experiments" / "reviews" / "data"

FULL: dict[str, Callable[[], Subject]] = {
    "bert-75": lambda: bert(9, batch_size=8, batches=15, epochs=4),
    "bert-75-10-epochs": lambda: bert(9, batch_size=8, batches=3, epochs=10),
    "bert-8": lambda: bert(8, batch_size=8, batches=15, epochs=4),
    "gpt2-lm": lambda: gpt2("language model", 12, batch_size=4, batches=10, epochs=4),
    "gpt2-classifier": lambda: gpt2("classifier", 12, batch_size=4, batches=10, epochs=4),
    "t5-80": lambda: t5(38, source=128, batch_size=4, batches=12, epochs=4),
    "t5-80-short-source": lambda: t5(38, batch_size=4, batches=12, epochs=4),
    "vit-75": lambda: vit(9, batch_size=8, batches=15, epochs=4),
    "minilm": lambda: minilm(4, batch_size=32, batches=30, epochs=4),
    "gradual": lambda: gradually(bert(0, batch_size=8, batches=24, epochs=12)),
}
_SMALL: dict[str, Any] = {"batch_size": 8, "batches": 5, "epochs": 3}
QUICK: dict[str, Callable[[], Subject]] = {
    "bert-75": lambda: bert(3, blocks=4, width=256, length=64, words=4000, **_SMALL),
    "gpt2-classifier": lambda: gpt2("classifier", 2, blocks=4, width=256, words=4000, **_SMALL),
    "t5-80": lambda: t5(6, blocks=4, width=256, words=4000, length=32, **_SMALL),
    "vit-75": lambda: vit(3, blocks=4, width=256, size=64, **_SMALL),
    "gradual": lambda: gradually(bert(0, blocks=4, width=256, length=64, words=4000, **{**_SMALL, "epochs": 5})),
}
