"""Hidden states that are kept outside of the blocks: in attributes, outputs, keys and values."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Examples, Plain, loader
from encoders import Block, Classifier, Encoder, check_equal, frozen, same_length
from torch import Tensor, nn

IN_AN_ATTRIBUTE = "keep what they compute in an attribute"


def one_by_one() -> Any:
    return loader(Examples(12, 5, 5), 1)


class Saves(Block):
    """Leaves what it computes in an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        self.saved = super().forward(x)
        return self.saved


class SavesInADict(Block):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}

    @property
    def saved(self) -> Tensor:
        return self.kept["h"]

    def forward(self, x: Tensor) -> Tensor:
        self.kept["h"] = super().forward(x)
        return self.kept["h"]


class ReadsInside(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(self.embeddings(input_ids))[-1] + self.layers[0].saved


class ReadsOutside(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids) + self.encoder.layers[0].saved


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("data", [same_length, one_by_one])
@pytest.mark.parametrize("kind", [Saves, SavesInADict])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_attribute_that_a_frozen_block_leaves(kind: type[nn.Module], inside: bool, data: Any) -> None:
    blocks = [kind() for _ in range(4)]
    model = Classifier(ReadsInside(*blocks)) if inside else ReadsOutside(Encoder(*blocks))
    check_equal(Plain(model), frozen(), data=data, reason=IN_AN_ATTRIBUTE)


class Table(Block):
    """Keeps a table that depends on no sample, as position encodings that are made when first needed."""

    def forward(self, x: Tensor) -> Tensor:
        self.table = torch.linspace(0, 1, x.shape[-1])
        return super().forward(x) + self.table


def test_attribute_that_is_the_same_for_all_samples() -> None:
    cache = check_equal(Plain(Classifier(Encoder(*(Table() for _ in range(4))))), frozen(), data=same_length)
    assert cache.hit_rate > 0.5


@dataclass
class States:
    last: Tensor
    all: list[Tensor]


@dataclass(slots=True)
class SlottedStates:
    last: Tensor
    all: list[Tensor]


class ReturnsStates(Encoder):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        states = self.run(self.embeddings(input_ids))
        return self.kind(last=states[-1], all=states)


class ReadsStates(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.encoder(input_ids)
        return output.last + output.all[1]


class Opaque:
    def __init__(self, last: Tensor, all: list[Tensor]) -> None:
        self.last, self.all = last, all


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (States, "reads what"),
        (SlottedStates, "reads what"),
        (SimpleNamespace, "reads what"),
        (Opaque, "no tensor is found"),
    ],
)
def test_outputs_of_other_kinds(kind: Any, reason: str) -> None:
    check_equal(Plain(ReadsStates(ReturnsStates(kind))), frozen(), data=same_length, reason=reason)


class Candidates(Plain):
    """Asks in validation for keys and values, and uses them otherwise than just handing them back."""

    def __init__(self, use: str) -> None:
        torch.manual_seed(0)
        sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
        config = tf.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        super().__init__(tf.GPT2LMHeadModel(config))
        self.use = use

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step({**batch, "labels": batch["input_ids"]}, batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        ids = batch["input_ids"][:, :3]
        past = self.model(ids, use_cache=True).past_key_values
        following, options = torch.full((len(ids), 1), 7), {}
        if self.use == "copy":
            past = copy.deepcopy(past)
        if self.use == "length":
            options = {"position_ids": torch.full((len(ids), 1), past.get_seq_length())}
        if self.use == "crop":
            past.crop(-1)
        if self.use == "repeat":
            past.batch_repeat_interleave(2)
            following = following.repeat_interleave(2, 0)
        self.validated.append(self.model(following, past_key_values=past, **options).logits.clone())


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("use", ["", "copy", "length", "crop", "repeat"])
def test_keys_and_values_that_are_asked_for(use: str) -> None:
    cache = check_equal(Candidates(use), frozen(), data=same_length, validation=same_length)
    assert cache.hit_rate > 0.5
