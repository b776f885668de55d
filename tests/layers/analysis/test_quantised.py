"""Weights that are no floating-point parameters: never made to require grad, and no gradient is lost in them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from toys import Toy, fit, make, moved, weights

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError


class Int8Linear(nn.Module):
    """As libraries for training over quantised weights have it: an integer parameter, and buffers with its scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_buffer("used", torch.zeros((), dtype=torch.int64))
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        self.used += self.training
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def over_int8(**options: Any) -> Toy:
    module = make(**options)
    for block in module.encoder.layers:
        block.linear = Int8Linear(block.linear)
    return module


def dynamic(linear: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)[0]


def over_dynamic(*blocks: int) -> Toy:
    module = make().float()
    for block in blocks:
        module.encoder.layers[block].linear = dynamic(module.encoder.layers[block].linear)
    return module


def adamw(module: nn.Module) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def trainable(module: nn.Module) -> Any:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("make_optimizers", [adamw, trainable])
def test_gradual_unfreezing_over_integer_weights(make_optimizers: Any) -> None:
    module = over_int8(make_optimizers=make_optimizers)
    before = weights(module)
    seen: list[set[str]] = []

    class Watching(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            seen.append({n for n, p in pl_module.named_parameters() if p.requires_grad})

    callbacks = [GradualUnfreezing(warmup_steps=2, verbose=False), DiscriminativeLR(0.5, verbose=False), Watching()]
    fit(module, *callbacks, max_epochs=6)
    floats = {n for n, p in module.named_parameters() if p.is_floating_point()}
    assert seen[-1] == floats
    assert not any(n.endswith("linear.weight") for names in seen for n in names)
    after = weights(module)
    assert {n for n in before if not torch.equal(before[n], after[n])} == floats | {
        f"encoder.layers.{i}.linear.used" for i in range(4)
    }
    # Frozen layers are in eval mode: their counters stand still until they unfreeze.
    assert [int(module.encoder.layers[i].linear.used) for i in range(4)] == [8, 12, 16, 20]


def test_a_block_of_integer_weights_alone_can_be_frozen_and_says_so_when_it_should_train() -> None:
    module = over_int8()
    before = weights(module)
    fit(module, LayerFreezing("embeddings,:2", verbose=False), max_epochs=2)
    assert moved(before, weights(module)) == {"2", "3", "head"}
    module = make()
    for block in module.encoder.layers:
        for parameter in block.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(torch.int8)
    phases = [Phase("head", EpochTrigger(1)), Phase("1")]
    with pytest.raises(ConfigurationError, match=r"Phase 2 .*would train nothing.*frozen by the module itself"):
        fit(module, PhasedFineTuning(phases, verbose=False))


@pytest.mark.parametrize("layers", ["embeddings,:2", "embeddings,:3"])
def test_dynamically_quantised_layers_stay_frozen_below_what_trains(layers: str) -> None:
    module = over_dynamic(0, 1)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    packed = module.encoder.layers[0].linear.weight().clone()
    fit(module, LayerFreezing(layers, verbose=False), max_epochs=2)
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[2] for n in changed if n.startswith("encoder")} == ({"2", "3"} if "2" in layers else {"3"})
    assert torch.equal(packed.dequantize(), module.encoder.layers[0].linear.weight().dequantize())


@pytest.mark.parametrize(
    "callback",
    [
        LayerFreezing("embeddings,0", verbose=False),
        GradualUnfreezing(verbose=False),
        GradualUnfreezing(stop="1", verbose=False),
    ],
    ids=["a block itself", "in a later phase", "down to the block"],
)
def test_what_lies_below_weights_that_pass_no_gradient_on_is_refused(callback: Callback) -> None:
    words = r"encoder\.layers\.1\.linear is quantised, and no gradient passes.*LayerFreezing\('embeddings,0,1'\)"
    module = over_dynamic(1)
    with pytest.raises(ConfigurationError, match=words):
        fit(module, callback, max_epochs=6)
    assert all(p.requires_grad for p in module.parameters())


def test_the_way_out_that_the_refusal_names_works() -> None:
    module = over_dynamic(1)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    fit(module, GradualUnfreezing(verbose=False), LayerFreezing("embeddings,0,1", verbose=False), max_epochs=6)
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[2] for n in changed if n.startswith("encoder")} == {"2", "3"}


def test_torch_passes_no_gradient_through_dynamically_quantised_layers() -> None:
    module = over_dynamic(1)
    tokens = torch.arange(5)[None]
    module(tokens).sum().backward()
    assert module.encoder.layers[1].norm.weight.grad is None
    assert module.encoder.layers[2].norm.weight.grad is not None
