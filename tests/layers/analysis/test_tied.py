"""Weights that several layers share: owned once, by the layer that uses them first, and the table says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compatibility_toys import Classifier, batches
from lightning.pytorch import Callback, LightningModule
from step_rates import StepRates
from torch import nn
from toys import Toy, fit, moved, trainer, weights
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {"vocab_size": 32, "max_position_embeddings": 16, **SIZES}


class LanguageModel(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(input_ids=batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.1)


def gpt2() -> nn.Module:
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=16, **tokens))


def bert() -> nn.Module:
    return BertForMaskedLM(BertConfig(**BERT))


TIED = {"gpt2": (gpt2, "model.transformer.wte.weight"), "bert": (bert, "model.bert.embeddings.word_embeddings.weight")}


class Watching(Callback):
    """What trains, how often each parameter stands in the optimizer, and the weights at each start of an epoch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.trains: list[bool] = []
        self.weights: list[torch.Tensor] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        held = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        assert len({id(p) for p in held}) == len(held) == len(list(pl_module.parameters()))
        self.weights.append(pl_module.get_parameter(self.name).detach().clone())

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.trains.append(pl_module.get_parameter(self.name).requires_grad)


@pytest.mark.parametrize("kind", TIED)
def test_a_tied_head_unfreezes_its_weights_with_the_embeddings(kind: str) -> None:
    build, name = TIED[kind]
    torch.manual_seed(0)
    module = LanguageModel(build())
    callback, watching = GradualUnfreezing(verbose=False), Watching(name)
    trainer(callback, DiscriminativeLR(0.5, verbose=False), watching, max_epochs=5).fit(module, batches())
    assert watching.trains == [False] * 8 + [True] * 2
    assert all(torch.equal(watching.weights[0], later) for later in watching.weights[1:])
    assert not torch.equal(watching.weights[0], module.get_parameter(name))
    owners = [layer.name for layer in callback.stack if module.get_parameter(name) in set(layer.parameters())]
    assert owners == ["embeddings"]
    assert callback.stack.layer_of(module.model.get_output_embeddings().weight) is callback.stack["embeddings"]


def test_freezing_the_head_leaves_the_weights_that_the_embeddings_own() -> None:
    module = LanguageModel(gpt2())
    before = weights(module)
    trainer(LayerFreezing("head", verbose=False), max_epochs=1).fit(module, batches())
    after = weights(module)
    assert not torch.equal(before["model.lm_head.weight"], after["model.lm_head.weight"])
    assert torch.equal(before["model.transformer.ln_f.weight"], after["model.transformer.ln_f.weight"])


@pytest.mark.parametrize("kind", TIED)
def test_the_table_says_what_is_shared(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, name = TIED[kind]
    trainer(LayerFreezing("embeddings", verbose=True), max_epochs=1).fit(LanguageModel(build()), batches())
    printed = capsys.readouterr().out
    assert printed.count("head shares weights with embeddings: ") == 1
    assert f"is {name}" in printed
    trainer(LayerFreezing("embeddings", verbose=True), max_epochs=1).fit(LanguageModel(build()), batches())
    assert "shares weights" not in capsys.readouterr().out  # once, also where many are fitted


def test_albert_has_one_block_that_is_frozen_for_all_passes_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = AlbertConfig(embedding_size=16, classifier_dropout_prob=0.0, **BERT)
    module = Classifier(AlbertForSequenceClassification(config))
    before = weights(module)
    callback = PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("0,head")])
    rates: list[dict[str, float]] = []
    step_rates = StepRates()

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *args: Any) -> None:
            step_rates.begin(
                trainer.optimizers,
                lambda found: rates.append(
                    {layer.name: found[p] for layer in callback.stack for p in layer.parameters()}
                ),
            )

    trainer(callback, DiscriminativeLR(0.5, verbose=False), Rates(), max_epochs=2).fit(module, batches())
    assert callback.stack.names == ["embeddings", "0", "head"]
    assert "0: one block, shared by 3 passes; it is frozen for all of them or none" in capsys.readouterr().out
    assert rates[-1] == {"embeddings": 0.025, "0": 0.05, "head": 0.1}
    changed = {n for n, v in weights(module).items() if not torch.equal(v, before[n])}
    assert all("embeddings." not in n for n in changed)
    assert any("albert_layer_groups" in n for n in changed)


def test_a_weight_that_the_head_takes_from_a_block_is_frozen_with_the_block() -> None:
    class Shared(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Linear(8, 8).double()
            self.again.weight = self.encoder.layers[3].linear.weight

        def forward(self, tokens: Any) -> Any:
            return self.classifier(torch.tanh(self.again(self.encoder(tokens))))

    torch.manual_seed(0)
    module = Shared()
    before = weights(module)
    callback = LayerFreezing("embeddings,:", verbose=False)
    fit(module, callback)
    assert moved(before, weights(module)) == {"head"}
    assert torch.equal(before["again.weight"], module.again.weight)
    assert not torch.equal(before["again.bias"], module.again.bias)
    assert [(tie.layer, tie.used_by) for tie in callback.stack.ties] == [("3", "head")]


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(32, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(3))
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embeddings.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embeddings(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def test_phases_that_differ_in_a_tied_weight_only_are_refused_with_the_reason() -> None:
    phases = [Phase("embeddings", EpochTrigger(1)), Phase("embeddings,head")]
    message = (
        r"merge them\. Layer head has no weights of its own here: .*head\.weight is tied to .*embeddings\.weight of"
    )
    with pytest.raises(ConfigurationError, match=message):
        trainer(PhasedFineTuning(phases, verbose=False), max_epochs=1).fit(Classifier(TiedHead()), batches())
