"""A teacher: a trained model that is run and never trained, and that is no part of the module that learns from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_freeze.errors import ConfigurationError, listing
from lightning_freeze.module.batch import logits_of
from lightning_freeze.module.build import DROPOUT, BuildSettings, build_model, has_own_head
from lightning_freeze.module.pooling import PooledModel, arguments_for, backbone_of, unwrapped
from lightning_freeze.module.pretrained.heads import are_generic, match_labels, stored_names
from lightning_freeze.module.pretrained.special_tokens import prepare_inputs
from lightning_freeze.module.tasks import Task
from lightning_freeze.namespaces import LightningModule, either

_CHECKPOINT = (".ckpt",)


@dataclass(frozen=True)
class Lesson:
    """What the student learns, so that a teacher can be checked against it.

    Attributes:
        task: The task.
        num_classes: Number of classes; None where the task has none.
        labels: The names of the classes, or None.
        load_checkpoint: Returns the module that a checkpoint of ``TransformerModule`` holds.
    """

    task: Task
    num_classes: int | None
    labels: list[str] | None
    load_checkpoint: Callable[[str], Any]


class Teacher:
    """A trained model in eval mode.

    It is not registered in the student's module: no optimizer, checkpoint or strategy sees it, and ``train()`` does not
    reach it.

    Args:
        model: Returns logits.
        columns: For each class of the student the output of the teacher that means it; None for the same order.
    """

    def __init__(self, model: nn.Module, columns: Sequence[int] | None = None) -> None:
        self.model = model.eval()
        self.columns = None if columns is None else torch.tensor(columns)

    @property
    def backbone(self) -> nn.Module:
        """The transformers model inside the wrappers; for a module of another kind the module itself."""
        return backbone_of(self.model)

    def arguments(self, inputs: dict[str, Any], labels: Tensor, task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the model is called with.

        Args:
            inputs: Model inputs by name.
            labels: The labels of the batch. Only a model that makes the inputs of its decoder from them gets them.
            task: The task.
        """
        prepared = prepare_inputs(self.backbone, inputs)
        if task.target == "target-token":
            prepared = {**prepared, "labels": labels}
        return arguments_for(self.model, prepared)

    @torch.no_grad()
    def outputs(self, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: bool) -> dict[str, Tensor]:
        """Run the teacher.

        Args:
            args: Positional arguments, as :meth:`arguments` returns them.
            kwargs: Named arguments.
            hidden: Whether the last hidden state is wanted too.

        Returns:
            ``logits``, in the order of the student's classes, and ``hidden`` if it is wanted.
        """
        # A teacher that the user goes on using elsewhere may have been put in training mode there.
        for module in self.model.modules():
            module.training = False
        with last_hidden_state(self.backbone if hidden else None) as states:
            logits = logits_of(self.model(*args, **kwargs))
        if self.columns is not None:
            logits = logits[..., self.columns.to(logits.device)]
        return {"logits": logits.detach(), **({"hidden": states[-1].detach()} if hidden else {})}


def load_teacher(teacher: str | nn.Module, lesson: Lesson) -> Teacher:
    """Load a teacher, or take a module as one.

    Args:
        teacher: A checkpoint (``.ckpt``) of ``TransformerModule``, the folder or hub name of a model with a trained
            head, or a module that returns logits.
        lesson: What the student learns.

    Raises:
        ConfigurationError: The teacher cannot be loaded, its head is not trained, or it has other classes.
    """
    with isolate_rng():  # so that the random numbers of the student do not depend on its teacher
        if isinstance(teacher, str) and teacher.endswith(_CHECKPOINT):
            teacher = _from_checkpoint(teacher, lesson)
        if isinstance(teacher, str):
            return Teacher(_from_name(teacher, lesson))
        return _from_module(teacher, lesson)


@contextmanager
def last_hidden_state(backbone: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect the last hidden state of each forward pass in this context.

    Args:
        backbone: A transformers model, or an encoder that returns a tensor; None to collect nothing.

    Raises:
        ConfigurationError: A pass has returned no hidden state.
    """
    states: list[Tensor] = []
    if backbone is None:
        yield states
        return
    base: nn.Module = getattr(backbone, "base_model", backbone)

    def collect(module: nn.Module, args: Any, output: Any) -> None:
        state = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
        if state is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            state = output[0]
        if not isinstance(state, Tensor) or state.ndim not in (2, 3):
            raise ConfigurationError(
                f"distillation: hidden_weight compares last hidden states, and {type(module).__name__} returns none of "
                "shape (batch, sequence, hidden): expected hidden_weight=0."
            )
        states.append(state)

    handle = base.register_forward_hook(collect)
    try:
        yield states
    finally:
        handle.remove()


def _from_checkpoint(path: str, lesson: Lesson) -> nn.Module:
    try:
        module: nn.Module = lesson.load_checkpoint(path)
    except FileNotFoundError as error:
        raise ConfigurationError(f"The teacher {path!r} does not exist: expected a checkpoint (.ckpt).") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"The teacher {path!r} cannot be loaded: {error}") from error
    except Exception as error:  # what a file that is no checkpoint, or that of another module, leads to
        raise ConfigurationError(
            f"The teacher {path!r} cannot be loaded ({type(error).__name__}: {_first_line(error)}): expected a "
            "checkpoint of TransformerModule with an encoder that was given by name, or the module itself."
        ) from error
    return module


def _from_name(name: str, lesson: Lesson) -> nn.Module:
    settings = BuildSettings(True, None, None, DROPOUT, {})
    loaded = build_model(name, lesson.task, lesson.num_classes, lesson.labels, settings)
    if not loaded.head.trained:
        classes = f" for the classes {listing(lesson.labels)}" if lesson.labels else ""
        raise ConfigurationError(
            f"The teacher {name!r} has no trained head{classes}: expected a model that was fine-tuned for the task "
            f"{lesson.task.name!r}, or a checkpoint (.ckpt) of TransformerModule."
        )
    return loaded.model


def _from_module(module: nn.Module, lesson: Lesson) -> Teacher:
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"teacher is {module!r}: expected a checkpoint (.ckpt), a local folder, a hub name or a torch.nn.Module."
        )
    own_task, model = getattr(module, "task", None), getattr(module, "model", None)
    if isinstance(module, either(LightningModule)) and isinstance(own_task, Task) and isinstance(model, nn.Module):
        if own_task.target != lesson.task.target:
            raise ConfigurationError(
                f"The teacher was trained for the task {own_task.name!r}, and the student learns {lesson.task.name!r}: "
                "expected the same task."
            )
        return Teacher(model, _columns(list(getattr(module, "labels", None) or []), lesson))
    if isinstance(module, either(LightningModule)) or not has_own_head(module):
        # The output of any other module is its logits.
        return Teacher(PooledModel(module, lesson.task, lesson.num_classes or 1, "none"))
    names = stored_names(unwrapped(module).config) if lesson.task.has_classes else []
    return Teacher(module, _columns([] if are_generic(names) else names, lesson))


def _columns(names: list[str], lesson: Lesson) -> list[int] | None:
    """Return the output of the teacher for each class of the student, by name; None where names are unknown."""
    if not names or lesson.labels is None:
        return None
    rows = match_labels(names, lesson.labels)
    if rows is None or len(names) != len(lesson.labels) or None in rows:
        raise ConfigurationError(
            f"The teacher has the classes {listing(names)}, and the student {listing(lesson.labels)}: expected the "
            "same classes."
        )
    return [row for row in rows if row is not None]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
