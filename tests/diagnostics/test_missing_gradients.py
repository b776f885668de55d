"""Blocks that no gradient reaches are named, once in a fit; runs in which each block has its turn are silent."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from toys import Toy, fit, loader, make, trainer
from transformers import ReformerConfig, ReformerModel, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning, StepTrigger
from lightning_freeze.diagnostics.missing_gradients import MissingGradients


def said(module, *callbacks, **options):
    """The warnings about missing gradients in a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, *callbacks, **options)
    return [str(w.message) for w in caught if "no gradient has reached" in str(w.message)]


class Reversible(LightningModule):
    """Classifies with a Reformer, whose autograd function does not know of the blocks' parameters."""

    def __init__(self, depth=3):
        super().__init__()
        torch.manual_seed(0)
        config = ReformerConfig(
            attention_head_size=4,
            attn_layers=["local"] * depth,
            axial_pos_embds=False,
            feed_forward_size=8,
            hidden_size=8,
            is_decoder=False,
            local_attn_chunk_length=4,
            max_position_embeddings=16,
            num_attention_heads=2,
            vocab_size=16,
            hidden_dropout_prob=0.0,
        )
        self.model = ReformerModel(config)
        self.head = nn.Linear(16, 2)

    def training_step(self, batch, batch_idx):
        tokens = batch[0][:, :4]
        return nn.functional.cross_entropy(self.head(self.model(tokens).last_hidden_state.mean(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Partly(Toy):
    """Runs the blocks that ``runs`` says for a batch, and hides those that ``hidden`` names from autograd."""

    def __init__(self, runs=lambda step, index: True, hidden=(), **options):
        super().__init__(**options)
        self.runs, self.hidden, self.batches = runs, hidden, 0

    def forward(self, tokens):
        x = self.encoder.embeddings(tokens)
        for index, layer in enumerate(self.encoder.layers):
            if index in self.hidden:
                with torch.no_grad():
                    x = layer(x)
            elif self.runs(self.batches, index):
                x = layer(x)
        return self.classifier(x.mean(1))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.batches += 1
        return loss

    def validation_step(self, batch, batch_idx):
        pass


# ----------------------------------------------------------------------------------------------------------- it is said


def test_reversible_blocks_above_frozen_embeddings():
    module = Reversible()
    before = {name: value.clone() for name, value in module.model.encoder.layers.state_dict().items()}
    (message,) = said(module, LayerFreezing("embeddings", verbose=False), max_epochs=6)
    assert message == (
        "Layers 0 ... 2 shall train, but no gradient has reached them in 16 optimizer steps: the loss does not depend "
        "on them, or something hides them from autograd. That may be torch.no_grad, detach, reentrant activation "
        "checkpointing, or an autograd function of the model's own, such as Reformer's reversible layers, which train "
        "only while the embeddings do: unfreeze those too. Freeze what is not meant to train."
    )
    after = module.model.encoder.layers.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # it is as bad as it says


def test_only_the_blocks_that_should_train_are_named():
    (message,) = said(Reversible(), LayerFreezing("embeddings,:2", verbose=False), max_epochs=4)
    assert message.startswith("Layer 2 shall train, but no gradient has reached it in 16 optimizer steps: ")


def test_embeddings_that_train_bring_the_gradients():
    module = Reversible()
    assert said(module, LayerFreezing("model.encoder.layers.0.*.bias", verbose=False), max_epochs=5) == []
    assert all(any(p.grad is not None for p in layer.parameters()) for layer in module.model.encoder.layers)


def test_once_over_several_phases_and_callbacks():
    phases = [Phase("head", EpochTrigger(1)), Phase("2,head", EpochTrigger(5)), Phase("0:,head")]
    callbacks = [LayerFreezing("embeddings", verbose=False), PhasedFineTuning(phases, verbose=False)]
    (message,) = said(Reversible(), *callbacks, max_epochs=12)
    assert message.startswith("Layer 2 shall train")


@pytest.mark.slow
def test_each_phase_is_looked_at():
    phases = [Phase("all", EpochTrigger(5)), Phase("0:,head")]
    (message,) = said(Reversible(), PhasedFineTuning(phases, verbose=False), max_epochs=10)
    assert message.startswith("Layers 0 ... 2 shall train")


@pytest.mark.slow
def test_short_phases_and_short_fits_are_judged_at_their_end_if_nothing_at_all_arrived():
    schedule = [GradualUnfreezing(stop="0", verbose=False)]  # one block in 4 steps, two in 4, three in 4: none is proof
    assert said(Reversible(), *schedule, max_epochs=3, batches=4) == []
    (message,) = said(Reversible(depth=6), *schedule, max_epochs=6, batches=4)
    assert message.startswith("Layers 2 ... 5 shall train, but no gradient has reached them in 4 optimizer steps")
    (message,) = said(Reversible(depth=8), LayerFreezing("embeddings", verbose=False), max_epochs=1, batches=2)
    assert message.startswith("Layers 0 ... 7 shall train, but no gradient has reached them in 2 optimizer steps")
    assert said(Reversible(depth=8), LayerFreezing("embeddings", verbose=False), max_epochs=1, batches=1) == []


@pytest.mark.parametrize(
    ("hidden", "named"), [((3,), "Layers 0 ... 3"), ((1,), "Layers 0, 1"), ((0, 1, 2), "Layers 0 ... 2")]
)
def test_all_that_lies_below_no_grad(hidden, named):
    (message,) = said(Partly(hidden=hidden), LayerFreezing("embeddings", verbose=False), max_epochs=5)
    assert message.startswith(f"{named} shall train")


def test_a_block_that_is_never_used():
    module = Partly(runs=lambda step, index: index != 1)
    (message,) = said(module, LayerFreezing("embeddings", verbose=False), max_epochs=5)
    assert message.startswith("Layer 1 shall train")
    module = Partly(runs=lambda step, index: index != 1)
    assert said(module, LayerFreezing("embeddings,1", verbose=False), max_epochs=5) == []


def test_accumulated_batches_are_one_step():
    options = {"accumulate_grad_batches": 2, "max_epochs": 7}
    assert said(Partly(hidden=(3,)), LayerFreezing("embeddings", verbose=False), **options)[0].count("in 14") == 1
    assert (
        "in 16" in said(Partly(hidden=(3,)), LayerFreezing("embeddings", verbose=False), **options | {"batches": 6})[0]
    )


# ------------------------------------------------------------------------------------------------------------ it is not


@pytest.mark.parametrize(
    "runs",
    [
        lambda step, index: index != 0 or step >= 12,
        lambda step, index: (step + index) % 8 == 0,
        lambda step, index: torch.rand(()) < 0.5,
        lambda step, index: index < 3,  # the loss takes the hidden states below the last block
        lambda step, index: index < 2,
    ],
)
@pytest.mark.parametrize("epochs", [1, 6])
def test_blocks_that_are_left_out_now_and_then(runs, epochs):
    torch.manual_seed(0)
    assert said(Partly(runs), LayerFreezing("embeddings", verbose=False), max_epochs=epochs) == []


def test_layer_drop():
    class Speech(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
            convolutions = {"conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "num_conv_pos_embeddings": 4}
            options = {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "mask_time_prob": 0.0}
            config = Wav2Vec2Config(layerdrop=0.5, **sizes, **convolutions, **options)
            self.model = Wav2Vec2ForSequenceClassification(config)
            self.without = set()

        def training_step(self, batch, batch_idx):
            return self.model(torch.rand(4, 200), labels=batch[1]).loss

        def on_after_backward(self):
            blocks = enumerate(self.model.wav2vec2.encoder.layers)
            self.without |= {i for i, block in blocks if all(p.grad is None for p in block.parameters())}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Speech()
    assert said(module, LayerFreezing("embeddings", verbose=False), max_epochs=5) == []
    assert module.without == {0, 1, 2, 3}  # each has been dropped


def test_a_phase_of_the_head_alone():
    phases = [Phase("head", StepTrigger(18)), Phase("all")]
    assert said(make(), PhasedFineTuning(phases, verbose=False), max_epochs=9) == []
    assert said(Reversible(), LayerFreezing("embeddings,:", verbose=False), max_epochs=5) == []


def test_an_optimizer_that_seldom_steps():
    class Rarely(Toy):
        automatic_optimization = False

        def configure_optimizers(self):
            parts = (self.encoder, self.classifier)
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

        def training_step(self, batch, batch_idx):
            encoder, head = self.optimizers()
            x = self.encoder(batch[0])
            is_due = self.trainer.current_epoch == 7
            loss = nn.functional.cross_entropy(self.classifier(x if is_due else x.detach()), batch[1])
            self.manual_backward(loss)
            for optimizer in (encoder, head) if is_due else (head,):
                optimizer.step()
                optimizer.zero_grad()

    assert said(Rarely(), LayerFreezing("embeddings", verbose=False), max_epochs=8) == []
    assert said(Rarely(), LayerFreezing("embeddings", verbose=False), max_epochs=5) == []


@pytest.mark.parametrize("sees", [True, False])
def test_gradients_that_are_gone_before_the_step(sees):
    class Fused(Toy):
        """Takes each gradient during backward, as fused optimizers do; those of the head too unless ``sees``."""

        def __init__(self):
            super().__init__()

            def use(parameter):
                parameter.grad = None

            for name, parameter in self.named_parameters():
                if not (sees and name.startswith("classifier")):
                    parameter.register_post_accumulate_grad_hook(use)

    assert said(Fused(), LayerFreezing("embeddings", verbose=False), max_epochs=6) == []


# ---------------------------------------------------------------------------------------------------------------- price


def test_it_is_over_when_each_block_has_had_a_gradient(monkeypatch):
    looks = []
    original = MissingGradients._look
    monkeypatch.setattr(MissingGradients, "_look", lambda self, optimizer: looks.append(1) or original(self, optimizer))
    fit(make(), LayerFreezing("embeddings", verbose=False))
    assert len(looks) == 1
    looks.clear()
    fit(make(), GradualUnfreezing(start="3,head", layers_per_phase=2, verbose=False), max_epochs=6)
    assert len(looks) == 3
    looks.clear()
    with pytest.warns(UserWarning, match="no gradient has reached"):
        fit(Partly(hidden=(3,)), LayerFreezing("embeddings", verbose=False), max_epochs=9)
    assert len(looks) == 16


def test_nothing_is_warned_of_without_a_batch():
    the_trainer = trainer(LayerFreezing("embeddings", verbose=False), limit_train_batches=0)
    the_trainer.fit(make(), loader(), loader(2))
