"""FreezeReport in projects of all kinds: it is written, and the run is none the wiser."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from compatibility_toys import gan
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning.pytorch.loggers import CSVLogger
from namespaces.test_both import module as module_of
from run_report.reading import CHARTS, Page
from torch import nn
from toys import Toy, fit, loader, make, trainer

from lightning_freeze import FreezeReport, GradualUnfreezing, LayerFreezing


def report(**options: Any) -> FreezeReport:
    return FreezeReport(**{"every_n_steps": 1, "verbose": False, **options})


@pytest.mark.slow
def test_beside_no_other_callback_and_without_logger(tmp_path: Path) -> None:
    callback = FreezeReport()
    fit(make(), callback, tmp_path=tmp_path)
    assert callback.path == str(tmp_path / "freeze_report.html")
    page = Page(callback.path)
    assert set(page.charts) == set(CHARTS)
    assert "embeddings, 0 ... 3, head train (498 of 498 parameters)" in page.text


@pytest.mark.slow
def test_without_validation(tmp_path: Path) -> None:
    callback = report()
    trainer(callback, tmp_path=tmp_path).fit(make(), loader())
    page = Page(callback.path or "")
    assert set(page.charts) == set(CHARTS)
    assert "No validation has logged a metric" in page.text


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    callback = report()
    fit(make(), callback, tmp_path=tmp_path, fast_dev_run=True)
    assert callback.path is None
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("namespace", [lightning.pytorch, pytorch_lightning], ids=lambda each: each.__name__)
def test_in_both_namespaces(namespace: Any, tmp_path: Path) -> None:
    callback = report()
    options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    the_trainer = namespace.Trainer(
        default_root_dir=tmp_path,
        max_epochs=2,
        callbacks=[LayerFreezing("embeddings", verbose=False), callback],
        **options,
    )
    the_trainer.fit(module_of(namespace))
    assert Path(callback.path or "").parent == Path(the_trainer.log_dir)
    assert set(Page(callback.path or "").charts) == set(CHARTS)


@pytest.mark.slow
def test_layers_that_another_callback_unfreezes(tmp_path: Path) -> None:
    class Head(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = self.encoder

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    callback = report()
    fit(Head(), callback, BackboneFinetuning(unfreeze_backbone_at_epoch=2), tmp_path=tmp_path, max_epochs=3)
    page = Page(callback.path or "")
    assert [phase["step"] for phase in page.data["phases"]] == [0, 8]
    assert "because the module, or another callback, changed what trains." in page.text


@pytest.mark.slow
def test_several_optimizers_that_take_turns(tmp_path: Path) -> None:
    class Alternating(LightningModule):
        """Steps one optimizer in even batches, the other in odd ones."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.embeddings = nn.Embedding(16, 8)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
            self.head = nn.Linear(8, 2)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()[batch_idx % 2]
            self.toggle_optimizer(optimizer)
            x = self.embeddings(batch[0]).mean(1)
            for layer in self.layers:
                x = torch.tanh(layer(x))
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.head(x), batch[1]))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

        def configure_optimizers(self) -> Any:
            body = [*self.embeddings.parameters(), *self.layers.parameters()]
            return torch.optim.SGD(body, lr=0.1), torch.optim.SGD(self.head.parameters(), lr=0.2)

    callback = report(every_n_steps=4)
    trainer(callback, tmp_path=tmp_path, max_epochs=2).fit(Alternating(), loader(12))
    data = Page(callback.path or "").data
    assert [phase["step"] for phase in data["phases"]] == [0]  # toggling is no change of phase
    sample = data["samples"]["records"][-1]
    assert all(sample["gradients"])
    assert sample["rates"] == [0.1, 0.1, 0.1, 0.2]


