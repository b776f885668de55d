from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from plan.projects import BATCH, Classifier, fit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_freeze import FrozenPrefixCache, GradualUnfreezing, LayerFreezing, plan_training


class SharesModules(Classifier):
    """Two names for the same block, and for the same normalisation."""

    def __init__(self) -> None:
        super().__init__()
        layers = self.model.bert.encoder.layer
        layers[1] = layers[0]
        layers[2].output.LayerNorm = layers[0].output.LayerNorm


class Recurrent(Classifier):
    """PyTorch's recurrent layers keep their parameters in a list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 2, batch_first=True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        output = self.model(**batch)
        return output.loss + self.lstm(output.logits[None])[0].mean()


class Reentrant(Classifier):
    """Reentrant activation checkpointing runs the module again in the backward pass."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.model.bert.embeddings(batch["input_ids"])
        for layer in self.model.bert.encoder.layer:
            hidden = checkpoint(lambda x, run=layer: run(x), hidden, use_reentrant=True)
        loss: Tensor = self.model.classifier(hidden[:, 0]).mean()
        return loss


class KeepsItsOptimizer(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(self.optimizer, 1)}


class ChangesItself(Classifier):
    def setup(self, stage: str) -> None:
        self.added = nn.Linear(2, 2)
        self.seen: list[float] = []

    def on_train_start(self) -> None:
        self.started = True
        self.seen.append(float(torch.rand(()) + random.random() + np.random.rand()))


@pytest.mark.slow
@pytest.mark.parametrize("make", [SharesModules, Recurrent, Reentrant, KeepsItsOptimizer, ChangesItself])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_weights_gradients_and_attributes_are_those_before(make: type[Classifier], precision: str) -> None:
    module = make()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    before = {name: (tensor, tensor.detach().clone(), tensor.grad) for name, tensor in tensors.items()}
    attributes, names = dict(vars(module)), [name for name, _ in module.named_modules(remove_duplicate=False)]
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    plan = plan_training(module, [GradualUnfreezing(), FrozenPrefixCache()], BATCH, max_epochs=6, precision=precision)
    assert plan.peak() is not None
    after = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    assert after.keys() == before.keys()
    for name, (tensor, value, grad) in before.items():
        assert after[name] is tensor
        assert not isinstance(tensor, FakeTensor)
        assert torch.equal(tensor, value)
        assert tensor.dtype == value.dtype
        assert tensor.grad is grad
        assert tensor.requires_grad == isinstance(tensor, nn.Parameter)
    assert dict(vars(module)) == attributes
    assert [name for name, _ in module.named_modules(remove_duplicate=False)] == names
    assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()) == (
        random_states[0].tolist(),
        *random_states[1:],
    )


PLAN_THEN_FORK = """
import os, sys
sys.path[:0] = sys.argv[1:]
from plan.projects import BATCH, Classifier
from lightning_freeze import LayerFreezing, plan_training
module = Classifier()
plan_training(module, [LayerFreezing("0")], BATCH)
child = os.fork()
if not child:
    try:
        module.model(**BATCH).loss.backward()
    finally:
        os._exit(module.model.classifier.weight.grad is None)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_after_a_plan_can_train() -> None:
    # Fails without the remedy where PyTorch is built for CUDA and there is no GPU, as with the oldest versions.
    command = [sys.executable, "-W", "ignore", "-c", PLAN_THEN_FORK, str(Path(__file__).parents[1])]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_reentrant_checkpoints_have_their_gradients_counted() -> None:
    module = Reentrant()
    plan = plan_training(module, [LayerFreezing("0")], BATCH)
    trains = [*module.model.bert.encoder.layer[1:].parameters(), *module.model.classifier.parameters()]
    trains += module.model.bert.embeddings.parameters()
    memory = plan.phases[0].memory
    assert memory is not None
    assert memory.gradients == sum(p.nbytes for p in trains)
    assert plan.notes == ()


@pytest.mark.slow
def test_optimizer_of_the_module_keeps_its_rates() -> None:
    module = KeepsItsOptimizer()
    before = [{k: v for k, v in group.items() if k != "params"} for group in module.optimizer.param_groups]
    plan_training(module, GradualUnfreezing(), BATCH, max_epochs=6)
    assert [{k: v for k, v in group.items() if k != "params"} for group in module.optimizer.param_groups] == before


@pytest.mark.slow
def test_modules_that_share_submodules_can_be_fitted_after_a_plan() -> None:
    results = []
    for planned in (False, True):
        torch.manual_seed(0)
        module = SharesModules()
        torch.manual_seed(1)
        if planned:
            plan_training(module, [LayerFreezing("embeddings")], BATCH)
        fit(module, [LayerFreezing("embeddings", verbose=False)], epochs=1, batches=2)
        results.append(module.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


class ShuffledData(LightningDataModule):
    def setup(self, stage: str) -> None:
        self.order = torch.randperm(8).tolist()

    def train_dataloader(self) -> Any:
        rows = [{name: tensor[index % 4] for name, tensor in BATCH.items()} for index in self.order]
        return DataLoader(rows, batch_size=4, shuffle=True)  # type: ignore[arg-type]


def test_data_and_random_numbers_are_left_as_they_were() -> None:
    module, data = Classifier(), ShuffledData()
    torch.manual_seed(3)
    before, attributes = torch.get_rng_state(), dict(vars(data))
    plan = plan_training(module, [], datamodule=data)
    assert plan.batches_per_epoch == 2
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(vars(data)) == attributes
