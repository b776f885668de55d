"""The first weights of a student: those of its teacher, wherever name and shape are the same."""

from __future__ import annotations

import re

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_freeze.errors import ConfigurationError

# What peft adds to the names of the weights that it wraps.
_ADDED = re.compile(r"base_model\.model\.|\.base_layer(?=\.)|\.original_module(?=\.)|\.modules_to_save\.\w+(?=\.)")


@torch.no_grad()
def start_from(teacher: nn.Module, student: nn.Module) -> None:
    """Copy weights and buffers of a teacher to its student.

    A student with fewer blocks begins with the first ones of the teacher.

    Args:
        teacher: The teacher.
        student: The student; weights that have no counterpart stay as they are.

    Raises:
        ConfigurationError: No weight has a counterpart.
    """
    source = {_plain(name): tensor for name, tensor in _tensors(teacher).items()}
    copied, new = [], []
    for name, tensor in _tensors(student).items():
        if tensor.is_meta:
            return
        given = source.get(_plain(name))
        if given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
            copied.append(name)
        elif isinstance(tensor, nn.Parameter):
            new.append(name)
    if not copied:
        raise ConfigurationError(
            f"distillation: start_from_teacher found no weight of the student, such as {new[0]!r}, with the name and "
            "shape of one of the teacher: expected a student of the same family."
        )
    rest = f"; {len(new)} others, such as {new[0]!r}, are not in the teacher" if new else ""
    rank_zero_info(f"{len(copied)} weights of the student start from the teacher{rest}.")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _plain(name: str) -> str:
    return _ADDED.sub("", name)
