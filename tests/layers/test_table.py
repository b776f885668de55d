"""The table that the command line prints."""

from __future__ import annotations

from typing import Any

import pytest
from layer_models import CASES, ResNet
from rich.console import Console

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.table import layers_table


def printed(stack: LayerStack, width: int = 80) -> str:
    console = Console(width=width, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(layers_table(stack))
    return capture.get()


def test_one_row_for_each_layer() -> None:
    stack = LayerStack(CASES["bert-classifier"].build())
    text = printed(stack)
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert rows == stack.names
    assert f"{stack['0'].numel:,}" in text
    assert "bert.encoder.layer.3" in text
    assert "classifier" in text


def test_shares_add_up() -> None:
    table: Any = layers_table(LayerStack(CASES["gpt2-lm-tied"].build()))
    shares = [float(cell.rstrip("%")) for cell in table.columns[3].cells]
    assert sum(shares) == pytest.approx(100, abs=0.4)


@pytest.mark.parametrize("name", CASES)
def test_fits_eighty_columns(name: str) -> None:
    text = printed(LayerStack(CASES[name].build()))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_shared_blocks_and_tied_weights_are_said() -> None:
    assert "0 (x12)" in printed(LayerStack(CASES["albert"].build()))
    assert "one block, shared by 12 passes" in printed(LayerStack(CASES["albert"].build()))
    assert "head shares weights with embeddings" in printed(LayerStack(CASES["gpt2-lm-tied"].build()))


def test_what_no_layer_holds_has_a_row() -> None:
    assert "(in no layer)" in printed(LayerStack(ResNet(), groups={"body": ["layer1", "layer2"]}))


def test_what_keeps_backward_running_and_what_is_not_still_is_said_below_the_table() -> None:
    stack = LayerStack(CASES["wav2vec2"].build().train())
    for parameter in stack.select(":2").parameters:
        parameter.requires_grad_(False)
    text = printed(stack)
    assert max(map(len, text.splitlines())) <= 80
    assert "backward runs through frozen 0, 1: embeddings below trains" in " ".join(text.split())
    assert "not still in frozen 0, 1: layer drop (0.1), which follows the mode of wav2vec2.encoder" in " ".join(
        text.split()
    )
    assert "not still in frozen 0, 1: dropout, in train mode" in " ".join(text.split())
    for parameter in stack.module.parameters():
        parameter.requires_grad_(True)
    assert "frozen" not in printed(stack)
