"""Unsupported set-ups are refused before the first batch, on all ranks, with an alternative; others work."""

from types import SimpleNamespace

import pytest
import torch
from distributed_processes import are_identical, largest_difference, load, run_script
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from support_script import CHECKPOINTS, REFUSED
from torch import nn
from toys import fit, make, moved, trainer, weights

from lightning_freeze import DiscriminativeLR, GradualUnfreezing, LayerFreezing
from lightning_freeze.distributed import check_strategy, mean_over_ranks
from lightning_freeze.errors import ConfigurationError

TOLD = {
    "nothing trains": ("Nothing is left to train",),
    "idle phase": ("Phase 1 of PhasedFineTuning (head) would train nothing", "frozen by LayerFreezing"),
    "missing metric": ("'val_los'", "has not logged", "Did you mean 'val_loss'?"),
    "power sgd": ("GradualUnfreezing cannot run with the PowerSGD", "fp16_compress_hook"),
    "partly sharded": ("encoder.embeddings.weight is not sharded", "Call fully_shard(self) last"),
    "fsdp, phases": ("GradualUnfreezing cannot run under OnCPU", "ModelParallelStrategy"),
    "fsdp, rates": ("DiscriminativeLR cannot run under OnCPU", "ModelParallelStrategy"),
    **{f"{name}, other groups": ("1 parameter groups", "this run 2") for name in CHECKPOINTS},
    **{f"{name}, other callbacks": "nothing" for name in CHECKPOINTS},
}


@pytest.mark.slow
def test_every_rank_is_told_and_static_freezing_works(tmp_path):
    run_script("support_script.py", tmp_path)
    assert TOLD.keys() >= REFUSED.keys()
    for name, words in TOLD.items():
        messages = {(tmp_path / f"{name}-{rank}.txt").read_text() for rank in (0, 1)}
        assert len(messages) == 1, name
        message = messages.pop()
        if words == "nothing":
            assert message == words, message
            continue
        assert message.startswith("ConfigurationError: ") and all(word in message for word in words), message

    alone = load(tmp_path, "static", "alone")["weights"]
    frozen = {name for name in alone if name.startswith(("encoder.embeddings", "encoder.layers.0", "encoder.layers.1"))}
    zero = [load(tmp_path, "zero", rank)["weights"] for rank in (0, 1)]
    assert are_identical(*zero) and largest_difference(zero[0], alone) < 1e-12
    alone_scaled = load(tmp_path, "zero scaled", "alone")["weights"]
    scaled = [load(tmp_path, "zero scaled", rank)["weights"] for rank in (0, 1)]
    assert are_identical(*scaled) and largest_difference(scaled[0], alone_scaled) < 1e-12
    # Lightning's FSDP computes in single precision. One that did not synchronise would be off by 1e-2.
    fsdp = [load(tmp_path, "fsdp gathered", rank)["weights"] for rank in (0, 1)]
    assert are_identical(*fsdp) and largest_difference(fsdp[0], alone) < 2e-6
    begun = load(tmp_path, "static", "alone")["begun"]
    assert all(zero[0][name].equal(begun[name]) for name in frozen)
    assert all(fsdp[0][name].equal(begun[name].float().to(fsdp[0][name].dtype)) for name in frozen)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Wrapping(SingleDeviceStrategy):
    def setup(self, trainer):
        super().setup(trainer)
        self.model = Wrapper(self.model)


@pytest.mark.parametrize("callback", [GradualUnfreezing, DiscriminativeLR])
def test_an_unknown_wrapper_is_refused(callback):
    with pytest.raises(ConfigurationError, match=r"Wrapping: it wraps the model in Wrapper.* ModelParallelStrategy"):
        fit(make(), callback(verbose=False), strategy=Wrapping(torch.device("cpu")))


def test_static_freezing_goes_with_an_unknown_wrapper():
    module = make()
    before = weights(module)
    fit(module, LayerFreezing("embeddings,:2", verbose=False), strategy=Wrapping(torch.device("cpu")))
    assert moved(before, weights(module)) == {"2", "3", "head"}


class Converting(Precision):
    """Replaces linear layers by its own, as the plugins for 8-bit numbers do."""

    def convert_module(self, module):
        for block in module.encoder.layers:
            converted = nn.Linear(8, 8, dtype=torch.float64)
            converted.load_state_dict(block.linear.state_dict())
            block.linear = converted
        return module


@pytest.mark.parametrize(
    "callback", [LayerFreezing("0", verbose=False), GradualUnfreezing(verbose=False), DiscriminativeLR(verbose=False)]
)
def test_parameters_that_are_replaced_after_they_are_frozen_are_refused(callback):
    with pytest.raises(ConfigurationError, match=r"encoder.layers.0.linear.weight has been replaced.*init_module"):
        fit(make(), callback, plugins=[Converting()])


def test_parameters_that_are_replaced_but_not_frozen_are_not_refused():
    fit(make(), LayerFreezing("embeddings", verbose=False), plugins=[Converting()])


def test_deepspeed_is_refused_before_it_wraps():
    # It cannot be made where the package of that name is not installed.
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    with pytest.raises(ConfigurationError, match=r"GradualUnfreezing cannot run under DeepSpeedStrategy.*fully_shard"):
        check_strategy(["GradualUnfreezing"], SimpleNamespace(strategy=strategy))
    check_strategy([], SimpleNamespace(strategy=strategy))


def test_the_mean_over_one_rank_is_its_value():
    assert mean_over_ranks(trainer(), torch.tensor(0.1, dtype=torch.float64)) == 0.1
    assert mean_over_ranks(trainer(), torch.tensor([1, 2])) == 1.5
    assert mean_over_ranks(trainer(), None) is None
