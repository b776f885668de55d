"""Resumes a sharded run: optimizer state is restored only for parameters that require grad at that moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn import Parameter

from lightning_freeze.distributed.sharding import is_sharded, reshard
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers.discovery.module_tree import clean_name


class SavedOptimizers(NamedTuple):
    """The optimizers in a checkpoint of a sharded run.

    Attributes:
        parameters: The names of the parameters that any of them has state for.
        groups: The number of parameter groups of each.
    """

    parameters: set[str]
    groups: list[int]


def restore_where_saved(trainer: Trainer, module: LightningModule) -> Callable[[], None]:
    """Have the strategy restore the optimizer state of every parameter that the checkpoint has state for.

    Strategies that shard restore weights and optimizers together, before the state of any callback, so with the
    trainable parameters of the first phase. From now on, during a restore, all parameters with optimizer state in the
    checkpoint require grad.

    Returns:
        A function that undoes the change.
    """
    strategy: Any = trainer.strategy
    if not any(is_sharded(parameter) for parameter in module.parameters()):
        return lambda: None
    original = strategy.load_checkpoint

    @wraps(original)
    def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        reshard(module)
        names = [name for name, _ in module.named_parameters()]
        saved = read_optimizers(Path(strategy.broadcast(checkpoint_path)), names, weights_only)
        if saved is None:
            return original(checkpoint_path, weights_only=weights_only)
        _check_groups(saved.groups, [len(optimizer.param_groups) for optimizer in trainer.optimizers])
        with _requires_grad_exactly(module, saved.parameters):
            return original(checkpoint_path, weights_only=weights_only)

    strategy.load_checkpoint = load_checkpoint

    def undo() -> None:
        vars(strategy).pop("load_checkpoint", None)

    return undo


def read_optimizers(path: Path, names: Sequence[str], weights_only: bool | None = None) -> SavedOptimizers | None:
    """Read which optimizer state a checkpoint holds, without reading its tensors.

    Args:
        path: A folder (sharded checkpoint) or a file (full checkpoint), as ``ModelParallelStrategy`` writes them.
        names: Names of all parameters of the module, in order.
        weights_only: As in ``torch.load``.

    Returns:
        The state by these names; ``None`` if there is no such checkpoint, or it has no optimizers.
    """
    if path.is_dir():
        saved = _read_sharded(path)
    elif path.is_file():
        saved = _read_full(path, names, weights_only)
    else:
        return None
    return saved and saved._replace(parameters={name for name in names if clean_name(name) in saved.parameters})


def _read_sharded(path: Path) -> SavedOptimizers | None:
    from torch.distributed.checkpoint import FileSystemReader  # type: ignore[attr-defined]

    # Keys are "optimizer_0.state.encoder.layers.3.weight.exp_avg" and "optimizer_0.param_groups.2.lr". What comes
    # after a parameter's name may be nested, so every beginning is taken for a name; only those of parameters count.
    keys = [key.split(".") for key in FileSystemReader(path).read_metadata().state_dict_metadata]
    keys = [parts for parts in keys if parts[0].startswith("optimizer_")]
    if not keys:
        return None
    states = [parts[2:] for parts in keys if parts[1] == "state"]
    groups: dict[int, int] = {}
    for owner, kind, number, *_ in [parts for parts in keys if len(parts) > 2]:
        if kind == "param_groups":
            index = int(owner.removeprefix("optimizer_"))
            groups[index] = max(groups.get(index, 0), int(number) + 1)
    names = {".".join(parts[:end]) for parts in states for end in range(1, len(parts))}
    return SavedOptimizers(names, [groups[index] for index in sorted(groups)])


def _read_full(path: Path, names: Sequence[str], weights_only: bool | None) -> SavedOptimizers | None:
    checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
    states = checkpoint.get("optimizer_states")
    if not states:
        return None
    keys = [key for state in states for key in state["state"]]
    found = {clean_name(names[key] if isinstance(key, int) else key) for key in keys}
    return SavedOptimizers(found, [len(state["param_groups"]) for state in states])


def _check_groups(saved: Sequence[int], now: Sequence[int]) -> None:
    if saved and list(saved) != list(now):
        raise ConfigurationError(
            f"The optimizers in the checkpoint have {_and(saved)} parameter groups, those of this run {_and(now)}: it "
            f"was saved with another optimizer, or by a version of this package that made one group for each layer. "
            f"Resume with what saved it, or begin a new run from its weights alone."
        )


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


@contextmanager
def _requires_grad_exactly(module: LightningModule, names: set[str]) -> Iterator[None]:
    before: dict[Parameter, bool] = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
