"""The table that the command line prints."""

from __future__ import annotations

from typing import Any

import pytest
from layer_models import CASES, ResNet
from networks import Distillation
from rich.console import Console
from torch import nn

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.table import layers_table
from lightning_freeze.layers.wording import percent, render
from lightning_freeze.report.layer_rows import LayerRow
from lightning_freeze.report.layer_table import layer_table
from lightning_freeze.schedule.triggers import Clock


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


class LongNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for part in ("encoder", "decoder"):
            blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2)])
            setattr(self, f"temporal_fusion_of_static_and_known_future_covariates_before_the_{part}", blocks)


@pytest.mark.parametrize("width", [80, 88])
@pytest.mark.parametrize("from_groups", [False, True])
def test_long_names_are_whole(width: int, from_groups: bool) -> None:
    module = LongNames()
    groups = {f"{name}_{i}": [f"{name}.{i}"] for name, _ in module.named_children() for i in range(2)}
    stack = LayerStack(module, groups=groups if from_groups else None)
    text = printed(stack, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    cells = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    column = "".join(row[1].strip() for row in cells)
    assert all(name in column for name in stack.names)
    modules = "".join(row[2].strip() for row in cells)
    assert all(prefix in modules for layer in stack for prefix in layer.prefixes)


@pytest.mark.parametrize("ended", [False, True])
def test_long_names_are_whole_in_the_table_of_a_run(ended: bool) -> None:
    names = [f"temporal_fusion_of_static_and_known_future_covariates_before_the_{part}.head" for part in ("a", "b")]
    rows = [LayerRow(name, 10**6, 3, i, (1e-5, 1e-3), Clock(2, 1000)) for i, name in enumerate(names)]
    text = layer_table(rows, ended)
    assert max(map(len, text.splitlines())) <= 88
    assert "…" not in text
    assert "1e-05 to 0.001" in text
    lines = text.splitlines()
    ends = next(line.index("parameters") for line in lines if "parameters" in line)
    column = "".join(line[:ends].split("  ")[1].strip() for line in lines[4:] if line[:ends].strip())
    assert all(name in column for name in names)


def test_a_network_that_takes_no_part_has_no_share() -> None:
    text = render(layers_table(LayerStack(Distillation("before"))))
    rows = {
        line.split("│")[1].strip(): line.split("│")[4].strip() for line in text.splitlines() if line.startswith("│")
    }
    assert all((share == "no part") == name.startswith("teacher") for name, share in rows.items())
    assert sum(float(share[:-1]) for share in rows.values() if share.endswith("%")) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (0.0000341, "<0.1%"), (0.00329, "0.3%"), (0.00949, "0.9%"), (0.01, "1%"), (0.244, "24%"), (1, "100%")],
)
def test_a_small_share_is_not_nothing(share: float, text: str) -> None:
    assert percent(share) == text
