"""What new weights norms get, and what refuses new weights that would never train."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from toys import fit, loader, make, moved, trainer, weights
from transformers import AutoModelForSequenceClassification, BertConfig, GemmaConfig, LlamaConfig

from lightning_freeze import (
    LISA,
    ChainThaw,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    ReinitTopLayers,
    SlimFit,
    SpectrumFreezing,
)
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.norm_identity import identity_weight

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
KEYS = {"num_key_value_heads": 1, "head_dim": 8, "num_labels": 2, "pad_token_id": 0}


class Pretrained(LightningModule):
    """A tiny model of transformers whose norms have been trained."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.model = AutoModelForSequenceClassification.from_config(config)
        for norm in self.norms():
            torch.nn.init.uniform_(norm.weight, 0.3, 0.6)

    def norms(self):
        return [module for module in self.model.modules() if "norm" in type(module).__name__.lower()]

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch[0], labels=batch[1]).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("config", "identity"),
    [(GemmaConfig(**SIZES, **KEYS), 0.0), (LlamaConfig(**SIZES, **KEYS), 1.0), (BertConfig(**SIZES), 1.0)],
    ids=["gemma", "llama", "bert"],
)
def test_new_norms_only_normalise(config, identity):
    module = Pretrained(config)
    trainer(ReinitTopLayers(1, verbose=False), max_epochs=1).fit(module, loader(1))
    named = dict(module.model.named_modules())
    top = [m for n, m in named.items() if ".1." in n and "norm" in type(m).__name__.lower()]
    assert len(top) == 2
    x = torch.randn(2, 3, 16)
    for norm in top:
        assert (norm.weight == identity).all()
        assert norm(x).pow(2).mean().sqrt().item() == pytest.approx(1.0, abs=0.01)
    assert all((norm.weight >= 0.3).all() for norm in module.norms() if norm not in top)


def test_a_probe_of_a_norm_leaves_no_trace():
    class Counting(torch.nn.BatchNorm2d):
        pass

    class NeedsMore(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, x, scale):
            return x * scale * self.weight

    norm = Counting(4)
    before, state = weights(norm), torch.get_rng_state()
    assert identity_weight(norm) == 1.0
    assert norm.training
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert identity_weight(NeedsMore()) == 1.0


def test_a_norm_without_numbers_yet_is_probed_too():
    with torch.device("meta"):
        module = Pretrained(GemmaConfig(**SIZES, **KEYS))
    assert [identity_weight(norm) for norm in module.norms()] == [0.0] * 5


@pytest.mark.parametrize(
    ("others", "layers", "keeper"),
    [
        (lambda: [LayerFreezing("100%", verbose=False)], "2, 3", "LayerFreezing"),
        (lambda: [LayerFreezing("3", verbose=False), LayerFreezing("0", verbose=False)], "3", "LayerFreezing"),
        (lambda: [PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("2,head")], verbose=False)], "3", "Phased"),
        (lambda: [LISA(1, layers=":3", verbose=False)], "3", "LISA"),
        (lambda: [SpectrumFreezing(25, verbose=False)], "3", "SpectrumFreezing"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_new_weights_that_would_never_train_are_refused(others, layers, keeper, order):
    callbacks = [*others(), ReinitTopLayers(2, verbose=False)][::order]
    with pytest.raises(ConfigurationError, match=f"random weights to .*{layers}.* and {keeper}.* frozen") as caught:
        fit(make(), *callbacks, max_epochs=2)
    assert "never be trained" in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        lambda: LayerFreezing("50%", verbose=False),
        lambda: GradualUnfreezing(verbose=False),
        lambda: ChainThaw(EpochTrigger(1), restore_best=False, verbose=False),
        lambda: LISA(1, interval=1, verbose=False),
        lambda: SlimFit(0.75, verbose=False),
        lambda: SpectrumFreezing(100, verbose=False),
        lambda: LayerFreezing("*.bias", verbose=False),
    ],
)
def test_new_weights_that_train_at_some_time_are_not_refused(other):
    module = make()
    before = weights(module)
    fit(module, other(), ReinitTopLayers(2, verbose=False), max_epochs=7, batches=1)
    assert {"2", "3"} <= moved(before, weights(module))


def test_a_second_fit_begins_with_new_weights_again():
    class AtStart(Callback):
        def on_train_start(self, trainer, pl_module):
            self.found = weights(pl_module)

    module, first, second = make(), AtStart(), AtStart()
    for at_start in (first, second):
        fit(module, ReinitTopLayers(1, verbose=False), at_start, max_epochs=1)
    name = "encoder.layers.3.linear.weight"
    assert torch.equal(first.found[name], second.found[name])
    assert not torch.equal(
        first.found["encoder.layers.2.linear.weight"], second.found["encoder.layers.2.linear.weight"]
    )
