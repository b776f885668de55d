"""Measures a module on its training data: a fit that is left before the first step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_freeze.advice.features import Sample, collect_sample
from lightning_freeze.advice.measures.gradients import LayerGradients, gradients_by_layer
from lightning_freeze.advice.measures.log_me import log_me
from lightning_freeze.advice.measures.probes import ProbeScore, one_hot, ridge_probe
from lightning_freeze.cache.checks.side_effects import isolated
from lightning_freeze.cache.prefix.random_state import RandomState
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack

#: Batches whose gradients are measured, and examples of each whose gradients are measured one by one.
BATCHES, EXAMPLES_OF_BATCH = 4, 8
_FOLDS = 5


@dataclass(frozen=True)
class DepthScore:
    """What the features at one depth know about the task.

    Attributes:
        name: ``"embeddings"`` for what enters the first block, or the block whose output it is.
        probe: Cross-validated score of a linear probe: accuracy, or R squared for numbers.
        log_me: The transferability score; larger is better.
    """

    name: str
    probe: ProbeScore
    log_me: float


@dataclass(frozen=True)
class Measurements:
    """What one pass over a sample of the training data, and the gradients of a few batches, tell about a module.

    Attributes:
        depths: By depth, from the input up; empty if the labels are of a kind that no probe can predict.
        layers: Name of each layer to what its gradients say; empty with manual optimization.
        examples: Number of rows that the probes saw: examples, or tokens.
        baseline: The score of a constant guess.
        notes: Sentences on what could not be measured.
        set_up: Optimizers and schedulers in words, to tell one set-up from another.
    """

    depths: tuple[DepthScore, ...] = ()
    layers: dict[str, LayerGradients] = field(default_factory=dict)
    examples: int = 0
    baseline: float = 0.0
    notes: tuple[str, ...] = ()
    set_up: str = ""

    def best_depth(self) -> DepthScore | None:
        """The lowest depth whose probe is within one standard error of the best one; ``None`` without probes.

        Layers above it add nothing that a linear model can use, so what they compute serves another task.
        """
        if not self.depths:
            return None
        best = max(self.depths, key=lambda depth: depth.probe.mean)
        return next(d for d in self.depths if d.probe.mean >= best.probe.mean - best.probe.error)


def measure(
    module: LightningModule, datamodule: LightningDataModule, examples: int = 1000, **trainer_options: Any
) -> Measurements:
    """Measure a module on its training data. Validation and test data are not read, and the module is not changed.

    Args:
        module: The module, as it is before training.
        datamodule: Its data.
        examples: Training examples for the probes; 1,000 tell depths apart that differ by a few points.
        **trainer_options: Arguments of the Trainer, such as ``accelerator`` and ``precision``.
    """
    callback = _Measurer(examples)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "devices": 1,
               "enable_model_summary": False, "num_sanity_val_steps": 0, **trainer_options}  # fmt: skip
    trainer = Trainer(**options, callbacks=[callback])
    modes = {part: part.training for part in module.modules()}
    try:
        trainer.fit(module, datamodule=datamodule)
    except _Measured:
        pass
    finally:
        for part, mode in modes.items():
            part.training = mode
    assert callback.found is not None
    return callback.found


class _Measured(Exception):
    """Raised to end the fit when everything is measured."""


class _Measurer(Callback):
    """Measures when everything is ready for the first training batch."""

    def __init__(self, examples: int) -> None:
        self.found: Measurements | None = None
        self._examples = examples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found = replace(_measure(trainer, pl_module, self._examples), set_up=_set_up(trainer))
        raise _Measured


def _measure(trainer: Trainer, module: LightningModule, examples: int) -> Measurements:
    if not module.automatic_optimization:
        note = "Nothing is measured: with manual optimization training_step trains. The race alone decides."
        return Measurements(notes=(note,))
    stack = LayerStack(module)
    notes: list[str] = []
    sample: Sample | None = None
    gradients: dict[str, LayerGradients] = {}
    with _quiet(module):
        try:
            sample = _sample(trainer, module, stack, examples)
        except Exception as error:  # user code may raise any error on a batch that it has not made
            notes.append(f"No probes: {_first_line(error)}")
        try:
            gradients = _gradients(trainer, module, stack)
        except Exception as error:
            notes.append(f"No gradients: {_first_line(error)}")
    depths = () if sample is None else tuple(_scores(sample))
    return Measurements(
        depths,
        gradients,
        0 if sample is None else len(sample.targets),
        0.0 if sample is None else _baseline(sample),
        tuple(notes),
    )


def _sample(trainer: Trainer, module: LightningModule, stack: LayerStack, examples: int) -> Sample:
    task = getattr(getattr(module, "task", None), "target", None)
    if task in ("next-token", "target-token"):
        raise ConfigurationError("a language model has too many classes for one in closed form.")
    return collect_sample(stack, _batches(trainer), _step_of(trainer, module), task, examples)


def _gradients(trainer: Trainer, module: LightningModule, stack: LayerStack) -> dict[str, LayerGradients]:
    layers = {layer.name: layer.parameters() for layer in stack if not layer.is_bystander}
    step = _step_of(trainer, module)
    with torch.enable_grad():
        return gradients_by_layer(layers, (_losses(step, b) for b in itertools.islice(_batches(trainer), BATCHES)))


def _first_line(error: Exception) -> str:
    kind = "" if isinstance(error, ConfigurationError) else f"{type(error).__name__}: "
    return f"{kind}{str(error).strip().partition(chr(10))[0]}"


def _set_up(trainer: Trainer) -> str:
    schedulers = [each.scheduler for each in trainer.lr_scheduler_configs]
    plain = [
        (type(each).__name__, {k: v for k, v in vars(each).items() if isinstance(v, int | float | str)})
        for each in schedulers
    ]
    return f"{trainer.optimizers} {plain}"


def _scores(sample: Sample) -> Iterator[DepthScore]:
    targets = one_hot(sample.targets) if sample.target == "class" else sample.targets
    folds = min(_FOLDS, len(sample.targets))
    for name, features in sample.features.items():
        yield DepthScore(name, ridge_probe(features, sample.targets, sample.target, folds), log_me(features, targets))


def _baseline(sample: Sample) -> float:
    if sample.target == "value":
        return 0.0
    if sample.target == "multilabel":
        ones = sample.targets.double().mean(0)
        return float(torch.maximum(ones, 1 - ones).mean())
    return float(sample.targets.unique(return_counts=True)[1].max() / len(sample.targets))


@contextmanager
def _quiet(module: LightningModule) -> Iterator[None]:
    """Run the module in eval mode, without side effects."""
    modes = [(part, part.training) for part in module.modules()]
    with isolated(module, RandomState(module.device), module.device):
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


def _batches(trainer: Trainer) -> Iterator[Any]:
    loader: Iterable[Any] = trainer.train_dataloader  # type: ignore[assignment]
    for batch in loader:
        converted = trainer.precision_plugin.convert_input(batch)
        yield trainer.strategy.batch_to_device(converted)


def _step_of(trainer: Trainer, module: LightningModule) -> Callable[[Any], Tensor]:
    def step(batch: Any) -> Tensor:
        with trainer.precision_plugin.train_step_context():
            output = module.training_step(batch, 0)
        loss = output["loss"] if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise ConfigurationError(f"training_step returned {type(loss).__name__}: expected a loss.")
        return loss

    return step


def _losses(step: Callable[[Any], Tensor], batch: Any) -> tuple[Callable[[], Tensor], list[Callable[[], Tensor]]]:
    sizes = {len(leaf) for leaf in _tensors(batch) if leaf.ndim}
    size = sizes.pop() if len(sizes) == 1 else 0
    examples = [_example(batch, number, size) for number in range(min(size, EXAMPLES_OF_BATCH))]
    return partial(step, batch), [partial(step, example) for example in examples]


def _tensors(batch: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, batch)
    return found


def _example(batch: Any, number: int, size: int) -> Any:
    def part(leaf: Any) -> Any:
        return leaf[number : number + 1] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf

    return tree_map(part, batch)