@pytest.mark.slow
def test_the_order_of_callbacks_does_not_matter(tmp_path: Path) -> None:
    """The first callback in the list is told of a batch before a schedule has decided about it."""
    starts = []
    for first in (True, False):
        callback = report()
        schedule = GradualUnfreezing(stop="2", verbose=False)
        fit(make(), *([callback, schedule] if first else [schedule, callback]), tmp_path=tmp_path)
        history = callback.state_dict()["history"]
        starts.append([(phase["step"], phase["cause"], phase["lowest"]) for phase in history["phases"]])
        records = history["samples"]["records"]
        assert [sample["step"] for sample in records if sample["starts_phase"]] == [0, 4, 8]
        assert all(sum(map(bool, s["gradients"])) == 1 + s["step"] // 4 for s in records)
    assert starts[0] == starts[1]


@pytest.mark.slow
def test_accumulation_that_changes(tmp_path: Path) -> None:
    callback = FreezeReport(verbose=False)
    fit(make(), callback, GradientAccumulationScheduler({0: 1, 1: 2}), tmp_path=tmp_path)
    assert len(callback.state_dict()["history"]["samples"]["records"]) == 1


@pytest.mark.slow
def test_finders_leave_no_trace(tmp_path: Path) -> None:
    class Tuned(Toy):
        lr = 0.1

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    callback = report()
    finder = LearningRateFinder(num_training_steps=5, early_stop_threshold=None)
    fit(Tuned(), finder, callback, GradualUnfreezing(stop="2", verbose=False), tmp_path=tmp_path, batches=8)
    history = callback.state_dict()["history"]
    assert history["batches"] == 24
    assert [phase["step"] for phase in history["phases"]] == [0, 8, 16]


@pytest.mark.slow
def test_memory_of_an_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.run_report.recorder.allocated_memory", lambda device: 3 * 2**30)
    logger = CSVLogger(tmp_path)
    callback = report()
    fit(make(), callback, tmp_path=tmp_path, logger=logger)
    assert Page(callback.path or "").tables["memory"][1][-1] == "3.0 GiB"
    assert "freeze/allocated_bytes" in Path(logger.log_dir, "metrics.csv").read_text()


@pytest.mark.slow
def test_a_gan(tmp_path: Path) -> None:
    callback = report()
    trainer(callback, tmp_path=tmp_path, max_epochs=2).fit(gan(), loader())
    page = Page(callback.path or "")
    assert {"timeline", "rates", "distances", "gradients"} <= set(page.charts)
    assert page.data["batches"] == 8


@pytest.mark.slow
def test_optimizers_that_the_trainer_does_not_see(tmp_path: Path) -> None:
    class Raw(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            nn.functional.cross_entropy(self(batch[0]), batch[1]).backward()
            optimizer.step()

    callback = report()
    trainer(callback, tmp_path=tmp_path, max_epochs=2).fit(Raw(), loader())
    data = Page(callback.path or "").data
    assert [sample["step"] for sample in data["samples"]["records"]] == list(range(8))
    assert all(data["samples"]["records"][-1]["gradients"])


@pytest.mark.slow
def test_accumulated_gradients(tmp_path: Path) -> None:
    callback = report()
    fit(make(), callback, tmp_path=tmp_path, batches=6, max_epochs=1, accumulate_grad_batches=3)
    records = Page(callback.path or "").data["samples"]["records"]
    assert [sample["step"] for sample in records if any(sample["gradients"])] == [0, 1]


@pytest.mark.slow
def test_half_precision_and_no_rate(tmp_path: Path) -> None:
    class NoRate(torch.optim.SGD):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.1)
            for group in self.param_groups:
                group["lr_now"] = group.pop("lr")

        def step(self, closure: Any = None) -> Any:
            return closure()

    callback = report()
    module = make(make_optimizers=lambda module: NoRate(module.parameters())).to(torch.bfloat16)
    trainer(callback, tmp_path=tmp_path, max_epochs=1, precision="bf16-true").fit(module, loader())
    data = Page(callback.path or "").data
    assert data["samples"]["records"][0]["rates"] == [0.0] * 6  # trains, and is not shown as frozen
    assert all(data["samples"]["records"][0]["gradients"])


@pytest.mark.slow
def test_a_module_that_is_frozen_entirely(tmp_path: Path) -> None:
    class Frozen(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    callback = report()
    module = Frozen()
    module.encoder.requires_grad_(False)
    fit(module, callback, tmp_path=tmp_path)
    assert "timeline" in Page(callback.path or "").charts


@pytest.mark.slow
def test_early_stopping_is_named(tmp_path: Path) -> None:
    callback = report()
    module = make(values=[1.0, 2.0, 3.0, 4.0])
    fit(module, callback, EarlyStopping("scripted", patience=1), tmp_path=tmp_path, max_epochs=9)
    page = Page(callback.path or "")
    assert "training was stopped" in page.text
    assert "scripted was 1 at the first validation" in page.text  # what another callback watches comes first


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [RuntimeError("out of <b>luck</b>\nand more"), KeyboardInterrupt()], ids=["error", "^C"]
)
def test_a_run_that_fails_has_its_report(error: BaseException, tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                raise error

    callback = report()
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        fit(make(), callback, Fails(), tmp_path=tmp_path)
    page = Page(callback.path or "")
    assert len(page.data["samples"]["records"]) == 6
    words = "RuntimeError: out of <b>luck</b>." if isinstance(error, RuntimeError) else "KeyboardInterrupt."
    assert f"Step 6: training ended with {words}" in page.text


def test_a_run_that_fails_before_its_first_batch_ends(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise RuntimeError("at once")

    callback = report()
    with pytest.raises(RuntimeError, match="at once"):
        fit(make(), callback, Fails(), tmp_path=tmp_path)
    text = Page(callback.path or "").text
    assert "No training batch has been measured yet." in text
    assert "at once" in text


def _killed_later(folder: str) -> None:
    class Slow(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.current_epoch == 2:
                time.sleep(60)

    fit(make(), GradualUnfreezing(stop="2", verbose=False), report(), Slow(), tmp_path=folder)


def test_a_killed_run_has_the_report_of_its_last_epoch(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_later, args=(str(tmp_path),))
    process.start()
    path, deadline = tmp_path / "freeze_report.html", time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and len(Page(path).data["phases"]) == 2):
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert len(Page(path).data["samples"]["records"]) == 8


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.slow
def test_two_processes_write_one_report(strategy: str, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
    from distributed_processes import run_script

    run_script("report_script.py", tmp_path, strategy)
    (path,) = tmp_path.rglob("*.html")
    page = Page(path)
    assert "on 2 processes" in page.text
    assert [phase["step"] for phase in page.data["phases"]] == [0, 4, 8]
    assert page.data["distances"][0] == 0 < page.data["distances"][-1]
    assert set(page.charts) == set(CHARTS)
