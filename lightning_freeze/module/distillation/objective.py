"""What a student learns from: its labels, and the outputs of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lightning_freeze.cache.store.store import Store, open_store
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.distillation.first_weights import start_from
from lightning_freeze.module.distillation.kept_outputs import KeptOutputs
from lightning_freeze.module.distillation.losses import hidden_loss, soft_loss
from lightning_freeze.module.distillation.options import check_options
from lightning_freeze.module.distillation.teacher import (
    Lesson,
    Teacher,
    last_hidden_state,
    load_teacher,
)
from lightning_freeze.module.pooling import backbone_of
from lightning_freeze.module.pretrained.limits import find_limits

#: Returns loss with labels, logits and labels of the student for the running batch.
Evaluate = Callable[[], tuple[Tensor, Tensor, Tensor]]


class Distillation:
    """A teacher, its kept outputs, and the loss of the student.

    It is a plain object, so that nothing of the teacher is a part of the student's module.

    Args:
        teacher: As for :func:`~lightning_freeze.module.distillation.teacher.load_teacher`.
        options: As for :func:`~lightning_freeze.module.distillation.options.check_options`.
        lesson: What the student learns.
        student: The student, to see that it is not the teacher itself.

    Raises:
        ConfigurationError: The teacher or an option is wrong.
    """

    def __init__(
        self, teacher: str | nn.Module, options: Mapping[str, Any] | None, lesson: Lesson, student: nn.Module
    ) -> None:
        self.settings = check_options(options)
        self._source = teacher
        self._lesson = lesson
        self._teacher: Teacher | None = None
        self._store: Store | None = None
        self._kept: KeptOutputs | None = None
        if isinstance(teacher, nn.Module):
            own = {id(parameter) for parameter in student.parameters()}
            if any(id(parameter) in own for parameter in teacher.parameters()):
                raise ConfigurationError(
                    "teacher and encoder share parameters, so the teacher would change with its student: expected a "
                    "copy, as in teacher=copy.deepcopy(encoder)."
                )
            self._teacher = load_teacher(teacher, lesson)

    def prepare(self, student: nn.Module, is_new: bool, data: Any) -> None:
        """Load the teacher at the start of a fit; a test or a prediction never loads it.

        Args:
            student: The student.
            is_new: Whether the student has not been trained, nor loaded from a checkpoint.
            data: The data module, or None.

        Raises:
            ConfigurationError: The teacher cannot be loaded, or does not fit the student or the data.
        """
        if any(parameter.is_meta for parameter in student.parameters()):
            return  # a plan, which computes nothing
        if self._teacher is None:
            self._teacher = load_teacher(self._source, self._lesson)
        _check_examples(self._teacher, data)
        if self.settings.start_from_teacher and is_new:
            start_from(self._teacher.model, student)

    def start(self, device: torch.device) -> None:
        """Move the teacher to the device of the student, and open the store of its outputs.

        Args:
            device: The device.
        """
        if self._teacher is None:
            return
        self._teacher.model.to(device)
        settings = self.settings
        if settings.keep and self._kept is None:
            self._store = self._store or open_store(settings.cache_dir, settings.max_memory)
            trims = self._lesson.task.target != "target-token"  # whose outputs are as long as the labels
            self._kept = KeptOutputs(self._store, self._teacher.model, trims, settings.verify)

    def end(self) -> None:
        """Close the files of the store; what is in memory is kept for a later fit."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def loss(
        self, inputs: dict[str, Any], labels: Tensor, student: nn.Module, evaluate: Evaluate
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and its parts by name.

        Args:
            inputs: Model inputs by name.
            labels: The labels.
            student: The student.
            evaluate: Runs the student on the batch.
        """
        settings, task = self.settings, self._lesson.task
        wants_hidden = settings.hidden_weight > 0
        with last_hidden_state(backbone_of(student) if wants_hidden else None) as states:
            hard, logits, _ = evaluate()
        produced = {"logits": logits, **({"hidden": states[-1]} if wants_hidden else {})}
        targets = self._targets(inputs, labels, produced)
        for name, output in produced.items():
            if targets[name].shape != output.shape:
                hint = "classes and tokens" if name == "logits" else "hidden size, or hidden_weight=0"
                raise ConfigurationError(
                    f"The {name} of the teacher have the shape {tuple(targets[name].shape)}, those of the student "
                    f"{tuple(output.shape)}: expected a teacher with the same {hint}."
                )
        soft = soft_loss(task, logits, targets["logits"], labels, settings.temperature)
        parts = {"hard_loss": hard.detach(), "soft_loss": soft.detach()}
        loss = settings.alpha * soft + (1 - settings.alpha) * hard
        if wants_hidden:
            distance = hidden_loss(states[-1], targets["hidden"], inputs.get("attention_mask"))
            loss, parts["hidden_loss"] = loss + settings.hidden_weight * distance, distance.detach()
        return loss, parts

    def _targets(self, inputs: dict[str, Any], labels: Tensor, produced: dict[str, Tensor]) -> dict[str, Tensor]:
        device = produced["logits"].device
        if self._teacher is None or any(isinstance(output, FakeTensor) for output in produced.values()):
            # A plan runs the step without values. From the second epoch on the teacher does not run either.
            return {name: torch.zeros_like(output) for name, output in produced.items()}
        teacher = self._teacher
        args, kwargs = teacher.arguments(inputs, labels, self._lesson.task)

        def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
            return teacher.outputs(args, kwargs, "hidden" in produced)

        return run(args, kwargs) if self._kept is None else self._kept.outputs(args, kwargs, [*produced], device, run)

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens a store of its own.
        return {**vars(self), "_store": None, "_kept": None}


def _check_examples(teacher: Teacher, data: Any) -> None:
    """Check that the teacher can take the encoded examples, packed if they are."""
    encoded, tokenizer = getattr(data, "encoded", None), getattr(data, "tokenizer", None)
    if not isinstance(encoded, dict) or tokenizer is None:
        return
    limits = find_limits(teacher.backbone)
    try:
        for name, examples in encoded.items():
            limits.check(examples, f"the {name} rows", len(tokenizer) - 1)
        if hasattr(data, "check_packed"):
            data.check_packed(teacher.model)
    except ConfigurationError as error:
        raise ConfigurationError(f"The teacher does not fit the data: {error}") from error
