"""What is noted at each moment of a run. In most batches that is two readings of a clock and a look at what trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.run_report.facts import RunFacts, facts_of
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.history.records import Event, PhaseRecord, Sample, Validation
from lightning_freeze.run_report.measures.backward import frozen_layers_passed
from lightning_freeze.run_report.measures.distances import StartingWeights
from lightning_freeze.run_report.measures.gradients import GradientNorms
from lightning_freeze.run_report.measures.memory import allocated_memory, phase_memory
from lightning_freeze.run_report.measures.metrics import mode_of, validation_metrics
from lightning_freeze.run_report.measures.prefix_cache import cache_of
from lightning_freeze.run_report.measures.rates import LayerRates
from lightning_freeze.run_report.measures.run_layers import RunLayers
from lightning_freeze.run_report.scalars import scalars
from lightning_freeze.session.moments import Moments
from lightning_freeze.session.observer import PhaseChange

_MEASUREMENTS, _FEWEST_STEPS, _MOST_STEPS = 100, 10, 50
#: For how many batches a measurement waits until each of several optimizers has stepped.
_MOST_WAITED = 16


class Recorder:
    """Fills the history of one fit.

    Args:
        trainer: The running trainer.
        module: The module that is being fitted.
        layers: Its layers.
        history: The history, to be continued.
        start: The starting weights.
        every_n_steps: How many steps lie between two measurements; ``None`` for about 100 measurements in the run.
        watched: The metrics that come first, with their modes.
        log: Whether measurements go to the loggers.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        layers: RunLayers,
        history: History,
        start: StartingWeights,
        every_n_steps: int | None,
        watched: Mapping[str, str],
        log: bool,
    ) -> None:
        self.history = history
        self.watched = dict(watched)
        self._trainer = trainer
        self._module = module
        self._layers = layers
        self._start = start
        self._every = every_n_steps or _spacing(trainer)
        self._log = log
        self._norms = GradientNorms(layers)
        self._rates = LayerRates(layers, module)
        self._cache = cache_of(trainer)
        self._trains: list[bool] | None = None
        self._changes_seen = 0
        self._next = self.position
        self._is_due = True
        self._stepped: set[int] = set()
        self._sees_steps = False
        self._waited = 0
        self._allocated: int | None = None
        self._began: float | None = None
        self._spent = 0.0
        self._recent: tuple[float, int] = (0.0, 0)

    @property
    def position(self) -> int:
        """Where the run stands: optimizer steps, as the loggers count them."""
        # With manual optimization, the trainer adds up the steps of all optimizers, or sees none of them.
        return self._trainer.global_step if self._module.automatic_optimization else self.history.batches

    def start_batch(self) -> None:
        """A training batch begins."""
        self._step = self.position
        self._is_due = self._is_due or self._step >= self._next
        self._spent = 0.0
        self._began = perf_counter()

    def before_backward(self) -> None:
        """The forward pass has ended, and backward is about to begin."""
        if self._is_due:
            found = allocated_memory(self._module.device)
            self._allocated = found if self._allocated is None or found is None else max(found, self._allocated)

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""
        self._sees_steps = True
        # With manual optimization, an optimizer may be toggled now: what trains is known when the batch has ended.
        changes = self._module.automatic_optimization and self._layers.requires_grad() != self._trains
        if self._is_due or changes:
            began = perf_counter()
            self._is_due = True
            self._measure(optimizer)
            self._spent += perf_counter() - began

    def _measure(self, optimizer: Optimizer) -> None:
        self._stepped.add(id(optimizer))
        self._rates.measure(optimizer)
        self._norms.measure(optimizer, (p for group in optimizer.param_groups for p in group["params"]))

    def end_batch(self, outputs: Any) -> None:
        """A training batch has ended."""
        seconds = None if self._began is None else perf_counter() - self._began - self._spent
        self._began = None
        is_new = self._note_phase()
        phase = self.history.phase
        assert phase is not None
        self.history.batches += 1
        phase.batches += 1
        phase.end = max(phase.end, self.position)
        if seconds is not None and not is_new:
            phase.timed += 1
            phase.seconds += seconds
            self._recent = self._recent[0] + seconds, self._recent[1] + 1
        if not self._module.automatic_optimization and not self._sees_steps and self._is_due:
            for optimizer in self._trainer.optimizers:  # the module steps them itself
                self._measure(optimizer)
        is_complete = self._is_complete()
        if is_complete or is_new:
            self._add_sample(phase, outputs, is_new)
            self._next = self._step + self._every
            self._is_due = not is_complete  # measured again as soon as an optimizer steps
            self._stepped.clear()
            self._waited = 0

    def _is_complete(self) -> bool:
        """Whether every optimizer has stepped since a measurement is due, or some do so too rarely to wait for."""
        if not self._stepped:
            return False
        self._waited += 1
        return self._waited > _MOST_WAITED or {id(optimizer) for optimizer in self._trainer.optimizers} <= self._stepped

    def _note_phase(self) -> bool:
        """Begin a phase if other layers train now; also true in the first batch of the fit."""
        trains = self._layers.requires_grad()
        moments = Moments.of(self._module)
        changes = moments.session.phase_changes if moments is not None else []
        new, self._changes_seen = changes[self._changes_seen :], len(changes)
        if trains == self._trains and not new:
            return False
        is_start, self._trains = self._trains is None, trains
        trainable = self._layers.trainable()
        last = self.history.phase
        if is_start and last is not None and last.trainable == trainable and not new:
            return True  # a resumed run goes on with its phase
        passes, certain = frozen_layers_passed(self._layers)
        if last is None:
            cause = "the report begins here" if self.history.began else "the run began"
        elif new:
            cause = "; ".join(map(_reason, new))
        else:
            cause = "the module, or another callback, changed what trains"
        self._allocated = None
        self.history.begin_phase(
            PhaseRecord(
                step=self._step,
                epoch=self._trainer.current_epoch,
                cause=cause,
                trainable=trainable,
                end=self._step + 1,
                passes=passes,
                passes_certain=certain,
            )
        )
        return True

    def _add_sample(self, phase: PhaseRecord, outputs: Any, is_new: bool) -> None:
        gradients, relative = self._norms.read()
        for optimizer in self._trainer.optimizers:
            if id(optimizer) not in self._stepped:
                self._rates.measure(optimizer)
        rates = zip(self._rates.read(), phase.trainable, strict=True)
        sample = Sample(
            step=self._step,
            epoch=self._trainer.current_epoch,
            # A layer that trains without a known rate is not frozen.
            rates=[0.0 if rate is None and trainable else rate for rate, trainable in rates],
            gradients=gradients,
            relative_gradients=relative,
            # What trained before may have been put back to its best weights, so all layers are measured.
            distances=self._start.distances(None if is_new else self.history.distances),
            loss=_loss(outputs),
            hit_rate=None if self._cache is None else self._cache.hit_rate,
            starts_phase=is_new,
        )
        self.history.distances = sample.distances
        reached = [index for index, norm in enumerate(gradients) if norm is not None]
        phase.lowest = min([*reached, *([] if phase.lowest is None else [phase.lowest])], default=None)
        self.refresh_memory()
        self.history.samples.add(sample)
        if self._log and self._trainer.loggers:
            seconds, batches = self._recent
            found = scalars(self.history, sample, seconds / batches if batches else None)
            for logger in self._trainer.loggers:
                logger.log_metrics(found, step=self._step)
        self._recent = (0.0, 0)

    def refresh_memory(self) -> None:
        """Note what the tensors of the running phase need."""
        if self.history.phase is not None:
            self.history.phase.memory = phase_memory(self._module, self._trainer.optimizers, self._allocated)

    def end_validation(self, logged: Mapping[str, Any]) -> None:
        """A validation has ended.

        Args:
            logged: All metrics that the module has logged.
        """
        metrics = validation_metrics(logged, self.watched)
        if metrics:
            number = len(self.history.phases) + self.history.later_phases
            validation = Validation(self.position, self._trainer.current_epoch, max(1, number), metrics)
            modes = {name: self.watched.get(name) or mode_of(name) for name in metrics}
            self.history.add_validation(validation, modes)

    def add_event(self, text: str) -> None:
        """Note an interruption, or the end."""
        self.history.add_event(Event(self.history.end, text))

    def refresh(self) -> None:
        """Bring up to date what is not noted in each batch, before the history is shown."""
        self.refresh_memory()
        self.history.distances = self._start.distances()

    def facts(self) -> RunFacts:
        """What else there is to say about the run."""
        return facts_of(self._trainer, self._module, tuple(self.watched))

    def state_dict(self) -> dict[str, Any]:
        """The history and the starting weights, for a checkpoint."""
        return {"history": self.history.state_dict(), "starting_weights": self._start.state_dict()}


def _spacing(trainer: Trainer) -> int:
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 0:
        return _MOST_STEPS
    return min(_MOST_STEPS, max(_FEWEST_STEPS, int(steps) // _MEASUREMENTS))


def _reason(change: PhaseChange) -> str:
    restored = "" if change.restored is None else f" (back to the weights with {change.monitor}={change.restored:.4g})"
    return f"{change.reason}{restored}"


def _loss(outputs: Any) -> float | None:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return float(loss.detach()) if isinstance(loss, Tensor) and loss.numel() == 1 else None
