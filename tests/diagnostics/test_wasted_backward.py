"""The common mistake is named at the start of a run, once, with what to write instead; correct runs are silent."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from toys import fit, make
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning, PlateauTrigger
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.backward_extent import backward_leaks


def said(module, *callbacks, **options):
    """The warnings about lost savings in a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, *callbacks, **options)
    return [str(w.message) for w in caught if "backward" in str(w.message)]


class Sentences(LightningModule):
    """A model of transformers on the token sequences of the toy's loader."""

    def __init__(self, model, language=False):
        super().__init__()
        self.model = model
        self.language = language

    def training_step(self, batch, batch_idx):
        tokens, labels = batch
        return self.model(input_ids=tokens, labels=tokens if self.language else labels).loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def bert():
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 16}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=3, **settings))


def test_the_mistake_is_named_with_the_fix_and_the_fix_is_right():
    (message,) = said(make(), LayerFreezing(":2", verbose=False))
    assert message == (
        "LayerFreezing(':2') leaves embeddings trainable below 2 frozen blocks: backward still runs through all of "
        "them, and most of the saving is lost. Freeze them too: LayerFreezing('embeddings,:2')."
    )
    assert said(make(), LayerFreezing("embeddings,:2", verbose=False)) == []


@pytest.mark.parametrize(
    ("selector", "fixed", "what", "count"),
    [
        (":", "embeddings,:", "embeddings", "4 frozen blocks"),
        ("0", "embeddings,0", "embeddings", "1 frozen block: backward still runs through it,"),
        ("0,2", "embeddings,0,2", "embeddings", "1 frozen block:"),
        ("encoder.layers.0.*,1", "embeddings,encoder.layers.0.*,1", "embeddings", "2 frozen blocks"),
    ],
)
def test_other_ways_to_write_it(selector, fixed, what, count):
    (message,) = said(make(), LayerFreezing(selector, verbose=False), max_epochs=1)
    assert f"leaves {what} trainable below {count}" in message
    assert f"LayerFreezing({fixed!r})" in message
    assert said(make(), LayerFreezing(fixed, verbose=False), max_epochs=1) == []


def test_parameters_that_a_glob_left_out_are_named():
    selector = "model.bert.embeddings.*.weight,:2"
    (message,) = said(Sentences(bert()), LayerFreezing(selector, verbose=False), max_epochs=1)
    assert "leaves model.bert.embeddings.LayerNorm.bias trainable below 2 frozen blocks" in message
    assert "Freeze it too: LayerFreezing('embeddings,:2')." in message


@pytest.mark.parametrize(
    "selector",
    [
        "embeddings",
        "embeddings,0",
        "head",
        "1:3",
        "embeddings,1",
        "*.bias",
        "*.weight",
        ":,head",
        "embeddings,:",
        "50%",
    ],
)
def test_intended_leaks_cause_no_warning(selector):
    assert said(make(), LayerFreezing(selector, verbose=False), max_epochs=1) == []


def test_two_callbacks_that_freeze_it_together_are_right():
    assert said(make(), LayerFreezing(":2", verbose=False), LayerFreezing("embeddings", verbose=False)) == []


def test_two_callbacks_that_are_both_wrong_are_warned_of_once():
    assert len(said(make(), LayerFreezing(":1", verbose=False), LayerFreezing("1", verbose=False))) == 1


def test_embeddings_that_the_module_froze_itself_are_right():
    module = make()
    module.encoder.embeddings.requires_grad_(False)
    assert said(module, LayerFreezing(":2", verbose=False)) == []


def test_blocks_that_the_module_froze_itself_cause_no_warning():
    module = make()
    module.encoder.layers[:3].requires_grad_(False)
    assert said(module, LayerFreezing(":2", verbose=False)) == []


def test_what_no_gradient_reaches_is_not_warned_of():
    class Detached(type(make())):
        def forward(self, tokens):
            with torch.no_grad():
                x = self.encoder.embeddings(tokens)
            for layer in self.encoder.layers:
                x = layer(x)
            return self.classifier(x.mean(dim=1))

    assert backward_leaks(LayerStack(Detached()), LayerStack(Detached()).select("all").parameters) == []
    assert said(Detached(), LayerFreezing(":2", verbose=False)) == []


def test_a_tied_head_is_pointed_out():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0))
    (message,) = said(Sentences(model, language=True), LayerFreezing(":2", verbose=False), max_epochs=1)
    assert message.endswith("model.lm_head.weight is the same weight, and then frozen with it.")


def test_layers_in_no_group_are_named_once_they_have_been_seen_to_matter():
    groups = {"low": ["encoder.layers.0"], "high": ["encoder.layers.3"]}
    (message,) = said(make(), LayerFreezing("low", groups=groups, verbose=False), max_epochs=1)
    assert "encoder.embeddings.weight trainable below 1 frozen block" in message
    assert "in no group" in message
    (message,) = said(make(), GradualUnfreezing(groups=groups, verbose=False), max_epochs=2)
    assert message.startswith("Phase 1 of 2 of GradualUnfreezing (train='high') trains encoder.embeddings.weight below")
    assert "in no group" in message
    groups = {"embeddings": "encoder.embeddings", "low": ["encoder.layers.0"], "high": ["encoder.layers.3"]}
    (message,) = said(make(), LayerFreezing("low", groups=groups, verbose=False), max_epochs=1)
    assert "LayerFreezing('embeddings,low')" in message
    assert said(make(), LayerFreezing("embeddings,low", groups=groups, verbose=False), max_epochs=1) == []


# ------------------------------------------------------------------------------------------------------------- phases


