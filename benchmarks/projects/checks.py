"""The core checks of a project: its own quick start, with the callbacks of this package and without.

A project's script hands over two functions: one runs its quick start with some more callbacks, the other saves what
that gave and loads it again, both in the project's own way.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from probe import Probe, seed

from lightning_freeze import DiscriminativeLR, GradualUnfreezing, LayerFreezing, LayerStack
from lightning_freeze.layers.wording import abbreviate

EPOCHS = 3
DECAY = 0.5


@dataclass
class Run:
    """What a project's quick start is given.

    Attributes:
        callbacks: To be handed to the Trainer, in this order.
        folder: A place for whatever it writes.
        epochs: How many epochs to train.
    """

    callbacks: list[Any]
    folder: Path
    epochs: int = EPOCHS


@dataclass
class Project:
    """A package that builds on Lightning.

    Attributes:
        package: Its name in the package index.
        what: The quick start, in a few words.
        lightning: The namespace that it imports: ``lightning.pytorch`` or ``pytorch_lightning``.
        fit: Runs the quick start and returns what the project calls a trained model.
        save_and_load: Predictions of a trained model, and those of its copy that has been saved and loaded.
    """

    package: str
    what: str
    lightning: ModuleType
    fit: Callable[[Run], Any]
    save_and_load: Callable[[Any, Path], tuple[Any, Any]]


@dataclass
class Outcome:
    """What a check found.

    Attributes:
        is_right: Whether that is as it should be; ``None`` where the project itself leaves nothing to compare with.
        words: What was seen.
    """

    is_right: bool | None
    words: str


class Checks:
    """Runs the checks of one project.

    Args:
        project: The project.
        folder: A scratch folder.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        self.project = project
        self.folder = folder
        self._runs = 0
        self.plain = self.fit()

    @cached_property
    def names(self) -> list[str]:
        """The layers that are found in the project's module."""
        return LayerStack(self.plain.module).names

    def fit(self, *callbacks: Any, checkpoint: Path | None = None, replay: dict[int, Any] | None = None) -> Probe:
        """Run the quick start and watch it."""
        self._runs += 1
        folder = self.folder / str(self._runs)
        folder.mkdir()
        probe = Probe(folder, replay)
        seed(0)
        with resuming(self.project.lightning.Trainer, checkpoint):
            self.model = self.project.fit(Run([*callbacks, probe], folder))
        self.checkpoint = folder / "epoch=0.ckpt"
        if not probe.losses:
            raise AssertionError("the probe has seen no batch")
        return probe

    def layers(self) -> Outcome:
        """Layers are found."""
        return Outcome(len(self.names) > 1, abbreviate(LayerStack(self.plain.module)))

    def no_op(self) -> Outcome:
        """Callbacks that freeze nothing and scale nothing leave every loss as it was."""
        run = self.fit(GradualUnfreezing(start="all", verbose=False), DiscriminativeLR(decay=1.0, verbose=False))
        is_same = run.losses == self.plain.losses and same(run.states[-1], self.plain.states[-1])
        return Outcome(is_same, f"{len(run.losses)} losses" if is_same else f"off by {apart(run, self.plain):.0e}")

    def frozen(self) -> Outcome:
        """The lower half of the layers stays as it is, in eval mode; something else trains."""
        lower = ",".join(self.names[: max(1, len(self.names) // 2)])
        run = self.fit(LayerFreezing(lower, verbose=False))
        freezing = run.callback(LayerFreezing)
        selected = freezing.stack.select(freezing.layers)
        frozen = {id(parameter) for parameter in selected.parameters}
        names = [name for name, parameter in run.module.named_parameters() if id(parameter) in frozen]
        buffers = {id(buffer) for module in selected.modules for buffer in module.buffers()}
        names += [name for name, buffer in run.module.named_buffers() if id(buffer) in buffers]
        moved = [name for name in names if not torch.equal(run.states[0][name], run.states[-1][name])]
        quiet = {id(module) for module in selected.modules}
        quiet_names = {name for name, module in run.module.named_modules() if id(module) in quiet}
        noisy = set().union(*run.noisy) & quiet_names
        others = [name for name in run.states[0] if not torch.equal(run.states[0][name], run.states[-1][name])]
        if moved or noisy or not others:
            return Outcome(False, f"moved: {moved[:2]}, in train mode: {sorted(noisy)[:2]}, trained: {len(others)}")
        return Outcome(True, f"{len(names)} tensors")

    def unfreezing(self) -> Outcome:
        """In each epoch that trains which the schedule says, and nothing else moves; in the end, all that can does."""
        run = self.fit(GradualUnfreezing(verbose=False))
        schedule = run.callback(GradualUnfreezing)
        given = self.plain.trains[0]
        for epoch, trains in zip(run.epochs, run.trains, strict=True):
            phase = schedule.plan[min(epoch, len(schedule.plan) - 1)]
            said = {id(parameter) for parameter in schedule.stack.select(phase.train).parameters}
            right = {name for name, p in run.module.named_parameters() if id(p) in said and name in given}
            if set(trains) != right:
                return Outcome(False, f"epoch {epoch}: {sorted(trains ^ right)[:3]}")
        for epoch, (before, after) in enumerate(zip(run.states, run.states[1:], strict=False)):
            first = run.epochs.index(epoch)
            still = {name for name, _ in run.module.named_parameters()} - run.trains[first]
            moved = [name for name in still if not torch.equal(before[name], after[name])]
            if moved:
                return Outcome(False, f"epoch {epoch}: {sorted(moved)[:3]} moved")
        return Outcome(True, " / ".join(phase.train for phase in schedule.plan[:EPOCHS]))

    def rates(self) -> Outcome:
        """Inside each optimizer step, a layer's rate is the project's own times its factor."""
        run = self.fit(DiscriminativeLR(decay=DECAY, verbose=False))
        factors = self._factors(run.callback(DiscriminativeLR).stack)
        if len(run.rates) != len(self.plain.rates) or not run.rates:
            return Outcome(False, f"{len(run.rates)} steps, {len(self.plain.rates)} without")
        worst = 0.0
        for with_factors, plain in zip(run.rates, self.plain.rates, strict=True):
            for name, rate in plain.items():
                right = rate * factors.get(name, 1.0)
                worst = max(worst, abs(with_factors[name] - right) / right if right else abs(with_factors[name]))
        words = f"{len(set(factors.values()))} rates, {len(run.rates)} steps"
        return Outcome(worst <= 1e-12, words if worst <= 1e-12 else f"off by a factor of up to {worst:.0e}")

    def resume(self) -> Outcome:
        """A run that goes on from the end of its first epoch ends as the straight one does."""
        try:
            if self._resume(lambda: []):
                return Outcome(None, "n/a: differs without callbacks too")
        except (AssertionError, KeyError):
            return Outcome(None, "n/a: repeats an epoch without callbacks too")
        found = self._resume(lambda: [GradualUnfreezing(verbose=False), DiscriminativeLR(decay=DECAY, verbose=False)])
        return Outcome(not found, f"off by {found:.0e}" if found else "weights, optimizer state")

    def _resume(self, callbacks: Callable[[], list[Any]]) -> float:
        straight = self.fit(*callbacks(), replay=self.plain.batches)
        resumed = self.fit(*callbacks(), replay=self.plain.batches, checkpoint=self.checkpoint)
        if resumed.epochs[0] != 1:
            raise AssertionError(f"the resumed run begins in epoch {resumed.epochs[0]}")
        return max(apart(straight, resumed), *map(difference, straight.optimizers, resumed.optimizers))

    def own_saving(self) -> Outcome:
        """What was trained with the callbacks is saved and loaded in the project's own way."""
        self.fit(GradualUnfreezing(verbose=False), DiscriminativeLR(decay=DECAY, verbose=False))
        before, after = (np.asarray(found) for found in self.project.save_and_load(self.model, self.folder))
        is_same = before.size > 0 and before.shape == after.shape and bool(np.array_equal(before, after))
        return Outcome(is_same, f"{before.size} predictions" if is_same else "predictions differ")

    def _factors(self, stack: LayerStack) -> dict[str, float]:
        top = len(stack) - 1
        factors = {}
        for index, layer in enumerate(stack):
            distance = getattr(layer, "height", top - index)
            factors.update({id(parameter): DECAY**distance for parameter in layer.parameters()})
        module = stack.module
        return {name: factors[id(p)] for name, p in module.named_parameters() if id(p) in factors}


CHECKS: dict[str, Callable[[Checks], Outcome]] = {
    "layers": Checks.layers,
    "no-op identical": Checks.no_op,
    "frozen exact": Checks.frozen,
    "unfreezes as said": Checks.unfreezing,
    "rates": Checks.rates,
    "resume": Checks.resume,
    "own save and load": Checks.own_saving,
}


def main(project: Project) -> None:
    """Run all checks of a project, print what they found, and write it to a file if one is named."""
    parser = argparse.ArgumentParser(description=project.what)
    parser.add_argument("--out", type=Path, help="file for the outcomes, as JSON")
    options = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    own_warnings: set[str] = set()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checks = Checks(project, Path(name))
        for title, check in CHECKS.items():
            if title != "layers" and not outcomes["layers"].is_right:
                outcomes[title] = Outcome(False, "not run")
                continue
            try:
                outcomes[title] = check(checks)
            except Exception as error:  # a crash is a finding
                traceback.print_exc()
                outcomes[title] = Outcome(False, f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
            print(f"{title}: {outcomes[title]}", flush=True)
        own_warnings = {str(w.message).splitlines()[0] for w in caught if "lightning_freeze" in w.filename}
    for line in sorted(own_warnings):
        print(f"warning: {line}")
    if options.out:
        found = {title: asdict(outcome) for title, outcome in outcomes.items()}
        record = {
            "package": project.package,
            "version": version(project.package),
            "what": project.what,
            "lightning": project.lightning.__name__,
            "checks": found,
            "warnings": sorted(own_warnings),
        }
        options.out.write_text(json.dumps(record, indent=2))


@contextmanager
def resuming(trainer: type, checkpoint: Path | None) -> Iterator[None]:
    """Have every ``Trainer.fit`` go on from a checkpoint, in projects that give no access to it."""
    if checkpoint is None:
        yield
        return
    fit = trainer.fit  # type: ignore[attr-defined]

    def resume(self: Any, *args: Any, **kwargs: Any) -> Any:
        return fit(self, *args, **{**kwargs, "ckpt_path": checkpoint, "weights_only": False})

    trainer.fit = resume  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.fit = fit  # type: ignore[attr-defined]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two states are bit-identical."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def apart(left: Probe, right: Probe) -> float:
    """The largest difference between any two final values."""
    return difference(list(left.states[-1].values()), list(right.states[-1].values()))


def difference(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """The largest difference between the values of two rows of tensors; infinite where they differ in shape."""
    if [tensor.shape for tensor in left] != [tensor.shape for tensor in right]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(left, right, strict=True) if a.numel()]
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


def array(parts: Sequence[Any]) -> np.ndarray:
    """Predictions that come in several parts, as one flat array."""
    return np.concatenate([np.asarray(part).ravel() for part in parts])
