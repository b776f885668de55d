"""Adapters: base weights stay as PEFT froze them, adapters belong to their blocks, selectors work as without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compatibility_toys import Classifier, batches
from lightning.pytorch import Callback, LightningModule
from step_rates import StepRates
from tiny_models import block_of
from torch import nn
from toys import trainer, weights
from transformers import BertConfig, BertForSequenceClassification

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers.analysis.unused_copies import unused_copies

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

BLOCKS = 3
SIZES = {"hidden_size": 16, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"]),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], use_dora=True),
    "ia3": lambda: peft.IA3Config(
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
        modules_to_save=["classifier"],
    ),
}


def bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=16, **SIZES))


def adapted(name: str = "lora") -> Classifier:
    model = peft.get_peft_model(bert(), CONFIGS[name]())
    model.main_input_name = "input_ids"
    return Classifier(model)


class Watching(Callback):
    def __init__(self) -> None:
        self.trains: list[set[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.trains.append({n for n, p in pl_module.named_parameters() if p.requires_grad})


def blocks(names: set[str]) -> set[str]:
    return {block_of(name) for name in names}


@pytest.mark.parametrize("name", CONFIGS)
def test_gradual_unfreezing_of_adapters_never_trains_a_base_weight(name: str) -> None:
    module = adapted(name)
    given = {n for n, p in module.named_parameters() if p.requires_grad}
    before = weights(module)
    callback, watching = GradualUnfreezing(verbose=False), Watching()
    trainer(callback, watching, max_epochs=5).fit(module, batches())
    # No phase for the embeddings: nothing of theirs may train.
    assert [blocks(trains) for trains in watching.trains[::2]] == [
        {"head"},
        {"2", "head"},
        {"1", "2", "head"},
        {"0", "1", "2", "head"},
        {"0", "1", "2", "head"},
    ]
    assert all(trains <= given for trains in watching.trains)
    assert watching.trains[-1] == given
    changed = {n for n, v in weights(module).items() if not torch.equal(v, before[n])}
    assert changed <= given
    assert blocks(changed) == {"0", "1", "2", "head"}
    assert {n for n, p in module.named_parameters() if p.requires_grad} == given


def test_static_freezing_leaves_the_adapters_of_other_blocks() -> None:
    module = adapted()
    given = {n for n, p in module.named_parameters() if p.requires_grad}
    before, watching = weights(module), Watching()
    trainer(LayerFreezing("embeddings,:2", verbose=False), watching, max_epochs=2).fit(module, batches())
    assert watching.trains == [{n for n in given if block_of(n) in ("2", "head")}] * 4
    changed = {n for n, v in weights(module).items() if not torch.equal(v, before[n])}
    assert blocks(changed) == {"2", "head"}


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("selector", ["embeddings", "0", ":2", "-1", "head", "50%", "all"])
def test_selectors_name_the_same_layers_as_on_the_bare_model(name: str, selector: str) -> None:
    bare, ours = DiscriminativeLR(verbose=False), DiscriminativeLR(verbose=False)
    trainer(bare, fast_dev_run=True).fit(Classifier(bert()), batches())
    trainer(ours, fast_dev_run=True).fit(adapted(name), batches())
    assert bare.stack.names == ours.stack.names
    left, right = bare.stack.select(selector), ours.stack.select(selector)
    assert [layer.name for layer in left.layers] == [layer.name for layer in right.layers]
    names = {n.replace(".base_layer", "").split("base_model.model.")[-1] for n, _ in _named(right)}
    assert {n.removeprefix("model.") for n, _ in _named(left)} <= names | {
        n.replace(".original_module", "") for n in names
    }


def _named(selection: Any) -> list[tuple[str, nn.Parameter]]:
    return [pair for layer in selection.layers for pair in layer.named_parameters()]


def test_adapters_by_name() -> None:
    module, watching = adapted(), Watching()
    trainer(LayerFreezing("*lora_A*", verbose=False), watching, max_epochs=1).fit(module, batches())
    assert not any("lora_A" in n for n in watching.trains[0])
    assert any("lora_B" in n for n in watching.trains[0])


def test_unused_copies_are_neither_counted_nor_trained(capsys: pytest.CaptureFixture[str]) -> None:
    module = adapted()
    copies = unused_copies(module)
    original = module.model.base_model.model.classifier.original_module
    assert copies == set(original.parameters())
    trainer(GradualUnfreezing(), max_epochs=4).fit(module, batches())
    printed = capsys.readouterr().out.splitlines()
    total = sum(p.numel() for p in module.parameters() if p not in copies)
    head = sum(p.numel() for n, p in module.named_parameters() if block_of(n) == "head" and p not in copies)
    (first,) = [line for line in printed if line.split()[:1] == ["head"] and "trains" in line]
    assert first.split()[1:6] == [str(head), "trains", "2", "of", "4"]
    assert f"of {total / 1000:.1f}K parameters)" in next(line for line in printed if "phase 2" in line)
    assert unused_copies(bert()) == set()
    with module.model.disable_adapter():
        assert unused_copies(module) == set()


def test_layer_rates_of_adapters() -> None:
    rates: dict[str, float] = {}
    watch = StepRates()

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            def note(held: dict[nn.Parameter, float]) -> None:
                rates.update({n: held[p] for n, p in pl_module.named_parameters() if p.requires_grad})

            watch.begin(trainer.optimizers, note)

    trainer(DiscriminativeLR(0.5, verbose=False), Rates(), max_epochs=1).fit(adapted(), batches())
    depth = {"head": 0, "2": 1, "1": 2, "0": 3}
    assert rates == {n: pytest.approx(0.1 * 0.5 ** depth[block_of(n)]) for n in rates}
    assert blocks(set(rates)) == set(depth)


def test_a_phase_of_base_weights_alone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"embeddings.*frozen by the module itself, at construction"):
        trainer(GradualUnfreezing(EpochTrigger(1), start="embeddings", verbose=False)).fit(adapted(), batches())


def test_adapters_and_their_phases_resume(tmp_path: Any) -> None:
    class Saving(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def go(path: Any = None) -> dict[str, torch.Tensor]:
        module = adapted()
        module.model.eval()  # its dropout would differ after a resume
        extra = [] if path else [Saving()]
        trainer(GradualUnfreezing(warmup_steps=3, verbose=False), *extra, max_epochs=4).fit(
            module, batches(), ckpt_path=path
        )
        return weights(module)

    straight = go()
    for epoch in range(3):
        resumed = go(tmp_path / f"{epoch}.ckpt")
        assert all(torch.equal(straight[n], resumed[n]) for n in straight)
