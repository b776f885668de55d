"""A head at its random initialisation that nothing trains, and one rate for it and pre-trained layers."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from said import said
from torch import nn
from toys import fit, make
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.diagnostics.learning_rates.one_rate import is_too_high_for_both
from lightning_freeze.diagnostics.new_layers import fits_initialisation, new_layers
from lightning_freeze.module import TransformerModule

UNTRAINED, ONE_RATE = "random initialisation", "at the same rate as a newly initialised head"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pre-trained encoder on disk, whose head is that of another task."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 16}
    path = tmp_path_factory.mktemp("bert")
    BertForMaskedLM(BertConfig(num_hidden_layers=3, max_position_embeddings=16, **sizes)).save_pretrained(path)
    return str(path)


class Sentences(LightningModule):
    """A user's own module around a model with a head, on the token sequences of the toy's loader."""

    def __init__(self, model, lr=1e-4, optimizer=torch.optim.AdamW):
        super().__init__()
        self.model = model
        self.lr, self.optimizer = lr, optimizer

    def loss(self, tokens, labels):
        return self.model(input_ids=tokens, labels=labels).loss

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


class OwnHead(Sentences):
    """A bare encoder, with a linear layer of the user's own on top."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.head = nn.Linear(32, 2)

    def loss(self, tokens, labels):
        return nn.functional.cross_entropy(self.head(self.model(tokens).last_hidden_state.mean(1)), labels)


def classifier(folder, **options):
    torch.manual_seed(0)
    return Sentences(AutoModelForSequenceClassification.from_pretrained(folder), **options)


def own_head(folder, **options):
    torch.manual_seed(0)
    return OwnHead(AutoModel.from_pretrained(folder, add_pooling_layer=False), **options)


