from __future__ import annotations

import itertools

import pytest
from transformers import BertConfig, BertModel

from lightning_freeze import LayerStack
from lightning_freeze.plan.layer_ranges import selector_of

BERT = ["embeddings", "0", "1", "2", "3", "head"]
TOWERS = ["embeddings", "encoder.0", "encoder.1", "encoder.2", "encoder.head", "decoder.0", "decoder.1", "head"]


@pytest.mark.parametrize(
    ("names", "chosen", "selector"),
    [
        (BERT, ["head"], "head"),
        (BERT, ["3", "head"], "3,head"),
        (BERT, ["1", "2", "3", "head"], "1:,head"),
        (BERT, ["0", "1", "2", "3"], ":"),
        (BERT, ["embeddings", "0", "1"], "embeddings,:2"),
        (BERT, ["1", "2"], "1:3"),
        (BERT, ["0", "2", "3"], "0,2:"),
        (BERT, BERT, "all"),
        (BERT, [], ""),
        (TOWERS, ["encoder.1", "encoder.2", "encoder.head", "head"], "encoder.1:,encoder.head,head"),
        (TOWERS, ["decoder.0", "decoder.1", "head"], "decoder.:,head"),
    ],
)
def test_shortest_selector(names: list[str], chosen: list[str], selector: str) -> None:
    assert selector_of(chosen, names) == selector


def test_every_choice_is_read_back() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 8}
    stack = LayerStack(BertModel(BertConfig(num_hidden_layers=4, **sizes)))
    for size in range(1, len(stack) + 1):
        for chosen in itertools.combinations(stack.names, size):
            found = stack.select(selector_of(chosen, stack.names)).layers
            assert tuple(layer.name for layer in found) == chosen