@pytest.mark.parametrize(
    "callbacks",
    [
        [GradualUnfreezing(verbose=False)],
        [GradualUnfreezing(layers_per_phase=2, stop="1", verbose=False)],
        [GradualUnfreezing(verbose=False), LayerFreezing("embeddings,:2", verbose=False)],
        [
            PhasedFineTuning(
                [Phase("head", EpochTrigger(1)), Phase("2:,head", EpochTrigger(1)), Phase("all")], verbose=False
            )
        ],
        [
            PhasedFineTuning(
                [Phase("embeddings", EpochTrigger(1)), Phase("0", EpochTrigger(1)), Phase("1")], verbose=False
            )
        ],
        [PhasedFineTuning([Phase("embeddings,head", EpochTrigger(1)), Phase("*.bias")], verbose=False)],
        [PhasedFineTuning([Phase("50%", EpochTrigger(1)), Phase("all")], verbose=False)],
    ],
)
def test_right_schedules_are_silent(callbacks):
    assert said(make(), *callbacks, max_epochs=7) == []


def test_a_later_phase_is_named_before_it_begins():
    phases = [
        Phase("head", EpochTrigger(1)),
        Phase("embeddings,2:,head", EpochTrigger(50)),
        Phase("embeddings,1:,head"),
    ]
    (message,) = said(make(), PhasedFineTuning(phases, verbose=False), max_epochs=1)
    assert message == (
        "Phase 2 of 3 of PhasedFineTuning (train='embeddings,2:,head') trains embeddings below 2 frozen blocks: "
        "backward still runs through all of them, and most of the saving is lost. Leave them out: "
        "train='2:,head'. The same holds for phase 3."
    )
    right = [Phase("head", EpochTrigger(1)), Phase("2:,head", EpochTrigger(50)), Phase("1:,head")]
    assert said(make(), PhasedFineTuning(right, verbose=False), max_epochs=1) == []


def test_a_static_freeze_below_a_schedule_that_ends_with_the_embeddings():
    callbacks = [LayerFreezing(":2", verbose=False), GradualUnfreezing(verbose=False)]
    (message,) = said(make(), *callbacks, max_epochs=5)
    assert message.startswith("Phase 4 of 4 of GradualUnfreezing")
    assert message.endswith("Freeze them too: LayerFreezing('embeddings,:2').")


def test_a_resumed_run_does_not_repeat_what_is_over(tmp_path):
    def schedule():
        phases = [Phase("embeddings,2:,head", EpochTrigger(1)), Phase("all", PlateauTrigger("scripted")), Phase("head")]
        return PhasedFineTuning(phases, verbose=False)

    values = [1.0] * 9
    with pytest.warns(UserWarning, match="Phase 1 of 3"):
        fit(make(values=values), schedule(), max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    assert said(make(values=values), schedule(), max_epochs=3, ckpt_path=tmp_path / "two.ckpt") == []


# -------------------------------------------------------------------------------------------------------- watched pass


class Speech(LightningModule):
    """A stem that asks for gradients of its input in train mode, as the speech encoders of transformers do."""

    class Extractor(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 8)
            self._requires_grad = True

        def forward(self, x):
            x = x[:, None].float() * 1.0
            if self._requires_grad and self.training:
                x.requires_grad = True
            return self.linear(x)

    def __init__(self):
        super().__init__()
        self.embeddings = self.Extractor()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        x = self.embeddings(batch[0])
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.head(x.mean(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_input_gradients_that_only_train_mode_asks_for():
    assert said(Speech(), LayerFreezing("embeddings,:2", verbose=False), max_epochs=1) == []
    selector = LayerFreezing("embeddings,:2", frozen_eval=False, verbose=False)
    (message,) = said(Speech(), selector, max_epochs=1)
    assert "embeddings makes its own input require grad while it is in train mode" in message
    assert "backward runs through 0, 1 although frozen" in message
    assert message.endswith("Leave out frozen_eval=False.")


def test_nothing_is_left_on_the_module_after_the_first_batch():
    module = make()
    hooked = []

    class Counting(type(make())):
        def training_step(self, batch, batch_idx):
            hooked.append(sum(len(m._forward_hooks) for m in self.modules()))
            return super().training_step(batch, batch_idx)

    module = Counting()
    fit(module, LayerFreezing("embeddings,:2", verbose=False), max_epochs=2)
    assert hooked == [3] + [0] * 7


def test_nothing_is_left_on_the_module_after_an_exception():
    class Failing(type(make())):
        def on_before_backward(self, loss):
            raise RuntimeError("boom")

        def training_step(self, batch, batch_idx):
            assert any(m._forward_hooks for m in self.modules())
            raise RuntimeError("boom")

    module = Failing()
    with pytest.raises(RuntimeError, match="boom"):
        fit(module, LayerFreezing("embeddings,:2", verbose=False))
    assert not any(m._forward_hooks for m in module.modules())


def test_watching_changes_no_weight():
    module, watched = make(), make()
    module.encoder.embeddings.requires_grad_(False)
    module.encoder.layers[:2].requires_grad_(False)
    fit(module)
    fit(watched, LayerFreezing("embeddings,:2", verbose=False))
    left, right = module.state_dict(), watched.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_a_compiled_model_is_judged_by_its_structure():
    module = make()
    module.encoder.compile(backend="eager")
    (message,) = said(module, LayerFreezing(":2", verbose=False), max_epochs=1)
    assert "LayerFreezing('embeddings,:2')" in message


def test_the_run_says_what_is_not_still(capsys):
    fit(make(dropout=0.5), LayerFreezing("embeddings,:2", frozen_eval=False), max_epochs=1)
    assert "Not still in frozen 0, 1: dropout, in train mode." in capsys.readouterr().out.splitlines()
    fit(make(dropout=0.5), LayerFreezing("embeddings,:2"), max_epochs=1)
    assert "Not still" not in capsys.readouterr().out