class Dicts(TransformerModule):
    """Takes the toy's batches, which are lists."""

    def training_step(self, batch, batch_idx):
        return super().training_step({"input_ids": batch[0], "labels": batch[1]}, batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step({"input_ids": batch[0], "labels": batch[1]}, batch_idx)


def packaged(folder, **options):
    torch.manual_seed(0)
    return Dicts(folder, num_classes=2, **options)


def pooled(folder, **options):
    return packaged(folder, pooling="mean", **options)


FREEZE_HEAD = {"layers": "head", "verbose": False}

# ---------------------------------------------------------------------------------------------------- the evidence


@pytest.mark.parametrize(
    ("make_weight", "make_bias", "spread", "fits"),
    [
        (lambda: torch.randn(4, 32) * 0.02, lambda: torch.zeros(4), 0.02, True),
        (lambda: torch.randn(4, 32) * 0.02, lambda: None, 0.02, True),
        (lambda: torch.randn(4, 32) * 0.02, lambda: torch.full((4,), 0.01), 0.02, False),
        (lambda: torch.randn(4, 32) * 0.04, lambda: torch.zeros(4), 0.02, False),
        (lambda: nn.Linear(32, 4).weight, lambda: nn.Linear(32, 4).bias, None, True),
        (lambda: torch.randn(4, 32), lambda: torch.zeros(4), None, False),
        (lambda: torch.zeros(4, 32), lambda: torch.zeros(4), None, False),
        (lambda: nn.Linear(2, 2).weight, lambda: nn.Linear(2, 2).bias, None, False),  # too few to tell
    ],
)
def test_values_of_an_initialisation(make_weight, make_bias, spread, fits):
    torch.manual_seed(0)
    assert fits_initialisation(make_weight(), make_bias(), spread) is fits


def test_new_layers_of_a_loaded_model(folder):
    assert [layer.name for layer in new_layers(classifier(folder))] == ["model.bert.pooler.dense", "model.classifier"]
    assert [layer.name for layer in new_layers(own_head(folder))] == ["head"]
    assert [layer.name for layer in new_layers(pooled(folder))] == ["model.classifier"]


def test_no_evidence_no_new_layers(folder, tmp_path):
    module = classifier(folder)
    assert new_layers(Sentences(type(module.model)(module.model.config))) == []  # nothing is pre-trained
    assert new_layers(make()) == []
    module.model.save_pretrained(tmp_path)
    assert new_layers(classifier(str(tmp_path))) == []  # the checkpoint has a head
    module.load_state_dict(copy.deepcopy(module.state_dict()))
    assert new_layers(module) == []
    module = own_head(folder)
    module.head.weight.data.copy_(nn.functional.normalize(torch.randn(2, 32)))  # prototypes, which no version shows
    assert new_layers(module) == []


# ------------------------------------------------------------------------------------------------ a frozen new head


def test_a_head_frozen_at_random(folder):
    (message,) = said(UNTRAINED, classifier(folder), LayerFreezing(**FREEZE_HEAD))
    assert message == (
        "model.classifier (layer head) is at its random initialisation, because no checkpoint has its weights, and "
        "LayerFreezing keeps it frozen for the whole run: the model learns only what passes through random weights. "
        "Let this layer train, or load weights for it."
    )


@pytest.mark.parametrize("build", [own_head, packaged, pooled])
def test_in_any_module(folder, build):
    assert len(said(UNTRAINED, build(folder), LayerFreezing(**FREEZE_HEAD))) == 1


def test_by_a_schedule_and_by_the_module_itself(folder):
    phases = [Phase("-1", EpochTrigger(1)), Phase(":")]
    assert len(said(UNTRAINED, classifier(folder), PhasedFineTuning(phases, verbose=False))) == 1
    module = own_head(folder)
    module.head.requires_grad_(False)
    (message,) = said(UNTRAINED, module, DiscriminativeLR(verbose=False))
    assert "and OwnHead keeps it frozen" in message


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("build", [classifier, own_head, packaged, pooled])
@pytest.mark.parametrize(
    "callback",
    [
        LayerFreezing("embeddings,:2", verbose=False),
        GradualUnfreezing(verbose=False),
        DiscriminativeLR(verbose=False),
        PhasedFineTuning([Phase("-1", EpochTrigger(1)), Phase("all")], verbose=False),  # the head trains later
    ],
)
def test_silent_where_the_head_trains(folder, build, callback):
    module = build(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings(
            "ignore", message=".*(in eval mode|validation_step|many workers|logging interval|LeafSpec).*"
        )
        fit(module, callback, max_epochs=5)


def test_silent_with_the_pooler_of_a_bare_encoder(folder):
    module = OwnHead(AutoModel.from_pretrained(folder))  # it has a pooler, which runs and is not used
    module.model.requires_grad_(False)
    assert said(UNTRAINED, module, LayerFreezing("embeddings", verbose=False)) == []
    module = classifier(folder)
    module.model.bert.requires_grad_(False)
    (message,) = said(UNTRAINED, module, LayerFreezing("embeddings", verbose=False))
    assert message.startswith("model.bert.pooler.dense (layer head) is at its random initialisation")


def test_silent_where_the_head_has_weights(folder, tmp_path):
    module = classifier(folder)
    fit(module, LayerFreezing("embeddings", verbose=False))
    module.model.save_pretrained(tmp_path)
    assert said(UNTRAINED, classifier(str(tmp_path)), LayerFreezing(**FREEZE_HEAD)) == []
    assert said(UNTRAINED, module, LayerFreezing(**FREEZE_HEAD)) == []  # trained in an earlier fit
    loaded = classifier(folder)
    loaded.load_state_dict(module.state_dict())
    assert said(UNTRAINED, loaded, LayerFreezing(**FREEZE_HEAD)) == []


def test_silent_where_the_new_layer_is_not_used(folder):
    class Bare(OwnHead):
        def loss(self, tokens, labels):
            hidden = self.model.bert(tokens).last_hidden_state.mean(1)
            return nn.functional.cross_entropy(self.head(hidden), labels)

    module = Bare(AutoModelForSequenceClassification.from_pretrained(folder))
    assert said(UNTRAINED, module, LayerFreezing("model.classifier.*", verbose=False)) == []


@pytest.mark.parametrize("build", [classifier, packaged])
def test_a_resumed_run_does_not_repeat_it(folder, build, tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    options = {"enable_checkpointing": True, "max_epochs": 1}
    assert len(said(UNTRAINED, build(folder), LayerFreezing(**FREEZE_HEAD), saving, **options)) == 1
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 2}
    assert said(UNTRAINED, build(folder), LayerFreezing(**FREEZE_HEAD), **resumed) == []


# --------------------------------------------------------------------------------------------------------- one rate


@pytest.mark.parametrize(
    ("pretrained", "new", "too_high"),
    [
        ([1e-3, 1e-3], [1e-3], True),
        ([5e-4], [5e-4], True),
        ([1e-4], [1e-4], False),
        ([1e-4], [1e-3], False),
        ([1e-3, 9e-4], [1e-3], False),
        ([], [1e-3], False),
        ([1e-3], [], False),
    ],
)
def test_the_decision(pretrained, new, too_high):
    assert is_too_high_for_both(pretrained, new) is too_high


PART = LayerFreezing("embeddings,:1", verbose=False)


def test_one_rate_for_pretrained_and_new_layers(folder):
    (message,) = said(ONE_RATE, classifier(folder, lr=1e-3), PART)
    assert message == (
        "The pre-trained layers 1, 2 train at the same rate as a newly initialised head, 0.001, which is usual for new "
        "layers and destroys pre-trained ones. Lower it to 5e-5 or so and give the head more "
        "(DiscriminativeLR(factors={'head': 10})), or train the head first (GradualUnfreezing())."
    )


def test_one_rate_after_a_warm_up(folder):
    module = packaged(folder, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3), warmup_ratio=0.5)
    assert len(said(ONE_RATE, module, PART)) == 1


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("build", [classifier, own_head])
@pytest.mark.parametrize(
    ("callback", "options"),
    [
        (PART, {"lr": 1e-4}),
        (PART, {"lr": 0.1, "optimizer": torch.optim.SGD}),  # rates of SGD cannot be compared with those of Adam
        (DiscriminativeLR(verbose=False), {"lr": 1e-3}),
        (DiscriminativeLR(factors={"head": 10}, verbose=False), {"lr": 1e-3}),
        (GradualUnfreezing(verbose=False), {"lr": 1e-3}),
        (LayerFreezing("embeddings,:", verbose=False), {"lr": 1e-3}),  # only the head trains
        (LayerFreezing("*.weight", verbose=False), {"lr": 1e-3}),  # biases alone
    ],
)
def test_silent_with_rates_that_suit(folder, build, callback, options):
    assert said(ONE_RATE, build(folder, **options), callback, max_epochs=5) == []


def test_silent_with_groups_of_the_users_own(folder):
    class Groups(Sentences):
        def configure_optimizers(self):
            model = self.model
            return torch.optim.AdamW(
                [{"params": model.bert.encoder.parameters()}, {"params": model.classifier.parameters(), "lr": 1e-2}],
                lr=1e-3,
            )

    module = Groups(AutoModelForSequenceClassification.from_pretrained(folder))
    assert said(ONE_RATE, module, LayerFreezing("embeddings", verbose=False)) == []


def test_silent_without_pretrained_layers(folder):
    model = classifier(folder).model
    assert said(ONE_RATE, Sentences(type(model)(model.config), lr=1e-3), PART) == []


def test_one_rate_is_not_repeated_by_a_resumed_run(folder, tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    options = {"enable_checkpointing": True, "max_epochs": 1}
    assert len(said(ONE_RATE, classifier(folder, lr=1e-3), PART, saving, **options)) == 1
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 2}
    assert said(ONE_RATE, classifier(folder, lr=1e-3), PART, **resumed) == []
