"""Two processes with batch B equal one with batch 2B, and each other, whatever the schedule and the launcher."""

import pytest
import torch
from distributed_cases import BATCHES, DDP_ONLY, EVERYWHERE, Normalised, ReplaceNorms, Synchronised, phased
from distributed_processes import (
    are_identical,
    assert_resumed_runs_are_straight,
    largest_difference,
    load,
    run_script,
)
from lightning.pytorch import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from resume_script import CHECKPOINTS, SCHEDULES
from toys import trainer

from lightning_freeze import EpochTrigger, Phase


def assert_the_same(out, name, case):
    alone, *ranks = (load(out, name, who) for who in ("alone", 0, 1))
    assert are_identical(ranks[0]["weights"], ranks[1]["weights"]), name
    assert largest_difference(ranks[0]["weights"], alone["weights"]) < 1e-12, name
    assert ranks[0]["trained"] == ranks[1]["trained"] == alone["trained"], name
    assert len(alone["trained"]) == case.phases, name
    # Only what trains is communicated, from the first wrap on, and every phase has its own.
    assert all(registered == trainable for registered, trainable in ranks[0]["communicated"]), name
    assert len(ranks[0]["communicated"]) == case.phases, name
    # The ranks have the same parameters after the first wrap.
    assert ranks[0]["sent"] == 1, name
    return ranks[0]


def assert_frozen_is_frozen(rank, still):
    for name, tensor in rank["weights"].items():
        assert tensor.equal(rank["begun"][name]) == still(name), name


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    run_script("ddp_script.py", tmp_path, *EVERYWHERE)
    for name, case in EVERYWHERE.items():
        assert_the_same(tmp_path, name, case)
    frozen = ("encoder.embeddings", "encoder.layers.0", "encoder.layers.1")
    assert_frozen_is_frozen(load(tmp_path, "static", 1), lambda name: name.startswith(frozen))


@pytest.mark.slow
def test_the_options_of_ddp(tmp_path):
    run_script("ddp_script.py", tmp_path, *DDP_ONLY)
    for name, case in DDP_ONLY.items():
        rank = assert_the_same(tmp_path, name, case)
        assert rank["training_norms"] == [], name
    # The strategy puts other modules in the place of the batch norms after they are frozen.
    assert_frozen_is_frozen(load(tmp_path, "replaced norms", 0), lambda name: not name.startswith("classifier"))


class Replacing(SingleDeviceStrategy):
    def setup(self, trainer):
        ReplaceNorms().apply(self.model)
        super().setup(trainer)


class Norms(Callback):
    def __init__(self):
        self.training = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.training.append([m.training for m in pl_module.modules() if isinstance(m, Synchronised)])


def test_modules_that_the_strategy_puts_in_place_follow_the_phases():
    norms = Norms()
    the_trainer = trainer(
        phased(Phase("head", EpochTrigger(1)), Phase("1:,head")),
        norms,
        strategy=Replacing(torch.device("cpu")),
        max_epochs=2,
    )
    module = Normalised()
    the_trainer.fit(module)
    assert norms.training == [[False] * 4] * BATCHES + [[False, True, True, True]] * BATCHES
    assert all(m.training for m in module.modules() if isinstance(m, Synchronised))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["fork", "spawn", "popen"])
def test_every_launcher_works(launcher, tmp_path):
    run_script("ddp_script.py", tmp_path, "--launcher", launcher, "epochs")
    assert_the_same(tmp_path, "epochs", EVERYWHERE["epochs"])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_run_equals_the_straight_one(schedule, tmp_path):
    run_script("resume_script.py", tmp_path, "ddp", schedule)
    assert_resumed_runs_are_straight(tmp_path, CHECKPOINTS)
