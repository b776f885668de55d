"""The checks: each runs one tool in a real ``Trainer.fit`` and measures how far it is from the right result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from model import BATCHES, EPOCHS, RATE, UNFREEZE, Classifier, by_hand, loader
from torch import Tensor
from torch.optim import lr_scheduler

Make = Callable[[Path], Callback]


class Result(NamedTuple):
    """What a check found."""

    is_right: bool
    words: str


def fit(
    module: Classifier, *callbacks: Callback, folder: Path, ckpt_path: Path | None = None, **options: Any
) -> Trainer:
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(callbacks=list(callbacks), default_root_dir=folder, **{**settings, **quiet, **options})
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer


def drift(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def of_drift(value: float) -> Result:
    return Result(value <= 1e-12, f"{value:.0e}" if value else "0")


def same_as_by_hand(make: Make, folder: Path) -> Result:
    module = Classifier()
    fit(module, make(folder), folder=folder)
    return of_drift(drift(by_hand(), module.state_dict()))


def frozen_modules_are_still(make: Make, folder: Path) -> Result:
    class Look(Callback):
        noisy = 0

        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            if trainer.current_epoch < UNFREEZE:
                self.noisy = sum(module.dropout.training for module in pl_module.backbone.layers)

    look = Look()
    fit(Classifier(dropout=0.5), make(folder), look, folder=folder)
    return Result(look.noisy == 0, f"{look.noisy} of 4 dropouts active")


def resume(make: Make, folder: Path, epoch: int) -> Result:
    straight = Classifier()
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    fit(straight, make(folder), saving, folder=folder)
    resumed = Classifier()
    fit(resumed, make(folder), folder=folder / "resumed", ckpt_path=folder / f"epoch={epoch}.ckpt")
    return of_drift(drift(straight.state_dict(), resumed.state_dict()))


def resume_before_the_change(make: Make, folder: Path) -> Result:
    return resume(make, folder, UNFREEZE - 1)


def resume_after_the_change(make: Make, folder: Path) -> Result:
    return resume(make, folder, UNFREEZE)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, RATE, total_steps=EPOCHS * BATCHES + 1),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * BATCHES, eta_min=RATE / 10),
}


def call_within_step(optimizer: torch.optim.Optimizer, note: Callable[[torch.optim.Optimizer], None]) -> None:
    """Call a function once, within the next step of an optimizer, after its closure has run."""

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        handle.remove()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)

        def closure_and_note() -> Any:
            output = closure()
            note(optimizer)
            return output

        if closure is None:
            note(optimizer)
            return None
        return args[:1], {**kwargs, "closure": closure_and_note}

    handle = optimizer.register_step_pre_hook(before)


def rates_follow(name: str) -> Callable[[Make, Path], Result]:
    """The rates of all layers under a user's scheduler, against the same scheduler over one plain optimizer."""

    def configure(optimizer: torch.optim.Optimizer) -> Any:
        return [optimizer], [{"scheduler": SCHEDULERS[name](optimizer), "interval": "step"}]

    class Rates(Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            def note(optimizer: torch.optim.Optimizer) -> None:
                by_parameter = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
                trains = [(n, p) for n, p in pl_module.named_parameters() if p.requires_grad]
                self.seen.append({n: by_parameter.get(id(p), float("nan")) for n, p in trains})

            # The rates that the step itself works with: a tool may change the groups for the time of the step.
            call_within_step(trainer.optimizers[0], note)

    def check(make: Make, folder: Path) -> Result:
        rates = Rates()
        fit(Classifier(configure), make(folder), rates, folder=folder)
        plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE, momentum=0.9)
        scheduler, worst = SCHEDULERS[name](plain), 0.0
        for seen in rates.seen:
            truth = plain.param_groups[0]["lr"]
            errors = [abs(rate - truth) / truth for rate in seen.values()]
            worst = max([worst, *(float("inf") if error != error else error for error in errors)])
            plain.step()
            scheduler.step()
        return Result(worst < 1e-9, "0" if worst < 1e-12 else f"rate off by a factor of {1 + worst:.2g}")

    return check


def two_processes(name: str, folder: Path) -> tuple[Result, Result]:
    """Two processes with DDP: the ranks against one another, and against one process with the whole batch."""
    script = Path(__file__).with_name("two_ranks.py")
    run = subprocess.run([sys.executable, script, name, folder], capture_output=True, text=True, timeout=240)
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if "Error" in line or "Exception" in line]
        failed = Result(False, f"error: {(lines or ['?'])[-1][:90]}")
        return failed, failed
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return of_drift(drift(first, second)), of_drift(drift(first, by_hand()))


CHECKS: dict[str, Callable[[Make, Path], Result]] = {
    "one process, against a plain PyTorch loop": same_as_by_hand,
    "dropout in frozen layers": frozen_modules_are_still,
    "resumed before the layers unfreeze, against the straight run": resume_before_the_change,
    "resumed after the layers unfroze, against the straight run": resume_after_the_change,
    **{f"learning rates under {name}": rates_follow(name) for name in SCHEDULERS},
}
