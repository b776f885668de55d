"""The callbacks of a config with every schedule written as a list of phases, to edit and use."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from lightning.pytorch import Callback

from lightning_freeze.callbacks import PhasedFineTuning
from lightning_freeze.cli.parsing.class_defaults import described
from lightning_freeze.schedule.phases import Phase

_HEADER = """\
# The phases of {what}, one entry each. To use them, give this file after {place}:
#   lightning-freeze fit {options} --config {name}
"""


def phases_yaml(
    entries: Sequence[Any],
    callbacks: Iterable[Callback],
    schedules: Iterable[Sequence[Phase]],
    configs: Sequence[str],
    name: str,
) -> str:
    """Return a config with the same callbacks, in which schedules are lists of phases.

    Schedules that phases do not describe in full, such as ``ULMFiT`` with its rates, stay as they are.

    Args:
        entries: The callbacks in the config, as namespaces with ``class_path`` and ``init_args``.
        callbacks: The callbacks that were made of them, in the same order.
        schedules: The phases of those that have any.
        configs: The files that the entries are from, if they are from any.
        name: The file that the text will be written to.
    """
    remaining = iter(schedules)
    what, place = (" and ".join(configs), "the config") if configs else ("the run", "all other options")
    options = " ".join(f"--config {shlex.quote(config)}" for config in configs) or "..."
    lines = [
        _HEADER.format(what=what, place=place, options=options, name=shlex.quote(name)),
        "trainer:",
        "  callbacks:",
    ]
    for entry, callback in zip(entries, callbacks, strict=False):
        phases = next(remaining) if isinstance(callback, PhasedFineTuning) else None
        if isinstance(callback, PhasedFineTuning) and phases is not None and callback.does_nothing_but_phases:
            lines += _written(callback, phases)
        else:
            lines += _indented(yaml.safe_dump([_plain(entry)], sort_keys=False, allow_unicode=True), 4)
    return "\n".join(lines) + "\n"


def _written(callback: PhasedFineTuning, phases: Sequence[Phase]) -> list[str]:
    lines = ["    - class_path: PhasedFineTuning", "      init_args:", "        phases:"]
    for phase in phases:
        text = yaml.safe_dump(
            _phase(phase), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
        ).strip()
        lines.append(f"          - {text}")
    options = _options(callback)
    return [*lines, *(_indented(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), 8) if options else [])]


def _options(callback: PhasedFineTuning) -> dict[str, Any]:
    parameters = inspect.signature(PhasedFineTuning.__init__).parameters
    own = {name: getattr(callback, name) for name in parameters if name not in ("self", "phases")}
    if not callback.restore_best:
        own = {name: value for name, value in own.items() if name not in ("monitor", "mode")}
    return {name: _plain(value) for name, value in own.items() if value != parameters[name].default}


def _phase(phase: Phase) -> dict[str, Any]:
    entry: dict[str, Any] = {"train": phase.train}
    if phase.until is not None:
        entry["until"] = _short(_plain(described(phase.until)))
    if phase.lr != 1:
        entry["lr"] = phase.lr
    if phase.factors:
        entry["factors"] = dict(phase.factors)
    return entry


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: v.rpartition(".")[2] if k == "class_path" else _short(v) for k, v in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    as_dict = getattr(value, "as_dict", None)
    if callable(as_dict):
        return _plain(as_dict())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _indented(text: str, by: int) -> list[str]:
    return [" " * by + line for line in text.rstrip().splitlines()]
