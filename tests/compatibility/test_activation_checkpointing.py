"""Activation checkpointing over frozen layers: the same gradients as without it, or a refusal."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from compatibility_toys import Classifier, batches
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import Toy, fit, trainer, weights
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_freeze import DiscriminativeLR, EpochTrigger, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
DROPLESS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=16, **SIZES, **DROPLESS))


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    dropless = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2ForSequenceClassification(GPT2Config(vocab_size=32, pad_token_id=0, **sizes, **dropless))


def vit() -> nn.Module:
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SIZES, **DROPLESS))


MODELS = {"bert": (bert, "tokens"), "gpt2": (gpt2, "tokens"), "vit": (vit, "images")}


def checkpointed(model: nn.Module, reentrant: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that transformers has used so far
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    return model


def run(name: str, *callbacks: Callback, enable: bool | None = None, **options: Any) -> Classifier:
    build, kind = MODELS[name]
    torch.manual_seed(0)
    module = Classifier(build()).double()
    if enable is not None:
        checkpointed(module.model, enable)
    trainer(*callbacks, **{"max_epochs": 2, **options}).fit(module, DoubleLoader(kind))
    return module


class DoubleLoader:
    def __init__(self, kind: str) -> None:
        self.loader = batches(kind)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        for inputs, labels in self.loader:
            yield [inputs.double() if inputs.is_floating_point() else inputs, labels]


def schedules() -> dict[str, list[Callback]]:
    phases = [Phase("head", EpochTrigger(1)), Phase("1:,head")]
    return {
        "the embeddings": [LayerFreezing("embeddings", verbose=False)],
        "a prefix": [LayerFreezing("embeddings,:2", verbose=False)],
        "blocks only": [LayerFreezing(":2", verbose=False)],
        "phases": [PhasedFineTuning(phases, verbose=False)],
    }


@pytest.mark.fast_cases(7)
@pytest.mark.filterwarnings("ignore:LayerFreezing.'.2'. leaves embeddings trainable below")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("what", schedules())
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_no_weight_of_the_run(name: str, what: str, reentrant: bool) -> None:
    plain = run(name, *schedules()[what])
    ours = run(name, *schedules()[what], enable=reentrant)
    assert not any(ours.without)
    left, right = weights(plain), weights(ours)
    assert [n for n in left if not torch.allclose(left[n], right[n], rtol=0, atol=1e-12)] == []


class OutputGrads(Callback):
    """Whether the output of each block requires grad in the first batch."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        for block in pl_module.model.bert.encoder.layer:
            handle = block.register_forward_hook(self.note)
            pl_module.handles = [*getattr(pl_module, "handles", []), handle]

    def note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if torch.is_grad_enabled() and len(self.found) < 3:
            self.found.append(first.requires_grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_backward_stops_where_the_frozen_prefix_ends(reentrant: bool) -> None:
    grads = OutputGrads()
    run("bert", LayerFreezing("embeddings,:2", verbose=False), grads, enable=reentrant)
    assert grads.found == [False, False, True]


def test_after_the_fit_checkpointing_is_as_the_user_had_set_it() -> None:
    build, _ = MODELS["bert"]
    module = Classifier(checkpointed(build(), True))
    layer = module.model.bert.encoder.layer[0]
    given = layer._gradient_checkpointing_func

    class Looking(Callback):
        seen: Any = None

        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            self.seen = layer._gradient_checkpointing_func.keywords["use_reentrant"], module.model._require_grads_hooks

    looking = Looking()
    trainer(LayerFreezing("embeddings,:2", verbose=False), looking, max_epochs=1).fit(module, batches())
    assert looking.seen == (False, [])
    assert layer._gradient_checkpointing_func is given
    assert len(module.model._require_grads_hooks) == 1
    assert module.model.bert.embeddings(torch.zeros(1, 2, dtype=torch.long)).requires_grad


def test_without_freezing_the_users_checkpointing_is_left_alone() -> None:
    build, _ = MODELS["bert"]
    module = Classifier(checkpointed(build(), True))
    given = module.model.bert.encoder.layer[0]._gradient_checkpointing_func

    class Looking(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            assert pl_module.model.bert.encoder.layer[0]._gradient_checkpointing_func is given

    trainer(DiscriminativeLR(verbose=False), Looking(), max_epochs=1).fit(module, batches())
    assert not any(module.without)


def test_input_grads_without_checkpointing_are_the_users_and_are_named() -> None:
    module = Classifier(bert())
    module.model.enable_input_require_grads()
    with pytest.warns(UserWarning, match=r"enable_input_require_grads\(\) has been called on BertFor.*saves? little"):
        trainer(LayerFreezing("embeddings,:2", verbose=False), max_epochs=1).fit(module, batches())
    assert len(module.model._require_grads_hooks) == 1


def test_adapters_over_a_checkpointed_model() -> None:
    peft = pytest.importorskip("peft")

    def adapted(reentrant: bool | None) -> Classifier:
        torch.manual_seed(0)
        model = bert().double()
        if reentrant is not None:
            checkpointed(model, reentrant)
        config = peft.LoraConfig(
            r=2, target_modules=["query", "value"], modules_to_save=["classifier"], lora_dropout=0.0
        )
        module = Classifier(peft.get_peft_model(model, config).double())
        module.model.main_input_name = "input_ids"
        trainer(LayerFreezing("embeddings,:2", verbose=False), max_epochs=2).fit(module, DoubleLoader("tokens"))
        return module

    plain = weights(adapted(None))
    for reentrant in (False, True):
        ours = adapted(reentrant)
        assert not any(ours.without)
        assert [n for n, v in weights(ours).items() if not torch.allclose(v, plain[n], rtol=0, atol=1e-12)] == []


class Reentrant(Toy):
    """Checkpoints its blocks itself, in the reentrant form."""

    reentrant = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        encoder = self.encoder

        def forward(tokens: Tensor) -> Tensor:
            x = encoder.embeddings(tokens)
            for layer in encoder.layers:
                x = checkpoint(layer, x, use_reentrant=self.reentrant)
            return x.mean(dim=1)

        encoder.forward = forward


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_users_own_reentrant_checkpoint_behind_frozen_layers_is_refused(accumulated: int) -> None:
    module = Reentrant()
    before = weights(module)
    words = r"8 trainable parameters \(such as encoder\.layers\.2\.norm\.weight\) have no gradient.*use_reentrant=False"
    with pytest.raises(ConfigurationError, match=words):
        fit(module, LayerFreezing("embeddings,:2", verbose=False), accumulate_grad_batches=accumulated)
    assert all(torch.equal(before[name], value) for name, value in weights(module).items())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_it_is_refused_in_the_phase_in_which_it_goes_wrong() -> None:
    phases = [Phase("all", EpochTrigger(1)), Phase("3,head")]
    starts: list[int] = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            starts.append(trainer.global_step)

    with pytest.raises(ConfigurationError, match=r"4 trainable parameters \(such as encoder\.layers\.3"):
        fit(Reentrant(), PhasedFineTuning(phases, verbose=False), Steps())
    assert starts == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_a_users_own_checkpoint_that_loses_nothing_is_allowed() -> None:
    for layers in (":2", "embeddings,0,1,2,3"):  # the embeddings feed gradients in; nothing checkpointed trains
        fit(Reentrant(), LayerFreezing(layers, verbose=False))

    class NonReentrant(Reentrant):
        reentrant = False

    torch.manual_seed(0)
    plain = Toy()
    torch.manual_seed(0)
    ours = NonReentrant()
    for module in (plain, ours):
        fit(module, LayerFreezing("embeddings,:2", verbose=False))
    left, right = weights(plain), weights(ours)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_layer_that_a_batch_does_not_use_is_no_error() -> None:
    class Skipping(Reentrant):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(8, 2).double()

    fit(Skipping(), LayerFreezing(":2", verbose=False))


def test_torch_tells_of_reentrant_checkpoints_where_the_watch_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils.checkpoint as module

    original, seen = module.check_backward_validity, []
    monkeypatch.setattr(module, "check_backward_validity", lambda inputs: seen.append(inputs))
    linear = nn.Linear(2, 2)
    checkpoint(linear, torch.ones(1, 2), use_reentrant=True)
    checkpoint(linear, torch.ones(1, 2), use_reentrant=False)
    assert len(seen) == 1
    monkeypatch.undo()
    before = copy.copy(module.check_backward_validity)
    fit(Toy(), LayerFreezing("embeddings,:2", verbose=False), max_epochs=1)
    assert module.check_backward_validity is before is original
